"""docs/reference/openapi.yaml: it is complete, and what the routes answer to any request is what it says."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import schemathesis
import yaml
from flask import Flask
from hypothesis import HealthCheck, Phase, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from sseflask import SSE, EventDecoder, process
from tests.live.process import wait_until

DOCUMENT: dict[str, Any] = yaml.safe_load((Path(__file__).resolve().parents[1] / "docs/reference/openapi.yaml").read_text())
PREFIX = DOCUMENT["servers"][0]["url"]
#: Not those that an unknown method is refused by 405, and a header that we don't know by 400: a channel may have any path.
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
METHODS = ("get", "post", "put", "delete", "patch")


def make_app() -> tuple[Flask, SSE]:
    """An app that lets anyone do anything, whose streams end by themselves."""
    app = Flask("app")
    app.secret_key = "a secret"
    app.config.update(SSE_BROKER_URL="memory://", SSE_MAX_AGE=0.02)
    sse = SSE()
    sse.authorize(lambda action, channel: True)
    app.register_blueprint(sse, url_prefix=PREFIX)
    return app, sse


APP, EXTENSION = make_app()
SCHEMA = schemathesis.openapi.from_dict(DOCUMENT)
SCHEMA.app = APP


def resolved(found: Any) -> Any:
    """A part of the document with all references replaced by what they mean."""
    if isinstance(found, list):
        return [resolved(each) for each in found]
    if not isinstance(found, dict):
        return found
    if "$ref" in found:
        part: Any = DOCUMENT
        for name in found["$ref"].removeprefix("#/").split("/"):
            part = part[name]
        return resolved(part)
    return {name: resolved(value) for name, value in found.items()}


def described_events() -> dict[str, Any]:
    """The events of all streams by name; no name means one thing here and another there."""
    found: dict[str, Any] = {}
    for item in resolved(DOCUMENT["paths"]).values():
        streams = item["get"]["responses"]["200"]["content"].get("text/event-stream", {})
        for name, event in streams.get("x-events", {}).items():
            assert found.setdefault(name, event)["data"] == event["data"]
    return found


EVENTS = described_events()


def check_events(text: bytes) -> list[str | None]:
    """Holds the events of a stream against the document; returns their names."""
    events = EventDecoder().feed(text)
    for event in events:
        known = EVENTS.get(event.event)
        if known is not None and known["data"] is not True:
            jsonschema.validate(json.loads(event.data or ""), known["data"], format_checker=jsonschema.FormatChecker())
    return [event.event for event in events]


@pytest.fixture(autouse=True)
def _all_streams_end() -> Iterator[None]:
    yield
    wait_until(lambda: not process.current().streams, message="all streams have ended")


def test_routes() -> None:
    """The document has each route of the blueprint with its methods, and no other."""
    told = {(path, method) for path, item in DOCUMENT["paths"].items() for method in item if method in METHODS}
    there = {
        (re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", rule.rule.removeprefix(PREFIX)), method.lower())
        for rule in APP.url_map.iter_rules()
        if rule.endpoint.startswith("sse.")
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
    }
    assert there - told == set(), "routes that docs/reference/openapi.yaml lacks: describe them there"
    assert told - there == set(), "routes of docs/reference/openapi.yaml that the blueprint hasn't"


def test_the_document_is_valid() -> None:
    """It is an OpenAPI document, and each reference in it leads somewhere."""
    SCHEMA.validate()
    assert resolved(DOCUMENT)["openapi"].startswith("3.1.")


def test_each_error_is_json() -> None:
    """Each refusal that the document tells of is JSON, but for Flask's own 404."""
    for path, item in resolved(DOCUMENT["paths"]).items():
        for method, operation in item.items():
            if method in METHODS:
                for status, answer in operation["responses"].items():
                    if status >= "400" and status != "404" and path != "/-/health":
                        assert list(answer["content"]) == ["application/json"], (path, status)


def test_events() -> None:
    """The events of a stream's opening, reset, end and errors have the data that the document says."""
    client = APP.test_client()
    seen = check_events(client.get(f"{PREFIX}/told").data)
    seen += check_events(client.get(f"{PREFIX}/told", headers={"Last-Event-ID": "nonsense"}).data)
    closed = client.get(f"{PREFIX}/told")
    EXTENSION.channel("told").close()
    seen += check_events(closed.data)
    app, sse = make_app()
    app.extensions["sse"].decorated.rules.pop("authorize", None)
    seen += check_events(app.test_client().get(f"{PREFIX}/told?token={sse.sign('told', expires_in=0.01)}").data)
    seen += check_events(client.get(f"{PREFIX}/-/dashboard/events").data)
    assert {"stream-open", "stream-reset", "numbers"} <= set(seen) <= set(EVENTS)


@SCHEMA.parametrize()
@settings(
    max_examples=12,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
def test_answers(case: schemathesis.Case) -> None:
    """Whatever is asked of a route, rightly or wrongly, its answer is one that the document has, and no fault of the server's."""
    response = case.call()
    if response.headers["content-type"][0].startswith("text/event-stream"):
        check_events(response.content)
    case.validate_response(response, checks=CHECKS)
