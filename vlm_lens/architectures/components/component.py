"""What all components share: they refer to a Hugging Face module, and wire taps into it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from vlm_lens.hooks import (
    OutputPart,
    PatchRows,
    Place,
    Tap,
    View,
    input_of,
    output_of,
    shared_input_of,
    tap_at,
)
from vlm_lens.hooks.adapters import effective
from vlm_lens.hooks.tap import Wire


class Component(nn.Module):
    """Taps of one Hugging Face module, which it refers to by its place.

    Attributes:
        projections: The linear layers whose weights it shows, by the name of the weight.

    Args:
        place: Where the module is.
        patch_rows: Where each patch lies in its tensors, if they are not in the plain layout.

    Raises:
        ArchitectureError: There is no module.
    """

    def __init__(self, place: Place, *, patch_rows: PatchRows | None = None) -> None:
        super().__init__()
        self.place, self.patch_rows = place, patch_rows
        self.projections: dict[str, Projection] = {}
        _ = place.module

    @property
    def hf_module(self) -> Any:
        """The Hugging Face module that the taps of this component are in."""
        return self.place.module

    def output_tap(self, place: Place, view: View | None = None) -> Tap:
        """A tap on a module's output, shown in the plain layout."""
        return self._tap(output_of, place, view=view)

    def input_tap(
        self,
        place: Place,
        view: View | None = None,
        *,
        keyword: str | None = None,
        private: bool = False,
    ) -> Tap:
        """A tap on a module's input, shown in the plain layout; see `input_of`."""
        return self._tap(input_of, place, view=view, keyword=keyword, private=private)

    def shared_input_tap(self, place: Place) -> Tap:
        """A tap on an input that its caller goes on using, shown in the plain layout."""
        return self._tap(shared_input_of, place)

    def _tap(self, what: Callable[..., Wire], place: Place, **options: Any) -> Tap:
        _ = place.module  # a wrong path is refused when the model is wrapped
        return tap_at(what, place, patch_rows=self.patch_rows, **options)


@dataclass(frozen=True)
class Projection:
    """A linear layer, or a part of the outputs of one that does several things at once.

    Attributes:
        place: Where the linear layer is.
        part: Which outputs belong to the projection; None for all of them.
    """

    place: Place
    part: OutputPart | None = None

    @property
    def module(self) -> Any:
        """The linear layer."""
        return self.place.module

    @property
    def n_outputs(self) -> int:
        """How many outputs belong to the projection."""
        return n_outputs(self.module) if self.part is None else self.part.size

    @property
    def view(self) -> View | None:
        """How hooks see it in the layer's output."""
        return None if self.part is None else self.part.view

    def of(self, outputs: Tensor) -> Float[Tensor, "*batch d_out"]:
        """Its part of something that has the layer's outputs as its last axis."""
        return outputs if self.part is None else self.part.view.show(outputs)

    @property
    def weight(self) -> Float[Tensor, "d_in d_out"]:
        return self.of(weight_of(self.module))

    @property
    def bias(self) -> Float[Tensor, " d_out"]:
        return self.of(bias_of(self.module))


def n_inputs(linear: Any) -> int:
    """How many inputs a linear layer has, GPT-2's included, which is called a convolution.

    Example:
        >>> from transformers.pytorch_utils import Conv1D
        >>> n_inputs(Conv1D(3, 2)), n_outputs(Conv1D(3, 2))
        (2, 3)
    """
    return linear.in_features if hasattr(linear, "in_features") else linear.nx


def n_outputs(linear: Any) -> int:
    """How many outputs a linear layer has; see `n_inputs`."""
    return linear.out_features if hasattr(linear, "out_features") else linear.nf


def weight_of(linear: Any) -> Float[Tensor, "d_in d_out"]:
    """A linear layer's weight, to be multiplied from the right as in TransformerLens.

    Of a layer with adapters (LoRA and others of peft's), it is the weight that the layer computes
    with: a copy with the active adapters merged in.

    Raises:
        TypeError: The weight is quantised, or not in memory, or an adapter is no change of weights.
    """
    layer = effective(linear)
    weight = readable(getattr(layer, "weight", None), layer)
    return weight if isinstance(layer, Conv1D) else weight.T


def readable(weight: Any, module: nn.Module) -> Tensor:
    """A module's weight, if its entries are there and are what the module multiplies with.

    Raises:
        TypeError: They are not; the message says what to do.
    """
    if weight is None:
        raise TypeError(
            f"Expected a layer with weights, but {type(module).__name__}, which is in its place, "
            "has none of its own. Its activations can be hooked."
        )
    if not isinstance(weight, Tensor):  # torch's own quantised layers make it when it is asked for
        raise TypeError(_QUANTISED.format(layer=type(module).__name__, kept="packed weights"))
    if weight.is_meta:
        raise TypeError(
            f"The weights of this {type(module).__name__} are not in memory: the device map keeps "
            "them elsewhere between forwards. Its activations can be hooked; to read weights, "
            "load the model without offloading."
        )
    if not weight.is_floating_point() or weight.element_size() == 1:  # 1: float8, with scales
        raise TypeError(_QUANTISED.format(layer=type(module).__name__, kept=weight.dtype))
    return weight


_QUANTISED = (
    "Expected floating-point weights, but {layer} keeps {kept}: the model is quantised. Its "
    "activations can be hooked; to read weights, load it without quantisation."
)


def bias_of(linear: Any) -> Float[Tensor, " d_out"]:
    """A linear layer's bias, adapters included, or zeros where it has none."""
    layer = effective(linear)
    if getattr(layer, "bias", None) is not None:
        return readable(layer.bias, layer)
    weight = readable(getattr(layer, "weight", None), layer)
    return torch.zeros(n_outputs(layer), dtype=weight.dtype, device=weight.device)
