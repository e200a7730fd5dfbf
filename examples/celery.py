"""A job that runs in a Celery worker, perhaps on another machine, and shows in the page how far it is."""

from __future__ import annotations

import importlib.util
import re
import uuid

from flask import Blueprint, Response, abort, jsonify, render_template, request, url_for
from werkzeug.exceptions import HTTPException

from sseflask import ServerSentEvent

from .streaming import sse

bp = Blueprint("celery", __name__, url_prefix="/celery")

LIMITS = {"1000000": "a million", "100000000": "100 million", "1000000000": "a billion"}
MAX_BYTES = 1024


@bp.get("/")
def page() -> str:
    return render_template("celery.html", limits=LIMITS, missing=missing())


@bp.post("/jobs")
def start() -> tuple[dict[str, str], int]:
    """Hands `{"limit": "1000000"}` to the worker, and answers with the job's id and where its events are."""
    request.max_content_length = MAX_BYTES
    payload = request.get_json(silent=True)
    limit = payload.get("limit") if isinstance(payload, dict) else None
    if not isinstance(limit, str) or limit not in LIMITS:
        abort(400, f'Send {{"limit": "…"}} as JSON; there are: {", ".join(LIMITS)}.')
    if (what := missing()) is not None:
        abort(503, what)
    # Here, so that the other examples need neither Celery nor Redis.
    from kombu.exceptions import OperationalError
    from redis import RedisError

    from .worker import app, count_primes

    job = uuid.uuid4().hex
    try:
        if not app.control.ping(timeout=3, limit=1):
            abort(503, "No Celery worker answers: start one.")
        count_primes.apply_async((int(limit),), task_id=job, retry=False)
    except (OperationalError, RedisError):
        abort(503, "Redis can't be reached: start it.")
    return {"job": job, "events": url_for("celery.events", job=job)}, 201


@bp.get("/jobs/<job>/events")
def events(job: str) -> Response:
    """What the worker publishes to the job's channel, from where it is now."""
    if not re.fullmatch("[0-9a-f]{32}", job):
        abort(404, "There is no such job.")
    if (what := missing()) is not None:
        abort(503, what)
    # The job may be half done, or done, when a page asks for it the first time: the snapshot says so. The position was taken before
    # it, so what the worker publishes meanwhile follows.
    return sse.subscribe(f"job:{job}", snapshot=lambda: latest(job), retry=1000)


def latest(job: str) -> list[ServerSentEvent]:
    """What Celery knows of a job."""
    from redis import RedisError

    from .worker import count_primes

    result = count_primes.AsyncResult(job)
    try:
        state, info = result.state, result.info
    except RedisError:
        abort(503, "Redis can't be reached: start it.")
    if state == "PROGRESS":
        return [ServerSentEvent(info, event="progress")]
    if state == "SUCCESS":
        return [ServerSentEvent(info, event="complete")]
    return [ServerSentEvent({"error": "The job has failed."}, event="failed")] if state == "FAILURE" else []


def missing() -> str | None:
    """What this example needs and hasn't; None if it may go on."""
    if importlib.util.find_spec("celery") is None or importlib.util.find_spec("redis") is None:
        return "Celery, or Redis's client, isn't installed."
    if not sse.settings.broker_url.startswith(("redis://", "rediss://", "unix://")):
        return "The channels of this server live on its own host: it was started without Redis."
    return None


@bp.errorhandler(HTTPException)
def refused(error: HTTPException) -> tuple[Response, int]:
    return jsonify(error=error.description, error_type=error.name.lower().replace(" ", "_")), error.code or 500
