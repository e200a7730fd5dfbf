"""The conformance vectors through Chromium's own EventSource: what a browser makes of the bytes is what our tables say."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from playwright.sync_api import Page

from sseflask import ServerSentEvent
from tests.browser.pieces import Stream, serving
from tests.conformance.vectors import DecodeVector, decode_vectors, encode_vectors

#: `[type, data, lastEventId]`, as a page sees it.
Seen = list[str]

VECTORS = [vector for vector in decode_vectors() if vector.browser]
#: Beyond this a test doesn't wait for the reconnection.
LONGEST_RETRY_MS = 5000
#: How long Chromium waits before it reconnects where the stream doesn't say.
DEFAULT_RETRY_MS = 3000
#: Up to this a reconnection surely comes before that of a browser that hasn't understood.
SHORT_RETRY_MS = 1000
SMALL_BYTES = 400

# Opens all streams at once (the browser itself sees to it that six are under way) and gives the events of each. One whose flag is
# set is left alone until the server refuses to go on; the others are closed where they end.
READ = """([types, flags]) => Promise.all(flags.map((returns, n) => new Promise((resolve) => {
  const source = new EventSource(`/stream/${n}`);
  const events = [];
  for (const type of types) {
    source.addEventListener(type, (event) => {
      // A stream may name an event "open" or "error", as EventSource's own are called.
      if (event instanceof MessageEvent) events.push([event.type, event.data, event.lastEventId]);
    });
  }
  source.addEventListener("error", (event) => {
    if (event instanceof MessageEvent || (returns && source.readyState !== EventSource.CLOSED)) return;
    source.close();
    resolve(events);
  });
})))"""


def read(page: Page, streams: Sequence[Stream], types: set[str], *, returns: Sequence[bool] | None = None) -> list[list[Seen]]:
    """What an EventSource dispatches of each stream."""
    with serving(streams) as server:
        page.goto(server.origin)
        flags = list(returns) if returns is not None else [False] * len(streams)
        events: list[list[Seen]] = page.evaluate(READ, [sorted(types | {"message", "open", "error"}), flags])
        # Before the server stops: it waits for the connections that a page keeps.
        page.goto("about:blank")
    return events


def types_of(vectors: Sequence[DecodeVector]) -> set[str]:
    """The names of all events."""
    return {event.browser_type for vector in vectors for event in vector.events}


def expected(vector: DecodeVector) -> list[Seen]:
    """What a page sees of a vector."""
    return [[event.browser_type, event.data, event.browser_last_event_id] for event in vector.events]


def differences(names: Sequence[str], seen: Sequence[Any], wanted: Sequence[Any]) -> dict[str, tuple[str, str]]:
    """What was seen and what was wanted where these differ, cut to a length that one reads."""
    return {name: (repr(got)[:500], repr(want)[:500]) for name, got, want in zip(names, seen, wanted, strict=True) if got != want}


def test_a_browser_reads_each_stream_as_the_table_says(page: Page) -> None:
    """Events, the id that the browser comes back with and the time that it waits before are those of the vector."""
    streams = [Stream(vector.stream, 64 * 1024) for vector in VECTORS]
    returns = [vector.retry is None or vector.retry <= LONGEST_RETRY_MS for vector in VECTORS]
    seen = read(page, streams, types_of(VECTORS), returns=returns)
    names = [vector.name for vector in VECTORS]
    assert differences(names, seen, [expected(vector) for vector in VECTORS]) == {}

    back = [(vector, stream) for vector, stream, comes in zip(VECTORS, streams, returns, strict=True) if comes]
    ids = [stream.returned_with.decode() for _, stream in back]
    # A header's value has no spaces at its ends.
    assert differences([vector.name for vector, _ in back], ids, [vector.last_event_id.strip(" ") for vector, _ in back]) == {}
    assert {stream.requests for _, stream in back} == {2}
    early = {
        vector.name: waited
        for vector, stream in back
        if (waited := (stream.returned_at - stream.ended_at) * 1000)
        < (DEFAULT_RETRY_MS if vector.retry is None else vector.retry) - 20
    }
    assert early == {}
    late = {
        vector.name: waited
        for vector, stream in back
        if vector.retry is not None
        and vector.retry <= SHORT_RETRY_MS
        and (waited := (stream.returned_at - stream.ended_at) * 1000) >= DEFAULT_RETRY_MS
    }
    assert late == {}


def test_a_browser_reads_streams_that_come_byte_by_byte(page: Page) -> None:
    """Each small vector gives the same events when every byte of it arrives alone."""
    vectors = [vector for vector in VECTORS if len(vector.stream) <= SMALL_BYTES]
    assert len(vectors) > 0.8 * len(VECTORS)
    seen = read(page, [Stream(vector.stream, 1) for vector in vectors], types_of(vectors))
    assert differences([vector.name for vector in vectors], seen, [expected(vector) for vector in vectors]) == {}


def test_a_browser_reads_long_streams_in_odd_pieces(page: Page) -> None:
    """Each large vector gives the same events when it arrives in pieces that end in the midst of lines and characters."""
    vectors = [vector for vector in VECTORS if len(vector.stream) > SMALL_BYTES]
    assert vectors
    # A prime number of bytes, about thirty pieces each.
    streams = [
        Stream(vector.stream, 97 if len(vector.stream) < 8000 else 6007 if len(vector.stream) < 300_000 else 40_009)
        for vector in vectors
    ]
    seen = read(page, streams, types_of(vectors))
    assert differences([vector.name for vector in vectors], seen, [expected(vector) for vector in vectors]) == {}


def test_a_browser_gets_what_was_put_into_an_event(page: Page) -> None:
    """Each event that can be made gives a browser its data, its name and its id; one without data gives none, but its id."""
    vectors = [vector for vector in encode_vectors() if vector.invalid is None]
    events = [ServerSentEvent(**vector.fields) for vector in vectors]
    # What the event before it has left mustn't matter, and what follows must be seen.
    after = b"event: after\ndata: x\n\n"
    streams = [Stream(event.encode() + after, 64 * 1024) for event in events]
    types = {event.event or "message" for event in events} | {"after"}
    seen = read(page, streams, types)
    wanted = []
    for vector, event in zip(vectors, events, strict=True):
        last_event_id = event.id or ""
        told = [[event.event or "message", data_of(vector.fields["data"]), last_event_id]] if "data" in vector.fields else []
        wanted.append([*told, ["after", "x", last_event_id]])
    for fields, dispatched in zip((vector.fields for vector in vectors), seen, strict=True):
        if not isinstance(fields.get("data", ""), str | bytes):
            # JSON is compared by what it says.
            dispatched[0][1] = data_of(json.loads(dispatched[0][1]))
    assert differences([vector.name for vector in vectors], seen, wanted) == {}


def data_of(given: Any) -> str:
    """The text that a browser makes of an event's data: a line end of whatever kind is LF; what isn't text is JSON."""
    if isinstance(given, str | bytes):
        return re.sub("\r\n|\r", "\n", given.decode() if isinstance(given, bytes) else given)
    return json.dumps(given)
