"""The life of a stream, from the code's own tables: `stream-diagram`, `stream-states` and `close-reasons`.

Docstrings of an enum's members are read from the source, since Python keeps none of them.
"""

from __future__ import annotations

import enum
import textwrap
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.ext.graphviz import figure_wrapper, graphviz
from sphinx.pycode import ModuleAnalyzer
from sphinx.util.docutils import SphinxDirective

from sseflask import state
from sseflask.state import TRANSITIONS, CloseReason, StreamState

#: Characters in one line of the diagram's labels.
WIDTH = 28


def meanings(members: type[enum.Enum]) -> dict[str, str]:
    """For each member's value, its docstring in one line.

    Raises:
        KeyError: A member has none.
    """
    attributes = ModuleAnalyzer.for_module(members.__module__).find_attr_docs()
    return {member.value: " ".join(attributes[members.__name__, member.name]).strip() for member in members}


def diagram() -> str:
    """The states and what leads from one to the next, in Graphviz's language."""
    explained = meanings(StreamState)
    lines = [
        'digraph "The life of a stream" {',
        '    graph [bgcolor="white", rankdir="TB", nodesep=0.6, ranksep=0.5]',
        '    node [fontname="sans-serif", fontsize=12, fontcolor="#1c1f22"]',
        '    node [shape="box", style="rounded,filled", fillcolor="#eef3f7", color="#3e4349", margin=0.15]',
        '    edge [fontname="sans-serif", fontsize=11, fontcolor="#1c1f22", color="#3e4349"]',
    ]
    for one in StreamState:
        border = "" if TRANSITIONS[one] else ", peripheries=2"
        lines.append(f'    {one.value} [tooltip="{_quoted(explained[one.value])}"{border}]')
    for before, following in TRANSITIONS.items():
        for after, cause in following.items():
            label = "".join(f"\N{NO-BREAK SPACE}{line}\\l" for line in textwrap.wrap(cause, WIDTH))
            lines.append(f'    {before.value} -> {after.value} [label="{label}", tooltip="{_quoted(cause)}"]')
    return "\n".join([*lines, "}"])


def description() -> str:
    """The same in words, for who can't see the picture."""
    parts = [
        f"from {before.value} to {after.value} when {cause}"
        for before, following in TRANSITIONS.items()
        for after, cause in following.items()
    ]
    return f"State diagram of a stream: {'; '.join(parts)}."


class FromTheCode(SphinxDirective):
    """What a page takes from `sseflask.state`: the page is made again when that, or this file, changes."""

    has_content = False

    def run(self) -> list[nodes.Node]:
        """Makes what the page shows."""
        for path in (state.__file__, __file__):
            self.env.note_dependency(path)
        return self.make()

    def make(self) -> list[nodes.Node]:
        """See `run`."""
        raise NotImplementedError


class StreamDiagram(FromTheCode):
    """Draws `TRANSITIONS`."""

    def make(self) -> list[nodes.Node]:
        """Makes the figure."""
        node = graphviz()
        node["code"] = diagram()
        node["options"] = {"docname": self.env.docname}
        node["alt"] = description()
        return [figure_wrapper(self, node, "Every change of state that there is.")]


class MeaningTable(FromTheCode):
    """A table of an enum's members.

    Attributes:
        members: The enum.
        title: The first column's.
    """

    members: type[enum.Enum]
    title: str

    def make(self) -> list[nodes.Node]:
        """Makes the table."""
        rows = [f"| `{value}` | {meaning} |" for value, meaning in meanings(self.members).items()]
        return self.parse_text_to_nodes("\n".join([f"| {self.title} | meaning |", "|---|---|", *rows]))


class StreamStates(MeaningTable):
    """A table of `StreamState`."""

    members = StreamState
    title = "state"


class CloseReasons(MeaningTable):
    """A table of `CloseReason`."""

    members = CloseReason
    title = "reason"


def setup(app: Sphinx) -> dict[str, Any]:
    """Adds the directives."""
    app.add_directive("stream-diagram", StreamDiagram)
    app.add_directive("stream-states", StreamStates)
    app.add_directive("close-reasons", CloseReasons)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _quoted(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"')
