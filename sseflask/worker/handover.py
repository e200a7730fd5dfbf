"""How a stream's socket leaves gunicorn: after the headers, with none of gunicorn's request handling copied."""

from __future__ import annotations

import _socket
import contextlib
import functools
import ssl
import time
import traceback
from collections.abc import Callable, Iterable
from types import FrameType
from typing import TYPE_CHECKING, Any, Final, cast

import gevent
import gevent.hub
import greenlet
from gunicorn.http.wsgi import Response
from gunicorn.http2.response import HTTP2Response

from sseflask.handoff import Handoff
from sseflask.producer import GeneratorProducer, Runner
from sseflask.response import BEGAN, HANDOVER
from sseflask.stream import Stream

from .entrance import Entrance
from .poller import Poller
from .sink import SocketSink

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

#: Seconds that generators run in one turn of the hub's loop before each gives way after every event.
SLICE_SECONDS: Final = 0.0005


class Turn:
    """A turn of the hub's loop, as far as generators have run in it.

    Attributes:
        loop: The hub's.
        iteration: The loop's number of the turn.
        since: The monotonic second at which they began.
    """

    __slots__ = ("iteration", "loop", "since")

    def __init__(self) -> None:
        self.loop = gevent.get_hub().loop
        self.iteration = -1
        self.since = 0.0


class RawGreenlet(greenlet.greenlet):
    """A greenlet with nothing of gevent's but what `gevent.kill` asks of it."""

    __slots__ = ()

    @property
    def loop(self) -> Any:
        """The hub's, as gevent's own raw greenlets have it."""
        return gevent.get_hub().loop


class GreenletRunner:
    """Runs a producer in a greenlet, into which its interruption can be raised wherever it waits."""

    __slots__ = ("_greenlet", "_is_response", "_iteration", "_opener", "_turn")

    def __init__(self, turn: Turn, *, is_response: bool = False) -> None:
        """Makes one for one producer.

        Args:
            turn: The worker's.
            is_response: Whether the greenlet that starts it waits for its first event, to open a response with.
        """
        self._turn = turn
        self._is_response = is_response
        self._iteration = -1
        # Who goes on as soon as there is a first event.
        self._opener: greenlet.greenlet | None = None

    def start(self, producer: GeneratorProducer) -> None:
        """Begins `producer.run()` at the hub's next turn; for a response now, and returns at the first event, or when it waits."""
        if not self._is_response:
            self._greenlet = gevent.spawn_raw(producer.run)
            return
        self._greenlet = made = RawGreenlet(producer.run, gevent.get_hub())
        self._opener = opener = greenlet.getcurrent()
        try:
            _switch(opener, made)
        finally:
            self._opener = None

    def is_here(self) -> bool:
        """Whether the caller is the greenlet."""
        return greenlet.getcurrent() is self._greenlet

    def give_way(self, stream: Stream) -> bool:
        """Lets others run after the first event, and when generators, this one too, have had their slice of the turn."""
        turn, now, is_first = self._turn, stream.last_write, self._iteration < 0
        if now - turn.since <= SLICE_SECONDS and not is_first:
            return False
        iteration = turn.loop.iteration
        if iteration != turn.iteration:
            turn.iteration, turn.since = iteration, now
        elif iteration == self._iteration:
            # All generators may have their slices before the hub comes to it.
            stream.sink.flush()
            gevent.sleep(0)
            turn.since = time.monotonic()
            return True
        # Else it has waited by itself since its last event, as it does after this one most likely.
        if is_first:
            # The response opens now, and takes this event to the client before the next one is made.
            if self._opener is not None:
                _switch(self._greenlet, self._opener)
            else:
                gevent.sleep(0)
            iteration = turn.loop.iteration
        self._iteration = iteration
        return is_first

    def interrupt(self, producer: GeneratorProducer) -> None:
        """Raises the interruption where the greenlet waits; from the hub, which may switch to any greenlet."""
        gevent.get_hub().loop.run_callback(self._raise_in, producer)

    def stack(self) -> str:
        """Where the greenlet is, as lines of a traceback."""
        frame: FrameType | None = self._greenlet.gr_frame
        return "".join(traceback.format_stack(frame)) if frame is not None else "(ended)"

    def _raise_in(self, producer: GeneratorProducer) -> None:
        interruption = producer.take_interruption()
        if interruption is not None:
            self._greenlet.throw(interruption)


