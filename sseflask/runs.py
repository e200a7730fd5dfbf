"""Resumable streams: a view's generator that runs detached from its clients, so that one who comes back goes on where it was.

The ids of a run's events name it. They are its key too: who knows one, and asks the same view for the same thing, may watch it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import secrets
from collections.abc import Callable, Iterator
from typing import Any, Final

from flask import Flask, Response, request
from werkzeug.exceptions import BadRequest, TooManyRequests

from . import process
from .brokers import Broker
from .brokers.tasks import Lease, TaskRecord, TaskState
from .config import Settings, StreamOptions
from .context import GeneratorContext
from .detached import END, DetachedStream
from .errors import BrokerUnavailable, StreamClosed, StreamError, StreamTimeout, TaskEnded
from .event import ServerSentEvent
from .handoff import Failure, Handoff
from .lease import TURN_SECONDS
from .position import RunId
from .producer import GeneratorProducer, Runner
from .response import HEADERS, UNAVAILABLE, EventSourceResponse, active_app, find_client, last_event_id, refusal
from .ring import KEEP_ALL
from .state import CloseReason
from .stream import Stream, error_data, timestamp
from .subscription import Beginning, Selection, Subscription, reset_frame
from .tasks import WHY_STOPPED, Tasks, facts_of

log = logging.getLogger("sseflask.tasks")

#: What the channels of runs begin with: names that apps can't use.
CHANNELS: Final = "-/run/"
#: The header by which a client that sends its request again says that it is the same one.
IDEMPOTENCY: Final = "Idempotency-Key"
MAX_KEY_LENGTH: Final = 200
#: Requests with the same key of which each failed before its stream opened.
MOST_ATTEMPTS: Final = 50
#: The type of the error of a run that became an ordinary response.
NOT_OPENED: Final = "not_opened"
#: Arguments of a query that say nothing of what is asked for.
NOT_ASKED: Final = ("lastEventId", "last_event_id", "token")
#: The number of an end that isn't the run's own word: beyond all others.
LAST_NUMBER: Final = 10**15


class RunStream(DetachedStream):
    """What a resumable run's generator writes to; inside it, `current_stream`."""

    __slots__ = ("_number", "_options", "_size", "_start", "_watched_at", "grace")

    def __init__(
        self, run: str, broker: Broker, options: StreamOptions, settings: Settings, *, app: Flask | None, path: str
    ) -> None:
        """Makes a stream that hasn't begun.

        Args:
            run: The run's name.
            broker: The app's.
            options: Resolved against `settings`.
            settings: The app's.
            app: The app.
            path: The path of the request.
        """
        super().__init__(run, channel_of(run), broker, options, settings, app=app, path=path)
        self.counts_viewers = True
        self.grace = options.detach_grace
        self._options = options
        self._number = 0
        self._size = 0
        self._watched_at: float | None = None
        self._start: dict[str, Any] | None = None
        if options.lifecycle:
            added = {} if isinstance(options.lifecycle, bool) else options.lifecycle
            self._start = {"stream": self.id, "timestamp": timestamp(), **added}

    def renewed(self, lease: Lease | None, viewers: int | None, now: float) -> None:
        """The broker knows that it lives: goes on as long as somebody watches, or has just left."""
        super().renewed(lease, viewers, now)
        if viewers or self._watched_at is None:
            self._watched_at = now
        elif viewers is not None and now - self._watched_at > self.grace + TURN_SECONDS:
            # The last viewer may have left just now, a turn after it was last seen.
            self.ask(CloseReason.ABANDONED)

    @property
    def _history(self) -> int | None:
        return KEEP_ALL

    def _publish(self, event: ServerSentEvent, *, part: str | None = None) -> None:
        self._say_start()
        self._size += len(event.encode())
        if self._size > self._settings.run_bytes:
            # Remembered: a generator that goes on all the same has failed.
            self._error = StreamError(
                f"the events of this stream have more than {self._settings.run_bytes} bytes together", error_type="too_large"
            )
            raise self._error
        super()._publish(event, part=part)

    def _say_start(self) -> None:
        if self._start is not None:
            start, self._start = self._start, None
            super()._publish(ServerSentEvent(start, event="start"))

    def _stored_event(self, event: ServerSentEvent) -> ServerSentEvent:
        self._number += 1
        return dataclasses.replace(event, id=str(RunId(self.task_id, self._number)))

    def _last_event(self, reason: CloseReason) -> ServerSentEvent:
        error = self._error
        if reason is CloseReason.TIMEOUT:
            error = StreamTimeout(self._timeout or 0)
        elif reason is CloseReason.SHUTDOWN:
            error = StreamError(WHY_STOPPED[reason.value], error_type=reason.value)
        elif reason is CloseReason.ERROR and error is None:
            error = StreamError("it failed before it opened", error_type=NOT_OPENED)
        if error is not None:
            data = error_data(error, debug=self.app is not None and self.app.debug)
            return ServerSentEvent(data, event=self._settings.error_event)
        if reason is CloseReason.COMPLETED and self._options.lifecycle:
            return ServerSentEvent({"result": self._result, "timestamp": timestamp()}, event="complete")
        return ServerSentEvent({"reason": reason.value}, event=self._settings.end_event)

    def _tell_end(self) -> None:
        if self.reason is not CloseReason.CONCLUDED:
            self._say_start()
        super()._tell_end()


