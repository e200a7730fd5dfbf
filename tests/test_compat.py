"""Flask-SSE's names: what apps and tests that were written for it rely on. On Redis and our worker: tests/live/test_compat.py."""

from __future__ import annotations

import subprocess
import sys
import threading
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from flask import Flask, Response, abort, request, session, url_for

from sseflask import SSE, AlreadyInstalled, EventDecoder, InvalidEvent, InvalidSetting, ServerSentEvent
from sseflask.compat import flask_sse
from sseflask.compat.flask_sse import Message, ServerSentEventsBlueprint
from sseflask.position import EventId
from sseflask.testing import EventReader, EventsMissing, read_events, reader_of
from tests.live.apps.flask_sse_app import check_access
from tests.live.process import wait_until

ROOT = Path(__file__).resolve().parents[1]


def new_blueprint() -> ServerSentEventsBlueprint:
    """What the module's own `sse` is: that one can't be changed once it is registered."""
    made = ServerSentEventsBlueprint("sse", __name__)
    made.add_url_rule("", endpoint="stream", view_func=made.stream)
    return made


@pytest.fixture
def sse() -> ServerSentEventsBlueprint:
    """A blueprint."""
    return new_blueprint()


@pytest.fixture
def app(sse: ServerSentEventsBlueprint) -> Flask:
    """An app with it, whose channels are this process's own."""
    app = Flask("app_of_flask_sse")
    app.config.update(SSE_BROKER_URL="memory://", SECRET_KEY="a secret")
    app.register_blueprint(sse, url_prefix="/stream")
    return app


def opened(app: Flask, url: str = "/stream", **headers: str) -> EventReader:
    """A stream of the test client's."""
    return reader_of(app.test_client().get(url, headers={name.replace("_", "-"): value for name, value in headers.items()}))


class TestMessage:
    """`Message`."""

    @pytest.mark.parametrize(
        ("message", "fields", "shown", "text"),
        [
            (Message("hi"), {"data": "hi"}, "Message('hi')", "data:hi\n\n"),
            (Message({"b": 1, "a": "ü"}), {"data": {"b": 1, "a": "ü"}}, None, 'data:{"a": "\\u00fc", "b": 1}\n\n'),
            (Message("one\ntwo\r\nthree\n"), {"data": "one\ntwo\r\nthree\n"}, None, "data:one\ndata:two\ndata:three\n\n"),
            (
                Message("hi", type="note", id=5, retry=500),
                {"data": "hi", "type": "note", "id": 5, "retry": 500},
                "Message('hi', type='note', id=5, retry=500)",
                "event:note\ndata:hi\nid:5\nretry:500\n\n",
            ),
            (Message(None, "", "", 0), {"data": None}, "Message(None)", "data:null\n\n"),
            (Message("", type="note"), {"data": "", "type": "note"}, None, "event:note\n\n"),
        ],
        ids=["text", "json", "lines", "all", "unset", "empty"],
    )
    def test_forms(self, app: Flask, message: Message, fields: dict[str, Any], shown: str | None, text: str) -> None:
        """A message has Flask-SSE's dictionary, representation and text."""
        assert message.to_dict() == fields
        assert shown in (None, repr(message))
        with app.app_context():
            assert str(message) == text

    def test_equality(self) -> None:
        """Messages are equal if all their fields are, and equal nothing else."""
        assert Message("hi", type="note") == Message("hi", type="note")
        assert Message("hi") != Message("hi", type="note")
        assert Message("hi") != "hi"

    def test_data_is_needed(self, sse: ServerSentEventsBlueprint) -> None:
        """There is no message without data."""
        with pytest.raises(TypeError):
            Message()  # type: ignore[call-arg]
        with pytest.raises(TypeError):
            sse.publish()  # type: ignore[call-arg]

    @pytest.mark.parametrize("field", ["type", "id"])
    def test_injection(self, field: str) -> None:
        """A name or an id that would begin a line of its own is refused."""
        with pytest.raises(InvalidEvent):
            str(Message("hi", **{field: "x\ndata: evil"}))


