"""The directory of one gunicorn: made by its arbiter, found by the one that takes over from it, removed by the last.

All workers that one arbiter starts share it, and so do those of an arbiter that USR2 starts beside it. It lies in a directory of
the user whose workers they are, which nobody else can read.

The arbiter may be root and its workers not: whatever lies in that directory may be of their making. So nothing there is reached by
a path, which they could turn elsewhere, but from a descriptor on, and through no link.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import fcntl
import os
import re
import secrets
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
_PID: Final = re.compile(r"[0-9]{1,9}")
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

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
    if made is None or not _is_directory(made, uid):
        path = Path(tempfile.gettempdir()) / f"sseflask-{uid}"
        _make_home(path, uid, gid)
        with _alone(path, uid) as home:
            # In a container an arbiter may have the number that the one before it had.
            _unlink(str(pid), home)
            _clean(home, uid)
            name = made.name if made is not None else _parents(home, uid)
            if name is None:
                name = PREFIX + secrets.token_hex(8)
            directory = _opened(name, home, uid, gid)
            try:
                _hold(directory)
            finally:
                os.close(directory)
            os.symlink(name, str(pid), dir_fd=home)
        if made is None:
            atexit.register(_leave, pid, path, name, uid)
        _made[pid] = path / name
    return _made[pid]


def _make_home(path: Path, uid: int, gid: int) -> None:
    """Makes the directory for all gunicorns of a user, if there is none."""
    with contextlib.suppress(FileExistsError):
        path.mkdir(mode=0o700)
        home = os.open(path, _DIRECTORY)
        try:
            _give(home, uid, gid)
        finally:
            os.close(home)


@contextlib.contextmanager
def _alone(path: Path, uid: int) -> Iterator[int]:
    """Opens the directory for all gunicorns of a user, and keeps other arbiters from making and removing directories meanwhile."""
    problem = f"{path} must be a directory of user {uid} alone (mode 0700): remove it, or set TMPDIR"
    try:
        home = os.open(path, _DIRECTORY)
    except OSError as error:
        if error.errno in (errno.ENOTDIR, errno.ELOOP, errno.EACCES):
            raise PermissionError(problem) from error
        raise
    try:
        # Not through a link, and by nobody who could have put it there for us to find.
        status = os.fstat(home)
        if status.st_uid != uid or status.st_mode & 0o077:
            raise PermissionError(problem)
        fcntl.flock(home, fcntl.LOCK_EX)
        yield home
    finally:
        os.close(home)


def _opened(name: str, home: int, uid: int, gid: int) -> int:
    """A descriptor of one of the directories in it, which is made if there is none.

    Raises:
        OSError: It can't be made, or what has its name is none of the user's.
    """
    with contextlib.suppress(FileExistsError):
        os.mkdir(name, mode=0o700, dir_fd=home)
    directory = os.open(name, _DIRECTORY, dir_fd=home)
    try:
        _give(directory, uid, gid)
    except OSError:
        os.close(directory)
        raise
    return directory


def _give(directory: int, uid: int, gid: int) -> None:
    owner = os.fstat(directory).st_uid
    # Something else may lie in the place of what was just made.
    if owner not in (uid, os.geteuid()):
        raise PermissionError(f"a directory for user {uid} belongs to user {owner}: remove it, or set TMPDIR")
    if owner != uid:
        os.fchown(directory, uid, gid)


def _is_directory(path: str | Path, uid: int, home: int | None = None) -> bool:
    """Whether a path is a directory of the user's, and no link to one."""
    try:
        status = os.stat(path, dir_fd=home, follow_symlinks=False)
    except OSError:
        return False
    return stat.S_ISDIR(status.st_mode) and status.st_uid == uid


def _parents(home: int, uid: int) -> str | None:
    """The name of the directory of the arbiter that has started this one by USR2."""
    parent = os.environ.get(PARENT)
    if parent is None or int(parent) != os.getppid():
        return None
    name = _target(parent, home)
    # Where it leads is for the workers' user to say: no further than to a directory of that user's, here.
    return name if name is not None and _is_name(name) and _is_directory(name, uid, home) else None


def _is_name(name: str) -> bool:
    return name.startswith(PREFIX) and os.path.basename(name) == name


def _target(link: str, home: int) -> str | None:
    """What a link says; None of what is none."""
    try:
        return os.readlink(link, dir_fd=home)
    except OSError:
        return None


def _unlink(name: str, home: int) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(name, dir_fd=home)


def _hold(directory: int) -> None:
    file = _lock(directory)
    fcntl.flock(file, fcntl.LOCK_SH)
    _held.append(file)


def _lock(directory: int) -> int:
    return os.open(LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=directory)


def _remove_if_unused(name: str, home: int, uid: int) -> None:
    if not _is_directory(name, uid, home):
        return
    try:
        directory = os.open(name, _DIRECTORY, dir_fd=home)
    except FileNotFoundError:
        return
    try:
        file = _lock(directory)
    except FileNotFoundError:
        return
    except OSError as error:
        # A link in the place of the lock: nobody holds that.
        if error.errno != errno.ELOOP:
            raise
        shutil.rmtree(name, ignore_errors=True, dir_fd=home)
        return
    finally:
        os.close(directory)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return
    else:
        shutil.rmtree(name, ignore_errors=True, dir_fd=home)
    finally:
        os.close(file)


def _clean(home: int, uid: int) -> None:
    """Removes what arbiters have left that were killed."""
    used: set[str] = set()
    names = os.listdir(home)
    for name in names:
        target = _target(name, home) if _PID.fullmatch(name) else None
        if target is None:
            continue
        if _is_alive(int(name)):
            used.add(target)
        else:
            _unlink(name, home)
    for name in names:
        # What cleans up temporary files may have taken the lock of a living one, which never changes.
        if name.startswith(PREFIX) and name not in used:
            _remove_if_unused(name, home, uid)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _leave(pid: int, path: Path, name: str, uid: int) -> None:
    """At the end of an arbiter; forked workers inherit the call."""
    if os.getpid() != pid:
        return
    with contextlib.suppress(OSError), _alone(path, uid) as home:
        _unlink(str(pid), home)
        while _held:
            os.close(_held.pop())
        _remove_if_unused(name, home, uid)
