"""A store that lies in one process: the brokers that are made with it share what it keeps, as processes share a real one's.

It is the example of docs/contribute/adding-a-broker.md.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Collection, Mapping

from sseflask import native
from sseflask.brokers.store import Feed, Head, Publication, Reading, Stored
from sseflask.brokers.tasks import REMEMBERED_SECONDS, MemoryTasks, TaskStore
from sseflask.log import Log
from sseflask.ring import Entry

TOKEN_SECONDS = 60.0
POLL_SECONDS = 0.1


class ShelfStore:
    """Keeps the events; see `Store`."""

    def __init__(self, *, history: int, history_seconds: float, history_bytes: int) -> None:
        self.url = "shelf://"
        self._lock = native.Lock()
        self._log = Log(secrets.token_hex(6), history=history, history_seconds=history_seconds, history_bytes=history_bytes)
        # By token, when it was seen and the id that was given; the oldest first.
        self._tokens: OrderedDict[str, tuple[float, str]] = OrderedDict()
        # By process, until when its report counts, and the streams that each channel has there.
        self._streams: dict[str, tuple[float, dict[str, int]]] = {}
        self._records = MemoryTasks(self._lock, seconds=history_seconds)
        self.tasks: TaskStore = self._records

    def publish(self, publication: Publication) -> Stored:
        """Numbers an event and keeps it."""
        now = time.monotonic()
        with self._lock:
            while self._tokens and now - next(iter(self._tokens.values()))[0] > TOKEN_SECONDS:
                self._tokens.popitem(last=False)
            if publication.token in self._tokens:
                return Stored(self._tokens[publication.token][1], is_new=False)
            task = publication.task
            if task is not None and ((state := self._records.state_of(task.id)) is None or state.is_final):
                return Stored("", is_new=False, refused=state or "")
            event_id = publication.user_id or f"{self._log.epoch}-{self._log.seq + 1}"
            entry = self._log.append(
                publication.channel,
                publication.body if publication.user_id else f"id: {event_id}\n".encode() + publication.body,
                now=now,
                name=publication.name,
                user_id=publication.user_id,
                is_end=publication.is_end,
                history=publication.history,
            )
            # The rings of all processes keep as many from here on.
            entry.history = publication.history
            if task is not None:
                self._records.change(task, entry.seq, publication.body)
            self._tokens[publication.token] = (now, event_id)
            return Stored(event_id, is_new=True)

    def head(self) -> Head:
        """Where the log stands now."""
        with self._lock:
            return Head(self._log.epoch, self._log.seq)

    def read(self, after: Mapping[str, int | None]) -> Mapping[str, Reading]:
        """The parts of some channels, all as of one moment."""
        with self._lock:
            self._expire(time.monotonic())
            return {channel: self._reading(channel, cursor) for channel, cursor in after.items()}

    def news(self, cursor: int) -> tuple[Head, list[Entry]]:
        """The head, and what is still there of all channels after a number; for followers."""
        with self._lock:
            return Head(self._log.epoch, self._log.seq), list(self._log.merged(self._log.names(), cursor))

    def report(self, process: str, counts: Mapping[str, int], seconds: float) -> None:
        """Keeps how many streams of a process each channel has."""
        with self._lock:
            self._streams[process] = (time.monotonic() + seconds, dict(counts))

    def counts(self, channels: Collection[str] | None = None) -> Mapping[str, int]:
        """How many streams each channel has over all processes that reported."""
        found: dict[str, int] = {}
        with self._lock:
            for until, counts in self._streams.values():
                for channel, count in counts.items() if until >= time.monotonic() else ():
                    found[channel] = found.get(channel, 0) + count
        return found if channels is None else {channel: found.get(channel, 0) for channel in channels}

    def follower(self, feed: Feed) -> ShelfFollower:
        """What tells `feed` of new entries."""
        return ShelfFollower(self, feed)

    def close(self) -> None:
        """There is nothing to let go of."""

    def _reading(self, channel: str, cursor: int | None) -> Reading:
        ring = self._log.hold(channel)
        entries = [] if cursor is None else ring.after(cursor)
        reading = Reading(self._log.epoch, self._log.seq, ring.last, ring.ended, ring.limit, entries)
        # A ring that was made for this is forgotten; its last number isn't.
        self._log.release(channel)
        return reading

    def _expire(self, now: float) -> None:
        self._log.expire(now)
        # Channels that keep all, and haven't ended.
        for channel in self._log.silent(now - REMEMBERED_SECONDS):
            if not self._records.is_worked_on(channel, now):
                self._log.give_up(channel)


class ShelfFollower:
    """Looks for news now and then, and at once when its own broker has published; see `Follower`."""

    def __init__(self, store: ShelfStore, feed: Feed) -> None:
        self._store = store
        self._feed = feed
        # Whoever tells the feed holds it: that keeps the order.
        self._turn = native.Lock()
        # Up to where it was told; None while nobody listens.
        self._cursor: int | None = None
        self._closed = threading.Event()

    def listen(self, channels: Collection[str]) -> None:
        """From here on nothing is missed."""
        with self._turn:
            if self._cursor is not None:
                return
            self._cursor = self._store.head().seq
        threading.Thread(target=self._run, name="shelf", daemon=True).start()

    def unlisten(self, channels: Collection[str]) -> None:
        """It tells of all channels; the feed leaves out those that it doesn't follow."""

    def catch_up(self) -> None:
        """Tells what is new, in the calling thread."""
        with self._turn:
            if self._cursor is None:
                return
            head, entries = self._store.news(self._cursor)
            is_whole = len(entries) == head.seq - self._cursor
            self._cursor = head.seq
            if entries:
                self._feed.arrived(head, entries)
        if not is_whole:
            # Some had to give way before they were told of: the feed reads what it misses, or tells its streams.
            self._feed.resumed(head)
        self._feed.tell()

    def settle(self) -> None:
        """Tells what is new: that is all."""
        self.catch_up()

    def is_here(self) -> bool:
        """Nothing here waits for its thread."""
        return False

    def close(self) -> None:
        """Ends it for good."""
        self._closed.set()

    def _run(self) -> None:
        while not self._closed.wait(POLL_SECONDS):
            try:
                self.catch_up()
            except BaseException:
                # A listener of the app's may raise anything, and everyone else still waits for news.
                logging.getLogger("sseflask.broker").exception("telling of news failed")
