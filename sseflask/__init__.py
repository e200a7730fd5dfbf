"""Server-Sent Events for Flask that hold up in production."""

from .brokers.tasks import TaskState
from .channel import Channel
from .current import current_stream, heartbeat
from .decoder import EventDecoder
from .emitter import EventEmitter
from .errors import (
    AlreadyInstalled,
    BrokerUnavailable,
    EventTooLarge,
    InvalidChannel,
    InvalidEvent,
    InvalidSetting,
    InvalidSubscription,
    NoActiveStream,
    SSEError,
    StreamClosed,
    StreamError,
    StreamTimeout,
    TaskEnded,
    UnknownTask,
)
from .event import ServerSentEvent
from .extension import SSE
from .progress import current_task, each, track
from .publisher import Publisher
from .response import EventSourceResponse
from .signals import event_published, stream_closed, stream_opened, subscriber_dropped
from .state import CloseReason
from .stream import Stream
from .tasks import Task

__all__ = [
    "SSE",
    "AlreadyInstalled",
    "BrokerUnavailable",
    "Channel",
    "CloseReason",
    "EventDecoder",
    "EventEmitter",
    "EventSourceResponse",
    "EventTooLarge",
    "InvalidChannel",
    "InvalidEvent",
    "InvalidSetting",
    "InvalidSubscription",
    "NoActiveStream",
    "Publisher",
    "SSEError",
    "ServerSentEvent",
    "Stream",
    "StreamClosed",
    "StreamError",
    "StreamTimeout",
    "Task",
    "TaskEnded",
    "TaskState",
    "UnknownTask",
    "current_stream",
    "current_task",
    "each",
    "event_published",
    "heartbeat",
    "stream_closed",
    "stream_opened",
    "subscriber_dropped",
    "track",
]
