"""Any bytes from a server, cut anywhere: the decoder gives the same events, holds no more than its bound, and never raises."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

import sseflask.decoder
from sseflask import EventDecoder, ServerSentEvent

#: What brings a parser into trouble: fields nearly right, each line end, broken UTF-8, numbers beyond any.
PIECES = st.sampled_from(
    [
        *(b"data", b"data:", b"data: x", b"event: e", b"id: 7", b"id: \0", b"id", b"retry: 5", b"retry: " + b"9" * 50, b":", b":c"),
        *(b"\r", b"\n", b"\r\n", b"\n\n", b"\r\r", b"\xef\xbb\xbf", b"\xc3", b"\xa9", b"\xf0\x9f", b"\xff", b"\0"),
        *("\u2028\x85\u0663".encode(), b"x" * 100, b" ", b"unknown: field"),
    ]
)
STREAMS = st.lists(PIECES | st.binary(max_size=40), max_size=40).map(b"".join)


@st.composite
def cut_streams(draw: st.DrawFn) -> tuple[bytes, list[bytes]]:
    """A stream, and the same in pieces, empty ones too."""
    stream = draw(STREAMS)
    cuts = draw(st.lists(st.integers(0, len(stream)), max_size=30))
    return stream, [stream[start:end] for start, end in pairwise([0, *sorted(cuts), len(stream)])]


def checked(decoder: EventDecoder, pieces: list[bytes], bound: int) -> Iterator[ServerSentEvent]:
    """The events of a stream; what is held between its pieces is looked at."""
    for piece in pieces:
        for event in decoder.feed(piece):
            # What a decoder gives can be written again: nothing in it breaks out of its line.
            written = EventDecoder().feed(ServerSentEvent(event.data or "", event=event.event, id=event.id).encode())
            assert [(each.data, each.event) for each in written] == [(event.data, event.event)]
            yield event
        assert decoder.pending_bytes <= bound


@given(cut_streams(), st.sampled_from([1, 16, 200, 10**6]))
@settings(max_examples=400, deadline=None, derandomize=True, database=None)
def test_any_bytes(cut: tuple[bytes, list[bytes]], bound: int) -> None:
    """A stream in pieces gives what it gives whole, and leaves the decoder in the same state."""
    stream, pieces = cut
    whole, sliced = EventDecoder(max_event_bytes=bound), EventDecoder(max_event_bytes=bound)
    assert list(checked(whole, [stream], bound)) == list(checked(sliced, pieces, bound))
    for name in ("last_event_id", "retry", "dropped", "pending_bytes"):
        assert getattr(whole, name) == getattr(sliced, name), name
    # Whatever came before, the next stream is read as it is.
    sliced.reset()
    assert [event.data for event in sliced.feed(b"data\ndata: x\n\n")] == (["\nx"] if bound >= 13 else [])


def held_by_decoders() -> int:
    """The bytes that the decoder's code has taken and that are still held; other threads of this process have theirs."""
    snapshot = tracemalloc.take_snapshot().filter_traces([tracemalloc.Filter(True, sseflask.decoder.__file__)])
    return sum(statistic.size for statistic in snapshot.statistics("filename"))


@given(st.lists(STREAMS.filter(bool), min_size=1, max_size=3))
@settings(max_examples=15, deadline=None, derandomize=True, database=None)
def test_bounded_memory(pieces: list[bytes]) -> None:
    """However much of anything comes, a decoder keeps of the order of its bound."""
    bound = 1000
    decoder = EventDecoder(max_event_bytes=bound)
    repeated = [piece * (20_000 // len(piece) + 1) for piece in pieces]
    decoder.feed(repeated[0])
    tracemalloc.start()
    try:
        before = held_by_decoders()
        for _ in range(10):
            for piece in repeated:
                decoder.feed(piece)
        assert held_by_decoders() - before < 20 * bound
    finally:
        tracemalloc.stop()
