"""Looks at a stream from outside: asks for it as a browser does, and takes down what comes and when. It judges nothing."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import socket
import ssl
import time
import urllib.parse
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final, Literal

from .address import Headers, headers_of, origin_of, parts_of, target_of
from .config import redacted
from .decoder import EventDecoder

#: Seconds to wait for a connection, and for answers that needn't wait for anything.
CONNECT_SECONDS: Final = 10.0
REDIRECTS: Final = (301, 302, 303, 307, 308)
MAX_REDIRECTS: Final = 20
PIECE_BYTES: Final = 64 * 1024
ERROR_CHARACTERS: Final = 200
#: What browsers accept.
ENCODINGS: Final = "gzip, deflate, br, zstd"
#: Both gzip and zlib, as their first bytes say.
ANY_WINDOW: Final = zlib.MAX_WBITS | 32

#: How a stream's body ended: it went on, was whole by its framing, was cut off within it, or ended with a connection that frames
#: nothing.
Ending = Literal["open", "whole", "cut", "unframed"]


@dataclass(frozen=True)
class Answer:
    """The head of an answer.

    Attributes:
        url: Who gave it, without a password.
        status: The status code.
        reason: The words after it.
        version: The HTTP version, `1.0` or `1.1`.
        headers: Names as they came, and values.
        after: Seconds from the request, connecting left out.
    """

    url: str
    status: int
    reason: str
    version: str
    headers: tuple[tuple[str, str], ...]
    after: float

    def header(self, name: str) -> str:
        """A header's values, joined with a comma; empty where there is none."""
        return ", ".join(value for each, value in self.headers if each.lower() == name.lower())

    @property
    def content_type(self) -> str:
        """The type without its parameters, in small letters."""
        return self.header("Content-Type").partition(";")[0].strip().lower()

    @property
    def is_stream(self) -> bool:
        """Whether an EventSource would read it."""
        return self.status == 200 and self.content_type == "text/event-stream"


@dataclass(frozen=True)
class Piece:
    """What came at once.

    Attributes:
        at: Seconds from the request.
        size: Bytes.
        events: Events that it completed.
        comments: Comments that began in it: mostly keepalives.
    """

    at: float
    size: int
    events: int = 0
    comments: int = 0


@dataclass
class Observation:
    """All that was seen of a stream.

    Attributes:
        url: What was asked for, without a password.
        seconds: How long it was to be watched.
        origin: The origin that the request came from; None: none was named.
        alpn: What the server took where HTTP/2 and HTTP/1.1 were offered; None without TLS, or where it took nothing.
        hops: The answers that redirected.
        answer: The one at the end of these; None where none came.
        error: What its body says is wrong, as the blueprint's refusals do in JSON; empty where it says nothing so.
        problem: Why none came, or why it couldn't be read.
        silent: Whether there was a connection, but no answer within the time.
        head: The answer to a HEAD request where the stream's own answer didn't come; None where that didn't either.
        pieces: What came, in order.
        last_event_id: The id to go on after; empty for none.
        retry: The reconnection time that the stream asked for, in milliseconds.
        ending: How the body ended.
        watched: Seconds from the request to the end, the body's or the watching's.
        again: The answer to a reconnect after `last_event_id`; None where there was no id, or no answer.
        again_problem: Why there was none.
    """

    url: str
    seconds: float
    origin: str | None = None
    alpn: str | None = None
    hops: list[Answer] = field(default_factory=list)
    answer: Answer | None = None
    error: str = ""
    problem: str = ""
    silent: bool = False
    head: Answer | None = None
    pieces: list[Piece] = field(default_factory=list)
    last_event_id: str = ""
    retry: int | None = None
    ending: Ending = "open"
    watched: float = 0.0
    again: Answer | None = None
    again_problem: str = ""

    @property
    def is_secure(self) -> bool:
        """Whether it is over TLS, in the end."""
        return (self.answer.url if self.answer is not None else self.url).startswith("https:")

    @property
    def events(self) -> int:
        """How many events came."""
        return sum(piece.events for piece in self.pieces)

    @property
    def comments(self) -> int:
        """How many comments came."""
        return sum(piece.comments for piece in self.pieces)


