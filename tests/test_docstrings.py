"""What is public says what it promises: the docstrings of every public name and member, held against the code.

What is checked is found in the code: a public module has `__all__`, a public name stands in it, and a public member has no
underscore before its name. Docstrings have Google's form, as the API reference reads them.
"""

from __future__ import annotations

import ast
import builtins
import dataclasses
import enum
import functools
import importlib
import importlib.util
import inspect
import pkgutil
import re
import sys
import textwrap
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest
import werkzeug.exceptions
from sphinx.ext.napoleon import Config, GoogleDocstring

import sseflask

ROOT = Path(__file__).resolve().parents[1]
REFERENCE = ROOT / "docs/reference/api"

PLUGIN = "pytest_sseflask"

#: The sections that a docstring may have; those whose entries are `name: text`; and how these begin.
SECTIONS = {"Args", "Returns", "Yields", "Raises", "Attributes", "Source"}
WITH_ENTRIES = {"Args", "Raises", "Attributes"}
ENTRY = re.compile(r"(\*{0,2}[A-Za-z_][\w.]*): \S")
#: A line that looks like a section's heading.
HEADING = re.compile(r"([A-Z][a-z]+):")
#: Where a docstring leaves what it doesn't say itself to another's.
SEE = re.compile(r"\b[Ss]ee\s+`([\w.]+)`")
#: What ends an iteration or stands for a method that others write is no error to tell a caller of.
NO_ERRORS = {"StopIteration", "StopAsyncIteration", "NotImplementedError", "AttributeError"}
#: What can't come out of a function by what it gives to those that it calls.
IMPOSSIBLE = {
    "sseflask.SSE.task_response": {"InvalidEvent"},  # its options have no mapping for the start event
    "sseflask.Stream.complete": {"InvalidEvent"},  # an `InvalidEvent` has no details
    "sseflask.Stream.drain": {"InvalidEvent"},  # the retry was checked with the settings
    "sseflask.Stream.end": {"InvalidEvent"},  # the text that waits was checked when it came
    "sseflask.Stream.flush": {"EventTooLarge", "InvalidEvent", "StreamClosed"},  # as above, and it doesn't wait
    "sseflask.Stream.tick": {"InvalidEvent"},  # its errors are its own
    "sseflask.compat.flask_sse.ServerSentEventsBlueprint.stream": {"InvalidEvent", "InvalidSubscription", "RuntimeError"},
    "sseflask.testing.EventReader.next_event": {"ValueError"},  # it says how many, and nothing else
}


class Docs(NamedTuple):
    """What a docstring says."""

    text: str
    entries: Mapping[str, Mapping[str, str]]
    faults: tuple[str, ...]

    def names(self, *sections: str) -> set[str]:
        """The names that have entries in some sections."""
        return {name.lstrip("*") for section in sections for name in self.entries.get(section, {})}


class Public(NamedTuple):
    """A public name, or a public member of a class."""

    path: str
    value: Any
    owner: type | None = None


class Sections:
    """The sections of a docstring, read line by line, and what is wrong with its form."""

    def __init__(self, lines: list[str]) -> None:
        self.entries: dict[str, dict[str, str]] = {}
        self.faults: list[str] = []
        self.section = self.entry = ""
        for number, line in enumerate(lines):
            heading = HEADING.fullmatch(line)
            if heading is not None and number and not lines[number - 1]:
                self.begin(heading[1], next(iter(lines[number + 1 :]), ""))
            elif self.section and line:
                self.read(line)

    def begin(self, section: str, first: str) -> None:
        """A section's heading, and the line after it."""
        if section not in SECTIONS:
            self.faults.append(f"there is no section {section!r}")
        if section in self.entries:
            self.faults.append(f"there are two sections {section!r}")
        if not first.startswith("    "):
            self.faults.append(f"the section {section!r} is empty, or not indented")
        self.entries[section] = {}
        self.section, self.entry = section, ""

    def read(self, line: str) -> None:
        """A line of a section, or the first after it."""
        section, entries = self.section, self.entries[self.section]
        if not line.startswith("    "):
            self.faults.append(f"text after the section {section!r}: {line!r}")
            self.section = ""
        elif section in ("Returns", "Yields") and not entries:
            # Up to a colon in the first line it would be taken for a type.
            if ":" in re.sub("`[^`]*`", "", line):
                self.faults.append(f"a colon in the first line of {section!r}: {line!r}")
            entries[""] = line
        elif section in WITH_ENTRIES and line[4] != " ":
            begins = ENTRY.match(line[4:])
            if begins is None or begins[1] in entries:
                self.faults.append(f"not `name: text`, or a second one of this name, in {section!r}: {line!r}")
            else:
                self.entry = begins[1]
                entries[self.entry] = line
        elif section in WITH_ENTRIES and not self.entry:
            self.faults.append(f"the section {section!r} begins in the middle of an entry: {line!r}")


