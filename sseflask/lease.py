"""Whether whoever works on a task still lives.

The process that works on it says so about once a second; where it stops saying so, the others end the task. A native thread does
both: a hub that is blocked for a while is not a dead one.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from typing import Final, Protocol

from . import native
from .brokers import Broker
from .brokers.tasks import Lease
from .errors import BrokerUnavailable

log = logging.getLogger("sseflask.tasks")

#: Seconds between two turns at the most, where there is work and where there is none; a tenth of the lease if that is less.
TURN_SECONDS: Final = 1.0
WATCH_SECONDS: Final = 3.0
#: The part of a lease for which a task may show no sign of life: the rest is for the turns of the two processes.
PATIENCE: Final = 0.6


class Holder(Protocol):
    """What works on a task in this process. Called in a native thread of its own, where nothing may wait for greenlets.

    Attributes:
        task_id: The task's.
        channel: The channel of its events.
        counts_viewers: Whether it wants to know how many streams the channel has.
    """

    task_id: str
    channel: str
    counts_viewers: bool

    def renewed(self, lease: Lease | None, viewers: int | None, now: float) -> None:
        """The broker knows that it lives.

        Args:
            lease: What the broker says of the task; None if it doesn't know it.
            viewers: The streams that the channel has, over all processes; None where it wasn't asked for.
            now: The monotonic second.
        """


class LeaseKeeper:
    """Renews the leases of one process's tasks and, once it is told to watch, judges those of others."""

    def __init__(self, broker: Callable[[], Broker], lease_seconds: float, lost: Callable[[str], None]) -> None:
        """Stores what it needs.

        Args:
            broker: Gives the app's broker.
            lease_seconds: `SSE_PRODUCER_LEASE`.
            lost: Ends a task on which nobody works any more; called in the native thread, and again after it has raised
                `BrokerUnavailable`.
        """
        self._broker = broker
        self._lease = lease_seconds
        self._patience = lease_seconds * PATIENCE
        self._lost = lost
        self._turn = 0.0
        self._holders: dict[str, Holder] = {}
        self._is_running = False
        self._is_closed = False
        self._read_at: float | None = None
        self._beats: Mapping[str, int] = {}
        # Seconds for which each has shown no sign of life, while the broker could be asked.
        self._silent: dict[str, float] = {}

    def hold(self, holder: Holder) -> None:
        """Renews the lease of a task from here on."""
        self._holders[holder.task_id] = holder
        self.watch()

    def let_go(self, holder: Holder) -> None:
        """The task has ended, or isn't worked on any more."""
        self._holders.pop(holder.task_id, None)

    def watch(self) -> None:
        """Looks after all tasks of the app from here on."""
        if not self._is_running:
            self._is_running = True
            native.start_thread(self._run)

    def close(self) -> None:
        """Ends its thread, at its next turn."""
        self._is_closed = True

    def _run(self) -> None:
        while not self._is_closed:
            self._turn = min(self._lease / 10, TURN_SECONDS if self._holders else WATCH_SECONDS)
            native.sleep(self._turn)
            try:
                self._renew()
                self._judge(time.monotonic())
            except BrokerUnavailable:
                # Whoever works on a task can't say so either: this time doesn't count.
                self._read_at = None
            except Exception as error:
                self._read_at = None
                self._report(error)

    def _renew(self) -> None:
        holders = list(self._holders.values())
        if not holders:
            return
        broker = self._broker()
        leases = broker.tasks.renew([holder.task_id for holder in holders])
        counted = [holder.channel for holder in holders if holder.counts_viewers]
        viewers = broker.counts(counted) if counted else {}
        now = time.monotonic()
        for holder in holders:
            holder.renewed(leases.get(holder.task_id), viewers.get(holder.channel), now)

    def _judge(self, now: float) -> None:
        broker = self._broker()
        if not broker.is_shared:
            # Its tasks die with this process.
            return
        beats = broker.tasks.beats()
        before, self._read_at = self._read_at, now
        # A turn that took long may have been an outage for the others.
        elapsed = 0.0 if before is None else min(now - before, 2 * self._turn)
        silent = {}
        for task_id, beat in beats.items():
            if task_id not in self._holders and self._beats.get(task_id) == beat:
                silent[task_id] = self._silent.get(task_id, 0.0) + elapsed
        self._beats, self._silent = beats, silent
        for task_id, seconds in silent.items():
            if seconds >= self._patience:
                self._lost(task_id)

    def _report(self, error: Exception) -> None:
        """Logs an error where streams run: the logging module's locks are shared with greenlets."""
        extra = {"sse_tasks": len(self._holders)}
        try:
            self._broker().waker.call(lambda: log.error("the keeper of leases failed", exc_info=error, extra=extra))
        except (BrokerUnavailable, RuntimeError):
            return
