"""The pages under docs/ run from top to bottom and print what they say."""

from __future__ import annotations

import doctest
import re
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import pytest

from vlm_lens.architectures import BLOCKS, records

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md"))
MADE = {"explorer.html", "gallery.md"}
"""Pages that docs/site.py makes."""
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE  # long lines are cut and wrapped


@pytest.fixture(autouse=True)
def architectures_as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a page registers is gone after it."""
    monkeypatch.setattr("vlm_lens.architectures.registry._RECORDS", records())
    with patch.dict(BLOCKS):
        yield


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_examples_print_what_the_page_says(page: Path):
    without_fences = re.sub(r"^```.*$", "", page.read_text(), flags=re.MULTILINE)
    examples = doctest.DocTestParser().get_doctest(without_fences, {}, page.stem, str(page), 0)
    result = doctest.DocTestRunner(optionflags=FLAGS).run(examples)
    assert result.attempted > 5
    assert result.failed == 0


def test_the_links_of_the_pages_lead_somewhere():
    for page in PAGES:
        for link in re.findall(r"\]\(([^)#]+)", page.read_text()):
            assert link in MADE or (page.parent / link).exists(), f"{page.name}: {link}"


def test_the_files_that_the_pages_name_exist():
    for page in PAGES:
        for path in re.findall(r"`((?:vlm_lens|tests)/[\w./]*)`", page.read_text()):
            assert (ROOT / path).exists(), f"{page.name}: {path}"