@functools.cache
def parsed(text: str | None) -> Docs:
    """What a docstring says, and what is wrong with its form."""
    cleaned = inspect.cleandoc(text or "")
    sections = Sections(cleaned.splitlines())
    return Docs(cleaned, sections.entries, tuple(sections.faults))


@functools.cache
def public_modules() -> list[ModuleType]:
    """The modules that say by `__all__` what in them is public, the package first."""
    modules = [
        importlib.import_module(found.name)
        for found in pkgutil.walk_packages(sseflask.__path__, "sseflask.")
        if not found.name.endswith("__main__")
    ]
    return [sseflask, *(module for module in modules if hasattr(module, "__all__"))]


def is_ours(value: Any) -> bool:
    """Whether a class or function is defined in the package."""
    return str(getattr(value, "__module__", "")).partition(".")[0] in ("sseflask", PLUGIN)


def plain(value: Any) -> Any:
    """The function that is within a descriptor or a fixture."""
    if isinstance(value, staticmethod | classmethod):
        return value.__func__
    if isinstance(value, property):
        return value.fget
    return value


def members(owner: type, path: str) -> Iterator[Public]:
    """The public methods and properties of a class, those of our own base classes too, and its constructor."""
    public_bases = {getattr(module, name) for module in public_modules() for name in module.__all__ if name[0].isupper()} - {owner}
    seen: set[str] = set()
    for base in our_bases(owner):
        if base in public_bases:
            # Its members are described there.
            continue
        for name, value in vars(base).items():
            found = plain(value)
            if name in seen or not inspect.isfunction(found) or not is_ours(found):
                continue
            # A dataclass's constructor is written by nobody: what it takes stands in the class's docstring.
            is_written = not found.__code__.co_filename.startswith("<")
            if not name.startswith("_") or (name == "__init__" and name in vars(owner) and is_written):
                seen.add(name)
                yield Public(f"{path}.{name}", value, owner)


