"""`SSE` and `@sse.stream` in all their forms, through Flask's test client."""

from __future__ import annotations

import contextvars
import decimal
import functools
import gc
import io
import json
import logging
import threading
import time
import weakref
from collections.abc import AsyncIterator, Generator, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from flask import (
    Blueprint,
    Flask,
    Response,
    abort,
    after_this_request,
    current_app,
    g,
    has_app_context,
    has_request_context,
    request,
    session,
    stream_with_context,
    url_for,
)
from flask.signals import request_started
from flask.testing import FlaskClient
from flask.views import MethodView, View

from sseflask import (
    SSE,
    AlreadyInstalled,
    EventDecoder,
    EventSourceResponse,
    InvalidSetting,
    NoActiveStream,
    ServerSentEvent,
    StreamError,
    current_stream,
    heartbeat,
    process,
)
from sseflask.config import Settings, StreamOptions
from sseflask.handoff import Handoff
from sseflask.producer import GeneratorProducer
from sseflask.response import note_beginning
from sseflask.state import CloseReason, StreamState
from sseflask.stream import Stream
from sseflask.testing import FakeClock
from sseflask.timer import Flusher, Timer
from tests.live.process import wait_until
from tests.test_callback import waits, waits_and_yields, yields

TWO = b"data: one\n\ndata: two\n\n"
EVENT_STREAM = "text/event-stream; charset=utf-8"


@pytest.fixture
def app() -> Flask:
    """An app without an `SSE`."""
    app = Flask("app")
    app.secret_key = "secret"
    return app


@pytest.fixture
def sse(app: Flask) -> SSE:
    """One that is installed on the app."""
    return SSE(app)


@pytest.fixture
def client(app: Flask) -> FlaskClient:
    """The app's client."""
    return app.test_client()


def two() -> Iterator[str]:
    """Two events."""
    yield "one"
    yield "two"


def login_required(view: Any) -> Any:
    """A decorator, as apps have them."""

    @functools.wraps(view)
    def checked(*args: Any, **options: Any) -> Any:
        return view(*args, **options)

    return checked


class TestForms:
    """What `@sse.stream` decorates."""

    def test_bare(self, app: Flask, sse: SSE, client: FlaskClient) -> None:
        """`@sse.stream` makes a stream of a generator view, with the headers of one."""

        @app.get("/")
        @sse.stream
        def view() -> Iterator[Any]:
            yield "text"
            yield b"bytes"
            yield {"json": [1, None]}
            yield ServerSentEvent("full", event="note", id="a1", retry=5000)
            yield None

        reply = client.get("/")
        assert reply.status_code == 200
        assert reply.data == (
            b'data: text\n\ndata: bytes\n\ndata: {"json":[1,null]}\n\n'
            b"id: a1\nevent: note\nretry: 5000\ndata: full\n\ndata: null\n\n"
        )
        assert reply.headers["Content-Type"] == EVENT_STREAM
        assert reply.headers["Cache-Control"] == "no-cache, no-transform"
        assert reply.headers["X-Accel-Buffering"] == "no"
        assert "Content-Length" not in reply.headers

    def test_with_options(self, app: Flask, sse: SSE, client: FlaskClient) -> None:
        """`@sse.stream(...)` does with options."""
        app.get("/")(sse.stream(retry=5, keepalive=1, timeout=10, max_age=10)(two))
        assert client.get("/").data == b"retry: 5\n\n" + TWO

    def test_empty_parentheses(self, app: Flask, sse: SSE, client: FlaskClient) -> None:
        """`@sse.stream()` is `@sse.stream`."""
        app.get("/")(sse.stream()(two))
        assert client.get("/").data == TWO

    def test_function_that_returns_a_generator(self, app: Flask, sse: SSE, client: FlaskClient) -> None:
        """A view that returns a generator works in its own context first."""

        @app.get("/<name>")
        @sse.stream
        def view(name: str) -> Iterator[str]:
            if name == "bad":
                abort(404)
            return two()

        assert client.get("/good").data == TWO
        assert client.get("/bad").status_code == 404

    @pytest.mark.parametrize(
        "make", [lambda: iter(["one", "two"]), lambda: map(str, ["one", "two"]), lambda: (x for x in ("one", "two"))]
    )
    def test_function_that_returns_an_iterator(self, app: Flask, sse: SSE, client: FlaskClient, make: Any) -> None:
        """Any iterator is streamed."""
        app.add_url_rule("/", view_func=sse.stream(lambda **_: make()), endpoint="view")
        assert client.get("/").data == TWO

    def test_method_view(self, app: Flask, sse: SSE, client: FlaskClient) -> None:
        """A method of a class-based view can be decorated, and one of its methods left alone."""

        class Jobs(MethodView):
            @sse.stream
            def get(self, job: int) -> Iterator[str]:
                yield f"job {job}"

            def post(self, job: int) -> str:
                return f"posted {job}"

        app.add_url_rule("/<int:job>", view_func=Jobs.as_view("jobs"))
        assert client.get("/7").data == b"data: job 7\n\n"
        assert client.post("/7").data == b"posted 7"

    def test_decorators_of_a_view_class(self, app: Flask, sse: SSE, client: FlaskClient) -> None:
        """`@sse.stream` can stand among the decorators of a class-based view."""

        class Count(View):
            decorators = [sse.stream]  # noqa: RUF012 - as Flask's documentation does

            def dispatch_request(self) -> Any:
                yield "counted"

        app.add_url_rule("/", view_func=Count.as_view("count"))
        assert client.get("/").data == b"data: counted\n\n"

    @pytest.mark.parametrize(
        ("rest", "status", "header"),
        [((201,), 201, None), (({"X-A": "b"},), 200, "b"), ((202, {"X-A": "b"}), 202, "b"), ((202, [("X-A", "c")]), 202, "c")],
    )
    def test_tuple(self, app: Flask, sse: SSE, client: FlaskClient, rest: tuple[Any, ...], status: int, header: str | None) -> None:
        """An iterator may come with a status and headers."""
        app.get("/")(sse.stream(lambda: (two(), *rest)))
        reply = client.get("/")
        assert (reply.status_code, reply.headers.get("X-A"), reply.data) == (status, header, TWO)
        assert reply.headers["Content-Type"] == EVENT_STREAM

    @pytest.mark.parametrize(
        ("result", "status", "content_type", "body"),
        [
            (("no", 403), 403, "text/html; charset=utf-8", b"no"),
            (("", 204), 204, "text/html; charset=utf-8", b""),
            ({"a": 1}, 200, "application/json", b'{"a":1}\n'),
            ([1, 2], 200, "application/json", b"[1,2]\n"),
            ("text", 200, "text/html; charset=utf-8", b"text"),
            (b"bytes", 200, "text/html; charset=utf-8", b"bytes"),
            (Response("own", status=418, mimetype="text/plain"), 418, "text/plain; charset=utf-8", b"own"),
        ],
        ids=repr,
    )
    def test_passing_through(
        self, app: Flask, sse: SSE, client: FlaskClient, result: Any, status: int, content_type: str, body: bytes
    ) -> None:
        """Any other result is what it would be without us."""
        app.get("/")(sse.stream(lambda: result))
        reply = client.get("/")
        assert (reply.status_code, reply.headers["Content-Type"], reply.data) == (status, content_type, body)
        assert "X-Accel-Buffering" not in reply.headers

    def test_event_source_response_passes_through(self, app: Flask, sse: SSE, client: FlaskClient) -> None:
        """A view that makes its own stream response has its own options."""
        app.get("/")(sse.stream(retry=1)(lambda: EventSourceResponse(two(), retry=2)))
        assert client.get("/").data == b"retry: 2\n\n" + TWO

    def test_name_and_wrapped(self, sse: SSE) -> None:
        """The view keeps its name and documentation, which endpoints are made of."""
        assert sse.stream(two).__name__ == "two"
        assert sse.stream(two).__doc__ == two.__doc__

    def test_async_generator(self, sse: SSE) -> None:
        """An asynchronous generator function is refused at once, by its name."""

        async def ticks() -> AsyncIterator[str]:
            yield "never"

        with pytest.raises(TypeError, match=r"ticks is an asynchronous generator function; @sse\.stream takes a plain one"):
            sse.stream(ticks)
        with pytest.raises(TypeError, match="ticks"):
            sse.stream(retry=5)(ticks)

    def test_iterator_without_throw(self, app: Flask, sse: SSE, client: FlaskClient) -> None:
        """An iterator that is no generator, and yields what can't be sent, ends with the error event."""
        app.get("/")(sse.stream(lambda: iter(["one", object(), "two"])))
        first, error = EventDecoder().feed(client.get("/").data)
        assert (first.data, error.event) == ("one", "error")

    def test_invalid_item(self, app: Flask, sse: SSE, client: FlaskClient) -> None:
        """What can't be sent is raised at its `yield`: a generator can go on."""

        @app.get("/")
        @sse.stream
        def view() -> Iterator[Any]:
            try:
                yield object()
            except ValueError:
                yield "instead"

        assert client.get("/").data == b"data: instead\n\n"


