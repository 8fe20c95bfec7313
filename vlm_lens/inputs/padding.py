"""Which positions of bare tokens are padding, where no mask says so."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Int
from torch import Tensor

Side = Literal["left", "right"]


def pad_id(tokenizer: Any) -> int | None:
    """The id of a tokenizer's pad token, else of its eos token, else None."""
    return tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id


def padding_side(tokenizer: Any) -> Side:
    """The left, where nothing comes between a prompt and its answer, unless the user chose.

    Many tokenizers are stored with the side of their training. So a side counts where it is not the
    one that the tokenizer was made with.

    Example:
        >>> from tokenizers import Tokenizer, models
        >>> from transformers import PreTrainedTokenizerFast
        >>> backend = Tokenizer(models.WordLevel({}))
        >>> tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, padding_side="left")
        >>> padding_side(tokenizer)
        'left'
        >>> tokenizer.padding_side = "right"
        >>> padding_side(tokenizer)
        'right'
    """
    made_with = tokenizer.init_kwargs.get("padding_side", type(tokenizer).padding_side)
    return "left" if tokenizer.padding_side == made_with else tokenizer.padding_side


@dataclass(frozen=True)
class PadToken:
    """A pad token, and what else it stands for.

    Attributes:
        id: Its id.
        is_bos: Whether it is also the token that starts a text.
        is_eos: Whether it is also the token that ends one.
        is_unk: Whether it is also what stands for unknown words.
        starts: Whether texts start with a bos token unless something else is asked for.
        side: Where texts are padded.
    """

    id: int
    is_bos: bool = False
    is_eos: bool = False
    is_unk: bool = False
    starts: bool = False
    side: Side = "left"

    @classmethod
    def of(cls, settings: Any, *, starts: bool = False, side: Side = "left") -> PadToken | None:
        """The pad token of a tokenizer, or of a model's configuration; None where it has none."""
        pad = pad_id(settings)
        if pad is None:
            return None
        names = ("bos", "eos", "unk")
        also = {f"is_{n}": getattr(settings, f"{n}_token_id", None) == pad for n in names}
        return cls(pad, **also, starts=starts, side=side)

    @property
    def is_only_padding(self) -> bool:
        """Whether it stands for nothing else."""
        return not (self.is_bos or self.is_eos or self.is_unk)

    def mask(self, tokens: Int[Tensor, "batch pos"]) -> Int[Tensor, "batch pos"]:
        """1 at what tokens hold, 0 at the padding at their ends.

        A token that only pads is padding at both ends, and nowhere else. One that has another
        meaning too is padding where that meaning cannot be its own: a text does not start with the
        eos token, ends with one of them, and starts with one bos token. A row of nothing but such
        tokens has no end to look at, and is taken as it is.

        Example:
            >>> PadToken(0).mask(torch.tensor([[0, 0, 5, 0, 6], [7, 5, 5, 6, 0]])).tolist()
            [[0, 0, 1, 1, 1], [1, 1, 1, 1, 0]]
            >>> PadToken(0, is_bos=True, starts=True).mask(torch.tensor([[0, 0, 5]])).tolist()
            [[0, 1, 1]]
        """
        other = tokens != self.id
        filled = other.any(1)
        before = ((~other).long().cumprod(1).sum(1)) * filled
        behind = ((~other).long().flip(1).cumprod(1).sum(1)) * filled
        first = (before - self._real_in_front(before))[:, None]
        last = (behind - self._real_behind(behind)).clamp(min=0)[:, None]
        place = torch.arange(tokens.shape[1], device=tokens.device)
        return ((place >= first) & (place < tokens.shape[1] - last)).long()

    def _real_in_front(self, runs: Int[Tensor, " batch"]) -> int | Int[Tensor, " batch"]:
        """How many of the tokens that each row starts with are no padding."""
        if self.is_bos:
            shortest = int(runs.min()) if len(runs) else 0
            return int(shortest == 1 or (shortest > 1 and self.starts))
        return runs if self.is_unk and self.side == "right" else 0

    def _real_behind(self, runs: Int[Tensor, " batch"]) -> int | Int[Tensor, " batch"]:
        """How many of the tokens that each row ends with are no padding."""
        if self.is_eos:  # behind answers of several lengths, all that follows the first one
            return int(self.side == "left" or bool((runs > 0).all()))
        return runs if not self.is_only_padding and self.side == "left" else 0
