"""`Publisher`: what other processes publish with, on each store that they can share with an app."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flask import Flask

from sseflask import SSE, BrokerUnavailable, EventDecoder, InvalidSetting, Publisher, ServerSentEvent, SSEError
from sseflask.brokers import Publication, Store, open_store
from sseflask.config import Settings
from sseflask.stream import is_final_id
from tests.redis import RedisServer, free_port, needs_redis

ROOT = Path(__file__).resolve().parents[1]
ID = re.compile(r"[0-9a-f]{12}-[1-9][0-9]*")


@pytest.fixture(params=["sqlite", pytest.param("redis", marks=needs_redis)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """What a publisher and an app share."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/events.sqlite"
        return
    server = RedisServer(tmp_path).start()
    yield server.url
    server.close()


@pytest.fixture
def publisher(url: str) -> Iterator[Publisher]:
    """A publisher on it."""
    with Publisher(url) as publisher:
        yield publisher


@pytest.fixture
def app(url: str) -> Iterator[Flask]:
    """An app on it."""
    app = Flask("app_of_the_publisher")
    app.config["SSE_BROKER_URL"] = url
    SSE(app)
    yield app
    if (broker := app.extensions["sse"].broker_in_use) is not None:
        broker.close()


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    """The store itself, to look into."""
    store = open_store(Settings(), url)
    yield store
    store.close()


def published(store: Store, channel: str = "sse") -> list[ServerSentEvent]:
    """What a channel has."""
    return EventDecoder().feed(b"".join(entry.frame for entry in store.read({channel: 0})[channel].entries))


def test_an_event_has_its_id_and_all_its_fields(publisher: Publisher, store: Store) -> None:
    """Data of each kind is what `SSE.publish` makes of it; the id is the one that clients see."""
    ids = [
        publisher.publish({"percent": 50}, event="progress", retry=500),
        publisher.publish("text", type="note"),
        publisher.publish(b"bytes", id="mine"),
        publisher.publish(ServerSentEvent("whole", event="own")),
        publisher.publish(None),
    ]
    events = published(store)
    assert [event.id for event in events] == ids
    assert all(ID.fullmatch(found) for found in ids if found != "mine")
    assert [(event.event, event.data) for event in events] == [
        ("progress", '{"percent":50}'),
        ("note", "text"),
        (None, "bytes"),
        ("own", "whole"),
        (None, "null"),
    ]
    assert events[0].retry == 500


def test_it_is_with_able_and_closes_twice(url: str, store: Store) -> None:
    """At the end of the block it lets go; closing again does nothing, and publishing connects again."""
    with Publisher(url) as publisher:
        publisher.publish("one")
    publisher.close()
    publisher.close()
    publisher.publish("two")
    publisher.close()
    assert [event.data for event in published(store)] == ["one", "two"]


def test_it_closes_when_its_block_fails(url: str) -> None:
    """The block's own error goes on its way."""
    with pytest.raises(ZeroDivisionError), Publisher(url) as publisher:
        publisher.publish(1 / 0)


def test_making_one_connects_to_nothing(tmp_path: Path) -> None:
    """Neither a file nor a server is needed before it publishes."""
    Publisher(f"sqlite:///{tmp_path}/events.sqlite").close()
    assert list(tmp_path.iterdir()) == []
    Publisher(f"redis://127.0.0.1:{free_port()}").close()


def test_a_token_names_a_publish(publisher: Publisher, store: Store) -> None:
    """A second one with the same token stores nothing and returns the first one's id; the end of a channel likewise."""
    assert publisher.publish("one", token="once") == publisher.publish("two", token="once")
    assert publisher.close_channel("sse", token="end") == publisher.close_channel("sse", token="end")
    assert [event.data for event in published(store)] == ["one", ""]


def test_it_ends_a_channel(publisher: Publisher, store: Store) -> None:
    """The end event says so, with data and a name if they are given; what is published later begins anew."""
    publisher.close_channel("sse", {"rows": 7}, event="done")
    assert store.read({"sse": None})["sse"].ended
    (event,) = published(store)
    assert (event.event, event.data) == ("done", '{"rows":7}')
    publisher.publish("again")
    assert not store.read({"sse": None})["sse"].ended


