"""The app under load: channels, generators, resumable runs, tasks, tokens, and a publisher of each worker's own."""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
import time
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

from flask import Flask, Response, request

from sseflask import SSE, BrokerUnavailable, current_task
from tests.live.apps.environment import from_environment

app = Flask(__name__)
app.config.update(SECRET_KEY="secret of the soak", SSE_PUBLIC_CHANNELS=["open-*"])
app.config.update(from_environment())
sse = SSE()
#: While there is this file, workers publish nothing of their own.
HUSH = Path(os.environ.get("SOAK_STATE", ".")) / "hush"

_beginning = threading.Lock()
_publishing: set[int] = set()


@app.before_request
def begin() -> None:
    """This worker's publisher begins with its first request."""
    with _beginning:
        if os.getpid() in _publishing:
            return
        _publishing.add(os.getpid())
    threading.Thread(target=publish_from_here, daemon=True).start()


def publish_from_here() -> None:
    """Publishes numbers for as long as the worker lives."""
    series = f"worker-{os.getpid()}"
    for n in itertools.count():
        while HUSH.exists():
            time.sleep(0.1)
        while True:
            with contextlib.suppress(BrokerUnavailable):
                sse.publish({"series": series, "n": n}, channel="open-0", token=f"{series}-{n}")
                break
            time.sleep(0.2)
        time.sleep(0.2)


@app.get("/on")
def on() -> Response:
    """Subscribes to the channels of the query."""
    return sse.subscribe(*request.args.getlist("channel"))


@app.get("/token")
def token() -> dict[str, str]:
    """A token for what the query says."""
    args = request.args
    return {"token": sse.sign(args["channel"], action=args["action"], expires_in=args.get("seconds", 3600.0, float))}


@app.get("/numbers")
@sse.stream(lifecycle=True)
def numbers() -> Iterator[Any]:
    """A generator that ends with its connection."""
    for n in range(request.args.get("count", 50, int)):
        yield {"n": n}
        time.sleep(0.05)


@app.get("/run")
@sse.stream(resumable=True, coalesce=0.05, detach_grace=20)
def run() -> Iterator[str]:
    """A text in small pieces, which its viewer may leave and come back to."""
    for n in range(request.args.get("count", 200, int)):
        yield f"{n} "
        time.sleep(0.02)


def work(count: int) -> Generator[Any, None, int]:
    """A task's work."""
    for n in range(count):
        current_task.progress(n, count)
        yield {"n": n}
        time.sleep(0.05)
    return count


@app.post("/tasks")
def start() -> dict[str, str]:
    """Starts a task."""
    return {"id": sse.start(work, request.args.get("count", 40, int)).id}


@app.get("/tasks/<task_id>")
def watch(task_id: str) -> Response:
    """Watches one."""
    return sse.task_response(task_id)


@app.post("/disconnect")
def disconnect() -> dict[str, Any]:
    """Ends all streams of a channel."""
    sse.disconnect(channel=request.args["channel"])
    return {}


app.register_blueprint(sse, url_prefix="/events")
