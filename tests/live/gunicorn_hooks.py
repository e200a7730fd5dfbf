"""The configuration file that the harness gives to gunicorn: it tells the harness what happens, whatever the log level.

A configuration file of the test's own (`HARNESS_CONFIG`) is read first, and its hooks are called too.
"""

from __future__ import annotations

import json
import os
import runpy
import time
from pathlib import Path
from typing import Any

from tests.live.process import starved_seconds

_state = Path(os.environ["HARNESS_STATE"])
_theirs: dict[str, Any] = runpy.run_path(os.environ["HARNESS_CONFIG"]) if "HARNESS_CONFIG" in os.environ else {}
globals().update({name: value for name, value in _theirs.items() if not name.startswith("_")})


def when_ready(server: Any) -> None:
    """Writes down the addresses that gunicorn listens on."""
    addresses = [listener.getsockname() for listener in server.LISTENERS]
    (_state / "addresses.new").write_text(json.dumps(addresses))
    (_state / "addresses.new").rename(_state / "addresses")
    if "when_ready" in _theirs:
        _theirs["when_ready"](server)


def post_worker_init(worker: Any) -> None:
    """Marks the worker as ready: its app is loaded and it is about to accept."""
    if "post_worker_init" in _theirs:
        _theirs["post_worker_init"](worker)
    (_state / f"ready-{os.getpid()}").touch()


def worker_exit(server: Any, worker: Any) -> None:
    """Writes down when the worker left, and for how long in its life the machine has kept it waiting."""
    if "worker_exit" in _theirs:
        _theirs["worker_exit"](server, worker)
    pid = os.getpid()
    (_state / f"left-{pid}.new").write_text(json.dumps([time.monotonic(), starved_seconds(pid)]))
    (_state / f"left-{pid}.new").rename(_state / f"left-{pid}")
