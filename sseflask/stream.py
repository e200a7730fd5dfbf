"""A stream: what joins a producer of events to the sink that takes them to one client.

Keepalives, deadlines, ages, limits and counters belong to the stream and are the same whatever produces and whatever takes.
"""

from __future__ import annotations

import contextvars
import datetime
import logging
import math
import os
import random
import threading
import time
import urllib.parse
from collections.abc import Callable, Collection
from typing import Any, Final

from flask import Flask

from . import native
from .callback import check_callback
from .coalesce import Coalescer
from .config import Settings, StreamOptions
from .errors import EventTooLarge, InvalidEvent, StreamClosed, StreamError, StreamTimeout
from .event import KEEPALIVE, ServerSentEvent, encode_item, retry_frame, to_event
from .position import EventId, RunId
from .ring import Frames
from .state import TRANSITIONS, CloseReason, Keeper, Part, Producer, Sink, StreamState
from .tally import Total

log = logging.getLogger("sseflask.stream")


#: A producer that still runs this many seconds after the end of its stream is reported with its stack.
STUCK_SECONDS: Final = 10.0
#: When a stream expires that the app has disconnected.
REVOKED_AT: Final = -math.inf
#: Seconds between two looks at a silent stream whose client doesn't take what waits for it.
BLOCKED_SECONDS: Final = 1.0
#: A generator that has yielded so many events, each within so many seconds of when it went on after the one before, has its next
#: ones joined, so many to a write: the first waits for those after it, about as long as some of their own writes would take.
BURST_EVENTS: Final = 8
BURST_SECONDS: Final = 0.00002
#: Seconds after which text that is due is sent that could not be without waiting.
FLUSH_SECONDS: Final = 0.05
#: What idle streams are sent, made once for all of them.
_KEEPALIVE: Final = Frames(KEEPALIVE)
#: What streams add their counters to that nobody has admitted.
_NOBODYS: Final = Total()


#: The stream whose generator runs here, or somebody works for it who has taken over its context variables.
active: Final[contextvars.ContextVar[Stream]] = contextvars.ContextVar("sseflask.active_stream")


def is_final_id(event_id: str | None) -> bool:
    """Whether an id is that of the last event of a finished stream, so that a reconnect with it is answered by 204."""
    position = (EventId.parse(event_id) or RunId.parse(event_id)) if event_id is not None else None
    return position is not None and position.final


