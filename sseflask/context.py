"""The request context that a generator runs in: a copy of the view's that outlives it."""

from __future__ import annotations

import contextvars
import copy
import io
import itertools
import logging
from collections.abc import Callable, Iterable
from typing import Any, Final, TypeVar

from flask import Flask, Request, Response, g
from flask.ctx import AppContext, RequestContext
from flask.globals import request_ctx
from flask.sessions import NullSession
from flask.signals import appcontext_tearing_down, request_tearing_down
from werkzeug.datastructures import EnvironHeaders, ImmutableMultiDict, MultiDict

from .current import log_extra

log = logging.getLogger("sseflask.stream")

T = TypeVar("T")


class NoSession(NullSession):
    """The session of an app that has no secret key, for all its generators: nothing of it can be changed but its flags."""

    def __ior__(self, other: Any) -> Any:  # type: ignore[misc]
        self.update(other)

    def __setattr__(self, name: str, value: object) -> None:
        if name not in ("accessed", "modified", "on_update"):
            self[name] = value
        super().__setattr__(name, value)


#: What nobody can change, and most generators have: a form and files of a request without a body, no session. One for all of them
#: takes 0.7 KB off each.
NOTHING_SENT: Final[ImmutableMultiDict[str, Any]] = ImmutableMultiDict()
NO_SESSION: Final = NoSession()


class GeneratorContext:
    """What a generator sees of its request: form, files, arguments, session, `current_app`, `url_for`.

    It holds neither the view's request nor its `environ`, on which the server's socket and parser hang. `g` is fresh; the context
    variables of other libraries are as they were in the view.
    """

    __slots__ = ("_context", "_g", "_session", "_variables", "app")

    def __init__(self, context: RequestContext, names: Iterable[str]) -> None:
        """Takes over from the view's context, which must be active; `capture` finds it.

        The request's body is parsed here, within the app's limits, since nobody can read it later; its files are the generator's
        from here on, and stay open until its context ends.

        Args:
            context: The view's.
            names: Attributes of `g` whose values the generator's `g` gets.

        Raises:
            RequestEntityTooLarge: The body is larger than the app allows.
        """
        self.app: Flask = context.app
        self._g = {name: getattr(g, name) for name in names if name in g}
        self._variables = _context_variables()
        request = context.request
        if _may_have_body(request.environ):
            request.get_data(cache=True, parse_form_data=True)
        own = _copied_request(request)
        own.environ = _without_server_objects(request.environ)
        own.__dict__["headers"] = EnvironHeaders(own.environ)
        own.__dict__["stream"] = own.environ["wsgi.input"]
        for name in ("form", "files"):
            if type(own.__dict__.get(name)) is ImmutableMultiDict and not own.__dict__[name]:
                own.__dict__[name] = NOTHING_SENT
        # The view's context closes the files that its request knows.
        if "files" in request.__dict__:
            request.__dict__["files"] = MultiDict()
        self._context = its = _copied(context)
        its.request = own
        # As when the view's context ends: the session as it is then has been saved with the response.
        self._session = its._session
        if type(self._session) is NullSession:
            self._session = its._session = NO_SESSION

    @classmethod
    def capture(cls, names: Iterable[str] = ()) -> GeneratorContext | None:
        """Takes over from the active request context; None where there is none."""
        return cls(request_ctx._get_current_object(), names) if request_ctx else None  # type: ignore[attr-defined]

    def run(self, function: Callable[[], T]) -> T:
        """Calls a function in this context, and tears the context down. Once only; the caller has context variables of its own.

        What teardown functions raise is logged: they may expect what the view's `g` held, and those after them must run too.
        """
        for variable, value in self._variables:
            variable.set(value)
        self._variables = []
        error: BaseException | None = None
        try:
            if self._session is not None and self._session.modified:
                self._session.modified = False
            self._context.push()
            for name, value in self._g.items():
                setattr(g, name, value)
            return function()
        except BaseException as raised:
            error = raised
            raise
        finally:
            self._tear_down(error)
            _unbind()

    def answer(self, error: Exception) -> Response:
        """What the app's error handlers make of an error; called in this context.

        Raises:
            Exception: The app lets errors propagate, as it does in debug mode and in tests.
        """
        try:
            return self.app.finalize_request(self.app.handle_user_exception(error))
        except Exception as unhandled:
            return self.app.handle_exception(unhandled)

    def save_session(self, response: Response) -> None:
        """Saves what the generator has changed in the session since the view; called in this context, before the headers go out."""
        session, interface = self._session, self.app.session_interface
        if session is not None and session.modified and not interface.is_null_session(session):
            interface.save_session(self.app, session, response)

    def release(self) -> None:
        """Runs the app context's teardown functions, so that pooled connections go back; called in this context."""
        for function in reversed(self.app.teardown_appcontext_funcs):
            self._call(function, None)

    def _tear_down(self, error: BaseException | None) -> None:
        app, request = self.app, self._context.request
        for name in itertools.chain(request.blueprints, (None,)):
            for function in reversed(app.teardown_request_funcs.get(name, ())):
                self._call(function, error)
        if request_tearing_down.receivers:
            self._call(lambda exc: request_tearing_down.send(app, _async_wrapper=app.ensure_sync, exc=exc), error)
        self._call(lambda exc: request.close(), error)
        for function in reversed(app.teardown_appcontext_funcs):
            self._call(function, error)
        if appcontext_tearing_down.receivers:
            self._call(lambda exc: appcontext_tearing_down.send(app, _async_wrapper=app.ensure_sync, exc=exc), error)

    def _call(self, function: Callable[[BaseException | None], Any], error: BaseException | None) -> None:
        call_teardown(self.app, function, error)


