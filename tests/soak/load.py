"""Who uses the server: publishers, watchers of channels of all tempers, and those of generators, runs and tasks."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from typing import Final

from tests.live.client import Event, StreamClient
from tests.live.server import ROOT

from .watcher import Watcher, forget
from .world import World

CHANNELS: Final = ("open-0", "open-1", "open-2", "large", "secret")
LARGE_BYTES: Final = 100_000
TASK_ENDS: Final = ("task_completed", "task_failed", "task_cancelled")

Actor = Callable[[World, str], None]


class Publishers:
    """All that publish, until they are told to stop; what they have begun the broker has then."""

    def __init__(self, world: World, broker_url: str | None, lifetime: float) -> None:
        """Stores what it is given; `broker_url` is None where other processes can't publish."""
        self._world = world
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []
        self._process: subprocess.Popen[str] | None = None
        self._url = broker_url
        self._lifetime = lifetime

    def start(self) -> None:
        """Starts them."""
        for channel in CHANNELS:
            self._start(self._publish_over_http, f"http-{channel}", channel)
        if self._url is not None:
            command = [sys.executable, "-m", "tests.soak.publisher", self._url, "open-1", "process"]
            self._process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
            self._start(self._follow_process, "process", "open-1")

    def stop(self) -> None:
        """Stops them."""
        self._stop.set()
        if self._process is not None:
            self._process.terminate()
            self._process.wait(10)
        for thread in self._threads:
            thread.join(60)
        if self._process is not None and self._process.stdout is not None:
            self._process.stdout.close()

    def _start(self, work: Callable[[str, str], None], series: str, channel: str) -> None:
        self._world.accepted[series] = 0
        self._world.channel_of[series] = channel
        thread = threading.Thread(target=guarded, args=(self._world, series, lambda: work(series, channel)), name=series)
        thread.start()
        self._threads.append(thread)

    def _publish_over_http(self, series: str, channel: str) -> None:
        world = self._world
        query = f"channel={channel}&action=publish&seconds={self._lifetime}"
        token = world.ask_json(f"/token?{query}")["token"]
        filling = "x" * LARGE_BYTES if channel == "large" else ""
        pause = 1.0 if channel == "large" else 0.1
        n = 0
        while not self._stop.is_set():
            body = json.dumps({"data": {"series": series, "n": n, "filling": filling}}).encode()
            headers = {
                "Content-Type": "application/json",
                "Authorization": f"Bearer {token}",
                "Idempotency-Key": f"{world.seed}-{series}-{n}",
            }
            # The same until the broker has it: nobody knows whether what wasn't answered was published.
            while world.ask(f"/events/{channel}", body=body, headers=headers) is None:
                world.count("publishes tried again")
                time.sleep(0.2)
            n += 1
            world.accepted[series] = n
            world.count("events published over HTTP")
            self._stop.wait(pause)

    def _follow_process(self, series: str, channel: str) -> None:
        assert self._process is not None and self._process.stdout is not None
        for line in self._process.stdout:
            self._world.accepted[series] = int(line)
            self._world.count("events published by another process")


def path_of(channel: str) -> str:
    """Where a channel is watched without a token."""
    return f"/on?channel={channel}"


def steady(world: World, watcher: Watcher, channel: str) -> None:
    """Watches a channel from beginning to end, and comes back whenever it is cut."""
    while not world.stopping.is_set():
        client = world.open(path_of(channel), watcher.last_event_id)
        if client is not None:
            with client:
                while watcher.read(client, time.monotonic() + 60):
                    if world.stopping.is_set():
                        return
        world.sleep(0.1)


def visitor(world: World, name: str) -> None:
    """Comes, stays for a while, and leaves in one way or another; sometimes it comes back to where it was."""
    chance = world.random(name)
    watcher = Watcher(world, name)
    channel = chance.choice(CHANNELS[:4])
    while not world.stopping.is_set():
        client = world.open(path_of(channel), watcher.last_event_id)
        if client is not None:
            with client:
                goes_on = watcher.read(client, time.monotonic() + chance.uniform(0.0, 6.0))
                if goes_on:
                    leave(world, client, chance.choice(("hang up", "reset", "half-close")))
        world.sleep(chance.uniform(0.0, 1.0))
        if chance.random() < 0.5:
            watcher = Watcher(world, name)
            channel = chance.choice(CHANNELS[:4])


