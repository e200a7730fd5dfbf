"""The conformance vectors: what bytes mean to a client, and what an event is on the wire (WHATWG HTML 9.2.5 and 9.2.6).

Encoder, decoder and browser tests share them. `decode.json` and `encode.json` hold text as a string or as a list of parts; a
part is a string (taken as UTF-8), `{"hex": "e2 82"}` for bytes that a string can't hold, or `{"repeat": [text, times]}`. In
`encode.json` data that is a list is JSON like any other, unless the vector says `"parts": true`. `"times": n` in an event stands
for n such events.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

_HERE = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Dispatched:
    """An event as a client sees it.

    Attributes:
        data: Its data.
        event: Its name, `None` where the stream gives none.
        id: The last event id when it was dispatched, `None` where that is none or empty.
    """

    data: str
    event: str | None = None
    id: str | None = None

    @property
    def browser_type(self) -> str:
        """The `type` of a browser's MessageEvent."""
        return self.event or "message"

    @property
    def browser_last_event_id(self) -> str:
        """The `lastEventId` of a browser's MessageEvent."""
        return self.id or ""


@dataclass(frozen=True, slots=True)
class DecodeVector:
    """A stream and what a client makes of it.

    Attributes:
        name: Its unique name.
        why: The rule it shows, with the standard's section; "ours" where the standard leaves it open.
        stream: The bytes of the whole stream, after which it ends.
        events: What is dispatched, in order.
        last_event_id: The id to reconnect with, `""` where none. Browsers' headers lose the spaces at its ends.
        retry: The reconnection time at the end, in milliseconds; `None` where the stream sets none.
        browser: Whether a page can observe `events`.
        browser_why: Why it can't.
    """

    name: str
    why: str
    stream: bytes
    events: tuple[Dispatched, ...]
    last_event_id: str
    retry: int | None
    browser: bool
    browser_why: str


@dataclass(frozen=True, slots=True)
class EncodeVector:
    """The fields of an event and its bytes.

    Attributes:
        name: Its unique name.
        why: The rule it shows, with the standard's section; "ours" where the standard leaves it open.
        fields: The arguments of `ServerSentEvent`.
        wire: Its bytes, or `None` where the event can't be made.
        invalid: The field that the `InvalidEvent` names, or `None` where the event can be made.
    """

    name: str
    why: str
    fields: dict[str, Any]
    wire: bytes | None
    invalid: str | None


@cache
def decode_vectors() -> tuple[DecodeVector, ...]:
    """Return the vectors of `decode.json`."""
    return tuple(
        DecodeVector(
            name=raw["name"],
            why=raw["why"],
            stream=_joined(raw["stream"]),
            events=tuple(_dispatched(raw["events"])),
            last_event_id=raw.get("last_event_id", ""),
            retry=raw.get("retry"),
            browser=raw.get("browser", True),
            browser_why=raw.get("browser_why", ""),
        )
        for raw in _load("decode.json")
    )


@cache
def encode_vectors() -> tuple[EncodeVector, ...]:
    """Return the vectors of `encode.json`."""
    return tuple(
        EncodeVector(
            name=raw["name"],
            why=raw["why"],
            fields={**raw["fields"], "data": _joined(raw["fields"]["data"])} if raw.get("parts") else raw["fields"],
            wire=_joined(raw["wire"]) if "wire" in raw else None,
            invalid=raw.get("invalid"),
        )
        for raw in _load("encode.json")
    )


def _load(name: str) -> list[dict[str, Any]]:
    vectors: list[dict[str, Any]] = json.loads((_HERE / name).read_text(encoding="utf-8"))
    return vectors


def _dispatched(events: list[dict[str, Any]]) -> Iterator[Dispatched]:
    for raw in events:
        event = Dispatched(_joined(raw["data"]).decode(), raw.get("event"), raw.get("id"))
        yield from [event] * raw.get("times", 1)


def _joined(text: str | list[Any]) -> bytes:
    return b"".join(map(_part, [text] if isinstance(text, str) else text))


def _part(part: str | dict[str, Any]) -> bytes:
    if isinstance(part, str):
        return part.encode()
    if "hex" in part:
        return bytes.fromhex(part["hex"])
    text, times = part["repeat"]
    return bytes(text.encode() * times)
