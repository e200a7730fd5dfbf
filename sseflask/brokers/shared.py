"""The broker of several processes: what one process has of a store's log, kept up to date by a follower."""

from __future__ import annotations

import collections
import contextlib
import logging
import os
import secrets
import threading
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Final, NamedTuple

from sseflask import native
from sseflask.emitter import RESERVED, Channel, Subscriber
from sseflask.errors import BrokerUnavailable, TaskEnded
from sseflask.event import ServerSentEvent, compact_text
from sseflask.log import Log
from sseflask.position import EventId
from sseflask.ring import ChannelLog, Entry

from .base import PACE_SECONDS, Broker, Keep, Waker
from .store import Head, Publication, Reading, Store
from .tasks import TaskChange, TaskState

log = logging.getLogger("sseflask.broker")

#: Seconds for which a channel is followed after the last stream has left it: clients come back.
LINGER_SECONDS: Final = 10.0
#: Seconds between two looks at what the broker's own thread has to do.
HOUSEKEEPING_SECONDS: Final = 1.0
#: Seconds between two reports of how many streams the channels have, where nothing has changed, and for which one counts.
REPORT_SECONDS: Final = 5.0
REPORT_LASTS_SECONDS: Final = 15.0


class SharedBroker(Broker):
    """Publishes to a store, and keeps rings of the channels that somebody in this process reads.

    A channel that has a ring is followed: from the store's word that it is, each of its entries comes in. Where one is missed, for
    an outage or a slow reading, the store is asked for it; only if it has it no more are streams told that something is gone.

    Attributes:
        store: The log of all processes.
    """

    is_shared = True

    def __init__(
        self,
        store: Store,
        waker: Waker,
        keep: Keep,
        *,
        history: int,
        history_seconds: float,
        history_bytes: int,
        timeout: float,
    ) -> None:
        """Stores what it needs; the store is asked first when somebody publishes or reads.

        Args:
            store: The log of all processes.
            waker: Told of new entries.
            keep: Has a function called about once a second.
            history: Entries that a channel keeps.
            history_seconds: Seconds that an entry is kept.
            history_bytes: Bytes that all entries in this process may take.
            timeout: Seconds that reading a channel may take.
        """
        own = Log("", history=history, history_seconds=history_seconds, history_bytes=history_bytes)
        super().__init__(own, waker, keep)
        self.store = store
        self.tasks = store.tasks
        self._follower = store.follower(self)
        self._timeout = timeout
        self._trouble: Exception | None = None
        # Channels whose entries wait for what the store has of them before.
        self._loading: dict[str, list[Entry]] = {}
        # Channels that are being fetched, and what those wait for who want them too.
        self._fetching: dict[str, _Fetching] = {}
        # When a channel was last left, of those that are followed and that nobody reads.
        self._left: dict[str, float] = {}
        # What the follower has found and `tell` hasn't taken in yet, each with where the log stood.
        self._arrived: collections.deque[tuple[Head, collections.deque[Entry]]] = collections.deque()
        self._arrived_since = 0.0
        # The number up to which the follower has told all, and the one from which on it has, since it was last interrupted.
        self._heard = self._heard_since = 0
        # Whom to wake, and channels of which entries are missing: what `tell` has to see to.
        self._told: dict[Channel, None] = {}
        self._holes: set[str] = set()
        self._have_listeners_waited = False
        self._must_renew = False
        self._renewing = threading.Lock()
        self._housekeeper: threading.Thread | None = None
        self._wake = threading.Event()
        self._is_closed = False
        # Names this process in reports.
        self._process = f"{os.uname().nodename}-{os.getpid()}-{secrets.token_hex(4)}"
        self._reported: dict[str, int] = {}
        self._reported_changes = 0
        self._report_due = 0.0

    def open(self) -> None:
        """Follows what has listeners, from here on."""
        self.emitter.on_listen = self._follow_listeners
        if self.emitter.channels():
            self._follow_listeners()

    # What publishers and streams use.

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
        """Hands an event to the store; see `Broker.publish`."""
        name, user_id = (None, None) if isinstance(event, str) else (event.event, event.id)
        publication = Publication(
            channel,
            compact_text(event).encode(),
            token if token is not None else secrets.token_hex(8),
            name=name,
            user_id=user_id,
            is_end=is_end,
            history=history,
            task=task,
        )
        stored = self.store.publish(publication)
        if task is not None and stored.refused is not None:
            raise TaskEnded(task.id, TaskState(stored.refused) if stored.refused else None)
        if stored.is_new:
            self.published += 1
            if self.tallies is not None:
                self.tallies[channel].published += 1
        self._follower.catch_up()
        found = self.emitter.find(channel)
        if found is not None and found.subscribers:
            self._pace(found)
        # It took its time: one who publishes many would keep all others waiting.
        self.waker.rest()
        return stored.id

    @property
    def position(self) -> EventId:
        """The head of the log, as far as this process knows it; asked for where it follows no channel.

        Raises:
            BrokerUnavailable: It is asked for, and can't be known now.
        """
        with self.emitter.lock:
            if self.log.names():
                return self.log.position
        head = self.store.head()
        self._advance(head)
        # Of another life the log here may not be yet: a native thread leaves that to the streams' own.
        return EventId(head.epoch, head.seq)

    @property
    def is_up(self) -> bool:
        """Whether the store can be followed, as far as is known without asking it."""
        return self._trouble is None

    def problem(self) -> str | None:
        """Why the store can't be used now; None if it can."""
        if self._trouble is not None:
            return str(self._trouble)
        try:
            self.store.head()
        except BrokerUnavailable as error:
            return str(error)
        return None

    def prepare(self, channels: Collection[str], last_event_id: str | None = None) -> None:
        """Follows channels, and reads what a client that comes back may have missed; see `Broker.prepare`."""
        self._fetch(channels, whole=False)
        if self._left:
            now = time.monotonic()
            with self.emitter.lock:
                # Who is about to read them has as long as who came first.
                self._left.update((name, now) for name in channels if name in self._left)
        if last_event_id is None:
            return
        position = EventId.parse(last_event_id)
        if position is None:
            # The event of this id may be another process's, and news to this one.
            self._follower.catch_up()
        if position is not None and position.epoch == self.log.epoch:
            if position.seq > self.log.seq:
                # Another process may be ahead of this one.
                self._advance(self.store.head())
            with self.emitter.lock:
                wanted = [name for name in channels if self.log.missing_after(name, position.seq)]
        else:
            wanted = list(channels)
        self._fetch(wanted, whole=True)

    def retained(self, channel: str) -> list[Entry]:
        """Follows a channel, and reads all that the store has of it; see `Broker.retained`."""
        self._fetch([channel], whole=True)
        return super().retained(channel)

    def catch_up(self) -> None:
        """Waits until the follower has told what the store has; see `Broker.catch_up`."""
        self._follower.settle()

    def subscribe(self, channels: tuple[str, ...], subscriber: Subscriber) -> None:
        """Wakes a stream for each new entry of the channels; see `Broker.subscribe`."""
        while True:
            self._fetch(channels, whole=False)
            with self.emitter.lock:
                if all(name in self.log for name in channels):
                    for name in channels:
                        self.log.hold(name)
                        self._left.pop(name, None)
                        self.emitter.subscribe(name, subscriber)
                    break

    def unsubscribe(self, channels: tuple[str, ...], subscriber: Subscriber) -> None:
        """Takes a stream back; see `Broker.unsubscribe`."""
        now = time.monotonic()
        with self.emitter.lock:
            for name in channels:
                if self.emitter.unsubscribe(name, subscriber) and not self._is_used(name):
                    self._left[name] = now

    def is_complete(self, channels: Collection[str]) -> bool:
        """Whether none of these channels waits for what is missing; see `Broker.is_complete`."""
        return self._holes.isdisjoint(channels) and self._loading.keys().isdisjoint(channels)

    def count(self, channel: str) -> int:
        """The streams that a channel has, in all processes; see `Broker.count`."""
        return self.counts([channel])[channel]

    def counts(self, channels: Collection[str]) -> dict[str, int]:
        """`count` for several channels; see `Broker.counts`."""
        found = self.store.counts(channels)
        # What this process has reported, and hasn't any more, isn't another's.
        return {
            channel: super(SharedBroker, self).count(channel) + max(found.get(channel, 0) - self._reported.get(channel, 0), 0)
            for channel in channels
        }

    def close(self) -> None:
        """Lets go of connections and threads; a second call does nothing."""
        if self._is_closed:
            return
        self._is_closed = True
        self._wake.set()
        self._follower.close()
        if self._reported and self._trouble is None:
            # The others needn't wait until the report has expired.
            with contextlib.suppress(BrokerUnavailable):
                self.store.report(self._process, {}, REPORT_LASTS_SECONDS)
        self.store.close()

    # What the follower tells.

    def arrived(self, head: Head, entries: Sequence[Entry]) -> None:
        """Keeps new entries until they are told; see `Feed.arrived`."""
        with self.emitter.lock:
            if not self._arrived:
                self._arrived_since = time.monotonic()
            self._arrived.append((head, collections.deque(entries)))

    def tell(self) -> None:
        """Takes in what has arrived and wakes who reads it; reads what is missing. See `Feed.tell`."""
        while True:
            with self.emitter.lock:
                filling = self._take_all_in()
                told, self._told = self._told, {}
            self._tell_all(told)
            if filling is None:
                break
            # What has been found may be more than a ring keeps. No other channel's streams wait for a client that doesn't read.
            self._let_read(filling, 0.0, self._arrived_since + PACE_SECONDS if not self._is_closed else 0.0)
        if self._must_renew or self._holes:
            try:
                self._make_whole()
            except BrokerUnavailable as error:
                # Left to the broker's own thread, which tries again.
                log.warning("entries are missing, and can't be read now: %s", error, extra={"sse_broker": self.store.url})

    def interrupted(self, error: Exception) -> None:
        """Remembers why the store can't be followed; streams stay open. See `Feed.interrupted`."""
        if self._trouble is None:
            self.outages += 1
        self._trouble = error
        log.warning("the broker can't be followed, streams wait: %s", error, extra={"sse_broker": self.store.url})

    def resumed(self, head: Head) -> None:
        """Reads what was stored while the store couldn't be followed; see `Feed.resumed`.

        Raises:
            BrokerUnavailable: It can't be read now either.
        """
        with self.emitter.lock:
            self._holes.update(self.log.names())
            if head.epoch == self.log.epoch:
                self._heard_since = head.seq
                self._heard = max(self._heard, head.seq)
        self._advance(head)
        self._make_whole()
        if self._trouble is not None:
            self._trouble = None
            self.reconnects += 1
            log.info("the broker can be followed again", extra={"sse_broker": self.store.url})

    # The rest is its own.

    def _take_all_in(self) -> Channel | None:
        """Feeds what has arrived, in order, until streams have to be given a chance to read: those of the channel that it returns.

        Called under the lock.
        """
        now = time.monotonic()
        while self._arrived:
            head, entries = self._arrived[0]
            if head.epoch != self.log.epoch:
                # What they are part of is read as a whole.
                self._must_renew = True
                entries.clear()
            while entries:
                found = self.emitter.find(entries[0].channel)
                if found is not None and found.subscribers and self._is_filling(found):
                    return found
                self._take_in(entries.popleft(), now)
            self._arrived.popleft()
            if head.epoch == self.log.epoch:
                self.log.seq = max(self.log.seq, head.seq)
                self._heard = max(self._heard, head.seq)
        return None

    def _take_in(self, entry: Entry, now: float) -> None:
        """Feeds one entry; called under the lock."""
        waiting = self._loading.get(entry.channel)
        if waiting is not None:
            waiting.append(entry)
            return
        ring = self.log.find(entry.channel)
        if ring is None or entry.seq <= ring.last:
            return
        if entry.prev != ring.last:
            # The store may still have what lies between; what follows waits for it.
            self._holes.add(entry.channel)
            self._loading[entry.channel] = [entry]
            return
        self._feed(entry, now)

    def _feed(self, entry: Entry, now: float) -> None:
        if not self.log.feed(entry, now):
            return
        found = self.emitter.find(entry.channel)
        if found is not None:
            self._told[found] = None
            found.unpaced += 1
            if found.listeners:
                self.emitter.enqueue(entry.channel, lambda: entry.event)

    def _tell_all(self, told: Iterable[Channel]) -> None:
        if not self._is_kept:
            self._is_kept = True
            self._keep(self.expire)
        has_listeners = False
        for found in told:
            if found.subscribers:
                self.waker.wake(found)
            has_listeners = has_listeners or bool(found.listeners)
        if has_listeners:
            self.emitter.flush()

    def _make_whole(self) -> None:
        """Reads what is missing: all, if the store's log is of another life, else what lies in the holes."""
        if self._must_renew:
            self._renew()
        with self.emitter.lock:
            names, self._holes = self._holes, set()
            lasts = {name: ring.last for name in names if (ring := self.log.find(name)) is not None}
            for name in lasts:
                self._loading.setdefault(name, [])
        readings: Mapping[str, Reading] = {}
        try:
            readings = self.store.read(dict(lasts)) if lasts else {}
        finally:
            now = time.monotonic()
            with self.emitter.lock:
                for name in lasts:
                    waiting = self._loading.pop(name, [])
                    reading = readings.get(name)
                    if reading is None or (reading.epoch == self.log.epoch and reading.seq < self._heard_since):
                        # The follower was interrupted after that reading, and may have missed what came then.
                        self._holes.add(name)
                    elif reading.epoch == self.log.epoch:
                        self._read_on(name, reading, waiting, now)
                    else:
                        self._must_renew = True
                told, self._told = self._told, {}
            self._tell_all(told)
        if self._must_renew:
            self._renew()

    def _read_on(self, name: str, reading: Reading, waiting: list[Entry], now: float) -> None:
        """Adds what was read, and what came in meanwhile, to a ring; where some of it is gone, tells streams. Under the lock.

        What the follower is still to tell isn't added: streams that read other channels too would be ahead of those.
        """
        ring = self.log.find(name)
        if ring is None:
            return
        if ring.last < reading.last and (not reading.entries or reading.entries[0].prev > ring.last):
            last = reading.entries[0].prev if reading.entries else reading.last
            self.log.skip(ring, last, ended=reading.ended and not reading.entries, limit=reading.limit)
            self._let_begin_anew(name, self.log.epoch)
        if ring.last < reading.last:
            ring.limit = reading.limit
        heard = max(self._heard, waiting[-1].seq if waiting else 0)
        for entry in reading.entries:
            if ring.last < entry.seq <= heard:
                self._feed(entry, now)
        for entry in waiting:
            self._take_in(entry, now)
        found = self.emitter.find(name)
        if found is not None:
            # Streams that read others too have waited with those.
            self._told[found] = None

    def _let_begin_anew(self, name: str, epoch: str) -> None:
        """Lets the streams of a channel look for their positions of that epoch; called under the lock."""
        found = self.emitter.find(name)
        if found is not None:
            for subscriber in found.subscribers:
                subscriber.begin_anew(epoch)
            self._told[found] = None

    def _fetch(self, channels: Collection[str], *, whole: bool) -> None:
        """Sees to it that channels are followed and, if `whole`, that their rings have all that the store retains of them."""
        deadline = time.monotonic() + self._timeout
        # Read once, by us or by others meanwhile: a ring that is too small for all isn't read into again and again.
        done: set[str] = set()
        while True:
            latch = threading.Event()
            with self.emitter.lock:
                wanted = [name for name in channels if self._is_wanted(name, whole=whole and name not in done)]
                if not wanted:
                    return
                if time.monotonic() > deadline:
                    raise BrokerUnavailable(f"{self.store.url} doesn't give the history of a channel in {self._timeout:g} s")
                mine = [name for name in wanted if name not in self._fetching]
                others = [self._fetching[name].latch for name in wanted if name in self._fetching]
                self._fetching.update(dict.fromkeys(mine, _Fetching(latch, threading.get_ident())))
            try:
                if mine:
                    self._fetch_now(mine, whole=whole)
            finally:
                with self.emitter.lock:
                    for name in mine:
                        del self._fetching[name]
                latch.set()
            for other in others:
                other.wait(max(deadline - time.monotonic(), 0))
            done.update(wanted)

    def _is_wanted(self, name: str, *, whole: bool) -> bool:
        """Whether a channel has to be fetched; called under the lock."""
        ring = self.log.find(name)
        return ring is None or (whole and not ring.is_whole)

    def _fetch_now(self, names: list[str], *, whole: bool) -> None:
        with self.emitter.lock:
            new = [name for name in names if name not in self.log]
            self._loading.update({name: [] for name in new})
        readings: Mapping[str, Reading] = {}
        try:
            if new:
                self._follower.listen(new)
            found = self.store.read(dict.fromkeys(names, 0 if whole else None))
            if new:
                # Streams that read others too have one cursor: what those had before this moment comes first.
                self._follower.settle()
            readings = found
        finally:
            now = time.monotonic()
            with self.emitter.lock:
                for name in names:
                    waiting = self._loading.pop(name, []) if name in new else []
                    reading = readings.get(name)
                    if reading is None:
                        # It may be followed all the same: to be seen to when nobody has asked again.
                        self._left.setdefault(name, now)
                    elif reading.epoch != self.log.epoch:
                        # Of another life, and fetched again in it.
                        self._must_renew = True
                    else:
                        self._load(name, reading, now, is_whole=whole)
                        self.log.seq = max(self.log.seq, reading.seq)
                        for entry in waiting:
                            self._take_in(entry, now)
                        if reading.seq < self._heard_since:
                            # As in `_make_whole`.
                            self._holes.add(name)
            self._keep_house()
        if self._must_renew:
            self._renew()
        self.tell()

    def _load(self, name: str, reading: Reading, now: float, *, is_whole: bool) -> None:
        self.log.load(
            name, reading.entries, last=reading.last, ended=reading.ended, limit=reading.limit, is_whole=is_whole, now=now
        )
        self.log.hold(name)
        if not self._is_used(name):
            self._left.setdefault(name, now)

    def _advance(self, head: Head) -> None:
        """The log stands at least at `head`."""
        if head.epoch != self.log.epoch:
            self._renew()
        else:
            with self.emitter.lock:
                self.log.seq = max(self.log.seq, head.seq)

    def _renew(self) -> None:
        """Begins another life of the store's log here, with all that it retains, and lets streams look for their positions."""
        if native.is_apart():
            # A native thread that publishes: what waits for the store is the streams' thread's.
            self._must_renew = True
            return
        with self._renewing:
            while True:
                head = self.store.head()
                if head.epoch == self.log.epoch:
                    self._must_renew = False
                    return
                with self.emitter.lock:
                    names = self.log.names()
                readings = self.store.read(dict.fromkeys(names, 0)) if names else {}
                if all(reading.epoch == head.epoch for reading in readings.values()):
                    break
            now = time.monotonic()
            with self.emitter.lock:
                old, find_old = self.log.epoch, self.log.find
                self._heard = self._heard_since = max([head.seq, *(reading.seq for reading in readings.values())])
                self.log.renew(head.epoch, self._heard)
                self._must_renew = False
                for waiting in self._loading.values():
                    waiting.clear()
                for name, reading in readings.items():
                    self._load(name, reading, now, is_whole=True)
                    self._let_begin_anew(name, old)
                    self._let_hear(name, find_old(name), reading.entries)
                told, self._told = self._told, {}
        if old:
            text = "the broker's log has begun another life: clients that come from the last one are told by a reset"
            log.warning(text, extra={"sse_broker": self.store.url, "sse_epoch": head.epoch})
        self._tell_all(told)

    def _let_hear(self, name: str, old: ChannelLog | None, entries: Sequence[Entry]) -> None:
        """Puts what processes told one another in a life that this one knew nothing of in line for listeners; under the lock."""
        found = self.emitter.find(name)
        if found is not None and found.listeners and name.startswith(RESERVED):
            known = {(entry.seq, entry.event.data) for entry in old.entries} if old is not None else set()
            for entry in entries:
                if (entry.seq, entry.event.data) not in known:
                    self.emitter.enqueue(name, lambda entry=entry: entry.event)  # type: ignore[misc]

    def _is_used(self, name: str) -> bool:
        """Whether a stream or a listener reads the channel; called under the lock."""
        found = self.emitter.find(name)
        return found is not None and bool(found.subscribers or found.listeners)

    def _follow_listeners(self) -> None:
        """Follows the channels that have listeners; if the store can't be followed now, as soon as it can."""
        if native.is_apart():
            return
        if self._follower.is_here():
            # It would wait for itself.
            self._keep_house()
            self._wake.set()
            return
        with self.emitter.lock:
            # A listener that is called while its caller fetches a channel doesn't wait for that one.
            own = [name for name, fetching in self._fetching.items() if fetching.by == threading.get_ident()]
            names = [name for name in self.emitter.listened() if name not in self.log and name not in own]
        try:
            self._fetch(names, whole=False)
        except BrokerUnavailable as error:
            # Tried again each second.
            if not self._have_listeners_waited:
                self._have_listeners_waited = True
                log.warning("listeners wait: %s", error, extra={"sse_broker": self.store.url})
        else:
            self._have_listeners_waited = False
        self._keep_house()

    # Its own thread, for what waits.

    def _keep_house(self) -> None:
        if self._housekeeper is None and not native.is_apart():
            self._housekeeper = threading.Thread(target=self._keep_house_always, name="sseflask-broker", daemon=True)
            self._housekeeper.start()

    def _keep_house_always(self) -> None:
        while True:
            self._wake.wait(HOUSEKEEPING_SECONDS)
            self._wake.clear()
            if self._is_closed:
                return
            try:
                # What is left in line where a listener raised what ends a greenlet.
                self.emitter.flush()
                self._follow_listeners()
                if self._trouble is None:
                    if self._arrived:
                        self.tell()
                    if self._must_renew or self._holes:
                        self._make_whole()
                    self._unlisten(time.monotonic())
                    self._report(time.monotonic())
            except BrokerUnavailable:
                # Said by the follower.
                continue
            except BaseException:
                # A listener may raise what ends a greenlet: this one goes on.
                log.exception("the broker's own thread failed", extra={"sse_broker": self.store.url})

    def _unlisten(self, now: float) -> None:
        """Follows the channels no more that nobody has come back to."""
        latch = threading.Event()
        with self.emitter.lock:
            for name in self.log.names():
                # That its last listener has gone, nobody says.
                if name not in self._left and not self._is_used(name):
                    self._left[name] = now
            due = [name for name, since in self._left.items() if now - since > LINGER_SECONDS and name not in self._fetching]
            for name in due:
                del self._left[name]
            gone = [name for name in due if not self._is_used(name)]
            for name in gone:
                self.log.drop(name)
            # Who wants one of them now waits until it can be followed anew.
            self._fetching.update(dict.fromkeys(gone, _Fetching(latch, threading.get_ident())))
        try:
            if gone:
                self._follower.unlisten(gone)
        finally:
            with self.emitter.lock:
                for name in gone:
                    del self._fetching[name]
            latch.set()

    def _report(self, now: float) -> None:
        """Tells the other processes how many streams the channels have here, if that has changed or is due again."""
        with self.emitter.lock:
            changes = self.emitter.changes
            if changes == self._reported_changes and (now < self._report_due or not self._reported):
                return
            counts = self.emitter.subscribed()
        self.store.report(self._process, counts, REPORT_LASTS_SECONDS)
        self._reported, self._reported_changes = counts, changes
        self._report_due = now + REPORT_SECONDS


class _Fetching(NamedTuple):
    """That a channel is being fetched.

    Attributes:
        latch: Set when that is over.
        by: The thread or greenlet that does it.
    """

    latch: threading.Event
    by: int
