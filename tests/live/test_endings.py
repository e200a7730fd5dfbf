"""How a stream ends, under `StreamWorker`: hang-ups, slow clients, deadlines, ages, and generators that won't have it."""

from __future__ import annotations

import re
import signal
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Final

import pytest

from tests.conftest import Serve
from tests.live import process
from tests.live.client import StreamClient, get, open_stream
from tests.live.journal import notes, stats, wait_for_no_streams, wait_for_note, whats
from tests.live.process import wait_until
from tests.live.server import Server

APP = "tests.live.apps.streams_app:create_app()"
#: The same, with less patience for generators that don't end.
CLINGING_APP = """
    import sseflask.stream

    sseflask.stream.STUCK_SECONDS = 0.5
    from tests.live.apps.streams_app import create_app

    app = create_app()
"""
#: Seconds after which a generator must have heard of its client's hang-up.
HEARD = 1.0


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One worker, with little patience for slow clients."""
    with Server(APP, tmp_path_factory.mktemp("endings"), env={"SSE_SEND_TIMEOUT": "2"}) as server:
        yield server


def hang_up_behind_unread_bytes(client: StreamClient) -> None:
    """Leaves after sending bytes that nobody at the other end will ever read."""
    client.send(b"unasked for" * 500)
    client.hang_up()


LEAVING: Final[dict[str, Callable[[StreamClient], None]]] = {
    "hang-up": StreamClient.hang_up,
    "reset": StreamClient.reset,
    "behind unread bytes": hang_up_behind_unread_bytes,
}


class TestHangUp:
    """A generator hears of its client's hang-up where it sleeps."""

    @pytest.mark.parametrize("how", LEAVING)
    def test_finally_runs(self, server: Server, how: str) -> None:
        """The `finally` of a generator that sleeps for an hour runs at once when its client leaves; the reason is in the log."""
        name = f"leaving {how}"
        client = open_stream(server, f"/silent?name={name.replace(' ', '+')}")
        client.next_event()
        left = time.monotonic()
        LEAVING[how](client)
        assert wait_for_note(server, name, "ended")["at"] - left < HEARD
        _, raised, _ = notes(server, name)
        assert (raised["error"], raised["why"]) == ("StreamClosed", "disconnected")
        server.wait_for_log(r"stream closed path=/silent reason=disconnected .* events=1 bytes=12\b")

    def test_before_the_first_event(self, server: Server) -> None:
        """So does that of one that has yielded nothing yet."""
        client = open_stream(server, "/mute?name=mute")
        left = time.monotonic()
        client.hang_up()
        assert wait_for_note(server, "mute", "ended")["at"] - left < HEARD

    def test_before_the_headers(self, server: Server) -> None:
        """So does that of one whose client left before it was sent the headers, once they are due."""
        client = open_stream(server, "/mute?name=early", wait_for_head=False)
        wait_for_note(server, "early", "began")
        client.hang_up()
        assert wait_for_note(server, "early", "ended")["at"] - notes(server, "early")[0]["at"] < HEARD

    def test_a_generator_that_is_busy(self, server: Server) -> None:
        """So does that of one that yields all the time."""
        client = open_stream(server, "/flood?name=busy&size=100")
        client.events(100)
        left = time.monotonic()
        client.hang_up()
        assert wait_for_note(server, "busy", "ended")["at"] - left < HEARD

    def test_two_hundred_times(self, server: Server) -> None:
        """Two hundred clients that leave, one after another and each in its way, leave nothing: stream, greenlet, socket, file."""
        open_stream(server, "/ticks").read_until_closed()
        wait_for_no_streams(server)
        worker = server.worker_pid()
        greenlets = get(server, "/greenlets").json()["count"]
        files = len(process.open_files(worker))
        left = []
        for n in range(200):
            client = open_stream(server, "/silent?name=many")
            client.next_event()
            left.append(time.monotonic())
            list(LEAVING.values())[n % len(LEAVING)](client)
        wait_until(lambda: whats(server, "many").count("ended") == 200, HEARD + 1)
        # Each has its own greenlet: the ends come in the order of the hang-ups, but for neighbours.
        ended = sorted(note["at"] for note in notes(server, "many") if note["what"] == "ended")
        delays = [end - start for start, end in zip(left, ended, strict=True)]
        assert max(delays) < HEARD
        assert statistics.median(delays) < 0.1
        wait_for_no_streams(server)
        wait_until(lambda: get(server, "/greenlets").json()["count"] <= greenlets, message="no greenlet left")
        wait_until(lambda: len(process.open_files(worker)) <= files, message="no file left")

    def test_all_at_once(self, server: Server) -> None:
        """A hundred clients that leave at the same time are all noticed."""
        clients = [open_stream(server, "/silent?name=all", wait_for_head=False) for _ in range(100)]
        for client in clients:
            client.next_event(10)
        left = time.monotonic()
        for client in clients:
            client.hang_up()
        wait_until(lambda: whats(server, "all").count("ended") == 100, HEARD + 1)
        assert max(note["at"] for note in notes(server, "all")) - left < HEARD


