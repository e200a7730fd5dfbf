"""The tasks that hosts share: their records in Redis, which the script of a publish changes in the same step.

They live across the log's epochs; after FLUSHALL they are gone. Keys expire by themselves, those of an unfinished task unless it is
published to or renewed. Only that bounds how many there are: `REMEMBERED_TASKS` doesn't count here.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final, Protocol

from . import redis_script
from .redis_script import Script
from .tasks import Lease, Part, TaskChange, TaskRecord, TaskState

#: Tasks that are renewed by one script: others wait while it runs.
RENEWED_TASKS: Final = 500


class Run(Protocol):
    """Runs a script, as `RedisStore` does: within its time, and again while the server can't be reached."""

    def __call__(self, script: Script, keys: Sequence[str], arguments: Sequence[Any], *, knows_life: bool = ...) -> Any:
        """Returns what the script does."""
        ...


class RedisTasks:
    """The records of tasks in the Redis of a store; see `TaskStore`."""

    def __init__(self, run: Run, *, prefix: str) -> None:
        """Stores what it needs.

        Args:
            run: The store's.
            prefix: What all keys begin with.
        """
        self._run = run
        self._task = f"{prefix}task:"
        self._parts = f"{prefix}parts:"
        self._beats = f"{prefix}tasks"
        self._channels = f"{prefix}channels"
        self._streams = f"{prefix}stream:"

    def create(self, task_id: str, *, channel: str, facts: str = "") -> bool:
        """Begins a task; see `TaskStore.create`."""
        # Tells this call's own second attempt, after an answer that was lost, from somebody else's task.
        nonce = secrets.token_hex(8)
        return bool(self._ask(redis_script.CREATE, self._keys(task_id), (task_id, channel, facts, nonce)))

    def find(self, task_id: str) -> TaskRecord | None:
        """What is known of a task; see `TaskStore.find`."""
        (channel, facts, state, cancel), stored, is_shown = self._ask(redis_script.FIND, self._keys(task_id)[:2], ())
        if state is None:
            return None
        found = [(key.decode(), *redis_script.part(blob)) for key, blob in zip(stored[::2], stored[1::2], strict=True) if blob]
        parts = tuple(Part(*one) for one in sorted(found, key=lambda one: one[1]))
        return TaskRecord(
            task_id,
            channel.decode(),
            facts.decode(),
            TaskState(state.decode()),
            is_cancel_asked=cancel == b"1",
            is_expired=not is_shown,
            seq=parts[-1].seq if parts else 0,
            parts=parts,
        )

    def renew(self, task_ids: Collection[str]) -> Mapping[str, Lease]:
        """Says that these are still worked on, `RENEWED_TASKS` of them at one moment; see `TaskStore.renew`."""
        asked = list(dict.fromkeys(task_ids))
        found = {}
        for first in range(0, len(asked), RENEWED_TASKS):
            some = asked[first : first + RENEWED_TASKS]
            keys = (self._beats, self._channels, *(key for task_id in some for key in self._keys(task_id)[:2]))
            leases = self._ask(redis_script.RENEW, keys, (self._streams, *some))
            for task_id, lease in zip(some, leases, strict=True):
                if lease:
                    state, cancel = lease
                    found[task_id] = Lease(TaskState(state.decode()), cancel == b"1")
        return found

    def beats(self) -> Mapping[str, int]:
        """Those that haven't ended; see `TaskStore.beats`."""
        flat = self._ask(redis_script.BEATS, (self._beats,), (self._task,))
        return {task_id.decode(): int(beat) for task_id, beat in zip(flat[::2], flat[1::2], strict=True)}

    def ask_cancel(self, task_id: str) -> TaskState | None:
        """Asks a task to end; see `TaskStore.ask_cancel`."""
        state = self._ask(redis_script.CANCEL, self._keys(task_id)[:1], ())
        return TaskState(state.decode()) if state else None

    # For the store.

    def published(self, change: TaskChange) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The keys and the arguments that a publish in a task's name has besides its own."""
        is_final = change.state is not None and change.state.is_final
        part = "" if change.part is None else f"={change.part}"
        return self._keys(change.id), (change.id, part, change.state or "", "1" if is_final else "0")

    def _keys(self, task_id: str) -> tuple[str, str, str]:
        return self._task + task_id, self._parts + task_id, self._beats

    def _ask(self, script: Script, keys: Sequence[str], arguments: Sequence[Any]) -> Any:
        return self._run(script, keys, arguments, knows_life=False)
