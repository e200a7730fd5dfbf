"""Resumable streams: one run of the generator, however often its client comes and goes."""

from __future__ import annotations

import functools
import json
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from flask import abort, g, request, session

from sseflask import InvalidEvent, ServerSentEvent, StreamClosed, StreamError, TaskState, current_stream, heartbeat, process
from sseflask.brokers import sqlite_follower
from sseflask.errors import BrokerUnavailable
from tests.live.process import wait_until
from tests.viewers import PATIENCE, MakeWorker, Viewer, Worker, make_worker, own_streams, renew_before_listening, worker

__all__ = ["make_worker", "worker"]

OPEN, RESET, END, ERROR = "stream-open", "stream-reset", "stream-end", "error"

Pair = tuple[Worker, Worker]


class Story:
    """A generator that counts its runs, and goes on as far as it is let.

    Attributes:
        runs: How often it was begun.
        ended: How each ended: `"returned"`, or the reason for which it was closed.
    """

    def __init__(self, length: int = 6) -> None:
        self.runs = 0
        self.ended: list[str] = []
        self._length = length
        self._allowed = 0
        self._changed = threading.Condition()

    def allow(self, count: int | None = None) -> None:
        """Lets it come to this event; to its end without a number."""
        with self._changed:
            self._allowed = self._length + 1 if count is None else count
            self._changed.notify_all()

    def tell(self) -> Iterator[Any]:
        """Yields `part 1 `, `part 2 ` and so on."""
        self.runs += 1
        try:
            for number in range(1, self._length + 1):
                self._wait_for(number)
                yield f"part {number} "
            self._wait_for(self._length + 1)
            self.ended.append("returned")
        except StreamClosed as closed:
            self.ended.append(closed.reason)
            raise

    def _wait_for(self, number: int) -> None:
        stream = current_stream._get_current_object()  # type: ignore[attr-defined]
        with self._changed:
            # Threads can't be interrupted: it looks.
            while self._allowed < number and not stream.closed:
                self._changed.wait(0.01)
        if stream.closed:
            stream.raise_interruption()

    @property
    def text(self) -> str:
        """All of it."""
        return "".join(f"part {number} " for number in range(1, self._length + 1))


@pytest.fixture
def story() -> Iterator[Story]:
    """A story, which has been told in the end."""
    story = Story()
    yield story
    story.allow()


def tells(worker: Worker, story: Story, **options: Any) -> Worker:
    """Gives an app a resumable view that tells the story."""

    @worker.app.route("/", methods=["GET", "POST"])
    @worker.sse.stream(resumable=True, **options)
    def view() -> Iterator[Any]:
        yield from story.tell()

    return worker


@pytest.fixture
def pair(make_worker: MakeWorker, story: Story) -> Pair:
    """Two workers that share a broker, and tell the story."""
    return tells(make_worker(shared=True), story), tells(make_worker(shared=True), story)


@pytest.fixture
def single(worker: Worker, story: Story) -> Worker:
    """One worker that tells it."""
    return tells(worker, story)


def run_of(viewer: Viewer) -> str:
    """The run that a client watches."""
    return (viewer.events[0].id or "").split("-")[0]


def is_gone(viewer: Viewer, asked: str) -> None:
    """Checks that a client was told that its run is no more, and that it stays so."""
    viewer.wait_for_end()
    assert viewer.status == 200 and viewer.names == [RESET, END], viewer.body
    assert viewer.named(RESET) == [{"reason": "run_gone", "position": asked}]
    assert viewer.last_event_id.endswith("-end")


