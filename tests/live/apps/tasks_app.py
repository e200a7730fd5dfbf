"""Tasks and resumable streams that several workers serve: which worker does what can be told apart.

What work does to itself it writes to the log: `began KIND NAME PID`, `finally KIND NAME REASON`.
"""

from __future__ import annotations

import gc
import os
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import gevent
from flask import Flask, Response, request

from sseflask import SSE, StreamClosed, current_stream, current_task
from tests.live.apps.environment import from_environment

app = Flask(__name__)
app.config.update(SSE_PUBLIC_CHANNELS=["*"], SSE_PRODUCER_LEASE=3)
app.config.update(from_environment())
sse = SSE()


def say(*words: object) -> None:
    """Writes a line to the log, in one piece."""
    os.write(sys.stdout.fileno(), (" ".join(map(str, words)) + "\n").encode())


@app.before_request
def only() -> tuple[str, int] | None:
    """A request may be meant for one worker alone."""
    return ("another worker's", 421) if request.headers.get("X-Only") not in (None, str(os.getpid())) else None


@app.after_request
def name_worker(response: Response) -> Response:
    """Says which process answers."""
    response.headers["X-Worker"] = str(os.getpid())
    return response


def counting(name: str, count: int, pace: float) -> Iterator[Any]:
    """Yields numbers; its result is how many."""
    say("began", "counting", name, os.getpid())
    reason = "returned"
    try:
        for n in range(count):
            if current_task:
                current_task.progress(n + 1, count)
            yield {"n": n}
            time.sleep(pace)
    except StreamClosed as closed:
        reason = closed.reason
        raise
    finally:
        say("finally", "counting", name, reason)
    return count


def sleeping(name: str, slow: float = 0.0) -> Iterator[Any]:
    """Waits for ever; its `finally` may take its time."""
    say("began", "sleeping", name, os.getpid())
    reason = "returned"
    try:
        yield "sleeps"
        time.sleep(3600)
    except StreamClosed as closed:
        reason = closed.reason
        raise
    finally:
        if slow:
            time.sleep(slow)
        say("finally", "sleeping", name, reason)


def in_threads(name: str) -> int:
    """Works in native threads, which report how far they are."""
    task = current_task._get_current_object()  # type: ignore[attr-defined]

    def work(n: int) -> int:
        task.progress(n + 1, 20, threading.current_thread().name)
        return n

    return len(gevent.get_hub().threadpool.map(work, range(20)))


def blocking(name: str) -> Iterator[Any]:
    """Keeps this worker's hub for longer than the lease."""
    from gevent import monkey

    yield {"n": 0}
    # Watched by now.
    time.sleep(1)
    monkey.get_original("time", "sleep")(app.config["SSE_PRODUCER_LEASE"] * 1.4)
    yield {"n": 1}


def pausing(name: str) -> Iterator[Any]:
    """Is silent for two leases."""
    say("began pausing", name)
    yield {"n": 0}
    time.sleep(app.config["SSE_PRODUCER_LEASE"] * 2)
    yield {"n": 1}


WORK = {"counting": counting, "sleeping": sleeping, "in_threads": in_threads, "blocking": blocking, "pausing": pausing}


@app.post("/start/<kind>")
def start(kind: str) -> dict[str, Any]:
    """Starts a task, from where the query says."""
    args = request.args
    given: tuple[Any, ...] = (args["name"],)
    if kind == "counting":
        given += (args.get("count", 10, int), args.get("pace", 0.05, float))
    if kind == "sleeping":
        given += (args.get("slow", 0.0, float),)

    def start_it() -> Any:
        return sse.start(WORK[kind], *given, channel=args.get("channel"))

    match args.get("from"):
        case "thread":
            task = gevent.get_hub().threadpool.apply(start_it)
        case "greenlet":
            task = gevent.spawn(start_it).get()
        case _:
            task = start_it()
    return {"id": task.id, "channel": task.channel, "pid": os.getpid()}


@app.get("/tasks/<task_id>")
def watch(task_id: str) -> Response:
    """Watches a task."""
    return sse.task_response(task_id)


@app.get("/state/<task_id>")
def state(task_id: str) -> dict[str, Any]:
    """How a task stands."""
    task = sse.task(task_id)
    return {"state": task.state, "error": task.error, "result": task.result} if task is not None else {}


@app.post("/end/<task_id>")
def end(task_id: str) -> dict[str, Any]:
    """Ends a task by hand, or asks a task or a run to end."""
    if "result" not in request.args:
        return {"asked": sse.cancel(task_id)}
    task = sse.task(task_id)
    assert task is not None
    task.complete(request.args["result"])
    return {}


@app.get("/run")
@sse.stream(resumable=True)
def run() -> Iterator[Any]:
    """A resumable stream of numbers."""
    yield from counting(request.args["name"], request.args.get("count", 10, int), request.args.get("pace", 0.05, float))


@app.get("/run/sleeping")
@sse.stream(resumable=True)
def sleeping_run() -> Iterator[Any]:
    """One that waits for ever."""
    yield from sleeping(request.args["name"])


@app.get("/run/short")
@sse.stream(resumable=True, detach_grace=1.0)
def short_run() -> Iterator[Any]:
    """One that waits for its client for a second."""
    yield from sleeping(request.args["name"])


@app.get("/run/pausing")
@sse.stream(resumable=True)
def pausing_run() -> Iterator[Any]:
    """One that is silent for long."""
    yield from pausing(request.args["name"])


@app.get("/run/text")
@sse.stream(resumable=True, coalesce=0.1)
def text() -> Iterator[Any]:
    """One of tokens, whose end comes long after the last of them."""
    for n in range(request.args.get("count", 100, int)):
        yield f"{n} "
        time.sleep(0.002)
    current_stream.send({"n": "all"}, event="all")
    yield "first"
    yield " and last"
    time.sleep(1)


@app.get("/on")
def on() -> Response:
    """Subscribes to a channel."""
    return sse.subscribe(request.args["channel"])


@app.get("/worker")
def worker() -> dict[str, Any]:
    """What this worker has open."""
    gc.collect()
    greenlets = sum(isinstance(found, gevent.Greenlet) and not found.dead for found in gc.get_objects())
    tasks = len(os.listdir("/proc/self/task"))
    return {"pid": os.getpid(), "greenlets": greenlets, "threads": tasks, "files": len(os.listdir("/proc/self/fd")), **sse.stats()}


app.register_blueprint(sse, url_prefix="/events")
