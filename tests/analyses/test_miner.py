"""MINER's four stages against the slow reference, and planted neurons."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from tests.analyses import slow_miner
from tests.analyses.planted_modality import WORD, Planted, is_red, planted
from tests.conftest import assert_no_hooks
from tests.families import build
from tests.tiny import Tiny, build_tiny, picture
from vlm_lens import HookedVLM, Neuron, Sample
from vlm_lens.analyses import miner
from vlm_lens.analyses.miner_scores import METRICS, SPLITS, WEIGHTS, ModalityScores
from vlm_lens.passes import SamplesLeftOutWarning

MODELS = ["clip-llama", "clip-qwen2", "qwen2_5_vl"]  # the last two with grouped-query attention
STRATEGIES = ["adaptive", "LA_MU", "LU_MA", "uniform"]


@pytest.fixture(scope="module")
def models() -> dict[str, HookedVLM]:
    hf, processor = build("qwen2_5_vl")
    found = {name: build_tiny(name).model for name in MODELS[:2]}
    return {**found, "qwen2_5_vl": HookedVLM(hf, processor=processor)}


def asked(name: str) -> list[Sample]:
    """`samples` with the family's placeholder."""
    return samples("<|image_pad|>" if name == "qwen2_5_vl" else "<image>")


@pytest.fixture(scope="module")
def plants() -> Planted:
    return planted()


def samples(here: str = "<image>") -> list[Sample]:
    """Prompts of different length, two without a picture, one with two."""
    one, two = picture(0), picture(1, size=(50, 34))
    return [
        Sample(images=[one], text="what color ?"),
        Sample(images=[], text="is the square red ?"),
        Sample(images=[one, two], text=f"{here} left circle {here} right ?"),
        Sample(images=[two], text="a blue circle is left"),
        Sample(images=[], text="is one circle green ?"),
    ]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("split", SPLITS)
def test_importance_is_what_the_formulas_say(models, name: str, split):
    found = miner.score(models[name], asked(name), split=split, batch_size=3)
    assert_no_hooks(models[name])
    each = [slow_miner.importances(models[name], sample, split) for sample in asked(name)]
    expected = torch.tensor(slow_miner.aggregate([each])).float()
    torch.testing.assert_close(found.importance, expected, rtol=0, atol=1e-5)
    assert found.importance.amax() > 0.5  # it is not all zeros


def test_attention_may_be_that_before_rotary_positions(models):
    model = models["clip-qwen2"]
    found = miner.score(model, samples()[:2], rotated=False)
    split = "special_text_separate"
    each = [slow_miner.importances(model, s, split, rotated=False) for s in samples()[:2]]
    expected = torch.tensor(slow_miner.aggregate([each])).float()
    torch.testing.assert_close(found.importance, expected, rtol=0, atol=1e-5)
    assert not torch.allclose(found.importance, miner.score(model, samples()[:2]).importance)


@pytest.mark.parametrize("name", MODELS)
def test_the_batch_size_makes_no_difference(models, name: str):
    one, four = (miner.score(models[name], asked(name), batch_size=n).importance for n in (1, 4))
    torch.testing.assert_close(one, four, rtol=0, atol=1e-5)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("name", MODELS)
def test_data_sets_are_aggregated_and_neurons_selected_as_by_the_authors(models, name, strategy):
    model, every = models[name], asked(name)
    datasets = {"pictures": [every[0], every[2], every[3]], "words": [every[1], every[4]]}
    scores = miner.score(model, datasets)
    split = "special_text_separate"
    expected = slow_miner.aggregate(
        [[slow_miner.importances(model, s, split) for s in items] for items in datasets.values()]
    )
    torch.testing.assert_close(scores.importance, torch.tensor(expected).float(), rtol=0, atol=1e-5)
    assert scores.n_samples == {"pictures": 3, "words": 2}
    assert scores.n_with["words"]["image"] == 0
    for weights in (WEIGHTS, (1, 0, 0, 0, 0), {"attn_q": 0.5, "attn_k": 0.5}):
        matrix = scores.weighted(weights)
        found = miner.select(scores, ratio=0.1, strategy=strategy, weights=weights)
        wanted = slow_miner.select(matrix.double().numpy(), scores.occurring, 0.1, strategy)
        assert {m: [(n.layer, n.index) for n in s] for m, s in found.items()} == wanted


