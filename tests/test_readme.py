"""The README's examples run, and its tables are those of the code and of what was measured."""

from __future__ import annotations

import doctest
import json
import re
from pathlib import Path

import pytest

from benchmarks import findings, findings_real, findings_vlm, statistics
from benchmarks.findings_one_neuron import ONE, stored_tables
from benchmarks.report import readme_table
from vlm_lens.architectures.table import language_models, markdown, towers
from vlm_lens.shapes_llava import WEIGHTS
from vlm_lens.shapes_llava.evaluate import table

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
TASKS = ("image", "caption", "text")
ONE_NEURON = "One neuron ends a real model"
FINDINGS = ("Critical neurons, found and doubted", "Whose neuron is it, and what does it say")


@pytest.mark.full
def test_the_examples_print_what_the_readme_says():
    without_fences = re.sub(r"^```.*$", "", README.read_text(), flags=re.MULTILINE)
    examples = doctest.DocTestParser().get_doctest(without_fences, {}, "README", str(README), 0)
    result = doctest.DocTestRunner().run(examples)
    assert result.attempted > 10
    assert result.failed == 0


def test_the_accuracies_are_those_of_the_bundled_weights():
    assert table(json.loads((WEIGHTS / "accuracy.json").read_text())) in README.read_text()


def test_the_overheads_are_those_last_measured():
    measured = json.loads((ROOT / "benchmarks" / "overhead.json").read_text())
    assert readme_table(measured).strip() in README.read_text()


def test_the_findings_are_those_last_measured():
    titles = {findings.markdown(rows): name for name, rows in findings.stored_tables().items()}
    shown = [table for title in FINDINGS for table in _tables(_section(title))]
    assert [titles.get(table, table) for table in shown] == [*findings.IN_README]


def test_the_findings_on_the_real_model_are_those_last_measured():
    known = {}
    for measured in (findings_real, findings_vlm):
        tables = stored_tables(measured.STORED)
        assert list(tables) == list(measured.TABLES)
        known |= {findings.markdown(rows): title for title, rows in tables.items()}
    shown = [known.get(table, table) for table in _tables(_section(ONE_NEURON))]
    vlm = ["answers", "methods", "by component", "by matrix", "places"]
    assert shown == [*vlm, "by text", "against artefacts", "places"]


def test_the_real_model_collapses_without_one_neuron_and_its_controls_do_not():
    """What the README says in words."""
    text, vlm = (stored_tables(measured.STORED) for measured in (findings_real, findings_vlm))
    whole, one, *others = vlm["answers"]
    kinds = [name for name in whole if name != "set to zero"]
    assert all(one[kind] == 0 for kind in kinds)
    assert all(sum(row[k] for k in kinds) > 0.8 * sum(whole[k] for k in kinds) for row in others)
    found = [*text["by text"], *vlm["methods"]]
    assert {(row["first"], row["k*"]) for row in found} == {(str(ONE), 1)}
    controls = {row["search"]: row["k*"] for row in text["against artefacts"]}
    assert controls["first token left alone"] == 15
    assert all(k > 20 for name, k in controls.items() if name.startswith("same norm"))
    places = {row["the neuron"]: row["log10 of the ratio"] for row in text["places"]}
    assert places["zero at the first token alone"] > 3
    assert places["zero everywhere but at the first token"] < 0.05
    assert places["its mean of each: first token, others"] < 0.05
    somewhere = {row["zero at"]: sum(row[kind] for kind in kinds) for row in vlm["places"]}
    assert max(somewhere["the first token"], somewhere["`<img>`"]) < 0.05 * somewhere["no position"]
    others = ("`</img>`", "the image", "the question")
    assert min(somewhere[place] for place in others) > 0.95 * somewhere["no position"]
    of_vlm = {row["search"]: row["k*"] for row in vlm["against artefacts"]}
    assert {k for name, k in of_vlm.items() if name.startswith("same norm")} == {4}
    random = [row for row in text["against other rankings"] if row["search"].startswith("random")]
    assert [row["k*"] for row in random] == [None] * 3


def test_the_prose_says_what_was_found_besides():
    """Numbers of tables that are stored and have no room in the README."""
    found, text = findings.stored_tables(), " ".join(_section(FINDINGS[1]).split())
    sets = [row for row in found["modalities: overlap"] if row["share"] == 0.1]
    alike = [f"{row['jaccard'][0]:.2f}" for row in sets]
    [chance] = {f"{row['by chance'][0]:.2f}" for row in sets}
    assert f"(Jaccard {min(alike)} to {max(alike)}, not {chance})" in text
    cka = [f"{row['cka'][0]:.2f}" for row in found["modalities: hidden states"]]
    assert f"(linear CKA rises from {cka[0]} to {max(cka)}, and ends at {cka[-1]})" in text
    assert all(row["knn_mixing"][2] < 0.02 for row in found["modalities: hidden states"])
    [image] = [row for row in found["modalities: phenomena"] if row["modality"] == "image"]
    ends = [f"{image[f'distance at {end}'][0]:.2f}" for end in ("end", "input")]
    assert f"(cosine distance {ends[0]}, not {ends[1]})" in text
    assert image["probing"] == image["telomere"] == [0, 0, 0]
    assert f"{7 * image['special nearer'][0]:.0f}" == "2"
    same, median, farthest = (row["share of neurons"] for row in found["types: robustness"])
    assert f"one that of {farthest[0]:.0%}; with other samples {1 - same:.0%} change" in text
    assert median[0] == pytest.approx(1 / 3, abs=0.02)
    more = [row for row in found["modalities: masked, more"] if row["masked"] == "image"]
    assert all(row[task][0] >= row[f"random: {task}"][0] - 0.02 for row in more for task in TASKS)


def _section(title: str) -> str:
    [section] = re.findall(rf"^## {title}\n(.*?)^## ", README.read_text(), re.DOTALL | re.MULTILINE)
    return section


def _tables(text: str) -> list[str]:
    return [table.rstrip("\n") for table in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)]


def test_the_cost_of_statistics_is_that_last_measured():
    measured = json.loads((ROOT / "benchmarks" / "statistics.json").read_text())
    begin, end = statistics.MARKS
    assert README.read_text().split(begin)[1].split(end)[0].strip() == statistics.readme_table(
        measured
    )


def test_the_families_are_those_that_have_a_record():
    text = README.read_text()
    assert markdown() in text
    alone = [*language_models(), *towers()]
    assert [name for name in alone if f"`{name}`" not in text] == []


def test_the_links_lead_somewhere():
    for link in re.findall(r"\]\(([^)#:]+)\)", README.read_text()):
        assert (ROOT / link).exists(), link
