"""An HTTP client that trusts nothing: it takes a response apart itself and fails on each byte that is out of place.

It shares no code with the package, so that a bug there can't hide itself. Nothing runs in the background: bytes are read
while a method waits for something, and an event's time of arrival is when this client read it. A test that measures
delays waits in `next_event` (or in `read_all`) meanwhile. A test that wants a slow reader opens the stream with a small
`receive_buffer` and calls no reading method.
"""

from __future__ import annotations

import array
import contextlib
import fcntl
import json
import re
import select
import socket
import ssl
import struct
import termios
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, Self

Ending = Literal["clean", "cut", "reset"]
"""How a response ended: as its framing promises, by an end of file before that, or by a reset of the connection."""

Headers = Mapping[str, str] | Iterable[tuple[str, str]]

MAX_HEAD_BYTES = 64 * 1024
TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
STATUS_LINE = re.compile(r"HTTP/(1\.[01]) ([1-5][0-9][0-9]) ([\t\x20-\x7e\x80-\xff]*)")
CHUNK_SIZE = re.compile(rb"[0-9A-Fa-f]{1,8}")
FIELD = re.compile(r"(data|event|id|retry):(?: (.*))?", re.DOTALL)
ONCE = frozenset({"content-length", "transfer-encoding", "content-type", "cache-control", "connection", "date", "server"})


class ProtocolError(AssertionError):
    """The server sent bytes that break HTTP/1.x or our event stream's form."""


class NoResponse(ProtocolError):
    """The connection ended before the response's head was complete. To a browser that's a connection lost, and it comes back."""


class Closable(Protocol):
    """A client of any kind, as the server that closes it sees it."""

    def hang_up(self) -> None:
        """Closes the connection; safe to call twice."""

    def fileno(self) -> int:
        """The socket's descriptor, -1 once closed."""


class Endpoint(Protocol):
    """What a client needs to know of a server."""

    @property
    def address(self) -> tuple[str, int] | str:
        """Host and port, or the path of a unix socket."""

    def tls_context(self, alpn: Sequence[str] = ()) -> ssl.SSLContext | None:
        """How to speak TLS to it, or `None` for plain text."""

    def adopt(self, client: Closable) -> None:
        """Takes over closing the client when the server stops."""


@dataclass(frozen=True)
class Event:
    """One event as it came.

    Attributes:
        event: Its type; `message` when the frame names none.
        data: The data lines, joined with LF.
        id: The frame's own `id`, `None` when it has none.
        retry: The frame's own `retry` in milliseconds, `None` when it has none.
        at: When it was read (`time.monotonic()`, comparable between processes of one machine).
    """

    event: str
    data: str
    id: str | None
    retry: int | None
    at: float

    def json(self) -> Any:
        """The data, decoded as JSON."""
        return json.loads(self.data)


@dataclass(frozen=True)
class Comment:
    """One comment line as it came; `at` as in `Event`."""

    text: str
    at: float


@dataclass(frozen=True)
class Reply:
    """A whole response."""

    status: int
    reason: str
    headers: Mapping[str, str]
    header_list: Sequence[tuple[str, str]]
    body: bytes
    ended: Ending

    @property
    def text(self) -> str:
        """The body as UTF-8."""
        return self.body.decode()

    def json(self) -> Any:
        """The body, decoded as JSON."""
        return json.loads(self.body)


