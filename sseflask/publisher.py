"""Publishing from any process: a Celery or RQ worker, a cron job, a script. No Flask app, no gevent."""

from __future__ import annotations

import secrets
from types import TracebackType
from typing import Any, Self

from .brokers import open_store
from .brokers.store import Publication
from .channel import checked_event, checked_name, one_name
from .config import Settings
from .event import ServerSentEvent, to_event


class Publisher:
    """Publishes to the channels of an app that runs elsewhere, on the same SQLite file or Redis.

    One object serves a process and all its threads, and what is forked from it. It connects when it first publishes.

    Attributes:
        url: The broker's URL, without a password.
    """

    def __init__(
        self,
        url: str,
        *,
        timeout: float = 5.0,
        prefix: str = "sseflask",
        history: int = 256,
        history_seconds: float = 300.0,
        max_event_bytes: int = 1024 * 1024,
    ) -> None:
        """Stores what it needs.

        Args:
            url: As the app's `SSE_BROKER_URL`: `sqlite:///PATH`, `redis://…`, `rediss://…` or `unix://…`.
            timeout: Seconds that a publish may take before it fails, above 0; as `SSE_BROKER_TIMEOUT`.
            prefix: As the app's `SSE_BROKER_PREFIX`: 1 to 100 letters, digits and `.:/-_`.
            history: Events that each channel keeps, at least 8; as the app's `SSE_HISTORY`.
            history_seconds: Seconds that it keeps them, above 0; as the app's `SSE_HISTORY_SECONDS`.
            max_event_bytes: Bytes that one event may have, at least 1024; as the app's `SSE_MAX_EVENT_BYTES`.

        Raises:
            InvalidSetting: A value can't be used: memory is one process's own, and can't be published to from another; or the
                broker's client isn't installed.
        """
        self._settings = Settings(
            broker_url=Settings.check("broker_url", url),
            broker_timeout=Settings.check("broker_timeout", timeout),
            broker_prefix=Settings.check("broker_prefix", prefix),
            history=Settings.check("history", history),
            history_seconds=Settings.check("history_seconds", history_seconds),
            max_event_bytes=Settings.check("max_event_bytes", max_event_bytes),
        )
        self._store = open_store(self._settings, url, is_guest=True)
        self.url = self._store.url

    def __repr__(self) -> str:
        return f"<Publisher {self.url}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def publish(
        self,
        data: Any,
        *,
        event: str | None = None,
        type: str | None = None,
        id: str | None = None,
        retry: int | None = None,
        channel: str = "sse",
        token: str | None = None,
    ) -> str:
        """Publishes an event to a channel. Returns when the broker has it.

        Args:
            data: As for `SSE.publish`.
            event: The event's name, one line; None for none, which browsers call `message`.
            type: The same, as Flask-SSE has it.
            id: An id of your own, 1 to 256 bytes; without one the event gets the broker's.
            retry: Milliseconds that clients wait before they reconnect, 0 to `2**31 - 1`; None says nothing.
            channel: The channel's name, 1 to 200 bytes.
            token: Names this publish, for a retry of your own: a second one with the same token within 60 s stores nothing.

        Returns:
            The event's id; for a token that is known, that of the first event.

        Raises:
            InvalidEvent: The event can't be written, has no data or an id of sseflask's form, or `event` and `type` differ.
            EventTooLarge: The event has more bytes than `max_event_bytes`.
            InvalidChannel: The channel can't have this name.
            BrokerUnavailable: The broker doesn't have the event, or it isn't known whether it has: `outcome` says which.
        """
        if type is not None:
            event = one_name(event, type)
        named = to_event(data, event=event, id=id, retry=retry)
        return self._publish(checked_name(channel), named, token=token)

    def close_channel(self, channel: str, data: Any = "", *, event: str = "stream-end", token: str | None = None) -> str:
        """Publishes the event that ends a channel's streams; see `Channel.close`.

        Args:
            channel: The channel's name.
            data: What the event carries; None for an empty text.
            event: Its name; as the app's `SSE_END_EVENT`.
            token: As for `publish`.

        Returns:
            The event's id.

        Raises:
            InvalidEvent: The event can't be written.
            EventTooLarge: The event has more bytes than `max_event_bytes`.
            InvalidChannel: The channel can't have this name.
            BrokerUnavailable: The broker doesn't have the event, or it isn't known whether it has.
        """
        ended = ServerSentEvent("" if data is None else data, event=event)
        return self._publish(checked_name(channel), ended, token=token, is_end=True)

    def close(self) -> None:
        """Lets go of connections; closing twice is fine, and publishing connects again."""
        self._store.close()

    def _publish(self, channel: str, event: ServerSentEvent, *, token: str | None, is_end: bool = False) -> str:
        checked_event(event, self._settings.max_event_bytes)
        publication = Publication(
            channel,
            event.encode(),
            token if token is not None else secrets.token_hex(8),
            name=event.event,
            user_id=event.id,
            is_end=is_end,
        )
        return self._store.publish(publication).id
