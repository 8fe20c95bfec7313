"""The logit lens: what each position's residual stream would be decoded to, layer by layer.

The residual stream behind each block goes through the model's own final norm and unembedding, as if
no block came behind it (nostalgebraist 2020, "interpreting GPT: the logit lens"). At positions of
an image nothing was ever trained to be decoded; that what stands there names what the patch shows
is a finding (Neo et al. 2024, "Towards Interpreting Visual Information Processing in VLMs"), not
something to rely on: early layers in particular use other directions than late ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, get_args

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.hook_points import HookPoint

from vlm_lens.inputs import Inputs
from vlm_lens.inputs.token_kinds import Kind
from vlm_lens.model import HookedVLM
from vlm_lens.parts import decoder_for

_AT_ONCE = 2**24
"""So many logits are computed at a time."""
_NEAR = 0.02
"""How far the last layer's logits may be from the model's, as a share of the largest one."""


@dataclass(frozen=True, eq=False, repr=False)
class LogitLens:
    """What positions decode to at each depth.

    Attributes:
        names: The hook points that were decoded, by depth.
        depths: 0 is what enters the first block, ``i`` what leaves block ``i - 1``.
        positions: The positions, in the sample's sequence.
        tokens: The most probable tokens' ids, best first.
        probabilities: Theirs, float32.
        texts: The text of each id in `tokens`.
        followed: The probability of each token that was asked for, by its text.
    """

    names: tuple[str, ...]
    depths: tuple[int, ...]
    positions: tuple[int, ...]
    tokens: Int[Tensor, "depth pos k"]
    probabilities: Float[Tensor, "depth pos k"]
    texts: dict[int, str]
    followed: dict[str, Float[Tensor, "depth pos"]] = field(default_factory=dict)

    def words(self, depth: int, pos: int) -> list[str]:
        """The texts of the most probable tokens, best first.

        Args:
            depth: One of `depths`.
            pos: One of `positions`.

        Raises:
            ValueError: It is not among those that were decoded.
        """
        row = self.tokens[self.depths.index(depth), self.positions.index(pos)]
        return [self.texts[token] for token in row.tolist()]

    def to_dataframe(self) -> pd.DataFrame:
        """One row for each depth, position and rank.

        Returns:
            Columns ``depth``, ``name``, ``position``, ``rank`` (from 0), ``token``, ``text`` and
            ``probability``.
        """
        n_depths, n_positions, k = self.tokens.shape
        places = pd.MultiIndex.from_product(
            [self.depths, self.positions, range(k)], names=["depth", "position", "rank"]
        )
        frame = places.to_frame(index=False)
        frame.insert(1, "name", [n for n in self.names for _ in range(n_positions * k)])
        frame["token"] = self.tokens.flatten().tolist()
        frame["text"] = [self.texts[token] for token in frame["token"]]
        return frame.assign(probability=self.probabilities.flatten().tolist())

    def __repr__(self) -> str:
        n_depths, n_positions, k = self.tokens.shape
        return f"LogitLens({n_positions} positions at {n_depths} depths, top {k} tokens)"


@torch.no_grad()
def logit_lens(
    model: HookedVLM,
    inputs: Inputs,
    *,
    positions: Kind | Sequence[int] = "image",
    depths: Sequence[int] | None = None,
    follow: Sequence[str | int] = (),
    k: int = 5,
    sample: int = 0,
) -> LogitLens:
    """Decodes the residual stream at some positions, at each depth.

    Args:
        model: A model whose text model is a decoder.
        inputs: What `model.prepare` returns.
        positions: Which positions: a kind, as `TokenMap.positions` knows it ("image", "text",
            "prompt", ...), or their numbers; -1 is the last one.
        depths: Which depths; 0 is what enters the first block, ``i`` what leaves block ``i - 1``.
            By default all.
        follow: Tokens whose probability is wanted everywhere, as texts or ids.
        k: How many tokens to keep of each position.
        sample: Which prompt of a batch.

    Returns:
        The most probable tokens. Those of the last depth are the model's own predictions.

    Raises:
        ValueError: The text model is an encoder with a decoder, there is no such position, or the
            model's logits are not what its final norm and unembedding make of the last layer.
        IndexError: There is no such sample, position, depth or token.

    Example:
        >>> from vlm_lens import load_samples
        >>> from vlm_lens.shapes_llava import IMAGES
        >>> model = HookedVLM.from_pretrained("shapes-llava")
        >>> sample = load_samples(IMAGES)[3]
        >>> inputs = model.prepare(images=sample.images, text=sample.text)
        >>> lens = logit_lens(model, inputs, positions=[-1], follow=["no"])
        >>> lens.words(6, len(inputs.token_map[0]) - 1)[0], lens.followed["no"].shape
        ('no', torch.Size([7, 1]))
    """
    decoder_for(model, "the logit lens")
    places = _places(inputs, positions, sample)
    chosen = _depths(model, depths)
    followed = {_text(model, token): _id(model, token) for token in follow}
    k = min(k, int(model.W_U.shape[1]))
    states, logits = _states(model, inputs, chosen, sample, places)
    decode = _Decoder(model, states[_name(model.cfg.n_layers)], logits)
    best = [decode.best(states[_name(depth)], k, list(followed.values())) for depth in chosen]
    tokens = torch.stack([one[0] for one in best])
    ids = tokens.unique().tolist()
    of_followed = torch.stack([one[2] for one in best])
    return LogitLens(
        names=tuple(_name(depth) for depth in chosen),
        depths=tuple(chosen),
        positions=tuple(places),
        tokens=tokens,
        probabilities=torch.stack([one[1] for one in best]),
        texts={token: _text(model, token) for token in ids},
        followed={text: of_followed[..., i] for i, text in enumerate(followed)},
    )


# What is asked for --------------------------------------------------------------------------------


def _places(inputs: Inputs, positions: Kind | Sequence[int], sample: int) -> list[int]:
    if not 0 <= sample < len(inputs.token_map):
        raise IndexError(f"there is no sample {sample}: there are {len(inputs.token_map)}")
    token_map = inputs.token_map[sample]
    if isinstance(positions, str):
        if positions not in get_args(Kind):
            raise ValueError(f"unknown kind {positions!r}: expected one of {get_args(Kind)}")
        found = token_map.positions(positions)
    else:
        n = len(token_map)
        wrong = [position for position in positions if not -n <= position < n]
        if wrong:
            raise IndexError(f"there is no position {wrong[0]}: the sample has {n}")
        found = [position % n for position in positions]
    if not found:
        raise ValueError(f"expected positions to decode, but {token_map} has none: {positions!r}")
    return found


def _depths(model: HookedVLM, depths: Sequence[int] | None) -> list[int]:
    n = model.cfg.n_layers
    chosen = list(range(n + 1)) if depths is None else list(depths)
    if wrong := [depth for depth in chosen if not 0 <= depth <= n]:
        raise IndexError(f"there is no depth {wrong[0]}: expected 0 (the input) to {n}")
    if not chosen:
        raise ValueError("expected at least one depth")
    return chosen


def _name(depth: int) -> str:
    return f"blocks.{depth - 1}.hook_resid_post" if depth else "blocks.0.hook_resid_pre"


def _id(model: HookedVLM, token: str | int) -> int:
    found = model.to_single_token(token) if isinstance(token, str) else token
    if not 0 <= found < model.W_U.shape[1]:
        raise IndexError(f"there is no token {found}: there are {model.W_U.shape[1]}")
    return found


def _text(model: HookedVLM, token: str | int) -> str:
    return token if isinstance(token, str) else model.to_single_str_token(token)


# What the model makes of it -----------------------------------------------------------------------


def _states(
    model: HookedVLM, inputs: Inputs, depths: Sequence[int], sample: int, places: list[int]
) -> tuple[dict[str, Float[Tensor, "pos d_model"]], Float[Tensor, "pos d_vocab"]]:
    """The residual stream at some positions, of one forward, and the model's own logits there."""
    kept: dict[str, Tensor] = {}

    def keep(tensor: Tensor, hook: HookPoint) -> None:
        kept[str(hook.name)] = tensor[sample, places].clone()

    names = [_name(depth) for depth in sorted({*depths, model.cfg.n_layers})]
    hooks: list[tuple[Any, Any]] = [(names, keep)]
    logits = model.run_with_hooks(inputs, fwd_hooks=hooks)
    return kept, logits[sample, places]


