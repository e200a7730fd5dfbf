"""Blocks of HTML and JavaScript, in Chromium: each in a document of its own, on the server of the page's app."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from flask import Flask, render_template_string
from playwright.sync_api import Page, Request, Route
from werkzeug import Response
from werkzeug.serving import WSGIRequestHandler, make_server

from sseflask import process
from tests.chromium import Console
from tests.docs.page import Block
from tests.interop import npm
from tests.live.process import wait_until

#: Where pages have libraries for browsers from.
CDN: Final = "https://cdn.jsdelivr.net/npm/"
HEAD: Final = '<!doctype html><meta charset="utf-8"><link rel="icon" href="data:,">'
#: What a page leaves to its reader; and a note of each `fetch`: path, method, Authorization and body.
AROUND: Final = """
window.show = () => {};
window.asked = [];
const fetchIt = window.fetch;
window.fetch = (url, init = {}) => {
  const headers = new Headers(init.headers);
  asked.push([new URL(url, location).pathname, init.method ?? "GET", headers.get("Authorization"), init.body ?? null]);
  return fetchIt(url, init);
};
"""


class _Handler(WSGIRequestHandler):
    """Logs nothing."""

    def log(self, type: str, message: str, *args: Any) -> None:
        """Does nothing."""


@contextmanager
def served(app: Flask, port: int) -> Iterator[dict[str, str]]:
    """Serves an app in threads of this process, and the documents in the returned dictionary; at the end its streams are ended."""
    documents: dict[str, str] = {}

    # Not by Playwright's own means: Chromium keeps a document whose address it doesn't know from the loopback interface.
    def application(environ: dict[str, Any], start_response: Any) -> Any:
        document = documents.get(environ["PATH_INFO"])
        answer = app if document is None else Response(document, mimetype="text/html")
        return answer(environ, start_response)

    server = make_server("127.0.0.1", port, application, threaded=True, request_handler=_Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield documents
    finally:
        for stream in list(process.current().streams):
            if stream.app is app:
                stream.drain()
        server.shutdown()
        thread.join(10)
        server.server_close()


class Visitor:
    """A reader who tries a page's blocks in a browser.

    Attributes:
        asked: What the blocks have fetched: path, method, `Authorization` and body of each request.
    """

    def __init__(self, page: Page, console: Console, app: Flask, documents: dict[str, str]) -> None:
        """Stores what it works with; `documents` are the server's."""
        self.asked: list[list[str | None]] = []
        self._page = page
        self._console = console
        self._app = app
        self._documents = documents
        self._waiting: set[Request] = set()
        self._count = 0
        self._requests = 0
        page.add_init_script(AROUND)
        page.on("request", self._has_asked)
        page.on("response", lambda response: self._waiting.discard(response.request))
        page.route(f"{CDN}**", _from_node_modules)
        page.on("requestfailed", self._has_failed)

    def run(self, block: Block, text: str, origin: str) -> None:
        """Opens a document that holds the block, at the server's origin, and waits until it has what it asks for.

        Raises:
            AssertionError: The block asks for nothing, isn't answered, or the browser complains: an error that nobody caught, an
                answer that isn't a success, a warning on its console.
        """
        self._count += 1
        self._requests = 0
        path = f"/-of-the-docs-/{self._count}"
        self._documents[path] = self._document(block, text)
        self._page.goto(origin + path)
        try:
            wait_until(self._is_quiet, 20, "answers to all requests")
        except AssertionError as error:
            raise block.fails(f"in Chromium: {error}; asked for: {[each.url for each in self._waiting]}") from None
        finally:
            self.asked += self._page.evaluate("window.asked")
        if self._console.complaints():
            raise block.fails(f"Chromium complains: {self._console.complaints()}")
        if not self._requests:
            raise block.fails("in Chromium it asks the app for nothing")

    def leave(self) -> None:
        """Leaves the last document: its streams would come back to a server that is gone, and complain."""
        self._page.goto("about:blank")

    def _document(self, block: Block, text: str) -> str:
        if block.language == "js":
            return f'{HEAD}<body><script type="module">\n{text}\n</script>'
        if "{{" in text or "{%" in text:
            with self._app.test_request_context():
                text = render_template_string(text)
        return text if text.lstrip().lower().startswith("<!doctype") else f"{HEAD}<body>{text}"

    def _is_quiet(self) -> bool:
        # An answer may lead to the next request, in a turn or two of the browser's loop.
        self._page.evaluate("() => new Promise((resolve) => setTimeout(resolve, 50))")
        return not self._waiting

    def _has_asked(self, request: Request) -> None:
        if not request.is_navigation_request() and request.url.startswith("http"):
            self._requests += 1
            self._waiting.add(request)

    def _has_failed(self, request: Request) -> None:
        # Given up by the page itself, or it complains.
        self._waiting.discard(request)


def _from_node_modules(route: Route) -> None:
    """What a CDN has of npm's packages, from those that the tests of other clients install, in the versions that the page names."""
    name, version, path = re.fullmatch(r"((?:@[^/]+/)?[^@/]+)@([^/]+)/([^?]+)", route.request.url.removeprefix(CDN)).groups()  # type: ignore[union-attr]
    modules = npm.installed() / "node_modules"
    for found in (*modules.glob("*/package.json"), *modules.glob("@*/*/package.json")):
        package = json.loads(found.read_text())
        if (package["name"], package["version"]) == (name, version) and (found.parent / path).is_file():
            route.fulfill(path=found.parent / path, headers={"Access-Control-Allow-Origin": "*", "Content-Type": "text/javascript"})
            return
    route.fulfill(status=404, body=f"tests/interop/node/package.json has no {name}@{version}, or it has no {path}")


def is_fetched(asked: list[list[str | None]], wanted: list[Any]) -> bool:
    """Whether a request is among those that were made; the body is compared as JSON."""
    return wanted in [[*request[:3], request[3] and json.loads(request[3])] for request in asked]