@functools.cache
def plugin() -> ModuleType:
    """The plugin for pytest. Not imported by its name, or pytest could no longer load it for other tests."""
    spec = importlib.util.spec_from_file_location(PLUGIN, ROOT / f"{PLUGIN}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@functools.cache
def public() -> dict[str, Public]:
    """All that is public, by its path: each thing once, under its first name."""
    found: dict[str, Public] = {}
    known: set[int] = set()
    for module in public_modules():
        for name in module.__all__:
            value = getattr(module, name)
            if id(value) in known:
                continue
            known.add(id(value))
            path = f"{module.__name__}.{name}"
            found[path] = Public(path, value)
            if inspect.isclass(value):
                found.update({member.path: member for member in members(value, path)})
    for name, value in vars(plugin()).items():
        if (unwrap := getattr(value, "_get_wrapped_function", None)) is not None:
            found[f"{PLUGIN}.{name}"] = Public(f"{PLUGIN}.{name}", unwrap())
    return found


@functools.cache
def functions() -> list[str]:
    """The paths of the functions, methods and properties among what is public."""
    return [path for path, found in public().items() if inspect.isfunction(plain(found.value))]


@functools.cache
def classes() -> list[str]:
    """The paths of the classes among what is public."""
    return [path for path, found in public().items() if inspect.isclass(found.value)]


@functools.cache
def values() -> list[str]:
    """The paths of what is neither: signals, proxies, objects."""
    return sorted(set(public()) - set(functions()) - set(classes()))


def docs_of_value(path: str) -> str:
    """The comment `#:` before an assignment, or the docstring after it."""
    module_name, _, name = path.rpartition(".")
    for module in [importlib.import_module(module_name), *sys.modules.values()]:
        if not is_ours_module(module) or getattr(module, name, None) is None:
            continue
        found = assigned(module).get(name)
        if found:
            return found
    return ""


def is_ours_module(module: ModuleType) -> bool:
    """Whether a module is one of the package's."""
    return getattr(module, "__name__", "").partition(".")[0] in ("sseflask", PLUGIN)


@functools.cache
def assigned(module: ModuleType) -> dict[str, str]:
    """What a module says of each name that it assigns."""
    if not getattr(module, "__file__", None):
        return {}
    return documented_names(ast.parse(source := inspect.getsource(module)).body, source.splitlines())


def documented_names(nodes: list[ast.stmt], lines: list[str]) -> dict[str, str]:
    """The names that are assigned among some statements, each with its `#:` comment or the docstring after it."""
    found: dict[str, str] = {}
    for node, after in zip(nodes, [*nodes[1:], None], strict=True):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        for target in targets:
            if isinstance(target, ast.Name):
                before = lines[node.lineno - 2].strip() if node.lineno > 1 else ""
                is_docstring = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
                text = str(after.value.value) if is_docstring else ""  # type: ignore[union-attr]
                found[target.id] = before.removeprefix("#:").strip() if before.startswith("#:") else text
    return found


@functools.cache
def body_of(function: Any) -> ast.FunctionDef:
    """A function's definition."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function))).body[0]
    assert isinstance(tree, ast.FunctionDef | ast.AsyncFunctionDef)
    return tree  # type: ignore[return-value]


def parameters_of(function: Any) -> list[str]:
    """The names of a function's parameters, without `self` and `cls`."""
    # pytest's own are filled in by pytest.
    ignored = ("request",) if function.__module__ == PLUGIN else ("self", "cls")
    return [name for name in inspect.signature(function).parameters if name not in ignored and not name.startswith("_")]


@functools.cache
def raised_in(function: Any, owner: type | None = None) -> frozenset[type[BaseException]]:
    """The errors that a function's own body raises, catches by name and raises again, or gets from what of ours it calls."""
    return Raising(function, owner).found()


class Raising:
    """What a function's body raises."""

    def __init__(self, function: Any, owner: type | None) -> None:
        self.function = function
        self.owner = owner

    def found(self) -> frozenset[type[BaseException]]:
        """The errors."""
        if self.function.__code__.co_filename.startswith("<"):
            return frozenset()
        return frozenset(error for error in self.of(body_of(self.function), ()) if error.__name__ not in NO_ERRORS)

    def of(self, node: ast.AST, caught: tuple[Any, ...]) -> Iterator[type[BaseException]]:
        """The errors of a piece of code; `caught` is what a bare `raise` there raises again."""
        if isinstance(node, ast.Try):
            inner = [error for child in (*node.body, *node.orelse) for error in self.of(child, caught)]
            kinds = tuple(kind for handler in node.handlers for kind in self.kinds(handler.type))
            yield from (error for error in inner if not issubclass(error, kinds))
            for handler in node.handlers:
                yield from self.of(handler, self.kinds(handler.type))
            for child in node.finalbody:
                yield from self.of(child, caught)
            return
        if isinstance(node, ast.With) and "suppress" in ast.unparse(node.items[0]):
            return
        if isinstance(node, ast.Raise):
            raised = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
            yield from caught if raised is None else self.kinds(raised)
        elif isinstance(node, ast.Call):
            yield from self.of_call(node)
        elif isinstance(node, ast.Attribute) and isinstance(self.value(node), property):
            yield from errors_of(self.value(node).fget, self.owner)
        for child in ast.iter_child_nodes(node):
            if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda | ast.ClassDef):
                yield from self.of(child, caught)

    def of_call(self, node: ast.Call) -> Iterator[type[BaseException]]:
        """The errors of what is called, if that is ours."""
        # Not those of a constructor: most are given what was checked before, or is constant.
        called = plain(self.value(node.func))
        if inspect.isfunction(called) and is_ours(called) and called is not self.function:
            yield from errors_of(called, self.owner)

    def value(self, node: ast.expr) -> Any:
        """What an expression is, as far as the code says: a global name, or an attribute of one, of `self` or of `super()`."""
        if isinstance(node, ast.Name):
            return self.function.__globals__.get(node.id, getattr(builtins, node.id, None))
        if isinstance(node, ast.Attribute):
            if self.owner is not None and isinstance(node.value, ast.Name) and node.value.id in ("self", "cls"):
                return inspect.getattr_static(self.owner, node.attr, None)
            if self.owner is not None and ast.unparse(node.value) == "super()":
                bases = [base for base in self.owner.__mro__[1:] if node.attr in vars(base)]
                return vars(bases[0])[node.attr] if bases else None
            return getattr(self.value(node.value), node.attr, None) if isinstance(self.value(node.value), ModuleType) else None
        return None

    def kinds(self, node: ast.expr | None) -> tuple[type[BaseException], ...]:
        """The errors that an expression names; empty for one that isn't known before it runs."""
        values = [self.value(part) for part in (node.elts if isinstance(node, ast.Tuple) else [node] if node else [])]
        return tuple(value for value in values if inspect.isclass(value) and issubclass(value, BaseException))


