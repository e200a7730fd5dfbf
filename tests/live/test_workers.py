"""Several workers of one server share their channels by an SQLite file, and whatever becomes of a worker nothing gets lost."""

from __future__ import annotations

import collections
import contextlib
import json
import os
import re
import shutil
import signal
import sqlite3
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlencode

import pytest

from sseflask import Publisher
from tests.conftest import Serve
from tests.live import process
from tests.live.client import Reply, StreamClient, get, open_stream, read_all
from tests.live.crowd import Crowd, Member
from tests.live.process import wait_until
from tests.live.server import Server, ServerEnded

APP: Final = "tests.live.apps.workers_app:app"
#: How often something is measured before it counts as ours that it took too long.
ROUNDS: Final = 3
#: Clients come back after half to one and a half of this; a worker that leaves ends its streams within half a second.
SETTINGS: Final[dict[str, object]] = {"SSE_RETRY": 200, "SSE_DRAIN_SECONDS": 0.5, "SSE_HISTORY": 4000}
#: The part of a core that a worker uses whose only subscriber gets nothing, and what one uses that has none. Looking at a file a
#: hundred times a second takes 1 % of a calm machine's core, and some times that where others sweep the caches.
IDLE_PART: Final = 0.06
RESTING_PART: Final = 0.01
#: What a client waits that was told nothing.
UNTOLD_RETRY_MS: Final = 200
#: What an app needs that workers can't tell from another.
REMEDIES: Final = "an SSE_BROKER_PREFIX of its own, the same in all workers, or an SSE_BROKER_URL of its own"

Figures = Callable[[str, object], None]


@pytest.fixture
def temporary(tmp_path: Path) -> Path:
    """Where the servers of a test make their directories."""
    path = tmp_path / "tmp"
    path.mkdir()
    return path


@pytest.fixture
def start(serve: Serve, temporary: Path) -> Serve:
    """As `serve`, for the workers' app: settings by name, and the server's directories in `temporary`."""

    def start(app: str = APP, *, settings: dict[str, object] | None = None, **options: Any) -> Server:
        env = {name: json.dumps(value) for name, value in (SETTINGS | (settings or {})).items()} | options.pop("env", {})
        return serve(app, env={"TMPDIR": str(temporary), **env}, **options)

    return start


@pytest.fixture
def crowd() -> Iterator[Crowd]:
    """An empty crowd, whose connections are closed when the test is over."""
    crowd = Crowd()
    yield crowd
    crowd.hang_up()


def target(path: str, **query: object) -> str:
    """A path and its query."""
    return f"{path}?{urlencode(query, doseq=True)}"


def post(server: Server, path: str, **query: object) -> Reply:
    """Asks the app to do something."""
    return get(server, target(path, **query), method="POST", timeout=30)


def begin(server: Server, path: str, **query: object) -> StreamClient:
    """Asks the app to do something, and returns before it answers."""
    return open_stream(server, target(path, **query), method="POST", headers={"Connection": "close"}, wait_for_head=False)


def answer(asked: StreamClient, timeout: float = 30.0) -> Any:
    """What the app answers in the end."""
    assert asked.read_until_closed(timeout) == "clean"
    return json.loads(asked.body)


def worker_of(client: StreamClient | Member) -> int:
    """Which worker serves a stream."""
    return int(client.headers["x-worker"])


def in_each_worker(server: Server, path: str) -> dict[int, StreamClient]:
    """Opens streams until each worker has one, keeps one of each, and waits until it has had its first event."""
    workers = set(server.ready_workers())
    found: dict[int, StreamClient] = {}
    others: list[StreamClient] = []
    for _ in range(200):
        client = open_stream(server, path)
        if worker_of(client) in found:
            others.append(client)
        else:
            found[worker_of(client)] = client
            client.next_event()
        if set(found) == workers:
            break
    for other in others:
        other.hang_up()
    assert set(found) == workers
    return found


def homes(temporary: Path) -> list[Path]:
    """The directories of servers."""
    return sorted((temporary / f"sseflask-{os.getuid()}").glob("gunicorn-*"))


def ask_until_all(server: Server, path: str, holds: Callable[[Any], bool], timeout: float = 10.0) -> None:
    """Asks until each worker has answered what is wanted."""
    seen: dict[int, Any] = {}

    def ask() -> bool:
        reply = get(server, path)
        seen[int(reply.headers["x-worker"])] = reply.json()
        assert {pid for pid, told in seen.items() if holds(told)} >= set(server.ready_workers()), seen
        return True

    wait_until(ask, timeout, f"all workers to answer {path} rightly")


