"""A Redis of a test's own: started on a free port, killed, stopped, started again; and a network to it that fails on demand."""

from __future__ import annotations

import contextlib
import shutil
import signal
import socket
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.live.process import wait_until

BINARY = shutil.which("redis-server")

needs_redis = pytest.mark.skipif(BINARY is None, reason="needs the program redis-server, of Redis 7 or Valkey")


def free_port() -> int:
    """A TCP port that nobody listens on."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


class RedisServer:
    """A redis-server.

    Attributes:
        port: Where it listens; the same after a restart.
        url: Its URL.
        client: redis-py's own client, for what a test does to it behind the store's back.
    """

    def __init__(self, directory: Path, **options: str) -> None:
        """Stores what it is given; `options` are those of redis.conf, with `_` for `-`."""
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}"
        self.client: Any = redis.Redis(port=self.port, socket_timeout=5, retry=None, password=options.get("requirepass"))
        self._directory = directory
        self._options = {"appendonly": "no", "save": "", **options}
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> RedisServer:
        """Starts it and waits until it answers."""
        assert BINARY is not None
        command = [BINARY, "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self._directory)]
        for name, value in self._options.items():
            command += [f"--{name.replace('_', '-')}", value]
        with (self._directory / "log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        wait_until(self._answers, 10, "redis-server answers")
        return self

    def kill(self) -> None:
        """Kills it: what it has not written is lost."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def restart(self) -> None:
        """Kills it, and starts it with what it had written."""
        self.kill()
        self.start()

    def stand_still(self) -> None:
        """Stops the process; its connections stay."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """Lets the process go on."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        """Ends it, whatever state it is in."""
        self.client.close()
        self.kill()

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, (self._directory / "log").read_text()
        with contextlib.suppress(redis.ConnectionError):
            return bool(self.client.ping())
        return False


class Proxy:
    """A network between a store and its Redis.

    Attributes:
        port: Where it listens.
        is_silent: Drops all that is sent, both ways; nobody is told.
        cuts: So many answers of Redis's end their connection instead of getting through.
        connections: How many it has taken.
    """

    def __init__(self, port: int) -> None:
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.is_silent = False
        self.cuts = 0
        self.connections = 0
        self._sockets: list[socket.socket] = [self._listener]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Ends all connections."""
        for sock in self._sockets:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                self.connections += 1
                far = socket.create_connection(("127.0.0.1", self._target))
                self._sockets += [near, far]
                threading.Thread(target=self._pump, args=(near, far, False), daemon=True).start()
                threading.Thread(target=self._pump, args=(far, near, True), daemon=True).start()

    def _pump(self, source: socket.socket, target: socket.socket, is_answer: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if self.is_silent:
                    continue
                if is_answer and self.cuts:
                    self.cuts -= 1
                    break
                target.sendall(data)
        for sock in (source, target):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
