"""A counter: event types, ids, the reconnection time, and going on where a lost connection left off."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator

from flask import Blueprint, render_template, request

from sseflask import ServerSentEvent, current_stream

from .streaming import sse

bp = Blueprint("counter", __name__, url_prefix="/counter")


@bp.get("/")
def page() -> str:
    return render_template("counter.html")


# A browser that loses the connection comes back by itself; `retry` says after how many milliseconds.
@bp.get("/events")
@sse.stream(retry=1000)
def events() -> Iterator[ServerSentEvent]:
    """Counts up twice a second; with `?rest=10`, hangs up after each tenth count."""
    rest = request.args.get("rest", 0, type=int)
    last = _count_of(current_stream.last_event_id)
    if last:
        # No id here: the browser's position stays where it was.
        yield ServerSentEvent({"after": last}, event="resumed")

    for count in itertools.count(last + 1):
        # An event without a name reaches `onmessage`; a named one only those who listen for that name.
        name = "milestone" if count % 10 == 0 else None
        # The id is what the browser sends back as `Last-Event-ID`. It is all that is needed to go on, so nothing is kept
        # here for a client that is gone, and any worker, even one started a moment ago, can take it from there.
        yield ServerSentEvent({"count": count}, event=name, id=str(count))
        if rest and count % rest == 0:
            return  # The stream ends; EventSource takes that for a lost connection too, and comes back.
        time.sleep(0.5)


def _count_of(last_event_id: str | None) -> int:
    """The count that the client has seen last. The header comes from outside, so it may hold anything at all."""
    if last_event_id and last_event_id.isascii() and last_event_id.isdecimal() and len(last_event_id) <= 12:
        return int(last_event_id)
    return 0
