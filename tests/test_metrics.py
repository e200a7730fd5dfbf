"""Metrics and statistics: what is counted, what the routes tell and to whom, and the ledger that all workers of a server share."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from flask import Flask
from prometheus_client import CollectorRegistry
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics_families
from prometheus_client.parser import text_string_to_metric_families
from werkzeug.test import TestResponse

from sseflask import SSE, BrokerUnavailable, CloseReason, ledger, metrics, process
from sseflask.brokers import SharedBroker, make_broker
from sseflask.config import Settings
from sseflask.event import KEEPALIVE
from sseflask.ledger import Ledger, added, not_below
from sseflask.position import EventId
from sseflask.tally import BOUNDS, Histogram, Latency, Tallies
from tests.live.process import wait_until
from tests.test_subscription import World

ROOT: Final = Path(__file__).resolve().parents[1]
ROW: Final = re.compile(r"^\| `(sseflask_\w+)` \| (\w+) \| (?:`(\w+)`)? ?\| (.+?) \|", re.MULTILINE)


@pytest.fixture
def make_world() -> Iterator[Callable[..., World]]:
    """Makes apps with the given settings; all streams have ended afterwards."""
    worlds: list[World] = []

    def make(**settings: Any) -> World:
        worlds.append(World(**settings))
        return worlds[-1]

    yield make
    for world in worlds:
        for client in world.clients:
            client.hang_up()
    wait_until(lambda: not process.current().streams, message="all streams have ended")


def counted() -> dict[str, Any]:
    """What this process has counted so far."""
    return process.current().numbers()[1]


def present() -> dict[str, Any]:
    """What this process has now."""
    return process.current().numbers()[0]


class Difference:
    """What is counted from here on."""

    def __init__(self) -> None:
        self._before = counted()

    def __getitem__(self, name: str) -> Any:
        after, before = counted()[name], self._before[name]
        if isinstance(after, dict):
            return {key: value - before.get(key, 0) for key, value in after.items() if value != before.get(key, 0)}
        return after - before


class TestCounts:
    """What becomes of streams and events is counted, each thing once."""

    def test_published_delivered_and_replayed(self, make_world: Callable[..., World]) -> None:
        """What a client gets that had been there when it came back is replayed, what comes then isn't; both are delivered."""
        world = make_world()
        told = Difference()
        first = world.connect()
        world.publish("a", "b", "c")
        position = first.received[1].id
        first.hang_up()
        second = world.connect(last_event_id=position)
        world.publish("d")
        assert second.data == ["b", "c", "d"]
        assert (told["events_published"], told["events_sent"], told["events_replayed"]) == (4, 6, 2)
        second.hang_up()
        assert (told["events_sent"], told["events_replayed"]) == (6, 2)
        assert told["streams_opened"] == 2 and told["streams_closed"] == {"disconnected": 2}
        assert told["bytes_sent"] == len(first.bytes) + len(second.bytes)

    def test_a_replay_in_several_writes(self, make_world: Callable[..., World]) -> None:
        """All of a long replay counts, though the client takes a write at a time, and nothing of what comes after it."""
        world = make_world()
        position = world.position
        world.fill(30, data="x" * 20_000)
        told = Difference()
        client = world.connect(last_event_id=position, takes=2)
        assert 0 < told["events_replayed"] < 30
        client.unblock()
        client.sink.takes = None
        wait_until(lambda: len(client.data) == 30)
        assert told["events_replayed"] == 30
        world.publish("live")
        assert (told["events_replayed"], told["events_sent"]) == (30, 31)

    def test_a_replay_of_selected_events(self, make_world: Callable[..., World]) -> None:
        """Of several channels, or with a filter, only what the client gets counts."""
        world = make_world()
        position = world.position
        world.publish("a", "b", channel="one")
        world.publish("c", channel="two")
        told = Difference()
        client = world.connect("one", "two", last_event_id=position, filter=lambda event: event.data != "b")
        world.publish("d", channel="two")
        assert client.data == ["a", "c", "d"]
        assert (told["events_replayed"], told["events_sent"]) == (2, 3)

    def test_a_new_client_replays_nothing(self, make_world: Callable[..., World]) -> None:
        """Who comes for the first time, or has all, gets no replay."""
        world = make_world()
        world.publish("a")
        told = Difference()
        world.connect()
        world.connect(last_event_id=world.position)
        world.publish("b")
        assert (told["events_replayed"], told["events_sent"]) == (0, 2)

    def test_a_log_that_began_anew(self, make_world: Callable[..., World]) -> None:
        """A stream that looks for its place in a new life of the log goes on, and only its reset counts besides."""
        world = make_world()
        client = world.connect()
        told = Difference()
        subscription = next(iter(world.broker.emitter.find("news").subscribers))  # type: ignore[union-attr]
        subscription.begin_anew("ba9876543210")
        world.publish("a", "b")
        assert client.data == ["a", "b"]
        assert (told["resets"], told["events_replayed"], told["events_sent"]) == (1, 0, 3)

    def test_resets_and_slow_clients(self, make_world: Callable[..., World]) -> None:
        """A client that is told that something is gone, and one that is cut, count."""
        world = make_world(SSE_HISTORY=8)
        told = Difference()
        world.connect(last_event_id=str(EventId("ba9876543210", 5)))
        slow = world.connect()
        slow.block()
        world.fill(20)
        slow.unblock()
        assert slow.sink.end == "cut"
        assert (told["resets"], told["slow_clients"]) == (1, 1)
        assert told["streams_closed"] == {"slow": 1}

    def test_keepalives(self, make_world: Callable[..., World]) -> None:
        """A keepalive counts when it is written, and not where others wait already."""
        world = make_world()
        client, blocked = world.connect(), world.connect()
        blocked.block()
        told = Difference()
        for one in (client, blocked):
            one.sink.stream.tick(time.monotonic() + 100)
        assert client.sink.writes[-1] == KEEPALIVE
        assert told["keepalives"] == 1

    def test_refused(self, make_world: Callable[..., World], caplog: pytest.LogCaptureFixture) -> None:
        """A stream for which there is no room counts under the limit's name; the log says so, once for many."""
        world = make_world(SSE_MAX_STREAMS=1)
        world.connect()
        process.current()._refusals_due = 0.0
        told = Difference()
        before = process.current().refused.total() - process.current()._refusals_said
        for _ in range(5):
            assert world.connect().status == 503
        assert told["streams_refused"] == {"max_streams": 5}
        (line,) = [record for record in caplog.records if record.levelname == "WARNING"]
        assert line.name == "sseflask.stream"
        assert (line.sse_limit, line.sse_refused) == ("SSE_MAX_STREAMS", before + 1)  # type: ignore[attr-defined]

    def test_outages(self, tmp_path: Path) -> None:
        """An outage of the broker counts once, however often it is told, and so does its end."""
        here = process.current()
        broker = make_broker(Settings(), f"sqlite:///{tmp_path}/events.db", here.waker, here.timer.call_every_second)
        assert isinstance(broker, SharedBroker)
        here.brokers.append(broker)
        try:
            told = Difference()
            broker.interrupted(BrokerUnavailable("gone"))
            broker.interrupted(BrokerUnavailable("still gone"))
            assert present()["broker_up"] == 0
            assert (told["broker_outages"], told["broker_reconnects"]) == (1, 0)
            broker.resumed(broker.store.head())
            assert present()["broker_up"] == 1
            assert (told["broker_outages"], told["broker_reconnects"]) == (1, 1)
        finally:
            here.brokers.remove(broker)
            broker.close()

    def test_tasks(self) -> None:
        """Work without a client counts while it goes on, and when it ends, by why; it is no stream."""
        app = Flask("app")
        sse = SSE(app)
        go_on = threading.Event()

        def work() -> Iterator[str]:
            assert go_on.wait(30)
            yield "a"
            raise ValueError("on purpose")

        told, before = Difference(), present()
        with app.app_context():
            sse.start(work)
            assert present()["detached"] == before["detached"] + 1
            go_on.set()
            wait_until(lambda: told["detached_ended"] == {"error": 1}, 10)
        assert present()["detached"] == before["detached"]
        assert told["streams_opened"] == 0 and told["streams_closed"] == {}

    def test_what_there_is(self, make_world: Callable[..., World]) -> None:
        """Open streams, subscriptions and the history's bytes are what they are now."""
        world = make_world()
        before = present()
        client = world.connect("one", "two")
        world.publish("x" * 1000, channel="one")
        now = present()
        assert now["streams"] - before["streams"] == 1
        assert now["subscriptions"] - before["subscriptions"] == 2
        assert now["channels"] - before["channels"] == 2
        assert now["history_bytes"] - before["history_bytes"] >= 1000
        client.hang_up()
        assert present()["subscriptions"] == before["subscriptions"]


