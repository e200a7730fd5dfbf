"""`share: true` in Chromium: many tabs, one connection, and nothing lost or doubled when the leading tab goes."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, Page

from tests.browser.conftest import Console
from tests.live.client import get
from tests.live.journal import stats, wait_for_no_streams
from tests.live.process import wait_until
from tests.live.server import Server

APP = "tests.browser.apps.client_app:app"

# Counts the connections that the page has open, and opens a shared one: `tab`. Messages that `tab.drop` is true for don't reach it.
OPEN = """async ([url, timeout, options]) => {
  const { set } = Object.getOwnPropertyDescriptor(BroadcastChannel.prototype, "onmessage");
  Object.defineProperty(BroadcastChannel.prototype, "onmessage", {
    set(listener) {
      set.call(this, (event) => window.tab.drop?.(event.data) || listener(event));
    },
  });
  const real = window.fetch;
  const tab = (window.tab = { open: 0, opened: 0, numbers: [], others: [], errors: [], states: [] });
  window.fetch = (address, init) => {
    tab.open++;
    tab.opened++;
    init.signal.addEventListener("abort", () => tab.open--);
    return real(address, init);
  };
  const { connect } = await import("/events/-/client.js");
  const other = (event) => tab.others.push([event.type, event.data]);
  tab.connection = connect(url, {
    share: { timeout }, parse: "json", backoff: { base: 100, max: 500 }, ...options,
    on: {
      n: (event) => tab.numbers.push(event.data), snapshot: other, "stream-open": other, "stream-reset": other,
      "stream-end": () => other({ type: "stream-end" }),
    },
    onError: (error) => tab.errors.push([error.message, error.status, error.retrying]),
    onState: (state) => tab.states.push(state),
  });
}"""


# Nothing runs in the page until it is released.
HANG = """() => setTimeout(() => {
  const request = new XMLHttpRequest();
  request.open("GET", "/hang", false);
  request.send();
  window.tab.hung = true;
})"""
# A page that is driven counts as visible and can't be frozen: it is told so, and then nothing runs.
FREEZE = f"""() => {{
  document.dispatchEvent(new Event("freeze"));
  ({HANG})();
  setTimeout(() => document.dispatchEvent(new Event("resume")));
}}"""


class Tab:
    """A page that shares a stream.

    Attributes:
        page: The page.
    """

    def __init__(self, page: Page, server: Server, url: str, *, timeout: int = 10_000, **options: object) -> None:
        self.page = page
        page.goto(server.url("/"))
        page.evaluate(OPEN, [url, timeout, options])

    def get(self, what: str) -> Any:
        """Something of `window.tab`."""
        return self.page.evaluate(f"window.tab.{what}")

    @property
    def numbers(self) -> list[int]:
        """The numbers that have come, in their order."""
        numbers: list[int] = self.get("numbers")
        return numbers

    @property
    def leads(self) -> bool:
        """Whether it has a connection."""
        return int(self.get("open")) > 0

    def wait(self, condition: str, timeout: float = 20) -> None:
        """Waits for something about `tab`."""
        test = f"() => {{ const {{ tab }} = window; return {condition}; }}"
        self.page.wait_for_function(test, timeout=timeout * 1000, polling=50)

    def wait_for_number(self, number: int) -> None:
        """Waits until this one has come."""
        self.wait(f"tab.numbers.includes({number})")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The app; one server for all tests, and each ends with no stream."""
    server = Server(APP, tmp_path_factory.mktemp("server"), env={"SSE_DRAIN_SECONDS": "1"})
    server.start()
    yield server
    server.stop()


@pytest.fixture
def context(chromium: Browser, server: Server, console: Console) -> Iterator[BrowserContext]:
    """A profile whose pages are tabs of one browser; closed before the server is."""
    console.allow(r"net::ERR_|Failed to load resource")
    wait_for_no_streams(server, 15)
    context = chromium.new_context()
    context.set_default_timeout(20_000)
    yield context
    context.close()


Open = Callable[..., Tab]


