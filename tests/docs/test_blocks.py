"""Each block has a runner, and what isn't run is read."""

from __future__ import annotations

import re
from pathlib import Path

from tests.docs import checks, page
from tests.docs.page import parametrized

RUN = ("python", "console", "html", "js")


@parametrized(page.blocks)
def test_each_block_has_a_runner(path: Path) -> None:
    """Each block says a language, one that something here runs or reads."""
    for block in page.blocks(path):
        if block.included is None and block.language not in (*RUN, *checks.CHECKS):
            known = ", ".join((*RUN, *checks.CHECKS))
            raise block.fails(
                f"nothing runs a block of the language {block.language!r}; known are {known}. Commands are `console`,"
                " with `$ ` before each; what is no code is `text`; a new language gets its runner in tests/docs"
            )


@parametrized(page.blocks)
def test_what_is_not_run_is_read(path: Path, tmp_path: Path) -> None:
    """Data and files are what their language says; a file that a page shows is used by a command after it, or holds tests."""
    for block in page.blocks(path):
        # deploy/'s are started, by tests/live/test_proxies.py.
        if block.included is None or block.language not in checks.PROGRAMS:
            checks.check(block, tmp_path)
    is_used = False
    for block in reversed(page.blocks(path)):
        is_used = is_used or block.language == "console" or block.is_test
        if block.file is not None:
            assert re.fullmatch(r"[\w./-]+", block.file), block.fails(f"{block.file!r} isn't a file's name")
            assert is_used, block.fails(f"no command after it uses {block.file}")
