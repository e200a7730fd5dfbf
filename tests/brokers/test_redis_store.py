"""The Redis store and its follower, against a redis-server of each test's own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from sseflask.brokers import redis as redis_store
from sseflask.brokers import redis_follower
from sseflask.brokers.redis import RedisStore
from sseflask.brokers.redis_connection import POOL_SIZE, Address, Endpoint
from sseflask.brokers.redis_follower import RedisFollower
from sseflask.brokers.store import Head, Publication, Reading, Stored
from sseflask.brokers.tasks import Lease, TaskChange, TaskState
from sseflask.errors import BrokerUnavailable, InvalidSetting
from sseflask.ring import KEEP_ALL, Entry
from tests.live.process import wait_until
from tests.redis import Proxy, RedisServer, free_port, needs_redis

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT = 2.0

pytestmark = needs_redis

Open = Callable[..., RedisStore]
Start = Callable[..., RedisServer]


class Recorder:
    """A feed that takes down what it is told.

    Attributes:
        told: In order: `"interrupted"`, a head for "resumed", and entries.
    """

    def __init__(self) -> None:
        self.told: list[str | Head | Entry] = []
        self.heads: list[Head] = []

    def arrived(self, head: Head, entries: Sequence[Entry]) -> None:
        """Takes down the entries."""
        self.heads.append(head)
        self.told += entries

    def tell(self) -> None:
        """Has nobody to wake."""

    def interrupted(self, error: Exception) -> None:
        """Takes down that."""
        assert isinstance(error, BrokerUnavailable)
        self.told.append("interrupted")

    def resumed(self, head: Head) -> None:
        """Takes down the head."""
        self.told.append(head)

    @property
    def seqs(self) -> list[int]:
        """The numbers of the entries."""
        return [one.seq for one in self.told if isinstance(one, Entry)]

    @property
    def outages(self) -> list[str]:
        """What was told besides entries."""
        return [one if isinstance(one, str) else "resumed" for one in self.told if not isinstance(one, Entry)]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts servers; options are those of redis.conf."""
    servers: list[RedisServer] = []

    def make(**options: str) -> RedisServer:
        directory = tmp_path / f"redis-{len(servers)}"
        directory.mkdir()
        servers.append(RedisServer(directory, **options))
        return servers[-1].start()

    yield make
    for server in servers:
        server.close()


@pytest.fixture
def server(start: Start) -> RedisServer:
    """A server that keeps nothing on disk."""
    return start()


@pytest.fixture
def proxy(server: RedisServer) -> Iterator[Proxy]:
    """A network to it."""
    made = Proxy(server.port)
    yield made
    made.close()


@pytest.fixture
def open_store() -> Iterator[Open]:
    """Opens stores by URL, or by the server."""
    stores: list[RedisStore] = []

    def make(place: str | RedisServer | Proxy, **options: Any) -> RedisStore:
        url = place if isinstance(place, str) else f"redis://127.0.0.1:{place.port}"
        stores.append(RedisStore(url, **{"history": 8, "history_seconds": 300, "timeout": TIMEOUT, **options}))
        return stores[-1]

    yield make
    for store in stores:
        store.close()


@pytest.fixture
def store(server: RedisServer, open_store: Open) -> RedisStore:
    """A store that keeps eight entries a channel."""
    return open_store(server)


@pytest.fixture
def follow() -> Iterator[Callable[[RedisStore], tuple[RedisFollower, Recorder]]]:
    """Follows stores."""
    followers: list[RedisFollower] = []

    def make(store: RedisStore) -> tuple[RedisFollower, Recorder]:
        feed = Recorder()
        followers.append(store.follower(feed))
        return followers[-1], feed

    yield make
    for follower in followers:
        follower.close()


Follow = Callable[[RedisStore], tuple[RedisFollower, Recorder]]


def publication(channel: str = "news", text: str = "x", **fields: Any) -> Publication:
    """An event on its way."""
    return Publication(channel, b"data: %b\n\n" % text.encode(), fields.pop("token", os.urandom(8).hex()), **fields)


def publish(store: RedisStore, channel: str = "news", text: str = "x", **fields: Any) -> int:
    """Publishes an event; returns its number."""
    return int(store.publish(publication(channel, text, **fields)).id.rpartition("-")[2])


def read(store: RedisStore, channel: str = "news", after: int | None = 0) -> Reading:
    """One channel's part of the log."""
    return store.read({channel: after})[channel]


def chain(reading: Reading) -> list[tuple[int, int]]:
    """The numbers of its entries, each with the one before."""
    return [(entry.prev, entry.seq) for entry in reading.entries]


def run(script: str, *arguments: str) -> Any:
    """Runs a script in a fresh interpreter and returns what it prints, as JSON."""
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=50, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


