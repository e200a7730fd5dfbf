"""The tasks of the SQLite file: their records, which publishes change in their own transaction, and how long they are kept."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Collection, Mapping
from typing import Final, Protocol, TypeVar

from .sqlite_file import Connection, Opened, commit
from .tasks import REMEMBERED_SECONDS, REMEMBERED_TASKS, Lease, Part, TaskChange, TaskRecord, TaskState

Result = TypeVar("Result")

_CREATE: Final = """
    INSERT INTO tasks(id, channel, facts, state, is_cancel_asked, beat, touched, ended, is_shown)
    VALUES(?, ?, ?, ?, 0, 0, ?, NULL, 1) ON CONFLICT DO NOTHING"""
_FIND: Final = """
    SELECT channel, facts, state, is_cancel_asked, ended FROM tasks
    WHERE id = ?1 AND coalesce(ended, touched) >= ?2"""
_PARTS: Final = "SELECT key, seq, body FROM parts WHERE task = ? ORDER BY seq"
_RENEW: Final = """
    UPDATE tasks SET beat = beat + 1, touched = ?, state = replace(state, 'pending', 'running')
    WHERE id = ? AND ended IS NULL"""
_LEASE: Final = "SELECT state, is_cancel_asked FROM tasks WHERE id = ?"
_BEATS: Final = "SELECT id, beat FROM tasks WHERE ended IS NULL AND touched >= ?"
_CANCEL: Final = "UPDATE tasks SET is_cancel_asked = 1 WHERE id = ? AND ended IS NULL"

_CHANGE: Final = """
    UPDATE tasks SET touched = ?2, state = coalesce(?3, state), ended = CASE WHEN ?4 THEN ?2 END
    WHERE id = ?1 AND ended IS NULL"""
_KEEP_PART: Final = """
    INSERT INTO parts(task, key, seq, body) VALUES(?, ?, ?, ?)
    ON CONFLICT(task, key) DO UPDATE SET seq = excluded.seq, body = excluded.body"""

# What has had its time, those first that had it first: parts of what has ended, and whole records.
_SHOWN_TOO_LONG: Final = "SELECT id FROM tasks WHERE ended < ? AND is_shown ORDER BY ended LIMIT ?"
_ENDED_LONG_AGO: Final = "SELECT id FROM tasks WHERE ended < ? ORDER BY ended LIMIT ?"
_LEFT_ALONE: Final = "SELECT id FROM tasks WHERE ended IS NULL AND touched < ? ORDER BY touched LIMIT ?"
_ENDED_FIRST: Final = "SELECT id FROM tasks WHERE ended IS NOT NULL ORDER BY ended LIMIT ?"
_DROP_PARTS: Final = "DELETE FROM parts WHERE rowid IN (SELECT rowid FROM parts WHERE task = ? LIMIT ?)"


class Run(Protocol):
    """Does some work on one of a store's connections; `Connection.run`, and what the store sees to around it."""

    def __call__(self, connection: Connection, work: Callable[[Opened], Result]) -> Result:
        """Returns what the work does."""
        ...


