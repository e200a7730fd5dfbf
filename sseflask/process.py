"""What one process has open: its streams, what they counted, and the timer that keeps them."""

from __future__ import annotations

import collections
import logging
import os
import resource
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from . import native, signals
from .brokers import Broker, Waker
from .config import Settings
from .state import CloseReason
from .stream import Stream, call_all
from .tally import Total
from .timer import Flusher, Timer
from .waker import ThreadWaker

log = logging.getLogger("sseflask.stream")

#: Files that a worker needs besides its streams' sockets: listeners, logs, databases, requests that are no streams.
RESERVED_FILES: Final = 64
#: Seconds between two lines that say that streams are refused, or requests because of the broker.
REFUSALS_INTERVAL: Final = 10.0
#: Closed streams that are remembered, and the characters of their paths.
CLOSES_KEPT: Final = 50
CLOSE_PATH_CHARACTERS: Final = 120


class Process:
    """The streams of this process. Made at first use in each process, so a fork starts with none.

    Attributes:
        streams: Those that are open, their producers' `finally` included.
        detached: Those of tasks and resumable runs, which have no client of their own and go on while the others drain.
        draining: Whether the worker is stopping: streams that open now end at once.
        opened: Streams opened so far.
        closed: Streams closed so far, by reason.
        closes: The last of them, oldest first: `at` (the Unix second), `path`, `reason`, `seconds`, `events` and `worker`.
        sent: What all streams together have sent so far, those that are closed too.
        refused: Streams that found no room, a worker that was stopping or a broker that can't be reached, by what it was for.
        counted: What happened to streams besides: resets, keepalives, replayed events, clients that were cut because they didn't
            keep up, events of tasks that had ended.
        ended: Tasks and resumable runs that have ended here, by reason.
        stuck: Producers that still ran 10 s after the end of their streams.
        waker: Tells streams of new entries.
        brokers: Those of its apps, as far as they have been used.
        directory: Where the processes of one server keep what they share, until it stops; None where there is no such place.
        on_exit: Called by the worker when its last stream has ended.
        has_loaded: Whether the app has been loaded, so that apps which are made from here on are made by requests.
        workers: Processes that serve the same app beside this one, this one included, as far as known.
        make_runner: Makes what runs a producer outside any request; None for a thread.
        run: Calls the callbacks of a closed stream. They may wait, which not every place may in which a stream's end is noticed.
    """

    def __init__(self) -> None:
        self.streams: set[Stream] = set()
        self.draining = False
        self.opened = 0
        self.closed: collections.Counter[CloseReason] = collections.Counter()
        self.closes: collections.deque[dict[str, Any]] = collections.deque(maxlen=CLOSES_KEPT)
        self.sent = Total()
        self.refused: collections.Counter[str] = collections.Counter()
        self.ended: collections.Counter[CloseReason] = collections.Counter()
        self.brokers: list[Broker] = []
        self.stuck = 0
        self.counted: collections.Counter[str] = collections.Counter()
        self.detached: set[Stream] = set()
        self.timer = Timer()
        self.flusher = Flusher()
        self.waker: Waker = ThreadWaker()
        self.directory: Path | None = None
        self.on_exit: list[Callable[[], object]] = []
        self.has_loaded = False
        self.workers = 1
        self.make_runner: Callable[[], Any] | None = None
        self.run: Callable[[list[Callable[[], object]]], object] = self._run_here
        self._said: set[str] = set()
        self._broker_due = 0.0
        self._clients: dict[str, int] = {}
        self._refusals_said = 0
        self._refusals_due = 0.0
        self._lock = native.Lock()

    def admit(self, stream: Stream, settings: Settings) -> str | None:
        """Counts a stream in, until it is closed.

        Args:
            stream: One that is about to begin.
            settings: With the limits.

        Returns:
            The name of the limit that leaves no room for it; None if there was room.
        """
        limit = most_streams(settings)
        with self._lock:
            if len(self.streams) >= limit:
                return "SSE_MAX_STREAMS"
            if (most := settings.max_streams_per_client) is not None and stream.client is not None:
                if self._clients.get(stream.client, 0) >= most:
                    return "SSE_MAX_STREAMS_PER_CLIENT"
                self._clients[stream.client] = self._clients.get(stream.client, 0) + 1
            self.streams.add(stream)
            self.opened += 1
        stream.total = self.sent
        # What came before: its prelude, perhaps what the view has sent.
        self.sent.events += stream.events_sent
        self.sent.size += stream.bytes_sent
        stream.keep_with(self)
        self.timer.schedule(stream)
        return None

    def has_room_for_a_run(self, settings: Settings) -> bool:
        """Whether another resumable run may begin: there may be as many as streams."""
        return len(self.detached) < most_streams(settings)

    def keep(self, stream: Stream) -> None:
        """Keeps a stream that has no client of its own, until it is closed."""
        self.detached.add(stream)
        stream.keep_with(self)
        self.timer.schedule(stream)

    def flush_at(self, stream: Stream, due: float) -> None:
        """Has what a stream holds back written at the monotonic second `due`."""
        self.flusher.flush_at(stream, due)

    def schedule(self, stream: Stream) -> None:
        """Tells the timer that a stream may be due earlier than it was."""
        self.timer.schedule(stream)

    def count(self, what: str, by: int = 1) -> None:
        """Counts something that happened to a stream."""
        self.counted[what] += by

    def refuse(self, limit: str, name: str) -> None:
        """Counts a stream that isn't opened, and says so, once in a while.

        Args:
            limit: The setting that names the limit, or why else, for people.
            name: The same for metrics.
        """
        self.refused[name] += 1
        now = time.monotonic()
        if now < self._refusals_due:
            return
        self._refusals_due = now + REFUSALS_INTERVAL
        refused = self.refused.total()
        count, self._refusals_said = refused - self._refusals_said, refused
        extra = {"sse_limit": limit, "sse_refused": count, "sse_streams": len(self.streams)}
        log.warning(
            "streams are refused: %s (%d since the last line like this, %d are open)", limit, count, len(self.streams), extra=extra
        )

    def tell_of_broker(self, problem: str, path: str) -> None:
        """Says in the log why the broker can't be used; after an outage thousands ask, so once in 10 s is enough.

        Args:
            problem: Why.
            path: The request's.
        """
        now = time.monotonic()
        if now >= self._broker_due:
            self._broker_due = now + REFUSALS_INTERVAL
            logging.getLogger("sseflask.broker").warning("a request is answered 503: %s", problem, extra={"sse_path": path})

    def is_first(self, problem: str) -> bool:
        """Whether this is the first time that a problem is met here, which is said once."""
        is_first = problem not in self._said
        self._said.add(problem)
        return is_first

    def report_stuck(self, stream: Stream, stack: str) -> None:
        """Logs and counts a producer that still runs long after its stream's end."""
        self.stuck += 1
        log.warning(
            "the generator of the stream at %s still runs after its stream ended (%s):\n%s",
            stream.quoted_path,
            stream.reason,
            stack,
            extra={**stream.log_extra, "sse_reason": stream.reason and stream.reason.value},
        )

    def stats(self) -> dict[str, Any]:
        """This process's streams and counters, as `sse.stats()` shows them."""
        return {
            "streams": len(self.streams),
            "streams_opened": self.opened,
            "streams_closed": {reason.value: count for reason, count in self.closed.items()},
            "streams_refused": self.refused.total(),
            "streams_stuck": self.stuck,
            "events_sent": self.sent.events,
            "bytes_sent": self.sent.size,
            "detached": len(self.detached),
            "events_replayed": self.counted["events_replayed"],
            "events_refused": self.counted["events_refused"],
            "keepalives": self.counted["keepalives"],
            "resets": self.counted["resets"],
            "slow_clients": self.counted["slow_clients"],
            "draining": self.draining,
            "lag_seconds": self.timer.lag,
            "max_lag_seconds": self.timer.max_lag,
        }

    def numbers(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """What there is now and what was counted since the process began, of all its apps, as plain values for JSON.

        Others have their turn while it looks at many streams of the channels that are counted.

        Returns:
            What goes up and down, and what only grows: numbers, numbers by a label's value, and histograms.
        """
        brokers = list(self.brokers)
        with self._lock:
            streams = len(self.streams)
            closed = {reason.value: count for reason, count in self.closed.items()}
            opened = self.opened
            closes = list(self.closes)
        patterns: dict[str, collections.Counter[str]] = {}
        for broker in brokers:
            for pattern, counted in broker.count_by_pattern().items():
                patterns.setdefault(pattern, collections.Counter()).update(counted)
        now = {
            "streams": streams,
            "subscriptions": sum(broker.emitter.subscriptions for broker in brokers),
            "channels": sum(len(broker.emitter.channels()) for broker in brokers),
            "detached": len(self.detached),
            "history_bytes": sum(broker.log.size for broker in brokers),
            "broker_up": int(all(broker.is_up for broker in brokers)),
            "draining": int(self.draining),
            "lag_seconds": self.timer.lag,
            "max_lag_seconds": self.timer.max_lag,
            "channel_subscriptions": {pattern: counted["subscriptions"] for pattern, counted in patterns.items()},
            "closes": closes,
        }
        ever = {
            "streams_opened": opened,
            "streams_closed": closed,
            "streams_refused": dict(self.refused),
            "streams_stuck": self.stuck,
            "detached_ended": {reason.value: count for reason, count in list(self.ended.items())},
            "events_published": sum(broker.published for broker in brokers),
            "events_sent": self.sent.events,
            **{name: self.counted[name] for name in ("events_replayed", "events_refused", "resets", "keepalives", "slow_clients")},
            "bytes_sent": self.sent.size,
            "broker_outages": sum(broker.outages for broker in brokers),
            "broker_reconnects": sum(broker.reconnects for broker in brokers),
            "latency": self.waker.latency.histogram.numbers(),
            "lags": self.timer.lags.numbers(),
            "channel_events_published": {pattern: counted["published"] for pattern, counted in patterns.items()},
            "channel_events_sent": {pattern: counted["delivered"] for pattern, counted in patterns.items()},
        }
        return now, ever

    def stream_closed(self, stream: Stream, callbacks: list[Callable[[], object]]) -> None:
        """Counts a stream out, logs its end, and calls what waits for it."""
        reason = stream.reason or CloseReason.COMPLETED
        if stream in self.detached:
            self.detached.discard(stream)
            self.ended[reason] += 1
            self.timer.schedule(stream)
            self.run(callbacks)
            return
        seconds = stream.seconds(time.monotonic())
        close = {
            "at": round(time.time(), 3),
            "path": stream.path[:CLOSE_PATH_CHARACTERS],
            "reason": reason.value,
            "seconds": round(seconds, 3),
            "events": stream.events_sent,
            "worker": os.getpid(),
        }
        with self._lock:
            self.streams.discard(stream)
            self.closed[reason] += 1
            self.closes.append(close)
            if stream.client is not None and (others := self._clients.get(stream.client, 0)):
                if others > 1:
                    self._clients[stream.client] = others - 1
                else:
                    del self._clients[stream.client]
        self.timer.schedule(stream)
        if reason is CloseReason.SLOW:
            self.counted["slow_clients"] += 1
        callbacks = [*callbacks, *signals.calls(stream, reason)]
        if log.isEnabledFor(logging.INFO):
            callbacks.insert(0, lambda: _log_end(stream, reason, seconds))
        if callbacks:
            self.run(callbacks)

    def _run_here(self, callbacks: list[Callable[[], object]]) -> None:
        """Calls them where the end was noticed, unless others would wait for them there."""
        if self.timer.is_running_here():
            threading.Thread(target=call_all, args=(callbacks,), name="sseflask-callbacks", daemon=True).start()
        elif not self.waker.defer(lambda: call_all(callbacks)):
            call_all(callbacks)


def most_streams(settings: Settings) -> int:
    """The streams that a process may have open."""
    if settings.max_streams is not None:
        return settings.max_streams
    soft, _hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(soft - RESERVED_FILES, 1)


def _log_end(stream: Stream, reason: CloseReason, seconds: float) -> None:
    facts = {
        "sse_reason": reason.value,
        "sse_seconds": round(seconds, 3),
        "sse_events": stream.events_sent,
        "sse_bytes": stream.bytes_sent,
    }
    log.info(
        "stream closed path=%s reason=%s seconds=%.3f events=%d bytes=%d id=%s%s",
        stream.quoted_path,
        reason.value,
        seconds,
        stream.events_sent,
        stream.bytes_sent,
        stream.id,
        f" request_id={stream.request_id}" if stream.request_id is not None else "",
        extra={**stream.log_extra, **facts},
    )


_processes: Final[dict[int, Process]] = {}


def current() -> Process:
    """What this process has open."""
    pid = os.getpid()
    process = _processes.get(pid)
    if process is None:
        # A forked child has its parent's entry under the parent's id: dropped, with locks that belong there.
        process = _processes.setdefault(pid, Process())
        for other in [key for key in _processes if key != pid]:
            _processes.pop(other, None)
    return process


def has_loaded() -> bool:
    """Whether this process is a worker that has loaded what it serves; asking makes nothing of a process that has nothing open."""
    process = _processes.get(os.getpid())
    return process is not None and process.has_loaded
