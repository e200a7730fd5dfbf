"""The floors of the house (DESIGN 5): who may import whom, and what may not be imported or made at import.

A new module needs a place in FLOORS; what it may use then follows.
"""

from __future__ import annotations

import ast
import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import sseflask

PACKAGE = Path(__file__).resolve().parents[1] / "sseflask"

# Lowest first. A module, or a subpackage as a whole, uses only floors below its own; neighbours on a floor don't know each other.
FLOORS: tuple[tuple[str, ...], ...] = (
    ("callback", "errors"),
    ("event", "position"),
    ("coalesce", "decoder"),
    ("ring",),
    ("log",),
    ("config",),
    ("address", "native"),
    ("emitter", "probe"),
    ("tally",),
    ("brokers", "decorated", "doctor", "waker"),
    ("channel", "state"),
    ("stream",),
    ("current", "signals", "timer"),
    ("process", "subscription"),
    ("context", "handoff", "identity", "ledger"),
    ("producer",),
    ("response",),
    ("detached", "lease", "metrics", "worker"),
    ("tasks",),
    ("auth", "control", "progress", "runs", "viewer"),
    ("installation",),
    ("cors", "dashboard"),
    ("cli", "views"),
    ("extension",),
    ("client", "testing", "publisher", "compat"),
    ("__init__",),
    ("__main__",),
)
FLOOR = {name: number for number, names in enumerate(FLOORS) for name in names}

# Only the worker, and what it owns, knows gevent, its greenlets and gunicorn (DESIGN 3.6).
WORKERS_OWN = {"gevent", "greenlet", "gunicorn"}

# The core never waits (STYLE 1).
CORE = ("event", "position", "coalesce", "decoder", "ring", "log")
NOT_IN_CORE = {
    "asyncio",
    "flask",
    "gevent",
    "gunicorn",
    "queue",
    "select",
    "selectors",
    "socket",
    "ssl",
    "threading",
    "time",
    "werkzeug",
}

# Taken by name in the unpatched arbiter, these stay unpatched for good (STREAMS 15): `import threading`, then `threading.Lock()`.
BY_MODULE_ONLY = {"queue", "select", "socket", "threading", "time"}

# Made at import, these belong to the arbiter, or to another hub (STREAMS 15).
PRIMITIVES = {"_thread", "gevent", "multiprocessing", "queue", "select", "selectors", "socket", "threading"}


class Import(NamedTuple):
    """One imported module."""

    line: int
    target: str  # dotted and absolute
    names: tuple[str, ...]  # for `from target import names`


def module_files() -> list[Path]:
    """The package's modules."""
    return sorted(PACKAGE.rglob("*.py"))


