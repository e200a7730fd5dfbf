"""A client of channels that holds the server to its promise: each event once and in order, or a reset that says otherwise."""

from __future__ import annotations

import time

from tests.live.client import Event, StreamClient

from .world import World


class Watcher:
    """What one client has seen of its channels, over all its connections.

    Attributes:
        name: What problems call it.
        last_event_id: What it says when it comes back.
        seen: How many numbers of each series it has seen to: one more than the last.
    """

    def __init__(self, world: World, name: str) -> None:
        self.name = name
        self.last_event_id = ""
        self.seen: dict[str, int] = {}
        self.opened = False
        self.expired = False
        self._world = world
        self._at_open: dict[str, int] = {}
        # Of these series it has had no number since it was told that something is gone, and why.
        self._told: dict[str, str] = {}

    def take(self, event: Event) -> None:
        """Judges an event."""
        if event.id is not None:
            self.last_event_id = event.id
        match event.event:
            case "stream-open":
                if not self.opened:
                    self.opened = True
                    self._at_open = dict(self._world.accepted)
            case "stream-reset":
                reason = str(event.json()["reason"])
                self._world.reset(reason)
                self._told = dict.fromkeys([*self.seen, *self._world.accepted], reason)
            case "message":
                data = event.json()
                self._take_number(data["series"], data["n"])
            case "error":
                self.expired = event.json()["error_type"] == "token_expired"
                if not self.expired:
                    self._world.problem(f"{self.name} was told {event.data}")
            case other:
                self._world.problem(f"{self.name} got an event {other!r}: {event.data[:100]}")

    def _take_number(self, series: str, n: int) -> None:
        self._world.count("deliveries")
        told = self._told.pop(series, None)
        if series in self.seen:
            expected = self.seen[series]
            is_right = n == expected or (told is not None and (n > expected or told == "epoch"))
        else:
            # One may be with the broker whose publisher doesn't know it yet.
            expected = self._at_open.get(series, n) + 1
            is_right = n <= expected or told is not None
        if not is_right:
            self._world.problem(f"{self.name}: {n} of {series} where {expected} should be")
        elif told is not None and n > expected:
            self._world.count("events told to be gone", n - expected)
        self.seen[series] = n + 1

    def read(self, client: StreamClient, until: float, *, pause: float = 0.0) -> bool:
        """Reads until the monotonic second `until`, at once or with a pause before each read.

        Returns:
            Whether the stream goes on.

        Raises:
            ProtocolError: A byte is out of place.
        """
        while (left := until - time.monotonic()) > 0 and not self._world.stopping.is_set():
            if pause:
                self._world.sleep(pause)
            try:
                self.take(client.next_event(min(left, 0.5)))
            except TimeoutError:
                continue
            except (EOFError, ConnectionError):
                self._world.count("streams ended by the server")
                return False
            forget(client)
        return True


def forget(client: StreamClient) -> None:
    """What it has read is judged, and isn't kept."""
    if client._events_taken == len(client.arrived):
        client.arrived.clear()
        client._events_taken = 0
    client.comments.clear()
    client.body.clear()
