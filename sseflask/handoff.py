"""Where a stream's bytes wait for the WSGI server to take them: the first sink of every stream, under any server the only one."""

from __future__ import annotations

import errno
import json
import threading
import time
from collections.abc import Callable
from typing import Any, Final

from flask import Response

from . import native
from .decoder import EventDecoder
from .errors import StreamError
from .ring import Frames

#: Bytes that wait for the server before the producer does.
BOUND_BYTES: Final = 64 * 1024


class Failure:
    """What a generator's error before its first event has become: a response, or the error itself where it shall propagate."""

    __slots__ = ("error", "response")

    def __init__(self, *, response: Response | None = None, error: BaseException | None = None) -> None:
        self.response = response
        self.error = error


class Handoff:
    """A bounded buffer between a producer and the thread or greenlet that iterates the response.

    Attributes:
        prelude: What goes out before the first event, once the response opens.
        blocked_since: The monotonic second since when bytes have been waiting; None while the server keeps up.
        on_abort: Called when the sink is aborted, to end a server's wait for a client that takes nothing; None for nothing.
    """

    def __init__(self) -> None:
        self.prelude = b""
        self.blocked_since: float | None = None
        self.on_abort: Callable[[], None] | None = None
        self._ended: Callable[[], None] | None = None
        self._taken: Callable[[], None] | None = None
        self._pending: list[bytes] = []
        self._size = 0
        # Unpatched: whoever holds it runs on to its release, so that no frame falls between this sink and the next.
        self._lock = native.Lock()
        # Made by the first that waits: a subscription that a worker takes over never does.
        self._changed: threading.Condition | None = None
        self._finished = False
        self._aborted = False
        self._opened = False
        self._failing = False
        self._failure: Failure | None = None

    def bind(self, prelude: bytes, taken: Callable[[], None], ended: Callable[[], None]) -> None:
        """Begins.

        Args:
            prelude: What goes out first.
            taken: Called each time when what was written has been taken, and more may follow.
            ended: Called once, when the last bytes have been taken or the sink was aborted.
        """
        self.prelude = prelude
        self._taken = taken
        self._ended = ended

    # The producer's side.

    def write(self, data: bytes) -> bool:
        """Adds frames. Returns whether there is room for more."""
        with self._lock:
            if self._finished:
                return True
            self._pending.append(data)
            self._size += len(data)
            if self.blocked_since is None:
                self.blocked_since = time.monotonic()
            self._notify()
            return self._size < BOUND_BYTES

    def write_shared(self, frames: Frames) -> bool:
        """Adds frames that many clients get."""
        return self.write(frames.data)

    def hold(self, data: bytes) -> bool:
        """Adds frames: the server takes all that there are at once."""
        return self.write(data)

    def flush(self) -> None:
        """Does nothing: nothing is held."""

    def wait(self) -> None:
        """Waits until the server has taken what was written, or the sink has ended."""
        with self._lock:
            self._wait_for(lambda: self._finished or self._size < BOUND_BYTES)

    def finish(self, last: bytes) -> None:
        """Ends after what was written and `last`."""
        with self._lock:
            if self._finished:
                return
            if last:
                self._pending.append(last)
            self._finished = True
            if self.blocked_since is None:
                # Until the server asks for what follows the last bytes, nobody knows that it has sent them.
                self.blocked_since = time.monotonic()
            self._notify()

    def abort(self) -> None:
        """Drops what waits; the server is told that the connection has broken."""
        with self._lock:
            self._pending = []
            self._finished = self._aborted = True
            self.blocked_since = None
            self._notify()
        if self.on_abort is not None:
            self.on_abort()
        self._end()

    def claim_failure(self) -> bool:
        """Whether an error can still become an HTTP response; if so, the response waits for `fail`."""
        with self._lock:
            self._failing = not self._opened and not self._pending and not self._finished
            return self._failing

    def fail(self, failure: Failure) -> None:
        """Says what the error has become."""
        with self._lock:
            self._failure = failure
            self._notify()

    # The server's side.

    @property
    def is_silent(self) -> bool:
        """Whether `take` would wait."""
        return not (self._pending or self.prelude or self._finished)

    def open(self, timeout: float | None) -> Failure | None:
        """Waits for the first event, the end or an error, and opens the response.

        Args:
            timeout: Seconds to wait at the most; None for no limit.

        Returns:
            The failure that is to be sent instead of the stream.
        """
        with self._lock:
            self._wait_for(self._is_decided, timeout)
            if self._failing:
                self._wait_for(lambda: self._failure is not None)
                return self._failure
            self._opened = True
            return None

    def take(self) -> bytes | None:
        """Waits for bytes and takes all there are; None at the end.

        Raises:
            BrokenPipeError: The stream was cut; the server must not end the response as if it were whole.
        """
        with self._lock:
            self._wait_for(lambda: bool(self._pending or self.prelude) or self._finished)
            data = self._take()
            if self._aborted:
                raise BrokenPipeError(errno.EPIPE, "the stream was cut: its client didn't take what was sent")
        if data:
            if self._taken is not None:
                self._taken()
            return data
        self._end()
        return None

    def detach(self) -> tuple[bytes, bool]:
        """Takes all there is without waiting, for another sink; says whether that is all that there will be."""
        with self._lock:
            return self._take(), self._finished

    def _wait_for(self, is_so: Callable[[], bool], timeout: float | None = None) -> None:
        """Waits, under the lock, which is free meanwhile."""
        if timeout == 0 or is_so():
            return
        if self._changed is None:
            self._changed = threading.Condition(self._lock)  # type: ignore[arg-type]
        self._changed.wait_for(is_so, timeout)

    def _notify(self) -> None:
        if self._changed is not None:
            self._changed.notify_all()

    def _is_decided(self) -> bool:
        return bool(self._pending) or self._finished or self._failing

    def _take(self) -> bytes:
        data = self.prelude + b"".join(self._pending)
        self.prelude = b""
        self._pending = []
        self._size = 0
        self.blocked_since = time.monotonic() if self._finished and data else None
        self._notify()
        return data

    def _end(self) -> None:
        ended, self._ended = self._ended, None
        if ended is not None:
            ended()


class Collector(Handoff):
    """Keeps all events until the end, for a client that gets them as one JSON array."""

    def __init__(self, limit: int) -> None:
        """Makes an empty one.

        Args:
            limit: Bytes that all the encoded events may have together.
        """
        super().__init__()
        self._limit = limit
        self._array_taken = False

    def write(self, data: bytes) -> bool:
        """Adds frames.

        Raises:
            StreamError: There are more than fit.
        """
        super().write(data)
        self.blocked_since = None
        if self._size > self._limit:
            raise StreamError(f"the events have more than {self._limit} bytes together", error_type="too_large")
        return True

    def claim_failure(self) -> bool:
        """Whether an error can still become an HTTP response: until the end, since nothing has been sent."""
        with self._lock:
            self._failing = not self._finished
            return self._failing

    def take(self) -> bytes | None:
        """Waits for the end and takes the JSON array; then None."""
        data = super().take() or b""
        if self._array_taken:
            return None
        self._array_taken = True
        return json.dumps([_as_json(event) for event in EventDecoder().feed(data)]).encode()

    def _is_decided(self) -> bool:
        return self._finished or self._failing


def _as_json(event: Any) -> dict[str, Any]:
    try:
        data = json.loads(event.data)
    except ValueError:
        data = event.data
    return {"event": event.event or "message", "data": data, "id": event.id}
