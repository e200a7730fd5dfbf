"""What every broker promises, and what its process side has in common."""

from __future__ import annotations

import abc
import time
from collections.abc import Callable, Collection
from typing import Final, Protocol

from sseflask.emitter import Channel, EventEmitter, Subscriber
from sseflask.event import ServerSentEvent
from sseflask.log import Log
from sseflask.position import EventId
from sseflask.ring import ChannelLog, Entry
from sseflask.tally import Latency, Tallies

from .tasks import TaskChange, TaskStore

#: Seconds for which publishers, and what a follower found, wait at the most for streams before the ring drops what those haven't
#: been given.
PACE_SECONDS: Final = 1.0
#: Seconds for which a client's buffer may be full before a publisher no longer waits for its stream.
PATIENCE_SECONDS: Final = 0.1
#: Events, and deliveries of events, that may wait for streams that are sending already, before their publisher does: more would
#: take less time in all, in larger writes, but each event would come later.
WAITING_EVENTS: Final = 16
WAITING_DELIVERIES: Final = 4000


#: Streams that are looked at before others have their turn.
COUNTED_AT_ONCE: Final = 1000

#: Has a function called about once a second with the monotonic second, until it returns False.
Keep = Callable[[Callable[[float], bool]], None]


class Waker(Protocol):
    """Tells a process's streams that there is something to send. Called from any native thread or greenlet.

    Attributes:
        latency: How long events took to their streams.
    """

    latency: Latency

    def wake(self, channel: Channel) -> None:
        """Lets a channel's streams send its new entries.

        Args:
            channel: Who listens to it.
        """

    def pump(self, subscriber: Subscriber) -> None:
        """Lets one stream send what it has; called where streams run.

        Args:
            subscriber: The stream.
        """

    def defer(self, call: Callable[[], object]) -> bool:
        """Calls later what may wait, if the caller is in the middle of a stream's sending.

        Args:
            call: Takes no argument.

        Returns:
            Whether it will be called; False where the caller isn't in the middle of a stream's sending.
        """
        ...

    def call(self, function: Callable[[], object]) -> None:
        """Calls a function where streams run, soon; it may not wait there.

        Args:
            function: Takes no argument.

        Raises:
            RuntimeError: The calling native thread can't reach the one where streams run.
        """

    def give_way(self) -> bool:
        """Lets the streams run for a moment.

        Returns:
            False where that can't be done.
        """
        ...

    def rest(self) -> None:
        """Lets others run, if the caller has kept them waiting for some milliseconds, and they can't run by themselves."""


