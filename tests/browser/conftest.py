"""A real browser for tests: Debian's Chromium, headless, that reaches nothing but this machine.

Where there is no browser, tests skip and say why.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
NAMES = ("chromium", "chromium-browser", "google-chrome")
NEAR = ("127.0.0.1", "localhost")


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """A running browser, shared by all tests of this process."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = next((found for name in NAMES if (found := shutil.which(name))), None)
    if path is None:
        pytest.skip("there is no Chromium on this machine")
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=path, headless=True, args=ARGUMENTS)
        yield browser
        browser.close()


class Watched:
    """What a page has done that it must not do.

    Attributes:
        page: Playwright's page.
        requests: The addresses that it asked for, the page itself and data in it left out.
        errors: Errors in its console, and exceptions that nobody caught.
    """

    def __init__(self, page: Any) -> None:
        self.page = page
        self.requests: list[str] = []
        self.errors: list[str] = []
        page.on("request", self._asked)
        page.on("console", self._said)
        page.on("pageerror", lambda error: self.errors.append(str(error)))

    def _asked(self, request: Any) -> None:
        if not request.url.startswith(("file:", "data:", "blob:", "about:")):
            self.requests.append(request.url)

    def _said(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.errors.append(message.text)


@pytest.fixture
def offline(chromium: Any) -> Iterator[Callable[..., Any]]:
    """Opens a file offline and gives the page; at the end, it asked for nothing and failed nowhere.

    ``offline(path, color_scheme="dark", viewport={...})``: options are those of a browser context.
    """
    with _opened(chromium) as (contexts, watched):

        def open_file(path: Path, **options: Any) -> Any:
            context = chromium.new_context(offline=True, **options)
            contexts.append(context)
            page = context.new_page()
            page.set_default_timeout(60_000)  # a slow machine is no failure
            watched.append(Watched(page))
            page.goto(path.resolve().as_uri())
            return page

        yield open_file


@pytest.fixture
def local(chromium: Any) -> Iterator[Callable[..., Any]]:
    """Opens a page of a server on this machine; requests to anywhere else are stopped."""
    with _opened(chromium, alone=False) as (contexts, watched):

        def open_address(address: str, **options: Any) -> Watched:
            context = chromium.new_context(**options)
            contexts.append(context)
            context.route("**/*", _only_near)
            watched.append(Watched(context.new_page()))
            watched[-1].page.goto(address)
            return watched[-1]

        yield open_address


def _only_near(route: Any) -> None:
    near = urlsplit(route.request.url).hostname in (None, "", *NEAR)
    route.continue_() if near else route.abort()


@contextmanager
def _opened(browser: Any, *, alone: bool = True) -> Iterator[tuple[list[Any], list[Watched]]]:
    """Closes what was opened, and says what the pages did."""
    contexts: list[Any] = []
    watched: list[Watched] = []
    try:
        yield contexts, watched
        for one in watched if alone else ():
            assert one.requests == []
            assert one.errors == []
    finally:
        for context in contexts:
            context.close()
