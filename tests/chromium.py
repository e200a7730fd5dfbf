"""A Chromium for all tests, a fresh profile for each, and an end for every test whose page has complained."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, ConsoleMessage, Page

ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


class Console:
    """What a page has complained about: errors and warnings on its console, and exceptions that nobody caught."""

    def __init__(self) -> None:
        self._complaints: list[str] = []
        self._allowed: list[re.Pattern[str]] = []

    def allow(self, pattern: str) -> None:
        """Complaints that match belong to what this test does: Chromium itself reports each response that isn't a success."""
        self._allowed.append(re.compile(pattern))

    def watch(self, page: Page) -> None:
        """Listens to a page from now on."""
        page.on("console", self._hear)
        page.on("pageerror", lambda error: self._complaints.append(f"uncaught: {error}"))

    def complaints(self) -> list[str]:
        """Those that weren't allowed."""
        return [text for text in self._complaints if not any(allowed.search(text) for allowed in self._allowed)]

    def all(self) -> list[str]:
        """The allowed ones as well."""
        return list(self._complaints)

    def _hear(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self._complaints.append(f"{message.type}: {message.text} ({message.location.get('url')})")


def executable() -> str | None:
    """The system's Chromium; None if it has none."""
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    """The browser that all tests share."""
    program = executable()
    if program is None:
        pytest.skip("there is no Chromium on this system")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, headless=True, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def console() -> Console:
    """What the test's page complains about."""
    return Console()


@pytest.fixture
def page(chromium: Browser, console: Console, serve: object) -> Iterator[Page]:
    """A page in a profile of its own; the test fails at its end if the page has complained.

    It is closed before the servers are: asking for `serve` here sees to that.
    """
    context = chromium.new_context(viewport={"width": 1200, "height": 900})
    context.set_default_timeout(10_000)
    page = context.new_page()
    console.watch(page)
    yield page
    context.close()
    assert console.complaints() == [], console.complaints()