@functools.cache
def public_functions() -> set[Any]:
    """The functions among what is public."""
    return {plain(found.value) for found in public().values() if inspect.isfunction(plain(found.value))}


@functools.cache
def errors_of(function: Any, owner: type | None) -> frozenset[type[BaseException]]:
    """The errors of a function that is called: those that it documents, and, of one that isn't public, those of its body."""
    documented = frozenset(documented_errors(parsed(function.__doc__), function))
    return documented if function in public_functions() else documented | raised_in(function, owner)


def documented_errors(docs: Docs, function: Any) -> Iterator[type[BaseException]]:
    """The errors that stand in a docstring, or in one that it refers to."""
    for said in (docs, *referred(docs)):
        for name in said.names("Raises"):
            error = error_named(name, function)
            if inspect.isclass(error) and issubclass(error, BaseException):
                yield error


@functools.cache
def attributes_of(owner: type) -> set[str]:
    """The public attributes of a class: those that its body names with a type, and those that its methods give an instance."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(owner))).body[0]
    assert isinstance(tree, ast.ClassDef)
    found: set[str] = set()
    for node in ast.walk(tree):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        for target in targets:
            for part in ast.walk(target):
                is_own = isinstance(part, ast.Attribute) and isinstance(part.value, ast.Name) and part.value.id == "self"
                if is_own and isinstance(part.ctx, ast.Store):  # type: ignore[union-attr]
                    found.add(part.attr)  # type: ignore[union-attr]
        if node in tree.body and isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found.add(node.target.id)
    return {name for name in found if not name.startswith("_")}


@functools.cache
def foreign_attributes(owner: type) -> set[str]:
    """The attributes that a class has from base classes that aren't ours: others document these."""
    foreign = [
        base for base in owner.__mro__ if not is_ours(base) and base.__module__.partition(".")[0] not in sys.stdlib_module_names
    ]
    sources = [inspect.getsource(base) for base in foreign]
    return {name for source in sources for name in re.findall(r"\bself\.(\w+)", source)} | {
        name for base in foreign for name in dir(base)
    }


@functools.cache
def our_bases(owner: type) -> list[type]:
    """A class and those of its base classes that are ours."""
    return [base for base in owner.__mro__ if is_ours(base)]


def class_entries(owner: type, *sections: str) -> set[str]:
    """What the docstrings of a class and of our classes below it have under some sections."""
    return {name for base in our_bases(owner) for name in parsed(vars(base).get("__doc__")).names(*sections)}


def referred(docs: Docs) -> list[Docs]:
    """The docstrings to which a docstring leaves what it doesn't say itself, and those to which these do."""
    found = []
    for name in SEE.findall(docs.text):
        known = [path for path in public() if f".{path}".endswith(f".{name}")]
        if known:
            other = parsed(plain(public()[known[0]].value).__doc__)
            found += [other, *referred(other)]
    return found


