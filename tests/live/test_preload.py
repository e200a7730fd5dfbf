"""Under `--preload` the app, the `SSE` and a first stream are made in the arbiter; the workers are its forks."""

from __future__ import annotations

import itertools
import os
import re
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from tests.conftest import Serve
from tests.live.client import StreamClient, get, open_stream, read_all
from tests.live.process import open_files, wait_until
from tests.live.server import Server

APP = "tests.live.apps.preload_app:app"
KEEPALIVE = 0.3


OPTIONS: dict[str, Any] = {"workers": 2, "args": ["--preload"], "env": {"SSE_DRAIN_SECONDS": "1"}}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Two workers with a preloaded app, for the tests that don't end them."""
    with Server(APP, tmp_path_factory.mktemp("preload"), **OPTIONS) as started:
        yield started


@pytest.fixture
def fresh(serve: Serve) -> Server:
    """Two workers that haven't served anything."""
    return serve(APP, **OPTIONS)


def in_each_worker(server: Server, path: str = "/silence") -> dict[int, StreamClient]:
    """Opens streams until each worker has one; by the worker's pid."""
    workers = set(server.worker_pids())
    found: dict[int, StreamClient] = {}
    for n in itertools.count():
        client = open_stream(server, f"{path}?n={n}")
        found.setdefault(client.next_event().json()["pid"], client)
        if set(found) == workers:
            return found
        assert n < 100, f"only {set(found)} of {workers} serve"
    raise AssertionError


def stats_of_each(server: Server) -> dict[int, dict[str, Any]]:
    """What each worker has counted."""
    workers = set(server.worker_pids())
    found: dict[int, dict[str, Any]] = {}

    def ask() -> bool:
        told = get(server, "/stats").json()
        found[told["pid"]] = told
        return set(found) == workers

    wait_until(ask, 10)
    return found


def test_events(server: Server) -> None:
    """Each worker sends events one by one, of an app that the arbiter has loaded."""
    waiting = set(server.worker_pids())
    for _ in range(100):
        client = open_stream(server, "/events")
        events = client.events(3)
        assert [event.json()["n"] for event in events] == [0, 1, 2]
        assert {event.json()["loaded_by"] for event in events} == {server.pid}
        assert sorted(event.at - event.json()["at"] for event in events)[-2] < 0.15
        assert client.next_event().data == "end"
        assert client.read_until_closed() == "clean"
        waiting.discard(events[0].json()["pid"])
        if not waiting:
            return
    pytest.fail(f"{waiting} never served")


def test_keepalives(server: Server) -> None:
    """The timer runs in each worker: silent streams get their keepalives there."""
    for client in in_each_worker(server).values():
        first, second = client.next_comment(2), client.next_comment(2)
        assert {first.text, second.text} == {"keepalive"}
        assert second.at - first.at < 3 * KEEPALIVE


def test_deadline(server: Server) -> None:
    """Deadlines are kept."""
    client = open_stream(server, "/deadline")
    assert client.next_event().json() == {"extended": True}
    error = client.next_event(2)
    assert (error.event, error.json()["error_type"]) == ("error", "timeout")
    assert client.read_until_closed() == "clean"


def test_error_before_the_first_event(server: Server) -> None:
    """An error before the first event is its HTTP status."""
    assert [get(server, "/refuse").status for _ in range(10)] == [403] * 10


def test_hang_up(server: Server) -> None:
    """A client that hangs up has its generator's `finally` run within a second."""
    for pid, client in in_each_worker(server).items():
        client.hang_up()
        server.wait_for_log(rf"^finally n=\d+ reason=disconnected pid={pid}$", 1)


def test_nothing_of_the_arbiters(fresh: Server) -> None:
    """What the arbiter had streamed and counted isn't the workers'; each has an epoll set and counters of its own."""
    assert get(fresh, "/arbiter").json()["streams_opened"] == 1
    before = stats_of_each(fresh)
    assert {told["streams_opened"] for told in before.values()} == {0}
    clients = in_each_worker(fresh)
    after = stats_of_each(fresh)
    assert all(told["streams_opened"] >= 1 for told in after.values())
    assert set(clients) == set(after)
    # The hub's and ours.
    for pid in clients:
        assert len([target for target in open_files(pid).values() if "eventpoll" in target]) == 2


def test_shutdown(fresh: Server) -> None:
    """Each worker drains at TERM."""
    clients = in_each_worker(fresh)
    fresh.signal(signal.SIGTERM)
    assert read_all(list(clients.values()), 2) == ["clean"] * 2
    assert all(client.frames.retry_ms is not None for client in clients.values())
    for client in clients.values():
        client.hang_up()
    assert fresh.wait_for_exit(3) == 0
    assert {int(pid) for pid in re.findall(r"reason=shutdown pid=(\d+)", fresh.log())} == set(clients)


def test_a_worker_that_is_killed(fresh: Server) -> None:
    """A worker that is forked later, in place of a killed one, streams like the first ones."""
    old = fresh.worker_pids()
    os.kill(old[0], signal.SIGKILL)
    wait_until(lambda: len(set(fresh.ready_workers()) - {old[0]}) == 2, 5)
    assert set(in_each_worker(fresh)) == set(fresh.worker_pids())
