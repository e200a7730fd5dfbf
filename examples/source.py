"""Python source as HTML, its words marked by kind, so that a page can show the code behind it."""

from __future__ import annotations

import builtins
import io
import keyword
import tokenize
from itertools import pairwise

from markupsafe import Markup, escape

_STRINGS = {"STRING", "FSTRING_START", "FSTRING_MIDDLE", "FSTRING_END"}


def highlighted(source: str) -> Markup:
    """The source with a `<span class="code-…">` around each keyword, string, number, comment, decorator and name being defined."""
    lines = source.splitlines(keepends=True)
    html: list[Markup] = []
    row, column = 1, 0

    def up_to(end: tuple[int, int]) -> str:
        nonlocal row, column
        text = ""
        while row < end[0] and row <= len(lines):
            text += lines[row - 1][column:]
            row, column = row + 1, 0
        if row <= len(lines):
            text += lines[row - 1][column : end[1]]
            column = end[1]
        return text

    tokens = list(tokenize.generate_tokens(io.StringIO(source).readline))
    start_of_line = True
    for before, token in pairwise([tokens[0], *tokens]):
        html.append(escape(up_to(token.start)))
        kind = "decorator" if start_of_line and token.string == "@" else _kind(token, before)
        text = escape(up_to(token.end))
        html.append(Markup('<span class="code-{}">{}</span>').format(kind, text) if kind else text)
        start_of_line = token.type in (tokenize.NEWLINE, tokenize.NL, tokenize.INDENT, tokenize.DEDENT)
    return Markup("").join(html)


def _kind(token: tokenize.TokenInfo, before: tokenize.TokenInfo) -> str | None:
    if token.type == tokenize.COMMENT:
        return "comment"
    if token.type == tokenize.NUMBER:
        return "number"
    if tokenize.tok_name[token.type] in _STRINGS:
        return "string"
    if token.type == tokenize.NAME:
        if before.string in ("def", "class"):
            return "definition"
        if before.string == "@":
            return "decorator"
        if keyword.iskeyword(token.string):
            return "keyword"
        if hasattr(builtins, token.string) and before.string != ".":
            return "builtin"
    return None
