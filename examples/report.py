"""A room where people write; leaving it starts a report of what was said, as an Excel file, which can be watched."""

from __future__ import annotations

import importlib.util
import re
import shutil
import threading
import time
from collections import Counter, deque
from collections.abc import Generator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flask import Blueprint, Response, abort, current_app, jsonify, render_template, request, send_file, url_for
from flask.blueprints import BlueprintSetupState
from werkzeug.exceptions import HTTPException

from sseflask import ServerSentEvent, current_task

from .shelf import Shelf
from .streaming import sse

if TYPE_CHECKING:
    from openpyxl.worksheet.worksheet import Worksheet

bp = Blueprint("report", __name__, url_prefix="/report")

CHANNEL = "report/room"
FILE = "report.xlsx"
MAX_BYTES = 4096
MAX_AUTHOR, MAX_TEXT = 40, 500
KEPT_MESSAGES = 1000
WORD = re.compile(r"[^\W\d_]{4,}")
# Words that say nothing of what was spoken about.
COMMON = frozenset(
    "about after again also and been before from have here into just more only over that than then there they this "
    "under were what when where which will with would your".split()
)

# What was written last night, before any visitor came: hour, minute, who, and what.
NIGHT = (
    (21, 5, "Ines", "Lamp lit. The sea is calm, and the wind comes from the west."),
    (22, 40, "Ruth", "The supply boat has asked for the depth at the landing."),
    (23, 15, "Ines", "Told the supply boat: four metres at high water."),
    (2, 10, "Tomas", "Fog from the north. The horn is on."),
    (2, 25, "Ruth", "The fog is so thick that I can't see the landing."),
    (2, 30, "Tomas", "A trawler asks where she is. I gave her our bearing."),
    (2, 50, "Tomas", "The trawler has seen the lamp."),
    (4, 5, "Ines", "The fog lifts. The horn is off."),
    (6, 30, "Ruth", "Lamp out. Breakfast."),
)


@dataclass(frozen=True)
class Message:
    """What somebody has said; the number tells a page what it has already."""

    number: int
    author: str
    text: str
    at: float


class Room:
    """What was said in the room of one app. It stands for the tables of a database, and begins anew with the server.

    Each worker would have a room of its own: serve this example with one.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._messages: deque[Message] = deque(maxlen=KEPT_MESSAGES)
        self._number = 0
        today = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
        for hour, minute, author, text in NIGHT:
            day = today - timedelta(days=2 if hour > 12 else 1)
            self.add(author, text, at=(day + timedelta(hours=hour, minutes=minute)).timestamp())

    def add(self, author: str, text: str, *, at: float) -> Message:
        with self._lock:
            self._number += 1
            self._messages.append(message := Message(self._number, author, text, at))
            return message

    def messages(self) -> list[Message]:
        with self._lock:
            return list(self._messages)


@bp.record
def set_up(state: BlueprintSetupState) -> None:
    state.app.extensions["report_room"] = Room()
    state.app.extensions["reports"] = Shelf("reports")


@bp.get("/")
def page() -> str:
    return render_template("report.html", missing=missing(), max_author=MAX_AUTHOR, max_text=MAX_TEXT)


# The room


@bp.get("/events")
def events() -> Response:
    """What has been said, and what is being said."""
    room: Room = current_app.extensions["report_room"]

    def snapshot() -> ServerSentEvent:
        return ServerSentEvent({"messages": [asdict(message) for message in room.messages()]}, event="room")

    return sse.subscribe(CHANNEL, snapshot=snapshot, retry=1000)


@bp.post("/messages")
def say() -> tuple[dict[str, int], int]:
    """Says `{"author": "…", "text": "…"}` in the room."""
    request.max_content_length = MAX_BYTES
    match request.get_json(silent=True):
        case {"author": str(author), "text": str(text)} if (author := plain(author)) and (text := plain(text)):
            pass
        case _:
            abort(400, 'Send {"author": "…", "text": "…"} as JSON.')
    if len(author) > MAX_AUTHOR or len(text) > MAX_TEXT:
        abort(413, f"A name may have {MAX_AUTHOR} characters, a message {MAX_TEXT}.")
    room: Room = current_app.extensions["report_room"]
    message = room.add(author, text, at=round(time.time(), 3))
    sse.publish(asdict(message), channel=CHANNEL, event="message")
    return {"number": message.number}, 201


# The report


@bp.post("/reports")
def leave() -> tuple[dict[str, str], int]:
    """What a page asks for when its visitor leaves the room: starts a report of all that was said there."""
    request.max_content_length = MAX_BYTES
    if not request.is_json:
        abort(415, "Send {} as JSON.")  # Another site's form can't.
    if (what := missing()) is not None:
        abort(503, what)
    room: Room = current_app.extensions["report_room"]
    shelf: Shelf = current_app.extensions["reports"]
    folder = shelf.add()
    try:
        # It goes on when the visitor is gone. Who comes back with its id, to whichever worker, sees where it stands.
        task = sse.start(write_report, shelf, folder, room.messages())
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return {"job": task.id, "events": url_for("report.progress", job=task.id)}, 201


@bp.get("/reports/<job>/events")
def progress(job: str) -> Response:
    """Where a report stands, and then what happens to it; a 404 if nobody knows of it."""
    return sse.task_response(job, retry=1000)


@bp.post("/reports/<job>/cancel")
def cancel(job: str) -> dict[str, bool]:
    """Asks for the end of a report. The id can't be guessed, so whoever has it may."""
    task = sse.task(job)
    return {"cancelled": task is not None and task.cancel()}


