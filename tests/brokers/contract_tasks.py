"""What every broker promises of tasks and of channels that keep all, as tests: `TaskContract` is inherited by the tests of each."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar, Protocol

import pytest

import sseflask.brokers.base
import sseflask.brokers.shared
from sseflask.brokers import Broker, SharedBroker
from sseflask.brokers.store import Head, Reading
from sseflask.brokers.tasks import REMEMBERED_SECONDS, Lease, TaskChange, TaskRecord, TaskState
from sseflask.emitter import Channel
from sseflask.errors import TaskEnded
from sseflask.event import ServerSentEvent
from sseflask.ring import KEEP_ALL, Entry
from tests.brokers.contract import HISTORY_SECONDS, Clock, InlineWaker, Reader, event, kept, parsed, resumed, run_together

FINAL = (TaskState.COMPLETED, TaskState.FAILED, TaskState.CANCELLED)
#: A position of another life: who comes back with it gets all that there is.
FROM_THE_START = "0" * 12 + "-0"


class OpenPair(Protocol):
    """Opens brokers in pairs."""

    def __call__(self, **options: float) -> tuple[Broker, Broker]:
        """Two that share what they keep; where that can't be, the same one twice."""
        ...


def new_id() -> str:
    """A task's id."""
    return secrets.token_hex(16)


def begun(broker: Broker, channel: str = "run") -> str:
    """A task that has just begun; its id."""
    task_id = new_id()
    assert broker.tasks.create(task_id, channel=channel)
    return task_id


def say(
    broker: Broker,
    task_id: str,
    text: str = "x",
    *,
    channel: str = "run",
    part: str | None = None,
    state: TaskState | None = None,
    token: str | None = None,
    is_end: bool = False,
) -> str:
    """Publishes in a task's name to a channel that keeps all; the event's id."""
    change = TaskChange(task_id, part, state)
    return broker.publish(channel, event(text), task=change, token=token, is_end=is_end, history=KEEP_ALL)


def shown(broker: Broker, task_id: str) -> list[tuple[str, int, bytes]]:
    """The parts that are known of a task."""
    return [(part.key, part.seq, part.body) for part in found(broker, task_id).parts]


def found(broker: Broker, task_id: str) -> TaskRecord:
    """What is known of a task that must be known."""
    record = broker.tasks.find(task_id)
    assert record is not None
    return record


