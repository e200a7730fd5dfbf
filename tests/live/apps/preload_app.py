"""An app at module level that already streams while it is imported: under `--preload`, in the unpatched arbiter."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import Any

from flask import Flask, abort, request

from sseflask import SSE, StreamClosed, current_stream, heartbeat
from tests.live.apps.environment import from_environment
from tests.live.apps.shutdown_app import note

app = Flask(__name__)
app.config.update(SSE_KEEPALIVE_INTERVAL=0.3)
app.config.update(from_environment())
sse = SSE()
loaded_by = os.getpid()


@app.get("/events")
@sse.stream
def events() -> Iterator[Any]:
    """Who serves this, one by one."""
    for n in range(3):
        current_stream.send({"n": n, "at": time.monotonic(), "pid": os.getpid(), "loaded_by": loaded_by})
        time.sleep(0.2)
    yield "end"


@app.get("/silence")
@sse.stream
def silence() -> Iterator[Any]:
    """Says who serves it and is silent from then on."""
    reason = "none"
    try:
        yield {"pid": os.getpid()}
        time.sleep(3600)
    except StreamClosed as closed:
        reason = closed.reason
        raise
    finally:
        note(f"finally n={request.args.get('n')} reason={reason} pid={os.getpid()}")


@app.get("/deadline")
@sse.stream(timeout=0.5)
def deadline() -> Iterator[Any]:
    """Puts its deadline off once."""
    yield {"extended": heartbeat(0.4)}
    time.sleep(3600)


@app.get("/refuse")
@sse.stream
def refuse() -> Iterator[Any]:
    """Fails before its first event."""
    abort(403)
    yield "never"


@app.get("/stats")
def stats() -> dict[str, Any]:
    """What this process has open."""
    return {"pid": os.getpid(), **sse.stats()}


@app.get("/arbiter")
def arbiter() -> dict[str, Any]:
    """What had been counted when the app was loaded."""
    return arbiters


app.register_blueprint(sse, url_prefix="/sse")

# Whoever does this at import (a warm-up, a self-test) leaves a timer and a finished stream in the arbiter.
assert app.test_client().get("/events").text.endswith("data: end\n\n")
arbiters = sse.stats()