@bp.get(f"/reports/<job>/{FILE}")
def download(job: str) -> Response:
    shelf: Shelf = current_app.extensions["reports"]
    path = shelf.find(job, FILE)
    if path is None:
        abort(404, "There is no such report, or it isn't kept any more.")
    return send_file(path, as_attachment=True)


def write_report(shelf: Shelf, folder: Path, messages: Sequence[Message]) -> Generator[ServerSentEvent, None, dict[str, Any]]:
    """The job: what it yields its pages get as events, and what it returns is the result, in `task_completed`."""
    from openpyxl import Workbook

    folder = shelf.name(folder, current_task.id)
    is_done = False

    def status(step: int, message: str) -> ServerSentEvent:
        # The newest progress is kept with the job: a page that comes later gets it first.
        current_task.progress(step, 4, message)
        return ServerSentEvent({"step": step, "message": message}, event="EXCEL_STATUS")

    try:
        yield status(0, f"Counting {len(messages)} messages")
        pause()
        summary = summary_of(messages)
        book = Workbook()
        yield status(1, "Writing the sheet “Summary”")
        pause()
        write_summary(book.active, summary)
        yield status(2, "Writing the sheet “Messages”")
        pause()
        write_messages(book.create_sheet(), messages)
        yield status(3, "Saving the file")
        pause()
        book.save(folder / FILE)
        current_task.progress(4, 4, "Done.")
        size = (folder / FILE).stat().st_size
        is_done = True
        yield ServerSentEvent({"file": FILE, "bytes": size, "sheets": book.sheetnames}, event="EXCEL_STATUS_END")
        return {**summary, "file": FILE, "bytes": size}
    finally:
        # When it was cancelled, `StreamClosed` was raised in a pause, or at a `yield`.
        if not is_done:
            shutil.rmtree(folder, ignore_errors=True)


def pause() -> None:
    """A report of so little is written in a moment: it is slowed down to be watched."""
    time.sleep(0.7)


def summary_of(messages: Sequence[Message]) -> dict[str, Any]:
    """Who said how much, when most was said, and about what."""
    said = Counter(message.author for message in messages)
    words_by = Counter[str]()
    hours: Counter[int] = Counter()
    words: Counter[str] = Counter()
    for message in messages:
        words_by[message.author] += len(message.text.split())
        hours[datetime.fromtimestamp(message.at, UTC).hour] += 1
        words.update(word for word in map(str.lower, WORD.findall(message.text)) if word not in COMMON)
        time.sleep(0)  # All streams of a worker share one thread: give way.
    busiest = max(hours, key=lambda hour: (hours[hour], -hour), default=None)
    return {
        "messages": len(messages),
        "authors": [{"author": name, "messages": count, "words": words_by[name]} for name, count in _ranked(said)],
        "busiest_hour": busiest,
        "in_busiest_hour": hours[busiest] if busiest is not None else 0,
        "words": [{"word": word, "count": count} for word, count in _ranked(words)[:10]],
    }


def _ranked(counter: Counter[str]) -> list[tuple[str, int]]:
    return sorted(counter.items(), key=lambda item: (-item[1], item[0]))


def write_summary(sheet: Worksheet, summary: dict[str, Any]) -> None:
    """Fills the first sheet."""
    sheet.title = "Summary"
    busiest = summary["busiest_hour"]
    write_row(sheet, ["Messages", summary["messages"]])
    write_row(sheet, ["Busiest hour (UTC)", f"{busiest:02}:00" if busiest is not None else "–", summary["in_busiest_hour"]])
    write_row(sheet, [])
    write_row(sheet, ["Author", "Messages", "Words"], is_head=True)
    for author in summary["authors"]:
        write_row(sheet, list(author.values()))
    write_row(sheet, [])
    write_row(sheet, ["Word", "Times"], is_head=True)
    for word in summary["words"]:
        write_row(sheet, list(word.values()))
    sheet.column_dimensions["A"].width = 26


def write_messages(sheet: Worksheet, messages: Sequence[Message]) -> None:
    """Fills the second sheet."""
    sheet.title = "Messages"
    write_row(sheet, ["Time (UTC)", "Author", "Message"], is_head=True)
    for message in messages:
        # Excel knows no time zones.
        at = datetime.fromtimestamp(message.at, UTC).replace(microsecond=0, tzinfo=None)
        write_row(sheet, [at, message.author, message.text])
        time.sleep(0)
    sheet.freeze_panes = "A2"
    for column, width in {"A": 20, "B": 18, "C": 90}.items():
        sheet.column_dimensions[column].width = width


def write_row(sheet: Worksheet, values: Sequence[Any], *, is_head: bool = False) -> None:
    from openpyxl.styles import Font

    sheet.append(values)
    for cell, value in zip(sheet[sheet.max_row] if values else (), values, strict=False):
        if isinstance(value, str):
            # What somebody wrote is text, also if it begins with "=": else it would be a formula on the reader's machine.
            cell.data_type = "s"
        if is_head:
            cell.font = Font(bold=True)


def plain(text: str) -> str:
    """A text on one line, without the characters that no Excel file can hold."""
    return " ".join("".join(character if character.isprintable() else " " for character in text).split())


def missing() -> str | None:
    """What this example needs and hasn't; None if it may go on."""
    if importlib.util.find_spec("openpyxl") is None:
        return "openpyxl isn't installed: pip install 'sseflask[examples]'"
    return None


@bp.errorhandler(HTTPException)
def refused(error: HTTPException) -> tuple[Response, int]:
    return jsonify(error=error.description, error_type=error.name.lower().replace(" ", "_")), error.code or 500
