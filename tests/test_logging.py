"""The lines that are logged: one logger for each concern, facts beside the text, levels that an operator would choose."""

from __future__ import annotations

import ast
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from flask import Flask, g

from sseflask import SSE, BrokerUnavailable, current_stream, process
from sseflask.brokers import SharedBroker, make_broker
from sseflask.config import Settings
from sseflask.response import EventSourceResponse
from tests.live.process import wait_until
from tests.test_subscription import World

ROOT: Final = Path(__file__).resolve().parents[1]
PAGE: Final = (ROOT / "docs/reference/logging.md").read_text()
METHODS: Final = {"debug", "info", "warning", "error", "exception", "critical"}


def calls() -> Iterator[tuple[str, ast.Call]]:
    """Each call that logs a line: where it is, and what."""
    for path in sorted((ROOT / "sseflask").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in METHODS:
                logger = ast.unparse(node.func.value)
                if logger == "log" or "getLogger" in logger:
                    yield f"{path.relative_to(ROOT)}:{node.lineno}", node


def test_each_line_has_facts() -> None:
    """Each line that is logged has facts beside its text."""
    found = list(calls())
    assert len(found) > 25
    without = [where for where, call in found if not any(keyword.arg == "extra" for keyword in call.keywords)]
    assert not without


def test_facts_and_loggers_are_documented() -> None:
    """docs/reference/logging.md has each logger and each fact, and no others."""
    facts, loggers = set(), set()
    for path in (ROOT / "sseflask").rglob("*.py"):
        text = path.read_text()
        loggers |= set(re.findall(r'getLogger\("(sseflask\.\w+)"\)', text))
        facts |= set(re.findall(r'"(sse_[a-z_]+)"', text))
    assert loggers == set(re.findall(r"^\| `(sseflask\.\w+)`", PAGE, re.MULTILINE))
    told = {name for row in re.findall(r"^\| (`sse_.*?) \|", PAGE, re.MULTILINE) for name in re.findall(r"`(sse_\w+)`", row)}
    # The cookie isn't one.
    assert facts - {"sse_token"} == told


def closing_lines(caplog: pytest.LogCaptureFixture) -> list[Any]:
    """The lines on streams that have ended."""
    return [record for record in caplog.records if record.getMessage().startswith("stream closed")]


def test_the_line_of_an_end(caplog: pytest.LogCaptureFixture) -> None:
    """A stream's last line has its facts, at the level of what is usual, also for a client that hung up."""
    caplog.set_level(logging.DEBUG, "sseflask")
    world = World()
    client = world.connect()
    world.publish("a", "b")
    client.hang_up()
    wait_until(lambda: closing_lines(caplog))
    (line,) = closing_lines(caplog)
    assert (line.name, line.levelname) == ("sseflask.stream", "INFO")
    stream = client.sink.stream
    assert (line.sse_stream, line.sse_path, line.sse_reason) == (stream.id, "/", "disconnected")
    assert (line.sse_events, line.sse_bytes) == (2, len(client.bytes)) and line.sse_seconds >= 0
    assert not hasattr(line, "sse_request_id") and "request_id" not in line.getMessage()
    (opened,) = [record for record in caplog.records if record.getMessage().startswith("stream opened")]
    assert opened.levelname == "DEBUG"


@pytest.mark.parametrize(
    ("header", "own", "expected"),
    [
        ("req-1", None, "req-1"),
        ("x" * 128, None, "x" * 128),
        ("req-1", "own-2", "own-2"),
        (None, 17, "17"),
        (None, None, None),
        ("", None, None),
        ("x" * 129, None, None),
        ("two words", None, None),
        ("é", None, None),
        ("a\tb", None, None),
        (None, "a\nb", None),
    ],
)
def test_request_ids(caplog: pytest.LogCaptureFixture, header: str | None, own: object, expected: str | None) -> None:
    """What names a request is in its generator and in each line on its stream, if it is fit for a log."""
    caplog.set_level(logging.INFO, "sseflask")
    app = Flask("app")
    sse = SSE(app)
    seen: list[str | None] = []

    @app.before_request
    def name_request() -> None:
        if own is not None:
            g.request_id = own

    @app.get("/")
    @sse.stream
    def view() -> Iterator[str]:
        seen.append(current_stream.request_id)
        yield "a"
        raise ValueError("on purpose")

    headers = {} if header is None else {"X-Request-ID": header.encode().decode("latin-1")}
    app.test_client().get("/", headers=headers).get_data()
    wait_until(lambda: closing_lines(caplog))
    assert seen == [expected]
    failure = next(record for record in caplog.records if record.levelno == logging.ERROR)
    for line in (failure, *closing_lines(caplog)):
        assert getattr(line, "sse_request_id", None) == expected
    (closing,) = closing_lines(caplog)
    assert closing.getMessage().endswith(f" request_id={expected}") == (expected is not None)


def test_waiting_listeners_are_told_of_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That listeners wait for a broker is said once for each outage, though it is asked each second."""
    here = process.current()
    broker = make_broker(Settings(), f"sqlite:///{tmp_path}/events.db", here.waker, here.timer.call_every_second)
    assert isinstance(broker, SharedBroker)

    def fail(channels: object, *, whole: bool) -> None:
        raise BrokerUnavailable("gone")

    try:
        for outage in (1, 2):
            with monkeypatch.context() as patch:
                patch.setattr(broker, "_fetch", fail)
                for _ in range(3):
                    broker._follow_listeners()
            broker._follow_listeners()
            assert [record.levelname for record in caplog.records if "listeners wait" in record.getMessage()] == [
                "WARNING"
            ] * outage
    finally:
        broker.close()


def test_a_stream_without_a_request() -> None:
    """A response that is made outside any request has no id."""
    response = EventSourceResponse([])
    assert response.event_stream.request_id is None
    response.close()


def test_a_run_is_named_by_the_request_that_began_it() -> None:
    """A task keeps the id of the request that started it."""
    app = Flask("app")
    sse = SSE(app)
    seen: list[str | None] = []

    def work() -> Iterator[str]:
        seen.append(current_stream.request_id)
        yield "a"

    @app.post("/")
    def start() -> str:
        return sse.start(work).id

    app.test_client().post("/", headers={"X-Request-ID": "req-9"})
    wait_until(lambda: seen == ["req-9"])