class TestSlowClients:
    """A client that doesn't read holds up its own generator only."""

    def test_a_stalled_reader(self, server: Server) -> None:
        """Five that don't read slow nobody down, take no memory, and are cut after `SSE_SEND_TIMEOUT`; their `finally` runs."""
        worker = server.worker_pid()
        before = process.resident_bytes(worker)
        stalled = [open_stream(server, "/flood?name=stalled", receive_buffer=4096) for _ in range(5)]
        opened = time.monotonic()
        with open_stream(server, "/ticks?count=15&seconds=0.05") as reader:
            delays = []
            for n in range(15):
                event = reader.next_event()
                delays.append(event.at - event.json()["at"])
                if n % 3 == 0:
                    started = time.monotonic()
                    assert get(server, "/plain").text == "plain"
                    assert time.monotonic() - started < 0.5
        assert sorted(delays)[-2] < 0.1
        assert time.monotonic() - opened < 2
        assert stats(server)["streams"] >= 5, "cut too early"
        assert process.resident_bytes(worker) - before < 10_000_000
        wait_until(lambda: whats(server, "stalled").count("ended") == 5, 4)
        raised = [note for note in notes(server, "stalled") if note["what"] == "raised"]
        assert {(note["error"], note["why"]) for note in raised} == {("StreamClosed", "slow")}
        assert len(re.findall(r"stream closed path=/flood reason=slow ", server.log())) == 5
        for client in stalled:
            assert client.read_until_closed() in ("reset", "cut")

    def test_a_slow_reader(self, server: Server) -> None:
        """A client that reads slowly gets each byte of a finished stream and a clean end, though it sent bytes unasked.

        Closing a socket whose inbound bytes are unread resets the connection, and what the client hasn't read yet is lost.
        """
        client = open_stream(server, "/burst?name=burst&size=150000", receive_buffer=4096)
        assert client.next_event().data == "ready"
        client.send(b"unasked for" * 500)
        get(server, "/go?name=burst")
        count = len(client.body)
        while client.ended is None and count < 150_000:
            count = len(client.read_bytes(count + 1))
            time.sleep(0.005)
        assert client.read_until_closed() == "clean"
        assert client.arrived[-1].data == "x" * 150_000

    def test_a_reader_that_comes_late(self, server: Server) -> None:
        """So does one that begins to read after all was sent and the server is done with the stream."""
        client = open_stream(server, "/burst?name=after&size=150000")
        assert client.next_event().data == "ready"
        client.send(b"unasked for" * 500)
        get(server, "/go?name=after")
        wait_for_note(server, "after", "ended")
        wait_until(lambda: not [each for each in get(server, "/sinks").json() if each["path"] == "/burst"])
        assert client.read_until_closed() == "clean"
        assert client.arrived[-1].data == "x" * 150_000

    def test_the_socket_is_closed_in_the_end(self, server: Server) -> None:
        """A client that has been sent everything and doesn't hang up keeps no socket of ours open for long."""
        worker = server.worker_pid()
        before = process.open_sockets(worker)
        open_stream(server, "/ticks?count=1")
        wait_until(lambda: process.open_sockets(worker) <= before, 5, "the socket to be closed")


