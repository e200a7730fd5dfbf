"""Blocks for browsers: `pytest tests/docs -k hypermedia` runs a page's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.docs import page, stand_in
from tests.docs.browser import Visitor, is_fetched, served
from tests.docs.page import parametrized
from tests.docs.place import Place

pytestmark = pytest.mark.browser

#: What the blocks of a page ask a server for, besides being answered: path, method, `Authorization`, body.
ASKED: dict[str, list[list[Any]]] = {
    "reference/browser": [
        ["/events/news", "GET", None, None],
        ["/answers", "POST", "Bearer t", {"question": "Who keeps the light?"}],
    ],
}


@parametrized(lambda path: page.running(path, "html", "js"))
def test_browser(path: Path, place: Place, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """The blocks for browsers run in Chromium, against the page's own app where it has one, and get what they ask for."""
    app = place.run_python(page.running(path, "python"), monkeypatch).get("app") or stand_in.make_app()
    port = place.port("8000")
    with served(app, port) as documents:
        visitor = Visitor(request.getfixturevalue("page"), request.getfixturevalue("console"), app, documents)
        for block in page.running(path, "html", "js"):
            visitor.run(block, place.here(block.text), f"http://127.0.0.1:{port}")
        for wanted in ASKED.get(page.name(path), []):
            assert is_fetched(visitor.asked, wanted), (wanted, visitor.asked)
        visitor.leave()


def test_what_is_asked_is_told_of_pages() -> None:
    """Each page of which it is told what it asks for has blocks for browsers."""
    assert set(ASKED) <= {page.name(path) for path in page.pages() if page.running(path, "html", "js")}
