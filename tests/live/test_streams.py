"""A stream from its first byte to its last, under `StreamWorker`: what arrives, when, in which form, and within which limits."""

from __future__ import annotations

import itertools
import re
import statistics
import time
from collections.abc import Iterator

import pytest

from tests.conftest import Serve
from tests.live.client import Event, get, open_stream, read_all
from tests.live.journal import notes, stats, wait_for_no_streams, wait_for_note
from tests.live.process import wait_until
from tests.live.server import Server

APP = "tests.live.apps.streams_app:create_app()"
DEBUG_APP = "tests.live.apps.streams_app:create_debug_app()"
#: What DESIGN promises of an event, in seconds.
AT_ONCE = 0.1


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One worker, for all tests that need no settings of their own."""
    with Server(APP, tmp_path_factory.mktemp("streams")) as server:
        yield server


def assert_at_once(events: list[Event]) -> None:
    """Each event came within a tenth of a second of its yield; of twenty, a busy machine may hold one up."""
    delays = sorted(event.at - event.json()["at"] for event in events)
    late = [delay for delay in delays if delay > AT_ONCE]
    assert delays[0] > 0
    assert statistics.median(delays) < AT_ONCE / 2
    assert len(late) <= max(1, len(delays) // 20), f"late: {late}"


class TestArrival:
    """Events come one by one, as they are yielded."""

    def test_each_event_at_once(self, server: Server) -> None:
        """Each event arrives within a tenth of a second of its yield, while the generator sleeps between them."""
        with open_stream(server, "/ticks?count=20&seconds=0.05") as client:
            events = client.events(20)
            assert [event.json()["n"] for event in events] == list(range(20))
            assert_at_once(events)
            assert client.read_until_closed() == "clean"

    def test_many_streams_side_by_side(self, server: Server) -> None:
        """So it is with fifty streams at a time."""
        clients = [open_stream(server, "/ticks?count=20&seconds=0.1", wait_for_head=False) for _ in range(50)]
        assert read_all(clients) == ["clean"] * 50
        assert all(len(client.arrived) == 20 for client in clients)
        # While fifty streams open the machine is busy, with this client above all.
        assert_at_once([event for client in clients for event in client.arrived[5:]])

    @pytest.mark.parametrize("pause", ["", "&pause=1"], ids=["at once", "with pauses"])
    @pytest.mark.parametrize("count", [1, 2, 3, 50, 1000])
    def test_none_is_lost(self, server: Server, count: int, pause: str) -> None:
        """Events that come while the stream is being opened, and its socket taken over, all arrive, and so does the end."""
        for _ in range(10):
            with open_stream(server, f"/quick?count={count}{pause}") as client:
                assert client.read_until_closed() == "clean"
                assert [event.json()["n"] for event in client.arrived] == list(range(count))

    def test_none_is_lost_as_the_open_timeout_ends(self, server: Server) -> None:
        """So do those that come just when `SSE_OPEN_TIMEOUT` is over."""
        delays = [0.48 + 0.001 * n for n in range(40)]
        clients = [open_stream(server, f"/quick?count=5&pause=1&seconds={delay}", wait_for_head=False) for delay in delays]
        assert read_all(clients) == ["clean"] * len(clients)
        assert [[event.json()["n"] for event in client.arrived] for client in clients] == [list(range(5))] * len(clients)

    def test_preloaded(self, serve: Serve) -> None:
        """So it is when the app was loaded before the worker was forked, keepalives and noticed hang-ups included."""
        server = serve(APP, args=["--preload"])
        with open_stream(server, "/ticks?count=20") as client:
            assert_at_once(client.events(20))
        client = open_stream(server, "/kept-alive?name=preloaded")
        assert client.next_comment().text == "keepalive"
        hung_up = time.monotonic()
        client.hang_up()
        assert wait_for_note(server, "preloaded", "ended")["at"] - hung_up < 1

    def test_headers_with_the_first_event(self, server: Server) -> None:
        """The headers wait for the first event and come with it."""
        client = open_stream(server, "/late?seconds=0.25")
        assert client.head_at is not None
        assert 0.25 <= client.head_at - client.requested_at < 0.4
        assert client.next_event(0.1).data == "late"

    def test_headers_after_the_open_timeout(self, server: Server) -> None:
        """The headers of a generator that says nothing come after `SSE_OPEN_TIMEOUT`, and bring nothing else."""
        client = open_stream(server, "/mute?name=headers")
        assert client.head_at is not None
        assert 0.5 <= client.head_at - client.requested_at < 0.7
        assert (client.status, bytes(client.body)) == (200, b"")

    def test_headers(self, server: Server) -> None:
        """The headers say that this is an event stream which nobody may keep, change or compress, and that the connection ends."""
        with open_stream(server, "/ticks?count=1") as client:
            headers = client.headers
            assert headers["content-type"] == "text/event-stream; charset=utf-8"
            assert headers["cache-control"] == "no-cache, no-transform"
            assert headers["x-accel-buffering"] == "no"
            assert headers["connection"] == "close"
            assert headers["transfer-encoding"] == "chunked"
            assert "content-length" not in headers

    def test_retry_comes_first(self, server: Server) -> None:
        """A stream's `retry` stands before its first event."""
        client = open_stream(server, "/told-when-to-return")
        assert client.read_until_closed() == "clean"
        assert bytes(client.body) == b"retry: 1234\n\ndata: one\n\n"

    def test_sent_from_nested_code(self, server: Server) -> None:
        """What nested code sends arrives at once, in order with what is yielded."""
        client = open_stream(server, "/nested", headers={"Last-Event-ID": "ä7"})
        events = client.events(10)
        assert [event.json()["n"] for event in events[:9]] == list(range(9))
        assert [event.event for event in events[:9]] == ["message", "sent", "sent"] * 3
        assert [event.id for event in events[:9] if event.id] == ["s1", "s2", "s4", "s5", "s7", "s8"]
        assert_at_once(events[:9])
        assert events[9].json() == {"sent": 9, "closed": False, "last": "ä7"}

    def test_a_generator_without_events(self, server: Server) -> None:
        """A generator that yields nothing is an empty stream with a clean end."""
        client = open_stream(server, "/closing")
        assert client.read_until_closed() == "clean"
        assert (client.status, bytes(client.body)) == (200, b"")

    def test_what_cannot_be_sent(self, server: Server) -> None:
        """What can't be an event, or is larger than `SSE_MAX_EVENT_BYTES`, is raised where it was yielded or sent."""
        client = open_stream(server, "/invalid")
        assert client.read_until_closed() == "clean"
        assert [event.data for event in client.arrived] == ["data", "data", "data", "data", "event"]


