"""What the doctor sees of servers that misbehave on purpose, and what it says to what was seen."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import threading
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import EllipsisType
from typing import Any, Self, get_args

import pytest
from click.testing import CliRunner, Result
from flask import Flask

from sseflask import SSE, __main__
from sseflask.doctor import IDLE_LIMITS, PROXIES, REMEDIES, Finding, Subject, has_failed, judge, lines, lumps, silences
from sseflask.probe import Answer, Observation, Piece, observe

HEADERS = (
    ("Content-Type", "text/event-stream; charset=utf-8"),
    ("Cache-Control", "no-cache, no-transform"),
    ("X-Accel-Buffering", "no"),
    ("Server", "gunicorn"),
)
ANSWER = Answer("https://example.org/events/news", 200, "OK", "1.1", HEADERS, 0.02)
OPENING = Piece(0.02, 80, events=1)
KEEPALIVES = [Piece(at, 13, comments=1) for at in (12.5, 26.0, 39.0)]
WELL = Observation(
    ANSWER.url,
    seconds=45.0,
    alpn="h2",
    answer=ANSWER,
    pieces=[OPENING, *KEEPALIVES],
    last_event_id="0a-1",
    watched=45.0,
    again=replace(ANSWER, after=0.01),
)


def with_headers(**headers: str | None) -> Answer:
    """The healthy answer with other headers, `_` for `-`; None leaves one out."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    kept = [pair for pair in HEADERS if pair[0] not in named]
    return replace(ANSWER, headers=(*kept, *((name, value) for name, value in named.items() if value is not None)))


def only(findings: Sequence[Finding]) -> Finding:
    """The one finding that isn't well."""
    (found,) = [finding for finding in findings if finding.level != "ok"]
    return found


# Judging


def test_a_healthy_stream_is_found_so() -> None:
    """Each subject is well, and none is missing."""
    findings = judge(WELL)
    assert {finding.level for finding in findings} == {"ok"}
    subjects = [finding.subject for finding in findings]
    assert subjects == [
        *("status", "in front", "HTTP version", "headers", "compression", "first byte", "buffering", "idle", "reconnect")
    ]
    assert not has_failed(findings)