class ResponseParser:
    """Takes one HTTP/1.x response apart: bytes in, body bytes out.

    Attributes:
        status: The status code; 0 until the head is complete.
        reason: The words after it.
        version: `1.0` or `1.1`, as the server wrote it.
        header_list: Names as they came, and values.
        framing: `none`, `length`, `chunked` or `close`; set with the head.
        complete: Whether the body's end was seen.
    """

    def __init__(self, *, method: str = "GET", version: str = "1.1") -> None:
        self.status = 0
        self.reason = ""
        self.version = ""
        self.header_list: list[tuple[str, str]] = []
        self.framing: Literal["none", "length", "chunked", "close"] = "none"
        self.complete = False
        self._method = method
        self._asked_version = version
        self._buffer = bytearray()
        self._left = 0  # bytes still to come of this chunk, or of the whole body
        self._step: Literal["head", "body", "size", "chunk", "chunk-end", "trailer"] = "head"

    @property
    def headers(self) -> dict[str, str]:
        """Values by lower-case name; several lines of one name joined with a comma."""
        joined: dict[str, str] = {}
        for name, value in self.header_list:
            key = name.lower()
            joined[key] = f"{joined[key]}, {value}" if key in joined else value
        return joined

    @property
    def announces_close(self) -> bool:
        """Whether the server said that it closes the connection after this response."""
        connection = self.headers.get("connection", "").lower()
        return connection == "close" or self.framing == "close" or (self.version == "1.0" and connection != "keep-alive")

    def feed(self, data: bytes) -> bytes:
        """Takes the next bytes from the connection.

        Returns:
            The bytes of the body among them, framing removed.

        Raises:
            ProtocolError: A byte is out of place.
        """
        self._buffer += data
        body = bytearray()
        while self._buffer and not self.complete and self._step_on(body):
            pass
        if self.complete and self._buffer:
            raise ProtocolError(f"bytes after the response's end: {bytes(self._buffer[:200])!r}")
        return bytes(body)

    def feed_eof(self) -> bool:
        """Says that the connection has ended.

        Returns:
            Whether the response is whole.
        """
        if self._step == "body" and self.framing == "close":
            self.complete = True
        return self.complete

    def _step_on(self, body: bytearray) -> bool:
        """Does one step; returns whether another one may follow at once."""
        match self._step:
            case "head":
                return self._read_head()
            case "body":
                if self.framing == "close":
                    body += self._take(len(self._buffer))
                else:
                    self._read_counted(body)
                    self.complete = self._left == 0
                return False
            case "size":
                return self._read_size()
            case "chunk":
                self._read_counted(body)
                if self._left == 0:
                    self._step = "chunk-end"
                return True
            case "chunk-end" | "trailer":
                return self._read_line_end()

    def _read_head(self) -> bool:
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            if len(self._buffer) > MAX_HEAD_BYTES:
                raise ProtocolError(f"no end of the head in {MAX_HEAD_BYTES} bytes")
            if not b"HTTP/1.".startswith(bytes(self._buffer[:7])):
                raise ProtocolError(f"not an HTTP/1.x response: {bytes(self._buffer[:200])!r}")
            return False
        text = self._take(end + 4)[:-4].decode("latin-1")
        status_line, *lines = text.split("\r\n")
        found = STATUS_LINE.fullmatch(status_line)
        if found is None:
            raise ProtocolError(f"bad status line: {status_line!r}")
        if found[2].startswith("1"):
            return True  # an interim response: the real one follows
        self.version, self.status, self.reason = found[1], int(found[2]), found[3]
        for line in lines:
            name, colon, value = line.partition(":")
            if not colon or TOKEN.fullmatch(name) is None or re.search(r"[\r\n\0]", value):
                raise ProtocolError(f"bad header line: {line!r}")
            if name.lower() in ONCE and name.lower() in self.headers:
                raise ProtocolError(f"header {name} is there twice: {self.headers[name.lower()]!r}, {value.strip()!r}")
            self.header_list.append((name, value.strip(" \t")))
        self._choose_framing()
        return True

    def _choose_framing(self) -> None:
        coding, length = self.headers.get("transfer-encoding"), self.headers.get("content-length")
        if coding is not None and length is not None:
            raise ProtocolError("both Transfer-Encoding and Content-Length")
        if coding is not None and coding.lower() != "chunked":
            raise ProtocolError(f"Transfer-Encoding {coding!r}")
        if coding is not None and self._asked_version == "1.0":
            raise ProtocolError("a chunked response to an HTTP/1.0 request")
        if length is not None and not length.isdecimal():
            raise ProtocolError(f"Content-Length {length!r}")
        if self._method == "HEAD" or self.status in (204, 304):
            self.framing, self.complete = "none", True
        elif coding is not None:
            self.framing, self._step = "chunked", "size"
        elif length is not None:
            self.framing, self._left, self._step = "length", int(length), "body"
            self.complete = self._left == 0
        else:
            self.framing, self._step = "close", "body"

    def _read_size(self) -> bool:
        end = self._buffer.find(b"\r\n")
        if end < 0:
            if len(self._buffer) > 9:
                raise ProtocolError(f"bad chunk size: {bytes(self._buffer[:20])!r}")
            return False
        line = self._take(end + 2)[:-2]
        if CHUNK_SIZE.fullmatch(line) is None:
            raise ProtocolError(f"bad chunk size: {line[:20]!r}")
        self._left = int(line, 16)
        self._step = "chunk" if self._left else "trailer"
        return True

    def _read_line_end(self) -> bool:
        if len(self._buffer) < 2:
            return False
        found = self._take(2)
        if found != b"\r\n":
            where = "after a chunk" if self._step == "chunk-end" else "after the last chunk (we send no trailers)"
            raise ProtocolError(f"{found!r} instead of CR LF {where}")
        if self._step == "trailer":
            self.complete = True
        self._step = "size"
        return True

    def _read_counted(self, body: bytearray) -> None:
        taken = self._take(min(self._left, len(self._buffer)))
        self._left -= len(taken)
        body += taken

    def _take(self, count: int) -> bytes:
        taken = bytes(self._buffer[:count])
        del self._buffer[:count]
        return taken


