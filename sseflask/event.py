"""Events, and their form on the wire (WHATWG HTML 9.2.5 and 9.2.6)."""

from __future__ import annotations

import datetime
import decimal
import json
import re
import uuid
from dataclasses import KW_ONLY, asdict, dataclass, is_dataclass
from typing import Final

from .errors import InvalidEvent

KEEPALIVE: Final = b":keepalive\n"
"""What an idle stream is sent. A comment needs no blank line, and some clients dispatch an empty event for each one they see."""

EMPTY_COMMENT: Final = b":\n"
"""The shortest thing that a stream can be sent: it makes servers and proxies pass the headers on."""

MAX_RETRY_MS: Final = 2**31 - 1
"""The longest reconnection time, in milliseconds (24.8 days). JavaScript timers asked for more than that fire at once."""

_LINE_BREAK_OR_NUL: Final = re.compile(r"[\r\n\0]")


def _plain(value: object) -> object:
    """What JSON makes of the types that apps have in their records; called by the encoder for what it doesn't know."""
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, uuid.UUID | decimal.Decimal):
        return str(value)
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    raise TypeError(f"Object of type {type(value).__name__} is not JSON serializable")


_encode_json: Final = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=_plain).encode


@dataclass(frozen=True, slots=True, init=False, repr=False)
class ServerSentEvent:
    """One event, checked when it is made: one that can't be written, or that no client would ever see, can't exist.

    Equal events have equal bytes. An event is hashable, and `dataclasses.replace` and pattern matching work.

    Args:
        data: What the event carries. A `str` stays as it is, `bytes` are decoded as UTF-8, anything else becomes compact JSON, in
            which dates and times are ISO 8601, UUIDs and decimals strings, and dataclasses objects. `None` is no data at all: such
            an event can carry only an id, a retry or a comment. Empty data is `""`, JSON null `"null"`.
        event: The event's name, one line without NUL. `""` is no name, as in the standard.
        id: What a client that reconnects sends as `Last-Event-ID`, one line without NUL. `""` makes the client forget its position.
        retry: How long a client waits before it reconnects, in milliseconds: 0 to `2**31 - 1` (24.8 days).
        comment: Text that clients ignore, of any number of lines.

    Attributes:
        data: The text that clients get, its line ends made LF; `None` where there is no `data` line.
        event: The name; `None` where there is none, which browsers call `message`.
        id: The id, or `None` where the event leaves the client's position alone.
        retry: The reconnection time in milliseconds, or `None`.
        comment: The comment, its line ends made LF, or `None`.

    Raises:
        InvalidEvent: A field has the wrong type, can't be encoded as UTF-8 or JSON, or would break its line; or there is a name
            and no data, or nothing at all, which clients never dispatch.

    Source:
        WHATWG HTML 9.2.5 (the format) and 9.2.6 (what clients make of it).
    """

    data: str | None
    _: KW_ONLY
    event: str | None
    id: str | None
    retry: int | None
    comment: str | None

    def __init__(
        self,
        data: object = None,
        *,
        event: str | None = None,
        id: str | None = None,
        retry: int | None = None,
        comment: str | None = None,
    ) -> None:
        _set_data(self, None if data is None else _data_text(data))
        _set_event(self, None if event is None else _single_line("event", event) or None)
        _set_id(self, None if id is None else _single_line("id", id))
        _set_retry(self, None if retry is None else _milliseconds(retry))
        _set_comment(self, None if comment is None else _comment_text(comment))
        if data is None:
            if self.event is not None:
                raise InvalidEvent("data", data, 'clients dispatch no event without data, whatever its name: "" will do')
            if id is None and retry is None and comment is None:
                raise InvalidEvent("data", data, 'the event is empty: give it data ("" will do), an id, a retry or a comment')

    def __repr__(self) -> str:
        named = {"event": self.event, "id": self.id, "retry": self.retry, "comment": self.comment}
        fields = [] if self.data is None else [repr(self.data)]
        fields += [f"{name}={value!r}" for name, value in named.items() if value is not None]
        return f"ServerSentEvent({', '.join(fields)})"

    def encode(self) -> bytes:
        """Writes the event as a stream carries it.

        Returns:
            Lines of a field and its value with LF line ends, and a blank line last. A comment alone gets no blank line, which
            some clients would take for an empty event.

        Source:
            WHATWG HTML 9.2.5.
        """
        return compact_text(self).encode()


