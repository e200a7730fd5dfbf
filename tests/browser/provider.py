"""A model provider of our own, with an OpenAI-compatible endpoint that does as a test says."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Behaviour = Callable[["Call"], None]


class Call(BaseHTTPRequestHandler):
    """One request to the provider.

    Attributes:
        payload: The JSON that was sent.
    """

    payload: dict[str, Any]
    server: _Server

    def do_POST(self) -> None:
        """Reads the request and does as the test says."""
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.payload = json.loads(body)
        self.server.calls.append(self)
        with contextlib.suppress(ConnectionError):
            self.server.behaviour(self)

    def begin(self, status: int = 200, **headers: str) -> None:
        """Sends the status and the headers; HTTP/1.0, so the body ends with the connection."""
        self.send_response(status)
        for name, value in ({"Content-Type": "text/event-stream"} | headers).items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()

    def write(self, data: bytes) -> None:
        """Sends bytes of the body at once."""
        self.wfile.write(data)
        self.wfile.flush()

    def say(self, text: str, **choice: Any) -> None:
        """Sends one piece of the answer."""
        self.write(piece(text, **choice))

    def wait_until_left(self) -> None:
        """Waits until the client has closed the connection."""
        with contextlib.suppress(ConnectionError):
            while self.connection.recv(1024):
                pass

    def log_message(self, *_: object) -> None:
        """Says nothing."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, behaviour: Behaviour) -> None:
        super().__init__(("127.0.0.1", 0), Call)
        self.behaviour = behaviour
        self.calls: list[Call] = []


class Provider:
    """The provider while it runs.

    Attributes:
        base_url: What `CHAT_BASE_URL` is to be.
        calls: The requests so far.
    """

    def __init__(self, server: _Server) -> None:
        self.base_url = f"http://127.0.0.1:{server.server_port}/v1"
        self.calls = server.calls


@contextlib.contextmanager
def running_provider(behaviour: Behaviour) -> Iterator[Provider]:
    """A provider on a free port that answers each request by calling `behaviour`."""
    server = _Server(behaviour)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield Provider(server)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def piece(text: str, **choice: Any) -> bytes:
    """One piece of an answer as the provider writes it."""
    data = {"id": "c1", "object": "chat.completion.chunk", "choices": [{"index": 0, "delta": {"content": text}, **choice}]}
    return f"data: {json.dumps(data)}\n\n".encode()


DONE = b"data: [DONE]\n\n"