class TestStream:
    """The view that pages connect to."""

    def test_default_channel(self, app: Flask, sse: ServerSentEventsBlueprint) -> None:
        """Without `?channel=`, or with an empty one, it is "sse"; anyone may follow, and gets the text that Flask-SSE writes."""
        with opened(app) as plain, opened(app, "/stream?channel=") as empty, opened(app, "/stream/?channel=sse") as slash:
            sse.publish({"message": "Hello!"}, type="greeting")
            events = [reader.next_event() for reader in (plain, empty, slash)]
        assert {(event.event, event.data) for event in events} == {("greeting", '{"message": "Hello!"}')}

    def test_one_channel(self, app: Flask, sse: ServerSentEventsBlueprint) -> None:
        """Of several `?channel=` the first counts, as a guard that looks at `request.args` takes it."""
        with opened(app, "/stream?channel=a&channel=b") as reader:
            sse.publish("not this", channel="b")
            sse.publish("this", channel="a")
            assert reader.next_event().data == "this"

    def test_fields(self, app: Flask, sse: ServerSentEventsBlueprint) -> None:
        """A page gets type, data, id and retry as they were published, positionally too."""
        with opened(app) as reader:
            sse.publish("one\ntwo\n", "text", 7, 500, "sse")
            sse.publish("2", retry="250")
            first, second = reader.events(2)
        assert first == ServerSentEvent("one\ntwo", event="text", id="7", retry=500)
        assert (second.data, second.event, second.retry) == ("2", None, 250)
        assert second.id is not None and EventId.parse(second.id) is not None

    def test_last_event_id(self, app: Flask, sse: ServerSentEventsBlueprint) -> None:
        """Who comes back gets what it missed, by our ids and by the publisher's."""
        ours = sse.publish("one")
        sse.publish("two", id="its-own")
        sse.publish("three")
        with opened(app, Last_Event_ID=ours) as reader:
            assert [event.data for event in reader.events(2)] == ["two", "three"]
        with opened(app, Last_Event_ID="its-own") as reader:
            assert reader.next_event().data == "three"

    def test_url(self, app: Flask) -> None:
        """`url_for` names the view as it did."""
        with app.test_request_context():
            assert url_for("sse.stream", channel="users.social") == "/stream?channel=users.social"

    def test_called_in_a_view(self, app: Flask, sse: ServerSentEventsBlueprint) -> None:
        """A view of the app's own may return it."""
        app.add_url_rule("/mine", view_func=sse.stream, endpoint="mine")
        with opened(app, "/mine?channel=a") as reader:
            sse.publish("hi", channel="a")
            assert reader.next_event().data == "hi"
        with app.test_request_context("/stream"):
            response = sse.stream()
            assert isinstance(response, Response)
            assert (response.mimetype, response.is_streamed) == ("text/event-stream", True)
            response.close()

    def test_decorator(self, app: Flask, sse: ServerSentEventsBlueprint) -> None:
        """With a view, or options, it is what it is on `SSE`."""

        @app.get("/count")
        @sse.stream
        def count() -> Iterator[int]:
            yield 1

        @app.get("/retry")
        @sse.stream(retry=500)
        def retry() -> Iterator[int]:
            yield 2

        assert [event.data for event in read_events(app.test_client().get("/count"))] == ["1"]
        assert app.test_client().get("/retry").data == b"retry: 500\n\ndata: 2\n\n"

    def test_bad_channel(self, app: Flask) -> None:
        """A name that a channel can't have is answered by 400."""
        assert app.test_client().get("/stream?channel=/x").status_code == 400

    def test_guard(self, sse: ServerSentEventsBlueprint) -> None:
        """A guard decides over each channel, and no other route gets around it."""
        app = Flask("guarded")
        app.config.update(SSE_BROKER_URL="memory://", SECRET_KEY="a secret")

        @sse.before_request
        def check() -> None:
            if request.args.get("channel") == "analytics" and not session.get("is_admin"):
                abort(403)

        app.register_blueprint(sse, url_prefix="/stream")
        client = app.test_client()
        for path in ("?channel=analytics", "/?channel=analytics", "/analytics", "?channel=analytics&channel=sse"):
            assert client.get(f"/stream{path}").status_code == 403
        assert client.post("/stream/sse", json={"data": "x"}).status_code == 403
        with opened(app) as reader:
            assert reader.status == 200
        with client.session_transaction() as stored:
            stored["is_admin"] = True
        with reader_of(client.get("/stream?channel=analytics")) as reader:
            assert reader.status == 200

    def test_own_rules_only(self) -> None:
        """A blueprint without the view serves nobody."""
        app, closed = Flask("closed"), ServerSentEventsBlueprint("closed", __name__)
        app.config["SSE_BROKER_URL"] = "memory://"
        app.register_blueprint(closed, url_prefix="/stream")
        assert {app.test_client().get(f"/stream{path}").status_code for path in ("?channel=a", "/?channel=a", "/a")} == {403}

    @pytest.mark.parametrize("prefix", ["/stream/", "/a/b"])
    def test_prefix(self, sse: ServerSentEventsBlueprint, prefix: str) -> None:
        """Any prefix will do, with a slash at its end too."""
        app = Flask("prefixed")
        app.config["SSE_BROKER_URL"] = "memory://"
        app.register_blueprint(sse, url_prefix=prefix)
        for path in (prefix, prefix.rstrip("/"), prefix.rstrip("/") + "/"):
            with opened(app, path) as reader:
                assert reader.status == 200

    def test_no_prefix(self, sse: ServerSentEventsBlueprint) -> None:
        """Without a prefix it is refused, with what would be right."""
        with pytest.raises(InvalidSetting, match=r"url_prefix .* such as"):
            Flask("unprefixed").register_blueprint(sse)


