"""What a worker does beside its streams: lets requests in, and keeps the garbage collector away from what waits."""

from __future__ import annotations

import _socket
import contextvars
import gc
import os
import re
import struct
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import gevent
import gevent.event
import gevent.hub
import gevent.socket
import pytest
from gunicorn.config import Config

from sseflask import StreamClosed, StreamTimeout, current_stream
from sseflask.config import Settings, StreamOptions
from sseflask.emitter import Channel
from sseflask.handoff import Handoff
from sseflask.producer import GeneratorProducer
from sseflask.state import CloseReason, StreamState
from sseflask.stream import BURST_EVENTS, BURST_SECONDS, Stream
from sseflask.worker import poller
from sseflask.worker.broadcaster import Broadcaster
from sseflask.worker.collector import GROWTH, Collector
from sseflask.worker.entrance import TURN_SECONDS, Entrance
from sseflask.worker.handover import GreenletRunner, Handover, StreamApplication, Turn
from sseflask.worker.poller import Poller
from sseflask.worker.sink import HELD_BYTES, SocketSink
from sseflask.worker.worker import look_up_once
from tests.live.process import wait_until


def in_a_hub(work: Callable[[], None]) -> None:
    """Does some work in a thread, and a hub, of its own."""
    failures: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            failures.append(error)
        finally:
            gevent.get_hub().destroy(destroy_loop=True)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(30)
    assert not thread.is_alive()
    if failures:
        raise failures[0]


def work_for(seconds: float) -> None:
    """Keeps the processor."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        pass


class TestEntrance:
    """Requests that are ready in the same turn of the loop."""

    def test_storm(self) -> None:
        """Of many requests a turn serves some; all are served, in their order, and other greenlets run in between."""

        def storm() -> None:
            entrance, served, turns = Entrance(), list[int](), list[int]()

            def request(number: int) -> None:
                entrance.enter()
                work_for(TURN_SECONDS / 4)
                served.append(number)
                turns.append(gevent.get_hub().loop.iteration)

            greenlets = [gevent.spawn(request, number) for number in range(40)]
            gevent.joinall(greenlets, timeout=20)
            assert served == list(range(40))
            assert max(turns.count(turn) for turn in turns) < 10
            assert len(entrance) == 0

        in_a_hub(storm)

    def test_calm(self) -> None:
        """A request that comes alone doesn't wait."""

        def calm() -> None:
            entrance = Entrance()
            for _ in range(3):
                entrance.enter()
            assert len(entrance) == 0

        in_a_hub(calm)

    def test_killed(self) -> None:
        """A request that is ended while it waits is forgotten, and those behind it come in."""

        def kill() -> None:
            entrance, served = Entrance(), list[int]()

            def request(number: int) -> None:
                entrance.enter()
                work_for(2 * TURN_SECONDS)
                served.append(number)

            def end(waiting: gevent.Greenlet) -> None:
                assert len(entrance) == 3
                waiting.kill(block=False)

            greenlets = [gevent.spawn(request, number) for number in range(4)]
            # It runs behind them in the same turn, when all but the first wait.
            ending = gevent.spawn(end, greenlets[2])
            gevent.joinall([*greenlets, ending], timeout=20)
            assert ending.exception is None
            assert served == [0, 1, 3]

        in_a_hub(kill)


