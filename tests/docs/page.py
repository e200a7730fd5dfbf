"""Pages, taken apart into their blocks of code. No block is overlooked: what is code to Markdown is a block here."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import pytest
from markdown_it import MarkdownIt
from mdit_py_plugins.colon_fence import colon_fence_plugin

ROOT: Final = Path(__file__).resolve().parents[2]
DOCS: Final = ROOT / "docs"

#: Directives whose content is code. What other directives hold is Markdown, and may have blocks of its own.
CODE: Final = ("code", "code-block", "sourcecode")
DIRECTIVE: Final = re.compile(r"\{([\w:.-]+)\}\s*(.*)", re.DOTALL)
OPTION: Final = re.compile(r":([\w-]+):[ \t]*(.*)")
FENCES: Final = ("fence", "colon_fence")

_markdown = MarkdownIt("commonmark").enable("table").use(colon_fence_plugin)


@dataclass(frozen=True)
class Block:
    """A block of code.

    Attributes:
        page: The file that it stands in.
        line: Its first line's number there, from 1.
        language: What its fence says; empty where that is nothing, `indented` and `html block` for code without a fence.
        text: The code; of an included file, that file's.
        options: Those of a directive: `caption`, `language`, …
        included: The file that a `literalinclude` shows, else None.
    """

    page: Path
    line: int
    language: str
    text: str
    options: dict[str, str] = field(default_factory=dict)
    included: Path | None = None

    @property
    def where(self) -> str:
        """The page and the line, as editors take them."""
        path = self.page.relative_to(ROOT) if self.page.is_relative_to(ROOT) else self.page
        return f"{path}:{self.line}"

    @property
    def file(self) -> str | None:
        """The name of the file in the reader's folder that it is, or None: it is no file."""
        return None if self.included or self.language in ("console", "text") else self.options.get("caption")

    @property
    def is_test(self) -> bool:
        """Whether pytest finds tests in it."""
        return self.language == "python" and (
            (self.file or "").startswith("test_") or re.search(r"^(async )?def test_", self.text, re.MULTILINE) is not None
        )

    def fails(self, why: str) -> AssertionError:
        """An error that says where, and what to do."""
        return AssertionError(f"{self.where}: {why}")


def pages() -> list[Path]:
    """The README and the pages of docs/."""
    return [ROOT / "README.md", *sorted(path for path in DOCS.rglob("*.md") if "_build" not in path.parts)]


def is_run(block: Block) -> bool:
    """Whether it runs by itself: it is no file of the reader's, and not shown from a file of ours."""
    return block.file is None and block.included is None


def running(page: Path, *languages: str) -> list[Block]:
    """The blocks of a page that run by themselves, of these languages."""
    return [block for block in blocks(page) if block.language in languages and is_run(block)]


def parametrized(choose: Callable[[Path], object]) -> pytest.MarkDecorator:
    """Calls a test with `path` for each page that is chosen."""
    return pytest.mark.parametrize("path", list(filter(choose, pages())), ids=name)


def name(page: Path) -> str:
    """A page's name in the ids of tests: `README`, `start/first-stream`."""
    return str((page.relative_to(DOCS) if page.is_relative_to(DOCS) else page.relative_to(ROOT)).with_suffix(""))


def addresses(page: Path) -> list[tuple[int, str]]:
    """The addresses of the reader's own server that a page tells to open, each with its line."""
    lines = enumerate(page.read_text().splitlines(), 1)
    return [(number, found) for number, line in lines for found in re.findall(r"<(http://127\.0\.0\.1:\d+[^>]*)>", line)]


@functools.cache
def blocks(page: Path) -> tuple[Block, ...]:
    """The blocks of a page, from top to bottom."""
    return tuple(_blocks(page, page.read_text(), 1))


def _blocks(page: Path, text: str, first: int) -> Iterator[Block]:
    for token in _markdown.parse(text):
        line = first + token.map[0] if token.map else first
        if token.type == "code_block":
            yield Block(page, line, "indented", token.content)
        elif token.type == "html_block" and re.search(r"```|~~~|<pre|<script", token.content):
            yield Block(page, line, "html block", token.content)
        elif token.type in FENCES:
            yield from _fence(page, token.info.strip(), token.content, line + 1)


def _fence(page: Path, info: str, content: str, line: int) -> Iterator[Block]:
    directive = DIRECTIVE.fullmatch(info)
    if directive is None:
        yield Block(page, line, info, content)
        return
    kind, argument = directive.groups()
    options, skipped = _options(content.splitlines())
    body = "".join(content.splitlines(keepends=True)[skipped:])
    if kind in CODE:
        yield Block(page, line + skipped, argument, body, options)
    elif kind == "literalinclude":
        path = (page.parent / argument).resolve()
        yield Block(page, line, options.get("language", ""), path.read_text(), options, included=path)
    elif kind == "eval-rst" and re.search(r"^\s*\.\. (code|sourcecode|literalinclude)|::\s*$", content, re.MULTILINE):
        yield Block(page, line, kind, content)
    else:
        yield from _blocks(page, body, line + skipped)


def _options(lines: Sequence[str]) -> tuple[dict[str, str], int]:
    """A directive's options, in either of MyST's forms, and how many lines they and the blank ones after them take."""
    options: dict[str, str] = {}
    taken = 0
    if lines and lines[0].strip() == "---":
        taken = 1
        while taken < len(lines) and lines[taken].strip() != "---":
            key, _, value = lines[taken].partition(":")
            options[key.strip()] = value.strip()
            taken += 1
        taken += 1
    else:
        while taken < len(lines) and (found := OPTION.fullmatch(lines[taken].strip())):
            options[found[1]] = found[2].strip()
            taken += 1
    while taken < len(lines) and not lines[taken].strip():
        taken += 1
    return options, taken
