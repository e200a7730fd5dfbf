"""The directives `settings` and `options`: what `sseflask.config` says of the SSE_* settings, and of one stream's options.

Their texts are the `Attributes` of the docstrings, their bounds what the checks say of a value that can't be.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from sseflask import config
from sseflask.config import UNSET, Settings, StreamOptions
from sseflask.errors import InvalidSetting

#: What names a setting.
SETTING: Final = re.compile(r"`(SSE_[A-Z_]+)`")


class Described(NamedTuple):
    """A setting, or an option.

    Attributes:
        name: As users write it.
        default: As users would write it, with its unit.
        expected: What its value must be.
        text: What it means.
    """

    name: str
    default: str
    expected: str
    text: str

    @property
    def anchor(self) -> str:
        """What links to it end in."""
        return self.name.lower().replace("_", "-")


def settings() -> dict[str, Described]:
    """The settings by name."""
    texts = attributes(Settings)
    found = {}
    for field in dataclasses.fields(Settings):
        name = f"SSE_{field.name.upper()}"
        expected = _expected(lambda value, name=name, check=field.metadata["check"]: check(name, value))
        found[name] = Described(name, _default(field.default, expected), expected, texts[field.name])
    return found


def options() -> dict[str, Described]:
    """The options of `@sse.stream` by name."""
    texts = attributes(StreamOptions)
    found = {}
    for field in dataclasses.fields(StreamOptions):
        if field.init:
            expected = _expected(lambda value, name=field.name: StreamOptions(**{name: value}))
            default = _default(field.default, expected)
            if field.default is UNSET:
                (setting,) = SETTING.findall(texts[field.name].split(",")[0])
                default = f"`{setting}`"
            found[field.name] = Described(field.name, default, expected, texts[field.name])
    return found


def attributes(described: type) -> dict[str, str]:
    """The `Attributes` of a docstring in Google's form, by name."""
    _, _, section = inspect.getdoc(described).partition("\nAttributes:\n")  # type: ignore[union-attr]
    # The section ends with the first line that isn't indented.
    section = re.split(r"^(?=\S)", section, maxsplit=1, flags=re.MULTILINE)[0]
    found: dict[str, str] = {}
    for line in filter(str.strip, section.splitlines()):
        name, colon, text = line.strip().partition(": ")
        if line.startswith("    ") and not line.startswith("     ") and colon:
            found[name] = text
            last = name
        else:
            found[last] += f" {line.strip()}"
    return found


def markdown(described: Described, more: str = "", *, option: bool = False) -> str:
    """What is shown of one.

    Args:
        described: It.
        more: What the page adds.
        option: Whether it is an option: those are in no index, since their names are everyday words.
    """
    text = linked(described.text, but=described.name)
    return "\n".join(
        [
            f"({'option-' if option else ''}{described.anchor})=",
            f"```{{confval}} {described.name}",
            f":type: {described.expected}",
            f":default: {described.default}",
            *([":no-index:"] if option else []),
            "",
            f"{text} {more}".strip(),
            "```",
            "",
        ]
    )


def linked(text: str, *, but: str = "") -> str:
    """A text in which each setting that it names is a link, but for one."""
    return SETTING.sub(lambda found: found[0] if found[1] == but else f"{{confval}}`{found[1]}`", text)


def _expected(make: Callable[[Any], object]) -> str:
    """What a check says of a value that nothing can be."""
    try:
        make(object())
    except InvalidSetting as error:
        # As code, so that Markdown leaves patterns and URLs alone.
        return re.sub(
            r"\[.*?\]|[a-z]+://\S*|\"[^\"]*\"|'[^']*'|\b(?:None|True|False)\b", lambda found: _code(found[0]), error.expected
        )
    raise AssertionError("a check that takes anything")


def _code(text: str) -> str:
    text = re.sub("^'(.*)'$", r'"\1"', text)
    end = len(text.rstrip(","))
    return f"`{text[:end]}`{text[end:]}"


def _default(value: object, expected: str) -> str:
    if value is None or isinstance(value, bool):
        return f"`{value}`"
    if isinstance(value, int | float):
        unit = re.search(r"number of (\w+)", expected)
        shown = f"`{value:g}`" if isinstance(value, float) else f"`{value}`"
        size = f" ({value // 2**20} MiB)" if isinstance(value, int) and value >= 2**20 else ""
        return f"{shown} {unit[1] if unit else ''}{size}".strip()
    if isinstance(value, str):
        return f'`"{value}"`'
    return "`[]`"


class SettingsDirective(SphinxDirective):
    """`{settings}`: one setting a line, by name; after the name what the page adds, such as a link."""

    has_content = True

    def run(self) -> list[nodes.Node]:
        """The settings, one after another."""
        self.env.note_dependency(config.__file__)
        self.env.note_dependency(__file__)
        found = settings()
        parts = []
        for line in filter(None, self.content):
            name, _, more = line.partition(" ")
            parts.append(markdown(found[name], more.strip()))
        return self.parse_text_to_nodes("\n".join(parts))


class OptionsDirective(SphinxDirective):
    """`{options}`: all options of `@sse.stream`; a line names one and what the page adds to it."""

    has_content = True

    def run(self) -> list[nodes.Node]:
        """The options, in the order of the code."""
        self.env.note_dependency(config.__file__)
        self.env.note_dependency(__file__)
        more = dict(line.partition(" ")[::2] for line in filter(None, self.content))
        found = options()
        assert more.keys() <= found.keys()
        return self.parse_text_to_nodes("\n".join(markdown(each, more.get(each.name, ""), option=True) for each in found.values()))


def setup(app: Sphinx) -> dict[str, Any]:
    """What Sphinx calls."""
    app.add_directive("settings", SettingsDirective)
    app.add_directive("options", OptionsDirective)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
