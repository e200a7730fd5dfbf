"""The harness itself, against a hand-written WSGI app: a broken tool would make each test that uses it worthless."""

from __future__ import annotations

import signal
import socket
import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.conftest import Serve
from tests.live import process
from tests.live.client import (
    Closable,
    Comment,
    Event,
    FrameReader,
    NoResponse,
    ProtocolError,
    ResponseParser,
    connect,
    get,
    open_stream,
    read_all,
)
from tests.live.http2 import open_http2_stream
from tests.live.process import wait_until
from tests.live.server import ROOT, RUNNING, Server, ServerEnded

APP = '''
    """A WSGI app that needs nothing."""

    import json
    import os
    import sys
    import time
    from urllib.parse import parse_qs

    print("app loaded", file=sys.stderr)


    def events(count, seconds):
        for n in range(count):
            yield f"id: {n}\\ndata: {json.dumps({'n': n, 'at': time.monotonic()})}\\n\\n".encode()
            time.sleep(seconds)


    def silence():
        yield b":open\\n"
        try:
            time.sleep(3600)
            yield b""
        finally:
            print("silence over", file=sys.stderr)


    def broken():
        yield b"data: one\\n\\n"
        raise RuntimeError("broken on purpose")


    def flood():
        while True:
            yield b"data: " + b"x" * 60000 + b"\\n\\n"


    def app(environ, start_response):
        query = parse_qs(environ["QUERY_STRING"])
        path = environ["PATH_INFO"]
        if path == "/echo":
            body = json.dumps({
                "method": environ["REQUEST_METHOD"],
                "peer": environ.get("REMOTE_ADDR"),
                "last": environ.get("HTTP_LAST_EVENT_ID", "").encode("latin-1").decode(),
                "body": environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0)).decode(),
                "pid": os.getpid(),
                "setting": os.environ.get("SETTING"),
                "scheme": environ["wsgi.url_scheme"],
            }).encode()
            start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
            return [body]
        start_response("200 OK", [("Content-Type", "text/event-stream; charset=utf-8")])
        match path:
            case "/events":
                return events(int(query.get("count", ["3"])[0]), float(query.get("seconds", ["0"])[0]))
            case "/silence":
                return silence()
            case "/broken":
                return broken()
            case "/flood":
                return flood()


    def create_app():
        return app
'''
FLASK_APP = (
    APP
    + """
    from flask import Flask

    plain, app = app, Flask(__name__)
    app.wsgi_app = plain
"""
)
GEVENT = "gevent"


@pytest.fixture
def server(serve: Serve) -> Server:
    """The app under plain gunicorn with its gevent worker."""
    return serve(APP, worker_class=GEVENT)


class Fake:
    """An endpoint that answers each connection with given bytes and then ends it in a given way."""

    def __init__(self, listener: socket.socket) -> None:
        self.address: tuple[str, int] | str = listener.getsockname()
        self.clients: list[Closable] = []

    def tls_context(self, alpn: object = ()) -> None:
        """Plain text."""

    def adopt(self, client: Closable) -> None:
        """Keeps the client, to close it at the end."""
        self.clients.append(client)


