"""What all parts of a soak know together: what the broker has accepted, what went wrong, and what was counted."""

from __future__ import annotations

import collections
import random
import ssl
import threading
import time
from collections.abc import Sequence
from typing import Any

from tests.live.client import Closable, NoResponse, ProtocolError, Reply, StreamClient, get, open_stream
from tests.live.server import Server

#: What a client sees when a worker is killed, stands still, or has no broker: it tries again.
PASSING = (ConnectionError, TimeoutError, EOFError, NoResponse)
#: Problems that are told; one that comes a thousand times needs no thousand lines.
MAX_PROBLEMS = 50


class World:
    """The server under load, and what is known of it.

    Attributes:
        server: The server.
        stopping: Set when the load is to end.
        seed: What all chance began with.
        accepted: How many numbers of each series the broker has, by series.
        channel_of: Each series' channel.
        counted: What happened how often.
        problems: What must not have happened.
        resets: How often clients were told that something is gone, by reason.
    """

    def __init__(self, server: Server, seed: int) -> None:
        self.server = server
        self.stopping = threading.Event()
        self.seed = seed
        self.accepted: dict[str, int] = {}
        self.channel_of: dict[str, str] = {}
        self.counted: collections.Counter[str] = collections.Counter()
        self.problems: list[str] = []
        self.resets: collections.Counter[str] = collections.Counter()
        self._lock = threading.Lock()
        self._began = time.monotonic()

    # As an endpoint: whoever opens a stream closes it.

    @property
    def address(self) -> tuple[str, int] | str:
        """Where the server listens."""
        return self.server.address

    def tls_context(self, alpn: Sequence[str] = ()) -> ssl.SSLContext | None:
        """Plain text."""

    def adopt(self, client: Closable) -> None:
        """Nothing: a `with` closes it."""

    def random(self, name: str) -> random.Random:
        """Chance of an actor's own: it does the same again with the same seed, whatever the others do."""
        return random.Random(f"{self.seed}-{name}")

    def count(self, what: str, by: int = 1) -> None:
        """Counts."""
        with self._lock:
            self.counted[what] += by

    def reset(self, reason: str) -> None:
        """Counts a reset that a client was told."""
        with self._lock:
            self.resets[reason] += 1

    def problem(self, text: str) -> None:
        """Writes down what must not have happened."""
        with self._lock:
            self.counted["problems"] += 1
            if len(self.problems) < MAX_PROBLEMS:
                self.problems.append(f"at {time.monotonic() - self._began:.1f} s: {text}")

    def sleep(self, seconds: float) -> None:
        """Waits, unless the load is to end."""
        self.stopping.wait(seconds)

    def open(
        self, path: str, last_event_id: str = "", *, receive_buffer: int | None = None, too_late: int | None = None
    ) -> StreamClient | None:
        """Opens a stream; None where the server can't just now, or says by the status `too_late` that it is.

        Raises:
            ProtocolError: The answer is not what it may be.
        """
        headers = {"Last-Event-ID": last_event_id} if last_event_id else {}
        try:
            client = open_stream(self, path, headers=headers, receive_buffer=receive_buffer)
        except PASSING:
            self.count("opens that failed")
            return None
        if client.status in (200, 204):
            self.count("streams opened")
            return client
        with client:
            if client.status in (503, too_late):
                self.count(f"opens answered with {client.status}")
                return None
            raise ProtocolError(f"{path} is answered with {client.status}")

    def ask(self, path: str, *, body: bytes | None = None, headers: dict[str, str] | None = None) -> Reply | None:
        """Sends a request, a POST if there is a body; None where the server can't just now.

        Raises:
            ProtocolError: The answer is not what it may be.
        """
        try:
            reply = get(self, path, method="GET" if body is None else "POST", body=body, headers=headers or {})
        except PASSING:
            return None
        if reply.ended != "clean" or reply.status == 503:
            return None
        if reply.status not in (200, 201):
            raise ProtocolError(f"{path} is answered with {reply.status}: {reply.text[:200]}")
        return reply

    def ask_json(self, path: str, *, body: bytes | None = None) -> Any:
        """The answer to `ask`, asked until there is one or the load ends (then None)."""
        while not self.stopping.is_set():
            reply = self.ask(path, body=body)
            if reply is not None:
                return reply.json()
            self.sleep(0.2)
        return None
