"""What every broker promises, and what its process side has in common."""

from __future__ import annotations

import abc
import time
from collections.abc import Callable
from typing import Final, Protocol

from sseflask.emitter import Channel, EventEmitter, Subscriber
from sseflask.event import ServerSentEvent
from sseflask.log import Entry, EventId, Log

#: Seconds that a publisher waits at the most for streams whose clients read, before the ring drops what they haven't been given.
PACE_SECONDS: Final = 0.25


#: Has a function called about once a second with the monotonic second, until it returns False.
Keep = Callable[[Callable[[float], bool]], None]


class Waker(Protocol):
    """Tells a process's streams that there is something to send. Called from any native thread or greenlet."""

    def wake(self, channel: Channel) -> None:
        """The channel has new entries."""

    def pump(self, subscriber: Subscriber) -> None:
        """Lets one stream send what it has; called where streams run."""

    def give_way(self) -> bool:
        """Lets the streams run for a moment. Returns False where that can't be done."""
        ...


class Broker(abc.ABC):
    """One app's broker, in one process.

    The process side is the same for all: `log` holds the rings that streams read and `emitter` knows who listens; both are guarded
    by `emitter.lock`, an unpatched lock that is held for moments.

    Attributes:
        emitter: Who listens in this process.
        log: What they read.
        waker: Tells streams of new entries.
        published: Events published by this process.
    """

    def __init__(self, log: Log, waker: Waker, keep: Keep) -> None:
        """Stores what it needs.

        Args:
            log: What streams read.
            waker: Tells streams of new entries.
            keep: Has a function called about once a second with the monotonic second, until it returns False.
        """
        self.log = log
        self.waker = waker
        self.emitter = EventEmitter(log.names)
        self.published = 0
        self._keep: Keep = keep
        self._is_kept = False

    @abc.abstractmethod
    def publish(
        self, channel: str, event: ServerSentEvent, *, token: str | None = None, is_end: bool = False, history: int | None = None
    ) -> str:
        """Hands an event to the broker, and returns when the broker has it.

        Events of one channel reach each stream, and each listener, in the order of their numbers. May be called from any native
        thread or greenlet.

        Args:
            channel: The channel's name.
            event: The event; its id, if it has one, is the publisher's own.
            token: Names this publish: a second one with the same token within 60 s stores nothing and returns the first one's id.
            is_end: Whether the event closes the channel.
            history: Entries that the channel keeps from here on, if it differs from the others.

        Returns:
            The event's id.
        """

    @property
    def position(self) -> EventId:
        """The head of the log: after it lies what is yet to be published."""
        with self.emitter.lock:
            return self.log.position

    def subscribe(self, channels: tuple[str, ...], subscriber: Subscriber) -> None:
        """Wakes a stream for each new entry of the channels, whose rings stay until it leaves."""
        with self.emitter.lock:
            for channel in channels:
                self.log.hold(channel)
                self.emitter.subscribe(channel, subscriber)

    def unsubscribe(self, channels: tuple[str, ...], subscriber: Subscriber) -> None:
        """Takes a stream back. A second call does nothing."""
        with self.emitter.lock:
            for channel in channels:
                if self.emitter.unsubscribe(channel, subscriber):
                    self.log.release(channel)

    def expire(self, now: float) -> bool:
        """Forgets what is too old at the monotonic second `now`. Returns whether anything is left that can become so."""
        with self.emitter.lock:
            self.log.expire(now)
            self._is_kept = self.log.size > 0
            return self._is_kept

    def _tell(self, found: Channel | None, entry: Entry) -> None:
        """Tells who listens to a channel of its new entry; outside the lock."""
        if not self._is_kept:
            self._is_kept = True
            self._keep(self.expire)
        if found is None:
            return
        if found.listeners:
            self.emitter.flush()
        if found.subscribers:
            self.waker.wake(found)
            self._pace(found, entry)

    def _pace(self, found: Channel, entry: Entry) -> None:
        """Waits a little, before the ring drops entries, for streams whose clients read and that had no chance to run."""
        found.unpaced += 1
        ring = self.log.find(found.name)
        if ring is None or found.unpaced < ring.limit // 4:
            return
        found.unpaced = 0
        with self.emitter.lock:
            entries = ring.entries
            middle = entries[len(entries) // 2].seq if len(entries) >= ring.limit // 2 else 0
            subscribers = list(found.subscribers)
        until = time.monotonic() + PACE_SECONDS
        for subscriber in subscribers:
            while subscriber.is_behind(middle, now := time.monotonic()) and now < until:
                if not self.waker.give_way():
                    return
