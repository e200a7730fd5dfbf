"""Tasks: what they publish, where they stand, how they end, and what who watches them gets."""

from __future__ import annotations

import contextvars
import gc
import json
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from flask import appcontext_tearing_down, current_app, g

from sseflask import (
    InvalidChannel,
    InvalidEvent,
    NoActiveStream,
    ServerSentEvent,
    StreamClosed,
    StreamError,
    Task,
    TaskEnded,
    TaskState,
    current_task,
    each,
    process,
    track,
)
from sseflask.brokers import Broker
from sseflask.errors import BrokerUnavailable
from sseflask.tasks import MOST_FILES
from tests.live.process import wait_until
from tests.test_callback import waits, waits_and_yields, yields
from tests.viewers import PATIENCE, MakeWorker, Viewer, Worker, make_worker, own_streams, renew_before_listening, worker

__all__ = ["make_worker", "worker"]

OPEN, RESET, END = "stream-open", "stream-reset", "stream-end"
NOBODY = "0" * 32
FINALS = [TaskState.COMPLETED, TaskState.FAILED, TaskState.CANCELLED]


class Gate:
    """Where a task waits, yielding nothing, until it is let on; under threads nothing else can end it."""

    def __init__(self) -> None:
        self._open = threading.Event()
        self.arrived = threading.Event()

    def wait(self) -> None:
        """Waits."""
        self.arrived.set()
        assert self._open.wait(PATIENCE)

    def open(self) -> None:
        """Lets who waits go on."""
        self._open.set()

    def wait_for_arrival(self) -> None:
        """Waits until somebody waits."""
        assert self.arrived.wait(PATIENCE)


@pytest.fixture
def gate() -> Iterator[Gate]:
    """A gate, which is open in the end."""
    gate = Gate()
    yield gate
    gate.open()


@pytest.fixture(params=["memory", "sqlite"])
def anywhere(request: pytest.FixtureRequest, make_worker: MakeWorker) -> Worker:
    """A worker, on each of the brokers that need no server."""
    return make_worker(shared=request.param == "sqlite")


def watch(worker: Worker, task: Task | str, last_event_id: str | None = None, **options: Any) -> Viewer:
    """Watches a task."""
    task_id = task if isinstance(task, str) else task.id
    return worker.watch(f"/tasks/{task_id}", last_event_id=last_event_id, **options)


def follow(worker: Worker, channel: str) -> list[ServerSentEvent]:
    """All events of a channel from here on."""
    found: list[ServerSentEvent] = []
    worker.broker.emitter.on(channel, found.append)
    return found


def nothing(*_: Any) -> None:
    """Does nothing."""


def looping(gate: Gate | None = None) -> Iterator[Any]:
    """Goes on for ever, with an event now and then."""
    while True:
        if gate is not None:
            gate.arrived.set()
        time.sleep(0.01)
        yield "on"


def done(task: Task) -> Task:
    """Waits for the end of a task, and of all that it needs."""
    assert task.wait(PATIENCE)
    wait_until(lambda: task._tasks.find_own(task.id) is None, PATIENCE)
    return task


