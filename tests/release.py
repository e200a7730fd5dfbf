"""What a release must pass: `make release-check`, or `python -m tests.release --final` for the commit that is to be tagged.

It builds the archives from a copy of this checkout, looks at what is in them, and runs the tests against the installed wheel, where
the checkout's own package can't be imported. It publishes nothing.
"""

from __future__ import annotations

import argparse
import email.parser
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import textwrap
import time
import zipfile
from collections.abc import Mapping, Sequence
from configparser import ConfigParser
from pathlib import Path, PurePosixPath
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[1]
PACKAGE: Final = "sseflask"
MODULES: Final = ("pytest_sseflask.py",)
#: The browser client's sources have a version as well.
CLIENT: Final = "clients/js"
CLIENT_FILES: Final = ("package.json", "package-lock.json")
#: What the archive of the sources holds beside the package, so that it can be built.
SOURCES: Final = ("CHANGELOG.md", "LICENSE", "MANIFEST.in", "README.md", "pyproject.toml", "setup.cfg")
#: What setuptools adds to it.
GENERATED: Final = re.compile(r"PKG-INFO|setup\.cfg|sseflask\.egg-info/[\w.-]+")
#: What must be there even if somebody has removed it from the checkout.
REQUIRED: Final = frozenset(
    f"{PACKAGE}/{name}"
    for name in (
        "__init__.py",
        "py.typed",
        "static/client.js",
        "static/client.LICENSE.txt",
        "static/dashboard.css",
        "static/dashboard.html",
        "static/dashboard.js",
    )
) | {"pytest_sseflask.py"}
DIST_INFO: Final = frozenset({"METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE", "top_level.txt"})
#: What is in a checkout and no part of it: what git, make, the tools and the tests leave (see .gitignore).
LEFTOVERS: Final = shutil.ignore_patterns(
    ".git",
    ".venv",
    ".*_cache",
    ".hypothesis",
    "__pycache__",
    "*.egg-info",
    "build",
    "dist",
    "node_modules",
    "_build",
    "artefacts",
    ".env",
)
#: Tests that read the package's sources beside them, the documentation, the repository, or build it: they say nothing of the wheel.
OF_THE_CHECKOUT: Final = (
    "tests/docs",
    "tests/test_benchmarks.py",
    "tests/test_client_js.py",
    "tests/test_deploy.py",
    "tests/test_docs*.py",
    "tests/test_house.py",
    "tests/test_layers.py",
    "tests/test_logging.py",
    "tests/test_release.py",
)
#: Real servers: gunicorn with the installed worker class, one worker and two, over a reload.
SMOKE: Final = ("tests/live/test_channels.py::test_two_workers", "tests/live/test_tasks.py::test_reload")
VERSION: Final = re.compile(r"(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)((?:a|b|rc)\d+)?")
SECTION: Final = re.compile(r"^## \[(?P<name>[^\]]+)\](?: - (?P<date>\d{4}-\d\d-\d\d))?$", re.MULTILINE)
UNRELEASED: Final = "Unreleased"

# Placed above the copied tests: the package that they import must be the installed one.
CONFTEST: Final = """
import sys
from pathlib import Path

import pytest_sseflask
import sseflask

for module in (sseflask, pytest_sseflask):
    assert Path(module.__file__).resolve().is_relative_to(Path(sys.prefix).resolve()), f"not the installed one: {module.__file__}"
"""


class Failed(Exception):
    """The release may not be made; the text says why."""


# What must hold


def metadata(root: Path) -> Mapping[str, str]:
    """The package's metadata, of setup.cfg."""
    config = ConfigParser()
    config.read(root / "setup.cfg", encoding="utf-8")
    return config["metadata"]


def version_faults(version: str, changelog: str, *, final: bool) -> list[str]:
    """What is wrong with the version, beside the changelog's sections.

    Args:
        version: The version of setup.cfg.
        changelog: The text of CHANGELOG.md.
        final: Whether this is what is to be released: then nothing may be unreleased, and the newest section is this version's.
    """
    faults = []
    if not VERSION.fullmatch(version):
        faults.append(f"setup.cfg: {version!r} is no version like 1.2.3 or 1.2.3rc1")
    sections = [(match["name"], match["date"]) for match in SECTION.finditer(changelog)]
    if sections and sections[0][0] == UNRELEASED:
        unreleased, *sections = sections
        if final:
            faults.append(f"CHANGELOG.md: the newest section is {UNRELEASED}, not [{version}] with its date")
        if unreleased[1] is not None:
            faults.append(f"CHANGELOG.md: {UNRELEASED} has a date")
    elif not sections or sections[0][0] != version:
        faults.append(f"CHANGELOG.md: the newest section is neither {UNRELEASED} nor [{version}]")
    for name, date in sections:
        if not VERSION.fullmatch(name):
            faults.append(f"CHANGELOG.md: {name!r} is no version")
        elif date is None:
            faults.append(f"CHANGELOG.md: {name} has no date")
    numbers = [_number(name) for name, _ in sections if VERSION.fullmatch(name)]
    if numbers != sorted(set(numbers), reverse=True):
        faults.append("CHANGELOG.md: the versions don't go down from section to section")
    if numbers and VERSION.fullmatch(version) and _number(version) < numbers[0]:
        faults.append(f"setup.cfg: {version} is older than the changelog's newest, {sections[0][0]}")
    return faults