@pytest.fixture
def tab(context: BrowserContext, server: Server, console: Console) -> Iterator[Open]:
    """Opens a tab that shares the channel `news`: `tab()`, or another URL; `before` is a script that runs first."""

    def open_tab(url: str = "/events/news", before: str = "", **options: Any) -> Tab:
        page = context.new_page()
        console.watch(page)
        page.add_init_script(before)
        return Tab(page, server, url, **options)

    yield open_tab
    assert console.complaints() == []


def publish(server: Server, first: int, end: int, *, own: bool = False) -> None:
    """Publishes the numbers from `first` up to `end` in `news`; or, under ids of the publisher's own, in `own`."""
    path = f"/publish/own?own&first={first}&end={end}" if own else f"/publish/news?first={first}&end={end}"
    reply = get(server, path, method="POST", body=b"")
    assert reply.status == 200, reply


def release(server: Server) -> None:
    """Lets the page that hangs go on."""
    wait_until(lambda: get(server, "/release", method="POST", body=b"").json()["count"] == 1, 15, "a page that hangs")


def the_leader(tabs: list[Tab]) -> Tab:
    """The only one that has a connection, when that has settled."""

    def only() -> bool:
        connections = [tab.get("open") for tab in tabs]
        assert sorted(connections) == [*[0] * (len(tabs) - 1), 1], connections
        return True

    wait_until(only, 20, "one tab to lead")
    return next(tab for tab in tabs if tab.leads)


@contextlib.contextmanager
def publishing(server: Server, first: int) -> Iterator[list[int]]:
    """Publishes numbers without a break meanwhile; gives them."""
    published = list(range(first))
    over = threading.Event()

    def publish_on() -> None:
        while not over.wait(0.01):
            publish(server, len(published), len(published) + 1)
            published.append(len(published))

    thread = threading.Thread(target=publish_on)
    thread.start()
    try:
        yield published
    finally:
        over.set()
        thread.join()


def test_ten_tabs_have_one_connection(tab: Open, context: BrowserContext, server: Server) -> None:
    """On HTTP/1.1 ten tabs get each event, once; the server has one stream, and a plain page of the site still loads."""
    tabs = [tab() for _ in range(10)]
    for each in tabs:
        each.wait("tab.connection.readyState === 1")
    wait_until(lambda: stats(server)["streams"] == 1, 15, "one stream")
    publish(server, 0, 50)
    for each in tabs:
        each.wait_for_number(49)
        assert each.numbers == list(range(50))
        assert each.get("errors") == []
    the_leader(tabs)
    page = context.new_page()
    page.goto(server.url("/"))
    assert page.title() == "Client"

    # One that comes later begins at what is published then.
    late = tab()
    late.wait("tab.connection.readyState === 1")
    wait_until(lambda: not late.leads, 15, "the late tab to have no connection of its own")
    publish(server, 50, 60)
    for each in [*tabs, late]:
        each.wait_for_number(59)
    assert late.numbers == list(range(50, 60))
    assert tabs[3].numbers == list(range(60))

    # The end event closes all of them, and nobody asks again.
    assert get(server, "/close/news", method="POST", body=b"").status == 200
    for each in [*tabs, late]:
        each.wait("tab.connection.readyState === 2")
        assert each.get("others").count(["stream-end", None]) == 1
    opened = sum(each.get("opened") for each in tabs)
    wait_for_no_streams(server, 15)
    assert sum(each.get("opened") for each in tabs) == opened


def test_nothing_is_lost_when_the_leading_tab_goes(tab: Open, server: Server) -> None:
    """Events flow; one leading tab is closed, one goes elsewhere, one is frozen, one lets go: none is lost or doubled."""
    tabs = [tab() for _ in range(6)]
    for each in tabs:
        each.wait("tab.connection.readyState === 1")
    left, frozen = list(tabs), list[Tab]()
    with publishing(server, 0) as published:
        for how in ("close", "leave", "freeze", "let go"):
            for each in left:
                each.wait_for_number(len(published) + 5)
            leader = the_leader(left)
            left.remove(leader)
            if how == "close":
                leader.page.close()
            elif how == "leave":
                leader.page.goto("about:blank")
            elif how == "freeze":
                leader.page.evaluate(FREEZE)
                frozen.append(leader)
            else:
                leader.page.evaluate("window.tab.connection.close()")
            for each in left:
                each.wait_for_number(len(published) + 5)
        # The frozen one wakes up and gets what it missed.
        release(server)
        for each in frozen:
            each.wait("tab.hung")
            left.append(each)
            each.wait_for_number(len(published) + 5)
    for each in left:
        each.wait_for_number(len(published) - 1)
        assert each.numbers == list(range(each.numbers[0], len(published)))
        assert [kind for kind, _ in each.get("others")].count("stream-reset") == 0
    assert len(left) == 3
    the_leader(left)


