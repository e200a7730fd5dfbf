"""The console blocks of a page: a reader's terminals. What is typed runs, and shows what the page says that it shows."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from configparser import ConfigParser
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from tests.docs.page import ROOT, Block
from tests.docs.place import NEEDS_REDIS, Place
from tests.live import process
from tests.live.process import wait_until

#: Seconds that a command, a server's start or an expected line may take; bounds for a busy machine, not expectations.
PATIENCE: Final = 30.0
ASSIGNMENT: Final = re.compile(r"[A-Za-z_]\w*=")
#: Stands among expected lines for empty ones, as many as there are.
EMPTY_LINES: Final = "\n"
PACKAGE: Final = re.compile(r"(?P<name>[\w.-]+)(?:\[(?P<extras>[\w,-]+)\])?(?:[<>=!~].*)?")

#: Commands that can't run here at all, by what they begin with (`re.match`), and why. Each entry must be in use.
NOT_RUN: Final[dict[str, str]] = {
    r"flask sse doctor https://example\.org": "an address of the reader's own; tests/live/test_cli.py runs the command",
    r"python -m sseflask listen https://example\.org": "an address of the reader's own; tests/live/test_cli.py runs the command",
    r"python -m benchmarks": "takes minutes; tests/test_benchmarks.py runs each scenario in small",
}


@dataclass(frozen=True)
class Command:
    """What is typed at a prompt, and what it shows.

    Attributes:
        block: Where it stands.
        line: Its line on the page.
        text: What bash gets.
        expected: The lines after it, without empty ones around them.
    """

    block: Block
    line: int
    text: str
    expected: list[str]

    @property
    def words(self) -> list[str]:
        """Its words, without variables set for it and without `sudo`; of a pipe, all."""
        try:
            words = shlex.split(self.text, comments=True)
        except ValueError as error:
            raise self.fails(f"not a command: {error}") from None
        while words and (ASSIGNMENT.match(words[0]) or words[0] == "sudo"):
            words.pop(0)
        return words

    def fails(self, why: str) -> AssertionError:
        """An error that says where."""
        return Block(self.block.page, self.line, "console", self.text).fails(f"$ {self.text}\n{why}")


def commands(block: Block) -> tuple[list[str], list[Command]]:
    """The lines before a block's first prompt, and its commands."""
    before: list[str] = []
    found: list[tuple[int, list[str], list[str]]] = []
    for number, line in enumerate(block.text.splitlines(), block.line):
        if line.startswith("$ "):
            found.append((number, [line[2:]], []))
        elif not found:
            before.append(line)
        elif found[-1][1][-1].endswith("\\") and not found[-1][2]:
            found[-1][1].append(line.removeprefix("> "))
        else:
            found[-1][2].append(line)
    return _trimmed(before), [Command(block, number, "\n".join(typed), _trimmed(shown)) for number, typed, shown in found]


def _trimmed(lines: list[str]) -> list[str]:
    return "\n".join(line.rstrip() for line in lines).strip("\n").splitlines()


def not_run(command: Command) -> str | None:
    """The entry of `NOT_RUN` that a command falls under, or None: it can run."""
    typed = shlex.join(command.words)
    return next((pattern for pattern in NOT_RUN if re.match(pattern, typed)), None)


def matches(expected: list[str], shown: str, *, is_whole: bool) -> bool:
    """Whether a program has shown what is expected: `…` stands for anything in its line, and alone for any lines.

    Args:
        expected: The page's lines.
        shown: All that the program has written.
        is_whole: That is all that it may write; else the expected lines are the first ones.
    """
    pattern = ""
    for line in expected:
        if line in ("…", EMPTY_LINES):
            pattern += r"(?:.*\n)*?" if line == "…" else r"\n*"
        else:
            pattern += ".*".join(map(re.escape, line.split("…"))) + "\n"
    text = "".join(f"{line.rstrip()}\n" for line in shown.strip("\n").splitlines())
    return re.compile(pattern + (r"\n*\Z" if is_whole else "")).match(text) is not None


