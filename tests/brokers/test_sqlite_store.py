"""The SQLite store: what it keeps and for how long, in one process and between several, and what it says when it can't."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import select
import signal
import sqlite3
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

import sseflask.brokers.sqlite
import sseflask.brokers.sqlite_file
import sseflask.brokers.sqlite_tasks
from sseflask.brokers.sqlite import SQLiteStore
from sseflask.brokers.sqlite_follower import SQLiteFollower
from sseflask.brokers.store import Head, Publication
from sseflask.brokers.tasks import REMEMBERED_SECONDS, Part, TaskChange, TaskRecord, TaskState
from sseflask.errors import BrokerUnavailable
from sseflask.log import REMEMBERED_CHANNELS
from sseflask.ring import KEEP_ALL, Entry
from tests.live.process import wait_until

ROOT = Path(__file__).resolve().parents[2]
PRELUDE = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
import json, os, time
from sseflask.brokers.sqlite import SQLiteStore
from sseflask.brokers.store import Publication
from sseflask.errors import BrokerUnavailable

def told(value):
    print(json.dumps(value), flush=True)

def store(**options):
    settings = {{"history": 100000, "history_seconds": 300.0, "history_bytes": 1 << 28, "timeout": 5.0, **options}}
    return SQLiteStore(sys.argv[1], **settings)

def event(channel, text, token=None):
    return Publication(channel, f"data: {{text}}\\n\\n".encode(), token or os.urandom(8).hex())
"""

Open = Callable[..., SQLiteStore]


class FakeTime:
    """Stands for the module `time`."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        """The second."""
        return self.now


class Told:
    """A feed that notes what it is told."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.heads: list[Head] = []
        self.words: list[str] = []
        self.at: list[float] = []
        self.calls: list[str] = []

    def arrived(self, head: Head, entries: Sequence[Entry]) -> None:
        """Notes entries."""
        self.calls.append("arrived")
        self.heads.append(head)
        self.at += [time.monotonic()] * len(entries)
        self.entries += entries

    def tell(self) -> None:
        """Has nobody to wake."""
        self.calls.append("tell")

    def interrupted(self, error: Exception) -> None:
        """Notes an outage."""
        self.words.append(f"interrupted: {error}")

    def resumed(self, head: Head) -> None:
        """Notes its end."""
        self.calls.append("resumed")
        self.heads.append(head)
        self.words.append("resumed")

    def seqs(self) -> list[int]:
        """The numbers of the entries, in the order in which they were told."""
        return [entry.seq for entry in self.entries]


class Process:
    """Another process, which runs a script on the same file and tells lines of JSON."""

    def __init__(self, script: str, path: Path, *args: str) -> None:
        command = [sys.executable, "-c", PRELUDE + script, str(path), *args]
        self.popen = subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.PIPE, cwd=ROOT)
        assert self.popen.stdout is not None
        self.lines = self.popen.stdout

    def told(self) -> Any:
        """The next thing that it tells."""
        line = self.lines.readline()
        assert line, "it ended early"
        return json.loads(line)

    def rest(self) -> list[Any]:
        """What else it tells, until it has ended."""
        # Not `communicate`, which passes over what has been read ahead; the test's time limit bounds it.
        text = self.lines.read()
        return [json.loads(line) for line in text.splitlines() if line.endswith(b"]")]

    def go(self) -> None:
        """Lets it go on that waits for a line."""
        assert self.popen.stdin is not None
        self.popen.stdin.write(b"\n")
        self.popen.stdin.flush()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the file will be."""
    return tmp_path / "events.db"


@pytest.fixture
def run(path: Path) -> Iterator[Callable[..., Process]]:
    """Starts other processes, and ends them with the test."""
    running: list[Process] = []

    def start(script: str, *args: str) -> Process:
        running.append(Process(script, path, *args))
        return running[-1]

    yield start
    for process in running:
        with process.popen as popen:
            popen.kill()


@pytest.fixture
def opened(path: Path) -> Iterator[Open]:
    """Opens stores on the file."""
    stores: list[SQLiteStore] = []

    def make(**options: Any) -> SQLiteStore:
        settings: dict[str, Any] = {"history": 256, "history_seconds": 300.0, "history_bytes": 1 << 26, "timeout": 5.0, **options}
        stores.append(SQLiteStore(str(path), **settings))
        return stores[-1]

    yield make
    for store in stores:
        store.close()


@pytest.fixture
def store(opened: Open) -> SQLiteStore:
    """A store."""
    return opened()


@pytest.fixture
def follow() -> Iterator[Callable[..., tuple[SQLiteFollower, Told]]]:
    """Follows channels of a store, to the end of the test."""
    followers: list[SQLiteFollower] = []

    def begin(store: SQLiteStore, *channels: str) -> tuple[SQLiteFollower, Told]:
        told = Told()
        follower = store.follower(told)
        followers.append(follower)
        follower.listen(channels)
        return follower, told

    yield begin
    for follower in followers:
        follower.close()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> FakeTime:
    """The monotonic clock of the store."""
    fake = FakeTime()
    monkeypatch.setattr(sseflask.brokers.sqlite, "time", fake)
    monkeypatch.setattr(sseflask.brokers.sqlite_file, "time", fake)
    return fake


def event(channel: str, text: str = "x", **options: Any) -> Publication:
    """A publication with a token of its own."""
    return Publication(channel, f"data: {text}\n\n".encode(), options.pop("token", None) or os.urandom(8).hex(), **options)


def texts(store: SQLiteStore, channel: str, after: int = 0) -> list[str]:
    """The data of a channel's entries."""
    return [str(entry.event.data) for entry in store.read({channel: after})[channel].entries]


def rows(path: Path, query: str) -> list[Any]:
    """What a connection from outside finds in the file."""
    with contextlib.closing(sqlite3.connect(path)) as db:
        return db.execute(query).fetchall()