class TestMessages:
    """`sse.messages`."""

    def test_types(self, app: Flask, sse: ServerSentEventsBlueprint) -> None:
        """Messages come as they were published: JSON as its value, text as text even where it looks like JSON, ids if given."""
        published = [{"n": [1, None]}, "text", '{"n": 1}', "5", 5, None, True, "true", "", "a\n\nb", 1.5]
        got: list[Message] = []
        is_listening = threading.Event()

        def listen() -> None:
            with app.app_context():
                messages = sse.messages(channel="types")
                assert isinstance(messages, types.GeneratorType)
                for message in messages:
                    if message.type == "ready":
                        is_listening.set()
                    else:
                        got.append(message)
                    if len(got) == len(published):
                        break

        thread = threading.Thread(target=listen)
        thread.start()
        for _ in range(1000):
            sse.publish("are you?", type="ready", channel="types")
            if is_listening.wait(0.01):
                break
        for number, data in enumerate(published):
            sse.publish(data, type="t", id=None if number % 2 else f"own-{number}", channel="types")
        thread.join(10)
        assert got == [Message(data, type="t", id=None if n % 2 else f"own-{n}") for n, data in enumerate(published)]
        assert sse.stats()["subscriptions"] == 0

    def test_in_a_request(self, app: Flask, sse: ServerSentEventsBlueprint) -> None:
        """They begin where they are asked for, whatever position the current request has, and end with their channel."""
        position = sse.publish("before", channel="a")
        sse.publish("missed", channel="a")
        with app.test_request_context(headers={"Last-Event-ID": position}):
            ends = threading.Thread(target=lambda: _when_subscribed(sse, lambda: sse.channel("a").close("bye")))
            ends.start()
            assert [message.data for message in sse.messages("a")] == ["bye"]
            ends.join()


def _when_subscribed(sse: SSE, act: Any) -> None:
    wait_until(lambda: sse.stats()["subscriptions"])
    act()


