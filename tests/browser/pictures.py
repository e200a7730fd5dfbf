"""The documentation's pictures, taken from the running pages: `make pictures`, or `python -m tests.browser.pictures chat board`.

Each page is served by gunicorn, opened in Chromium, and brought into the middle of what it does by its own buttons, as in the
tests of the examples: it lives beside them because it needs the same harness, and so that one of them runs it.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import math
import re
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, Final

from PIL import Image, ImageDraw
from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright

from examples.catalogue import EXAMPLES
from tests.browser.celery_worker import celery_worker
from tests.chromium import ARGUMENTS, executable
from tests.live.crowd import Crowd
from tests.live.process import wait_until
from tests.live.server import ROOT, Server
from tests.redis import RedisServer

START: Final = ROOT / "docs/start/pictures"
REFERENCE: Final = ROOT / "docs/reference/pictures"
HEIGHT: Final = 1600
#: A page of text needs few, and its file is much smaller with them.
COLOURS: Final = 192
#: A page may be over before it is taken, on a slow machine; then it is done again.
ATTEMPTS: Final = 5

# The fifth picture of a job stays where it is, half done.
IMAGES_APP: Final = """
import itertools
import time
from examples import create_app, images

beside = images.beside
calls = itertools.count(1)

def wait_and_do(function):
    if next(calls) % 10 == 0:
        time.sleep(600)
    return beside(function)

images.beside = wait_and_do
app = create_app()
"""


@dataclass
class Stage:
    """What a pose works with.

    Attributes:
        page: The page that is taken, opened.
        server: What serves it.
        closing: What a pose opens is closed with it.
    """

    page: Page
    server: Server
    closing: contextlib.ExitStack

    def another(self) -> Page:
        """Opens the page's address in a second tab."""
        tab = self.page.context.new_page()
        tab.goto(self.page.url)
        return tab


@dataclass(frozen=True)
class Picture:
    """A picture of a page.

    Attributes:
        folder: Where it is kept.
        path: The page's address on the server.
        pose: Brings the page into the middle of what it does. May be called again, with the page opened anew.
        until: The last part of the page that is shown.
        app: What is served, as for `Server`.
        width: In pixels.
        workers: How many gunicorn has.
        needs_celery: Whether there must be a Redis and a Celery worker.
    """

    folder: Path
    path: str
    pose: Callable[[Stage], None]
    until: str = "main > :nth-last-child(1 of :not(.behind, .visually-hidden))"
    app: str = "examples:create_app()"
    width: int = 900
    workers: int = 1
    needs_celery: bool = False


def of(page: Page, name: str) -> Locator:
    """The part of the page with this test id."""
    return page.get_by_test_id(name)


# The poses


def index(stage: Stage) -> None:
    """Four of ten events have come."""
    expect(of(stage.page, "bytes")).to_contain_text('{"count":3}', timeout=20_000)


def counter(stage: Stage) -> None:
    """The server has hung up once, and the count goes on."""
    of(stage.page, "rest").check()
    of(stage.page, "start").click()
    expect(of(stage.page, "count")).to_have_text("13", timeout=30_000)


def metrics(stage: Stage) -> None:
    """The charts are half full."""
    line = of(stage.page, "chart-cpu").locator("path.line").first
    wait_until(lambda: (line.get_attribute("d") or "").count("L") >= 64, 90, "half a minute of samples")
    # The machine's own name is nobody's business.
    text = "node.textContent.replace(/^[^:]*/, 'This machine').replace(/(Linux \\d+\\.\\d+).*/, '$1')"
    of(stage.page, "machine").evaluate(f"node => {{ node.textContent = {text}; }}")


def progress(stage: Stage) -> None:
    """More than half of the bytes are hashed."""
    page = stage.page
    # Where this machine keeps its files is nobody's business.
    page.locator(".choice .path").evaluate_all(
        "nodes => nodes.forEach((node) => { node.textContent = node.textContent.replace(/.*(?=\\/lib\\/|\\/sseflask)/, '…'); })"
    )
    of(page, "speed").select_option("slow")
    of(page, "start").click()
    expect(of(page, "percent")).to_have_text(re.compile(r"^[67]\d(\.\d)? %$"), timeout=45_000)


