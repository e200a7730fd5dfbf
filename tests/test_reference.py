"""The pages of docs/reference that are made of the code, and the schema of the events: they say what the code does."""

from __future__ import annotations

import ast
import dataclasses
import functools
import importlib
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import click
import jsonschema
import pytest
from flask import Flask
from flask.testing import FlaskClient

import sseflask
from docs.directives import command_line, http, http_schema
from docs.directives import settings as settings_page
from sseflask import SSE, ServerSentEvent, StreamError, Task, current_stream, current_task, process, tasks
from sseflask.cli import INTERRUPTED
from sseflask.config import Settings, StreamOptions
from sseflask.errors import BrokerUnavailable
from sseflask.event import KEEPALIVE
from sseflask.ledger import Ledger
from sseflask.progress import CHUNK_ERROR
from sseflask.state import CloseReason
from sseflask.testing import reader_of
from tests.live.process import wait_until
from tests.test_subscription import MakeWorld, make_world
from tests.viewers import PATIENCE, Worker, make_worker, worker

__all__ = ["make_worker", "make_world", "worker"]

REFERENCE: Final = Path(__file__).resolve().parents[1] / "docs/reference"
#: The code, wherever it is installed.
PACKAGE: Final = Path(sseflask.__file__).parent
EVENTS_PAGE: Final = (REFERENCE / "events.md").read_text()
SCHEMA: Final = http_schema.load()
ROUTES: Final = http.load()
#: What the page calls its sections on what is no event, by the schema's name.
OTHERS: Final = {"Refusals": "Refusal", "Collected events": "Collected", "What publishing answers": "Published"}
#: Objects to which apps add fields of their own.
OPEN: Final = {"start"}

#: How the code writes names that users give.
GIVEN: Final = ("event", "field", "self._name", "self._end_event", "f'{self.type}' if self.type else None")

Events = list[ServerSentEvent]


def validate(value: Any, name: str = "") -> None:
    """Holds a value against the schema of an event, or against another part of it."""
    schema = {"$schema": SCHEMA["$schema"], "$defs": SCHEMA["$defs"], "$ref": f"#/$defs/{name}"} if name else SCHEMA
    jsonschema.Draft202012Validator(schema).validate(value)


def check(events: Events) -> list[Any]:
    """Holds all events that are sseflask's against the schema; returns each as its name and what its data say."""
    found: list[Any] = []
    for event in events:
        data: Any = event.data
        if event.event in http_schema.names(SCHEMA):
            data = json.loads(data) if data else None
            fields = {"event": event.event, "data": data, "id": event.id, "retry": event.retry}
            # Empty data are no JSON.
            validate({name: value for name, value in fields.items() if value is not None})
        found.append((event.event, data))
    return found


def named(found: list[Any], name: str) -> Any:
    """The data of the only event of this name."""
    (data,) = [data for event, data in found if event == name]
    return data


@pytest.fixture
def app() -> Flask:
    """An app with the blueprint's routes, where anyone may do anything."""
    app = Flask("app")
    app.secret_key = "a secret"
    app.config.update(SSE_BROKER_URL="memory://", SSE_HISTORY=8)
    sse = SSE()
    sse.authorize(lambda action, channel: True)
    app.add_url_rule("/view", "view", lambda: app.config["VIEW"]())  # noqa: PLW0108
    app.add_url_rule("/tasks/<task_id>", "task", sse.task_response)
    app.register_blueprint(sse, url_prefix="/events")
    return app


@pytest.fixture
def sse(app: Flask) -> SSE:
    """Its extension."""
    found: SSE = app.extensions["sse"].sse
    return found


@pytest.fixture
def client(app: Flask) -> FlaskClient:
    """Its client."""
    return app.test_client()


def answer(app: Flask, view: Callable[[], Any], **headers: str) -> Any:
    """What a view's client gets."""
    app.config["VIEW"] = view
    return app.test_client().get("/view", headers=headers)


def read(app: Flask, view: Callable[[], Any]) -> list[Any]:
    """The events of a view's stream up to its end, all of them valid."""
    with reader_of(answer(app, view), skip=()) as stream:
        return check(stream.events(timeout=PATIENCE))