def test_weights_are_of_the_metrics(models):
    scores = miner.score(models["clip-llama"], samples()[:2])
    expected = sum(
        weight * scores.of(metric=metric, modality="text").stacked()
        for metric, weight in zip(METRICS, (0, 0.25, 0.25, 0.5, 0), strict=True)
    )
    torch.testing.assert_close(scores.weighted()[0], expected)
    assert torch.equal(
        scores.weighted({"max": 1})[2], scores.of(metric="max", modality="image").stacked()
    )


@pytest.mark.parametrize("ratio", [0.02, 0.05, 0.1])
def test_counts_are_the_authors(models, ratio: float):
    scores = miner.score(models["clip-llama"], samples()[:2])
    k, n_layers = int(ratio * 3 * 64), 3
    count = {
        strategy: sum(map(len, miner.select(scores, ratio=ratio, strategy=strategy).values()))
        for strategy in ("adaptive", "LA_MU", "LU_MA")
    }
    assert count == {"adaptive": k, "LA_MU": k // 3 * 3, "LU_MA": k // n_layers * n_layers}
    adaptive = miner.select(scores, ratio=ratio, strategy="adaptive")
    assert len(set().union(*adaptive.values())) == k  # exclusive


def test_random_neurons_depend_on_the_seed_alone(models):
    scores = miner.score(models["clip-llama"], samples()[:1])
    state = torch.get_rng_state()
    first, again, other = (
        miner.select(scores, ratio=0.1, strategy="random", seed=seed)["random"]
        for seed in (1, 1, 2)
    )
    assert list(first) == list(again) != list(other)
    assert len(first) <= 19
    assert torch.equal(state, torch.get_rng_state())


# Planted neurons ----------------------------------------------------------------------------------


@pytest.mark.full
def test_plants_are_active_where_they_say(plants: Planted):
    for sample in plants.samples[:9]:
        inputs = plants.model.prepare(
            text=sample.text, images=sample.images or None, answer=sample.answer
        )
        names = [neuron.name for neuron in (plants.image, plants.text, plants.both)]
        _, cache = plants.model.run_with_cache(inputs, names_filter=names)
        image, text, both = (
            cache[neuron.name][0, :, neuron.index] > 1e-3
            for neuron in (plants.image, plants.text, plants.both)
        )
        [token_map] = inputs.token_map
        words = [token == WORD for token in token_map.tokens]
        pixels = token_map.positions("image")
        red = [position for i, position in enumerate(pixels) if is_red(sample, i)]
        assert text.tolist() == words
        assert set(image.nonzero()[:, 0].tolist()) <= set(red)
        assert torch.equal(both, image | text)
        if sample.category == "description":
            assert image.sum() >= 3
            assert text.sum() >= 2


def test_planted_neurons_are_found_under_their_modality(plants: Planted):
    by_task = {"image": plants.samples[0::3] + plants.samples[1::3], "text": plants.samples[2::3]}
    for datasets in (plants.samples, by_task):
        found = miner.select(miner.score(plants.model, datasets))
        where = {
            kind: {modality for modality, neurons in found.items() if neuron in neurons}
            for kind, neuron in (
                ("image", plants.image),
                ("text", plants.text),
                ("both", plants.both),
            )
        }
        assert where == {"image": {"image"}, "text": {"text"}, "both": {"image", "text"}}


def test_without_the_plants_their_places_are_nothing_special(shapes, plants: Planted):
    found = miner.select(miner.score(shapes, plants.samples))
    missing = {plants.image, plants.text, plants.both}
    assert not missing & set().union(*found.values())


# What is special ----------------------------------------------------------------------------------


def test_modalities_that_never_occur_are_noted_and_have_no_neurons(models):
    model = models["clip-llama"]
    scores = miner.score(model, [Sample(images=[], text="is the square red ?")])
    assert scores.occurring == ("text", "special")
    assert scores.notes == (
        "never in these data sets, and left out of selections: image, video, audio",
    )
    assert scores.importance.isfinite().all()
    assert not scores.of(metric="max", modality="image").stacked().any()
    assert list(miner.select(scores, ratio=0.1)) == ["text", "special"]
    assert set(scores.to_dataframe().modality) == {"text", "special"}


def test_a_vector_without_differences_becomes_zero():
    sets = torch.tensor([[True, True], [False, False]])
    found = miner.importance(torch.full((2, 4), 0.3), torch.ones(2, 2, 2), sets)
    assert torch.equal(found, torch.zeros(5, 2, 4))


def test_answers_are_not_read(models):
    model, sample = models["clip-qwen2"], samples()[0]
    given = {"text": sample.text, "images": sample.images}
    without = miner.score(model, model.prepare(**given)).importance
    longer = miner.score(model, model.prepare(**given, answer="red circle")).importance
    torch.testing.assert_close(without, longer, rtol=0, atol=1e-5)


def test_prepared_inputs_are_samples_too(models):
    model, every = models["clip-llama"], samples()
    batch = model.prepare(text=[s.text for s in every[:3]], images=[s.images for s in every[:3]])
    found = miner.score(model, [every[3], batch, every[4]], batch_size=2)
    assert found.n_samples == {"data": 5}
    torch.testing.assert_close(
        found.importance, miner.score(model, every).importance, rtol=0, atol=1e-5
    )


def test_other_sites_can_be_scored(models):
    model = models["clip-llama"]
    acts, posts = (miner.score(model, samples()[:2], sites=site) for site in ("act", "post"))
    assert next(iter(posts)) == "blocks.0.mlp.hook_post"
    assert not torch.equal(acts.importance, posts.importance)
    later = miner.score(model, samples()[:2], sites=["blocks.2.mlp.hook_act"])
    torch.testing.assert_close(later.importance, acts.importance[:, :, 2:], rtol=0, atol=1e-5)


# What goes wrong ----------------------------------------------------------------------------------


def broken_image(tmp_path) -> Image.Image:
    """A file that can be opened, and not read."""
    path = tmp_path / "half.png"
    picture(0, size=(64, 64)).save(path)
    path.write_bytes(path.read_bytes()[:3000])
    return Image.open(path)


def test_samples_that_cannot_be_read_are_left_out_with_the_reason(models, tmp_path):
    model, every = models["clip-llama"], samples()
    bad = [Sample(images=[broken_image(tmp_path)], text="what ?"), Sample(images=[], text="")]
    with pytest.warns(SamplesLeftOutWarning, match="2 of 7 samples do not count"):
        found = miner.score(model, [every[0], bad[0], *every[1:], bad[1]], batch_size=4)
    assert found.n_samples == {"data": 5}
    assert found.parameters["left_out"] == {"data": [1, 6]}
    assert [note[:19] for note in found.notes[:2]] == ["1 sample left out: "] * 2
    assert "truncated" in found.notes[0]
    expected = miner.score(model, every).importance
    torch.testing.assert_close(found.importance, expected, rtol=0, atol=1e-5)


def test_samples_that_overflow_are_left_out(models):
    model, every = build_tiny("clip-llama").model, samples()
    word = model.tokenizer.convert_tokens_to_ids("green")
    model.hf_model.model.language_model.embed_tokens.weight.data[word] = torch.nan
    with pytest.warns(SamplesLeftOutWarning, match="hook_act is infinite or NaN"):
        found = miner.score(model, every)
    assert found.parameters["left_out"] == {"data": [4]}
    expected = miner.score(models["clip-llama"], every[:4]).importance
    torch.testing.assert_close(found.importance, expected, rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="none of the first 1 samples can be used"):
        miner.score(model, every[4:])
    with (
        pytest.warns(SamplesLeftOutWarning),
        pytest.raises(ValueError, match="no sample of data set 'b' counts: 1 sample left out"),
    ):
        miner.score(model, {"a": every[:4], "b": every[4:]})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"split": "both"}, "expected a split of"),
        ({"batch_size": 0}, "batch_size of at least 1"),
        ({"datasets": []}, "at least one sample in data set 'data'"),
        ({"datasets": {}}, "at least one data set"),
        ({"datasets": {"a": [], "b": [Sample(images=[], text="x")]}}, "data set 'a', got none"),
        ({"sites": "vision_encoder.blocks.0.mlp.hook_post"}, "whose positions are the prompt's"),
        ({"sites": "blocks.0.hook_attn_out"}, "expected sites in the MLPs"),
        ({"sites": ["blocks.0.mlp.hook_act", "blocks.0.hook_mlp_out"]}, "one site in each layer"),
        ({"sites": ["blocks.0.mlp.hook_act", "blocks.1.hook_mlp_out"]}, "same number of neurons"),
    ],
)
def test_wrong_arguments_are_refused(models, unchecked, change, message: str):
    arguments = {"datasets": samples(), **change}
    with pytest.raises(ValueError, match=message):
        miner.score(models["clip-llama"], **arguments)
    assert_no_hooks(models["clip-llama"])


