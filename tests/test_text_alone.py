"""A language model alone: TransformerLens' names at the root, and analyses that need no image."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module
from transformer_lens.model_bridge.sources.transformers import helpers

from tests.families import build, example
from tests.families.base import picture
from vlm_lens import HookedVLM
from vlm_lens.analyses import can, direct_effect, logit_lens, pcicn
from vlm_lens.architectures.registry import architecture_of
from vlm_lens.data import Sample
from vlm_lens.hooks import ArchitectureError
from vlm_lens.inputs.positions import positions_in_text
from vlm_lens.statistics import collect

CORNERS = ["llama", "gpt2", "gpt_neox", "bloom"]
SHARED = [
    *("hook_resid_pre", "hook_resid_post", "hook_attn_out", "hook_mlp_out"),
    *("attn.hook_q", "attn.hook_k", "attn.hook_v", "attn.hook_z", "attn.hook_pattern"),
    *("mlp.hook_pre", "mlp.hook_post", "ln1.hook_scale", "ln2.hook_normalized"),
]
BUILT: dict[str, HookedVLM] = {}


def built(name: str) -> HookedVLM:
    if name not in BUILT:
        hf, tokenizer = build(name)
        BUILT[name] = HookedVLM(hf, processor=tokenizer)
    return BUILT[name]


def assert_near(actual: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(actual, expected.reshape(actual.shape), rtol=1e-4, atol=1e-4)


# Values -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_values_equal_those_of_transformer_bridge(name: str):
    # The bridge pip-installs torchvision (and with it another torch) when it thinks it needs it.
    os.environ["PIP_NO_INDEX"] = "1"
    helpers._ensure_torchvision = lambda: False
    hf, tokenizer = build(name)
    hf.set_attn_implementation("eager")
    model = HookedVLM(hf, processor=tokenizer)
    tokens = example(name, hf, tokenizer, "text")["input_ids"]
    with torch.no_grad():
        logits, ours = model.run_with_cache(tokens)
        ours = {point: ours[point] for point in model.hook_dict}
        twin, _ = build(name)
        twin.set_attn_implementation("eager")
        bridge = build_bridge_from_module(twin, type(twin).__name__, hf_config=twin.config)
        their_logits, theirs = bridge.run_with_cache(tokens)
    assert_near(logits, their_logits)
    points = [f"blocks.{layer}.{site}" for layer in range(3) for site in SHARED]
    points += ["hook_embed", *(["hook_pos_embed"] if name == "gpt2" else [])]
    for point in [*points, "ln_final.hook_scale", "ln_final.hook_normalized"]:
        found = theirs.cache_dict[point]
        assert_near(ours[point], found.expand(*([1] * found.ndim)) if found.ndim == 0 else found)


def test_positions_of_gpt2_are_shown_once_a_prompt():
    model = built("gpt2")
    _, cache = model.run_with_cache(torch.tensor([[5, 6, 7], [8, 9, 10]]))
    assert cache["hook_pos_embed"].shape == cache["hook_embed"].shape
    assert torch.equal(cache["hook_pos_embed"][0], cache["hook_pos_embed"][1])
    assert_near(cache["hook_embed"] + cache["hook_pos_embed"], cache["resid_pre", 0])
    shifted = model.run_with_hooks(
        torch.tensor([[5, 6, 7], [5, 6, 7]]),
        fwd_hooks=[("hook_pos_embed", lambda t, hook: t.index_fill(0, torch.tensor([1]), 0.0))],
    )
    assert not torch.allclose(shifted[0], shifted[1])


@pytest.mark.parametrize("name", ["gpt2", "opt"])
def test_positions_of_embedded_prompts_are_shown_too(name: str):
    """They pass by the token embedding, which counts prompts; no count stays from a run before."""
    model = built(name)
    embed = model.hf_model.get_input_embeddings()
    shapes: list[int] = []
    hook = ("hook_pos_embed", lambda t, hook: shapes.append(t.shape[1]))
    with torch.no_grad():
        model.run_with_hooks(torch.tensor([[5, 6, 7], [8, 9, 10]]), fwd_hooks=[hook])
        for n in (1, 3):
            embedded = embed(torch.tensor([[5, 6, 7]] * n))
            with model.hooks([hook]):
                found = model(inputs_embeds=embedded)
            assert torch.equal(found, model.hf_model(inputs_embeds=embedded).logits)
    assert shapes == [3, 3, 3]


def test_padding_of_gpt2_does_not_move_its_positions():
    """Its forward would count padding; `generate` counts as we do."""
    model = built("gpt2")
    texts = ["red circle", "is the square red ? what color is the circle left ?"]
    both = model.prepare(text=texts, chat_template=False)
    assert torch.equal(both["position_ids"], positions_in_text(both.attention_mask))
    alone = model.prepare(text=texts[0], chat_template=False)
    assert "position_ids" not in alone
    with torch.no_grad():
        assert_near(model(both)[0, -2:], model(alone)[0, -2:])
        assert_near(model(texts)[0, -2:], model(texts[0])[0, -2:])
    options: Any = {"max_new_tokens": 4, "min_new_tokens": 4, "return_type": "tokens"}
    tokens, cache = model.generate_with_cache(
        both, names_filter="blocks.2.hook_resid_post", max_new_tokens=4, min_new_tokens=4
    )
    assert torch.equal(tokens, model.generate(both, **options))
    with torch.no_grad():
        _, again = model.run_with_cache(both.extend(tokens), names_filter="blocks.2.*post")
    real = both.extend(tokens).attention_mask.bool()
    name = "blocks.2.hook_resid_post"
    assert_near(cache[name][real], again[name][real])


def test_the_pattern_of_bloom_is_its_own_and_none_of_a_hooks():
    """Hooks may call softmax themselves, inside of the forward that is looked into."""
    model = built("bloom")
    tokens = torch.tensor([[5, 6, 7, 8]])
    seen: list[int] = []

    def busy(tensor: torch.Tensor, hook: Any) -> torch.Tensor:
        return tensor * tensor.softmax(-1).sum(-1, keepdim=True)

    def count(pattern: torch.Tensor, hook: Any) -> None:
        seen.append(pattern.shape[-1])

    with torch.no_grad():
        clean = model(tokens)
        hooks = [("blocks.0.attn.hook_q", busy), ("blocks.0.attn.hook_pattern", count)]
        assert_near(model.run_with_hooks(tokens, fwd_hooks=hooks), clean)
        assert seen == [4]
        uniform = ("blocks.0.attn.hook_pattern", lambda t, hook: torch.full_like(t, 0.25))
        scores = ("blocks.0.attn.hook_attn_scores", lambda t, hook: torch.zeros_like(t))
        assert_near(
            model.run_with_hooks(tokens, fwd_hooks=[uniform]),
            model.run_with_hooks(tokens, fwd_hooks=[scores]),
        )
        wrong = ("blocks.0.attn.hook_z", lambda t, hook: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            model.run_with_hooks(tokens, fwd_hooks=[uniform, wrong])
        assert torch.equal(model(tokens), clean)


# Parts ------------------------------------------------------------------------------------------


def test_the_parts_of_a_model():
    model = built("llama")
    assert [(part.name, part.kind, part.n_blocks) for part in model.parts] == [("", "text", 3)]
    assert model.parts[0].module is model
    assert model.text is not None
    assert model.text.prefix == ""
    assert not hasattr(model, "projector")
    assert "language model 3 x 64 neurons" in repr(model)
    t5 = built("t5")
    assert [part.name for part in t5.parts] == ["encoder", "decoder"]
    assert t5.text is not None
    assert t5.text.prefix == "decoder."


def test_a_text_for_an_encoder_with_a_decoder_has_a_start_token():
    model = built("t5")
    with torch.no_grad():
        assert torch.equal(model("what color ?"), model(model.prepare(text="what color ?")))


@pytest.mark.parametrize(
    ("name", "settings", "said"),
    [
        ("opt", {"do_layer_norm_before": False}, "do_layer_norm_before=True, got False"),
        ("bloom", {"apply_residual_connection_post_layernorm": True}, "post_layernorm=False"),
        ("gpt2", {"add_cross_attention": True}, "add_cross_attention=False, got True"),
    ],
)
def test_variants_that_compute_otherwise_are_refused(name: str, settings: Any, said: str):
    hf, tokenizer = build(name, **settings)
    with pytest.raises(ArchitectureError, match=said):
        HookedVLM(hf, processor=tokenizer)


def test_images_are_refused_in_one_sentence():
    model = built("llama")
    with pytest.raises(TypeError, match="takes text, and nothing else: leave images and sounds"):
        model.prepare(images=picture(0), text="what color ?")
    message = {"role": "user", "content": [{"type": "image", "image": picture(0)}]}
    with pytest.raises((TypeError, ValueError)):
        model.prepare(text=[message])


def test_records_of_language_models_need_their_vocabulary():
    record = architecture_of("LlamaForCausalLM", built("llama").hf_model.config)
    assert record.media_parts() == []
    with pytest.raises(ValueError, match="Expected embed and unembed beside the language model"):
        type(record)(model_class="Mine", language_model=record.language_model)
    with pytest.raises(ValueError, match="a language model or an encoder"):
        type(record)(model_class="Mine")


# Analyses ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CORNERS)
def test_analyses_run_on_text_alone(name: str):
    model = built(name)
    texts = ["what color is the circle ?", "is the square blue ?"]
    samples = [Sample(images=[], text=text, answer="red") for text in texts]
    scores = can.score(model, samples)
    found = can.find_critical(model, samples, scores)
    assert "neurons" in found.summary()
    assert len(pcicn.score(model, texts[0], n_noisy=2).to_dataframe()) > 0
    assert collect(model, samples).count
    effect = direct_effect(model, model.prepare(text=texts[0]))
    assert effect.top(1)
    with pytest.raises(ValueError, match="has none: 'image'"):
        logit_lens(model, model.prepare(text=texts[0]))


def test_a_planted_neuron_of_a_language_model_is_found():
    """One channel that every prediction hangs on ranks first, and its end is the model's."""
    hf, tokenizer = build("llama")
    with torch.no_grad():
        hf.model.layers[1].mlp.down_proj.weight[7] *= 60
    model = HookedVLM(hf, processor=tokenizer)
    texts = ["what color is the circle ?", "is the square blue ?", "left of the red square"]
    samples = [Sample(images=[], text=text) for text in texts]
    first = can.score(model, samples, target="text").to_dataframe(1).iloc[0]
    assert (first["name"], first["index"]) == ("blocks.1.hook_mlp_out", 7)
