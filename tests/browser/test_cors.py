"""A page of another origin, in Chromium: what `SSE_CORS_ORIGINS` lets it do, and what it doesn't."""

from __future__ import annotations

import socket

import pytest
from playwright.sync_api import Error, Page

from tests.browser.conftest import Console
from tests.conftest import Serve
from tests.live.client import get

APP = """
    from flask import Flask
    from sseflask import SSE
    app = Flask(__name__)
    app.config.update(SECRET_KEY="a secret", SSE_CORS_ORIGINS=["http://127.0.0.1:{port}"])
    sse = SSE()

    @app.get("/")
    def page():
        return '<!doctype html><link rel="icon" href="data:,"><title>Another origin</title>'

    @app.get("/token/<action>")
    def token(action):
        return sse.sign("private", action=action)

    app.register_blueprint(sse, url_prefix="/events")
"""
# Resolves to the types of the first events, and to its `readyState` once it has failed.
OPEN = """([url, count]) => new Promise((resolve) => {
  const source = new EventSource(url, { withCredentials: true });
  const seen = [];
  const done = (what) => { source.close(); resolve(what); };
  for (const type of ["stream-open", "note"]) source.addEventListener(type, (event) => {
    seen.push([event.type, event.data]);
    window.opened?.();
    if (seen.length === count) done(seen);
  });
  source.onerror = () => { if (source.readyState === EventSource.CLOSED) done("closed"); };
})"""
PUBLISH = """async ([url, token]) => {
  const headers = { "Content-Type": "application/json", Authorization: `Bearer ${token}`, "Idempotency-Key": "1" };
  const response = await fetch(url, { method: "POST", headers, body: JSON.stringify({ data: "hello", event: "note" }) });
  return response.status;
}"""


def free_port() -> int:
    """One that nothing listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def test_origins(serve: Serve, page: Page, console: Console) -> None:
    """A page of an origin that is named streams with its cookie, posts with a token and reads refusals; another one nothing."""
    console.allow(r"CORS policy|net::ERR_FAILED|status of 403")
    port = free_port()
    server = serve(APP.replace("{port}", str(port)), args=["--bind", f"127.0.0.1:{port}"])
    private = server.url("/events/private")
    read, write = (get(server, f"/token/{action}").text for action in ("subscribe", "publish"))
    page.context.add_cookies([{"name": "sse_token", "value": read, "domain": "127.0.0.1", "path": "/"}])

    page.goto(f"http://127.0.0.1:{port}/")
    assert page.evaluate(PUBLISH, [private, write]) == 201
    assert page.evaluate("(url) => fetch(url).then((response) => response.status)", private) == 403
    page.evaluate(
        "([url, open]) => { window.result = eval(open)([url, 2]); return new Promise((r) => { window.opened = r; }); }",
        [private, OPEN],
    )
    assert page.evaluate(PUBLISH.replace('"1"', '"2"'), [private, write]) == 201
    assert page.evaluate("window.result") == [["stream-open", '{"channels":["private"]}'], ["note", "hello"]]

    page.goto(f"http://localhost:{port}/")
    public = server.url("/events/-/health")
    assert page.evaluate(OPEN, [private, 1]) == "closed"
    for ask in (lambda: page.evaluate(PUBLISH, [private, write]), lambda: page.evaluate("(url) => fetch(url)", public)):
        with pytest.raises(Error, match="Failed to fetch"):
            ask()
