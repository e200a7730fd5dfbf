"""Brokers: what carries events from those who publish to the streams of each process."""

from .base import Broker, Waker
from .memory import MemoryBroker

__all__ = ["Broker", "MemoryBroker", "Waker"]