class TestLatency:
    """How long events take from their publishing until all streams have them."""

    def test_one_for_all_streams(self, make_world: Callable[..., World]) -> None:
        """An event counts once, however many streams get it, and none that nobody waits for."""
        world = make_world()
        world.publish("before")
        clients = [world.connect() for _ in range(3)]
        seen = sum(counted()["latency"]["counts"])
        world.publish("a", "b")
        world.publish("nobody's", channel="other")
        assert sum(counted()["latency"]["counts"]) == seen + 2
        assert [client.data for client in clients] == [["a", "b"]] * 3

    def test_a_replay_is_not_late(self, make_world: Callable[..., World]) -> None:
        """What a client catches up with says nothing of how long events take; the next event does."""
        world = make_world()
        position = world.position
        world.publish("old")
        seen = sum(counted()["latency"]["counts"])
        world.connect(last_event_id=position)
        world.connect("news", "more", last_event_id=position)
        assert sum(counted()["latency"]["counts"]) == seen
        world.publish("new")
        assert sum(counted()["latency"]["counts"]) == seen + 1

    def test_what_waited(self, make_world: Callable[..., World], monkeypatch: pytest.MonkeyPatch) -> None:
        """An event that no stream could take at once counts by the time until one took it."""
        world = make_world()
        client = world.connect()
        client.block()
        waited = counted()["latency"]["seconds"]
        world.publish("a")
        clock = time.monotonic
        with monkeypatch.context() as patch:
            patch.setattr(time, "monotonic", lambda: clock() + 7)
            client.unblock()
        assert client.data == ["a"]
        assert 6.9 < counted()["latency"]["seconds"] - waited < 60

    def test_histogram(self) -> None:
        """A time counts in the first bucket whose bound it doesn't exceed; one of clocks that differ is none."""
        histogram = Histogram()
        for seconds in (0.001, 0.0011, 10.0, 10.1, -1.0):
            histogram.observe(seconds)
        assert histogram.numbers() == {"counts": [2, 1, *[0] * (len(BOUNDS) - 3), 1, 1], "seconds": pytest.approx(20.1021)}
        latency = Latency()
        latency.taken += [1.0, 2.0]
        latency.written(3.0)
        assert (sum(latency.histogram.counts), latency.histogram.seconds, latency.taken) == (2, 3.0, [])


