"""Tasks: work that goes on whether or not anybody watches, and tells how it stands."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import secrets
import time
from collections.abc import Callable, Generator, Mapping
from typing import Any, Final, Protocol

from flask import Flask

from . import native, process
from .brokers import Broker
from .brokers.tasks import TaskChange, TaskRecord, TaskState
from .channel import checked_event
from .config import DEFAULTS, Settings
from .context import TaskContext
from .detached import END, DetachedStream, without_id
from .errors import BrokerUnavailable, InvalidEvent, TaskEnded
from .event import ServerSentEvent, to_event
from .lease import LeaseKeeper
from .producer import GeneratorProducer, ThreadRunner
from .state import CloseReason
from .stream import error_data

log = logging.getLogger("sseflask.tasks")

#: The names of a task's events.
PROGRESS: Final = "task_progress"
FILE_UPDATE: Final = "file_update"
ENDS: Final = {TaskState.COMPLETED: "task_completed", TaskState.FAILED: "task_failed", TaskState.CANCELLED: "task_cancelled"}

#: What any number of a task's progress is below: browsers read them as floats.
MOST: Final = 10**300
#: Files of which a task tells one by one.
MOST_FILES: Final = 10_000
#: Seconds between two looks of `Task.wait`, at first and at the most.
FIRST_LOOK: Final = 0.02
LAST_LOOK: Final = 0.5

#: What viewers are told of work that ended because its worker left, or died.
WHY_STOPPED: Final = {
    "shutdown": "the server was stopped before the work was done",
    "producer_lost": "the process that did the work has died",
}


class Task:
    """A task, wherever it runs: started by `SSE.start`, found by `SSE.task`.

    Whatever it publishes goes to its channel, in its name: once it has ended nothing more can be.

    Attributes:
        id: 32 random hexadecimal digits: who knows them may know of the task.
        channel: The name of the channel of its events.
    """

    def __init__(self, tasks: Tasks, task_id: str, channel: str) -> None:
        """Stores what it needs.

        Args:
            tasks: The app's, in this process.
            task_id: The task's id.
            channel: The name of the channel of its events.
        """
        self.id = task_id
        self.channel = channel
        self._tasks = tasks

    def __repr__(self) -> str:
        return f"<Task {self.id} on {self.channel!r}>"

    @property
    def state(self) -> TaskState:
        """Where it is in its life, as the broker knows it.

        Raises:
            TaskEnded: Nobody remembers it: it ended long ago.
            BrokerUnavailable: The broker can't say now.
        """
        return self._record().state

    @property
    def result(self) -> Any:
        """What it was completed with; None before that, and when it failed, was cancelled, or ended long ago.

        Raises:
            TaskEnded: Nobody remembers it.
            BrokerUnavailable: The broker can't say now.
        """
        return self._end().get("result")

    @property
    def error(self) -> str | None:
        """Why it failed, as its viewers were told; None if it hasn't, or ended long ago.

        Raises:
            TaskEnded: Nobody remembers it.
            BrokerUnavailable: The broker can't say now.
        """
        return self._end().get("error")

    def publish(self, data: Any, *, event: str | None = None) -> None:
        """Publishes an event of your own in the task's name.

        Args:
            data: A `ServerSentEvent`, a string, UTF-8 bytes, or anything that JSON can express.
            event: The event's name, one line; None for none, which browsers call `message`.

        Raises:
            InvalidEvent: It can't be written, or has an id: those of a task's events are sseflask's own.
            EventTooLarge: It has more bytes than `SSE_MAX_EVENT_BYTES`.
            TaskEnded: The task has ended.
            StreamClosed: It has, and this is its own work; raised once.
            BrokerUnavailable: The broker doesn't have the event.
        """
        self._publish(to_event(data, event=event))

    def progress(
        self, current: float, total: float | None = None, message: str | None = None, *, total_files: int | None = None
    ) -> None:
        """Says how far the work is: the event `task_progress`, of which viewers that come later get the newest.

        Args:
            current: What has been done, at least 0, of any unit.
            total: Of how much, above 0; None where that isn't known: then `progress` is None, else per cent, 100 at the most.
            message: What is being done; None says nothing.
            total_files: The files that belong to the work; without it, as many as `file_update` has told of.

        Raises:
            InvalidEvent: A number isn't one, or out of bounds, or the message can't be written.
            TaskEnded: The task has ended.
            StreamClosed: It has, and this is its own work; raised once.
            BrokerUnavailable: The broker doesn't have the event.
        """
        if not _is_number(current) or current < 0:
            raise InvalidEvent("data", current, "what has been done of a task is a number of at least 0")
        if total is not None and (not _is_number(total) or total <= 0):
            raise InvalidEvent("data", total, "the total of a task is a number above 0, or None where it isn't known")
        percent = None if total is None else round(min(100.0 * current / total, 100.0), 1)
        sequence, known_files = self._tasks.next_progress(self.id)
        data = {
            "progress": percent,
            "current": current,
            "total": total,
            "total_files": total_files if total_files is not None else known_files,
            "message": message,
            "task_id": self.id,
            "sequence": sequence,
        }
        self._publish(ServerSentEvent(data, event=PROGRESS), part="progress")

    def file_update(
        self,
        file_id: str,
        *,
        filename: str | None = None,
        status: str | None = None,
        progress: float | None = None,
        message: str | None = None,
    ) -> None:
        """Says how one file of several stands: the event `file_update`; viewers that come later get each file's newest.

        Args:
            file_id: Tells the file from the others, 1 to 200 characters; there are 10,000 at the most.
            filename: Its name; None says nothing.
            status: A word of your own: `"waiting"`, `"running"`, `"done"`, `"failed"`, …; None says nothing.
            progress: Per cent, 0 to 100; None says nothing.
            message: What is being done, or went wrong; None says nothing.

        Raises:
            InvalidEvent: A value is out of bounds or can't be written, or there are too many files.
            TaskEnded: The task has ended.
            StreamClosed: It has, and this is its own work; raised once.
            BrokerUnavailable: The broker doesn't have the event.
        """
        if progress is not None and (not _is_number(progress) or not 0 <= progress <= 100):
            raise InvalidEvent("data", progress, "the progress of a file is a number from 0 to 100")
        self._tasks.know_file(self.id, file_id)
        data = {"file_id": file_id, "filename": filename, "status": status, "progress": progress, "message": message}
        self._publish(ServerSentEvent(data, event=FILE_UPDATE), part=f"file:{file_id}")

    def complete(self, result: Any = None) -> None:
        """Ends the task with its result; what a task's own work returns does it too.

        Args:
            result: A value that JSON can express.

        Raises:
            InvalidEvent: The result can't be written.
            EventTooLarge: The event that ends it has more bytes than `SSE_MAX_EVENT_BYTES`.
            TaskEnded: The task has ended already.
            BrokerUnavailable: The broker doesn't know it.
        """
        self._conclude(TaskState.COMPLETED, _completed(self.id, result))

    def fail(self, error: str | BaseException, details: Mapping[str, Any] | None = None) -> None:
        """Ends the task with an error.

        Args:
            error: What viewers are told; of an exception, its text.
            details: Facts that JSON can express; None for none.

        Raises:
            InvalidEvent: The details can't be written.
            EventTooLarge: The event that ends it has more bytes than `SSE_MAX_EVENT_BYTES`.
            TaskEnded: The task has ended already.
            BrokerUnavailable: The broker doesn't know it.
        """
        self._conclude(TaskState.FAILED, _failed(self.id, str(error), details))

    def cancel(self) -> bool:
        """Asks the task to end: its work is interrupted, runs its `finally`, and then `task_cancelled` is published.

        Returns:
            Whether there was anything to ask; False if it has ended, or isn't known.

        Raises:
            BrokerUnavailable: It can't be asked now.
        """
        return self._tasks.cancel(self.id)

    def wait(self, timeout: float | None = None) -> bool:
        """Waits until the task has ended.

        Args:
            timeout: Seconds to wait at the most, 0 for a look; None for no limit.

        Returns:
            Whether it has.

        Raises:
            TaskEnded: Nobody remembers it.
            BrokerUnavailable: The broker can't say.
        """
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        look = FIRST_LOOK
        while not self.state.is_final:
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            native.pause(min(look, left))
            look = min(2 * look, LAST_LOOK)
        return True

    def _record(self) -> TaskRecord:
        record = self._tasks.broker.tasks.find(self.id)
        if record is None:
            raise TaskEnded(self.id, None)
        return record

    def _end(self) -> dict[str, Any]:
        record = self._record()
        for part in record.parts:
            if part.key == END and record.state.is_final:
                found: dict[str, Any] = json.loads(_data_of(part.body))
                return found
        return {}

    def _publish(self, event: ServerSentEvent, *, part: str | None = None) -> None:
        own = self._tasks.find_own(self.id)
        if own is not None and (own.is_current or native.is_apart()):
            own.publish(event, part=part)
        else:
            self._tasks.publish_for(self.id, self.channel, event, part)

    def _conclude(self, state: TaskState, event: ServerSentEvent) -> None:
        checked_event(event, self._tasks.settings.max_event_bytes)
        own = self._tasks.find_own(self.id)
        if own is not None:
            own.conclude(state, event)
            if not own.is_current:
                # By itself it would learn of it at its next event, if there is one.
                own.ask(CloseReason.CONCLUDED)
        else:
            self._tasks.publish_end(self.id, self.channel, state, event)


class TaskStream(DetachedStream):
    """What a task's own work writes to.

    Attributes:
        task: The task.
    """

    __slots__ = ("_has_own_channel", "task")

    def __init__(self, task: Task, broker: Broker, settings: Settings, *, app: Flask, has_own_channel: bool) -> None:
        """Makes a stream that hasn't begun.

        Args:
            task: The task.
            broker: The app's.
            settings: The app's.
            app: The app.
            has_own_channel: Whether the channel is the task's alone, and ends with it.
        """
        super().__init__(task.id, task.channel, broker, DEFAULTS.resolved(settings), settings, app=app, path=task.channel)
        self.task = task
        self._has_own_channel = has_own_channel
        # The work has as long as it takes.
        self._timeout = self._deadline = None

    @property
    def _closes_channel(self) -> bool:
        return self._has_own_channel

    def _last_event(self, reason: CloseReason) -> ServerSentEvent:
        if reason is CloseReason.COMPLETED:
            return _completed(self.task_id, self._result)
        if reason is CloseReason.SHUTDOWN:
            return stopped(self.task_id, reason.value)
        if reason is CloseReason.ERROR and self._error is not None:
            told = error_data(self._error, debug=self.app is not None and self.app.debug)
            if told["error_type"] == "internal_error":
                told["error"] = "an error ended the task"
            return _failed(self.task_id, told["error"], {"error_type": told["error_type"], **told.get("details", {})})
        return ServerSentEvent({"task_id": self.task_id}, event=ENDS[TaskState.CANCELLED])


class Control(Protocol):
    """What joins the processes of an app."""

    def listen(self) -> None:
        """Hears what the others tell, as long as there is work here."""

    def tell(self, command: dict[str, Any]) -> None:
        """Tells the others something."""


class Installed(Protocol):
    """What tasks need of an app's installation."""

    settings: Settings

    @property
    def broker(self) -> Broker:
        """The app's broker in this process."""
        ...

    @property
    def control(self) -> Control:
        """What joins it to the app's others."""
        ...


