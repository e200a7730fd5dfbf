"""Channels as an app uses them, and the blueprint's routes: who may, what is refused and how, through Flask's test client."""

from __future__ import annotations

import contextlib
import decimal
import json
import logging
import resource
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import quote

import pytest
from flask import Flask, Response, abort, redirect, request
from flask.testing import FlaskClient
from itsdangerous import URLSafeSerializer
from werkzeug.datastructures import WWWAuthenticate
from werkzeug.exceptions import TooManyRequests, Unauthorized
from werkzeug.test import TestResponse

import sseflask.auth
from sseflask import (
    SSE,
    CloseReason,
    EventDecoder,
    EventTooLarge,
    InvalidChannel,
    InvalidEvent,
    InvalidSetting,
    InvalidSubscription,
    ServerSentEvent,
    Stream,
    event_published,
    process,
    stream_closed,
    stream_opened,
    subscriber_dropped,
)
from tests.live.process import wait_until
from tests.test_callback import waits, waits_and_yields, yields

GOOD_NAMES = ["a", "x" * 200, "é" * 100, "job:7", "a/b/c", "a b", "-a", "--", "a-/b", "a.b", "a?b&c=d#e", "100%", "*", "[a]"]
BAD_NAMES = [
    "",
    "/a",
    "a/",
    " a",
    "a ",
    "\u00a0a",
    "a\n",
    "a\rb",
    "\0",
    "\x7f",
    "a\x85",
    "a\u2028b",
    "x" * 201,
    "é" * 101,
    "-",
    "-/",
    "-/control",
]
SECRET = "a secret key"


class Page:
    """A stream that the test client has opened, read in a thread of its own so that no test waits for ever.

    Attributes:
        events: Those that have arrived.
        raw: All bytes that have.
        error: What reading raised.
    """

    def __init__(self, response: TestResponse) -> None:
        assert response.status_code == 200, response.get_data()
        assert response.headers["Content-Type"] == "text/event-stream; charset=utf-8"
        self.response = response
        self.events: list[ServerSentEvent] = []
        self.raw = b""
        self.error: Exception | None = None
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        decoder = EventDecoder()
        try:
            for data in self.response.response:
                assert isinstance(data, bytes)
                self.raw += data
                self.events += decoder.feed(data)
        except Exception as error:
            self.error = error

    def wait(self, count: int, timeout: float = 5.0) -> list[ServerSentEvent]:
        """The events, once there are so many, and not more."""
        wait_until(lambda: len(self.events) >= count, timeout, message=f"{count} events have arrived")
        assert len(self.events) == count
        return self.events

    def wait_for_end(self) -> list[ServerSentEvent]:
        """The events, once the stream has ended."""
        self._thread.join(5)
        assert not self._thread.is_alive(), "the stream goes on"
        return self.events

    def close(self) -> None:
        """Hangs up."""
        self.response.close()
        self.wait_for_end()


class Site:
    """An app with the blueprint, and its client."""

    def __init__(self, sse: SSE | None = None, **settings: Any) -> None:
        self.app = Flask("app")
        self.app.secret_key = SECRET
        self.app.config.update(settings)
        self.sse = sse if sse is not None else SSE()
        self.app.register_blueprint(self.sse, url_prefix="/events")
        self.pages: list[Page] = []

    @property
    def client(self) -> FlaskClient:
        """A client that keeps no cookies, but sends those that it is told to."""
        return self.app.test_client(use_cookies=False)

    def get(self, path: str, **options: Any) -> TestResponse:
        """A response to a GET; what is open is closed after the test."""
        return self.client.get(path, **options)

    def post(self, path: str, **options: Any) -> TestResponse:
        """A response to a POST."""
        return self.client.post(path, **options)

    def open(self, path: str, **options: Any) -> Page:
        """A stream."""
        self.pages.append(Page(self.get(path, **options)))
        return self.pages[-1]

    def published(self) -> int:
        """The events that the app's broker has had."""
        count: int = self.sse.stats()["events_published"]
        return count


MakeSite = Callable[..., Site]


@pytest.fixture
def make_site() -> Iterator[MakeSite]:
    """Makes sites with the given settings; all streams have ended afterwards."""
    sites: list[Site] = []

    def make(sse: SSE | None = None, **settings: Any) -> Site:
        sites.append(Site(sse, **settings))
        return sites[-1]

    yield make
    for site in sites:
        for page in site.pages:
            page.close()
    wait_until(lambda: not process.current().streams, message="all streams have ended")


@pytest.fixture
def site(make_site: MakeSite) -> Site:
    """One that anyone may read, and nobody may publish to."""
    return make_site(SSE_PUBLIC_CHANNELS=["*"])


@pytest.fixture
def open_site(site: Site) -> Site:
    """One that lets anyone publish too."""
    site.sse.authorize(lambda action, channel: True)
    return site


@pytest.fixture
def closed_site(make_site: MakeSite) -> Site:
    """One without any rule."""
    return make_site()


def refusal(response: TestResponse, status: int) -> str:
    """What a refusal says, in JSON."""
    assert response.status_code == status, response.get_data()
    assert response.is_json
    problem = response.get_json()["error"]
    assert isinstance(problem, str) and problem
    return problem


def without_header(token: str) -> dict[str, Any]:
    """The token as a query argument."""
    return {"query_string": {"token": token}}


def as_bearer(token: str) -> dict[str, Any]:
    """The token as a header."""
    return {"headers": {"Authorization": f"Bearer {token}"}}


def as_cookie(token: str) -> dict[str, Any]:
    """The token as a cookie."""
    return {"headers": {"Cookie": f"sse_token={token}"}}


