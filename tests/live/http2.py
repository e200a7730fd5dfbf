"""A small HTTP/2 client for one stream: over TLS by ALPN, else with prior knowledge."""

from __future__ import annotations

import select
import socket
import ssl
import time
from collections.abc import Callable, Iterable
from typing import Self

import h2.config
import h2.connection
import h2.events

from tests.live.client import Comment, Ending, Endpoint, Event, FrameReader, ProtocolError, connect, wait_ready


class Http2Client:
    """One HTTP/2 connection with one request; it reads as `StreamClient` does and its methods are named alike.

    Attributes:
        status: The status code; 0 until the headers have come.
        headers: The header values by lower-case name.
        arrived: All events so far. `comments` are the comment lines, `body` all bytes.
        ended: `clean` when the server ended the stream, `reset` when it reset it, `cut` when the connection ended first.
    """

    def __init__(self, connection: socket.socket) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self.arrived: list[Event] = []
        self.comments: list[Comment] = []
        self.body = bytearray()
        self.ended: Ending | None = None
        self._socket = connection
        self._frames = FrameReader()
        self._taken = 0
        self._http2 = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True, header_encoding="utf-8"))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.hang_up()

    def request(self, authority: str, path: str, *, method: str, headers: Iterable[tuple[str, str]], scheme: str) -> None:
        """Sends the connection's preface and the request."""
        pseudo = [(":method", method), (":path", path), (":authority", authority), (":scheme", scheme)]
        self._http2.initiate_connection()
        self._http2.send_headers(1, [*pseudo, ("accept", "text/event-stream"), *headers], end_stream=True)
        self._socket.sendall(self._http2.data_to_send())
        self._socket.setblocking(False)

    def read_head(self, timeout: float = 10.0) -> None:
        """Waits for the headers.

        Raises:
            TimeoutError: They didn't come in time.
            ProtocolError: The connection ended first.
        """
        self._read_until(lambda: self.status, timeout, "the head")
        if not self.status:
            raise ProtocolError(f"the connection ended ({self.ended}) before the headers")

    def next_event(self, timeout: float = 5.0) -> Event:
        """Waits for the next event that no call has returned yet.

        Raises:
            TimeoutError: None came in time.
            EOFError: The stream ended first.
        """
        self._read_until(lambda: len(self.arrived) > self._taken, timeout, "an event")
        if len(self.arrived) <= self._taken:
            raise EOFError(f"the stream is over ({self.ended}), no further event after {self.arrived[-3:]}")
        self._taken += 1
        return self.arrived[self._taken - 1]

    def events(self, count: int, timeout: float = 5.0) -> list[Event]:
        """Waits for the next `count` events, for `timeout` seconds in all. Raises what `next_event` does."""
        deadline = time.monotonic() + timeout
        return [self.next_event(max(0.0, deadline - time.monotonic())) for _ in range(count)]

    def read_until_closed(self, timeout: float = 10.0) -> Ending:
        """Reads to the end of the stream and returns how it ended.

        Raises:
            TimeoutError: It went on.
        """
        self._read_until(lambda: self.ended, timeout, "the end")
        assert self.ended is not None
        return self.ended

    def cancel(self) -> None:
        """Resets the stream (`CANCEL`) and keeps the connection, as a browser does."""
        self._http2.reset_stream(1, error_code=8)
        self._flush()

    def hang_up(self) -> None:
        """Closes the connection; safe to call twice."""
        self._socket.close()

    def fileno(self) -> int:
        """The socket's descriptor, -1 once closed."""
        return self._socket.fileno()

    def _read_until(self, enough: Callable[[], object], timeout: float, what: str) -> None:
        deadline = time.monotonic() + timeout
        while not enough() and self.ended is None:
            if (not self._receive() and not wait_ready([self._socket], select.POLLIN, deadline)) or time.monotonic() > deadline:
                raise TimeoutError(f"{what} didn't come within {timeout:g} s: status={self.status} events={len(self.arrived)}")

    def _receive(self) -> bool:
        try:
            data = self._socket.recv(65536)
        except (BlockingIOError, ssl.SSLWantReadError):
            return False
        except (ConnectionResetError, BrokenPipeError):
            self.ended = "reset"
            return True
        now = time.monotonic()
        if not data:
            self.ended = "cut"
            return True
        for event in self._http2.receive_data(data):
            match event:
                case h2.events.ResponseReceived():
                    fields = {str(name): str(value) for name, value in event.headers or []}
                    self.status, self.headers = int(fields.pop(":status")), fields
                case h2.events.DataReceived():
                    self._take(event.data or b"", now)
                    self._http2.acknowledge_received_data(event.flow_controlled_length or 0, 1)
                case h2.events.StreamEnded():
                    self.ended = "clean"
                case h2.events.StreamReset() | h2.events.ConnectionTerminated():
                    self.ended = self.ended or "reset"
                case _:
                    pass
        self._flush()
        return True

    def _take(self, data: bytes, now: float) -> None:
        self.body += data
        if self.headers.get("content-type", "").startswith("text/event-stream"):
            for item in self._frames.feed(data, at=now):
                if isinstance(item, Event):
                    self.arrived.append(item)
                else:
                    self.comments.append(item)

    def _flush(self) -> None:
        """Writes what the protocol wants to say; it's little, so it fits the socket's buffer."""
        waiting = self._http2.data_to_send()
        if waiting and self.ended is None:
            self._socket.sendall(waiting)


def open_http2_stream(
    server: Endpoint,
    path: str,
    *,
    method: str = "GET",
    headers: Iterable[tuple[str, str]] = (),
    timeout: float = 10.0,
) -> Http2Client:
    """Sends a request over HTTP/2 and waits for the head of its response; arguments as for `open_stream`.

    Raises:
        OSError: No connection; `TimeoutError` (one of them) when the time is up.
        ProtocolError: The server speaks no HTTP/2, or ended the connection first.
    """
    connection = connect(server, alpn=["h2"], timeout=timeout)
    client = Http2Client(connection)
    server.adopt(client)
    tls = isinstance(connection, ssl.SSLSocket)
    if isinstance(connection, ssl.SSLSocket) and connection.selected_alpn_protocol() != "h2":
        client.hang_up()
        raise ProtocolError("the server didn't choose h2")
    client.request("localhost", path, method=method, headers=headers, scheme="https" if tls else "http")
    try:
        client.read_head(timeout)
    except BaseException:
        client.hang_up()
        raise
    return client