# What is looked at instead of being run.


def check_pip(command: Command) -> None:
    """What is installed is this package, with extras that exist, or what our extras bring for the tests."""
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg")
    extras = setup["options.extras_require"]
    lines = [line for text in (setup["options"]["install_requires"], *extras.values()) for line in text.split()]
    known = {re.split(r"[\[<>=]", line)[0] for line in lines}
    arguments = [word for word in command.words[command.words.index("install") + 1 :] if not word.startswith("-")]
    for argument in arguments:
        found = PACKAGE.fullmatch(argument)
        if found is None or found["name"] not in {".", "sseflask", *known}:
            raise command.fails(
                f"{argument} is no package of setup.cfg: add it to the extra `test`, so that the page's code can run"
            )
        if found["name"] in (".", "sseflask") and not set(filter(None, (found["extras"] or "").split(","))) <= set(extras):
            raise command.fails(f"setup.cfg has no such extra: {argument}")


def check_make(command: Command) -> None:
    """The Makefile has it."""
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    told = {word for word in command.words[1:] if "=" not in word}
    if not told or not told <= targets:
        raise command.fails("the Makefile has no such target")


def check_nothing(_: Command) -> None:
    """It does what it does on each system."""


CHECKED: Final[dict[str, Callable[[Command], None]]] = {
    r"(python3? -m )?pip install ": check_pip,
    r"make\b": check_make,
    r"python3? -m venv ": check_nothing,
    r"(\.|source) \S*\.?venv/bin/activate\b": check_nothing,
    r"apt(-get)? (install|update)\b": check_nothing,
}

# What doesn't return.

SERVERS: Final[dict[str, str]] = {
    "gunicorn": r"(python -m )?gunicorn ",
    "flask": r"(python -m )?flask (.* )?run\b",
    "redis": r"redis-server\b",
    "celery": r"(python -m )?celery .*\bworker\b",
}
STREAMS: Final = r"curl (.* )?(-\w*N\w*|--no-buffer)\b|(python -m )?(flask sse|sseflask) listen\b"

#: What says how other processes are. They tell it now and then, and a reader types slower than we do: asked again until it is so.
LATE: Final = r"(python -m )?flask sse (channels|stats)\b"


