"""The archives hold what they should: built here without an environment of their own, as `make release-check` does with one."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.release import ROOT, client_faults, copy_checkout, metadata, package_files, sdist_faults, version_faults, wheel_faults

BUILD = "import sys; from setuptools import build_meta; print(getattr(build_meta, sys.argv[1])(sys.argv[2]))"


def built(kind: str, checkout: Path, target: Path) -> Path:
    """Builds one of the archives with the setuptools that runs here."""
    target.mkdir(exist_ok=True)
    command = [sys.executable, "-c", BUILD, f"build_{kind}", str(target)]
    made = subprocess.run(command, cwd=checkout, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr
    return target / made.stdout.splitlines()[-1]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of the checkout that a test may change."""
    return copy_checkout(tmp_path / "checkout")


def test_both_archives_hold_the_package_and_nothing_else(checkout: Path, tmp_path: Path) -> None:
    """The wheel has each file of the package and its metadata; the sources have what it takes to build the same wheel."""
    wheel = built("wheel", checkout, tmp_path / "dist")
    sdist = built("sdist", checkout, tmp_path / "dist")
    assert wheel_faults(wheel, checkout) == []
    assert sdist_faults(sdist, checkout) == []
    unpacked = tmp_path / "unpacked"
    shutil.unpack_archive(sdist, unpacked, filter="data")
    (sources,) = unpacked.iterdir()
    assert wheel_faults(built("wheel", sources, tmp_path / "again"), checkout) == []


def test_what_is_missing_and_what_does_not_belong_there_is_found(checkout: Path, tmp_path: Path) -> None:
    """Without package data, and with the tests as packages, each file that is missing or too many is named."""
    setup = checkout / "setup.cfg"
    text = setup.read_text().replace("    static/**\n", "").replace("include = sseflask*", "include =\n    sseflask*\n    tests*")
    setup.write_text(text)
    faults = wheel_faults(built("wheel", checkout, tmp_path / "dist"), checkout)
    assert "is missing: sseflask/static/client.js" in faults
    assert "is missing: sseflask/static/client.LICENSE.txt" in faults
    assert "doesn't belong there: tests/release.py" in faults
    static = {name for name in package_files(checkout) if name.startswith("sseflask/static/")}
    assert {fault for fault in faults if fault.startswith("is missing")} == {f"is missing: {name}" for name in static}


@pytest.mark.parametrize(
    ("version", "changelog", "faults", "final_faults"),
    [
        ("0.1.0", "## [Unreleased]\n", [], ["CHANGELOG.md: the newest section is Unreleased, not [0.1.0] with its date"]),
        ("0.2.0", "## [0.2.0] - 2026-12-01\n## [0.1.0] - 2026-11-21\n", [], []),
        ("0.2.0rc1", "## [0.2.0rc1] - 2026-12-01\n", [], []),
        ("0.2.0", "## [0.1.0] - 2026-11-21\n", ["CHANGELOG.md: the newest section is neither Unreleased nor [0.2.0]"], None),
        ("0.1.0", "", ["CHANGELOG.md: the newest section is neither Unreleased nor [0.1.0]"], None),
        ("0.1.0", "## [0.1.0]\n", ["CHANGELOG.md: 0.1.0 has no date"], None),
        (
            "0.1.0",
            "## [0.1.0] - 2026-11-21\n## [0.2.0] - 2026-12-01\n",
            ["CHANGELOG.md: the versions don't go down from section to section"],
            None,
        ),
        ("1", "## [Unreleased]\n", ["setup.cfg: '1' is no version like 1.2.3 or 1.2.3rc1"], ...),
        (
            "0.2.0rc2",
            "## [Unreleased]\n## [0.2.0] - 2026-12-01\n",
            ["setup.cfg: 0.2.0rc2 is older than the changelog's newest, 0.2.0"],
            ...,
        ),
    ],
)
def test_the_version_and_the_changelog_agree(version: str, changelog: str, faults: list[str], final_faults: object) -> None:
    """The newest section is this version's, with its date, or holds what is unreleased; only the former may be released."""
    assert version_faults(version, changelog, final=False) == faults
    if final_faults is not ...:
        assert version_faults(version, changelog, final=True) == (faults if final_faults is None else final_faults)


@pytest.mark.parametrize(("version", "told"), [("0.2.0", "0.2.0"), ("0.2.0rc1", "0.2.0-rc.1"), ("1.0.0b2", "1.0.0-beta.2")])
def test_another_version_of_the_browser_client_is_found(tmp_path: Path, version: str, told: str) -> None:
    """Both of its files have the package's version, in npm's spelling."""
    folder = tmp_path / "clients/js"
    folder.mkdir(parents=True)
    for name in ("package.json", "package-lock.json"):
        (folder / name).write_text(json.dumps({"version": "0.1.0" if name == "package.json" else told}))
    assert client_faults(version, tmp_path) == [f"clients/js/package.json: the version is 0.1.0, not {told}"]


def test_this_checkout_may_be_released_one_day() -> None:
    """Its version, its changelog and its browser client agree, and what builds it is what the tests' environment has."""
    assert version_faults(metadata(ROOT)["version"], (ROOT / "CHANGELOG.md").read_text(), final=False) == []
    assert client_faults(metadata(ROOT)["version"], ROOT) == []
    requires = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]
    assert f"    {requires[0]}\n" in (ROOT / "setup.cfg").read_text()