class Client:
    """The other end of a generator's stream.

    Attributes:
        stream: Which.
    """

    def __init__(self, generator: Iterator[Any], *, bufsize: int | None = None) -> None:
        """Starts the generator; in a hub."""
        self._sock = _socket.socket(_socket.AF_INET)
        listener = _socket.socket(_socket.AF_INET)
        if bufsize is not None:
            listener.setsockopt(_socket.SOL_SOCKET, _socket.SO_SNDBUF, bufsize)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        self._sock.connect(listener.getsockname())
        fd, _ = listener._accept()
        listener.close()
        ours = _socket.socket(fileno=fd)
        ours.setblocking(False)
        self._sock.setblocking(False)
        self._data = b""
        settings = Settings()
        self.stream = Stream(Handoff(), StreamOptions().resolved(settings), settings, app=None, path="/burst", last_event_id=None)
        self._poller = Poller()
        self.stream.attach(SocketSink(self._poller, ours, self.stream, chunked=True))
        self.stream.open()
        GeneratorProducer(self.stream, generator, None, None).start(GreenletRunner(Turn()), None)

    def chunks(self, until: bytes = b"\r\n0\r\n\r\n") -> list[str]:
        """The chunks that came, when the bytes have ended like this."""
        deadline = time.monotonic() + 20
        while not self._data.endswith(until):
            assert time.monotonic() < deadline, self._data[-100:]
            self.read()
            gevent.sleep(0.001)
        found, data = [], self._data
        while data and not data.startswith(b"0\r\n"):
            size, _, rest = data.partition(b"\r\n")
            found.append(rest[: int(size, 16)].decode())
            data = rest[int(size, 16) + 2 :]
        return found

    def read(self) -> None:
        """Reads what there is."""
        try:
            self._data += self._sock.recv(1 << 20)
        except BlockingIOError:
            return

    def packets(self) -> int:
        """The TCP segments that came so far: `tcpi_segs_in` of Linux's `struct tcp_info`."""
        found: int = struct.unpack_from("I", self._sock.getsockopt(_socket.IPPROTO_TCP, _socket.TCP_INFO, 256), 140)[0]
        return found

    def is_at_end(self) -> bool:
        """Whether the server has ended the connection, and all before that was read."""
        try:
            return self._sock.recv(1) == b""
        except BlockingIOError:
            return False

    def has(self, ending: bytes) -> bool:
        """Whether what was sent ends like this, letting no greenlet run meanwhile; the kernel may take a moment."""
        until = time.monotonic() + 5
        while not self._data.endswith(ending) and time.monotonic() < until:
            self.read()
        return self._data.endswith(ending)

    def close(self) -> None:
        """Hangs up, and waits until that was noticed."""
        self._sock.close()
        deadline = time.monotonic() + 20
        while len(self._poller) and time.monotonic() < deadline:
            gevent.sleep(0.001)


def numbers(chunks: list[str]) -> list[int]:
    """The events' data in the order in which they came."""
    return [int(found) for found in re.findall(r"^data: (\d+)$", "".join(chunks), re.MULTILINE)]


class Unpolled:
    """Something in a poller's set to which nothing happens."""

    log_extra: ClassVar[dict[str, str]] = {}

    def ready(self, events: int) -> None:
        """Nothing does."""
        raise AssertionError(events)