class TestKeepalive:
    """Idle streams are kept alive."""

    def test_by_option(self, server: Server) -> None:
        """A silent generator's client gets `:keepalive` and one LF again and again, each within the interval."""
        client = open_stream(server, "/kept-alive")
        opened = client.next_event().at
        times = [opened, *(client.next_comment().at for _ in range(5))]
        assert bytes(client.body) == b"data: open\n\n" + b":keepalive\n" * 5
        gaps = [after - before for before, after in itertools.pairwise(times)]
        assert min(gaps) > 0.15
        assert statistics.median(gaps) < 0.45

    def test_by_setting(self, serve: Serve) -> None:
        """`SSE_KEEPALIVE_INTERVAL` does the same for all streams, before their first event too, and only for idle ones."""
        server = serve(APP, env={"SSE_KEEPALIVE_INTERVAL": "0.3"})
        mute = open_stream(server, "/mute")
        with open_stream(server, "/ticks?count=20&seconds=0.1") as busy:
            assert busy.read_until_closed() == "clean"
            assert busy.comments == []
        assert mute.next_comment().text == "keepalive"
        mute.read_available()
        assert set(bytes(mute.body).splitlines(keepends=True)) == {b":keepalive\n"}
        assert 3 <= len(mute.comments) <= 9

    def test_spread(self, server: Server) -> None:
        """Streams that had their last event at the same time don't all get their keepalive at the same time."""
        clients = [open_stream(server, "/kept-alive-in-seconds") for _ in range(20)]
        opened = [client.next_event().at for client in clients]

        def all_kept_alive() -> bool:
            for client in clients:
                client.read_available()
            return all(client.comments for client in clients)

        wait_until(all_kept_alive, 10.0)
        times = [client.comments[0].at - at for client, at in zip(clients, opened, strict=True)]
        # More than one turn of the timer.
        assert max(times) - min(times) > 0.15