@pytest.mark.parametrize(
    ("seen", "level", "subject", "told"),
    [
        # Nobody answers, or what answers is no stream.
        (replace(WELL, answer=None, problem="Connection refused"), "fail", "answer", "Connection refused"),
        (replace(WELL, answer=None, problem="no answer within 5 s", silent=True), "fail", "answer", "no answer within 5 s"),
        (
            replace(WELL, answer=None, problem="no answer within 5 s", silent=True, head=with_headers(Server="nginx")),
            *("fail", "buffering", "→ nginx: proxy_buffering off"),
        ),
        (replace(WELL, answer=with_headers(Content_Type="text/html")), "fail", "status", "Content-Type: text/event-stream"),
        (replace(WELL, answer=replace(ANSWER, status=204)), "fail", "status", "no more to come"),
        (replace(WELL, answer=replace(ANSWER, status=401)), "fail", "status", "--header"),
        (replace(WELL, answer=replace(ANSWER, status=404)), "fail", "status", "url_prefix"),
        (replace(WELL, answer=replace(ANSWER, status=503)), "fail", "status", "SSE_REFUSE"),
        (replace(WELL, answer=replace(ANSWER, status=500)), "fail", "status", "for good"),
        (replace(WELL, hops=[replace(ANSWER, status=302)]), "warn", "redirect", "the address itself"),
        # Versions and headers.
        (replace(WELL, alpn="http/1.1"), "warn", "HTTP version", "seventh"),
        (replace(WELL, alpn=None, answer=replace(ANSWER, url="http://example.org/")), "warn", "HTTP version", "no TLS"),
        (replace(WELL, answer=replace(ANSWER, version="1.0")), "warn", "framing", "proxy_http_version 1.1"),
        (replace(WELL, answer=with_headers(Content_Length="90")), "fail", "framing", "collected the stream"),
        (replace(WELL, answer=with_headers(Cache_Control="no-cache")), "warn", "headers", "no-transform"),
        (replace(WELL, answer=with_headers(Cache_Control="max-age=60, no-transform")), "warn", "headers", "no-cache"),
        (replace(WELL, answer=with_headers(X_Accel_Buffering=None)), "warn", "headers", "X-Accel-Buffering"),
        (
            replace(WELL, answer=with_headers(Content_Type="text/event-stream; charset=latin-1")),
            *("warn", "charset", "latin-1"),
        ),
        # Compression.
        (replace(WELL, answer=with_headers(Content_Encoding="gzip")), "warn", "compression", "flushed"),
        (
            replace(
                WELL,
                answer=with_headers(Content_Encoding="br", Server="nginx"),
                pieces=[Piece(0.1, 10)],
                last_event_id="",
                watched=5.0,
            ),
            *("fail", "compression", "gzip_types"),
        ),
        # Time.
        (replace(WELL, pieces=[], watched=20.0, last_event_id=""), "warn", "first byte", "--seconds 40"),
        (replace(WELL, answer=replace(ANSWER, after=1.5)), "warn", "first byte", "slow"),
        (replace(WELL, answer=replace(ANSWER, after=6.0)), "fail", "first byte", "slow"),
        (replace(WELL, pieces=[OPENING, Piece(27.0, 26, comments=2)], watched=41.0), "fail", "buffering", "2 keepalives"),
        (
            replace(WELL, pieces=[OPENING, *(Piece(at, 900, events=9) for at in (9.0, 18.0))]),
            *("warn", "buffering", "lumps of up to 9"),
        ),
        # The end.
        (replace(WELL, ending="cut", watched=99.1), "fail", "idle", "60.1 s of them silent, as by nginx"),
        (replace(WELL, ending="cut", watched=39.2), "fail", "end", "while it was sending"),
        (replace(WELL, ending="whole", watched=42.5), "warn", "idle", "as if whole"),
        (replace(WELL, ending="unframed", watched=42.5), "warn", "idle", "or was cut"),
        (replace(WELL, pieces=[OPENING], watched=61.0), "warn", "idle", "Cloudflare"),
        (replace(WELL, pieces=[], ending="whole", watched=0.1, last_event_id=""), "warn", "end", "without an event"),
        (
            replace(WELL, pieces=[Piece(0.02, 13)], ending="whole", watched=0.1, retry=3000, last_event_id=""),
            *("fail", "stream", "come back in 3000 ms"),
        ),
        # Coming back.
        (replace(WELL, last_event_id=""), "warn", "reconnect", "no id"),
        (replace(WELL, again=replace(ANSWER, status=400)), "fail", "reconnect", "400"),
        (replace(WELL, again=None, again_problem="no answer in time"), "fail", "reconnect", "no answer in time"),
        # Other origins.
        (replace(WELL, origin="https://a.example"), "fail", "CORS", "missing"),
        (
            replace(WELL, origin="https://a.example", answer=with_headers(Access_Control_Allow_Origin="https://a.example")),
            *("warn", "CORS", "Vary: Origin"),
        ),
    ],
)
def test_what_is_wrong_is_told(seen: Observation, level: str, subject: str, told: str) -> None:
    """Each fault is the one finding that isn't well (one that answers nothing has no other), at its level, with what helps."""
    findings = judge(seen)
    if seen.watched < 1 or not seen.pieces:
        # What isn't there can't be well in other respects.
        findings = [finding for finding in findings if finding.subject == subject]
    found = only(findings)
    assert (found.level, found.subject) == (level, subject)
    assert told in f"{found.text} → {found.advice}"
    assert has_failed(findings) == (level == "fail")


@pytest.mark.parametrize(
    ("headers", "told"),
    [
        ({"Access_Control_Allow_Origin": "*"}, "without cookies"),
        (
            {
                "Access_Control_Allow_Origin": "https://a.example",
                "Access_Control_Allow_Credentials": "true",
                "Vary": "Accept, Origin",
            },
            "with cookies",
        ),
    ],
)
def test_an_origin_that_may_read_is_told_how(headers: dict[str, str], told: str) -> None:
    """With cookies, or without them."""
    findings = judge(replace(WELL, origin="https://a.example", answer=with_headers(**headers)))
    assert [told in finding.text for finding in findings if finding.subject == "CORS"] == [True]
    assert not has_failed(findings)


