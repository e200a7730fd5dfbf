"""The blueprint's routes: subscribing and publishing over HTTP, closed unless the app opens them."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from flask import Response, current_app, jsonify, request
from werkzeug.exceptions import BadRequest, HTTPException, UnsupportedMediaType

from . import auth, cors, dashboard, ledger, metrics, process
from .channel import checked_name
from .errors import (
    UNREACHABLE,
    BrokerUnavailable,
    EventTooLarge,
    InvalidChannel,
    InvalidEvent,
    InvalidSubscription,
    StreamError,
    TaskEnded,
    UnknownTask,
)
from .event import ServerSentEvent, to_event
from .runs import IDEMPOTENCY, MAX_KEY_LENGTH
from .stream import error_data

if TYPE_CHECKING:
    from .extension import SSE

log = logging.getLogger("sseflask.stream")

#: What a published JSON object may have.
FIELDS = ("data", "event", "id", "retry")
#: What a form is sent as, and by curl all that is sent by -d: nobody means its text as an event's data.
FORMS = ("application/x-www-form-urlencoded", "multipart/form-data")


def install(sse: SSE) -> None:
    """Adds the routes to the blueprint."""
    # First, so that a preflight meets none of the blueprint's own guards.
    cors.install(sse)
    sse.after_request(_harden)
    # Both forms answer, with and without the slash, and neither redirects: an EventSource would have to follow at each reconnect.
    sse.add_url_rule("/", "subscribe_many", sse.answer_root, strict_slashes=False)
    sse.add_url_rule("/-/health", "health", lambda: health(sse))
    sse.add_url_rule("/-/client.js", "client", client)
    sse.add_url_rule("/-/metrics", "metrics", lambda: show_metrics(sse))
    sse.add_url_rule("/-/stats", "stats", lambda: show_stats(sse))
    dashboard.install(sse)
    sse.add_url_rule("/<path:channel>", "subscribe_one", lambda channel: subscribe(sse, [channel.rstrip("/")]))
    sse.add_url_rule("/<path:channel>", "publish_one", lambda channel: publish(sse, channel.rstrip("/")), methods=["POST"])
    for kind, answer in ANSWERS.items():
        sse.register_error_handler(kind, answer)
    sse.register_error_handler(EventTooLarge, lambda error: _refusal(413, str(error)))
    sse.register_error_handler(InvalidEvent, lambda error: _refusal(400, str(error)))
    sse.register_error_handler(auth.Refused, lambda error: _refusal(error.status, error.reason))
    sse.register_error_handler(HTTPException, _http_error)


def subscribe(sse: SSE, names: list[str]) -> Response:
    """Streams channels to who may subscribe to all of them."""
    channels = tuple(dict.fromkeys(checked_name(name) for name in names))
    sse.check_count(channels)
    expires_in = auth.check(current_app, "subscribe", channels, sse.find_authorization(), sse.settings.public_channels)
    return sse.open_subscription(channels, expires_in=expires_in)


def health(sse: SSE) -> Response:
    """Whether this worker is to be sent new streams: 200, or 503 and why not. For load balancers, so anyone may ask.

    What exactly is wrong with the broker only those are told who may inspect.
    """
    here, settings = process.current(), sse.settings
    try:
        problem = sse.installation.broker.problem()
        told = UNREACHABLE
    except BrokerUnavailable as error:
        problem, told = error.problem, error.told
    if problem is not None:
        here.tell_of_broker(problem, request.path)
        if not current_app.debug and not auth.may_inspect(current_app, sse.find_authorization()):
            problem = told
    checks = {
        "broker": problem is None,
        "draining": here.draining,
        "full": len(here.streams) >= process.most_streams(settings),
    }
    ready = checks["broker"] and not checks["draining"] and not checks["full"]
    response = jsonify(live=True, ready=ready, streams=len(here.streams), problem=problem, **checks)
    response.status_code = 200 if ready else 503
    response.headers["Cache-Control"] = "no-store"
    return response


def client() -> Response:
    """The browser client, an ES module. Anyone may fetch it; a browser asks each time whether there is a new one."""
    return dashboard.file("client.js")


def show_metrics(sse: SSE) -> Response:
    """What all workers of this server count, for Prometheus: to whom the app lets inspect it."""
    dashboard.check_inspect(sse)
    if not metrics.is_installed():
        return _refusal(501, f"metrics need prometheus_client: {metrics.INSTALL}")
    try:
        reading = ledger.current().read()
    except OSError as error:
        # No answer is better than sums that are too small: they would look as if all had begun anew.
        return _refusal(503, f"the other workers' numbers can't be read now: {error.strerror}")
    text, content_type = metrics.exposition(reading, request.headers.get("Accept", ""))
    return Response(text, content_type=content_type, headers={"Cache-Control": "no-store"})


def show_stats(sse: SSE) -> Response:
    """The same as JSON: of each worker, and of all together."""
    dashboard.check_inspect(sse)
    try:
        reading = ledger.current().read()
    except OSError as error:
        return _refusal(503, f"the other workers' numbers can't be read now: {error.strerror}")
    response = jsonify(
        worker=os.getpid(),
        workers={str(pid): {**now, **reading.ever[pid]} for pid, now in sorted(reading.now.items())},
        all={**reading.present, **reading.total},
    )
    response.headers["Cache-Control"] = "no-store"
    return response


def _harden(response: Response) -> Response:
    """Keeps browsers from taking an answer for a page, and from telling other sites the address, which may have a token."""
    response.headers.setdefault("X-Content-Type-Options", "nosniff")
    response.headers.setdefault("Referrer-Policy", "no-referrer")
    return response


def publish(sse: SSE, name: str) -> Response:
    """Publishes what is posted: a JSON object of `data`, `event`, `id` and `retry`, or a plain body as the data, but no form."""
    channel = checked_name(name)
    auth.check(current_app, "publish", (channel,), sse.find_authorization(), ())
    limit = sse.settings.max_event_bytes
    # JSON may spell each byte of the data out as an escape of six.
    if request.content_length is not None and request.content_length > 6 * limit + 1024:
        return _refusal(413, f"an event has at most {limit} bytes (SSE_MAX_EVENT_BYTES)")
    own = request.max_content_length
    request.max_content_length = 6 * limit + 1024 if own is None else min(own, 6 * limit + 1024)
    event = _posted()
    # Who doesn't know whether an event was published sends it again with the same key.
    key = request.headers.get(IDEMPOTENCY)
    if key is not None and not 1 <= len(key) <= MAX_KEY_LENGTH:
        return _refusal(400, f"{IDEMPOTENCY} has 1 to {MAX_KEY_LENGTH} characters, not {len(key)}")
    # A key is the channel's: another one's publisher may have the same. Neither can have a line end, so no two pairs are the same.
    token = f"{channel}\n{key}" if key is not None else None
    response = jsonify(id=sse.publish(event, channel=channel, token=token))
    response.status_code = 201
    return response


def _posted() -> ServerSentEvent:
    if request.mimetype in FORMS:
        raise UnsupportedMediaType(f"send Content-Type: application/json or text/plain, not {request.mimetype}")
    if not request.is_json:
        return ServerSentEvent(request.get_data())
    try:
        fields: Any = current_app.json.loads(request.get_data())
    except RecursionError:
        raise InvalidEvent("data", "…", "the JSON is nested too deeply") from None
    except ValueError as error:
        raise BadRequest(f"the body isn't JSON: {error}") from None
    if not isinstance(fields, dict) or "data" not in fields:
        raise InvalidEvent("data", fields, 'post a JSON object with "data", such as {"data": {"percent": 50}, "event": "progress"}')
    if unknown := sorted(set(fields) - set(FIELDS)):
        raise InvalidEvent(unknown[0], fields[unknown[0]], f"there is no such field; there are {', '.join(FIELDS)}")
    named = {name: fields[name] for name in FIELDS[1:] if name in fields}
    return to_event(fields["data"], **named)


def _unavailable(error: BrokerUnavailable) -> Response:
    """Tells a client no addresses and paths but in debug mode; the log has them."""
    process.current().tell_of_broker(error.problem, request.path)
    return _refusal(503, error.problem if current_app.debug else error.told, outcome=error.outcome)


def _stream_error(error: StreamError) -> Response:
    try:
        response = jsonify(error_data(error, debug=False))
    except (TypeError, ValueError, RecursionError):
        log.exception("the details of an error can't be sent: %r", error.details, extra={"sse_path": request.path})
        response = jsonify(error_data(error.without_details(), debug=False))
    response.status_code = error.status
    return response


def _http_error(error: HTTPException) -> Any:
    """What a guard of the app's aborts with: its response, if it has one of its own, or JSON with its headers (`Retry-After`)."""
    if error.response is not None:
        return error.response
    response = _refusal(error.code or 500, error.description or error.name)
    for name, value in error.get_headers(request.environ):
        if name.lower() not in ("content-type", "content-length"):
            response.headers.add(name, value)
    return response


def _refusal(status: int, problem: str, **more: str) -> Response:
    response = jsonify(error=problem, **more)
    response.status_code = status
    return response


#: What an app answers to our errors, in its own views too, unless it has handlers of its own for them.
ANSWERS: dict[type[Exception], Callable[[Any], Response]] = {
    InvalidChannel: lambda error: _refusal(400, str(error)),
    InvalidSubscription: lambda error: _refusal(400, str(error)),
    BrokerUnavailable: _unavailable,
    StreamError: _stream_error,
    UnknownTask: lambda error: _refusal(404, str(error)),
    TaskEnded: lambda error: _refusal(409, str(error)),
}
