"""One greenlet a worker that lets the streams of a channel send, and gives way to everything else meanwhile."""

from __future__ import annotations

import collections
import logging
import os
import time
from collections.abc import Callable
from typing import Final

import gevent
import gevent.event

from sseflask import native
from sseflask.emitter import Channel, Subscriber
from sseflask.tally import Latency

log = logging.getLogger("sseflask.worker")

#: Seconds that the broadcaster works before it lets others run. What is published meanwhile joins the next write.
SLICE_SECONDS: Final = 0.0005
#: Seconds that publishers keep a turn of the loop.
REST_SECONDS: Final = 0.005
#: The least time that a timer can wait for: it has passed when the loop looks at it, after its sockets.
TURN_SECONDS: Final = 1e-9


class Broadcaster:
    """The waker of a `StreamWorker`: all its streams live in the hub's native thread.

    Attributes:
        latency: How long events took to their streams.
    """

    def __init__(self) -> None:
        hub = gevent.get_hub()
        self._pid = os.getpid()
        self.latency = Latency()
        self._hub = hub
        self._home = native.thread_id()
        # In the order in which they were published to. Other native threads add to it.
        self._due: collections.deque[Channel] = collections.deque()
        # Streams that had more to send than there was time for.
        self._behind: collections.deque[Subscriber] = collections.deque()
        # What another native thread wants to be called here.
        self._calls: collections.deque[Callable[[], object]] = collections.deque()
        self._is_sending = False
        # When a publisher was first seen in a turn of the loop.
        self._iteration = -1
        self._since = 0.0
        self._called = gevent.event.Event()
        # The one thing that another native thread may touch.
        self._bell = hub.loop.async_()
        self._bell.start(self._called.set)
        self._greenlet = gevent.spawn(self._run)

    def wake(self, channel: Channel) -> None:
        """Lets the channel's streams send, soon."""
        if self._is_sending:
            channel.waiting += 1
        if not channel.is_due:
            channel.is_due = True
            self._due.append(channel)
        if native.thread_id() == self._home:
            self._called.set()
        else:
            self._bell.send()

    def pump(self, subscriber: Subscriber) -> None:
        """Lets one stream send, now, and what is more than its slice in its turn."""
        if subscriber.pump(time.monotonic()):
            self._behind.append(subscriber)
            self._called.set()
        if self.latency.taken and not self._is_sending:
            self.latency.written(time.monotonic())

    def defer(self, call: Callable[[], object]) -> bool:
        """Does nothing: under `StreamWorker` what may wait has a greenlet of its own."""
        return False

    def call(self, function: Callable[[], object]) -> None:
        """Calls a function in the hub's native thread: here if this is it, else soon, in a greenlet of its own."""
        if native.thread_id() == self._home:
            function()
        else:
            self._calls.append(function)
            self._bell.send()

    def give_way(self) -> bool:
        """Lets the broadcaster, and all others, run."""
        if native.thread_id() != self._home:
            native.sleep(0.001)
        elif gevent.getcurrent() in (self._hub, self._greenlet):
            # A filter may publish.
            return False
        else:
            gevent.sleep(TURN_SECONDS)
        return True

    def rest(self) -> None:
        """Lets others run, if publishers have had some milliseconds of this turn of the loop."""
        if native.thread_id() != self._home or gevent.getcurrent() in (self._hub, self._greenlet):
            return
        iteration, now = self._hub.loop.iteration, time.monotonic()
        if iteration != self._iteration:
            self._iteration, self._since = iteration, now
        elif now - self._since > REST_SECONDS:
            gevent.sleep(TURN_SECONDS)

    def _is_copy(self) -> bool:
        """Whether this is a copy in a child that was forked from here: what waits is its parent's to send."""
        return os.getpid() != self._pid

    def _spawn_calls(self) -> None:
        while self._calls:
            gevent.spawn_raw(self._calls.popleft())

    def _run(self) -> None:
        # As `gevent.sleep`, which makes a timer each time, and more.
        timer, switch, to_hub = self._hub.loop.timer(TURN_SECONDS), self._greenlet.switch, self._hub.switch
        while True:
            self._called.wait()
            if self._is_copy():
                return
            self._called.clear()
            self._spawn_calls()
            self._is_sending = True
            since = time.monotonic()
            while self._due or self._behind:
                if self._calls:
                    # Channels may be due for as long as somebody publishes.
                    self._spawn_calls()
                subscribers, self._behind = list(self._behind), collections.deque()
                if self._due:
                    channel = self._due.popleft()
                    channel.is_due = False
                    channel.waiting = 0
                    subscribers += channel.subscribers
                for subscriber in subscribers:
                    try:
                        if subscriber.pump(since):
                            self._behind.append(subscriber)
                    except BaseException:
                        # Whatever went wrong with one stream, the others go on.
                        log.exception("a stream failed to send", extra=subscriber.log_extra)
                    if time.monotonic() - since > SLICE_SECONDS:
                        # A whole turn of the loop: sleep(0) would come back up to 50 times before sockets and timers have theirs.
                        timer.start(switch)
                        to_hub()
                        if self._is_copy():
                            return
                        since = time.monotonic()
                if self.latency.taken:
                    self.latency.written(time.monotonic())
            self._is_sending = False
