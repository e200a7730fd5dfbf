"""This machine's metrics, live: a stream without an end, and an error before it begins."""

from __future__ import annotations

import time
from collections.abc import Iterator

from flask import Blueprint, abort, render_template
from werkzeug.exceptions import HTTPException

from sseflask import ServerSentEvent

from . import machine
from .streaming import sse

bp = Blueprint("metrics", __name__, url_prefix="/metrics")


@bp.get("/")
def page() -> str:
    return render_template("metrics.html")


@bp.get("/events")
@sse.stream
def events() -> Iterator[ServerSentEvent]:
    """One `machine` event, then a `sample` twice a second for as long as somebody watches."""
    try:
        before = machine.Reading.take()
    except FileNotFoundError:
        # Nothing has been sent yet, so this is an ordinary HTTP error, seen to by Flask's error handlers.
        abort(501, "These metrics come from /proc, which only Linux has.")

    yield ServerSentEvent(machine.describe(), event="machine")
    # No way out of this loop is needed: when the client leaves, `StreamClosed` is raised where we sleep.
    while True:
        time.sleep(0.5)
        now = machine.Reading.take()
        yield ServerSentEvent(now.since(before), event="sample")
        before = now


@bp.errorhandler(501)
def not_on_this_system(error: HTTPException) -> tuple[dict[str, str | None], int]:
    return {"error": error.description, "error_type": "no_proc"}, 501