def leave(world: World, client: StreamClient, how: str) -> None:
    """Leaves a stream."""
    world.count(f"left: {how}")
    with contextlib.suppress(OSError):
        if how == "reset":
            client.reset()
        elif how == "half-close":
            client.half_close()
            # The server takes it for a hang-up; who waits for that sees the end.
            with contextlib.suppress(TimeoutError, EOFError):
                client.read_until_closed(5)


def slow_reader(world: World, name: str) -> None:
    """Reads large events through a small buffer, with pauses; then comes back and reads what it has missed."""
    chance = world.random(name)
    watcher = Watcher(world, name)
    while not world.stopping.is_set():
        client = world.open(path_of("large"), watcher.last_event_id, receive_buffer=4096)
        if client is not None:
            with client:
                watcher.read(client, time.monotonic() + 10, pause=chance.uniform(0.3, 1.5))
        client = world.open(path_of("large"), watcher.last_event_id)
        if client is not None:
            with client:
                watcher.read(client, time.monotonic() + 5)


def holder_of_tokens(world: World, name: str) -> None:
    """Watches a channel with tokens that expire under way, and gets another one each time."""
    watcher = Watcher(world, name)
    while not world.stopping.is_set():
        answer = world.ask_json("/token?channel=secret&action=subscribe&seconds=3")
        if answer is None:
            return
        # Where workers stand still for a while, it may have expired before it is looked at.
        client = world.open(f"/events/secret?token={answer['token']}", watcher.last_event_id, too_late=401)
        if client is not None:
            with client:
                watcher.expired = False
                if watcher.read(client, time.monotonic() + 15) and not world.stopping.is_set():
                    world.problem(f"{name}: a token that has expired ends no stream")
                world.count("tokens that expired", int(watcher.expired))


def generator_watcher(world: World, name: str) -> None:
    """Watches generators, to their end or not."""
    chance = world.random(name)
    while not world.stopping.is_set():
        client = world.open(f"/numbers?count={chance.randint(5, 80)}")
        if client is not None:
            until = time.monotonic() + chance.uniform(0.0, 8.0)
            with client:
                watch_numbers(world, name, client, until)
        world.sleep(0.2)


def watch_numbers(world: World, name: str, client: StreamClient, until: float) -> None:
    """Counts with a generator."""
    expected = 0
    for event in events_of(world, client, until):
        if event.event == "message":
            if event.json()["n"] != expected:
                world.problem(f"{name}: {event.json()} where {expected} should be")
            expected += 1
        elif event.event == "complete":
            world.count("generators seen to their end")


def events_of(world: World, client: StreamClient, until: float) -> Iterator[Event]:
    """The events of one connection, until its end, the monotonic second `until`, or the load's end."""
    while (left := until - time.monotonic()) > 0 and not world.stopping.is_set():
        try:
            yield client.next_event(min(left, 0.5))
        except TimeoutError:
            continue
        except (EOFError, ConnectionError):
            return
        forget(client)


def run_watcher(world: World, name: str) -> None:
    """Watches resumable runs, breaking off and coming back; the text must be whole, or its end be told."""
    chance = world.random(name)
    number = 0
    while not world.stopping.is_set():
        number += 1
        count = chance.randint(20, 300)
        path = f"/run?name={name}-{number}&count={count}"
        expected = "".join(f"{n} " for n in range(count))
        text, last_event_id, end = "", "", ""
        while not end and not world.stopping.is_set():
            client = world.open(path, last_event_id)
            if client is None:
                world.sleep(0.2)
                continue
            with client:
                if client.status == 204:
                    end = "204"
                for event in events_of(world, client, time.monotonic() + chance.uniform(0.2, 5.0)):
                    last_event_id = event.id or last_event_id
                    if event.event == "message":
                        text += event.data
                    elif event.event == "stream-end":
                        # After a reset, what the reset says counts.
                        end = end or event.json()["reason"]
                    elif event.event != "stream-open":
                        end = event.event
                        if end == "stream-reset":
                            world.reset(event.json()["reason"])
        judge_run(world, name, end, text, expected)