class TaskContext:
    """The app context that a task runs in. It knows no request; context variables are as they were where the task was started."""

    def __init__(self, app: Flask) -> None:
        """Takes over what it needs; called where the task is started.

        Args:
            app: The app.
        """
        self.app = app
        self._variables = _context_variables()

    def run(self, function: Callable[[], T]) -> T:
        """Calls a function in this context, and tears the context down. Once only; the caller has context variables of its own."""
        for variable, value in self._variables:
            variable.set(value)
        self._variables = []
        context = self.app.app_context()
        context.push()
        error: BaseException | None = None
        try:
            return function()
        except BaseException as raised:
            error = raised
            raise
        finally:
            for teardown in reversed(self.app.teardown_appcontext_funcs):
                call_teardown(self.app, teardown, error)
            call_teardown(
                self.app, lambda exc: appcontext_tearing_down.send(self.app, _async_wrapper=self.app.ensure_sync, exc=exc), error
            )
            _unbind()

    def answer(self, error: Exception) -> Response:
        """Raises the error: nobody waits for a response.

        Raises:
            Exception: The error.
        """
        raise error

    def save_session(self, response: Response) -> None:
        """Does nothing: there is no session."""

    def release(self) -> None:
        """Runs the app context's teardown functions, so that pooled connections go back; called in this context."""
        for function in reversed(self.app.teardown_appcontext_funcs):
            call_teardown(self.app, function, None)


def call_teardown(app: Flask, function: Callable[[BaseException | None], Any], error: BaseException | None) -> None:
    """Calls a teardown function; what it raises is logged."""
    try:
        app.ensure_sync(function)(error)
    except Exception:
        log.exception(
            "a teardown function failed after a stream; it may expect what the view's g held, which the generator's doesn't",
            extra={"sse_function": repr(function), **log_extra()},
        )


def _context_variables() -> list[tuple[contextvars.ContextVar[Any], Any]]:
    """The context variables of this place, but for Flask's contexts."""
    return [
        (variable, value)
        for variable, value in contextvars.copy_context().items()
        if not isinstance(value, AppContext | RequestContext)
    ]


def _unbind() -> None:
    """Takes Flask's contexts out of their variables, as they were before: those variables know them, and they know the variables.

    Without this they would wait for the garbage collector. What else is set is others', and stays: who reads it after the end, the
    decimal module for one, wants no other value of ours.
    """
    while bound := [
        (variable, value)
        for variable, value in contextvars.copy_context().items()
        if isinstance(value, AppContext | RequestContext)
    ]:
        for variable, value in bound:
            try:
                token = value._cv_tokens.pop()  # noqa: SLF001
                variable.reset(token[0] if isinstance(token, tuple) else token)
            except (IndexError, ValueError, RuntimeError):
                # It was bound elsewhere, or by hand.
                variable.set(None)


def _may_have_body(environ: dict[str, Any]) -> bool:
    """Whether a request may have a body: nearly all that open a stream have none, and needn't be parsed to know that."""
    return (
        environ["REQUEST_METHOD"] not in ("GET", "HEAD")
        # In HTTP/1 its headers would say so (RFC 9112 6.3); where they have been changed on the way, it is parsed by its type.
        or not environ.get("SERVER_PROTOCOL", "").startswith("HTTP/1.")
        or environ.get("CONTENT_LENGTH") not in (None, "", "0")
        or bool(environ.get("CONTENT_TYPE") or environ.get("HTTP_TRANSFER_ENCODING"))
    )


def _copied(context: RequestContext) -> RequestContext:
    """As `context.copy()`, which would make the same URL adapter again: a twentieth of what opening a generator's stream takes."""
    if type(context) is not RequestContext:
        return context.copy()
    made = RequestContext.__new__(RequestContext)
    made.app, made.request, made.url_adapter = context.app, context.request, context.url_adapter
    made.flashes = None
    made._session = context._session
    made._after_request_functions = []  # noqa: SLF001
    made._cv_tokens = []  # noqa: SLF001
    return made


def _copied_request(request: Request) -> Request:
    """As `copy.copy(request)`, which asks the class first what a copy is; Flask's own has nothing but its attributes."""
    if type(request) is not Request:
        return copy.copy(request)
    made = Request.__new__(Request)
    made.__dict__.update(request.__dict__)
    return made


def _without_server_objects(environ: dict[str, Any]) -> dict[str, Any]:
    """The request's facts, and what middlewares have added; not the server's socket, body and callbacks."""
    server = ("gunicorn.", "werkzeug.", "sseflask.", "wsgi.input", "wsgi.file_wrapper", "wsgi.early_hints")
    # Most names begin with a capital: they are the request's own.
    kept = {key: value for key, value in environ.items() if key < "a" or not key.startswith(server)}
    kept["wsgi.input"] = io.BytesIO()
    kept["wsgi.input_terminated"] = True
    return kept