class FrameReader:
    """Reads our own event streams: LF only, `field: value`, nothing unknown. Stricter than the standard on purpose.

    Attributes:
        retry_ms: The last `retry` seen.
        last_event_id: The last `id` seen, `""` before the first.
        blank_lines: Blank lines that ended no block (some parsers take each one for an event).
    """

    def __init__(self) -> None:
        self.retry_ms: int | None = None
        self.last_event_id = ""
        self.blank_lines = 0
        self._rest = b""
        self._fields: dict[str, str] = {}

    @property
    def unfinished(self) -> bytes:
        """What came after the last complete line."""
        return self._rest

    def feed(self, data: bytes, *, at: float) -> list[Event | Comment]:
        """Takes the next bytes of the body.

        Args:
            data: Any slice of it.
            at: When it was read.

        Returns:
            The events and comments that are now complete.

        Raises:
            ProtocolError: A line has another form than the ones that we write.
        """
        *lines, self._rest = (self._rest + data).split(b"\n")
        found: list[Event | Comment] = []
        for raw in lines:
            try:
                line = raw.decode()
            except UnicodeDecodeError as error:
                raise ProtocolError(f"a line that isn't UTF-8: {raw[:200]!r}") from error
            if "\r" in line:
                raise ProtocolError(f"a CR in the line {line[:200]!r}")
            if line.startswith(":"):
                found.append(Comment(line[1:].removeprefix(" "), at))
            elif line:
                self._take_field(line)
            else:
                found += self._end_block(at)
        return found

    def _take_field(self, line: str) -> None:
        match = FIELD.fullmatch(line)
        if match is None:
            raise ProtocolError(f"not a line that we write: {line[:200]!r}")
        name, value = match[1], match[2] or ""
        if name == "data" and "data" in self._fields:
            value = f"{self._fields['data']}\n{value}"
        elif name in self._fields:
            raise ProtocolError(f"{name} is there twice in one block")
        if name == "retry" and not (value.isascii() and value.isdecimal()):
            raise ProtocolError(f"retry {value!r}")
        if name == "id" and "\0" in value:
            raise ProtocolError(f"id {value!r}")
        self._fields[name] = value

    def _end_block(self, at: float) -> list[Event | Comment]:
        fields, self._fields = self._fields, {}
        if not fields:
            self.blank_lines += 1
            return []
        retry = int(fields["retry"]) if "retry" in fields else None
        self.retry_ms = self.retry_ms if retry is None else retry
        self.last_event_id = fields.get("id", self.last_event_id)
        if "data" not in fields:
            return []
        return [Event(fields.get("event") or "message", fields["data"], fields.get("id"), retry, at)]


