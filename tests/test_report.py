"""The report says what was found, escapes what it was given, and asks for nothing."""

from __future__ import annotations

import re
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.fake_critical import result
from tests.families import build
from tests.page import Page, assert_self_contained
from tests.tiny import Tiny, picture
from vlm_lens import HookedVLM
from vlm_lens.analyses import miner
from vlm_lens.analyses.explanations import Explanations
from vlm_lens.data import Sample
from vlm_lens.inputs import Inputs
from vlm_lens.pages.words import listing
from vlm_lens.pages.write import check_target, write_report
from vlm_lens.report import demo_modalities
from vlm_lens.report.demo_collapse import MAX_K, search_collapse
from vlm_lens.report.demo_explained import explain_candidates
from vlm_lens.report.demo_modalities import Modalities, study_modalities
from vlm_lens.report.page import render_report
from vlm_lens.report.study import IMAGE_SIDE_SHOWN, AnswerStudy, check_study, study_answer
from vlm_lens.report.words import headline, sentences
from vlm_lens.shapes_llava.world import make_samples

ATTACK = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>"


@pytest.fixture(scope="module")
def study(llava: Tiny) -> AnswerStudy:
    return study_answer(llava.model, prepared(llava), top=4, seed=3)


def prepared(tiny: Tiny) -> Inputs:
    image = picture(1, size=(50, 34))
    return tiny.model.prepare(images=image, text="<image> what color is the circle ?")


def page(study: AnswerStudy, **options: Any) -> Page:
    return Page(html(study, **options))


def html(study: AnswerStudy, **options: Any) -> str:
    return render_report(study, **{"model_name": "tiny", "command": "vlm-lens demo", **options})


# The study ------------------------------------------------------------------------------------


def test_the_neurons_are_those_with_the_largest_direct_effects(study: AnswerStudy) -> None:
    effects = [view.direct_effect for view in study.language_neurons]
    assert len(effects) == 4
    assert effects == sorted(effects, reverse=True)
    assert {view.neuron.component for view in study.language_neurons} == {"language_model"}
    totals = [view.first_order_effect for view in study.image_neurons]
    assert len(totals) == IMAGE_SIDE_SHOWN
    assert totals == sorted(totals, reverse=True)
    components = {view.neuron.component for view in study.image_neurons}
    assert components <= {"vision_encoder", "projector"}
    assert (study.n_language_neurons, study.n_image_neurons) == (3 * 64, 3 * 48 + 32)


def test_the_outcomes_are_those_of_real_ablations(study: AnswerStudy, llava: Tiny) -> None:
    inputs = prepared(llava)
    clean, without, control = study.outcomes
    logits = llava.model(inputs)[0, -1].detach()
    token = int(logits.argmax())
    assert study.target == llava.model.to_single_str_token(token)
    assert clean.logit == pytest.approx(logits[token].item())
    assert clean.probability == pytest.approx(logits.softmax(-1)[token].item())
    assert clean.answer == llava.model.generate(inputs)
    zero = [
        (view.neuron.name, lambda act, hook, i=view.neuron.index: zeroed(act, i))  # noqa: ARG005
        for view in study.language_neurons
    ]
    ablated = llava.model.run_with_hooks(inputs, fwd_hooks=zero)[0, -1]
    assert without.logit == pytest.approx(ablated[token].item(), rel=1e-4)
    assert control.logit not in (clean.logit, without.logit)


def zeroed(activations: torch.Tensor, index: int) -> torch.Tensor:
    activations = activations.clone()
    activations[..., index] = 0
    return activations


def test_activations_are_those_of_prompt_and_answer(study: AnswerStudy, llava: Tiny) -> None:
    tokens = llava.model.generate(prepared(llava), return_type="tokens", do_sample=False)
    replay = prepared(llava).extend(tokens)
    _, cache = llava.model.run_with_cache(replay)
    n_prompt = study.inputs.shape[1]
    for view in study.language_neurons:
        expected = cache[view.neuron.name][0, :, view.neuron.index].numpy()
        np.testing.assert_allclose(view.over_tokens, expected, atol=1e-4)
        over_image = replay.token_map[0].grid_values(expected)
        np.testing.assert_allclose(view.over_image, over_image, atol=1e-4)
        assert view.activation == pytest.approx(float(expected[n_prompt - 1]), abs=1e-4)
        assert view.limit == pytest.approx(np.abs(expected[1:]).max(), rel=1e-3)  # no <bos>
    for view in study.image_neurons:
        patches = cache[view.neuron.name][0, -16:, view.neuron.index].numpy()
        np.testing.assert_allclose(view.over_image, patches.reshape(4, 4), atol=1e-4)


def test_works_for_every_pairing(tiny: Tiny) -> None:
    study = study_answer(tiny.model, prepared(tiny), top=2)
    assert page(study).count("article") == 2 + IMAGE_SIDE_SHOWN


