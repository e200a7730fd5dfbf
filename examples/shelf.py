"""A place for the files that jobs make: a folder for each, which all workers see, and which goes after a while."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import tempfile
import threading
import time
import weakref
from pathlib import Path

from werkzeug.exceptions import ServiceUnavailable

JOB = re.compile("[0-9a-f]{32}")


class Shelf:
    """Folders of jobs in the system's folder for temporary files. The last process that leaves takes them all with it.

    It stands for the storage that your app has; what is on it is nobody's only copy.

    Args:
        name: Tells it from others.
        keep_seconds: How long a job's files are kept.
        most: How many jobs may have files at the same time.
    """

    def __init__(self, name: str, *, keep_seconds: float = 900, most: int = 100) -> None:
        self.path = Path(tempfile.gettempdir()) / f"sseflask-{name}-{os.getuid()}"
        self._keep_seconds = keep_seconds
        self._most = most
        self._timers: list[threading.Timer] = []
        # Called when the app is gone, or the process ends.
        weakref.finalize(self, _leave, self.path, _enter(self.path), os.getpid(), self._timers)

    def add(self) -> Path:
        """Makes a folder for a job that has no id yet."""
        sweep(self.path, self._keep_seconds)
        if sum(1 for _ in self.path.iterdir()) >= self._most:
            raise ServiceUnavailable("There are too many jobs here now: try again in a few minutes.")
        self._sweep_later()
        return Path(tempfile.mkdtemp(prefix="new-", dir=self.path))

    def name(self, folder: Path, job: str) -> Path:
        """Gives a folder its job's id, by which every worker finds it. Returns where it is now."""
        return folder.rename(self.path / job)

    def find(self, job: str, file: str) -> Path | None:
        """A file of a job, if both are there; the file's name is the caller's, the id may be anybody's."""
        path = self.path / job / file
        return path if JOB.fullmatch(job) and path.is_file() else None

    def _sweep_later(self) -> None:
        """Sweeps when the files of the newest job are due; those of older ones are swept with it, or when a job is added."""
        timer = threading.Timer(self._keep_seconds + 1, sweep, (self.path, self._keep_seconds))
        timer.daemon = True
        self._timers.append(timer)
        timer.start()
        while len(self._timers) > 1:
            self._timers.pop(0).cancel()


def sweep(path: Path, keep_seconds: float) -> None:
    """Removes the folders in which nothing has changed for so long."""
    for folder in path.glob("*"):
        try:
            is_old = time.time() - folder.stat().st_mtime > keep_seconds
        except FileNotFoundError:
            continue  # Another worker was faster.
        if is_old:
            shutil.rmtree(folder, ignore_errors=True)


def _enter(path: Path) -> int:
    """Opens the folder, and locks it together with all other processes that use it."""
    while True:
        path.mkdir(mode=0o700, exist_ok=True)
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        status = os.fstat(descriptor)
        if status.st_uid != os.getuid():
            os.close(descriptor)
            raise PermissionError(f"{path} belongs to somebody else: set TMPDIR to a folder of your own")
        try:
            if os.path.samestat(status, path.stat()):
                return descriptor
        except FileNotFoundError:
            pass
        os.close(descriptor)  # The last one before us has just left, and removed it.


def _leave(path: Path, descriptor: int, pid: int, timers: list[threading.Timer]) -> None:
    """Removes the folder, unless another process uses it."""
    if os.getpid() != pid:
        return  # A fork: the lock is its parent's.
    for timer in timers:
        timer.cancel()
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        pass
    else:
        shutil.rmtree(path, ignore_errors=True)
    os.close(descriptor)
