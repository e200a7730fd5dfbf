"""Several workers on one Redis: the promise under load, while Redis, the network between and the workers themselves fail."""

from __future__ import annotations

import collections
import contextlib
import itertools
import json
import os
import random
import re
import signal
import threading
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlencode

import pytest

from sseflask.brokers.redis_connection import POOL_SIZE
from sseflask.publisher import Publisher
from tests.conftest import Serve
from tests.live.client import Reply, get, open_stream
from tests.live.crowd import Crowd, Member
from tests.live.process import wait_until
from tests.live.server import Server, ServerEnded
from tests.redis import Proxy, RedisServer, needs_redis

pytestmark = needs_redis

APP: Final = "tests.live.apps.shared_app:app"
WORKERS: Final = 4
#: Seconds that a publish may take where Redis is to be away: less than the default, so that tests needn't wait for it.
TIMEOUT: Final = 2.0
#: Loses nothing that it has accepted, whenever it is killed (DELIVERY 22).
DURABLE: Final = {"appendonly": "yes", "appendfsync": "always"}
#: What is published to under load: a series each, all on one channel.
SERIES: Final = ("a", "b")
CHANNEL: Final = "load"
#: Seconds between two events of a series.
PACE: Final = 0.02
#: Seconds after which what was missed must have come.
PATIENCE: Final = 20.0

StartRedis = Callable[..., RedisServer]
ServeOn = Callable[..., Server]


@pytest.fixture
def start_redis(tmp_path: Path) -> Iterator[StartRedis]:
    """Starts servers of Redis; options are those of redis.conf."""
    servers: list[RedisServer] = []

    def start(**options: str) -> RedisServer:
        directory = tmp_path / f"redis-{len(servers)}"
        directory.mkdir()
        servers.append(RedisServer(directory, **options))
        return servers[-1].start()

    yield start
    for server in servers:
        server.close()


@pytest.fixture
def serve_on(serve: Serve) -> ServeOn:
    """Starts workers on a broker: `serve_on(url, workers=4, **settings)`, settings by their names in `Settings`."""

    def start(url: str, *, workers: int = WORKERS, config: str | None = None, **settings: object) -> Server:
        given = {"broker_url": url, "history": 4096, **settings}
        env = {f"SSE_{name.upper()}": json.dumps(value) for name, value in given.items()}
        return serve(APP, workers=workers, config=config, env=env)

    return start


@pytest.fixture
def crowd() -> Iterator[Crowd]:
    """An empty crowd, whose connections are closed when the test is over."""
    crowd = Crowd()
    yield crowd
    crowd.hang_up()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[RedisServer, Server]]:
    """A Redis and workers for all tests that break neither and need no settings of their own."""
    redis = RedisServer(tmp_path_factory.mktemp("redis")).start()
    env = {"SSE_BROKER_URL": json.dumps(redis.url), "SSE_HISTORY": "4096"}
    try:
        with Server(APP, tmp_path_factory.mktemp("shared"), workers=WORKERS, env=env) as server:
            yield redis, server
    finally:
        redis.close()


def target(path: str, **query: object) -> str:
    """A path and its query."""
    return f"{path}?{urlencode(query, doseq=True)}"


def on(*channels: str, **query: object) -> str:
    """The path of a subscription."""
    return target("/on", channel=channels, **query)


def ask(server: Server, path: str, **query: object) -> dict[str, Any]:
    """Asks the app to do something, and returns what it answers."""
    reply = get(server, target(path, **query), method="POST", timeout=30)
    assert reply.status == 200, reply.text
    found: dict[str, Any] = reply.json()
    return found


def publish(server: Server, channel: str, numbers: range, **query: object) -> list[str]:
    """Publishes numbered events, the channel's name as their series; returns their ids."""
    ids: list[str] = ask(server, "/publish", channel=channel, first=numbers.start, count=len(numbers), **query)["ids"]
    return ids


def health(server: Server) -> Reply:
    """What the health route says of the worker that happens to answer."""
    return get(server, "/events/-/health")


def of_each_worker(server: Server, path: str) -> dict[int, dict[str, Any]]:
    """What each worker answers at a path, by its process."""
    found: dict[int, dict[str, Any]] = {}

    def has_all() -> bool:
        # Several at once, or the same worker might take each of them.
        asked = [open_stream(server, path, headers={"Connection": "close"}, wait_for_head=False) for _ in range(2 * WORKERS)]
        for client in asked:
            client.read_until_closed()
            assert client.status == 200, bytes(client.body)
            answer = json.loads(client.body)
            found[answer["pid"]] = answer
        return set(server.ready_workers()) <= found.keys()

    wait_until(has_all, 10, "an answer of each worker")
    return {pid: found[pid] for pid in server.ready_workers()}


