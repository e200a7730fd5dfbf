"""What workers hold over time: memory and open files, of each worker over its life."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from tests.live import process

from .world import World

MIB: Final = 1024 * 1024
#: Seconds between two samples.
INTERVAL: Final = 1.0
#: A worker that lived for fewer seconds says nothing: it is still filling its caches and its channels' histories.
MIN_LIFE: Final = 90.0
#: What the last third of a life may have more of than the second: a part of it, and so much besides.
MEMORY_SLACK: Final = (0.10, 4 * MIB)
FILES_SLACK: Final = (0.25, 10)


@dataclass(frozen=True)
class Sample:
    """What a worker held at a monotonic second."""

    at: float
    memory: int
    files: int


@dataclass(frozen=True)
class Growth:
    """The medians of the second and the last third of a worker's life, of its resident bytes or its open files."""

    pid: int
    seconds: float
    second: float
    last: float

    def is_flat(self, slack: tuple[float, float]) -> bool:
        """Whether the last third has hardly more than the second."""
        part, more = slack
        return self.last <= self.second * (1 + part) + more


class Measurement:
    """Samples all workers, and the arbiter, while the load goes on.

    Attributes:
        samples: Those of each worker, by its process id, the oldest first.
        arbiter: The arbiter's.
    """

    def __init__(self, world: World, *, interval: float = INTERVAL) -> None:
        self.samples: dict[int, list[Sample]] = {}
        self.arbiter: list[Sample] = []
        self._server = world.server
        self._interval = interval
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="measurement")

    def start(self) -> None:
        """Begins."""
        self._thread.start()

    def stop(self) -> None:
        """Ends."""
        self._stop.set()
        self._thread.join(10)

    def growth(self, value: Callable[[Sample], float], *, min_life: float = MIN_LIFE) -> list[Growth]:
        """That of each worker that lived long enough, in the order of their birth; the arbiter's last."""
        found: list[Growth] = []
        arbiters = [(self._server.pid, self.arbiter)] if self.arbiter else []
        for pid, samples in [*self.samples.items(), *arbiters]:
            life = samples[-1].at - samples[0].at if samples else 0.0
            if life < min_life:
                continue
            third = len(samples) // 3
            middle, last = samples[third : 2 * third], samples[2 * third :]
            found.append(Growth(pid, life, statistics.median(map(value, middle)), statistics.median(map(value, last))))
        return found

    def _run(self) -> None:
        while not self._stop.wait(self._interval):
            for pid in self._server.ready_workers():
                sample = _sample(pid)
                if sample is not None:
                    self.samples.setdefault(pid, []).append(sample)
            sample = _sample(self._server.pid)
            if sample is not None:
                self.arbiter.append(sample)


def _sample(pid: int) -> Sample | None:
    """A process's sample; None if it has just ended."""
    try:
        return Sample(time.monotonic(), process.resident_bytes(pid), len(process.open_files(pid)))
    except (OSError, IndexError):
        return None
