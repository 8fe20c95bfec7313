"""The tap on learnt positions: one row a prompt, where the model has one row for all of them."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from vlm_lens.hooks.place import Place
from vlm_lens.hooks.shared import SharedAt
from vlm_lens.hooks.tap import Tap, through


class PositionsProbe(SharedAt):
    """A tap on the output of a position embedding, as [batch, pos, d].

    GPT-2 looks its positions up once and adds them to every prompt of a batch. While the tap has
    hooks, they are looked up once and shown to hooks once for each prompt, as in TransformerLens.

    Args:
        place: Where the position embedding is.
        embedding: Where the token embedding is, which runs before it and knows the batch.

    Example:
        >>> import torch
        >>> model = nn.ModuleDict({"tokens": nn.Embedding(5, 2), "positions": nn.Embedding(3, 2)})
        >>> probe = PositionsProbe(Place(model, "positions"), embedding=Place(model, "tokens"))
        >>> handle = probe.tap.add_hook(lambda tensor, hook: print(list(tensor.shape)))
        >>> _ = model["tokens"](torch.tensor([[1, 2, 3], [4, 4, 4]]))
        >>> _ = model["positions"](torch.tensor([[0, 1, 2]]))
        [2, 3, 2]
    """

    def __init__(self, place: Place, *, embedding: Place) -> None:
        super().__init__(place)
        self._embedding = embedding
        self._handles: list[RemovableHandle] = []
        self._n_prompts = 1
        self.tap = Tap(self.use)

    def _put_in(self) -> None:
        module: nn.Module = self.module
        self._handles = [
            self._embedding.module.register_forward_hook(self._count),
            module.register_forward_hook(self._show),
        ]

    def _take_out(self) -> None:
        while self._handles:
            self._handles.pop().remove()

    def _count(self, _module: nn.Module, _args: Any, output: Tensor) -> None:
        self._n_prompts = len(output)

    def _show(self, _module: nn.Module, _args: Any, output: Tensor) -> Tensor:
        # What is embedded already passes the token embedding by, and nothing was counted.
        n_prompts, self._n_prompts = self._n_prompts, 1
        shown = output.expand(n_prompts, *output.shape[1:]) if len(output) == 1 else output
        each = shown.clone()
        answer = through(self.tap, each, None)
        return each if answer is None else answer
