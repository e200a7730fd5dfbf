"""The Python client: reads any event stream, and comes back to it. It needs no Flask app and no gevent; httpx is its extra."""

from .async_source import AsyncEventSource
from .errors import (
    EventSourceError,
    MissingExtra,
    NotAnEventStream,
    NotRepeatable,
    RetriesExhausted,
    StreamInterrupted,
    StreamRefused,
)
from .protocol import SourceState
from .source import EventSource

__all__ = [
    "AsyncEventSource",
    "EventSource",
    "EventSourceError",
    "MissingExtra",
    "NotAnEventStream",
    "NotRepeatable",
    "RetriesExhausted",
    "SourceState",
    "StreamInterrupted",
    "StreamRefused",
]
