"""The log that hosts share: kept in Redis, numbered by one script per publish, pushed by its Pub/Sub.

What is lost when Redis is killed is what it had not yet written. With `appendfsync always`, and `durable=1` in the URL, that is
nothing which a publish had returned for, and positions stay good. Otherwise each restart begins a new epoch, so that no number
stands for two events, and clients are told by a reset.
"""

from __future__ import annotations

import dataclasses
import os
import random
import time
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final, NamedTuple

from sseflask import native
from sseflask.errors import BrokerUnavailable
from sseflask.log import REMEMBERED_CHANNELS

from . import redis_script
from .redis_connection import Endpoint, Pool
from .redis_follower import RedisFollower
from .redis_script import Script
from .redis_tasks import RedisTasks
from .store import Feed, Head, Publication, Reading, Stored
from .tasks import TaskStore

#: Seconds that a channel's stream outlives the time for which its last entry is kept: clients come back a little late.
STREAM_MARGIN: Final = 30
#: Channels that are read by one script: more are read by several.
READ_CHANNELS: Final = 500
#: Entries of a channel that are read by one script: a long run is read by several.
READ_ENTRIES: Final = 2000
#: Seconds before a call is tried again, at first and at the most; each time up to twice as long.
FIRST_DELAY: Final = 0.01
LONGEST_DELAY: Final = 0.5

#: What an answer begins with that says that nothing has been done, nor soon will be.
_REFUSALS: Final = ("OOM", "MISCONF", "NOREPLICAS", "BUSY", "MOVED", "CROSSSLOT")


