"""The directive `route`: what docs/reference/openapi.yaml says of a route. Its page is docs/reference/http.md."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import yaml
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from . import http_schema
from .settings import linked

DOCUMENT: Final = Path(__file__).resolve().parents[1] / "reference/openapi.yaml"
METHODS: Final = ("get", "post", "put", "delete", "patch")
#: Where what a schema describes has its own section, and what it is called there.
SECTIONS: Final = {
    "Error": "a [refusal](events.md#refusals)",
    "Published": "[`id`](events.md#what-publishing-answers)",
    "Statistics": "[statistics](#statistics)",
}
#: Who may use a route, by the ways to show that one may.
ALLOWED: Final = {
    "": "Open to anyone.",
    "bearer query cookie": "Needs the app's rule, a public channel or a token.",
    "bearer query": "Needs the app's rule or a token, which can't be a cookie.",
}


Document = Mapping[str, Any]


def load() -> dict[str, Any]:
    """The document."""
    found: dict[str, Any] = yaml.safe_load(DOCUMENT.read_text())
    return found


def routes(document: Document) -> list[str]:
    """All routes, as the directive names them: `GET /{channel}`."""
    return [f"{method.upper()} {path}" for path, item in document["paths"].items() for method in item if method in METHODS]


def markdown(route: str, document: Document) -> str:
    """What is shown of a route."""
    method, _, path = route.partition(" ")
    item = document["paths"][path]
    operation = item[method.lower()]
    prefix = document["servers"][0]["url"]
    lines = ["```text", f"{method} {prefix}{path}", "```", "", f"{operation['summary']}. {_allowed(operation, document)}", ""]
    parameters = [http_schema.resolved(each, document) for each in [*item.get("parameters", ()), *operation.get("parameters", ())]]
    if parameters:
        lines += ["**Parameters**", ""]
    for parameter in parameters:
        schema = parameter["schema"]
        must = "" if parameter.get("required") else ", may be missing"
        what = http_schema.kind(schema, document)
        about = http_schema.resolved(schema.get("items", schema), document).get("description", "")
        text = " ".join(filter(None, (parameter.get("description", ""), about, _default(schema))))
        lines += [f"`{parameter['name']}` ({parameter['in']}, {what}{must})", f": {text}", ""]
    if (body := operation.get("requestBody")) is not None:
        lines += ["**Body**", "", body["description"], ""]
        lines += list(_content(body["content"], document))
    answers = {status: http_schema.resolved(answer, document) for status, answer in operation["responses"].items()}
    lines += ["**Answers**", "", "| status | when | with |", "|---|---|---|"]
    lines += [f"| `{status}` | {_line(answer['description'])} | {_with(answer)} |" for status, answer in answers.items()]
    lines.append("")
    told: list[str] = []
    for answer in answers.values():
        details = list(_content(answer.get("content", {}), document))
        if any(line.startswith(("-", ":")) for line in details) and details != told:
            # Two answers may have the same body, which is then shown once.
            lines += details
            told = details
    return linked("\n".join(lines))


def component(name: str, document: Document) -> str:
    """What is shown of a schema that has a section of its own."""
    schema = document["components"]["schemas"][name]
    return linked("\n".join([schema["description"], "", *http_schema.fields(schema, document)]))


def _allowed(operation: Document, document: Document) -> str:
    ways = operation.get("security", document["security"])
    return ALLOWED[" ".join(name for way in ways for name in way)]


def _line(text: str) -> str:
    return " ".join(text.split())


def _with(answer: Document) -> str:
    """What an answer has besides its status: the types of its body, and headers of its own."""
    parts = [f"`{kind}`" if (section := _section(found)) is None else section for kind, found in answer.get("content", {}).items()]
    parts += [f"`{name}`" for name in answer.get("headers", {})]
    return ", ".join(parts)


def _section(found: Document) -> str | None:
    """Where the content of a body is described, if that is elsewhere."""
    schema = found["schema"]
    names = [each["$ref"].rpartition("/")[2] for each in (schema, *schema.get("allOf", ())) if "$ref" in each]
    needed = [f"`{name}`" for each in schema.get("allOf", ()) for name in each.get("required", ())]
    return next((" with ".join([SECTIONS[name], *needed]) for name in names if name in SECTIONS), None)


def _content(content: Document, document: Document) -> Iterator[str]:
    """The forms of a body, each with what is in it, but for those that are described elsewhere."""
    for kind, found in content.items():
        if "x-events" in found:
            yield f"`{kind}`, of these events:"
            yield ""
            for name, event in found["x-events"].items():
                yield f"- {'others' if name == '*' else f'[`{name}`](events.md#{name})'}: {_line(event['description'])}"
            yield ""
        elif _section(found) is None:
            fields = http_schema.fields(found["schema"], document)
            yield f"`{kind}`, {'an object of these fields:' if fields else http_schema.kind(found['schema'], document)}"
            yield ""
            yield from fields


def _default(schema: Document) -> str:
    return f"Without it {schema['default']}." if "default" in schema else ""


class RouteDirective(SphinxDirective):
    """`{route} GET /{channel}`: one route."""

    required_arguments = 1
    final_argument_whitespace = True

    def run(self) -> list[nodes.Node]:
        """Its parameters, body and answers."""
        return _shown(self, markdown(self.arguments[0], load()))


class ComponentDirective(SphinxDirective):
    """`{component} Statistics`: one schema of the document."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """The description, and the fields."""
        return _shown(self, component(self.arguments[0], load()))


def _shown(directive: SphinxDirective, text: str) -> list[nodes.Node]:
    for path in (str(DOCUMENT), __file__, http_schema.__file__):
        directive.env.note_dependency(path)
    return directive.parse_text_to_nodes(text)


def setup(app: Sphinx) -> dict[str, Any]:
    """What Sphinx calls."""
    app.add_directive("route", RouteDirective)
    app.add_directive("component", ComponentDirective)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