class TestEvents:
    """Real events are as events.schema.json says."""

    def test_a_channel(self, sse: SSE, client: FlaskClient) -> None:
        """A subscription's first and last event, and the resets of positions that can't be gone on from."""
        first = sse.publish("0", channel="news")
        for number in range(1, 20):
            sse.publish(str(number), channel="news")
        reasons = {}
        for position in ("nonsense", "0123456789ab-3", first):
            with reader_of(client.get("/events/news", headers={"Last-Event-ID": position}), skip=()) as stream:
                found = check(stream.events(2))
            reset = named(found, "stream-reset")
            reasons[reset["position"]] = reset["reason"]
            assert named(found, "stream-open") == {"channels": ["news"]}
        assert list(reasons.values()) == ["unknown_id", "epoch", "history"]

    @pytest.mark.parametrize("data", ["", {"rows": 7}])
    def test_the_end_of_a_channel(self, sse: SSE, client: FlaskClient, data: Any) -> None:
        """A channel ends with what it was closed with, or with nothing."""
        with reader_of(client.get("/events/report"), skip=()) as stream:
            sse.channel("report").close(data)
            assert check(stream.events())[-1] == ("stream-end", data or None)

    def test_a_slow_client(self, make_world: MakeWorld) -> None:
        """A client that has fallen behind is told so."""
        world = make_world(SSE_HISTORY=8, SSE_SLOW_CLIENT="latest")
        client = world.connect()
        world.publish("0")
        client.block()
        world.publish(*map(str, range(1, 21)))
        client.unblock()
        reset = next(one for one in client.received if one.event == "stream-reset")
        validate({"event": "stream-reset", "data": reset.json, "id": reset.id})
        assert reset.json["reason"] == "slow"

    @pytest.mark.parametrize("debug", [False, True])
    def test_errors(self, app: Flask, sse: SSE, debug: bool) -> None:
        """What a generator raises is an error event."""
        app.debug = debug

        def generator(error: Exception) -> Iterator[str]:
            yield "first"
            raise error

        raised = [ValueError("secret"), StreamError("busy"), StreamError("busy", error_type="overloaded", details={"n": 1})]
        types = []
        for error in raised:
            found = read(app, sse.stream(lambda error=error: generator(error)))
            types.append(named(found, "error")["error_type"])
        assert types == ["ValueError" if debug else "internal_error", "stream_error", "overloaded"]

    def test_time_is_up(self, app: Flask, sse: SSE, client: FlaskClient) -> None:
        """A deadline and a token that expires end a stream with an error event."""

        @sse.stream(timeout=0.05)
        def ticks() -> Iterator[str]:
            while True:
                yield "tick"
                time.sleep(0.01)

        assert named(read(app, ticks), "error")["error_type"] == "timeout"
        sse.installation.decorated.rules.pop("authorize", None)
        with app.app_context():
            token = sse.sign("news", expires_in=0.2)
        with reader_of(client.get(f"/events/news?token={token}")) as stream:
            assert named(check(stream.events(timeout=PATIENCE)), "error")["error_type"] == "token_expired"

    def test_lifecycle(self, app: Flask, sse: SSE) -> None:
        """A stream with a lifecycle has a first and a last event, with no other fields than those described."""

        @sse.stream(lifecycle=True)
        def view() -> Any:
            yield "work"
            return {"words": 3}

        found = read(app, view)
        assert found[0][0] == "start" and set(found[0][1]) == set(SCHEMA["$defs"]["start"]["properties"])
        assert named(found, "complete")["result"] == {"words": 3}

    def test_runs(self, worker: Worker) -> None:
        """A resumable stream tells its run's name, how it ended, and that it is gone."""
        gate = threading.Event()

        @worker.app.get("/short")
        @worker.sse.stream(resumable=True)
        def short() -> Iterator[str]:
            yield "all"

        @worker.app.get("/large")
        @worker.sse.stream(resumable=True)
        def large() -> Iterator[str]:
            yield from ["x" * 10_000] * 2

        @worker.app.get("/long")
        @worker.sse.stream(resumable=True)
        def long() -> Iterator[str]:
            yield "begun"
            while not gate.wait(0.01):
                # In a thread it learns of its end where it asks.
                current_stream.heartbeat()

        found = check(worker.watch("/short").wait_for_end().events)
        assert named(found, "stream-end") == {"reason": "completed"} and set(named(found, "stream-open")) == {"run"}
        object.__setattr__(worker.sse.settings, "run_bytes", 15_000)
        assert named(check(worker.watch("/large").wait_for_end().events), "error")["error_type"] == "too_large"
        viewer = worker.watch("/long")
        viewer.wait_for(None)
        position = viewer.last_event_id
        assert worker.sse.cancel(position)
        assert named(check(viewer.wait_for_end().events), "stream-end") == {"reason": "cancelled"}
        gone = check(worker.watch("/long", last_event_id=position).wait_for_end().events)
        assert named(gone, "stream-reset")["reason"] == named(gone, "stream-end")["reason"] == "run_gone"

    def test_runs_that_end_otherwise(self) -> None:
        """The reasons and error types of runs that nobody watches, or whose process is gone, are those described."""
        ended = {choice["const"] for choice in SCHEMA["$defs"]["RunEnded"]["properties"]["reason"]["oneOf"]}
        assert ended == {CloseReason.COMPLETED, CloseReason.CANCELLED, CloseReason.ABANDONED, "run_gone"}
        assert set(tasks.WHY_STOPPED) <= error_types()

    def test_tasks(self, worker: Worker) -> None:
        """A task's events, and each way in which it ends."""
        waits = threading.Event()

        def work() -> Any:
            current_task.progress(0)
            current_task.file_update("a")
            current_task.file_update("b", filename="b.txt", status="done", progress=100, message="all of it")
            current_task.progress(1, 3, "reading")
            return {"rows": 3}

        def fails(error: Exception) -> None:
            raise error

        def waiting(task: list[Task]) -> None:
            while not waits.wait(0.01):
                current_task.progress(1)

        def events_of(task: Task) -> list[Any]:
            return check(worker.watch(f"/tasks/{task.id}").wait_for_end().events)

        done = worker.sse.start(work)
        assert done.wait(PATIENCE)
        found = events_of(done)
        assert sorted(name for name, _ in found) == ["file_update", "file_update", "stream-open", "task_completed", "task_progress"]
        assert named(found, "task_completed")["result"] == {"rows": 3} and named(found, "task_progress")["progress"] == 33.3
        for error in (KeyError("x"), StreamError("busy", error_type="overloaded", details={"n": 1})):
            failed = worker.sse.start(fails, error)
            assert failed.wait(PATIENCE)
            assert named(events_of(failed), "task_failed")["details"]["error_type"] in ("internal_error", "overloaded")
        failed = worker.sse.start(waiting, [])
        failed.fail("enough")
        assert named(events_of(failed), "task_failed")["details"] is None
        cancelled = worker.sse.start(waiting, [])
        wait_until(lambda: cancelled.state == "running", PATIENCE, "it works")
        cancelled.cancel()
        assert cancelled.wait(PATIENCE)
        assert named(events_of(cancelled), "task_cancelled") == {"task_id": cancelled.id}
        for why in tasks.WHY_STOPPED:
            check([tasks.stopped(done.id, why)])

    def test_items(self, app: Flask, sse: SSE) -> None:
        """An item that fails is an event of its own, whether it has a name or not."""

        def process(item: Any) -> Any:
            if item == 1:
                raise StreamError("no such item", error_type="missing", details={"item": item})
            return {"upper": item["text"].upper()}

        found = read(app, sse.stream(lambda: sse.each([{"id": "a", "text": "…"}, 1, {"id": "b"}], process)))
        assert [data["id"] for name, data in found if name == CHUNK_ERROR] == [1, "b"]

    def test_the_dashboard(self, client: FlaskClient, monkeypatch: pytest.MonkeyPatch) -> None:
        """The dashboard's stream has the numbers, the closes, or why it hasn't."""
        client.get("/events/-/health").close()
        with reader_of(client.get("/events/-/dashboard/events")) as stream:
            assert [name for name, _ in check(stream.events(2))] == ["numbers", "closes"]

        def fail(self: Ledger) -> None:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(Ledger, "read", fail)
        monkeypatch.setattr("sseflask.dashboard._snapshots", {})
        with reader_of(client.get("/events/-/dashboard/events")) as stream:
            assert "Permission denied" in named(check(stream.events(1)), "problem")["problem"]


