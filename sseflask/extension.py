"""`SSE`, the extension: a Blueprint that installs everything when it is registered."""

from __future__ import annotations

import functools
import inspect
import logging
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, ClassVar, Final, ParamSpec, TypeVar, overload

from flask import Blueprint, Flask, Response, current_app, request
from flask.sansio.app import App
from flask.signals import request_started

from . import auth, cli, process, progress, runs, signals, viewer, views
from .auth import Authorize
from .callback import check_callback, name_of
from .channel import Channel, checked_event, checked_name, one_name
from .config import DEFAULTS, DETACH_GRACE, SECONDS, UNSET, Settings, StreamOptions, warn_of_unknown
from .current import heartbeat
from .decorated import Decorated
from .emitter import EventEmitter, Listener, check_listener
from .errors import AlreadyInstalled, BrokerUnavailable, InvalidSetting, InvalidSubscription
from .event import ServerSentEvent, to_compact, to_event
from .installation import KEY, Installation
from .producer import release
from .response import (
    TOLD,
    UNAVAILABLE,
    EventSourceResponse,
    SubscriptionResponse,
    active_request,
    last_event_id,
    note_beginning,
    refusal,
    wants_json,
)
from .stream import is_final_id
from .subscription import Filter, Selection, Snapshot
from .tasks import Task

log = logging.getLogger("sseflask.stream")

#: Decorators of one view that are looked through.
MOST_DECORATORS: Final = 50

P = ParamSpec("P")
T = TypeVar("T")


