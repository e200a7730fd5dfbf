"""Generators that use their request: its errors, body, files, session, `g` and teardown functions."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Mapping
from typing import Any, Final

from flask import Flask, abort, current_app, g, request, session, url_for
from flask.typing import ResponseReturnValue

from sseflask import SSE, StreamError, current_stream
from tests.live.apps import journal
from tests.live.apps.environment import from_environment
from tests.live.apps.journal import note


class QuotaExceeded(Exception):
    """Has an error handler."""


class LoginFailed(Exception):
    """Has a handler that uses the request."""


ERRORS: Final[Mapping[str, type[Exception]]] = {"quota": QuotaExceeded, "login": LoginFailed, "unhandled": ZeroDivisionError}

app = Flask(__name__)
app.secret_key = "not a secret"
app.config.update(from_environment())
app.config["MAX_CONTENT_LENGTH"] = 2_000_000
app.register_blueprint(journal.blueprint)
sse = SSE()


def name_of_run() -> str:
    """What the journal calls this request's run."""
    return request.args.get("name", request.path)


@app.errorhandler(QuotaExceeded)
def quota_exceeded(error: QuotaExceeded) -> ResponseReturnValue:
    """A handler as users write it."""
    return {"error": "quota"}, 429, {"Retry-After": "7"}


@app.errorhandler(LoginFailed)
def login_failed(error: LoginFailed) -> ResponseReturnValue:
    """One that needs the request and what an earlier function left in `g`."""
    return f"{request.args['name']} is not {g.generator}", 401


@app.after_request
def tagged(response: Any) -> Any:
    """Marks each response that went through the app."""
    response.headers["X-Tagged"] = "yes"
    return response


@app.before_request
def prepare() -> None:
    """Leaves what the view's functions rely on."""
    g.user = request.args.get("user", "nobody")
    if request.blueprint is None:
        g.name = name_of_run()


# Teardown functions are called last first: the one that fails stands between the two that note.


@app.teardown_appcontext
def note_app_context(error: BaseException | None) -> None:
    """Runs after the one that fails."""
    if "name" in g:
        note(g.name, "app context torn down", error=type(error).__name__)


@app.teardown_appcontext
def fail_without_the_views_g(error: BaseException | None) -> None:
    """Expects what `prepare` left, as a careless extension does."""
    note("users", "gone", user=g.user)


@app.teardown_request
def note_request_context(error: BaseException | None) -> None:
    """Runs before it."""
    if "name" in g:
        note(g.name, "request torn down", error=type(error).__name__)


@app.get("/refused")
@sse.stream
def refused() -> Iterator[Any]:
    """Refuses before its first event."""
    g.generator = "nobody"
    match request.args["error"]:
        case "abort":
            abort(403, "not for you")
        case "told":
            raise StreamError("no tokens left", error_type="quota", details={"left": 0}, status=429)
        case other:
            raise ERRORS[other]("the password is 1234")
    yield "never"


@app.get("/refused-late")
@sse.stream
def refused_late() -> Iterator[Any]:
    """Refuses before its first event, but after the headers."""
    time.sleep(0.8)
    abort(403)
    yield "never"


@app.post("/form")
@sse.stream
def form() -> Iterator[Any]:
    """Reads its form and its upload, long after the view has ended."""
    upload = request.files["upload"]
    yield {"color": request.form["color"], "numbers": request.form.getlist("n"), "filename": upload.filename}
    time.sleep(0.7)
    digest = hashlib.sha256()
    size = 0
    while block := upload.read(50_000):
        digest.update(block)
        size += len(block)
        yield {"size": size}
    yield {"sha256": digest.hexdigest()}


@app.post("/json")
@sse.stream
def posted_json() -> Iterator[Any]:
    """Reads a JSON body after the view has ended."""
    time.sleep(0.6)
    yield request.get_json()
    yield {"data": request.get_data(as_text=True), "method": request.method}


@app.get("/log-in")
def log_in() -> str:
    """Sets the session's user."""
    session["user"] = request.args["user"]
    return "logged in"


@app.get("/who")
def who() -> str:
    """Tells the session's user and visits."""
    return f"{session.get('user')} {session.get('visits')}"


@app.get("/visits")
@sse.stream
def visits() -> Iterator[Any]:
    """Reads the session, and changes it before or after its first event."""
    if "early" in request.args:
        session["visits"] = session.get("visits", 0) + 1
    yield {"user": session.get("user")}
    if "late" in request.args:
        session["visits"] = session.get("visits", 0) + 100
    yield {"visits": session.get("visits")}


@app.get("/around/<int:number>")
@sse.stream(g=("user",))
def around(number: int) -> Iterator[Any]:
    """Uses what Flask offers inside a request."""
    yield "open"
    time.sleep(0.6)
    current_app.logger.warning("around: a word from %s's generator", g.user)
    yield {
        "app": current_app.name,
        "argument": request.args["user"],
        "number": number,
        "view_args": request.view_args,
        "endpoint": request.endpoint,
        "header": request.headers.get("X-Mine"),
        "agent": str(request.user_agent),
        "host": request.host,
        "address": request.remote_addr,
        "url": url_for("around", number=number + 1),
        "external": url_for("around", number=1, _external=True),
        "user": g.user,
    }


@app.get("/fresh")
def fresh() -> Any:
    """A view with a `g` of its own, and a generator."""
    g.connection = "the view's"
    name = name_of_run()
    note(name, "view")

    @sse.stream
    def generate() -> Iterator[Any]:
        note(name, "generator", has_connection="connection" in g)
        g.connection = "the generator's"
        g.name = name
        yield g.connection
        if "released" in request.args:
            sse.release()
            note(name, "released")
        if "sleep" in request.args:
            time.sleep(3600)
        if "raise" in request.args:
            raise ValueError("on purpose")
        note(name, "generator ended")

    return generate()


@app.get("/through")
@sse.stream
def through() -> Any:
    """Results that are no streams."""
    match request.args["kind"]:
        case "tuple":
            return "no", 403
        case "dict":
            return {"a": 1}
        case "string":
            return "text"
        case "iterator":
            return iter(["a", "b"])
        case "with-headers":
            return iter(["a", "b"]), {"X-Mine": "1"}
        case _:
            return ["a", "list"]


@app.get("/closes")
@sse.stream
def closes() -> Iterator[Any]:
    """Notes the end of its stream."""
    name = name_of_run()
    current_stream.on_close(lambda: note(name, "closed"))
    yield "open"


app.register_blueprint(sse, url_prefix="/events")
