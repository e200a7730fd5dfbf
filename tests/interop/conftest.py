"""One server for all of these tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.live.server import Server


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The app under the worker."""
    with Server("tests.interop.app:app", tmp_path_factory.mktemp("interop")) as server:
        yield server
