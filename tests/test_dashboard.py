"""The dashboard's routes: who may see it, what the page may load, and what its stream and its list of channels tell."""

from __future__ import annotations

import itertools
import json
import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from flask import Flask
from werkzeug.test import TestResponse

from sseflask import SSE, CloseReason, EventDecoder, ServerSentEvent, dashboard, process
from sseflask.brokers import Broker, make_broker
from sseflask.config import Settings
from sseflask.dashboard import Shared
from sseflask.ledger import Ledger
from tests.live.process import wait_until
from tests.test_subscription import World

STATIC: Final = Path(dashboard.__file__).with_name("static")
CLOSED: Final = ["/events/-/dashboard", "/events/-/dashboard/events", "/events/-/channels"]
OPEN: Final = ["/events/-/dashboard.js", "/events/-/dashboard.css", "/events/-/client.js"]


class Subscriber:
    """A stream that reads nothing."""

    delivered = 0
    log_extra: Final[dict[str, str]] = {}

    def pump(self, now: float) -> bool:
        """Takes nothing."""
        return False

    def is_behind(self, seq: int, since: float) -> bool:
        """Nobody waits for it."""
        return False


def make_app(rule: Callable[[str, str], object] | None = lambda action, channel: action == "inspect", **settings: Any) -> Flask:
    """An app whose numbers anyone may see, unless there is another rule."""
    app = Flask("app")
    app.config.update(settings)
    sse = SSE()
    if rule is not None:
        sse.authorize(rule)
    app.register_blueprint(sse, url_prefix="/events")
    return app


def broker_of(app: Flask) -> Broker:
    """The app's broker."""
    found: Broker = app.extensions["sse"].broker
    return found


def listed(app: Flask, query: str = "") -> Any:
    """A page of the channels."""
    response = app.test_client().get(f"/events/-/channels{query}")
    assert response.status_code == 200, response.text
    return response.get_json()


def names(answer: Any) -> list[str]:
    """The names in it."""
    return [channel["name"] for channel in answer["channels"]]


def first_events(response: TestResponse, count: int) -> list[Any]:
    """The first events of a stream, as names and data."""
    decoder = EventDecoder()
    found: Iterator[Any] = itertools.chain.from_iterable(decoder.feed(data) for data in response.response)  # type: ignore[arg-type]
    events = [(event.event, json.loads(event.data)) for event in itertools.islice(found, count)]
    response.close()
    return events