def test_data_of_another_kind_is_refused(models, unchecked):
    with pytest.raises(TypeError, match="got str"):
        miner.score(models["clip-llama"], ["what color ?"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ratio": 0}, "above 0 and at most 1"),
        ({"ratio": 1.5}, "above 0 and at most 1"),
        ({"ratio": 0.01}, "take a larger ratio"),
        ({"strategy": "best"}, "expected a strategy of"),
        ({"weights": (1, 1)}, "a weight >= 0 for each"),
        ({"weights": (0,) * 5}, "not all of them 0"),
        ({"weights": (-1, 1, 1, 1, 1)}, "a weight >= 0"),
        ({"weights": (float("nan"), 1, 1, 1, 1)}, "finite number"),
        ({"weights": {"best": 1}}, "unknown metric 'best'"),
    ],
)
def test_wrong_selections_are_refused(models, unchecked, change, message: str):
    scores = miner.score(models["clip-llama"], samples()[:1])
    with pytest.raises(ValueError, match=message):
        miner.select(scores, **change)


class Interrupted(Exception):
    pass


def test_an_interrupted_run_goes_on_to_the_same_scores(models, tmp_path):
    model = models["clip-qwen2"]
    datasets = {"a": samples(), "b": samples()[1:3]}
    seen: list[int] = []

    def stop(done: int, total: int) -> None:
        seen.append(done)
        if done == 2:
            raise Interrupted

    options = {"batch_size": 2, "checkpoint": tmp_path / "run"}
    with pytest.raises(Interrupted):
        miner.score(model, datasets, on_batch=stop, **options)
    assert_no_hooks(model)
    seen.clear()
    found = miner.score(model, datasets, on_batch=lambda d, t: seen.append(d), **options)
    assert seen == [3, 4]
    whole = miner.score(model, datasets, batch_size=2)
    assert torch.equal(found.importance, whole.importance)
    assert (found.n_samples, found.n_with) == (whole.n_samples, whole.n_with)
    with pytest.raises(ValueError, match="belongs to other samples"):
        miner.score(model, {"a": samples(), "b": samples()[1:2]}, **options)
    with pytest.raises(ValueError, match="its split"):
        miner.score(model, datasets, split="prompt", **options)


