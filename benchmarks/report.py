"""The report: a Markdown table for each scenario, and plots."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .peer import BY_NAME
from .result import Results, Summary
from .scenario import ALL, CALM_SHARE, SHORT_SECONDS, Metric, Scenario

BLANK = "–"
#: What machines are called, where there are several.
LETTERS = "ABCDEFGH"
COLOURS = {
    "sseflask": "#d1495b",
    "sseflask-auto": "#e58a95",
    "sseflask-sqlite-2": "#e58a95",
    "sseflask-redis-2": "#d1495b",
    "flask-plain": "#edae49",
    "flask-sse": "#b8860b",
    "flask-sse-2": "#b8860b",
    "sse-starlette": "#66a182",
    "fastapi": "#00798c",
    "django-eventstream": "#2e4057",
    "better-sse": "#8d96a3",
    "nchan": "#5c4b8a",
    "python-send": "#bbbbbb",
    "c-send": "#888888",
}


def all_results(document: dict[str, Any]) -> list[Results]:
    """Those of each scenario that was run, in their usual order."""
    scenarios = document["scenarios"]
    return [
        Results(scenario, scenarios[scenario.name]["against"], scenarios[scenario.name])
        for scenario in ALL
        if scenario.name in scenarios
    ]


def markdown(document: dict[str, Any], plots: Path | None = None) -> str:
    """The whole page."""
    lines = [
        "# Benchmarks",
        "",
        "Made by `make bench`; [performance.md](performance.md) says how, and what the tables mean.",
        "Absolute figures are the machine's; the ratios are what to look at.",
        "",
    ]
    machines = all_machines(document)
    letters = LETTERS[: len(machines)]
    facts = dict.fromkeys(fact for described in machines for fact in described)
    lines += [_row(["the machine", *([""] if len(machines) == 1 else letters)]), _row(["---"] * (1 + len(machines)))]
    lines += [*(_row([fact, *(described.get(fact, BLANK) for described in machines)]) for fact in facts), ""]
    lines += ["| peer | what it is |", "|---|---|", *(f"| {peer.name} | {peer.title} |" for peer in BY_NAME.values()), ""]
    for results in all_results(document):
        lines += [f"## {results.scenario.title}", "", results.scenario.text, ""]
        lines += table(results, on="" if len(machines) == 1 else f"machine {letters[machines.index(results.data['machine'])]}")
        if plots is not None and (plots / f"{results.scenario.name}.svg").exists():
            lines += ["", f"![{results.scenario.title}]({plots.name}/{results.scenario.name}.svg)"]
        lines.append("")
    return "\n".join(lines)


def all_machines(document: dict[str, Any]) -> list[dict[str, str]]:
    """Those that its scenarios were measured on, each once."""
    found: list[dict[str, str]] = []
    for results in all_results(document):
        if (described := results.data["machine"]) not in found:
            found.append(described)
    return found


def table(results: Results, *, on: str = "") -> list[str]:
    """The lines of one scenario's table: medians, with the least and the most of all runs in brackets.

    Args:
        results: Its runs.
        on: Which machine they were measured on, where there are several.
    """
    scenario = results.scenario
    first = scenario.metrics[0]
    titles = [metric.title for metric in scenario.metrics]
    has_ratio = any(results.summary(results.against, variant, first.key) for variant in results.variants())
    head = ["", "peer", *titles, *([f"× {results.against}"] if has_ratio else [])]
    lines = [_row(head), _row(["---"] * 2 + ["--:"] * (len(head) - 2))]
    for variant in results.variants():
        for peer in results.peers():
            if results.has(peer, variant):
                lines += [_row(_cells(results, peer, variant, has_ratio=has_ratio))]
    least, most = min(results.counts(), default=0), max(results.counts(), default=0)
    runs = f"{most}" if least == most else f"{least} to {most}"
    note = f"{runs} run{'s' if most != 1 else ''} of each, interleaved, {f'on {on}, ' if on else ''}{results.data['date']}"
    if (stolen := results.stolen()) is not None:
        shares = ", ".join(f"{share:.0%}" for share in (stolen.minimum, stolen.median, stolen.maximum))
        note += f"; other virtual machines had {shares} (least, median, most) of this one's processors meanwhile"
    if results.most_tries() > 1:
        note += (
            f"; measurements of less than {SHORT_SECONDS:.0f} s in which they had more than {CALM_SHARE:.0%} were made again, "
            f"up to {results.most_tries()} times, and the calmest counts"
        )
    lines += ["", f"{note}{'; a quick run, of no worth as a measurement' if results.data['quick'] else ''}."]
    lines += [f"{peer} wasn't measured: {reason}." for peer, reason in results.data["skipped"].items()]
    return lines


def _cells(results: Results, peer: str, variant: str, *, has_ratio: bool) -> list[str]:
    faults = results.faults(peer, variant)
    metrics = results.scenario.metrics
    if faults:
        return [variant, peer, f"no figure: {'; '.join(faults)}", *[BLANK] * (len(metrics) - 1 + has_ratio)]
    cells = [variant, peer, *(_figure(results.summary(peer, variant, metric.key), metric) for metric in metrics)]
    if has_ratio:
        ratio = results.ratio(peer, variant, metrics[0].key)
        cells.append(BLANK if ratio is None else f"{ratio:.2f}" if ratio < 10 else f"{ratio:.1f}")
    return cells


def _figure(summary: Summary | None, metric: Metric) -> str:
    if summary is None:
        return BLANK
    median, least, most = (f"{value:,.{metric.digits}f}" for value in (summary.median, summary.minimum, summary.maximum))
    return median if least == most else f"{median} ({least}–{most})"


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def draw(document: dict[str, Any], directory: Path) -> None:
    """Draws each scenario's first metric.

    Raises:
        ModuleNotFoundError: matplotlib isn't installed; the extra `bench` has it.
    """
    import matplotlib as mpl

    mpl.use("svg")
    # The same figures make the same file.
    mpl.rcParams["svg.hashsalt"] = "sseflask"
    mpl.rcParams["font.size"] = 9
    directory.mkdir(parents=True, exist_ok=True)
    for results in all_results(document):
        if results.scenario.chart == "lines":
            _lines(results, directory / f"{results.scenario.name}.svg")
        else:
            _bars(results, directory / f"{results.scenario.name}.svg")


def _bars(results: Results, path: Path) -> None:
    from matplotlib import pyplot as plt

    metric = results.scenario.metrics[0]
    variants = [
        variant for variant in results.variants() if any(results.summary(peer, variant, metric.key) for peer in results.peers())
    ]
    if not variants:
        return
    figure, axes = plt.subplots(1, len(variants), figsize=(4 * len(variants), 0.3 * len(results.peers()) + 1.2), squeeze=False)
    for axis, variant in zip(axes[0], variants, strict=True):
        peers = [peer for peer in reversed(results.peers()) if results.summary(peer, variant, metric.key)]
        found = [summary for peer in peers if (summary := results.summary(peer, variant, metric.key))]
        medians = [summary.median for summary in found]
        spread = [[s.median - s.minimum for s in found], [s.maximum - s.median for s in found]]
        axis.barh(peers, medians, xerr=spread, color=[COLOURS[peer] for peer in peers], error_kw={"lw": 0.8})
        positive = [median for median in medians if median > 0]
        if positive and max(positive) > 20 * min(positive):
            axis.set_xscale("log")
        axis.set_title(f"{variant}: {metric.title}", fontsize=9)
    _write(figure, path)


def _lines(results: Results, path: Path) -> None:
    from matplotlib import pyplot as plt

    metric = results.scenario.metrics[0]
    figure, axis = plt.subplots(figsize=(6, 3.5))
    for peer in results.peers():
        points = [
            (int(variant.replace(",", "")), summary.median)
            for variant in results.variants()
            if (summary := results.summary(peer, variant, metric.key))
        ]
        if points:
            axis.plot(*zip(*points, strict=True), marker="o", label=peer, color=COLOURS[peer])
    axis.set_yscale("log")
    axis.set_xlabel("streams")
    axis.set_ylabel(metric.title)
    axis.legend(fontsize=7)
    _write(figure, path)


def _write(figure: Any, path: Path) -> None:
    from matplotlib import pyplot as plt

    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None, "Creator": None})
    plt.close(figure)


def terminal(results: Results) -> str:
    """One scenario's table, for a terminal."""
    return "\n".join([f"{results.scenario.title}", *table(results), ""])


__all__ = ["Scenario", "all_results", "draw", "markdown", "table", "terminal"]
