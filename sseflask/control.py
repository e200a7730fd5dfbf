"""What one process of an app tells the others: to disconnect streams, to cancel a task."""

from __future__ import annotations

import dataclasses
import itertools
import json
import logging
import math
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

from flask import Flask

from . import native, process
from .brokers import Broker
from .errors import BrokerUnavailable
from .event import ServerSentEvent
from .ring import Entry
from .stream import Stream
from .subscription import Subscription
from .tasks import Tasks

log = logging.getLogger("sseflask.broker")

#: The channel on which processes hear of it; its name is one that apps can't use.
CHANNEL: Final = "-/control"
#: The events that it keeps for processes that can't follow the broker for a while, learn late that its log is another, or begin to
#: listen when a stream has been opened.
HISTORY: Final = 64
#: Disconnects that a process remembers for streams that are being opened. Who began before the newest that is forgotten comes back.
REMEMBERED: Final = 1024
#: Seconds that an opening may take, whatever the history, before its stream ends because what was told may have been removed.
LEAST_SECONDS: Final = 30.0
#: Seconds for which a process listens on after it has opened its last stream: it needn't look back for each of a few.
LISTENS_SECONDS: Final = 2.0


@dataclasses.dataclass(frozen=True, slots=True)
class Disconnect:
    """What `SSE.disconnect` was called with.

    Attributes:
        token: Names the call.
        at: The monotonic second of this process at which it was told; where another process has told it, at which it was heard.
        client_key: The client; None for any.
        channel: The channel; None for any, and streams of none.
    """

    token: str
    at: float
    client_key: str | None
    channel: str | None

    @classmethod
    def of(cls, command: dict[str, Any], at: float) -> Disconnect:
        """What a command says.

        Raises:
            KeyError: It is another one. Of one that can't be read: `TypeError` or `AttributeError`.
        """
        wanted = command["disconnect"]
        return cls(command.get("token") or secrets.token_hex(8), at, wanted.get("client_key"), wanted.get("channel"))

    def is_for(self, stream: Stream) -> bool:
        """Whether it ends a stream that has begun: only one whose request began before, and hasn't told it itself."""
        if stream.began >= self.at or self.client_key not in (None, stream.client) or self.token in stream.told:
            return False
        return self.channel is None or self.channel in _channels_of(stream)


