"""Work that reports how far it is, without thinking of it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from typing import Any, Final, TypeVar

from flask import current_app, has_app_context
from werkzeug.local import LocalProxy

from .current import active_stream, log_extra
from .errors import InvalidEvent, NoActiveStream, StreamError
from .event import ServerSentEvent, to_event
from .stream import error_data
from .tasks import Task, TaskStream

log = logging.getLogger("sseflask.tasks")

T = TypeVar("T")

#: The name of the event that tells of an item that could not be processed.
CHUNK_ERROR: Final = "chunk_error"
#: Seconds between two reports of `track`.
TRACK_SECONDS: Final = 0.25


def active_task() -> Task:
    """The task whose work calls this, from however deep.

    Raises:
        NoActiveStream: It isn't called from inside a task.
    """
    try:
        stream = active_stream()
    except NoActiveStream:
        stream = None
    if not isinstance(stream, TaskStream):
        raise NoActiveStream("this works only inside a task that sse.start() runs")
    return stream.task


#: The `Task` whose work runs here, from however deep it is used. Where there is none it is false, and using its attributes raises
#: `NoActiveStream`.
current_task: Task = LocalProxy(active_task)  # type: ignore[assignment]


def track(
    iterable: Iterable[T], total: float | None = None, *, task: Task | None = None, message: str | None = None
) -> Iterator[T]:
    """Yields the items, and reports the task's progress: at the beginning, at the end, and at most four times a second between.

    Args:
        iterable: The items.
        total: How many they are, above 0; without it, the length of `iterable` if it has one. 0 is as None: not known.
        task: The task; without it, the one whose work calls this.
        message: What is being done; None says nothing.

    Yields:
        The items.

    Raises:
        NoActiveStream: No task was given, and this isn't called from inside one.
        InvalidEvent: `total` isn't a number above 0, or `message` can't be written; raised with the first item.
        TaskEnded: The task has ended; raised with an item, as those that follow.
        StreamClosed: It has, and this is its own work; raised once.
        BrokerUnavailable: The broker doesn't have a report.
    """
    reporter = task if task is not None else active_task()
    if total is None and isinstance(iterable, Sized):
        total = len(iterable)
    # Of nothing at all there is no part.
    total = total or None
    return _track(iterable, total, reporter, message)


def _track(iterable: Iterable[T], total: float | None, task: Task, message: str | None) -> Iterator[T]:
    done = reported = 0
    task.progress(0, total, message)
    at = time.monotonic()
    for item in iterable:
        if done > reported and time.monotonic() - at >= TRACK_SECONDS:
            task.progress(done, total, message)
            reported, at = done, time.monotonic()
        yield item
        done += 1
    if done > reported:
        task.progress(done, total, message)


def each(
    items: Iterable[T], process: Callable[[T], Any], event: str = "content", *, key: Callable[[T], object] | None = None
) -> Iterator[ServerSentEvent]:
    """Yields an event for each item with what `process` makes of it; for one that fails the event `chunk_error`, and goes on.

    Args:
        items: The items.
        process: Called with each; what it returns is the event's data. None is left out.
        event: The name of the events, one line.
        key: Says what an item is called in the event of its failure, and may not raise; without it, the item's `id`, or else its
            number from 0.

    Yields:
        The events. A `chunk_error` has `{"id", "error", "error_type", "timestamp"}`, the error's text only where it is meant for
        the client: for a `StreamError`, or in debug mode.
    """
    for number, item in enumerate(items):
        try:
            data = process(item)
            made = None if data is None else to_event(data, event=event)
        except StreamError as error:
            made = _chunk_error(item, number, key, error, debug=False)
        except Exception as error:
            log.exception("an item of a stream failed", extra={"sse_item": number, **log_extra()})
            made = _chunk_error(item, number, key, error, debug=has_app_context() and current_app.debug)
        if made is not None:
            yield made


def _chunk_error(item: T, number: int, key: Callable[[T], object] | None, error: Exception, *, debug: bool) -> ServerSentEvent:
    if key is not None:
        name: object = key(item)
    else:
        name = item.get("id") if isinstance(item, Mapping) else getattr(item, "id", None)
    data = error_data(error, debug=debug)
    if data["error_type"] == "internal_error":
        data["error"] = "an error kept this item from being processed"
    try:
        return ServerSentEvent({"id": number if name is None else name, **data}, event=CHUNK_ERROR)
    except InvalidEvent:
        # What JSON can't express of it isn't told; that it failed is.
        data.pop("details", None)
        return ServerSentEvent({"id": name if isinstance(name, str | int) else number, **data}, event=CHUNK_ERROR)
