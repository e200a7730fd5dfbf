"""A server that gives a browser prepared streams in pieces of a given size, and notes what it asks for when it comes back.

Most pieces are pieces for the browser's parser too: the next one is written when the browser has read the last one from its
socket, and a moment later.
"""

from __future__ import annotations

import contextlib
import re
import socket
import struct
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final, Self

PATH: Final = re.compile(rb"GET /stream/(\d+) ")
LAST_EVENT_ID: Final = re.compile(rb"^last-event-id: *(.*?) *\r$", re.IGNORECASE | re.MULTILINE)
STREAM_HEAD: Final = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-store\r\nConnection: close\r\n\r\n"
NO_CONTENT: Final = b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n"
PAGE: Final = b'<!doctype html><link rel="icon" href="data:,"><title>Streams</title>'
PAGE_HEAD: Final = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: %d\r\nConnection: close\r\n\r\n"
#: Seconds after which a browser that doesn't read is given up.
PATIENCE_SECONDS: Final = 20.0
#: Within the browser bytes go from process to process, and nothing tells when they have arrived: a moment keeps most apart.
PAUSE_SECONDS: Final = 0.002
NETLINK_SOCK_DIAG: Final = 4


@dataclass
class Stream:
    """What a browser is to get at one path, and what it did.

    Attributes:
        data: The bytes; after them the connection ends.
        piece_bytes: How many are written at once.
        ended_at: The monotonic second at which they had been written.
        returned_at: The monotonic second at which the browser asked again; it got 204.
        returned_with: The bytes of the `Last-Event-ID` that it sent then, `b""` for none.
        requests: How often it has asked.
    """

    data: bytes
    piece_bytes: int
    ended_at: float = 0.0
    returned_at: float = 0.0
    returned_with: bytes = b""
    requests: int = field(default=0)


class PieceServer:
    """Serves `/stream/0` and so on, and an empty page at every other path.

    Attributes:
        origin: Where it listens.
        streams: What it serves; the index is the path's number.
    """

    def __init__(self, listener: socket.socket, streams: Sequence[Stream]) -> None:
        self.origin = f"http://127.0.0.1:{listener.getsockname()[1]}"
        self.streams = streams
        self._listener = listener
        self._threads: list[threading.Thread] = []

    def run(self) -> None:
        """Accepts connections until the listener is shut down, and waits for the last of them."""
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                break
            thread = threading.Thread(target=self._serve, args=(connection,))
            thread.start()
            self._threads.append(thread)
        for thread in self._threads:
            thread.join()

    def _serve(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(ConnectionError, TimeoutError):
            connection.settimeout(PATIENCE_SECONDS)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            request = b""
            while b"\r\n\r\n" not in request:
                received = connection.recv(65536)
                if not received:
                    return  # A connection that the browser had opened in advance.
                request += received
            found = PATH.match(request)
            if found is None:
                connection.sendall(PAGE_HEAD % len(PAGE) + PAGE)
                return
            stream = self.streams[int(found[1])]
            stream.requests += 1
            if stream.requests > 1:
                stream.returned_at = time.monotonic()
                sent = LAST_EVENT_ID.search(request)
                stream.returned_with = sent[1] if sent else b""
                connection.sendall(NO_CONTENT)
                return
            connection.sendall(STREAM_HEAD)
            _send_in_pieces(connection, stream)
            stream.ended_at = time.monotonic()


def _send_in_pieces(connection: socket.socket, stream: Stream) -> None:
    with _Diagnosis(connection) as browser:
        for start in range(0, len(stream.data), stream.piece_bytes):
            connection.sendall(stream.data[start : start + stream.piece_bytes])
            if start + stream.piece_bytes < len(stream.data):
                browser.wait_until_read()
                time.sleep(PAUSE_SECONDS)


class _Diagnosis:
    """Asks the kernel about the browser's end of a connection on 127.0.0.1 (sock_diag(7))."""

    REQUEST: Final = struct.Struct("=IHHII BBBBI 2s2s16s16sIQ")
    BY_FAMILY: Final = 20
    IS_REQUEST: Final = 1
    ALL_STATES: Final = 0xFFFFFFFF
    NO_COOKIE: Final = 0xFFFFFFFFFFFFFFFF
    UNREAD_AT: Final = 72

    def __init__(self, connection: socket.socket) -> None:
        address = socket.inet_aton("127.0.0.1") + bytes(12)
        ports = [port.to_bytes(2, "big") for _, port in (connection.getpeername(), connection.getsockname())]
        family = (socket.AF_INET, socket.IPPROTO_TCP, 0, 0, self.ALL_STATES)
        head = (self.REQUEST.size, self.BY_FAMILY, self.IS_REQUEST, 0, 0)
        self._request = self.REQUEST.pack(*head, *family, *ports, address, address, 0, self.NO_COOKIE)
        self._kernel = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_SOCK_DIAG)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._kernel.close()

    def wait_until_read(self) -> None:
        """Waits until the kernel holds nothing for the browser, or the browser has closed its end.

        Raises:
            TimeoutError: It doesn't read.
        """
        deadline = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < deadline:
            self._kernel.send(self._request)
            answer = self._kernel.recv(4096)
            kind = int.from_bytes(answer[4:6], sys.byteorder)
            unread = int.from_bytes(answer[self.UNREAD_AT : self.UNREAD_AT + 4], sys.byteorder)
            if kind != self.BY_FAMILY or unread == 0:
                return
            time.sleep(0)  # The browser's turn.
        raise TimeoutError("the browser doesn't read")


@contextlib.contextmanager
def serving(streams: Sequence[Stream]) -> Iterator[PieceServer]:
    """A server on a free port."""
    with socket.create_server(("127.0.0.1", 0), backlog=512) as listener:
        server = PieceServer(listener, streams)
        thread = threading.Thread(target=server.run)
        thread.start()
        try:
            yield server
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()
