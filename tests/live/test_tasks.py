"""Tasks and resumable streams on several workers, which are killed, told to stop, blocked, and cut off from their broker."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlencode

import pytest

from tests.conftest import Serve
from tests.live.client import StreamClient, get, open_stream, read_all
from tests.live.process import is_alive, wait_until
from tests.live.server import Server
from tests.redis import RedisServer, needs_redis
from tests.viewers import MakeWorker, make_worker

__all__ = ["make_worker"]

APP: Final = "tests.live.apps.tasks_app:app"
#: As in the app: seconds within which the death of a worker is noticed; and what a busy machine may take besides.
LEASE: Final = 3.0
MARGIN: Final = 6.0
PATIENCE: Final = 20.0
ENDS: Final = ("task_completed", "task_failed", "task_cancelled", "stream-end", "error")


@pytest.fixture(scope="module")
def auto(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Two workers that share what their gunicorn makes for them; who kills one has another afterwards."""
    with Server(APP, tmp_path_factory.mktemp("server"), workers=2) as server:
        yield server


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A Redis that stays."""
    server = RedisServer(tmp_path_factory.mktemp("redis")).start()
    yield server
    server.close()


@pytest.fixture(scope="module")
def on_redis(redis: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Two workers on a Redis."""
    with Server(APP, tmp_path_factory.mktemp("server"), workers=2, env={"SSE_BROKER_URL": json.dumps(redis.url)}) as server:
        yield server


@pytest.fixture(params=["auto", pytest.param("on_redis", marks=needs_redis)])
def server(request: pytest.FixtureRequest) -> Server:
    """Each of them."""
    found: Server = request.getfixturevalue(request.param)
    return found


def target(path: str, **query: object) -> str:
    """A path and its query."""
    return f"{path}?{urlencode(query)}"


def two(server: Server) -> tuple[int, int]:
    """Both workers, when there are two that are ready."""
    first, second = wait_until(lambda: found if len(found := server.ready_workers()) == 2 else None, PATIENCE)
    return first, second


def on_worker(
    server: Server, pid: int | None, path: str, last_event_id: str | None = None, *, method: str = "GET", waits: bool = True
) -> StreamClient:
    """Opens a stream, on this worker if one is named."""
    headers = {"Connection": "close"}
    if pid is not None:
        headers["X-Only"] = str(pid)
    if last_event_id is not None:
        headers["Last-Event-ID"] = last_event_id
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        client = open_stream(server, path, headers=headers, method=method, wait_for_head=waits)
        if not waits or client.status != 421:
            return client
        client.hang_up()
    raise AssertionError(f"worker {pid} never answers")


def ask(server: Server, pid: int | None, path: str, **query: object) -> dict[str, Any]:
    """Posts to a worker."""
    client = on_worker(server, pid, target(path, **query), method="POST")
    client.read_until_closed(PATIENCE)
    assert client.status == 200, bytes(client.body)
    found: dict[str, Any] = json.loads(client.body)
    return found


def start(server: Server, pid: int | None, kind: str, name: str, **query: object) -> dict[str, Any]:
    """Starts a task on a worker."""
    return ask(server, pid, f"/start/{kind}", name=name, **query)


def stats(server: Server, pid: int) -> dict[str, Any]:
    """What a worker has open."""
    client = on_worker(server, pid, "/worker")
    client.read_until_closed(PATIENCE)
    found: dict[str, Any] = json.loads(client.body)
    return found


def is_end(client: StreamClient) -> Callable[[], bool]:
    """Whether a stream has had its last event."""

    def has_ended() -> bool:
        client.read_available()
        return any(event.event in ENDS for event in client.arrived)

    return has_ended


def numbers(client: StreamClient) -> list[int]:
    """The numbers that have come."""
    return [event.json()["n"] for event in client.arrived if event.event == "message"]


def resumed(server: Server, client: StreamClient, pid: int | None, path: str) -> StreamClient:
    """The same client, that comes back."""
    return on_worker(server, pid, path, client.last_event_id)


