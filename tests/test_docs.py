"""The pages under docs/ run from top to bottom and print what they say."""

from __future__ import annotations

import doctest
import re
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import pytest
import transformer_lens
from torch import nn
from transformer_lens.model_bridge import TransformerBridge

from vlm_lens import HookedVLM
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


@pytest.mark.sampled
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


def test_what_of_transformer_lens_is_not_here_is_listed():
    """Every public name of `TransformerBridge` is ours too, or in the page's table."""
    page = (ROOT / "docs" / "from_transformerlens.md").read_text()
    table = page.partition("| of `TransformerBridge` | why |")[2]
    names = [row.split("|")[1] for row in table.splitlines()[2:] if row.startswith("|")]
    listed = set(re.findall(r"`(\w+)`", " ".join(names)))
    theirs = {name for name in set(dir(TransformerBridge)) - set(dir(nn.Module)) if name[0] != "_"}
    model = HookedVLM.from_pretrained("shapes-llava")
    assert listed == {name for name in theirs if not hasattr(model, name)}
    _, cache = model.run_with_cache("what color")
    assert set(dir(transformer_lens.ActivationCache)) <= set(dir(cache))
