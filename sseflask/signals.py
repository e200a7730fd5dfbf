"""Signals, as Flask's own: connect a function to hear of every stream and event of an app.

The sender is the app. A receiver of `stream_closed` or `subscriber_dropped` may wait; the others run where the event is published
or the stream opens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from blinker import Namespace

from .state import CloseReason
from .stream import Stream

_signals: Final = Namespace()

#: A stream has opened: its headers are about to be sent. Sent with `stream`, a `Stream`.
stream_opened: Final = _signals.signal("stream-opened")
#: A stream is closed, its generator's `finally` included. Sent with `stream` and `reason`, a `CloseReason`.
stream_closed: Final = _signals.signal("stream-closed")
#: The broker has an event that this process has published. Sent with `channel`, its name, `event`, a `ServerSentEvent`, and `id`.
event_published: Final = _signals.signal("event-published")
#: A client was cut because it didn't read; sent before `stream_closed`, with the same arguments.
subscriber_dropped: Final = _signals.signal("subscriber-dropped")


def calls(stream: Stream, reason: CloseReason) -> list[Callable[[], Any]]:
    """What is to be called at the end of a stream to tell those who want to know."""
    sender = stream.app
    told: list[Callable[[], Any]] = []
    if sender is not None and reason is CloseReason.SLOW and subscriber_dropped.receivers:
        told.append(lambda: subscriber_dropped.send(sender, stream=stream, reason=reason))
    if sender is not None and stream_closed.receivers:
        told.append(lambda: stream_closed.send(sender, stream=stream, reason=reason))
    return told
