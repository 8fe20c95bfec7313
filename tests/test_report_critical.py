"""The page of a search: it says what was found, whatever that is, escapes it, and asks nothing."""

from __future__ import annotations

import math
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from tests.fake_critical import PROMPTS, result
from tests.page import Page, assert_self_contained
from vlm_lens.analyses.comparison import Comparison
from vlm_lens.analyses.critical import CriticalNeurons
from vlm_lens.masking.measurement import Measurement, Stages
from vlm_lens.pages.tables import Table, of_frame, of_parameters, written
from vlm_lens.plots.page import DRAW, as_json
from vlm_lens.report.collapse import render_critical
from vlm_lens.report.measured import measurements, stages
from vlm_lens.report.words import headline, sentences

ATTACK = "<script>alert(1)</script></script>\"'><img src=x onerror=alert(2)>"
CHROMIUM = shutil.which("chromium")


def best(n: int = 3, **columns: Any) -> pd.DataFrame:
    frame = result().ranking[:n].to_dataframe().assign(score=[0.5 / (i + 1) for i in range(n)])
    return frame.assign(**columns)


def html(found: CriticalNeurons, **options: Any) -> str:
    given = {"best": best(), "model_name": "tiny", "command": "vlm-lens can --n 4"}
    return render_critical(found, **{**given, **options})


def curve(*ratios: float, **more: float) -> tuple[Measurement, ...]:
    """A curve that collapses where the ratio is at least 10."""
    return tuple(
        Measurement(k, {"perplexity_ratio": ratio, "agreement": 1 / (k + 1), **more}, ratio >= 10)
        for k, ratio in enumerate(ratios)
    )


def told(k: int | None, onset: int | None, *ratios: float, **changes: Any) -> str:
    """Headline and sentences of a result with such a curve."""
    given = {"stages": Stages(onset, k, "rule"), "curve": curve(*ratios), "sizes": {}, **changes}
    found = result(k=None, ks=(0, 1, 2, 4), onset=None, ranking=result().ranking[:4], **given)
    found = replace(found, k=k)
    return "\n".join([headline(found), *sentences(found)])


# In words -----------------------------------------------------------------------------------------


def test_a_gradual_collapse_is_told_as_such() -> None:
    text = told(3, 1, 1.0, 2.0, 8.0, 12.0)
    assert text.startswith("shapes-llava collapses without its 3 best-ranked neurons")
    assert "perplexity is 12 times that of the whole model, and 25% of its answers are left" in text
    assert "Degradation begins at k = 1: collapse takes 3 times as many neurons." in text
    assert "Neuron 3 of the ranking takes perplexity from 8 to 12 times" in text
    assert "sudden" not in text


def test_a_collapse_at_once_is_told_as_such() -> None:
    text = told(1, 1, 1.0, 500.0)
    assert "without its best-ranked neuron" in text
    assert "Degradation begins at the same k = 1: no stage of it was seen before." in text
    assert "from 1 to 500 times" in text
    assert text.endswith("It is in the language model (of 256).")
    assert "Without it perplexity" in text


def test_no_collapse_is_told_as_such() -> None:
    text = told(None, 2, 1.0, 2.0, 8.0)
    assert text.startswith("shapes-llava does not collapse without its 2 best-ranked neurons")
    assert "Degradation begins at k = 2." in text
    assert "critical neuron" not in text
    assert "Nor does it degrade" in told(None, None, 1.0, 1.0)


def test_what_is_not_finite_is_told_as_such() -> None:
    text = told(2, 1, 1.0, 3.0, math.inf)
    assert "perplexity is ∞ times" in text
    assert "from 3 to ∞ times" in text


def test_answers_that_the_clean_model_would_not_give_are_not_counted() -> None:
    """Such as texts, of which hardly any model writes every word by itself."""
    text = told(None, None, 1.0, 1.2, curve=curve(1.0, 1.2, agreement=0.0))
    assert "answers are left" not in text


def test_places_are_told_most_first() -> None:
    found = result(k=12)
    [where] = [sentence for sentence in sentences(found) if sentence.startswith("Of the")]
    counts = found.neurons.count_by("component")
    first = max(counts, key=lambda name: counts[name])
    assert where.startswith(f"Of the 12 critical neurons {counts[first]} are in the")
    assert where.count(" are ") == 1
    assert f"of {sum(found.sizes.values()):,}" in headline(found)


# Tables -------------------------------------------------------------------------------------------


def test_the_stages_are_those_of_the_result() -> None:
    found = result(k=12, onset=7)
    names = [row[:2] for row in stages(found).rows]
    assert names == [
        ["clean", "0"],
        ["degradation begins", "7"],
        ["just before", "11"],
        ["collapse", "12"],
        ["largest k", "16"],
    ]
    together = stages(result(k=12, onset=12)).rows
    assert ["degradation and collapse", "12"] in [row[:2] for row in together]
    none = stages(result(k=None, ks=(0, 1, 8), onset=None)).rows
    assert [row[:2] for row in none] == [["clean", "0"], ["largest k", "8"]]


def test_measurements_tell_not_measured_from_not_a_number() -> None:
    metrics = {"perplexity": math.inf, "own_perplexity": math.nan}
    given = (Measurement(0, {"perplexity": 1.5}), Measurement(1, metrics, True))
    found = result(k=1, curve=given, onset=None)
    assert measurements(found).rows == [["0", "–", "1.5", "–"], ["1", "yes", "∞", "NaN"]]


