"""A progress bar over real work: the SHA-256 of every file of a folder."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import stat
import sysconfig
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flask import Blueprint, Response, jsonify, render_template, request

import sseflask
from sseflask import ServerSentEvent

from .streaming import sse

bp = Blueprint("progress", __name__, url_prefix="/progress")
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Folder:
    title: str
    path: Path


# A client names one of these; a path that it sends is never opened.
FOLDERS = {
    "stdlib": Folder("Python's standard library", Path(sysconfig.get_path("stdlib"))),
    "packages": Folder("The installed packages", Path(sysconfig.get_path("purelib"))),
    "sseflask": Folder("sseflask itself", Path(sseflask.__file__).parent),
}
# What the work may take of the machine, in bytes per second; 0 for all that it can get.
SPEEDS = {"full": 0, "fast": 100_000_000, "slow": 10_000_000}

CHUNK_BYTES = 128 * 1024
REPORT_SECONDS = 0.1


@bp.get("/")
def page() -> str:
    return render_template("progress.html", folders=FOLDERS)


Report = Generator[ServerSentEvent, None, dict[str, Any]]


# `lifecycle` adds a `start` event before the generator's own, and after them `complete` with what it returns, or `error`.
@bp.get("/events")
@sse.stream(lifecycle=True)
def events() -> Report | tuple[Response, int]:
    """Hashes `?folder=`, as fast as `?speed=` allows."""
    folder = FOLDERS.get(request.args.get("folder", ""))
    speed = SPEEDS.get(request.args.get("speed", "full"))
    # Not a generator, but a view that returns one: what it refuses is answered like in any other view, before any stream.
    if folder is None:
        return refusal("unknown_folder", f"There is no such folder here; there are: {', '.join(FOLDERS)}.")
    if speed is None:
        return refusal("unknown_speed", f"There is no such speed; there are: {', '.join(SPEEDS)}.")
    return hashing(folder.path, speed)


def refusal(error_type: str, message: str) -> tuple[Response, int]:
    return jsonify(error=message, error_type=error_type), 400


def hashing(folder: Path, bytes_per_second: float) -> Report:
    """Hashes each file; yields where it is ten times a second and at the end, and returns one digest over all of them."""
    files = list(find_files(folder))
    total = sum(size for _, size in files)
    digest_of_all = hashlib.sha256()
    started = reported = time.monotonic()
    hashed = counted = skipped = 0

    def progress(name: str, done: int) -> ServerSentEvent:
        seconds = max(time.monotonic() - started, 0.001)
        report = {
            "percent": round(100 * done / total, 2) if total else 100,
            "file": name,
            "files": [counted, len(files)],
            "bytes": [done, total],
            "bytes_per_second": round(hashed / seconds),
            "seconds": round(seconds, 2),
        }
        return ServerSentEvent(report, event="progress")

    try:
        done = 0
        for path, size in files:
            name = path.relative_to(folder).as_posix()
            digest = hashlib.sha256()
            try:
                with path.open("rb") as file:
                    while chunk := file.read(CHUNK_BYTES):
                        digest.update(chunk)
                        hashed += len(chunk)
                        # All streams of a worker share one thread, and each runs until it waits for something. Hashing waits
                        # for nothing, so without this line every other client of this worker would stand still until the last
                        # file is done. A sleep, even of 0, lets the others go first.
                        time.sleep(max(0.0, hashed / bytes_per_second - (time.monotonic() - started)) if bytes_per_second else 0)
                        if time.monotonic() - reported >= REPORT_SECONDS:
                            reported = time.monotonic()
                            yield progress(name, min(done + file.tell(), done + size))
            except OSError:
                skipped += 1  # Gone since we looked, or not ours to read.
            else:
                digest_of_all.update(digest.digest())
            done += size
            counted += 1
        yield progress("", total)
        return {
            "files": counted - skipped,
            "skipped": skipped,
            "bytes": hashed,
            "seconds": round(time.monotonic() - started, 2),
            "sha256": digest_of_all.hexdigest(),
        }
    finally:
        # Also when the client has cancelled or is gone: `StreamClosed` is raised in the line with the sleep, the file is
        # closed by its `with`, and the work ends here.
        log.info("hashing %s ended after %d of %d files", folder.name, counted, len(files))


def find_files(folder: Path) -> Iterator[tuple[Path, int]]:
    """The files below a folder with their sizes, in order; no links, so nothing outside is reached."""
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(set(folders) - {"__pycache__", "site-packages"})
        for name in sorted(names):
            path = Path(parent, name)
            with contextlib.suppress(OSError):
                status = path.lstat()
                if stat.S_ISREG(status.st_mode):
                    yield path, status.st_size
        time.sleep(0)  # Thousands of files: give way here too.
