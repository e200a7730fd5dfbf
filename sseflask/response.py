"""`EventSourceResponse`, and the WSGI iterable that opens a stream."""

from __future__ import annotations

import inspect
import json
import logging
import random
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final, Protocol

from flask import Flask, Request, Response, current_app, g, has_app_context, has_request_context, request
from werkzeug.wsgi import ClosingIterator

from . import process, signals
from .brokers import Broker
from .callback import name_of
from .config import UNSET, Settings, StreamOptions
from .context import GeneratorContext
from .errors import BrokerUnavailable
from .event import EMPTY_COMMENT, ServerSentEvent, retry_frame
from .handoff import Collector, Handoff
from .producer import GeneratorProducer, Runner, ThreadRunner
from .state import CloseReason
from .stream import Stream, prelude
from .subscription import Selection, Snapshot, Subscription, begin

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

log = logging.getLogger("sseflask.stream")

#: The key of `environ` under which `StreamWorker` offers to take a stream's socket over.
HANDOVER: Final = "sseflask.handover"

#: The keys under which `environ` says at which monotonic second the request began, and which disconnects it has told itself.
BEGAN: Final = "sseflask.began"
TOLD: Final = "sseflask.told"

HEADERS: Final = {
    # no-transform keeps HAProxy's compression off, X-Accel-Buffering nginx's buffer.
    "Cache-Control": "no-cache, no-transform",
    "X-Accel-Buffering": "no",
}


#: How the headers begin, in lower case, that the app's functions for after a request gave to a stream's response, and that hold for
#: what its client gets instead too: without the first ones a page of another origin couldn't read that.
CARRIED_OVER: Final = ("access-control-", "vary", "x-content-type-options", "referrer-policy")

#: The limit that is named when the worker takes no more streams.
STOPPING: Final = "the worker is stopping"

#: What is named when the channels can't be read now.
UNAVAILABLE: Final = "the broker is unavailable"

#: What a server is told of that waits for the end of each response before it reads the next request.
ONE_AT_A_TIME: Final = (
    "this server serves one request at a time, and until this stream ends nobody else is answered: gunicorn's sync worker is for "
    "short responses, start it with -k sseflask.worker.StreamWorker"
)

#: What metrics call the limits.
REFUSALS: Final = {
    "SSE_MAX_STREAMS": "max_streams",
    "SSE_MAX_STREAMS_PER_CLIENT": "max_streams_per_client",
    STOPPING: "stopping",
    UNAVAILABLE: "broker",
}

#: Ends of a stream whose collected events aren't all of them.
CUT_SHORT: Final = (CloseReason.SHUTDOWN, CloseReason.MAX_AGE, CloseReason.EXPIRED, CloseReason.REVOKED)


class Handover(Protocol):
    """What `StreamWorker` puts into `environ`."""

    def runner(self) -> Runner:
        """What runs the stream's producer."""
        ...

    def offer(self) -> None:
        """Says that the response about to start is a stream."""

    def take(self, stream: Stream, handoff: Handoff) -> bool:
        """Takes the client's socket over, if the response that was started allows it. Returns whether it did."""
        ...


class Source(Protocol):
    """A producer that hasn't begun."""

    def start(self, runner: Runner, response: Response) -> bool:
        """Begins, or returns False if the stream has ended before.

        `runner` runs what needs a greenlet or thread, `response` has the headers that are yet to be sent.
        """
        ...

    def discard(self) -> None:
        """It will never begin."""


