"""A network between a browser and a server that can be cut: a TCP proxy on a port of its own."""

from __future__ import annotations

import contextlib
import selectors
import socket
import struct
import threading
from collections.abc import Collection, Iterator
from typing import Final, Literal

#: For SO_LINGER: closing sends a reset.
RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)

How = Literal["reset", "end", "mid-event"]


class Network:
    """Passes bytes on both ways while it isn't cut.

    Attributes:
        origin: Where a browser reaches the server through it.
        attempts: How many connections found it cut.
    """

    def __init__(self, server: tuple[str, int]) -> None:
        self._server = server
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.origin = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.attempts = 0
        self._lock = threading.Lock()
        self._down: How | None = None
        self._pairs: list[_Pair] = []

    def run(self) -> None:
        """Lets connections through until it is closed."""
        while True:
            try:
                browser, _ = self._listener.accept()
            except OSError:
                return
            with self._lock:
                if self._down is not None:
                    self.attempts += 1
                    _reset(browser)
                    continue
                pair = _Pair(browser, socket.create_connection(self._server))
                self._pairs.append(pair)
            pair.thread.start()

    def cut(self, how: How) -> None:
        """Breaks all connections, and each that is made from now on.

        Args:
            how: `reset` them; `end` them as if the server had closed them; or `mid-event`: each ends when the server's next bytes
                come, in the midst of the event that they hold.
        """
        with self._lock:
            self._down = how
            for pair in self._pairs:
                pair.cut(how)
            self._pairs = [pair for pair in self._pairs if pair.thread.is_alive()]

    def restore(self) -> None:
        """Lets connections through again."""
        with self._lock:
            self._down = None

    def close(self) -> None:
        """Ends all."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut("reset")
        for pair in self._pairs:
            pair.thread.join()


class _Pair:
    """A browser's connection and the server's that belongs to it."""

    def __init__(self, browser: socket.socket, server: socket.socket) -> None:
        self.thread = threading.Thread(target=self._run)
        self._browser, self._server = browser, server
        self._orders, self._inbox = socket.socketpair()
        self._how: How | None = None

    def cut(self, how: How) -> None:
        """Tells the thread to cut it."""
        self._how = how
        with contextlib.suppress(OSError):
            self._orders.send(b"!")

    def _run(self) -> None:
        with self._browser, self._server, self._orders, self._inbox, contextlib.suppress(OSError):
            with selectors.DefaultSelector() as selector:
                for sock in (self._browser, self._server, self._inbox):
                    selector.register(sock, selectors.EVENT_READ)
                while self._pass_on({key.fileobj for key, _ in selector.select()}):
                    pass
            if self._how == "reset":
                _reset(self._browser)

    def _pass_on(self, ready: Collection[object]) -> bool:
        """Passes on what has come. Returns whether the connection goes on."""
        if self._how in ("reset", "end"):
            return False
        if self._inbox in ready:
            self._inbox.recv(1)
        if self._browser in ready:
            data = self._browser.recv(65536)
            if not data:
                return False
            self._server.sendall(data)
        if self._server in ready:
            data = self._server.recv(65536)
            if self._how == "mid-event":
                # The id, the name and the beginning of a data line have come; their block's end never does.
                self._browser.sendall(data[: data.find(b"data:") + 6])
                return False
            self._browser.sendall(data)
            return bool(data)
        return True


def _reset(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
    connection.close()


@contextlib.contextmanager
def network(server: tuple[str, int]) -> Iterator[Network]:
    """A network in front of a server."""
    made = Network(server)
    thread = threading.Thread(target=made.run)
    thread.start()
    try:
        yield made
    finally:
        made.close()
        thread.join()
