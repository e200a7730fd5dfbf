"""The same streams under servers that aren't ours: gunicorn's gevent and gthread workers, `gevent.pywsgi` and `flask run`."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.live import process
from tests.live.client import StreamClient, get, open_stream
from tests.live.process import wait_until
from tests.live.server import Server

APP = "tests.live.apps.server_app:app"
SERVERS: dict[str, dict[str, Any]] = {
    "gevent": {"worker_class": "gevent"},
    "gthread": {"worker_class": "gthread", "args": ["--threads", "8"]},
    "pywsgi": {"kind": "pywsgi"},
    "flask": {"kind": "flask"},
}
#: Seconds of silence after which this app sends a keepalive, and the timer's step.
KEEPALIVE = 0.3
TICK = 0.1
#: Seconds that a busy machine may add to a delay.
SLACK = 0.15

keys = (f"key-{n}" for n in itertools.count())


@pytest.fixture(scope="module", params=SERVERS)
def started(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server of each kind for all tests here."""
    with Server(APP, tmp_path_factory.mktemp(request.param), **SERVERS[request.param]) as server:
        yield server


@pytest.fixture
def server(started: Server) -> Iterator[Server]:
    """The server; after the test no stream may be left."""
    yield started
    wait_until(lambda: get(started, "/stats").json()["streams"] == 0, 5, "no stream left")


def kind_of(server: Server) -> str:
    """Which of `SERVERS` it is."""
    # Other modules may have made folders of the same name: the number is the factory's.
    return server.directory.name.rstrip("0123456789")


def look(server: Server, key: str) -> dict[str, Any]:
    """What a generator has met so far."""
    told: dict[str, Any] = get(server, f"/runs/{key}").json()
    return told


def let_go(server: Server, key: str) -> None:
    """Opens the gate that a generator waits at."""
    assert get(server, f"/runs/{key}", method="POST").status == 204


def wait_gone(server: Server, key: str) -> dict[str, Any]:
    """Waits until a generator has left, and tells what it met."""
    wait_until(lambda: look(server, key)["left"], 2, "the generator's finally")
    return look(server, key)


class TestEvents:
    """What the client gets."""

    def test_one_by_one(self, server: Server) -> None:
        """Each event arrives within 150 ms of its yield, while the generator sleeps; headers and framing are right."""
        client = open_stream(server, "/events?count=4")
        events = client.events(4)
        assert client.ended is None
        assert [(event.event, event.id, event.json()["n"]) for event in events] == [("tick", str(n), n) for n in range(4)]
        delays = [event.at - event.json()["at"] for event in events]
        assert sorted(delays)[-2] < 0.15, delays
        assert client.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert client.headers["cache-control"] == "no-cache, no-transform"
        assert client.headers["x-accel-buffering"] == "no"
        assert (client.status, client.framing) == (200, "chunked")
        assert client.read_until_closed() == "clean"
        assert client.comments == []
        assert client.body.startswith(b"retry: 1234\n\n")

    def test_http_1_0(self, server: Server) -> None:
        """A client of HTTP/1.0 gets the same, unframed, up to the end of the connection."""
        if kind_of(server) == "flask":
            pytest.skip("Flask's development server sends chunks to HTTP/1.0 too, whatever the app")
        client = open_stream(server, "/events?count=3", version="1.0")
        events = client.events(3)
        assert client.ended is None
        assert sorted(event.at - event.json()["at"] for event in events)[-2] < 0.15
        assert client.read_until_closed() == "clean"
        assert client.framing == "close"
        assert "transfer-encoding" not in client.headers

    def test_head(self, server: Server) -> None:
        """HEAD gets the headers alone, and runs no generator."""
        if kind_of(server) == "pywsgi":
            pytest.skip("gevent.pywsgi ends its answer to HEAD with an empty chunk, whatever the app")
        key = next(keys)
        before = get(server, "/stats").json()["streams_opened"]
        reply = get(server, f"/held?key={key}", method="HEAD")
        assert (reply.status, reply.body, reply.ended) == (200, b"", "clean")
        assert reply.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert "content-length" not in reply.headers
        assert get(server, f"/ran/{key}").json() is False
        assert get(server, "/stats").json()["streams_opened"] == before

    def test_post(self, server: Server) -> None:
        """A POST streams; its form and the named values of `g` are the generator's."""
        headers = {"Content-Type": "application/x-www-form-urlencoded", "X-User": "ada"}
        client = open_stream(server, "/chat", method="POST", headers=headers, body=b"to=bob&text=one+two+three")
        assert client.next_event().json() == {"user": "ada", "to": "bob"}
        assert [event.data for event in client.events(3)] == ["one", "two", "three"]
        assert client.read_until_closed() == "clean"

    def test_current_stream_send(self, server: Server) -> None:
        """What nested code sends is flushed at once, in order with what is yielded."""
        client = open_stream(server, "/nested")
        events = client.events(4)
        assert [event.json()["step"] for event in events] == [0, 1, 2, 3]
        assert [event.event for event in events] == ["message", "step", "step", "message"]
        assert [event.id for event in events] == [None, None, "s2", None]
        delays = [event.at - event.json()["at"] for event in events]
        assert sorted(delays)[-2] < 0.15, delays
        assert client.read_until_closed() == "clean"

    def test_lifecycle(self, server: Server) -> None:
        """A stream with a lifecycle starts, completes with its result, and is answered by 204 when its client comes back."""
        client = open_stream(server, "/lifecycle")
        start, *numbers, complete = client.events(5)
        assert (start.event, start.json()["title"]) == ("start", "sum")
        assert start.json()["stream"]
        assert [event.json() for event in numbers] == [0, 1, 2]
        assert (complete.event, complete.json()["result"]) == ("complete", 3)
        assert client.read_until_closed() == "clean"
        again = get(server, "/lifecycle", headers={"Last-Event-ID": client.last_event_id})
        assert (again.status, again.body) == (204, b"")

    def test_many(self, server: Server) -> None:
        """Several clients get their events side by side."""
        clients = [open_stream(server, "/events?count=3&pause=0.2") for _ in range(6)]
        for client in clients:
            assert client.read_until_closed() == "clean"
            assert [event.json()["n"] for event in client.arrived] == [0, 1, 2]
        took = max(client.ended_at or 0 for client in clients) - min(client.requested_at for client in clients)
        assert took < 2.5, "one after the other"