class EventSourceResponse(Response):
    """A response that streams events.

    `SSE.stream` makes it of what a view yields; a view can also return one itself. Its status and headers go out with the first
    event, or after `SSE_OPEN_TIMEOUT`; an error before that becomes an ordinary response through the app's error handlers.

    Attributes:
        event_stream: The `Stream`, there from the beginning; it opens when the server iterates the response.
    """

    default_mimetype = "text/event-stream"
    # Something that asks for the body's bytes gets an error instead of waiting for the end of a stream.
    implicit_sequence_conversion = False
    automatically_set_content_length = False

    def __init__(
        self,
        iterable: Iterable[Any],
        *,
        headers: Mapping[str, str] | None = None,
        keepalive: float = UNSET,
        timeout: float | None = UNSET,
        retry: int | None = UNSET,
        max_age: float | None = UNSET,
        lifecycle: bool | Mapping[str, Any] = False,
        negotiate: bool = False,
        g: tuple[str, ...] = (),
        options: StreamOptions | None = None,
    ) -> None:
        """Makes a response; nothing runs before the server iterates it.

        Args:
            iterable: A generator, or anything iterable, of `ServerSentEvent`, `str`, `bytes` or what JSON can express.
            headers: Headers of the response besides those of an event stream.
            keepalive: As for `SSE.stream`.
            timeout: As for `SSE.stream`.
            retry: As for `SSE.stream`.
            max_age: As for `SSE.stream`.
            lifecycle: As for `SSE.stream`; that a client which comes back after the end gets 204 is the view's to see to.
            negotiate: As for `SSE.stream`.
            g: As for `SSE.stream`.
            options: All of these as one value, instead.

        Raises:
            InvalidSetting: An option has a value that it can't have.
            InvalidEvent: What `lifecycle` adds to the `start` event can't be written.
            TypeError: `iterable` can't be iterated.
            RequestEntityTooLarge: The request's body, which is parsed here, is larger than the app allows.
        """
        if options is None:
            options = StreamOptions(
                keepalive=keepalive, timeout=timeout, retry=retry, max_age=max_age, lifecycle=lifecycle, negotiate=negotiate, g=g
            )
        settings = settings_of(active_app())
        options = options.resolved(settings)
        collects = options.negotiate and wants_json()
        self._begin(
            lambda stream, handoff: GeneratorProducer(stream, iter(iterable), handoff, GeneratorContext.capture(options.g)),
            Collector(settings.run_bytes) if collects else Handoff(),
            options,
            settings,
            open_timeout=None if collects else settings.open_timeout,
            headers=headers,
        )
        if collects:
            self.mimetype = "application/json"
        if options.negotiate:
            self.vary.add("Accept")

    def _begin(
        self,
        make_producer: Callable[[Stream, Handoff], Source],
        handoff: Handoff,
        options: StreamOptions,
        settings: Settings,
        *,
        open_timeout: float | None,
        headers: Mapping[str, str] | None,
        first: bytes = b"",
    ) -> None:
        """Makes the stream and what it goes through; options are resolved, `first` comes before what is produced."""
        app, asked = active_app(), active_request()
        self.event_stream = stream = Stream(
            handoff,
            options,
            settings,
            app=app,
            path=asked.path if asked is not None else "",
            last_event_id=last_event_id(asked) if asked is not None else None,
            client=_client(app, asked, settings) if app is not None and asked is not None else None,
            request_id=request_id(asked) if asked is not None else None,
        )
        if asked is not None and (began := asked.environ.get(BEGAN)) is not None:
            stream.began, stream.told = began, asked.environ.get(TOLD, ())
        first = prelude(stream, options) + first
        stream.bytes_sent = len(first)
        handoff.bind(first, stream.resume, stream.sink_ended)
        self._body = EventIterable(self, make_producer(stream, handoff), stream, handoff, settings, open_timeout=open_timeout)
        if headers:
            super().__init__(self._body, headers={**HEADERS, **headers})
        else:
            # Less work than with a mapping, each of whose values could be several, and without the look for a type among them.
            super().__init__(self._body, mimetype=self.default_mimetype)
            for name, value in HEADERS.items():
                self.headers.add(name, value)

    def call_on_close(self, func: Callable[[], Any]) -> Callable[[], Any]:
        """Calls a function when the stream is closed; under `StreamWorker`, long after the server is done with the response.

        Args:
            func: Takes no argument. What it raises is logged.

        Returns:
            The function.

        Raises:
            TypeError: It can't be called, or is asynchronous or a generator function.
        """
        return self.event_stream.on_close(func)

    def close(self) -> None:
        """Ends the stream if it was never opened."""
        self._body.close()

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """The response as a WSGI application; `start_response` is called when the iterable is first asked for bytes."""
        if environ["REQUEST_METHOD"] == "HEAD" or self.response is not self._body or self.status_code in (204, 304):
            # Only the headers are wanted, or something has wrapped the body and iterates it as any other.
            return super().__call__(environ, start_response)
        return self._body.bound(environ, start_response)