class Stream:
    """One client's stream of events; inside its generator, `current_stream`.

    Attributes:
        id: Twelve hexadecimal digits, at random; in the log and in the `start` event.
        app: The app; None outside any.
        path: The path of the request, without its query.
        began: The monotonic second at which its request began: before anybody was asked whether it may be opened.
        told: The tokens of the disconnects that its own request has told before it made the stream.
        client: Who the client is, by `SSE.client_key` or its address; None where that isn't known or limited.
        request_id: What names its request in logs: `g.request_id`, else the header `X-Request-ID`; None where neither does.
        last_event_id: The id that the client says it saw last; None if it says none.
        events_sent: Events handed to the sink so far.
        bytes_sent: Bytes of the response's body handed to the sink so far, without framing and keepalives.
        last_write: The monotonic second at which it was last written to.
        closed: Whether its end is decided: nothing sent any more reaches the client.
        reason: Why it ended; None until its end is decided.
        sink: Where its bytes go now; `attach` changes it.
        slot: The timer's: where on its wheel the stream is.
        total: The counters of all of its process's streams, to which it adds what it sends.
    """

    __slots__ = (
        "__weakref__",
        "_burst",
        "_callbacks",
        "_coalescer",
        "_deadline",
        "_ends_at",
        "_expires_at",
        "_final",
        "_interruption",
        "_keeper",
        "_lock",
        "_opened",
        "_parts",
        "_producer",
        "_putting",
        "_settings",
        "_silence",
        "_started",
        "_state",
        "_timeout",
        "_went_on",
        "app",
        "began",
        "bytes_sent",
        "client",
        "closed",
        "events_sent",
        "id",
        "last_event_id",
        "last_write",
        "path",
        "reason",
        "request_id",
        "sink",
        "slot",
        "told",
        "total",
    )

    def __init__(
        self,
        sink: Sink,
        options: StreamOptions,
        settings: Settings,
        *,
        app: Flask | None,
        path: str,
        last_event_id: str | None,
        client: str | None = None,
        request_id: str | None = None,
    ) -> None:
        """Makes a stream that hasn't begun.

        Args:
            sink: Where its bytes go first; `attach` changes it.
            options: Resolved against `settings`.
            settings: Those of the app.
            app: The app; None outside any.
            path: The path of the request, without its query.
            last_event_id: What the client says it saw last.
            client: Who the client is, for the limit of streams per client; None where that isn't known.
            request_id: What names its request in logs.
        """
        self.id = os.urandom(6).hex()
        self.app = app
        self.client = client
        self.told: Collection[str] = ()
        self.request_id = request_id
        self.path = path
        self.last_event_id = last_event_id
        self.events_sent = 0
        self.bytes_sent = 0
        self.closed = False
        self._burst = 0
        self.reason: CloseReason | None = None
        self._settings = settings
        self.sink = sink
        self._producer: Producer | None = None
        self._parts = Part.SINK
        self._state = StreamState.OPENING
        self._lock = native.Lock()
        self._callbacks: list[Callable[[], object]] | None = None
        self._interruption: StreamClosed | None = None
        self._timeout = options.timeout
        self._final = bool(options.lifecycle)
        self._coalescer: Coalescer | None = None
        if options.coalesce is not None:
            self._coalescer = Coalescer(options.coalesce, max_event_bytes=settings.max_event_bytes)
            # Who takes a text that has waited writes it before anybody takes the next.
            self._putting = threading.RLock()
        # Each stream has its own patience, a little short of the interval: after an event to all, their keepalives spread.
        self._silence = options.keepalive * random.uniform(0.8, 1.0)
        self._opened = time.time()
        self._started = self.last_write = self._went_on = self.began = now = time.monotonic()
        self._deadline = None if options.timeout is None else now + options.timeout
        self._ends_at = None if options.max_age is None else now + options.max_age
        self._expires_at: float | None = None
        self._keeper: Keeper | None = None
        self.slot = 0
        self.total = _NOBODYS

    def __repr__(self) -> str:
        return f"<Stream {self.id} {self.path!r} {self._state.value}>"

    # What a generator uses, as `current_stream`.

    @property
    def opened_at(self) -> datetime.datetime:
        """When the stream began, with the time zone UTC."""
        return datetime.datetime.fromtimestamp(self._opened, datetime.UTC)

    @property
    def quoted_path(self) -> str:
        """The path as a log line may show it."""
        return urllib.parse.quote(self.path)

    @property
    def log_extra(self) -> dict[str, str]:
        """What a log line about the stream has beside its text: `sse_stream`, `sse_path` and, if there is one, `sse_request_id`."""
        extra = {"sse_stream": self.id, "sse_path": self.path}
        if self.request_id is not None:
            extra["sse_request_id"] = self.request_id
        return extra

    @property
    def state(self) -> StreamState:
        """Where the stream is in its life."""
        return self._state

    def send(self, data: object = None, *, event: str | None = None, id: str | None = None, retry: int | None = None) -> None:
        """Sends an event now, in order with what is yielded; for code that can't yield itself.

        Waits while the client doesn't keep up, for at most `SSE_SEND_TIMEOUT`.

        Args:
            data: As for a yielded value: a `ServerSentEvent`, a string, UTF-8 bytes, or anything that JSON can express.
            event: The event's name, one line; None for none, which browsers call `message`.
            id: The event's id; in a task or a resumable stream ids are sseflask's own.
            retry: Milliseconds that the client is to wait before it reconnects, 0 to `2**31 - 1`.

        Raises:
            InvalidEvent: The event can't be written.
            EventTooLarge: The event has more bytes than `SSE_MAX_EVENT_BYTES`.
            StreamClosed: The stream has ended; raised once, later events are dropped. In other greenlets or threads that work for
                the generator, with its context variables, it is raised each time.
            StreamError: The events of a resumable stream, or of one that `negotiate` collects, have more than `SSE_RUN_BYTES`.
            BrokerUnavailable: In a task or a resumable stream: the broker could not be reached for `SSE_PRODUCER_LEASE`, 50 s at
                the most.
        """
        self.put(to_event(data, event=event, id=id, retry=retry))

    def heartbeat(self, seconds: float = 10) -> bool:
        """Puts the stream's deadline off, to `seconds` from now.

        Args:
            seconds: Above 0, and at most the stream's time-out.

        Returns:
            Whether it was put off; False when the stream has no time-out, `seconds` isn't in those bounds, or it has ended.

        Raises:
            StreamClosed: The stream has ended; raised as by `send`.
        """
        if self.closed:
            self.raise_interruption()
            return False
        if self._timeout is None or not 0 < seconds <= self._timeout:
            return False
        self._deadline = time.monotonic() + seconds
        self._schedule()
        return True

    def on_close(self, callback: Callable[[], object]) -> Callable[[], object]:
        """Calls a function once, when the stream is closed; at once if it is already.

        Args:
            callback: Takes no argument, and may wait. What it raises is logged.

        Returns:
            The callback, so that this is also a decorator.

        Raises:
            TypeError: It can't be called, or is asynchronous or a generator function.
        """
        check_callback(callback, "on_close takes a function without arguments")
        with self._lock:
            if self._state is not StreamState.CLOSED:
                self._callbacks = [*(self._callbacks or ()), callback]
                return callback
        call_all([callback])
        return callback

    # What the producer uses.

    def expire_in(self, seconds: float) -> None:
        """Ends the stream that long from now, with the error event `token_expired`.

        Args:
            seconds: How long.
        """
        self._expires_at = time.monotonic() + seconds
        self._schedule()

    def revoke(self) -> None:
        """Ends the stream at the timer's next turn; from any native thread."""
        self._expires_at = REVOKED_AT
        self._schedule()

    def start(self, producer: Producer) -> bool:
        """Binds the producer that now begins to run; its deadline and age count from here.

        Args:
            producer: What makes the events.

        Returns:
            False, with nothing changed, if the stream has ended before.
        """
        with self._lock:
            if self.closed:
                return False
            self._producer = producer
            self._parts |= Part.PRODUCER
        delay = time.monotonic() - self._started
        self._started += delay
        self.last_write += delay
        if self._deadline is not None:
            self._deadline += delay
        if self._ends_at is not None:
            self._ends_at += delay
        return True

    def put(self, item: Any, *, joins: bool = False) -> None:
        """Sends what a generator yields; text perhaps a little later, together with what comes next.

        Args:
            item: What is sent.
            joins: Whether the caller gives way after each item, so that those of a burst may go out together.

        Raises:
            InvalidEvent: It can't be written.
            StreamClosed: The stream has ended; raised once.
        """
        coalescer = self._coalescer
        if coalescer is None:
            self._write_item(item, joins=joins)
            return
        before, now = coalescer.due, time.monotonic()
        # Whoever yields without a pause gives way by this, though nothing is written yet.
        self.last_write = now
        with self._putting:
            for ready in coalescer.add(item, now):
                self._write_item(ready)
        self._raise_if_ended()
        due = coalescer.due
        if due is not None and due != before and (keeper := self._keeper) is not None:
            keeper.flush_at(self, due)

    def flush(self) -> None:
        """Sends the text that waits, if it is due; in a while, if it can't be sent now without waiting."""
        coalescer, now = self._coalescer, time.monotonic()
        if coalescer is None or self.closed or coalescer.due is None or coalescer.due > now:
            # It has been sent, with what came next or by the end; what has come since has a time of its own.
            return
        if self.sink.blocked_since is not None or not self._putting.acquire(blocking=False):
            if (keeper := self._keeper) is not None:
                keeper.flush_at(self, now + FLUSH_SECONDS)
            return
        try:
            for ready in coalescer.take(now):
                self._write_item(ready, waits=False)
        finally:
            self._putting.release()

    def goes_on(self) -> None:
        """Its producer runs on, after it has let others run."""
        self._went_on = time.monotonic()

    def complete(self, result: object) -> None:
        """Ends the stream because its generator returned.

        Args:
            result: What it returned; a stream with a lifecycle sends it.
        """
        last = b""
        if self._final:
            try:
                last = ServerSentEvent({"result": result, "timestamp": timestamp()}, event="complete", id=self._final_id()).encode()
            except InvalidEvent as error:
                log.exception("the result of the stream at %s can't be sent", self.quoted_path, extra=self.log_extra)
                self.fail(error)
                return
        self._end_by_itself(CloseReason.COMPLETED, last)

    def fail(self, error: BaseException) -> None:
        """Ends the stream because its generator raised; the client gets the error event.

        Args:
            error: What it raised; of a `StreamError` that can't be written the client gets what can.
        """
        try:
            last = self._error_frame(error)
        except InvalidEvent as problem:
            details = error.details if isinstance(error, StreamError) else None
            text = "the error of the stream at %s can't be sent with its details: %r"
            log.exception(text, self.quoted_path, details, extra=self.log_extra)
            try:
                last = self._error_frame(error.without_details() if isinstance(error, StreamError) else problem)
            except InvalidEvent:
                # Its message can't be either.
                last = self._error_frame(problem)
        self._end_by_itself(CloseReason.ERROR, last)

    def take_interruption(self) -> StreamClosed | None:
        """What is to be raised in the producer because the stream has ended; None once it has been taken."""
        with self._lock:
            interruption, self._interruption = self._interruption, None
        return interruption

    def raise_interruption(self) -> None:
        """Raises what ended the stream: once in its producer's greenlet or thread, each time in others that work for it.

        Raises:
            StreamClosed: The stream has ended.
        """
        producer = self._producer
        if producer is not None and producer.is_here():
            if (interruption := self.take_interruption()) is not None:
                raise interruption
        elif self.reason is not None and active.get(None) is self:
            # The producer's own is for the producer alone, which waits perhaps, and would never learn of the end.
            raise StreamTimeout(self._timeout or 0) if self.reason is CloseReason.TIMEOUT else StreamClosed(self.reason)

    def producer_ended(self) -> None:
        """The producer has ended, its contexts too."""
        self._part_ended(Part.PRODUCER)

    @property
    def producer(self) -> Producer | None:
        """What makes its events; None before it begins, and once it has ended."""
        return self._producer

    # What the sink, the timer and the worker use.

    @property
    def send_timeout(self) -> float:
        """Seconds that the client may leave what was sent to it unread."""
        return self._settings.send_timeout

    def attach(self, sink: Sink) -> None:
        """Changes the sink; what the first one still held is the caller's to move, before `resume`.

        Args:
            sink: The new one.
        """
        self.sink = sink

    def resume(self) -> None:
        """The sink takes bytes again, or it is another one: the producer may go on."""
        producer = self._producer
        if producer is not None:
            producer.resume()

    def is_blocked(self) -> None:
        """Its sink takes no more: sees to it that the client has only so long."""
        self._schedule()

    def was_reset(self) -> None:
        """Counts that its client was told that something is gone."""
        if self._keeper is not None:
            self._keeper.count("resets")

    def was_replayed(self, events: int) -> None:
        """Counts what its client got that was there when it came back.

        Args:
            events: How many events.
        """
        if self._keeper is not None and events:
            self._keeper.count("events_replayed", events)

    def sent(self, events: int, size: int, now: float) -> None:
        """Counts what a producer has written to the sink by itself.

        Args:
            events: How many events.
            size: Their bytes together.
            now: The monotonic second.
        """
        self._count(events, size)
        self.last_write = now

    def open(self) -> None:
        """The response headers are on their way."""
        with self._lock:
            if self._state is StreamState.OPENING:
                self._change(StreamState.LIVE)

    def end(self, reason: CloseReason, last: bytes = b"", interruption: StreamClosed | None = None) -> bool:
        """Decides the stream's end. The first call counts; later ones change nothing.

        Args:
            reason: Why.
            last: Frames that the client still gets, after all that was written.
            interruption: What is raised, once, in the producer.

        Returns:
            Whether this call decided it.
        """
        with self._lock:
            if self.closed:
                return False
            self._change(StreamState.DRAINING)
            self.reason = reason
            if self._parts & Part.PRODUCER:
                self._interruption = interruption
        self.last_write = time.monotonic()
        if self._coalescer is not None:
            last = self._take_waiting() + last
        if reason in (CloseReason.DISCONNECTED, CloseReason.LOST, CloseReason.SLOW):
            self.sink.abort()
        else:
            self._count(0, len(last))
            self.sink.finish(last)
        if interruption is not None and self._producer is not None:
            self._producer.interrupt()
        self._schedule()
        return True

    def drain(self) -> None:
        """Ends the stream because the worker stops; its client is told to come back after a jittered time.

        What was published before goes out first.
        """
        try:
            self.resume()
        except Exception:
            # It ends all the same.
            log.exception("the stream at %s failed to send what was left", self.quoted_path, extra=self.log_extra)
        self.end(CloseReason.SHUTDOWN, self._come_back(), StreamClosed(CloseReason.SHUTDOWN))

    def stop(self) -> None:
        """Ends the stream because the worker leaves, without a word to the client but that of its own end."""
        self.end(CloseReason.SHUTDOWN, interruption=StreamClosed(CloseReason.SHUTDOWN))

    def tell_end(self) -> None:
        """Tells the end of a stream that others know of; of one that is its client's alone there is nothing to tell."""

    def discard(self, reason: CloseReason) -> None:
        """Ends a stream whose producer never began, without a word to the client.

        Args:
            reason: Why.
        """
        if self.end(reason):
            self.sink_ended()

    def sink_ended(self, reason: CloseReason = CloseReason.DISCONNECTED) -> None:
        """The sink has sent its last byte, or lost its client.

        Args:
            reason: Why the stream ends, if its end wasn't decided before.
        """
        if not self.closed:
            self.end(reason, interruption=StreamClosed(reason))
        self._part_ended(Part.SINK)

    def keep_with(self, keeper: Keeper) -> None:
        """Says who calls `tick`.

        Args:
            keeper: Who does.
        """
        self._keeper = keeper

    def seconds(self, now: float) -> float:
        """How long the stream has lived.

        Args:
            now: The monotonic second.

        Returns:
            Seconds since it began.
        """
        return now - self._started

    def due(self) -> float | None:
        """The monotonic second at which `tick` has something to do; None once the stream is closed."""
        if self.closed:
            if self._state is StreamState.CLOSED:
                return None
            due = self.last_write + STUCK_SECONDS
        else:
            due = self.last_write + self._silence
            if self._deadline is not None:
                due = min(due, self._deadline)
            if self._ends_at is not None:
                due = min(due, self._ends_at)
            if self._expires_at is not None:
                due = min(due, max(self._expires_at, self._started))
        blocked = self.sink.blocked_since
        return due if blocked is None else min(due, blocked + self._settings.send_timeout)

    def tick(self, now: float) -> None:
        """Does what is due: a keepalive, the end of a late, old or slow stream, a word on a stuck producer.

        Args:
            now: The monotonic second.
        """
        if not self.closed:
            if not self._is_ended_at(now):
                self._keep_alive(now)
        elif self._state is StreamState.DRAINING:
            self._tick_draining(now)

    # The rest is the stream's own.

    def _is_ended_at(self, now: float) -> bool:
        """Ends the stream if its time is up. Returns whether it was."""
        blocked = self.sink.blocked_since
        if self._deadline is not None and now >= self._deadline:
            error = StreamTimeout(self._timeout or 0)
            return self.end(CloseReason.TIMEOUT, self._error_frame(error), error)
        if self._expires_at == REVOKED_AT:
            return self.end(CloseReason.REVOKED, self._come_back(), StreamClosed(CloseReason.REVOKED))
        if self._expires_at is not None and now >= self._expires_at:
            problem = StreamError("the token that allowed this stream has expired", error_type="token_expired")
            return self.end(CloseReason.EXPIRED, self._error_frame(problem), StreamClosed(CloseReason.EXPIRED))
        if self._ends_at is not None and now >= self._ends_at:
            return self.end(CloseReason.MAX_AGE, interruption=StreamClosed(CloseReason.MAX_AGE))
        if blocked is not None and now >= blocked + self._settings.send_timeout:
            return self.end(CloseReason.SLOW, interruption=StreamClosed(CloseReason.SLOW))
        return False

    def _keep_alive(self, now: float) -> None:
        if now < self.last_write + self._silence:
            return
        if self.sink.blocked_since is not None:
            # Nothing to add to what waits; looked at again in a while.
            self.last_write = now - self._silence + min(BLOCKED_SECONDS, self._silence)
        else:
            self.last_write = now
            if self._state is StreamState.LIVE:
                self.sink.write_shared(_KEEPALIVE)
                if self._keeper is not None:
                    self._keeper.count("keepalives")

    def _tick_draining(self, now: float) -> None:
        blocked = self.sink.blocked_since
        if blocked is not None and now >= blocked + self._settings.send_timeout:
            self.sink.abort()
        elif now >= self.last_write + STUCK_SECONDS:
            self.last_write = math.inf
            if self._keeper is not None and self._producer is not None and self._parts & Part.PRODUCER:
                self._keeper.report_stuck(self, self._producer.stack())

    def _come_back(self) -> bytes:
        """Tells a client to come back after a jittered time, so that not all do at once."""
        base = self._settings.retry if self._settings.retry is not None else 2000
        return retry_frame(int(base * random.uniform(0.5, 1.5)))

    def _end_by_itself(self, reason: CloseReason, last: bytes) -> None:
        """Ends it where its producer has; not while another thread is about to send text that was due."""
        if self._coalescer is None:
            self.end(reason, last)
            return
        with self._putting:
            self.end(reason, last)

    def _take_waiting(self) -> bytes:
        """The text that waits, encoded."""
        assert self._coalescer is not None
        waiting = self._coalescer.take(self.last_write)
        self._count(len(waiting), 0)
        return b"".join([encode_item(text) for text in waiting])

    def _write_item(self, item: Any, *, waits: bool = True, joins: bool = False) -> None:
        """Hands one event to the sink.

        Args:
            item: What is sent.
            waits: Whether to wait while the client doesn't keep up, and to raise what ended the stream; else the next does so.
            joins: As for `put`.

        Raises:
            EventTooLarge: It is larger than `SSE_MAX_EVENT_BYTES`.
            InvalidEvent: It can't be written.
            StreamClosed: The stream has ended; raised once, later events are dropped.
        """
        frame = encode_item(item)
        size = len(frame)
        if size > self._settings.max_event_bytes:
            raise EventTooLarge(frame[:60], size, self._settings.max_event_bytes)
        if self.closed:
            if waits:
                self.raise_interruption()
            return
        # As `_count`, without its call.
        total = self.total
        self.events_sent += 1
        self.bytes_sent += size
        total.events += 1
        total.size += size
        now = time.monotonic()
        self._burst = self._burst + 1 if now - self._went_on < BURST_SECONDS else 0
        self.last_write = self._went_on = now
        sink = self.sink
        # Who pauses between two events, to wait or to work, has each sent at once: nothing would send it while its code runs.
        is_held = joins and self._burst > BURST_EVENTS and self._burst % BURST_EVENTS != 0
        if is_held:
            takes_more = sink.hold(frame)
        else:
            takes_more = sink.write(frame)
            # What a write takes isn't the generator's pause.
            self._went_on = time.monotonic()
        if not takes_more:
            self._schedule()
            if waits:
                sink.wait()
        if waits:
            self._raise_if_ended()

    def _count(self, events: int, size: int) -> None:
        self.events_sent += events
        self.bytes_sent += size
        total = self.total
        total.events += events
        total.size += size

    def _raise_if_ended(self) -> None:
        if self.closed:
            self.raise_interruption()

    def _schedule(self) -> None:
        if self._keeper is not None:
            self._keeper.schedule(self)

    def _change(self, state: StreamState) -> None:
        assert state in TRANSITIONS[self._state], f"{self._state} -> {state}"
        self._state = state
        self.closed = state is StreamState.DRAINING or state is StreamState.CLOSED

    def _part_ended(self, part: int) -> None:
        with self._lock:
            self._parts &= ~part
            if self._parts or self._state is not StreamState.DRAINING:
                return
            self._change(StreamState.CLOSED)
            callbacks, self._callbacks = self._callbacks, None
            keeper, self._keeper = self._keeper, None
            # The producer knows the stream: without this the pair would wait for the garbage collector.
            self._producer = None
        if keeper is not None:
            keeper.stream_closed(self, callbacks or [])
        else:
            call_all(callbacks or [])

    def _error_frame(self, error: BaseException) -> bytes:
        final_id = self._final_id() if self._final else None
        return ServerSentEvent(
            error_data(error, debug=self.app is not None and self.app.debug), event=self._settings.error_event, id=final_id
        ).encode()

    def _final_id(self) -> str:
        return str(EventId(self.id, self.events_sent + 1, final=True))


