"""The event stream parser."""

from __future__ import annotations

import re
import tracemalloc
from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sseflask.decoder import EventDecoder
from sseflask.errors import InvalidSetting
from sseflask.event import MAX_RETRY_MS, ServerSentEvent
from tests.conformance.vectors import DecodeVector, Dispatched, decode_vectors, encode_vectors

SMALL = [vector for vector in decode_vectors() if len(vector.stream) <= 256]

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
LINE = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\n\0"))
EVENTS = st.builds(
    ServerSentEvent,
    TEXT,
    event=st.none() | LINE,
    id=st.none() | LINE.filter(bool),
    retry=st.none() | st.integers(0, MAX_RETRY_MS),
)
# Streams of what matters to a parser, in any order, so that most lines are nearly right.
TOKENS = [*"data event id retry : 7 xxxxxxxxx \0 \ufeff \u2028 \u0663".split(" "), ": ", " ", "\r", "\n", "\r\n", "\n\n"]
STREAMS = st.lists(st.sampled_from([token.encode() for token in TOKENS]) | st.binary(max_size=4), max_size=60).map(b"".join)
CUTS = st.lists(st.integers(0, 300), max_size=20)


def sliced(stream: bytes, cuts: Iterable[int]) -> Iterator[bytes]:
    """Cut a stream at the given places, some of which may be equal or lie beyond its end."""
    for start, end in pairwise([0, *sorted(cuts), len(stream)]):
        yield stream[start:end]


def decoded(pieces: Iterable[bytes], **options: Any) -> tuple[list[Dispatched], str, int | None]:
    """Decode a stream that comes in pieces: the events, the last event id, the reconnection time."""
    decoder = EventDecoder(**options)
    events = [event for piece in pieces for event in decoder.feed(piece)]
    return [Dispatched(event.data or "", event.event, event.id) for event in events], decoder.last_event_id, decoder.retry


def expected(vector: DecodeVector) -> tuple[list[Dispatched], str, int | None]:
    """Return what `decoded` gives for a vector's stream."""
    return list(vector.events), vector.last_event_id, vector.retry


def by_the_standard(stream: bytes) -> tuple[list[Dispatched], str, int | None]:
    """Decode a whole stream with the steps of WHATWG HTML 9.2.6, as they stand there."""
    lines = re.split(r"\r\n|\n|\r", stream.removeprefix(b"\xef\xbb\xbf").decode(errors="replace"))
    events, data, event_type, id_buffer, last_event_id, retry = [], "", "", "", "", None
    for line in lines[:-1]:
        if line == "":
            last_event_id = id_buffer
            if data != "":
                events.append(Dispatched(data.removesuffix("\n"), event_type or None, last_event_id or None))
            data, event_type = "", ""
        elif not line.startswith(":"):
            field, _, value = line.partition(":")
            value = value.removeprefix(" ")
            match field:
                case "event":
                    event_type = value
                case "data":
                    data += value + "\n"
                case "id" if "\0" not in value:
                    id_buffer = value
                case "retry" if re.fullmatch("[0-9]+", value):
                    retry = min(int(value), MAX_RETRY_MS)
    return events, last_event_id, retry


@pytest.mark.parametrize("vector", decode_vectors(), ids=lambda vector: vector.name)
def test_whole(vector: DecodeVector) -> None:
    """A stream fed whole gives its vector's events, id and reconnection time."""
    assert decoded([vector.stream]) == expected(vector)


@pytest.mark.parametrize("vector", decode_vectors(), ids=lambda vector: vector.name)
def test_byte_by_byte(vector: DecodeVector) -> None:
    """A stream fed byte by byte gives the same, in time that grows with its length only."""
    assert decoded(vector.stream[i : i + 1] for i in range(len(vector.stream))) == expected(vector)


@pytest.mark.parametrize("vector", SMALL, ids=lambda vector: vector.name)
def test_every_split(vector: DecodeVector) -> None:
    """A stream cut in two at any place, with nothing between, gives the same."""
    for cut in range(len(vector.stream) + 1):
        assert decoded([vector.stream[:cut], b"", vector.stream[cut:]]) == expected(vector), cut


@pytest.mark.parametrize("vector", decode_vectors(), ids=lambda vector: vector.name)
def test_oracle_agrees_with_vectors(vector: DecodeVector) -> None:
    """The standard's steps, written down literally, give what the vectors say."""
    if vector.name not in {"retry-huge", "retry-leading-zeros"}:  # more digits than int() takes
        assert by_the_standard(vector.stream) == expected(vector)


def test_vector_names_are_unique() -> None:
    """Each vector can be told by its name, and what a browser can't observe says why."""
    assert len({vector.name for vector in decode_vectors()}) == len(decode_vectors())
    assert all(vector.browser or vector.browser_why for vector in decode_vectors())


