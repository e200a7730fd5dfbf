"""What who watches a task gets: where it stands, and what comes after that."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Final

from flask import Response

from . import process
from .brokers import Broker
from .brokers.tasks import TaskRecord
from .config import StreamOptions
from .errors import UnknownTask
from .handoff import Handoff
from .position import EventId
from .response import HEADERS, EventSourceResponse, last_event_id
from .ring import Entry
from .stream import is_final_id
from .subscription import Beginning, Selection, Subscription, open_frame, place, reset_frame
from .tasks import ENDS, Tasks, facts_of

_END_NAMES: Final = frozenset(ENDS.values())


class TaskResponse(EventSourceResponse):
    """A response that streams a task's events, from where it stands."""

    def __init__(self, tasks: Tasks, record: TaskRecord, beginning: Beginning, options: StreamOptions) -> None:
        """Makes a response; it listens from when the server iterates it.

        Args:
            tasks: The app's, in this process.
            record: The task's.
            beginning: Where its client begins.
            options: The stream's.
        """
        settings = tasks.settings
        # Where the channel isn't the task's own it goes on after the task's end.
        until = None if facts_of(record).get("ends_channel") else _is_end_of(record.id)
        selection = Selection((record.channel,), until=until)
        self._begin(
            lambda stream, _: Subscription(tasks.broker, selection, beginning, settings, stream, has_snapshot=True),
            Handoff(),
            options.resolved(settings),
            settings,
            open_timeout=0.0,
            headers=None,
            first=beginning.frames,
        )


def answer(tasks: Tasks, task_id: str, options: StreamOptions) -> Response:
    """The stream of a task; see `SSE.task_response`.

    Raises:
        UnknownTask: There is no such task.
        BrokerUnavailable: The broker can't be asked now.
    """
    asked = last_event_id()
    if is_final_id(asked):
        return Response(status=204)
    record = tasks.find_record(task_id)
    if record is None:
        raise UnknownTask(task_id)
    if record.is_expired:
        return Response(status=204)
    broker, settings, channels = tasks.broker, tasks.settings, (record.channel,)
    frames = b""
    if asked is not None:
        broker.prepare(channels, asked)
        beginning = place(broker, channels, asked, settings)
        if not beginning.reset:
            if record.state.is_final and beginning.cursor >= record.seq:
                # It has seen the end, whatever its id says.
                return Response(status=204)
            return TaskResponse(tasks, record, beginning, options)
        # What it missed is gone; it gets where the task stands instead, with the word that this is so.
        with broker.emitter.lock:
            resumption = broker.log.resume(channels, asked)
        frames = reset_frame(settings, resumption.reset or "history", asked, None)
    # Listened to before the record is read: what comes after that is in the log.
    broker.prepare(channels)
    epoch = broker.position.epoch
    record = tasks.find_record(task_id) or record
    position = EventId(epoch, max(record.seq, _begun_at(record, epoch)))
    broker.prepare(channels, str(position))
    frames += open_frame(settings, channels, None if record.parts else position)
    shown = [part.body for part in record.parts]
    if record.state.is_final and shown:
        if asked is not None:
            process.current().count("resets")
        shown[-1] = _with_id(shown[-1], EventId(epoch, record.seq, final=True))
        return Response(frames + b"".join(shown), mimetype="text/event-stream", headers=HEADERS)
    if shown:
        shown[-1] = _with_id(shown[-1], position)
    cursor = _first_after(broker, record.channel, position.seq)
    return TaskResponse(tasks, record, Beginning(cursor, epoch, frames + b"".join(shown), bool(asked)), options)


def _begun_at(record: TaskRecord, epoch: str) -> int:
    """The number of the last event that a task's channel had before the task began, as far as known."""
    since = EventId.parse(facts_of(record).get("since", ""))
    return since.seq if since is not None and since.epoch == epoch else 0


def _first_after(broker: Broker, channel: str, seq: int) -> int:
    """The cursor of who has seen where a task stands: what comes later and is still there follows."""
    with broker.emitter.lock:
        return max(seq, broker.log.missing_after(channel, seq))


def _with_id(body: bytes, position: EventId) -> bytes:
    return f"id: {position}\n".encode() + body


def _is_end_of(task_id: str) -> Callable[[Entry], bool]:
    def is_end(entry: Entry) -> bool:
        if entry.name not in _END_NAMES:
            return False
        try:
            found = json.loads(entry.event.data or "")
        except ValueError:
            return False
        return isinstance(found, dict) and found.get("task_id") == task_id

    return is_end