class Running:
    """A program that has been started, in a process group of its own, and doesn't return.

    Attributes:
        command: What has started it.
        expected: The lines that it shows, as far as the page has told.
        kind: The server that it is, or None: it shows a stream.
    """

    def __init__(
        self, command: Command, kind: str | None, popen: subprocess.Popen[bytes], output: Path, told: Callable[[str], str]
    ):
        self.command = command
        self.expected = list(command.expected)
        self.kind = kind
        self._popen = popen
        self._output = output
        self._told = told

    def shown(self) -> str:
        """What it has written so far, as the page would tell it."""
        return self._told(self._output.read_text(errors="replace"))

    def has_ended(self) -> bool:
        """Whether it has ended by itself; an error if it has failed."""
        # WNOWAIT leaves the zombie, so that the group's id can't become another's before `stop`.
        ended = os.waitid(os.P_PID, self._popen.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if ended is None:
            return False
        if self.kind is not None or ended.si_status != 0 or ended.si_code != os.CLD_EXITED:
            raise RuntimeError(f"it has ended, with {ended.si_status}")
        return True

    def wait(self, condition: Callable[[], object], what: str) -> None:
        """Waits for a condition while it runs."""
        try:
            wait_until(condition, PATIENCE, what)
        except (AssertionError, RuntimeError) as error:
            raise self.command.fails(f"{str(error).partition(', last seen')[0]}\nshown:\n{self.shown()}") from None

    def wait_for_expected(self) -> None:
        """Waits until it has shown what the page says; without such lines, something, or has ended well."""
        if self.expected:
            self.wait(self._has_shown, "expected:\n" + "\n".join(self.expected) + "\n")
        elif self.kind is None and self.command.words[0] == "curl":
            # What it complains of is written a moment before it ends.
            self.wait(lambda: self.has_ended() or re.match(r"(?!curl: \().", self.shown()), "something to be shown")

    def stop(self) -> None:
        """Kills all its processes, and waits until they have gone; safe to call twice."""
        if self._popen.returncode is not None:
            return
        # The leader isn't reaped before this, so its id can't have become another's.
        os.killpg(self._popen.pid, signal.SIGKILL)
        self._popen.wait(10)
        wait_until(lambda: not process.group_members(self._popen.pid), 10, f"the processes of {self.command.text!r} to be gone")

    def _has_shown(self) -> bool:
        # In this order: what it writes last stands there when it has ended.
        has_ended = self.has_ended()
        return matches(self.expected, self.shown(), is_whole=has_ended)


class Console:
    """A page's terminals, from its first console block to its last. To be closed: then nothing runs any more."""

    def __init__(self, place: Place) -> None:
        """Stores where it is; nothing runs yet."""
        self.place = place
        self._running: list[Running] = []
        self._count = 0
        self._shell = place.folder.parent / f"{place.folder.name}-shell"
        for directory in (self._shell, self._shell / "home", self._shell / "tmp"):
            directory.mkdir()
        # What curl shows on a terminal: no progress.
        (self._shell / "home" / ".curlrc").write_text("silent\nshow-error\n")
        (self._shell / "state").write_text(f"cd {shlex.quote(str(place.folder))}\n")

    def close(self) -> None:
        """Ends all that has been started, the last first."""
        while self._running:
            self._running.pop().stop()

    def write(self, block: Block) -> None:
        """Saves a file of the page's, in the folder where the reader is."""
        assert block.file is not None
        file = self._folder() / block.file
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(self.place.here(block.text))

    def run(self, block: Block) -> None:
        """Types a block's commands, one after the other.

        Raises:
            AssertionError: A command fails, or doesn't show what the page says.
        """
        before, typed = commands(block)
        if before:
            streams = [running for running in self._running if running.kind is None]
            if not streams:
                raise block.fails("lines before the first `$ ` are what a stream shows next, and no stream is being shown")
            streams[-1].expected += [EMPTY_LINES, *before]
            streams[-1].wait_for_expected()
        for command in typed:
            self._run(command)

    def finish(self) -> None:
        """Looks once more at all that still runs.

        Raises:
            AssertionError: Something has failed meanwhile, or hasn't shown what the page says.
        """
        for running in self._running:
            running.wait_for_expected()
            running.wait(lambda running=running: running.has_ended() or True, "it to run")  # type: ignore[misc]

    def _run(self, command: Command) -> None:
        typed = shlex.join(command.words)
        if not_run(command) is not None:
            return
        check = next((check for pattern, check in CHECKED.items() if re.match(pattern, typed)), None)
        if check is not None:
            if {"&&", "||", "|", ";"} & set(command.words):
                raise command.fails("it isn't run, only looked at, and so would be what comes after it: one command a line")
            check(command)
            return
        kind = next((kind for kind, pattern in SERVERS.items() if re.match(pattern, typed)), None)
        if kind is not None:
            self._serve(command, kind)
        elif re.match(STREAMS, typed):
            running = self._start(command)
            if running.expected:
                running.wait_for_expected()
        else:
            self._run_to_its_end(command, time.monotonic() + PATIENCE if re.match(LATE, typed) else 0)

    def _serve(self, command: Command, kind: str) -> None:
        same = [running for running in self._running if running.kind == kind]
        if same:
            # The page starts it anew, so its reader has stopped it, and what it served.
            self.finish()
            for running in [each for each in self._running if each.kind is None] + same:
                running.stop()
                self._running.remove(running)
        if kind == "redis" and shutil.which("redis-server") is None:
            pytest.skip("needs the program redis-server, of Redis 7 or Valkey")
        running = self._start(command, kind)
        match kind:
            case "gunicorn":
                bound = re.search(r"(?:-b|--bind)[= ]?(?:\S*:)(\d+)", self.place.here(command.text))
                port = int(bound[1]) if bound else self.place.port("8000")
            case "flask":
                told = re.search(r"(?:-p|--port)[= ]?(\d+)", self.place.here(command.text))
                port = int(told[1]) if told else self.place.port("5000")
            case "redis":
                port = self.place.port("6379")
            case _:
                running.wait(lambda: running.has_ended() or re.search(r"\bready\.|\[queues\]", running.shown()), "it to be ready")
                return
        running.wait(lambda: running.has_ended() or _listens(port, kind), f"it to listen at {port}")
        running.wait_for_expected()

    def _run_to_its_end(self, command: Command, until: float) -> None:
        running = self._start(command, keeps=True)
        try:
            running.wait(
                running.has_ended, "it to end (what doesn't return is named in SERVERS or STREAMS of tests/docs/console.py)"
            )
            is_so = not command.expected or matches(command.expected, running.shown(), is_whole=True)
            if not is_so and time.monotonic() >= until:
                raise command.fails("expected:\n" + "\n".join(command.expected) + f"\nshown:\n{running.shown()}")
        finally:
            running.stop()
            self._running.remove(running)
        if not is_so:
            self._run_to_its_end(command, until)

    def _start(self, command: Command, kind: str | None = None, *, keeps: bool = False) -> Running:
        self._count += 1
        output = self._shell / f"output-{self._count}"
        text = self.place.here(command.text)
        if kind == "redis":
            text = f"{re.sub(r' --port [0-9]+', '', text)} --port {self.place.port('6379')} --bind 127.0.0.1 --save ''"
        state = shlex.quote(str(self._shell / "state"))
        # What a command sets and where it goes counts for the next one.
        after = f'\nstatus=$?; {{ export -p; printf "cd %q\\n" "$PWD"; }} > {state}; exit $status' if keeps else ""
        with output.open("wb") as file:
            popen = subprocess.Popen(
                ["bash", "-c", f". {state}\n{text}{after}"],
                cwd=self.place.folder,
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        running = Running(command, kind, popen, output, self.place.told)
        self._running.append(running)
        return running

    def _folder(self) -> Path:
        (told,) = re.findall(r"^cd (.*)$", (self._shell / "state").read_text(), re.MULTILINE)[-1:]
        return Path(*shlex.split(told))

    def _environment(self) -> dict[str, str]:
        return {
            "PATH": f"{Path(sys.executable).parent}:{os.environ.get('PATH', os.defpath)}:/usr/sbin",
            "LANG": "C.UTF-8",
            "HOME": str(self._shell / "home"),
            "TMPDIR": str(self._shell / "tmp"),
            "TERM": "dumb",
            "NO_COLOR": "1",
            "PYTHONPATH": str(ROOT),
            "PYTHONUNBUFFERED": "1",
            # A file that the page changes within a second would be loaded from its old bytecode.
            "PYTHONDONTWRITEBYTECODE": "1",
            # Its path would be longer than the kernel takes.
            "GUNICORN_CMD_ARGS": f"--no-control-socket --bind 127.0.0.1:{self.place.port('8000')}",
            "FLASK_RUN_PORT": str(self.place.port("5000")),
        }


def _listens(port: int, kind: str) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1) as sock:
        if kind == "gunicorn":
            # It listens before a worker has loaded the app, or couldn't.
            sock.settimeout(PATIENCE)
            sock.sendall(b"HEAD /-is-it-there- HTTP/1.0\r\n\r\n")
            return sock.recv(1) != b""
        return True
    return False


def needs_redis(blocks: Sequence[Block]) -> bool:
    """Whether a page's code asks a Redis that none of its commands starts."""
    typed: Iterator[str] = (block.text for block in blocks if block.language == "console")
    return any(NEEDS_REDIS.search(block.text) for block in blocks) and not any("redis-server" in text for text in typed)