class TestLog:
    """What is stored, and what is read."""

    def test_chain(self, store: RedisStore) -> None:
        """Numbers count over all channels, and each entry knows the one before it in its own."""
        assert [publish(store, channel) for channel in "abaab"] == [1, 2, 3, 4, 5]
        found = store.read({"a": 0, "b": 2, "c": 0, "d": None})
        assert {channel: chain(reading) for channel, reading in found.items()} == {
            "a": [(0, 1), (1, 3), (3, 4)],
            "b": [(2, 5)],
            "c": [],
            "d": [],
        }
        assert {(reading.epoch, reading.seq) for reading in found.values()} == {(store.head().epoch, 5)}
        assert [found[channel].last for channel in "abcd"] == [4, 5, 0, 0]

    def test_entry(self, store: RedisStore) -> None:
        """An entry comes back as it was published, with our id in its frame unless it has one of its own."""
        before = time.monotonic()
        stored = store.publish(publication(text="one", name="tick"))
        own = store.publish(Publication("news", b"id: u1\ndata: two\n\n", "t2", user_id="u1", is_end=True))
        first, second = read(store).entries
        assert first.frame == b"id: %b\ndata: one\n\n" % stored.id.encode()
        assert (first.name, first.user_id, first.is_end, first.channel) == ("tick", None, False, "news")
        assert own.id == "u1"
        assert second.frame == b"id: u1\ndata: two\n\n"
        assert (second.name, second.user_id, second.is_end) == (None, "u1", True)
        assert before - 0.1 <= first.at <= time.monotonic()

    def test_bytes(self, store: RedisStore) -> None:
        """A large body, an empty name and names beyond ASCII get through unchanged."""
        text = "é\u2028" * 100_000
        publish(store, "caf\u00e9 {x}", text, name="")
        (entry,) = read(store, "caf\u00e9 {x}").entries
        assert entry.frame.endswith(b"data: %b\n\n" % text.encode())
        assert (entry.name, entry.channel) == ("", "caf\u00e9 {x}")

    def test_age(self, store: RedisStore, server: RedisServer, open_store: Open) -> None:
        """An entry's age goes by Redis's clock, for whoever reads it."""
        publish(store)
        written = time.monotonic()
        wait_until(lambda: time.monotonic() - written > 0.3)
        (entry,) = read(open_store(server)).entries
        assert 0.25 < time.monotonic() - entry.at < 5

    def test_history(self, store: RedisStore) -> None:
        """A channel keeps its history's length, and goes on so; the hole before it is seen by `prev`."""
        for _ in range(20):
            publish(store)
        assert chain(read(store))[0] == (12, 13)
        publish(store, history=3)
        for _ in range(5):
            publish(store)
        reading = read(store)
        assert (chain(reading)[0], len(reading.entries), reading.limit) == ((23, 24), 3, 3)
        assert read(store, "other").limit == 8

    def test_ended(self, store: RedisStore) -> None:
        """A channel has ended until something is published on it again."""
        publish(store, is_end=True)
        assert read(store, after=None).ended
        publish(store)
        assert not read(store, after=None).ended

    def test_many_channels(self, store: RedisStore, monkeypatch: pytest.MonkeyPatch) -> None:
        """More channels than are read at once all come back."""
        monkeypatch.setattr(redis_store, "READ_CHANNELS", 7)
        numbers = {f"c{number}": publish(store, f"c{number}") for number in range(30)}
        found = store.read(dict.fromkeys(numbers, 0))
        assert {channel: reading.last for channel, reading in found.items()} == numbers

    def test_many_channels_that_change(self, store: RedisStore, monkeypatch: pytest.MonkeyPatch) -> None:
        """What is stored while many channels are read is part of none of the readings, as if all had been read at once."""
        monkeypatch.setattr(redis_store, "READ_CHANNELS", 1)
        for channel in "abcde":
            publish(store, channel)
        publish(store, "c", is_end=True)
        read_some = store._read_some

        def publishing(asked: Any) -> Any:
            found = read_some(asked)
            if "a" in asked:
                for channel in "abcdef":
                    publish(store, channel, is_end=channel == "b")
            return found

        monkeypatch.setattr(store, "_read_some", publishing)
        found = store.read({"a": 0, "b": 0, "c": 0, "d": 4, "e": None, "f": 0})
        assert {channel: chain(reading) for channel, reading in found.items()} == {
            "a": [(0, 1)],
            "b": [(0, 2)],
            "c": [(0, 3), (3, 6)],
            "d": [],
            "e": [],
            "f": [],
        }
        assert [found[channel].last for channel in "abcdef"] == [1, 2, 6, 4, 5, 0]
        assert [found[channel].ended for channel in "abc"] == [False, False, True]
        assert {reading.seq for reading in found.values()} == {6}

    def test_many_channels_in_two_lives(self, store: RedisStore, server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
        """Where another life begins meanwhile, the readings say so, and those of the other life are whole."""
        monkeypatch.setattr(redis_store, "READ_CHANNELS", 1)
        publish(store, "a")
        read_some = store._read_some

        def flushing(asked: Any) -> Any:
            found = read_some(asked)
            if "a" in asked:
                server.client.flushall()
                publish(store, "a")
                publish(store, "b")
            return found

        monkeypatch.setattr(store, "_read_some", flushing)
        found = store.read({"a": 0, "b": 0})
        assert found["a"].epoch != found["b"].epoch
        assert chain(found["b"]) == [(0, 2)]

    @pytest.mark.parametrize("count", [14, 15, 20, 21, 22])
    def test_long_stream(self, store: RedisStore, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
        """A stream that is longer than what is read at once comes back whole, beside others."""
        monkeypatch.setattr(redis_store, "READ_ENTRIES", 7)
        for number in range(count):
            publish(store, "long", history=100)
            publish(store, "short" if number < 3 else "other")
        found = store.read({"long": 0, "short": 0, "other": None, "unknown": 0})
        assert [entry.seq for entry in found["long"].entries] == list(range(1, 2 * count, 2))
        assert [entry.seq for entry in found["short"].entries] == [2, 4, 6]
        assert [entry.seq for entry in read(store, "long", after=11).entries] == list(range(13, 2 * count, 2))

    def test_long_stream_that_changes(self, store: RedisStore, server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
        """What is stored while a long stream is read isn't part of it; what goes meanwhile is a hole, or another life."""
        monkeypatch.setattr(redis_store, "READ_ENTRIES", 7)
        read_some = store._read_some
        changes: list[Callable[[], object]] = []

        def changing(asked: Any) -> Any:
            found = read_some(asked)
            if changes:
                changes.pop()()
            return found

        monkeypatch.setattr(store, "_read_some", changing)
        for _ in range(20):
            publish(store, history=100)
        changes.append(lambda: publish(store))
        reading = read(store)
        assert (reading.seq, reading.last, len(reading.entries)) == (20, 20, 20)
        changes.append(lambda: server.client.xtrim("{sseflask}:stream:news", maxlen=5, approximate=False))
        assert [entry.seq for entry in read(store).entries] == [17, 18, 19, 20, 21]
        for _ in range(20):
            publish(store)
        changes.append(lambda: server.client.delete("{sseflask}:stream:news"))
        assert read(store).entries == []
        for _ in range(20):
            publish(store)
        before = read(store)

        def begin_anew() -> None:
            server.client.flushall()
            publish(store)

        changes.append(begin_anew)
        reading = read(store)
        assert reading.epoch != before.epoch and chain(reading) == [(0, 1)]

    def test_deleted_stream(self, store: RedisStore, server: RedisServer) -> None:
        """A stream that is gone shows as a hole: what was last is known, and nothing is read."""
        publish(store)
        last = publish(store)
        server.client.delete("{sseflask}:stream:news")
        reading = read(store)
        assert (reading.last, reading.entries) == (last, [])
        publish(store)
        assert chain(read(store)) == [(last, last + 1)]

    def test_missing_entry(self, store: RedisStore, server: RedisServer) -> None:
        """What lies before a deleted entry isn't read; without the newest, nothing is."""
        for _ in range(4):
            publish(store)
        server.client.xdel("{sseflask}:stream:news", "2-0")
        assert chain(read(store)) == [(2, 3), (3, 4)]
        server.client.xdel("{sseflask}:stream:news", "4-0")
        assert chain(read(store)) == []

    def test_expiry(self, server: RedisServer, open_store: Open, monkeypatch: pytest.MonkeyPatch) -> None:
        """A quiet channel's entries expire, and that they were there doesn't."""
        monkeypatch.setattr(redis_store, "STREAM_MARGIN", 0)
        store = open_store(server, history_seconds=1)
        last = publish(store)
        assert chain(read(store)) == [(0, 1)]
        wait_until(lambda: not read(store).entries, 5)
        assert read(store).last == last

    def test_floor(self, store: RedisStore, monkeypatch: pytest.MonkeyPatch, server: RedisServer) -> None:
        """Of channels without entries only so many are remembered; the others raise the floor, where unknown ones begin."""
        monkeypatch.setattr(redis_store, "REMEMBERED_CHANNELS", 5)
        for number in range(10):
            publish(store, f"living {number}")
        assert server.client.zcard("{sseflask}:order") == 10
        assert read(store, "unknown").last == 0
        server.client.delete(*(f"{{sseflask}}:stream:living {number}" for number in range(10)))
        for number in range(10):
            publish(store, f"new {number}")
        assert server.client.hlen("{sseflask}:channels") == server.client.zcard("{sseflask}:order") == 15
        assert [read(store, f"living {number}").last for number in (0, 4, 5, 9)] == [5, 5, 6, 10]
        publish(store, "fresh")
        assert chain(read(store, "fresh")) == [(5, 21)]


class TestTokens:
    """A publish that is tried again is stored once."""

    def test_token(self, store: RedisStore, server: RedisServer, open_store: Open) -> None:
        """A token stores one event, whichever process comes with it."""
        first = store.publish(publication(token="t"))
        again = open_store(server).publish(publication(token="t"))
        assert (first.is_new, again.is_new, again.id) == (True, False, first.id)
        assert chain(read(store)) == [(0, 1)]
        assert 55 < server.client.ttl("{sseflask}:token:t") <= 60

    def test_lost_answer(self, proxy: Proxy, open_store: Open) -> None:
        """When the answer is lost after the script ran, the store's own retry stores nothing and gives the same id."""
        store = open_store(proxy)
        publish(store)
        proxy.cuts = 1
        stored = store.publish(publication(text="once"))
        assert (stored.is_new, stored.id) == (False, f"{store.head().epoch}-2")
        assert proxy.cuts == 0
        assert chain(read(store)) == [(0, 1), (1, 2)]

    def test_lost_answers(self, proxy: Proxy, open_store: Open) -> None:
        """When every answer is lost, the outcome is unknown; the caller's own retry finds it stored."""
        store = open_store(proxy, timeout=0.5)
        publish(store)
        proxy.is_silent = False
        proxy.cuts = 1000
        with pytest.raises(BrokerUnavailable) as caught:
            store.publish(publication(token="mine"))
        assert caught.value.outcome == "unknown"
        proxy.cuts = 0
        assert not store.publish(publication(token="mine")).is_new
        assert len(read(store).entries) == 2


class TestLives:
    """Restarts of Redis, and what becomes of positions."""

    def test_sigkill_with_nothing_lost(self, start: Start, open_store: Open) -> None:
        """With `appendfsync always` and durable=1, all that was accepted is there after SIGKILL, and positions stay good."""
        server = start(appendonly="yes", appendfsync="always")
        store = open_store(f"{server.url}?durable=1", history=100_000, timeout=10)
        epoch = store.head().epoch
        accepted: list[str] = []
        over = threading.Event()

        def run_on() -> None:
            while not over.is_set():
                accepted.append(store.publish(publication()).id)

        threads = [threading.Thread(target=run_on) for _ in range(4)]
        for thread in threads:
            thread.start()
        for size in (200, 400):
            wait_until(lambda size=size: len(accepted) >= size, 20)  # type: ignore[misc]
            server.restart()
        wait_until(lambda: len(accepted) >= 600, 20)
        over.set()
        for thread in threads:
            thread.join()
        reading = read(store)
        assert reading.epoch == epoch
        assert {f"{epoch}-{entry.seq}" for entry in reading.entries} >= set(accepted)
        assert len(set(accepted)) == len(accepted)
        assert len(reading.entries) == reading.seq

    def test_sigkill_with_loss(self, start: Start, open_store: Open) -> None:
        """With `everysec` a restart is told by a new epoch, and numbers go on from what was kept."""
        server = start(appendonly="yes", appendfsync="everysec")
        store = open_store(server)
        publish(store)
        before = store.head()
        wait_until(lambda: server.client.info("persistence")["aof_pending_bio_fsync"] == 0 and _is_written(server))
        server.restart()
        after = store.head()
        assert after.epoch != before.epoch
        assert after.seq == 1
        assert read(store).entries[0].frame.startswith(b"id: %b-1\n" % after.epoch.encode())
        assert server.client.hget("{sseflask}:meta", "boundary") == b"1"

    def test_nothing_on_disk(self, server: RedisServer, store: RedisStore) -> None:
        """A server that kept nothing is a new life from 0."""
        publish(store)
        before = store.head()
        server.restart()
        assert publish(store) == 1
        assert store.head().epoch != before.epoch

    def test_flushall(self, server: RedisServer, store: RedisStore) -> None:
        """After FLUSHALL each life is another, from 0, though the server is the same."""
        epochs = set()
        for _ in range(3):
            assert publish(store) == 1
            epochs.add(store.head().epoch)
            server.client.flushall()
        assert len(epochs) == 3

    def test_meta_alone_is_gone(self, server: RedisServer, store: RedisStore) -> None:
        """A life that begins beside an old one's streams stores and reads only its own."""
        for _ in range(5):
            publish(store, "old")
        server.client.delete("{sseflask}:meta")
        publish(store, "new")
        assert publish(store, "old") == 2
        assert chain(read(store, "old")) == [(0, 2)]

    def test_durable_is_checked(self, start: Start, open_store: Open) -> None:
        """durable=1 is refused for a server that isn't, by the name of what to set."""
        with pytest.raises(BrokerUnavailable, match="appendonly yes"):
            open_store(f"{start().url}?durable=1").head()
        with pytest.raises(BrokerUnavailable, match="appendfsync always; it is everysec"):
            open_store(f"{start(appendonly='yes').url}?durable=1").head()

    def test_promoted_replica(self, start: Start, open_store: Open) -> None:
        """durable=1 doesn't keep the epoch on a replica that took its master's place: it may lack what the master had."""
        durable = {"appendonly": "yes", "appendfsync": "always", "repl_diskless_sync_delay": "0"}
        master, replica = start(**durable), start(**durable)
        store = open_store(f"{master.url}?durable=1")
        publish(store)
        replica.client.replicaof("127.0.0.1", master.port)
        wait_until(lambda: replica.client.exists("{sseflask}:meta"), 20)
        before = store.head()
        master.kill()
        replica.client.replicaof("no", "one")
        promoted = open_store(f"{replica.url}?durable=1").head()
        assert promoted.epoch != before.epoch
        assert promoted.seq == before.seq


class TestTasks:
    """Tasks in Redis, and channels that keep all."""

    def test_keys(self, store: RedisStore, server: RedisServer) -> None:
        """What is kept of a task expires in a day from its last sign of life; after its end its parts and its log do so sooner."""
        keys = [f"{{sseflask}}:{name}" for name in ("task:t", "parts:t", "stream:run")]

        def lives() -> list[int]:
            return [round(server.client.ttl(key) / 10) * 10 for key in keys]

        store.tasks.create("t", channel="run")
        assert lives()[:2] == [86_400] * 2
        publish(store, "run", history=KEEP_ALL, task=TaskChange("t", "progress"))
        assert lives() == [86_400] * 3
        for renew in (lambda: store.tasks.renew(["t"]), lambda: publish(store, "run", task=TaskChange("t"))):
            for key in keys:
                server.client.expire(key, 100)
            renew()
            assert lives() == [86_400] * 3
        assert server.client.zcard("{sseflask}:tasks") == 1
        publish(store, "run", is_end=True, task=TaskChange("t", "end", TaskState.COMPLETED))
        assert lives() == [86_400, 330, 330]
        assert not server.client.exists("{sseflask}:tasks")
        server.client.expire(keys[0], 100)
        store.tasks.renew(["t"])
        assert lives() == [100, 330, 330]
        assert not server.client.exists("{sseflask}:tasks")

    def test_renew_of_another_channel(self, store: RedisStore, server: RedisServer) -> None:
        """To renew a task extends nothing but a log that is kept as a whole and hasn't ended."""
        for task_id, options in (("plain", {}), ("over", {"history": KEEP_ALL, "is_end": True})):
            store.tasks.create(task_id, channel=task_id)
            publish(store, task_id, **options)
        store.tasks.create("none", channel="none")
        assert set(store.tasks.renew(["plain", "over", "none"])) == {"plain", "over", "none"}
        assert all(320 < server.client.ttl(f"{{sseflask}}:stream:{name}") <= 330 for name in ("plain", "over"))

    def test_many_channels(self, store: RedisStore, server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
        """A silent run isn't forgotten however many channels come after it, nor does it keep those from being forgotten."""
        monkeypatch.setattr(redis_store, "REMEMBERED_CHANNELS", 5)
        for number in range(3):
            publish(store, f"run {number}", history=KEEP_ALL)
        for number in range(60):
            publish(store, f"c{number}")
            server.client.delete(f"{{sseflask}}:stream:c{number}")
            if number == 30:
                publish(store, "run 3", history=KEEP_ALL)
        assert [len(read(store, f"run {number}").entries) for number in range(4)] == [1] * 4
        assert server.client.zcard("{sseflask}:order") == server.client.hlen("{sseflask}:channels") <= 12
        # What was forgotten are plain channels, whose numbers it covers; those that are known are above it.
        floor = read(store, "unknown").last
        assert 40 < floor < read(store, "c59").last == 64

    def test_lost_answers(self, proxy: Proxy, open_store: Open) -> None:
        """When an answer is lost the store's own second attempt says what the first one did."""
        store = open_store(proxy)
        # Redis knows the scripts from here on, so that it is their answers that are lost.
        store.tasks.create("first", channel="run")
        publish(store, "run", task=TaskChange("first"))
        proxy.cuts = 1
        assert store.tasks.create("t", channel="run", facts="mine")
        assert not store.tasks.create("t", channel="run")
        proxy.cuts = 1
        stored = store.publish(publication("run", task=TaskChange("t", "end", TaskState.COMPLETED)))
        assert (stored.id, stored.refused) == (f"{store.head().epoch}-2", None)
        assert proxy.cuts == 0
        assert store.publish(publication("run", task=TaskChange("t"))).refused == "completed"

    def test_beats_that_are_gone(self, store: RedisStore, server: RedisServer) -> None:
        """Tasks that expired with nobody's word leave the index of the unfinished; one that is published to stays there."""
        for task_id in ("gone", "used", "new"):
            store.tasks.create(task_id, channel="run")
        server.client.zincrby("{sseflask}:tasks", -90_000_000, "gone")
        server.client.zincrby("{sseflask}:tasks", -90_000_000, "used")
        server.client.delete("{sseflask}:task:gone")
        assert set(store.tasks.beats()) == {"used", "new"}
        assert server.client.zcard("{sseflask}:tasks") == 2

    def test_the_clock_goes_back(self, store: RedisStore, server: RedisServer) -> None:
        """A beat is another number although Redis's clock stands still or goes back."""
        store.tasks.create("t", channel="run")
        server.client.zadd("{sseflask}:tasks", {"t": 1e14})
        beats = [store.tasks.beats()["t"]]
        for _ in range(3):
            store.tasks.renew(["t"])
            beats.append(store.tasks.beats()["t"])
        assert beats == [10**14 + number for number in range(4)]

    def test_forgotten_scripts(self, store: RedisStore, server: RedisServer) -> None:
        """Scripts that Redis has forgotten are sent again."""

        def forgotten() -> RedisStore:
            server.client.script_flush()
            return store

        assert forgotten().tasks.create("t", channel="run")
        assert forgotten().tasks.ask_cancel("t") is TaskState.PENDING
        assert forgotten().publish(publication("run", task=TaskChange("t", "a"))).is_new
        assert forgotten().tasks.renew(["t"]) == {"t": Lease(TaskState.RUNNING, True)}
        assert set(forgotten().tasks.beats()) == {"t"}
        record = forgotten().tasks.find("t")
        assert record is not None and record.seq == 1

    def test_restart(self, start: Start, open_store: Open) -> None:
        """With `appendfsync always` and durable=1, a task is after SIGKILL what it was before; it can't end a second time."""
        server = start(appendonly="yes", appendfsync="always")
        store = open_store(f"{server.url}?durable=1")
        for task_id in "ab":
            store.tasks.create(task_id, channel="run", facts="facts")
            publish(store, "run", "half", history=KEEP_ALL, task=TaskChange(task_id, "progress", TaskState.RUNNING))
        store.tasks.ask_cancel("b")
        publish(store, "run", "over", task=TaskChange("a", "end", TaskState.COMPLETED))
        known = [store.tasks.find(task_id) for task_id in "ab"]
        server.restart()
        assert [store.tasks.find(task_id) for task_id in "ab"] == known
        assert set(store.tasks.beats()) == {"b"}
        assert store.publish(publication("run", task=TaskChange("a", "end", TaskState.FAILED))).refused == "completed"
        assert publish(store, "run", task=TaskChange("b", "end", TaskState.CANCELLED)) == 4
        assert [entry.seq for entry in read(store, "run").entries] == [1, 2, 3, 4]

    def test_another_life(self, server: RedisServer, store: RedisStore) -> None:
        """Tasks live on through another epoch of the log; after FLUSHALL nothing is known of them."""
        store.tasks.create("t", channel="run")
        publish(store, "run", task=TaskChange("t", "progress", TaskState.RUNNING))
        epoch = store.head().epoch
        server.client.hset("{sseflask}:meta", "run", "another")
        assert store.head().epoch != epoch
        record = store.tasks.find("t")
        assert record is not None and (record.state, record.seq) == (TaskState.RUNNING, 1)
        server.client.flushall()
        assert store.tasks.find("t") is None and store.tasks.ask_cancel("t") is None
        assert store.tasks.beats() == store.tasks.renew(["t"]) == {}
        assert store.publish(publication("run", task=TaskChange("t"))) == Stored("", False, "")
        assert store.tasks.create("t", channel="run")

    def test_refused_leaves_no_trace(self, server: RedisServer, store: RedisStore) -> None:
        """What is refused is nowhere in Redis."""
        store.tasks.create("t", channel="run")
        publish(store, "run", task=TaskChange("t", "end", TaskState.FAILED))
        before = {key: server.client.dump(key) for key in server.client.scan_iter()}
        for task_id, refused in (("t", "failed"), ("unknown", "")):
            change = TaskChange(task_id, "end", TaskState.COMPLETED)
            assert store.publish(publication("new", task=change, history=5)) == Stored("", False, refused)
        assert {key: server.client.dump(key) for key in server.client.scan_iter()} == before

    def test_full(self, server: RedisServer, store: RedisStore) -> None:
        """A Redis that has no memory left refuses a task's event and changes nothing of the task."""
        publish(store)
        store.tasks.create("t", channel="run")
        server.client.config_set("maxmemory", "1")
        with pytest.raises(BrokerUnavailable, match="maxmemory"):
            store.tasks.create("u", channel="run")
        with pytest.raises(BrokerUnavailable) as caught:
            publish(store, "run", task=TaskChange("t", "end", TaskState.COMPLETED))
        assert caught.value.outcome == "not_published"
        server.client.config_set("maxmemory", "0")
        record = store.tasks.find("t")
        assert record is not None and (record.state, record.parts) == (TaskState.PENDING, ())
        assert store.tasks.find("u") is None and set(store.tasks.beats()) == {"t"}


class TestOutages:
    """A Redis that can't be used: every call ends in time and says what became of it."""

    @pytest.mark.parametrize(("is_warm", "outcome"), [(True, "unknown"), (False, "not_published")])
    def test_standing_still(self, server: RedisServer, open_store: Open, is_warm: bool, outcome: str) -> None:
        """A server that stands still costs the time-out; unknown is what was sent, not published what never could be."""
        store = open_store(server, timeout=0.5)
        if is_warm:
            publish(store)
        server.stand_still()
        began = time.monotonic()
        with pytest.raises(BrokerUnavailable) as caught:
            store.publish(publication(token="t"))
        assert caught.value.outcome == outcome
        assert 0.4 < time.monotonic() - began < 4
        server.go_on()
        stored = wait_until(lambda: _published(store, "t"))
        # What had been sent to the server was stored once it went on; the same token finds it.
        assert stored.is_new == (not is_warm)

    def test_killed(self, server: RedisServer, open_store: Open) -> None:
        """A connection that the server has closed sends nothing: what can't be connected to is not published."""
        store = open_store(server, timeout=0.3)
        publish(store)
        server.kill()
        with pytest.raises(BrokerUnavailable, match="Connection refused") as caught:
            publish(store)
        assert caught.value.outcome == "not_published"
        with pytest.raises(BrokerUnavailable):
            store.head()

    def test_back_in_time(self, server: RedisServer, open_store: Open) -> None:
        """A publish outlasts a short outage."""
        store = open_store(server, timeout=20)
        publish(store)
        server.kill()
        found: list[int] = []
        thread = threading.Thread(target=lambda: found.append(publish(store)))
        thread.start()
        server.start()
        thread.join(20)
        assert found == [1]

    def test_full(self, server: RedisServer, store: RedisStore) -> None:
        """A server without memory refuses; nothing is stored, and it is said at once."""
        publish(store)
        server.client.config_set("maxmemory", 1)
        began = time.monotonic()
        with pytest.raises(BrokerUnavailable, match="maxmemory") as caught:
            store.publish(publication(token="t"))
        assert caught.value.outcome == "not_published"
        assert time.monotonic() - began < TIMEOUT / 2
        assert read(store).seq == 1
        server.client.config_set("maxmemory", 0)
        assert store.publish(publication(token="t")).is_new

    def test_read_only(self, server: RedisServer, store: RedisStore) -> None:
        """A master that has become a replica takes nothing, and is asked again until it is one."""
        publish(store)
        server.client.replicaof("127.0.0.1", free_port())
        threading.Timer(0.5, lambda: server.client.replicaof("no", "one")).start()
        assert store.publish(publication()).is_new

    def test_eviction(self, start: Start, open_store: Open) -> None:
        """A server that may evict keys is refused, by the name of what to set."""
        store = open_store(start(maxmemory_policy="allkeys-lru"))
        for call in (store.head, lambda: publish(store)):
            with pytest.raises(BrokerUnavailable, match=r"maxmemory-policy is allkeys-lru.*noeviction"):
                call()

    def test_forgotten_script(self, server: RedisServer, store: RedisStore) -> None:
        """A server that has forgotten the scripts gets them again."""
        publish(store)
        server.client.script_flush()
        assert publish(store) == 2
        server.client.script_flush()
        assert read(store).last == 2

    def test_pool(self, server: RedisServer, open_store: Open) -> None:
        """Many threads share few connections, and wait for one no longer than the time-out."""
        store = open_store(server, timeout=10)
        threads = [threading.Thread(target=lambda: [publish(store) for _ in range(20)]) for _ in range(3 * POOL_SIZE)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert store.head().seq == 3 * POOL_SIZE * 20
        assert len(server.client.client_list()) <= POOL_SIZE + 1

    def test_busy_pool(self, server: RedisServer, open_store: Open) -> None:
        """Who waits for a connection in vain is told that nothing was published, and the pool is whole afterwards."""
        store = open_store(server, timeout=0.5)
        publish(store)
        server.stand_still()
        outcomes: list[str] = []

        def try_once() -> None:
            try:
                publish(store)
            except BrokerUnavailable as error:
                outcomes.append(error.outcome)

        for _ in range(2):
            threads = [threading.Thread(target=try_once) for _ in range(2 * POOL_SIZE)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        assert len(outcomes) == 4 * POOL_SIZE
        assert set(outcomes) == {"unknown", "not_published"}
        server.go_on()
        wait_until(lambda: _published(store, "t"))

    def test_close(self, server: RedisServer, store: RedisStore) -> None:
        """Closing lets go of the connections; closing twice is fine, and the next call opens it again."""
        publish(store)
        store.close()
        store.close()
        wait_until(lambda: len(server.client.client_list()) == 1)
        assert publish(store) == 2


class TestAddress:
    """What a URL may be, and what is shown of it."""

    @pytest.mark.parametrize(
        ("url", "shown", "database", "durable"),
        [
            ("redis://localhost", "redis://localhost/0", 0, False),
            ("redis://:pass@host:7000/3?durable=1", "redis://host:7000/3", 3, True),
            ("rediss://user:pass@host:7000?ssl_cert_reqs=none&db=2", "rediss://host:7000/2", 2, False),
            ("unix://:pass@/run/redis.sock?db=1&durable=0", "unix:///run/redis.sock?db=1", 1, False),
            ("unix:///run/redis.sock?password=pass", "unix:///run/redis.sock", 0, False),
        ],
    )
    def test_parse(self, url: str, shown: str, database: int, durable: bool) -> None:
        """The place is read as redis-py reads it, and shown without who comes."""
        address = Address.parse(url)
        assert (address.url, address.database, address.durable) == (shown, database, durable)
        assert "durable" not in address.full
        assert "pass" not in repr(address)

    @pytest.mark.parametrize(
        "url",
        [
            "redis://:s3cr3t@host/0?socket_timeout=1",
            "redis://:s3cr3t@host/0?durable=yes",
            "redis://:s3cr3t@host/name",
            "redis://:s3/cr3t@host/0",
            "redis://:p@s3cr3t:x/0",
            "unix://:s3cr3t@",
            "http://:s3cr3t@host",
        ],
    )
    def test_refused(self, url: str) -> None:
        """Another URL is refused by the setting's name, and its password isn't shown."""
        with pytest.raises(InvalidSetting, match="SSE_BROKER_URL") as caught:
            RedisStore(url, history=8, history_seconds=300, timeout=1)
        assert "cr3t" not in str(caught.value) + repr(caught.value.value)
        assert "cr3t" not in "".join(traceback.format_exception(caught.value))

    @pytest.mark.parametrize("configured", ["s3cr3t", "another"])
    def test_password(self, start: Start, open_store: Open, configured: str, caplog: pytest.LogCaptureFixture) -> None:
        """A password serves, right or wrong, and is shown nowhere."""
        server = start(requirepass=configured)
        store = open_store(f"redis://:s3cr3t@127.0.0.1:{server.port}", timeout=0.3)
        shown = f"{store!r} {store.url} {vars(store)}"
        if configured == "s3cr3t":
            assert publish(store) == 1
        else:
            with pytest.raises(BrokerUnavailable, match="invalid") as caught:
                store.head()
            shown += "".join(traceback.format_exception(caught.value))
        assert "s3cr3t" not in shown + caplog.text

    def test_password_in_an_error(self) -> None:
        """A password isn't shown though an error of redis-py's, or of the system's, should hold it in either spelling."""
        endpoint = Endpoint("redis://:s3%2Fcr3t@host", prefix="p", timeout=1)
        told = endpoint.failed(ValueError("s3%2Fcr3t and s3/cr3t are wrong"))
        assert "cr3t" not in str(told)
        assert str(told).startswith("redis://host/0: ")

    def test_no_library(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Without redis-py the answer is the extra to install."""
        monkeypatch.setitem(sys.modules, "redis", None)
        with pytest.raises(InvalidSetting, match=r"pip install 'sseflask\[redis\]'"):
            RedisStore("redis://localhost", history=8, history_seconds=300, timeout=1)

    def test_nothing_is_opened(self, open_store: Open) -> None:
        """Making a store for a server that isn't there costs nothing."""
        assert open_store(f"redis://127.0.0.1:{free_port()}").url

    def test_unix(self, start: Start, open_store: Open, tmp_path: Path) -> None:
        """A Unix socket serves as well."""
        path = tmp_path / "socket"
        start(unixsocket=str(path))
        assert publish(open_store(f"unix://{path}")) == 1

    def test_databases(self, server: RedisServer, open_store: Open, follow: Follow) -> None:
        """Logs in two databases of one server don't meet, though its Pub/Sub knows no databases."""
        one, two = open_store(f"{server.url}/0"), open_store(f"{server.url}/1")
        follower, feed = follow(one)
        follower.listen(["news"])
        publish(two)
        publish(two)
        assert publish(one) == 1
        wait_until(lambda: feed.told)
        assert feed.seqs == [1]


class TestReports:
    """How many streams each channel has."""

    def test_counts(self, store: RedisStore) -> None:
        """Reports of processes add up, the latest of each counts, and only for its time."""
        store.report("one", {"a": 3, "b": 1, "none": 0}, 60)
        store.report("two", {"a": 2}, 60)
        assert store.counts() == {"a": 5, "b": 1}
        assert store.counts(["a", "unknown"]) == {"a": 5}
        assert store.counts([]) == {}
        store.report("one", {"a": 1}, 0.2)
        assert store.counts() == {"a": 3}
        wait_until(lambda: store.counts() == {"a": 2})
        store.report("two", {}, 60)
        assert store.counts() == {}


class TestFollower:
    """What is heard of new entries."""

    def test_entries(self, store: RedisStore, follow: Follow) -> None:
        """What is published after `listen` returned arrives in order, as it is read; what isn't listened to doesn't."""
        publish(store)
        follower, feed = follow(store)
        follower.listen(["a", "b"])
        for number in range(300):
            publish(store, "abc"[number % 3], str(number), name="n", is_end=number == 298)
        wait_until(lambda: len(feed.seqs) == 200)
        expected = sorted([*read(store, "a").entries, *read(store, "b").entries], key=lambda entry: entry.seq)
        told = [one for one in feed.told if isinstance(one, Entry)]
        assert [_facts(entry) for entry in told[-len(expected) :]] == [_facts(entry) for entry in expected]
        assert feed.outages == []
        assert feed.heads[-1].epoch == store.head().epoch
        assert [head.seq for head in feed.heads] == sorted(head.seq for head in feed.heads)

    def test_own_id(self, store: RedisStore, follow: Follow) -> None:
        """A publisher's own id arrives."""
        follower, feed = follow(store)
        follower.listen(["news"])
        store.publish(Publication("news", b"id: u1\ndata: x\n\n", "t", user_id="u1"))
        (entry,) = wait_until(lambda: list(feed.told))
        assert isinstance(entry, Entry)
        assert (entry.user_id, entry.frame) == ("u1", b"id: u1\ndata: x\n\n")

    def test_many_channels(self, store: RedisStore, follow: Follow, server: RedisServer) -> None:
        """Ten thousand channels are listened to by one connection, and let go."""
        follower, feed = follow(store)
        channels = [f"channel {number}" for number in range(10_000)]
        follower.listen(channels)
        assert len(server.client.client_list(_type="pubsub")) == 1
        assert server.client.pubsub_numsub("{sseflask}:0:live:channel 9999")[0][1] == 1
        publish(store, channels[-1])
        wait_until(lambda: feed.seqs == [1])
        follower.unlisten(channels)
        wait_until(lambda: server.client.pubsub_channels() == [b"{sseflask}:0:life"])

    def test_again(self, store: RedisStore, follow: Follow) -> None:
        """A channel that is let go and listened to again, at once, is followed."""
        follower, feed = follow(store)
        for number in range(200):
            follower.listen(["news"])
            publish(store, "news", str(number))
            follower.unlisten(["news"])
        wait_until(lambda: feed.seqs[-1:] == [200])
        assert feed.seqs == list(range(1, 201))

    def test_many_threads(self, store: RedisStore, follow: Follow) -> None:
        """Threads that listen at once are each answered for their own channels."""
        follower, feed = follow(store)

        def use(name: str) -> None:
            for _ in range(20):
                follower.listen([name, "shared"])
                publish(store, name)

        threads = [threading.Thread(target=use, args=(f"c{number}",)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        wait_until(lambda: len(feed.seqs) == 160)
        assert feed.seqs == sorted(feed.seqs)

    def test_nothing_there(self, open_store: Open, follow: Follow) -> None:
        """Without a server `listen` fails in time, says why, and follows nothing."""
        follower, feed = follow(open_store(f"redis://127.0.0.1:{free_port()}", timeout=0.3))
        with pytest.raises(BrokerUnavailable, match="refused"):
            follower.listen(["news"])
        assert follower._wanted == set()
        assert feed.told == []

    def test_failed_listen(self, server: RedisServer, open_store: Open, follow: Follow) -> None:
        """A `listen` that fails takes nothing from those before it."""
        store = open_store(server, timeout=0.5)
        follower, feed = follow(store)
        follower.listen(["a"])
        server.stand_still()
        with pytest.raises(BrokerUnavailable, match="SUBSCRIBE"):
            follower.listen(["a", "b"])
        server.go_on()
        wait_until(lambda: _published(store, "t", "a"))
        wait_until(lambda: feed.seqs[-1:] == [1] or "resumed" in feed.outages)
        assert follower._wanted == {"a"}

    def test_settle(self, server: RedisServer, store: RedisStore, follow: Follow) -> None:
        """Settling returns when all is told that was stored before, also for many at once, and while the connection is lost."""
        follower, feed = follow(store)
        follower.listen(["news"])

        def use(_: int) -> None:
            for _ in range(20):
                number = publish(store)
                follower.settle()
                assert number in feed.seqs or any(isinstance(one, Head) and one.seq >= number for one in feed.told)

        with ThreadPoolExecutor(8) as pool:
            used = pool.map(use, range(8))
            for _ in range(3):
                wait_until(lambda: server.client.client_kill_filter(_type="pubsub"))
            assert len(list(used)) == 8

    def test_settle_in_time(self, server: RedisServer, open_store: Open, follow: Follow) -> None:
        """Settling fails in time where Redis doesn't answer."""
        follower, _ = follow(open_store(server, timeout=0.3))
        follower.listen(["news"])
        server.stand_still()
        with pytest.raises(BrokerUnavailable, match="told within"):
            follower.settle()
        server.go_on()

    def test_client_kill(self, server: RedisServer, store: RedisStore, follow: Follow) -> None:
        """A listener that Redis has dropped says so once, comes back, and tells where the log stands then."""
        follower, feed = follow(store)
        follower.listen(["a", "b"])
        publish(store, "a")
        wait_until(lambda: feed.seqs == [1])
        server.client.client_kill_filter(_type="pubsub")
        missed = publish(store, "a")
        wait_until(lambda: "resumed" in feed.outages)
        assert feed.outages == ["interrupted", "resumed"]
        head = next(one for one in feed.told if isinstance(one, Head))
        assert (head.epoch, head.seq) == (store.head().epoch, missed)
        publish(store, "b")
        wait_until(lambda: feed.seqs[-1] == 3)

    def test_restart(self, server: RedisServer, store: RedisStore, follow: Follow) -> None:
        """However long Redis is away, it is told once; the new life's head is told when it is back."""
        follower, feed = follow(store)
        follower.listen(["news"])
        before = store.head().epoch
        server.kill()
        wait_until(lambda: feed.told == ["interrupted"])
        attempts = feed.told.copy()
        server.start()
        wait_until(lambda: feed.outages == ["interrupted", "resumed"])
        assert attempts == ["interrupted"]
        head = feed.told[-1]
        assert isinstance(head, Head)
        assert head.epoch not in (before, "")
        publish(store)
        wait_until(lambda: feed.seqs == [1])

    def test_flushall(self, server: RedisServer, store: RedisStore, follow: Follow) -> None:
        """A new life is told before its first entry, and once, though it begins on a channel that nobody here listens to."""
        follower, feed = follow(store)
        follower.listen(["news"])
        publish(store)
        server.client.flushall()
        publish(store, "unheard")
        wait_until(lambda: feed.outages == ["resumed"])
        publish(store)
        wait_until(lambda: feed.seqs == [1, 2])
        epoch = store.head().epoch
        assert [one.epoch for one in feed.told if isinstance(one, Head)] == [epoch]
        assert isinstance(feed.told[1], Head)
        assert feed.heads[-1] == Head(epoch, 2)

    def test_standing_still(self, server: RedisServer, open_store: Open, follow: Follow, monkeypatch: pytest.MonkeyPatch) -> None:
        """A server that stands still is noticed within the bound, and followed again when it goes on."""
        monkeypatch.setattr(redis_follower, "PING_SECONDS", 0.2)
        store = open_store(server, timeout=0.5)
        follower, feed = follow(store)
        follower.listen(["news"])
        server.stand_still()
        wait_until(lambda: feed.told == ["interrupted"], 2)
        server.go_on()
        wait_until(lambda: feed.outages == ["interrupted", "resumed"], 10)
        wait_until(lambda: _published(store, "t"))
        wait_until(lambda: feed.seqs == [1])

    def test_silence(self, proxy: Proxy, open_store: Open, follow: Follow, monkeypatch: pytest.MonkeyPatch) -> None:
        """A network that drops everything is noticed within the bound; a quiet one is left alone."""
        monkeypatch.setattr(redis_follower, "PING_SECONDS", 0.05)
        store = open_store(proxy, timeout=0.5)
        follower, feed = follow(store)
        follower.listen(["news"])
        connections = proxy.connections
        began = time.monotonic()
        wait_until(lambda: time.monotonic() - began > 1)
        assert (feed.told, proxy.connections) == ([], connections)
        proxy.is_silent = True
        wait_until(lambda: feed.told == ["interrupted"], 2)
        proxy.is_silent = False
        wait_until(lambda: feed.outages == ["interrupted", "resumed"], 10)
        publish(store)
        wait_until(lambda: feed.seqs == [1])

    def test_unread(self, server: RedisServer, store: RedisStore, follow: Follow) -> None:
        """A listener that is too slow is dropped by Redis at its bound, and comes back."""
        server.client.config_set("client-output-buffer-limit", "pubsub 1000000 0 0")
        follower, feed = follow(store)
        follower.listen(["news"])
        holds = threading.Event()
        arrived = feed.arrived

        def hold(head: Head, entries: Sequence[Entry]) -> None:
            holds.wait(20)
            arrived(head, entries)

        feed.arrived = hold  # type: ignore[method-assign]
        for _ in range(100):
            publish(store, "news", "x" * 200_000)
        wait_until(lambda: not server.client.client_list(_type="pubsub"))
        holds.set()
        wait_until(lambda: feed.outages == ["interrupted", "resumed"], 10)
        assert feed.seqs == list(range(1, len(feed.seqs) + 1))
        publish(store)
        wait_until(lambda: feed.seqs[-1] == 101)

    def test_idle(self, server: RedisServer, store: RedisStore, follow: Follow, monkeypatch: pytest.MonkeyPatch) -> None:
        """When nobody listens for a while the connection ends, without a word; the next to listen opens it again."""
        monkeypatch.setattr(redis_follower, "IDLE_SECONDS", 0.1)
        monkeypatch.setattr(redis_follower, "PING_SECONDS", 0.05)
        follower, feed = follow(store)
        follower.listen(["news"])
        follower.unlisten(["news"])
        wait_until(lambda: not server.client.client_list(_type="pubsub"))
        follower.listen(["news"])
        publish(store)
        wait_until(lambda: feed.told)
        assert (feed.seqs, feed.outages) == ([1], [])

    def test_feed_fails(self, store: RedisStore, follow: Follow, caplog: pytest.LogCaptureFixture) -> None:
        """A feed that fails doesn't end the following: it is logged, and told where to read on."""
        follower, feed = follow(store)
        follower.listen(["news"])
        arrived = feed.arrived

        def fail(head: Head, entries: Sequence[Entry]) -> None:
            feed.arrived = arrived  # type: ignore[method-assign]
            raise ValueError("told badly")

        feed.arrived = fail  # type: ignore[method-assign]
        publish(store)
        wait_until(lambda: feed.outages == ["interrupted", "resumed"])
        publish(store)
        wait_until(lambda: feed.seqs == [2])
        assert "told badly" in caplog.text

    def test_close(self, server: RedisServer, store: RedisStore, follow: Follow) -> None:
        """Closing ends the thread and the connection, twice is fine, and it is for good."""
        before = set(threading.enumerate())
        follower, _ = follow(store)
        follower.listen(["news"])
        follower.close()
        follower.close()
        wait_until(lambda: not server.client.client_list(_type="pubsub"))
        assert not any(thread.name == "sseflask redis" for thread in set(threading.enumerate()) - before)
        with pytest.raises(BrokerUnavailable, match="closed"):
            follower.listen(["news"])


FORKED = """
import json, os, sys
from sseflask.brokers.redis import RedisStore
from sseflask.brokers.store import Publication

store = RedisStore(sys.argv[1], history=8, history_seconds=300, timeout=5)


def publish(token):
    return store.publish(Publication("news", b"data: x\\n\\n", token)).id


publish("parent")
children = []
for number in range(4):
    child = os.fork()
    if child == 0:
        for turn in range(50):
            publish(f"{number} {turn}")
        os._exit(0)
    children.append(child)
for turn in range(50):
    publish(f"parent {turn}")
codes = [os.waitpid(child, 0)[1] for child in children]
publish("last")
print(json.dumps([codes, store.head().seq]))
"""

PATCHED = """
import gevent.monkey
gevent.monkey.patch_all()

import json, os, sys, threading, time
import gevent
from sseflask.brokers.redis import RedisStore
from sseflask.brokers.store import Publication

start_native = gevent.monkey.get_original("_thread", "start_new_thread")
store = RedisStore(sys.argv[1], history=100_000, history_seconds=300, timeout=20)
ids, done, errors, told, ticks = [], [], [], [], [0]


class Feed:
    def arrived(self, head, entries):
        told.extend(entry.seq for entry in entries)

    def tell(self):
        pass

    def interrupted(self, error):
        errors.append(repr(error))

    def resumed(self, head):
        errors.append("resumed")


def publish(name, count):
    try:
        for number in range(count):
            ids.append(store.publish(Publication("news", b"data: x\\n\\n", f"{name} {number}")).id)
    except BaseException as error:
        errors.append(repr(error))
    done.append(name)


def tick():
    while True:
        ticks[0] += 1
        time.sleep(0.001)


follower = store.follower(Feed())
follower.listen(["news"])
gevent.spawn(tick)
for number in range(4):
    start_native(publish, (f"thread {number}", 2000))
greenlets = [gevent.spawn(publish, f"greenlet {number}", 500) for number in range(40)]
deadline = time.monotonic() + 45
while len(done) < 44 and time.monotonic() < deadline:
    time.sleep(0.01)
while len(told) < 28_000 and not errors and time.monotonic() < deadline:
    time.sleep(0.01)
follower.close()
print(json.dumps({
    "done": len(done), "ids": len(set(ids)), "errors": errors, "seq": store.head().seq,
    "in_order": told == list(range(1, 28_001)), "ticks": ticks[0],
}))
"""


class TestProcesses:
    """Forks, native threads and greenlets."""

    def test_fork(self, server: RedisServer) -> None:
        """A store that was used before a fork serves both processes, each by connections of its own."""
        assert run(FORKED, server.url) == [[0, 0, 0, 0], 252]

    def test_native_threads_and_greenlets(self, server: RedisServer) -> None:
        """In a patched process 4 native threads and 40 greenlets publish at once: all is stored once and heard, nobody is stuck."""
        found = run(PATCHED, server.url)
        assert found["errors"] == []
        assert (found["done"], found["ids"], found["seq"], found["in_order"]) == (44, 28_000, 28_000, True)
        # The hub's other greenlets run meanwhile.
        assert found["ticks"] > 200


def _published(store: RedisStore, token: str, channel: str = "news") -> Any:
    try:
        return store.publish(publication(channel, token=token))
    except BrokerUnavailable:
        return None


def _facts(entry: Entry) -> tuple[Any, ...]:
    return entry.seq, entry.prev, entry.channel, entry.frame, entry.name, entry.user_id, entry.is_end


def _is_written(server: RedisServer) -> bool:
    """Whether what was published is in the file, whatever the kernel has done with it."""
    directory = Path(server._directory) / "appendonlydir"
    return any(b"news" in path.read_bytes() for path in directory.glob("*.incr.aof"))
