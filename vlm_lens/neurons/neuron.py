"""One neuron, and what its hook name says about it.

A *neuron* is one entry of the last dimension of the activations at one hook point, so the hook
point's name is also the neuron's *site*. Papers mean different things by "neuron" (the activation
function's output, its product with the gate, an output channel of the MLP); the site says which.

Where activations have a dimension for heads, ``[batch, pos, head, d_head]``, the neurons of all
heads count, one head after the other: channel ``i`` of head ``h`` is neuron ``h * d_head + i``. At
``attn.hook_q``, ``hook_k`` and ``hook_v`` that is an output channel of the projection, and at
``attn.hook_z`` an input channel of the output projection, under the linear layer's own number.
Attention scores and patterns have no neurons: their last dimension is positions.
"""

from __future__ import annotations

import operator
import re
from dataclasses import dataclass
from functools import lru_cache, total_ordering

_IN_BLOCK = re.compile(r"(?:(?P<component>.+?)\.)?blocks\.(?P<layer>[0-9]+)\.(?P<site>.+)")
_LONGEST = 18
"""No index has more digits."""

_WRITTEN = re.compile(r"(?P<name>\S+)\[(?P<index>[0-9]+)\]")
_PARTS_OF_LANGUAGE_MODEL = ("embed", "unembed", "ln_final")


@lru_cache(maxsize=4096)
def split_name(name: str) -> tuple[str, int | None, str]:
    """Component, layer (None outside of blocks) and site of a hook name.

    Example:
        >>> split_name("projector.mlp.hook_post"), split_name("ln_final.hook_scale")
        (('projector', None, 'mlp.hook_post'), ('language_model', None, 'ln_final.hook_scale'))
    """
    if match := _IN_BLOCK.fullmatch(name):
        return match["component"] or "language_model", int(match["layer"]), match["site"]
    component, dot, site = name.partition(".")
    if not dot or component in _PARTS_OF_LANGUAGE_MODEL:
        return "language_model", None, name
    return component, None, site


def natural_order(name: str) -> list[tuple[int, str]]:
    """A sort key that puts layer 2 before layer 10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in name.split(".")]


@total_ordering
@dataclass(frozen=True, slots=True)
class Neuron:
    """One neuron: a hook point and a position among its channels.

    Neurons sort by hook name, numbers in it by value (layer 2 before 10), then by index.

    Attributes:
        name: The hook name.
        index: The position, from 0.

    Raises:
        ValueError: The name is empty or has white space, or the index is not an integer >= 0.

    Example:
        >>> neuron = Neuron("vision_encoder.blocks.3.mlp.hook_post", 42)
        >>> neuron.component, neuron.layer, neuron.site
        ('vision_encoder', 3, 'mlp.hook_post')
        >>> str(neuron)
        'vision_encoder.blocks.3.mlp.hook_post[42]'
        >>> Neuron.parse(str(neuron)) == neuron
        True
    """

    name: str
    index: int

    def __post_init__(self) -> None:
        if not re.fullmatch(r"\S+", self.name):
            raise ValueError(
                "a neuron's name must be a hook name without white space, such as "
                f"'blocks.3.mlp.hook_post', got {self.name!r}."
            )
        try:  # NumPy's integers are indices too
            index = operator.index(self.index)
        except TypeError:
            index = -1
        if index < 0 or isinstance(self.index, bool):
            raise ValueError(
                f"neuron indices must be integers from 0, got {self.index!r} for {self.name!r}. "
                "To choose by mask or score use from_masks or from_scores."
            )
        object.__setattr__(self, "index", index)

    @property
    def component(self) -> str:
        """The part of the model: "language_model", "vision_encoder", "projector", ..."""
        return split_name(self.name)[0]

    @property
    def layer(self) -> int | None:
        """The block's number in its component; None outside of blocks."""
        return split_name(self.name)[1]

    @property
    def site(self) -> str:
        """The hook point within its block (or component), such as "mlp.hook_post"."""
        return split_name(self.name)[2]

    @classmethod
    def parse(cls, text: str) -> Neuron:
        """The neuron that ``str`` writes as ``text``; ValueError if it is not of that form."""
        match = _WRITTEN.fullmatch(text)
        if match is None:
            raise ValueError(
                f"cannot read {text!r} as a neuron: expected a hook name and an index, such as "
                "'blocks.3.mlp.hook_post[42]'."
            )
        if len(match["index"]) > _LONGEST:  # which int() refuses with a word about Python
            raise ValueError(
                f"expected a neuron's index, got a number of {len(match['index']):,} digits"
            )
        return cls(match["name"], int(match["index"]))

    def __str__(self) -> str:
        return f"{self.name}[{self.index}]"

    def __lt__(self, other: Neuron) -> bool:
        if not isinstance(other, Neuron):
            return NotImplemented
        mine, others = natural_order(self.name), natural_order(other.name)
        return (mine, self.name, self.index) < (others, other.name, other.index)
