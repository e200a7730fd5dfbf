"""One epoll set for the sockets of all streams of a worker, watched by one gevent watcher."""

from __future__ import annotations

import _socket
import collections
import logging
import os
import time
from typing import Any, Final, Protocol

import gevent
from gevent import monkey

log = logging.getLogger("sseflask.worker")

#: Seconds, and bytes, for which a socket that was shut down is still read, so that what was sent isn't lost to a reset.
LINGER_SECONDS: Final = 2.0
LINGER_BYTES: Final = 64 * 1024

#: Sockets that are seen to in one turn of the hub's loop: a thousand clients that hang up at once must not keep it.
EVENTS_PER_TURN: Final = 32

#: From <sys/epoll.h>; the module that has their names loses them when it is patched.
EPOLLIN: Final = 0x001
EPOLLOUT: Final = 0x004
EPOLLERR: Final = 0x008
EPOLLHUP: Final = 0x010
EPOLLRDHUP: Final = 0x2000

#: gevent's name for «readable».
_READ: Final = 1


class Polled(Protocol):
    """Something with a socket in the set."""

    @property
    def log_extra(self) -> dict[str, str]:
        """What a log line about it has beside its text."""
        ...

    def ready(self, events: int) -> None:
        """The socket has these epoll events."""


class Poller:
    """Tells those it watches when their client has hung up, without a write, and when their socket takes bytes again.

    Attributes:
        loop: The hub's.
        pid: The process that it was made in.
    """

    def __init__(self) -> None:
        # Patching takes epoll out of the module, since it isn't gevent's; this one never waits.
        self._epoll: Any = monkey.get_original("select", "epoll")()
        self._polled: dict[int, Polled] = {}
        self.pid = os.getpid()
        self.loop: Any = gevent.get_hub().loop
        self._watcher = self.loop.io(self._epoll.fileno(), _READ)
        self._watcher.start(self._ready)
        # All have the same time, so the first to have begun is the first to end.
        self._lingering: collections.deque[Lingering] = collections.deque()
        self._timer: Any = None

    def __len__(self) -> int:
        return len(self._polled)

    def add(self, fd: int, polled: Polled) -> None:
        """Watches a socket for a hang-up."""
        self._polled[fd] = polled
        self._epoll.register(fd, EPOLLRDHUP)

    def watch_writable(self, fd: int, *, on: bool) -> None:
        """Watches for room in the socket's buffer too, or no longer."""
        self._epoll.modify(fd, EPOLLRDHUP | EPOLLOUT if on else EPOLLRDHUP)

    def linger(self, fd: int, sock: _socket.socket) -> None:
        """Reads a socket, whose writing side was shut down, until its client closes it or the bounds are reached, and closes it."""
        self._polled[fd] = lingering = Lingering(self, fd, sock)
        self._lingering.append(lingering)
        if self._timer is None:
            self._wait_for(lingering)
        self._epoll.modify(fd, EPOLLIN | EPOLLRDHUP)

    def remove(self, fd: int) -> None:
        """Forgets a socket, which is about to be closed."""
        if self._polled.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def _wait_for(self, lingering: Lingering) -> None:
        """One timer for all of them, for the first."""
        self._timer = self.loop.timer(max(lingering.until - time.monotonic(), 0))
        self._timer.start(self._give_up)

    def _give_up(self) -> None:
        """Closes those whose time is over; most have been closed by their clients."""
        self._timer.close()
        self._timer = None
        if os.getpid() != self.pid:
            # A child that a generator has forked: they are its parent's, and so is the epoll set.
            return
        now = time.monotonic()
        try:
            while self._lingering and (self._lingering[0].until <= now or self._lingering[0].is_closed):
                self._lingering.popleft().close()
        finally:
            if self._lingering:
                self._wait_for(self._lingering[0])

    def _ready(self) -> None:
        if os.getpid() != self.pid:
            # As in `_give_up`.
            self._watcher.stop()
            return
        # What is left is told again in the loop's next turn.
        for fd, events in self._epoll.poll(0, EVENTS_PER_TURN):
            polled = self._polled.get(fd)
            if polled is not None:
                try:
                    polled.ready(events)
                except Exception:
                    log.exception("a stream's socket failed", extra=polled.log_extra)


class Lingering:
    """A socket that has sent its last byte and waits for its client to close.

    Attributes:
        until: The monotonic second at which it waits no longer.
        is_closed: Whether it has been closed.
    """

    __slots__ = ("_fd", "_left", "_poller", "_sock", "is_closed", "until")

    def __init__(self, poller: Poller, fd: int, sock: _socket.socket) -> None:
        self._poller = poller
        self._fd = fd
        self._sock = sock
        self._left = LINGER_BYTES
        self.is_closed = False
        self.until = time.monotonic() + LINGER_SECONDS

    @property
    def log_extra(self) -> dict[str, str]:
        """Its stream has gone."""
        return {}

    def ready(self, events: int) -> None:
        """Reads what there is."""
        try:
            while self._left > 0:
                data = self._sock.recv(8192)
                if not data:
                    break
                self._left -= len(data)
        except BlockingIOError:
            return
        except OSError:
            pass
        self.close()

    def close(self) -> None:
        """Closes it. A second call does nothing: by then its number may be another socket's."""
        if not self.is_closed:
            self.is_closed = True
            try:
                self._poller.remove(self._fd)
            finally:
                self._sock.close()