def _switch(current: greenlet.greenlet, other: greenlet.greenlet) -> None:
    """Runs another greenlet now, and this one on at the hub's next turn, unless that one runs it before."""
    callback = gevent.get_hub().loop.run_callback(current.switch)
    try:
        other.switch()
    finally:
        callback.stop()


class Head:
    """Stands in for a socket while gunicorn sends a response's headers, so that they go out in one write with the first frames.

    Attributes:
        data: What was sent.
    """

    __slots__ = ("data",)

    def __init__(self) -> None:
        self.data = b""

    def sendall(self, data: bytes) -> None:
        """Keeps what gunicorn sends."""
        self.data += data


class Handover:
    """The offer, in `environ`, to take the socket of one request over."""

    __slots__ = ("_agreed", "_application", "_offered", "_response")

    def __init__(self, application: StreamApplication, response: Response) -> None:
        self._application = application
        self._response = response
        self._offered = False
        self._agreed = False

    def start_response(self, status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Callable[[bytes], object]:
        """gunicorn's, called with what all middlewares have made of the status and headers."""
        write: Callable[[bytes], object] = self._response.start_response(status, headers, exc_info)
        if self._offered and self._can_be_taken():
            # Told in the headers: gunicorn closes its side of the connection after this response.
            self._response.force_close()
            self._agreed = True
        return write

    def runner(self) -> Runner:
        """A greenlet, also for streams whose sockets can't be taken."""
        return GreenletRunner(self._application.turn, is_response=True)

    def offer(self) -> None:
        """Says that the response about to start is a stream."""
        self._offered = True

    def take(self, stream: Stream, handoff: Handoff) -> bool:
        """Sends the headers and takes the socket; the request then ends for gunicorn like any other."""
        self._offered = False
        if not self._agreed:
            # A middleware has not started the response yet, or has made something of it that only it can write.
            handoff.on_abort = functools.partial(_shut_down, self._response.sock)
            return False
        head, response = Head(), self._response
        client, response.sock = response.sock, cast("Any", head)
        response.send_headers()
        response.sock = client
        # gunicorn's last chunk isn't the stream's.
        chunked, response.chunked = response.chunked, False
        sock = _socket.socket(fileno=client.detach())
        sock.setblocking(False)
        sink = SocketSink(self._application.poller, sock, stream, chunked=chunked)
        held, is_all = handoff.detach()
        stream.attach(sink)
        sink.begin(head.data, held)
        if is_all:
            sink.finish(b"")
        if sink.blocked_since is not None:
            stream.is_blocked()
        stream.resume()
        return True

    def _can_be_taken(self) -> bool:
        response = self._response
        return (
            response.status_code == 200
            and response.req.method != "HEAD"
            and (response.req.version or (0, 0))[0] == 1
            and response.response_length is None
            and not isinstance(response, HTTP2Response)
            and not isinstance(response.sock, ssl.SSLSocket)
            and "content-encoding" not in [name.lower() for name, _ in response.headers]
        )


def _shut_down(sock: Any) -> None:
    """Ends gunicorn's wait for a client that takes nothing; gunicorn then closes the socket."""
    with contextlib.suppress(OSError):
        # A TLS socket's own shutdown would wait for its peer.
        _socket.socket.shutdown(sock._sock, _socket.SHUT_RDWR)  # noqa: SLF001


class StreamApplication:
    """The worker's WSGI application: the app with all its middlewares, and outside of them the offer to take sockets over."""

    def __init__(self, application: WSGIApplication, poller: Poller) -> None:
        self._application = application
        self.poller = poller
        self.turn = Turn()
        self._entrance = Entrance()

    def runner(self) -> Runner:
        """A greenlet for a producer."""
        return GreenletRunner(self.turn)

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Serves a request."""
        self._entrance.enter()
        # Before any middleware asks whose request it is.
        environ[BEGAN] = time.monotonic()
        response = getattr(start_response, "__self__", None)
        if isinstance(response, Response):
            handover = Handover(self, response)
            environ[HANDOVER] = handover
            start_response = handover.start_response
        return self._application(environ, start_response)
