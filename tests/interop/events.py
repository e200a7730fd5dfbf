"""What the server of these tests sends, and what a client that keeps to the standard reports of it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from sseflask import ServerSentEvent

Report = list[list[str]]
"""What a client says it has got: each event's type, data and last id."""

#: Milliseconds: in the midst of the stream, from then on.
RETRY: Final = 150

#: With a pause before the one named "after", in which the server sends keepalives.
EVENTS: Final = (
    ServerSentEvent("no name, no id"),
    ServerSentEvent("named", event="note", id="a1"),
    ServerSentEvent("no id of its own", event="note"),
    ServerSentEvent("two\nlines\n\nand one after an empty one\n", id="a2"),
    ServerSentEvent("  spaces, a colon: and a\ttab ", event="note", id="a3"),
    ServerSentEvent("U+2028 \u2028 U+2029 \u2029 NEL \u0085 grüße 🦜 𝄞 \ufeff", event="unicode", id="grüße-4"),
    ServerSentEvent({"text": "\u2028 🦜 \n", "list": [1, None]}, event="json", id="a5"),
    ServerSentEvent("", event="empty", id="a6"),
    ServerSentEvent(retry=RETRY),
    ServerSentEvent(comment="a comment\nof two lines"),
    ServerSentEvent("after a while", event="after", id="a7"),
    ServerSentEvent("x" * 100_000, event="long", id="a8"),
    ServerSentEvent("good bye", event="done", id="a9"),
)
NAMES: Final = ("message", "note", "unicode", "json", "empty", "after", "long", "done")

#: How many numbers a channel gets before it is closed.
NUMBERS: Final = 40


def reported(events: Sequence[ServerSentEvent] = EVENTS) -> Report:
    """What a client that keeps to the standard reports of these events (WHATWG HTML 9.2.6)."""
    report: Report = []
    last_id = ""
    for event in events:
        last_id = last_id if event.id is None else event.id
        if event.data is not None:
            report.append([event.event or "message", event.data, last_id])
    return report


def without_sticky_ids(report: Report) -> Report:
    """What a client reports that gives an event no id but its own, as many do."""
    own = {event.id for event in EVENTS}
    seen: set[str] = set()
    changed = []
    for name, data, last_id in report:
        changed.append([name, data, "" if last_id in seen or last_id not in own else last_id])
        seen.add(last_id)
    return changed


def with_empty_events(report: Report, last_id: str) -> Report:
    """What a client reports that takes each block for an event, one without data too; `last_id` is what such a one has at RETRY."""
    place = next(number for number, event in enumerate(EVENTS) if event.data is None)
    # The server begins with a `retry:` of its own.
    return [["message", "", ""], *report[:place], ["message", "", last_id], *report[place:]]


def assert_whole(report: Report) -> None:
    """A channel's numbers have all come, once and in order, over several connections, with ids that grow; then its end."""
    numbers = [data for name, data, _ in report if name == "n"]
    assert numbers == [str(n) for n in range(NUMBERS)]
    positions = [int(last_id.partition("-")[2]) for name, _, last_id in report if name == "n"]
    assert positions == sorted(set(positions))
    assert len({last_id.partition("-")[0] for name, _, last_id in report if name == "n"}) == 1
    name, data, last_id = report[-1]
    assert (name, data) == ("stream-end", "over")
    assert re.fullmatch(r"[0-9a-z]+-[0-9]+-end", last_id)
    opened = [name for name, _, _ in report if name == "stream-open"]
    assert len(opened) >= 2, "the server cut it at least once"
    assert {name for name, _, _ in report} == {"n", "stream-open", "stream-end"}