class RedisStore:
    """Keeps events in a Redis, which may be restarted or away for a while; see `Store`.

    Attributes:
        url: Its URL without a password.
        tasks: The records of tasks, in the same Redis.
    """

    def __init__(self, url: str, *, prefix: str = "sseflask", history: int, history_seconds: float, timeout: float) -> None:
        """Stores what it is given; connections are made when they are needed, in the process that needs them.

        Args:
            url: `redis://`, `rediss://` or `unix://`, as redis-py reads them; with `durable=1` for a Redis that has
                `appendfsync always` and no replicas to take its place.
            prefix: What the names of all keys and Pub/Sub channels begin with, in braces.
            history: Entries that a channel keeps, unless a publication says otherwise.
            history_seconds: Seconds that they are kept after the last of their channel.
            timeout: Seconds that a call may take.

        Raises:
            InvalidSetting: It is no such URL, or redis-py isn't installed.
        """
        self._endpoint = Endpoint(url, prefix=prefix, timeout=timeout)
        self.url = self._endpoint.address.url
        self._timeout = timeout
        self._history = history
        self._seconds = int(history_seconds) + STREAM_MARGIN
        prefix = self._endpoint.prefix
        self._log_keys = (f"{prefix}meta", f"{prefix}channels", f"{prefix}order")
        self._streams = f"{prefix}stream:"
        self._tokens = f"{prefix}token:"
        self._reports = f"{prefix}reports"
        self._report = f"{prefix}report:"
        self._tasks = RedisTasks(self._run, prefix=prefix)
        self.tasks: TaskStore = self._tasks
        # By process, and by what may share them there.
        self._pools: dict[tuple[int, bool], Pool] = {}

    def __repr__(self) -> str:
        return f"<RedisStore {self.url}>"

    def publish(self, publication: Publication) -> Stored:
        """Numbers an event and keeps it; see `Store.publish`. Tries again within its time, which stores it once."""
        channel = publication.channel
        task_keys, task_arguments = self._tasks.published(publication.task) if publication.task is not None else ((), ())
        event_id, is_new, *refused = self._run(
            redis_script.PUBLISH,
            (*self._log_keys, self._streams + channel, self._tokens + publication.token, *task_keys),
            (
                channel,
                self._endpoint.live + channel,
                redis_script.packed(publication),
                publication.user_id or "",
                "1" if publication.is_end else "0",
                "" if publication.history is None else publication.history,
                self._history,
                self._seconds,
                REMEMBERED_CHANNELS,
                self._streams,
                *task_arguments,
            ),
        )
        return Stored(event_id.decode(), bool(is_new), refused[0].decode() if refused else None)

    def head(self) -> Head:
        """Where the log stands now; see `Store.head`."""
        epoch, seq, *_ = self._run(redis_script.READ, self._log_keys, ())
        return Head(epoch.decode(), int(seq))

    def read(self, after: Mapping[str, int | None]) -> Mapping[str, Reading]:
        """The parts of some channels, all as of the moment at which the first were read; see `Store.read`."""
        channels = list(after)
        found = self._read({channel: after[channel] for channel in channels[:READ_CHANNELS]}) if channels else {}
        for first in range(READ_CHANNELS, len(channels), READ_CHANNELS):
            some = channels[first : first + READ_CHANNELS]
            moment = found[channels[0]]
            # Also of those whose entries aren't asked for: before them lies where they stood.
            readings = self._read({channel: moment.seq if after[channel] is None else after[channel] for channel in some})
            found |= {channel: _as_of(moment, reading) for channel, reading in readings.items()}
        return found

    def report(self, process: str, counts: Mapping[str, int], seconds: float) -> None:
        """Keeps how many streams of a process each channel has; see `Store.report`."""
        flat = [part for channel, count in counts.items() if count for part in (channel, count)]
        self._run(redis_script.REPORT, (self._reports, self._report + process), (process, seconds, *flat), knows_life=False)

    def counts(self, channels: Collection[str] | None = None) -> Mapping[str, int]:
        """How many streams each channel has over all processes; see `Store.counts`."""
        if channels is not None and not channels:
            return {}
        flat = self._run(redis_script.COUNTS, (self._reports,), (self._report, *(channels or ())), knows_life=False)
        found = {channel.decode(): int(count) for channel, count in zip(flat[::2], flat[1::2], strict=True)}
        return {channel: count for channel, count in found.items() if count}

    def follower(self, feed: Feed) -> RedisFollower:
        """One that tells `feed` of new entries, by a connection of its own."""
        return RedisFollower(self._endpoint, self.head, feed)

    def close(self) -> None:
        """Closes the connections that lie idle; see `Store.close`."""
        pools, self._pools = self._pools, {}
        for (process, _), pool in pools.items():
            if process == os.getpid():
                pool.close()

    def _read(self, after: Mapping[str, int | None]) -> dict[str, Reading]:
        life, head, floor, now_ms, states, stored = self._read_some({channel: (number, "") for channel, number in after.items()})
        now = time.monotonic()
        lasts = {channel: state[0] for channel, state in states.items() if state}
        # A long stream in several scripts, not to keep all others waiting, as it was at the moment of the first.
        while more := {
            channel: (entries[-1][0], lasts[channel])
            for channel, entries in stored.items()
            if len(entries) % READ_ENTRIES == 0 and entries and entries[-1][0] < lasts[channel]
        }:
            another, *_, following = self._read_some(more)
            if another != life:
                return self._read(after)
            for channel, entries in following.items():
                if not entries:
                    # Gone meanwhile, with all that came before.
                    stored[channel] = []
                stored[channel] += entries
        found = {}
        for channel, state in states.items():
            last, is_end, kept = state or (floor, 0, 0)
            found[channel] = Reading(
                epoch=life,
                seq=head,
                last=last,
                ended=bool(is_end),
                limit=kept or self._history,
                entries=redis_script.chained(life, channel, last, stored[channel], now_ms, now),
            )
        return found

    def _read_some(self, asked: Mapping[str, tuple[int | None, int | str]]) -> _Some:
        """Reads streams after some numbers, up to others, `READ_ENTRIES` of each at the most."""
        epoch, seq, floor, now_ms, states, entries = self._run(
            redis_script.READ,
            (*self._log_keys, *(self._streams + channel for channel in asked)),
            (
                READ_ENTRIES,
                *(part for channel, (after, last) in asked.items() for part in (channel, "" if after is None else after, last)),
            ),
        )
        return _Some(
            epoch.decode(),
            int(seq),
            int(floor),
            int(now_ms),
            {
                channel: tuple(int(number) for number in state.split()) if state else ()
                for channel, state in zip(asked, states, strict=True)
            },
            {channel: redis_script.stored(joined) for channel, joined in zip(asked, entries, strict=True)},
        )

    def _run(self, script: Script, keys: Sequence[str], arguments: Sequence[Any], *, knows_life: bool = True) -> Any:
        """Runs a script, again and again while the server can't be reached and there is time.

        Raises:
            BrokerUnavailable: Its outcome is `"unknown"` if the script was sent and may have run.
        """
        deadline = time.monotonic() + self._timeout
        delay = FIRST_DELAY
        outcome = "not_published"
        while True:
            attempt = _Attempt()
            try:
                return self._try(attempt, deadline, script, keys, arguments, knows_life=knows_life)
            except BrokerUnavailable as unfit:
                # Which it was found when it was connected to; an attempt before may have reached it all the same.
                unfit.outcome = outcome
                raise
            except Exception as error:
                if not _is_redis(error):
                    raise
                if attempt.may_have_run:
                    outcome = "unknown"
                remaining = deadline - time.monotonic()
                if attempt.is_final or remaining <= delay:
                    raise self._endpoint.failed(error, outcome) from None
            native.pause(random.uniform(delay / 2, delay))
            delay = min(2 * delay, LONGEST_DELAY)

    def _try(
        self,
        attempt: _Attempt,
        deadline: float,
        script: Script,
        keys: Sequence[str],
        arguments: Sequence[Any],
        *,
        knows_life: bool,
    ) -> Any:
        """Runs a script once; what became of it if it fails stands in `attempt`."""
        from redis.exceptions import RedisError

        pool = self._pool()
        link = pool.take(deadline)
        try:
            if knows_life:
                arguments = (*self._endpoint.life(link), *arguments)
            attempt.may_have_run = True
            answer = link.run_script(deadline, script, keys, arguments)
        except RedisError as error:
            attempt.judge(error)
            pool.drop(link)
            raise
        except BaseException:
            pool.drop(link)
            raise
        pool.give(link)
        return answer

    def _pool(self) -> Pool:
        key = (os.getpid(), native.is_apart())
        pool = self._pools.get(key)
        if pool is None:
            # A forked process leaves its parent's connections alone: letting go of them closes no more than its own descriptors.
            for other in [other for other in self._pools if other[0] != key[0]]:
                self._pools.pop(other, None)
            pool = self._pools.setdefault(key, Pool(self._endpoint))
        return pool


