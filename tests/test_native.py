"""The locks of the operating system's own, under which the garbage collector rests."""

from __future__ import annotations

import gc
import os
import threading
import time
import warnings
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

    def test_let_go_while_another_is_held(self) -> None:
        """A thread that lets go of its lock doesn't turn the collector on for another that is in the middle of its own."""
        one, other, inside, go_on = native.Lock(), native.Lock(), threading.Event(), threading.Event()
        seen: list[bool] = []

        def hold() -> None:
            with other:
                inside.set()
                assert go_on.wait(20)
                seen.append(gc.isenabled())

        thread = threading.Thread(target=hold)
        with one:
            thread.start()
            assert inside.wait(20)
        assert not gc.isenabled()
        go_on.set()
        thread.join()
        assert seen == [False]
        assert gc.isenabled()

    def test_many_threads(self) -> None:
        """With many threads that hold locks of their own it is never on inside of one, and on in the end."""
        seen: set[bool] = set()
        until = time.monotonic() + 0.5

        def work() -> None:
            lock = native.Lock()
            while time.monotonic() < until:
                with lock:
                    seen.add(gc.isenabled())
                    # Others have their turn.
                    time.sleep(0)
                    seen.add(gc.isenabled())

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert seen == {False}
        assert gc.isenabled()

    def test_forked_child(self) -> None:
        """A child that was forked while other threads held locks collects again after the first lock of its own."""
        lock, inside, go_on = native.Lock(), threading.Event(), threading.Event()

        def hold() -> None:
            with lock:
                inside.set()
                assert go_on.wait(20)

        thread = threading.Thread(target=hold)
        thread.start()
        assert inside.wait(20)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            child = os.fork()
        if child == 0:
            with native.Lock():
                was_on = gc.isenabled()
            os._exit(0 if gc.isenabled() and not was_on else 1)
        go_on.set()
        thread.join()
        assert os.waitpid(child, 0)[1] == 0
        assert gc.isenabled()

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
