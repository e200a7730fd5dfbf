"""The directory of one gunicorn: made by its arbiter, found by the one that takes over from it, removed by the last.

All workers that one arbiter starts share it, and so do those of an arbiter that USR2 starts beside it. It lies in a directory of
the user whose workers they are, which nobody else can read.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

#: How gunicorn tells an arbiter that USR2 has started who its parent is.
PARENT: Final = "GUNICORN_PID"
#: Held, shared, by every process that uses a directory; who gets it alone may remove it.
LOCK: Final = "lock"
#: What directories of one gunicorn are called, in that of their user; links to them have the pids of arbiters as names.
PREFIX: Final = "gunicorn-"

#: The directory of each arbiter, by its pid; forked workers find their arbiter's.
_made: Final[dict[int, Path]] = {}
#: Files that hold the locks, for as long as any process that has inherited them lives.
_held: Final[list[int]] = []


def of_this_arbiter(uid: int, gid: int) -> Path:
    """The directory of the arbiter that calls this; made at the first call, and anew, where it was, if somebody has removed it.

    Args:
        uid: The user that its workers run as.
        gid: Their group.

    Raises:
        OSError: It can't be made, or what is in its place belongs to another user.
    """
    pid = os.getpid()
    made = _made.get(pid)
    if made is None or not made.is_dir():
        home = _home(uid, gid)
        link = home / str(pid)
        with _alone(home):
            # In a container an arbiter may have the number that the one before it had.
            link.unlink(missing_ok=True)
            _clean(home)
            found = made or _parents(home)
            if found is None:
                found = Path(tempfile.mkdtemp(prefix=PREFIX, dir=home))
                _give(found, uid, gid)
            elif not found.is_dir():
                found.mkdir(mode=0o700)
                _give(found, uid, gid)
            _hold(found)
            link.symlink_to(found.name)
        if made is None:
            atexit.register(_leave, pid, home, found)
        _made[pid] = found
    return _made[pid]


def _home(uid: int, gid: int) -> Path:
    """The directory for all gunicorns of a user."""
    home = Path(tempfile.gettempdir()) / f"sseflask-{uid}"
    try:
        home.mkdir(mode=0o700)
    except FileExistsError:
        pass
    else:
        _give(home, uid, gid)
    # Not through a link, and by nobody who could have put it there for us to find.
    status = home.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != uid or status.st_mode & 0o077:
        raise PermissionError(f"{home} must be a directory of user {uid} alone (mode 0700): remove it, or set TMPDIR")
    return home


def _give(path: Path, uid: int, gid: int) -> None:
    if os.geteuid() != uid:
        os.chown(path, uid, gid)


def _parents(home: Path) -> Path | None:
    """The directory of the arbiter that has started this one by USR2."""
    parent = os.environ.get(PARENT)
    if parent is None or int(parent) != os.getppid():
        return None
    link = home / parent
    found = home / os.readlink(link) if link.is_symlink() else None
    return found if found is not None and found.is_dir() else None


@contextlib.contextmanager
def _alone(home: Path) -> Iterator[None]:
    """Keeps other arbiters of the user from making and removing directories meanwhile."""
    file = os.open(home, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
    finally:
        os.close(file)


def _hold(directory: Path) -> None:
    file = os.open(directory / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(file, fcntl.LOCK_SH)
    _held.append(file)


def _remove_if_unused(directory: Path) -> None:
    try:
        file = os.open(directory / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    except FileNotFoundError:
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return
    else:
        shutil.rmtree(directory, ignore_errors=True)
    finally:
        os.close(file)


def _clean(home: Path) -> None:
    """Removes what arbiters have left that were killed."""
    used: set[str] = set()
    for link in [entry for entry in home.iterdir() if entry.is_symlink() and entry.name.isdigit()]:
        if _is_alive(int(link.name)):
            used.add(os.readlink(link))
        else:
            link.unlink(missing_ok=True)
    for entry in home.iterdir():
        # What cleans up temporary files may have taken the lock of a living one, which never changes.
        if entry.name.startswith(PREFIX) and entry.name not in used:
            _remove_if_unused(entry)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _leave(pid: int, home: Path, directory: Path) -> None:
    """At the end of an arbiter; forked workers inherit the call."""
    if os.getpid() != pid:
        return
    with contextlib.suppress(OSError), _alone(home):
        (home / str(pid)).unlink(missing_ok=True)
        while _held:
            os.close(_held.pop())
        _remove_if_unused(directory)
