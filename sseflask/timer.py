"""The heartbeat: one timer a process for the keepalives, deadlines and ages of all its streams."""

from __future__ import annotations

import heapq
import itertools
import logging
import math
import os
import threading
import time
from collections.abc import Callable
from typing import Final

from . import native
from .stream import Stream
from .tally import Histogram

log = logging.getLogger("sseflask.timer")

#: Seconds between two turns of the wheel while there are streams: how late a keepalive or a deadline may be.
TICK_SECONDS: Final = 0.1
#: Seconds that the timer may itself be late before that is worth a warning, and between two of those warnings.
LATE_SECONDS: Final = 0.5
WARNING_INTERVAL: Final = 10.0
#: Seconds that the timer works before it lets others run.
SLICE_SECONDS: Final = 0.0005


#: Something done about once a second, with the monotonic second; False ends it.
Chore = Callable[[float], bool]


class Timer:
    """A wheel of slots, each a tenth of a second; a stream stands in the slot in which it is due next.

    It runs in a daemon thread, which is a greenlet where gevent has patched `threading`, from the first stream on.

    Attributes:
        lag: Seconds that the timer last woke late: how long nothing else in this process could run, or the hub's lag.
        max_lag: The longest of these.
        lags: All of them.
    """

    def __init__(self) -> None:
        self.lag = 0.0
        self.max_lag = 0.0
        self.lags = Histogram()
        self._wheel: dict[int, set[Stream]] = {}
        self._turned = int(time.monotonic() / TICK_SECONDS)
        self._lock = native.Lock()
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None
        self._chores: list[Chore] = []
        self._chores_at = 0.0
        self._warned = -WARNING_INTERVAL
        self._pid = os.getpid()

    def schedule(self, stream: Stream) -> None:
        """Puts a stream where it is due, or takes it out if it is closed."""
        with self._lock:
            self._place(stream)
        self._begin()

    def call_every_second(self, chore: Chore) -> None:
        """Calls `chore` with the monotonic second about once a second, until it returns False."""
        with self._lock:
            self._chores.append(chore)
        self._begin()

    def turn(self, now: float) -> None:
        """Ticks all streams in the slots up to the monotonic second `now`, letting others run in between.

        The timer's own thread calls it; so does who moves the clock on.
        """
        until = int(now / TICK_SECONDS)
        if until < self._turned:
            self._go_back(until)
        with self._lock:
            # Few slots, each of which may be empty; or a clock that was moved on by hours, and few that aren't.
            ahead = range(self._turned + 1, until + 1)
            slots = ahead if len(ahead) <= len(self._wheel) else sorted(slot for slot in self._wheel if slot <= until)
            due = [(slot, stream) for slot in slots for stream in self._wheel.pop(slot, ())]
            self._turned = until
        since = now
        ticked: list[Stream] = []
        for slot, stream in due:
            # One that was put elsewhere meanwhile has another slot.
            if stream.slot == slot:
                self._tick(stream, now)
                ticked.append(stream)
            if time.monotonic() - since > SLICE_SECONDS:
                self._place_all(ticked)
                # More than 0: under gevent, 0 would come back before sockets and other timers have had their turn.
                time.sleep(1e-9)
                since = time.monotonic()
        self._place_all(ticked)

    def is_running_here(self) -> bool:
        """Whether the caller is the timer's thread."""
        return self._thread is not None and threading.current_thread() is self._thread

    def _place(self, stream: Stream) -> None:
        """As `schedule`, under the lock: what another thread has changed before is seen, or that thread comes after this."""
        due, wheel = stream.due(), self._wheel
        if (waiting := wheel.get(stream.slot)) is not None:
            waiting.discard(stream)
        if due is not None and due != math.inf:
            # A slot that has had its turn would wait for ever.
            stream.slot = slot = max(int(due / TICK_SECONDS) + 1, self._turned + 1)
            if (waiting := wheel.get(slot)) is not None:
                waiting.add(stream)
            else:
                wheel[slot] = {stream}

    def _place_all(self, streams: list[Stream]) -> None:
        """Puts those that have been ticked where they are due next, and empties the list."""
        with self._lock:
            for stream in streams:
                self._place(stream)
        if streams:
            self._begin()
            streams.clear()

    def _begin(self) -> None:
        """Starts the thread, or wakes it; outside the lock, which nobody may hold while others run."""
        if self._thread is not None and self._wake.is_set():
            return
        if native.is_patched() and not native.is_main_thread():
            # A greenlet of this native thread would end with it. The timer sees to what is new when it next wakes.
            return
        thread = None
        with self._lock:
            if self._thread is None:
                thread = self._thread = threading.Thread(target=self._run, name="sseflask-timer", daemon=True)
        if thread is not None:
            try:
                thread.start()
            except RuntimeError as error:
                # There are no more threads, perhaps: the next stream that is scheduled tries again.
                self._thread = None
                text = "the timer can't begin: no keepalives, time-outs or ages until it can"
                log.exception(text, extra={"sse_problem": str(error)})
                return
        if not self._wake.is_set():
            self._wake.set()

    def _run(self) -> None:
        while True:
            self._wake.wait()
            # Not the clock of the streams: that one may be moved on by a test, and nothing would be late.
            before = time.perf_counter()
            time.sleep(TICK_SECONDS)
            if os.getpid() != self._pid:
                # A greenlet's copy in a child that was forked from here: the streams are its parent's.
                return
            lag, now = time.perf_counter() - before - TICK_SECONDS, time.monotonic()
            self._measure(lag, now)
            self.turn(now)
            if now >= self._chores_at:
                self._chores_at = now + 1.0
                self._do_chores(now)
            with self._lock:
                if not self._wheel and not self._chores:
                    self._wake.clear()

    def _go_back(self, slot: int) -> None:
        """Goes on from a slot before the last turn: a test has moved the clock on, and put the real one back."""
        with self._lock:
            streams = [stream for waiting in self._wheel.values() for stream in waiting]
            self._wheel.clear()
            self._turned = slot
            self._chores_at = 0.0
        for stream in streams:
            self.schedule(stream)

    def _do_chores(self, now: float) -> None:
        for chore in list(self._chores):
            try:
                goes_on = chore(now)
            except Exception:
                log.exception("the timer failed on %r", chore, extra={"sse_function": repr(chore)})
                goes_on = True
            if not goes_on:
                with self._lock:
                    self._chores.remove(chore)

    def _tick(self, stream: Stream, now: float) -> None:
        try:
            stream.tick(now)
        except Exception:
            log.exception("the timer failed on %r", stream, extra=stream.log_extra)

    def _measure(self, lag: float, now: float) -> None:
        self.lag = max(lag, 0.0)
        self.max_lag = max(self.max_lag, self.lag)
        self.lags.observe(lag)
        if lag > LATE_SECONDS and now - self._warned >= WARNING_INTERVAL:
            self._warned = now
            text = "the timer woke %.1f s late: a blocking call, or work without a pause, kept every stream of this process waiting"
            log.warning(text, lag, extra={"sse_seconds": round(lag, 3)})


