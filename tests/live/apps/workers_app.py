"""Channels that several workers serve: subscribes, publishes, ends streams, and says which worker did it.

What is published says which series it belongs to, the channel's name, and its number in it: `{"series": "news", "n": 17}`.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from typing import Any

from flask import Flask, Response, request
from werkzeug.middleware.dispatcher import DispatcherMiddleware

from sseflask import SSE, BrokerUnavailable
from tests.live.apps.environment import from_environment


def publish_each(sse: SSE) -> tuple[dict[str, Any], int]:
    """Publishes what the query says; what was published, or why no more was."""
    args = request.args
    channel, first, count = args["channel"], args.get("first", 0, int), args.get("count", 1, int)
    token, pause = args.get("token"), args.get("pause", 0.0, float)
    published: list[dict[str, Any]] = []
    began = time.monotonic()
    try:
        for n in range(first, first + count):
            event_id = sse.publish(
                {"series": channel, "n": n}, channel=channel, token=f"{token}-{n}" if token is not None else None
            )
            published.append({"n": n, "id": event_id, "at": time.monotonic()})
            if pause:
                time.sleep(pause)
    except BrokerUnavailable as error:
        facts = {"outcome": error.outcome, "problem": error.problem, "seconds": time.monotonic() - began}
        return {"pid": os.getpid(), "published": published, **facts}, 503
    if "dying" in args:
        os.kill(os.getpid(), signal.SIGKILL)
    return {"pid": os.getpid(), "published": published}, 200


def create_app(**config: Any) -> Flask:
    """An app of its own; all of one process have the same import name."""
    app = Flask(__name__)
    app.config.update(SSE_PUBLIC_CHANNELS=["*"])
    app.config.update(from_environment() | config)
    sse = SSE()
    sse.client_key(lambda: request.args.get("client"))

    @app.after_request
    def name_worker(response: Response) -> Response:
        response.headers["X-Worker"] = str(os.getpid())
        return response

    @app.get("/on")
    def on() -> Response:
        """Subscribes to the channels of the query."""
        keepalive = request.args.get("keepalive", None, float)
        options: dict[str, Any] = {} if keepalive is None else {"keepalive": keepalive}
        return sse.subscribe(*request.args.getlist("channel"), **options)

    @app.get("/silence")
    @sse.stream
    def silence() -> Iterator[Any]:
        """A stream of a generator, which has nothing to do with channels."""
        yield {"pid": os.getpid()}
        time.sleep(3600)

    @app.post("/publish")
    def publish() -> tuple[dict[str, Any], int]:
        """Publishes numbered events, each with a token made of its number where one is given; if `dying`, it isn't answered."""
        return publish_each(sse)

    @app.get("/count")
    def count() -> dict[str, Any]:
        """How many streams the channel of the query has, as this worker sees it."""
        return {"pid": os.getpid(), "subscribers": sse.channel(request.args["channel"]).subscribers}

    @app.post("/disconnect")
    def disconnect() -> dict[str, Any]:
        """Ends streams of a channel, of a client, or both."""
        sse.disconnect(channel=request.args.get("channel"), client_key=request.args.get("client"))
        return {}

    @app.post("/close")
    def close() -> dict[str, Any]:
        """Closes the channel of the query."""
        return {"id": sse.channel(request.args["channel"]).close("over")}

    @app.get("/worker")
    def worker() -> dict[str, Any]:
        """Which worker this is, and what it has open."""
        return {"pid": os.getpid(), **sse.stats()}

    app.register_blueprint(sse, url_prefix="/events")
    return app


app = create_app()
#: The same app a second time, beside it; its prefix is what workers tell it by.
two_apps = DispatcherMiddleware(app, {"/two": create_app(SSE_BROKER_PREFIX="two")})