@pytest.mark.parametrize(
    ("headers", "proxy", "remedy"),
    [
        ({"Server": "nginx/1.22.1"}, "nginx", "proxy_read_timeout"),
        ({"Server": "Caddy"}, "Caddy", "read_timeout"),
        ({"Server": "gunicorn", "Via": "1.1 Caddy"}, "Caddy", "read_timeout"),
        ({"Server": "cloudflare"}, "Cloudflare", "100 s"),
        ({"Server": "awselb/2.0"}, "AWS ALB", "idle_timeout"),
        ({"Server": "gunicorn", "Via": "1.1 varnish (Varnish/7.1)"}, "Varnish", "SSE_KEEPALIVE_INTERVAL"),
        ({"Server": "gunicorn"}, "nobody who says so", "HAProxy timeout client"),
    ],
)
def test_a_proxy_that_names_itself_is_given_its_own_directive(headers: dict[str, str], proxy: str, remedy: str) -> None:
    """And one that doesn't, those of all of them."""
    findings = judge(replace(WELL, answer=with_headers(**headers), ending="cut", watched=99.0))
    by_subject = {finding.subject: finding for finding in findings}
    assert by_subject["in front"].text.startswith(proxy)
    assert remedy in by_subject["idle"].advice


def test_each_remedy_is_a_known_proxys() -> None:
    """No topic names a proxy that is never found, and each topic has words for the others."""
    names = {name for name, _ in PROXIES}
    for known in REMEDIES.values():
        assert known[""] and set(known) - {""} <= names


def test_a_replay_is_no_buffering() -> None:
    """Many events at the opening, at once or in pieces, and one by one after it, are well."""
    pieces = [Piece(0.02 + 0.01 * n, 100, events=3) for n in range(20)] + [Piece(float(n), 100, events=1) for n in range(1, 9)]
    assert not [finding for finding in judge(replace(WELL, pieces=pieces, watched=9.0)) if finding.level != "ok"]


def test_lumps_and_silences() -> None:
    """What comes within 50 ms of the piece before it is one lump; silences are between pieces, and at the end."""
    pieces = [Piece(0.0, 1, 1), Piece(0.04, 1, 1), Piece(0.08, 1, 0, 1), Piece(1.0, 1, 1)]
    assert lumps(pieces) == [Piece(0.0, 3, 2, 1), Piece(1.0, 1, 1)]
    assert lumps([]) == []
    assert silences(replace(WELL, pieces=pieces[2:], watched=3.0)) == pytest.approx([0.92, 2.0])


def test_lines_are_aligned() -> None:
    """What to do stands below what is so."""
    findings = [Finding("ok", "status", "200"), Finding("warn", "HTTP version", "no HTTP/2", "speak it")]
    assert list(lines(findings)) == ["ok    status        200", "warn  HTTP version  no HTTP/2", "                    → speak it"]
    assert list(lines([])) == []


# Observing

Step = bytes | float | EllipsisType


class Raw:
    """A server that plays a script to each connection: bytes are sent, a number is waited for, `...` waits for the client to leave.

    Attributes:
        requests: What it was asked, head by head.
    """

    def __init__(self, *scripts: Sequence[Step]) -> None:
        """Stores one script for each connection; all further ones get the last."""
        self.requests: list[str] = []
        self._scripts = scripts
        self._stopped = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}/events/news"
        self._threads = [threading.Thread(target=self._accept)]

    def __enter__(self) -> Self:
        self._threads[0].start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(10)
        self._listener.close()

    def _accept(self) -> None:
        for number in range(100):
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            script = self._scripts[min(number, len(self._scripts) - 1)]
            self._threads.append(threading.Thread(target=self._play, args=(connection, script)))
            self._threads[-1].start()

    def _play(self, connection: socket.socket, script: Sequence[Step]) -> None:
        with connection, contextlib.suppress(OSError):
            connection.settimeout(10)
            head = b""
            while b"\r\n\r\n" not in head:
                head += connection.recv(65536)
            self.requests.append(head.decode())
            for step in script:
                if isinstance(step, bytes):
                    connection.sendall(step)
                elif isinstance(step, float):
                    self._stopped.wait(step)
                else:
                    connection.recv(1)


