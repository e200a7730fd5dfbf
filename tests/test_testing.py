"""`sseflask.testing`: what its users' tests do with it, and what they see when an event doesn't come."""

from __future__ import annotations

import contextlib
import http.client
import socket
import subprocess
import sys
import textwrap
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from flask import Flask, Response, has_app_context, stream_with_context

import sseflask.stream
import sseflask.testing.source
from sseflask import SSE, ServerSentEvent, StreamClosed, heartbeat, process
from sseflask.errors import SSEError
from sseflask.testing import EventReader, EventsMissing, FakeClock, SSEServer, open_stream, read_events, reader_of
from tests.live.process import wait_until

ROOT = Path(__file__).resolve().parents[1]
# The fixtures, where sseflask isn't installed.
pytest_plugins = ("pytest_sseflask",)


@pytest.fixture
def sse() -> SSE:
    """The extension."""
    return SSE()


@pytest.fixture
def ended() -> list[str]:
    """What generators say in their `finally`."""
    return []


@pytest.fixture
def is_over() -> Iterator[threading.Event]:
    """Whether the test is over."""
    is_over = threading.Event()
    yield is_over
    is_over.set()
    wait_until(lambda: not left(), message="the threads of readers to end")


@pytest.fixture
def app(sse: SSE, ended: list[str], is_over: threading.Event) -> Flask:
    """An app with streams of all kinds."""
    app = Flask("app_to_test")
    app.config.update(SSE_PUBLIC_CHANNELS=["*"], SSE_OPEN_TIMEOUT=0.05)
    app.register_blueprint(sse, url_prefix="/events")

    @app.get("/count/<int:n>")
    @sse.stream
    def count(n: int) -> Iterator[ServerSentEvent]:
        try:
            for number in range(n):
                yield ServerSentEvent({"n": number}, event="tick", id=str(number))
        finally:
            ended.append("count")

    @app.get("/silent")
    @sse.stream(timeout=60)
    def silent() -> Iterator[str]:
        try:
            for _ in range(3000):
                time.sleep(0.01)
                heartbeat(0)
            yield "never"
        except StreamClosed as closed:
            ended.append(closed.reason)
            raise

    @app.get("/plain")
    def plain() -> Response:
        def generate() -> Iterator[str]:
            yield "data: one\n\n"
            yield ":keepalive\n"
            yield "data: half"
            is_over.wait(30)

        return Response(generate(), mimetype="text/event-stream")

    @app.get("/context")
    def context() -> Response:
        return Response(stream_with_context(iter(["data: 1\n\n", "", "data: 2\n\n"])), mimetype="text/event-stream")

    @app.get("/messages")
    def messages() -> Response:
        def generate() -> Iterator[bytes]:
            with contextlib.closing(sse.subscribe("news")) as response:
                yield from response.response  # type: ignore[misc]

        return Response(stream_with_context(generate()), mimetype="text/event-stream")

    @app.get("/broken")
    def broken() -> Response:
        return Response(map(_fail, [1]), mimetype="text/event-stream")

    return app


def _fail(_: object) -> str:
    raise LookupError("it broke")


def left() -> list[str]:
    """The threads of readers and servers that run."""
    return [thread.name for thread in threading.enumerate() if thread.name.startswith(("sseflask-reader", "sseflask-test-server"))]


