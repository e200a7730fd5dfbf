"""Flask-SSE's public names: `from sseflask.compat.flask_sse import sse` instead of `from flask_sse import sse`.

What a page written for Flask-SSE reads is the same. Events have ids besides, so that a client that comes back gets what it missed;
a subscription opens with a `stream-open` event, which such a page doesn't listen to.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import functools
import json as stdlib_json
import logging
import urllib.parse
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Final

from flask import Flask, Response, current_app, has_app_context, json, request
from flask.helpers import get_root_path

from .. import config, process
from ..channel import checked_name, one_name
from ..config import DEFAULTS, FLASK_SSE_URL, Settings
from ..decoder import EventDecoder
from ..errors import InvalidSetting
from ..event import ServerSentEvent
from ..extension import SSE
from ..installation import KEY, Installation
from ..position import EventId
from ..response import SubscriptionResponse
from ..subscription import Selection

if TYPE_CHECKING:
    import redis

__all__ = ["Message", "ServerSentEventsBlueprint", "sse"]

log = logging.getLogger("sseflask.broker")

#: Where the URL of the broker is looked for. Flask-SSE knows the last two.
URL_SETTINGS: Final = ("SSE_BROKER_URL", FLASK_SSE_URL, "REDIS_URL")
#: The comment of an event whose data is text that JSON could be mistaken for.
TEXT: Final = "text"


class Message:
    """What is published, or was, as Flask-SSE shows it. Messages of equal fields are equal; `str` gives what Flask-SSE would write.

    Attributes:
        data: A string, or what the app's JSON can express.
        type: The event's name; None for none.
        id: The publisher's own id; None for none.
        retry: Milliseconds that clients wait before they reconnect; None says nothing.
    """

    __hash__ = None  # type: ignore[assignment]

    def __init__(self, data: Any, type: Any = None, id: Any = None, retry: Any = None) -> None:
        self.data = data
        self.type = type
        self.id = id
        self.retry = retry

    def to_dict(self) -> dict[str, Any]:
        """The message as a mapping.

        Returns:
            `data`, and those of `type`, `id` and `retry` that are set.
        """
        return {"data": self.data, **self._options()}

    def to_event(self) -> ServerSentEvent:
        """The event that is published.

        Returns:
            An event of the message's fields; data that isn't a string as JSON, text without the line end with which it may close.

        Raises:
            InvalidEvent: A field can't be written to an event stream.
            TypeError: The data is nothing that the app's JSON can express.
        """
        text, is_text = self._text(), isinstance(self.data, str)
        retry: Any = int(self.retry) if isinstance(self.retry, str) and self.retry.isdecimal() else self.retry or None
        return ServerSentEvent(
            text,
            event=f"{self.type}" if self.type else None,
            id=f"{self.id}" if self.id else None,
            retry=retry,
            # Who reads messages in Python gets the type that was published.
            comment=TEXT if is_text and _from_json(text) is not None else None,
        )

    def __str__(self) -> str:
        event = self.to_event()
        assert event.data is not None
        lines = [f"event:{event.event}"] if event.event is not None else []
        lines += [f"data:{line}" for line in event.data.split("\n")] if event.data else []
        lines += [f"id:{event.id}"] if event.id is not None else []
        lines += [f"retry:{event.retry}"] if event.retry is not None else []
        return "\n".join([*lines, "", ""])

    def __repr__(self) -> str:
        named = "".join(f", {name}={value!r}" for name, value in self._options().items())
        return f"{self.__class__.__name__}({self.data!r}{named})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Message) and vars(self) == vars(other)

    def _options(self) -> dict[str, Any]:
        named = {"type": self.type, "id": self.id, "retry": self.retry}
        return {name: value for name, value in named.items() if value}

    def _text(self) -> str:
        if not isinstance(self.data, str):
            return json.dumps(self.data)
        # Flask-SSE's pages don't see the line end with which a text may close.
        return self.data[:-2] if self.data.endswith("\r\n") else self.data[:-1] if self.data.endswith(("\n", "\r")) else self.data


class ServerSentEventsBlueprint(SSE):
    """An `SSE` with Flask-SSE's ways: it finds Redis by `SSE_REDIS_URL` or `REDIS_URL`, and `stream` is a view that serves anyone.

    All that `SSE` can do it can too: `subscribe`, `channel`, `on`, `sign`, and `stream` as a decorator.
    """

    other_settings: ClassVar[tuple[str, ...]] = (FLASK_SSE_URL,)
    _root: Callable[..., Any] | None = None

    def __init__(self, name: str = "sse", import_name: str = __name__, **options: Any) -> None:
        """Makes a blueprint without Flask-SSE's view; `add_url_rule("", "stream", blueprint.stream)` adds it.

        Args:
            name: Its name, for endpoints.
            import_name: Where templates and files of its own are looked for.
            options: What `SSE` takes besides.

        Raises:
            ValueError: A Blueprint can't have this name.
            InvalidSetting: An `app` was given, and its configuration has a wrong value.
            AlreadyInstalled: An `app` was given that has another `SSE`.
            TypeError: An `app` was given that is no Flask app.
        """
        options.setdefault("root_path", get_root_path(import_name))
        super().__init__(name=name, **options)
        self.import_name = import_name

    @property
    def redis(self) -> redis.Redis:
        """A client of redis-py's own for the current app's Redis, for what else the app does with it. Each use makes one.

        Raises:
            KeyError: The app has neither `SSE_REDIS_URL` nor `REDIS_URL`.
            ValueError: It is no URL of a Redis.
            ImportError: redis-py isn't installed: the extra `sseflask[redis]` brings it.
            RuntimeError: There is no app context.
        """
        import redis

        found = _find(current_app.config, URL_SETTINGS[1:])
        if found is None:
            raise KeyError("Must set a redis connection URL in app config.")
        client: redis.Redis = redis.StrictRedis.from_url(found[1])
        return client

    def init_app(self, app: Flask) -> None:
        """Installs the extension on an app, without routes. The URL of its Redis may be set later, before it is first used.

        Args:
            app: One whose configuration is complete, but for that.

        Raises:
            InvalidSetting: The app's configuration has a wrong value.
            AlreadyInstalled: The app has another `SSE`.
            TypeError: `app` is no Flask app.
        """
        super().init_app(app)
        with contextlib.suppress(KeyError):
            self._connect(app)

    def add_url_rule(
        self, rule: str, endpoint: str | None = None, view_func: Callable[..., Any] | None = None, *args: Any, **options: Any
    ) -> None:
        """Adds a route, as `flask.Blueprint` does. What answers at the prefix itself answers with a slash after it too.

        Args:
            rule: The URL rule, below the prefix.
            endpoint: The endpoint's name.
            view_func: What answers.
            args: What Flask takes besides.
            options: What Flask takes besides by name.
        """
        if rule == "":
            self._root = view_func
        super().add_url_rule(rule, endpoint, view_func, *args, **options)

    def answer_root(self) -> Any:
        """What `GET` of the prefix with a slash answers: what it answers without; see `SSE.answer_root`."""
        return self._root() if self._root is not None else super().answer_root()

    # All that `SSE.publish` takes by name can be given by name.
    def publish(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        data: Any,
        type: Any = None,
        id: Any = None,
        retry: Any = None,
        channel: str = "sse",
        *,
        event: str | None = None,
        token: str | None = None,
    ) -> str:
        """Publishes an event to a channel. Returns when the broker has it.

        Args:
            data: A string, or anything that the app's JSON can express. Bytes and a `ServerSentEvent` are as for `SSE.publish`.
            type: The event's name.
            id: An id of your own, 1 to 256 bytes; it should be used only once. Without one the event gets the broker's.
            retry: Milliseconds that clients wait before they reconnect, 0 to `2**31 - 1`, also as digits.
            channel: The channel's name, 1 to 200 bytes.
            event: As `type`.
            token: Names this publish, for a retry of your own: a second one with the same token within 60 s stores nothing.

        Returns:
            The event's id.

        Raises:
            KeyError: The app has no URL of a Redis, nor `SSE_BROKER_URL`.
            InvalidSetting: A setting of the app has a wrong value.
            InvalidEvent: The event can't be written, or `event` and `type` differ.
            EventTooLarge: The event has more bytes than `SSE_MAX_EVENT_BYTES`.
            InvalidChannel: The channel can't have this name.
            BrokerUnavailable: The broker doesn't have the event, or it isn't known whether it has.
            TypeError: The data is nothing that the app's JSON can express.
            RuntimeError: There is no app context, and not exactly one app has this extension.
        """
        if event is not None and type is not None:
            one_name(event, type)
        if isinstance(data, ServerSentEvent | bytes):
            return super().publish(data, event=event or type, id=id, retry=retry, channel=channel, token=token)
        return self._publish(channel, Message(data, event or type, id, retry).to_event(), token=token)

    def messages(self, channel: str = "sse") -> Iterator[Message]:
        """Yields what is published to a channel from when it is first iterated, and waits in between.

        It ends when the channel is closed. `SSE.subscribe` costs much less where the messages are only sent on to a client.

        Args:
            channel: The channel's name.

        Yields:
            The messages.

        Raises:
            KeyError: The app has no URL of a Redis, nor `SSE_BROKER_URL`.
            InvalidSetting: A setting of the app has a wrong value.
            InvalidChannel: The channel can't have this name.
            BrokerUnavailable: The channel can't be read now.
            RuntimeError: There is no app context, and not exactly one app has this extension.
        """
        app = self._app()
        installation: Installation = app.extensions[KEY]
        settings = installation.settings
        ours = (settings.open_event, settings.reset_event, settings.error_event)

        def subscribe() -> SubscriptionResponse:
            with app.app_context():
                return SubscriptionResponse(installation.broker, Selection((checked_name(channel),)), DEFAULTS, settings)

        # In a context of its own: a position of the current request's client isn't where this begins.
        response = contextvars.Context().run(subscribe)
        pending = b""
        try:
            for chunk in response.response:
                assert isinstance(chunk, bytes)
                *blocks, pending = (pending + chunk).split(b"\n\n")
                for block in blocks:
                    yield from (_message(block, event) for event in EventDecoder().feed(block + b"\n\n") if event.event not in ours)
        finally:
            response.close()

    def stream(self, view: Any = None, /, **options: Any) -> Any:
        """The view that streams the channel of `?channel=`, `"sse"` without it, to anyone.

        A client that comes back gets what it missed since its `Last-Event-ID`. With arguments it is the decorator `SSE.stream`.

        Args:
            view: As for `SSE.stream`; None for Flask-SSE's view.
            options: As for `SSE.stream`; none for Flask-SSE's view.

        Returns:
            The response; with arguments, the decorated view, or the decorator.

        Raises:
            KeyError: The app has no URL of a Redis, nor `SSE_BROKER_URL`.
            InvalidChannel: There can't be such a channel.
            InvalidSetting: An option, or a setting of the app, has a value that it can't have.
            BrokerUnavailable: The channel can't be read now, and `SSE_REFUSE` is `"status"`.
            TypeError: The decorated view is an asynchronous generator function.
        """
        if view is not None or options:
            return super().stream(view, **options) if view is not None else super().stream(**options)
        channel: str = request.args.get("channel") or "sse"
        response: Response = self.open_subscription((checked_name(channel),))
        return response

    def _app(self) -> Flask:
        """The current app, or the only one, with what its configuration now says of its broker."""
        app: Flask = current_app._get_current_object() if has_app_context() else super()._app()  # type: ignore[attr-defined]
        self._connect(app)
        return app

    def _connect(self, app: Flask) -> None:
        """Sees to it that an app's broker is the one that its configuration names, which Flask-SSE reads at each use."""
        found = _find(app.config, URL_SETTINGS)
        if found is None:
            problem = "or SSE_BROKER_URL: 'auto' needs no Redis"
            raise KeyError(f"Must set a redis connection URL in app config (SSE_REDIS_URL or REDIS_URL), {problem}.")
        if KEY not in app.extensions:
            # Flask-SSE publishes in apps too in which its blueprint isn't registered: those of scripts and task queues.
            app.extensions.setdefault(KEY, Installation(self, Settings.from_config(app.config), app))
            self._installed.append(weakref.ref(app))
        installed: Installation = app.extensions[KEY]
        url = _usable(*found)
        if url == installed.settings.broker_url:
            return
        settings = dataclasses.replace(installed.settings, broker_url=url)
        config.in_use.add(settings)
        app.extensions[KEY] = Installation(self, settings, app, installed.decorated)
        before = installed.broker_in_use
        if before is not None and not any(stream.app is app for stream in process.current().streams):
            before.close()


