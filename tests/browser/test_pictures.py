"""The program that takes the documentation's pictures still finds its way through the pages."""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser

from tests.browser import pictures


def test_a_picture_is_taken_from_the_running_page(chromium: Browser, tmp_path: Path) -> None:
    """The picture of the images example shows the page from its top to its last tile, in few colours."""
    png = pictures.take(chromium, "images", tmp_path)
    image = Image.open(io.BytesIO(png))
    assert image.format == "PNG" and image.mode == "P"
    assert image.width == pictures.PICTURES["images"].width
    assert 800 < image.height < pictures.HEIGHT
    # The tiles have the drawings' own colours: they have been uploaded, developed and loaded.
    colours = {tuple(colour) for _, colour in image.convert("RGB").getcolors(1000) or []}
    assert len(colours) > 100
    assert len(png) < 80_000
