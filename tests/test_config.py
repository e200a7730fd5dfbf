"""The `SSE_*` settings and the options of one view: each is checked at start-up, and refused by name with what would be right."""

from __future__ import annotations

import dataclasses
import gc
import math
import re
from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from flask import Flask

from sseflask import SSE, InvalidSetting
from sseflask.compat.flask_sse import ServerSentEventsBlueprint
from sseflask.config import UNSET, Settings, StreamOptions, in_use

SECONDS = "a number of seconds above 0"
NOT_NUMBERS: list[Any] = ["5", b"5", True, False, [], {}, object, 1j, Decimal(5), math.nan, -math.inf]
#: Beyond what clocks and sleeps take.
TOO_LONG: list[Any] = [math.inf, 10**9 + 1, 1e10, 10**400]

DEFAULTS: Mapping[str, Any] = {
    "SSE_KEEPALIVE_INTERVAL": 15.0,
    "SSE_STREAM_TIMEOUT": None,
    "SSE_OPEN_TIMEOUT": 0.5,
    "SSE_MAX_AGE": None,
    "SSE_RETRY": None,
    "SSE_SEND_TIMEOUT": 30.0,
    "SSE_MAX_EVENT_BYTES": 1024 * 1024,
    "SSE_RUN_BYTES": 16 * 1024 * 1024,
    "SSE_PRODUCER_LEASE": 30,
    "SSE_MAX_STREAMS": None,
    "SSE_REFUSE": "status",
    "SSE_DRAIN_SECONDS": 5.0,
    "SSE_BROKER_URL": "auto",
    "SSE_BROKER_TIMEOUT": 5.0,
    "SSE_BROKER_PREFIX": "sseflask",
    "SSE_HISTORY": 256,
    "SSE_HISTORY_SECONDS": 300.0,
    "SSE_HISTORY_BYTES": 64 * 1024 * 1024,
    "SSE_MAX_STREAMS_PER_CLIENT": None,
    "SSE_MAX_CHANNELS_PER_STREAM": 32,
    "SSE_SLOW_CLIENT": "disconnect",
    "SSE_OPEN_EVENT": "stream-open",
    "SSE_RESET_EVENT": "stream-reset",
    "SSE_END_EVENT": "stream-end",
    "SSE_ERROR_EVENT": "error",
    "SSE_PUBLIC_CHANNELS": (),
    "SSE_METRICS_CHANNELS": (),
    "SSE_CORS_ORIGINS": (),
}

#: What isn't a setting, and what is most like it.
UNKNOWN = [
    ("SSE_PUBLIC_CHANELS", "; did you mean SSE_PUBLIC_CHANNELS?"),
    ("SSE_KEEPALIVE", "; did you mean SSE_KEEPALIVE_INTERVAL?"),
    ("SSE_CORS", "; did you mean SSE_CORS_ORIGINS?"),
    ("SSE_XYZ", ""),
    ("SSE_REDIS_URL", "; it is Flask-SSE's, here SSE_BROKER_URL takes its place (sseflask.compat.flask_sse reads both)"),
]

EVENT_NAME = "an event name: a non-empty string of one line without NUL"
EVENT_NAMES = ["error", "oops", "é", "a b"]
NOT_EVENT_NAMES: list[Any] = ["", "a\nb", "a\rb", "a\0b", b"error", 5, True, []]
NOT_INTEGERS: list[Any] = [0, -1, 2048.0, math.inf, *NOT_NUMBERS]
#: What no browser sends as `Origin`.
NOT_ORIGINS = [
    "app.example.com",
    "https://",
    "https://app.example.com/",
    "https://app.example.com/path",
    "https://app.example.com?a",
    "https://App.example.com",
    "HTTPS://app.example.com",
    "https://app.example.com:443",
    "http://app.example.com:80",
    "http://app.example.com:65536",
    "http://app.example.com:0080",
    "https://*.example.com",
    "https://ann@app.example.com",
    "https://é.example.com",
    "https://app.example.com ",
    "https://app.example.com\n",
    "https://-.example.com-",
]
ORIGINS = (
    'a list of origins as browsers send them, such as ["https://app.example.com", "http://localhost:5173"]: scheme and host in '
    'lower case, a port unless it is the scheme\'s own, and no path; or "*" for any, without cookies'
)
PATTERNS = 'a list of glob patterns, such as ["news", "public/*"]'

