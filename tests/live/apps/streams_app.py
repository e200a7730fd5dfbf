"""Generators of all tempers. Each notes its life in the journal under the `name` of its query."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from flask import Flask, request

from sseflask import SSE, EventSourceResponse, InvalidEvent, ServerSentEvent, StreamClosed, StreamError, current_stream, heartbeat
from tests.live.apps import journal
from tests.live.apps.environment import from_environment
from tests.live.apps.journal import note, watching

HOUR: Final = 3600
RETRIED: Final[Mapping[str, type[Exception]]] = {"Exception": Exception, "TimeoutError": TimeoutError, "OSError": OSError}
ERRORS: Final[Mapping[str, Callable[[], Exception]]] = {
    "value": lambda: ValueError("the password is 1234"),
    "told": lambda: StreamError("no tokens left", error_type="quota", details={"left": 0}),
}

sse = SSE()


def create_app() -> Flask:
    """The app, with settings from the environment."""
    app = Flask(__name__)
    app.config.update(from_environment())
    app.register_blueprint(journal.blueprint)
    for path, view in VIEWS.items():
        app.add_url_rule(path, view_func=view, methods=["GET", "POST"])
    app.register_blueprint(sse, url_prefix="/events")
    return app


def create_debug_app() -> Flask:
    """The same in debug mode."""
    app = create_app()
    app.debug = True
    return app


def name_of_run() -> str:
    """What the journal calls this request's run."""
    return request.args.get("name", request.path)


def error_of_run() -> Exception:
    """What this request asks a generator to raise."""
    return ERRORS[request.args["error"]]()


def plain() -> str:
    """A request that is no stream."""
    return "plain"


@sse.stream
def ticks() -> Iterator[Any]:
    """Yields the time, and sleeps between."""
    for n in range(request.args.get("count", 3, int)):
        if n:
            time.sleep(request.args.get("seconds", 0.05, float))
        yield ServerSentEvent({"n": n, "at": time.monotonic()}, id=str(n))


@sse.stream
def quick() -> Iterator[Any]:
    """Takes its time for the first event and yields the rest without a pause, or lets others run between them."""
    time.sleep(request.args.get("seconds", 0.0, float))
    for n in range(request.args.get("count", 3, int)):
        if n and "pause" in request.args:
            time.sleep(0)
        yield {"n": n, "at": time.monotonic()}


@sse.stream
def late() -> Iterator[Any]:
    """Takes its time for the first event."""
    time.sleep(request.args.get("seconds", 0.0, float))
    yield "late"
    time.sleep(HOUR)


@sse.stream
def silent() -> Iterator[Any]:
    """Yields once, and then nothing for an hour."""
    with watching(name_of_run()):
        yield "open"
        time.sleep(HOUR)


@sse.stream(keepalive=0.3)
def kept_alive() -> Iterator[Any]:
    """Is silent, and asks for more keepalives than the app's others."""
    with watching(name_of_run()):
        yield "open"
        time.sleep(HOUR)


@sse.stream(keepalive=3.0)
def kept_alive_in_seconds() -> Iterator[Any]:
    """As `kept_alive`, with an interval that is many turns of the timer."""
    with watching(name_of_run()):
        yield "open"
        time.sleep(HOUR)


@sse.stream
def mute() -> Iterator[Any]:
    """Never yields anything."""
    with watching(name_of_run()):
        time.sleep(HOUR)
        yield "never"


@sse.stream
def flood() -> Iterator[Any]:
    """Yields large events as fast as they are taken."""
    with watching(name_of_run()):
        while True:
            yield "x" * request.args.get("size", 50_000, int)


@sse.stream
def burst() -> Iterator[Any]:
    """Says that it is ready, waits for `go` in the journal, yields much at once, and returns."""
    name = name_of_run()
    with watching(name):
        yield "ready"
        while not any(each["name"] == name and each["what"] == "go" for each in journal._notes):
            time.sleep(0.01)
        yield "x" * request.args.get("size", 150_000, int)


def go() -> str:
    """Lets a `burst` go on."""
    note(name_of_run(), "go")
    return "gone"


@sse.stream
def nested() -> Iterator[Any]:
    """Sends from code that can't yield, between what it yields."""

    def deep(n: int) -> None:
        current_stream.send({"n": n, "at": time.monotonic()}, event="sent", id=f"s{n}")

    for n in range(0, 9, 3):
        yield {"n": n, "at": time.monotonic()}
        deep(n + 1)
        time.sleep(0.05)
        deep(n + 2)
    yield {"sent": current_stream.events_sent, "closed": current_stream.closed, "last": current_stream.last_event_id}


@sse.stream
def fails() -> Iterator[Any]:
    """Raises after its first event."""
    with watching(name_of_run()):
        yield "one"
        raise error_of_run()


@sse.stream(lifecycle={"model": "small"})
def work() -> Iterator[Any]:
    """Does some work with a beginning and an end."""
    note(name_of_run(), "began")
    yield {"step": 1}
    if "error" in request.args:
        raise error_of_run()
    return {"steps": 1}


