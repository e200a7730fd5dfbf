"""Channels of an app that several workers serve: what each worker does and has can be told apart.

What is published says which series it belongs to, and its number in it: `{"series": "news", "n": 17}`.
"""

from __future__ import annotations

import os
import time
from typing import Any

from flask import Flask, Response, request

from sseflask import SSE
from sseflask.errors import BrokerUnavailable
from tests.live.apps.environment import from_environment

app = Flask(__name__)
app.config.update(SECRET_KEY="secret of the tests", SSE_PUBLIC_CHANNELS=["*"])
app.config.update(from_environment())
sse = SSE()


@app.after_request
def name_worker(response: Response) -> Response:
    """Says which process answers."""
    response.headers["X-Worker"] = str(os.getpid())
    return response


@sse.client_key
def client() -> str | None:
    """Who asks, as it says itself."""
    return request.args.get("client")


@app.get("/on")
def on() -> Response:
    """Subscribes to the channels of the query."""
    return sse.subscribe(*request.args.getlist("channel"))


@app.post("/publish")
def publish() -> tuple[dict[str, Any], int]:
    """Publishes `count` events to a channel; says what the broker said if it has them not."""
    args = request.args
    channel, first, count = args["channel"], args.get("first", 0, int), args.get("count", 1, int)
    series, token = args.get("series", channel), args.get("token")
    began = time.monotonic()
    try:
        ids = [sse.publish({"series": series, "n": n}, channel=channel, token=token) for n in range(first, first + count)]
    except BrokerUnavailable as error:
        return {"outcome": error.outcome, "problem": error.problem, "seconds": time.monotonic() - began}, 503
    return {"ids": ids, "pid": os.getpid()}, 200


@app.get("/subscribers")
def subscribers() -> dict[str, Any]:
    """How many streams the channel of the query has, over all workers."""
    return {"count": sse.channel(request.args["channel"]).subscribers, "pid": os.getpid()}


@app.post("/disconnect")
def disconnect() -> dict[str, Any]:
    """Ends streams, in all workers."""
    sse.disconnect(channel=request.args.get("channel"), client_key=request.args.get("client"))
    return {}


@app.post("/close")
def close() -> dict[str, Any]:
    """Closes the channel of the query."""
    return {"id": sse.channel(request.args["channel"]).close("over")}


@app.get("/worker")
def worker() -> dict[str, Any]:
    """What this worker has open."""
    return {**sse.stats(), "pid": os.getpid()}


@app.get("/plain")
def plain() -> str:
    """A request that is no stream."""
    return "plain"


app.register_blueprint(sse, url_prefix="/events")