class TestReadEvents:
    """`read_events`."""

    def test_count(self, app: Flask, ended: list[str]) -> None:
        """It returns so many events, the last of which may be long before the end, and leaves nothing running."""
        events = read_events(app.test_client().get("/count/100000"), count=2)
        assert events == [ServerSentEvent({"n": n}, event="tick", id=str(n)) for n in range(2)]
        assert ended == ["count"]
        assert (left(), process.current().streams) == ([], set())

    def test_all(self, app: Flask) -> None:
        """Without a count it reads a stream to its end."""
        assert [event.data for event in read_events(app.test_client().get("/count/3"))] == ['{"n":0}', '{"n":1}', '{"n":2}']
        assert read_events(app.test_client().get("/count/0")) == []

    def test_until(self, app: Flask) -> None:
        """It reads up to the event that is waited for."""
        events = read_events(app.test_client().get("/count/9"), until=lambda event: event.id == "2")
        assert [event.id for event in events] == ["0", "1", "2"]

    def test_open_event(self, app: Flask, sse: SSE) -> None:
        """The event that opens a subscription isn't among them, unless it is wanted."""
        client = app.test_client()
        response = client.get("/events/news")
        sse.publish("hello", channel="news")
        assert [event.data for event in read_events(response, count=1)] == ["hello"]
        (opening,) = read_events(client.get("/events/news"), count=1, skip=())
        assert opening.event == "stream-open"

    def test_nothing_comes(self, app: Flask, ended: list[str]) -> None:
        """It fails within its time, says that nothing came, and the stream's generator has ended."""
        with pytest.raises(EventsMissing) as raised:
            read_events(app.test_client().get("/silent"), count=2, timeout=0.2)
        assert str(raised.value) == "0 of 2 events came: after 0.2 s the stream is still open, and has sent nothing at all"
        assert (ended, left(), process.current().streams) == (["disconnected"], [], set())

    def test_too_few(self, app: Flask) -> None:
        """It fails at once when the stream ends early, and shows what came, shortened."""
        with pytest.raises(EventsMissing) as raised:
            read_events(app.test_client().get("/count/12"), count=20)
        assert isinstance(raised.value, AssertionError) and isinstance(raised.value, SSEError)
        lines = str(raised.value).splitlines()
        assert lines[0] == "12 of 20 events came: the server has ended the stream"
        assert lines[1] == """  ServerSentEvent('{"n":0}', event='tick', id='0')"""
        assert (len(lines), lines[-1]) == (12, "  … and 2 more")
        assert len(raised.value.events) == 12

    def test_never_the_one(self, app: Flask) -> None:
        """It says how many weren't the one that was waited for."""
        with pytest.raises(EventsMissing, match="none of 3 events was the one that until= waits for"):
            read_events(app.test_client().get("/count/3"), until=lambda event: False)

    def test_no_end(self, app: Flask, sse: SSE) -> None:
        """Who reads an endless stream to its end is told how to read a part; what came besides is counted."""
        response = app.test_client().get("/events/news")
        sse.publish("x" * 500, channel="news")
        with pytest.raises(
            EventsMissing, match=r"1 events came, and not the end of the stream \(count= .*1 stream-open\)"
        ) as raised:
            read_events(response, timeout=0.1)
        assert max(map(len, str(raised.value).splitlines()[1:])) < 130

    def test_no_stream(self, app: Flask, sse: SSE) -> None:
        """What is no event stream is shown."""
        with pytest.raises(EventsMissing, match=r"the response from /nowhere is 404, text/html.*Not Found"):
            read_events(app.test_client().get("/nowhere"), count=1)

    def test_plain_generator(self, app: Flask) -> None:
        """A plain generator that waits for ever is interrupted; half an event and a comment are told of."""
        with pytest.raises(EventsMissing) as raised:
            read_events(app.test_client().get("/plain"), count=2, timeout=0.1)
        assert "1 of 2 events came: after 0.1 s the stream is still open" in str(raised.value)
        assert "1 comment, 10 bytes of an event without its blank line" in str(raised.value)
        assert left() == []

    def test_stubborn_generator(self, app: Flask) -> None:
        """One that takes the interruption for something else is interrupted again."""
        interruptions = []

        def generate() -> Iterator[str]:
            while len(interruptions) < 2:
                try:
                    threading.Event().wait(30)
                except BaseException as error:
                    interruptions.append(error)
            yield "data: late\n\n"

        with reader_of(Response(generate(), mimetype="text/event-stream")) as reader:
            assert reader.next_event(0.05).data == "late"
        assert len(interruptions) == 2

    def test_in_another_thread(self, app: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
        """Elsewhere than in the first thread the test ends too, though the generator can't be interrupted."""
        monkeypatch.setattr(sseflask.testing.source, "CLOSE_SECONDS", 0.1)
        failures: list[EventsMissing] = []

        def read() -> None:
            try:
                read_events(app.test_client().get("/plain"), count=2, timeout=0.1)
            except EventsMissing as error:
                failures.append(error)

        thread = threading.Thread(target=read)
        thread.start()
        thread.join(20)
        assert "1 of 2 events came" in str(failures[0])

    def test_context(self, app: Flask) -> None:
        """A `stream_with_context` generator is read to its end, or in part, or in vain; no context is left behind."""
        client = app.test_client()
        assert [event.data for event in read_events(client.get("/context"))] == ["1", "2"]
        assert [event.data for event in read_events(client.get("/context"), count=1)] == ["1"]
        with pytest.raises(EventsMissing):
            read_events(client.get("/messages"), count=1, timeout=0.1)
        assert not has_app_context()
        assert process.current().streams == set()

    def test_error(self, app: Flask) -> None:
        """What a plain generator raises is raised in the test."""
        app.testing = True
        with pytest.raises(LookupError, match="it broke"):
            read_events(app.test_client().get("/broken"), count=1)

    def test_response_of_a_view(self, app: Flask, sse: SSE) -> None:
        """A response that no client has fetched is read too."""
        with app.test_request_context("/"):
            response = sse.subscribe("news")
            with reader_of(response) as reader:
                reader.events(0)
                with pytest.raises(EventsMissing):
                    reader.next_event(0.05)
                sse.publish("hi", channel="news")
                assert reader.next_event().data == "hi"

    def test_wrong_arguments(self, app: Flask) -> None:
        """Count and until exclude each other, and what is no response is refused."""
        with pytest.raises(ValueError, match="not both"):
            read_events(app.test_client().get("/count/1"), count=1, until=bool)
        with pytest.raises(TypeError, match="not str"):
            read_events("data: x", count=1)


class TestReader:
    """`EventReader`."""

    def test_on_and_on(self, app: Flask, sse: SSE) -> None:
        """Events can be read, others published, and these read; a failed wait loses none."""
        with reader_of(app.test_client().get("/events/news")) as reader:
            sse.publish("one", channel="news")
            assert reader.next_event().data == "one"
            with pytest.raises(EventsMissing):
                reader.next_event(0.05)
            sse.publish("two", channel="news")
            with pytest.raises(EventsMissing, match="1 of 2 events came"):
                reader.events(2, timeout=0.05)
            sse.publish("three", channel="news")
            assert [event.data for event in reader.events(2)] == ["two", "three"]
            assert [event.event or event.data for event in reader.received] == ["stream-open", "one", "two", "three"]
        reader.close()
        with pytest.raises(EventsMissing, match="closed by the test"):
            reader.next_event(0.05)

    @pytest.mark.parametrize("size", [1, 7, 1000])
    def test_any_slicing(self, app: Flask, size: int) -> None:
        """Events and comments are the same however the bytes are cut."""
        text = b": first\r\ndata: a\n\n:\n:second\rdata: b\r\n\r\n: third\n".replace(b"\r\n", b"\n").replace(
            b"second\r", b"second\n"
        )
        body = [text[i : i + size] for i in range(0, len(text), size)]
        with reader_of(Response(body, mimetype="text/event-stream")) as reader:
            assert [event.data for event in reader.events()] == ["a", "b"]
            assert reader.comments == ["first", "second", "third"]


class TestServer:
    """`SSEServer`, and the fixture `sse_server`."""

    def test_streams(self, sse_server: SSEServer, sse: SSE) -> None:
        """Streams of a real server give their events; headers and statuses are there; several are open at once."""
        with sse_server.get("/events/news") as one, sse_server.get("/events/news") as two:
            event_id = sse.publish("hi", channel="news", event="greeting")
            assert one.next_event() == two.next_event() == ServerSentEvent("hi", event="greeting", id=event_id)
            assert one.headers["content-type"] == "text/event-stream; charset=utf-8"
        missed = sse_server.get("/events/news", headers={"Last-Event-ID": event_id.rpartition("-")[0] + "-0"})
        assert missed.next_event().data == "hi"
        assert sse_server.get("/nowhere").status == 404
        posted = sse_server.get("/events/news", method="POST", data=b"x")
        assert posted.status == 403

    def test_nothing_comes(self, sse_server: SSEServer) -> None:
        """What doesn't come is told, with the URL where it is no stream."""
        with pytest.raises(EventsMissing, match="0 of 1 event came"):
            sse_server.get("/events/news").next_event(0.1)
        with pytest.raises(EventsMissing, match=r"http://127.0.0.1:\d+/nowhere is 404"):
            sse_server.get("/nowhere").next_event()

    def test_stop(self, app: Flask, sse: SSE, ended: list[str]) -> None:
        """It stops with streams open, theirs and others' ends included, and nothing listens any more."""
        server = SSEServer(app).start()
        reader, other = server.get("/events/news"), socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2])))
        other.sendall(b"GET /silent HTTP/1.0\r\n\r\n")
        assert other.recv(100).startswith(b"HTTP/1.0 200")
        since = time.monotonic()
        server.stop()
        server.stop()
        assert time.monotonic() - since < 10
        assert (reader.is_ended, ended, left(), process.current().streams) == (False, ["shutdown"], [], set())
        other.close()
        with pytest.raises(ConnectionRefusedError):
            open_stream(server.url)

    def test_other_clients(self, sse_server: SSEServer, sse: SSE) -> None:
        """`read_events` reads what urllib and http.client have opened."""
        with urllib.request.urlopen(f"{sse_server.url}/count/3") as response:
            assert [event.id for event in read_events(response, count=2)] == ["0", "1"]
        connection = http.client.HTTPConnection(sse_server.url.removeprefix("http://"))
        connection.request("GET", "/count/1")
        assert [event.id for event in read_events(connection.getresponse())] == ["0"]
        connection.close()

    def test_silent_server(self) -> None:
        """A server that doesn't answer, or hangs up, is waited for no longer than that."""
        with socket.create_server(("127.0.0.1", 0)) as listener:
            url = f"http://127.0.0.1:{listener.getsockname()[1]}/x"
            with pytest.raises(EventsMissing, match=r"a response from http.*: nothing within 0\.1 s"):
                open_stream(url, timeout=0.1)
        with pytest.raises(ValueError, match="not 'https"):
            open_stream("https://localhost/")


