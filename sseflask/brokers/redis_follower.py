"""Listening to Redis: one connection for a process, however many streams and channels it has."""

from __future__ import annotations

import collections
import contextlib
import logging
import random
import select
import socket
import threading
import time
from collections.abc import Callable, Collection
from typing import Any, Final, TypeAlias

from sseflask import native
from sseflask.errors import BrokerUnavailable
from sseflask.ring import Entry

from .redis_connection import Endpoint, Link
from .redis_script import live_entry, new_life
from .store import Feed, Head

log = logging.getLogger("sseflask.broker")

#: Seconds of silence after which Redis is asked whether it is there; it has the time-out to answer.
PING_SECONDS: Final = 3.0
#: Seconds that the connection stays when nobody listens: the next listener often comes soon.
IDLE_SECONDS: Final = 10.0
#: Messages, and bytes of them, that are told in one go.
BATCH_MESSAGES: Final = 500
BATCH_BYTES: Final = 1024 * 1024
#: Seconds before the connection is tried again: at random up to the first, doubled each time, at the most up to the last.
FIRST_DELAY: Final = 0.05
LONGEST_DELAY: Final = 2.0
#: Seconds that a connection must have held for the next outage to begin with the first delay again.
STEADY_SECONDS: Final = 5.0


#: The Pub/Sub channel, and what came by it.
_Message: TypeAlias = tuple[bytes, bytes]


