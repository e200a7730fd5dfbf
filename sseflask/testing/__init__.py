"""What tests of event streams need: a reader that never hangs, a real server, and a clock that can be moved on.

The fixtures `sse_server` and `sse_clock` are there in every test once sseflask is installed beside pytest.
"""

from .clock import FakeClock
from .reader import EventReader, EventsMissing, open_stream, read_events, reader_of
from .server import SSEServer

__all__ = ["EventReader", "EventsMissing", "FakeClock", "SSEServer", "open_stream", "read_events", "reader_of"]