def test_the_apps_streams_get_what_it_publishes(app: Flask, publisher: Publisher) -> None:
    """A stream that comes back gets it from the history, with the ids that publishing gave."""
    first, second = publisher.publish("one", channel="news"), publisher.publish("two", channel="news")
    publisher.close_channel("news", "over")
    sse: SSE = app.extensions["sse"].sse
    with app.test_request_context(headers={"Last-Event-ID": f"{first.partition('-')[0]}-0"}):
        response = sse.subscribe("news")
    decoder = EventDecoder()
    events = [event for piece in response.response for event in decoder.feed(piece)]  # type: ignore[union-attr, arg-type]
    assert [(event.id, event.data) for event in events[1:3]] == [(first, "one"), (second, "two")]
    assert (events[3].event, events[3].data) == ("stream-end", "over")
    assert is_final_id(events[3].id)


WRONG: list[dict[str, Any]] = [
    {"data": "x", "channel": ""},
    {"data": "x", "channel": "a" * 201},
    {"data": "x", "channel": "/a"},
    {"data": "x", "channel": "-/a"},
    {"data": "x", "channel": 7},
    {"data": "x", "event": "a\nb"},
    {"data": "x", "event": "a", "type": "b"},
    {"data": "x", "id": ""},
    {"data": "x", "id": " a"},
    {"data": "x", "id": "0123456789ab-1"},
    {"data": "x", "retry": -1},
    {"data": "x", "retry": "soon"},
    {"data": "x" * (1024 * 1024 + 1)},
    {"data": b"\xff"},
    {"data": object()},
    {"data": ServerSentEvent(comment="nothing else")},
]


@pytest.mark.parametrize("wrong", WRONG, ids=lambda wrong: str(list(wrong.items())[-1])[:30])
def test_it_refuses_what_the_app_refuses(tmp_path: Path, wrong: dict[str, Any]) -> None:
    """The same errors in the same words, before anything is connected."""
    app = Flask(__name__)
    sse = SSE(app)
    errors = []
    for publish in (sse.publish, Publisher(f"sqlite:///{tmp_path}/events.sqlite").publish):
        with pytest.raises(SSEError) as caught:
            publish(**wrong)
        errors.append((type(caught.value), re.sub(r"0x[0-9a-f]+", "", str(caught.value))))
    assert errors[0] == errors[1]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("url", ["memory://", "auto"])
def test_memory_is_refused(url: str) -> None:
    """Another process's memory can't be published to; what could be used instead is said."""
    with pytest.raises(InvalidSetting, match=r"sqlite:///PATH, redis://HOST") as caught:
        Publisher(url)
    assert caught.value.setting == "SSE_BROKER_URL"


@pytest.mark.parametrize(
    "wrong",
    [
        {"url": "sqlite://"},
        {"url": "sqlite:///"},
        {"url": "sqlite:///x?synchronous=maybe"},
        {"url": "sqlite:///x?mode=ro"},
        {"url": "amqp://localhost"},
        {"url": "redis://localhost?durable=maybe"},
        {"url": None},
        {"timeout": 0},
        {"prefix": "a b"},
        {"history": 1},
        {"history_seconds": "long"},
        {"max_event_bytes": 10},
    ],
    ids=str,
)
def test_a_wrong_argument_is_refused_when_it_is_made(wrong: dict[str, Any]) -> None:
    """Not at the first publish, perhaps days later."""
    with pytest.raises(InvalidSetting):
        Publisher(**{"url": "sqlite:///events.sqlite", **wrong})


