"""Questions: an independent reader of the question text must come to the same answer."""

import re
from collections import Counter
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlm_lens.shapes_llava.questions import QUESTIONS, Question, ask, describe, tell
from vlm_lens.shapes_llava.scenes import Scene, sample_scene
from vlm_lens.shapes_llava.words import COLORS, PLACES, vocabulary

NUMBERS = ["zero", "one", "two", "three", "four"]
Fact = tuple[str, str, str]  # color, name, place


def facts_of(scene: Scene) -> list[Fact]:
    return [(thing.color, thing.name, PLACES[thing.place]) for thing in scene.objects]


def only(facts: list[Fact]) -> Fact:
    assert len(facts) == 1, f"the reference is not unambiguous: {facts}"
    return facts[0]


def matches(fact: Fact, phrase: str) -> bool:
    """Whether "red circle", "circle", "red object", "shapes", ... means this object."""
    color, name, _ = fact
    kind = "digit" if name.isdigit() else "shape"
    for word in phrase.split():
        singular = {"crosses": "cross"}.get(
            word, word.removesuffix("s") if word != "cross" else word
        )
        if word in COLORS and word != color:
            return False
        if word not in COLORS and singular not in ("object", kind, name):
            return False
    return True


def reference(facts: list[Fact], text: str) -> str:
    """Answers a question about facts, knowing nothing of how it was made."""
    if m := re.fullmatch(r"what color is the object at the (.+) \?", text):
        return only([f for f in facts if f[2] == m[1]])[0]
    if m := re.fullmatch(r"what color is the (\w+) \?", text):
        return only([f for f in facts if f[1] == m[1]])[0]
    if m := re.fullmatch(r"what (shape|digit) is at the (.+) \?", text):
        fact = only([f for f in facts if f[2] == m[2]])
        assert fact[1].isdigit() == (m[1] == "digit")
        return fact[1]
    if m := re.fullmatch(r"what (shape|digit) is the (\w+) object \?", text):
        fact = only([f for f in facts if f[0] == m[2]])
        assert fact[1].isdigit() == (m[1] == "digit")
        return fact[1]
    if m := re.fullmatch(r"where is the (.+) \?", text):
        return only([f for f in facts if matches(f, m[1])])[2]
    if m := re.fullmatch(r"how many (.+) are there \?", text):
        return NUMBERS[sum(matches(f, m[1]) for f in facts)]
    if m := re.fullmatch(r"is there a (.+) \?", text):
        return "yes" if any(matches(f, m[1]) for f in facts) else "no"
    m = re.fullmatch(r"is the (\w+ \w+) (left of|right of|above|below) the (\w+ \w+) \?", text)
    assert m, f"unknown question: {text}"
    first = only([f for f in facts if matches(f, m[1])])
    second = only([f for f in facts if matches(f, m[3])])
    return "yes" if beyond(first[2], m[2], second[2]) else "no"


def beyond(first: str, relation: str, second: str) -> bool:
    side = {"left of": ("left", "right"), "right of": ("right", "left")}
    side |= {"above": ("top", "bottom"), "below": ("bottom", "top")}
    near, far = side[relation]
    rank = [(near in place.split()) - (far in place.split()) for place in (first, second)]
    return rank[0] > rank[1]


def retell(text: str) -> list[Fact]:
    """Reads the objects back from a told scene or a description."""
    found = re.findall(r"a (\w+) (\w+) at the ([a-z ]+?)(?= \.| and )", text)
    return [(color, name, place) for color, name, place in found]


