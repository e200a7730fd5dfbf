"""The commands, called in this process: what they print, what they refuse, and how they end."""

from __future__ import annotations

import json
import re
import socket
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Self

import click
import pytest
from click.testing import CliRunner, Result
from flask import Blueprint, Flask

from sseflask import SSE, BrokerUnavailable, Publisher, __main__, cli
from sseflask.brokers import SharedBroker
from sseflask.stream import is_final_id

ID = re.compile(r"[0-9a-f]{12}-[1-9][0-9]*")


@pytest.fixture
def url(tmp_path: Path) -> str:
    """A broker that processes share."""
    return f"sqlite:///{tmp_path}/events.sqlite"


@pytest.fixture
def app(url: str) -> Iterator[Flask]:
    """An app on that broker."""
    app = make_app(url)
    yield app
    if (broker := app.extensions["sse"].broker_in_use) is not None:
        broker.close()


@pytest.fixture
def publisher(url: str) -> Iterator[Publisher]:
    """Another process's side."""
    with Publisher(url) as publisher:
        yield publisher


def make_app(url: str) -> Flask:
    """An app whose events travel by this broker."""
    app = Flask("app_of_the_cli")
    app.config["SSE_BROKER_URL"] = url
    app.register_blueprint(SSE(), url_prefix="/events")
    return app


def run(app: Flask, *arguments: str, stdin: bytes | None = None) -> Result:
    """Runs `flask sse …`."""
    return app.test_cli_runner().invoke(args=["sse", *arguments], input=stdin)


def history(app: Flask, channel: str) -> list[dict[str, object]]:
    """What a channel has kept, as the command shows it."""
    result = run(app, "listen", channel, "--json", "--last-event-id", "000000000000-0", "--count", str(kept(app, channel)))
    return [json.loads(line) for line in result.stdout.splitlines()][1:]


def kept(app: Flask, channel: str) -> int:
    """How many events it has kept."""
    broker = app.extensions["sse"].broker
    assert isinstance(broker, SharedBroker)
    return len(broker.store.read({channel: 0})[channel].entries)


# The group


def test_the_commands_are_there_without_routes() -> None:
    """`init_app` installs them, once however often it is called."""
    app = Flask(__name__)
    sse = SSE(app)
    sse.init_app(app)
    assert list(app.cli.commands).count("sse") == 1
    assert sorted(cli.commands.commands) == ["channels", "doctor", "listen", "publish", "stats"]


def test_the_commands_are_called_sse_whatever_the_blueprint_is() -> None:
    """A blueprint of another name within another blueprint gives the app `flask sse`, and no other."""
    app = Flask(__name__)
    outer = Blueprint("outer", __name__, url_prefix="/outer")
    outer.register_blueprint(SSE(name="streams"), url_prefix="/events")
    app.register_blueprint(outer)
    assert list(app.cli.commands) == ["sse"]


def test_a_command_of_the_apps_own_stays() -> None:
    """An app that has a command `sse` keeps it."""
    app = Flask(__name__)

    @app.cli.command("sse")
    def own() -> None:
        """Its own."""

    SSE(app)
    assert app.cli.commands["sse"] is own


@pytest.mark.parametrize("command", [["publish", "news", "x"], ["listen", "news"], ["channels"], ["stats"]])
@pytest.mark.parametrize("url", ["auto", "memory://"])
def test_another_processs_memory_cannot_be_reached(command: list[str], url: str) -> None:
    """Each command says so, and which URL to set, with the exit code of a usage error."""
    result = run(make_app(url), *command)
    assert result.exit_code == 2
    assert "can't be reached" in result.stderr
    assert "sqlite:///PATH" in result.stderr and "redis://HOST:PORT/DB" in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize("command", [["publish", "news", "x"], ["listen", "news"], ["channels"]])
def test_a_broker_that_is_unavailable_ends_a_command(tmp_path: Path, command: list[str]) -> None:
    """It says why, in one line, with exit code 1."""
    result = run(make_app(f"sqlite:///{tmp_path}/missing/events.sqlite"), *command)
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: ") and "missing/events.sqlite" in result.stderr
    assert "Traceback" not in result.output
    assert result.stdout == ""


