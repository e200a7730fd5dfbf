"""What a broker knows of tasks: which there are, where they stand, and whether whoever works on them still lives.

A task's events are entries of its channel like any other. Beside them the broker has a record of the task, which changes with
them, in one step: the first final state wins, whoever says it, and nothing is published in the task's name after it.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import enum
import time
from collections.abc import Collection, Mapping
from typing import Final, Protocol

#: Seconds for which a broker remembers of a task that it has ended, and how; of an unfinished one that nobody renews, that it is.
REMEMBERED_SECONDS: Final = 86_400
#: Tasks that are remembered when they have ended; of more, those that ended first are forgotten.
REMEMBERED_TASKS: Final = 100_000


class TaskState(enum.StrEnum):
    """Where a task is in its life."""

    PENDING = "pending"
    """It has been started, and does nothing yet."""
    RUNNING = "running"
    """Its work goes on."""
    COMPLETED = "completed"
    """It has done its work."""
    FAILED = "failed"
    """It has ended with an error."""
    CANCELLED = "cancelled"
    """It was asked to end, and has."""

    @property
    def is_final(self) -> bool:
        """Whether it has ended, for good."""
        return self in (TaskState.COMPLETED, TaskState.FAILED, TaskState.CANCELLED)


@dataclasses.dataclass(frozen=True, slots=True)
class TaskChange:
    """What a publication changes of the task in whose name it is made.

    Attributes:
        id: The task's.
        part: What of the task the event shows (`"progress"`, one file of several, its end): the newest event of each part is kept,
            and together they show where the task stands. None for an event that isn't kept.
        state: The state that begins with it; None for none.
    """

    id: str
    part: str | None = None
    state: TaskState | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Part:
    """The newest event of one part of a task.

    Attributes:
        key: The part's name.
        seq: The event's number.
        body: The encoded event, without an id line.
    """

    key: str
    seq: int
    body: bytes


@dataclasses.dataclass(frozen=True, slots=True)
class TaskRecord:
    """A task, as a broker knows it.

    Attributes:
        id: The task's: 32 hexadecimal digits.
        channel: The channel of its events.
        facts: What whoever began it wants to know later; text that means nothing to the broker.
        state: Where it is in its life.
        is_cancel_asked: Whether it has been asked to end.
        is_expired: Whether it ended so long ago that its events are gone.
        seq: The number of the newest event of any part; 0 without one. What its channel has after that isn't in `parts`.
        parts: The newest event of each part, in the order of their numbers; empty if the task is expired.
    """

    id: str
    channel: str
    facts: str
    state: TaskState
    is_cancel_asked: bool = False
    is_expired: bool = False
    seq: int = 0
    parts: tuple[Part, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True)
class Lease:
    """What who works on a task learns when it says that it does.

    Attributes:
        state: The task's.
        is_cancel_asked: Whether it has been asked to end.
    """

    state: TaskState
    is_cancel_asked: bool


class TaskStore(Protocol):
    """The records of an app's tasks, for all processes that share a broker.

    Every method may be called from any native thread or greenlet, and raises `BrokerUnavailable` as those of `Store` do.
    """

    def create(self, task_id: str, *, channel: str, facts: str = "") -> bool:
        """Begins a task, in the state `pending`.

        Args:
            task_id: The task's id: 32 hexadecimal digits.
            channel: The name of the channel of its events.
            facts: What whoever begins it wants to know later.

        Returns:
            False, with nothing changed, if there is one of this id.

        Raises:
            BrokerUnavailable: The store can't be used now.
        """
        ...

    def find(self, task_id: str) -> TaskRecord | None:
        """What is known of a task.

        Args:
            task_id: The task's id.

        Returns:
            Its record; None if nothing is known.

        Raises:
            BrokerUnavailable: The store can't be used now.
        """
        ...

    def renew(self, task_ids: Collection[str]) -> Mapping[str, Lease]:
        """Says that these are worked on: a pending one is running then.

        Args:
            task_ids: The tasks' ids.

        Returns:
            Where they stand, by id; unknown ones are missing.

        Raises:
            BrokerUnavailable: The store can't be used now.
        """
        ...

    def beats(self) -> Mapping[str, int]:
        """Shows which tasks somebody works on.

        Returns:
            For each task that hasn't ended, by id, a number that has changed if it was begun or renewed since the last call.

        Raises:
            BrokerUnavailable: The store can't be used now.
        """
        ...

    def ask_cancel(self, task_id: str) -> TaskState | None:
        """Asks a task to end.

        Args:
            task_id: The task's id.

        Returns:
            Its state; one that is final stays as it is. None if the task isn't known.

        Raises:
            BrokerUnavailable: The store can't be used now.
        """
        ...


class MemoryTasks:
    """The records of one process's own tasks; the broker's lock guards them. See `TaskStore`."""

    def __init__(self, lock: contextlib.AbstractContextManager[None], *, seconds: float) -> None:
        """Has none.

        Args:
            lock: The broker's.
            seconds: For how long the events of a task are kept when it has ended.
        """
        self._lock = lock
        self._seconds = seconds
        self._records: dict[str, TaskRecord] = {}
        self._parts: dict[str, dict[str, Part]] = {}
        self._beats: dict[str, int] = {}
        # When each that hasn't ended was begun, renewed or published to last, oldest first.
        self._touched: collections.OrderedDict[str, float] = collections.OrderedDict()
        # When each ended, oldest first: of all, and of those whose parts are still there.
        self._ended: collections.OrderedDict[str, float] = collections.OrderedDict()
        self._shown: collections.OrderedDict[str, float] = collections.OrderedDict()

    def create(self, task_id: str, *, channel: str, facts: str = "") -> bool:
        """Begins a task; see `TaskStore.create`."""
        with self._lock:
            now = time.monotonic()
            self._forget(now)
            if task_id in self._records:
                return False
            self._records[task_id] = TaskRecord(task_id, channel, facts, TaskState.PENDING)
            self._parts[task_id] = {}
            self._beats[task_id] = 0
            self._touched[task_id] = now
            return True

    def find(self, task_id: str) -> TaskRecord | None:
        """What is known of a task; see `TaskStore.find`."""
        with self._lock:
            now = time.monotonic()
            self._forget(now)
            record = self._records.get(task_id)
            if record is None:
                return None
            parts = tuple(sorted(self._parts.get(task_id, {}).values(), key=lambda part: part.seq))
            return dataclasses.replace(
                record, is_expired=task_id not in self._parts, seq=parts[-1].seq if parts else 0, parts=parts
            )

    def renew(self, task_ids: Collection[str]) -> Mapping[str, Lease]:
        """Says that these are still worked on; see `TaskStore.renew`."""
        with self._lock:
            now = time.monotonic()
            self._forget(now)
            found = {}
            for task_id in task_ids:
                if (record := self._records.get(task_id)) is not None:
                    if task_id in self._beats:
                        self._beats[task_id] += 1
                        self._touch(task_id, now)
                    if record.state is TaskState.PENDING:
                        record = self._records[task_id] = dataclasses.replace(record, state=TaskState.RUNNING)
                    found[task_id] = Lease(record.state, record.is_cancel_asked)
            return found

    def beats(self) -> Mapping[str, int]:
        """Those that haven't ended; see `TaskStore.beats`."""
        with self._lock:
            self._forget(time.monotonic())
            return dict(self._beats)

    def ask_cancel(self, task_id: str) -> TaskState | None:
        """Asks a task to end; see `TaskStore.ask_cancel`."""
        with self._lock:
            record = self._records.get(task_id)
            if record is None:
                return None
            if not record.state.is_final:
                self._records[task_id] = dataclasses.replace(record, is_cancel_asked=True)
            return record.state

    # For the broker, under its lock.

    def state_of(self, task_id: str) -> TaskState | None:
        """The state of a task; None if it isn't known."""
        record = self._records.get(task_id)
        return record.state if record is not None else None

    def is_worked_on(self, channel: str, now: float) -> bool:
        """Whether a task that hasn't ended has its events in a channel."""
        self._forget(now)
        return any(self._records[task_id].channel == channel for task_id in self._touched)

    def change(self, change: TaskChange, seq: int, body: bytes) -> None:
        """What was published in a task's name, which hadn't ended, has this number and body."""
        now = time.monotonic()
        self._touch(change.id, now)
        if change.part is not None:
            self._parts[change.id][change.part] = Part(change.part, seq, body)
        if change.state is not None:
            self._records[change.id] = dataclasses.replace(self._records[change.id], state=change.state)
            if change.state.is_final:
                del self._beats[change.id], self._touched[change.id]
                self._ended[change.id] = self._shown[change.id] = now

    def _touch(self, task_id: str, now: float) -> None:
        self._touched[task_id] = now
        self._touched.move_to_end(task_id)

    def _forget(self, now: float) -> None:
        """Drops the parts of what ended long ago, and what ended, or was left alone, very long ago."""
        while self._touched and now - next(iter(self._touched.values())) > REMEMBERED_SECONDS:
            task_id, _ = self._touched.popitem(last=False)
            del self._records[task_id], self._parts[task_id], self._beats[task_id]
        while self._shown and now - next(iter(self._shown.values())) > self._seconds:
            del self._parts[self._shown.popitem(last=False)[0]]
        while self._ended and (len(self._ended) > REMEMBERED_TASKS or now - next(iter(self._ended.values())) > REMEMBERED_SECONDS):
            task_id, _ = self._ended.popitem(last=False)
            del self._records[task_id]
            if self._shown.pop(task_id, None) is not None:
                del self._parts[task_id]
