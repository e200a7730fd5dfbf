"""What the kernel says about a process, and waiting for a condition with a bound."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

Value = TypeVar("Value")

PROC = Path("/proc")


def wait_until(condition: Callable[[], Value], timeout: float = 5.0, message: str = "") -> Value:
    """Calls `condition` until what it returns is true.

    An `AssertionError` that it raises counts as "not yet", so a condition may be written as plain asserts that end in
    `return True`.

    Args:
        condition: What to wait for; cheap, and safe to call many times.
        timeout: Seconds to wait at most.
        message: What the wait is for; begins the failure's text.

    Returns:
        The first true value.

    Raises:
        AssertionError: The time is up; the text holds the last value seen.
    """
    deadline = time.monotonic() + timeout
    while True:
        refused: AssertionError | None = None
        seen: Value | str
        try:
            value = condition()
        except AssertionError as error:
            refused, seen = error, f"AssertionError: {error}"
        else:
            if value:
                return value
            seen = value
        if time.monotonic() >= deadline:
            raise AssertionError(f"{message or 'the condition'}: not within {timeout:g} s, last seen: {seen!r}") from refused
        time.sleep(0.01)


def is_alive(pid: int) -> bool:
    """Whether the process runs: it exists and is no zombie."""
    fields = _stat(pid)
    return fields is not None and fields[0] not in "ZX"


def children(pid: int) -> list[int]:
    """The living child processes, oldest first."""
    found: list[tuple[int, int]] = []
    for entry in PROC.iterdir():
        if not entry.name.isdigit():
            continue
        fields = _stat(int(entry.name))
        if fields is not None and int(fields[1]) == pid and fields[0] not in "ZX":
            found.append((int(fields[19]), int(entry.name)))
    return [child for _, child in sorted(found)]


def descendants(pid: int) -> list[int]:
    """The living children, their children and so on."""
    found: list[int] = []
    for child in children(pid):
        found += [child, *descendants(child)]
    return found


def group_members(group: int) -> list[int]:
    """The living processes of a process group."""
    found: list[int] = []
    for entry in PROC.iterdir():
        if entry.name.isdigit():
            fields = _stat(int(entry.name))
            if fields is not None and int(fields[2]) == group and fields[0] not in "ZX":
                found.append(int(entry.name))
    return found


def open_files(pid: int) -> dict[int, str]:
    """The process's open descriptors, and what each leads to (`socket:[4711]`, `/some/file`, `anon_inode:[eventpoll]`).

    Raises:
        FileNotFoundError: There is no such process.
    """
    found: dict[int, str] = {}
    directory = PROC / str(pid) / "fd"
    for name in os.listdir(directory):
        try:
            found[int(name)] = os.readlink(directory / name)
        except FileNotFoundError:
            continue  # closed while we were looking
    return found


def open_sockets(pid: int) -> int:
    """How many of the process's descriptors are sockets.

    Raises:
        FileNotFoundError: There is no such process.
    """
    return sum(target.startswith("socket:") for target in open_files(pid).values())


def thread_names(pid: int) -> list[str]:
    """The names of the process's native threads, in the order of their ids.

    Raises:
        FileNotFoundError: There is no such process.
    """
    names: list[str] = []
    tasks = PROC / str(pid) / "task"
    for task in sorted(os.listdir(tasks), key=int):
        try:
            names.append((tasks / task / "comm").read_text().strip())
        except (FileNotFoundError, ProcessLookupError):
            continue  # ended while we were looking
    return names


def thread_count(pid: int) -> int:
    """How many native threads the process has.

    Raises:
        FileNotFoundError: There is no such process.
    """
    return len(os.listdir(PROC / str(pid) / "task"))


def resident_bytes(pid: int) -> int:
    """The memory that the process holds, in bytes (`VmRSS`).

    Raises:
        FileNotFoundError: There is no such process.
    """
    pages = int((PROC / str(pid) / "statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def cpu_seconds(pid: int) -> float:
    """The processor time that the process has used so far, user and system, in seconds.

    Raises:
        ProcessLookupError: There is no such process.
    """
    fields = _stat(pid)
    if fields is None:
        raise ProcessLookupError(pid)
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def starved_seconds(pid: int) -> float:
    """For how long the process's main thread has been ready to run, in all its life, while others had the processors.

    Also of one that has ended and that its parent hasn't asked about; 0 where the kernel doesn't say.
    """
    try:
        return int((PROC / str(pid) / "schedstat").read_text().split()[1]) / 1e9
    except (OSError, IndexError):
        return 0.0


def _stat(pid: int) -> list[str] | None:
    """The fields of `/proc/PID/stat` from the state on, or `None` when there is no such process."""
    try:
        text = (PROC / str(pid) / "stat").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The name stands in parentheses and may hold spaces and parentheses itself.
    return text.rpartition(")")[2].split()
