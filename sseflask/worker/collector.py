"""Keeps Python's garbage collector from looking through thousands of waiting streams each time."""

from __future__ import annotations

import gc
from typing import Final

#: Streams by which a worker must have grown, at the least, before what it holds is put aside.
GROWTH: Final = 500


class Collector:
    """Puts what a worker holds aside (`gc.freeze`) as its streams become more, and takes it back when most have gone.

    A full collection looks at every object there is, and stops the hub meanwhile: for 5,000 waiting streams some 30 ms, while
    events wait. A stream is in no cycle when it ends, so nothing is lost by not looking; cycles that others have left by then are
    found when what was put aside is taken back.
    """

    __slots__ = ("_streams",)

    def __init__(self) -> None:
        self._streams = 0

    def tend(self, streams: int) -> None:
        """Sees to it, now and then.

        Args:
            streams: How many wait now.
        """
        if not gc.isenabled():
            # Somebody collects as they see fit, or another thread is in the middle of something.
            return
        if streams - self._streams >= max(GROWTH, self._streams // 4):
            gc.collect(1)
            gc.freeze()
            self._streams = streams
        elif streams < self._streams // 2:
            gc.unfreeze()
            self._streams = streams
