"""The dashboard: a page that shows what a server's streams and channels do, and what it asks for."""

from __future__ import annotations

import itertools
import os
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from flask import Response, current_app, jsonify, request
from werkzeug.exceptions import BadRequest

from . import auth, ledger
from .brokers import Broker, SharedBroker
from .emitter import RESERVED
from .event import ServerSentEvent
from .ledger import Numbers
from .response import EventSourceResponse

if TYPE_CHECKING:
    from .extension import SSE

STATIC: Final = Path(__file__).with_name("static")
CONTENT_TYPES: Final = {".html": "text/html", ".js": "text/javascript", ".css": "text/css"}
#: What the page may load, and who may show it in a frame: its own files, and nobody.
POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
#: Seconds between two events of the page's stream, and for which what they were made of serves all who look.
INTERVAL: Final = 1.0
FRESH_SECONDS: Final = 0.9
#: What takes long serves for longer: for so many times what it took, and so many seconds at the most.
FRESH_TIMES: Final = 50
FRESH_SECONDS_MOST: Final = 5.0
#: Seconds after which whoever looks is asked anew whether they may.
CHECKED_SECONDS: Final = 600.0
#: Channels that one answer has at the most, and where nothing else is said.
MOST_PER_PAGE: Final = 100
PER_PAGE: Final = 25
#: Characters that may be searched for: a channel's name has no more.
MOST_SEARCHED: Final = 200
#: How far back the events of a channel are counted: seconds, in so many parts, and the events that are looked at.
RATE_SECONDS: Final = 60.0
RATE_PARTS: Final = 12
MOST_COUNTED: Final = 1000
#: Which numbers the page shows.
SHOWN: Final = (
    "streams",
    "subscriptions",
    "channels",
    "detached",
    "history_bytes",
    "broker_up",
    "draining",
    "lag_seconds",
    "max_lag_seconds",
    "streams_opened",
    "streams_closed",
    "streams_refused",
    "streams_stuck",
    "events_published",
    "events_sent",
    "events_replayed",
    "resets",
    "slow_clients",
    "bytes_sent",
)

T = TypeVar("T")


class Shared(Generic[T]):
    """What is taken once for all who look at about the same time.

    Attributes:
        taken_at: The monotonic second at which it was.
    """

    def __init__(self) -> None:
        self.taken_at = 0.0
        self._fresh_seconds = FRESH_SECONDS
        self._found: T | None = None
        self._is_taking = False

    def get(self, take: Callable[[], T]) -> T:
        """It, taken anew if it isn't fresh; while somebody takes it, the others get what there was."""
        if self._found is not None and (self._is_taking or time.monotonic() - self.taken_at < self._fresh_seconds):
            return self._found
        self._is_taking = True
        began = time.monotonic()
        try:
            self._found = take()
            self.taken_at = time.monotonic()
            self._fresh_seconds = min(max(FRESH_SECONDS, FRESH_TIMES * (self.taken_at - began)), FRESH_SECONDS_MOST)
        finally:
            self._is_taking = False
        return self._found


class Snapshots:
    """What one process has taken for all dashboards that ask it.

    Attributes:
        numbers: Those of all workers and of each, and the last closes.
        channels: By broker: the channels that have streams, and how many, those with the most first.
    """

    def __init__(self) -> None:
        self.numbers: Shared[tuple[Numbers, list[Any]]] = Shared()
        self.channels: weakref.WeakKeyDictionary[Broker, Shared[list[tuple[str, int]]]] = weakref.WeakKeyDictionary()


def install(sse: SSE) -> None:
    """Adds the routes to the blueprint."""
    sse.add_url_rule("/-/dashboard", "dashboard", lambda: page(sse))
    sse.add_url_rule("/-/dashboard.js", "dashboard_script", lambda: file("dashboard.js"))
    sse.add_url_rule("/-/dashboard.css", "dashboard_style", lambda: file("dashboard.css"))
    sse.add_url_rule("/-/dashboard/events", "dashboard_events", lambda: events(sse))
    sse.add_url_rule("/-/channels", "channels", lambda: channels(sse))


def check_inspect(sse: SSE) -> float | None:
    """Whether the current request may see what concerns all channels.

    Returns:
        Seconds until a token that was needed expires; None if none was.

    Raises:
        Refused: It may not.
    """
    return auth.check(current_app, "inspect", (auth.ALL,), sse.find_authorization(), ())


def file(name: str) -> Response:
    """A file that comes with the package. A browser asks each time whether there is a new one."""
    path = STATIC / name
    response = Response(path.read_bytes(), content_type=f"{CONTENT_TYPES[path.suffix]}; charset=utf-8")
    response.headers["Cache-Control"] = "no-cache"
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.add_etag()
    response.make_conditional(request)
    return response


def page(sse: SSE) -> Response:
    """The page."""
    check_inspect(sse)
    response = file("dashboard.html")
    response.headers["Content-Security-Policy"] = POLICY
    # Its address may carry a token.
    response.headers["Referrer-Policy"] = "no-referrer"
    response.headers["Cache-Control"] = "no-cache, private"
    return response


