"""What every Python peer publishes, and when: the same events at the same pace."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator, Mapping


def event_data(seq: int, size: int) -> str:
    """An event's data: its number, the monotonic nanosecond of now, and `x` up to `size` characters."""
    return f"{seq} {time.monotonic_ns()} ".ljust(size, "x")


class Feed:
    """The events that one request for `/publish` asks for.

    Its query: `count` events of `size` characters at `rate` a second (0: as fast as it goes) to `channel`, or with `channels`
    each to one of that many at random; numbers begin at `first`. With `yield=0` the publisher doesn't let the server's loop run in
    between, and the events are made before the clock starts: nobody measures how long they take to a client.
    """

    def __init__(self, query: Mapping[str, str]) -> None:
        self._count = int(query.get("count", "1"))
        self._size = int(query.get("size", "100"))
        self._rate = float(query.get("rate", "0"))
        self._first = int(query.get("first", "1"))
        self._channel = query.get("channel", "c0")
        self._channels = int(query.get("channels", "1"))
        self.gives_way = query.get("yield", "1") != "0"
        self._done = 0
        self._began = time.monotonic()

    def __iter__(self) -> Iterator[tuple[str, str]]:
        """Each event's channel and data, stamped when it is taken."""
        if self.gives_way:
            yield from self._made()
        else:
            events = list(self._made())
            self._began = time.monotonic()
            yield from events

    def _made(self) -> Iterator[tuple[str, str]]:
        if self._channels == 1:
            for seq in range(self._first, self._first + self._count):
                self._done += 1
                yield self._channel, event_data(seq, self._size)
            return
        numbers = [self._first - 1] * self._channels
        for _ in range(self._count):
            index = random.randrange(self._channels)
            numbers[index] += 1
            self._done += 1
            yield f"c{index}", event_data(numbers[index], self._size)

    def pause(self) -> float:
        """Seconds to sleep before the next event; 0 only lets the loop run."""
        if not self._rate or self._done >= self._count:
            return 0.0
        return max(0.0, self._began + self._done / self._rate - time.monotonic())

    def summary(self) -> str:
        """The answer, as JSON: what was published, in how many seconds."""
        return json.dumps({"published": self._done, "seconds": time.monotonic() - self._began})
