"""One connection to the SQLite file: opened, guarded, tried again and closed, and what is wrong with the file in words."""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import secrets
import sqlite3
import stat
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final, TypeVar

from sseflask import native
from sseflask.errors import BrokerUnavailable
from sseflask.ring import KEEP_ALL, Entry

from .store import Head

Result = TypeVar("Result")

#: Names the tables' layout, in the file's `user_version`.
LAYOUT: Final = 1
#: Seconds between two attempts on a locked file: at first, and at the most.
FIRST_PAUSE: Final = 0.0005
LONGEST_PAUSE: Final = 0.02
#: Bytes of a page of the file, and bytes of the write-ahead log after which its pages are put into the file.
PAGE_BYTES: Final = 2048
#: Bytes of pages that a connection keeps at hand: those of a minute's tokens are written to in no order.
CACHE_BYTES: Final = 8 * 1024 * 1024
WAL_BYTES: Final = 4 * 1024 * 1024
#: Seconds that a fork waits for another thread's statement to end.
FORK_SECONDS: Final = 1.0
#: Where the kernel names the time since it was started.
BOOT_ID: Final = "/proc/sys/kernel/random/boot_id"

NOTHING: Final[Mapping[str, int]] = {}

_SYNCHRONOUS: Final = {"off": "PRAGMA synchronous=OFF", "normal": "PRAGMA synchronous=NORMAL", "full": "PRAGMA synchronous=FULL"}

_SCHEMA: Final = (
    # AUTOINCREMENT: after a full prune a plain rowid would begin at 1 again.
    """CREATE TABLE events(
        seq INTEGER PRIMARY KEY AUTOINCREMENT, channel TEXT NOT NULL, prev INTEGER NOT NULL, event BLOB NOT NULL,
        created REAL NOT NULL, name TEXT, user_id TEXT, is_end INTEGER NOT NULL)""",
    "CREATE INDEX events_of_channel ON events(channel, seq)",
    # `entries` and `bytes` say what the channel has in `events`, so that nothing needs to be counted there.
    """CREATE TABLE channels(
        channel TEXT PRIMARY KEY, last INTEGER NOT NULL, ended INTEGER NOT NULL, history INTEGER,
        entries INTEGER NOT NULL, bytes INTEGER NOT NULL) WITHOUT ROWID""",
    "CREATE INDEX channels_without_entries ON channels(last) WHERE entries = 0",
    """CREATE TABLE tokens(
        bucket INTEGER NOT NULL, token TEXT NOT NULL, at REAL NOT NULL, seq INTEGER NOT NULL, user_id TEXT,
        PRIMARY KEY(bucket, token)) WITHOUT ROWID""",
    """CREATE TABLE streams(
        process TEXT NOT NULL, channel TEXT NOT NULL, count INTEGER NOT NULL, until REAL NOT NULL,
        PRIMARY KEY(process, channel)) WITHOUT ROWID""",
    """CREATE TABLE meta(
        one INTEGER PRIMARY KEY CHECK(one = 1), epoch TEXT NOT NULL, floor INTEGER NOT NULL,
        boot TEXT NOT NULL, base REAL NOT NULL, durable INTEGER NOT NULL, inode INTEGER NOT NULL)""",
    f"PRAGMA user_version={LAYOUT}",
)

