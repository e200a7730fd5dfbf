"""The examples of sseflask: one Flask app, one module for each example.

Serve them with `gunicorn -c gunicorn.conf.py 'examples:create_app()'`. The example `celery` needs Redis, and so a
`SSE_BROKER_URL`, in the environment; `images` and `report` need what the extra `examples` installs; the others run without.
"""

from __future__ import annotations

import logging
import os
from typing import Any

from flask import Flask, Response
from flask.json.provider import DefaultJSONProvider

from . import catalogue
from .streaming import sse


class Json(DefaultJSONProvider):
    """JSON that is nested too deeply for Python's parser is no JSON, so 400, as any other that can't be read."""

    def loads(self, s: str | bytes, **kwargs: Any) -> Any:
        try:
            return super().loads(s, **kwargs)
        except RecursionError:
            raise ValueError("nested too deeply") from None


def create_app() -> Flask:
    """The app: an index page, a blueprint for each example, and sseflask."""
    app = Flask(__name__)
    app.json = Json(app)
    app.logger.setLevel(logging.INFO)  # The examples say what they do.
    app.config["SSE_BROKER_URL"] = os.environ.get("SSE_BROKER_URL", "auto")
    app.register_blueprint(catalogue.bp)
    for example in catalogue.EXAMPLES:
        app.register_blueprint(example.module.bp)
    # Last, when all streams are known: this installs the extension and its routes.
    app.register_blueprint(sse, url_prefix="/events")
    app.after_request(_allow_only_own_content)
    return app


def _allow_only_own_content(response: Response) -> Response:
    """No page loads anything from elsewhere, and none has a script or a style inside it."""
    response.headers["Content-Security-Policy"] = "default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.headers["Referrer-Policy"] = "same-origin"
    return response
