"""Streams and a small pool of database connections: fifty viewers must not take the site down."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.live.client import StreamClient, get, open_stream
from tests.live.journal import stats, wait_for_no_streams
from tests.live.process import wait_until
from tests.live.server import Server

STREAMS = 50


@pytest.fixture
def server(module_server: Server) -> Server:
    """The server, with no stream left over from another test and both connections back in the pool."""
    wait_for_no_streams(module_server)
    assert get(module_server, "/query").json() == {"answer": 42, "checked_out": 0, "pool": "QueuePool"}
    return module_server


@pytest.fixture(scope="module")
def module_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One worker for all of these tests."""
    with Server("tests.live.apps.sql_app:app", tmp_path_factory.mktemp("sql")) as server:
        yield server


def open_at_once(server: Server, path: str) -> list[StreamClient]:
    """Sends all the requests before it waits for an answer."""
    return [open_stream(server, path, wait_for_head=False) for _ in range(STREAMS)]


def hang_up(clients: list[StreamClient]) -> None:
    """Leaves them all."""
    for client in clients:
        client.hang_up()


def test_views_that_query(server: Server) -> None:
    """Fifty silent streams whose views have asked the database open at once, and hold no connection."""
    clients = open_at_once(server, "/view")
    for client in clients:
        client.read_head()
    assert [client.status for client in clients] == [200] * STREAMS
    assert stats(server)["streams"] == STREAMS
    assert get(server, "/query").json()["checked_out"] == 0
    hang_up(clients)


def test_a_plain_view_while_they_open(server: Server) -> None:
    """A plain view gets its connection while they wait for a first event that doesn't come."""
    clients = open_at_once(server, "/view")
    assert get(server, "/query", timeout=1.5).json()["answer"] == 42
    for client in clients:
        client.read_head()
    hang_up(clients)


def test_generators_that_release(server: Server) -> None:
    """Fifty generators that ask the database and call `sse.release()` all get their answer, and hold no connection."""
    clients = open_at_once(server, "/released")
    assert [client.next_event(10).data for client in clients] == ["42"] * STREAMS
    assert get(server, "/query").json()["checked_out"] == 0
    assert stats(server)["streams"] == STREAMS
    hang_up(clients)


def test_generators_that_hold(server: Server) -> None:
    """Two generators that keep their connections leave none for others, until they end: the tests above can fail."""
    holders = [open_stream(server, "/held") for _ in range(2)]
    assert [client.next_event().data for client in holders] == ["42", "42"]
    assert get(server, "/query").status == 500
    server.wait_for_log("QueuePool limit of size 2 overflow 0 reached")
    hang_up(holders)
    wait_until(lambda: get(server, "/query").json()["checked_out"] == 0, message="their connections to be back")
