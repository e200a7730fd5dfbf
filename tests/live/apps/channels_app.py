"""Channels for crowds: subscribes, publishes from anywhere, and tells what the process holds and how its hub fares meanwhile.

What is published says which series it belongs to, and its number in it: `{"series": "news", "n": 17}`.
"""

from __future__ import annotations

import gc
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from flask import Flask, Request, Response, request
from flask.ctx import AppContext, RequestContext
from gevent import get_hub, monkey
from greenlet import greenlet

from sseflask import SSE, EventSourceResponse
from tests.live.apps import journal
from tests.live.apps.environment import from_environment

app = Flask(__name__)
app.config.update(SECRET_KEY="secret of the tests")
app.config.update(from_environment())
app.register_blueprint(journal.blueprint)
sse = SSE()

Job = Callable[[], object]


class Ticker:
    """Work that wants its turn each millisecond, and notes how long it was kept from it.

    By the clock, which counts what the machine's other processes take too; and by the processor time that this native thread used
    meanwhile, which is only what this process itself did instead of letting it run.
    """

    def __init__(self) -> None:
        self.gaps: list[float] = []
        self.busy: list[float] = []
        self.stopped = False

    def run(self) -> None:
        """Ticks until it is stopped."""
        while not self.stopped:
            wall, busy = time.perf_counter(), time.thread_time()
            time.sleep(0.001)
            self.gaps.append(time.perf_counter() - wall - 0.001)
            self.busy.append(time.thread_time() - busy)

    def told(self) -> dict[str, float]:
        """What it has seen, in seconds."""
        parts = statistics.quantiles(self.gaps, n=100)
        return {
            "ticks": len(self.gaps),
            "median_gap": parts[49],
            "late_gap": parts[98],
            "longest_gap": max(self.gaps),
            "longest_busy": max(self.busy),
        }


tickers: list[Ticker] = []


def publish_series(series: str, channel: str, numbers: range, *, size: int = 0, pause: float | None = None) -> None:
    """Publishes one event for each number, of about `size` bytes."""
    padding = {"padding": "x" * size} if size else {}
    for n in numbers:
        sse.publish({"series": series, "n": n, **padding}, channel=channel)
        if pause is not None:
            time.sleep(pause)


@app.get("/on")
def on() -> Response:
    """Subscribes to the channels of the query."""
    keepalive = request.args.get("keepalive", None, float)
    options: dict[str, Any] = {} if keepalive is None else {"keepalive": keepalive}
    return sse.subscribe(*request.args.getlist("channel"), **options)


@app.post("/publish")
def publish() -> dict[str, Any]:
    """Publishes to each of the channels, which are the series too, and answers when all is published."""
    args = request.args
    first, count, size = args.get("first", 0, int), args.get("count", 1, int), args.get("size", 0, int)
    pause, channels = args.get("pause", None, float), args.getlist("channel")
    began = time.monotonic()
    if len(channels) == 1:
        publish_series(channels[0], channels[0], range(first, first + count), size=size, pause=pause)
    else:
        for n in range(first, first + count):
            for channel in channels:
                publish_series(channel, channel, range(n, n + 1), size=size)
            if pause is not None:
                time.sleep(pause)
    return {"began": began, "seconds": time.monotonic() - began}


@app.post("/publish-own")
def publish_own() -> dict[str, Any]:
    """Publishes to `channels` channels, `own-0` and so on, events numbered from `first`, with a pause after each round."""
    args = request.args
    channels, first, pause = args.get("channels", 0, int), args.get("first", 0, int), args.get("pause", 0.0, float)
    began = time.monotonic()
    for n in range(first, first + args.get("count", 0, int)):
        for each in range(channels):
            sse.publish({"series": f"own-{each}", "n": n}, channel=f"own-{each}")
            if each % 50 == 0:
                # A thousand at once would keep the hub from others: an app's own doing.
                time.sleep(0.001)
        time.sleep(pause)
    return {"began": began, "seconds": time.monotonic() - began}


@app.post("/publish-natively")
def publish_natively() -> dict[str, Any]:
    """Publishes from native threads, each a series of its own, to one channel; answers when they are done."""
    args = request.args
    threads, count, channel = args.get("threads", 4, int), args.get("count", 1, int), args["channel"]
    done: list[str] = []
    idents: set[int] = set()

    def job(series: str) -> Job:
        def run() -> None:
            idents.add(monkey.get_original("_thread", "get_ident")())
            publish_series(series, channel, range(count))
            done.append(series)

        return run

    jobs = [job(f"{args['kind']}-{n}") for n in range(threads)]
    began = time.monotonic()
    if args["kind"] == "pool":
        for each in jobs:
            get_hub().threadpool.spawn(each)
    else:
        start_new_thread = monkey.get_original("_thread", "start_new_thread")
        for each in jobs:
            start_new_thread(each, ())
    while len(done) < threads and time.monotonic() - began < 60:
        time.sleep(0.01)
    idents.discard(monkey.get_original("_thread", "get_ident")())
    return {"done": len(done), "seconds": time.monotonic() - began, "threads": len(idents)}


@app.post("/close")
def close() -> dict[str, Any]:
    """Closes the channels of the query."""
    return {"ids": [sse.channel(channel).close("over") for channel in request.args.getlist("channel")]}


@app.get("/token")
def token() -> str:
    """A token for the channel of the query."""
    args = request.args
    return sse.sign(args["channel"], action=args.get("action", "subscribe"), expires_in=args.get("expires_in", 60.0, float))


@app.get("/ticks")
@sse.stream
def ticks() -> Iterator[Any]:
    """A stream that has nothing to do with channels."""
    for n in range(3):
        yield {"series": "ticks", "n": n}


@app.get("/plain")
def plain() -> str:
    """A request that is no stream."""
    return "plain"


@app.get("/channels")
def channels() -> dict[str, Any]:
    """What the extension has open and has counted for this app."""
    return {**sse.stats(), "names": sse.emitter.channels()}


@app.post("/ticker")
def start_ticker() -> dict[str, Any]:
    """Starts to measure."""
    tickers.append(Ticker())
    threading.Thread(target=tickers[-1].run, daemon=True).start()
    return {}


@app.get("/ticker")
def stop_ticker() -> dict[str, float]:
    """Stops measuring and tells what was seen."""
    ticker = tickers.pop()
    ticker.stopped = True
    return ticker.told()


@app.get("/held")
def held() -> dict[str, int]:
    """How many of the things that a request has this process holds, this request's own among them."""
    gc.collect()
    things = gc.get_objects()
    return {
        "greenlets": sum(isinstance(each, greenlet) and not each.dead for each in things),
        "requests": sum(isinstance(each, Request) for each in things),
        "contexts": sum(isinstance(each, RequestContext | AppContext) for each in things),
        "responses": sum(isinstance(each, EventSourceResponse) for each in things),
        "environs": sum(type(each) is dict and "wsgi.input" in each for each in things),
    }


app.register_blueprint(sse, url_prefix="/events")
