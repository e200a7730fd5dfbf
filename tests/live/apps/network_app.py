"""Streams of each kind, for clients on the far side of a bad network; what becomes of them is told at plain routes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from flask import Flask, Response, request

from sseflask import SSE
from tests.live.apps import journal
from tests.live.apps.environment import from_environment
from tests.live.apps.journal import watching

app = Flask(__name__)
app.config.update(SSE_PUBLIC_CHANNELS=["*"])
app.config.update(from_environment())
app.register_blueprint(journal.blueprint)
sse = SSE()


@app.get("/on")
def on() -> Response:
    """Subscribes to the channels of the query."""
    return sse.subscribe(*request.args.getlist("channel"))


@app.get("/silent")
@sse.stream
def silent() -> Iterator[Any]:
    """Yields once, and then nothing for an hour."""
    with watching(request.args["name"]):
        yield "open"
        time.sleep(3600)


@app.get("/busy")
@sse.stream
def busy() -> Iterator[Any]:
    """Yields all the time, or so often, and is silent then."""
    size, pause = request.args.get("size", 100, int), request.args.get("pause", 0.02, float)
    with watching(request.args["name"]):
        for _ in range(request.args.get("count", 1_000_000, int)):
            yield "x" * size
            time.sleep(pause)
        time.sleep(3600)


@app.post("/publish")
def publish() -> dict[str, Any]:
    """Publishes numbered events of a size, with a pause between them."""
    args = request.args
    channel, first, count = args["channel"], args.get("first", 0, int), args.get("count", 1, int)
    filling = "x" * args.get("size", 0, int)
    for n in range(first, first + count):
        sse.publish({"n": n, "at": time.monotonic(), "filling": filling}, channel=channel)
        time.sleep(args.get("pause", 0.0, float))
    return {}


app.register_blueprint(sse, url_prefix="/events")
