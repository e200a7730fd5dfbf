"""What both event sources share: their arguments, what can be asked of them, and how the protocol's answers are kept."""

from __future__ import annotations

import collections
import logging
import random
import re
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from sseflask.errors import InvalidSetting
from sseflask.event import ServerSentEvent

from .errors import MAX_EXCERPT_BYTES, StreamInterrupted
from .protocol import Action, Connect, Policy, Protocol, SourceState, Stop
from .request import Given, StreamRequest

if TYPE_CHECKING:
    import httpx

_log: Final = logging.getLogger("sseflask.client")

_NOT_IN_AN_ID: Final = re.compile(r"[\r\n\0]")
_READABLE: Final = re.compile(r"application/([\w.-]+\+)?json|text/plain", re.IGNORECASE)


Client = TypeVar("Client")


class BaseEventSource(Generic[Client, Given]):
    """An event source without its IO.

    Attributes:
        url: What is asked for, without user, password, query and fragment.
    """

    def __init__(
        self,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        token: str | Callable[[], Given] | None = None,
        method: str = "GET",
        params: Mapping[str, Any] | None = None,
        json: Any = None,
        content: str | bytes | None = None,
        data: Mapping[str, Any] | None = None,
        last_event_id: str | None = None,
        timeout: float | None = 10.0,
        stall_timeout: float = 45.0,
        retries: int | None = None,
        backoff: float = 2.0,
        max_backoff: float = 30.0,
        end_event: str | None = "stream-end",
        max_event_bytes: int = 16 * 2**20,
        on_retry: Callable[[StreamInterrupted], object] | None = None,
        client: Client | None = None,
    ) -> None:
        """Stores what it needs; nothing is sent before the first event is asked for.

        Args:
            url: Where the stream is, `http://…` or `https://…`. User and password in it are sent as basic authentication.
            headers: The caller's own, for each request.
            token: A bearer token, or a function that returns one. The function is called before the first request, and again when
                a token is refused (401, 403): once, until a stream has opened.
            method: The HTTP method. Anything but GET is sent again only where that does no harm, see `NotRepeatable`.
            params: For the URL's query, as httpx takes them.
            json: A body as JSON.
            content: A body as it is.
            data: A body as a form.
            last_event_id: The position to begin from: what `last_event_id` was elsewhere.
            timeout: Seconds that connecting may take, and sending a piece of the request, 0.001 to 86,400; `None` for any time.
            stall_timeout: Seconds without a byte, the answer's first one too, after which the connection counts as dead, up to
                86,400; the default is three of the server's keepalives. 0 for any time.
            retries: How often in a row it comes back without a stream in between that was good (that brought an event, or stayed
                open for five seconds); `None` for any number, 0 for one single stream.
            backoff: Seconds, 0 to 86,400: what the first wait's random part is below. It doubles each time. A stream's `retry:`
                takes its place.
            max_backoff: Seconds, 0 to 86,400: what a wait's random part never exceeds.
            end_event: The name of the event that ends the stream for good; it is given out, as the last. `None` for none.
            max_event_bytes: The bound of one event, at least 1. A larger one is dropped, and counted in `dropped`.
            on_retry: Called with what went wrong, each time that it will come back from that by itself.
            client: An httpx client to ask with, for proxies, certificates, HTTP/2 or cookies; it isn't closed. `None` for one of
                its own.

        Raises:
            InvalidSetting: A value can't be used.
            MissingExtra: httpx isn't installed.
        """
        arguments = {"params": params, "json": json, "content": content, "data": data}
        self._request: StreamRequest[Given] = StreamRequest(
            url,
            method=method,
            headers=headers,
            token=token,
            timeout=timeout,
            stall_timeout=stall_timeout,
            arguments=arguments,
        )
        if last_event_id is not None and (not isinstance(last_event_id, str) or _NOT_IN_AN_ID.search(last_event_id)):
            raise InvalidSetting("last_event_id", last_event_id, "a str without CR, LF and NUL, or None")
        policy = Policy(
            backoff=backoff, max_backoff=max_backoff, retries=retries, end_event=end_event, max_event_bytes=max_event_bytes
        )
        self._protocol = Protocol(
            self._request.url,
            random=random.random,
            method=self._request.method,
            last_event_id=last_event_id or "",
            has_key=self._request.has_key,
            can_renew=callable(token),
            policy=policy,
        )
        self.url = self._protocol.url
        self._on_retry = on_retry
        self._events: collections.deque[ServerSentEvent] = collections.deque()
        self._position = last_event_id or ""
        self._token: str | None = None
        self._action: Action = self._protocol.begin()
        self._due = 0.0
        self._cause: Exception | None = None
        self._client = client
        self._owns_client = client is None
        self._response: httpx.Response | None = None
        self._is_closing = False
        self._is_over = False
        self._prepare()

    def _prepare(self) -> None:
        """Make what the kind of IO needs."""
        raise NotImplementedError

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.url} {self.state}>"

    @property
    def state(self) -> SourceState:
        """Where it is. Closed as soon as it was told to, or has ended for good: events that had come before are still given out."""
        return SourceState.CLOSED if self._is_closing or self._is_over else self._protocol.state

    @property
    def last_event_id(self) -> str:
        """The position after the last event that was given out, `""` where there is none: what another source goes on from."""
        return self._position if self._events else self._protocol.last_event_id

    @property
    def retry(self) -> int | None:
        """The reconnection time that the stream asked for last, in milliseconds; `None` where it never did."""
        return self._protocol.retry

    @property
    def dropped(self) -> int:
        """How many events were larger than `max_event_bytes`, and dropped."""
        return self._protocol.dropped

    def _give(self) -> ServerSentEvent:
        """Hand out the next event that has come."""
        event = self._events.popleft()
        self._position = event.id or ""
        return event

    def _seconds_left(self) -> float:
        """How long to wait before the next attempt."""
        return max(0.0, self._due - time.monotonic())

    def _turn_to(self, action: Action, cause: Exception | None = None) -> None:
        """Take what the protocol says to do next."""
        self._action, self._cause = action, cause
        if not isinstance(action, Connect) or self._is_closing:
            return
        self._due = time.monotonic() + action.delay
        if action.renew_token:
            self._token = None
        if action.error is not None:
            _log.info("%s; again in %.1f s", action.error, action.delay)
            if self._on_retry is not None:
                self._on_retry(action.error)

    def _take(self, data: bytes) -> None:
        """Take bytes of the stream in."""
        events, action = self._protocol.receive(data)
        self._events += events
        if isinstance(action, Stop):
            self._turn_to(action)

    def _answer(self, response: httpx.Response, body: bytes) -> None:
        """Take an answer's head in, and the beginning of its body where that is to be told."""
        headers = response.headers
        action = self._protocol.answered(
            response.status_code,
            now=time.monotonic(),
            wall=time.time(),
            content_type=headers.get("content-type", ""),
            retry_after=headers.get("retry-after", ""),
            body=body[:MAX_EXCERPT_BYTES].decode(errors="replace"),
        )
        self._turn_to(action)

    def _fail(self, error: Exception) -> None:
        """Take in that an attempt or a stream has failed."""
        problem = self._request.problem(error)
        if self._request.never_works(error):
            # Its text, or that of its own cause, may hold what isn't to be shown.
            self._turn_to(self._protocol.impossible(problem))
            return
        was_sent = not self._request.surely_not_sent(error)
        self._turn_to(self._protocol.failed(problem, now=time.monotonic(), was_sent=was_sent), cause=error)

    def _end(self) -> None:
        """Take in that the stream has ended as it promised."""
        self._turn_to(self._protocol.failed("the stream has ended", now=time.monotonic(), is_clean=True))

    def _interrupt(self) -> None:
        """Take in that the caller's patience was over, while something was on its way."""
        if self._protocol.state in (SourceState.CONNECTING, SourceState.OPEN):
            self._turn_to(self._protocol.interrupted())


def is_worth_reading(response: httpx.Response) -> bool:
    """Whether an answer that isn't a stream may say in its body what was wrong."""
    return bool(_READABLE.match(response.headers.get("content-type", ""))) and response.status_code >= 400