@given(STREAMS, CUTS)
@settings(max_examples=500, deadline=None)
def test_follows_the_standard(stream: bytes, cuts: list[int]) -> None:
    """Any bytes under any slicing give what the standard's steps give."""
    assert decoded(sliced(stream, cuts)) == by_the_standard(stream)


@given(EVENTS, CUTS)
@settings(max_examples=300, deadline=None)
@example(ServerSentEvent("\ufeff \r\n\u2028\n", event=" e\u0085 ", id="\ufeff\u2029 ", retry=0), [1, 5, 6])
def test_round_trip(event: ServerSentEvent, cuts: list[int]) -> None:
    """A fresh decoder gives back each event with data, no comment and no empty id, under any slicing of its bytes."""
    decoder = EventDecoder()
    assert [got for piece in sliced(event.encode(), cuts) for got in decoder.feed(piece)] == [event]
    assert decoder.last_event_id == (event.id or "")
    assert decoder.retry == event.retry
    assert decoder.pending_bytes == 0


@pytest.mark.parametrize("vector", [v for v in encode_vectors() if v.wire is not None], ids=lambda vector: vector.name)
def test_reads_what_we_write(vector: Any) -> None:
    """Every event of the encoder's vectors reads back; comments and an empty id aside, equal."""
    event = ServerSentEvent(**vector.fields)
    got = EventDecoder().feed(vector.wire)
    assert [(e.data, e.event, e.id, e.retry) for e in got] == (
        [] if event.data is None else [(event.data, event.event, event.id or None, event.retry)]
    )


@given(st.lists(EVENTS, max_size=5))
def test_several_events(events: list[ServerSentEvent]) -> None:
    """Events written one after another are read one by one, each with the last id before it."""
    got = EventDecoder().feed(b"".join(event.encode() for event in events))
    assert [(e.data, e.event, e.retry) for e in got] == [(e.data, e.event, e.retry) for e in events]
    last = None
    for event, read in zip(events, got, strict=True):
        last = event.id or last
        assert read.id == last


def test_retry_belongs_to_its_block() -> None:
    """An event carries the reconnection time of its own block only; the decoder keeps the last."""
    decoder = EventDecoder()
    assert [e.retry for e in decoder.feed(b"retry: 5\n\ndata: a\n\nretry: 6\ndata: b\n\ndata: c\n\n")] == [None, 6, None]
    assert decoder.retry == 6


def test_cr_dispatches_at_once() -> None:
    """An event ended by CR is dispatched with that byte, and an LF that follows much later ends nothing."""
    decoder = EventDecoder()
    assert decoder.feed(b"data: a\r\n\r") == [ServerSentEvent("a")]
    assert decoder.feed(b"") == []
    assert decoder.feed(b"\n") == []
    assert decoder.feed(b"\ndata: b\r\r") == [ServerSentEvent("b")]


def test_goes_on_from_a_position() -> None:
    """A last event id set before the stream starts belongs to the events that bring none."""
    decoder = EventDecoder()
    decoder.last_event_id = "7"
    assert [event.id for event in decoder.feed(b"data: a\n\nid: 8\ndata: b\n\n")] == ["7", "8"]


@pytest.mark.parametrize(
    "unfinished",
    [b"da", b"data: a\n", b"event: e\n", b"id: 9\n", b"id: 9\ndata: a", b"\xef\xbb", b":", b"data: a\r", b"data: " + b"x" * 99],
)
def test_reset(unfinished: bytes) -> None:
    """A reset forgets the unfinished event and expects a new stream, but keeps the id, the reconnection time and the count."""
    decoder = EventDecoder(max_event_bytes=64)
    decoder.feed(b"id: 1\nretry: 5\ndata: a\n\ndata: " + b"x" * 99 + b"\n\n")
    decoder.feed(unfinished)
    dropped = decoder.dropped
    decoder.reset()
    assert decoder.pending_bytes == 0
    assert (decoder.last_event_id, decoder.retry, decoder.dropped) == ("1", 5, dropped)
    assert decoder.feed(b"\xef\xbb\xbfdata: b\n\n") == [ServerSentEvent("b", id="1")]
    assert decoder.feed(b"\n") == []


def test_reset_expects_a_line_feed_to_be_a_blank_line() -> None:
    """A CR at the end of one stream and an LF at the start of the next are two line ends."""
    decoder = EventDecoder()
    decoder.feed(b"data: a\r")
    decoder.reset()
    assert decoder.feed(b"data: b\n\n") == [ServerSentEvent("b")]


