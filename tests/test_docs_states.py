"""What docs/understand/streams.md shows of a stream's states is what the code's own tables say."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from types import ModuleType

import pytest

from sseflask.state import TRANSITIONS, CloseReason, StreamState

DOCS = Path(__file__).resolve().parents[1] / "docs"


@pytest.fixture
def directives(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module that makes the pages' picture and tables of states."""
    monkeypatch.syspath_prepend(str(DOCS))
    return importlib.import_module("directives.states")


def test_states_and_reasons_are_documented(directives: ModuleType) -> None:
    """docs/understand/streams.md shows the picture and both tables, which have each state and reason with its meaning."""
    text = (DOCS / "understand/streams.md").read_text()
    assert all(f"```{{{name}}}\n" in text for name in ("stream-diagram", "stream-states", "close-reasons"))
    for members in (StreamState, CloseReason):
        meanings = directives.meanings(members)
        assert list(meanings) == [member.value for member in members]
        assert all(meaning.endswith(".") and "|" not in meaning for meaning in meanings.values())


def test_the_diagram_has_each_change_of_state(directives: ModuleType) -> None:
    """The picture of a stream's life, and the words for who can't see it, have each state and each change of the code's table."""
    picture, words = directives.diagram(), directives.description()
    arrows = re.findall(r"^    (\w+) -> (\w+) \[label=\"([^\"]+)\"", picture, re.MULTILINE)
    changes = [(before, after, cause) for before, following in TRANSITIONS.items() for after, cause in following.items()]
    assert [(before, after) for before, after, _ in arrows] == [(before.value, after.value) for before, after, _ in changes]
    for (_, _, label), (before, after, cause) in zip(arrows, changes, strict=True):
        assert " ".join(label.replace("\\l", " ").split()) == cause
        assert f"from {before.value} to {after.value} when {cause}" in words
    assert all(f"    {state.value} [" in picture for state in StreamState)
