"""Where a stream is in its life, why it ended, and what it expects of those it is joined to."""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from .ring import Frames
    from .stream import Stream


class StreamState(enum.Enum):
    """Where a stream is in its life."""

    # Each state is one object: hashing its name would be a call of Python's, at each change of each stream.
    __hash__ = object.__hash__

    OPENING = "opening"
    """The response headers haven't been sent: for at most `SSE_OPEN_TIMEOUT` they wait for a generator's first event."""
    LIVE = "live"
    """The client gets events, and keepalive comments while there are none."""
    DRAINING = "draining"
    """Its end is decided: the last bytes are on their way, the producer may still be in its `finally`."""
    CLOSED = "closed"
    """The client's side and the producer have both ended."""


#: Every change of state that there is, and what makes it.
TRANSITIONS: Final[Mapping[StreamState, Mapping[StreamState, str]]] = {
    StreamState.OPENING: {
        StreamState.LIVE: "the response headers are on their way",
        StreamState.DRAINING: "its end is decided before that",
    },
    StreamState.LIVE: {StreamState.DRAINING: "its end is decided"},
    StreamState.DRAINING: {StreamState.CLOSED: "the client's side and the producer have ended"},
    StreamState.CLOSED: {},
}


class CloseReason(enum.StrEnum):
    """Why a stream ended."""

    COMPLETED = "completed"
    """Its generator returned, or all of its channels were closed."""
    ERROR = "error"
    """Its generator, or its filter, raised."""
    DISCONNECTED = "disconnected"
    """The client hung up, or its connection was lost."""
    LOST = "lost"
    """Nothing that was sent was acknowledged for longer than `SSE_SEND_TIMEOUT`: the client has vanished, or doesn't read."""
    TIMEOUT = "timeout"
    """Its deadline passed."""
    MAX_AGE = "max_age"
    """It lived for `SSE_MAX_AGE`."""
    SLOW = "slow"
    """The client left what was sent to it unread for `SSE_SEND_TIMEOUT`, or fell behind its channel's history."""
    SHUTDOWN = "shutdown"
    """The worker is stopping."""
    RESET = "reset"
    """The broker's log was replaced, and only a new request can show its client's snapshot again."""
    CANCELLED = "cancelled"
    """Its task, or its run, was asked to end."""
    ABANDONED = "abandoned"
    """Nobody has watched its run for longer than the run's `detach_grace`."""
    CONCLUDED = "concluded"
    """Its task was ended by somebody else than its own work."""
    REVOKED = "revoked"
    """The app has disconnected it, by `sse.disconnect`."""
    EXPIRED = "expired"
    """The token that allowed it has expired."""
    REFUSED = "refused"
    """A limit was reached, or the worker was stopping before it opened."""
    DISCARDED = "discarded"
    """Its response was never sent: a HEAD request, or one that something else answered."""


class Part:
    """What must have ended before a stream is closed; bits in one number: `enum.Flag` takes many times as long."""

    SINK: Final = 1
    PRODUCER: Final = 2


class Sink(Protocol):
    """Takes the bytes of one stream to its client.

    It calls `Stream.sink_ended` once: when the last bytes have gone out, or the client has.

    Attributes:
        blocked_since: The monotonic second since when the client hasn't taken what was written; None while it keeps up.
    """

    blocked_since: float | None

    def write(self, data: bytes) -> bool:
        """Hands over whole frames, without waiting. Returns whether more may follow before `wait`."""
        ...

    def write_shared(self, frames: Frames) -> bool:
        """As `write`, for frames that many clients get; what `hold` has kept may go out after them."""
        ...

    def hold(self, data: bytes) -> bool:
        """As `write`, for frames that may go out with those that follow at once, when the producer gives way at the latest."""
        ...

    def flush(self) -> None:
        """Sends what `hold` has kept: the producer gives way."""

    def wait(self) -> None:
        """Waits until the client has taken what was written, or the sink has ended."""

    def finish(self, last: bytes) -> None:
        """Ends cleanly after what was written and `last`; nothing written later is taken."""

    def abort(self) -> None:
        """Ends now; what the client hasn't taken is dropped."""


class Producer(Protocol):
    """Makes the events of one stream, in a greenlet or thread of its own.

    It calls `Stream.producer_ended` once.
    """

    def interrupt(self) -> None:
        """Raises the stream's interruption where the producer waits, if that can be done from outside."""

    def resume(self) -> None:
        """The sink takes bytes again, or it is another one."""

    def is_here(self) -> bool:
        """Whether the caller is the producer's own greenlet or thread."""
        ...

    def stack(self) -> str:
        """Where the producer is, as lines of a traceback."""
        ...


class Keeper(Protocol):
    """Calls `Stream.tick` when a stream is due."""

    def schedule(self, stream: Stream) -> None:
        """The stream may have become due earlier than it was, or is closed."""

    def flush_at(self, stream: Stream, due: float) -> None:
        """Has `Stream.flush` called at the monotonic second `due`, soon after it at the latest."""

    def stream_closed(self, stream: Stream, callbacks: list[Callable[[], object]]) -> None:
        """The stream is closed; calls what waits for that."""

    def count(self, what: str, by: int = 1) -> None:
        """Something happened to a stream that is counted: `"resets"`, `"events_replayed"`, `"keepalives"`."""

    def report_stuck(self, stream: Stream, stack: str) -> None:
        """The stream's producer still runs `STUCK_SECONDS` after its end; it is at `stack`."""