def head(
    *lines: str, status: str = "200 OK", kind: str = "text/event-stream", framing: str = "Transfer-Encoding: chunked"
) -> bytes:
    """An answer's head."""
    given = [f"HTTP/1.1 {status}", f"Content-Type: {kind}", "Cache-Control: no-cache, no-transform", "X-Accel-Buffering: no"]
    return "\r\n".join([*given, *([framing] if framing else []), *lines, "", ""]).encode()


def chunk(data: bytes) -> bytes:
    """A chunk."""
    return b"%x\r\n%s\r\n" % (len(data), data)


EVENT = chunk(b"id: 1\ndata: x\n\n")
KEEPALIVE = chunk(b": keepalive\n\n")


def test_what_a_browser_would_say_is_said() -> None:
    """It asks for an event stream, compressed if need be, as the origin and with the headers given, and comes back with the id."""
    with Raw([head(), EVENT, ...]) as server:
        seen = observe(f"{server.url}?a=ü", seconds=0.3, headers=[("Authorization", "Bearer x")], origin="https://a.example")
    first, second = server.requests
    assert first.startswith("GET /events/news?a=%C3%BC HTTP/1.1\r\n")
    for line in (
        "Accept: text/event-stream",
        "Accept-Encoding: gzip, deflate",
        "Authorization: Bearer x",
        "Origin: https://a.example",
    ):
        assert line in first and line in second
    assert "Last-Event-ID" not in first and "Last-Event-ID: 1\r\n" in second
    assert (seen.events, seen.last_event_id, seen.ending) == (1, "1", "open")
    assert seen.again is not None and seen.again.is_stream


def test_a_stream_that_goes_on_is_timed() -> None:
    """Pieces are counted and timed as they come, events and comments; what is left open isn't cut."""
    with Raw([head(), EVENT, 0.2, KEEPALIVE, 0.2, EVENT, KEEPALIVE, ...]) as server:
        seen = observe(server.url, seconds=1.0)
    assert (seen.events, seen.comments, seen.ending) == (2, 2, "open")
    assert [(lump.events, lump.comments) for lump in lumps(seen.pieces)] == [(1, 0), (0, 1), (1, 1)]
    assert 0.9 < seen.watched < 5
    assert seen.answer is not None and seen.answer.after < 1


@pytest.mark.parametrize(
    ("script", "ending"),
    [
        ([head(), EVENT], "cut"),
        ([head(), EVENT[:-4]], "cut"),
        ([head(), EVENT, b"0\r\n\r\n"], "whole"),
        ([head(framing=""), b"data: x\n\n"], "unframed"),
        ([head(framing="Content-Length: 9"), b"data: x\n\n"], "whole"),
        ([head(framing="Content-Length: 10"), b"data: x\n\n"], "cut"),
    ],
)
def test_how_a_stream_ends_is_seen(script: Sequence[Step], ending: str) -> None:
    """Cut within what its framing promised, whole by it, or with a connection that says neither."""
    with Raw(script) as server:
        seen = observe(server.url, seconds=5.0)
    assert (seen.ending, seen.problem) == (ending, "")


def test_a_cut_in_silence_is_timed() -> None:
    """A proxy's idle limit is what lies between the last byte and the end."""
    with Raw([head(), EVENT, 1.2]) as server:
        findings = {finding.subject: finding for finding in judge(observe(server.url, seconds=10.0))}
    assert findings["idle"].level == "fail"
    (silent,) = re.findall(r"([\d.]+) s of them silent", findings["idle"].text)
    assert 1.0 < float(silent) < 5


def test_keepalives_in_lumps_are_buffering() -> None:
    """Two at once, though nobody sends them so."""
    with Raw([head(), EVENT, 0.3, KEEPALIVE + KEEPALIVE, ...]) as server:
        findings = judge(observe(server.url, seconds=0.8))
    assert [finding.level for finding in findings if finding.subject == "buffering"] == ["fail"]


def test_a_stream_that_is_held_back_whole_is_told_from_a_server_that_hangs() -> None:
    """Where GET gets no head, a HEAD request shows whether there is anybody."""
    with Raw([...], [head()]) as server:
        seen = observe(server.url, seconds=0.3)
    assert server.requests[1].startswith("HEAD ")
    assert seen.silent and seen.head is not None
    assert [finding.subject for finding in judge(seen)] == ["buffering"]
    with Raw([...], [b""]) as server:
        seen = observe(server.url, seconds=0.3)
    assert [finding.subject for finding in judge(seen)] == ["answer"]