class Traffic:
    """Events published one by one through whichever worker accepts, to clients that come back when they lose their stream.

    A publish that isn't answered is sent again with the same token, as who wants nothing lost does. All runs in this thread.

    Attributes:
        accepted: The ids of the events that the server has taken, by their numbers.
        publishers: How many each worker has taken.
        answers: The status and body of each answer that wasn't 200.
        is_publishing: Whether further ones are published.
        members: The clients.
        workers: Those who have served them.
    """

    def __init__(self, server: Server, crowd: Crowd, members: int, *, at_once: int = 3, path: str = "") -> None:
        self.accepted: dict[int, str] = {}
        self.publishers: collections.Counter[int] = collections.Counter()
        self.answers: list[tuple[int, Any]] = []
        self.is_publishing = True
        self._server = server
        self._crowd = crowd
        self._path = f"{path}/publish"
        self._at_once = at_once
        self._next = 0
        self._open: dict[int, StreamClient] = {}
        self._due: dict[Member, float] = {}
        self.members = crowd.join(server, [target(f"{path}/on", channel="news")] * members)
        self.workers = {worker_of(member) for member in self.members}

    def step(self) -> None:
        """Reads what has come, and sees to it that so many publishes are under way and that clients come back in their time."""
        self._crowd.read(0.005)
        for n, asked in list(self._open.items()):
            asked.read_available()
            if asked.ended is not None:
                del self._open[n]
                self._take(n, asked)
        while self.is_publishing and len(self._open) < self._at_once:
            self._publish(self._next)
            self._next += 1
        now = time.monotonic()
        for member in self.members:
            if member.opened:
                self.workers.add(worker_of(member))
            if member.ended is not None and member not in self._due:
                retry_ms = member.retry_ms if member.retry_ms is not None else UNTOLD_RETRY_MS
                self._due[member] = member.ended_at + retry_ms / 1000
        back = [member for member, due in self._due.items() if due <= now]
        for member in back:
            del self._due[member]
        self._crowd.connect(back)

    def run_until(self, done: Callable[[], object], timeout: float = 20.0) -> None:
        """Goes on until that is true."""
        deadline = time.monotonic() + timeout
        while not done():
            assert time.monotonic() < deadline, f"not within {timeout:g} s; {len(self.accepted)} accepted, {self.members[:3]}"
            self.step()

    def run_for_events(self, count: int, timeout: float = 20.0) -> None:
        """Goes on until so many more events have been taken."""
        wanted = len(self.accepted) + count
        self.run_until(lambda: len(self.accepted) >= wanted, timeout)

    def stop(self, timeout: float = 20.0) -> None:
        """Publishes no more, and waits until all is answered."""
        self.is_publishing = False
        self.run_until(lambda: not self._open, timeout)

    def finish(self, timeout: float = 20.0) -> None:
        """Publishes no more, and waits until all is answered and each client has as many events as were taken."""
        self.stop(timeout)
        count = len(self.accepted)
        self.run_until(lambda: all(member.count("news") >= count and member.opened for member in self.members), timeout)

    def assert_nothing_lost(self) -> None:
        """Each client has had each event that was taken once, in the order of the ids, and was told of no gap."""
        (expected,) = self.by_epoch()
        for member in self.members:
            assert member.resets == []
            assert member.seen["news"] == expected

    def by_epoch(self) -> list[list[int]]:
        """The numbers of the events that were taken in each epoch, in the order of the ids; the epochs as they came."""
        found: dict[str, list[tuple[int, int]]] = {}
        for n, event_id in self.accepted.items():
            epoch, _, seq = event_id.partition("-")
            found.setdefault(epoch, []).append((int(seq), n))
        return [[n for _, n in sorted(numbered)] for numbered in found.values()]

    @property
    def reconnections(self) -> int:
        """How often clients have come back."""
        return sum(member.connections - 1 for member in self.members)

    def _publish(self, n: int) -> None:
        self._open[n] = begin(self._server, self._path, channel="news", first=n, token="traffic")

    def _take(self, n: int, asked: StreamClient) -> None:
        if asked.ended == "clean" and asked.status == 200:
            told = json.loads(asked.body)
            self.accepted[n] = told["published"][0]["id"]
            self.publishers[told["pid"]] += 1
        else:
            if asked.ended == "clean":
                self.answers.append((asked.status, json.loads(asked.body)))
            if asked.ended != "clean" or asked.status == 503:
                self._publish(n)


class TestDelivery:
    """Who is connected to one worker gets what is published in another."""

    def test_400_clients_of_four_workers(self, start: Serve, crowd: Crowd, record_testsuite_property: Figures) -> None:
        """Each of 400 clients has each of 2,000 events that four workers publish once, in the one order that all share."""
        server = start(workers=4)
        members = crowd.join(server, [target("/on", channel="news")] * 400)
        publishing = [begin(server, "/publish", channel="news", first=first, count=20) for first in range(0, 2_000, 20)]
        crowd.read_until(lambda member: member.count("news") >= 2_000, timeout=60)
        told = [answer(asked) for asked in publishing]
        ids = {each["n"]: each["id"] for answered in told for each in answered["published"]}
        order = sorted(ids, key=lambda n: int(ids[n].partition("-")[2]))
        assert sorted(order) == list(range(2_000))
        assert order != list(range(2_000)), "one worker after the other: nothing was published at the same time"
        for member in members:
            assert member.resets == []
            assert member.seen == {"news": order}
        publishers = collections.Counter(answered["pid"] for answered in told)
        served = collections.Counter(worker_of(member) for member in members)
        record_testsuite_property("four_workers", {"served": dict(served), "requests": dict(publishers)})
        assert len(publishers) > 1, publishers
        assert len(served) > 1, served

    def test_time_to_another_worker(self, start: Serve, record_testsuite_property: Figures) -> None:
        """What one worker publishes is with the clients of the other within 20 ms at the median."""
        server = start(workers=2)
        clients = in_each_worker(server, target("/on", channel="news"))
        medians: list[float] = []
        for turn in range(ROUNDS):
            asked = begin(server, "/publish", channel="news", first=100 * turn, count=100, pause=0.013)
            while asked.ended is None:
                asked.read_available()
                for client in clients.values():
                    client.read_available()
                time.sleep(0.0005)
            told = answer(asked)
            (other,) = [client for pid, client in clients.items() if pid != told["pid"]]
            published = {each["n"]: each["at"] for each in told["published"]}
            wait_until(lambda: _read_numbers(other) >= published.keys())  # noqa: B023
            late = [event.at - published[n] for event in other.arrived if (n := event.json().get("n")) in published]
            medians.append(statistics.median(late))
            if medians[-1] < 0.020:
                break
        record_testsuite_property("seconds_to_another_worker", medians)
        assert min(medians) < 0.020, medians