# flask sse publish


def test_publish_prints_the_id(app: Flask) -> None:
    """The id is all that the standard output gets."""
    result = run(app, "publish", "news", "hello")
    assert result.exit_code == 0
    assert ID.fullmatch(result.stdout.removesuffix("\n"))
    assert result.stderr == ""
    (event,) = history(app, "news")
    assert (event["event"], event["id"], event["data"]) == ("message", result.stdout.strip(), "hello")


def test_publish_takes_all_that_an_event_has(app: Flask) -> None:
    """The name, an id of one's own and the reconnection time go with it."""
    result = run(app, "publish", "news", '{"n": 1}', "--event", "created", "--id", "a1", "--retry", "5000")
    assert result.stdout == "a1\n"
    (event,) = history(app, "news")
    assert {**event, "time": None} == {"time": None, "event": "created", "id": "a1", "data": '{"n": 1}', "retry": 5000}


@pytest.mark.parametrize(
    ("given", "data"),
    [(b"one\ntwo\n", "one\ntwo"), (b"one", "one"), (b"", ""), (b"\n\n", "\n"), (b"one\r\n", "one"), ("ü\n".encode(), "ü")],
)
def test_publish_reads_the_standard_input(app: Flask, given: bytes, data: str) -> None:
    """`-` stands for all of it, without the end of its last line."""
    assert run(app, "publish", "news", "-", stdin=given).exit_code == 0
    assert [event["data"] for event in history(app, "news")] == [data]


def test_publish_with_a_token_twice_is_once(app: Flask) -> None:
    """A second one with the same token prints the first one's id."""
    first, second = (run(app, "publish", "news", "hello", "--token", "once") for _ in range(2))
    assert first.stdout == second.stdout
    assert len(history(app, "news")) == 1


def test_publish_ends_a_channel(app: Flask) -> None:
    """With `--end` the event is the channel's last; its data may be missing, its name another."""
    assert run(app, "publish", "news", "--end").exit_code == 0
    assert run(app, "publish", "reports", "done", "--end", "--event", "finished").exit_code == 0
    (news,) = history(app, "news")
    (report,) = history(app, "reports")
    assert (news["event"], news["data"]) == ("stream-end", "")
    assert (report["event"], report["data"]) == ("finished", "done")
    assert is_final_id(str(news["id"])) and is_final_id(str(report["id"]))


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "CHANNEL"),
        (["news"], "DATA"),
        (["/news", "x"], "invalid channel"),
        (["news", "x", "--event", "a\nb"], "invalid event"),
        (["news", "x", "--id", " a"], "invalid id"),
        (["news", "x", "--retry", "-1"], "--retry"),
        (["news", "x", "--retry", "soon"], "--retry"),
        (["news", "x", "--end", "--id", "a"], "--end"),
        (["news", "x", "--end", "--retry", "1"], "--end"),
        (["news", "x" * 1_100_000], "SSE_MAX_EVENT_BYTES"),
    ],
)
def test_publish_refuses_what_it_cannot_publish(app: Flask, arguments: list[str], told: str) -> None:
    """Wrong arguments are told by name, with the exit code of a usage error."""
    result = run(app, "publish", *arguments)
    assert result.exit_code == 2
    assert told in result.stderr
    assert result.stdout == ""


def test_publish_refuses_what_is_no_text(app: Flask) -> None:
    """Bytes that aren't UTF-8 are no event."""
    result = run(app, "publish", "news", "-", stdin=b"\xff\xfe")
    assert result.exit_code == 2
    assert "invalid data" in result.stderr


