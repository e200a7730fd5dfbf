"""The log: ids, the ring of each channel, what may be gone, and that a reader is always told.

A naive model judges most of it: the plain list of everything that was ever published.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule, run_state_machine_as_test

import sseflask.log
from sseflask import EventDecoder, ServerSentEvent
from sseflask.log import REMEMBERED_CHANNELS, Log
from sseflask.position import EventId
from sseflask.ring import BATCH_BYTES, ENTRY_BYTES, KEEP_ALL, KEPT_BATCHES, NEAR, Batch, ChannelLog, Entry

EPOCH = "0123456789ab"
OTHER_EPOCH = "ba9876543210"


def new_log(*, history: int = 256, seconds: float = 300.0, size: int = 1 << 26) -> Log:
    """A log that begins its life."""
    return Log(EPOCH, history=history, history_seconds=seconds, history_bytes=size)


def put(log: Log, channel: str = "news", data: str = "x", *, now: float = 0.0, **options: Any) -> Entry:
    """Appends an event of some data."""
    event_id = options.get("user_id") or f"{log.epoch}-{log.seq + 1}"
    return log.append(channel, ServerSentEvent(data, id=event_id).encode(), now=now, **options)


def entry(seq: int, prev: int, size: int = 0, *, is_end: bool = False) -> Entry:
    """An entry whose frame has an id line, a data line of `size` bytes and a blank line."""
    frame = b"id: %b-%d\ndata: %b\n\n" % (EPOCH.encode(), seq, b"x" * size)
    return Entry(seq, prev, "news", frame, None, None, is_end, 0.0)


def seqs(entries: Iterable[Entry]) -> list[int]:
    """The numbers of some entries."""
    return [found.seq for found in entries]


def kept(log: Log, *channels: str, after: int = 0) -> list[int]:
    """The numbers of the entries that can be read."""
    return seqs(log.merged(channels or ("news",), after))


def at(seq: int) -> str:
    """The id of an entry in this life."""
    return str(EventId(EPOCH, seq))


class TestEventId:
    """Ids of our own form."""

    @given(
        st.text("0123456789abcdef", min_size=12, max_size=12),
        st.integers(0, 10**19 - 1),
        st.booleans(),
    )
    def test_round_trip(self, epoch: str, seq: int, final: bool) -> None:
        """Each id is read as what it was written from."""
        position = EventId(epoch, seq, final)
        assert EventId.parse(str(position)) == position

    def test_form(self) -> None:
        """An id is its epoch and its number, and a mark where it is a final one."""
        assert str(EventId(EPOCH, 7)) == "0123456789ab-7"
        assert str(EventId(EPOCH, 7, final=True)) == "0123456789ab-7-end"

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "-",
            EPOCH,
            f"{EPOCH}-",
            f"{EPOCH}-01",
            f"{EPOCH}-00",
            f"{EPOCH}-+1",
            f"{EPOCH}--1",
            f"{EPOCH}-1_0",
            f"{EPOCH}-1.0",
            f"{EPOCH}-\u0661",
            f"{EPOCH}-{10**19}",
            f"{EPOCH}-{'9' * 5000}",
            f"{EPOCH}-1\n",
            f" {EPOCH}-1",
            f"{EPOCH}-1 ",
            f"{EPOCH}-1-END",
            f"{EPOCH}-1-end-end",
            f"{EPOCH}-end",
            f"{EPOCH[1:]}-1",
            f"0{EPOCH}-1",
            f"{EPOCH.upper()}-1",
            "0123456789ag-1",
            "a1",
            "\u2028",
        ],
    )
    def test_other_text(self, text: str) -> None:
        """Any other text is no id of ours: neither leading zeros, nor numbers that no log reaches, nor other digits."""
        assert EventId.parse(text) is None

    @given(st.text(st.sampled_from("0123456789abcdef-end \n"), max_size=30))
    def test_one_text_for_each_position(self, text: str) -> None:
        """What is read as an id is written as the same text: no two texts name one position."""
        position = EventId.parse(text)
        assert position is None or str(position) == text

    def test_huge_number(self) -> None:
        """The largest number that is read lies beyond every head, and is told so."""
        log = new_log()
        put(log)
        assert log.resume(["news"], f"{EPOCH}-{10**19 - 1}").reset == "epoch"
        assert log.resume(["news"], f"{EPOCH}-{10**19}").reset == "unknown_id"


class TestEntry:
    """One event of a channel."""

    def test_frame(self) -> None:
        """The event is made of the frame."""
        noted = ServerSentEvent("two\nlines", event="note", id=at(1))
        found = new_log().append("news", noted.encode(), now=0.0, name="note")
        assert found.frame == noted.encode()
        assert found.event == noted

    def test_user_id(self) -> None:
        """An id of the publisher's own stays the only one in the frame."""
        found = put(new_log(), user_id="order 7")
        assert found.frame == b"id: order 7\ndata: x\n\n"
        assert found.event.id == "order 7"

    def test_final_frame(self) -> None:
        """The final mark goes into the id line alone."""
        found = put(new_log(), data="a\nb", is_end=True)
        assert found.final_frame == b"id: 0123456789ab-1-end\ndata: a\ndata: b\n\n"

    def test_event_with_large_data(self) -> None:
        """A filter sees all of an event that is larger than a decoder takes from strangers."""
        assert put(new_log(), data="x" * 3_000_000).event.data == "x" * 3_000_000


