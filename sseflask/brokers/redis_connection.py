"""Connections to Redis: whereto, which servers are fit, and who uses one at a time."""

from __future__ import annotations

import collections
import dataclasses
import functools
import importlib.util
import secrets
import socket
import time
import urllib.parse
from collections.abc import Callable, Sequence
from typing import Any, Final

from sseflask import native
from sseflask.errors import BrokerUnavailable, InvalidSetting

from .redis_script import Script

#: Connections that a pool opens at the most; who finds none waits for one.
POOL_SIZE: Final = 16
#: What a URL's query may say besides `durable`; of redis-py's arguments those that don't cross what this module sees to itself.
QUERY_ARGUMENTS: Final = frozenset(
    {
        "db",
        "password",
        "ssl_ca_certs",
        "ssl_ca_data",
        "ssl_ca_path",
        "ssl_cert_reqs",
        "ssl_certfile",
        "ssl_check_hostname",
        "ssl_ciphers",
        "ssl_keyfile",
        "ssl_min_version",
        "ssl_password",
        "username",
    }
)

_FORM: Final = "redis://[[user]:password@]host[:port][/database], rediss://… for TLS, or unix:///path[?db=0]"
_NEVER_PROMOTED: Final = "0" * 40


@dataclasses.dataclass(frozen=True, slots=True)
class Address:
    """Where a Redis is, read from a URL.

    Attributes:
        url: The URL without user, password and what else is only redis-py's.
        full: The URL as redis-py reads it.
        database: The number of the database.
        durable: Whether the URL says that Redis loses nothing when it is killed.
        secrets: What must not be shown.
    """

    url: str
    full: str = dataclasses.field(repr=False)
    database: int
    durable: bool
    secrets: tuple[str, ...] = dataclasses.field(repr=False)

    @classmethod
    def parse(cls, url: str) -> Address:
        """Reads a URL.

        Raises:
            InvalidSetting: It is no such URL; what is shown of it is its scheme.
        """
        scheme = url.partition("://")[0]
        shown = f"{scheme}://…" if scheme in ("redis", "rediss", "unix") else "another"
        try:
            parts = urllib.parse.urlsplit(url)
            query = urllib.parse.parse_qs(parts.query, keep_blank_values=True)
            host, _ = parts.hostname, parts.port
        except ValueError:
            raise InvalidSetting("SSE_BROKER_URL", shown, f"{_FORM}; in a password, / and @ are %2F and %40") from None
        if unknown := sorted(set(query) - QUERY_ARGUMENTS - {"durable"}):
            raise InvalidSetting("SSE_BROKER_URL", shown, f"without the argument {unknown[0]!r}, which it doesn't know")
        durable = query.pop("durable", ["0"])
        if durable not in (["0"], ["1"]):
            raise InvalidSetting("SSE_BROKER_URL", shown, "with durable=1 or durable=0")
        is_unix = parts.scheme == "unix"
        number = query.get("db", ["0"])[0] if is_unix or "db" in query else parts.path.strip("/") or "0"
        if parts.scheme not in ("redis", "rediss", "unix") or not number.isdecimal() or (is_unix and not parts.path):
            raise InvalidSetting("SSE_BROKER_URL", shown, _FORM)
        if is_unix:
            place = f"unix://{parts.path}" + (f"?db={number}" if int(number) else "")
        else:
            place = f"{parts.scheme}://{parts.netloc.rpartition('@')[2] or host or 'localhost'}/{number}"
        hidden = [parts.password, *query.get("password", ()), *query.get("ssl_password", ())]
        return cls(
            url=place,
            full=f"{parts.scheme}://{parts.netloc}{parts.path}?{urllib.parse.urlencode(query, doseq=True)}",
            database=int(number),
            durable=durable == ["1"],
            secrets=tuple({form for text in hidden if text for form in (text, urllib.parse.unquote(text))}),
        )


class Link:
    """An open connection to a server that is fit, used by one thread or greenlet at a time.

    Attributes:
        raw: redis-py's connection.
        run: The server's run id: another one is another process.
        durable: Whether this server has lost nothing, whatever run it had before.
        keeps: Whether it may serve further calls.
    """

    __slots__ = ("durable", "keeps", "raw", "run")

    def __init__(self, raw: Any, *, keeps: bool) -> None:
        self.raw = raw
        self.run = ""
        self.durable = False
        self.keeps = keeps

    def ask(self, deadline: float, *command: Any) -> Any:
        """Sends a command and returns the answer.

        Raises:
            redis.RedisError: There is none in time, or it is an error.
        """
        self.send(deadline, *command)
        return self.raw.read_response()

    def send(self, deadline: float, *command: Any) -> None:
        """Sends a command; also what is read next waits until `deadline` at most."""
        self.bound(deadline)
        # redis-py's own packing takes more than twice as long, a fifth of a publish's time here.
        self.raw.send_packed_command([_request(command)], check_health=False)

    def bound(self, deadline: float) -> None:
        """Sends and reads wait until then at the most."""
        self.raw.bound(max(deadline - time.monotonic(), 0.001))

    def run_script(self, deadline: float, script: Script, keys: Sequence[str], arguments: Sequence[Any]) -> Any:
        """Runs a script, which is sent along if the server doesn't have it."""
        from redis.exceptions import NoScriptError

        try:
            return self.ask(deadline, "EVALSHA", script.name, len(keys), *keys, *arguments)
        except NoScriptError:
            return self.ask(deadline, "EVAL", script.text, len(keys), *keys, *arguments)

    def is_quiet(self) -> bool:
        """Whether it is still open, with nothing to read: what it was asked for has all been answered."""
        from redis.exceptions import RedisError

        try:
            return not self.raw.can_read(0)
        except (RedisError, OSError):
            return False

    def close(self) -> None:
        """Ends it."""
        self.raw.disconnect()