class TestKilled:
    """A worker is killed."""

    def test_viewers_worker(self, server: Server) -> None:
        """The worker of a run's and a task's viewers is killed: they come back, go on, and have had everything once."""
        work, watch = two(server)
        task = start(server, work, "counting", "killed-viewer-task", count=60)
        path = target("/run", name="killed-viewer-run", count=60)
        run = on_worker(server, work, path)
        run.event_where(lambda event: event.event == "message")
        viewers = [on_worker(server, watch, f"/tasks/{task['id']}"), resumed(server, run, watch, path)]
        run.hang_up()
        for viewer in viewers:
            viewer.event_where(lambda event: event.event == "message", PATIENCE)
        os.kill(watch, signal.SIGKILL)
        for viewer in viewers:
            viewer.read_until_closed(PATIENCE)
        again = [resumed(server, viewer, None, one) for viewer, one in zip(viewers, (f"/tasks/{task['id']}", path), strict=True)]
        read_all(again, PATIENCE)
        for viewer, one, first in zip(viewers, again, (None, numbers(run)), strict=True):
            seen = (first or []) + numbers(viewer) + numbers(one)
            assert seen == list(range(seen[0], 60)), seen
        assert numbers(run)[0] == 0
        assert [event.event for event in again[0].arrived][-1] == "task_completed"
        assert again[1].arrived[-1].json() == {"reason": "completed"}
        assert server.log().count("began counting killed-viewer-run") == 1
        two(server)

    def test_producers_worker(self, server: Server) -> None:
        """The worker that does the work is killed: who watches it on the other one is told in time, however they watch."""
        work, watch = two(server)
        task = start(server, work, "sleeping", "killed-producer-task")
        other = start(server, work, "counting", "killed-producer-channel", count=10_000, channel="chosen")
        path = target("/run/sleeping", name="killed-producer-run")
        run = on_worker(server, work, path)
        run.event_where(lambda event: event.event == "message")
        viewers = [
            on_worker(server, watch, f"/tasks/{task['id']}"),
            on_worker(server, watch, target("/on", channel=task["channel"])),
            on_worker(server, watch, target("/on", channel="chosen")),
            on_worker(server, watch, f"/tasks/{other['id']}"),
            resumed(server, run, watch, path),
        ]
        for viewer in viewers:
            viewer.next_event()
        mine = on_worker(server, work, f"/tasks/{task['id']}")
        mine.next_event()
        killed = time.monotonic()
        os.kill(work, signal.SIGKILL)
        mine.read_until_closed(PATIENCE)
        viewers.append(resumed(server, mine, None, f"/tasks/{task['id']}"))
        wait_until(lambda: [is_end(viewer)() for viewer in viewers] == [True] * len(viewers), LEASE + MARGIN)
        assert time.monotonic() - killed < LEASE + MARGIN
        for viewer in viewers:
            (last,) = [event for event in viewer.arrived if event.event in ENDS]
            if last.event == "error":
                assert last.json()["error_type"] == "producer_lost" and (last.id or "").endswith("-end")
            else:
                assert last.event == "task_failed" and last.json()["details"] == {"error_type": "producer_lost"}
        assert [viewer.status for viewer in (resumed(server, viewers[0], None, f"/tasks/{task['id']}"),)] == [204]
        assert resumed(server, viewers[4], None, path).status == 204
        for viewer in viewers:
            viewer.hang_up()
        two(server)


