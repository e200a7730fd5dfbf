"""Brokers: what carries events from those who publish to the streams of each process.

Whoever adds one writes a `Store`, its `Follower` and its `TaskStore`; `SharedBroker` does the rest.
"""

from sseflask.ring import Entry

from .base import Broker, Waker
from .memory import MemoryBroker
from .shared import SharedBroker
from .store import Feed, Follower, Head, Publication, Reading, Store, Stored
from .tasks import Lease, Part, TaskChange, TaskRecord, TaskStore
from .url import make_broker, open_store

__all__ = [
    "Broker",
    "Entry",
    "Feed",
    "Follower",
    "Head",
    "Lease",
    "MemoryBroker",
    "Part",
    "Publication",
    "Reading",
    "SharedBroker",
    "Store",
    "Stored",
    "TaskChange",
    "TaskRecord",
    "TaskStore",
    "Waker",
    "make_broker",
    "open_store",
]