class TestPublish:
    """What a publish stores and returns."""

    def test_ids(self, store: SQLiteStore) -> None:
        """Numbers count up over all channels, in ids of the head's epoch; a publisher's own id is returned as it is."""
        found = [store.publish(event("a")), store.publish(event("b")), store.publish(event("a", user_id="mine"))]
        epoch = store.head().epoch
        assert [stored.id for stored in found] == [f"{epoch}-1", f"{epoch}-2", "mine"]
        assert len(epoch) == 12 and int(epoch, 16) >= 0
        assert store.head() == Head(epoch, 3)

    def test_entries(self, store: SQLiteStore) -> None:
        """What is read is what was published: the frame with its id line, the name, the user's id, the end, the age."""
        before = time.monotonic()
        store.publish(Publication("a", b"event: news\ndata: 1\n\n", "t1", name="news"))
        store.publish(Publication("a", b"id: mine\ndata: 2\n\n", "t2", user_id="mine"))
        store.publish(Publication("a", b"event: stream-end\ndata: \n\n", "t3", name="stream-end", is_end=True))
        reading = store.read({"a": 0})["a"]
        epoch = reading.epoch
        assert [entry.frame for entry in reading.entries] == [
            f"id: {epoch}-1\nevent: news\ndata: 1\n\n".encode(),
            b"id: mine\ndata: 2\n\n",
            f"id: {epoch}-3\nevent: stream-end\ndata: \n\n".encode(),
        ]
        assert [(entry.name, entry.user_id, entry.is_end) for entry in reading.entries] == [
            ("news", None, False),
            (None, "mine", False),
            ("stream-end", None, True),
        ]
        assert all(before <= entry.at <= time.monotonic() for entry in reading.entries)
        assert (reading.seq, reading.last, reading.ended, reading.limit) == (3, 3, True, 256)

    def test_ended_no_more(self, store: SQLiteStore) -> None:
        """A channel that is published to after its end isn't ended any more."""
        store.publish(event("a", is_end=True))
        store.publish(event("a"))
        assert not store.read({"a": None})["a"].ended

    def test_prev(self, store: SQLiteStore) -> None:
        """Each entry names the one before it in its channel, whatever lies between them."""
        for channel in "abaab":
            store.publish(event(channel))
        found = store.read({"a": 0, "b": 0})
        assert [(entry.seq, entry.prev) for entry in found["a"].entries] == [(1, 0), (3, 1), (4, 3)]
        assert [(entry.seq, entry.prev) for entry in found["b"].entries] == [(2, 0), (5, 2)]

    def test_read(self, store: SQLiteStore) -> None:
        """Entries after a number are read, none for None, and a channel that isn't known stands at the floor."""
        for number in range(4):
            store.publish(event("a", str(number)))
        assert texts(store, "a", after=2) == ["2", "3"]
        found = store.read({"a": None, "b": 0})
        assert (found["a"].last, found["a"].entries, found["b"].last, found["b"].entries) == (4, [], 0, [])

    def test_token(self, store: SQLiteStore) -> None:
        """A publish whose token was seen returns the first one's id, is not new, and stores nothing."""
        first = store.publish(event("a", "1", token="t"))
        mine = store.publish(event("a", "2", token="u", user_id="mine"))
        assert store.publish(event("a", "3", token="t")).id == first.id
        assert store.publish(event("a", "4", token="u")).id == mine.id == "mine"
        assert not store.publish(event("b", "5", token="t")).is_new
        assert first.is_new and texts(store, "a") == ["1", "2"]
        assert store.publish(event("a", "6")).id.endswith("-3")

    @pytest.mark.parametrize("start", [0.0, 20.0, 59.0])
    def test_token_for_a_minute(self, store: SQLiteStore, clock: FakeTime, start: float) -> None:
        """A token counts for 60 s, wherever in a minute it came; afterwards it is one like any other."""
        store.head()
        clock.now += start
        store.publish(event("a", token="t"))
        clock.now += 59.5
        assert not store.publish(event("a", token="t")).is_new
        clock.now += 1.0
        assert store.publish(event("a", token="t")).is_new

    def test_tokens_go(self, store: SQLiteStore, clock: FakeTime, path: Path) -> None:
        """Tokens of minutes ago are removed, some with each publish."""
        for number in range(500):
            store.publish(event("a", token=f"old {number}"))
        clock.now += 130
        for number in range(20):
            store.publish(event("a", token=f"new {number}"))
        assert rows(path, "SELECT count(*) FROM tokens") == [(20,)]

    def test_native_threads(self, store: SQLiteStore) -> None:
        """Four threads publish 2,000 each at once: all are stored, once, with contiguous numbers."""
        ids: list[list[str]] = [[], [], [], []]

        def work(number: int) -> None:
            for _ in range(2000):
                ids[number].append(store.publish(event(f"c{number}", history=2000)).id)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(40)
        found = store.read({f"c{number}": 0 for number in range(4)})
        seqs = sorted(entry.seq for reading in found.values() for entry in reading.entries)
        assert seqs == list(range(1, 8001))
        assert sorted(int(id.split("-")[1]) for some in ids for id in some) == seqs

    def test_counts(self, opened: Open, clock: FakeTime) -> None:
        """Counts are added up over processes, replaced by a later report, and forgotten when their time is up."""
        one, two = opened(), opened()
        one.report("1", {"a": 2, "b": 1}, 10)
        two.report("2", {"a": 3}, 30)
        assert one.counts() == {"a": 5, "b": 1}
        one.report("1", {"a": 1}, 10)
        assert two.counts(["a", "b"]) == {"a": 4, "b": 0}
        clock.now += 11
        assert one.counts() == {"a": 3}


class TestKept:
    """What is kept, and for how long."""

    def test_history(self, store: SQLiteStore) -> None:
        """A reader gets a channel's newest entries up to its history, a number of its own or the store's."""
        for number in range(400):
            store.publish(event("a", str(number), history=8 if number == 0 else None))
            store.publish(event("b", str(number)))
        found = store.read({"a": 0, "b": 0})
        assert [entry.event.data for entry in found["a"].entries] == [str(number) for number in range(392, 400)]
        assert (found["a"].limit, found["b"].limit, len(found["b"].entries)) == (8, 256, 256)

    def test_file_after_history(self, store: SQLiteStore, path: Path) -> None:
        """What is beyond a channel's history leaves the file, an eighth late at the most."""
        for number in range(1000):
            store.publish(event("ab"[number % 2], history=80))
        assert all(80 <= count <= 90 for _, count in rows(path, "SELECT channel, count(*) FROM events GROUP BY channel"))
        kept = "SELECT channel, count(*), sum(length(event) + 200) FROM events GROUP BY channel ORDER BY channel"
        assert rows(path, kept) == rows(path, "SELECT channel, entries, bytes FROM channels ORDER BY channel")

    def test_age(self, store: SQLiteStore, clock: FakeTime, path: Path) -> None:
        """What is too old isn't read, and leaves the file with later publishes to another channel."""
        for number in range(200):
            store.publish(event("quiet", str(number)))
        clock.now += 200
        store.publish(event("quiet", "young"))
        clock.now += 101
        assert texts(store, "quiet") == ["young"]
        assert store.read({"quiet": None})["quiet"].last == 201
        for _ in range(10):
            store.publish(event("loud"))
        assert rows(path, "SELECT count(*) FROM events WHERE channel = 'quiet'") == [(1,)]

    def test_bytes(self, opened: Open, path: Path) -> None:
        """Beyond the bytes for all, the channels that were published to least recently give way first."""
        store = opened(history_bytes=1 << 18)
        body = "x" * 1000
        for _ in range(50):
            store.publish(event("old", body))
        for _ in range(400):
            store.publish(event("new", body))
            store.publish(event("newer", body, history=8))
        (size,) = rows(path, "SELECT sum(length(event) + 200) FROM events")[0]
        assert size <= (1 << 18) * 9 / 8 + 2000
        assert texts(store, "old") == [] and len(texts(store, "newer")) == 8
        assert store.read({"old": 0})["old"].last == 50

    @pytest.mark.parametrize("app_publishes", [False, True])
    def test_bytes_of_a_guest(self, opened: Open, app_publishes: bool) -> None:
        """Who publishes to an app's file goes by the app's bytes, be they more or fewer than its own, once they are noted there."""
        guest = opened(history=1000, history_bytes=1 << 18, is_guest=True)
        body = "x" * 1000

        def kept() -> int:
            return len(texts(guest, "a"))

        def note(history_bytes: int) -> None:
            app = opened(history=1000, history_bytes=history_bytes)
            if app_publishes:
                app.publish(event("app"))
            else:
                app.report("app", {"a": 1}, 60)

        for _ in range(400):
            guest.publish(event("a", body))
        assert kept() < 240
        for history_bytes, fewest, most in ((1 << 20, 399, 700), (1 << 17, 1, 125)):
            note(history_bytes)
            # One that goes on looks again once a second.
            guest = opened(history=1000, history_bytes=1 << 18, is_guest=True)
            for _ in range(400):
                guest.publish(event("a", body))
            assert fewest < kept() < most

    def test_full_prune(self, opened: Open, clock: FakeTime, path: Path) -> None:
        """Numbers and the channel's last go on after all entries have gone."""
        store = opened()
        for _ in range(5):
            store.publish(event("a"))
        clock.now += 301
        store.publish(event("b"))
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
            db.execute("DELETE FROM events")
        store.close()
        assert store.publish(event("a")).id.endswith("-7")
        (entry,) = store.read({"a": 0})["a"].entries
        assert entry.prev == 5

    def test_floor(self, store: SQLiteStore, clock: FakeTime, path: Path) -> None:
        """Channels beyond those that are remembered raise the floor, at which an unknown channel begins."""
        more = 70
        for number in range(REMEMBERED_CHANNELS + more):
            store.publish(event(f"c{number}"))
        assert store.read({"unknown": None})["unknown"].last == 0
        clock.now += 301
        for _ in range(120):
            store.publish(event("loud"))
        assert rows(path, "SELECT count(*) FROM channels") == [(REMEMBERED_CHANNELS + 1,)]
        found = store.read({"unknown": None, "c0": None, f"c{more}": None})
        assert [found[name].last for name in ("unknown", "c0", f"c{more}")] == [more, more, more + 1]
        store.publish(event("unknown"))
        assert store.read({"unknown": 0})["unknown"].entries[0].prev == more

    def test_file_bounded(self, opened: Open, path: Path) -> None:
        """Neither the file nor its log grows on and on, though a reader and a follower have it open."""
        store = opened(history=50)
        sizes = []
        for _ in range(3):
            for number in range(3000):
                store.publish(event(f"c{number % 5}", "x" * 500))
                if number % 100 == 0:
                    store.read({"c0": 0})
            sizes.append(path.stat().st_size)
        assert sizes[2] < 3 << 20
        assert Path(f"{path}-wal").stat().st_size < 6 << 20