class TestOrder:
    """`@sse.stream` goes below the route."""

    @pytest.mark.parametrize("decorated", [lambda view: view, login_required], ids=["alone", "decorated"])
    @pytest.mark.parametrize("kind", ["app", "blueprint"])
    def test_above(
        self, app: Flask, sse: SSE, client: FlaskClient, caplog: pytest.LogCaptureFixture, kind: str, decorated: Any
    ) -> None:
        """Above it, an error names the view and the right order, at the first request, once, wherever the route was added."""
        pages = Blueprint("pages", __name__)

        @sse.stream
        @decorated
        @(app if kind == "app" else pages).get("/two")
        def my_view() -> Iterator[str]:
            yield "no event"

        app.register_blueprint(pages)
        for _ in range(2):
            client.get("/other")
        (line,) = (record for record in caplog.records if "without its @sse.stream" in record.getMessage())
        assert line.levelname == "ERROR" and "my_view is routed" in line.getMessage() and "below the route" in line.getMessage()
        assert list(request_started.receivers_for(app)) == [note_beginning]

    def test_below(self, app: Flask, sse: SSE, client: FlaskClient, caplog: pytest.LogCaptureFixture) -> None:
        """Below it, and where a view is routed both ways, or streamed in another, there is nothing to tell."""
        for number, view in enumerate((sse.stream(two), login_required(sse.stream(two)), two, sse.stream(login_required(two)))):
            app.add_url_rule(f"/{number}", f"view-{number}", view)
        endless = login_required(two)
        endless.__wrapped__ = endless
        app.add_url_rule("/endless", "endless", endless)
        app.add_url_rule("/inside", "inside", lambda: app.make_response(sse.stream(two)()))
        assert [client.get(path).data for path in ("/0", "/1", "/2", "/3", "/inside")] == [TWO, TWO, b"onetwo", TWO, TWO]
        assert "without its @sse.stream" not in caplog.text

    def test_nothing_is_kept(self, sse: SSE) -> None:
        """A view that is decorated in each request, and knows itself, doesn't stay."""

        def decorate() -> weakref.ref[Any]:
            @sse.stream
            def own() -> Iterator[str]:
                yield repr(own)

            return weakref.ref(own)

        decorated = decorate()
        gc.collect()
        assert decorated() is None