def chat(stage: Stage) -> None:
    """One answer is there, and the next one is being given."""
    page = stage.page
    of(page, "suggestion").nth(1).click()
    expect(of(page, "meta").first).to_have_text(re.compile(r"^\d+ tokens in "), timeout=30_000)
    of(page, "suggestion").nth(2).click()
    expect(of(page, "message-assistant").nth(1).locator(".token").nth(18)).to_be_attached(timeout=20_000)


def long_job(stage: Stage) -> None:
    """The third of five steps is at work, and its deadline runs."""
    of(stage.page, "start").click()
    expect(of(stage.page, "step-3")).to_have_attribute("data-state", "working", timeout=20_000)
    expect(of(stage.page, "left")).to_have_text(re.compile(r"^1\.\d s$"), timeout=5_000)


def notifications(stage: Stage) -> None:
    """Two of three notices from other pages are unread."""
    page = stage.page
    other, third = stage.another(), stage.another()
    for tab in (page, other, third):
        expect(of(tab, "pages")).to_have_text("3", timeout=20_000)
    sent = [
        (other, "info", "The supply boat comes at noon"),
        (page, "good", "The landing is clear"),
        (third, "warning", "Fog from the north: the horn is on"),
    ]
    for count, (tab, kind, text) in enumerate(sent, start=1):
        of(tab, f"kind-{kind}").check()
        of(tab, "text").fill(text)
        of(tab, "publish").click()
        expect(of(page, "notice")).to_have_count(count)
    expect(of(page, "badge")).to_have_attribute("data-count", "2")


def board(stage: Stage) -> None:
    """Another visitor has moved three cards."""
    other = stage.another()
    expect(of(stage.page, "snapshots")).to_have_text("1")
    expect(of(other, "snapshots")).to_have_text("1")
    for moves, card in enumerate(("radio", "log", "oil"), start=1):
        of(other, f"on-{card}").click()
        expect(of(stage.page, "moves")).to_have_text(str(moves))


def images(stage: Stage) -> None:
    """Four pictures are developed, and the fifth is at it."""
    names = ("night.png", "dawn.jpg", "noon.jpg", "evening.jpg", "dusk.png", "storm.jpg")
    files = [
        {"name": name, "mimeType": "image/png", "buffer": lighthouse(number, name.rpartition(".")[2])}
        for number, name in enumerate(names)
    ]
    of(stage.page, "pictures").set_input_files(files)  # type: ignore[arg-type]
    of(stage.page, "start").click()
    tiles = of(stage.page, "tiles").locator("li")
    states = "nodes => nodes.map((node) => node.dataset.state)"
    expected = ["done"] * 4 + ["running", "waiting"]
    loaded = "nodes => nodes.every((image) => image.complete && image.naturalWidth > 0) && nodes.length"
    wait_until(lambda: tiles.evaluate_all(states) == expected, 30, "four developed pictures")
    wait_until(lambda: tiles.locator("img").evaluate_all(loaded) == 9, 20, "nine loaded pictures")


def report(stage: Stage) -> None:
    """The visitor has said something and left, and the report is being written."""
    page = stage.page
    of(page, "author").fill("Ada")
    of(page, "text").fill("Did the trawler find the harbour?")
    of(page, "text").press("Enter")
    expect(of(page, "message").last).to_contain_text("trawler find")
    of(page, "leave").click()
    expect(of(page, "status")).to_have_count(3, timeout=20_000)


def celery(stage: Stage) -> None:
    """The worker has done about half."""
    page = stage.page
    of(page, "limit").select_option("1000000000")
    of(page, "start").click()
    expect(of(page, "percent")).to_have_text(re.compile(r"^[4-6]\d %$"), timeout=60_000)


