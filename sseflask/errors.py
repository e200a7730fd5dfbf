"""The error tree.

Errors that a caller can handle derive from `SSEError`, an `Exception`; each carries the facts it was made from as attributes.
What is raised *into* a running generator to end it derives from `StreamClosed`, a `BaseException`: code that retries on
`Exception`, `TimeoutError` or `OSError` must not mistake the end of its stream for a failure of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final


class SSEError(Exception):
    """The root of every error that sseflask raises for a caller to handle."""


class InvalidEvent(SSEError, ValueError):
    """A field of an event can't be written to an event stream.

    Attributes:
        field: The field's name: `"data"`, `"event"`, `"id"`, `"retry"` or `"comment"`.
        value: What was given for it.
        problem: What is wrong with it, and what would be right.
    """

    def __init__(self, field: str, value: object, problem: str) -> None:
        super().__init__(f"invalid {field} {_shortened(value)}: {problem}")
        self.field = field
        self.value = value
        self.problem = problem


class EventTooLarge(InvalidEvent):
    """An event has more bytes than `SSE_MAX_EVENT_BYTES` allows.

    Attributes:
        size: The bytes that it has.
        limit: The bytes that it may have.
    """

    def __init__(self, value: object, size: int, limit: int) -> None:
        super().__init__("data", value, f"the event has {size} bytes, SSE_MAX_EVENT_BYTES allows {limit}")
        self.size = size
        self.limit = limit


class InvalidChannel(SSEError, ValueError):
    """A channel can't have this name.

    Attributes:
        channel: What was given as a name.
        expected: What a name must be.
    """

    def __init__(self, channel: object, expected: str) -> None:
        super().__init__(f"invalid channel {_shortened(channel)}: a channel's name must be {expected}")
        self.channel = channel
        self.expected = expected


class InvalidSubscription(SSEError, ValueError):
    """A subscription asks for what can't be had: no channel, or too many.

    Attributes:
        problem: What is wrong, and what would be right.
    """

    def __init__(self, problem: str) -> None:
        super().__init__(problem)
        self.problem = problem


#: What is told of a broker to who is to learn nothing of the inside.
UNREACHABLE: Final = "the broker can't be reached"


class BrokerUnavailable(SSEError):
    """The broker can't be used now, or not by this process.

    Attributes:
        problem: Why.
        outcome: `"not_published"`, or `"unknown"` where the event may have been stored: publish it again with the same `token`.
        told: What clients are told of it: nothing of addresses and paths, which are the inside's.
    """

    def __init__(self, problem: str, *, outcome: str = "not_published", told: str = UNREACHABLE) -> None:
        super().__init__(problem)
        self.problem = problem
        self.outcome = outcome
        self.told = told


class UnknownTask(SSEError, LookupError):
    """There is no such task, or it ended so long ago that nobody remembers it.

    Attributes:
        task_id: What was given as its id.
    """

    def __init__(self, task_id: object) -> None:
        super().__init__(f"there is no task {_shortened(task_id)}, or it ended so long ago that nobody remembers it")
        self.task_id = task_id


class TaskEnded(SSEError):
    """Something was to be published in the name of a task that has ended, or that isn't known. Nothing was published.

    Attributes:
        task_id: The task's.
        state: Its state, one of `sseflask.TaskState`'s words; None where the task isn't known.
    """

    def __init__(self, task_id: str, state: str | None) -> None:
        super().__init__(
            f"there is no task {task_id}, or it ended so long ago that nobody remembers it"
            if state is None
            else f"the task {task_id} has ended ({state}): what comes after that is refused"
        )
        self.task_id = task_id
        self.state = state


class InvalidSetting(SSEError, ValueError):
    """A setting has a value that it can't have.

    Attributes:
        setting: The setting's name, `"SSE_…"` or that of an option.
        value: What was given for it.
        expected: What would be right.
    """

    def __init__(self, setting: str, value: object, expected: str) -> None:
        super().__init__(f"{setting} is {_shortened(value)}; it must be {expected}")
        self.setting = setting
        self.value = value
        self.expected = expected


class AlreadyInstalled(SSEError, RuntimeError):
    """A second `SSE` was installed on an app that has one already."""


class NoActiveStream(SSEError, RuntimeError):
    """Something that only works inside a stream's generator was used outside one."""


class StreamError(SSEError):
    """An error whose message and details are meant for the client.

    Raise it in a stream's generator. The client gets the error event with this message instead of a generic one; everything else
    that a generator raises stays in the log. Before the first event it becomes a JSON response of the same content, unless the app
    has an error handler for it.

    Args:
        message: What the client is told.
        error_type: A short name that client code can compare.
        details: JSON-serialisable facts, sent along as `details`. What JSON can't express is left out, all of it, and logged.
        status: The HTTP status of that response, 400 to 599.
    """

    def __init__(
        self,
        message: str,
        *,
        error_type: str = "stream_error",
        details: Mapping[str, Any] | None = None,
        status: int = 500,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.error_type = error_type
        self.details = dict(details) if details else None
        self.status = status

    def without_details(self) -> StreamError:
        """The same without details, for where those can't be sent."""
        return StreamError(self.message, error_type=self.error_type, status=self.status)


class StreamClosed(BaseException):
    """The stream has ended from outside; raised in its generator where it waits, so that its `finally` runs.

    Catch it to tell why, never to go on: what is yielded after it is dropped.

    Attributes:
        reason: Why, in one of the words of `sseflask.CloseReason`.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class StreamTimeout(StreamClosed):
    """The stream's deadline has passed without a `heartbeat` that extended it; its `reason` is `"timeout"`.

    Attributes:
        timeout: The stream's time-out, in seconds.
    """

    def __init__(self, timeout: float) -> None:
        super().__init__("timeout")
        self.timeout = timeout


def _shortened(value: object, limit: int = 80) -> str:
    if isinstance(value, str | bytes):
        value = value[: limit + 1]
    try:
        text = repr(value)
    except Exception as error:
        # What is wrong with the value must not hide that it is wrong here.
        return f"<{type(value).__name__} whose repr fails: {type(error).__name__}>"
    return text if len(text) <= limit else f"{text[:limit]}… ({type(value).__name__})"
