"""Joining texts that come faster than a client needs them: a model's tokens, above all.

No IO, no clock, no lock: time is an argument, and the caller sees to it that one call runs at a time.
"""

from __future__ import annotations

from typing import Any, Final

from .event import ServerSentEvent

#: Characters that are joined to one event at the most; with more, it is written at once.
MOST_CHARACTERS: Final = 16 * 1024
#: Bytes that a character may take in an event: a line end does, with the name of the next line.
BYTES_PER_CHARACTER: Final = 8


class Coalescer:
    """Joins texts until the interval since the last write is over. Nothing is reordered, and the first text never waits.

    Texts are strings, and events that have data alone and the same name, unless the data may be JSON, which can't be joined.
    Whatever else comes is written at once, after the text that waits.

    Attributes:
        due: The second at which the text that waits is to be written; None while none waits.
    """

    __slots__ = ("_characters", "_last", "_limit", "_name", "_pieces", "_seconds", "due")

    def __init__(self, seconds: float, *, max_event_bytes: int) -> None:
        """Has nothing yet.

        Args:
            seconds: The interval, above 0.
            max_event_bytes: Bytes that an event may have.
        """
        self.due: float | None = None
        self._seconds = seconds
        self._limit = min(MOST_CHARACTERS, max_event_bytes // BYTES_PER_CHARACTER)
        self._pieces: list[str] = []
        self._characters = 0
        self._name: str | None = None
        self._last = float("-inf")

    def add(self, item: Any, now: float) -> list[Any]:
        """Takes an item. Returns what is to be written now, in this order."""
        text = _text_of(item)
        if text is None or len(text[1]) > self._limit:
            # One that is too long to be joined too: whether it can be written at all is for who writes it to hear, now.
            ready = [*self.take(now), item]
            self._last = now
            return ready
        name, characters = text
        ready = []
        if self._pieces and (name != self._name or self._characters + len(characters) > self._limit):
            ready = self.take(now)
        elif not self._pieces and now - self._last >= self._seconds:
            self._last = now
            return [item]
        self._name = name
        self._pieces.append(characters)
        self._characters += len(characters)
        if self.due is None:
            self.due = self._last + self._seconds
        elif self.due <= now:
            # Whoever was to take it could not.
            return self.take(now)
        return ready

    def take(self, now: float) -> list[ServerSentEvent]:
        """The text that waits, as one event; none if none does."""
        if not self._pieces:
            return []
        joined = ServerSentEvent("".join(self._pieces), event=self._name)
        self._pieces = []
        self._characters = 0
        self.due = None
        self._last = now
        return [joined]


def _text_of(item: Any) -> tuple[str | None, str] | None:
    """The name and the text of an item that can be joined with others; None for one that can't."""
    if isinstance(item, str):
        return (None, item) if item.isascii() or _has_utf8_form(item) else None
    if not isinstance(item, ServerSentEvent) or item.data is None:
        return None
    if item.id is not None or item.retry is not None or item.comment is not None:
        return None
    return None if item.data.startswith(_JSON_BEGINS) or item.data in _JSON_WORDS else (item.event, item.data)


def _has_utf8_form(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


#: What JSON text begins with, or is. A word that looks like it is written by itself, in its place.
_JSON_BEGINS: Final = ("{", "[", '"', "-", *"0123456789")
_JSON_WORDS: Final = ("true", "false", "null")
