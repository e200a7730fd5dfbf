"""How the API reference is made of docstrings: what their single backticks mean, and what of a signature is shown."""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from typing import Any, Final

from docutils import nodes
from docutils.parsers.rst.states import Inliner
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.ext.napoleon import GoogleDocstring
from sphinx.pycode import ModuleAnalyzer
from sphinx.util.docutils import SphinxDirective

#: What classes have methods of, and what their texts mean otherwise: the name of an event, or of one of its fields.
NO_MEMBERS: Final = {"progress", "start"}
#: Where names that stand alone are looked for, after the module that is described.
PACKAGE: Final = "sseflask"
#: What a default that stands for the app's setting is shown as.
NOT_GIVEN: Final = re.compile(r"the app's setting|UNSET")
#: A type variable as autodoc shows it.
TYPE_VARIABLE: Final = re.compile(r"~(?:sseflask\.[\w.]*)?\b([A-Z]\w*)(?![\w.])")

#: What type variables stand for to who uses an `EventSource`.
MEANT: Final = {"Given": "str", "Client": "httpx.Client"}


def code(
    name: str, rawtext: str, text: str, lineno: int, inliner: Inliner, options: Any = None, content: Any = None
) -> tuple[list[nodes.Node], list[nodes.system_message]]:
    """The role of a docstring's single backticks: code, and a link where it names something that is documented."""
    env: BuildEnvironment = inliner.document.settings.env
    shown = nodes.literal(rawtext, text, classes=["code"])
    context = {"py:module": env.ref_context.get("py:module"), "py:class": env.ref_context.get("py:class")}
    return [pending_xref(rawtext, shown, reftype="code", refdomain="", reftarget=text, refdoc=env.docname, **context)], []


def resolve(app: Sphinx, env: BuildEnvironment, node: pending_xref, shown: nodes.Element) -> nodes.Element | None:
    """Where a code leads: a setting's place, a public name's, or a member's of the class that it stands in; else nowhere."""
    if node["reftype"] != "code":
        return None
    target = node["reftarget"].removesuffix("()").replace("sse.", "SSE.", 1)
    if re.fullmatch(r"SSE_[A-Z_]+", target):
        found = env.domains.standard_domain.objects.get(("confval", target))
        if found is not None:
            uri = f"{app.builder.get_relative_uri(node['refdoc'], found[0])}#{found[1]}"
            return nodes.reference("", "", shown, internal=True, refuri=uri)
        return shown
    if re.fullmatch(r"[A-Za-z_][\w.]*", target):
        python = env.domains.python_domain
        owner = [f"{node['py:class']}.{target}", f"{node['py:module']}.{node['py:class']}.{target}"] if node["py:class"] else []
        if target in NO_MEMBERS:
            return shown
        # A member is written without its class; a name that begins with a small letter may also be a word of its own.
        places = [f"{node['py:module']}.{target}", f"{PACKAGE}.{target}", target]
        for place in [*owner, *places]:
            known = python.objects.get(place)
            if known is not None and known.objtype not in ("attribute", "module") and known.docname:
                if place.rpartition("#")[0] == node["refdoc"]:
                    return shown
                link = python.resolve_xref(env, node["refdoc"], app.builder, "obj", place, node, shown)
                if link is not None:
                    return link
    return shown


def signature(
    app: Sphinx, what: str, name: str, described: Any, options: Any, shown: str | None, returns: str | None
) -> tuple[str, str] | None:
    """What of a signature is shown: nothing of a constructor of which the page says nothing, and no name of our own making."""
    if shown is None:
        return None
    if name.startswith("pytest_"):
        # A fixture, which nobody calls.
        return "", ""
    if what in ("class", "exception") and not has_arguments(what, described, options):
        return "", ""
    return readable(shown), readable(returns or "")


def readable(shown: str) -> str:
    """A signature without names that say nothing to its readers."""
    shown = TYPE_VARIABLE.sub(lambda found: MEANT.get(found[1], found[1]), NOT_GIVEN.sub("...", shown))
    return shown.replace("Callable[[P], ", "Callable[..., ")


def has_arguments(what: str, described: type, options: Any) -> bool:
    """Whether what is shown of a class says what it is made of: by its arguments, or by attributes of their names."""
    text = inspect.getdoc(described) or ""
    shown = text if options.class_doc_from == "class" else f"{text}\n{inspect.getdoc(described.__init__) or ''}"
    if "\nArgs:\n" in shown or what == "exception":
        return "\nArgs:\n" in shown
    attributes = set(re.findall(r"(?m)^    (\w+): ", text.partition("\nAttributes:\n")[2]))
    parameters = {name for name in inspect.signature(described.__init__).parameters if name not in ("self", "args", "kwargs")}
    return bool(parameters) and parameters <= attributes


