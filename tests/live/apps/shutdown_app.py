"""Streams that are open when their worker is told to stop. What generators see is written to the log, which outlives the worker."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from typing import Any

from flask import Flask, Response, request
from gevent.monkey import get_original

from sseflask import SSE, StreamClosed, current_stream
from tests.live.apps.environment import from_environment

app = Flask(__name__)
app.config.update(from_environment())
sse = SSE()


def note(text: str) -> None:
    """Writes one line to the log, in one piece."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


@app.get("/stream")
@sse.stream
def stream() -> Iterator[Any]:
    """Says who serves it and is silent from then on; its `finally` takes `slow` seconds."""
    n, slow = request.args.get("n", "0"), float(request.args.get("slow", "0"))
    reason = "none"
    try:
        yield {"pid": os.getpid(), "n": n, "last": current_stream.last_event_id}
        time.sleep(3600)
    except StreamClosed as closed:
        reason = closed.reason
        raise
    finally:
        time.sleep(slow)
        note(f"finally n={n} reason={reason} pid={os.getpid()}")


@app.get("/remembered")
@sse.stream
def remembered() -> Iterator[Any]:
    """What is called at its end takes its time, as a write to a database may."""

    def remember() -> None:
        time.sleep(0.5)
        note("remembered")

    current_stream.on_close(remember)
    yield "open"
    time.sleep(3600)


@app.get("/counting")
@sse.stream
def counting() -> Iterator[Any]:
    """Counts, quickly and without an end."""
    n = 0
    while True:
        yield {"n": n}
        n += 1
        time.sleep(0.02)


@app.get("/opening")
@sse.stream
def opening() -> Iterator[Any]:
    """Never gets as far as its first event."""
    try:
        note("opening")
        time.sleep(3600)
        yield "never"
    finally:
        note("finally opening")


@app.get("/plain-stream")
def plain_stream() -> Response:
    """What an app without us does."""

    def generate() -> Iterator[str]:
        yield "data: open\n\n"
        time.sleep(3600)

    return Response(generate(), mimetype="text/event-stream")


@app.get("/slow")
def slow() -> str:
    """A plain request that takes its time."""
    note("slow began")
    time.sleep(float(request.args["seconds"]))
    return "done"


@app.get("/block")
def block() -> str:
    """Keeps the whole worker, until there is a file."""
    note("block began")
    sleep = get_original("time", "sleep")
    while not os.path.exists(request.args["until"]):
        sleep(0.01)
    return "done"


@app.get("/pid")
def pid() -> dict[str, Any]:
    """Which process this is, and what it has open."""
    return {"pid": os.getpid(), **sse.stats()}


app.register_blueprint(sse, url_prefix="/events")
