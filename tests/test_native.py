"""The locks of the operating system's own, under which the garbage collector rests."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from sseflask import native


@pytest.fixture(autouse=True)
def collecting() -> Iterator[None]:
    """Leaves the collector on."""
    yield
    gc.enable()


class TestLock:
    """`native.Lock`."""

    def test_the_collector_rests(self) -> None:
        """It is off while a lock is held, and on again afterwards; one that was off stays off."""
        lock = native.Lock()
        with lock:
            assert not gc.isenabled()
        assert gc.isenabled()
        assert lock.acquire()
        assert not gc.isenabled()
        lock.release()
        assert gc.isenabled()
        gc.disable()
        try:
            with lock:
                pass
            assert not gc.isenabled()
        finally:
            gc.enable()

    def test_two_locks(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The collector is on when all locks are released, also if one is released just as the other is acquired."""
        one, other = native.Lock(), native.Lock()
        one.acquire()

        def isenabled() -> bool:
            """What a thread sees that is stopped after it has looked, until the other thread has let go."""
            seen = gc.isenabled()
            one.release()
            return seen

        monkeypatch.setattr(native, "isenabled", isenabled)
        other.acquire()
        monkeypatch.undo()
        other.release()
        assert gc.isenabled()
