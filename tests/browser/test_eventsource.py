"""Chromium's own EventSource against the real server: what it loses it comes back for, and what has ended it leaves alone."""

from __future__ import annotations

import os
import re
import signal
import threading
from collections.abc import Iterator
from typing import Any, get_args

import pytest
from playwright.sync_api import Page

from tests.browser.conftest import Console
from tests.browser.network import How, Network, network
from tests.conftest import Serve
from tests.live.client import Reply, get
from tests.live.process import wait_until
from tests.live.server import Server

APP = "tests.browser.apps.eventsource_app:app"

# Makes `window.source`, and `window.seen` with what it dispatches: [type, data, lastEventId], EventSource's own as ["(open)"] and
# ["(error)", readyState].
OPEN = """([url, name]) => {
  const source = new EventSource(url);
  const seen = [];
  for (const type of ["message", "n", "start", "complete", "error", "stream-open", "stream-reset", "stream-end"]) {
    source.addEventListener(type, (event) => {
      if (event instanceof MessageEvent) seen.push([event.type, event.data, event.lastEventId]);
    });
  }
  source.addEventListener("open", () => seen.push(["(open)"]));
  source.addEventListener("error", (event) => {
    if (!(event instanceof MessageEvent)) seen.push(["(error)", source.readyState]);
  });
  window[name] = { source, seen };
}"""
CONNECTING, OPENED, CLOSED = range(3)


class Source:
    """An EventSource in a page.

    Attributes:
        page: Its page.
    """

    def __init__(self, page: Page, url: str, *, name: str = "main") -> None:
        self.page = page
        self._name = name
        page.evaluate(OPEN, [url, name])

    @property
    def seen(self) -> list[list[Any]]:
        """All that it has dispatched."""
        seen: list[list[Any]] = self.page.evaluate(f"window.{self._name}.seen")
        return seen

    @property
    def state(self) -> int:
        """Its `readyState`."""
        return int(self.page.evaluate(f"window.{self._name}.source.readyState"))

    def close(self) -> None:
        """Closes it."""
        self.page.evaluate(f"window.{self._name}.source.close()")

    def of(self, *types: str) -> list[list[Any]]:
        """What it has dispatched of these types."""
        return [each for each in self.seen if each[0] in types]

    @property
    def numbers(self) -> list[int]:
        """The numbers that have come, in their order."""
        return [int(data) for _, data, _ in self.of("n")]

    def wait_for(self, type: str, count: int = 1, timeout: float = 15) -> None:
        """Waits until it has dispatched so many of a type."""
        self._wait(f"window.{self._name}.seen.filter(([type]) => type === {type!r}).length >= {count}", timeout)

    def wait_for_state(self, state: int, timeout: float = 15) -> None:
        """Waits for a `readyState`."""
        self._wait(f"window.{self._name}.source.readyState === {state}", timeout)

    def _wait(self, condition: str, timeout: float) -> None:
        # A page that isn't in front has no animation frames to wait in.
        self.page.wait_for_function(condition, timeout=timeout * 1000, polling=20)


@pytest.fixture
def server(serve: Serve, console: Console) -> Server:
    """The app, which tells browsers to come back after 200 ms."""
    # Chromium reports a connection that is lost or can't be made.
    console.allow(r"net::ERR_")
    return serve(APP, env={"SSE_DRAIN_SECONDS": "1"})


@pytest.fixture
def net(server: Server) -> Iterator[Network]:
    """A network between the browser and the server."""
    with network(("127.0.0.1", server.port)) as net:
        yield net


def post(server: Server, path: str) -> Reply:
    """Asks the server, past any network."""
    reply = get(server, path, method="POST", body=b"")
    assert reply.status == 200, reply
    return reply


def publish(server: Server, channel: str, first: int, end: int) -> None:
    """Publishes the numbers from `first` up to `end`."""
    post(server, f"/publish/{channel}?first={first}&end={end}")


def requests(server: Server, path: str) -> int:
    """How often the server has answered for a path, by its access log."""
    return len(re.findall(rf'"GET {re.escape(path)} HTTP', server.log()))


def break_off(server: Server, how: str) -> None:
    """Ends what serves: the server in order, the server at once (both started again), or only its worker at once."""
    if how == "worker killed":
        old = server.worker_pids()
        os.kill(server.worker_pid(), signal.SIGKILL)
        server.wait_for_new_workers(old)
        return
    if how == "stopped":
        server.signal(signal.SIGTERM)
        server.wait_for_exit(15)
    server.restart()


