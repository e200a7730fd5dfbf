"""The stream whose generator is running: `current_stream`, and `heartbeat`."""

from __future__ import annotations

from werkzeug.local import LocalProxy

from .errors import NoActiveStream
from .stream import Stream, active


def active_stream() -> Stream:
    """The stream whose generator calls this, from however deep.

    Raises:
        NoActiveStream: It isn't called from inside a stream's generator.
    """
    try:
        return active.get()
    except LookupError:
        raise NoActiveStream("this works only inside the generator of an event stream") from None


#: The `Stream` whose generator runs here, from however deep it is used. Where there is none it is false, and using its attributes
#: raises `NoActiveStream`.
current_stream: Stream = LocalProxy(active_stream)  # type: ignore[assignment]


def log_extra() -> dict[str, str]:
    """What a log line has beside its text that is written in a stream's generator; empty elsewhere."""
    stream = active.get(None)
    return stream.log_extra if stream is not None else {}


def heartbeat(seconds: float = 10) -> bool:
    """Puts the deadline of the current stream off, to `seconds` from now.

    Args:
        seconds: Above 0, and at most the stream's time-out.

    Returns:
        Whether it was put off; False when the stream has no time-out, `seconds` isn't in those bounds, or it has ended.

    Raises:
        NoActiveStream: It isn't called from inside a stream's generator.
        StreamClosed: The stream has ended; raised once.
    """
    return active_stream().heartbeat(seconds)
