"""The SQLite broker: the contract, over a file in a directory of the test's own."""

from __future__ import annotations

import contextlib
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

import sseflask.brokers.sqlite_file
from sseflask import native
from sseflask.brokers import Broker, SharedBroker, sqlite_follower
from sseflask.brokers.sqlite import SQLiteStore
from sseflask.brokers.store import Reading
from tests.brokers.contract import HISTORY_SECONDS, BrokerContract, Clock, InlineWaker, Open, Reader, event, kept, resumed
from tests.brokers.contract_tasks import OpenPair, SharedTaskContract
from tests.live.process import wait_until


class ShiftedTime:
    """Stands for the module `time`, with a clock that can be moved on."""

    def __init__(self) -> None:
        self._ahead = 0.0

    @property
    def now(self) -> float:
        """The second."""
        return self.monotonic()

    def monotonic(self) -> float:
        """The second."""
        return time.monotonic() + self._ahead

    def advance(self, seconds: float) -> None:
        """Lets time pass."""
        self._ahead += seconds

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)


def moved_clock(monkeypatch: pytest.MonkeyPatch) -> ShiftedTime:
    """The monotonic clock of the broker's modules."""
    shifted = ShiftedTime()
    for name in ("shared", "sqlite", "sqlite_file"):
        monkeypatch.setattr(getattr(sseflask.brokers, name), "time", shifted)
    return shifted


class TestSQLiteBroker(BrokerContract):
    """What every broker promises."""

    native_events = 2_500

    @pytest.fixture
    def clock(self, monkeypatch: pytest.MonkeyPatch) -> Clock:
        """The monotonic clock of the broker's modules."""
        return moved_clock(monkeypatch)

    @pytest.fixture
    def open_broker(
        self, clock: Clock, waker: InlineWaker, chores: list[Callable[[float], bool]], tmp_path: Path
    ) -> Iterator[Open]:
        """Opens brokers, each with a file of its own."""
        made: list[Broker] = []

        def make(*, path: str | None = None, **options: Any) -> Broker:
            settings = {"history": 256, "history_seconds": HISTORY_SECONDS, "history_bytes": 1 << 26, "timeout": 5.0, **options}
            store = SQLiteStore(path or str(tmp_path / f"{len(made)}.db"), **settings)
            broker = SharedBroker(store, waker, chores.append, **settings)
            broker.open()
            made.append(broker)
            return broker

        yield make
        for broker in made:
            broker.close()

    def test_too_much_for_the_process(
        self, waker: InlineWaker, chores: list[Callable[[float], bool]], tmp_path: Path, clock: Clock
    ) -> None:
        """A history that the file has, and for which this process has no room, is read once for each who asks, who is told."""
        bounds = {"history": 256, "history_seconds": HISTORY_SECONDS, "timeout": 5.0}
        store = SQLiteStore(str(tmp_path / "large.db"), history_bytes=1 << 26, **bounds)
        broker = SharedBroker(store, waker, chores.append, history_bytes=1 << 16, **bounds)
        try:
            first = broker.publish("news", event("x" * 2000))
            for _ in range(100):
                broker.publish("news", event("x" * 2000))
            reads: list[int | None] = []
            read = store.read

            def noting(after: Mapping[str, int | None]) -> Mapping[str, Reading]:
                reads.append(after["news"])
                return read(after)

            store.read = noting  # type: ignore[method-assign]
            assert resumed(broker, ["news"], first).reset == "history"
            # Where it stands is asked for before and, if the follower hasn't found it by then, after the log's life is known.
            assert reads in ([None, 0], [None, None, 0])
        finally:
            broker.close()

    def test_own_id_of_another_process(self, open_broker: Open, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        """A publisher's own id is found also where the process follows its channel, and hasn't heard of the event yet."""
        for name in ("POLL_SECONDS", "QUIET_POLL_SECONDS"):
            monkeypatch.setattr(sqlite_follower, name, 5.0)
        one, other = (open_broker(path=str(tmp_path / "one.db")) for _ in range(2))
        one.publish("news", event("1"))
        reader = Reader(other, "news", "more")
        assert kept(other, "news") == ["1"]
        one.publish("more", event("2"))
        one.publish("news", event("3", id="mine"))
        found = resumed(other, ["news"], "mine")
        assert (found.reset, found.cursor) == (None, one.position.seq)
        assert reader.data == ["2", "3"]

    @pytest.mark.parametrize("is_kept", [False, True])
    def test_told_in_another_life(self, open_broker: Open, tmp_path: Path, is_kept: bool) -> None:
        """What processes tell one another in a life of the log that one of them doesn't know of yet it hears, and nothing twice."""
        path = tmp_path / "one.db"
        broker = open_broker(path=str(path))
        heard: list[str | None] = []
        broker.emitter.on("-/control", lambda told: heard.append(told.data))
        Reader(broker, "news")
        for _ in range(2):
            broker.publish("-/control", event("before"))
        if is_kept:
            # As after a power cut.
            with contextlib.closing(sqlite3.connect(path)) as db, db:
                db.execute("UPDATE meta SET epoch = 'ba9876543210'")
        else:
            path.unlink()
        other = open_broker(path=str(path))
        for told in ("same", "same"):
            other.publish("-/control", event(told))
        wait_until(lambda: broker.log.epoch == other.position.epoch and heard == ["before", "before", "same", "same"], 20)
        other.publish("-/control", event("after"))
        wait_until(lambda: heard[4:] == ["after"], 20)

    def test_position_in_a_native_thread(self, open_broker: Open, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        """A native thread of a process that follows nothing is told where the file's log stands, as streams are."""
        other = open_broker(path=str(tmp_path / "one.db"))
        position = other.publish("news", event())
        broker = open_broker(path=str(tmp_path / "one.db"))
        with monkeypatch.context() as patched:
            patched.setattr(native, "is_apart", lambda: True)
            assert str(broker.position) == position
        assert str(broker.position) == position


class TestSQLiteTasks(SharedTaskContract):
    """What every broker promises of tasks, and of channels that keep all."""

    @pytest.fixture
    def clock(self, monkeypatch: pytest.MonkeyPatch) -> Clock:
        """The monotonic clock of the broker's modules."""
        return moved_clock(monkeypatch)

    @pytest.fixture
    def open_pair(
        self, clock: Clock, waker: InlineWaker, chores: list[Callable[[float], bool]], tmp_path: Path
    ) -> Iterator[OpenPair]:
        """Opens two stores on one file, as two processes have them."""
        made: list[Broker] = []

        def make(**options: Any) -> tuple[Broker, Broker]:
            settings = {"history": 256, "history_seconds": HISTORY_SECONDS, "history_bytes": 1 << 26, "timeout": 5.0, **options}
            path = str(tmp_path / f"{len(made)}.db")
            pair = [SharedBroker(SQLiteStore(path, **settings), waker, chores.append, **settings) for _ in range(2)]
            for broker in pair:
                broker.open()
            made.extend(pair)
            return pair[0], pair[1]

        yield make
        for broker in made:
            broker.close()

    def wait_for(self, condition: Callable[[], bool]) -> None:
        """Its follower looks at the file every few milliseconds."""
        wait_until(condition, 20)