# What came later, and is added to a file that lacks it: whoever knows nothing of it can use the file all the same.
_ADDED: Final = (
    # `is_shown`: its parts are still there.
    """CREATE TABLE IF NOT EXISTS tasks(
        id TEXT PRIMARY KEY, channel TEXT NOT NULL, facts TEXT NOT NULL, state TEXT NOT NULL, is_cancel_asked INTEGER NOT NULL,
        beat INTEGER NOT NULL, touched REAL NOT NULL, ended REAL, is_shown INTEGER NOT NULL) WITHOUT ROWID""",
    "CREATE INDEX IF NOT EXISTS tasks_unfinished ON tasks(touched) WHERE ended IS NULL",
    "CREATE INDEX IF NOT EXISTS tasks_ended ON tasks(ended) WHERE ended IS NOT NULL",
    "CREATE INDEX IF NOT EXISTS tasks_shown ON tasks(ended) WHERE is_shown",
    "CREATE INDEX IF NOT EXISTS tasks_of_channel ON tasks(channel)",
    """CREATE TABLE IF NOT EXISTS parts(
        task TEXT NOT NULL, key TEXT NOT NULL, seq INTEGER NOT NULL, body BLOB NOT NULL, UNIQUE(task, key))""",
    # Of the channels that keep all they have; ended first, in the order in which they go out of date.
    f"""CREATE INDEX IF NOT EXISTS channels_that_keep_all ON channels(ended, last)
        WHERE history >= {KEEP_ALL} AND entries > 0""",
    # What all entries may take, by the app whose file it is.
    "CREATE TABLE IF NOT EXISTS bounds(one INTEGER PRIMARY KEY CHECK(one = 1), bytes INTEGER NOT NULL)",
)
_HAS_ADDED: Final = "SELECT count(*) FROM sqlite_master WHERE name = 'bounds'"

_META: Final = """
    SELECT epoch, boot, base, durable, inode, max(
        coalesce((SELECT created FROM events ORDER BY seq DESC LIMIT 1), 0),
        coalesce((SELECT max(bucket) * 60.0 FROM tokens), 0)) FROM meta"""

_HEAD: Final = "SELECT epoch, coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'events'), 0) FROM meta"

#: Codes of SQLite that another attempt may get over: somebody else has the lock.
_BUSY: Final = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL})

#: What is wrong, and what would help, by SQLite's code.
_PROBLEMS: Final = {
    sqlite3.SQLITE_FULL: "can't grow: the disk is full, or a quota is; make room",
    sqlite3.SQLITE_READONLY: "can't be written to: let this process's user write the file and its directory",
    sqlite3.SQLITE_PERM: "can't be written to: let this process's user write the file and its directory",
    sqlite3.SQLITE_CANTOPEN: "can't be opened: its directory must exist, and this process's user be able to write there",
    sqlite3.SQLITE_NOTADB: "is no SQLite database: remove it, or give another path",
    sqlite3.SQLITE_CORRUPT: "is damaged: stop the server and remove it with its -wal and -shm files; clients get a reset",
    sqlite3.SQLITE_IOERR: "can't be read or written: the disk reports an error",
}

#: The connections that are open in this process, by their own number; for a fork.
_opened: Final[dict[int, weakref.ref[Connection]]] = {}
_held: Final[list[native.Lock]] = []
_hooked: Final[set[str]] = set()
#: The paths of those that the parent couldn't close before it forked this process.
_inherited: Final[set[str]] = set()


class Busy(Exception):
    """Somebody else has the file's lock now; another attempt may do."""


class FileReplaced(BrokerUnavailable):
    """The file isn't any more the one that was opened: it was deleted, or replaced."""


class CommitFailed(Exception):
    """`COMMIT` itself failed; its cause says how."""


class Opened:
    """An open connection and what holds as long as it is open.

    Attributes:
        db: SQLite's connection.
        identity: Device and inode of the file.
        base: What the monotonic clock lacks to the log's own, in seconds.
    """

    __slots__ = ("base", "db", "identity")

    def __init__(self, db: sqlite3.Connection, identity: tuple[int, int], base: float) -> None:
        self.db = db
        self.identity = identity
        self.base = base

    def now(self) -> float:
        """The second by the log's own clock, which no change of the wall clock and no restart moves."""
        return time.monotonic() + self.base

    def entries(self, epoch: str, rows: Iterable[tuple[Any, ...]], histories: Mapping[str, int] = NOTHING) -> list[Entry]:
        """The entries of rows of `events`.

        Args:
            epoch: The life whose ids they get.
            rows: seq, channel, prev, event, created, name, user_id, is_end.
            histories: By channel's name, how many entries it keeps, if its entries are to tell.
        """
        id_line = f"id: {epoch}-".encode()
        found = []
        for seq, channel, prev, event, created, name, user_id, is_end in rows:
            frame = event if user_id is not None else b"%b%d\n%b" % (id_line, seq, event)
            found.append(Entry(seq, prev, channel, frame, name, user_id, bool(is_end), created - self.base, histories.get(channel)))
        return found