@contextmanager
def answering(answer: bytes, *, end: str = "close") -> Iterator[Fake]:
    """A server of one connection: reads a request, answers with these bytes, then `close`s, `reset`s or `stay`s."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        fake = Fake(listener)
        over = threading.Event()

        def serve_one() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.settimeout(10)
                received = b""
                while b"\r\n\r\n" not in received:
                    received += connection.recv(65536)
                connection.sendall(answer)
                if end == "reset":
                    # The answer must be read before the reset overtakes it.
                    connection.recv(1)
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                elif end == "stay":
                    over.wait(10)

        thread = threading.Thread(target=serve_one)
        thread.start()
        try:
            yield fake
        finally:
            over.set()
            for client in fake.clients:
                client.hang_up()
            thread.join(10)


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n"


class TestResponseParser:
    """Reading HTTP/1.x."""

    @pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
    def test_any_slicing(self, size: int) -> None:
        """A chunked response comes out the same however it is sliced."""
        parser = ResponseParser()
        raw = b"HTTP/1.1 100 Continue\r\n\r\n" + CHUNKED + b"5\r\nhello\r\n0A\r\n, world!\r\n\r\n0\r\n\r\n"
        body = b"".join(parser.feed(raw[at : at + size]) for at in range(0, len(raw), size))
        assert (parser.status, body, parser.complete) == (200, b"hello, world!\r\n", True)

    @pytest.mark.parametrize(
        "raw",
        [
            b"HTTP/2 200 OK\r\n\r\n",
            b"HTTP/1.1 20 OK\r\n\r\n",
            b"SSH-2.0-x",
            b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nbad name: x\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nX: a\rb\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Type: a\r\ncontent-type: b\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nabc",
            b"HTTP/1.1 204 No Content\r\n\r\nx",
            CHUNKED + b"x\r\n",
            CHUNKED + b"5;ext=1\r\nhello\r\n",
            CHUNKED + b"5\nhello\n",
            CHUNKED + b"5\r\nhelloX",
            CHUNKED + b"5\r\nhello\r\n5 \r\n",
            CHUNKED + b"data: not framed\n\n",
            CHUNKED + b"0\r\nTrailer: x\r\n\r\n",
            CHUNKED + b"0\r\n\r\n0\r\n\r\n",
            CHUNKED + b"\r\n",
        ],
    )
    def test_bytes_out_of_place(self, raw: bytes) -> None:
        """A byte out of place is an error, fed whole and byte by byte."""
        with pytest.raises(ProtocolError):
            ResponseParser().feed(raw + b"\r\n" * 2)
        parser = ResponseParser()
        with pytest.raises(ProtocolError):
            [parser.feed(bytes([byte])) for byte in raw + b"\r\n" * 2]

    def test_chunked_for_1_0(self) -> None:
        """A chunked response to an HTTP/1.0 request is an error."""
        with pytest.raises(ProtocolError):
            ResponseParser(version="1.0").feed(CHUNKED)

    def test_head_has_no_body(self) -> None:
        """The response to HEAD is over with its head."""
        parser = ResponseParser(method="HEAD")
        parser.feed(CHUNKED)
        assert parser.complete


class TestFrameReader:
    """Reading event streams."""

    @pytest.mark.parametrize("size", [1, 2, 5, 1000])
    def test_any_slicing(self, size: int) -> None:
        """Events and comments come out the same however the body is sliced."""
        raw = ":open\n:\nevent: note\nid: é7\nretry: 50\ndata: a\ndata: \ndata:  b\n\nretry: 9\n\ndata:\n\n\ndata: unfini".encode()
        reader = FrameReader()
        found = [item for at in range(0, len(raw), size) for item in reader.feed(raw[at : at + size], at=1.0)]
        assert found == [
            Comment("open", 1.0),
            Comment("", 1.0),
            Event("note", "a\n\n b", "é7", 50, 1.0),
            Event("message", "", None, None, 1.0),
        ]
        assert (reader.retry_ms, reader.last_event_id, reader.blank_lines, reader.unfinished) == (9, "é7", 1, b"data: unfini")

    @pytest.mark.parametrize(
        "line",
        [
            b"data: a\r",
            b"data:a",
            b"data",
            b"other: x",
            b"\xef\xbb\xbfdata: x",
            b"data: \xff",
            b"retry: 1s",
            b"id: a\nid: b",
            b"id: \0",
        ],
    )
    def test_what_we_never_write(self, line: bytes) -> None:
        """A line in a form that we never write is an error."""
        with pytest.raises(ProtocolError):
            FrameReader().feed(line + b"\n\n", at=0.0)


class TestClient:
    """How a response ends, and what a client can do."""

    @pytest.mark.parametrize(
        ("rest", "end", "ended"),
        [
            (b"0\r\n\r\n", "close", "clean"),
            (b"", "close", "cut"),
            (b"5\r\ndat", "close", "cut"),
            (b"0\r\n", "close", "cut"),
            (b"", "reset", "reset"),
        ],
    )
    def test_endings(self, rest: bytes, end: str, ended: str) -> None:
        """A last chunk is a clean end, an end of file before it a cut, a reset a reset; what came before is kept."""
        with answering(CHUNKED + b"9\r\ndata: 1\n\n\r\n" + rest, end=end) as fake:
            client = open_stream(fake, "/")
            assert client.next_event().data == "1"
            if end == "reset":
                client.send(b"!")
            assert client.read_until_closed() == ended
            with pytest.raises(EOFError):
                client.next_event()

    def test_end_of_file_is_the_end_for_1_0(self) -> None:
        """Over HTTP/1.0 the end of the connection is the end of the body."""
        with answering(HEAD + b"\r\ndata: 1\n\n") as fake:
            client = open_stream(fake, "/", version="1.0")
            assert client.read_until_closed() == "clean"
            assert [event.data for event in client.arrived] == ["1"]

    def test_garbage_after_the_end(self) -> None:
        """Bytes after the last chunk are an error."""
        with answering(CHUNKED + b"0\r\n\r\nHTTP/1.1 500") as fake, pytest.raises(ProtocolError, match="after the response's end"):
            open_stream(fake, "/").read_until_closed()

    def test_announced_close_that_does_not_come(self) -> None:
        """A server that announces to close and stays isn't a clean end."""
        with answering(CHUNKED + b"0\r\n\r\n", end="stay") as fake, pytest.raises(TimeoutError):
            open_stream(fake, "/").read_until_closed(timeout=0.1)

    def test_no_head(self) -> None:
        """A connection that ends before the head is complete is an error."""
        with answering(b"HTTP/1.1 200 OK\r\n") as fake, pytest.raises(NoResponse, match="before the head"):
            open_stream(fake, "/")

    def test_waits_are_bounded(self) -> None:
        """Each wait ends in time and says what came so far."""
        with answering(CHUNKED + b"9\r\ndata: 1\n\n\r\n", end="stay") as fake:
            client = open_stream(fake, "/")
            with pytest.raises(TimeoutError, match=r"an event.*events=1"):
                client.events(2, timeout=0.1)
            with pytest.raises(TimeoutError, match="a comment"):
                client.next_comment(timeout=0.01)
            with pytest.raises(TimeoutError, match="1 of 1 streams"):
                read_all([client], timeout=0.01)

    def test_hung_up_client_does_not_read(self) -> None:
        """Reading after hanging up is the test's mistake and says so; hanging up twice is fine."""
        with answering(CHUNKED, end="stay") as fake:
            client = open_stream(fake, "/")
            client.hang_up()
            client.hang_up()
            with pytest.raises(RuntimeError, match="has hung up"):
                client.next_event()