class EventIterable(Iterator[bytes]):
    """The WSGI iterable of one stream: opens it, and then, unless a worker takes the socket over, is its way to the client."""

    def __init__(
        self,
        response: EventSourceResponse,
        producer: Source,
        stream: Stream,
        handoff: Handoff,
        settings: Settings,
        *,
        open_timeout: float | None,
    ) -> None:
        self._response: EventSourceResponse | None = response
        self._producer: Source | None = producer
        self._stream = stream
        self._handoff = handoff
        self._settings = settings
        self._open_timeout = open_timeout
        self._environ: WSGIEnvironment | None = None
        self._start_response: StartResponse | None = None
        self._taken_over = False
        self._instead: Iterator[bytes] | None = None

    def bound(self, environ: WSGIEnvironment, start_response: StartResponse) -> EventIterable:
        """Itself, knowing what to call when the stream opens."""
        self._environ = environ
        self._start_response = start_response
        return self

    def __next__(self) -> bytes:
        if self._response is not None:
            try:
                first = self._open(self._response)
            except BaseException:
                # Not every server closes what has failed.
                self._stream.sink_ended()
                raise
            if first is not None:
                return first
        if self._instead is not None:
            return next(self._instead)
        if self._taken_over:
            raise StopIteration
        data = self._handoff.take()
        if data is None:
            raise StopIteration
        return data

    def close(self) -> None:
        """The server is done: with a stream that was taken over, or at the end, or because the client has gone."""
        if self._taken_over:
            return
        if self._producer is not None:
            self._producer.discard()
            self._stream.discard(CloseReason.DISCARDED)
        elif self._instead is not None:
            close = getattr(self._instead, "close", None)
            if close is not None:
                close()
        self._stream.sink_ended()
        self._response = self._producer = None

    def _open(self, response: EventSourceResponse) -> bytes | None:
        """Starts the producer and waits for what the response is to be. Returns the first bytes, if there are any yet."""
        environ, start_response, producer = self._environ or {}, self._start_response, self._producer
        assert producer is not None
        self._response = self._producer = self._environ = self._start_response = None
        handover: Handover | None = environ.get(HANDOVER)
        timeout, began = self._open_timeout, time.monotonic()
        limit = self._begin(producer, response, handover)
        if limit is not None:
            process.current().refuse(limit, REFUSALS[limit])
            producer.discard()
            self._stream.discard(CloseReason.REFUSED)
            self._stream.sink_ended()
            self._answer(response, refusal(limit, self._settings), environ, start_response)
            return None
        if handover is None and environ.get("wsgi.multithread") is False:
            self._warn_of_one_at_a_time(environ)
        # A worker's producer has run already, until it waited.
        failure = self._handoff.open(None if timeout is None else max(timeout - (time.monotonic() - began), 0.0))
        if failure is not None:
            if failure.response is None:
                raise failure.error or RuntimeError("a stream failed before it opened")
            self._answer(response, failure.response, environ, start_response)
            return None
        if self._open_timeout is None and self._stream.reason in CUT_SHORT:
            cut = _unavailable({"error": "the stream was cut short", "reason": self._stream.reason})
            self._answer(response, cut, environ, start_response)
            return None
        self._stream.open()
        if log.isEnabledFor(logging.DEBUG):
            log.debug("stream opened path=%s id=%s", self._stream.quoted_path, self._stream.id, extra=self._stream.log_extra)
        if signals.stream_opened.receivers and self._stream.app is not None:
            signals.stream_opened.send(self._stream.app, stream=self._stream)
        if start_response is not None:
            if handover is not None:
                handover.offer()
            start_response(response.status, response.get_wsgi_headers(environ).to_wsgi_list())
            if handover is not None and handover.take(self._stream, self._handoff):
                self._taken_over = True
                return None
        if self._handoff.is_silent:
            # Many servers hold the headers back until the first bytes.
            return EMPTY_COMMENT
        return self._handoff.take()

    def _warn_of_one_at_a_time(self, environ: WSGIEnvironment) -> None:
        """Says once that gunicorn's default worker does nothing beside a stream. gevent's own server says so of its threads too."""
        if environ.get("SERVER_SOFTWARE", "").startswith("gunicorn/") and process.current().is_first(ONE_AT_A_TIME):
            log.warning(ONE_AT_A_TIME, extra=self._stream.log_extra)

    def _begin(self, producer: Source, response: EventSourceResponse, handover: Handover | None) -> str | None:
        """Starts the producer. Returns why there can be no stream now; None if there is one."""
        here = process.current()
        limit = STOPPING if here.draining else here.admit(self._stream, self._settings)
        if limit is not None:
            return limit
        try:
            started = producer.start(handover.runner() if handover is not None else ThreadRunner(), response)
        except BrokerUnavailable:
            return UNAVAILABLE
        if not started:
            return STOPPING
        self._watch()
        return None

    def _watch(self) -> None:
        """Lets the app disconnect the stream: other processes may ask for it, and may have while it was being opened."""
        installed = self._stream.app.extensions.get("sse") if self._stream.app is not None else None
        if installed is not None and (self._stream.client is not None or installed.broker_in_use is not None):
            installed.control.watch(self._stream)

    def _answer(self, stream: Response, response: Response, environ: WSGIEnvironment, start_response: StartResponse | None) -> None:
        if start_response is None:
            raise RuntimeError(f"the stream could not open: {response.status}")
        for name, value in stream.headers:
            if name.lower().startswith(CARRIED_OVER) and name not in response.headers:
                response.headers.add(name, value)
        self._instead = iter(ClosingIterator(response(environ, start_response)))