class _Decoder:
    """From residual streams to probabilities, as the model itself does it.

    Args:
        model: The model.
        last: What leaves the last block.
        logits: What the model made of it, to find out whether logits are capped, and to be sure.
    """

    def __init__(
        self,
        model: HookedVLM,
        last: Float[Tensor, "pos d_model"],
        logits: Float[Tensor, "pos d_vocab"],
    ) -> None:
        self._model = model
        self._cap: float | None = None
        config = model.hf_model.config.get_text_config()
        # Some classes cap logits as their text model's configuration says, others pass over it.
        caps = (None, getattr(config, "final_logit_softcapping", None))
        own = logits[-1:].float()
        apart = {cap: self._apart(last[-1:], own, cap) for cap in caps}
        self._cap = min(apart, key=apart.__getitem__)
        if not apart[self._cap] <= _NEAR * float(own.abs().max()):
            raise ValueError(
                f"the logits of this {model.cfg.architecture} are not what its final norm and its "
                "unembedding make of the last layer, so that these cannot decode other layers"
            )

    def _apart(
        self, state: Float[Tensor, "1 d_model"], own: Float[Tensor, "1 d_vocab"], cap: float | None
    ) -> float:
        """How far logits with this cap are from the model's own."""
        self._cap = cap
        return float((self._logits(state).float().to(own.device) - own).abs().max())

    def _logits(self, states: Float[Tensor, "pos d_model"]) -> Float[Tensor, "pos d_vocab"]:
        logits = self._model.unembed(self._model.ln_final(states))
        if self._cap:
            logits = torch.tanh(logits / self._cap) * self._cap
        return logits

    def best(
        self, states: Float[Tensor, "pos d_model"], k: int, followed: list[int]
    ) -> tuple[Int[Tensor, "pos k"], Float[Tensor, "pos k"], Float[Tensor, "pos followed"]]:
        """The most probable tokens, their probabilities, and those of other tokens; on the CPU."""
        found = []
        for some in states.split(max(1, _AT_ONCE // self._model.cfg.d_vocab)):
            shares = self._logits(some).float().softmax(-1)
            values, tokens = shares.topk(k)
            found.append((tokens.cpu(), values.cpu(), shares[:, followed].cpu()))
        tokens, values, others = (torch.cat(column) for column in zip(*found, strict=True))
        return tokens, values, others