@dataclasses.dataclass(frozen=True, slots=True)
class Watch:
    """What it takes to watch runs.

    Attributes:
        tasks: The app's, in this process.
        options: The view's, resolved.
        match: Stands for what was asked for, and by whom: a run is watched only by who asks for the same.
    """

    tasks: Tasks
    options: StreamOptions
    match: str

    @property
    def viewer_options(self) -> StreamOptions:
        """The options of a viewer's stream: what concerns the work is the run's."""
        return dataclasses.replace(self.options, timeout=None, lifecycle=False, coalesce=None)


class RunResponse(EventSourceResponse):
    """A response that streams a run."""

    def __init__(self, watch: Watch, position: RunId, make_producer: Callable[[Stream, Handoff], Any], open_timeout: float) -> None:
        """Makes a response; nothing runs before the server iterates it.

        Args:
            watch: What it takes.
            position: Where its client is, told to it first.
            make_producer: Makes the producer of its stream.
            open_timeout: Seconds that the headers wait for an event.
        """
        self._begin(
            make_producer,
            Handoff(),
            watch.viewer_options,
            watch.tasks.settings,
            open_timeout=open_timeout,
            headers=None,
            first=_open_frame(watch.tasks.settings, position),
        )


class FirstViewer:
    """The producer of the stream of whoever starts a run: lets the run begin, and watches it."""

    def __init__(self, watch: Watch, run: RunStream, iterator: Iterator[Any], stream: Stream, handoff: Handoff) -> None:
        """Takes over the request's context; nothing runs.

        Args:
            watch: What it takes.
            run: The run's stream.
            iterator: The view's generator.
            stream: The viewer's.
            handoff: The viewer's first sink: an error before the first event becomes its response.
        """
        self._watch = watch
        self._run = run
        self._stream = stream
        self._producer = GeneratorProducer(run, iterator, Opening(run, stream, handoff), GeneratorContext.capture(watch.options.g))

    def start(self, runner: Runner, response: Response) -> bool:
        """Begins; False if the stream has ended before.

        Raises:
            BrokerUnavailable: The run can't be kept now; it hasn't begun.
        """
        tasks, run = self._watch.tasks, self._run
        broker, channel = tasks.broker, run.channel
        broker.prepare((channel,), str(RunId(run.task_id, 0)))
        beginning = _beginning(broker, channel, RunId(run.task_id, 0), is_over=False)
        if beginning is None:
            # The same request, sent twice at a time.
            beginning = Beginning(0, broker.log.epoch, b"", False)
        watching = Subscription(broker, Selection((channel,)), beginning, tasks.settings, self._stream, has_snapshot=True)
        if not watching.start(runner, response):
            self.discard()
            return False
        try:
            # Only now: a record of what never begins would keep its key.
            if tasks.create(run, {"kind": "run", "match": self._watch.match, "ends_channel": True}):
                tasks.begin(run, lambda: self._producer.start(runner, response))
            else:
                # The same request, sent twice at a time: the other one was first.
                self.discard()
        except BaseException:
            watching.interrupt()
            raise
        return True

    def discard(self) -> None:
        """It will never begin."""
        self._producer.discard()
        self._run.discard(CloseReason.DISCARDED)


