"""Streams over networks that lose packets, that take their time, and that are gone without a word."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest

from tests.conftest import Serve
from tests.live import process
from tests.live.client import Closable, NoResponse, connect, get, open_stream
from tests.live.journal import sinks, stats, wait_for_no_streams, whats
from tests.live.link import SERVER_ADDRESS, Link, in_namespace, link
from tests.live.process import wait_until
from tests.live.server import Server

APP = "tests.live.apps.network_app:app"
#: Seconds that a noisy machine may take beyond what is promised.
MARGIN = 5.0


class Far:
    """The server as it is reached over the link."""

    def __init__(self, server: Server) -> None:
        addresses = json.loads((server.directory / "state" / "addresses").read_text())
        (port,) = [port for host, port in addresses if host == SERVER_ADDRESS]
        self.address: tuple[str, int] | str = (SERVER_ADDRESS, port)
        self._server = server

    def tls_context(self, alpn: Sequence[str] = ()) -> None:
        """Plain text."""

    def adopt(self, client: Closable) -> None:
        """The server's own way."""
        self._server.adopt(client)


@pytest.fixture
def wire() -> Iterator[Link]:
    """A link of this test's own."""
    with link() as made:
        yield made


Start = Callable[..., tuple[Server, Far]]


@pytest.fixture
def start(wire: Link, serve: Serve) -> Start:
    """Starts a server on the link's far side: within it is reached on its loopback, over the link by what comes beside it."""

    def starting(**settings: object) -> tuple[Server, Far]:
        env = {name: json.dumps(value) for name, value in settings.items()}
        with wire.server_side:
            server = serve(APP, env=env, args=["-b", f"{SERVER_ADDRESS}:0"])
        return server, Far(server)

    return starting


class TestHalfOpen:
    """The peer is gone and nothing says so."""

    SEND_TIMEOUT = 2.0
    KEEPALIVE = 1.0

    def test_freed(self, wire: Link, start: Start) -> None:
        """Streams whose packets all vanish are freed within a send time-out and one keepalive, and their generators end."""
        server, far = start(SSE_SEND_TIMEOUT=self.SEND_TIMEOUT, SSE_KEEPALIVE_INTERVAL=self.KEEPALIVE)
        with wire.server_side:
            stats(server)
            files = process.open_sockets(server.worker_pid())
        with wire.client_side:
            parked = [open_stream(far, "/on?channel=quiet") for _ in range(9)]
            silent = [open_stream(far, f"/silent?name=silent-{n}") for n in range(8)]
            busy = [open_stream(far, f"/busy?name=busy-{n}") for n in range(2)]
            # More than fits on the way: its bytes wait in the server, too.
            full = [open_stream(far, "/busy?name=full&size=100000&pause=0")]
        for client in (*parked, *silent, *busy, *full):
            client.next_event()
        with wire.server_side:
            assert stats(server)["streams"] == 20
            wire.is_down = True
            wait_for_no_streams(server, self.SEND_TIMEOUT + self.KEEPALIVE + MARGIN)
            for name in [*(f"silent-{n}" for n in range(8)), "busy-0", "busy-1", "full"]:
                wait_until(lambda name=name: "ended" in whats(server, name), 5, f"{name}'s finally")  # type: ignore[misc]
            wait_until(lambda: process.open_sockets(server.worker_pid()) <= files, 5, "the sockets are closed")
            closed = stats(server)["streams_closed"]
        # One whose buffer was full is cut by us, if our timer comes first.
        assert closed.pop("lost") + closed.pop("slow", 0) == 20
        assert not closed

    def test_blocked(self, serve: Serve) -> None:
        """While a client's buffer is full the kernel waits longer than we do, and as long as before once it has read."""
        server = serve(APP, env={"SSE_SEND_TIMEOUT": "20"})

        def user_timeouts() -> list[int]:
            return [each["user_timeout_ms"] for each in sinks(server, "/busy")]

        with open_stream(server, "/busy?name=blocked&size=900000&count=10&pause=0", receive_buffer=4096) as client:
            wait_until(lambda: user_timeouts() == [30_000], 5, "the longer time")
            client.events(10, 20)
            wait_until(lambda: user_timeouts() == [20_000], 5, "the shorter time")


class TestBadLine:
    """Packets are late, and some never come."""

    EVENTS = 300
    CLIENTS = 10

    def test_nothing_lost(self, wire: Link, start: Start) -> None:
        """With 5 % of the packets lost and 200 ms each way, clients that break off and come back get each event once, in order."""
        server, far = start(SSE_HISTORY=1000, SSE_KEEPALIVE_INTERVAL=1)
        wire.loss, wire.delay = 0.05, 0.2
        ready = threading.Semaphore(0)

        def watch(client: int) -> tuple[list[int], int]:
            return follow(far, "/on?channel=line", count=self.EVENTS, breaks=[30 + client * 10, 160 + client * 5], opened=ready)

        with ThreadPoolExecutor(self.CLIENTS) as threads:
            watching = [threads.submit(in_namespace(wire.client_side, partial(watch, n))) for n in range(self.CLIENTS)]
            wait_for_open(ready, watching)
            with wire.server_side:
                publish(server, "line", count=self.EVENTS, pause=0.033)
            found = [each.result(40) for each in watching]
        assert wire.lost > 100
        for numbers, connections in found:
            assert numbers == list(range(self.EVENTS))
            assert connections >= 3


