"""The broker of one process: its log is the process's own, and ends with it."""

from __future__ import annotations

import collections
import functools
import secrets
import time
from gc import disable, isenabled
from typing import Final

from sseflask.errors import TaskEnded
from sseflask.event import ServerSentEvent, compact_text, to_event
from sseflask.log import Log
from sseflask.native import handed_on, hold, let_collect, let_go

from .base import Broker, Keep, Waker
from .tasks import REMEMBERED_SECONDS, MemoryTasks, TaskChange

#: Seconds that the token of a publish is remembered.
TOKEN_SECONDS: Final = 60.0


class MemoryBroker(Broker):
    """Keeps events in this process. A new process is a new life: its clients get a reset."""

    def __init__(
        self,
        waker: Waker,
        keep: Keep,
        *,
        history: int,
        history_seconds: float,
        history_bytes: int,
    ) -> None:
        """Begins a life, in the process that calls this.

        Args:
            waker: Told of new entries.
            keep: Has a function called about once a second.
            history: Entries that a channel keeps.
            history_seconds: Seconds that an entry is kept.
            history_bytes: Bytes that all entries may take.
        """
        log = Log(secrets.token_hex(6), history=history, history_seconds=history_seconds, history_bytes=history_bytes)
        super().__init__(log, waker, keep)
        self._records = MemoryTasks(self.emitter.lock, seconds=history_seconds)
        self.tasks = self._records
        self._tokens: collections.OrderedDict[str, tuple[float, str]] = collections.OrderedDict()

    def publish(
        self,
        channel: str,
        event: ServerSentEvent | str,
        *,
        token: str | None = None,
        is_end: bool = False,
        history: int | None = None,
        task: TaskChange | None = None,
    ) -> str:
        """Keeps an event and tells who listens; see `Broker.publish`.

        Raises:
            TaskEnded: The task has ended, or isn't known; nothing was published.
        """
        if isinstance(event, str):
            # One line, most often.
            text, name, user_id = f"data: {event}\n\n" if "\n" not in event else compact_text(event), None, None
        else:
            text, name, user_id = compact_text(event), event.event, event.id
        now = time.monotonic()
        # As `with self.emitter.lock`, without its two calls: they would be a fourteenth of it all.
        lock = self.emitter.lock.raw
        lock.acquire()
        hold(None)
        if collects := isenabled():
            disable()
        try:
            if token is not None and (known := self._known(token, now)) is not None:
                return known
            if task is not None and ((state := self._records.state_of(task.id)) is None or state.is_final):
                raise TaskEnded(task.id, state)
            if user_id is None:
                event_id = f"{self.log.epoch}-{self.log.seq + 1}"
                frame = f"id: {event_id}\n{text}".encode()
            else:
                event_id, frame = user_id, text.encode()
            entry = self.log.append(channel, frame, now, name, user_id, is_end, history)
            if task is not None:
                self._records.change(task, entry.seq, frame if user_id is not None else text.encode())
            if token is not None:
                self._tokens[token] = (now, event_id)
            self.published += 1
            if self.tallies is not None:
                self.tallies[channel].published += 1
            found = self.emitter.find(channel)
            if found is not None and found.listeners:
                self.emitter.enqueue(channel, functools.partial(to_event, event, id=event_id))
        finally:
            lock.release()
            let_go()
            if collects or handed_on:
                let_collect(collects)
        if found is not None or not self._is_kept:
            self._tell(found)
        return event_id

    def expire(self, now: float) -> bool:
        """Forgets what is too old, tokens too; see `Broker.expire`."""
        with self.emitter.lock:
            self._forget_tokens(now)
            for channel in self.log.silent(now - REMEMBERED_SECONDS):
                if not self._records.is_worked_on(channel, now):
                    self.log.give_up(channel)
        # A token is forgotten with the next one, if nothing else is left to see to.
        return super().expire(now)

    def _known(self, token: str, now: float) -> str | None:
        self._forget_tokens(now)
        known = self._tokens.get(token)
        return known[1] if known is not None else None

    def _forget_tokens(self, now: float) -> None:
        while self._tokens and next(iter(self._tokens.values()))[0] < now - TOKEN_SECONDS:
            self._tokens.popitem(last=False)