class TestRun:
    """One run."""

    def test_whole(self, single: Worker, story: Story) -> None:
        """The open event, with the run's id, comes first; each event has an id of the run; the end's is final."""
        story.allow(0)
        viewer = single.watch()
        viewer.wait_for(OPEN)
        run = run_of(viewer)
        assert len(run) == 32 and int(run, 16) >= 0
        assert viewer.events[0] == ServerSentEvent({"run": run}, event=OPEN, id=f"{run}-0")
        story.allow()
        viewer.wait_for_end()
        assert viewer.text == story.text
        assert [event.id for event in viewer.events] == [*(f"{run}-{number}" for number in range(7)), f"{run}-7-end"]
        assert viewer.events[-1] == ServerSentEvent({"reason": "completed"}, event=END, id=f"{run}-7-end")
        assert (story.runs, story.ended) == (1, ["returned"])

    def test_ids_differ(self, single: Worker, story: Story) -> None:
        """Each first request is a run of its own."""
        story.allow()
        viewers = [single.watch().wait_for_end() for _ in range(3)]
        assert len({run_of(viewer) for viewer in viewers}) == 3 and story.runs == 3

    def test_resume_anywhere(self, pair: Pair, story: Story) -> None:
        """From each of its events, while it runs and after, on each worker: what follows, exactly, of the same run."""
        here, _ = pair
        story.allow(4)
        first = here.watch()
        first.wait_for(None, 4)
        ids = [event.id or "" for event in first.events]
        first.hang_up()
        running = [(position, one.watch(last_event_id=event_id)) for position, event_id in enumerate(ids) for one in pair]
        for position, viewer in running:
            viewer.wait_for(None, 4 - position)
            assert viewer.events[0].id == ids[position]
        story.allow()
        for position, viewer in running:
            viewer.wait_for_end()
            assert [event.id for event in viewer.events[1:]] == [
                *ids[position + 1 :],
                *(f"{run_of(first)}-{n}" for n in (5, 6)),
                f"{run_of(first)}-7-end",
            ]
            assert viewer.text == "".join(f"part {number} " for number in range(position + 1, 7))
        after = [one.watch(last_event_id=f"{run_of(first)}-{n}") for n in (0, 3, 6) for one in pair]
        for viewer in after:
            viewer.wait_for_end()
        assert [len(viewer.data) for viewer in after] == [6, 6, 3, 3, 0, 0]
        for one in pair:
            assert one.watch(last_event_id=f"{run_of(first)}-7-end").wait_for_end().status == 204
        assert (story.runs, story.ended) == (1, ["returned"])

    @pytest.mark.parametrize("is_asked", [False, True], ids=["pushed", "polled"])
    def test_ahead_of_the_other(self, pair: Pair, story: Story, monkeypatch: pytest.MonkeyPatch, is_asked: bool) -> None:
        """A worker that watches a run, and hasn't heard yet of its newest event, goes on after it all the same."""
        for name in ("POLL_SECONDS", "QUIET_POLL_SECONDS"):
            monkeypatch.setattr(sqlite_follower, name, 5.0)
        one, other = pair
        if not is_asked:
            # As Redis's, which only listens.
            monkeypatch.setattr(other.broker._follower, "catch_up", lambda: None)  # type: ignore[attr-defined]
        first = one.watch()
        for number in (1, 2, 3):
            story.allow(number)
            first.wait_for(None, number)
            asked = first.events[-1].id
            viewer = other.watch(last_event_id=asked)
            wait_until(lambda viewer=viewer: viewer.events, PATIENCE)  # type: ignore[misc]
            assert (viewer.names[0], viewer.events[0].id) == (OPEN, asked), viewer.body
            viewer.hang_up()
        story.allow()
        first.wait_for_end()
        assert other.watch(last_event_id=asked).wait_for_end().text == "part 4 part 5 part 6 "

    def test_query_argument(self, single: Worker, story: Story) -> None:
        """The position may come in the query, as for those who can't set headers; it isn't part of what is asked for."""
        story.allow()
        first = single.watch("/?a=1").wait_for_end()
        again = single.watch(f"/?a=1&lastEventId={run_of(first)}-3").wait_for_end()
        assert again.text == "part 4 part 5 part 6 " and story.runs == 1

    @pytest.mark.parametrize(
        "asked",
        ["{run}-99", "{run}-7", "{other}-0", "{other}-3", "{run}-1000000000000000", "{run}-999999999999999999"],
    )
    def test_gone(self, pair: Pair, story: Story, asked: str) -> None:
        """A run, or an event of it, that isn't there: the client is told, once, and nothing runs a second time."""
        story.allow(2)
        first = pair[0].watch()
        first.wait_for(None, 2)
        position = asked.format(run=run_of(first), other="0" * 32)
        before = process.current().stats()["resets"]
        for one in pair:
            viewer = one.watch(last_event_id=position)
            is_gone(viewer, position)
            assert one.watch(last_event_id=viewer.last_event_id).wait_for_end().status == 204
        assert process.current().stats()["resets"] == before + 2
        story.allow()
        assert first.wait_for_end().text == story.text
        assert story.runs == 1

    def test_another_life_before_it_listens(self, single: Worker, story: Story, monkeypatch: pytest.MonkeyPatch) -> None:
        """A log that begins anew before a viewer listens ends its stream; it isn't left to wait for numbers long past."""
        first = single.watch()
        story.allow(3)
        first.wait_for(None, 3)
        renew_before_listening(single.broker, monkeypatch)
        again = single.watch(last_event_id=first.last_event_id)
        assert again.wait_for_end().names == [OPEN]
        story.allow(4)
        is_gone(single.watch(last_event_id=again.last_event_id), again.last_event_id)

    def test_expired(self, make_worker: MakeWorker, story: Story) -> None:
        """A run is there while the history is kept after its end, and gone after that."""
        worker = tells(make_worker(SSE_HISTORY_SECONDS=1.0), story)
        story.allow()
        first = worker.watch().wait_for_end()
        assert worker.watch(last_event_id=f"{run_of(first)}-0").wait_for_end().text == story.text
        asked = f"{run_of(first)}-1"
        wait_until(lambda: RESET in worker.watch(last_event_id=asked).wait_for_end().names, PATIENCE)
        is_gone(worker.watch(last_event_id=asked), asked)
        assert story.runs == 1

    @pytest.mark.parametrize("shared", [False, True])
    def test_keeps_all(self, make_worker: MakeWorker, shared: bool) -> None:
        """While it runs nothing of it goes: not beyond SSE_HISTORY events, nor SSE_HISTORY_SECONDS."""
        settings = {"SSE_HISTORY": 8, "SSE_HISTORY_SECONDS": 0.3, "SSE_HISTORY_BYTES": 64 * 1024}
        workers = [make_worker(shared=shared, **settings) for _ in range(2 if shared else 1)]
        story = Story(300)
        for one in workers:
            tells(one, story)
        story.allow(299)
        first = workers[0].watch()
        first.wait_for(None, 299)
        began = time.monotonic()
        for one in workers:
            for number in range(300):
                one.sse.publish("x" * 300, channel=f"other {number}")
        wait_until(lambda: time.monotonic() - began > 1.0, PATIENCE)
        again = workers[-1].watch(last_event_id=f"{run_of(first)}-0")
        again.wait_for(None, 299)
        story.allow()
        assert again.wait_for_end().text == first.wait_for_end().text == story.text
        assert story.runs == 1

    def test_bytes(self, make_worker: MakeWorker) -> None:
        """A run that has more bytes than may be kept fails, and says so; nothing of it is trimmed."""
        worker = make_worker(SSE_RUN_BYTES=2048)

        @worker.app.get("/")
        @worker.sse.stream(resumable=True)
        def view() -> Iterator[Any]:
            for _ in range(100):
                yield "x" * 100

        viewer = worker.watch().wait_for_end()
        assert 15 <= len(viewer.data) <= 20 and viewer.named(ERROR)[0]["error_type"] == "too_large"
        assert viewer.last_event_id.endswith("-end")
        again = worker.watch(last_event_id=f"{run_of(viewer)}-0").wait_for_end()
        assert [event.id for event in again.events] == [event.id for event in viewer.events]

    @pytest.mark.parametrize("when", ["at the end", "when due", "caught"])
    def test_bytes_of_text_that_waits(self, make_worker: MakeWorker, when: str) -> None:
        """It fails too if what is too much waits to be joined, or its generator goes on all the same: nothing is lost silently."""
        worker = make_worker(SSE_RUN_BYTES=2048)
        coalesce = {"at the end": 60.0, "when due": 0.05, "caught": None}[when]

        @worker.app.get("/")
        @worker.sse.stream(resumable=True, coalesce=coalesce)
        def view() -> Iterator[Any]:
            yield "first"
            try:
                for _ in range(30):
                    yield "x" * 100
            except StreamError:
                return
            if when == "when due":
                until = time.monotonic() + PATIENCE
                while time.monotonic() < until and not current_stream.closed:
                    time.sleep(0.01)

        viewer = worker.watch().wait_for_end()
        assert viewer.named(ERROR)[0]["error_type"] == "too_large", viewer.body
        assert viewer.last_event_id.endswith("-end")
        record = worker.broker.tasks.find(run_of(viewer))
        assert record is not None and record.state is TaskState.FAILED

    def test_own_ids(self, worker: Worker) -> None:
        """Ids of one's own are refused where they are given; so is what a channel can't keep."""
        problems: list[str] = []

        @worker.app.get("/")
        @worker.sse.stream(resumable=True)
        def view() -> Iterator[Any]:
            for event in (ServerSentEvent("x", id="mine"), ServerSentEvent("x", id="")):
                try:
                    yield event
                except InvalidEvent as error:
                    problems.append(error.field)
            try:
                current_stream.send("x", id="mine")
            except InvalidEvent as error:
                problems.append(error.field)
            yield "last"

        assert worker.watch().wait_for_end().data == ["last"] and problems == ["id"] * 3

    def test_items(self, worker: Worker) -> None:
        """All that a stream can yield can be resumed; names and reconnection times too."""

        @worker.app.get("/")
        @worker.sse.stream(resumable=True)
        def view() -> Iterator[Any]:
            yield "text\nof lines"
            yield b"bytes"
            yield {"json": [1, None]}
            yield None
            yield ServerSentEvent("named", event="note", retry=5000)
            current_stream.send("sent", event="sent")

        first = worker.watch().wait_for_end()
        again = worker.watch(last_event_id=f"{run_of(first)}-0").wait_for_end()
        assert first.events == again.events
        assert [event.data for event in first.events[1:-1]] == [
            "text\nof lines",
            "bytes",
            '{"json":[1,null]}',
            "null",
            "named",
            "sent",
        ]
        assert first.body == again.body

    def test_comments(self, worker: Worker) -> None:
        """What only clients see that are connected, comments and reconnection times alone, is no reason to fail."""

        @worker.app.get("/")
        @worker.sse.stream(resumable=True)
        def view() -> Iterator[Any]:
            yield "a"
            yield ServerSentEvent(comment="between")
            yield ServerSentEvent(retry=1000)
            yield "b"

        viewer = worker.watch().wait_for_end()
        assert viewer.data == ["a", "b"], viewer.body

    def test_several_viewers(self, pair: Pair, story: Story) -> None:
        """Several clients watch one run, each in its own time."""
        story.allow(1)
        first = pair[0].watch()
        first.wait_for(None)
        viewers = [one.watch(last_event_id=first.last_event_id) for one in pair]
        story.allow()
        for viewer in viewers:
            assert viewer.wait_for_end().text == story.text.removeprefix("part 1 ")
        assert first.wait_for_end().text == story.text and story.runs == 1

    def test_coalesced(self, worker: Worker) -> None:
        """Text is joined before it is numbered: those who come back get the same events, and all the text."""
        go_on = threading.Event()

        @worker.app.get("/")
        @worker.sse.stream(resumable=True, coalesce=0.05)
        def view() -> Iterator[Any]:
            for number in range(50):
                yield f"{number} "
                time.sleep(0.003)
            assert go_on.wait(PATIENCE)
            yield "end"
            yield "!"

        expected = "".join(f"{number} " for number in range(50))
        first = worker.watch()
        wait_until(lambda: first.text == expected, PATIENCE, "the text that waited comes though nothing follows")
        assert 2 <= len(first.data) < 40
        go_on.set()
        again = worker.watch(last_event_id=f"{run_of(first)}-0").wait_for_end()
        first.wait_for_end()
        assert first.text == expected + "end!" and again.events == first.events

    @pytest.mark.parametrize("fails", [True, False])
    def test_coalesced_end(self, worker: Worker, fails: bool) -> None:
        """Text that waits at the end, or at an error, comes before the last event."""

        @worker.app.get("/")
        @worker.sse.stream(resumable=True, coalesce=60)
        def view() -> Iterator[Any]:
            yield from ("a", "b", "c")
            if fails:
                raise KeyError

        viewer = worker.watch().wait_for_end()
        assert viewer.data == ["a", "bc"] and viewer.names[-1] == (ERROR if fails else END)

    def test_slow_publish_at_the_end(self, worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
        """Text that is being published when the generator ends comes before the end all the same."""
        publishing, go_on = threading.Event(), threading.Event()

        @worker.app.get("/")
        @worker.sse.stream(resumable=True, coalesce=0.05)
        def view() -> Iterator[Any]:
            yield "a"
            yield "b"
            assert publishing.wait(PATIENCE)
            threading.Timer(0.2, go_on.set).start()

        publish = worker.broker.publish

        def publish_slowly(channel: str, event: ServerSentEvent, **options: Any) -> str:
            if event.data == "b":
                publishing.set()
                assert go_on.wait(PATIENCE)
            return publish(channel, event, **options)

        monkeypatch.setattr(worker.broker, "publish", publish_slowly)
        viewer = worker.watch().wait_for_end()
        assert viewer.data == ["a", "b"] and viewer.names[-1] == END

    def test_slow_publish_keeps_nobody(self, make_worker: MakeWorker, monkeypatch: pytest.MonkeyPatch) -> None:
        """While text of one run waits for its broker, other streams' text is written in time."""
        slow, other = make_worker(), make_worker()
        go_on, publishing = threading.Event(), threading.Event()
        for one in (slow, other):

            @one.app.get("/")
            @one.sse.stream(resumable=one is slow, coalesce=0.05)
            def view() -> Iterator[Any]:
                yield "a"
                yield "b"
                assert go_on.wait(PATIENCE)

        publish = slow.broker.publish

        def publish_slowly(channel: str, event: ServerSentEvent, **options: Any) -> str:
            if event.data == "b":
                publishing.set()
                assert go_on.wait(PATIENCE)
            return publish(channel, event, **options)

        monkeypatch.setattr(slow.broker, "publish", publish_slowly)
        waits = slow.watch()
        assert publishing.wait(PATIENCE)
        try:
            quick = other.watch()
            wait_until(lambda: quick.text == "ab", 5)
        finally:
            go_on.set()
        assert waits.wait_for_end().text == "ab"

    def test_broker_away_for_good(self, make_worker: MakeWorker, monkeypatch: pytest.MonkeyPatch) -> None:
        """Text that can't be published for longer than the lease ends the run with an error: it is never lost in silence."""
        worker = make_worker(SSE_PRODUCER_LEASE=0.3)
        away = threading.Event()

        @worker.app.get("/")
        @worker.sse.stream(resumable=True, coalesce=0.05)
        def view() -> Iterator[Any]:
            yield "a"
            away.set()
            yield "b"
            until = time.monotonic() + PATIENCE
            while time.monotonic() < until and not current_stream.closed:
                time.sleep(0.01)
            away.clear()

        publish = worker.broker.publish

        def fail(*args: Any, **options: Any) -> str:
            if away.is_set():
                raise BrokerUnavailable("away")
            return publish(*args, **options)

        monkeypatch.setattr(worker.broker, "publish", fail)
        viewer = worker.watch().wait_for_end()
        assert viewer.data == ["a"] and viewer.names[-1] == ERROR

    def test_lifecycle(self, worker: Worker) -> None:
        """With a lifecycle it has a start and a complete event, numbered like all others, the last with a final id."""

        @worker.app.get("/")
        @worker.sse.stream(resumable=True, lifecycle={"model": "m"})
        def view() -> Iterator[Any]:
            yield "one"
            return {"tokens": 1}

        first = worker.watch().wait_for_end()
        assert first.names == [OPEN, "start", None, "complete"]
        assert first.named("start")[0]["model"] == "m" and set(first.named("start")[0]) == {"stream", "timestamp", "model"}
        assert first.named("complete")[0]["result"] == {"tokens": 1}
        assert [event.id for event in first.events] == [f"{run_of(first)}-{n}" for n in ("0", "1", "2", "3-end")]
        again = worker.watch(last_event_id=f"{run_of(first)}-1").wait_for_end()
        assert again.names == [OPEN, None, "complete"]
        assert worker.watch(last_event_id=first.last_event_id).status == 204

    def test_lifecycle_of_nothing(self, worker: Worker) -> None:
        """A generator that yields nothing has a start and an end."""

        @worker.app.get("/")
        @worker.sse.stream(resumable=True, lifecycle=True)
        def view() -> Iterator[Any]:
            yield from ()

        assert worker.watch().wait_for_end().names == [OPEN, "start", "complete"]

    @pytest.mark.parametrize("lifecycle", [False, True])
    def test_result(self, worker: Worker, lifecycle: bool) -> None:
        """A result that can't be written matters only where it is told."""

        @worker.app.get("/")
        @worker.sse.stream(resumable=True, lifecycle=lifecycle)
        def view() -> Iterator[Any]:
            yield "one"
            return object()

        assert worker.watch().wait_for_end().names[-1] == (ERROR if lifecycle else END)

    def test_timeout(self, worker: Worker) -> None:
        """The time-out is the run's: `heartbeat` puts it off, and its end is an error event with a final id."""

        @worker.app.get("/")
        @worker.sse.stream(resumable=True, timeout=0.3)
        def view() -> Iterator[Any]:
            assert heartbeat(0.3)
            while True:
                yield "on"
                time.sleep(0.02)

        viewer = worker.watch().wait_for_end()
        assert viewer.named(ERROR)[0]["error_type"] == "timeout" and viewer.last_event_id.endswith("-end")
        assert worker.watch(last_event_id=viewer.last_event_id).status == 204

    def test_max_age(self, single: Worker, make_worker: MakeWorker, story: Story) -> None:
        """The age is the connection's: the client comes back, and goes on."""
        worker = tells(make_worker(), story, max_age=0.3)
        story.allow(2)
        first = worker.watch()
        first.wait_for_end()
        assert first.names == [OPEN, None, None] and not story.ended
        story.allow()
        assert worker.watch(last_event_id=first.last_event_id).wait_for_end().text == "part 3 part 4 part 5 part 6 "
        assert story.runs == 1

    def test_nothing_stays(self, single: Worker, story: Story) -> None:
        """A run that is over leaves nothing in the process but its history."""
        story.allow()
        for _ in range(5):
            single.watch().wait_for_end()
        tasks = single.app.extensions["sse"].tasks
        wait_until(lambda: not own_streams(single.app) and not tasks._own, PATIENCE)
        wait_until(lambda: not process.current().streams, PATIENCE)


class TestMatch:
    """Who may watch a run."""

    def test_query_and_arguments(self, worker: Worker, story: Story) -> None:
        """Whoever asks another view, or for something else, is told that the run is gone, and runs nothing."""
        for path in ("/<name>", "/other/<name>"):

            @worker.app.get(path, endpoint=path)
            @worker.sse.stream(resumable=True)
            def view(name: str) -> Iterator[Any]:
                yield from story.tell()

        story.allow(2)
        first = worker.watch("/a?x=1&y=2")
        first.wait_for(None, 2)
        position = first.last_event_id
        for path in ("/b?x=1&y=2", "/a?x=2&y=2", "/a?x=1", "/a", "/a?x=1&y=2&z=3", "/other/a?x=1&y=2", "/a?x=1&x=1&y=2"):
            is_gone(worker.watch(path, last_event_id=position), position)
        again = worker.watch("/a?y=2&x=1", last_event_id=position)
        story.allow()
        assert again.wait_for_end().text == "part 3 part 4 part 5 part 6 "
        assert story.runs == 1

    def test_client_key(self, make_worker: MakeWorker, story: Story) -> None:
        """Another client, as the app names them, is answered as if there were no run: byte by byte."""
        pair = [make_worker(shared=True) for _ in range(2)]
        for one in pair:
            one.sse.client_key(lambda: request.headers.get("X-User"))
            tells(one, story)
        story.allow(2)
        first = pair[0].watch(headers={"X-User": "a"})
        first.wait_for(None, 2)
        position = first.last_event_id
        nobody = position.replace(run_of(first), "f" * 32)
        for one in pair:
            for headers in ({"X-User": "b"}, {}):
                refused = one.watch(last_event_id=position, headers=headers)
                is_gone(refused, position)
                unknown = one.watch(last_event_id=nobody, headers=headers).wait_for_end()
                assert unknown.body.replace(b"f" * 32, b"") == refused.body.replace(run_of(first).encode(), b"")
                assert {**unknown.headers} == {**refused.headers}
        # The address, or a browser's other headers, don't matter.
        again = pair[1].watch(
            last_event_id=position, headers={"X-User": "a", "User-Agent": "x"}, environ_overrides={"REMOTE_ADDR": "10.9.8.7"}
        )
        story.allow()
        assert again.wait_for_end().text == "part 3 part 4 part 5 part 6 " and story.runs == 1

    def test_outer_decorators(self, worker: Worker, story: Story) -> None:
        """What stands around the stream, a login say, runs at each request; the view doesn't."""
        calls: list[str] = []

        def login_required(view: Callable[..., Any]) -> Callable[..., Any]:
            @functools.wraps(view)
            def checked(*args: Any, **kwargs: Any) -> Any:
                calls.append("login")
                if "user" not in request.headers:
                    abort(401)
                g.user = request.headers["user"]
                return view(*args, **kwargs)

            return checked

        @worker.app.get("/")
        @login_required
        @worker.sse.stream(resumable=True, g=("user",))
        def view() -> Iterator[Any]:
            calls.append("view")
            return told(g.user)

        def told(user: str) -> Iterator[Any]:
            yield g.user
            yield from story.tell()

        story.allow(1)
        first = worker.watch(headers={"user": "ann"})
        first.wait_for(None, 2)
        refused = worker.watch(last_event_id=first.last_event_id).wait_for_end()
        assert refused.status == 401
        again = worker.watch(last_event_id=first.last_event_id, headers={"user": "ann"})
        story.allow()
        again.wait_for_end()
        assert first.data[0] == "ann" and calls == ["login", "view", "login", "login"] and story.runs == 1

    def test_other_forms_of_ids(self, single: Worker, story: Story) -> None:
        """A client that says something else, of another stream perhaps, is a new one."""
        story.allow()
        for asked in ("nonsense", "0123456789ab-7", "-1"):
            assert single.watch(last_event_id=asked).wait_for_end().text == story.text

    def test_closed_to_others(self, single: Worker, story: Story) -> None:
        """A run's channel can't be had by its name."""
        story.allow(1)
        viewer = single.watch()
        viewer.wait_for(None)
        name = f"-/run/{run_of(viewer)}"
        for use in (single.sse.channel, lambda name: single.sse.publish("x", channel=name)):
            with pytest.raises(ValueError, match="belongs to"):
                use(name)


class TestErrors:
    """What goes wrong before the first event, and after."""

    @pytest.mark.parametrize(
        ("error", "status"),
        [(lambda: abort(403), 403), (lambda: (_ for _ in ()).throw(StreamError("busy", status=429)), 429), (lambda: 1 / 0, 500)],
        ids=["403", "429", "500"],
    )
    def test_before(self, worker: Worker, error: Any, status: int) -> None:
        """An error before the first event is an ordinary response; nothing of the run, or of its client's stream, is left."""

        @worker.app.get("/")
        @worker.sse.stream(resumable=True)
        def view() -> Iterator[Any]:
            error()
            yield "never"

        viewer = worker.watch().wait_for_end()
        assert viewer.status == status and b"stream-open" not in viewer.body
        wait_until(lambda: not own_streams(worker.app), PATIENCE)
        wait_until(lambda: not process.current().streams, PATIENCE)

    def test_after(self, worker: Worker) -> None:
        """An error after it is an error event with a final id."""

        @worker.app.get("/")
        @worker.sse.stream(resumable=True)
        def view() -> Iterator[Any]:
            yield "one"
            raise StreamError("no more", details={"left": 0})

        viewer = worker.watch().wait_for_end()
        assert viewer.named(ERROR)[0]["error"] == "no more" and viewer.named(ERROR)[0]["details"] == {"left": 0}
        assert viewer.last_event_id == f"{run_of(viewer)}-2-end"
        assert worker.watch(last_event_id=f"{run_of(viewer)}-1").wait_for_end().names == [OPEN, ERROR]
        assert worker.watch(last_event_id=viewer.last_event_id).status == 204

    def test_late(self, make_worker: MakeWorker) -> None:
        """An error before the first event, but after the response has opened, is an error event too."""
        worker = make_worker(SSE_OPEN_TIMEOUT=0)
        go_on = threading.Event()

        @worker.app.get("/")
        @worker.sse.stream(resumable=True)
        def view() -> Iterator[Any]:
            assert go_on.wait(PATIENCE)
            abort(403)
            yield "never"

        viewer = worker.watch()
        viewer.wait_for(OPEN)
        go_on.set()
        assert viewer.wait_for_end().names == [OPEN, ERROR] and viewer.status == 200

    def test_unwritable_details(self, worker: Worker, caplog: pytest.LogCaptureFixture) -> None:
        """An error whose details JSON can't express ends the run all the same, is told without them, and they are logged."""

        @worker.app.get("/")
        @worker.sse.stream(resumable=True)
        def view() -> Iterator[Any]:
            yield "one"
            raise StreamError("no more", error_type="quota", details={"left": {5}})

        viewer = worker.watch().wait_for_end()
        (told,) = viewer.named(ERROR)
        assert viewer.names[-1] == ERROR
        assert (told["error"], told["error_type"]) == ("no more", "quota") and "details" not in told
        assert "{'left': {5}}" in caplog.text

    def test_broker_away(self, worker: Worker, story: Story, monkeypatch: pytest.MonkeyPatch) -> None:
        """While the broker can't be reached, 503 before anything runs; to resume too."""
        tells(worker, story)
        story.allow()
        first = worker.watch().wait_for_end()

        def fail(*_: Any, **__: Any) -> Any:
            raise BrokerUnavailable("away")

        for name in ("create", "find"):
            monkeypatch.setattr(worker.broker.tasks, name, fail)
        for asked in (None, f"{run_of(first)}-1"):
            viewer = worker.watch(last_event_id=asked).wait_for_end()
            assert viewer.status == 503, viewer.body
        assert story.runs == 1
        wait_until(lambda: not process.current().streams, PATIENCE)

    def test_broker_away_with_retry(self, make_worker: MakeWorker, story: Story, monkeypatch: pytest.MonkeyPatch) -> None:
        """With SSE_REFUSE=retry a browser is told to come back instead."""
        worker = tells(make_worker(SSE_REFUSE="retry"), story)

        def fail(*_: Any, **__: Any) -> Any:
            raise BrokerUnavailable("away")

        for name in ("create", "find"):
            monkeypatch.setattr(worker.broker.tasks, name, fail)
        for asked in (None, "a" * 32 + "-1"):
            viewer = worker.watch(last_event_id=asked).wait_for_end()
            assert viewer.status == 200 and b"retry: " in viewer.body and not viewer.events
        assert story.runs == 0

    @pytest.mark.parametrize("refuse", ["status", "retry"])
    @pytest.mark.parametrize("form", ["view", "tuple"])
    def test_limit(self, make_worker: MakeWorker, story: Story, refuse: str, form: str) -> None:
        """There are no more runs than streams may be; who finds no room is refused, and starts nothing."""
        worker = make_worker(SSE_MAX_STREAMS=1, SSE_REFUSE=refuse)

        @worker.app.get("/")
        @worker.sse.stream(resumable=True)
        def view() -> Any:
            return (story.tell(), 201, {"X-A": "b"}) if form == "tuple" else story.tell()

        story.allow(1)
        first = worker.watch()
        first.wait_for(None)
        if form == "view":
            refused = worker.watch(last_event_id=first.last_event_id).wait_for_end()
            assert refused.status == (503 if refuse == "status" else 200)
        first.hang_up()
        wait_until(lambda: not process.current().streams, PATIENCE)
        refused = worker.watch().wait_for_end()
        assert refused.status == (503 if refuse == "status" else 200) and not refused.events
        assert b"SSE_MAX_STREAMS" in refused.body and story.runs == 1


class TestViewers:
    """Runs that nobody watches, and those that somebody comes back to."""

    def test_abandoned(self, make_worker: MakeWorker, story: Story) -> None:
        """When the last client has gone for longer than the grace, the generator is cancelled; who comes then is told so."""
        pair = [tells(make_worker(shared=True), story, detach_grace=0.2) for _ in range(2)]
        story.allow(2)
        first = pair[0].watch()
        first.wait_for(None, 2)
        position = first.last_event_id
        first.hang_up()
        wait_until(lambda: story.ended == ["abandoned"], PATIENCE)
        wait_until(lambda: not own_streams(pair[0].app), PATIENCE)
        for one in pair:
            is_gone(one.watch(last_event_id=position), position)
        assert story.runs == 1

    def test_zero_grace(self, worker: Worker, story: Story) -> None:
        """Without a grace a run lives as long as somebody watches."""
        tells(worker, story, detach_grace=0)
        story.allow(1)
        viewers = [worker.watch()]
        viewers[0].wait_for(None)
        beats = worker.broker.tasks.beats
        run = run_of(viewers[0])
        first = beats()[run]
        wait_until(lambda: beats()[run] > first + 3, PATIENCE)
        assert not story.ended
        viewers[0].hang_up()
        wait_until(lambda: story.ended == ["abandoned"], PATIENCE)

    def test_comes_back(self, worker: Worker, story: Story) -> None:
        """A run that a client comes back to in time goes on, however long that client stays."""
        tells(worker, story, detach_grace=1.0)
        story.allow(1)
        first = worker.watch()
        first.wait_for(None)
        first.hang_up()
        again = worker.watch(last_event_id=first.last_event_id)
        again.wait_for(OPEN)
        began = time.monotonic()
        wait_until(lambda: time.monotonic() - began > 1.5, PATIENCE)
        assert not story.ended
        story.allow()
        assert again.wait_for_end().text == story.text.removeprefix("part 1 ")
        assert story.ended == ["returned"] and story.runs == 1

    def test_watched_elsewhere(self, make_worker: MakeWorker, story: Story) -> None:
        """A client on another worker counts."""
        pair = [tells(make_worker(shared=True), story, detach_grace=2.0) for _ in range(2)]
        story.allow(1)
        first = pair[0].watch()
        first.wait_for(None)
        first.hang_up()
        again = pair[1].watch(last_event_id=first.last_event_id)
        again.wait_for(OPEN)
        began = time.monotonic()
        wait_until(lambda: time.monotonic() - began > 2.6, PATIENCE)
        assert not story.ended
        story.allow()
        again.wait_for_end()
        assert story.ended == ["returned"] and story.runs == 1

    def test_killed_viewers(self, make_worker: MakeWorker, story: Story) -> None:
        """The clients of a worker that was killed count until its report has had its time, and no longer."""
        worker = tells(make_worker(shared=True), story, detach_grace=0.2)
        story.allow(1)
        first = worker.watch()
        first.wait_for(None)
        channel = f"-/run/{run_of(first)}"
        # What the other one said last.
        worker.broker.store.report("killed", {channel: 1}, 1.5)  # type: ignore[attr-defined]
        first.hang_up()
        assert not story.ended
        counts = worker.broker.store.counts  # type: ignore[attr-defined]
        while counts([channel])[channel]:
            assert not story.ended
        wait_until(lambda: story.ended == ["abandoned"], PATIENCE)

    def test_last_word(self, worker: Worker) -> None:
        """A run that is cancelled tells its clients what waited, and that it was."""
        go_on = threading.Event()

        @worker.app.get("/")
        @worker.sse.stream(resumable=True, coalesce=60)
        def view() -> Iterator[Any]:
            yield "a"
            yield "b"
            go_on.set()
            while True:
                time.sleep(0.01)
                yield ""

        viewer = worker.watch()
        assert go_on.wait(PATIENCE)
        assert worker.sse.cancel(run_of(viewer)) is True
        viewer.wait_for_end()
        assert viewer.text == "ab" and viewer.named(END) == [{"reason": "cancelled"}] and viewer.last_event_id.endswith("-end")

    def test_cancel(self, pair: Pair, story: Story) -> None:
        """Cancelling, by the run's id or one of its events', on any worker, interrupts the generator; then the run is gone."""
        for number, named in enumerate(("run", "event", "event of 0")):
            story.allow(1)
            first = pair[0].watch()
            first.wait_for(None)
            run = run_of(first)
            assert pair[1].sse.cancel({"run": run, "event": first.last_event_id, "event of 0": f"{run}-0"}[named]) is True
            first.wait_for_end()
            assert first.named(END) == [{"reason": "cancelled"}] and first.last_event_id.endswith("-end")
            assert story.ended == ["cancelled"] * (number + 1) and story.runs == number + 1
            for one in pair:
                assert one.sse.cancel(run) is False
                is_gone(one.watch(last_event_id=f"{run}-1"), f"{run}-1")
                assert one.watch(last_event_id=first.last_event_id).status == 204

    @pytest.mark.parametrize("named", ["", "nonsense", "0" * 32, "0" * 32 + "-5", "-", "0123456789ab-1"])
    def test_cancel_unknown(self, single: Worker, named: str) -> None:
        """What isn't known can't be cancelled."""
        assert single.sse.cancel(named) is False

    def test_producer_lost(self, make_worker: MakeWorker, story: Story) -> None:
        """A run whose process has died ends with an error event, a final one, for those who watch and those who come."""
        pair = [tells(make_worker(shared=True), story) for _ in range(2)]
        story.allow(2)
        first = pair[0].watch()
        first.wait_for(None, 2)
        viewer = pair[1].watch(last_event_id=f"{run_of(first)}-1")
        viewer.wait_for(None)
        pair[0].app.extensions["sse"].tasks._keeper.close()
        viewer.wait_for_end()
        assert viewer.named(ERROR)[0]["error_type"] == "producer_lost" and viewer.last_event_id.endswith("-end")
        later = pair[1].watch(last_event_id=f"{run_of(first)}-1").wait_for_end()
        assert later.text == "part 2 " and later.named(ERROR)[0]["error_type"] == "producer_lost"
        assert pair[1].watch(last_event_id=viewer.last_event_id).status == 204
        story.allow()
        wait_until(lambda: not own_streams(pair[0].app), PATIENCE)
        assert story.runs == 1

    def test_leaving(self, pair: Pair, story: Story) -> None:
        """The run of a process that leaves ends with an error event that says so."""
        story.allow(1)
        first = pair[0].watch()
        first.wait_for(None)
        viewer = pair[1].watch(last_event_id=first.last_event_id)
        pair[0].app.extensions["sse"].tasks.close()
        viewer.wait_for_end()
        assert viewer.named(ERROR)[0]["error_type"] == "shutdown" and story.runs == 1


class TestRequests:
    """Requests of all kinds."""

    def test_idempotency(self, single: Worker, story: Story) -> None:
        """A request that is sent again with the same key gets the same run, from its beginning; another key gets another."""
        story.allow(3)
        headers = {"Idempotency-Key": "key 1"}
        first = single.watch(method="POST", headers=headers)
        first.wait_for(None, 3)
        again = single.watch(method="POST", headers=headers)
        other = single.watch(method="POST", headers={"Idempotency-Key": "key 2"})
        elsewhere = single.watch("/?a=1", method="POST", headers=headers)
        story.allow()
        for viewer in (first, again, other, elsewhere):
            assert viewer.wait_for_end().text == story.text
        assert run_of(first) == run_of(again) and len({run_of(first), run_of(other), run_of(elsewhere)}) == 3
        assert story.runs == 3
        late = single.watch(method="POST", headers=headers).wait_for_end()
        assert late.text == story.text and story.runs == 3

    def test_concurrent(self, pair: Pair, story: Story) -> None:
        """Sent several times at once, to several workers, it runs once, and all get all of it."""
        viewers: list[Viewer] = []
        barrier = threading.Barrier(6)

        def post(one: Worker) -> None:
            barrier.wait()
            viewers.append(one.watch(method="POST", headers={"Idempotency-Key": "key"}))

        threads = [threading.Thread(target=post, args=(pair[number % 2],)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
        story.allow()
        assert len(viewers) == 6
        for viewer in viewers:
            assert viewer.wait_for_end().text == story.text
        assert story.runs == 1 and len({run_of(viewer) for viewer in viewers}) == 1

    @pytest.mark.parametrize("key", ["", "x" * 201])
    def test_bad_key(self, single: Worker, story: Story, key: str) -> None:
        """A key that is none is refused."""
        assert single.watch(method="POST", headers={"Idempotency-Key": key}).wait_for_end().status == 400 and story.runs == 0

    def test_key_of_another(self, make_worker: MakeWorker, story: Story) -> None:
        """Keys are each client's own."""
        worker = make_worker()
        worker.sse.client_key(lambda: request.headers.get("X-User"))
        tells(worker, story)
        story.allow()
        for user in ("a", "b"):
            worker.watch(method="POST", headers={"Idempotency-Key": "key", "X-User": user}).wait_for_end()
        assert story.runs == 2

    def test_key_after_a_failure(self, worker: Worker) -> None:
        """A request that failed before its stream opened may be sent again with its key."""
        attempts: list[int] = []

        @worker.app.post("/")
        @worker.sse.stream(resumable=True)
        def view() -> Iterator[Any]:
            attempts.append(1)
            if len(attempts) < 3:
                abort(503)
            yield "now"

        replies = [worker.watch(method="POST", headers={"Idempotency-Key": "key"}).wait_for_end() for _ in range(4)]
        assert [reply.status for reply in replies] == [503, 503, 200, 200]
        assert [reply.data for reply in replies[2:]] == [["now"], ["now"]] and len(attempts) == 3

    def test_key_at_once_after_a_failure(self, worker: Worker) -> None:
        """Who has the answer to a request that failed may send it again with its key, before its context is torn down."""
        attempts: list[int] = []
        may_end = threading.Event()

        @worker.app.teardown_request
        def tear_down(error: BaseException | None) -> None:
            if error is not None:
                may_end.wait(PATIENCE)

        @worker.app.post("/")
        @worker.sse.stream(resumable=True)
        def view() -> Iterator[Any]:
            attempts.append(1)
            if len(attempts) < 3:
                abort(503)
            yield "now"

        try:
            viewers = [worker.watch(method="POST", headers={"Idempotency-Key": "key"}) for _ in range(3)]
            assert [viewer.status for viewer in viewers] == [503, 503, 200]
            assert viewers[2].wait_for_end().data == ["now"]
        finally:
            may_end.set()

    def test_key_after_an_outage(self, single: Worker, story: Story, monkeypatch: pytest.MonkeyPatch) -> None:
        """A request that was refused since the broker was away may be sent again with its key, and runs then."""
        story.allow()
        headers = {"Idempotency-Key": "key"}
        tasks = single.broker.tasks

        def fail(*_: Any, **__: Any) -> Any:
            raise BrokerUnavailable("away")

        for owner, name in ((single.broker, "prepare"), (single.broker, "subscribe"), (tasks, "create")):
            with monkeypatch.context() as away:
                away.setattr(owner, name, fail)
                assert single.watch(method="POST", headers=headers).wait_for_end().status == 503
            wait_until(lambda: not process.current().streams, PATIENCE)
        assert story.runs == 0
        assert single.watch(method="POST", headers=headers).wait_for_end().text == story.text
        assert story.runs == 1

    def test_resumed_post(self, worker: Worker) -> None:
        """A POST is resumed by a POST; its body has been read before."""

        @worker.app.post("/")
        @worker.sse.stream(resumable=True)
        def view() -> Iterator[Any]:
            yield request.get_json()["question"]
            yield request.form.get("none", "no form")

        first = worker.watch(method="POST", json={"question": "why"}).wait_for_end()
        again = worker.watch(method="POST", json={"question": "why"}, last_event_id=f"{run_of(first)}-1").wait_for_end()
        assert first.data == ["why", "no form"] and again.data == ["no form"]

    def test_head(self, single: Worker, story: Story) -> None:
        """A HEAD request runs nothing."""
        reply = single.app.test_client().head("/")
        assert reply.status_code == 200 and not reply.data and reply.headers["Content-Type"].startswith("text/event-stream")
        reply.close()
        assert story.runs == 0 and not own_streams(single.app)
        wait_until(lambda: not process.current().streams, PATIENCE)

    def test_negotiate(self, worker: Worker, story: Story) -> None:
        """A client that takes JSON gets the events as one array, of a run of its own."""
        tells(worker, story, negotiate=True)
        story.allow()
        reply = worker.app.test_client().get("/", headers={"Accept": "application/json"})
        assert [event["data"] for event in reply.json or []] == story.text.replace(" part", " |part").split("|")
        assert worker.watch(headers={"Accept": "text/event-stream"}).wait_for_end().text == story.text

    def test_tuples(self, worker: Worker) -> None:
        """Headers that the view gives beside its generator go out."""

        @worker.app.get("/")
        @worker.sse.stream(resumable=True)
        def view() -> Any:
            return (text for text in ("a", "b")), 200, {"X-Own": "yes"}

        viewer = worker.watch().wait_for_end()
        assert viewer.headers["X-Own"] == "yes" and viewer.data == ["a", "b"]

    @pytest.mark.parametrize("result", [("no", 403), {"a": 1}, "text", ("", 204)], ids=["403", "dict", "text", "204"])
    def test_other_results(self, worker: Worker, result: Any) -> None:
        """What is no stream is what it would be without this."""
        worker.app.add_url_rule("/", "view", worker.sse.stream(resumable=True)(lambda: result))
        worker.app.add_url_rule("/plain", "plain", lambda: result)
        ours, plain = worker.app.test_client().get("/"), worker.app.test_client().get("/plain")
        assert (ours.status_code, ours.data, ours.headers["Content-Type"]) == (
            plain.status_code,
            plain.data,
            plain.headers["Content-Type"],
        )
        assert not own_streams(worker.app)

    def test_session(self, worker: Worker) -> None:
        """What the generator changes in the session before its first event is saved."""

        @worker.app.get("/")
        @worker.sse.stream(resumable=True)
        def view() -> Iterator[Any]:
            session["seen"] = session.get("seen", 0) + 1
            yield str(session["seen"])

        client = worker.app.test_client()
        assert [worker.watch(client=client).wait_for_end().text for _ in range(2)] == ["1", "2"]

    def test_context(self, worker: Worker, story: Story) -> None:
        """The run has its first request's context for all its life, and it is torn down before the end is told."""
        torn_down: list[str] = []

        @worker.app.teardown_request
        def tear_down(error: BaseException | None) -> None:
            if "mine" in g:
                torn_down.append(g.mine)

        @worker.app.get("/<name>")
        @worker.sse.stream(resumable=True)
        def view(name: str) -> Iterator[Any]:
            g.mine = name
            yield from story.tell()
            yield f"{request.path} {request.args['q']} {g.mine}"

        story.allow(1)
        first = worker.watch("/a?q=5")
        first.wait_for(None)
        first.hang_up()
        again = worker.watch("/a?q=5", last_event_id=first.last_event_id)
        story.allow()
        again.wait_for(END)
        assert torn_down == ["a"]
        assert again.wait_for_end().data[-1] == "/a 5 a"

    def test_stats(self, single: Worker, story: Story) -> None:
        """Runs and their clients are counted apart."""
        story.allow(1)
        viewer = single.watch()
        viewer.wait_for(None)
        stats = single.sse.stats()
        assert (stats["detached"], stats["streams"]) == (1, 1)
        viewer.hang_up()
        wait_until(lambda: single.sse.stats()["streams"] == 0, PATIENCE)
        assert single.sse.stats()["detached"] == 1
        assert json.dumps(stats)
