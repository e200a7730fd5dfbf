"""The log of a broker's life: ids, the bounded ring of each channel, reading after a cursor, and knowing what is missing.

No IO, no clock, no lock: time is an argument, and the caller sees to it that one call runs at a time.
"""

from __future__ import annotations

import bisect
import collections
import dataclasses
import heapq
import itertools
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Final

from .decoder import EventDecoder
from .event import ServerSentEvent

_ID: Final = re.compile(r"([0-9a-f]{12})-(0|[1-9][0-9]{0,18})(-end)?")
_RUN_ID: Final = re.compile(r"([0-9a-f]{32})-(0|[1-9][0-9]{0,18})(-end)?")

#: Channels whose last sequence number is remembered after their entries have gone.
REMEMBERED_CHANNELS: Final = 4096
#: Bytes of the frames that are joined to one write; a single larger frame is a batch of its own.
BATCH_BYTES: Final = 128 * 1024
#: Batches that a ring keeps at the most, each for the clients at one cursor.
KEPT_BATCHES: Final = 8
#: Bytes that an entry takes besides its frame, about; counted, so that many small events are bounded too.
ENTRY_BYTES: Final = 200
#: Entries from the end of a ring within which a cursor is looked for one by one.
NEAR: Final = 64
#: The limit of a channel that keeps all its entries until it has ended, and then until the last is too old.
KEEP_ALL: Final = 1 << 30


@dataclasses.dataclass(frozen=True, slots=True)
class EventId:
    """A position: what `Last-Event-ID` says.

    Attributes:
        epoch: Twelve hexadecimal digits that name one unbroken life of a broker's log.
        seq: The number of an entry, counted over all channels of that life; 0 is before the first.
        final: Whether the stream that sent it had ended with it, for good.
    """

    epoch: str
    seq: int
    final: bool = False

    def __str__(self) -> str:
        return f"{self.epoch}-{self.seq}-end" if self.final else f"{self.epoch}-{self.seq}"

    @classmethod
    def parse(cls, text: str) -> EventId | None:
        """Reads an id of our own form; None for any other text."""
        match = _ID.fullmatch(text)
        return cls(match[1], int(match[2]), match[3] is not None) if match else None


@dataclasses.dataclass(frozen=True, slots=True)
class RunId:
    """A position in a resumable run: the ids of its events, which only those know who have seen one.

    Attributes:
        run: 32 random hexadecimal digits that name the run.
        number: That of an event of the run; 0 is before the first.
        final: Whether the run had ended with it.
    """

    run: str
    number: int
    final: bool = False

    def __str__(self) -> str:
        return f"{self.run}-{self.number}-end" if self.final else f"{self.run}-{self.number}"

    @classmethod
    def parse(cls, text: str) -> RunId | None:
        """Reads an id of this form; None for any other text."""
        match = _RUN_ID.fullmatch(text)
        return cls(match[1], int(match[2]), match[3] is not None) if match else None


class Entry:
    """One event of a channel, encoded once.

    Attributes:
        seq: Its number in the log.
        prev: The number of the entry before it in its channel.
        channel: The channel's name.
        frame: Its bytes, the id line included.
        name: The event's name, None for none.
        user_id: The id that its publisher chose, None for ours.
        is_end: Whether it closes its channel.
        at: The second at which it was appended, of whatever clock the log goes by.
        history: Entries that its channel keeps from it on, where a store says so with it; None leaves that as it is.
    """

    __slots__ = ("_event", "at", "channel", "frame", "history", "is_end", "name", "prev", "seq", "user_id")

    def __init__(
        self,
        seq: int,
        prev: int,
        channel: str,
        frame: bytes,
        name: str | None,
        user_id: str | None,
        is_end: bool,
        at: float,
        history: int | None = None,
    ) -> None:
        self.seq = seq
        self.prev = prev
        self.channel = channel
        self.frame = frame
        self.name = name
        self.user_id = user_id
        self.is_end = is_end
        self.at = at
        self.history = history
        self._event: ServerSentEvent | None = None

    @property
    def event(self) -> ServerSentEvent:
        """The event, as a client reads it; for filters."""
        if self._event is None:
            self._event = EventDecoder(max_event_bytes=len(self.frame)).feed(self.frame)[0]
        return self._event

    @property
    def size(self) -> int:
        """The bytes that it takes, about."""
        return len(self.frame) + ENTRY_BYTES

    @property
    def final_frame(self) -> bytes:
        """Its bytes as the last of a stream, with an id that says so. For an end, whose id is ours and stands in its first line."""
        return self.frame.replace(b"\n", b"-end\n", 1)


