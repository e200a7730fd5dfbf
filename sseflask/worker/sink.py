"""The socket of one stream's client."""

from __future__ import annotations

import _socket
import errno
import os
import struct
import time
from typing import Final

import gevent.event

from sseflask.ring import Frames
from sseflask.state import CloseReason
from sseflask.stream import Stream

from .poller import EPOLLERR, EPOLLHUP, EPOLLOUT, EPOLLRDHUP, Poller

#: The connection's `TCP_USER_TIMEOUT` while its buffer is full, as a part of `SSE_SEND_TIMEOUT`; else it is that itself.
BLOCKED_USER_TIMEOUT: Final = 1.5
#: Bytes of a burst that are sent together at the most.
HELD_BYTES: Final = 16 * 1024
#: What a client sees of a stream that is cut: a reset, never an end that looks whole.
_RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)


class SocketSink:
    """Writes a stream's bytes to its client's socket without blocking, and notices at once when the client hangs up.

    Attributes:
        blocked_since: The monotonic second since when the socket has taken no more; None while it does.
    """

    __slots__ = ("_chunked", "_fd", "_finishing", "_held", "_pending", "_poller", "_sock", "_stream", "_taken", "blocked_since")

    def __init__(self, poller: Poller, sock: _socket.socket, stream: Stream, *, chunked: bool) -> None:
        """Begins to watch the socket.

        Args:
            poller: The worker's.
            sock: The client's, non-blocking; the sink closes it.
            stream: Whose bytes they are.
            chunked: Whether the body has HTTP/1.1 chunks; else its end is that of the connection.
        """
        self._poller = poller
        self._sock: _socket.socket | None = sock
        self._fd = sock.fileno()
        self._stream = stream
        self._chunked = chunked
        self._pending: bytes | memoryview = b""
        # Frames of a burst, until they are sent together: before anything else, or when the greenlet that makes them gives way.
        # None while the hub isn't asked to see to that.
        self._held: bytearray | None = None
        self._finishing = False
        self._taken: gevent.event.Event | None = None
        self.blocked_since: float | None = None
        # A peer that has vanished answers nothing, and a small keepalive always fits the buffer: only the kernel knows.
        self._limit_silence(1.0)
        poller.add(self._fd, self)

    @property
    def log_extra(self) -> dict[str, str]:
        """What a log line about the socket has beside its text: that of its stream."""
        return self._stream.log_extra

    def begin(self, head: bytes, frames: bytes) -> None:
        """Sends the response's head, and the frames that there are already."""
        self._send(head + self._framed(frames) if frames else head)

    def write(self, data: bytes) -> bool:
        """Sends frames, or keeps what the socket doesn't take. Returns whether it took all."""
        if self._sock is None or self._finishing:
            return True
        if self._held:
            data = self._take_held() + data
        # As `_framed`, without its call: each event of a generator comes by here.
        return self._send(b"%x\r\n%b\r\n" % (len(data), data) if self._chunked else data)

    def hold(self, data: bytes) -> bool:
        """Keeps frames of a burst for the next `write` or `flush`, or the hub's next turn. Returns whether all before was taken."""
        if self._sock is None or self._finishing:
            return True
        if self._pending or len(data) + len(self._held or b"") > HELD_BYTES:
            return self.write(data)
        if self._held is None:
            self._held = bytearray(data)
            self._poller.loop.run_callback(self._hub_turns)
        else:
            self._held += data
        return True

    def flush(self) -> None:
        """Sends what was kept of a burst."""
        if self._held and self._sock is not None and not self._send(self._framed(self._take_held())):
            self._stream.is_blocked()

    def write_shared(self, frames: Frames) -> bool:
        """Sends frames that many clients get, in one chunk that was made once; before what is held."""
        sock = self._sock
        if sock is None or self._finishing:
            return True
        data: bytes | memoryview = (frames.chunk or frames.make_chunk()) if self._chunked else frames.data
        if not self._pending:
            # As `_send`, for the thousands of clients who take all of it.
            try:
                sent = sock.send(data)
            except BlockingIOError:
                sent = 0
            except OSError as error:
                self._failed(error)
                return True
            if sent == len(data):
                return True
            data = memoryview(data)[sent:]
        return self._send(data)

    def wait(self) -> None:
        """Waits until the socket has taken what was written, or is closed."""
        while self._pending and self._sock is not None:
            if self._taken is None:
                self._taken = gevent.event.Event()
            self._taken.wait()

    def finish(self, last: bytes) -> None:
        """Ends the response cleanly after what was written and `last`."""
        if self._sock is None or self._finishing:
            return
        if self._held:
            last = self._take_held() + last
        if self._chunked:
            last = (self._framed(last) if last else b"") + b"0\r\n\r\n"
        self._finishing = True
        # The end of the connection follows at once, and takes these bytes with it in its packet.
        if self._send(last, _socket.MSG_MORE):
            self._shut_down()

    def abort(self) -> None:
        """Closes the socket at once; a client that has not hung up itself sees a reset."""
        if self._sock is not None:
            self._sock.setsockopt(_socket.SOL_SOCKET, _socket.SO_LINGER, _RESET_ON_CLOSE)
            self._close()

    def ready(self, events: int) -> None:
        """The client has hung up, or the socket takes bytes again."""
        if events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR):
            self._close(CloseReason.LOST if events & EPOLLERR and self._has_timed_out() else CloseReason.DISCONNECTED)
        elif events & EPOLLOUT and self._sock is not None:
            # It has read something: its time begins anew.
            self.blocked_since = time.monotonic()
            pending, self._pending = self._pending, b""
            if self._send(pending) and self._sock is not None:
                self.blocked_since = None
                self._limit_silence(1.0)
                self._poller.watch_writable(self._fd, on=False)
                self._wake()
                if self._finishing and not self._pending:
                    # Else what woke has written its last bytes, which wait in their turn.
                    self._shut_down()

    def _take_held(self) -> bytes:
        assert self._held is not None
        held = bytes(self._held)
        self._held.clear()
        return held

    def _hub_turns(self) -> None:
        # A child that the generator has forked: what waits here is its parent's to send.
        if os.getpid() == self._poller.pid:
            self.flush()
        self._held = None

    def _framed(self, data: bytes) -> bytes:
        return b"%x\r\n%b\r\n" % (len(data), data) if self._chunked else data

    def _send(self, data: bytes | memoryview, flags: int = 0) -> bool:
        """Sends, behind what waits. Returns whether nothing waits any more."""
        if self._pending:
            self._pending = b"".join((self._pending, data))
            return False
        assert self._sock is not None
        try:
            sent = self._sock.send(data, flags) if data else 0
        except BlockingIOError:
            sent = 0
        except OSError as error:
            self._failed(error)
            return True
        if sent == len(data):
            return True
        # A view: what is left of a large frame isn't copied at each turn.
        self._pending = memoryview(data)[sent:]
        if self.blocked_since is None:
            self.blocked_since = time.monotonic()
            # The kernel waits longer than we do: a client whose buffer is full is cut by us, as slow.
            self._limit_silence(BLOCKED_USER_TIMEOUT)
            self._poller.watch_writable(self._fd, on=True)
        return False

    def _limit_silence(self, part: float) -> None:
        """Has the kernel end the connection when nothing was acknowledged for this part of `SSE_SEND_TIMEOUT`."""
        sock = self._sock
        if sock is not None and sock.family in (_socket.AF_INET, _socket.AF_INET6):
            timeout_ms = int(self._stream.send_timeout * part * 1000)
            sock.setsockopt(_socket.IPPROTO_TCP, _socket.TCP_USER_TIMEOUT, timeout_ms)

    def _failed(self, error: OSError) -> None:
        self._close(CloseReason.LOST if error.errno == errno.ETIMEDOUT else CloseReason.DISCONNECTED)

    def _shut_down(self) -> None:
        """All is sent: closing now, with bytes of the client's unread, would reset the connection and lose what it hasn't read."""
        sock = self._sock
        if sock is None:
            return
        self._sock = None
        try:
            sock.shutdown(_socket.SHUT_WR)
        except OSError:
            self._poller.remove(self._fd)
            sock.close()
        else:
            self._poller.linger(self._fd, sock)
        self._stream.sink_ended()

    def _has_timed_out(self) -> bool:
        return self._sock is not None and self._sock.getsockopt(_socket.SOL_SOCKET, _socket.SO_ERROR) == errno.ETIMEDOUT

    def _close(self, reason: CloseReason = CloseReason.DISCONNECTED) -> None:
        sock, self._sock = self._sock, None
        if sock is None:
            return
        self._pending = b""
        self._held = None
        self.blocked_since = None
        self._poller.remove(self._fd)
        sock.close()
        if self._taken is not None:
            self._taken.set()
        self._stream.sink_ended(reason)

    def _wake(self) -> None:
        if self._taken is not None:
            self._taken.set()
            self._taken = None
        else:
            self._stream.resume()