class SQLiteTasks:
    """The records of tasks in the file of a store; see `TaskStore`.

    They are as durable as the events, with which they change.
    """

    def __init__(self, run: Run, *, writing: Connection, reading: Connection, seconds: float) -> None:
        """Stores what it needs.

        Args:
            run: The store's.
            writing: Its connection that writes.
            reading: Its connection that reads.
            seconds: For how long the events of a task are kept when it has ended.
        """
        self._run = run
        self._writing = writing
        self._reading = reading
        self._seconds = seconds

    def create(self, task_id: str, *, channel: str, facts: str = "") -> bool:
        """Begins a task; see `TaskStore.create`."""

        def work(opened: Opened) -> bool:
            db = opened.db
            db.execute("BEGIN IMMEDIATE")
            now = opened.now()
            prune(db, now, self._seconds, CREATE_PRUNES)
            is_new = db.execute(_CREATE, (task_id, channel, facts, TaskState.PENDING, now)).rowcount > 0
            commit(db)
            return is_new

        return self._run(self._writing, work)

    def find(self, task_id: str) -> TaskRecord | None:
        """What is known of a task; see `TaskStore.find`."""

        def work(opened: Opened) -> TaskRecord | None:
            db = opened.db
            db.execute("BEGIN")
            now = opened.now()
            row = db.execute(_FIND, (task_id, now - REMEMBERED_SECONDS)).fetchone()
            is_expired = row is not None and row[4] is not None and now - row[4] > self._seconds
            shown = [] if row is None or is_expired else db.execute(_PARTS, (task_id,)).fetchall()
            db.execute("COMMIT")
            if row is None:
                return None
            channel, facts, state, is_cancel_asked, _ = row
            return TaskRecord(
                task_id,
                channel,
                facts,
                TaskState(state),
                is_cancel_asked=bool(is_cancel_asked),
                is_expired=is_expired,
                seq=shown[-1][1] if shown else 0,
                parts=tuple(Part(*part) for part in shown),
            )

        return self._run(self._reading, work)

    def renew(self, task_ids: Collection[str]) -> Mapping[str, Lease]:
        """Says that these are still worked on; see `TaskStore.renew`."""
        if not task_ids:
            return {}

        def work(opened: Opened) -> dict[str, Lease]:
            db = opened.db
            db.execute("BEGIN IMMEDIATE")
            now = opened.now()
            db.executemany(_RENEW, [(now, task_id) for task_id in task_ids])
            found = {}
            for task_id in task_ids:
                if (row := db.execute(_LEASE, (task_id,)).fetchone()) is not None:
                    found[task_id] = Lease(TaskState(row[0]), bool(row[1]))
            commit(db)
            return found

        return self._run(self._writing, work)

    def beats(self) -> Mapping[str, int]:
        """Those that haven't ended; see `TaskStore.beats`."""

        def work(opened: Opened) -> dict[str, int]:
            return dict(opened.db.execute(_BEATS, (opened.now() - REMEMBERED_SECONDS,)).fetchall())

        return self._run(self._reading, work)

    def ask_cancel(self, task_id: str) -> TaskState | None:
        """Asks a task to end; see `TaskStore.ask_cancel`."""

        def work(opened: Opened) -> TaskState | None:
            db = opened.db
            db.execute("BEGIN IMMEDIATE")
            db.execute(_CANCEL, (task_id,))
            row = db.execute(_LEASE, (task_id,)).fetchone()
            commit(db)
            return TaskState(row[0]) if row is not None else None

        return self._run(self._writing, work)


#: Rows that beginning a task removes at the most for their age.
CREATE_PRUNES: Final = 16


# For the store, within its transactions.


def change(db: sqlite3.Connection, asked: TaskChange, seq: int, body: bytes, now: float) -> str | None:
    """Changes a task with an event that is made in its name. Returns its state, or `""`, if that can't be; None if it is done."""
    is_final = asked.state is not None and asked.state.is_final
    if not db.execute(_CHANGE, (asked.id, now, asked.state, is_final)).rowcount:
        row = db.execute(_LEASE, (asked.id,)).fetchone()
        return str(row[0]) if row is not None else ""
    if asked.part is not None:
        db.execute(_KEEP_PART, (asked.id, asked.part, seq, body))
    return None


def prune(db: sqlite3.Connection, now: float, seconds: float, rows: int) -> bool:
    """Removes some of what has had its time, `rows` of it at the most. Returns whether nothing is left of that.

    Args:
        db: In a transaction that writes.
        now: The second by the log's clock.
        seconds: For how long the events of a task are kept when it has ended.
        rows: How many.
    """
    left = rows
    forgotten = now - REMEMBERED_SECONDS
    for query, oldest in ((_SHOWN_TOO_LONG, now - seconds), (_ENDED_LONG_AGO, forgotten), (_LEFT_ALONE, forgotten)):
        found = db.execute(query, (oldest, left)).fetchall()
        left = _drop(db, [task_id for (task_id,) in found], left, keeps_record=query is _SHOWN_TOO_LONG)
        if left <= 0:
            return False
    (count,) = db.execute("SELECT count(*) FROM tasks WHERE ended IS NOT NULL").fetchone()
    if count > REMEMBERED_TASKS:
        found = db.execute(_ENDED_FIRST, (min(count - REMEMBERED_TASKS, left),)).fetchall()
        left = _drop(db, [task_id for (task_id,) in found], left, keeps_record=False)
    return left > 0


def _drop(db: sqlite3.Connection, task_ids: list[str], left: int, *, keeps_record: bool) -> int:
    """Removes the parts of some tasks, and their records, as far as `left` rows go. Returns how many rows are left then."""
    for task_id in task_ids:
        if left <= 0:
            break
        # One of them is the record's own.
        left -= 1 + db.execute(_DROP_PARTS, (task_id, left)).rowcount
        if left < 0:
            # There may be more.
            break
        if keeps_record:
            db.execute("UPDATE tasks SET is_shown = 0 WHERE id = ?", (task_id,))
        else:
            db.execute("DELETE FROM tasks WHERE id = ?", (task_id,))
    return left
