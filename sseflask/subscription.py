"""A subscription: the producer of a stream that reads channels, and holds neither a greenlet nor a request while it waits."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import logging
import random
import time
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any, Final

from .brokers import Broker
from .config import Settings
from .errors import StreamClosed
from .event import ServerSentEvent, encode_item, retry_frame, to_event
from .position import EventId
from .ring import BATCH_BYTES, ChannelLog, Entry
from .state import CloseReason, Sink
from .stream import Stream

log = logging.getLogger("sseflask.stream")

Filter = Callable[[ServerSentEvent], object]
Snapshot = Callable[..., Any]

#: Seconds that one stream writes before others have their turn.
SLICE_SECONDS: Final = 0.0005


@dataclasses.dataclass(frozen=True, slots=True)
class Selection:
    """What a subscription asks for; one object may serve many.

    Attributes:
        channels: The channels' names, each once.
        filter: Says of an event whether the client gets it; None for all.
        events: The names of the events that the client gets; None for all.
        until: Says of an event whether it is the stream's last; None if only the channels' ends are.
    """

    channels: tuple[str, ...]
    filter: Filter | None = None
    events: frozenset[str] | None = None
    until: Callable[[Entry], bool] | None = None

    @property
    def is_plain(self) -> bool:
        """Whether every client at the same cursor gets the same bytes."""
        return len(self.channels) == 1 and self.filter is None and self.events is None and self.until is None

    def takes(self, entry: Entry) -> bool:
        """Whether the client gets an entry. Ends are never hidden."""
        if entry.is_end:
            return True
        if self.events is not None and (entry.name or "message") not in self.events:
            return False
        return self.filter is None or bool(self.filter(entry.event))


@dataclasses.dataclass(frozen=True, slots=True)
class Beginning:
    """How a subscription begins.

    Attributes:
        cursor: The number after which it reads.
        epoch: The life of the log whose number that is.
        frames: What the client gets first.
        reset: Whether that says that something is gone.
        is_unplaced: Whether the reset gave the client no position, since events that are retained follow.
    """

    cursor: int
    epoch: str
    frames: bytes
    reset: bool
    is_unplaced: bool = False


def begin(
    broker: Broker, channels: tuple[str, ...], last_event_id: str | None, snapshot: Snapshot | None, settings: Settings
) -> Beginning:
    """Takes the position, says what is gone, and runs the snapshot.

    Until the client has all of the snapshot, no event carries an id: one that is cut off before starts anew.

    Args:
        broker: The app's.
        channels: What is asked for.
        last_event_id: What the client says it saw last; None if it says nothing.
        snapshot: Gives the events that show the state of things; called with the position if it takes an argument.
        settings: The app's.

    Returns:
        Where to read on, and what the client gets first: the reset event if something is gone, the open event, the snapshot.

    Raises:
        BrokerUnavailable: The channels can't be read now.
    """
    broker.prepare(channels, last_event_id)
    return place(broker, channels, last_event_id, settings, snapshot=snapshot)


def place(
    broker: Broker,
    channels: tuple[str, ...],
    last_event_id: str | None,
    settings: Settings,
    *,
    snapshot: Snapshot | None = None,
) -> Beginning:
    """As `begin`, in the log as it is."""
    with broker.emitter.lock:
        position = broker.log.position
        resumption = broker.log.resume(channels, last_event_id) if last_event_id is not None else None
        replays = resumption is not None and any(True for _ in broker.log.merged(channels, resumption.cursor))
    reset = resumption.reset if resumption is not None else None
    shows = snapshot is not None and (resumption is None or reset is not None)
    from_head = shows or (reset is not None and not replays)
    cursor = position.seq if resumption is None or from_head else resumption.cursor
    # With a reset, what is retained follows under ids of its own: until then the client keeps the position that it has.
    named = None if shows or (reset is not None and replays) else EventId(position.epoch, cursor)
    frames = b""
    if reset is not None:
        frames += reset_frame(settings, reset, last_event_id, named)
    if not shows:
        return Beginning(cursor, position.epoch, frames + open_frame(settings, channels, named), reset is not None, named is None)
    assert snapshot is not None
    frames += open_frame(settings, channels, None) + snapshot_frames(snapshot, position, settings, channels)
    return Beginning(cursor, position.epoch, frames, reset is not None)


def missing(broker: Broker, channels: Iterable[str], cursor: int) -> dict[str, int]:
    """For each channel, the number of the newest event after `cursor` that is gone, 0 for none; called under the lock."""
    return {name: broker.log.missing_after(name, cursor) for name in channels}


def open_frame(settings: Settings, channels: Iterable[str], position: EventId | None) -> bytes:
    """The event that opens a subscription, its position as the id; a block with an id alone where the settings name no event."""
    event_id = None if position is None else str(position)
    if settings.open_event is None:
        return b"" if event_id is None else ServerSentEvent(id=event_id).encode()
    frame = _opening(settings.open_event, tuple(channels))
    # The id's line comes first, as `ServerSentEvent.encode` has it.
    return frame if event_id is None else b"id: %b\n%b" % (event_id.encode(), frame)


@functools.lru_cache(maxsize=256)
def _opening(open_event: str, channels: tuple[str, ...]) -> bytes:
    """The open event without its id: the same for all that subscribe to the same channels."""
    return ServerSentEvent({"channels": list(channels)}, event=open_event).encode()


def reset_frame(settings: Settings, reason: str, asked: str | None, position: EventId | None) -> bytes:
    """The event that tells a client that something is gone: why, and the position that it asked for."""
    event_id = None if position is None else str(position)
    return ServerSentEvent({"reason": reason, "position": asked}, event=settings.reset_event, id=event_id).encode()


def snapshot_frames(snapshot: Snapshot, position: EventId, settings: Settings, channels: Iterable[str]) -> bytes:
    """The events of a snapshot, of which only the last carries an id, the position."""
    result = snapshot(str(position)) if _takes_argument(snapshot) else snapshot()
    items = [result] if isinstance(result, ServerSentEvent | str | bytes | dict) else list(result if result is not None else ())
    if not items:
        return open_frame(settings, channels, position)
    frames = [encode_item(_without_id(item)) for item in items[:-1]]
    last = _without_id(items[-1])
    return b"".join([*frames, to_event(last, id=str(position)).encode()])


#: What a client has been told is gone that got no reset.
NOTHING: Final[Mapping[str, int]] = MappingProxyType({})


class Subscription:
    """Gives one stream what lies after its cursor. All its clients at one cursor share one `bytes` object."""

    __slots__ = (
        "_anew",
        "_broker",
        "_catches_up_to",
        "_closed",
        "_cursor",
        "_epoch",
        "_has_snapshot",
        "_is_pumping",
        "_is_unplaced",
        "_placed_at",
        "_ring",
        "_selection",
        "_settings",
        "_skipped",
        "_told",
        "_was_reset",
        "stream",
    )

    def __init__(
        self,
        broker: Broker,
        selection: Selection,
        beginning: Beginning,
        settings: Settings,
        stream: Stream,
        *,
        has_snapshot: bool = False,
    ) -> None:
        """Stores what it needs; it begins to listen at `start`.

        Args:
            broker: The app's.
            selection: What it asks for.
            beginning: Where it reads on.
            settings: The app's.
            stream: Where the events go.
            has_snapshot: Whether it begins with a snapshot, which only a new request can show again.
        """
        self.stream = stream
        self._has_snapshot = has_snapshot
        self._broker = broker
        self._selection = selection
        self._settings = settings
        self._cursor = beginning.cursor
        # Of the cursor that it begins with.
        self._epoch = beginning.epoch
        # For each channel, the newest of the events of which a reset told the client that they are gone.
        self._told: Mapping[str, int] = NOTHING
        self._was_reset = beginning.reset
        # The reset covers what is gone up to the first event that the client gets.
        self._is_unplaced = beginning.is_unplaced
        self._closed: set[str] | None = None
        self._ring: ChannelLog | None = None
        self._skipped = 0
        # When its client was last given a position; long ago where that isn't known.
        self._placed_at = 0.0
        # The epoch of its cursor, if what it reads has been replaced.
        self._anew: str | None = None
        # The number of the last entry that was there when its client came back; also above 0 if there is an epoch. 0 in between.
        self._catches_up_to = 0
        # Nothing is written before `start` is through.
        self._is_pumping = True

    def start(self, runner: object, response: object) -> bool:
        """Begins to listen; False if the stream has ended before.

        Raises:
            BrokerUnavailable: The channels can't be read now.
        """
        self._broker.subscribe(self._selection.channels, self)
        if not self.stream.start(self):
            self._broker.unsubscribe(self._selection.channels, self)
            return False
        if self._was_reset:
            self.stream.was_reset()
        head = self._look_up_rings()
        if self.stream.last_event_id is not None:
            self._catches_up_to = head
        else:
            self._placed_at = time.monotonic()
        with self._broker.emitter.lock:
            if self._broker.log.epoch != self._epoch:
                # Replaced since the position was taken, when it couldn't be told yet.
                self.begin_anew(self._epoch)
        self._is_pumping = False
        self.resume()
        return True

    @property
    def channels(self) -> tuple[str, ...]:
        """The channels that it reads."""
        return self._selection.channels

    @property
    def delivered(self) -> int:
        """Events that its client was given, if it reads one channel, whole; else 0."""
        return self.stream.events_sent if self._selection.is_plain else 0

    def _look_up_rings(self) -> int:
        """Finds what it reads. Returns the number of the last entry of all its channels."""
        channels = self._selection.channels
        rings = [ring for name in channels if (ring := self._broker.log.find(name)) is not None]
        for ring in rings:
            # What it catches up with says nothing of how long events take.
            ring.timed = ring.last
        head = max((ring.last for ring in rings), default=0)
        if len(channels) > 1:
            with self._broker.emitter.lock:
                closed = {ring.name for ring in rings if ring.ended and ring.last <= self._cursor}
            # If all had closed before, the client waits for what they are used for next.
            self._closed = closed if len(closed) < len(channels) else set()
        if self._selection.is_plain:
            self._ring = self._broker.log.find(next(iter(channels)))
        return head

    @property
    def log_extra(self) -> dict[str, str]:
        """What a log line about it has beside its text: that of its stream."""
        return self.stream.log_extra

    def discard(self) -> None:
        """Does nothing: it hasn't begun."""

    def resume(self) -> None:
        """The sink takes bytes again, or is another one."""
        self._broker.waker.pump(self)

    def interrupt(self) -> None:
        """The stream has ended: stops listening."""
        channels = self._selection.channels
        self._broker.unsubscribe(channels, self)
        if self._broker.tallies is not None and self._selection.is_plain:
            # From here on it isn't asked any more.
            self._broker.tallies[channels[0]].delivered += self.stream.events_sent
        self.stream.producer_ended()

    def is_here(self) -> bool:
        """A subscription runs nowhere."""
        return False

    def stack(self) -> str:
        """A subscription runs nowhere."""
        return "(a subscription)"

    def is_behind(self, seq: int, since: float) -> bool:
        """Whether it hasn't got as far as entry `seq`, though its client has taken something since that monotonic second."""
        blocked = self.stream.sink.blocked_since
        return self._cursor < seq and (blocked is None or blocked > since) and not self.stream.closed

    def begin_anew(self, epoch: str) -> None:
        """What it reads has been replaced: at its next `pump` it looks for its position, of that epoch, in the log as it is now."""
        if self._anew is None:
            self._anew = epoch
        self._catches_up_to = self._catches_up_to or 1

    def pump(self, now: float) -> bool:
        """Writes what lies after the cursor, until there is nothing, the sink takes no more, or its slice of time is over."""
        if self._is_pumping:
            return False
        self._is_pumping = True
        stream = self.stream
        sink = stream.sink
        try:
            if self._catches_up_to and self._is_catching_up(now):
                step = self._write_again
            else:
                step = self._write_selected if self._ring is None else self._write_batch
            while sink.blocked_since is None and not stream.closed and step(sink, now):
                if time.monotonic() - now > SLICE_SECONDS:
                    return True
        finally:
            self._is_pumping = False
        if sink.blocked_since is not None:
            stream.is_blocked()
        return False

    def _is_catching_up(self, now: float) -> bool:
        """Sees to what has been replaced. Returns whether it still has to write what was there when its client came back."""
        if self._anew is not None:
            self._look_anew(self._anew, now)
        if self._cursor < self._catches_up_to:
            return True
        self._catches_up_to = 0
        if self._anew is not None:
            # Another native thread has said so meanwhile.
            self._catches_up_to = 1
        return False

    def _write_again(self, sink: Sink, now: float) -> bool:
        """Writes, and counts what of it was there when the client came back. Returns whether there is more."""
        is_again, before = self._cursor < self._catches_up_to, self.stream.events_sent
        goes_on = self._write_selected(sink, now) if self._ring is None else self._write_batch(sink, now)
        if is_again:
            self.stream.was_replayed(self.stream.events_sent - before)
        return goes_on

    def _look_anew(self, epoch: str, now: float) -> None:
        """Goes on at its position in the log as it is now; tells the client what is gone."""
        self._anew = None
        self._catches_up_to = 0
        if self._has_snapshot:
            # Only a new request can show the state of things again.
            self.stream.end(CloseReason.RESET, retry_frame(random.randint(500, 2500)), StreamClosed(CloseReason.RESET))
            return
        asked = str(EventId(epoch, self._cursor))
        beginning = place(self._broker, self._selection.channels, asked, self._settings)
        self._cursor = beginning.cursor
        self._is_unplaced = beginning.is_unplaced
        self._told = NOTHING
        self._look_up_rings()
        if beginning.reset:
            self.stream.was_reset()
            self.stream.sent(1, len(beginning.frames), now)
            self.stream.sink.write(beginning.frames)

    def _write_batch(self, sink: Sink, now: float) -> bool:
        """Writes what all clients at this cursor get. Returns whether there is more."""
        ring, cursor, stream = self._ring, self._cursor, self.stream
        assert ring is not None
        if cursor >= ring.last:
            return False
        batch = ring.batches.get(cursor)
        if batch is None:
            with self._broker.emitter.lock:
                batch = ring.batch(cursor)
            if batch is not None and batch.last > ring.timed:
                ring.timed = batch.last
                self._broker.waker.latency.taken.append(batch.at)
        if batch is None or batch.prev > cursor:
            if not self._is_unplaced:
                return self._fell_behind(now)
            if batch is None:
                self._cursor = ring.last
                return False
        self._is_unplaced = False
        self._cursor = last = batch.last
        # As `Stream.sent`, without a call for each of thousands.
        count, size, total = batch.count, len(batch.data), stream.total
        stream.events_sent += count
        stream.bytes_sent += size
        total.events += count
        total.size += size
        stream.last_write = now
        sink.write_shared(batch)
        if batch.is_end:
            self._end()
        return last < ring.last

    def _write_selected(self, sink: Sink, now: float) -> bool:
        """Writes what this client has selected. Returns whether there was anything to look at."""
        broker, selection = self._broker, self._selection
        entries = self._next_entries()
        if entries is None:
            return self._fell_behind(now)
        if not entries:
            return False
        frames = []
        is_over = False
        quarter = self._quarter()
        shown: list[str] = []
        failure: BaseException | None = None
        for entry in entries:
            try:
                takes = selection.takes(entry)
            except BaseException as error:
                # The worker's other streams have no part in it, whatever it is.
                failure = error
                break
            self._cursor = entry.seq
            if self._closed and not entry.is_end:
                # A channel that is used again is open again.
                self._closed.discard(entry.channel)
            if not takes:
                self._skipped += 1
                continue
            self._skipped = 0
            is_over = (entry.is_end and self._is_last_of(entry)) or (selection.until is not None and selection.until(entry))
            frames.append(entry.final_frame if is_over else entry.frame)
            shown.append(entry.channel)
            if is_over:
                break
        count = len(frames)
        self._count(shown, entries[-1])
        is_old = not frames and now - self._placed_at > self._settings.history_seconds / 4
        if self._skipped >= (1 if is_old else quarter) and not is_over:
            # Its position must not fall out of the history only because nothing is to its taste.
            self._skipped = 0
            frames.append(open_frame(self._settings, selection.channels, EventId(broker.log.epoch, self._cursor)))
        if frames:
            self._placed_at = now
            data = b"".join(frames)
            self.stream.sent(count, len(data), now)
            sink.write(data)
        if is_over:
            self._end()
        if failure is not None:
            log.error(
                "the filter of the stream at %s failed", self.stream.quoted_path, exc_info=failure, extra=self.stream.log_extra
            )
            self.stream.fail(failure)
            self.interrupt()
        return True

    def _count(self, shown: Iterable[str], newest: Entry) -> None:
        """Counts the channels of what its client gets, and has it measured how long the newest entry takes, if nobody has."""
        tallies = self._broker.tallies
        if tallies is not None and not self._selection.is_plain:
            for name in shown:
                tallies[name].delivered += 1
        ring = self._broker.log.find(newest.channel)
        if ring is not None and newest.seq > ring.timed:
            ring.timed = newest.seq
            self._broker.waker.latency.taken.append(newest.at)

    def _next_entries(self) -> list[Entry] | None:
        """The entries after the cursor that go into one write; None if some are gone that the client doesn't know of."""
        log, channels = self._broker.log, self._selection.channels
        with self._broker.emitter.lock:
            if len(channels) > 1 and not self._broker.is_complete(channels):
                return []
            gone = missing(self._broker, channels, self._cursor)
            if self._is_unplaced:
                self._told = gone
            if any(newest > self._told.get(name, 0) for name, newest in gone.items()):
                return None
            return _first(log.merged(channels, self._cursor))

    def _quarter(self) -> int:
        """The events that may be hidden from a client before it is told where it is: a quarter of the shortest history."""
        if self._is_unplaced:
            # It has no position yet that it could come back with.
            self._is_unplaced = False
            return 1
        rings = [self._broker.log.find(name) for name in self._selection.channels]
        return max(min(ring.limit for ring in rings if ring is not None) // 4, 1)

    def _is_last_of(self, entry: Entry) -> bool:
        """Whether an end is that of the stream: of its only channel, or of the last one that was open."""
        if self._closed is None:
            return True
        self._closed.add(entry.channel)
        return len(self._closed) == len(self._selection.channels)

    def _end(self) -> None:
        if self.stream.end(CloseReason.COMPLETED):
            self.interrupt()

    def _fell_behind(self, now: float) -> bool:
        """The history was too short for this client. Returns whether it goes on."""
        if self._settings.slow_client == "disconnect" or self._has_snapshot:
            self.stream.end(CloseReason.SLOW, interruption=StreamClosed(CloseReason.SLOW))
            return False
        asked = EventId(self._broker.log.epoch, self._cursor)
        with self._broker.emitter.lock:
            rings = [self._broker.log.find(name) for name in self._selection.channels]
            # What is skipped never holds the end of a channel: its client would wait for ever.
            ends = [ring.last for ring in rings if ring is not None and ring.ended and ring.entries and ring.last > self._cursor]
            # Not the head of the log: what these channels have before it may still be on its way here.
            self._cursor = min(ends) - 1 if ends else max([self._cursor, *(ring.last for ring in rings if ring is not None)])
            self._told = missing(self._broker, self._selection.channels, self._cursor)
        frame = reset_frame(self._settings, "slow", str(asked), EventId(self._broker.log.epoch, self._cursor))
        self.stream.was_reset()
        self.stream.sent(1, len(frame), now)
        self.stream.sink.write(frame)
        return True


def _first(entries: Iterable[Entry]) -> list[Entry]:
    """As many entries as go into one write."""
    taken: list[Entry] = []
    size = 0
    for entry in entries:
        size += len(entry.frame)
        if taken and size > BATCH_BYTES:
            break
        taken.append(entry)
    return taken


def _without_id(item: Any) -> Any:
    return dataclasses.replace(item, id=None) if isinstance(item, ServerSentEvent) and item.id is not None else item


def _takes_argument(function: Snapshot) -> bool:
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return False
    return any(parameter.kind in _POSITIONAL and parameter.default is parameter.empty for parameter in parameters)


_POSITIONAL: Final = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
