"""Concepts hold where annotations say, and the explainer names those that neurons react to."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.stats import rankdata
from sklearn.metrics import roc_auc_score

from tests.analyses.planted_modality import Planted, planted
from tests.analyses.test_exemplars import text_view
from vlm_lens import HookedVLM, Neuron, NeuronSet, Sample
from vlm_lens.analyses.concepts import LEAST_IOU, SHARES, concepts
from vlm_lens.analyses.exemplars import Exemplar, Exemplars, SampleView
from vlm_lens.analyses.explaining.concept import (
    ANY_PATCH,
    ANY_TOKEN,
    ATTRIBUTES,
    BACKGROUND,
    OBJECT,
    Concept,
    ViewConcepts,
)
from vlm_lens.analyses.explaining.explanation import Explanation
from vlm_lens.analyses.explaining.gather import Choice, Gathered, gather
from vlm_lens.analyses.explaining.measures import auroc, intersection_over_union
from vlm_lens.analyses.explaining.views import Views
from vlm_lens.passes.answers import Answers
from vlm_lens.passes.batch import make_batch
from vlm_lens.results.packing import built, packed
from vlm_lens.shapes_llava.world import make_samples

NEURON = Neuron("blocks.1.mlp.hook_act", 0)


def word(text: str) -> Concept:
    return Concept("text", (("word", text),))


def image_view(*objects: dict, size: int = 4, number: int = 0) -> SampleView:
    """An image of 8 x 8 patches of so many pixels each, with annotated objects."""
    boxes = [(x, y, x + 1, y + 1) for y in range(8) for x in range(8)]
    return SampleView(
        number=number,
        sample=Sample([], "", annotations={"objects": list(objects)}),
        kinds=("image",) * 64,
        tokens=("",) * 64,
        roles=("prompt",) * 64,
        image_index=np.zeros(64, dtype=np.int64),
        boxes=np.array(boxes, dtype=np.float64) * size,
    )


def exemplars(*pairs: tuple[SampleView, Any]) -> Exemplars:
    every = tuple(Exemplar(view, np.asarray(values, dtype=np.float64)) for view, values in pairs)
    return Exemplars(NEURON, every, (), 1.0)


# The planted neurons ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def plants() -> Planted:
    return planted(n=48)


@pytest.fixture(scope="module")
def gathered(plants: Planted) -> Gathered:
    neurons = NeuronSet([plants.image, plants.text, plants.both])
    return gather(plants.model, plants.samples, neurons, Choice())


@pytest.mark.full
@pytest.mark.parametrize("kind", ["image", "text", "both"])
def test_planted_neurons_are_named(plants: Planted, gathered: Gathered, kind: str):
    expected = {
        "image": {("image", "red")},
        "text": {("text", "“red”")},
        "both": {("image", "red"), ("text", "“red”")},
    }
    found = concepts()(gathered.explained[getattr(plants, kind)])
    named = {(term.concept.kind, str(term.concept)) for term in found.terms}
    assert named == expected[kind]
    assert "red" in found.text
    assert ("patches" in found.text) == (kind != "text")
    assert ("tokens" in found.text) == (kind != "image")


def test_a_neuron_of_noise_has_no_concept_that_fits_well(gathered: Gathered, plants: Planted):
    rng = np.random.default_rng(0)
    some = gathered.explained[plants.image]
    noise = [(one.view, rng.uniform(0, 10, len(one.view))) for one in some.every]
    fits = [
        candidate["iou"]
        for fit in concepts()(exemplars(*noise)).details["fit"]
        for candidate in fit["candidates"]
        if candidate["chosen"] and candidate["concept"] not in ("any patch", "any token")
    ]
    assert max(fits, default=0.0) < 0.25
    planted_fit = concepts()(some).details["fit"][0]["candidates"][0]["iou"]
    assert planted_fit > 0.5


# Measures, against slow ones ----------------------------------------------------------------------


def test_iou_is_that_of_sets():
    rng = np.random.default_rng(1)
    masks, active = rng.random((7, 40)) < 0.3, rng.random((4, 40)) < 0.4
    masks[0], active[0] = False, False
    found = intersection_over_union(masks, active)
    for i, mask in enumerate(masks):
        for j, on in enumerate(active):
            one, other = set(np.flatnonzero(mask)), set(np.flatnonzero(on))
            expected = len(one & other) / len(one | other) if one | other else 0.0
            assert found[i, j] == pytest.approx(expected)


def test_auroc_is_scikit_learns():
    rng = np.random.default_rng(2)
    masks = rng.random((6, 60)) < 0.3
    values = rng.integers(0, 5, 60).astype(float)  # with ties
    expected = [roc_auc_score(mask, values) for mask in masks]
    np.testing.assert_allclose(auroc(masks, values), expected)
    assert auroc(np.ones((1, 60), dtype=bool), values).tolist() == [0.5]
    assert rankdata([1, 1, 2]).tolist() == [1.5, 1.5, 3]  # what it relies on


def test_details_are_those_of_a_slow_search(gathered: Gathered, plants: Planted):
    some = gathered.explained[plants.both]
    values, flat = some.values, some.is_kind("image")
    explainer = concepts()
    [images, _] = explainer(some).details["fit"]
    masks = {}
    for concept in ("red", "green"):
        rows = []
        for one in some.every:
            known = ViewConcepts(one.view)
            rows.append(known[Concept("image", (("color", concept),))])
        masks[concept] = np.concatenate(rows)
    for candidate in images["candidates"]:
        if candidate["concept"] not in masks:
            continue
        mask = masks[candidate["concept"]][flat]
        best = 0.0
        for share in SHARES:
            active = ((values >= np.quantile(values, 1 - share)) & (values > 2))[flat]
            best = max(best, (mask & active).sum() / (mask | active).sum())
        assert candidate["iou"] == pytest.approx(best)
        assert candidate["auroc"] == pytest.approx(roc_auc_score(mask, values[flat]))
        assert candidate["positions"] == mask.sum()


# Where concepts hold ------------------------------------------------------------------------------


def test_objects_are_in_the_patches_that_their_masks_cover(shapes: HookedVLM):
    samples = make_samples(task="caption", n=8)
    batch = make_batch(shapes, samples[:8], Answers())
    views = Views(batch).of("blocks.0.mlp.hook_act", *batch.real.shape)
    for placed, sample in zip(views, samples, strict=True):
        known = ViewConcepts(placed.view, cover=0.25)
        for thing in sample.annotations["objects"]:
            parts = tuple((name, thing[name]) for name in ("color", "place"))
            mask = known[Concept("image", parts)][placed.view.is_kind("image")].reshape(8, 8)
            for row, col in np.ndindex(8, 8):
                pixels = thing["mask"][row * 8 : row * 8 + 8, col * 8 : col * 8 + 8].sum()
                assert mask[row, col] == (pixels >= 16 or pixels >= thing["mask"].sum() / 2)


def test_boxes_count_where_there_is_no_mask():
    view = image_view({"box": (4, 4, 12, 8), "category": "dog"}, {"box": (29, 29, 30, 30)})
    known = ViewConcepts(view)
    dog = np.flatnonzero(known[Concept("image", (("category", "dog"),))])
    assert dog.tolist() == [9, 10]
    assert np.flatnonzero(known[OBJECT]).tolist() == [9, 10, 63]  # the tiny one is in its patch
    np.testing.assert_array_equal(known[BACKGROUND], ~known[OBJECT])
    assert known[ANY_PATCH].all()


def test_an_object_belongs_to_its_image():
    one = image_view({"box": (0, 0, 4, 4), "image": 1, "color": "red"})
    assert not ViewConcepts(one)[OBJECT].any()


def test_two_attributes_must_be_of_one_object():
    red_dog = {"box": (0, 0, 4, 4), "color": "red", "category": "dog"}
    blue_cat = {"box": (8, 0, 12, 4), "color": "blue", "category": "cat"}
    known = ViewConcepts(image_view(red_dog, blue_cat))
    found = known.named(ATTRIBUTES, pairs=True)
    assert Concept("image", (("color", "red"), ("category", "dog"))) in found
    assert not known[Concept("image", (("color", "red"), ("category", "cat")))].any()
    alone = known.named(("color", "category"), pairs=False)
    assert Concept("image", (("category", "dog"),)) in alone
    assert Concept("image", (("color", "red"), ("category", "dog"))) not in alone


def test_thirds_of_the_image_hold_at_the_patches_centres():
    known = ViewConcepts(image_view())
    top_left = known[Concept("image", (("image row", "top"), ("image column", "left")))]
    assert np.flatnonzero(top_left.reshape(8, 8).any(1)).tolist() == [0, 1, 2]
    middle = known[Concept("image", (("image row", "middle"),))].reshape(8, 8)
    assert np.flatnonzero(middle.all(1)).tolist() == [3, 4]


def test_words_hold_at_tokens_whatever_their_case_and_spaces():
    known = ViewConcepts(text_view("A", " Red", "\tred", " cat"))
    assert known[word("red")].tolist() == [False, True, True, False]
    after = Concept("text", (("after", "red"), ("word", "cat")))
    assert known[after].tolist() == [False, False, False, True]
    assert known[ANY_TOKEN].all()
    answers = Concept("text", (("role", "answer"),))
    assert not known[answers].any()


def test_nothing_is_background_where_nothing_is_annotated():
    assert BACKGROUND not in ViewConcepts(image_view()).named(ATTRIBUTES, pairs=True)


@pytest.mark.parametrize(
    ("annotations", "message"),
    [
        ({"objects": "a dog"}, "list of dictionaries"),
        ({"objects": ["a dog"]}, "list of dictionaries"),
        ({"objects": [{"color": "red"}]}, "a box or a mask"),
    ],
)
def test_annotations_of_another_form_are_refused(annotations: dict, message: str):
    view = image_view()
    view.sample.annotations.update(annotations)
    with pytest.raises(ValueError, match=message):
        ViewConcepts(view)


def test_concepts_survive_a_file():
    pair = Concept("image", (("color", "red"), ("place", "top left")))
    for concept in (BACKGROUND, word("red"), pair):
        assert built(Concept, packed(concept, "", {}), {}) == concept
    assert str(pair) == "red at the top left"
    assert str(Concept("image", (("image row", "top"),))) == "the image's top"


DOG = {"box": (0, 0, 8, 8), "category": "dog"}
CAT = {"box": (16, 16, 24, 24), "category": "cat"}


# What is chosen -----------------------------------------------------------------------------------


def at(*cells: int, level: float = 10.0) -> np.ndarray:
    values = np.zeros(64)
    values[list(cells)] = level
    return values


def test_any_sample_with_boxes_and_categories_will_do():
    where = at(0, 1, 8, 9)
    found = concepts()(exemplars(*((image_view(DOG, CAT, number=i), where) for i in range(4))))
    assert [str(term.concept) for term in found.terms] == ["dog"]
    assert found.text == "patches: dog"
    assert found.terms[0].level == 10.0
    assert found.elsewhere["image"] == 0.0


def test_terms_are_joined_while_the_overlap_grows():
    where = at(0, 1, 8, 9, 36, 37, 44, 45)
    some = exemplars(*((image_view(DOG, CAT, number=i), where) for i in range(4)))
    assert concepts()(some).text == "patches: any object"  # which is all of it, in one term
    others = [{"box": (24, y, 32, y + 8), "category": "cow"} for y in (0, 8, 24)]
    some = exemplars(*((image_view(DOG, CAT, *others, number=i), where) for i in range(4)))
    assert {str(term.concept) for term in concepts()(some).terms} == {"dog", "cat"}
    assert len(concepts(max_terms=1)(some).terms) == 1
    assert len(concepts(margin=0.9)(some).terms) == 1


def test_a_pair_is_chosen_only_if_it_fits_better():
    red_dog = {"box": (0, 0, 8, 8), "color": "red", "category": "dog"}
    red_cat = {"box": (16, 16, 24, 24), "color": "red", "category": "cat"}
    blue_dog = {"box": (16, 0, 24, 8), "color": "blue", "category": "dog"}
    views = [image_view(red_dog, red_cat, blue_dog, number=i) for i in range(4)]
    some = exemplars(*((view, at(0, 1, 8, 9)) for view in views))
    assert [str(t.concept) for t in concepts()(some).terms] == ["red dog"]
    alone = [image_view(red_dog, number=i) for i in range(4)]
    some = exemplars(*((view, at(0, 1, 8, 9)) for view in alone))
    assert len(concepts()(some).terms[0].concept.parts) == 1


def test_a_concept_of_too_few_samples_is_not_named():
    rare, common = text_view("a", "red", "cat"), text_view("a", "blue", "cat")
    some = exemplars(*((view, [0, 10, 0]) for view in (rare, common, common, common)))
    named = {c["concept"] for c in concepts(shares=[0.5])(some).details["fit"][1]["candidates"]}
    assert "“blue”" in named
    assert "“red”" not in named


def test_words_of_an_attribute_are_a_concept():
    objects = [{"box": (0, 0, 1, 1), "color": color} for color in ("red", "blue", "green", "cyan")]
    said = [("red", "cat"), ("blue", "dog"), ("green", "cow"), ("cyan", "cat")]
    views = [text_view("a", *words, objects=objects) for words in said]
    found = concepts(shares=[0.5])(exemplars(*((view, [0, 10, 0]) for view in views)))
    assert str(found.terms[0].concept) == "words for color"


def test_what_fits_worse_than_the_threshold_is_nothing():
    view = text_view(*"abcdefghij", *"klmnopqrst")
    some = exemplars(*((view, np.eye(20)[i]) for i in range(3)))
    found = concepts(least_iou=0.99)(some)
    assert found.text == ""
    assert found.terms == ()
    assert found.elsewhere == {"image": 0.0, "text": 0.0}


def test_what_hardly_activates_is_called_weak():
    image = image_view(DOG)
    both = SampleView(
        number=0,
        sample=image.sample,
        kinds=(*image.kinds, "text", "text"),
        tokens=(*image.tokens, "a", "dog"),
        roles=(*image.roles, "prompt", "prompt"),
        image_index=np.append(image.image_index, [-1, -1]),
        boxes=np.concatenate([image.boxes, np.full((2, 4), np.nan)]),
    )
    values = np.append(at(0, 1, 8, 9, level=2.5), [0.0, 10.0])
    some = exemplars(*((both, values) for _ in range(3)))
    assert concepts()(some).text == "tokens: “dog”; weakly patches: dog"
    assert concepts(least_activation=3)(some).text == "tokens: “dog”"


def test_the_defaults_are_those_of_network_dissection():
    assert LEAST_IOU == 0.04
    assert SHARES[0] == 0.005
    assert concepts().parameters["least_iou"] == 0.04
    assert concepts().parameters["least_activation"] == 2.0  # that of "Deciphering"


@pytest.mark.parametrize(
    "wrong",
    [
        {"shares": []},
        {"shares": [0.0]},
        {"shares": [1.0]},
        {"max_terms": 0},
        {"least_samples": 0},
        {"least_iou": -0.1},
        {"cover": 2.0},
        {"least_activation": 10},
    ],
)
def test_numbers_out_of_range_are_refused(wrong: dict):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        concepts(**wrong)


@pytest.mark.usefixtures("unchecked")
def test_one_text_is_no_list_of_attributes():
    with pytest.raises(TypeError, match="put it in a list"):
        concepts(attributes="color")


def test_explanations_survive_a_file(gathered: Gathered, plants: Planted):
    found = concepts()(gathered.explained[plants.both])
    again = built(Explanation, packed(found, "", {}), {})
    assert (again.text, again.terms) == (found.text, found.terms)
    assert again.elsewhere == found.elsewhere
    assert again.details == found.details
