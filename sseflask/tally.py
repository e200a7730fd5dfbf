"""Counting what happens to events: plain numbers, read now and then by whoever shows them. No IO, no clock, no lock."""

from __future__ import annotations

import bisect
import fnmatch
from collections.abc import Sequence
from typing import Any, Final

from .emitter import RESERVED

#: Upper bounds, in seconds, of the times that are counted by how long they were; longer ones are counted together.
BOUNDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
#: Channels whose pattern is remembered; with more of them, all are matched anew.
REMEMBERED: Final = 50_000
#: What the channels count under that no pattern matches.
OTHER: Final = "other"


class Histogram:
    """How many times were how long.

    Attributes:
        counts: For each of `BOUNDS` the times up to it and above the one before; last those above all.
        seconds: All of them together.
    """

    __slots__ = ("counts", "seconds")

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS) + 1)
        self.seconds = 0.0

    def observe(self, seconds: float) -> None:
        """Counts one; a negative one, of clocks that differ, is 0."""
        if seconds < 0:
            seconds = 0.0
        self.counts[bisect.bisect_left(BOUNDS, seconds)] += 1
        self.seconds += seconds

    def numbers(self) -> dict[str, Any]:
        """The numbers, for JSON."""
        return {"counts": list(self.counts), "seconds": self.seconds}


class Latency:
    """From when an event was stored until all streams that waited for it have been given it.

    One event of each write counts, its newest, by the first stream that takes it; the time ends when the round of streams that this
    one belongs to is through. So counting costs something once a round, and nothing for each of a thousand streams.

    Attributes:
        histogram: What was counted.
        taken: When the events were stored that were taken in this round, in monotonic seconds.
    """

    __slots__ = ("histogram", "taken")

    def __init__(self) -> None:
        self.histogram = Histogram()
        self.taken: list[float] = []

    def written(self, now: float) -> None:
        """The round is through, at the monotonic second `now`."""
        taken, self.taken = self.taken, []
        for at in taken:
            self.histogram.observe(now - at)


class Total:
    """What all streams of a process have sent together.

    Each adds to it what it adds to its own counters: thousands of silent streams needn't be asked for theirs each second. Native
    threads do so without a lock: CPython lets no other run between reading a number and storing the sum.

    Attributes:
        events: How many events.
        size: Their bytes together, and those of what streams send at their beginning and end.
    """

    __slots__ = ("events", "size")

    def __init__(self) -> None:
        self.events = 0
        self.size = 0


class Tally:
    """What the channels of one pattern have counted in one process.

    Attributes:
        pattern: The pattern.
        published: Events published.
        delivered: Events given to clients, without those that open streams have got which read one channel, whole.
    """

    __slots__ = ("delivered", "pattern", "published")

    def __init__(self, pattern: str) -> None:
        self.pattern = pattern
        self.published = 0
        self.delivered = 0


class Tallies(dict[str, Tally]):
    """The tally of each channel, by the first pattern that matches; looked up by name, matched at a channel's first use.

    Attributes:
        patterns: Each pattern's, `OTHER` the last.
    """

    def __init__(self, patterns: Sequence[str]) -> None:
        """Makes one for each pattern.

        Args:
            patterns: Glob patterns, case-sensitive.
        """
        super().__init__()
        self.patterns = {pattern: Tally(pattern) for pattern in (*patterns, OTHER)}

    def __missing__(self, channel: str) -> Tally:
        if len(self) >= REMEMBERED:
            self.clear()
        own = channel.startswith(RESERVED)
        found = OTHER if own else next((pattern for pattern in self.patterns if fnmatch.fnmatchcase(channel, pattern)), OTHER)
        tally = self[channel] = self.patterns[found]
        return tally