class TestEnds:
    """Work that waits is ended where it waits."""

    def test_cancelled(self, server: Server) -> None:
        """A sleeping generator is interrupted from any worker, by whatever ends it; its `finally` runs before that is told."""
        here, there = two(server)
        names = ("cancel-here", "cancel-there", "complete-here", "complete-there")
        tasks = [start(server, here, "sleeping", name) for name in names]
        viewers = [on_worker(server, there, f"/tasks/{task['id']}") for task in tasks]
        assert ask(server, here, f"/end/{tasks[0]['id']}")["asked"] is True
        assert ask(server, there, f"/end/{tasks[1]['id']}")["asked"] is True
        ask(server, here, f"/end/{tasks[2]['id']}", result="by hand")
        ask(server, there, f"/end/{tasks[3]['id']}", result="by hand")
        read_all(viewers, PATIENCE)
        assert [viewer.arrived[-1].event for viewer in viewers] == ["task_cancelled"] * 2 + ["task_completed"] * 2
        for name, reason in zip(names, ["cancelled"] * 2 + ["concluded"] * 2, strict=True):
            server.wait_for_log(rf"^finally sleeping {name} {reason}$", PATIENCE)
        wait_until(lambda: stats(server, here)["detached"] == 0, PATIENCE)

    def test_abandoned(self, auto: Server) -> None:
        """A run whose client has gone is cancelled after its grace; one whose client comes back, to another worker, is not."""
        here, there = two(auto)
        path = target("/run/short", name="kept")
        left, kept = (on_worker(auto, here, one) for one in (target("/run/short", name="left"), path))
        for client in (left, kept):
            client.event_where(lambda event: event.event == "message")
            client.hang_up()
        again = resumed(auto, kept, there, path)
        auto.wait_for_log(r"^finally sleeping left abandoned$", PATIENCE)
        # As long again as it took the other one.
        began = time.monotonic()
        wait_until(lambda: time.monotonic() - began > 2.0, PATIENCE)
        assert "finally sleeping kept" not in auto.log()
        again.hang_up()
        auto.wait_for_log(r"^finally sleeping kept abandoned$", PATIENCE)
        # Its end is told after its `finally`.
        wait_until(lambda: stats(auto, here)["detached"] == 0, PATIENCE)
        gone = resumed(auto, kept, None, path)
        gone.read_until_closed()
        assert [event.event for event in gone.arrived] == ["stream-reset", "stream-end"]
        assert resumed(auto, gone, None, path).status == 204

    def test_from_everywhere(self, auto: Server) -> None:
        """A task is started from a request, a greenlet and a native thread, and may itself work in native threads."""
        tasks = [
            start(auto, None, kind, "everywhere", **{"from": place})
            for place in ("request", "greenlet", "thread")
            for kind in ("counting", "in_threads")
        ]
        viewers = [on_worker(auto, None, f"/tasks/{task['id']}") for task in tasks]
        read_all(viewers, PATIENCE)
        assert [viewer.arrived[-1].json().get("result") for viewer in viewers] == [10, 20] * 3

    def test_text(self, auto: Server) -> None:
        """Tokens of a run are joined, in time and in order, also what comes last long before the end."""
        client = on_worker(auto, None, target("/run/text", count=200))

        def text() -> str:
            client.read_available()
            return "".join(event.data for event in client.arrived if event.event == "message")

        expected = "".join(f"{n} " for n in range(200)) + "first and last"
        wait_until(lambda: text() == expected, PATIENCE)
        assert not is_end(client)()
        names = [event.event for event in client.arrived]
        before = "".join(event.data for event in client.arrived[1 : names.index("all")])
        assert before == expected.removesuffix("first and last")
        assert len(names) < 60
        client.read_until_closed(PATIENCE)

    def test_nothing_stays(self, auto: Server) -> None:
        """A worker that has done much work has no more greenlets, threads and files than before."""
        here, _ = two(auto)

        def work(count: int) -> None:
            clients = [on_worker(auto, None, target("/run", name="nothing-stays", count=3, pace=0.001)) for _ in range(count)]
            tasks = [get(auto, "/start/counting?name=nothing-stays&count=3&pace=0.001", method="POST").json() for _ in range(count)]
            clients += [on_worker(auto, None, f"/tasks/{task['id']}") for task in tasks]
            read_all(clients, PATIENCE)

        def is_idle() -> bool:
            found = stats(auto, here)
            assert found["detached"] == found["streams"] == 0, found
            return True

        work(10)
        wait_until(is_idle, PATIENCE)
        before = stats(auto, here)
        work(20)

        def is_as_before() -> bool:
            after = stats(auto, here)
            assert after["detached"] == after["streams"] == 0, after
            assert after["greenlets"] <= before["greenlets"] + 3, (before, after)
            assert after["threads"] <= before["threads"] + 1 and after["files"] <= before["files"] + 4, (before, after)
            return True

        wait_until(is_as_before, PATIENCE)

    def test_blocked(self, auto: Server) -> None:
        """A worker whose hub is blocked for longer than the lease isn't dead, and its work goes on."""
        work, watch = two(auto)
        task = start(auto, work, "blocking", "blocked")
        viewer = on_worker(auto, watch, f"/tasks/{task['id']}")
        viewer.read_until_closed(LEASE * 1.5 + PATIENCE)
        assert viewer.arrived[-1].event == "task_completed", viewer.arrived[-1]
        seen = numbers(viewer)
        assert seen in ([0, 1], [1])
        assert viewer.ended_at is not None and viewer.ended_at - viewer.arrived[0].at > LEASE


@needs_redis
def test_outage(serve: Serve, tmp_path: Path) -> None:
    """Redis stands still for longer than the lease: nobody is judged dead, and what is published afterwards comes."""
    redis = RedisServer(tmp_path).start()
    try:
        env = {"SSE_BROKER_URL": json.dumps(redis.url), "SSE_BROKER_TIMEOUT": "1", "SSE_PRODUCER_LEASE": "2"}
        server = serve(APP, workers=2, env=env)
        work, watch = two(server)
        silent = start(server, work, "pausing", "silent")
        viewers = [on_worker(server, watch, f"/tasks/{silent['id']}")]
        viewers += [on_worker(server, work, target("/run/pausing", name="silent run"))]
        for viewer in viewers:
            viewer.event_where(lambda event: event.event == "stream-open", PATIENCE)
        server.wait_for_log("^began pausing silent run")
        redis.stand_still()
        stood = time.monotonic()
        wait_until(lambda: time.monotonic() - stood > 2.0 * 1.4, PATIENCE)
        redis.go_on()
        # Shorter than the lease: who publishes meanwhile waits.
        counting = start(server, work, "counting", "outage", count=40)
        viewers.append(on_worker(server, watch, f"/tasks/{counting['id']}"))
        viewers[-1].event_where(lambda event: event.event == "message", PATIENCE)
        redis.stand_still()
        stood = time.monotonic()
        wait_until(lambda: time.monotonic() - stood > 2.0 * 0.4, PATIENCE)
        redis.go_on()
        read_all(viewers, PATIENCE)
        for viewer, count in zip(viewers, (2, 2, 40), strict=True):
            seen = numbers(viewer)
            assert seen == list(range(seen[0], count)), (viewer, seen)
            assert viewer.arrived[-1].event in ("task_completed", "stream-end")
    finally:
        redis.close()


