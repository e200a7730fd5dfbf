"""The stream of a task or a resumable run: it has no client, and publishes to a channel what its producer makes."""

from __future__ import annotations

import logging
import math
import secrets
import threading
import time
from typing import Any, Final

from flask import Flask, has_request_context

from . import native, process, signals
from .brokers import Broker
from .brokers.tasks import Lease, TaskChange, TaskState
from .channel import checked_event
from .config import Settings, StreamOptions
from .emitter import RESERVED
from .errors import BrokerUnavailable, InvalidEvent, StreamClosed, StreamError, TaskEnded
from .event import ServerSentEvent, to_event
from .response import request_id
from .ring import Frames
from .state import CloseReason
from .stream import Stream, active

log = logging.getLogger("sseflask.tasks")

#: The part of a task that its end is.
END: Final = "end"
#: Seconds between two looks of the timer.
TICK_SECONDS: Final = 1.0
#: Seconds before a publish is tried again while the broker can't be reached.
RETRY_SECONDS: Final = 0.2
#: Seconds for which it is tried at the most: a broker remembers the token of a publish for 60.
MOST_RETRY_SECONDS: Final = 50.0

#: The states that the ends of a stream stand for; of one that others have concluded there is nothing left to say.
STATES: Final = {
    CloseReason.COMPLETED: TaskState.COMPLETED,
    CloseReason.ERROR: TaskState.FAILED,
    CloseReason.TIMEOUT: TaskState.FAILED,
    CloseReason.SHUTDOWN: TaskState.FAILED,
    CloseReason.CANCELLED: TaskState.CANCELLED,
    CloseReason.ABANDONED: TaskState.CANCELLED,
}


class ChannelSink:
    """The sink of a stream that no client reads: what is published is gone from here."""

    __slots__ = ("blocked_since",)

    def __init__(self) -> None:
        self.blocked_since: float | None = None

    def write(self, data: bytes) -> bool:
        """Takes nothing."""
        return True

    def write_shared(self, frames: Frames) -> bool:
        """Takes nothing."""
        return True

    def hold(self, data: bytes) -> bool:
        """Takes nothing."""
        return True

    def flush(self) -> None:
        """Does nothing: nothing is held."""

    def wait(self) -> None:
        """Doesn't wait."""

    def finish(self, last: bytes) -> None:
        """Ends when the producer has."""

    def abort(self) -> None:
        """Ends when the producer has."""