def name_source(app: Sphinx, what: str, name: str, described: Any, options: Any, lines: list[str]) -> None:
    """Makes the section `Source` a field beside the others."""
    lines[:] = re.sub(r"(?m)^Source:\n((?:    .*(?:\n|$))+)", source_field, "\n".join(lines)).splitlines()


def source_field(found: re.Match[str]) -> str:
    """The field of a section `Source`."""
    return f":Source: {' '.join(found[1].split())}\n"


def hold_back(app: Sphinx, what: str, name: str, described: Any, options: Any, lines: list[str]) -> None:
    """Keeps a property's or an attribute's docstring from napoleon, which would take its beginning, up to a colon, for a type."""
    if what in ("property", "attribute"):
        app.env.temp_data["sseflask_docstring"] = lines.copy()
        lines.clear()


def give_back(app: Sphinx, what: str, name: str, described: Any, options: Any, lines: list[str]) -> None:
    """Gives it what napoleon makes of a method's."""
    if what in ("property", "attribute"):
        docstring = app.env.temp_data.pop("sseflask_docstring")
        lines[:] = GoogleDocstring(docstring, app.config, app, "method", name, described, options).lines()


def attributes_last(app: Sphinx, what: str, name: str, described: Any, options: Any, lines: list[str]) -> None:
    """Shows a class's attributes after what it is made of, and none that the page leaves out."""
    if what not in ("class", "exception"):
        return
    pieces = re.split(r"(?m)^(?=\.\. attribute:: )", "\n".join(lines))
    texts, attributes = [pieces[0]], []
    for piece in pieces[1:]:
        # What isn't indented any more is text again.
        attribute, *rest = re.split(r"\n(?=[^\s.])", piece, maxsplit=1)
        if attribute.splitlines()[0].removeprefix(".. attribute:: ") not in (options.exclude_members or ()):
            # The type belongs beside the name, not under the text.
            text, _, kind = attribute.rstrip().partition("\n   :type: ")
            first, _, meaning = text.partition("\n")
            beside = [f"   :type: {kind.replace('collections.abc.', '')}"] if kind else []
            attributes.append("\n".join([first, *beside, meaning]))
        texts += rest
    waiting: dict[str, list[str]] = app.env.temp_data.setdefault("sseflask_attributes", {})
    constructor = None if options.class_doc_from == "class" else inspect.getdoc(described.__init__)
    if name in waiting:
        # The docstring before was the class's, this is its constructor's.
        attributes = waiting.pop(name)
    elif constructor not in (None, object.__init__.__doc__):
        waiting[name], attributes = attributes, []
    lines[:] = "\n\n".join([*texts, *attributes, ""]).splitlines()


class DataDirective(SphinxDirective):
    """`api-data`: an object, with its type and the comment `#:` that stand where it is made."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Describes it."""
        path = self.arguments[0]
        module, _, name = path.rpartition(".")
        place = self.place(module, name)
        analyzer = ModuleAnalyzer.for_module(place)
        texts = analyzer.find_attr_docs()
        kind = analyzer.annotations.get(("", name))
        options = [f"   :type: {kind}"] if kind is not None and kind[0].isupper() and "Final" not in kind else []
        lines = [f".. py:data:: {path}", *options, "", *(f"   {line}" for line in texts["", name]), ""]
        return self.parse_text_to_nodes("\n".join(lines))

    def place(self, module: str, name: str) -> str:
        """The module that makes the object of that name."""
        made = vars(importlib.import_module(module))[name]
        for place in [module, *sorted(other for other in sys.modules if other.startswith(f"{PACKAGE}."))]:
            if vars(sys.modules[place]).get(name) is made and ("", name) in ModuleAnalyzer.for_module(place).find_attr_docs():
                return place
        raise self.error(f"nothing is said of {module}.{name} where it is made")


def forget_overloads(app: Sphinx) -> None:
    """Shows the signature that has the defaults, and not those that are there for type checkers."""
    analyzer = ModuleAnalyzer.for_module("sseflask.extension")
    analyzer.analyze()
    analyzer.overloads.clear()


def setup(app: Sphinx) -> dict[str, bool]:
    """Adds the role and the directive, and what listens to autodoc."""
    app.setup_extension("sphinx.ext.autodoc")
    app.add_role("api", code)
    app.add_directive("api-data", DataDirective)
    app.connect("missing-reference", resolve)
    app.connect("autodoc-process-signature", signature)
    app.connect("autodoc-process-docstring", name_source, priority=50)
    app.connect("autodoc-process-docstring", hold_back, priority=100)
    # When napoleon has read the sections.
    app.connect("autodoc-process-docstring", give_back, priority=900)
    app.connect("autodoc-process-docstring", attributes_last, priority=900)
    app.connect("builder-inited", forget_overloads)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