class StreamClient:
    """One request and its response, read while a method waits.

    Made by `open_stream`. Each waiting method has a bound and fails with what came so far.

    Attributes:
        status: The status code; 0 until the head has come. So `reason` and `headers` (lower-case names).
        arrived: All events so far. `comments` are the comment lines.
        body: All bytes of the body so far, framing removed.
        ended: How the response ended; `None` while it goes on.
        requested_at: When the request was written; `head_at`, when the head had come, `ended_at`, when the end was seen.
    """

    def __init__(self, connection: socket.socket, *, method: str, version: str) -> None:
        self.arrived: list[Event] = []
        self.comments: list[Comment] = []
        self.body = bytearray()
        self.ended: Ending | None = None
        self.requested_at = 0.0
        self.head_at: float | None = None
        self.ended_at: float | None = None
        self.frames = FrameReader()
        self._socket = connection
        self._socket.setblocking(False)
        self._response = ResponseParser(method=method, version=version)
        self._events_taken = 0
        self._comments_taken = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.hang_up()

    def __repr__(self) -> str:
        return (
            f"<StreamClient status={self.status} events={len(self.arrived)} comments={len(self.comments)} "
            f"ended={self.ended} body={len(self.body)} B, its end {bytes(self.body[-200:])!r}>"
        )

    @property
    def status(self) -> int:
        """The status code; 0 until the head has come."""
        return self._response.status

    @property
    def reason(self) -> str:
        """The words after the status code."""
        return self._response.reason

    @property
    def version(self) -> str:
        """The HTTP version that the server answered with."""
        return self._response.version

    @property
    def framing(self) -> str:
        """How the body is framed: `none`, `length`, `chunked` or `close`."""
        return self._response.framing

    @property
    def headers(self) -> dict[str, str]:
        """The header values by lower-case name."""
        return self._response.headers

    @property
    def header_list(self) -> list[tuple[str, str]]:
        """The headers as they came."""
        return self._response.header_list

    @property
    def last_event_id(self) -> str:
        """The id that a browser would send when it reconnects now."""
        return self.frames.last_event_id

    @property
    def local_address(self) -> Any:
        """This end of the connection, as the server sees its peer."""
        return self._socket.getsockname()

    def fileno(self) -> int:
        """The socket's descriptor, -1 once closed."""
        return self._socket.fileno()

    # Reading

    def read_head(self, timeout: float = 10.0) -> None:
        """Waits for the status line and the headers.

        Raises:
            TimeoutError: They didn't come in time.
            NoResponse: The connection ended first.
            ProtocolError: A byte is out of place.
        """
        self._read_until(lambda: self.status, timeout, "the head")
        if not self.status:
            raise NoResponse(f"the connection ended ({self.ended}) before the head was complete")

    def next_event(self, timeout: float = 5.0) -> Event:
        """Waits for the next event that no call has returned yet.

        Raises:
            TimeoutError: None came in time.
            EOFError: The response ended first.
            ProtocolError: A byte is out of place.
        """
        self._read_until(lambda: len(self.arrived) > self._events_taken, timeout, "an event")
        if len(self.arrived) <= self._events_taken:
            raise EOFError(f"the response is over, no further event: {self!r}")
        self._events_taken += 1
        return self.arrived[self._events_taken - 1]

    def events(self, count: int, timeout: float = 5.0) -> list[Event]:
        """Waits for the next `count` events, for `timeout` seconds in all. Raises what `next_event` does."""
        deadline = time.monotonic() + timeout
        return [self.next_event(max(0.0, deadline - time.monotonic())) for _ in range(count)]

    def event_where(self, condition: Callable[[Event], bool], timeout: float = 5.0) -> Event:
        """Skips events up to the first that meets the condition and returns it. Raises what `next_event` does."""
        deadline = time.monotonic() + timeout
        while True:
            event = self.next_event(max(0.0, deadline - time.monotonic()))
            if condition(event):
                return event

    def next_comment(self, timeout: float = 5.0) -> Comment:
        """Waits for the next comment line that no call has returned yet. Raises what `next_event` does."""
        self._read_until(lambda: len(self.comments) > self._comments_taken, timeout, "a comment")
        if len(self.comments) <= self._comments_taken:
            raise EOFError(f"the response is over, no further comment: {self!r}")
        self._comments_taken += 1
        return self.comments[self._comments_taken - 1]

    def read_bytes(self, count: int, timeout: float = 5.0) -> bytes:
        """Waits until the body has at least `count` bytes and returns all of it. Raises what `next_event` does."""
        self._read_until(lambda: len(self.body) >= count, timeout, f"{count} bytes of the body")
        if len(self.body) < count:
            raise EOFError(f"the response is over with {len(self.body)} of {count} bytes: {self!r}")
        return bytes(self.body)

    def read_available(self) -> None:
        """Reads what has come by now, without waiting; what comes meanwhile is for later, however fast the server is."""
        waiting = array.array("i", [0])
        fcntl.ioctl(self._socket.fileno(), termios.FIONREAD, waiting)
        enough = len(self.body) + waiting[0]
        while len(self.body) <= enough and self._receive():
            pass

    def read_until_closed(self, timeout: float = 10.0) -> Ending:
        """Reads to the end of the response; to the end of the connection where the server announced to close it.

        Returns:
            `clean` when the body is whole by its framing (for HTTP/1.0: when the connection ended without a reset),
            else `cut` or `reset`.

        Raises:
            TimeoutError: It went on.
            ProtocolError: A byte is out of place; bytes after the response's end are.
        """
        self._read_until(lambda: self.ended, timeout, "the end")
        assert self.ended is not None
        return self.ended

    # Writing and leaving

    def send(self, data: bytes, timeout: float = 10.0) -> None:
        """Writes further bytes to the server.

        Raises:
            TimeoutError: The server didn't take them in time.
            OSError: The connection is gone.
        """
        deadline = time.monotonic() + timeout
        rest = memoryview(data)
        while rest:
            try:
                rest = rest[self._socket.send(rest) :]
            except (BlockingIOError, ssl.SSLWantWriteError):
                if not wait_ready([self._socket], select.POLLOUT, deadline):
                    raise TimeoutError(f"{len(rest)} of {len(data)} bytes not taken within {timeout:g} s") from None

    def half_close(self) -> None:
        """Ends our side only: the server reads an end of file and may go on writing."""
        self._socket.shutdown(socket.SHUT_WR)

    def hang_up(self) -> None:
        """Closes the connection, as a browser tab does; safe to call twice.

        With bytes unread here the kernel sends a reset instead of an end of file, as it does for a browser.
        """
        self._socket.close()

    def reset(self) -> None:
        """Closes the connection with a reset (RST), whatever is unread."""
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._socket.close()

    # Within

    def _read_until(self, enough: Callable[[], object], timeout: float, what: str) -> None:
        """Reads until there is enough or the response is over."""
        deadline = time.monotonic() + timeout
        while not enough() and self.ended is None:
            if (not self._receive() and not wait_ready([self._socket], select.POLLIN, deadline)) or time.monotonic() > deadline:
                raise TimeoutError(f"{what} didn't come within {timeout:g} s: {self!r}")

    def _receive(self) -> bool:
        """Reads once without waiting; returns whether anything came."""
        if self.ended is not None:
            return False
        if self._socket.fileno() < 0:
            raise RuntimeError(f"this client has hung up: {self!r}")
        try:
            data = self._socket.recv(65536)
        except (BlockingIOError, ssl.SSLWantReadError):
            return False
        except (ConnectionResetError, BrokenPipeError):
            self._end("reset")
            return True
        now = time.monotonic()
        if not data:
            self._end("clean" if self._response.feed_eof() else "cut")
            return True
        body = self._response.feed(data)
        if self.head_at is None and self.status:
            self.head_at = now
        self.body += body
        if self.headers.get("content-type", "").startswith("text/event-stream") and "content-encoding" not in self.headers:
            for item in self.frames.feed(body, at=now):
                if isinstance(item, Event):
                    self.arrived.append(item)
                else:
                    self.comments.append(item)
        if self._response.complete and not self._response.announces_close:
            self._end("clean")
        return True

    def _end(self, ending: Ending) -> None:
        self.ended, self.ended_at = ending, time.monotonic()


