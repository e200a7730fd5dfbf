"""The program that takes the documentation's pictures still finds its way through the pages."""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser

from tests.browser import pictures


def test_a_picture_is_taken_from_the_running_page(chromium: Browser, tmp_path: Path) -> None:
    """The picture of the board shows it from its top to the facts below the columns, in few colours."""
    png = pictures.take(chromium, "board", tmp_path)
    image = Image.open(io.BytesIO(png))
    assert image.format == "PNG" and image.mode == "P"
    assert image.width == pictures.PICTURES["board"].width
    assert 600 < image.height < 900
    # All of it is painted: the head's ground, the page's, and the columns'.
    grounds = [image.convert("RGB").getpixel(place) for place in ((5, 5), (5, image.height - 5), (30, 280))]
    assert len(set(grounds)) == 3
    assert len(png) < 60_000
