"""Subscriptions: what a client gets first, what it gets then, and how it ends, whatever its connection takes.

The connections are sinks of our own, which take a stream's socket over just as `StreamWorker` does.
"""

from __future__ import annotations

import json
import logging
import random
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import pytest
from flask import Flask, Response

import sseflask.subscription
import sseflask.waker
from sseflask import SSE, CloseReason, EventDecoder, ServerSentEvent, Stream, StreamError, process
from sseflask.brokers import Broker, SharedBroker
from sseflask.brokers.store import Publication, Reading
from sseflask.errors import BrokerUnavailable
from sseflask.handoff import Handoff
from sseflask.position import EventId
from sseflask.producer import Runner, ThreadRunner
from sseflask.response import HANDOVER
from sseflask.ring import BATCH_BYTES, Entry, Frames
from tests.brokers.test_sqlite import ShiftedTime
from tests.live.process import wait_until
from tests.viewers import renew_before_listening

OPEN, RESET, END, ERROR = "stream-open", "stream-reset", "stream-end", "error"
OTHER_LIFE = "ba9876543210-5"


class Received(NamedTuple):
    """One block of a stream: its own fields, not what a client keeps from earlier ones."""

    event: str | None
    data: str | None
    id: str | None

    @property
    def json(self) -> Any:
        """The data, read."""
        return json.loads(self.data or "null")


class Sink:
    """A client's connection that takes everything, until it is blocked.

    Attributes:
        takes: How many writes block it; None for no such number.
        writes: What was written, each write on its own.
        end: How it ended: `"clean"`, `"cut"`, or `"gone"` where the client hung up; None while it is open.
        blocked_since: As for every sink.
    """

    def __init__(self, stream: Stream, takes: int | None = None) -> None:
        self.stream = stream
        self.takes = takes
        self.writes: list[bytes] = []
        self.end: str | None = None
        self.blocked_since: float | None = None

    def write(self, data: bytes) -> bool:
        """Takes frames."""
        assert self.blocked_since is None, "written to a connection that takes nothing"
        if self.end is None:
            self.writes.append(data)
            if len(self.writes) == self.takes:
                self.blocked_since = time.monotonic() - 1.0
        return self.blocked_since is None

    def write_shared(self, frames: Frames) -> bool:
        """Takes frames that many clients get."""
        return self.write(frames.data)

    def wait(self) -> None:
        """Nothing waits here."""

    def finish(self, last: bytes) -> None:
        """Ends cleanly."""
        if self.end is None:
            if last:
                self.writes.append(last)
            self.close("clean")

    def abort(self) -> None:
        """Ends now."""
        if self.end is None:
            self.close("cut")

    def close(self, end: str) -> None:
        """The connection is closed."""
        self.end = end
        self.blocked_since = None
        self.stream.sink_ended()


class Handover:
    """Takes the stream over that a request opens, as a worker does."""

    def __init__(self, takes: int | None) -> None:
        self.takes = takes
        self.sink: Sink | None = None

    def runner(self) -> Runner:
        """Nothing here needs one."""
        return ThreadRunner()

    def offer(self) -> None:
        """A stream is about to start."""

    def take(self, stream: Stream, handoff: Handoff) -> bool:
        """Takes it."""
        self.sink = sink = Sink(stream, self.takes)
        held, is_all = handoff.detach()
        stream.attach(sink)
        if held:
            sink.write(held)
        if is_all:
            sink.finish(b"")
        stream.resume()
        return True


class Client:
    """One request for a stream, and its connection.

    Attributes:
        status: Of the response.
    """

    def __init__(self, status: int, sink: Sink | None) -> None:
        self.status = status
        self._sink = sink

    @property
    def sink(self) -> Sink:
        """The connection."""
        assert self._sink is not None, f"there is no stream but a {self.status}"
        return self._sink

    @property
    def reason(self) -> CloseReason | None:
        """Why the stream ended."""
        return self.sink.stream.reason

    @property
    def bytes(self) -> bytes:
        """All that was written."""
        return b"".join(self.sink.writes)

    @property
    def received(self) -> list[Received]:
        """The blocks that were written."""
        return blocks(self.bytes)

    @property
    def data(self) -> list[str | None]:
        """The data of those that were published."""
        return [one.data for one in self.received if one.event not in (OPEN, RESET)]

    @property
    def names(self) -> list[str | None]:
        """The names of the events."""
        return [one.event for one in self.received]

    @property
    def last_event_id(self) -> str:
        """What the client says when it comes back."""
        decoder = EventDecoder()
        decoder.feed(self.bytes)
        return decoder.last_event_id

    def block(self) -> None:
        """The connection takes nothing from here on, and has not for a while."""
        self.sink.blocked_since = time.monotonic() - 1.0

    def unblock(self) -> None:
        """It does again."""
        self.sink.blocked_since = None
        self.sink.stream.resume()

    def hang_up(self) -> None:
        """The client closes the connection."""
        if self._sink is not None and self._sink.end is None:
            self._sink.close("gone")


class World:
    """An app and its clients."""

    def __init__(self, **settings: Any) -> None:
        self.app = Flask("app")
        self.app.config.update(settings)
        self.sse = SSE(self.app)
        self.clients: list[Client] = []
        self._view: Callable[[], Response] = Response
        self.app.add_url_rule("/", "view", self._respond)

    def _respond(self) -> Response:
        return self._view()

    @property
    def broker(self) -> Broker:
        """The app's."""
        broker: Broker = self.app.extensions["sse"].broker
        return broker

    @property
    def position(self) -> str:
        """The head of the log."""
        return str(self.broker.position)

    def connect(self, *channels: str, last_event_id: str | None = None, takes: int | None = None, **options: Any) -> Client:
        """Opens a stream, whose connection blocks after `takes` writes."""
        self._view = lambda: self.sse.subscribe(*(channels or ("news",)), **options)
        handover = Handover(takes)
        headers = {} if last_event_id is None else {"Last-Event-ID": last_event_id}
        response = self.app.test_client().get("/", headers=headers, environ_overrides={HANDOVER: handover})
        client = Client(response.status_code, handover.sink)
        self.clients.append(client)
        return client

    def publish(self, *data: str, channel: str = "news", **options: Any) -> str:
        """Publishes some events. Returns the last one's id."""
        return [self.sse.publish(one, channel=channel, **options) for one in data][-1]

    def fill(self, count: int, channel: str = "news", data: str = "x") -> None:
        """Publishes as many events of the same data."""
        for _ in range(count):
            self.sse.publish(data, channel=channel)


MakeWorld = Callable[..., World]


@pytest.fixture
def make_world() -> Iterator[MakeWorld]:
    """Makes apps with the given settings; all streams have ended afterwards."""
    worlds: list[World] = []

    def make(**settings: Any) -> World:
        worlds.append(World(**settings))
        return worlds[-1]

    yield make
    for world in worlds:
        for client in world.clients:
            client.hang_up()
    wait_until(lambda: not process.current().streams, message="all streams have ended")


