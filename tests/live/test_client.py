"""The Python client against the real server, which stops, dies and comes back while events flow."""

from __future__ import annotations

import asyncio
import signal
import threading
from pathlib import Path

import pytest

from sseflask import Publisher, ServerSentEvent
from sseflask.client import AsyncEventSource, EventSource, StreamRefused
from tests.conftest import Serve
from tests.live.process import wait_until

APP = "tests.live.apps.shared_app:app"
EVENTS = 200


def read(url: str, events: list[ServerSentEvent]) -> None:
    """Reads a channel to its end."""
    with EventSource(url, max_backoff=0.2, stall_timeout=5) as source:
        events.extend(source)


def read_async(url: str, events: list[ServerSentEvent]) -> None:
    """Reads a channel to its end, with asyncio."""

    async def run() -> None:
        keep = events.append
        async with AsyncEventSource(url, max_backoff=0.2, stall_timeout=5) as source:
            async for event in source:
                keep(event)

    asyncio.run(run())


def test_nothing_is_lost_while_the_server_is_restarted(serve: Serve, tmp_path: Path) -> None:
    """It ends in order once and is killed once, and another process publishes on: each client gets each event, once, in order."""
    broker = f"sqlite:///{tmp_path}/broker.db"
    server = serve(APP, env={"SSE_BROKER_URL": f'"{broker}"', "SSE_DRAIN_SECONDS": "0.5", "SSE_KEEPALIVE_INTERVAL": "1"})
    seen: dict[str, list[ServerSentEvent]] = {"blocking": [], "asynchronous": []}
    readers = [
        threading.Thread(target=reader, args=(server.url("/on?channel=news"), seen[name]))
        for name, reader in (("blocking", read), ("asynchronous", read_async))
    ]

    def wait_for(event: str, count: int) -> None:
        for name, events in seen.items():
            wait_until(lambda events=events: len(named(events, event)) >= count, 30, f"{count} {event} for the {name} one")  # type: ignore[misc]

    with Publisher(broker) as publisher:

        def publish(first: int, end: int) -> None:
            for n in range(first, end):
                publisher.publish(n, channel="news", event="n")

        for reader in readers:
            reader.start()
        try:
            wait_for("stream-open", 1)
            publish(0, 40)
            server.signal(signal.SIGTERM)
            publish(40, 80)
            server.wait_for_exit(20)
            publish(80, 100)
            server.restart()
            publish(100, 120)
            wait_for("n", 120)
            publish(120, 140)
            server.stop()
            publish(140, 180)
            server.start()
            publish(180, EVENTS)
        finally:
            publisher.close_channel("news", "over")
            for reader in readers:
                reader.join(30)
    for name, events in seen.items():
        assert [int(event.data or "") for event in named(events, "n")] == list(range(EVENTS)), name
        assert (events[-1].event, events[-1].data) == ("stream-end", "over"), name
        assert named(events, "stream-reset") == [], name
        assert len(named(events, "stream-open")) == 3, name


def named(events: list[ServerSentEvent], name: str) -> list[ServerSentEvent]:
    """Those of this name."""
    return [event for event in events if event.event == name]


def test_a_server_that_is_not_there_yet(serve: Serve) -> None:
    """A client that begins before its server waits for it, and what it is refused is told as the server tells it."""
    server = serve(APP)
    server.stop()
    failed = threading.Event()
    with EventSource(server.url("/on?channel=a"), backoff=0.1, max_backoff=0.1, on_retry=lambda _: failed.set()) as source:
        opened: list[ServerSentEvent] = []
        thread = threading.Thread(target=lambda: opened.append(next(source)))
        thread.start()
        assert failed.wait(10)
        server.start()
        thread.join(20)
        assert [event.event for event in opened] == ["stream-open"]
        assert source.last_event_id == opened[0].id
    with pytest.raises(StreamRefused) as raised:
        next(EventSource(server.url("/on")))
    assert raised.value.status == 400
    assert raised.value.details
