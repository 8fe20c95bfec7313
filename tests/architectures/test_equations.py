"""The sums that make a residual stream, in every block of every family.

Checks at load see sizes; a path that leads to another module of the same size is seen here.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.families import ALL_MODELS, TOWERS, build, example
from vlm_lens import HookedVLM
from vlm_lens.architectures.components import HookedBlock
from vlm_lens.hooks import Place

CLOSE: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-4}


class Family:
    """A tiny model, its blocks by name, and everything about one image."""

    def __init__(self, name: str) -> None:
        hf, processor = build(name)
        self.name, self.model = name, HookedVLM(hf, processor=processor)
        self.inputs = example(name, hf, processor, "image")
        with torch.no_grad():
            self.logits, self.cache = self.model.run_with_cache(
                self.inputs, names_filter="*", return_cache_object=False
            )
        named = self.model.named_modules()
        self.blocks: dict[str, Any] = {n: m for n, m in named if isinstance(m, HookedBlock)}


@pytest.fixture(scope="module", params=ALL_MODELS)
def family(request: pytest.FixtureRequest) -> Family:
    return Family(request.param)


def at(family: Family, block: str, point: str) -> Tensor:
    return family.cache[f"{block}.{point}"]


def test_heads_write_what_attention_adds(family: Family):
    for name, block in family.blocks.items():
        for attn in ("attn", "cross_attn"):
            if not hasattr(block, attn) or hasattr(block, "ln1_post"):
                continue
            if family.name == "kosmos2" and not name.startswith("vision"):
                continue  # a norm lies between the heads and the output projection
            part = getattr(block, attn)
            z = at(family, name, f"{attn}.hook_z")
            out = torch.einsum("bphe,hed->bpd", z, part.W_O) + part.b_O
            if attn == "attn" and block.attn_scale is not None:
                out = out * block.attn_scale
            found = at(family, name, f"hook_{attn}_out")
            torch.testing.assert_close(out, found, **CLOSE)


def scales(block: Any) -> tuple[Any, Any]:
    """What a block multiplies the outputs of attention and MLP with."""
    module = block.hf_module
    if hasattr(module, "lambda_1"):  # InternVL
        return module.lambda_1.data, module.lambda_2.data
    if hasattr(module, "cross_attn_attn_gate"):
        return module.cross_attn_attn_gate.tanh().item(), module.cross_attn_mlp_gate.tanh().item()
    if getattr(module, "is_gated", False):
        return module.gate_attn.tanh().item(), module.gate_ffn.tanh().item()
    return 1.0, 1.0


def test_attention_and_mlp_are_added_to_the_stream(family: Family):
    for name, block in family.blocks.items():
        if block.post_norm:
            continue
        attn_scale, mlp_scale = scales(block)
        stream = at(family, name, "hook_resid_pre")
        if hasattr(block, "attn"):
            stream = stream + attn_scale * at(family, name, "hook_attn_out")
        if hasattr(block, "attn") and not block.parallel:
            torch.testing.assert_close(stream, at(family, name, "hook_resid_mid"), **CLOSE)
        if hasattr(block, "cross_attn"):
            stream = stream + attn_scale * at(family, name, "hook_cross_attn_out")
            mid = "hook_resid_mid_cross" if hasattr(block, "attn") else "hook_resid_mid"
            torch.testing.assert_close(stream, at(family, name, mid), **CLOSE)
        stream = stream + mlp_scale * at(family, name, "hook_mlp_out")
        torch.testing.assert_close(stream, at(family, name, "hook_resid_post"), **CLOSE)


def test_norms_are_of_the_stream_in_front_of_them(family: Family):
    """So the two norms of a block are not each other's."""
    for name, block in family.blocks.items():
        if block.post_norm:
            continue
        before_mlp = "hook_resid_mid_cross" if hasattr(block, "ln_cross") else "hook_resid_mid"
        before_mlp = "hook_resid_pre" if block.parallel else before_mlp
        for norm, point in (("ln1", "hook_resid_pre"), ("ln2", before_mlp)):
            scale, stream = at(family, name, f"{norm}.hook_scale"), at(family, name, point)
            if isinstance(getattr(block, norm).hf_module, torch.nn.LayerNorm):
                stream = stream - stream.mean(-1, keepdim=True)
            found = at(family, name, f"{norm}.hook_normalized") * scale
            torch.testing.assert_close(found, stream, **CLOSE)


def test_what_a_tower_hands_on_is_what_it_gives(family: Family):
    if family.name not in TOWERS:
        pytest.skip("it is part of a larger model, or none")
    out = family.cache["vision_encoder.hook_out"]
    if family.name == "vit-classifier":
        out = family.model.hf_model.classifier(out[:, 0])
    assert torch.equal(out, family.logits)


def test_the_stream_of_the_text_model_becomes_the_logits(family: Family):
    if family.name in TOWERS:
        pytest.skip("it has no text model")
    prefix = "decoder." if family.model.cfg.is_encoder_decoder else ""
    root: Any = family.model.decoder if prefix else family.model
    end = family.cache[f"{prefix}ln_final.hook_normalized"] * root.ln_final.w + root.ln_final.b
    unembed = Place(family.model.hf_model, family.model.architecture.unembed).module
    logits = (end * family.model.unembed.scale) @ unembed.weight.T
    torch.testing.assert_close(logits, family.logits, rtol=1e-3, atol=1e-3)


def test_the_stream_of_the_text_model_starts_with_the_embedding(family: Family):
    """At the last position, which is text; Gemma multiplies the embedding with a number."""
    if family.name in TOWERS:
        pytest.skip("it has no text model")
    if family.name in ("blip2-opt", "kosmos2"):
        pytest.skip("positions are added to the embedding")
    if family.name == "bloom":
        pytest.skip("a norm follows the embedding")
    prefix = "decoder." if family.model.cfg.is_encoder_decoder else ""
    tokens = family.inputs["decoder_input_ids" if prefix else "input_ids"]
    embedded = family.model.W_E[tokens[:, -1]]
    start = family.cache[f"{prefix}hook_embed"][:, -1]
    similarity = torch.cosine_similarity(embedded, start)
    torch.testing.assert_close(similarity, torch.ones_like(similarity))
