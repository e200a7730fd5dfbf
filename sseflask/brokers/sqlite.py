"""The store of one host: an SQLite file that its processes share, and that outlives them."""

from __future__ import annotations

import math
import os
import sqlite3
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, Final, TypeVar

from sseflask.log import REMEMBERED_CHANNELS
from sseflask.ring import ENTRY_BYTES, KEEP_ALL, Entry

from . import sqlite_tasks
from .sqlite_file import Connection, FileReplaced, Opened, commit, read_head
from .sqlite_follower import SQLiteFollower
from .sqlite_tasks import SQLiteTasks
from .store import Feed, Head, Publication, Reading, Stored
from .tasks import REMEMBERED_SECONDS, TaskStore

Result = TypeVar("Result")

#: Seconds that the token of a publish is remembered.
TOKEN_SECONDS: Final = 60.0
#: Seconds between two looks of a process at what is too old.
PRUNE_SECONDS: Final = 1.0
#: Rows of each kind that one publish removes at the most for their age; the next one goes on.
PRUNE_ROWS: Final = 64
#: The part of a bound that may be exceeded before something is removed, so that not each publish has to.
SLACK: Final = 8

_INSERT: Final = """
    INSERT INTO events(channel, prev, event, created, name, user_id, is_end)
    VALUES(?1, coalesce((SELECT last FROM channels WHERE channel = ?1), (SELECT floor FROM meta)), ?2, ?3, ?4, ?5, ?6)"""
# Tokens stand in buckets of their minute: a live one is in this one or in the one before.
_REMEMBER: Final = """
    INSERT INTO tokens(bucket, token, at, seq, user_id) SELECT ?1, ?2, ?3, ?4, ?5
    WHERE NOT EXISTS(SELECT 1 FROM tokens WHERE bucket = ?1 - 1 AND token = ?2 AND at >= ?6) ON CONFLICT DO NOTHING"""
_REMEMBERED: Final = "SELECT seq, user_id FROM tokens WHERE bucket IN (?1, ?1 - 1) AND token = ?2 ORDER BY bucket DESC LIMIT 1"
_ADVANCE: Final = """
    INSERT INTO channels(channel, last, ended, history, entries, bytes) VALUES(?, ?, ?, ?, 1, ?)
    ON CONFLICT(channel) DO UPDATE SET last = excluded.last, ended = excluded.ended,
        history = coalesce(excluded.history, history), entries = entries + 1, bytes = bytes + excluded.bytes
    RETURNING entries, bytes, history, (SELECT epoch FROM meta)"""
_ENTRIES: Final = """
    SELECT seq, channel, prev, event, created, name, user_id, is_end FROM events
    WHERE channel = ? AND seq > ? AND created >= ? ORDER BY seq DESC LIMIT ?"""

_OLDEST: Final = f"""
    SELECT seq, events.channel, created, coalesce(history >= {KEEP_ALL}, 0) FROM events
    LEFT JOIN channels ON channels.channel = events.channel WHERE seq > ? ORDER BY seq LIMIT ?"""  # noqa: S608
_WHOLE: Final = f"""
    SELECT channel, entries, (SELECT created FROM events WHERE seq = last) FROM channels
    WHERE history >= {KEEP_ALL} AND entries > 0 AND ended = ? ORDER BY last LIMIT ?"""  # noqa: S608
_IS_WORKED_ON: Final = "SELECT 1 FROM tasks WHERE channel = ? AND touched >= ?"
_NOTE_BYTES: Final = """
    INSERT INTO bounds(one, bytes) VALUES(1, ?)
    ON CONFLICT(one) DO UPDATE SET bytes = excluded.bytes WHERE bytes <> excluded.bytes"""
# What keeps all doesn't count before its end.
_SIZES: Final = f"""
    SELECT channel, entries, bytes FROM channels
    WHERE entries > 0 AND (ended OR coalesce(history, 0) < {KEEP_ALL}) ORDER BY last"""  # noqa: S608