class TestPatterns:
    """Channels are counted by patterns that the app sets, never one by one."""

    def test_by_pattern(self, make_world: Callable[..., World]) -> None:
        """A channel counts under the first pattern that matches, all others under `other`; what was counted stays."""
        world = make_world(SSE_METRICS_CHANNELS=["job:7", "job:*"])
        clients = [world.connect(name) for name in ("job:7", "job:8", "job:9", "chat")]
        world.connect("job:7", "chat", filter=lambda event: event.data != "hidden")
        for name in ("job:7", "job:8", "chat"):
            world.publish("a", "hidden", channel=name)
        expected = {
            "job:7": {"subscriptions": 2, "published": 2, "delivered": 3},
            "job:*": {"subscriptions": 2, "published": 2, "delivered": 2},
            "other": {"subscriptions": 2, "published": 2, "delivered": 3},
        }
        assert world.broker.count_by_pattern() == expected
        for client in clients:
            client.hang_up()
        world.publish("b", channel="job:7")
        found = world.broker.count_by_pattern()
        assert {name: counts["subscriptions"] for name, counts in found.items()} == {"job:7": 1, "job:*": 0, "other": 1}
        assert {name: counts["delivered"] for name, counts in found.items()} == {"job:7": 4, "job:*": 2, "other": 3}

    def test_none(self, make_world: Callable[..., World]) -> None:
        """Without patterns nothing is counted by them."""
        world = make_world()
        world.connect()
        world.publish("a")
        assert world.broker.tallies is None and world.broker.count_by_pattern() == {}

    def test_matched_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A channel is matched when it is first used; our own are nobody's, and only so many are remembered."""
        monkeypatch.setattr("sseflask.tally.REMEMBERED", 3)
        tallies = Tallies(["*"])
        assert tallies["a"] is tallies.patterns["*"] and tallies["-/control"].pattern == "other"
        tallies["a"].published += 1
        for name in "bcdefg":
            tallies[name].published += 1
            assert len(tallies) <= 3
        assert tallies.patterns["*"].published == 7