@pytest.mark.parametrize(
    "block",
    [
        b"data: 3456789012345\n\n",
        b"data: 3456789012345\r\n\r\n",
        b"data\ndata: 12345678\n\n",
        b"id: 2\ndata: 2345678\n\n",
        b"event: 67\ndata: 678\n\n",
        b"unknown: 9\ndata:789\n\n",
        b"id: 2\nevent: 345678\n\n",
    ],
)
def test_bound(block: bytes) -> None:
    """An event of exactly the bound passes, one byte more and it is dropped whole and counted; the next one passes."""
    stream = b"id: 1\ndata: a\n\n" + block + b"id\ndata: b\n\n"
    assert len(block.replace(b"\r", b"")) == 20 + len(b"\n")
    a, b = ServerSentEvent("a", id="1"), ServerSentEvent("b")
    for pieces in ([stream], [stream[i : i + 1] for i in range(len(stream))]):
        fits, tight = EventDecoder(max_event_bytes=20), EventDecoder(max_event_bytes=19)
        events = [event for piece in pieces for event in fits.feed(piece)]
        assert (events[0], events[-1], len(events), fits.dropped) == (a, b, 2 + (b"data" in block), 0)
        assert [event for piece in pieces for event in tight.feed(piece)] == [a, b]
        assert tight.dropped == 1


def test_a_dropped_event_does_not_move_the_position() -> None:
    """The id of a dropped event is dropped with it, whichever line comes first."""
    for lines in (b"id: 2\ndata: " + b"x" * 20, b"data: " + b"x" * 20 + b"\nid: 2"):
        decoder = EventDecoder(max_event_bytes=20)
        assert decoder.feed(b"id: 1\n\n" + 2 * (lines + b"\n\n") + b"data: b\n\n") == [ServerSentEvent("b", id="1")]
        assert (decoder.last_event_id, decoder.dropped) == ("1", 2)


def test_comments_do_not_count() -> None:
    """Comments, however long and many, before and within an event, drop nothing."""
    decoder = EventDecoder(max_event_bytes=16)
    decoder.feed(b":keepalive\n" * 100)
    decoder.feed(b"data: 1\n:" + b"c" * 50)
    assert decoder.feed(b"c" * 50 + b"\n" + b":keepalive\n" * 100 + b"data: 2\n\n") == [ServerSentEvent("1\n2")]
    assert decoder.dropped == 0


def test_bom_does_not_count() -> None:
    """A leading BOM is no part of the first event's size."""
    stream = b"\xef\xbb\xbfdata: 1\n\n"
    for pieces in ([stream], [stream[:-2], stream[-2:]], [stream[:2], stream[2:]]):
        assert decoded(pieces, max_event_bytes=8)[0] == [Dispatched("1")]


@given(STREAMS, CUTS, st.integers(1, 40))
@settings(max_examples=500, deadline=None)
def test_never_raises_and_holds_no_more_than_the_bound(stream: bytes, cuts: list[int], bound: int) -> None:
    """Any bytes under any slicing raise nothing, leave no more than the bound pending, and are dropped alike."""
    decoder, whole = EventDecoder(max_event_bytes=bound), EventDecoder(max_event_bytes=bound)
    events = []
    for piece in sliced(stream, cuts):
        events += decoder.feed(piece)
        assert decoder.pending_bytes <= bound + 1
    assert events == whole.feed(stream)
    assert (decoder.dropped, decoder.last_event_id, decoder.retry) == (whole.dropped, whole.last_event_id, whole.retry)


@pytest.mark.parametrize(
    ("start", "more"),
    [
        (b"data: ", b"x"),
        (b"event: ", b"x"),
        (b"", b"x"),
        (b":", b"x"),
        (b"\xef\xbb\xbf:", b"x"),
        (b"", b"data\n"),
        (b"", b"data: \xe2\x82\n"),
        (b"", b"event: eeeeee\nid: iiiiiii\n"),
        (b"data: x\n", b":c\n"),
        (b"", b"\n\r"),
        (b"", b"retry: 9\n"),
        (b"retry: ", b"9"),
    ],
    ids=["data", "event", "name", "comment", "bom", "data-lines", "utf8", "fields", "comments", "blank", "retries", "digits"],
)
def test_memory_is_bounded(start: bytes, more: bytes) -> None:
    """An endless line, block or run of comments takes memory of the order of the bound, not of what arrives."""
    bound, piece = 32 * 1024, more * (4096 // len(more))
    decoder = EventDecoder(max_event_bytes=bound)
    decoder.feed(start)
    tracemalloc.start()
    try:
        for _ in range(256):
            decoder.feed(piece)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert decoder.pending_bytes <= bound + 1
    # The list of one piece's lines is the largest constant: 4 KiB of two-byte lines, or 40 bytes a line.
    assert peak < 3 * bound + 160 * 1024


@pytest.mark.parametrize("bound", [0, -1, 1.5, "9", True, None])
def test_bound_is_checked(bound: Any) -> None:
    """A bound that isn't a positive int is refused by name."""
    with pytest.raises(InvalidSetting, match="max_event_bytes"):
        EventDecoder(max_event_bytes=bound)