class _Some(NamedTuple):
    """What one script has read.

    Attributes:
        epoch: The log's.
        seq: Where it stands.
        floor: Its floor.
        now_ms: Redis's milliseconds.
        states: By channel its last number, whether that was an end, and what it keeps; nothing for one that isn't known.
        entries: By channel what was read of its stream.
    """

    epoch: str
    seq: int
    floor: int
    now_ms: int
    states: dict[str, tuple[int, ...]]
    entries: dict[str, list[tuple[int, int, int, bytes]]]


class _Attempt:
    """What is known of a script that was to be run once.

    Attributes:
        may_have_run: Whether it was sent, and the server didn't say that it hasn't run.
        is_final: Whether trying again would help nothing.
    """

    __slots__ = ("is_final", "may_have_run")

    def __init__(self) -> None:
        self.may_have_run = False
        self.is_final = False

    def judge(self, error: Exception) -> None:
        """Takes the server's word for it, if that is what the error is."""
        from redis import exceptions

        text = str(error)
        if isinstance(error, exceptions.ResponseError):
            # Its errors come with the first write, so they leave no trace; of one that we don't know we don't say so.
            may_come_back = isinstance(error, exceptions.ReadOnlyError | exceptions.ClusterError | exceptions.TryAgainError)
            is_refusal = isinstance(
                error, exceptions.OutOfMemoryError | exceptions.MovedError | exceptions.ClusterCrossSlotError
            ) or text.startswith(_REFUSALS)
            self.is_final = not may_come_back
            self.may_have_run = not (may_come_back or is_refusal)
        elif isinstance(error, exceptions.BusyLoadingError | exceptions.AuthenticationError):
            self.may_have_run = False


def _as_of(moment: Reading, reading: Reading) -> Reading:
    """A reading without what was stored after another one, of the same life, was made."""
    if reading.epoch != moment.epoch:
        return reading
    entries = [entry for entry in reading.entries if entry.seq <= moment.seq]
    last, ended = reading.last, reading.ended
    if len(entries) < len(reading.entries):
        # Whether an entry that isn't read was an end doesn't matter: another one follows it.
        last, ended = reading.entries[len(entries)].prev, bool(entries) and entries[-1].is_end
    return dataclasses.replace(reading, seq=moment.seq, last=last, ended=ended, entries=entries)


def _is_redis(error: Exception) -> bool:
    """Whether it says that the server can't be used: redis-py's errors, and the system's."""
    from redis.exceptions import RedisError

    return isinstance(error, RedisError | OSError)