def families(text: str) -> dict[str, Any]:
    """The metrics of a text, by name."""
    return {family.name: family for family in text_string_to_metric_families(text)}


def open_app(**settings: Any) -> tuple[Flask, SSE]:
    """An app whose numbers anyone may see."""
    app = Flask("app")
    app.config.update(settings)
    sse = SSE()
    sse.authorize(lambda action, channel: action == "inspect")
    app.register_blueprint(sse, url_prefix="/events")
    return app, sse


@pytest.mark.parametrize("path", ["/events/-/metrics", "/events/-/stats"])
class TestWhoMay:
    """Numbers are for those whom the app lets inspect them."""

    def test_closed(self, path: str) -> None:
        """Without a rule nobody may, whatever channels are public."""
        app = Flask("app")
        app.config["SSE_PUBLIC_CHANNELS"] = ["*"]
        app.register_blueprint(SSE(), url_prefix="/events")
        response = app.test_client().get(path)
        assert (response.status_code, response.get_json()) == (403, {"error": "this is not open to you"})

    def test_rule(self, path: str) -> None:
        """The app's rule is asked for the action `inspect` of the channel `*`."""
        asked = []
        app = Flask("app")
        sse = SSE()
        sse.authorize(lambda *question: asked.append(question) or len(asked) > 1)  # type: ignore[func-returns-value]
        app.register_blueprint(sse, url_prefix="/events")
        statuses = [app.test_client().get(path).status_code for _ in range(2)]
        assert statuses == [403, 200] and asked == [("inspect", "*")] * 2

    def test_token(self, path: str) -> None:
        """A token for that opens them, and no other one does."""
        app = Flask("app")
        app.config["SECRET_KEY"] = "secret"
        sse = SSE()
        app.register_blueprint(sse, url_prefix="/events")
        with app.app_context():
            tokens = [sse.sign("*", action="inspect"), sse.sign("*"), sse.sign("news", action="inspect")]

        def ask(token: str) -> TestResponse:
            return app.test_client().get(path, headers={"Authorization": f"Bearer {token}"})

        assert [ask(token).status_code for token in tokens] == [200, 403, 403]
        assert ask(tokens[0]).headers["Cache-Control"] == "no-store"

    def test_unreadable(self, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """Where the other workers' numbers can't be read there is no answer rather than a wrong one."""

        def fail(self: Ledger) -> None:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(Ledger, "read", fail)
        response = open_app()[0].test_client().get(path)
        assert response.status_code == 503 and "Permission denied" in response.get_json()["error"]


class TestMetrics:
    """What the endpoint tells Prometheus."""

    def test_docs(self, make_world: Callable[..., World]) -> None:
        """docs/reference/metrics.md has each metric, with its type and labels, and no other; each worker's are the same."""
        app, sse = open_app(SSE_METRICS_CHANNELS=["job:*"])
        with app.app_context():
            sse.publish("a", channel="job:7")
        world = make_world(SSE_MAX_STREAMS=1)
        world.connect().hang_up()
        world.connect()
        assert world.connect().status == 503
        process.current().ended[CloseReason.COMPLETED] += 1
        found = families(app.test_client().get("/events/-/metrics").get_data(as_text=True))
        told = {}
        for name, kind, label, meaning in ROW.findall((ROOT / "docs/reference/metrics.md").read_text()):
            assert len(meaning) > 10
            told[name.removesuffix("_total")] = (kind, {label} - {""})
            assert name.endswith("_total") == (kind == "counter")

        def shown(family: Any) -> tuple[str, set[str]]:
            assert family.documentation and family.samples, family.name
            return family.type, {label for sample in family.samples for label in sample.labels} - {"le"}

        assert {name: shown(family) for name, family in found.items() if not name.startswith("sseflask_worker_")} == told
        of_workers = {name.replace("_worker_", "_"): shown(family) for name, family in found.items() if "_worker_" in name}
        alike = {name: (kind, labels | {"worker"}) for name, (kind, labels) in told.items() if "pattern" not in labels}
        del alike["sseflask_workers"]
        assert of_workers == alike

    def test_values(self) -> None:
        """What is told is what was counted: for all workers, and for this one."""
        app, sse = open_app()
        with app.app_context():
            sse.publish("a", channel="news")
        found = families(app.test_client().get("/events/-/metrics").get_data(as_text=True))
        published = counted()["events_published"]
        (total,), (own,) = found["sseflask_events_published"].samples, found["sseflask_worker_events_published"].samples
        assert (total.value, total.labels) == (published, {})
        assert (own.value, own.labels) == (published, {"worker": str(os.getpid())})
        buckets = [sample for sample in found["sseflask_lag_seconds"].samples if sample.name.endswith("_bucket")]
        assert [float(sample.labels["le"]) for sample in buckets] == [*BOUNDS, float("inf")]
        assert [sample.value for sample in buckets] == sorted(sample.value for sample in buckets)

    def test_openmetrics(self) -> None:
        """Who accepts OpenMetrics gets it, with its content type."""
        client = open_app()[0].test_client()
        plain = client.get("/events/-/metrics")
        assert plain.content_type.startswith("text/plain; version=0.0.4")
        accept = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5"
        open_ = client.get("/events/-/metrics", headers={"Accept": accept})
        assert open_.content_type.startswith("application/openmetrics-text; version=1.0.0")
        assert "sseflask_streams_opened" in {family.name for family in openmetrics_families(open_.get_data(as_text=True))}

    def test_not_installed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Without prometheus_client the answer names what to install; the statistics need nothing."""
        find = importlib.util.find_spec
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "prometheus_client" else find(name))
        client = open_app()[0].test_client()
        response = client.get("/events/-/metrics")
        assert response.status_code == 501 and "pip install 'sseflask[metrics]'" in response.get_json()["error"]
        assert client.get("/events/-/stats").status_code == 200

    def test_registry_of_the_app(self) -> None:
        """An app's own registry takes our metrics beside its own."""
        registry = CollectorRegistry()
        registry.register(metrics.Collector())
        assert registry.get_sample_value("sseflask_workers") == 1

    def test_stats(self) -> None:
        """The statistics are the same numbers, of each worker and of all; `sse.stats()` agrees."""
        app, sse = open_app()
        found = app.test_client().get("/events/-/stats").get_json()
        with app.app_context():
            own = sse.stats()
        assert found["worker"] == os.getpid() and list(found["workers"]) == [str(os.getpid())]
        for numbers in (its := found["workers"][str(os.getpid())], found["all"]):
            # In the order of their times, which need not be that in which they were counted: clocks are moved.
            numbers["closes"].sort(key=lambda close: (close["at"], str(close)))
        assert its == found["all"]
        for name in ("streams", "streams_opened", "events_sent", "bytes_sent", "events_replayed", "keepalives", "resets"):
            assert found["all"][name] == own[name], name


WORKER: Final = """
import os, sys, time
from pathlib import Path
from sseflask import ledger, process
here = process.current()
here.directory = Path(sys.argv[1])
here.opened = int(sys.argv[2])
here.count("resets", 2)
ledger.current().write()
print(os.getpid(), flush=True)
sys.stdin.readline()
here.opened += 100
ledger.current().leave()
ledger.current().write()
"""


FORKING: Final = """
import os, signal, sys
from pathlib import Path
from sseflask import ledger, process
process.current().directory = Path(sys.argv[1])
ledger.current().write()
if os.fork() == 0:
    os.read(0, 1)
    os.write(1, b"the child has been there\\n")
    os._exit(0)
os.write(1, b"forked\\n")
signal.pause()
"""


class Worker:
    """A process that has opened some streams, and opens 100 more when it leaves."""

    def __init__(self, directory: Path, opened: int) -> None:
        command = [sys.executable, "-c", WORKER, str(directory), str(opened)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT, text=True)
        assert self._process.stdout is not None
        self.pid = int(self._process.stdout.readline())

    def leave(self) -> None:
        """Ends as it should."""
        self._process.communicate("\n", timeout=30)
        assert self._process.returncode == 0

    def kill(self) -> None:
        """Is killed."""
        self._process.send_signal(signal.SIGKILL)
        self._process.communicate(timeout=30)


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Ledger]:
    """This process's ledger in a directory of its own; its timer, which other tests have started, measures nothing meanwhile."""
    monkeypatch.setattr(process.current().timer, "_measure", lambda lag, now: None)
    found = Ledger(tmp_path)
    yield found
    found.leave()


