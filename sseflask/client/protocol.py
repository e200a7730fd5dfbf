"""What a client of an event stream does next, without IO: facts, bytes and time in; events and the next action out.

Both event sources drive the same `Protocol`; the browser client keeps the same rules, and one table of cases tests all three.
"""

from __future__ import annotations

import dataclasses
import email.utils
import enum
import urllib.parse
from collections.abc import Callable, Mapping
from typing import Final

from sseflask.decoder import EventDecoder
from sseflask.errors import InvalidSetting
from sseflask.event import ServerSentEvent

from .errors import EventSourceError, NotAnEventStream, NotRepeatable, RetriesExhausted, StreamInterrupted, StreamRefused

#: Seconds that are waited at least before each attempt after the first: no server is asked in a tight loop.
MIN_DELAY: Final = 0.05
#: A stream that stayed open so many seconds was no failed attempt, even if it brought no event.
STEADY_SECONDS: Final = 5.0
#: The longest `Retry-After` that is kept, in seconds: a day.
MAX_RETRY_AFTER: Final = 86_400.0


class SourceState(enum.StrEnum):
    """Where an event source is."""

    IDLE = "idle"
    """Nothing has been sent yet."""
    CONNECTING = "connecting"
    """A request is on its way."""
    OPEN = "open"
    """The stream is being read."""
    WAITING = "waiting"
    """Between two attempts."""
    CLOSED = "closed"
    """Over: closed, ended by the server for good, or by an error."""


class _Turn(enum.Enum):
    """What moves an event source from one state to the next."""

    REQUEST = enum.auto()
    STREAM = enum.auto()
    RETRY = enum.auto()
    END = enum.auto()


# Every transition there is; anything else is a driver's mistake.
_TRANSITIONS: Final[Mapping[tuple[SourceState, _Turn], SourceState]] = {
    (SourceState.IDLE, _Turn.REQUEST): SourceState.CONNECTING,
    (SourceState.WAITING, _Turn.REQUEST): SourceState.CONNECTING,
    (SourceState.CONNECTING, _Turn.STREAM): SourceState.OPEN,
    (SourceState.CONNECTING, _Turn.RETRY): SourceState.WAITING,
    (SourceState.OPEN, _Turn.RETRY): SourceState.WAITING,
    (SourceState.IDLE, _Turn.END): SourceState.CLOSED,
    (SourceState.CONNECTING, _Turn.END): SourceState.CLOSED,
    (SourceState.OPEN, _Turn.END): SourceState.CLOSED,
    (SourceState.WAITING, _Turn.END): SourceState.CLOSED,
    (SourceState.CLOSED, _Turn.END): SourceState.CLOSED,
}


class _Verdict(enum.Enum):
    """What an answer's status means."""

    STREAM = enum.auto()
    OVER = enum.auto()
    RENEW = enum.auto()
    RETRY = enum.auto()
    REFUSED = enum.auto()


_VERDICTS: Final[Mapping[int, _Verdict]] = {
    200: _Verdict.STREAM,
    # "Don't come back" (WHATWG HTML 9.2.3).
    204: _Verdict.OVER,
    401: _Verdict.RENEW,
    403: _Verdict.RENEW,
    408: _Verdict.RETRY,
    425: _Verdict.RETRY,
    429: _Verdict.RETRY,
}


@dataclasses.dataclass(frozen=True, slots=True)
class Connect:
    """Wait, then send the request.

    Attributes:
        delay: Seconds to wait.
        headers: To add to the request's own.
        renew_token: Whether the token was refused: ask for a new one.
        error: What went wrong before; `None` where nothing did: at first, after a stream's clean end, and for a new token.
    """

    delay: float
    headers: Mapping[str, bytes]
    renew_token: bool = False
    error: StreamInterrupted | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Read:
    """Read the stream, and hand over what comes."""


@dataclasses.dataclass(frozen=True, slots=True)
class Stop:
    """It is over.

    Attributes:
        error: Why; `None` where it ended as it should.
    """

    error: EventSourceError | None = None


Action = Connect | Read | Stop


