"""The commands as processes of their own, beside a real server on the same broker."""

from __future__ import annotations

import array
import fcntl
import json
import os
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Serve
from tests.live.client import open_stream
from tests.live.process import wait_until
from tests.live.server import NOT_OURS, ROOT, Server

APP = """
import os
from flask import Flask
from sseflask import SSE

app = Flask(__name__)
app.config.update(SSE_BROKER_URL=os.environ["APP_BROKER_URL"], SSE_PUBLIC_CHANNELS=["*"], SSE_RETRY=50)
app.config["SSE_MAX_AGE"] = float(os.environ["APP_MAX_AGE"]) or None
sse = SSE()
app.register_blueprint(sse, url_prefix="/events")
"""


class Command:
    """A running command, its output in files."""

    def __init__(self, directory: Path, number: int, arguments: list[str], environment: dict[str, str], **options: Any) -> None:
        self._out = directory / f"command-{number}.out"
        self._err = directory / f"command-{number}.err"
        with self._out.open("wb") as out, self._err.open("wb") as err:
            options = {"stdin": subprocess.DEVNULL, "stdout": out, "stderr": err} | options
            self.process = subprocess.Popen(
                [sys.executable, *arguments], cwd=directory, env=environment, start_new_session=True, **options
            )

    @property
    def out(self) -> str:
        """What it has printed."""
        return self._out.read_text()

    @property
    def err(self) -> str:
        """What it has told on its standard error."""
        return self._err.read_text()

    def wait_for(self, text: str, where: str = "err") -> None:
        """Waits until it has said something."""
        wait_until(lambda: text in getattr(self, where), 15, f"{text!r} in {self!r}")

    def interrupt(self) -> int:
        """Ctrl+C: returns the exit code."""
        self.process.send_signal(signal.SIGINT)
        return self.end()

    def end(self) -> int:
        """Waits for its end: returns the exit code."""
        return self.process.wait(15)

    def __repr__(self) -> str:
        return f"<Command {self.process.args} out={self.out!r} err={self.err!r}>"


Run = Callable[..., Command]


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """What commands and servers find: the app, and where its broker is."""
    (tmp_path / "app_of_cli.py").write_text(APP)
    environment = {name: value for name, value in os.environ.items() if not NOT_OURS.fullmatch(name)}
    return environment | {
        "PYTHONPATH": f"{tmp_path}:{ROOT}",
        "APP_BROKER_URL": f"sqlite:///{tmp_path}/events.sqlite",
        "APP_MAX_AGE": "0",
        "FLASK_APP": "app_of_cli:app",
    }


@pytest.fixture
def start(tmp_path: Path, environment: dict[str, str]) -> Iterator[Run]:
    """Starts a command: `start("-m", "flask", …)`; it is gone when the test is over."""
    commands: list[Command] = []

    def start(*arguments: str, **options: Any) -> Command:
        commands.append(Command(tmp_path, len(commands), list(arguments), environment, **options))
        return commands[-1]

    yield start
    for command in commands:
        if command.process.poll() is None:
            command.process.kill()
        command.process.wait()


@pytest.fixture
def server(serve: Serve, environment: dict[str, str]) -> Server:
    """The app under gunicorn, with two workers."""
    names = ("PYTHONPATH", "APP_BROKER_URL", "APP_MAX_AGE")
    return serve("app_of_cli:app", workers=2, env={name: environment[name] for name in names})


@pytest.fixture
def short_lived(environment: dict[str, str]) -> None:
    """The app ends its streams after half a second; asked for before the server."""
    environment["APP_MAX_AGE"] = "0.5"


def flask(*arguments: str) -> list[str]:
    """`flask sse …`."""
    return ["-m", "flask", "sse", *arguments]


def test_what_a_command_publishes_reaches_another_that_listens(start: Run) -> None:
    """It is shown as it comes; the channel's end ends both with 0, and nothing else is on the standard output."""
    listener = start(*flask("listen", "news", "--json"))
    listener.wait_for("listening to news")
    told = start(*flask("publish", "news", "hello", "--event", "created"))
    assert told.end() == 0
    listener.wait_for("hello", "out")
    assert start(*flask("publish", "news", "bye", "--end")).end() == 0
    assert listener.end() == 0
    first, last = (json.loads(line) for line in listener.out.splitlines())
    assert (first["event"], first["id"], first["data"]) == ("created", told.out.strip(), "hello")
    assert (last["event"], last["data"]) == ("stream-end", "bye")


@pytest.mark.parametrize("command", ["flask", "url"])
def test_ctrl_c_ends_a_listener(start: Run, server: Server, command: str) -> None:
    """With 130 and without a traceback, also in the middle of its waiting."""
    url = ["-m", "sseflask", "listen", server.url("/events/news")]
    listener = start(*(flask("listen", "news") if command == "flask" else url))
    listener.wait_for("listening to")
    if command == "url":
        listener.wait_for("stream-open", "out")
    assert listener.interrupt() == 130
    assert listener.err.count("\n") == 1, listener.err