class TaskContract:
    """The tests. A subclass has the fixtures `open_pair` and `clock`.

    `open_pair(**options)` opens two brokers that share what they keep, with `history`, `history_seconds` and `history_bytes`.

    Attributes:
        run_events: How many events a long run has.
    """

    run_events: ClassVar[int] = 5_000

    @pytest.fixture
    def clock(self) -> Clock:
        """What the broker takes for the time."""
        raise NotImplementedError

    @pytest.fixture
    def open_pair(self, clock: Clock) -> OpenPair:
        """Opens pairs."""
        raise NotImplementedError

    @pytest.fixture
    def waker(self) -> InlineWaker:
        """Tells readers of new entries."""
        return InlineWaker()

    @pytest.fixture
    def chores(self) -> list[Callable[[float], bool]]:
        """What the brokers have asked to be called each second."""
        return []

    @pytest.fixture
    def pair(self, open_pair: OpenPair) -> tuple[Broker, Broker]:
        """One with the defaults."""
        return open_pair()

    @pytest.fixture
    def broker(self, pair: tuple[Broker, Broker]) -> Broker:
        """One of them."""
        return pair[0]

    # Records.

    def test_create(self, pair: tuple[Broker, Broker]) -> None:
        """A task begins once: a second one of its id changes nothing, and each process knows what the first one said."""
        one, other = pair
        task_id = new_id()
        assert one.tasks.create(task_id, channel="caf\u00e9", facts='{"\u2028": 1}')
        assert not other.tasks.create(task_id, channel="another", facts="")
        assert not one.tasks.create(task_id, channel="another", facts="")
        expected = TaskRecord(task_id, "caf\u00e9", '{"\u2028": 1}', TaskState.PENDING)
        assert one.tasks.find(task_id) == other.tasks.find(task_id) == expected

    def test_unknown(self, broker: Broker) -> None:
        """Of a task that was never begun nothing is known, and nothing can be published in its name."""
        begun(broker)
        task_id = new_id()
        before = broker.position
        assert broker.tasks.find(task_id) is None
        assert broker.tasks.ask_cancel(task_id) is None
        assert broker.tasks.renew([task_id]) == {}
        with pytest.raises(TaskEnded) as caught:
            say(broker, task_id)
        assert (caught.value.task_id, caught.value.state) == (task_id, None)
        assert broker.position == before

    def test_parts(self, pair: tuple[Broker, Broker]) -> None:
        """The newest event of each part is kept, with its number and its bytes, in the order of the numbers."""
        one, other = pair
        task_id = begun(one)
        ids = [
            say(one if number % 2 else other, task_id, f"{part}{number}", part=part)
            for number, part in enumerate(["progress", "a", "b", "progress", "", "a", None])
        ]
        expected = [
            (key, parsed(ids[number]).seq, event(f"{key}{number}").encode())
            for number, key in [(2, "b"), (3, "progress"), (4, ""), (5, "a")]
        ]
        assert shown(one, task_id) == shown(other, task_id) == expected
        assert found(other, task_id).seq == parsed(ids[5]).seq
        assert len(kept(other, "run")) == 7

    def test_large_parts(self, broker: Broker) -> None:
        """Parts have names beyond ASCII, names of events, and as many bytes as an event may have."""
        task_id = begun(broker)
        large = event("\u00e9" * 200_000, event="file_update", retry=5)
        broker.publish("run", large, task=TaskChange(task_id, "caf\u00e9 \u2028"))
        assert [part[::2] for part in shown(broker, task_id)] == [("caf\u00e9 \u2028", large.encode())]

    def test_states(self, pair: tuple[Broker, Broker]) -> None:
        """The state changes with the event that says so, and with no other."""
        one, other = pair
        task_id = begun(one)
        assert found(other, task_id).state is TaskState.PENDING
        say(one, task_id, state=TaskState.RUNNING)
        say(one, task_id)
        record = found(other, task_id)
        assert (record.state, record.seq, record.parts) == (TaskState.RUNNING, 0, ())
        say(other, task_id, "done", state=TaskState.COMPLETED, part="end")
        assert [found(broker, task_id).state for broker in pair] == [TaskState.COMPLETED] * 2

    # Who works on it.

    def test_beats(self, pair: tuple[Broker, Broker]) -> None:
        """Of each task that hasn't ended there is a number, which changes when it is begun or renewed and never otherwise."""
        one, other = pair
        first, second = begun(one), begun(other)
        beats = dict(one.tasks.beats())
        assert set(beats) == {first, second} and other.tasks.beats() == beats
        say(one, first)
        one.tasks.ask_cancel(first)
        assert one.tasks.beats() == beats
        for _ in range(3):
            one.tasks.renew([first])
            renewed = dict(other.tasks.beats())
            assert renewed[first] != beats[first] and renewed[second] == beats[second]
            beats = renewed
        say(other, first, state=TaskState.FAILED)
        assert set(one.tasks.beats()) == {second}
        one.tasks.renew([first])
        assert set(one.tasks.beats()) == {second}

    def test_renew(self, pair: tuple[Broker, Broker]) -> None:
        """Who renews learns where each task stands, also one that has ended: a pending one runs. Unknown ones are missing."""
        one, other = pair
        tasks = {state: begun(one) for state in (TaskState.PENDING, TaskState.RUNNING, *FINAL)}
        for state, task_id in tasks.items():
            say(one, task_id, state=state)
        one.tasks.ask_cancel(tasks[TaskState.RUNNING])
        assert other.tasks.renew([*tasks.values(), new_id()]) == {
            task_id: Lease(TaskState.RUNNING if state is TaskState.PENDING else state, state is TaskState.RUNNING)
            for state, task_id in tasks.items()
        }
        assert found(one, tasks[TaskState.PENDING]).state is TaskState.RUNNING
        assert other.tasks.renew([]) == {}

    def test_many(self, broker: Broker) -> None:
        """A thousand and more are renewed in one go."""
        tasks = [begun(broker) for _ in range(1100)]
        beats = broker.tasks.beats()
        assert set(broker.tasks.renew(tasks)) == set(tasks)
        assert all(beat != beats[task_id] for task_id, beat in broker.tasks.beats().items())

    def test_ask_cancel(self, pair: tuple[Broker, Broker]) -> None:
        """A task is asked to end, and goes on until it does; asking one that has ended changes nothing."""
        one, other = pair
        task_id = begun(one)
        assert not found(one, task_id).is_cancel_asked
        assert [broker.tasks.ask_cancel(task_id) for broker in pair] == [TaskState.PENDING] * 2
        assert found(one, task_id).is_cancel_asked and one.tasks.renew([task_id])[task_id].is_cancel_asked
        say(one, task_id, state=TaskState.CANCELLED)
        ended = begun(one)
        say(one, ended, state=TaskState.COMPLETED)
        assert other.tasks.ask_cancel(ended) is TaskState.COMPLETED
        assert not found(one, ended).is_cancel_asked

    # Ends (DELIVERY 26).

    @pytest.mark.parametrize("state", FINAL)
    def test_refused(self, pair: tuple[Broker, Broker], state: TaskState) -> None:
        """What comes after the end is refused and leaves no trace: no event, no number, no token, no change of the record."""
        one, other = pair
        task_id = begun(one)
        say(one, task_id, "going", part="progress")
        last = say(other, task_id, "over", state=state, part="end")
        before, published = found(one, task_id), other.published
        reader = Reader(other, "run")
        for text, part, late in (("1", None, None), ("2", "progress", TaskState.RUNNING), ("3", "end", TaskState.FAILED)):
            with pytest.raises(TaskEnded) as caught:
                say(other, task_id, text, part=part, state=late, token="late", is_end=True)
            assert (caught.value.task_id, caught.value.state) == (task_id, state)
        assert found(one, task_id) == before
        assert reader.data == [] and other.published == published
        assert kept(one, "run") == ["going", "over"]
        following = parsed(other.publish("other", event(), token="late"))
        assert following.seq == parsed(last).seq + 1

    def test_token(self, pair: tuple[Broker, Broker]) -> None:
        """A repeated publish gets the first one's id and changes nothing, also when the task has ended since."""
        one, other = pair
        task_id = begun(one)
        first = say(one, task_id, "first", part="progress", token="t")
        say(one, task_id, "second", part="progress", state=TaskState.RUNNING)
        before = found(one, task_id)
        assert say(other, task_id, "first", part="progress", state=TaskState.PENDING, token="t") == first
        assert found(one, task_id) == before
        last = say(one, task_id, "over", state=TaskState.COMPLETED, part="end", token="u")
        assert say(other, task_id, "over", state=TaskState.COMPLETED, part="end", token="u") == last
        assert say(other, task_id, "first", part="progress", token="t") == first
        assert kept(one, "run") == ["first", "second", "over"]

    @pytest.mark.parametrize("attempt", range(5))
    def test_race(self, pair: tuple[Broker, Broker], attempt: int) -> None:
        """Of eight native threads that end a task at once one wins: its event is the last, and all others learn its state."""
        task_id = begun(pair[0])
        won: list[TaskState] = []
        told: list[str | None] = []

        def end(number: int) -> None:
            state = FINAL[(number + attempt) % 3]
            try:
                for count in range(20):
                    say(pair[number % 2], task_id, f"{number} {count}", part=str(number))
                say(pair[number % 2], task_id, f"{number} over", state=state, part="end")
                won.append(state)
            except TaskEnded as error:
                told.append(error.state)

        run_together(end, 8)
        record = found(pair[0], task_id)
        assert won == [record.state] and told == [record.state] * 7
        data = kept(pair[1], "run")
        assert record.parts[-1].key == "end"
        assert data[-1] == event_data(record.parts[-1].body)
        assert [str(one).endswith("over") for one in data] == [False] * (len(data) - 1) + [True]

    # For how long.

    def test_expiry(self, open_pair: OpenPair, clock: Clock) -> None:
        """When the history's seconds after its end have passed, a task's events are gone, and how it ended is known."""
        one, other = open_pair(history_seconds=40.0)
        task_id, bare = begun(one), begun(one, "bare")
        say(one, task_id, part="progress")
        clock.advance(100)
        say(one, task_id, part="end", state=TaskState.COMPLETED)
        say(one, bare, channel="bare", state=TaskState.FAILED)
        clock.advance(38)
        record = found(other, task_id)
        assert not record.is_expired and [part.key for part in record.parts] == ["progress", "end"]
        assert not found(other, bare).is_expired
        clock.advance(38)
        expected = TaskRecord(task_id, "run", "", TaskState.COMPLETED, is_expired=True)
        assert [broker.tasks.find(task_id) for broker in (one, other)] == [expected] * 2
        assert found(other, bare).is_expired
        with pytest.raises(TaskEnded):
            say(other, task_id)
        clock.advance(REMEMBERED_SECONDS)
        begun(one)
        assert one.tasks.find(task_id) is None and other.tasks.renew([task_id]) == {}

    def test_left_alone(self, pair: tuple[Broker, Broker], clock: Clock) -> None:
        """One that isn't begun, renewed or published to for a day is forgotten; each of these counts."""
        one, other = pair
        alone, renewed, used = begun(one), begun(one), begun(one)
        for _ in range(3):
            clock.advance(REMEMBERED_SECONDS * 0.4)
            other.tasks.renew([renewed])
            say(other, used, part="progress")
        begun(one)
        assert one.tasks.find(alone) is None
        assert alone not in one.tasks.beats() and alone not in other.tasks.renew([alone])
        assert found(one, renewed).state is TaskState.RUNNING
        assert [part.key for part in found(one, used).parts] == ["progress"]
        assert {renewed, used} <= set(one.tasks.beats())

    # Channels that keep all (DELIVERY 24).

    def test_keep_all_beyond_the_history(self, open_pair: OpenPair) -> None:
        """Such a channel keeps more than the history, before its end and after; one beside it doesn't."""
        one, other = open_pair(history=10)
        numbers = [str(number) for number in range(30)]
        for number in numbers:
            one.publish("run", event(number), history=KEEP_ALL if number == "0" else None)
            one.publish("plain", event(number))
        assert kept(other, "run") == numbers
        assert kept(other, "plain") == numbers[-10:]
        one.publish("run", event("over"), is_end=True)
        self.wait_for(lambda: kept(one, "run") == kept(other, "run") == [*numbers, "over"])

    def test_keep_all_beyond_the_age(self, open_pair: OpenPair, clock: Clock) -> None:
        """It keeps what is older than the history, until its last entry is; then all of it is gone, and who comes is told."""
        one, other = open_pair()
        first = one.publish("run", event("1"), history=KEEP_ALL)
        one.publish("plain", event("1"))
        for number in ("2", "3"):
            clock.advance(HISTORY_SECONDS * 2)
            for broker in (one, other):
                broker.expire(clock.now)
            one.publish("run", event(number))
            one.publish("plain", event(number))
        assert kept(other, "run") == ["1", "2", "3"] and kept(other, "plain") == ["3"]
        clock.advance(HISTORY_SECONDS * 2)
        one.publish("run", event("over"), is_end=True)
        # By the clock of who follows it, an event is as old as its arrival.
        self.wait_for(lambda: kept(other, "run") == ["1", "2", "3", "over"])
        clock.advance(HISTORY_SECONDS - 10)
        assert kept(one, "run") == kept(other, "run") == ["1", "2", "3", "over"]
        assert resumed(other, ["run"], first).reset is None
        clock.advance(60)
        for broker in (one, other):
            broker.publish("plain", event())
            broker.expire(clock.now)
        assert kept(one, "run") == kept(other, "run") == []
        assert resumed(other, ["run"], first).reset == "history"

    def test_keep_all_beyond_the_bytes(self, open_pair: OpenPair) -> None:
        """It doesn't give way, however few bytes there are for all: others do. After its end it gives way like them."""
        one, other = open_pair(history_bytes=1 << 16)
        body = "x" * 2000
        one.publish("run", event(body), history=KEEP_ALL)
        for _ in range(99):
            one.publish("run", event(body))
            one.publish("plain", event(body))
        assert len(kept(other, "run")) == 100
        assert 5 < len(kept(other, "plain")) < 40
        assert other.log.size <= 1 << 16
        one.publish("run", event("over"), is_end=True)
        for _ in range(100):
            one.publish("plain", event(body))
        for broker in (one, other):
            self.wait_for(lambda broker=broker: len(kept(broker, "run", "plain")) < 40)  # type: ignore[misc]
            assert broker.log.size <= 1 << 16

    def test_keep_all_followed_from_before(self, open_pair: OpenPair) -> None:
        """A process that followed the channel before it kept all has all of it too, for who comes back and for who is slow."""
        one, other = open_pair(history=10)
        reader = Reader(other, "run")
        assert kept(other, "run") == []
        first = one.publish("run", event("0"), history=KEEP_ALL)
        numbers = [str(number) for number in range(1, 60)]
        for number in numbers:
            one.publish("run", event(number))
        self.wait_for(lambda: len(reader.seen) == 60)
        ring = other.log.find("run")
        assert ring is not None and len(ring.entries) == 60
        assert resumed(other, ["run"], first).reset is None
        assert kept(other, "run") == ["0", *numbers]
        assert reader.missed == 0

    @pytest.mark.timeout(60)
    def test_keep_all_read_from_its_start(self, open_pair: OpenPair) -> None:
        """Who reads a long run from its start in another process gets all of it, in batches, and then its end."""
        one, other = open_pair()
        one.publish("run", event("0"), history=KEEP_ALL)
        for number in range(1, self.run_events):
            one.publish("run", event(str(number)))
        last = parsed(one.publish("run", event("over"), is_end=True))
        assert resumed(other, ["run"], FROM_THE_START).reset == "epoch"
        ring = other.log.find("run")
        assert ring is not None and not ring.missing_after(0)
        cursor = count = 0
        while (batch := ring.batch(cursor)) is not None:
            assert batch.prev == cursor or cursor == 0
            cursor, count = batch.last, count + batch.count
        assert (count, cursor) == (self.run_events + 1, last.seq)

    def test_keep_all_in_silence(self, pair: tuple[Broker, Broker], clock: Clock) -> None:
        """A run that says nothing for days keeps its log as long as it is renewed; one that nobody works on loses it in a day."""
        one, other = pair
        renewed, alone = begun(one, "renewed"), begun(one, "alone")
        for task_id, channel in ((renewed, "renewed"), (alone, "alone")):
            say(one, task_id, "1", channel=channel)
            say(one, task_id, "2", channel=channel)
        one.publish("nobody's", event("1"), history=KEEP_ALL)
        for _ in range(3):
            clock.advance(REMEMBERED_SECONDS * 0.4)
            one.tasks.renew([renewed])
            for broker in pair:
                one.publish("plain", event())
                broker.expire(clock.now)
        assert kept(other, "renewed") == ["1", "2"]
        assert kept(other, "alone") == kept(other, "nobody's") == []
        say(one, renewed, "3", channel="renewed")
        self.wait_for(lambda: kept(one, "renewed") == kept(other, "renewed") == ["1", "2", "3"])

    def wait_for(self, condition: Callable[[], bool]) -> None:
        """Waits until both have heard of so much."""
        raise NotImplementedError