class TestErrorsInMidStream:
    """After the first event an error is an event."""

    def test_generic_message(self, server: Server) -> None:
        """The client is told that there was an error and not which one; the log has the traceback; the end is clean."""
        client = open_stream(server, "/fails?error=value&name=generic")
        assert client.read_until_closed() == "clean"
        one, error = client.arrived
        assert (one.data, error.event) == ("one", "error")
        told = error.json()
        assert set(told) == {"error", "error_type", "timestamp"}
        assert (told["error_type"], "1234" in error.data) == ("internal_error", False)
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", told["timestamp"])
        server.wait_for_log(r"^ValueError: the password is 1234$")
        server.wait_for_log(r"stream closed path=/fails reason=error ")

    def test_stream_error(self, server: Server) -> None:
        """A `StreamError`'s own message, type and details are for the client."""
        client = open_stream(server, "/fails?error=told")
        assert client.read_until_closed() == "clean"
        told = client.arrived[-1].json()
        assert (told["error"], told["error_type"], told["details"]) == ("no tokens left", "quota", {"left": 0})

    def test_debug_mode(self, serve: Serve) -> None:
        """In debug mode the client is told the message of any error."""
        client = open_stream(serve(DEBUG_APP), "/fails?error=value")
        assert client.read_until_closed() == "clean"
        told = client.arrived[-1].json()
        assert (told["error"], told["error_type"]) == ("the password is 1234", "ValueError")


class TestLifecycle:
    """Streams that tell of their beginning and end."""

    def test_start_and_complete(self, server: Server) -> None:
        """`start` comes first, with what the user adds, and `complete` last, with the generator's result and a final id."""
        client = open_stream(server, "/work")
        assert client.read_until_closed() == "clean"
        start, step, complete = client.arrived
        assert [start.event, step.event, complete.event] == ["start", "message", "complete"]
        assert set(start.json()) == {"stream", "timestamp", "model"}
        assert start.json()["model"] == "small"
        assert complete.json()["result"] == {"steps": 1}
        assert complete.id

    @pytest.mark.parametrize("query", ["", "&error=value"], ids=["complete", "error"])
    def test_finished_stays_finished(self, server: Server, query: str) -> None:
        """A client that comes back with the last event's id gets 204, and the view's work isn't done again."""
        name = f"finished{query}"
        client = open_stream(server, f"/work?name={name.replace('&', '%26')}{query}")
        assert client.read_until_closed() == "clean"
        assert client.arrived[-1].event == ("error" if query else "complete")
        reply = get(server, f"/work?name={name.replace('&', '%26')}{query}", headers={"Last-Event-ID": client.last_event_id})
        assert (reply.status, reply.body) == (204, b"")
        assert len(notes(server, name)) == 1

    def test_another_id_runs_it(self, server: Server) -> None:
        """A client that comes back with any other id gets the stream."""
        client = open_stream(server, "/work", headers={"Last-Event-ID": "0123456789abcdef-1"})
        assert client.read_until_closed() == "clean"
        assert client.arrived[-1].event == "complete"