class TestAnswers:
    """What is no stream is as events.schema.json says, too."""

    def test_refusals(self, sse: SSE, client: FlaskClient, monkeypatch: pytest.MonkeyPatch) -> None:
        """Each kind of refusal."""

        def unavailable(*args: object, **options: object) -> None:
            raise BrokerUnavailable("gone", outcome="unknown")

        answers = {
            400: client.get("/events/"),
            404: client.get("/tasks/none"),
            413: client.post("/events/x", data=b"x" * 2**21),
            415: client.post("/events/x", data={"data": "x"}),
        }
        sse.installation.decorated.rules.pop("authorize", None)
        answers |= {401: client.get("/events/x?token=nonsense"), 403: client.get("/events/x")}
        sse.installation.decorated.rules["authorize"] = lambda action, channel: True
        with monkeypatch.context() as patch:
            patch.setattr(type(sse.installation.broker), "publish", unavailable)
            answers[503] = client.post("/events/x", data="x")
        assert answers[503].get_json()["outcome"] == "unknown"
        for status, refused in answers.items():
            assert refused.status_code == status
            validate(refused.get_json(), "Refusal")
        for limit, status in (("SSE_MAX_STREAMS", 503), ("SSE_MAX_STREAMS_PER_CLIENT", 429)):
            # Those of other tests may still be about to end.
            wait_until(lambda: not process.current().streams, PATIENCE)
            object.__setattr__(sse.settings, limit.removeprefix("SSE_").lower(), 1)
            with reader_of(client.get("/events/x"), skip=()) as stream:
                stream.events(1)
                refused = client.get("/events/x")
                assert (refused.status_code, refused.get_json()["limit"]) == (status, limit)
                validate(refused.get_json(), "Refusal")
            object.__setattr__(sse.settings, limit.removeprefix("SSE_").lower(), None)
        validate(client.post("/events/x", data="x").get_json(), "Published")

    def test_come_back_later(self, sse: SSE, client: FlaskClient) -> None:
        """With `SSE_REFUSE = "retry"` a client over a limit gets a comment and a time, as the page says."""
        wait_until(lambda: not process.current().streams, PATIENCE)
        for name, value in (("max_streams", 1), ("refuse", "retry")):
            object.__setattr__(sse.settings, name, value)
        with reader_of(client.get("/events/x"), skip=()) as stream:
            stream.events(1)
            assert re.fullmatch(r": refused: SSE_MAX_STREAMS\nretry: \d+\n\n", client.get("/events/x").get_data(as_text=True))
        assert "| `: refused: <limit>` |" in EVENTS_PAGE

    def test_an_error_before_the_first_event(self, app: Flask, sse: SSE) -> None:
        """A `StreamError` before the first event has the fields of the error event."""

        @sse.stream
        def view() -> Iterator[str]:
            raise StreamError("ask something", error_type="no_question", status=400, details={"field": "question"})
            yield ""

        refused = answer(app, view)
        assert refused.status_code == 400
        validate(refused.get_json(), "error")

    def test_collected(self, app: Flask, sse: SSE) -> None:
        """The array of `negotiate`, and what comes of a stream that is cut short."""

        @sse.stream(negotiate=True, lifecycle=True)
        def view() -> Iterator[Any]:
            yield {"percent": 50}
            yield ServerSentEvent("half of it", event="note", id="a1")

        found = answer(app, view, Accept="application/json").get_json()
        validate(found, "Collected")
        assert [each["event"] for each in found] == ["start", "message", "note", "complete"]

        @sse.stream(negotiate=True, max_age=0.05)
        def long() -> Iterator[Any]:
            while True:
                yield "tick"
                time.sleep(0.01)

        cut = answer(app, long, Accept="application/json")
        assert cut.status_code == 503 and cut.get_json()["reason"] == "max_age"
        validate(cut.get_json(), "Refusal")