class SharedTaskContract(TaskContract):
    """What brokers of several processes promise besides."""

    def test_channel_that_is_not_followed_yet(self, pair: tuple[Broker, Broker], monkeypatch: pytest.MonkeyPatch) -> None:
        """Who comes back for several channels, one of them new to its process, reads what another has on its way there, too."""
        one, other = pair
        assert isinstance(other, SharedBroker)
        before = one.publish("elsewhere", event("0"))
        Reader(other, "news")
        is_held_up, may_go_on = threading.Event(), threading.Event()

        def hold_up(_: ServerSentEvent) -> None:
            is_held_up.set()
            may_go_on.wait(10)

        other.emitter.on("slow", hold_up)
        read = other.store.read

        def publishing(after: Mapping[str, int | None]) -> Mapping[str, Reading]:
            monkeypatch.undo()
            one.publish("slow", event("1"))
            self.wait_for(is_held_up.is_set)
            one.publish("news", event("2"))
            one.publish("user", event("3"))
            # Where the thread is held up that tells of news, whoever comes waits for it.
            threading.Timer(0.5, may_go_on.set).start()
            return read(after)

        monkeypatch.setattr(other.store, "read", publishing)
        channels = ("news", "user")
        assert resumed(other, list(channels), before).reset is None
        reader = Reader(other, *channels)
        reader.cursor = parsed(before).seq
        reader.pump(0.0)
        self.wait_for(lambda: reader.data[-1:] == ["3"])
        assert reader.data == ["2", "3"]

    def test_listener_in_the_middle_of_listening(self, pair: tuple[Broker, Broker], monkeypatch: pytest.MonkeyPatch) -> None:
        """A listener that adds one while another is being added waits for no more than its own channel."""
        one, other = pair
        assert isinstance(other, SharedBroker)
        took: list[float] = []

        def add(_: ServerSentEvent) -> None:
            began = time.monotonic()
            other.emitter.once("inner", lambda _: None)
            took.append(time.monotonic() - began)

        other.emitter.on("asked", add)
        read = other.store.read

        def publishing(after: Mapping[str, int | None]) -> Mapping[str, Reading]:
            if "outer" in after:
                one.publish("asked", event("1"))
            return read(after)

        monkeypatch.setattr(other.store, "read", publishing)
        other.emitter.on("outer", lambda _: None)
        self.wait_for(lambda: bool(took))
        assert took[0] < 2
        self.wait_for(lambda: {"inner", "outer"} <= set(other.log.names()))

    def test_keep_all_with_a_hole(self, open_pair: OpenPair, monkeypatch: pytest.MonkeyPatch) -> None:
        """What a process missed of a run, however much, is read when it hears of what follows; it keeps all from then on too."""
        one, other = open_pair(history=8)
        assert isinstance(other, SharedBroker)
        reader = Reader(other, "run")
        missed: list[Entry] = []

        def miss(head: Head, entries: Sequence[Entry]) -> None:
            missed.extend(entries)

        monkeypatch.setattr(other, "arrived", miss)
        one.publish("run", event("0"), history=KEEP_ALL)
        for number in range(1, 50):
            one.publish("run", event(str(number)))
        self.wait_for(lambda: len(missed) == 50)
        monkeypatch.undo()
        for number in range(50, 100):
            one.publish("run", event(str(number)))
        numbers = [str(number) for number in range(100)]
        self.wait_for(lambda: reader.data == numbers)
        assert reader.missed == 0
        ring = other.log.find("run")
        assert ring is not None and len(ring.entries) == 100

    def test_hole_of_what_is_gone(self, pair: tuple[Broker, Broker], clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
        """A process that missed what the store has no more tells its readers, and counts what it has from then on."""
        one, other = pair
        assert isinstance(other, SharedBroker)
        reader = Reader(other, "news")
        one.publish("news", event("1"))
        self.wait_for(lambda: reader.data == ["1"])
        missed: list[Entry] = []

        def miss(head: Head, entries: Sequence[Entry]) -> None:
            missed.extend(entries)

        monkeypatch.setattr(other, "arrived", miss)
        one.publish("news", event("2"))
        self.wait_for(lambda: len(missed) == 1)
        monkeypatch.setattr(other, "arrived", type(other).arrived.__get__(other))
        clock.advance(HISTORY_SECONDS + 40)
        one.publish("news", event("3"))
        self.wait_for(lambda: reader.data == ["1", "3"])
        assert reader.missed == 1
        ring = other.log.find("news")
        assert ring is not None and other.log.size == ring.size == ring.entries[0].size
        # And where nothing follows by which it would hear of that.
        monkeypatch.setattr(other, "arrived", miss)
        one.publish("news", event("4"))
        self.wait_for(lambda: len(missed) == 2)
        clock.advance(HISTORY_SECONDS + 40)
        other.resumed(other.store.head())
        assert reader.missed == 2 and not ring.entries
        assert other.log.size == 0
        other.expire(clock.now)

    @pytest.mark.parametrize("channels", [("news",), ("news", "other")])
    def test_more_at_once_than_is_kept(
        self, open_pair: OpenPair, clock: Clock, monkeypatch: pytest.MonkeyPatch, channels: tuple[str, ...]
    ) -> None:
        """A process that finds more entries at a time than it keeps lets its readers have them before it drops any."""
        _, broker = open_pair(history=16)
        assert isinstance(broker, SharedBroker)
        waker = LazyWaker()
        monkeypatch.setattr(broker, "waker", waker)
        readers = [LazyReader(broker, channel) for channel in channels]
        find_at_once(broker, channels, 100, at=clock.now)
        broker.tell()
        waker.give_way()
        assert [reader.data for reader in readers] == [[str(number) for number in range(100)]] * len(channels)
        assert [reader.missed for reader in readers] == [0] * len(channels)
        # As often as it has to: a reader that is less than half of a ring behind isn't waited for.
        assert 10 <= waker.gave_way <= 14 * len(channels)
        news = broker.log.find("news")
        assert news is not None and len(news.entries) == 16

    def test_blocked_reader(self, open_pair: OpenPair, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
        """What a process finds doesn't wait for a reader whose client takes nothing: others would wait with it."""
        _, broker = open_pair(history=16)
        assert isinstance(broker, SharedBroker)
        waker = LazyWaker()
        monkeypatch.setattr(broker, "waker", waker)
        blocked, other = BlockedReader(broker, "news"), LazyReader(broker, "other")
        find_at_once(broker, ("news", "news", "other"), 20, at=clock.now)
        broker.tell()
        # For the other one alone: 20 entries, of which four are new each time, and half of the ring may wait.
        assert 1 <= waker.gave_way <= 4
        waker.wake_all()
        assert other.data == [str(number) for number in range(20)]
        blocked.is_blocked = False
        blocked.pump(0.0)
        assert (blocked.missed, other.missed) == (1, 0)

    def test_readers_that_do_not_read(self, open_pair: OpenPair, monkeypatch: pytest.MonkeyPatch) -> None:
        """A process waits for readers only so long, and not at all where they can't run; what it kept last is there."""
        for module in (sseflask.brokers.base, sseflask.brokers.shared):
            monkeypatch.setattr(module, "PACE_SECONDS", 0.01)
        _, broker = open_pair(history=8)
        waker = LazyWaker()
        monkeypatch.setattr(broker, "waker", waker)
        reader = LazyReader(broker, "news")
        monkeypatch.setattr(waker, "give_way", lambda: False)
        for number in range(20):
            broker.publish("news", event(str(number)))
        self.wait_for(lambda: broker.position.seq == 20)
        monkeypatch.setattr(waker, "give_way", lambda: True)
        for number in range(20, 40):
            broker.publish("news", event(str(number)))
        self.wait_for(lambda: broker.position.seq == 40)
        waker.wake_all()
        assert reader.missed == 1
        assert reader.data == [str(number) for number in range(32, 40)]


class LazyWaker(InlineWaker):
    """Lets subscribers read only when somebody gives way.

    Attributes:
        gave_way: How often somebody did.
    """

    def __init__(self) -> None:
        super().__init__()
        self.gave_way = 0
        self._channels: dict[Channel, None] = {}

    def wake(self, channel: Channel) -> None:
        """Does it later."""
        self._channels[channel] = None

    def give_way(self) -> bool:
        """Does it now."""
        self.gave_way += 1
        self.wake_all()
        return True

    def wake_all(self) -> None:
        """Lets those read whose channels it was told of."""
        channels, self._channels = self._channels, {}
        for channel in channels:
            super().wake(channel)


class LazyReader(Reader):
    """A subscriber that may be behind."""

    def is_behind(self, seq: int, since: float) -> bool:
        """Whether it hasn't read entry `seq`."""
        return self.cursor < seq


class BlockedReader(LazyReader):
    """A subscriber whose client's buffer has just become full.

    Attributes:
        is_blocked: Whether it still is.
    """

    def __init__(self, broker: Broker, *channels: str) -> None:
        super().__init__(broker, *channels)
        self.is_blocked = True
        self._blocked_since = time.monotonic()

    def is_behind(self, seq: int, since: float) -> bool:
        """Whether it hasn't read entry `seq`, and its client has taken something since."""
        return super().is_behind(seq, since) and self._blocked_since > since

    def pump(self, now: float) -> bool:
        """Reads nothing while it is blocked."""
        return not self.is_blocked and super().pump(now)


def find_at_once(broker: SharedBroker, channels: Sequence[str], count: int, *, at: float) -> None:
    """Has a broker find so many rounds of entries, one on each of the channels, in one look at its store."""
    epoch = broker.log.epoch
    entries: list[Entry] = []
    last = dict.fromkeys(channels, 0)
    for number in range(count):
        for channel in channels:
            seq = len(entries) + 1
            frame = b"id: %b-%d\ndata: %d\n\n" % (epoch.encode(), seq, number)
            entries.append(Entry(seq, last[channel], channel, frame, None, None, is_end=False, at=at))
            last[channel] = seq
    broker.arrived(Head(epoch, len(entries)), entries)


def event_data(body: bytes) -> str:
    """The data of an encoded event of one line."""
    return body.decode().removeprefix("data: ").rstrip("\n")
