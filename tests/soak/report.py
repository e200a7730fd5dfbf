"""A soak's figures as a page of Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Final

from .measure import FILES_SLACK, MEMORY_SLACK, MIB, Growth, Measurement, Sample
from .world import World

#: Points of a curve.
POINTS: Final = 12


def markdown(
    world: World, measurement: Measurement, *, broker: str, seconds: float, memory: list[Growth], files: list[Growth]
) -> str:
    """The report.

    Args:
        world: What was counted and what went wrong.
        measurement: What was measured.
        broker: What the workers shared.
        seconds: How long the load went on.
        memory: What became of the memory of workers that lived long enough.
        files: And of their open files.
    """
    counted = world.counted
    published = counted["events published over HTTP"] + counted["events published by another process"]
    verdict = "**Failed.**" if world.problems else "**Passed.**"
    seen, opened = f"watchers saw {counted['deliveries']:,}", f"{counted['streams opened']:,} streams"
    lines = [
        f"### {broker}, {seconds / 60:.1f} minutes, seed {world.seed}",
        "",
        f"{verdict} {published:,} events accepted from outside; {seen}; {opened}.",
        "",
        "| what happened | times |",
        "|---|---|",
        *(f"| {what} | {count:,} |" for what, count in sorted(counted.items()) if what != "problems"),
        *(f"| reset told: {reason} | {count:,} |" for reason, count in sorted(world.resets.items())),
        *(() if world.resets else ("| resets told | 0 |",)),
        "",
        "| process | lived, s | MiB, second third | last third | files, second third | last third |",
        "|---|---|---|---|---|---|",
    ]
    for grown, held in zip(memory, files, strict=True):
        lines.append(
            f"| {grown.pid} | {grown.seconds:.0f} | {grown.second / MIB:.1f} | {grown.last / MIB:.1f} "
            f"| {held.second:.0f} | {held.last:.0f} |"
        )
    lines += ["", f"{len(measurement.samples)} workers in all; all of them together, at {POINTS} times:", ""]
    lines += ["| second | workers | MiB a worker | files a worker |", "|---|---|---|---|"]
    lines += _curve(measurement)
    if world.problems:
        lines += ["", f"{counted['problems']} problems:", "", *(f"* {_one_line(problem)}" for problem in world.problems)]
    return "\n".join(lines) + "\n"


def judge(world: World, memory: list[Growth], files: list[Growth]) -> None:
    """Memory and files that grow are problems."""
    for grown in memory:
        if not grown.is_flat(MEMORY_SLACK):
            world.problem(f"the memory of {grown.pid} grew from {grown.second / MIB:.1f} to {grown.last / MIB:.1f} MiB")
    for opened in files:
        if not opened.is_flat(FILES_SLACK):
            world.problem(f"the open files of {opened.pid} grew from {opened.second:.0f} to {opened.last:.0f}")


def _curve(measurement: Measurement) -> list[str]:
    everything: Sequence[Sample] = measurement.arbiter
    if not everything:
        return []
    began, ended = everything[0].at, everything[-1].at
    width = max((ended - began) / POINTS, 0.001)
    rows: list[str] = []
    for point in range(POINTS):
        since, until = began + point * width, began + (point + 1) * width
        within = {pid: [s for s in samples if since <= s.at < until] for pid, samples in measurement.samples.items()}
        taken = [sample for samples in within.values() for sample in samples]
        if taken:
            memory, files = statistics.median(s.memory for s in taken), statistics.median(s.files for s in taken)
            living = sum(1 for samples in within.values() if samples)
            rows.append(f"| {until - began:.0f} | {living} | {memory / MIB:.1f} | {files:.0f} |")
    return rows


def _one_line(text: str) -> str:
    return " / ".join(text.splitlines())