class SSE(Blueprint):
    """Server-Sent Events for Flask apps.

    It holds no app and no state of one: the same object serves several, and app factories. Each app keeps the rule and the client
    key that it was installed with; what is decorated later is for apps that have none yet, and for those to come.

    Register it as a Blueprint, last, so that its routes and settings are installed: `app.register_blueprint(sse,
    url_prefix="/events")`. `SSE(app)` and `init_app` install it without routes.

    Where a method says "the app", that is the current one; outside any app context the only one that has this extension.

    Attributes:
        decorated: What `authorize`, `client_key` and `on` were given, and which app has what of it.
        other_settings: Names of settings that it reads besides those of `Settings`.
    """

    other_settings: ClassVar[tuple[str, ...]] = ()

    def __init__(self, app: Flask | None = None, *, name: str = "sse", **options: Any) -> None:
        """Makes the extension.

        Args:
            app: An app to install it on at once, without routes; None for none yet.
            name: The Blueprint's name, which its endpoints begin with.
            options: What `flask.Blueprint` takes besides.

        Raises:
            InvalidSetting: The app's configuration has a wrong value.
            AlreadyInstalled: The app has another `SSE`.
            TypeError: `app` is no Flask app.
            ValueError: A Blueprint can't have this name.
        """
        super().__init__(name, __name__, **options)
        self.decorated = Decorated()
        self._installed: list[weakref.ref[Flask]] = []
        self._streaming: weakref.WeakSet[Callable[..., Any]] = weakref.WeakSet()
        views.install(self)
        if app is not None:
            self.init_app(app)

    def register(self, app: App, options: dict[str, Any]) -> None:
        """Registers the routes and installs the extension; `app.register_blueprint` calls it.

        Args:
            app: One whose configuration is complete: the settings are read here, once.
            options: Those of `app.register_blueprint`; `url_prefix` is required, there or in the constructor.

        Raises:
            InvalidSetting: There is no `url_prefix`, or the app's configuration has a wrong value.
            AlreadyInstalled: The app has another `SSE`.
            TypeError: `app` is no Flask app.
        """
        prefix = options.get("url_prefix")
        if prefix is None:
            prefix = self.url_prefix
        if prefix is None or not prefix.strip("/"):
            # A channel's name may be any path: without a prefix the routes would swallow the site's.
            raise InvalidSetting("url_prefix", prefix, 'a path of its own for the event streams, such as "/events"')
        assert isinstance(app, Flask)
        self.init_app(app)
        super().register(app, options)

    def init_app(self, app: Flask) -> None:
        """Installs the extension on an app, without routes. A second call does nothing.

        Args:
            app: One whose configuration is complete: the settings are read here, once.

        Raises:
            InvalidSetting: The app's configuration has a wrong value.
            AlreadyInstalled: The app has another `SSE`.
            TypeError: `app` is no Flask app.
        """
        if not isinstance(app, Flask):
            raise TypeError(
                f"SSE takes a Flask app, SSE(app), or none yet, SSE(), not {app!r}; its name as a Blueprint is SSE(name=…)"
            )
        installed = app.extensions.get(KEY)
        if installed is None:
            app.extensions[KEY] = Installation(self, Settings.from_config(app.config), app)
            self._installed.append(weakref.ref(app))
            warn_of_unknown(app.config, besides=self.other_settings)
            # Only then are all views there; from the second request on nobody listens.
            request_started.connect(self._check_order, app)
            # Who is disconnected may have passed the check of a stream that opens a moment later.
            request_started.connect(note_beginning, app)
            auth.redact_server_logs()
            cli.install(app)
            for kind, answer in views.ANSWERS.items():
                if kind not in app.error_handler_spec[None][None]:
                    app.register_error_handler(kind, answer)
        elif installed.sse is not self:
            raise AlreadyInstalled(f"{app!r} has an SSE already: one object serves all its streams, use that one")

    def answer_root(self) -> Any:
        """What `GET` of the prefix answers: the channels of `?channel=`, to who may subscribe to all of them.

        Returns:
            A streaming response; 204 for a client that comes back to what has ended.

        Raises:
            auth.Refused: The request may not.
            InvalidChannel: A channel can't have this name.
            InvalidSubscription: There is no channel, or there are more than `SSE_MAX_CHANNELS_PER_STREAM`.
            BrokerUnavailable: The channels can't be read now, and `SSE_REFUSE` is `"status"`.
            RuntimeError: A token was presented, and the app has no secret key.
            TypeError: The rule of the app says something that is true, and isn't True.
        """
        return views.subscribe(self, request.args.getlist("channel"))

    @overload
    def stream(self, view: Callable[P, Any], /) -> Callable[P, Any]: ...

    @overload
    def stream(
        self,
        /,
        *,
        keepalive: float = ...,
        timeout: float | None = ...,
        retry: int | None = ...,
        max_age: float | None = ...,
        lifecycle: bool | Mapping[str, Any] = ...,
        negotiate: bool = ...,
        g: tuple[str, ...] = ...,
        coalesce: float | None = ...,
        resumable: bool = ...,
        detach_grace: float = ...,
    ) -> Callable[[Callable[P, Any]], Callable[P, Any]]: ...

    def stream(
        self,
        view: Callable[P, Any] | None = None,
        /,
        *,
        keepalive: float = UNSET,
        timeout: float | None = UNSET,
        retry: int | None = UNSET,
        max_age: float | None = UNSET,
        lifecycle: bool | Mapping[str, Any] = False,
        negotiate: bool = False,
        g: tuple[str, ...] = (),
        coalesce: float | None = None,
        resumable: bool = False,
        detach_grace: float = DETACH_GRACE,
    ) -> Any:
        """Makes an event stream of what a view yields; used as `@sse.stream` or `@sse.stream(timeout=60)`, below the route.

        A generator or iterator that the view returns is streamed, and so is one that comes with a status or headers in a tuple; any
        other result is what it would be without this.

        Args:
            view: A generator function, or a function that returns an iterator.
            keepalive: Seconds of silence after which a keepalive comment is written, above 0; unless given,
                `SSE_KEEPALIVE_INTERVAL`.
            timeout: Seconds that the stream may live without `heartbeat`, above 0; None for no limit; unless given,
                `SSE_STREAM_TIMEOUT`.
            retry: Milliseconds that the client waits before it reconnects, 0 to `2**31 - 1`; None says nothing; unless given,
                `SSE_RETRY`.
            max_age: Seconds after which the stream ends cleanly, so that its client reconnects, above 0; None for no limit; unless
                given, `SSE_MAX_AGE`.
            lifecycle: True, or a mapping of what the `start` event carries besides, for a stream that begins with a `start` event
                and ends with a `complete` event (the generator's return value is its `result`) or an error event. A client that
                comes back after that gets 204, which stops a browser's EventSource.
            negotiate: Whether a client that accepts JSON and no event stream gets the collected events as one JSON array.
            g: Names of attributes of `flask.g` whose values the generator's own `g` gets.
            coalesce: Seconds within which texts that are yielded (a model's tokens) are joined to one event: nothing is reordered,
                and the first text, and one after a pause, is sent at once. None joins nothing.
            resumable: Whether the generator runs detached from its clients: one that loses its connection, or reloads the page and
                asks with the last event's id, goes on after that event, on any worker, and the generator isn't run again. Its
                events' ids are ours. All that it yields is kept until the history's seconds after its end, `SSE_RUN_BYTES` at the
                most.
            detach_grace: Seconds that a resumable generator goes on when its last client has left, at least 0; then it is
                cancelled.

        Returns:
            The view, which answers with an `EventSourceResponse`; called without a view, the decorator.

        Raises:
            InvalidSetting: An option has a value that it can't have.
            TypeError: The view is an asynchronous generator function.
        """
        options = StreamOptions(
            keepalive=keepalive,
            timeout=timeout,
            retry=retry,
            max_age=max_age,
            lifecycle=lifecycle,
            negotiate=negotiate,
            g=tuple_of(g),
            coalesce=coalesce,
            resumable=resumable,
            detach_grace=detach_grace,
        )
        decorate = functools.partial(_streaming, self, options=options)
        return decorate(view) if view is not None else decorate

    # Channels.

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

        Works in views, background greenlets and native threads, and outside any app context when one app has this extension.

        Args:
            data: A `ServerSentEvent`, a string, UTF-8 bytes, or anything that JSON can express. A `ServerSentEvent` keeps what it
                brings of the fields below.
            event: The event's name, one line; None for none, which browsers call `message`.
            type: The same, as Flask-SSE has it.
            id: An id of your own, 1 to 256 bytes; without one the event gets the broker's, by which clients resume exactly.
            retry: Milliseconds that clients wait before they reconnect, 0 to `2**31 - 1`; None says nothing.
            channel: The channel's name, 1 to 200 bytes.
            token: Names this publish, for a retry of your own: a second one with the same token within 60 s stores nothing.

        Returns:
            The event's id; for a token that is known, that of the first event.

        Raises:
            InvalidEvent: The event can't be written, has no data or an id of sseflask's form, or `event` and `type` differ.
            EventTooLarge: The event has more bytes than `SSE_MAX_EVENT_BYTES`.
            InvalidChannel: The channel can't have this name.
            BrokerUnavailable: The broker doesn't have the event, or it isn't known whether it has: `outcome` says which.
            RuntimeError: There is no app context, and not exactly one app has this extension.
        """
        if type is not None:
            event = one_name(event, type)
        return self._publish(channel, to_compact(data, event, id, retry), token)

    def channel(self, name: str, *, event: str | None = None, end_event: str | None = None, history: int | None = None) -> Channel:
        """A handle for one channel.

        Args:
            name: The channel's name, 1 to 200 bytes.
            event: The name of the events that it publishes, unless they bring their own.
            end_event: The name of the event that ends it; `SSE_END_EVENT` without one.
            history: Events that it keeps for clients that come back, at least 8; `SSE_HISTORY` without it.

        Returns:
            The handle; nothing is sent or stored by making it.

        Raises:
            InvalidChannel: The channel can't have this name.
            InvalidEvent: An event can't have this name.
            InvalidSetting: `history` is no such number.
            RuntimeError: There is no `end_event`, no app context, and not exactly one app has this extension.
        """
        for field in (event, end_event):
            if field is not None:
                ServerSentEvent("", event=field)
        if history is not None:
            Settings.check("history", history)
        ended = end_event if end_event is not None else self.settings.end_event
        return Channel(
            checked_name(name), lambda: self.installation.broker, self._publish, event=event, end_event=ended, history=history
        )

    def on(self, channel: str) -> Callable[[Listener], Listener]:
        """Decorates a listener: it is called in this process with each event of the channel, in order.

        It runs where the event is published, or where it arrives from the broker; what it raises is logged. It hears all apps that
        this object serves; one that an app factory makes anew for each app hears its own.

        Args:
            channel: The channel's name, 1 to 200 bytes; it is no pattern.

        Returns:
            The decorator, which takes a function of one `ServerSentEvent` and returns it.

        Raises:
            InvalidChannel: The channel can't have this name.
            TypeError: What it decorates can't be called, or is asynchronous or a generator function.
        """
        name = checked_name(channel)

        def listen(listener: Listener) -> Listener:
            check_listener(listener)
            self.decorated.listen(name, listener)
            return listener

        return listen

    @property
    def emitter(self) -> EventEmitter:
        """The registry of the app's channels in this process.

        Raises:
            BrokerUnavailable: Other processes serve the app too, and nothing joins them.
            RuntimeError: There is no app context, and not exactly one app has this extension.
        """
        return self.installation.broker.emitter

    @property
    def installation(self) -> Installation:
        """What the app has of this extension: its settings, and its broker in this process.

        Raises:
            RuntimeError: There is no app context, and not exactly one app has this extension.
        """
        installed: Installation = self._app().extensions[KEY]
        return installed

    @property
    def settings(self) -> Settings:
        """The settings of the app, as they were when the extension was installed.

        Raises:
            RuntimeError: There is no app context, and not exactly one app has this extension.
        """
        return self.installation.settings

    def subscribe(
        self,
        *channels: str,
        snapshot: Snapshot | None = None,
        filter: Filter | None = None,
        event: str | Iterable[str] | None = None,
        keepalive: float = UNSET,
        timeout: float | None = UNSET,
        retry: int | None = UNSET,
        max_age: float | None = UNSET,
    ) -> Response:
        """A response with the live events of channels, in the order in which they were published.

        It begins with the open event, whose id is the client's position. A client that comes back with `Last-Event-ID` gets what it
        missed, or a reset event that says that something is gone.

        Args:
            channels: Their names, 1 to 200 bytes each, none of which is a pattern; one that is named twice counts once.
            snapshot: Called when the position is taken, with it if it takes an argument; the events that it gives (one, or several)
                come first. What is published meanwhile follows, so it may repeat what they show. It runs again after a reset.
            filter: Called with each event; the client gets those for which it is true. It must not wait.
            event: The name, or names, of the events that the client gets; `"message"` stands for events without one. None for all.
            keepalive: As for `stream`.
            timeout: Seconds that the stream may live, above 0; None for no limit; unless given, `SSE_STREAM_TIMEOUT`.
            retry: As for `stream`.
            max_age: As for `stream`.

        Returns:
            The response; 204 for a client that comes back to what has ended.

        Raises:
            InvalidChannel: A channel can't have this name.
            InvalidSubscription: There is no channel, or there are more than `SSE_MAX_CHANNELS_PER_STREAM`.
            InvalidSetting: An option has a value that it can't have.
            InvalidEvent: An event of the snapshot can't be written. What else the snapshot raises, it raises here.
            BrokerUnavailable: The channels can't be read now, and `SSE_REFUSE` is `"status"`.
            TypeError: `snapshot` or `filter` can't be called, or is asynchronous; or `event` is neither a name nor several.
            RuntimeError: There is no app context, and not exactly one app has this extension.
        """
        if snapshot is not None:
            check_callback(snapshot, "snapshot is a function that gives the events that come first", may_yield=True)
        if filter is not None:
            check_callback(filter, "filter is a function of one event")
        names = tuple(dict.fromkeys(map(checked_name, channels)))
        events = None if event is None else _event_names(event)
        options = DEFAULTS
        if not keepalive is timeout is retry is max_age is UNSET:
            options = StreamOptions(keepalive=keepalive, timeout=timeout, retry=retry, max_age=max_age)
        return self.open_subscription(names, snapshot=snapshot, filter=filter, events=events, options=options)

    def open_subscription(
        self,
        channels: tuple[str, ...],
        *,
        snapshot: Snapshot | None = None,
        filter: Filter | None = None,
        events: frozenset[str] | None = None,
        options: StreamOptions | None = None,
        expires_in: float | None = None,
    ) -> Response:
        """What `subscribe` and the routes have in common: names that are checked, and a token's end.

        Args:
            channels: The channels' names, checked, each once.
            snapshot: As for `subscribe`.
            filter: As for `subscribe`.
            events: Names of the events that the client gets; None for all.
            options: The stream's; None for the app's settings.
            expires_in: Seconds until the stream ends because its token expires; None for never.

        Returns:
            As `subscribe`.

        Raises:
            InvalidSubscription: There is no channel, or there are more than `SSE_MAX_CHANNELS_PER_STREAM`.
            InvalidEvent: An event of the snapshot can't be written.
            BrokerUnavailable: The channels can't be read now, and `SSE_REFUSE` is `"status"`.
            RuntimeError: There is no app context, and not exactly one app has this extension.
        """
        installation = self.installation
        self.check_count(channels)
        current = active_request()
        asked = last_event_id(current) if current is not None else None
        if is_final_id(asked):
            return Response(status=204)
        try:
            return SubscriptionResponse(
                installation.broker,
                Selection(channels, filter, events),
                options if options is not None else DEFAULTS,
                installation.settings,
                asked=asked,
                snapshot=snapshot,
                expires_in=expires_in,
            )
        except BrokerUnavailable:
            if installation.settings.refuse != "retry":
                raise
            # A browser's EventSource gives up for good on any status but 200.
            return refusal(UNAVAILABLE, installation.settings)

    def disconnect(self, *, client_key: object = None, channel: str | None = None) -> None:
        """Ends streams, in all processes of the app: those of a client, of a channel, or of a client on a channel.

        Their generators are interrupted; their clients may come back, and are then asked anew whether they may. Takes a moment in
        other processes. A stream that is being opened meanwhile, by a request that began before, ends as soon as it is open.

        Args:
            client_key: The client, as `sse.client_key` names it; without such a rule, and with `SSE_MAX_STREAMS_PER_CLIENT`, its
                address.
            channel: The channel's name; it is no pattern.

        Raises:
            InvalidSubscription: Neither was given.
            InvalidChannel: The channel can't have this name.
            BrokerUnavailable: The other processes can't be told now.
            RuntimeError: There is no app context, and not exactly one app has this extension.
        """
        if client_key is None and channel is None:
            raise InvalidSubscription("name the client (client_key=) or the channel (channel=) whose streams are to end")
        name = checked_name(channel) if channel is not None else None
        key = str(client_key) if client_key is not None else None
        token = self.installation.control.disconnect(client_key=key, channel=name)
        if (current := active_request()) is not None:
            # A stream that the same request opens after this isn't meant.
            current.environ[TOLD] = (*current.environ.get(TOLD, ()), token)

    # Tasks.

    def start(self, target: Callable[..., Any], /, *args: Any, channel: str | None = None, **kwargs: Any) -> Task:
        """Starts work that goes on whether or not anybody watches: in its own greenlet, with its own app context.

        What `target` yields is published to the task's channel; inside it, `sseflask.current_task` is the task. What it returns is
        the result, of the event `task_completed`, which JSON must be able to express; if it raises, the task has failed.

        Args:
            target: A generator function, or any function.
            args: What it is called with.
            channel: The name of the channel of the task's events. Without one the task has its own, which ends with it.
            kwargs: What it is called with besides.

        Returns:
            The task.

        Raises:
            InvalidChannel: The channel can't have this name.
            TypeError: `target` can't be called, as a generator that has been made already, or is asynchronous.
            BrokerUnavailable: Nothing can be published now; nothing has been started.
            RuntimeError: It is called from a native thread of a process whose greenlets it can't reach; or there is no app context,
                and not exactly one app has this extension.
        """
        check_callback(target, "sse.start takes a function and then its arguments, as in sse.start(work, 7)", may_yield=True)
        name = checked_name(channel) if channel is not None else None
        return self.installation.tasks.start(self._app(), target, args, kwargs, channel=name)

    def task(self, task_id: str) -> Task | None:
        """A task, wherever it runs.

        Args:
            task_id: The task's id.

        Returns:
            The task; None if there is none of this id, or it ended so long ago (a day) that nobody remembers it.

        Raises:
            BrokerUnavailable: The broker can't be asked now.
            RuntimeError: There is no app context, and not exactly one app has this extension.
        """
        return self.installation.tasks.find(task_id)

    def task_response(
        self,
        task_id: str,
        *,
        keepalive: float = UNSET,
        timeout: float | None = UNSET,
        retry: int | None = UNSET,
        max_age: float | None = UNSET,
    ) -> Response:
        """A response that streams a task: where it stands, then its events, until it ends. On any worker.

        Args:
            task_id: The task's id.
            keepalive: As for `stream`.
            timeout: As for `subscribe`.
            retry: As for `stream`.
            max_age: As for `stream`.

        Returns:
            The response; 204 for a client that comes back to a task that has ended, and for one that ended longer ago than its
            events are kept.

        Raises:
            UnknownTask: There is no such task; unless the app handles it, the client gets 404 in JSON.
            InvalidSetting: An option has a value that it can't have.
            BrokerUnavailable: The broker can't be asked now, and `SSE_REFUSE` is `"status"`.
            RuntimeError: There is no app context, and not exactly one app has this extension.
        """
        options = StreamOptions(keepalive=keepalive, timeout=timeout, retry=retry, max_age=max_age)
        installation = self.installation
        try:
            return viewer.answer(installation.tasks, task_id, options)
        except BrokerUnavailable:
            if installation.settings.refuse != "retry":
                raise
            return refusal(UNAVAILABLE, installation.settings)

    def cancel(self, run_id: str) -> bool:
        """Asks a resumable stream's run, or a task, to end, wherever it runs: its generator is interrupted.

        Whoever knows the id of an event of a run may watch the run; whether they may also end it is for the view to say that calls
        this.

        Args:
            run_id: The id of one of its events, what stands before its dash, or a task's id.

        Returns:
            Whether there was anything to ask; False if it has ended, or isn't known.

        Raises:
            BrokerUnavailable: It can't be asked now.
            RuntimeError: There is no app context, and not exactly one app has this extension.
        """
        return self.installation.tasks.cancel(runs.run_of(run_id))

    def each(
        self, items: Iterable[T], process: Callable[[T], Any], event: str = "content", *, key: Callable[[T], object] | None = None
    ) -> Iterator[ServerSentEvent]:
        """Yields an event for each item, going on where one fails; see `sseflask.each`.

        Returns:
            The events.
        """
        return progress.each(items, process, event, key=key)

    def check_count(self, channels: tuple[str, ...]) -> None:
        """Checks that a subscription to so many channels can be had.

        Args:
            channels: The channels' names.

        Raises:
            InvalidSubscription: There is no channel, or there are more than `SSE_MAX_CHANNELS_PER_STREAM`.
            RuntimeError: There is no app context, and not exactly one app has this extension.
        """
        if not channels:
            raise InvalidSubscription("name a channel: subscribe(NAME), or ?channel=NAME, once for each, or in the path")
        most = self.settings.max_channels_per_stream
        if len(channels) > most:
            raise InvalidSubscription(f"a stream has 1 to {most} channels (SSE_MAX_CHANNELS_PER_STREAM), not {len(channels)}")

    # Who may.

    def authorize(self, rule: Authorize) -> Authorize:
        """Decorates the app's rule for the blueprint's routes; until it is installed, a second one takes its place.

        It guards each app that is installed after it, and those that have no rule yet: a factory may decorate before it installs
        the extension, or after it, and each of its apps keeps its own. Apps of different rules are safest with an `SSE` each.

        Without one, only the channels of `SSE_PUBLIC_CHANNELS` can be subscribed to, and nothing can be published, but with a
        token. Views that call `subscribe` or `publish` themselves are asked nothing.

        Args:
            rule: `(action, channel) -> bool`, called in the request's context: True opens, False and None don't, and anything else
                is an error. Actions are `"subscribe"`, `"publish"`, and, with the channel `"*"`, `"inspect"` for metrics and
                statistics.

        Returns:
            The rule.

        Raises:
            TypeError: The rule can't be called, or is asynchronous or a generator function.
            RuntimeError: An app was installed with another rule, which guards other apps, too: which is it to have?
        """
        check_callback(rule, "@sse.authorize takes a plain function of an action and a channel")
        self.decorated.decorate("authorize", rule)
        return rule

    def find_authorization(self) -> Authorize | None:
        """The rule that guards the app; None if it has none.

        Raises:
            RuntimeError: There is no app context, and not exactly one app has this extension.
        """
        late = self.decorated.find_waiting("authorize")
        if late is not None and process.current().is_first(f"the rule {name_of(late)}"):
            log.error(
                "the @sse.authorize rule %s guards no app: those that there are were installed with another one, and keep it",
                name_of(late),
                extra={"sse_function": name_of(late)},
            )
        return self.installation.decorated.rules.get("authorize")

    def client_key(self, find: Callable[[], object]) -> Callable[[], object]:
        """Decorates a function that says who the client of the current request is, for `SSE_MAX_STREAMS_PER_CLIENT`.

        It is also what `disconnect` names clients by, and whom a resumable stream belongs to. Which app has which function is as
        with `authorize`.

        Args:
            find: Takes no argument, and returns a string, or what has a text of its own, a number say. None, or anything else
                that is false, is for a client that isn't known: it isn't limited.

        Returns:
            The function.

        Raises:
            TypeError: It can't be called, or is asynchronous or a generator function.
            RuntimeError: An app was installed with another function, which other apps have, too.
        """
        check_callback(find, "@sse.client_key takes a plain function without arguments")
        self.decorated.decorate("client_key", find)
        return find

    def sign(self, *channels: str, action: str = "subscribe", expires_in: float = 3600) -> str:
        """A token that lets its holder use channels through the blueprint's routes, for clients that can't set headers.

        It is presented as `?token=`, `Authorization: Bearer` or the cookie `sse_token`. When it expires, streams that it opened end
        with the error event `token_expired`.

        Args:
            channels: Their names; none is a pattern.
            action: `"subscribe"`, `"publish"`, or, for the channel `"*"`, `"inspect"`.
            expires_in: Seconds for which it counts; above 0.

        Returns:
            The token, as text that a URL can have as it is.

        Raises:
            InvalidSubscription: No channel was given.
            InvalidChannel: A channel can't have this name.
            InvalidSetting: There is no such action, or the time isn't above 0.
            RuntimeError: The app has no secret key; or there is no app context, and not exactly one app has this extension.
        """
        if not channels:
            raise InvalidSubscription("name the channels that the token is for")
        if action not in auth.ACTIONS:
            raise InvalidSetting("action", action, " or ".join(repr(known) for known in auth.ACTIONS))
        SECONDS("expires_in", expires_in)
        names = tuple(checked_name(channel) for channel in channels)
        return auth.sign(self._app(), auth.Token(names, action, time.time() + expires_in))

    # Inside a stream.

    def heartbeat(self, seconds: float = 10) -> bool:
        """Puts the deadline of the current stream off; see `sseflask.heartbeat`."""
        return heartbeat(seconds)

    def release(self) -> None:
        """Gives back what the generator's app context holds, pooled database connections above all, and lets the stream go on.

        It runs the app context's teardown functions; what is used after it is acquired anew.

        Raises:
            NoActiveStream: It isn't called from inside a stream's generator.
        """
        release()

    def stats(self) -> dict[str, Any]:
        """What this process has open and has counted.

        Returns:
            `streams`, `streams_opened`, `streams_closed` by `CloseReason`, `streams_refused`, `streams_stuck`, `events_sent`,
            `bytes_sent`, `detached` (tasks and resumable runs that it works on), `events_replayed`, `events_refused`,
            `keepalives`, `resets`, `slow_clients`, `draining`, `lag_seconds` and `max_lag_seconds` (how late this process's timer
            woke), all of the process; `channels`, `subscriptions` and `events_published` of the app.

        Raises:
            RuntimeError: There is no app context, and not exactly one app has this extension.
        """
        broker = self.installation.broker_in_use
        found = [broker.emitter.find(name) for name in broker.emitter.channels()] if broker is not None else []
        return {
            **process.current().stats(),
            "channels": len(found),
            "subscriptions": sum(len(channel.subscribers) for channel in found if channel is not None),
            "events_published": broker.published if broker is not None else 0,
        }

    def _publish(
        self,
        channel: str,
        event: ServerSentEvent | str,
        token: str | None = None,
        *,
        history: int | None = None,
        is_end: bool = False,
    ) -> str:
        app = self._app()
        installation: Installation = app.extensions[KEY]
        broker = installation.ready or installation.broker
        if type(channel) is not str or broker.log.find(channel) is None or channel[0] == "-":
            # One that has a ring was checked before it got it, unless it is ours.
            checked_name(channel)
        if type(event) is not str or len(event) > installation.sure_length:
            checked_event(event, installation.settings.max_event_bytes)
        event_id = broker.publish(channel, event, token=token, is_end=is_end, history=history)
        if signals.event_published.receivers:
            signals.event_published.send(app, channel=channel, event=to_event(event), id=event_id)
        return event_id

    def _check_order(self, app: Flask, **_: Any) -> None:
        """Tells, at an app's first request, of views that a route has taken from below their `@sse.stream`."""
        request_started.disconnect(self._check_order, app)
        routed = list(app.view_functions.values())
        reached = {id(function) for view in routed for function in _wrapped_by(view)}
        for streaming in list(self._streaming):
            if id(streaming) not in reached and any(function in routed for function in _wrapped_by(streaming)):
                log.error(
                    "%s is routed without its @sse.stream, and what it yields is no event stream: @sse.stream goes below the "
                    "route, between @app.get(…) and def",
                    name_of(streaming),
                    extra={"sse_function": name_of(streaming)},
                )

    def _apps(self) -> list[Flask]:
        return [app for reference in self._installed if (app := reference()) is not None]

    def _app(self) -> Flask:
        if len(self._installed) == 1 and (only := self._installed[0]()) is not None:
            # As nearly always: whatever context is active, no other can be meant.
            return only
        try:
            app: Flask = current_app._get_current_object()  # type: ignore[attr-defined]
        except RuntimeError:
            pass
        else:
            if KEY in app.extensions:
                return app
        apps = self._apps()
        if len(apps) != 1:
            problem = (
                'it is installed on none: app.register_blueprint(sse, url_prefix="/events"), or sse.init_app(app), installs it'
                if not apps
                else f"it is installed on {len(apps)}: enter the context of the one you mean"
            )
            raise RuntimeError(f"this SSE can't tell which app is meant: {problem}")
        return apps[0]


