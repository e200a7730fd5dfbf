"""Asking a server under test for its journal (`tests.live.apps.journal`)."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from tests.live.client import get
from tests.live.process import wait_until
from tests.live.server import Server

Note = dict[str, Any]


def notes(server: Server, name: str) -> list[Note]:
    """All notes of the run of this name, in order."""
    found: list[Note] = get(server, f"/journal?name={quote(name)}").json()
    return found


def whats(server: Server, name: str) -> list[str]:
    """What happened in the run of this name, in order."""
    return [each["what"] for each in notes(server, name)]


def wait_for_note(server: Server, name: str, what: str, timeout: float = 5.0) -> Note:
    """Waits for the first note of this kind in the run of this name.

    Raises:
        AssertionError: There was none in time.
    """
    found = wait_until(
        lambda: [each for each in notes(server, name) if each["what"] == what], timeout, f"{what!r} in the journal of {name!r}"
    )
    return found[0]


def stats(server: Server) -> dict[str, Any]:
    """The worker's `sse.stats()`."""
    found: dict[str, Any] = get(server, "/stats").json()
    return found


def sinks(server: Server, path: str) -> list[dict[str, Any]]:
    """Where the worker's open streams at this path write."""
    return [each for each in get(server, "/sinks").json() if each["path"] == path]


def wait_for_no_streams(server: Server, timeout: float = 5.0) -> None:
    """Waits until the worker has no stream open.

    Raises:
        AssertionError: There still was one.
    """
    wait_until(lambda: stats(server)["streams"] == 0, timeout, "no stream left")
