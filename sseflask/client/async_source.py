"""`AsyncEventSource`: an event stream as an asynchronous iterator, under asyncio and trio."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Awaitable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

from sseflask.event import ServerSentEvent

from .base import BaseEventSource, is_worth_reading
from .errors import MAX_EXCERPT_BYTES, EventSourceError
from .protocol import Connect, Read, Stop
from .request import checked_token, load_httpx

if TYPE_CHECKING:
    import httpx

    _Base = BaseEventSource[httpx.AsyncClient, str | Awaitable[str]]
else:
    _Base = BaseEventSource

#: Seconds for reading what an error's body says.
_EXCERPT_SECONDS: Final = 5.0


class AsyncEventSource(_Base):
    """What `EventSource` is, for `async for`; the token function may be asynchronous too, and a client is an `httpx.AsyncClient`.

    One task iterates (a second one gets a `RuntimeError`); any task of the same event loop may call `aclose`. A wait for the next
    event that is cancelled (`asyncio.timeout`, `asyncio.wait_for`) leaves the source usable: it connects anew when the next event
    is asked for.
    """

    def _prepare(self) -> None:
        self._pieces: Any = None  # the response's asynchronous generator of bytes
        # What `aclose` cancels: an `anyio.CancelScope`.
        self._scope: Any = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.aclose()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> ServerSentEvent:
        import anyio

        if self._scope is not None:
            raise RuntimeError("another task is reading this event source")
        with anyio.CancelScope() as scope:
            self._scope = scope
            try:
                while not self._is_closing and not (self._is_over and not self._events):
                    if self._events:
                        return self._give()
                    await self._step()
            finally:
                self._scope = None
                if self._is_closing:
                    await self._release()
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """Ends it, from any task; closing twice is fine. An iteration that waits ends at once."""
        self._is_closing = True
        if self._scope is not None:
            self._scope.cancel()
        else:
            await self._release()

    async def _step(self) -> None:
        """Do what is next."""
        import anyio

        action = self._action
        if isinstance(action, Stop):
            await self._finish(action.error)
            return
        try:
            match action:
                case Connect(headers=headers):
                    await anyio.sleep(self._seconds_left())
                    await self._connect(headers)
                case Read():
                    await self._read()
        except BaseException:
            await self._drop()
            if not self._is_closing:
                self._interrupt()
            raise

    async def _finish(self, error: EventSourceError | None) -> None:
        """It is over."""
        # A cancellation meanwhile leaves the action as it is, so that the error is told next time.
        await self._release()
        self._is_over = True
        if error is not None:
            raise error from self._cause

    async def _connect(self, headers: Mapping[str, bytes]) -> None:
        """Send the request, and take in what comes of it."""
        if self._token is None and self._request.token is not None:
            token = self._request.token
            given = token() if callable(token) else token
            self._token = checked_token(await given if inspect.isawaitable(given) else given)
        if self._client is None:
            self._client = load_httpx().AsyncClient(**self._request.client_options())
        try:
            request = self._request.build(self._client, headers, self._token)
            self._protocol.requested()
            response = await self._client.send(request, **self._request.send_options(self._token))
        except self._request.failures() as error:
            await self._lose(error)
            return
        self._response = response
        self._pieces = response.aiter_bytes()
        self._answer(response, await self._excerpt() if is_worth_reading(response) else b"")
        if not isinstance(self._action, Read):
            await self._drop()

    async def _read(self) -> None:
        """Take in what comes next of the stream."""
        try:
            piece = await anext(self._pieces, None)
        except self._request.failures() as error:
            await self._lose(error)
            return
        if piece is None:
            await self._lose(None)
            return
        self._take(piece)
        if not isinstance(self._action, Read):
            await self._drop()

    async def _lose(self, error: Exception | None) -> None:
        """Take in that there is no connection any more; `error` is `None` for a clean end."""
        await self._drop()
        if error is None:
            self._end()
        else:
            self._fail(error)

    async def _excerpt(self) -> bytes:
        """Read what an error's body begins with."""
        import anyio

        body = b""
        with contextlib.suppress(*self._request.failures()), anyio.move_on_after(_EXCERPT_SECONDS):
            async for piece in self._pieces:
                body += piece
                if len(body) >= MAX_EXCERPT_BYTES:
                    break
        return body

    async def _drop(self) -> None:
        """Let go of the connection."""
        import anyio

        response, self._response = self._response, None
        pieces, self._pieces = self._pieces, None
        # Whoever is cancelled still has this to do.
        with anyio.CancelScope(shield=True):
            if pieces is not None:
                await pieces.aclose()
            if response is not None:
                await response.aclose()

    async def _release(self) -> None:
        """Let go of everything."""
        import anyio

        await self._drop()
        self._protocol.close()
        if self._owns_client and self._client is not None:
            client, self._client = self._client, None
            with anyio.CancelScope(shield=True):
                await client.aclose()
