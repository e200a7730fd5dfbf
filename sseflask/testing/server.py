"""A real server for tests: on a free port of the loopback interface, in threads of the test's own process."""

from __future__ import annotations

import contextlib
import threading
import time
from typing import Any, Self

from flask import Flask
from werkzeug.serving import BaseWSGIServer, WSGIRequestHandler, make_server

from .. import process
from .reader import EventReader, open_stream

#: Seconds that streams and the server have to end.
STOP_SECONDS = 5.0


class SSEServer:
    """Serves an app over HTTP, in this process, so that the test can publish, look at the app and move a fake clock.

    It is Werkzeug's threaded server: streams go through WSGI, one thread each. It isn't what an app is deployed on.

    Attributes:
        app: What it serves.
        url: `http://127.0.0.1:PORT`, once it has been started; empty before.
    """

    def __init__(self, app: Flask) -> None:
        """Stores what it serves.

        Args:
            app: An app.
        """
        self.app = app
        self.url = ""
        self._server: BaseWSGIServer | None = None
        self._thread: threading.Thread | None = None
        self._readers: list[EventReader] = []

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def __repr__(self) -> str:
        return f"<SSEServer {self.url or 'not started'}>"

    def start(self) -> Self:
        """Begins to serve, on a free port.

        Returns:
            Itself.
        """
        self._server = server = make_server("127.0.0.1", 0, self.app, threaded=True, request_handler=_Handler)
        self.url = f"http://127.0.0.1:{server.server_port}"
        # Looks at whether it shall stop so often.
        serve: Any = server.serve_forever
        self._thread = threading.Thread(target=serve, args=(0.02,), name="sseflask-test-server", daemon=True)
        self._thread.start()
        return self

    def get(self, path: str, **options: Any) -> EventReader:
        """Opens a stream; the server closes its reader when it stops.

        Args:
            path: The URL's path and query.
            options: As for `open_stream`: `headers`, `timeout`, `skip`; `method` and `data` for other requests.

        Returns:
            The reader.

        Raises:
            EventsMissing: No headers came in time.
            ValueError: The server hasn't been started.
            ConnectionRefusedError: It has been stopped.
        """
        __tracebackhide__ = True
        reader = open_stream(self.url + path, **options)
        self._readers.append(reader)
        return reader

    def stop(self) -> None:
        """Ends the app's streams, and serves no more. A second call does nothing.

        Waits some seconds for generators that don't end at once, no longer.
        """
        server, self._server = self._server, None
        if server is None:
            return
        for reader in self._readers:
            reader.close()
        server.shutdown()
        assert self._thread is not None
        self._thread.join(STOP_SECONDS)
        with contextlib.suppress(OSError):
            server.server_close()
        deadline = time.monotonic() + STOP_SECONDS
        while (ours := self._streams()) and time.monotonic() < deadline:
            for stream in ours:
                stream.drain()
            time.sleep(0.005)

    def _streams(self) -> list[Any]:
        return [stream for stream in process.current().streams.copy() if stream.app is self.app]


class _Handler(WSGIRequestHandler):
    """Logs no requests, only what goes wrong."""

    # The stream itself, up to the end of the connection, is the body.
    protocol_version = "HTTP/1.0"

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """Does nothing."""
