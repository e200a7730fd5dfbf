"""Lets the requests of one turn of the hub's loop in, as long as it hasn't lasted too long."""

from __future__ import annotations

import collections
import time
from typing import Any, Final

import gevent
import gevent.hub

#: Seconds for which one turn of the loop serves requests; the others wait for the next turns, in their order. When thousands of
#: clients come back at once, all of their requests are ready in one turn, and streams' sockets would wait for the last.
TURN_SECONDS: Final = 0.005


class Entrance:
    """One worker's: a request passes it before the app is called."""

    __slots__ = ("_hub", "_iteration", "_loop", "_since", "_timer", "_waiting")

    def __init__(self) -> None:
        self._hub = gevent.get_hub()
        self._loop = self._hub.loop
        self._iteration = -1
        self._since = 0.0
        self._waiting: collections.deque[Any] = collections.deque()
        # It has passed when the loop next looks at its timers, after its sockets.
        self._timer = self._loop.timer(1e-9)

    def __len__(self) -> int:
        return len(self._waiting)

    def enter(self) -> None:
        """Waits for a later turn, if this one has lasted long; called by the request's greenlet."""
        if not self._waiting:
            iteration, now = self._loop.iteration, time.monotonic()
            if iteration != self._iteration:
                self._iteration, self._since = iteration, now
                return
            if now - self._since < TURN_SECONDS:
                return
            self._timer.start(self._let_in)
        own = gevent.getcurrent()
        self._waiting.append(own)
        try:
            self._hub.switch()
        except BaseException:
            # It was ended while it waited.
            if own in self._waiting:
                self._waiting.remove(own)
            raise

    def _let_in(self) -> None:
        """Runs those that wait, until the turn has lasted long; from the hub."""
        self._timer.stop()
        self._iteration, self._since = self._loop.iteration, time.monotonic()
        while self._waiting and time.monotonic() - self._since < TURN_SECONDS:
            self._waiting.popleft().switch()
        if self._waiting:
            self._timer.start(self._let_in)
