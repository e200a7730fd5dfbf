"""Reading events in tests: within bounded time, with errors that say what came instead."""

from __future__ import annotations

import collections
import socket
import time
import urllib.parse
from collections.abc import Callable, Collection, Mapping
from email.parser import HeaderParser
from typing import Any, Final, Self

from werkzeug.datastructures import Headers

from .. import process
from ..decoder import EventDecoder
from ..errors import SSEError
from ..event import ServerSentEvent
from .source import SocketSource, Source, receive, source_of

#: Events that aren't the app's own: what a subscription begins with.
OPENING: Final = ("stream-open",)
#: Seconds that a closed reader waits for the generators of streams that end.
FINALLY_SECONDS: Final = 1.0
#: Events that an error shows, and characters of each.
SHOWN_EVENTS: Final = 10
SHOWN_CHARACTERS: Final = 120


class EventsMissing(SSEError, AssertionError):
    """What a test waits for hasn't come. pytest shows it as a failure.

    Attributes:
        expected: What was waited for.
        state: Why it can't be waited for any longer: what the stream is, or the response.
        events: The events that came instead, since the reader last returned some.
    """

    def __init__(self, expected: str, state: str, events: Collection[ServerSentEvent] = ()) -> None:
        self.expected = expected
        self.state = state
        self.events = list(events)
        lines = [f"{expected}: {state}"]
        for event in self.events[:SHOWN_EVENTS]:
            text = repr(event)
            lines.append(f"  {text if len(text) <= SHOWN_CHARACTERS else text[:SHOWN_CHARACTERS] + '…'}")
        if len(self.events) > SHOWN_EVENTS:
            lines.append(f"  … and {len(self.events) - SHOWN_EVENTS} more")
        super().__init__("\n".join(lines))


