"""The address of a stream on any server, and what a request for it says."""

from __future__ import annotations

import base64
import re
import urllib.parse
from collections.abc import Iterator, Sequence
from typing import Final

HEADER: Final = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]+):([^\r\n\0]*)")

Headers = Sequence[tuple[str, str]]


class UnusableAddress(ValueError):
    """An address is none of HTTP."""


def parts_of(url: str) -> urllib.parse.SplitResult:
    """The parts of an address.

    Raises:
        UnusableAddress: It is none of HTTP.
    """
    try:
        parts = urllib.parse.urlsplit(url)
        # A port that is no number is found out when it is asked for.
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError as error:
        raise UnusableAddress(str(error)) from error
    if not usable:
        raise UnusableAddress("an address begins with http:// or https:// and a host's name")
    return parts


def target_of(parts: urllib.parse.SplitResult) -> str:
    """What a request asks for, as ASCII; what is quoted already stays so."""
    target = f"{parts.path or '/'}?{parts.query}" if parts.query else parts.path or "/"
    return urllib.parse.quote(target, safe="/%:=&?~#+!$,;'@()*[]")


def headers_of(parts: urllib.parse.SplitResult, headers: Headers, last_event_id: str) -> Iterator[tuple[str, str]]:
    """The headers of a request for an event stream.

    Args:
        parts: Its address; the user's name and password in it become a header.
        headers: Further ones; of the same name, they win.
        last_event_id: What the stream is to go on after; empty for nothing.
    """
    given = {name.lower() for name, _ in headers}
    own = [("Accept", "text/event-stream"), ("Cache-Control", "no-store")]
    if parts.username is not None:
        login = f"{urllib.parse.unquote(parts.username)}:{urllib.parse.unquote(parts.password or '')}"
        own.append(("Authorization", f"Basic {base64.b64encode(login.encode()).decode()}"))
    yield from ((name, value) for name, value in own if name.lower() not in given)
    yield from headers
    if last_event_id:
        yield "Last-Event-ID", last_event_id


def origin_of(url: str) -> tuple[str, str]:
    """Where an address leads: its scheme and server.

    Raises:
        UnusableAddress: It is none of HTTP.
    """
    parts = parts_of(url)
    return parts.scheme, parts.netloc


def header_of(text: str) -> tuple[str, str]:
    """A header's name and value, of `Name: value`.

    Raises:
        ValueError: It has another form.
    """
    found = HEADER.fullmatch(text)
    if found is None:
        raise ValueError(f"a header is given as 'Name: value', not {text!r}")
    return found[1], found[2].strip()
