"""What an app under test saw, and what its process holds, told at plain routes."""

from __future__ import annotations

import gc
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from flask import Blueprint, request
from greenlet import greenlet

from sseflask import process

blueprint = Blueprint("journal", __name__)

_notes: list[dict[str, Any]] = []


def note(name: str, what: str, **facts: Any) -> None:
    """Writes down that something happened in the run of this name; in the log too, which outlives the worker."""
    sys.stderr.write(f"note {name} {what}\n")
    _notes.append({"name": name, "what": what, "at": time.monotonic(), **facts})


@contextmanager
def watching(name: str) -> Iterator[None]:
    """Notes that a generator began, what it was left with, and that its `finally` ran."""
    note(name, "began")
    try:
        yield
    except BaseException as error:
        note(name, "raised", error=type(error).__name__, why=getattr(error, "reason", None))
        raise
    finally:
        note(name, "ended")


@blueprint.get("/journal")
def journal() -> list[dict[str, Any]]:
    """The notes of one run, or of all runs, in order."""
    name = request.args.get("name")
    return [each for each in _notes if name in (None, each["name"])]


@blueprint.get("/stats")
def stats() -> dict[str, Any]:
    """What `sse.stats()` says."""
    return process.current().stats()


@blueprint.get("/greenlets")
def greenlets() -> dict[str, int]:
    """How many greenlets live."""
    gc.collect()
    return {"count": sum(isinstance(each, greenlet) and not each.dead for each in gc.get_objects())}


@blueprint.get("/sinks")
def sinks() -> list[dict[str, Any]]:
    """Where the streams of this process write, and how their sockets are set."""
    found = []
    for stream in process.current().streams:
        sock = getattr(stream.sink, "_sock", None)
        facts: dict[str, Any] = {"path": stream.path, "kind": type(stream.sink).__name__}
        if sock is not None and sock.family == socket.AF_INET:
            facts["user_timeout_ms"] = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)
        found.append(facts)
    return found
