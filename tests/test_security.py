"""What docs/understand/security.md says is stopped, as far as no other test shows it; and that each test that it names is there."""

from __future__ import annotations

import ast
import base64
import contextlib
import io
import json
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from flask import Flask, abort, request
from flask.testing import FlaskClient
from itsdangerous import URLSafeSerializer
from werkzeug.test import TestResponse

from sseflask import SSE, EventDecoder, ServerSentEvent, process
from tests.live.process import wait_until

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs/understand/security.md"
SECRET = "a secret key"
#: What a client may write for the channel `private`, and for what is nobody's, after the prefix.
SPELLED = [
    "private",
    "private/",
    "private//",
    "%70rivate",
    "private%2F",
    "PRIVATE",
    "ｐrivate",
    "privat\u0435",
    "private%00",
    "private%20",
    "./private",
    "private/.",
    "x/../private",
    "news/../private",
    "-/../private",
    "news%2f..%2fprivate",
    "private?channel=news",
    "news?channel=private",
    "private%3Fchannel=news",
    "private;news",
    "?channel=private",
    "?channel=news&channel=private",
    "?channel=private&channel=news",
    "?channel=news,private",
    "?channel[]=private",
    "?Channel=private",
    "?channel=%70rivate",
    "-/run/0123",
    "-%2Fcontrol",
    "%2D/control",
    "?channel=-/control",
]


class Site:
    """An app with the blueprint, whose streams are looked at as far as they have come at once."""

    def __init__(self, **settings: Any) -> None:
        self.app = Flask("app")
        self.app.secret_key = SECRET
        self.app.config.update({"SSE_BROKER_URL": "memory://", **settings})
        self.sse = SSE()
        self.app.register_blueprint(self.sse, url_prefix="/events")

    @property
    def client(self) -> FlaskClient:
        """A client without cookies."""
        return self.app.test_client(use_cookies=False)

    def first(self, path: str, **options: Any) -> tuple[int, list[ServerSentEvent]]:
        """The status of a GET, and the events that its stream begins with."""
        response = self.client.get(path, **options)
        if response.mimetype != "text/event-stream":
            return response.status_code, []
        data = next(iter(response.response))
        assert isinstance(data, bytes)
        response.close()
        return response.status_code, EventDecoder().feed(data)

    def published(self) -> int:
        """The events that the broker has had."""
        count: int = self.sse.stats()["events_published"]
        return count


@pytest.fixture(autouse=True)
def _nothing_stays_open() -> Iterator[None]:
    yield
    wait_until(lambda: not process.current().streams, message="all streams have ended")


def channels_of(events: list[ServerSentEvent]) -> list[str]:
    """The channels that a stream says it is of."""
    return [name for event in events if event.event == "stream-open" for name in json.loads(event.data or "")["channels"]]