class EventReader:
    """Reads one event stream. No call waits longer than it was told.

    Use it as a context manager, or close it: then the stream has ended, and the `finally` of its generator has run, unless that
    waits where it can't be interrupted.

    Attributes:
        status: The response's status code.
        headers: Its headers, of any case.
        received: All events that have come, the open event too.
        comments: The texts of the comments that have come: `"keepalive"` for each keepalive.
        is_ended: Whether the server has ended the stream.
    """

    def __init__(
        self,
        source: Source,
        status: int,
        headers: Headers,
        *,
        skip: Collection[str] = OPENING,
        title: str = "the response",
    ) -> None:
        """Reads nothing yet.

        Args:
            source: The body.
            status: The response's status code.
            headers: Its headers.
            skip: Names of events that are received and not returned.
            title: What errors call the response.
        """
        self.status = status
        self.headers = headers
        self.received: list[ServerSentEvent] = []
        self.comments: list[str] = []
        self.is_ended = False
        self._source = source
        self._skip = frozenset(skip)
        self._title = title
        self._decoder = EventDecoder()
        self._line = b""
        self._pending: collections.deque[ServerSentEvent] = collections.deque()
        self._unread_comments: collections.deque[str] = collections.deque()
        self._is_closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<EventReader of {self._title}, {len(self.received)} received>"

    def next_event(self, timeout: float = 5.0) -> ServerSentEvent:
        """The next event.

        Args:
            timeout: Seconds to wait at the most.

        Returns:
            The event.

        Raises:
            EventsMissing: None came in time, the stream has ended, or the response is no event stream.
        """
        __tracebackhide__ = True
        (event,) = self.events(1, timeout=timeout)
        return event

    def events(
        self, count: int | None = None, *, until: Callable[[ServerSentEvent], object] | None = None, timeout: float = 5.0
    ) -> list[ServerSentEvent]:
        """The next events.

        Args:
            count: How many; without it and `until`, all up to the end of the stream.
            until: Called with each event; the one for which it is true is the last.
            timeout: Seconds to wait at the most, for all of them together.

        Returns:
            The events; what came after them is there for the next call.

        Raises:
            EventsMissing: They didn't come in time, the stream has ended before, or the response is no event stream.
            ValueError: Both `count` and `until` were given.
        """
        __tracebackhide__ = True
        if count is not None and until is not None:
            raise ValueError("give count= or until=, not both")
        taken: list[ServerSentEvent] = []
        deadline = time.monotonic() + timeout
        try:
            while count is None or len(taken) < count:
                if self._pending:
                    taken.append(self._pending.popleft())
                    if until is not None and until(taken[-1]):
                        return taken
                elif self.is_ended and count is None and until is None:
                    return taken
                else:
                    self._receive_by(deadline, lambda: self._missing(count, until, taken, timeout))
        except EventsMissing:
            # They have come, and are there for the next call.
            self._pending.extendleft(reversed(taken))
            raise
        return taken

    def next_comment(self, timeout: float = 5.0) -> str:
        """The text of the next comment: `"keepalive"`, if that is what it is.

        Args:
            timeout: Seconds to wait at the most.

        Returns:
            The text, without the colon and the spaces around it; empty comments are left out.

        Raises:
            EventsMissing: None came in time, the stream has ended, or the response is no event stream.
        """
        __tracebackhide__ = True
        deadline = time.monotonic() + timeout
        while not self._unread_comments:
            self._receive_by(deadline, lambda: EventsMissing("expected a comment", self._state(timeout), self._pending))
        return self._unread_comments.popleft()

    def close(self) -> None:
        """Ends the stream from the client's side. A second call does nothing."""
        if self._is_closed:
            return
        self._is_closed = True
        self._source.close()
        _wait_for_generators()

    def _receive_by(self, deadline: float, failure: Callable[[], EventsMissing]) -> None:
        """Waits for more; raises if there can be none, or the time is over."""
        __tracebackhide__ = True
        self._check_response(deadline)
        if self.is_ended or self._is_closed:
            raise failure()
        data = self._source.read(deadline - time.monotonic())
        if data is None:
            raise failure()
        if not data:
            self.is_ended = True
            return
        *lines, self._line = (self._line + data).replace(b"\r\n", b"\n").split(b"\n")
        found = [line[1:].strip().decode("utf-8", "replace") for line in lines if line.startswith(b":")]
        # Empty ones only make servers send their headers.
        self.comments += (comments := [text for text in found if text])
        self._unread_comments += comments
        events = self._decoder.feed(data)
        self.received += events
        self._pending += [event for event in events if event.event not in self._skip]

    def _check_response(self, deadline: float) -> None:
        kind = self.headers.get("Content-Type") or "of no type"
        if self.status == 200 and kind.startswith("text/event-stream"):
            return
        __tracebackhide__ = True
        body = b""
        while len(body) < SHOWN_CHARACTERS and (data := self._source.read(deadline - time.monotonic())):
            body += data
        text = body.decode("utf-8", "replace")[:SHOWN_CHARACTERS]
        raise EventsMissing("expected an event stream", f"{self._title} is {self.status}, {kind}: {text!r}")

    def _missing(self, count: int | None, until: object, taken: Collection[ServerSentEvent], timeout: float) -> EventsMissing:
        if count is not None:
            expected = f"{len(taken)} of {count} event{'s' if count > 1 else ''} came"
        elif until is not None:
            expected = f"none of {len(taken)} events was the one that until= waits for"
        else:
            expected = f"{len(taken)} events came, and not the end of the stream (count= reads so many of them)"
        return EventsMissing(expected, self._state(timeout), taken)

    def _state(self, timeout: float) -> str:
        skipped = collections.Counter(event.event for event in self.received if event.event in self._skip)
        beside = [f"{number} {name}" for name, number in skipped.items()]
        if self.comments:
            beside.append(f"{len(self.comments)} comment{'s' if len(self.comments) > 1 else ''}")
        if self._decoder.pending_bytes:
            beside.append(f"{self._decoder.pending_bytes} bytes of an event without its blank line")
        besides = f" (besides: {', '.join(beside)})" if beside else ""
        if self._is_closed:
            return f"{self._title} has been closed by the test{besides}"
        if self.is_ended:
            return f"the server has ended the stream{besides}"
        silent = "" if self.received or self.comments or beside else ", and has sent nothing at all"
        return f"after {timeout:g} s the stream is still open{silent}{besides}"