def prelude(stream: Stream, options: StreamOptions) -> bytes:
    """What comes before a stream's first event: the reconnection time, and the `start` event of a stream with a lifecycle."""
    frames = b"" if options.retry is None else retry_frame(options.retry)
    if options.lifecycle:
        added = {} if isinstance(options.lifecycle, bool) else options.lifecycle
        frames += ServerSentEvent({"stream": stream.id, "timestamp": timestamp(), **added}, event="start").encode()
    return frames


def timestamp() -> str:
    """The time as in ISO 8601, in UTC and to the millisecond: what `new Date(…)` reads."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def error_data(error: BaseException, *, debug: bool) -> dict[str, Any]:
    """What the error event carries: the message only where it is meant for the client, or the app is in debug mode."""
    if isinstance(error, StreamError):
        data: dict[str, Any] = {"error": error.message, "error_type": error.error_type, "timestamp": timestamp()}
        if error.details:
            data["details"] = error.details
        return data
    if isinstance(error, StreamTimeout):
        message = f"the stream's time-out of {error.timeout:g} s has passed"
        return {"error": message, "error_type": "timeout", "timestamp": timestamp()}
    if debug:
        return {"error": str(error), "error_type": type(error).__name__, "timestamp": timestamp()}
    return {"error": "an error ended the stream", "error_type": "internal_error", "timestamp": timestamp()}


def call_all(callbacks: list[Callable[[], object]]) -> None:
    """Calls what was registered with `Stream.on_close`; what one raises is logged and stops no other."""
    for callback in callbacks:
        try:
            callback()
        except Exception:
            log.exception("a callback on the end of a stream failed", extra={"sse_function": repr(callback)})