class TestPage:
    """docs/understand/security.md."""

    def test_each_test_exists(self) -> None:
        """Each test that the page names is there, and each row of its table of threats names one."""
        rows = [line for line in PAGE.read_text().splitlines() if line.startswith("| **")]
        assert len(rows) >= 20
        for row in rows:
            named = re.findall(r"`(tests/[\w/]+\.py)((?:::\w+)+)`", row)
            assert named, row
            for path, names in named:
                body: list[ast.stmt] = ast.parse((ROOT / path).read_text()).body
                for name in names.removeprefix("::").split("::"):
                    found = [node for node in body if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name]
                    assert found, f"{path}{names}"
                    body = found[0].body

    def test_no_rule_goes_by_the_address(self) -> None:
        """No page and no example shows a rule that goes by the client's address: behind a proxy on the same host it is anyone's."""
        pages = [*(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("*.py"), ROOT / "README.md"]
        assert [str(page) for page in pages if re.search(r"remote_addr\s*(==|in\b)", page.read_text())] == []


class TestInjection:
    """What a publisher sends stays within its field."""

    @pytest.mark.parametrize("field", ["event", "id"])
    @pytest.mark.parametrize("breaker", ["\n", "\r", "\r\n", "\0", "x\ndata: evil\n\n"])
    def test_fields(self, field: str, breaker: str) -> None:
        """A name or an id that would begin a line of its own, or that browsers drop, is refused; nothing is published."""
        site = Site()
        site.sse.authorize(lambda action, channel: True)
        for value in (breaker, f"a{breaker}", f"{breaker}b", f"a{breaker}b"):
            response = site.client.post("/events/news", json={"data": 1, field: value})
            assert response.status_code == 400 and field in response.get_json()["error"], value
        assert site.published() == 0

    @pytest.mark.parametrize("kind", ["application/json", "text/plain"])
    def test_data(self, kind: str) -> None:
        """Data is one event's whatever it has: line ends of any kind, fields, blank lines, what some clients take for line ends."""
        site = Site()
        site.sse.authorize(lambda action, channel: True)
        evil = "a\n\nevent: evil\rid: 7\r\n\r\nretry: 1\u2028data: b\u2029\x85\x0b\x0c\0:c\n"
        body = json.dumps({"data": evil, "event": "e\u2028\x85"}) if kind == "application/json" else evil
        _, opened = site.first("/events/news")
        assert site.client.post("/events/news", data=body.encode(), content_type=kind).status_code == 201
        _, (_, event) = site.first("/events/news", headers={"Last-Event-ID": opened[0].id})
        normal = evil.replace("\r\n", "\n").replace("\r", "\n")
        assert (event.data, event.event, event.retry) == (normal, "e\u2028\x85" if kind == "application/json" else None, None)
        written = event.encode().decode()
        assert all(re.match(r"(id|event|data): ?", line) for line in re.split(r"\r\n|\r|\n", written.removesuffix("\n\n")))


class TestOtherChannels:
    """One channel's events reach nobody who may not have them."""

    @pytest.mark.parametrize("spelled", SPELLED)
    def test_spellings(self, spelled: str) -> None:
        """However a request names it, a closed channel isn't read: where it opens something, that is another channel."""
        site = Site(SSE_PUBLIC_CHANNELS=["news", "news/*"])
        site.sse.publish("the secret", channel="private")
        status, events = site.first(f"/events/{spelled}", headers={"Last-Event-ID": "000000000000-0"})
        assert status in (200, 400, 403, 404)
        assert "private" not in channels_of(events) and "the secret" not in str(events)

    @pytest.mark.parametrize("spelled", SPELLED)
    def test_spellings_where_all_is_open(self, spelled: str) -> None:
        """And what the app's rule is asked for is what is opened, character by character."""
        site = Site()
        asked: list[str] = []

        @site.sse.authorize
        def rule(action: str, channel: str) -> bool:
            asked.append(channel)
            return True

        _, events = site.first(f"/events/{spelled}")
        assert channels_of(events) == asked

    def test_position_of_another_channel(self) -> None:
        """A position says where, not what: that of a closed channel's event replays only what the client may have."""
        site = Site(SSE_PUBLIC_CHANNELS=["news"])
        site.sse.publish("before", channel="news")
        position = site.sse.publish("the secret", channel="private")
        site.sse.publish("after", channel="news")
        _, events = site.first("/events/news", headers={"Last-Event-ID": position})
        assert [event.data for event in events[1:]] == ["after"]

    def test_own_id_of_another_channel(self) -> None:
        """Whether a closed channel has an event of some id can't be told: the answer is that to an id which nobody gave."""
        site = Site(SSE_PUBLIC_CHANNELS=["news"])
        site.sse.publish("x", channel="news")
        site.sse.publish("the secret", channel="private", id="order-7")
        answers = []
        for asked in ("order-7", "order-8"):
            _, events = site.first("/events/news", headers={"Last-Event-ID": asked})
            answers.append(str(events).replace(asked, "…"))
        assert answers[0] == answers[1] and "unknown_id" in answers[0] and "secret" not in answers[0]

    def test_keys(self) -> None:
        """An `Idempotency-Key` is one channel's: no publisher's key can be made to stand for a publish to another channel."""
        site = Site()
        site.sse.authorize(lambda action, channel: True)
        pairs = [("a", "b c"), ("a b", "c"), ("a b c", "c"), ("a", "b  c"), ("a b", " c")]
        ids = []
        for channel, key in pairs:
            response = site.client.post(f"/events/{quote(channel)}", data="x", headers={"Idempotency-Key": key})
            ids.append(response.get_json()["id"])
        assert len(set(ids)) == len(pairs) == site.published()


class TestTokens:
    """What a token doesn't do, and where it doesn't appear."""

    def test_other_forms(self) -> None:
        """What was signed otherwise, or not at all, is no token: JSON Web Tokens without an algorithm, other structures, bombs."""
        site = Site()

        def encoded(data: object) -> str:
            return base64.urlsafe_b64encode(json.dumps(data).encode()).decode().rstrip("=")

        payload = [["private"], "subscribe", time.time() + 100]
        # A bomb that is unpacked only once its signature is right.
        bomb = URLSafeSerializer("another", salt="sseflask.token").dumps("x" * 10_000_000)
        for token in (
            f"{encoded({'alg': 'none'})}.{encoded({'channels': ['private']})}.",
            f"{encoded(payload)}.",
            f"{encoded(payload)}.{encoded('')}",
            encoded(payload),
            bomb,
        ):
            response = site.client.get("/events/private", headers={"Authorization": f"Bearer {token}"})
            assert response.status_code == 401 and token not in response.text

    def test_each_action_is_another(self) -> None:
        """A token for one action allows no other, for the same channel."""
        site = Site()
        allowed: dict[str, list[str]] = {}
        for action, channel in (("subscribe", "a"), ("publish", "a"), ("inspect", "*")):
            headers = {"Authorization": f"Bearer {site.sse.sign(channel, action=action)}"}
            answers = {
                "subscribe": site.first("/events/a", headers=headers)[0],
                "publish": site.client.post("/events/a", data="x", headers=headers).status_code,
                "inspect": site.client.get("/events/-/stats", headers=headers).status_code,
            }
            allowed[action] = [name for name, status in answers.items() if status < 300]
        assert allowed == {action: [action] for action in allowed}

    def test_the_address_is_told_to_nobody(self) -> None:
        """No answer has the token, and no browser tells the address that it came with to other sites."""
        site = Site(SSE_PUBLIC_CHANNELS=["news"])
        token = site.sse.sign("news", "private")
        for path in ("news", "other", "private", "-/health", "-/client.js", "-/stats", "a%00", "?channel=other"):
            response = site.client.get(f"/events/{path}{'&' if '?' in path else '?'}token={token}")
            assert response.headers["Referrer-Policy"] == "no-referrer" and response.headers["X-Content-Type-Options"] == "nosniff"
            first = b"" if response.status_code == 304 else next(iter(response.response), b"")
            assert token not in str(first) + str(response.headers)
            assert not any(token in repr(stream) for stream in process.current().streams)
            response.close()


class Unread(io.RawIOBase):
    """A request's body that must not be read."""

    def readable(self) -> bool:
        """It looks like any other."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fails."""
        raise AssertionError("the body of a request that is refused was read")


class TestExhaustion:
    """What one client can make the server hold."""

    def test_refused_bodies_are_not_read(self) -> None:
        """Who may not publish is answered before the body is read, however slowly it comes; nor is one read that is too large."""
        site = Site()

        def post(length: int) -> TestResponse:
            overrides = {"wsgi.input": io.BufferedReader(Unread()), "CONTENT_LENGTH": str(length)}
            return site.client.post("/events/news", environ_overrides=overrides)

        assert post(10).status_code == 403
        site.sse.authorize(lambda action, channel: True)
        assert post(10**9).status_code == 413

    def test_endless_bodies(self) -> None:
        """A body without a length is read as far as an event may have bytes, and no further."""
        site = Site(SSE_MAX_EVENT_BYTES=1024)
        site.sse.authorize(lambda action, channel: True)
        for kind in ("text/plain", "application/json"):
            body = io.BytesIO(b"[" * 10**6)
            options: dict[str, Any] = {"environ_overrides": {"wsgi.input_terminated": True}, "content_type": kind}
            assert site.client.post("/events/news", input_stream=body, **options).status_code == 413
            assert body.tell() < 100_000
        assert site.published() == 0

    def test_names_and_positions(self) -> None:
        """Names, keys and positions beyond their bounds are refused or ignored, and what they would have cost isn't spent."""
        site = Site(SSE_PUBLIC_CHANNELS=["*"])
        site.sse.authorize(lambda action, channel: True)
        assert site.first(f"/events/{'x' * 201}")[0] == 400
        assert site.first("/events/?" + "&".join(f"channel={n}" for n in range(33)))[0] == 400
        assert site.client.post("/events/a", data="x", headers={"Idempotency-Key": "k" * 201}).status_code == 400
        for asked in ("9" * 100_000, f"{'a' * 12}-{'9' * 5000}", f"{'a' * 32}-{'9' * 5000}!", "-" * 50_000):
            status, events = site.first("/events/a", headers={"Last-Event-ID": asked})
            assert status == 200 and events

    def test_channels_that_nobody_uses(self) -> None:
        """Subscribing to any number of names, one after the other, leaves nothing behind."""
        site = Site(SSE_PUBLIC_CHANNELS=["*"])
        for number in range(300):
            site.first(f"/events/room-{number}")
        wait_until(lambda: not process.current().streams)
        assert site.sse.emitter.channels() == [] and site.sse.stats()["channels"] == 0
        assert not any(f"room-{number}" in site.sse.installation.broker.log for number in range(300))

    def test_snapshots_are_not_run_for_who_is_refused(self) -> None:
        """What a snapshot costs is spent on those only who get a stream's response."""
        site = Site()
        runs: list[int] = []

        def view() -> Any:
            return site.sse.subscribe("a", snapshot=lambda: runs.append(1))

        site.app.add_url_rule("/own", "own", view)
        site.first("/events/a")
        assert runs == []
        site.first("/own")
        assert runs == [1]

    def test_many_at_once(self) -> None:
        """Clients that come together beyond the limit get the refusal; no more streams than that are open at any time."""
        site = Site(SSE_PUBLIC_CHANNELS=["a"], SSE_MAX_STREAMS=5)
        answers: list[TestResponse] = []

        def open_one() -> None:
            response = site.client.get("/events/a")
            with contextlib.suppress(StopIteration):
                next(iter(response.response))
            answers.append(response)

        threads = [threading.Thread(target=open_one) for _ in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        assert sorted(answer.status_code for answer in answers) == [200] * 5 + [503] * 15
        assert site.sse.stats()["streams"] == 5
        for answer in answers:
            answer.close()


class TestErrors:
    """What errors tell."""

    def test_nothing_of_the_inside(self, caplog: pytest.LogCaptureFixture) -> None:
        """A fault of the app's rule is a plain 500: no traceback, no name of a class, no text of the error."""
        site = Site()

        @site.sse.authorize
        def rule(action: str, channel: str) -> bool:
            raise RuntimeError(f"password=geheim {request.path}")

        site.app.config["PROPAGATE_EXCEPTIONS"] = False
        for response in (site.client.get("/events/a"), site.client.post("/events/a", data="x")):
            assert response.status_code == 500 and "geheim" not in response.text and "RuntimeError" not in response.text
        assert "geheim" in caplog.text

    @pytest.mark.parametrize("url", ["sqlite:////proc/inside/x.db", "redis://user:geheim@127.0.0.1:1/0"])
    def test_nothing_of_where_the_broker_is(
        self, url: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Without its broker an app says so and no more, to anybody; the log says where it is, but not each time it is asked."""
        site = Site(SSE_BROKER_URL=url, SSE_BROKER_TIMEOUT=0.5, SSE_PUBLIC_CHANNELS=["*"])
        monkeypatch.setattr(process.current(), "_broker_due", 0.0)
        site.app.add_url_rule("/own", "own", lambda: str(site.sse.publish("x")))
        inside = "/proc/inside/x.db" if url.startswith("sqlite") else "127.0.0.1:1"
        client, token = site.client, site.sse.sign("*", action="inspect")
        for path in ("/events/-/health", "/events/-/health?token=nonsense", "/events/a", "/own"):
            response = client.get(path)
            assert response.status_code == 503, path
            assert inside not in response.text and "the broker can't be reached" in response.text
        assert [inside in record.getMessage() for record in caplog.records if "answered 503" in record.getMessage()] == [True]
        assert inside in client.get(f"/events/-/health?token={token}").get_json()["problem"]
        site.app.debug = True
        for path in ("/events/-/health", "/events/a", "/own"):
            assert inside in client.get(path).text
        assert "geheim" not in caplog.text

    def test_health_asks_the_rule(self) -> None:
        """What is wrong with the broker the app's rule opens to whom it lets inspect; health is 503 all the same."""
        for says, shown in ((True, True), (False, False), (None, False), ("yes", False), (KeyError("user"), False), (401, False)):

            def rule(action: str, channel: str, says: Any = says) -> Any:
                assert (action, channel) == ("inspect", "*")
                if isinstance(says, int) and not isinstance(says, bool):
                    abort(says)
                if isinstance(says, Exception):
                    raise says
                return says

            site = Site(SSE_BROKER_URL="sqlite:////proc/inside/x.db", SSE_BROKER_TIMEOUT=0.5)
            site.sse.authorize(rule)
            response = site.client.get("/events/-/health")
            assert response.status_code == 503 and ("/proc/inside" in response.text) == shown, says