class TestPublish:
    """`sse.publish`."""

    def test_stream(self, site: Site) -> None:
        """What is published arrives at the streams of its channel, under the id that is returned."""
        page = site.open("/events/news")
        own = site.sse.publish({"percent": 50}, channel="news", event="progress", retry=7)
        site.sse.publish("elsewhere", channel="other")
        event = page.wait(2)[1]
        assert (event.data, event.event, event.id, event.retry) == ('{"percent":50}', "progress", own, 7)

    def test_default_channel(self, site: Site) -> None:
        """The channel is `sse` unless another is named."""
        page = site.open("/events/sse")
        site.sse.publish("x")
        assert page.wait(2)[1].data == "x"

    @pytest.mark.parametrize(("data", "line"), [("text", "text"), (b"bytes", "bytes"), ([1], "[1]"), (None, "null"), ("", "")])
    def test_data(self, site: Site, data: Any, line: str) -> None:
        """Data is as for an event."""
        page = site.open("/events/sse")
        site.sse.publish(data)
        assert page.wait(2)[1].data == line

    def test_event_object(self, site: Site) -> None:
        """An event's own fields stand, the arguments fill in what it lacks."""
        page = site.open("/events/sse")
        site.sse.publish(ServerSentEvent("x", event="own"), event="other", id="mine")
        event = page.wait(2)[1]
        assert (event.event, event.id) == ("own", "mine")

    def test_type(self, site: Site) -> None:
        """`type` is another word for `event`; two different names are refused."""
        page = site.open("/events/sse")
        site.sse.publish("x", type="note")
        site.sse.publish("x", type="note", event="note")
        assert [event.event for event in page.wait(3)[1:]] == ["note", "note"]
        with pytest.raises(InvalidEvent, match="'other'"):
            site.sse.publish("x", type="other", event="note")

    def test_token(self, site: Site) -> None:
        """A retry with the same token stores nothing and returns the same id."""
        page = site.open("/events/sse")
        first = site.sse.publish("x", token="t")
        assert site.sse.publish("x", token="t") == first
        site.sse.publish("y")
        assert [event.data for event in page.wait(3)[1:]] == ["x", "y"]

    @pytest.mark.parametrize("own", ["", " a", "a ", "x" * 257, "é" * 129, "a\nb", "a\0", "0123456789ab-5", "0123456789ab-5-end"])
    def test_own_id(self, site: Site, own: str) -> None:
        """An id that couldn't be found again, or that looks like the broker's, is refused and nothing is stored (DELIVERY 12)."""
        with pytest.raises(InvalidEvent) as caught:
            site.sse.publish("x", id=own)
        assert caught.value.field == "id"
        assert site.published() == 0

    @pytest.mark.parametrize("own", ["a", "x" * 256, "é" * 128, "0123456789ab", "a b", "0123456789AB-5"])
    def test_good_own_id(self, site: Site, own: str) -> None:
        """Any other id of 1 to 256 bytes is the event's."""
        assert site.sse.publish("x", id=own) == own

    @pytest.mark.parametrize("event", [ServerSentEvent(comment="x"), ServerSentEvent(id="a"), ServerSentEvent(retry=5)], ids=repr)
    def test_without_data(self, site: Site, event: ServerSentEvent) -> None:
        """An event without data, which no client would ever see, is refused."""
        with pytest.raises(InvalidEvent):
            site.sse.publish(event)

    @pytest.mark.parametrize(
        "event",
        [
            ServerSentEvent("x" * 1025),
            ServerSentEvent("é" * 513),
            ServerSentEvent("\n" * 200),
            ServerSentEvent("x", event="n" * 1025),
            ServerSentEvent("x", comment="c" * 1025),
            ServerSentEvent("x" * 500, event="n" * 600),
        ],
        ids=["data", "UTF-8", "lines", "name", "comment", "together"],
    )
    def test_too_large(self, make_site: MakeSite, event: ServerSentEvent) -> None:
        """An event whose bytes are more than `SSE_MAX_EVENT_BYTES` is refused by that name, whichever field makes it so large."""
        site = make_site(SSE_MAX_EVENT_BYTES=1024)
        with pytest.raises(InvalidEvent, match=r"SSE_MAX_EVENT_BYTES.*1024"):
            site.sse.publish(event)
        assert site.published() == 0
        site.sse.publish("x" * 1000)

    @pytest.mark.parametrize("text", ["x" * 1017, "é" * 509, "\U0001f600" * 255, "\n" * 146])
    def test_too_large_a_text(self, make_site: MakeSite, text: str) -> None:
        """Of plain text each byte counts too, those of the field's name before each line among them; just below it is published."""
        site = make_site(SSE_MAX_EVENT_BYTES=1024)
        with pytest.raises(EventTooLarge) as caught:
            site.sse.publish(text)
        assert caught.value.size == len(ServerSentEvent(text).encode()) > 1024
        assert site.published() == 0
        site.sse.publish(text[1:])

    @pytest.mark.parametrize("name", GOOD_NAMES)
    def test_good_names(self, site: Site, name: str) -> None:
        """These are channels, in Python and in a path."""
        page = site.open(f"/events/{quote(name, safe='/')}")
        site.sse.publish("x", channel=name)
        assert page.wait(2)[1].data == "x"

    @pytest.mark.parametrize("name", [*BAD_NAMES, None, 5, b"a", "\ud800"])
    def test_bad_names(self, site: Site, name: Any) -> None:
        """These are none, for anything that takes one; the error says what a name must be."""
        for use in (
            lambda: site.sse.publish("x", channel=name),
            lambda: site.sse.channel(name),
            lambda: site.sse.on(name),
            lambda: site.sse.subscribe(name),
            lambda: site.sse.sign(name),
        ):
            with pytest.raises(InvalidChannel, match="must be") as caught:
                use()
            assert caught.value.channel == name
        assert site.published() == 0


class TestApps:
    """Which app is meant."""

    def test_one_app(self, site: Site) -> None:
        """Outside any app context, and in a native thread, the only app is meant."""
        page = site.open("/events/sse")
        thread = threading.Thread(target=site.sse.publish, args=("x",), daemon=True)
        thread.start()
        thread.join(5)
        assert page.wait(2)[1].data == "x"

    def test_two_apps(self, make_site: MakeSite) -> None:
        """With two apps it must be said, and each has channels of its own."""
        sse = SSE()
        one, two = (make_site(sse, SSE_PUBLIC_CHANNELS=["*"]) for _ in range(2))
        pages = [one.open("/events/sse"), two.open("/events/sse")]
        for use in (lambda: sse.publish("x"), sse.stats, lambda: sse.emitter, lambda: sse.channel("a").close()):
            with pytest.raises(RuntimeError, match="installed on 2"):
                use()
        for site in (two, one):
            with site.app.app_context():
                sse.publish(str(site is one))
        assert [page.wait(2)[1].data for page in pages] == ["True", "False"]

    def test_names_are_no_patterns(self, site: Site) -> None:
        """A name that looks like a pattern is a channel's like any other, for listeners, streams and what ends them."""
        heard: list[str | None] = []
        site.sse.on("news/*")(lambda event: heard.append(event.data))
        page, other = site.open("/events/news/*"), site.open("/events/news/a")
        other.wait(1)
        site.sse.publish("of a", channel="news/a")
        site.sse.publish("of *", channel="news/*")
        assert page.wait(2)[1].data == "of *" and other.wait(2)[1].data == "of a" and heard == ["of *"]
        site.sse.disconnect(channel="news/*")
        page.wait_for_end()
        site.sse.publish("still there", channel="news/a")
        assert other.wait(3)[2].data == "still there"

    def test_no_app(self) -> None:
        """Without any it is said too."""
        remedy = r'installed on none: app\.register_blueprint\(sse, url_prefix="/events"\), or sse\.init_app\(app\), installs it'
        with pytest.raises(RuntimeError, match=remedy):
            SSE().publish("x")

    def test_several_processes(self, site: Site) -> None:
        """Where several processes serve the app and nothing joins them, routes answer 503 and say what to set (DELIVERY 15)."""
        site.sse.authorize(lambda action, channel: True)
        several = {"environ_overrides": {"wsgi.multiprocess": True}}
        assert "SSE_BROKER_URL" in refusal(site.get("/events/news", **several), 503)
        assert "SSE_BROKER_URL" in refusal(site.post("/events/news", data="x", **several), 503)

    def test_several_processes_by_choice(self, make_site: MakeSite) -> None:
        """`memory://` says that each process is to have channels of its own."""
        site = make_site(SSE_PUBLIC_CHANNELS=["*"], SSE_BROKER_URL="memory://")
        assert site.open("/events/news", environ_overrides={"wsgi.multiprocess": True}).wait(1)


