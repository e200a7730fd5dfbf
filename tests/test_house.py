"""docs/contribute: the house as the pages show it is the house as it is."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from types import ModuleType

import pytest

from tests import test_layers

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "docs/contribute" / f"{name}.md" for name in ("house", "adding-a-broker", "soak")]
HOUSE = PAGES[0].read_text()


@pytest.fixture
def floors(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module that makes the page's tables."""
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    return importlib.import_module("directives.floors")


def test_the_floors_are_those_of_the_tests(floors: ModuleType) -> None:
    """The page has both tables, whose floors are the ones that the imports are held to."""
    assert all(f"```{{{name}}}\n```\n" in HOUSE for name in ("floors", "rooms"))
    assert floors.floors() == test_layers.FLOORS
    number, shown = "", {}
    for found, name, _ in floors.house():
        number = found or number
        shown[name] = int(number)
    assert shown == test_layers.FLOOR
    assert list(shown.values()) == sorted(shown.values(), reverse=True)


def test_each_module_has_a_line(floors: ModuleType) -> None:
    """Each module of the package is in one of the tables, with what its docstring's first line says of it."""
    shown = {floors.source_of(name): text for _, name, text in floors.house()}
    shown |= {ROOT / "sseflask" / f"{name}.py": text for name, text in floors.subpackages()}
    assert set(shown) == set(test_layers.module_files())
    for path, text in shown.items():
        assert text.endswith("."), f"{path}: {text}"
        assert path.read_text().startswith(f'"""{text}'), path


def test_the_core_is_that_of_the_tests() -> None:
    """The page names the modules that may not wait, and those that others may not import, as the tests do."""
    sentence = re.search(r"\*\*The core never waits\.\*\* (.+?) import", HOUSE)
    assert sentence and tuple(re.findall(r"`(\w+)`", sentence[1])) == test_layers.CORE
    names = re.search(r"\*\*No `from threading import …`\*\*, nor from (.+?):", HOUSE)
    assert names and {"threading", *re.findall(r"`(\w+)`", names[1])} == test_layers.BY_MODULE_ONLY


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_what_is_named_exists(page: Path) -> None:
    """Each file and directory of the repository that a page names is there, and each `make` command."""
    text = page.read_text()
    for name in set(re.findall(r"`((?:tests|sseflask|docs|clients|benchmarks|\.ci)/[^`\s:]*)", text)):
        assert list(ROOT.glob(name)), name
    made = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"`make ([a-z-]+)", text)) <= made


def test_what_is_checked_is_what_people_type() -> None:
    """The page names the commands that a commit must pass, all of them and no others."""
    run = re.findall(r"^make --no-print-directory ([a-z-]+)$", (ROOT / ".ci/run").read_text(), re.MULTILINE)
    sentence = re.search(r"`\.ci/run` is (.+?)\. A", HOUSE, re.DOTALL)
    assert sentence and re.findall(r"`make ([a-z-]+)`", sentence[1]) == run