class RedisFollower:
    """Learns of new entries by Pub/Sub; see `Follower`.

    All that touches the connection runs in its own thread or greenlet; the others leave word, and ring.
    """

    def __init__(self, endpoint: Endpoint, head: Callable[[], Head], feed: Feed) -> None:
        """Stores what it is given.

        Args:
            endpoint: The Redis.
            head: Asks where the log stands, by another connection.
            feed: Is told.
        """
        self._endpoint = endpoint
        self._head = head
        self._feed = feed
        self._lock = native.Lock()
        # Under the lock: what is to be followed, what Redis has acknowledged, and who waits for that.
        self._wanted: set[str] = set()
        self._followed: set[str] = set()
        self._waiting: list[_Waiting] = []
        # Who waits for what Redis has already said to be told.
        self._settling: list[_Waiting] = []
        self._bell: tuple[socket.socket, socket.socket] | None = None
        self._thread: threading.Thread | None = None
        self._is_closed = False
        # The thread's own.
        self._epoch: str | None = None
        self._was_following = False
        self._is_interrupted = False

    def listen(self, channels: Collection[str]) -> None:
        """Follows these channels too; see `Follower.listen`."""
        asked = set(channels)
        with self._lock:
            if self._is_closed:
                raise BrokerUnavailable(f"{self._endpoint.address.url}: the follower is closed")
            added = asked - self._wanted
            self._wanted |= added
            if asked <= self._followed:
                return
            waiting = _Waiting(asked)
            self._waiting.append(waiting)
            begins = self._thread is None
            if begins:
                self._bell = socket.socketpair()
                self._thread = threading.Thread(target=self._run, name="sseflask redis", daemon=True)
        if begins:
            self._start()
        self._ring()
        is_open = False
        try:
            is_open = waiting.latch.wait(self._endpoint.timeout)
        finally:
            with self._lock:
                is_open = is_open or waiting not in self._waiting
                if not is_open:
                    self._waiting.remove(waiting)
                    others = set[str]().union(*(other.channels for other in self._waiting))
                    self._wanted -= added - others
            if not is_open:
                self._ring()
        if not is_open:
            late = f"{self._endpoint.address.url}: no answer to SUBSCRIBE within {self._endpoint.timeout:g} s"
            raise BrokerUnavailable(waiting.problem or late)

    def unlisten(self, channels: Collection[str]) -> None:
        """Follows these channels no more; see `Follower.unlisten`."""
        with self._lock:
            self._wanted.difference_update(channels)
        self._ring()

    def catch_up(self) -> None:
        """Does nothing: Redis itself gives word of what this process has stored."""

    def settle(self) -> None:
        """Waits for an answer of Redis's, which comes after all that it has to say; see `Follower.settle`."""
        waiting = _Waiting(set())
        with self._lock:
            self._settling.append(waiting)
        self._ring()
        try:
            waiting.latch.wait(self._endpoint.timeout)
        finally:
            with self._lock:
                is_late = waiting in self._settling
                if is_late:
                    self._settling.remove(waiting)
        if is_late:
            late = f"{self._endpoint.address.url}: what it says can't be told within {self._endpoint.timeout:g} s"
            raise BrokerUnavailable(waiting.problem or late)

    def is_here(self) -> bool:
        """Whether this is its own thread or greenlet, which alone can take Redis's answers."""
        return threading.current_thread() is self._thread

    def close(self) -> None:
        """Ends it for good; see `Follower.close`."""
        with self._lock:
            self._is_closed = True
            self._wanted.clear()
            thread = self._thread
        self._ring()
        if thread is not None and not self.is_here() and not native.is_apart():
            thread.join(self._endpoint.timeout)

    def _start(self) -> None:
        """Begins the thread; outside the lock, for a greenlet's begin lets others run."""
        assert self._bell is not None
        assert self._thread is not None
        for end in self._bell:
            end.setblocking(False)
        self._thread.start()

    def _ring(self) -> None:
        with self._lock:
            # Under the lock, for once it is closed its number may be another's.
            if self._bell is not None:
                native.send(self._bell[0], b"!")

    def _run(self) -> None:
        failures = 0
        while not self._is_closed:
            if not self._wanted:
                self._wait(None, None)
                continue
            began = time.monotonic()
            try:
                self._follow()
            except BaseException as error:
                # The thread lives as long as the process, whatever happens, also if a listener raises what ends a greenlet: the
                # feed reads what it has missed.
                failures = 0 if time.monotonic() - began > STEADY_SECONDS else failures + 1
                self._lost(error)
                self._pause(random.uniform(0, min(FIRST_DELAY * 2 ** min(failures, 10), LONGEST_DELAY)))
        with self._lock:
            bell, self._bell = self._bell, None
        for end in bell or ():
            end.close()

    def _follow(self) -> None:
        """Opens a connection, and follows by it until nobody has listened for a while.

        Raises:
            Exception: It is lost.
        """
        deadline = time.monotonic() + self._endpoint.timeout
        session = _Session(self._endpoint, self._endpoint.open(deadline))
        try:
            self._subscribe(session)
            session.wait_for_answers(deadline)
            with self._lock:
                # What was stored before they asked is read now, if it had been missed.
                session.answered.update(self._settling)
            # Taken after the acknowledgement: what was stored before it is at or below the head, what comes after is heard.
            head = self._head()
            self._epoch = head.epoch
            if self._is_interrupted:
                self._feed.resumed(head)
                self._is_interrupted = False
            self._was_following = True
            self._answer(session)
            self._settle(session)
            self._attend(session)
            self._was_following = False
        finally:
            with self._lock:
                self._followed = set()
            session.link.close()

    def _attend(self, session: _Session) -> None:
        """Tells what is heard, until it is closed or nobody has listened for a while."""
        idle_since: float | None = None
        while not self._is_closed:
            self._subscribe(session)
            messages = session.drain()
            self._answer(session)
            if messages:
                self._tell(messages)
            self._settle(session)
            if messages:
                # They may come without a pause: others want to run too.
                native.pause(0)
                continue
            now = time.monotonic()
            if self._wanted:
                idle_since = None
            elif idle_since is None:
                idle_since = now
            elif now - idle_since >= IDLE_SECONDS:
                return
            self._wait(session.link, session.keep_alive(now))

    def _subscribe(self, session: _Session) -> None:
        """Tells Redis what is followed now, and asks it for an answer if somebody waits for what it has said before."""
        with self._lock:
            added = self._wanted - session.asked
            dropped = session.asked - self._wanted
            self._followed -= dropped
            asking = [waiting for waiting in self._settling if waiting.session is not session]
        if added or not session.is_begun:
            session.subscribe(added)
        if dropped:
            session.unsubscribe(dropped)
        if asking:
            session.ask(asking)

    def _answer(self, session: _Session) -> None:
        """Lets those go on whose channels have all been acknowledged."""
        if not session.acknowledged:
            return
        acknowledged, session.acknowledged = session.acknowledged, set()
        with self._lock:
            self._followed |= acknowledged & self._wanted
            ready = [waiting for waiting in self._waiting if waiting.channels <= self._followed]
            self._waiting = [waiting for waiting in self._waiting if waiting not in ready]
        for waiting in ready:
            waiting.latch.open()

    def _settle(self, session: _Session) -> None:
        """Lets those go on who waited for what Redis had said before it answered; all of that has been told."""
        if not session.answered:
            return
        answered, session.answered = session.answered, set()
        with self._lock:
            ready = [waiting for waiting in answered if waiting in self._settling]
            self._settling = [waiting for waiting in self._settling if waiting not in ready]
        for waiting in ready:
            waiting.latch.open()

    def _tell(self, messages: list[_Message]) -> None:
        """Tells the feed of entries, and of another life where one begins among them."""
        now = time.monotonic()
        entries: list[Entry] = []
        live, skip = self._endpoint.live.encode(), len(self._endpoint.live)
        for name, message in messages:
            if name.startswith(live):
                epoch, entry = live_entry(name[skip:].decode(), message, now)
                head = Head(epoch, entry.seq - 1)
            else:
                entry, head = None, Head(*new_life(message))
            if head.epoch != self._epoch:
                self._arrived(entries)
                entries = []
                self._epoch = head.epoch
                self._feed.resumed(head)
            if entry is not None:
                entries.append(entry)
        self._arrived(entries)

    def _arrived(self, entries: list[Entry]) -> None:
        if entries:
            assert self._epoch is not None
            self._feed.arrived(Head(self._epoch, entries[-1].seq), entries)
            self._feed.tell()

    def _lost(self, error: BaseException) -> None:
        """Says, once for each outage, that the connection is lost or can't be had."""
        from redis.exceptions import RedisError

        if isinstance(error, BrokerUnavailable):
            told = error
        else:
            if not isinstance(error, RedisError | OSError):
                log.error("what Redis said can't be told", exc_info=error, extra={"sse_broker": self._endpoint.address.url})
            told = self._endpoint.failed(error)
        with self._lock:
            is_news = self._was_following and bool(self._wanted)
            for waiting in (*self._waiting, *self._settling):
                waiting.problem = told.problem
        self._was_following = False
        if is_news:
            self._is_interrupted = True
            try:
                self._feed.interrupted(told)
            except BaseException:
                log.exception("the loss of Redis can't be told", extra={"sse_broker": self._endpoint.address.url})

    def _pause(self, seconds: float) -> None:
        """Waits so long, or until it is closed."""
        deadline = time.monotonic() + seconds
        while not self._is_closed and (remaining := deadline - time.monotonic()) > 0:
            self._wait(None, remaining)

    def _wait(self, link: Link | None, seconds: float | None) -> None:
        """Waits until Redis says something, the bell rings or the time is over."""
        assert self._bell is not None
        bell = self._bell[1]
        poll = select.poll()
        poll.register(bell, select.POLLIN)
        if link is not None:
            poll.register(link.raw, select.POLLIN)
        ready = poll.poll(None if seconds is None else max(seconds, 0) * 1000)
        if any(fd == bell.fileno() for fd, _ in ready):
            # One look at what is wanted answers all who rang.
            with contextlib.suppress(BlockingIOError):
                while bell.recv(4096):
                    pass