class TestChannel:
    """`sse.channel` and `@sse.on`."""

    def test_publish(self, site: Site) -> None:
        """A handle publishes under its channel's event name, or another; its end is final."""
        page = site.open("/events/job:7")
        channel = site.sse.channel("job:7", event="progress", end_event="done")
        assert channel.subscribers == 1
        channel.publish(1)
        own = channel.publish(2, event="other", id="mine")
        channel.close({"ok": True})
        events = page.wait_for_end()[1:]
        assert [(event.event, event.data) for event in events] == [("progress", "1"), ("other", "2"), ("done", '{"ok":true}')]
        assert own == "mine" and (events[-1].id or "").endswith("-end")
        assert channel.subscribers == 0
        assert page.error is None

    def test_history(self, site: Site) -> None:
        """A handle says how much its channel keeps."""
        channel = site.sse.channel("news", history=8)
        position = channel.publish("first")
        for _number in range(8):
            channel.publish("x")
        assert site.open("/events/news", headers={"Last-Event-ID": position}).wait(9)[0].event == "stream-open"
        channel.publish("one more")
        assert site.open("/events/news", headers={"Last-Event-ID": position}).wait(10)[0].event == "stream-reset"

    @pytest.mark.parametrize("history", [0, 7, -1, 8.5, True, "8"])
    def test_bad_history(self, site: Site, history: Any) -> None:
        """A history of fewer than eight events is refused."""
        with pytest.raises(InvalidSetting, match="history"):
            site.sse.channel("news", history=history)

    @pytest.mark.parametrize("names", [{"event": "a\nb"}, {"end_event": "a\0"}])
    def test_bad_names_of_events(self, site: Site, names: dict[str, Any]) -> None:
        """Names that no event can have are refused when the handle is made."""
        with pytest.raises(InvalidEvent):
            site.sse.channel("news", **names)

    def test_listeners(self, make_site: MakeSite) -> None:
        """Listeners hear each event of their channel, those that were there before the app, and those that come later."""
        heard: list[tuple[str, str | None, str | None]] = []

        sse = SSE()

        @sse.on("news")
        def early(event: ServerSentEvent) -> None:
            heard.append(("early", event.data, event.id))

        site = make_site(sse)
        first = site.sse.publish("1", channel="news")

        @site.sse.on("news")
        def late(event: ServerSentEvent) -> None:
            heard.append(("late", event.data, event.id))

        site.sse.channel("news").on(lambda event: heard.append(("handle", event.data, event.id)))
        second = site.sse.publish("2", channel="news")
        site.sse.publish("3", channel="other")
        assert heard == [("early", "1", first), ("early", "2", second), ("late", "2", second), ("handle", "2", second)]

    def test_no_listener(self, site: Site) -> None:
        """What can't be called is refused at once, whether or not there is an app, or a broker in use."""
        for sse in (SSE(), site.sse):
            with pytest.raises(TypeError, match="not 'no function'"):
                sse.on("news")("no function")  # type: ignore[arg-type]
        site.sse.publish("1", channel="news")

    def test_listeners_of_several_apps(self, make_site: MakeSite) -> None:
        """A listener hears the events of every app that the extension serves, each once."""
        sse = SSE()
        heard: list[str | None] = []
        sse.on("news")(lambda event: heard.append(event.data))
        for number in range(2):
            site = make_site(sse)
            with site.app.app_context():
                sse.publish(str(number), channel="news")
        assert heard == ["0", "1"]

    def test_emitter(self, site: Site) -> None:
        """The registry is there to look at: the channels, and who listens."""
        page = site.open("/events/news")
        listener = site.sse.on("other")(lambda event: None)
        site.sse.publish("x", channel="third")
        assert sorted(site.sse.emitter.channels()) == ["news", "other", "third"]
        assert site.sse.emitter.listeners("other") == [listener]
        stats = site.sse.stats()
        assert (stats["streams"], stats["subscriptions"], stats["channels"], stats["events_published"]) == (1, 1, 3, 1)
        page.close()
        assert sorted(site.sse.emitter.channels()) == ["other", "third"]


class TestSubscribe:
    """`sse.subscribe` in a view of the app's own."""

    def test_view(self, site: Site) -> None:
        """A view returns a subscription, with headers of a stream; it needs no rule of the routes'."""
        site.app.add_url_rule("/jobs/<name>", "job", lambda name: site.sse.subscribe(f"job:{name}", "all", retry=250))
        page = site.open("/jobs/7")
        site.sse.publish("1", channel="job:7")
        site.sse.publish("2", channel="all")
        assert [event.data for event in page.wait(3)[1:]] == ["1", "2"]
        assert page.raw.startswith(b"retry: 250\n\n")
        assert page.response.headers["Cache-Control"] == "no-cache, no-transform"
        assert page.response.headers["X-Accel-Buffering"] == "no"
        assert "Content-Length" not in page.response.headers

    def test_204(self, site: Site) -> None:
        """A client that comes back to what has ended gets 204 and nothing else."""
        site.app.add_url_rule("/job", "job", lambda: site.sse.subscribe("job"))
        page = site.open("/job")
        site.sse.channel("job").close()
        last = page.wait_for_end()[-1].id or ""
        for again in (
            {"headers": {"Last-Event-ID": last}},
            {"query_string": {"lastEventId": last}},
            {"query_string": {"last_event_id": last}},
        ):
            response = site.get("/job", **again)
            assert (response.status_code, response.data) == (204, b"")

    @pytest.mark.parametrize("given", [waits, waits_and_yields, "created", [{"id": 1}]])
    def test_callbacks_that_would_not_run(self, site: Site, given: Any) -> None:
        """A filter and a snapshot that can't be called, or are asynchronous, are refused where they are given."""
        with pytest.raises(TypeError, match="filter is a function of one event, not "):
            site.sse.subscribe("a", filter=given)
        with pytest.raises(TypeError, match="snapshot is a function that gives the events that come first, not "):
            site.sse.subscribe("a", snapshot=given)
        with pytest.raises(TypeError, match="filter is a function of one event, not a generator function"):
            site.sse.subscribe("a", filter=yields)

    @pytest.mark.parametrize("event", [7, b"created", ["created", None], True, object])
    def test_names_that_are_none(self, site: Site, event: Any) -> None:
        """What is no event's name, nor several, is refused: no event would ever have it."""
        with pytest.raises(TypeError, match="event is the name of the events that the client gets, or a list of names, not "):
            site.sse.subscribe("a", event=event)

    def test_no_channel(self, site: Site) -> None:
        """A subscription to nothing is refused."""
        with pytest.raises(InvalidSubscription):
            site.sse.subscribe()

    def test_too_many_channels(self, make_site: MakeSite) -> None:
        """One to too many is refused by the name of the limit; the same channel twice is one."""
        site = make_site(SSE_MAX_CHANNELS_PER_STREAM=2, SSE_PUBLIC_CHANNELS=["*"])
        with site.client.application.test_request_context():
            with pytest.raises(InvalidSubscription, match="SSE_MAX_CHANNELS_PER_STREAM"):
                site.sse.subscribe("a", "b", "c")
            site.sse.subscribe("a", "b", "a").close()
        query = "&".join(f"channel={name}" for name in "abc")
        assert "SSE_MAX_CHANNELS_PER_STREAM" in refusal(site.get(f"/events/?{query}"), 400)
        assert site.open("/events/?channel=a&channel=b&channel=a").wait(1)[0].data == '{"channels":["a","b"]}'

    def test_head(self, site: Site) -> None:
        """A HEAD request gets the headers of a stream and opens none."""
        response = site.client.head("/events/news")
        assert response.status_code == 200 and response.mimetype == "text/event-stream" and response.data == b""
        response.close()
        assert site.sse.stats()["streams"] == 0 and site.sse.stats()["subscriptions"] == 0

    def test_response_that_is_never_read(self, site: Site) -> None:
        """A response that something else replaces leaves nothing behind."""

        def view() -> Response:
            site.sse.subscribe("news", snapshot=lambda: ["x"])
            return Response("instead")

        site.app.add_url_rule("/instead", "instead", view)
        assert site.get("/instead").data == b"instead"
        assert site.sse.emitter.channels() == []


class TestPosition:
    """Where the client's position is found."""

    @pytest.mark.parametrize(
        "where",
        [
            lambda own: {"headers": {"Last-Event-ID": own}},
            lambda own: {"query_string": {"lastEventId": own}},
            lambda own: {"query_string": {"last_event_id": own}},
            lambda own: {"headers": {"Last-Event-ID": own}, "query_string": {"lastEventId": "not this one"}},
        ],
        ids=["header", "lastEventId", "last_event_id", "header first"],
    )
    def test_where(self, site: Site, where: Callable[[str], dict[str, Any]]) -> None:
        """The header counts, else either query argument."""
        own = site.sse.publish("1", channel="news")
        site.sse.publish("2", channel="news")
        events = site.open("/events/news", **where(own)).wait(2)
        assert [event.data for event in events[1:]] == ["2"] and events[0].id == own

    @pytest.mark.parametrize("own", ["ключ", "é", "日本 語", "a&b=c#d%20+e", "😀"])
    def test_other_letters(self, site: Site, own: str) -> None:
        """An id comes back in the header as browsers send it, its UTF-8 bytes, and as a query argument, quoted."""
        site.sse.publish("1", channel="news", id=own)
        site.sse.publish("2", channel="news")
        raw = {"environ_overrides": {"HTTP_LAST_EVENT_ID": own.encode().decode("latin-1")}}
        for where in (raw, {"query_string": {"lastEventId": own}}):
            events = site.open("/events/news", **where).wait(2)
            assert (events[0].event, events[1].data) == ("stream-open", "2")

    @pytest.mark.parametrize("raw", ["\xff\xfe", "a" * 5000, "\x00", "'", "-end", "\u20ac"])
    def test_nonsense(self, site: Site, raw: str) -> None:
        """Whatever else a client says gets a reset, and a stream."""
        page = site.open("/events/news", environ_overrides={"HTTP_LAST_EVENT_ID": raw})
        reset = page.wait(2)[0]
        assert reset.event == "stream-reset" and json.loads(reset.data or "")["reason"] == "unknown_id"

    def test_empty(self, site: Site) -> None:
        """An empty header is none."""
        assert site.open("/events/news", headers={"Last-Event-ID": ""}).wait(1)[0].event == "stream-open"


