"""Real servers on free ports, started for one test and surely stopped after it."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import ssl
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self

from tests.live import process
from tests.live.process import wait_until

if TYPE_CHECKING:
    from tests.live.client import Closable

ROOT = Path(__file__).resolve().parents[2]
HOOKS = Path(__file__).with_name("gunicorn_hooks.py")
TARGET = re.compile(r"[\w.]+:\w+(\(\))?")
NOT_OURS = re.compile(r"(GUNICORN|FLASK|HARNESS|SSE)_.*|WEB_CONCURRENCY|PORT|BIND|PYTHONPATH")
SOCKET_PATH_BYTES = 100  # the kernel takes 107

Kind = Literal["gunicorn", "flask", "pywsgi"]

RUNNING: list[Server] = []
"""The servers that are started and not stopped: a failed test shows their logs."""


class ServerEnded(Exception):
    """A server that was starting ended by itself."""


class Server:
    """A server in a process group of its own.

    Attributes:
        target: What it serves, as `module:app`.
        directory: Its working directory: the log, the state and a source-text app lie there.
        address: `(host, port)` or a unix socket's path; known once started, kept over a restart.
        process: The started process; for gunicorn that's the arbiter.
    """

    def __init__(
        self,
        app: str,
        directory: Path,
        *,
        kind: Kind = "gunicorn",
        worker_class: str = "sseflask.worker.StreamWorker",
        workers: int = 1,
        args: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        unix: bool = False,
        tls: bool = False,
        port: int = 0,
        config: str | Path | None = None,
    ) -> None:
        """Stores how to start; `start` starts.

        Args:
            app: `module:app` or `module:create_app()`, found from the repository or the directory, or a module's source
                text that defines `app`.
            directory: An existing directory for this server alone.
            kind: `gunicorn`, `flask` (`flask run`) or `pywsgi` (gevent's own server). All options below but `args`,
                `env`, `port` and (for `flask`) `tls` are gunicorn's.
            worker_class: As for gunicorn's `-k`.
            workers: How many.
            args: Further arguments, last on the command line, so they win over the harness's own.
            env: Added to the environment.
            unix: Listen on a unix socket instead of 127.0.0.1.
            tls: Serve TLS with a certificate for localhost made for this server.
            port: 0 for a free one.
            config: A gunicorn configuration: source text, or the path of a file. It wins over the harness's defaults only
                where these aren't arguments (bind, worker class, workers, logs and control socket are).
        """
        self.directory = directory
        self.target = app if TARGET.fullmatch(app) else self._write_app(app)
        self.address: tuple[str, int] | str = ("127.0.0.1", port)
        self.process: subprocess.Popen[bytes] | None = None
        self._kind = kind
        self._worker_class = worker_class
        self._workers = workers
        self._args = list(args)
        self._env = dict(env or {})
        self._config = config
        self._clients: list[Closable] = []
        self._exit_code: int | None = None
        self._log = directory / "server.log"
        self._log_start = 0
        self._state = directory / "state"
        self._authority = self._make_certificate() if tls else None
        self._socket_directory: Path | None = None
        if unix:
            self.address = str(self._unix_directory() / "server.sock")

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def __repr__(self) -> str:
        return f"<Server {self._kind} {self.target} at {self.address} pid={self.process.pid if self.process else None}>"

    # Life

    def start(self, timeout: float = 20.0) -> Self:
        """Starts it and waits until it listens and, for gunicorn, all its workers have loaded the app.

        Raises:
            ServerEnded: It ended by itself; the text holds its log.
            AssertionError: It wasn't ready in time; the text holds its log.
        """
        assert self.process is None, f"{self!r} is started already"
        shutil.rmtree(self._state, ignore_errors=True)
        self._state.mkdir()
        self._exit_code = None
        self._log_start = len(self.log())
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                self._command(),
                cwd=self.directory,
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        RUNNING.append(self)
        try:
            wait_until(self._is_ready, timeout, f"{self!r} to be ready")
        except AssertionError as error:
            text = f"{error}\n{self.log()}"
            self.stop()
            raise AssertionError(text) from None
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """Kills the whole process group and closes all clients; safe to call twice. For a graceful end send SIGTERM first.

        Raises:
            AssertionError: A process of the group is still there after 10 s.
        """
        for client in self._clients:
            client.hang_up()
        self._clients.clear()
        if self.process is not None:
            # The leader isn't reaped before this, not even by `exit_code`, so its id can't have become another's.
            os.killpg(self.process.pid, signal.SIGKILL)
            group = self.process.pid
            self.process.wait(10)
            self.process = None
            RUNNING.remove(self)
            wait_until(lambda: not process.group_members(group), 10, f"the processes of {self!r} to be gone")
        if self._socket_directory is not None and self._socket_directory != self.directory:
            shutil.rmtree(self._socket_directory, ignore_errors=True)

    def restart(self, timeout: float = 20.0) -> Self:
        """Kills it and starts it again at the same address; the log goes on."""
        self.stop()
        if self._socket_directory is not None:
            self._socket_directory.mkdir(exist_ok=True)
        return self.start(timeout)

    def signal(self, number: int) -> None:
        """Sends a signal to the started process (for gunicorn: the arbiter)."""
        os.kill(self.pid, number)

    def exit_code(self) -> int | None:
        """What the started process ended with (negative: by that signal), `None` while it runs."""
        if self._exit_code is None:
            # WNOWAIT leaves the zombie: see `stop`.
            ended = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if ended is not None:
                self._exit_code = ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status
        return self._exit_code

    def wait_for_exit(self, timeout: float) -> int:
        """Waits until the started process has ended by itself and returns its exit code.

        Raises:
            AssertionError: It still runs.
        """
        wait_until(lambda: self.exit_code() is not None, timeout, f"{self!r} to exit")
        code = self.exit_code()
        assert code is not None
        return code

    # Asking

    @property
    def pid(self) -> int:
        """The started process; for gunicorn that's the arbiter."""
        assert self.process is not None, f"{self!r} isn't started"
        return self.process.pid

    @property
    def port(self) -> int:
        """The TCP port."""
        assert isinstance(self.address, tuple), "a unix socket has no port"
        return self.address[1]

    def url(self, path: str = "/") -> str:
        """The address of a path, for a browser."""
        return f"{'https' if self._authority else 'http'}://127.0.0.1:{self.port}{path}"

    def worker_pids(self) -> list[int]:
        """The living processes that serve requests, oldest first; a worker that is leaving counts until it has gone."""
        if self._kind != "gunicorn":
            return [self.pid] if process.is_alive(self.pid) else []
        return process.children(self.pid)

    def worker_pid(self) -> int:
        """The only worker.

        Raises:
            AssertionError: There is another number of them.
        """
        pids = self.worker_pids()
        assert len(pids) == 1, f"not one worker: {pids}"
        return pids[0]

    def ready_workers(self) -> list[int]:
        """The living workers that have loaded the app, oldest first."""
        if self._kind != "gunicorn":
            return self.worker_pids()
        return [pid for pid in self.worker_pids() if (self._state / f"ready-{pid}").exists()]

    def wait_for_new_workers(self, old: Sequence[int], timeout: float = 10.0) -> list[int]:
        """Waits until as many workers as were asked for are ready that aren't `old` (after SIGHUP, or a worker's end).

        Returns:
            The new ones.

        Raises:
            AssertionError: They didn't come in time.
        """

        def new() -> list[int]:
            found = [pid for pid in self.ready_workers() if pid not in old]
            return found if len(found) >= self._workers else []

        return wait_until(new, timeout, f"{self._workers} workers other than {list(old)}")

    def worker_left(self, pid: int) -> tuple[float, float]:
        """The monotonic second at which a worker of gunicorn's left, and the `starved_seconds` of its life.

        Raises:
            FileNotFoundError: It hasn't left by itself.
        """
        at, starved = json.loads((self._state / f"left-{pid}").read_text())
        return at, starved

    def log(self) -> str:
        """All that the server has written to its standard output and error."""
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    def wait_for_log(self, pattern: str, timeout: float = 10.0) -> re.Match[str]:
        """Waits until the log has a match of the regular expression (`^` and `$` match at each line).

        Raises:
            AssertionError: It had none in time.
        """
        compiled = re.compile(pattern, re.MULTILINE)
        found = wait_until(lambda: compiled.search(self.log()), timeout, f"{pattern!r} in the log")
        assert found is not None
        return found

    # For the client

    def adopt(self, client: Closable) -> None:
        """Takes over closing the client when the server stops."""
        self._clients = [each for each in self._clients if each.fileno() >= 0]
        self._clients.append(client)

    def tls_context(self, alpn: Sequence[str] = ()) -> ssl.SSLContext | None:
        """How to speak TLS to this server, trusting its certificate; `None` when it doesn't."""
        if self._authority is None:
            return None
        context = ssl.create_default_context(cafile=str(self._authority))
        if alpn:
            context.set_alpn_protocols(list(alpn))
        return context

    # Within

    def _command(self) -> list[str]:
        port = str(self.address[1]) if isinstance(self.address, tuple) else ""
        certificate = [str(self.directory / "server.pem"), str(self.directory / "server.key")]
        match self._kind:
            case "gunicorn":
                bind = f"127.0.0.1:{port}" if port else f"unix:{self.address}"
                # By its script: after USR2 `python -m gunicorn` would find gunicorn's own `http` instead of Python's.
                script = str(Path(sys.executable).with_name("gunicorn"))
                command = [script, "-c", str(HOOKS), "-b", bind, "-k", self._worker_class, "-w", str(self._workers)]
                command += ["--access-logfile", "-", "--error-logfile", "-", "--no-control-socket"]
                if self._authority:
                    command += ["--certfile", certificate[0], "--keyfile", certificate[1]]
                return [sys.executable, *command, *self._args, self.target]
            case "flask":
                command = ["-m", "flask", "--app", self.target, "run", "--no-reload", "--host", "127.0.0.1", "--port", port]
                if self._authority:
                    command += ["--cert", certificate[0], "--key", certificate[1]]
                return [sys.executable, *command, *self._args]
            case "pywsgi":
                return [sys.executable, "-m", "tests.live.run_pywsgi", self.target, port, str(self._state / "port"), *self._args]

    def _environment(self) -> dict[str, str]:
        environment = {name: value for name, value in os.environ.items() if not NOT_OURS.fullmatch(name)}
        environment |= {
            "PYTHONPATH": f"{self.directory}:{ROOT}",
            "PYTHONUNBUFFERED": "1",
            # A module that a test rewrites within the same second would be loaded from its old bytecode.
            "PYTHONDONTWRITEBYTECODE": "1",
            "HARNESS_STATE": str(self._state),
        }
        if isinstance(self._config, str):
            (self.directory / "config_of_test.py").write_text(textwrap.dedent(self._config))
        if self._config is not None:
            path = self.directory / "config_of_test.py" if isinstance(self._config, str) else self._config.resolve()
            environment["HARNESS_CONFIG"] = str(path)
        return environment | self._env

    def _is_ready(self) -> bool:
        if self.exit_code() is not None:
            raise ServerEnded(f"{self!r} ended with {self.exit_code()}:\n{self.log()}")
        match self._kind:
            case "gunicorn":
                if not (self._state / "addresses").exists() or len(self.ready_workers()) < self._workers:
                    return False
                if isinstance(self.address, tuple):
                    host, port = json.loads((self._state / "addresses").read_text())[0]
                    self.address = (host, port)
                return True
            case "flask":
                found = re.findall(r"Running on https?://127\.0\.0\.1:(\d+)", self.log()[self._log_start :])
                if found:
                    self.address = ("127.0.0.1", int(found[0]))
                return bool(found)
            case "pywsgi":
                if (self._state / "port").exists():
                    self.address = ("127.0.0.1", int((self._state / "port").read_text()))
                return (self._state / "port").exists()

    def _write_app(self, source: str) -> str:
        """Writes an app's source text down as a module of its own and returns it as `module:app`."""
        (self.directory / "app_of_test.py").write_text(textwrap.dedent(source))
        return "app_of_test:app"

    def _unix_directory(self) -> Path:
        """Where the unix socket goes: the server's directory, unless the path would be too long for a socket."""
        self._socket_directory = self.directory
        if len(os.fsencode(self.directory / "server.sock")) > SOCKET_PATH_BYTES:
            self._socket_directory = Path(tempfile.mkdtemp(prefix="sse-"))
        return self._socket_directory

    def _make_certificate(self) -> Path:
        """Makes a certificate for localhost and returns the file of the authority that signed it."""
        import trustme

        authority = trustme.CA()
        issued = authority.issue_cert("localhost", "127.0.0.1")
        authority.cert_pem.write_to_path(self.directory / "authority.pem")
        issued.private_key_pem.write_to_path(self.directory / "server.key")
        for index, part in enumerate(issued.cert_chain_pems):
            part.write_to_path(self.directory / "server.pem", append=index > 0)
        return self.directory / "authority.pem"