def test_publish_says_when_it_may_have_been_done(app: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
    """An unknown outcome names the way to be sure."""

    def fail(*_: object, **__: object) -> str:
        raise BrokerUnavailable("no answer", outcome="unknown")

    monkeypatch.setattr(SharedBroker, "publish", fail)
    result = run(app, "publish", "news", "x")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "no answer" in result.stderr and "--token" in result.stderr


# flask sse listen


def test_listen_shows_readable_lines(app: Flask, publisher: Publisher) -> None:
    """A line has the time, the name, the id and the data; further lines of data are indented."""
    first = publisher.publish("one", channel="news")
    publisher.publish("two\nlines", channel="news", event="created", id="a1")
    result = run(app, "listen", "news", "--last-event-id", f"{first.partition('-')[0]}-0", "--count", "2")
    assert result.exit_code == 0
    lines = [line.split(" ", 1) for line in result.stdout.splitlines()]
    assert all(re.fullmatch(r"\d\d:\d\d:\d\d\.\d\d\d", time) for time, _ in lines if time)
    assert [rest for _, rest in lines] == [f"message {first} one", "created a1 two", "   lines"]


def test_listen_shows_one_json_object_a_line(app: Flask, publisher: Publisher) -> None:
    """`--json` gives each event's fields, data as it is."""
    first = publisher.publish("zwölf\nzeilen", channel="news", event="created", retry=100)
    result = run(app, "listen", "news", "--json", "--last-event-id", f"{first.partition('-')[0]}-0", "--count", "1")
    (event,) = (json.loads(line) for line in result.stdout.splitlines())
    assert event.pop("time")
    assert event == {"event": "created", "id": first, "data": "zwölf\nzeilen", "retry": 100}


def test_listen_goes_on_after_an_event(app: Flask, publisher: Publisher) -> None:
    """Only what came after it is shown."""
    ids = [publisher.publish(str(n), channel="news") for n in range(4)]
    result = run(app, "listen", "news", "--json", "--last-event-id", ids[1], "--count", "2")
    assert [json.loads(line)["id"] for line in result.stdout.splitlines()] == ids[2:]
    assert f"from {ids[1]}" in result.stderr


def test_listen_always_tells_of_a_reset(app: Flask, publisher: Publisher) -> None:
    """It stands on the standard error, or as JSON among the events, and doesn't count as one."""
    publisher.publish("one", channel="news")
    arguments = ["listen", "news", "--last-event-id", "000000000000-7", "--count", "1"]
    readable, as_json = run(app, *arguments), run(app, *arguments, "--json")
    assert "stream-reset" in readable.stderr and "stream-reset" not in readable.stdout
    assert [json.loads(line)["event"] for line in as_json.stdout.splitlines()] == ["stream-reset", "message"]
    assert "stream-reset" not in as_json.stderr


def test_listen_shows_open_events_to_who_asks(app: Flask, publisher: Publisher) -> None:
    """They are shown with `--verbose` alone."""
    first = publisher.publish("one", channel="news")
    arguments = ["listen", "news", "--json", "--last-event-id", f"{first.partition('-')[0]}-0", "--count", "1"]
    quiet, verbose = run(app, *arguments), run(app, *arguments, "--verbose")
    assert [json.loads(line)["event"] for line in quiet.stdout.splitlines()] == ["message"]
    assert [json.loads(line)["event"] for line in verbose.stdout.splitlines()] == ["stream-open", "message"]


def test_listen_ends_with_its_channels(app: Flask, publisher: Publisher) -> None:
    """After the end event of the last one it ends, as with its work done; so it does when it comes back later."""
    start = publisher.publish("one", channel="news").partition("-")[0] + "-0"
    publisher.publish("two", channel="weather")
    publisher.close_channel("news")
    publisher.close_channel("weather", "over")
    result = run(app, "listen", "news", "weather", "--json", "--last-event-id", start)
    assert result.exit_code == 0
    *_, last = (json.loads(line) for line in result.stdout.splitlines())
    assert (last["event"], last["data"]) == ("stream-end", "over")
    again = run(app, "listen", "news", "weather", "--last-event-id", last["id"])
    assert (again.exit_code, again.stdout) == (0, "")


def test_listen_moves_no_cursor(app: Flask, publisher: Publisher) -> None:
    """Control characters of what others publish reach no terminal."""
    start = publisher.publish("\x1b[2J\x07\tü", channel="news", event="\x1b]0;x").partition("-")[0] + "-0"
    result = run(app, "listen", "news", "--last-event-id", start, "--count", "1")
    assert "\\x1b[2J\\x07\tü" in result.stdout and "\\x1b]0;x" in result.stdout
    assert "\x1b" not in result.stdout


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "CHANNELS"),
        (["/news"], "invalid channel"),
        (["news", "--count", "0"], "--count"),
        (["news", "--last-event-id", "a\nb"], "invalid id"),
        ([f"channel-{n}" for n in range(40)], "SSE_MAX_CHANNELS_PER_STREAM"),
    ],
)
def test_listen_refuses_what_cannot_be_had(app: Flask, arguments: list[str], told: str) -> None:
    """Wrong arguments are told by name, with the exit code of a usage error."""
    result = run(app, "listen", *arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert told in result.stderr


# flask sse channels and stats


@pytest.fixture
def busy(app: Flask) -> Flask:
    """The app, while other processes have streams."""
    with app.app_context():
        broker = app.extensions["sse"].broker
        assert isinstance(broker, SharedBroker)
        broker.store.report("one", {"orders": 2, "news": 9}, 60)
        broker.store.report("another", {"orders": 10}, 60)
    return app


def test_channels_lists_those_with_streams(busy: Flask) -> None:
    """By name, with their streams in all processes together."""
    assert run(busy, "channels").stdout == " 9 news\n12 orders\n"
    assert json.loads(run(busy, "channels", "--json").stdout) == {"news": 9, "orders": 12}


def test_channels_lists_nothing_where_nobody_listens(app: Flask) -> None:
    """There is nothing to print, or an empty object."""
    assert run(app, "channels").stdout == ""
    assert json.loads(run(app, "channels", "--json").stdout) == {}


def test_stats_tells_how_the_broker_is(busy: Flask, url: str) -> None:
    """Its URL, its position, no trouble, and how much there is."""
    event_id = run(busy, "publish", "news", "x").stdout.strip()
    told = json.loads(run(busy, "stats", "--json").stdout)
    assert told == {"url": url, "position": event_id, "trouble": None, "streams": 21, "channels": 2}
    assert re.search(r"^streams +21$", run(busy, "stats").stdout, re.MULTILINE)


def test_stats_tells_what_is_wrong(tmp_path: Path) -> None:
    """A broker that can't be used is told by its trouble, and by exit code 1."""
    result = run(make_app(f"sqlite:///{tmp_path}/missing/events.sqlite"), "stats", "--json")
    assert result.exit_code == 1
    told = json.loads(result.stdout)
    assert "missing" in told["trouble"]
    assert told["position"] is None


# python -m sseflask listen


class Script:
    """A server that answers one connection after the other with prepared bytes.

    Attributes:
        requests: What it was asked, head by head.
    """

    def __init__(self, answers: Sequence[bytes]) -> None:
        self.requests: list[str] = []
        self._answers = answers
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()

    def _run(self) -> None:
        for answer in self._answers:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection:
                head = b""
                while b"\r\n\r\n" not in head:
                    head += connection.recv(65536)
                self.requests.append(head.decode())
                connection.sendall(answer.replace(b"{self}", self.address.encode()))


class Clock:
    """A `time` in which a sleep takes none."""

    def __init__(self) -> None:
        self.sleeps: list[float] = []

    def sleep(self, seconds: float) -> None:
        """Notes it."""
        self.sleeps.append(seconds)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock by which the command waits."""
    clock = Clock()
    monkeypatch.setattr(__main__, "time", clock)
    return clock


STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n\r\n"
OVER = b"HTTP/1.1 204 No Content\r\n\r\n"


def listen(url: str, *arguments: str) -> Result:
    """Runs `python -m sseflask listen URL`."""
    return CliRunner().invoke(__main__.main, ["listen", url, *arguments])


def chunked(*pieces: bytes, whole: bool = True) -> bytes:
    """An event stream in chunks."""
    head = STREAM.replace(b"\r\n\r\n", b"\r\nTransfer-Encoding: chunked\r\n\r\n")
    return head + b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + (b"0\r\n\r\n" if whole else b"")


def test_a_foreign_stream_is_shown_to_its_end(clock: Clock) -> None:
    """Its events are lines; a 204 ends it, with exit code 0."""
    with Script([STREAM + b"id: 7\nevent: a\ndata: one\n\n: note\n\ndata: two\ndata: lines\n\n", OVER]) as server:
        result = listen(f"http://{server.address}/stream?x=1")
    assert result.exit_code == 0
    assert [line.split(" ", 1)[1] for line in result.stdout.splitlines()] == ["a 7 one", "message 7 two", "   lines"]
    first, second = server.requests
    assert first.startswith("GET /stream?x=1 HTTP/1.1\r\n")
    assert "\r\nAccept: text/event-stream\r\n" in first and "Last-Event-ID" not in first
    assert "\r\nLast-Event-ID: 7\r\n" in second
    assert "204" in result.stderr


def test_a_stream_in_chunks_is_read_however_it_is_cut(clock: Clock) -> None:
    """Chunks may end within an event, within a character too."""
    body = "data: zwölf\n\n".encode()
    with Script([chunked(*(bytes([byte]) for byte in body)), OVER]) as server:
        result = listen(f"http://{server.address}", "--json")
    assert [json.loads(line)["data"] for line in result.stdout.splitlines()] == ["zwölf"]


def test_a_connection_that_is_lost_is_made_again_as_the_server_asks(clock: Clock) -> None:
    """It waits about `retry`, goes on after the last whole event, and shows nothing of one that was cut off."""
    with Script(
        [chunked(b"retry: 70\nid: 1\ndata: one\n\nid: 2\ndata: tw", whole=False), STREAM + b"data: three\n\n", OVER]
    ) as server:
        result = listen(f"http://{server.address}/", "--json")
    assert [json.loads(line)["data"] for line in result.stdout.splitlines()] == ["one", "three"]
    assert all("\r\nLast-Event-ID: 1\r\n" in request for request in server.requests[1:])
    assert all(0.1 <= seconds <= 0.125 for seconds in clock.sleeps), clock.sleeps
    assert "the connection was lost" in result.stderr


def test_who_brings_no_event_is_asked_less_and_less_often(clock: Clock) -> None:
    """Each attempt in vain doubles the pause up to a minute, with jitter; an event puts it back."""
    with Script([*[STREAM] * 7, STREAM + b"data: one\n\n", STREAM, OVER]) as server:
        listen(f"http://{server.address}/")
    for seconds, least in zip(clock.sleeps, [3, 6, 12, 24, 48, 60, 60, 60, 3], strict=True):
        assert least <= seconds <= least * 1.25
    assert clock.sleeps[5] != clock.sleeps[6]


def test_a_server_that_cannot_be_reached_is_tried_again(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """It says why, and when; with `--once` that is the end, with exit code 1."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        url = f"http://127.0.0.1:{free.getsockname()[1]}/"

    def third(seconds: float) -> None:
        clock.sleeps.append(seconds)
        if len(clock.sleeps) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(clock, "sleep", third)
    result = listen(url)
    assert result.exit_code == 130
    assert result.stderr.count("can't connect: Connection refused; connecting again in ") == 3
    once = listen(url, "--once")
    assert (once.exit_code, once.stderr) == (1, f"Error: {url}: can't connect: Connection refused\n")


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n", "403 Forbidden"),
        (b"HTTP/1.1 503 Busy\r\nContent-Type: text/event-stream\r\n\r\n", "503 Busy"),
        (b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n<p>Log in", "text/html"),
        (b"HTTP/1.1 200 OK\r\n\r\n", "no type"),
        (b"HTTP/1.1 302 Found\r\nLocation: file:///etc/passwd\r\n\r\n", "http://"),
        (b"HTTP/1.1 302 Found\r\nContent-Type: text/event-stream\r\n\r\ndata: x\n\n", "302"),
    ],
)
def test_an_answer_that_is_no_stream_is_the_end(clock: Clock, answer: bytes, told: str) -> None:
    """It isn't asked again; exit code 1, and what it said."""
    with Script([answer]) as server:
        result = listen(f"http://{server.address}/")
    assert (result.exit_code, result.stdout, clock.sleeps) == (1, "", [])
    assert told in result.stderr


