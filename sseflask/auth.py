"""Who may subscribe and publish through the blueprint's routes: the app's own rule, public channels, and signed tokens."""

from __future__ import annotations

import dataclasses
import fnmatch
import logging
import re
import time
from collections.abc import Callable
from typing import Any, Final

from flask import Flask, request
from itsdangerous import BadData, URLSafeSerializer
from werkzeug.exceptions import HTTPException

from .callback import name_of
from .config import TOKEN
from .errors import SSEError

log = logging.getLogger("sseflask.auth")

#: `(action, channel)` to whether the current request may; actions are `"subscribe"`, `"publish"` and `"inspect"`.
Authorize = Callable[[str, str], bool | None]

ACTIONS: Final = ("subscribe", "publish", "inspect")
#: What an app's rule gets as the channel of what concerns all of them: metrics and statistics.
ALL: Final = "*"
COOKIE: Final = "sse_token"
_SALT: Final = "sseflask.token"
_SECRET: Final = re.compile(rf"((?:^|[?&\s'\"]){TOKEN}=)[^&\s'\"]*", re.IGNORECASE)


class Refused(SSEError):
    """A route's client may not do what it asks for.

    Attributes:
        status: 401 where a token is wrong or has expired, 403 otherwise.
        reason: Why, for the client.
    """

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason


@dataclasses.dataclass(frozen=True, slots=True)
class Token:
    """What a signed token allows.

    Attributes:
        channels: The channels' names; a name that looks like a pattern is none.
        action: What may be done with them.
        expires: The Unix second at which it stops to count.
    """

    channels: tuple[str, ...]
    action: str
    expires: float

    def allows(self, action: str, channel: str) -> bool:
        """Whether it is for this."""
        return action == self.action and channel in self.channels


def sign(app: Flask, token: Token) -> str:
    """A token as text, signed with the app's secret key.

    Raises:
        RuntimeError: The app has no secret key.
    """
    if not app.secret_key:
        raise RuntimeError("signing tokens needs the app's SECRET_KEY")
    return str(_serializer(app).dumps([list(token.channels), token.action, token.expires]))


def presented(app: Flask, action: str) -> Token | None:
    """The token of the current request: `?token=`, `Authorization: Bearer` or the cookie; None if there is none.

    Without a secret key none is ours: there is none then, either. The cookie counts only for reading: a browser sends it along with
    what other sites have it post.

    Raises:
        Refused: There is none that is ours, or it has expired.
    """
    texts = [request.args.get("token"), _bearer(), request.cookies.get(COOKIE) if action == "subscribe" else None]
    is_expired = False
    given = [text for text in texts if text]
    if not app.secret_key:
        return None
    for text in given:
        try:
            # Compared in constant time; the signature comes first, so what is inside is ours.
            channels, allowed, expires = _serializer(app).loads(text)
        except BadData:
            # A bearer token may be for something else of the app's.
            continue
        if expires > time.time():
            return Token(tuple(channels), allowed, expires)
        is_expired = True
    if given:
        raise Refused(401, "the token has expired" if is_expired else "the token is not valid")
    return None


def check(app: Flask, action: str, channels: tuple[str, ...], authorize: Authorize | None, public: tuple[str, ...]) -> float | None:
    """Whether the current request may do something with all of some channels.

    Args:
        app: The app.
        action: One of `ACTIONS`.
        channels: The channels' names.
        authorize: The app's own rule; where it says True, nothing else is needed.
        public: Glob patterns of what anyone may subscribe to.

    Returns:
        Seconds until a token that was needed expires; None if none was.

    Raises:
        Refused: It may not.
        TypeError: The rule says something that is true, and isn't True.
    """
    token: Token | None = None
    for channel in channels:
        if action == "subscribe" and any(fnmatch.fnmatchcase(channel, pattern) for pattern in public):
            continue
        if authorize is not None and _says_yes(authorize, action, channel):
            continue
        token = token or presented(app, action)
        if token is None or not token.allows(action, channel):
            log.info(
                "%s of %r is refused: %s",
                action,
                channel,
                _what_could_open(app, action, authorize, token),
                extra={"sse_channel": channel, "sse_path": request.path},
            )
            raise Refused(403, "this is not open to you" if action == "inspect" else f"this channel is not open to you: {channel}")
    return None if token is None else token.expires - time.time()


def may_inspect(app: Flask, authorize: Authorize | None) -> bool:
    """Whether the current request may see what concerns all channels; where it may not, nothing is raised, nor logged as refused.

    Args:
        app: The app.
        authorize: The app's own rule. What it raises says no.
    """
    try:
        if authorize is not None and _says_yes(authorize, "inspect", ALL):
            return True
        token = presented(app, "inspect")
    except (Refused, HTTPException):
        return False
    except Exception:
        log.exception("the rule can't say who may inspect", extra={"sse_path": request.path})
        return False
    return token is not None and token.allows("inspect", ALL)


def _says_yes(rule: Authorize, action: str, channel: str) -> bool:
    """What a rule says. Only True opens: `("no", 403)`, "denied" and what an asynchronous function gives are true, too."""
    answer = rule(action, channel)
    if answer and answer is not True:
        raise TypeError(
            f"{name_of(rule)} says {answer!r} to {action!r} of {channel!r}: a rule (@sse.authorize) returns True where that is "
            "allowed, False or None where it isn't"
        )
    return answer is True


def _what_could_open(app: Flask, action: str, rule: Authorize | None, token: Token | None) -> str:
    """What could have let a request in, and didn't, for the log: to its client this is no business."""
    tried = ["no pattern of SSE_PUBLIC_CHANNELS matches"] if action == "subscribe" else []
    tried.append("there is no @sse.authorize rule" if rule is None else f"the @sse.authorize rule {name_of(rule)} doesn't allow it")
    if not app.secret_key:
        tried.append("tokens need the app's SECRET_KEY")
    else:
        tried.append("no token came with it" if token is None else "its token is for something else")
    return ", ".join(tried)


class RedactTokens(logging.Filter):
    """Keeps tokens out of the servers' logs."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Replaces the token in a line that has one."""
        try:
            line = record.getMessage()
        except Exception:
            # Its arguments don't fit: that is for the handlers to say, whoever logs isn't to fail.
            return True
        if "=" in line and (redacted := _SECRET.sub(r"\1[redacted]", line)) != line:
            record.msg, record.args = redacted, ()
        return True


def redact_server_logs() -> None:
    """Sees to it that the logs of gunicorn and Werkzeug show no token. A second call does nothing."""
    for name in ("gunicorn.access", "gunicorn.error", "werkzeug"):
        logger = logging.getLogger(name)
        if not any(isinstance(known, RedactTokens) for known in logger.filters):
            logger.addFilter(RedactTokens())


def _bearer() -> str | None:
    kind, _, text = request.headers.get("Authorization", "").partition(" ")
    return text.strip() if kind.lower() == "bearer" else None


def _serializer(app: Flask) -> URLSafeSerializer:
    assert app.secret_key
    older = app.config.get("SECRET_KEY_FALLBACKS") or ()
    # A text's characters aren't keys.
    keys: list[Any] = [older] if isinstance(older, (str, bytes)) else list(older)
    # Signed with the last one, checked with all.
    keys.append(app.secret_key)
    return URLSafeSerializer(keys, salt=_SALT)
