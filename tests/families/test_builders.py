from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from functools import cache
from typing import Any

import pytest
import torch

from tests.families import FAMILIES, KINDS, build, example

CASES = [(name, kind) for name in FAMILIES for kind in KINDS[name]]
LLAMA = "model.language_model.layers.*.mlp"
BLIP = ["vision_model.encoder.layers.*.mlp", "qformer.encoder.layer.*.output_query.dense"]
T5 = ["language_model.encoder.block.*.layer.1", "language_model.decoder.block.*.layer.2"]
T5_DENSE = [f"{block}.DenseReluDense" for block in T5]
# The module whose output is an MLP's, for every MLP of the model.
MLPS = {
    "llava_next": ["model.vision_tower.encoder.layers.*.mlp", LLAMA],
    "llava_onevision": ["model.vision_tower.encoder.layers.*.mlp", LLAMA],
    "instructblip-llama": [*BLIP, "language_model.model.layers.*.mlp"],
    "instructblip-t5": [*BLIP, *T5_DENSE],
    "blip2-opt": [*BLIP, "language_model.model.decoder.layers.*.fc2"],
    "blip2-t5": [*BLIP, *T5_DENSE],
    "qwen2_vl": ["model.visual.blocks.*.mlp", LLAMA],
    "qwen2_5_vl": ["model.visual.blocks.*.mlp", LLAMA],
    "qwen3_vl": ["model.visual.blocks.*.mlp", "model.visual.deepstack_merger_list.*", LLAMA],
    "paligemma": ["model.vision_tower.encoder.layers.*.mlp", LLAMA],
    "gemma3": ["model.vision_tower.encoder.layers.*.mlp", LLAMA],
    "idefics3": ["model.vision_model.encoder.layers.*.mlp", "model.text_model.layers.*.mlp"],
    "smolvlm": ["model.vision_model.encoder.layers.*.mlp", "model.text_model.layers.*.mlp"],
    "internvl": ["model.vision_tower.encoder.layer.*.mlp", LLAMA],
    "mllama": ["model.vision_model.*transformer.layers.*.mlp", LLAMA],
    "mistral3": ["model.vision_tower.transformer.layers.*.feed_forward", LLAMA],
    "kosmos2": ["vision_model.model.encoder.layers.*.mlp", "text_model.model.layers.*.ffn"],
    "qwen2_audio": ["model.audio_tower.layers.*.fc2", LLAMA],
}
# LLaVA-NeXT reads its tower one layer before the last.
NO_EFFECT = {"llava_next": {"model.vision_tower.encoder.layers.2.mlp"}}


@cache
def built(name: str) -> tuple[Any, Any]:
    return build(name)


@contextmanager
def zeroed(module: torch.nn.Module) -> Iterator[None]:
    def zero(module: Any, inputs: Any, output: Any) -> torch.Tensor:
        return torch.zeros_like(output)

    handle = module.register_forward_hook(zero)
    try:
        yield
    finally:
        handle.remove()


@torch.no_grad()
def logits_of(name: str, kind: str) -> torch.Tensor:
    hf, processor = built(name)
    return hf(**example(name, hf, processor, kind)).logits


def mlps(name: str) -> list[tuple[str, torch.nn.Module]]:
    hf, _ = built(name)
    return [
        (path, module)
        for path, module in hf.named_modules()
        if any(
            fnmatchcase(path, pattern) and path.count(".") == pattern.count(".")
            for pattern in MLPS[name]
        )
    ]


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_a_forward_gives_finite_logits(name: str, kind: str):
    logits = logits_of(name, kind)
    hf, processor = built(name)
    assert logits.isfinite().all()
    assert logits.std() > 0.1
    assert len(logits) == {"batch": 3 if "text" in KINDS[name] else 2}.get(kind, 1)
    assert len(processor.tokenizer) <= hf.get_input_embeddings().weight.shape[0]


@pytest.mark.parametrize("name", FAMILIES)
def test_two_builds_give_equal_logits(name: str):
    hf, processor = build(name)
    with torch.no_grad():
        again = hf(**example(name, hf, processor, "image")).logits
    assert torch.equal(again, logits_of(name, "image"))
    assert not hf.training


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_generate_gives_three_tokens(name: str, kind: str):
    hf, processor = built(name)
    inputs = example(name, hf, processor, kind)
    start = inputs.pop("decoder_input_ids", None)
    tokens = hf.generate(**inputs, max_new_tokens=3, min_new_tokens=3, do_sample=False)
    before = inputs["input_ids"] if start is None else start[:, :1]
    assert tokens.shape == (before.shape[0], before.shape[1] + 3)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_mlp_changes_the_logits(name: str):
    found = mlps(name)
    assert len(found) >= 6  # three of the tower, three of the language model
    logits = logits_of(name, "image")
    for path, module in found:
        with zeroed(module):
            change = (logits_of(name, "image") - logits).abs().max()
        if path in NO_EFFECT.get(name, ()):
            assert change == 0, path
        else:
            assert change > 0.01, f"{path} changes the logits by {change:.2g} only"


@pytest.mark.parametrize("name", [name for name in FAMILIES if "batch" in KINDS[name]])
def test_batches_are_padded_left(name: str):
    hf, processor = built(name)
    mask = example(name, hf, processor, "batch")["attention_mask"]
    assert mask[:, -1].all()
    assert not mask.all()


@pytest.mark.parametrize("name", FAMILIES)
def test_changes_go_to_the_configuration_and_the_type_to_the_weights(name: str):
    hf, _ = build(name, dtype=torch.bfloat16, tie_word_embeddings=False)
    assert not hf.config.tie_word_embeddings
    assert {parameter.dtype for parameter in hf.parameters()} == {torch.bfloat16}


def test_qwen2_5_has_windows_and_full_attention():
    hf, processor = build("qwen2_5_vl")
    seen = []
    for block in hf.model.visual.blocks:
        block.register_forward_pre_hook(
            lambda module, args, kwargs: seen.append(len(kwargs["cu_seqlens"])), with_kwargs=True
        )
    hf(**example("qwen2_5_vl", hf, processor, "image"))
    assert seen[1] == 2  # one picture: where it starts and ends
    assert seen[0] == seen[2] > 2


def test_the_special_layers_are_there():
    mllama, _ = built("mllama")
    assert hasattr(mllama.model.language_model.layers[1], "cross_attn")
    assert len(mllama.model.vision_model.global_transformer.layers) == 1
    blip, _ = built("blip2-opt")
    assert [layer.has_cross_attention for layer in blip.qformer.encoder.layer] == [True, False]
    qwen, _ = built("qwen3_vl")
    assert len(qwen.model.visual.deepstack_merger_list) == 1