def place(path: Path) -> str:
    """A module's name in FLOORS: its own, or its subpackage's."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def dotted(path: Path) -> str:
    """A module's dotted name; a package's ends in `.__init__`."""
    return ".".join(("sseflask", *path.relative_to(PACKAGE).with_suffix("").parts))


def imports(source: str, module: str) -> Iterator[Import]:
    """The imports in a module's source, those within functions too; not those for types only, which never run."""
    for node in ast.walk(WithoutTypes().visit(ast.parse(source))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(node.lineno, alias.name, ())
        elif isinstance(node, ast.ImportFrom):
            base = module.split(".")[: -node.level] if node.level else []
            target = ".".join([*base, *([node.module] if node.module else [])])
            yield Import(node.lineno, target, tuple(alias.name for alias in node.names))


class WithoutTypes(ast.NodeTransformer):
    """Drops what stands under `if TYPE_CHECKING:`."""

    def visit_If(self, node: ast.If) -> ast.AST | list[ast.stmt]:
        """Keeps the other branch only."""
        self.generic_visit(node)
        return node.orelse if ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING") else node


def used_places(found: Import) -> set[str]:
    """The places in FLOORS that an import reaches; empty for a foreign one."""
    package, *rest = found.target.split(".")
    if package != "sseflask":
        return set()
    if rest:
        return {rest[0]}
    # `from sseflask import name`: a module of that name, or else something public.
    modules = {path.stem for path in PACKAGE.glob("*.py")} | {path.name for path in PACKAGE.iterdir() if path.is_dir()} | set(FLOOR)
    return {name if name in modules else "__init__" for name in found.names} or {"__init__"}


def floor_faults(source: str, module: str) -> list[str]:
    """Where a module imports from its own floor or above."""
    own = module.split(".")[1]
    if own not in FLOOR:
        return [f"{module} has no floor: add it to the table FLOORS in tests/test_layers.py"]
    faults = []
    for found in imports(source, module):
        for used in sorted(used_places(found) - {own}):
            if used not in FLOOR:
                faults.append(f"{module}:{found.line} imports {used}, which has no floor: add it to the table FLOORS")
            elif FLOOR[used] >= FLOOR[own]:
                faults.append(f"{module}:{found.line} is on floor {FLOOR[own]} and imports {used} on floor {FLOOR[used]}")
    return faults


def foreign_faults(source: str, module: str) -> list[str]:
    """Where a module imports a foreign one that isn't for it, or takes names that gevent replaces."""
    own = module.split(".")[1]
    faults = []
    for found in imports(source, module):
        package = found.target.partition(".")[0]
        if package in WORKERS_OWN and own != "worker":
            faults.append(f"{module}:{found.line} imports {package}: only sseflask/worker/ may")
        if package in NOT_IN_CORE and own in CORE:
            faults.append(f"{module}:{found.line} imports {package}: the core has no IO, no clock and no threads")
        if package in BY_MODULE_ONLY and found.names:
            faults.append(f"{module}:{found.line} takes {', '.join(found.names)} from {package}: import the module instead")
    return faults


def primitive_faults(source: str, module: str) -> list[str]:
    """Where a module makes a lock, a queue, an epoll set or the like when it is imported."""
    return [
        f"{module}:{call.lineno} makes {ast.unparse(call.func)} at import: make it at first use, per process"
        for call in calls_at_import(ast.parse(source).body)
        if ast.unparse(call.func).partition(".")[0] in PRIMITIVES
    ]


def calls_at_import(nodes: Iterable[ast.AST]) -> Iterator[ast.Call]:
    """The calls that run when a module is imported: all but those in the bodies of functions."""
    for node in nodes:
        if isinstance(node, ast.Call):
            yield node
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield from calls_at_import([*node.decorator_list, *node.args.defaults, *filter(None, node.args.kw_defaults)])
        elif isinstance(node, ast.Lambda):
            yield from calls_at_import([*node.args.defaults, *filter(None, node.args.kw_defaults)])
        else:
            yield from calls_at_import(ast.iter_child_nodes(node))


each_module = pytest.mark.parametrize("path", module_files(), ids=lambda path: dotted(path).removeprefix("sseflask."))


def test_there_is_a_package() -> None:
    """The tests below look at the real package."""
    assert {"__init__", "errors", "event", "worker"} <= {place(path) for path in module_files()}


@each_module
def test_a_module_uses_only_floors_below_its_own(path: Path) -> None:
    """Each import of the package's own modules goes down."""
    faults = floor_faults(path.read_text(), dotted(path))
    assert not faults, "\n".join(faults)


@each_module
def test_a_module_imports_nothing_that_is_not_for_it(path: Path) -> None:
    """The worker alone knows gevent and gunicorn, the core does no IO, and nothing takes names that gevent replaces."""
    faults = foreign_faults(path.read_text(), dotted(path))
    assert not faults, "\n".join(faults)


@each_module
def test_a_module_makes_no_primitive_at_import(path: Path) -> None:
    """Importing a module makes no lock, queue, socket, epoll set or hub object."""
    faults = primitive_faults(path.read_text(), dotted(path))
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize(
    ("module", "line", "fault"),
    [
        ("sseflask.stream", "from .response import EventSourceResponse", "stream:1 is on floor"),
        ("sseflask.stream", "from . import response", "imports response"),
        ("sseflask.stream", "import sseflask.response", "imports response"),
        ("sseflask.stream", "from sseflask import SSE", "imports __init__"),
        ("sseflask.stream", "from . import SSE", "imports __init__"),
        ("sseflask.stream", "from .newcomer import x", "newcomer, which has no floor: add it to the table"),
        ("sseflask.stream", "def f():\n    from .worker.sink import Sink", "stream:2 is on floor"),
        ("sseflask.state", "if not TYPE_CHECKING:\n    from .stream import Stream", "imports stream"),
        ("sseflask.state", "if TYPE_CHECKING:\n    pass\nelse:\n    from .stream import Stream", "imports stream"),
        ("sseflask.cli", "from .client import EventSource", "imports client"),
        ("sseflask.brokers.redis", "from ..stream import Stream", "imports stream"),
        ("sseflask.brokers.__init__", "from ..stream import Stream", "imports stream"),
        ("sseflask.event", "from .config import Settings", "imports config"),
        ("sseflask.newcomer", "", "newcomer has no floor: add it to the table"),
    ],
)
def test_a_step_up_is_found(module: str, line: str, fault: str) -> None:
    """Each way to write an import that goes up, or to an unknown module, is a fault."""
    (found,) = floor_faults(line, module)
    assert fault in found


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("sseflask.stream", "from .errors import StreamError"),
        ("sseflask.stream", "from . import errors, event"),
        ("sseflask.brokers.redis", "from .base import Broker"),
        ("sseflask.brokers.redis", "from ..errors import BrokerUnavailable"),
        ("sseflask.brokers.__init__", "from .base import Broker"),
        ("sseflask.__init__", "from .extension import SSE"),
        ("sseflask.worker.__init__", "import gevent"),
        ("sseflask.stream", "import threading, time"),
        ("sseflask.stream", "from flask import g"),
        ("sseflask.state", "if TYPE_CHECKING:\n    from .stream import Stream\nelse:\n    from .errors import StreamError"),
    ],
)
def test_a_step_down_is_no_fault(module: str, line: str) -> None:
    """What goes down, stays within a subpackage, or is foreign and allowed, is no fault."""
    assert floor_faults(line, module) + foreign_faults(line, module) == []


