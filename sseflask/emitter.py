"""The event emitter: the registry of a process's channels, who listens to them, and in what order they hear."""

from __future__ import annotations

import collections
import logging
from collections.abc import Callable, Iterable
from typing import Any, Final, Protocol

from . import native
from .callback import check_callback
from .event import ServerSentEvent

log = logging.getLogger("sseflask.emitter")

Listener = Callable[[ServerSentEvent], Any]

#: Names that begin so belong to sseflask itself: to its routes, and to what its processes tell one another.
RESERVED: Final = "-/"


class Subscriber(Protocol):
    """A stream that reads channels' logs."""

    @property
    def delivered(self) -> int:
        """Events that it was given, if it reads one channel, whole; else 0: those are counted one by one."""
        ...

    def pump(self, now: float) -> bool:
        """Gives the client what lies after the stream's cursor, if it takes anything, for half a millisecond or so.

        Args:
            now: The monotonic second.

        Returns:
            Whether there is more that it would take.
        """
        ...

    def is_behind(self, seq: int, since: float) -> bool:
        """Whether it hasn't got as far as entry `seq`, though its client has taken something since that monotonic second."""
        ...

    @property
    def log_extra(self) -> dict[str, str]:
        """What a log line about it has beside its text."""
        ...

    def begin_anew(self, epoch: str) -> None:
        """What it reads has been replaced: at its next `pump` it looks for its position, of that epoch, in the log as it is now.

        Called under the emitter's lock.
        """


class Channel:
    """Who listens to one channel in this process.

    Attributes:
        name: The channel's.
        listeners: Functions, each with whether it is called only once.
        subscribers: Streams, in the order in which they came.
        is_due: Whether a waker has it in line.
        waiting: Entries published while a waker was busy with streams, since it last took the channel up.
        unpaced: Entries that came into its ring since it was last seen to that no stream falls behind for want of a chance to run.
    """

    __slots__ = ("is_due", "listeners", "name", "subscribers", "unpaced", "waiting")

    def __init__(self, name: str) -> None:
        self.name = name
        self.listeners: list[tuple[Listener, bool]] = []
        self.subscribers: dict[Subscriber, None] = {}
        self.is_due = False
        self.waiting = 0
        self.unpaced = 0


def check_listener(listener: object) -> None:
    """Looks at whether a listener can be one.

    Raises:
        TypeError: It can't be called, or is asynchronous or a generator function.
    """
    check_callback(listener, "a listener is a function of one event")