class TestChain:
    """The ring of one channel is an unbroken chain (DELIVERY 2)."""

    def test_hole(self) -> None:
        """A process that listened, stopped and listened again keeps only what came after the hole: 45, 50, 81."""
        ring = ChannelLog("news", 40, 256)
        ring.append(entry(45, 40))
        ring.append(entry(50, 45))
        assert not ring.missing_after(40)
        ring.append(entry(81, 77))
        assert seqs(ring.entries) == [81]
        assert ring.size == ring.entries[0].size
        assert [ring.missing_after(cursor) for cursor in range(100)] == [77] * 77 + [0] * 23
        batch = ring.batch(50)
        assert batch is not None and batch.prev == 77

    def test_batches_of_before(self) -> None:
        """Joined frames of before a hole are forgotten with it."""
        ring = ChannelLog("news", 40, 256)
        ring.append(entry(45, 40))
        ring.batch(40)
        ring.append(entry(81, 77))
        assert ring.batches.get(40) is None

    def test_first_of_an_unknown_channel(self) -> None:
        """A channel that isn't known starts with `prev = floor`, and floor alone is what may be missed."""
        log = new_log()
        log.seq, log.floor = 30, 20
        found = put(log)
        assert (found.seq, found.prev) == (31, 20)
        assert [log.missing_after("news", cursor) for cursor in range(40)] == [20] * 20 + [0] * 20


