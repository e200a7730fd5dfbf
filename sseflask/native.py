"""What must stay the operating system's own where gevent has patched the standard library.

State that native threads can reach is guarded by such a lock: a patched one, shared between a native thread and a greenlet, leaves
greenlets stuck for good. It is held for moments, and never across a switch. A signal handler must not publish: it may run while
its own thread holds one.
"""

from __future__ import annotations

import contextlib
import gc
import os
import socket
import sys
import threading
from typing import Any


def _original(module: str, name: str) -> Any:
    monkey = sys.modules.get("gevent.monkey")
    return getattr(sys.modules[module], name) if monkey is None else monkey.get_original(module, name)


def is_patched() -> bool:
    """Whether gevent has made greenlets of this process's threads."""
    monkey = sys.modules.get("gevent.monkey")
    return monkey is not None and bool(monkey.is_module_patched("threading"))


class Lock:
    """A lock of the operating system's, under which the garbage collector rests.

    Whatever the collector finalises (a generator whose `finally` publishes, say) would run in the middle of what the lock guards,
    and wait for the lock that its own thread holds.
    """

    __slots__ = ("_collects", "_lock")

    def __init__(self) -> None:
        make: Any = _original("_thread", "allocate_lock") if is_patched() else threading.Lock
        self._lock: threading.Lock = make()
        self._collects = False

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        """As that of `threading.Lock`."""
        is_mine = self._lock.acquire(blocking, timeout)
        if is_mine:
            self._collects = gc.isenabled()
            gc.disable()
        return is_mine

    def release(self) -> None:
        """As that of `threading.Lock`."""
        collects = self._collects
        self._lock.release()
        if collects:
            gc.enable()

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(self, *error: object) -> None:
        self.release()


def thread_id() -> int:
    """The native thread that calls this, whichever greenlet of it."""
    ident: int = _original("_thread", "get_ident")()
    return ident


def sleep(seconds: float) -> None:
    """Stops the native thread that calls this."""
    _original("time", "sleep")(seconds)


def send(sock: socket.socket, data: bytes) -> None:
    """Sends on a non-blocking socket from any native thread; what doesn't fit is dropped."""
    with contextlib.suppress(BlockingIOError):
        getattr(sock, "_sock", sock).send(data)


def is_main_thread() -> bool:
    """Whether the calling native thread is the process's first, in which a patched process has its hub."""
    ident: int = _original("_thread", "get_native_id")()
    return ident == os.getpid()
