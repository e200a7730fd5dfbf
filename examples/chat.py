"""A chat: a POST stream of tokens that goes on when the page is loaded again, from a small model or any OpenAI-compatible endpoint.

Set `CHAT_BASE_URL`, `CHAT_MODEL` and, where one is needed, `CHAT_API_KEY` to talk to a large model instead of the small one.
"""

from __future__ import annotations

import os
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from flask import Blueprint, Response, abort, current_app, jsonify, render_template, request
from flask.blueprints import BlueprintSetupState
from werkzeug.exceptions import HTTPException

from sseflask import ServerSentEvent, StreamError

from .endpoint import Endpoint
from .markov import MarkovModel
from .streaming import sse

bp = Blueprint("chat", __name__, url_prefix="/chat")

Message = dict[str, str]
MAX_MESSAGES = 40
MAX_CHARACTERS = 8000
MAX_BYTES = 1024
MAX_CONVERSATION_BYTES = 64 * 1024
# For how long an answer goes on when nobody reads it: enough to load the page again, or to change from the telephone to the desk.
GRACE_SECONDS = 20


class ChatModel(Protocol):
    name: str

    def answer(self, messages: Sequence[Message]) -> Iterator[str]: ...


class LocalModel:
    """A Markov chain that has read one book about a lighthouse. It answers at once, so it is slowed down to be watched."""

    name = "lighthouse (a Markov chain)"

    def __init__(self, *, seconds_per_token: float = 0.05) -> None:
        self._chain = MarkovModel.from_file(Path(__file__).parent / "texts/lighthouse.txt")
        self._seconds_per_token = seconds_per_token

    def answer(self, messages: Sequence[Message]) -> Iterator[str]:
        question = messages[-1]["content"]
        for said, token in enumerate(self._chain.generate(question)):
            if said == 12 and "shipwreck" in question.lower():
                # Whatever can't be answered with a status any more, because the answer has begun, is told in the stream.
                raise StreamError(
                    "The model ran aground in the middle of its answer.", error_type="model_aground", details={"tokens": said}
                )
            yield token
            time.sleep(self._seconds_per_token)


def model_from(environment: Mapping[str, str]) -> ChatModel:
    """The model that the environment asks for."""
    if base_url := environment.get("CHAT_BASE_URL"):
        return Endpoint(base_url, model=environment.get("CHAT_MODEL", "default"), api_key=environment.get("CHAT_API_KEY"))
    return LocalModel()


@bp.record
def load_model(state: BlueprintSetupState) -> None:
    state.app.extensions["chat_model"] = model_from(os.environ)


@bp.get("/")
def page() -> str:
    return render_template("chat.html", model=current_app.extensions["chat_model"])


Answer = Generator[ServerSentEvent, None, dict[str, Any]]


@bp.post("/events")
# The generator belongs to no request: it is run once, and its events are kept. A page that loses its connection sends the same
# request with `Last-Event-ID`, and gets what comes after that; this view isn't called then. Texts that come faster than every
# 30 ms are joined to one event.
@sse.stream(resumable=True, lifecycle=True, coalesce=0.03, detach_grace=GRACE_SECONDS)
def events() -> Answer:
    """Answers `{"messages": [{"role": "user", "content": "…"}]}`."""
    request.max_content_length = MAX_CONVERSATION_BYTES
    messages = messages_of(request.get_json(silent=True))
    return answering(current_app.extensions["chat_model"], messages)


def answering(model: ChatModel, messages: Sequence[Message]) -> Answer:
    started, tokens = time.monotonic(), 0
    # When the reader presses "Stop", `StreamClosed` is raised wherever the model waits: it closes its own connection and is done.
    for text in model.answer(messages):
        tokens += 1
        yield ServerSentEvent(text, event="content")
    return {"model": model.name, "tokens": tokens, "seconds": round(time.monotonic() - started, 2)}


@bp.post("/stop")
def stop() -> dict[str, bool]:
    """Ends an answer: `{"run": "…"}` is the id of any of its events. Hanging up wouldn't, as the reader might come back."""
    request.max_content_length = MAX_BYTES
    match request.get_json(silent=True):
        case {"run": str(run)}:
            pass
        case _:
            abort(400, 'Send {"run": "…"} as JSON, with the id of an event.')
    # An id can't be guessed: who has one has read the answer. An app with users would ask here whose it is.
    return {"stopped": sse.cancel(run)}


def messages_of(payload: Any) -> list[Message]:
    """The conversation that a client has sent, or a 400 that says what is wrong with it."""
    match payload:
        case {"messages": [*messages, {"role": "user", "content": str(question)}]} if question.strip():
            pass
        case _:
            abort(400, 'Send {"messages": [{"role": "user", "content": "…"}]} as JSON; the last message is the user\'s.')
    conversation = []
    for message in [*messages, {"role": "user", "content": question}]:
        match message:
            case {"role": "user" | "assistant" as role, "content": str(content)}:
                conversation.append({"role": role, "content": content})
            case _:
                abort(400, 'Each message has a role, "user" or "assistant", and a content, which is text.')
    if len(conversation) > MAX_MESSAGES or sum(len(message["content"]) for message in conversation) > MAX_CHARACTERS:
        abort(413, f"A conversation may have {MAX_MESSAGES} messages and {MAX_CHARACTERS} characters.")
    return conversation


@bp.errorhandler(HTTPException)
def refused(error: HTTPException) -> tuple[Response, int]:
    return jsonify(error=error.description, error_type=error.name.lower().replace(" ", "_")), error.code or 500
