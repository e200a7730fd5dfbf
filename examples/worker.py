"""The Celery worker of the example `celery`: its task tells the page how far it is. No Flask here, and no gevent.

celery -A examples.worker worker
"""

from __future__ import annotations

import logging
import math
import os
import time
from typing import Any

from celery import Celery, Task

from sseflask import BrokerUnavailable, Publisher

log = logging.getLogger(__name__)

# The channels' Redis, the same as the web server's, is also where Celery keeps its queue and its results here.
URL = os.environ.get("SSE_BROKER_URL", "redis://localhost:6379/0")
CELERY_URL = os.environ.get("CELERY_BROKER_URL", URL.partition("?")[0])

app = Celery("examples", broker=CELERY_URL, backend=CELERY_URL)
app.conf.update(
    result_expires=3600,
    broker_connection_retry_on_startup=True,
    # Who starts a job is told soon that Redis can't be reached.
    broker_transport_options={"socket_connect_timeout": 3, "socket_timeout": 10},
    redis_socket_connect_timeout=3,
)

# One for all: it connects when it first publishes, anew in each of the processes that Celery forks.
publisher = Publisher(URL)

SLICES = 200
REPORT_SECONDS = 0.1


class ReportingTask(Task):
    """A task that tells the channel `job:<its id>` how far it is and how it ended."""

    def report(self, progress: dict[str, Any]) -> None:
        """Tells Celery first, whose word a page gets that comes late, and then the pages that are there."""
        self.update_state(state="PROGRESS", meta=progress)
        try:
            publisher.publish(progress, event="progress", channel=f"job:{self.request.id}")
        except BrokerUnavailable as error:
            # A job doesn't fail because nobody can hear how far it is.
            log.warning("no progress is shown: %s", error)

    # Celery calls these two when it has stored how the task ended.

    def on_success(self, retval: Any, task_id: str, args: Any, kwargs: Any) -> None:
        """Ends the channel, and with it the pages' streams."""
        publisher.close_channel(f"job:{task_id}", retval, event="complete")

    def on_failure(self, exc: Exception, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
        """Says that it failed, and not why: that is in the worker's log."""
        publisher.close_channel(f"job:{task_id}", {"error": "The job has failed."}, event="failed")


@app.task(base=ReportingTask, bind=True)
def count_primes(self: ReportingTask, limit: int) -> dict[str, Any]:
    """Counts the prime numbers below a limit, slice by slice, and reports ten times a second."""
    started = reported = time.monotonic()
    small = primes_below(math.isqrt(limit) + 1)
    found = largest = 0
    for number in range(SLICES):
        start, stop = limit * number // SLICES, limit * (number + 1) // SLICES
        sieve = sieved(max(start, 2), stop, small)
        found += sieve.count(1)
        largest = max(start, 2) + sieve.rindex(1) if 1 in sieve else largest
        if time.monotonic() - reported >= REPORT_SECONDS:
            reported = time.monotonic()
            self.report({"percent": round(100 * (number + 1) / SLICES, 1), "primes": found, "largest": largest})
    return {"limit": limit, "primes": found, "largest": largest, "seconds": round(time.monotonic() - started, 2)}


def primes_below(limit: int) -> list[int]:
    """The prime numbers below a small limit."""
    return [number for number in range(2, limit) if all(number % other for other in range(2, math.isqrt(number) + 1))]


def sieved(start: int, stop: int, small: list[int]) -> bytearray:
    """A 1 for each prime number from `start` to `stop`, by the small ones up to the root of what comes last."""
    sieve = bytearray(b"\1") * max(stop - start, 0)
    for prime in small:
        first = max(prime * prime, -(-start // prime) * prime) - start
        sieve[first::prime] = bytes(len(range(first, len(sieve), prime)))
    return sieve