class TestLimits:
    """Open streams count against `SSE_MAX_STREAMS`, and against nothing else."""

    def test_worker_connections_and_max_streams(self, serve: Serve) -> None:
        """Four times `--worker-connections` streams leave room for requests; one stream too many gets 503 until another goes."""
        server = serve(APP, args=["--worker-connections", "5"], env={"SSE_MAX_STREAMS": "20"})
        clients = [open_stream(server, "/silent") for _ in range(20)]
        started = time.monotonic()
        assert [get(server, "/plain").text for _ in range(20)] == ["plain"] * 20
        assert time.monotonic() - started < 2
        reply = get(server, "/silent")
        assert (reply.status, reply.headers["content-type"]) == (503, "application/json")
        assert reply.json()["limit"] == "SSE_MAX_STREAMS"
        assert 1 <= int(reply.headers["retry-after"]) <= 60
        clients.pop().hang_up()
        wait_until(lambda: stats(server)["streams"] == 19)
        clients.append(open_stream(server, "/silent"))
        assert clients[-1].next_event().data == "open"
        assert get(server, "/silent").status == 503
        assert stats(server)["streams_refused"] == 2

    def test_refusal_for_browsers(self, serve: Serve) -> None:
        """With `SSE_REFUSE = "retry"` it gets an empty stream instead that names the limit and says when to come back."""
        server = serve(APP, env={"SSE_MAX_STREAMS": "1", "SSE_REFUSE": '"retry"'})
        with open_stream(server, "/silent"):
            refused = [open_stream(server, "/silent") for _ in range(5)]
            for client in refused:
                assert client.status == 200
                assert client.headers["content-type"] == "text/event-stream; charset=utf-8"
                assert client.read_until_closed() == "clean"
                assert client.arrived == []
                assert "SSE_MAX_STREAMS" in client.comments[0].text
            delays = {client.frames.retry_ms for client in refused}
            assert len(delays) > 1, "no jitter"
            assert all(delay is not None and 500 <= delay <= 60_000 for delay in delays)
        wait_for_no_streams(server)
        assert open_stream(server, "/silent").next_event().data == "open"

    @pytest.mark.parametrize("path", ["/ticks?count=2", "/fails?error=value", "/closing", "/deadline", "/aging"])
    def test_a_slot_is_freed(self, server: Server, path: str) -> None:
        """However a stream ends, it is counted out."""
        open_stream(server, path).read_until_closed()
        wait_until(lambda: not [each for each in get(server, "/sinks").json() if each["path"] == path.partition("?")[0]])


class TestLog:
    """Two lines for each stream."""

    def test_one_line_at_each_end(self, serve: Serve) -> None:
        """When it opens gunicorn writes one, when it closes we do: path, reason, seconds, events and bytes, no query."""
        server = serve(APP)
        access = re.compile(r'"GET /ticks\?count=3&seconds=0\.3&secret=1 HTTP/1\.1" 200 ')
        closed = re.compile(r"stream closed path=/ticks reason=(\S+) seconds=(\S+) events=(\d+) bytes=(\d+)\b.*")
        client = open_stream(server, "/ticks?count=3&seconds=0.3&secret=1")
        client.next_event()
        server.wait_for_log(access.pattern, 0.25)
        assert not closed.search(server.log())
        assert client.read_until_closed() == "clean"
        found = server.wait_for_log(closed.pattern)
        assert (found[1], int(found[3]), int(found[4])) == ("completed", 3, len(client.body))
        assert 0.6 <= float(found[2]) < 0.9
        assert "secret" not in found[0]
        assert (len(access.findall(server.log())), len(closed.findall(server.log()))) == (1, 1)

    def test_stats(self, serve: Serve) -> None:
        """`sse.stats()` counts what is open, what was opened, how it ended, and what was sent."""
        server = serve(APP)
        assert stats(server)["streams_opened"] == 0
        with open_stream(server, "/silent") as client:
            client.next_event()
            found = stats(server)
            assert (found["streams"], found["streams_opened"], found["events_sent"]) == (1, 1, 1)
        open_stream(server, "/ticks?count=5&seconds=0").read_until_closed()
        wait_for_no_streams(server)
        found = stats(server)
        assert (found["streams_opened"], found["events_sent"], found["streams_stuck"]) == (2, 6, 0)
        assert found["streams_closed"] == {"disconnected": 1, "completed": 1}
        assert 0 <= found["max_lag_seconds"] < 5
