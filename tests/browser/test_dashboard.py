"""The dashboard as an operator uses it: two workers, five hundred streams, keyboard and small screen, light and dark."""

from __future__ import annotations

import itertools
import os
import re
import signal
from pathlib import Path
from typing import Final

from playwright.sync_api import Locator, Page, expect

from sseflask import Publisher
from tests.browser.conftest import Console
from tests.conftest import Serve
from tests.live.client import get, open_stream
from tests.live.crowd import Crowd, many_files
from tests.live.process import wait_until
from tests.live.server import ROOT, Server

APP: Final = "tests.live.apps.dashboard_app:app"
STREAMS: Final = 500
CHANNELS: Final = 125
#: Where the screenshots are kept.
ARTEFACTS: Final = Path(os.environ.get("TEST_ARTEFACTS") or ROOT / "tests/artefacts")
#: How many times darker than the other the colours of text and ground are at the least (WCAG 2.2, 1.4.3).
CONTRAST: Final = 4.5
#: In the page: the least contrast of any text with what is behind it, and the text.
LEAST_CONTRAST: Final = """() => {
  const parse = (text) => (text.match(/[\\d.]+/g) ?? []).map(Number);
  const light = ([r, g, b]) => {
    const [x, y, z] = [r, g, b].map((c) => c / 255).map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
    return 0.2126 * x + 0.7152 * y + 0.0722 * z;
  };
  const ground = (node) => {
    for (; node; node = node.parentElement) {
      const colour = parse(getComputedStyle(node).backgroundColor);
      if (colour.length === 3 || colour[3] > 0) return colour;
    }
    return [255, 255, 255];
  };
  let least = [99, ""];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const node = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || !node.checkVisibility() || node.matches(":disabled")) continue;
    const [one, other] = [parse(getComputedStyle(node).color), ground(node)].map(light).sort((a, b) => b - a);
    const contrast = (one + 0.05) / (other + 0.05);
    if (contrast < least[0]) least = [contrast, node.outerHTML.slice(0, 120)];
  }
  return least;
}"""


def of(page: Page, name: str) -> Locator:
    """The part of the page with this test id."""
    return page.get_by_test_id(name)


def press(page: Page, *keys: str) -> None:
    """Presses keys, one by one."""
    for key in keys:
        page.keyboard.press(key)


def tab_to(page: Page, target: Locator) -> None:
    """Presses Tab until something has the focus, which must be seen to have it."""
    for _ in range(60):
        page.keyboard.press("Tab")
        if target.evaluate("node => node === document.activeElement"):
            assert target.evaluate("node => getComputedStyle(node).outlineStyle") == "solid"
            return
    raise AssertionError(f"{target} can't be reached by the keyboard")


def open_dashboard(page: Page, server: Server) -> None:
    """Opens the page, and waits until it is live."""
    page.goto(server.url("/events/-/dashboard"))
    expect(of(page, "connection")).to_have_attribute("data-state", "open")


