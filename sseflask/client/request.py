"""What an event source asks for, and what httpx is told of it."""

from __future__ import annotations

import re
import urllib.parse
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from sseflask.errors import InvalidSetting

from .errors import MissingExtra
from .protocol import MAX_RETRY_AFTER

if TYPE_CHECKING:
    import httpx

#: What a bearer token is made of (RFC 6750 2.1): above all no line break, and nothing that an error would have to show.
_TOKEN: Final = re.compile(r"[A-Za-z0-9._~+/-]+=*")
_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_NOT_IN_A_VALUE: Final = re.compile(r"^[ \t]|[ \t]$|[\0\n\v\f\r]")

Given = TypeVar("Given")


def load_httpx() -> ModuleType:
    """Return httpx.

    Raises:
        MissingExtra: It isn't installed.
    """
    try:
        import httpx
    except ImportError:
        raise MissingExtra from None
    return httpx


class StreamRequest(Generic[Given]):
    """A request that can be made again and again.

    Attributes:
        url: Where it goes, without user and password.
        method: Its method, in capitals.
        token: A bearer token, or what gives one; `None` for none.
    """

    def __init__(
        self,
        url: str,
        *,
        method: str,
        headers: Mapping[str, str] | None,
        token: str | Callable[[], Given] | None,
        timeout: float | None,
        stall_timeout: float,
        arguments: Mapping[str, Any],
    ) -> None:
        """Checks and stores.

        Args:
            url: Where it goes.
            method: Its method.
            headers: The caller's.
            token: As the attribute.
            timeout: Seconds for connecting, and for sending; `None` for any time.
            stall_timeout: Seconds without a byte; 0 for any time.
            arguments: httpx's own: `params`, `json`, `content`, `data`; `None` for what isn't given.

        Raises:
            InvalidSetting: A value can't be used.
            MissingExtra: httpx isn't installed.
        """
        self._httpx = load_httpx()
        if timeout is not None:
            _check_seconds("timeout", timeout, least=0.001)
        _check_seconds("stall_timeout", stall_timeout, least=0)
        self.method = method.upper()
        self.token = token
        self._arguments = {name: value for name, value in arguments.items() if value is not None}
        own = {"Accept": "text/event-stream", "Accept-Encoding": "identity", "Cache-Control": "no-store"}
        for name, value in (headers or {}).items():
            _check_header(name, value)
        given = {name.lower() for name in headers or ()}
        self._headers = {name: value for name, value in own.items() if name.lower() not in given} | dict(headers or {})
        self.has_key = "idempotency-key" in given
        self._timeout = self._httpx.Timeout(timeout, read=stall_timeout or None)
        self.url, self._auth = _without_user(url)

    def client_options(self) -> dict[str, Any]:
        """The arguments of a client that serves this request alone."""
        # Each attempt gets a connection of its own: one that is kept may be dead, and nobody would know how far a request came.
        return {"timeout": self._timeout, "limits": self._httpx.Limits(max_keepalive_connections=0)}

    def build(
        self, client: httpx.Client | httpx.AsyncClient, headers: Mapping[str, bytes], token: str | None, trace: Any = None
    ) -> httpx.Request:
        """Return the request for one attempt.

        Args:
            client: Whose defaults it gets.
            headers: Added to its own.
            token: The bearer token, as `checked_token` returns it.
            trace: httpcore's `trace` extension: called with what happens on the connection.
        """
        all_headers: list[tuple[str, str | bytes]] = [
            (name, value) for name, value in self._headers.items() if token is None or name.lower() != "authorization"
        ]
        all_headers += headers.items()
        if token is not None:
            all_headers.append(("Authorization", f"Bearer {token}"))
        return client.build_request(
            self.method,
            self.url,
            headers=[(_raw(name), _raw(value)) for name, value in all_headers],
            timeout=self._timeout,
            extensions=None if trace is None else {"trace": trace},
            **self._arguments,
        )

    def send_options(self, token: str | None) -> dict[str, Any]:
        """The arguments that the request is sent with."""
        options: dict[str, Any] = {"stream": True, "follow_redirects": True}
        if self._auth is not None and token is None:
            options["auth"] = self._auth
        return options

    def surely_not_sent(self, error: Exception) -> bool:
        """Whether an error means that no byte of the request has gone out."""
        return isinstance(error, (self._httpx.ConnectError, self._httpx.ConnectTimeout, self._httpx.PoolTimeout))

    def never_works(self, error: Exception) -> bool:
        """Whether an error means that the same request can only fail."""
        never = (self._httpx.InvalidURL, self._httpx.LocalProtocolError, self._httpx.UnsupportedProtocol)
        return isinstance(error, (*never, self._httpx.TooManyRedirects))

    def failures(self) -> tuple[type[Exception], ...]:
        """What httpx raises for an attempt or a stream that fails."""
        return (self._httpx.RequestError, self._httpx.InvalidURL)

    def problem(self, error: Exception) -> str:
        """Say what an error means, without anything that the request held."""
        match error:
            case self._httpx.InvalidURL():
                return "the URL isn't valid"
            case self._httpx.LocalProtocolError():
                # Its text may hold a header's value.
                return "the request isn't valid: a header or the last event's id holds what HTTP doesn't allow"
            case self._httpx.ReadTimeout():
                return "nothing was heard for stall_timeout"
            case self._httpx.TimeoutException():
                return f"not within timeout ({type(error).__name__})"
        return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def checked_token(token: object) -> str:
    """Return a bearer token.

    Raises:
        InvalidSetting: It isn't one; it isn't shown.
    """
    if not isinstance(token, str) or not _TOKEN.fullmatch(token):
        shown = "a str that isn't shown" if isinstance(token, str) else type(token)
        raise InvalidSetting("token", shown, "letters, digits and -._~+/, with = at its end, as a str")
    return token


def _check_seconds(name: str, value: object, *, least: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= MAX_RETRY_AFTER:
        raise InvalidSetting(name, value, f"a number of seconds from {least:g} to {MAX_RETRY_AFTER:g}")


def _check_header(name: object, value: object) -> None:
    # httpcore would say what is wrong with one, and log the value.
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise InvalidSetting("headers", name, "a mapping of header names to their values")
    if not isinstance(value, str) or _NOT_IN_A_VALUE.search(value):
        raise InvalidSetting("headers", f"a value of {name} that isn't shown", "one line of text, without spaces at its ends")


def _without_user(url: str) -> tuple[str, tuple[str, str] | None]:
    """Take user and password out of a URL: httpx logs each URL that it asks for."""
    try:
        parts = urllib.parse.urlsplit(url)
        user, password = parts.username, parts.password
    except ValueError:
        raise InvalidSetting("url", "what can't be read as a URL", "http://… or https://…") from None
    if user is None and password is None:
        return url, None
    bare = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
    return bare, (urllib.parse.unquote(user or ""), urllib.parse.unquote(password or ""))


def _raw(text: str | bytes) -> bytes:
    return text.encode() if isinstance(text, str) else text
