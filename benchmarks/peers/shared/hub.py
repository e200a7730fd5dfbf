"""How long gevent's hub was kept from polling: the longest time that all other greenlets and sockets had to wait."""

from __future__ import annotations

import time

import gevent

#: gevent runs greenlets in a prepare watcher of its own: ours come after it, and first after the poll.
LAST, FIRST = -2, 2


class HubWatch:
    """Measures each turn of the loop, from the end of one poll to the begin of the next.

    Attributes:
        longest: Seconds of the longest turn since the last `reset`.
    """

    def __init__(self) -> None:
        self.longest = 0.0
        self._since: float | None = None
        loop = gevent.get_hub().loop
        self._before = loop.prepare(ref=False, priority=LAST)
        self._after = loop.check(ref=False, priority=FIRST)
        self._before.start(self._polls)
        self._after.start(self._polled)

    def reset(self) -> None:
        """Forgets the longest turn so far, this one included."""
        self.longest = 0.0
        self._since = None

    def _polls(self) -> None:
        if self._since is not None:
            self.longest = max(self.longest, time.monotonic() - self._since)

    def _polled(self) -> None:
        self._since = time.monotonic()