def opens(server: Server, channel: str) -> bool:
    """Whether a subscription to a channel gets its open event; the stream stays open."""
    client = open_stream(server, on(channel))
    if client.status != 200:
        return False
    with contextlib.suppress(EOFError):
        return client.next_event().event == "stream-open"
    return False


def streams_by_worker(members: Collection[Member]) -> collections.Counter[str]:
    """How many of the members' streams each worker has."""
    return collections.Counter(member.headers["x-worker"] for member in members)


def has(series: str, count: int) -> Callable[[Member], bool]:
    """Whether a member has seen so many numbers of a series, or can't see any more."""
    return lambda member: member.count(series) >= count or member.ended is not None


def seen_by(crowd: Crowd, series: str, count: int, timeout: float = 10.0) -> None:
    """Reads until each member has seen all numbers of a series, each once and in order."""
    crowd.read_until(has(series, count), timeout=timeout)
    for member in crowd.members:
        member.assert_complete(series, count)


class Source:
    """Publishes numbered events through HTTP in a thread of its own, each when the one before it has been answered.

    Attributes:
        accepted: The numbers of the events for which the app said that the broker has them.
        refused: What the app answered instead, and the number.
        cut: The numbers of the requests whose answer never came.
    """

    def __init__(self, server: Server, series: str, *, retries: bool) -> None:
        """Begins.

        Args:
            server: Where.
            series: What the events belong to.
            retries: Whether an event that wasn't accepted is published again, with the same token, until it is.
        """
        self.series = series
        self.accepted: list[int] = []
        self.refused: list[tuple[int, dict[str, Any]]] = []
        self.cut: list[int] = []
        self.failure: BaseException | None = None
        self._server = server
        self._retries = retries
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    @property
    def is_running(self) -> bool:
        """Whether it still publishes."""
        return self._thread.is_alive()

    def stop(self) -> None:
        """Publishes one more event, until that is accepted; `is_running` says when that is done."""
        self._over.set()

    def join(self) -> None:
        """Waits for its thread.

        Raises:
            AssertionError: It still publishes, or met what it doesn't know.
        """
        self._thread.join(30)
        assert not self.is_running, f"{self.series} still publishes {len(self.accepted)}"
        assert self.failure is None, repr(self.failure)

    def _run(self) -> None:
        try:
            for n in itertools.count():
                is_last = self._over.is_set()
                while not self._try(n) and (self._retries or is_last):
                    self._over.wait(PACE)
                if is_last:
                    return
                self._over.wait(PACE)
        except BaseException as error:
            self.failure = error

    def _try(self, n: int) -> bool:
        query = {"channel": CHANNEL, "series": self.series, "first": n, "token": f"{self.series}-{n}"}
        try:
            reply = get(self._server, target("/publish", **query), method="POST", timeout=20)
        except (OSError, AssertionError, EOFError):
            # The worker was killed.
            self.cut.append(n)
            return False
        if reply.status == 200:
            self.accepted.append(n)
            return True
        assert reply.status == 503, (reply.status, reply.text)
        self.refused.append((n, reply.json()))
        return False