# The slots' own setters: a frozen class has no other, and `object.__setattr__` looks its slot up each time.
_set_data, _set_event, _set_id, _set_retry, _set_comment = (
    vars(ServerSentEvent)[name].__set__ for name in ("data", "event", "id", "retry", "comment")
)


def to_event(item: object, *, event: str | None = None, id: str | None = None, retry: int | None = None) -> ServerSentEvent:
    """Return the event that a yielded or published item stands for.

    Args:
        item: A `ServerSentEvent`, `str`, `bytes`, or anything JSON. `None` is JSON `null`.
        event: The name, where the item brings none.
        id: The id, where the item brings none.
        retry: The reconnection time in milliseconds, where the item brings none.

    Raises:
        InvalidEvent: The item or a field can't be written, see `ServerSentEvent`.
    """
    if not isinstance(item, ServerSentEvent):
        if event is None and id is None and retry is None:
            # As nearly all are: it takes half as long as the constructor.
            if type(item) is str and item.isascii() and "\r" not in item:
                return unchecked(item, None, None, None)
            return unchecked(_data_text(item), None, None, None)
        return ServerSentEvent("null" if item is None else item, event=event, id=id, retry=retry)
    if event is None and id is None and retry is None:
        return item
    return ServerSentEvent(
        item.data,
        event=event if item.event is None else item.event,
        id=id if item.id is None else item.id,
        retry=retry if item.retry is None else item.retry,
        comment=item.comment,
    )


def to_compact(item: object, event: str | None, id: str | None, retry: int | None) -> ServerSentEvent | str:
    """Return `to_event(item, …)`, or only its data where it has nothing else, as most have: that's less work to publish.

    Raises:
        InvalidEvent: The item or a field can't be written, see `ServerSentEvent`.
    """
    if event is None and id is None and retry is None:
        if type(item) is str and item.isascii() and "\r" not in item:
            return item
        return item if isinstance(item, ServerSentEvent) else _data_text(item)
    return to_event(item, event=event, id=id, retry=retry)


def compact_text(item: ServerSentEvent | str) -> str:
    """Return the text of what `to_compact` has returned, as `ServerSentEvent.encode` writes it."""
    if isinstance(item, str):
        return f"data: {item}\n\n" if "\n" not in item else f"{_field_lines('data', item)}\n"
    block = ""
    if item.comment is not None:
        block = _field_lines("", item.comment)
    if item.id is not None:
        block += f"id: {item.id}\n"
    if item.event is not None:
        block += f"event: {item.event}\n"
    if item.retry is not None:
        block += f"retry: {item.retry}\n"
    if (data := item.data) is not None:
        lines = _field_lines("data", data) if "\n" in data else f"data: {data}\n"
        return f"{block}{lines}\n"
    return block if item.id is None and item.retry is None else f"{block}\n"


def encode_item(item: object) -> bytes:
    """Return `to_event(item).encode()`, without making the event where the item is plain data.

    Raises:
        InvalidEvent: The item can't be written, see `ServerSentEvent`.
    """
    if type(item) is str and "\n" not in item and "\r" not in item and item.isascii():
        # A model's token, most often.
        return f"data: {item}\n\n".encode()
    if isinstance(item, ServerSentEvent):
        return item.encode()
    return f"{_field_lines('data', _data_text(item))}\n".encode()


def is_written(item: object) -> bool:
    """Whether an item is what a stream carries, written by hand: its lines would reach clients as an event's data."""
    if isinstance(item, bytes):
        return item.endswith((b"\n\n", b"\r\n\r\n")) and item.startswith((b"data:", b"event:", b"id:", b"retry:"))
    return isinstance(item, str) and item.endswith(("\n\n", "\r\n\r\n")) and item.startswith(("data:", "event:", "id:", "retry:"))