def events(sse: SSE) -> Response:
    """What the page shows, once a second, for as long as whoever looks may."""
    ages = [CHECKED_SECONDS, check_inspect(sse), sse.settings.max_age]
    return EventSourceResponse(_events(), timeout=None, max_age=min(age for age in ages if age is not None))


def channels(sse: SSE) -> Response:
    """A page of the channels that have streams, over all processes, those with the most first: `?search=&page=&per_page=`."""
    check_inspect(sse)
    search = request.args.get("search", "")
    if len(search) > MOST_SEARCHED:
        raise BadRequest(f"search has at most {MOST_SEARCHED} characters, not {len(search)}")
    number, size = _natural("page", 1), _natural("per_page", PER_PAGE, MOST_PER_PAGE)
    broker = sse.installation.broker
    shared = snapshots().channels.setdefault(broker, Shared())
    every = shared.get(lambda: counted(broker))
    sought = search.casefold()
    found = [pair for pair in every if sought in pair[0].casefold()] if sought else every
    pages = max(-(-len(found) // size), 1)
    number = min(number, pages)
    shown = found[(number - 1) * size : number * size]
    rows = [{"name": name, "streams": count, **_rate(broker, name)} for name, count in shown]
    # While somebody goes on asking, this process reads them too, though it has none of their streams.
    broker.prepare([name for name, _ in shown])
    response = jsonify(total=len(every), found=len(found), page=number, pages=pages, channels=rows)
    response.headers["Cache-Control"] = "no-store"
    return response


def counted(broker: Broker) -> list[tuple[str, int]]:
    """The channels that have streams, in this process or, as of some seconds ago, in others; those with the most first.

    Raises:
        BrokerUnavailable: The others' can't be known now.
    """
    found = dict(broker.store.counts()) if isinstance(broker, SharedBroker) else {}
    with broker.emitter.lock:
        own = broker.emitter.subscribed()
    for name, count in own.items():
        # Not reported yet.
        found[name] = max(found.get(name, 0), count)
    return sorted(
        ((name, count) for name, count in found.items() if not name.startswith(RESERVED)), key=lambda pair: (-pair[1], pair[0])
    )


def snapshots() -> Snapshots:
    """This process's."""
    pid = os.getpid()
    found = _snapshots.get(pid)
    if found is None:
        found = _snapshots.setdefault(pid, Snapshots())
        for other in [key for key in _snapshots if key != pid]:
            # Its parent's, which a forked child has a copy of.
            _snapshots.pop(other, None)
    return found


_snapshots: Final[dict[int, Snapshots]] = {}


def _events() -> Iterator[ServerSentEvent]:
    """The numbers each second, and the last closes when there are new ones."""
    told: list[Any] | None = None
    while True:
        try:
            numbers, closes = snapshots().numbers.get(_numbers)
        except OSError as error:
            problem = f"the other workers' numbers can't be read now: {error.strerror}"
            yield ServerSentEvent({"problem": problem}, event="problem")
        else:
            yield ServerSentEvent(numbers, event="numbers")
            if closes != told:
                told = closes
                yield ServerSentEvent(closes, event="closes")
        time.sleep(INTERVAL)


def _numbers() -> tuple[Numbers, list[Any]]:
    at, reading = time.time(), ledger.current().read()
    present = reading.present
    workers = {str(pid): _shown({**now, **reading.ever[pid]}) for pid, now in sorted(reading.now.items())}
    return {"at": at, "all": _shown({**present, **reading.total}), "workers": workers}, present["closes"]


def _shown(numbers: Numbers) -> Numbers:
    return {name: numbers[name] for name in SHOWN if name in numbers}


def _rate(broker: Broker, name: str) -> dict[str, Any]:
    """A channel's events of the last minute, as far as this process reads it and keeps them: all of them, and part by part."""
    now = time.monotonic()
    with broker.emitter.lock:
        ring = broker.log.find(name)
        if ring is None or not (ring.held or ring.entries):
            return {"rate": None, "recent": None}
        ages = [now - entry.at for entry in itertools.islice(reversed(ring.entries), MOST_COUNTED)]
        is_full = len(ages) in (MOST_COUNTED, broker.log.capacity(ring))
    part = RATE_SECONDS / RATE_PARTS
    recent = [0] * RATE_PARTS
    for age in ages:
        if age < RATE_SECONDS:
            recent[RATE_PARTS - 1 - min(int(max(age, 0.0) / part), RATE_PARTS - 1)] += 1
    # What was before the oldest that is kept isn't known.
    seconds = min(max(ages[-1], 0.1), RATE_SECONDS) if is_full and ages else RATE_SECONDS
    return {"rate": round(sum(recent) / seconds, 2), "recent": recent}


def _natural(name: str, default: int, most: int = 10**9) -> int:
    text = request.args.get(name, str(default))
    if not text.isascii() or not text.isdigit() or not 1 <= int(text[:10]) <= most:
        raise BadRequest(f"{name} is a number from 1 to {most}, not {text[:20]!r}")
    return int(text[:10])
