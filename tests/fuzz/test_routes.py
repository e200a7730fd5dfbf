"""Any request to any route: never a fault of the server's, nothing left open, nothing published but with 201, no secret told."""

from __future__ import annotations

import functools
import io
import logging
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import pytest
from flask import Flask, request
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from werkzeug.test import EnvironBuilder, run_wsgi_app

from sseflask import SSE, event_published, process
from tests.live.process import wait_until

MARK = "geheim"
OPEN = {"X-User": "ann"}


class Site:
    """An app whose secrets are marked, with a public channel, one that a user may use, and one for a token.

    Attributes:
        seen: The statuses that were answered.
    """

    def __init__(self) -> None:
        self.seen: set[int] = set()
        self.app = Flask("app")
        self.app.secret_key = f"{MARK}-key"
        self.app.config.update(
            SSE_BROKER_URL="memory://", SSE_PUBLIC_CHANNELS=["news"], SSE_CORS_ORIGINS=["https://app.example.com"]
        )
        self.sse = SSE()
        self.sse.authorize(lambda action, channel: request.headers.get("X-User") == "ann")
        self.app.register_blueprint(self.sse, url_prefix="/events")
        self.app.add_url_rule("/run", "run", self.sse.stream(self.run, resumable=True), methods=["GET", "POST"])
        self.app.add_url_rule("/count", "count", self.sse.stream(lambda: iter(range(3)), lifecycle=True, negotiate=True))
        self.app.add_url_rule("/task/<task_id>", "task", self.sse.task_response)
        with self.app.app_context():
            # For long enough that its text stays the same in all examples but for its signature's time.
            self.token = self.sse.sign("news", "private", expires_in=10**6)
            self.sse.publish("private", channel="private")

    def run(self) -> Iterator[str]:
        """A resumable stream's generator."""
        yield "one"


def noted(published: list[str], sender: Flask, *, channel: str, **more: object) -> None:
    """Notes the channel of an event that was published."""
    published.append(channel)


@pytest.fixture(scope="module")
def site() -> Site:
    """One for all requests: what one has broken, the next ones show."""
    return Site()


TEXTS = st.text(max_size=30) | st.sampled_from(
    ["a\r\nX-Evil: 1", "\0", "\u2028", "é", "../x", "-/control", "-/run/x", "%2e%2e%2f", "x" * 300]
)
NAMES = (
    st.sampled_from(
        [
            "news",
            "private",
            "NEWS",
            "ｎews",
            "news/",
            "/news",
            "-/stats",
            "-/health",
            "-/metrics",
            "-/client.js",
            "-/channels",
            "-/dashboard",
            "-/dashboard/events",
            "-/",
            "",
        ]
    )
    | TEXTS
)
#: Most are of what is there, so that what comes after the path and the method is looked at too.
KNOWN = (
    ["/events/news"] * 6 + ["/events/private"] * 4 + ["/events"] * 3 + ["/run"] * 2 + ["/count", "/task/x", "/events/-/channels"]
)
PATHS = st.one_of(*[st.sampled_from(KNOWN)] * 4, NAMES.map(lambda name: f"/events/{name}"), NAMES.map(lambda name: f"/task/{name}"))
METHODS = st.sampled_from(["GET"] * 6 + ["POST"] * 6 + ["HEAD", "OPTIONS", "PUT", "DELETE", "PROPFIND", "get"])
VALUES = (
    st.sampled_from(
        ["news", "private", "TOKEN", "BADTOKEN", "0123456789ab-1", "0123456789ab-1!", f"{'a' * 32}-0", f"{'a' * 32}-1!", "1", "-1"]
    )
    | TEXTS
)
QUERIES = st.lists(
    st.tuples(
        st.sampled_from(["channel", "token", "lastEventId", "last_event_id", "Channel", "%74oken", "search", "page", "per_page"]),
        VALUES,
    ),
    max_size=5,
)
#: What a server lets through in a header's value: Latin-1 without line ends and NUL.
HEADER = (VALUES | st.text(st.characters(max_codepoint=255), max_size=40)).map(
    lambda text: text.encode("utf-8").decode("latin-1").translate(dict.fromkeys(range(32))).replace("\x7f", "")
)
HEADERS = st.dictionaries(
    st.sampled_from(
        [
            "Last-Event-ID",
            "Authorization",
            "Cookie",
            "Idempotency-Key",
            "Accept",
            "Origin",
            "Content-Type",
            "X-Request-ID",
            "Host",
            "Access-Control-Request-Method",
            "If-None-Match",
            "Range",
            "X-User",
            "Content-Length",
            "Transfer-Encoding",
            "X-Forwarded-For",
        ]
    ),
    HEADER
    | st.sampled_from(["Bearer TOKEN", "Bearer", "sse_token=TOKEN", "sse_token=BADTOKEN", "https://app.example.com", "null", "*"])
    | st.sampled_from(
        ["application/json", "application/json; charset=utf-16", "text/event-stream", "text/event-stream;q=0, */*", "5", "-1"]
    ),
    max_size=6,
)
BODIES = (
    st.sampled_from([b'{"data": 1, "event": "e"}', b"x", b'{"data": "x", "retry": 5}'])
    | st.sampled_from(
        [
            b"",
            b"x",
            b"\xff\xfe",
            b'{"data": 1}',
            b'{"data": "x", "event": "a\\nid: 7"}',
            b'{"data": 1, "id": "0123456789ab-1"}',
            b"{",
            b"[" * 5000,
            b'{"data": NaN}',
            b'{"data": "\\ud800"}',
            b'{"data": 1, "retry": 1e999}',
            b'{"data": 1, "retry": true}',
            b'{"data": 1, "retry": %s}' % (b"9" * 5000),
            b'{"data": 1, "data": 2}',
            b'{"data": null}',
            b"null",
            b'{"event": "x"}',
            b'{"data": 1, "\\u0000": 1}',
            b"x" * 20_000,
        ]
    )
    | st.binary(max_size=60)
)