def test_ctrl_c_ends_a_publisher_that_waits_for_its_input(start: Run) -> None:
    """Nothing is published, and the exit code is 130."""
    read, write = os.pipe()
    try:
        publisher = start(*flask("publish", "news", "-"), stdin=read)
        os.write(write, b"hel")
        wait_until(lambda: unread(read) == 0, 15, "it to read")
        assert publisher.interrupt() == 130
    finally:
        os.close(read)
        os.close(write)
    assert (publisher.out, publisher.err) == ("", "")


def unread(pipe: int) -> int:
    """How many bytes lie in a pipe."""
    found = array.array("i", [0])
    fcntl.ioctl(pipe, termios.FIONREAD, found)
    return found[0]


@pytest.mark.parametrize("command", ["flask", "url"])
def test_a_listener_ends_when_nobody_reads_it(start: Run, server: Server, command: str) -> None:
    """`| head -1` ends it at once, with 0 and without a word, though no further event comes; where SIGINT is ignored, too."""
    url = ["-m", "sseflask", "listen", server.url("/events/news")]
    # As a shell starts what it runs in the background.
    options: dict[str, Any] = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_IGN)}
    listener = start(*(flask("listen", "news") if command == "flask" else url), stdout=subprocess.PIPE, **options)
    assert listener.process.stdout is not None
    listener.wait_for("listening to")
    assert start(*flask("publish", "news", "hello")).end() == 0
    line = b""
    while b"hello" not in line:
        line = listener.process.stdout.readline()
        assert line
    left = time.monotonic()
    listener.process.stdout.close()
    assert listener.end() == 0
    assert time.monotonic() - left < 5
    assert "Traceback" not in listener.err and "BrokenPipe" not in listener.err


def test_a_server_and_the_commands_share_channels(start: Run, server: Server) -> None:
    """What a command publishes reaches the server's clients, and its streams are counted."""
    with open_stream(server, "/events/?channel=news&channel=orders") as stream:
        assert stream.next_event().event == "stream-open"
        assert start(*flask("publish", "news", "hello")).end() == 0
        assert stream.next_event().data == "hello"
        counts = ("channels", "--json")
        wait_until(lambda: said(start(*flask(*counts))) == {"news": 1, "orders": 1}, 15, "the stream to be counted")


def said(command: Command) -> Any:
    """What a command says as JSON."""
    assert command.end() == 0
    return json.loads(command.out)


def test_a_listener_at_a_url_misses_nothing_while_its_stream_is_cut_again_and_again(
    start: Run, short_lived: None, server: Server
) -> None:
    """A server that ends each stream after half a second is connected to again; each event is shown once, in order."""
    listener = start("-m", "sseflask", "listen", server.url("/events/news"), "--json", "--count", "1000")
    listener.wait_for("listening to")
    count = 0
    while listener.err.count("listening to") < 4:
        assert start(*flask("publish", "news", str(count), "--event", "n")).end() == 0
        count += 1
        assert count < 100
    wait_until(lambda: len(numbers(listener)) == count, 15, "all of them")
    assert numbers(listener) == list(range(count))
    assert start(*flask("publish", "news", "--end")).end() == 0
    # Its id says that all is over: the server answers 204 to who comes back with it.
    assert listener.end() == 0
    assert "204" in listener.err


def numbers(listener: Command) -> list[int]:
    """The data of the events called `n`, as numbers."""
    events = [json.loads(line) for line in listener.out.splitlines()]
    return [int(event["data"]) for event in events if event["event"] == "n"]


def test_streams_are_listed_over_all_processes(start: Run) -> None:
    """Those of another process are there, by name."""
    first = start(*flask("listen", "news", "orders"))
    second = start(*flask("listen", "news"))
    for listener in (first, second):
        listener.wait_for("listening to")
    counts = ("channels", "--json")
    wait_until(lambda: said(start(*flask(*counts))) == {"news": 2, "orders": 1}, 15, "both to be reported")
    stats = said(start(*flask("stats", "--json")))
    assert (stats["streams"], stats["channels"]) == (3, 2)


def test_a_limit_on_a_streams_age_does_not_end_a_command(start: Run, short_lived: None) -> None:
    """The app's `SSE_MAX_AGE` is for clients that come back."""
    listener = start(*flask("listen", "news", "--count", "2"))
    listener.wait_for("listening to")
    opened = time.monotonic()
    # The second comes after the age at which the app's streams end.
    assert start(*flask("publish", "news", "one")).end() == 0
    wait_until(lambda: time.monotonic() > opened + 1)
    assert start(*flask("publish", "news", "two")).end() == 0
    assert listener.end() == 0
    assert listener.err.count("\n") == 1, listener.err


def test_wrong_and_impossible_commands_say_so(start: Run, environment: dict[str, str]) -> None:
    """2 for what is wrong with the command, 1 for a broker that isn't there; no traceback."""
    wrong = start(*flask("publish", "news"))
    environment["APP_BROKER_URL"] = "memory://"
    memory = start(*flask("stats"))
    environment["APP_BROKER_URL"] = "sqlite:////proc/nowhere/events.sqlite"
    missing = start(*flask("publish", "news", "hello"))
    assert [command.end() for command in (wrong, memory, missing)] == [2, 2, 1]
    for command in (wrong, memory, missing):
        assert "Error: " in command.err and "Traceback" not in command.err
        assert command.out == ""