def faults_of_function(found: Public) -> list[str]:
    """What the docstring of a function, method or property doesn't say, or says wrong."""
    function = plain(found.value)
    docs = parsed(function.__doc__)
    # A constructor may leave its arguments to its class.
    if not docs.text and not (found.owner is not None and found.path.endswith(".__init__")):
        return [f"{found.path}: no docstring"]
    faults = list(docs.faults)
    others = referred(docs)
    known = docs.names("Args").union(*(other.names("Args") for other in others))
    if found.path.endswith(".__init__") and found.owner is not None:
        known |= class_entries(found.owner, "Args", "Attributes")
    parameters = parameters_of(function)
    faults += [f"{name} isn't under Args" for name in parameters if name not in known]
    faults += [f"{name} is under Args, and no parameter" for name in sorted(docs.names("Args") - set(parameters))]
    said = docs.names("Raises").union(*(other.names("Raises") for other in others))
    if found.path.endswith(".__init__") and found.owner is not None:
        said |= class_entries(found.owner, "Raises")
    raised = {error for error in raised_in(function, found.owner) if error.__name__ not in IMPOSSIBLE.get(found.path, ())}
    faults += unsaid(raised, said, function)
    for name in docs.names("Raises"):
        if not inspect.isclass(error := error_named(name, function)) or not issubclass(error, BaseException):
            faults.append(f"{name} is under Raises, and there is no such error")
    if (
        inspect.isgeneratorfunction(function)
        and "Yields" not in docs.entries
        and function.__module__.partition(".")[0] == "sseflask"
    ):
        faults.append("what it yields isn't under Yields")
    return [f"{found.path}: {fault}" for fault in faults]


def unsaid(raised: Collection[type[BaseException]], said: set[str], function: Any) -> list[str]:
    """Which errors a docstring doesn't tell of, neither by name nor by that of an error that they are a kind of."""
    told = tuple(error for name in said if inspect.isclass(error := error_named(name, function)))
    return [f"{name} isn't under Raises" for name in sorted(error.__name__ for error in raised if not issubclass(error, told))]


def error_named(name: str, function: Any) -> Any:
    """The error of this name: public, Python's own, or one that the function's module knows."""
    ours = [found.value for path, found in public().items() if path.endswith(f".{name}")]
    if ours:
        return ours[0]
    module, _, last = name.rpartition(".")
    if module:
        return getattr(importlib.import_module(f"sseflask.{module}"), last, None)
    return {**vars(werkzeug.exceptions), **vars(builtins), **function.__globals__}.get(last)


def faults_of_class(found: Public) -> list[str]:
    """What the docstring of a class doesn't say, or says wrong."""
    owner = found.value
    docs = parsed(vars(owner).get("__doc__"))
    if not docs.text or docs.text.startswith(f"{owner.__name__}("):
        # What a dataclass without a docstring gets.
        return [f"{found.path}: no docstring"]
    faults = list(docs.faults)
    if issubclass(owner, enum.Enum):
        source = inspect.getsource(owner)
        said = documented_names(ast.parse(textwrap.dedent(source)).body[0].body, textwrap.dedent(source).splitlines())  # type: ignore[attr-defined]
        return [f"{found.path}.{member.name}: no docstring" for member in owner if not said.get(member.name)] + [
            f"{found.path}: {fault}" for fault in faults
        ]
    described = {member.path.rpartition(".")[2] for member in public().values() if member.owner is owner}
    known = class_entries(owner, "Attributes", "Args")
    there = {name for base in our_bases(owner) for name in attributes_of(base)} - foreign_attributes(owner)
    faults += [f"the attribute {name} isn't under Attributes" for name in sorted(there - known - described)]
    faults += [f"{name} is described twice" for name in sorted(docs.names("Attributes") & described)]
    has = there | {name for base in our_bases(owner) for name in (*vars(base), *getattr(base, "__slots__", ()))}
    faults += [f"{name} is under Attributes, and no attribute" for name in sorted(docs.names("Attributes") - has)]
    parameters = parameters_of(owner.__init__) if dataclasses.is_dataclass(owner) or "__init__" in vars(owner) else []
    faults += [f"{name} is under Args, and no parameter" for name in sorted(docs.names("Args") - set(parameters))]
    if dataclasses.is_dataclass(owner):
        faults += [f"{name} isn't under Args or Attributes" for name in parameters if name not in docs.names("Args", "Attributes")]
        if "__post_init__" in vars(owner):
            faults += unsaid(raised_in(owner.__post_init__, owner), docs.names("Raises"), owner.__post_init__)
    return [f"{found.path}: {fault}" for fault in faults]


