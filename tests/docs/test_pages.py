"""The code of the README and of the docs runs: `pytest tests/docs -k first-stream` runs a page's."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.docs import checks, console, page, stand_in
from tests.docs.browser import Visitor, is_fetched, served
from tests.docs.console import Console
from tests.docs.page import ROOT, Block
from tests.docs.place import Place

PAGES: dict[Path, list[Block]] = {path: page.blocks(path) for path in page.pages()}
RUN = ("python", "console", "html", "js")
#: What a page's tests import the app from, where that isn't `app.py`.
MODULES = {"how-to/testing": "shop"}
#: What the reader sees at the addresses that a page tells to open, one after the other: in JavaScript, conditions for when the page
#: has been opened, and for when all else has been done.
SEEN: dict[str, list[tuple[str, str]]] = {
    "start/first-stream": [
        ("document.body.innerText.includes('{\"count\":3}')", ""),
        ("document.title === 'My first channel'", "document.querySelector('li:only-child').innerText === 'hello'"),
    ],
}
#: What the blocks of a page ask a server for, besides being answered: path, method, `Authorization`, body.
ASKED: dict[str, list[list[Any]]] = {
    "reference/browser": [
        ["/events/news", "GET", None, None],
        ["/jobs/8/events", "GET", None, None],
        ["/answers", "POST", "Bearer t", {"question": "Who keeps the light?"}],
    ],
}


def is_run(block: Block) -> bool:
    """Whether it runs by itself: it is no file of the reader's, and not shown from a file of ours."""
    return block.file is None and block.included is None


def with_blocks(*languages: str, having: str = "") -> pytest.MarkDecorator:
    """The pages that have blocks which run, of these languages."""
    chosen = [
        path
        for path, blocks in PAGES.items()
        if any(block.language in languages and is_run(block) and re.search(having, block.text, re.MULTILINE) for block in blocks)
    ]
    return pytest.mark.parametrize("path", chosen, ids=page.name)


def running(path: Path, *languages: str) -> list[Block]:
    """The blocks of a page that run, of these languages."""
    return [block for block in PAGES[path] if block.language in languages and is_run(block)]


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    """The reader's machine."""
    folder = tmp_path / "reader"
    folder.mkdir()
    with Place(folder) as place:
        yield place


@pytest.mark.parametrize("path", PAGES, ids=page.name)
def test_each_block_has_a_runner(path: Path) -> None:
    """Each block says a language, one that something here runs or reads."""
    for block in PAGES[path]:
        if block.included is None and block.language not in (*RUN, *checks.CHECKS):
            known = ", ".join((*RUN, *checks.CHECKS))
            raise block.fails(
                f"nothing runs a block of the language {block.language!r}; known are {known}. Commands are `console`,"
                " with `$ ` before each; what is no code is `text`; a new language gets its runner in tests/docs"
            )


@pytest.mark.parametrize("path", PAGES, ids=page.name)
def test_what_is_not_run_is_read(path: Path, tmp_path: Path) -> None:
    """Data, configurations and files are what their language says; a file that a page shows is used by a command after it."""
    for block in PAGES[path]:
        # deploy/'s are started, by tests/live/test_proxies.py.
        if block.included is None or block.language not in checks.PROGRAMS:
            checks.check(block, tmp_path)
    later = ""
    for block in reversed(PAGES[path]):
        if block.language == "console":
            later += block.text
        elif block.file is not None:
            assert re.fullmatch(r"[\w./-]+", block.file), block.fails(f"{block.file!r} isn't a file's name")
            assert later, block.fails(f"no command after it uses {block.file}")


@with_blocks("python")
def test_python(path: Path, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Python blocks of a page run from top to bottom, in one namespace."""
    place.run_python(running(path, "python"), monkeypatch)


@with_blocks("python", having="^(async )?def test_")
@pytest.mark.timeout(120)
def test_tests(path: Path, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests that a page shows pass."""
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{pytester.path}")
    module = MODULES.get(page.name(path), "app")
    code, tests = "", ""
    for block in PAGES[path]:
        if block.language == "python" and is_run(block):
            if tests or re.search(r"^(async )?def test_", block.text, re.MULTILINE):
                tests += block.text
            else:
                code += block.text
        elif block.file is not None:
            (pytester.path / block.file).parent.mkdir(parents=True, exist_ok=True)
            (pytester.path / block.file).write_text(block.text)
    pytester.makepyfile(**{module: code, "test_of_the_page": f"from {module} import *\n{tests}"})
    result = pytester.runpytest_subprocess("-p", "pytest_sseflask", "-W", "error", timeout=100)
    result.assert_outcomes(passed=len(re.findall(r"^(?:async )?def test_", tests, re.MULTILINE)))


@with_blocks("console")
@pytest.mark.timeout(120)
def test_console(path: Path, place: Place, request: pytest.FixtureRequest) -> None:
    """What a page tells its reader to type, in a folder with the page's files, shows what the page says."""
    blocks = PAGES[path]
    python = running(path, "python")
    if console.needs_redis(running(path, "python", "console") + [block for block in blocks if block.file]):
        place.start_redis()
    if not any(block.file == "app.py" for block in blocks) and python:
        (place.folder / "app.py").write_text("\n".join(place.here(block.text) for block in python))
    terminals = Console(place)
    request.addfinalizer(terminals.close)
    seen = SEEN.get(page.name(path), [])
    opened = page.addresses(path) if seen else []
    assert len(opened) == len(seen)
    for item in sorted(
        [*blocks, *zip(opened, seen, strict=True)], key=lambda item: item.line if isinstance(item, Block) else item[0][0]
    ):
        if not isinstance(item, Block):
            (_, address), (at_once, at_the_end) = item
            browser = request.getfixturevalue("page")
            # Servers that the page stops and starts are missed meanwhile; a page in a tutorial has no icon.
            request.getfixturevalue("console").allow(r"net::ERR_|/favicon\.ico")
            browser.goto(place.url(address))
            browser.wait_for_function(at_once)
        elif item.file is not None:
            terminals.write(item)
        elif item.language == "console":
            terminals.run(item)
    terminals.finish()
    if seen and at_the_end:
        browser.wait_for_function(at_the_end)


@with_blocks("html", "js")
def test_browser(path: Path, place: Place, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """The blocks for browsers run in Chromium, against the page's own app where it has one, and get what they ask for."""
    app = place.run_python(running(path, "python"), monkeypatch).get("app") or stand_in.make_app()
    port = place.port("8000")
    with served(app, port) as documents:
        visitor = Visitor(request.getfixturevalue("page"), request.getfixturevalue("console"), app, documents)
        for block in running(path, "html", "js"):
            visitor.run(block, place.here(block.text), f"http://127.0.0.1:{port}")
        for wanted in ASKED.get(page.name(path), []):
            assert is_fetched(visitor.asked, wanted), (wanted, visitor.asked)
        visitor.leave()


def test_what_is_said_of_pages_is_in_use() -> None:
    """Each command that isn't run is on a page, and so is each page that something is said of."""
    typed = [
        command
        for blocks in PAGES.values()
        for block in blocks
        if block.language == "console"
        for command in console.commands(block)[1]
    ]
    assert set(console.NOT_RUN) <= {console.not_run(command) for command in typed}
    assert {*MODULES, *SEEN, *ASKED} <= {page.name(path) for path in PAGES}
