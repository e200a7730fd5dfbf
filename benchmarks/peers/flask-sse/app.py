"""Flask-SSE with Redis, under gunicorn's gevent worker."""

from __future__ import annotations

import os

import gevent
from flask import Flask, request
from flask_sse import sse
from publishing import Feed

app = Flask(__name__)
app.config["SSE_REDIS_URL"] = os.environ["BENCH_REDIS_URL"]
app.register_blueprint(sse, url_prefix="/subscribe")


@app.get("/publish")
def publish():
    """Publishes what the query asks for, through Redis."""
    feed = Feed(request.args)
    for channel, data in feed:
        sse.publish(data, channel=channel)
        if feed.gives_way:
            gevent.sleep(feed.pause())
    return feed.summary()