class TestTrickle:
    """A client reads one byte a second."""

    SEND_TIMEOUT = 2.0

    def test_kept(self, wire: Link, start: Start) -> None:
        """While what is sent to it fits the buffers on the way, it stays, however slowly it reads."""
        server, far = start(SSE_SEND_TIMEOUT=self.SEND_TIMEOUT, SSE_KEEPALIVE_INTERVAL=0.5)
        with wire.client_side:
            slow = connect(far)
        with slow:
            slow.sendall(b"GET /on?channel=little HTTP/1.1\r\nHost: far\r\n\r\n")
            assert slow.recv(1) == b"H"
            until = time.monotonic() + self.SEND_TIMEOUT * 3
            with wire.server_side:
                while time.monotonic() < until:
                    publish(server, "little", size=100)
                    slow.recv(1)
                    time.sleep(1)
                assert stats(server)["streams"] == 1

    def test_others(self, wire: Link, start: Start) -> None:
        """When it is in arrears it is cut as slow and gets what it missed when it comes back; the others wait for nothing."""
        server, far = start(SSE_SEND_TIMEOUT=self.SEND_TIMEOUT, SSE_KEEPALIVE_INTERVAL=0.5, SSE_HISTORY=1000)
        over = threading.Event()

        def trickle(slow: socket.socket) -> None:
            with contextlib.suppress(ConnectionError):
                while not over.wait(1) and slow.recv(1):
                    pass

        def watch() -> list[float]:
            with open_stream(far, "/on?channel=much") as client:
                client.next_event()
                ready.release()
                return [event.at - event.json()["at"] for event in client.events(100, 40)]

        ready = threading.Semaphore(0)
        with wire.client_side:
            slow = socket.socket()
            slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            slow.connect(far.address)
        with slow, ThreadPoolExecutor(6) as threads:
            slow.sendall(b"GET /on?channel=much HTTP/1.1\r\nHost: far\r\n\r\n")
            try:
                threads.submit(trickle, slow)
                watching = [threads.submit(in_namespace(wire.client_side, watch)) for _ in range(5)]
                wait_for_open(ready, watching)
                with wire.server_side:
                    opened = stats(server)["streams"]
                    publish(server, "much", count=100, size=60_000, pause=0.05)
                    wait_until(lambda: stats(server)["streams_closed"].get("slow"), self.SEND_TIMEOUT + MARGIN, "it is cut as slow")
                delays = [each.result(20) for each in watching]
            finally:
                over.set()
        assert opened == 6
        assert max(map(max, delays)) < self.SEND_TIMEOUT
        with wire.client_side:
            # It had read a few bytes, not one event: it comes back with the position that it began at.
            first = open_stream(far, "/on?channel=much").next_event()
            assert first.id is not None
            epoch, seq = first.id.split("-")
            numbers, _ = follow(far, "/on?channel=much", count=100, last_event_id=f"{epoch}-{int(seq) - 100}")
        assert numbers == list(range(100))


def wait_for_open(opened: threading.Semaphore, watching: Sequence[Future[Any]]) -> None:
    """Waits until each client has had its open event; what one of them fell over is raised here."""
    deadline = time.monotonic() + 30
    for _ in watching:
        while not opened.acquire(timeout=0.2):
            for each in watching:
                if each.done():
                    each.result()
            assert time.monotonic() < deadline, "a client has no open event"


def publish(server: Server, channel: str, *, count: int = 1, size: int = 0, pause: float = 0.0) -> None:
    """Has the server publish numbered events."""
    path = f"/publish?channel={channel}&count={count}&size={size}&pause={pause}"
    assert get(server, path, method="POST", body=b"", timeout=60).status == 200


def follow(
    far: Far,
    path: str,
    *,
    count: int,
    last_event_id: str = "",
    breaks: Sequence[int] = (),
    opened: threading.Semaphore | None = None,
    timeout: float = 40.0,
) -> tuple[list[int], int]:
    """Watches as a browser does: it comes back with the last id that it saw.

    Args:
        far: The server.
        path: The stream's.
        count: It watches until it has had so many numbers.
        last_event_id: What it begins with.
        breaks: It hangs up of its own accord when it has had so many.
        opened: Told when the first open event has come.
        timeout: Seconds for all.

    Returns:
        The numbers that it saw, and how many connections it took.
    """
    numbers: list[int] = []
    connections = 0
    waiting = sorted(breaks)
    deadline = time.monotonic() + timeout
    while len(numbers) < count:
        assert time.monotonic() < deadline, f"{len(numbers)} of {count} in {connections} connections"
        connections += 1
        headers = {"Last-Event-ID": last_event_id} if last_event_id else {}
        # gunicorn gives a request two seconds to arrive (`keepalive`), and closes the connection then.
        lost = contextlib.suppress(EOFError, TimeoutError, ConnectionError, NoResponse)
        with lost, open_stream(far, path, headers=headers) as client:
            while len(numbers) < count and not (waiting and len(numbers) >= waiting[0]):
                event = client.next_event(max(0.0, deadline - time.monotonic()))
                assert event.event != "stream-reset", event
                last_event_id = event.id or last_event_id
                if event.event == "stream-open" and opened is not None:
                    opened.release()
                    opened = None
                if event.event == "message":
                    numbers.append(event.json()["n"])
            waiting = waiting[1:]
    return numbers, connections
