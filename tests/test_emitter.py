"""The event emitter: who hears what, in what order, and that one who fails stops nobody."""

from __future__ import annotations

import gc
import logging
import sys
import threading
from typing import Any

import pytest

from sseflask import SSE, EventEmitter, ServerSentEvent
from sseflask.emitter import Listener
from tests.brokers.contract import run_together
from tests.test_callback import waits, waits_and_yields, yields


@pytest.fixture
def emitter() -> EventEmitter:
    """An empty registry."""
    return EventEmitter()


def event(data: object = "x") -> ServerSentEvent:
    """An event."""
    return ServerSentEvent(data)


class Ear:
    """A listener that keeps what it hears, in a list that others may share."""

    def __init__(self, heard: list[Any] | None = None, name: str | None = None) -> None:
        self.heard = heard if heard is not None else []
        self.name = name

    def __call__(self, heard: ServerSentEvent) -> None:
        """Keeps the data of what it hears."""
        self.heard.append(heard.data if self.name is None else (self.name, heard.data))


class TestListening:
    """`on`, `once` and `off`."""

    def test_on(self, emitter: EventEmitter) -> None:
        """A listener hears each event of its channel from then on, and none of others."""
        ear = Ear()
        emitter.emit("news", event("before"))
        assert emitter.on("news", ear) is ear
        sent = [event(str(number)) for number in range(3)]
        for one in sent:
            emitter.emit("news", one)
            emitter.emit("other", event("other"))
        assert ear.heard == ["0", "1", "2"]

    def test_same_object(self, emitter: EventEmitter) -> None:
        """Each listener gets the very event that was emitted."""
        heard: list[ServerSentEvent] = []
        emitter.on("news", heard.append)
        one = event()
        emitter.emit("news", one)
        assert heard[0] is one

    def test_order(self, emitter: EventEmitter) -> None:
        """Listeners are called in the order in which they came."""
        heard: list[Any] = []
        for name in "abc":
            emitter.on("news", Ear(heard, name))
        emitter.emit("news", event("1"))
        emitter.emit("news", event("2"))
        assert heard == [("a", "1"), ("b", "1"), ("c", "1"), ("a", "2"), ("b", "2"), ("c", "2")]

    def test_once(self, emitter: EventEmitter) -> None:
        """A listener of `once` hears one event, in its place among the others, and is gone."""
        heard: list[Any] = []
        emitter.on("news", Ear(heard, "a"))
        emitter.once("news", Ear(heard, "once"))
        emitter.on("news", Ear(heard, "b"))
        for number in range(2):
            emitter.emit("news", event(str(number)))
        assert heard == [("a", "0"), ("once", "0"), ("b", "0"), ("a", "1"), ("b", "1")]
        assert len(emitter.listeners("news")) == 2

    def test_off(self, emitter: EventEmitter) -> None:
        """`off` takes a listener back and says whether there was one."""
        ear, other = Ear(), Ear()
        emitter.on("news", ear)
        emitter.on("news", other)
        assert emitter.off("news", ear)
        assert not emitter.off("news", ear)
        assert not emitter.off("never", ear)
        emitter.emit("news", event())
        assert (ear.heard, other.heard) == ([], ["x"])

    def test_off_takes_one_back(self, emitter: EventEmitter) -> None:
        """A function that was added twice hears each event twice, until it is taken back twice."""
        ear = Ear()
        emitter.on("news", ear)
        emitter.on("news", ear)
        emitter.emit("news", event("1"))
        emitter.off("news", ear)
        emitter.emit("news", event("2"))
        assert ear.heard == ["1", "1", "2"]

    def test_off_once(self, emitter: EventEmitter) -> None:
        """A listener of `once` can be taken back too."""
        ear = Ear()
        emitter.once("news", ear)
        assert emitter.off("news", ear)
        emitter.emit("news", event())
        assert ear.heard == []

    def test_bound_method(self, emitter: EventEmitter) -> None:
        """A method is the same listener each time that it is looked up."""

        class Room:
            def hear(self, heard: ServerSentEvent) -> None:
                raise AssertionError("it was taken back")

        room = Room()
        emitter.on("news", room.hear)
        assert emitter.off("news", room.hear)
        emitter.emit("news", event())

    @pytest.mark.parametrize("listener", [waits, waits_and_yields, yields, "news"])
    def test_listeners_that_would_not_run(self, emitter: EventEmitter, listener: Any) -> None:
        """What can't be called, or of which a call would run nothing, is refused, by its name."""
        for listen in (emitter.on, emitter.once, lambda name, found: SSE().on(name)(found)):
            with pytest.raises(TypeError, match="a listener is a function of one event, not "):
                listen("news", listener)

    def test_listeners(self, emitter: EventEmitter) -> None:
        """The listeners can be looked at; the list is the caller's own."""
        ears: list[Listener] = [Ear(), Ear()]
        for ear in ears:
            emitter.on("news", ear)
        assert emitter.listeners("news") == ears
        emitter.listeners("news").clear()
        assert emitter.listeners("news") == ears
        assert emitter.listeners("other") == []

    @pytest.mark.parametrize("listener", [None, "name", 5])
    def test_no_function(self, emitter: EventEmitter, listener: Any) -> None:
        """What can't be called is refused at once, with what it is."""
        with pytest.raises(TypeError, match=repr(listener)):
            emitter.on("news", listener)
        with pytest.raises(TypeError):
            emitter.once("news", listener)
        assert emitter.channels() == []

    def test_channels(self, emitter: EventEmitter) -> None:
        """A channel exists from its first use until nobody listens any more; emitting to nobody makes none."""
        ear = Ear()
        emitter.emit("nobody", event())
        emitter.on("a", ear)
        emitter.once("b", ear)
        assert emitter.channels() == ["a", "b"]
        emitter.off("a", ear)
        emitter.emit("b", event())
        assert emitter.channels() == []

    def test_channels_with_a_history(self) -> None:
        """Channels that have a history are there too, each once."""
        emitter = EventEmitter(lambda: ["b", "c"])
        emitter.on("a", Ear())
        emitter.on("b", Ear())
        assert sorted(emitter.channels()) == ["a", "b", "c"]