def tuple_of(names: Any) -> Any:
    """A list of names as a tuple; what is no list as it is, for the options to judge."""
    return tuple(names) if isinstance(names, list | set | frozenset) else names


def _event_names(event: str | Iterable[str]) -> frozenset[str]:
    """The names of the events that a subscription's client gets."""
    names = [event] if isinstance(event, str) else list(event) if isinstance(event, Iterable) else [event]
    if not all(isinstance(name, str) for name in names):
        raise TypeError(f"event is the name of the events that the client gets, or a list of names, not {event!r}")
    return frozenset(names)


def _streaming(sse: SSE, view: Callable[P, Any], *, options: StreamOptions) -> Callable[P, Any]:
    if inspect.isasyncgenfunction(view):
        raise TypeError(
            f"{view.__qualname__} is an asynchronous generator function; @sse.stream takes a plain one (def, not async def)"
        )

    @functools.wraps(view)
    def streaming(*args: P.args, **kwargs: P.kwargs) -> Any:
        if options.resumable and not (options.negotiate and wants_json()):
            return runs.answer(sse.installation.tasks, options, lambda: current_app.ensure_sync(view)(*args, **kwargs))
        if options.lifecycle and is_final_id(last_event_id()):
            return Response(status=204)
        result = current_app.ensure_sync(view)(*args, **kwargs)
        if isinstance(result, tuple) and result and isinstance(result[0], Iterator):
            return (EventSourceResponse(result[0], options=options), *result[1:])
        return EventSourceResponse(result, options=options) if isinstance(result, Iterator) else result

    sse._streaming.add(streaming)  # noqa: SLF001
    return streaming


def _wrapped_by(view: Callable[..., Any] | None) -> Iterator[Callable[..., Any]]:
    """A view, and what decorators have made it of, one by one, as `functools.wraps` tells."""
    # Some objects have any attribute that they are asked for, and no end.
    for _ in range(MOST_DECORATORS):
        if view is None:
            return
        yield view
        view = getattr(view, "__wrapped__", None)