class TestDeadlines:
    """Streams end when their time is up."""

    def test_timeout(self, server: Server) -> None:
        """A deadline that passes raises `StreamTimeout` where the generator sleeps, and is an error event at the client."""
        client = open_stream(server, "/deadline?name=deadline")
        assert client.read_until_closed() == "clean"
        first, error = client.arrived
        assert 0.4 < error.at - first.at < 0.9
        assert (error.event, error.json()["error_type"]) == ("error", "timeout")
        assert set(error.json()) == {"error", "error_type", "timestamp"}
        wait_for_note(server, "deadline", "ended")
        began, raised, _ = notes(server, "deadline")
        assert (raised["error"], raised["why"]) == ("StreamTimeout", "timeout")
        assert 0.45 < raised["at"] - began["at"] < 0.9
        server.wait_for_log(r"stream closed path=/deadline reason=timeout ")

    def test_heartbeat(self, server: Server) -> None:
        """`heartbeat` puts the deadline off, again and again, within the time-out; without it the stream ends."""
        client = open_stream(server, "/beating?name=beating")
        assert client.read_until_closed() == "clean"
        answers, worked, error = client.arrived
        assert answers.json() == {"too_far": False, "nothing": False}
        assert (worked.data, error.json()["error_type"]) == ("worked", "timeout")
        assert worked.at - answers.at > 1.1
        wait_for_note(server, "beating", "ended")
        assert whats(server, "beating") == ["began", "fell silent", "raised", "ended"]

    def test_heartbeat_without_a_timeout(self, server: Server) -> None:
        """`heartbeat` says so when there is no deadline."""
        assert open_stream(server, "/without-deadline").next_event().json() == {"extended": False}

    def test_max_age(self, server: Server) -> None:
        """A stream that has lived for `max_age` ends cleanly, without an error, and its `finally` runs."""
        client = open_stream(server, "/aging?name=aging")
        assert client.read_until_closed() == "clean"
        assert [event.data for event in client.arrived] == ["open"]
        assert client.ended_at is not None
        assert 0.4 < client.ended_at - client.arrived[0].at < 0.9
        assert wait_for_note(server, "aging", "raised")["why"] == "max_age"
        server.wait_for_log(r"stream closed path=/aging reason=max_age ")


class TestGeneratorsThatGoOn:
    """What is raised in a generator ends it, and is raised once."""

    @pytest.mark.parametrize("query", ["", "&flood=1"], ids=["a reader", "a stalled reader"])
    def test_tidying_is_not_interrupted(self, server: Server, query: str) -> None:
        """A generator that tidies up after its deadline isn't interrupted again when its client is gone meanwhile."""
        name = f"tidy{len(query)}"
        client = open_stream(server, f"/tidy?name={name}{query}", receive_buffer=4096)
        wait_for_note(server, name, "tidying")
        client.reset()
        wait_for_note(server, name, "ended")
        assert whats(server, name) == ["began", "tidying", "tidied", "raised", "ended"]
        assert notes(server, name)[3]["error"] == "StreamTimeout"

    def test_a_hang_up_does_not_interrupt_twice(self, server: Server) -> None:
        """A generator that tidies up after a hang-up isn't interrupted by the deadline that passes meanwhile."""
        client = open_stream(server, "/tidy?name=gone")
        client.next_event()
        client.hang_up()
        wait_for_note(server, "gone", "ended")
        assert whats(server, "gone") == ["began", "tidying", "tidied", "raised", "ended"]
        assert notes(server, "gone")[3]["why"] == "disconnected"

    def test_a_drain_does_not_interrupt_twice(self, serve: Serve) -> None:
        """Nor by the end of its worker, which waits for it."""
        server = serve(APP)
        client = open_stream(server, "/tidy?name=drained")
        client.next_event()
        client.hang_up()
        wait_for_note(server, "drained", "tidying")
        server.signal(signal.SIGTERM)
        assert server.wait_for_exit(5) == 0
        found = re.findall(r"^note drained (.*)$", server.log(), re.MULTILINE)
        assert found == ["began", "tidying", "tidied", "raised", "ended"]

    def test_late_events_are_dropped(self, server: Server) -> None:
        """What a generator yields or sends after it was told of its end never reaches the client, and does no harm."""
        client = open_stream(server, "/stubborn?name=stubborn")
        assert client.read_until_closed() == "clean"
        assert [event.event for event in client.arrived] == ["message", "error"]
        wait_for_note(server, "stubborn", "ended")
        assert whats(server, "stubborn") == ["began", "caught", "went on", "went on", "went on", "ended"]

    @pytest.mark.parametrize("retried", ["Exception", "TimeoutError", "OSError"])
    @pytest.mark.parametrize("ending", ["hang-up", "deadline"])
    def test_retrying(self, server: Server, retried: str, ending: str) -> None:
        """A generator that retries on `Exception`, `TimeoutError` or `OSError` ends all the same."""
        name = f"{retried}-{ending}"
        deadline = "&timeout=0.4" if ending == "deadline" else ""
        client = open_stream(server, f"/retrying?name={name}&retried={retried}{deadline}")
        client.next_event()
        if ending == "hang-up":
            client.hang_up()
        else:
            assert client.read_until_closed() == "clean"
        wait_for_note(server, name, "ended", HEARD)
        assert whats(server, name) == ["began", "raised", "ended"]

    def test_one_that_clings(self, serve: Serve) -> None:
        """A generator that swallows what is raised in it is logged with its stack, and counted, and still raised in only once."""
        server = serve(CLINGING_APP)
        client = open_stream(server, "/clinging?name=clinging")
        client.next_event()
        client.hang_up()
        server.wait_for_log(r"the generator of the stream at /clinging still runs after its stream ended \(disconnected\):$", 3)
        server.wait_for_log(r'streams_app\.py", line \d+, in clinging$')
        assert stats(server)["streams_stuck"] == 1
        wait_for_note(server, "clinging", "ended")
        assert whats(server, "clinging") == ["clings", "ended"]
        wait_for_no_streams(server)