class TestKeepsAll:
    """Channels that keep all until they end: what of them is in the file, and what they cost others."""

    def test_bookkeeping(self, opened: Open, path: Path, clock: FakeTime) -> None:
        """What is noted of each channel is what the file has of it, however entries go."""
        store = opened(history=8, history_bytes=1 << 15)
        for number in range(300):
            store.publish(event("run", "x" * (number % 50), history=KEEP_ALL))
            store.publish(event("plain", "x" * 100))
            store.publish(event("over", "x" * 100, history=KEEP_ALL, is_end=number == 150))
            clock.now += 2.0
        kept = "SELECT channel, count(*), sum(length(event) + 200) FROM events GROUP BY channel ORDER BY channel"
        noted = "SELECT channel, entries, bytes FROM channels WHERE entries > 0 ORDER BY channel"
        assert rows(path, kept) == rows(path, noted)
        assert dict(rows(path, "SELECT channel, entries FROM channels"))["run"] == 300
        store.publish(event("run", is_end=True))
        clock.now += 301
        for _ in range(60):
            store.publish(event("plain"))
        assert rows(path, kept) == rows(path, noted)
        assert dict(rows(path, "SELECT channel, entries FROM channels"))["run"] == 0

    def test_bytes_at_the_end(self, opened: Open, path: Path) -> None:
        """A long run counts against the bytes of all as soon as it has ended, not when as much has been published again."""
        store = opened(history_bytes=1 << 17)
        for number in range(1000):
            store.publish(event("run", "x" * 1000, history=KEEP_ALL, is_end=number == 999))
        (size,) = rows(path, "SELECT sum(length(event) + 200) FROM events")[0]
        assert size > 1 << 20
        for _ in range(20):
            store.publish(event("plain"))
        (size,) = rows(path, "SELECT sum(length(event) + 200) FROM events")[0]
        assert size <= 1 << 17

    def test_at_the_front(self, store: SQLiteStore, clock: FakeTime, path: Path) -> None:
        """Entries that stay at the front of the log for long keep no others from going, which are passed over once."""
        for number in range(500):
            store.publish(event("run", history=KEEP_ALL))
            if number % 5 == 0:
                store.publish(event("plain"))
        clock.now += 301
        for _ in range(12):
            store.publish(event("loud"))
        assert rows(path, "SELECT channel, count(*) FROM events GROUP BY channel") == [("loud", 12), ("run", 500)]
        assert len(texts(store, "run")) == 500
        for _ in range(3):
            clock.now += 301
            store.publish(event("loud"))
            store.publish(event("loud"))
        assert rows(path, "SELECT count(*) FROM events WHERE channel = 'loud'") == [(2,)]

    def test_another_file(self, store: SQLiteStore, clock: FakeTime, path: Path) -> None:
        """What is passed over in one file isn't in another that takes its place."""
        for _ in range(300):
            store.publish(event("run", history=KEEP_ALL))
        clock.now += 301
        for _ in range(8):
            store.publish(event("plain"))
        path.unlink()
        with pytest.raises(BrokerUnavailable):
            store.publish(event("plain"))
        for _ in range(3):
            store.publish(event("plain"))
        clock.now += 301
        for _ in range(2):
            store.publish(event("loud"))
        assert rows(path, "SELECT channel, count(*) FROM events GROUP BY channel") == [("loud", 2)]

    @pytest.mark.parametrize("undone", [event("loud", token="u"), event("run", task=TaskChange("unknown"))])
    def test_what_is_undone(self, store: SQLiteStore, clock: FakeTime, path: Path, undone: Publication) -> None:
        """A publish whose token was seen, or which is refused, undoes what it removed; the next one removes it."""
        store.publish(event("run", history=KEEP_ALL))
        store.publish(event("plain"))
        clock.now += 290
        store.publish(event("loud", token="u"))
        clock.now += 11
        assert not store.publish(undone).is_new
        kept = "SELECT channel FROM events ORDER BY seq"
        assert rows(path, kept) == [("run",), ("plain",), ("loud",)]
        clock.now += 2
        store.publish(event("loud"))
        assert rows(path, kept) == [("run",), ("loud",), ("loud",)]

    def test_long_run(self, opened: Open, clock: FakeTime, path: Path) -> None:
        """A run of thousands leaves the file after its time, some with each publish; meanwhile nobody reads half of it."""
        store = opened()
        for number in range(2000):
            store.publish(event("run", str(number), history=KEEP_ALL, is_end=number == 1999))
        clock.now += 299
        assert len(texts(store, "run")) == 2000
        clock.now += 2
        left = []
        for _ in range(40):
            store.publish(event("plain"))
            left.append(rows(path, "SELECT count(*) FROM events WHERE channel = 'run'")[0][0])
            assert texts(store, "run") == []
        assert left[0] >= 1900 and left[-1] == 0
        assert all(before - after <= 128 for before, after in itertools.pairwise(left))
        reading = store.read({"run": 0})["run"]
        assert (reading.last, reading.ended) == (2000, True)

    def test_nobody_works_on_it(self, opened: Open, clock: FakeTime, path: Path) -> None:
        """A run whose process died leaves the file after a day, one that is renewed or was begun since doesn't."""
        store = opened()
        for channel in ("dead", "renewed", "begun", "nobody's"):
            store.publish(event(channel, history=KEEP_ALL))
        for channel in ("dead", "renewed"):
            store.tasks.create(channel, channel=channel)
        clock.now += REMEMBERED_SECONDS * 0.7
        store.tasks.create("begun", channel="begun")
        store.tasks.renew(["renewed"])
        clock.now += REMEMBERED_SECONDS * 0.7
        store.publish(event("plain"))
        assert rows(path, "SELECT channel FROM events ORDER BY seq") == [("renewed",), ("begun",), ("plain",)]


