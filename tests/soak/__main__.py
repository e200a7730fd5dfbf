"""The command: `python -m tests.soak --minutes 20 --broker redis`. It ends with 0 if nothing went wrong."""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from tests.live import process
from tests.live.process import wait_until
from tests.live.server import Server
from tests.redis import BINARY, RedisServer

from . import report
from .fault import CYCLE_SECONDS, PAUSE, WORKERS, Faults
from .load import Load, Publishers
from .measure import INTERVAL, Measurement
from .world import World

BROKERS: Final = ("auto", "sqlite", "redis")
#: Seconds in which what was accepted must have come to all, and all streams must be gone.
PATIENCE: Final = 40.0
#: Sockets that an idle worker may have more of than when it was new: two pools of connections to Redis, and the one that asks.
SOCKETS_SLACK: Final = 20
#: Seconds that a worker may take to leave.
GRACEFUL_TIMEOUT: Final = 10
#: What work ends with, as documented, when the broker is away for longer than `SSE_PRODUCER_LEASE`.
GAVE_UP: Final = "sseflask.errors.BrokerUnavailable"


def main(arguments: Sequence[str]) -> int:
    """Runs it and prints the report."""
    options = _parse(arguments)
    # Told to stop, it still stops what it has started.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    say(f"seed {options.seed}")
    with contextlib.ExitStack() as opened:
        directory = Path(opened.enter_context(tempfile.TemporaryDirectory(prefix="sse-soak-")))
        text, passed, log = soak(directory, options.broker, seconds=options.minutes * 60, seed=options.seed)
    sys.stdout.write(text)
    if options.report is not None:
        options.report.write_text(text)
    if options.log is not None:
        options.log.write_text(log)
    return 0 if passed else 1


def soak(directory: Path, broker: str, *, seconds: float, seed: int) -> tuple[str, bool, str]:
    """Loads two workers for so long.

    Args:
        directory: An empty one, for all files.
        broker: One of `BROKERS`.
        seconds: How long; a minute or more for faults of all kinds, some minutes for memory to be judged.
        seed: What all chance begins with.

    Returns:
        The report, whether all went well, and the server's log.
    """
    is_short = seconds < 60
    temporary, state, redis = directory / "tmp", directory / "shared", None
    temporary.mkdir()
    state.mkdir()
    env = {"TMPDIR": str(temporary), "SOAK_STATE": str(state)}
    settings: dict[str, object] = {
        "SSE_KEEPALIVE_INTERVAL": 2, "SSE_SEND_TIMEOUT": 5, "SSE_DRAIN_SECONDS": 2, "SSE_RETRY": 200, "SSE_PRODUCER_LEASE": 4,
        "SSE_HISTORY": 1000, "SSE_HISTORY_SECONDS": 30,
    }  # fmt: skip
    with contextlib.ExitStack() as opened:
        url = None
        if broker == "redis":
            redis = RedisServer(directory, appendonly="yes", appendfsync="always")
            opened.callback(redis.close)
            url = redis.start().url + "?durable=1"
        elif broker == "sqlite":
            url = f"sqlite:///{directory / 'events.sqlite'}"
        if url is not None:
            settings["SSE_BROKER_URL"] = url
        env |= {name: json.dumps(value) for name, value in settings.items()}
        args = ["--graceful-timeout", str(GRACEFUL_TIMEOUT), "--access-logfile", "/dev/null"]
        server = opened.enter_context(Server("tests.soak.app:app", directory, workers=WORKERS, env=env, args=args))
        world = World(server, seed)
        sockets = max(process.open_sockets(pid) for pid in server.ready_workers())
        measurement = Measurement(world, interval=0.2 if is_short else INTERVAL)
        faults = Faults(world, redis, cycle=min(CYCLE_SECONDS, seconds), pause=(0.3, 0.8) if is_short else PAUSE)
        load, publishers = Load(world), Publishers(world, url, seconds * 2 + 3600)
        began = time.monotonic()
        try:
            measurement.start()
            publishers.start()
            load.start()
            faults.start()
            _wait(world, seconds)
        finally:
            faults.stop()
            measurement.stop()
            publishers.stop()
            lasted = time.monotonic() - began
            (state / "hush").touch()
            _check_deliveries(world, load)
            load.stop()
        _check_end(world, sockets, temporary)
        memory, files = measurement.growth(lambda sample: sample.memory), measurement.growth(lambda sample: sample.files)
        report.judge(world, memory, files)
        text = report.markdown(world, measurement, broker=broker, seconds=lasted, memory=memory, files=files)
        return text, not world.problems, server.log()