class TestRoutes:
    """The blueprint's routes: their forms, and what may be posted."""

    @pytest.mark.parametrize("path", ["/events?channel=news", "/events/?channel=news", "/events/news", "/events/news/"])
    def test_both_slash_forms(self, open_site: Site, path: str) -> None:
        """Both forms of each path answer at once, without a redirect that an EventSource would follow each time."""
        page = open_site.open(path)
        if "?" not in path:
            assert open_site.post(path, data="x").status_code == 201
        else:
            open_site.sse.publish("x", channel="news")
        assert page.wait(2)[1].data == "x"

    def test_several_channels(self, site: Site) -> None:
        """Several channels are one stream, each named once."""
        page = site.open("/events/?channel=a&channel=b%2Fc&channel=a")
        site.sse.publish("1", channel="b/c")
        site.sse.publish("2", channel="a")
        assert [event.data for event in page.wait(3)] == ['{"channels":["a","b/c"]}', "1", "2"]

    def test_no_channel(self, site: Site) -> None:
        """A subscription to nothing says how to name a channel."""
        assert "?channel=" in refusal(site.get("/events/"), 400)
        assert "?channel=" in refusal(site.get("/events"), 400)

    # Paths are read without the slash at their end, and the router has no path with a line break or two slashes.
    @pytest.mark.parametrize("name", [name for name in BAD_NAMES if name.strip("/\n") == name != ""] + ["-/", "-/anything/else"])
    def test_bad_names(self, open_site: Site, name: str) -> None:
        """A path that is no channel's name is refused in JSON; nothing is opened or stored."""
        path = f"/events/{quote(name, safe='/')}"
        refusal(open_site.get(path), 400)
        refusal(open_site.post(path, data="x"), 400)
        assert open_site.published() == 0 and open_site.sse.emitter.channels() == []

    @pytest.mark.parametrize("name", BAD_NAMES)
    def test_bad_names_in_the_query(self, open_site: Site, name: str) -> None:
        """A query argument that is none is refused too, as it is: slashes at its edges aren't forgiven."""
        refusal(open_site.get(f"/events/?channel=good&channel={quote(name)}"), 400)
        assert open_site.sse.emitter.channels() == []

    def test_post_again(self, open_site: Site) -> None:
        """A request with the same `Idempotency-Key` stores nothing twice; another channel's, or another key, is another event."""
        page = open_site.open("/events/?channel=a&channel=b")
        first = open_site.post("/events/a", data="1", headers={"Idempotency-Key": "k"}).get_json()
        assert open_site.post("/events/a", data="1", headers={"Idempotency-Key": "k"}).get_json() == first
        assert open_site.post("/events/b", data="2", headers={"Idempotency-Key": "k"}).get_json() != first
        assert open_site.post("/events/a", data="3", headers={"Idempotency-Key": "l"}).status_code == 201
        assert [event.data for event in page.wait(4)[1:]] == ["1", "2", "3"]
        assert "Idempotency-Key" in refusal(open_site.post("/events/a", data="4", headers={"Idempotency-Key": "k" * 201}), 400)

    def test_health(self, open_site: Site) -> None:
        """A load balancer learns that new streams are welcome; the path is no channel."""
        answer = open_site.get("/events/-/health")
        assert answer.status_code == 200
        assert answer.get_json()["ready"] is True and answer.get_json()["problem"] is None

    def test_health_of_a_full_worker(self, open_site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
        """A worker whose open files are used up is full, though no setting says how many streams it may have."""
        files = process.RESERVED_FILES + len(process.current().streams) + 1
        monkeypatch.setattr(resource, "getrlimit", lambda _: (files, -1))
        open_site.open("/events/news")
        answer = open_site.get("/events/-/health")
        assert (answer.status_code, answer.get_json()["full"]) == (503, True)

    def test_control_is_not_a_channel(self, open_site: Site) -> None:
        """What processes tell one another can't be published to or read, in code either, nor is it among the channels."""
        open_site.open("/events/news")
        open_site.sse.disconnect(channel="other")
        for name in ("-/control", "-/anything"):
            with pytest.raises(InvalidChannel):
                open_site.sse.publish("x", channel=name)
            with pytest.raises(InvalidChannel):
                open_site.sse.subscribe(name)
        assert open_site.sse.emitter.channels() == ["news"]

    def test_post_json(self, open_site: Site) -> None:
        """A JSON object is an event with its fields; the answer is its id."""
        page = open_site.open("/events/news")
        response = open_site.post("/events/news", json={"data": {"a": 1}, "event": "note", "retry": 5})
        assert response.status_code == 201
        event = page.wait(2)[1]
        assert (event.data, event.event, event.retry) == ('{"a":1}', "note", 5)
        assert response.get_json() == {"id": event.id}
        assert open_site.post("/events/news", json={"data": None, "id": "mine"}).get_json() == {"id": "mine"}
        assert page.wait(3)[2].data == "null"

    @pytest.mark.parametrize(
        ("body", "line"), [(b"plain text", "plain text"), ("é\nb".encode(), "é\nb"), (b"", ""), (b'{"a": 1}', '{"a": 1}')]
    )
    def test_post_plain(self, open_site: Site, body: bytes, line: str) -> None:
        """Any other body is the data, as it is."""
        page = open_site.open("/events/news")
        assert open_site.post("/events/news", data=body, content_type="text/plain").status_code == 201
        assert page.wait(2)[1].data == line

    @pytest.mark.parametrize(
        ("body", "word"),
        [
            (b"{", "the body isn't JSON: Expecting property name"),
            (b"", "the body isn't JSON: Expecting value"),
            (b'{"data": "\xff"}', "the body isn't JSON: 'utf-8' codec"),
            (b'"text"', "data"),
            (b"[1]", "data"),
            (b"null", "data"),
            (b'{"event": "a"}', "data"),
            (b'{"data": 1, "evnt": "a"}', "evnt"),
            (b'{"data": 1, "channel": "other"}', "channel"),
            (b'{"data": 1, "event": 5}', "event"),
            (b'{"data": 1, "event": "a\\nid: 5"}', "event"),
            (b'{"data": 1, "id": "a\\u0000"}', "id"),
            (b'{"data": 1, "id": ""}', "id"),
            (b'{"data": 1, "id": 7}', "id"),
            (b'{"data": 1, "id": "0123456789ab-7"}', "id"),
            (b'{"data": 1, "retry": -1}', "retry"),
            (b'{"data": 1, "retry": "5"}', "retry"),
            (b'{"data": NaN}', "data"),
        ],
    )
    def test_bad_json(self, open_site: Site, body: bytes, word: str) -> None:
        """What can't be published is refused with what is wrong; nothing is stored."""
        problem = refusal(open_site.post("/events/news", data=body, content_type="application/json"), 400)
        assert word in problem
        assert open_site.published() == 0

    @pytest.mark.parametrize("kind", ["application/x-www-form-urlencoded", "multipart/form-data; boundary=x"])
    def test_forms(self, open_site: Site, kind: str) -> None:
        """A form, which `curl -d` says that it sends, is refused with what to send; its text is nobody's event."""
        problem = refusal(open_site.post("/events/news", data=b'{"data": 1}', content_type=kind), 415)
        assert problem == f"send Content-Type: application/json or text/plain, not {kind.partition(';')[0]}"
        assert open_site.published() == 0

    def test_undecodable_body(self, open_site: Site) -> None:
        """A plain body that isn't UTF-8 is refused."""
        assert "UTF-8" in refusal(open_site.post("/events/news", data=b"\xff"), 400)

    def test_deep_json(self, open_site: Site) -> None:
        """JSON that is nested too deeply is refused, not an error of the server's."""
        body = b'{"data": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
        refusal(open_site.post("/events/news", data=body, content_type="application/json"), 400)

    @pytest.mark.parametrize("size", [1025, 6 * 1024 + 1025, 1_000_000])
    @pytest.mark.parametrize("kind", ["plain", "JSON", "chunked"])
    def test_too_large(self, make_site: MakeSite, size: int, kind: str) -> None:
        """An event that is too large is refused with 413 and the limit's name, whether or not the client says how large it is."""
        site = make_site(SSE_MAX_EVENT_BYTES=1024)
        site.sse.authorize(lambda action, channel: True)
        body, content_type = (
            (b"x" * size, "text/plain") if kind != "JSON" else (json.dumps({"data": "x" * size}), "application/json")
        )
        options: dict[str, Any] = {"data": body, "content_type": content_type}
        if kind == "chunked":
            options["environ_overrides"] = {
                "CONTENT_LENGTH": "",
                "HTTP_TRANSFER_ENCODING": "chunked",
                "wsgi.input_terminated": True,
            }
        assert "SSE_MAX_EVENT_BYTES" in refusal(site.post("/events/news", **options), 413)
        assert site.published() == 0

    def test_as_large_as_may_be(self, make_site: MakeSite) -> None:
        """JSON may spell out each byte of an event that is just small enough."""
        site = make_site(SSE_MAX_EVENT_BYTES=1024)
        site.sse.authorize(lambda action, channel: True)
        body = '{"data": "' + "\\u0061" * 1000 + '"}'
        assert site.post("/events/news", data=body, content_type="application/json").status_code == 201

    def test_before_request(self, make_site: MakeSite) -> None:
        """Flask's own guard works, for both methods, and its refusal is JSON too."""

        def guard() -> None:
            if request.headers.get("X-Key") != "right":
                abort(401, "the key is wrong")

        sse = SSE()
        sse.before_request(guard)
        site = make_site(sse)
        sse.authorize(lambda action, channel: True)
        assert refusal(site.get("/events/news"), 401) == "the key is wrong"
        assert refusal(site.post("/events/news", data="x"), 401) == "the key is wrong"
        assert site.published() == 0
        page = site.open("/events/news", headers={"X-Key": "right"})
        assert site.post("/events/news", data="x", headers={"X-Key": "right"}).status_code == 201
        assert page.wait(2)[1].data == "x"

    def test_headers_of_a_guard(self, make_site: MakeSite) -> None:
        """What a guard aborts with keeps its own headers, and its own response is answered as it is."""

        def guard() -> None:
            match request.args["by"]:
                case "many":
                    raise TooManyRequests(retry_after=30)
                case "login":
                    raise Unauthorized("sign in", www_authenticate=WWWAuthenticate("basic", {"realm": "the app"}))
                case "own":
                    abort(Response("<p>sign in", 401, {"X-Own": "yes"}))
                case "redirect":
                    abort(redirect("/login"))

        sse = SSE()
        sse.before_request(guard)
        site = make_site(sse)
        many, login = site.get("/events/news?by=many"), site.get("/events/news?by=login")
        assert refusal(many, 429) and many.headers["Retry-After"] == "30"
        assert refusal(login, 401) == "sign in" and login.headers["WWW-Authenticate"] == 'Basic realm="the app"'
        for response in (many, login):
            assert [name for name, _ in response.headers].count("Content-Type") == 1
        own, moved = site.post("/events/news?by=own", data="x"), site.get("/events/news?by=redirect")
        assert (own.status_code, own.text, own.headers["X-Own"]) == (401, "<p>sign in", "yes")
        assert (moved.status_code, moved.headers["Location"]) == (302, "/login")
        assert own.headers["X-Content-Type-Options"] == "nosniff"


class TestWhoMay:
    """Closed by default, public channels, and the app's own rule."""

    def test_closed(self, closed_site: Site) -> None:
        """Without any rule nothing is served, and nothing is opened or stored."""
        assert "news" in refusal(closed_site.get("/events/news"), 403)
        refusal(closed_site.get("/events/?channel=news"), 403)
        refusal(closed_site.post("/events/news", data="x"), 403)
        assert closed_site.published() == 0 and closed_site.sse.stats()["streams"] == 0
        assert closed_site.sse.emitter.channels() == []

    @pytest.mark.parametrize(
        ("channel", "status"),
        [
            ("news", 200),
            ("public/a", 200),
            ("public/a/b", 200),
            ("room-7", 200),
            ("newsroom", 403),
            ("NEWS", 403),
            ("public", 403),
            ("room-", 403),
        ],
    )
    def test_public(self, make_site: MakeSite, channel: str, status: int) -> None:
        """`SSE_PUBLIC_CHANNELS` are glob patterns of whole names, to read and not to publish."""
        site = make_site(SSE_PUBLIC_CHANNELS=["news", "public/*", "room-?"])
        response = site.get(f"/events/{channel}")
        assert response.status_code == status
        response.close()
        refusal(site.post(f"/events/{channel}", data="x"), 403)

    def test_several(self, make_site: MakeSite) -> None:
        """A stream of several channels is open to who may read each of them."""
        site = make_site(SSE_PUBLIC_CHANNELS=["a", "b"])
        assert site.open("/events/?channel=a&channel=b").wait(1)
        assert "secret" in refusal(site.get("/events/?channel=a&channel=secret&channel=b"), 403)

    def test_authorize(self, closed_site: Site) -> None:
        """The app's rule is asked in the request's context, with the action, for each channel."""
        asked: list[tuple[str, str]] = []

        @closed_site.sse.authorize
        def rule(action: str, channel: str) -> bool:
            asked.append((action, channel))
            return request.headers.get("X-User") == "ann" and channel != "secret"

        ann = {"headers": {"X-User": "ann"}}
        closed_site.open("/events/?channel=a&channel=b", **ann)
        assert asked == [("subscribe", "a"), ("subscribe", "b")]
        assert closed_site.post("/events/a", data="x", **ann).status_code == 201
        assert asked[2:] == [("publish", "a")]
        refusal(closed_site.get("/events/a"), 403)
        refusal(closed_site.get("/events/secret", **ann), 403)
        refusal(closed_site.get("/events/?channel=a&channel=secret", **ann), 403)
        refusal(closed_site.post("/events/secret", data="x", **ann), 403)
        assert closed_site.published() == 1

    @pytest.mark.parametrize("answer", [("no", 403), "denied", 1, [0], object(), Response(status=403), iter("x")])
    def test_only_true_opens(self, closed_site: Site, caplog: pytest.LogCaptureFixture, answer: Any) -> None:
        """A rule's answer that is true and isn't True is an error that names the rule, and opens nothing."""

        @closed_site.sse.authorize
        def my_rule(action: str, channel: str) -> bool:
            return answer  # type: ignore[no-any-return]

        for response in (
            closed_site.get("/events/a"),
            closed_site.get("/events/?channel=a"),
            closed_site.post("/events/a", data="x"),
            *(closed_site.get(f"/events/-/{name}") for name in ("stats", "metrics", "dashboard", "dashboard/events", "channels")),
        ):
            refusal(response, 500)
        assert closed_site.published() == 0 and closed_site.sse.stats()["subscriptions"] == 0
        assert f"my_rule says {answer!r} to 'subscribe' of 'a': a rule (@sse.authorize) returns True where that is" in caplog.text

    @pytest.mark.parametrize("answer", [None, False, "", 0, []])
    def test_what_is_no(self, closed_site: Site, answer: Any) -> None:
        """A rule that ends without a word allows nothing, nor does one that says what isn't true."""
        closed_site.sse.authorize(lambda action, channel: answer)
        refusal(closed_site.get("/events/a"), 403)
        refusal(closed_site.post("/events/a", data="x"), 403)

    @pytest.mark.parametrize("rule", [waits, waits_and_yields, yields, True, "public"])
    def test_rules_that_would_not_run(self, closed_site: Site, rule: Any) -> None:
        """What would give something true without being run is refused where it is decorated."""
        for decorate in (closed_site.sse.authorize, closed_site.sse.client_key):
            with pytest.raises(TypeError, match=r"@sse\.\w+ takes a plain function .*, not "):
                decorate(rule)
        refusal(closed_site.get("/events/a"), 403)

    def test_why_it_is_closed(self, closed_site: Site, caplog: pytest.LogCaptureFixture) -> None:
        """The log says of a refusal what could have opened the channel, and nothing of the token; the client isn't told."""
        caplog.set_level(logging.INFO, "sseflask.auth")

        def told(response: TestResponse) -> str:
            assert "SSE_PUBLIC_CHANNELS" not in refusal(response, 403)
            (line,) = (record for record in caplog.records if record.name == "sseflask.auth")
            caplog.clear()
            assert line.levelname == "INFO" and line.sse_path.startswith("/events/")  # type: ignore[attr-defined]
            return line.getMessage()

        assert told(closed_site.get("/events/a")) == (
            "subscribe of 'a' is refused: no pattern of SSE_PUBLIC_CHANNELS matches, there is no @sse.authorize rule, "
            "no token came with it"
        )

        @closed_site.sse.authorize
        def my_rule(action: str, channel: str) -> bool:
            return False

        token = closed_site.sse.sign("b")
        line = told(closed_site.post("/events/a%20line", data="x", **as_bearer(token)))
        assert "the @sse.authorize rule " in line and "my_rule doesn't allow it" in line
        assert line.startswith("publish of 'a line' is refused: the @sse") and line.endswith("its token is for something else")
        assert token not in line and "SSE_PUBLIC" not in line
        assert told(closed_site.get("/events/-/stats")).startswith("inspect of '*' is refused: the @sse.authorize rule")

    def test_authorize_that_aborts(self, closed_site: Site) -> None:
        """A rule may also answer by itself."""
        closed_site.sse.authorize(lambda action, channel: abort(418))
        refusal(closed_site.get("/events/a"), 418)

    def test_authorize_comes_before_everything(self, closed_site: Site) -> None:
        """Who may not publish learns nothing of what is wrong with the body."""
        refusal(closed_site.post("/events/a", data=b"{", content_type="application/json"), 403)
        refusal(closed_site.post("/events/a", data=b"x" * 7_000_000), 403)


class TestTokens:
    """`sse.sign`."""

    @pytest.mark.parametrize("present", [without_header, as_bearer, as_cookie])
    def test_subscribe(self, closed_site: Site, present: Callable[[str], dict[str, Any]]) -> None:
        """A token opens its channels to who presents it, in any of three places, and no others."""
        token = closed_site.sse.sign("a", "b")
        assert closed_site.open("/events/b", **present(token)).wait(1)
        refusal(closed_site.get("/events/c", **present(token)), 403)
        refusal(closed_site.get("/events/ab", **present(token)), 403)
        refusal(closed_site.post("/events/a", data="x", **present(token)), 403)

    def test_several(self, closed_site: Site) -> None:
        """A stream of several channels needs a token for all of them."""
        token = closed_site.sse.sign("a", "b")
        assert closed_site.open(f"/events/?channel=a&channel=b&token={token}").wait(1)
        refusal(closed_site.get(f"/events/?channel=a&channel=c&token={token}"), 403)

    def test_publish(self, closed_site: Site) -> None:
        """A token to publish lets its holder publish, and not read."""
        token = closed_site.sse.sign("a", action="publish")
        assert closed_site.post(f"/events/a?token={token}", data="x").status_code == 201
        refusal(closed_site.post(f"/events/b?token={token}", data="x"), 403)
        refusal(closed_site.get(f"/events/a?token={token}"), 403)
        assert closed_site.published() == 1

    def test_publish_without_a_cookie(self, closed_site: Site) -> None:
        """A cookie lets nobody publish: a browser sends it along with what other sites have it post."""
        token = closed_site.sse.sign("a", action="publish")
        refusal(closed_site.post("/events/a", data="x", **as_cookie(token)), 403)
        assert closed_site.post("/events/a", data="x", **as_bearer(token)).status_code == 201

    def test_no_patterns(self, closed_site: Site) -> None:
        """A token is for channels of just these names: one that is made of what a user typed opens no others."""
        for name in ("*", "room:*", "room:?", "room:[ab]", "*a"):
            token = closed_site.sse.sign(name)
            refusal(closed_site.get(f"/events/room:a?token={token}"), 403)
            assert closed_site.open(f"/events/{quote(name)}?token={token}").wait(1)

    def test_bearer_of_something_else(self, closed_site: Site) -> None:
        """A bearer token that the app has for other things doesn't hide ours."""
        token = closed_site.sse.sign("a")
        headers = {"Authorization": "Bearer of.something.else", "Cookie": f"sse_token={token}"}
        assert closed_site.open("/events/a", headers=headers).wait(1)
        assert closed_site.open(f"/events/a?token={token}", headers={"Authorization": "Basic YTpi"}).wait(1)
        refusal(closed_site.get("/events/a", headers={"Authorization": "Basic YTpi"}), 403)

    def test_kept_by_the_rule(self, make_site: MakeSite) -> None:
        """A token that isn't needed isn't looked at: what is public stays so for who has a bad one."""
        site = make_site(SSE_PUBLIC_CHANNELS=["news"])
        assert site.open("/events/news?token=nonsense").wait(1)

    @pytest.mark.parametrize("present", [without_header, as_bearer, as_cookie])
    def test_tampered(self, closed_site: Site, present: Callable[[str], dict[str, Any]]) -> None:
        """A token of which anything was changed counts for nothing."""
        token = closed_site.sse.sign("a")
        payload, _, signature = token.rpartition(".")
        changed = [
            "nonsense",
            ".",
            payload,
            f"{payload}.",
            f".{signature}",
            f"{payload[:-2]}{'A' if payload[-2] != 'A' else 'B'}{payload[-1]}.{signature}",
            f"{payload}.{'A' if signature[0] != 'A' else 'B'}{signature[1:]}",
            f"{payload}.{signature}x",
            token.swapcase(),
            "x" * 10_000,
        ]
        for bad in changed:
            refusal(closed_site.get("/events/a", **present(bad)), 401)
            # A cookie isn't looked at there.
            refusal(closed_site.post("/events/a", data="x", **present(bad)), 403 if present is as_cookie else 401)
        assert closed_site.published() == 0 and closed_site.sse.emitter.channels() == []

    def test_other_key(self, make_site: MakeSite) -> None:
        """A token that another app has signed counts for nothing, nor one that this app signed for something else."""
        site, other = make_site(), make_site()
        other.app.secret_key = "another"
        refusal(site.get(f"/events/a?token={other.sse.sign('a')}"), 401)
        for salt in ("cookie-session", "itsdangerous", ""):
            forged = URLSafeSerializer(SECRET, salt=salt).dumps([["a"], "subscribe", time.time() + 100])
            refusal(site.get(f"/events/a?token={forged}"), 401)

    def test_expired(self, closed_site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
        """A token counts until its second, and not from it on."""

        class Later:
            """Stands for the module `time`."""

            seconds = 0.0

            def time(self) -> float:
                return time.time() + self.seconds

        token = closed_site.sse.sign("a", expires_in=60)
        later = Later()
        monkeypatch.setattr(sseflask.auth, "time", later)
        later.seconds = 50
        assert closed_site.open(f"/events/a?token={token}").wait(1)
        later.seconds = 61
        assert "expired" in refusal(closed_site.get(f"/events/a?token={token}"), 401)
        assert "expired" in refusal(closed_site.post(f"/events/a?token={token}", data="x"), 401)

    def test_expiry_ends_the_stream(self, closed_site: Site) -> None:
        """When its token expires a stream ends with the error event, cleanly; until then it goes on."""
        opened: list[Stream] = []
        token = closed_site.sse.sign("a", expires_in=3600)
        with stream_opened.connected_to(lambda sender, stream: opened.append(stream), closed_site.app):
            page = closed_site.open(f"/events/a?token={token}")
            page.wait(1)
        (stream,) = opened
        stream.tick(time.monotonic() + 3590)
        assert not stream.closed
        stream.tick(time.monotonic() + 3601)
        event = page.wait_for_end()[-1]
        assert event.event == "error" and json.loads(event.data or "")["error_type"] == "token_expired"
        assert stream.reason is CloseReason.EXPIRED and page.error is None

    def test_expiry_in_time(self, closed_site: Site) -> None:
        """The process sees to it by itself."""
        page = closed_site.open(f"/events/a?token={closed_site.sse.sign('a', expires_in=0.3)}")
        assert "token_expired" in (page.wait_for_end()[-1].data or "")

    def test_expiry_of_what_was_not_needed(self, make_site: MakeSite) -> None:
        """A stream that needed no token outlives the one that came with it."""
        site = make_site(SSE_PUBLIC_CHANNELS=["a"])
        opened: list[Stream] = []
        with stream_opened.connected_to(lambda sender, stream: opened.append(stream), site.app):
            site.open(f"/events/a?token={site.sse.sign('a', expires_in=60)}").wait(1)
        opened[0].tick(time.monotonic() + 61)
        assert not opened[0].closed

    @pytest.mark.parametrize(
        ("arguments", "options", "error"),
        [
            ((), {}, InvalidSubscription),
            (("a",), {"action": "write"}, InvalidSetting),
            (("a",), {"expires_in": 0}, InvalidSetting),
            (("a",), {"expires_in": -1}, InvalidSetting),
            (("a",), {"expires_in": float("nan")}, InvalidSetting),
            (("a",), {"expires_in": float("inf")}, InvalidSetting),
        ],
    )
    def test_bad_arguments(self, closed_site: Site, arguments: Any, options: Any, error: type[Exception]) -> None:
        """What can't be signed is refused."""
        with pytest.raises(error):
            closed_site.sse.sign(*arguments, **options)

    def test_no_secret_key(self, closed_site: Site) -> None:
        """Without a secret key nothing can be signed, and it is said."""
        closed_site.app.secret_key = None
        with pytest.raises(RuntimeError, match="SECRET_KEY"):
            closed_site.sse.sign("a")
        refusal(closed_site.get("/events/a"), 403)

    @pytest.mark.parametrize("present", [without_header, as_bearer, as_cookie])
    def test_tokens_of_an_app_without_a_key(
        self, closed_site: Site, caplog: pytest.LogCaptureFixture, present: Callable[[str], dict[str, Any]]
    ) -> None:
        """Without a secret key no token is ours, whatever it is: who has one is refused as who has none, and let in by the rule."""
        token = closed_site.sse.sign("a")
        closed_site.app.secret_key = None
        with caplog.at_level(logging.INFO, logger="sseflask.auth"):
            refusal(closed_site.get("/events/a", **present(token)), 403)
        assert "tokens need the app's SECRET_KEY" in caplog.text
        refusal(closed_site.get("/events/a", **present("aaa.bbb.ccc")), 403)
        closed_site.sse.authorize(lambda action, channel: channel == "mine")
        assert closed_site.open("/events/mine", **present("aaa.bbb.ccc")).wait(1)

    @pytest.mark.parametrize("older", [["oldest", SECRET], (SECRET,), SECRET])
    def test_key_rotation(self, closed_site: Site, older: Any) -> None:
        """A token that an older key has signed counts as long as SECRET_KEY_FALLBACKS has the key; new ones have the new key."""
        old = closed_site.sse.sign("a")
        closed_site.app.config.update(SECRET_KEY="new", SECRET_KEY_FALLBACKS=older)
        new = closed_site.sse.sign("a")
        for token in (old, new):
            assert closed_site.open(f"/events/a?token={token}").wait(1)
        closed_site.app.config["SECRET_KEY_FALLBACKS"] = None
        refusal(closed_site.get(f"/events/a?token={old}"), 401)
        assert closed_site.open(f"/events/a?token={new}").wait(1)

    def test_never_logged(self, closed_site: Site, caplog: pytest.LogCaptureFixture) -> None:
        """No log line has a token: neither those of gunicorn and Werkzeug, nor ours, whatever goes wrong."""
        token = closed_site.sse.sign("a")
        with caplog.at_level(logging.DEBUG):
            page = closed_site.open(f"/events/a?token={token}")
            page.close()
            for present in (without_header, as_bearer, as_cookie):
                closed_site.get("/events/b", **present(token))
                closed_site.get("/events/a", **present(f"{token}x"))
                closed_site.post("/events/a", data="x", **present(token))
            line = f"GET /events/?channel=a&token={token}&channel=b HTTP/1.1"
            atoms = {"h": "127.0.0.1", "r": line, "s": "200", "f": f"https://example.org/?token={token}", "q": f"?token={token}"}
            logging.getLogger("gunicorn.access").info('%(h)s "%(r)s" %(s)s "%(f)s" %(q)s', atoms)
            logging.getLogger("werkzeug").info('%s - - [%s] "%s" %s -', "127.0.0.1", "now", line, 200)
            logging.getLogger("werkzeug").info(line)
            logging.getLogger("gunicorn.error").error("Error handling request %s", f"/events/?token={token}")
            logging.getLogger("werkzeug").info("100%% of %s", "it")
        assert token not in caplog.text and token.rpartition(".")[2] not in caplog.text
        lines = [record.getMessage() for record in caplog.records if record.name in ("gunicorn.access", "werkzeug")]
        assert lines[0].startswith('127.0.0.1 "GET /events/?channel=a&token=') and "&channel=b HTTP/1.1" in lines[0]
        assert "&channel=b HTTP/1.1" in lines[1] and lines[-1] == "100% of it"

    @pytest.mark.parametrize("line", ["%s %s token=a", "%d token=a", "%(x)s token=a"])
    def test_lines_that_cannot_be_made(self, site: Site, line: str) -> None:
        """A line that its arguments don't fit is passed on: who logs it doesn't fail because of us."""
        record = logging.LogRecord("werkzeug", logging.INFO, __file__, 1, line, ("x",), None)
        assert logging.getLogger("werkzeug").filter(record)

    def test_access_logs_are_told_once(self) -> None:
        """However many apps there are, an access log has one filter."""
        for _ in range(3):
            SSE(Flask("app"))
        for name in ("gunicorn.access", "gunicorn.error", "werkzeug"):
            filters = logging.getLogger(name).filters
            assert len([one for one in filters if isinstance(one, sseflask.auth.RedactTokens)]) == 1


class TestLimits:
    """How many streams there may be."""

    def test_per_address(self, make_site: MakeSite) -> None:
        """An address may have so many streams; others have theirs, and an end makes room."""
        site = make_site(SSE_PUBLIC_CHANNELS=["*"], SSE_MAX_STREAMS_PER_CLIENT=2)
        pages = [site.open("/events/a"), site.open("/events/b")]
        refused = site.get("/events/a")
        refusal(refused, 429)
        assert refused.get_json()["limit"] == "SSE_MAX_STREAMS_PER_CLIENT"
        assert int(refused.headers["Retry-After"]) >= 1
        refused.close()
        assert site.sse.stats()["subscriptions"] == 2
        site.open("/events/a", environ_overrides={"REMOTE_ADDR": "10.0.0.7"}).wait(1)
        pages[0].close()
        assert site.open("/events/a").wait(1)

    def test_per_key(self, make_site: MakeSite) -> None:
        """`@sse.client_key` says who is one client; who has no key has no limit."""
        site = make_site(SSE_PUBLIC_CHANNELS=["*"], SSE_MAX_STREAMS_PER_CLIENT=1)

        @site.sse.client_key
        def key() -> str | None:
            return request.headers.get("X-User")

        for user in ("ann", "bob"):
            site.open("/events/a", headers={"X-User": user}).wait(1)
            response = site.get("/events/a", headers={"X-User": user}, environ_overrides={"REMOTE_ADDR": "10.0.0.8"})
            refusal(response, 429)
        for _ in range(3):
            site.open("/events/a").wait(1)

    @pytest.mark.parametrize("key", [7, uuid.UUID(int=7), "7", decimal.Decimal(7)])
    def test_keys_that_are_text(self, make_site: MakeSite, key: Any) -> None:
        """A number or a UUID is as good a key as a string."""
        site = make_site(SSE_PUBLIC_CHANNELS=["*"], SSE_MAX_STREAMS_PER_CLIENT=1)
        site.sse.client_key(lambda: key)
        site.open("/events/a").wait(1)
        refusal(site.get("/events/a"), 429)

    def test_key_without_a_text(self, make_site: MakeSite, caplog: pytest.LogCaptureFixture) -> None:
        """An object, whose text would be another in each request, is an error: it would limit nobody."""
        site = make_site(SSE_PUBLIC_CHANNELS=["*"], SSE_MAX_STREAMS_PER_CLIENT=1)
        site.sse.client_key(object)
        refusal(site.get("/events/a"), 500)
        assert "@sse.client_key's function returns a string, or what has a text of its own, or None" in caplog.text

    def test_per_worker(self, make_site: MakeSite) -> None:
        """A worker has a limit of its own, which is named."""
        site = make_site(SSE_PUBLIC_CHANNELS=["*"], SSE_MAX_STREAMS=1)
        site.open("/events/a").wait(1)
        refused = site.get("/events/a", environ_overrides={"REMOTE_ADDR": "10.0.0.9"})
        refusal(refused, 503)
        assert refused.get_json()["limit"] == "SSE_MAX_STREAMS" and refused.headers["Retry-After"]

    def test_refuse_with_a_retry(self, make_site: MakeSite) -> None:
        """`SSE_REFUSE = "retry"` answers with a stream that names the limit, tells the client to come back, and ends."""
        site = make_site(SSE_PUBLIC_CHANNELS=["*"], SSE_MAX_STREAMS_PER_CLIENT=1, SSE_REFUSE="retry")
        site.open("/events/a").wait(1)
        refused = site.get("/events/a")
        assert refused.status_code == 200 and refused.mimetype == "text/event-stream"
        comment, retry, *rest = refused.data.splitlines()
        assert comment.startswith(b":") and b"SSE_MAX_STREAMS_PER_CLIENT" in comment
        assert retry.startswith(b"retry: ") and rest == [b""]


class TestSignals:
    """What apps can connect to."""

    def test_life_of_a_stream(self, site: Site) -> None:
        """A stream is told of when it opens, and when it closes, with the reason; the sender is the app."""
        told: list[tuple[str, Any, Stream, Any]] = []

        def opened(sender: Flask, *, stream: Stream) -> None:
            told.append(("opened", sender, stream, None))

        def closed(sender: Flask, *, stream: Stream, reason: CloseReason) -> None:
            told.append(("closed", sender, stream, reason))

        with stream_opened.connected_to(opened, site.app), stream_closed.connected_to(closed, site.app):
            page = site.open("/events/news")
            page.wait(1)
            assert [(what, sender, stream.path) for what, sender, stream, _ in told] == [("opened", site.app, "/events/news")]
            page.close()
            wait_until(lambda: len(told) == 2)
            other = site.open("/events/news")
            site.sse.channel("news").close()
            other.wait_for_end()
            wait_until(lambda: len(told) == 4)
        assert [(what, reason) for what, _, _, reason in told] == [
            ("opened", None),
            ("closed", CloseReason.DISCONNECTED),
            ("opened", None),
            ("closed", CloseReason.COMPLETED),
        ]
        assert told[0][2] is told[1][2] and told[2][2] is told[3][2] and {sender for _, sender, _, _ in told} == {site.app}

    def test_event_published(self, open_site: Site) -> None:
        """An event is told of once the broker has it, with its channel and id, however it was published."""
        told: list[tuple[str, ServerSentEvent, str]] = []

        def published(sender: Flask, *, channel: str, event: ServerSentEvent, id: str) -> None:
            told.append((channel, event, id))

        with event_published.connected_to(published, open_site.app):
            first = open_site.sse.publish("1", channel="a")
            second = open_site.post("/events/b", data="2").get_json()["id"]
            third = open_site.sse.channel("c").close("3")
            with pytest.raises(InvalidEvent):
                open_site.sse.publish("4", id="")
        one, two, end = ServerSentEvent("1"), ServerSentEvent("2"), ServerSentEvent("3", event="stream-end")
        assert told == [("a", one, first), ("b", two, second), ("c", end, third)]

    def test_subscriber_dropped(self, make_site: MakeSite) -> None:
        """A client that is cut because it doesn't read is told of, as dropped and as closed."""
        site = make_site(SSE_PUBLIC_CHANNELS=["*"], SSE_HISTORY=8)
        told: list[tuple[str, CloseReason]] = []

        def dropped(sender: Flask, *, stream: Stream, reason: CloseReason) -> None:
            told.append(("dropped", reason))

        def closed(sender: Flask, *, stream: Stream, reason: CloseReason) -> None:
            told.append(("closed", reason))

        with subscriber_dropped.connected_to(dropped, site.app), stream_closed.connected_to(closed, site.app):
            response = site.get("/events/news")
            for number in range(30):
                site.sse.publish(str(number), channel="news")
            page = Page(response)
            site.pages.append(page)
            page.wait_for_end()
            wait_until(lambda: len(told) == 2)
        assert told == [("dropped", CloseReason.SLOW), ("closed", CloseReason.SLOW)]
        # The server must not end the response as if it were whole.
        assert isinstance(page.error, BrokenPipeError)

    def test_failing_receiver(self, site: Site, caplog: pytest.LogCaptureFixture) -> None:
        """A receiver that fails at a stream's end is logged and keeps nothing from being closed."""

        def fail(sender: Flask, **kwargs: Any) -> None:
            raise ValueError("a receiver failed")

        with stream_closed.connected_to(fail, site.app):
            site.open("/events/news").close()
            wait_until(lambda: "a receiver failed" in caplog.text)
        assert site.sse.stats()["streams"] == 0


class TestWsgi:
    """Subscriptions through the WSGI iterable: the guarantees of the worker's sockets, under any server."""

    def test_waiting_events(self, site: Site) -> None:
        """What is published while the server takes nothing arrives, once and in order, without another event to push it on."""
        response = site.get("/events/news")
        site.sse.publish("1", channel="news")
        site.sse.publish("2", channel="news")
        site.sse.publish("3", channel="news")
        page = Page(response)
        site.pages.append(page)
        assert [event.data for event in page.wait(4)[1:]] == ["1", "2", "3"]

    def test_publishers_in_threads(self, make_site: MakeSite) -> None:
        """Events from four native threads reach each stream complete and in order."""
        # A reader that gets no turn on a busy machine is no slow client here.
        site = make_site(SSE_PUBLIC_CHANNELS=["*"], SSE_HISTORY=4000)
        pages = [site.open("/events/a"), site.open("/events/?channel=a&channel=b")]
        for page in pages:
            page.wait(1)

        def publish(number: int) -> None:
            for count in range(500):
                site.sse.publish(f"{number} {count}", channel="ab"[number % 2])

        threads = [threading.Thread(target=publish, args=(number,), daemon=True) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        for page, expected in zip(pages, (1000, 2000), strict=True):
            events = page.wait(expected + 1, timeout=20)[1:]
            numbers = [int((event.id or "").partition("-")[2]) for event in events]
            assert numbers == sorted(set(numbers))

    def test_many_streams(self, site: Site) -> None:
        """Streams that come and go leave nothing behind."""
        with contextlib.ExitStack() as stack:
            for number in range(100):
                response = site.get(f"/events/{number % 7}")
                stack.callback(response.close)
            assert site.sse.stats()["subscriptions"] == 100
            for number in range(7):
                site.sse.publish("x", channel=str(number))
        assert site.sse.stats()["subscriptions"] == 0 and site.sse.stats()["streams"] == 0