@pytest.mark.parametrize(
    ("kind", "top", "message"),
    [
        ("text", 4, r"one prompt with one image, got prompts with \[0\]"),
        ("images", 4, r"prompts with \[2\] images"),
        ("batch", 4, r"\[1, 0, 1\]"),
        ("image", 0, "1 to 32 neurons"),
        ("image", 33, "got 33"),
    ],
)
def test_refuses_what_it_cannot_study(llava: Tiny, kind: str, top: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        study_answer(llava.model, llava.inputs(kind), top=top)


@pytest.mark.parametrize("family", ["blip2-opt", "blip2-t5"])
def test_refuses_models_whose_image_it_cannot_draw(family: str) -> None:
    hf_model, processor = build(family)
    model = HookedVLM(hf_model, processor=processor)
    inputs = model.prepare(images=picture(0), text="what color ?")
    with pytest.raises(ValueError, match="lie on no grid"):
        check_study(model, inputs, top=1)


# The page -------------------------------------------------------------------------------------


def test_the_page_shows_what_was_found(study: AnswerStudy) -> None:
    shown = page(study, model_name="my-model", command="vlm-lens demo --seed 3")
    for view in [*study.language_neurons, *study.image_neurons]:
        assert str(view.neuron) in shown.text
    for outcome in study.outcomes:
        assert outcome.answer in shown.text
        assert f"{outcome.logit:.2f}" in shown.text
        assert f"{outcome.probability:.1%}" in shown.text
        assert outcome.name in shown.text
    for text in ("my-model", "vlm-lens demo --seed 3", "seed 3", "torch 2", "<image> ×16, peak"):
        assert text in shown.text, text


def test_every_patch_of_every_heat_map_lies_in_its_box(study: AnswerStudy) -> None:
    shown, grid = page(study), study.token_map.grid()
    n_views = len(study.language_neurons) + len(study.image_neurons)
    cells = [given for tag, given in shown.elements if tag == "rect" and "fill-opacity" in given]
    assert len(cells) == 16 * n_views
    for place, cell in enumerate(cells[:16]):
        x, y, width, height = (float(cell[name] or 0) for name in ("x", "y", "width", "height"))
        box = grid.box(*divmod(place, 4))
        assert (x, y, x + width, y + height) == pytest.approx(box, abs=0.02)
    opacities = [float(cell["fill-opacity"] or 0) for cell in cells]
    assert 0 <= min(opacities) < max(opacities) <= 0.8


def test_what_the_model_does_not_see_is_marked(study: AnswerStudy) -> None:
    """A 50x34 image is cropped on two sides; a square one is not."""
    assert "the model does not see this part" in page(study).text


def test_an_image_seen_whole_has_no_mark(llava: Tiny) -> None:
    whole = study_answer(llava.model, llava.inputs("image"), top=2)
    assert "does not see" not in page(whole).text


def test_pictures_have_descriptions(study: AnswerStudy) -> None:
    pictures = [given for tag, given in page(study).elements if tag == "svg"]
    assert pictures
    assert all(given.get("aria-label") for given in pictures)


def test_nothing_is_loaded_and_nothing_runs(study: AnswerStudy) -> None:
    text, shown = html(study), page(study)
    assert_self_contained(shown)
    assert shown.count("script") == 0
    assert not re.search(r"https?://|@import|url\(", text)


def test_the_collapse_of_the_model_is_on_the_page(study: AnswerStudy) -> None:
    found = result(k=12)
    shown = page(study, collapse=found, about="Measured on made-up questions.")
    assert_self_contained(shown)
    for text in (headline(found), *sentences(found), found.stages.rule, "made-up questions"):
        assert text in shown.text, text
    assert "masked best-ranked first, at most 16 of them" in shown.text
    curve, where = shown.figures
    assert curve["data"][-1]["x"][-1] == 16
    assert {trace["type"] for trace in where["data"]} == {"heatmap"}


def test_collapse_is_searched_on_what_is_given(llava: Tiny) -> None:
    sample = Sample(images=[picture(0)], text="what color is the circle ?")
    steps: list[str] = []
    found = search_collapse(llava.model, [sample], on_step=steps.append)
    assert found.prompts == (sample.text,)
    assert found.parameters["max_k"] <= MAX_K
    assert steps[0].endswith("that 1 answer depends on")
    assert {neuron.component for neuron in found.ranking} == {
        *("vision_encoder", "projector", "language_model")
    }


@pytest.fixture(scope="module")
def modalities(llava: Tiny) -> Modalities:
    return study_modalities(llava.model, make_samples(n=4))


@pytest.fixture(scope="module")
def explained(llava: Tiny, study: AnswerStudy) -> Explanations:
    return explain_candidates(llava.model, study, make_samples(n=12))


def test_the_neurons_of_each_modality_are_on_the_page(
    study: AnswerStudy, modalities: Modalities, llava: Tiny
) -> None:
    shown = page(study, modalities=modalities)
    assert_self_contained(shown)
    expected = miner.select(miner.score(llava.model, make_samples(n=4)), ratio=0.02)
    assert modalities.selected == expected
    counts = listing([f"{len(some)} for {name}" for name, some in expected.items()])
    assert "of the language model's 192 neurons are selected, as many for each" in shown.text
    assert counts in shown.text
    table = demo_modalities.view_of(modalities).counts
    assert table.heads == ["layer", "text", "special", "image"]
    totals = [sum(map(int, column)) for column in zip(*table.rows, strict=True)]
    assert totals[1:] == [len(some) for some in expected.values()]
    [figure] = shown.figures
    assert {trace["name"] for trace in figure["data"]} == {"text", "special", "image"}


def test_the_best_explained_neuron_is_on_the_page(
    study: AnswerStudy, explained: Explanations
) -> None:
    shown = page(study, explained=explained)
    assert_self_contained(shown)
    best = max(explained.neurons, key=lambda one: one.score.pearson)
    sheet = html(study, explained=explained).split('class="card sheet"')[1]
    assert f"<b>{best.neuron}</b>" in sheet
    assert escape(best.explanation.text or "no explanation was found") in sheet
    said = f"the correlation is {best.score.pearson:.2f}".replace("-", "−")
    assert said in shown.text
    place = list(explained).index(best.neuron)
    chance = f"and {explained.shuffled[:, place].mean():.2f} with those of".replace("-", "−")
    assert chance in shown.text
    assert all(str(neuron) in shown.text for neuron in explained)
    assert html(study, explained=explained).count('class="card sheet"') == 1
    asked = {view.neuron for view in [*study.language_neurons, *study.image_neurons]}
    assert {*explained, *explained.skipped} == asked


def test_what_cannot_be_told_is_left_out(study: AnswerStudy) -> None:
    nothing = Explanations((), np.zeros((0, 0)))
    text = page(study, explained=nothing, left_out=f"Left out: {ATTACK}").text
    assert "react to?" not in text
    assert "Which modality" not in text
    assert f"Left out: {ATTACK}" in text


def test_text_from_outside_is_only_text(study: AnswerStudy) -> None:
    tokens = [*study.token_map.tokens[:-1], ATTACK]
    hostile = replace(
        study,
        inputs=replace(study.inputs, texts=[ATTACK]),
        token_map=replace(study.token_map, tokens=tokens),
        target=ATTACK,
        outcomes=[replace(outcome, answer=ATTACK) for outcome in study.outcomes],
    )
    given = {"model_name": ATTACK, "command": ATTACK}
    shown = page(hostile, **given)
    assert shown.count("script") == shown.count("img") == 0
    assert "<script" not in html(hostile, **given)
    assert ATTACK in shown.text
    collapse = result(notes=(ATTACK,), method=ATTACK, parameters={"model": ATTACK})
    shown = page(hostile, collapse=collapse, about=ATTACK, **given)
    assert shown.count("script") == 2 + 2  # plotly and what calls it, and two figures
    assert shown.count("img") == 0


def test_the_same_study_gives_the_same_page(
    study: AnswerStudy, llava: Tiny, modalities: Modalities, explained: Explanations
) -> None:
    again = study_answer(llava.model, prepared(llava), top=4, seed=3)
    found = {"modalities": modalities, "explained": explained}
    anew = {
        "modalities": study_modalities(llava.model, make_samples(n=4)),
        "explained": explain_candidates(llava.model, again, make_samples(n=12)),
    }
    assert html(again, collapse=result(), **anew) == html(study, collapse=result(), **found)


def test_an_empty_answer_is_shown_as_such(study: AnswerStudy) -> None:
    silent = [replace(outcome, answer="") for outcome in study.outcomes]
    assert "(nothing)" in page(replace(study, outcomes=silent)).text


# The file -------------------------------------------------------------------------------------


def test_a_report_is_replaced_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text("old")
    check_target(path)
    write_report("new ×", path)
    assert path.read_text(encoding="utf-8") == "new ×"
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_write_leaves_the_old_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "report.html"
    path.write_text("old")

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_report("new", path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_targets_that_cannot_be_written_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(NotADirectoryError, match="there is no folder"):
        check_target(tmp_path / "missing" / "report.html")
    with pytest.raises(IsADirectoryError, match="it is a folder"):
        check_target(tmp_path)
    monkeypatch.setattr("os.access", lambda *_: False)  # tests may run as root, who may write
    with pytest.raises(PermissionError, match="no permission"):
        check_target(tmp_path / "report.html")
