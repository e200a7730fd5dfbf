"""The `SSE_*` settings, read from an app's configuration and checked once."""

from __future__ import annotations

import dataclasses
import difflib
import logging
import re
import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from .errors import InvalidSetting
from .event import MAX_RETRY_MS

__all__ = ["Settings", "StreamOptions"]

log = logging.getLogger("sseflask.config")

Check = Callable[[str, Any], Any]

#: Where Flask-SSE's apps say which Redis they use.
FLASK_SSE_URL: Final = "SSE_REDIS_URL"

#: Seconds that a resumable generator goes on when its last client has left, unless its view says otherwise.
DETACH_GRACE: Final = 30.0
#: Patterns by which metrics count, and characters of one.
MOST_PATTERNS: Final = 100
MAX_PATTERN_LENGTH: Final = 200
#: In `SSE_CORS_ORIGINS`: pages of any origin, without cookies.
ANY_ORIGIN: Final = "*"
#: Some thirty years: no time-out is longer, and clocks and sleeps take it.
MAX_SECONDS: Final = 1_000_000_000


def _number(*, above: float | None = None, at_least: float | None = None, unit: str) -> Check:
    bound = f"above {above:g}" if above is not None else f"of at least {at_least:g}"

    def check(name: str, value: Any) -> float:
        right = (
            isinstance(value, int | float)
            and not isinstance(value, bool)
            and (above is None or value > above)
            and (at_least is None or value >= at_least)
        )
        if not right:
            raise InvalidSetting(name, value, f"a number of {unit} {bound}")
        if value > MAX_SECONDS:
            raise InvalidSetting(name, value, f"a number of {unit} {bound}, and at most {MAX_SECONDS}")
        return float(value)

    return check


def _integer(*, at_least: int, unit: str, at_most: int | None = None) -> Check:
    bound = f"of at least {at_least}" if at_most is None else f"from {at_least} to {at_most}"

    def check(name: str, value: Any) -> int:
        right = isinstance(value, int) and not isinstance(value, bool) and value >= at_least
        if not right or (at_most is not None and value > at_most):
            raise InvalidSetting(name, value, f"a whole number of {unit} {bound}")
        return int(value)

    return check


def _optional(check: Check) -> Check:
    def optional(name: str, value: Any) -> Any:
        if value is None:
            return None
        try:
            return check(name, value)
        except InvalidSetting as error:
            raise InvalidSetting(name, value, f"None or {error.expected}") from None

    return optional


def _one_of(*choices: str) -> Check:
    def check(name: str, value: Any) -> str:
        if value not in choices:
            raise InvalidSetting(name, value, " or ".join(repr(choice) for choice in choices))
        return str(value)

    return check


def _broker_url(name: str, value: Any) -> str:
    schemes = ("memory://", "sqlite:///", "redis://", "rediss://", "unix://")
    if not isinstance(value, str) or not (value == "auto" or value.startswith(schemes)) or value == "sqlite:///":
        shown = redacted(value) if isinstance(value, str) else value
        raise InvalidSetting(name, shown, '"auto", memory://, sqlite:///PATH, redis://HOST:PORT/DB, rediss://… or unix://PATH')
    if value.startswith("sqlite:///:memory:"):
        raise InvalidSetting(name, value, "memory:// for each process's own memory: SQLite's would be a file of that name")
    return value


def _prefix(name: str, value: Any) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"[\w.:/-]{1,100}", value, re.ASCII):
        raise InvalidSetting(name, value, "1 to 100 letters, digits and . : / - _")
    return value


#: The name of the argument that a token comes in, in a pattern: a server reads `%74oken` as well.
TOKEN: Final = "".join(f"(?:{letter}|%{ord(letter):x})" for letter in "token")


def redacted(url: str) -> str:
    """A URL as logs and errors may show it: without what stands before the host's name, and without a password or a token."""
    url = re.sub(r"(?<=://)[^/@]*@", "", url)
    return re.sub(rf"(?i)((?:password|username|[?&]{TOKEN})=)[^&]*", r"\1…", url)


