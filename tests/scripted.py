"""A server that plays one case of tests/clients/reconnect.json on raw sockets, and says what the client did differently."""

from __future__ import annotations

import contextlib
import email.utils
import json
import socket
import struct
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Self

TABLE: Final[dict[str, Any]] = json.loads((Path(__file__).parent / "clients" / "reconnect.json").read_text())
#: For SO_LINGER: closing sends a reset.
RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)

Headers = Mapping[str, str]


class ScriptedServer:
    """Answers each request with the next step's answer.

    Attributes:
        faults: What a request should have been and wasn't, and requests that no step is for.
        count: How many requests have come.
        raw: The requests' heads, as they came.
        is_idle: Whether no request is being answered.
    """

    def __init__(self, steps: Sequence[Mapping[str, Any]]) -> None:
        self._steps = steps
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._over = threading.Event()
        self._ended_at = -1e9
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}/events"
        self.faults: list[str] = []
        self.raw: list[bytes] = []
        self.count = 0
        self.is_idle = True

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        # Closing wouldn't wake who accepts.
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join(10)
        self._listener.close()

    def _run(self) -> None:
        while not self._over.is_set():
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.is_idle = False
            with connection:
                # A client that leaves in the midst of an answer.
                with contextlib.suppress(ConnectionError, TimeoutError):
                    self._serve(connection)
                self._ended_at = time.monotonic()
            self.is_idle = True

    def _serve(self, connection: socket.socket) -> None:
        connection.settimeout(20)
        request = read_request(connection)
        if request is None:
            return
        method, headers, body, raw = request
        self.raw.append(raw)
        self.count += 1
        if self.count > len(self._steps):
            self.faults.append(f"request {self.count}: there should be none")
            connection.sendall(b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n")
            return
        step = self._steps[self.count - 1]
        waited = (time.monotonic() - self._ended_at) * 1000
        self.faults += [f"request {self.count}: {text}" for text in faults_of(step["request"], method, headers, body, waited)]
        self._answer(connection, step["answer"])

    def _answer(self, connection: socket.socket, answer: Mapping[str, Any]) -> None:
        if answer.get("drop"):
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
            return
        end = answer.get("end", "clean")
        if answer.get("status", 200) is not None:
            connection.sendall(head_of(answer, self.url))
            for piece in answer.get("stream", ()):
                if isinstance(piece, str):
                    data = piece.encode()
                    connection.sendall(b"%x\r\n%s\r\n" % (len(data), data))
                elif self._over.wait(piece / 1000):
                    return
            if end == "clean" and "stream" in answer:
                connection.sendall(b"0\r\n\r\n")
        if end == "reset":
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
        elif end == "hold":
            hung_up(connection, self._over)


def read_request(connection: socket.socket) -> tuple[str, Headers, bytes, bytes] | None:
    """Return a request's method, headers (names in small letters, values as UTF-8), body and head; `None` if none came."""
    data = b""
    while b"\r\n\r\n" not in data:
        piece = connection.recv(65536)
        if not piece:
            return None
        data += piece
    head, _, body = data.partition(b"\r\n\r\n")
    first, *lines = head.split(b"\r\n")
    headers: dict[str, str] = {}
    for name, _, value in (line.decode().partition(": ") for line in lines):
        # Twice the same header is a fault that no single value has.
        headers[name.lower()] = f"{headers[name.lower()]}, {value}" if name.lower() in headers else value
    while len(body) < int(headers.get("content-length", 0)):
        body += connection.recv(65536)
    return first.split()[0].decode(), headers, body, head


def faults_of(expected: Mapping[str, Any], method: str, headers: Headers, body: bytes, waited_ms: float) -> list[str]:
    """Say in what a request differs from what a step expects."""
    faults = []
    if method != expected.get("method", "GET"):
        faults.append(f"the method is {method}")
    if body != expected.get("body", "").encode():
        faults.append(f"the body is {body!r}")
    for name, value in expected.get("headers", {}).items():
        if headers.get(name.lower()) != value:
            faults.append(f"{name} is {headers.get(name.lower())!r}, not {value!r}")
    if waited_ms < expected.get("after_ms", 0):
        faults.append(f"it came after {waited_ms:.0f} ms, not {expected['after_ms']}")
    return faults


def head_of(answer: Mapping[str, Any], url: str) -> bytes:
    """Return an answer's head."""
    headers = {"Connection": "close"}
    if answer.get("status", 200) == 200:
        headers["Content-Type"] = "text/event-stream"
    if "stream" in answer:
        headers["Transfer-Encoding"] = "chunked"
    elif answer.get("status") != 204:
        headers["Content-Length"] = "0"
    headers |= {name: filled(value, url, time.time()) for name, value in answer.get("headers", {}).items()}
    lines = [f"HTTP/1.1 {answer.get('status', 200)} Scripted", *(f"{name}: {value}" for name, value in headers.items())]
    return "".join(f"{line}\r\n" for line in [*lines, ""]).encode()


def filled(value: str, url: str, wall: float) -> str:
    """Return a header's value, with what stands in braces."""
    if value == "{same}":
        return url
    if value.startswith("{date+"):
        return email.utils.formatdate(wall + int(value[6:-1]), usegmt=True)
    return value


def hung_up(connection: socket.socket, over: threading.Event) -> bool:
    """Wait until the client has hung up, or all is over."""
    connection.settimeout(0.05)
    while not over.is_set():
        try:
            if not connection.recv(4096):
                return True
        except TimeoutError:
            continue
        except ConnectionError:
            return True
    return False
