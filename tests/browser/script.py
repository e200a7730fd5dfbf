"""A server that plays the reconnect table: to each request of a case it answers as the case's next step says, and notes it."""

from __future__ import annotations

import contextlib
import email.utils
import json
import re
import socket
import struct
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parents[2]
TABLE: Final = ROOT / "tests" / "clients" / "reconnect.json"
CLIENT: Final = ROOT / "sseflask" / "static" / "client.js"
PAGE: Final = b'<!doctype html><link rel="icon" href="data:,"><title>Client</title>'
#: For SO_LINGER: closing sends a reset.
RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)
#: Seconds after which a client that should hang up is given up.
PATIENCE_SECONDS: Final = 20.0


@dataclass
class Request:
    """What a client sent.

    Attributes:
        method: Its method.
        headers: By their names in lower case, as UTF-8.
        body: Its body.
        at: The monotonic second at which it had come.
        ended_at: The monotonic second at which the answer's last byte had been written, or just before the connection was closed.
    """

    method: str
    headers: dict[str, str]
    body: str
    at: float
    ended_at: float = 0.0


@dataclass
class Played:
    """A case and the requests that were made in it."""

    case: dict[str, Any]
    requests: list[Request] = field(default_factory=list)


class ScriptServer:
    """Serves `/case/0` and so on, the client at `/client.js`, and an empty page at every other path, at several addresses.

    A browser has six connections to an address at the most, and cases hold theirs.

    Attributes:
        origins: Where it listens.
        played: What became of the cases; the index is the path's number.
    """

    def __init__(self, listeners: Sequence[socket.socket], cases: Sequence[dict[str, Any]]) -> None:
        self.origins = [f"http://127.0.0.1:{listener.getsockname()[1]}" for listener in listeners]
        self.played = [Played(case) for case in cases]
        self._listeners = listeners
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._open: set[socket.socket] = set()

    def start(self) -> None:
        """Accepts connections until it is closed."""
        for listener in self._listeners:
            thread = threading.Thread(target=self._accept, args=(listener,))
            thread.start()
            self._threads.append(thread)

    def close(self) -> None:
        """Ends all connections, and waits for their threads."""
        for listener in self._listeners:
            listener.shutdown(socket.SHUT_RDWR)
        with self._lock:
            left = list(self._open)
        for connection in left:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()

    def _accept(self, listener: socket.socket) -> None:
        threads = []
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                break
            thread = threading.Thread(target=self._serve, args=(connection,))
            thread.start()
            threads.append(thread)
        for thread in threads:
            thread.join()

    def _serve(self, connection: socket.socket) -> None:
        with self._lock:
            self._open.add(connection)
        try:
            with connection, contextlib.suppress(OSError):  # The client has hung up, or doesn't.
                connection.settimeout(PATIENCE_SECONDS)
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._answer(connection)
        finally:
            with self._lock:
                self._open.discard(connection)

    def _answer(self, connection: socket.socket) -> None:
        received = b""
        while b"\r\n\r\n" not in received:
            data = connection.recv(65536)
            if not data:
                return  # A connection that the browser had opened in advance.
            received += data
        head, _, body = received.partition(b"\r\n\r\n")
        line, *fields = head.decode().split("\r\n")
        method, path, _ = line.split(" ")
        headers = {name.lower(): value.strip() for name, _, value in (each.partition(":") for each in fields)}
        while len(body) < int(headers.get("content-length", 0)):
            body += connection.recv(65536)
        found = re.fullmatch(r"/case/(\d+)", path)
        if found is None:
            kind, page = ("text/javascript", CLIENT.read_bytes()) if path == "/client.js" else ("text/html", PAGE)
            connection.sendall(_head(200, {"Content-Type": kind, "Content-Length": str(len(page))}) + page)
            return
        played = self.played[int(found[1])]
        request = Request(method, headers, body.decode(), time.monotonic())
        with self._lock:
            played.requests.append(request)
            number = len(played.requests) - 1
        steps = played.case["steps"]
        # One that shouldn't come: the test finds it in the list.
        answer = steps[number]["answer"] if number < len(steps) else {"status": 204}
        _play(connection, answer, request, path)


def _play(connection: socket.socket, answer: dict[str, Any], request: Request, path: str) -> None:
    end = answer.get("end", "clean")
    status = answer.get("status", 200)
    if answer.get("drop"):
        _close(connection, request, reset=True)
        return
    if status is not None:
        given = {name: _dated(value).replace("{same}", path) for name, value in answer.get("headers", {}).items()}
        streams = "stream" in answer
        headers = {"Content-Type": "text/event-stream", "Transfer-Encoding": "chunked"} if streams else {"Content-Length": "0"}
        connection.sendall(_head(status, headers | given))
        for piece in answer.get("stream", ()):
            if isinstance(piece, str):
                data = piece.encode()
                connection.sendall(b"%x\r\n%b\r\n" % (len(data), data))
            else:
                time.sleep(piece / 1000)
        if streams and end == "clean":
            connection.sendall(b"0\r\n\r\n")
    if end == "hold":
        while connection.recv(65536):
            pass
    _close(connection, request, reset=end == "reset")


def _close(connection: socket.socket, request: Request, *, reset: bool) -> None:
    request.ended_at = time.monotonic()
    if reset:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
    else:
        connection.shutdown(socket.SHUT_WR)
    connection.close()


def _dated(value: str) -> str:
    found = re.fullmatch(r"\{date\+(\d+)\}", value)
    return email.utils.formatdate(time.time() + int(found[1]), usegmt=True) if found else value


def _head(status: int, headers: dict[str, str]) -> bytes:
    lines = [f"HTTP/1.1 {status} -", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, "Cache-Control: no-store", "Connection: close", "", ""]).encode()


def table() -> dict[str, Any]:
    """The reconnect table."""
    found: dict[str, Any] = json.loads(TABLE.read_text())
    return found


@contextlib.contextmanager
def playing(cases: Sequence[dict[str, Any]], addresses: int = 1) -> Iterator[ScriptServer]:
    """A server of these cases, on free ports."""
    with contextlib.ExitStack() as stack:
        listeners = [stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=128)) for _ in range(addresses)]
        server = ScriptServer(listeners, cases)
        server.start()
        try:
            yield server
        finally:
            server.close()
