"""FastAPI's own Server-Sent Events on uvicorn, with a queue per client."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable

from fastapi import FastAPI, Request
from fastapi.responses import PlainTextResponse
from fastapi.sse import EventSourceResponse, ServerSentEvent
from publishing import Feed, event_data

app = FastAPI()
clients: dict[str, set[asyncio.Queue[str]]] = {}


@app.get("/subscribe", response_class=EventSourceResponse)
async def subscribe(channel: str) -> AsyncIterable[ServerSentEvent]:
    """A queue for one client, and a generator that empties it."""
    events: asyncio.Queue[str] = asyncio.Queue()
    clients.setdefault(channel, set()).add(events)
    try:
        # The headers go out before this runs: the comment says that events are awaited from here on.
        yield ServerSentEvent(comment="open")
        while True:
            yield ServerSentEvent(raw_data=await events.get())
    finally:
        clients[channel].discard(events)


@app.get("/publish")
async def publish(request: Request) -> PlainTextResponse:
    """Puts events into the queues of all clients."""
    feed = Feed(request.query_params)
    for channel, data in feed:
        for events in clients.get(channel, ()):
            events.put_nowait(data)
        if feed.gives_way:
            await asyncio.sleep(feed.pause())
    return PlainTextResponse(feed.summary())


@app.get("/generate", response_class=EventSourceResponse)
async def generate(count: int, size: int, pause: float) -> AsyncIterable[ServerSentEvent]:
    """A generator for one client."""
    for seq in range(1, count + 1):
        yield ServerSentEvent(raw_data=event_data(seq, size))
        if pause:
            await asyncio.sleep(pause)
