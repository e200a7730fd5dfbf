"""The machine that a measurement ran on, and which of its cores does what."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self


def cores() -> tuple[int, int]:
    """The core of the server and that of the load; the same one where there is only one."""
    allowed = sorted(os.sched_getaffinity(0))
    return allowed[0], allowed[-1] if len(allowed) == 1 else allowed[1]


@contextlib.contextmanager
def pinned_to(core: int) -> Iterator[None]:
    """What is started inside inherits the core."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def describe() -> dict[str, str]:
    """What a reader needs to judge absolute figures by."""
    server, load = cores()
    cpuinfo = Path("/proc/cpuinfo").read_text()
    model = re.search(r"model name\s*:\s*(.+)", cpuinfo)
    memory = re.search(r"MemTotal:\s*(\d+)", Path("/proc/meminfo").read_text())
    release = re.search(r'PRETTY_NAME="(.+)"', Path("/etc/os-release").read_text()) if Path("/etc/os-release").exists() else None
    described = {
        "processor": model[1].strip() if model else platform.processor(),
        "cores": f"{os.cpu_count()}, the server on core {server}, the load on core {load}",
        "virtual": "yes" if "hypervisor" in cpuinfo else "no",
        "memory": f"{int(memory[1]) / 1024 / 1024:.0f} GiB" if memory else "unknown",
        "system": release[1] if release else platform.system(),
        "kernel": platform.release().split("-")[0],
        "python": platform.python_version(),
    }
    for name, command in {"node": ["node", "--version"], "nginx": ["nginx", "-v"], "redis": ["redis-server", "--version"]}.items():
        version = _version(command)
        if version:
            described[name] = version
    return described


def stolen() -> tuple[int, int]:
    """Since the machine's start: the clock ticks of its cores that other virtual machines have had, and all."""
    ticks = [int(tick) for tick in Path("/proc/stat").read_text().partition("\n")[0].split()[1:9]]
    return ticks[7], sum(ticks)


class Watch:
    """Looks at what other virtual machines take of this one while something is measured.

    Attributes:
        share: The part of the processors' time that they had.
        seconds: How long it took.
    """

    def __init__(self) -> None:
        self.share = 0.0
        self.seconds = 0.0
        self._before = (0, 0)
        self._began = 0.0

    def __enter__(self) -> Self:
        self._before, self._began = stolen(), time.monotonic()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        now = stolen()
        self.share = (now[0] - self._before[0]) / max(now[1] - self._before[1], 1)
        self.seconds = time.monotonic() - self._began


def _version(command: list[str]) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except OSError:
        return None
    found = re.search(r"\d+\.\d+[\w.]*", done.stdout + done.stderr)
    return found[0] if found else None
