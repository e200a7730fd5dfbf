"""A board that every visitor may change: it starts from a snapshot, live moves follow, and nothing falls in between."""

from __future__ import annotations

import threading
from dataclasses import asdict, dataclass, replace
from typing import Any

from flask import Blueprint, Response, abort, current_app, jsonify, render_template, request
from flask.blueprints import BlueprintSetupState
from werkzeug.exceptions import HTTPException

from sseflask import ServerSentEvent

from .streaming import sse

bp = Blueprint("board", __name__, url_prefix="/board")

COLUMNS = {"waiting": "Waiting", "doing": "In hand", "done": "Done"}
CARDS = {
    "lens": ("Polish the lens", "doing"),
    "oil": ("Fetch oil from the cellar", "waiting"),
    "log": ("Write up the night's log", "waiting"),
    "stairs": ("Mend the ninth stair", "waiting"),
    "radio": ("Answer the mainland", "doing"),
    "rail": ("Paint the gallery rail", "waiting"),
    "clock": ("Wind the clockwork", "done"),
}
MAX_BYTES = 1024


@dataclass(frozen=True)
class Card:
    """A card, and the number of the move that brought it where it is: the order of a column, and which news is newer."""

    id: str
    title: str
    column: str
    version: int


class Board:
    """The cards of one app. It stands for the tables of a database; this one begins anew with each start of the server."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._version = len(CARDS)
        self._cards = {name: Card(name, *card, version) for version, (name, card) in enumerate(CARDS.items(), start=1)}

    def cards(self) -> list[Card]:
        with self._lock:
            return sorted(self._cards.values(), key=lambda card: card.version)

    def move(self, name: str, column: str) -> Card | None:
        """Puts a card at the end of a column. Returns it as it is now, or None if it was there already."""
        with self._lock:
            if self._cards[name].column == column:
                return None
            self._version += 1
            self._cards[name] = moved = replace(self._cards[name], column=column, version=self._version)
            return moved


@bp.record
def set_up(state: BlueprintSetupState) -> None:
    state.app.extensions["board"] = Board()


@bp.get("/")
def page() -> str:
    return render_template("board.html", columns=COLUMNS)


@bp.get("/events")
def events() -> Response:
    """The whole board, then each move."""
    board: Board = current_app.extensions["board"]

    def snapshot() -> ServerSentEvent:
        return ServerSentEvent({"cards": [asdict(card) for card in board.cards()]}, event="board")

    # First the position in the channel is taken, then the snapshot. So a move that comes between the two is in both, and never
    # in neither. A page that was away for a moment gets only the moves that it has missed; the snapshot comes again after a reset.
    return sse.subscribe("board", snapshot=snapshot, retry=1000)


@bp.post("/cards/<name>")
def move(name: str) -> dict[str, Any]:
    """Moves a card to `{"column": "done"}`."""
    request.max_content_length = MAX_BYTES
    board: Board = current_app.extensions["board"]
    if name not in CARDS:
        abort(404, "There is no such card.")
    match request.get_json(silent=True):
        case {"column": str(column)} if column in COLUMNS:
            pass
        case _:
            abort(400, f'Send {{"column": "…"}} as JSON, with one of: {", ".join(COLUMNS)}.')
    moved = board.move(name, column)
    if moved is not None:
        # The event says where the card is now, not how it got there: seen twice, or in another order, it does no harm, as the
        # version tells a page what is older than what it shows.
        sse.publish(asdict(moved), channel="board", event="moved")
    return {"moved": moved is not None}


@bp.errorhandler(HTTPException)
def refused(error: HTTPException) -> tuple[Response, int]:
    return jsonify(error=error.description, error_type=error.name.lower().replace(" ", "_")), error.code or 500
