"""The event stream parser, without IO (WHATWG HTML 9.2.5 and 9.2.6)."""

from __future__ import annotations

from typing import Final

from .errors import InvalidSetting
from .event import MAX_RETRY_MS, ServerSentEvent, unchecked

DEFAULT_MAX_EVENT_BYTES: Final = 16 * 2**20
"""16 MiB: sixteen times what a publisher may send by default."""

_BOM: Final = b"\xef\xbb\xbf"
_LF: Final = ord("\n")
_COLON: Final = ord(":")


class EventDecoder:
    """Turns the bytes of one event stream into events, as a browser does.

    Feed it what arrives, cut anywhere: the events are the same, and each comes from the call that completes its blank line. No
    input makes it raise. What follows the last blank line is never dispatched.

    A decoded event's `event` is `None` where the stream names none, its `id` the last id that the stream gave (`None` where that
    is none or empty), its `retry` the one from its own block; comments are left out. So a fresh decoder gives back, equal, each
    event that has data, no comment, an id other than `""`, and fits in the bound.

    Args:
        max_event_bytes: The bound of one event: its lines in bytes, a line end counting as one, comments not at all. An event
            beyond it is dropped whole, its id too, up to its blank line. Of an unfinished event no more than this is ever held.

    Attributes:
        last_event_id: The id to reconnect with, `""` where there is none. May be set before a stream's first `feed`, to go on
            from a position.
        retry: The reconnection time that the stream last asked for, in milliseconds, `2**31 - 1` where it asked for more;
            `None` where it never did.
        dropped: How many events were dropped because they exceeded `max_event_bytes`.

    Raises:
        InvalidSetting: `max_event_bytes` isn't a positive `int`.

    Source:
        WHATWG HTML 9.2.5 and 9.2.6.
    """

    def __init__(self, *, max_event_bytes: int = DEFAULT_MAX_EVENT_BYTES) -> None:
        if isinstance(max_event_bytes, bool) or not isinstance(max_event_bytes, int) or max_event_bytes < 1:
            raise InvalidSetting("max_event_bytes", max_event_bytes, "a positive int")
        self.last_event_id: str = ""
        self.retry: int | None = None
        self.dropped: int = 0
        self._max_event_bytes = max_event_bytes
        self.reset()

    def reset(self) -> None:
        """Starts on a new stream, after a reconnect: forgets the unfinished event, keeps `last_event_id`, `retry` and `dropped`."""
        # The bytes of a BOM that the stream begins with so far; None once it is known whether there is one.
        self._bom_so_far: bytes | None = b""
        self._after_cr = False
        # The unfinished line. ":" alone stands for any line of which nothing is needed, however long it gets.
        self._line = bytearray()
        self._begin_block()

    @property
    def pending_bytes(self) -> int:
        """How much of an unfinished event has arrived, in bytes: what is lost if the stream ends here."""
        return self._size + len(self._line)

    def feed(self, data: bytes) -> list[ServerSentEvent]:
        """Takes the next bytes of the stream.

        The time is linear in the bytes fed, however they are cut.

        Args:
            data: Any number of bytes, none too.

        Returns:
            The events that they complete, in order; often none.
        """
        if self._bom_so_far is not None:
            data = self._without_bom(self._bom_so_far + data)
        if not data:
            return []
        if self._after_cr:
            # The CR has ended its line already, without waiting for this byte: a stream may pause between the two for hours.
            self._after_cr = False
            if data[0] == _LF:
                data = data[1:]
                if not data:
                    return []
        # bytes.splitlines splits at CR LF, CR and LF only, as the standard does; str.splitlines has eight more.
        lines = data.splitlines()
        self._after_cr = data.endswith(b"\r")
        rest = b"" if self._after_cr or data.endswith(b"\n") else lines.pop()
        if lines and self._line:
            lines[0] = bytes(self._line) + lines[0]
            self._line.clear()
        events = [event for line in lines if (event := self._take(line)) is not None]
        if rest:
            self._hold(rest)
        return events

    def _begin_block(self) -> None:
        self._size = 0
        self._data = bytearray()
        self._event: str | None = None
        # The id takes effect with the blank line: an event that is cut off doesn't move the position.
        self._id: str | None = None
        self._retry: int | None = None
        self._dropping = False

    def _without_bom(self, start: bytes) -> bytes:
        """Strip the one leading BOM (WHATWG HTML 9.2.5), holding back what may be the first bytes of one."""
        if len(start) < len(_BOM) and _BOM.startswith(start):
            self._bom_so_far = start
            return b""
        self._bom_so_far = None
        return start.removeprefix(_BOM)

    def _hold(self, piece: bytes) -> None:
        """Add to the unfinished line."""
        line = self._line
        line += piece
        if line[0] != _COLON and not self._dropping:
            if self._size + len(line) <= self._max_event_bytes:
                return
            self._drop()
        line[:] = b":"

    def _take(self, line: bytes) -> ServerSentEvent | None:
        """Process one line, without its end; return the event that it dispatches."""
        if not line:
            return self._dispatch()
        if line[0] == _COLON or self._dropping:
            return None
        self._size += len(line) + 1
        if self._size > self._max_event_bytes:
            self._drop()
            return None
        field, _, value = line.partition(b":")
        # One leading space only: a second one belongs to the value (WHATWG HTML 9.2.6).
        if value.startswith(b" "):
            value = value[1:]
        if field == b"data":
            self._data += value
            self._data += b"\n"
        elif field == b"event":
            self._event = _decoded(value)
        elif field == b"id":
            if b"\0" not in value:
                self._id = _decoded(value)
        elif field == b"retry" and value.isdigit():
            # bytes.isdigit knows only ASCII digits. int() alone would take "+5" and "1_0", and refuse more than 4,300 digits.
            digits = value.lstrip(b"0")
            self._retry = self.retry = min(int(digits or b"0"), MAX_RETRY_MS) if len(digits) <= 10 else MAX_RETRY_MS
        return None

    def _dispatch(self) -> ServerSentEvent | None:
        """End the block (WHATWG HTML 9.2.6, "dispatch the event"): without data it moves the position at most."""
        if self._id is not None:
            self.last_event_id = self._id
        event = None
        if self._data:
            # Decoding all lines at once is decoding each: an LF ends whatever sequence is cut off before it.
            data = _decoded(self._data)[:-1]
            event = unchecked(data, self._event or None, self.last_event_id or None, self._retry)
        self._begin_block()
        return event

    def _drop(self) -> None:
        """Ignore the block up to its blank line, and what it has brought so far."""
        self._begin_block()
        self._dropping = True
        self.dropped += 1


def _decoded(value: bytes | bytearray) -> str:
    # Python replaces each maximal part of an invalid sequence by one U+FFFD, as the standard's decoder does.
    return value.decode(errors="replace")
