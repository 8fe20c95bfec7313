"""A cache of a batch, in every family: its samples taken apart are what each one gives alone."""

from __future__ import annotations

import pytest
import torch

from tests.families import MODELS, TEXT_MODELS, build, example
from tests.passes.test_ownership import ANSWERS, TEXTS, VARIANTS, model_of, samples_of, sounds
from vlm_lens import ActivationCache, HookedVLM, NeuronSet
from vlm_lens.data import Sample
from vlm_lens.hooks.heads import PATTERN_SITES, flat_heads
from vlm_lens.inputs import Inputs
from vlm_lens.inputs.owners import rows_are_samples

ROTATED = ("hook_rot_q", "hook_rot_k")
CLOSE = {"rtol": 1e-3, "atol": 1e-3}


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


def inputs_of(name: str, chosen: list[int]) -> Inputs:
    """Some of the samples with their answers: with several images, one, or none."""
    if name == "qwen2_audio":
        return sounds([TEXTS[i] for i in chosen]).prompts
    samples: list[Sample] = [samples_of(name)[i] for i in chosen]
    images = [sample.images for sample in samples]
    return model_of(name).prepare(
        images=images if any(images) else None,
        text=[sample.text for sample in samples],
        answer=[ANSWERS[i] for i in chosen],
    )


def cache_of(name: str, chosen: list[int]) -> ActivationCache:
    return model_of(name).run_with_cache(inputs_of(name, chosen))[1]


@pytest.mark.sampled
@pytest.mark.parametrize("name", [*MODELS, *VARIANTS])
def test_samples_taken_from_a_cache_are_what_they_give_alone(name: str):
    """At every hook point, patterns included, with their own images and token maps."""
    cache, alone = cache_of(name, [0, 1, 2, 3]), [cache_of(name, [i]) for i in range(4)]
    taken = [cache.apply_slice_to_batch_dim(slice(i, i + 1)) for i in range(4)]
    assert cache.token_maps is not None
    for i, (its, own) in enumerate(zip(taken, alone, strict=True)):
        assert isinstance(its, ActivationCache)
        assert its.token_maps == cache.token_maps[i : i + 1]
        for point in own:
            if point.endswith(ROTATED) and rows_are_samples(point):
                continue  # by a position that padding counts in
            if point.endswith(PATTERN_SITES):
                assert_same_patterns(point, its, own)
                continue
            torch.testing.assert_close(its.real(point), own.real(point), **CLOSE, msg=point)
        part = "encoder." if "t5" in name else ""
        stream = f"{part}blocks.1.hook_resid_post"
        for kind in ("text",) if name in TEXT_MODELS else ("image", "text"):
            shown, expected = getattr(its, kind)(stream), getattr(own, kind)(stream)
            torch.testing.assert_close(shown, expected, **CLOSE)
    for point in cache:
        if not point.endswith((*PATTERN_SITES, *ROTATED)):  # what is averaged over is what there is
            rows = torch.cat([own.real(point) for own in alone if point in own.keys()])  # noqa: SIM118
            torch.testing.assert_close(cache.real(point), rows, **CLOSE, msg=point)


def assert_same_patterns(point: str, its: ActivationCache, own: ActivationCache) -> None:
    """The weights among a sample's own positions: text is behind padding, patches are in front."""
    shown, expected = its[point], own[point]
    assert len(shown) == len(expected), point
    if not point.endswith("pattern"):  # how low the scores of masked positions are is not said
        return
    n_queries, n_keys = expected.shape[-2:]
    is_text = rows_are_samples(point)
    reads_image = point.startswith("blocks.") and "cross_attn" in point
    queries = slice(-n_queries, None) if is_text else slice(n_queries)
    keys = slice(-n_keys, None) if is_text and not reads_image else slice(n_keys)
    torch.testing.assert_close(shown[..., queries, keys], expected, **CLOSE, msg=point)


