"""What must stay the operating system's own where gevent has patched the standard library.

State that native threads can reach is guarded by such a lock: a patched one, shared between a native thread and a greenlet, leaves
greenlets stuck for good. It is held for moments, and never across a switch.
"""

from __future__ import annotations

import contextlib
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


def lock() -> threading.Lock:
    """A lock of the operating system's."""
    make: Any = _original("_thread", "allocate_lock") if is_patched() else threading.Lock
    made: threading.Lock = make()
    return made


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
