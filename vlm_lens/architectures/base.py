"""The architecture record: where a family keeps the tensors that hook points name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn


@dataclass(frozen=True, kw_only=True)
class BlockPaths:
    """Module paths inside one transformer block, relative to the block.

    Attributes:
        ln1: Norm before attention.
        ln2: Norm before the MLP; its input is the residual stream between the two.
        attn: The attention module; `q`, `k`, `v`, `o` are its projections.
        rotary: Whether queries and keys are rotated.
        gate: Gate projection of a gated MLP, else None.
        act: Activation module of a gated MLP, else None.
        mlp_in: Up projection (first linear layer of an MLP that is not gated).
        mlp_out: Down projection (last linear layer).
    """

    ln1: str
    ln2: str
    attn: str
    q: str
    k: str
    v: str
    o: str
    rotary: bool
    gate: str | None = None
    act: str | None = None
    mlp_in: str
    mlp_out: str


@dataclass(frozen=True, kw_only=True)
class StackPaths:
    """A stack of transformer blocks around one residual stream.

    Attributes:
        config: Name of the component's configuration in the model's configuration.
        start: The module whose input `inputs_embeds` is the start of the residual stream.
        blocks: The list of blocks.
        block: Paths inside a block.
        ln_final: The norm at the end of the stream, where it has one that is used.
        output_layer: For an encoder: from the model's configuration, which of the ``n + 1``
            hidden states (0 is the input of the first block) is handed on.
    """

    config: str
    start: str
    blocks: str
    block: BlockPaths
    ln_final: str | None = None
    output_layer: Callable[[Any], int] | None = None


@dataclass(frozen=True, kw_only=True)
class ProjectorPaths:
    """A projector of two linear layers with an activation between them."""

    module: str
    linear_1: str
    linear_2: str


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """Everything vlm_lens needs to know of one family of models.

    Attributes:
        model_class: Name of the Hugging Face class.
        language_model: The text model; its hook points are at the root.
        vision_encoder: The vision tower; hook points under ``vision_encoder.``.
        projector: The connector; hook points under ``projector.``.
        embed: Path of the token embedding.
        unembed: Path of the language-model head.
    """

    model_class: str
    language_model: StackPaths
    vision_encoder: StackPaths
    projector: ProjectorPaths
    embed: str
    unembed: str


class ArchitectureError(TypeError):
    """A model that vlm_lens has no record of, or whose modules do not match the record."""


def module_at(root: nn.Module, path: str) -> Any:
    """The submodule at a path, typed loosely because Hugging Face modules are.

    Raises:
        ArchitectureError: There is none; the message says where the path ends.
    """
    try:
        return root.get_submodule(path)
    except AttributeError as error:
        raise ArchitectureError(
            f"Expected {type(root).__name__} to have a module at {path!r}, "
            f"but it has not: {error}. The model's class is known, its parts are not; "
            "vlm_lens needs a record for it."
        ) from error
