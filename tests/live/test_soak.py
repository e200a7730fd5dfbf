"""The soak's program works: a small one passes, and it would notice what is wrong."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.live.client import Event
from tests.live.server import Server
from tests.soak.__main__ import judge_log, soak
from tests.soak.measure import MEMORY_SLACK, MIB, Measurement, Sample
from tests.soak.watcher import Watcher
from tests.soak.world import World

SEED = 8


@pytest.mark.timeout(150)
def test_miniature(tmp_path: Path) -> None:
    """Some seconds of everything, with faults: nothing is lost, nothing is left."""
    text, passed, log = soak(tmp_path, "sqlite", seconds=12, seed=SEED)
    assert passed, f"{text}\n{log[-5000:]}"
    counted = {what: int(times.replace(",", "")) for what, times in re.findall(r"^\| (.+?) \| ([\d,]+) \|$", text, re.MULTILINE)}
    assert counted["deliveries"] > 100
    assert any(what.startswith("fault: ") for what in counted), text


def test_log(tmp_path: Path) -> None:
    """A traceback in the server's log is a problem, but for that of work that gave up on a broker that was away."""
    world = World(Server("tests.soak.app:app", tmp_path), SEED)
    frames = ["Traceback (most recent call last):", '  File "app.py", line 1, in work', "    work()"]
    judge_log(world, ["[INFO] fine", *frames, "sseflask.errors.BrokerUnavailable: Timeout reading from socket", "[INFO] fine"])
    assert world.problems == []
    judge_log(world, [*frames, "KeyError: 'a'", *frames])
    assert len(world.problems) == 2 and "KeyError" in world.problems[0]


class TestWatcher:
    """A watcher sees what is wrong."""

    @pytest.fixture
    def world(self, tmp_path: Path) -> World:
        """A world whose server is never started."""
        return World(Server("tests.soak.app:app", tmp_path), SEED)

    @staticmethod
    def take(watcher: Watcher, *what: int | str) -> None:
        """Numbers of a series, and the reasons of resets."""
        watcher.take(Event("stream-open", "{}", "e-0", None, 0.0))
        for each in what:
            if isinstance(each, int):
                watcher.take(Event("message", f'{{"series": "s", "n": {each}}}', f"e-{each}", None, 0.0))
            else:
                watcher.take(Event("stream-reset", f'{{"reason": "{each}"}}', None, None, 0.0))

    @pytest.mark.parametrize(
        ("what", "problems"),
        [
            ((0, 1, 2), 0),
            ((0, 1, 3), 1),
            ((0, 1, 1), 1),
            ((0, 2, 1), 2),
            ((0, "history", 5, 6), 0),
            ((0, "history", 5, 7), 1),
            ((0, 1, "history", 1), 1),
            ((0, 1, "epoch", 1, 2), 0),
            ((2, 3), 1),
        ],
    )
    def test_numbers(self, world: World, what: tuple[int | str, ...], problems: int) -> None:
        """A number that is missing, double or out of turn is a problem, unless a reset has told so."""
        world.accepted["s"] = 0
        self.take(Watcher(world, "watcher"), *what)
        assert len(world.problems) == problems


class TestGrowth:
    """What grows is noticed."""

    @pytest.mark.parametrize(("a_minute", "is_flat"), [(0, True), (1, True), (10, False)])
    def test_memory(self, tmp_path: Path, a_minute: int, is_flat: bool) -> None:
        """A worker that takes more and more memory isn't flat, one that fluctuates is; those that lived for moments don't count."""
        server = Server("tests.soak.app:app", tmp_path)
        measurement = Measurement(World(server, SEED))
        measurement.samples[1] = [Sample(at, 50 * MIB + at * a_minute * MIB // 60 + at % 3 * MIB, 30) for at in range(300)]
        measurement.samples[2] = [Sample(at, at * MIB, 30) for at in range(30)]
        (grown,) = measurement.growth(lambda sample: sample.memory)
        assert grown.pid == 1
        assert grown.is_flat(MEMORY_SLACK) is is_flat
