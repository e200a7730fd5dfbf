"""The proxies of deploy/, started with those very files: a copy, in which only names, ports and paths are others."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import ssl
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal, Self

import pytest
import trustme

from tests.live.client import Closable
from tests.live.process import wait_until
from tests.live.server import ROOT
from tests.redis import free_port

Kind = Literal["nginx", "haproxy", "caddy"]

KINDS: Final[tuple[Kind, ...]] = ("nginx", "haproxy", "caddy")
#: Debian keeps some where only root's PATH leads.
PATH: Final = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/usr/local/sbin"
PROGRAMS: Final[dict[Kind, str | None]] = {kind: shutil.which(kind, path=PATH) for kind in KINDS}
FILES: Final[dict[Kind, str]] = {"nginx": "nginx.conf", "haproxy": "haproxy.cfg", "caddy": "Caddyfile"}

Changes = Mapping[str, str]


class ProxyEnded(Exception):
    """A proxy that was starting ended by itself."""


class Door:
    """Where a proxy listens without TLS: what the file has there is to send browsers to TLS."""

    def __init__(self, proxy: Proxy, port: int) -> None:
        self.address = ("127.0.0.1", port)
        self._proxy = proxy

    def tls_context(self, alpn: Sequence[str] = ()) -> None:
        """None: it is plain text."""

    def adopt(self, client: Closable) -> None:
        """Takes over closing the client when the proxy stops."""
        self._proxy.adopt(client)


class Proxy:
    """A proxy with TLS in front of two upstreams, on a port of its own.

    Attributes:
        kind: Which one.
        address: Where it listens.
        door: Where it listens without TLS.
    """

    def __init__(self, kind: Kind, directory: Path, upstreams: Sequence[int], changes: Changes | None = None) -> None:
        """Stores how to start.

        Args:
            kind: Which one.
            directory: An existing directory for this proxy alone.
            upstreams: The ports of the two servers behind it.
            changes: What else is replaced in the file, and by what.
        """
        self.kind: Kind = kind
        self.address = ("127.0.0.1", free_port())
        self.door = Door(self, free_port())
        self._directory = directory
        self._upstreams = tuple(upstreams)
        self._changes = dict(changes or {})
        self._clients: list[Closable] = []
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def __repr__(self) -> str:
        return f"<Proxy {self.kind} at {self.address}>"

    def start(self) -> Self:
        """Starts it, and waits until it listens.

        Raises:
            ProxyEnded: It ended by itself; the text holds its log.
            AssertionError: It didn't listen in time.
        """
        self._make_certificate()
        path = self._directory / FILES[self.kind]
        path.write_text(changed(changed((ROOT / "deploy" / path.name).read_text(), self._site()), self._changes))
        program = PROGRAMS[self.kind]
        assert program is not None
        command = {
            "nginx": [program, "-p", str(self._directory), "-e", "stderr", "-c", str(path), "-g", "daemon off;"],
            "haproxy": [program, "-db", "-f", str(path)],
            "caddy": [program, "run", "--adapter", "caddyfile", "--config", str(path)],
        }
        environment = {
            **os.environ,
            "HOME": str(self._directory),
            "XDG_DATA_HOME": str(self._directory),
            "XDG_CONFIG_HOME": str(self._directory),
            # Any host's name will do.
            "SITE": f":{self.address[1]}",
            "UPSTREAMS": " ".join(f"127.0.0.1:{port}" for port in self._upstreams),
        }
        with (self._directory / "proxy.log").open("wb") as log:
            self._process = subprocess.Popen(
                command[self.kind], stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, start_new_session=True
            )
        try:
            wait_until(self._listens, 20, f"{self!r} to listen")
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """Kills it, and closes all clients; safe to call twice."""
        for client in self._clients:
            client.hang_up()
        self._clients.clear()
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(10)
            self._process = None

    def log(self) -> str:
        """What it has written to its standard output and error."""
        return (self._directory / "proxy.log").read_text(errors="replace")

    def url(self, path: str) -> str:
        """The address of a path."""
        return f"https://localhost:{self.address[1]}{path}"

    @property
    def authority(self) -> Path:
        """The certificate of who signed its own."""
        return self._directory / "authority.pem"

    def tls_context(self, alpn: Sequence[str] = ()) -> ssl.SSLContext:
        """How to speak TLS to it, trusting its certificate."""
        context = ssl.create_default_context(cafile=str(self.authority))
        context.set_alpn_protocols(list(alpn) or ["http/1.1"])
        return context

    def adopt(self, client: Closable) -> None:
        """Takes over closing the client when the proxy stops."""
        self._clients = [each for each in self._clients if each.fileno() >= 0]
        self._clients.append(client)

    def _site(self) -> Changes:
        """What a site changes in the file."""
        port, plain, here = self.address[1], self.door.address[1], self._directory
        first, second = self._upstreams
        servers = {"127.0.0.1:8000": f"127.0.0.1:{first}", "127.0.0.1:8001": f"127.0.0.1:{second}"}
        match self.kind:
            case "nginx":
                temporary = "client_body", "proxy", "fastcgi", "uwsgi", "scgi"
                paths = "".join(f"\n    {each}_temp_path {here}/{each};" for each in temporary)
                return servers | {
                    "worker_processes auto;": f"worker_processes 1;{' user root;' if os.geteuid() == 0 else ''}",
                    "/run/nginx.pid": f"{here}/nginx.pid",
                    "/var/log/nginx/error.log": "stderr",
                    "/var/log/nginx/access.log": f"{here}/access.log",
                    "http {\n": f"http {{{paths}\n",
                    "listen 80;": f"listen 127.0.0.1:{plain};",
                    "listen [::]:80;": "",
                    "listen 443 ssl http2;": f"listen 127.0.0.1:{port} ssl http2;",
                    "listen [::]:443 ssl http2;": "",
                    "/etc/nginx/site.": f"{here}/site.",
                }
            case "haproxy":
                return servers | {
                    "maxconn 30000": "maxconn 500",
                    "bind :80": f"bind 127.0.0.1:{plain}",
                    "bind :443": f"bind 127.0.0.1:{port}",
                    "/etc/haproxy/site.pem": f"{here}/both.pem",
                }
            case "caddy":
                return {
                    "#tls /etc/caddy/site.pem /etc/caddy/site.key": f"tls {here}/site.pem {here}/site.key",
                    "grace_period 10s": f"grace_period 10s\n\tadmin off\n\thttp_port {plain}",
                }

    def _make_certificate(self) -> None:
        here = self._directory
        authority = trustme.CA()
        issued = authority.issue_cert("localhost", "127.0.0.1")
        authority.cert_pem.write_to_path(self.authority)
        issued.private_key_pem.write_to_path(here / "site.key")
        issued.private_key_and_cert_chain_pem.write_to_path(here / "both.pem")
        (here / "site.pem").write_bytes(b"".join(part.bytes() for part in issued.cert_chain_pems))

    def _listens(self) -> bool:
        assert self._process is not None
        # WNOWAIT leaves the zombie, so that its id can't become another's before `stop`.
        if os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
            raise ProxyEnded(f"{self!r} ended by itself:\n{self.log()}")
        try:
            with socket.create_connection(self.address, 1):
                return True
        except OSError:
            return False


def changed(text: str, changes: Changes) -> str:
    """A text with each of these replaced, wherever it is; what isn't there at all is an error of the test."""
    for old, new in changes.items():
        assert old in text, f"{old!r} isn't in the file"
        text = text.replace(old, new)
    return text


def is_missing(kind: Kind) -> bool:
    """Whether a proxy's tests are left out: where it couldn't be installed, but never where all of them have to run."""
    return PROGRAMS[kind] is None and not os.environ.get("CI")


def needing(kind: Kind, *values: object) -> Any:
    """A test's parameters, for where this proxy is installed."""
    return pytest.param(
        kind, *values, id=kind, marks=pytest.mark.skipif(is_missing(kind), reason=f"needs {kind} (sh tests/system.sh proxies)")
    )
