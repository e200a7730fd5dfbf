"""The examples without a browser: their models, their parsing, what they refuse, and what their pages promise."""

from __future__ import annotations

import hashlib
import html
import io
import json
import logging
import os
import re
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from html.parser import HTMLParser
from itertools import pairwise
from math import isqrt
from pathlib import Path
from typing import Any

import openpyxl
import pytest
from flask import Flask
from flask.testing import FlaskClient
from PIL import Image

from examples import chat, create_app, images, machine, progress, report
from examples.board import Board
from examples.catalogue import EXAMPLES
from examples.chat import LocalModel, model_from
from examples.endpoint import Endpoint, EndpointFailed
from examples.markov import TOKEN, MarkovModel
from examples.shelf import Shelf
from examples.source import highlighted
from sseflask import EventDecoder, ServerSentEvent, StreamClosed, process
from tests.browser.provider import DONE, Behaviour, Call, piece, running_provider
from tests.live.process import wait_until

ROOT = Path(__file__).resolve().parents[1]
LIGHTHOUSE = ROOT / "examples/texts/lighthouse.txt"
QUESTION = [{"role": "user", "content": "Tell me about the tide."}]


@pytest.fixture
def app(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Flask:
    """The examples, whose small model answers without a pause, and whose files lie in a folder of the test's own."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    for name in ("CHAT_BASE_URL", "CHAT_MODEL", "CHAT_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    app = create_app()
    app.extensions["chat_model"] = LocalModel(seconds_per_token=0)
    return app


@pytest.fixture
def client(app: Flask) -> FlaskClient:
    """A client of the examples."""
    return app.test_client()


def events_of(body: bytes) -> list[ServerSentEvent]:
    """The events of a whole stream."""
    return EventDecoder().feed(body)


def data_of(event: ServerSentEvent) -> Any:
    """An event's data, decoded."""
    assert isinstance(event.data, str)
    return json.loads(event.data)


class Clock:
    """A `time` of its own, in which a sleep takes no time."""

    def __init__(self) -> None:
        self.now = 0.0
        self.sleeps: list[float] = []

    def monotonic(self) -> float:
        """The seconds slept so far."""
        return self.now

    def sleep(self, seconds: float) -> None:
        """Sleeps at once."""
        assert seconds >= 0
        self.sleeps.append(seconds)
        self.now += seconds


# The pages


class Elements(HTMLParser):
    """Collects a page's elements."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Keeps an element with its attributes."""
        self.found.append((tag, dict(attrs)))


PAGES = ("/", *(f"/{example.name.replace('_', '-')}/" for example in EXAMPLES))


@pytest.mark.parametrize("path", PAGES)
def test_pages_have_nothing_that_their_content_security_policy_forbids(client: FlaskClient, path: str) -> None:
    """Each page says `default-src 'self'`, and holds no inline script or style and nothing from elsewhere."""
    response = client.get(path)
    assert response.status_code == 200
    assert response.headers["Content-Security-Policy"].startswith("default-src 'self';")
    for tag, attributes in Elements(response.text).found:
        assert tag != "style"
        assert not [name for name in attributes if name == "style" or name.startswith("on")]
        if tag == "script":
            assert attributes.get("src")
        for name in ("src", "href"):
            assert (attributes.get(name) or "/").startswith(("/", "#"))


@pytest.mark.parametrize("path", PAGES)
def test_what_the_scripts_look_for_is_in_the_page(client: FlaskClient, path: str) -> None:
    """Each id that a page's script asks for is in the page, once; so is each file that a script imports."""
    elements = Elements(client.get(path).text).found
    ids = [attributes["id"] for _, attributes in elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    (script,) = [attributes["src"] for tag, attributes in elements if tag == "script"]
    text = (ROOT / f"examples/{script}").read_text()
    wanted = set(re.findall(r"""(?:element|getElementById)\("([\w-]+)"\)""", text))
    assert wanted
    assert wanted <= set(ids)
    for imported in re.findall(r'from "\./([\w-]+\.js)"', text):
        assert (ROOT / f"examples/static/{imported}").exists()


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.name)
def test_a_page_shows_the_code_behind_it(client: FlaskClient, example: Any) -> None:
    """The code on an example's page is its modules' source, character by character."""
    page = client.get(f"/{example.name.replace('_', '-')}/").text
    shown = [
        html.unescape(re.sub(r"<[^>]+>", "", code)) for code in re.findall(r'<pre tabindex="0"><code>(.*?)</code>', page, re.DOTALL)
    ]
    files = [ROOT / "examples" / name for name in example.files]
    assert shown == [Path(path).read_text() for path in (*(str(each.__file__) for each in (example.module, *example.more)), *files)]


@pytest.mark.parametrize(
    "source", ["", "x = 1", 'f"{a!r:>{w}} <b>"\n', '"""\n&\n"""\n\n@d\ndef f(): pass  # <\n', "if x:\n    y\n\n\n"]
)
def test_highlighting_changes_no_character(source: str) -> None:
    """Without its tags, highlighted code is the code."""
    assert html.unescape(re.sub(r"<[^>]+>", "", highlighted(source))) == source


def test_highlighting_marks_words_by_their_kind() -> None:
    """Keywords, names being defined, decorators, strings, numbers and comments are told apart."""
    marked = highlighted('@cache\ndef f():\n    return "a", 1  # why\n')
    kinds = dict(re.findall(r'<span class="code-(\w+)">([^<]+)</span>', marked))
    assert kinds == {
        "decorator": "cache",
        "keyword": "return",
        "definition": "f",
        "string": "&#34;a&#34;",
        "number": "1",
        "comment": "# why",
    }


# Counter


@pytest.mark.parametrize(
    ("last_event_id", "count"),
    [(None, 1), ("41", 42), ("9", 10), ("0", 1), ("", 1), ("-5", 1), ("abc", 1), ("４", 1), ("9" * 5000, 1), ("1e3", 1)],
)
def test_the_counter_goes_on_after_the_last_event_id(client: FlaskClient, last_event_id: str | None, count: int) -> None:
    """A count follows the one that the client saw last; an id that isn't a count begins anew."""
    headers = {} if last_event_id is None else {"Last-Event-ID": last_event_id.encode().decode("latin-1")}
    response = client.get("/counter/events?rest=1", headers=headers)
    assert b"retry: 1000\n" in response.data
    *before, event = events_of(response.data)
    assert (event.id, data_of(event)) == (str(count), {"count": count})
    assert event.event == ("milestone" if count == 10 else None)
    assert [(notice.event, data_of(notice)) for notice in before] == ([("resumed", {"after": count - 1})] if count > 1 else [])


def test_the_counter_hangs_up_at_each_multiple(app: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
    """With `rest` the stream ends after a multiple of it, so that the next one begins right after."""
    monkeypatch.setattr("examples.counter.time", Clock())
    body = app.test_client().get("/counter/events?rest=5", headers={"Last-Event-ID": "7"}).data
    assert [event.id for event in events_of(body) if event.event != "resumed"] == ["8", "9", "10"]


# Metrics

STAT = "cpu  100 20 30 800 40 5 6 7 0 0\ncpu0 1 1 1 1 1 1 1 1 0 0\nintr 5\n"
MEMINFO = "MemTotal:       1000 kB\nMemFree:         200 kB\nMemAvailable:    600 kB\nHugePages_Total:       0\n"
NET_DEV = """Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo:  999999     29    0    0    0     0          0         0   999999      29    0    0    0     0       0          0
  eth0:    1000      4    0    0    0     0          0         0      300       3    0    0    0     0       0          0
wlan0:2000      4    0    0    0     0          0         0      50       3    0    0    0     0       0          0
"""


def test_processor_times_are_parsed() -> None:
    """User includes nice, system the interrupts, waiting the time that another guest of the host took."""
    assert machine.Cpu.parse(STAT) == machine.Cpu(user=120, system=41, waiting=47, idle=800)


def test_processor_times_of_an_old_kernel_are_parsed() -> None:
    """Fields that a kernel doesn't have count as 0."""
    assert machine.Cpu.parse("cpu 1 2 3 4\n") == machine.Cpu(user=3, system=3, waiting=0, idle=4)


def test_processor_shares_are_those_of_the_time_between() -> None:
    """Each share is in percent of all that passed between two readings; a counter that went back counts as 0."""
    before, after = machine.Cpu(100, 50, 10, 1000), machine.Cpu(130, 60, 9, 1060)
    assert after.percent_since(before) == {"user": 30.0, "system": 10.0, "waiting": 0.0}
    assert before.percent_since(before) == {"user": 0.0, "system": 0.0, "waiting": 0.0}


def test_network_bytes_are_summed_over_real_interfaces() -> None:
    """The loopback doesn't count; a name may touch its number; an interface that went away makes no negative rate."""
    network = machine.Network.parse(NET_DEV)
    assert network == machine.Network(received=3000, sent=350)
    assert network.rate_since(machine.Network(2000, 400), 0.5) == {"received": 2000, "sent": 0}


def test_memory_and_load_are_parsed() -> None:
    """Memory is in bytes, load in processes."""
    assert machine.parse_memory(MEMINFO) == {"total": 1024_000, "used": 409_600, "cache": 409_600}
    assert machine.parse_load("0.52 1.58 0.59 2/345 6789\n") == {"one": 0.52, "five": 1.58, "fifteen": 0.59}


@pytest.mark.skipif(not machine.PROC.joinpath("stat").exists(), reason="no /proc here")
def test_this_machine_can_be_read() -> None:
    """A sample of this machine has every number that the page draws, in its bounds."""
    before = machine.Reading.take()
    sample: Any = machine.Reading.take().since(before)
    json.dumps(sample)
    assert 0 <= sum(sample["cpu"].values()) <= 100.2
    assert 0 < sample["memory"]["used"] + sample["memory"]["cache"] <= sample["memory"]["total"]
    assert min(*sample["load"].values(), *sample["network"].values()) >= 0


def test_a_system_without_proc_gets_an_http_error(client: FlaskClient, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The first reading fails before the first event, so the answer is a 501 in JSON."""
    monkeypatch.setattr(machine, "PROC", tmp_path)
    response = client.get("/metrics/events")
    assert (response.status_code, response.json) == (
        501,
        {"error": "These metrics come from /proc, which only Linux has.", "error_type": "no_proc"},
    )


# Progress


@pytest.mark.parametrize("folder", ["", "/etc", "..", "stdlib/..", "STDLIB", "stdlib\0", "%2e%2e"])
def test_only_listed_folders_are_hashed(client: FlaskClient, folder: str) -> None:
    """Anything but a listed name is a 400 in JSON that names those there are; nothing is opened."""
    response = client.get("/progress/events", query_string={"folder": folder})
    assert response.status_code == 400
    assert response.json == {
        "error": "There is no such folder here; there are: stdlib, packages, sseflask.",
        "error_type": "unknown_folder",
    }


def test_an_unknown_speed_is_refused(client: FlaskClient) -> None:
    """A speed that isn't on the list is a 400 too."""
    response = client.get("/progress/events?folder=sseflask&speed=0")
    assert (response.status_code, response.json["error_type"]) == (400, "unknown_speed")  # type: ignore[index]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with files, an empty one, one in a folder below, caches, and links that lead out of it."""
    (tmp_path / "secret").write_bytes(b"secret")
    folder = tmp_path / "folder"
    (folder / "below").mkdir(parents=True)
    (folder / "__pycache__").mkdir()
    (folder / "__pycache__/a.pyc").write_bytes(b"no")
    (folder / "a.py").write_bytes(b"a" * 300_000)
    (folder / "b.txt").write_bytes(b"")
    (folder / "below/c.bin").write_bytes(bytes(range(256)) * 1000)
    (folder / "link").symlink_to(tmp_path / "secret")
    (folder / "out").symlink_to(tmp_path)
    return folder


def run(report: progress.Report) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """All that a hashing reports, and its result."""
    reports: list[dict[str, Any]] = []
    while True:
        try:
            event = next(report)
        except StopIteration as end:
            return reports, end.value
        assert event.event == "progress"
        reports.append(data_of(event))


def test_all_files_of_a_folder_are_hashed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are read in order and once, links aren't followed, and the reports rise to 100 %."""
    monkeypatch.setattr(progress, "REPORT_SECONDS", 0)
    reports, result = run(progress.hashing(folder, 0))
    contents = [(folder / name).read_bytes() for name in ("a.py", "b.txt", "below/c.bin")]
    digest = hashlib.sha256(b"".join(hashlib.sha256(content).digest() for content in contents)).hexdigest()
    assert (result["sha256"], result["files"], result["bytes"], result["skipped"]) == (digest, 3, 556_000, 0)
    percents = [report["percent"] for report in reports]
    assert percents == sorted(percents)
    assert percents[-1] == 100
    assert [report["file"] for report in reports] == ["a.py"] * 3 + ["below/c.bin"] * 2 + [""]
    assert reports[-1]["files"] == [3, 3]
    assert reports[-1]["bytes"] == [556_000, 556_000]


def test_an_empty_folder_is_done_at_once(tmp_path: Path) -> None:
    """No files are 100 % of no files."""
    reports, result = run(progress.hashing(tmp_path, 0))
    assert [report["percent"] for report in reports] == [100]
    assert result["files"] == 0


def test_a_file_that_goes_away_is_skipped(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that was there when the folder was listed and isn't any more counts as skipped; the end is 100 % all the same."""
    monkeypatch.setattr(progress, "REPORT_SECONDS", 0)
    report = progress.hashing(folder, 0)
    next(report)
    (folder / "below/c.bin").unlink()
    reports, result = run(report)
    assert (result["files"], result["skipped"]) == (2, 1)
    assert reports[-1]["percent"] == 100


def test_hashing_keeps_to_its_speed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At 100,000 bytes a second, 556,000 bytes take five and a half seconds of sleep."""
    clock = Clock()
    monkeypatch.setattr("examples.progress.time", clock)
    _, result = run(progress.hashing(folder, 100_000))
    assert clock.now == pytest.approx(5.56)
    assert result["seconds"] == 5.56


def test_hashing_gives_way_after_each_chunk(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two chunks, and between two folders, the others of the worker get their turn."""
    clock = Clock()
    monkeypatch.setattr("examples.progress.time", clock)
    run(progress.hashing(folder, 0))
    assert clock.sleeps == [0] * (3 + 2 + 2)


def test_a_cancelled_hashing_stops_where_it_is(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What is raised when the client leaves goes through, and the log says how far the work had got."""
    monkeypatch.setattr(progress, "REPORT_SECONDS", 0)
    report = progress.hashing(folder, 0)
    next(report)
    with caplog.at_level(logging.INFO), pytest.raises(StreamClosed):
        report.throw(StreamClosed("disconnected"))
    assert caplog.messages == ["hashing folder ended after 0 of 3 files"]


def test_hashing_as_a_stream_has_a_start_and_a_complete_event(
    client: FlaskClient, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stream is `start`, reports, and `complete` with the result."""
    monkeypatch.setitem(progress.FOLDERS, "mine", progress.Folder("Mine", folder))
    response = client.get("/progress/events?folder=mine")
    assert response.mimetype == "text/event-stream"
    events = events_of(response.data)
    assert [event.event for event in events] == ["start", "progress", "complete"]
    assert data_of(events[-1])["result"]["files"] == 3


# Long job


def test_the_long_job_takes_its_steps(client: FlaskClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each step begins with a heartbeat that counts, and is done; the result says how many there were."""
    monkeypatch.setattr("examples.long_job.STEP_SECONDS", 0)
    events = events_of(client.get("/long-job/events").data)
    assert [event.event for event in events] == ["start", *["step", "done"] * 5, "complete"]
    assert all(data_of(event)["extended"] for event in events if event.event == "step")
    assert data_of(events[-1])["result"] == {"steps": 5}


def test_the_long_job_can_forget_its_heartbeat(client: FlaskClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the given step on no heartbeat is sent."""
    monkeypatch.setattr("examples.long_job.STEP_SECONDS", 0)
    events = events_of(client.get("/long-job/events?forget=3").data)
    assert [data_of(event)["extended"] for event in events if event.event == "step"] == [True, True, False, False, False]


# Notifications

NOTICE = {"text": "The supply boat comes at noon", "kind": "info", "page": "a"}


def listening(client: FlaskClient, path: str, **headers: str) -> Iterator[Any]:
    """The frames of a subscription, as they come."""
    response = client.get(path, headers=headers, buffered=False)
    assert (response.status_code, response.mimetype) == (200, "text/event-stream")
    return iter(response.response)


def events_until(frames: Iterator[bytes], name: str) -> list[ServerSentEvent]:
    """The events of a subscription up to the first with a name."""
    decoder = EventDecoder()
    events: list[ServerSentEvent] = []
    while name not in [event.event for event in events]:
        events += decoder.feed(next(frames))
    return events


def test_a_notice_reaches_who_listens(app: Flask) -> None:
    """The publisher gets the id under which each page sees the notice, trimmed, with its kind, its page and its time."""
    frames = listening(app.test_client(), "/notifications/events")
    opened, pages = events_until(frames, "pages")
    assert (opened.event, data_of(opened)) == ("stream-open", {"channels": ["notifications", "notifications/pages"]})
    assert data_of(pages) == {"pages": 1}
    response = app.test_client().post("/notifications/", json={**NOTICE, "text": " Fog\n"})
    assert response.status_code == 201
    (notice,) = events_until(frames, "notice")
    assert notice.id == response.json["id"]  # type: ignore[index]
    shown = data_of(notice)
    assert abs(shown.pop("at") - time.time()) < 60
    assert shown == {"text": "Fog", "kind": "info", "page": "a"}


def test_pages_are_told_how_many_they_are(app: Flask) -> None:
    """Each page that comes or goes is counted, and all that are there are told; other streams don't count."""
    first = listening(app.test_client(), "/notifications/events")
    assert data_of(events_until(first, "pages")[-1]) == {"pages": 1}
    second = listening(app.test_client(), "/notifications/events")
    assert data_of(events_until(first, "pages")[-1]) == {"pages": 2}
    assert data_of(events_until(second, "pages")[-1]) == {"pages": 2}
    app.test_client().get("/counter/events?rest=1")
    second.close()  # type: ignore[attr-defined]
    assert data_of(events_until(first, "pages")[-1]) == {"pages": 1}


@pytest.mark.parametrize(
    ("payload", "status", "reason"),
    [
        (None, 400, "Send"),
        ([], 400, "Send"),
        ({}, 400, "Send"),
        ({**NOTICE, "text": 5}, 400, "Send"),
        ({**NOTICE, "text": " "}, 400, "Send"),
        ({**NOTICE, "page": "x" * 41}, 400, "Send"),
        ({**NOTICE, "kind": "alarm"}, 400, "there are: info, good, warning"),
        ({**NOTICE, "text": "x" * 201}, 413, "200 characters"),
        ({**NOTICE, "more": "x" * 5000}, 413, ""),
    ],
)
def test_a_notice_that_is_none_is_refused(client: FlaskClient, payload: Any, status: int, reason: str) -> None:
    """It is a 4xx in JSON that says what would be right, and nothing is published."""
    response = client.post("/notifications/", json=payload)
    assert (response.status_code, response.is_json) == (status, True)
    assert reason in response.json["error"]  # type: ignore[index]
    assert client.application.extensions["sse"].broker_in_use is None


def test_another_sites_form_cannot_publish(client: FlaskClient) -> None:
    """A page elsewhere can post without asking only what isn't called JSON: that is a 400."""
    for content_type in ("text/plain", "application/x-www-form-urlencoded"):
        response = client.post("/notifications/", data=json.dumps(NOTICE), content_type=content_type)
        assert response.status_code == 400


# Board


def columns(event: ServerSentEvent) -> dict[str, list[str]]:
    """The cards of a snapshot, by column."""
    found: dict[str, list[str]] = {}
    for card in data_of(event)["cards"]:
        found.setdefault(card["column"], []).append(card["id"])
    return found


def test_the_board_begins_with_a_snapshot_and_follows_its_moves(app: Flask) -> None:
    """The snapshot carries the position; a move says where the card is now; who comes later gets it in the snapshot."""
    frames = listening(app.test_client(), "/board/events")
    opened, snapshot = events_until(frames, "board")
    assert opened.id is None
    assert snapshot.id
    assert columns(snapshot) == {"doing": ["lens", "radio"], "waiting": ["oil", "log", "stairs", "rail"], "done": ["clock"]}
    response = app.test_client().post("/board/cards/oil", json={"column": "done"})
    assert (response.status_code, response.json) == (200, {"moved": True})
    (moved,) = events_until(frames, "moved")
    assert data_of(moved) == {"id": "oil", "title": "Fetch oil from the cellar", "column": "done", "version": 8}
    _, later = events_until(listening(app.test_client(), "/board/events"), "board")
    assert columns(later)["done"] == ["clock", "oil"]
    assert later.id == moved.id


def test_who_comes_back_to_the_board_gets_only_what_was_missed(app: Flask) -> None:
    """With its last id a page gets the moves after it; with one of another life it gets a reset and the snapshot."""
    *_, snapshot = events_until(listening(app.test_client(), "/board/events"), "board")
    app.test_client().post("/board/cards/oil", json={"column": "done"})
    missed = events_until(listening(app.test_client(), "/board/events", **{"Last-Event-ID": str(snapshot.id)}), "moved")
    assert [event.event for event in missed] == ["stream-open", "moved"]
    anew = events_until(listening(app.test_client(), "/board/events", **{"Last-Event-ID": "0123456789ab-7"}), "board")
    assert [event.event for event in anew] == ["stream-reset", "stream-open", "board"]
    assert data_of(anew[0]) == {"reason": "epoch", "position": "0123456789ab-7"}


def test_a_card_that_is_there_already_stays(client: FlaskClient) -> None:
    """Nothing is published for it, and it keeps its place."""
    assert client.post("/board/cards/lens", json={"column": "doing"}).json == {"moved": False}
    assert client.application.extensions["sse"].broker_in_use is None
    *_, snapshot = events_until(listening(client, "/board/events"), "board")
    assert columns(snapshot)["doing"] == ["lens", "radio"]


@pytest.mark.parametrize(
    ("card", "payload", "status"),
    [
        ("anchor", {"column": "done"}, 404),
        ("lens", None, 400),
        ("lens", "done", 400),
        ("lens", {}, 400),
        ("lens", {"column": "sea"}, 400),
        ("lens", {"column": ["done"]}, 400),
        ("lens", {"column": "done", "more": "x" * 2000}, 413),
    ],
)
def test_a_move_that_is_none_is_refused(client: FlaskClient, card: str, payload: Any, status: int) -> None:
    """It is a 4xx in JSON, and no card moves."""
    response = client.post(f"/board/cards/{card}", json=payload)
    assert (response.status_code, response.is_json) == (status, True)
    assert response.json["error"]  # type: ignore[index]
    assert client.application.extensions["board"].cards() == Board().cards()


def test_each_app_has_a_board_of_its_own(app: Flask) -> None:
    """A move in one app is none in another."""
    app.test_client().post("/board/cards/lens", json={"column": "done"})
    *_, snapshot = events_until(listening(create_app().test_client(), "/board/events"), "board")
    assert columns(snapshot)["doing"] == ["lens", "radio"]


def test_moves_at_the_same_time_have_numbers_of_their_own() -> None:
    """Cards moved from many threads end with versions that are all different, one for each move."""
    board = Board()
    moved: list[int] = []

    def move(name: str) -> None:
        cards = (board.move(name, column) for column in ("waiting", "doing", "done") * 50)
        moved.extend(card.version for card in cards if card is not None)

    threads = [threading.Thread(target=move, args=(card.id,)) for card in board.cards()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(moved) == list(range(8, 8 + len(moved)))


# Images


def a_picture(side: int = 40, kind: str = "PNG", **options: Any) -> bytes:
    """A picture of a dark square on white."""
    picture = Image.new(options.pop("mode", "RGB"), (side, side // 2), "white")
    picture.paste("black", (side // 4, side // 8, side // 2, side // 4))
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


DAMAGED = a_picture(300)[:200]


def send(client: FlaskClient, **files: bytes) -> Any:
    """Uploads files; `_` in their names stands for a dot."""
    pictures = [(io.BytesIO(content), name.replace("_", ".")) for name, content in files.items()]
    return client.post("/images/jobs", data={"pictures": pictures})


def end_of(client: FlaskClient, answer: Any) -> list[ServerSentEvent]:
    """All events of a job that has been started, to its end; what waits in between is bounded by the test's time."""
    assert answer.status_code == 201, answer.json
    return events_of(client.get(answer.json["events"]).data)


def download(client: FlaskClient, path: str) -> bytes:
    """The bytes of a file that is served; it is closed."""
    with client.get(path) as response:
        assert response.status_code == 200
        return response.data


def wait_until_heard() -> None:
    """Waits until the only job of this process has heard that it is to end; in a thread it learns that at its next event."""
    wait_until(lambda: all(stream.closed for stream in process.current().detached), 10, "the job to hear of its end")


def files_of(app: Flask, shelf: str) -> list[str]:
    """The names of all files on a shelf."""
    return sorted(path.name for path in app.extensions[shelf].path.glob("*/*"))


def test_pictures_are_developed_and_a_damaged_one_says_so(app: Flask) -> None:
    """Each file's last word is done or its own error; who asks after the end gets all of it, and the originals are gone."""
    client = app.test_client()
    answer = send(client, a_png=a_picture(), b_jpg=DAMAGED, c_jpg=a_picture(900, "JPEG"), d_gif=a_picture(50, "GIF"))
    assert answer.json["refused"] == []
    for events in (end_of(client, answer), end_of(client, answer)):
        files = {data_of(event)["file_id"]: data_of(event) for event in events if event.event == "file_update"}
        assert [files[number]["filename"] for number in "1234"] == ["a.png", "b.jpg", "c.jpg", "d.gif"]
        assert [files[number]["status"] for number in "1234"] == ["done", "failed", "done", "done"]
        assert files["2"]["message"] == "This picture is damaged, and can't be read."
        *_, last = [data_of(event) for event in events if event.event == "task_progress"]
        assert (last["progress"], last["total_files"]) == (100, 4)
        assert events[-1].event == "task_completed"
        assert data_of(events[-1])["result"] == {"done": 3, "failed": 1}
    assert files_of(app, "images") == sorted(f"{number}-{part}" for number in (1, 3, 4) for part in images.PARTS.values())
    job = answer.json["job"]
    with Image.open(io.BytesIO(download(client, f"/images/jobs/{job}/3/thumbnail"))) as thumbnail:
        assert (thumbnail.format, thumbnail.size) == ("JPEG", (320, 160))
    with Image.open(io.BytesIO(download(client, f"/images/jobs/{job}/3/contour"))) as contour:
        assert (contour.format, contour.size, contour.mode) == ("PNG", (640, 320), "L")
        # White where nothing changes, dark where the square ends.
        assert contour.getpixel((300, 110)) == contour.getpixel((600, 300)) == 255
        assert min(contour.crop((150, 70, 170, 100)).tobytes()) < 100
    for path in (f"{job}/2/thumbnail", f"{job}/3/original", f"{job}/99/contour", f"{'0' * 32}/1/contour"):
        assert client.get(f"/images/jobs/{path}").status_code == 404


def test_a_picture_is_shown_the_right_way_up_and_on_white(tmp_path: Path) -> None:
    """What a camera says of its position is heeded; what is transparent is white."""
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    (tmp_path / "turned").write_bytes(a_picture(80, "JPEG", exif=exif))
    assert images.reduced(tmp_path / "turned", 40).size == (20, 40)
    Image.new("RGBA", (1, 1), (0, 0, 0, 0)).save(tmp_path / "clear", "PNG")
    assert images.reduced(tmp_path / "clear", 40).getpixel((0, 0)) == (255, 255, 255)
    images.make_part(tmp_path / "clear", "contour", tmp_path / "contour.png")


def test_a_picture_with_too_many_pixels_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its head says how large it is; no more of it is read."""
    monkeypatch.setattr(images, "MAX_PIXELS", 10_000)
    (tmp_path / "large").write_bytes(a_picture(500)[:120])
    with pytest.raises(images.PictureFailed, match="pixels"):
        images.make_part(tmp_path / "large", "contour", tmp_path / "contour")


def test_files_that_are_no_pictures_are_refused_one_by_one(app: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is named with its reason; those that are left are developed, and if none is, there is no job."""
    monkeypatch.setattr(images, "MAX_BYTES", 5000)
    client = app.test_client()
    bad = {"a_png": b"", "b_png": b"<svg/>", "c_png": a_picture() + bytes(5000)}
    reasons = ["The file is empty.", "This is no JPEG, PNG, GIF or WebP picture.", "The file has more than 0 MB."]
    refused = [{"filename": f"{name}.png", "error": why} for name, why in zip("abc", reasons, strict=True)]
    answer = send(client, **bad)
    assert (answer.status_code, answer.json["refused"]) == (400, refused)
    assert files_of(app, "images") == []
    answer = send(client, **bad, d_png=a_picture())
    assert answer.json["refused"] == refused
    assert data_of(end_of(client, answer)[-1])["result"] == {"done": 1, "failed": 0}


def test_an_upload_that_is_too_much_is_refused(app: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
    """No pictures, too many of them, too many bytes, too many jobs: a 4xx or 5xx in JSON that says what the limit is."""
    client = app.test_client()
    monkeypatch.setattr(images, "MAX_FILES", 2)
    for files in ({}, {f"{name}_png": a_picture() for name in "abc"}):
        answer = send(client, **files)
        assert (answer.status_code, "1 to 2 files" in answer.json["error"]) == (400, True)
    monkeypatch.setattr(images, "MAX_BYTES", 100)
    assert send(client, a_png=bytes(5000)).status_code == 413
    monkeypatch.setattr(app.extensions["images"], "_most", 0)
    monkeypatch.setattr(images, "MAX_BYTES", 5000)
    answer = send(client, a_png=a_picture())
    assert (answer.status_code, "too many jobs" in answer.json["error"]) == (503, True)


def test_a_cancelled_job_deletes_what_it_was_sent(app: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its pages are told; the originals are gone, what was done stays, and there is nothing more to cancel."""
    reached, gate = threading.Event(), threading.Event()
    make_part = images.make_part

    def make_slowly(source: Path, part: str, target: Path) -> None:
        make_part(source, part, target)
        if source.name == "2":
            reached.set()
            assert gate.wait(10)

    monkeypatch.setattr(images, "make_part", make_slowly)
    client = app.test_client()
    answer = send(client, a_png=a_picture(), b_png=a_picture(), c_png=a_picture())
    assert reached.wait(10)
    assert client.post(f"/images/jobs/{answer.json['job']}/cancel").json == {"cancelled": True}
    wait_until_heard()
    gate.set()
    events = end_of(client, answer)
    assert events[-1].event == "task_cancelled"
    wait_until(lambda: "1" not in files_of(app, "images"), 10, "the originals to be deleted")
    assert not {"1", "2", "3"} & set(files_of(app, "images"))
    assert "1-contour.png" in files_of(app, "images")
    assert client.post(f"/images/jobs/{answer.json['job']}/cancel").json == {"cancelled": False}


@pytest.mark.parametrize("path", ["/images/jobs", "/report/reports"])
def test_a_job_that_nobody_knows_is_not_found(client: FlaskClient, path: str) -> None:
    """Its events are a 404 in JSON, before any stream."""
    for job in ("0" * 32, "nonsense"):
        response = client.get(f"{path}/{job}/events")
        assert (response.status_code, response.is_json) == (404, True)
        assert client.post(f"{path}/{job}/cancel").json == {"cancelled": False}


@pytest.mark.parametrize(("module", "package"), [(images, "PIL"), (report, "openpyxl")])
def test_without_its_library_an_example_says_what_to_install(
    client: FlaskClient, monkeypatch: pytest.MonkeyPatch, module: Any, package: str
) -> None:
    """The page says so, and a job is refused with a 503 that says it too."""
    find_spec = module.importlib.util.find_spec
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None if name == package else find_spec(name))
    prefix = module.bp.url_prefix
    assert "pip install &#39;sseflask[examples]&#39;" in client.get(f"{prefix}/").text
    answer = send(client, a_png=a_picture()) if module is images else client.post("/report/reports", json={})
    assert (answer.status_code, "pip install 'sseflask[examples]'" in answer.json["error"]) == (503, True)


# Report


def say(client: FlaskClient, author: Any, text: Any) -> Any:
    """Says something in the room."""
    return client.post("/report/messages", json={"author": author, "text": text})


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A report is written without a pause."""
    monkeypatch.setattr(report, "pause", lambda: None)


def test_the_room_begins_with_what_was_said_and_follows(app: Flask) -> None:
    """Who enters gets all messages, in order, and then each one that is said, on one line."""
    frames = listening(app.test_client(), "/report/events")
    *_, room = events_until(frames, "room")
    messages = data_of(room)["messages"]
    assert [message["number"] for message in messages] == list(range(1, len(report.NIGHT) + 1))
    assert [message["at"] for message in messages] == sorted(message["at"] for message in messages)
    assert say(app.test_client(), " Ada ", "Hello,\n\x00 there").json == {"number": len(messages) + 1}
    (message,) = events_until(frames, "message")
    assert (data_of(message)["author"], data_of(message)["text"]) == ("Ada", "Hello, there")


@pytest.mark.parametrize(
    ("author", "text", "status"),
    [("", "a", 400), ("a", " ", 400), (5, "a", 400), ("a", None, 400), ("a" * 41, "a", 413), ("a", "a" * 501, 413)],
)
def test_a_message_that_is_none_is_refused(client: FlaskClient, author: Any, text: Any, status: int) -> None:
    """It is a 4xx in JSON, and nothing is said."""
    response = say(client, author, text)
    assert (response.status_code, response.is_json) == (status, True)
    assert len(client.application.extensions["report_room"].messages()) == len(report.NIGHT)


@pytest.mark.usefixtures("quick")
def test_a_report_is_an_excel_file_of_what_was_said(app: Flask) -> None:
    """Its status events come in order; the result and both sheets have the right numbers; what looks like a formula is text."""
    client = app.test_client()
    say(client, "Ada", "=1+1")
    say(client, "Ada", "Trawler, trawler: the trawler!")
    answer = client.post("/report/reports", json={})
    events = end_of(client, answer)
    *_, last = events
    result = data_of(last)["result"]
    assert (last.event, result["messages"]) == ("task_completed", len(report.NIGHT) + 2)
    assert result["authors"][:2] == [{"author": "Ines", "messages": 3, "words": 29}, {"author": "Ruth", "messages": 3, "words": 25}]
    assert {"author": "Ada", "messages": 2, "words": 5} in result["authors"]
    assert (result["busiest_hour"], result["in_busiest_hour"] >= 4) == (2, True)
    assert result["words"][0] == {"word": "trawler", "count": 5}
    file = download(client, f"/report/reports/{answer.json['job']}/report.xlsx")
    assert len(file) == result["bytes"]
    book = openpyxl.load_workbook(io.BytesIO(file))
    assert book.sheetnames == ["Summary", "Messages"]
    summary = [[cell.value for cell in row if cell.value is not None] for row in book["Summary"].rows]
    assert ["Messages", len(report.NIGHT) + 2] in summary
    assert ["Ada", 2, 5] in summary
    assert ["trawler", 5] in summary
    rows = list(book["Messages"].rows)
    assert [cell.value for cell in rows[0]] == ["Time (UTC)", "Author", "Message"]
    assert len(rows) == len(report.NIGHT) + 3
    assert (rows[-2][2].value, rows[-2][2].data_type) == ("=1+1", "s")
    assert (rows[1][0].value.hour, rows[1][0].value.minute) == (21, 5)


def test_a_report_tells_where_it_stands(app: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who comes in the middle gets the progress first, and then the status events that follow, up to the end's own."""
    reached, gate = threading.Event(), threading.Event()

    def wait_here() -> None:
        reached.set()
        assert gate.wait(10)

    monkeypatch.setattr(report, "pause", wait_here)
    client = app.test_client()
    answer = client.post("/report/reports", json={})
    assert reached.wait(10)
    frames = listening(client, answer.json["events"])
    _, standing, *_ = events_until(frames, "task_progress")
    assert (data_of(standing)["progress"], data_of(standing)["message"]) == (0, f"Counting {len(report.NIGHT)} messages")
    gate.set()
    events = events_until(frames, "task_completed")
    statuses = [event for event in events if event.event == "EXCEL_STATUS"]
    assert [data_of(event)["step"] for event in statuses][-3:] == [1, 2, 3]
    ended = next(event for event in events if event.event == "EXCEL_STATUS_END")
    assert data_of(ended)["sheets"] == ["Summary", "Messages"]
    assert events.index(ended) == len(events) - 2


def test_a_cancelled_report_leaves_no_file(app: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its pages are told, and its folder is removed."""
    gate = threading.Event()
    monkeypatch.setattr(report, "pause", lambda: gate.wait(10))
    client = app.test_client()
    answer = client.post("/report/reports", json={})
    assert client.post(f"/report/reports/{answer.json['job']}/cancel", json={}).json == {"cancelled": True}
    wait_until_heard()
    gate.set()
    assert end_of(client, answer)[-1].event == "task_cancelled"
    wait_until(lambda: not list(app.extensions["reports"].path.iterdir()), 10, "the folder to be removed")


def test_a_report_of_nothing_is_one_too() -> None:
    """Nobody has said anything at no hour."""
    summary = report.summary_of([])
    assert summary == {"messages": 0, "authors": [], "busiest_hour": None, "in_busiest_hour": 0, "words": []}
    report.write_summary(openpyxl.Workbook().active, summary)


def test_another_sites_form_cannot_ask_for_a_report(client: FlaskClient) -> None:
    """What isn't called JSON is refused."""
    assert client.post("/report/reports", data="{}", content_type="text/plain").status_code == 415


# The shelf


def test_what_lies_on_a_shelf_goes_after_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are found by their job; a folder in which nothing has changed for long is removed, and the others stay."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    shelf = Shelf("test", keep_seconds=100)
    old, new = "a" * 32, "b" * 32
    for job in (old, new):
        folder = shelf.name(shelf.add(), job)
        (folder / "file").write_text(job)
    os.utime(shelf.path / old, (time.time() - 101,) * 2)
    assert shelf.find(old, "file") is not None
    shelf.add()
    assert shelf.find(old, "file") is None
    assert shelf.find(new, "file") == shelf.path / new / "file"
    assert shelf.find(f"../test/{new}", "file") is None
    assert shelf.path.stat().st_mode & 0o077 == 0


def test_what_lies_on_a_shelf_goes_without_another_job_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When nothing is added any more, what is there is removed in its time all the same."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    shelf = Shelf("test", keep_seconds=0.05)
    folder = shelf.name(shelf.add(), "a" * 32)
    (folder / "file").touch()
    wait_until(lambda: not folder.exists(), 20, "the folder to be removed")


def test_the_last_who_leaves_a_shelf_takes_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While another process has it, its files stay; after the last one they are gone, and it can be used anew."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    first, second = Shelf("test"), Shelf("test")
    first.name(first.add(), "a" * 32)
    path = first.path
    del first
    assert (path / ("a" * 32)).is_dir()
    del second
    assert not path.exists()
    third = Shelf("test")
    assert third.add().is_dir()


# The small model


@pytest.fixture(scope="module")
def markov() -> MarkovModel:
    """The model of the chat."""
    return MarkovModel.from_file(LIGHTHOUSE)


def test_the_text_ships_with_the_example() -> None:
    """There is enough of it to learn from, in paragraphs of whole sentences."""
    text = LIGHTHOUSE.read_text(encoding="utf-8")
    assert len(text) > 12_000
    assert all(paragraph.strip()[-1] in ".!?" for paragraph in text.strip().split("\n\n"))


def test_the_same_seed_says_the_same(markov: MarkovModel) -> None:
    """An answer is repeated with its seed, also by another model trained on the same text, and differs with another seed."""
    answers = ["".join(markov.generate("the tide", seed=seed)) for seed in range(10)]
    assert answers == ["".join(MarkovModel.from_file(LIGHTHOUSE).generate("the tide", seed=seed)) for seed in range(10)]
    assert len(set(answers)) >= 8


@pytest.mark.parametrize("prompt", ["What does the radio hear at night?", "", "???", "xyzzy 🌊", "the " * 500])
def test_an_answer_is_made_of_the_texts_words(markov: MarkovModel, prompt: str) -> None:
    """Whatever is asked, the model speaks in words of its text, in whole sentences up to its limits, spaced as one writes."""
    known = set(TOKEN.findall(LIGHTHOUSE.read_text()))
    for seed in range(20):
        words = list(markov.generate(prompt, seed=seed, sentences=3, max_tokens=500))
        assert {word.strip() for word in words} <= known
        text = "".join(words)
        assert len(re.findall(r"[.!?]", text)) == 3
        assert text[-1] in ".!?"
        assert not re.search(r"\s[.,!?]|^\s|\s\s", text)
        assert len(list(markov.generate(prompt, seed=seed, max_tokens=7))) == 7


def test_an_answer_begins_where_the_text_speaks_of_what_was_asked(markov: MarkovModel) -> None:
    """The first words are those of a sentence with the rarest word of the prompt in it."""
    sentences = re.split(r"(?<=[.!?])\s+", LIGHTHOUSE.read_text())
    openings = {" ".join(sentence.split()[:2]) for sentence in sentences if "barometer" in sentence}
    for seed in range(10):
        assert " ".join("".join(markov.generate("and the Barometer?", seed=seed)).split()[:2]) in openings


def test_a_model_backs_off_to_what_it_knows() -> None:
    """With fewer words in common with its text than its order, it goes on from those that it has."""
    model = MarkovModel("a b c. a b d.", order=3)
    said = {"".join(model.generate("", seed=seed, sentences=1)) for seed in range(40)}
    assert said == {"a b c.", "a b d."}


# Chat


def ask(client: FlaskClient, messages: Any = QUESTION) -> Any:
    """Asks the chat."""
    return client.post("/chat/events", json={"messages": messages})


class ScriptedModel:
    """A model that says what it is told to, and counts how often it is asked.

    Attributes:
        asked: How often.
        gate: Set, it says what comes after its first word.
    """

    name = "scripted"

    def __init__(self, *words: str) -> None:
        self.asked = 0
        self.gate = threading.Event()
        self.gate.set()
        self._words = words

    def answer(self, messages: Any) -> Iterator[str]:
        """Says it."""
        self.asked += 1
        for word in self._words:
            yield word
            assert self.gate.wait(10)


class EndlessModel:
    """A model that never comes to an end."""

    name = "endless"

    def answer(self, messages: Any) -> Iterator[str]:
        """Says the same word again and again."""
        while True:
            yield " word"
            time.sleep(0.01)


def test_a_chat_answer_is_a_stream_of_tokens(app: Flask) -> None:
    """`start` comes first, the texts of `content` together are the answer, `complete` counts its tokens."""
    words = ("One", " ü\u2028two", "\nthree", " {", "4", "}")
    app.extensions["chat_model"] = ScriptedModel(*words)
    response = ask(app.test_client())
    assert response.mimetype == "text/event-stream"
    opened, start, *contents, complete = events_of(response.data)
    assert (opened.event, start.event, {event.event for event in contents}) == ("stream-open", "start", {"content"})
    assert "".join(event.data or "" for event in contents) == "".join(words)
    result = data_of(complete)["result"]
    assert (complete.event, result["tokens"], result["model"]) == ("complete", len(words), "scripted")


def test_who_comes_back_to_an_answer_hears_the_rest_of_it(app: Flask) -> None:
    """From its beginning or from any of its events the answer is the same, at its end too, and the model is asked once."""
    model = app.extensions["chat_model"] = ScriptedModel("One", " two", " three")
    model.gate.clear()
    first = app.test_client().post("/chat/events", json={"messages": QUESTION}, buffered=False)
    heard = events_until(iter(first.response), "content")
    again = app.test_client().post("/chat/events", headers={"Last-Event-ID": str(heard[0].id)}, json={}, buffered=False)
    anew = events_until(iter(again.response), "content")
    assert [event.id for event in heard] == [event.id for event in anew]
    model.gate.set()
    for last in (heard[0], heard[-1]):
        whole = app.test_client().post("/chat/events", headers={"Last-Event-ID": str(last.id)}, json={}).data
        said = "".join(event.data or "" for event in events_of(whole) if event.event == "content")
        assert said == ("One two three" if last is heard[0] else " two three")
        assert events_of(whole)[-1].event == "complete"
    # One that is gone, as after a restart of the server, isn't answered anew either.
    gone = events_of(app.test_client().post("/chat/events", headers={"Last-Event-ID": f"{'0' * 32}-0"}, json={}).data)
    assert [event.event for event in gone] == ["stream-reset", "stream-end"]
    assert data_of(gone[-1]) == {"reason": "run_gone"}
    assert model.asked == 1


def test_an_answer_is_stopped_by_the_id_of_one_of_its_events(app: Flask) -> None:
    """The stream ends with the word that it was cancelled; an id that nobody knows stops nothing, and something else is refused."""
    app.extensions["chat_model"] = EndlessModel()
    client = app.test_client()
    frames = iter(client.post("/chat/events", json={"messages": QUESTION}, buffered=False).response)
    heard = events_until(frames, "content")
    assert client.post("/chat/stop", json={"run": f"{'0' * 32}-1"}).json == {"stopped": False}
    assert client.post("/chat/stop", json={"run": heard[-1].id}).json == {"stopped": True}
    *_, end = events_until(frames, "stream-end")
    assert data_of(end) == {"reason": "cancelled"}
    for payload in (None, {}, {"run": 5}, "run"):
        assert client.post("/chat/stop", json=payload).status_code == 400


def test_a_failure_in_mid_answer_is_an_error_event(client: FlaskClient) -> None:
    """After the first token nothing but an event can tell of it."""
    *_, last, error = events_of(ask(client, [{"role": "user", "content": "a Shipwreck?"}]).data)
    assert last.event == "content"
    told = data_of(error)
    assert (error.event, told["error_type"], told["details"]) == ("error", "model_aground", {"tokens": 12})


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"{}",
        b'{"messages": []}',
        b'{"messages": "hello"}',
        b'{"messages": [{"role": "user", "content": " "}]}',
        b'{"messages": [{"role": "user", "content": 5}]}',
        b'{"messages": [{"role": "assistant", "content": "hello"}]}',
        b'{"messages": [{"role": "system", "content": "obey"}, {"role": "user", "content": "hello"}]}',
        b'{"messages": ["hello", {"role": "user", "content": "hello"}]}',
    ],
)
def test_a_question_that_is_none_is_refused(client: FlaskClient, body: bytes) -> None:
    """It is a 400 in JSON that says what would be right."""
    response = client.post("/chat/events", data=body, content_type="application/json")
    assert response.status_code == 400
    assert response.json
    assert response.json["error_type"] == "bad_request"
    assert "role" in response.json["error"]


@pytest.mark.parametrize("messages", [QUESTION * 41, [{"role": "user", "content": "x" * 8001}]])
def test_a_conversation_that_is_too_long_is_refused(client: FlaskClient, messages: Any) -> None:
    """It is a 413 that says what the limit is."""
    response = ask(client, messages)
    assert response.status_code == 413
    assert "40 messages and 8000 characters" in response.json["error"]


def test_a_conversation_of_too_many_bytes_is_not_read(client: FlaskClient) -> None:
    """It is a 413, before anything of it is parsed; the longest one that is allowed fits."""
    assert client.post("/chat/events", data=b"[" + b"[]," * 30_000, content_type="application/json").status_code == 413
    messages = [{"role": "user", "content": "\u00e9" * 200}] * 40
    assert len(json.dumps({"messages": messages})) < chat.MAX_CONVERSATION_BYTES
    assert chat.messages_of({"messages": messages}) == messages


@pytest.mark.parametrize(
    "path", ["/chat/events", "/chat/stop", "/board/cards/lens", "/notifications/", "/celery/jobs", "/report/messages"]
)
def test_json_that_is_nested_too_deeply_is_refused(client: FlaskClient, path: str) -> None:
    """It is a 400, as what is no JSON."""
    assert client.post(path, data=b"[" * 1020, content_type="application/json").status_code == 400


def test_the_conversation_is_passed_on_without_what_does_not_belong_to_it() -> None:
    """Only roles and contents are taken over from the client."""
    given = {"messages": [{"role": "assistant", "content": "a", "x": 1}, {"role": "user", "content": "b", "name": "n"}], "n": 99}
    assert chat.messages_of(given) == [{"role": "assistant", "content": "a"}, {"role": "user", "content": "b"}]


# Any OpenAI-compatible endpoint


@pytest.fixture
def answers() -> Any:
    """All that an endpoint's model says when its provider behaves in some way."""

    def answers(behaviour: Behaviour) -> list[str]:
        with running_provider(behaviour) as provider:
            return list(Endpoint(provider.base_url, model="large", timeout=5).answer(QUESTION))

    return answers


def speaking(*pieces: bytes) -> Behaviour:
    """A provider that writes these bytes, one write each, and closes the connection."""

    def speak(call: Call) -> None:
        call.begin()
        for data in pieces:
            call.write(data)

    return speak


ROLE = b'data: {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]}\n\n'
USAGE = b'data: {"choices": [], "usage": {"total_tokens": 3}}\n\n'
FINISHED = b'data: {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}\n\n'
STREAM = b": hello\n\n" + ROLE + piece("One") + piece(" ü\u2028two") + FINISHED + USAGE + DONE


@pytest.mark.parametrize(
    "pieces",
    [
        [STREAM],
        [STREAM.replace(b"\n", b"\r\n")],
        [STREAM[:77], STREAM[77:200], STREAM[200:]],
        [bytes([byte]) for byte in STREAM],
        [STREAM, b"data: what comes after the end\n\n"],
        [ROLE, piece("One"), piece(" ü\u2028two"), FINISHED],
    ],
    ids=["whole", "crlf", "pieces", "bytes", "more after the end", "no [DONE]"],
)
def test_an_endpoints_answer_is_read_however_it_arrives(answers: Any, pieces: list[bytes]) -> None:
    """The pieces of the answer are the same, in whatever slices the bytes come."""
    assert answers(speaking(*pieces)) == ["One", " ü\u2028two"]


@pytest.mark.parametrize("whole", [True, False])
def test_a_chunked_answer_is_read_to_its_last_chunk(answers: Any, whole: bool) -> None:
    """Chunks may end in the midst of an event; without the last one the answer has broken off."""

    def speak_in_chunks(call: Call) -> None:
        call.begin(Transfer_Encoding="chunked")
        stream = ROLE + piece("One") + piece(" two")
        for start in range(0, len(stream), 50):
            data = stream[start : start + 50]
            call.write(b"%x\r\n%s\r\n" % (len(data), data))
        if whole:
            call.write(b"%x\r\n%s\r\n0\r\n\r\n" % (len(FINISHED), FINISHED))

    if whole:
        assert answers(speak_in_chunks) == ["One", " two"]
    else:
        with pytest.raises(EndpointFailed, match="broke off"):
            answers(speak_in_chunks)


def test_the_request_to_an_endpoint_is_what_providers_expect() -> None:
    """It asks for a stream of this model, with the key as a bearer token, at `/chat/completions` below the base URL."""
    with running_provider(speaking(STREAM)) as provider:
        environment = {"CHAT_BASE_URL": f"{provider.base_url}/", "CHAT_MODEL": "large", "CHAT_API_KEY": "secret"}
        model = model_from(environment)
        assert model.name == "large"
        list(model.answer(QUESTION))
        (call,) = provider.calls
    assert call.path == "/v1/chat/completions"
    assert call.headers["Authorization"] == "Bearer secret"
    assert call.payload == {"model": "large", "messages": QUESTION, "stream": True}


@pytest.mark.parametrize(
    "pieces",
    [
        [piece("One")],
        [piece("One"), b"data: {"],
        [piece("One"), b"data: {]\n\n"],
        [piece("One"), b"data: [1]\n\n"],
        [piece("One"), b'data: {"choices": [null]}\n\n'],
        [piece("One"), b'data: {"error": {"message": "our account is 1234"}}\n\n'],
    ],
    ids=["closed", "closed in mid-event", "no JSON", "no object", "no choice", "error"],
)
def test_an_answer_that_breaks_off_is_an_error(answers: Any, pieces: list[bytes]) -> None:
    """What was said was said; then an error tells it, without what the provider says about itself."""
    said: list[str] = []
    with running_provider(speaking(*pieces)) as provider, pytest.raises(EndpointFailed) as failed:
        said.extend(Endpoint(provider.base_url, model="large", timeout=5).answer(QUESTION))
    assert said == ["One"]
    assert failed.value.error_type == "provider_broke_off"
    assert "1234" not in failed.value.message


def test_a_provider_that_falls_silent_is_an_error() -> None:
    """Each piece has a time by which it must come."""
    over = threading.Event()

    def fall_silent(call: Call) -> None:
        call.begin()
        call.say("One")
        over.wait(10)

    with running_provider(fall_silent) as provider:
        answer = Endpoint(provider.base_url, model="large", timeout=0.2).answer(QUESTION)
        assert next(answer) == "One"
        with pytest.raises(EndpointFailed, match="broke off"):
            next(answer)
        over.set()


def test_leaving_an_answer_closes_the_connection_to_the_provider() -> None:
    """The provider sees that nobody listens any more."""
    left = threading.Event()

    def speak_on(call: Call) -> None:
        call.begin()
        call.say("One")
        call.wait_until_left()
        left.set()

    with running_provider(speak_on) as provider:
        answer = Endpoint(provider.base_url, model="large", timeout=5).answer(QUESTION)
        assert next(answer) == "One"
        answer.close()  # type: ignore[attr-defined]
        assert left.wait(5)


def unused_port() -> int:
    """A port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


@pytest.mark.parametrize(
    ("status", "error_type"),
    [
        (401, "provider_login"),
        (403, "provider_login"),
        (404, "model_unavailable"),
        (429, "provider_busy"),
        (500, "provider_error"),
        (302, "provider_error"),
    ],
)
def test_a_refusal_by_the_provider_is_an_http_error(monkeypatch: pytest.MonkeyPatch, status: int, error_type: str) -> None:
    """Before the first token the client gets a 502 in JSON, not a stream; a redirect isn't followed, with our key or without."""

    def refuse(call: Call) -> None:
        call.begin(status, Location="/elsewhere", Content_Type="application/json")
        call.write(b'{"error": {"message": "wrong key sk-1234"}}')

    with running_provider(refuse) as provider:
        monkeypatch.setenv("CHAT_BASE_URL", provider.base_url)
        response = ask(create_app().test_client())
        assert len(provider.calls) == 1
    assert (response.status_code, response.mimetype) == (502, "application/json")
    assert response.json["error_type"] == error_type
    assert response.json["details"] == {"provider_status": status}
    assert "1234" not in response.text


def test_a_provider_that_cannot_be_reached_is_an_http_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody listens there: a 502 that says so."""
    monkeypatch.setenv("CHAT_BASE_URL", f"http://127.0.0.1:{unused_port()}/v1")
    response = ask(create_app().test_client())
    assert (response.status_code, response.json["error_type"]) == (502, "provider_unreachable")


def test_an_answer_that_is_no_stream_is_an_error(answers: Any) -> None:
    """A page of HTML with the status 200 isn't an answer."""

    def show_a_page(call: Call) -> None:
        call.begin(Content_Type="text/html")
        call.write(b"<p>Please log in")

    with pytest.raises(EndpointFailed, match="broke off"):
        answers(show_a_page)


@pytest.mark.parametrize("url", ["file:///etc/passwd", "localhost:11434/v1", "ftp://example.org"])
def test_a_base_url_that_is_none_is_refused_at_start_up(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """The app doesn't start, and says what is wrong."""
    monkeypatch.setenv("CHAT_BASE_URL", url)
    with pytest.raises(ValueError, match="CHAT_BASE_URL must begin with http"):
        create_app()


# Celery

JOB = "0123456789abcdef" * 2


def test_without_redis_the_page_says_what_to_start(client: FlaskClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has the commands, its button stays disabled, and what it would ask for is refused with the reason."""
    page = client.get("/celery/").text
    assert 'data-testid="missing"' in page and 'data-ready="no"' in page
    assert "celery -A examples.worker worker" in page
    for response in (client.post("/celery/jobs", json={"limit": "1000000"}), client.get(f"/celery/jobs/{JOB}/events")):
        assert (response.status_code, response.is_json) == (503, True)
        assert "without Redis" in response.json["error"]  # type: ignore[index]
    monkeypatch.setattr("examples.celery.importlib.util.find_spec", lambda name: None if name == "celery" else object())
    assert "isn&#39;t installed" in client.get("/celery/").text


def test_with_redis_that_cannot_be_reached_a_job_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The page is there; starting and following a job answer 503."""
    monkeypatch.setenv("SSE_BROKER_URL", f"redis://127.0.0.1:{unused_port()}/0")
    # Whoever imports it first says where Celery's Redis is.
    monkeypatch.delitem(sys.modules, "examples.worker", raising=False)
    client = create_app().test_client()
    assert 'data-ready="yes"' in client.get("/celery/").text
    for response in (client.post("/celery/jobs", json={"limit": "1000000"}), client.get(f"/celery/jobs/{JOB}/events")):
        assert (response.status_code, response.is_json) == (503, True), response.text


@pytest.mark.parametrize(
    ("payload", "status"),
    [
        (None, 400),
        ([], 400),
        ({}, 400),
        ({"limit": 1000000}, 400),
        ({"limit": "7"}, 400),
        ({"limit": "1", "more": "x" * 2000}, 413),
    ],
)
def test_a_job_that_is_none_is_refused(client: FlaskClient, payload: Any, status: int) -> None:
    """It is a 4xx in JSON, whatever runs or doesn't."""
    response = client.post("/celery/jobs", json=payload)
    assert (response.status_code, response.is_json) == (status, True)


@pytest.mark.parametrize("job", ["7", JOB.upper(), JOB + "0", "*"])
def test_a_job_with_no_such_id_is_not_found(client: FlaskClient, job: str) -> None:
    """Nothing is subscribed to."""
    assert client.get(f"/celery/jobs/{job}/events").status_code == 404


@pytest.mark.parametrize("limit", [2, 3, 10, 100, 1000, 7919, 7920, 104_730])
def test_the_worker_counts_right(limit: int) -> None:
    """Slice by slice it finds the primes that a plain sieve finds."""
    from examples.worker import SLICES, primes_below, sieved

    small = primes_below(isqrt(limit) + 1)
    edges = [limit * number // SLICES for number in range(SLICES + 1)]
    found: list[int] = []
    for start, stop in pairwise(edges):
        first = max(start, 2)
        found += [first + offset for offset, is_prime in enumerate(sieved(first, stop, small)) if is_prime]
    assert found == primes_below(limit)


def test_several_apps_live_side_by_side(app: Flask) -> None:
    """The examples' one `SSE` object serves each app that `create_app` makes."""
    other = create_app()
    for each in (app, other):
        assert each.test_client().get("/counter/events?rest=1").status_code == 200
