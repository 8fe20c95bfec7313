"""The demo's page in a browser: it draws its figures, shows text as text and asks for nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.fake_critical import result
from tests.test_report import ATTACK, html, prepared
from tests.tiny import Tiny
from vlm_lens.report.study import AnswerStudy, study_answer


@pytest.fixture(scope="module")
def study(llava: Tiny) -> AnswerStudy:
    return study_answer(llava.model, prepared(llava), top=16, seed=3)


@pytest.mark.full
def test_the_demos_page_draws_its_figures_and_opens_the_rest(
    offline: Callable[..., Any], study: AnswerStudy, tmp_path: Path
):
    path = tmp_path / "report.html"
    path.write_text(html(study, collapse=result(), about="16 questions."), encoding="utf-8")
    page = offline(path)
    page.wait_for_selector(".main-svg")
    rest = page.locator("details").first
    row = rest.locator("tr").last
    assert not row.is_visible()
    rest.locator("summary").click()
    assert row.is_visible()
    assert row.locator("td").first.inner_text() == "16"


def test_what_is_asked_and_answered_is_text(
    offline: Callable[..., Any], study: AnswerStudy, tmp_path: Path
):
    outcomes = [replace(outcome, answer=ATTACK) for outcome in study.outcomes]
    path = tmp_path / "report.html"
    path.write_text(html(replace(study, outcomes=outcomes), model_name=ATTACK), encoding="utf-8")
    page = offline(path)
    assert page.locator("dd.answer").inner_text() == ATTACK
    assert page.locator("img[src='x']").count() == 0