def _event_name(name: str, value: Any) -> str:
    if not isinstance(value, str) or not value or re.search(r"[\r\n\0]", value):
        raise InvalidSetting(name, value, "an event name: a non-empty string of one line without NUL")
    return value


def _patterns(name: str, value: Any) -> tuple[str, ...]:
    if isinstance(value, str) or not isinstance(value, Iterable) or not all(isinstance(pattern, str) for pattern in value):
        raise InvalidSetting(name, value, 'a list of glob patterns, such as ["news", "public/*"]')
    return tuple(value)


def _some_patterns(name: str, value: Any) -> tuple[str, ...]:
    patterns = _patterns(name, value)
    if len(patterns) > MOST_PATTERNS or any(len(pattern) > MAX_PATTERN_LENGTH for pattern in patterns):
        expected = f"at most {MOST_PATTERNS} glob patterns of at most {MAX_PATTERN_LENGTH} characters: each is a time series"
        raise InvalidSetting(name, value, expected)
    return patterns


def _origins(name: str, value: Any) -> tuple[str, ...]:
    expected = (
        'a list of origins as browsers send them, such as ["https://app.example.com", "http://localhost:5173"]: scheme and host in '
        'lower case, a port unless it is the scheme\'s own, and no path; or "*" for any, without cookies'
    )
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise InvalidSetting(name, value, expected)
    origins = tuple(value)
    if not all(isinstance(origin, str) and (origin == ANY_ORIGIN or _is_origin(origin)) for origin in origins):
        raise InvalidSetting(name, value, expected)
    return origins


def _is_origin(text: str) -> bool:
    """Whether a browser could send just this as `Origin`. Whatever else would never match, and nobody would notice why."""
    found = _ORIGIN.fullmatch(text)
    if found is None:
        return False
    scheme, port = found["scheme"], found["port"]
    return port is None or (int(port) <= 65535 and port != {"http": "80", "https": "443"}.get(scheme))


_ORIGIN: Final = re.compile(
    r"(?P<scheme>[a-z][a-z0-9+.-]*)://(?:[a-z0-9_](?:[a-z0-9_.-]*[a-z0-9_])?|\[[0-9a-f:.]+\])(?::(?P<port>[1-9][0-9]{0,4}))?",
    re.ASCII,
)

SECONDS: Final = _number(above=0, unit="seconds")
SECONDS_OR_NONE: Final = _optional(SECONDS)
MILLISECONDS_OR_NONE: Final = _optional(_integer(at_least=0, at_most=MAX_RETRY_MS, unit="milliseconds"))


def _setting(default: Any, check: Check) -> Any:
    return dataclasses.field(default=default, metadata={"check": check})