def judge_run(world: World, name: str, end: str, text: str, expected: str) -> None:
    """Whether a run's text is what it must be."""
    if end == "completed":
        world.count("runs seen to their end")
        if text != expected:
            world.problem(f"{name}: a run ended with {text[-40:]!r} instead of {expected[-40:]!r}, {len(text)} of {len(expected)}")
    elif end in ("error", "stream-reset", "abandoned"):
        world.count(f"runs told to have ended before their time: {end}")
        if not expected.startswith(text):
            world.problem(f"{name}: a run that was ended had {text[-40:]!r}")
    elif end:
        world.problem(f"{name}: a run ended with {end!r} after {text[-40:]!r}")


def task_watcher(world: World, name: str) -> None:
    """Starts tasks and watches them; their end must be told, once."""
    chance = world.random(name)
    while not world.stopping.is_set():
        count = chance.randint(5, 80)
        answer = world.ask_json(f"/tasks?count={count}", body=b"")
        if answer is None:
            return
        deadline = time.monotonic() + 60
        ends: list[str] = []
        last_event_id = ""
        while not ends and not world.stopping.is_set():
            if time.monotonic() > deadline:
                world.problem(f"{name}: nothing is told of the end of task {answer['id']}")
                break
            client = world.open(f"/tasks/{answer['id']}", last_event_id)
            if client is None:
                world.sleep(0.2)
                continue
            with client:
                until = time.monotonic() + chance.uniform(0.5, 5.0)
                last_event_id = watch_task(world, name, client, count, until, ends) or last_event_id
        if len(ends) > 1:
            world.problem(f"{name}: a task ended more than once: {ends}")
        for end in ends:
            world.count(f"tasks: {end}")


def watch_task(world: World, name: str, client: StreamClient, count: int, until: float, ends: list[str]) -> str:
    """Watches a task over one connection; adds its ends to `ends`, and returns the last id."""
    expected = None
    for event in events_of(world, client, until):
        if event.event in TASK_ENDS:
            ends.append(event.event)
            if event.event == "task_completed" and event.json()["result"] != count:
                world.problem(f"{name}: {event.data} instead of {count}")
        elif event.event == "message":
            n = event.json()["n"]
            if expected is not None and n != expected:
                world.problem(f"{name}: {n} of a task where {expected} should be")
            expected = n + 1
        elif event.event == "stream-reset":
            world.reset(event.json()["reason"])
            expected = None
    return client.last_event_id


#: Each kind of actor, and how many there are of it.
ACTORS: Final[dict[Actor, int]] = {
    visitor: 8,
    slow_reader: 2,
    holder_of_tokens: 2,
    generator_watcher: 4,
    run_watcher: 4,
    task_watcher: 3,
}
STEADY_PER_CHANNEL: Final = 3


class Load:
    """All actors but the publishers.

    Attributes:
        watchers: Those who watch from beginning to end, and their channels.
    """

    def __init__(self, world: World) -> None:
        self.watchers: list[tuple[Watcher, str]] = []
        self._world = world
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        """Starts them."""
        for channel in CHANNELS[:4]:
            for number in range(STEADY_PER_CHANNEL):
                name = f"steady-{channel}-{number}"
                watcher = Watcher(self._world, name)
                self.watchers.append((watcher, channel))
                self._begin(name, partial(steady, self._world, watcher, channel))
        for actor, count in ACTORS.items():
            for number in range(count):
                name = f"{actor.__name__}-{number}"
                self._begin(name, partial(actor, self._world, name))

    def missing(self) -> list[str]:
        """What those who watch from beginning to end have yet to see."""
        expected = dict(self._world.accepted)
        for watcher, _ in self.watchers:
            for series, count in list(watcher.seen.items()):
                expected[series] = max(expected.get(series, 0), count)
        found: list[str] = []
        for watcher, channel in self.watchers:
            for series, count in expected.items():
                if self._world.channel_of.get(series, "open-0") == channel and watcher.seen.get(series, 0) < count:
                    found.append(f"{watcher.name} has seen {watcher.seen.get(series, 0)} of {count} of {series}")
        return found

    def stop(self) -> None:
        """Has them leave."""
        self._world.stopping.set()
        for thread in self._threads:
            thread.join(60)

    def _begin(self, name: str, work: Callable[[], None]) -> None:
        thread = threading.Thread(target=guarded, args=(self._world, name, work), name=name)
        thread.start()
        self._threads.append(thread)


def guarded(world: World, name: str, work: Callable[[], None]) -> None:
    """Does an actor's work; what it doesn't expect is a problem."""
    try:
        work()
    except Exception:
        world.problem(f"{name} fell: {traceback.format_exc()}")