class TestClock:
    """`FakeClock`, and the fixture `sse_clock`."""

    def test_keepalive(self, app: Flask, sse_clock: FakeClock) -> None:
        """A silent stream gets a keepalive when its interval has passed, and none before."""
        with reader_of(app.test_client().get("/events/news")) as reader:
            sse_clock.advance(11)
            with pytest.raises(EventsMissing, match="expected a comment"):
                reader.next_comment(0.3)
            sse_clock.advance(4)
            assert reader.next_comment() == "keepalive"
            sse_clock.advance(3600)
            assert reader.next_comment() == "keepalive"
            assert reader.comments == ["keepalive"] * 2

    def test_deadline(self, sse_server: SSEServer, sse_clock: FakeClock, ended: list[str]) -> None:
        """A deadline passes; the client gets the error event, and the generator the interruption."""
        with sse_server.get("/silent") as reader:
            sse_clock.advance(59)
            assert not process.current().streams.copy().pop().closed
            sse_clock.advance(2)
            event = reader.next_event()
            assert event.event == "error"
            assert "time-out of 60 s" in str(event.data)
            assert reader.events() == []
        assert ended == ["timeout"]

    def test_token(self, app: Flask, sse: SSE, sse_clock: FakeClock) -> None:
        """A token expires: the stream that it opened ends, and it opens no other."""
        app.config["SECRET_KEY"] = "a secret"
        closed, sse_closed = Flask("closed"), SSE()
        closed.secret_key = "a secret"
        closed.register_blueprint(sse_closed, url_prefix="/events")
        with closed.app_context():
            url = f"/events/news?token={sse_closed.sign('news', expires_in=600)}"
        with reader_of(closed.test_client().get(url)) as reader:
            sse_clock.advance(601)
            assert "token_expired" in str(reader.next_event().data)
        assert closed.test_client().get(url).status_code == 401

    def test_history(self, app: Flask, sse: SSE, sse_clock: FakeClock) -> None:
        """Histories expire: who comes back later than that is told."""
        position = sse.publish("one", channel="news")
        sse.publish("two", channel="news")
        sse_clock.advance(400)
        sse.publish("three", channel="other")
        wait_until(lambda: sse.installation.broker.log.find("news") is None)
        with reader_of(app.test_client().get("/events/news", headers={"Last-Event-ID": position})) as reader:
            assert reader.next_event().event == "stream-reset"

    def test_no_word_of_lag(self, app: Flask, sse_clock: FakeClock) -> None:
        """Nobody takes a clock that was moved on for a timer that is late."""
        with reader_of(app.test_client().get("/events/news")) as reader:
            sse_clock.advance(15)
            reader.next_comment()
            timer = process.current().timer
            timer.lag = timer.max_lag = -1.0
            wait_until(lambda: timer.max_lag >= 0)
            sse_clock.advance(3600)
            timer.lag = -1.0
            wait_until(lambda: timer.lag >= 0)
        assert timer.max_lag < 3000

    def test_back(self, app: Flask) -> None:
        """After it the real time counts again, for the timer too."""
        before = time.monotonic()
        with FakeClock() as clock, reader_of(app.test_client().get("/events/news")):
            clock.advance(86_400)
            assert sseflask.stream.time.monotonic() - before >= 86_400 <= clock.now - before
            assert sseflask.stream.time.time() - time.time() > 86_000
        assert sseflask.stream.time is time
        app.config["SSE_KEEPALIVE_INTERVAL"] = 0.2
        fresh, sse = Flask("fresh"), SSE()
        fresh.config.update(SSE_PUBLIC_CHANNELS=["*"], SSE_KEEPALIVE_INTERVAL=0.1)
        fresh.register_blueprint(sse, url_prefix="/events")
        with reader_of(fresh.test_client().get("/events/news")) as reader:
            assert reader.next_comment(10) == "keepalive"

    def test_one_clock(self, sse_clock: FakeClock) -> None:
        """There is one at a time, and it moves only while it is in place."""
        with pytest.raises(RuntimeError, match="already"), FakeClock():
            pass
        with pytest.raises(RuntimeError, match="isn't in place"):
            FakeClock().advance(1)

    @pytest.mark.parametrize("seconds", [-1, 86_401, float("nan")])
    def test_bounds(self, sse_clock: FakeClock, seconds: float) -> None:
        """It goes forward, by a day at the most."""
        with pytest.raises(ValueError, match="0 to 86400"):
            sse_clock.advance(seconds)