class Flusher:
    """Writes what streams hold back for moments, when its time has come.

    It runs in a daemon thread, which is a greenlet where gevent has patched `threading`, from the first stream on.
    """

    def __init__(self) -> None:
        self._due: list[tuple[float, int, Stream]] = []
        self._numbers = itertools.count()
        self._changed = threading.Condition()
        self._pid = os.getpid()
        self._thread: threading.Thread | None = None

    def flush_at(self, stream: Stream, due: float) -> None:
        """Has `stream.flush` called at the monotonic second `due`, or soon after it."""
        with self._changed:
            heapq.heappush(self._due, (due, next(self._numbers), stream))
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="sseflask-flusher", daemon=True)
                try:
                    self._thread.start()
                except RuntimeError:
                    self._thread = None
                    text = "what streams hold back can't be written in time: it waits for what comes next"
                    log.exception(text, extra={"sse_path": stream.path})
            elif self._due[0][2] is stream:
                self._changed.notify()

    def _run(self) -> None:
        while True:
            with self._changed:
                while (early := self._early()) is None or early > 0:
                    self._changed.wait(early)
                _, _, stream = heapq.heappop(self._due)
            if os.getpid() != self._pid:
                # As the timer's.
                return
            try:
                stream.flush()
            except Exception:
                log.exception("what %r held back could not be written", stream, extra=stream.log_extra)

    def _early(self) -> float | None:
        """Seconds until the next stream is due; None while none is."""
        return self._due[0][0] - time.monotonic() if self._due else None