def open_stream(
    server: Endpoint,
    path: str,
    *,
    method: str = "GET",
    headers: Headers = (),
    body: bytes | None = None,
    version: str = "1.1",
    source_address: str | None = None,
    receive_buffer: int | None = None,
    wait_for_head: bool = True,
    timeout: float = 10.0,
) -> StreamClient:
    """Sends a request and waits for the head of its response.

    Args:
        server: Where to; it closes the client when it stops, if nobody did before.
        path: Path and query, as they go into the request line.
        method: The request's method.
        headers: Added to `Host` and `Accept: text/event-stream`; the same name replaces. Values go out as UTF-8.
        body: Sent with its `Content-Length`.
        version: `1.1` or `1.0`.
        source_address: The local address to come from (all of 127.0.0.0/8 is ours).
        receive_buffer: `SO_RCVBUF` in bytes, set before connecting: a small one makes a reader that stalls soon.
        wait_for_head: Whether to wait for the head here; else call `read_head`.
        timeout: Seconds for connecting, sending and the head, each.

    Returns:
        The open stream; close it by `with`, `hang_up` or `reset`.

    Raises:
        OSError: No connection; `TimeoutError` (one of them) when the time is up.
        ProtocolError: The response's head is malformed or missing.
    """
    connection = connect(server, source_address=source_address, receive_buffer=receive_buffer, timeout=timeout)
    client = StreamClient(connection, method=method, version=version)
    server.adopt(client)
    request = _request(server, path, method=method, headers=headers, body=body, version=version)
    client.requested_at = time.monotonic()
    # A server may answer and close before it has read a whole body: the answer is what counts.
    with contextlib.suppress(ConnectionResetError, BrokenPipeError):
        client.send(request, timeout)
    if wait_for_head:
        try:
            client.read_head(timeout)
        except BaseException:
            client.hang_up()
            raise
    return client


