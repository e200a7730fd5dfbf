"""`sse.disconnect` and the streams that are being opened while it is called: none that had passed its check before stays open."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from flask import abort, request

from sseflask import EventSourceResponse, ServerSentEvent, control, current_stream
from sseflask.errors import BrokerUnavailable
from tests.live.process import wait_until
from tests.viewers import PATIENCE, MakeWorker, Viewer, Worker, make_worker

__all__ = ["make_worker"]

#: What may be named, by the name of a test's case.
WHICH: dict[str, dict[str, Any]] = {
    "client": {"client_key": "bob"},
    "channel": {"channel": "room"},
    "both": {"client_key": "bob", "channel": "room"},
}
#: The kinds of streams that read the channel, and those that only have a client.
READERS = ("snapshot", "view", "route", "task")
OTHERS = ("generator", "response", "run")


class House:
    """What a worker serves; each stream's opening can be held up after its check has been passed.

    Attributes:
        worker: Who serves it.
        members: Who may open a stream.
        meanwhile: Called while a stream opens, when the check has been passed.
    """

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self.members = {"ann", "bob"}
        self.meanwhile: Callable[[], object] = lambda: None
        app, sse = worker.app, worker.sse
        sse.client_key(lambda: request.headers.get("X-User"))

        @sse.authorize
        def may(action: str, channel: str) -> bool:
            is_member = self._is_member()
            self.meanwhile()
            return is_member

        @app.get("/snapshot")
        def snapshot() -> Any:
            self._check()

            def messages() -> str:
                self.meanwhile()
                return "all messages"

            return sse.subscribe("room", snapshot=messages)

        @app.get("/view")
        def view() -> Any:
            self._check()
            self.meanwhile()
            return sse.subscribe("other", "room")

        @app.get("/task")
        def watched_task() -> Any:
            self._check()
            self.meanwhile()
            return sse.task_response(request.args["id"])

        @app.get("/generator")
        @sse.stream
        def generator() -> Iterator[Any]:
            self._check()
            self.meanwhile()
            return ticks()

        @app.get("/response")
        def response() -> Any:
            self._check()
            self.meanwhile()
            return EventSourceResponse(ticks())

        @app.get("/run")
        @sse.stream(resumable=True, detach_grace=0)
        def run() -> Iterator[Any]:
            self._check()
            self.meanwhile()
            return ticks()

        @app.get("/alone")
        def alone() -> Any:
            self._check()
            sse.disconnect(client_key=request.headers["X-User"])
            self.meanwhile()
            return sse.subscribe("room")

        app.register_blueprint(sse, url_prefix="/events")

    def open(self, kind: str, user: str = "bob") -> Viewer:
        """Opens a stream of a kind."""
        path = {"route": "/events/room"}.get(kind, f"/{kind}")
        if kind == "task":
            path += f"?id={self.worker.sse.start(ticks, channel='room').id}"
        return self.worker.watch(path, headers={"X-User": user})

    def _is_member(self) -> bool:
        return request.headers.get("X-User") in self.members

    def _check(self) -> None:
        if not self._is_member():
            abort(403)


def ticks() -> Iterator[Any]:
    """Goes on until it is ended."""
    while not current_stream.closed:
        yield "tick"
        time.sleep(0.02)


def elsewhere(call: Callable[[], object]) -> None:
    """Calls it as another request does: not in this one's contexts."""
    thread = threading.Thread(target=call)
    thread.start()
    thread.join(PATIENCE)
    assert not thread.is_alive()


def remove(house: House, by: House, which: dict[str, Any]) -> Callable[[], None]:
    """What removes bob: first the right, then the streams."""

    def removing() -> None:
        house.members.discard("bob")
        elsewhere(lambda: by.worker.sse.disconnect(**which))

    return removing


def ends(viewer: Viewer) -> bool:
    """Whether a stream that was opened ends soon."""
    assert viewer.status == 200, viewer.body
    try:
        wait_until(lambda: viewer.is_over, 4, "the end")
    except AssertionError:
        return False
    return True


def stays(viewer: Viewer) -> bool:
    """Whether a stream is open, and remains so for more than the timer's turn."""
    assert viewer.status == 200, viewer.body
    time.sleep(0.6)
    return not viewer.is_over


MakeHouse = Callable[..., House]


@pytest.fixture
def make_house(make_worker: MakeWorker) -> MakeHouse:
    """Makes workers that serve it."""
    return lambda **settings: House(make_worker(**settings))


