"""sse-starlette on uvicorn, with a queue per client."""

from __future__ import annotations

import asyncio

from publishing import Feed, event_data
from sse_starlette import EventSourceResponse
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

clients: dict[str, set[asyncio.Queue[str]]] = {}


async def subscribe(request: Request) -> EventSourceResponse:
    """A queue for one client, and a generator that empties it."""
    channel = request.query_params["channel"]
    events: asyncio.Queue[str] = asyncio.Queue()
    clients.setdefault(channel, set()).add(events)

    async def stream():
        try:
            while True:
                yield {"data": await events.get()}
        finally:
            clients[channel].discard(events)

    return EventSourceResponse(stream())


async def publish(request: Request) -> PlainTextResponse:
    """Puts events into the queues of all clients."""
    feed = Feed(request.query_params)
    for channel, data in feed:
        for events in clients.get(channel, ()):
            events.put_nowait(data)
        if feed.gives_way:
            await asyncio.sleep(feed.pause())
    return PlainTextResponse(feed.summary())


async def generate(request: Request) -> EventSourceResponse:
    """A generator for one client."""
    query = request.query_params
    count, size, pause = int(query["count"]), int(query["size"]), float(query["pause"])

    async def stream():
        for seq in range(1, count + 1):
            yield {"data": event_data(seq, size)}
            if pause:
                await asyncio.sleep(pause)

    return EventSourceResponse(stream())


app = Starlette(routes=[Route("/subscribe", subscribe), Route("/publish", publish), Route("/generate", generate)])