class TestBurst:
    """Events that a generator yields without a pause."""

    def test_joined(self) -> None:
        """After the first few, events that follow each other at once go out together, few at a time: in order, each once."""

        def burst() -> None:
            client = Client(iter(range(2000)))
            chunks = client.chunks()
            assert numbers(chunks) == list(range(2000))
            assert len(chunks) < 1000
            counts = [chunk.count("data:") for chunk in chunks]
            assert counts[:BURST_EVENTS] == [1] * BURST_EVENTS
            assert max(counts) == BURST_EVENTS
            client.close()

        in_a_hub(burst)

    def test_work_in_between(self) -> None:
        """Events between which the generator works, letting nobody else run, are each sent at once."""

        def work() -> None:
            def generate() -> Iterator[int]:
                for number in range(100):
                    yield number
                    assert client.has(b"data: %d\n\n\r\n" % number)
                    work_for(BURST_SECONDS * 2)

            client = Client(generate())
            assert len(client.chunks()) == 100
            assert client.stream.reason == "completed"
            client.close()

        in_a_hub(work)

    def test_gives_way(self) -> None:
        """Whenever a generator that never waits lets others run, they find all that it has yielded sent."""

        def give_way() -> None:
            made, looked = 0, 0

            def generate() -> Iterator[int]:
                nonlocal made
                while made < 4999:
                    made += 1
                    yield made

            def look() -> None:
                nonlocal looked
                while not client.stream.closed:
                    assert client.has(b"data: %d\n\n\r\n" % made)
                    looked += 1
                    gevent.sleep(0)

            client = Client(generate())
            looking = gevent.spawn(look)
            assert numbers(client.chunks()) == list(range(1, 5000))
            looking.get(timeout=20)
            assert looked > 1
            client.close()

        in_a_hub(give_way)

    def test_wait_after_it(self) -> None:
        """While the generator waits, all that it has yielded is there."""

        def wait() -> None:
            seen = gevent.event.Event()

            def generate() -> Iterator[int]:
                yield from range(100)
                assert seen.wait(20)
                yield 100

            client = Client(generate())
            assert numbers(client.chunks(until=b"data: 99\n\n\r\n")) == list(range(100))
            seen.set()
            assert numbers(client.chunks()) == list(range(101))
            client.close()

        in_a_hub(wait)

    def test_sleep_of_no_time(self) -> None:
        """A generator that is about to block the worker sends what is held by `sleep(0)`."""

        def sleep() -> None:
            def generate() -> Iterator[int]:
                yield from range(50)
                gevent.sleep(0)
                assert client.has(b"data: 49\n\n\r\n")

            client = Client(generate())
            assert numbers(client.chunks()) == list(range(50))
            assert client.stream.reason == "completed"
            client.close()

        in_a_hub(sleep)

    def test_sent_from_nested_code(self) -> None:
        """What nested code sends in a burst is sent at once, after all that was yielded before it."""

        def send() -> None:
            def generate() -> Iterator[int]:
                for number in range(0, 100, 2):
                    yield number
                    current_stream.send(number + 1)
                    assert client.has(b"data: %d\n\n\r\n" % (number + 1))

            client = Client(generate())
            assert numbers(client.chunks()) == list(range(100))
            assert client.stream.reason == "completed"
            client.close()

        in_a_hub(send)

    def test_error_after_it(self, caplog: pytest.LogCaptureFixture) -> None:
        """The error event comes after all that was yielded."""

        def fail() -> None:
            def generate() -> Iterator[int]:
                yield from range(100)
                raise RuntimeError("after a burst")

            client = Client(generate())
            chunks = client.chunks()
            assert numbers(chunks) == list(range(100))
            text = "".join(chunks)
            assert text.index("data: 99\n") < text.index("event: error\n")
            client.close()

        in_a_hub(fail)
        assert "after a burst" in caplog.text

    def test_slow_client(self) -> None:
        """A client that doesn't read stops the generator; when it reads, nothing is lost."""

        def fill() -> None:
            made = 0

            def generate() -> Iterator[str]:
                nonlocal made
                for number in range(20_000):
                    made += 1
                    yield f"{number}\n{'x' * 400}"

            client = Client(generate(), bufsize=65536)
            until, before = time.monotonic() + 20, -1
            # Its socket is full, and may not be a moment later, while what was sent is still on its way through the kernel.
            while (client.stream.sink.blocked_since is None or made != before) and time.monotonic() < until:
                before = made
                gevent.sleep(0.1)
            assert made == before < 20_000
            assert numbers(client.chunks()) == list(range(20_000))
            client.close()

        in_a_hub(fill)

    def test_much_at_once(self) -> None:
        """No more waits for a client that doesn't read than a little: a burst of large events isn't kept whole."""

        def fill() -> None:
            client = Client(iter(["x" * 4000] * 2000), bufsize=65536)
            sink = client.stream.sink
            assert isinstance(sink, SocketSink)
            until = time.monotonic() + 20
            while sink.blocked_since is None and time.monotonic() < until:
                gevent.sleep(0.001)
            assert 0 < len(sink._pending) <= 2 * HELD_BYTES
            assert "".join(client.chunks()).count("data: ") == 2000
            client.close()

        in_a_hub(fill)

    def test_forked_child(self) -> None:
        """A child that the generator forks after a burst sends nothing of it: each event comes once."""

        def fork() -> None:
            def generate() -> Iterator[int]:
                nonlocal made
                sink = client.stream.sink
                assert isinstance(sink, SocketSink)
                while not sink._held:
                    assert made < 10_000
                    yield made
                    made += 1
                with warnings.catch_warnings():
                    # This process has threads, as pytest's have.
                    warnings.simplefilter("ignore", DeprecationWarning)
                    child = os.fork()
                if child == 0:
                    # As its hub does, which is a copy of its parent's, with all that waits in it.
                    sink._hub_turns()
                    os._exit(0)
                os.waitpid(child, 0)
                yield made

            made = 0
            client = Client(generate())
            assert numbers(client.chunks()) == list(range(made + 1))
            client.close()

        in_a_hub(fork)

    def test_hang_up_in_it(self) -> None:
        """A client that leaves ends the generator, and nothing is left behind."""

        def leave() -> None:
            closed: list[int] = []

            def generate() -> Iterator[int]:
                number = 0
                try:
                    while True:
                        yield number
                        number += 1
                finally:
                    closed.append(number)

            client = Client(generate())
            client.chunks(until=b"\r\n")
            client.close()
            until = time.monotonic() + 20
            while not closed and time.monotonic() < until:
                gevent.sleep(0.001)
            assert closed and client.stream.reason == "disconnected"

        in_a_hub(leave)