def test_reload(serve: Serve) -> None:
    """Told to reload, a worker lets work go on, which clients watch on the new one; what isn't done in time fails, as such."""
    server = serve(APP, args=["--graceful-timeout", "5"], env={"SSE_DRAIN_SECONDS": "0.5"})
    (old,) = server.ready_workers()
    quick = start(server, None, "counting", "quick", count=50)
    endless = start(server, None, "sleeping", "endless")
    slow = start(server, None, "sleeping", "slow", slow=30)
    run = on_worker(server, None, target("/run", name="reloaded", count=50))
    stuck = on_worker(server, None, target("/run/sleeping", name="stuck"))
    for client in (run, stuck):
        client.event_where(lambda event: event.event == "message")
    server.signal(signal.SIGHUP)
    (new,) = server.wait_for_new_workers([old])
    read_all([run, stuck], PATIENCE)
    assert run.ended == "clean" and numbers(run) != list(range(50))
    again = resumed(server, run, new, target("/run", name="reloaded", count=50))
    stuck_again = resumed(server, stuck, new, target("/run/sleeping", name="stuck"))
    viewers = [on_worker(server, new, f"/tasks/{task['id']}") for task in (quick, endless, slow)]
    read_all([again, stuck_again, *viewers], PATIENCE)
    assert numbers(run) + numbers(again) == list(range(50))
    assert stuck_again.arrived[-1].event == "error" and stuck_again.arrived[-1].json()["error_type"] == "shutdown"
    assert viewers[0].arrived[-1].event == "task_completed"
    for viewer in viewers[1:]:
        assert viewer.arrived[-1].event == "task_failed" and viewer.arrived[-1].json()["details"] == {"error_type": "shutdown"}
    wait_until(lambda: not is_alive(old), PATIENCE)
    server.wait_for_log(r"^finally sleeping endless shutdown$")
    assert server.log().count("began counting reloaded") == 1


def test_stop(serve: Serve) -> None:
    """Told to stop, a worker lets work finish, and leaves as soon as it has."""
    server = serve(APP, args=["--graceful-timeout", "20"], env={"SSE_DRAIN_SECONDS": "0.5"})
    start(server, None, "counting", "quick", count=20)
    began = time.monotonic()
    server.signal(signal.SIGTERM)
    assert server.wait_for_exit(PATIENCE) == 0
    assert "finally counting quick returned" in server.log() and "Traceback" not in server.log()
    assert time.monotonic() - began < 15


@needs_redis
def test_stop_in_time(serve: Serve, redis: RedisServer, make_worker: MakeWorker) -> None:
    """What isn't done when a worker must leave is failed by itself, before gunicorn kills it: nobody has to wait for its lease."""
    server = serve(APP, args=["--graceful-timeout", "3"], env={"SSE_DRAIN_SECONDS": "0.5", "SSE_BROKER_URL": json.dumps(redis.url)})
    tasks = [start(server, None, "sleeping", f"stopped-{slow}", slow=slow) for slow in (0, 60)]
    server.signal(signal.SIGTERM)
    server.wait_for_exit(PATIENCE)
    here = make_worker(SSE_BROKER_URL=redis.url)
    for task in tasks:
        found = here.sse.task(task["id"])
        assert found is not None and found.state == "failed", (task, found and found.state)
        assert found.error == "the server was stopped before the work was done"


def test_max_requests(serve: Serve) -> None:
    """A worker that has had its requests finishes its work while another serves."""
    server = serve(APP, args=["--max-requests", "8", "--graceful-timeout", "20"], env={"SSE_DRAIN_SECONDS": "0.5"})
    (old,) = server.ready_workers()
    task = start(server, None, "counting", "recycled", count=60)
    run = on_worker(server, None, target("/run", name="recycled-run", count=60))
    run.event_where(lambda event: event.event == "message")
    for _ in range(10):
        with contextlib.suppress(OSError, AssertionError):
            get(server, f"/state/{task['id']}")
    read_all([run], PATIENCE)
    (new,) = server.wait_for_new_workers([old], PATIENCE)
    viewer = on_worker(server, new, f"/tasks/{task['id']}")
    again = resumed(server, run, new, target("/run", name="recycled-run", count=60))
    read_all([viewer, again], PATIENCE)
    assert viewer.arrived[-1].event == "task_completed" and viewer.arrived[-1].json()["result"] == 60
    assert numbers(run) + numbers(again) == list(range(60))
    wait_until(lambda: not is_alive(old), PATIENCE)