def test_no_hook_is_left_when_a_run_breaks_off(llava: Tiny):
    def fail(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        miner.score(llava.model, samples(), on_batch=fail)
    assert_no_hooks(llava.model)


# The result ---------------------------------------------------------------------------------------


def test_scores_are_saved_and_loaded(models, tmp_path):
    scores = miner.score(models["clip-llama"], {"a": samples(), "b": samples()[:1]})
    scores.save(tmp_path)
    loaded = ModalityScores.load(tmp_path)
    assert torch.equal(loaded.importance, scores.importance)
    for name in ("axes", "sizes", "n_samples", "n_with", "notes", "parameters"):
        assert getattr(loaded, name) == getattr(scores, name), name
    assert miner.select(loaded) == miner.select(scores)
    (tmp_path / "modality_scores.json").unlink()
    with pytest.raises(FileNotFoundError):
        ModalityScores.load(tmp_path)


def test_tables_say_what_the_scores_are(models):
    scores = miner.score(models["clip-llama"], samples())
    table = scores.to_dataframe(4)
    assert list(table.groupby("modality", sort=False).size()) == [4, 4, 4]
    row = table.iloc[-1]
    for metric in METRICS:
        values = scores.of(metric=metric, modality=row.modality).stacked()
        value = values[row.layer, row["index"]]
        assert row[metric] == pytest.approx(float(value))
    by_layer = scores.by_layer()
    assert len(by_layer) == 9
    assert by_layer.iloc[0]["mean"] == pytest.approx(float(scores.weighted()[0, 0].mean()))
    assert "text, special, image" in repr(scores)
    assert "Note: never in these data sets" in str(scores)
    assert "<li>never in these" in scores._repr_html_()
    with pytest.raises(ValueError, match="expected labels of .* got modality='smell'"):
        scores.of(metric="max", modality="smell")


def test_neurons_are_named_by_their_sites(models):
    scores = miner.score(models["clip-llama"], samples())
    first = miner.select(scores)["text"][0]
    best = scores.to_dataframe(1).iloc[0]
    assert first == Neuron(best["name"], int(best["index"]))
    assert miner.select(scores)["text"].sizes[first.name] == 64


def test_attention_without_a_mask_adds_up_to_one():
    generator = torch.Generator().manual_seed(0)
    queries, keys = (torch.randn(5, heads, 4, generator=generator) for heads in (4, 2))
    attends = miner.attention(queries, keys)
    np.testing.assert_allclose(attends.sum(1), np.ones(5), rtol=1e-6)
    assert (attends > 0).all()
