"""Events and their encoding."""

from __future__ import annotations

import copy
import pickle
import re
from dataclasses import FrozenInstanceError, replace
from enum import Enum
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sseflask.errors import InvalidEvent
from sseflask.event import (
    EMPTY_COMMENT,
    KEEPALIVE,
    MAX_RETRY_MS,
    ServerSentEvent,
    compact_text,
    encode_item,
    is_written,
    retry_frame,
    to_compact,
    to_event,
)
from tests.conformance.vectors import EncodeVector, encode_vectors

VALID = [vector for vector in encode_vectors() if vector.wire is not None]
INVALID = [vector for vector in encode_vectors() if vector.invalid is not None]


class Colour(str, Enum):  # noqa: UP042 - a StrEnum formats itself as its text
    """Formats itself as its name."""

    RED = "red"


class Shouting(str):
    """A str that formats itself in its own way, as Markup does."""

    __slots__ = ()

    def __format__(self, spec: str) -> str:
        return self.upper()


@pytest.mark.parametrize("vector", VALID, ids=lambda vector: vector.name)
def test_wire(vector: EncodeVector) -> None:
    """An event's bytes are those of its vector."""
    assert ServerSentEvent(**vector.fields).encode() == vector.wire


@pytest.mark.parametrize("vector", INVALID, ids=lambda vector: vector.name)
def test_invalid(vector: EncodeVector) -> None:
    """An event that can't be written can't be made, and the error names the field and its value."""
    with pytest.raises(InvalidEvent) as caught:
        ServerSentEvent(**vector.fields)
    assert caught.value.field == vector.invalid
    assert caught.value.value == vector.fields.get(caught.value.field)


@pytest.mark.parametrize("vector", [v for v in VALID if v.fields.keys() == {"data"}], ids=lambda vector: vector.name)
def test_encode_item(vector: EncodeVector) -> None:
    """A yielded item has the same bytes as the event with that data."""
    assert encode_item(vector.fields["data"]) == vector.wire


@pytest.mark.parametrize(
    "vector", [v for v in VALID if "data" in v.fields and "comment" not in v.fields], ids=lambda vector: vector.name
)
def test_compact(vector: EncodeVector) -> None:
    """What is published as its data alone has the bytes of the event with that data, and becomes that event."""
    fields = dict(vector.fields)
    named = fields.keys() & {"event", "id", "retry"}
    compact = to_compact(fields.pop("data"), fields.get("event"), fields.get("id"), fields.get("retry"))
    assert isinstance(compact, ServerSentEvent if named else str)
    if vector.fields["data"] is not None:
        assert compact_text(compact).encode() == vector.wire
        assert to_event(compact) == ServerSentEvent(**vector.fields)


def test_compact_of_an_event() -> None:
    """An event stays what it is, and the names fill what it leaves open; None is JSON null."""
    event = ServerSentEvent("x", event="e")
    assert to_compact(event, None, None, None) is event
    assert to_compact(event, "other", "1", 5) == ServerSentEvent("x", event="e", id="1", retry=5)
    assert to_compact(None, None, None, None) == "null"


@pytest.mark.parametrize("vector", [v for v in INVALID if v.fields.get("data") is not None], ids=lambda vector: vector.name)
def test_compact_checks(vector: EncodeVector) -> None:
    """What can't be written is refused as it is when the event is made."""
    fields = {"event": None, "id": None, "retry": None, **vector.fields}
    with pytest.raises(InvalidEvent) as caught:
        to_compact(fields.pop("data"), **fields)
    assert caught.value.field == vector.invalid


def test_each_vector_says_wire_or_invalid() -> None:
    """Vector names are unique, and each vector either has bytes or names the invalid field."""
    names = [vector.name for vector in encode_vectors()]
    assert len(set(names)) == len(names)
    assert len(VALID) + len(INVALID) == len(names)
    assert all((vector.wire is None) != (vector.invalid is None) for vector in encode_vectors())


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("wrap", [lambda n: n, lambda n: [n], lambda n: {"a": n}, lambda n: {n: "a"}])
def test_non_finite_floats(number: float, wrap: Any) -> None:
    """Non-finite floats are refused, which a browser's JSON.parse couldn't read."""
    with pytest.raises(InvalidEvent, match="JSON"):
        ServerSentEvent(wrap(number))


