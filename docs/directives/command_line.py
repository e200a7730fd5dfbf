"""The directive `command`: what click knows of a command."""

from __future__ import annotations

import inspect
import re
from typing import Any, Final

import click
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from sseflask import __main__, cli

from .settings import linked

#: The groups of commands, by what is typed for them.
GROUPS: Final[dict[str, click.Group]] = {"flask sse": cli.commands, "python -m sseflask": __main__.main}


def find(name: str) -> click.Command:
    """A command by what is typed for it: `flask sse publish`."""
    group, _, command = name.rpartition(" ")
    return GROUPS[group].commands[command]


def names() -> list[str]:
    """What is typed for each command there is."""
    return [f"{typed} {name}" for typed, group in GROUPS.items() for name in group.commands]


def markdown(name: str) -> str:
    """What is shown of a command: its usage, its help, and its options, each with an anchor."""
    command = find(name)
    context = click.Context(command, info_name=name)
    usage = " ".join([name, *command.collect_usage_pieces(context)])
    arguments = [
        each.make_metavar(context).strip("[]").removesuffix("...") for each in command.params if isinstance(each, click.Argument)
    ]
    lines = [f"```{{program}} {name}", "```", "", "```text", usage, "```", ""]
    paragraphs = inspect.cleandoc(command.help or "").split("\n\n")
    lines += [f"{_marked(' '.join(each.split()), arguments)}\n" for each in paragraphs]
    for option in command.params:
        if isinstance(option, click.Option):
            value = "" if option.is_flag else f" {option.make_metavar(context)}"
            text = " ".join(filter(None, (_marked(option.help or "", arguments), _bound(option), _default(option))))
            lines += [f"```{{option}} {', '.join(option.opts)}{value}", text, "```", ""]
    return "\n".join(lines)


def _marked(text: str, arguments: list[str]) -> str:
    """A help text with options and arguments as code, and links to settings."""
    words = "|".join(map(re.escape, [name for each in arguments for name in (each, each.rstrip("S"))]))
    text = re.sub(rf"(?<![\w`])(--[a-z-]+(?: \d+)?|SSE_[A-Z_]+|-(?= as)|(?:{words or 'URL'})\b)", r"`\1`", text)
    return linked(text)


def _bound(option: click.Option) -> str:
    if isinstance(option.type, click.IntRange | click.FloatRange) and option.type.min is not None:
        return f"{'Above' if option.type.min_open else 'At least'} {option.type.min}."
    return ""


def _default(option: click.Option) -> str:
    return f"Default: {option.default:g}." if isinstance(option.default, float) else ""


class CommandDirective(SphinxDirective):
    """`{command} flask sse publish`: one command."""

    required_arguments = 1
    final_argument_whitespace = True

    def run(self) -> list[nodes.Node]:
        """Its usage, help and options."""
        for module in (cli, __main__):
            self.env.note_dependency(module.__file__)
        self.env.note_dependency(__file__)
        return self.parse_text_to_nodes(markdown(self.arguments[0]))


def setup(app: Sphinx) -> dict[str, Any]:
    """What Sphinx calls."""
    app.add_directive("command", CommandDirective)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
