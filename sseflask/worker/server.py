"""What accepts connections at one of gunicorn's sockets."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, Final

import gevent
from gevent.server import StreamServer

#: Connections that a worker without others accepts in one turn of the loop; how long their requests keep it is the entrance's to
#: see to. With a few, a storm of clients that come back waits for a turn's other work again and again.
ACCEPTS_PER_TURN: Final = 64
#: Turns for which connections that wait already are accepted when no more are to come; gunicorn's `backlog` is 2,048.
LAST_TURNS: Final = 32


class Listener:
    """A listening socket as requests see it: its name outlives it, for those whose connection was accepted before it was closed."""

    def __init__(self, sock: Any) -> None:
        """Stores the socket, and its name."""
        self._sock = sock
        self._name = sock.getsockname()

    def getsockname(self) -> Any:
        """As the socket's."""
        return self._name

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)


class Server(StreamServer):
    """Accepts connections, and serves each that it has accepted: also one whose TLS handshake ends after it was closed."""

    def __init__(self, sock: Any, answer: Callable[[Any, Any, Any], object], *, spawn: Any, accepts: int, **tls: Any) -> None:
        """Stores what it needs; `start` begins.

        Args:
            sock: The listening socket.
            answer: Serves a connection, given the listener, the client's socket and address.
            spawn: The pool of the greenlets that do.
            accepts: How many are accepted in one turn of the loop.
            tls: `ssl_context`, if it speaks TLS.
        """
        self._answer = answer
        self._listener = Listener(sock)
        # It is given no function to call: closing would take that away from who is in the middle of a handshake.
        super().__init__(sock, spawn=spawn, **tls)
        self.max_accept = accepts

    def handle(self, client: Any, address: Any) -> None:
        """Serves a connection; in a greenlet of its own."""
        self._answer(self._listener, client, address)

    def leave(self) -> None:
        """Accepts those that wait already, and no more: where nobody else listens, the system resets those that are left."""
        for _ in range(LAST_TURNS):
            if not self._accept_some():
                break
            gevent.sleep(1e-9)
        self.close()

    def _accept_some(self) -> bool:
        """Whether more may be waiting."""
        with contextlib.suppress(OSError):
            for _ in range(ACCEPTS_PER_TURN):
                if self.closed or self.full() or not (accepted := self.do_read()):
                    return False
                self.do_handle(*accepted)
            return True
        return False
