"""What one writes by hand: a generator with a queue per client, under gunicorn's gevent worker."""

from __future__ import annotations

import queue

import gevent
from flask import Flask, Response, request
from hub import HubWatch
from publishing import Feed, event_data

KEEPALIVE_SECONDS = 15

app = Flask(__name__)
clients: dict[str, set[queue.Queue[str]]] = {}
watches: list[HubWatch] = []


def event_stream(generator):
    """A response of what a generator yields."""
    return Response(generator, mimetype="text/event-stream", headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})


@app.get("/subscribe")
def subscribe():
    """A queue for one client, and a generator that empties it."""
    channel = request.args["channel"]
    events: queue.Queue[str] = queue.Queue()
    clients.setdefault(channel, set()).add(events)

    def stream():
        try:
            yield ": open\n\n"
            while True:
                try:
                    yield f"data: {events.get(timeout=KEEPALIVE_SECONDS)}\n\n"
                except queue.Empty:
                    yield ": keepalive\n\n"
        finally:
            clients[channel].discard(events)

    return event_stream(stream())


@app.get("/publish")
def publish():
    """Puts events into the queues of all clients."""
    feed = Feed(request.args)
    for channel, data in feed:
        for events in list(clients.get(channel, ())):
            events.put(data)
        if feed.gives_way:
            gevent.sleep(feed.pause())
    return feed.summary()


@app.get("/generate")
def generate():
    """A generator for one client."""
    count, size, pause = int(request.args["count"]), int(request.args["size"]), float(request.args["pause"])

    def stream():
        for seq in range(1, count + 1):
            yield f"data: {event_data(seq, size)}\n\n"
            if pause:
                gevent.sleep(pause)

    return event_stream(stream())


@app.get("/hub")
def hub():
    """The hub's longest turn since the last call."""
    if not watches:
        watches.append(HubWatch())
    longest = watches[0].longest
    watches[0].reset()
    return {"longest": longest}


@app.get("/idle")
def idle():
    """A generator that waits."""

    def stream():
        yield ": open\n\n"
        while True:
            gevent.sleep(KEEPALIVE_SECONDS)
            yield ": keepalive\n\n"

    return event_stream(stream())