class Tasks:
    """An app's tasks, as one process sees them.

    Attributes:
        settings: The app's.
        lose: By kind, what ends a task whose process has died: called with its record.
    """

    def __init__(self, installed: Installed) -> None:
        """Stores what it needs.

        Args:
            installed: The app's installation.
        """
        self.settings = installed.settings
        self.lose: dict[str, Callable[[TaskRecord], None]] = {"task": self._lose}
        self._installed = installed
        self._own: dict[str, DetachedStream] = {}
        self._keeper = LeaseKeeper(lambda: installed.broker, installed.settings.producer_lease, self._lost)
        self._sequences: dict[str, int] = {}
        self._files: dict[str, set[str]] = {}

    @property
    def broker(self) -> Broker:
        """The app's broker in this process."""
        return self._installed.broker

    # What starts and finds them.

    def start(
        self, app: Flask, target: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], *, channel: str | None
    ) -> Task:
        """Starts a task; see `SSE.start`."""
        task_id = secrets.token_hex(16)
        task = Task(self, task_id, channel if channel is not None else f"task:{task_id}")
        stream = TaskStream(task, self.broker, self.settings, app=app, has_own_channel=channel is None)
        producer = GeneratorProducer(stream, _work(target, args, kwargs), None, TaskContext(app))
        facts: dict[str, Any] = {"kind": "task", "ends_channel": channel is None}
        if channel is not None:
            # What the channel had before isn't the task's.
            facts["since"] = str(self.broker.position)
        self.create(stream, facts)
        make_runner = process.current().make_runner or ThreadRunner
        self.broker.waker.call(lambda: self.begin(stream, lambda: producer.start(make_runner(), None)))
        return task

    def find(self, task_id: str) -> Task | None:
        """A task of the app, wherever it runs; None if no such task is known."""
        record = self.find_record(task_id)
        return Task(self, task_id, record.channel) if record is not None else None

    def find_record(self, task_id: str, kind: str = "task") -> TaskRecord | None:
        """What the broker knows of a task of this kind; looks after all tasks from here on."""
        record = self.broker.tasks.find(task_id) if _is_id(task_id) else None
        if record is None or facts_of(record).get("kind") != kind:
            return None
        self._keeper.watch()
        return record

    def create(self, stream: DetachedStream, facts: Mapping[str, Any]) -> bool:
        """Makes the record of a task that is about to begin. False if there is one of this id."""
        return self.broker.tasks.create(stream.task_id, channel=stream.channel, facts=json.dumps(facts))

    def begin(self, stream: DetachedStream, start: Callable[[], bool]) -> bool:
        """Lets the work of a task begin; called where streams run. `start` says whether it has."""
        self._own[stream.task_id] = stream
        stream.on_close(lambda: self._forget(stream))
        try:
            process.current().keep(stream)
            self._keeper.hold(stream)
            self._installed.control.listen()
            if not start():
                return False
        except BaseException:
            # Unless its producer has told its end: that is told when its lease has run out.
            stream.discard(CloseReason.DISCARDED)
            raise
        # From here on it is running, and others see that it lives; if not now, with the next renewal.
        with contextlib.suppress(BrokerUnavailable):
            self.broker.tasks.renew([stream.task_id])
        return True

    def watch(self) -> None:
        """Looks after the app's tasks from here on: those on which nobody works any more are ended."""
        self._keeper.watch()

    def find_own(self, task_id: str) -> DetachedStream | None:
        """The stream of a task that this process works on."""
        return self._own.get(task_id)

    # What ends them.

    def cancel(self, task_id: str) -> bool:
        """Asks a task or a resumable run to end, wherever it runs; see `Task.cancel`."""
        if not _is_id(task_id):
            return False
        state = self.broker.tasks.ask_cancel(task_id)
        if state is None or state.is_final:
            return False
        if not self.hear_cancel(task_id):
            # Its process learns of it with its next renewal, too.
            self._installed.control.tell({"cancel": task_id})
        return True

    def hear_cancel(self, task_id: str) -> bool:
        """Ends a task that this process works on; False if it doesn't."""
        own = self._own.get(task_id)
        if own is not None:
            own.ask(CloseReason.CANCELLED)
        return own is not None

    def publish_for(self, task_id: str, channel: str, event: ServerSentEvent, part: str | None) -> None:
        """Publishes in the name of a task for somebody who isn't its own work.

        Raises:
            InvalidEvent: It has an id of its own, or can't be published.
            TaskEnded: The task has ended; counted.
            BrokerUnavailable: The broker doesn't have the event.
        """
        checked_event(without_id(event), self.settings.max_event_bytes)
        try:
            self.broker.publish(channel, event, task=TaskChange(task_id, part))
        except TaskEnded:
            process.current().count("events_refused")
            raise

    def publish_end(self, task_id: str, channel: str, state: TaskState, event: ServerSentEvent) -> None:
        """Ends a task that another process works on, or nobody does.

        Raises:
            TaskEnded: It has ended already.
            BrokerUnavailable: The broker doesn't know it.
        """
        record = self.broker.tasks.find(task_id)
        is_end = record is not None and bool(facts_of(record).get("ends_channel"))
        self.broker.publish(channel, event, is_end=is_end, task=TaskChange(task_id, END, state))

    def close(self) -> None:
        """The process leaves: what it still works on has failed."""
        for stream in list(self._own.values()):
            stream.stop()
            stream.tell_end()
        self._keeper.close()

    # For the tasks themselves.

    def next_progress(self, task_id: str) -> tuple[int, int | None]:
        """The number of a task's next progress, and how many files it has told of; None for none."""
        if task_id not in self._own:
            record = self.broker.tasks.find(task_id)
            told = {part.key: part.body for part in record.parts} if record is not None else {}
            before = json.loads(_data_of(told["progress"])).get("sequence", 0) if "progress" in told else 0
            return before + 1, sum(key.startswith("file:") for key in told) or None
        self._sequences[task_id] = sequence = self._sequences.get(task_id, 0) + 1
        files = self._files.get(task_id)
        return sequence, len(files) if files else None

    def know_file(self, task_id: str, file_id: str) -> None:
        """Counts a file of a task.

        Raises:
            InvalidEvent: It isn't a short text, or there are too many.
        """
        if not isinstance(file_id, str) or not 1 <= len(file_id) <= 200:
            raise InvalidEvent("data", file_id, "a file's id is a text of 1 to 200 characters")
        if task_id not in self._own:
            return
        files = self._files.setdefault(task_id, set())
        if len(files) >= MOST_FILES and file_id not in files:
            raise InvalidEvent("data", file_id, f"a task tells of at most {MOST_FILES} files")
        files.add(file_id)

    def _forget(self, stream: DetachedStream) -> None:
        self._own.pop(stream.task_id, None)
        self._keeper.let_go(stream)
        self._sequences.pop(stream.task_id, None)
        self._files.pop(stream.task_id, None)

    def _lost(self, task_id: str) -> None:
        record = self.broker.tasks.find(task_id)
        if record is not None and not record.state.is_final:
            lose = self.lose.get(facts_of(record).get("kind", ""))
            if lose is not None:
                lose(record)

    def _lose(self, record: TaskRecord) -> None:
        try:
            self.publish_end(record.id, record.channel, TaskState.FAILED, stopped(record.id, "producer_lost"))
        except TaskEnded:
            # Another process was first.
            return


