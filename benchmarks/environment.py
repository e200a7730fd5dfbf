"""What a peer needs to run: made at first use under `benchmarks/.env`, and again when what it is pinned to changes."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).parent
PEERS = HERE / "peers"
ENVIRONMENTS = HERE / ".env"


class Unavailable(Exception):
    """A peer can't run here, and why."""


def python(name: str) -> Path:
    """The interpreter of a virtual environment with what `peers/NAME/requirements.txt` pins."""
    requirements = PEERS / name / "requirements.txt"
    directory = ENVIRONMENTS / name
    interpreter = directory / "bin" / "python"
    if not _is_made(directory, [requirements]):
        print(f"Making the environment of {name}", file=sys.stderr)
        shutil.rmtree(directory, ignore_errors=True)
        _run([sys.executable, "-m", "venv", str(directory)])
        _run([str(interpreter), "-m", "pip", "install", "-qq", "--disable-pip-version-check", "--no-deps", "-r", str(requirements)])
        _stamp(directory, [requirements])
    return interpreter


def node(name: str) -> Path:
    """A copy of `peers/NAME` with the packages of its lock file."""
    require("node", "nodejs")
    require("npm", "npm")
    source = PEERS / name
    directory = ENVIRONMENTS / name
    sources = sorted(path for path in source.iterdir() if path.is_file())
    if not _is_made(directory, sources):
        print(f"Making the environment of {name}", file=sys.stderr)
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        for path in sources:
            shutil.copy(path, directory)
        _run(["npm", "ci", "--silent", "--no-audit", "--no-fund", "--ignore-scripts"], directory)
        _stamp(directory, sources)
    return directory


def compiled(source: Path) -> Path:
    """The program of one C file."""
    require("cc", "gcc")
    directory = ENVIRONMENTS / f"c-{source.stem}"
    program = directory / source.stem
    if not _is_made(directory, [source]):
        directory.mkdir(parents=True, exist_ok=True)
        _run(["cc", "-O2", "-Wall", "-Wextra", "-o", str(program), str(source)])
        _stamp(directory, [source])
    return program


def require(program: str, package: str) -> str:
    """The path of a program of the system.

    Raises:
        Unavailable: It isn't there.
    """
    path = shutil.which(program) or shutil.which(program, path="/usr/sbin:/usr/local/sbin")
    if path is None:
        raise Unavailable(f"{program} is missing (Debian: apt-get install {package})")
    return path


def _is_made(directory: Path, sources: Sequence[Path]) -> bool:
    stamp = directory / ".stamp"
    return stamp.exists() and stamp.read_text() == _digest(sources)


def _stamp(directory: Path, sources: Sequence[Path]) -> None:
    (directory / ".stamp").write_text(_digest(sources))


def _digest(sources: Sequence[Path]) -> str:
    digest = hashlib.sha256(sys.version.encode())
    for source in sources:
        digest.update(source.read_bytes())
    return digest.hexdigest()


def _run(command: list[str], directory: Path | None = None) -> None:
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=600, check=False)
    if done.returncode != 0:
        raise Unavailable(f"{' '.join(command[:4])} failed: {(done.stderr or done.stdout).strip()[-500:]}")
