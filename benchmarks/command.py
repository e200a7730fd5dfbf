"""The command line."""

from __future__ import annotations

import argparse
import datetime
import resource
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import machine, peer, report, result, scenario
from .environment import Unavailable
from .result import Results
from .scenario import Scenario

DOCS = Path(__file__).parent.parent / "docs" / "compare"


def main(arguments: Sequence[str]) -> int:
    """Measures, prints tables, and with `--save` writes them into the docs."""
    options = _parse(arguments)
    # Told to stop, it still stops what it has started.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    names = [chosen.name for chosen in scenario.ALL] if options.scenario == ["all"] else options.scenario
    options.output.mkdir(parents=True, exist_ok=True)
    path = options.output / "benchmarks.json"
    document = result.load(path)
    if names == ["report"]:
        _write(document, options.output)
        return 0
    here = machine.describe()
    for name in names if options.add else ():
        if (there := document["scenarios"].get(name, {}).get("machine", here)) != here:
            print(f"--add: {name} was measured on another machine, {there}, not on {here}", file=sys.stderr)
            return 2
    for name in names:
        chosen = scenario.ALL_BY_NAME[name]
        against = "flask-sse-2" if chosen.is_for_several else options.against
        earlier = document["scenarios"].get(name) if options.add else None
        results = measure(
            chosen, options.peer, runs=options.runs, tries=options.tries, against=against, quick=options.quick, earlier=earlier
        )
        document["scenarios"][name] = {**results.data, "machine": here}
        print(report.terminal(results), flush=True)
        if options.save:
            result.save(path, document)
    if options.save:
        _write(document, options.output)
    return 0


def measure(
    chosen: Scenario,
    peers: Sequence[str],
    *,
    runs: int,
    tries: int,
    against: str,
    quick: bool,
    earlier: dict[str, Any] | None = None,
) -> Results:
    """Runs a scenario: all peers once, then all of them again, so that a slow minute of the machine hits them alike."""
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    if earlier is None:
        results = Results.begin(chosen, against, quick=quick, date=today)
    else:
        results = Results.resume(chosen, against, earlier, date=today)
    first = results.last_run + 1
    for run in range(first, first + runs):
        for name in peers:
            if name in results.data["skipped"] or (peer.BY_NAME[name].workers > 1) is not chosen.is_for_several:
                continue
            print(f"{chosen.name}, run {run}: {name}", file=sys.stderr, flush=True)
            try:
                for outcome in chosen.run(peer.BY_NAME[name], quick=quick, tries=tries):
                    results.add(name, run, outcome)
            except Unavailable as error:
                results.skip(name, str(error).strip().splitlines()[0])
                print(f"{name} can't run: {error}", file=sys.stderr)
    return results


def _write(document: dict[str, Any], output: Path) -> None:
    plots = output / "benchmarks"
    try:
        report.draw(document, plots)
    except ModuleNotFoundError as error:
        print(f"No plots: {error}; the extra `bench` has what they need.", file=sys.stderr)
    (output / "benchmarks.md").write_text(report.markdown(document, plots))


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    names = [chosen.name for chosen in scenario.ALL]
    parser.add_argument(
        "scenario", nargs="+", choices=[*names, "all", "report"], help="what to measure; `report` only writes the docs again"
    )
    parser.add_argument(
        "--peer", nargs="+", choices=list(peer.BY_NAME), default=list(peer.BY_NAME), help="beside whom (default: all)"
    )
    parser.add_argument("--against", choices=list(peer.BY_NAME), default="flask-plain", help="whose figures the ratios are told by")
    parser.add_argument("--runs", type=int, default=None, help="of each peer (default: 3, quick: 1)")
    parser.add_argument(
        "--tries",
        type=int,
        default=None,
        help="of a short measurement that other virtual machines disturb; the calmest counts (default: 8, quick: 1)",
    )
    parser.add_argument("--quick", action="store_true", help="small, once, in two minutes: to see whether it works")
    parser.add_argument("--add", action="store_true", help="keep the runs that are stored, and add these; of the same code, please")
    parser.add_argument("--save", action="store_true", help="write docs/compare/benchmarks.json, .md and plots")
    parser.add_argument("--output", type=Path, default=DOCS, help="where --save writes (default: docs/compare)")
    options = parser.parse_args(arguments)
    if options.add and options.quick:
        parser.error("--add with --quick: small runs don't go with full ones")
    options.runs = options.runs or (1 if options.quick else 3)
    options.tries = options.tries or (1 if options.quick else 8)
    return options