class _Own:
    """What one process has of a connection."""

    __slots__ = ("lock", "opened")

    def __init__(self) -> None:
        self.lock = native.Lock()
        self.opened: Opened | None = None


class Connection:
    """A connection to the file of a store, opened when it is first used, in each process that uses it.

    Any native thread or greenlet may use it: one call at a time, under an unpatched lock that isn't held while it waits.

    Attributes:
        path: The file's.
        timeout: Seconds that `run` may take.
    """

    def __init__(self, path: str, *, timeout: float, synchronous: str) -> None:
        """Stores what it needs.

        Args:
            path: The file's, absolute.
            timeout: Seconds that `run` may take.
            synchronous: `"normal"` or `"full"`: whether each commit waits for the disk.
        """
        self.path = path
        self.timeout = timeout
        self._synchronous = synchronous
        # By process: a forked child must use nothing of its parent's, and not close it either.
        self._owned: dict[int, _Own] = {}

    def run(self, work: Callable[[Opened], Result]) -> Result:
        """Does some work in one go, again and again while others have the file's lock.

        Args:
            work: Called with the lock held: it must not wait, and leave no statement open. What it raises undoes what it did.

        Raises:
            BrokerUnavailable: It couldn't be done, or not in time.
        """
        until = time.monotonic() + self.timeout
        pause = FIRST_PAUSE
        while True:
            try:
                return self.attempt(work)
            except Busy as error:
                left = until - time.monotonic()
                if left <= 0:
                    raise self.locked() from error
                native.pause(min(pause * random.uniform(0.5, 1.5), left))
                pause = min(pause * 1.5, LONGEST_PAUSE)

    def attempt(self, work: Callable[[Opened], Result], *, is_checked: bool = True) -> Result:
        """Does some work in one go, once.

        Args:
            work: As for `run`.
            is_checked: Whether to look first if the file is still the one that was opened.

        Raises:
            Busy: Somebody else has the file's lock.
            BrokerUnavailable: It couldn't be done; the connection is closed, and the next attempt opens it anew.
        """
        own = self._own()
        with own.lock:
            try:
                opened = own.opened
                if opened is None:
                    opened = self._open(own)
                elif is_checked:
                    self._check(opened.identity)
                return work(opened)
            except (sqlite3.Error, CommitFailed, OSError) as error:
                raise self._failed(own, error) from error
            except BaseException:
                # Whatever it was: nothing stays half-done.
                self._let_go(own)
                raise

    def close(self) -> None:
        """Lets go of the file. A second call does nothing; a later attempt opens it again."""
        own = self._own()
        with own.lock:
            self._let_go(own)

    def hold_closed(self, held: list[native.Lock]) -> None:
        """Closes it until the locks in `held` are released; if another thread doesn't let go of it in time, it stays as it is."""
        own = self._own()
        if own.lock.acquire(timeout=FORK_SECONDS):
            held.append(own.lock)
            self._let_go(own)

    def locked(self) -> BrokerUnavailable:
        """What to raise when others have had the file's lock for the whole of the time."""
        return BrokerUnavailable(f"{self.path} has been locked by another process for more than {self.timeout:g} s")

    def _own(self) -> _Own:
        pid = os.getpid()
        own = self._owned.get(pid)
        return own if own is not None else self._owned.setdefault(pid, _Own())

    def _let_go(self, own: _Own) -> None:
        opened, own.opened = own.opened, None
        _opened.pop(id(self), None)
        if opened is not None:
            with contextlib.suppress(sqlite3.Error):
                opened.db.close()

    def _failed(self, own: _Own, error: Exception) -> Exception:
        """Undoes what was begun; what to raise for an error."""
        is_commit = isinstance(error, CommitFailed)
        cause = error.__cause__ if is_commit else error
        code = getattr(cause, "sqlite_errorcode", None) or 0
        if code & 0xFF in _BUSY and own.opened is not None:
            try:
                own.opened.db.rollback()
            except sqlite3.Error:
                self._let_go(own)
            return Busy()
        self._let_go(own)
        if code & 0xFF in _BUSY:
            return Busy()
        # Of what doesn't fit on the disk the last page, which makes it count, wasn't written either.
        is_open = is_commit and code & 0xFF != sqlite3.SQLITE_FULL
        problem = _PROBLEMS.get(code & 0xFF, "can't be used")
        return BrokerUnavailable(f"{self.path} {problem} ({cause})", outcome="unknown" if is_open else "not_published")

    def _open(self, own: _Own) -> Opened:
        _hook()
        if self.path in _inherited:
            raise BrokerUnavailable(f"{self.path} was in use while this process was forked, for too long: start the process anew")
        before = _identity(self.path)
        if before is None:
            with _directory_locked(self.path):
                if _identity(self.path) is None:
                    # What a deleted file has left behind would be taken for the new one's.
                    for left in ("-wal", "-shm", "-journal"):
                        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                            os.unlink(self.path + left)
                    _make(self.path)
                db = self._connect()
        else:
            db = self._connect()
        try:
            base = self._prepare(db)
            identity = before or _identity(self.path)
            self._check(identity)
            db.execute(_SYNCHRONOUS[self._synchronous])
        except BaseException:
            db.close()
            raise
        assert identity is not None
        own.opened = Opened(db, identity, base)
        _opened[id(self)] = weakref.ref(self)
        return own.opened

    def _check(self, identity: tuple[int, int] | None) -> None:
        # SQLite itself goes on writing to a file that nobody else will ever see.
        if identity is None or _identity(self.path) != identity:
            raise FileReplaced(f"{self.path} was deleted or replaced while it was in use; what it held is gone")

    def _connect(self) -> sqlite3.Connection:
        # No time-out of SQLite's own: it would stop the whole thread, and with it a hub.
        return sqlite3.connect(self.path, timeout=0, isolation_level=None, check_same_thread=False)

    def _prepare(self, db: sqlite3.Connection) -> float:
        """Sees to the file's mode, tables and clock. Returns the clock's base."""
        # Both as of one moment: another process may be making the tables.
        db.execute("BEGIN")
        (layout,) = db.execute("PRAGMA user_version").fetchone()
        (tables,) = db.execute("SELECT count(*) FROM sqlite_master").fetchone()
        db.execute("COMMIT")
        if layout == 0 and tables:
            raise BrokerUnavailable(f"{self.path} is a database of something else: give sseflask a path of its own")
        if layout not in (0, LAYOUT):
            text = f"{self.path} has the layout {layout}, this sseflask's is {LAYOUT}: remove the file, or give another path"
            raise BrokerUnavailable(text)
        # Before there is anything in the file. Each publish writes some pages: small ones are less to write.
        db.execute(f"PRAGMA page_size={PAGE_BYTES}")
        (mode,) = db.execute("PRAGMA journal_mode=WAL").fetchone()
        if mode != "wal":
            text = f"{self.path} can't have a write-ahead log (its mode is {mode}): put it on a local disk, no network file system"
            raise BrokerUnavailable(text)
        # What is noted about power cuts must survive one.
        for pragma in (
            "synchronous=FULL",
            "secure_delete=OFF",
            f"cache_size=-{CACHE_BYTES // 1024}",
            f"journal_size_limit={WAL_BYTES}",
            f"wal_autocheckpoint={WAL_BYTES // PAGE_BYTES}",
        ):
            db.execute(f"PRAGMA {pragma}").fetchall()
        boot = boot_id()
        durable = self._synchronous == "full"
        inode = os.stat(self.path).st_ino
        if layout and db.execute(_HAS_ADDED).fetchone()[0]:
            _, known, base, was_durable, noted, newest = db.execute(_META).fetchone()
            if known == boot and durable >= was_durable and noted == inode and time.monotonic() + base >= newest:
                return float(base)
        db.execute("BEGIN IMMEDIATE")
        base = self._begin(db, boot, durable, inode)
        db.execute("COMMIT")
        return base

    def _begin(self, db: sqlite3.Connection, boot: str, durable: bool, inode: int) -> float:
        """Makes the tables if there are none, and notes a boot or a file that is another. Returns the clock's base."""
        is_new = not db.execute("PRAGMA user_version").fetchone()[0]
        if is_new:
            for statement in _SCHEMA:
                db.execute(statement)
        for statement in _ADDED:
            db.execute(statement)
        if is_new:
            base = -time.monotonic()
            values = (secrets.token_hex(6), boot, base, durable, inode)
            db.execute("INSERT INTO meta(one, epoch, floor, boot, base, durable, inode) VALUES(1, ?, 0, ?, ?, ?, ?)", values)
            return base
        epoch, known, base, was_durable, noted, newest = db.execute(_META).fetchone()
        if known == boot and time.monotonic() + base >= newest:
            durable = bool(durable and was_durable)
        else:
            base = newest - time.monotonic()
            db.execute("DELETE FROM streams")
            # A power cut may have taken what was accepted: its numbers will be given again, so they mustn't mean the same.
            epoch = epoch if was_durable else secrets.token_hex(6)
        if noted != inode:
            # A copy, put here in place of what went on after it was made: its numbers will be given a second time.
            epoch = secrets.token_hex(6)
        values = (epoch, boot, base, durable, inode)
        db.execute("UPDATE meta SET epoch = ?, boot = ?, base = ?, durable = ?, inode = ?", values)
        return float(base)


