"""The streams behind middlewares that wrap the WSGI iterable, as users have them."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from flask import Flask

from tests.live.apps.streams_app import create_app

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

Wrapper = Callable[["WSGIApplication"], "WSGIApplication"]


def _closing(body: Iterable[bytes]) -> None:
    close = getattr(body, "close", None)
    if close is not None:
        close()


def passing_through(application: WSGIApplication) -> WSGIApplication:
    """A tracing middleware: a generator that hands on what it gets, and closes what it was given."""

    def middleware(environ: WSGIEnvironment, start_response: StartResponse) -> Iterator[bytes]:
        body = application(environ, start_response)
        try:
            yield from body
        finally:
            _closing(body)

    return middleware


def adding_a_header(application: WSGIApplication) -> WSGIApplication:
    """One that changes the headers, and leaves the iterable alone."""

    def middleware(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        def start(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Callable[[bytes], object]:
            return start_response(status, [*headers, ("X-Middleware", "yes")], exc_info)

        return application(environ, start)

    return middleware


class _Gzip:
    def __init__(self) -> None:
        self._compressor = zlib.compressobj(wbits=zlib.MAX_WBITS | 16)

    def flushed(self, data: bytes) -> bytes:
        return self._compressor.compress(data) + self._compressor.flush(zlib.Z_SYNC_FLUSH)

    def end(self) -> bytes:
        return self._compressor.flush()


def _compressed(headers: list[tuple[str, str]]) -> list[tuple[str, str]]:
    return [*((name, value) for name, value in headers if name.lower() != "content-length"), ("Content-Encoding", "gzip")]


def _where_accepted(application: WSGIApplication, compressing: WSGIApplication) -> WSGIApplication:
    def choose(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        chosen = compressing if "gzip" in environ.get("HTTP_ACCEPT_ENCODING", "") else application
        return chosen(environ, start_response)

    return choose


def compressing_eagerly(application: WSGIApplication) -> WSGIApplication:
    """Compresses, and starts the response as soon as the application does."""

    def middleware(environ: WSGIEnvironment, start_response: StartResponse) -> Iterator[bytes]:
        def start(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Callable[[bytes], object]:
            return start_response(status, _compressed(headers), exc_info)

        gzip, body = _Gzip(), application(environ, start)
        try:
            for data in body:
                yield gzip.flushed(data)
            yield gzip.end()
        finally:
            _closing(body)

    return _where_accepted(application, middleware)


def compressing_late(application: WSGIApplication) -> WSGIApplication:
    """Compresses, and starts the response only when it has seen the first bytes, as those do that judge by them."""

    def middleware(environ: WSGIEnvironment, start_response: StartResponse) -> Iterator[bytes]:
        started: list[tuple[str, list[tuple[str, str]]]] = []

        def start(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Callable[[bytes], object]:
            started[:] = [(status, headers)]
            return lambda data: None

        gzip, body = _Gzip(), application(environ, start)
        try:
            begun = False
            for data in body:
                if not begun:
                    start_response(started[0][0], _compressed(started[0][1]))
                    begun = True
                yield gzip.flushed(data)
            if not begun:
                start_response(started[0][0], _compressed(started[0][1]))
            yield gzip.end()
        finally:
            _closing(body)

    return _where_accepted(application, middleware)


def _behind(*wrappers: Wrapper) -> Flask:
    app = create_app()
    for wrap in wrappers:
        app.wsgi_app = wrap(app.wsgi_app)  # type: ignore[method-assign]
    return app


def passed_through() -> Flask:
    """The streams behind middlewares that let bytes pass as they are."""
    return _behind(passing_through, adding_a_header, passing_through)


def compressed_eagerly() -> Flask:
    """The streams behind one that compresses and says so at once, and one that passes on."""
    return _behind(compressing_eagerly, passing_through)


def compressed_late() -> Flask:
    """The streams behind one that compresses and says so late."""
    return _behind(compressing_late)
