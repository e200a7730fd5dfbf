"""Any OpenAI-compatible endpoint as a source of tokens, with nothing but the standard library and sseflask's own decoder."""

from __future__ import annotations

import http.client
import json
import logging
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from typing import Any

from sseflask import EventDecoder, StreamError

log = logging.getLogger(__name__)

# What a provider's refusal means for the person who chats; what it says itself goes to our log, as it may name our account.
REFUSALS = {
    401: ("provider_login", "The model's provider doesn't accept our key."),
    403: ("provider_login", "The model's provider doesn't let us use this model."),
    404: ("model_unavailable", "The provider has no such model."),
    429: ("provider_busy", "The provider has too much to do, or we have used up what we may ask for."),
}


class EndpointFailed(StreamError):
    """The endpoint refused, broke off or can't be reached.

    A `StreamError` has a message that is meant for the client, and it fits both moments: raised before the first event it becomes
    an ordinary HTTP error, here a 502 in JSON, and raised after that it becomes the stream's error event.
    """

    def __init__(self, error_type: str, message: str, **details: Any) -> None:
        super().__init__(message, error_type=error_type, details=details, status=502)


class Endpoint:
    """One model behind `{base_url}/chat/completions`.

    Args:
        base_url: Where the API is, without the last slash, such as `http://localhost:11434/v1`.
        model: The model's name there.
        api_key: Sent as a bearer token, if there is one.
        timeout: Seconds to wait for the connection, and then for each next piece of the answer.
    """

    def __init__(self, base_url: str, *, model: str, api_key: str | None = None, timeout: float = 30.0) -> None:
        if not base_url.startswith(("http://", "https://")):
            raise ValueError(f"CHAT_BASE_URL must begin with http:// or https://, not be {base_url!r}")
        self.name = model
        self._url = f"{base_url.rstrip('/')}/chat/completions"
        self._headers = {"Content-Type": "application/json", "Accept": "text/event-stream"}
        if api_key:
            self._headers["Authorization"] = f"Bearer {api_key}"
        self._timeout = timeout
        # A redirect would carry our key to another place: there is no handler for them here.
        self._opener = urllib.request.build_opener(_NoRedirects)

    def answer(self, messages: Sequence[dict[str, str]]) -> Iterator[str]:
        """The answer's pieces as they come.

        Raises:
            EndpointFailed: With the words for the client, at the first piece or any later one.
        """
        response = self._open(messages)
        try:
            yield from _pieces(response)
        except (OSError, http.client.HTTPException, ValueError, LookupError, TypeError, AttributeError) as error:
            log.warning("the answer from %s broke off: %r", self._url, error)
            raise EndpointFailed("provider_broke_off", "The answer broke off at the provider.") from error
        finally:
            # Also when the client has left: the provider sees it and stops generating, and stops charging.
            response.close()

    def _open(self, messages: Sequence[dict[str, str]]) -> http.client.HTTPResponse:
        body = json.dumps({"model": self.name, "messages": list(messages), "stream": True}).encode()
        request = urllib.request.Request(self._url, body, self._headers)
        try:
            response: http.client.HTTPResponse = self._opener.open(request, timeout=self._timeout)
        except urllib.error.HTTPError as error:
            with error:
                log.warning("%s answered %d: %r", self._url, error.code, error.read(1000))
            error_type, message = REFUSALS.get(error.code, ("provider_error", "The model's provider can't answer now."))
            raise EndpointFailed(error_type, message, provider_status=error.code) from None
        except (OSError, http.client.HTTPException) as error:
            log.warning("%s can't be reached: %r", self._url, error)
            raise EndpointFailed("provider_unreachable", "The model's provider can't be reached.") from error
        return response


def _pieces(response: http.client.HTTPResponse) -> Iterator[str]:
    decoder = EventDecoder()
    finished = False
    while chunk := response.read1(65536):
        # A chunk is whatever has arrived: half an event, or five. The decoder returns those that are whole.
        for event in decoder.feed(chunk):
            if event.data == "[DONE]":
                return
            piece: dict[str, Any] = json.loads(event.data or "{}")
            if "error" in piece:
                raise ValueError(piece["error"])
            for choice in piece.get("choices", ())[:1]:
                finished = finished or bool(choice.get("finish_reason"))
                if text := choice.get("delta", {}).get("content"):
                    yield str(text)
    if not finished:
        raise ConnectionError("the connection ended before the answer did")


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None
