"""The configurations of deploy/, each started for real in front of two gunicorns that share their channels."""

from __future__ import annotations

import contextlib
import itertools
import select
import signal
import ssl
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import h2.config
import h2.connection
import h2.events
import pytest

from sseflask import Publisher
from sseflask.doctor import judge
from sseflask.probe import observe
from tests.conftest import Serve
from tests.live.client import Endpoint, NoResponse, StreamClient, connect, get, open_stream, read_all
from tests.live.http2 import open_http2_stream
from tests.live.process import wait_until
from tests.live.proxies import KINDS, Changes, Kind, Proxy, is_missing, needing
from tests.live.server import ROOT, Server
from tests.redis import free_port

APP: Final = '''
import os

from flask import Flask

from sseflask import SSE

app = Flask(__name__)
app.config.update(
    SSE_BROKER_URL=os.environ["APP_BROKER_URL"],
    SSE_PUBLIC_CHANNELS=["*"],
    SSE_KEEPALIVE_INTERVAL=1.0,
    SSE_RETRY=50,
    SSE_DRAIN_SECONDS=0.5,
)
sse = SSE()


@app.get("/silent")
def silent():
    """A stream that says nothing after its opening."""
    return sse.subscribe("silent", keepalive=60.0)


@app.get("/half")
def half():
    """A stream of the second server's: the first is full."""
    return ({"error": "full"}, 503) if os.environ["APP_NAME"] == "a" else sse.subscribe("news")


@app.get("/page")
def page():
    """What is worth compressing."""
    return "<p>hello</p>" * 1000


@app.route("/full", methods=["GET", "POST"])
def full():
    """What an app says that takes no more."""
    return {"error": "full"}, 503


app.register_blueprint(sse, url_prefix="/events")
'''

#: Answers to one name, and logs what it answers to who asks for its health.
TRUSTING: Final = '''
import os

from flask import Flask, request

from sseflask import SSE

app = Flask(__name__)
app.config.update(TRUSTED_HOSTS=["example.org"], SSE_PUBLIC_CHANNELS=["*"])


@app.after_request
def tell(response):
    """Logs it."""
    if request.environ["PATH_INFO"] == "/events/-/health":
        os.write(2, f"health is {response.status_code}\\n".encode())
    return response


app.register_blueprint(SSE(), url_prefix="/events")
'''

#: Proxies that say at once that a client has left; the others learn it when they write.
SEES_A_HANG_UP: Final[tuple[Kind, ...]] = ("nginx", "caddy")

#: What makes a copy cut after three seconds of silence.
SHORT: Final[Mapping[Kind, Changes]] = {
    "nginx": {"proxy_read_timeout 60s": "proxy_read_timeout 3s"},
    "haproxy": {"timeout client 60s": "timeout client 3s", "timeout server 60s": "timeout server 3s"},
    "caddy": {"read_timeout 60s": "read_timeout 3s"},
}
#: What the proxies tell an EventSource that they can't serve.
PUT_OFF_MS: Final = 3000
EVENT_STREAM: Final = {"Accept": "text/event-stream"}


class Site:
    """Two gunicorns on one broker.

    Attributes:
        servers: The two.
        publisher: What publishes to their channels, from here.
    """

    def __init__(self, directory: Path) -> None:
        url = f"sqlite:///{directory}/events.sqlite"
        self.servers: list[Server] = []
        for name in ("a", "b"):
            (directory / name).mkdir()
            env = {"APP_BROKER_URL": url, "APP_NAME": name}
            self.servers.append(Server(APP, directory / name, env=env, config=ROOT / "gunicorn.conf.py"))
        self.publisher = Publisher(url)

    @property
    def ports(self) -> list[int]:
        """Where they listen."""
        return [server.port for server in self.servers]

    def counts(self) -> list[int]:
        """How many streams are open on each."""
        return [get(server, "/events/-/health").json()["streams"] for server in self.servers]

    def streams(self) -> int:
        """How many streams are open on both."""
        return sum(self.counts())

    def publish(self, channel: str, n: int) -> None:
        """Publishes a number, and when it did."""
        self.publisher.publish({"n": n, "at": time.monotonic()}, channel=channel)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """The servers, for all tests; whoever stops one starts it again."""
    site = Site(tmp_path_factory.mktemp("site"))
    with contextlib.ExitStack() as stack:
        for server in site.servers:
            stack.enter_context(server)
        stack.callback(site.publisher.close)
        yield site