class TestSilence:
    """Keepalives."""

    def test_before_the_first_event(self, server: Server) -> None:
        """A silent generator's headers go out after `SSE_OPEN_TIMEOUT`, with an empty comment; only keepalives follow."""
        key = next(keys)
        client = open_stream(server, f"/silence?key={key}")
        assert client.head_at is not None
        assert 0.5 <= client.head_at - client.requested_at < 0.5 + SLACK
        beats = [comment for comment in (client.next_comment() for _ in range(5)) if comment.text]
        gaps = [later.at - earlier.at for earlier, later in itertools.pairwise(beats)]
        assert {beat.text for beat in beats} == {"keepalive"}
        assert 0.8 * KEEPALIVE - 0.05 < min(gaps) <= max(gaps) < KEEPALIVE + TICK + SLACK, gaps
        assert bytes(client.body) == b":\n" + b":keepalive\n" * len(beats)
        let_go(server, key)
        assert client.next_event().data == "done"
        assert client.read_until_closed() == "clean"

    def test_after_an_event(self, server: Server) -> None:
        """A generator that is silent between two events gets keepalives meanwhile, and both events."""
        key = next(keys)
        client = open_stream(server, f"/held?key={key}")
        first = client.next_event()
        beats = [client.next_comment() for _ in range(3)]
        assert [beat.text for beat in beats] == ["keepalive"] * 3
        assert beats[0].at - first.at < KEEPALIVE + TICK + SLACK
        let_go(server, key)
        assert client.next_event().data == "after the gate"
        assert client.read_until_closed() == "clean"
        assert wait_gone(server, key)["seen"] == "nothing"


