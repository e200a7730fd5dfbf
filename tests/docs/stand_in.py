"""The app behind a page that shows a browser's side only."""

from __future__ import annotations

from typing import Any

from flask import Flask, request

from sseflask import SSE, ServerSentEvent


def make_app() -> Flask:
    """An app whose channels are open, with jobs, answers and tokens."""
    app = Flask(__name__)
    app.config.update(SECRET_KEY="a secret", SSE_PUBLIC_CHANNELS=["*"], SSE_OPEN_TIMEOUT=0)
    sse = SSE()

    @app.get("/jobs/<job_id>/events")
    def job_events(job_id: str) -> Any:
        return sse.subscribe(f"job:{job_id}")

    @app.get("/token")
    def token() -> str:
        return "t"

    @app.post("/answers")
    @sse.stream
    def answer() -> Any:
        for word in request.get_json()["question"].split():
            yield ServerSentEvent({"word": word}, event="word")
        yield ServerSentEvent("", event="stream-end")

    app.register_blueprint(sse, url_prefix="/events")
    return app