def test_threads_share_one(publisher: Publisher, store: Store) -> None:
    """What eight threads publish at once has ids of its own, and all of it is there, each thread's in its order."""
    ids: list[str] = []

    def publish(thread: int) -> None:
        ids.extend(publisher.publish({"thread": thread, "n": n}) for n in range(25))

    threads = [threading.Thread(target=publish, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    events = published(store)
    assert [event.id for event in events] == sorted(ids, key=lambda found: int(found.partition("-")[2]))
    found = [json.loads(event.data or "") for event in events]
    assert all([each["n"] for each in found if each["thread"] == thread] == list(range(25)) for thread in range(8))


def test_it_is_safe_after_a_fork(publisher: Publisher, store: Store) -> None:
    """Parent and child publish by turns with one that was in use when the child was forked; each event is there once."""
    expected = [publisher.publish("before")]
    for _ in range(3):
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            # Whatever happens, the child never gets back to the tests.
            try:
                os.write(write, "\n".join(publisher.publish("child") for _ in range(20)).encode())
                publisher.close()
            finally:
                os._exit(0)
        os.close(write)
        own = [publisher.publish("parent") for _ in range(20)]
        with open(read) as answer:
            theirs = answer.read().split("\n")
        assert os.waitpid(child, 0)[1] == 0
        assert len(theirs) == 20
        expected += own + theirs
    events = published(store)
    assert [event.id for event in events] == sorted(expected, key=lambda found: int(found.partition("-")[2]))
    assert len(set(expected)) == 121
    assert sum(event.data == "child" for event in events) == 60


@pytest.mark.parametrize("imported", ["from sseflask import Publisher", "from sseflask.publisher import Publisher"])
def test_it_imports_no_gevent(url: str, imported: str) -> None:
    """A process that publishes needs neither gevent nor gunicorn, and no Flask app."""
    script = f"""
import sys
{imported}
with Publisher(sys.argv[1]) as publisher:
    publisher.publish("x")
print([name for name in ("gevent", "greenlet", "gunicorn") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", script, url], cwd=ROOT, capture_output=True, text=True, timeout=30, check=False)
    assert (done.stdout, done.stderr) == ("[]\n", "")


SECRET = "s3cr%40t"


@pytest.mark.parametrize(
    "url",
    [
        f"redis://:{SECRET}@127.0.0.1:{{port}}/0",
        f"redis://me:{SECRET}@127.0.0.1:{{port}}/1",
        f"redis://127.0.0.1:{{port}}/0?password={SECRET}",
        f"unix:///nowhere/redis.sock?password={SECRET}",
        f"redis://:{SECRET}@127.0.0.1:{{port}}/0?nonsense=1",
        f"redis://:{SECRET}@127.0.0.1:{{port}}/zero",
        f"redis://:{SECRET}@[127.0.0.1:{{port}}/0",
        f"redis://:{SECRET}/@127.0.0.1:{{port}}/0",
        f"amqp://me:{SECRET}@127.0.0.1",
    ],
)
def test_a_password_is_never_shown(url: str) -> None:
    """Neither by repr, nor in any error, its cause and its traceback's values included."""
    shown: list[str] = []
    try:
        with Publisher(url.format(port=free_port()), timeout=0.2) as publisher:
            shown += [repr(publisher), str(publisher), publisher.url]
            publisher.publish("x")
    except (BrokerUnavailable, InvalidSetting) as error:
        chain: BaseException | None = error
        while chain is not None:
            shown += [repr(chain), str(chain)]
            chain = chain.__cause__
    assert len(shown) >= 2
    assert not [text for text in shown if "s3cr" in text]


@needs_redis
def test_a_wrong_password_is_told_without_it(tmp_path: Path) -> None:
    """Redis's own words about a login that failed don't bring it along either."""
    server = RedisServer(tmp_path, requirepass="right")
    server.client.connection_pool.connection_kwargs["password"] = "right"
    server.start()
    try:
        with Publisher(server.url.replace("://", "://:wr0ng@"), timeout=1) as publisher:
            with pytest.raises(BrokerUnavailable) as caught:
                publisher.publish("x")
            assert caught.value.outcome == "not_published"
            assert "wr0ng" not in f"{caught.value!r} {caught.value.__cause__!r}"
        with Publisher(server.url.replace("://", "://:right@")) as publisher:
            assert ID.fullmatch(publisher.publish("x"))
            assert "right" not in repr(publisher)
    finally:
        server.close()


def test_a_store_that_is_not_there_is_told_in_time(tmp_path: Path) -> None:
    """Publishing fails within its time-out, and says that nothing was published."""
    for url in (f"sqlite:///{tmp_path}/missing/events.sqlite", f"redis://127.0.0.1:{free_port()}"):
        with Publisher(url, timeout=0.3) as publisher, pytest.raises(BrokerUnavailable) as caught:
            publisher.publish("x")
        assert caught.value.outcome == "not_published"


def test_history_is_as_the_apps(url: str, store: Store) -> None:
    """With the app's `SSE_HISTORY`, it keeps no more than the app would."""
    with Publisher(url, history=8) as publisher:
        for n in range(100):
            publisher.publish(str(n))
    events = published(store)
    assert events[-1].data == "99"
    # Stores drop a few at a time.
    assert 8 <= len(events) <= 16


def test_it_goes_by_the_bytes_of_the_apps_history(tmp_path: Path) -> None:
    """A publish removes nothing that the app would keep, however many bytes its `SSE_HISTORY_BYTES` allow."""
    url = f"sqlite:///{tmp_path}/events.sqlite"
    app = open_store(Settings(history_bytes=1 << 28), url)
    for number in range(80):
        app.publish(Publication(f"c{number}", b"data: %b\n\n" % (b"x" * 1_000_000), str(number)))
    with Publisher(url) as publisher:
        publisher.publish("done")
    assert all(reading.entries for reading in app.read({f"c{number}": 0 for number in range(80)}).values())
    app.close()