@given(
    METHODS,
    PATHS,
    QUERIES,
    HEADERS,
    BODIES,
    st.sampled_from([{}, {**OPEN}, {**OPEN, "Content-Type": "application/json"}]),
)
@settings(
    max_examples=500,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
def test_any_request(
    site: Site,
    caplog: pytest.LogCaptureFixture,
    method: str,
    path: str,
    query: list[tuple[str, str]],
    headers: dict[str, str],
    body: bytes,
    more: dict[str, str],
) -> None:
    """Each answer is no fault, is about what was asked, leaves no stream, publishes with 201 only, and tells and logs no secret."""

    def filled(name: str, text: str) -> str:
        if name not in ("token", "%74oken", "Authorization", "Cookie"):
            # Whoever sends a token as something else has told it.
            return text
        return text.replace("BADTOKEN", f"{site.token}{MARK}").replace("TOKEN", site.token)

    published: list[str] = []
    caplog.clear()
    builder = EnvironBuilder(
        method=method,
        headers={name: filled(name, value) for name, value in headers.items()} | more,
        input_stream=io.BytesIO(body),
    )
    environ = builder.get_environ()
    # As servers give them, whatever is in them: a path's bytes as Latin-1, and a query as it came.
    environ["PATH_INFO"] = path.encode().decode("latin-1")
    pairs = [(name, filled(name, value)) for name, value in query]
    environ["QUERY_STRING"] = "&".join(f"{name}={quote(value)}" for name, value in pairs)
    environ["CONTENT_LENGTH"] = headers.get("Content-Length", str(len(body)))
    note = functools.partial(noted, published)
    with caplog.at_level(logging.DEBUG), event_published.connected_to(note, site.app):
        answer, status, told = run_wsgi_app(site.app, environ)
        first: Any = next(iter(answer), b"")
        close = getattr(answer, "close", None)
        if close is not None:
            close()
        for stream in list(process.current().streams):
            stream.sink_ended()
    code = int(status.split()[0])
    site.seen.add(code)
    assert code < 500, (status, first)
    # The same key again publishes nothing again.
    assert published == [] or (code == 201 and len(published) == 1)
    assert code != 201 or method == "POST"
    secrets = [MARK, site.token.rpartition(".")[2]]
    # A redirect goes to the address that was asked for.
    shown = [str(first), str([header for header in told if header[0] != "Location"]), caplog.text] if code != 308 else [caplog.text]
    assert not [secret for secret in secrets if any(secret in text for text in shown)]
    assert not any("\r" in value or "\n" in value for _, value in told)
    assert "Traceback" not in caplog.text
    if code == 200 and b'"channels"' in first and headers.get("X-User") != "ann" and not more:
        # All that is open to who isn't Ann: a public channel, and what the token is for.
        opened = first.partition(b'"channels":')[2].partition(b"}")[0]
        assert opened in (b'["news"]', b'["private"]', b'["news","private"]', b'["private","news"]')
        assert b"private" not in opened or site.token in environ["QUERY_STRING"] + environ.get(
            "HTTP_AUTHORIZATION", ""
        ) + environ.get("HTTP_COOKIE", "")


def test_nothing_is_left(site: Site) -> None:
    """After all of them, which met each kind of answer, no stream is open, and no channel is listened to."""
    assert site.seen == set() or {200, 201, 400, 401, 403, 404, 405} <= site.seen
    wait_until(lambda: not process.current().streams, message="all streams have ended")
    wait_until(lambda: site.sse.stats()["subscriptions"] == 0, message="nobody subscribes")