class TestWhileItOpens:
    """A stream whose opening began before the disconnect, and is over after it."""

    @pytest.mark.parametrize(
        ("kind", "which"), [(kind, which) for kind in READERS for which in WHICH] + [(k, "client") for k in OTHERS]
    )
    @pytest.mark.parametrize("by", ["itself", "another"])
    def test_it_ends(self, make_house: MakeHouse, kind: str, which: str, by: str) -> None:
        """It ends, whatever it streams, whoever told the disconnect, though the process had no stream; who comes back is asked."""
        house = make_house(shared=by == "another")
        other = make_house(shared=True) if by == "another" else house
        house.meanwhile = remove(house, other, WHICH[which])
        assert ends(house.open(kind))
        house.meanwhile = lambda: None
        if kind != "task":
            assert house.open(kind).status == 403

    @pytest.mark.parametrize("kind", ["snapshot", "route", "generator"])
    @pytest.mark.parametrize("by", ["itself", "another"])
    def test_in_a_process_with_streams(self, make_house: MakeHouse, kind: str, by: str) -> None:
        """It ends where the process has other streams too, which go on."""
        house = make_house(shared=by == "another")
        other = make_house(shared=True) if by == "another" else house
        ann = house.open("snapshot", "ann")
        house.meanwhile = remove(house, other, {"client_key": "bob"})
        assert ends(house.open(kind))
        assert stays(ann)

    def test_nothing_after_the_disconnect(self, make_house: MakeHouse) -> None:
        """What is published when it should have ended doesn't reach it."""
        house, other = make_house(shared=True), make_house(shared=True)
        house.meanwhile = remove(house, other, WHICH["both"])
        viewer = house.open("snapshot")
        assert ends(viewer)
        other.worker.sse.publish("a secret", channel="room")
        assert b"a secret" not in viewer.body

    @pytest.mark.parametrize("shared", [False, True])
    def test_a_viewer_who_comes_back_to_a_run(self, make_house: MakeHouse, shared: bool) -> None:
        """One who comes back to a run, and is removed meanwhile, doesn't watch it."""
        house = make_house(shared=shared)
        other = make_house(shared=True) if shared else house
        first = house.open("run")
        first.wait_for(None, 2)
        rules = house.worker.app.extensions["sse"].decorated.rules
        find = rules["client_key"]

        def key() -> object:
            # Asked once for whom the run is, and once for whom the stream is.
            rules["client_key"] = find
            elsewhere(lambda: other.worker.sse.disconnect(client_key="bob"))
            return find()

        rules["client_key"] = key
        assert ends(house.worker.watch("/run", headers={"X-User": "bob"}, last_event_id=first.last_event_id))


class TestWhoStays:
    """Streams that a disconnect isn't for."""

    @pytest.mark.parametrize("which", [{"client_key": "eve"}, {"channel": "elsewhere"}, {"client_key": "eve", "channel": "room"}])
    @pytest.mark.parametrize("shared", [False, True])
    def test_others(self, make_house: MakeHouse, which: dict[str, Any], shared: bool) -> None:
        """One for somebody else, or for another channel, ends nothing that is being opened."""
        house = make_house(shared=shared)
        other = make_house(shared=True) if shared else house
        house.meanwhile = lambda: elsewhere(lambda: other.worker.sse.disconnect(**which))
        assert stays(house.open("snapshot"))

    @pytest.mark.parametrize("kind", ["snapshot", "route", "generator"])
    @pytest.mark.parametrize("shared", [False, True])
    def test_who_opens_afterwards(self, make_house: MakeHouse, kind: str, shared: bool) -> None:
        """Whoever opens a stream after it and still may keeps it, though the process hears of the disconnect only then."""
        house = make_house(shared=shared)
        other = make_house(shared=True) if shared else house
        elsewhere(lambda: other.worker.sse.disconnect(client_key="bob"))
        assert stays(house.open(kind))

    @pytest.mark.parametrize("shared", [False, True])
    def test_a_client_who_disconnects_itself(self, make_house: MakeHouse, shared: bool) -> None:
        """A view that ends its client's other streams, and then opens one, ends the others only."""
        house = make_house(shared=shared)
        # The first of its process, which reads then what was told before.
        before = house.open("alone")
        assert stays(before)
        alone = house.open("alone")
        assert ends(before) and stays(alone)
        # Another's disconnect isn't its own.
        house.meanwhile = remove(house, house, WHICH["client"])
        assert ends(house.open("alone"))

    def test_many_others(self, make_house: MakeHouse, monkeypatch: pytest.MonkeyPatch) -> None:
        """Where more are told than are remembered, who began before the forgotten ones comes back to be asked; later ones stay."""
        monkeypatch.setattr(control, "REMEMBERED", 4)
        house = make_house()
        elsewhere(lambda: [house.worker.sse.disconnect(client_key=f"user {number}") for number in range(9)])
        assert stays(house.open("snapshot"))
        house.meanwhile = lambda: elsewhere(
            lambda: [house.worker.sse.disconnect(client_key=name) for name in ("bob", "a", "b", "c", "d")]
        )
        assert ends(house.open("snapshot"))
        house.meanwhile = lambda: None
        assert stays(house.open("snapshot"))


class TestTheBroker:
    """What a process learns late."""

    def test_more_than_the_channel_keeps(self, make_house: MakeHouse) -> None:
        """Where others have told more than is kept for a process that begins to listen, those who opened before are asked anew."""
        house, other = make_house(shared=True), make_house(shared=True)
        names = ["bob", *(f"user {number}" for number in range(control.HISTORY))]
        house.meanwhile = lambda: elsewhere(lambda: [other.worker.sse.disconnect(client_key=name) for name in names])
        assert ends(house.open("snapshot"))
        house.meanwhile = lambda: None
        assert stays(house.open("snapshot"))

    def test_an_outage(self, make_house: MakeHouse, monkeypatch: pytest.MonkeyPatch) -> None:
        """A process that can't be told what it missed opens the stream, and ends it when it can."""
        house, other = make_house(shared=True), make_house(shared=True)
        house.meanwhile = remove(house, other, WHICH["client"])

        def retained(channel: str) -> Any:
            raise BrokerUnavailable("not now")

        monkeypatch.setattr(house.worker.broker, "retained", retained, raising=False)
        viewer = house.open("snapshot")
        assert stays(viewer)
        monkeypatch.undo()
        assert ends(viewer)

    def test_a_command_of_another_version(self, make_house: MakeHouse) -> None:
        """What isn't known among what was told before hinders nobody."""
        house, other = make_house(shared=True), make_house(shared=True)
        other.worker.broker.publish(control.CHANNEL, ServerSentEvent({"dance": 1}), history=control.HISTORY)
        other.worker.broker.publish(control.CHANNEL, ServerSentEvent("no JSON"), history=control.HISTORY)
        assert stays(house.open("snapshot"))