class Keeper:
    """Keeps one stream, and what it is told of it.

    Attributes:
        due: When the stream was due each time that it said it may be due earlier.
        stuck: Where its producer was each time that it was stuck.
    """

    def __init__(self) -> None:
        self.due: list[float | None] = []
        self.stuck: list[str] = []

    def schedule(self, stream: Stream) -> None:
        """It may be due earlier."""
        self.due.append(stream.due())

    def flush_at(self, stream: Stream, due: float) -> None:
        """Nothing waits here."""

    def stream_closed(self, stream: Stream, callbacks: list[Callable[[], object]]) -> None:
        """Nobody counts it."""

    def count(self, what: str, by: int = 1) -> None:
        """Nobody counts."""

    def report_stuck(self, stream: Stream, stack: str) -> None:
        """Its producer still runs."""
        self.stuck.append(stack)


def wait_for(condition: Callable[[], object]) -> None:
    """Waits until it is so, letting greenlets run."""
    until = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < until
        gevent.sleep(0.001)


class TestEnd:
    """How a stream's connection ends."""

    @pytest.mark.parametrize("last", [b"", b"data: last\n\n"])
    def test_one_packet(self, last: bytes) -> None:
        """The last events, the end of the body and that of the connection come in one packet."""

        def end() -> None:
            def generate() -> Iterator[int]:
                yield 1
                gevent.sleep(20)

            client = Client(generate())
            assert client.chunks(until=b"data: 1\n\n\r\n") == ["data: 1\n\n"]
            before = client.packets()
            client.stream.end(CloseReason.SHUTDOWN, last, StreamClosed(CloseReason.SHUTDOWN))
            assert "".join(client.chunks()) == "data: 1\n\n" + last.decode()
            wait_for(client.is_at_end)
            assert client.packets() == before + 1
            client.close()

        in_a_hub(end)

    @pytest.mark.parametrize("is_stuck", [False, True])
    def test_unread(self, is_stuck: bool) -> None:
        """A client that doesn't read the end has its time, and is cut; that isn't a generator that still runs."""

        def leave_it() -> None:
            ended: list[bool] = []
            go_on = gevent.event.Event()

            def generate() -> Iterator[int]:
                try:
                    yield 1
                    gevent.sleep(20)
                finally:
                    if is_stuck:
                        go_on.wait()
                    ended.append(True)

            client, keeper = Client(generate(), bufsize=65536), Keeper()
            client.stream.keep_with(keeper)
            client.chunks(until=b"data: 1\n\n\r\n")
            last = b"data: %b\n\n" % (b"x" * 20_000_000)
            client.stream.end(CloseReason.SHUTDOWN, last, StreamClosed(CloseReason.SHUTDOWN))
            if not is_stuck:
                wait_for(lambda: ended)
            now = time.monotonic()
            client.stream.tick(now + 11)
            assert len(keeper.stuck) == is_stuck
            assert client.stream.state is StreamState.DRAINING
            client.stream.tick(now + client.stream.send_timeout + 1)
            go_on.set()
            wait_for(lambda: client.stream.state is StreamState.CLOSED)
            client.close()

        in_a_hub(leave_it)

    def test_last_bytes_wait(self) -> None:
        """Last bytes that don't fit where a client goes on reading wait for it like all others: it gets the whole response."""

        class Rest:
            """A producer that ends its stream when its client reads again, with more than fits."""

            def __init__(self, stream: Stream) -> None:
                self._stream = stream

            def resume(self) -> None:
                self._stream.sink.write(rest)
                self._stream.end(CloseReason.COMPLETED, b"event: stream-end\n\n")
                self._stream.producer_ended()

            def interrupt(self) -> None:
                pass

            def is_here(self) -> bool:
                return False

            def stack(self) -> str:
                return ""

        def read_late() -> None:
            theirs, ours = _socket.socketpair()
            for sock in (theirs, ours):
                sock.setblocking(False)
            settings = Settings()
            stream = Stream(Handoff(), StreamOptions().resolved(settings), settings, app=None, path="/rest", last_event_id=None)
            stream.attach(SocketSink(Poller(), ours, stream, chunked=True))
            stream.open()
            assert stream.start(Rest(stream))
            assert not stream.sink.write(first)
            read, until = b"", time.monotonic() + 20
            while time.monotonic() < until:
                try:
                    data = theirs.recv(1 << 16)
                except BlockingIOError:
                    gevent.sleep(0.001)
                    continue
                if not data:
                    break
                read += data
            assert read.count(b"x") == len(first) + len(rest) - 2 * len(b"data: \n\n")
            assert read.endswith(b"event: stream-end\n\n\r\n0\r\n\r\n")
            theirs.close()
            wait_for(lambda: stream.state is StreamState.CLOSED)

        first, rest = (b"data: %b\n\n" % (b"x" * size) for size in (1_000_000, 3_000_000))
        in_a_hub(read_late)

    @pytest.mark.parametrize("is_timeout", [False, True])
    def test_helper_sends_first(self, is_timeout: bool) -> None:
        """A greenlet that sends for a generator that waits doesn't take its end from it: both learn of it."""

        def end() -> None:
            told: list[str] = []

            def help_it() -> None:
                began.set()
                go_on.wait()
                for _ in range(2):
                    try:
                        current_stream.send("late")
                    except StreamClosed as closed:
                        told.append(f"helper {type(closed).__name__} {closed.reason}")

            def generate() -> Iterator[str]:
                yield "first"
                gevent.spawn(contextvars.copy_context().run, help_it)
                try:
                    gevent.event.Event().wait()
                except StreamClosed as closed:
                    told.append(f"generator {type(closed).__name__} {closed.reason}")
                    # Raised once: what it sends from here on is dropped.
                    current_stream.send("dropped")
                    raise

            began, go_on = gevent.event.Event(), gevent.event.Event()
            client = Client(generate())
            began.wait()
            reason, error = CloseReason.SHUTDOWN, StreamClosed(CloseReason.SHUTDOWN)
            if is_timeout:
                reason, error = CloseReason.TIMEOUT, StreamTimeout(5)
            # In the hub's line the helper stands before the generator.
            go_on.set()
            client.stream.end(reason, interruption=error)
            wait_for(lambda: len(told) == 3)
            name = type(error).__name__
            assert told == [f"helper {name} {reason}"] * 2 + [f"generator {name} {reason}"]
            wait_for(lambda: client.stream.state is not StreamState.LIVE and client.stream.producer is None)
            assert "".join(client.chunks()) == "data: first\n\n"
            client.close()

        in_a_hub(end)

    def test_own_timeout_while_it_waits(self) -> None:
        """A time-out of the generator's own that passes while its client doesn't read is raised at its `yield`."""

        def wait() -> None:
            told: list[str] = []

            def generate() -> Iterator[str]:
                try:
                    with gevent.Timeout(0.05):
                        while True:
                            yield "x" * 1_000_000
                except gevent.Timeout:
                    told.append("time-out")
                yield "last"

            client = Client(generate(), bufsize=65536)
            wait_for(lambda: told)
            assert client.chunks()[-1] == "data: last\n\n"
            assert client.stream.reason == "completed"
            client.close()

        in_a_hub(wait)

    def test_taken_over_while_full(self) -> None:
        """A client that doesn't take what there was when its socket was taken over is watched from there on."""

        class Opened:
            """A response of gunicorn's that has started."""

            def __init__(self, sock: Any) -> None:
                self.sock = sock
                self.chunked = True

            def send_headers(self) -> None:
                self.sock.sendall(b"HTTP/1.1 200 OK\r\n\r\n")

        def take() -> None:
            theirs, ours = gevent.socket.socketpair()
            settings = Settings()
            handoff, keeper, options = Handoff(), Keeper(), StreamOptions(keepalive=3600).resolved(settings)
            stream = Stream(handoff, options, settings, app=None, path="/large", last_event_id=None)
            handoff.bind(b"", stream.resume, stream.sink_ended)
            stream.keep_with(keeper)
            stream.open()
            handoff.write(b"data: %b\n\n" % (b"x" * 20_000_000))
            application: Any = StreamApplication(lambda environ, start: [], Poller())
            response: Any = Opened(ours)
            handover = Handover(application, response)
            handover._agreed = True
            assert handover.take(stream, handoff)
            assert stream.sink.blocked_since is not None
            assert keeper.due[-1] == stream.sink.blocked_since + settings.send_timeout
            stream.sink.abort()
            theirs.close()

        in_a_hub(take)

    def test_lingering(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A socket whose client doesn't hang up is closed when its time is over, not before, whatever becomes of the others."""
        monkeypatch.setattr(poller, "LINGER_SECONDS", 0.3)

        def linger() -> None:
            own, ends, closed = Poller(), list[float](), dict[int, float]()
            pairs = [_socket.socketpair() for _ in range(4)]
            others = _socket.socketpair()

            def look() -> None:
                while len(closed) < len(pairs):
                    for number, (ours, _) in enumerate(pairs):
                        if ours.fileno() < 0:
                            closed.setdefault(number, time.monotonic())
                    gevent.sleep(0.001)

            looking = gevent.spawn(look)
            for ours, theirs in pairs:
                ours.setblocking(False)
                theirs.setblocking(False)
                own.add(ours.fileno(), Unpolled())
                ends.append(time.monotonic() + 0.3)
                own.linger(ours.fileno(), ours)
                gevent.sleep(0.05)
            # The second hangs up, and its number becomes that of another socket; the third fails.
            fd = pairs[1][0].fileno()
            pairs[1][1].close()
            wait_for(lambda: 1 in closed)
            os.dup2(others[0].fileno(), fd)
            own.add(fd, Unpolled())
            own._epoll.unregister(pairs[2][0].fileno())
            looking.get(timeout=20)
            assert closed[1] < ends[1]
            assert all(closed[number] >= ends[number] for number in (0, 2, 3))
            assert list(own._polled) == [fd]
            own.remove(fd)
            os.close(fd)
            for sock in (*others, *(theirs for _, theirs in pairs)):
                sock.close()

        in_a_hub(linger)


class Pumped:
    """Counts how often it was pumped, in a file that a child shares."""

    delivered = 0
    log_extra: ClassVar[dict[str, str]] = {}

    def __init__(self, after: Callable[[], object] = lambda: None) -> None:
        self._read, self._write = os.pipe()
        self._after = after

    def pump(self, now: float) -> bool:
        """Sends one event."""
        os.write(self._write, b"x")
        self._after()
        return False

    def is_behind(self, seq: int, since: float) -> bool:
        """It has all."""
        return False

    def begin_anew(self, epoch: str) -> None:
        """Nothing is replaced."""

    def count(self) -> int:
        """How often."""
        os.close(self._write)
        with os.fdopen(self._read, "rb") as file:
            return len(file.read())


class TestBroadcaster:
    """What lets the streams of a channel send."""

    def test_forked_child(self) -> None:
        """A child that is forked right after an event was published doesn't send it again, though its copy of the hub runs."""

        def fork() -> None:
            broadcaster, channel, pumped = Broadcaster(), Channel("news"), Pumped()
            channel.subscribers[pumped] = None
            gevent.sleep(0)
            broadcaster.wake(channel)
            with warnings.catch_warnings():
                # This process has threads, as pytest's have.
                warnings.simplefilter("ignore", DeprecationWarning)
                child = os.fork()
            if child == 0:
                try:
                    gevent.reinit()
                    gevent.sleep(0.05)
                finally:
                    os._exit(0)
            os.waitpid(child, 0)
            gevent.sleep(0.05)
            assert pumped.count() == 1

        in_a_hub(fork)

    def test_calls_while_channels_are_due(self) -> None:
        """What another native thread wants to be called is called, though there is always something to send."""

        def publish_on() -> None:
            broadcaster, channel, called = Broadcaster(), Channel("news"), list[int]()
            turns = 0

            def publish_again() -> None:
                nonlocal turns
                turns += 1
                if not called and turns < 100_000:
                    broadcaster.wake(channel)

            channel.subscribers[Pumped(publish_again)] = None
            broadcaster.wake(channel)
            wait_for(lambda: turns > 10)
            asking = threading.Thread(target=broadcaster.call, args=(lambda: called.append(turns),))
            asking.start()
            wait_for(lambda: called)
            asking.join()
            assert called[0] < 100_000

        in_a_hub(publish_on)


class TestCollector:
    """What a full collection need not look at."""

    @pytest.fixture(autouse=True)
    def unfrozen(self) -> Iterator[None]:
        """Leaves nothing put aside."""
        gc.unfreeze()
        yield
        gc.unfreeze()

    def test_growth(self) -> None:
        """What a worker holds is put aside as its streams become more, and taken back when most have gone."""

        def is_aside(held: list[int]) -> bool:
            return not any(each is held for each in gc.get_objects())

        def tend_until(streams: int, held: list[int], *, aside: bool) -> None:
            # While another thread of this process holds one of our locks, the collector is off and so left alone.
            def tended() -> bool:
                collector.tend(streams)
                return is_aside(held) is aside

            wait_until(tended, 5, f"the collector has seen to {streams} streams")

        collector = Collector()
        first: list[int] = []
        collector.tend(GROWTH - 1)
        assert not is_aside(first)
        tend_until(GROWTH, first, aside=True)
        second: list[int] = []
        assert not is_aside(second)
        tend_until(2 * GROWTH, second, aside=True)
        assert is_aside(first)
        collector.tend(GROWTH)
        assert is_aside(first) and is_aside(second)
        tend_until(GROWTH - 1, first, aside=False)
        assert not is_aside(second)

    def test_disabled(self) -> None:
        """Who has turned the collector off is left alone."""
        gc.disable()
        try:
            Collector().tend(10 * GROWTH)
            assert gc.get_freeze_count() == 0
        finally:
            gc.enable()


class TestSettings:
    """gunicorn's settings, in a worker."""

    def test_looked_up_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Each has the value that it had, hooks and those that gunicorn works out too, without being looked up again."""

        def hook(worker: object, request: object) -> None:
            """Does nothing."""

        cfg = Config()
        cfg.set("keepalive", 7)
        cfg.set("bind", "127.0.0.1:1")
        cfg.set("pre_request", hook)
        before = {name: getattr(cfg, name) for name in cfg.settings}
        address = cfg.address
        look_up_once(cfg)
        monkeypatch.delattr(Config, "__getattr__")
        cfg.settings["keepalive"].set(8)
        assert {name: getattr(cfg, name) for name in cfg.settings} == before
        assert (cfg.keepalive, cfg.pre_request, cfg.address) == (7, hook, address)
