"""The examples as a visitor uses them: opened from the index, driven by their own buttons."""

from __future__ import annotations

import base64
import io
import json
import re
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openpyxl
import pytest
from PIL import Image
from playwright.sync_api import Locator, Page, expect

from examples.report import NIGHT
from tests.browser.celery_worker import celery_worker
from tests.browser.conftest import Console
from tests.browser.network import network
from tests.browser.provider import DONE, Call, running_provider
from tests.conformance.vectors import decode_vectors
from tests.conftest import Serve
from tests.live.client import get
from tests.live.process import wait_until
from tests.live.server import ROOT, Server
from tests.redis import RedisServer, needs_redis

NAMES = ("counter", "metrics", "progress", "chat", "long_job", "notifications", "board", "images", "report", "celery")
APP = "examples:create_app()"


@pytest.fixture(autouse=True)
def temporary_files(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder for temporary files of the test's servers, which are killed in the end: what they leave goes with it."""
    # Not `tmp_path`, below which the path of a socket would be too long.
    with tempfile.TemporaryDirectory(prefix="examples-", ignore_cleanup_errors=True) as folder:
        monkeypatch.setenv("TMPDIR", folder)
        yield Path(folder)


@pytest.fixture
def server(serve: Serve) -> Server:
    """The examples, as `make demo` serves them."""
    return serve(APP, config=ROOT / "gunicorn.conf.py")


@pytest.fixture
def visit(page: Page, server: Server) -> Any:
    """Opens an example from the index."""

    def visit(name: str) -> Page:
        page.goto(server.url("/"))
        page.get_by_test_id(f"card-{name}").click()
        expect(page.locator("nav [aria-current=page]")).to_have_count(1)
        return page

    return visit


@pytest.fixture
def another(page: Page, console: Console) -> Callable[[], Page]:
    """Opens the page's address in a second tab of the same browser."""

    def another() -> Page:
        tab = page.context.new_page()
        console.watch(tab)
        tab.goto(page.url)
        return tab

    return another


def of(page: Page, name: str) -> Locator:
    """The part of the page with this test id."""
    return page.get_by_test_id(name)


def expect_connection(page: Page, state: str, timeout: float = 10) -> None:
    """Waits until the page's badge shows a state, for at most so many seconds."""
    expect(of(page, "connection")).to_have_attribute("data-state", state, timeout=timeout * 1000)


def number(page: Page, name: str) -> int:
    """What a part of the page shows, as a number."""
    return int(of(page, name).inner_text())


# The index


def test_the_index_shows_the_bytes_of_a_stream_as_they_arrive(page: Page, server: Server) -> None:
    """The first page shows each event's bytes about a second after those before, and says when the stream has ended."""
    page.goto(server.url("/"))
    expect_connection(page, "open")
    for count in range(3):
        expect(of(page, "bytes")).to_contain_text(f'data: {{"count":{count}}}', timeout=5000)
        # The next one isn't there yet: they come one by one.
        assert f'"count":{count + 2}' not in of(page, "bytes").inner_text()
    expect(of(page, "bytes")).to_contain_text("the stream ends", timeout=15_000)
    expect_connection(page, "closed")
    of(page, "again").click()
    expect_connection(page, "open")


def test_the_index_leads_to_each_example_and_its_code(visit: Any) -> None:
    """Each card opens its example, whose page shows the very code that serves it, and leads back."""
    for name in NAMES:
        page = visit(name)
        source = of(page, "source").first
        expect(source.locator("pre")).to_be_hidden()
        source.locator("summary").click()
        expect(source.locator("pre")).to_be_visible()
        assert source.locator("code").inner_text().strip() == (ROOT / f"examples/{name}.py").read_text().strip()
        of(page, "home").click()
        expect(of(page, f"card-{name}")).to_be_visible()


@pytest.mark.parametrize("width", [320, 768])
def test_no_page_is_wider_than_a_small_screen(page: Page, server: Server, width: int) -> None:
    """Nothing has to be scrolled sideways on a telephone or a tablet."""
    page.set_viewport_size({"width": width, "height": 700})
    for path in ("/", *(f"/{name.replace('_', '-')}/" for name in NAMES)):
        page.goto(server.url(path))
        assert page.evaluate("document.documentElement.scrollWidth") <= width, path


def test_the_examples_can_be_reached_with_the_keyboard_alone(page: Page, server: Server) -> None:
    """The first Tab leads to a link that skips the navigation; an example starts and stops by keys, with a visible focus."""
    page.goto(server.url("/counter/"))
    page.keyboard.press("Tab")
    expect(page.locator(".skip")).to_be_focused()
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    expect(of(page, "start")).to_be_focused()
    assert of(page, "start").evaluate("node => getComputedStyle(node).outlineStyle") == "solid"
    page.keyboard.press("Enter")
    expect(of(page, "stop")).to_be_focused()
    expect_connection(page, "open")
    page.keyboard.press("Enter")
    expect_connection(page, "closed")


# Counter


def test_the_counter_shows_unnamed_and_named_events(visit: Any, server: Server) -> None:
    """Counts reach the page as messages, tens as milestones, each with its id; stopping ends the stream on the server."""
    page = visit("counter")
    expect_connection(page, "idle")
    of(page, "start").click()
    expect_connection(page, "open")
    expect(of(page, "milestones")).to_have_text("1", timeout=15_000)
    kinds = of(page, "log").locator("tr[data-kind=message]")
    assert kinds.count() >= 9
    milestone = of(page, "log").locator("tr[data-kind=milestone] td").all_inner_texts()
    assert milestone[1:] == ["milestone", "10", '{"count":10}']
    assert number(page, "missed") == 0
    of(page, "stop").click()
    expect_connection(page, "closed")
    server.wait_for_log(r"path=/counter/events reason=disconnected")


def test_the_counter_goes_on_after_the_server_restarts(visit: Any, server: Server, console: Console) -> None:
    """While the server is down the page says that it reconnects; afterwards the count goes on, and none is missed."""
    console.allow("Failed to load resource: net::ERR_")
    page = visit("counter")
    of(page, "start").click()
    wait_until(lambda: of(page, "log").locator("tr[data-kind=message]").count() >= 4, 15, "four counts in the log")
    server.stop()
    expect_connection(page, "reconnecting")
    reached = number(page, "count")
    server.start()
    expect_connection(page, "open", timeout=20)
    wait_until(lambda: number(page, "count") >= reached + 3, 15, "three counts more")
    assert number(page, "missed") == 0
    assert number(page, "reconnections") >= 1
    resumed = of(page, "log").locator("tr[data-kind=resumed] td:last-child").first.inner_text()
    assert resumed == f'{{"after":{reached}}}'


def test_the_counter_comes_back_when_the_server_hangs_up(visit: Any) -> None:
    """A stream that ends is resumed after its `retry` time, again and again, from the last id."""
    page = visit("counter")
    of(page, "rest").check()
    of(page, "start").click()
    expect(of(page, "reconnections")).to_have_text("2", timeout=25_000)
    wait_until(lambda: number(page, "count") >= 21, 5, "a count after the second time")
    assert number(page, "missed") == 0
    assert of(page, "log").locator("tr[data-kind=resumed] td:last-child").all_inner_texts() == ['{"after":20}', '{"after":10}']


# Metrics


#: The left upper corners of a chart's last line and of what it is drawn in.
CORNERS = """chart => {
  const lines = chart.querySelectorAll("path.line");
  return [lines[lines.length - 1], chart.querySelector(".plot")].map(part => {
    const box = part.getBoundingClientRect();
    return [box.x, box.y];
  });
}"""


def test_the_metrics_are_drawn_live(visit: Any, server: Server) -> None:
    """Every chart grows with each sample, its legend shows numbers; a pause ends the stream, and it can go on."""
    page = visit("metrics")
    expect_connection(page, "open")
    expect(of(page, "machine")).to_contain_text("processors, Linux")

    def points(name: str) -> int:
        path = of(page, f"chart-{name}").locator("path.line").first.get_attribute("d") or ""
        return len(path.split("L"))

    for name in ("cpu", "load", "memory", "network"):
        chart = of(page, f"chart-{name}")
        expect(chart.locator("path.line").first).to_be_attached()
        wait_until(lambda name=name: points(name) >= 4, message=f"four samples in the chart {name}")  # type: ignore[misc]
        assert chart.locator("svg text", has_text="now").count() == 1
        assert all(re.match(r"[\d.]+", value) for value in chart.locator(".legend b").all_inner_texts())
        # Asked in one go: the next sample draws the line anew.
        line, plot = chart.evaluate(CORNERS)
        assert plot[0] <= line[0] and plot[1] <= line[1] + 1
    of(page, "toggle").click()
    expect_connection(page, "closed")
    server.wait_for_log(r"path=/metrics/events reason=disconnected")
    of(page, "toggle").click()
    expect_connection(page, "open")


def test_a_chart_can_be_read_with_pointer_and_keys(visit: Any) -> None:
    """Pointing at one chart shows that moment in all of them; the arrow keys do too, and say it to a screen reader."""
    page = visit("metrics")
    plot = of(page, "chart-memory").locator(".plot")
    expect(plot.locator("path.line").first).to_be_attached()
    plot.hover()
    expect(page.locator(".plot .cross")).to_have_count(4)
    page.mouse.move(0, 0)
    expect(page.locator(".plot .cross")).to_have_count(0)
    plot.focus()
    page.keyboard.press("ArrowLeft")
    expect(page.locator("#reading")).to_have_text(re.compile(r"Memory: used [\d.]+ [kMGT]?B, cache [\d.]+ [kMGT]?B"))
    page.keyboard.press("Escape")
    expect(page.locator(".plot .cross")).to_have_count(0)


# Progress


@pytest.mark.parametrize("folder", ["sseflask", "stdlib"])
def test_the_progress_bar_reaches_the_end(visit: Any, folder: str) -> None:
    """A folder with a few files and one with thousands end at 100 %, with the digest over all of them."""
    page = visit("progress")
    of(page, f"folder-{folder}").check()
    of(page, "start").click()
    expect(of(page, "percent")).to_have_text("100 %", timeout=45_000)
    assert of(page, "bar").evaluate("node => node.value") == 100
    expect(of(page, "outcome-box")).to_have_attribute("data-kind", "good")
    expect(of(page, "outcome-box")).to_contain_text(re.compile(r"sha256 [0-9a-f]{64}$"))
    done, total = of(page, "files").inner_text().split(" of ")
    assert done == total
    expect_connection(page, "closed")
    expect(of(page, "start")).to_be_enabled()


def test_the_progress_bar_moves_while_the_files_are_hashed(visit: Any, server: Server) -> None:
    """At a bounded speed the bar rises through many values; cancelling stops it, and the work on the server."""
    page = visit("progress")
    of(page, "folder-stdlib").check()
    of(page, "speed").select_option("slow")
    of(page, "start").click()
    seen: set[float] = set()

    def has_risen() -> bool:
        seen.add(of(page, "bar").evaluate("node => node.value"))
        return len(seen) >= 5

    wait_until(has_risen, 20, "five states of the bar")
    expect(of(page, "file")).to_have_text(re.compile(r"\.\w+$"))
    of(page, "cancel").click()
    expect(of(page, "outcome-box")).to_have_attribute("data-kind", "plain")
    assert 0 < of(page, "bar").evaluate("node => node.value") < 100
    expect_connection(page, "closed")
    server.wait_for_log(r"path=/progress/events reason=disconnected")
    server.wait_for_log(r"hashing \S+ ended after \d+ of \d+ files")


def test_a_folder_that_is_not_on_the_list_is_refused_before_any_stream(visit: Any, server: Server, console: Console) -> None:
    """The page shows the reason that came with the status 400."""
    console.allow("400")
    page = visit("progress")
    of(page, "folder-forbidden").check()
    of(page, "start").click()
    expect(of(page, "outcome-box")).to_contain_text("There is no such folder here")
    expect(of(page, "outcome-box")).to_contain_text("400 unknown_folder")
    expect_connection(page, "failed")
    assert "stream closed path=/progress" not in server.log()


# Chat

# In which paint of the page each token was put into it.
RECORD_TOKENS = """() => {
  window.paints = 0;
  window.tokenPaints = new Set();
  const count = () => { window.paints += 1; requestAnimationFrame(count); };
  count();
  new MutationObserver((changes) => {
    for (const { addedNodes } of changes)
      for (const node of addedNodes) if (node.className === "token") window.tokenPaints.add(window.paints);
  }).observe(document.getElementById("messages"), { childList: true, subtree: true });
}"""


def test_chat_tokens_appear_one_by_one(visit: Any) -> None:
    """The answer is painted in many small steps as its tokens come, not in heaps, nor all of it at the end."""
    page = visit("chat")
    page.evaluate(RECORD_TOKENS)
    expect(of(page, "send")).to_be_enabled()  # Before that nobody listens to the keys.
    of(page, "prompt").fill("Tell me about the light, please")
    of(page, "prompt").press("Enter")
    expect_connection(page, "open")
    expect(of(page, "meta")).to_have_text(re.compile(r"^\d+ tokens in [\d.]+ s$"), timeout=30_000)
    tokens = int(of(page, "meta").inner_text().split()[0])
    assert tokens >= 20
    assert page.evaluate("window.tokenPaints.size") >= 10
    expect(of(page, "message-user")).to_have_text("Tell me about the light, please")
    expect_connection(page, "closed")


def test_an_answer_can_be_stopped(visit: Any, server: Server) -> None:
    """“Stop” keeps what was said, ends the answer at the server, and lets the conversation go on."""
    page = visit("chat")
    of(page, "suggestion").first.click()
    expect(page.locator(".token").nth(5)).to_be_attached()
    of(page, "stop").click()
    expect(of(page, "meta")).to_have_text("Stopped.")
    closed = server.wait_for_log(r"path=/chat/events reason=completed \S+ events=(\d+)")
    assert page.locator(".token").count() <= int(closed[1])
    expect_connection(page, "closed")
    of(page, "suggestion").nth(1).click()
    expect(of(page, "message-assistant")).to_have_count(2)
    expect(of(page, "message-assistant").nth(1).locator(".token").nth(3)).to_be_attached()


def test_an_answer_goes_on_when_the_page_is_loaded_again(page: Page, serve: Serve, console: Console) -> None:
    """Over a reload and a lost connection, on two workers, it is the answer that it would have been; the model is asked once."""
    console.allow("net::ERR_")
    words = ["One", " two,\n", " { three", " ü𝄞 four", " five", " six."]
    gates = [threading.Semaphore(0), threading.Semaphore(0)]

    def speak(call: Call) -> None:
        call.begin()
        for number, word in enumerate(words):
            if number and number % 2 == 0:
                gates[number // 2 - 1].acquire(timeout=30)
            call.say(word)
        call.write(DONE)

    def expect_spoken(count: int) -> None:
        spoken = of(page, "message-assistant").locator("p").first
        wait_until(lambda: spoken.evaluate("node => node.textContent") == "".join(words[:count]), 10, f"{count} words")

    with running_provider(speak) as provider:
        server = serve(APP, workers=2, config=ROOT / "gunicorn.conf.py", env={"CHAT_BASE_URL": provider.base_url})
        with network(("127.0.0.1", server.port)) as net:
            page.goto(f"{net.origin}/chat/")
            of(page, "suggestion").first.click()
            expect_spoken(2)
            page.reload()
            expect_spoken(2)
            expect(of(page, "stop")).to_be_enabled()
            gates[0].release()
            expect_spoken(4)
            net.cut("reset")
            expect_connection(page, "reconnecting")
            gates[1].release()
            net.restore()
            expect(of(page, "meta")).to_have_text(re.compile("^6 tokens in "), timeout=20_000)
            expect_spoken(6)
            # What has been said outlives a reload too.
            page.reload()
            expect(of(page, "meta")).to_have_text(re.compile("^6 tokens in "))
            expect_spoken(6)
            expect(of(page, "message-user")).to_have_text("What does the radio hear at night?")
            of(page, "anew").click()
            expect(of(page, "message-assistant")).to_have_count(0)
            page.reload()
            expect(of(page, "send")).to_be_enabled()
            expect(of(page, "message-assistant")).to_have_count(0)
        assert len(provider.calls) == 1


def test_an_error_in_mid_answer_is_told_beside_what_was_said(visit: Any) -> None:
    """The error event's message stands below the words that came before it."""
    page = visit("chat")
    of(page, "suggestion-error").click()
    expect(of(page, "meta")).to_have_text("The model ran aground in the middle of its answer. (model_aground)")
    assert page.locator(".token").count() == 12
    expect_connection(page, "closed")


def test_a_refused_login_at_the_provider_is_an_http_error(page: Page, serve: Serve, console: Console) -> None:
    """Before the first token a failure is a 502 with the reason, which the page shows."""
    console.allow("502")
    with running_provider(lambda call: call.send_error(401)) as provider:
        server = serve(APP, config=ROOT / "gunicorn.conf.py", env={"CHAT_BASE_URL": provider.base_url, "CHAT_MODEL": "large"})
        page.goto(server.url("/chat/"))
        expect(of(page, "model")).to_have_text("large")
        of(page, "suggestion").first.click()
        expect(of(page, "meta")).to_have_text("The model's provider doesn't accept our key. (502)")
        expect_connection(page, "failed")


def test_stopping_an_answer_hangs_up_on_the_provider(page: Page, serve: Serve) -> None:
    """The provider's tokens pass through one by one, and when the reader stops, the provider's connection is closed."""
    left = threading.Event()
    more = threading.Event()

    def speak_and_wait(call: Call) -> None:
        call.begin()
        call.say("One")
        more.wait(10)
        call.say(" two")
        call.wait_until_left()
        left.set()

    with running_provider(speak_and_wait) as provider:
        server = serve(APP, config=ROOT / "gunicorn.conf.py", env={"CHAT_BASE_URL": provider.base_url})
        page.goto(server.url("/chat/"))
        of(page, "suggestion").first.click()
        spoken = of(page, "message-assistant").locator("p").first
        expect(spoken).to_have_text("One")
        more.set()
        expect(spoken).to_have_text("One two")
        of(page, "stop").click()
        assert left.wait(10), "the provider's connection is still open"


# Long job


def test_a_job_with_heartbeats_takes_longer_than_its_deadline(visit: Any) -> None:
    """Five steps of two seconds are all done under a deadline of three, which each of them has put off."""
    page = visit("long_job")
    of(page, "start").click()
    expect(of(page, "step-1")).to_have_attribute("data-state", "working")
    expect(of(page, "left")).to_have_text(re.compile(r"[0-3]\.\d s"))
    expect(of(page, "outcome-box")).to_have_attribute("data-kind", "good", timeout=20_000)
    for step in range(1, 6):
        expect(of(page, f"step-{step}")).to_have_attribute("data-state", "done")
    assert number(page, "beats") == 5
    expect_connection(page, "closed")


def test_a_forgotten_heartbeat_ends_the_job(visit: Any, server: Server) -> None:
    """The step that forgets it fails with the error event's words, and the browser doesn't ask again."""
    page = visit("long_job")
    of(page, "forget").select_option("2")
    of(page, "start").click()
    expect(of(page, "outcome-box")).to_contain_text("error_type: timeout", timeout=10_000)
    expect(of(page, "outcome-box")).to_contain_text("3 s has passed")
    expect(of(page, "step-1")).to_have_attribute("data-state", "done")
    expect(of(page, "step-2")).to_have_attribute("data-state", "failed")
    expect(of(page, "step-3")).to_have_attribute("data-state", "waiting")
    expect_connection(page, "closed")
    server.wait_for_log(r"path=/long-job/events reason=timeout")
    assert server.log().count('"GET /long-job/events') == 1


# Notifications


def publish_notice(page: Page, text: str) -> None:
    """Publishes by the page's form."""
    of(page, "text").fill(text)
    of(page, "publish").click()


def texts(page: Page) -> list[str]:
    """The notices in a page's list, the newest first, with the lines where something may be missing."""
    return of(page, "notices").locator("li .text, li.gap").all_inner_texts()


def test_what_one_page_publishes_rings_in_every_other(visit: Any, another: Callable[[], Page]) -> None:
    """Each other page lists it and counts it in its badge and title until it is read; the page's own notices aren't counted."""
    first = visit("notifications")
    expect_connection(first, "open")
    expect(of(first, "pages")).to_have_text("1")
    second, third = another(), another()
    for page in (first, second, third):
        expect(of(page, "pages")).to_have_text("3")
    of(first, "kind-warning").check()
    publish_notice(first, "Fog from the north")
    publish_notice(first, "<b>Bold</b> & plain")
    for page in (second, third):
        expect(of(page, "badge")).to_have_attribute("data-count", "2")
        expect(page).to_have_title("(2) Notifications · sseflask")
        expect(of(page, "notice").last).to_have_attribute("data-kind", "warning")
    expect(of(first, "notice")).to_have_count(2)
    publish_notice(second, "Heard")
    for page in (first, second, third):
        expect(of(page, "notice")).to_have_count(3)
        assert texts(page) == ["Heard", "<b>Bold</b> & plain", "Fog from the north"]
    counts = [of(page, "badge").get_attribute("data-count") for page in (first, second, third)]
    assert counts == ["1", "2", "3"]
    assert [of(page, "last-id").inner_text() for page in (second, third)] == [of(first, "last-id").inner_text()] * 2

    of(third, "read").click()
    expect(of(third, "badge")).to_have_attribute("data-count", "0")
    expect(of(third, "read")).to_be_disabled()
    expect(third).to_have_title("Notifications · sseflask")
    third.close()
    expect(of(first, "pages")).to_have_text("2")


def test_a_page_shows_its_position_and_the_reset_after_a_restart(
    visit: Any, another: Callable[[], Page], server: Server, console: Console
) -> None:
    """When the server has restarted each page says why and for which position, marks the place in its list, and goes on."""
    console.allow("Failed to load resource: net::ERR_")
    first = visit("notifications")
    expect_connection(first, "open")
    second = another()
    expect(of(second, "opened-at")).to_have_text(re.compile(r"^[0-9a-f]{12}-\d+$"))
    publish_notice(first, "Before the restart")
    expect(of(second, "notice")).to_have_count(1)
    expect(of(first, "notice")).to_have_count(1)
    assert of(second, "reset").inner_text() == ""
    lost = of(second, "last-id").inner_text()

    server.restart()
    for page in (first, second):
        expect(of(page, "resets")).to_have_text("1", timeout=20_000)
        expect_connection(page, "open")
        expect(of(page, "reset")).to_contain_text("The server has restarted")
    expect(of(second, "reset")).to_contain_text(f"stream-reset: epoch, asked for {lost}")
    expect(of(second, "pages")).to_have_text("2")
    publish_notice(second, "After the restart")
    for page in (first, second):
        expect(of(page, "notice")).to_have_count(2)
        assert texts(page) == ["After the restart", "Something may be missing here", "Before the restart"]
        assert of(page, "last-id").inner_text().split("-")[0] != lost.split("-")[0]


def test_a_notice_that_cannot_be_published_stays_in_the_form(visit: Any, server: Server, console: Console) -> None:
    """While the server is down the page says so and keeps the text; what it refuses is told in its words."""
    console.allow("net::ERR_|413")
    page = visit("notifications")
    expect_connection(page, "open")
    of(page, "text").evaluate("node => node.removeAttribute('maxlength')")
    publish_notice(page, "x" * 201)
    expect(of(page, "problem")).to_have_text("A notice may have 200 characters.")
    server.stop()
    publish_notice(page, "Is anybody there?")
    expect(of(page, "problem")).to_have_text("The server can't be reached.")
    expect(of(page, "text")).to_have_value("Is anybody there?")
    server.start()
    expect_connection(page, "open", timeout=20)
    of(page, "text").press("Enter")
    expect(of(page, "notice")).to_have_count(1)
    expect(of(page, "problem")).to_be_empty()


# Board

COLUMNS = ("waiting", "doing", "done")


def cards(page: Page) -> list[list[str]]:
    """The ids of the cards in each column, in their order."""
    return [
        of(page, f"column-{column}").locator("li").evaluate_all("nodes => nodes.map((node) => node.dataset.id)")
        for column in COLUMNS
    ]


START = [["oil", "log", "stairs", "rail"], ["lens", "radio"], ["clock"]]


def test_two_pages_show_the_same_board(visit: Any, another: Callable[[], Page]) -> None:
    """What is moved in one page, by its arrows, by dragging or by keys, moves in the other; a page opened later shows the same."""
    first = visit("board")
    expect(of(first, "snapshots")).to_have_text("1")
    second = another()
    expect(of(second, "snapshots")).to_have_text("1")
    assert cards(first) == cards(second) == START

    of(first, "on-log").click()
    for page in (first, second):
        expect(of(page, "moves")).to_have_text("1")
        assert cards(page) == [["oil", "stairs", "rail"], ["lens", "radio", "log"], ["clock"]]
    expect(of(second, "said")).to_have_text("“Write up the night's log” is in In hand now.")
    expect(of(second, "count-doing")).to_have_text("3")

    of(second, "card-oil").drag_to(of(second, "column-done"))
    for page in (first, second):
        expect(of(page, "moves")).to_have_text("2")
        assert cards(page) == [["stairs", "rail"], ["lens", "radio", "log"], ["clock", "oil"]]

    of(first, "on-lens").focus()
    first.keyboard.press("Enter")
    for page in (first, second):
        expect(of(page, "moves")).to_have_text("3")
        assert cards(page) == [["stairs", "rail"], ["radio", "log"], ["clock", "oil", "lens"]]
    # The card can't go further: the focus stays on it.
    expect(of(first, "back-lens")).to_be_focused()
    first.keyboard.press("Enter")
    third = another()
    for page in (first, second, third):
        expect(of(page, "column-doing").locator("[data-testid=card-lens]")).to_be_attached()
        assert cards(page) == [["stairs", "rail"], ["radio", "log", "lens"], ["clock", "oil"]]
    assert of(third, "position").inner_text() == of(first, "position").inner_text()
    assert number(first, "snapshots") == number(second, "snapshots") == 1


def test_a_board_begins_anew_from_the_snapshot_after_a_restart(
    visit: Any, another: Callable[[], Page], server: Server, console: Console
) -> None:
    """The restarted server has the board of its start: every page shows that, says why, and follows the moves from there."""
    console.allow("net::ERR_")
    first = visit("board")
    expect(of(first, "snapshots")).to_have_text("1")
    second = another()
    expect(of(second, "snapshots")).to_have_text("1")
    of(first, "on-rail").click()
    of(first, "back-clock").click()
    for page in (first, second):
        expect(of(page, "moves")).to_have_text("2")
    lost = of(second, "position").inner_text()

    server.stop()
    expect_connection(second, "reconnecting")
    expect(of(second, "board")).to_have_attribute("aria-busy", "true")
    of(second, "on-lens").click()
    expect(of(second, "outcome-box")).to_have_text("The card stays where it is: The server can't be reached.")
    server.start()
    for page in (first, second):
        expect(of(page, "snapshots")).to_have_text("2", timeout=20_000)
        expect(of(page, "board")).to_have_attribute("aria-busy", "false")
        assert cards(page) == START
        expect(of(page, "outcome-box")).to_contain_text("The server has restarted")
    expect(of(second, "outcome-box")).to_contain_text(f"stream-reset: epoch, asked for {lost}")
    of(second, "on-lens").click()
    for page in (first, second):
        expect(of(page, "moves")).to_have_text("1")
        assert cards(page) == [["oil", "log", "stairs", "rail"], ["radio"], ["clock", "lens"]]


def test_a_page_that_loses_its_connection_gets_the_moves_that_it_missed(page: Page, server: Server, console: Console) -> None:
    """It comes back with its position and gets what was moved meanwhile, without another snapshot."""
    console.allow("net::ERR_")
    with network(("127.0.0.1", server.port)) as net:
        page.goto(f"{net.origin}/board/")
        expect(of(page, "snapshots")).to_have_text("1")
        net.cut("reset")
        expect_connection(page, "reconnecting")
        for card, column in (("oil", "doing"), ("rail", "done"), ("oil", "done")):
            body = json.dumps({"column": column}).encode()
            moved = get(server, f"/board/cards/{card}", method="POST", headers={"Content-Type": "application/json"}, body=body)
            assert moved.json() == {"moved": True}
        assert cards(page) == START
        net.restore()
        expect(of(page, "moves")).to_have_text("3")
        assert cards(page) == [["log", "stairs"], ["lens", "radio"], ["clock", "rail", "oil"]]
        assert number(page, "snapshots") == number(page, "reconnections") == 1
        expect(of(page, "outcome")).to_be_empty()


# Images

# The third picture is developed when there is a file "go".
IMAGES_APP = """
import time
from pathlib import Path
from examples import create_app, images

develop_one = images.develop_one

def wait_and_develop(folder, number, name):
    while number == 3 and not Path("go").exists():
        time.sleep(0.02)
    develop_one(folder, number, name)

images.develop_one = wait_and_develop
app = create_app()
"""


def picture(colour: str, kind: str = "PNG") -> bytes:
    """A picture of some size, with a line across."""
    image = Image.new("RGB", (800, 600), colour)
    image.paste("white", (0, 280, 800, 320))
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


def choose(page: Page, **files: bytes) -> None:
    """Chooses files for the upload; `_` in their names stands for a dot."""
    uploads = [{"name": name.replace("_", "."), "mimeType": "image/png", "buffer": content} for name, content in files.items()]
    of(page, "pictures").set_input_files(uploads)  # type: ignore[arg-type]


def tiles(page: Page) -> list[list[Any]]:
    """The tiles in their order: state, name, what it says, and how many pictures are shown and loaded."""
    look = """nodes => nodes.map((node) => [
      node.dataset.state, ...[...node.querySelectorAll("p")].map((p) => p.textContent),
      [...node.querySelectorAll("img")].filter((image) => image.complete && image.naturalWidth > 0).length,
    ])"""
    found: list[list[Any]] = of(page, "tiles").locator("li").evaluate_all(look)
    return found


def test_an_image_job_goes_on_over_a_reload_and_in_two_tabs(
    page: Page, serve: Serve, another: Callable[[], Page], temporary_files: Path
) -> None:
    """Loaded again in the middle, or in a second tab, it is the same job to its end; one damaged picture says so on its tile."""
    server = serve(IMAGES_APP, workers=2, config=ROOT / "gunicorn.conf.py")
    page.goto(server.url("/images/"))
    good, damaged = picture("navy"), picture("red")[:300]
    choose(page, a_png=good, b_png=damaged, c_jpg=picture("teal", "JPEG"), d_png=good, notes_txt=b"Lamp lit.")
    of(page, "start").click()
    expect(of(page, "refusal")).to_have_text(["notes.txt: This is no JPEG, PNG, GIF or WebP picture."])
    expect(of(page, "percent")).to_have_text("50 %")
    assert re.search("#[0-9a-f]{32}$", page.url)
    half_way = [
        ["done", "a.png", "Done", 2],
        ["failed", "b.png", "This picture is damaged, and can't be read.", 0],
        ["waiting", "c.jpg", "Waiting", 0],
        ["waiting", "d.png", "Waiting", 0],
    ]
    wait_until(lambda: tiles(page) == half_way, 10, "half of the tiles")
    page.reload()
    second = another()
    for tab in (page, second):
        wait_until(lambda tab=tab: tiles(tab) == half_way, 10, "the same tiles")  # type: ignore[misc]
        expect(of(tab, "percent")).to_have_text("50 %")
        expect(of(tab, "now")).to_have_text("2 of 4 are done. In hand: c.jpg")
    (server.directory / "go").touch()
    done = [*half_way[:2], ["done", "c.jpg", "Done", 2], ["done", "d.png", "Done", 2]]
    for tab in (page, second):
        expect(of(tab, "percent")).to_have_text("100 %")
        expect(of(tab, "outcome-box")).to_have_text("3 pictures are developed1 could not be read: the tile says why.")
        wait_until(lambda tab=tab: tiles(tab) == done, 10, "all tiles")  # type: ignore[misc]
        expect_connection(tab, "closed")
    page.reload()
    expect(of(page, "outcome-box")).to_contain_text("3 pictures are developed")
    wait_until(lambda: tiles(page) == done, 10, "all tiles of a job that is over")
    assert server.log().count('"POST /images/jobs ') == 1

    # Another one begins anew in the same page, and can be cancelled.
    (server.directory / "go").unlink()
    choose(page, a_png=good, b_png=good, c_png=good)
    of(page, "start").click()
    wait_until(lambda: [tile[0] for tile in tiles(page)] == ["done", "done", "waiting"], 10, "two tiles of the next job")
    of(page, "cancel").click()
    expect(of(page, "outcome-box")).to_contain_text("Cancelled")
    expect(of(page, "start")).to_be_enabled()
    page.context.close()
    # What it has made goes with the server.
    folder = next(temporary_files.glob("sseflask-images-*"))
    server.signal(signal.SIGTERM)
    server.wait_for_exit(20)
    assert not folder.exists()


def test_an_image_job_that_nobody_knows_is_told(page: Page, server: Server, console: Console) -> None:
    """An address of a job that is forgotten leads to a page that says so, and can begin anew; so does a choice of no pictures."""
    console.allow("40[04]")
    page.goto(server.url(f"/images/#{'0' * 32}"))
    expect(of(page, "outcome-box")).to_contain_text("Nobody knows of this job any more.")
    expect_connection(page, "failed")
    assert "#" not in page.url
    choose(page, notes_txt=b"Lamp lit.")
    of(page, "start").click()
    expect(of(page, "outcome-box")).to_have_text("None of these files can be taken.")
    expect(of(page, "refusal")).to_have_count(1)
    expect(of(page, "start")).to_be_enabled()


# Report

# A report goes on when there is a file "go".
REPORT_APP = """
import time
from pathlib import Path
from examples import create_app, report

def wait():
    while not Path("go").exists():
        time.sleep(0.02)

report.pause = wait
app = create_app()
"""


def test_leaving_the_room_makes_a_report(page: Page, serve: Serve, another: Callable[[], Page]) -> None:
    """Its status is shown, in a page loaded again too; at the end there is an Excel file with the right numbers to download."""
    server = serve(REPORT_APP, config=ROOT / "gunicorn.conf.py")
    page.goto(server.url("/report/"))
    night = len(NIGHT)
    expect(of(page, "message")).to_have_count(night)
    other = another()
    expect(of(other, "message")).to_have_count(night)
    of(page, "author").fill("Ada")
    for text in ("=1+1", "Is the trawler safe?"):
        of(page, "text").fill(text)
        of(page, "text").press("Enter")
        for tab in (page, other):
            expect(of(tab, "message").last.locator(".text")).to_have_text(text)
    expect(of(other, "message").last.locator(".meta")).to_have_text(re.compile("^Ada · "))
    other.close()

    of(page, "leave").click()
    counting = f"Counting {night + 2} messages"
    expect(of(page, "status")).to_have_text([counting])
    expect(of(page, "now")).to_have_text(counting)
    expect(of(page, "say")).to_be_disabled()
    page.reload()
    expect(of(page, "now")).to_have_text(counting)
    expect(of(page, "percent")).to_have_text("0 %")
    expect(of(page, "message")).to_have_count(0)
    (server.directory / "go").touch()
    expect(of(page, "percent")).to_have_text("100 %")
    expect(of(page, "outcome-box")).to_contain_text(f"{night + 2} messages by Ines (3)")
    expect(of(page, "status").last).to_have_text(re.compile(r"^report\.xlsx: [\d,]+ bytes$"))
    expect_connection(page, "closed")
    with page.expect_download() as downloading:
        of(page, "download-link").click()
    assert downloading.value.suggested_filename == "report.xlsx"
    book = openpyxl.load_workbook(io.BytesIO(downloading.value.path().read_bytes()))
    summary = [[cell.value for cell in row if cell.value is not None] for row in book["Summary"].rows]
    assert ["Messages", night + 2] in summary
    assert ["Ada", 2, 5] in summary
    messages = [[cell.value for cell in row] for row in book["Messages"].rows]
    assert len(messages) == night + 3
    assert [row[1:] for row in messages[-2:]] == [["Ada", "=1+1"], ["Ada", "Is the trawler safe?"]]
    # Who comes after the end is told all of it at once.
    page.reload()
    expect(of(page, "outcome-box")).to_contain_text(f"{night + 2} messages")
    expect(of(page, "download-link")).to_be_visible()

    (server.directory / "go").unlink()
    of(page, "enter").click()
    expect(of(page, "message")).to_have_count(night + 2)
    of(page, "leave").click()
    expect(of(page, "now")).to_have_text(counting)
    of(page, "cancel").click()
    expect(of(page, "outcome-box")).to_contain_text("Cancelled")
    expect(of(page, "download-link")).to_have_count(0)
    expect(of(page, "enter")).to_be_enabled()


# The parser of the pages that use fetch()

READ = """async ([stream, sizes]) => {
  const { EventStreamParser } = await import("/static/event-stream.js");
  const bytes = Uint8Array.from(atob(stream), (character) => character.charCodeAt(0));
  return sizes.map((size) => {
    const decoder = new TextDecoder();
    const parser = new EventStreamParser();
    const events = [];
    for (let start = 0; start < bytes.length; start += size) {
      events.push(...parser.feed(decoder.decode(bytes.subarray(start, start + size), { stream: true })));
    }
    return [events.map(({ event, data, id }) => [event, data, id]), parser.lastEventId, parser.retry];
  });
}"""
SMALL_BYTES = 20_000


def test_the_parser_of_the_pages_follows_the_standard(page: Page, server: Server) -> None:
    """Each conformance vector, whole and in slices of one, two and seven bytes, gives the events that the standard says."""
    page.goto(server.url("/"))
    for vector in decode_vectors():
        sizes = [1, 2, 7, SMALL_BYTES] if len(vector.stream) < SMALL_BYTES else [len(vector.stream), 65_536]
        events = [[event.browser_type, event.data, event.browser_last_event_id] for event in vector.events]
        for result in page.evaluate(READ, [base64.b64encode(vector.stream).decode(), sizes]):
            assert result == [events, vector.last_event_id, vector.retry], vector.name


PARSED = """async (pieces) => {
  const { EventStreamParser } = await import("/static/event-stream.js");
  return pieces.map((texts) => {
    const parser = new EventStreamParser();
    return [texts.flatMap((text) => parser.feed(text)), parser.lastEventId, parser.retry];
  });
}"""


def splits(text: str) -> Iterator[list[str]]:
    """The text cut in two at each place, with an empty piece in between, and cut into single characters."""
    for place in range(len(text) + 1):
        yield [text[:place], "", text[place:]]
    yield list(text)


@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
def test_the_parser_of_the_pages_reads_a_stream_cut_anywhere(page: Page, server: Server, line_end: str) -> None:
    """Each way to cut a stream, with each line end, gives the same events."""
    lines = [
        ": comment",
        "retry: 50",
        "retry: 1x",
        "id: 7",
        "event: named",
        "data: a",
        "data:  b",
        "data",
        "",
        "id",
        "data:c",
        "",
        "",
    ]
    stream = line_end.join([*lines, "event: no data", "", "id: a\0b", "data: ü𝄞", "", "data: unfinished", ""])
    expected = [
        {"event": "named", "data": "a\n b\n", "id": "7"},
        {"event": "message", "data": "c", "id": ""},
        {"event": "message", "data": "ü𝄞", "id": ""},
    ]
    page.goto(server.url("/"))
    pieces = list(splits(stream))
    results = page.evaluate(PARSED, pieces)
    for cut, (events, last_event_id, retry) in zip(pieces, results, strict=True):
        assert events == expected, json.dumps(cut)
        assert (last_event_id, retry) == ("", 50)


# Celery

#: Has the page remember how far it showed the job to be, and in which state its connection was.
REMEMBERS = """() => {
    const of = (name) => document.querySelector(`[data-testid="${name}"]`)
    const note = () => shown.push(`${of("percent").textContent} ${of("connection").dataset.state}`)
    window.shown = []
    new MutationObserver(note).observe(document.body, {subtree: true, childList: true, characterData: true, attributes: true})
}"""


@pytest.fixture
def redis_url(tmp_path: Path) -> Iterator[str]:
    """The URL of a Redis of the test's own."""
    (tmp_path / "redis").mkdir()
    server = RedisServer(tmp_path / "redis").start()
    yield f"{server.url}/0"
    server.close()


@pytest.fixture
def celery_page(page: Page, serve: Serve, redis_url: str) -> Page:
    """The example, of a server that has Redis."""
    server = serve(APP, config=ROOT / "gunicorn.conf.py", env={"SSE_BROKER_URL": redis_url})
    page.goto(server.url("/celery/"))
    return page


@pytest.fixture
def worker_log(tmp_path: Path, redis_url: str) -> Iterator[Path]:
    """A Celery worker that is ready; its log."""
    with celery_worker(tmp_path, redis_url) as log:
        yield log


@needs_redis
def test_a_celery_job_shows_its_progress_to_the_end(celery_page: Page, worker_log: Path) -> None:
    """The bar follows what the worker reports, reaches 100 %, and the page shows the result and asks for nothing more."""
    page = celery_page
    # What it shows on its way, and not only the end: a fast machine is through before anybody has looked.
    page.evaluate(REMEMBERS)
    of(page, "limit").select_option("100000000")
    of(page, "start").click()
    expect(of(page, "percent")).to_have_text("100 %", timeout=50_000)
    shown = page.evaluate("shown")
    assert any(re.fullmatch(r"[1-9]\d? % open", each) for each in shown), shown
    expect(of(page, "outcome-box")).to_contain_text("5,761,455 prime numbers below 100,000,000")
    expect(of(page, "largest")).to_have_text("99,999,989")
    expect_connection(page, "closed")
    assert number(page, "reports") >= 2
    expect(of(page, "start")).to_be_enabled()
    assert "succeeded" in worker_log.read_text()


@needs_redis
def test_a_page_that_is_loaded_again_finds_its_celery_job(celery_page: Page, worker_log: Path) -> None:
    """In the middle of a job, a reload shows at once how far it is; after its end, a page that asks is told the result."""
    page = celery_page
    of(page, "limit").select_option("1000000000")
    of(page, "start").click()
    expect(of(page, "percent")).to_have_text(re.compile(r"^[1-9]\d? %$"), timeout=20_000)
    address = page.url
    assert "#" in address
    page.reload()
    expect(of(page, "percent")).to_have_text("100 %", timeout=50_000)
    expect(of(page, "outcome-box")).to_contain_text("50,847,534")
    assert "#" not in page.url
    page.goto(address)
    page.reload()
    expect(of(page, "outcome-box")).to_contain_text("50,847,534")


@needs_redis
def test_a_page_without_a_celery_worker_says_so(celery_page: Page, console: Console) -> None:
    """Nobody answers: the page says what to start, and can try again."""
    console.allow("503")
    of(celery_page, "start").click()
    expect(of(celery_page, "outcome-box")).to_contain_text("No Celery worker answers")
    expect(of(celery_page, "start")).to_be_enabled()
