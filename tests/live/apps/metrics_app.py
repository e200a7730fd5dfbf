"""An app whose metrics and statistics anyone may read: streams of channels and of a generator, on several workers."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from flask import Flask, Response, request

from sseflask import SSE, current_stream
from tests.live.apps.environment import from_environment


def create_app() -> Flask:
    """The app."""
    app = Flask(__name__)
    app.config.update(SSE_PUBLIC_CHANNELS=["*"], SSE_METRICS_CHANNELS=["job:*"])
    app.config.update(from_environment())
    sse = SSE()
    sse.authorize(lambda action, channel: action == "inspect" and channel == "*")

    @app.after_request
    def name_worker(response: Response) -> Response:
        response.headers["X-Worker"] = str(os.getpid())
        return response

    @app.post("/publish")
    def publish() -> dict[str, Any]:
        """Publishes as many events to the channel of the query as that says."""
        for n in range(request.args.get("count", 1, int)):
            sse.publish({"n": n}, channel=request.args["channel"])
        return {}

    @app.get("/fails")
    @sse.stream
    def fails() -> Iterator[str | None]:
        """Says what its request is called, and fails."""
        yield current_stream.request_id
        raise ValueError("it fails on purpose")

    app.register_blueprint(sse, url_prefix="/events")
    return app


app = create_app()
