"""What every broker promises, as tests: the class `BrokerContract` is inherited by the tests of each (STYLE 10).

It uses what every broker has and nothing else. A broker's own tests say how one is opened, and how its clock moves.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable
from typing import Any, ClassVar, Protocol

import pytest

from sseflask import EventDecoder, ServerSentEvent
from sseflask.brokers import Broker
from sseflask.emitter import Channel, Subscriber
from sseflask.log import Resumption
from sseflask.position import EventId
from sseflask.ring import Entry
from tests.live.process import wait_until

TOKEN_SECONDS = 60
HISTORY_SECONDS = 300.0
JOIN_SECONDS = 40.0


class Clock(Protocol):
    """What a broker takes for the time."""

    @property
    def now(self) -> float:
        """The second."""

    def advance(self, seconds: float) -> None:
        """Lets time pass."""


class InlineWaker:
    """Lets subscribers read where the event is published, one at a time.

    Attributes:
        woken: The names of the channels that it was told of.
    """

    def __init__(self) -> None:
        self.woken: list[str] = []
        self._lock = threading.RLock()

    def wake(self, channel: Channel) -> None:
        """Lets the channel's subscribers read."""
        self.woken.append(channel.name)
        for subscriber in list(channel.subscribers):
            self.pump(subscriber)

    def pump(self, subscriber: Subscriber) -> None:
        """Lets one subscriber read."""
        with self._lock:
            while subscriber.pump(0.0):
                pass

    def defer(self, call: Callable[[], object]) -> bool:
        """Nothing is put off."""
        return False

    def give_way(self) -> bool:
        """There is nothing to give way to: who is woken reads at once."""
        return False

    def rest(self) -> None:
        """Nor is there anybody waiting."""


class Reader:
    """A subscriber that keeps what it reads.

    Attributes:
        seen: The entries that it has read.
        cursor: The number of the last one.
        missed: How often the log had dropped what it hadn't read, or had begun another life.
    """

    def __init__(self, broker: Broker, *channels: str) -> None:
        self.seen: list[Entry] = []
        self.missed = 0
        self._broker = broker
        self._channels = channels
        self._anew: str | None = None
        broker.prepare(channels)
        self.cursor = broker.position.seq
        broker.subscribe(channels, self)

    @property
    def data(self) -> list[str | None]:
        """The data of what it has read."""
        return [entry.event.data for entry in self.seen]

    def pump(self, now: float) -> bool:
        """Reads all there is."""
        with self._broker.emitter.lock:
            log = self._broker.log
            if len(self._channels) > 1 and not self._broker.is_complete(self._channels):
                return False
            if self._anew is not None:
                resumption = log.resume(self._channels, str(EventId(self._anew, self.cursor)))
                self._anew, self.cursor = None, resumption.cursor
                self.missed += resumption.reset is not None
            elif any(log.missing_after(channel, self.cursor) for channel in self._channels):
                self.missed += 1
            for entry in log.merged(self._channels, self.cursor):
                self.seen.append(entry)
                self.cursor = entry.seq
        return False

    def begin_anew(self, epoch: str) -> None:
        """Looks for its position of that epoch when it reads next."""
        self._anew = self._anew or epoch

    def is_behind(self, seq: int, since: float) -> bool:
        """It never is: it reads when it is woken."""
        return False

    def leave(self) -> None:
        """Stops to read."""
        self._broker.unsubscribe(self._channels, self)


def event(data: object = "x", **fields: Any) -> ServerSentEvent:
    """An event."""
    return ServerSentEvent(data, **fields)


def parsed(event_id: str) -> EventId:
    """An id that must be one of ours."""
    position = EventId.parse(event_id)
    assert position is not None, f"{event_id!r} is no id of ours"
    return position


def kept(broker: Broker, *channels: str) -> list[str | None]:
    """The data of the events that can be read."""
    # A position of another life: all that is retained is wanted.
    broker.prepare(channels, "0" * 12 + "-0")
    with broker.emitter.lock:
        return [entry.event.data for entry in broker.log.merged(channels, 0)]