class Load:
    """Sources that publish, and a crowd of which one half stays and the other comes and goes.

    Attributes:
        stayers: Those who stay, whatever happens; they come back only if they are cut off.
        roamers: Those who hang up now and then, and come back with the id that they saw last.
    """

    def __init__(self, server: Server, crowd: Crowd, *, retries: bool = True, members: int = 40) -> None:
        """Opens the streams, then publishes."""
        self._crowd = crowd
        self._random = random.Random(17)
        crowd.members += [Member(server, on(CHANNEL)) for _ in range(members)]
        self.stayers, self.roamers = crowd.members[: members // 2], crowd.members[members // 2 :]
        # On a busy machine the time-out that a test has set may be too short for some, at first.
        crowd.connect(crowd.members)
        self.run_until(lambda: all(member.opened for member in crowd.members), 30, "open streams", roams=False)
        self._connections = {member: member.connections for member in crowd.members}
        self.sources = [Source(server, series, retries=retries) for series in SERIES]

    @property
    def refused(self) -> list[dict[str, Any]]:
        """What the app answered to those events that it refused."""
        return [answer for source in self.sources for _, answer in source.refused]

    def accepted(self) -> int:
        """How many events have been accepted so far."""
        return sum(len(source.accepted) for source in self.sources)

    def run_until(self, condition: Callable[[], object], timeout: float, message: str, *, roams: bool = True) -> None:
        """Lets it all go on until a condition is met."""
        deadline = time.monotonic() + timeout
        while not condition():
            assert time.monotonic() < deadline, f"{message}: not within {timeout:g} s"
            self._step(roams=roams)

    def run_for_events(self, count: int) -> None:
        """Lets it all go on until so many events more have been accepted."""
        wanted = self.accepted() + count
        self.run_until(lambda: self.accepted() >= wanted, 30, f"{count} events more")

    def finish(self) -> None:
        """Stops publishing, and reads until each member has seen the last event of each source."""
        for source in self.sources:
            source.stop()
        self.run_until(lambda: not any(source.is_running for source in self.sources), 30, "the last events")
        for source in self.sources:
            source.join()
        deadline = time.monotonic() + PATIENCE
        while behind := [member for member in self._crowd.members if not self._has_last(member)]:
            assert time.monotonic() < deadline, f"{len(behind)} lack the last event, such as {behind[0]!r}"
            self._step(roams=False)

    def assert_complete(self) -> None:
        """Each member has seen each event that was accepted once and in order, and the same order over all sources."""
        for source in self.sources:
            assert source.accepted == list(range(len(source.accepted)))
            for member in self._crowd.members:
                assert member.resets == [], member
                member.assert_complete(source.series, len(source.accepted))

    def assert_told(self) -> None:
        """No member lacks an accepted event, or has one twice, but where a reset says so."""
        for source, member in itertools.product(self.sources, self._crowd.members):
            seen, accepted = member.seen.get(source.series, []), source.accepted
            told = [0, *(at.get(source.series, 0) for _, at in member.resets), len(seen)]
            for first, end in itertools.pairwise(told):
                unbroken = seen[first:end]
                assert all(before < n for before, n in itertools.pairwise(unbroken)), member
                if unbroken:
                    # What precedes a part is what the reset before it speaks of.
                    begin = 0 if not first and not member.resets else unbroken[0]
                    untold = set(accepted) & set(range(begin, unbroken[-1])) - set(unbroken)
                    assert not untold, f"{member!r} wasn't told of {source.series} {sorted(untold)}"
            if set(accepted) - set(seen):
                assert member.resets, f"{member!r} lacks {sorted(set(accepted) - set(seen))} of {source.series}"

    def assert_stayed(self) -> None:
        """No stream of those who stay has ended."""
        assert all(member.connections == self._connections[member] for member in self.stayers)

    def _has_last(self, member: Member) -> bool:
        return all(member.seen.get(source.series, [-1])[-1] == source.accepted[-1] for source in self.sources)

    def _step(self, *, roams: bool) -> None:
        """Reads for a moment; lets one roamer hang up, and a few of those who are cut off or were refused come back."""
        self._crowd.read_for(0.04)
        if roams:
            self._crowd.leave(self._random.choice(self.roamers))
        away = [member for member in self._crowd.members if not member.is_connected or member.status not in (0, 200)]
        for member in self._random.sample(away, min(len(away), 3)):
            self._crowd.leave(member)
            self._crowd.connect([member])


class TestOneOrder:
    """Four workers, and one log."""

    def test_400_clients(self, shared: tuple[RedisServer, Server], crowd: Crowd) -> None:
        """400 clients of four workers get each of 2,000 events that all workers publish at once, once and in order."""
        _, server = shared
        crowd.join(server, [on("news")] * 400)
        assert len(streams_by_worker(crowd.members)) == WORKERS
        publishers: collections.Counter[int] = collections.Counter()

        def publish_quarter(quarter: int) -> None:
            for first in range(0, 500, 100):
                query = {"channel": "news", "series": f"quarter {quarter}", "first": first, "count": 100}
                publishers[ask(server, "/publish", **query)["pid"]] += 1

        threads = [threading.Thread(target=publish_quarter, args=(quarter,)) for quarter in range(4)]
        for thread in threads:
            thread.start()
        crowd.read_until(lambda member: sum(map(len, member.seen.values())) >= 2000 or member.ended, timeout=40)
        for thread in threads:
            thread.join()
        assert len(publishers) > 1
        for member in crowd.members:
            assert member.resets == []
            for quarter in range(4):
                member.assert_complete(f"quarter {quarter}", 500)

    def test_one_order(self, shared: tuple[RedisServer, Server]) -> None:
        """Events that four workers publish at once have the same ids and the same order in each worker's streams."""
        _, server = shared
        clients = [open_stream(server, on("order")) for _ in range(16)]
        assert len({client.headers["x-worker"] for client in clients}) > 1
        for client in clients:
            client.next_event()
        path = target("/publish", channel="order", count=50)
        asked = [open_stream(server, path, method="POST", headers={"Connection": "close"}, wait_for_head=False) for _ in range(8)]
        seen = [[(event.id, event.data) for event in client.events(400, 20)] for client in clients]
        assert len({json.loads(one.body)["pid"] for one in asked if one.read_until_closed()}) > 1
        assert all(of_client == seen[0] for of_client in seen)
        assert len(set(seen[0])) == 400
        numbers = [int((event_id or "").rpartition("-")[2]) for event_id, _ in seen[0]]
        assert numbers == sorted(set(numbers))


@pytest.mark.timeout(120)
class TestFaults:
    """What fails while events flow; nothing that was accepted is lost or comes twice."""

    def test_redis_is_killed(self, start_redis: StartRedis, serve_on: ServeOn, crowd: Crowd) -> None:
        """A Redis that writes each event down is killed, twice, and starts again: no event is lost, none comes twice, no reset."""
        redis = start_redis(**DURABLE)
        load = Load(serve_on(f"{redis.url}?durable=1", broker_timeout=TIMEOUT), crowd)
        for _ in range(2):
            load.run_for_events(60)
            redis.kill()
            load.run_until(lambda: load.refused, 10, "a publish that fails")
            redis.start()
            load.run_for_events(60)
        load.finish()
        load.assert_complete()
        load.assert_stayed()

    @pytest.mark.parametrize("options", [{"appendonly": "yes", "appendfsync": "everysec"}, {}], ids=["everysec", "nothing kept"])
    def test_redis_forgets(self, start_redis: StartRedis, serve_on: ServeOn, crowd: Crowd, options: dict[str, str]) -> None:
        """A Redis that is killed and may have forgotten events: whoever lacks one has been told by a reset, on the open stream."""
        redis = start_redis(**options)
        load = Load(serve_on(redis.url), crowd, retries=False)
        load.run_for_events(60)
        redis.restart()
        load.run_for_events(60)
        load.finish()
        load.assert_told()
        load.assert_stayed()
        assert {reason for member in load.stayers for reason in member.reset_reasons} == {"epoch"}
        assert all(member.resets for member in load.stayers)

    def test_redis_stands_still(self, start_redis: StartRedis, serve_on: ServeOn, crowd: Crowd) -> None:
        """While Redis stands still for 10 s publishing fails in time, streams stay open and alive, and the health says so."""
        redis = start_redis()
        server = serve_on(redis.url, broker_timeout=TIMEOUT, keepalive_interval=1.0)
        load = Load(server, crowd)
        probe = Source(server, "probe", retries=False)
        load.run_for_events(60)
        assert health(server).status == 200
        redis.stand_still()
        began = time.monotonic()
        load.run_until(lambda: health(server).status == 503, 9, "a red health")
        assert "broker" in (answer := health(server).json()) and not answer["broker"] and answer["live"]
        load.run_until(lambda: time.monotonic() > began + 10, 11, "ten seconds")
        redis.go_on()
        went_on = time.monotonic()
        load.run_until(lambda: all(each["broker"] for each in _healths(server)), 10, "a green health")
        load.run_for_events(60)
        probe.stop()
        load.finish()
        probe.join()
        crowd.read_until(lambda member: member.seen["probe"][-1] == probe.accepted[-1])
        load.assert_complete()
        refused = [*load.refused, *(answer for _, answer in probe.refused)]
        assert all(answer["outcome"] in ("unknown", "not_published") for answer in refused)
        assert max(answer["seconds"] for answer in refused) < TIMEOUT + 1, refused
        assert {"unknown"} <= {answer["outcome"] for answer in refused}
        unknown = {n for n, answer in probe.refused if answer["outcome"] == "unknown"}
        for member in crowd.members:
            seen = member.seen["probe"]
            assert len(set(seen)) == len(seen)
            assert set(seen) <= set(probe.accepted) | unknown, "an event that was said not to be published"
            assert set(probe.accepted) <= set(seen)
        load.assert_stayed()
        for member in load.stayers:
            assert sum(began < at < went_on for at in member.comments) >= 6, member

    def test_worker_stands_still(self, start_redis: StartRedis, serve_on: ServeOn, crowd: Crowd) -> None:
        """A worker that finds many times its history at once, having stood still, lets its streams have all of it."""
        redis = start_redis()
        server = serve_on(redis.url, workers=1, history=64)
        crowd.join(server, [on("news")] * 50)
        (pid,) = server.ready_workers()
        with Publisher(redis.url, history=64) as publisher:
            os.kill(pid, signal.SIGSTOP)
            try:
                for n in range(1000):
                    publisher.publish({"series": "news", "n": n}, channel="news")
            finally:
                os.kill(pid, signal.SIGCONT)
        crowd.read_until(lambda member: member.count("news") >= 1000 or bool(member.resets), timeout=PATIENCE)
        for member in crowd.members:
            assert member.reset_reasons == []
            member.assert_complete("news", 1000)

    def test_listeners_are_cut_off(self, start_redis: StartRedis, serve_on: ServeOn, crowd: Crowd) -> None:
        """Redis ends the connections that listen, again and again: each worker reads what it missed."""
        redis = start_redis()
        load = Load(serve_on(redis.url), crowd)
        for _ in range(4):
            load.run_for_events(30)
            assert redis.client.client_kill_filter(_type="pubsub") > 0
        load.run_for_events(30)
        load.finish()
        load.assert_complete()
        load.assert_stayed()

    def test_network_drops(self, start_redis: StartRedis, serve_on: ServeOn, crowd: Crowd) -> None:
        """A network that swallows all that is sent for some seconds costs nothing but time."""
        redis = start_redis()
        proxy = Proxy(redis.port)
        try:
            load = Load(serve_on(f"redis://127.0.0.1:{proxy.port}", broker_timeout=TIMEOUT), crowd)
            load.run_for_events(60)
            proxy.is_silent = True
            began = time.monotonic()
            load.run_until(lambda: time.monotonic() > began + 4, 5, "four seconds")
            proxy.is_silent = False
            load.run_for_events(60)
            load.finish()
            load.assert_complete()
            load.assert_stayed()
        finally:
            proxy.close()

    def test_answers_are_lost(self, start_redis: StartRedis, serve_on: ServeOn, crowd: Crowd) -> None:
        """Connections that end before Redis's answer comes through: what was stored isn't stored again."""
        redis = start_redis()
        proxy = Proxy(redis.port)
        try:
            load = Load(serve_on(f"redis://127.0.0.1:{proxy.port}"), crowd)
            for _ in range(5):
                load.run_for_events(20)
                proxy.cuts = 4
            load.run_for_events(40)
            load.finish()
            load.assert_complete()
        finally:
            proxy.close()

    def test_worker_is_killed(self, start_redis: StartRedis, serve_on: ServeOn, crowd: Crowd) -> None:
        """Workers are killed, one after the other: their clients go on at others, and publishers' retries store nothing twice."""
        redis = start_redis()
        server = serve_on(redis.url)
        load = Load(server, crowd)
        for _ in range(2):
            load.run_for_events(40)
            old = server.ready_workers()
            os.kill(old[0], signal.SIGKILL)
            load.run_until(lambda old=old: len(set(server.ready_workers()) - {old[0]}) == WORKERS, 15, "a new worker")  # type: ignore[misc]
        load.run_for_events(40)
        load.finish()
        load.assert_complete()


def _healths(server: Server) -> list[dict[str, Any]]:
    """What the health route says, several times at once."""
    asked = [open_stream(server, "/events/-/health", headers={"Connection": "close"}, wait_for_head=False) for _ in range(8)]
    for client in asked:
        client.read_until_closed()
    return [json.loads(client.body) for client in asked]


class TestGone:
    """What Redis has no more is told: by a reset where something is missing, and the next events arrive."""

    def test_flush_all(self, start_redis: StartRedis, serve_on: ServeOn, crowd: Crowd) -> None:
        """After FLUSHALL open streams get one reset each and what is published next; so does who comes back."""
        redis = start_redis()
        server = serve_on(redis.url)
        crowd.join(server, [on("news")] * 20)
        (away,) = crowd.join(server, [on("news")])
        publish(server, "news", range(5))
        seen_by(crowd, "news", 5)
        crowd.leave(away)
        redis.client.flushall()
        publish(server, "news", range(5, 8))
        crowd.connect([away])
        crowd.read_until(has("news", 8))
        for member in crowd.members:
            member.assert_complete("news", 8)
            assert (member.reset_reasons, member.ended) == (["epoch"], None)

    def test_deleted_stream(self, start_redis: StartRedis, serve_on: ServeOn, crowd: Crowd) -> None:
        """A stream's key that is gone, as if evicted, is told to who needs it, and costs those nothing who had read it."""
        redis = start_redis()
        server = serve_on(redis.url)
        ids = publish(server, "news", range(5))
        crowd.join(server, [on("other")])
        assert redis.client.delete("{sseflask}:stream:news") == 1
        (late,) = crowd.join(server, [on("news")], last_event_id=ids[1])
        (current,) = crowd.join(server, [on("news")], last_event_id=ids[4])
        publish(server, "news", range(5, 8))
        crowd.read_until(lambda member: member.count("news") == 3, [late, current])
        assert (late.seen, late.reset_reasons) == ({"news": [5, 6, 7]}, ["history"])
        assert (current.seen, current.reset_reasons) == ({"news": [5, 6, 7]}, [])

    def test_expired(self, start_redis: StartRedis, serve_on: ServeOn, crowd: Crowd) -> None:
        """Events that are older than they are kept are told to who comes back; who stayed has lost nothing."""
        redis = start_redis()
        server = serve_on(redis.url, history_seconds=1.0)
        crowd.join(server, [on("news")] * 8)
        ids = publish(server, "news", range(5))
        seen_by(crowd, "news", 5)
        kept_until = time.monotonic() + 4
        wait_until(lambda: time.monotonic() > kept_until, 6)
        late = crowd.join(server, [on("news")] * 8, last_event_id=ids[1])
        current = crowd.join(server, [on("news")] * 8, last_event_id=ids[4])
        publish(server, "news", range(5, 8))
        crowd.read_until(lambda member: member.seen.get("news", [0])[-1] == 7)
        assert {str((member.seen, member.reset_reasons)) for member in late} == {str(({"news": [5, 6, 7]}, ["history"]))}
        assert {str((member.seen, member.reset_reasons)) for member in current} == {str(({"news": [5, 6, 7]}, []))}
        for member in crowd.members[:8]:
            member.assert_complete("news", 8)
            assert member.resets == []

    def test_trimmed(self, start_redis: StartRedis, serve_on: ServeOn, crowd: Crowd) -> None:
        """Who comes back further behind than the history reaches gets a reset, and all that is kept, in any worker."""
        redis = start_redis()
        server = serve_on(redis.url, history=8)
        ids = publish(server, "news", range(30))
        crowd.join(server, [on("news")] * 12, last_event_id=ids[3])
        publish(server, "news", range(30, 33))
        crowd.read_until(lambda member: member.seen.get("news", [0])[-1] == 32)
        for member in crowd.members:
            assert (member.seen, member.reset_reasons) == ({"news": list(range(22, 33))}, ["history"]), member

    @pytest.mark.parametrize("is_deleted", [False, True], ids=["trimmed", "deleted"])
    def test_gone_during_an_outage(self, start_redis: StartRedis, serve_on: ServeOn, crowd: Crowd, *, is_deleted: bool) -> None:
        """What is gone when a worker can listen again is told on its open streams, before the next events."""
        redis = start_redis()
        proxy = Proxy(redis.port)
        try:
            server = serve_on(f"redis://127.0.0.1:{proxy.port}", workers=2, history=8, broker_timeout=TIMEOUT)
            crowd.join(server, [on("news")] * 10)
            publish(server, "news", range(3))
            seen_by(crowd, "news", 3)
            proxy.is_silent = True
            with Publisher(redis.url, history=8) as outside:
                for n in range(3, 23):
                    outside.publish({"series": "news", "n": n}, channel="news")
                if is_deleted:
                    redis.client.delete("{sseflask}:stream:news")
            wait_until(lambda: any(not each["broker"] for each in _healths(server)), 10)
            proxy.is_silent = False
            wait_until(lambda: all(each["broker"] for each in _healths(server)), 10)
            publish(server, "news", range(23, 26))
            crowd.read_until(lambda member: member.seen["news"][-1] == 25)
        finally:
            proxy.close()
        for member in crowd.members:
            assert member.resets == [("history", {"news": 3})], member
            # A worker may have noticed only when the next event came, which has pushed another one out.
            first = member.seen["news"][3]
            assert first == 23 if is_deleted else 15 <= first <= 18, member
            assert member.seen["news"] == [0, 1, 2, *range(first, 26)], member
            assert member.connections == 1


class TestAllWorkers:
    """What one worker is asked for and all of them do."""

    def test_subscribers(self, shared: tuple[RedisServer, Server], crowd: Crowd) -> None:
        """Each worker counts the streams of all."""
        _, server = shared

        def counts() -> set[int]:
            return {each["count"] for each in of_each_worker(server, target("/subscribers", channel="counted")).values()}

        members = crowd.join(server, [on("counted")] * 40)
        crowd.join(server, [on("other")] * 5)
        assert len(streams_by_worker(members)) > 1
        wait_until(lambda: counts() == {40}, 10, "all workers count 40")
        for member in members[:15]:
            crowd.leave(member)
        wait_until(lambda: counts() == {25}, 10, "all workers count 25")

    def test_disconnect(self, shared: tuple[RedisServer, Server], crowd: Crowd) -> None:
        """The streams of a channel end in all workers, those of other channels don't; who comes back is served."""
        _, server = shared
        members = crowd.join(server, [on("cut")] * 40)
        others = crowd.join(server, [on("kept")] * 10)
        assert len(streams_by_worker(members)) > 1
        ask(server, "/disconnect", channel="cut")
        crowd.read_until(lambda member: member.ended, members)
        assert {member.ended for member in others} == {None}
        crowd.connect(members[:5])
        publish(server, "kept", range(3))
        publish(server, "cut", range(3))
        crowd.read_until(has("kept", 3), others)
        crowd.read_until(has("cut", 3), members[:5])

    def test_disconnect_client(self, shared: tuple[RedisServer, Server], crowd: Crowd) -> None:
        """The streams of a client end in all workers, and no one else's."""
        _, server = shared
        theirs = crowd.join(server, [on("people", client="eve")] * 20)
        others = crowd.join(server, [on("people", client="ada")] * 20)
        assert len(streams_by_worker(theirs)) > 1
        ask(server, "/disconnect", client="eve")
        crowd.read_until(lambda member: member.ended, theirs)
        publish(server, "people", range(3))
        crowd.read_until(has("people", 3), others)
        assert {member.ended for member in others} == {None}

    def test_close(self, shared: tuple[RedisServer, Server], crowd: Crowd) -> None:
        """A channel that closes ends its streams in all workers, after what came before; who comes back gets 204 from each."""
        _, server = shared
        members = crowd.join(server, [on("closing")] * 40)
        assert len(streams_by_worker(members)) > 1
        publish(server, "closing", range(20))
        end_id = ask(server, "/close", channel="closing")["id"]
        crowd.read_until(lambda member: member.ended)
        for member in members:
            member.assert_complete("closing", 20)
            assert (member.ended, member.named[-1].event, member.last_event_id) == ("clean", "stream-end", f"{end_id}-end")
        crowd.connect(members)
        crowd.read_until(lambda member: member.status)
        assert {member.status for member in members} == {204}


#: Makes the workers let go of what nobody uses sooner than after half a minute.
HASTY: Final = """
    def post_fork(server, worker):
        import sseflask.brokers.redis_follower
        import sseflask.brokers.shared
        sseflask.brokers.shared.LINGER_SECONDS = 1.0
        sseflask.brokers.redis_follower.IDLE_SECONDS = 1.0
"""


class TestConnections:
    """Streams grow with hosts, not with Redis."""

    def test_200_streams(self, start_redis: StartRedis, serve_on: ServeOn, crowd: Crowd) -> None:
        """200 streams of 40 channels take one listening connection a worker and a bounded pool; when they leave, none listens."""
        redis = start_redis()
        server = serve_on(redis.url, config=HASTY)
        crowd.join(server, [on(f"channel-{n % 40}") for n in range(200)])
        assert len(streams_by_worker(crowd.members)) == WORKERS
        for n in range(40):
            publish(server, f"channel-{n}", range(2))
        crowd.read_until(lambda member: sum(map(len, member.seen.values())) == 2)
        assert len(redis.client.client_list(_type="pubsub")) == WORKERS
        # The others are as many as were needed at once, and bounded whatever the number of streams; one is this test's.
        assert len(redis.client.client_list()) <= 1 + WORKERS * (1 + POOL_SIZE)
        assert len(redis.client.pubsub_channels("*:live:channel-*")) == 40
        for member in crowd.members:
            crowd.leave(member)
        wait_until(lambda: not redis.client.client_list(_type="pubsub"), 15, "nobody listens any more")
        assert redis.client.pubsub_channels() == []
        # Whoever comes next is served all the same.
        crowd.join(server, [on("channel-0")] * 8)
        publish(server, "channel-0", range(2, 4))
        crowd.read_until(lambda member: member.seen.get("channel-0") == [2, 3], crowd.members[-8:])

    def test_idle_worker(self, start_redis: StartRedis, serve_on: ServeOn, crowd: Crowd) -> None:
        """While streams are open, a worker listens to their channels and the app's own; one without streams to nothing."""
        redis = start_redis()
        server = serve_on(redis.url, config=HASTY)
        (member,) = crowd.join(server, [on("news")])
        listening = wait_until(lambda: redis.client.client_list(_type="pubsub"), 5)
        assert len(listening) == 1
        channels = {channel.decode().partition("}:")[2] for channel in redis.client.pubsub_channels()}
        assert channels == {"0:life", "0:live:news", "0:live:-/control"}
        crowd.leave(member)
        wait_until(lambda: redis.client.pubsub_channels() == [], 15, "no subscription is left")


class TestUpgrade:
    """From one worker to several, to several hosts: by one setting."""

    @pytest.mark.parametrize(("workers", "on_redis"), [(1, False), (4, False), (4, True)], ids=["one", "several", "redis"])
    def test_same_app(self, start_redis: StartRedis, serve_on: ServeOn, crowd: Crowd, *, workers: int, on_redis: bool) -> None:
        """The same app does the same with one worker, with four, and with four on Redis."""
        server = serve_on(start_redis().url if on_redis else "auto", workers=workers)
        crowd.join(server, [on("board")] * 30)
        for first in range(0, 100, 10):
            publish(server, "board", range(first, first + 10))
        seen_by(crowd, "board", 100)
        wait_until(lambda: get(server, target("/subscribers", channel="board")).json()["count"] == 30, 10)
        again = crowd.members[:10]
        for member in again:
            crowd.leave(member)
        publish(server, "board", range(100, 110))
        crowd.connect(again)
        seen_by(crowd, "board", 110)
        ask(server, "/close", channel="board")
        crowd.read_until(lambda member: member.ended == "clean")
        assert not any(member.resets for member in crowd.members)


class TestAbsent:
    """A Redis that isn't there when the server starts."""

    def test_start_without(self, start_redis: StartRedis, serve_on: ServeOn, crowd: Crowd) -> None:
        """The server starts, serves plain pages and says what is wrong; once Redis is there, all works, without a restart."""
        redis = start_redis()
        redis.kill()
        server = serve_on(redis.url, broker_timeout=TIMEOUT)
        workers = server.ready_workers()
        assert get(server, "/plain").text == "plain"
        sick = health(server)
        assert (sick.status, sick.json()["broker"]) == (503, False)
        assert sick.json()["problem"] == "the broker can't be reached"
        server.wait_for_log(rf"a request is answered 503: .*127\.0\.0\.1:{redis.port}")
        for path in (on("news"), "/events/news"):
            refused = get(server, path, headers={"Accept": "text/event-stream"})
            assert (refused.status, refused.headers["content-type"]) == (503, "application/json")
            assert refused.json()["error"] == "the broker can't be reached"
        published = get(server, target("/publish", channel="news"), method="POST")
        assert (published.status, published.json()["outcome"]) == (503, "not_published")
        redis.start()
        wait_until(lambda: health(server).status == 200, 10, "a green health")
        crowd.join(server, [on("news")] * 20)
        publish(server, "news", range(10))
        seen_by(crowd, "news", 10)
        assert server.ready_workers() == workers

    def test_refuse_by_retry(self, start_redis: StartRedis, serve_on: ServeOn) -> None:
        """With `SSE_REFUSE="retry"` a subscription gets 200, a comment, `retry:` and the end: a browser comes back by itself."""
        redis = start_redis()
        redis.kill()
        server = serve_on(redis.url, workers=1, broker_timeout=0.5, refuse="retry")
        for path in (on("news"), "/events/news"):
            client = open_stream(server, path, headers={"Connection": "close"})
            assert client.read_until_closed() == "clean"
            assert (client.status, client.headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
            assert client.frames.retry_ms is not None and client.frames.retry_ms >= 500
            assert client.arrived == [] and len(client.comments) == 1
        redis.start()
        wait_until(lambda: health(server).status == 200, 10, "a green health")
        wait_until(lambda: opens(server, "news"), 10, "an open stream")

    def test_listener_waits(self, start_redis: StartRedis, serve: Serve) -> None:
        """A listener that was registered while Redis was away hears what is published when it is there."""
        redis = start_redis()
        redis.kill()
        app = """
            from tests.live.apps.shared_app import app, sse

            heard = []

            @sse.on("news")
            def hear(event):
                heard.append(event.data)

            @app.get("/heard")
            def tell():
                return {"heard": heard}
        """
        server = serve(app, env={"SSE_BROKER_URL": json.dumps(redis.url), "SSE_BROKER_TIMEOUT": "0.5"})
        assert health(server).status == 503
        redis.start()
        wait_until(lambda: health(server).status == 200, 10)

        def hears() -> bool:
            publish(server, "news", range(1))
            return bool(get(server, "/heard").json()["heard"])

        wait_until(hears, 10, "the listener hears")


class TestPasswords:
    """A password is shown nowhere."""

    PASSWORD: Final = "s3cr3t/p@ss"
    QUOTED: Final = "s3cr3t%2Fp%40ss"

    def assert_hidden(self, *texts: str) -> None:
        """None of the texts has it, or half of it, in either form."""
        for text in texts:
            assert not re.search(r"s3cr3t|p@ss|p%40ss", text), text

    @pytest.mark.parametrize("is_right", [True, False], ids=["right", "wrong"])
    def test_logs_and_answers(self, start_redis: StartRedis, serve_on: ServeOn, is_right: bool) -> None:
        """Neither in the log nor in an answer, while Redis is there, when it refuses the password, or when it is away."""
        redis = start_redis(requirepass=self.PASSWORD if is_right else "another")
        server = serve_on(f"redis://:{self.QUOTED}@127.0.0.1:{redis.port}", workers=2, broker_timeout=0.5)
        answers: list[Reply] = []

        def use() -> set[int]:
            found = [
                health(server),
                get(server, target("/publish", channel="news"), method="POST"),
                get(server, target("/subscribers", channel="news")),
                get(server, "/events/-/nothing"),
                get(server, "/worker"),
            ]
            with open_stream(server, on("news"), headers={"Connection": "close"}) as client:
                if client.status != 200:
                    client.read_until_closed()
                self.assert_hidden(bytes(client.body).decode(), str(client.header_list))
            answers.extend(found)
            return {reply.status for reply in found}

        assert (200 in use()) or not is_right
        if is_right:
            wait_until(lambda: opens(server, "news"), 10, "an open stream")
            redis.kill()
            use()
        assert 503 in {reply.status for reply in answers}
        self.assert_hidden(server.log(), *(f"{reply.text} {reply.header_list}" for reply in answers))

    @pytest.mark.parametrize(
        "url",
        [
            "redis://:{}@127.0.0.1:1/name",
            "redis://:{}@127.0.0.1:1/0?surprise=1",
            "redis://:{}@127.0.0.1:port",
            "http://:{}@127.0.0.1",
        ],
    )
    def test_wrong_url(self, serve_on: ServeOn, url: str) -> None:
        """A wrong URL is refused by its setting's name, where it is first used or before, without the password."""
        try:
            server = serve_on(url.format(self.QUOTED), workers=1)
        except ServerEnded as ended:
            text = str(ended)
        else:
            text = f"{health(server).text} {server.log()}"
        assert "SSE_BROKER_URL" in text
        self.assert_hidden(text)
