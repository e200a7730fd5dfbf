"""Streams for other people's clients: one of all kinds of events, channels whose subscribers are cut again and again, and pages."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flask import Flask, Response, redirect, request, send_from_directory
from werkzeug.wrappers import Response as BaseResponse

from sseflask import SSE, ServerSentEvent
from tests.interop.events import EVENTS, NUMBERS

NODE_MODULES = Path(__file__).with_name("node") / "node_modules"

app = Flask(__name__)
app.config.update(SSE_RETRY=100)
sse = SSE()
begun: set[str] = set()


@app.get("/all")
@sse.stream(keepalive=0.2)
def everything() -> Any:
    """All kinds of events; whoever comes back after the last one is told that this is all."""
    if request.headers.get("Last-Event-ID") == EVENTS[-1].id:
        return "", 204

    def events() -> Iterator[ServerSentEvent]:
        for event in EVENTS:
            if event.event == "after":
                time.sleep(0.7)
            yield event

    return events()


@app.get("/live/<name>")
def live(name: str) -> Response:
    """A channel that counts from its first subscriber on; each connection lives for a short time."""
    channel = sse.channel(name)
    if name not in begun:
        begun.add(name)
        threading.Thread(target=count, args=(name,), daemon=True).start()
    return sse.subscribe(channel.name, max_age=0.4)


def count(name: str) -> None:
    """Publishes numbers, as markup for pages, and closes the channel."""
    channel = sse.channel(name)
    while not channel.subscribers:
        time.sleep(0.01)
    for n in range(NUMBERS):
        channel.publish(f"<i>{n}</i>" if name.startswith("page") else n, event=None if name == "page-unnamed" else "n")
        time.sleep(0.03)
    channel.close("over")


@app.get("/datastar")
@sse.stream
def datastar() -> Iterator[ServerSentEvent]:
    """Datastar's events: signals and fragments that count on from where the page is."""
    after = int(request.headers.get("Last-Event-ID", -1))
    for n in itertools.count(after + 1):
        # The one with the id comes last: what a client gets again, cut off between the two, changes nothing.
        signals = f'signals {{"last": {n}, "text": "\u2028 🦜"}}'
        yield ServerSentEvent(signals, event="datastar-merge-signals")
        fragments = f"selector #list\nmergeMode append\nfragments <i>{n}</i>"
        yield ServerSentEvent(fragments, event="datastar-merge-fragments", id=str(n))
        time.sleep(0.02)


HEAD = '<!doctype html><meta charset="utf-8"><link rel="icon" href="data:,">'
PAGES = {
    "htmx2": """<script src="/node/htmx.org/dist/htmx.js"></script><script src="/node/htmx-ext-sse/sse.js"></script>
<div hx-ext="sse" sse-connect="/live/page-htmx2" sse-close="stream-end">
  <p id="list" sse-swap="n" hx-swap="beforeend"></p><p id="end" sse-swap="stream-end"></p>
</div>""",
    "htmx4": """<script src="/node/htmx4/dist/htmx.js"></script><script src="/node/htmx4/dist/ext/hx-sse.js"></script>
<p id="list" hx-sse:connect="/live/page-unnamed" hx-sse:close="stream-end" hx-swap="beforeend"></p><p id="end"></p>
<script>
document.addEventListener("stream-end", (event) => { document.querySelector("#end").textContent = event.detail.data; });
</script>""",
    "datastar": """<script type="module" src="/node/@starfederation/datastar/dist/bundles/datastar.js"></script>
<div data-signals="{last: -1, text: ''}" data-on-load="@get('/datastar')"><p id="list"></p>
<p id="last" data-text="$last"></p><p id="text" data-text="$text"></p></div>""",
}


@app.get("/page/<name>")
def page(name: str) -> str:
    """A page that uses a library's way to streams, and no script of ours."""
    return HEAD + PAGES[name]


@app.get("/node/<path:path>")
def script(path: str) -> BaseResponse:
    """The libraries' scripts; where a module imports another without its file's ending, as npm's Datastar does, the way there."""
    for ending in (".js", "/index.js"):
        if not path.endswith(".js") and (NODE_MODULES / f"{path}{ending}").is_file():
            return redirect(f"/node/{path}{ending}")
    return send_from_directory(NODE_MODULES, path)


app.register_blueprint(sse, url_prefix="/events")
