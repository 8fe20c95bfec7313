"""Language models alone: their blocks are at the root, as in TransformerLens.

Decoders of one layout share a record but for the name of the class. GPT-2 and OPT add learnt
positions to their embedding, so that the stream starts with the sum of both.
"""

from __future__ import annotations

from dataclasses import replace

from vlm_lens.architectures import model_types
from vlm_lens.architectures.base import Architecture, StackPaths

LLAMA = Architecture(
    model_class="LlamaForCausalLM",
    language_model=StackPaths(config="", blocks="model.layers", ln_final="model.norm"),
    embed="model.embed_tokens",
    unembed="lm_head",
)
LIKE_LLAMA = [
    replace(LLAMA, model_class=f"{name}ForCausalLM")
    for name in ("Mistral", "Qwen2", "Qwen3", "Phi3", "Gemma")
]
CAPPED = [
    replace(LLAMA, model_class=f"{name}ForCausalLM", caps_logits=True)
    for name in ("Gemma2", "Gemma3")
]
GPT2 = Architecture(
    model_class="GPT2LMHeadModel",
    language_model=StackPaths(
        config="",
        embedded="transformer.wte",
        positions="transformer.wpe",
        blocks="transformer.h",
        block=model_types.GPT2,
        ln_final="transformer.ln_f",
    ),
    embed="transformer.wte",
    unembed="lm_head",
    counts_padding=True,
    requires={"add_cross_attention": False, "reorder_and_upcast_attn": False},
)
OPT = Architecture(
    model_class="OPTForCausalLM",
    language_model=StackPaths(
        config="",
        embedded="model.decoder.embed_tokens",
        positions="model.decoder.embed_positions",
        blocks="model.decoder.layers",
        ln_final="model.decoder.final_layer_norm",
    ),
    embed="model.decoder.embed_tokens",
    unembed="lm_head",
    requires={"do_layer_norm_before": True},
)
GPT_NEOX = Architecture(
    model_class="GPTNeoXForCausalLM",
    language_model=StackPaths(
        config="",
        blocks="gpt_neox.layers",
        block=model_types.GPT_NEOX,
        ln_final="gpt_neox.final_layer_norm",
    ),
    embed="gpt_neox.embed_in",
    unembed="lm_head",
)
BLOOM = Architecture(
    model_class="BloomForCausalLM",
    language_model=StackPaths(
        config="",
        blocks="transformer.h",
        block=model_types.BLOOM,
        ln_final="transformer.ln_f",
    ),
    embed="transformer.word_embeddings",
    unembed="lm_head",
    requires={"apply_residual_connection_post_layernorm": False, "slow_but_exact": False},
)
T5 = Architecture(
    model_class="T5ForConditionalGeneration",
    language_model=StackPaths(
        config="",
        blocks="decoder.block",
        block=model_types.T5_DECODER,
        ln_final="decoder.final_layer_norm",
    ),
    text_encoder=StackPaths(
        config="",
        blocks="encoder.block",
        block=model_types.T5_ENCODER,
        ln_final="encoder.final_layer_norm",
    ),
    embed="shared",
    unembed="lm_head",
)

RECORDS = [LLAMA, *LIKE_LLAMA, *CAPPED, GPT2, OPT, GPT_NEOX, BLOOM, T5]