#: Each setting: what is fine, what isn't, and what the message says would be right.
RULES: Mapping[str, tuple[list[Any], list[Any], str]] = {
    "SSE_KEEPALIVE_INTERVAL": ([0.1, 15, 3600.0, 10**9], [0, -1, 0.0, None, *NOT_NUMBERS], SECONDS),
    "SSE_STREAM_TIMEOUT": ([None, 0.1, 60, 10**9], [0, -1, *NOT_NUMBERS], f"None or {SECONDS}"),
    "SSE_OPEN_TIMEOUT": ([0, 0.0, 0.5, 60], [-0.1, None, *NOT_NUMBERS], "a number of seconds of at least 0"),
    "SSE_MAX_AGE": ([None, 0.1, 3600], [0, -1, *NOT_NUMBERS], f"None or {SECONDS}"),
    "SSE_RETRY": (
        [None, 0, 3000, 2**31 - 1],
        [-1, 2**31, 1.5, 3000.0, math.inf, 10**400, *NOT_NUMBERS],
        "None or a whole number of milliseconds from 0 to 2147483647",
    ),
    "SSE_SEND_TIMEOUT": ([0.1, 30], [0, -1, None, *NOT_NUMBERS], SECONDS),
    "SSE_MAX_EVENT_BYTES": ([1024, 10**9], [1023, None, *NOT_INTEGERS], "a whole number of bytes of at least 1024"),
    "SSE_RUN_BYTES": ([1024, 10**9], [1023, None, *NOT_INTEGERS], "a whole number of bytes of at least 1024"),
    "SSE_PRODUCER_LEASE": ([0.1, 30], [0, -1, None, *NOT_NUMBERS], SECONDS),
    "SSE_MAX_STREAMS": ([None, 1, 10**6], NOT_INTEGERS, "None or a whole number of streams of at least 1"),
    "SSE_REFUSE": (["status", "retry"], ["", "Status", None, 503, [], True], "'status' or 'retry'"),
    "SSE_DRAIN_SECONDS": ([0.1, 5, 29.9], [0, -1, None, *NOT_NUMBERS], SECONDS),
    "SSE_BROKER_URL": (
        ["auto", "memory://", "sqlite:///events.db", "redis://localhost/0", "rediss://localhost", "unix:///run/redis.sock"],
        ["", None, "memory", "sqlite://", "sqlite:///", "redis:", "http://localhost", 5, []],
        '"auto", memory://, sqlite:///PATH, redis://HOST:PORT/DB, rediss://… or unix://PATH',
    ),
    "SSE_BROKER_TIMEOUT": ([0.1, 5], [0, -1, None, *NOT_NUMBERS], SECONDS),
    "SSE_BROKER_PREFIX": (["a", "shop:events"], ["", "a b", "{a}", None, 5, "x" * 101], "1 to 100 letters, digits and . : / - _"),
    "SSE_HISTORY": ([8, 10**6], [7, None, *NOT_INTEGERS], "a whole number of events of at least 8"),
    "SSE_HISTORY_SECONDS": ([0.1, 300], [0, -1, None, *NOT_NUMBERS], SECONDS),
    "SSE_HISTORY_BYTES": ([65536, 10**12], [65535, None, *NOT_INTEGERS], "a whole number of bytes of at least 65536"),
    "SSE_MAX_STREAMS_PER_CLIENT": ([None, 1, 6], NOT_INTEGERS, "None or a whole number of streams of at least 1"),
    "SSE_MAX_CHANNELS_PER_STREAM": ([1, 32], [None, *NOT_INTEGERS], "a whole number of channels of at least 1"),
    "SSE_SLOW_CLIENT": (["disconnect", "latest"], ["", "drop", None, 5, []], "'disconnect' or 'latest'"),
    "SSE_OPEN_EVENT": ([None, *EVENT_NAMES], NOT_EVENT_NAMES, f"None or {EVENT_NAME}"),
    "SSE_RESET_EVENT": (EVENT_NAMES, [None, *NOT_EVENT_NAMES], EVENT_NAME),
    "SSE_END_EVENT": (EVENT_NAMES, [None, *NOT_EVENT_NAMES], EVENT_NAME),
    "SSE_ERROR_EVENT": (EVENT_NAMES, [None, *NOT_EVENT_NAMES], EVENT_NAME),
    "SSE_PUBLIC_CHANNELS": ([(), ("news",), ("news", "public/*")], ["news", b"news", None, 5, True, [1], [None]], PATTERNS),
    "SSE_METRICS_CHANNELS": ([(), ("news", "job:*"), ("x" * 200,) * 100], ["news", b"news", None, 5, True, [1], [None]], PATTERNS),
    "SSE_CORS_ORIGINS": (
        [(), ("https://app.example.com",), ("http://localhost:5173", "http://[::1]:8000", "capacitor://localhost"), ("*",)],
        ["https://app.example.com", b"x", None, 5, True, [1], [None], ["null"], [""], *([origin] for origin in NOT_ORIGINS)],
        ORIGINS,
    ),
}
#: Those that are times.
TIMES = [name for name, (_, _, expected) in RULES.items() if "of seconds" in expected]

