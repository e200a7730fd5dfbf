"""The peers: what people would pick instead, and two limits of what a server could do."""

from __future__ import annotations

import dataclasses
import getpass
import os
import resource
from collections.abc import Callable
from pathlib import Path

from . import environment
from .environment import PEERS, Unavailable

ROOT = Path(__file__).parent.parent


@dataclasses.dataclass(frozen=True)
class Launch:
    """How a server is started.

    Attributes:
        command: The program and its arguments.
        directory: Where it runs.
        environ: Variables besides the harness's own.
    """

    command: list[str]
    directory: Path
    environ: dict[str, str]


@dataclasses.dataclass(frozen=True)
class Peer:
    """A server that speaks the harness's small interface: `/subscribe?channel=`, `/publish?channel=&count=&size=&rate=`.

    Attributes:
        name: Its directory under `peers/`.
        title: What it is.
        launch: Makes the command, from the port and a directory for its files; it may raise `Unavailable`.
        needs_redis: Whether it publishes through Redis.
        is_silent: Whether it sends no headers before the first event, so that warm-up events show when a stream is open.
        opens_late: Whether a stream listens only when the first byte of its body has come, not with the headers.
        is_posted_to: Whether publishers speak to it over HTTP, one POST an event, because that is how it is used.
        generates: Whether it has `/generate?count=&size=&pause=`, a stream made by one generator for one client.
        idles: Whether it has `/idle`, a generator that waits.
        replays: Whether a client that comes back with `Last-Event-ID` gets what it missed.
        has_hub: Whether `/hub` says how long its gevent hub was kept from polling.
        workers: Its processes; those with several are for the scenario that is about them.
    """

    name: str
    title: str
    launch: Callable[[int, Path], Launch]
    needs_redis: bool = False
    is_silent: bool = False
    opens_late: bool = False
    is_posted_to: bool = False
    generates: bool = False
    idles: bool = False
    replays: bool = False
    has_hub: bool = False
    workers: int = 1

    def publish_path(
        self, *, count: int, size: int = 100, rate: float = 0, first: int = 1, channels: int = 1, more: str = ""
    ) -> str:
        """The path that makes it publish."""
        return f"/publish?channel=c0&channels={channels}&count={count}&size={size}&rate={rate:g}&first={first}{more}"


def _python(name: str, port: int, *command: str) -> Launch:
    interpreter = environment.python(name)
    paths = [PEERS / "shared", ROOT] if name == "sseflask" else [PEERS / "shared"]
    environ = {
        "PYTHONPATH": os.pathsep.join(map(str, paths)),
        "PYTHONDONTWRITEBYTECODE": "1",
        "BENCH_BIND": f"127.0.0.1:{port}",
    }
    return Launch([str(interpreter), "-m", *command], PEERS / name, environ)


def _gunicorn(name: str, worker: str, *, workers: int = 1, broker: str = "memory://") -> Callable[[int, Path], Launch]:
    def launch(port: int, directory: Path) -> Launch:
        conf = PEERS / "shared" / "gunicorn.conf.py"
        made = _python(name, port, "gunicorn", "-c", str(conf), "-k", worker, "app:app")
        environ = {"BENCH_WORKERS": str(workers), "BENCH_BROKER": broker, "TMPDIR": str(directory)}
        return dataclasses.replace(made, environ={**made.environ, **environ})

    return launch


def _uvicorn(name: str) -> Callable[[int, Path], Launch]:
    def launch(port: int, directory: Path) -> Launch:
        options = ["--loop", "uvloop", "--http", "httptools", "--no-access-log", "--log-level", "warning", "--backlog", "4096"]
        return _python(name, port, "uvicorn", "app:app", "--port", str(port), *options)

    return launch


def _better_sse(port: int, directory: Path) -> Launch:
    made = environment.node("better-sse")
    return Launch([environment.require("node", "nodejs"), "server.mjs"], made, {"BENCH_PORT": str(port)})


def _python_send(port: int, directory: Path) -> Launch:
    interpreter = environment.python("flask-plain")
    return Launch([str(interpreter), "server.py"], PEERS / "python-send", {"BENCH_PORT": str(port)})


def _c_send(port: int, directory: Path) -> Launch:
    program = environment.compiled(PEERS / "c-send" / "server.c")
    return Launch([str(program)], directory, {"BENCH_PORT": str(port)})


def _nchan(port: int, directory: Path) -> Launch:
    nginx = environment.require("nginx", "nginx")
    modules = [
        path
        for path in map(Path, ("/usr/lib/nginx/modules", "/usr/lib64/nginx/modules"))
        if (path / "ngx_nchan_module.so").exists()
    ]
    if not modules:
        raise Unavailable("nginx's nchan module is missing (Debian: apt-get install libnginx-mod-nchan)")
    text = (PEERS / "nchan" / "nginx.conf").read_text()
    files = min(40_000, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    values = {"MODULES": modules[0], "USER": getpass.getuser(), "DIRECTORY": directory, "PORT": port, "FILES": files}
    for key, value in values.items():
        text = text.replace(f"@{key}@", str(value))
    conf = directory / "nginx.conf"
    conf.write_text(text)
    return Launch([nginx, "-p", str(directory), "-e", "stderr", "-c", str(conf)], directory, {})


STREAM_WORKER = "sseflask.worker.StreamWorker"

ALL = (
    Peer(
        "sseflask",
        "sseflask, `StreamWorker`, `memory://`",
        _gunicorn("sseflask", STREAM_WORKER),
        generates=True,
        idles=True,
        replays=True,
        has_hub=True,
    ),
    Peer(
        "sseflask-auto",
        "sseflask, `StreamWorker`, `auto`: an SQLite file",
        _gunicorn("sseflask", STREAM_WORKER, broker="auto"),
        replays=True,
        has_hub=True,
    ),
    Peer(
        "flask-plain",
        "plain Flask generator, queue per client, gunicorn gevent",
        _gunicorn("flask-plain", "gevent"),
        generates=True,
        idles=True,
        has_hub=True,
    ),
    Peer("flask-sse", "Flask-SSE, Redis, gunicorn gevent", _gunicorn("flask-sse", "gevent"), needs_redis=True, is_silent=True),
    Peer("sse-starlette", "sse-starlette, uvicorn", _uvicorn("sse-starlette"), generates=True),
    Peer("fastapi", "FastAPI's own, uvicorn", _uvicorn("fastapi"), generates=True, opens_late=True),
    Peer("django-eventstream", "django-eventstream, uvicorn", _uvicorn("django-eventstream"), opens_late=True),
    Peer("better-sse", "better-sse, Node", _better_sse, generates=True),
    Peer("nchan", "nginx with nchan", _nchan, is_posted_to=True, replays=True),
    Peer(
        "sseflask-sqlite-2",
        "sseflask, 2 workers on an SQLite file",
        _gunicorn("sseflask", STREAM_WORKER, workers=2, broker="auto"),
        workers=2,
    ),
    Peer(
        "sseflask-redis-2",
        "sseflask, 2 workers on Redis",
        _gunicorn("sseflask", STREAM_WORKER, workers=2, broker="redis"),
        needs_redis=True,
        workers=2,
    ),
    Peer(
        "flask-sse-2",
        "Flask-SSE, 2 workers on Redis",
        _gunicorn("flask-sse", "gevent", workers=2),
        needs_redis=True,
        is_silent=True,
        workers=2,
    ),
    Peer("python-send", "limit: one Python `send` per event", _python_send),
    Peer("c-send", "limit: one C `send` per event", _c_send),
)

BY_NAME = {peer.name: peer for peer in ALL}
