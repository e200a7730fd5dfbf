"""One run of a peer: started on its core, watched from outside, stopped by its process group's own ids."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from . import environment, machine
from .peer import Launch, Peer

HOST = "127.0.0.1"
START_SECONDS = 30.0
STOP_SECONDS = 10.0
TICKS = os.sysconf("SC_CLK_TCK")


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as sock:
        sock.bind((HOST, 0))
        port: int = sock.getsockname()[1]
        return port


class Process:
    """A program on a core, with all that it starts."""

    def __init__(self, launch: Launch, core: int, log: Path) -> None:
        self._log = log
        with log.open("ab") as output, machine.pinned_to(core):
            self._popen = subprocess.Popen(
                launch.command,
                cwd=launch.directory,
                env={**os.environ, **launch.environ},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def wait_for(self, port: int) -> None:
        """Waits until it accepts connections.

        Raises:
            environment.Unavailable: It doesn't.
        """
        until = time.monotonic() + START_SECONDS
        while time.monotonic() < until:
            if self._popen.poll() is not None:
                break
            with contextlib.suppress(OSError), socket.create_connection((HOST, port), 1):
                return
            time.sleep(0.02)
        raise environment.Unavailable(f"it didn't start: {self._log.read_text(errors='replace')[-1000:]}")

    def pids(self) -> list[int]:
        """It and its descendants."""
        found = [self._popen.pid]
        for pid in found:
            with contextlib.suppress(OSError):
                for children in Path(f"/proc/{pid}/task").glob("*/children"):
                    found += [int(child) for child in children.read_text().split() if int(child) not in found]
        return found

    def cpu(self) -> float:
        """Seconds of processor time that they have used."""
        total = 0
        for pid in self.pids():
            with contextlib.suppress(OSError):
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                total += int(fields[11]) + int(fields[12])
        return total / TICKS

    def memory(self) -> dict[str, int]:
        """Bytes that they hold: resident, and their share of what is shared."""
        sums = {"Rss": 0, "Pss": 0}
        for pid in self.pids():
            with contextlib.suppress(OSError):
                for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                    name, _, value = line.partition(":")
                    if name in sums:
                        sums[name] += int(value.split()[0]) * 1024
        return sums

    def stop(self) -> None:
        """Ends it, and what it has started, by their ids."""
        pids = self.pids()
        self._popen.terminate()
        try:
            self._popen.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            pass
        for pid in {*pids, *self.pids()}:
            with contextlib.suppress(OSError):
                if pid == self._popen.pid or os.getsid(pid) == self._popen.pid:
                    os.kill(pid, signal.SIGKILL)
        self._popen.wait(STOP_SECONDS)


class Server:
    """A peer that runs.

    Attributes:
        peer: Which.
        port: Where it listens, on the loopback interface.
        process: Its processes, without Redis's.
        redis_port: That of its Redis; None without one.
    """

    def __init__(self, peer: Peer, port: int, process: Process, redis_port: int | None = None) -> None:
        self.peer = peer
        self.port = port
        self.process = process
        self.redis_port = redis_port

    def ask(self, path: str, timeout: float = 60) -> Any:
        """Gets a path and reads its JSON."""
        with urllib.request.urlopen(f"http://{HOST}:{self.port}{path}", timeout=timeout) as response:
            return json.load(response)


@contextlib.contextmanager
def running(peer: Peer) -> Iterator[Server]:
    """Starts a peer, and Redis if it needs that; stops all of it, and removes its files.

    Raises:
        environment.Unavailable: It can't run here.
    """
    core = machine.cores()[0]
    directory = Path(tempfile.mkdtemp(prefix="sseflask-bench-"))
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, directory, ignore_errors=True)
        environ: dict[str, str] = {}
        redis_port = _start_redis(directory, core, stack) if peer.needs_redis else None
        if redis_port is not None:
            environ["BENCH_REDIS_URL"] = f"redis://{HOST}:{redis_port}/0"
        port = free_port()
        launch = peer.launch(port, directory)
        process = Process(Launch(launch.command, launch.directory, {**launch.environ, **environ}), core, directory / "log")
        stack.callback(process.stop)
        process.wait_for(port)
        yield Server(peer, port, process, redis_port)


def _start_redis(directory: Path, core: int, stack: contextlib.ExitStack) -> int:
    port = free_port()
    program = environment.require("redis-server", "redis-server")
    options = [
        "--port",
        str(port),
        "--bind",
        HOST,
        "--save",
        "",
        "--appendonly",
        "no",
        "--maxclients",
        "40000",
        "--tcp-backlog",
        "4096",
    ]
    redis = Process(Launch([program, *options, "--dir", str(directory)], directory, {}), core, directory / "redis.log")
    stack.callback(redis.stop)
    redis.wait_for(port)
    return port