@pytest.mark.parametrize("data", [{1, 2}, object(), [b"x"], {"a": 1j}], ids=["set", "object", "bytes", "complex"])
def test_unserialisable_data(data: object) -> None:
    """Data that isn't JSON is refused with the name of the type that isn't."""
    with pytest.raises(InvalidEvent, match=r"type (set|object|bytes|complex) is not JSON") as caught:
        encode_item(data)
    assert caught.value.field == "data"
    assert caught.value.value is data


def test_unserialisable_keys() -> None:
    """A mapping with keys that aren't JSON is refused."""
    with pytest.raises(InvalidEvent, match="not tuple"):
        ServerSentEvent({(1, 2): 3})


def test_data_that_contains_itself() -> None:
    """Data that contains itself is refused."""
    data: list[object] = []
    data.append(data)
    with pytest.raises(InvalidEvent, match="Circular"):
        ServerSentEvent(data)


def test_data_nested_too_deeply() -> None:
    """Data nested too deeply for JSON is refused, not a RecursionError."""
    data: list[object] = []
    for _ in range(200_000):
        data = [data]
    with pytest.raises(InvalidEvent, match="nested"):
        ServerSentEvent(data)


@pytest.mark.parametrize("make", [bytes, bytearray, memoryview])
def test_bytes_like_data(make: Any) -> None:
    """Bytes of any kind are decoded as UTF-8."""
    assert ServerSentEvent(make("é\r\nb".encode())).data == "é\nb"


@pytest.mark.parametrize("text", [Colour.RED, Shouting("red")])
def test_str_subclasses(text: str) -> None:
    """A subclass of str counts as its text, however it formats itself, in each field."""
    event = ServerSentEvent(text, event=text, id=text, comment=text)
    assert event.encode() == b": red\nid: red\nevent: red\ndata: red\n\n"
    assert encode_item(text) == b"data: red\n\n"
    assert compact_text(to_compact(text, None, None, None)) == "data: red\n\n"
    assert {type(event.data), type(event.event), type(event.id), type(event.comment)} == {str}


def test_line_ends_are_normalised() -> None:
    """Data and comments hold LF once made, so events that read alike are equal."""
    event = ServerSentEvent("a\r\nb\rc", comment="d\r\ne\rf")
    assert (event.data, event.comment) == ("a\nb\nc", "d\ne\nf")
    assert event == ServerSentEvent("a\nb\nc", comment="d\ne\nf")


def test_json_is_kept_as_text() -> None:
    """An event made from JSON data holds its text."""
    assert ServerSentEvent({"a": [1, None]}).data == '{"a":[1,null]}'


@pytest.mark.parametrize(
    ("item", "written"),
    [
        ("data: hello\n\n", True),
        ("data:hello\r\n\r\n", True),
        ("event: tick\nid: 1\ndata: x\n\n", True),
        ("id: 1\ndata: x\n\n", True),
        (b"retry: 5000\n\n", True),
        ("data: hello\n", False),
        ("data: hello", False),
        ("hello\n\n", False),
        ("", False),
        (7, False),
        ({"data": "x\n\n"}, False),
        (ServerSentEvent("data: x\n\n"), False),
    ],
)
def test_is_written(item: object, written: bool) -> None:
    """What a generator for a plain response yields is known by its first field and its blank line."""
    assert is_written(item) is written


def test_no_data() -> None:
    """An event made without data has none, while falsy data is data."""
    assert ServerSentEvent(id="1").data is None
    falsy: list[object] = ["", b"", 0, False, [], {}]
    assert [ServerSentEvent(data).data for data in falsy] == ["", "", "0", "false", "[]", "{}"]


def test_equality_and_hash() -> None:
    """Events with equal fields are equal and hash alike; one field makes a difference."""
    full: dict[str, Any] = {"event": "e", "id": "1", "retry": 5, "comment": "c"}
    event = ServerSentEvent("x", **full)
    same = ServerSentEvent(b"x", **full)
    assert event == same
    assert hash(event) == hash(same)
    assert len({event, *(ServerSentEvent("x", **{**full, name: None}) for name in full), ServerSentEvent("y", **full)}) == 6


