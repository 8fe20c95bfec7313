"""Exemplars are the samples in which a neuron is most active, read at the right places."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.families import FAMILIES, build
from tests.tiny import Tiny, picture
from vlm_lens import HookedVLM, Neuron, NeuronSet, Sample
from vlm_lens.analyses.exemplars import Exemplar, Exemplars, SampleView, scaled
from vlm_lens.analyses.explaining.gather import Choice, Gathered, check_neurons, gather
from vlm_lens.analyses.explaining.split import halves
from vlm_lens.analyses.explaining.views import Views
from vlm_lens.hooks.names import HookNameError
from vlm_lens.neurons.sites import sites
from vlm_lens.passes import SamplesLeftOutWarning
from vlm_lens.passes.answers import Answers
from vlm_lens.passes.batch import make_batch
from vlm_lens.passes.forwards import forward, hooked
from vlm_lens.shapes_llava.world import make_samples

ACT = "blocks.2.mlp.hook_act"
VISION = "vision_encoder.blocks.1.mlp.hook_post"


def text_view(*tokens: str, number: int = 0, **annotations: Any) -> SampleView:
    """A sample of text only."""
    n = len(tokens)
    return SampleView(
        number=number,
        sample=Sample([], " ".join(tokens), annotations=annotations),
        kinds=("text",) * n,
        tokens=tokens,
        roles=("prompt",) * n,
        image_index=np.full(n, -1),
        boxes=np.full((n, 4), np.nan),
    )


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    return [s for task in ("image", "caption", "text") for s in make_samples(task=task, n=6)]


@pytest.fixture(scope="module")
def neurons() -> NeuronSet:
    return NeuronSet.from_indices({ACT: [3, 100, 7], VISION: [0, 9], "projector.hook_out": [5]})


@pytest.fixture(scope="module")
def gathered(shapes: HookedVLM, samples: list[Sample], neurons: NeuronSet) -> Gathered:
    return gather(shapes, samples, neurons, Choice(top=3, random=2, batch_size=5))


@pytest.fixture(scope="module")
def slow(shapes: HookedVLM, samples: list[Sample], neurons: NeuronSet) -> list[dict]:
    """Each sample alone: by neuron, the activations at patches and words, in their order."""
    found = []
    for sample in samples:
        inputs = shapes.prepare(images=sample.images or None, text=sample.text)
        towers = () if sample.images else ("vision_encoder.", "projector.")
        names = [name for name in neurons.names if not name.startswith(towers)]
        tokens, cache = shapes.generate_with_cache(
            inputs, names_filter=names, max_new_tokens=64, do_sample=False
        )
        maps = cache.token_maps[0]
        real = [p for p, kind in enumerate(maps.modality) if kind in ("image", "text")]
        values = {}
        for neuron in neurons:
            if neuron.name == ACT:
                values[neuron] = cache[neuron.name][0, real, neuron.index].numpy()
            elif sample.images:
                values[neuron] = cache[neuron.name][0, -64:, neuron.index].numpy()
            else:
                values[neuron] = np.zeros(0)
        found.append(values)
    return found


@pytest.mark.full
@pytest.mark.parametrize("half", ["explained", "held_out"])
def test_the_top_samples_are_those_of_a_slow_search(
    gathered: Gathered, slow: list[dict], neurons: NeuronSet, samples: list[Sample], half: str
):
    parts = dict(zip(("explained", "held_out"), halves(samples, held_out=0.5, seed=0), strict=True))
    assert set(gathered.explained) == set(neurons)
    for neuron in neurons:
        peaks = {n: float(slow[n][neuron].max(initial=-9.0)) for n in parts[half]}
        if neuron.name == VISION:  # the class token counts in the ranking, and is not shown
            continue
        best = sorted(peaks, key=lambda n: -peaks[n])[:3]
        found = getattr(gathered, half)[neuron]
        assert [one.view.number for one in found.top] == [n for n in best if peaks[n] > 0]


def test_values_are_those_of_each_sample_alone(
    gathered: Gathered, slow: list[dict], neurons: NeuronSet
):
    for neuron in neurons:
        both = [*gathered.explained[neuron].every, *gathered.held_out[neuron].every]
        maximum = gathered.explained[neuron].maximum
        raw = [slow[one.view.number][neuron] for one in both]
        assert maximum == pytest.approx(max(values.max() for values in raw), rel=1e-4)
        for one, values in zip(both, raw, strict=True):
            expected = np.clip(10 * values / maximum, 0, 10)
            np.testing.assert_allclose(one.values, expected, atol=1e-3)
        assert max(one.peak for one in both) == pytest.approx(10.0)


def test_positions_are_words_and_patches_in_their_places(gathered: Gathered, samples: list[Sample]):
    for one in gathered.explained[Neuron(ACT, 3)].every:
        view, sample = one.view, samples[one.view.number]
        said = [t for t, kind in zip(view.tokens, view.kinds, strict=True) if kind == "text"]
        assert " ".join(said).startswith(" ".join(sample.text.split()))
        assert "<bos>" not in view.tokens
        assert view.kinds.count("image") == 64 * len(sample.images)
        if sample.images:
            place = view.kinds.index("image") + 8 * 2 + 5
            assert view.boxes[place].tolist() == [40.0, 16.0, 48.0, 24.0]
    for one in gathered.explained[Neuron(VISION, 0)].every:
        assert set(one.view.kinds) == {"image"}
        assert one.view.boxes[8 * 2 + 5].tolist() == [40.0, 16.0, 48.0, 24.0]


def test_random_samples_are_the_same_for_all_neurons_and_none_twice(gathered: Gathered):
    for half in (gathered.explained, gathered.held_out):
        for found in half.values():
            numbers = [one.view.number for one in found.every]
            assert len(set(numbers)) == len(numbers)
            assert len(found.random) <= 2


def test_nothing_shown_is_in_both_halves(gathered: Gathered):
    for neuron, found in gathered.explained.items():
        seen = {one.view.number for one in found.every}
        assert not seen & {one.view.number for one in gathered.held_out[neuron].every}


def test_samples_with_the_same_images_stay_together():
    one, two, three = picture(0), picture(1), picture(2)
    samples = [Sample([p], f"question {i}") for i, p in enumerate((one, two, one, three, two))]
    samples.append(Sample([], "question 0"))
    for seed in range(10):
        first, second = halves(samples, held_out=0.5, seed=seed)
        assert sorted(first + second) == list(range(6))
        for pair in ({0, 2}, {1, 4}):
            assert pair <= set(first) or pair <= set(second)


def test_samples_that_all_show_the_same_cannot_be_split():
    with pytest.raises(ValueError, match="show different things"):
        halves([Sample([picture(0)], "a"), Sample([picture(0)], "b")], held_out=0.5, seed=0)


@pytest.mark.full
def test_an_unreadable_image_is_left_out_with_its_reason(
    shapes: HookedVLM, samples: list[Sample], tmp_path
):
    path = tmp_path / "cut.png"
    samples[0].images[0].save(path)
    path.write_bytes(path.read_bytes()[:200])
    broken = Sample([Image.open(path)], "what color ?")
    with pytest.warns(SamplesLeftOutWarning):
        found = gather(
            shapes, [broken, *samples], NeuronSet([Neuron(ACT, 3)]), Choice(top=9, random=9)
        )
    assert list(found.left_out) == [0]
    assert "cannot be decoded" in found.left_out[0]
    every = [*found.explained.values(), *found.held_out.values()]
    assert all(one.view.number != 0 for exemplars in every for one in exemplars.every)


def test_a_neuron_that_is_never_active_is_silent_with_a_reason(
    shapes: HookedVLM, samples: list[Sample]
):
    import copy

    model = copy.deepcopy(shapes)
    with torch.no_grad():
        model.hf_model.model.language_model.layers[2].mlp.gate_proj.weight[3] = 0.0
    found = gather(model, samples, NeuronSet.from_indices({ACT: [3, 7]}), Choice(top=2, random=1))
    assert list(found.silent) == [Neuron(ACT, 3)]
    assert "never active" in found.silent[Neuron(ACT, 3)]
    assert list(found.explained) == [Neuron(ACT, 7)]


def test_the_same_seed_gives_the_same_and_another_one_another_split(
    shapes: HookedVLM, samples: list[Sample], gathered: Gathered, neurons: NeuronSet
):
    again = gather(shapes, samples, neurons, Choice(top=3, random=2, batch_size=5))
    for neuron in neurons:
        pairs = zip(gathered.explained[neuron].every, again.explained[neuron].every, strict=True)
        for one, other in pairs:
            assert one.view.number == other.view.number
            np.testing.assert_array_equal(one.values, other.values)
    assert halves(samples, held_out=0.5, seed=0) != halves(samples, held_out=0.5, seed=1)


@pytest.mark.parametrize(
    ("neuron", "error", "message"),
    [
        (Neuron(ACT, 384), IndexError, "has 384 neurons"),
        (Neuron(VISION, 512), IndexError, "has 512 neurons"),
        (Neuron("blocks.9.mlp.hook_act", 0), HookNameError, "no layer 9"),
        (Neuron("blocks.0.attn.hook_pattern", 0), ValueError, "no neuron dimension"),
    ],
)
def test_neurons_that_are_not_there_are_refused_before_work_starts(
    shapes: HookedVLM, samples: list[Sample], neuron: Neuron, error: type, message: str
):
    with pytest.raises(error, match=message):
        check_neurons(shapes, samples, NeuronSet([neuron]))


@pytest.mark.parametrize(
    "wrong",
    [{"top": 0}, {"random": -1}, {"held_out": 0.0}, {"held_out": 1.0}, {"batch_size": 0}],
)
def test_numbers_out_of_range_are_refused(wrong: dict):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Choice(**wrong)


# Every family -------------------------------------------------------------------------------------

NO_PLACE = {"qwen2_audio"}


@pytest.mark.parametrize("family", [name for name in FAMILIES if name not in NO_PLACE])
def test_every_family_has_views_of_its_tokens_and_patches(family: str):
    hf, processor = build(family)
    model = HookedVLM(hf, processor=processor)
    samples = [
        Sample([picture(0, size=(50, 34))], "what color ?"),
        Sample([], "is the circle red ?"),
    ]
    if hf.config.get_text_config().is_encoder_decoder or "blip" in family or family == "kosmos2":
        samples[1] = Sample([picture(1)], "is it red ?")
    batch = make_batch(model, samples, Answers("own", 4))
    views, found = Views(batch), {}
    names = [
        name
        for name in [*sites(model, "act"), *sites(model, component="projector")]
        if not name.startswith(("qformer.", "audio_encoder.")) and ".text_mlp." not in name
    ]
    if batch.maps[0].layouts[0].tokens[0] == "query":  # which have no place
        names = [name for name in names if not name.startswith("projector.")]

    def look(tensor: torch.Tensor, hook: Any) -> None:
        found[hook.name] = views.of(hook.name, tensor.shape[0], tensor.shape[1])
        n_rows = tensor.shape[0] * tensor.shape[1]
        for placed in found[hook.name]:
            assert len(placed.rows) == len(placed.view)
            assert placed.rows.numel() == placed.rows.unique().numel()
            assert not len(placed.rows) or int(placed.rows.max()) < n_rows

    with hooked(model, [(names, look)]):
        forward(model, batch)
    assert found
    for name, placed in found.items():
        first = placed[0].view
        if name.startswith(("vision_encoder.", "projector.")):
            assert set(first.kinds) == {"image"}
            covered = first.boxes[:, 2:].max(0)
            assert (covered > 25).all()
            assert (covered <= (50, 34)).all()
        elif name.startswith("decoder."):
            assert "image" not in first.kinds
        else:
            assert "text" in first.kinds
            assert not {"<pad>", "<bos>"} & set(first.tokens)


def test_queries_of_a_projector_have_no_places():
    hf, processor = build("blip2-opt")
    model = HookedVLM(hf, processor=processor)
    samples = [Sample([picture(i)], "what color ?") for i in range(3)]
    with pytest.raises(ValueError, match="cannot be placed"):
        check_neurons(model, samples, NeuronSet([Neuron("projector.hook_out", 0)]))


def test_a_q_former_and_sounds_have_no_places():
    from vlm_lens.analyses.explaining.views import check_component

    for name in ("qformer.blocks.0.mlp.hook_act", "audio_encoder.blocks.0.mlp.hook_post"):
        with pytest.raises(ValueError, match="neither tokens of text nor patches"):
            check_component(name)


# The classes --------------------------------------------------------------------------------------


def test_several_images_are_told_apart(llava: Tiny):
    samples = [Sample([picture(0), picture(1, size=(50, 34))], "<image> left <image> right ?")]
    batch = make_batch(llava.model, samples, Answers(), numbers=[4])
    [placed] = Views(batch).of("blocks.0.mlp.hook_act", *batch.real.shape)
    assert placed.view.pictured == [0, 1]
    assert placed.view.number == 4
    assert (placed.view.image_index == 1).sum() == 16
    assert placed.view.picture(1).size == (50, 34)
    assert placed.view.picture(2) is None


def test_lists_of_different_lengths_are_refused():
    with pytest.raises(ValueError, match="one entry for each position"):
        SampleView(0, Sample([], ""), ("text",), (), (), np.zeros(0, dtype=int), np.zeros((0, 4)))
    with pytest.raises(ValueError, match="one value for each of 2 positions"):
        Exemplar(text_view("a", "b"), np.zeros(3))


@pytest.mark.usefixtures("unchecked")
def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="unknown kind 'sound'"):
        SampleView(0, Sample([], ""), ("sound",), ("",), ("prompt",), np.zeros(1), np.zeros((1, 4)))  # type: ignore[arg-type]


def test_scaled_needs_a_positive_activation():
    with pytest.raises(ValueError, match="its largest is 0"):
        scaled(np.zeros(3), 0.0)


def test_exemplars_without_samples_are_empty():
    none = Exemplars(Neuron(ACT, 0), (), (), 1.0)
    assert none.values.shape == none.is_kind("image").shape == (0,)
    assert Exemplar(text_view(), np.zeros(0)).peak == 0.0