class TestLastNumbers:
    """The last number of a channel outlives its entries (DELIVERY 3)."""

    def test_after_expiry(self) -> None:
        """Whoever had all of a channel whose entries have expired misses nothing, whoever hadn't is told."""
        log = new_log(seconds=10)
        put(log, "other")
        put(log, now=1)
        put(log, now=2)
        log.expire(12.5)
        assert len(log) == 0 and log.size == 0
        assert log.resume(["news"], at(2)).reset == "history"
        assert log.resume(["news"], at(3)).reset is None
        assert put(log, now=13).prev == 3

    def test_after_eviction(self) -> None:
        """The same holds where bytes, not age, made the entries go."""
        log = new_log(size=2 * ENTRY_BYTES)
        put(log, "old", "x" * 50)
        put(log, "new", "x" * 150)
        assert "old" not in log
        assert log.resume(["old"], at(0)).reset == "history"
        assert log.resume(["old"], at(1)).reset is None

    def test_unknown_channel(self) -> None:
        """A channel that nobody has ever published to can't have lost anything."""
        log = new_log(seconds=10)
        put(log)
        log.expire(100)
        assert log.floor == 0
        assert log.resume(["other"], at(0)).reset is None

    def test_bounded(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The table is bounded, and forgetting a channel raises the floor to its last number, below which all others are told."""
        monkeypatch.setattr(sseflask.log, "REMEMBERED_CHANNELS", 2)
        log = new_log(seconds=10)
        for number, channel in enumerate("abcd"):
            put(log, channel, now=number)
        for now in (10.5, 11.5):
            log.expire(now)
        assert log.floor == 0
        log.expire(12.5)
        assert log.floor == 1
        log.expire(13.5)
        assert log.floor == 2
        # Known exactly.
        assert [seq for seq in range(5) if log.resume(["d"], at(seq)).reset] == [0, 1, 2, 3]
        # Forgotten, and never heard of: they may have had entries up to the floor.
        assert [seq for seq in range(5) if log.resume(["a"], at(seq)).reset] == [0, 1]
        assert [seq for seq in range(5) if log.resume(["never"], at(seq)).reset] == [0, 1]

    def test_size_of_the_table(self) -> None:
        """As many channels as the table has are known exactly, one more is forgotten."""
        log = new_log(seconds=10)
        for number in range(REMEMBERED_CHANNELS):
            put(log, f"c{number}")
        log.expire(11)
        assert log.floor == 0
        put(log, "last", now=20)
        log.expire(31)
        assert log.floor == 1

    def test_floor_never_falls(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A channel that is forgotten later than another, though its last number is lower, doesn't lower the floor."""
        monkeypatch.setattr(sseflask.log, "REMEMBERED_CHANNELS", 1)
        log = new_log(seconds=10)
        log.hold("quiet")
        put(log, "quiet", now=0)
        put(log, "loud", now=1)
        log.expire(12)
        log.release("quiet")
        assert log.floor == 2
        put(log, "third", now=20)
        log.expire(31)
        assert log.floor == 2
        assert log.resume(["loud"], at(1)).reset == "history"

    def test_held(self) -> None:
        """The ring of a channel that somebody listens to stays, though it be empty, until nobody does."""
        log = new_log(seconds=10)
        ring = log.hold("news")
        put(log)
        log.expire(11)
        assert log.find("news") is ring and not ring.entries and ring.last == 1
        assert put(log, now=12).prev == 1 and list(ring.entries)
        log.expire(23)
        log.release("news")
        assert "news" not in log
        assert log.resume(["news"], at(1)).reset == "history"
        log.release("news")

    def test_released_with_entries(self) -> None:
        """A ring that still has entries when the last listener leaves stays until they have expired."""
        log = new_log(seconds=10)
        log.hold("news")
        put(log)
        log.release("news")
        assert kept(log) == [1]
        log.expire(11)
        assert log.names() == []

    def test_end_is_remembered(self) -> None:
        """That a channel has closed is remembered as long as its last number is, and forgotten with its next use."""
        log = new_log(seconds=10)
        put(log, is_end=True)
        log.expire(11)
        assert "news" not in log
        assert log.hold("news").ended
        log.release("news")
        assert log.hold("news").ended
        put(log, now=20)
        assert not log.hold("news").ended

    def test_used_and_gone(self) -> None:
        """Channels that were held and never published to leave nothing behind."""
        log = new_log()
        for number in range(10_000):
            log.hold(f"c{number}")
            log.release(f"c{number}")
        assert len(log) == 0 and log.floor == 0


class TestResume:
    """Where a client goes on (DELIVERY 4)."""

    def test_exactly(self) -> None:
        """Each position from which all that follows can be read is gone on from, without a reset."""
        log = new_log(history=3)
        for number in range(6):
            put(log, "ab"[number % 2])
        for position in range(7):
            found = log.resume(["a", "b"], at(position))
            assert (found.cursor, found.reset) == (position, None)
            assert kept(log, "a", "b", after=position) == list(range(position + 1, 7))

    def test_gap(self) -> None:
        """A position before something that is gone is reset and reads what is left."""
        log = new_log(history=3)
        for _ in range(5):
            put(log)
        assert [log.resume(["news"], at(position)).reset for position in range(6)] == ["history", "history", *[None] * 4]
        assert log.resume(["news"], at(1)).cursor == 1

    def test_gap_in_one_of_several(self) -> None:
        """Something gone in one channel resets a client of several, not one of the others."""
        log = new_log(history=3)
        put(log, "quiet")
        for _ in range(5):
            put(log, "loud")
        assert log.resume(["quiet", "loud"], at(1)).reset == "history"
        assert log.resume(["quiet"], at(0)).reset is None

    @pytest.mark.parametrize("position", [f"{OTHER_EPOCH}-1", f"{OTHER_EPOCH}-0", f"{EPOCH}-3", f"{OTHER_EPOCH}-2-end"])
    def test_other_life(self, position: str) -> None:
        """A position of another life, and one beyond the head, is reset, and reads all that is retained."""
        log = new_log()
        put(log)
        put(log)
        found = log.resume(["news"], position)
        assert (found.cursor, found.reset) == (0, "epoch")

    def test_head(self) -> None:
        """The head is a position: of a log without entries too."""
        log = new_log()
        assert str(log.position) == at(0)
        assert log.resume(["news"], at(0)).reset is None
        put(log)
        assert str(log.position) == at(1)
        assert log.resume(["news"], at(1)).reset is None

    def test_own_id(self) -> None:
        """A publisher's own id is found among the channels asked for, and stands for its entry's position."""
        log = new_log()
        put(log)
        put(log, user_id="mine")
        put(log)
        found = log.resume(["other", "news"], "mine")
        assert (found.cursor, found.reset) == (2, None)
        assert log.resume(["other"], "mine").reset == "unknown_id"

    @pytest.mark.parametrize("asked", ["gone", "twice", "never", "0"])
    def test_unknown_own_id(self, asked: str) -> None:
        """An own id that has gone, was used twice or never existed is reset, and reads all that is retained."""
        log = new_log(history=3)
        for own in ("gone", "twice", None, "twice"):
            put(log, user_id=own)
        found = log.resume(["news"], asked)
        assert (found.cursor, found.reset) == (0, "unknown_id")

    def test_own_id_in_two_channels(self) -> None:
        """One id in two of the channels asked for names no position; in one of them it does, however often that is named."""
        log = new_log()
        put(log, "a", user_id="mine")
        put(log, "b", user_id="mine")
        assert log.resume(["a", "b"], "mine").reset == "unknown_id"
        assert log.resume(["b", "b"], "mine").cursor == 2

    def test_own_id_with_a_gap_elsewhere(self) -> None:
        """An own id that is found is reset like any other position where another channel has lost what came after it."""
        log = new_log(history=3)
        put(log, "quiet", user_id="mine")
        for _ in range(5):
            put(log, "loud")
        assert log.resume(["quiet"], "mine").reset is None
        found = log.resume(["quiet", "loud"], "mine")
        assert (found.cursor, found.reset) == (1, "history")


class TestBatch:
    """What lies after a cursor, as one write."""

    def test_joined(self) -> None:
        """A batch is the frames after a cursor, one after the other."""
        ring = ChannelLog("news", 0, 256)
        entries = [entry(seq, seq - 1, seq) for seq in range(1, 6)]
        for one in entries:
            ring.append(one)
        for cursor in range(5):
            batch = ring.batch(cursor)
            assert batch is not None
            assert batch.data == b"".join(one.frame for one in entries[cursor:])
            assert (batch.count, batch.prev, batch.last, batch.is_end) == (5 - cursor, cursor, 5, False)
        assert ring.batch(5) is None

    def test_single_frame(self) -> None:
        """One event that waits is the entry's own bytes, not a copy."""
        ring = ChannelLog("news", 0, 256)
        ring.append(entry(1, 0))
        batch = ring.batch(0)
        assert batch is not None and batch.data is ring.entries[0].frame

    def test_shared(self) -> None:
        """All clients at one cursor get one object, until something follows."""
        ring = ChannelLog("news", 0, 256)
        ring.append(entry(1, 0))
        ring.append(entry(2, 1))
        assert ring.batches.get(0) is None
        batch = ring.batch(0)
        assert ring.batches.get(0) is batch and ring.batches.get(1) is None
        ring.append(entry(3, 2))
        assert ring.batches.get(0) is None

    def test_kept(self) -> None:
        """No more than a few batches are kept."""
        ring = ChannelLog("news", 0, 256)
        for seq in range(1, 101):
            ring.append(entry(seq, seq - 1))
        for cursor in range(100):
            assert ring.batch(cursor) is not None
        assert sum(ring.batches.get(cursor) is not None for cursor in range(100)) == KEPT_BATCHES

    def test_bounded(self) -> None:
        """A batch has at most so many bytes; the next begins where it ends."""
        ring = ChannelLog("news", 0, 256)
        for seq in range(1, 41):
            ring.append(entry(seq, seq - 1, 10_000))
        cursor, data = 0, b""
        while (batch := ring.batch(cursor)) is not None:
            assert len(batch.data) <= BATCH_BYTES
            assert batch.prev == cursor
            cursor, data = batch.last, data + batch.data
        assert data == b"".join(one.frame for one in ring.entries)

    def test_one_larger_frame(self) -> None:
        """A frame that is larger than a batch goes alone."""
        ring = ChannelLog("news", 0, 256)
        for seq, size in enumerate((10, 2 * BATCH_BYTES, 10), 1):
            ring.append(entry(seq, seq - 1, size))
        batches = [ring.batch(cursor) for cursor in range(3)]
        assert [batch.count for batch in batches if batch is not None] == [1, 1, 1]

    def test_end(self) -> None:
        """A batch goes no further than an end, which bears the final mark; what a new use of the name adds is another batch."""
        ring = ChannelLog("news", 0, 256)
        for one in (entry(1, 0), entry(2, 1, is_end=True), entry(3, 2), entry(4, 3, is_end=True)):
            ring.append(one)
        first = ring.batch(0)
        assert first is not None and first.is_end and first.last == 2
        assert first.data == b"id: 0123456789ab-1\ndata: \n\nid: 0123456789ab-2-end\ndata: \n\n"
        second = ring.batch(2)
        assert second is not None and second.is_end and second.last == 4
        assert ring.ended

    def test_chunk(self) -> None:
        """A chunk is the data between its length and a line end; nothing is made of it before it is asked for."""
        batch = Batch([entry(1, 0, 20), entry(2, 1, 20)])
        assert batch.chunk == b""
        chunk = batch.make_chunk()
        length, _, rest = chunk.partition(b"\r\n")
        assert int(length, 16) == len(batch.data)
        assert rest == batch.data + b"\r\n"
        assert batch.chunk is chunk


class TestBounds:
    """What the history is bounded by."""

    def test_count(self) -> None:
        """A channel keeps so many entries, or as many as it is told with the last publish that says so."""
        log = new_log(history=4)
        for _ in range(6):
            put(log)
        assert kept(log) == [3, 4, 5, 6]
        put(log, history=2)
        assert kept(log) == [6, 7]
        put(log)
        assert kept(log) == [7, 8]
        for _ in range(5):
            put(log, history=5)
        assert kept(log) == [9, 10, 11, 12, 13]

    def test_age(self) -> None:
        """Entries that are too old go, with the next one or with `expire`, whichever comes first."""
        log = new_log(seconds=10)
        put(log, now=0)
        put(log, now=5)
        put(log, now=10.5)
        assert kept(log) == [2, 3]
        log.expire(20.4)
        assert kept(log)[-1] == 3
        log.expire(20.6)
        assert kept(log) == []

    def test_bytes(self) -> None:
        """The channels that were published to least recently give way first, oldest entries first."""
        size = ENTRY_BYTES + len(entry(1, 0, 100).frame)
        log = new_log(size=6 * size)
        for channel in "aabbaacc":
            put(log, channel, "x" * 100)
        assert log.size <= 6 * size
        assert {channel: kept(log, channel) for channel in "abc"} == {"a": [1, 2, 5, 6], "b": [], "c": [7, 8]}
        assert log.names() == ["a", "c"]
        put(log, "c", "x" * 100)
        assert {channel: kept(log, channel) for channel in "ac"} == {"a": [2, 5, 6], "c": [7, 8, 9]}

    @pytest.mark.parametrize("older", [0, 2])
    def test_loaded(self, older: int) -> None:
        """What has just been read of a store gives way last, also where the ring had a part of it: a client waits for it."""
        size = ENTRY_BYTES + len(entry(1, 0, 100).frame)
        log = new_log(size=6 * size)
        asked = [Entry(seq, seq - 1, "asked", entry(seq, 0, 100).frame, None, None, False, 0.0) for seq in (1, 2, 3)]
        log.seq = 3
        if older:
            log.load("asked", asked[older:], last=3, ended=False, limit=8, is_whole=False, now=0)
        for channel in "abab":
            put(log, channel, "x" * 100)
        log.load("asked", asked[: older or 3], last=3, ended=False, limit=8, is_whole=True, now=0)
        assert {channel: kept(log, channel) for channel in ("asked", "a", "b")} == {"asked": [1, 2, 3], "a": [6], "b": [5, 7]}
        assert log.find("asked").is_whole  # type: ignore[union-attr]
        # The next one that is published to comes after it again.
        put(log, "a", "x" * 100)
        put(log, "b", "x" * 100)
        assert {channel: kept(log, channel) for channel in ("asked", "a", "b")} == {"asked": [2, 3], "a": [6, 8], "b": [7, 9]}

    def test_small_events_count(self) -> None:
        """Events of a byte can't fill more memory than the bound: what an entry takes besides its frame is counted."""
        log = new_log(history=10**6, size=100 * ENTRY_BYTES)
        for number in range(1000):
            put(log, f"c{number % 7}")
        assert len(kept(log, *(f"c{number}" for number in range(7)))) < 100
        assert log.size <= 100 * ENTRY_BYTES

    def test_last_of_all(self) -> None:
        """An event larger than the whole history is still there for who listens."""
        log = new_log(size=1000)
        put(log, "old")
        put(log, "large", "x" * 5000)
        assert kept(log, "old", "large") == [2]
        put(log, "large")
        assert kept(log, "large") == [3]

    def test_size_is_exact(self) -> None:
        """However entries go, what is counted is what is there."""
        generator = random.Random(7)
        log = new_log(history=5, seconds=20, size=40 * ENTRY_BYTES)
        for now in range(2000):
            put(log, generator.choice("abcdefgh"), "x" * generator.randrange(400), now=now)
            if generator.random() < 0.05:
                log.expire(now)
            assert log.size == sum(one.size for one in log.merged("abcdefgh", 0))


class TestKeepAll:
    """Channels that keep all until they have ended (DELIVERY 24)."""

    def test_bounds(self) -> None:
        """Neither the number of its entries, nor their age, nor their bytes make any of them go, or those of others."""
        log = new_log(history=3, seconds=10, size=5 * (ENTRY_BYTES + 100))
        put(log, "run", history=KEEP_ALL)
        for now in range(1, 100):
            put(log, "run", "x" * 50, now=now)
            put(log, "plain", "x" * 50, now=now)
            log.expire(now)
        assert len(kept(log, "run")) == 100 and len(kept(log, "plain")) == 3
        assert log.size == sum(one.size for one in log.merged(["plain"], 0))
        log.expire(200)
        assert len(kept(log, "run")) == 100 and kept(log, "plain") == [] and log.size == 0
        assert log.resume(["run"], at(0)).reset is None

    def test_after_the_end(self) -> None:
        """When it has ended all its entries stay until the last is too old, and count against the bytes of all."""
        log = new_log(history=3, seconds=10)
        for now in range(20):
            put(log, "run", now=now, history=KEEP_ALL)
        assert log.size == 0 and not log.is_idle
        put(log, "run", now=20, is_end=True)
        assert log.size == sum(one.size for one in log.merged(["run"], 0))
        log.expire(29.5)
        assert len(kept(log, "run")) == 21
        log.expire(30.5)
        assert kept(log, "run") == [] and log.size == 0 and log.is_idle
        assert log.resume(["run"], at(20)).reset == "history"
        assert log.resume(["run"], at(21)).reset is None

    def test_gives_way_after_the_end(self) -> None:
        """What has ended gives way to bytes like others, its oldest entries first."""
        log = new_log(size=20 * (ENTRY_BYTES + 100))
        for number in range(40):
            put(log, "run", "x" * 50, history=KEEP_ALL, is_end=number == 39)
        left = kept(log, "run")
        assert 10 < len(left) < 30 and left[-1] == 40
        assert log.size <= 20 * (ENTRY_BYTES + 100)

    def test_published_to_after_its_end(self) -> None:
        """One that is published to after its end keeps all again."""
        log = new_log(seconds=10)
        put(log, "run", history=KEEP_ALL)
        put(log, "run", is_end=True)
        put(log, "run")
        log.expire(100)
        assert kept(log, "run") == [1, 2, 3] and log.size == 0

    def test_a_limit_again(self) -> None:
        """One that is given a limit is one like any other, and the other way round."""
        log = new_log(seconds=10)
        for number in range(30):
            put(log, "run", history=KEEP_ALL if number % 10 == 0 else 5 if number % 10 == 5 else None)
            assert log.silent(1.0) == (["run"] if number % 10 < 5 else [])
            assert log.size == (0 if number % 10 < 5 else sum(one.size for one in log.merged(["run"], 0)))
        assert len(kept(log, "run")) == 5
        log.expire(11)
        assert log.is_idle and log.names() == []

    def test_fed(self) -> None:
        """An entry that a store numbered tells what its channel keeps; what is counted is right however many come."""
        log = new_log(history=3, seconds=10)
        log.load("run", [], last=0, ended=False, limit=3, is_whole=True, now=0)
        log.hold("run")
        one = entry(1, 0)
        told = Entry(1, 0, "run", one.frame, None, None, False, 0.0, KEEP_ALL)
        assert log.feed(told, 0)
        for seq in range(2, 50):
            assert log.feed(Entry(seq, seq - 1, "run", one.frame, None, None, False, 0.0), seq)
        assert len(kept(log, "run")) == 49 and log.size == 0
        assert log.feed(Entry(50, 49, "run", one.frame, None, None, True, 50.0), 50)
        assert log.size == 50 * one.size
        log.drop("run")
        assert log.size == 0 and log.is_idle

    @pytest.mark.parametrize("ended", [False, True])
    def test_loaded(self, ended: bool) -> None:
        """A ring that is loaded with all that a store has of a run has all of it, old as it is."""
        log = new_log(history=3, seconds=10)
        entries = [Entry(seq, seq - 1, "run", b"data\n\n", None, None, ended and seq == 500, 0.1 * seq) for seq in range(1, 501)]
        ring = log.load("run", entries, last=500, ended=ended, limit=KEEP_ALL, is_whole=True, now=55)
        assert len(ring.entries) == 500 and ring.is_whole
        assert log.size == (ring.size if ended else 0)
        log.expire(61)
        assert len(kept(log, "run")) == (0 if ended else 500)

    @pytest.mark.parametrize("limit", [5, KEEP_ALL])
    def test_skipped(self, limit: int) -> None:
        """A ring whose entries can't be read any more doesn't count, and nobody looks for its age."""
        log = new_log(seconds=10)
        put(log, "run", history=limit)
        ring = log.hold("run")
        log.skip(ring, 7, ended=False, limit=3)
        assert (log.size, ring.limit, ring.last) == (0, 3, 7)
        assert log.is_idle and log.silent(100) == []
        log.expire(100)
        assert log.resume(["run"], at(1)).reset == "history"

    def test_silent(self) -> None:
        """Those that have had no entry for long are named, longest first, and given up if they are to be."""
        log = new_log()
        for now, channel in enumerate(["a", "b", "c", "a", "d", "e"]):
            put(log, channel, now=now, history=None if channel == "d" else KEEP_ALL)
        put(log, "e", now=6, is_end=True)
        assert log.silent(2.5) == ["b", "c"]
        assert log.silent(100) == ["b", "c", "a"]
        log.give_up("b")
        log.give_up("never")
        assert log.silent(100) == ["c", "a"]
        assert log.resume(["b"], at(1)).reset == "history" and "b" not in log

    def test_capacity(self) -> None:
        """A publisher never waits for the streams of one because it may drop what they haven't got: it doesn't."""
        log = new_log(size=1000)
        put(log, "plain", "x" * 500)
        put(log, "run", history=KEEP_ALL)
        assert log.capacity(log.channel("run")) == KEEP_ALL
        assert log.capacity(log.channel("plain")) == 1

    def test_long(self) -> None:
        """A long ring is read from wherever a cursor is: from each place, in order, to its end."""
        ring = ChannelLog("run", 0, KEEP_ALL)
        for seq in range(1, 4 * NEAR + 1):
            ring.append(entry(3 * seq, 3 * (seq - 1), 100))
        for cursor in range(12 * NEAR + 2):
            assert seqs(ring.after(cursor)) == list(range(cursor - cursor % 3 + 3, 12 * NEAR + 1, 3))
        cursor, data = 0, b""
        while (batch := ring.batch(cursor)) is not None:
            assert batch.prev == cursor
            cursor, data = batch.last, data + batch.data
            ring.forget_batches()
        assert data == b"".join(one.frame for one in ring.entries)


# The naive model.


@dataclasses.dataclass
class Published:
    """What was published, as the model remembers it."""

    channel: str
    user_id: str | None
    is_end: bool
    data: str


@dataclasses.dataclass
class Reader:
    """A connected client: what it asked for, and how far it has got."""

    channels: tuple[str, ...]
    cursor: int
    # An end closes a stream of one channel.
    over: bool = False


CHANNELS = "abcde"
OWN_IDS = 9
SIZES = st.sampled_from([0, 1, 50, 200, 700])
ASKED = st.lists(st.sampled_from(CHANNELS), min_size=1, max_size=3, unique=True).map(tuple)


class LogMachine(RuleBasedStateMachine):
    """Any mix of what can happen to a log, judged by the list of everything that was ever published."""

    @initialize(
        remembered=st.sampled_from([1, 2, 3, REMEMBERED_CHANNELS]),
        history=st.integers(1, 6),
        size=st.sampled_from([1, 900, 3000, 1 << 20]),
    )
    def begin(self, remembered: int, history: int, size: int) -> None:
        """Begins a life, often with a table that is too small for the channels."""
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(sseflask.log, "REMEMBERED_CHANNELS", remembered)
        self.is_exact = remembered == REMEMBERED_CHANNELS
        self.now = 0.0
        self.bytes = size
        self.floor = 0
        self.log = new_log(history=history, seconds=10, size=size)
        self.limits = dict.fromkeys(CHANNELS, history)
        self.history = history
        self.published: list[Published] = []
        self.readers: list[Reader] = []
        # Channels that keep all and haven't ended, and since which number they do.
        self.whole: dict[str, int] = {}

    def teardown(self) -> None:
        """Gives the table its size back."""
        self.patch.undo()

    def after(self, channels: Iterable[str], seq: int) -> list[int]:
        """The numbers of all that was published to some channels after a position."""
        return [number for number, one in enumerate(self.published, 1) if number > seq and one.channel in channels]

    def is_gone(self, channels: Iterable[str], seq: int) -> bool:
        """Whether something that was published after a position can't be read."""
        return self.after(channels, seq) != kept(self.log, *channels, after=seq)

    def may_be_gone(self, channels: Iterable[str], seq: int) -> bool:
        """Whether the floor excuses a reset: only where the table is too small, and only for positions below it."""
        return not self.is_exact and seq < self.log.floor

    @rule(channel=st.sampled_from(CHANNELS), size=SIZES, kind=st.sampled_from(["plain", "plain", "own", "own", "end"]))
    def publish(self, channel: str, size: int, kind: str) -> None:
        """An event is published, of those with an id of their own some share it with another."""
        own = f"own{len(self.published) % OWN_IDS}" if kind == "own" else None
        is_end = kind == "end"
        data = f"{len(self.published)}:{'x' * size}"
        prev = max(self.after([channel], 0), default=0)
        appended = put(self.log, channel, data, now=self.now, user_id=own, is_end=is_end)
        self.published.append(Published(channel, own, is_end, data))
        if is_end:
            self.whole.pop(channel, None)
        assert appended.seq == len(self.published)
        # Where its last number was forgotten, the floor of when it was last asked about stands for it.
        assert appended.prev == prev or (not self.is_exact and prev < appended.prev <= self.floor)

    @rule(channel=st.sampled_from(CHANNELS), limit=st.integers(1, 8))
    def publish_with_a_limit(self, channel: str, limit: int) -> None:
        """An event is published to a channel that keeps another number of them from here on."""
        self.published.append(Published(channel, None, False, "limit"))
        put(self.log, channel, "limit", now=self.now, history=limit)
        # If it is forgotten meanwhile, its limit is too.
        self.limits[channel] = max(limit, self.history)
        assert len(kept(self.log, channel)) <= limit
        self.whole.pop(channel, None)

    @rule(channel=st.sampled_from(CHANNELS), size=SIZES)
    def publish_to_keep_all(self, channel: str, size: int) -> None:
        """An event is published to a channel that keeps all from here on, until it ends or is given a limit."""
        data = f"all:{'x' * size}"
        self.published.append(Published(channel, None, False, data))
        put(self.log, channel, data, now=self.now, history=KEEP_ALL)
        self.limits[channel] = KEEP_ALL
        self.whole.setdefault(channel, len(self.published))

    @rule(seconds=st.sampled_from([0.5, 3.0, 11.0]), expires=st.booleans())
    def wait(self, seconds: float, expires: bool) -> None:
        """Time passes."""
        self.now += seconds
        if expires:
            self.log.expire(self.now)

    @rule(channels=ASKED)
    def subscribe(self, channels: tuple[str, ...]) -> None:
        """A client comes without a position: it begins at the head."""
        self.listen(channels, self.log.position.seq)

    @rule(channels=ASKED, back=st.integers(-3, 12), listens=st.booleans())
    def reconnect(self, channels: tuple[str, ...], back: int, listens: bool) -> None:
        """A client comes back with a position of ours, or one beyond the head."""
        seq = max(len(self.published) - back, 0)
        found = self.log.resume(channels, at(seq))
        if seq > len(self.published):
            assert (found.cursor, found.reset) == (0, "epoch")
        else:
            self.judge(channels, seq, found)
        if listens and found.reset is None:
            self.listen(channels, found.cursor)

    @rule(channels=ASKED, seq=st.integers(0, 40))
    def reconnect_from_another_life(self, channels: tuple[str, ...], seq: int) -> None:
        """A client comes back with a position of another life."""
        found = self.log.resume(channels, str(EventId(OTHER_EPOCH, seq)))
        assert (found.cursor, found.reset) == (0, "epoch")

    @rule(channels=ASKED, back=st.integers(0, OWN_IDS), listens=st.booleans())
    def reconnect_with_an_own_id(self, channels: tuple[str, ...], back: int, listens: bool) -> None:
        """A client comes back with a publisher's own id, often a recent one."""
        own = f"own{(len(self.published) - back) % (OWN_IDS + 1)}"
        found = self.log.resume(channels, own)
        known = [seq for seq in kept(self.log, *channels) if self.published[seq - 1].user_id == own]
        if len(known) != 1:
            assert (found.cursor, found.reset) == (0, "unknown_id")
            return
        self.judge(channels, known[0], found)
        if listens and found.reset is None:
            self.listen(channels, found.cursor)

    @precondition(lambda self: self.readers)
    @rule(which=st.integers(0, 99))
    def read(self, which: int) -> None:
        """A client reads all there is, in one go or in batches."""
        reader = self.readers[which % len(self.readers)]
        missed = [channel for channel in reader.channels if self.log.missing_after(channel, reader.cursor)]
        if missed:
            assert self.is_gone(reader.channels, reader.cursor)
            reader.cursor = len(self.published)
            return
        expected = self.after(reader.channels, reader.cursor)
        if len(reader.channels) > 1:
            assert kept(self.log, *reader.channels, after=reader.cursor) == expected
            reader.cursor = len(self.published)
            return
        ring = self.log.find(reader.channels[0])
        assert ring is not None and ring.held
        while not reader.over and (batch := ring.batches.get(reader.cursor) or ring.batch(reader.cursor)) is not None:
            assert batch.prev <= reader.cursor
            taken, expected = expected[: batch.count], expected[batch.count :]
            events = EventDecoder().feed(batch.data)
            assert [event.data for event in events] == [self.published[seq - 1].data for seq in taken]
            assert batch.last == reader.cursor or batch.last == taken[-1]
            reader.cursor = batch.last
            reader.over = batch.is_end
            assert batch.is_end == self.published[batch.last - 1].is_end
        assert reader.over or not expected

    @precondition(lambda self: self.readers)
    @rule(which=st.integers(0, 99))
    def leave(self, which: int) -> None:
        """A client hangs up; the last one of a channel releases it."""
        gone = self.readers.pop(which % len(self.readers))
        for channel in gone.channels:
            if not any(channel in reader.channels for reader in self.readers):
                self.log.release(channel)

    def listen(self, channels: tuple[str, ...], cursor: int) -> None:
        """A client listens, after its position was judged."""
        for channel in channels:
            self.log.hold(channel)
        self.readers.append(Reader(channels, cursor))

    def judge(self, channels: tuple[str, ...], seq: int, found: sseflask.log.Resumption) -> None:
        """A client goes on where it was, with a reset if something is gone, and with none if nothing is."""
        assert found.cursor == seq
        for channel in channels:
            gone = set(self.after([channel], seq)) - set(kept(self.log, channel, after=seq))
            missing = self.log.missing_after(channel, seq)
            # Where its last number was forgotten, a floor stands for it, which is no lower.
            assert missing == max(gone, default=0) or (not self.is_exact and max(gone, default=0) < missing <= self.log.floor)
        if self.is_gone(channels, seq):
            assert found.reset == "history"
        elif found.reset is not None:
            assert found.reset == "history" and self.may_be_gone(channels, seq)

    @invariant()
    def what_is_kept_is_in_order(self) -> None:
        """What can be read of a channel is the end of what was published to it, as it was, each with the one before it."""
        total = 0
        counted: list[Entry] = []
        for channel in CHANNELS:
            entries = list(self.log.merged([channel], 0))
            ring = self.log.find(channel)
            if ring is not None and (ring.ended or ring.limit < KEEP_ALL):
                counted += entries
                total += sum(one.size for one in entries)
            expected = self.after([channel], 0)
            assert seqs(entries) == expected[len(expected) - len(entries) :]
            assert all(one.frame.endswith(f"\ndata: {self.published[one.seq - 1].data}\n\n".encode()) for one in entries)
            assert [one.prev for one in entries[1:]] == seqs(entries[:-1])
            assert len(entries) <= self.limits[channel]
        assert self.log.size == total
        assert total <= self.bytes or len(counted) == 1
        for channel, since in self.whole.items():
            assert kept(self.log, channel, after=since - 1) == self.after([channel], since - 1)

    @invariant()
    def the_floor_is_where_it_must_be(self) -> None:
        """The floor never falls, never reaches beyond the head, and is 0 as long as no channel had to be forgotten."""
        assert self.floor <= self.log.floor <= len(self.published)
        assert self.log.floor == 0 or not self.is_exact
        self.floor = self.log.floor


# Finding the shortest way to a failure takes minutes, and is worth it.
@pytest.mark.timeout(400)
def test_any_mix() -> None:
    """Whatever happens, no reader gets a duplicate, a reorder, or a gap without a reset, nor a reset for nothing."""
    run_state_machine_as_test(LogMachine, settings=settings(max_examples=100, stateful_step_count=40, deadline=None))


def act(machine: LogMachine, chance: random.Random) -> None:
    """One thing happens, by chance."""
    asked = tuple(chance.sample(CHANNELS, chance.randint(1, 3)))
    rules = {
        "publish": 10,
        "publish_with_a_limit": 1,
        "publish_to_keep_all": 1,
        "wait": 2,
        "subscribe": 1,
        "reconnect": 4,
        "reconnect_with_an_own_id": 4,
        "read": 6,
        "leave": 2,
    }
    match chance.choices(list(rules), weights=list(rules.values()))[0]:
        case "publish":
            kind = chance.choice(["plain", "own", "end"])
            machine.publish(channel=chance.choice(CHANNELS), size=chance.choice([0, 1, 50, 200, 700]), kind=kind)
        case "publish_with_a_limit":
            machine.publish_with_a_limit(channel=chance.choice(CHANNELS), limit=chance.randint(1, 8))
        case "publish_to_keep_all":
            machine.publish_to_keep_all(channel=chance.choice(CHANNELS), size=chance.choice([0, 200]))
        case "wait":
            machine.wait(seconds=chance.choice([0.5, 3.0, 11.0]), expires=chance.random() < 0.5)
        case "subscribe":
            machine.subscribe(channels=asked)
        case "reconnect":
            machine.reconnect(channels=asked, back=chance.randint(-3, 40), listens=chance.random() < 0.5)
        case "reconnect_with_an_own_id":
            machine.reconnect_with_an_own_id(channels=asked, back=chance.randint(0, OWN_IDS), listens=chance.random() < 0.5)
        case "read" if machine.readers:
            machine.read(which=chance.randrange(99))
        case "leave" if machine.readers:
            machine.leave(which=chance.randrange(99))


@pytest.mark.parametrize("seed", range(12))
def test_long_lives(seed: int) -> None:
    """The same holds over long lives, in which much has gone before it is asked for."""
    chance = random.Random(seed)
    machine: LogMachine = LogMachine()
    remembered = chance.choice([1, 2, 3, REMEMBERED_CHANNELS])
    machine.begin(remembered=remembered, history=chance.randint(1, 6), size=chance.choice([900, 3000, 10_000, 1 << 20]))
    try:
        for step in range(700):
            act(machine, chance)
            machine.the_floor_is_where_it_must_be()
            if step % 10 == 0:
                machine.what_is_kept_is_in_order()
    finally:
        machine.teardown()