class _Waiting:
    """One that waits until its channels are followed, or until what Redis has said is told.

    Attributes:
        channels: Its channels.
        latch: What it waits at.
        problem: Why it waits for so long, where that is known.
        session: Where Redis was last asked for an answer on its behalf.
    """

    __slots__ = ("channels", "latch", "problem", "session")

    def __init__(self, channels: set[str]) -> None:
        self.channels = channels
        self.latch = native.Latch()
        self.problem: str | None = None
        self.session: _Session | None = None


class _Session:
    """A connection in Pub/Sub's mode, and what was asked by it.

    Attributes:
        link: The connection.
        asked: The channels that are subscribed to, or on their way to be.
        answered: Those who waited for an answer that has come since this was last emptied.
        acknowledged: Those whose subscription was acknowledged since this was last emptied.
        is_begun: Whether the control channel was asked for, which keeps the connection in its mode.
    """

    def __init__(self, endpoint: Endpoint, link: Link) -> None:
        self.link = link
        self.asked: set[str] = set()
        self.acknowledged: set[str] = set()
        self.answered: set[_Waiting] = set()
        self.is_begun = False
        self._endpoint = endpoint
        # Channels by how many answers to SUBSCRIBE are yet to come: the last one counts.
        self._unanswered: dict[bytes, int] = {}
        # For whom each PING was sent of which the answer is yet to come.
        self._pings: collections.deque[list[_Waiting]] = collections.deque()
        self._messages: list[_Message] = []
        self._heard = time.monotonic()
        self._pinged: float | None = None

    def subscribe(self, channels: set[str]) -> None:
        """Asks for channels, all in one command."""
        names = [f"{self._endpoint.live}{channel}".encode() for channel in channels]
        if not self.is_begun:
            self.is_begun = True
            names.append(self._endpoint.control.encode())
        self.asked |= channels
        for name in names:
            self._unanswered[name] = self._unanswered.get(name, 0) + 1
        self._send("SUBSCRIBE", *names)

    def unsubscribe(self, channels: set[str]) -> None:
        """Asks for channels no more."""
        self.asked -= channels
        self._send("UNSUBSCRIBE", *(f"{self._endpoint.live}{channel}".encode() for channel in channels))

    def ask(self, waiting: list[_Waiting]) -> None:
        """Asks for an answer, for those who wait for what Redis says before it; for none, only whether Redis is there."""
        for one in waiting:
            one.session = self
        self._pings.append(waiting)
        self._send("PING")

    def wait_for_answers(self, deadline: float) -> None:
        """Waits until all subscriptions are acknowledged; the messages that come meanwhile are kept.

        Raises:
            redis.RedisError: They aren't, in time.
        """
        while self._unanswered:
            self.link.bound(deadline)
            self._take(self.link.raw.read_response())

    def drain(self) -> list[_Message]:
        """The messages that are there now, up to a bound.

        Raises:
            redis.RedisError: The connection is lost.
        """
        size = sum(len(message) for _, message in self._messages)
        while len(self._messages) < BATCH_MESSAGES and size < BATCH_BYTES and self.link.raw.can_read(0):
            self.link.bound(time.monotonic() + self._endpoint.timeout)
            size += self._take(self.link.raw.read_response())
        messages, self._messages = self._messages, []
        return messages

    def keep_alive(self, now: float) -> float:
        """Asks whether Redis is there, if it has said nothing for long; returns how many seconds may be waited then.

        Raises:
            TimeoutError: It was asked and didn't answer in time.
        """
        if self._pinged is None and now - self._heard >= PING_SECONDS:
            self._pinged = now
            self.ask([])
        if self._pinged is None:
            return self._heard + PING_SECONDS - now
        remaining = self._pinged + self._endpoint.timeout - now
        if remaining <= 0:
            raise TimeoutError(f"no answer to PING within {self._endpoint.timeout:g} s")
        return remaining

    def _send(self, *command: Any) -> None:
        self.link.send(time.monotonic() + self._endpoint.timeout, *command)

    def _take(self, answer: list[Any]) -> int:
        """Takes what Redis says; returns the bytes that are to be told."""
        self._heard = time.monotonic()
        self._pinged = None
        kind, name, content = (*answer, b"")[:3]
        if kind == b"message":
            self._messages.append((name, content))
            return len(content)
        if kind == b"subscribe":
            left = self._unanswered.pop(name) - 1
            if left:
                self._unanswered[name] = left
            elif name.startswith(self._endpoint.live.encode()):
                self.acknowledged.add(name[len(self._endpoint.live) :].decode())
        elif kind == b"pong":
            self.answered.update(self._pings.popleft())
        return 0