def test_there_is_something_to_check() -> None:
    """The tests below look at the real package: its public modules, classes, members, functions and values."""
    names = {module.__name__ for module in public_modules()}
    assert {"sseflask", "sseflask.client", "sseflask.testing", "sseflask.compat.flask_sse", "sseflask.worker"} <= names
    assert {"sseflask.brokers", "sseflask.config"} <= names
    assert {"sseflask.SSE.publish", "sseflask.client.EventSource.last_event_id", "pytest_sseflask.sse_clock"} <= set(functions())
    assert {"sseflask.SSE", "sseflask.brokers.Store", "sseflask.config.Settings"} <= set(classes())
    assert {"sseflask.current_stream", "sseflask.stream_opened"} <= set(values())


@pytest.mark.parametrize("path", functions())
def test_a_function_says_what_it_promises(path: str) -> None:
    """A public function or member has a docstring: each parameter, and each error that it raises itself."""
    faults = faults_of_function(public()[path])
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize("path", classes())
def test_a_class_says_what_it_has(path: str) -> None:
    """A public class has a docstring: each attribute, and what it is made of."""
    faults = faults_of_class(public()[path])
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize("path", values())
def test_a_value_says_what_it_is(path: str) -> None:
    """A public object that is neither has its comment or docstring where it is assigned."""
    assert docs_of_value(path)


@functools.cache
def docstrings() -> dict[str, str]:
    """All docstrings of what is public, by path."""
    found = {path: plain(item.value).__doc__ or "" for path, item in public().items() if path not in values()}
    return found | {path: docs_of_value(path) for path in values()}


def test_names_in_docstrings_exist() -> None:
    """Each member that a docstring names with its class is there."""
    known = {path.rpartition(".")[2]: public()[path].value for path in classes()}
    named = {
        (path, owner, member)
        for path, text in docstrings().items()
        for owner, member in re.findall(r"`(?:sseflask\.)?([A-Z]\w+)\.(\w+)(?:\(\))?`", text)
    }
    assert len(named) > 20
    wrong = [
        f"{path}: {owner}.{member}"
        for path, owner, member in sorted(named)
        if owner not in known or not (hasattr(known[owner], member) or member in class_entries(known[owner], "Args", "Attributes"))
    ]
    assert not wrong


def test_napoleon_reads_what_is_meant() -> None:
    """The extension that makes the reference of docstrings finds the same arguments and errors in them."""
    for path in functions():
        docs = parsed(docstrings()[path])
        lines = str(GoogleDocstring(docs.text, Config(napoleon_use_param=True, napoleon_use_rtype=True), what="method"))
        assert set(re.findall(r"(?m)^:param \\?\*{0,2}(\w+):", lines)) == docs.names("Args"), path
        assert set(re.findall(r"(?m)^:raises ([\w.]+):", lines)) == docs.names("Raises"), path
        assert ":rtype:" not in lines, path


@functools.cache
def described() -> set[str]:
    """What the pages of the reference have directives for."""
    found: set[str] = set()
    for page in REFERENCE.glob("*.md"):
        for kind, name, options in re.findall(r"(?m)^ *\.\. (api-|auto|py:)\w+:: ([\w.]+)\n((?:   :.*\n)*)", page.read_text()):
            module = re.search(r":module: (\S+)", options)
            found.add(f"{module[1]}.{name}" if kind == "py:" and module is not None else name)
    return found


def test_each_public_name_is_in_the_reference() -> None:
    """The pages of the API reference describe each public name, and no other."""
    names = {path for path in public() if public()[path].owner is None}
    assert names - described() == set()
    assert described() - set(public()) == {"sseflask.state.StreamState"}  # what `Stream.state` is


def test_each_member_of_the_reference_is_there() -> None:
    """What a page lists or leaves out of a class's members is a member of it."""
    for page in REFERENCE.glob("*.md"):
        for name, options in re.findall(r"\.\. autoclass:: ([\w.]+)\n((?:   .*\n)*)", page.read_text()):
            told = re.findall(r":(?:exclude-)?members: ((?:.|\n      )*)", options)
            listed = {member for text in told for member in re.findall(r"\w+", text)}
            owner = public()[name].value if listed else object
            assert listed <= set(dir(owner)) | class_entries(owner, "Attributes"), name
