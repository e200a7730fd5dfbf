"""What must stay the operating system's own where gevent has patched the standard library.

State that native threads can reach is guarded by such a lock: a patched one, shared between a native thread and a greenlet, leaves
greenlets stuck for good. It is held for moments, and never across a switch. A signal handler must not publish: it may run while
its own thread holds one.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from gc import disable, enable, isenabled
from typing import Any, Final


# The same before patching and after it, so it is looked up once.
@functools.cache
def _original(module: str, name: str) -> Any:
    monkey = sys.modules.get("gevent.monkey")
    return getattr(sys.modules[module], name) if monkey is None else monkey.get_original(module, name)


def is_patched() -> bool:
    """Whether gevent has made greenlets of this process's threads."""
    monkey = sys.modules.get("gevent.monkey")
    return monkey is not None and bool(monkey.is_module_patched("threading"))


#: One for each lock that is held, by any native thread. A deque changes in one step, whatever other threads do meanwhile.
holding: Final[collections.deque[None]] = collections.deque()
hold: Final = holding.append
let_go: Final = holding.pop
#: Not empty: who turned the collector off found others holding locks when it let go; the last of them turns it on.
handed_on: Final[collections.deque[None]] = collections.deque()


def let_collect(is_mine: bool) -> None:
    """Turns the garbage collector on, or leaves that to who still holds a lock; called after letting go.

    Args:
        is_mine: Whether the caller turned it off.
    """
    if is_mine:
        if not holding and not handed_on:
            # Nearly always.
            enable()
            return
        handed_on.append(None)
    while handed_on and not holding:
        handed_on.clear()
        if not holding:
            enable()
        else:
            # Somebody else has begun just now, and let go, perhaps.
            handed_on.append(None)


def _forget_others() -> None:
    """A child that was forked has none of the threads that hold locks in its parent."""
    if holding:
        holding.clear()
        handed_on.append(None)


os.register_at_fork(after_in_child=_forget_others)


class Lock:
    """A lock of the operating system's, under which the garbage collector rests.

    Whatever the collector finalises (a generator whose `finally` publishes, say) would run in the middle of what the lock guards,
    and wait for the lock that its own thread holds.

    Attributes:
        raw: The lock itself, for who sees to the collector without a call of Python's.
    """

    __slots__ = ("_collects", "raw")

    def __init__(self) -> None:
        self.raw: threading.Lock = _original("_thread", "allocate_lock")()
        self._collects = False

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        """As that of `threading.Lock`."""
        is_mine = self.raw.acquire(blocking, timeout)
        if is_mine:
            hold(None)
            self._collects = isenabled()
            if self._collects:
                disable()
        return is_mine

    def release(self) -> None:
        """As that of `threading.Lock`."""
        self.__exit__(None, None, None)

    # As `acquire`, without its call: each event is published under one.

    def __enter__(self) -> None:
        self.raw.acquire()
        hold(None)
        self._collects = isenabled()
        if self._collects:
            disable()

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        collects = self._collects
        self.raw.release()
        if holding:
            # Else it was acquired before a fork, in the parent.
            let_go()
        if collects or handed_on:
            let_collect(collects)


class Latch:
    """What the thread or greenlet that made it waits at, until another opens it, once."""

    __slots__ = ("_lock",)

    def __init__(self) -> None:
        # A greenlet of the hub lets the others run meanwhile; no other native thread may touch a patched lock.
        make: Any = _original("_thread", "allocate_lock") if is_apart() else threading.Lock
        self._lock: threading.Lock = make()
        self._lock.acquire()

    def wait(self, seconds: float) -> bool:
        """Waits at most so long; whether it was opened."""
        return self._lock.acquire(timeout=max(seconds, 0))

    def open(self) -> None:
        """Lets the one that waits go on."""
        self._lock.release()


def is_apart() -> bool:
    """Whether the calling native thread is one of a patched process's that has no hub: it must not share greenlets' things."""
    return is_patched() and not is_main_thread()


def new_socket(family: int) -> socket.socket:
    """A stream socket for the calling native thread: where it `is_apart`, the operating system's own."""
    make: Any = _original("socket", "socket") if is_apart() else socket.socket
    made: socket.socket = make(family, socket.SOCK_STREAM)
    return made


def addresses(host: str, port: int) -> list[tuple[Any, ...]]:
    """As `socket.getaddrinfo` for stream sockets, for the calling native thread."""
    find: Any = _original("socket", "getaddrinfo") if is_apart() else socket.getaddrinfo
    return list(find(host, port, 0, socket.SOCK_STREAM))


def start_thread(function: Callable[[], object]) -> None:
    """Starts a native thread that doesn't keep the process alive, whatever gevent has patched."""
    _original("_thread", "start_new_thread")(function, ())


def thread_id() -> int:
    """The native thread that calls this, whichever greenlet of it."""
    ident: int = _original("_thread", "get_ident")()
    return ident


def sleep(seconds: float) -> None:
    """Stops the native thread that calls this."""
    _original("time", "sleep")(seconds)


def pause(seconds: float) -> None:
    """Waits: in a patched process's own thread so that its other greenlets run, elsewhere stopping the calling thread."""
    if is_patched() and not is_main_thread():
        # A greenlet of this native thread would wake a hub of its own.
        sleep(seconds)
    else:
        time.sleep(seconds)


def send(sock: socket.socket, data: bytes) -> None:
    """Sends on a non-blocking socket from any native thread; what doesn't fit is dropped."""
    with contextlib.suppress(BlockingIOError):
        getattr(sock, "_sock", sock).send(data)


def is_main_thread() -> bool:
    """Whether the calling native thread is the process's first, in which a patched process has its hub."""
    ident: int = _original("_thread", "get_native_id")()
    return ident == os.getpid()