class ContentReader:
    """Counts the events and comments in a body, compressed or not.

    Attributes:
        decoder: What has read the events.
    """

    def __init__(self, encoding: str) -> None:
        """Begins; `encoding` is the `Content-Encoding`, of which it reads gzip and deflate."""
        self.decoder = EventDecoder()
        self._inflate = zlib.decompressobj(ANY_WINDOW) if encoding.lower() in ("gzip", "x-gzip", "deflate") else None
        self._is_readable = self._inflate is not None or encoding.lower() in ("", "identity")
        # A comment is known by its colon at a line's begin.
        self._before = b"\n"

    def feed(self, data: bytes, at: float) -> Piece:
        """Takes what came at once, at a time."""
        size = len(data)
        if self._inflate is not None:
            try:
                data = self._inflate.decompress(data)
            except zlib.error:
                self._inflate, self._is_readable = None, False
        if not self._is_readable or not data:
            return Piece(at, size)
        comments = len(re.findall(rb"[\r\n]:", self._before + data))
        self._before = data[-1:]
        return Piece(at, size, len(self.decoder.feed(data)), comments)


def observe(url: str, *, seconds: float, headers: Headers = (), origin: str | None = None) -> Observation:
    """Opens the stream at an address, watches it, and comes back to it once as a browser would.

    Args:
        url: `http://…` or `https://…`.
        seconds: How long to watch at most; to connect, and to come back, comes on top.
        headers: Further headers of the requests; another origin doesn't get them.
        origin: What a page's browser would name as its origin.

    Raises:
        UnusableAddress: It is no address of HTTP.
    """
    seen = Observation(redacted(url), seconds, origin)
    own = origin_of(url)
    mine = sent = (*headers, *([("Origin", origin)] if origin is not None else ()))
    for _ in range(MAX_REDIRECTS):
        mine = sent if origin_of(url) == own else sent[len(headers) :]
        answer = _watch(seen, url, mine)
        if answer is None or answer.status not in REDIRECTS or not answer.header("Location"):
            break
        seen.hops.append(answer)
        url = urllib.parse.urljoin(url, answer.header("Location"))
        try:
            parts_of(url)
        except ValueError as error:
            seen.problem = f"it redirects to {redacted(url)}: {error}"
            return seen
    else:
        seen.problem = f"it redirects more than {MAX_REDIRECTS} times"
        return seen
    if seen.silent:
        seen.head = _head(url, mine)
    if seen.answer is not None and seen.is_secure:
        seen.alpn = _negotiated(url)
    if seen.last_event_id:
        _come_back(seen, url, mine)
    return seen


class _Request:
    """A connection and the request on it.

    Attributes:
        began: When the request had been written, by the monotonic clock.
    """

    def __init__(self, url: str, headers: Headers, last_event_id: str = "", method: str = "GET") -> None:
        """Connects, and asks.

        Raises:
            OSError: There is no connection.
            http.client.HTTPException: The address can't be asked.
        """
        self._url = url
        parts = parts_of(url)
        host = parts.hostname or ""
        if parts.scheme == "https":
            context = ssl.create_default_context()
            context.set_alpn_protocols(["http/1.1"])
            self._connection: http.client.HTTPConnection = http.client.HTTPSConnection(
                host, parts.port, timeout=CONNECT_SECONDS, context=context
            )
        else:
            self._connection = http.client.HTTPConnection(host, parts.port, timeout=CONNECT_SECONDS)
        self._response: http.client.HTTPResponse | None = None
        try:
            self._connection.connect()
            # The answer may say that its connection ends with it, and http.client lets go of it then.
            self._socket: socket.socket = self._connection.sock
            self._connection.putrequest(method, target_of(parts), skip_accept_encoding=True)
            for name, value in [*headers_of(parts, headers, last_event_id), ("Accept-Encoding", ENCODINGS)]:
                self._connection.putheader(name, value.encode())
            self._connection.endheaders()
        except BaseException:
            self.close()
            raise
        self.began = time.monotonic()

    def answer(self, timeout: float) -> Answer:
        """The answer's head.

        Raises:
            TimeoutError: It didn't come in time.
            OSError: The connection was lost.
            http.client.HTTPException: It is none of HTTP.
        """
        self._socket.settimeout(timeout)
        self._response = response = self._connection.getresponse()
        return Answer(
            url=redacted(self._url),
            status=response.status,
            reason=response.reason,
            version="1.0" if response.version == 10 else "1.1",
            headers=tuple(response.getheaders()),
            after=time.monotonic() - self.began,
        )

    def pieces(self, until: float) -> Iterator[tuple[float, bytes]]:
        """The body as it comes, up to its end or to a time of the monotonic clock, with the seconds from the request.

        Raises:
            TimeoutError: The time is up.
            OSError: The connection was lost.
            http.client.HTTPException: Likewise, within what the body's framing promised.
        """
        assert self._response is not None
        while True:
            left = until - time.monotonic()
            if left <= 0:
                raise TimeoutError
            self._socket.settimeout(left)
            data = self._response.read1(PIECE_BYTES)
            if not data:
                return
            yield time.monotonic() - self.began, data

    def error(self) -> str:
        """What a small body in JSON has as its `error`, up to a length; empty where it has none."""
        assert self._response is not None
        try:
            body = json.loads(self._response.read1(PIECE_BYTES))
        except (OSError, http.client.HTTPException, ValueError, RecursionError):
            return ""
        found = body.get("error") if isinstance(body, dict) else None
        return found[:ERROR_CHARACTERS] if isinstance(found, str) else ""

    def ending(self) -> Ending:
        """How the body that `pieces` has read to its end has ended."""
        assert self._response is not None
        if self._response.chunked:
            return "whole"
        if self._response.length is None:
            return "unframed"
        return "cut" if self._response.length else "whole"

    def close(self) -> None:
        """Hangs up."""
        if self._response is not None:
            self._response.close()
        self._connection.close()