@dataclasses.dataclass(frozen=True, slots=True, weakref_slot=True, kw_only=True, eq=False)
class Settings:
    """The settings of one app, each read from `app.config` under its name in capitals with `SSE_` before it.

    What values each may have is known to its check, which says so in `InvalidSetting.expected`.

    Attributes:
        keepalive_interval: Seconds of silence after which a stream gets a keepalive comment. It is sent up to a fifth earlier, so
            that many streams don't all get theirs at once. The shortest idle limit of a proxy that we know of is 29 s.
        stream_timeout: Seconds that a stream may live without `heartbeat()`; None for no limit. Then `StreamTimeout` is raised in
            its generator, and the client gets the error event. Nothing of it concerns tasks, which have as long as they take.
        open_timeout: Seconds that the response's headers wait for a generator's first event. An error before that is an ordinary
            HTTP error. With 0 the headers go out at once.
        max_age: Seconds after which a stream ends cleanly, so that its client reconnects; None for no limit. Set it somewhat below
            a proxy's limit on whole responses.
        retry: Milliseconds that a client waits before it reconnects, told to it when its stream opens; None says nothing, and
            browsers take some 3 to 5 s. Where many are told at once to come back, each is told half to one and a half times it.
        send_timeout: Seconds that a client may take nothing of what was sent to it before its stream is cut. Whatever it takes
            gives it the same time again, so that a large event on a slow line arrives. It is the connection's `TCP_USER_TIMEOUT`
            too, so a client that has vanished is noticed that long after the next keepalive.
        max_event_bytes: Bytes that one encoded event may have. A larger one is refused where it is yielded or published, by
            `EventTooLarge`, which the route that publishes answers with 413.
        run_bytes: Bytes of events that are kept for one resumable run, which fails with more, or that `negotiate=True` collects
            for one JSON array.
        producer_lease: Seconds within which it is noticed, on every worker, that the process has died that worked on a task or a
            resumable run. Also how long the work waits for a broker that can't be reached, 50 s at the most.
        max_streams: Streams that one worker keeps open; None for the soft limit of open files, less 64. There may be as many
            resumable runs besides.
        refuse: What a client over a limit gets: `"status"` for 503 (429 for the limit per client) with `Retry-After`, or `"retry"`
            for an empty stream that tells it to come back after about `SSE_RETRY` (5 s without it). A browser's EventSource gives
            up for good on any status but 200.
        drain_seconds: Seconds over which a worker that stops spreads the ends of its streams. `StreamWorker` refuses to start
            unless it is below gunicorn's `graceful_timeout`.
        broker_url: What carries events from publishers to streams. `"auto"`: under `StreamWorker` an SQLite file that its gunicorn
            makes, shares between its workers and removes; elsewhere memory, and several processes are refused. `memory://`: each
            process has channels of its own. `sqlite:///PATH`: a file, for the processes of one host; its history outlives the
            server. `redis://HOST:PORT/DB`, `rediss://…`, `unix://PATH`: Redis or Valkey, for several hosts.
        broker_timeout: Seconds that a publish, or reading a channel's history, may take while the broker can't be reached; then
            `BrokerUnavailable` is raised.
        broker_prefix: What the keys in Redis begin with, so that several apps can share one. With `"auto"`, what workers tell apps
            of one import name apart by: each needs its own, the same in all workers.
        history: Events that each channel keeps for clients that come back; `sse.channel(…, history=)` sets it for one channel.
        history_seconds: Seconds that a channel keeps them; in one that has gone quiet the older ones stay until the last has had
            its time. The ends of tasks and resumable runs are kept as long.
        history_bytes: Bytes that all channels of a process may keep, about; those published to least recently give way first.
        max_streams_per_client: Streams of one client in a worker, told apart by `@sse.client_key`, or, in an app without it, by
            address; None for no limit. A client for which `client_key` returns None isn't limited. Behind a proxy all clients
            have its address, unless the app sets `ProxyFix` up.
        max_channels_per_stream: Channels that one subscription may name.
        slow_client: What becomes of a client that falls behind its channel's history: `"disconnect"`, so that it reconnects and
            replays, or `"latest"`, a reset event and then what is published from there on.
        open_event: The name of the event that opens a subscription and carries its position. None: only an id, without an event,
            which Firefox and several other clients don't keep.
        reset_event: The name of the event that tells a client that something is gone.
        end_event: The name of the event that ends a channel, unless the channel has its own, and a resumable run.
        error_event: The name of the event that tells a client of an error.
        public_channels: Glob patterns of the channels that anyone may subscribe to by the blueprint's routes. They are
            case-sensitive, and `*` stands for slashes too.
        metrics_channels: Glob patterns by which metrics count subscriptions and events; a channel counts under the first that
            matches, else under `other`. There may be 100 of them, of 200 characters each: each is a time series.
        cors_origins: Origins of other sites whose pages may use the blueprint's routes, exactly as browsers send them
            (`"https://app.example.com"`), with cookies; `"*"` for any other, without.

    Source:
        Which proxies cut idle streams, and after how long, is what the keepalive's default goes by: 29 s is the shortest.
    """

    keepalive_interval: float = _setting(15.0, SECONDS)
    stream_timeout: float | None = _setting(None, SECONDS_OR_NONE)
    open_timeout: float = _setting(0.5, _number(at_least=0, unit="seconds"))
    max_age: float | None = _setting(None, SECONDS_OR_NONE)
    retry: int | None = _setting(None, MILLISECONDS_OR_NONE)
    send_timeout: float = _setting(30.0, SECONDS)
    max_event_bytes: int = _setting(1024 * 1024, _integer(at_least=1024, unit="bytes"))
    run_bytes: int = _setting(16 * 1024 * 1024, _integer(at_least=1024, unit="bytes"))
    producer_lease: float = _setting(30.0, SECONDS)
    max_streams: int | None = _setting(None, _optional(_integer(at_least=1, unit="streams")))
    refuse: str = _setting("status", _one_of("status", "retry"))
    drain_seconds: float = _setting(5.0, SECONDS)
    broker_url: str = _setting("auto", _broker_url)
    broker_timeout: float = _setting(5.0, SECONDS)
    broker_prefix: str = _setting("sseflask", _prefix)
    history: int = _setting(256, _integer(at_least=8, unit="events"))
    history_seconds: float = _setting(300.0, SECONDS)
    history_bytes: int = _setting(64 * 1024 * 1024, _integer(at_least=64 * 1024, unit="bytes"))
    max_streams_per_client: int | None = _setting(None, _optional(_integer(at_least=1, unit="streams")))
    max_channels_per_stream: int = _setting(32, _integer(at_least=1, unit="channels"))
    slow_client: str = _setting("disconnect", _one_of("disconnect", "latest"))
    open_event: str | None = _setting("stream-open", _optional(_event_name))
    reset_event: str = _setting("stream-reset", _event_name)
    end_event: str = _setting("stream-end", _event_name)
    error_event: str = _setting("error", _event_name)
    public_channels: tuple[str, ...] = _setting((), _patterns)
    metrics_channels: tuple[str, ...] = _setting((), _some_patterns)
    cors_origins: tuple[str, ...] = _setting((), _origins)

    @classmethod
    def check(cls, name: str, value: Any) -> Any:
        """Checks a value for one setting.

        Args:
            name: The setting's, in lower case and without its prefix.
            value: What it is to be.

        Returns:
            The value, as `Settings` keeps it.

        Raises:
            InvalidSetting: It can't have this value.
        """
        (field,) = (field for field in dataclasses.fields(cls) if field.name == name)
        return field.metadata["check"](name, value)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Settings:
        """Reads and checks the settings.

        Args:
            config: An app's configuration; names that aren't settings of ours are left alone.

        Returns:
            The settings, with defaults for those that aren't in `config`.

        Raises:
            InvalidSetting: One has a value that it can't have; its name and what would be right are in the message.
        """
        values = {}
        for field in dataclasses.fields(cls):
            name = f"SSE_{field.name.upper()}"
            if name in config:
                values[field.name] = field.metadata["check"](name, config[name])
        settings = cls(**values)
        in_use.add(settings)
        return settings


