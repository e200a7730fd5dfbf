"""Notifications: one page publishes, every other one hears of it at once, and is told when something may be missing."""

from __future__ import annotations

import time
from typing import Any

from flask import Blueprint, Flask, Response, abort, jsonify, render_template, request
from werkzeug.exceptions import HTTPException

from sseflask import stream_closed, stream_opened

from .streaming import sse

bp = Blueprint("notifications", __name__, url_prefix="/notifications")

KINDS = {"info": "Notice", "good": "All clear", "warning": "Warning"}
MAX_CHARACTERS = 200
MAX_BYTES = 4096


@bp.get("/")
def page() -> str:
    return render_template("notifications.html", kinds=KINDS, max_characters=MAX_CHARACTERS)


@bp.get("/events")
def events() -> Response:
    """Two channels in one stream, in the order in which they were published to."""
    # No generator here: the view is done, and all that this page costs from now on is its socket. When it loses the connection and
    # comes back, it gets what it has missed; after a restart of the server a `stream-reset` event says that there may be more.
    return sse.subscribe("notifications", "notifications/pages", retry=1000)


@bp.post("/")
def publish() -> tuple[dict[str, str], int]:
    """Publishes `{"text": "…", "kind": "info", "page": "…"}`; the page's name tells it which notices are its own."""
    request.max_content_length = MAX_BYTES
    notice = notice_of(request.get_json(silent=True))
    # When this returns, the channel has the event, and its id is the one that every page sees it with.
    return {"id": sse.publish(notice, channel="notifications", event="notice")}, 201


def notice_of(payload: Any) -> dict[str, Any]:
    """What a page has sent, or a 400 that says what is wrong with it."""
    match payload:
        case {"text": str(text), "kind": str(kind), "page": str(page)} if text.strip() and len(page) <= 40:
            pass
        case _:
            abort(400, 'Send {"text": "…", "kind": "info", "page": "…"} as JSON; the page is a name of at most 40 characters.')
    if kind not in KINDS:
        abort(400, f"There is no such kind; there are: {', '.join(KINDS)}.")
    if len(text) > MAX_CHARACTERS:
        abort(413, f"A notice may have {MAX_CHARACTERS} characters.")
    return {"text": text.strip(), "kind": kind, "page": page, "at": round(time.time(), 3)}


@stream_opened.connect
@stream_closed.connect
def count_pages(app: Flask, stream: Any, **_: Any) -> None:
    """Tells all pages how many they are whenever one comes or goes. With thousands of them, tell it once a second instead."""
    if stream.path == f"{bp.url_prefix}/events":
        with app.app_context():
            sse.publish({"pages": sse.channel("notifications").subscribers}, channel="notifications/pages", event="pages")


@bp.errorhandler(HTTPException)
def refused(error: HTTPException) -> tuple[Response, int]:
    return jsonify(error=error.description, error_type=error.name.lower().replace(" ", "_")), error.code or 500
