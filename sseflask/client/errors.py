"""What ends an event source: why, which URL, which answer. Never a password or a token."""

from __future__ import annotations

import json

from sseflask.errors import SSEError

#: Bytes of an answer's body that are read to say what was wrong.
MAX_EXCERPT_BYTES = 4096
#: Characters of it that are shown.
_SHOWN = 300


class EventSourceError(SSEError):
    """An event source has ended, and not because it was over.

    Attributes:
        url: What was asked for, without user, password and query.
        problem: What happened.
        status: The HTTP status of the last answer; `None` where there was none, or where it was a stream.
    """

    def __init__(self, url: str, problem: str, *, status: int | None = None) -> None:
        super().__init__(f"{url}: {problem}")
        self.url = url
        self.problem = problem
        self.status = status


class StreamRefused(EventSourceError):
    """The server has answered with something else than a stream, and asking again wouldn't change that.

    Attributes:
        content_type: The answer's content type, `""` where it has none.
        body: The beginning of its body, as text; `""` unless it is JSON or plain text.
        details: What the body says, where it is JSON of at most `MAX_EXCERPT_BYTES`; else `None`.
    """

    def __init__(self, url: str, *, status: int, content_type: str = "", body: str = "", problem: str = "") -> None:
        shown = f": {body if len(body) <= _SHOWN else body[:_SHOWN] + '…'}" if body else ""
        super().__init__(url, f"{problem or f'the server answered {status}'}{shown}", status=status)
        self.content_type = content_type
        self.body = body
        try:
            self.details: object = json.loads(body) if body else None
        except (ValueError, RecursionError):
            self.details = None


class NotAnEventStream(StreamRefused):
    """The answer is a success, but no `text/event-stream`: a login page, say, or another application's."""

    def __init__(self, url: str, *, status: int, content_type: str = "", body: str = "") -> None:
        problem = f"the answer is {content_type or 'of no stated type'}, not text/event-stream"
        super().__init__(url, status=status, content_type=content_type, body=body, problem=problem)


class RetriesExhausted(EventSourceError):
    """It has come back as often in a row as `retries` allows; the last attempt's own error is the `__cause__`, where it had one.

    Attributes:
        retries: How often that is.
    """

    def __init__(self, url: str, problem: str, *, retries: int, status: int | None = None) -> None:
        super().__init__(url, f"{problem}; retries={retries} in a row brought no stream that lasted", status=status)
        self.retries = retries


class NotRepeatable(EventSourceError):
    """A request that isn't a GET can't be sent again: it may have been carried out, and there is no position to resume from.

    Attributes:
        method: The request's method.
    """

    def __init__(self, url: str, problem: str, *, method: str, status: int | None = None) -> None:
        reason = f"{method} isn't sent again: no id was received, and the request has no Idempotency-Key"
        super().__init__(url, f"{problem}; {reason}", status=status)
        self.method = method


class StreamInterrupted(EventSourceError):
    """An attempt has failed or a stream was cut, and the event source comes back by itself; given to `on_retry`, never raised.

    Attributes:
        delay: Seconds until the next attempt.
    """

    def __init__(self, url: str, problem: str, *, delay: float, status: int | None = None) -> None:
        super().__init__(url, problem, status=status)
        self.delay = delay


class MissingExtra(SSEError, ImportError):
    """httpx isn't installed: the extra `sseflask[client]` brings it."""

    def __init__(self) -> None:
        super().__init__("sseflask.client needs httpx: pip install 'sseflask[client]'")
