"""The index page, and what the pages of all examples share: their titles and the code that they show."""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from flask import Blueprint, render_template, request
from markupsafe import Markup

from . import (
    board,
    celery,
    chat,
    counter,
    endpoint,
    images,
    long_job,
    machine,
    markov,
    metrics,
    notifications,
    progress,
    report,
    shelf,
)
from .source import highlighted
from .streaming import sse


@dataclass(frozen=True)
class Example:
    """One example, as the index and its page's heading present it.

    Attributes:
        module: The module with its blueprint `bp`.
        title: Its name on the pages.
        summary: What it does, in one sentence.
        shows: What of sseflask it teaches.
        more: Further modules whose code its page shows.
        files: Further files beside this one whose code its page shows: those of modules that need what may not be installed.
    """

    module: ModuleType
    title: str
    summary: str
    shows: tuple[str, ...]
    more: tuple[ModuleType, ...] = ()
    files: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The name of its blueprint."""
        return str(self.module.bp.name)

    @property
    def sources(self) -> list[tuple[str, Markup]]:
        """The file name and the highlighted code of each of its modules."""
        beside = Path(__file__).parent
        return [_source(path) for path in (*map(_path, (self.module, *self.more)), *(beside / name for name in self.files))]


EXAMPLES = (
    Example(
        counter,
        "Counter",
        "A count that goes on where it stopped when the connection is lost, or the server restarts.",
        ("event types", "ids", "retry", "Last-Event-ID"),
    ),
    Example(
        metrics,
        "Metrics",
        "This machine's processor, load, memory and network, read from /proc twice a second and drawn as they arrive.",
        ("endless streams", "errors before the stream"),
        (machine,),
    ),
    Example(
        progress,
        "Progress",
        "SHA-256 over the files of a folder, with a progress bar that tells the truth and a cancel button that stops the work.",
        ("lifecycle", "CPU work beside other streams", "cancelling"),
    ),
    Example(
        chat,
        "Chat",
        "A language model's answer, word by word, that goes on when the page is loaded again; from a small model or any endpoint.",
        ("POST streams", "resumable", "cancel", "coalesce", "StreamError", "EventDecoder"),
        (markov, endpoint),
    ),
    Example(
        long_job,
        "Long job",
        "A job with a deadline that each step extends; let it forget to, and see the stream time out.",
        ("timeout", "heartbeat", "StreamTimeout"),
    ),
    Example(
        notifications,
        "Notifications",
        "What one page publishes rings a bell in every other, and a page that may have missed something says so.",
        ("publish", "subscribe", "stream-open", "stream-reset", "signals"),
    ),
    Example(
        board,
        "Board",
        "A board of cards that all visitors move at once: each page starts from a snapshot and follows live.",
        ("snapshot", "replay", "stream-reset"),
    ),
    Example(
        images,
        "Images",
        "Thumbnails and contours of your pictures: a job that goes on while you reload, in a grid of tiles that fill.",
        ("sse.start", "file_update", "task_response", "native threads"),
        (shelf,),
    ),
    Example(
        report,
        "Report",
        "Leaving a room starts a report of what was said there, with an Excel file that you can watch being written.",
        ("sse.start", "task_progress", "events of your own", "cancel"),
        (shelf,),
    ),
    Example(
        celery,
        "Celery",
        "A job in a Celery worker, on this machine or another, that shows how far it is in every page that asks.",
        ("Publisher", "Redis", "snapshot", "a closed channel"),
        files=("worker.py",),
    ),
)

FIRST_APP = """\
import time
from flask import Flask
from sseflask import SSE

app = Flask(__name__)
sse = SSE()

@app.get("/count")
@sse.stream
def count():
    for n in range(10):
        yield {"count": n}
        time.sleep(1)

app.register_blueprint(sse, url_prefix="/events")
"""

bp = Blueprint("catalogue", __name__)


@bp.get("/")
def index() -> str:
    return render_template("index.html", first_app=highlighted(FIRST_APP))


@bp.get("/count")
@sse.stream
def count() -> Iterator[dict[str, int]]:
    """What `FIRST_APP` serves: the index page shows its code and its bytes side by side."""
    for n in range(10):
        yield {"count": n}
        time.sleep(1)


@bp.app_context_processor
def examples() -> dict[str, Any]:
    """What every template knows: all examples, and the one whose page it is."""
    return {"examples": EXAMPLES, "example": next((example for example in EXAMPLES if example.name == request.blueprint), None)}


def _path(module: ModuleType) -> Path:
    return Path(str(module.__file__))


@functools.cache
def _source(path: Path) -> tuple[str, Markup]:
    return path.name, highlighted(path.read_text(encoding="utf-8"))