@dataclasses.dataclass(frozen=True, slots=True)
class Policy:
    """How an event source comes back.

    Attributes:
        backoff: Seconds: the longest wait before the first further attempt; it doubles with each that fails in a row. A stream's
            `retry:` takes its place, and is waited for in any case.
        max_backoff: Seconds: the most that the doubling reaches, and what is added to a `retry:` or a `Retry-After`.
        retries: How often in a row it comes back without a good stream in between; `None` for any number.
        end_event: The name of the event that ends the stream for good; `None` for none.
        max_event_bytes: The bound of one event; a larger one is dropped.

    Raises:
        InvalidSetting: A value can't be used.
    """

    backoff: float = 2.0
    max_backoff: float = 30.0
    retries: int | None = None
    end_event: str | None = "stream-end"
    max_event_bytes: int = 16 * 2**20

    def __post_init__(self) -> None:
        for name in ("backoff", "max_backoff"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= MAX_RETRY_AFTER:
                raise InvalidSetting(name, value, f"a number of seconds from 0 to {MAX_RETRY_AFTER:g}")
        if self.retries is not None and (isinstance(self.retries, bool) or not isinstance(self.retries, int) or self.retries < 0):
            raise InvalidSetting("retries", self.retries, "a number of attempts, 0 or more, or None")


class Protocol:
    """One event source's state machine.

    A driver begins with `begin`, does what each returned action says, and calls: `requested` when it sends the request, then
    `answered` or `failed`; while it reads, `receive` for each piece of the body, and `failed` when that ends, however it does.

    Attributes:
        url: The URL without what may be secret in it.
        state: Where it is.
        failures: How many attempts have failed in a row. A stream is a failed attempt too when it ends, but one that was good
            (it brought an event, or stayed open for `STEADY_SECONDS`) is the first of a new row.
    """

    def __init__(
        self,
        url: str,
        *,
        random: Callable[[], float],
        method: str = "GET",
        last_event_id: str = "",
        has_key: bool = False,
        can_renew: bool = False,
        policy: Policy | None = None,
    ) -> None:
        """Stores what it needs.

        Args:
            url: For errors.
            random: Returns a number from 0 up to but not 1.
            method: The request's method.
            last_event_id: The position to begin from.
            has_key: Whether the request bears an `Idempotency-Key`, so that it can be sent again.
            can_renew: Whether there is a new token to be had when one is refused.
            policy: How to come back.
        """
        self.url = without_secrets(url)
        self.state = SourceState.IDLE
        self.failures = 0
        self._random = random
        self._method = method.upper()
        self._has_key = has_key
        self._can_renew = can_renew
        self._policy = policy or Policy()
        self._decoder = EventDecoder(max_event_bytes=self._policy.max_event_bytes)
        self._decoder.last_event_id = last_event_id
        self._opened_at = 0.0
        self._has_renewed = False
        self._has_brought_event = False

    @property
    def last_event_id(self) -> str:
        """The id to come back with; `""` where there is none."""
        return self._decoder.last_event_id

    @property
    def retry(self) -> int | None:
        """The reconnection time that the stream asked for, in milliseconds."""
        return self._decoder.retry

    @property
    def dropped(self) -> int:
        """How many events were larger than allowed, and dropped."""
        return self._decoder.dropped

    def begin(self) -> Action:
        """What to do first."""
        return Connect(0.0, self._headers())

    def requested(self) -> None:
        """The request is on its way."""
        self._turn(_Turn.REQUEST)

    def answered(
        self,
        status: int,
        *,
        now: float,
        wall: float,
        content_type: str = "",
        retry_after: str = "",
        body: str = "",
    ) -> Action:
        """Takes an answer's head in.

        Args:
            status: Its HTTP status.
            now: The time in seconds, from any beginning.
            wall: The time since 1970, in seconds: what a date in `retry_after` is compared with.
            content_type: Its `Content-Type`.
            retry_after: Its `Retry-After`.
            body: The beginning of its body, for the error.
        """
        match _VERDICTS.get(status, _Verdict.RETRY if status >= 500 else _Verdict.REFUSED):
            case _Verdict.STREAM if is_event_stream(content_type):
                self._turn(_Turn.STREAM)
                self._decoder.reset()
                self._opened_at = now
                self._has_renewed = self._has_brought_event = False
                return Read()
            case _Verdict.STREAM:
                return self._stop(NotAnEventStream(self.url, status=status, content_type=content_type, body=body))
            case _Verdict.OVER:
                return self._stop(None)
            case _Verdict.RENEW if self._can_renew and not self._has_renewed:
                # Who wasn't let in has done nothing yet: a POST goes again, too.
                self._has_renewed = True
                self._turn(_Turn.RETRY)
                return Connect(0.0, self._headers(), renew_token=True)
            case _Verdict.RETRY:
                problem = f"the server answered {status}"
                return self._again(problem, status=status, retry_after=seconds_of(retry_after, wall))
        return self._stop(StreamRefused(self.url, status=status, content_type=content_type, body=body))

    def receive(self, data: bytes) -> tuple[list[ServerSentEvent], Action]:
        """Takes bytes of the stream in.

        Returns:
            The events that they complete, up to the end event; and whether to read on.
        """
        events = self._decoder.feed(data)
        if events:
            self._has_brought_event = True
        for number, event in enumerate(events, 1):
            if event.event == self._policy.end_event and event.event is not None:
                # What follows it is nobody's, nor is the position that it would bring.
                self._decoder.last_event_id = event.id or ""
                return events[:number], self._stop(None)
        return events, Read()

    def failed(self, problem: str, *, now: float, is_clean: bool = False, was_sent: bool = True) -> Action:
        """The attempt or the stream has ended.

        Args:
            problem: What happened.
            now: As for `answered`.
            is_clean: Whether it was a stream that ended as its framing promised.
            was_sent: `False` where the request surely didn't reach the server.
        """
        if self.state is SourceState.OPEN and (self._has_brought_event or now - self._opened_at >= STEADY_SECONDS):
            self.failures = 0
        return self._again(problem, is_clean=is_clean, was_sent=was_sent)

    def impossible(self, problem: str) -> Action:
        """The request can't be sent at all, now or later."""
        return self._stop(EventSourceError(self.url, problem))

    def interrupted(self) -> Action:
        """The driver has dropped an attempt or a stream by itself: who was reading had no more patience."""
        if not self._is_repeatable():
            return self._stop(NotRepeatable(self.url, "reading was interrupted", method=self._method))
        self._turn(_Turn.RETRY)
        return Connect(0.0, self._headers())

    def close(self) -> None:
        """It is over, whatever it was doing; closing twice is fine."""
        self._turn(_Turn.END)

    def _again(
        self,
        problem: str,
        *,
        status: int | None = None,
        retry_after: float = 0.0,
        is_clean: bool = False,
        was_sent: bool = True,
    ) -> Action:
        if was_sent and not self._is_repeatable():
            return self._stop(NotRepeatable(self.url, problem, method=self._method, status=status))
        if self._policy.retries is not None and self.failures >= self._policy.retries:
            return self._stop(RetriesExhausted(self.url, problem, retries=self._policy.retries, status=status))
        delay = delay_before(
            self.failures,
            backoff=self._policy.backoff,
            max_backoff=self._policy.max_backoff,
            retry=None if self.retry is None else self.retry / 1000,
            retry_after=retry_after,
            random=self._random(),
        )
        self.failures += 1
        self._turn(_Turn.RETRY)
        error = None if is_clean else StreamInterrupted(self.url, problem, status=status, delay=delay)
        return Connect(delay, self._headers(), error=error)

    def _is_repeatable(self) -> bool:
        # A request may have been carried out though its answer is lost (DELIVERY 25).
        return self._method == "GET" or self._has_key or self.last_event_id != ""

    def _headers(self) -> dict[str, bytes]:
        # Spaces at either end don't survive in a header, and would make the request invalid.
        position = self.last_event_id.strip(" \t").encode()
        return {"Last-Event-ID": position} if position else {}

    def _stop(self, error: EventSourceError | None) -> Stop:
        self._turn(_Turn.END)
        return Stop(error)

    def _turn(self, turn: _Turn) -> None:
        self.state = _TRANSITIONS[self.state, turn]


def delay_before(
    failures: int, *, backoff: float, max_backoff: float, retry: float | None, retry_after: float, random: float
) -> float:
    """Return how many seconds to wait before the next attempt.

    Full jitter under a bound that doubles, so that a thousand clients of one server don't come back at once; on top of what the
    server has asked for, which is kept in any case.

    Args:
        failures: How many attempts in a row have failed before the one that just has.
        backoff: The bound after the first, in seconds, where the stream hasn't said another.
        max_backoff: What the bound never exceeds, in seconds.
        retry: What the stream's last `retry:` says, in seconds; `None` where there was none.
        retry_after: What the answer's `Retry-After` says, in seconds; 0 where it has none.
        random: From 0 to 1.
    """
    base = max(MIN_DELAY, backoff if retry is None else retry)
    # 2.0**1024 has no float, and any bound is reached long before.
    bound = min(max_backoff, base * 2.0 ** min(failures, 64))
    return max(MIN_DELAY, max(retry or 0.0, retry_after) + random * bound)


def is_event_stream(content_type: str) -> bool:
    """Whether a `Content-Type` is that of an event stream, whatever its parameters."""
    return content_type.partition(";")[0].strip().lower() == "text/event-stream"


def seconds_of(retry_after: str, wall: float) -> float:
    """Return how many seconds a `Retry-After` asks for, 0 to `MAX_RETRY_AFTER`; 0 where it says nothing.

    Args:
        retry_after: The header's value: seconds, or an HTTP date.
        wall: The time since 1970, in seconds.
    """
    text = retry_after.strip()
    if text.isascii() and text.isdigit():
        # Nine digits are more than any bound; int() refuses more than 4,300.
        return min(float(text[:9]) if len(text) <= 9 else MAX_RETRY_AFTER, MAX_RETRY_AFTER)
    try:
        date = email.utils.parsedate_to_datetime(text).timestamp()
    except (ValueError, OverflowError, OSError):
        return 0.0
    return min(max(0.0, date - wall), MAX_RETRY_AFTER)


def without_secrets(url: str) -> str:
    """Return a URL without user, password, query and fragment: each may hold a token."""
    try:
        parts = urllib.parse.urlsplit(url)
    except ValueError:
        return "(a URL that can't be read)"
    return urllib.parse.urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))