@pytest.mark.parametrize("field", ["data", "event", "id", "retry", "comment"])
def test_immutable(field: str) -> None:
    """No field of an event can be set or deleted, and none added."""
    event = ServerSentEvent("x", event="e", id="1", retry=5, comment="c")
    with pytest.raises(FrozenInstanceError):
        setattr(event, field, "y")
    with pytest.raises(FrozenInstanceError):
        delattr(event, field)
    assert not hasattr(event, "__dict__")


def test_replace_checks() -> None:
    """A changed copy is checked like any other event."""
    event = ServerSentEvent("x", event="e")
    assert replace(event, id="1") == ServerSentEvent("x", event="e", id="1")
    with pytest.raises(InvalidEvent):
        replace(event, id="1\n2")


def test_copies() -> None:
    """An event survives copying and pickling."""
    event = ServerSentEvent("x", event="e", id="1", retry=5, comment="c")
    assert copy.deepcopy(event) == pickle.loads(pickle.dumps(event)) == event


def test_pattern_matching() -> None:
    """Data matches by position, other fields by name."""
    match ServerSentEvent("x", event="e"):
        case ServerSentEvent(data, event="e"):
            assert data == "x"
        case _:
            pytest.fail("no match")


def test_repr() -> None:
    """The repr shows the fields that are set, as they would be typed."""
    assert repr(ServerSentEvent("x\ny", event="e", id="", retry=0, comment="c")) == (
        "ServerSentEvent('x\\ny', event='e', id='', retry=0, comment='c')"
    )
    assert repr(ServerSentEvent("")) == "ServerSentEvent('')"
    assert repr(ServerSentEvent(id="1")) == "ServerSentEvent(id='1')"


def test_to_event_of_data() -> None:
    """Data becomes an event with the fields given, and None is JSON null."""
    assert to_event("x", event="e", id="1", retry=5) == ServerSentEvent("x", event="e", id="1", retry=5)
    assert to_event({"a": 1}) == ServerSentEvent('{"a":1}')
    assert to_event(None).encode() == encode_item(None) == b"data: null\n\n"


def test_to_event_of_an_event() -> None:
    """An event is taken as it is; fields given fill in what it lacks."""
    event = ServerSentEvent("x", event="e", retry=0, comment="c")
    assert to_event(event) is event
    assert to_event(event, event="other", id="1", retry=5) == ServerSentEvent("x", event="e", id="1", retry=0, comment="c")
    assert to_event(ServerSentEvent("x", id=""), id="1").id == ""
    assert encode_item(event) == event.encode()


def test_to_event_checks() -> None:
    """Fields given with an item are checked."""
    with pytest.raises(InvalidEvent):
        to_event("x", id="1\n2")
    with pytest.raises(InvalidEvent):
        to_event(ServerSentEvent("x"), event="a\rb")


def test_frames() -> None:
    """The frames of streams are single comment lines, and a block with the reconnection time."""
    assert KEEPALIVE == b":keepalive\n"
    assert EMPTY_COMMENT == b":\n"
    assert retry_frame(2500) == ServerSentEvent(retry=2500).encode() == b"retry: 2500\n\n"


@pytest.mark.parametrize("retry", [-1, 1.5, "5", True, None, MAX_RETRY_MS + 1])
def test_retry_frame_checks(retry: Any) -> None:
    """A reconnection time out of bounds is refused."""
    with pytest.raises(InvalidEvent):
        retry_frame(retry)


@given(st.text(st.characters(exclude_categories=["Cs"])), st.text(st.characters(exclude_categories=["Cs"])))
def test_nothing_breaks_out_of_its_lines(data: str, comment: str) -> None:
    """Whatever data and comments hold, each line of theirs is a data or a comment line."""
    wire = ServerSentEvent(data, comment=comment).encode()
    assert wire.endswith(b"\n\n")
    assert b"\r" not in wire
    assert all(line.startswith((b"data: ", b": ")) for line in wire[:-2].split(b"\n"))


@given(st.text(), st.text(), st.text())
def test_any_text_is_written_or_refused(data: str, event: str, id: str) -> None:
    """Any text either makes an event that encodes, its name and id one line each, or is refused with InvalidEvent."""
    try:
        made = ServerSentEvent(data, event=event, id=id)
    except InvalidEvent:
        return
    head, _, rest = made.encode().decode().partition("data: ")
    assert head == f"id: {id}\n" + (f"event: {event}\n" if event else "")
    assert rest.count("\n") == 2 + len(re.findall(r"\r\n|\r|\n", data))