def warn_of_unknown(config: Mapping[str, Any], *, besides: tuple[str, ...] = ()) -> None:
    """Logs a warning for each name that begins as our settings do and is none: other extensions may have such names, too.

    Args:
        config: An app's configuration.
        besides: Names that aren't in `Settings` and have a meaning in this app.
    """
    known = [f"SSE_{field.name.upper()}" for field in dataclasses.fields(Settings)]
    for name in config:
        if not isinstance(name, str) or not name.startswith("SSE_") or name in known or name in besides:
            continue
        if name == FLASK_SSE_URL:
            hint = "; it is Flask-SSE's, here SSE_BROKER_URL takes its place (sseflask.compat.flask_sse reads both)"
        else:
            # What all begin with makes none more alike.
            near = difflib.get_close_matches(name[4:], [other[4:] for other in known], n=1, cutoff=0.5)
            hint = f"; did you mean SSE_{near[0]}?" if near else ""
        log.warning("%s is no setting of sseflask, and changes nothing here%s", name, hint, extra={"sse_setting": name})


#: The settings of every app of this process, for checks that concern the whole server (its graceful time-out).
in_use: Final[weakref.WeakSet[Settings]] = weakref.WeakSet()


class _Unset:
    def __repr__(self) -> str:
        return "the app's setting"