BREAKS = ("stopped", "killed", "worker killed")


@pytest.mark.parametrize("how", BREAKS[:2])
def test_a_channel_whose_server_is_gone_begins_anew_with_a_reset(page: Page, server: Server, how: str) -> None:
    """The browser comes back with its position, which is of another life: a reset says so, and what is published then follows."""
    page.goto(server.url("/"))
    source = Source(page, "/events/news")
    source.wait_for("stream-open")
    publish(server, "news", 0, 3)
    source.wait_for("n", 3)
    position = source.of("n")[-1][2]

    break_off(server, how)
    source.wait_for("stream-open", 2, timeout=20)
    publish(server, "news", 3, 5)
    source.wait_for("n", 5)

    assert source.numbers == [0, 1, 2, 3, 4]
    (reset,) = source.of("stream-reset")
    assert reset[1] == f'{{"reason":"epoch","position":"{position}"}}'
    order = [each[0] for each in source.seen if not each[0].startswith("(")]
    assert order == ["stream-open", "n", "n", "n", "stream-reset", "stream-open", "n", "n"]
    before, after = position.split("-")[0], source.of("n")[-1][2].split("-")[0]
    assert before != after
    # It was gone, tried again by itself, and is there.
    assert ["(error)", CONNECTING] in source.seen
    assert source.state == OPENED


def test_a_channel_whose_worker_is_gone_goes_on_where_it_was(page: Page, server: Server) -> None:
    """The log outlives the worker: the browser comes back with its position, and gets what was published meanwhile, once."""
    page.goto(server.url("/"))
    source = Source(page, "/events/news")
    source.wait_for("stream-open")
    publish(server, "news", 0, 3)
    source.wait_for("n", 3)
    break_off(server, "worker killed")
    publish(server, "news", 3, 5)
    source.wait_for("stream-open", 2, timeout=20)
    source.wait_for("n", 5)
    assert source.numbers == [0, 1, 2, 3, 4]
    assert source.of("stream-reset") == []
    assert ["(error)", CONNECTING] in source.seen


@pytest.mark.parametrize("how", BREAKS)
def test_a_generator_with_its_own_ids_goes_on_where_it_was(page: Page, server: Server, how: str) -> None:
    """The new process counts on from the id that the browser brings: no number is missing, none comes twice."""
    page.goto(server.url("/"))
    source = Source(page, "/count")
    source.wait_for("n", 10)
    break_off(server, how)
    # All that the browser has of the old process has been dispatched before it opens anew.
    source.wait_for("(open)", 2, timeout=20)
    so_far = len(source.numbers)
    source.wait_for("n", so_far + 10)
    source.close()
    numbers = source.numbers
    assert numbers == list(range(len(numbers)))
    assert source.of("stream-reset") == []


@pytest.mark.parametrize("how", get_args(How))
def test_nothing_is_lost_when_the_network_is_cut(page: Page, server: Server, net: Network, how: How) -> None:
    """Over five cuts, with events before, during and after each, the browser gets every one, once, in order, without a reset."""
    page.goto(net.origin)
    source = Source(page, f"{net.origin}/events/news")
    source.wait_for("stream-open")
    for cut in range(5):
        first = cut * 10
        publish(server, "news", first, first + 4)
        source.wait_for("n", first + 4)
        attempts = net.attempts
        net.cut(how)
        # A cut in the midst of an event is one in the midst of the first of these.
        publish(server, "news", first + 4, first + 5)
        publish(server, "news", first + 5, first + 10)
        wait_until(lambda attempts=attempts: net.attempts > attempts + 1, message="two attempts to come back")  # type: ignore[misc]
        assert source.numbers == list(range(first + 4))
        net.restore()
        source.wait_for("n", first + 10)
    assert source.numbers == list(range(50))
    assert source.of("stream-reset") == []
    assert len(source.of("stream-open")) == 6


