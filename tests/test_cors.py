"""`SSE_CORS_ORIGINS`: whose pages may use the blueprint's routes, and what browsers are told."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from flask import Flask, Response, abort
from flask.testing import FlaskClient
from flask_cors import CORS
from werkzeug.test import TestResponse

from sseflask import SSE, process
from tests.live.process import wait_until

OURS, ALSO_OURS, FOREIGN = "https://app.example.com", "http://localhost:5173", "https://evil.example"
PREFLIGHT = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,content-type"}


class Site:
    """An app whose blueprint serves pages of some origins."""

    def __init__(self, *origins: str, **settings: Any) -> None:
        self.app = Flask("app")
        self.app.secret_key = "a secret"
        self.app.config.update(SSE_BROKER_URL="memory://", SSE_PUBLIC_CHANNELS=["news"], SSE_CORS_ORIGINS=list(origins), **settings)
        self.sse = SSE()

    @property
    def client(self) -> FlaskClient:
        """A client; the blueprint is registered when it is first asked for."""
        if "sse" not in self.app.blueprints:
            self.app.register_blueprint(self.sse, url_prefix="/events")
        return self.app.test_client()

    def ask(self, method: str, path: str, origin: str | None = OURS, headers: Any = (), **options: Any) -> TestResponse:
        """A response to a page of an origin, as far as its headers."""
        headers = dict(headers) | ({"Origin": origin} if origin else {})
        return self.client.open(path, method=method, headers=headers, **options)


@pytest.fixture(autouse=True)
def _nothing_stays_open() -> Iterator[None]:
    yield
    for stream in list(process.current().streams):
        stream.sink_ended()
    wait_until(lambda: not process.current().streams)


def told(response: TestResponse | Response) -> dict[str, str]:
    """What a response tells a browser about origins."""
    return {name.lower(): value for name, value in response.headers if name.lower().startswith(("access-control-", "vary"))}


ALLOWED = {
    "access-control-allow-origin": OURS,
    "access-control-allow-credentials": "true",
    "access-control-expose-headers": "Retry-After",
    "vary": "Origin",
}

#: Requests to the routes of each kind, and their status.
REQUESTS = [
    ("GET", "/events/news", 200),
    ("GET", "/events/?channel=news", 200),
    ("GET", "/events/secret", 403),
    ("GET", "/events/news%00", 400),
    ("POST", "/events/news", 403),
    ("GET", "/events/-/health", 200),
    ("GET", "/events/-/client.js", 200),
    ("GET", "/events/-/stats", 403),
    ("GET", "/events/-/metrics", 403),
    ("GET", "/events/news?token=bad", 200),
    ("GET", "/events/secret?token=bad", 401),
]


@pytest.mark.parametrize(("method", "path", "status"), REQUESTS)
def test_all_routes(method: str, path: str, status: int) -> None:
    """A page of ours may read each answer, errors too; one of another origin none; both are told apart by caches."""
    site = Site(OURS, ALSO_OURS)
    response = site.ask(method, path)
    assert response.status_code == status and told(response) == ALLOWED
    assert told(site.ask(method, path, ALSO_OURS))["access-control-allow-origin"] == ALSO_OURS
    for other in (
        FOREIGN,
        None,
        "null",
        "*",
        OURS.upper(),
        f"{OURS}:443",
        f"{OURS}.evil.example",
        "https://example.com",
        f"{OURS}, {FOREIGN}",
    ):
        assert told(site.ask(method, path, other)) == {"vary": "Origin"}, other
    assert told(Site().ask(method, path)) == {}


def test_what_comes_instead_of_a_stream() -> None:
    """A page may read why it gets no stream, though that is decided after the view: 503 with `Retry-After`, 204, `"retry"`."""
    site = Site(OURS, SSE_MAX_STREAMS=1)
    opened = site.ask("GET", "/events/news")
    assert next(iter(opened.response)) and site.sse.stats()["streams"] == 1
    refused = site.ask("GET", "/events/news")
    assert refused.status_code == 503 and refused.headers["Retry-After"] and told(refused) == ALLOWED
    assert refused.headers["X-Content-Type-Options"] == "nosniff" and refused.headers["Referrer-Policy"] == "no-referrer"
    assert told(site.ask("GET", "/events/news", FOREIGN)) == {"vary": "Origin"}
    opened.close()
    end = site.sse.channel("news").close()
    ended = site.ask("GET", "/events/news", headers={"Last-Event-ID": f"{end}!"})
    assert ended.status_code in (200, 204) and told(ended) == ALLOWED
    site = Site(OURS, SSE_MAX_STREAMS=1, SSE_REFUSE="retry")
    opened = site.ask("GET", "/events/news")
    assert next(iter(opened.response))
    refused = site.ask("GET", "/events/news")
    assert refused.data.startswith(b": refused") and told(refused) == ALLOWED


@pytest.mark.parametrize("path", ["/events/news", "/events/", "/events", "/events/secret", "/events/-/stats"])
def test_preflight(path: str) -> None:
    """A preflight learns what a page of ours may send, and of another origin nothing; nobody is asked, nothing is opened."""
    site = Site(OURS)
    site.sse.before_request(lambda: abort(401))

    @site.sse.authorize
    def rule(action: str, channel: str) -> bool:
        raise AssertionError("a preflight has no cookies: nobody can be asked for any")

    response = site.ask("OPTIONS", path, headers=PREFLIGHT)
    assert response.status_code == 204 and response.data == b""
    assert told(response) == ALLOWED | {
        "access-control-allow-methods": "GET, HEAD, POST",
        "access-control-allow-headers": "Authorization, Cache-Control, Content-Type, Idempotency-Key, Last-Event-ID",
        "access-control-max-age": "7200",
    }
    foreign = site.ask("OPTIONS", path, FOREIGN, headers=PREFLIGHT)
    assert foreign.status_code == 204 and told(foreign) == {"vary": "Origin"}
    # What is no preflight meets the guard like any other request.
    assert site.ask("OPTIONS", path).status_code == 401
    assert Site().ask("OPTIONS", path, headers=PREFLIGHT).status_code == 200
    assert site.sse.stats()["streams"] == 0 and site.sse.emitter.channels() == []


def test_any_origin() -> None:
    """With `"*"` any page may use what needs no cookie; with origins beside it, those may bring theirs."""
    any_origin = {"access-control-allow-origin": "*", "access-control-expose-headers": "Retry-After"}
    assert told(Site("*").ask("GET", "/events/news", FOREIGN)) == any_origin
    both = Site("*", OURS)
    assert told(both.ask("GET", "/events/news", FOREIGN)) == any_origin | {"vary": "Origin"}
    assert told(both.ask("GET", "/events/news")) == ALLOWED
    assert told(both.ask("OPTIONS", "/events/news", FOREIGN, headers=PREFLIGHT))["access-control-allow-origin"] == "*"


def test_other_views_are_untouched() -> None:
    """What isn't the blueprint's says nothing of origins."""
    site = Site(OURS)
    site.app.add_url_rule("/own", "own", lambda: site.sse.subscribe("news"))
    response = site.ask("GET", "/own")
    assert response.status_code == 200 and told(response) == {}


def test_flask_cors_for_own_views() -> None:
    """Flask-CORS serves an app's own streams, their refusals too, and leaves what the blueprint says alone."""
    site = Site(OURS, SSE_MAX_STREAMS=1)
    site.app.add_url_rule("/own", "own", lambda: site.sse.subscribe("news"))
    site.app.add_url_rule("/count", "count", site.sse.stream(lambda: iter(range(3))))
    CORS(site.app, origins=[OURS, ALSO_OURS], supports_credentials=True, expose_headers=["Retry-After"])
    assert told(site.ask("GET", "/count")) == ALLOWED
    opened = site.ask("GET", "/own")
    assert told(opened) == ALLOWED and next(iter(opened.response))
    refused = site.ask("GET", "/own")
    assert refused.status_code == 503 and told(refused) == ALLOWED
    assert "access-control-allow-origin" not in told(site.ask("GET", "/own", FOREIGN))
    for method in ("GET", "OPTIONS"):
        response = site.ask(method, "/events/-/health", headers=PREFLIGHT)
        assert response.headers.getlist("Access-Control-Allow-Origin") == [OURS]
