"""What all workers of one server have counted: each keeps a file of its numbers, and what those counted that have gone stays.

The files lie in the directory that the workers share; where there is none, a process knows only of itself.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import itertools
import json
import logging
import os
import secrets
import struct
import time
import weakref
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from . import process

log = logging.getLogger("sseflask.metrics")

#: What the files hold: at an upgrade by USR2, workers of two versions may share the directory.
FORMAT: Final = 1
#: What a worker's file is called, before its process's id and a part at random.
PREFIX: Final = f"numbers{FORMAT}-"
#: The file with the numbers of those that have gone, and the one that is locked by who reads or changes it.
GONE: Final = f"numbers{FORMAT}.gone"
LOCK: Final = f"numbers{FORMAT}.lock"
#: Bytes of each of a file's two records, which are written in turn: one is whole, whenever its writer was killed.
RECORD_BYTES: Final = 256 * 1024
#: Seconds that a reader waits for others who read.
LOCK_SECONDS: Final = 2.0
#: What of all workers together isn't the sum.
NO_SUMS: Final[Mapping[str, Callable[[Iterable[Any]], Any]]] = {
    "broker_up": min,
    "lag_seconds": max,
    "max_lag_seconds": max,
    "closes": lambda found: sorted(itertools.chain.from_iterable(found), key=lambda close: close["at"])[-process.CLOSES_KEPT :],
}
#: The number of the record, the bytes of its JSON, and their checksum.
_HEAD: Final = struct.Struct("<QII")

Numbers = dict[str, Any]


@dataclasses.dataclass(frozen=True, slots=True)
class Reading:
    """What the workers of one server have, and have counted.

    Attributes:
        now: For each living worker, by its process's id: what goes up and down.
        ever: For each of them: what only grows.
        gone: What those had counted that have gone.
    """

    now: dict[int, Numbers]
    ever: dict[int, Numbers]
    gone: Numbers

    @property
    def present(self) -> Numbers:
        """What goes up and down, of all together: sums, the longest of lags, whether everybody's broker is up, the last closes."""
        present: Numbers = {}
        for numbers in self.now.values():
            present = added(present, {name: value for name, value in numbers.items() if name not in NO_SUMS})
        for name, fold in NO_SUMS.items():
            present[name] = fold(numbers[name] for numbers in self.now.values() if name in numbers)
        return present

    @property
    def total(self) -> Numbers:
        """What all have counted; it never shrinks, whatever becomes of a worker."""
        total = self.gone
        for numbers in self.ever.values():
            total = added(total, numbers)
        return total


class Ledger:
    """One process's part of it.

    Attributes:
        directory: Where the files are; None where no other process shares them.
    """

    def __init__(self, directory: Path | None) -> None:
        """Stores where; the file is made at the first `write`."""
        self.directory = directory
        self._path: Path | None = None
        self._file: int | None = None
        self._number = 0
        self._written = b""
        self._ever: Numbers = {}
        self._has_failed = False
        self._has_left = False

    def write(self) -> tuple[Numbers, Numbers]:
        """Takes this process's numbers and writes them down for the others, if they have changed.

        Returns:
            What goes up and down, and what only grows.
        """
        now, ever = process.current().numbers()
        # What is counted without a lock may be seen in between.
        self._ever = ever = not_below(ever, self._ever)
        if self.directory is not None and not self._has_left:
            try:
                self._put(self.directory, json.dumps([now, ever], separators=(",", ":")).encode())
            except OSError as error:
                if not self._has_failed:
                    log.warning(
                        "this worker's numbers can't be written for the others: %s", error, extra={"sse_path": str(self._path)}
                    )
                self._has_failed = True
            else:
                self._has_failed = False
        return now, ever

    def read(self) -> Reading:
        """The numbers of all workers, this one's as they are now, the others' as of a second ago at the most.

        Raises:
            OSError: The others' can't be read.
        """
        now, ever = self.write()
        own = os.getpid()
        found = Reading({own: now}, {own: ever}, {})
        if self.directory is None:
            return found
        try:
            with _alone(self.directory):
                gone = _fold(self.directory)
                for path in self.directory.glob(f"{PREFIX}*-*"):
                    pid = int(path.name.split("-")[1])
                    if pid != own and (record := _record(path)) is not None:
                        found.now[pid], found.ever[pid] = record
        except FileNotFoundError as error:
            # Removed by what cleans up temporary files, with all that had been counted.
            log.warning("the numbers of other workers are lost: %s", error, extra={"sse_path": str(self.directory)})
            return found
        return Reading(found.now, found.ever, gone)

    def leave(self) -> None:
        """Writes the last numbers down, and leaves them to whoever looks next. A second call does nothing."""
        if self._file is not None:
            self.write()
            self._has_left = True
            # With its lock.
            os.close(self._file)
            self._file = None

    def forget(self) -> None:
        """Lets go of what a forked child has inherited: its parent's lock would be held for as long as the child lives."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _put(self, directory: Path, data: bytes) -> None:
        if self._file is None or not os.fstat(self._file).st_nlink:
            self._open(directory)
        elif data == self._written:
            return
        assert self._file is not None
        if len(data) > RECORD_BYTES - _HEAD.size:
            raise OSError(f"they have {len(data)} bytes, more than {RECORD_BYTES}")
        self._number += 1
        head = _HEAD.pack(self._number, len(data), zlib.crc32(data))
        os.pwrite(self._file, head + data, self._number % 2 * RECORD_BYTES)
        self._written = data

    def _open(self, directory: Path) -> None:
        """Makes the file, and locks it for as long as this process lives."""
        # Not seen by others before it is locked.
        with _alone(directory):
            if self._file is not None:
                if os.fstat(self._file).st_nlink:
                    # Another greenlet was here first.
                    return
                os.close(self._file)
            path = directory / f"{PREFIX}{os.getpid()}-{secrets.token_hex(4)}"
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _fold(directory)
        _hook()
        _opened.add(self)
        self._file, self._path, self._number, self._written = file, path, 0, b""


def current() -> Ledger:
    """This process's."""
    pid = os.getpid()
    ledger = _ledgers.get(pid)
    if ledger is None or ledger.directory != process.current().directory:
        ledger = _ledgers[pid] = Ledger(process.current().directory)
        for other in [key for key in _ledgers if key != pid]:
            # Its parent's, which a forked child has a copy of.
            _ledgers.pop(other, None)
    return ledger