class Endpoint:
    """A Redis, as one process uses it.

    Attributes:
        address: Where it is.
        prefix: What all keys begin with.
        timeout: Seconds that a call may take.
        live: What the names of the Pub/Sub channels begin with that carry entries.
        control: The Pub/Sub channel that tells of new epochs.
    """

    def __init__(self, url: str, *, prefix: str, timeout: float) -> None:
        self.address = Address.parse(url)
        if importlib.util.find_spec("redis") is None:
            raise InvalidSetting(
                "SSE_BROKER_URL", self.address.url, "of another broker, or redis-py installed: pip install 'sseflask[redis]'"
            )
        self.prefix = f"{{{prefix}}}:"
        self.timeout = timeout
        self.live = f"{self.prefix}{self.address.database}:live:"
        self.control = f"{self.prefix}{self.address.database}:life"

    def open(self, deadline: float) -> Link:
        """A new connection, for the native thread that calls this.

        Raises:
            redis.RedisError: There is none in time.
            BrokerUnavailable: The server isn't fit: it may evict keys, or isn't as durable as the URL says.
        """
        kind, options, keeps = _kind(self.address.full)
        remaining = max(deadline - time.monotonic(), 0.001)
        raw = kind(**options, socket_timeout=remaining, socket_connect_timeout=remaining)
        link = Link(raw, keeps=keeps)
        try:
            raw.connect()
            self._check(link, deadline)
        except BaseException:
            link.close()
            raise
        return link

    def life(self, link: Link) -> tuple[str, str, str, str]:
        """What a script learns of the connection that it runs by, and what it begins a new epoch with."""
        return link.run, "1" if link.durable else "0", secrets.token_hex(6), self.control

    def failed(self, error: BaseException, outcome: str = "not_published") -> BrokerUnavailable:
        """What users get of an error of redis-py's."""
        text = str(error) or type(error).__name__
        for secret in self.address.secrets:
            text = text.replace(secret, "***")
        return BrokerUnavailable(f"{self.address.url}: {text}", outcome=outcome)

    def _check(self, link: Link, deadline: float) -> None:
        from redis.exceptions import BusyLoadingError

        facts = dict(line.split(":", 1) for line in link.ask(deadline, "INFO").decode(errors="replace").splitlines() if ":" in line)
        if facts.get("loading", "0") != "0":
            # What it says of itself meanwhile isn't so: it has no append-only file yet, for one.
            raise BusyLoadingError("Redis is loading what it had written")
        link.run = facts.get("run_id", "")
        if not link.run:
            self._refuse("INFO doesn't tell its run_id, without which a restart that lost events can't be known")
        if (policy := facts.get("maxmemory_policy", "noeviction")) != "noeviction":
            self._refuse(f"maxmemory-policy is {policy}, and evicted keys would be lost events: set it to noeviction")
        if self.address.durable:
            if facts.get("aof_enabled") != "1":
                self._refuse("durable=1 needs appendonly yes and appendfsync always; appendonly is no")
            if (fsync := self._setting(link, deadline, "appendfsync")) not in ("always", None):
                self._refuse(f"durable=1 needs appendfsync always; it is {fsync}")
            # A replica that was promoted may lack what its master had accepted.
            link.durable = facts.get("master_replid2", _NEVER_PROMOTED) == _NEVER_PROMOTED

    def _setting(self, link: Link, deadline: float, name: str) -> str | None:
        """One of the server's settings; None where it doesn't tell."""
        from redis.exceptions import ResponseError

        try:
            answer = link.ask(deadline, "CONFIG", "GET", name)
        except ResponseError:
            return None
        return answer[1].decode() if len(answer) == 2 else None

    def _refuse(self, problem: str) -> None:
        raise BrokerUnavailable(f"{self.address.url}: {problem}")