class TestEvents:
    """What a task publishes."""

    def test_all(self, anywhere: Worker, gate: Gate) -> None:
        """Each event has the name and exactly the data that are promised, in the order in which they were made."""

        def work() -> Iterator[Any]:
            gate.wait()
            current_task.progress(0, 4, "begins")
            yield {"own": 1}
            current_task.file_update("a", filename="a.png", status="running", progress=50, message="half")
            current_task.file_update("b")
            current_task.publish("by hand", event="note")
            current_task.progress(1.5, 4)
            current_task.progress(3)
            current_task.progress(9, 4, total_files=7)
            yield ServerSentEvent("named", event="named")
            return {"rows": 3}

        task = anywhere.sse.start(work)
        found = follow(anywhere, task.channel)
        gate.open()
        done(task)

        def progress(percent: Any, current: Any, total: Any, files: Any, message: Any, sequence: int) -> dict[str, Any]:
            return {
                "progress": percent,
                "current": current,
                "total": total,
                "total_files": files,
                "message": message,
                "task_id": task.id,
                "sequence": sequence,
            }

        expected = [
            ("task_progress", progress(0.0, 0, 4, None, "begins", 1)),
            (None, {"own": 1}),
            ("file_update", {"file_id": "a", "filename": "a.png", "status": "running", "progress": 50, "message": "half"}),
            ("file_update", {"file_id": "b", "filename": None, "status": None, "progress": None, "message": None}),
            ("note", "by hand"),
            ("task_progress", progress(37.5, 1.5, 4, 2, None, 2)),
            ("task_progress", progress(None, 3, None, 2, None, 3)),
            ("task_progress", progress(100.0, 9, 4, 7, None, 4)),
            ("named", "named"),
            ("task_completed", {"task_id": task.id, "job_id": task.id, "result": {"rows": 3}}),
        ]

        def read(event: ServerSentEvent) -> Any:
            try:
                return json.loads(event.data or "")
            except ValueError:
                return event.data

        wait_until(lambda: len(found) == len(expected), PATIENCE)
        assert [(event.event, read(event)) for event in found] == expected
        assert (task.state, task.result, task.error) == (TaskState.COMPLETED, {"rows": 3}, None)

    def test_failed_and_cancelled(self, anywhere: Worker) -> None:
        """The other two ends have their names and data too."""
        failing = done(anywhere.sse.start(lambda: current_task.fail("no more", {"row": 7})))
        assert watch(anywhere, failing).wait_for_end().named("task_failed") == [
            {"task_id": failing.id, "error": "no more", "details": {"row": 7}}
        ]
        assert (failing.state, failing.error, failing.result) == (TaskState.FAILED, "no more", None)
        cancelled = anywhere.sse.start(looping)
        assert cancelled.cancel() is True
        done(cancelled)
        assert watch(anywhere, cancelled).wait_for_end().named("task_cancelled") == [{"task_id": cancelled.id}]
        assert (cancelled.state, cancelled.error, cancelled.result) == (TaskState.CANCELLED, None, None)

    @pytest.mark.parametrize(
        "arguments",
        [
            ("1",),
            (None,),
            (-1,),
            (True,),
            (float("nan"),),
            (float("inf"),),
            (1, 0),
            (1, -5),
            (1, "2"),
            (1, float("nan")),
            (10**400,),
        ],
        ids=lambda arguments: repr(arguments)[:20],
    )
    def test_invalid_progress(self, worker: Worker, arguments: tuple[Any, ...]) -> None:
        """Progress is made of numbers in their bounds; what isn't is refused, and publishes nothing."""
        problems: list[BaseException] = []

        def work() -> str:
            try:
                current_task.progress(*arguments)
            except InvalidEvent as error:
                problems.append(error)
            return "went on"

        task = done(worker.sse.start(work))
        assert len(problems) == 1 and task.result == "went on"

    @pytest.mark.parametrize("progress", [-1, 101, "50", True, float("nan")], ids=repr)
    def test_invalid_file_progress(self, worker: Worker, progress: Any) -> None:
        """A file's progress is from 0 to 100."""
        task = worker.sse.start(looping)
        with pytest.raises(InvalidEvent):
            task.file_update("a", progress=progress)

    @pytest.mark.parametrize("file_id", ["", "x" * 201, 7, None], ids=repr)
    def test_invalid_file_id(self, worker: Worker, file_id: Any) -> None:
        """A file's id is a short text."""
        task = worker.sse.start(looping)
        with pytest.raises(InvalidEvent):
            task.file_update(file_id)

    def test_many_files(self, worker: Worker) -> None:
        """One file too many is refused; those that are known go on."""

        def work() -> None:
            tasks = worker.app.extensions["sse"].tasks
            for number in range(MOST_FILES):
                tasks.know_file(current_task.id, str(number))
            with pytest.raises(InvalidEvent, match="10000"):
                current_task.file_update("one more")
            current_task.file_update("7", status="done")
            current_task.progress(1)

        task = worker.sse.start(work)
        done(task)
        assert task.state is TaskState.COMPLETED
        assert watch(worker, task).wait_for_end().named("task_progress")[0]["total_files"] == MOST_FILES

    def test_own_id(self, worker: Worker) -> None:
        """The ids of a task's events are ours: another is refused where it is given, to its work and to others."""
        with pytest.raises(InvalidEvent):
            worker.sse.start(looping).publish(ServerSentEvent("x", id="mine"))

        def work() -> Iterator[Any]:
            try:
                yield ServerSentEvent("x", id="mine")
            except InvalidEvent as error:
                return str(error)

        assert "sseflask's own" in done(worker.sse.start(work)).result

    @pytest.mark.parametrize("result", [object(), {1, 2}, float("nan"), "\ud800"], ids=["object", "set", "nan", "surrogate"])
    def test_result(self, worker: Worker, result: Any, caplog: pytest.LogCaptureFixture) -> None:
        """A result that JSON can't express fails the task, and the log says why; one that it can is told."""
        task = done(worker.sse.start(lambda: result))
        if result == "\ud800":
            assert task.result == result
            return
        assert task.state is TaskState.FAILED and "can't be published" in caplog.text
        (failed,) = watch(worker, task).wait_for_end().named("task_failed")
        assert failed["error"] == "an error ended the task" and "object at" not in json.dumps(failed)

    def test_large_result(self, make_worker: MakeWorker) -> None:
        """A result that is larger than events may be fails the task, whether it is returned or said."""
        worker = make_worker(SSE_MAX_EVENT_BYTES=1024)
        problems: list[BaseException] = []

        def says() -> None:
            try:
                current_task.complete("x" * 2000)
            except InvalidEvent as error:
                problems.append(error)
                raise

        for work in (lambda: "x" * 2000, says):
            task = done(worker.sse.start(work))
            assert task.state is TaskState.FAILED, work
        assert len(problems) == 1

    @pytest.mark.parametrize("debug", [False, True])
    def test_errors(self, worker: Worker, debug: bool, caplog: pytest.LogCaptureFixture) -> None:
        """What went wrong is told only where it is meant for viewers, or the app is in debug mode; it is always logged."""
        worker.app.debug = debug

        def raising(error: Exception) -> Iterator[Any]:
            yield "before"
            raise error

        secret = done(worker.sse.start(raising, KeyError("secret")))
        told = done(worker.sse.start(raising, StreamError("told", error_type="quota", details={"left": 0})))
        (failed,) = watch(worker, secret).wait_for_end().named("task_failed")
        assert failed == {
            "task_id": secret.id,
            "error": "'secret'" if debug else "an error ended the task",
            "details": {"error_type": "KeyError" if debug else "internal_error"},
        }
        (failed,) = watch(worker, told).wait_for_end().named("task_failed")
        assert failed == {"task_id": told.id, "error": "told", "details": {"error_type": "quota", "left": 0}}
        assert caplog.text.count("Traceback") >= 2

    def test_unwritable_details(self, worker: Worker) -> None:
        """An error whose details JSON can't express ends the task all the same."""

        def work() -> None:
            raise StreamError("told", details={"what": object()})

        task = worker.sse.start(work)
        assert task.wait(PATIENCE) and task.state is TaskState.FAILED
        assert task.error == "told"
        with pytest.raises(InvalidEvent):
            worker.sse.start(looping).fail("x", {"what": object()})

    def test_raises_at_once(self, worker: Worker) -> None:
        """A target that raises before anything else, or can't be called so, has failed."""
        for target in (lambda: 1 / 0, lambda missing: None):
            assert done(worker.sse.start(target)).state is TaskState.FAILED


