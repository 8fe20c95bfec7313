"""Vision towers alone: what a model without a language model does, and what it says it needs."""

from __future__ import annotations

import copy

import pytest
import torch

from tests.families import FAMILIES, TOWERS, build, example
from tests.families.base import picture
from vlm_lens import HookedVLM, Sample, explore
from vlm_lens.analyses import can, direct_effect, first_order_effect, logit_lens
from vlm_lens.hooks import ArchitectureError
from vlm_lens.statistics import collect

PICTURES = [picture(0, size=(50, 34)), picture(1, size=(34, 66))]


def wrapped(name: str) -> HookedVLM:
    hf, processor = build(name)
    return HookedVLM(hf, processor=processor)


@pytest.fixture(scope="module", params=TOWERS)
def model(request: pytest.FixtureRequest) -> HookedVLM:
    return wrapped(request.param)


def test_the_only_part_is_the_tower(model: HookedVLM):
    assert [(part.name, part.kind, part.n_blocks) for part in model.parts] == [
        ("vision_encoder", "tower", 3)
    ]
    assert model.text is None
    assert (model.cfg.d_model, model.cfg.n_layers, model.cfg.d_mlp) == (
        model.vision_encoder.d_model,
        3,
        model.vision_encoder.blocks[0].mlp.d_mlp,
    )
    assert f"vision encoder 3 x {model.cfg.d_mlp} neurons" in repr(model)


def test_prepare_makes_what_the_image_processor_does(model: HookedVLM):
    inputs = model.prepare(images=PICTURES)
    theirs = model.processor(images=PICTURES, return_tensors="pt")
    assert set(inputs) == set(theirs)
    assert all(torch.equal(inputs[name], theirs[name]) for name in inputs)
    with torch.no_grad():
        given = model(inputs)
        assert torch.equal(model(**inputs), given)
        if "pixel_attention_mask" not in inputs:
            assert torch.equal(model(inputs["pixel_values"]), given)


def test_token_maps_are_of_the_towers_own_positions(model: HookedVLM):
    inputs = model.prepare(images=PICTURES)
    _, cache = model.run_with_cache(inputs)
    stream = cache["vision_encoder.blocks.1.hook_resid_post"]
    assert stream.shape[:2] == inputs.shape
    if model.cfg.n_ctx:
        assert model.cfg.n_ctx == stream.shape[1]
    for row, token_map in enumerate(inputs.token_map):
        values = stream[row, :, 0]
        shown = token_map.heatmap(values.detach())
        assert shown.shape == PICTURES[row].size[::-1]
        # A pixel in the middle of a patch has the value of this patch.
        pos = token_map.positions("image")[-1]
        x0, y0, x1, y1 = token_map.box(pos)
        middle = shown[int((y0 + y1) / 2), int((x0 + x1) / 2)]
        assert middle == pytest.approx(values[pos].item(), rel=1e-5)
        real = cache.image("vision_encoder.blocks.1.hook_resid_post", batch=row)
        assert len(real) == token_map.modality.count("image")


def test_patches_that_fill_a_picture_up_are_padding():
    inputs = wrapped("siglip2-tower").prepare(images=PICTURES)
    mask = inputs["pixel_attention_mask"].bool()
    assert not mask.all()
    assert torch.equal(inputs.positions_mask("image"), mask)


def test_samples_of_the_cache_are_pictures(model: HookedVLM):
    inputs = model.prepare(images=PICTURES)
    with torch.no_grad():
        _, cache = model.run_with_cache(inputs)
        _, alone = model.run_with_cache(model.prepare(images=PICTURES[1]))
    name = "vision_encoder.blocks.2.hook_mlp_out"
    second = cache.apply_slice_to_batch_dim(slice(1, 2))
    torch.testing.assert_close(second[name], alone[name])
    pattern = "vision_encoder.blocks.2.attn.hook_pattern"
    torch.testing.assert_close(second[pattern], alone[pattern])
    assert inputs.view_rows(sample=1) == slice(1, 2)


def test_patching_one_pictures_stream_into_another_gives_its_output(model: HookedVLM):
    """At the last block, whose stream is all that the output is made of."""
    inputs = model.prepare(images=PICTURES)
    with torch.no_grad():
        given, cache = model.run_with_cache(inputs)
        name = "vision_encoder.blocks.2.hook_resid_post"
        flipped = cache[name].flip(0)
        patched = model.run_with_hooks(inputs, fwd_hooks=[(name, lambda x, hook: flipped)])
    torch.testing.assert_close(patched, given.flip(0))


def test_a_classifier_gives_its_logits_and_its_loss():
    model = wrapped("vit-classifier")
    inputs, labels = model.prepare(images=PICTURES), torch.tensor([2, 0])
    logits, loss = model(inputs, return_type="both", labels=labels)
    assert logits.shape == (2, 3)
    torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(logits, labels))
    _, cache = model.run_with_cache(inputs, return_type="loss", labels=labels, incl_bwd=True)
    assert cache["vision_encoder.blocks.0.hook_mlp_out_grad"].abs().max() > 0


