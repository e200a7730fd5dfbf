"""An app whose dashboard anyone may see, and use by hand on any channel but the secret ones."""

from __future__ import annotations

from collections.abc import Iterator

from flask import Flask

from sseflask import SSE
from tests.live.apps.environment import from_environment


def create_app() -> Flask:
    """The app."""
    app = Flask(__name__)
    app.config.update(SECRET_KEY="secret")
    app.config.update(from_environment())
    sse = SSE()
    sse.authorize(lambda action, channel: not channel.startswith("secret"))

    @app.get("/fails")
    @sse.stream
    def fails() -> Iterator[str]:
        """Fails after its first event."""
        yield "so far"
        raise ValueError("it fails on purpose")

    @app.get("/token/<path:channel>")
    def token(channel: str) -> str:
        """A token for a channel."""
        return sse.sign(channel)

    app.register_blueprint(sse, url_prefix="/events")
    return app


app = create_app()