_ledgers: Final[dict[int, Ledger]] = {}
#: Those that have opened a file in this process.
_opened: Final[weakref.WeakSet[Ledger]] = weakref.WeakSet()
_hooked: Final[set[str]] = set()


def _hook() -> None:
    if "fork" not in _hooked:
        _hooked.add("fork")
        os.register_at_fork(after_in_child=_after_fork_in_child)


def _after_fork_in_child() -> None:
    for ledger in list(_opened):
        ledger.forget()
    _opened.clear()


def added(one: Any, other: Any) -> Any:
    """The sum of two sets of numbers: of what both have by a name, at a place, or are."""
    if isinstance(one, Mapping):
        return {**other, **{name: added(value, other[name]) if name in other else value for name, value in one.items()}}
    if isinstance(one, list):
        longer, shorter = (one, other) if len(one) >= len(other) else (other, one)
        return [value + (shorter[place] if place < len(shorter) else 0) for place, value in enumerate(longer)]
    return one + other


def not_below(new: Any, old: Any) -> Any:
    """A set of numbers, with those of an older one where these are higher."""
    if isinstance(new, Mapping):
        return {**old, **{name: not_below(value, old[name]) if name in old else value for name, value in new.items()}}
    if isinstance(new, list):
        return [max(pair) for pair in zip(new, old, strict=True)]
    return max(new, old)


@contextlib.contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """Keeps others from reading and changing what is there; waits for them, letting others of this process run.

    Raises:
        OSError: The file can't be made, or somebody has held it for too long.
    """
    file = os.open(directory / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        deadline = time.monotonic() + LOCK_SECONDS
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.002)
            else:
                break
        yield
    finally:
        os.close(file)


def _fold(directory: Path) -> Numbers:
    """Adds the numbers of those that have gone to those of all that have gone before. Returns these. Called alone.

    Who is killed in the middle of it leaves either the file, or its name among those that are added already.
    """
    try:
        gone = json.loads((directory / GONE).read_bytes())
    except FileNotFoundError:
        gone = {"ever": {}, "names": []}
    left = [path for path in sorted(directory.glob(f"{PREFIX}*-*")) if not _is_held(path)]
    new = [path for path in left if path.name not in gone["names"]]
    if new:
        for path in new:
            record = _record(path)
            if record is not None:
                gone["ever"] = added(gone["ever"], record[1])
        gone["names"] = [path.name for path in left]
        written = directory / f"{GONE}-{os.getpid()}"
        written.write_text(json.dumps(gone))
        written.replace(directory / GONE)
    for path in left:
        path.unlink(missing_ok=True)
    ever: Numbers = gone["ever"]
    return ever


def _is_held(path: Path) -> bool:
    """Whether the process lives whose file this is."""
    file = os.open(path, os.O_RDWR)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(file)
    return False


def _record(path: Path) -> tuple[Numbers, Numbers] | None:
    """The newer of a file's records that are whole; None if there is none yet."""
    found: tuple[int, bytes] | None = None
    with path.open("rb") as file:
        for place in (0, RECORD_BYTES):
            file.seek(place)
            head = file.read(_HEAD.size)
            if len(head) < _HEAD.size:
                continue
            number, size, checksum = _HEAD.unpack(head)
            data = file.read(size)
            if number and zlib.crc32(data) == checksum and (found is None or number > found[0]):
                found = number, data
    if found is None:
        return None
    now, ever = json.loads(found[1])
    return now, ever
