"""sseflask's fixtures for pytest. Nothing of sseflask's is imported before a test asks for one of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from sseflask.testing import FakeClock, SSEServer


@pytest.fixture
def sse_server(request: pytest.FixtureRequest) -> Iterator[SSEServer]:
    """A real server on a free port that serves what the fixture `app` gives; it stops when the test is over.

    Yields:
        A started `sseflask.testing.SSEServer`.
    """
    from flask import Flask

    from sseflask.testing import SSEServer

    try:
        app = request.getfixturevalue("app")
    except pytest.FixtureLookupError:
        pytest.fail("sse_server serves what a fixture named `app` returns: define one that returns your Flask app", pytrace=False)
    if not isinstance(app, Flask):
        pytest.fail(f"sse_server serves the Flask app that the fixture `app` returns, and it returned {app!r}", pytrace=False)
    with SSEServer(app) as server:
        yield server


@pytest.fixture
def sse_clock() -> Iterator[FakeClock]:
    """The time of keepalives, deadlines and histories, which moves on when told to.

    Yields:
        A `sseflask.testing.FakeClock` that is in place, until the test is over.
    """
    from sseflask.testing import FakeClock

    with FakeClock() as clock:
        yield clock
