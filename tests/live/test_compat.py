"""An app written for Flask-SSE, with one changed import: on Redis, served by two of our workers."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

from sseflask import testing
from tests.conftest import Serve
from tests.live.client import Event, StreamClient, get, open_stream
from tests.live.server import ROOT, Server
from tests.redis import RedisServer, needs_redis

APP = "tests.live.apps.flask_sse_app:app"
STREAMS = 8

SCRIPT = """
from tests.live.apps.flask_sse_app import create_app, sse
with create_app().app_context():
    sse.publish({"from": "a script"}, type="note", channel="users.social")
"""


def send(server: Server, **message: object) -> None:
    """Has the app publish."""
    headers = {"Content-Type": "application/json"}
    reply = get(server, "/publish", method="POST", headers=headers, body=json.dumps(message).encode())
    assert (reply.status, reply.text) == (200, "Message sent!")


def open_at(server: Server, path: str) -> StreamClient:
    """A stream that has opened."""
    client = open_stream(server, path)
    assert (client.status, client.headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
    assert client.next_event().event == "stream-open"
    return client


def fields(event: Event) -> tuple[str, str, int | None]:
    """What a page sees of an event, besides its id."""
    return event.event, event.data, event.retry


@contextlib.contextmanager
def numbers(server: Server) -> Iterator[None]:
    """Publishes numbers all the time: the app's own view tells nobody that it listens."""
    is_over = threading.Event()

    def go_on() -> None:
        while not is_over.wait(0.1):
            for n in range(4):
                send(server, data={"n": n}, channel="numbers")

    thread = threading.Thread(target=go_on)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


@needs_redis
def test_an_app_of_flask_sse(serve: Serve, tmp_path: Path) -> None:
    """Channels, guards, ids, messages and scripts do what they did; who comes back gets what it missed."""
    redis = RedisServer(tmp_path).start()
    try:
        server = serve(APP, workers=2, env={"APP_REDIS_URL": redis.url})
        assert 'EventSource("/stream?channel=users.social")' in get(server, "/").text
        assert get(server, "/redis").text == "True"

        everyone = [open_at(server, "/stream") for _ in range(STREAMS)]
        social = [open_at(server, "/stream?channel=users.social") for _ in range(STREAMS)]
        assert get(server, "/hello").text == "Message sent!"
        events = [client.next_event() for client in everyone]
        assert {fields(event) for event in events} == {("greeting", '{"message": "Hello!"}', None)}
        assert len({event.id for event in events}) == 1

        send(server, data="first\nsecond\n", type="text", id=5, retry=500, channel="users.social")
        events = [client.next_event() for client in social]
        assert {(*fields(event), event.id) for event in events} == {("text", "first\nsecond", 500, "5")}

        environment = {**os.environ, "APP_REDIS_URL": redis.url}
        subprocess.run([sys.executable, "-c", SCRIPT], check=True, cwd=ROOT, env=environment, timeout=30)
        assert {fields(client.next_event()) for client in social} == {("note", '{"from": "a script"}', None)}

        missed = open_stream(server, "/stream?channel=users.social", headers={"Last-Event-ID": "5"})
        assert [event.event for event in missed.events(2)] == ["stream-open", "note"]

        assert get(server, "/stream?channel=analytics").status == 403
        assert get(server, "/stream/analytics").status == 403
        cookie = get(server, "/login").headers["set-cookie"].partition(";")[0]
        admin = open_stream(server, "/stream?channel=analytics", headers={"Cookie": cookie})
        assert admin.next_event().event == "stream-open"

        with numbers(server), testing.open_stream(server.url("/odd"), timeout=15) as odd:
            assert {event.data for event in odd.events(4)} == {'{"n": 1}', '{"n": 3}'}
    finally:
        redis.close()