def facts_of(record: TaskRecord) -> dict[str, Any]:
    """What whoever began a task has written down."""
    try:
        facts: dict[str, Any] = json.loads(record.facts)
    except ValueError:
        return {}
    return facts


def stopped(task_id: str, why: str) -> ServerSentEvent:
    """The event of a task that failed because its worker left, or died."""
    return _failed(task_id, WHY_STOPPED[why], {"error_type": why})


def _work(target: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Generator[Any, Any, Any]:
    """Calls a function or a generator function; what it yields, and what it returns."""
    result = target(*args, **kwargs)
    return (yield from result) if hasattr(result, "__next__") else result


def _completed(task_id: str, result: Any) -> ServerSentEvent:
    return ServerSentEvent({"task_id": task_id, "job_id": task_id, "result": result}, event=ENDS[TaskState.COMPLETED])


def _failed(task_id: str, error: str, details: Mapping[str, Any] | None) -> ServerSentEvent:
    data = {"task_id": task_id, "error": error, "details": dict(details) if details is not None else None}
    return ServerSentEvent(data, event=ENDS[TaskState.FAILED])


def _data_of(body: bytes) -> str:
    """The data of an encoded event of ours."""
    from .decoder import EventDecoder

    (event,) = EventDecoder(max_event_bytes=len(body)).feed(body)
    return event.data or ""


def _is_id(task_id: object) -> bool:
    return isinstance(task_id, str) and len(task_id) == 32 and all(digit in "0123456789abcdef" for digit in task_id)


def _is_number(value: object) -> bool:
    # An integer may be beyond all floats.
    return (type(value) is int and abs(value) < MOST) or (type(value) is float and math.isfinite(value))
