"""The JavaScript clients, installed as their lock file says."""

from __future__ import annotations

import fcntl
import shutil
import subprocess
from pathlib import Path

import pytest

DIRECTORY = Path(__file__).with_name("node")


def installed() -> Path:
    """Returns the directory in which they are, after installing them where need be; skips the test where there is no Node.js."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("there is no Node.js on this system")
    lock = DIRECTORY / "package-lock.json"
    done = DIRECTORY / "node_modules" / ".package-lock.json"
    # Other processes of the same run may want them too.
    with lock.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        if not done.exists() or done.stat().st_mtime < lock.stat().st_mtime:
            command = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
            ran = subprocess.run(command, cwd=DIRECTORY, capture_output=True, text=True, timeout=180, check=False)
            assert ran.returncode == 0, ran.stderr
            done.touch()
    return DIRECTORY