def _watch(seen: Observation, url: str, headers: Headers) -> Answer | None:
    """Asks, and reads what comes if it is a stream."""
    request = None
    try:
        request = _Request(url, headers)
        until = request.began + seen.seconds
        seen.silent = True
        seen.answer = answer = request.answer(max(seen.seconds, 0.001))
        seen.silent = False
        if answer.is_stream:
            _read(seen, request, answer, until)
        elif answer.content_type == "application/json":
            seen.error = request.error()
    except ssl.SSLCertVerificationError as error:
        seen.silent, seen.problem = False, f"its certificate isn't trusted: {error.verify_message}"
    except TimeoutError:
        seen.problem = f"no answer within {seen.seconds:g} s" if seen.silent else f"no connection within {CONNECT_SECONDS:g} s"
    except (OSError, http.client.HTTPException) as error:
        seen.silent, seen.problem = False, told(error)
    else:
        return answer
    finally:
        if request is not None:
            request.close()
    return None


def _read(seen: Observation, request: _Request, answer: Answer, until: float) -> None:
    reader = ContentReader(answer.header("Content-Encoding"))
    try:
        for at, data in request.pieces(until):
            seen.pieces.append(reader.feed(data, at))
        seen.ending = request.ending()
    except TimeoutError:
        pass
    except (OSError, http.client.HTTPException):
        seen.ending = "cut"
    seen.watched = time.monotonic() - request.began
    seen.last_event_id, seen.retry = reader.decoder.last_event_id, reader.decoder.retry


def _head(url: str, headers: Headers) -> Answer | None:
    """What a HEAD request is answered, if anything."""
    try:
        with contextlib.closing(_Request(url, headers, method="HEAD")) as request:
            return request.answer(CONNECT_SECONDS)
    except (OSError, http.client.HTTPException):
        return None


def _negotiated(url: str) -> str | None:
    """What the server takes where it is offered what a browser offers."""
    parts = parts_of(url)
    context = ssl.create_default_context()
    context.set_alpn_protocols(["h2", "http/1.1"])
    try:
        with (
            socket.create_connection((parts.hostname, parts.port or 443), CONNECT_SECONDS) as plain,
            context.wrap_socket(plain, server_hostname=parts.hostname) as connection,
        ):
            return connection.selected_alpn_protocol()
    except OSError:
        return None


def _come_back(seen: Observation, url: str, headers: Headers) -> None:
    """Connects again, as a browser that has lost its connection."""
    try:
        with contextlib.closing(_Request(url, headers, seen.last_event_id)) as request:
            seen.again = request.answer(CONNECT_SECONDS)
    except (OSError, http.client.HTTPException) as error:
        seen.again_problem = told(error)


def told(error: Exception) -> str:
    """What an error of a connection says, in words for who uses a command."""
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, http.client.RemoteDisconnected):
        return "it hung up without an answer"
    return (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