class TestConfiguration:
    """Where Redis is."""

    @pytest.fixture
    def bare(self, sse: ServerSentEventsBlueprint) -> Flask:
        """An app without any URL."""
        app = Flask("bare")
        app.register_blueprint(sse, url_prefix="/stream")
        return app

    def test_none(self, bare: Flask, sse: ServerSentEventsBlueprint) -> None:
        """Without a URL each use raises a `KeyError`, and registering none."""
        with bare.app_context():
            with pytest.raises(KeyError) as raised:
                sse.redis  # noqa: B018
            assert raised.value.args == ("Must set a redis connection URL in app config.",)
            with pytest.raises(KeyError, match="SSE_BROKER_URL"):
                sse.publish("x")
            with pytest.raises(KeyError):
                next(iter(sse.messages()))
        bare.testing = True
        with pytest.raises(KeyError):
            bare.test_client().get("/stream")

    def test_client(self, bare: Flask, sse: ServerSentEventsBlueprint) -> None:
        """`sse.redis` is redis-py's client for the first of `SSE_REDIS_URL` and `REDIS_URL`."""
        bare.config.update(REDIS_URL="redis://first.example", SSE_BROKER_URL="memory://")
        with bare.app_context():
            assert isinstance(sse.redis, redis.StrictRedis)
            assert sse.redis.connection_pool.connection_kwargs["host"] == "first.example"
            bare.config["SSE_REDIS_URL"] = "redis://second.example"
            assert sse.redis.connection_pool.connection_kwargs["host"] == "second.example"

    def test_order(self, bare: Flask, sse: ServerSentEventsBlueprint) -> None:
        """`SSE_BROKER_URL` goes first, then `SSE_REDIS_URL`, then `REDIS_URL`; each counts from when it is set."""
        with bare.app_context():
            for name, url in (
                ("REDIS_URL", "redis://a"),
                ("SSE_REDIS_URL", "redis://b"),
                ("SSE_BROKER_URL", "sqlite:///c"),
            ):
                bare.config[name] = url
                assert sse.settings.broker_url == url
        assert bare.config == {**bare.config, "REDIS_URL": "redis://a"}

    def test_other_settings(self, sse: ServerSentEventsBlueprint) -> None:
        """The app's other settings are what they were."""
        app = Flask("with_settings")
        app.config.update(REDIS_URL="redis://a", SSE_RETRY=700)
        app.register_blueprint(sse, url_prefix="/stream")
        assert (app.extensions["sse"].settings.broker_url, app.extensions["sse"].settings.retry) == ("redis://a", 700)
        assert "SSE_BROKER_URL" not in app.config

    def test_arguments(self, bare: Flask, sse: ServerSentEventsBlueprint) -> None:
        """What a URL says to redis-py of decoding and time-outs doesn't keep the broker from using it."""
        bare.config["REDIS_URL"] = "rediss://:pass%40word@a:7000?decode_responses=True&db=2&ssl_cert_reqs=none&socket_timeout=5"
        with bare.app_context():
            assert sse.settings.broker_url == "rediss://:pass%40word@a:7000?db=2&ssl_cert_reqs=none"

    def test_wrong(self, bare: Flask, sse: ServerSentEventsBlueprint) -> None:
        """A URL of something else is refused by the name of its setting, without its password."""
        bare.config["REDIS_URL"] = "amqp://user:secret@a"
        with bare.app_context(), pytest.raises(InvalidSetting) as raised:
            sse.publish("x")
        assert raised.value.setting == "REDIS_URL"
        assert "secret" not in str(raised.value)

    def test_changed(self, bare: Flask, sse: ServerSentEventsBlueprint, tmp_path: Path) -> None:
        """A fixture that gives the same app another broker for each test gets that one."""
        positions = []
        for number in range(2):
            bare.config["SSE_BROKER_URL"] = f"sqlite:///{tmp_path}/{number}"
            with opened(bare) as reader, bare.app_context():
                sse.publish(f"in {number}")
                assert reader.next_event().data == f"in {number}"
            positions.append(bare.extensions["sse"].broker.position.seq)
            bare.extensions["sse"].broker.close()
        assert positions == [1, 1]

    def test_unregistered(self, sse: ServerSentEventsBlueprint, app: Flask, tmp_path: Path) -> None:
        """An app of a script or a task queue publishes in its own context, though the blueprint isn't registered there."""
        script = Flask("script")
        script.config["SSE_BROKER_URL"] = f"sqlite:///{tmp_path}/shared"
        app.config["SSE_BROKER_URL"] = f"sqlite:///{tmp_path}/shared"
        with opened(app) as reader, script.app_context():
            sse.publish({"from": "a script"})
            assert reader.next_event().data == '{"from": "a script"}'
        for each in (app, script):
            each.extensions["sse"].broker.close()

    def test_several_apps(self, sse: ServerSentEventsBlueprint) -> None:
        """One blueprint serves several apps, each with its own channels; the context says which is meant."""
        apps = [Flask(f"app_{number}") for number in range(2)]
        for each in apps:
            each.config["SSE_BROKER_URL"] = "memory://"
            each.register_blueprint(sse, url_prefix="/stream")
        with opened(apps[0]) as first, opened(apps[1]) as second:
            for number, each in enumerate(apps):
                with each.app_context():
                    sse.publish(number)
            assert (first.next_event().data, second.next_event().data) == ("0", "1")
            with pytest.raises(RuntimeError):
                sse.publish("which?")

    def test_two_blueprints(self, app: Flask) -> None:
        """An app has one: a second is refused."""
        with pytest.raises(AlreadyInstalled):
            app.register_blueprint(ServerSentEventsBlueprint("other", __name__), url_prefix="/other")