class TestFailing:
    """A listener that fails."""

    def test_logged(self, emitter: EventEmitter, caplog: pytest.LogCaptureFixture) -> None:
        """What a listener raises is logged with its traceback and the channel, and stops neither the others nor the caller."""
        heard: list[Any] = []

        def fail(heard: ServerSentEvent) -> None:
            raise ValueError("that was it")

        emitter.on("a channel", Ear(heard, "first"))
        emitter.on("a channel", fail)
        emitter.on("a channel", Ear(heard, "last"))
        with caplog.at_level(logging.ERROR, "sseflask.emitter"):
            emitter.emit("a channel", event("1"))
            emitter.emit("a channel", event("2"))
        assert heard == [("first", "1"), ("last", "1"), ("first", "2"), ("last", "2")]
        assert len(caplog.records) == 2
        assert "'a channel'" in caplog.records[0].getMessage()
        assert "that was it" in caplog.text and "Traceback" in caplog.text

    def test_failing_once(self, emitter: EventEmitter, caplog: pytest.LogCaptureFixture) -> None:
        """A listener of `once` that fails has had its event."""
        calls: list[object] = []

        def fail(heard: ServerSentEvent) -> None:
            calls.append(heard)
            raise ValueError

        emitter.once("news", fail)
        emitter.emit("news", event())
        emitter.emit("news", event())
        assert len(calls) == 1 and len(caplog.records) == 1

    def test_interrupted(self, emitter: EventEmitter) -> None:
        """What ends the emitting greenlet is raised to it, once all others have heard the event, and later events are heard too."""
        ear = Ear()

        class Interrupted(BaseException):
            """As a deadline that passes, or a greenlet that is killed."""

        def interrupt(heard: ServerSentEvent) -> None:
            emitter.off("news", interrupt)
            raise Interrupted

        emitter.on("news", interrupt)
        emitter.on("news", ear)
        with pytest.raises(Interrupted):
            emitter.emit("news", event("1"))
        emitter.emit("news", event("2"))
        assert ear.heard == ["1", "2"]


