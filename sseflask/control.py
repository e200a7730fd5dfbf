"""What one process of an app tells the others: to disconnect streams, to cancel a task."""

from __future__ import annotations

import json
import logging
import secrets
from collections.abc import Callable, Iterator
from typing import Any, Final

from flask import Flask

from . import process
from .brokers import Broker
from .errors import BrokerUnavailable
from .event import ServerSentEvent
from .stream import Stream
from .subscription import Subscription
from .tasks import Tasks

log = logging.getLogger("sseflask.broker")

#: The channel on which processes hear of it; its name is one that apps can't use.
CHANNEL: Final = "-/control"
#: The events that it keeps for processes that can't follow the broker for a while, or learn late that its log is another.
HISTORY: Final = 64


class Control:
    """One app's, in one process. It listens while the process has streams, or works on tasks."""

    def __init__(self, broker: Callable[[], Broker], tasks: Tasks) -> None:
        """Stores what it needs.

        Args:
            broker: Gives the app's broker in this process.
            tasks: The app's, as this process sees them.
        """
        self._broker = broker
        self._tasks = tasks
        self._is_listening = False

    def listen(self) -> None:
        """Listens from here on, until the process has neither streams nor tasks; where none are joined, nobody can ask."""
        if not self._is_listening:
            try:
                broker = self._broker()
            except BrokerUnavailable:
                return
            self._is_listening = True
            broker.emitter.on(CHANNEL, self._hear)
            if broker.is_shared:
                # Its streams may watch what a process works on that dies.
                self._tasks.watch()
            process.current().timer.call_every_second(self._rest)

    def disconnect(self, *, client_key: str | None, channel: str | None) -> None:
        """Tells all processes to disconnect the streams of a client, of a channel, or of a client on a channel.

        Raises:
            BrokerUnavailable: They can't be told now.
        """
        self.tell({"disconnect": {"client_key": client_key, "channel": channel}})

    def tell(self, command: dict[str, Any]) -> None:
        """Tells all processes something, this one too.

        Raises:
            BrokerUnavailable: They can't be told now.
        """
        # Told from the same command of before, also where a broker that has lost that gives its number again.
        told = {**command, "token": secrets.token_hex(8)}
        self._broker().publish(CHANNEL, ServerSentEvent(told), history=HISTORY)

    def _rest(self, now: float) -> bool:
        here = process.current()
        if here.streams or here.detached:
            return True
        self._is_listening = False
        self._broker().emitter.off(CHANNEL, self._hear)
        return False

    def _hear(self, event: ServerSentEvent) -> None:
        try:
            command = json.loads(event.data or "")
            if "cancel" in command:
                self._tasks.hear_cancel(command["cancel"])
                return
            wanted: dict[str, Any] = command["disconnect"]
        except (ValueError, KeyError, TypeError):
            # Of another version of ours, perhaps.
            log.warning("a command that this version doesn't know: %r", event.data, extra={"sse_channel": CHANNEL})
            return
        for stream in self._streams(wanted.get("channel")):
            if wanted.get("client_key") in (None, stream.client):
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


def _broker_of(app: Flask | None) -> Broker | None:
    installed = app.extensions.get("sse") if app is not None else None
    broker: Broker | None = installed.broker_in_use if installed is not None else None
    return broker
