"""Thousands of clients in one process: one epoll set, raw sockets, and each byte, each number and each id of each client checked.

Like `client`, it runs nothing in the background: sockets are read while a method waits, so a test that wants slow readers just
doesn't call one. What many clients get alike is taken apart once: where a client is at rest, between two chunks and two events,
what follows means the same whoever it comes to.

The events of a crowd's channels carry JSON with the name of a `series` and their number `n` in it.
"""

from __future__ import annotations

import collections
import contextlib
import itertools
import re
import resource
import select
import socket
import struct
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Final

from tests.live.client import Comment, Ending, Event, FrameReader, ProtocolError, ResponseParser
from tests.live.server import Server

#: Clients that come from one address; the range of ports that the kernel gives away holds more.
PER_ADDRESS: Final = 20_000
#: Clients that have asked and not been answered: fewer than a server's backlog.
OPENING_AT_ONCE: Final = 100
#: Slices of a stream that are remembered, and the largest of them.
REMEMBERED_SLICES: Final = 4096
REMEMBERED_BYTES: Final = 64 * 1024
#: From <netinet/in.h>: the port is chosen when the socket connects, when the kernel knows both ends.
IP_BIND_ADDRESS_NO_PORT: Final = 24
EVENT_ID: Final = re.compile(r"([0-9a-f]{12})-(0|[1-9][0-9]*)(-end)?")
#: What a client gives its socket where it shall close with a reset.
RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)