def _read_numbers(client: StreamClient) -> set[int]:
    client.read_available()
    return {event.json()["n"] for event in client.arrived if event.event == "message"}


class TestReplacement:
    """Workers, and whole arbiters, come and go while events are published and clients read."""

    def test_hup(self, start: Serve, crowd: Crowd, temporary: Path) -> None:
        """HUP replaces all workers: nothing is lost, and the log goes on."""
        server = start(workers=2)
        traffic = Traffic(server, crowd, 20)
        traffic.run_for_events(50)
        old, log = server.ready_workers(), homes(temporary)
        server.signal(signal.SIGHUP)
        traffic.run_until(lambda: len(set(server.ready_workers()) - set(old)) == 2)
        traffic.run_until(lambda: not any(process.is_alive(pid) for pid in old))
        traffic.run_for_events(50)
        traffic.finish()
        traffic.assert_nothing_lost()
        assert traffic.reconnections >= 20
        assert traffic.workers & set(old)
        assert traffic.workers - set(old)
        assert homes(temporary) == log

    @pytest.mark.parametrize("workers", [1, 3])
    def test_max_requests(self, start: Serve, crowd: Crowd, workers: int) -> None:
        """Workers that leave after so many requests lose nothing, also where there is only one."""
        server = start(workers=workers, args=["--max-requests", "60", "--max-requests-jitter", "20"])
        traffic = Traffic(server, crowd, 10, at_once=2)
        traffic.run_until(lambda: len(traffic.publishers) >= 3 * workers, 40)
        traffic.finish()
        traffic.assert_nothing_lost()
        assert traffic.reconnections >= 10

    def test_more_workers_and_fewer(self, start: Serve, crowd: Crowd) -> None:
        """TTIN takes a server from one worker to three and TTOU back to one, and nothing is lost."""
        server = start()
        traffic = Traffic(server, crowd, 20)
        traffic.run_for_events(30)
        for count in (2, 3):
            server.signal(signal.SIGTTIN)
            traffic.run_until(lambda count=count: len(server.ready_workers()) == count)  # type: ignore[misc]
        known = set(server.ready_workers())
        # Clients that come now go to the new ones too.
        traffic.members += crowd.join(server, [target("/on", channel="late")] * 20)
        traffic.run_until(lambda: set(traffic.publishers) == known)
        traffic.members = traffic.members[:20]
        for count in (2, 1):
            server.signal(signal.SIGTTOU)
            traffic.run_until(lambda count=count: len(server.worker_pids()) == count)  # type: ignore[misc]
        traffic.run_for_events(30)
        traffic.finish()
        traffic.assert_nothing_lost()
        assert traffic.reconnections >= 20

    @pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGQUIT])
    def test_usr2(self, start: Serve, crowd: Crowd, temporary: Path, end: signal.Signals) -> None:
        """An arbiter that USR2 starts shares the log of the one that it replaces, and keeps it when that ends."""
        server = start(workers=2)
        traffic = Traffic(server, crowd, 20)
        traffic.run_for_events(50)
        old, log = server.ready_workers(), homes(temporary)
        assert len(log) == 1
        server.signal(signal.SIGUSR2)
        (new,) = wait_until(lambda: [pid for pid in process.children(server.pid) if pid not in old])
        traffic.run_until(lambda: len(process.children(new)) == 2)
        # Not all of them: under little load it isn't said that each accepts.
        traffic.run_until(lambda: set(process.children(new)) & set(traffic.publishers))
        assert homes(temporary) == log
        server.signal(end)
        traffic.run_until(lambda: server.exit_code() is not None)
        assert not any(process.is_alive(pid) for pid in old)
        traffic.run_for_events(50)
        traffic.finish()
        traffic.assert_nothing_lost()
        assert traffic.reconnections >= 1
        assert homes(temporary) == log
        crowd.hang_up()
        os.kill(new, signal.SIGTERM)
        wait_until(lambda: not process.is_alive(new), 10)
        assert homes(temporary) == []

    def test_killed_worker(self, start: Serve, crowd: Crowd) -> None:
        """Workers that are killed lose nothing that was taken, and their clients go on at others without a reset."""
        server = start(workers=3)
        traffic = Traffic(server, crowd, 60)
        traffic.run_for_events(50)
        for _ in range(3):
            (victim, *_) = server.ready_workers()
            os.kill(victim, signal.SIGKILL)
            traffic.run_until(lambda victim=victim: not process.is_alive(victim))  # type: ignore[misc]
            traffic.run_for_events(50)
            traffic.run_until(lambda: len(server.ready_workers()) == 3)
        traffic.finish()
        traffic.assert_nothing_lost()
        assert traffic.reconnections >= 20

    def test_killed_before_it_answers(self, start: Serve) -> None:
        """Who publishes again, with the same token, what a worker took and died, gets its id, and nothing is doubled."""
        server = start(workers=3)
        clients = list(in_each_worker(server, target("/on", channel="news")).values())
        assert begin(server, "/publish", channel="news", token="mine", dying=1).read_until_closed() in ("cut", "reset")
        told = post(server, "/publish", channel="news", token="mine").json()
        assert post(server, "/publish", channel="news", first=1).status == 200
        seen: list[list[int]] = []
        for client in clients:
            with contextlib.suppress(EOFError):
                client.event_where(lambda event: event.event == "message" and event.json()["n"] == 1)
            seen.append(numbers(client))
            if client.ended is None:
                assert next(event.id for event in client.arrived if event.event == "message") == told["published"][0]["id"]
        assert sorted(seen)[1:] == [[0, 1]] * 2


