"""LLaVA 1.5: a CLIP or SigLIP tower, a two-layer projector, a Llama, Mistral or Qwen2."""

from __future__ import annotations

from typing import Any

from vlm_lens.architectures.base import Architecture, BlockPaths, ProjectorPaths, StackPaths

LLAMA_BLOCK = BlockPaths(
    ln1="input_layernorm",
    ln2="post_attention_layernorm",
    attn="self_attn",
    q="self_attn.q_proj",
    k="self_attn.k_proj",
    v="self_attn.v_proj",
    o="self_attn.o_proj",
    rotary=True,
    gate="mlp.gate_proj",
    act="mlp.act_fn",
    mlp_in="mlp.up_proj",
    mlp_out="mlp.down_proj",
)

CLIP_BLOCK = BlockPaths(
    ln1="layer_norm1",
    ln2="layer_norm2",
    attn="self_attn",
    q="self_attn.q_proj",
    k="self_attn.k_proj",
    v="self_attn.v_proj",
    o="self_attn.out_proj",
    rotary=False,
    mlp_in="mlp.fc1",
    mlp_out="mlp.fc2",
)


def deepest_feature_layer(config: Any) -> int:
    """The deepest hidden state of the tower that LLaVA's projector reads, counted from 0."""
    chosen = config.vision_feature_layer
    n_states = config.vision_config.num_hidden_layers + 1
    return max(layer % n_states for layer in ([chosen] if isinstance(chosen, int) else chosen))


LLAVA = Architecture(
    model_class="LlavaForConditionalGeneration",
    language_model=StackPaths(
        config="text_config",
        start="model.language_model",
        blocks="model.language_model.layers",
        block=LLAMA_BLOCK,
        ln_final="model.language_model.norm",
    ),
    vision_encoder=StackPaths(
        config="vision_config",
        start="model.vision_tower.encoder",
        blocks="model.vision_tower.encoder.layers",
        block=CLIP_BLOCK,
        output_layer=deepest_feature_layer,
    ),
    projector=ProjectorPaths(
        module="model.multi_modal_projector",
        linear_1="model.multi_modal_projector.linear_1",
        linear_2="model.multi_modal_projector.linear_2",
    ),
    embed="model.language_model.embed_tokens",
    unembed="lm_head",
)
