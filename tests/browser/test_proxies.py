"""A browser's EventSources through the proxies of deploy/: more than six, and none of them ended by an outage."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.sync_api import Browser

from sseflask import Publisher
from tests.conftest import Serve
from tests.live.proxies import Kind, Proxy, needing

APP = """
import os
from flask import Flask
from sseflask import SSE

app = Flask(__name__)
app.config.update(SSE_BROKER_URL=os.environ["APP_BROKER_URL"], SSE_PUBLIC_CHANNELS=["*"], SSE_RETRY=200)
app.route("/page")(lambda: "<!doctype html><title>page</title>")
app.register_blueprint(SSE(), url_prefix="/events")
"""
SOURCES = 10

#: Opens them, and notes what happens to each.
OPEN = """(count) => {
  window.seen = Array.from({ length: count }, () => ({ opened: 0, numbers: [], state: 0 }));
  window.seen.forEach((seen, n) => {
    const source = new EventSource(`/events/news?page=${n}`);
    source.onopen = () => { seen.opened += 1; };
    source.onmessage = (event) => { seen.numbers.push(JSON.parse(event.data)); };
    source.onerror = () => { seen.state = source.readyState; };
  });
}"""


@pytest.mark.parametrize("kind", [needing("nginx"), needing("haproxy"), needing("caddy")])
def test_ten_event_sources_outlive_an_outage(chromium: Browser, serve: Serve, tmp_path: Path, kind: Kind) -> None:
    """All ten are open at once; killed behind the proxy and started again, the server has each of them back, where it was."""
    url = f"sqlite:///{tmp_path}/events.sqlite"
    server = serve(APP, env={"APP_BROKER_URL": url})
    # Back sooner than the file says, or the test would wait for it; a server twice is a site with one.
    with Proxy(kind, tmp_path, [server.port, server.port], {"retry: 3000": "retry: 200"}) as proxy, Publisher(url) as publisher:
        context = chromium.new_context(ignore_https_errors=True)
        context.set_default_timeout(20_000)
        page = context.new_page()
        try:
            page.goto(proxy.url("/page"))
            page.evaluate(OPEN, SOURCES)
            page.wait_for_function("() => seen.every((each) => each.opened === 1)")
            publisher.publish(1, channel="news")
            page.wait_for_function("() => seen.every((each) => each.numbers.length === 1)")
            server.stop()
            publisher.publish(2, channel="news")
            # In place of an error, each has had an answer that an EventSource takes for one.
            page.wait_for_function("() => seen.every((each) => each.opened > 1)")
            server.restart()
            publisher.publish(3, channel="news")
            page.wait_for_function("() => seen.every((each) => each.numbers.at(-1) === 3)")
            seen = page.evaluate("() => seen")
        finally:
            context.close()
    assert [each["numbers"] for each in seen] == [[1, 2, 3]] * SOURCES
    # 2 would be CLOSED: given up for good.
    assert {each["state"] for each in seen} == {0}
