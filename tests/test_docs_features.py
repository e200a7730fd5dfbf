"""docs/compare/features.md: each entry of its tables has a source, and each source is one of the product that it speaks of."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs/compare/features.md").read_text()
TABLES, SOURCES = PAGE.split("\n## Sources\n")

# What a reader sees to be so without a source.
EVIDENT = {"*not examined*", "Go", "C"}


def rows() -> list[tuple[str, list[str]]]:
    """The tables' rows: the product, and what is said of it."""
    found = re.findall(r"^\| \*\*(.+?)\*\* \| (.+) \|$", TABLES, re.MULTILINE)
    return [(product, cells.split(" | ")) for product, cells in found]


def sources() -> dict[str, dict[int, str]]:
    """Each product's sources, by their numbers."""
    parts = re.split(r"^### (.+)$", SOURCES, flags=re.MULTILINE)[1:]
    return {
        product: {int(number): text for number, text in re.findall(r"^\[\^(\d+)\]: (.+(?:\n    .+)*)", part, re.MULTILINE)}
        for product, part in zip(parts[::2], parts[1::2], strict=True)
    }


def references(text: str) -> set[int]:
    """The numbers of the sources that a text refers to."""
    return {int(number) for number in re.findall(r"\[\^(\d+)\](?!:)", text)}


def test_each_table_has_all_products() -> None:
    """Each table has a row for each product, in the order of the sources, and as many cells as its head."""
    products = list(sources())
    heads = re.findall(r"^\|  \|(.+)\|$", TABLES, re.MULTILINE)
    found = rows()
    assert len(products) == 8 and len(heads) == 6
    assert [product for product, _ in found] == products * len(heads)
    for index, (product, cells) in enumerate(found):
        assert len(cells) == len(heads[index // len(products)].split("|")), product


def test_each_entry_has_a_source() -> None:
    """Each cell refers to a source of its own product, unless nothing was examined."""
    known = sources()
    for product, cells in rows():
        for cell in cells:
            assert cell in EVIDENT or references(cell), f"{product}: {cell}"
            assert references(cell) <= set(known[product]), f"{product}: {cell}"


def test_each_source_is_used() -> None:
    """Each source is referred to."""
    assert references(TABLES) == {number for found in sources().values() for number in found}


@pytest.mark.parametrize("named", sorted(set(re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", SOURCES))), ids=lambda named: named[1])
def test_the_tests_that_are_sources_exist(named: tuple[str, str]) -> None:
    """Each test that is named as a source is there."""
    path, name = named
    assert name in {getattr(node, "name", None) for node in ast.parse((ROOT / path).read_text()).body}
