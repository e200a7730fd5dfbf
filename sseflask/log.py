"""The log of a broker's life: the rings of its channels, reading after a cursor, and knowing what is missing.

No IO, no clock, no lock: time is an argument, and the caller sees to it that one call runs at a time.
"""

from __future__ import annotations

import collections
import dataclasses
import heapq
import itertools
import operator
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Final

from .position import EventId
from .ring import KEEP_ALL, ChannelLog, Entry

#: Channels whose last sequence number is remembered after their entries have gone.
REMEMBERED_CHANNELS: Final = 4096


@dataclasses.dataclass(frozen=True, slots=True)
class Resumption:
    """Where a client goes on.

    Attributes:
        cursor: The number after which it reads.
        reset: Why something is gone: `"epoch"`, `"history"` or `"unknown_id"`; None if nothing is.
    """

    cursor: int
    reset: str | None = None


class Log:
    """All channels of one life of a broker.

    Attributes:
        epoch: Names this life.
        seq: The number of the last entry of any channel; 0 before the first.
        floor: The highest last number among the channels that were forgotten: one that isn't known may have had entries up to it.
        size: The bytes that all entries take, about.
        find: Gives the ring of a channel, by its name; None if there is none.
    """

    def __init__(self, epoch: str, *, history: int, history_seconds: float, history_bytes: int) -> None:
        """Begins a life.

        Args:
            epoch: Twelve random hexadecimal digits.
            history: Entries that a channel keeps, unless `limit` says otherwise for it.
            history_seconds: Seconds that an entry is kept.
            history_bytes: Bytes that all entries may take; the channels that were published to least recently give way first.
        """
        self.epoch = epoch
        self.seq = 0
        self.floor = 0
        self.size = 0
        self._limit = history
        self._seconds = history_seconds
        self._bytes = history_bytes
        self._channels: dict[str, ChannelLog] = {}
        self.find: Callable[[str], ChannelLog | None] = self._channels.get
        # Those that have entries, in the order in which they last got one, or were loaded: in which they expire and give way.
        self._filled: collections.OrderedDict[str, ChannelLog] = collections.OrderedDict()
        # The last of them; None where that isn't known.
        self._newest: ChannelLog | None = None
        # Those that keep all and haven't ended, which do neither; in the order of their last entry too.
        self._whole: collections.OrderedDict[str, ChannelLog] = collections.OrderedDict()
        # Of channels without a ring: the number of the last entry, and whether that was an end.
        self._remembered: collections.OrderedDict[str, tuple[int, bool]] = collections.OrderedDict()
        # The rings that may hold batches, which don't count against the bytes: they live until the next `expire`.
        self._batched: set[ChannelLog] = set()

    def __len__(self) -> int:
        return len(self._channels)

    def __contains__(self, channel: str) -> bool:
        return channel in self._channels

    def append(
        self,
        channel: str,
        frame: bytes,
        now: float,
        name: str | None = None,
        user_id: str | None = None,
        is_end: bool = False,
        history: int | None = None,
    ) -> Entry:
        """Keeps an event under the number after `seq`.

        Args:
            channel: The channel's name.
            frame: The encoded event, the line of its id included: that of the number, or the one that its publisher chose.
            now: The second.
            name: The event's name.
            user_id: The id that the publisher chose.
            is_end: Whether the event closes the channel.
            history: Entries that the channel keeps from here on, if it differs from the others.

        Returns:
            The entry.
        """
        seq = self.seq + 1
        log = self._channels.get(channel)
        if log is None:
            log = self.channel(channel)
        entry = Entry(seq, log.last, channel, frame, name, user_id, is_end, now)
        self.seq = seq
        if history is not None:
            log.limit = history
            self._whole.pop(channel, None)
        log.append(entry)
        if log.limit >= KEEP_ALL:
            self._keep(log, now)
            return entry
        oldest = now - self._seconds
        while log.entries[0].at < oldest:
            log.drop_first()
        self.size += log.size - log.counted
        log.counted = log.size
        if self._newest is not log:
            self._newest = self._filled[channel] = log
            self._filled.move_to_end(channel)
        if self.size > self._bytes:
            self._make_room()
        return entry

    def feed(self, entry: Entry, now: float) -> bool:
        """Takes an entry that a store has numbered into its channel's ring. Returns whether there is one, and it is news to it."""
        log = self._channels.get(entry.channel)
        if log is None or entry.seq <= log.last:
            return False
        self.seq = max(self.seq, entry.seq)
        self._place(entry, log, now)
        return bool(log.entries)

    def load(
        self, name: str, entries: Sequence[Entry], *, last: int, ended: bool, limit: int, is_whole: bool, now: float
    ) -> ChannelLog:
        """Takes over what a store has of a channel: into a new ring, or before the entries of the one that there is.

        Args:
            name: The channel's.
            entries: An unbroken chain up to `last`.
            last: The number of the channel's last entry ever.
            ended: Whether that closed the channel.
            limit: Entries that the channel keeps.
            is_whole: Whether `entries` are all that the store retains.
            now: The second.
        """
        log = self._channels.get(name)
        if log is None:
            log = self._channels[name] = ChannelLog(name, last, limit, ended=ended, batched=self._batched)
        log.limit = limit
        log.prepend(entries)
        log.is_whole = log.is_whole or is_whole
        self._keep(log, now)
        return log

    def skip(self, log: ChannelLog, last: int, *, ended: bool, limit: int) -> None:
        """Says that a channel, which keeps so many entries, had some up to `last` that nobody can read any more."""
        self._uncount(log)
        log.limit = limit
        log.skip_to(last, ended=ended)

    def renew(self, epoch: str, seq: int) -> None:
        """Begins another life, in which a store's log stands at `seq`; what rings there were are of the last one."""
        self.epoch = epoch
        self.seq = seq
        self.floor = self.size = 0
        # New ones: who still reads of the last life keeps its rings.
        self._channels = {}
        self.find = self._channels.get
        self._filled = collections.OrderedDict()
        self._newest = None
        self._whole = collections.OrderedDict()
        self._remembered = collections.OrderedDict()
        self._batched = set()

    def drop(self, channel: str) -> None:
        """Lets go of a ring that is no longer fed."""
        log = self._channels.pop(channel, None)
        if log is not None:
            self._uncount(log)

    def channel(self, name: str) -> ChannelLog:
        """The ring of a channel, made if there is none."""
        log = self._channels.get(name)
        if log is None:
            last, ended = self._remembered.pop(name, (self.floor, False))
            log = self._channels[name] = ChannelLog(name, last, self._limit, ended=ended, batched=self._batched)
        return log

    def capacity(self, ring: ChannelLog) -> int:
        """How many entries a ring may be expected to keep: its limit, or what it has if the bytes are more than half used."""
        if ring.limit >= KEEP_ALL or self.size * 2 < self._bytes:
            return ring.limit
        return max(len(ring.entries), 1)

    @property
    def is_idle(self) -> bool:
        """Whether there are no entries that can become too old."""
        return not self.size and not self._whole

    def names(self) -> list[str]:
        """The channels that have a ring."""
        return list(self._channels)

    @property
    def position(self) -> EventId:
        """The head: after it lies what is yet to be published."""
        return EventId(self.epoch, self.seq)

    def resume(self, channels: Collection[str], last_event_id: str) -> Resumption:
        """Where a client goes on that says it saw `last_event_id` last.

        After a reset it reads what is retained: of another life or an unknown id all, of this one what lies after its position.
        """
        position = EventId.parse(last_event_id)
        if position is None:
            found = [entry.seq for entry in self._entries(channels) if entry.user_id == last_event_id]
            if len(found) != 1:
                return Resumption(0, "unknown_id")
            position = EventId(self.epoch, found[0])
        if position.epoch != self.epoch or position.seq > self.seq:
            # A position beyond the head is one of another life too, whatever it calls itself.
            return Resumption(0, "epoch")
        missing = any(self.missing_after(channel, position.seq) for channel in channels)
        return Resumption(position.seq, "history" if missing else None)

    def missing_after(self, channel: str, cursor: int) -> int:
        """The number of the newest entry of a channel after `cursor` that was, or may have been, and can't be read; 0 if none."""
        log = self._channels.get(channel)
        if log is not None:
            return log.missing_after(cursor)
        last, _ = self._remembered.get(channel, (self.floor, False))
        return last if last > cursor else 0

    def merged(self, channels: Iterable[str], cursor: int) -> Iterator[Entry]:
        """The entries of several channels after `cursor`, in the order of publication."""
        logs = [log for name in channels if (log := self._channels.get(name)) is not None]
        return heapq.merge(*[log.after(cursor) for log in logs], key=operator.attrgetter("seq"))

    def hold(self, channel: str) -> ChannelLog:
        """The ring of a channel that somebody listens to from here on: it stays until `release`."""
        log = self.channel(channel)
        log.held = True
        return log

    def release(self, channel: str) -> None:
        """Nobody listens to the channel any more."""
        if (log := self._channels.get(channel)) is not None:
            log.held = False
            if not log.entries:
                self._forget(log)

    def expire(self, now: float) -> None:
        """Forgets the entries of channels whose last one is too old."""
        for batched in self._batched:
            batched.forget_batches()
        self._batched.clear()
        oldest = now - self._seconds
        while self._filled:
            log = next(iter(self._filled.values()))
            if log.entries[-1].at >= oldest:
                return
            self._empty(log)

    def silent(self, oldest: float) -> list[str]:
        """The channels that keep all, haven't ended, and have had no entry since the second `oldest`."""
        return [log.name for log in itertools.takewhile(lambda log: log.entries[-1].at < oldest, self._whole.values())]

    def give_up(self, channel: str) -> None:
        """Forgets the entries of a channel, whatever it keeps."""
        if (log := self._channels.get(channel)) is not None:
            self._empty(log)

    def _place(self, entry: Entry, log: ChannelLog, now: float) -> None:
        if entry.history is not None:
            log.limit = entry.history
        log.append(entry)
        self._keep(log, now)

    def _keep(self, log: ChannelLog, now: float) -> None:
        """Counts what a ring has grown by, and sees to the bounds."""
        if log.limit < KEEP_ALL:
            oldest = now - self._seconds
            while log.entries and log.entries[0].at < oldest:
                log.drop_first()
        elif not log.ended:
            self._uncount(log)
            self._whole[log.name] = log
            return
        if not log.entries:
            self._uncount(log)
            return
        if self._whole:
            self._whole.pop(log.name, None)
        self.size += log.size - log.counted
        log.counted = log.size
        # What has been loaded too: whoever it was read for is about to read it, however old it is.
        self._newest = self._filled[log.name] = log
        self._filled.move_to_end(log.name)
        if self.size > self._bytes:
            self._make_room()

    def _uncount(self, log: ChannelLog) -> None:
        """Takes a ring from among those that have entries, which count against the bytes of all."""
        self._filled.pop(log.name, None)
        self._whole.pop(log.name, None)
        self._newest = None
        self.size -= log.counted
        log.counted = 0

    def _entries(self, channels: Iterable[str]) -> Iterator[Entry]:
        for name in dict.fromkeys(channels):
            if (log := self._channels.get(name)) is not None:
                yield from log.entries

    def _make_room(self) -> None:
        while self.size > self._bytes:
            log = next(iter(self._filled.values()))
            log.is_whole = False
            if len(log.entries) > 1:
                log.drop_first()
                self.size += log.size - log.counted
                log.counted = log.size
            elif len(self._filled) > 1:
                self._empty(log)
            else:
                # The last entry of all is on its way to its clients.
                return

    def _empty(self, log: ChannelLog) -> None:
        self._uncount(log)
        log.clear()
        if not log.held:
            self._forget(log)

    def _forget(self, log: ChannelLog) -> None:
        """Drops a ring. That it had entries is remembered, for some channels exactly, for the others by the floor."""
        del self._channels[log.name]
        if log.last <= self.floor:
            return
        self._remembered[log.name] = (log.last, log.ended)
        self._remembered.move_to_end(log.name)
        if len(self._remembered) > REMEMBERED_CHANNELS:
            _, (forgotten, _) = self._remembered.popitem(last=False)
            self.floor = max(self.floor, forgotten)
