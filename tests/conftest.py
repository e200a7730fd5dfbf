"""What all tests share: the `serve` fixture for real servers, and their logs beside a failure; a Chromium."""

from __future__ import annotations

import signal
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from sseflask import process
from tests.chromium import chromium, console, page  # noqa: F401  # fixtures
from tests.live.server import RUNNING, Server

LOG_LINES = 200
MARKED_DIRECTORIES = ("live", "browser")

Serve = Callable[..., Server]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Starts servers: `serve(app, **options)`, arguments as for `Server`; each is stopped when the test is over."""
    with ExitStack() as servers:
        count = 0

        def start(app: str, **options: object) -> Server:
            nonlocal count
            count += 1
            directory = tmp_path / f"server-{count}"
            directory.mkdir()
            server = Server(app, directory, **options)  # type: ignore[arg-type]
            servers.callback(server.stop)
            return server.start()

        yield start


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Shows the end of each running server's log beside a failure."""
    report = yield
    if report.failed:
        for server in RUNNING:
            lines = server.log().splitlines()
            report.sections.append((f"Log of {server!r}", "\n".join(lines[-LOG_LINES:])))
    return report


def pytest_configure() -> None:
    """A shell's background job ignores Ctrl-C, and what the tests start would inherit that."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks the tests of tests/live and tests/browser, so that `-m "not live and not browser"` leaves the quick ones."""
    for item in items:
        for name in MARKED_DIRECTORIES:
            if Path(__file__).with_name(name) in item.path.parents:
                item.add_marker(name)


def pytest_sessionfinish() -> None:
    """Stops what a fixture of a wider scope may have left."""
    for server in list(RUNNING):
        server.stop()


@pytest.fixture(autouse=True)
def _no_stream_of_another_test() -> Iterator[None]:
    """Ends what a test has left open in this process: Flask's test client closes no response that isn't read to its end."""
    yield
    for stream in list(process.current().streams):
        stream.sink_ended()
