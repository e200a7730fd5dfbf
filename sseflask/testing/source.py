"""Where the bytes of a response come from in a test, so that nobody waits for them longer than they want to."""

from __future__ import annotations

import contextlib
import contextvars
import queue
import signal
import socket
import threading
from collections.abc import Callable, Iterable
from types import FrameType
from typing import Any, Final, Protocol

from ..response import HEADERS

#: Seconds that closing what somebody else iterates may take.
CLOSE_SECONDS = 2.0
#: Seconds after which a generator is interrupted again that has taken an interruption for something else.
AGAIN_SECONDS: Final = 0.2


class Source(Protocol):
    """The body of one response."""

    def read(self, timeout: float) -> bytes | None:
        """Waits for bytes.

        Args:
            timeout: Seconds to wait at the most.

        Returns:
            Those that came, `b""` at the end, None if nothing came in time.
        """
        ...

    def close(self) -> None:
        """Lets go of the response. A second call does nothing."""


class IterableSource:
    """A body that is iterated by a thread of its own, which fetches one item at a time and only when asked.

    A stream of sseflask's ends when it is closed, wherever it waits. Something else that waits can't be interrupted: its thread, a
    daemon, then stays.
    """

    def __init__(self, body: Iterable[bytes], close: Callable[[], object]) -> None:
        """Stores what it needs.

        Args:
            body: What is iterated.
            close: Ends it.
        """
        self._body = iter(body)
        self._close: Callable[[], object] | None = close
        self._asked: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._fetched: queue.SimpleQueue[bytes | Exception | None] = queue.SimpleQueue()
        self._is_fetching = False
        self._is_over = False
        self._thread: threading.Thread | None = None

    def read(self, timeout: float) -> bytes | None:
        """Waits for the next item; see `Source.read`. What iterating raises is raised here."""
        if self._is_over or self._close is None:
            return b""
        if self._thread is None:
            # What the body looks up in the context of the test, it finds.
            run = contextvars.copy_context().run
            self._thread = threading.Thread(target=run, args=(self._fetch,), name="sseflask-reader", daemon=True)
            self._thread.start()
        if not self._is_fetching:
            self._is_fetching = True
            self._asked.put(True)
        try:
            item = self._fetched.get(timeout=max(timeout, 0))
        except queue.Empty:
            return None
        self._is_fetching = False
        if item is None or isinstance(item, BrokenPipeError):
            self._is_over = True
            return b""
        if isinstance(item, Exception):
            self._is_over = True
            raise item
        return item

    def close(self) -> None:
        """Ends the body; see `Source.close`."""
        close, self._close = self._close, None
        if close is None:
            return
        self._asked.put(False)
        if self._is_fetching:
            # Some bodies can't be closed while they are iterated, and wait, or fail.
            closing = threading.Thread(target=_quietly, args=(close,), name="sseflask-closer", daemon=True)
            closing.start()
            closing.join(CLOSE_SECONDS)
        else:
            close()
        if self._thread is not None:
            self._thread.join(CLOSE_SECONDS)

    def _fetch(self) -> None:
        while self._asked.get():
            try:
                # Servers skip empty items too.
                self._fetched.put(next(filter(None, self._body), None))
            except ValueError as error:
                # The end of `stream_with_context` in another thread than the view's.
                self._fetched.put(None if "different Context" in str(error) else error)
            except Exception as error:
                self._fetched.put(error)


class TimeIsOver(BaseException):
    """Raised where a plain generator waits, when the test no longer does."""


class InterruptedSource:
    """A body that is iterated by the test's own thread, the process's first, and interrupted there when the time is over.

    Flask's `stream_with_context` generators must end in the thread in which they began. One that was interrupted is over.
    """

    _reading: InterruptedSource | None = None

    def __init__(self, body: Iterable[bytes], close: Callable[[], object]) -> None:
        """Stores what it needs.

        Args:
            body: What is iterated.
            close: Ends it.
        """
        self._body = iter(body)
        self._close: Callable[[], object] | None = close
        self._is_over = False

    def read(self, timeout: float) -> bytes | None:
        """Waits for the next item; see `Source.read`. What iterating raises is raised here."""
        if self._is_over or self._close is None:
            return b""
        # Real-time signals have no other meaning. The handler stays: one that comes late does nothing then.
        signal.signal(signal.SIGRTMAX, self._interrupt)
        is_done = threading.Event()
        arguments = (threading.get_ident(), is_done, max(timeout, 0))
        watchdog = threading.Thread(target=_interrupt_after, args=arguments, name="sseflask-watchdog", daemon=True)
        watchdog.start()
        try:
            InterruptedSource._reading = self
            item = next(filter(None, self._body), b"")
            InterruptedSource._reading = None
        except TimeIsOver:
            self._is_over = True
            return None
        except BaseException:
            self._is_over = True
            raise
        finally:
            InterruptedSource._reading = None
            is_done.set()
            watchdog.join()
        return item

    def close(self) -> None:
        """Ends the body; see `Source.close`."""
        close, self._close = self._close, None
        if close is not None:
            close()

    @staticmethod
    def _interrupt(number: int, frame: FrameType | None) -> None:
        if InterruptedSource._reading is not None:
            raise TimeIsOver


def _interrupt_after(thread: int, is_done: threading.Event, seconds: float) -> None:
    while not is_done.wait(seconds):
        signal.pthread_kill(thread, signal.SIGRTMAX)
        seconds = AGAIN_SECONDS


class SocketSource:
    """A body that comes over a connection, until that ends."""

    def __init__(self, sock: socket.socket, first: bytes) -> None:
        """Stores what it needs.

        Args:
            sock: The connection.
            first: What of the body has been read already.
        """
        self._socket: socket.socket | None = sock
        self._first = first

    def read(self, timeout: float) -> bytes | None:
        """Waits for what comes next; see `Source.read`."""
        if self._first:
            first, self._first = self._first, b""
            return first
        if self._socket is None:
            return b""
        return receive(self._socket, timeout)

    def close(self) -> None:
        """Ends the connection; see `Source.close`."""
        sock, self._socket = self._socket, None
        if sock is not None:
            sock.close()


def receive(sock: socket.socket, timeout: float) -> bytes | None:
    """What comes over a connection next; `b""` once it has ended, None if nothing comes in that many seconds."""
    # 0 would mean not to wait at all for what is on its way within the machine.
    sock.settimeout(max(timeout, 0.001))
    try:
        return sock.recv(65536)
    except TimeoutError:
        return None
    except OSError:
        return b""


def source_of(response: Any) -> Source:
    """The body of a response of Flask's test client, of Flask itself, of requests, httpx, `http.client` or urllib.

    Raises:
        TypeError: It is none of these.
    """
    if hasattr(response, "iter_encoded"):
        is_ours = all(response.headers.get(name) == value for name, value in HEADERS.items())
        apart = is_ours or threading.current_thread() is not threading.main_thread()
        return (IterableSource if apart else InterruptedSource)(response.iter_encoded(), response.close)
    if hasattr(response, "iter_content"):
        # One byte at a time: requests would wait for more.
        return IterableSource(response.iter_content(chunk_size=1), response.close)
    if hasattr(response, "iter_raw"):
        return IterableSource(response.iter_raw(), response.close)
    if hasattr(response, "read1"):
        return IterableSource(iter(lambda: response.read1(65536), b""), response.close)
    raise TypeError(f"read_events reads responses, of Flask's test client for example, not {type(response).__name__}")


def _quietly(close: Callable[[], object]) -> None:
    with contextlib.suppress(Exception):
        close()
