"""Which other sites' pages may use the blueprint's routes: the CORS protocol of the Fetch standard."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from flask import Response, request

from .config import ANY_ORIGIN, Settings
from .response import active_app, settings_of
from .runs import IDEMPOTENCY

if TYPE_CHECKING:
    from .extension import SSE

METHODS: Final = "GET, HEAD, POST"
#: What clients set themselves; what a browser's own EventSource sends needs no leave.
REQUEST_HEADERS: Final = f"Authorization, Cache-Control, Content-Type, {IDEMPOTENCY}, Last-Event-ID"
#: What clients read besides the content type.
RESPONSE_HEADERS: Final = "Retry-After"
#: Seconds for which a browser remembers a preflight's answer: as long as Chromium does at the most.
MAX_AGE: Final = 7200


def install(sse: SSE) -> None:
    """Has the blueprint answer preflights before any guard of its own is asked, and tell browsers whose pages may read answers."""
    sse.before_request(lambda: answer_preflight(settings_of(active_app())))
    sse.after_request(lambda response: allow(settings_of(active_app()), response))


def answer_preflight(settings: Settings) -> Response | None:
    """What a browser gets that asks whether it may send the current request; None where it doesn't ask that.

    Whoever asks learns nothing but whose pages may: a preflight carries no cookie and no token, so nobody can be asked for one.
    """
    if request.method != "OPTIONS" or not settings.cors_origins or "Access-Control-Request-Method" not in request.headers:
        return None
    response = Response(status=204)
    if _allowed(settings, request.headers.get("Origin")) is not None:
        response.headers["Access-Control-Allow-Methods"] = METHODS
        response.headers["Access-Control-Allow-Headers"] = REQUEST_HEADERS
        response.headers["Access-Control-Max-Age"] = str(MAX_AGE)
    return response


def allow(settings: Settings, response: Response) -> Response:
    """Lets the page that has sent the current request read the response, if `SSE_CORS_ORIGINS` has its origin."""
    if not settings.cors_origins:
        return response
    if settings.cors_origins != (ANY_ORIGIN,):
        # Also where nothing is allowed: a cache must not give that to whom it is.
        response.vary.add("Origin")
    allowed = _allowed(settings, request.headers.get("Origin"))
    if allowed is not None:
        response.headers["Access-Control-Allow-Origin"] = allowed
        response.headers["Access-Control-Expose-Headers"] = RESPONSE_HEADERS
        if allowed != ANY_ORIGIN:
            response.headers["Access-Control-Allow-Credentials"] = "true"
    return response


def _allowed(settings: Settings, origin: str | None) -> str | None:
    if origin is None:
        return None
    if origin != ANY_ORIGIN and origin in settings.cors_origins:
        return origin
    return ANY_ORIGIN if ANY_ORIGIN in settings.cors_origins else None