class TestErrors:
    """What a generator raises."""

    @pytest.mark.parametrize(
        ("how", "status", "body"),
        [
            ("abort", 403, {"handled": "not yours", "path": "/refuse/abort"}),
            ("lookup", 409, {"handled": "no such job"}),
        ],
    )
    def test_handled_before_the_first_event(self, server: Server, how: str, status: int, body: dict[str, str]) -> None:
        """An error before the first event is what the app's error handlers make of it."""
        reply = get(server, f"/refuse/{how}")
        assert (reply.status, reply.json(), reply.ended) == (status, body, "clean")
        assert reply.headers["content-type"] == "application/json"
        assert reply.headers.get("x-handled") == ("yes" if how == "lookup" else None)

    def test_stream_error_before_the_first_event(self, server: Server) -> None:
        """A `StreamError` before the first event is JSON with its own status."""
        reply = get(server, "/refuse/stream-error")
        told = reply.json()
        assert reply.status == 429
        assert (told["error"], told["error_type"], told["details"]) == ("the quota is used up", "quota", {"left": 0})

    def test_unhandled_before_the_first_event(self, server: Server) -> None:
        """An error that nothing handles is 500, without its message, and in the log."""
        reply = get(server, "/refuse/unhandled")
        assert (reply.status, "secret" in reply.text) == (500, False)
        server.wait_for_log("RuntimeError: secret", 2)

    def test_the_app_logs(self, server: Server) -> None:
        """What a generator logs by the app's own logger is in the server's log."""
        key = next(keys)
        open_stream(server, f"/logging?key={key}").read_until_closed()
        server.wait_for_log(f"logged for {key}", 2)

    def test_after_the_first_event(self, server: Server) -> None:
        """An error after the first event is the error event with a generic message, and a clean end."""
        client = open_stream(server, "/fail/unhandled")
        assert client.next_event().data == "one"
        error = client.next_event()
        assert (error.event, error.json()["error_type"]) == ("error", "internal_error")
        assert "secret" not in error.data
        assert client.read_until_closed() == "clean"
        server.wait_for_log("the generator of the stream at /fail/unhandled raised")

    def test_stream_error_after_the_first_event(self, server: Server) -> None:
        """A `StreamError` after the first event reaches the client with its message and details."""
        client = open_stream(server, "/fail/stream-error")
        told = client.events(2)[1].json()
        assert (told["error"], told["error_type"], told["details"]) == ("the quota is used up", "quota", {"left": 0})
        assert client.read_until_closed() == "clean"


class TestDeadlines:
    """Time-outs and ages: the client's stream ends on time, the generator learns of it at its next yield."""

    def test_timeout(self, server: Server) -> None:
        """A passed deadline ends the client's stream with the error event, and is raised at the generator's next yield."""
        key = next(keys)
        client = open_stream(server, f"/timeout?key={key}")
        assert client.next_event().data == "open"
        error = client.next_event()
        assert (error.event, error.json()["error_type"]) == ("error", "timeout")
        assert 0.6 - 0.05 < error.at - client.requested_at < 0.6 + 2 * TICK + SLACK
        assert client.read_until_closed(1) == "clean"
        assert look(server, key) | {"closed": True, "left": False, "seen": ""} == look(server, key)
        let_go(server, key)
        assert wait_gone(server, key)["seen"] == "StreamTimeout timeout"

    def test_heartbeat(self, server: Server) -> None:
        """A generator that puts its deadline off outlives its time-out."""
        client = open_stream(server, "/heartbeat")
        assert [event.json() for event in client.events(6)] == [{"extended": True}] * 6
        assert client.read_until_closed() == "clean"
        assert client.ended_at is not None
        assert client.ended_at - client.requested_at > 1.1

    def test_max_age(self, server: Server) -> None:
        """A stream that has reached its age ends cleanly and without an event; the generator learns of it at its next yield."""
        key = next(keys)
        client = open_stream(server, f"/max-age?key={key}")
        assert client.next_event().data == "open"
        assert client.read_until_closed(2) == "clean"
        assert client.ended_at is not None
        assert 0.6 - 0.05 < client.ended_at - client.requested_at < 0.6 + 2 * TICK + SLACK
        assert len(client.arrived) == 1
        let_go(server, key)
        assert wait_gone(server, key)["seen"] == "StreamClosed max_age"