class Control:
    """One app's, in one process. It listens while the process has streams, or works on tasks, and a moment longer."""

    def __init__(self, broker: Callable[[], Broker], tasks: Tasks) -> None:
        """Stores what it needs.

        Args:
            broker: Gives the app's broker in this process.
            tasks: The app's, as this process sees them.
        """
        self._broker = broker
        self._tasks = tasks
        self._is_listening = False
        # When a stream, or a task, was last begun.
        self._asked = 0.0
        # Guards what is below; held for moments.
        self._lock = native.Lock()
        # By their tokens, in the order of their times.
        self._disconnects: dict[str, Disconnect] = {}
        # Of what was told before, some isn't known: it was forgotten, or told by others long before this process listened.
        self._forgotten = -math.inf
        # Since when nothing was told of which a stream has to know; nearly every stream's request began later.
        self._quiet_since = -math.inf
        # Whether it has yet to read what others told before it listened, and whether somebody is doing so.
        self._must_look_back = self._is_looking_back = False

    def listen(self) -> None:
        """Listens from here on, until the process has neither streams nor tasks; where none are joined, nobody can ask."""
        self._asked = time.monotonic()
        if self._is_listening:
            return
        try:
            broker = self._broker()
        except BrokerUnavailable:
            return
        if not self._begins(broker):
            # Another thread was first.
            return
        process.current().timer.call_every_second(self._rest)
        if not broker.is_shared:
            broker.emitter.on(CHANNEL, self._hear)
            return
        self._look_back(broker)
        # Its streams may watch what a process works on that dies.
        self._tasks.watch()

    def watch(self, stream: Stream) -> None:
        """Lets a stream be disconnected that has begun; ends it if that was asked for after its request began."""
        self.listen()
        if stream.began < self._quiet_since and self._is_revoked(stream):
            stream.revoke()

    def disconnect(self, *, client_key: str | None, channel: str | None) -> str:
        """Tells all processes to disconnect the streams of a client, of a channel, or of a client on a channel.

        Returns:
            The token that names this call.

        Raises:
            BrokerUnavailable: They can't be told now.
        """
        token = secrets.token_hex(8)
        # Here it counts from now, whenever it is heard.
        self._remember(Disconnect(token, 0.0, client_key, channel))
        self._tell({"disconnect": {"client_key": client_key, "channel": channel}}, token)
        return token

    def tell(self, command: dict[str, Any]) -> None:
        """Tells all processes something, this one too.

        Raises:
            BrokerUnavailable: They can't be told now.
        """
        self._tell(command, secrets.token_hex(8))

    def _tell(self, command: dict[str, Any], token: str) -> None:
        # Told from the same command of before, also where a broker that has lost that gives its number again.
        self._broker().publish(CHANNEL, ServerSentEvent({**command, "token": token}), history=HISTORY)

    def _begins(self, broker: Broker) -> bool:
        with self._lock:
            if self._is_listening:
                return False
            self._is_listening = True
            self._must_look_back = self._is_looking_back = broker.is_shared
            return True

    def _rest(self, now: float) -> bool:
        here = process.current()
        with self._lock:
            if here.streams or here.detached or self._is_looking_back or now - self._asked < LISTENS_SECONDS:
                is_due = self._must_look_back and not self._is_looking_back
                self._is_looking_back = self._is_looking_back or is_due
                goes_on = True
            else:
                self._is_listening = is_due = goes_on = False
        if is_due:
            # It may take as long as the broker's time-out, and the timer has others to see to.
            threading.Thread(target=self._look_back, args=(self._broker(),), name="sseflask-control", daemon=True).start()
        if not goes_on:
            self._broker().emitter.off(CHANNEL, self._hear)
        return goes_on

    def _look_back(self, broker: Broker) -> None:
        """Listens to what others tell, and ends streams for which something was told before; tried again where that fails."""
        asked_at = time.monotonic()
        try:
            broker.retained(CHANNEL)
        except BrokerUnavailable as error:
            log.warning("what other processes have told can't be read now: %s", error, extra={"sse_channel": CHANNEL})
        else:
            broker.emitter.on(CHANNEL, self._hear)
            with broker.emitter.lock:
                # Only now: what came in meanwhile was heard by nobody.
                ring = broker.log.find(CHANNEL)
                entries = list(ring.entries) if ring is not None else []
            self._learn(entries, asked_at)
            self._must_look_back = False
            for stream in self._streams(None):
                if stream.began < self._quiet_since and self._is_revoked(stream):
                    stream.revoke()
        finally:
            self._is_looking_back = False

    def _learn(self, entries: Sequence[Entry], asked_at: float) -> None:
        """Remembers what others told before this process listened; it has asked for that at a monotonic second."""
        found = [disconnect for entry in entries if (disconnect := _told_by(entry.event, entry.at)) is not None]
        kept = max(self._tasks.settings.history_seconds, LEAST_SECONDS)
        oldest = entries[0].at if len(entries) >= HISTORY else asked_at - kept
        with self._lock:
            self._forgotten = max(self._forgotten, oldest)
            # What it knows has its time from when it was told here.
            both = {**{disconnect.token: disconnect for disconnect in found}, **self._disconnects}
            self._disconnects = dict(sorted(both.items(), key=lambda item: item[1].at))
            self._bound()

    def _remember(self, disconnect: Disconnect) -> Disconnect:
        """Adds what is told or heard now. Returns what is known of it, perhaps since before."""
        with self._lock:
            known = self._disconnects.get(disconnect.token)
            if known is not None:
                return known
            # Only here: their order is that of their times.
            disconnect = dataclasses.replace(disconnect, at=time.monotonic())
            self._disconnects[disconnect.token] = disconnect
            self._bound()
        return disconnect

    def _bound(self) -> None:
        """Forgets the oldest; called under the lock."""
        while len(self._disconnects) > REMEMBERED:
            self._forgotten = max(self._forgotten, self._disconnects.pop(next(iter(self._disconnects))).at)
        newest = next(reversed(self._disconnects.values())).at if self._disconnects else -math.inf
        self._quiet_since = max(newest, self._forgotten)

    def _is_revoked(self, stream: Stream) -> bool:
        """Whether a disconnect was for a stream, or may have been."""
        with self._lock:
            if stream.began < self._forgotten:
                return True
            since = itertools.takewhile(lambda disconnect: disconnect.at > stream.began, reversed(self._disconnects.values()))
            return any(disconnect.is_for(stream) for disconnect in since)

    def _hear(self, event: ServerSentEvent) -> None:
        try:
            command = json.loads(event.data or "")
            if "cancel" in command:
                self._tasks.hear_cancel(command["cancel"])
                return
            disconnect = Disconnect.of(command, 0.0)
        except (ValueError, KeyError, TypeError, AttributeError):
            # Of another version of ours, perhaps.
            log.warning("a command that this version doesn't know: %r", event.data, extra={"sse_channel": CHANNEL})
            return
        # First: who opens a stream looks at what is remembered when others can see the stream.
        disconnect = self._remember(disconnect)
        for stream in self._streams(disconnect.channel):
            if disconnect.is_for(stream):
                stream.revoke()

    def _streams(self, channel: str | None) -> Iterator[Stream]:
        """The streams of a channel; without one, of the app."""
        broker = self._broker()
        if channel is None:
            yield from [stream for stream in list(process.current().streams) if _broker_of(stream.app) is broker]
            return
        with broker.emitter.lock:
            found = broker.emitter.find(channel)
            subscribers = list(found.subscribers) if found is not None else []
        for subscriber in subscribers:
            if isinstance(subscriber, Subscription):
                yield subscriber.stream


def _told_by(event: ServerSentEvent, at: float) -> Disconnect | None:
    """The disconnect that an event tells, if it does."""
    try:
        return Disconnect.of(json.loads(event.data or ""), at)
    except (ValueError, KeyError, TypeError, AttributeError):
        # Who was told to cancel a task learns of it otherwise too.
        return None


def _channels_of(stream: Stream) -> tuple[str, ...]:
    """The channels that a stream reads; none for a generator's."""
    producer = stream.producer
    return producer.channels if isinstance(producer, Subscription) else ()


def _broker_of(app: Flask | None) -> Broker | None:
    installed = app.extensions.get("sse") if app is not None else None
    broker: Broker | None = installed.broker_in_use if installed is not None else None
    return broker
