"""Python: each page's blocks in one namespace, and the tests that pages show. `pytest tests/docs -k first-stream` runs a page's."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.docs import page
from tests.docs.page import ROOT, parametrized
from tests.docs.place import Place

#: What a page's tests import the app from, where that isn't `app.py`.
MODULES = {"how-to/testing": "shop"}


@parametrized(lambda path: page.running(path, "python"))
def test_python(path: Path, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Python blocks of a page run from top to bottom, in one namespace."""
    place.run_python(page.running(path, "python"), monkeypatch)


@parametrized(lambda path: any(block.is_test and block.included is None for block in page.blocks(path)))
@pytest.mark.timeout(120)
def test_tests(path: Path, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests that a page shows pass."""
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{pytester.path}")
    # Finding and loading all plugins takes longer than the tests.
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    module = MODULES.get(page.name(path), "app")
    code, tests = "", ""
    for block in page.blocks(path):
        if block.file is not None:
            file = pytester.path / block.file
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(block.text)
        elif block.language == "python" and block.included is None:
            if tests or block.is_test:
                tests += block.text
            else:
                code += block.text
    if tests:
        pytester.makepyfile(**{module: code, "test_of_the_page": f"from {module} import *\n{tests}"})
    plugins = ("-p", "pytest_sseflask", "-p", "pytest_timeout")
    result = pytester.runpytest_subprocess(*plugins, "-W", "error", "--timeout", "50", timeout=100)
    outcomes = result.parseoutcomes()
    assert set(outcomes) == {"passed"}, outcomes
    assert outcomes["passed"] >= tests.count("\ndef test_")


def test_modules_are_of_pages_with_tests() -> None:
    """Each page of which a module is told has tests."""
    named = {page.name(path) for path in page.pages() if any(block.is_test for block in page.blocks(path))}
    assert set(MODULES) <= named