@pytest.fixture
def world(make_world: MakeWorld) -> World:
    """One that keeps eight events."""
    return make_world(SSE_HISTORY=8)


def blocks(data: bytes) -> list[Received]:
    """The blocks of a stream, each on its own."""
    assert data.endswith(b"\n\n") or not data
    found = []
    for block in data.decode().split("\n\n")[:-1]:
        fields: dict[str, str] = {}
        for line in block.split("\n"):
            name, _, value = line.partition(": ")
            fields[name] = f"{fields[name]}\n{value}" if name in fields else value
        found.append(Received(fields.get("event"), fields.get("data"), fields.get("id")))
    return found


def resets() -> int:
    """The resets that this process has counted."""
    count: int = process.current().stats()["resets"]
    return count


class TestOpening:
    """What a client gets first."""

    def test_new_client(self, world: World) -> None:
        """A client that says nothing gets the open event, whose id is the head and whose data names the channels."""
        world.publish("before")
        client = world.connect("news", "other", "news")
        assert client.received == [Received(OPEN, '{"channels":["news","other"]}', world.position)]

    def test_nothing_missed(self, world: World) -> None:
        """A client that has missed nothing gets the open event with the position that it has."""
        position = world.publish("1")
        world.publish("elsewhere", channel="other")
        client = world.connect(last_event_id=position)
        assert client.received == [Received(OPEN, '{"channels":["news"]}', position)]

    def test_replay(self, world: World) -> None:
        """A client that comes back gets the open event with its own position, then what it missed, in order."""
        position = world.publish("1")
        world.publish("2", "3")
        client = world.connect(last_event_id=position)
        world.publish("4")
        assert client.received[0] == Received(OPEN, '{"channels":["news"]}', position)
        assert client.data == ["2", "3", "4"]
        assert RESET not in client.names

    def test_id_of_the_open_event(self, world: World) -> None:
        """A client that saw nothing but the open event resumes from it."""
        first = world.connect()
        first.hang_up()
        world.publish("1", "2")
        assert world.connect(last_event_id=first.last_event_id).data == ["1", "2"]

    def test_own_id(self, world: World) -> None:
        """A publisher's own id is a position like any other; the open event gives it as one of ours."""
        world.publish("1", id="order 7")
        ours = world.position
        world.publish("2")
        client = world.connect(last_event_id="order 7")
        assert client.received[0].id == ours
        assert client.data == ["2"]

    @pytest.mark.parametrize("asked", [OTHER_LIFE, "never heard of"])
    def test_reset(self, world: World, asked: str) -> None:
        """A position that says nothing here is reset first of all, without an id; all that is retained follows under its own."""
        before = resets()
        ids = [world.publish("1"), world.publish("2")]
        client = world.connect(last_event_id=asked)
        reset, opened, *events = client.received
        assert (reset.event, reset.id) == (RESET, None)
        assert reset.json == {"reason": "epoch" if asked == OTHER_LIFE else "unknown_id", "position": asked}
        assert (opened.event, opened.id) == (OPEN, None)
        assert events == [Received(None, "1", ids[0]), Received(None, "2", ids[1])]
        assert resets() == before + 1
        assert client.sink.end is None

    def test_reset_with_nothing_to_replay(self, world: World) -> None:
        """Where nothing is retained, the reset event carries the new position, from which the client resumes without another."""
        world.publish("elsewhere", channel="other")
        client = world.connect(last_event_id=OTHER_LIFE)
        assert [one.id for one in client.received] == [world.position, world.position]
        world.publish("1")
        again = world.connect(last_event_id=client.received[0].id)
        assert RESET not in again.names and again.data == ["1"]

    def test_history(self, world: World) -> None:
        """A client of whose channel something is gone is reset, and goes on with what is left, and with what follows."""
        position = world.publish("0")
        world.publish(*map(str, range(1, 21)))
        client = world.connect(last_event_id=position)
        assert client.received[0] == Received(
            RESET, json.dumps({"reason": "history", "position": position}, separators=(",", ":")), None
        )
        assert client.received[1] == Received(OPEN, '{"channels":["news"]}', None)
        assert client.data == [str(number) for number in range(13, 21)]
        world.publish("21")
        assert client.data[-1] == "21" and client.sink.end is None
        again = world.connect(last_event_id=client.last_event_id)
        assert again.names == [OPEN]

    def test_history_of_another_life(self, world: World) -> None:
        """A client of another life gets what is retained though the beginning of this one has gone."""
        world.publish(*map(str, range(20)))
        client = world.connect(last_event_id=OTHER_LIFE)
        assert client.names[:2] == [RESET, OPEN]
        assert client.data == [str(number) for number in range(12, 20)]
        assert client.sink.end is None

    def test_history_of_several(self, world: World) -> None:
        """With several channels, all that is retained of each follows the reset, in the order of publication."""
        position = world.publish("0")
        for number in range(1, 13):
            world.publish(str(number), channel="quiet" if number in (2, 9) else "news")
        client = world.connect("news", "quiet", last_event_id=position)
        assert client.names[:2] == [RESET, OPEN]
        assert client.data == [str(number) for number in (2, *range(4, 13))]
        world.publish("13")
        assert client.data[-1] == "13" and client.sink.end is None

    def test_gap_within_a_replay(self, world: World) -> None:
        """A reset covers what was gone before it, nothing that goes while the client reads what was left."""
        position = world.publish("0")
        world.fill(20, data="x" * (BATCH_BYTES // 2))
        client = world.connect(last_event_id=position, takes=2)
        assert client.names[:2] == [RESET, OPEN] and 1 <= len(client.data) < 8
        world.fill(8)
        client.unblock()
        assert (client.sink.end, client.reason) == ("cut", CloseReason.SLOW)

    def test_own_id_with_a_gap_elsewhere(self, world: World) -> None:
        """An own id is a position that can be too old, for the other channels asked for."""
        world.publish("0", channel="quiet", id="mine")
        world.fill(20)
        client = world.connect("news", "quiet", last_event_id="mine")
        assert client.names[:2] == [RESET, OPEN]
        assert client.received[0].json == {"reason": "history", "position": "mine"}
        assert len(client.data) == 8 and client.sink.end is None

    @pytest.mark.parametrize("channels", [("news",), ("news", "other")])
    @pytest.mark.parametrize("options", [{}, {"snapshot": lambda: ["shown"]}], ids=["empty", "snapshot"])
    def test_gap_after_a_reset(self, world: World, channels: tuple[str, ...], options: dict[str, Any]) -> None:
        """A reset that gave the client a position covers nothing that is published, and gone, after it."""
        client = world.connect(*channels, last_event_id=OTHER_LIFE, takes=1, **options)
        assert EventId.parse(client.last_event_id) == world.broker.position
        world.fill(20)
        client.unblock()
        assert (client.sink.end, client.reason) == ("cut", CloseReason.SLOW)
        assert world.connect(*channels, last_event_id=client.last_event_id).received[0].json["reason"] == "history"

    @pytest.mark.parametrize("comes_back", [False, True])
    @pytest.mark.parametrize("channels", [("news",), ("news", "other")])
    def test_another_life_before_it_listens(
        self, world: World, monkeypatch: pytest.MonkeyPatch, channels: tuple[str, ...], comes_back: bool
    ) -> None:
        """A log that begins anew between position and listening is told by a reset, and what it then gets follows."""
        position = world.publish("1", "2", "3")
        before = resets()
        renew_before_listening(world.broker, monkeypatch)
        client = world.connect(*channels, last_event_id=position if comes_back else None)
        world.publish("4", "5")
        assert client.names == [OPEN, RESET, OPEN, None, None]
        assert client.received[1].json == {"reason": "epoch", "position": position}
        assert client.data == ["4", "5"]
        assert client.last_event_id == world.position
        assert resets() == before + 1

    def test_open_event_without_a_name(self, make_world: MakeWorld) -> None:
        """`SSE_OPEN_EVENT = None` opens with an id alone, and with nothing where there is no id yet."""
        world = make_world(SSE_OPEN_EVENT=None)
        assert world.connect().bytes == f"id: {world.position}\n\n".encode()
        world.publish("1")
        assert world.connect(last_event_id=OTHER_LIFE).names == [RESET, None]

    def test_names_of_events(self, make_world: MakeWorld) -> None:
        """The open and reset events have the names that the settings give them."""
        world = make_world(SSE_OPEN_EVENT="hello", SSE_RESET_EVENT="start-over")
        world.publish("1")
        assert world.connect(last_event_id=OTHER_LIFE).names == ["start-over", "hello", None]

    def test_retry(self, make_world: MakeWorld) -> None:
        """The reconnection time comes before everything else."""
        assert make_world(SSE_RETRY=1500).connect().bytes.startswith(b"retry: 1500\n\nid: ")


class TestSnapshot:
    """What `snapshot` shows first (DELIVERY 9)."""

    def test_order(self, world: World) -> None:
        """The open event and the snapshot carry no ids until its last event, which carries the position."""
        world.publish("before")
        position = world.position
        client = world.connect(snapshot=lambda: iter([{"a": 1}, "two", ServerSentEvent("three", event="row", id="own", retry=5)]))
        world.publish("live")
        assert client.received == [
            Received(OPEN, '{"channels":["news"]}', None),
            Received(None, '{"a":1}', None),
            Received(None, "two", None),
            Received("row", "three", position),
            Received(None, "live", world.position),
        ]

    @pytest.mark.parametrize("shown", ["text", b"text", {"a": [1, 2]}, ServerSentEvent("text", id="own")], ids=repr)
    def test_one_event(self, world: World, shown: Any) -> None:
        """A snapshot of one event needs no list; its id is the position, not its own."""
        client = world.connect(snapshot=lambda: shown)
        assert [one.id for one in client.received] == [None, world.position]
        assert client.received[1].data in ("text", '{"a":[1,2]}')

    @pytest.mark.parametrize("shown", [None, [], ()])
    def test_empty(self, world: World, shown: Any) -> None:
        """An empty snapshot is followed by an open event with the position, so that the client can resume."""
        client = world.connect(snapshot=lambda: shown)
        assert [(one.event, one.id) for one in client.received] == [(OPEN, None), (OPEN, world.position)]

    def test_cut_off(self, world: World) -> None:
        """A client that is cut off anywhere in the snapshot has no position, and starts anew."""
        client = world.connect(snapshot=lambda: [str(number) for number in range(5)])
        data = client.bytes
        for length in range(len(data)):
            decoder = EventDecoder()
            decoder.feed(data[:length])
            assert decoder.last_event_id == ""

    def test_position(self, world: World) -> None:
        """A snapshot that takes an argument gets the position, as the ids have it."""
        asked: list[str] = []
        world.publish("1")

        def snapshot(position: str) -> list[str]:
            asked.append(position)
            return ["shown"]

        client = world.connect(snapshot=snapshot)
        assert asked == [world.position]
        assert client.received[-1].id == world.position

    def test_optional_argument(self, world: World) -> None:
        """An argument that has a default keeps it."""
        assert world.connect(snapshot=lambda what="default": [what]).data == ["default"]

    def test_published_meanwhile(self, world: World) -> None:
        """What is published while the snapshot is taken follows it: never missing, though it may have been shown already."""

        def snapshot() -> list[str]:
            world.publish("meanwhile")
            return ["shown"]

        position = world.position
        client = world.connect(snapshot=snapshot)
        assert client.data == ["shown", "meanwhile"]
        assert [one.id for one in client.received] == [None, position, world.position]

    def test_resumed(self, world: World) -> None:
        """A client that can resume gets what it missed and no snapshot."""
        position = world.publish("1")
        world.publish("2")

        def snapshot() -> list[str]:
            raise AssertionError("it isn't needed")

        client = world.connect(last_event_id=position, snapshot=snapshot)
        assert client.data == ["2"] and client.received[0].id == position

    @pytest.mark.parametrize("gone", [True, False])
    def test_after_a_reset(self, world: World, gone: bool) -> None:
        """After a reset the snapshot is taken again, and stands for all that is retained; the reset carries no id."""
        position = world.publish("0")
        world.fill(20)
        client = world.connect(last_event_id=position if gone else OTHER_LIFE, snapshot=lambda: ["a", "b"])
        assert [(one.event, one.id) for one in client.received] == [
            (RESET, None),
            (OPEN, None),
            (None, None),
            (None, world.position),
        ]
        assert client.data == ["a", "b"]
        world.publish("live")
        assert client.data == ["a", "b", "live"]

    def test_another_life_meanwhile(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        """A log that begins anew while the snapshot is taken ends the stream: its client's next request shows it again."""
        position = world.publish("1", "2", "3")
        renew_before_listening(world.broker, monkeypatch)
        client = world.connect(snapshot=lambda: "state")
        assert (client.reason, client.sink.end) == (CloseReason.RESET, "clean")
        assert client.received[1] == Received(None, "state", position)
        world.publish("4")
        again = world.connect(last_event_id=client.last_event_id, snapshot=lambda: "new state")
        assert (again.names, again.data) == ([RESET, OPEN, None], ["new state"])

    def test_failure(self, world: World) -> None:
        """A snapshot that fails is an error of the view; nothing is opened."""

        def snapshot() -> list[str]:
            raise ValueError("no state")

        assert world.connect(snapshot=snapshot).status == 500
        assert world.broker.emitter.channels() == []


class TestLive:
    """What a client gets then."""

    def test_several_channels(self, world: World) -> None:
        """Several channels arrive in the order of publication, and others not at all."""
        client = world.connect("a", "b")
        for number, channel in enumerate("abcbbaca"):
            world.publish(str(number), channel=channel)
        assert client.data == ["0", "1", "3", "4", "5", "7"]

    def test_replay_of_several(self, world: World) -> None:
        """They are replayed in that order too."""
        position = world.position
        for number, channel in enumerate("abcbbaca"):
            world.publish(str(number), channel=channel)
        assert world.connect("b", "a", last_event_id=position).data == ["0", "1", "3", "4", "5", "7"]

    def test_added_channel(self, world: World) -> None:
        """A client that comes back and asks for one channel more gets what was published to it since (DELIVERY 6)."""
        world.publish("long before", channel="b")
        client = world.connect("a")
        client.hang_up()
        world.publish("1", channel="b")
        world.publish("2", channel="a")
        assert world.connect("a", "b", last_event_id=client.last_event_id).data == ["1", "2"]

    def test_frames(self, world: World) -> None:
        """An event arrives as it was published, under the id that its publisher was given."""
        client = world.connect()
        first = world.publish("two\nlines", event="note", retry=5)
        world.publish("x", id="own")
        assert client.sink.writes[1:] == [
            f"id: {first}\nevent: note\nretry: 5\ndata: two\ndata: lines\n\n".encode(),
            b"id: own\ndata: x\n\n",
        ]

    def test_shared_bytes(self, world: World) -> None:
        """All clients that have got as far share one object, for one event and for several."""
        clients = [world.connect() for _ in range(5)]
        world.publish("1")
        assert len({id(client.sink.writes[-1]) for client in clients}) == 1
        for client in clients:
            client.block()
        world.publish("2", "3", "4")
        for client in clients:
            client.unblock()
        assert len({id(client.sink.writes[-1]) for client in clients}) == 1

    @pytest.mark.parametrize("channels", [("news",), ("news", "other")])
    def test_coalescing(self, world: World, channels: tuple[str, ...]) -> None:
        """What waits for a client goes out in one write."""
        client = world.connect(*channels)
        client.block()
        before = len(client.sink.writes)
        world.publish("1", "2", "3")
        assert len(client.sink.writes) == before
        client.unblock()
        assert len(client.sink.writes) == before + 1
        assert client.data == ["1", "2", "3"]

    @pytest.mark.parametrize("options", [{}, {"filter": bool}, {"event": "message"}], ids=repr)
    def test_bounded_writes(self, make_world: MakeWorld, options: dict[str, Any]) -> None:
        """No write is larger than a batch, unless it is one larger event; nothing is lost at the seams."""
        world = make_world()
        client = world.connect(**options)
        client.block()
        sizes = [30_000] * 10 + [BATCH_BYTES * 2] + [30_000] * 10
        for number, size in enumerate(sizes):
            world.publish(f"{number}:{'x' * size}")
        client.unblock()
        writes = client.sink.writes[1:]
        assert all(len(write) <= BATCH_BYTES or len(blocks(write)) == 1 for write in writes)
        assert 5 <= len(writes) <= 12
        assert [(one or "").partition(":")[0] for one in client.data] == [str(number) for number in range(21)]

    def test_counters(self, world: World) -> None:
        """The stream counts the events and bytes that it has sent."""
        client = world.connect()
        client.block()
        world.publish("1", "2")
        client.unblock()
        world.publish("3")
        assert client.sink.stream.events_sent == 3
        assert client.sink.stream.bytes_sent == len(client.bytes)

    def test_leaving(self, world: World) -> None:
        """A client that hangs up leaves nothing behind but the history."""
        client, other = world.connect("a", "b"), world.connect("b")
        channel = world.sse.channel("b")
        with world.app.app_context():
            assert channel.subscribers == 2
        client.hang_up()
        with world.app.app_context():
            assert channel.subscribers == 1
            assert world.sse.stats()["subscriptions"] == 1
        other.hang_up()
        assert world.broker.emitter.channels() == []
        assert client.reason is CloseReason.DISCONNECTED

    def test_hangs_up_while_others_are_written_to(self, world: World) -> None:
        """A client whose connection breaks in the middle of an event keeps it from nobody else."""
        first, victim, last = (world.connect() for _ in range(3))

        class Broken(Sink):
            """Breaks at the next write."""

            def write(self, data: bytes) -> bool:
                self.close("gone")
                return True

        victim.sink.__class__ = Broken
        world.publish("1")
        world.publish("2")
        assert first.data == last.data == ["1", "2"]
        assert victim.data == [] and world.sse.channel("news").subscribers == 2

    def test_drain(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        """A worker that stops sends what was published before, whose turn hadn't come yet, and then the end."""
        client = world.connect()
        with monkeypatch.context() as patch:
            patch.setattr(world.broker.waker, "wake", lambda channel: None)
            world.publish("1", "2")
        assert client.data == []
        client.sink.stream.drain()
        assert (client.data[:2], client.reason, client.sink.end) == (["1", "2"], CloseReason.SHUTDOWN, "clean")

    def test_publishes_at_the_end_of_a_stream(self, world: World) -> None:
        """What is published because a stream has ended reaches all others, in order."""
        client, other = world.connect(), world.connect()
        client.sink.stream.on_close(lambda: world.publish("gone"))
        world.publish("1")
        client.hang_up()
        assert other.data == ["1", "gone"]


class TestMissing:
    """What a process has missed of one channel, for those who read it together with others."""

    @pytest.fixture
    def world(self, make_world: MakeWorld, tmp_path: Path) -> World:
        """One whose log lies in a file."""
        return make_world(SSE_BROKER_URL=f"sqlite:///{tmp_path}/log.db")

    @pytest.fixture
    def broker(self, world: World) -> SharedBroker:
        """Its broker."""
        assert isinstance(world.broker, SharedBroker)
        return world.broker

    def miss(self, world: World, broker: SharedBroker, *data: str) -> None:
        """Publishes what the process doesn't hear of."""
        missed: list[Entry] = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(broker, "arrived", lambda head, entries: missed.extend(entries))
            world.publish(*data)
            wait_until(lambda: len(missed) == len(data))

    def test_wait(self, world: World, broker: SharedBroker, monkeypatch: pytest.MonkeyPatch) -> None:
        """As long as it can't be read, streams of several channels wait, the others don't; then they get all, in order."""
        both, alone = world.connect("news", "other"), world.connect("other")
        self.miss(world, broker, "1")

        def fail(after: object) -> NoReturn:
            raise BrokerUnavailable("not now")

        monkeypatch.setattr(broker.store, "read", fail)
        world.publish("2")
        world.publish("3", channel="other")
        assert (both.data, alone.data) == ([], ["3"])
        monkeypatch.undo()
        wait_until(lambda: both.data)
        assert both.data == ["1", "2", "3"]

    def test_nothing_in_it(self, world: World, broker: SharedBroker) -> None:
        """Those who waited go on also where nothing had been missed."""
        client = world.connect("news", "other")
        with broker.emitter.lock:
            broker._holes.add("news")
        world.publish("1", channel="other")
        wait_until(lambda: client.data == ["1"])

    def test_read_ahead(self, world: World, broker: SharedBroker, monkeypatch: pytest.MonkeyPatch) -> None:
        """What is read of a channel beyond what it missed is sent after what other channels had before that."""
        client = world.connect("news", "other")
        self.miss(world, broker, "1")
        read = broker.store.read

        def publishing(after: Mapping[str, int | None]) -> Mapping[str, Reading]:
            monkeypatch.undo()
            broker.store.publish(Publication("other", b"data: 3\n\n", "t3"))
            broker.store.publish(Publication("news", b"data: 4\n\n", "t4"))
            return read(after)

        monkeypatch.setattr(broker.store, "read", publishing)
        world.publish("2")
        wait_until(lambda: client.data[-1:] == ["4"])
        assert client.data == ["1", "2", "3", "4"]


class TestSelecting:
    """`filter` and `event`."""

    def test_filter(self, world: World) -> None:
        """A filter sees each event as a client would, and decides."""
        seen: list[ServerSentEvent] = []

        def takes(event: ServerSentEvent) -> object:
            seen.append(event)
            return event.data == "yes"

        client = world.connect(filter=takes)
        own = world.publish("no", event="note")
        world.publish("yes")
        assert client.data == ["yes"]
        assert (seen[0].data, seen[0].event, seen[0].id) == ("no", "note", own)

    @pytest.mark.parametrize(
        ("names", "expected"),
        [("a", ["1"]), (["a", "b"], ["1", "2"]), ("message", ["0"]), (("message", "b"), ["0", "2"]), ([], []), ("never", [])],
    )
    def test_event(self, world: World, names: Any, expected: list[str]) -> None:
        """`event` names those that the client gets, `message` those without a name."""
        client = world.connect(event=names)
        for number, name in enumerate((None, "a", "b")):
            world.publish(str(number), event=name)
        assert client.data == expected

    def test_replay(self, world: World) -> None:
        """A replay is filtered like everything else."""
        position = world.position
        world.publish("1", "2", "3")
        assert world.connect(last_event_id=position, filter=lambda event: event.data != "2").data == ["1", "3"]

    @pytest.mark.parametrize(
        "options", [{"filter": lambda event: False}, {"event": "never"}, {"event": []}], ids=["filter", "event", "none"]
    )
    def test_what_is_never_hidden(self, make_world: MakeWorld, options: dict[str, Any]) -> None:
        """Open, reset and end events reach a client that wants nothing (DELIVERY 10)."""
        world = make_world(SSE_HISTORY=64)
        world.publish("1")
        client = world.connect(last_event_id=OTHER_LIFE, **options)
        world.publish("2")
        world.sse.channel("news").close("bye")
        assert client.names[0] == RESET and set(client.names[1:-1]) == {OPEN} and client.names[-1] == END
        assert client.received[-1].data == "bye" and client.sink.end == "clean"

    def test_error_is_never_hidden(self, world: World) -> None:
        """An error event reaches a client that wants nothing."""
        client = world.connect(filter=lambda event: False, timeout=5)
        client.sink.stream.tick(time.monotonic() + 6)
        assert client.names == [OPEN, ERROR]
        assert client.received[-1].json["error_type"] == "timeout"

    @pytest.mark.parametrize("channels", [("news",), ("news", "other")])
    def test_position_keeps_up(self, make_world: MakeWorld, channels: tuple[str, ...]) -> None:
        """A client that wants nothing gets a new position before its own falls a quarter of the history behind."""
        world = make_world(SSE_HISTORY=40)
        client = world.connect(*channels, filter=lambda event: False)
        for _ in range(400):
            world.publish("hidden")
            position = EventId.parse(client.last_event_id)
            assert position is not None and world.broker.position.seq - position.seq <= 10
        assert 39 <= len(client.received) <= 41 and set(client.names) == {OPEN}
        assert client.sink.stream.events_sent == 0
        client.hang_up()
        world.fill(29)
        assert world.connect(*channels, last_event_id=client.last_event_id).names[0] == OPEN

    def test_position_keeps_up_with_a_short_history(self, make_world: MakeWorld) -> None:
        """The quarter is that of the channel's own history, where that is shorter than the others'."""
        world = make_world(SSE_HISTORY=256)
        client = world.connect(filter=lambda event: False)
        channel = world.sse.channel("news", history=8)
        for _ in range(100):
            channel.publish("hidden")
            position = EventId.parse(client.last_event_id)
            assert position is not None and world.broker.position.seq - position.seq <= 2

    @pytest.mark.parametrize("channels", [("news",), ("news", "other")])
    def test_position_keeps_up_with_the_time(
        self, make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch, channels: tuple[str, ...]
    ) -> None:
        """Where little is published, it gets one before its own is a quarter of what the history keeps too old."""
        world = make_world(SSE_HISTORY_SECONDS=100)
        clock = ShiftedTime()
        for module in (sseflask.subscription, sseflask.waker):
            monkeypatch.setattr(module, "time", clock)
        client = world.connect(*channels, filter=lambda event: event.data == "yes")
        positions = []
        for _ in range(30):
            clock.advance(10)
            world.publish("hidden")
            positions.append(world.position)
        # Each third one is more than 25 s after the one before.
        assert [one.id for one in client.received[1:]] == positions[2::3] and set(client.names) == {OPEN}
        # What it gets itself is a position too.
        clock.advance(10)
        world.publish("yes", "hidden")
        clock.advance(20)
        world.publish("hidden")
        assert client.names[11:] == [None]
        # One that comes back may come from long ago.
        asked = client.last_event_id
        client.hang_up()
        again = world.connect(*channels, last_event_id=asked, filter=lambda event: False)
        assert again.names == [OPEN, OPEN] and again.last_event_id == world.position

    def test_position_after_a_reset(self, make_world: MakeWorld) -> None:
        """A client of which all that is retained is hidden is reset once, not at each reconnect."""
        world = make_world()
        world.publish("hidden")
        client = world.connect(last_event_id=OTHER_LIFE, filter=lambda event: False)
        assert client.names[0] == RESET
        assert EventId.parse(client.last_event_id) == world.broker.position

    def test_position_of_those_that_get_something(self, make_world: MakeWorld) -> None:
        """A client that gets something now and then needs no position besides."""
        world = make_world(SSE_HISTORY=40)
        client = world.connect(filter=lambda event: event.data == "yes")
        for _ in range(40):
            world.publish(*["no"] * 8, "yes")
        assert client.names == [OPEN, *[None] * 40]

    def test_failing_filter(self, world: World, caplog: pytest.LogCaptureFixture) -> None:
        """A filter that raises ends the stream with the error event, after what it took before; it is called no more."""
        calls: list[object] = []

        def takes(event: ServerSentEvent) -> bool:
            calls.append(event.data)
            if event.data == "3":
                raise ValueError("secret")
            return True

        client, other = world.connect(filter=takes), world.connect()
        client.block()
        world.publish("1", "2", "3", "4")
        client.unblock()
        world.publish("5")
        assert client.names == [OPEN, None, None, ERROR]
        assert client.data[:2] == ["1", "2"]
        assert client.received[-1].json["error_type"] == "internal_error" and "secret" not in (client.data[-1] or "")
        assert (client.sink.end, client.reason) == ("clean", CloseReason.ERROR)
        assert calls == ["1", "2", "3"]
        failures = [record for record in caplog.records if record.levelno >= logging.ERROR]
        assert len(failures) == 1 and "secret" in caplog.text
        assert other.data == ["1", "2", "3", "4", "5"]
        # It has not been given what it failed on.
        assert world.connect(last_event_id=client.last_event_id).data == ["3", "4", "5"]

    @pytest.mark.parametrize("error", [StreamError(ValueError("oops")), StreamError("oops", details={"left": {5}})], ids=repr)  # type: ignore[arg-type]
    def test_unwritable_failure(self, world: World, error: StreamError, caplog: pytest.LogCaptureFixture) -> None:
        """A filter's error that JSON can't express ends the stream all the same, and its client is told so."""

        def takes(event: ServerSentEvent) -> bool:
            raise error

        client = world.connect(filter=takes)
        world.publish("1", "2")
        assert client.names == [OPEN, ERROR]
        assert (client.sink.end, client.reason) == ("clean", CloseReason.ERROR)
        assert "can't be sent with its details" in caplog.text


class TestSlowClients:
    """Clients that fall behind their channel's history."""

    @pytest.mark.parametrize("channels", [("news",), ("news", "other")])
    def test_disconnect(self, world: World, channels: tuple[str, ...]) -> None:
        """By default such a client is cut, counted, and told what is gone when it comes back."""
        before = process.current().stats()["slow_clients"]
        client, other = world.connect(*channels), world.connect()
        world.publish("0")
        client.block()
        world.publish(*map(str, range(1, 21)))
        assert not client.sink.stream.closed
        client.unblock()
        assert (client.sink.end, client.reason) == ("cut", CloseReason.SLOW)
        assert client.data == ["0"] and len(other.data) == 21
        assert process.current().stats()["slow_clients"] == before + 1
        again = world.connect(*channels, last_event_id=client.last_event_id)
        assert again.received[0].json["reason"] == "history"
        assert again.data == [str(number) for number in range(13, 21)]

    @pytest.mark.parametrize("channels", [("news",), ("news", "other")])
    def test_within_the_history(self, world: World, channels: tuple[str, ...]) -> None:
        """A client that is as far behind as the history reaches, and no further, misses nothing."""
        client = world.connect(*channels)
        client.block()
        world.publish(*map(str, range(8)))
        client.unblock()
        assert client.data == [str(number) for number in range(8)]
        assert RESET not in client.names and client.sink.end is None

    @pytest.mark.parametrize("channels", [("news",), ("news", "other")])
    def test_latest(self, make_world: MakeWorld, channels: tuple[str, ...]) -> None:
        """With `latest` it is told, with the position from which it goes on, and stays connected."""
        world = make_world(SSE_HISTORY=8, SSE_SLOW_CLIENT="latest")
        before = resets()
        client = world.connect(*channels)
        position = world.publish("0")
        client.block()
        world.publish(*map(str, range(1, 21)))
        client.unblock()
        reset = next(one for one in client.received if one.event == RESET)
        assert reset.json == {"reason": "slow", "position": position}
        assert resets() == before + 1
        world.publish("21", "22")
        assert client.data[0] == "0" and client.data[-2:] == ["21", "22"] and client.sink.end is None
        client.hang_up()
        world.publish("23")
        again = world.connect(*channels, last_event_id=reset.id)
        assert RESET not in again.names and again.data[-3:] == ["21", "22", "23"]

    @pytest.mark.parametrize("channels", [("news",), ("news", "other")])
    def test_latest_of_its_channels(self, make_world: MakeWorld, channels: tuple[str, ...]) -> None:
        """It goes on at the newest of its own channels, not of all: what they have before that may still be on its way here."""
        world = make_world(SSE_HISTORY=8, SSE_SLOW_CLIENT="latest")
        client = world.connect(*channels)
        client.block()
        newest = world.publish(*map(str, range(20)))
        world.sse.publish("", channel="unrelated")
        client.unblock()
        assert [one.id for one in client.received if one.event == RESET] == [newest]

    @pytest.mark.parametrize("channels", [("news",), ("news", "other")])
    def test_latest_keeps_the_end(self, make_world: MakeWorld, channels: tuple[str, ...]) -> None:
        """With `latest`, what is skipped never holds the end of a channel: its client would wait for ever."""
        world = make_world(SSE_HISTORY=8, SSE_SLOW_CLIENT="latest")
        client = world.connect(*channels)
        client.block()
        world.fill(20)
        world.sse.channel("news").close("bye")
        client.unblock()
        if len(channels) > 1:
            world.sse.channel("other").close("bye")
        assert RESET in client.names and client.data[-1] == "bye"
        assert client.sink.end == "clean" and client.last_event_id.endswith("-end")

    def test_latest_with_a_snapshot(self, make_world: MakeWorld) -> None:
        """A client that began with a snapshot is cut even so: only a new request can show the state of things again."""
        world = make_world(SSE_HISTORY=8, SSE_SLOW_CLIENT="latest")
        client = world.connect(snapshot=lambda: ["shown"])
        client.block()
        world.fill(20)
        client.unblock()
        assert client.sink.end == "cut"
        again = world.connect(last_event_id=client.last_event_id, snapshot=lambda: ["shown"])
        assert again.names == [RESET, OPEN, None] and again.data == ["shown"]

    def test_send_timeout(self, world: World) -> None:
        """A client that reads nothing for `SSE_SEND_TIMEOUT` is cut, whether it falls behind or not."""
        client = world.connect()
        client.block()
        client.sink.stream.tick(time.monotonic() + 31)
        assert (client.sink.end, client.reason) == ("cut", CloseReason.SLOW)

    def test_publisher_is_not_held_up(self, world: World) -> None:
        """A client that has been blocked for a while keeps no publisher waiting."""
        client = world.connect()
        client.block()
        started = time.monotonic()
        world.fill(2000)
        assert time.monotonic() - started < 10


class TestEnding:
    """`close` (DELIVERY 11)."""

    def test_end(self, world: World) -> None:
        """The end event has data, though it be empty, and a final id; the stream ends cleanly after it."""
        client = world.connect()
        world.publish("1")
        own = world.sse.channel("news").close()
        assert client.sink.writes[-1] == f"id: {own}-end\nevent: {END}\ndata: \n\n".encode()
        assert (client.sink.end, client.reason) == ("clean", CloseReason.COMPLETED)
        assert world.sse.channel("news").subscribers == 0

    @pytest.mark.parametrize(("data", "line"), [(None, ""), ("bye", "bye"), ({"a": 1}, '{"a":1}'), (0, "0")])
    def test_data(self, world: World, data: Any, line: str) -> None:
        """The end event carries what `close` is given."""
        client = world.connect()
        world.sse.channel("news").close(data)
        assert client.received[-1].data == line

    def test_204(self, world: World) -> None:
        """A client that comes back to what has ended gets 204, without any record: also when the name has been used again."""
        client = world.connect()
        world.sse.channel("news").close()
        last = client.last_event_id
        assert last.endswith("-end")
        assert world.connect(last_event_id=last).status == 204
        world.publish("of a new use")
        assert world.connect(last_event_id=last).status == 204
        world.broker.expire(time.monotonic() + 1e6)
        assert world.connect(last_event_id=last).status == 204

    def test_missed_end(self, world: World) -> None:
        """A client that wasn't there gets the end when it comes back, and none that comes for the first time."""
        client = world.connect()
        world.publish("1")
        client.hang_up()
        world.publish("2")
        world.sse.channel("news").close("bye")
        again = world.connect(last_event_id=client.last_event_id)
        assert again.data == ["2", "bye"] and again.sink.end == "clean"
        assert again.last_event_id.endswith("-end")
        assert world.connect().sink.end is None

    def test_name_is_used_again(self, world: World) -> None:
        """Who subscribes to a closed channel gets what it is used for next, and its next end."""
        world.sse.channel("news").close()
        client = world.connect()
        world.publish("1")
        world.sse.channel("news").close("bye")
        assert client.data == ["1", "bye"] and client.sink.end == "clean"

    def test_missed_end_before_another_use(self, world: World) -> None:
        """A client that missed the end gets that one, not what the name was used for since."""
        position = world.publish("1")
        world.sse.channel("news").close("bye")
        world.publish("of a new use")
        client = world.connect(last_event_id=position)
        assert client.data == ["bye"] and client.sink.end == "clean"

    def test_waiting_events_come_first(self, world: World) -> None:
        """What waits for a client comes before the end, in the same write."""
        client = world.connect()
        client.block()
        world.publish("1", "2")
        world.sse.channel("news").close("bye")
        world.publish("of a new use")
        client.unblock()
        assert client.data == ["1", "2", "bye"] and len(client.sink.writes) == 2

    def test_several(self, world: World) -> None:
        """A stream of several channels ends, with a final id, when the last of them has closed."""
        client = world.connect("a", "b", "c")
        for channel in "bca":
            world.sse.channel(channel).close(channel)
        assert client.data == ["b", "c", "a"]
        assert [(one.id or "").endswith("-end") for one in client.received] == [False, False, False, True]
        assert client.sink.end == "clean"
        assert world.connect("a", "b", "c", last_event_id=client.last_event_id).status == 204

    def test_several_one_of_which_goes_on(self, world: World) -> None:
        """While one is open, so is the stream; a client that comes back meanwhile gets the last end as the final one."""
        client = world.connect("a", "b")
        world.sse.channel("a").close("a")
        world.publish("1", channel="b")
        assert client.data == ["a", "1"] and client.sink.end is None
        client.hang_up()
        again = world.connect("a", "b", last_event_id=client.last_event_id)
        assert again.status == 200
        world.sse.channel("b").close("b")
        assert again.data == ["b"] and again.sink.end == "clean" and again.last_event_id.endswith("-end")

    def test_several_that_close_while_nobody_looks(self, world: World) -> None:
        """A client that missed all the ends gets them, the last one final."""
        position = world.position
        for channel in "ab":
            world.sse.channel(channel).close(channel)
        client = world.connect("a", "b", last_event_id=position)
        assert client.data == ["a", "b"] and client.sink.end == "clean" and client.last_event_id.endswith("-end")

    def test_several_closed_before(self, world: World) -> None:
        """Channels that had closed before count as closed, unless all had: then the client waits for their next use."""
        world.sse.channel("a").close()
        client = world.connect("a", "b")
        world.sse.channel("b").close("b")
        assert client.data == ["b"] and client.sink.end == "clean"
        other = world.connect("a", "b")
        world.publish("1", channel="a")
        assert other.data == ["1"] and other.sink.end is None

    def test_several_closed_long_before(self, world: World) -> None:
        """That holds too when the history of what had closed has expired."""
        world.sse.channel("a").close()
        world.broker.expire(time.monotonic() + 1e6)
        client = world.connect("a", "b")
        world.sse.channel("b").close("b")
        assert client.data == ["b"] and client.sink.end == "clean"

    def test_several_one_of_which_is_used_again(self, world: World) -> None:
        """A channel that is used again after its end is open: the stream goes on until it has closed again."""
        client = world.connect("a", "b")
        world.sse.channel("a").close("a")
        world.publish("1", channel="a")
        world.sse.channel("b").close("b")
        world.publish("2", channel="a")
        assert client.data == ["a", "1", "b", "2"] and client.sink.end is None
        world.sse.channel("a").close("a again")
        assert client.data[-1] == "a again" and client.sink.end == "clean"

    def test_several_used_again_and_hidden(self, world: World) -> None:
        """That holds too where what it is used for is hidden from the client."""
        client = world.connect("a", "b", event="never")
        world.sse.channel("a").close("a")
        world.publish("1", channel="a")
        world.sse.channel("b").close("b")
        assert client.sink.end is None

    def test_names(self, make_world: MakeWorld) -> None:
        """A channel's own names are those of its events and its end; the setting stands where it has none."""
        world = make_world(SSE_END_EVENT="finished")
        client, other = world.connect("excel:7"), world.connect("plain")
        excel = world.sse.channel("excel:7", event="EXCEL_STATUS", end_event="EXCEL_STATUS_END")
        excel.publish({"rows": 5})
        excel.publish("text", event="OTHER")
        excel.publish(ServerSentEvent("text", event="OWN"))
        excel.close()
        world.sse.channel("plain").close()
        assert client.names == [OPEN, "EXCEL_STATUS", "OTHER", "OWN", "EXCEL_STATUS_END"]
        assert other.names == [OPEN, "finished"]

    def test_end_event_as_an_ordinary_one(self, world: World) -> None:
        """An event that merely has the end event's name ends nothing."""
        client = world.connect()
        world.publish("x", event=END)
        world.publish("y")
        assert client.data == ["x", "y"] and client.sink.end is None

    def test_token(self, world: World) -> None:
        """A retry of `close` with the same token closes nothing that was opened since."""
        channel = world.sse.channel("news")
        first = channel.close(token="t")
        client = world.connect()
        world.publish("1")
        assert channel.close(token="t") == first
        assert client.sink.end is None


# The whole, against the list of everything that was published.


class Published(NamedTuple):
    """What was published."""

    channel: str
    data: str
    is_end: bool


class Visit:
    """One connection, and what it must get."""

    def __init__(self, client: Client, channels: tuple[str, ...], odd_only: bool, begins: dict[str, int]) -> None:
        self.client = client
        self.channels = channels
        self.odd_only = odd_only
        self.begins = begins
        self.is_blocked = False
        self.was_blocked = False


CHANNELS = ("a", "b", "c")


class Crowd:
    """Clients that come, block and go while events are published."""

    def __init__(self, world: World, chance: random.Random) -> None:
        self.world = world
        self.chance = chance
        self.published: list[Published] = []
        self.visits: list[Visit] = []
        self.now = time.monotonic()
        self.resets = 0

    def wanted(self, visit: Visit, number: int) -> bool:
        """Whether an event is for this client."""
        one = self.published[number - 1]
        return one.channel in visit.channels and (one.is_end or not visit.odd_only or number % 2 == 1)

    def publish(self) -> None:
        """Something is published."""
        channel = self.chance.choice(CHANNELS)
        number = len(self.published) + 1
        is_end = self.chance.random() < 0.04
        data = f"{number}:{'x' * self.chance.choice([0, 10, 20_000])}"
        self.published.append(Published(channel, data, is_end))
        own = self.world.sse.channel(channel).close(data) if is_end else self.world.publish(data, channel=channel)
        position = EventId.parse(own)
        assert position is not None and position.seq == number

    def connect(self) -> None:
        """A client comes, for the first time or with a position that some client had."""
        channels = tuple(self.chance.sample(CHANNELS, self.chance.randint(1, 3)))
        odd_only = self.chance.random() < 0.3
        asked: str | None = None
        if self.visits and self.chance.random() < 0.8:
            before = self.chance.choice(self.visits)
            channels, odd_only = before.channels, before.odd_only
            ids = [one.id for one in before.client.received if one.id is not None] if before.client.status == 200 else []
            # The last id mostly, for a reconnect; an earlier one for a client that lost its connection without being noticed.
            asked = (ids[-1] if self.chance.random() < 0.7 else self.chance.choice(ids)) if ids else None
        elif self.chance.random() < 0.2:
            asked = OTHER_LIFE
        # Where each channel begins for this client: at its position, or with the first event that is kept; that is a reset.
        position = EventId.parse(asked) if asked is not None else None
        head, log = len(self.published), self.world.broker.log
        begins = dict.fromkeys(channels, head if position is None else 0 if asked == OTHER_LIFE else position.seq)
        gone = False
        for channel, seq in begins.items():
            kept = [entry.seq for entry in log.merged([channel], seq)]
            after = [number for number in range(seq + 1, head + 1) if self.published[number - 1].channel == channel]
            if kept != after:
                gone = True
                begins[channel] = kept[0] - 1 if kept else head
        options: dict[str, Any] = {"filter": is_odd} if odd_only else {}
        client = self.world.connect(*channels, last_event_id=asked, **options)
        if position is not None and position.final:
            assert client.status == 204
            return
        visit = Visit(client, channels, odd_only, begins)
        self.visits.append(visit)
        assert (RESET in client.names) == (gone or asked == OTHER_LIFE)
        self.check(visit)

    def block(self) -> None:
        """A client stops to read, or reads again."""
        visit = self.chance.choice(self.visits)
        if visit.client.sink.end is not None:
            return
        if visit.is_blocked:
            visit.client.unblock()
        else:
            visit.client.block()
            visit.was_blocked = True
        visit.is_blocked = not visit.is_blocked
        self.check(visit)

    def hang_up(self) -> None:
        """A client goes."""
        self.chance.choice(self.visits).client.hang_up()

    def expire(self) -> None:
        """Time passes for the history."""
        self.world.broker.expire(self.now + self.chance.choice([0, 400]))

    def misses(self, visit: Visit, after: int, before: int, channel: str) -> bool:
        """Whether something between two positions was for this client, on one channel."""
        between = range(after + 1, before)
        return any(self.published[number - 1].channel == channel and self.wanted(visit, number) for number in between)

    def check(self, visit: Visit) -> None:
        """What a connection got is what was published after its position, in order, complete unless a reset says otherwise."""
        client = visit.client
        at = dict(visit.begins)
        last = 0
        for one in client.received:
            own = EventId.parse(one.id) if one.id is not None else None
            if one.event == RESET:
                self.resets += 1
                if own is not None:
                    at = dict.fromkeys(at, own.seq)
                continue
            if one.event == OPEN:
                if own is not None:
                    assert not any(self.misses(visit, seq, own.seq + 1, channel) for channel, seq in at.items())
                    at = dict.fromkeys(at, own.seq)
                continue
            assert own is not None and own.seq > last
            assert one.data == self.published[own.seq - 1].data
            assert self.wanted(visit, own.seq)
            assert not any(self.misses(visit, seq, own.seq, channel) for channel, seq in at.items())
            at = {channel: max(seq, own.seq) for channel, seq in at.items()}
            last = own.seq
        if client.sink.end is None and not visit.is_blocked:
            head = len(self.published) + 1
            assert not any(self.misses(visit, seq, head, channel) for channel, seq in at.items())
        if not visit.was_blocked:
            assert client.sink.end != "cut"
            assert not any(one.event == RESET and one.json["reason"] == "slow" for one in client.received)
        if client.sink.end == "clean":
            assert client.last_event_id.endswith("-end")


def is_odd(event: ServerSentEvent) -> bool:
    """A filter."""
    return int((event.data or "").partition(":")[0]) % 2 == 1


@pytest.mark.parametrize("slow_client", ["disconnect", "latest"])
@pytest.mark.parametrize("seed", range(6))
def test_any_mix(make_world: MakeWorld, seed: int, slow_client: str) -> None:
    """Whatever clients do, none gets a duplicate, a reorder, or a gap without a reset, nor a reset for nothing."""
    world = make_world(SSE_HISTORY=8, SSE_SLOW_CLIENT=slow_client)
    crowd = Crowd(world, random.Random(seed))
    crowd.connect()
    for _ in range(600):
        actions = [crowd.publish, crowd.connect, crowd.block, crowd.hang_up, crowd.expire]
        crowd.chance.choices(actions, weights=[20, 4, 6, 2, 0.5])[0]()
    for visit in crowd.visits:
        if visit.is_blocked and visit.client.sink.end is None:
            visit.is_blocked = False
            visit.client.unblock()
        crowd.check(visit)
    assert crowd.resets
