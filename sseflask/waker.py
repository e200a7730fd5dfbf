"""How a process's streams learn of new entries, where no `StreamWorker` tells them."""

from __future__ import annotations

import collections
import socket
import threading
import time

from . import native
from .emitter import Channel, Subscriber


class ThreadWaker:
    """Lets streams send in the thread or greenlet that publishes.

    Where gevent has patched the process, all streams live in one native thread. One that publishes from another posts to it,
    through a socket pair, since no patched primitive may be shared between the two.
    """

    def __init__(self) -> None:
        # Re-entrant: what ends with a stream may publish.
        self._lock = threading.RLock()
        self._home: int | None = None
        self._posted: collections.deque[Channel] = collections.deque()
        self._bell: socket.socket | None = None

    def wake(self, channel: Channel) -> None:
        """Lets the channel's streams send."""
        if self._bell is not None and native.thread_id() != self._home:
            self._posted.append(channel)
            native.send(self._bell, b"!")
            return
        for subscriber in list(channel.subscribers):
            self.pump(subscriber)

    def pump(self, subscriber: Subscriber) -> None:
        """Lets one stream send; called where streams run."""
        if self._home is None:
            self._settle()
        with self._lock:
            subscriber.pump(time.monotonic())

    def give_way(self) -> bool:
        """Lets the threads or greenlets that take events run."""
        if self._bell is not None and native.thread_id() != self._home:
            native.sleep(0.001)
        else:
            time.sleep(0.001)
        return True

    def _settle(self) -> None:
        """Streams run here, in this native thread if the process is patched."""
        self._home = native.thread_id()
        if native.is_patched():
            bell, self._bell = socket.socketpair()
            self._bell.setblocking(False)
            threading.Thread(target=self._answer, args=(bell,), name="sseflask-waker", daemon=True).start()

    def _answer(self, bell: socket.socket) -> None:
        while bell.recv(4096):
            while self._posted:
                self.wake(self._posted.popleft())