class TestDirectory:
    """Where `auto` keeps the log."""

    def test_gone_with_the_server(self, start: Serve, temporary: Path) -> None:
        """It is one directory of the user alone, which goes when the server stops, and its user's stays."""
        server = start(workers=2)
        assert post(server, "/publish", channel="news").status == 200
        (home,) = homes(temporary)
        assert [path.stat().st_mode & 0o777 for path in (home, home.parent)] == [0o700, 0o700]
        (file,) = home.glob("*.sqlite")
        assert re.fullmatch(r"tests-live-apps-workers_app-[0-9a-f]{16}\.sqlite", file.name)
        server.signal(signal.SIGTERM)
        assert server.wait_for_exit(10) == 0
        assert os.listdir(home.parent) == []

    def test_left_by_a_killed_server(self, start: Serve, temporary: Path) -> None:
        """What a killed server has left goes at the next start of one of the same user; what a living one has stays.

        So it does where something has removed its lock, as a file that nobody has changed for days.
        """
        living, killed = start(), start()
        for server in (living, killed):
            assert post(server, "/publish", channel="news").status == 200
        of_two = homes(temporary)
        assert len(of_two) == 2
        links = [path for path in of_two[0].parent.iterdir() if path.is_symlink()]
        assert sorted(path.name for path in links) == sorted(str(server.pid) for server in (living, killed))
        (left,) = [path.resolve() for path in links if path.name == str(killed.pid)]
        killed.stop()
        assert left.is_dir()
        (kept,) = set(of_two) - {left}
        (kept / "lock").unlink()
        start()
        assert not left.exists()
        assert len(homes(temporary)) == 2
        assert kept in homes(temporary)
        assert post(living, "/publish", channel="news").status == 200

    def test_cleaned_away(self, start: Serve, temporary: Path) -> None:
        """Where somebody has removed it under the workers, health says so; the next worker that is made brings it back to all."""
        server = start(workers=2)
        clients = in_each_worker(server, target("/on", channel="news"))
        (home,) = homes(temporary)
        shutil.rmtree(home.parent)
        ask_until_all(
            server, "/events/-/health", lambda told: not told["ready"] and told["problem"] == "the broker can't be reached"
        )
        server.wait_for_log(rf"a request is answered 503: {re.escape(str(home))}")
        assert post(server, "/publish", channel="news").json()["outcome"] == "not_published"
        server.signal(signal.SIGTTIN)
        wait_until(lambda: len(server.ready_workers()) == 3, 10)
        ask_until_all(server, "/events/-/health", lambda told: told["ready"])
        for client in clients.values():
            assert client.next_event().json()["reason"] == "epoch"
        assert post(server, "/publish", channel="news", first=1).status == 200
        for client in clients.values():
            assert client.event_where(lambda event: event.event == "message").json()["n"] == 1
        assert homes(temporary) == [home]
        for client in clients.values():
            client.hang_up()
        server.signal(signal.SIGTERM)
        assert server.wait_for_exit(10) == 0
        assert os.listdir(home.parent) == []

    def test_two_servers(self, start: Serve) -> None:
        """Two servers of one user, with the same app, have channels of their own."""
        servers = [start(), start()]
        clients = [open_stream(server, target("/on", channel="news")) for server in servers]
        for client in clients:
            client.next_event()
        for n, server in enumerate(servers):
            assert post(server, "/publish", channel="news", first=n).status == 200
        assert [client.next_event().json()["n"] for client in clients] == [0, 1]
        for server in servers:
            assert get(server, target("/count", channel="news")).json()["subscribers"] == 1


