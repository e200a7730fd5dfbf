"""What docs/understand/sizing.md says: its table is the program's, and its formulas are what the simulation sees."""

from __future__ import annotations

import importlib.util
import math
import re
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from sseflask import process
from sseflask.brokers import sqlite_follower
from sseflask.config import Settings
from sseflask.stream import Stream
from sseflask.worker import broadcaster, entrance, worker

# Seconds of computing on a machine at rest, many times that on a busy one.
pytestmark = pytest.mark.timeout(180)

PAGE = Path(__file__).resolve().parents[1] / "docs/understand/sizing.md"


def load() -> ModuleType:
    """The program beside the page."""
    spec = importlib.util.spec_from_file_location("sizing", PAGE.with_suffix(".py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Where dataclasses look for a class's module.
    sys.modules["sizing"] = module
    spec.loader.exec_module(module)
    return module


sizing = load()


@pytest.fixture(scope="module")
def played() -> dict[str, tuple[Any, Any]]:
    """What the formulas and the simulation say of each plan of the page's table, by its name."""
    return {plan.name: (sizing.estimate(plan), sizing.simulate(plan)) for plan in sizing.PLANS}


def test_the_page_shows_what_the_program_prints(played: dict[str, tuple[Any, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    """The page's table is the program's output."""
    # Not a second time: the same seed plays the same game, as the next test shows.
    monkeypatch.setattr(sizing, "simulate", lambda plan, seed: played[plan.name][1])
    assert sizing.table(sizing.PLANS) in PAGE.read_text()


def test_the_page_tells_what_the_program_reckons_with() -> None:
    """The costs in the page's tables are the program's constants, and its example is what the formulas give."""
    text = PAGE.read_text()
    costs = list(sizing.BROKERS.values())

    def cells(seconds: list[float]) -> str:
        return " | ".join(f"{1e6 * value:.0f} µs" for value in seconds)

    assert f"| {cells([broker.publish for broker in costs])} |" in text
    assert f"| {cells([broker.hear for broker in costs])} |" in text
    assert f"| 0 | {cells([costs[1].store])} | {cells([costs[2].store])}, and {cells([costs[2].push])} for each worker" in text
    assert f"| {cells([sizing.DELIVER] * 3)} |" in text
    assert f"{1e6 * sizing.KEEPALIVE:.0f} µs a keepalive, one in {sum(sizing.SILENCE) / 2:g} s" in text
    assert f"| {sizing.STREAM_BYTES // 1024} KiB | {sizing.GENERATOR_BYTES // 1024} KiB, and" in text
    assert f"Opening a stream takes {1e3 * sizing.OPEN:g} ms" in text
    plan = next(plan for plan in sizing.PLANS if plan.name == "a hundred thousand")
    assert (plan.clients, plan.hosts, plan.workers, plan.shared, plan.own, plan.stay) == (100_000, 4, 8, 5, 60, 600)
    said = sizing.estimate(plan)
    for fact, value in (
        ("deliveries a second", f"= {said.delivered:,.0f}"),
        ("publishes a second", f"= {said.published:,.0f}"),
        ("… together", f"{100 * said.cpu:.0f} %"),
        ("the same with a host away", f"{100 * said.cpu_left:.0f} %"),
        ("memory of a host", f"{said.host_bytes / 1024**2:.0f} MiB"),
        ("network of a host", f"{said.bits / 1e6:.0f} Mbit/s"),
    ):
        assert re.search(rf"^\| {fact} \| .*{re.escape(value)}", text, re.MULTILINE), (fact, value)


def test_the_same_seed_plays_the_same_game() -> None:
    """A plan that is played twice gives the same; with another seed something else."""
    plan = sizing.Plan("small", 300, own=5)
    assert sizing.simulate(plan) == sizing.simulate(plan) != sizing.simulate(plan, seed=2)


def test_formulas_and_simulation_agree(played: dict[str, tuple[Any, Any]]) -> None:
    """Where a plan holds: streams and deliveries within 3 %, processor time within 10 % and one point, the return within 5 %."""
    holding = [both for both in played.values() if not both[0].faults]
    assert len(holding) >= 4
    for said, seen in holding:
        assert seen.streams == pytest.approx(said.streams, rel=0.03)
        assert seen.published == pytest.approx(said.published, rel=0.1)
        assert seen.delivered == pytest.approx(said.delivered, rel=0.03)
        assert seen.cpu == pytest.approx(said.cpu, rel=0.1, abs=0.01)
        assert seen.back == pytest.approx(said.back, rel=0.05)
        assert seen.p99_after < 0.25 and not seen.refused


def test_the_simulation_sees_each_overload(played: dict[str, tuple[Any, Any]]) -> None:
    """Where the formulas find a fault the simulation does: events come seconds late, or clients find no room."""
    faults = {name: (said.faults, seen) for name, (said, seen) in played.items() if said.faults}
    assert list(faults) == ["too few workers", "too many publishes", "too few files"]
    for name in ("too few workers", "too many publishes"):
        assert faults[name][1].p99_after > 1
    assert faults["too few files"][1].refused > 1000 and math.isinf(faults["too few files"][1].back)


def test_more_keepalives_where_less_is_said() -> None:
    """A silent stream gets one in 13.5 s, one with an event a second hardly any."""
    assert sizing._keepalives(1e-9) == pytest.approx(1 / 13.5, rel=1e-3)
    assert sizing._keepalives(1.0) < 1e-4


def test_the_simulation_works_as_the_worker_does() -> None:
    """What the program says of sseflask's own times and reserves is what the code has."""
    assert pytest.approx(Settings().drain_seconds * worker.SPREAD) == sizing.DRAIN
    assert pytest.approx((0.8 * Settings().keepalive_interval, Settings().keepalive_interval)) == sizing.SILENCE
    assert entrance.TURN_SECONDS == sizing.REQUESTS_TURN
    assert broadcaster.SLICE_SECONDS == sizing.DELIVERIES_TURN
    assert process.RESERVED_FILES == sizing.RESERVED_FILES
    assert sizing.BROKERS["sqlite"].poll == sqlite_follower.POLL_SECONDS
    stream: Any = SimpleNamespace(_settings=Settings())
    retries = [int(Stream._come_back(stream).split()[1]) / 1000 for _ in range(500)]
    assert sizing.COME_BACK[0] <= min(retries) < max(retries) <= sizing.COME_BACK[1]
    assert max(retries) - min(retries) > 0.8 * (sizing.COME_BACK[1] - sizing.COME_BACK[0])


def test_a_plan_of_ones_own(capsys: pytest.CaptureFixture[str]) -> None:
    """`sizing.py --clients …` prints that plan alone, with Redis where there are several hosts."""
    sizing.main(["--clients", "200", "--hosts", "2", "--workers", "1"])
    said = capsys.readouterr().out
    assert said.startswith("|  | yours |\n| --- | --: |\n| clients | 200 |\n| hosts × workers | 2 × 1 |\n| broker | redis |\n")
    assert said.endswith("| verdict | holds |\n")