class Broker(abc.ABC):
    """One app's broker, in one process.

    The process side is the same for all: `log` holds the rings that streams read and `emitter` knows who listens; both are guarded
    by `emitter.lock`, an unpatched lock that is held for moments.

    Attributes:
        emitter: Who listens in this process.
        log: What they read: the rings of this process's channels.
        waker: Tells streams of new entries.
        published: Events published by this process so far.
        tallies: What the channels of each pattern count; None where no patterns are set.
        outages: How often the events of other processes could not be followed any more.
        reconnects: How often they could be followed again.
        tasks: The records of tasks.
        is_shared: Whether other processes may publish through it too.
    """

    tasks: TaskStore
    is_shared = False

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
        self.tallies: Tallies | None = None
        self.outages = 0
        self.reconnects = 0
        self._keep: Keep = keep
        self._is_kept = False

    def open(self) -> None:  # noqa: B027
        """Begins to follow what there are listeners for; called once, by who made it, when it has those of the app."""

    @abc.abstractmethod
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
        """Hands an event to the broker, and returns when the broker has it.

        Events of one channel reach each stream, and each listener, in the order of their numbers. May be called from any native
        thread or greenlet.

        Args:
            channel: The channel's name.
            event: The event; its id, if it has one, is the publisher's own. A string is what `to_compact` has made of one.
            token: Names this publish: a second one with the same token within 60 s stores nothing and returns the first one's id.
                None for one that nobody repeats.
            is_end: Whether the event closes the channel.
            history: Entries that the channel keeps from here on, if it differs from the others; `KEEP_ALL` for all until it ends;
                None leaves it as it is.
            task: The task in whose name it is published, and what changes of it; None for none.

        Returns:
            The event's id.

        Raises:
            TaskEnded: The task has ended, or isn't known; nothing was published.
            BrokerUnavailable: The broker doesn't have the event, or it isn't known whether it has.
        """

    @property
    def is_up(self) -> bool:
        """Whether the events of other processes can be followed, as far as is known without asking."""
        return True

    def problem(self) -> str | None:
        """Why nothing can be published or followed now; None if it can. It may take as long as a publish."""
        return None

    def prepare(self, channels: Collection[str], last_event_id: str | None = None) -> None:  # noqa: B027
        """Sees to it that the log has what a client gets that is about to read channels.

        Called where streams run, before the position is taken; it may wait.

        Args:
            channels: Their names.
            last_event_id: What the client says it saw last; None if it says nothing.

        Raises:
            BrokerUnavailable: They can't be read now.
        """

    def retained(self, channel: str) -> list[Entry]:
        """All that is retained of a channel, which the log here has from now on, for some seconds at least; it may wait.

        Args:
            channel: The channel's name.

        Returns:
            Its entries, oldest first; their times are monotonic seconds of this process.

        Raises:
            BrokerUnavailable: They can't be read now.
        """
        with self.emitter.lock:
            ring = self.log.find(channel)
            return list(ring.entries) if ring is not None else []

    def catch_up(self) -> None:  # noqa: B027
        """Takes in what other processes have published up to here, if this one hasn't heard of it yet; it may wait.

        Raises:
            BrokerUnavailable: It can't be told in time.
        """

    def count(self, channel: str) -> int:
        """The streams that a channel has, in this process and, as of some seconds ago, in all others.

        Args:
            channel: The channel's name.

        Raises:
            BrokerUnavailable: The others' can't be known now.
        """
        with self.emitter.lock:
            found = self.emitter.find(channel)
            return len(found.subscribers) if found is not None else 0

    def counts(self, channels: Collection[str]) -> dict[str, int]:
        """`count` for several channels.

        Args:
            channels: Their names.

        Returns:
            The number of streams of each.

        Raises:
            BrokerUnavailable: The others' can't be known now.
        """
        return {channel: self.count(channel) for channel in channels}

    def close(self) -> None:  # noqa: B027
        """Lets go of connections and threads; a second call does nothing."""

    @property
    def position(self) -> EventId:
        """The head of the log: after it lies what is yet to be published.

        Raises:
            BrokerUnavailable: It can't be known now.
        """
        with self.emitter.lock:
            return self.log.position

    def subscribe(self, channels: tuple[str, ...], subscriber: Subscriber) -> None:
        """Wakes a stream for each new entry of the channels, whose rings stay until it leaves.

        Called where streams run; it may wait.

        Args:
            channels: The channels' names.
            subscriber: The stream.

        Raises:
            BrokerUnavailable: They can't be read now; then it doesn't listen.
        """
        with self.emitter.lock:
            for channel in channels:
                self.log.hold(channel)
                self.emitter.subscribe(channel, subscriber)

    def is_complete(self, channels: Collection[str]) -> bool:
        """Whether none of these channels waits for entries that came before what others already have; called under the lock.

        A stream that reads several waits with them: past its cursor nothing is sent to it any more.

        Args:
            channels: Their names.
        """
        return True

    def unsubscribe(self, channels: tuple[str, ...], subscriber: Subscriber) -> None:
        """Takes a stream back. A second call does nothing.

        Args:
            channels: The channels' names.
            subscriber: The stream.
        """
        with self.emitter.lock:
            for channel in channels:
                if self.emitter.unsubscribe(channel, subscriber):
                    self.log.release(channel)

    def expire(self, now: float) -> bool:
        """Forgets what is too old.

        Args:
            now: The monotonic second.

        Returns:
            Whether anything is left that can become so.
        """
        with self.emitter.lock:
            self.log.expire(now)
            self._is_kept = not self.log.is_idle
            return self._is_kept

    def count_by_pattern(self) -> dict[str, dict[str, int]]:
        """`subscriptions`, `published` and `delivered` of each pattern in this process; empty where no patterns are set."""
        tallies = self.tallies
        if tallies is None:
            return {}
        with self.emitter.lock:
            found = {
                pattern: {"subscriptions": 0, "published": tally.published, "delivered": tally.delivered}
                for pattern, tally in tallies.patterns.items()
            }
            channels = self.emitter.subscribers()
        read = 0
        for name, subscribers in channels:
            read += 1
            counted = found[tallies[name].pattern]
            counted["subscriptions"] += len(subscribers)
            for subscriber in subscribers:
                counted["delivered"] += subscriber.delivered
                read += 1
                if not read % COUNTED_AT_ONCE:
                    # More than 0: under gevent, 0 would come back before sockets and timers have had their turn.
                    time.sleep(1e-9)
        return found

    def _tell(self, found: Channel | None) -> None:
        """Tells who listens to a channel that it has a new entry; outside the lock."""
        if not self._is_kept:
            self._is_kept = True
            self._keep(self.expire)
        if found is None:
            return
        # The streams first: a listener may raise what ends the greenlet that publishes.
        if found.subscribers:
            self.waker.wake(found)
        if found.listeners:
            self.emitter.flush()
        if found.subscribers:
            found.unpaced += 1
            self._pace(found)

    def _pace(self, found: Channel) -> None:
        """Waits a little for streams whose clients read: while many send, and before the ring drops what they haven't got."""
        if found.waiting >= WAITING_EVENTS and found.waiting * len(found.subscribers) >= WAITING_DELIVERIES:
            self._give_way_while(lambda: found.waiting >= WAITING_EVENTS, time.monotonic() + PACE_SECONDS)
        if self._is_filling(found):
            self._let_read(found, PATIENCE_SECONDS, time.monotonic() + PACE_SECONDS)

    def _is_filling(self, found: Channel) -> bool:
        """Whether a quarter of what its ring can keep is new since its streams were last seen to be given their chance to run."""
        ring = self.log.find(found.name)
        return ring is not None and found.unpaced >= max(self.log.capacity(ring) // 4, 1)

    def _let_read(self, found: Channel, patience: float, until: float) -> None:
        """Waits for the streams that haven't got half of the ring, unless their client's buffer has been full for so long."""
        ring = self.log.find(found.name)
        if ring is not None:
            self._give_way_while(lambda: self._has_laggards(found, ring, patience), until)
        # Only now: until the streams have caught up, whoever else publishes here waits too.
        found.unpaced = 0

    def _give_way_while(self, must_wait: Callable[[], bool], until: float) -> None:
        while time.monotonic() < until and must_wait() and self.waker.give_way():
            pass

    def _has_laggards(self, found: Channel, ring: ChannelLog, patience: float) -> bool:
        """Whether a stream whose client reads hasn't got half of what the ring can keep."""
        with self.emitter.lock:
            entries = ring.entries
            if not entries or len(entries) < self.log.capacity(ring) // 2:
                return False
            middle = entries[len(entries) // 2].seq
            subscribers = list(found.subscribers)
        since = time.monotonic() - patience
        # The last one is the last to have its turn.
        return any(subscriber.is_behind(middle, since) for subscriber in reversed(subscribers))
