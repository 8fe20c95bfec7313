"""Checks at load: that the modules a record names are what they are called.

A path that leads to another module than the record means would give wrong numbers under a right
name. So every resolved part is held against the model's configuration and against its neighbours.
"""

from __future__ import annotations

from typing import Any

from vlm_lens.architectures.base import (
    Architecture,
    Size,
    StackPaths,
    config_at,
    size_in,
)
from vlm_lens.architectures.components import HookedBlock, HookedStack
from vlm_lens.architectures.model_types import blocks_of
from vlm_lens.hooks import ArchitectureError, Place
from vlm_lens.hooks.adapters import beneath


def check_model_types(architecture: Architecture, config: Any) -> None:
    """Holds the types of a model's parts against the known ones, before the model is built.

    Args:
        architecture: Its record.
        config: Its configuration.

    Raises:
        ArchitectureError: There is no table of paths for a part of this type, or the record does
            not hold for a model with these settings.
    """
    check_settings(architecture, config)
    for paths in architecture.parts().values():
        if paths.block is None:
            blocks_of(config_at(config, paths.config))


def check_stacks(hf_model: Any, architecture: Architecture, stacks: dict[str, HookedStack]) -> None:
    """Holds every stack of blocks against the model's configuration.

    Args:
        hf_model: The model.
        architecture: Its record.
        stacks: The stacks that the record led to, by the name of the part.

    Raises:
        ArchitectureError: Something does not fit; the message names the path and both sizes.
    """
    for name, paths in architecture.parts().items():
        config = config_at(hf_model.config, paths.config)
        _expect(paths.blocks, "blocks", len(stacks[name].blocks), _stated(config, "n_layers", name))
        for index, block in enumerate(stacks[name].blocks):
            _check_block(f"{paths.blocks}.{index}", block, paths, config)
    if architecture.embed is not None and architecture.unembed is not None:
        _check_vocabulary(hf_model, architecture.embed, architecture.unembed)


def check_settings(architecture: Architecture, config: Any) -> None:
    """Refuses a variant of a family that its record does not hold for.

    Args:
        architecture: The record.
        config: The model's configuration.

    Raises:
        ArchitectureError: A setting is not what the record requires.
    """
    for name, needed in architecture.requires.items():
        found = getattr(config, name, needed)
        if found != needed:
            raise ArchitectureError(
                f"Expected a {architecture.model_class} with {name}={needed!r}, got {found!r}: "
                "such a model computes otherwise, and its hook points would not be what they are "
                "called."
            )


def _check_vocabulary(hf_model: Any, embed: str, unembed: str) -> None:
    words = hf_model.config.get_text_config().vocab_size
    embedded = getattr(beneath(Place(hf_model, embed).module), "num_embeddings", 0)
    _expect(embed, "words", min(embedded, words), words)  # Mllama has some more
    predicted = Place(hf_model, unembed).module
    _expect(unembed, "words", getattr(predicted, "out_features", 0), words)


def _stated(config: Any, size: Size, name: str) -> int | None:
    if name == "decoder" and size == "n_layers":  # T5 may have another number of these
        return getattr(config, "num_decoder_layers", None) or size_in(config, size)
    return size_in(config, size)


def _check_block(where: str, block: HookedBlock, paths: StackPaths, config: Any) -> None:
    width = block.mlp.d_model
    _expect(f"{where} (width of the stream)", "entries", width, size_in(config, "d_model"))
    _expect(f"{where} (MLP)", "neurons", block.mlp.d_mlp, size_in(config, "d_mlp"))
    _expect(f"{where} (MLP, last layer)", "outputs", block.mlp.d_out, width)
    _expect(f"{where} (norms)", "weights", _length(block.ln1), width)
    _expect(f"{where} (norms)", "weights", _length(block.ln2), width)
    gated = getattr(config, "is_gated_act", None)
    if gated is not None and gated != block.mlp.gated:
        raise ArchitectureError(
            f"Expected the MLP of {where!r} to be {'' if gated else 'not '}gated, as "
            f"{paths.config}.is_gated_act says, but the record finds the opposite."
        )
    if hasattr(block, "attn"):
        _check_attention(f"{where} (attention)", block, config)


def _check_attention(where: str, block: HookedBlock, config: Any) -> None:
    attention, width = block.attn, _attention_width(config)
    query, key, value = attention.widths
    _expect(where, "outputs of the queries", query, width)
    keys = query // attention.n_heads * attention.n_key_value_heads
    _expect(where, "outputs of the keys", key, keys)
    _expect(where, "outputs of the values", value, keys)
    _expect(where, "inputs of the output projection", attention.d_in, query)
    _expect(where, "outputs of the output projection", attention.d_out, block.mlp.d_model)


def _attention_width(config: Any) -> int | None:
    n_heads, d_head = size_in(config, "n_heads"), size_in(config, "d_head")
    if n_heads is None or d_head is None:
        return size_in(config, "d_model")
    return n_heads * d_head


def _length(norm: Any) -> int | None:
    weight = getattr(norm.hf_module, "weight", None)
    return None if weight is None else weight.numel()


def _expect(where: str, what: str, found: int | None, expected: int | None) -> None:
    if found is None or expected is None or found == expected:
        return
    raise ArchitectureError(
        f"Expected {expected} {what} at {where!r}, going by the configuration and the modules "
        f"beside it, but found {found}. The record of this family does not fit this model: "
        "register another one with vlm_lens.architectures.register_architecture."
    )
