"""The architecture record: where a family keeps the tensors that hook points name.

A record holds module paths, and so little code that it can be read as a table. Paths of a stack are
relative to the Hugging Face model, those of a block to the block.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any, Literal

from vlm_lens.geometry import LayoutFunction
from vlm_lens.hooks.patch_rows import RowIndex


@dataclass(frozen=True, kw_only=True)
class AttentionPaths:
    """One attention.

    Attributes:
        module: The attention module.
        q: Query projection; `k` and `v` likewise. None where the three are one projection.
        qkv: The fused projection of queries, keys and values, one after the other.
        by_head: Whether the fused projection has those of one head next to each other instead.
        o: Output projection.
        z: Module whose input is the heads' output, where that is not the output projection.
        rotary: Whether queries and keys are rotated.
        packed: Whether all images are one sequence, each of which sees itself alone; the pattern
            is then shown image by image.
        chunked: Whether it calls its attention function once for each image or window.
        inline: Whether it computes scores and pattern in its own forward, without a function that
            could be exchanged.
        alibi: Whether scores hold a bias for the distance (ALiBi) in place of positions.
    """

    module: str
    q: str | None = None
    k: str | None = None
    v: str | None = None
    qkv: str | None = None
    by_head: bool = False
    o: str
    z: str | None = None
    rotary: bool = False
    packed: bool = False
    chunked: bool = False
    inline: bool = False
    alibi: bool = False


@dataclass(frozen=True, kw_only=True)
class MLPPaths:
    """One MLP, gated or not.

    Attributes:
        up: First linear layer; in a gated MLP the one that the gate is multiplied with.
        down: Last linear layer.
        gate: Gate projection of a gated MLP.
        gate_up: Gate and up projection in one, the gate first.
        act: Activation module of a gated MLP.
    """

    up: str | None = None
    down: str
    gate: str | None = None
    gate_up: str | None = None
    act: str | None = None


@dataclass(frozen=True, kw_only=True)
class BlockPaths:
    """One transformer block.

    Attributes:
        ln1: Norm before attention; after it, with the residual added, where `post_norm` is set.
        attn: Self-attention.
        ln1_post: Norm of the attention's output, before it is added.
        ln_cross: Norm before cross-attention.
        cross_attn: Attention to the image, or to an encoder; blocks may have it or not.
        ln2: Norm before the MLP; its input is the residual stream between the two.
        mlp: The MLP.
        ln2_post: Norm of the MLP's output, before it is added.
        attn_scale: Module that scales the attention's output before it is added (LayerScale).
        mlp_scale: The same of the MLP's output.
        text_mlp: A second MLP, for the text next to a Q-Former's queries.
        post_norm: Whether norms come after the addition, as in BERT.
        parallel: Whether attention and MLP read the same stream and are added together, so that
            there is no stream between them.
        norm_offset: What its norms add to their weights (1 in Gemma).
        rows: How its tensors lie, from the block's own arguments; see `StackPaths.rows`.
        when: What the stack's configuration says of blocks of this kind, by the setting's name.
    """

    ln1: str
    attn: AttentionPaths | None = None
    ln1_post: str | None = None
    ln_cross: str | None = None
    cross_attn: AttentionPaths | None = None
    ln2: str
    mlp: MLPPaths
    ln2_post: str | None = None
    attn_scale: str | None = None
    mlp_scale: str | None = None
    text_mlp: MLPPaths | None = None
    post_norm: bool = False
    parallel: bool = False
    norm_offset: float = 0.0
    rows: RowIndex | None = None
    when: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class StackPaths:
    """A stack of transformer blocks around one residual stream.

    Attributes:
        config: Name of the component's configuration in the model's configuration; "" for that one
            itself, of a model that is nothing but this component.
        blocks: The list of blocks.
        block: Paths inside a block: one table, or several, of which each block takes the first
            that fits. By default those that `blocks_of` knows for the stack's model type.
        start: The module whose input `inputs_embeds` is the start of the residual stream; by
            default that is what enters the first block.
        embedded: Or else, the module whose output is the start of the residual stream, where
            positions are added to it before the first block.
        positions: With `embedded`, the module that gives these positions.
        ln_final: The norm at the end of the stream, where it has one that is used.
        output_layer: For an encoder: from the model's configuration, which of the ``n + 1``
            hidden states (0 is the input of the first block) is handed on.
        output: For an encoder: the module whose output is handed on, where it is not a block.
        handed_to: For an encoder: or else, the module whose input is what is handed on.
        rows: How its tensors lie, where they are not ``[image_or_tile, patch, d]`` anyway, from the
            arguments of the module `rows_from`.
        rows_from: See `rows`; the path of a module.
        sub_stacks: Further stacks of the same component by name, such as a tower's global layers.
    """

    config: str
    blocks: str
    block: BlockPaths | tuple[BlockPaths, ...] | None = None
    start: str | None = None
    embedded: str | None = None
    positions: str | None = None
    ln_final: str | None = None
    output_layer: Callable[[Any], int] | None = None
    output: str | None = None
    handed_to: str | None = None
    rows: RowIndex | None = None
    rows_from: str = ""
    sub_stacks: dict[str, StackPaths] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ProjectorPaths:
    """What leads from the encoder to the language model.

    Attributes:
        module: The projector; its input and its output are hook points.
        linear_1: First of two linear layers; the neurons lie between them.
        linear_2: The second one.
        attn: Attention of learnt queries to the patches.
        norm: A norm inside, after patches are merged or pooled.
        norm_offset: What that norm adds to its weight.
        rows_in: How the projector's input lies, see `StackPaths.rows`.
        rows_out: How its neurons and its output lie.
        rows_from: The module whose arguments `rows_in` and `rows_out` read.
        config: For `attn`: name of the configuration that counts its heads.
        deepstack: A list of further projectors, for features of earlier encoder layers.
    """

    module: str
    linear_1: str | None = None
    linear_2: str | None = None
    attn: AttentionPaths | None = None
    norm: str | None = None
    norm_offset: float = 0.0
    rows_in: RowIndex | None = None
    rows_out: RowIndex | None = None
    rows_from: str = ""
    config: str = "text_config"
    deepstack: str | None = None


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """Everything vlm_lens needs to know of one family of models.

    Every part is optional: a language model alone has no more than that, and a tower alone neither
    embeds nor predicts tokens.

    Attributes:
        model_class: Name of the Hugging Face class.
        text_types: Model types of the text models that the record is for; empty for any.
        vision_types: Likewise of the vision towers.
        language_model: The text model; its hook points are at the root, or under ``encoder.`` and
            ``decoder.`` if there is an encoder too.
        text_encoder: The encoder of a text model that has one.
        vision_encoder: The vision tower; hook points under ``vision_encoder.``.
        audio_encoder: The audio tower; hook points under ``audio_encoder.``.
        qformer: Blocks that read the image with learnt queries; under ``qformer.``.
        projector: The connector; hook points under ``projector.``.
        embed: Path of the token embedding; a language model has one.
        unembed: Path of the language-model head; a language model has one.
        caps_logits: Whether the class caps its logits at what the text model's configuration says
            (`final_logit_softcapping`); others pass over it.
        counts_padding: Whether the forward counts padding among positions, unless it is told where
            in its text each token is.
        layout: Where image tokens lie: a function of `vlm_lens.geometry`.
        requires: What the model's configuration has to say for the record to hold, by the name of
            the setting: a variant of the family that computes otherwise is refused.
    """

    model_class: str
    text_types: tuple[str, ...] = ()
    vision_types: tuple[str, ...] = ()
    language_model: StackPaths | None = None
    text_encoder: StackPaths | None = None
    vision_encoder: StackPaths | None = None
    audio_encoder: StackPaths | None = None
    qformer: StackPaths | None = None
    projector: ProjectorPaths | None = None
    embed: str | None = None
    unembed: str | None = None
    caps_logits: bool = False
    counts_padding: bool = False
    layout: LayoutFunction | None = None
    requires: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.parts():
            raise ValueError(
                f"Expected a language model or an encoder in the record of {self.model_class}, but "
                "it has none."
            )
        if self.language_model is not None and None in (self.embed, self.unembed):
            raise ValueError(
                f"Expected embed and unembed beside the language model in the record of "
                f"{self.model_class}."
            )

    def parts(self) -> dict[str, StackPaths]:
        """The stacks that the family has, by the prefix of their hook points."""
        prefix = "decoder" if self.text_encoder is not None else ""
        named = {
            "vision_encoder": self.vision_encoder,
            "audio_encoder": self.audio_encoder,
            "qformer": self.qformer,
            "encoder": self.text_encoder,
            prefix: self.language_model,
        }
        return {name: paths for name, paths in named.items() if paths is not None}

    def media_parts(self) -> list[StackPaths]:
        """The stacks that read images or sounds; none of a language model alone."""
        named = (self.vision_encoder, self.audio_encoder)
        return [paths for paths in named if paths is not None]


Size = Literal["n_layers", "n_heads", "n_key_value_heads", "d_model", "d_mlp", "d_head"]
_SIZE_NAMES: dict[Size, tuple[str, ...]] = {
    "n_layers": (*("num_hidden_layers", "depth", "num_layers", "layers", "encoder_layers"),),
    "n_heads": ("num_attention_heads", "num_heads", "attention_heads", "encoder_attention_heads"),
    "n_key_value_heads": ("num_key_value_heads",),
    "d_model": ("embed_dim", "hidden_size", "d_model"),
    "d_mlp": ("intermediate_size", "ffn_dim", "d_ff", "encoder_ffn_dim"),
    "d_head": ("head_dim", "d_kv"),
}


def config_at(config: Any, path: str) -> Any:
    """A component's configuration, by its path in the model's; "" is the model's own.

    Example:
        >>> from transformers import LlavaConfig
        >>> config_at(LlavaConfig(), "vision_config").model_type
        'clip_vision_model'
    """
    return attrgetter(path)(config) if path else config


def size_in(config: Any, size: Size) -> int | None:
    """A size as a configuration states it, whatever the family calls it; None where it does not.

    Example:
        >>> from transformers import CLIPVisionConfig
        >>> size_in(CLIPVisionConfig(num_attention_heads=12), "n_heads")
        12
    """
    for name in _SIZE_NAMES[size]:
        value = getattr(config, name, None)
        if isinstance(value, int):
            return value
    return None