class DetachedStream(Stream):
    """What a producer writes to that belongs to no client: a channel, in the name of a task.

    Its end is told when the producer has ended, `finally` and contexts included.

    Attributes:
        task_id: The task's.
        channel: The channel of its events.
        counts_viewers: Whether it is to be told how many streams the channel has.
    """

    __slots__ = ("_asked", "_broker", "_error", "_is_concluded", "_result", "channel", "counts_viewers", "task_id")

    def __init__(
        self,
        task_id: str,
        channel: str,
        broker: Broker,
        options: StreamOptions,
        settings: Settings,
        *,
        app: Flask | None,
        path: str,
    ) -> None:
        """Makes a stream that hasn't begun.

        Args:
            task_id: The task's.
            channel: The channel of its events.
            broker: The app's.
            options: Resolved against `settings`.
            settings: The app's.
            app: The app.
            path: What stands for it in the log.
        """
        began = request_id() if has_request_context() else None
        super().__init__(ChannelSink(), options, settings, app=app, path=path, last_event_id=None, request_id=began)
        self.task_id = task_id
        self.channel = channel
        self.counts_viewers = False
        self._broker = broker
        self._silence = TICK_SECONDS
        self._ends_at = None
        self._result: Any = None
        self._error: BaseException | None = None
        self._asked: CloseReason | None = None
        self._is_concluded = False

    # What publishes.

    @property
    def is_current(self) -> bool:
        """Whether its own work calls this."""
        return active.get(None) is self

    def publish(self, event: ServerSentEvent, *, part: str | None = None) -> None:
        """Publishes an event in the task's name; waits for a broker that can't be reached now. For its own work.

        Args:
            event: The event; its id is ours to give.
            part: What of the task it shows, if it is to be kept for viewers that come later.

        Raises:
            InvalidEvent: It has an id of its own, or can't be published.
            StreamClosed: The stream has ended; raised once, later events are dropped.
            TaskEnded: The task has; in a native thread that works for it.
            BrokerUnavailable: The broker could not be reached for `SSE_PRODUCER_LEASE`, 50 s at the most.
        """
        without_id(event)
        if self.closed:
            if not native.is_apart():
                self.raise_interruption()
            return
        self._publish(event, part=part)
        self._raise_if_ended()

    def conclude(self, state: TaskState, event: ServerSentEvent) -> None:
        """Ends the task now, by its own word; its producer is told at its next event.

        Raises:
            TaskEnded: It has ended already.
            BrokerUnavailable: The broker could not be reached for too long.
        """
        self._store(event, END, state)
        self._is_concluded = True

    # What ends it.

    def ask(self, reason: CloseReason) -> None:
        """Ends the stream at the timer's next turn; from any native thread."""
        self._asked = reason
        self._expires_at = -math.inf
        self._schedule()

    def renewed(self, lease: Lease | None, viewers: int | None, now: float) -> None:
        """The broker knows that it lives; see `Holder`."""
        if lease is None or lease.state.is_final:
            if not self._is_concluded:
                self.ask(CloseReason.CONCLUDED)
        elif lease.is_cancel_asked:
            self.ask(CloseReason.CANCELLED)

    def complete(self, result: object) -> None:
        """Ends the stream because its producer returned `result`."""
        if self._error is not None:
            # An event is lost, whatever the producer made of that.
            self.fail(self._error)
            return
        self._result = result
        try:
            self._check_last(CloseReason.COMPLETED)
        except InvalidEvent as error:
            log.exception("the result of %s can't be published", self.quoted_path, extra=self.log_extra)
            self.fail(error)
        else:
            self.end(CloseReason.COMPLETED)

    def fail(self, error: BaseException) -> None:
        """Ends the stream because its producer raised."""
        self._error = error
        try:
            self._check_last(CloseReason.ERROR)
        except InvalidEvent as problem:
            details = error.details if isinstance(error, StreamError) else None
            text = "the error of %s can't be published with its details: %r"
            log.exception(text, self.quoted_path, details, extra=self.log_extra)
            self._error = error.without_details() if isinstance(error, StreamError) else problem
            try:
                self._check_last(CloseReason.ERROR)
            except InvalidEvent:
                # Its message can't be either.
                self._error = problem
        self.end(CloseReason.ERROR)

    def producer_ended(self) -> None:
        """The producer has ended, its contexts too: now everyone is told."""
        self.tell_end()
        super().producer_ended()
        self.sink_ended()

    def tell_end(self) -> None:
        """Publishes what waits and the end, once; waits for a broker that can't be reached now, and logs that it couldn't."""
        try:
            self._tell_end()
        except Exception:
            text = "the end of %s could not be published; it is told when its lease has run out"
            log.exception(text, self.quoted_path, extra=self.log_extra)

    def flush(self) -> None:
        """Publishes the text that waits, if it is due. That may take a while, for which no other stream's text is to wait."""
        coalescer = self._coalescer
        if coalescer is not None and coalescer.due is not None and coalescer.due <= time.monotonic():
            threading.Thread(target=self._flush, name="sseflask-flush", daemon=True).start()

    @property
    def log_extra(self) -> dict[str, str]:
        """As for every stream, and `sse_task`."""
        return {**super().log_extra, "sse_task": self.task_id}

    # For those who derive from it.

    def _last_event(self, reason: CloseReason) -> ServerSentEvent:
        """The event that ends the task.

        Raises:
            InvalidEvent: The producer's result can't be written.
        """
        raise NotImplementedError

    def _stored_event(self, event: ServerSentEvent) -> ServerSentEvent:
        """The event as it is to be published."""
        return event

    @property
    def _history(self) -> int | None:
        """Entries that the channel keeps; None for the app's setting."""
        return None

    @property
    def _closes_channel(self) -> bool:
        """Whether the task's end is the channel's."""
        return True

    # The rest is its own.

    def _write_item(self, item: Any, *, waits: bool = True, joins: bool = False) -> None:
        event = without_id(to_event(item))
        if event.data is None:
            # A comment, or a reconnection time: no event, for nobody could come back to it.
            return
        if self.closed:
            if waits:
                self.raise_interruption()
            return
        self._publish(event)
        if waits:
            self._raise_if_ended()

    def _publish(self, event: ServerSentEvent, *, part: str | None = None) -> None:
        """Publishes; if the task has ended meanwhile, ends the stream instead."""
        checked_event(event, self._settings.max_event_bytes)
        try:
            self._store(event, part, None)
        except TaskEnded:
            process.current().count("events_refused")
            if native.is_apart():
                # The producer runs elsewhere, and only there it can be interrupted.
                self.ask(CloseReason.CONCLUDED)
                raise
            self.end(CloseReason.CONCLUDED, interruption=StreamClosed(CloseReason.CONCLUDED))
            return
        self.sent(1, len(event.encode()), time.monotonic())

    def _store(self, event: ServerSentEvent, part: str | None, state: TaskState | None) -> None:
        """Hands an event to the broker, the same one again and again while that can't be reached."""
        token = secrets.token_hex(8)
        stored = self._stored_event(event)
        deadline = time.monotonic() + min(self._settings.producer_lease, MOST_RETRY_SECONDS)
        while True:
            try:
                event_id = self._broker.publish(
                    self.channel,
                    stored,
                    token=token,
                    is_end=state is not None and self._closes_channel,
                    history=self._history,
                    task=TaskChange(self.task_id, part, state),
                )
            except BrokerUnavailable:
                if time.monotonic() > deadline:
                    raise
                native.pause(RETRY_SECONDS)
            else:
                self._signal(stored, event_id)
                return

    def _check_last(self, reason: CloseReason) -> None:
        checked_event(self._last_event(reason), self._settings.max_event_bytes)

    def _tell_end(self) -> None:
        reason = self.reason
        if self._is_concluded or reason is None or reason not in STATES:
            return
        self._is_concluded = True
        try:
            self._publish_waiting()
        except (StreamError, InvalidEvent) as error:
            reason, self._error = CloseReason.ERROR, error
        try:
            self._store(self._last_event(reason), END, STATES[reason])
        except TaskEnded:
            # Somebody else was first.
            return

    def _flush(self) -> None:
        try:
            super().flush()
        except Exception as error:
            log.exception("what %s held back could not be published", self.quoted_path, extra=self.log_extra)
            self._error = error
            self.end(CloseReason.ERROR, interruption=StreamClosed(CloseReason.ERROR))

    def _publish_waiting(self) -> None:
        """Publishes the text that waits, after any that is being published."""
        if self._coalescer is not None:
            with self._putting:
                for text in self._coalescer.take(time.monotonic()):
                    self._publish(text)

    def _signal(self, event: ServerSentEvent, event_id: str) -> None:
        if self.app is not None and signals.event_published.receivers and not self.channel.startswith(RESERVED):
            signals.event_published.send(self.app, channel=self.channel, event=event, id=event_id)

    def _take_waiting(self) -> bytes:
        # Published with the end.
        return b""

    def _is_ended_at(self, now: float) -> bool:
        if self._asked is not None:
            return self.end(self._asked, interruption=StreamClosed(self._asked))
        return super()._is_ended_at(now)

    def _keep_alive(self, now: float) -> None:
        self.last_write = now


def without_id(event: ServerSentEvent) -> ServerSentEvent:
    """An event of a task or a run, whose id is ours to give.

    Raises:
        InvalidEvent: It has one.
    """
    if event.id is not None:
        raise InvalidEvent("id", event.id, "the ids of a task's or a resumable stream's events are sseflask's own")
    return event
