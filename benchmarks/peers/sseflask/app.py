"""sseflask under `StreamWorker`: one worker with channels in memory, or what the harness says."""

from __future__ import annotations

import os

import gevent
from flask import Flask, request
from hub import HubWatch
from publishing import Feed, event_data

from sseflask import SSE

app = Flask(__name__)
broker = os.environ.get("BENCH_BROKER", "memory://")
app.config.update(SSE_PUBLIC_CHANNELS=["*"], SSE_BROKER_URL=os.environ["BENCH_REDIS_URL"] if broker == "redis" else broker)
sse = SSE()
watches: list[HubWatch] = []


@app.get("/subscribe")
def subscribe():
    """The live events of a channel."""
    return sse.subscribe(request.args["channel"])


@app.get("/publish")
def publish():
    """Publishes what the query asks for."""
    feed = Feed(request.args)
    for channel, data in feed:
        sse.publish(data, channel=channel)
        if feed.gives_way:
            gevent.sleep(feed.pause())
    return feed.summary()


@app.get("/generate")
@sse.stream
def generate():
    """A generator for one client."""
    count, size, pause = int(request.args["count"]), int(request.args["size"]), float(request.args["pause"])
    for seq in range(1, count + 1):
        yield event_data(seq, size)
        if pause:
            gevent.sleep(pause)


@app.get("/hub")
def hub():
    """The hub's longest turn since the last call."""
    if not watches:
        watches.append(HubWatch())
    longest = watches[0].longest
    watches[0].reset()
    return {"longest": longest}


@app.get("/idle")
@sse.stream
def idle():
    """A generator that waits."""
    yield "open"
    gevent.sleep(3600)


app.register_blueprint(sse, url_prefix="/events")