@pytest.mark.parametrize(
    ("module", "line", "fault"),
    [
        ("sseflask.stream", "import gevent.event", "only sseflask/worker/"),
        ("sseflask.response", "def f():\n    from gunicorn.http import wsgi", "response:2"),
        ("sseflask.event", "import time", "the core"),
        ("sseflask.log", "from flask import current_app", "the core"),
        ("sseflask.stream", "from threading import Lock", "takes Lock from threading"),
        ("sseflask.worker.sink", "from time import sleep", "takes sleep from time"),
        ("sseflask.stream", "from queue import Queue, Empty", "takes Queue, Empty from queue"),
        ("sseflask.stream", "from select import epoll", "takes epoll from select"),
        ("sseflask.stream", "from socket import socket", "takes socket from socket"),
    ],
)
def test_a_foreign_import_out_of_place_is_found(module: str, line: str, fault: str) -> None:
    """Each foreign import that isn't for the module is a fault."""
    (found,) = foreign_faults(line, module)
    assert fault in found


def test_a_primitive_at_import_is_found() -> None:
    """A primitive is a fault at a module's top, in a class body and as a default, and none within a function."""
    source = """
        import threading
        from dataclasses import dataclass, field
        LOCK = threading.Lock()
        class Stream:
            changed = threading.Condition()
            def open(self, lock=threading.RLock()):
                self.lock = threading.Lock()
        @dataclass
        class Held:
            lock: object = field(default_factory=threading.Lock)
            made: object = field(default_factory=lambda: threading.Lock())
    """
    found = primitive_faults(textwrap.dedent(source), "sseflask.stream")
    assert [fault.split()[0] for fault in found] == ["sseflask.stream:4", "sseflask.stream:6", "sseflask.stream:7"]


def test_no_module_has_the_name_of_something_public() -> None:
    """What `sseflask` gives its users by a name isn't also a module of that name, which would take its place (STREAMS 19)."""
    modules = {path.stem if path.suffix else path.name for path in PACKAGE.iterdir()}
    public = {name for name in sseflask.__all__ if name.islower()}
    assert not modules & public
