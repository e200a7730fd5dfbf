"""`EventSource`: an event stream as an iterator, for threads and, where gevent has patched, greenlets."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

from sseflask.event import ServerSentEvent

from .base import BaseEventSource, is_worth_reading
from .errors import MAX_EXCERPT_BYTES, EventSourceError
from .protocol import Connect, Read, Stop
from .request import checked_token, load_httpx

if TYPE_CHECKING:
    import httpx

    _Base = BaseEventSource[httpx.Client, str]
else:
    _Base = BaseEventSource

#: Seconds for reading what an error's body says.
_EXCERPT_SECONDS: Final = 5.0
#: What happens on a connection that gives it a socket, or another one.
_CONNECTED: Final = ("connect_tcp.complete", "connect_unix_socket.complete", "start_tls.complete")


class EventSource(_Base):
    """Reads an event stream, and comes back to it whenever it is lost.

    Iterating gives each event that has data, a `ServerSentEvent` as `EventDecoder` makes it, over all reconnects. It ends after
    the end event, after the server's 204, and with `close`. One thread or greenlet iterates; any may call `close`. An exception
    that ends a wait for the next event (`KeyboardInterrupt`, `gevent.Timeout`) leaves the source usable: it connects anew when the
    next event is asked for.

    Iterating raises:

    * `StreamRefused`: the server doesn't want to, and asking again wouldn't help.
    * `NotAnEventStream`: what it answers is something else.
    * `RetriesExhausted`: it came back as often as `retries` allows.
    * `NotRepeatable`: a request that isn't a GET can't be sent again.
    * `EventSourceError`: the request can't be sent at all.
    * `InvalidSetting`: what the token function returned is no bearer token.
    * What the token function and `on_retry` raise, as it is.
    """

    def _prepare(self) -> None:
        self._pieces: Iterator[bytes] = iter(())
        self._socket: socket.socket | None = None
        self._closed = threading.Event()
        # Held by who reads, or cleans up after it.
        self._reading = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> ServerSentEvent:
        try:
            with self._reading:
                while not self._is_closing and not (self._is_over and not self._events):
                    if self._events:
                        return self._give()
                    self._step()
                raise StopIteration
        finally:
            self._release_if_closed()

    def close(self) -> None:
        """Ends it, from any thread or greenlet; closing twice is fine.

        An iteration that waits for an event ends at once, one that is about to connect within `timeout`, and one that reads from a
        shared HTTP/2 connection when the next byte comes.
        """
        self._is_closing = True
        self._closed.set()
        self._shut_down()
        self._release_if_closed()

    def _step(self) -> None:
        """Do what is next."""
        action = self._action
        if isinstance(action, Stop):
            self._finish(action.error)
            return
        try:
            match action:
                case Connect(headers=headers):
                    if not self._closed.wait(self._seconds_left()):
                        self._connect(headers)
                case Read():
                    self._read()
        except BaseException:
            self._drop()
            if not self._is_closing:
                self._interrupt()
            raise

    def _finish(self, error: EventSourceError | None) -> None:
        """It is over."""
        # What interrupts it leaves the action as it is, so that the error is told next time.
        self._release()
        self._is_over = True
        if error is not None:
            raise error from self._cause

    def _connect(self, headers: Mapping[str, bytes]) -> None:
        """Send the request, and take in what comes of it."""
        if self._token is None and self._request.token is not None:
            token = self._request.token
            self._token = checked_token(token() if callable(token) else token)
        if self._client is None:
            self._client = load_httpx().Client(**self._request.client_options())
        try:
            # Who brings a client may share its connections: they aren't ours to shut down before they are known to be.
            request = self._request.build(self._client, headers, self._token, self._trace if self._owns_client else None)
            self._protocol.requested()
            response = self._client.send(request, **self._request.send_options(self._token))
        except self._request.failures() as error:
            self._lose(error)
            return
        self._response = response
        if response.http_version != "HTTP/2" and (stream := response.extensions.get("network_stream")) is not None:
            self._connected(stream.get_extra_info("socket"))
        self._pieces = response.iter_bytes()
        self._answer(response, self._excerpt(response) if is_worth_reading(response) else b"")
        if not isinstance(self._action, Read):
            self._drop()

    def _read(self) -> None:
        """Take in what comes next of the stream."""
        try:
            piece = next(self._pieces, None)
        except self._request.failures() as error:
            self._lose(error)
            return
        if piece is None:
            self._lose(None)
            return
        self._take(piece)
        if not isinstance(self._action, Read):
            self._drop()

    def _lose(self, error: Exception | None) -> None:
        """Take in that there is no connection any more; `error` is `None` for a clean end."""
        self._drop()
        if self._is_closing:
            return
        if error is None:
            self._end()
        else:
            self._fail(error)

    def _excerpt(self, response: httpx.Response) -> bytes:
        """Read what an error's body begins with."""
        body = b""
        # Half of it for the pieces, and half for the gap after the last of them.
        least = _EXCERPT_SECONDS / 2
        until = time.monotonic() + least
        # httpcore looks at it when it begins to read the body.
        timeout = response.request.extensions.get("timeout", {})
        timeout["read"] = min(timeout.get("read") or least, least)
        with contextlib.suppress(*self._request.failures()):
            for piece in self._pieces:
                body += piece
                if len(body) >= MAX_EXCERPT_BYTES or time.monotonic() >= until:
                    break
        return body

    def _trace(self, name: str, info: Mapping[str, Any]) -> None:
        """Hear from httpcore what happens on the connection."""
        if name.endswith(_CONNECTED):
            self._connected(info["return_value"].get_extra_info("socket"))

    def _connected(self, connection: socket.socket | None) -> None:
        """Know the socket that `close` may have to shut down, or has missed."""
        self._socket = connection
        if self._is_closing:
            self._shut_down()

    def _shut_down(self) -> None:
        """Wake whoever waits on the socket: closing it wouldn't."""
        connection = self._socket
        if connection is not None:
            with contextlib.suppress(OSError):
                # Past the method of a TLS socket, which would take its state away from under who reads.
                socket.socket.shutdown(connection, socket.SHUT_RDWR)

    def _drop(self) -> None:
        """Let go of the connection."""
        response, self._response = self._response, None
        self._socket = None
        self._pieces = iter(())
        if response is not None:
            response.close()

    def _release(self) -> None:
        """Let go of everything."""
        self._drop()
        self._protocol.close()
        if self._owns_client and self._client is not None:
            self._client.close()
            self._client = None

    def _release_if_closed(self) -> None:
        # Who reads does it on its way out; whoever comes second here finds the lock free.
        if self._is_closing and self._reading.acquire(blocking=False):
            try:
                self._release()
            finally:
                self._reading.release()
