"""What a page tells its reader to type: `pytest tests/docs -k first-stream` runs a page's."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.docs import console, page
from tests.docs.console import Console
from tests.docs.page import Block, parametrized
from tests.docs.place import Place

pytestmark = pytest.mark.live

#: What the reader sees at the addresses that a page tells to open, one after the other: in JavaScript, conditions for when the page
#: has been opened, and for when all else has been done.
SEEN: dict[str, list[tuple[str, str]]] = {
    "start/first-stream": [
        ("document.body.innerText.includes('{\"count\":3}')", ""),
        ("document.title === 'My first channel'", "document.querySelector('li:only-child').innerText === 'hello'"),
    ],
}


@parametrized(lambda path: page.running(path, "console"))
@pytest.mark.timeout(120)
def test_console(path: Path, place: Place, request: pytest.FixtureRequest) -> None:
    """What a page tells its reader to type, in a folder with the page's files, shows what the page says."""
    blocks = page.blocks(path)
    python = page.running(path, "python")
    if console.needs_redis([block for block in blocks if block.included is None]):
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


def test_what_is_said_of_pages_is_in_use() -> None:
    """Each command that isn't run is on a page, and so is each page of which it is told what is seen."""
    typed = [command for path in page.pages() for block in page.running(path, "console") for command in console.commands(block)[1]]
    assert set(console.NOT_RUN) <= {console.not_run(command) for command in typed}
    assert set(SEEN) <= {page.name(path) for path in page.pages()}