def test_nothing_is_lost_between_cuts_while_events_flow(page: Page, server: Server, net: Network) -> None:
    """Ten cuts of both kinds in an unbroken flow of events leave no hole in it, and nothing comes twice."""
    page.goto(net.origin)
    source = Source(page, f"{net.origin}/events/news")
    source.wait_for("stream-open")
    over = threading.Event()
    published = 0

    def publish_on() -> None:
        nonlocal published
        while not over.wait(0.01):
            publish(server, "news", published, published + 1)
            published += 1

    publisher = threading.Thread(target=publish_on)
    publisher.start()
    try:
        for cut in range(10):
            source.wait_for("n", len(source.numbers) + 3)
            attempts, opened = net.attempts, len(source.of("stream-open"))
            net.cut("end" if cut % 2 else "reset")
            wait_until(lambda attempts=attempts: net.attempts > attempts, message="an attempt to come back")  # type: ignore[misc]
            net.restore()
            source.wait_for("stream-open", opened + 1)
    finally:
        over.set()
        publisher.join()
    source.wait_for("n", published)
    assert source.numbers == list(range(published))
    assert source.of("stream-reset") == []


def assert_stays_closed(source: Source, server: Server, path: str) -> None:
    """The browser has come back once, was told that this is over, and asks no more, while it comes back to another stream often."""
    source.wait_for_state(CLOSED)
    assert source.seen[-2:] == [["(error)", CONNECTING], ["(error)", CLOSED]]
    other = Source(source.page, "/once", name="other")
    other.wait_for("message", 5)
    other.close()
    assert requests(server, path) == 2
    assert re.findall(rf'"GET {re.escape(path)} HTTP/1.1" (\d+)', server.log()) == ["200", "204"]
    assert source.state == CLOSED


def test_a_closed_channel_stops_the_browser_for_good(page: Page, server: Server) -> None:
    """After the end event the browser comes back once, gets 204 and gives up, though the channel is used again."""
    page.goto(server.url("/"))
    source = Source(page, "/events/news")
    source.wait_for("stream-open")
    publish(server, "news", 0, 3)
    ended = post(server, "/close/news").json()["id"]
    source.wait_for("stream-end")
    publish(server, "news", 3, 4)
    assert_stays_closed(source, server, "/events/news")
    assert source.numbers == [0, 1, 2]
    assert source.of("stream-end") == [["stream-end", "over", f"{ended}-end"]]


@pytest.mark.parametrize(("path", "last"), [("/work", "complete"), ("/work?fail=1", "error")])
def test_a_stream_with_a_lifecycle_is_not_run_again(page: Page, server: Server, path: str, last: str) -> None:
    """After `complete`, or the error event, the browser comes back once, gets 204 and gives up: the work is done once."""
    page.goto(server.url("/"))
    source = Source(page, path)
    assert_stays_closed(source, server, path)
    assert [each[0] for each in source.seen] == ["(open)", "start", "n", "n", "n", last, "(error)", "(error)"]
    assert server.log().count("work begins") == 1


@pytest.mark.parametrize("limit", ["SSE_MAX_STREAMS", "SSE_MAX_STREAMS_PER_CLIENT"])
def test_a_browser_over_a_limit_gets_in_when_there_is_room(page: Page, serve: Serve, limit: str) -> None:
    """With `SSE_REFUSE = "retry"` it is told when to come back, and does so until a place is free; then it gets what comes."""
    server = serve(APP, env={limit: "1", "SSE_REFUSE": '"retry"'})
    page.goto(server.url("/"))
    first = Source(page, "/events/news", name="first")
    first.wait_for("stream-open")
    second = Source(page, "/events/other", name="second")
    # The answer is a stream that ends at once: (open), then (error). It comes again by itself after 2 to 10 s.
    second.wait_for("(error)", 2, timeout=25)
    assert second.state == CONNECTING
    assert [each[0] for each in second.seen] == ["(open)", "(error)"] * 2
    first.close()
    second.wait_for("stream-open", timeout=15)
    publish(server, "other", 0, 1)
    second.wait_for("n")
    assert second.state == OPENED


def test_a_browser_over_a_limit_gives_up_at_a_status(page: Page, serve: Serve, console: Console) -> None:
    """Without it the answer is a 503, which ends an EventSource for good."""
    console.allow("503")
    server = serve(APP, env={"SSE_MAX_STREAMS": "1"})
    page.goto(server.url("/"))
    first = Source(page, "/events/news", name="first")
    first.wait_for("stream-open")
    second = Source(page, "/events/other", name="second")
    second.wait_for_state(CLOSED)
    assert second.seen == [["(error)", CLOSED]]