def test_a_leading_tab_that_does_not_answer_is_replaced(tab: Open, server: Server) -> None:
    """A leader that hangs without a word is replaced; when it is back it is one of the others, and misses nothing."""
    tabs = [tab(timeout=1_500) for _ in range(3)]
    for each in tabs:
        each.wait("tab.connection.readyState === 1")
    publish(server, 0, 5)
    for each in tabs:
        each.wait_for_number(4)
    leader = the_leader(tabs)
    leader.page.evaluate(HANG)
    publish(server, 5, 10)
    others = [each for each in tabs if each is not leader]
    for each in others:
        each.wait_for_number(9)
    assert sum(each.leads for each in others) == 1
    release(server)
    leader.wait("tab.hung")
    publish(server, 10, 15)
    for each in tabs:
        each.wait_for_number(14)
        assert each.numbers == list(range(15))
    assert the_leader(tabs) is not leader


# As in a hidden tab, where timers come late; `ticks` counts them.
LATE_TIMERS = """
  const real = setInterval;
  window.ticks = 0;
  window.setInterval = (callback, ms) => real(() => { window.ticks++; callback(); }, Math.max(ms, 1_500));
"""


def test_a_leading_tab_that_answers_is_not_replaced_by_one_whose_timers_are_late(tab: Open) -> None:
    """Where nothing is published and hidden tabs look for their leader late, the one that answers goes on leading."""
    leader = tab(timeout=800)
    leader.wait("tab.connection.readyState === 1")
    hidden = []
    for _ in range(2):
        hidden.append(tab(timeout=800, before=LATE_TIMERS))
        hidden[-1].wait("tab.connection.readyState === 1")
    assert the_leader([leader, *hidden]) is leader
    opened = [each.get("opened") for each in hidden]
    for each in hidden:
        each.wait("window.ticks >= 5")
    assert leader.leads
    assert [leader.get("opened"), *(each.get("opened") for each in hidden)] == [1, *opened]


def three_with_five(tab: Open, server: Server) -> list[Tab]:
    """Three tabs that have five numbers; the first leads, and the second will after it: they wait in order."""
    tabs = []
    for _ in range(3):
        tabs.append(tab())
        tabs[-1].wait("tab.connection.readyState === 1")
    the_leader(tabs)
    publish(server, 0, 5)
    for each in tabs:
        each.wait_for_number(4)
    assert tabs[0].leads
    return tabs


def test_a_hole_is_filled_and_an_old_leader_is_not_heard(tab: Open, server: Server) -> None:
    """A tab that missed a message gets the event over a connection of its own; what an older leader says is dropped."""
    tabs = three_with_five(tab, server)
    opened = [each.get("opened") for each in tabs]
    tabs[2].page.evaluate("() => { tab.drop = (message) => message.event?.[1] === '6'; }")
    tabs[1].page.evaluate(
        """() => {
          const channel = new BroadcastChannel(JSON.stringify(["sseflask", `${location.origin}/events/news`, false, ""]));
          for (const n of [1, 6, 7]) channel.postMessage({ leader: 1, n, at: "", state: "closed", event: ["n", "-1"] });
          channel.close();
        }"""
    )
    publish(server, 5, 10)
    for each in tabs:
        each.wait_for_number(9)
        assert each.numbers == list(range(10))
    the_leader(tabs)
    assert [each.get("opened") for each in tabs] == [opened[0], opened[1], opened[2] + 1]


