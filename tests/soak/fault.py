"""What goes wrong, by chance: workers are killed, stopped, replaced, added and taken away, Redis dies, streams are ended."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Final

from tests.live.process import wait_until
from tests.redis import RedisServer

from .load import CHANNELS
from .world import World

WORKERS: Final = 2
MAX_WORKERS: Final = 4
PATIENCE: Final = 60.0
#: A worker that stands still for longer would be killed by gunicorn.
STANDSTILL_SECONDS: Final = 1.0
PAUSE: Final = (2.0, 6.0)
#: Workers must grow old enough to be measured.
CYCLE_SECONDS: Final = 240.0


class Faults:
    """Does one thing after the other.

    Attributes:
        gentle: What workers live through, by name.
        hard: What ends some, or has some begin, by name.
    """

    def __init__(
        self, world: World, redis: RedisServer | None, *, cycle: float = CYCLE_SECONDS, pause: tuple[float, float] = PAUSE
    ) -> None:
        """Stores what it is given.

        Args:
            world: Of the server.
            redis: The workers', if they have one.
            cycle: Of each so many seconds, the second half has only gentle faults.
            pause: Seconds of quiet between two faults: at least, at most.
        """
        self._world = world
        self._redis = redis
        self._chance = world.random("faults")
        self._cycle = cycle
        self._pause = pause
        self._workers = WORKERS
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="faults")
        self.gentle: dict[str, Callable[[], None]] = {"SIGSTOP for a second": self._stand_still, "disconnect": self._disconnect}
        self.hard: dict[str, Callable[[], None]] = {
            "SIGHUP": self._reload,
            "SIGKILL of a worker": self._kill,
            "SIGTTIN": self._add,
            "SIGTTOU": self._take_away,
        }
        if redis is not None:
            self.gentle["Redis killed and restarted"] = redis.restart

    def start(self) -> None:
        """Begins."""
        self._thread.start()

    def stop(self) -> None:
        """Ends, when what was begun is done; as many workers are there then as at the beginning."""
        self._stop.set()
        self._thread.join(2 * PATIENCE)
        try:
            while self._workers > WORKERS:
                self._take_away()
            self._wait_for_workers()
        except AssertionError as error:
            self._world.problem(f"at the end of the faults: {error}")

    def _run(self) -> None:
        began = time.monotonic()
        # Each once, so that a short run has them all; then by chance.
        order = [*self.hard.items(), *self.gentle.items()]
        self._chance.shuffle(order)
        while not self._stop.wait(self._chance.uniform(*self._pause)):
            is_hard = (time.monotonic() - began) % self._cycle < self._cycle / 2
            if order:
                name, fault = order.pop()
            else:
                name, fault = self._chance.choice([*self.gentle.items(), *(self.hard.items() if is_hard else ())])
            try:
                fault()
            except AssertionError as error:
                self._world.problem(f"after {name}: {error}")
            self._world.count(f"fault: {name}")

    def _wait_for_workers(self) -> None:
        """Waits until those who belong there are, and are ready."""
        server = self._world.server
        wait_until(lambda: len(server.ready_workers()) >= self._workers, PATIENCE, f"{self._workers} workers")

    def _one(self) -> int | None:
        ready = self._world.server.ready_workers()
        return self._chance.choice(ready) if ready else None

    def _reload(self) -> None:
        server = self._world.server
        old = server.worker_pids()
        # As many as were configured, whatever signals have changed since.
        self._workers = WORKERS
        server.signal(signal.SIGHUP)
        wait_until(lambda: len([pid for pid in server.ready_workers() if pid not in old]) >= self._workers, PATIENCE, "new workers")
        wait_until(lambda: not set(old) & set(server.worker_pids()), PATIENCE, "the old workers to be gone")

    def _kill(self) -> None:
        pid = self._one()
        if pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            wait_until(lambda: pid not in self._world.server.worker_pids(), PATIENCE, "it is dead")
            self._wait_for_workers()

    def _add(self) -> None:
        if self._workers < MAX_WORKERS:
            self._workers += 1
            self._world.server.signal(signal.SIGTTIN)
            self._wait_for_workers()

    def _take_away(self) -> None:
        if self._workers > 1:
            self._workers -= 1
            self._world.server.signal(signal.SIGTTOU)
            wait_until(lambda: len(self._world.server.worker_pids()) <= self._workers, PATIENCE, "a worker to be gone")
        if self._workers < WORKERS:
            self._add()

    def _stand_still(self) -> None:
        pid = self._one()
        if pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
                try:
                    self._stop.wait(STANDSTILL_SECONDS)
                finally:
                    os.kill(pid, signal.SIGCONT)

    def _disconnect(self) -> None:
        self._world.ask(f"/disconnect?channel={self._chance.choice(CHANNELS)}", body=b"")