class TestContexts:
    """What a generator sees."""

    def test_request(self, app: Flask, sse: SSE, client: FlaskClient) -> None:
        """Request, form, files, session, app and addresses are there, and a fresh `g` with what was named."""

        @app.before_request
        def load() -> None:
            g.user, g.other = "ada", "not copied"

        @app.post("/<name>")
        @sse.stream(g=("user", "missing"))
        def view(name: str) -> Iterator[Any]:
            yield [name, request.form["a"], request.files["f"].read().decode(), request.args["q"]]
            yield [session["seen"], current_app.name, url_for("view", name="x"), g.user, "other" in g, "missing" in g]

        with client.session_transaction() as before:
            before["seen"] = 5
        reply = client.post("/n?q=1", data={"a": "b", "f": (io.BytesIO(b"file"), "f.txt")})
        first, second = EventDecoder().feed(reply.data)
        assert first.data == '["n","b","file","1"]'
        assert second.data == '[5,"app","/x","ada",false,false]'

    def test_session_before_the_first_event(self, app: Flask, sse: SSE, client: FlaskClient) -> None:
        """What the generator changes in the session before its first event is saved."""

        @app.get("/")
        @sse.stream
        def view() -> Iterator[str]:
            session["from"] = "generator"
            yield "one"

        assert client.get("/").data == b"data: one\n\n"
        with client.session_transaction() as after:
            assert after["from"] == "generator"

    def test_no_session(self, app: Flask, sse: SSE, client: FlaskClient) -> None:
        """Without a secret key the session is empty and can't be changed, in one stream as in the next; no cookie is set."""
        app.secret_key = None

        @app.get("/")
        @sse.stream
        def view() -> Iterator[Any]:
            session.modified = True
            yield [dict(session), request.form, request.files]
            with pytest.raises(RuntimeError, match="secret key"):
                session["x"] = 1
            with pytest.raises(RuntimeError, match="secret key"):
                session.__ior__({"x": 1})
            with pytest.raises(RuntimeError, match="secret key"):
                session.x = 1
            with pytest.raises(TypeError, match="immutable"):
                request.form["x"] = "1"  # type: ignore[index]

        client.set_cookie("session", "kept")
        for _ in range(2):
            reply = client.get("/")
            assert reply.data == b"data: [{},{},{}]\n\n"
            assert "Set-Cookie" not in reply.headers

    def test_teardown(self, app: Flask, sse: SSE, client: FlaskClient) -> None:
        """The view's contexts are torn down before the generator runs, the generator's when it ends."""
        told: list[str] = []
        app.teardown_appcontext(lambda _: told.append("teardown"))

        @app.get("/")
        @sse.stream
        def view() -> Iterator[str]:
            told.append("generator")
            yield "one"

        client.get("/").close()
        wait_until(lambda: told == ["teardown", "generator", "teardown"])

    def test_context_variables_at_the_end(self, app: Flask, sse: SSE, client: FlaskClient) -> None:
        """What is called at a stream's end finds Flask's contexts gone, and other context variables as the generator left them."""
        told: list[object] = []
        variable: contextvars.ContextVar[str] = contextvars.ContextVar("others", default="default")
        other: contextvars.ContextVar[str] = contextvars.ContextVar("another", default="default")

        def look() -> None:
            told.extend([variable.get(), other.get(), has_app_context(), has_request_context(), bool(current_app), bool(request)])
            # Its context is such a variable, which C code reads without looking at what it is.
            told.append(decimal.Decimal(1) / decimal.Decimal(4))

        @app.get("/")
        @sse.stream
        def view() -> Iterator[str]:
            current_stream.on_close(look)
            assert decimal.Decimal(3) / decimal.Decimal(4) < 1
            variable.set("set")
            assert other.get() == "default"
            # Left in a mess.
            app.app_context().push()
            yield "one"
            assert left.wait(20)

        left = threading.Event()
        client.get("/").close()
        left.set()
        wait_until(lambda: len(told) == 7)
        assert told == ["set", "default", False, False, False, False, decimal.Decimal("0.25")]

    @pytest.mark.parametrize(
        ("path", "headers", "expected"),
        [
            ("/", {}, "null"),
            ("/", {"Last-Event-ID": "a1"}, "a1"),
            ("/", {"Last-Event-ID": ""}, "null"),
            ("/", {"Last-Event-ID": "é".encode().decode("latin-1")}, "é"),
            ("/?lastEventId=q", {}, "q"),
            ("/?last_event_id=q", {}, "q"),
            ("/?lastEventId=q", {"Last-Event-ID": "h"}, "h"),
        ],
    )
    def test_last_event_id(
        self, app: Flask, sse: SSE, client: FlaskClient, path: str, headers: dict[str, str], expected: str
    ) -> None:
        """A generator sees what its client saw last: from the header, else from the query."""

        @app.get("/")
        @sse.stream
        def view() -> Iterator[Any]:
            yield current_stream.last_event_id

        assert client.get(path, headers=headers).text == f"data: {expected}\n\n"

    def test_outside_a_stream(self, sse: SSE) -> None:
        """What works only inside a stream says so elsewhere."""
        assert not current_stream
        for call in (lambda: current_stream.send("x"), heartbeat, sse.heartbeat, sse.release):
            with pytest.raises(NoActiveStream, match="only inside the generator of an event stream"):
                call()

    def test_body_too_large(self, app: Flask, sse: SSE, client: FlaskClient) -> None:
        """A body beyond the app's limit is 413, and no generator runs."""
        app.config["MAX_CONTENT_LENGTH"] = 10
        ran: list[bool] = []

        @app.post("/")
        @sse.stream
        def view() -> Iterator[str]:
            ran.append(True)
            yield "never"

        assert client.post("/", data=b"x" * 100).status_code == 413
        assert ran == []

    @pytest.mark.parametrize(
        "said",
        [
            {"CONTENT_LENGTH": "4"},
            {"CONTENT_TYPE": "text/plain"},
            {"HTTP_TRANSFER_ENCODING": "chunked"},
            {"REQUEST_METHOD": "PUT"},
            {"SERVER_PROTOCOL": "HTTP/2.0"},
            {"SERVER_PROTOCOL": ""},
        ],
        ids=lambda said: next(iter(said)),
    )
    def test_body(self, app: Flask, sse: SSE, client: FlaskClient, said: dict[str, str]) -> None:
        """A generator reads its request's body, however its request says that it has one; one that says nothing has none."""

        @app.route("/", methods=["GET", "PUT"])
        @sse.stream
        def view() -> Iterator[str]:
            yield f"{request.get_data(as_text=True)} {len(request.form)} {len(request.files)}"

        for more, seen in ((said, "body"), ({}, "")):
            sent = {"wsgi.input": io.BytesIO(b"body"), "wsgi.input_terminated": True, **more}
            assert client.get("/", environ_overrides=sent).text == f"data: {seen} 0 0\n\n"

    def test_view_args(self, app: Flask, sse: SSE, client: FlaskClient) -> None:
        """A generator's request has all that its URL says, though a preprocessor took some; it makes URLs as the view."""

        @app.url_value_preprocessor
        def preprocess(endpoint: str | None, values: dict[str, Any] | None) -> None:
            g.lang = (values or {}).pop("lang")

        @app.get("/<lang>/<int:number>")
        @sse.stream(g=("lang",))
        def view(number: int) -> Iterator[Any]:
            yield {"number": number, "lang": g.lang, "args": request.view_args, "rule": str(request.url_rule)}
            yield url_for("view", lang="fr", number=2)
            yield url_for("view", lang="fr", number=2, _external=True)

        expected = {"number": 1, "lang": "de", "args": {"lang": "de", "number": 1}, "rule": "/<lang>/<int:number>"}
        events = EventDecoder().feed(client.get("/de/1", base_url="http://example.test").data)
        assert json.loads(events[0].data or "") == expected
        assert [event.data for event in events[1:]] == ["/fr/2", "http://example.test/fr/2"]

    def test_functions_after_this_request(self, app: Flask, sse: SSE, client: FlaskClient) -> None:
        """What the view registered for after its request isn't called again for what the generator's error becomes."""
        called = []

        @app.get("/")
        def view() -> Response:
            @after_this_request
            def note(response: Response) -> Response:
                called.append(response.status_code)
                return response

            def generate() -> Iterator[str]:
                abort(403)
                yield "never"

            return EventSourceResponse(generate())

        assert client.get("/").status_code == 403
        assert called == [200]