def test_a_redirection_is_followed(clock: Clock) -> None:
    """Each time anew, with all headers as long as it stays at its origin."""
    there = b"HTTP/1.1 307 There\r\nLocation: /other\r\nContent-Length: 0\r\n\r\n"
    with Script([there, STREAM + b"data: x\n\n"]) as server:
        result = listen(f"http://{server.address}/", "--once", "--header", "X-Key: secret")
    assert result.exit_code == 0
    assert [request.split()[1] for request in server.requests] == ["/", "/other"]
    assert all("\r\nX-Key: secret\r\n" in request for request in server.requests)


def test_another_origin_gets_none_of_the_given_headers(clock: Clock) -> None:
    """A redirection to another host or port doesn't carry secrets there."""
    with Script([STREAM + b"data: x\n\n"]) as other:
        there = f"HTTP/1.1 302 There\r\nLocation: http://{other.address}/\r\nContent-Length: 0\r\n\r\n".encode()
        with Script([there]) as server:
            result = listen(f"http://me:hidden@{server.address}/", "--once", "--header", "X-Key: secret")
    assert result.exit_code == 0
    assert "secret" in server.requests[0] and "Authorization: Basic" in server.requests[0]
    assert "secret" not in other.requests[0] and "Authorization" not in other.requests[0]
    assert "hidden" not in result.output