@pytest.mark.parametrize("name", ["qwen2_vl", "mllama", "llava_onevision", "instructblip-t5"])
def test_the_batch_dimension_is_that_of_samples(name: str):
    """Images and tiles keep their axis where it goes, and follow their samples."""
    cache = cache_of(name, [0, 1, 2, 3])
    stream = f"{'decoder.' if 't5' in name else ''}blocks.1.hook_resid_post"
    pictures, pattern = "projector.hook_out", "vision_encoder.blocks.1.attn.hook_pattern"
    one = cache.apply_slice_to_batch_dim(2)
    assert one.has_batch_dim is False
    several = cache.apply_slice_to_batch_dim([2, 0])
    first, second = (several.apply_slice_to_batch_dim(i) for i in (0, 1))
    for key in (stream, pictures, pattern):
        assert torch.equal(first[key], one[key])
        assert torch.equal(
            second[key], cache.apply_slice_to_batch_dim((0, 1))[key].view_as(second[key])
        )
    assert one[stream].ndim == 2
    assert one[pictures].ndim == 3
    assert one[pattern].ndim == 4
    alone = cache_of(name, [2])
    n_pictures, shape = len(alone[pictures]), alone[pattern].shape
    removed = alone.remove_batch_dim()
    assert removed is alone
    assert removed[stream].ndim == 2
    assert len(removed[pictures]) == n_pictures == len(one[pictures])
    assert removed[pattern].shape == shape
    torch.testing.assert_close(removed.real(pictures), one.real(pictures), **CLOSE)
    with pytest.raises(AssertionError, match=r"one sample .* got 4"):
        cache.remove_batch_dim()
    with pytest.raises(ValueError, match="it was removed"):
        one.apply_slice_to_batch_dim(0)
    with pytest.raises(IndexError):
        cache.apply_slice_to_batch_dim(4)


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_5_vl", "mistral3", "mllama", "llava_next"])
@pytest.mark.parametrize("bare", [False, True])
def test_mean_and_min_are_over_what_there_is(name: str, bare: bool):
    """Also where the model is given plain tensors, of which no one knows the images' sizes."""
    model, inputs = model_of(name), inputs_of(name, [0, 2])
    points = [
        *("blocks.1.mlp.hook_post", "blocks.1.attn.hook_q", "vision_encoder.blocks.1.mlp.hook_pre"),
        *("vision_encoder.blocks.1.attn.hook_q", "projector.hook_out"),
        *(["blocks.1.cross_attn.hook_k"] if name == "mllama" else []),
    ]
    points = [point for point in points if point in model.hook_dict]
    _, cache = model.run_with_cache(dict(inputs) if bare else inputs, names_filter=points)
    alone = [model.run_with_cache(inputs_of(name, [i]), names_filter=points)[1] for i in (0, 2)]
    for point in points:
        rows = torch.cat([flat_heads(point, one.real(point)) for one in alone])
        for value, expected in (("mean", rows.mean(0)), ("min", rows.amin(0))):
            neurons = NeuronSet.from_indices({point: range(rows.shape[-1])})
            [(_, hook)] = neurons.ablate(value, reference=cache)
            like = torch.zeros(1, 1, *cache[point].shape[2:])
            found = flat_heads(point, hook(like, hook=None))[0, 0]
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5, msg=point)
    if bare and name != "mllama":  # whose arguments say whose the images are
        with pytest.raises(ValueError, match="run on what|without token maps"):
            cache.apply_slice_to_batch_dim(0)


def test_what_fills_up_behind_an_answers_end_is_not_there():
    model, points = model_of("llava_next"), "blocks.*.hook_resid_post"
    inputs = inputs_of("llava_next", [0, 1])
    tokens, cache = model.generate_with_cache(
        inputs, names_filter=points, max_new_tokens=6, eos_token_id=[9, 16, 5]
    )
    ends = torch.isin(tokens[:, inputs.shape[1] :], torch.tensor([9, 16, 5])).long()
    n_answer = [row.tolist().index(1) + 1 if row.any() else 6 for row in ends]
    n_real = int(inputs.attention_mask.sum()) + sum(n_answer)
    assert min(n_answer) < max(n_answer)
    assert len(cache.real(("resid_post", 0))) == n_real


# Two kinds of pictures in one forward ------------------------------------------------------------


@pytest.fixture(scope="module", params=["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def mixed(request: pytest.FixtureRequest) -> tuple[HookedVLM, dict[str, torch.Tensor]]:
    """A model, and a prompt with an image and a video of two frames, which are that image."""
    hf, processor = build(request.param)
    image = example(request.param, hf, processor, "image")
    config, tokens = hf.config, image["input_ids"]
    as_video = torch.where(tokens == config.image_token_id, config.video_token_id, tokens)
    kinds = image["mm_token_type_ids"]
    return HookedVLM(hf, processor=processor), {
        **image,
        "input_ids": torch.cat([tokens, as_video], 1),
        "attention_mask": image["attention_mask"].repeat(1, 2),
        "mm_token_type_ids": torch.cat([kinds, kinds * 2], 1),
        "pixel_values_videos": image["pixel_values"],
        "video_grid_thw": image["image_grid_thw"],
    }


def test_a_cache_does_not_keep_the_video_in_the_images_place(mixed: Any):
    """The tower runs twice, so that one name stands for two values."""
    model, inputs = mixed
    assert torch.equal(model(inputs), model.hf_model(**inputs).logits)
    for names in (None, "vision_encoder.hook_embed", "projector.*"):
        with pytest.raises(ValueError, match="came by twice in one forward.*'blocks.*'"):
            model.run_with_cache(inputs, names_filter=names)
        with pytest.raises(ValueError, match="came by twice in one forward"):
            model.generate_with_cache(inputs, 1, names_filter=names or "*")
    _, cache = model.run_with_cache(inputs, names_filter="blocks.*")
    assert cache["resid_post", 0].shape[1] == inputs["input_ids"].shape[1]
    seen: list[torch.Tensor] = []
    hook = ("vision_encoder.hook_embed", lambda t, hook: seen.append(t))
    model.run_with_hooks(inputs, fwd_hooks=[hook])
    assert len(seen) == 2


def test_a_cache_of_ones_own_keeps_the_last_of_several_runs():
    """As in TransformerLens; only within a run would a value be lost unseen."""
    model = model_of("llava_next")
    kept, fwd, _ = model.get_caching_hooks("blocks.0.hook_mlp_out")
    with model.hooks(fwd):
        model(inputs_of("llava_next", [0]))
        model(inputs_of("llava_next", [1]))
        expected = model.run_with_cache(inputs_of("llava_next", [1]))[1]["mlp_out", 0]
        assert torch.equal(kept["blocks.0.hook_mlp_out"], expected)
        model.generate(inputs_of("llava_next", [0]), 3)
