"""What Redis itself reaches with the script by which sseflask publishes, called by its own `redis-benchmark`."""

from __future__ import annotations

import csv
import io
import subprocess

from sseflask.brokers import redis_script
from sseflask.brokers.store import Publication
from sseflask.event import ServerSentEvent

from . import environment, machine
from .server import HOST

#: As many tokens, so that hardly one is used twice.
TOKENS = 2**31 - 1


def calls_per_second(port: int, count: int) -> float:
    """Calls a second from one connection on the load's core.

    Args:
        port: The Redis's.
        count: Calls.

    Raises:
        environment.Unavailable: `redis-benchmark` isn't there.
    """
    program = environment.require("redis-benchmark", "redis-tools")
    prefix = "{benchmark}:"
    publication = Publication("c0", ServerSentEvent("x" * 100).encode(), "")
    keys = [f"{prefix}{name}" for name in ("meta", "channels", "order", "stream:c0", "token:__rand_int__")]
    # As `RedisStore.publish` calls it.
    life = ["run", "0", "0" * 12, f"{prefix}life"]
    # The script only keeps it; no argument of a program can have a NUL.
    packed = redis_script.packed(publication).decode("latin-1").replace("\0", "x")
    arguments = [*life, "c0", f"{prefix}live:c0", packed, "", "0", "", "256", "330", "4096", f"{prefix}stream:"]
    script = redis_script.PUBLISH.text.decode()
    call = ["EVAL", script, str(len(keys)), *keys, *arguments]
    options = ["-h", HOST, "-p", str(port), "-c", "1", "-n", str(count), "-r", str(TOKENS), "--csv"]
    with machine.pinned_to(machine.cores()[1]):
        said = subprocess.run([program, *options, *call], capture_output=True, check=True, timeout=120).stdout.decode()
    rows = list(csv.reader(io.StringIO(said)))
    return float(rows[-1][1])