def get(
    server: Endpoint,
    path: str,
    *,
    method: str = "GET",
    headers: Headers = (),
    body: bytes | None = None,
    version: str = "1.1",
    source_address: str | None = None,
    timeout: float = 10.0,
) -> Reply:
    """Sends a request with `Connection: close` and reads the whole response; arguments as for `open_stream`.

    Raises:
        TimeoutError: The response wasn't over in time.
        ProtocolError: A byte of it is out of place.
    """
    sent = {"Accept": "*/*", "Connection": "close", **dict(headers.items() if isinstance(headers, Mapping) else headers)}
    with open_stream(
        server, path, method=method, headers=sent, body=body, version=version, source_address=source_address, timeout=timeout
    ) as client:
        ended = client.read_until_closed(timeout)
        return Reply(client.status, client.reason, client.headers, client.header_list, bytes(client.body), ended)


def read_all(clients: Sequence[StreamClient], timeout: float = 10.0) -> list[Ending]:
    """Reads many streams side by side until each is over, so that `at` and `ended_at` are exact for all of them.

    Returns:
        How each one ended, in their order.

    Raises:
        TimeoutError: Some went on.
        ProtocolError: A byte is out of place.
    """
    deadline = time.monotonic() + timeout
    while going := [client for client in clients if client.ended is None]:
        came = [client._receive() for client in going]
        if (
            not any(came) and not wait_ready([client._socket for client in going], select.POLLIN, deadline)
        ) or time.monotonic() > deadline:
            raise TimeoutError(f"{len(going)} of {len(clients)} streams go on after {timeout:g} s, one is {going[0]!r}")
    return [client.ended for client in clients if client.ended is not None]


def connect(
    server: Endpoint,
    *,
    source_address: str | None = None,
    receive_buffer: int | None = None,
    alpn: Sequence[str] = (),
    timeout: float = 10.0,
) -> socket.socket:
    """Connects to the server, with TLS where it speaks that, and sends nothing; arguments as for `open_stream`.

    Raises:
        OSError: No connection.
    """
    address = server.address
    connection = socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET, socket.SOCK_STREAM)
    try:
        connection.settimeout(timeout)
        if receive_buffer is not None:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        if source_address is not None:
            connection.bind((source_address, 0))
        connection.connect(address)
        context = server.tls_context(alpn)
        if context is not None:
            return context.wrap_socket(connection, server_hostname="localhost")
    except BaseException:
        connection.close()
        raise
    return connection


def _request(server: Endpoint, path: str, *, method: str, headers: Headers, body: bytes | None, version: str) -> bytes:
    """The bytes of a request."""
    given = list(headers.items() if isinstance(headers, Mapping) else headers)
    address = server.address
    defaults = {
        "Host": "localhost" if isinstance(address, str) else f"{address[0]}:{address[1]}",
        "Accept": "text/event-stream",
    }
    if body is not None:
        defaults["Content-Length"] = str(len(body))
    replaced = {name.lower() for name, _ in given}
    lines = [f"{method} {path} HTTP/{version}"]
    lines += [f"{name}: {value}" for name, value in defaults.items() if name.lower() not in replaced]
    lines += [f"{name}: {value}" for name, value in given]
    return "\r\n".join([*lines, "", ""]).encode() + (body or b"")


def wait_ready(sockets: Sequence[socket.socket], events: int, deadline: float) -> bool:
    """Waits until one of the sockets is ready; returns whether one is."""
    # TLS may hold decrypted bytes that the kernel no longer knows of.
    if events & select.POLLIN and any(isinstance(each, ssl.SSLSocket) and each.pending() for each in sockets):
        return True
    poll = select.poll()
    for each in sockets:
        if each.fileno() >= 0:
            poll.register(each.fileno(), events)
    left = deadline - time.monotonic()
    return left > 0 and bool(poll.poll(left * 1000))
