"""Brokers: what carries events from those who publish to the streams of each process."""

from .base import Broker, Waker
from .memory import MemoryBroker
from .shared import SharedBroker
from .store import Store
from .url import make_broker, open_store

__all__ = ["Broker", "MemoryBroker", "SharedBroker", "Store", "Waker", "make_broker", "open_store"]
