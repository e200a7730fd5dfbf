"""One channel's entries, the bounded ring that keeps them, and the batches that are sent of it."""

from __future__ import annotations

import bisect
import collections
import itertools
import operator
from collections.abc import Iterable
from typing import Final

from .decoder import EventDecoder
from .event import ServerSentEvent

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


class Frames:
    """Frames that many clients get, whole.

    Attributes:
        data: The frames.
        chunk: The same as one HTTP/1.1 chunk; empty until `make_chunk` has made it.
    """

    __slots__ = ("chunk", "data")

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.chunk = b""

    def make_chunk(self) -> bytes:
        """Makes the chunk, once for all who send it; returns it."""
        self.chunk = b"%x\r\n%b\r\n" % (len(self.data), self.data)
        return self.chunk


class Batch(Frames):
    """What lies after one cursor, joined: the same object for every client that is there.

    Attributes:
        count: How many they are.
        prev: The number of the entry before the first; above the cursor, entries between them are gone.
        last: The number of the last entry, which is the cursor afterwards.
        is_end: Whether the last entry closes its channel; its id is then a final one.
        at: The second at which the last entry was appended.
    """

    __slots__ = ("at", "count", "is_end", "last", "prev")

    def __init__(self, entries: list[Entry]) -> None:
        frames = [entry.final_frame if entry.is_end else entry.frame for entry in entries]
        super().__init__(frames[0] if len(frames) == 1 else b"".join(frames))
        self.count = len(entries)
        self.prev = entries[0].prev
        self.last = entries[-1].seq
        self.is_end = entries[-1].is_end
        self.at = entries[-1].at


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
        batches: Those that were last made, each for who is at its cursor, while they hold all; to be looked at without a lock.
        timed: The number of the last entry that was taken to measure how long entries take, or that is too old for that.
    """

    __slots__ = (
        "_batched",
        "batches",
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
        self.batches: dict[int, Batch] = {}

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
        if self.batches:
            self.batches = {}

    def prepend(self, entries: Iterable[Entry]) -> None:
        """Adds older entries, as many as there is room for, if the newest of them is the one before the first."""
        before = self.entries[0].prev if self.entries else self.last
        older = [entry for entry in entries if entry.seq <= before]
        if older and older[-1].seq == before:
            room = max(self.limit - len(self.entries), 0)
            for entry in reversed(older[-room:] if room else []):
                self.entries.appendleft(entry)
                self.size += entry.size
            self.batches = {}

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
        self.batches = {}

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
        if len(self.batches) < KEPT_BATCHES:
            self.batches[cursor] = batch
            if self._batched is not None:
                self._batched.add(self)
        return batch

    def forget_batches(self) -> None:
        """Lets go of the batches that were made for clients at some cursors."""
        self.batches = {}

    def _after(self, cursor: int) -> Iterable[Entry]:
        entries = self.entries
        if len(entries) > NEAR and entries[-NEAR].seq > cursor:
            # Who reads much of a long ring does so in many batches: each passes over what came before at no cost to speak of.
            return itertools.islice(entries, bisect.bisect_right(entries, cursor, key=operator.attrgetter("seq")), None)
        found: list[Entry] = []
        for entry in reversed(entries):
            if entry.seq <= cursor:
                break
            found.append(entry)
        found.reverse()
        return found