def objects(schema: Any, where: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Each object that a schema describes, and where."""
    if isinstance(schema, dict):
        if "properties" in schema and "type" in schema:
            yield where, schema
        for name, found in schema.items():
            yield from objects(found, f"{where}/{name}")
    elif isinstance(schema, list):
        for number, found in enumerate(schema):
            yield from objects(found, f"{where}/{number}")


def error_types() -> set[str]:
    """The error types that the schema names."""
    return {choice["const"] for choice in SCHEMA["$defs"]["error"]["properties"]["error_type"]["anyOf"] if "const" in choice}


class TestSchema:
    """The schema is complete, and closed."""

    def test_it_is_one(self) -> None:
        """It is a JSON Schema, and each of its definitions is used."""
        jsonschema.Draft202012Validator.check_schema(SCHEMA)
        used = set(re.findall(r'"#/\$defs/([\w-]+)"', json.dumps(SCHEMA)))
        assert used | set(OTHERS.values()) == set(SCHEMA["$defs"])

    def test_it_is_closed(self) -> None:
        """A field that it doesn't know fails, wherever users can't add one."""
        found = dict(objects(SCHEMA))
        assert len(found) > 15
        free = {where for where, schema in found.items() if schema.get("additionalProperties") is not False}
        assert free == {"/$defs/start", "/$defs/task_failed/properties/details"}
        for name in set(http_schema.names(SCHEMA)) - {"stream-end", "closes"} - OPEN:
            with pytest.raises(jsonschema.ValidationError):
                validate({**examples()[name][0], "more": 1} if name in examples() else {"more": 1}, name)

    def test_names(self) -> None:
        """Each event that the code writes is in the schema and in the page, under the name that it has by default."""
        assert written_names() == set(http_schema.names(SCHEMA))
        assert set(re.findall(r"^### `([\w-]+)`$", EVENTS_PAGE, re.MULTILINE)) == written_names()
        assert set(re.findall(r"^```\{schema\} ([\w-]+)$", EVENTS_PAGE, re.MULTILINE)) >= written_names()

    def test_error_types(self) -> None:
        """Each type of an error that the code names is in the schema."""
        found = set(tasks.WHY_STOPPED)
        for path in PACKAGE.rglob("*.py"):
            for text in re.findall(r'error_type(?:": |: str = |=)(\w+|"\w+")', path.read_text()):
                value = ast.literal_eval(text) if text.startswith('"') else constant(path, text)
                found |= {value} if isinstance(value, str) else set()
        assert found - {"error_type"} == error_types()

    def test_reasons(self) -> None:
        """The reasons of closes are those of the code."""
        assert SCHEMA["$defs"]["Close"]["properties"]["reason"]["enum"] == [reason.value for reason in CloseReason]

    def test_routes(self) -> None:
        """What openapi.yaml describes too, it describes in the same way."""
        described = http_schema.inlined(ROUTES["components"]["schemas"], ROUTES)
        answer = ROUTES["paths"]["/-/dashboard/events"]["get"]["responses"]["200"]
        streams = answer["content"]["text/event-stream"]["x-events"]
        same = {
            "Opened": "ChannelsOpened",
            "Reset": "stream-reset",
            "StreamError": "error",
            "Error": "Refusal",
            "Published": "Published",
            "Numbers": "Numbers",
            "Close": "Close",
        }
        for there, here in same.items():
            expected = bare(http_schema.inlined(SCHEMA["$defs"][here], SCHEMA))
            if there == "Reset":
                # Of runs, which are no business of these routes.
                expected["properties"]["reason"]["enum"].remove("run_gone")
            assert bare(described[there]) == expected, there
        for name in ("numbers", "closes", "problem"):
            assert bare(http_schema.inlined(streams[name]["data"], ROUTES)) == bare(
                http_schema.inlined(SCHEMA["$defs"][name], SCHEMA)
            ), name


def bare(schema: Any) -> Any:
    """What a schema demands, without what it tells readers."""
    if isinstance(schema, list):
        return [bare(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    choices = schema.get("oneOf", []) + schema.get("anyOf", [])
    if choices:
        # Some are named; where there may be others, nothing is demanded.
        closed = all("const" in choice for choice in choices)
        rest = {name: value for name, value in schema.items() if name not in ("oneOf", "anyOf")}
        return bare({**rest, "enum": [choice["const"] for choice in choices]} if closed else rest)
    if "properties" in schema:
        schema = {**schema, "properties": {name: bare(value) for name, value in schema["properties"].items()}}
    told = ("description", "format", "examples")
    plain = {name: value if name == "properties" else bare(value) for name, value in schema.items() if name not in told}
    return {name: sorted(value) if name in ("required", "enum") else value for name, value in plain.items()}


def constant(path: Path, name: str) -> Any:
    """What a name means in a module of the package."""
    module = importlib.import_module(".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts))
    return getattr(module, name, None)


@functools.cache
def written_names() -> frozenset[str]:
    """The default names of the events that the code itself makes."""
    found: set[str] = set()
    for path in PACKAGE.rglob("*.py"):
        text = path.read_text()
        for node in ast.walk(ast.parse(text)) if "ServerSentEvent(" in text else ():
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "ServerSentEvent":
                for keyword in node.keywords:
                    if keyword.arg == "event":
                        found |= meaning(path, keyword.value)
    return frozenset(found)


def meaning(path: Path, name: ast.expr) -> set[str]:
    """What an event's name can be that is written so; nothing where it comes from whoever uses the package."""
    text = ast.unparse(name)
    if isinstance(name, ast.Constant):
        return {name.value}
    if text in GIVEN or text.startswith("event if "):
        return set()
    # A setting, or a parameter that is called as the setting that it gets.
    if (setting := re.fullmatch(r"(?:(?:\w+\.)*_?settings\.)?(\w+_event)", text)) is not None:
        return {next(field.default for field in dataclasses.fields(Settings) if field.name == setting[1])}
    if text.startswith("ENDS["):
        return set(tasks.ENDS.values())
    value = constant(path, text)
    assert isinstance(value, str), f"{path}: where does the name of this event come from: {text}"
    return {value}


def examples() -> dict[str, list[Any]]:
    """The JSON of events.md, by the event, or whatever else it shows."""
    found: dict[str, list[Any]] = {}
    for heading, text in re.findall(r"^### (.+?)\n(.*?)(?=^##|\Z)", EVENTS_PAGE, re.DOTALL | re.MULTILINE):
        for block in re.findall(r"^```json\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
            found.setdefault(OTHERS.get(heading, heading.strip("`")), []).append(json.loads(block))
    return found


class TestEventsPage:
    """docs/reference/events.md."""

    def test_examples(self) -> None:
        """Each example is valid, and each thing has one, but for the numbers."""
        assert set(examples()) == {*http_schema.names(SCHEMA), *OTHERS.values()} - {"numbers"}
        for name, blocks in examples().items():
            for block in blocks:
                validate(block, name)

    def test_an_event(self) -> None:
        """The whole event that it shows is valid, and wouldn't be under another name."""
        (section,) = re.findall(r"^## The schema\n(.*?)^## ", EVENTS_PAGE, re.DOTALL | re.MULTILINE)
        (block,) = re.findall(r"^```json\n(.*?)^```", section, re.DOTALL | re.MULTILINE)
        event = json.loads(block)
        validate(event)
        for name in ("stream-open", "mine"):
            with pytest.raises(jsonschema.ValidationError):
                validate({**event, "event": name})

    def test_the_wire(self) -> None:
        """What it shows of the wire is what is written."""
        (shown,) = re.findall(r"^```text\n(.*?)^```", EVENTS_PAGE, re.DOTALL | re.MULTILINE)
        assert KEEPALIVE.decode() in shown
        blocks = [
            ServerSentEvent(retry=3000),
            ServerSentEvent({"channels": ["orders"]}, event="stream-open", id="5f0c2f9e61aa-41"),
            ServerSentEvent({"id": 7}, event="created", id="5f0c2f9e61aa-42"),
            ServerSentEvent({"reason": "sold out"}, event="stream-end", id="5f0c2f9e61aa-43-end"),
        ]
        assert shown.replace(KEEPALIVE.decode(), "") == b"".join(block.encode() for block in blocks).decode()

    def test_fields(self) -> None:
        """What is shown of a thing has each of its fields, with a word on each."""
        for name, schema in SCHEMA["$defs"].items():
            shown = http_schema.markdown(name, SCHEMA)
            for _, found in objects(schema):
                for field, described in found["properties"].items():
                    assert f"`{field}` (" in shown and http_schema.resolved(described, SCHEMA)["description"], (name, field)


class TestSettingsPage:
    """docs/reference/settings.md."""

    PAGE: Final = (REFERENCE / "settings.md").read_text()

    def test_each_setting_once(self) -> None:
        """The page has each setting, once; each has a text, what it may be, and its default."""
        blocks = re.findall(r"^```\{settings\}\n(.*?)^```", self.PAGE, re.DOTALL | re.MULTILINE)
        told = [line.split(" ")[0] for block in blocks for line in block.splitlines()]
        assert sorted(told) == sorted(f"SSE_{field.name.upper()}" for field in dataclasses.fields(Settings))
        assert set(settings_page.attributes(Settings)) == {field.name for field in dataclasses.fields(Settings)}
        for described in settings_page.settings().values():
            assert len(described.text) > 30 and described.expected and described.default, described.name

    def test_units(self) -> None:
        """Each number has its unit, in what it may be and with its default."""
        for name, described in settings_page.settings().items():
            default = Settings.__dataclass_fields__[name.removeprefix("SSE_").lower()].default
            if isinstance(default, int | float):
                (unit,) = re.findall(r"number of (\w+)", described.expected)
                assert described.default.startswith(
                    f"`{default:g}` {unit}" if isinstance(default, float) else f"`{default}` {unit}"
                )

    def test_shown(self) -> None:
        """What is shown of a setting has its anchor, and links to the others that it names."""
        shown = settings_page.markdown(settings_page.settings()["SSE_REFUSE"], "See [more](x.md).")
        assert shown.startswith("(sse-refuse)=\n```{confval} SSE_REFUSE\n")
        assert ':type: `"status"` or `"retry"`\n:default: `"status"`\n' in shown
        assert "{confval}`SSE_RETRY`" in shown and "See [more](x.md)." in shown

    def test_options(self) -> None:
        """Each option of `@sse.stream` is there, with its default or the setting that it stands for."""
        found = settings_page.options()
        assert set(found) == {field.name for field in dataclasses.fields(StreamOptions) if field.init}
        assert found["keepalive"].default == "`SSE_KEEPALIVE_INTERVAL`" and found["detach_grace"].default == "`30` seconds"
        assert set(found) == set(SSE.stream.__kwdefaults__ or ())


class TestCommandLine:
    """docs/reference/command-line.md."""

    PAGE: Final = (REFERENCE / "command-line.md").read_text()

    def test_each_command(self) -> None:
        """Each command has a section with what click knows of it; the doctor, which is there twice, one."""
        shown = re.findall(r"^## `(.+)`\n\n```\{command\} (.+)$", self.PAGE, re.MULTILINE)
        assert all(heading == command for heading, command in shown)
        assert {command for _, command in shown} == set(command_line.names()) - {"python -m sseflask doctor"}
        assert command_line.find("python -m sseflask doctor") is command_line.find("flask sse doctor")

    def test_each_option(self) -> None:
        """What is shown of a command has its usage, its help and each option; options and settings in texts are marked."""
        for name in command_line.names():
            shown = command_line.markdown(name)
            command = command_line.find(name)
            assert f"```text\n{name} [OPTIONS]" in shown
            for option in command.params:
                if isinstance(option, click.Option):
                    (text,) = re.findall(rf"^```\{{option\}} {option.opts[0]}\b.*\n(.+)$", shown, re.MULTILINE)
                    assert len(text) > 10 and text.endswith("."), (name, option.name)
        publish = command_line.markdown("flask sse publish")
        assert "```{option} --event NAME\n" in publish and "Without it `--end` takes {confval}`SSE_END_EVENT`." in publish
        assert "Default: 20." in command_line.markdown("flask sse doctor") and "Above 0." in command_line.markdown(
            "flask sse doctor"
        )

    @pytest.mark.parametrize("name", command_line.names())
    def test_help_is_whole(self, name: str) -> None:
        """The first line of a command's help isn't cut off in the list of commands."""
        assert "..." not in command_line.find(name).get_short_help_str(64)

    def test_exit_codes(self) -> None:
        """The page has each exit code."""
        told = [int(code) for code in re.findall(r"^\| (\d+) \|", self.PAGE, re.MULTILINE)]
        assert told == [0, click.ClickException.exit_code, click.UsageError.exit_code, INTERRUPTED]


class TestRoutesPage:
    """docs/reference/http.md."""

    PAGE: Final = (REFERENCE / "http.md").read_text()

    def test_each_route_once(self) -> None:
        """The page has each route of openapi.yaml, once."""
        shown = re.findall(r"^```\{route\} (.+)$", self.PAGE, re.MULTILINE)
        assert sorted(shown) == sorted(http.routes(ROUTES))

    @pytest.mark.parametrize("route", http.routes(ROUTES))
    def test_what_is_shown(self, route: str) -> None:
        """What is shown of a route has its parameters, its answers, and the fields and events in them, each with a text."""
        shown = http.markdown(route, ROUTES)
        method, _, path = route.partition(" ")
        operation = http_schema.inlined(ROUTES["paths"][path][method.lower()], ROUTES)
        for parameter in operation.get("parameters", ()):
            assert re.search(rf"^`{parameter['name']}` \({parameter['in']}, .+\n: .{{10,}}", shown, re.MULTILINE)
        for status, answer in operation["responses"].items():
            assert re.search(rf"^\| `{status}` \| .+ \| .*\|$", shown, re.MULTILINE)
            for kind, found in answer.get("content", {}).items():
                if set(found["schema"].get("properties", ())) & {"data", "total", "live", "workers"}:
                    assert f"`{kind}`, " in shown
                    fields = found["x-events"] if "x-events" in found else found["schema"]["properties"]
                    assert all(
                        re.search(rf"`{name}`\]?[ (]" if name != "*" else "^- others: ", shown, re.MULTILINE) for name in fields
                    )

    def test_descriptions_are_whole(self) -> None:
        """No description is cut off, as one is where YAML takes its comma for its own."""

        def check_all(found: Any, where: str) -> None:
            pairs = found.items() if isinstance(found, dict) else enumerate(found) if isinstance(found, list) else ()
            for name, value in pairs:
                assert " " not in str(name), f"{where}: a key {name!r}"
                if name == "description" and isinstance(value, str):
                    assert value.strip().endswith("."), f"{where}: {value!r}"
                check_all(value, f"{where}/{name}")

        check_all(ROUTES, "openapi.yaml")
        check_all(SCHEMA, "events.schema.json")

    def test_who_may(self) -> None:
        """What is shown says who may use a route."""
        assert "Open to anyone." in http.markdown("GET /-/health", ROUTES)
        assert "a public channel or a token." in http.markdown("GET /{channel}", ROUTES)
        for route in ("POST /{channel}", "GET /-/stats", "GET /-/dashboard/events"):
            assert "can't be a cookie" in http.markdown(route, ROUTES)

    def test_links(self) -> None:
        """Whatever is described elsewhere is there."""
        headings = {
            re.sub(r"[^a-z0-9 _-]", "", each.lower()).replace(" ", "-")
            for each in re.findall(r"^### (.+)$", EVENTS_PAGE, re.MULTILINE)
        }
        headings |= {f"http:{each.lower()}" for each in re.findall(r"^### (.+)$", self.PAGE, re.MULTILINE)}
        shown = "".join(http.markdown(route, ROUTES) for route in http.routes(ROUTES))
        told = re.findall(r"\(events\.md#([^)]+)\)", shown) + [f"http:{each}" for each in re.findall(r"\(#([^)]+)\)", shown)]
        assert len(set(told)) > 6 and set(told) <= headings