def test_redirections_in_a_circle_are_given_up(clock: Clock) -> None:
    """After twenty it is an answer that is no stream."""
    with Script([b"HTTP/1.1 301 There\r\nLocation: /\r\nContent-Length: 0\r\n\r\n"] * 25) as server:
        result = listen(f"http://{server.address}/")
    assert result.exit_code == 1
    assert "redirects more than 20 times" in result.stderr
    assert len(server.requests) == 20


def test_headers_and_a_position_are_sent(clock: Clock) -> None:
    """As they are given; a name and a password of the address log in."""
    with Script([STREAM]) as server:
        arguments = ["--header", "Cookie: a=b; c=d", "--header", "accept: text/event-stream, */*", "--last-event-id", "ä1"]
        listen(f"http://me:pass%20word@{server.address}/ü", "--once", *arguments)
    (request,) = server.requests
    assert request.startswith("GET /%C3%BC HTTP/1.1\r\n")
    assert "\r\nCookie: a=b; c=d\r\n" in request and "\r\nLast-Event-ID: ä1\r\n" in request
    assert "\r\nAuthorization: Basic bWU6cGFzcyB3b3Jk\r\n" in request
    assert request.lower().count("\r\naccept:") == 1


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["example.org"],
        ["file:///etc/passwd"],
        ["http://"],
        ["http://[::1"],
        ["http://localhost/", "--header", "X-Key"],
        ["http://localhost/", "--header", "X Key: a"],
        ["http://localhost/", "--header", "X-Key: a\r\nX-Other: b"],
        ["http://localhost/", "--last-event-id", "a\nb"],
        ["http://localhost/", "--count", "0"],
    ],
)
def test_what_cannot_be_asked_is_refused(arguments: list[str]) -> None:
    """Nothing is sent; exit code 2."""
    result = CliRunner().invoke(__main__.main, ["listen", *arguments])
    assert result.exit_code == 2, result.output


def test_count_is_enough(clock: Clock) -> None:
    """After so many events it ends, whatever else has come."""
    with Script([STREAM + b"data: 1\n\ndata: 2\n\ndata: 3\n\n"]) as server:
        result = listen(f"http://{server.address}/", "--json", "--count", "2")
    assert result.exit_code == 0
    assert [json.loads(line)["data"] for line in result.stdout.splitlines()] == ["1", "2"]


def test_an_event_that_is_too_large_is_told(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """It isn't shown, and not passed over in silence."""
    large = b"data: " + b"x" * (16 * 2**20) + b"\n\n"
    with Script([STREAM + large + b"data: 2\n\n"]) as server:
        result = listen(f"http://{server.address}/", "--json", "--once")
    assert [json.loads(line)["data"] for line in result.stdout.splitlines()] == ["2"]
    assert "too large" in result.stderr


# How commands end


def test_a_command_that_is_interrupted_ends_with_130() -> None:
    """Without a word."""

    @click.command()
    @cli.ending_cleanly
    def command() -> None:
        raise KeyboardInterrupt

    result = CliRunner().invoke(command)
    assert (result.exit_code, result.output) == (130, "")