def retry_frame(retry_ms: int) -> bytes:
    """Return the block that sets a client's reconnection time and dispatches nothing.

    Args:
        retry_ms: Milliseconds, 0 to `MAX_RETRY_MS`.

    Raises:
        InvalidEvent: `retry_ms` is not such an `int`.
    """
    return b"retry: %d\n\n" % _milliseconds(retry_ms)


def unchecked(data: str, event: str | None, id: str | None, retry: int | None) -> ServerSentEvent:
    """Return an event with fields that are known to be right, unchecked: `EventDecoder`'s, say, whose lines hold no line break.

    A name may hold NUL: other servers may send one, ours doesn't.
    """
    made = object.__new__(ServerSentEvent)
    _set_data(made, data)
    _set_event(made, event)
    _set_id(made, id)
    _set_retry(made, retry)
    _set_comment(made, None)
    return made


def _field_lines(name: str, text: str) -> str:
    # Only CR LF, CR and LF end a line (WHATWG HTML 9.2.5), and `text` has only LF: str.splitlines would tear it at U+2028 too.
    # The space is there for parsers that split at ": ", and guards a value that begins with one.
    if "\n" in text:
        text = text.replace("\n", f"\n{name}: ")
    return f"{name}: {text}\n"


def _data_text(data: object) -> str:
    if isinstance(data, str):
        return _text("data", data)
    if isinstance(data, (bytes, bytearray, memoryview)):
        try:
            return _text("data", bytes(data).decode())
        except UnicodeDecodeError as error:
            raise InvalidEvent("data", data, f"bytes must be UTF-8, and byte {error.start} isn't") from error
    return _json_text(data)


def _json_text(value: object) -> str:
    try:
        text = _encode_json(value)
    except (TypeError, ValueError) as error:
        # Browsers' JSON.parse fails on NaN and Infinity, so non-finite floats end here too.
        raise InvalidEvent("data", value, f"can't be written as JSON: {error}") from error
    except RecursionError:
        # The value's own repr would fail likewise, so its type stands for it.
        raise InvalidEvent("data", type(value), "can't be written as JSON: nested too deeply") from None
    if text.isascii():
        return text
    # Clients that split with str.splitlines would tear the JSON at these three; escaped they mean the same.
    text = text.replace("\u2028", r"\u2028").replace("\u2029", r"\u2029").replace("\u0085", r"\u0085")
    # A lone surrogate has no UTF-8 form, but JSON has an escape for it, which is how Python writes one that can't be encoded.
    return text.encode(errors="backslashreplace").decode()


def _comment_text(comment: object) -> str:
    if not isinstance(comment, str):
        raise InvalidEvent("comment", comment, f"must be a str, not {type(comment).__name__}")
    return _text("comment", comment)


def _single_line(field: str, value: object) -> str:
    if not isinstance(value, str):
        raise InvalidEvent(field, value, f"must be a str, not {type(value).__name__}")
    if _LINE_BREAK_OR_NUL.search(value):
        raise InvalidEvent(field, value, "must be one line, without CR, LF or NUL")
    return _text(field, value)


def _text(field: str, value: str) -> str:
    if type(value) is not str:
        # A subclass may format itself in its own way (Markup escapes, enums show their names); what counts is its text.
        value = str.__str__(value)
    if "\r" in value:
        value = value.replace("\r\n", "\n").replace("\r", "\n")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise InvalidEvent(field, value, f"has no UTF-8 form: a lone surrogate at {error.start}") from error
    return value


def _milliseconds(retry: object) -> int:
    if not isinstance(retry, int) or isinstance(retry, bool) or not 0 <= retry <= MAX_RETRY_MS:
        raise InvalidEvent("retry", retry, f"must be an int from 0 to {MAX_RETRY_MS}, in milliseconds")
    return int(retry)