def test_frames_become_text() -> None:
    frame = pd.DataFrame(
        {
            "a_name": ["<b>", "c"],
            "k*": pd.array([1200, None], dtype="Int64"),
            "ok": pd.array([True, None], dtype="boolean"),
            "x": [0.123456, math.nan],
        }
    )
    table = of_frame(frame)
    assert table.heads == ["a name", "k*", "ok", "x"]
    assert table.rows == [["<b>", "1,200", "yes", "0.1235"], ["c", "–", "–", "–"]]
    assert table.numbers == [False, True, False, True]
    assert str(table).splitlines()[1] == "<b>     1,200  yes  0.1235"


def test_parameters_are_all_there() -> None:
    given = {"a": {"b": {"c": 1}, "d": []}, "e": [1, "x"], "f": None, "g": {}, "h": True}
    rows = of_parameters(given).rows
    assert rows == [
        *(["a · b · c", "1"], ["a · d", "–"], ["e", "1, x"], ["f", "–"], ["g", "–"], ["h", "yes"]),
    ]


def test_written_values() -> None:
    values = [0, 12345, -math.inf, math.nan, 1e-9, "text", False]
    texts = ["0", "12,345", "−∞", "NaN", "1e-09", "text", "no"]
    assert [written(value) for value in values] == texts
    assert str(Table(["k"], [["1"], ["10"]], [True])) == " k\n 1\n10"


# The page -----------------------------------------------------------------------------------------


def test_the_page_shows_what_was_found() -> None:
    found = result(k=12, notes=("the curve is not monotone",))
    table = Comparison("Against others", {"CAN": found, "random": result(k=None, ks=(0, 16))})
    shown = Page(html(found, comparisons=[table]))
    assert_self_contained(shown)
    said = [headline(found), *sentences(found), *found.notes, found.stages.rule]
    for text in (*said, *PROMPTS, "Against others", "random", "vlm-lens can --n 4", "torch 2"):
        assert " ".join(text.split()) in shown.text, text
    for row in measurements(found).rows:
        assert " ".join(row) in shown.text
    for parameter in found.parameters:
        assert f" {parameter} " in shown.text
    assert len(shown.figures) == 3


def test_the_figures_are_those_of_the_result() -> None:
    found = result(k=12)
    drawn, where = Page(html(found)).figures
    assert drawn["data"][0]["name"] == "perplexity"
    assert drawn["data"][0]["x"][-1] == 16
    assert sum(1 for trace in where["data"] if trace["type"] == "heatmap") == 3


def test_without_critical_neurons_the_best_ranked_are_shown() -> None:
    shown = Page(html(result(k=None, ks=(0, 1, 16), onset=None)))
    assert "the 16 best-ranked neurons sit" in shown.figures[1]["layout"]["title"]["text"]


def test_the_counts_of_pcicn_are_both_there() -> None:
    found = result(method="PCICN", parameters={"n_entries": 1234})
    shown = Page(html(found))
    assert "Distinct channels 12 Entries of the list 1,234" in " ".join(shown.text.split())


def test_text_from_outside_is_only_text() -> None:
    parameters = {ATTACK: [ATTACK], "collapse": [f"{ATTACK} >= 10"], "model": ATTACK}
    answers = [tuple(ATTACK for _ in PROMPTS)] * 13
    found = result(method=ATTACK, notes=(ATTACK,), parameters=parameters)
    found = replace(
        found,
        prompts=tuple(ATTACK for _ in PROMPTS),
        references=tuple(ATTACK for _ in PROMPTS),
        stages=Stages(7, 12, ATTACK),
        curve=tuple(
            replace(m, answers=a, metrics={ATTACK: 1.0, **m.metrics})
            for m, a in zip(found.curve, answers, strict=True)
        ),
    )
    table = Comparison(ATTACK, {ATTACK: found, ATTACK + "2": found})
    page = html(
        found,
        comparisons=[table],
        best=best(token=ATTACK),
        model_name=ATTACK,
        command=ATTACK,
    )
    shown = Page(page)
    assert shown.count("img") == 0
    assert shown.count("script") == 2 + 3
    assert_self_contained(shown)
    assert shown.text.count(ATTACK) > 10
    assert all("<" not in content for kind, content in shown.scripts if kind is not None)


def test_figures_cannot_end_their_script() -> None:
    import plotly.graph_objects as go

    text = "</script><!--<script>\u2028"
    written = as_json(go.Figure(layout={"title": {"text": text}}))
    assert "<" not in written
    [drawn] = Page(f'<script type="application/json">{written}</script>').figures
    assert drawn["layout"]["title"]["text"] == text


def test_no_button_uploads_a_figure() -> None:
    assert "showSendToCloud: false" in DRAW


@pytest.mark.full
@pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium")
def test_a_browser_draws_the_figures_and_runs_nothing_else(tmp_path: Path) -> None:
    """The policy names the two scripts by their checksums; one more does not run."""
    intruder = "<script>document.body.dataset.intruder = 'ran'</script>"
    path = tmp_path / "report.html"
    path.write_text(html(result()).replace("<h1>", f"{intruder}<h1>"), encoding="utf-8")
    options = ("--headless", "--no-sandbox", "--disable-gpu", "--dump-dom")
    ended = subprocess.run(
        [str(CHROMIUM), *options, "--virtual-time-budget=3000", f"--user-data-dir={tmp_path}/c"]
        + [path.as_uri()],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert ended.stdout.count('class="main-svg"') >= 2
    assert "collapse at k = 12" in ended.stdout
    assert 'data-intruder="ran"' not in ended.stdout
