"""Where a page's code runs: a folder of its own, and free ports in the place of those that it names."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import pytest

from tests import redis
from tests.docs.page import Block

HOST_AND_PORT: Final = re.compile(r"\b(127\.0\.0\.1|localhost|0\.0\.0\.0):(\d{4,5})\b")
PORT_OPTION: Final = re.compile(r"(?<=\s)(--port[ =]|-p |-b :|--bind[ =]:)(\d{4,5})\b")
REDIS: Final = re.compile(r"\b(redis://(?:localhost|127\.0\.0\.1))(?!:|\w|\.)")
NEEDS_REDIS: Final = re.compile(r"redis://(localhost|127\.0\.0\.1)\b")
#: What apps keep on a server, and may not be written here.
STATE_FOLDER: Final = re.compile(r"/var/lib/\w+")
#: The origins of a page and of an API that it uses, as pages name them: two origins, for a browser, of one server.
APP_ORIGIN: Final = "https://app.example.com"
API_ORIGIN: Final = "https://api.example.com"


class Place:
    """What stands for the reader's machine while a page's code runs.

    Attributes:
        folder: The page's own folder.
    """

    def __init__(self, folder: Path) -> None:
        """Stores the folder, which exists and is empty."""
        self.folder = folder
        self._ports: dict[str, int] = {}
        self._state = folder.parent / f"{folder.name}-state"
        self._state_name = ""
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stack.close()

    def port(self, told: str) -> int:
        """The free port that takes the place of a told one."""
        if told not in self._ports:
            self._ports[told] = redis.free_port()
        return self._ports[told]

    def url(self, told: str) -> str:
        """An address that a page tells, as it is here."""
        return HOST_AND_PORT.sub(lambda found: f"{found[1]}:{self.port(found[2])}", told)

    def here(self, text: str) -> str:
        """The text of a page as it has to be here."""
        text = self.url(text)
        text = PORT_OPTION.sub(lambda found: f"{found[1]}{self.port(found[2])}", text)
        text = REDIS.sub(lambda found: f"{found[1]}:{self.port('6379')}", text)
        text = text.replace(APP_ORIGIN, f"http://127.0.0.1:{self.port('8000')}")
        text = text.replace(API_ORIGIN, f"http://localhost:{self.port('8000')}")
        return STATE_FOLDER.sub(self._state_folder, text)

    def told(self, text: str) -> str:
        """What a program here says, as the page would tell it."""
        for told, port in self._ports.items():
            text = re.sub(rf"\b{port}\b", told, text)
        return text.replace(str(self._state), self._state_name) if self._state_name else text

    def start_redis(self) -> None:
        """Starts the Redis that the page's reader has; skips the test where there is none to be had."""
        if redis.BINARY is None:
            pytest.skip("needs the program redis-server, of Redis 7 or Valkey")
        directory = self.folder.parent / f"{self.folder.name}-redis"
        directory.mkdir()
        server = redis.RedisServer(directory)
        self._ports["6379"] = server.port
        self._stack.callback(server.close)
        server.start()

    def run_python(self, blocks: Sequence[Block], monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
        """Runs blocks from top to bottom, in one namespace, with the folder as the current one, and returns what they defined.

        What their app has opened is closed with the place.
        """
        if any(NEEDS_REDIS.search(block.text) for block in blocks):
            self.start_redis()
        monkeypatch.chdir(self.folder)
        # A module's own `sse`, which one app only can have.
        monkeypatch.delitem(sys.modules, "sseflask.compat.flask_sse", raising=False)
        namespace: dict[str, Any] = {"__name__": f"docs_{self.folder.name}"}
        self._stack.callback(self._close_app, namespace)
        for block in blocks:
            # So many empty lines first that an error names the line of the page.
            source = "\n" * (block.line - 1) + self.here(block.text)
            try:
                exec(compile(source, str(block.page), "exec"), namespace)
            except Exception as error:
                raise block.fails(f"the code raises {error!r}") from error
        return namespace

    def _close_app(self, namespace: dict[str, Any]) -> None:
        app = namespace.get("app")
        installation = app.extensions.get("sse") if app is not None else None
        if installation is not None and (broker := installation.broker_in_use) is not None:
            broker.close()

    def _state_folder(self, found: re.Match[str]) -> str:
        self._state.mkdir(exist_ok=True)
        self._state_name = found[0]
        return str(self._state)
