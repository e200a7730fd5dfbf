"""The same app for every WSGI server: what its generators do and see can be asked for, and they wait where a test tells them to."""

from __future__ import annotations

import threading
import time
from collections.abc import Generator, Iterator
from typing import Any

from flask import Flask, abort, current_app, g, jsonify, request
from flask.typing import ResponseReturnValue
from werkzeug.middleware.dispatcher import DispatcherMiddleware

from sseflask import SSE, ServerSentEvent, Stream, StreamClosed, StreamError, current_stream, heartbeat
from tests.live.apps.environment import from_environment

app = Flask(__name__)
app.config.update(SSE_KEEPALIVE_INTERVAL=0.3)
app.config.update(from_environment())
sse = SSE()


class Run:
    """What one stream's generator does, by the key that its client has chosen."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.stream: Stream | None = None
        self.seen = ""
        self.left = False
        self.on_close_calls = 0
        self.call_on_close_calls = 0

    def count_on_close(self) -> None:
        """Called when the stream is closed."""
        self.on_close_calls += 1

    def count_call_on_close(self) -> None:
        """Called when the response is."""
        self.call_on_close_calls += 1


runs: dict[str, Run] = {}


@app.get("/events")
@sse.stream(retry=1234)
def events() -> Iterator[Any]:
    """Events with the second of their yield, a pause after each."""
    for n in range(int(request.args.get("count", 4))):
        yield ServerSentEvent({"n": n, "at": time.monotonic()}, event="tick", id=str(n))
        time.sleep(float(request.args.get("pause", 0.25)))


@app.get("/silence")
@sse.stream
def silence() -> Iterator[Any]:
    """Is silent before its only event, and so until the test opens the gate."""
    run = runs[request.args["key"]] = Run()
    run.gate.wait(20)
    yield "done"


@app.get("/held")
@sse.stream
def held() -> Iterator[Any]:
    """Waits at a gate between two yields, and tells what it met at the second one."""
    run = runs[request.args["key"]] = Run()
    run.stream = current_stream._get_current_object()  # type: ignore[attr-defined]
    current_stream.on_close(run.count_on_close)
    try:
        yield "open"
        run.gate.wait(20)
        yield "after the gate"
        run.seen = "nothing"
    except StreamClosed as closed:
        run.seen = f"{type(closed).__name__} {closed.reason}"
        raise
    finally:
        run.left = True


@app.get("/timeout")
@sse.stream(timeout=0.6)
def timeout() -> Iterator[Any]:
    """As `held`, for a deadline."""
    return held.__wrapped__()  # type: ignore[attr-defined,no-any-return]


@app.get("/max-age")
@sse.stream(max_age=0.6)
def max_age() -> Iterator[Any]:
    """As `held`, for an age."""
    return held.__wrapped__()  # type: ignore[attr-defined,no-any-return]


@app.get("/logging")
@sse.stream
def logging() -> Iterator[Any]:
    """Logs as apps do."""
    yield "one"
    current_app.logger.warning("logged for %s", request.args["key"])


@app.get("/heartbeat")
@sse.stream(timeout=0.6)
def extended() -> Iterator[Any]:
    """Lives for twice its time-out, by heartbeats."""
    for _ in range(6):
        yield {"extended": heartbeat(0.5)}
        time.sleep(0.2)


@app.get("/callback")
def callback() -> ResponseReturnValue:
    """A response with a function to be called when it is closed."""
    key = request.args["key"]
    run = runs[key] = Run()

    @sse.stream
    def generate() -> Iterator[Any]:
        yield "open"
        run.gate.wait(20)

    response = generate()
    response.call_on_close(run.count_call_on_close)
    return response  # type: ignore[no-any-return]


@app.get("/runs/<key>")
def look(key: str) -> dict[str, Any]:
    """What the generator has met so far, and the state of its stream."""
    run = runs[key]
    return {
        "seen": run.seen,
        "left": run.left,
        "closed": run.stream.closed if run.stream is not None else None,
        "reason": run.stream.reason if run.stream is not None else None,
        "on_close": run.on_close_calls,
        "call_on_close": run.call_on_close_calls,
    }


@app.get("/ran/<key>")
def ran(key: str) -> ResponseReturnValue:
    """Whether a generator has begun."""
    return jsonify(key in runs)


@app.post("/runs/<key>")
def open_gate(key: str) -> ResponseReturnValue:
    """Lets a generator go on."""
    runs[key].gate.set()
    return "", 204


@app.get("/refuse/<how>")
@sse.stream
def refuse(how: str) -> Iterator[Any]:
    """Fails before its first event."""
    match how:
        case "abort":
            abort(403, description="not yours")
        case "lookup":
            raise LookupError("no such job")
        case "stream-error":
            raise StreamError("the quota is used up", error_type="quota", details={"left": 0}, status=429)
        case _:
            raise RuntimeError("secret")
    yield "never"


@app.errorhandler(403)
def forbidden(error: Any) -> ResponseReturnValue:
    """The app's own page, which needs the generator's request."""
    return {"handled": error.description, "path": request.path}, 403


@app.errorhandler(LookupError)
def conflict(error: LookupError) -> ResponseReturnValue:
    """The app's own mapping of an error."""
    return {"handled": str(error)}, 409, {"X-Handled": "yes"}


@app.get("/fail/<how>")
@sse.stream
def fail(how: str) -> Iterator[Any]:
    """Fails after its first event."""
    yield "one"
    if how == "stream-error":
        raise StreamError("the quota is used up", error_type="quota", details={"left": 0})
    raise RuntimeError("secret")


@app.get("/lifecycle")
@sse.stream(lifecycle={"title": "sum"})
def lifecycle() -> Generator[Any, None, int]:
    """Has a result."""
    total = 0
    for n in range(3):
        total += n
        yield n
    return total


@app.get("/nested")
@sse.stream
def nested() -> Iterator[Any]:
    """Sends from code that can't yield."""

    def work() -> None:
        current_stream.send({"step": 1, "at": time.monotonic()}, event="step")
        time.sleep(0.4)
        current_stream.send({"step": 2, "at": time.monotonic()}, event="step", id="s2")

    yield {"step": 0, "at": time.monotonic()}
    work()
    time.sleep(0.4)
    yield {"step": 3, "at": time.monotonic()}


@app.post("/chat")
@sse.stream(g=("user",))
def chat() -> Iterator[Any]:
    """Streams what it was sent, word by word."""
    yield {"user": g.user, "to": request.form["to"]}
    yield from request.form["text"].split()


@app.before_request
def load_user() -> None:
    """As a login manager does."""
    g.user = request.headers.get("X-User", "nobody")


@app.get("/stats")
def stats() -> dict[str, Any]:
    """What this process has open."""
    return sse.stats()


app.register_blueprint(sse, url_prefix="/sse")


def make_limited(refuse: str) -> Flask:
    """An app with room for two streams."""
    limited = Flask(f"{__name__}.{refuse}")
    limited.config.update(SSE_MAX_STREAMS=2, SSE_REFUSE=refuse)
    SSE(limited)
    limited.add_url_rule("/held", view_func=held)
    return limited


app.wsgi_app = DispatcherMiddleware(  # type: ignore[method-assign]
    app.wsgi_app, {"/limited": make_limited("status"), "/limited-retry": make_limited("retry")}
)
