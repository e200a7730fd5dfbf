"""The load generator, `load/load.c`: opens streams from its own core, checks each event, and says what it saw."""

from __future__ import annotations

import json
import select
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from . import environment, machine

SOURCE = Path(__file__).parent / "load" / "load.c"
#: Seconds beyond a phase's own time-out after which the generator itself is taken for stuck.
GRACE_SECONDS = 30.0

#: Counts of a report that are 0 in a run that lost nothing, and what they say.
FAULTS = {
    "missing": "events missing",
    "lost": "events lost in gaps",
    "duplicates": "events doubled",
    "reorders": "events out of order",
    "resets": "resets",
    "extra": "events too many",
    "wrong_size": "events of the wrong size",
    "malformed": "malformed lines",
    "bad_framing": "streams with wrong chunk framing",
    "bad_headers": "responses with wrong headers",
    "bad_status": "responses with another status",
    "refused": "connections refused or cut before the headers",
    "cut": "streams cut",
    "calls_failed": "publish requests failed",
}

Report = dict[str, Any]


def faults(report: Report, *, may_end: bool = False) -> list[str]:
    """What was wrong in a phase, in words; empty if each stream got each event once, in order, well framed."""
    found = [f"{report[name]} {words}" for name, words in FAULTS.items() if report[name]]
    if report["ended"] and not may_end:
        found.append(f"{report['ended']} streams ended")
    if report["timed_out"]:
        found.append(f"not done after {report['seconds']:.0f} s")
    return found


class LoadGenerator:
    """A running load generator.

    Its streams stay open between phases.
    """

    def __init__(self, host: str, port: int) -> None:
        """Starts it on its core, compiling it first where that wasn't done.

        Raises:
            environment.Unavailable: There is no C compiler.
        """
        program = environment.compiled(SOURCE)
        with machine.pinned_to(machine.cores()[1]):
            self._popen = subprocess.Popen([str(program), host, str(port)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    def phase(self, **settings: object) -> Report:
        """Runs one phase, see `load.c`, and returns its report.

        Raises:
            RuntimeError: The generator failed.
        """
        timeout = float(str(settings.setdefault("timeout", 60)))
        words = [f"{name}={int(value) if isinstance(value, bool) else value}" for name, value in settings.items()]
        return self._command(f"phase {' '.join(words)}", timeout)

    def drop(self) -> None:
        """Closes all streams; a phase with `resume=1` opens them again where they were."""
        self._command("drop", 0)

    def close(self) -> None:
        """Closes all streams and ends it."""
        assert self._popen.stdin is not None and self._popen.stdout is not None
        self._popen.stdin.close()
        try:
            self._popen.wait(10)
        except subprocess.TimeoutExpired:
            self._popen.kill()
            self._popen.wait()
        self._popen.stdout.close()

    def _command(self, line: str, timeout: float) -> Report:
        assert self._popen.stdin is not None and self._popen.stdout is not None
        self._popen.stdin.write(line.encode() + b"\n")
        self._popen.stdin.flush()
        # It writes one whole line at a time, so nothing waits in the reader's buffer.
        if not select.select([self._popen.stdout], [], [], timeout + GRACE_SECONDS)[0]:
            raise RuntimeError(f"the load generator is stuck at: {line}")
        answer = self._popen.stdout.readline()
        if not answer:
            raise RuntimeError(f"the load generator ended at: {line}")
        report: Report = json.loads(answer)
        return report