RIGHT = [(name, value) for name, (right, _, _) in RULES.items() for value in right]
WRONG = [(name, value, expected) for name, (_, wrong, expected) in RULES.items() for value in wrong]
WRONG += [(name, value, f"{RULES[name][2]}, and at most 1000000000") for name in TIMES for value in TOO_LONG]


def shown(value: object) -> str:
    """A short name for a test's parameter."""
    return repr(value)[:30]


def field_of(name: str) -> str:
    """A setting's name among the attributes of `Settings`."""
    return name.removeprefix("SSE_").lower()


class TestSettings:
    """`SSE_*`."""

    def test_the_rules_name_all(self) -> None:
        """The rules and the defaults here are those of every setting that there is."""
        fields = {f"SSE_{field.name.upper()}" for field in dataclasses.fields(Settings)}
        assert fields == set(RULES) == set(DEFAULTS)

    def test_no_password(self) -> None:
        """An error about a broker's URL shows neither user nor password."""
        with pytest.raises(InvalidSetting) as raised:
            Settings.from_config({"SSE_BROKER_URL": "rediz://ann:geheim@localhost/0?password=geheim"})
        assert "geheim" not in str(raised.value) and "ann" not in str(raised.value)

    def test_defaults(self) -> None:
        """Without configuration each setting has its documented default, which is one that it may have."""
        settings = Settings.from_config({})
        assert {name: getattr(settings, field_of(name)) for name in DEFAULTS} == DEFAULTS
        assert Settings.from_config(DEFAULTS) is not settings

    @pytest.mark.parametrize(("name", "value"), RIGHT, ids=shown)
    def test_right(self, name: str, value: Any) -> None:
        """A value within its bounds is taken as it is."""
        settings = Settings.from_config({name: value})
        assert getattr(settings, field_of(name)) == value
        others = {other: getattr(settings, field_of(other)) for other in DEFAULTS if other != name}
        assert others == {other: default for other, default in DEFAULTS.items() if other != name}

    @pytest.mark.parametrize(("name", "value", "expected"), WRONG, ids=shown)
    def test_wrong(self, name: str, value: Any, expected: str) -> None:
        """A wrong value is refused when the extension is installed, by its name, with what would be right."""
        app = Flask("app")
        app.config[name] = value
        with pytest.raises(InvalidSetting) as raised:
            SSE(app)
        error = raised.value
        assert (error.setting, error.expected) == (name, expected)
        assert error.value is value
        assert str(error).startswith(f"{name} is ")
        assert str(error).endswith(f"; it must be {expected}")
        assert "sse" not in app.extensions

    @pytest.mark.parametrize("patterns", [["news", "public/*"], {"news"}], ids=repr)
    def test_patterns(self, patterns: Any) -> None:
        """Patterns may come in any collection, and are kept where nobody can change them."""
        assert isinstance(Settings.from_config({"SSE_PUBLIC_CHANNELS": patterns}).public_channels, tuple)

    @pytest.mark.parametrize("patterns", [["x"] * 101, ["x" * 201]])
    def test_too_many_series(self, patterns: list[str]) -> None:
        """Patterns that would make too many time series, or too long labels, are refused."""
        with pytest.raises(InvalidSetting, match=r"at most 100 glob patterns of at most 200 characters: each is a time series"):
            Settings.from_config({"SSE_METRICS_CHANNELS": patterns})

    def test_a_long_value_is_shortened(self) -> None:
        """A message stays readable, whatever the value is."""
        with pytest.raises(InvalidSetting, match=r"SSE_RETRY is 'x{70,79}… \(str\); it must be"):
            Settings.from_config({"SSE_RETRY": "x" * 100_000})

    def test_others_are_left_alone(self) -> None:
        """Settings that aren't ours aren't looked at."""
        settings = Settings.from_config({"SSE_OF_ANOTHER": object(), "RETRY": "x", "sse_retry": "x", "SECRET_KEY": 5})
        assert settings.retry is None

    def test_frozen(self) -> None:
        """Settings can't be changed after they have been checked."""
        with pytest.raises(dataclasses.FrozenInstanceError):
            Settings().retry = 5  # type: ignore[misc]

    def test_in_use(self) -> None:
        """The settings of living apps are known to those who check them against the server's; those of others go."""
        app = Flask("app")
        app.config["SSE_DRAIN_SECONDS"] = 1234.5
        SSE(app)
        assert 1234.5 in {settings.drain_seconds for settings in in_use}
        del app
        gc.collect()
        assert 1234.5 not in {settings.drain_seconds for settings in in_use}


