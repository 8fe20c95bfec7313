"""Language models alone: their processor is their tokenizer."""

from __future__ import annotations

from typing import Any

import transformers

from tests.families.base import HEADS, TEXT, Family, build_tokenizer, token_ids

GROUPED = {"num_key_value_heads": 2, "head_dim": 8}


def _family(model_class: str, **settings: Any) -> Family:
    def config(tokenizer: Any) -> dict[str, Any]:
        return {**token_ids(), "vocab_size": len(tokenizer), **settings}

    return Family(
        model_class=getattr(transformers, model_class),
        processor=build_tokenizer,
        config=config,
        placeholder="",
        kinds=["text", "batch"],
        media=lambda _processor, _media: {},
        unused=("token_type_ids",),
    )


FAMILIES: dict[str, Family] = {
    **{
        name.lower(): _family(f"{name}ForCausalLM", **TEXT, **GROUPED)
        for name in ("Llama", "Mistral", "Qwen2", "Qwen3", "Phi3", "Gemma")
    },
    "gemma2": _family("Gemma2ForCausalLM", **TEXT, **GROUPED, final_logit_softcapping=None),
    # Every second layer sees the last few positions only.
    "gemma3-text": _family("Gemma3ForCausalLM", **TEXT, **GROUPED, sliding_window=4),
    "gpt2": _family("GPT2LMHeadModel", n_embd=32, n_layer=3, n_head=4, n_positions=64),
    "opt": _family("OPTForCausalLM", **HEADS, hidden_size=32, ffn_dim=64, word_embed_proj_dim=32),
    "gpt_neox": _family("GPTNeoXForCausalLM", **TEXT),
    "gpt_neox-serial": _family("GPTNeoXForCausalLM", **TEXT, use_parallel_residual=False),
    "bloom": _family("BloomForCausalLM", hidden_size=32, n_layer=3, n_head=4),
    "t5": _family(
        "T5ForConditionalGeneration",
        d_model=32,
        d_ff=64,
        d_kv=8,
        num_layers=3,
        num_heads=4,
        feed_forward_proj="gated-gelu",
        decoder_start_token_id=0,
    ),
}
