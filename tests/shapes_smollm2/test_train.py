"""The training: what is packed is what is asked one by one, and a stopped run goes on the same."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
import torch
from safetensors.torch import load_file

from tests.shapes_smollm2.conftest import needs_smollm2
from vlm_lens.shapes_llava.build import normalize
from vlm_lens.shapes_llava.draw import draw_images
from vlm_lens.shapes_llava.naming import label_object
from vlm_lens.shapes_llava.questions import Question
from vlm_lens.shapes_llava.scenes import sample_scene
from vlm_lens.shapes_smollm2 import train
from vlm_lens.shapes_smollm2.build import build_model
from vlm_lens.shapes_smollm2.comparing import Comparer, compare
from vlm_lens.shapes_smollm2.lessons import ask_all, image_lesson
from vlm_lens.shapes_smollm2.train import Learner, Recipe

pytestmark = [
    needs_smollm2,
    pytest.mark.filterwarnings("ignore::UserWarning"),
]
SHORT = Recipe(steps=2, images=1, tales=1, rank=2, warmup=1)


@pytest.fixture(scope="module")
def learner() -> Learner:
    return Learner(SHORT)


@pytest.mark.full
def test_a_packed_scene_has_the_losses_of_its_questions_one_by_one(learner: Learner):
    rng = Random(0)
    scene = sample_scene(rng)
    lesson = image_lesson(learner.tokenizer, scene, ask_all(rng, scene, relations=3, others=7))
    pixels = normalize(draw_images([scene]))
    with torch.no_grad():
        packed = train.lesson_losses(learner, [lesson], pixels)["answers"]
        total, weights = 0.0, 0.0
        prefix, pairs = lesson.item
        for question, answer in pairs:
            tokens = torch.tensor([[*prefix, *question, *answer]])
            with torch.autocast("cpu", dtype=torch.bfloat16):
                logits = learner.model(input_ids=tokens, pixel_values=pixels).logits[0].float()
            predicted = logits[-len(answer) - 1 : -1]
            losses = torch.nn.functional.cross_entropy(predicted, torch.tensor(answer))
            total += float(losses) * len(answer) ** 0.5
            weights += len(answer) ** 0.5
    assert float(packed) == pytest.approx(total / weights, rel=0.01)


def test_mentions_are_where_it_is_clear_what_is_asked_about(learner: Learner):
    rng = Random(1)
    scene = sample_scene(rng, n_objects=3)
    lesson = image_lesson(learner.tokenizer, scene, ask_all(rng, scene, relations=3, others=7))
    prefix, pairs = lesson.item
    tokens = [*prefix, *(token for pair in pairs for part in pair for token in part)]
    labels = {label_object(thing): thing for thing in scene.objects}
    assert lesson.mentions
    for position, label in lesson.mentions:
        assert label in labels
        word = learner.tokenizer.decode([tokens[position]]).strip()
        assert word in {"?", "Answer", ":", *"0123456789"} | set(" ".join(pieces_of(scene)).split())


def test_the_end_of_a_question_about_a_relation_compares_its_objects(learner: Learner):
    scene = sample_scene(Random(2), n_objects=2)
    first, second = scene.objects  # in raster order, so the first one is not below the other
    text = f"is the {first.color} {first.name} above the {second.color} {second.name} ?"
    question = Question("relation", text, "yes", (0, 1))
    lesson = image_lesson(learner.tokenizer, scene, [question])
    prefix, [(asked, _)] = lesson.item
    columns = 1 + (first.column > second.column) - (first.column < second.column)
    rows = 0 if first.row < second.row else 1
    ends = [len(prefix) + len(asked) - back for back in (3, 2, 1)]  # "?", " Answer", ":"
    assert lesson.compared == [(end, (columns, rows)) for end in ends]
    back = Question("relation", text, "no", (1, 0))
    assert image_lesson(learner.tokenizer, scene, [back]).compared[0][1] == (2 - columns, 2 - rows)


def test_a_scene_that_allows_no_question_about_one_object_has_losses_still(learner: Learner):
    scene = sample_scene(Random(0), n_objects=1)
    lesson = image_lesson(
        learner.tokenizer, scene, ask_all(Random(0), scene, relations=3, others=0)
    )
    found = train.lesson_losses(learner, [lesson], normalize(draw_images([scene])))
    assert set(found) <= {"words", "answers"}
    assert all(bool(loss.isfinite()) for loss in found.values())


def test_a_head_that_compares_learns_from_places(learner: Learner):
    rng = Random(0)
    scenes = [sample_scene(rng, n_objects=2).objects for _ in range(300)]
    labels = torch.tensor([compare(*pair) for pair in scenes])
    places = torch.tensor([[thing.row, thing.column] for pair in scenes for thing in pair])
    states = torch.nn.functional.one_hot(places, 3).float().reshape(300, 12)
    torch.manual_seed(0)
    comparer = Comparer(12)
    optimizer = torch.optim.Adam(comparer.parameters(), lr=0.1)
    for _ in range(100):
        optimizer.zero_grad()
        loss = comparer.loss(states, labels)
        loss.backward()
        optimizer.step()
    assert loss < 0.6  # and 2.2 where nothing is known


def pieces_of(scene) -> list[str]:
    return [f"{thing.color} {thing.name} {thing.phrase} object" for thing in scene.objects]


def test_only_connector_and_adapters_are_trained(learner: Learner):
    trained = {id(weight) for weight in learner.weights.values()}
    frozen = [w for w in learner.model.parameters() if id(w) not in trained]
    assert not any(weight.requires_grad for weight in frozen)
    assert {name.split(".")[0] for name in learner.release()} == {"connector", "adapters"}


@pytest.mark.full
def test_a_stopped_run_goes_on_as_if_it_had_not_been(tmp_path: Path):
    whole = Learner(SHORT)
    train.train(whole, SHORT, tmp_path / "whole")
    first = Learner(SHORT)
    train.train(first, SHORT, tmp_path / "parts", stop=1)
    second = Learner(SHORT)
    kept = load_file(tmp_path / "parts" / train.STATE)
    second.restore(kept)
    train.train(second, SHORT, tmp_path / "parts", start=int(kept["step"]))
    for name, weight in whole.weights.items():
        assert torch.equal(second.weights[name], weight), name
    shipped = build_model(tmp_path / "whole" / "connector.safetensors")
    merged = shipped.model.language_model.layers[3].self_attn.q_proj.weight
    plain = build_model(None).model.language_model.layers[3]
    assert not torch.equal(merged, plain.self_attn.q_proj.weight)
    assert torch.equal(
        shipped.model.language_model.layers[3].mlp.down_proj.weight, plain.mlp.down_proj.weight
    )


@pytest.mark.full
def test_a_run_with_another_seed_is_not_gone_on_with(
    learner: Learner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    train.keep(learner, tmp_path, 1, seed=3)
    monkeypatch.setattr("sys.argv", ["train", "--out", str(tmp_path)])
    with pytest.raises(SystemExit):
        train.main()


@pytest.mark.full
def test_a_run_can_begin_with_what_another_one_shipped(learner: Learner):
    shipped = {name: torch.full_like(weight, 0.5) for name, weight in learner.release().items()}
    other = Learner(SHORT)
    other.begin_with(shipped)
    assert all(bool((other.weights[name] == 0.5).all()) for name in shipped)


@pytest.mark.full
def test_layers_before_the_first_that_is_trained_stay_as_they_are():
    recipe = replace(SHORT, from_layer=28, dtype=torch.float32)
    learner = Learner(recipe)
    before = {name: weight.detach().clone() for name, weight in learner.weights.items()}
    for step in range(2):  # an adapter's second half is zero at first: nothing reaches the first
        found = train.losses(learner, Random(step), recipe)
        train.update(learner, torch.stack(list(found.values())).sum(), 1e-3, recipe)
    changed = {name for name, weight in learner.weights.items() if not before[name].equal(weight)}
    adapters = [f"adapters.{layer}.{p}_proj" for layer in (28, 29) for p in "qkvo"]
    heads = [f"namer.heads.{index}" for index in range(3)] + [
        f"comparer.heads.{index}" for index in range(2)
    ]
    expected = {f"{name}.{part}" for name in adapters for part in "ab"}
    assert changed == expected | {f"{name}.{part}" for name in heads for part in ("weight", "bias")}


def test_the_learning_rate_rises_stays_and_falls():
    recipe = Recipe(steps=100, warmup=10, falling=0.5, lr=1.0)
    rates = [train.learning_rate(step, recipe) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9:50] == [1.0] * 41
    assert rates[75] == pytest.approx(0.5)
    assert 0 < rates[-1] < 0.03