class TestErrors:
    """What a generator raises."""

    def test_before_the_first_event(self, app: Flask, sse: SSE, client: FlaskClient) -> None:
        """An error before the first event goes through the app's handlers."""

        @app.errorhandler(KeyError)
        def handle(error: KeyError) -> Any:
            return {"handled": error.args[0], "name": request.endpoint}, 409

        @app.get("/")
        @sse.stream
        def view() -> Iterator[str]:
            raise KeyError("job")
            yield "never"

        reply = client.get("/")
        assert (reply.status_code, reply.json) == (409, {"handled": "job", "name": "view"})

    def test_propagated_in_tests(self, app: Flask, sse: SSE, client: FlaskClient) -> None:
        """An app under test lets an unhandled error through to the test, as for any view."""
        app.testing = True

        @app.get("/")
        @sse.stream
        def view() -> Iterator[str]:
            raise ZeroDivisionError("seen by the test")
            yield "never"

        with pytest.raises(ZeroDivisionError, match="seen by the test"):
            client.get("/")

    def test_stream_error(self, app: Flask, sse: SSE, client: FlaskClient) -> None:
        """A `StreamError` is JSON with its status, also where the view raises it."""

        @app.get("/generator")
        @sse.stream
        def generator() -> Iterator[str]:
            raise StreamError("used up", error_type="quota", details={"left": 0}, status=429)
            yield "never"

        @app.get("/view")
        def view() -> str:
            raise StreamError("used up", error_type="quota", details={"left": 0}, status=429)

        for path in ("/generator", "/view"):
            reply = client.get(path)
            assert reply.status_code == 429
            told = reply.get_json()
            assert told.pop("timestamp").endswith("Z")
            assert told == {"error": "used up", "error_type": "quota", "details": {"left": 0}}

    @pytest.mark.parametrize("before", [True, False])
    def test_own_handler_for_stream_errors(self, app: Flask, client: FlaskClient, before: bool) -> None:
        """The app's own handler for `StreamError` counts, whether it was registered before or after the extension."""
        handler: Any = lambda error: (f"own {error.message}", 418)  # noqa: E731 - an untyped handler
        if before:
            app.register_error_handler(StreamError, handler)
        sse = SSE(app)
        if not before:
            app.register_error_handler(StreamError, handler)

        @app.get("/")
        @sse.stream
        def view() -> Iterator[str]:
            raise StreamError("used up")
            yield "never"

        reply = client.get("/")
        assert (reply.status_code, reply.text) == (418, "own used up")

    def test_unwritable_details(self, app: Flask, sse: SSE, client: FlaskClient, caplog: pytest.LogCaptureFixture) -> None:
        """An error whose details JSON can't express is told without them, before the first event and after it; they are logged."""

        @app.get("/<int:events>")
        @sse.stream
        def view(events: int) -> Iterator[str]:
            yield from ["one"] * events
            raise StreamError("used up", error_type="quota", details={"left": {5}}, status=429)

        after = json.loads(EventDecoder().feed(client.get("/1").data)[-1].data or "")
        assert "{'left': {5}}" in caplog.text
        caplog.clear()
        reply = client.get("/0")
        assert reply.status_code == 429 and "{'left': {5}}" in caplog.text
        for told in (after, reply.json):
            assert (told["error"], told["error_type"]) == ("used up", "quota") and "details" not in told

    @pytest.mark.parametrize(
        ("debug", "error_type", "message"),
        [(False, "internal_error", "an error ended the stream"), (True, "LookupError", "details")],
    )
    def test_after_the_first_event(
        self, app: Flask, sse: SSE, client: FlaskClient, debug: bool, error_type: str, message: str
    ) -> None:
        """An error after the first event is the error event, generic unless the app is in debug mode."""
        app.debug = debug
        app.config["SSE_ERROR_EVENT"] = "not read any more"

        @app.get("/")
        @sse.stream
        def view() -> Iterator[str]:
            yield "one"
            raise LookupError("details")

        one, error = EventDecoder().feed(client.get("/").data)
        assert (one.data, error.event) == ("one", "error")
        assert error.data is not None
        assert f'"error":"{message}","error_type":"{error_type}"' in error.data


class TestLifecycle:
    """`lifecycle=`."""

    def test_start_and_complete(self, app: Flask, sse: SSE, client: FlaskClient) -> None:
        """The stream begins with `start` and what is added, ends with `complete` and the result, and isn't run again after it."""
        ran: list[int] = []

        @app.get("/")
        @sse.stream(lifecycle={"title": "work"})
        def view() -> Generator[Any, None, Any]:
            ran.append(1)
            yield 1
            return {"total": 1}

        decoder = EventDecoder()
        start, one, complete = decoder.feed(client.get("/").data)
        assert start.data is not None and complete.data is not None
        assert (start.event, one.data, complete.event) == ("start", "1", "complete")
        assert '"title":"work"' in start.data
        assert '"result":{"total":1}' in complete.data
        assert decoder.last_event_id == complete.id
        again = client.get("/", headers={"Last-Event-ID": decoder.last_event_id})
        assert (again.status_code, again.data, ran) == (204, b"", [1])

    def test_error(self, app: Flask, sse: SSE, client: FlaskClient) -> None:
        """An error event ends the lifecycle in place of `complete`, with a final id."""

        @app.get("/")
        @sse.stream(lifecycle=True)
        def view() -> Iterator[Any]:
            yield 1
            raise StreamError("used up")

        start, _, error = EventDecoder().feed(client.get("/").data)
        assert (start.event, error.event) == ("start", "error")
        assert client.get("/", headers={"Last-Event-ID": error.id or ""}).status_code == 204


