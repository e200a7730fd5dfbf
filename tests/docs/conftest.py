"""Where a page's code runs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docs.place import Place


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    """The reader's machine."""
    folder = tmp_path / "reader"
    folder.mkdir()
    with Place(folder) as place:
        yield place