class TestTasks:
    """Tasks in the file."""

    def test_reopened(self, opened: Open) -> None:
        """What is known of tasks is there for who opens the file later."""
        first = opened()
        first.tasks.create("a", channel="run", facts="facts")
        first.tasks.create("b", channel="run")
        first.tasks.ask_cancel("a")
        first.publish(event("run", "half", task=TaskChange("a", "progress", TaskState.RUNNING)))
        first.publish(event("run", "done", task=TaskChange("b", "end", TaskState.COMPLETED)))
        beats = first.tasks.beats()
        known = [first.tasks.find(task_id) for task_id in "ab"]
        first.close()
        second = opened()
        assert [second.tasks.find(task_id) for task_id in "ab"] == known
        assert known[0] == TaskRecord(
            "a", "run", "facts", TaskState.RUNNING, True, False, 1, (Part("progress", 1, b"data: half\n\n"),)
        )
        assert second.tasks.beats() == beats and set(beats) == {"a"}
        assert second.publish(event("run", task=TaskChange("b"))).refused == "completed"

    def test_processes(self, store: SQLiteStore, run: Callable[..., Process]) -> None:
        """Another process works on a task, is asked to end it, does so, and can't do more."""
        script = """
            from sseflask.brokers.tasks import TaskChange, TaskState

            def says(text, **change):
                publication = event("run", text)
                return s.publish(Publication("run", publication.body, publication.token, task=TaskChange(sys.argv[2], **change)))

            s = store()
            told(s.tasks.create(sys.argv[2], channel="run"))
            says("half", part="progress", state=TaskState.RUNNING)
            told("runs"); sys.stdin.readline()
            lease = s.tasks.renew([sys.argv[2]])[sys.argv[2]]
            told([lease.state, lease.is_cancel_asked])
            says("over", part="end", state=TaskState.CANCELLED)
            told(says("late").refused)
        """
        worker = run(textwrap.dedent(script), "t")
        assert worker.told() is True and worker.told() == "runs"
        assert not store.tasks.create("t", channel="other")
        beats = store.tasks.beats()
        assert store.tasks.ask_cancel("t") is TaskState.RUNNING
        worker.go()
        assert worker.told() == ["running", True]
        assert worker.told() == "cancelled"
        record = store.tasks.find("t")
        assert record is not None and record.state is TaskState.CANCELLED and record.is_cancel_asked
        assert [(part.key, part.body) for part in record.parts] == [
            ("progress", b"data: half\n\n"),
            ("end", b"data: over\n\n"),
        ]
        assert set(beats) == {"t"} and store.tasks.beats() == {}
        assert texts(store, "run") == ["half", "over"]

    def test_file_of_before(self, opened: Open, path: Path) -> None:
        """A file that was made before there were tasks is used as it is, and gets what it lacks."""
        store = opened()
        first = store.publish(event("a", "old")).id
        store.close()
        with contextlib.closing(sqlite3.connect(path)) as db:
            db.executescript("DROP TABLE tasks; DROP TABLE parts; DROP INDEX channels_that_keep_all; DROP TABLE bounds")
        one, other = opened(), opened()
        assert one.tasks.create("t", channel="a") and not other.tasks.create("t", channel="a")
        assert other.publish(event("a", "new", task=TaskChange("t", "part"))).id == f"{first[:-1]}2"
        assert texts(one, "a") == ["old", "new"]

    def test_kept_in_the_file(self, opened: Open, clock: FakeTime, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Parts go after the history's seconds, records after a day and beyond their number, those that ended first."""
        monkeypatch.setattr(sseflask.brokers.sqlite_tasks, "REMEMBERED_TASKS", 150)
        store = opened()
        store.tasks.create("alone", channel="run")
        for number in range(200):
            store.tasks.create(f"t{number}", channel="run")
            store.publish(event("run", task=TaskChange(f"t{number}", "progress")))
            store.publish(event("run", task=TaskChange(f"t{number}", "end", TaskState.COMPLETED)))
            clock.now += 0.5
        clock.now += 2
        store.publish(event("plain"))
        store.publish(event("plain"))
        assert rows(path, "SELECT count(*), min(ended) FROM tasks WHERE ended IS NOT NULL")[0][0] == 150
        assert store.tasks.find("t49") is None and store.tasks.find("t50") is not None
        assert rows(path, "SELECT count(*) FROM parts") == [(300,)]
        clock.now += 301
        for _ in range(20):
            store.publish(event("plain"))
        assert rows(path, "SELECT count(*) FROM parts") == [(0,)]
        assert rows(path, "SELECT count(*) FROM tasks") == [(151,)]
        clock.now += REMEMBERED_SECONDS
        for _ in range(20):
            store.publish(event("plain"))
        assert rows(path, "SELECT count(*) FROM tasks") == [(0,)]

    def test_many_parts(self, store: SQLiteStore, clock: FakeTime, path: Path) -> None:
        """A task of a thousand files leaves the file some at a time, and none of them stays."""
        store.tasks.create("t", channel="run")
        for number in range(1000):
            store.publish(event("run", task=TaskChange("t", f"file {number}")))
        store.publish(event("run", task=TaskChange("t", "end", TaskState.FAILED)))
        clock.now += 301
        left = []
        for _ in range(30):
            store.publish(event("plain"))
            left.append(rows(path, "SELECT count(*) FROM parts")[0][0])
        assert left[0] >= 900 and left[-1] == 0
        record = store.tasks.find("t")
        assert record is not None and record.is_expired

    def test_refused_leaves_no_trace(self, store: SQLiteStore, path: Path) -> None:
        """What is refused is nowhere in the file."""
        store.tasks.create("t", channel="run")
        store.publish(event("run", task=TaskChange("t", "end", TaskState.FAILED)))
        tables = ("events", "channels", "tokens", "tasks", "parts", "sqlite_sequence")
        before = [rows(path, f"SELECT * FROM {table}") for table in tables]
        for change in (TaskChange("t", "end", TaskState.COMPLETED), TaskChange("unknown", "end", TaskState.COMPLETED)):
            stored = store.publish(event("new", task=change, history=5))
            assert (stored.id, stored.is_new, stored.refused) == ("", False, "failed" if change.id == "t" else "")
        assert [rows(path, f"SELECT * FROM {table}") for table in tables] == before

    def test_boot(self, opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
        """Tasks live on through another boot, with the file."""
        store = opened(synchronous="full")
        store.tasks.create("t", channel="run")
        store.publish(event("run", task=TaskChange("t", "progress")))
        known = store.tasks.find("t")
        store.close()
        monkeypatch.setattr(sseflask.brokers.sqlite_file, "boot_id", lambda: "another")
        assert store.tasks.find("t") == known is not None


class TestMode:
    """Who may read the file."""

    @pytest.fixture(autouse=True)
    def umask(self) -> Iterator[None]:
        """As most systems have it: what is made may be read by all."""
        before = os.umask(0o022)
        yield
        os.umask(before)

    @staticmethod
    def modes(path: Path) -> set[int]:
        """Those of the file and of the two beside it."""
        return {Path(f"{path}{suffix}").stat().st_mode & 0o777 for suffix in ("", "-wal", "-shm")}

    def test_made_for_one_user(self, store: SQLiteStore, path: Path) -> None:
        """What it makes, its user alone may read and write; made anew, too, after it was deleted."""
        store.publish(event("a"))
        assert self.modes(path) == {0o600}
        path.unlink()
        with pytest.raises(BrokerUnavailable):
            store.publish(event("a"))
        store.publish(event("a"))
        assert self.modes(path) == {0o600}

    def test_through_a_link(self, store: SQLiteStore, path: Path) -> None:
        """What a link leads to is made so, too."""
        path.symlink_to(path.with_name("elsewhere.db"))
        store.publish(event("a"))
        assert self.modes(path.with_name("elsewhere.db")) == {0o600}

    def test_without_mknod(self, store: SQLiteStore, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Where a user may make no file without opening it, that is what is done."""

        def refuse(*_: object) -> None:
            raise PermissionError

        monkeypatch.setattr(os, "mknod", refuse)
        store.publish(event("a"))
        assert self.modes(path) == {0o600}

    def test_made_by_others(self, store: SQLiteStore, path: Path) -> None:
        """One that is there keeps its mode: several users may share it."""
        path.touch()
        path.chmod(0o660)
        store.publish(event("a"))
        assert self.modes(path) == {0o660}


class TestLives:
    """Epochs: when a log's life goes on, and when another begins."""

    def test_restart(self, opened: Open) -> None:
        """What one store has published another finds after it, in the same epoch."""
        first = opened()
        id = first.publish(event("a", "1")).id
        first.close()
        second = opened()
        assert texts(second, "a") == ["1"]
        assert second.publish(event("a")).id == f"{id[:12]}-2"

    @pytest.mark.parametrize(("synchronous", "goes_on"), [("normal", False), ("full", True)])
    def test_boot(self, opened: Open, monkeypatch: pytest.MonkeyPatch, clock: FakeTime, synchronous: str, goes_on: bool) -> None:
        """After another boot another life begins, unless each commit waited for the disk; entries stay, numbers go on."""
        store = opened(synchronous=synchronous)
        epoch = store.head().epoch
        store.publish(event("a", "old"))
        clock.now += 100
        store.publish(event("a", "new"))
        store.close()
        monkeypatch.setattr(sseflask.brokers.sqlite_file, "boot_id", lambda: "another")
        clock.now = 5.0
        assert (store.head().epoch == epoch) == goes_on
        entries = store.read({"a": 0})["a"].entries
        assert [entry.at for entry in entries] == pytest.approx([-95.0, 5.0])
        assert store.publish(event("a")).id.endswith("-3")
        # The boot is another once.
        again = store.head().epoch
        store.close()
        assert store.head().epoch == again
        clock.now = 206.0
        assert texts(store, "a") == ["new", "x"]

    def test_one_was_not_careful(self, opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
        """One process that didn't wait for the disk is enough for another life after another boot."""
        careful, hasty = opened(synchronous="full"), opened()
        epoch = careful.head().epoch
        hasty.head()
        hasty.close()
        careful.close()
        monkeypatch.setattr(sseflask.brokers.sqlite_file, "boot_id", lambda: "another")
        assert careful.head().epoch != epoch

    def test_the_wall_clock(self, store: SQLiteStore, monkeypatch: pytest.MonkeyPatch) -> None:
        """The wall clock is asked by nobody."""
        monkeypatch.setattr(time, "time", lambda: 1 / 0)
        store.publish(event("a"))
        assert texts(store, "a") == ["x"]

    @pytest.mark.parametrize("replaced", [False, True])
    def test_file_deleted(self, opened: Open, path: Path, replaced: bool) -> None:
        """A file that was deleted or replaced is said once, nothing is accepted into the old one, and a new life begins."""
        store, other = opened(), opened()
        epoch = store.head().epoch
        store.publish(event("a"))
        if replaced:
            path.rename(f"{path}.old")
            assert not other.head().seq
        else:
            path.unlink()
        with pytest.raises(BrokerUnavailable, match=f"{path} was deleted") as caught:
            store.publish(event("a"))
        assert caught.value.outcome == "not_published"
        assert store.head().epoch != epoch and store.head().seq == 0
        assert store.publish(event("a", "new")).id.endswith("-1")
        assert texts(opened(), "a") == ["new"]

    def test_leftovers(self, store: SQLiteStore, opened: Open, path: Path, run: Callable[..., Process]) -> None:
        """What a deleted file has left behind, while another process has it open, isn't taken for the new one's."""
        script = """
            s = store()
            for number in range(500):
                s.publish(event(f"c{number}", number))
            s.head()
            told("ready"); sys.stdin.readline()
            try:
                told(s.publish(event("a", "lost")).id)
            except BrokerUnavailable as error:
                told(str(error))
            s.close()
            told("closed")
        """
        old = run(textwrap.dedent(script))
        old.told()
        path.unlink()
        assert store.publish(event("a", "new")).id.endswith("-1")
        assert texts(store, "a") == ["new"]
        old.go()
        assert "was deleted or replaced" in old.told() and old.told() == "closed"
        assert texts(store, "a") == texts(opened(), "a") == ["new"]
        assert store.publish(event("a")).id.endswith("-2")


LOCKER = """
import sqlite3
db = sqlite3.connect(sys.argv[1], isolation_level=None)
db.execute("BEGIN IMMEDIATE")
told("locked")
time.sleep(float(sys.argv[2]))
db.execute("COMMIT")
told("free")
time.sleep(30)
"""


class TestTrouble:
    """Files that can't be used: what is said, what is kept, and that it works again afterwards."""

    def test_locked_for_long(self, opened: Open, run: Callable[..., Process]) -> None:
        """A publish waits for another process's lock, and succeeds when it is gone; readers don't wait."""
        store = opened(timeout=10.0)
        store.publish(event("a"))
        run(LOCKER, "3").told()
        assert texts(store, "a") == ["x"]
        since = time.monotonic()
        assert store.publish(event("a")).is_new
        assert 2.0 < time.monotonic() - since < 9.0

    def test_locked_too_long(self, opened: Open, run: Callable[..., Process]) -> None:
        """A publish gives up when its time is up, has stored nothing, and works again when the lock is gone."""
        store = opened(timeout=0.3)
        store.publish(event("a", "1"))
        locker = run(LOCKER, "3")
        locker.told()
        since = time.monotonic()
        with pytest.raises(BrokerUnavailable, match=r"locked by another process for more than 0\.3 s") as caught:
            store.publish(event("a", "lost"))
        assert 0.3 <= time.monotonic() - since < 2.5
        assert caught.value.outcome == "not_published"
        assert locker.told() == "free"
        assert store.publish(event("a", "2")).id.endswith("-2")
        assert texts(store, "a") == ["1", "2"]

    def test_locked_at_first(self, opened: Open, path: Path, run: Callable[..., Process]) -> None:
        """Opening waits too, for a file that is locked as a whole before it has tables."""
        locker = run(LOCKER.replace("BEGIN IMMEDIATE", "BEGIN EXCLUSIVE"), "1")
        locker.told()
        assert opened().publish(event("a")).is_new

    def test_hub_goes_on(self, path: Path, opened: Open, run: Callable[..., Process]) -> None:
        """Under gevent a publish that waits for the lock lets the other greenlets run."""
        opened().publish(event("a"))
        script = """
            import gevent.monkey; gevent.monkey.patch_all()
            import gevent
            late = []
            def tick():
                while True:
                    before = time.monotonic(); gevent.sleep(0.01); late.append(time.monotonic() - before - 0.01)
            s = store(); s.head()
            gevent.spawn(tick)
            gevent.sleep(0.05)
            told("ready"); sys.stdin.readline()
            # Nothing ticks while the test is waited for.
            gevent.sleep(0.05); late.clear()
            before = time.monotonic()
            id = s.publish(event("a", "x")).id
            told([id[12:], time.monotonic() - before, len(late), max(late)])
        """
        publisher = run(textwrap.dedent(script))
        publisher.told()
        run(LOCKER, "3").told()
        publisher.go()
        id, waited, ticks, latest = publisher.told()
        assert id == "-2" and waited > 2.0
        assert ticks > 50 and latest < waited / 2

    def test_full(self, store: SQLiteStore, path: Path) -> None:
        """A full disk refuses an event, which isn't stored then; with room again everything works, and nothing was lost."""
        for number in range(5):
            store.publish(event("a", str(number)))
        self.limit_pages(store)
        with pytest.raises(BrokerUnavailable, match=f"{path} can't grow: the disk is full") as caught:
            store.publish(event("a", "x" * 500_000, token="t"))
        assert caught.value.outcome == "not_published"
        assert store.publish(event("a", "5", token="t")).id.endswith("-6")
        assert texts(store, "a") == ["0", "1", "2", "3", "4", "5"]

    def test_full_of_old(self, opened: Open, clock: FakeTime) -> None:
        """A file that may not grow takes events again when what it holds has become too old."""
        store = opened(history=100_000)
        store.head()
        with pytest.raises(BrokerUnavailable, match="full"):  # noqa: PT012
            while True:
                store.publish(event("a", "x" * 1000))
                self.limit_pages(store, 300)
        clock.now += 301
        for _ in range(100):
            self.limit_pages(store, 300)
            store.publish(event("a", "x" * 1000))

    def limit_pages(self, store: SQLiteStore, pages: int = 60) -> None:
        """Lets the file of a store have so many pages at the most."""
        store._writing.run(lambda opened: opened.db.execute(f"PRAGMA max_page_count={pages}").fetchall())

    def test_full_disk(self, path: Path, run: Callable[..., Process]) -> None:
        """A file system that refuses to write more stops publishing without a loss: what was accepted is there, the rest isn't."""
        script = """
            import resource, signal
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            s = store(); s.publish(event("a", "x"))
            soft = os.path.getsize(sys.argv[1] + "-wal") + 200_000
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, resource.RLIM_INFINITY))
            accepted, refused = [], 0
            for number in range(300):
                try:
                    accepted.append(int(s.publish(event("a", "x" * 2000)).id[13:]))
                except BrokerUnavailable as error:
                    refused += 1; problem = str(error), error.outcome
                    if refused == 3: break
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            accepted.append(int(s.publish(event("a", "x")).id[13:]))
            told([accepted, refused, problem])
        """
        accepted, refused, problem = run(textwrap.dedent(script)).told()
        assert refused == 3, problem
        assert accepted == list(range(2, len(accepted) + 2))
        assert [seq for (seq,) in rows(path, "SELECT seq FROM events ORDER BY seq")] == [1, *accepted]

    @pytest.mark.parametrize(
        ("make", "problem"),
        [
            (lambda path: path.write_bytes(b"no database at all" * 500), "is no SQLite database: remove it"),
            (lambda path: path.mkdir(), "can't be opened"),
            (lambda path: sqlite3.connect(path).execute("CREATE TABLE theirs(x)").connection.close(), "of something else"),
            (lambda path: sqlite3.connect(path).execute("PRAGMA user_version=99").connection.close(), "has the layout 99"),
        ],
    )
    def test_unusable(self, opened: Open, path: Path, make: Callable[[Path], object], problem: str) -> None:
        """A file that isn't ours is left as it is, and the error says which it is, what is wrong, and what would help."""
        make(path)
        before = path.read_bytes() if path.is_file() else b""
        store = opened()
        for call in (store.head, lambda: store.publish(event("a"))):
            with pytest.raises(BrokerUnavailable, match=problem) as caught:
                call()
            assert str(path) in str(caught.value) and caught.value.outcome == "not_published"
        assert (path.read_bytes() if path.is_file() else b"") == before
        path.rmdir() if path.is_dir() else path.unlink()
        assert store.publish(event("a")).is_new

    @pytest.mark.parametrize("above", ["missing", "file"])
    def test_no_directory(self, tmp_path: Path, above: str) -> None:
        """A path where no file can be made is named, with what would help."""
        (tmp_path / "file").write_text("")
        path = tmp_path / above / "events.db"
        store = SQLiteStore(str(path), history=8, history_seconds=1.0, history_bytes=1 << 20, timeout=0.2)
        with pytest.raises(BrokerUnavailable, match=f"{path} can't be opened: its directory must exist"):
            store.publish(event("a"))

    def test_read_only(self, store: SQLiteStore, path: Path) -> None:
        """A file that may only be read is named; afterwards the store works again."""
        store.publish(event("a"))
        store._writing.run(lambda opened: opened.db.execute("PRAGMA query_only=1").fetchall())
        with pytest.raises(BrokerUnavailable, match=f"{path} can't be written to: let this process's user") as caught:
            store.publish(event("a", "lost"))
        assert caught.value.outcome == "not_published"
        assert store.publish(event("a")).id.endswith("-2")

    def test_corrupt(self, opened: Open, path: Path) -> None:
        """A damaged file is named as such; with the file gone, the store works again in a new life."""
        store = opened()
        for number in range(200):
            store.publish(event(f"c{number}", "x" * 500))
        epoch = store.head().epoch
        store.close()
        data = bytearray(path.read_bytes())
        data[2048:] = b"\xff" * (len(data) - 2048)
        path.write_bytes(data)
        with pytest.raises(BrokerUnavailable, match=f"{path} is damaged: stop the server and remove it") as caught:
            store.publish(event("a"))
        assert caught.value.outcome == "not_published"
        path.unlink()
        with contextlib.suppress(BrokerUnavailable):
            store.head()
        assert store.publish(event("a")).id.endswith("-1") and store.head().epoch != epoch

    @pytest.mark.parametrize(("code", "outcome"), [(sqlite3.SQLITE_IOERR_FSYNC, "unknown"), (sqlite3.SQLITE_FULL, "not_published")])
    def test_commit(self, store: SQLiteStore, monkeypatch: pytest.MonkeyPatch, code: int, outcome: str) -> None:
        """Where the commit itself fails the outcome is unknown, unless it can't have been written; the same token settles it."""
        store.publish(event("a"))

        class Failing:
            """A connection whose commits fail."""

            def __init__(self, db: Any) -> None:
                self.db = db

            def __getattr__(self, name: str) -> Any:
                return getattr(self.db, name)

            def execute(self, sql: str, *args: Any) -> Any:
                """Runs anything but a commit."""
                if sql == "COMMIT":
                    error = sqlite3.OperationalError("no")
                    error.sqlite_errorcode = code
                    raise error
                return self.db.execute(sql, *args)

        def spoil(opened: Any) -> None:
            opened.db = Failing(opened.db)

        store._writing.run(spoil)
        with pytest.raises(BrokerUnavailable) as caught:
            store.publish(event("a", "again", token="t"))
        assert caught.value.outcome == outcome
        assert store.publish(event("a", "again", token="t")).id.endswith("-2")
        assert texts(store, "a") == ["x", "again"]

    def test_close(self, store: SQLiteStore) -> None:
        """A closed store lets go of all files, may be closed twice, and opens again when it is used."""
        store.publish(event("a"))
        store.head()
        store.close()
        store.close()
        assert not [name for name in map(_target, os.listdir("/proc/self/fd")) if "events.db" in name]
        assert texts(store, "a") == ["x"]


def _target(descriptor: str) -> str:
    with contextlib.suppress(FileNotFoundError):
        return os.readlink(f"/proc/self/fd/{descriptor}")
    return ""


def _heard(descriptor: int) -> bytes:
    """What a child has written, or nothing if it says nothing in time."""
    return os.read(descriptor, 1000) if select.select([descriptor], [], [], 10)[0] else b""


PUBLISHER = """
s = store()
name = sys.argv[2]
s.head()
told("ready"); sys.stdin.readline()
for number in range(int(sys.argv[3])):
    told([name, number, s.publish(event(name, number)).id])
"""


class TestProcesses:
    """Several processes on one file."""

    def test_order(self, opened: Open, run: Callable[..., Process], follow: Callable[..., tuple[SQLiteFollower, Told]]) -> None:
        """Two processes publish at once: a third is told all, once, in order of the numbers and of each publisher's doing."""
        store = opened(history=5000)
        _, told = follow(store, "p", "q")
        publishers = [run(PUBLISHER, name, "1500") for name in "pq"]
        for publisher in publishers:
            publisher.told()
        for publisher in publishers:
            publisher.go()
        said = [line for publisher in publishers for line in publisher.rest()]
        wait_until(lambda: len(told.entries) >= 3000, 20)
        assert told.seqs() == list(range(1, 3001))
        by_text = {(entry.channel, int(str(entry.event.data))): entry.seq for entry in told.entries}
        assert by_text == {(name, number): int(id[13:]) for name, number, id in said}
        for name in "pq":
            own = [entry for entry in told.entries if entry.channel == name]
            assert [int(str(entry.event.data)) for entry in own] == list(range(1500))
            assert [entry.prev for entry in own] == [0, *[entry.seq for entry in own[:-1]]]
        assert told.words == []

    def test_killed(self, store: SQLiteStore, run: Callable[..., Process]) -> None:
        """A publisher that is killed in the middle of its work loses nothing that was accepted, and locks nobody out."""
        publisher = run(PUBLISHER.replace("store()", "store(history=1000000)"), "p", "1000000")
        publisher.told()
        publisher.go()
        last = 0
        while last < 500:
            last = int(publisher.told()[2][13:])
        publisher.popen.kill()
        accepted = [last, *[int(line[2][13:]) for line in publisher.rest()]]
        (count,) = store._reading.run(lambda opened: opened.db.execute("SELECT count(*) FROM events").fetchone())
        assert accepted == list(range(500, 500 + len(accepted)))
        assert accepted[-1] <= count <= accepted[-1] + 1
        assert store.publish(event("p")).id.endswith(f"-{count + 1}")

    def test_latency(
        self, store: SQLiteStore, run: Callable[..., Process], follow: Callable[..., tuple[SQLiteFollower, Told]]
    ) -> None:
        """Half of what another process publishes is told within a few polls of the file."""
        _, told = follow(store, "p")
        script = PUBLISHER.replace("event(name, number)", "event(name, time.monotonic())").replace(
            "told([", "time.sleep(0.013); told(["
        )
        publisher = run(script, "p", "80")
        publisher.told()
        publisher.go()
        wait_until(lambda: len(told.entries) == 80, 20)
        late = sorted(at - float(str(entry.event.data)) for at, entry in zip(told.at, told.entries, strict=True))
        assert late[40] < 0.1, late

    def test_fork(self, opened: Open, follow: Callable[..., tuple[SQLiteFollower, Told]], path: Path) -> None:
        """A forked child of a process that used the store publishes on its own, and its parent's closing loses nothing."""
        store = opened()
        follower, _ = follow(store, "a")
        store.publish(event("a", "parent"))
        read, write = os.pipe()
        go_read, go_write = os.pipe()
        child = os.fork()
        if child == 0:
            with contextlib.suppress(BaseException):
                store.publish(event("a", "child"))
                os.write(write, b"1")
                os.read(go_read, 1)
                store.publish(event("a", "child again"))
                os.write(write, str(len(texts(store, "a"))).encode())
            os._exit(0)
        os.close(write)
        os.close(go_read)
        try:
            assert _heard(read) == b"1"
            locks = Path("/proc/locks").read_text()
            assert f" {child} " in locks, "the child's connection has no lock: the parent may delete the log under it"
            assert texts(store, "a") == ["parent", "child"]
            follower.close()
            store.close()
            os.write(go_write, b"1")
            assert _heard(read) == b"3"
        finally:
            os.close(go_write)
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        assert texts(store, "a") == ["parent", "child", "child again"]

    def test_fork_while_in_use(self, store: SQLiteStore, monkeypatch: pytest.MonkeyPatch) -> None:
        """A child that is forked while another thread is stuck in the store is refused, instead of writing without a lock."""
        monkeypatch.setattr(sseflask.brokers.sqlite_file, "FORK_SECONDS", 0.1)
        inside, leave = threading.Event(), threading.Event()

        def work(opened: Any) -> None:
            inside.set()
            leave.wait(10)

        thread = threading.Thread(target=store._writing.run, args=(work,))
        thread.start()
        assert inside.wait(5)
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                store.publish(event("a"))
            except BrokerUnavailable as error:
                os.write(write, str(error).encode())
            os._exit(0)
        os.close(write)
        leave.set()
        thread.join(5)
        try:
            assert b"was in use while this process was forked" in _heard(read)
        finally:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        assert store.publish(event("a")).id.endswith("-1")


class TestFollower:
    """What a process is told."""

    def test_listen(self, store: SQLiteStore, follow: Callable[..., tuple[SQLiteFollower, Told]]) -> None:
        """From the moment of listening on everything in the channels is told, once, and nothing of others or from before."""
        store.publish(event("a", "before"))
        follower, told = follow(store, "a")
        for number in range(100):
            store.publish(event("a"))
            store.publish(event("b"))
            if number % 10 == 0:
                follower.catch_up()
        wait_until(lambda: told.heads and told.heads[-1].seq == 201)
        assert told.seqs() == list(range(2, 202, 2))
        assert told.words == []

    def test_catch_up(self, store: SQLiteStore, follow: Callable[..., tuple[SQLiteFollower, Told]]) -> None:
        """Catching up tells what this process has stored before it returns."""
        follower, told = follow(store, "a")
        for number in range(1, 51):
            store.publish(event("a"))
            follower.catch_up()
            assert told.seqs() == list(range(1, number + 1))

    def test_settle(self, store: SQLiteStore, follow: Callable[..., tuple[SQLiteFollower, Told]]) -> None:
        """Settling returns when all is told that was stored before, also when an outage is to end first."""
        follower, told = follow(store, "a")
        store.publish(event("a"))
        follower.settle()
        assert told.seqs() == [1]
        own = follower._own()
        with own._lock:
            own._interrupt(BrokerUnavailable("not now"))
        store.publish(event("a"))
        follower.settle()
        assert told.words[-1] == "resumed" and told.heads[-1].seq == 2

    def test_settle_in_time(self, opened: Open, follow: Callable[..., tuple[SQLiteFollower, Told]], path: Path) -> None:
        """Settling fails in time where the file can't be read."""
        follower, _ = follow(opened(timeout=0.3), "a")
        path.unlink()
        path.mkdir()
        with pytest.raises(BrokerUnavailable, match="can't be followed"):
            follower.settle()

    def test_many(self, store: SQLiteStore) -> None:
        """Threads that publish and catch up at once are told in order, once, with the follower's own looking in between."""

        class Slow(Told):
            def arrived(self, head: Head, entries: Sequence[Entry]) -> None:
                # Long enough for another thread to come in between.
                time.sleep(0.0001)
                super().arrived(head, entries)

        told = Slow()
        follower = store.follower(told)
        follower.listen(["a"])

        def work() -> None:
            for _ in range(400):
                store.publish(event("a", history=5000))
                follower.catch_up()

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(40)
        follower.close()
        assert told.seqs() == list(range(1, 1601))

    def test_from_within(self, store: SQLiteStore) -> None:
        """A feed that publishes when it is told something is told that too, after it, and isn't stuck."""

        class Answering(Told):
            def tell(self) -> None:
                if self.entries and self.entries[-1].seq < 5:
                    store.publish(event("a"))
                    follower.catch_up()

        told = Answering()
        follower = store.follower(told)
        follower.listen(["a"])
        store.publish(event("a"))
        follower.catch_up()
        follower.close()
        assert told.seqs() == [1, 2, 3, 4, 5]

    def test_unlisten(self, store: SQLiteStore, follow: Callable[..., tuple[SQLiteFollower, Told]]) -> None:
        """A channel that is left is told no more; one that is listened to again only from then on."""
        follower, told = follow(store, "a", "b")
        follower.unlisten(["a"])
        store.publish(event("a"))
        store.publish(event("b"))
        follower.catch_up()
        follower.unlisten(["b"])
        store.publish(event("a"))
        follower.listen(["a"])
        store.publish(event("a"))
        wait_until(lambda: len(told.entries) == 2)
        assert told.seqs() == [2, 4]

    def test_idle(self, path: Path, run: Callable[..., Process]) -> None:
        """While nobody listens the follower takes no processor time, and none of its thread before the first time."""
        script = """
            import threading
            class Feed:
                def arrived(self, head, entries): told([entry.seq for entry in entries])
                def tell(self): pass
            s = store(); f = s.follower(Feed())
            f.catch_up(); told(threading.active_count())
            f.listen(["a"]); told(threading.active_count())
            f.unlisten(["a"])
            sys.stdin.readline()
            f.listen(["a"]); s.publish(event("a", 1))
            sys.stdin.readline()
        """
        process = run(textwrap.dedent(script))
        assert [process.told(), process.told()] == [1, 2]
        status = Path(f"/proc/{process.popen.pid}/task")

        def switches() -> int:
            texts = [(task / "status").read_text() for task in status.iterdir()]
            return sum(int(line.split()[1]) for text in texts for line in text.splitlines() if "voluntary_ctxt" in line)

        def is_still() -> bool:
            before = switches()
            time.sleep(0.3)
            return switches() - before <= 2

        wait_until(is_still, 10)
        process.go()
        assert process.told() == [1]

    def test_gone_before_read(self, opened: Open, follow: Callable[..., tuple[SQLiteFollower, Told]]) -> None:
        """Where entries were removed before they could be read, the feed is told to look where its channels stand."""
        store = opened(history=8)
        follower, told = follow(store, "a")
        # Nobody reads meanwhile: the follower's lock is ours.
        with follower._own()._lock:
            for _ in range(100):
                store.publish(event("a"))
        wait_until(lambda: told.words == ["resumed"])
        # What came with it is made known after what is missing.
        wait_until(lambda: told.calls == ["arrived", "resumed", "tell"])
        assert told.heads[-1].seq == 100 and told.seqs()[-8:] == list(range(93, 101))
        assert told.entries[0].prev > 0

    @pytest.mark.parametrize("is_outage", [True, False])
    def test_published_before_the_feed_has_looked(self, opened: Open, *, is_outage: bool) -> None:
        """As long as the feed looks where its channels stand, it is told nothing that comes after what it misses."""
        store = opened(history=8)
        seen: list[int] = []

        class Looking(Told):
            def resumed(self, head: Head) -> None:
                if not self.words:
                    publisher = threading.Thread(target=lambda: (store.publish(event("b")), follower.catch_up()))
                    publisher.start()
                    publisher.join()
                    seen.extend(self.seqs())
                super().resumed(head)

            def interrupted(self, error: Exception) -> None:
                pass

        told = Looking()
        follower = store.follower(told)
        follower.listen(["a", "b"])
        own = follower._own()
        with own._lock:
            for _ in range(100):
                store.publish(event("a"))
            if is_outage:
                own._interrupt(BrokerUnavailable("not now"))
        wait_until(lambda: told.seqs()[-1:] == [101])
        assert told.words == ["resumed"]
        assert 101 not in seen
        follower.close()

    def test_batches(self, opened: Open, follow: Callable[..., tuple[SQLiteFollower, Told]]) -> None:
        """Much at once comes in parts, each with the head as of its own last entry."""
        store = opened(history=5000)
        follower, told = follow(store, "a")
        with follower._own()._lock:
            for _ in range(2500):
                store.publish(event("a"))
        follower.catch_up()
        assert told.seqs() == list(range(1, 2501))
        assert [head.seq for head in told.heads][:2] == [1000, 2000] and told.heads[-1].seq == 2500

    def test_file_deleted(self, store: SQLiteStore, path: Path, follow: Callable[..., tuple[SQLiteFollower, Told]]) -> None:
        """A file that was deleted is an outage, said once; then the new life is followed."""
        _, told = follow(store, "a")
        epoch = store.head().epoch
        store.publish(event("a"))
        wait_until(lambda: told.entries)
        path.unlink()
        wait_until(lambda: told.words[-1:] == ["resumed"])
        assert len(told.words) == 2 and told.words[0].startswith(f"interrupted: {path} was deleted")
        assert told.heads[-1].epoch != epoch
        with contextlib.suppress(BrokerUnavailable):
            store.publish(event("a"))
        store.publish(event("a"))
        wait_until(lambda: len(told.entries) > 1)
        assert told.entries[-1].frame.startswith(f"id: {told.heads[-1].epoch}-".encode())

    def test_outage(
        self,
        store: SQLiteStore,
        path: Path,
        follow: Callable[..., tuple[SQLiteFollower, Told]],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """While the file can't be used the follower tries on, says so once, and says when it is over."""
        follower, told = follow(store, "a")
        path.rename(f"{path}.away")
        path.mkdir()
        wait_until(lambda: told.words)
        with pytest.raises(BrokerUnavailable):
            follower.listen(["b"])
        attempts = []
        attempt = follower._connection.attempt
        monkeypatch.setattr(
            follower._connection, "attempt", lambda work, **is_checked: (attempts.append(work), attempt(work, **is_checked))[1]
        )
        wait_until(lambda: len(attempts) >= 3)
        assert len(told.words) == 1
        path.rmdir()
        for end in ("-wal", "-shm"):
            Path(f"{path}{end}").unlink(missing_ok=True)
        Path(f"{path}.away").rename(path)
        wait_until(lambda: told.words[1:] == ["resumed"])
        assert "b" not in follower._own()._channels

    def test_close(self, store: SQLiteStore, follow: Callable[..., tuple[SQLiteFollower, Told]]) -> None:
        """A closed follower tells nothing more, and its thread ends."""
        follower, told = follow(store, "a")
        thread = follower._own()._thread
        assert thread is not None
        follower.close()
        store.publish(event("a"))
        thread.join(5)
        assert not thread.is_alive() and told.entries == []

    def test_gevent(self, path: Path, run: Callable[..., Process]) -> None:
        """Under gevent the follower is a greenlet, and a native thread's catching up tells in that thread."""
        script = """
            import gevent.monkey; gevent.monkey.patch_all()
            import gevent, threading
            from gevent import monkey
            ident = monkey.get_original("_thread", "get_ident")
            class Feed:
                def __init__(self): self.seen = []
                def arrived(self, head, entries): self.seen += [(entry.seq, ident() == main) for entry in entries]
                def tell(self): pass
            main = ident()
            s = store(); feed = Feed(); f = s.follower(feed)
            f.listen(["a"])
            tasks = len(os.listdir("/proc/self/task"))
            def native():
                s.publish(event("a", 1)); f.catch_up()
            gevent.get_hub().threadpool.apply(native)
            s.publish(event("a", 2))
            with gevent.Timeout(5):
                while len(feed.seen) < 2: gevent.sleep(0.01)
            told([tasks, feed.seen])
        """
        tasks, seen = run(textwrap.dedent(script)).told()
        assert tasks == 1
        assert [seq for seq, _ in seen] == [1, 2] and seen[1][1]
