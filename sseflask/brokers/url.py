"""From the setting `SSE_BROKER_URL` to the store that it names."""

from __future__ import annotations

import urllib.parse
from typing import Final

from sseflask.config import Settings, redacted
from sseflask.errors import InvalidSetting
from sseflask.tally import Tallies

from .base import Broker, Keep, Waker
from .memory import MemoryBroker
from .shared import SharedBroker
from .store import Store

_SQLITE: Final = "sqlite:///"
#: How surely SQLite has what it has accepted: `off` as far as the process lives no more, `full` also when the power goes.
SYNCHRONOUS: Final = ("off", "normal", "full")


def make_broker(settings: Settings, url: str, waker: Waker, keep: Keep) -> Broker:
    """The broker of one process.

    Args:
        settings: The app's.
        url: The broker's, which may be another than the settings say for `"auto"`.
        waker: Told of new entries.
        keep: Has a function called about once a second.

    Returns:
        The broker, not yet open.

    Raises:
        InvalidSetting: There is no such broker, the URL has an argument that it can't have, or what it needs isn't installed.
    """
    broker = _make_broker(settings, url, waker, keep)
    if settings.metrics_channels:
        broker.tallies = Tallies(settings.metrics_channels)
    return broker


def _make_broker(settings: Settings, url: str, waker: Waker, keep: Keep) -> Broker:
    bounds = {
        "history": settings.history,
        "history_seconds": settings.history_seconds,
        "history_bytes": settings.history_bytes,
    }
    if url in ("auto", "memory://"):
        return MemoryBroker(waker, keep, **bounds)  # type: ignore[arg-type]
    store = open_store(settings, url)
    return SharedBroker(store, waker, keep, timeout=settings.broker_timeout, **bounds)  # type: ignore[arg-type]


def open_store(settings: Settings, url: str, *, is_guest: bool = False) -> Store:
    """The store that a URL names; nothing is connected before it is used.

    Args:
        settings: Those of the app whose channels it keeps.
        url: `sqlite:///PATH`, `redis://…`, `rediss://…` or `unix://…`.
        is_guest: Whether it is somebody else's who publishes to them, and doesn't know all of the app's settings.

    Returns:
        The store.

    Raises:
        InvalidSetting: There is no such store, the URL has an argument that it can't have, or what it needs isn't installed.
    """
    if url.startswith(_SQLITE):
        from .sqlite import SQLiteStore

        path, synchronous = _sqlite(url)
        return SQLiteStore(
            path,
            history=settings.history,
            history_seconds=settings.history_seconds,
            history_bytes=settings.history_bytes,
            timeout=settings.broker_timeout,
            synchronous=synchronous,
            is_guest=is_guest,
        )
    if url.startswith(("redis://", "rediss://", "unix://")):
        from .redis import RedisStore

        return RedisStore(
            url,
            prefix=settings.broker_prefix,
            history=settings.history,
            history_seconds=settings.history_seconds,
            timeout=settings.broker_timeout,
        )
    expected = "sqlite:///PATH, redis://HOST:PORT/DB, rediss://… or unix://PATH: what several processes can share"
    raise InvalidSetting("SSE_BROKER_URL", redacted(url), expected)


def _sqlite(url: str) -> tuple[str, str]:
    """The path of an SQLite URL, and its argument `synchronous`."""
    path, _, query = url.removeprefix(_SQLITE).partition("?")
    arguments = dict(urllib.parse.parse_qsl(query, keep_blank_values=True))
    synchronous = arguments.pop("synchronous", "normal")
    if arguments or synchronous not in SYNCHRONOUS or not path:
        raise InvalidSetting("SSE_BROKER_URL", url, f"sqlite:///PATH, with ?synchronous= {', '.join(SYNCHRONOUS)} or without")
    return urllib.parse.unquote(path), synchronous