@pytest.mark.parametrize("heard", [True, False])
def test_a_new_leader_begins_where_the_last_tab_is(tab: Open, server: Server, heard: bool) -> None:
    """A tab behind the others gets what it missed from the next leader; or by itself, if that one didn't hear where it is."""
    tabs = three_with_five(tab, server)
    opened = tabs[2].get("opened")
    # The last of the messages: nothing shows that it is missing.
    drop = "(heard) => { tab.drop = (message) => message.event?.[1] === '6' || (!heard && message.ask); }"
    tabs[2].page.evaluate(drop, heard)
    publish(server, 5, 7)
    for each in tabs[:2]:
        each.wait_for_number(6)
    tabs[2].wait_for_number(5)
    tabs[2].page.evaluate("() => { const { drop } = tab; tab.drop = (message) => message.event ? false : drop(message); }")
    tabs[0].page.close()
    tabs[2].wait_for_number(6)
    the_leader(tabs[1:])
    publish(server, 7, 9)
    for each in tabs[1:]:
        each.wait_for_number(8)
        assert each.numbers == list(range(9))
    assert tabs[1].leads
    assert tabs[2].get("opened") == opened + (0 if heard else 1)


def test_ids_of_the_publishers_own_are_shared_too(tab: Open, server: Server) -> None:
    """They can't be compared: over a handover each tab gets each event at least once."""
    tabs = [tab("/events/own") for _ in range(3)]
    for each in tabs:
        each.wait("tab.connection.readyState === 1")
    the_leader(tabs)
    publish(server, 0, 5, own=True)
    for each in tabs:
        each.wait_for_number(4)
    leader = the_leader(tabs)
    tabs.remove(leader)
    leader.page.close()
    publish(server, 5, 10, own=True)
    for each in tabs:
        each.wait_for_number(9)
        assert list(dict.fromkeys(each.numbers)) == list(range(10))
    the_leader(tabs)


def test_tabs_share_a_stream_with_a_snapshot(tab: Open, server: Server) -> None:
    """Each tab gets the snapshot, once, though it came when the others were there already, and then what all get."""
    tabs = [tab("/with-snapshot") for _ in range(3)]
    for each in tabs:
        each.wait("tab.others.some(([type]) => type === 'snapshot')")
    the_leader(tabs)
    publish(server, 0, 5)
    tabs.append(tab("/with-snapshot"))
    tabs[-1].wait("tab.others.some(([type]) => type === 'snapshot')")
    the_leader(tabs)
    publish(server, 5, 10)
    for number, each in enumerate(tabs):
        each.wait_for_number(9)
        assert each.numbers == list(range(0 if number < 3 else 5, 10))
        assert [kind for kind, _ in each.get("others")].count("snapshot") == 1


def test_tabs_come_back_together(tab: Open, server: Server) -> None:
    """When the server is restarted all tabs are told, come back over one connection, and get the reset."""
    tabs = [tab() for _ in range(3)]
    for each in tabs:
        each.wait("tab.connection.readyState === 1")
    publish(server, 0, 3)
    for each in tabs:
        each.wait_for_number(2)
    server.stop()
    for each in tabs:
        each.wait("tab.errors.length > 0")
    server.start()
    for each in tabs:
        each.wait("tab.others.some(([type]) => type === 'stream-reset')")
    publish(server, 3, 6)
    for each in tabs:
        each.wait_for_number(5)
        assert each.numbers == list(range(6))
        assert all(retrying for _, _, retrying in each.get("errors"))
    the_leader(tabs)
    assert stats(server)["streams"] == 1


def test_a_browser_that_cannot_share_connects_alone(context: BrowserContext, server: Server, console: Console) -> None:
    """Without Web Locks, and where they are refused, each tab has its own connection."""
    tabs = []
    for script in (
        "delete Navigator.prototype.locks",
        "navigator.locks.request = () => Promise.reject(new DOMException('no', 'SecurityError'))",
    ):
        page = context.new_page()
        console.watch(page)
        page.add_init_script(script)
        tabs.append(Tab(page, server, "/events/news"))
    for each in tabs:
        each.wait("tab.connection.readyState === 1")
    wait_until(lambda: stats(server)["streams"] == 2, 15, "two streams")
    publish(server, 0, 3)
    for each in tabs:
        each.wait_for_number(2)
        assert each.numbers == [0, 1, 2]
    assert console.complaints() == []