class Batch:
    """What lies after one cursor, joined: the same object for every client that is there.

    Attributes:
        data: The frames.
        count: How many they are.
        prev: The number of the entry before the first; above the cursor, entries between them are gone.
        last: The number of the last entry, which is the cursor afterwards.
        is_end: Whether the last entry closes its channel; its id is then a final one.
        at: The second at which the last entry was appended.
    """

    __slots__ = ("_chunk", "at", "count", "data", "is_end", "last", "prev")

    def __init__(self, entries: list[Entry]) -> None:
        frames = [entry.final_frame if entry.is_end else entry.frame for entry in entries]
        self.data = frames[0] if len(frames) == 1 else b"".join(frames)
        self.count = len(entries)
        self.prev = entries[0].prev
        self.last = entries[-1].seq
        self.is_end = entries[-1].is_end
        self.at = entries[-1].at
        self._chunk: bytes | None = None

    @property
    def chunk(self) -> bytes:
        """The frames as one HTTP/1.1 chunk, made once."""
        if self._chunk is None:
            self._chunk = b"%x\r\n%b\r\n" % (len(self.data), self.data)
        return self._chunk


class ChannelLog:
    """The ring of one channel: an unbroken chain, in which each entry's `prev` is the number of the one before it.

    Attributes:
        name: The channel's.
        last: The number of its last entry ever, or what stands for it where that isn't known; the cursor of who has all.
        limit: How many entries it keeps; `KEEP_ALL` for all, whatever their age and size, until it has ended.
        size: The bytes that they take, about.
        counted: Those of them that count against the bytes of all channels.
        ended: Whether the last entry closed the channel.
        held: Whether somebody listens: the ring stays then, though it be empty.
        is_whole: Whether it has all that a store, which other processes share, retains of the channel.
        timed: The number of the last entry that was taken to measure how long entries take, or that is too old for that.
    """

    __slots__ = (
        "_batched",
        "_batches",
        "counted",
        "ended",
        "entries",
        "held",
        "is_whole",
        "last",
        "limit",
        "name",
        "size",
        "timed",
    )

    def __init__(self, name: str, last: int, limit: int, *, ended: bool = False, batched: set[ChannelLog] | None = None) -> None:
        self.name = name
        self.last = last
        self.limit = limit
        self.size = 0
        self.counted = 0
        self.ended = ended
        self.held = False
        self.is_whole = False
        self.timed = last
        self._batched = batched
        self.entries: collections.deque[Entry] = collections.deque()
        self._batches: dict[int, Batch] = {}

    def append(self, entry: Entry) -> None:
        """Adds an entry; one that doesn't follow the last empties the ring first."""
        if entry.prev != self.last:
            self.clear()
        entries = self.entries
        entries.append(entry)
        size = self.size + len(entry.frame) + ENTRY_BYTES
        while len(entries) > self.limit:
            size -= len(entries.popleft().frame) + ENTRY_BYTES
        self.size = size
        self.last = entry.seq
        self.ended = entry.is_end
        if self._batches:
            self._batches = {}

    def prepend(self, entries: Iterable[Entry]) -> None:
        """Adds older entries, as many as there is room for, if the newest of them is the one before the first."""
        before = self.entries[0].prev if self.entries else self.last
        older = [entry for entry in entries if entry.seq <= before]
        if older and older[-1].seq == before:
            room = max(self.limit - len(self.entries), 0)
            for entry in reversed(older[-room:] if room else []):
                self.entries.appendleft(entry)
                self.size += entry.size
            self._batches = {}

    def skip_to(self, last: int, *, ended: bool) -> None:
        """Says that there were entries up to `last` that nobody can read any more."""
        self.clear()
        self.last = last
        self.ended = ended

    def drop_first(self) -> None:
        """Forgets the oldest entry."""
        self.size -= self.entries.popleft().size

    def clear(self) -> None:
        """Forgets all entries, not that they were there."""
        self.entries.clear()
        self.size = 0
        self._batches = {}

    def missing_after(self, cursor: int) -> int:
        """The number of the newest entry after `cursor` that was there and can't be read any more; 0 if there is none."""
        if cursor >= self.last:
            return 0
        # The ring is an unbroken chain: what is gone lies before its first entry.
        gone = self.entries[0].prev if self.entries else self.last
        return gone if gone > cursor else 0

    def after(self, cursor: int) -> list[Entry]:
        """The entries after `cursor`, oldest first."""
        return list(self._after(cursor))

    def joined(self, cursor: int) -> Batch | None:
        """The batch that was last made for `cursor`, if it still holds all; needs no lock."""
        return self._batches.get(cursor)

    def batch(self, cursor: int) -> Batch | None:
        """What lies after `cursor`, as much as goes into one write and not beyond an end; None if nothing does."""
        taken: list[Entry] = []
        size = 0
        for entry in self._after(cursor):
            size += len(entry.frame)
            if taken and size > BATCH_BYTES:
                break
            taken.append(entry)
            if entry.is_end:
                break
        if not taken:
            return None
        batch = Batch(taken)
        if len(self._batches) < KEPT_BATCHES:
            self._batches[cursor] = batch
            if self._batched is not None:
                self._batched.add(self)
        return batch

    def forget_batches(self) -> None:
        """Lets go of the batches that were made for clients at some cursors."""
        self._batches = {}

    def _after(self, cursor: int) -> Iterable[Entry]:
        entries = self.entries
        if len(entries) > NEAR and entries[-NEAR].seq > cursor:
            # Who reads much of a long ring does so in many batches: each passes over what came before at no cost to speak of.
            return itertools.islice(entries, bisect.bisect_right(entries, cursor, key=_number), None)
        found: list[Entry] = []
        for entry in reversed(entries):
            if entry.seq <= cursor:
                break
            found.append(entry)
        found.reverse()
        return found


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
        # Those that have entries, in the order of their last one: in which they expire and give way.
        self._filled: collections.OrderedDict[str, ChannelLog] = collections.OrderedDict()
        # Those that keep all and haven't ended, which do neither; in the order of their last entry too.
        self._whole: collections.OrderedDict[str, ChannelLog] = collections.OrderedDict()
        # Of channels without a ring: the number of the last entry, and whether that was an end.
        self._remembered: collections.OrderedDict[str, tuple[int, bool]] = collections.OrderedDict()
        # The rings that may hold batches, which don't count against the bytes: they live until the next `expire`.
        self._batched: set[ChannelLog] = set()
        self._id_line = f"id: {epoch}-".encode()

    def __len__(self) -> int:
        return len(self._channels)

    def __contains__(self, channel: str) -> bool:
        return channel in self._channels

    def append(
        self,
        channel: str,
        body: bytes,
        *,
        now: float,
        name: str | None = None,
        user_id: str | None = None,
        is_end: bool = False,
        history: int | None = None,
    ) -> Entry:
        """Numbers an event and keeps it.

        Args:
            channel: The channel's name.
            body: The encoded event: with its id line if the publisher chose an id, else without one.
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
        frame = b"%b%d\n%b" % (self._id_line, seq, body) if user_id is None else body
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
        filled = self._filled
        filled[channel] = log
        filled.move_to_end(channel)
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
        self._filled = collections.OrderedDict()
        self._whole = collections.OrderedDict()
        self._remembered = collections.OrderedDict()
        self._batched = set()
        self._id_line = f"id: {epoch}-".encode()

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

    def find(self, name: str) -> ChannelLog | None:
        """The ring of a channel; None if there is none."""
        return self._channels.get(name)

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
        return heapq.merge(*[log.after(cursor) for log in logs], key=_number)

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
        self._filled[entry.channel] = log
        self._filled.move_to_end(entry.channel)
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
        if log.name not in self._filled:
            self._filled[log.name] = log
            self._filled.move_to_end(log.name, last=False)
        if self.size > self._bytes:
            self._make_room()

    def _uncount(self, log: ChannelLog) -> None:
        """Takes a ring from among those that have entries, which count against the bytes of all."""
        self._filled.pop(log.name, None)
        self._whole.pop(log.name, None)
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


def _number(entry: Entry) -> int:
    return entry.seq
