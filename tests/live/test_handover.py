"""Which responses `StreamWorker` takes over, and that those it can't take over stream all the same."""

from __future__ import annotations

import re
import time
import zlib
from collections.abc import Iterator

import pytest

from tests.conftest import Serve
from tests.live import process
from tests.live.client import Event, ResponseParser, StreamClient, connect, get, open_stream
from tests.live.http2 import Http2Client, open_http2_stream
from tests.live.journal import sinks, stats, wait_for_no_streams, wait_for_note, whats
from tests.live.process import wait_until
from tests.live.server import Server

APP = "tests.live.apps.streams_app:create_app()"
MIDDLEWARE_APP = "tests.live.apps.middleware_app"
TAKEN_OVER = "SocketSink"
HTTP2 = ["--http-protocols", "h2,h1"]
#: With HTTP/2 one stream stops all other requests of its connection, so the tests ask over other connections.
CLEAR_TEXT = [*HTTP2, "--http2-cleartext", "both"]
GZIP = {"Accept-Encoding": "gzip"}
SHORT_KEEPALIVE = {"SSE_KEEPALIVE_INTERVAL": "0.4"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One worker on a TCP port, for all tests that need no settings of their own."""
    with Server(APP, tmp_path_factory.mktemp("handover"), env={"SSE_SEND_TIMEOUT": "7"}) as server:
        yield server


def assert_one_by_one(events: list[Event]) -> None:
    """The events came in order, and each soon after its yield; one may be late on a busy machine."""
    assert [event.json()["n"] for event in events] == list(range(len(events)))
    delays = sorted(event.at - event.json()["at"] for event in events)
    assert delays[-2] < 0.1, delays


class TestTakenOver:
    """Plain HTTP/1.x streams are taken over."""

    def test_tcp(self, server: Server) -> None:
        """A stream over TCP is; a peer that has vanished is given up by the kernel after `SSE_SEND_TIMEOUT`."""
        with open_stream(server, "/silent") as client:
            client.next_event()
            assert sinks(server, "/silent") == [{"path": "/silent", "kind": TAKEN_OVER, "user_timeout_ms": 7_000}]
        wait_for_no_streams(server)

    def test_one_write(self, server: Server) -> None:
        """The head and the first event of a stream arrive together: they were sent in one write."""
        with connect(server) as client:
            client.sendall(b"GET /silent HTTP/1.1\r\nHost: localhost\r\n\r\n")
            head, _, body = client.recv(65536).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 OK")
        assert body.endswith(b"\n\n\r\n")

    def test_unix_socket(self, serve: Serve) -> None:
        """A stream over a unix socket is, where `TCP_USER_TIMEOUT` can't be set; a hang-up is noticed there too."""
        server = serve(APP, unix=True)
        with open_stream(server, "/ticks?count=10") as client:
            assert_one_by_one(client.events(10))
            assert client.read_until_closed() == "clean"
        client = open_stream(server, "/silent?name=unix")
        client.next_event()
        assert sinks(server, "/silent") == [{"path": "/silent", "kind": TAKEN_OVER}]
        left = time.monotonic()
        client.hang_up()
        assert wait_for_note(server, "unix", "ended")["at"] - left < 1
        assert "Errno 95" not in server.log()

    def test_http_1_0(self, server: Server) -> None:
        """An HTTP/1.0 client's stream is: without chunks, and it ends with the connection."""
        client = open_stream(server, "/ticks?count=5", version="1.0")
        assert (client.framing, "transfer-encoding" in client.headers) == ("close", False)
        assert_one_by_one(client.events(5))
        assert client.read_until_closed() == "clean"
        client = open_stream(server, "/kept-alive?name=1.0", version="1.0")
        assert client.next_comment().text == "keepalive"
        assert [each["kind"] for each in sinks(server, "/kept-alive")] == [TAKEN_OVER]
        client.hang_up()
        wait_for_note(server, "1.0", "ended", 1)

    def test_post(self, server: Server) -> None:
        """A POST's stream is."""
        with open_stream(server, "/silent?name=post", method="POST", body=b"x" * 100_000) as client:
            client.next_event()
            assert [each["kind"] for each in sinks(server, "/silent")] == [TAKEN_OVER]
        wait_for_note(server, "post", "ended", 1)

    def test_second_request_of_a_connection(self, server: Server) -> None:
        """A stream on a connection that has served another request is; the connection ends with it."""
        connection = connect(server)
        request = "GET {} HTTP/1.1\r\nHost: localhost\r\n\r\n"
        connection.sendall(request.format("/plain").encode())
        first, body = ResponseParser(), b""
        while not first.complete:
            body += first.feed(connection.recv(4096))
        assert (body, first.announces_close) == (b"plain", False)
        client = StreamClient(connection, method="GET", version="1.1")
        server.adopt(client)
        client.send(request.format("/ticks?count=5").encode())
        assert_one_by_one(client.events(5))
        assert client.headers["connection"] == "close"
        assert client.read_until_closed() == "clean"

    def test_behind_middlewares(self, serve: Serve) -> None:
        """A stream behind middlewares that wrap the iterable, or change the headers, is; errors and plain pages pass through."""
        server = serve(f"{MIDDLEWARE_APP}:passed_through()")
        with open_stream(server, "/ticks?count=10") as client:
            assert client.headers["x-middleware"] == "yes"
            assert_one_by_one(client.events(10))
            assert client.read_until_closed() == "clean"
        client = open_stream(server, "/silent?name=behind")
        client.next_event()
        assert [each["kind"] for each in sinks(server, "/silent")] == [TAKEN_OVER]
        client.hang_up()
        wait_for_note(server, "behind", "ended", 1)
        assert get(server, "/plain").text == "plain"
        assert "Traceback" not in server.log()

    def test_nothing_is_logged_as_an_error(self, server: Server) -> None:
        """Taking over needs no exception: neither gunicorn nor we log one."""
        open_stream(server, "/ticks").read_until_closed()
        assert "Traceback" not in server.log()
        assert "[ERROR]" not in server.log()


class TestNotTakenOver:
    """Everything else streams through the WSGI iterable."""

    def test_head(self, server: Server) -> None:
        """HEAD gets the headers and no body; no generator runs and nothing stays open."""
        reply = get(server, "/silent?name=head", method="HEAD")
        assert (reply.status, reply.body, reply.ended) == (200, b"", "clean")
        assert reply.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert reply.headers["cache-control"] == "no-cache, no-transform"
        assert whats(server, "head") == []
        assert stats(server)["streams"] == 0

    @pytest.mark.parametrize("app", ["compressed_eagerly", "compressed_late"])
    def test_compressed(self, serve: Serve, app: str) -> None:
        """A stream that a middleware compresses is valid gzip, each event flushed, nothing lost and nothing added."""
        server = serve(f"{MIDDLEWARE_APP}:{app}()", env=SHORT_KEEPALIVE)
        assert zlib.decompress(get(server, "/plain", headers=GZIP).body, zlib.MAX_WBITS | 16) == b"plain"
        client = open_stream(server, "/ticks?count=3&seconds=0.3", headers=GZIP)
        assert client.headers["content-encoding"] == "gzip"
        unzip, text, events = zlib.decompressobj(zlib.MAX_WBITS | 16), b"", 0
        fed = 0
        while not unzip.eof:
            body = client.read_bytes(fed + 1)
            text += unzip.decompress(body[fed:])
            fed = len(body)
            assert text.count(b"data: ") <= events + 1, "events held back"
            events = text.count(b"data: ")
        assert client.read_until_closed() == "clean"
        assert unzip.unused_data == b""
        assert [line for line in text.splitlines() if line.startswith(b"id: ")] == [b"id: 0", b"id: 1", b"id: 2"]
        client = open_stream(server, f"/silent?name={app}", headers=GZIP)
        wait_for_note(server, app, "began")
        assert [each["kind"] for each in sinks(server, "/silent")] == ["Handoff"]
        client.hang_up()
        wait_for_note(server, app, "ended", 3)
        wait_for_no_streams(server)

    def test_tls(self, serve: Serve) -> None:
        """So does a stream over TLS: events one by one, keepalives, a hang-up noticed at the next write at the latest."""
        server = serve(APP, tls=True, env=SHORT_KEEPALIVE)
        assert_streams(server, open_stream(server, "/ticks?count=10"), open_stream(server, "/silent?name=silent"))

    def test_http2_over_tls(self, serve: Serve) -> None:
        """So does one over HTTP/2 with TLS."""
        server = serve(APP, tls=True, env=SHORT_KEEPALIVE, args=HTTP2)
        assert_streams(server, open_http2_stream(server, "/ticks?count=10"), open_http2_stream(server, "/silent?name=silent"))

    def test_http2_in_clear_text(self, serve: Serve) -> None:
        """So does one over HTTP/2 without; HTTP/1.1 on the same port is still taken over."""
        server = serve(APP, env=SHORT_KEEPALIVE, args=CLEAR_TEXT)
        assert_streams(server, open_http2_stream(server, "/ticks?count=10"), open_http2_stream(server, "/silent?name=silent"))
        with open_stream(server, "/silent"):
            assert [each["kind"] for each in sinks(server, "/silent")] == [TAKEN_OVER]

    def test_upgrade_to_http2(self, serve: Serve) -> None:
        """So does one whose HTTP/1.1 request has asked for HTTP/2: its socket is no longer only its own."""
        server = serve(APP, args=CLEAR_TEXT)
        connection = connect(server)
        client = Http2Client(connection)
        server.adopt(client)
        settings = (client._http2.initiate_upgrade_connection() or b"").decode()
        head = ["GET /ticks?count=10 HTTP/1.1", "Host: localhost", "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c"]
        connection.sendall("\r\n".join([*head, f"HTTP2-Settings: {settings}", "", ""]).encode())
        answer = b""
        while not answer.endswith(b"\r\n\r\n"):
            answer += connection.recv(1)
        assert answer.startswith(b"HTTP/1.1 101 ")
        connection.sendall(client._http2.data_to_send())
        connection.setblocking(False)
        assert_one_by_one(client.events(10))
        assert client.read_until_closed() == "clean"

    def test_a_stalled_reader(self, serve: Serve) -> None:
        """One that doesn't read is cut after `SSE_SEND_TIMEOUT` there too, and holds neither a socket nor a request's slot."""
        server = serve(APP, tls=True, env={"SSE_SEND_TIMEOUT": "1"}, args=["--worker-connections", "3"])
        worker = server.worker_pid()
        assert get(server, "/plain").text == "plain"
        before = process.open_sockets(worker)
        for _ in range(3):
            open_stream(server, "/flood?name=stalled", receive_buffer=4096)
        wait_until(lambda: len(re.findall(r"stream closed path=/flood reason=slow ", server.log())) == 3, 4)
        wait_until(lambda: process.open_sockets(worker) <= before, 3, "the sockets to be closed")
        assert whats(server, "stalled").count("ended") == 3


def assert_streams(server: Server, ticking: StreamClient | Http2Client, silent: StreamClient | Http2Client) -> None:
    """A stream that isn't taken over brings its events one by one; another one is kept alive, and ends when its client leaves."""
    assert ticking.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert_one_by_one(ticking.events(10))
    assert ticking.read_until_closed() == "clean"
    ticking.hang_up()
    assert silent.next_event().data == "open"
    assert [each["kind"] for each in sinks(server, "/silent")] == ["Handoff"]
    wait_until(lambda: _read_comments(silent) >= 2, 3, "keepalives")
    assert {comment.text for comment in silent.comments} <= {"keepalive", ""}
    left = time.monotonic()
    silent.hang_up()
    ended = wait_for_note(server, "silent", "ended")
    # The first write after a hang-up may still go out; the next one can't.
    assert ended["at"] - left < 2.5
    wait_for_no_streams(server)


def _read_comments(client: StreamClient | Http2Client) -> int:
    client._receive()
    return len(client.comments)