def resumed(broker: Broker, channels: list[str], last_event_id: str) -> Resumption:
    """Where a client goes on that comes back with an id."""
    broker.prepare(channels, last_event_id)
    with broker.emitter.lock:
        return broker.log.resume(channels, last_event_id)


Open = Callable[..., Broker]


class BrokerContract:
    """The tests. A subclass has the fixtures `open_broker` and `clock`.

    `open_broker(**options)` opens one broker more of the same kind, with `history`, `history_seconds` and `history_bytes`.

    Attributes:
        native_events: How many each of four native threads publishes at once.
    """

    native_events: ClassVar[int] = 25_000

    @pytest.fixture
    def clock(self) -> Clock:
        """What the broker takes for the time."""
        raise NotImplementedError

    @pytest.fixture
    def open_broker(self, clock: Clock, waker: InlineWaker, chores: list[Callable[[float], bool]]) -> Open:
        """Opens brokers on `waker` and `chores.append`."""
        raise NotImplementedError

    @pytest.fixture
    def waker(self) -> InlineWaker:
        """Tells readers of new entries."""
        return InlineWaker()

    @pytest.fixture
    def chores(self) -> list[Callable[[float], bool]]:
        """What the broker has asked to be called each second."""
        return []

    @pytest.fixture
    def broker(self, open_broker: Open) -> Broker:
        """One with the defaults."""
        return open_broker()

    # Ids and order.

    def test_ids(self, broker: Broker) -> None:
        """Each publish returns an id of the broker's life, and the numbers go up over all channels."""
        before = broker.position
        ids = [parsed(broker.publish(channel, event())) for channel in ("a", "b", "a", "c")]
        assert {position.epoch for position in ids} == {before.epoch}
        assert not any(position.final for position in ids)
        numbers = [before.seq, *(position.seq for position in ids)]
        assert numbers == sorted(set(numbers))
        assert broker.position == ids[-1]
        assert broker.published == 4

    def test_frames(self, broker: Broker) -> None:
        """A frame is the event with the id that its publisher was given."""
        reader = Reader(broker, "news")
        own = broker.publish("news", event("two\nlines", event="note", retry=5))
        assert [entry.frame for entry in reader.seen] == [f"id: {own}\nevent: note\nretry: 5\ndata: two\ndata: lines\n\n".encode()]
        (entry,) = reader.seen
        assert (entry.channel, entry.name, entry.user_id, entry.is_end) == ("news", "note", None, False)

    @pytest.mark.parametrize("text", ["x", "", "two\nlines", "\u2028é"])
    def test_compact(self, broker: Broker, text: str) -> None:
        """A string stands for an event that has only data: for readers and for listeners."""
        reader = Reader(broker, "news")
        heard: list[ServerSentEvent] = []
        broker.emitter.on("news", heard.append)
        own = broker.publish("news", text)
        assert [entry.frame for entry in reader.seen] == [ServerSentEvent(text, id=own).encode()]
        assert [(entry.name, entry.user_id) for entry in reader.seen] == [(None, None)]
        assert heard == [ServerSentEvent(text, id=own)]

    def test_chain(self, broker: Broker) -> None:
        """Each entry knows the number of the one before it in its channel."""
        reader = Reader(broker, "a", "b")
        for channel in "abbaabab":
            broker.publish(channel, event())
        for channel in "ab":
            entries = [entry for entry in reader.seen if entry.channel == channel]
            assert [entry.prev for entry in entries[1:]] == [entry.seq for entry in entries[:-1]]

    def test_order_over_channels(self, broker: Broker) -> None:
        """Several channels are read in the order of publication."""
        for number, channel in enumerate("abcabccba"):
            broker.publish(channel, event(str(number)))
        assert kept(broker, "c", "a", "b") == [str(number) for number in range(9)]

    def test_each_broker_is_a_life_of_its_own(self, open_broker: Open) -> None:
        """An epoch is made by each broker anew unless the log has outlived the one before; then nothing of it is gone."""
        first = open_broker()
        position = first.publish("news", event())
        second = open_broker()
        resumption = resumed(second, ["news"], position)
        if second.position.epoch == first.position.epoch:
            assert resumption.reset is None
            assert second.position.seq >= parsed(position).seq
        else:
            assert resumption.reset == "epoch"

    # Own ids.

    def test_own_id(self, broker: Broker) -> None:
        """A publisher's own id is returned, sent and found again, among the channels asked for."""
        assert broker.publish("news", event("first", id="order 7")) == "order 7"
        broker.publish("news", event("second"))
        found = resumed(broker, ["news"], "order 7")
        elsewhere = resumed(broker, ["other"], "order 7")
        with broker.emitter.lock:
            following = [entry.event.data for entry in broker.log.merged(["news"], found.cursor)]
        assert found.reset is None and following == ["second"]
        assert elsewhere.reset == "unknown_id"
        assert kept(broker, "news") == ["first", "second"]

    def test_own_id_used_twice(self, broker: Broker) -> None:
        """An own id that names two events names no position."""
        for _ in range(2):
            broker.publish("news", event(id="mine"))
        assert resumed(broker, ["news"], "mine").reset == "unknown_id"

    # Tokens (DELIVERY 13).

    def test_token(self, broker: Broker) -> None:
        """A second publish with the same token returns the first one's id, stores nothing and tells nobody."""
        reader, heard = Reader(broker, "news"), []
        broker.emitter.on("news", lambda one: heard.append(one.data))
        first = broker.publish("news", event("once"), token="t")
        assert broker.publish("news", event("once"), token="t") == first
        assert broker.publish("elsewhere", event("other"), token="t") == first
        assert str(broker.position) == first
        assert reader.data == ["once"] and heard == ["once"]
        assert kept(broker, "news", "elsewhere") == ["once"]
        assert broker.published == 1

    def test_token_with_an_own_id(self, broker: Broker) -> None:
        """A repeated publish of an event with an own id returns that id, and the id stays a position."""
        for _ in range(2):
            assert broker.publish("news", event(id="mine"), token="t") == "mine"
        assert resumed(broker, ["news"], "mine").reset is None

    def test_other_tokens(self, broker: Broker) -> None:
        """Publishes with other tokens, and with none, are stored each."""
        ids = {broker.publish("news", event(), token=token) for token in ("t1", "t2", None, None)}
        assert len(ids) == 4
        assert len(kept(broker, "news")) == 4

    def test_token_of_an_end(self, broker: Broker) -> None:
        """The end of a channel is published once, however often it is retried."""
        first = broker.publish("news", event(), token="t", is_end=True)
        assert broker.publish("news", event(), token="t", is_end=True) == first
        assert len(kept(broker, "news")) == 1

    def test_token_is_remembered(self, broker: Broker, clock: Clock) -> None:
        """A token counts for 60 s, counted from the publish and not from the retries."""
        first = broker.publish("news", event(), token="t")
        for _ in range(2):
            clock.advance(TOKEN_SECONDS / 2 - 0.5)
            assert broker.publish("news", event(), token="t") == first
        clock.advance(1.5)
        assert broker.publish("news", event(), token="t") != first

    def test_token_outlives_other_publishes(self, broker: Broker, clock: Clock) -> None:
        """Neither other publishes nor expiry make a token be forgotten early."""
        first = broker.publish("news", event(), token="t")
        clock.advance(TOKEN_SECONDS / 2)
        for _ in range(1000):
            broker.publish("other", event())
        broker.expire(clock.now)
        assert broker.publish("news", event(), token="t") == first

    # Subscribers and listeners.

    def test_subscriber(self, broker: Broker) -> None:
        """A subscriber reads each event of its channels from its position on, in order, and none of others."""
        broker.publish("a", event("before"))
        reader = Reader(broker, "a", "b")
        for number, channel in enumerate("abcba"):
            broker.publish(channel, event(str(number)))
        assert reader.data == ["0", "1", "3", "4"]
        assert reader.missed == 0

    def test_unsubscribe(self, broker: Broker) -> None:
        """Who has left is told of nothing more; leaving twice is fine."""
        reader, other = Reader(broker, "news"), Reader(broker, "news")
        broker.publish("news", event("1"))
        reader.leave()
        reader.leave()
        broker.publish("news", event("2"))
        assert (reader.data, other.data) == (["1"], ["1", "2"])

    def test_waker_is_told_of_subscribed_channels_only(self, broker: Broker, waker: InlineWaker) -> None:
        """A channel without streams wakes nobody."""
        broker.publish("news", event())
        Reader(broker, "news")
        broker.publish("other", event())
        broker.publish("news", event())
        assert waker.woken == ["news"]

    def test_listener(self, broker: Broker) -> None:
        """A listener hears each event of its channel with the id that its publisher was given."""
        heard: list[ServerSentEvent] = []
        broker.emitter.on("news", heard.append)
        ids = [
            broker.publish("news", event("a")),
            broker.publish("other", event("b")),
            broker.publish("news", event("c", id="own")),
        ]
        assert [(one.data, one.id) for one in heard] == [("a", ids[0]), ("c", "own")]

    def test_listener_that_publishes(self, broker: Broker) -> None:
        """What a listener publishes comes after what it heard, for streams and listeners alike."""
        heard: list[str | None] = []
        reader = Reader(broker, "news")

        def answer(one: ServerSentEvent) -> None:
            if one.data == "question":
                broker.publish("news", event("answer"))

        broker.emitter.on("news", answer)
        broker.emitter.on("news", lambda one: heard.append(one.data))
        broker.publish("news", event("question"))
        assert heard == reader.data == ["question", "answer"]

    def test_failing_listener(self, broker: Broker, caplog: pytest.LogCaptureFixture) -> None:
        """A listener that fails keeps the event from neither its publisher nor the streams."""
        reader = Reader(broker, "news")

        def fail(one: ServerSentEvent) -> None:
            raise ValueError("no")

        broker.emitter.on("news", fail)
        assert parsed(broker.publish("news", event("1")))
        assert reader.data == ["1"]
        assert [record.levelname for record in caplog.records] == ["ERROR"]

    def test_listener_that_is_interrupted(self, broker: Broker) -> None:
        """What ends the publishing greenlet inside a listener keeps nothing from the streams: the broker has the event."""
        reader = Reader(broker, "news")

        class Interrupted(BaseException):
            """As a deadline that passes, or a greenlet that is killed."""

        heard: list[str | None] = []

        def interrupt(one: ServerSentEvent) -> None:
            broker.emitter.off("news", interrupt)
            heard.append(one.data)
            raise Interrupted

        broker.emitter.on("news", interrupt)
        # Where something of the broker's own looks for news too, that may have been first, and goes on all the same.
        with contextlib.suppress(Interrupted):
            broker.publish("news", event("1"))
        wait_until(lambda: reader.data == ["1"] and heard == ["1"], 20)
        broker.publish("news", event("2"))
        wait_until(lambda: reader.data == ["1", "2"], 20)
        assert heard == ["1"]

    # What is kept, and for how long.

    def test_held(self, broker: Broker, clock: Clock) -> None:
        """A connected client is judged by the unbroken listening of its process: expiry costs it nothing (DELIVERY 5)."""
        reader = Reader(broker, "news")
        broker.publish("news", event("1"))
        for number in (2, 3):
            clock.advance(HISTORY_SECONDS + 1)
            broker.expire(clock.now)
            broker.publish("news", event(str(number)))
        assert reader.data == ["1", "2", "3"]
        assert reader.missed == 0

    def test_expiry(self, broker: Broker, clock: Clock) -> None:
        """What is too old can't be read any more, and who had not read it is told."""
        before = str(broker.position)
        broker.publish("news", event("old"))
        clock.advance(HISTORY_SECONDS - 1)
        broker.expire(clock.now)
        assert kept(broker, "news") == ["old"]
        clock.advance(2)
        broker.publish("other", event("new"))
        broker.expire(clock.now)
        assert kept(broker, "news", "other") == ["new"]
        assert resumed(broker, ["news"], before).reset == "history"

    def test_history(self, open_broker: Open) -> None:
        """A channel keeps as many events as the broker says, or as many as a publish says for it."""
        broker = open_broker(history=10)
        for number in range(30):
            broker.publish("news", event(str(number)))
            broker.publish("short", event(str(number)), history=3)
            broker.publish("long", event(str(number)), history=20)
        assert kept(broker, "news") == [str(number) for number in range(20, 30)]
        assert kept(broker, "short") == ["27", "28", "29"]
        assert kept(broker, "long") == [str(number) for number in range(10, 30)]
        broker.publish("short", event("30"))
        assert kept(broker, "short") == ["28", "29", "30"]

    def test_end(self, broker: Broker) -> None:
        """An end is an event that says so, and closes its channel until it is published to again."""

        def is_ended() -> bool:
            ring = broker.log.find("news")
            assert ring is not None
            return ring.ended

        reader = Reader(broker, "news")
        broker.publish("news", event("1"))
        broker.publish("news", event("bye", event="stream-end"), is_end=True)
        assert is_ended()
        assert [entry.is_end for entry in reader.seen] == [False, True]
        assert EventDecoder().feed(reader.seen[-1].final_frame)[0].id == f"{broker.position}-end"
        broker.publish("news", event("2"))
        assert not is_ended()
        assert reader.data == ["1", "bye", "2"]

    # Native threads (DELIVERY 14).

    @pytest.mark.timeout(60)
    def test_native_threads(self, open_broker: Open) -> None:
        """Many events from four native threads: each subscriber reads each once and in order, and nothing is stuck."""
        threads, events = 4, self.native_events
        broker = open_broker(history=256)
        readers = [Reader(broker, "a"), Reader(broker, "a", "b")]
        heard: list[str | None] = []
        broker.emitter.on("b", lambda one: heard.append(one.id))
        frames = [event(str(number)) for number in range(threads)]
        ids: list[list[str]] = [[] for _ in range(threads)]

        def publish(number: int) -> None:
            for count in range(events):
                ids[number].append(broker.publish("ab"[count % 2], frames[number]))

        interval = sys.getswitchinterval()
        # Threads take turns wherever they can.
        sys.setswitchinterval(1e-5)
        try:
            run_together(publish, threads)
        finally:
            sys.setswitchinterval(interval)
        numbers = [[parsed(one).seq for one in of_thread] for of_thread in ids]
        assert all(of_thread == sorted(of_thread) for of_thread in numbers)
        everything = sorted(seq for of_thread in numbers for seq in of_thread)
        assert len(set(everything)) == threads * events == broker.published
        assert [entry.seq for entry in readers[1].seen] == everything
        of_channel = {channel: sorted(seq for one in numbers for seq in one[index::2]) for index, channel in enumerate("ab")}
        assert [entry.seq for entry in readers[0].seen] == of_channel["a"]
        assert [parsed(one or "").seq for one in heard] == of_channel["b"]
        assert [reader.missed for reader in readers] == [0, 0]

    def test_coming_and_going(self, open_broker: Open) -> None:
        """Subscribers that come and go in native threads while events flow read each from their position on, in order."""
        # More than are published, so that nothing is dropped between taking the position and listening.
        broker = open_broker(history=10_000)

        def visit() -> None:
            reader = Reader(broker, "news")
            broker.publish("news", event())
            reader.leave()
            seen = [entry.seq for entry in reader.seen]
            prevs = [entry.prev for entry in reader.seen]
            assert seen and prevs[1:] == seen[:-1] and not reader.missed

        def run(number: int) -> None:
            for _ in range(300):
                if number < 2:
                    visit()
                else:
                    broker.publish("news", event())

        run_together(run, 4)
        assert broker.published == 1200
        assert broker.emitter.find("news") is None


def run_together(target: Callable[[int], None], count: int) -> None:
    """Runs a function in some native threads at once, with their numbers, and waits for all; what one raises is raised."""
    barrier = threading.Barrier(count)
    failures: list[BaseException] = []

    def run(number: int) -> None:
        try:
            barrier.wait(10)
            target(number)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(number,), daemon=True) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(JOIN_SECONDS)
    assert not any(thread.is_alive() for thread in threads), "a thread is stuck"
    if failures:
        raise failures[0]