class TestLeaving:
    """Clients that go."""

    @pytest.mark.parametrize(("how", "writes"), [("reset", 1), ("hang_up", 2)])
    def test_hang_up(self, server: Server, how: str, writes: int) -> None:
        """A client's end is noticed at the next write that can fail; the generator learns of it at its next yield."""
        key = next(keys)
        client = open_stream(server, f"/held?key={key}")
        assert client.next_event().data == "open"
        client.next_comment()
        assert look(server, key)["closed"] is False
        getattr(client, how)()
        # To a socket that was closed the first write succeeds, and its answer is a reset.
        wait_until(lambda: look(server, key)["closed"], writes * (KEEPALIVE + TICK) + 2 * SLACK, "the hang-up")
        told = look(server, key)
        assert (told["reason"], told["left"], told["on_close"]) == ("disconnected", False, 0)
        let_go(server, key)
        told = wait_gone(server, key)
        assert told["seen"] == "StreamClosed disconnected"
        wait_until(lambda: look(server, key)["on_close"] == 1, 2)

    def test_nothing_is_left(self, server: Server) -> None:
        """Streams whose clients went leave no stream and no socket, and their callbacks have been called once."""
        worker = server.worker_pid()
        wait_until(lambda: get(server, "/stats").json()["streams"] == 0)
        sockets = wait_until(lambda: process.open_sockets(worker))
        taken = [next(keys) for _ in range(5)]
        clients = [open_stream(server, f"/held?key={key}") for key in taken]
        for client in clients:
            client.next_event()
        assert get(server, "/stats").json()["streams"] == 5
        for client, key in zip(clients, taken, strict=True):
            client.reset()
            let_go(server, key)
        wait_until(lambda: get(server, "/stats").json()["streams"] == 0, 3)
        assert [wait_gone(server, key)["on_close"] for key in taken] == [1] * 5
        wait_until(lambda: process.open_sockets(worker) <= sockets, 3, "no socket left")

    def test_call_on_close(self, server: Server) -> None:
        """What a response was told to call when it is closed is called once, when the stream has ended."""
        key = next(keys)
        client = open_stream(server, f"/callback?key={key}")
        client.next_event()
        client.next_comment()
        assert look(server, key)["call_on_close"] == 0
        let_go(server, key)
        assert client.read_until_closed() == "clean"
        wait_until(lambda: look(server, key)["call_on_close"] == 1, 2)

    def test_completed(self, server: Server) -> None:
        """A stream that its generator has ended is counted as completed, with its events."""
        before = get(server, "/stats").json()
        open_stream(server, "/events?count=3&pause=0").read_until_closed()
        wait_until(lambda: get(server, "/stats").json()["streams"] == 0)
        after = get(server, "/stats").json()
        assert after["streams_closed"]["completed"] == before["streams_closed"].get("completed", 0) + 1
        assert after["events_sent"] == before["events_sent"] + 3


class TestLimit:
    """`SSE_MAX_STREAMS`."""

    def open_two(self, server: Server, path: str) -> list[tuple[StreamClient, str]]:
        """Fills the room that there is."""
        wait_until(lambda: get(server, "/stats").json()["streams"] == 0)
        opened = [(open_stream(server, f"{path}?key={key}"), key) for key in (next(keys), next(keys))]
        for client, _ in opened:
            client.next_event()
        return opened

    def test_status(self, server: Server) -> None:
        """A stream beyond the limit is 503 with `Retry-After` and JSON that names the limit; a place that gets free is given."""
        opened = self.open_two(server, "/limited/held")
        reply = get(server, f"/limited/held?key={next(keys)}")
        assert (reply.status, reply.json()["limit"]) == (503, "SSE_MAX_STREAMS")
        assert 2 <= int(reply.headers["retry-after"]) <= 11
        let_go(server, opened[0][1])
        assert opened[0][0].read_until_closed() == "clean"
        wait_until(lambda: get(server, "/stats").json()["streams"] == 1)
        key = next(keys)
        assert open_stream(server, f"/limited/held?key={key}").next_event().data == "open"
        for each in (opened[1][1], key):
            let_go(server, each)

    def test_retry(self, server: Server) -> None:
        """With `SSE_REFUSE = "retry"` it is 200, a comment that names the limit, `retry:` and the end."""
        opened = self.open_two(server, "/limited-retry/held")
        client = open_stream(server, f"/limited-retry/held?key={next(keys)}")
        assert client.read_until_closed() == "clean"
        assert (client.status, client.arrived) == (200, [])
        assert [comment.text for comment in client.comments] == ["refused: SSE_MAX_STREAMS"]
        assert client.frames.retry_ms is not None
        assert 2000 <= client.frames.retry_ms <= 10000
        for _, key in opened:
            let_go(server, key)


def test_no_warning(server: Server) -> None:
    """None of these is told that it serves one request at a time."""
    assert open_stream(server, "/events?count=1").events(1)
    assert "one request at a time" not in server.log()


def test_one_request_at_a_time(tmp_path: Path) -> None:
    """The sync worker of gunicorn is told so at its first stream, once, and by which worker it is remedied."""
    with Server(APP, tmp_path, worker_class="sync") as server:
        for _ in range(2):
            client = open_stream(server, "/events?count=1")
            assert client.events(1)
            assert client.read_until_closed() == "clean"
        (line,) = [line for line in server.log().splitlines() if "one request at a time" in line]
        assert "nobody else is answered" in line and "-k sseflask.worker.StreamWorker" in line


def test_start_of_the_clock(started: Server) -> None:
    """The clocks of this process and the server's are one, which the delays above go by."""
    told = open_stream(started, "/events?count=1&pause=0").next_event().json()["at"]
    assert abs(told - time.monotonic()) < 2
