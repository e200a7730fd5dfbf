"""Two apps of one factory in one process, each with its own `SSE` and settings, behind one dispatcher."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from flask import Blueprint, Flask, current_app, url_for
from werkzeug.middleware.dispatcher import DispatcherMiddleware

from sseflask import SSE


def create_app(name: str, **config: Any) -> Flask:
    """An app whose streams and routes lie in a nested blueprint."""
    app = Flask(name)
    app.config.update(config)
    sse = SSE(name=f"{name}-events")
    inner, outer = Blueprint("inner", __name__), Blueprint("outer", __name__)

    @inner.get("/stream")
    @sse.stream
    def stream() -> Iterator[Any]:
        yield {"app": current_app.name, "here": url_for("outer.inner.stream")}
        time.sleep(0.6)
        raise RuntimeError("secret")

    @app.get("/stats")
    def stats() -> dict[str, Any]:
        return sse.stats()

    inner.register_blueprint(sse, url_prefix="/sse")
    outer.register_blueprint(inner, url_prefix="/inner")
    app.register_blueprint(outer, url_prefix="/outer")
    return app


application = DispatcherMiddleware(
    create_app("one", SSE_KEEPALIVE_INTERVAL=0.2, SSE_ERROR_EVENT="oops", SSE_RETRY=111),
    {"/two": create_app("two", SSE_RETRY=222, DEBUG=True, SSE_MAX_STREAMS=2)},
)