#: An option that was not given: the app's setting counts. `None` is a value of its own: no limit.
UNSET: Final[Any] = _Unset()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class StreamOptions:
    """What one view, or one response, sets for its streams; each that isn't given is the app's setting.

    What values each may have is said by `InvalidSetting.expected`.

    Attributes:
        keepalive: As `SSE_KEEPALIVE_INTERVAL`, in seconds.
        timeout: As `SSE_STREAM_TIMEOUT`, in seconds; None for no limit. Of a resumable stream it is the run's, not its viewers'.
        retry: As `SSE_RETRY`, in milliseconds; None says nothing.
        max_age: As `SSE_MAX_AGE`, in seconds; None for no limit. A viewer's of a resumable stream: the run goes on.
        lifecycle: True, or a mapping of what the `start` event carries besides, for a stream that begins with a `start` event
            and ends with a `complete` event (the generator's return value is its `result`) or an error event. A client that comes
            back after that gets 204, which stops a browser's EventSource.
        negotiate: Whether a client that accepts JSON and no event stream gets the collected events as one JSON array; of
            `SSE_RUN_BYTES` at the most.
        g: Names of attributes of `flask.g` whose values the generator's own `g` gets. They are values, not connections: what
            teardown functions close is closed by then.
        coalesce: Seconds within which texts that are yielded (a model's tokens) are joined to one event. Nothing is reordered, and
            the first text, and one after a pause, is sent at once. None joins nothing.
        resumable: Whether the generator runs detached from its clients: one that loses its connection, or reloads the page and asks
            with the last event's id, goes on after that event, on any worker, and the generator isn't run again. Its events' ids
            are ours. All that it yields is kept until `SSE_HISTORY_SECONDS` after its end, `SSE_RUN_BYTES` at the most.
        detach_grace: Seconds that a resumable generator goes on when its last client has left; then it is cancelled.

    Raises:
        InvalidSetting: An option has a value that it can't have.
    """

    keepalive: float = UNSET
    timeout: float | None = UNSET
    retry: int | None = UNSET
    max_age: float | None = UNSET
    lifecycle: bool | Mapping[str, Any] = False
    negotiate: bool = False
    g: tuple[str, ...] = ()
    coalesce: float | None = None
    resumable: bool = False
    detach_grace: float = DETACH_GRACE
    # What `resolved` last gave, and for which settings: a view's options meet the same ones at each request.
    _last: tuple[Settings, StreamOptions] | None = dataclasses.field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        checks = {"keepalive": SECONDS, "timeout": SECONDS_OR_NONE, "retry": MILLISECONDS_OR_NONE, "max_age": SECONDS_OR_NONE}
        for name, check in checks.items():
            if getattr(self, name) is not UNSET:
                check(name, getattr(self, name))
        if not isinstance(self.lifecycle, bool | Mapping):
            raise InvalidSetting("lifecycle", self.lifecycle, "True, False or a mapping that the start event carries")
        for name in ("negotiate", "resumable"):
            if not isinstance(getattr(self, name), bool):
                raise InvalidSetting(name, getattr(self, name), "True or False")
        SECONDS_OR_NONE("coalesce", self.coalesce)
        _number(at_least=0, unit="seconds")("detach_grace", self.detach_grace)
        names: Any = self.g
        if not isinstance(names, tuple) or not all(isinstance(name, str) for name in names):
            raise InvalidSetting("g", self.g, 'a tuple of names, such as ("user",)')

    def resolved(self, settings: Settings) -> StreamOptions:
        """Fills in what wasn't given.

        Args:
            settings: The app's.

        Returns:
            These options, with the app's settings where none was given.
        """
        if self._last is not None and self._last[0] is settings:
            return self._last[1]
        options = dataclasses.replace(
            self,
            keepalive=settings.keepalive_interval if self.keepalive is UNSET else self.keepalive,
            timeout=settings.stream_timeout if self.timeout is UNSET else self.timeout,
            retry=settings.retry if self.retry is UNSET else self.retry,
            max_age=settings.max_age if self.max_age is UNSET else self.max_age,
        )
        object.__setattr__(self, "_last", (settings, options))
        return options


#: The options of a stream for which none was given.
DEFAULTS: Final = StreamOptions()