class TestNegotiation:
    """`negotiate=True`."""

    @pytest.fixture(autouse=True)
    def view(self, app: Flask, sse: SSE) -> None:
        """Adds the views."""

        @app.get("/")
        @sse.stream(negotiate=True, retry=7)
        def view() -> Iterator[Any]:
            yield "text"
            yield ServerSentEvent({"n": 1}, event="tick", id="t1")

        @app.get("/late")
        @sse.stream(negotiate=True)
        def late() -> Iterator[Any]:
            yield "text"
            raise StreamError("used up", status=429)

        @app.get("/large")
        @sse.stream(negotiate=True)
        def large() -> Iterator[Any]:
            for _ in range(20_000):
                yield "x" * 1000

    def test_json(self, client: FlaskClient) -> None:
        """A client that accepts JSON and no event stream gets the events as one JSON array."""
        reply = client.get("/", headers={"Accept": "application/json"})
        assert reply.headers["Content-Type"] == "application/json"
        assert reply.json == [
            {"event": "message", "data": "text", "id": None},
            {"event": "tick", "data": {"n": 1}, "id": "t1"},
        ]
        assert "Accept" in reply.headers["Vary"]

    @pytest.mark.parametrize("accept", [None, "*/*", "text/event-stream", "text/event-stream, application/json"])
    def test_event_stream(self, client: FlaskClient, accept: str | None) -> None:
        """Any other client gets the stream."""
        reply = client.get("/", headers={} if accept is None else {"Accept": accept})
        assert reply.headers["Content-Type"] == EVENT_STREAM
        assert reply.data.startswith(b"retry: 7\n\ndata: text\n\n")
        assert "Accept" in reply.headers["Vary"]

    def test_error(self, client: FlaskClient) -> None:
        """An error at any time is its HTTP status, since nothing has been sent."""
        reply = client.get("/late", headers={"Accept": "application/json"})
        assert (reply.status_code, (reply.json or {})["error"]) == (429, "used up")

    def test_too_large(self, client: FlaskClient) -> None:
        """More events than `SSE_RUN_BYTES` are an error, not a memory that grows."""
        reply = client.get("/large", headers={"Accept": "application/json"})
        assert (reply.status_code, (reply.json or {})["error_type"]) == (500, "too_large")