def _number(version: str) -> tuple[object, ...]:
    match = VERSION.fullmatch(version)
    assert match is not None
    # A candidate comes before what it is a candidate for.
    return (int(match[1]), int(match[2]), int(match[3]), match[4] is None, match[4] or "")


def client_faults(version: str, root: Path) -> list[str]:
    """Where the browser client's package has another version: npm writes `1.2.3-rc.1` for `1.2.3rc1`."""
    wanted = re.sub(r"(a|b|rc)(\d+)$", lambda match: f"-{ {'a': 'alpha', 'b': 'beta'}.get(match[1], 'rc') }.{match[2]}", version)
    found = {name: json.loads((root / CLIENT / name).read_text(encoding="utf-8"))["version"] for name in CLIENT_FILES}
    return [f"{CLIENT}/{name}: the version is {told}, not {wanted}" for name, told in found.items() if told != wanted]


def package_files(root: Path) -> dict[str, bytes]:
    """Each file that belongs to the package, by its path: all that lies in its folder, whatever its kind."""
    paths = [path for path in (root / PACKAGE).rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in (*paths, *(root / name for name in MODULES))}


def wheel_faults(wheel: Path, root: Path) -> list[str]:
    """What is wrong with what is in a wheel of the checkout at `root`."""
    meta = metadata(root)
    info = f"{meta['name']}-{meta['version']}.dist-info"
    with zipfile.ZipFile(wheel) as archive:
        found = {name: archive.read(name) for name in archive.namelist()}
    faults = _difference(found, package_files(root), {f"{info}/{name}" for name in DIST_INFO})
    if f"{info}/METADATA" in found:
        told = email.parser.BytesParser().parsebytes(found[f"{info}/METADATA"])
        for name in ("Name", "Version", "License-Expression"):
            if told[name] != meta[name.lower().replace("-", "_")]:
                faults.append(f"METADATA: {name} is {told[name]}, and in setup.cfg {meta[name.lower().replace('-', '_')]}")
    if b"Root-Is-Purelib: true" not in found.get(f"{info}/WHEEL", b""):
        faults.append("WHEEL: isn't for all platforms")
    return faults


def sdist_faults(sdist: Path, root: Path) -> list[str]:
    """What is wrong with what is in an archive of the sources of the checkout at `root`."""
    with tarfile.open(sdist) as archive:
        members = [member for member in archive.getmembers() if not member.isdir()]
        linked = [f"is a link: {member.name}" for member in members if not member.isreg()]
        found = {}
        for member in members:
            file = archive.extractfile(member)
            assert file is not None
            found[PurePosixPath(*PurePosixPath(member.name).parts[1:]).as_posix()] = file.read()
    expected = package_files(root) | {name: (root / name).read_bytes() for name in SOURCES if (root / name).exists()}
    # setuptools writes this one anew.
    expected.pop("setup.cfg")
    return linked + _difference(found, expected, {name for name in found if GENERATED.fullmatch(name)} | {"PKG-INFO", "setup.cfg"})


def _difference(found: Mapping[str, bytes], expected: Mapping[str, bytes], others: set[str]) -> list[str]:
    wanted = expected.keys() | others | REQUIRED
    return [
        *(f"is missing: {name}" for name in sorted(wanted - found.keys())),
        *(f"doesn't belong there: {name}" for name in sorted(found.keys() - wanted)),
        *(f"isn't as in the checkout: {name}" for name in sorted(expected.keys() & found.keys()) if found[name] != expected[name]),
    ]


# How it is tried


def copy_checkout(target: Path, *, without_package: bool = False) -> Path:
    """Copies the checkout without what tools have left in it; without the package too, if asked, so that nobody imports it."""
    shutil.copytree(ROOT, target, ignore=LEFTOVERS, symlinks=True)
    if without_package:
        shutil.rmtree(target / PACKAGE)
        for name in MODULES:
            (target / name).unlink()
    return target


def build(root: Path, target: Path) -> tuple[Path, Path]:
    """Builds both archives as anybody would: the wheel from the archive of the sources, with what pyproject.toml asks for.

    Returns:
        The archive of the sources, and the wheel.
    """
    run([sys.executable, "-m", "build", "--outdir", str(target), str(root)], root)
    (sdist,), (wheel,) = target.glob("*.tar.gz"), target.glob("*.whl")
    return sdist, wheel


