"""The site as `make docs` builds it: it draws its figures, and asks for nothing from elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

SITE = Path(__file__).parents[2] / "site"
PAGES = [path for path in sorted(SITE.rglob("*.html")) if path.stem != "404"]
needs_site = pytest.mark.skipif(not PAGES, reason="the site is not built: make docs")


@needs_site
@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_a_page_draws_all_its_figures(offline: Callable[..., Any], path: Path):
    page = offline(path)
    n_figures = page.locator("div.figure").count()
    page.wait_for_function(
        "n => document.querySelectorAll('.figure .main-svg').length >= n", arg=n_figures
    )
    assert page.locator("h1, #explorer").count() == 1
    assert page.locator(".arithmatex").count() == 0  # formulas are set


@needs_site
def test_the_gallery_has_a_figure_behind_each_call(offline: Callable[..., Any]):
    page = offline(SITE / "gallery.html")
    headings = page.locator("article h2").count()
    assert headings > 20
    assert page.locator("article div.output").count() == headings