class TestUnderGunicorn:
    """The client against a real server."""

    def test_events_one_by_one(self, server: Server) -> None:
        """Each event is read when it comes, not when the response ends."""
        with open_stream(server, "/events?count=3&seconds=0.2") as client:
            assert client.headers["content-type"] == "text/event-stream; charset=utf-8"
            assert client.framing == "chunked"
            events = client.events(3)
            assert client.ended is None
            assert [event.json()["n"] for event in events] == [0, 1, 2]
            delays = sorted(event.at - event.json()["at"] for event in events)
            assert delays[0] >= 0 and delays[-2] < 0.1
            assert client.read_until_closed() == "clean"
            assert client.last_event_id == "2"

    def test_http_1_0(self, server: Server) -> None:
        """An HTTP/1.0 request gets an unframed body that ends with the connection."""
        client = open_stream(server, "/events", version="1.0")
        assert client.read_until_closed() == "clean"
        assert (client.framing, len(client.arrived)) == ("close", 3)

    def test_an_error_in_mid_stream_is_no_clean_end(self, server: Server) -> None:
        """A plain app that fails in mid-stream leaves its client with a cut."""
        client = open_stream(server, "/broken")
        assert client.next_event().data == "one"
        assert client.read_until_closed() == "cut"
        server.wait_for_log("broken on purpose")

    def test_request(self, server: Server) -> None:
        """Method, headers, body and source address reach the app."""
        reply = get(
            server, "/echo", method="POST", headers={"Last-Event-ID": "é1"}, body="naïve".encode(), source_address="127.0.0.9"
        )
        assert (reply.status, reply.reason, reply.ended) == (200, "OK", "clean")
        told = reply.json()
        assert (told["method"], told["last"], told["body"], told["peer"]) == ("POST", "é1", "naïve", "127.0.0.9")

    def test_hang_up_and_reset(self, server: Server) -> None:
        """Both close the server's socket in the end, a half-close only our side."""
        worker = server.worker_pid()
        wait_until(lambda: get(server, "/echo").status == 200)
        before = wait_until(lambda: process.open_sockets(worker))
        clients = [open_stream(server, "/flood", receive_buffer=4096) for _ in range(3)]
        assert process.open_sockets(worker) == before + 3
        clients[0].hang_up()
        clients[1].reset()
        wait_until(lambda: process.open_sockets(worker) == before + 1, message="two of three closed")
        clients[2].half_close()
        assert clients[2].next_event().data.startswith("xxx")

    def test_read_all(self, server: Server) -> None:
        """Many streams are read side by side."""
        started = time.monotonic()
        clients = [open_stream(server, "/events?count=5&seconds=0.1") for _ in range(20)]
        assert read_all(clients) == ["clean"] * 20
        assert time.monotonic() - started < 5
        delays = [event.at - event.json()["at"] for client in clients for event in client.arrived[2:]]
        assert statistics.median(delays) < 0.1

    def test_stall(self, server: Server) -> None:
        """A client with a small buffer that doesn't read leaves the server unable to write."""
        stalled = open_stream(server, "/flood", receive_buffer=4096)
        with open_stream(server, "/flood") as reader:
            reader.events(1000, timeout=20)
        stalled.read_available()
        assert len(stalled.body) < 1_000_000

    def test_unix_socket(self, serve: Serve) -> None:
        """A server can listen on a unix socket."""
        server = serve(APP, worker_class=GEVENT, unix=True)
        assert open_stream(server, "/events").read_until_closed() == "clean"
        server.restart()
        assert get(server, "/echo").status == 200

    def test_tls(self, serve: Serve) -> None:
        """A server can speak TLS, with a certificate that the client checks."""
        server = serve(APP, worker_class=GEVENT, tls=True)
        assert get(server, "/echo").json()["scheme"] == "https"
        client = open_stream(server, "/events?seconds=0.1")
        assert client.read_until_closed() == "clean"
        assert len(client.arrived) == 3

    def test_http2_over_tls(self, serve: Serve) -> None:
        """Under TLS the client can speak HTTP/2."""
        server = serve(APP, worker_class=GEVENT, tls=True, args=["--http-protocols", "h2,h1"])
        with open_http2_stream(server, "/events?seconds=0.05") as client:
            assert (client.status, client.headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
            assert [event.json()["n"] for event in client.events(3)] == [0, 1, 2]
            assert client.read_until_closed() == "clean"

    def test_http2_in_clear_text(self, serve: Serve) -> None:
        """Without TLS the client can speak HTTP/2 with prior knowledge."""
        server = serve(APP, worker_class=GEVENT, args=["--http-protocols", "h2,h1", "--http2-cleartext", "prior-knowledge"])
        with open_http2_stream(server, "/events?seconds=0.05") as client:
            assert [event.json()["n"] for event in client.events(3)] == [0, 1, 2]
            assert client.read_until_closed() == "clean"


class TestServer:
    """Starting and stopping."""

    @pytest.mark.parametrize(
        "options",
        [
            {"worker_class": "gevent"},
            {"worker_class": "gevent", "args": ["--preload"]},
            {"worker_class": "gthread", "args": ["--threads", "4"]},
            {"kind": "flask"},
            {"kind": "pywsgi"},
        ],
        ids=lambda options: " ".join(str(value) for value in options.values()),
    )
    def test_kinds(self, serve: Serve, tmp_path: Path, options: dict[str, object]) -> None:
        """Each kind of server serves the same app, from source text and by name, and again after a restart."""
        server = serve(FLASK_APP, **options)
        assert [event.json()["n"] for event in open_stream(server, "/events").events(3)] == [0, 1, 2]
        address, pid = server.address, server.pid
        server.restart()
        assert (server.address, server.pid != pid) == (address, True)
        assert get(server, "/echo").json()["pid"] == server.worker_pid()
        (tmp_path / "server-2").mkdir()
        (tmp_path / "server-2" / "named.py").write_text((server.directory / "app_of_test.py").read_text())
        with Server("named:create_app()", tmp_path / "server-2", **options) as named:  # type: ignore[arg-type]
            assert get(named, "/echo").status == 200

    def test_flask_with_tls(self, serve: Serve) -> None:
        """Flask's own server can speak TLS."""
        server = serve(FLASK_APP, kind="flask", tls=True)
        assert get(server, "/echo").json()["scheme"] == "https"
        assert server.url("/x").startswith("https://127.0.0.1:")

    def test_workers_and_reload(self, serve: Serve) -> None:
        """All workers are known and ready; after SIGHUP there are as many new ones."""
        server = serve(APP, worker_class=GEVENT, workers=2)
        old = server.ready_workers()
        assert len(old) == 2
        assert old == server.worker_pids() == process.children(server.pid)
        with pytest.raises(AssertionError, match="not one worker"):
            server.worker_pid()
        server.signal(signal.SIGHUP)
        new = server.wait_for_new_workers(old)
        assert len(new) == 2
        assert not set(new) & set(old)

    def test_graceful_end(self, server: Server) -> None:
        """The exit code and the log of a server that was asked to end are there, and stopping it then is fine."""
        server.signal(signal.SIGTERM)
        assert server.wait_for_exit(10) == 0
        server.wait_for_log("Shutting down: Master")
        assert server.worker_pids() == []
        server.stop()
        server.stop()

    def test_stop_is_sure(self, server: Server) -> None:
        """A stopped server leaves no process, even with streams open and the arbiter killed."""
        client = open_stream(server, "/silence")
        assert client.next_comment().text == "open"
        pids = [server.pid, *server.worker_pids()]
        server.signal(signal.SIGKILL)
        assert server.wait_for_exit(5) == -signal.SIGKILL
        server.stop()
        assert not [pid for pid in pids if process.is_alive(pid)]
        assert client.fileno() == -1
        assert server not in RUNNING

    def test_broken_app(self, serve: Serve) -> None:
        """A server that can't start says why."""
        with pytest.raises(ServerEnded, match="no_such_module"):
            serve("import no_such_module", worker_class=GEVENT)
        assert not RUNNING

    def test_environment_arguments_and_configuration(self, serve: Serve) -> None:
        """A test can set the environment, arguments and a gunicorn configuration with hooks of its own."""
        config = """
            timeout = 77
            def post_worker_init(worker):
                worker.log.warning("hook of the test, timeout %s", worker.cfg.timeout)
        """
        server = serve(APP, worker_class=GEVENT, env={"SETTING": "x"}, args=["--log-level", "warning"], config=config)
        server.wait_for_log("hook of the test, timeout 77")
        assert get(server, "/echo").json()["setting"] == "x"
        assert "Listening at" not in server.log()

    def test_max_requests(self, serve: Serve) -> None:
        """A worker that has served its requests is followed by another."""
        server = serve(APP, worker_class=GEVENT, args=["--max-requests", "1"])
        old = server.worker_pid()
        assert get(server, "/echo").json()["pid"] == old
        (new,) = server.wait_for_new_workers([old])
        assert wait_until(lambda: get(server, "/echo").json()["pid"]) == new


class TestProcess:
    """What the kernel says."""

    def test_files_threads_memory_and_time(self, server: Server) -> None:
        """Descriptors, threads, memory and processor time of a worker can be read."""
        worker = server.worker_pid()
        before = process.open_sockets(worker)
        with connect(server):
            wait_until(lambda: process.open_sockets(worker) == before + 1, message="one socket more")
        wait_until(lambda: process.open_sockets(worker) == before, message="and gone again")
        assert len(process.open_files(worker)) > before
        assert process.thread_count(worker) == len(process.thread_names(worker)) >= 1
        assert 5_000_000 < process.resident_bytes(worker) < 500_000_000
        assert process.cpu_seconds(worker) > 0
        assert process.descendants(server.pid) == [worker]
        assert set(process.group_members(server.pid)) == {server.pid, worker}

    def test_wait_until(self) -> None:
        """A wait returns the first true value; when the time is up it tells the last one, or the assert that failed."""
        values = iter([0, None, "there"])
        assert wait_until(lambda: next(values)) == "there"
        with pytest.raises(AssertionError, match=r"the number: not within 0\.05 s, last seen: 0"):
            wait_until(lambda: 0, 0.05, "the number")

        def refuses() -> bool:
            raise AssertionError("not so")

        with pytest.raises(AssertionError, match="last seen: 'AssertionError: not so'"):
            wait_until(refuses, 0.05)


def test_a_failure_shows_the_log(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    """A failed test's report holds the log of the servers that it had started."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    pytester.makeconftest((ROOT / "tests" / "conftest.py").read_text())
    pytester.makepyfile(
        """
        APP = '''
            import sys
            print("marker in the log", file=sys.stderr)
            def app(environ, start_response):
                pass
        '''

        def test_fails(serve):
            assert not serve(APP, worker_class="gevent").url()
        """
    )
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider", timeout=50)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*Log of <Server gunicorn*", "*marker in the log*"])