def run(command: Sequence[str], directory: Path, *, shown: bool = False) -> str:
    """Runs a command; what it prints is shown as it comes, or returned, or told when it fails.

    Raises:
        Failed: It ended with another code than 0.
    """
    # Nothing that leads back to the checkout: the tools must find what is installed.
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")}
    done = subprocess.run(
        command,
        cwd=directory,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=None if shown else subprocess.PIPE,
        stderr=None if shown else subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        raise Failed(f"{' '.join(command)} ended with {done.returncode}\n{done.stdout or ''}".rstrip())
    return done.stdout or ""


def check(faults: Sequence[str]) -> None:
    """Ends the release where something is wrong.

    Raises:
        Failed: Something is.
    """
    if faults:
        raise Failed("\n".join(faults))


def check_tag(version: str) -> None:
    """The checkout is committed, and the commit bears the version's tag or no tag at all.

    Raises:
        Failed: It isn't so.
    """
    if changed := run(["git", "status", "--porcelain"], ROOT).strip():
        raise Failed(f"not committed:\n{changed}")
    tagged = run(["git", "tag", "--points-at", "HEAD"], ROOT).split()
    if f"v{version}" not in tagged and f"v{version}" in run(["git", "tag", "--list"], ROOT).split():
        raise Failed(f"the tag v{version} is another commit's")


def say(text: str) -> None:
    """Prints a line at once."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def release_check(*, final: bool, tests: Sequence[str], keep: Path | None) -> None:
    """Does all of it.

    Args:
        final: Whether this commit is to be released.
        tests: Arguments for pytest; without any, the whole quick suite and `SMOKE` are run.
        keep: Where the archives are put when all is well.

    Raises:
        Failed: With what is wrong.
    """
    version = metadata(ROOT)["version"]
    say(f"{PACKAGE} {version}: version and changelog")
    check(version_faults(version, (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), final=final))
    check(client_faults(version, ROOT))
    if final:
        check_tag(version)
    with tempfile.TemporaryDirectory(prefix="release-") as name:
        directory = Path(name)
        say("Building the archives")
        copy = copy_checkout(directory / "checkout")
        sdist, wheel = build(copy, directory / "dist")
        say("Looking at what is in them")
        run([sys.executable, "-m", "twine", "check", "--strict", str(sdist), str(wheel)], directory)
        check([f"{sdist.name}: {fault}" for fault in sdist_faults(sdist, copy)])
        check([f"{wheel.name}: {fault}" for fault in wheel_faults(wheel, copy)])
        shutil.rmtree(copy)
        try_wheel(wheel, directory, tests)
        if keep is not None:
            keep.mkdir(parents=True, exist_ok=True)
            for archive in (sdist, wheel):
                shutil.copy(archive, keep)
                say(f"{keep / archive.name}")


def try_wheel(wheel: Path, directory: Path, tests: Sequence[str]) -> None:
    """Installs the wheel into an environment of its own, alone first, and runs the tests against it."""
    say("Installing the wheel alone, and importing all of it")
    environment = directory / "venv"
    run([sys.executable, "-m", "venv", str(environment)], directory)
    python = str(environment / "bin/python")
    pip = [python, "-m", "pip", "--disable-pip-version-check", "--no-input", "install", "--quiet"]
    run([*pip, str(wheel)], directory)
    run([python, "-m", "pip", "--disable-pip-version-check", "check"], directory)
    run([python, "-W", "error", "-c", IMPORT_ALL], directory)
    run([python, "-m", PACKAGE, "--help"], directory)
    say("Installing what the tests need, and running them against the installed wheel")
    run([*pip, f"{wheel}[test]"], directory)
    copy = copy_checkout(directory / "tests", without_package=True)
    (copy / "conftest.py").write_text(CONFTEST)
    pytest = [python, "-m", "pytest", "-q", "--dist", "loadfile", "-n", "2"]
    if tests:
        run([*pytest, *tests], copy, shown=True)
        return
    skipped = [f"--ignore-glob={name}" for name in OF_THE_CHECKOUT]
    run([*pytest, "-m", "not live and not browser", *skipped], copy, shown=True)
    run([*pytest, *SMOKE], copy, shown=True)


#: Modules that need an extra say so in an `ImportError`; all others must import with the package's own requirements.
IMPORT_ALL: Final = textwrap.dedent(
    """
    import importlib, pathlib, pkgutil, sys
    import sseflask
    assert pathlib.Path(sseflask.__file__).resolve().is_relative_to(pathlib.Path(sys.prefix).resolve()), sseflask.__file__
    for module in pkgutil.walk_packages(sseflask.__path__, "sseflask."):
        if module.name == "sseflask.__main__":
            continue
        try:
            importlib.import_module(module.name)
        except ImportError as error:
            if "pip install 'sseflask[" not in str(error):
                raise
    """
)


def main(arguments: Sequence[str]) -> int:
    """Checks, and says what is wrong or that nothing is."""
    parser = argparse.ArgumentParser(prog="python -m tests.release", description="Checks what is to be released.")
    parser.add_argument("--final", action="store_true", help="this commit is to be tagged and released")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="put the archives there when all is well")
    parser.add_argument("tests", nargs="*", help="arguments for pytest; the quick suite and a real server, if there are none")
    options = parser.parse_args(arguments)
    started = time.monotonic()
    try:
        release_check(final=options.final, tests=options.tests, keep=options.keep)
    except Failed as failed:
        say(f"\nNot fit for a release:\n{failed}")
        return 1
    say(f"Fit for a release, after {time.monotonic() - started:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
