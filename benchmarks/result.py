"""Results: what the runs of one call gave, and the median, minimum and maximum of each figure."""

from __future__ import annotations

import collections
import dataclasses
import json
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .peer import BY_NAME
from .scenario import Outcome, Scenario


@dataclasses.dataclass(frozen=True)
class Summary:
    """One figure over several runs."""

    median: float
    minimum: float
    maximum: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Summary | None:
        """None if there is no value."""
        found = list(values)
        return cls(statistics.median(found), min(found), max(found)) if found else None


class Results:
    """All runs of one scenario, with the peers interleaved; of one call, or of several where later ones were added."""

    def __init__(self, scenario: Scenario, against: str, data: dict[str, Any]) -> None:
        self.scenario = scenario
        self.against = against
        self.data = data

    @classmethod
    def begin(cls, scenario: Scenario, against: str, *, quick: bool, date: str) -> Results:
        """Empty ones."""
        return cls(scenario, against, {"against": against, "quick": quick, "date": date, "skipped": {}, "runs": []})

    @classmethod
    def resume(cls, scenario: Scenario, against: str, earlier: dict[str, Any], *, date: str) -> Results:
        """Those of earlier calls, to which more are added."""
        return cls(scenario, against, {**earlier, "against": against, "date": date, "skipped": {}, "runs": [*earlier["runs"]]})

    @property
    def last_run(self) -> int:
        """The number of the last run; 0 without any."""
        return max((run["run"] for run in self.data["runs"]), default=0)

    def counts(self) -> list[int]:
        """How many runs there are of each peer and variant."""
        return list(collections.Counter((run["peer"], run["variant"]) for run in self.data["runs"]).values())

    def add(self, peer: str, run: int, outcome: Outcome) -> None:
        """Keeps what one run gave."""
        rounded = {"stolen": round(outcome.stolen, 3), "seconds": round(outcome.seconds, 3)}
        self.data["runs"].append({"peer": peer, "run": run, **dataclasses.asdict(outcome), **rounded})

    def skip(self, peer: str, reason: str) -> None:
        """Keeps why a peer has no figures."""
        self.data["skipped"][peer] = reason

    def variants(self) -> list[str]:
        """In the order in which they were first measured."""
        return list(dict.fromkeys(run["variant"] for run in self.data["runs"]))

    def peers(self) -> list[str]:
        """In the order in which they are listed everywhere."""
        measured = {run["peer"] for run in self.data["runs"]}
        return [name for name in BY_NAME if name in measured]

    def has(self, peer: str, variant: str) -> bool:
        """Whether the peer was measured in that."""
        return any(True for _ in self._runs(peer, variant))

    def summary(self, peer: str, variant: str, key: str) -> Summary | None:
        """A figure over the runs; None if one of them lost something, or none has it."""
        if self.faults(peer, variant):
            return None
        return Summary.of(run["figures"][key] for run in self._runs(peer, variant) if key in run["figures"])

    def faults(self, peer: str, variant: str) -> list[str]:
        """What was wrong in any of the runs."""
        return list(dict.fromkeys(fault for run in self._runs(peer, variant) for fault in run["faults"]))

    def ratio(self, peer: str, variant: str, key: str, other: str | None = None) -> float | None:
        """The median over another peer's, the one that results are told against if none is named."""
        mine, theirs = self.summary(peer, variant, key), self.summary(other or self.against, variant, key)
        return mine.median / theirs.median if mine and theirs and theirs.median else None

    def stolen(self) -> Summary | None:
        """The part of the processors' time that other virtual machines had, over all runs; None where it wasn't looked at."""
        return Summary.of(run["stolen"] for run in self.data["runs"] if "stolen" in run)

    def most_tries(self) -> int:
        """How often a run was measured at the most, until other virtual machines took little."""
        return max((run.get("tries", 1) for run in self.data["runs"]), default=1)

    def _runs(self, peer: str, variant: str) -> Iterable[dict[str, Any]]:
        return (run for run in self.data["runs"] if run["peer"] == peer and run["variant"] == variant)


def load(path: Path) -> dict[str, Any]:
    """What an earlier call left."""
    return json.loads(path.read_text()) if path.exists() else {"scenarios": {}}  # type: ignore[no-any-return]


def save(path: Path, document: dict[str, Any]) -> None:
    """Writes all results."""
    path.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n")