class Opening(Handoff):
    """What turns an error before a run's first event into the response of whoever started it."""

    def __init__(self, run: RunStream, stream: Stream, handoff: Handoff) -> None:
        super().__init__()
        self._run = run
        self._stream = stream
        self._viewer = handoff

    def claim_failure(self) -> bool:
        """Whether an error can still become an HTTP response."""
        return self._viewer.claim_failure()

    def fail(self, failure: Failure) -> None:
        """Says what the error has become."""
        # The viewer's subscription too: it is its stream's producer.
        self._stream.end(CloseReason.ERROR, interruption=StreamClosed(CloseReason.ERROR))
        # Before there is a response: its client may send the request again at once, and its key must not lead to this run then.
        self._run.tell_end()
        self._viewer.fail(failure)


def answer(tasks: Tasks, options: StreamOptions, view: Callable[[], Any]) -> Any:
    """What a resumable view's client gets: the run that it was watching, or a new one.

    Args:
        tasks: The app's, in this process.
        options: The view's.
        view: Calls it.

    Returns:
        A response, or what the view returned if that is no stream.
    """
    settings = tasks.settings
    match = _match()
    watch = Watch(tasks, options.resolved(settings), match)
    try:
        position = RunId.parse(last_event_id() or "")
        if position is not None:
            return Response(status=204) if position.final else _resume(watch, position)
        key = request.headers.get(IDEMPOTENCY)
        if key is not None and not 1 <= len(key) <= MAX_KEY_LENGTH:
            raise BadRequest(f"{IDEMPOTENCY} has 1 to {MAX_KEY_LENGTH} characters, not {len(key)}")
        run = secrets.token_hex(16)
        if key is not None:
            run, is_there = _run_of_key(tasks, f"{match} {key}")
            if is_there:
                return _resume(watch, RunId(run, 0))
        result = view()
        if isinstance(result, tuple) and result and isinstance(result[0], Iterator):
            started = _start(watch, run, result[0])
            # The view's status and headers aren't a refusal's.
            return (started, *result[1:]) if isinstance(started, RunResponse) else started
        return _start(watch, run, result) if isinstance(result, Iterator) else result
    except BrokerUnavailable:
        if settings.refuse != "retry":
            raise
        return refusal(UNAVAILABLE, settings)


def run_of(text: str) -> str:
    """The name of a run, from itself or from an id of one of its events."""
    position = RunId.parse(text) if isinstance(text, str) else None
    return text if position is None else position.run


def channel_of(run: str) -> str:
    """The channel of a run's events."""
    return CHANNELS + run


def lose(tasks: Tasks, record: TaskRecord) -> None:
    """Ends a run whose process has died.

    Raises:
        BrokerUnavailable: That can't be told now.
    """
    data = error_data(StreamError(WHY_STOPPED["producer_lost"], error_type="producer_lost"), debug=False)
    event = ServerSentEvent(data, event=tasks.settings.error_event, id=str(RunId(record.id, LAST_NUMBER)))
    try:
        tasks.publish_end(record.id, record.channel, TaskState.FAILED, event)
    except TaskEnded:
        # Another process was first.
        return