def refusal(limit: str, settings: Settings) -> Response:
    """What a client gets for which there is no stream now.

    Args:
        limit: The setting that names the limit, or why else.
        settings: The app's.
    """
    if limit == STOPPING or settings.refuse == "retry":
        base = settings.retry or (2000 if limit == STOPPING else 5000)
        retry_ms = random.randint(base // 2, base * 3 // 2)
        frames = ServerSentEvent(comment=f"refused: {limit}").encode() + retry_frame(retry_ms)
        return Response(frames, mimetype="text/event-stream", headers=HEADERS)
    if limit == UNAVAILABLE:
        return _unavailable({"error": limit})
    status = 429 if limit == "SSE_MAX_STREAMS_PER_CLIENT" else 503
    return _unavailable({"error": "too many streams are open", "limit": limit}, status)


def _unavailable(body: dict[str, Any], status: int = 503) -> Response:
    headers = {"Retry-After": str(random.randint(3, 10))}
    return Response(json.dumps(body), status, mimetype="application/json", headers=headers)


def settings_of(app: Flask | None) -> Settings:
    """The settings of an app, those of its installed `SSE` where it has one; the defaults outside any app."""
    if app is None:
        return Settings()
    installed = app.extensions.get("sse")
    return installed.settings if installed is not None else Settings.from_config(app.config)


def last_event_id(asked: Request = request) -> str | None:
    """The id that the client of a request says it saw last: the header, else a query argument; None without either."""
    environ = asked.environ
    raw = environ.get("HTTP_LAST_EVENT_ID")
    if raw is not None:
        # Browsers send the id's UTF-8 bytes, which WSGI shows as Latin-1.
        return str(raw).encode("latin-1", "replace").decode("utf-8", "replace") or None
    query = environ.get("QUERY_STRING", "")
    if "last" not in query and "%" not in query:
        # Nearly every request that opens a stream: its arguments need not be parsed to know that.
        return None
    return asked.args.get("lastEventId") or asked.args.get("last_event_id") or None


def request_id(asked: Request = request) -> str | None:
    """What names the current request in logs: `g.request_id` where the app sets it, else the header X-Request-ID.

    Args:
        asked: The current request.

    Returns:
        1 to 128 visible ASCII characters; None for none, or for anything else: it goes into logs as it is.
    """
    found = g.get("request_id") or asked.environ.get("HTTP_X_REQUEST_ID")
    if found is None:
        return None
    found = str(found)
    return found if _REQUEST_ID.fullmatch(found) else None


_REQUEST_ID: Final = re.compile(r"[!-~]{1,128}")


class SubscriptionResponse(EventSourceResponse):
    """A response that streams the live events of channels."""

    def __init__(
        self,
        broker: Broker,
        selection: Selection,
        options: StreamOptions,
        settings: Settings,
        *,
        asked: str | None = None,
        snapshot: Snapshot | None = None,
        expires_in: float | None = None,
    ) -> None:
        """Takes the position, and runs the snapshot; the stream listens from when the server iterates the response.

        Args:
            broker: The app's.
            selection: What is asked for.
            options: The stream's.
            settings: The app's.
            asked: What the client says it saw last; None if it says nothing.
            snapshot: Gives the events that show the state of things.
            expires_in: Seconds until the stream ends because its token expires; None for never.
        """
        if (current := active_request()) is not None:
            current.environ.setdefault(BEGAN, time.monotonic())
        beginning = begin(broker, selection.channels, asked, snapshot, settings)
        self._begin(
            lambda stream, handoff: Subscription(broker, selection, beginning, settings, stream, has_snapshot=snapshot is not None),
            Handoff(),
            options.resolved(settings),
            settings,
            open_timeout=0.0,
            headers=None,
            first=beginning.frames,
        )
        if expires_in is not None:
            self.event_stream.expire_in(expires_in)


def active_app() -> Flask | None:
    """The current app; None outside any."""
    return current_app._get_current_object() if has_app_context() else None  # type: ignore[attr-defined]


def active_request() -> Request | None:
    """The current request; None outside any."""
    return request._get_current_object() if has_request_context() else None  # type: ignore[attr-defined]


def note_beginning(app: Flask, **_: Any) -> None:
    """Notes when the current request began, where its server hasn't; a receiver of `flask.request_started`."""
    request.environ.setdefault(BEGAN, time.monotonic())


def find_client() -> str | None:
    """Who the client of the current request is, as the app's `sse.client_key` says; None where it doesn't.

    Raises:
        TypeError: It says what can't be told apart from others by its text.
    """
    installed = current_app.extensions.get("sse")
    find = installed.decorated.rules.get("client_key") if installed is not None else None
    key = find() if find is not None else None
    kind: Any = type(key)
    if key and (inspect.isawaitable(key) or (kind.__str__ is object.__str__ and kind.__repr__ is object.__repr__)):
        # Its text is its address, another one in each request: nobody would be limited.
        raise TypeError(
            f"{name_of(find)} gives {key!r}: @sse.client_key's function returns a string, or what has a text of its own, or None"
        )
    return str(key) if key else None


def _client(app: Flask, asked: Request, settings: Settings) -> str | None:
    """Who the client is: what the app says, else its address where that is limited; None for a unix socket's."""
    installed = app.extensions.get("sse")
    if installed is not None and "client_key" in installed.decorated.rules:
        return find_client()
    return asked.remote_addr or None if settings.max_streams_per_client is not None else None


def wants_json() -> bool:
    """Whether the client of the current request accepts JSON and no event stream."""
    if not has_request_context():
        return False
    accepted = request.accept_mimetypes
    return accepted.quality("application/json") > 0 and accepted.quality("text/event-stream") == 0
