"""docs/start/examples.md has each example, with a picture, and addresses that exist."""

from __future__ import annotations

import re
import struct
from pathlib import Path

from examples import create_app
from examples.catalogue import EXAMPLES

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs/start/examples.md"
PICTURES = PAGE.parent / "pictures"
PICTURE = re.compile(r"^!\[([^\]]*)\]\(pictures/([\w-]+)\.png\)$", re.MULTILINE)
ADDRESS = re.compile(r"`curl ([^`]*?)'?(http://127\.0\.0\.1:8000)(/[^`?' ]*)")
MOST_BYTES = 1_000_000


def sections() -> dict[str, str]:
    """The page's sections by their titles."""
    parts = re.split(r"^## (.+)$", PAGE.read_text(), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_each_example_has_a_section_with_its_picture() -> None:
    """In the catalogue's order: a picture that is there and says in words what it shows, the example's own code, what to try."""
    found = sections()
    assert list(found) == [example.title for example in EXAMPLES]
    for example in EXAMPLES:
        text = found[example.title]
        ((alt, name),) = PICTURE.findall(text)
        assert name == example.name and len(alt) > 30, example.title
        assert re.search(rf"^```{{literalinclude}} \.\./\.\./examples/{example.name}\.py$", text, re.MULTILINE), example.title
        assert "**Try:**" in text, example.title
    (picture,) = PICTURE.findall(PAGE.read_text().partition("\n## ")[0])
    assert picture[1] == "index"


def test_the_pictures_are_small() -> None:
    """Each is a PNG of about the width of a page; there are no others, and all together have less than a megabyte."""
    files = sorted(PICTURES.iterdir())
    assert {file.stem for file in files} == {"index", *(example.name for example in EXAMPLES)}
    for file in files:
        head = file.read_bytes()[:24]
        assert head.startswith(b"\x89PNG\r\n\x1a\n"), file.name
        width, height = struct.unpack(">II", head[16:])
        assert 880 <= width <= 1200 and 500 <= height <= 1600, file.name
    assert sum(file.stat().st_size for file in files) < MOST_BYTES


def test_each_address_of_the_page_is_a_route_of_the_examples() -> None:
    """What the page tells people to ask for with curl is answered."""
    routes = create_app().url_map.bind("127.0.0.1:8000")
    told = ADDRESS.findall(PAGE.read_text())
    assert len(told) >= 3
    for _, _, path in told:
        assert routes.match(path, method="GET"), path