def say(line: str) -> None:
    """Says how far it is."""
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def _wait(world: World, seconds: float) -> None:
    """Lets it go on for so long; a line each minute says that it does."""
    ends = time.monotonic() + seconds
    while (left := ends - time.monotonic()) > 0:
        world.sleep(min(left, 60))
        if seconds >= 120:
            left = max(0.0, ends - time.monotonic())
            say(f"{left / 60:.0f} min left, {world.counted['deliveries']:,} deliveries, {world.counted['problems']} problems")


def _check_deliveries(world: World, load: Load) -> None:
    """Waits until all that was accepted has come to those who watch from beginning to end."""
    try:
        wait_until(lambda: not load.missing(), PATIENCE, "all that was accepted to be delivered")
    except AssertionError:
        for line in load.missing():
            world.problem(line)


def _check_end(world: World, sockets: int, temporary: Path) -> None:
    """Nothing is left of the load in the workers, and nothing of the server in the file system."""
    server = world.server
    world.stopping.clear()

    def is_empty() -> bool:
        token = world.ask_json("/token?channel=*&action=inspect")["token"]
        workers = world.ask_json(f"/events/-/stats?token={token}")["workers"]
        numbers = {pid: (now["streams"], now["detached"]) for pid, now in workers.items()}
        assert sorted(map(int, numbers)) == sorted(server.worker_pids()), f"workers that are counted: {numbers}"
        assert all(pair == (0, 0) for pair in numbers.values()), f"streams and work that goes on, by worker: {numbers}"
        held = {pid: process.open_sockets(pid) for pid in server.ready_workers()}
        assert all(count <= sockets + SOCKETS_SLACK for count in held.values()), f"sockets by worker: {held}, at first {sockets}"
        return True

    try:
        wait_until(is_empty, PATIENCE, "the workers to be empty")
        server.signal(signal.SIGTERM)
        code = server.wait_for_exit(PATIENCE)
        assert code == 0, f"the server ended with {code}"
        left = [str(path.relative_to(temporary)) for path in temporary.rglob("*") if not path.is_dir() or any(path.iterdir())]
        assert not left, f"left in the temporary directory: {left}"
    except (AssertionError, KeyError) as error:
        world.problem(f"at the end: {error!r}")
    judge_log(world, server.log().splitlines())


def judge_log(world: World, lines: Sequence[str]) -> None:
    """Takes each traceback and critical line of the server's for a problem, but for work that gave up on a broker that was away.

    Args:
        world: What is told of problems, and counts the others.
        lines: The log's.
    """
    for number, line in enumerate(lines):
        if "Traceback" in line:
            error = next((later for later in lines[number + 1 :] if later[:1] not in ("", " ")), "")
            if error.startswith(GAVE_UP):
                world.count("work that gave up: Redis was away for longer than its lease")
            else:
                world.problem(f"in the server's log: {line} {error}")
        elif "[CRITICAL]" in line:
            world.problem(f"in the server's log: {line}")


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="tests.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=5.0, help="how long (5)")
    parser.add_argument("--broker", choices=BROKERS, default="redis" if BINARY else "sqlite", help="what the workers share")
    parser.add_argument("--seed", type=int, default=random.randrange(1_000_000), help="of all chance")
    parser.add_argument("--report", type=Path, help="a file for the report too")
    parser.add_argument("--log", type=Path, help="a file for the server's log")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
