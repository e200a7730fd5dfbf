"""How a process's streams learn of new entries, where no `StreamWorker` tells them."""

from __future__ import annotations

import collections
import logging
import socket
import threading
import time
from collections.abc import Callable

from . import native
from .emitter import Channel, Subscriber
from .tally import Latency

log = logging.getLogger("sseflask.stream")


class ThreadWaker:
    """Lets streams send in the thread or greenlet that publishes.

    Where gevent has patched the process, all streams live in one native thread. One that publishes from another posts to it,
    through a socket pair, since no patched primitive may be shared between the two.

    Attributes:
        latency: How long events took to their streams.
    """

    def __init__(self) -> None:
        self.latency = Latency()
        # Re-entrant: what ends with a stream may publish.
        self._lock = threading.RLock()
        self._holder: int | None = None
        self._deferred: list[Callable[[], object]] = []
        self._home: int | None = None
        self._posted: collections.deque[Channel | Callable[[], object]] = collections.deque()
        self._bell: socket.socket | None = None

    def wake(self, channel: Channel) -> None:
        """Lets the channel's streams send."""
        if self._home is None:
            # None has begun; one that is about to looks for itself.
            return
        if self._bell is not None and native.thread_id() != self._home:
            self._posted.append(channel)
            native.send(self._bell, b"!")
            return
        for subscriber in list(channel.subscribers):
            self._pump(subscriber)
        if self.latency.taken:
            self.latency.written(time.monotonic())

    def pump(self, subscriber: Subscriber) -> None:
        """Lets one stream send; called where streams run."""
        if self._home is None:
            self._settle()
        self._pump(subscriber)
        if self.latency.taken:
            self.latency.written(time.monotonic())

    def defer(self, call: Callable[[], object]) -> bool:
        """Calls later what may wait, if the caller is in the middle of a stream's sending. Returns whether it is."""
        if self._holder != threading.get_ident():
            return False
        self._deferred.append(call)
        return True

    def call(self, function: Callable[[], object]) -> None:
        """Calls a function where streams run: here, unless this is another native thread of a patched process.

        Raises:
            RuntimeError: It is, and no stream has run yet.
        """
        if not native.is_apart():
            function()
        elif self._bell is None:
            raise RuntimeError("no stream runs in this process yet: start it from where requests are served")
        else:
            self._posted.append(function)
            native.send(self._bell, b"!")

    def give_way(self) -> bool:
        """Lets the threads or greenlets that take events run."""
        if self._bell is not None and native.thread_id() != self._home:
            native.sleep(0.001)
        else:
            time.sleep(0.001)
        return True

    def rest(self) -> None:
        """Does nothing: threads take turns by themselves."""

    def _pump(self, subscriber: Subscriber) -> None:
        with self._lock:
            outer, self._holder = self._holder, threading.get_ident()
            try:
                while subscriber.pump(time.monotonic()):
                    pass
            except BaseException:
                # Whatever went wrong with one stream, the others go on.
                log.exception("a stream failed to send", extra=subscriber.log_extra)
            finally:
                self._holder = outer
                deferred: list[Callable[[], object]] = []
                if outer is None:
                    deferred, self._deferred = self._deferred, deferred
        for call in deferred:
            call()

    def _settle(self) -> None:
        """Streams run here, in this native thread if the process is patched."""
        if native.is_patched():
            bell, own = socket.socketpair()
            own.setblocking(False)
            self._bell = own
            threading.Thread(target=self._answer, args=(bell,), name="sseflask-waker", daemon=True).start()
        self._home = native.thread_id()

    def _answer(self, bell: socket.socket) -> None:
        while bell.recv(4096):
            while self._posted:
                posted = self._posted.popleft()
                if isinstance(posted, Channel):
                    self.wake(posted)
                else:
                    _call(posted)


def _call(function: Callable[[], object]) -> None:
    try:
        function()
    except Exception:
        log.exception("a call from another thread failed", extra={"sse_function": repr(function)})
