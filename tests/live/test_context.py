"""The request that a generator sees, under `StreamWorker`: errors before the first event, body, session, `g`, teardown."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator

import pytest

from tests.live import process
from tests.live.client import get, open_stream
from tests.live.journal import notes, wait_for_no_streams, wait_for_note, whats
from tests.live.process import wait_until
from tests.live.server import Server

BOUNDARY = "a-boundary-of-the-test"
MULTIPART = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One worker for all of these tests."""
    with Server("tests.live.apps.request_app:app", tmp_path_factory.mktemp("context")) as server:
        yield server


def multipart(fields: list[tuple[str, str]], upload: bytes) -> bytes:
    """A form with fields and one file, as a browser posts it."""
    parts = [f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode() for name, value in fields]
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="upload"; filename="some.bin"\r\n\r\n'.encode()
    return b"".join([*parts, head, upload, f"\r\n--{BOUNDARY}--\r\n".encode()])


class TestErrorsBeforeTheFirstEvent:
    """They are ordinary responses, made by the app."""

    def test_abort(self, server: Server) -> None:
        """`abort(403)` in a generator is a 403."""
        reply = get(server, "/refused?error=abort")
        assert (reply.status, "not for you" in reply.text, reply.ended) == (403, True, "clean")
        assert reply.headers["content-type"].startswith("text/html")
        assert reply.headers["x-tagged"] == "yes"

    def test_registered_handler(self, server: Server) -> None:
        """An exception with an error handler is what that makes of it."""
        reply = get(server, "/refused?error=quota")
        assert (reply.status, reply.json(), reply.headers["retry-after"]) == (429, {"error": "quota"}, "7")

    def test_handler_in_the_generators_context(self, server: Server) -> None:
        """A handler sees the request, and the generator's `g`."""
        reply = get(server, "/refused?error=login&name=Eva")
        assert (reply.status, reply.text) == (401, "Eva is not nobody")

    def test_unhandled(self, server: Server) -> None:
        """An exception without a handler is a 500 that tells nothing, and a traceback in the log."""
        reply = get(server, "/refused?error=unhandled")
        assert (reply.status, "1234" in reply.text) == (500, False)
        server.wait_for_log(r"^ZeroDivisionError: the password is 1234$", 2)

    def test_stream_error(self, server: Server) -> None:
        """A `StreamError` is JSON with its own status, message and details."""
        reply = get(server, "/refused?error=told")
        assert (reply.status, reply.headers["content-type"]) == (429, "application/json")
        assert {key: reply.json()[key] for key in ("error", "error_type", "details")} == {
            "error": "no tokens left",
            "error_type": "quota",
            "details": {"left": 0},
        }

    def test_nothing_stays(self, server: Server) -> None:
        """A stream that never opened isn't counted as open, and its connection serves the next request."""
        wait_for_no_streams(server)

    def test_after_the_headers(self, server: Server) -> None:
        """Once the headers are out it is the error event."""
        client = open_stream(server, "/refused-late")
        assert client.status == 200
        assert client.read_until_closed() == "clean"
        assert [(event.event, event.json()["error_type"]) for event in client.arrived] == [("error", "internal_error")]


class TestBody:
    """The request's body is there for the generator."""

    def test_form_and_file(self, server: Server) -> None:
        """A generator reads the form, and an upload that went to disk, after its view has ended; no file stays open."""
        worker = server.worker_pid()
        open_stream(server, "/closes").read_until_closed()
        wait_for_no_streams(server)
        before = wait_until(lambda: len(process.open_files(worker)))
        upload = bytes(range(256)) * 4000
        body = multipart([("color", "grün"), ("n", "1"), ("n", "2")], upload)
        client = open_stream(server, "/form", method="POST", headers=MULTIPART, body=body)
        assert client.next_event().json() == {"color": "grün", "numbers": ["1", "2"], "filename": "some.bin"}
        assert client.read_until_closed() == "clean"
        assert client.arrived[-2].json() == {"size": len(upload)}
        assert client.arrived[-1].json() == {"sha256": hashlib.sha256(upload).hexdigest()}
        client.hang_up()
        wait_until(lambda: len(process.open_files(worker)) <= before, message="the upload's file to be closed")

    def test_json(self, server: Server) -> None:
        """A generator reads a JSON body."""
        client = open_stream(
            server, "/json", method="POST", headers={"Content-Type": "application/json"}, body='{"ä": [1]}'.encode()
        )
        assert client.read_until_closed() == "clean"
        assert [event.json() for event in client.arrived] == [{"ä": [1]}, {"data": '{"ä": [1]}', "method": "POST"}]

    def test_too_large(self, server: Server) -> None:
        """A body over the app's limit is a 413, and nothing runs."""
        reply = get(server, "/form?name=large", method="POST", headers=MULTIPART, body=multipart([], b"x" * 2_100_000))
        assert reply.status == 413
        assert "generator" not in whats(server, "large")


