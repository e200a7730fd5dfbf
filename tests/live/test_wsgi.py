"""Several apps in one process, and the shapes of apps that only a real server shows."""

from __future__ import annotations

from typing import Any

import pytest

from tests.conftest import Serve
from tests.live.client import get, open_stream
from tests.live.process import wait_until

APP = "tests.live.apps.dispatch_app:application"
SERVERS: list[dict[str, Any]] = [{}, {"worker_class": "gevent"}, {"worker_class": "gthread", "args": ["--threads", "8"]}]


@pytest.mark.parametrize("options", SERVERS, ids=["ours", "gevent", "gthread"])
def test_two_apps(serve: Serve, options: dict[str, Any]) -> None:
    """Two apps behind a dispatcher stream side by side, each by its own settings and under its own addresses."""
    server = serve(APP, **options)
    one, two = open_stream(server, "/outer/inner/stream"), open_stream(server, "/two/outer/inner/stream")
    assert one.next_event().json() == {"app": "one", "here": "/outer/inner/stream"}
    assert two.next_event().json() == {"app": "two", "here": "/two/outer/inner/stream"}
    assert (one.frames.retry_ms, two.frames.retry_ms) == (111, 222)
    # The streams of a process are counted together; each app has its own limit on them.
    assert get(server, "/stats").json()["streams"] == 2
    assert get(server, "/two/outer/inner/stream").status == 503
    first, second = one.next_event(), two.next_event()
    assert (first.event, second.event) == ("oops", "error")
    assert (first.json()["error_type"], second.json()["error_type"]) == ("internal_error", "RuntimeError")
    assert (one.read_until_closed(), two.read_until_closed()) == ("clean", "clean")
    assert "keepalive" in [comment.text for comment in one.comments]
    assert two.comments == []
    wait_until(lambda: get(server, "/stats").json()["streams"] == 0)


@pytest.mark.parametrize("options", SERVERS[:2], ids=["ours", "gevent"])
def test_a_factory_on_the_command_line(serve: Serve, options: dict[str, Any]) -> None:
    """An app that a factory makes, called twice in the process, streams."""
    source = """
        from tests.live.apps.dispatch_app import create_app

        first = create_app("first")
        app = create_app("second")
    """
    server = serve(source, **options)
    client = open_stream(server, "/outer/inner/stream")
    assert client.next_event().json()["app"] == "second"
