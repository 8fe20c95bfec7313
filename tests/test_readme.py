"""The README's examples run, and its tables are those of the code and of what was measured."""

from __future__ import annotations

import doctest
import json
import re
from pathlib import Path

from benchmarks import findings
from benchmarks.report import readme_table
from vlm_lens.architectures.table import markdown
from vlm_lens.shapes_llava import WEIGHTS
from vlm_lens.shapes_llava.evaluate import table

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"


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
    measured = json.loads((ROOT / "benchmarks" / "findings.json").read_text())
    for rows in measured["tables"].values():
        assert findings.markdown(rows) in README.read_text()


def test_the_families_are_those_that_have_a_record():
    assert markdown() in README.read_text()


def test_the_links_lead_somewhere():
    for link in re.findall(r"\]\(([^)#:]+)\)", README.read_text()):
        assert (ROOT / link).exists(), link