class EventEmitter:
    """Calls the listeners of a channel with each of its events, in the order in which they were emitted.

    Any native thread or greenlet may call any of its methods. A listener runs where the event was emitted, outside every lock;
    while one runs, events that others emit wait for their turn, and the emitting call returns. What a listener raises is logged and
    stops nobody else.

    An app's is `SSE.emitter`. A channel exists from its first use until nobody listens to it any more and its history has expired.

    Attributes:
        lock: Guards it, and the log beside it: unpatched, held for moments.
        on_listen: Called, outside the lock, when a channel has got a listener; None for nothing.
        changes: How often a stream has come or gone.
        subscriptions: How many there are of all channels; one to several channels counts for each.
        find: Gives who listens to a channel, by its name; None if nobody does. For brokers.
    """

    def __init__(self, history: Callable[[], Iterable[str]] = tuple) -> None:
        """Makes an empty registry.

        Args:
            history: Names the channels that have a history; called under the lock.
        """
        self.lock = native.Lock()
        self.on_listen: Callable[[], object] | None = None
        self.changes = 0
        self.subscriptions = 0
        self._history = history
        self._channels: dict[str, Channel] = {}
        # A method would be a call more for each event.
        self.find: Callable[[str], Channel | None] = self._channels.get
        self._queue: collections.deque[tuple[str, ServerSentEvent]] = collections.deque()
        self._is_flushing = False

    def on(self, channel: str, listener: Listener) -> Listener:
        """Calls a function with each event of the channel from now on.

        Where a listener adds another and the broker is Redis, that one begins to hear a moment later, when its channel is followed.

        Args:
            channel: The channel's name.
            listener: A function of one `ServerSentEvent`.

        Returns:
            The listener.

        Raises:
            TypeError: It can't be called, or is asynchronous or a generator function.
        """
        return self._add(channel, listener, once=False)

    def once(self, channel: str, listener: Listener) -> Listener:
        """Calls a function with the next event of the channel, and never again; see `EventEmitter.on`.

        Returns:
            The listener.
        """
        return self._add(channel, listener, once=True)

    def off(self, channel: str, listener: Listener) -> bool:
        """Calls a function no more; each call takes back one `on` or `once`.

        Args:
            channel: The channel's name.
            listener: The function.

        Returns:
            Whether it was listening to the channel.
        """
        with self.lock:
            found = self._channels.get(channel)
            for index, (other, _) in enumerate(found.listeners if found is not None else ()):
                if found is not None and other == listener:
                    # A new list: one that is being called from stays as it is.
                    found.listeners = found.listeners[:index] + found.listeners[index + 1 :]
                    self._drop_if_unused(found)
                    return True
        return False

    def emit(self, channel: str, event: ServerSentEvent) -> None:
        """Calls the channel's listeners in this process; `SSE.publish` is what reaches clients, and these.

        Args:
            channel: The channel's name.
            event: What they are called with.
        """
        with self.lock:
            self.enqueue(channel, lambda: event)
        self.flush()

    def listeners(self, channel: str) -> list[Listener]:
        """The functions that listen to a channel.

        Args:
            channel: The channel's name.

        Returns:
            The functions, in the order in which they are called.
        """
        found = self._channels.get(channel)
        return [listener for listener, _ in found.listeners] if found is not None else []

    def channels(self) -> list[str]:
        """The channels that somebody in this process listens to, or whose history it keeps."""
        with self.lock:
            return [name for name in dict.fromkeys([*self._channels, *self._history()]) if not name.startswith(RESERVED)]

    # What brokers and streams use.

    def subscribe(self, channel: str, subscriber: Subscriber) -> bool:
        """Adds a stream; called under the lock.

        Args:
            channel: The channel's name.
            subscriber: The stream.

        Returns:
            Whether it is the channel's first.
        """
        found = self._channels.get(channel)
        if found is None:
            found = self._channels[channel] = Channel(channel)
        is_first = not found.subscribers
        if subscriber not in found.subscribers:
            found.subscribers[subscriber] = None
            self.subscriptions += 1
        self.changes += 1
        return is_first

    def unsubscribe(self, channel: str, subscriber: Subscriber) -> bool:
        """Removes a stream; called under the lock.

        Args:
            channel: The channel's name.
            subscriber: The stream.

        Returns:
            Whether it was the channel's last.
        """
        found = self._channels.get(channel)
        if found is None or subscriber not in found.subscribers:
            return False
        del found.subscribers[subscriber]
        self.subscriptions -= 1
        self.changes += 1
        self._drop_if_unused(found)
        return not found.subscribers

    def listened(self) -> list[str]:
        """The channels that have listeners; called under the lock."""
        return [name for name, found in self._channels.items() if found.listeners]

    def subscribers(self) -> list[tuple[str, list[Subscriber]]]:
        """The streams of each channel that has any; called under the lock."""
        return [(name, list(found.subscribers)) for name, found in self._channels.items() if found.subscribers]

    def subscribed(self) -> dict[str, int]:
        """How many streams each channel has that has any; called under the lock."""
        return {name: len(found.subscribers) for name, found in self._channels.items() if found.subscribers}

    def enqueue(self, channel: str, make_event: Callable[[], ServerSentEvent]) -> None:
        """Puts an event in line for the listeners; called under the lock, in the order of the log. `flush` follows outside it.

        Args:
            channel: The channel's name.
            make_event: Gives the event; called only if the channel has listeners.
        """
        found = self._channels.get(channel)
        if found is not None and found.listeners:
            self._queue.append((channel, make_event()))

    def flush(self) -> None:
        """Calls the listeners of all events in line, unless a call further out, or another thread, is doing so."""
        while self._queue:
            with self.lock:
                if self._is_flushing or not self._queue:
                    return
                self._is_flushing = True
                channel, event = self._queue.popleft()
                listeners = self._taken(channel)
            try:
                _call_all(listeners, channel, event)
            finally:
                self._is_flushing = False

    def _add(self, channel: str, listener: Listener, *, once: bool) -> Listener:
        check_listener(listener)
        with self.lock:
            found = self._channels.get(channel)
            if found is None:
                found = self._channels[channel] = Channel(channel)
            found.listeners = [*found.listeners, (listener, once)]
        if self.on_listen is not None:
            self.on_listen()
        return listener

    def _taken(self, channel: str) -> list[Listener]:
        """The listeners to call now; those of `once` are taken from the list."""
        found = self._channels.get(channel)
        if found is None:
            return []
        listeners = [listener for listener, _ in found.listeners]
        if any(once for _, once in found.listeners):
            found.listeners = [(listener, once) for listener, once in found.listeners if not once]
            self._drop_if_unused(found)
        return listeners

    def _drop_if_unused(self, channel: Channel) -> None:
        if not channel.listeners and not channel.subscribers:
            self._channels.pop(channel.name, None)


def _call_all(listeners: list[Listener], channel: str, event: ServerSentEvent) -> None:
    """Calls each, whatever one raises; what isn't an `Exception` ends the caller, but only when all have been called."""
    fatal: BaseException | None = None
    for listener in listeners:
        try:
            listener(event)
        except Exception:
            log.exception("a listener on the channel %r failed", channel, extra={"sse_channel": channel})
        except BaseException as error:
            fatal = fatal or error
    if fatal is not None:
        raise fatal