class TestForms:
    """What can be started, and where."""

    def test_targets(self, worker: Worker) -> None:
        """Functions, generator functions and what returns an iterator; with their arguments."""

        def function(a: int, *, b: int) -> int:
            return a + b

        def generator(a: int, *, b: int) -> Iterator[Any]:
            yield a
            return a * b

        assert done(worker.sse.start(function, 2, b=3)).result == 5
        assert done(worker.sse.start(generator, 2, b=3)).result == 6
        found = follow(worker, "mapped")
        mapped = done(worker.sse.start(lambda: map(str, range(3)), channel="mapped"))
        assert mapped.state is TaskState.COMPLETED and [event.data for event in found[:3]] == ["0", "1", "2"]

    def test_states(self, worker: Worker, gate: Gate) -> None:
        """A task is running while its work goes on; its handle, and that of any other, says so."""
        task = worker.sse.start(gate.wait)
        gate.wait_for_arrival()
        found = worker.sse.task(task.id)
        assert found is not None and (found.id, found.channel) == (task.id, task.channel) == (task.id, f"task:{task.id}")
        assert task.state is found.state is TaskState.RUNNING and not task.state.is_final
        assert len(task.id) == 32 and int(task.id, 16) >= 0
        gate.open()
        assert done(task).state is TaskState.COMPLETED and found.wait(0) is True

    @pytest.mark.parametrize("task_id", [NOBODY, "", "nonsense", "A" * 32, "a" * 33, "../etc", "a" * 31 + "\n", None, 7], ids=repr)
    def test_unknown(self, anywhere: Worker, task_id: Any) -> None:
        """An unknown task, or what is no task's id at all, is none; there is nothing to cancel."""
        assert anywhere.sse.task(task_id) is None
        if isinstance(task_id, str):
            assert anywhere.sse.cancel(task_id) is False

    def test_targets_that_would_not_run(self, worker: Worker) -> None:
        """What can't be called, a generator that is there already, and what is asynchronous are refused; nothing is started."""
        for target in (yields(), waits, waits_and_yields, "work", None):
            with pytest.raises(TypeError, match=r"sse\.start takes a function and then its arguments, as in .*, not "):
                worker.sse.start(target)  # type: ignore[arg-type]
        assert not process.current().detached

    def test_invalid_channel(self, worker: Worker) -> None:
        """A channel that can't be is refused before anything starts."""
        ran: list[int] = []
        for channel in ("", "-/run/x", "a\nb", "x" * 201):
            with pytest.raises(InvalidChannel):
                worker.sse.start(ran.append, 1, channel=channel)
        assert not ran and not own_streams(worker.app)

    def test_contexts(self, worker: Worker, gate: Gate) -> None:
        """It runs in an app context of its own with a fresh g, and context variables as they were; all torn down before its end."""
        variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable")
        torn_down: list[str] = []

        @worker.app.teardown_appcontext
        def tear_down(error: BaseException | None) -> None:
            if "mine" in g:
                gate.wait()
                torn_down.append(f"{g.mine} {type(error).__name__}")

        def signalled(sender: Any, **_: Any) -> None:
            torn_down.append("signal")

        def work() -> Iterator[Any]:
            assert current_app._get_current_object() is worker.app  # type: ignore[attr-defined]
            assert "theirs" not in g
            g.mine = "mine"
            yield "one"
            assert g.mine == "mine" and variable.get() == "set"
            raise KeyError

        with worker.app.app_context():
            g.theirs = "theirs"
            variable.set("set")
            task = worker.sse.start(work)
            variable.set("changed")
        appcontext_tearing_down.connect(signalled, worker.app)
        gate.wait_for_arrival()
        assert not task.wait(0.05) and task.state is TaskState.RUNNING
        gate.open()
        done(task)
        assert torn_down == ["mine KeyError", "signal"]

    def test_current_task(self, worker: Worker) -> None:
        """`current_task` is the task inside it, from however deep, and nothing outside."""

        def work() -> str:
            return current_task.id

        task = done(worker.sse.start(work))
        assert task.result == task.id
        assert not current_task
        with pytest.raises(NoActiveStream):
            current_task.progress(1)

    def test_current_task_in_a_stream(self, worker: Worker) -> None:
        """A stream's generator is no task."""

        @worker.app.get("/")
        @worker.sse.stream
        def view() -> Iterator[Any]:
            yield bool(current_task)

        assert worker.watch().wait_for_end().data == ["false"]

    def test_from_threads(self, anywhere: Worker) -> None:
        """A task can be started from a thread, with no context."""
        tasks: list[Task] = []
        thread = threading.Thread(target=lambda: tasks.append(anywhere.sse.start(lambda: 7)))
        thread.start()
        thread.join(PATIENCE)
        assert done(tasks[0]).result == 7

    def test_broker_away(self, worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
        """While the broker can't be reached nothing is started."""
        ran: list[int] = []

        def fail(*_: Any, **__: Any) -> Any:
            raise BrokerUnavailable("away")

        with monkeypatch.context() as away:
            away.setattr(worker.broker.tasks, "create", fail)
            with pytest.raises(BrokerUnavailable):
                worker.sse.start(ran.append, 1)
        assert not own_streams(worker.app) and not ran

    def test_broker_away_after_the_start(self, worker: Worker, gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
        """Once the work runs, a broker that is away for a moment doesn't make `start` say that it doesn't."""
        renew = worker.broker.tasks.renew
        calls: list[int] = []

        def fail_once(task_ids: Any) -> Any:
            calls.append(1)
            if len(calls) == 1:
                raise BrokerUnavailable("away")
            return renew(task_ids)

        monkeypatch.setattr(worker.broker.tasks, "renew", fail_once)
        task = worker.sse.start(gate.wait)
        gate.wait_for_arrival()
        wait_until(lambda: task.state is TaskState.RUNNING, PATIENCE)
        gate.open()
        assert done(task).state is TaskState.COMPLETED

    def test_outage(self, worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
        """Work waits for a broker that is away for less than the lease, and loses nothing."""
        publish = worker.broker.publish
        failures = [BrokerUnavailable("away") for _ in range(3)]

        def publish_later(*args: Any, **kwargs: Any) -> str:
            if failures:
                raise failures.pop()
            return publish(*args, **kwargs)

        def work() -> Iterator[Any]:
            yield from ("1", "2")

        found: list[ServerSentEvent] = []
        monkeypatch.setattr(worker.broker, "publish", publish_later)
        worker.broker.emitter.on("chosen", found.append)
        task = done(worker.sse.start(work, channel="chosen"))
        assert task.state is TaskState.COMPLETED and [event.data for event in found[:2]] == ["1", "2"]


class TestEnds:
    """The first end counts."""

    def test_first_wins(self, anywhere: Worker) -> None:
        """Of several ends the first is the task's; the others are refused."""
        task = anywhere.sse.start(looping)
        task.complete("first")
        for end in (
            lambda: task.complete("second"),
            lambda: task.fail("third"),
            lambda: task.progress(1),
            lambda: task.publish("x"),
        ):
            with pytest.raises(TaskEnded) as caught:
                end()
            assert (caught.value.task_id, caught.value.state) == (task.id, TaskState.COMPLETED)
        assert task.cancel() is False
        done(task)
        assert (task.state, task.result) == (TaskState.COMPLETED, "first")
        viewer = watch(anywhere, task).wait_for_end()
        assert [name for name in viewer.names if name and name.startswith("task_")] == ["task_completed"]

    def test_race(self, anywhere: Worker) -> None:
        """Ends that come at the same time: one of them is the task's, in the record and in the channel."""
        task = anywhere.sse.start(looping)
        found = follow(anywhere, task.channel)
        barrier = threading.Barrier(4)
        won: list[int] = []

        def end(number: int) -> None:
            barrier.wait()
            try:
                task.complete(number) if number % 2 else task.fail(str(number))
            except TaskEnded:
                return
            won.append(number)

        threads = [threading.Thread(target=end, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
        assert len(won) == 1
        done(task)
        assert str(task.result if won[0] % 2 else task.error) == str(won[0])
        ends = [event for event in found if (event.event or "").startswith("task_")]
        assert len(ends) == 1 and found[-1] is ends[0]

    def test_inside(self, anywhere: Worker) -> None:
        """What its own work publishes after it has ended itself is refused, counted, and stops it; what it returns is no result."""
        before = process.current().stats()["events_refused"]
        stopped: list[BaseException] = []

        def work() -> Iterator[Any]:
            current_task.complete({"n": 1})
            try:
                yield "too late"
                stopped.append(AssertionError())
            except StreamClosed as closed:
                stopped.append(closed)
                raise
            return "another"

        task = done(anywhere.sse.start(work))
        (closed,) = stopped
        assert isinstance(closed, StreamClosed) and closed.reason == "concluded"
        assert task.result == {"n": 1}
        assert process.current().stats()["events_refused"] == before + 1
        assert "too late" not in (watch(anywhere, task).wait_for_end().body.decode())

    def test_outside(self, anywhere: Worker, gate: Gate) -> None:
        """Somebody else in this process ends it: its work is told, though it publishes nothing."""
        ended = threading.Event()

        def work() -> Iterator[Any]:
            try:
                gate.wait()
                # Nothing that is published: threads can only be told where they look.
                while not current_task._tasks.find_own(current_task.id).closed:  # type: ignore[union-attr]
                    time.sleep(0.01)
                yield "too late"
            finally:
                ended.set()

        task = anywhere.sse.start(work)
        gate.wait_for_arrival()
        task.complete("by hand")
        gate.open()
        assert ended.wait(PATIENCE)
        done(task)
        assert task.result == "by hand"

    def test_refused_outside(self, anywhere: Worker) -> None:
        """What somebody else publishes of a task that has ended is refused to them, and counted; the work isn't theirs to stop."""
        task = anywhere.sse.start(looping)
        task.fail("over")
        before = process.current().stats()["events_refused"]
        with pytest.raises(TaskEnded):
            task.file_update("a")
        assert process.current().stats()["events_refused"] > before
        done(task)

    def test_after_return(self, worker: Worker) -> None:
        """A task that fails itself and then raises, or returns, has the end that it said."""

        def work() -> None:
            current_task.fail(ValueError("mine"))
            raise KeyError("other")

        assert done(worker.sse.start(work)).error == "mine"

    def test_cancel(self, anywhere: Worker) -> None:
        """Cancelling runs `finally` and then tells the end; what is yielded in between is dropped."""
        order: list[str] = []

        def work() -> Iterator[Any]:
            try:
                yield from looping()
            except StreamClosed as closed:
                order.append(closed.reason)
                raise
            finally:
                yield "dropped"
                order.append("finally")

        task = anywhere.sse.start(work)
        found = follow(anywhere, task.channel)
        anywhere.broker.emitter.on(task.channel, lambda event: order.append(event.event or "") if event.event else None)
        assert anywhere.sse.cancel(task.id) is True
        done(task)
        wait_until(lambda: "task_cancelled" in order, PATIENCE)
        assert order == ["cancelled", "finally", "task_cancelled"]
        assert "dropped" not in [event.data for event in found]
        assert task.cancel() is False and anywhere.sse.cancel(task.id) is False
        assert task.state is TaskState.CANCELLED

    def test_cancel_twice(self, worker: Worker) -> None:
        """A second request to end changes nothing."""
        reasons: list[str] = []

        def work() -> Iterator[Any]:
            try:
                yield from looping()
            except StreamClosed as closed:
                reasons.append(closed.reason)
                time.sleep(0.1)
                raise

        task = worker.sse.start(work)
        task.cancel()
        task.cancel()
        done(task)
        assert reasons == ["cancelled"]

    def test_cancel_that_is_caught(self, worker: Worker) -> None:
        """Work that catches its end and goes on is dropped; a result that it returns isn't one."""

        def work() -> Iterator[Any]:
            try:
                yield from looping()
            except StreamClosed:
                yield "still here"
            return "a result"

        task = worker.sse.start(work)
        task.cancel()
        done(task)
        assert (task.state, task.result) == (TaskState.CANCELLED, None)

    def test_wait(self, worker: Worker, gate: Gate) -> None:
        """`wait` ends with the task, or when its time is up."""
        task = worker.sse.start(gate.wait)
        began = time.monotonic()
        assert task.wait(0.1) is False and time.monotonic() - began >= 0.1
        assert task.wait(0) is False
        threading.Timer(0.05, gate.open).start()
        assert task.wait() is True and task.wait(0) is True

    def test_forgotten(self, worker: Worker) -> None:
        """A task that nobody remembers can't be asked."""
        task = Task(worker.app.extensions["sse"].tasks, NOBODY, "task:x")
        for ask in (lambda: task.state, lambda: task.result, task.wait, lambda: task.progress(1), task.complete):
            with pytest.raises(TaskEnded, match="nobody remembers") as caught:
                ask()
            assert caught.value.state is None
        assert task.cancel() is False

    def test_nothing_stays(self, worker: Worker) -> None:
        """A process keeps nothing of tasks that have ended."""
        tasks = worker.app.extensions["sse"].tasks

        def work() -> Iterator[Any]:
            current_task.progress(1)
            current_task.file_update("a")
            yield "x"

        for _ in range(20):
            done(worker.sse.start(work))
        assert not own_streams(worker.app)
        assert not tasks._own and not tasks._sequences and not tasks._files and not tasks._keeper._holders


class TestOtherWorkers:
    """Two workers that share a broker."""

    @pytest.fixture
    def pair(self, make_worker: MakeWorker) -> tuple[Worker, Worker]:
        """Two of them."""
        return make_worker(shared=True), make_worker(shared=True)

    def test_handle(self, pair: tuple[Worker, Worker]) -> None:
        """A handle of another worker does all that the task's own does."""
        here, there = pair
        task = here.sse.start(looping)
        other = there.sse.task(task.id)
        assert other is not None and other.state in (TaskState.PENDING, TaskState.RUNNING)
        other.progress(1, 2)
        other.progress(2, 2)
        other.file_update("a", status="done")
        other.progress(2, 2, "files")
        viewer = watch(here, task)
        viewer.wait_for("file_update")
        (last,) = viewer.named("task_progress")
        assert (last["sequence"], last["total_files"], last["message"]) == (3, 1, "files")
        other.complete([1])
        viewer.wait_for_end()
        done(task)
        assert task.result == other.result == [1]
        with pytest.raises(TaskEnded):
            other.fail("late")

    def test_complete_elsewhere_stops_the_work(self, pair: tuple[Worker, Worker]) -> None:
        """The work learns that another worker has ended it, and ends."""
        here, there = pair
        reasons: list[str] = []

        def work() -> Iterator[Any]:
            try:
                while True:
                    time.sleep(0.01)
                    yield "on"
            except StreamClosed as closed:
                reasons.append(closed.reason)
                raise

        task = here.sse.start(work)
        other = there.sse.task(task.id)
        assert other is not None
        other.fail("by another")
        done(task)
        assert reasons == ["concluded"] and task.error == "by another"

    def test_cancel_elsewhere(self, pair: tuple[Worker, Worker]) -> None:
        """Cancelling reaches the worker that does the work."""
        here, there = pair
        task = here.sse.start(looping)
        assert there.sse.cancel(task.id) is True
        done(task)
        assert task.state is TaskState.CANCELLED

    def test_watch_elsewhere(self, pair: tuple[Worker, Worker], gate: Gate) -> None:
        """A viewer on another worker gets where the task stands, then what comes, and the end; both viewers the same."""
        here, _ = pair

        def work() -> Iterator[Any]:
            current_task.progress(1, 2)
            gate.wait()
            yield "live"
            return "done"

        task = here.sse.start(work)
        gate.wait_for_arrival()
        viewers = [watch(one, task) for one in pair]
        for viewer in viewers:
            viewer.wait_for("task_progress")
        gate.open()
        for viewer in viewers:
            viewer.wait_for_end()
            assert viewer.names == [OPEN, "task_progress", None, "task_completed"]
        assert [event.id for event in viewers[0].events] == [event.id for event in viewers[1].events]

    def test_producer_lost(self, make_worker: MakeWorker) -> None:
        """A task whose process says no more that it lives is failed by the others; who watches gets it on each worker."""
        here, there, third = (make_worker(shared=True) for _ in range(3))
        task = here.sse.start(looping)
        viewers = [watch(there, task), watch(third, task)]
        # As when the process is killed.
        here.app.extensions["sse"].tasks._keeper.close()
        for viewer in viewers:
            (failed,) = viewer.wait_for_end().named("task_failed")
            assert failed["details"] == {"error_type": "producer_lost"} and "died" in failed["error"]
        # It wasn't dead after all: what it publishes is refused, and stops it.
        wait_until(lambda: not own_streams(here.app), PATIENCE)
        found = there.sse.task(task.id)
        assert found is not None and found.state is TaskState.FAILED

    def test_outage_is_no_death(self, make_worker: MakeWorker, monkeypatch: pytest.MonkeyPatch) -> None:
        """Time in which the broker can't be reached doesn't count against who works."""
        here, there = (make_worker(shared=True) for _ in range(2))
        away = threading.Event()
        failed = [0]

        def break_off(broker: Broker) -> None:
            for name in ("renew", "beats"):
                call = getattr(broker.tasks, name)

                def maybe(*args: Any, call: Any = call) -> Any:
                    if away.is_set():
                        failed[0] += 1
                        raise BrokerUnavailable("away")
                    return call(*args)

                monkeypatch.setattr(broker.tasks, name, maybe)

        task = here.sse.start(looping)
        viewer = watch(there, task)
        for one in (here, there):
            break_off(one.broker)
        away.set()
        wait_until(lambda: failed[0] > 25, PATIENCE)
        away.clear()
        beats = here.broker.tasks.beats
        first = beats()[task.id]
        wait_until(lambda: beats()[task.id] > first + 3, PATIENCE)
        assert task.state is TaskState.RUNNING and not viewer.is_over
        task.cancel()
        viewer.wait_for_end()

    def test_leaving(self, pair: tuple[Worker, Worker]) -> None:
        """What a process still works on when it leaves has failed, with a reason."""
        here, there = pair
        task = here.sse.start(looping)
        viewer = watch(there, task)
        here.app.extensions["sse"].tasks.close()
        (failed,) = viewer.wait_for_end().named("task_failed")
        assert failed["details"] == {"error_type": "shutdown"} and "stopped" in failed["error"]
        done(task)


class TestViewers:
    """What who watches a task gets."""

    def test_midway(self, anywhere: Worker, gate: Gate) -> None:
        """Who comes in the middle gets the newest progress and each file's newest, then what follows, without a hole."""

        def work() -> Iterator[Any]:
            for number in range(5):
                current_task.progress(number, 5)
                current_task.file_update("a", progress=number)
                current_task.file_update("b", progress=number * 2)
                yield f"early {number}"
            gate.wait()
            yield "late"
            current_task.progress(5, 5)
            return 1

        task = anywhere.sse.start(work)
        gate.wait_for_arrival()
        viewer = watch(anywhere, task)
        assert viewer.status == 200 and viewer.headers["Content-Type"].startswith("text/event-stream")
        viewer.wait_for("file_update", 2)
        gate.open()
        viewer.wait_for_end()
        assert viewer.named("task_progress")[0]["current"] == 4 and viewer.named("task_progress")[-1]["current"] == 5
        assert viewer.named("file_update")[:2] == [
            {"file_id": "a", "filename": None, "status": None, "progress": 4, "message": None},
            {"file_id": "b", "filename": None, "status": None, "progress": 8, "message": None},
        ]
        assert viewer.data == ["early 4", "late"]
        assert viewer.names[-1] == "task_completed" and (viewer.events[-1].id or "").endswith("-end")
        # Nothing before the last of the state has an id: who is cut off before begins anew.
        shown = viewer.names.index("file_update") + 1
        assert all(event.id is None for event in viewer.events[:shown]) and viewer.events[shown].id

    def test_before_anything(self, anywhere: Worker, gate: Gate) -> None:
        """Who comes before the first event has a position all the same, and misses nothing."""

        def work() -> Iterator[Any]:
            gate.wait()
            yield "one"
            current_task.progress(1)

        task = anywhere.sse.start(work)
        viewer = watch(anywhere, task)
        viewer.wait_for(OPEN)
        assert viewer.events[0].id
        viewer.hang_up()
        gate.open()
        done(task)
        again = watch(anywhere, task, viewer.last_event_id).wait_for_end()
        assert again.names == [OPEN, None, "task_progress", "task_completed"]

    def test_exact_reconnect(self, anywhere: Worker) -> None:
        """Who comes back with any event's id gets exactly what followed it."""

        def work() -> Iterator[Any]:
            for number in range(5):
                yield str(number)
            current_task.progress(1)
            yield "last"

        task = anywhere.sse.start(work, channel="kept")
        done(task)
        whole = watch(anywhere, task, f"{anywhere.broker.position.epoch}-0")
        whole.wait_for_end()
        ids = [event.id for event in whole.events[1:]]
        for index, event_id in enumerate(ids[:-1]):
            again = watch(anywhere, task, event_id).wait_for_end()
            assert [event.id for event in again.events[1:]] == ids[index + 1 :], event_id
        assert watch(anywhere, task, ids[-1]).status == 204

    def test_late(self, anywhere: Worker) -> None:
        """Who comes after the end gets how it went, with a final id, and then 204."""

        def work() -> Iterator[Any]:
            yield "early"
            current_task.progress(3, 3)
            current_task.file_update("a", status="done")
            return "done"

        task = done(anywhere.sse.start(work))
        viewer = watch(anywhere, task).wait_for_end()
        assert viewer.names == [OPEN, "task_progress", "file_update", "task_completed"]
        assert viewer.last_event_id.endswith("-end")
        assert watch(anywhere, task, viewer.last_event_id).status == 204
        # That needs no record: the task may have been forgotten.
        assert watch(anywhere, NOBODY, viewer.last_event_id).status == 204

    def test_history_gone(self, make_worker: MakeWorker, gate: Gate) -> None:
        """Who comes back for what is gone is told so, counted, and gets where the task stands."""
        worker = make_worker(SSE_HISTORY=8)

        def work() -> Iterator[Any]:
            yield "first"
            current_task.progress(1, 9)
            for number in range(20):
                yield str(number)
            gate.wait()
            yield "last"

        task = worker.sse.start(work)
        gate.wait_for_arrival()
        position = f"{worker.broker.position.epoch}-1"
        before = process.current().stats()["resets"]
        viewer = watch(worker, task, position)
        viewer.wait_for("task_progress")
        assert viewer.names[:3] == [RESET, OPEN, "task_progress"]
        assert viewer.named(RESET) == [{"reason": "history", "position": position}]
        wait_until(lambda: process.current().stats()["resets"] == before + 1, PATIENCE)
        gate.open()
        viewer.wait_for_end()
        # What is still there follows.
        assert viewer.data == [*(str(number) for number in range(12, 20)), "last"]
        again = watch(worker, task, position).wait_for_end()
        assert again.names == [RESET, OPEN, "task_progress", "task_completed"]
        assert process.current().stats()["resets"] == before + 2

    @pytest.mark.parametrize("comes_back", [False, True])
    def test_another_life_before_it_listens(
        self, worker: Worker, gate: Gate, monkeypatch: pytest.MonkeyPatch, comes_back: bool
    ) -> None:
        """A log that begins anew before a viewer listens ends its stream: its next request shows where the task stands."""

        def work() -> Iterator[Any]:
            yield "one"
            current_task.progress(1)
            gate.wait()
            yield "three"

        task = worker.sse.start(work)
        gate.wait_for_arrival()
        position = str(worker.broker.position)
        renew_before_listening(worker.broker, monkeypatch)
        viewer = watch(worker, task, position if comes_back else None).wait_for_end()
        assert viewer.names == ([OPEN] if comes_back else [OPEN, "task_progress"]) and viewer.last_event_id == position
        gate.open()
        again = watch(worker, done(task), position).wait_for_end()
        assert again.names == [RESET, OPEN, "task_progress", "task_completed"]

    @pytest.mark.parametrize("asked", ["nonsense", "0123456789ab-5", "-1", "a-b-end"])
    def test_other_ids(self, worker: Worker, asked: str) -> None:
        """A position that says nothing here is reset, and shown the state."""
        task = done(worker.sse.start(lambda: 1))
        viewer = watch(worker, task, asked).wait_for_end()
        assert viewer.names == [RESET, OPEN, "task_completed"]

    def test_unknown(self, worker: Worker) -> None:
        """An unknown task is 404 in JSON, and opens nothing."""
        before = process.current().stats()["streams_opened"]
        for task_id in (NOBODY, "nonsense", "%00"):
            viewer = watch(worker, task_id).wait_for_end()
            assert viewer.status == 404 and "error" in json.loads(viewer.body)
        assert process.current().stats()["streams_opened"] == before

    def test_expired(self, make_worker: MakeWorker) -> None:
        """A task that ended longer ago than its events are kept is 204; its state is still known."""
        worker = make_worker(SSE_HISTORY_SECONDS=0.2)
        task = done(worker.sse.start(lambda: 5))
        wait_until(lambda: watch(worker, task).status == 204, PATIENCE)
        assert (task.state, task.result) == (TaskState.COMPLETED, None)

    def test_head(self, worker: Worker) -> None:
        """A HEAD request gets the headers and starts nothing."""
        task = worker.sse.start(looping)
        before = process.current().stats()["streams_opened"]
        reply = worker.app.test_client().head(f"/tasks/{task.id}")
        assert reply.status_code == 200 and not reply.data
        assert process.current().stats()["streams_opened"] == before
        reply.close()

    def test_options(self, worker: Worker) -> None:
        """Options concern the viewer's stream."""

        @worker.app.get("/short/<task_id>")
        def short(task_id: str) -> Any:
            return worker.sse.task_response(task_id, max_age=0.2, retry=1234)

        task = worker.sse.start(looping)
        viewer = worker.watch(f"/short/{task.id}").wait_for_end()
        assert b"retry: 1234" in viewer.body and task.state is TaskState.RUNNING

    def test_run_is_no_task(self, worker: Worker) -> None:
        """A resumable run can't be watched as a task."""

        @worker.app.get("/")
        @worker.sse.stream(resumable=True)
        def view() -> Iterator[Any]:
            yield from looping()

        viewer = worker.watch()
        viewer.wait_for(None)
        run = viewer.last_event_id.split("-")[0]
        assert worker.sse.task(run) is None and watch(worker, run).status == 404
        assert worker.sse.cancel(run)


class TestChosenChannel:
    """A task on a channel that isn't its own."""

    def test_goes_on(self, anywhere: Worker) -> None:
        """The channel stays open after the task; who watches the task is done with its end."""

        @anywhere.app.get("/on")
        def on() -> Any:
            return anywhere.sse.subscribe("room")

        room = anywhere.watch("/on")
        first = anywhere.sse.start(looping, channel="room")
        second = anywhere.sse.start(looping, channel="room")
        viewer = watch(anywhere, first)
        second.complete(2)
        first.complete(1)
        viewer.wait_for_end()
        assert viewer.named("task_completed")[-1]["result"] == 1 and viewer.last_event_id.endswith("-end")
        anywhere.sse.publish("after", channel="room", event="after")
        room.wait_for("after")
        assert room.names.count("task_completed") == 2 and not room.is_over
        assert all(not (event.id or "").endswith("-end") for event in room.events)

    def test_before_it(self, anywhere: Worker, gate: Gate) -> None:
        """Who watches the task gets nothing of what the channel had before it began."""
        anywhere.sse.publish("before", channel="room")

        def work() -> Iterator[Any]:
            yield "its own"
            gate.wait()

        task = anywhere.sse.start(work, channel="room")
        gate.wait_for_arrival()
        viewer = watch(anywhere, task)
        viewer.wait_for(None)
        gate.open()
        viewer.wait_for_end()
        assert viewer.data == ["its own"]

    def test_after_its_end(self, worker: Worker) -> None:
        """Who comes back with a later position of the channel finds the task over, and doesn't wait."""
        task = done(worker.sse.start(lambda: 1, channel="room"))
        later = worker.sse.publish("after", channel="room")
        viewer = watch(worker, task, later)
        assert viewer.status == 204 or viewer.wait_for_end()


class TestTrack:
    """`track`: progress by itself."""

    def progresses(self, worker: Worker, work: Any, *args: Any) -> tuple[Task, list[Any]]:
        """What work reports."""
        found: list[ServerSentEvent] = []
        worker.broker.emitter.on("tracked", found.append)
        task = done(worker.sse.start(work, *args, channel="tracked"))
        return task, [json.loads(event.data or "") for event in found if event.event == "task_progress"]

    def test_known(self, worker: Worker) -> None:
        """A list's length is the total; the beginning and the end are told, what lies between at most four times a second."""

        def work() -> list[int]:
            return list(track(list(range(1000)), message="counting"))

        began = time.monotonic()
        task, found = self.progresses(worker, work)
        assert task.result == list(range(1000))
        assert found[0] | {"task_id": ""} == found[0] | {
            "current": 0,
            "total": 1000,
            "progress": 0.0,
            "message": "counting",
            "task_id": "",
        }
        assert (found[-1]["current"], found[-1]["progress"]) == (1000, 100.0)
        assert len(found) <= 3 + (time.monotonic() - began) * 4

    def test_in_between(self, worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
        """What is told between is what has been done, and only goes up."""
        monkeypatch.setattr(sys.modules["sseflask.progress"], "TRACK_SECONDS", 0.0)
        _, found = self.progresses(worker, lambda: [nothing(item) for item in track(range(5))] and None)
        assert [progress["current"] for progress in found] == [0, 1, 2, 3, 4, 5]

    @pytest.mark.parametrize("items", [(), [], iter(())], ids=["tuple", "list", "iterator"])
    def test_empty(self, worker: Worker, items: Any) -> None:
        """Of nothing, the beginning is told."""
        task, found = self.progresses(worker, lambda: list(track(items)))
        assert task.result == [] and [progress["total"] for progress in found] == [None]

    def test_unknown_length(self, worker: Worker) -> None:
        """Without a length there is no percentage, unless the total is given; a total of 0 is none."""
        for total, percent in ((None, None), (10, 30.0), (0, None)):
            _, found = self.progresses(worker, lambda total=total: list(track((n for n in range(3)), total)))
            assert (found[-1]["current"], found[-1]["progress"]) == (3, percent)

    def test_break(self, worker: Worker) -> None:
        """Work that leaves early, or fails, closes what it iterates, and its task has its own end."""
        closed: list[str] = []

        def items() -> Iterator[int]:
            try:
                yield from range(100)
            finally:
                closed.append("closed")

        def leaves() -> str:
            for item in track(items(), 100):
                if item == 3:
                    break
            gc.collect()
            return "left"

        def fails() -> None:
            for item in track(items(), 100):
                if item == 3:
                    raise KeyError

        assert self.progresses(worker, leaves)[0].result == "left"
        assert self.progresses(worker, fails)[0].state is TaskState.FAILED
        gc.collect()
        assert closed == ["closed"] * 2

    def test_failing_iterable(self, worker: Worker) -> None:
        """What the iterable raises is the work's to handle."""

        def items() -> Iterator[int]:
            yield 1
            raise StreamError("no more items")

        assert self.progresses(worker, lambda: list(track(items())))[0].error == "no more items"

    def test_given_task(self, worker: Worker, gate: Gate) -> None:
        """A task can be given from outside; without one there must be one around, which is said at once."""
        task = worker.sse.start(gate.wait)
        assert list(track("ab", task=task)) == ["a", "b"]
        viewer = watch(worker, task)
        viewer.wait_for("task_progress")
        assert viewer.named("task_progress")[0]["progress"] == 100.0
        with pytest.raises(NoActiveStream):
            track("ab")


class Row:
    """An item with an id."""

    def __init__(self, row_id: object) -> None:
        self.id = row_id


class TestEach:
    """`each`: what fails is told, and the rest goes on."""

    def test_mixed(self, worker: Worker, caplog: pytest.LogCaptureFixture) -> None:
        """Each item makes an event, none, or an error with its id; in order."""

        def work(item: Any) -> Any:
            number = item["n"]
            if number == 1:
                raise KeyError("secret")
            if number == 2:
                raise StreamError("told", error_type="bad_row")
            return None if number == 3 else {"n": number} if number else ServerSentEvent("own", event="own")

        events = list(each([{"id": f"row-{n}", "n": n} for n in range(5)], work))
        assert [event.event for event in events] == ["own", "chunk_error", "chunk_error", "content"]
        generic, told = (json.loads(event.data or "") for event in events[1:3])
        assert (generic["id"], generic["error_type"]) == ("row-1", "internal_error") and "secret" not in generic["error"]
        assert (told["id"], told["error"], told["error_type"]) == ("row-2", "told", "bad_row")
        assert set(generic) == set(told) == {"id", "error", "error_type", "timestamp"}
        assert "secret" in caplog.text
        assert list(worker.sse.each([1], lambda item: item, "named")) == [ServerSentEvent(1, event="named")]

    @pytest.mark.parametrize(
        ("item", "name"),
        [({"id": 7}, 7), (Row("a"), "a"), ("text", 0), (Row(None), 0), ({}, 0), (Row(NOBODY), NOBODY)],
        ids=["mapping", "object", "text", "none", "empty", "nobody"],
    )
    def test_names(self, item: Any, name: Any) -> None:
        """An item is called by its id, else by its number."""
        (event,) = each([item], lambda item: 1 / 0)
        assert json.loads(event.data or "")["id"] == name

    def test_odd_names(self) -> None:
        """An item whose id JSON can't express, or whose result it can't, stops nothing."""
        events = list(each([Row(object()), Row({1})], lambda item: 1 / 0))
        events += each([object()], lambda item: object())
        events += each([{"id": 1}], lambda item: (_ for _ in ()).throw(StreamError("told", details={"x": object()})))
        assert [event.event for event in events] == ["chunk_error"] * 4

    def test_key(self) -> None:
        """A name can be chosen."""
        (event,) = each([Row(1)], lambda item: 1 / 0, key=lambda item: f"row {item.id}")
        assert json.loads(event.data or "")["id"] == "row 1"

    def test_closing(self) -> None:
        """The end of a stream is no failure of an item."""

        def close(item: Any) -> None:
            raise StreamClosed("cancelled")

        with pytest.raises(StreamClosed):
            list(each([1], close))

    def test_debug(self, worker: Worker) -> None:
        """In debug mode the error's text is told."""
        worker.app.debug = True
        with worker.app.app_context():
            (event,) = each([1], lambda item: {}["secret"])
        assert json.loads(event.data or "")["error_type"] == "KeyError"
