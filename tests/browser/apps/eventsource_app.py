"""Streams for a page with an EventSource: channels, a count with ids of its own, and work that is to be done once."""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Generator, Iterator
from typing import Any

from flask import Flask, request

from sseflask import SSE, ServerSentEvent, current_stream
from tests.live.apps import journal
from tests.live.apps.environment import from_environment

app = Flask(__name__)
app.config.update(SSE_PUBLIC_CHANNELS=["*"], SSE_RETRY=200)
app.config.update(from_environment())
app.register_blueprint(journal.blueprint)
sse = SSE()


@app.get("/")
def page() -> str:
    """A page of the same origin."""
    return '<!doctype html><link rel="icon" href="data:,"><title>EventSource</title>'


@app.post("/publish/<channel>")
def publish(channel: str) -> dict[str, Any]:
    """Publishes the numbers from `first` up to but not `end`."""
    return {
        "ids": [
            sse.publish(n, channel=channel, event="n") for n in range(request.args.get("first", 0, int), int(request.args["end"]))
        ]
    }


@app.post("/close/<channel>")
def close(channel: str) -> dict[str, Any]:
    """Closes the channel."""
    return {"id": sse.channel(channel).close("over")}


@app.get("/count")
@sse.stream
def count() -> Iterator[ServerSentEvent]:
    """Counts on from the id that the client saw last, a hundred times a second."""
    for n in itertools.count(int(current_stream.last_event_id or -1) + 1):
        yield ServerSentEvent(n, event="n", id=str(n))
        time.sleep(0.01)


@app.get("/work")
@sse.stream(lifecycle=True)
def work() -> Generator[ServerSentEvent, None, str]:
    """Three steps and a result; `?fail=1` fails after them."""
    sys.stderr.write("work begins\n")
    for n in range(3):
        yield ServerSentEvent(n, event="n")
    if request.args.get("fail"):
        raise RuntimeError("the work has failed")
    return "all of it"


@app.get("/once")
@sse.stream
def once() -> Iterator[str]:
    """Ends after one event, without an id: a browser comes back to it for ever."""
    yield "again"


app.register_blueprint(sse, url_prefix="/events")