@pytest.mark.parametrize("is_flushed", [True, False])
def test_a_compressed_stream_is_read(is_flushed: bool) -> None:
    """What gzip lets through counts as events; what it keeps doesn't."""
    squeeze = zlib.compressobj(wbits=zlib.MAX_WBITS | 16)
    data = squeeze.compress(b"id: 1\ndata: x\n\n") + (squeeze.flush(zlib.Z_SYNC_FLUSH) if is_flushed else b"")
    with Raw([head("Content-Encoding: gzip"), chunk(data), ...]) as server:
        seen = observe(server.url, seconds=0.3)
    assert seen.events == is_flushed
    (found,) = [finding for finding in judge(seen) if finding.subject == "compression"]
    assert found.level == ("warn" if is_flushed else "fail")


@pytest.mark.parametrize("encoding", ["br", "gzip"])
def test_what_cannot_be_unpacked_is_no_error(encoding: str) -> None:
    """Another encoding, or bytes that aren't what they are called, count as pieces without events."""
    with Raw([head(f"Content-Encoding: {encoding}"), EVENT, ...]) as server:
        seen = observe(server.url, seconds=0.3)
    assert seen.pieces and seen.events == 0
    assert has_failed(judge(seen))


def test_a_redirection_is_followed_and_told() -> None:
    """The answer is that of the last address; another origin gets none of the given headers."""
    with Raw([head(), EVENT, ...]) as last, Raw([head(f"Location: {last.url}", status="302 Found", framing="")]) as first:
        seen = observe(first.url, seconds=0.3, headers=[("Authorization", "Bearer x")])
    assert "Authorization" in first.requests[0] and "Authorization" not in last.requests[0]
    assert seen.answer is not None and seen.answer.url == last.url
    assert [finding.level for finding in judge(seen) if finding.subject == "redirect"] == ["warn"]


@pytest.mark.parametrize(("location", "told"), [("ftp://example.org/", "begins with http://"), ("/events/news", "more than 20")])
def test_a_redirection_to_nowhere_is_a_failure(location: str, told: str) -> None:
    """To what isn't HTTP, and in circles."""
    with Raw([head(f"Location: {location}", status="301 Moved", framing="Content-Length: 0")]) as server:
        findings = judge(observe(server.url, seconds=5.0))
    assert has_failed(findings)
    assert told in findings[-1].text


@pytest.mark.parametrize("script", [[b""], [b"nonsense\r\n\r\n"]])
def test_an_answer_that_is_none_is_a_failure(script: Sequence[Step]) -> None:
    """A connection that is closed without one, and one that isn't HTTP."""
    with Raw(script) as server:
        findings = judge(observe(server.url, seconds=5.0))
    assert [finding.subject for finding in findings if finding.level == "fail"] == ["answer"]


# The commands


def doctor(*arguments: str) -> Result:
    """Runs `python -m sseflask doctor`."""
    return CliRunner().invoke(__main__.main, ["doctor", *arguments])


def by_app(*arguments: str) -> Result:
    """Runs `flask sse doctor`."""
    app = Flask(__name__)
    SSE(app)
    return app.test_cli_runner().invoke(args=["sse", "doctor", *arguments])


@pytest.fixture
def well() -> Iterator[Raw]:
    """A server whose stream is well."""
    with Raw([head(), EVENT, 0.1, KEEPALIVE, ...]) as server:
        yield server


@pytest.mark.parametrize("run", [doctor, by_app])
def test_the_command_says_what_it_finds(well: Raw, run: Any) -> None:
    """Line by line, with exit code 0 where nothing fails; a stream without TLS is a warning."""
    result = run(well.url, "--seconds", "0.5")
    assert result.exit_code == 0, result.output
    assert re.search(r"^ok +status +200", result.stdout, re.MULTILINE)
    assert re.search(r"^warn +HTTP version +no TLS", result.stdout, re.MULTILINE)
    assert result.stderr == f"watching {well.url} for 0.5 s\n"