def _find(settings: Mapping[str, Any], names: tuple[str, ...]) -> tuple[str, str] | None:
    """The first of some settings that is set, and its value."""
    return next(((name, settings[name]) for name in names if settings.get(name)), None)


@functools.lru_cache(maxsize=64)
def _usable(name: str, url: str) -> str:
    """A setting's URL as our brokers take it.

    Raises:
        InvalidSetting: There is no such broker.
    """
    try:
        Settings.check("broker_url", url)
    except InvalidSetting as error:
        raise InvalidSetting(name, error.value, error.expected) from None
    if name == URL_SETTINGS[0]:
        return str(url)
    from ..brokers.redis_connection import QUERY_ARGUMENTS

    # What a URL says to redis-py of time-outs and decoding is the broker's own business.
    parts = urllib.parse.urlsplit(url)
    arguments = urllib.parse.parse_qsl(parts.query, keep_blank_values=True)
    kept = [(key, value) for key, value in arguments if key in QUERY_ARGUMENTS | {"durable"}]
    if len(kept) == len(arguments):
        return str(url)
    left_out = ", ".join(sorted(dict(arguments).keys() - dict(kept).keys()))
    log.info("%s: left out %s", name, left_out, extra={"sse_setting": name})
    return parts._replace(query=urllib.parse.urlencode(kept)).geturl()


def _message(block: bytes, event: ServerSentEvent) -> Message:
    assert event.data is not None
    is_text = f": {TEXT}".encode() in block.split(b"\n")
    parsed = None if is_text else _from_json(event.data)
    own_id = None if event.id is None or EventId.parse(event.id) is not None else event.id
    return Message(event.data if parsed is None else parsed[0], event.event, own_id, event.retry)


def _from_json(text: str) -> tuple[Any] | None:
    """What a text says as JSON; None if it says nothing."""
    try:
        return (stdlib_json.loads(text),)
    except (ValueError, RecursionError):
        return None


sse: Final = ServerSentEventsBlueprint("sse", __name__)
"""The blueprint that apps register: `app.register_blueprint(sse, url_prefix="/stream")`."""

sse.add_url_rule("", "stream", sse.stream)
