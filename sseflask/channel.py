"""Channels as users name them: what a name may be, what may be published, and the handle for one channel."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from .emitter import RESERVED, Listener
from .errors import EventTooLarge, InvalidChannel, InvalidEvent
from .event import ServerSentEvent, compact_text, to_compact, to_event
from .position import EventId, RunId

if TYPE_CHECKING:
    from .brokers import Broker

#: Bytes that a channel's name may have in UTF-8.
MAX_NAME_BYTES: Final = 200
#: Bytes that a publisher's own id may have in UTF-8: what comes back as a header must pass every server.
MAX_ID_BYTES: Final = 256

_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f\x80-\x9f\u2028\u2029]")


def checked_name(name: object) -> str:
    """A channel's name, if it may be one.

    Raises:
        InvalidChannel: It is no string of 1 to 200 bytes without control characters, has a slash or space at an edge, or begins
            with `-/`.
    """
    if not isinstance(name, str):
        raise InvalidChannel(name, "a string")
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        raise InvalidChannel(name, "text that UTF-8 can encode") from None
    if not 1 <= size <= MAX_NAME_BYTES:
        raise InvalidChannel(name, f"1 to {MAX_NAME_BYTES} bytes long")
    if _CONTROL.search(name):
        raise InvalidChannel(name, "without control characters")
    if name != name.strip() or name != name.strip("/"):
        raise InvalidChannel(name, "without a slash or a space at its edges")
    if name.startswith(RESERVED) or name == RESERVED.rstrip("/"):
        raise InvalidChannel(name, f"another: {RESERVED!r} belongs to the blueprint's own routes")
    return name


def one_name(event: str | None, type: str) -> str:
    """The name of an event that was given as `type=`, as Flask-SSE has it, and perhaps as `event=` too.

    Raises:
        InvalidEvent: The two differ.
    """
    if event is not None and event != type:
        raise InvalidEvent("event", event, f"type= is another name for it and says {type!r}: give one of them")
    return type


def checked_event(event: ServerSentEvent | str, max_bytes: int) -> None:
    """Looks at whether an event, or what `to_compact` has made of it, may be published.

    Raises:
        InvalidEvent: It has no data, or its id could not be found again.
        EventTooLarge: It has more bytes than that.
    """
    characters = len(event) if isinstance(event, str) else _checked_length(event)
    if characters > sure_length(max_bytes) and (size := len(compact_text(event).encode())) > max_bytes:
        raise EventTooLarge(to_event(event).data, size, max_bytes)


def sure_length(max_bytes: int) -> int:
    """The characters that an event may have without being encoded to see whether it is too large."""
    # A character is 4 bytes at the most, a line end 7 with the next line's name.
    return (max_bytes - 64) // 7


def _checked_length(event: ServerSentEvent) -> int:
    """The characters of all fields of an event, whose data and id may be published."""
    if event.data is None:
        raise InvalidEvent("data", None, "an event on a channel needs data")
    if (own := event.id) is not None:
        if not 1 <= len(own.encode()) <= MAX_ID_BYTES:
            raise InvalidEvent("id", own, f"an id on a channel has 1 to {MAX_ID_BYTES} bytes")
        if own != own.strip():
            raise InvalidEvent("id", own, "browsers don't send spaces at the edges of an id back")
        if EventId.parse(own) is not None or RunId.parse(own) is not None:
            raise InvalidEvent("id", own, "ids of this form are sseflask's own")
    characters = len(event.data)
    if event.event is not None:
        characters += len(event.event)
    if event.comment is not None:
        characters += len(event.comment)
    if own is not None:
        characters += len(own)
    return characters


class Channel:
    """A handle for one channel, with the names of its events; made by `SSE.channel`.

    Attributes:
        name: The channel's.
    """

    def __init__(
        self,
        name: str,
        broker: Callable[[], Broker],
        publish: Callable[..., str],
        *,
        event: str | None,
        end_event: str,
        history: int | None,
    ) -> None:
        """Stores what it needs.

        Args:
            name: The channel's, checked.
            broker: Gives the app's broker in this process.
            publish: Publishes an event to a channel by name.
            event: The name of the events that it publishes; None for none.
            end_event: The name of the event that ends it.
            history: Events that it keeps; None for the app's setting.
        """
        self.name = name
        self._broker = broker
        self._publish = publish
        self._event = event
        self._end_event = end_event
        self._history = history

    def __repr__(self) -> str:
        return f"<Channel {self.name!r}>"

    def publish(self, data: Any, *, event: str | None = None, id: str | None = None, token: str | None = None) -> str:
        """Publishes an event, under the channel's event name unless another is given. Returns when the broker has it.

        Args:
            data: As for `SSE.publish`.
            event: The event's name; None for the channel's.
            id: As for `SSE.publish`.
            token: As for `SSE.publish`.

        Returns:
            The event's id.

        Raises:
            InvalidEvent: The event can't be written, or has no data or an id of sseflask's form.
            EventTooLarge: The event has more bytes than `SSE_MAX_EVENT_BYTES`.
            BrokerUnavailable: The broker doesn't have the event, or it isn't known whether it has: `outcome` says which.
            RuntimeError: There is no app context, and not exactly one app has this extension.
        """
        named = to_compact(data, event or self._event, id, None)
        return self._publish(self.name, named, token=token, history=self._history)

    def close(self, data: Any = "", *, token: str | None = None) -> str:
        """Publishes the end event, and ends the channel's streams after it.

        A client that comes back after that gets 204, which stops a browser's EventSource for good. Who publishes to the channel
        again begins anew, for those who subscribe then.

        Args:
            data: What the end event carries; None for an empty text.
            token: As for `SSE.publish`.

        Returns:
            The end event's id.

        Raises:
            InvalidEvent: The data can't be written.
            EventTooLarge: The event has more bytes than `SSE_MAX_EVENT_BYTES`.
            BrokerUnavailable: The broker doesn't have the event, or it isn't known whether it has: `outcome` says which.
            RuntimeError: There is no app context, and not exactly one app has this extension.
        """
        event = ServerSentEvent("" if data is None else data, event=self._end_event)
        return self._publish(self.name, event, token=token, history=self._history, is_end=True)

    def on(self, listener: Listener) -> Listener:
        """Calls a function in this process with each event of the channel; also a decorator.

        Args:
            listener: A function of one `ServerSentEvent`; see `SSE.on`.

        Returns:
            The listener.

        Raises:
            TypeError: It can't be called, or is asynchronous or a generator function.
            BrokerUnavailable: Other processes serve the app too, and nothing joins them.
            RuntimeError: There is no app context, and not exactly one app has this extension.
        """
        return self._broker().emitter.on(self.name, listener)

    @property
    def subscribers(self) -> int:
        """The streams that subscribe to the channel: in this process as of now, in the others as of some seconds ago.

        Raises:
            BrokerUnavailable: The others' can't be known now.
            RuntimeError: There is no app context, and not exactly one app has this extension.
        """
        return self._broker().count(self.name)