@contextlib.contextmanager
def many_files(count: int) -> Iterator[None]:
    """Lets this process, and the servers that it starts, open so many files and some more.

    Raises:
        AssertionError: The system doesn't allow it.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert hard == resource.RLIM_INFINITY or hard >= count + 500, f"needs a hard limit of {count + 500} open files, it is {hard}"
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


class Slice:
    """What one slice of a stream says, read from rest to rest; only numbered events.

    Attributes:
        numbers: The numbers in it, by series.
        first_id: The id of its first event, and `last_id` of its last one: epoch and sequence number.
    """

    __slots__ = ("first_id", "last_id", "numbers")

    def __init__(self, events: list[Event]) -> None:
        """Reads the events.

        Raises:
            ProtocolError: Their ids don't rise.
        """
        ids = [position_of(event) for event in events]
        for before, after in itertools.pairwise(ids):
            if before[0] != after[0] or before[1] >= after[1]:
                raise ProtocolError(f"the id {after} follows {before}")
        self.first_id, self.last_id = ids[0], ids[-1]
        self.numbers: dict[str, list[int]] = {}
        for event in events:
            data = event.json()
            self.numbers.setdefault(data["series"], []).append(data["n"])


class Member:
    """One client, over all its connections.

    Attributes:
        path: What it asks for.
        seen: The numbers that it has seen, by series, in the order of their arrival.
        resets: Where it was told that something is gone: the reason, and how many numbers of each series it had seen by then.
        named: The events that have no number: open, reset, end and error events.
        comments: When its comments came, and `texts` what they were.
        last_event_id: What it says when it comes back.
        retry_ms: The last reconnection time that it was told.
        status: That of its present connection's response; 0 until the head has come. `headers` likewise, and `body_bytes`.
        opened: Whether its present connection has had the open event.
        ended: How its present connection has ended; `None` while it goes on, or where it hung up.
        ended_at: When.
        connections: How many it has made.
    """

    __slots__ = (
        "_frames",
        "_position",
        "_response",
        "_socket",
        "body_bytes",
        "comments",
        "connections",
        "ended",
        "ended_at",
        "last_event_id",
        "named",
        "opened",
        "path",
        "resets",
        "retry_ms",
        "seen",
        "server",
        "texts",
    )

    def __init__(self, server: Server, path: str, last_event_id: str = "") -> None:
        self.server = server
        self.path = path
        self.seen: dict[str, list[int]] = {}
        self.resets: list[tuple[str, dict[str, int]]] = []
        self.named: list[Event] = []
        self.comments: list[float] = []
        self.texts: set[str] = set()
        self.last_event_id = last_event_id
        self.retry_ms: int | None = None
        self.opened = False
        self.ended: Ending | None = None
        self.ended_at = 0.0
        self.connections = 0
        self.body_bytes = 0
        self._position: tuple[str, int] = ("", 0)
        self._socket: socket.socket | None = None
        self._response = ResponseParser()
        self._frames = FrameReader()

    def __repr__(self) -> str:
        seen = {series: f"{len(numbers)}, last {numbers[-1]}" for series, numbers in self.seen.items()}
        return (
            f"<Member {self.path} status={self.status} connections={self.connections} ended={self.ended} seen={seen} "
            f"resets={self.resets} at {self.last_event_id!r}>"
        )

    @property
    def status(self) -> int:
        """The status of its present connection's response; 0 until the head has come."""
        return self._response.status

    @property
    def headers(self) -> Mapping[str, str]:
        """The headers of its present connection's response, by lower-case name."""
        return self._response.headers

    @property
    def is_connected(self) -> bool:
        """Whether it has a connection that has not ended."""
        return self._socket is not None

    @property
    def reset_reasons(self) -> list[str]:
        """Why it was told that something is gone, each time."""
        return [reason for reason, _ in self.resets]

    def count(self, series: str) -> int:
        """How many numbers of a series it has seen."""
        return len(self.seen.get(series, ()))

    def assert_complete(self, series: str, count: int) -> None:
        """It has seen the numbers from 0 to `count` of a series, in order, none missing, none twice."""
        seen = self.seen.get(series, [])
        assert seen == list(range(count)), f"{self!r}: {_first_fault(seen, count)}"

    def assert_told(self, series: Collection[str], count: int) -> None:
        """It has seen those of each series in order, none twice; resets say where some are missing, and none says so elsewhere."""
        for name in series:
            seen = self.seen.get(name, [])
            told = {at.get(name, 0) for _, at in self.resets}
            untold = [seen[index] for index in self._gaps(name) - told]
            assert all(before < n for before, n in itertools.pairwise(seen)), f"{self!r}: {_first_fault(seen, count)}"
            assert not untold, f"{self!r} wasn't told of what is missing before {name} {untold}"
            assert seen[-1] == count - 1, f"{self!r} has not come to the end of {name}"
        for reason, at in self.resets:
            assert any(at.get(name, 0) in self._gaps(name) for name in series), f"{self!r}: nothing is missing at {reason} {at}"

    def _gaps(self, series: str) -> set[int]:
        """Before which of the numbers that it has seen, counted from 0, some are missing."""
        pairs = itertools.pairwise([-1, *self.seen.get(series, [])])
        return {index for index, (before, n) in enumerate(pairs) if n != before + 1}

    # What the crowd does with it.

    def connect(self, source: str) -> socket.socket:
        """Connects, and asks; a new connection begins with what it saw last."""
        assert self._socket is None, f"{self!r} is connected"
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        sock.setsockopt(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
        sock.bind((source, 0))
        sock.settimeout(10)
        sock.connect(self.server.address)
        last = f"Last-Event-ID: {self.last_event_id}\r\n" if self.last_event_id else ""
        sock.sendall(f"GET {self.path} HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n{last}\r\n".encode())
        sock.setblocking(False)
        self._socket = sock
        self._response = ResponseParser()
        self._frames = FrameReader()
        self.opened = False
        self.ended = None
        self.body_bytes = 0
        self.connections += 1
        return sock

    def disconnect(self, *, reset: bool = False) -> None:
        """Closes its connection, with a reset if asked."""
        sock, self._socket = self._socket, None
        if sock is not None:
            if reset:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
            sock.close()

    def receive(self, now: float, known: dict[bytes, Slice]) -> None:
        """Reads once, what has come."""
        assert self._socket is not None
        try:
            data = self._socket.recv(65536)
        except BlockingIOError:
            return
        except (ConnectionResetError, BrokenPipeError):
            self._end("reset", now)
            return
        if not data:
            self._end("clean" if self._response.feed_eof() else "cut", now)
        elif self._is_at_rest and (found := known.get(data)) is not None:
            self.body_bytes += len(data)
            self._take(found)
        else:
            self._parse(data, now, known)

    def _end(self, how: Ending, now: float) -> None:
        self.ended, self.ended_at = how, now
        self.disconnect()

    @property
    def _is_at_rest(self) -> bool:
        """Whether it is between two chunks and two events, so that what follows means the same to everyone who is."""
        response, frames = self._response, self._frames
        return response._step == "size" and not response._buffer and not frames._rest and not frames._fields

    def _parse(self, data: bytes, now: float, known: dict[bytes, Slice]) -> None:
        rested = self._is_at_rest
        if rested:
            self._frames = FrameReader()
        had_head = self.status
        body = self._response.feed(data)
        self.body_bytes += len(data)
        if not had_head and self.status:
            self._check_head()
        if self.status != 200:
            return
        items = self._frames.feed(body, at=now)
        is_plain = bool(items) and all(isinstance(item, Event) and item.event == "message" for item in items)
        if is_plain:
            found = Slice([item for item in items if isinstance(item, Event)])
            self._take(found)
            if rested and self._is_at_rest and len(data) <= REMEMBERED_BYTES:
                if len(known) >= REMEMBERED_SLICES:
                    known.clear()
                known[data] = found
        else:
            for item in items:
                self._take_item(item)
        self.retry_ms = self._frames.retry_ms if self._frames.retry_ms is not None else self.retry_ms
        if self._frames.blank_lines:
            raise ProtocolError(f"{self!r}: blank lines that end nothing")

    def _check_head(self) -> None:
        if self.status == 200:
            # A stream that ends as it begins, for there is no room for it or its worker leaves, is sent as a whole.
            assert self._response.framing == "chunked" or self._response.announces_close, self.headers
            assert self.headers["content-type"] == "text/event-stream; charset=utf-8", self.headers
            assert self.headers["cache-control"] == "no-cache, no-transform", self.headers

    def _take_item(self, item: Event | Comment) -> None:
        if isinstance(item, Comment):
            self.comments.append(item.at)
            self.texts.add(item.text)
        elif item.event == "message":
            self._take(Slice([item]))
        else:
            self._take_named(item)

    def _take_named(self, event: Event) -> None:
        """An event that has no number; its id may repeat the position, and never goes back within one epoch."""
        self.named.append(event)
        if event.event == "stream-open":
            self.opened = True
        elif event.event == "stream-reset":
            self.resets.append((event.json()["reason"], {series: len(numbers) for series, numbers in self.seen.items()}))
        if event.id is not None:
            epoch, seq = position_of(event)
            if epoch == self._position[0] and seq < self._position[1]:
                raise ProtocolError(f"{self!r}: the id {event.id} goes back")
            self._position, self.last_event_id = (epoch, seq), event.id

    def _take(self, found: Slice) -> None:
        if found.first_id[0] == self._position[0] and found.first_id[1] <= self._position[1]:
            raise ProtocolError(f"{self!r}: the id {found.first_id} after {self._position}")
        self._position = found.last_id
        self.last_event_id = f"{found.last_id[0]}-{found.last_id[1]}"
        for series, numbers in found.numbers.items():
            self.seen.setdefault(series, []).extend(numbers)


class Crowd:
    """Clients that are read together. It belongs to the first server that it goes to, which closes it when it stops.

    Attributes:
        members: All of its clients, in the order in which they came.
    """

    def __init__(self, *, per_address: int = PER_ADDRESS) -> None:
        """Makes an empty one.

        Args:
            per_address: How many come from 127.0.0.2, then from 127.0.0.3 and so on.
        """
        self.members: list[Member] = []
        self._per_address = per_address
        self._epoll = select.epoll()
        self._by_fd: dict[int, Member] = {}
        self._queue: collections.deque[Member] = collections.deque()
        self._opening: set[Member] = set()
        self._known: dict[bytes, Slice] = {}
        self._count = 0
        self._servers: list[Server] = []

    def fileno(self) -> int:
        """The epoll set's descriptor, -1 once closed."""
        return -1 if self._epoll.closed else self._epoll.fileno()

    def hang_up(self) -> None:
        """Closes all connections; safe to call twice."""
        self._queue.clear()
        self._opening.clear()
        for member in self.members:
            self.leave(member)
        self._epoll.close()

    def join(self, server: Server, paths: Iterable[str], *, last_event_id: str = "", timeout: float = 30.0) -> list[Member]:
        """Opens a stream at each path, and reads until each has had its open event.

        Returns:
            The new members.

        Raises:
            TimeoutError: Some had none in time.
            ProtocolError: A byte is out of place.
            AssertionError: A header is, or one was refused.
        """
        members = [Member(server, path, last_event_id) for path in paths]
        self.members += members
        self.connect(members)
        self.read_until(lambda member: member.opened, members, timeout=timeout)
        return members

    def connect(self, members: Iterable[Member]) -> None:
        """Connects members that aren't: at once those for which there is room, the others while the crowd is read."""
        for member in members:
            if member.server not in self._servers:
                self._servers.append(member.server)
                member.server.adopt(self)
            self._queue.append(member)
        self._connect_more()

    def leave(self, member: Member, *, reset: bool = False) -> None:
        """Hangs up for a member, with a reset if asked; safe if it has no connection."""
        sock = member._socket
        if sock is not None:
            self._forget(member, sock.fileno())
            member.disconnect(reset=reset)

    def read(self, timeout: float) -> Collection[Member]:
        """Waits for bytes, and takes what has come.

        Returns:
            The members to whom something came.

        Raises:
            ProtocolError: A byte is out of place.
        """
        self._connect_more()
        try:
            ready = self._epoll.poll(timeout, 1024)
        except InterruptedError:
            return []
        now = time.monotonic()
        touched: list[Member] = []
        for fd, _ in ready:
            member = self._by_fd.get(fd)
            if member is None:
                continue
            member.receive(now, self._known)
            touched.append(member)
            if member.opened or member.ended is not None:
                self._opening.discard(member)
            if not member.is_connected:
                # Its socket has left the set by being closed.
                self._by_fd.pop(fd, None)
        return touched

    def read_for(self, seconds: float) -> None:
        """Takes what comes for so long."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            self.read(left)

    def read_until(
        self, done: Callable[[Member], object], members: Iterable[Member] | None = None, *, timeout: float = 10.0
    ) -> None:
        """Reads until all members, or those that are named, are done.

        Args:
            done: Looked at anew when something has come to a member.
            members: Those who count; all are read.
            timeout: Seconds.

        Raises:
            TimeoutError: Some weren't done in time.
            ProtocolError: A byte is out of place.
        """
        waiting = {member for member in (self.members if members is None else members) if not done(member)}
        total, deadline = len(waiting), time.monotonic() + timeout
        while waiting:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError(f"{len(waiting)} of {total} not done within {timeout:g} s, such as {next(iter(waiting))!r}")
            waiting.difference_update([member for member in self.read(min(left, 0.1)) if member in waiting and done(member)])

    def _connect_more(self) -> None:
        while self._queue and len(self._opening) < OPENING_AT_ONCE:
            member = self._queue.popleft()
            if member.is_connected:
                continue
            sock = member.connect(f"127.0.0.{2 + self._count // self._per_address % 250}")
            self._count += 1
            self._by_fd[sock.fileno()] = member
            self._epoll.register(sock.fileno(), select.EPOLLIN)
            self._opening.add(member)

    def _forget(self, member: Member, fd: int) -> None:
        self._by_fd.pop(fd, None)
        self._opening.discard(member)


def position_of(event: Event) -> tuple[str, int]:
    """The epoch and the sequence number that an event's id names.

    Raises:
        ProtocolError: It has no id of the broker's form.
    """
    match = EVENT_ID.fullmatch(event.id or "")
    if match is None:
        raise ProtocolError(f"{event!r} has no id of the broker's")
    return match[1], int(match[2])


def _first_fault(seen: list[int], count: int) -> str:
    """Where a list of numbers first differs from 0 to `count`, in words."""
    for index, n in enumerate(seen):
        if n != index:
            return f"{n} where {index} should be, after {seen[max(index - 3, 0) : index]}"
    return f"{len(seen)} instead of {count}"