class TestPublish:
    """`sse.publish`."""

    def test_the_apps_json(self, app: Flask, sse: ServerSentEventsBlueprint) -> None:
        """What isn't a string is what the app's own JSON makes of it."""

        class Json(type(app.json)):  # type: ignore[misc]
            @staticmethod
            def default(value: object) -> str:
                return f"<{type(value).__name__}>"

        app.json = Json(app)
        with opened(app) as reader, app.app_context():
            sse.publish({"b": {1}, "a": 1})
            with pytest.raises(InvalidEvent):
                sse.publish("x", id=" spaces ")
            assert reader.next_event().data == '{"a": 1, "b": "<set>"}'

    def test_what_sse_takes(self, app: Flask, sse: ServerSentEventsBlueprint) -> None:
        """The arguments of `SSE.publish` are taken too."""
        with opened(app) as reader:
            one = sse.publish(ServerSentEvent("one", event="a"), token="t")
            assert sse.publish(ServerSentEvent("one", event="a"), token="t") == one
            sse.publish(b"two", event="b")
            sse.publish("three", event="c", type="c")
            with pytest.raises(InvalidEvent):
                sse.publish("four", event="c", type="d")
            assert [(event.event, event.data) for event in reader.events(3)] == [("a", "one"), ("b", "two"), ("c", "three")]

    def test_no_event_that_is_not_there(self, app: Flask, sse: ServerSentEventsBlueprint) -> None:
        """A test that waits for what nobody publishes fails within its time."""
        with opened(app) as reader, pytest.raises(EventsMissing, match="0 of 1 event came"):
            reader.next_event(0.1)


def test_module() -> None:
    """The module has Flask-SSE's names, `sse` its view, and what its decoder reads is what a page reads."""
    assert isinstance(flask_sse.sse, flask_sse.ServerSentEventsBlueprint)
    assert check_access in flask_sse.sse.before_request_funcs[None]
    (event,) = EventDecoder().feed(str(flask_sse.Message("a\nb", type="t", id="1")).encode())
    assert event == ServerSentEvent("a\nb", event="t", id="1")


def test_import_is_light() -> None:
    """Importing it imports no Redis client, and makes no connection."""
    script = "import sys, sseflask.compat.flask_sse; print('redis' in sys.modules, 'gevent' in sys.modules)"
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    assert told.stdout.split() == ["False", "False"]