def test_the_command_speaks_json(well: Raw) -> None:
    """One object, with all findings; what is private in the address isn't in it."""
    url = well.url.replace("http://", "http://me:secret@")
    result = doctor(url, "--seconds", "0.3", "--json", "--origin", "https://a.example", "--header", "X-A: b")
    told = json.loads(result.stdout)
    assert result.exit_code == 1
    assert [finding["subject"] for finding in told["findings"] if finding["level"] == "fail"] == ["CORS"]
    assert told["url"] == well.url and "secret" not in result.output
    assert "X-A: b" in well.requests[0] and "Authorization: Basic " in well.requests[0]


@pytest.mark.parametrize("run", [doctor, by_app])
@pytest.mark.parametrize("query", ["token=abc.def", "channel=a&token=abc.def&channel=b", "%74oken=abc.def#top"])
def test_the_command_shows_no_token(well: Raw, run: Any, query: str) -> None:
    """A token in the address is sent, and isn't in what is printed: people paste that elsewhere."""
    for more in ((), ("--json",)):
        result = run(f"{well.url}?{query}", "--seconds", "0.3", *more)
        assert result.exit_code == 0 and "abc" not in result.output and "oken=…" in result.output
    assert "abc.def" in well.requests[0]


@pytest.mark.parametrize("status", ["401 Unauthorized", "404 Not Found", "502 Bad Gateway"])
def test_the_command_fails_where_a_browser_would(status: str) -> None:
    """With exit code 1."""
    with Raw([head(status=status, framing="Content-Length: 0")]) as server:
        result = doctor(server.url, "--seconds", "5")
    assert result.exit_code == 1
    assert re.search(rf"^fail +status +{status}", result.stdout, re.MULTILINE)


@pytest.mark.parametrize(
    ("kind", "body", "told"),
    [
        (
            "application/json",
            b'{"error": "this channel is not open to you: news"}',
            ", 'this channel is not open to you: news': a browser",
        ),
        ("application/json", b'{"error": "a\\u001b[2J"}', r", 'a\x1b[2J': a browser"),
        ("application/json", b'{"error": 7}', ": a browser"),
        ("application/json", b"[1]", ": a browser"),
        ("application/json", b'{"error": "', ": a browser"),
        ("application/json", b"", ": a browser"),
        ("text/html", b'{"error": "x"}', ": a browser"),
    ],
)
def test_why_it_is_refused_is_told(kind: str, body: bytes, told: str) -> None:
    """What a refusal says in JSON is shown with its status, escaped; whatever else it has isn't."""
    with Raw([head(status="403 FORBIDDEN", kind=kind, framing=f"Content-Length: {len(body)}"), body]) as server:
        result = doctor(server.url, "--seconds", "5")
    assert result.exit_code == 1
    assert re.search(rf"^fail +status +403 FORBIDDEN{re.escape(told)}", result.stdout, re.MULTILINE), result.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ["ftp://example.org/"],
        ["example.org"],
        ["http://example.org:port/"],
        ["http://example.org/", "--header", "no colon"],
        ["http://example.org/", "--seconds", "0"],
        [],
    ],
)
def test_the_command_refuses_what_it_cannot_ask(arguments: list[str]) -> None:
    """With exit code 2, before anything is asked."""
    result = doctor(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""


def test_a_server_writes_nothing_onto_a_terminal() -> None:
    """What moves a cursor, in a header of its, is shown as an escape."""
    with Raw([head("Server: \x1b[2J", "Via: 1.1 x"), EVENT, ...]) as server:
        result = doctor(server.url, "--seconds", "0.2")
    assert "\x1b" not in result.output and "\\x1b[2J" in result.stdout


def test_the_limits_are_those_of_the_docs() -> None:
    """docs/how-to/proxies.md has each limit that a silence is put down to, and each finding that there can be."""
    text = (Path(__file__).parents[1] / "docs/how-to/proxies.md").read_text()
    rows = re.findall(r"^\| ([^|]+) \| (\d+) \|$", text, re.MULTILINE)
    assert rows == [(who.replace(" and ", ", "), f"{limit:g}") for limit, who in IDLE_LIMITS]
    subjects = {subject for row in re.findall(r"^\| ([\w ,]+) \| [^|]*\.\s*\|$", text, re.MULTILINE) for subject in row.split(", ")}
    assert subjects == set(get_args(Subject))