@contextlib.contextmanager
def locked(file: Path) -> Iterator[None]:
    """Another process has the lock of an SQLite file meanwhile."""
    code = """if True:
        import sqlite3, sys
        db = sqlite3.connect(sys.argv[1], isolation_level=None)
        db.execute("BEGIN EXCLUSIVE")
        print("locked", flush=True)
        sys.stdin.read()
    """
    with subprocess.Popen(
        [sys.executable, "-c", code, str(file)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdin is not None
        assert holder.stdout is not None
        try:
            assert holder.stdout.readline() == "locked\n"
            yield
        finally:
            holder.stdin.close()


def numbers(client: StreamClient) -> list[int]:
    """The numbers of the events that a client has had."""
    return [event.json()["n"] for event in client.arrived if event.event == "message"]


class TestFile:
    """What befalls the file in which the workers keep their log."""

    @pytest.fixture
    def file(self, tmp_path: Path) -> Path:
        """The file that `at` names."""
        return tmp_path / "events.db"

    @pytest.fixture
    def at(self, file: Path) -> dict[str, object]:
        """Settings for a server on a file of its own."""
        return {"SSE_BROKER_URL": f"sqlite:///{file}"}

    def test_locked_for_three_seconds(self, start: Serve, file: Path, at: dict[str, object]) -> None:
        """While another process locks it, requests are answered and keepalives sent; who publishes waits, and nothing is lost."""
        server = start(workers=2, settings=at | {"SSE_KEEPALIVE_INTERVAL": 0.5})
        clients = list(in_each_worker(server, target("/on", channel="news")).values())
        assert post(server, "/publish", channel="news").status == 200
        waits: list[float] = []
        answered: set[int] = set()
        with locked(file):
            began = time.monotonic()
            asked = [begin(server, "/publish", channel="news", first=n) for n in range(1, 9)]
            while time.monotonic() < began + 3:
                asked_at = time.monotonic()
                answered.add(get(server, "/worker").json()["pid"])
                waits.append(time.monotonic() - asked_at)
                for client in (*clients, *asked):
                    client.read_available()
            late = open_stream(server, target("/on", channel="news"))
            assert late.next_event().event == "stream-open"
            assert {each.ended for each in asked} == {None}
        told = [answer(each) for each in asked]
        assert sorted(each["published"][0]["n"] for each in told) == list(range(1, 9))
        assert answered == set(server.ready_workers())
        assert statistics.median(waits) < 0.1, waits
        assert max(waits) < 1, waits
        for client in clients:
            assert sorted(event.json()["n"] for event in client.events(9)) == list(range(9))
            assert sum(began < comment.at < began + 3 for comment in client.comments) >= 4
        assert sorted(event.json()["n"] for event in late.events(8)) == list(range(1, 9))

    def test_locked_for_too_long(self, start: Serve, file: Path, at: dict[str, object]) -> None:
        """Who publishes for longer than `SSE_BROKER_TIMEOUT` gets 503, sure that nothing was published, and nothing was."""
        server = start(workers=2, settings=at | {"SSE_BROKER_TIMEOUT": 1})
        clients = list(in_each_worker(server, target("/on", channel="news")).values())
        with locked(file):
            asked = [begin(server, "/publish", channel="news", first=n) for n in range(8)]
            assert read_all(asked) == ["clean"] * 8
        assert {each.status for each in asked} == {503}
        for told in (json.loads(each.body) for each in asked):
            assert (told["outcome"], told["published"]) == ("not_published", [])
            assert "locked by another process" in told["problem"]
            assert 0.9 < told["seconds"] < 3
        assert post(server, "/publish", channel="news", first=8, count=3).status == 200
        for client in clients:
            assert [event.json()["n"] for event in client.events(3)] == [8, 9, 10]

    @pytest.mark.parametrize("how", ["unlinked", "replaced", "restored"])
    def test_gone(self, start: Serve, crowd: Crowd, file: Path, at: dict[str, object], how: str) -> None:
        """Where it is deleted or replaced, streams stay open and are told by a reset, and what is published then arrives."""
        server = start(workers=2, settings=at)
        traffic = Traffic(server, crowd, 10)
        traffic.run_for_events(20)
        other, kept = file.with_name("other.db"), 0
        if how == "replaced":
            with Publisher(f"sqlite:///{other}") as publisher:
                for n in range(1_000):
                    publisher.publish({"series": "other", "n": n}, channel="other")
        elif how == "restored":
            with contextlib.closing(sqlite3.connect(file)) as db, contextlib.closing(sqlite3.connect(other)) as backup:
                db.backup(backup)
                ((kept,),) = backup.execute("SELECT count(*) FROM events").fetchall()
            traffic.run_for_events(20)
        if other.exists():
            # Without the old file's log, which would go on in the new one.
            for end in ("-wal", "-shm"):
                file.with_name(file.name + end).unlink()
            other.replace(file)
        else:
            file.unlink()
        traffic.run_until(lambda: all(member.resets for member in traffic.members))
        traffic.run_for_events(20)
        traffic.stop()
        old, new = traffic.by_epoch()
        traffic.run_until(lambda: all(member.seen["news"][-1:] == new[-1:] for member in traffic.members))
        for member in traffic.members:
            ((reason, at_reset),) = member.resets
            assert (reason, member.connections) == ("epoch", 1)
            seen, before = member.seen["news"], at_reset["news"]
            assert seen[:before] == old[:before]
            # All that another file has retained comes again.
            assert seen[before:] == old[:kept] + new
        assert all(answered["outcome"] == "not_published" for _, answered in traffic.answers), traffic.answers

    def test_pruned(self, start: Serve, at: dict[str, object]) -> None:
        """Who comes back to what `SSE_HISTORY` has dropped is told so by each worker, and gets what is left."""
        server = start(workers=2, settings=at | {"SSE_HISTORY": 8})
        gone = open_stream(server, target("/on", channel="news"))
        position = gone.next_event().id
        assert position is not None
        gone.hang_up()
        for first in range(0, 100, 10):
            assert post(server, "/publish", channel="news", first=first, count=10).status == 200
        served = set()
        while served != set(server.ready_workers()):
            with open_stream(server, target("/on", channel="news"), headers={"Last-Event-ID": position}) as back:
                reset, opened = back.events(2)
                assert (reset.event, reset.json(), opened.event) == (
                    "stream-reset",
                    {"reason": "history", "position": position},
                    "stream-open",
                )
                left = back.events(8)
                # What another worker published a moment ago may still be on its way.
                while left[-1].event == "message" and left[-1].json()["n"] < 99:
                    left.append(back.next_event())
                if left[-1].event != "message":
                    # Of ten that were published between two looks of this worker the file has nine, which is told too.
                    assert (left[-1].event, left[-1].json()["reason"]) == ("stream-reset", "history")
                    continue
                numbers = [event.json()["n"] for event in left]
                assert numbers == list(range(numbers[0], 100)) and numbers[0] >= 82
                served.add(worker_of(back))

    def test_outlives_the_server(self, start: Serve, crowd: Crowd, at: dict[str, object]) -> None:
        """Who comes back to another server, of four workers instead of one, gets what other processes published meanwhile."""
        first = start(settings=at)
        members = crowd.join(first, [target("/on", channel="news")] * 12)
        assert post(first, "/publish", channel="news", count=10).status == 200
        with Publisher(str(at["SSE_BROKER_URL"])) as publisher:

            def publish(*series: int) -> None:
                for n in series:
                    publisher.publish({"series": "news", "n": n}, channel="news")

            publish(10, 11)
            crowd.read_until(lambda member: member.count("news") >= 12)
            first.signal(signal.SIGTERM)
            crowd.read_until(lambda member: member.ended)
            assert first.wait_for_exit(10) == 0
            publish(*range(12, 30))
            second = start(settings=at, workers=4)
            publish(30)
            for member in members:
                member.server = second
            crowd.connect(members)
            crowd.read_until(lambda member: member.count("news") >= 31)
            assert post(second, "/publish", channel="news", first=31, count=10).status == 200
            publish(41)
            crowd.read_until(lambda member: member.count("news") >= 42)
        for member in members:
            member.assert_complete("news", 42)
            assert member.resets == []

    @pytest.mark.parametrize("garbage", ["a directory", "other bytes", "another database"])
    def test_health(self, start: Serve, file: Path, at: dict[str, object], garbage: str) -> None:
        """Workers say that they aren't ready while it can't be used, and why, and that they are when it can be again."""
        server = start(workers=2, settings=at)
        clients = in_each_worker(server, target("/on", channel="news"))
        ask_until_all(server, "/events/-/health", lambda told: told["ready"] and told["problem"] is None)
        assert get(server, "/events/-/health").status == 200
        aside = file.with_name("aside")
        if garbage == "a directory":
            aside.mkdir()
            file.unlink()
        elif garbage == "other bytes":
            aside.write_bytes(b"these are no pages of a database " * 1000)
        else:
            with contextlib.closing(sqlite3.connect(aside)) as db:
                db.execute("CREATE TABLE theirs(value)")
        for end in ("-wal", "-shm"):
            file.with_name(file.name + end).unlink()
        aside.replace(file)

        def is_told(told: Any) -> bool:
            return not told["ready"] and not told["broker"] and told["problem"] == "the broker can't be reached"

        ask_until_all(server, "/events/-/health", is_told)
        server.wait_for_log(rf"a request is answered 503: {re.escape(str(file))}")
        assert get(server, "/events/-/health").status == 503
        assert post(server, "/publish", channel="news").json()["outcome"] == "not_published"
        if file.is_dir():
            file.rmdir()
        else:
            file.unlink()
        ask_until_all(server, "/events/-/health", lambda told: told["ready"] and told["problem"] is None)
        assert get(server, "/events/-/health").status == 200
        for client in clients.values():
            assert client.next_event().json()["reason"] == "epoch"
        wait_until(lambda: post(server, "/publish", channel="news").status == 200)
        for client in clients.values():
            client.event_where(lambda event: event.event == "message")

    def test_health_without_streams(self, start: Serve, file: Path, at: dict[str, object]) -> None:
        """Workers that have no streams look at it when they are asked."""
        server = start(workers=2, settings=at)
        ask_until_all(server, "/events/-/health", lambda told: told["ready"])
        file.unlink()
        file.mkdir()
        ask_until_all(server, "/events/-/health", lambda told: not told["ready"])
        file.rmdir()
        ask_until_all(server, "/events/-/health", lambda told: told["ready"])


class TestStreams:
    """What concerns the streams of all workers."""

    def test_subscribers(self, start: Serve) -> None:
        """Each worker counts the streams that a channel has in all of them."""
        server = start(workers=3)
        path = target("/on", channel="news")
        clients = in_each_worker(server, path)
        in_each_worker(server, target("/on", channel="other"))
        more = [open_stream(server, path) for _ in range(7)]
        ask_until_all(server, target("/count", channel="news"), lambda told: told["subscribers"] == 10)
        for client in more:
            client.hang_up()
        next(iter(clients.values())).hang_up()
        ask_until_all(server, target("/count", channel="news"), lambda told: told["subscribers"] == 2)
        ask_until_all(server, target("/count", channel="none"), lambda told: told["subscribers"] == 0)

    @pytest.mark.parametrize(
        ("which", "ending"),
        [
            ({"channel": "news"}, {"anna's news", "bob's news"}),
            ({"client": "anna"}, {"anna's news", "anna's others", "anna's generator"}),
            ({"channel": "news", "client": "anna"}, {"anna's news"}),
        ],
        ids=["channel", "client", "both"],
    )
    def test_disconnect(self, start: Serve, which: dict[str, str], ending: set[str]) -> None:
        """`sse.disconnect` ends the streams of a channel, of a client, or of both in all workers, and no others."""
        server = start(workers=3)
        paths = {
            "anna's news": target("/on", channel=["too", "news"], client="anna"),
            "anna's others": target("/on", channel="others", client="anna"),
            "anna's generator": target("/silence", client="anna"),
            "bob's news": target("/on", channel="news", client="bob"),
            "bob's generator": target("/silence", client="bob"),
        }
        streams = {name: list(in_each_worker(server, path).values()) for name, path in paths.items()}
        assert post(server, "/disconnect", **which).status == 200
        assert read_all([client for name in ending for client in streams[name]], 3) == ["clean"] * 3 * len(ending)
        for channel in ("news", "others"):
            assert post(server, "/publish", channel=channel).status == 200
        for name in streams.keys() - ending:
            for client in streams[name]:
                if "generator" not in name:
                    assert client.next_event().event == "message"
                client.read_available()
                assert client.ended is None
        # They may come back.
        for name in ending:
            with open_stream(server, paths[name]) as back:
                assert back.status == 200

    def test_close(self, start: Serve) -> None:
        """`close` ends a channel's streams in all workers, after what was published before; who comes back gets 204 from each."""
        server = start(workers=3)
        clients = in_each_worker(server, target("/on", channel="news"))
        stays = in_each_worker(server, target("/on", channel=["news", "other"]))
        assert post(server, "/publish", channel="news", count=5).status == 200
        end_id = post(server, "/close", channel="news").json()["id"]
        for client in clients.values():
            assert client.read_until_closed(3) == "clean"
            assert numbers(client) == list(range(5))
            assert (client.arrived[-1].event, client.last_event_id) == ("stream-end", f"{end_id}-end")
        served: set[int] = set()
        while served != set(server.ready_workers()):
            back = get(server, target("/on", channel="news"), headers={"Last-Event-ID": f"{end_id}-end"})
            assert back.status == 204
            served.add(int(back.headers["x-worker"]))
        # Of several channels one is still open.
        assert post(server, "/publish", channel="other").status == 200
        for client in stays.values():
            assert client.event_where(lambda event: event.event == "message" and event.json()["series"] == "other")


class TestSetUp:
    """What is served by whom."""

    @pytest.fixture(params=["open to all", "a file", "a link"])
    def unusable(self, request: pytest.FixtureRequest, temporary: Path, tmp_path: Path) -> Path:
        """Something that somebody else may have put where the user's directory would be."""
        home = temporary / f"sseflask-{os.getuid()}"
        match request.param:
            case "open to all":
                home.mkdir()
                home.chmod(0o777)
            case "a file":
                home.touch()
            case "a link":
                (tmp_path / "elsewhere").mkdir(mode=0o700)
                home.symlink_to(tmp_path / "elsewhere")
        return home

    def test_no_place_for_one(self, start: Serve, unusable: Path) -> None:
        """One worker that finds no place for a file says so, and serves from memory."""
        server = start()
        assert (
            server.wait_for_log(r"\[WARNING\] events stay in this worker, and a reload loses them.*").group().count(str(unusable))
        )
        client = open_stream(server, target("/on", channel="news"))
        client.next_event()
        assert post(server, "/publish", channel="news").status == 200
        assert client.next_event().json()["n"] == 0

    def test_no_place_for_several(self, start: Serve, unusable: Path, tmp_path: Path) -> None:
        """Several workers that find none don't serve: the log says what to set; with that set, they do."""
        with pytest.raises(ServerEnded) as ended:
            start(workers=2)
        assert "SSE_BROKER_URL is 'auto'; it must be a URL, such as sqlite:///" in str(ended.value)
        assert str(unusable) in str(ended.value)
        server = start(workers=2, settings={"SSE_BROKER_URL": f"sqlite:///{tmp_path}/events.db"})
        assert post(server, "/publish", channel="news").status == 200

    @pytest.mark.parametrize("worker_class", ["gevent", "gthread"])
    def test_other_worker_classes(self, start: Serve, crowd: Crowd, tmp_path: Path, worker_class: str) -> None:
        """Two workers of another class refuse to subscribe and to publish, and say what to set; with that set, they share a log."""
        args = ["--threads", "20"] if worker_class == "gthread" else []
        server = start(workers=2, worker_class=worker_class, args=args)
        told = post(server, "/publish", channel="news")
        assert (told.status, told.json()["outcome"]) == (503, "not_published")
        refused = get(server, target("/on", channel="news"))
        assert refused.status == 503
        for problem in (told.json()["problem"], refused.json()["error"]):
            assert "set SSE_BROKER_URL to sqlite:///PATH or redis://" in problem
        assert not list(tmp_path.glob("tmp/*/*"))
        server.stop()
        url = f"sqlite:///{tmp_path}/events.db"
        server = start(workers=2, worker_class=worker_class, args=args, settings={"SSE_BROKER_URL": url})
        members = crowd.join(server, [target("/on", channel="news")] * 10)
        publishers = set()
        for n in range(50):
            publishers.add(post(server, "/publish", channel="news", first=n).json()["pid"])
        crowd.read_until(lambda member: member.count("news") >= 50)
        for member in members:
            member.assert_complete("news", 50)
        assert len(publishers | {worker_of(member) for member in members}) == 2

    @pytest.mark.parametrize("args", [[], ["--preload"]], ids=["", "preload"])
    def test_two_apps(self, start: Serve, crowd: Crowd, args: list[str]) -> None:
        """Two apps of one import name, each with its prefix, have channels of their own in all workers, preloaded or not."""
        server = start("tests.live.apps.workers_app:two_apps", workers=2, args=args)
        of_one = crowd.join(server, [target("/on", channel="news")] * 10)
        of_two = crowd.join(server, [target("/two/on", channel="news")] * 10)
        for path, numbered in (("/publish", range(20)), ("/two/publish", range(100, 120))):
            for n in numbered:
                assert post(server, path, channel="news", first=n).status == 200
        crowd.read_until(lambda member: member.count("news") >= 20)
        crowd.read_for(0.1)
        assert {tuple(member.seen["news"]) for member in of_one} == {tuple(range(20))}
        assert {tuple(member.seen["news"]) for member in of_two} == {tuple(range(100, 120))}
        assert len({worker_of(member) for member in crowd.members}) == 2

    @pytest.mark.parametrize("args", [[], ["--preload"]], ids=["", "preload"])
    def test_two_apps_alike(self, start: Serve, args: list[str]) -> None:
        """Two apps that workers can't tell apart aren't served by several: the log says what each needs."""
        app = "tests.live.apps.tenants_app:create_twice()"
        with pytest.raises(ServerEnded) as ended:
            start(app, workers=2, args=args)
        assert "SSE_BROKER_URL is 'auto'; it must be a URL for the app 'tenants': another app here" in str(ended.value)
        assert REMEDIES in str(ended.value)
        server = start(app, workers=2, args=args, env={"OWN_PREFIX": "1"})
        assert post(server, "/ann/publish").status == post(server, "/bob/publish").status == 200

    def test_apps_on_demand(self, start: Serve, temporary: Path) -> None:
        """Apps that each worker makes in an order of its own are refused, until prefixes tell their channels apart."""
        server = start("tests.live.apps.tenants_app:application", workers=2)
        for tenant in ("ann", "bob"):
            refused, told = get(server, f"/{tenant}/events/news"), get(server, f"/{tenant}/events/-/health")
            assert refused.status == told.status == 503
            assert REMEDIES in refused.json()["error"] and REMEDIES in told.json()["problem"]
        assert not list(temporary.glob("*/*/*.sqlite"))
        server.stop()
        server = start("tests.live.apps.tenants_app:application", workers=2, env={"OWN_PREFIX": "1"})
        # Each worker makes both, one of them first in its own order.
        streams = [open_stream(server, f"/{tenant}/events/news") for tenant in ("ann", "bob") * 8]
        assert len({worker_of(stream) for stream in streams}) == 2
        for stream in streams:
            stream.next_event()
        for tenant in ("ann", "bob"):
            assert post(server, f"/{tenant}/publish").status == 200
        assert [stream.next_event().data for stream in streams] == ["ann", "bob"] * 8
        assert len(list(temporary.glob("*/gunicorn-*/*.sqlite"))) == 2

    @pytest.mark.parametrize("app", ["application", "create_twice()"])
    def test_apps_alike_in_one_worker(self, start: Serve, temporary: Path, app: str) -> None:
        """One worker serves apps that a later one couldn't tell apart, each from its memory, and says so."""
        server = start(f"tests.live.apps.tenants_app:{app}")
        streams = {tenant: open_stream(server, f"/{tenant}/events/news") for tenant in ("ann", "bob")}
        for stream in streams.values():
            stream.next_event()
        for tenant in streams:
            assert post(server, f"/{tenant}/publish").status == 200
        assert {tenant: stream.next_event().data for tenant, stream in streams.items()} == {"ann": "ann", "bob": "bob"}
        server.wait_for_log(r"\[WARNING\] events of the app 'tenants' stay in this worker, and a reload loses them: .*")
        assert not list(temporary.glob("*/*/*.sqlite"))

    def test_idle(self, start: Serve, record_testsuite_property: Figures) -> None:
        """A worker with a silent subscriber hardly uses its core, and rests when the last one has left."""
        server = start(workers=2)
        clients = in_each_worker(server, target("/on", channel="news"))
        assert post(server, "/publish", channel="news").status == 200

        def used(seconds: float = 2.0) -> float:
            before = {pid: process.cpu_seconds(pid) for pid in clients}
            time.sleep(seconds)
            return max(process.cpu_seconds(pid) - before[pid] for pid in clients) / seconds

        parts = [used()]
        while parts[-1] >= IDLE_PART and len(parts) < ROUNDS:
            parts.append(used())
        for client in clients.values():
            client.hang_up()
        rests: list[float] = []

        def rest() -> bool:
            rests.append(used())
            return rests[-1] <= RESTING_PART

        wait_until(rest, 25, "the workers to rest")
        record_testsuite_property("idle_workers", {"subscribed": parts, "without": rests})
        assert min(parts) < IDLE_PART, parts
