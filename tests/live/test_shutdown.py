"""A worker that is told to stop, by TERM, HUP, `--max-requests` or `--reload`, ends its open streams cleanly and leaves."""

from __future__ import annotations

import os
import re
import signal
import socket
import time
from collections.abc import Callable, Sequence
from typing import TypeVar, cast

import pytest

from tests.conftest import Serve
from tests.live import process
from tests.live.client import Ending, StreamClient, connect, get, open_stream, read_all
from tests.live.process import wait_until
from tests.live.server import Server, ServerEnded

Value = TypeVar("Value")

APP = "tests.live.apps.shutdown_app:app"
#: Read from a module of its own, so that a test can touch it.
RELOADED_APP = "from tests.live.apps.shutdown_app import app"
DRAIN = {"SSE_DRAIN_SECONDS": "2"}
#: What a worker gets beyond `SSE_DRAIN_SECONDS`.
GRACE = 1.0
#: Seconds within which what must happen does, on a machine that is busy with other things.
PATIENCE = 30.0


def open_streams(server: Server, count: int, path: str = "/stream") -> list[StreamClient]:
    """Opens streams and waits until each has had its first event."""
    clients = [open_stream(server, f"{path}?n={n}", wait_for_head=False) for n in range(count)]
    for client in clients:
        client.next_event(20)
    return clients


def retries(clients: Sequence[StreamClient]) -> list[int]:
    """The reconnection times that the clients were told."""
    told = [client.frames.retry_ms for client in clients]
    assert None not in told, f"{told.count(None)} of {len(told)} clients were told no retry"
    return [retry for retry in told if retry is not None]


def assert_ended_cleanly(clients: Sequence[StreamClient]) -> None:
    """Each client has had a whole response, and was told to come back after a time of its own."""
    assert [client.ended for client in clients] == ["clean"] * len(clients)
    told = retries(clients)
    assert 1000 <= min(told) <= max(told) <= 3000
    assert len(set(told)) > len(told) // 2, f"no jitter: {sorted(told)}"


def assert_spread(clients: Sequence[StreamClient], seconds: float) -> None:
    """The ends lie all over the time of the drain, no quarter of it without its share."""
    ends = sorted(client.ended_at for client in clients if client.ended_at is not None)
    quarters = [0, 0, 0, 0]
    for end in ends:
        quarters[min(int((end - ends[0]) / seconds * 4), 3)] += 1
    assert ends[-1] - ends[0] > seconds * 0.7, quarters
    assert min(quarters) > len(ends) * 0.1, quarters
    assert max(quarters) < len(ends) * 0.5, quarters


def finished(server: Server, reason: str = "shutdown") -> list[int]:
    """The numbers of the streams whose generators' `finally` has run, in order of the numbers."""
    return sorted(int(n) for n in re.findall(rf"^finally n=(\d+) reason={reason}", server.log(), re.MULTILINE))


def wait_reading(clients: Sequence[StreamClient], condition: Callable[[], Value], timeout: float = 5.0) -> Value:
    """Waits for a condition, and reads the streams meanwhile, so that the times of their ends are exact."""

    def read_and_ask() -> Value:
        for client in clients:
            client.read_available()
        return condition()

    return wait_until(read_and_ask, timeout)


def wait_for_death(pid: int, timeout: float) -> None:
    """Waits until a worker is gone."""
    wait_until(lambda: not process.is_alive(pid), timeout, f"worker {pid} to be gone")


def is_refused(server: Server) -> bool:
    """Whether nobody listens any more."""
    try:
        socket.create_connection(cast("tuple[str, int]", server.address), PATIENCE).close()
    except ConnectionRefusedError:
        return True
    return False


class Watch:
    """Looks how long a worker takes to leave; what it is told to stop by comes right after this is made.

    On a machine whose processors are busy with other things, the tests' own clients among them, nobody can leave in time. So it
    leaves out for how long the worker, and the arbiter that passes a signal on, were ready to run and weren't let.
    """

    def __init__(self, server: Server) -> None:
        self._server = server
        self.worker = server.worker_pid()
        self._starved = process.starved_seconds(self.worker) + process.starved_seconds(server.pid)
        self._began = time.monotonic()

    def seconds(self) -> float:
        """How long it took, once the worker is gone."""
        wait_for_death(self.worker, PATIENCE)
        left, starved = self._server.worker_left(self.worker)
        return left - self._began - (starved + process.starved_seconds(self._server.pid) - self._starved)