class SQLiteStore:
    """Keeps events in a file; see `Store` for what it promises.

    A killed process loses nothing that was accepted. A power cut may, unless each publish waits for the disk (`synchronous`);
    clients that come back after one are told by a reset.

    Attributes:
        url: `sqlite:///` and the file's path.
        tasks: The records of tasks, in the same file.
    """

    def __init__(
        self,
        path: str,
        *,
        history: int,
        history_seconds: float,
        history_bytes: int,
        timeout: float,
        synchronous: str = "normal",
        is_guest: bool = False,
    ) -> None:
        """Stores what it needs; the file is opened, or made, by the first call that needs it, in each process.

        Args:
            path: The file's path. It lies on a local disk; beside it SQLite makes two more, with `-wal` and `-shm` after its name.
            history: Entries that a channel keeps, unless a publication says otherwise for it.
            history_seconds: Seconds that an entry is kept.
            history_bytes: Bytes that all entries may take, about; the channels published to least recently give way first.
            timeout: Seconds that a call may take while others have the file locked.
            synchronous: `"normal"`, or `"full"`: a publish returns when the disk has the event.
            is_guest: Whether `history_bytes` counts only as long as the file knows of none: those of the app whose file it is.
        """
        path = os.path.abspath(path)
        self.url = f"sqlite:///{path}"
        self._history = history
        self._seconds = history_seconds
        self._bytes = history_bytes
        self._is_guest = is_guest
        self._options: dict[str, Any] = {"timeout": timeout, "synchronous": synchronous}
        self._path = path
        self._writing = Connection(path, **self._options)
        self._reading = Connection(path, **self._options)
        self.tasks: TaskStore = SQLiteTasks(self._run, writing=self._writing, reading=self._reading, seconds=history_seconds)
        # Both concern one process; a child that inherits them only prunes a little later.
        self._prune_at = 0.0
        self._unsummed = math.inf
        # Up to this number the file holds only entries of channels that keep all, as long as it is open.
        self._pruned: tuple[Opened | None, int] = (None, 0)

    def publish(self, publication: Publication) -> Stored:
        """Numbers an event and keeps it.

        Raises:
            BrokerUnavailable: `outcome` says whether it may have been stored all the same.
        """
        return self._run(self._writing, lambda opened: self._publish(opened, publication))

    def head(self) -> Head:
        """Where the log stands now."""
        return self._run(self._reading, lambda opened: read_head(opened.db))

    def read(self, after: Mapping[str, int | None]) -> Mapping[str, Reading]:
        """The parts of some channels, all as of one moment; `after` has the number after which each is read, or None."""
        return self._run(self._reading, lambda opened: self._read(opened, after))

    def report(self, process: str, counts: Mapping[str, int], seconds: float) -> None:
        """Keeps, for so many seconds, how many streams of a process each channel has; replaces what it reported before."""

        def work(opened: Opened) -> None:
            db = opened.db
            db.execute("BEGIN IMMEDIATE")
            now = opened.now()
            db.execute("DELETE FROM streams WHERE process = ? OR until < ?", (process, now))
            rows = [(process, channel, count, now + seconds) for channel, count in counts.items()]
            db.executemany("INSERT INTO streams(process, channel, count, until) VALUES(?, ?, ?, ?)", rows)
            # An app may have streams, and leave it to others to publish.
            self._agree_on_bytes(db)
            commit(db)

        self._run(self._writing, work)

    def counts(self, channels: Collection[str] | None = None) -> Mapping[str, int]:
        """How many streams each channel has over all processes that reported; of all channels that have any, if none is named."""

        def work(opened: Opened) -> dict[str, int]:
            query = "SELECT channel, sum(count) FROM streams WHERE until >= ? GROUP BY channel HAVING sum(count) > 0"
            return dict(opened.db.execute(query, (opened.now(),)).fetchall())

        found = self._run(self._reading, work)
        return found if channels is None else {channel: found.get(channel, 0) for channel in channels}

    def follower(self, feed: Feed) -> SQLiteFollower:
        """What tells `feed` of new entries, with a connection of its own."""
        return SQLiteFollower(Connection(self._path, **self._options), feed)

    def close(self) -> None:
        """Lets go of the file; a later call opens it again."""
        self._writing.close()
        self._reading.close()

    def _run(self, connection: Connection, work: Callable[[Opened], Result]) -> Result:
        try:
            return connection.run(work)
        except FileReplaced:
            # Said once: the next call opens what is there now, whichever connection it uses.
            self.close()
            raise

    def _publish(self, opened: Opened, publication: Publication) -> Stored:
        db = opened.db
        channel, body = publication.channel, publication.body
        size = len(body) + ENTRY_BYTES
        db.execute("BEGIN IMMEDIATE")
        now = opened.now()
        passed = None
        if time.monotonic() >= self._prune_at or self._unsummed * SLACK >= self._bytes:
            passed = self._prune(opened, now)
        event = (channel, body, now, publication.name, publication.user_id, publication.is_end)
        seq = db.execute(_INSERT, event).lastrowid
        assert seq is not None
        bucket = int(now // TOKEN_SECONDS)
        token = (bucket, publication.token, now, seq, publication.user_id, now - TOKEN_SECONDS)
        if not db.execute(_REMEMBER, token).rowcount:
            db.execute("ROLLBACK")
            return Stored(self._known(db, bucket, publication.token), False)
        advance = (channel, seq, publication.is_end, publication.history, size)
        ((entries, total, history, epoch),) = db.execute(_ADVANCE, advance).fetchall()
        limit = self._history if history is None else history
        if entries > limit + limit // SLACK:
            self._drop(db, channel, entries - limit)
        task = publication.task
        if task is not None and (refused := sqlite_tasks.change(db, task, seq, body, now)) is not None:
            db.execute("ROLLBACK")
            return Stored("", False, refused)
        commit(db)
        if passed is not None:
            self._pruned = (opened, passed)
        # What keeps all counts from its end on.
        self._unsummed += total if publication.is_end and limit >= KEEP_ALL else size
        return Stored(publication.user_id or f"{epoch}-{seq}", True)

    def _known(self, db: sqlite3.Connection, bucket: int, token: str) -> str:
        """The id of the event that was stored with a token."""
        seq, user_id = db.execute(_REMEMBERED, (bucket, token)).fetchone()
        return str(user_id or f"{read_head(db).epoch}-{seq}")

    def _read(self, opened: Opened, after: Mapping[str, int | None]) -> dict[str, Reading]:
        db = opened.db
        db.execute("BEGIN")
        head = read_head(db)
        (floor,) = db.execute("SELECT floor FROM meta").fetchone()
        oldest = opened.now() - self._seconds
        found = {}
        for channel, cursor in after.items():
            row = db.execute("SELECT last, ended, history FROM channels WHERE channel = ?", (channel,)).fetchone()
            last, ended, history = row or (floor, False, None)
            limit = self._history if history is None else history
            entries: list[Entry] = []
            if row is not None and cursor is not None and cursor < last:
                # What keeps all has no age of its own: it goes as a whole, when its last entry does.
                rows = db.execute(_ENTRIES, (channel, cursor, -math.inf if limit >= KEEP_ALL else oldest, limit)).fetchall()
                if limit >= KEEP_ALL and ended and rows and rows[0][4] < oldest:
                    rows = []
                entries = opened.entries(head.epoch, _chain(rows, last))
                entries.reverse()
            found[channel] = Reading(head.epoch, head.seq, last, bool(ended), limit, entries)
        db.execute("COMMIT")
        return found

    def _prune(self, opened: Opened, now: float) -> int:
        """Removes what is too old, and what is too much, a bounded part of it; within a publish's transaction.

        Returns:
            The number up to which only entries of channels that keep all are left, once this is committed.
        """
        db = opened.db
        self._agree_on_bytes(db)
        is_done, passed = self._prune_events(opened, now - self._seconds)
        is_done = self._prune_whole(db, now - self._seconds, now - REMEMBERED_SECONDS) and is_done
        is_done = sqlite_tasks.prune(db, now, self._seconds, PRUNE_ROWS) and is_done
        is_done = self._prune_tokens(db, int(now // TOKEN_SECONDS) - 1) and is_done
        is_done = self._prune_channels(db) and is_done
        if self._unsummed * SLACK >= self._bytes:
            is_done = self._make_room(db) and is_done
        # Not by the log's clock, which another file's doesn't continue.
        self._prune_at = time.monotonic() + PRUNE_SECONDS if is_done else 0.0
        return passed

    def _prune_events(self, opened: Opened, oldest: float) -> tuple[bool, int]:
        db = opened.db
        # Entries of channels that keep all may lie at the front for long: they are passed over once.
        passed = self._pruned[1] if self._pruned[0] is opened else 0
        rows = db.execute(_OLDEST, (passed, PRUNE_ROWS)).fetchall()
        gone: dict[str, int] = {}
        is_done = len(rows) < PRUNE_ROWS
        for seq, channel, created, keeps_all in rows:
            if created >= oldest:
                is_done = True
                break
            if not keeps_all:
                gone[channel] = gone.get(channel, 0) + 1
            passed = seq
        # The oldest of all are the oldest of their channels.
        for channel, count in gone.items():
            self._drop(db, channel, count)
        return is_done, passed

    def _prune_whole(self, db: sqlite3.Connection, oldest: float, forgotten: float) -> bool:
        """Removes the entries of channels that keep all: of those that have ended, and of those that nobody works on any more."""
        left = PRUNE_ROWS
        for ended, bound in ((True, oldest), (False, forgotten)):
            for channel, entries, created in db.execute(_WHOLE, (ended, PRUNE_ROWS)).fetchall():
                if created is not None and created >= bound:
                    break
                if not ended and db.execute(_IS_WORKED_ON, (channel, forgotten)).fetchone():
                    continue
                count = min(entries, left)
                self._drop(db, channel, count)
                left -= count
                if left <= 0:
                    return False
        return True

    def _prune_tokens(self, db: sqlite3.Connection, bucket: int) -> bool:
        query = "SELECT bucket, token FROM tokens WHERE bucket < ? ORDER BY bucket, token LIMIT ?"
        rows = db.execute(query, (bucket, PRUNE_ROWS)).fetchall()
        if rows:
            db.execute("DELETE FROM tokens WHERE (bucket, token) <= (?, ?)", rows[-1])
        return len(rows) < PRUNE_ROWS

    def _prune_channels(self, db: sqlite3.Connection) -> bool:
        """Forgets channels without entries, beyond those that are remembered; the floor says what their last number was below."""
        (count,) = db.execute("SELECT count(*) FROM channels WHERE entries = 0").fetchone()
        surplus = min(count - REMEMBERED_CHANNELS, PRUNE_ROWS)
        if surplus <= 0:
            return True
        query = "SELECT last, channel FROM channels WHERE entries = 0 ORDER BY last LIMIT ?"
        rows = db.execute(query, (surplus,)).fetchall()
        db.execute("UPDATE meta SET floor = max(floor, ?)", (rows[-1][0],))
        db.executemany("DELETE FROM channels WHERE channel = ?", [(channel,) for _, channel in rows])
        return bool(count - surplus <= REMEMBERED_CHANNELS)

    def _agree_on_bytes(self, db: sqlite3.Connection) -> None:
        """Notes how many bytes the app's entries may take, for its guests; a guest goes by that."""
        if not self._is_guest:
            db.execute(_NOTE_BYTES, (self._bytes,))
        elif (noted := db.execute("SELECT bytes FROM bounds").fetchone()) is not None:
            (self._bytes,) = noted

    def _make_room(self, db: sqlite3.Connection) -> bool:
        rows = db.execute(_SIZES).fetchall()
        surplus = sum(size for _, _, size in rows) - self._bytes
        if surplus > 0:
            # Somewhat more, so that it takes a while until there is too much again.
            surplus += self._bytes // SLACK
        left = PRUNE_ROWS
        for channel, entries, size in rows:
            if surplus <= 0 or left <= 0:
                break
            count = min(entries, left, entries * surplus // size + 1)
            surplus -= self._drop(db, channel, count)
            left -= count
        if surplus > 0 and left <= 0:
            return False
        self._unsummed = 0
        return True

    def _drop(self, db: sqlite3.Connection, channel: str, count: int) -> int:
        """Removes the oldest entries of a channel. Returns the bytes that they took."""
        query = "SELECT seq, length(event) FROM events WHERE channel = ? ORDER BY seq LIMIT ?"
        rows: list[tuple[int, int]] = db.execute(query, (channel, count)).fetchall()
        size = sum(length + ENTRY_BYTES for _, length in rows)
        db.execute("DELETE FROM events WHERE channel = ? AND seq <= ?", (channel, rows[-1][0]))
        db.execute("UPDATE channels SET entries = entries - ?, bytes = bytes - ? WHERE channel = ?", (len(rows), size, channel))
        return size


def _chain(rows: Iterable[tuple[Any, ...]], last: int) -> Iterable[tuple[Any, ...]]:
    """The rows, newest first, as far as each follows the next."""
    for row in rows:
        if row[0] != last:
            return
        yield row
        last = row[2]