def test_loading_copying_and_halving(model: HookedVLM, tmp_path):
    model.hf_model.save_pretrained(tmp_path)
    model.processor.save_pretrained(tmp_path)
    loaded = HookedVLM.from_pretrained(tmp_path)
    inputs = loaded.prepare(images=PICTURES)
    with torch.no_grad():
        expected = model(model.prepare(images=PICTURES))
        assert torch.equal(loaded(inputs), expected)
        assert torch.equal(copy.deepcopy(loaded)(inputs), expected)
        assert loaded.half()(inputs.to(torch.float16)).dtype == loaded.cfg.dtype == torch.float16


NEEDS = {
    "generate": lambda m, x: m.generate(x),
    "generate text": lambda m, x: m.generate("what"),
    "stop_at_layer": lambda m, x: m(x, stop_at_layer=1),
    "loss": lambda m, x: m(x, return_type="loss"),
    "tokens": lambda m, x: m.to_tokens("what"),
    "tokenizer": lambda m, x: m.tokenizer,
    "W_U": lambda m, x: m.W_U,
    "W_E": lambda m, x: m.W_E,
    "W_in": lambda m, x: m.W_in,
    "OV": lambda m, x: m.OV,
    "directions": lambda m, x: m.tokens_to_residual_directions("what"),
    "tl_parameters": lambda m, x: list(m.tl_parameters()),
    "switches": lambda m, x: m.set_use_attn_result(True),
    "effect on a logit": lambda m, x: first_order_effect(m, x),
    "can": lambda m, x: can.score(m, [Sample(images=PICTURES[:1], text="")]),
    "direct_effect": lambda m, x: direct_effect(m, x),
    "logit_lens": lambda m, x: logit_lens(m, x),
    "explore": lambda m, x: explore(m, x),
    "accumulated_resid": lambda m, x: m.run_with_cache(x)[1].accumulated_resid(),
}


@pytest.mark.parametrize("what", NEEDS)
def test_what_needs_a_language_model_says_so_in_one_sentence(what: str):
    model = wrapped("clip-tower")
    with pytest.raises(ArchitectureError, match="CLIPVisionModel is a tower alone") as refused:
        NEEDS[what](model, model.prepare(images=PICTURES[0]))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"images": PICTURES, "text": "what"}, "leave out text="),
        ({"images": PICTURES[0], "answer": "red"}, "leave out answer="),
        ({"images": []}, "expected an image"),
        ({}, "expected an image"),
    ],
)
def test_a_tower_takes_images_alone(given: dict, message: str):
    with pytest.raises(TypeError, match=message):
        wrapped("clip-tower").prepare(**given)


@pytest.mark.parametrize("given", ["what color", ["a", "b"], torch.tensor([[1, 2]]), [1, 2]])
def test_a_tower_does_not_read_text_or_tokens(given: object):
    with pytest.raises(TypeError, match="is a vision tower alone"):
        wrapped("clip-tower")(given)


def test_other_models_still_ask_for_a_prompt():
    hf, processor = build(FAMILIES[0])
    with pytest.raises(TypeError, match="pass text="):
        HookedVLM(hf, processor=processor).prepare(images=PICTURES[0])


def test_verify_finds_an_example_by_itself():
    assert str(wrapped("dinov2").verify()).startswith("55 hook points; ")


def test_layer_scale_is_part_of_what_is_added():
    model = wrapped("dinov3")
    inputs = example("dinov3", model.hf_model, model.processor, "image")
    _, cache = model.run_with_cache(inputs)
    block = model.vision_encoder.blocks[1]
    name = "vision_encoder.blocks.1"
    written = cache[f"{name}.mlp.hook_post"] @ block.mlp.W_out + block.mlp.b_out
    torch.testing.assert_close(written * block.mlp_scale, cache[f"{name}.hook_mlp_out"])
    assert not torch.allclose(written, cache[f"{name}.hook_mlp_out"])


def test_statistics_are_over_the_patches_of_all_pictures(model: HookedVLM):
    samples = [Sample(images=[one], text="passed over") for one in PICTURES * 2]
    found = collect(model, samples, batch_size=3, top_k=1)
    inputs = model.prepare(images=PICTURES * 2)
    with torch.no_grad():
        _, cache = model.run_with_cache(inputs)
    name = f"vision_encoder.blocks.1.mlp.hook_{'act' if model.cfg.gated_mlp else 'post'}"
    values = cache[name][inputs.positions_mask("image")]
    assert found.count[name]["image"] == len(values)
    torch.testing.assert_close(found.mean[name]["image"].float(), values.mean(0))


def test_statistics_want_one_picture_a_sample(model: HookedVLM):
    with pytest.raises(ValueError, match="a vision tower reads one image a sample"):
        collect(model, [Sample(images=[], text="red")])
    with pytest.raises(ArchitectureError, match="answers='own'"):
        collect(model, [Sample(images=PICTURES[:1], text="")], answers="own")