class TestWhileEmitting:
    """Listeners that use the emitter themselves."""

    def test_emits(self, emitter: EventEmitter) -> None:
        """What a listener emits comes after what it heard, for all listeners alike, however deep it goes."""
        heard: list[Any] = []

        def count_down(one: ServerSentEvent) -> None:
            number = int(one.data or "0")
            if number:
                emitter.emit("news", event(str(number - 1)))

        emitter.on("news", Ear(heard, "first"))
        emitter.on("news", count_down)
        emitter.on("news", Ear(heard, "last"))
        emitter.emit("news", event("5000"))
        assert heard == [(name, str(number)) for number in range(5000, -1, -1) for name in ("first", "last")]

    def test_emits_elsewhere(self, emitter: EventEmitter) -> None:
        """What it emits to another channel waits until the listeners of this event have been called."""
        heard: list[Any] = []
        emitter.on("a", lambda one: emitter.emit("b", one))
        emitter.on("a", Ear(heard, "a"))
        emitter.on("b", Ear(heard, "b"))
        emitter.emit("a", event("1"))
        assert heard == [("a", "1"), ("b", "1")]

    def test_adds(self, emitter: EventEmitter) -> None:
        """A listener that is added by another hears the next event, not this one."""
        late = Ear()
        emitter.once("news", lambda one: emitter.on("news", late))
        emitter.emit("news", event("1"))
        emitter.emit("news", event("2"))
        assert late.heard == ["2"]

    def test_adds_itself_again(self, emitter: EventEmitter) -> None:
        """A listener of `once` that adds itself again hears each event once."""
        heard: list[object] = []

        def again(one: ServerSentEvent) -> None:
            heard.append(one.data)
            emitter.once("news", again)

        emitter.once("news", again)
        for number in range(3):
            emitter.emit("news", event(str(number)))
        assert heard == ["0", "1", "2"]

    def test_removes_itself(self, emitter: EventEmitter) -> None:
        """A listener that takes itself back keeps no other from hearing the event."""
        heard: list[Any] = []

        def leave(one: ServerSentEvent) -> None:
            heard.append("leaving")
            emitter.off("news", leave)

        emitter.on("news", leave)
        emitter.on("news", Ear(heard))
        emitter.emit("news", event("1"))
        emitter.emit("news", event("2"))
        assert heard == ["leaving", "1", "2"]

    def test_removes_others(self, emitter: EventEmitter) -> None:
        """A listener that is taken back by another hears no later event, and nobody else misses one."""
        heard: list[Any] = []
        victim, bystander = Ear(heard, "victim"), Ear(heard, "bystander")
        emitter.once("news", lambda one: emitter.off("news", victim))
        emitter.on("news", victim)
        emitter.on("news", bystander)
        emitter.emit("news", event("1"))
        emitter.emit("news", event("2"))
        assert ("victim", "2") not in heard
        assert [one for one in heard if one[0] == "bystander"] == [("bystander", "1"), ("bystander", "2")]

    def test_last_leaves_while_events_wait(self, emitter: EventEmitter) -> None:
        """Events in line for a channel that nobody listens to any more are dropped, and hold up no others."""
        heard: list[Any] = []

        def leave(one: ServerSentEvent) -> None:
            heard.append(one.data)
            emitter.emit("news", event("nobody hears this"))
            emitter.emit("other", event("other"))
            emitter.off("news", leave)

        emitter.on("news", leave)
        emitter.on("other", Ear(heard))
        emitter.emit("news", event("1"))
        assert heard == ["1", "other"]
        assert emitter.channels() == ["other"]


class TestThreads:
    """Native threads."""

    def test_emission(self, emitter: EventEmitter) -> None:
        """Four native threads emit at once: every listener hears every event, in one order, those of each thread in theirs."""
        ears = [Ear(), Ear()]
        for ear in ears:
            emitter.on("news", ear)

        def emit(number: int) -> None:
            for count in range(2500):
                emitter.emit("news", event(f"{number} {count}"))

        run_together(emit, 4)
        assert ears[0].heard == ears[1].heard
        of_thread: dict[str, list[int]] = {}
        for number, count in map(str.split, ears[0].heard):
            of_thread.setdefault(number, []).append(int(count))
        assert of_thread == {str(number): list(range(2500)) for number in range(4)}

    def test_slow_listener(self, emitter: EventEmitter) -> None:
        """While one thread is in a listener, others emit without waiting for it; their events are heard after it, in order."""
        entered, go_on = threading.Event(), threading.Event()
        heard: list[str | None] = []

        def wait(one: ServerSentEvent) -> None:
            if one.data == "slow":
                entered.set()
                assert go_on.wait(10)
            heard.append(one.data)

        emitter.on("news", wait)
        thread = threading.Thread(target=emitter.emit, args=("news", event("slow")), daemon=True)
        thread.start()
        assert entered.wait(10)
        emitter.emit("news", event("1"))
        emitter.emit("news", event("2"))
        assert heard == []
        go_on.set()
        thread.join(10)
        assert heard == ["slow", "1", "2"]

    def test_coming_and_going(self, emitter: EventEmitter) -> None:
        """Listeners that come and go in native threads leave nothing behind, and `once` is never called twice."""
        calls: list[int] = []

        def visit(number: int) -> None:
            for _ in range(1000):
                ear = Ear()
                emitter.on("news", ear)
                emitter.once("news", lambda one: calls.append(number))
                emitter.emit("news", event())
                assert emitter.off("news", ear)

        run_together(visit, 4)
        emitter.emit("news", event())
        assert len(calls) == 4000
        assert emitter.channels() == []


def test_100_000_channels(emitter: EventEmitter) -> None:
    """100,000 channels that were listened to and emitted to leave memory where it was."""

    def use(first: int, last: int) -> int:
        for number in range(first, last):
            name, ear = f"channel {number}", Ear()
            emitter.on(name, ear)
            emitter.once(name, ear)
            emitter.emit(name, payload)
            emitter.off(name, ear)
            assert ear.heard == ["x", "x"]
        gc.collect()
        return sys.getallocatedblocks()

    payload = event()
    before = use(0, 100)
    assert use(100, 100_100) - before < 500
    assert emitter.channels() == []
