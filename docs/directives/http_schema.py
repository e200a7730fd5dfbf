"""The directive `schema`, and how what a JSON schema says of an object's fields is shown: `http` uses it too.

What these functions return is Markdown, so that a test can read it without a build.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from .settings import linked

#: Definitions that have sections of their own: the fields of what is one of them aren't shown again.
APART: Final = ("Numbers", "Statistics")
EVENTS: Final = Path(__file__).resolve().parents[1] / "reference/events.schema.json"

Schema = Mapping[str, Any]


def load(path: Path = EVENTS) -> dict[str, Any]:
    """A schema from its file."""
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def names(root: Schema) -> list[str]:
    """The events that the schema of all events describes."""
    return [form["properties"]["event"]["const"] for form in root["oneOf"]]


def inlined(schema: Any, root: Schema) -> Any:
    """A schema with what its references stand for in their place."""
    if isinstance(schema, list):
        return [inlined(each, root) for each in schema]
    if isinstance(schema, dict):
        return {name: inlined(value, root) for name, value in resolved(schema, root).items()}
    return schema


def resolved(schema: Schema, root: Schema) -> Schema:
    """What a schema stands for that may be a reference into its document; its own description counts."""
    while "$ref" in schema:
        found: Any = root
        for name in schema["$ref"].removeprefix("#/").split("/"):
            found = found[name]
        schema = {**found, **{name: value for name, value in schema.items() if name != "$ref"}}
    return schema


def markdown(name: str, root: Schema) -> str:
    """What is shown of a definition: its description, and its fields, or those of its items."""
    schema = root["$defs"][name]
    return "\n".join([schema["description"], "", *fields(schema.get("items", schema), root)])


def fields(schema: Schema, root: Schema, *, indent: str = "") -> list[str]:
    """The fields of an object as a Markdown definition list, line by line; those of each of its forms where it has several."""
    schema = resolved(schema, root)
    lines: list[str] = []
    for form in forms(schema, root):
        if form.get("description"):
            lines += [f"{indent}{form['description']}", ""]
        lines += fields(form, root, indent=indent)
    required = schema.get("required", ())
    for name, found in schema.get("properties", {}).items():
        field = resolved(found, root)
        optional = "" if name in required else ", may be missing"
        text = " ".join(field["description"].split())
        lines += [f"{indent}`{name}` ({kind(field, root)}{optional})", f"{indent}: {text}", ""]
        inner = indent + "  "
        lines += [f"{inner}- {value}" for value in values(field)]
        if values(field):
            lines.append("")
        of_items = resolved(field.get("items", {}), root)
        for nested in (field, of_items):
            if "properties" in nested and found.get("$ref", "").rpartition("/")[2] not in APART:
                lines += fields(nested, root, indent=inner)
    return lines


def forms(schema: Schema, root: Schema) -> Iterator[Schema]:
    """The forms of which an object has one, or which it has all."""
    for word in ("oneOf", "anyOf", "allOf"):
        for form in schema.get(word, ()):
            found = resolved(form, root)
            if "properties" in found:
                yield found


def values(schema: Schema) -> list[str]:
    """The values that a field may have, each with what it means."""
    choices = [choice for word in ("oneOf", "anyOf") for choice in schema.get(word, ())]
    return [f"`{_shown(choice['const'])}`: {choice['description']}" for choice in choices if "const" in choice]


def kind(schema: Schema, root: Schema) -> str:
    """What of JSON a schema asks for, in a few words."""
    schema = resolved(schema, root)
    if "const" in schema:
        return f"`{_shown(schema['const'])}`"
    if "enum" in schema:
        *others, last = [f"`{_shown(value)}`" for value in schema["enum"]]
        return f"{', '.join(others)} or {last}"
    if values(schema):
        others = any("const" not in choice for choice in schema.get("anyOf", ()))
        return "string" if others else "one of these"
    types = schema.get("type", [])
    types = [types] if isinstance(types, str) else types
    if not types:
        return "object" if "properties" in schema or any(True for _ in forms(schema, root)) else "any JSON"
    if types == ["array"]:
        item = kind(schema.get("items", {}), root)
        return "array" if item == "any JSON" else f"array of {item}s" if item.isalpha() else f"array, each {item}"
    bound = _bound(schema)
    return " or ".join(types) + (f", {bound}" if bound else "")


def _bound(schema: Schema) -> str:
    words = ("minimum", "exclusiveMinimum", "maximum", "maxLength", "minLength")
    numbers = {word: f"{schema[word]:,}" for word in words if word in schema}
    if "maximum" in numbers:
        return f"{numbers.get('minimum', 'up')} to {numbers['maximum']}"
    if "maxLength" in numbers:
        return f"{numbers.get('minLength', 0)} to {numbers['maxLength']} characters"
    return f"above {numbers['exclusiveMinimum']}" if "exclusiveMinimum" in numbers else ""


def _shown(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


class SchemaDirective(SphinxDirective):
    """`{schema} NAME`: what events.schema.json says of an event's data, or of another thing that it describes."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """The description, and the fields."""
        root = load()
        self.env.note_dependency(str(EVENTS))
        self.env.note_dependency(__file__)
        return self.parse_text_to_nodes(linked(markdown(self.arguments[0], root)))


def setup(app: Sphinx) -> dict[str, Any]:
    """What Sphinx calls."""
    app.add_directive("schema", SchemaDirective)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