TESTS = """
    import pytest
    from flask import Flask
    from sseflask import SSE
    from sseflask.testing import read_events

    sse = SSE()

    @pytest.fixture
    def app():
        app = Flask("mine")
        app.config["SSE_PUBLIC_CHANNELS"] = ["*"]
        app.register_blueprint(sse, url_prefix="/events")
        return app

    def test_client(app):
        response = app.test_client().get("/events/news")
        sse.publish("hello", channel="news")
        read_events(response, count=2, timeout=0.2)

    def test_server(sse_server):
        sse_server.get("/events/news").next_event(timeout=0.2)

    def test_passes(sse_server, sse_clock):
        stream = sse_server.get("/events/news")
        sse_clock.advance(15)
        assert stream.next_comment() == "keepalive"
"""
WITHOUT_APP = """
    import pytest

    class TestOther:
        @pytest.fixture
        def app(self):
            return "no app"

        def test_other(self, sse_server):
            pass

    def test_none(sse_server):
        pass
"""


@pytest.mark.timeout(120)
class TestPlugin:
    """What pytest shows."""

    def test_failures(self, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
        """An event that never comes, and an app that isn't there, end a test soon, with an error that one can read."""
        monkeypatch.setenv("PYTHONPATH", str(ROOT))
        pytester.makepyfile(test_events=textwrap.dedent(TESTS), test_apps=textwrap.dedent(WITHOUT_APP))
        result = pytester.runpytest_subprocess("-p", "pytest_sseflask", timeout=100)
        result.assert_outcomes(passed=1, failed=2, errors=2)
        result.stdout.fnmatch_lines_random(
            [
                "E*EventsMissing: 1 of 2 events came: after 0.2 s the stream is still open (besides: 1 stream-open)",
                "E*ServerSentEvent('hello', id='*-1')",
                ">*read_events(response, count=2, timeout=0.2)",
                "E*EventsMissing: 0 of 1 event came: after 0.2 s the stream is still open (besides: 1 stream-open)",
                ">*sse_server.get(*).next_event(timeout=0.2)",
                "*define one that returns your Flask app*",
                "*serves the Flask app that the fixture `app` returns*'no app'*",
            ]
        )
        # The lines of the test, and none of the library's.
        result.stdout.no_fnmatch_line("*reader.py:*")

    def test_it_is_light(self) -> None:
        """The plugin imports nothing of sseflask's, Flask's or gevent's before a test asks for a fixture."""
        script = "import sys, pytest_sseflask; print([name for name in ('sseflask', 'flask', 'gevent') if name in sys.modules])"
        told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
        assert told.stdout.strip() == "[]"


def test_reader_is_shown(app: Flask) -> None:
    """A reader says what it reads."""
    with reader_of(app.test_client().get("/count/1")) as reader:
        assert isinstance(reader, EventReader)
        reader.events()
        assert repr(reader) == "<EventReader of the response from /count/1, 1 received>"
    assert repr(SSEServer(app)) == "<SSEServer not started>"