def _run_of_key(tasks: Tasks, key: str) -> tuple[str, bool]:
    """The run that a key stands for, and whether it is there. One that never opened leaves the key to the next request."""
    for attempt in range(MOST_ATTEMPTS):
        run = hashlib.sha256(f"{key} {attempt}".encode()).hexdigest()[:32]
        record = tasks.find_record(run, "run")
        if record is None or not any(part.key == END and NOT_OPENED.encode() in part.body for part in record.parts):
            return run, record is not None
    raise TooManyRequests("this request has failed too often; send it with another key")


def _start(watch: Watch, run: str, iterator: Iterator[Any]) -> Response:
    settings = watch.tasks.settings
    if not process.current().has_room_for_a_run(settings):
        close = getattr(iterator, "close", None)
        if close is not None:
            close()
        return refusal("SSE_MAX_STREAMS", settings)
    stream = RunStream(run, watch.tasks.broker, watch.options, settings, app=active_app(), path=request.path)
    return RunResponse(
        watch,
        RunId(run, 0),
        lambda viewer, handoff: FirstViewer(watch, stream, iterator, viewer, handoff),
        settings.open_timeout,
    )


def _resume(watch: Watch, position: RunId) -> Response:
    """Goes on with a run, if it is there and whoever asks may watch it; nothing tells which of the two wasn't so."""
    tasks = watch.tasks
    record = tasks.find_record(position.run, "run")
    if record is None or facts_of(record).get("match") != watch.match or record.is_expired:
        return _gone(tasks.settings, position)
    if record.state is TaskState.CANCELLED:
        return _gone(tasks.settings, position)
    broker = tasks.broker
    broker.prepare((record.channel,), str(position))
    beginning = _beginning(broker, record.channel, position, is_over=record.state.is_final)
    if beginning is None:
        # The process that runs it may be ahead of this one.
        broker.catch_up()
        beginning = _beginning(broker, record.channel, position, is_over=record.state.is_final)
    if beginning is None:
        return _gone(tasks.settings, position)
    return RunResponse(
        watch,
        position,
        lambda stream, _: Subscription(broker, Selection((record.channel,)), beginning, tasks.settings, stream, has_snapshot=True),
        0.0,
    )


def _beginning(broker: Broker, channel: str, position: RunId, *, is_over: bool) -> Beginning | None:
    """Where a run is read on after an event; None if that can't be read any more."""
    with broker.emitter.lock:
        cursor = _cursor(broker, channel, position, is_over=is_over)
        return None if cursor is None else Beginning(cursor, broker.log.epoch, b"", False)


def _cursor(broker: Broker, channel: str, position: RunId, *, is_over: bool) -> int | None:
    """The number of an event of a run; None if it can't be read any more. Called under the lock."""
    ring = broker.log.find(channel)
    if ring is None or not ring.entries:
        # Nothing yet.
        return None if is_over or position.number else (ring.last if ring is not None else broker.log.floor)
    if not position.number:
        first = ring.entries[0]
        return first.prev if first.user_id == str(RunId(position.run, 1)) else None
    wanted = str(position)
    return next((entry.seq for entry in ring.entries if entry.user_id == wanted), None)


def _gone(settings: Settings, position: RunId) -> Response:
    """Tells a client that its run is no more: a reset with a final id, and the end."""
    process.current().count("resets")
    final = dataclasses.replace(position, final=True)
    frames = reset_frame(settings, "run_gone", str(position), None)
    end = ServerSentEvent({"reason": "run_gone"}, event=settings.end_event, id=str(final)).encode()
    return Response(frames + end, mimetype="text/event-stream", headers=HEADERS)


def _open_frame(settings: Settings, position: RunId) -> bytes:
    if settings.open_event is None:
        return ServerSentEvent(id=str(position)).encode()
    return ServerSentEvent({"run": position.run}, event=settings.open_event, id=str(position)).encode()


def _match() -> str:
    """Stands for what the current request asks for, and who asks."""
    asked = sorted((name, value) for name, value in request.args.items(multi=True) if name not in NOT_ASKED)
    found = [request.method, request.endpoint, sorted((request.view_args or {}).items()), asked, find_client()]
    return hashlib.sha256(json.dumps(found, default=str).encode()).hexdigest()[:32]
