"""What all pages have in common: a template each, and everything in them escaped."""

from __future__ import annotations

from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from vlm_lens.plots.page import DRAW, library, policy
from vlm_lens.versions import versions


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("vlm_lens", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["signed"] = "{:+#.3g}".format
    environment.filters["percent"] = lambda share: f"{share:.1%}"
    return environment


def render(template: str, *, command: str, has_figures: bool, **values: Any) -> str:
    """Renders a page; the same values give the same page, byte for byte.

    Args:
        template: Where its file is in this package, such as ``report/demo.html``.
        command: The command that makes the page again.
        has_figures: Whether it has plotly figures: without, it has no script at all.
        **values: For the template.

    Returns:
        HTML that asks for nothing else. Its content security policy forbids requests, and all
        scripts but its own two.
    """
    scripts = [library(), DRAW] if has_figures else []
    return (
        _environment()
        .get_template(template)
        .render(
            **values,
            command=command,
            versions=versions(),
            policy=policy(*scripts),
            scripts=[Markup(script) for script in scripts],
        )
    )