def dashboard(stage: Stage) -> None:
    """Two workers with some hundred streams, and half a minute of events; one channel is tailed."""
    page, server = stage.page, stage.server
    channels = ["news", "orders", *(f"job:{number}" for number in range(1, 7)), "room/harbour", "room/gallery"]
    # The first has 60 streams, and the last one.
    paths = [f"/events/{channel}" for rank, channel in enumerate(channels, start=1) for _ in range(60 // rank**2 or 1)]
    crowd = Crowd()
    stage.closing.callback(crowd.hang_up)
    crowd.join(server, paths)
    done = threading.Event()

    def publish() -> None:
        connection = HTTPConnection("127.0.0.1", server.port, timeout=20)
        stage.closing.callback(connection.close)
        count = 0
        while not done.wait(0.12 + 0.08 * math.sin(count / 30)):
            body = json.dumps({"data": {"percent": count % 100}, "event": "progress"})
            path = f"/events/{channels[count % 37 % len(channels)]}"
            connection.request("POST", path, body=body, headers={"Content-Type": "application/json"})
            connection.getresponse().read()
            count += 1

    thread = threading.Thread(target=publish)
    thread.start()
    stage.closing.callback(thread.join)
    stage.closing.callback(done.set)
    page.get_by_role("button", name="Tail job:1", exact=True).click(timeout=20_000)
    # Once a second a sample: what was before it was opened isn't known.
    points = page.locator("[data-chart=delivered] svg path, [data-chart=delivered] svg polyline").first
    wait_until(
        lambda: len(re.findall(r"[\d.]+", points.get_attribute("d") or points.get_attribute("points") or "")) > 120, 120, "a line"
    )
    expect(of(page, "events").locator("tr").nth(5)).to_be_attached(timeout=30_000)
    for member in crowd.members[:3]:
        crowd.leave(member)
    expect(of(page, "closes").locator("tr", has_text="disconnected")).to_have_count(3, timeout=20_000)


PICTURES: Final = {
    "index": Picture(START, "/", index, until=".card:nth-child(2)", width=1040),
    **{
        example.name: Picture(
            START,
            f"/{example.name.replace('_', '-')}/",
            globals()[example.name],
            app=IMAGES_APP if example.name == "images" else "examples:create_app()",
            needs_celery=example.name == "celery",
        )
        for example in EXAMPLES
    },
    "dashboard": Picture(
        REFERENCE,
        "/events/-/dashboard",
        dashboard,
        until="main > .columns",
        app="tests.live.apps.dashboard_app:app",
        width=1360,
        workers=2,
    ),
}


# The camera


def take(browser: Browser, name: str, directory: Path) -> bytes:
    """Takes a picture.

    Args:
        browser: A Chromium.
        name: One of `PICTURES`.
        directory: An empty one, for what its servers write.

    Returns:
        A PNG file.

    Raises:
        AssertionError: The page didn't come to its pose, or never stayed there for long enough.
    """
    picture = PICTURES[name]
    with contextlib.ExitStack() as closing:
        env = {"TMPDIR": closing.enter_context(tempfile.TemporaryDirectory(prefix="pictures-"))}
        if picture.needs_celery:
            redis = RedisServer(directory).start()
            closing.callback(redis.close)
            env["SSE_BROKER_URL"] = f"{redis.url}/0"
            closing.enter_context(celery_worker(directory, env["SSE_BROKER_URL"]))
        server = closing.enter_context(
            Server(picture.app, directory, workers=picture.workers, config=ROOT / "gunicorn.conf.py", env=env)
        )
        for _ in range(ATTEMPTS):
            with contextlib.ExitStack() as posing:
                context = browser.new_context(viewport={"width": picture.width, "height": HEIGHT}, color_scheme="light")
                posing.callback(context.close)
                page = context.new_page()
                page.goto(server.url(picture.path))
                expect(of(page, "connection")).to_have_attribute("data-state", re.compile("idle|open"))
                picture.pose(Stage(page, server, posing))
                shot = page.screenshot(clip=visible(page, picture), animations="disabled")
                if of(page, "connection").get_attribute("data-state") == "open":
                    return reduced(shot)
        raise AssertionError(f"{name}: its stream was over each time")


def visible(page: Page, picture: Picture) -> Any:
    """The page from its top to the end of this part, with a margin below."""
    page.evaluate("scrollTo(0, 0)")
    box = page.locator(picture.until).bounding_box()
    assert box is not None, f"{picture.until} isn't shown"
    return {"x": 0, "y": 0, "width": picture.width, "height": min(math.ceil(box["y"] + box["height"]) + 16, HEIGHT)}


def reduced(png: bytes) -> bytes:
    """The same picture with few colours."""
    image = Image.open(io.BytesIO(png)).convert("RGB")
    small = image.quantize(COLOURS, method=Image.Quantize.MEDIANCUT, kmeans=1, dither=Image.Dither.NONE)
    file = io.BytesIO()
    small.save(file, "PNG", optimize=True)
    return file.getvalue()


# What is developed: sky, sun or moon, sea and a lighthouse, at six times of the day
SKIES: Final = (
    ("#0b1533", "#2b3f73", "#f3efd8"),
    ("#f6b26b", "#fde3c0", "#fff3d6"),
    ("#5aa9e6", "#cfe8fa", "#fff7c9"),
    ("#8c5a9e", "#f2a07b", "#ffd27a"),
    ("#2a2f5b", "#c0657a", "#ffb36b"),
    ("#3d4750", "#8d979e", "#d5d9dc"),
)


def lighthouse(number: int, kind: str) -> bytes:
    """A drawing of a lighthouse by the sea, as a file."""
    top, bottom, light = SKIES[number]
    width, height, horizon = 960, 720, 470
    image = Image.composite(
        Image.new("RGB", (width, height), bottom),
        Image.new("RGB", (width, height), top),
        Image.linear_gradient("L").resize((width, height)),
    )
    draw = ImageDraw.Draw(image)
    x, y = 140 + 125 * number, 300 - 50 * number + 14 * number * number
    draw.ellipse((x - 45, y - 45, x + 45, y + 45), fill=light)
    draw.rectangle((0, horizon, width, height), fill=top)
    for wave in range(9):
        row = horizon + 14 + wave * wave * 3
        draw.arc((wave * 70 - 60, row, wave * 70 + 300, row + 24), 200, 340, fill=bottom, width=4)
    draw.polygon([(520, height), (600, 540), (860, 520), (width, 600), (width, height)], fill="#2c2a2e")
    draw.polygon([(690, 540), (770, 540), (755, 250), (705, 250)], fill="#f4f1ea")
    for stripe in (300, 390, 480):
        lean = (stripe - 250) // 20
        corners = [(702 - lean, stripe), (758 + lean, stripe), (761 + lean, stripe + 45), (699 - lean, stripe + 45)]
        draw.polygon(corners, fill="#b23a2e")
    draw.rectangle((695, 238, 765, 250), fill="#2c2a2e")
    draw.rectangle((710, 195, 750, 238), fill=light)
    draw.polygon([(702, 195), (758, 195), (730, 160)], fill="#b23a2e")
    file = io.BytesIO()
    image.save(file, "JPEG" if kind == "jpg" else "PNG")
    return file.getvalue()


def main(arguments: Sequence[str]) -> int:
    """Takes the pictures that are named, or all, and writes them into the documentation."""
    parser = argparse.ArgumentParser(prog="python -m tests.browser.pictures", description="Takes the documentation's pictures.")
    parser.add_argument("names", nargs="*", help=f"of {', '.join(PICTURES)}; all, if none is named")
    names = parser.parse_args(arguments).names or list(PICTURES)
    if unknown := set(names) - set(PICTURES):
        parser.error(f"there is no such picture: {', '.join(sorted(unknown))}")
    program = executable()
    if program is None:
        sys.stderr.write("There is no Chromium on this system.\n")
        return 1
    with (
        sync_playwright() as playwright,
        contextlib.closing(playwright.chromium.launch(executable_path=program, args=ARGUMENTS)) as browser,
    ):
        for name in names:
            with tempfile.TemporaryDirectory(prefix="pictures-") as directory:
                png = take(browser, name, Path(directory))
            target = PICTURES[name].folder / f"{name}.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(png)
            sys.stdout.write(f"{target.relative_to(ROOT)}: {len(png) / 1000:.0f} KB\n")
            sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
