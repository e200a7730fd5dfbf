"""npm's clients under Node.js."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping

import pytest

from tests.interop.events import NAMES, Report, assert_whole, reported, with_empty_events, without_sticky_ids
from tests.interop.npm import installed
from tests.live.server import Server

pytestmark = [pytest.mark.live, pytest.mark.timeout(240)]


@pytest.fixture(scope="module")
def reports(server: Server) -> Mapping[str, Mapping[str, Report]]:
    """What all of them report, run at the same time."""
    names = ",".join([*NAMES, "n", "stream-open", "stream-end", "stream-reset"])
    command = ["node", "clients.mjs", server.url("").rstrip("/"), names]
    ran = subprocess.run(command, cwd=installed(), capture_output=True, text=True, timeout=60, check=False)
    assert ran.returncode == 0, ran.stderr
    told: Mapping[str, Mapping[str, Report]] = json.loads(ran.stdout)
    return told


@pytest.mark.parametrize("client", ["eventsource", "eventsource-client"])
def test_the_events(reports: Mapping[str, Mapping[str, Report]], client: str) -> None:
    """They report what was sent; an event without an id of its own has none for them."""
    assert reports[client]["all"] == without_sticky_ids(reported())


def test_the_events_of_fetch_event_source(reports: Mapping[str, Mapping[str, Report]]) -> None:
    """It reports what was sent, with no id for an event without one of its own; a block without data is an empty event for it."""
    assert reports["fetch-event-source"]["all"] == with_empty_events(without_sticky_ids(reported()), "")


@pytest.mark.parametrize("client", ["eventsource", "eventsource-client", "fetch-event-source"])
def test_nothing_is_lost_when_it_comes_back(reports: Mapping[str, Mapping[str, Report]], client: str) -> None:
    """Each connection is cut after a moment; they come back with their position, and get each event once."""
    report = reports[client]["live"]
    # Of our subscription's blocks one has no data: the `retry:` at its beginning.
    assert_whole([each for each in report if each != ["message", "", ""]])
    if client != "fetch-event-source":
        assert ["message", "", ""] not in report
