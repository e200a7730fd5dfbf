"""Clients that mean ill, against the real server."""

from __future__ import annotations

import contextlib
import socket
import threading
import time

from tests.conftest import Serve
from tests.live.client import connect, get, open_stream

APP = """
    from flask import Flask
    from sseflask import SSE
    app = Flask(__name__)
    app.config["SSE_PUBLIC_CHANNELS"] = ["*"]
    sse = SSE()
    sse.authorize(lambda action, channel: True)
    app.register_blueprint(sse, url_prefix="/events")
"""
CONNECTIONS = 4
#: Seconds within which gunicorn is done with a slow head at the latest, on a machine that is busy with other things.
PATIENCE = 30.0


class SlowClient(threading.Thread):
    """Sends a request's head a byte at a time, and never its end.

    Attributes:
        cut_after: Seconds after which the server had closed the connection; None until then.
    """

    def __init__(self, connection: socket.socket) -> None:
        super().__init__(daemon=True)
        self.cut_after: float | None = None
        self._connection = connection

    def run(self) -> None:
        """Goes on until it is cut, or for as long as anyone would wait."""
        began = time.monotonic()
        self._connection.settimeout(0.1)
        with self._connection, contextlib.suppress(ConnectionError):
            self._connection.sendall(b"GET /events/news HTTP/1.1\r\nX-Slow: ")
            while time.monotonic() - began < PATIENCE:
                self._connection.sendall(b"x")
                with contextlib.suppress(TimeoutError):
                    if not self._connection.recv(65536):
                        break
            else:
                return
        self.cut_after = time.monotonic() - began


def test_slow_heads(serve: Serve) -> None:
    """Clients whose heads never end hold all connections, until gunicorn's `keepalive` is over; open streams go on meanwhile."""
    server = serve(APP, args=["--worker-connections", str(CONNECTIONS)])
    with open_stream(server, "/events/news") as stream:
        stream.next_event()
        slow = [SlowClient(connect(server)) for _ in range(CONNECTIONS)]
        for client in slow:
            client.start()
        posted = get(server, "/events/news", method="POST", body=b"in time", timeout=PATIENCE)
        assert posted.status == 201
        assert stream.next_event(PATIENCE).data == "in time"
        for client in slow:
            client.join(PATIENCE)
            assert client.cut_after is not None and client.cut_after > 1