@settings(max_examples=300, deadline=None)
@given(seed=st.integers(0, 2**32), category=st.sampled_from(sorted(QUESTIONS)))
def test_answers_are_right_and_references_unambiguous(seed: int, category: str) -> None:
    rng = Random(seed)
    scene = sample_scene(rng)
    question = ask(rng, category, scene)
    if question is not None:
        assert question.category == category
        assert reference(facts_of(scene), question.text) == question.answer


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_told_scenes_and_descriptions_name_every_object(seed: int) -> None:
    rng = Random(seed)
    scene = sample_scene(rng)
    told = tell(rng, scene)
    assert sorted(retell(told)) == sorted(facts_of(scene))
    description = describe(scene).answer
    assert retell(description) == facts_of(scene), "raster order"


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 2**32), category=st.sampled_from(sorted(QUESTIONS)))
def test_every_word_is_a_token(seed: int, category: str) -> None:
    rng, vocab = Random(seed), vocabulary()
    scene = sample_scene(rng)
    asked = [ask(rng, category, scene), describe(scene), describe(scene, modality="text")]
    texts = [tell(rng, scene), *(f"{q.text} {q.answer}" for q in asked if q)]
    assert {word for text in texts for word in text.split()} <= set(vocab)


def many(category: str, n: int = 3000, **scene: int) -> list[tuple[Scene, Question]]:
    rng, pairs = Random(0), []
    while len(pairs) < n:
        drawn = sample_scene(rng, **scene)
        question = ask(rng, category, drawn)
        if question is not None:
            pairs.append((drawn, question))
    return pairs


@pytest.mark.sampled
@pytest.mark.parametrize("category", ["existence", "relation"])
@pytest.mark.parametrize("n_objects", [2, 4])
def test_yes_and_no_are_balanced(category: str, n_objects: int) -> None:
    answers = Counter(q.answer for _, q in many(category, n_objects=n_objects))
    assert set(answers) == {"yes", "no"}
    assert 0.45 < answers["yes"] / answers.total() < 0.55


@pytest.mark.full
@pytest.mark.parametrize("relation", ["left of", "right of", "above", "below"])
def test_every_relation_is_balanced(relation: str) -> None:
    answers = Counter(q.answer for _, q in many("relation") if relation in q.text)
    assert 0.42 < answers["yes"] / answers.total() < 0.58


def test_many_absent_pairs_are_hard() -> None:
    """Colour and name of the question both occur, but on different objects."""
    hard = total = 0
    for scene, question in many("existence", n_objects=3):
        words = question.text.removeprefix("is there a ").removesuffix(" ?").split()
        if question.answer == "no" and len(words) == 2 and words[1] != "object":
            colors = {thing.color for thing in scene.objects}
            names = {thing.name for thing in scene.objects}
            hard += words[0] in colors and words[1] in names
            assert words[0] in colors or words[1] in names
            total += 1
    assert hard / total > 0.4


@pytest.mark.full
def test_counts_are_spread_over_the_possible_answers() -> None:
    answers = Counter(q.answer for _, q in many("count", n_objects=4))
    assert set(answers) == set(NUMBERS)
    assert min(answers.values()) / answers.total() > 0.08


@pytest.mark.parametrize("category", sorted(QUESTIONS))
def test_questions_point_at_the_objects_they_are_about(category: str) -> None:
    for scene, question in many(category, n=200):
        objects = [scene.objects[index] for index in question.about]
        if category == "count":
            assert NUMBERS[len(objects)] == question.answer
        elif category == "existence":
            assert bool(objects) == (question.answer == "yes")
        elif category == "relation":
            first, second = (f"{thing.color} {thing.name}" for thing in objects)
            assert question.text.startswith(f"is the {first} ")
            assert question.text.endswith(f" the {second} ?")
        else:
            [thing] = objects
            known = {"color": thing.color, "place": PLACES[thing.place]}
            assert known.get(category, thing.name) == question.answer


def test_a_scene_of_one_object_has_no_relation() -> None:
    assert ask(Random(0), "relation", sample_scene(Random(0), n_objects=1)) is None


def test_unknown_category_is_refused() -> None:
    with pytest.raises(KeyError, match="size"):
        ask(Random(0), "size", sample_scene(Random(0)))
