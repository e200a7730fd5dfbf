"""What keeps events for several processes: what it takes, what it gives back, and what it promises."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Protocol

from sseflask.ring import Entry

from .tasks import TaskChange, TaskStore


@dataclasses.dataclass(frozen=True, slots=True)
class Publication:
    """An event on its way into a store.

    Attributes:
        channel: The channel's name.
        body: The encoded event: with its id line if the publisher chose an id, else without one.
        name: The event's name; None for none.
        user_id: The id that the publisher chose; None for the store's.
        is_end: Whether the event closes the channel.
        history: Entries that the channel keeps from here on, if it differs from the others; None leaves it as it is. With
            `KEEP_ALL` it keeps all, whatever their age and size, until it ends, and for the history's seconds after that.
        task: The task in whose name it is made, and what changes of it; None for none.
        token: Names this publish; the store stores one with the same token within 60 s only once.
    """

    channel: str
    body: bytes
    token: str
    name: str | None = None
    user_id: str | None = None
    is_end: bool = False
    history: int | None = None
    task: TaskChange | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Stored:
    """What a store says of a publication that it has.

    Attributes:
        id: The event's id: the publisher's own, or `<epoch>-<seq>`; empty for one that was refused.
        is_new: Whether this call stored it; False where its token had been seen, or it was refused.
        refused: The state of the task in whose name nothing can be published any more, `""` where no such task is known; None
            if that was no obstacle.
    """

    id: str
    is_new: bool
    refused: str | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Head:
    """Where a store's log stands.

    Attributes:
        epoch: Names the unbroken life of the log; another one is another life.
        seq: The number of the last entry of any channel; 0 before the first.
    """

    epoch: str
    seq: int


@dataclasses.dataclass(frozen=True, slots=True)
class Reading:
    """One channel's part of the log, and the log's head, as they were at one moment.

    Attributes:
        epoch: As `Head.epoch`.
        seq: As `Head.seq`.
        last: The number of the channel's last entry ever; of a channel that isn't known, the log's floor.
        ended: Whether the channel's last entry closed it.
        limit: Entries that the channel keeps.
        entries: Those asked for that are still there, oldest first: an unbroken chain up to `last`.
    """

    epoch: str
    seq: int
    last: int
    ended: bool
    limit: int
    entries: Sequence[Entry]


class Store(Protocol):
    """A log that several processes share: in an SQLite file, or in Redis.

    It belongs to one process and is made in it; what it needs is opened by the first method that uses it. Every method may be
    called from any native thread or greenlet, waits only by `native.pause`, which lets a hub's other greenlets run, and never
    longer than the store's time-out: then, or when the store can't be used, it raises `BrokerUnavailable`, whose message names
    what is wrong and never a password. After that the store has nothing half-done and the next call tries anew.

    Attributes:
        url: Its URL without a password, for logs and errors.
        tasks: The records of tasks, which publications change.
    """

    url: str
    tasks: TaskStore

    def publish(self, publication: Publication) -> Stored:
        """Numbers an event and keeps it, durably as far as the store goes; returns when it has it.

        Events of all channels get increasing numbers, in the order in which readers see them. One that is made in the name of a
        task changes the task's record in the same step; if the task has ended, or isn't known, nothing is stored.

        Args:
            publication: The event.

        Returns:
            The event's id, and whether it was stored.

        Raises:
            BrokerUnavailable: `outcome` is `"not_published"` where the event surely isn't stored, else `"unknown"`.
        """
        ...

    def head(self) -> Head:
        """Where the log stands now.

        Raises:
            BrokerUnavailable: The store can't be used now.
        """
        ...

    def read(self, after: Mapping[str, int | None]) -> Mapping[str, Reading]:
        """The parts of some channels, all as of one moment.

        Args:
            after: By channel's name, the number after which its entries are read; None for no entries, only where it stands.

        Returns:
            One reading for each channel, by its name.

        Raises:
            BrokerUnavailable: The store can't be used now.
        """
        ...

    def report(self, process: str, counts: Mapping[str, int], seconds: float) -> None:
        """Keeps how many streams of a process each channel has; replaces what the process reported before.

        Args:
            process: Names the process.
            counts: Streams by channel's name.
            seconds: For how long it counts.

        Raises:
            BrokerUnavailable: The store can't be used now.
        """

    def counts(self, channels: Collection[str] | None = None) -> Mapping[str, int]:
        """How many streams each channel has over all processes that reported.

        Args:
            channels: Their names; None for all that have any.

        Returns:
            Streams by channel's name; channels without any may be missing.

        Raises:
            BrokerUnavailable: The store can't be used now.
        """
        ...

    def follower(self, feed: Feed) -> Follower:
        """What tells one process of new entries; made without asking the store.

        Args:
            feed: Whom it tells.

        Returns:
            The follower; it does nothing before its first `listen`.
        """
        ...

    def close(self) -> None:
        """Lets go of connections; a second call does nothing, and a later method opens it again."""


class Feed(Protocol):
    """A process's side of what a follower tells; called by its greenlet or thread, and by `catch_up`."""

    def arrived(self, head: Head, entries: Sequence[Entry]) -> None:
        """Hands over new entries, which `tell` makes known. Never called by two at once; doesn't wait.

        Args:
            head: Where the log stands.
            entries: Its new entries of channels that are followed, in order. There may be such of other channels among them, and
                such that were told before.
        """

    def tell(self) -> None:
        """Makes what has arrived known to streams and listeners. Called after each `arrived`, outside of every lock; may wait."""

    def interrupted(self, error: Exception) -> None:
        """The store can't be followed now; the follower goes on trying, and says this once for each outage.

        Args:
            error: Why.
        """

    def resumed(self, head: Head) -> None:
        """It can be followed again. What was stored meanwhile, or is another life's, is for the feed to read.

        Args:
            head: Where the log stands.

        Raises:
            BrokerUnavailable: It can't be read; the follower tries again, as after any failure.
        """


class Follower(Protocol):
    """Learns of a store's new entries, for one process.

    What it runs in (a daemon thread, a greenlet where gevent has patched `threading`) begins with the first `listen`, which is
    called where streams run. While nobody listens it does nothing.
    """

    def listen(self, channels: Collection[str]) -> None:
        """Follows these channels too; returns when no entry stored from here on can be missed.

        Args:
            channels: Their names.

        Raises:
            BrokerUnavailable: The store doesn't say so in time; then it follows none of them that it didn't before.
        """

    def unlisten(self, channels: Collection[str]) -> None:
        """Follows these channels no more.

        Args:
            channels: Their names.
        """

    def catch_up(self) -> None:
        """Tells now, in the calling thread, what this process has itself stored, if the store gives no word of its own."""

    def settle(self) -> None:
        """Returns when all has been told that was stored, in the channels that it follows, before this call.

        Raises:
            BrokerUnavailable: It can't be told in time.
        """

    def is_here(self) -> bool:
        """Whether the caller, called by the feed, keeps it from what `listen` and `settle` wait for."""
        ...

    def close(self) -> None:
        """Ends it for good."""
