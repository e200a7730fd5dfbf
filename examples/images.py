"""Images: a job that develops several pictures. Each page that knows its id sees the same, whenever it comes."""

from __future__ import annotations

import importlib.util
import logging
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from flask import Blueprint, Response, abort, current_app, jsonify, render_template, request, send_file, url_for
from flask.blueprints import BlueprintSetupState
from gevent import get_hub, monkey
from werkzeug.datastructures import FileStorage
from werkzeug.exceptions import HTTPException, RequestEntityTooLarge

from sseflask import current_task

from .shelf import Shelf
from .streaming import sse

if TYPE_CHECKING:
    from PIL.Image import Image

bp = Blueprint("images", __name__, url_prefix="/images")
log = logging.getLogger(__name__)
T = TypeVar("T")

MAX_FILES = 24
MAX_BYTES = 12_000_000
MAX_PIXELS = 50_000_000
THUMBNAIL_SIDE = 320
CONTOUR_SIDE = 640
# How pictures of each format begin; what a browser says of a file isn't believed.
FORMATS = {"JPEG": b"\xff\xd8\xff", "PNG": b"\x89PNG\r\n\x1a\n", "GIF": b"GIF8", "WEBP": b"RIFF"}
# What is made of each picture, in this order.
PARTS = {"thumbnail": "thumbnail.jpg", "contour": "contour.png"}


class PictureFailed(Exception):
    """A picture can't be developed, for a reason that its owner may know."""


@bp.record
def set_up(state: BlueprintSetupState) -> None:
    state.app.extensions["images"] = Shelf("images")


@bp.get("/")
def page() -> str:
    limits = {"files": MAX_FILES, "bytes": MAX_BYTES}
    return render_template("images.html", limits=limits, missing=missing(), types="image/jpeg,image/png,image/gif,image/webp")


@bp.post("/jobs")
def start() -> tuple[dict[str, Any], int]:
    """Takes `pictures`, and starts the job that develops them; says which it doesn't take, and why."""
    if (what := missing()) is not None:
        abort(503, what)
    request.max_content_length = MAX_FILES * MAX_BYTES
    uploads = request.files.getlist("pictures")
    if not 1 <= len(uploads) <= MAX_FILES:
        abort(400, f'Send 1 to {MAX_FILES} files as "pictures", in a multipart form.')
    refused = [{"filename": name_of(upload), "error": why} for upload in uploads if (why := reason_against(upload)) is not None]
    taken = [upload for upload in uploads if reason_against(upload) is None]
    if not taken:
        return {"error": "None of these files can be taken.", "error_type": "no_pictures", "refused": refused}, 400
    shelf: Shelf = current_app.extensions["images"]
    folder = shelf.add()
    try:
        for number, upload in enumerate(taken, start=1):
            upload.save(folder / str(number))
        # It goes on when this request is over, whether or not anybody watches, and whichever worker those reach who do.
        task = sse.start(develop, shelf, folder, [name_of(upload) for upload in taken])
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return {"job": task.id, "events": url_for("images.events", job=task.id), "refused": refused}, 201


@bp.get("/jobs/<job>/events")
def events(job: str) -> Response:
    """Where the job and each of its pictures stand, and then what happens; a 404 if nobody knows of it."""
    return sse.task_response(job, retry=1000)


@bp.post("/jobs/<job>/cancel")
def cancel(job: str) -> dict[str, bool]:
    """Asks the job to end. The id can't be guessed, so whoever has it may."""
    task = sse.task(job)
    return {"cancelled": task is not None and task.cancel()}


@bp.get("/jobs/<job>/<int:number>/<part>")
def picture(job: str, number: int, part: str) -> Response:
    shelf: Shelf = current_app.extensions["images"]
    path = shelf.find(job, f"{number}-{PARTS[part]}") if part in PARTS else None
    if path is None:
        abort(404, "There is no such picture, or it isn't kept any more.")
    response = send_file(path, max_age=3600)
    response.cache_control.private = True
    return response


def develop(shelf: Shelf, folder: Path, names: list[str]) -> dict[str, int]:
    """The job: develops each picture. One that fails says so, and the others go on."""
    folder = shelf.name(folder, current_task.id)
    failed = 0
    try:
        # The newest word on each file is kept with the job, so a page that comes later has all of its tiles at once.
        for number, name in enumerate(names, start=1):
            current_task.file_update(str(number), filename=name, status="waiting", progress=0)
        for number, name in enumerate(names, start=1):
            current_task.progress(number - 1, len(names), name)
            try:
                develop_one(folder, number, name)
            except PictureFailed as error:
                failed += 1
                log.warning("a picture can't be developed: %s (%r)", error, error.__cause__)
                current_task.file_update(str(number), filename=name, status="failed", message=str(error))
        current_task.progress(len(names), len(names), "Done.")
        return {"done": len(names) - failed, "failed": failed}
    finally:
        # Also when the job was cancelled: `StreamClosed` was raised wherever it waited. What is done is kept for a while.
        for number in range(1, len(names) + 1):
            (folder / str(number)).unlink(missing_ok=True)


