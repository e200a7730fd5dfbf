"""Libraries that bring streams into a page without a script of the page's own: htmx and Datastar."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from playwright.sync_api import Page

from tests.browser.conftest import Console
from tests.browser.network import Network, network
from tests.conftest import Serve
from tests.interop.events import NUMBERS
from tests.interop.npm import installed
from tests.live.process import wait_until
from tests.live.server import Server

pytestmark = pytest.mark.timeout(240)


@pytest.fixture
def server(serve: Serve) -> Server:
    """The app that serves the libraries too."""
    installed()
    return serve("tests.interop.app:app")


@pytest.fixture
def net(server: Server) -> Iterator[Network]:
    """A network between the browser and the server."""
    with network(("127.0.0.1", server.port)) as net:
        yield net


def numbers(page: Page) -> list[int]:
    """What stands in the page's list."""
    return [int(text) for text in page.locator("#list i").all_inner_texts()]


def requests(server: Server, path: str) -> int:
    """How often the server has answered for a path."""
    return len(re.findall(rf'"GET {re.escape(path)} HTTP', server.log()))


@pytest.mark.parametrize(("name", "path"), [("htmx2", "/live/page-htmx2"), ("htmx4", "/live/page-unnamed")])
def test_htmx(page: Page, server: Server, console: Console, name: str, path: str) -> None:
    """Its extension puts each event into the page, over connections that are cut again and again, once and in order, to the end."""
    # htmx 2 tells each lost connection to the console, from which its EventSource comes back by itself.
    console.allow(r"^error: Event \(.*/htmx\.org/")
    page.goto(server.url(f"/page/{name}"))
    page.wait_for_function("document.querySelector('#end').textContent === 'over'", timeout=30_000, polling=50)
    assert numbers(page) == list(range(NUMBERS))
    assert requests(server, path) >= 2


def test_datastar(page: Page, server: Server, net: Network, console: Console) -> None:
    """Fragments and signals reach the page; when the connection is lost it comes back with its position, and nothing is missing."""
    console.allow("net::ERR_")
    console.allow(r"^error: (network error|Failed to fetch|TypeError|Datastar failed to reach)")
    page.goto(f"{net.origin}/page/datastar")
    page.wait_for_function("document.querySelectorAll('#list i').length >= 5", timeout=15_000, polling=50)
    net.cut("reset")
    wait_until(lambda: net.attempts > 0, 15, "an attempt to come back")
    so_far = len(numbers(page))
    net.restore()
    page.wait_for_function(f"document.querySelectorAll('#list i').length >= {so_far + 5}", timeout=30_000, polling=50)
    seen = numbers(page)
    assert seen == list(range(len(seen)))
    assert int(page.locator("#last").inner_text()) >= so_far
    assert page.locator("#text").text_content() == "\u2028 🦜"