@sse.stream(retry=1234)
def told_when_to_return() -> Iterator[Any]:
    """Tells its client when to reconnect."""
    yield "one"


@sse.stream(timeout=0.5)
def deadline() -> Iterator[Any]:
    """Sleeps past its deadline."""
    with watching(name_of_run()):
        yield "open"
        time.sleep(HOUR)


@sse.stream(timeout=0.5)
def beating() -> Iterator[Any]:
    """Works for longer than its time-out, and says so; then it stops saying so."""
    name = name_of_run()
    with watching(name):
        yield {"too_far": heartbeat(0.6), "nothing": heartbeat(0)}
        for _ in range(6):
            time.sleep(0.2)
            assert heartbeat(0.5)
        yield "worked"
        note(name, "fell silent")
        time.sleep(HOUR)


@sse.stream
def without_deadline() -> Iterator[Any]:
    """Has no deadline that could be extended."""
    yield {"extended": heartbeat(1)}


@sse.stream(max_age=0.5)
def aging() -> Iterator[Any]:
    """Lives for as long as it may."""
    with watching(name_of_run()):
        yield "open"
        time.sleep(HOUR)


@sse.stream(timeout=0.4)
def tidy() -> Iterator[Any]:
    """Takes half a second to tidy up after its deadline."""
    name = name_of_run()
    with watching(name):
        yield "open"
        try:
            while "flood" in request.args:
                yield "x" * 100_000
            time.sleep(HOUR)
        finally:
            note(name, "tidying")
            time.sleep(0.5)
            note(name, "tidied")


@sse.stream(timeout=0.4)
def stubborn() -> Iterator[Any]:
    """Goes on yielding after it was told that its stream is over."""
    name = name_of_run()
    with watching(name):
        yield "open"
        try:
            time.sleep(HOUR)
        except StreamClosed as closed:
            note(name, "caught", why=closed.reason)
        for n in range(3):
            yield f"dropped {n}"
            current_stream.send(f"dropped too {n}")
            note(name, "went on")


def retrying() -> EventSourceResponse:
    """Retries whatever fails, as an HTTP client does."""
    name, retried = name_of_run(), RETRIED[request.args["retried"]]

    def generate() -> Iterator[Any]:
        with watching(name):
            yield "open"
            while True:
                try:
                    time.sleep(HOUR)
                except retried:
                    note(name, "retried")

    return EventSourceResponse(generate(), timeout=request.args.get("timeout", None, float))


@sse.stream
def clinging() -> Iterator[Any]:
    """Doesn't let itself be ended."""
    name = name_of_run()
    yield "open"
    for _ in range(2):
        try:
            time.sleep(HOUR if not any(each["name"] == name for each in journal._notes) else 2)
        except StreamClosed:
            note(name, "clings")
    note(name, "ended")


@sse.stream
def invalid() -> Iterator[Any]:
    """Yields what can't be sent, and what can."""
    for item in ("x" * 2_000_000, object(), float("nan"), b"\xff"):
        try:
            yield item
        except InvalidEvent as error:
            yield error.field
    try:
        current_stream.send("text", event="two\nlines")
    except InvalidEvent as error:
        yield error.field


def called() -> EventSourceResponse:
    """A response with a function to call when it is over."""
    name = name_of_run()

    def generate() -> Iterator[Any]:
        note(name, "began")
        if "error" in request.args:
            raise error_of_run()
        yield "open"
        if "sleep" in request.args:
            time.sleep(HOUR)
        note(name, "ended")

    response = EventSourceResponse(generate())
    response.call_on_close(lambda: note(name, "called"))
    return response


@sse.stream(timeout=0.5)
def closing() -> Iterator[Any]:
    """Has a callback on its end that waits, and one that fails."""
    name = name_of_run()

    def wait() -> None:
        note(name, "callback waits")
        time.sleep(0.05)
        note(name, "callback")

    def fail() -> None:
        raise RuntimeError("a callback that fails on purpose")

    current_stream.on_close(fail)
    current_stream.on_close(wait)
    with watching(name):
        while "flood" in request.args:
            yield "x" * 100_000


VIEWS: Final[Mapping[str, Callable[..., Any]]] = {
    "/plain": plain,
    "/ticks": ticks,
    "/quick": quick,
    "/late": late,
    "/silent": silent,
    "/kept-alive": kept_alive,
    "/kept-alive-in-seconds": kept_alive_in_seconds,
    "/mute": mute,
    "/flood": flood,
    "/burst": burst,
    "/go": go,
    "/nested": nested,
    "/fails": fails,
    "/work": work,
    "/told-when-to-return": told_when_to_return,
    "/deadline": deadline,
    "/beating": beating,
    "/without-deadline": without_deadline,
    "/aging": aging,
    "/tidy": tidy,
    "/stubborn": stubborn,
    "/retrying": retrying,
    "/closing": closing,
    "/clinging": clinging,
    "/invalid": invalid,
    "/called": called,
}