def test_five_hundred_streams(page: Page, serve: Serve, tmp_path: Path, console: Console) -> None:
    """It shows 500 streams of two workers, their rates and ends; a channel is found, tailed and published to by keys alone."""
    url = f"sqlite:///{tmp_path}/events.db"
    with many_files(STREAMS), Publisher(url) as publisher:
        server = serve(APP, workers=2, env={"SSE_BROKER_URL": f'"{url}"', "SSE_DRAIN_SECONDS": "0.5"})
        page.emulate_media(color_scheme="light")
        open_dashboard(page, server)
        crowd = Crowd()
        crowd.join(server, [f"/events/job:{n % CHANNELS}" for n in range(STREAMS)])

        # The page's own stream counts too.
        expect(of(page, "streams")).to_have_text(str(STREAMS + 1), timeout=20_000)
        expect(of(page, "workers").locator("tr")).to_have_count(2)
        expect(of(page, "found")).to_have_text(f"{CHANNELS} channels", timeout=20_000)
        expect(of(page, "page")).to_have_text("Page 1 of 5")
        rows = of(page, "channels").locator("tr")
        expect(rows).to_have_count(25)
        assert "now 501" in (page.locator("[data-chart=streams] svg").get_attribute("aria-label") or "")

        for n in range(40):
            publisher.publish({"series": "job:7", "n": n}, channel="job:7")
        crowd.read_until(
            lambda member: len(member.seen.get("job:7", [])) == 40, [m for m in crowd.members if m.path.endswith("job:7")]
        )
        label = page.locator("[data-chart=delivered] svg")
        expect(label).not_to_have_attribute("aria-label", "Events delivered a second: nothing is known yet")

        # One that fails, and its reason.
        with open_stream(server, "/fails") as client:
            client.read_until_closed()
        close = of(page, "closes").locator("tr", has_text="/fails")
        expect(close).to_contain_text("error", timeout=15_000)

        # From here on by keys alone.
        page.locator("body").focus()
        press(page, "Tab")
        expect(page.locator(".skip")).to_be_focused()
        press(page, "Enter")
        tab_to(page, of(page, "search"))
        page.keyboard.type("job:77")
        expect(of(page, "found")).to_have_text(f"1 of {CHANNELS} channels")
        expect(rows).to_have_count(1)
        expect(page.locator("#found-said")).to_have_text(f"1 of {CHANNELS} channels, Page 1 of 1")
        tab_to(page, page.get_by_role("button", name="Tail job:77"))
        press(page, "Enter")
        expect(of(page, "tail")).to_be_focused()
        expect(of(page, "tail-state")).to_have_text("Tailing job:77.")
        tab_to(page, of(page, "event"))
        page.keyboard.type("greeting")
        tab_to(page, of(page, "data"))
        page.keyboard.type('{"series": "job:77", "n": 0}')
        tab_to(page, of(page, "publish"))
        press(page, "Enter")
        expect(of(page, "outcome")).to_contain_text("Published to job:77 as ")
        event = of(page, "events").locator("tr")
        expect(event).to_have_count(1)
        expect(event).to_contain_text("greeting")
        assert event.locator("td").nth(3).inner_text() in of(page, "outcome").inner_text()

        # Its rate, both looks, and a small screen.
        rate = (
            of(page, "channels").locator("tr", has=page.get_by_role("button", name="Tail job:7", exact=True)).locator("td").nth(1)
        )
        of(page, "search").fill("job:7")
        numbers = itertools.count(40)

        def is_busy() -> bool:
            # The worker that answers may only begin to read the channel when it is asked.
            publisher.publish({"series": "job:7", "n": next(numbers)}, channel="job:7")
            return bool(re.search("[1-9]", rate.inner_text()))

        wait_until(is_busy, 20, "the rate of a channel")
        ARTEFACTS.mkdir(parents=True, exist_ok=True)
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
            contrast, where = page.evaluate(LEAST_CONTRAST)
            assert contrast >= CONTRAST, (scheme, where)
            page.screenshot(path=ARTEFACTS / f"dashboard-{scheme}.png", full_page=True)
        page.set_viewport_size({"width": 320, "height": 700})
        assert page.evaluate("document.documentElement.scrollWidth") <= 320
        page.screenshot(path=ARTEFACTS / "dashboard-small.png", full_page=True)

        # Who may not, is told, and a token helps.
        console.allow(r"status of 403 .*/events/")
        of(page, "channel").fill("secret:plans")
        of(page, "tail").click()
        of(page, "tail").click()
        expect(of(page, "tail-state")).to_contain_text("not open to you: secret:plans")
        of(page, "publish").click()
        expect(of(page, "outcome")).to_contain_text("Not published: this channel is not open to you")
        of(page, "token").fill(get(server, "/token/secret:plans").text)
        of(page, "tail").click()
        expect(of(page, "tail-state")).to_have_text("Tailing secret:plans.")
        of(page, "tail").click()
        expect(of(page, "tail-state")).to_have_text("secret:plans is no longer tailed.")

        # What hangs up is gone from the page.
        for member in crowd.members[:400]:
            crowd.leave(member)
        expect(of(page, "streams")).to_have_text(str(STREAMS - 400 + 1), timeout=20_000)

        # It keeps no worker from leaving.
        console.allow("net::ERR_")
        server.signal(signal.SIGTERM)
        server.wait_for_exit(25)
        expect(of(page, "connection")).to_have_text("Connecting")