class TestNoThreads:
    """The system has no more threads."""

    @pytest.fixture(autouse=True)
    def no_threads(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
        """The names of threads that can't be started; as many as are in the list."""
        names: list[str] = []
        start = threading.Thread.start

        def start_some(thread: threading.Thread) -> None:
            if thread.name in names:
                raise RuntimeError("can't start new thread")
            start(thread)

        monkeypatch.setattr(threading.Thread, "start", start_some)
        return names

    def test_generator(self, app: Flask, sse: SSE, client: FlaskClient, no_threads: list[str]) -> None:
        """A stream whose generator can't run is an error of its request, and takes no place afterwards."""

        @app.get("/")
        @sse.stream
        def view() -> Iterator[str]:
            yield "one"

        before = sse.stats()["streams"]
        no_threads.append("sseflask-stream")
        for _ in range(3):
            with pytest.raises(RuntimeError, match="can't start new thread"):
                client.get("/")
        assert sse.stats()["streams"] == before
        no_threads.clear()
        assert client.get("/").data == b"data: one\n\n"

    def test_task(self, app: Flask, sse: SSE, no_threads: list[str]) -> None:
        """A task whose work can't run has failed."""
        no_threads.append("sseflask-stream")
        with app.app_context(), pytest.raises(RuntimeError, match="can't start new thread"):
            sse.start(lambda: None)
        assert sse.stats()["detached"] == 0

    def test_timer(self, no_threads: list[str], caplog: pytest.LogCaptureFixture) -> None:
        """A timer that can't begin does so as soon as it can."""
        timer, called = Timer(), threading.Event()
        no_threads.append("sseflask-timer")
        timer.call_every_second(lambda now: called.set() or True)  # type: ignore[func-returns-value]
        assert "the timer can't begin" in caplog.text
        no_threads.clear()
        timer.call_every_second(lambda now: False)
        assert called.wait(20)

    def test_flusher(self, no_threads: list[str], caplog: pytest.LogCaptureFixture) -> None:
        """Neither does text stay for ever that nobody could send in time."""
        flusher, flushed = Flusher(), threading.Event()
        stream: Any = SimpleNamespace(flush=flushed.set, path="/")
        no_threads.append("sseflask-flusher")
        flusher.flush_at(stream, time.monotonic())
        assert "can't be written in time" in caplog.text
        no_threads.clear()
        flusher.flush_at(stream, time.monotonic())
        assert flushed.wait(20)


class TestTimer:
    """The timer's copy in a child that was forked."""

    def test_forked_child(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A greenlet's copy there leaves the streams to their own process."""
        timer, called = Timer(), list[float]()
        monkeypatch.setattr(timer, "_pid", 0)
        timer._chores.append(lambda now: bool(called.append(now)))  # type: ignore[func-returns-value]
        timer._wake.set()
        timer._run()
        assert called == []


class TestStuckServer:
    """A server that a client keeps in the middle of sending, of which nobody knows what it has sent."""

    @pytest.fixture
    def stream(self) -> Stream:
        """Its stream, which opens."""
        settings = Settings()
        handoff = Handoff()
        stream = Stream(handoff, StreamOptions().resolved(settings), settings, app=None, path="/", last_event_id=None)
        handoff.bind(b"", stream.resume, stream.sink_ended)
        stream.open()
        return stream

    @pytest.mark.parametrize("last", [b"", b"event: last\n\n"])
    def test_at_the_end(self, stream: Stream, last: bytes) -> None:
        """A stream that ends while its server still sends has its time, and is cut like any other that isn't read."""
        handoff, aborted = stream.sink, list[int]()
        assert isinstance(handoff, Handoff)
        handoff.on_abort = lambda: aborted.append(1)
        handoff.write(b"data: much\n\n")
        assert handoff.take()
        stream.end(CloseReason.COMPLETED, last)
        if last:
            assert handoff.take() == last
        now = time.monotonic()
        stream.tick(now + stream.send_timeout - 1)
        assert (aborted, stream.state) == ([], StreamState.DRAINING)
        stream.tick(now + stream.send_timeout + 1)
        assert (aborted, stream.state) == ([1], StreamState.CLOSED)

    def test_asked_for_more(self, stream: Stream) -> None:
        """A server that asks for what follows the last bytes has sent them."""
        handoff = stream.sink
        assert isinstance(handoff, Handoff)
        stream.end(CloseReason.COMPLETED, b"event: last\n\n")
        assert handoff.take() and handoff.take() is None
        assert stream.state is StreamState.CLOSED


class TestEventSourceResponse:
    """The response, used directly."""

    def test_open_timeout_includes_work(self, sse: SSE, client: FlaskClient, app: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
        """The time that a worker's generator runs before it first waits is part of `SSE_OPEN_TIMEOUT`."""
        start, open_handoff = GeneratorProducer.start, Handoff.open
        waited: list[float] = []

        def start_late(producer: GeneratorProducer, runner: Any, response: Any) -> bool:
            time.sleep(0.2)
            return start(producer, runner, response)

        def open_noted(handoff: Handoff, timeout: float | None) -> Any:
            assert timeout is not None
            waited.append(timeout)
            return open_handoff(handoff, timeout)

        monkeypatch.setattr(GeneratorProducer, "start", start_late)
        monkeypatch.setattr(Handoff, "open", open_noted)
        app.get("/two")(sse.stream(two))
        assert client.get("/two").status_code == 200
        assert 0 <= waited[0] <= Settings().open_timeout - 0.2

    @pytest.mark.parametrize("iterable", [["one", "two"], ("one", "two"), iter(["one", "two"])], ids=type)
    def test_iterables(self, app: Flask, sse: SSE, client: FlaskClient, iterable: Any) -> None:
        """Anything iterable is streamed."""
        app.get("/")(lambda: EventSourceResponse(iterable))
        assert client.get("/").data == TWO

    def test_headers_and_status(self, app: Flask, client: FlaskClient) -> None:
        """Headers and status can be set, on an app without an `SSE` too, whose settings count."""
        app.config["SSE_RETRY"] = 9

        @app.get("/")
        def view() -> Response:
            response = EventSourceResponse(two(), headers={"X-A": "b", "Cache-Control": "no-store"})
            response.status_code = 201
            response.set_cookie("c", "d")
            return response

        reply = client.get("/")
        assert (reply.status_code, reply.data) == (201, b"retry: 9\n\n" + TWO)
        assert (reply.headers["X-A"], reply.headers["Cache-Control"]) == ("b", "no-store")
        assert reply.headers["Set-Cookie"].startswith("c=d")

    @pytest.mark.parametrize("iterable", [5, None, object()])
    def test_not_iterable(self, app: Flask, iterable: Any) -> None:
        """What can't be iterated is refused."""
        with app.test_request_context(), pytest.raises(TypeError):
            EventSourceResponse(iterable)

    def test_wrong_option(self, app: Flask) -> None:
        """A wrong option is refused by its name."""
        with app.test_request_context(), pytest.raises(InvalidSetting, match="keepalive is 0; it must be"):
            EventSourceResponse(two(), keepalive=0)

    def test_asked_for_its_bytes(self, app: Flask) -> None:
        """Code that asks for the whole body gets an error instead of waiting for an endless stream's end."""
        with app.test_request_context():
            response = EventSourceResponse(two())
            with pytest.raises(RuntimeError):
                response.get_data()
            response.close()

    def test_never_sent(self, app: Flask) -> None:
        """A response that is dropped before it is sent closes its generator, and calls those who wait for its close."""
        called: list[str] = []

        def generate() -> Iterator[str]:
            called.append("ran")
            yield "never"

        with app.test_request_context():
            response = EventSourceResponse(generate())
            response.call_on_close(lambda: called.append("closed"))
            response.close()
            response.close()
        assert called == ["closed"]
        assert response.event_stream.closed

    def test_head(self, app: Flask, sse: SSE, client: FlaskClient) -> None:
        """HEAD runs no generator and leaves no stream."""
        ran: list[bool] = []

        @app.get("/")
        @sse.stream
        def view() -> Iterator[str]:
            ran.append(True)
            yield "never"

        opened = process.current().opened
        reply = client.head("/")
        assert (reply.status_code, reply.data, reply.headers["Content-Type"]) == (200, b"", EVENT_STREAM)
        assert (ran, process.current().opened) == ([], opened)

    @pytest.mark.parametrize("callback", [waits, waits_and_yields, yields, None])
    def test_callbacks_that_would_not_run(self, app: Flask, callback: Any) -> None:
        """A callback of a stream's end that can't be called, or is asynchronous, is refused."""
        with app.test_request_context():
            response = EventSourceResponse(iter(()))
            for add in (response.call_on_close, response.event_stream.on_close):
                with pytest.raises(TypeError, match="on_close takes a function without arguments, not "):
                    add(callback)
            response.close()

    @pytest.mark.parametrize(
        ("software", "threads", "count"),
        [
            ("gunicorn/23.0.0", False, 1),
            ("gunicorn/23.0.0", True, 0),
            ("gevent/25.9 gunicorn/23.0.0", True, 0),
            ("gevent/25.9 Python/3.11", False, 0),
            ("Werkzeug/3.1.3", True, 0),
            ("waitress", True, 0),
            (None, False, 0),
        ],
    )
    def test_one_request_at_a_time(
        self,
        app: Flask,
        sse: SSE,
        client: FlaskClient,
        caplog: pytest.LogCaptureFixture,
        monkeypatch: pytest.MonkeyPatch,
        software: str | None,
        threads: bool,
        count: int,
    ) -> None:
        """A server that does nothing beside a stream is warned of, once; none that does, nor the test client."""
        monkeypatch.setattr(process.current(), "_said", set())
        app.get("/")(sse.stream(two))
        environ: dict[str, Any] = {"wsgi.multithread": threads}
        if software is not None:
            environ["SERVER_SOFTWARE"] = software
        for _ in range(2):
            assert client.get("/", environ_overrides=environ).data == TWO
        warned = [record for record in caplog.records if "one request at a time" in record.getMessage()]
        assert len(warned) == count
        assert all("-k sseflask.worker.StreamWorker" in record.getMessage() for record in warned)

    def test_written_by_hand(
        self, app: Flask, sse: SSE, client: FlaskClient, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A generator that writes the format itself is warned of, once a process, and its text is data as any other."""
        monkeypatch.setattr(process.current(), "_said", set())
        app.add_url_rule("/data", "data", sse.stream(lambda: iter(["data", "data: later\n\n"])))
        app.add_url_rule("/written", "written", sse.stream(lambda: iter(["data: hello\n\n", "data: more\n\n"])))
        client.get("/data")
        assert "written already" not in caplog.text
        for _ in range(2):
            assert client.get("/written").data.startswith(b"data: data: hello\ndata: \ndata: \n\n")
        (line,) = (record for record in caplog.records if "written already" in record.getMessage())
        assert line.levelname == "WARNING" and "/written yields" in line.getMessage() and "ServerSentEvent(" in line.getMessage()

    def test_call_on_close(self, app: Flask, client: FlaskClient) -> None:
        """What is to be called when the response is closed is called once, when the stream has ended."""
        calls: list[str] = []

        @app.get("/")
        def view() -> Response:
            def generate() -> Iterator[str]:
                yield "one"
                calls.append("generator")

            response = EventSourceResponse(generate())
            response.call_on_close(lambda: calls.append("closed"))
            return response

        client.get("/").close()
        wait_until(lambda: calls == ["generator", "closed"])

    def test_after_request(self, app: Flask, sse: SSE, client: FlaskClient) -> None:
        """Functions that run after the view can add headers."""

        @app.after_request
        def add(response: Response) -> Response:
            response.headers["X-Added"] = "yes"
            return response

        app.get("/")(sse.stream(two))
        reply = client.get("/")
        assert (reply.headers["X-Added"], reply.data) == ("yes", TWO)

    def test_stream_with_context(self, app: Flask, sse: SSE, client: FlaskClient) -> None:
        """A generator that Flask has wrapped to keep the view's context streams, too."""

        @app.get("/<name>")
        @sse.stream
        def view(name: str) -> Iterator[str]:
            def generate() -> Iterator[str]:
                yield request.path

            return stream_with_context(generate())

        assert client.get("/x").data == b"data: /x\n\n"


class TestInstalling:
    """`SSE`, as a blueprint and as an extension."""

    def test_register(self, app: Flask) -> None:
        """Registering the blueprint installs the extension, with the app's settings as they are then."""
        app.config["SSE_RETRY"] = 5
        sse = SSE()
        app.register_blueprint(sse, url_prefix="/events")
        app.config["SSE_RETRY"] = 6
        installed = app.extensions["sse"]
        assert (installed.sse, installed.settings.retry) == (sse, 5)
        assert isinstance(installed.settings, Settings)
        assert app.blueprints == {"sse": sse}

    @pytest.mark.parametrize("install", [SSE, SSE().init_app])
    @pytest.mark.parametrize("app", [__name__, Flask])
    def test_no_app(self, install: Any, app: Any) -> None:
        """What is no app, such as the name that a Blueprint would take, is refused."""
        with pytest.raises(
            TypeError, match=r"SSE takes a Flask app, SSE\(app\), or none yet, SSE\(\), not .*; its name as a Blueprint"
        ):
            install(app)

    @pytest.mark.parametrize("options", [{}, {"url_prefix": None}, {"url_prefix": ""}, {"url_prefix": "/"}])
    def test_without_a_prefix(self, app: Flask, options: dict[str, Any]) -> None:
        """A missing or empty `url_prefix` is refused by its name, and nothing is installed."""
        with pytest.raises(InvalidSetting, match=r"url_prefix is .*; it must be a path of its own .*/events"):
            app.register_blueprint(SSE(), **options)
        assert "sse" not in app.extensions
        assert app.blueprints == {}

    @pytest.mark.parametrize("options", [{}, {"url_prefix": None}])
    def test_prefix_of_the_object(self, app: Flask, options: dict[str, Any]) -> None:
        """The prefix may be given where the object is made, as for any blueprint."""
        app.register_blueprint(SSE(url_prefix="/events"), **options)
        assert "sse" in app.extensions

    def test_init_app_twice(self, app: Flask) -> None:
        """A second `init_app`, and a registration after it, change nothing."""
        sse = SSE()
        sse.init_app(app)
        installed = app.extensions["sse"]
        sse.init_app(app)
        app.register_blueprint(sse, url_prefix="/events")
        assert app.extensions["sse"] is installed

    @pytest.mark.parametrize(
        "install",
        [
            SSE,
            lambda app: SSE().init_app(app),
            lambda app: app.register_blueprint(SSE(name="other"), url_prefix="/other"),
        ],
        ids=["SSE(app)", "init_app", "register_blueprint"],
    )
    def test_a_second_one(self, app: Flask, install: Any) -> None:
        """A second `SSE` on one app is refused clearly, and the first one stays."""
        first = SSE(app)
        with pytest.raises(AlreadyInstalled, match=r"<Flask 'app'> has an SSE already: one object serves all its streams"):
            install(app)
        assert app.extensions["sse"].sse is first
        assert app.blueprints == {}

    def test_wrong_setting(self, app: Flask) -> None:
        """A wrong setting is refused when the blueprint is registered, and nothing is installed."""
        app.config["SSE_RETRY"] = "soon"
        with pytest.raises(InvalidSetting, match="SSE_RETRY is 'soon'; it must be None or a whole number of milliseconds"):
            app.register_blueprint(SSE(), url_prefix="/events")
        assert "sse" not in app.extensions
        assert app.blueprints == {}

    def test_renamed(self, app: Flask) -> None:
        """A blueprint by another name is the same extension."""
        sse = SSE(name="live")
        app.register_blueprint(sse, url_prefix="/live")
        assert (list(app.blueprints), app.extensions["sse"].sse) == (["live"], sse)

    def test_renamed_at_registration(self, app: Flask, client: FlaskClient) -> None:
        """It may be registered twice, by two names, as any blueprint."""
        sse = SSE()
        sse.get("/two")(sse.stream(two))
        app.register_blueprint(sse, url_prefix="/a")
        app.register_blueprint(sse, url_prefix="/b", name="again")
        assert list(app.blueprints) == ["sse", "again"]
        assert [client.get(path).data for path in ("/a/two", "/b/two")] == [TWO, TWO]

    def test_nested(self, app: Flask, client: FlaskClient) -> None:
        """It may be nested in other blueprints, and so may the views that it streams."""
        sse = SSE()
        sse.get("/own")(sse.stream(two))
        inner, outer = Blueprint("inner", __name__), Blueprint("outer", __name__)

        @inner.get("/view")
        @sse.stream
        def view() -> Iterator[str]:
            yield f"{url_for('.view')} {request.blueprint}"

        @inner.errorhandler(LookupError)
        def handle(error: LookupError) -> Any:
            return "by the inner blueprint", 410

        @inner.get("/fails")
        @sse.stream
        def fails() -> Iterator[str]:
            raise LookupError
            yield "never"

        inner.register_blueprint(sse, url_prefix="/sse")
        outer.register_blueprint(inner, url_prefix="/inner")
        app.register_blueprint(outer, url_prefix="/outer")
        assert app.extensions["sse"].sse is sse
        assert list(app.blueprints) == ["outer", "outer.inner", "outer.inner.sse"]
        assert client.get("/outer/inner/sse/own").data == TWO
        assert client.get("/outer/inner/view").data == b"data: /outer/inner/view outer.inner\n\n"
        reply = client.get("/outer/inner/fails")
        assert (reply.status_code, reply.data) == (410, b"by the inner blueprint")

    def test_several_apps(self) -> None:
        """One object serves several apps, each by its own settings."""
        sse = SSE()
        apps = []
        for retry in (1, 2):
            app = Flask(f"app-{retry}")
            app.config["SSE_RETRY"] = retry
            app.get("/")(sse.stream(two))
            app.register_blueprint(sse, url_prefix="/events")
            apps.append(app)
        assert [app.test_client().get("/").data for app in apps] == [b"retry: 1\n\n" + TWO, b"retry: 2\n\n" + TWO]

    def test_factory_called_twice(self) -> None:
        """A factory with a module's `SSE` can be called again, as tests do."""
        sse = SSE()

        def create_app() -> Flask:
            app = Flask("app")
            app.register_blueprint(sse, url_prefix="/events")
            app.get("/")(sse.stream(two))
            return app

        assert [create_app().test_client().get("/").data for _ in range(2)] == [TWO, TWO]

    def test_stats(self, app: Flask, sse: SSE, client: FlaskClient) -> None:
        """The process's counters move with its streams."""
        app.get("/")(sse.stream(two))
        before = sse.stats()
        assert client.get("/").data == TWO
        wait_until(lambda: sse.stats()["streams"] == before["streams"])
        after = sse.stats()
        assert after["streams_opened"] == before["streams_opened"] + 1
        assert after["events_sent"] == before["events_sent"] + 2
        assert after["bytes_sent"] == before["bytes_sent"] + len(TWO)
        assert after["streams_closed"]["completed"] == before["streams_closed"].get("completed", 0) + 1

    def test_stats_of_open_streams(self, app: Flask, sse: SSE, client: FlaskClient) -> None:
        """What an open stream has sent counts, too, and once: `retry`, what its generator sends in between, its end."""
        go_on = threading.Event()

        def pause() -> Iterator[str]:
            yield "one"
            current_stream.send("two")
            assert go_on.wait(20)

        app.config["SSE_RETRY"] = 5
        app.get("/")(sse.stream(lifecycle=True)(pause))
        before = sse.stats()
        response = iter(client.get("/").response)
        try:
            data = next(response)
            while data.count(b"\ndata:") < 3:
                data += next(response)
            sent = [sse.stats()[name] - before[name] for name in ("events_sent", "bytes_sent", "streams")]
            assert sent == [2, len(data), 1]
        finally:
            go_on.set()
        data += b"".join(response)
        wait_until(lambda: sse.stats()["streams"] == before["streams"])
        assert [sse.stats()[name] - before[name] for name in ("events_sent", "bytes_sent")] == [2, len(data)]

    def test_stats_of_early_events(self, app: Flask, sse: SSE, client: FlaskClient) -> None:
        """What a view sends before its stream opens counts as well."""

        @app.get("/")
        def early() -> EventSourceResponse:
            response = EventSourceResponse(iter(["two"]))
            response.event_stream.send("one")
            return response

        before = sse.stats()
        assert client.get("/").data == b"data: one\n\ndata: two\n\n"
        wait_until(lambda: sse.stats()["streams"] == before["streams"])
        assert [sse.stats()[name] - before[name] for name in ("events_sent", "bytes_sent")] == [2, 22]

    def test_stuck_after_its_end(
        self, app: Flask, sse: SSE, client: FlaskClient, sse_clock: FakeClock, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A stream that ended by itself, but whose app's teardown function hangs, is reported as any producer that still runs."""
        go_on = threading.Event()
        torn_down: list[int] = []

        @app.teardown_appcontext
        def hang(_: BaseException | None) -> None:
            torn_down.append(1)
            # The view's own teardown comes first.
            assert len(torn_down) < 2 or go_on.wait(20)

        app.get("/")(sse.stream(keepalive=3600)(two))
        before = sse.stats()
        assert client.get("/").data == TWO
        wait_until(lambda: len(torn_down) == 2)
        try:
            sse_clock.advance(9)
            assert sse.stats()["streams_stuck"] == before["streams_stuck"]
            sse_clock.advance(2)
            wait_until(lambda: sse.stats()["streams_stuck"] == before["streams_stuck"] + 1)
            assert "the generator of the stream at / still runs after its stream ended (completed)" in caplog.text
        finally:
            go_on.set()
        wait_until(lambda: sse.stats()["streams"] == before["streams"])

    @pytest.mark.parametrize("level", [logging.INFO, logging.WARNING])
    def test_log_of_ends(self, app: Flask, sse: SSE, client: FlaskClient, caplog: pytest.LogCaptureFixture, level: int) -> None:
        """The line of a stream's end is there where the log takes it; its callbacks are called either way."""
        caplog.set_level(level, "sseflask.stream")
        closed: list[str] = []

        def one() -> Iterator[str]:
            current_stream.on_close(lambda: closed.append("closed"))
            yield "one"

        app.get("/")(sse.stream(one))
        before = sse.stats()["streams"]
        assert client.get("/").data == b"data: one\n\n"
        wait_until(lambda: closed == ["closed"] and sse.stats()["streams"] == before)
        assert ("stream closed path=/ reason=completed" in caplog.text) == (level == logging.INFO)
