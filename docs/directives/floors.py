"""The house: the table of floors that the tests hold the code to, and what each module says of itself.

Both are read from the sources, without importing them: the tests need more than what builds the documentation.
"""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any, Final

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

ROOT: Final = Path(__file__).resolve().parents[2]
PACKAGE: Final = ROOT / "sseflask"
TABLE: Final = ROOT / "tests" / "test_layers.py"


def floors() -> tuple[tuple[str, ...], ...]:
    """The modules and subpackages on each floor, the lowest first.

    Raises:
        LookupError: The tests have no such table.
    """
    for node in ast.parse(TABLE.read_text()).body:
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "FLOORS" and node.value is not None:
            found: tuple[tuple[str, ...], ...] = ast.literal_eval(node.value)
            return found
    raise LookupError(f"{TABLE} has no FLOORS")


def source_of(name: str) -> Path:
    """The file that holds a module, or a subpackage's own text."""
    package = PACKAGE / name / "__init__.py"
    return package if package.exists() else PACKAGE / f"{name}.py"


def rooms(name: str) -> list[str]:
    """The modules of a subpackage; of a module, none."""
    directory = PACKAGE / name
    return sorted(f"{name}/{path.stem}" for path in directory.glob("*.py") if path.stem != "__init__") if directory.is_dir() else []


def summary(path: Path) -> str:
    """The first line of a module's docstring.

    Raises:
        LookupError: It has none.
    """
    text = ast.get_docstring(ast.parse(path.read_text()))
    if not text:
        raise LookupError(f"{path} has no docstring")
    return text.splitlines()[0]


def house() -> list[tuple[str, str, str]]:
    """The house from top to bottom: floor, module, what it is. Who shares a floor has the number of the first."""
    rows = []
    for number, names in reversed(list(enumerate(floors()))):
        rows += [("" if index else str(number), name, summary(source_of(name))) for index, name in enumerate(names)]
    return rows


def subpackages() -> list[tuple[str, str]]:
    """The modules of the subpackages, and what they are."""
    names = [name for row in floors() for name in row]
    return [(room, summary(PACKAGE / f"{room}.py")) for name in sorted(names) for room in rooms(name)]


class Floors(SphinxDirective):
    """The table of floors, the highest on top."""

    has_content = False

    def run(self) -> list[nodes.Node]:
        """Makes the table."""
        rows = [f"| {number} | `{name}` | {_cell(text)} |" for number, name, text in house()]
        return self.parse_text_to_nodes("\n".join(["| floor | module | what it is |", "|--:|---|---|", *rows]))


class Rooms(SphinxDirective):
    """The table of what is in the subpackages."""

    has_content = False

    def run(self) -> list[nodes.Node]:
        """Makes the table."""
        rows = [f"| `{name}` | {_cell(text)} |" for name, text in subpackages()]
        return self.parse_text_to_nodes("\n".join(["| module | what it is |", "|---|---|", *rows]))


def setup(app: Sphinx) -> dict[str, Any]:
    """Adds the directives."""
    app.add_directive("floors", Floors)
    app.add_directive("rooms", Rooms)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
