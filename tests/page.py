"""A parsed HTML page: parsing it checks that every element is closed."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from typing import Any

VOID = {"meta", "br", "img", "link", "input", "hr"}
JSON = "application/json"


class Page(HTMLParser):
    """What is on a page.

    Attributes:
        elements: Each element's tag and attributes.
        text: All text but that of scripts.
        scripts: The content of each script, and its type.
    """

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.scripts: list[tuple[str | None, str]] = []
        self._stack: list[str] = []
        self.feed(html)
        self.close()
        assert not self._stack

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append((dict(attrs).get("type"), ""))
        if tag not in VOID:
            self._stack.append(tag)

    def handle_startendtag(self, tag: str, attrs: list) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._stack.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._stack and self._stack[-1] == "script":
            kind, content = self.scripts[-1]
            self.scripts[-1] = kind, content + data
        else:
            self.text += " ".join(data.split()) + " "

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.elements)

    @property
    def policy(self) -> str:
        """Its content security policy."""
        [given] = [given for _, given in self.elements if "http-equiv" in given]
        return given["content"] or ""

    @property
    def figures(self) -> list[dict[str, Any]]:
        """What plotly is given to draw."""
        return [json.loads(content) for kind, content in self.scripts if kind == JSON]

    @property
    def programs(self) -> list[str]:
        """The scripts that run."""
        return [content for kind, content in self.scripts if kind != JSON]


def assert_self_contained(page: Page) -> None:
    """Nothing is requested, and no script runs that the page's policy does not name."""
    assert not {"link", "iframe", "object", "embed", "base"} & {tag for tag, _ in page.elements}
    for tag, given in page.elements:
        for name, value in given.items():
            assert not name.startswith("on"), (tag, name)
            if name in ("src", "href", "xlink:href", "action", "data"):
                assert (value or "").startswith(("data:image/", "#")), (tag, value)
            assert not re.search(r"@import|url\(|https?://", value or ""), (tag, value)
    assert page.policy.startswith("default-src 'none'")
    digests = {hashlib.sha256(program.encode()).digest() for program in page.programs}
    named = re.findall(r"'sha256-([^']+)'", page.policy)
    assert {base64.b64encode(digest).decode() for digest in digests} == set(named)
    assert ("script-src" in page.policy) == bool(page.programs)
    assert "unsafe-eval" not in page.policy
    assert "script-src 'unsafe-inline'" not in page.policy
