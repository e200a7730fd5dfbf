"""What the README and the docs say is so: their commands exist, their tables are complete. Their code is run by tests/docs."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest

from docs.directives import settings
from sseflask import __main__, cli
from sseflask.brokers import open_store
from sseflask.config import Settings

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(page: Path) -> list[str]:
    """The Python code of a page, block by block."""
    return re.findall(r"^```python\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)


def test_the_readme_app_streams() -> None:
    """The README's first app yields what it says."""
    namespace: dict[str, object] = {"__name__": "docs_readme"}
    source = blocks(ROOT / "README.md")[0].replace("time.sleep(1)", "time.sleep(0)")
    exec(compile(source, "README.md", "exec"), namespace)
    client = namespace["app"].test_client()  # type: ignore[attr-defined]
    text = client.get("/count").get_data(as_text=True)
    assert text == "".join(f'data: {{"count":{n}}}\n\n' for n in range(10))


def test_the_publisher_of_the_docs_reaches_the_app(tmp_path: Path) -> None:
    """What docs/reference/brokers.md publishes from elsewhere is in the app's channel, and closes it."""
    namespace: dict[str, Any] = {"__name__": "docs_brokers"}
    for block in blocks(ROOT / "docs/reference/brokers.md"):
        exec(compile(block.replace("/var/lib/shop", str(tmp_path)), "brokers.md", "exec"), namespace)
    event_id = namespace["ship"](7)
    assert namespace["ship"](7) == event_id
    namespace["close_shop"]()
    store = open_store(Settings(), namespace["app"].config["SSE_BROKER_URL"])
    reading = store.read({"orders": 0})["orders"]
    store.close()
    assert [(entry.name, entry.is_end) for entry in reading.entries] == [("shipped", False), ("stream-end", True)]


TOLD = sorted({line for page in PAGES for line in re.findall(r"(?:flask sse|-m sseflask) [a-z][^\n#]*", page.read_text())})


@pytest.mark.parametrize("line", TOLD)
def test_each_command_of_the_docs_exists(line: str) -> None:
    """Each `flask sse …` and `python -m sseflask …` that the pages tell people to type is there, with its options."""
    _, name, *rest = re.split(r"flask sse |-m sseflask | ", line, maxsplit=2)
    group = cli.commands if line.startswith("flask") else __main__.main
    command = group.commands[re.findall(r"[a-z-]+", name)[0]]
    known = {option for parameter in command.params for option in parameter.opts}
    assert set(re.findall(r"(?<!\S)--[a-z-]+", " ".join(rest))) <= known


def test_each_make_command_of_the_readme_exists() -> None:
    """Each `make …` that the README tells people to type is in the Makefile."""
    told = set(re.findall(r"`make ([a-z-]+)`", (ROOT / "README.md").read_text()))
    there = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert told and told <= there


def test_each_setting_is_documented_with_its_default() -> None:
    """docs/reference/settings.md has each setting, with its default."""
    blocks = re.findall(r"^```\{settings\}\n(.*?)^```", (ROOT / "docs/reference/settings.md").read_text(), re.DOTALL | re.MULTILINE)
    told = [line.split(" ")[0] for block in blocks for line in block.splitlines()]
    shown = {name: settings.markdown(settings.settings()[name]) for name in told}
    assert len(told) == len(shown)

    def written(value: object) -> str:
        if isinstance(value, float):
            return f"{value:g}"
        return f'"{value}"' if isinstance(value, str) else "[]" if value == () else str(value)

    rows = {name: re.findall(r"^:default: `(.*?)`", text, re.MULTILINE) for name, text in shown.items()}
    assert rows == {f"SSE_{field.name.upper()}": [written(field.default)] for field in dataclasses.fields(Settings)}
