"""A long job: a stream with a deadline, which each step extends with a heartbeat."""

from __future__ import annotations

import time
from collections.abc import Generator

from flask import Blueprint, render_template, request

from sseflask import ServerSentEvent, StreamTimeout, heartbeat

from .streaming import sse

bp = Blueprint("long_job", __name__, url_prefix="/long-job")

# A job may take as long as it needs to, but it has to show that it is alive: three seconds without a heartbeat end it.
DEADLINE_SECONDS = 3
STEP_SECONDS = 2
STEPS = ("Read the orders", "Fetch the exchange rates", "Add up the quarters", "Draw the charts", "Write the report")


@bp.get("/")
def page() -> str:
    return render_template("long_job.html", steps=STEPS, step_seconds=STEP_SECONDS, deadline_seconds=DEADLINE_SECONDS)


@bp.get("/events")
@sse.stream(timeout=DEADLINE_SECONDS, lifecycle=True)
def events() -> Generator[ServerSentEvent, None, dict[str, int]]:
    """Takes each step; with `?forget=3`, without a heartbeat from the third step on."""
    forget = request.args.get("forget", 0, type=int)
    step = 0
    try:
        for step, name in enumerate(STEPS, start=1):
            # From now on it is three seconds again. False would mean that this stream has no deadline, or a shorter one.
            extended = (not forget or step < forget) and heartbeat(DEADLINE_SECONDS)
            yield ServerSentEvent({"step": step, "name": name, "extended": extended}, event="step")
            do(name)
            yield ServerSentEvent({"step": step, "name": name}, event="done")
        return {"steps": len(STEPS)}
    except StreamTimeout:
        # Raised in the midst of `do`, where the job hangs. Undo what is half done, and let it go on: the client gets an error
        # event whatever we do here. It is no `Exception`, so no `except Exception` on its way can take it for a failure to retry.
        undo(step)
        raise


def do(name: str) -> None:
    """Stands for a slow query, a render farm, a service that may hang."""
    time.sleep(STEP_SECONDS)


def undo(step: int) -> None:
    """Stands for a rollback."""