Start = Callable[..., Proxy]


@pytest.fixture
def start(site: Site, tmp_path: Path) -> Iterator[Start]:
    """Starts proxies: `start(kind, changes, upstreams=…)`."""
    with contextlib.ExitStack() as stack:
        numbers = itertools.count()

        def start(kind: Kind, changes: Changes | None = None, upstreams: list[int] | None = None) -> Proxy:
            directory = tmp_path / f"{kind}-{next(numbers)}"
            directory.mkdir()
            proxy = Proxy(kind, directory, upstreams or site.ports, changes)
            stack.callback(proxy.stop)
            return proxy.start()

        yield start


each_proxy = pytest.mark.parametrize("kind", [needing(kind) for kind in KINDS])


def delays(site: Site, endpoint: Endpoint, count: int = 11) -> list[float]:
    """Seconds that each of so many events takes to a client, one published when the one before has come."""
    channel = f"delays-{time.monotonic_ns()}"
    found = []
    with open_stream(endpoint, f"/events/{channel}", headers={"Accept-Encoding": "gzip, br"}) as client:
        client.event_where(lambda event: event.event == "stream-open")
        for n in range(count):
            site.publish(channel, n)
            event = client.next_event()
            assert event.json()["n"] == n
            found.append(event.at - event.json()["at"])
    return found


@each_proxy
def test_events_come_one_by_one_and_as_they_are(site: Site, start: Start, kind: Kind) -> None:
    """Each event comes as soon as it does without a proxy, and never compressed, while a page is."""
    proxy = start(kind)
    direct, through = statistics.median(delays(site, site.servers[0])), statistics.median(delays(site, proxy))
    assert through < direct + 0.1
    gzip = {"Accept-Encoding": "gzip"}
    with open_stream(proxy, "/events/news", headers=gzip) as client:
        assert client.headers["content-type"].startswith("text/event-stream")
        assert "content-encoding" not in client.headers
        assert client.next_event().event == "stream-open"
    page = get(proxy, "/page", headers=gzip)
    assert (page.status, page.headers["content-encoding"]) == (200, "gzip")
    if kind != "caddy":
        # Caddy does so by itself, for a site that has a name.
        moved = get(proxy.door, "/page?a=b", headers={"Host": "example.org"})
        assert (moved.status, moved.headers["location"]) == (308, "https://example.org/page?a=b")


@pytest.mark.parametrize("kind", [needing("haproxy")])
def test_haproxy_would_delay_each_event(site: Site, start: Start, kind: Kind) -> None:
    """Where it speaks plain text, each event comes 200 ms late without the file's `option http-no-delay`, and at once with it."""
    no_redirect = {"http-request redirect scheme https code 308 unless { ssl_fc }": ""}
    proxy = start(kind, no_redirect)
    late = start(kind, {**no_redirect, "option http-no-delay": "no option http-no-delay"})
    there = statistics.median(delays(site, proxy.door))
    assert there < statistics.median(delays(site, site.servers[0])) + 0.1
    assert statistics.median(delays(site, late.door)) > there + 0.1


