"""Paths inside a block, for every kind of text and vision model that the families are built of."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from vlm_lens.architectures.base import (
    AttentionPaths,
    BlockPaths,
    MLPPaths,
)
from vlm_lens.architectures.rows import batch_rows
from vlm_lens.hooks import ArchitectureError

Blocks = BlockPaths | tuple[BlockPaths, ...]


def attention(module: str, *, o: str, **options: Any) -> AttentionPaths:
    """An attention with projections called q_proj, k_proj and v_proj."""
    q, k, v = (f"{module}.{name}_proj" for name in "qkv")
    return AttentionPaths(module=module, q=q, k=k, v=v, o=f"{module}.{o}", **options)


def fused_attention(module: str, *, o: str, qkv: str = "qkv", **options: Any) -> AttentionPaths:
    """An attention with one projection for queries, keys and values."""
    return AttentionPaths(module=module, qkv=f"{module}.{qkv}", o=f"{module}.{o}", **options)


GATED_MLP = MLPPaths(gate="mlp.gate_proj", act="mlp.act_fn", up="mlp.up_proj", down="mlp.down_proj")
PLAIN_MLP = MLPPaths(up="mlp.fc1", down="mlp.fc2")

# Text models

LLAMA = BlockPaths(
    ln1="input_layernorm",
    attn=attention("self_attn", o="o_proj", rotary=True),
    ln2="post_attention_layernorm",
    mlp=GATED_MLP,
)
PHI3 = replace(
    LLAMA,
    attn=fused_attention("self_attn", o="o_proj", qkv="qkv_proj", rotary=True),
    mlp=MLPPaths(gate_up="mlp.gate_up_proj", act="mlp.activation_fn", down="mlp.down_proj"),
)
GEMMA = replace(LLAMA, norm_offset=1.0)
GEMMA2 = replace(
    GEMMA,
    ln1_post="post_attention_layernorm",
    ln2="pre_feedforward_layernorm",
    ln2_post="post_feedforward_layernorm",
)
MLLAMA_CROSS = replace(LLAMA, attn=None, cross_attn=attention("cross_attn", o="o_proj"))
OPT = BlockPaths(
    ln1="self_attn_layer_norm",
    attn=attention("self_attn", o="out_proj"),
    ln2="final_layer_norm",
    mlp=MLPPaths(up="fc1", down="fc2"),
    rows=batch_rows,
)
GPT2 = BlockPaths(
    ln1="ln_1",
    attn=fused_attention("attn", o="c_proj", qkv="c_attn"),
    ln2="ln_2",
    mlp=MLPPaths(up="mlp.c_fc", down="mlp.c_proj"),
)
GPT_NEOX_SERIAL = BlockPaths(
    ln1="input_layernorm",
    attn=fused_attention("attention", o="dense", qkv="query_key_value", by_head=True, rotary=True),
    ln2="post_attention_layernorm",
    mlp=MLPPaths(up="mlp.dense_h_to_4h", down="mlp.dense_4h_to_h"),
    when={"use_parallel_residual": False},
)
GPT_NEOX = (
    replace(GPT_NEOX_SERIAL, parallel=True, when={"use_parallel_residual": True}),
    GPT_NEOX_SERIAL,
)
BLOOM = replace(
    GPT_NEOX_SERIAL,
    attn=fused_attention(
        "self_attention", o="dense", qkv="query_key_value", by_head=True, inline=True, alibi=True
    ),
    when={},
)
KOSMOS2_TEXT = BlockPaths(
    ln1="self_attn_layer_norm",
    attn=attention("self_attn", o="out_proj", z="self_attn.inner_attn_ln"),
    ln2="final_layer_norm",
    mlp=MLPPaths(up="ffn.fc1", down="ffn.fc2"),
)


def t5_block(*, decoder: bool, gated: bool) -> BlockPaths:
    """A block of T5, whose sub-layers are numbered."""

    def of(layer: str) -> AttentionPaths:
        return AttentionPaths(
            module=layer, q=f"{layer}.q", k=f"{layer}.k", v=f"{layer}.v", o=f"{layer}.o"
        )

    last = "layer.2" if decoder else "layer.1"
    mlp = f"{last}.DenseReluDense"
    return BlockPaths(
        ln1="layer.0.layer_norm",
        attn=of("layer.0.SelfAttention"),
        ln_cross="layer.1.layer_norm" if decoder else None,
        cross_attn=of("layer.1.EncDecAttention") if decoder else None,
        ln2=f"{last}.layer_norm",
        mlp=MLPPaths(gate=f"{mlp}.wi_0", act=f"{mlp}.act", up=f"{mlp}.wi_1", down=f"{mlp}.wo")
        if gated
        else MLPPaths(up=f"{mlp}.wi", down=f"{mlp}.wo"),
    )


T5_ENCODER = (t5_block(decoder=False, gated=True), t5_block(decoder=False, gated=False))
T5_DECODER = (t5_block(decoder=True, gated=True), t5_block(decoder=True, gated=False))

# Vision and audio towers

CLIP = BlockPaths(
    ln1="layer_norm1",
    attn=attention("self_attn", o="out_proj"),
    ln2="layer_norm2",
    mlp=PLAIN_MLP,
)
BLIP = replace(CLIP, attn=fused_attention("self_attn", o="projection"))
INTERNVL = BlockPaths(
    ln1="layernorm_before",
    attn=attention("attention", o="projection_layer"),
    ln2="layernorm_after",
    mlp=PLAIN_MLP,
)
VIT = replace(INTERNVL, attn=attention("attention", o="o_proj"))
DINOV2_PLAIN = BlockPaths(
    ln1="norm1",
    attn=attention("attention", o="o_proj"),
    attn_scale="layer_scale1",
    ln2="norm2",
    mlp=PLAIN_MLP,
    mlp_scale="layer_scale2",
)
DINOV2 = (replace(DINOV2_PLAIN, mlp=GATED_MLP), DINOV2_PLAIN)
DINOV3_GATED = replace(
    DINOV2_PLAIN, attn=attention("attention", o="o_proj", rotary=True), mlp=GATED_MLP
)
DINOV3 = (
    DINOV3_GATED,
    replace(DINOV3_GATED, mlp=MLPPaths(up="mlp.up_proj", down="mlp.down_proj")),
)
MLLAMA_VISION = replace(LLAMA, attn=attention("self_attn", o="o_proj"), mlp=PLAIN_MLP)
QWEN2_VISION = BlockPaths(
    ln1="norm1",
    attn=fused_attention("attn", o="proj", rotary=True, packed=True, chunked=True),
    ln2="norm2",
    mlp=PLAIN_MLP,
)
QWEN2_5_VISION = replace(QWEN2_VISION, mlp=GATED_MLP)
QWEN3_VISION = replace(QWEN2_VISION, mlp=MLPPaths(up="mlp.linear_fc1", down="mlp.linear_fc2"))
PIXTRAL = BlockPaths(
    ln1="attention_norm",
    attn=attention("attention", o="o_proj", rotary=True, packed=True),
    ln2="ffn_norm",
    mlp=MLPPaths(
        gate="feed_forward.gate_proj",
        act="feed_forward.act_fn",
        up="feed_forward.up_proj",
        down="feed_forward.down_proj",
    ),
)
AUDIO = replace(OPT, rows=None)

# Q-Formers


def _bert_attention(parent: str) -> AttentionPaths:
    """An attention as BERT has it, with its output projection next to it."""
    module = f"{parent}.attention"
    q, k, v = (f"{module}.{name}" for name in ("query", "key", "value"))
    return AttentionPaths(module=module, q=q, k=k, v=v, o=f"{parent}.output.dense")


QFORMER = BlockPaths(
    ln1="attention.output.LayerNorm",
    attn=_bert_attention("attention"),
    ln_cross="crossattention.output.LayerNorm",
    cross_attn=_bert_attention("crossattention"),
    ln2="output_query.LayerNorm",
    mlp=MLPPaths(up="intermediate_query.dense", down="output_query.dense"),
    text_mlp=MLPPaths(up="intermediate.dense", down="output.dense"),
    post_norm=True,
)

BLOCKS: dict[str, Blocks] = {
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3"), LLAMA),
    **dict.fromkeys(("qwen2_vl_text", "qwen2_5_vl_text", "qwen3_vl_text"), LLAMA),
    "phi3": PHI3,
    "gemma": GEMMA,
    "gemma2": GEMMA2,
    "gemma3_text": GEMMA2,
    "mllama_text_model": (LLAMA, MLLAMA_CROSS),
    "opt": OPT,
    "kosmos_2_text_model": KOSMOS2_TEXT,
    **dict.fromkeys(("clip_vision_model", "siglip_vision_model", "kosmos_2_vision_model"), CLIP),
    **dict.fromkeys(("idefics3_vision", "smolvlm_vision"), CLIP),
    **dict.fromkeys(("blip_2_vision_model", "instructblip_vision_model"), BLIP),
    "internvl_vision": INTERNVL,
    "mllama_vision_model": MLLAMA_VISION,
    "qwen2_vl_vision": QWEN2_VISION,
    "qwen2_5_vl_vision": QWEN2_5_VISION,
    "qwen3_vl_vision": QWEN3_VISION,
    "pixtral": PIXTRAL,
    "qwen2_audio_encoder": AUDIO,
    **dict.fromkeys(("blip_2_qformer", "instructblip_qformer"), QFORMER),
}
"""Tables by the `model_type` of a component's configuration."""


def blocks_of(config: Any) -> Blocks:
    """The table of a component, by its model type.

    Raises:
        ArchitectureError: There is none; the message says how to add it.
    """
    if config.model_type not in BLOCKS:
        raise ArchitectureError(
            f"Expected a component of one of the model types {sorted(BLOCKS)}, but got "
            f"{config.model_type!r}. Write its `BlockPaths` and put it into "
            "vlm_lens.architectures.BLOCKS, or into the `block` of the family's record."
        )
    return BLOCKS[config.model_type]