class TestStreamOptions:
    """The options of `@sse.stream` and `EventSourceResponse`."""

    @pytest.mark.parametrize(
        ("name", "value", "expected"),
        [
            ("keepalive", 0, SECONDS),
            ("keepalive", None, SECONDS),
            ("keepalive", "5", SECONDS),
            ("timeout", 0, f"None or {SECONDS}"),
            ("timeout", "1m", f"None or {SECONDS}"),
            ("retry", -1, "None or a whole number of milliseconds from 0 to 2147483647"),
            ("retry", 1.5, "None or a whole number of milliseconds from 0 to 2147483647"),
            ("max_age", -3, f"None or {SECONDS}"),
            ("lifecycle", "yes", "True, False or a mapping that the start event carries"),
            ("lifecycle", None, "True, False or a mapping that the start event carries"),
            ("negotiate", 1, "True or False"),
            ("g", "user", 'a tuple of names, such as ("user",)'),
            ("g", (1,), 'a tuple of names, such as ("user",)'),
        ],
    )
    def test_wrong(self, name: str, value: Any, expected: str) -> None:
        """A wrong option is refused where the view is decorated, by its name, with what would be right."""
        with pytest.raises(InvalidSetting) as raised:
            SSE().stream(**{name: value})
        assert (raised.value.setting, raised.value.value, raised.value.expected) == (name, value, expected)

    def test_the_apps_settings_where_none_is_given(self) -> None:
        """An option that isn't given is the app's setting."""
        settings = Settings.from_config({"SSE_KEEPALIVE_INTERVAL": 1, "SSE_STREAM_TIMEOUT": 2, "SSE_RETRY": 3, "SSE_MAX_AGE": 4})
        resolved = StreamOptions().resolved(settings)
        assert (resolved.keepalive, resolved.timeout, resolved.retry, resolved.max_age) == (1, 2, 3, 4)

    def test_given_ones_win(self) -> None:
        """An option that is given wins over the app's setting, `None` and 0 too."""
        settings = Settings.from_config({"SSE_KEEPALIVE_INTERVAL": 1, "SSE_STREAM_TIMEOUT": 2, "SSE_RETRY": 3, "SSE_MAX_AGE": 4})
        given = StreamOptions(keepalive=10, timeout=None, retry=0, max_age=None)
        assert given.resolved(settings) == given

    def test_unset(self) -> None:
        """What stands for an option that isn't given says so."""
        assert repr(UNSET) == "the app's setting"


@pytest.mark.parametrize("url", ["sqlite:///:memory:", "sqlite:///:memory:?synchronous=off"])
def test_sqlite_in_memory(url: str) -> None:
    """What SQLite calls a database in memory would be a file of that name: it is refused with what is meant."""
    with pytest.raises(InvalidSetting, match=r"SSE_BROKER_URL is 'sqlite.*; it must be memory:// for each process's own memory"):
        Settings.from_config({"SSE_BROKER_URL": url})


@pytest.mark.parametrize("page", ["docs/how-to/secure.md", "docs/how-to/notify.md", "sseflask/config.py", "sseflask/extension.py"])
def test_who_is_not_limited(page: str) -> None:
    """Each text that says whom `SSE_MAX_STREAMS_PER_CLIENT` counts says whom it doesn't."""
    text = " ".join((Path(__file__).resolve().parents[1] / page).read_text().split())
    assert re.search(r"None[^.]*isn't limited", text)


@pytest.mark.parametrize(("name", "hint"), UNKNOWN)
def test_unknown(name: str, hint: str, caplog: pytest.LogCaptureFixture) -> None:
    """A name that begins as a setting's and is none is told of when the extension is installed, once, with the nearest one."""
    app = Flask("app")
    app.config.update({name: "x", "sse_lower": 1, "SSEX": 1, "SSE_RETRY": 5, 7: 7})  # type: ignore[dict-item]
    sse = SSE(app)
    app.register_blueprint(sse, url_prefix="/events")
    (line,) = [record for record in caplog.records if record.name == "sseflask.config"]
    assert line.getMessage() == f"{name} is no setting of sseflask, and changes nothing here{hint}"
    assert (line.levelname, vars(line)["sse_setting"]) == ("WARNING", name)


def test_known(caplog: pytest.LogCaptureFixture) -> None:
    """None of the settings is told of, nor Flask-SSE's where its names are used."""
    for sse, more in ((SSE(), {}), (ServerSentEventsBlueprint(), {"SSE_REDIS_URL": "redis://a.example"})):
        app = Flask("app")
        app.config.update(DEFAULTS, **more)
        sse.init_app(app)
    assert [record for record in caplog.records if record.name == "sseflask.config"] == []