@each_proxy
def test_the_doctor_finds_it_well(start: Start, kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through each of the files nothing is to be said of a stream but that it is well; over HTTP/2, too."""
    proxy = start(kind)
    monkeypatch.setenv("SSL_CERT_FILE", str(proxy.authority))
    findings = {finding.subject: finding for finding in judge(observe(proxy.url("/events/news"), seconds=3.0))}
    assert {finding.level for finding in findings.values()} == {"ok"}
    assert findings["HTTP version"].text.startswith("HTTP/2")
    assert "as they came" in findings["buffering"].text


@pytest.mark.parametrize("kind", [needing("nginx")])
def test_nginx_would_keep_events(site: Site, start: Start, kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    """With buffering, and deaf to X-Accel-Buffering, not even the head comes before the buffer is full; the doctor says so."""
    proxy = start(kind, {"proxy_buffering off;": "proxy_buffering on; proxy_ignore_headers X-Accel-Buffering;"})
    with open_stream(proxy, "/events/news", wait_for_head=False) as client:
        wait_until(lambda: site.streams() > 0, 10, "the stream")
        site.publish("news", 1)
        with pytest.raises(TimeoutError):
            client.read_head(1.5)
    monkeypatch.setenv("SSL_CERT_FILE", str(proxy.authority))
    (finding,) = judge(observe(proxy.url("/events/news"), seconds=1.5))
    assert (finding.level, finding.subject) == ("fail", "buffering")
    assert "nginx: proxy_buffering off" in finding.advice


@pytest.mark.parametrize("kind", [needing("caddy")])
def test_caddy_would_keep_events(site: Site, start: Start, kind: Kind) -> None:
    """With `encode` for event streams, the head comes and events don't."""
    proxy = start(kind, {"# No encode here:": "encode {\n gzip\n minimum_length 1\n match header Content-Type text/*\n}\n#"})
    with open_stream(proxy, "/events/news", headers={"Accept-Encoding": "gzip"}) as client:
        assert client.headers["content-encoding"] == "gzip"
        head = len(client.read_bytes(1))
        for n in range(3):
            site.publish("news", n)
        with pytest.raises(TimeoutError):
            client.read_bytes(head + 1, 1.5)


@pytest.mark.skipif(all(is_missing(kind) for kind in KINDS), reason="needs a proxy (sh tests/system.sh proxies)")
def test_a_stream_with_keepalives_outlives_the_idle_limit(start: Start) -> None:
    """With a limit of three seconds one that says nothing is cut, and one with keepalives goes on; in each proxy."""
    proxies = [start(kind, SHORT[kind]) for kind in KINDS if not is_missing(kind)]
    silent = [open_stream(proxy, "/silent") for proxy in proxies]
    kept = [open_stream(proxy, "/events/news") for proxy in proxies]
    # How they end differs: Caddy ends a response as if it were whole.
    read_all(silent, 20)
    for client in silent:
        assert client.ended_at is not None and client.ended_at - client.arrived[-1].at > 2
    for client in kept:
        until = client.requested_at + 6
        while client.next_comment().at < until:
            pass
        assert client.ended is None


@each_proxy
def test_a_hang_up_reaches_the_worker(site: Site, start: Start, kind: Kind) -> None:
    """Caddy and nginx pass it on at once, HAProxy at its second write to who has left; over HTTP/2 all of them at once."""
    proxy = start(kind)
    wait_until(lambda: site.streams() == 0, 10, "no stream of an earlier test")
    paths = ["/events/news", "/silent"] if kind in SEES_A_HANG_UP else ["/events/news"]
    clients: list[Any] = [open_stream(proxy, path) for path in paths] + [open_http2_stream(proxy, "/silent")]
    for client in clients:
        client.next_event()
    assert site.streams() == len(clients)
    clients[-1].cancel()
    wait_until(lambda: site.streams() == len(clients) - 1, 5, "the stream over HTTP/2 to be gone")
    for client in clients:
        client.hang_up()
    wait_until(lambda: site.streams() == 0, 10, "the streams to be gone")


class Page(threading.Thread):
    """A browser's page: an EventSource that comes back as the standard says, and gives up as the standard says.

    Attributes:
        numbers: Those that have come, in order.
        resets: How often it was told that something is gone.
        connections: How many it has made.
        put_off: How often the proxy has told it to come back.
        problem: What has ended it for good.
    """

    def __init__(self, endpoint: Endpoint, path: str, last: int) -> None:
        super().__init__(daemon=True)
        self.numbers: list[int] = []
        self.resets = 0
        self.connections = 0
        self.put_off = 0
        self.problem = ""
        self.stopped = threading.Event()
        self._endpoint = endpoint
        self._path = path
        self._last = last
        self._last_event_id = ""
        self._retry_ms = 3000

    def run(self) -> None:
        """Reads up to the last number."""
        while not self.problem and not self.stopped.is_set() and self._last not in self.numbers:
            if self.connections:
                self.stopped.wait(self._retry_ms / 1000)
            try:
                self._read()
            except (OSError, EOFError, NoResponse):
                pass
            except AssertionError as error:
                self.problem = str(error)

    def _read(self) -> None:
        headers = {"Last-Event-ID": self._last_event_id} if self._last_event_id else {}
        self.connections += 1
        with open_stream(self._endpoint, self._path, headers=headers, timeout=20) as client:
            if client.status != 200 or not client.headers["content-type"].startswith("text/event-stream"):
                self.problem = f"{client.status} {client.headers}"
                return
            try:
                while self._last not in self.numbers:
                    self._take(client)
            finally:
                self.put_off += client.frames.retry_ms == PUT_OFF_MS
                self._retry_ms = self._retry_ms if client.frames.retry_ms is None else client.frames.retry_ms

    def _take(self, client: StreamClient) -> None:
        event = client.next_event(20)
        self._last_event_id = client.last_event_id if event.id is None else event.id
        if event.event == "message":
            self.numbers.append(event.json()["n"])
        elif event.event == "stream-reset":
            self.resets += 1


@each_proxy
def test_a_rolling_restart_loses_nothing(site: Site, start: Start, kind: Kind) -> None:
    """While one server reloads and the other is stopped and started, pages miss no event and get none twice."""
    proxy = start(kind)
    wait_until(lambda: site.streams() == 0, 10, "no stream of an earlier test")
    channel, count = f"restart-{kind}", 10_000
    stop = threading.Event()
    published = 0
    pages = [Page(proxy, f"/events/{channel}", count) for _ in range(6)]
    for page in pages:
        page.start()
    first, second = site.servers
    wait_until(lambda: site.streams() == len(pages), 10, "the pages' streams")
    assert min(site.counts()) > 0

    def publish() -> None:
        nonlocal published
        while not stop.wait(0.02):
            site.publish(channel, published)
            published += 1

    publisher = threading.Thread(target=publish, daemon=True)
    publisher.start()
    try:
        old = first.worker_pids()
        first.signal(signal.SIGHUP)
        first.wait_for_new_workers(old, 20)
        wait_until(lambda: not set(old) & set(first.worker_pids()), 20, "the old worker to leave")
        second.signal(signal.SIGTERM)
        assert second.wait_for_exit(20) == 0
        before = sum(page.connections for page in pages)
        assert before > len(pages)
    finally:
        second.restart()
        stop.set()
        publisher.join(10)
        site.publish(channel, count)
        for page in pages:
            page.join(15)
            page.stopped.set()
    for page in pages:
        # One of the servers was there all the while.
        assert (page.problem, page.resets, page.put_off) == ("", 0, 0)
        assert page.numbers == [*range(published), count]
    assert published > 50


@each_proxy
def test_an_event_stream_gets_no_error_from_the_proxy(start: Start, kind: Kind) -> None:
    """With no server behind it, an EventSource gets an empty stream that tells it when to come back; all else gets the error."""
    # Caddy waits for servers to come back, for longer than this test needs to.
    soon = {"lb_try_duration 2s": "lb_try_duration 300ms"} if kind == "caddy" else None
    proxy = start(kind, soon, upstreams=[free_port(), free_port()])
    for headers in (EVENT_STREAM, {"Accept": "application/json, text/event-stream;q=0.9", "Origin": "https://other.example"}):
        reply = get(proxy, "/events/news", headers=headers, timeout=20)
        assert (reply.status, reply.headers["content-type"], reply.body) == (200, "text/event-stream", b"retry: 3000\n\n")
        assert "no-transform" in reply.headers["cache-control"]
        assert reply.headers.get("access-control-allow-origin") == headers.get("Origin")
        assert "content-encoding" not in reply.headers
    assert get(proxy, "/page", timeout=20).status in (502, 503)
    assert get(proxy, "/events/news", method="POST", headers=EVENT_STREAM, body=b"x", timeout=20).status in (502, 503)


@each_proxy
def test_an_apps_own_503_does_not_end_an_event_source_either(start: Start, kind: Kind) -> None:
    """What a full worker says becomes the same empty stream; to all others it passes as it is."""
    proxy = start(kind)
    reply = get(proxy, "/full", headers=EVENT_STREAM)
    assert (reply.status, reply.headers["content-type"], reply.body) == (200, "text/event-stream", b"retry: 3000\n\n")
    for method in ("GET", "POST"):
        headers = {} if method == "GET" else EVENT_STREAM
        reply = get(proxy, "/full", method=method, headers=headers, body=b"x" if method == "POST" else None)
        assert (reply.status, reply.json()) == (503, {"error": "full"})


@pytest.mark.parametrize("kind", [needing("nginx"), needing("haproxy")])
def test_a_full_servers_stream_goes_to_the_other(start: Start, kind: Kind) -> None:
    """Each stream is had, though every second one is refused first; and pages are served by both all the while."""
    proxy = start(kind)
    for _ in range(6):
        with open_stream(proxy, "/half") as client:
            assert client.next_event().event == "stream-open"
        assert get(proxy, "/page").status == 200


@pytest.mark.parametrize("kind", [needing("haproxy")])
def test_haproxy_asks_for_health_by_name(serve: Serve, start: Start, kind: Kind) -> None:
    """A server that answers to its name alone, by Flask's TRUSTED_HOSTS, is healthy to HAProxy."""
    server = serve(TRUSTING)
    start(kind, upstreams=[server.port] * 2)
    assert server.wait_for_log(r"health is (\d+)")[1] == "200"


@each_proxy
def test_twenty_streams_share_one_connection(site: Site, start: Start, kind: Kind) -> None:
    """Over HTTP/2 a browser's limit of six connections is gone: twenty streams, each with its event."""
    proxy = start(kind)
    with connect(proxy, alpn=["h2", "http/1.1"]) as connection:
        assert isinstance(connection, ssl.SSLSocket) and connection.selected_alpn_protocol() == "h2"
        crowd = Crowd(connection, [f"/events/shared-{n}" for n in range(20)])
        crowd.read_until(b"event: stream-open\n")
        for n in range(20):
            site.publish(f"shared-{n}", n)
        crowd.read_until(b'data: {"n":')
        for n, body in enumerate(crowd.bodies.values()):
            assert body.count(b"data: {") == 2 and b'"n":%d,' % n in body


class Crowd:
    """Streams on one HTTP/2 connection.

    Attributes:
        bodies: What has come, by the stream's number.
    """

    def __init__(self, connection: ssl.SSLSocket, paths: list[str]) -> None:
        self._socket = connection
        self._http2 = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True, header_encoding="utf-8"))
        self._http2.initiate_connection()
        self.bodies: dict[int, bytes] = {}
        for path in paths:
            stream = self._http2.get_next_available_stream_id()
            head = [(":method", "GET"), (":path", path), (":authority", "localhost"), (":scheme", "https")]
            self._http2.send_headers(stream, [*head, ("accept", "text/event-stream")], end_stream=True)
            self.bodies[stream] = b""
        connection.sendall(self._http2.data_to_send())

    def read_until(self, text: bytes, timeout: float = 10.0) -> None:
        """Reads until each stream has had this.

        Raises:
            AssertionError: One hasn't in time, or has ended.
        """
        deadline = time.monotonic() + timeout
        while any(text not in body for body in self.bodies.values()):
            if not self._socket.pending():
                readable, _, _ = select.select([self._socket], [], [], max(0.0, deadline - time.monotonic()))
                assert readable, f"{text!r} hasn't come: {self.bodies}"
            for event in self._http2.receive_data(self._socket.recv(65536)):
                assert not isinstance(event, (h2.events.StreamEnded, h2.events.StreamReset, h2.events.ConnectionTerminated)), event
                if isinstance(event, h2.events.DataReceived):
                    self.bodies[event.stream_id or 0] += event.data or b""
            if waiting := self._http2.data_to_send():
                self._socket.sendall(waiting)