class TestCallbacks:
    """What `current_stream.on_close` was given is called, wherever the end comes from."""

    def test_after_the_generator(self, server: Server) -> None:
        """A callback may wait, and one that fails is logged and keeps none of the others from running."""
        open_stream(server, "/closing?name=closing").read_until_closed()
        wait_for_note(server, "closing", "callback")
        server.wait_for_log("a callback that fails on purpose")

    def test_after_the_client(self, server: Server) -> None:
        """So it may where the client takes the last bytes long after the generator has ended."""
        client = open_stream(server, "/closing?name=late&flood=1", receive_buffer=4096)
        wait_for_note(server, "late", "ended")
        assert whats(server, "late") == ["began", "raised", "ended"]
        assert client.read_until_closed() == "clean"
        assert client.arrived[-1].json()["error_type"] == "timeout"
        wait_for_note(server, "late", "callback")

    def test_after_a_cut(self, server: Server) -> None:
        """So it may where a client never takes the last bytes, and it keeps no other stream waiting."""
        client = open_stream(server, "/closing?name=cut&flood=1", receive_buffer=4096)
        wait_for_note(server, "cut", "callback", 4)
        assert client.read_until_closed() in ("reset", "cut")


class TestCallOnClose:
    """What a response's `call_on_close` was given follows the stream's end, not the request's."""

    @pytest.mark.parametrize("query", ["name=returned", "name=failed&error=value", "name=told&error=told"])
    def test_end(self, server: Server, query: str) -> None:
        """It is called once when the generator returns, and when it fails before its first event."""
        get(server, f"/called?{query}")
        name = query.partition("&")[0].removeprefix("name=")
        wait_for_note(server, name, "called")
        assert whats(server, name).count("called") == 1

    def test_hang_up(self, server: Server) -> None:
        """It is called when the client hangs up, and not before."""
        client = open_stream(server, "/called?name=left&sleep=1")
        client.next_event()
        assert whats(server, "left") == ["began"]
        client.hang_up()
        wait_for_note(server, "left", "called")
        assert whats(server, "left") == ["began", "called"]

    def test_never_ran(self, serve: Serve) -> None:
        """It is called where no generator ever runs: for HEAD, and where there is no room for a stream."""
        server = serve(APP, env={"SSE_MAX_STREAMS": "1"})
        assert get(server, "/called?name=head", method="HEAD").status == 200
        wait_for_note(server, "head", "called")
        with open_stream(server, "/silent"):
            assert get(server, "/called?name=refused").status == 503
            wait_for_note(server, "refused", "called")
        assert (whats(server, "head"), whats(server, "refused")) == (["called"], ["called"])