class TestWhoMay:
    """The dashboard is for those whom the app lets inspect it."""

    @pytest.mark.parametrize("path", CLOSED)
    def test_closed(self, path: str) -> None:
        """Without a rule nobody may, whatever channels are public; the app's rule is asked for `inspect` of `*`."""
        app = make_app(None, SSE_PUBLIC_CHANNELS=["*"])
        response = app.test_client().get(path)
        assert (response.status_code, response.get_json()) == (403, {"error": "this is not open to you"})
        asked: list[tuple[str, str]] = []
        assert make_app(lambda *question: asked.append(question)).test_client().get(path).status_code == 403  # type: ignore[func-returns-value]
        assert asked == [("inspect", "*")]

    @pytest.mark.parametrize("path", OPEN)
    def test_files(self, path: str) -> None:
        """What the page is made of has no secrets: anyone gets it, with its type, and nothing the second time."""
        client = make_app(None).test_client()
        response = client.get(path)
        kind = "text/css" if path.endswith("css") else "text/javascript"
        assert (response.status_code, response.content_type) == (200, f"{kind}; charset=utf-8")
        assert response.headers["X-Content-Type-Options"] == "nosniff"
        assert client.get(path, headers={"If-None-Match": response.headers["ETag"]}).status_code == 304

    def test_stream_ends_with_the_token(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A stream ends when the token expires that opened it, and after some minutes at the most."""
        ages: list[float] = []
        monkeypatch.setattr(dashboard, "EventSourceResponse", lambda events, **options: ages.append(options["max_age"]) or "")  # type: ignore[func-returns-value]
        app = make_app(None, SECRET_KEY="secret")
        with app.app_context():
            token = app.extensions["sse"].sse.sign("*", action="inspect", expires_in=20)
        for asked, path in (
            (app, f"/events/-/dashboard/events?token={token}"),
            (make_app(), CLOSED[1]),
            (make_app(SSE_MAX_AGE=7), CLOSED[1]),
        ):
            assert asked.test_client().get(path).status_code == 200
        assert 10 < ages[0] <= 20 and ages[1:] == [dashboard.CHECKED_SECONDS, 7]


class TestPage:
    """The page itself."""

    def test_policy(self) -> None:
        """The page may load its own files and no other, run nothing that stands in it, and be in no frame."""
        response = make_app().test_client().get("/events/-/dashboard")
        assert response.content_type == "text/html; charset=utf-8"
        policy = dict(part.split(" ", 1) for part in response.headers["Content-Security-Policy"].split("; "))
        assert policy == {
            "default-src": "'none'",
            "script-src": "'self'",
            "style-src": "'self'",
            "connect-src": "'self'",
            "img-src": "'self' data:",
            "base-uri": "'none'",
            "form-action": "'none'",
            "frame-ancestors": "'none'",
        }
        assert response.headers["Referrer-Policy"] == "no-referrer"

    def test_nothing_from_elsewhere(self) -> None:
        """No file of the page names another host, and the page has no style or script of its own in it."""
        for name in ("dashboard.html", "dashboard.js", "dashboard.css"):
            text = (STATIC / name).read_text().replace("http://www.w3.org/2000/svg", "")
            assert not re.search(r"https?:|@import|url\(|//\w+\.", text), name
        page = (STATIC / "dashboard.html").read_text()
        assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]*src=)", page)
        assert "innerHTML" not in (STATIC / "dashboard.js").read_text()

    def test_structure(self) -> None:
        """Each table has a caption and heads with a scope, each field a label, each id its own; the headings have no gap."""
        page = (STATIC / "dashboard.html").read_text()
        assert page.count("<table>") == page.count("<caption") == 4
        assert page.count("<th ") + page.count("<th>") == page.count('<th scope="col"')
        assert len(re.findall(r"<(?:input|textarea)\s", page)) == page.count("<label")
        ids = re.findall(r'\sid="([^"]+)"', page)
        assert len(ids) == len(set(ids))
        assert set(re.findall(r'aria-labelledby="([^"]+)"', page)) <= set(ids)
        assert re.findall(r"<h(\d)", page) == ["1", *"22222"]
        script = (STATIC / "dashboard.js").read_text()
        assert set(re.findall(r'byId\("([^"]+)"\)', script)) <= set(ids)


class TestChannels:
    """The list of channels."""

    def test_ten_thousand(self) -> None:
        """Among ten thousand channels a search finds what it names; pages are bounded, the most streams come first."""
        app = make_app(SSE_BROKER_URL="memory://")
        broker = broker_of(app)
        one, other = Subscriber(), Subscriber()
        broker.subscribe(tuple(f"job:{n}" for n in range(10_000)), one)  # type: ignore[arg-type]
        broker.subscribe(("job:7000", "-/hidden"), other)  # type: ignore[arg-type]
        answer = listed(app)
        assert (answer["total"], answer["found"], answer["page"], answer["pages"]) == (10_000, 10_000, 1, 400)
        assert len(answer["channels"]) == 25 and answer["channels"][0] == {
            "name": "job:7000",
            "streams": 2,
            "rate": 0,
            "recent": [0] * 12,
        }
        answer = listed(app, "?search=JOB:999&page=2&per_page=5")
        assert (answer["found"], answer["page"], answer["pages"], len(answer["channels"])) == (11, 2, 3, 5)
        assert names(listed(app, "?search=job:4321")) == ["job:4321"]
        assert listed(app, "?search=hidden")["found"] == 0
        # What is gone meanwhile leaves the last page there is.
        assert listed(app, "?search=job:999&page=90&per_page=5")["page"] == 3

    def test_all_processes(self, tmp_path: Path) -> None:
        """The streams of other processes count, those of this one at once, and channels of ours are never shown."""
        url = f"sqlite:///{tmp_path}/events.db"
        here = process.current()
        elsewhere: Any = make_broker(Settings(), url, here.waker, here.timer.call_every_second)
        elsewhere.store.report("another", {"news": 40, "far": 2, "-/control": 3}, 60)
        app = make_app(SSE_BROKER_URL=url)
        broker = broker_of(app)
        try:
            broker.subscribe(("near", "-/own"), Subscriber())  # type: ignore[arg-type]
            found = listed(app)["channels"]
            assert [(channel["name"], channel["streams"]) for channel in found] == [("news", 40), ("far", 2), ("near", 1)]
            # Of what it doesn't read, this process knows no rate; it reads it while somebody goes on asking.
            assert [channel["rate"] for channel in found] == [None, None, 0]
            left: dict[str, float] = broker._left  # type: ignore[attr-defined]
            before = left["news"]
            elsewhere.publish("news", ServerSentEvent("a"))
            wait_until(lambda: listed(app)["channels"][0]["rate"] > 0, 20, "the other process's event")
            assert left["news"] > before and "near" not in left and listed(app)["channels"][1]["rate"] == 0
        finally:
            broker.close()
            elsewhere.close()

    def test_rate(self) -> None:
        """A channel's events of the last minute count; where its history is shorter than that, as far as it goes."""
        app = make_app(SSE_BROKER_URL="memory://", SSE_HISTORY=8)
        broker = broker_of(app)
        broker.subscribe(("slow", "fast"), Subscriber())  # type: ignore[arg-type]
        with app.app_context():
            for n in range(20):
                app.extensions["sse"].sse.publish(n, channel="fast")
                if n < 6:
                    app.extensions["sse"].sse.publish(n, channel="slow")
        found = {channel["name"]: channel for channel in listed(app)["channels"]}
        assert (found["slow"]["rate"], sum(found["slow"]["recent"])) == (0.1, 6)
        assert found["fast"]["rate"] > 0.5 and sum(found["fast"]["recent"]) == 8

    @pytest.mark.parametrize("query", ["page=0", "page=x", "page=-1", "page=²", "per_page=101", "per_page=", f"search={'x' * 201}"])
    def test_wrong_query(self, query: str) -> None:
        """What can't be meant is refused, with the reason."""
        response = make_app().test_client().get(f"/events/-/channels?{query}")
        assert response.status_code == 400 and query.partition("=")[0] in response.get_json()["error"]


class TestStream:
    """What the page's stream tells."""

    def test_numbers_and_closes(self) -> None:
        """The numbers of all workers come first, then the last closes: when, where, why, how long, how many events."""
        # Of tests that have moved the clock on, others' are later.
        process.current().closes.clear()
        world = World()
        client = world.connect("news")
        world.publish("a", "b")
        dashboard._snapshots.clear()
        (name, numbers), _ = first_events(make_app().test_client().get(CLOSED[1]), 2)
        assert name == "numbers" and numbers["all"]["streams"] >= 1
        assert list(numbers["workers"].values()) == [numbers["all"]]
        client.hang_up()
        dashboard._snapshots.clear()
        _, (name, closes) = first_events(make_app().test_client().get(CLOSED[1]), 2)
        close = next(close for close in reversed(closes) if close["path"] == "/")
        assert (name, close["reason"], close["events"], close["worker"]) == ("closes", CloseReason.DISCONNECTED, 2, os.getpid())
        assert close["seconds"] >= 0 and abs(close["at"] - time.time()) < 60

    def test_bounded_closes(self) -> None:
        """Fifty closes are remembered, with so much of their paths."""
        world = World()
        for _ in range(60):
            world.connect("news").hang_up()
        assert len(process.current().closes) == process.CLOSES_KEPT
        assert all(len(close["path"]) <= process.CLOSE_PATH_CHARACTERS for close in process.current().closes)

    def test_unreadable(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Where the others' numbers can't be read, the stream says so and goes on."""

        def fail(self: Ledger) -> None:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(Ledger, "read", fail)
        monkeypatch.setattr(dashboard, "INTERVAL", 0.01)
        dashboard._snapshots.clear()
        found = first_events(make_app().test_client().get("/events/-/dashboard/events"), 2)
        assert [name for name, _ in found] == ["problem", "problem"] and "Permission denied" in found[0][1]["problem"]

    def test_many_viewers(self) -> None:
        """What is taken serves all who look at about the same time, and who looks while it is taken gets what there was."""
        shared: Shared[int] = Shared()
        numbers = itertools.count()
        assert [shared.get(lambda: next(numbers)) for _ in range(3)] == [0, 0, 0]
        shared.taken_at -= 1000
        assert shared.get(lambda: (shared.get(lambda: -1), next(numbers))[1]) == 1
        with pytest.raises(OSError):
            Shared[int]().get(lambda: (_ for _ in ()).throw(OSError()))
