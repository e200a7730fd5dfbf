"""What tells a process of the entries that others, or itself, have put into the SQLite file."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Collection
from typing import Any, Final, NamedTuple

from sseflask import native
from sseflask.errors import BrokerUnavailable
from sseflask.ring import Entry

from .sqlite_file import Busy, Connection, FileReplaced, Opened, read_head
from .store import Feed, Head

log = logging.getLogger("sseflask.broker")

#: Seconds between two looks at the file, while somebody listens: after news, and when there has been none for a while.
POLL_SECONDS: Final = 0.008
QUIET_POLL_SECONDS: Final = 0.016
#: Seconds without news after which it is quiet.
QUIET_SECONDS: Final = 1.0
#: Seconds between two looks whether the file is still the same.
CHECK_SECONDS: Final = 1.0
#: Rows that are read in one go.
BATCH_ROWS: Final = 1000
#: Seconds until the file is tried again after an error: at first, and at the most.
FIRST_RETRY: Final = 0.05
LONGEST_RETRY: Final = 1.0

# The bytes of what nobody here listens to stay where they are.
_NEWS: Final = """
    SELECT seq, channel, prev, CASE WHEN listened(channel) THEN event END, created, name, user_id, is_end FROM events
    WHERE seq > ? ORDER BY seq LIMIT ?"""
_HISTORY: Final = "SELECT history FROM channels WHERE channel = ?"


class _News(NamedTuple):
    """What a look at the file found.

    Attributes:
        head: Where the log stands, as of the last row that was read.
        entries: Those that are listened to.
        is_whole: Whether no row up to `head` was gone before it was read.
        has_more: Whether the log goes on after `head`.
    """

    head: Head
    entries: list[Entry]
    is_whole: bool = True
    has_more: bool = False


class SQLiteFollower:
    """Looks every few milliseconds whether the file has changed, as long as somebody listens; see `Follower`.

    It runs in a daemon thread, which is a greenlet where gevent has patched `threading`.
    """

    def __init__(self, connection: Connection, feed: Feed) -> None:
        """Stores what it needs.

        Args:
            connection: One of its own: a connection sees the commits of others only.
            feed: Told of new entries, outages and their ends.
        """
        self._connection = connection
        self._feed = feed
        self._following: dict[int, _Following] = {}

    def listen(self, channels: Collection[str]) -> None:
        """Follows these channels too; what is stored from here on is told.

        Raises:
            BrokerUnavailable: The file can't be read now; then it follows none of them that it didn't before.
        """
        if channels:
            self._own().listen(channels)

    def unlisten(self, channels: Collection[str]) -> None:
        """Follows these channels no more."""
        self._own().unlisten(channels)

    def catch_up(self) -> None:
        """Tells now, in the calling thread, what has been stored up to here."""
        self._own().catch_up()

    def settle(self) -> None:
        """Tells all that has been stored up to here; see `Follower.settle`."""
        self._own().settle()

    def is_here(self) -> bool:
        """Whether this is who has to end an outage, during one: else who listens reads the file itself."""
        return self._own().is_here()

    def close(self) -> None:
        """Ends it for good."""
        self._own().close()

    def _own(self) -> _Following:
        pid = os.getpid()
        own = self._following.get(pid)
        return own if own is not None else self._following.setdefault(pid, _Following(self._connection, self._feed))


class _Following:
    """What one process has of a follower.

    Attributes:
        position: The number up to which entries have been told, in the life that `epoch` names.
    """

    def __init__(self, connection: Connection, feed: Feed) -> None:
        self.position = 0
        self.epoch = ""
        self._connection = connection
        self._feed = feed
        self._channels: set[str] = set()
        # Whoever tells the feed holds this, so that it is told in order.
        self._lock = native.Lock()
        # What is to be told once it is released.
        self._said: list[Callable[[], None]] = []
        self._db: object = None
        self._version: object = None
        self._checked = 0.0
        self._busy_since: float | None = None
        self._last_news = 0.0
        self._is_interrupted = False
        # Which thread or greenlet has said last that it can go on.
        self._resuming = 0
        self._is_closed = False
        self._thread: threading.Thread | None = None
        self._begun = native.Lock()
        self._wanted = threading.Event()

    def listen(self, channels: Collection[str]) -> None:
        """Follows channels, from where the log stands now if it followed none."""
        # Outside the lock: it may have to wait for the file.
        head = None if self._channels and not self._is_interrupted else self._head()
        with self._lock:
            if head is not None and not self._channels:
                self.epoch, self.position = head.epoch, head.seq
                self._version = None
                self._is_interrupted = False
            self._channels.update(channels)
        self._begin()

    def unlisten(self, channels: Collection[str]) -> None:
        """Follows channels no more; the thread rests when none is left."""
        with self._lock:
            self._channels.difference_update(channels)

    def catch_up(self) -> None:
        """Tells what is new, whether or not the file says that something is."""
        if self._channels:
            self._tell(is_asked=True)

    def settle(self) -> None:
        """Tells what is new, again and again until that is all.

        Raises:
            BrokerUnavailable: The file can't be read in time.
        """
        deadline = time.monotonic() + self._connection.timeout
        while not self._tell(is_asked=True):
            if time.monotonic() > deadline:
                raise BrokerUnavailable(f"{self._connection.path} can't be followed now")
            native.pause(POLL_SECONDS)

    def is_here(self) -> bool:
        """Whether it is interrupted, and goes on only when the caller does."""
        return self._is_interrupted and (threading.get_ident() == self._resuming or threading.current_thread() is self._thread)

    def close(self) -> None:
        """Ends the thread, and lets go of the file."""
        with self._lock:
            self._is_closed = True
            self._channels.clear()
        if not native.is_apart():
            self._wanted.set()
        self._connection.close()

    def _head(self) -> Head:
        try:
            return self._connection.run(lambda opened: read_head(opened.db))
        except FileReplaced:
            # Whoever listens to nothing has missed nothing.
            return self._connection.run(lambda opened: read_head(opened.db))

    def _begin(self) -> None:
        """Starts the thread, or wakes it."""
        if native.is_apart():
            # A greenlet of this native thread would end with it.
            return
        thread = None
        with self._begun:
            if self._thread is None and not self._is_closed:
                thread = self._thread = threading.Thread(target=self._run, name="sseflask-follower", daemon=True)
        if thread is not None:
            thread.start()
        if not self._wanted.is_set():
            self._wanted.set()

    def _run(self) -> None:
        pause = FIRST_RETRY
        while not self._is_closed:
            if not self._channels:
                self._wanted.clear()
                # Somebody may have come in between.
                if not self._channels and not self._is_closed:
                    self._wanted.wait()
                continue
            if self._is_interrupted:
                time.sleep(pause)
                pause = min(pause * 2, LONGEST_RETRY)
            else:
                pause = FIRST_RETRY
                is_quiet = time.monotonic() - self._last_news > QUIET_SECONDS
                time.sleep(QUIET_POLL_SECONDS if is_quiet else POLL_SECONDS)
            try:
                self._tell(is_asked=False)
            except BaseException:
                # A listener may raise what ends a greenlet: the follower goes on.
                log.exception("what follows %s failed", self._connection.path, extra={"sse_broker": str(self._connection.path)})

    def _tell(self, *, is_asked: bool) -> bool:
        """Reads and tells what is new; asked for, even if the file says that nothing is. Returns whether that could be read."""
        goes_on, can_read = True, False
        while goes_on:
            with self._lock:
                goes_on = self._look(is_asked=is_asked)
                said, self._said = self._said, []
                can_read = not self._is_interrupted and self._busy_since is None
            # Outside: whoever is told may publish, and come back here.
            for say in said:
                say()
            is_asked = True
        return can_read

    def _look(self, *, is_asked: bool) -> bool:
        """Reads one batch, and feeds it. Returns whether there may be more. Called under the lock."""
        if not self._channels or (is_asked and self._is_interrupted):
            return False
        now = time.monotonic()
        is_checked = now - self._checked >= CHECK_SECONDS
        if is_checked:
            self._checked = now
        work = self._resume if self._is_interrupted else self._asked if is_asked else self._polled
        try:
            found = self._connection.attempt(work, is_checked=is_checked)
        except Busy:
            return self._wait_for_lock()
        except BrokerUnavailable as error:
            self._interrupt(error)
            return False
        self._busy_since = None
        if found is None:
            return False
        head = found.head
        if head.epoch != self.epoch and not self._is_interrupted:
            self._interrupt(BrokerUnavailable(f"{self._connection.path} holds another life of the log"))
            return True
        self.epoch, self.position = head.epoch, head.seq
        if self._is_interrupted:
            self._said.append(lambda: self._resumed(head))
            return False
        self._last_news = now
        self._feed.arrived(head, found.entries)
        if not found.is_whole:
            self._is_interrupted = True
            self._said.append(lambda: self._resumed(head))
        self._said.append(self._feed.tell)
        if found.has_more:
            # Whoever is interrupted while it tells leaves the rest to the next poll.
            self._version = None
        return found.has_more

    def _resumed(self, head: Head) -> None:
        self._resuming = threading.get_ident()
        try:
            self._feed.resumed(head)
        except BrokerUnavailable as error:
            self._feed.interrupted(error)
            return
        with self._lock:
            # Only now: what others publish meanwhile comes after what the feed has missed.
            self._is_interrupted = False

    def _interrupt(self, error: Exception) -> None:
        self._busy_since = None
        if not self._is_interrupted:
            self._is_interrupted = True
            self._said.append(lambda: self._feed.interrupted(error))

    def _wait_for_lock(self) -> bool:
        """Somebody has the file's lock: the next poll looks again, and too long is an outage."""
        self._version = None
        now = time.monotonic()
        if self._busy_since is None:
            self._busy_since = now
        elif now - self._busy_since > self._connection.timeout:
            self._interrupt(self._connection.locked())
        return False

    def _resume(self, opened: Opened) -> _News:
        self._version = None
        return _News(read_head(opened.db), [])

    def _polled(self, opened: Opened) -> _News | None:
        db = opened.db
        if db is self._db and db.execute("PRAGMA data_version").fetchone()[0] == self._version:
            return None
        return self._asked(opened)

    def _asked(self, opened: Opened) -> _News:
        """What the next rows say."""
        db = opened.db
        if db is not self._db:
            self._db = db
            db.create_function("listened", 1, self._channels.__contains__)
        # Before the rows: what comes in between is seen by the next look.
        self._version = db.execute("PRAGMA data_version").fetchone()[0]
        db.execute("BEGIN")
        head = read_head(db)
        rows: list[tuple[Any, ...]] = db.execute(_NEWS, (self.position, BATCH_ROWS)).fetchall()
        told = [row for row in rows if row[3] is not None]
        histories = {}
        for channel in {row[1] for row in told}:
            (history,) = db.execute(_HISTORY, (channel,)).fetchone() or (None,)
            if history is not None:
                histories[channel] = history
        db.execute("COMMIT")
        has_more = len(rows) == BATCH_ROWS
        last = rows[-1][0] if has_more else head.seq
        is_whole = len(rows) == last - self.position
        entries = opened.entries(head.epoch, told, histories)
        return _News(Head(head.epoch, last), entries, is_whole, has_more)