class TestTerm:
    """SIGTERM."""

    @pytest.mark.parametrize(("env", "seconds"), [(DRAIN, 2.0), ({}, 5.0)], ids=["2 s", "default"])
    def test_200_streams(self, serve: Serve, env: dict[str, str], seconds: float) -> None:
        """With 200 open streams the server is gone in time, each client had a clean end and each generator its `finally`."""
        server = serve(APP, env=env)
        clients = open_streams(server, 200)
        watch = Watch(server)
        server.signal(signal.SIGTERM)
        read_all(clients, PATIENCE)
        for client in clients:
            client.hang_up()
        assert server.wait_for_exit(PATIENCE) == 0
        assert not process.is_alive(watch.worker)
        assert watch.seconds() < seconds + GRACE
        assert_ended_cleanly(clients)
        assert_spread(clients, seconds)
        assert finished(server) == list(range(200))

    def test_clients_that_stay(self, serve: Serve) -> None:
        """Clients that leave their side of the connection open don't keep the worker."""
        server = serve(APP, env={"SSE_DRAIN_SECONDS": "1"})
        clients = open_streams(server, 10)
        watch = Watch(server)
        server.signal(signal.SIGTERM)
        assert watch.seconds() < 1 + GRACE
        read_all(clients)
        assert_ended_cleanly(clients)

    def test_without_streams(self, serve: Serve) -> None:
        """A worker that is empty leaves at once, whatever `SSE_DRAIN_SECONDS` is, and Python has nothing to complain of then."""
        server = serve(APP, env={"SSE_DRAIN_SECONDS": "20"})
        open_streams(server, 1)[0].hang_up()
        wait_until(lambda: get(server, "/pid").json()["streams"] == 0)
        server.signal(signal.SIGTERM)
        assert server.wait_for_exit(2.5) == 0
        assert "Exception ignored" not in server.log()

    def test_one_stream(self, serve: Serve) -> None:
        """The worker leaves when its last stream has ended, not when the time for it is up."""
        server = serve(APP, env={"SSE_DRAIN_SECONDS": "20"})
        (client,) = open_streams(server, 1)
        server.signal(signal.SIGTERM)
        assert client.read_until_closed(1) == "clean"
        client.hang_up()
        assert server.wait_for_exit(2.5) == 0

    def test_retry_of_the_app(self, serve: Serve) -> None:
        """The reconnection time is spread around `SSE_RETRY` where the app has one."""
        server = serve(APP, env={"SSE_DRAIN_SECONDS": "0.5", "SSE_RETRY": "10000"})
        clients = open_streams(server, 20)
        server.signal(signal.SIGTERM)
        assert read_all(clients) == ["clean"] * 20
        assert 5000 <= min(retries(clients)) < 10000 < max(retries(clients)) <= 15000

    def test_nothing_is_lost(self, serve: Serve) -> None:
        """A stream in full flow ends with whole events, in order, none missing, and its `retry:` after them."""
        server = serve(APP, env={"SSE_DRAIN_SECONDS": "0.5"})
        clients = open_streams(server, 10, "/counting")
        server.signal(signal.SIGTERM)
        assert read_all(clients) == ["clean"] * 10
        for client in clients:
            assert [event.json()["n"] for event in client.arrived] == list(range(len(client.arrived)))
            assert re.search(rb"\n\nretry: \d+\n\n\Z", client.body)

    def test_http_1_0(self, serve: Serve) -> None:
        """A stream without chunks ends with its `retry:` and the end of the connection, not with a reset."""
        server = serve(APP, env={"SSE_DRAIN_SECONDS": "0.5"})
        client = open_stream(server, "/stream", version="1.0")
        client.next_event()
        server.signal(signal.SIGTERM)
        assert (client.read_until_closed(), client.framing) == ("clean", "close")
        assert client.frames.retry_ms is not None

    def test_slow_finally(self, serve: Serve) -> None:
        """A generator whose `finally` takes a second is waited for; its client has its end before that."""
        server = serve(APP, env={"SSE_DRAIN_SECONDS": "0.2"})
        client = open_stream(server, "/stream?n=7&slow=1")
        client.next_event()
        server.signal(signal.SIGTERM)
        assert client.read_until_closed(0.9) == "clean"
        assert finished(server) == []
        client.hang_up()
        assert server.wait_for_exit(3) == 0
        assert finished(server) == [7]

    def test_slow_callback(self, serve: Serve) -> None:
        """What is called at a stream's end may wait, and is waited for when the worker leaves."""
        server = serve(APP, env={"SSE_DRAIN_SECONDS": "0.2"})
        client = open_stream(server, "/remembered")
        client.next_event()
        server.signal(signal.SIGTERM)
        assert client.read_until_closed(PATIENCE) == "clean"
        client.hang_up()
        assert server.wait_for_exit(PATIENCE) == 0
        assert re.search("^remembered$", server.log(), re.MULTILINE)

    def test_a_stream_that_opens(self, serve: Serve) -> None:
        """A stream that waits for its first event gets its headers, `retry:` and a clean end; its `finally` runs."""
        server = serve(APP, env={"SSE_DRAIN_SECONDS": "0.5", "SSE_OPEN_TIMEOUT": "60"})
        client = open_stream(server, "/opening", wait_for_head=False)
        server.wait_for_log("^opening")
        server.signal(signal.SIGTERM)
        assert client.read_until_closed(3) == "clean"
        assert client.status == 200
        assert client.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert client.frames.retry_ms is not None
        assert server.wait_for_exit(3) == 0
        assert "finally opening" in server.log()

    def test_a_stream_opened_while_draining(self, serve: Serve) -> None:
        """A stream asked for while the worker drains is answered with 200, a comment that says why, `retry:` and the end."""
        server = serve(APP, env={"SSE_DRAIN_SECONDS": "3"})
        clients = open_streams(server, 20)
        connection = connect(server)
        # Connections are accepted in their order, and after the signal no more are.
        get(server, "/pid")
        server.signal(signal.SIGTERM)
        wait_reading(clients, lambda: any(client.ended for client in clients), 2)
        late = StreamClient(connection, method="GET", version="1.1")
        server.adopt(late)
        late.send(b"GET /stream?n=999 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert late.read_until_closed(2) == "clean"
        assert (late.status, late.headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
        assert [comment.text for comment in late.comments] == ["refused: the worker is stopping"]
        assert late.frames.retry_ms is not None
        assert 1000 <= late.frames.retry_ms <= 3000
        assert late.arrived == []
        read_all(clients, 5)
        assert_ended_cleanly(clients)
        assert 999 not in finished(server, "none")

    def test_a_handshake_under_way(self, serve: Serve) -> None:
        """A connection that was accepted before is served, though its TLS handshake ends when no other is accepted any more."""
        server = serve(APP, tls=True, env={"SSE_DRAIN_SECONDS": "2"})
        clients = open_streams(server, 2)
        context = server.tls_context()
        assert context is not None
        with socket.create_connection(cast("tuple[str, int]", server.address), PATIENCE) as early:
            get(server, "/pid")
            server.signal(signal.SIGTERM)
            wait_reading(clients, lambda: any(client.ended for client in clients), PATIENCE)
            wait_until(lambda: is_refused(server), PATIENCE)
            with context.wrap_socket(early, server_hostname="localhost") as secured:
                secured.sendall(b"GET /pid HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
                assert secured.recv(12) == b"HTTP/1.1 200"

    def test_connections_that_wait(self, serve: Serve) -> None:
        """Who had connected before the worker was told, and was let wait, is served: more of them than it takes in one turn."""
        server = serve(APP)
        until = server.directory / "go-on"
        blocking = open_stream(server, f"/block?until={until}", headers={"Connection": "close"}, wait_for_head=False)
        server.wait_for_log("^block began")
        waiting = [open_stream(server, "/pid", headers={"Connection": "close"}, wait_for_head=False) for _ in range(300)]
        server.signal(signal.SIGTERM)
        server.wait_for_log("Handling signal: term")
        until.touch()
        assert read_all([blocking, *waiting], PATIENCE) == ["clean"] * 301
        assert {client.status for client in waiting} == {200}
        assert server.wait_for_exit(PATIENCE) == 0

    def test_a_plain_request_finishes(self, serve: Serve) -> None:
        """A plain request that is under way gets its whole answer, while the streams end beside it."""
        server = serve(APP, env={"SSE_DRAIN_SECONDS": "1"})
        clients = open_streams(server, 5)
        slow = open_stream(server, "/slow?seconds=2", headers={"Connection": "close"}, wait_for_head=False)
        server.wait_for_log("^slow began")
        server.signal(signal.SIGTERM)
        assert read_all(clients, 1 + GRACE) == ["clean"] * 5
        assert slow.status == 0
        assert slow.read_until_closed(5) == "clean"
        assert (slow.status, bytes(slow.body)) == (200, b"done")
        assert server.wait_for_exit(3) == 0

    def test_a_client_that_does_not_read(self, serve: Serve) -> None:
        """A client that leaves everything unread costs at most the graceful time-out, and the others nothing."""
        server = serve(APP, env={"SSE_DRAIN_SECONDS": "0.5"}, args=["--graceful-timeout", "3"])
        clients = open_streams(server, 5)
        stalled = open_stream(server, "/counting", receive_buffer=4096)
        server.signal(signal.SIGTERM)
        assert read_all(clients, 2) == ["clean"] * 5
        assert server.wait_for_exit(5) == 0
        assert stalled.read_until_closed() == "clean"

    def test_quicker_than_without_us(self, serve: Serve) -> None:
        """A plain gevent worker takes its whole graceful time-out and cuts its streams; ours needs neither."""

        def seconds_to_leave(server: Server, path: str) -> tuple[float, set[Ending]]:
            clients = open_streams(server, 10, path)
            began = time.monotonic()
            server.signal(signal.SIGTERM)
            endings = set(read_all(clients, 8))
            for client in clients:
                client.hang_up()
            server.wait_for_exit(8)
            return time.monotonic() - began, endings

        arguments = ["--graceful-timeout", "3"]
        ours, ends = seconds_to_leave(serve(APP, env={"SSE_DRAIN_SECONDS": "1"}, args=arguments), "/stream")
        plain, cuts = seconds_to_leave(serve(APP, worker_class="gevent", args=arguments), "/plain-stream")
        assert ends == {"clean"}
        assert "clean" not in cuts
        assert ours < 2 + GRACE <= plain


class TestReplacement:
    """A worker that gives its place to another."""

    def test_hup(self, serve: Serve) -> None:
        """A new worker serves while the old one drains, and clients that come back go on with it."""
        server = serve(APP, env=DRAIN)
        clients = open_streams(server, 40)
        (old,) = server.ready_workers()
        server.signal(signal.SIGHUP)
        new = wait_reading(clients, lambda: [pid for pid in server.ready_workers() if pid != old])[0]
        wait_reading(clients, lambda: get(server, "/pid").json()["pid"] == new, 2)
        # Still draining: that the new one serves isn't because the old one has gone.
        assert process.is_alive(old)
        read_all(clients, 2 + GRACE)
        assert_ended_cleanly(clients)
        assert_spread(clients, 2)
        again = [open_stream(server, f"/stream?n={100 + n}", headers={"Last-Event-ID": f"id-{n}"}) for n in range(40)]
        told = [client.next_event().json() for client in again]
        assert {each["pid"] for each in told} == {new}
        assert [each["last"] for each in told] == [f"id-{n}" for n in range(40)]
        for client in clients:
            client.hang_up()
        wait_for_death(old, 2)
        assert finished(server) == list(range(40))
        assert get(server, "/pid").json()["streams"] == 40

    def test_who_comes_back_at_once(self, serve: Serve) -> None:
        """A worker that has begun to end its streams accepts none of those that come: they are the next one's."""
        server = serve(APP, env={"SSE_DRAIN_SECONDS": "25"})
        clients = open_streams(server, 20)
        (old,) = server.ready_workers()
        server.signal(signal.SIGHUP)
        wait_reading(clients, lambda: any(client.ended for client in clients), PATIENCE)
        again = [open_stream(server, f"/stream?n={100 + n}", wait_for_head=False) for n in range(20)]
        told = [client.next_event(PATIENCE).json()["pid"] for client in again]
        assert old not in told
        assert process.is_alive(old)

    def test_max_requests(self, serve: Serve) -> None:
        """A worker that has served its requests drains like one that was told to; the next one serves who comes back."""
        server = serve(APP, env=DRAIN, args=["--max-requests", "20"])
        clients = open_streams(server, 19)
        watch = Watch(server)
        get(server, "/pid")
        read_all(clients, PATIENCE)
        assert_ended_cleanly(clients)
        assert_spread(clients, 2)
        for client in clients:
            client.hang_up()
        assert watch.seconds() < 2 + GRACE
        (new,) = server.wait_for_new_workers([watch.worker])
        again = [open_stream(server, f"/stream?n={100 + n}") for n in range(10)]
        assert {client.next_event().json()["pid"] for client in again} == {new}
        assert finished(server) == list(range(19))

    def test_the_arbiter_is_told_that_the_worker_lives(self, serve: Serve) -> None:
        """A worker that drains for longer than `--timeout` isn't killed for it."""
        # An arbiter that was told to stop, or to reload, waits for its workers without looking at their time.
        server = serve(APP, env={"SSE_DRAIN_SECONDS": "6"}, args=["--timeout", "2", "--max-requests", "20"])
        clients = open_streams(server, 19)
        get(server, "/pid")
        read_all(clients, 6 + GRACE)
        assert_ended_cleanly(clients)
        assert_spread(clients, 6)
        for client in clients:
            client.hang_up()
        server.wait_for_log("Worker exiting", 2)
        assert finished(server) == list(range(19))
        assert "WORKER TIMEOUT" not in server.log()

    def test_reload(self, serve: Serve) -> None:
        """A module that changes under `--reload` makes the worker drain, not cut."""
        server = serve(RELOADED_APP, env=DRAIN, args=["--reload"])
        clients = open_streams(server, 20)
        (old,) = server.ready_workers()
        module = server.directory / "app_of_test.py"
        module.write_text(f"{RELOADED_APP}\nCHANGED = True\n")
        server.wait_for_log("Worker reloading", 5)
        read_all(clients, 2 + GRACE)
        assert_ended_cleanly(clients)
        for client in clients:
            client.hang_up()
        (new,) = server.wait_for_new_workers([old])
        assert open_stream(server, "/stream?n=100").next_event().json()["pid"] == new
        assert finished(server) == list(range(20))


def complaints(server: Server) -> list[str]:
    """The lines of a server's output that are neither gunicorn's plain words, nor the access log's, nor the app's own."""
    plain = re.compile(r"\[[^]]+\] \[\d+\] \[INFO\] |127\.0\.0\.1 - - \[|finally n=")
    return [line for line in server.log().splitlines() if not plain.match(line)]


class TestOutput:
    """What a server that stops writes to its standard output and error: all of it is looked at."""

    @pytest.mark.parametrize("stop", ["group INT", "arbiter INT", "arbiter QUIT", "group TERM", "arbiter TERM"])
    def test_stop(self, serve: Serve, stop: str) -> None:
        """However it is told, with Ctrl+C too, which the workers hear twice: no traceback, and nothing that Python ignored."""
        server = serve(APP, env={"SSE_DRAIN_SECONDS": "0.5"}, workers=2)
        clients = open_streams(server, 6)
        whom, name = stop.split()
        number = signal.Signals[f"SIG{name}"]
        if whom == "group":
            os.killpg(server.pid, number)
        else:
            server.signal(number)
        assert server.wait_for_exit(PATIENCE) == 0
        assert complaints(server) == []
        for client in clients:
            client.hang_up()

    def test_replacement(self, serve: Serve) -> None:
        """Neither workers that make way for others, after HUP and `max_requests`, nor an arbiter that does, after USR2."""
        server = serve(APP, env={"SSE_DRAIN_SECONDS": "0.5"}, args=["--max-requests", "5"])
        clients = open_streams(server, 2)
        old = server.ready_workers()
        server.signal(signal.SIGHUP)
        (second,) = server.wait_for_new_workers(old)
        wait_for_death(old[0], PATIENCE)
        clients += open_streams(server, 4)
        get(server, "/pid")
        third = server.wait_for_new_workers([*old, second])
        wait_for_death(second, PATIENCE)
        clients += open_streams(server, 2)
        server.signal(signal.SIGUSR2)
        (arbiter,) = wait_until(lambda: [pid for pid in process.children(server.pid) if pid not in third], PATIENCE)
        wait_until(lambda: len(process.children(arbiter)) == 1, PATIENCE)
        server.signal(signal.SIGTERM)
        assert server.wait_for_exit(PATIENCE) == 0
        os.kill(arbiter, signal.SIGINT)
        wait_for_death(arbiter, PATIENCE)
        assert complaints(server) == []
        for client in clients:
            client.hang_up()


class TestStartUp:
    """What is refused before anything is served."""

    @pytest.mark.parametrize(("drain", "graceful"), [("5", "5"), ("40", "30"), ("5.5", "5")])
    def test_drain_beyond_graceful_timeout(self, serve: Serve, drain: str, graceful: str) -> None:
        """`SSE_DRAIN_SECONDS` at or above `graceful_timeout` is refused by a message that names both and their values."""
        with pytest.raises(ServerEnded) as ended:
            serve(APP, env={"SSE_DRAIN_SECONDS": drain}, args=["--graceful-timeout", graceful])
        found = re.search(r"InvalidSetting: SSE_DRAIN_SECONDS is ([\d.]+); .*graceful_timeout, which is (\d+)", str(ended.value))
        assert found is not None, str(ended.value)
        assert (float(found[1]), found[2]) == (float(drain), graceful)

    def test_drain_just_below_graceful_timeout(self, serve: Serve) -> None:
        """`SSE_DRAIN_SECONDS` just below `graceful_timeout` is fine."""
        server = serve(APP, env={"SSE_DRAIN_SECONDS": "4.9"}, args=["--graceful-timeout", "5"])
        assert get(server, "/pid").status == 200
