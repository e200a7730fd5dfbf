"""The Celery worker of the example `celery`, for the tests and the pictures of its page."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.live.process import wait_until
from tests.live.server import ROOT


@contextlib.contextmanager
def celery_worker(directory: Path, redis_url: str) -> Iterator[Path]:
    """A worker with one process that is ready for jobs.

    Args:
        directory: Where its log is written.
        redis_url: The Redis that it shares with the server.

    Yields:
        Its log.

    Raises:
        AssertionError: It wasn't ready within 30 s, or it ended by itself; the text holds its log.
    """
    log = directory / "celery.log"
    command = [sys.executable, "-m", "celery", "-A", "examples.worker", "worker", "--concurrency", "1", "--loglevel", "INFO"]
    with log.open("wb") as output:
        worker = subprocess.Popen(
            command,
            cwd=directory,
            env={**os.environ, "PYTHONPATH": str(ROOT), "SSE_BROKER_URL": redis_url},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        wait_until(lambda: worker.poll() is not None or " ready." in log.read_text(), 30, "the worker to be ready")
        assert worker.poll() is None, log.read_text()
        yield log
    finally:
        # The leader isn't reaped yet, so its id is still its group's.
        os.killpg(worker.pid, signal.SIGKILL)
        worker.wait()