class TestLedger:
    """What all workers of a server have counted."""

    def test_workers_come_and_go(self, own: Ledger, tmp_path: Path) -> None:
        """Each tells of all that live; what one had counted that has left, or was killed, stays in the sums."""
        base = own.read().total
        leaving, dying = Worker(tmp_path, 10), Worker(tmp_path, 1000)
        try:
            reading = own.read()
            assert set(reading.now) == {os.getpid(), leaving.pid, dying.pid} and reading.gone == {}
            assert reading.ever[dying.pid]["streams_opened"] == 1000
            assert added(base, {"streams_opened": 1010, "resets": 4}).items() >= {
                (name, reading.total[name]) for name in ("streams_opened", "resets")
            }
        finally:
            leaving.leave()
            dying.kill()
        for _ in range(2):
            reading = own.read()
            assert set(reading.now) == {os.getpid()}
            assert reading.total["streams_opened"] == base["streams_opened"] + 1110
            assert reading.total["resets"] == base["resets"] + 4
        assert len(list(tmp_path.glob(f"{ledger.PREFIX}*"))) == 1

    def test_a_child_that_outlives_a_worker(self, own: Ledger, tmp_path: Path) -> None:
        """A worker that has forked a child without exec, and has gone, isn't among the living because the child is."""
        command = [sys.executable, "-c", FORKING, str(tmp_path)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT, text=True) as worker:
            assert worker.stdin is not None and worker.stdout is not None
            assert worker.stdout.readline() == "forked\n"
            assert set(own.read().now) == {os.getpid(), worker.pid}
            worker.send_signal(signal.SIGKILL)
            worker.wait(30)
            assert set(own.read().now) == {os.getpid()}
            worker.stdin.close()
            assert worker.stdout.read() == "the child has been there\n"

    def test_interrupted_sums(self, own: Ledger, tmp_path: Path) -> None:
        """Numbers aren't added twice where somebody was killed between adding them and removing their file."""
        own.read()
        left = Ledger(tmp_path)
        left.write()
        (path,) = set(tmp_path.glob(f"{ledger.PREFIX}*")) - {own._path}
        record = path.read_bytes()
        left.leave()
        total = own.read().total
        assert not path.exists()
        path.write_bytes(record)
        again = own.read().total
        # This process's own timer goes on meanwhile.
        assert {**again, "lags": None} == {**total, "lags": None}
        assert not path.exists()

    def test_half_a_record(self, own: Ledger, tmp_path: Path) -> None:
        """A worker that is killed while it writes leaves the record before."""
        own.read()
        other = Ledger(tmp_path)
        process.current().count("resets")
        other.write()
        before = other.read().ever[os.getpid()]["resets"]
        process.current().count("resets")
        other.write()
        path, file = other._path, other._file
        assert path is not None and file is not None
        record = ledger._record(path)
        assert record is not None and record[1]["resets"] == before + 1
        os.pwrite(file, b"#", other._number % 2 * ledger.RECORD_BYTES + 40)
        record = ledger._record(path)
        assert record is not None and record[1]["resets"] == before
        os.pwrite(file, b"#", (other._number + 1) % 2 * ledger.RECORD_BYTES + 40)
        assert ledger._record(path) is None
        other.leave()
        assert own.read().gone == {}

    def test_directory_removed(self, own: Ledger, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        """Where what cleans up temporary files has removed all, a worker tells of itself, says so once, and goes on when it can."""
        own.read()
        for path in tmp_path.iterdir():
            path.unlink()
        tmp_path.rmdir()
        process.current().count("keepalives")
        own.write()
        own.write()
        assert [record.levelname for record in caplog.records] == ["WARNING"]
        assert set(own.read().now) == {os.getpid()}
        tmp_path.mkdir()
        own.write()
        assert len(list(tmp_path.glob(f"{ledger.PREFIX}*"))) == 1

    def test_unchanged(self, own: Ledger, tmp_path: Path) -> None:
        """Numbers that haven't changed aren't written again."""
        wait_until(lambda: not process.current().streams)
        own.write()
        for _ in range(20):
            number = own._number
            own.write()
            if own._number == number:
                return
        pytest.fail("they are written each time")

    def test_numbers_never_shrink(self) -> None:
        """A sum that is seen in between is told as it was before."""
        before = {"a": 5, "closed": {"slow": 2, "lost": 1}, "lags": {"counts": [1, 2], "seconds": 0.5}}
        after = {"a": 4, "closed": {"slow": 3}, "lags": {"counts": [2, 1], "seconds": 0.4}, "b": 1}
        assert not_below(after, before) == {
            "a": 5,
            "closed": {"slow": 3, "lost": 1},
            "lags": {"counts": [2, 2], "seconds": 0.5},
            "b": 1,
        }
        assert added(after, before) == {
            "a": 9,
            "closed": {"slow": 5, "lost": 1},
            "lags": {"counts": [3, 3], "seconds": 0.9},
            "b": 1,
        }
        assert added([1], [1, 2]) == added([1, 2], [1]) == [2, 2]

    def test_readers_take_turns(self, own: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A reader waits for another one, and gives up in the end."""
        own.read()
        monkeypatch.setattr(ledger, "LOCK_SECONDS", 0.05)
        with ledger._alone(tmp_path), pytest.raises(BlockingIOError):
            own.read()
        assert json.loads(json.dumps(own.read().total)) == own.read().total