def develop_one(folder: Path, number: int, name: str) -> None:
    """Makes the parts of one picture, and tells of each when it is there."""
    source = folder / str(number)
    for made, (part, file) in enumerate(PARTS.items()):
        progress = 100 * made // len(PARTS)
        current_task.file_update(str(number), filename=name, status="running", progress=progress, message=part)
        beside(partial(make_part, source, part, folder / f"{number}-{file}"))
    current_task.file_update(str(number), filename=name, status="done", progress=100)


def beside(function: Callable[[], T]) -> T:
    """Calls a function that computes for long and uses neither Flask nor sseflask.

    All streams of a gevent worker share one thread. Pillow's work can't be cut in pieces, so it is done in another thread, for
    which this job alone waits.
    """
    if not monkey.is_module_patched("threading"):
        return function()  # Here each stream has a thread of its own.

    def result() -> tuple[T | None, Exception | None]:
        try:
            return function(), None
        except Exception as error:
            # Brought over by hand: gevent prints what is raised there.
            return None, error

    value, error = get_hub().threadpool.apply(result)
    if error is not None:
        raise error
    return value  # type: ignore[return-value]


def make_part(source: Path, part: str, target: Path) -> None:
    """Writes one part of a picture to a file.

    Raises:
        PictureFailed: The picture is damaged, or too large.
    """
    from PIL import ImageDraw, ImageFilter

    try:
        if part == "thumbnail":
            reduced(source, THUMBNAIL_SIDE).save(target, quality=85)
        else:
            contour = reduced(source, CONTOUR_SIDE).convert("L").filter(ImageFilter.CONTOUR)
            # The outermost pixels have no neighbours to differ from: the filter leaves them as they were.
            ImageDraw.Draw(contour).rectangle((0, 0, contour.width - 1, contour.height - 1), outline="white")
            contour.save(target)
    except PictureFailed:
        raise
    except Exception as error:
        # Of what Pillow raises for damaged files hardly anything is documented.
        raise PictureFailed("This picture is damaged, and can't be read.") from error


def reduced(source: Path, side: int) -> Image:
    """A picture on white, the right way up, with at most so many pixels a side."""
    from PIL import Image, ImageOps

    with Image.open(source, formats=tuple(FORMATS)) as image:
        # Only its head has been read so far: a small file can have more pixels than the machine has memory.
        if image.width * image.height > MAX_PIXELS:
            raise PictureFailed(f"This picture has more than {MAX_PIXELS // 1_000_000} million pixels.")
        image.draft("RGB", (2 * side, 2 * side))  # A JPEG file can be read at an eighth of its size, much faster.
        small = ImageOps.exif_transpose(image)
        small.thumbnail((side, side))
        small = small.convert("RGBA")
    paper = Image.new("RGB", small.size, "white")
    paper.paste(small, mask=small)
    return paper


def reason_against(upload: FileStorage) -> str | None:
    """Why a file isn't taken; None if it is."""
    stream = upload.stream
    head = stream.read(12)
    size = stream.seek(0, 2)
    stream.seek(0)
    if not size:
        return "The file is empty."
    if size > MAX_BYTES:
        return f"The file has more than {MAX_BYTES // 1_000_000} MB."
    if not head.startswith(tuple(FORMATS.values())):
        return "This is no JPEG, PNG, GIF or WebP picture."
    return None


def name_of(upload: FileStorage) -> str:
    """A file's name, to be shown and never to be opened."""
    return (upload.filename or "").replace("\\", "/").rpartition("/")[2][:120] or "a picture"


def missing() -> str | None:
    """What this example needs and hasn't; None if it may go on."""
    if importlib.util.find_spec("PIL") is None:
        return "Pillow isn't installed: pip install 'sseflask[examples]'"
    return None


@bp.errorhandler(RequestEntityTooLarge)
def too_large(error: RequestEntityTooLarge) -> tuple[Response, int]:
    most = f"{MAX_FILES} pictures of {MAX_BYTES // 1_000_000} MB are the most."
    return jsonify(error=most, error_type="request_entity_too_large"), 413


@bp.errorhandler(HTTPException)
def refused(error: HTTPException) -> tuple[Response, int]:
    return jsonify(error=error.description, error_type=error.name.lower().replace(" ", "_")), error.code or 500
