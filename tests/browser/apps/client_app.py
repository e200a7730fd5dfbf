"""Streams for pages with the browser client: channels, one with a snapshot, and an answer that is late."""

from __future__ import annotations

import threading
from typing import Any

from flask import Flask, Response, request

from sseflask import SSE, ServerSentEvent
from tests.live.apps import journal
from tests.live.apps.environment import from_environment

app = Flask(__name__)
app.config.update(SSE_PUBLIC_CHANNELS=["*"], SSE_RETRY=100)
app.config.update(from_environment())
app.register_blueprint(journal.blueprint)
sse = SSE()


@app.get("/")
def page() -> str:
    """A page of the same origin."""
    return '<!doctype html><link rel="icon" href="data:,"><title>Client</title>'


@app.post("/publish/<channel>")
def publish(channel: str) -> dict[str, Any]:
    """Publishes the numbers from `first` up to but not `end`; with `own`, two by two under ids of the publisher's own."""
    first, end = request.args.get("first", 0, int), int(request.args["end"])
    own = "own" in request.args
    return {"ids": [sse.publish(n, channel=channel, event="n", id=f"pair {n // 2}" if own else None) for n in range(first, end)]}


@app.post("/close/<channel>")
def close(channel: str) -> dict[str, Any]:
    """Closes the channel."""
    return {"id": sse.channel(channel).close({"over": True})}


hanging: list[threading.Event] = []


@app.get("/hang")
def hang() -> str:
    """Answers when `/release` is asked for."""
    released = threading.Event()
    hanging.append(released)
    released.wait(40)
    return ""


@app.post("/release")
def release() -> dict[str, int]:
    """Lets those answer that wait; says how many."""
    released = [hanging.pop() for _ in range(len(hanging))]
    for each in released:
        each.set()
    return {"count": len(released)}


@app.get("/with-snapshot")
def with_snapshot() -> Response:
    """The channel `news`, after an event that says what it is."""
    return sse.subscribe("news", snapshot=lambda: [ServerSentEvent({"all": "of it"}, event="snapshot")])


app.register_blueprint(sse, url_prefix="/events")