class TestSession:
    """A generator's session."""

    def test_readable_and_saved_before_the_first_event(self, server: Server) -> None:
        """A generator reads the session; what it changes before its first event is saved, what it changes later is not."""
        cookie = get(server, "/log-in?user=Eva").headers["set-cookie"].partition(";")[0]
        client = open_stream(server, "/visits?early=1&late=1", headers={"Cookie": cookie})
        assert client.read_until_closed() == "clean"
        assert [event.json() for event in client.arrived] == [{"user": "Eva"}, {"visits": 101}]
        changed = client.headers["set-cookie"].partition(";")[0]
        assert get(server, "/who", headers={"Cookie": changed}).text == "Eva 1"

    def test_unchanged(self, server: Server) -> None:
        """A generator that only reads the session, or changes it too late, sets no cookie."""
        cookie = get(server, "/log-in?user=Eva").headers["set-cookie"].partition(";")[0]
        for query in ("", "?late=1"):
            assert "set-cookie" not in open_stream(server, f"/visits{query}", headers={"Cookie": cookie}).headers


class TestContext:
    """The generator's own request context."""

    def test_request_and_app(self, server: Server) -> None:
        """Arguments, headers, `url_for`, `current_app` and the named values of `g` are there, long after the view."""
        client = open_stream(server, "/around/7?user=Eva", headers={"X-Mine": "1", "User-Agent": "test"})
        assert client.read_until_closed() == "clean"
        assert client.arrived[-1].json() == {
            "app": "tests.live.apps.request_app",
            "argument": "Eva",
            "number": 7,
            "view_args": {"number": 7},
            "endpoint": "around",
            "header": "1",
            "agent": "test",
            "host": f"127.0.0.1:{server.port}",
            "address": "127.0.0.1",
            "url": "/around/8",
            "external": f"http://127.0.0.1:{server.port}/around/1",
            "user": "Eva",
        }

    def test_logger(self, server: Server) -> None:
        """What a generator writes to the app's logger is in the log."""
        open_stream(server, "/around/1?user=Max").read_until_closed()
        server.wait_for_log(r"around: a word from Max's generator", 2)

    def test_teardown_before_and_after(self, server: Server) -> None:
        """The view's contexts are torn down before the generator begins, the generator's own when it has ended; its `g` is fresh.

        A teardown function that fails there is logged, and those after it run.
        """
        client = open_stream(server, "/fresh?name=fresh")
        assert client.read_until_closed() == "clean"
        assert client.arrived[0].data == "the generator's"
        wait_until(lambda: len(notes(server, "fresh")) == 7)
        torn_down = ["request torn down", "app context torn down"]
        assert whats(server, "fresh") == ["view", *torn_down, "generator", "generator ended", *torn_down]
        assert notes(server, "fresh")[3]["has_connection"] is False
        server.wait_for_log(r"a teardown function failed after a stream")

    def test_teardown_after_a_hang_up(self, server: Server) -> None:
        """So it is when the client hangs up while the generator sleeps."""
        client = open_stream(server, "/fresh?name=gone&sleep=1")
        client.next_event()
        left = time.monotonic()
        client.hang_up()
        wait_until(lambda: len(notes(server, "gone")) == 6)
        last = notes(server, "gone")[-1]
        assert last["what"] == "app context torn down"
        assert last["at"] - left < 1
        assert last["error"] in ("StreamClosed", "NoneType")

    def test_teardown_after_an_error(self, server: Server) -> None:
        """Teardown functions get the generator's error."""
        open_stream(server, "/fresh?name=failed&raise=1").read_until_closed()
        wait_until(lambda: len(notes(server, "failed")) == 6)
        assert [note["error"] for note in notes(server, "failed")[-2:]] == ["ValueError"] * 2

    def test_release(self, server: Server) -> None:
        """`sse.release()` runs the app context's teardown functions in mid-stream, and the stream goes on."""
        client = open_stream(server, "/fresh?name=released&released=1")
        assert client.read_until_closed() == "clean"
        wait_until(lambda: len(notes(server, "released")) == 9)
        assert whats(server, "released")[3:7] == ["generator", "app context torn down", "released", "generator ended"]

    def test_on_close(self, server: Server) -> None:
        """`current_stream.on_close` is called when the stream has ended."""
        open_stream(server, "/closes?name=closes").read_until_closed()
        wait_for_note(server, "closes", "closed")


class TestResults:
    """What else a view below `@sse.stream` may return."""

    @pytest.mark.parametrize(
        ("kind", "status", "content_type", "body"),
        [
            ("tuple", 403, "text/html; charset=utf-8", b"no"),
            ("dict", 200, "application/json", b'{"a":1}\n'),
            ("string", 200, "text/html; charset=utf-8", b"text"),
            ("list", 200, "application/json", b'["a","list"]\n'),
            ("iterator", 200, "text/event-stream; charset=utf-8", b"data: a\n\ndata: b\n\n"),
            ("with-headers", 200, "text/event-stream; charset=utf-8", b"data: a\n\ndata: b\n\n"),
        ],
    )
    def test_passed_through(self, server: Server, kind: str, status: int, content_type: str, body: bytes) -> None:
        """Iterators are streamed, with the headers that come along; anything else is what it would be without us."""
        reply = get(server, f"/through?kind={kind}")
        assert (reply.status, reply.headers["content-type"], reply.body, reply.ended) == (status, content_type, body, "clean")
        assert reply.headers.get("x-mine") == ("1" if kind == "with-headers" else None)
