"""A clock for tests that moves on when it is told to."""

from __future__ import annotations

import sys
import time
from typing import Any, ClassVar, Self

from .. import process

#: Seconds by which the clock may be moved on at once: a day.
MAX_SECONDS = 86_400.0
#: Modules of sseflask's that keep the real time: what they bound is the test's own waiting.
REAL = ("sseflask.testing", "sseflask.native")


class FakeClock:
    """The time that sseflask goes by in this process: the real one, and what `advance` has added to it.

    Keepalives, deadlines, ages, histories and tokens go by it. What waits isn't woken earlier, and other libraries keep the real
    time. Use it in a `with` statement, or by the fixture `sse_clock`.
    """

    _in_place: ClassVar[FakeClock | None] = None

    def __init__(self) -> None:
        """Makes a clock that hasn't been put in place: `start` does that, or `with`."""
        self._ahead = 0.0
        self._replaced: list[Any] = []

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def now(self) -> float:
        """The monotonic second, as sseflask sees it."""
        return self.monotonic()

    def start(self) -> None:
        """Puts the clock in place.

        Raises:
            RuntimeError: Another one is.
        """
        if FakeClock._in_place is not None:
            raise RuntimeError("a clock is in place already: a test has one")
        FakeClock._in_place = self
        self._replace()

    def stop(self) -> None:
        """Puts the real time back. Streams that are open go on by it. A second call does nothing."""
        if FakeClock._in_place is not self:
            return
        FakeClock._in_place = None
        for module in self._replaced:
            module.time = time
        self._replaced = []

    def advance(self, seconds: float) -> None:
        """Moves the clock on. When it returns, each stream has been given what has become due: a keepalive, its end.

        It is as if nothing had run meanwhile: a stream that was silent for an hour gets one keepalive. Histories forget what has
        become too old within the next second.

        Args:
            seconds: By how much: 0 to a day.

        Raises:
            ValueError: It isn't.
            RuntimeError: The clock isn't in place.
        """
        if not 0 <= seconds <= MAX_SECONDS:
            raise ValueError(f"a clock can be moved on by 0 to {MAX_SECONDS:g} seconds, not {seconds!r}")
        if FakeClock._in_place is not self:
            raise RuntimeError("the clock isn't in place: start it first, or use it in a with statement")
        # Some modules are imported when they are first used.
        self._replace()
        self._ahead += seconds
        process.current().timer.turn(self.monotonic())

    # What stands for the module `time`.

    def monotonic(self) -> float:
        """What `time.monotonic` is for sseflask."""
        return time.monotonic() + self._ahead

    def time(self) -> float:
        """What `time.time` is for sseflask: the Unix second."""
        return time.time() + self._ahead

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)

    def _replace(self) -> None:
        for name, module in list(sys.modules.items()):
            if name.startswith("sseflask.") and not name.startswith(REAL) and getattr(module, "time", None) is time:
                module.time = self  # type: ignore[attr-defined]
                self._replaced.append(module)