class Pool:
    """The connections of one process that greenlets share, or that native threads share: never both."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._open = endpoint.open
        self._lock = native.Lock()
        self._idle: list[Link] = []
        self._count = 0
        self._waiting: collections.deque[_Waiting] = collections.deque()

    def take(self, deadline: float) -> Link:
        """A connection, for the caller alone until it gives it back or drops it.

        Raises:
            redis.RedisError: None can be opened.
            TimeoutError: None was free in time.
        """
        while (link := self._find(deadline)) is not None:
            if link.is_quiet():
                return link
            # The server has closed it while it lay idle: nothing was sent by it that could be lost.
            self.drop(link)
        try:
            return self._open(deadline)
        except BaseException:
            self._lose()
            raise

    def give(self, link: Link) -> None:
        """Takes a connection back."""
        if not link.keeps:
            self.drop(link)
            return
        with self._lock:
            waiting = self._waiting.popleft() if self._waiting else None
            if waiting is None:
                self._idle.append(link)
                return
            waiting.link = link
            waiting.is_served = True
        waiting.latch.open()

    def drop(self, link: Link) -> None:
        """Closes a connection that can't be used any more."""
        link.close()
        self._lose()

    def close(self) -> None:
        """Closes those that lie idle."""
        with self._lock:
            idle, self._idle = self._idle, []
        for link in idle:
            self.drop(link)

    def _find(self, deadline: float) -> Link | None:
        """One that lies idle; None for the right to open one."""
        with self._lock:
            if self._idle:
                return self._idle.pop()
            if self._count < POOL_SIZE:
                self._count += 1
                return None
            waiting = _Waiting()
            self._waiting.append(waiting)
        try:
            waiting.latch.wait(deadline - time.monotonic())
        except BaseException:
            self._leave(waiting)
            raise
        with self._lock:
            if not waiting.is_served:
                self._waiting.remove(waiting)
                raise TimeoutError("all connections are in use")
        return waiting.link

    def _leave(self, waiting: _Waiting) -> None:
        """The one that waited was ended: what it was given meanwhile goes to the next."""
        with self._lock:
            if not waiting.is_served:
                self._waiting.remove(waiting)
                return
        if waiting.link is None:
            self._lose()
        else:
            self.give(waiting.link)

    def _lose(self) -> None:
        """There is one less: the next may open another."""
        with self._lock:
            waiting = self._waiting.popleft() if self._waiting else None
            if waiting is None:
                self._count -= 1
                return
            waiting.is_served = True
        waiting.latch.open()


class _Waiting:
    """One that waits for a connection: it is served with one, or with the right to open one."""

    __slots__ = ("is_served", "latch", "link")

    def __init__(self) -> None:
        self.latch = native.Latch()
        self.link: Link | None = None
        self.is_served = False


def _request(command: Sequence[Any]) -> bytes:
    """A command as Redis reads it."""
    parts = [b"*%d\r\n" % len(command)]
    for part in command:
        text = part if isinstance(part, bytes) else str(part).encode()
        parts.append(b"$%d\r\n%b\r\n" % (len(text), text))
    return b"".join(parts)


def _kind(url: str) -> tuple[Callable[..., Any], dict[str, Any], bool]:
    """redis-py's class of connection for a URL, its arguments, and whether such a one may serve more than one call here."""
    from redis.connection import parse_url

    options: dict[str, Any] = dict(parse_url(url))  # type: ignore[no-untyped-call]
    tcp, tls, unix = _kinds()
    named = options.pop("connection_class", None)
    kind = unix if named is not None and issubclass(unix, named) else tls if named is not None else tcp
    # The library's name and version are two more round trips; RESP2 needs no greeting.
    options |= {"protocol": 2, "driver_info": None, "retry": None}
    # gevent's TLS sockets belong to the hub of the thread that made them, and a native thread has one for as long as it lives.
    return kind, options, not (kind is tls and native.is_apart())


@functools.cache
def _kinds() -> tuple[type[Any], type[Any], type[Any]]:
    """redis-py's connections, with sockets that suit the calling native thread, and calls with a bound."""
    from redis import connection

    class Bounded:
        _sock: Any

        def bound(self, seconds: float) -> None:
            """Sends and reads wait so long at most."""
            self._sock.settimeout(seconds)

        def fileno(self) -> int:
            """The socket's."""
            number: int = self._sock.fileno()
            return number

    class Tcp(Bounded, connection.Connection):
        def _connect(self) -> Any:
            if not native.is_apart():
                return super()._connect()  # type: ignore[no-untyped-call]
            error: OSError = OSError("the host has no address")
            for family, _, _, _, address in native.addresses(self.host, self.port):
                sock = native.new_socket(family)
                try:
                    sock.settimeout(self.socket_connect_timeout)
                    sock.connect(address)
                except OSError as failure:
                    sock.close()
                    error = failure
                    continue
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                sock.settimeout(self.socket_timeout)
                return sock
            raise error

    class Tls(Bounded, connection.SSLConnection):
        pass

    class Unix(Bounded, connection.UnixDomainSocketConnection):
        def _connect(self) -> Any:
            if not native.is_apart():
                return super()._connect()  # type: ignore[no-untyped-call]
            sock = native.new_socket(socket.AF_UNIX)
            try:
                sock.settimeout(self.socket_connect_timeout)
                sock.connect(self.path)
            except OSError:
                sock.close()
                raise
            sock.settimeout(self.socket_timeout)
            return sock

    return Tcp, Tls, Unix