def commit(db: sqlite3.Connection) -> None:
    """Commits what a transaction has written.

    Raises:
        CommitFailed: Its cause says how.
    """
    try:
        db.execute("COMMIT")
    except sqlite3.Error as error:
        raise CommitFailed from error


def read_head(db: sqlite3.Connection) -> Head:
    """Where the log stands."""
    return Head(*db.execute(_HEAD).fetchone())


def boot_id() -> str:
    """Names the time since this machine was started; empty where no one says."""
    try:
        with open(BOOT_ID, encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return ""


def _identity(path: str) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return found.st_dev, found.st_ino


def _make(path: str) -> None:
    """Makes the file, for this process's user alone; SQLite gives `-wal` and `-shm` its mode. Of what fails SQLite will speak."""
    path = os.path.realpath(path)
    try:
        # Not by opening it: another thread may have it open by then, and closing any descriptor of a file drops all locks that this
        # process has on it.
        os.mknod(path, stat.S_IFREG | 0o600)
    except OSError:
        # Where only root may do that, as on macOS.
        with contextlib.suppress(OSError):
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))


@contextlib.contextmanager
def _directory_locked(path: str) -> Iterator[None]:
    """Keeps other processes from making the same file meanwhile.

    Raises:
        Busy: One is at it.
    """
    # Not the file itself: closing any descriptor of a file drops all locks that this process has on it.
    try:
        descriptor = os.open(os.path.dirname(path), os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        # SQLite will say what is wrong with it, if it can't write there either.
        yield
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise Busy from error
    else:
        yield
    finally:
        os.close(descriptor)


def _hook() -> None:
    """Sees to it that no connection is open while this process forks.

    A child inherits SQLite's own table of the file's locks, though none of the locks: its connections would lock nothing, and
    others would delete the write-ahead log under it.
    """
    if "fork" not in _hooked:
        _hooked.add("fork")
        os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork_in_child)


def _before_fork() -> None:
    for reference in list(_opened.values()):
        connection = reference()
        if connection is not None:
            connection.hold_closed(_held)


def _after_fork() -> None:
    while _held:
        _held.pop().release()


def _after_fork_in_child() -> None:
    _after_fork()
    for reference in _opened.values():
        connection = reference()
        if connection is not None:
            _inherited.add(connection.path)
    _opened.clear()