def read_events(
    response: Any,
    count: int | None = None,
    timeout: float = 5.0,
    *,
    until: Callable[[ServerSentEvent], object] | None = None,
    skip: Collection[str] = OPENING,
) -> list[ServerSentEvent]:
    """Reads events from a response, and closes it.

    Args:
        response: One of Flask's test client; also of requests, httpx, `http.client` or urllib, if its body wasn't read.
        count: How many; without it and `until`, all up to the end of the stream.
        timeout: Seconds to wait at the most, for all of them together.
        until: Called with each event; the one for which it is true is the last.
        skip: Names of events that aren't returned: without it the one that opens a subscription.

    Returns:
        The events. Comments, keepalives among them, are none.

    Raises:
        EventsMissing: They didn't come in time, the stream ended before, or the response is no event stream.
        ValueError: Both `count` and `until` were given.
        TypeError: It is no response.
    """
    __tracebackhide__ = True
    with reader_of(response, skip=skip) as reader:
        return reader.events(count, until=until, timeout=timeout)


def reader_of(response: Any, *, skip: Collection[str] = OPENING) -> EventReader:
    """A reader of a response, to read some events, do something, and read on. It is to be closed.

    Args:
        response: As for `read_events`.
        skip: As for `read_events`.

    Returns:
        The reader; nothing has been read yet.

    Raises:
        TypeError: It is no response.
    """
    status = getattr(response, "status_code", None) or getattr(response, "status", None)
    request = getattr(response, "request", None)
    path = getattr(request, "path", None) or getattr(request, "url", None)
    return EventReader(
        source_of(response),
        int(status or 0),
        response.headers,
        skip=skip,
        title=f"the response from {path}" if path else "the response",
    )


def open_stream(
    url: str,
    *,
    method: str = "GET",
    headers: Mapping[str, str] | None = None,
    data: bytes = b"",
    skip: Collection[str] = OPENING,
    timeout: float = 5.0,
) -> EventReader:
    """Sends a request to a running server, and reads its answer up to the headers. Redirects aren't followed.

    Args:
        url: `http://HOST:PORT/PATH`.
        method: The request's method.
        headers: Headers of the request, `Last-Event-ID` for example.
        data: The request's body.
        skip: As for `read_events`.
        timeout: Seconds until the headers must be there.

    Returns:
        The reader, to be closed.

    Raises:
        EventsMissing: They weren't.
        ConnectionRefusedError: Nobody listens there.
        ValueError: It is no such URL.
    """
    __tracebackhide__ = True
    parts = urllib.parse.urlsplit(url)
    if parts.scheme != "http" or not parts.hostname:
        raise ValueError(f"open_stream opens http://HOST:PORT/PATH, not {url!r}")
    deadline = time.monotonic() + timeout
    sock = socket.create_connection((parts.hostname, parts.port or 80), timeout=timeout)
    # Of HTTP/1.0: the body is then the stream itself, up to the end of the connection.
    target = urllib.parse.urlunsplit(("", "", parts.path or "/", parts.query, ""))
    fields = {"Host": parts.netloc, "Accept": "text/event-stream", **(headers or {})}
    if data:
        fields["Content-Length"] = str(len(data))
    head = "".join([f"{method} {target} HTTP/1.0\r\n", *(f"{name}: {value}\r\n" for name, value in fields.items()), "\r\n"])
    sock.sendall(head.encode() + data)
    received = b""
    while b"\r\n\r\n" not in received:
        more = receive(sock, deadline - time.monotonic())
        if not more:
            sock.close()
            state = f"nothing within {timeout:g} s" if more is None else f"the server has hung up after {received[:80]!r}"
            raise EventsMissing(f"expected a response from {url}", state)
        received += more
    top, _, body = received.partition(b"\r\n\r\n")
    line, _, rest = top.decode("latin-1").partition("\r\n")
    return EventReader(
        SocketSource(sock, body),
        int(line.split()[1]),
        Headers(HeaderParser().parsestr(rest).items()),
        skip=skip,
        title=f"the response from {url}",
    )


def _wait_for_generators() -> None:
    """Waits a moment for the streams of this process that are ending: theirs is the `finally` that a test then looks at."""
    deadline = time.monotonic() + FINALLY_SECONDS
    ending = [stream for stream in process.current().streams.copy() if stream.closed]
    while any(stream in process.current().streams for stream in ending) and time.monotonic() < deadline:
        time.sleep(0.002)
