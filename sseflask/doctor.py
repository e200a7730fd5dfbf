"""Judges what `probe` has seen of a stream: what is well, what isn't, and which directive of which proxy helps. No IO."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

from .probe import Answer, Observation, Piece

Level = Literal["ok", "warn", "fail"]
Subject = Literal[
    "answer",
    "status",
    "redirect",
    "in front",
    "stream",
    "HTTP version",
    "framing",
    "headers",
    "charset",
    "compression",
    "CORS",
    "first byte",
    "buffering",
    "idle",
    "end",
    "reconnect",
]
Topic = Literal["buffering", "compression", "idle", "version", "errors"]

#: Seconds between two pieces that belong to one lump at the most: less than anything that is sent on purpose, one after the other.
LUMP_SECONDS: Final = 0.05
#: Seconds to the first byte from which on it is slow, and too slow.
SLOW_SECONDS: Final = 1.0
VERY_SLOW_SECONDS: Final = 5.0
#: Seconds of silence before an end, from which on the silence may be its reason.
SILENT_SECONDS: Final = 1.0
#: The shortest idle limit of a proxy that we know of, in seconds.
SHORTEST_LIMIT: Final = 29.0
#: Seconds of silence after which these cut, unless they are told otherwise.
IDLE_LIMITS: Final = (
    (29.0, "AWS API Gateway"),
    (30.0, "AWS CloudFront and Azure Front Door"),
    (55.0, "Heroku"),
    (60.0, "nginx, HAProxy and AWS ALB"),
    (100.0, "Cloudflare"),
    (120.0, "Cloudflare"),
)
#: How far from a known limit a silence may be that is put down to it, in seconds.
LIMIT_TOLERANCE: Final = 2.0

#: Who stands in front, by what its headers say.
PROXIES: Final = (
    ("Cloudflare", re.compile(r"cloudflare", re.IGNORECASE)),
    ("CloudFront", re.compile(r"cloudfront", re.IGNORECASE)),
    ("AWS ALB", re.compile(r"awselb", re.IGNORECASE)),
    ("Google Cloud", re.compile(r"google", re.IGNORECASE)),
    ("Varnish", re.compile(r"varnish", re.IGNORECASE)),
    ("Caddy", re.compile(r"caddy", re.IGNORECASE)),
    ("HAProxy", re.compile(r"haproxy", re.IGNORECASE)),
    ("nginx", re.compile(r"nginx|openresty", re.IGNORECASE)),
    ("Apache", re.compile(r"apache", re.IGNORECASE)),
    ("Envoy", re.compile(r"envoy", re.IGNORECASE)),
)
NAMING_HEADERS: Final = ("Server", "Via", "X-Varnish", "X-Served-By")

#: What helps, by topic and proxy; the empty name is for all that don't say who they are.
REMEDIES: Final[dict[Topic, dict[str, str]]] = {
    "buffering": {
        "nginx": "proxy_buffering off; and no proxy_ignore_headers X-Accel-Buffering",
        "Caddy": "no encode for text/event-stream",
        "HAProxy": "option http-no-delay; no option http-buffer-request; no compression for text/event-stream",
        "Varnish": "set beresp.do_stream = true, and beresp.do_gzip = false, for text/event-stream",
        "Apache": "flushpackets=on at ProxyPass; no DEFLATE for text/event-stream",
        "": "nginx: proxy_buffering off; Caddy: no encode for text/event-stream; Varnish: beresp.do_stream = true; in the app: no "
        "middleware that collects or compresses responses",
    },
    "compression": {
        "nginx": "no text/event-stream in gzip_types",
        "Caddy": "a match in encode that text/event-stream isn't in (its default has text/*)",
        "HAProxy": "no text/event-stream in compression type",
        "Varnish": "set beresp.do_gzip = false for text/event-stream",
        "Apache": "no text/event-stream in AddOutputFilterByType DEFLATE",
        "": "leave text/event-stream out of what the proxy, or a middleware of the app, compresses",
    },
    "idle": {
        "nginx": "proxy_read_timeout, three times SSE_KEEPALIVE_INTERVAL or more",
        "Caddy": "read_timeout in the reverse_proxy's transport, three times SSE_KEEPALIVE_INTERVAL or more",
        "HAProxy": "timeout client and timeout server, three times SSE_KEEPALIVE_INTERVAL or more",
        "AWS ALB": "the load balancer's idle time-out (idle_timeout.timeout_seconds)",
        "Cloudflare": "SSE_KEEPALIVE_INTERVAL below its 100 s",
        "": "SSE_KEEPALIVE_INTERVAL below the limit, or the limit raised: nginx proxy_read_timeout, HAProxy timeout client and "
        "timeout server, Caddy read_timeout",
    },
    "version": {
        "nginx": "listen … ssl http2",
        "HAProxy": "alpn h2,http/1.1 at bind",
        "": "HTTP/2 to browsers at the proxy in front: nginx listen … ssl http2, HAProxy alpn h2,http/1.1, Caddy by itself",
    },
    "errors": {
        "": "let the proxy answer 200 with retry: in its place (deploy/ has it for nginx, HAProxy and Caddy); for the app's own "
        '503, SSE_REFUSE="retry"',
    },
}


@dataclass(frozen=True)
class Finding:
    """One thing found.

    Attributes:
        level: `ok`; `warn` for what works and may hurt; `fail` for what doesn't work.
        subject: What it is about.
        text: What is so.
        advice: What to do about it; empty where there is nothing to do.
    """

    level: Level
    subject: Subject
    text: str
    advice: str = ""

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)


def judge(seen: Observation) -> list[Finding]:
    """All that is to be said of a stream, in the order in which one would ask."""
    answer = seen.answer
    proxy = _proxy(answer) if answer is not None else ""
    findings = list(_redirects(seen))
    if answer is None or seen.problem:
        return [*findings, _unanswered(seen)]
    findings.append(_status(answer, proxy, seen.error))
    if not answer.is_stream:
        return [*findings, *_cors(seen, answer)]
    findings.append(_in_front(answer, proxy))
    if _is_placeholder(seen):
        text = f"the stream is empty and says to come back in {seen.retry} ms: nobody could serve it just now"
        return [*findings, Finding("fail", "stream", text, "see whether the app runs, and has room (its -/health says so)")]
    findings += [*_version(seen, answer, proxy), *_headers(answer, proxy)]
    findings += [*_compression(seen, answer, proxy), *_cors(seen, answer)]
    findings.append(_first_byte(seen, answer, proxy))
    findings += _buffering(seen, proxy)
    findings.append(_end(seen, proxy))
    findings += _reconnect(seen)
    return findings


def has_failed(findings: Iterable[Finding]) -> bool:
    """Whether something doesn't work."""
    return any(finding.level == "fail" for finding in findings)


def lines(findings: Sequence[Finding]) -> Iterator[str]:
    """The findings for who reads them."""
    width = max([len(finding.subject) for finding in findings], default=0)
    for finding in findings:
        yield f"{finding.level:<4}  {finding.subject:<{width}}  {finding.text}"
        if finding.advice:
            yield f"{'':<{width + 8}}→ {finding.advice}"


def lumps(pieces: Sequence[Piece]) -> list[Piece]:
    """Pieces that came together, as one each."""
    found: list[Piece] = []
    before = float("-inf")
    for piece in pieces:
        if piece.at - before <= LUMP_SECONDS:
            last = found.pop()
            piece_of_lump = Piece(last.at, last.size + piece.size, last.events + piece.events, last.comments + piece.comments)
        else:
            piece_of_lump = piece
        found.append(piece_of_lump)
        before = piece.at
    return found


def silences(seen: Observation) -> list[float]:
    """Seconds between the pieces, and from the last one to the end."""
    times = [*(piece.at for piece in seen.pieces), seen.watched]
    return [after - before for before, after in itertools.pairwise(times)]


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _remedy(topic: Topic, proxy: str) -> str:
    known = REMEDIES[topic]
    return f"{proxy}: {known[proxy]}" if proxy in known and proxy else known[""]


def _proxy(answer: Answer) -> str:
    """Who stands in front; empty where nobody says so."""
    told = " ".join(f"{name} {answer.header(name)}" for name in NAMING_HEADERS if answer.header(name))
    return next((name for name, pattern in PROXIES if pattern.search(told)), "")


def _redirects(seen: Observation) -> Iterator[Finding]:
    if not seen.hops:
        return
    statuses = ", ".join(str(hop.status) for hop in seen.hops)
    where = seen.answer.url if seen.answer is not None else "another address"
    # Firefox asks the first address again, Chromium the last one.
    text = f"redirected ({statuses}) to {where}: browsers do so at each reconnect"
    yield Finding("warn", "redirect", text, "give pages the address itself")


def _unanswered(seen: Observation) -> Finding:
    if not seen.silent or seen.head is None:
        return Finding(
            "fail", "answer", seen.problem, "" if seen.silent else "see whether the address is right, and a server listens"
        )
    text = f"{seen.problem}, though a HEAD request has one after {seen.head.after:.1f} s: something keeps the stream back"
    return Finding("fail", "buffering", text, _remedy("buffering", _proxy(seen.head)))


def _status(answer: Answer, proxy: str, error: str) -> Finding:
    # Escaped: whoever answers may write what it likes.
    status = f"{answer.status} {answer.reason}".strip() + (f", {error!r}" if error else "")
    gives_up = "a browser's EventSource gives up for good"
    match answer.status:
        case 200 if answer.content_type == "text/event-stream":
            return Finding("ok", "status", "200, text/event-stream")
        case 200:
            kind = answer.content_type or "no type"
            return Finding("fail", "status", f"200, but {kind}: {gives_up}", "answer with Content-Type: text/event-stream")
        case 204:
            text = f"204: there is no more to come, and {gives_up}"
            return Finding("fail", "status", text, "try it with a channel that isn't closed")
        case 401 | 403:
            return Finding("fail", "status", f"{status}: {gives_up}", "say who you are: --header 'Authorization: Bearer …'")
        case 404:
            return Finding(
                "fail", "status", f"{status}: {gives_up}", "see whether the address is right, the blueprint's url_prefix too"
            )
        case 429 | 502 | 503 | 504:
            return Finding("fail", "status", f"{status}: {gives_up}", _remedy("errors", proxy))
        case _:
            return Finding("fail", "status", f"{status}: {gives_up}")


def _in_front(answer: Answer, proxy: str) -> Finding:
    told = ", ".join(f"{name}: {answer.header(name)}" for name in NAMING_HEADERS if answer.header(name))
    return Finding("ok", "in front", f"{proxy or 'nobody who says so'}{f' ({told})' if told else ''}")


def _version(seen: Observation, answer: Answer, proxy: str) -> Iterator[Finding]:
    six = "a browser opens six connections to an origin, and the seventh tab's stream hangs"
    if seen.alpn == "h2":
        yield Finding("ok", "HTTP version", "HTTP/2 is spoken: all of a browser's streams share one connection")
    elif seen.is_secure:
        yield Finding("warn", "HTTP version", f"no HTTP/2: {six}", _remedy("version", proxy))
    else:
        yield Finding("warn", "HTTP version", f"no TLS, and so no HTTP/2 in browsers: {six}", _remedy("version", ""))
    if answer.version == "1.0":
        text = "it answers with HTTP/1.0, so nobody can tell a stream's end from its being cut"
        yield Finding("warn", "framing", text, "HTTP/1.1 throughout (nginx: proxy_http_version 1.1)")
    if answer.header("Content-Length"):
        text = f"it has a Content-Length, {answer.header('Content-Length')}: something collected the stream, up to its end"
        yield Finding("fail", "framing", text, _remedy("buffering", proxy))


def _headers(answer: Answer, proxy: str) -> Iterator[Finding]:
    cache = {word.strip().partition("=")[0] for word in answer.header("Cache-Control").lower().split(",")}
    missing = []
    if not cache & {"no-cache", "no-store"}:
        missing.append("Cache-Control: no-cache, or caches may keep the stream")
    if "no-transform" not in cache:
        missing.append("Cache-Control: no-transform, or proxies may compress it")
    # nginx keeps to itself what is meant for it.
    if proxy != "nginx" and answer.header("X-Accel-Buffering").lower() != "no":
        missing.append("X-Accel-Buffering: no, or an nginx on the way buffers it")
    if missing:
        advice = "sseflask's streams have these: something on the way takes them out, or the app replaces them"
        yield Finding("warn", "headers", f"missing: {'; '.join(missing)}", advice)
    else:
        yield Finding("ok", "headers", "those of an event stream are there")
    charset = re.search(r"charset\s*=\s*\"?([^\s;\"]+)", answer.header("Content-Type"), re.IGNORECASE)
    if charset is not None and charset[1].lower() not in ("utf-8", "utf8"):
        yield Finding("warn", "charset", f"it says {charset[1]}: browsers read event streams as UTF-8, whatever is said")


def _compression(seen: Observation, answer: Answer, proxy: str) -> Iterator[Finding]:
    encoding = answer.header("Content-Encoding")
    if encoding.lower() in ("", "identity"):
        yield Finding("ok", "compression", "none")
        return
    is_held = not (seen.events or seen.comments)
    text = f"{encoding}, and no event has come through" if is_held else f"{encoding}: fine only while each event is flushed"
    yield Finding("fail" if is_held else "warn", "compression", text, _remedy("compression", proxy))


def _cors(seen: Observation, answer: Answer) -> Iterator[Finding]:
    if seen.origin is None:
        return
    allowed = answer.header("Access-Control-Allow-Origin")
    credentials = answer.header("Access-Control-Allow-Credentials").lower() == "true"
    if allowed not in ("*", seen.origin):
        text = f"{seen.origin} may not read it (Access-Control-Allow-Origin: {allowed or 'missing'})"
        advice = f"answer with Access-Control-Allow-Origin: {seen.origin}, in errors and from the proxy, too"
        yield Finding("fail", "CORS", text, advice)
    elif allowed == "*" or not credentials:
        yield Finding("ok", "CORS", f"{seen.origin} may read it, without cookies (withCredentials: false)")
    else:
        yield Finding("ok", "CORS", f"{seen.origin} may read it, with cookies, too")
    if allowed == seen.origin and "origin" not in answer.header("Vary").lower():
        text = "it allows this origin, and doesn't say that another one gets another answer"
        yield Finding("warn", "CORS", text, "add Vary: Origin")


def _is_placeholder(seen: Observation) -> bool:
    """Whether this is what proxies, and full workers, say in place of a stream."""
    return seen.ending in ("whole", "unframed") and seen.retry is not None and not seen.events and seen.watched < SLOW_SECONDS * 5


def _first_byte(seen: Observation, answer: Answer, proxy: str) -> Finding:
    if not seen.pieces:
        text = f"the head came after {answer.after:.2f} s, and nothing else within {seen.watched:.0f} s: it is silent, or held back"
        advice = f"watch longer than the keepalives' interval (--seconds 40); {_remedy('buffering', proxy)}"
        return Finding("fail" if seen.watched >= SHORTEST_LIMIT else "warn", "first byte", text, advice)
    first = seen.pieces[0].at
    text = f"after {first:.2f} s, the head after {answer.after:.2f} s"
    if answer.after < SLOW_SECONDS:
        return Finding("ok", "first byte", text)
    advice = f"slow: a view that works before its stream opens, or {_remedy('buffering', proxy)}"
    return Finding("fail" if answer.after >= VERY_SLOW_SECONDS else "warn", "first byte", text, advice)


def _buffering(seen: Observation, proxy: str) -> Iterator[Finding]:
    if not seen.pieces:
        return
    # The first lump may be a replay, all at once.
    later = lumps(seen.pieces)[1:]
    most = max([lump.comments for lump in later], default=0)
    full = [lump for lump in later if lump.events > 1]
    if most > 1:
        text = f"{most} keepalives came at once: something holds the stream back"
        yield Finding("fail", "buffering", text, _remedy("buffering", proxy))
    elif len(full) > 1 and len(full) == len([lump for lump in later if lump.events]):
        text = (
            f"events come in lumps of up to {max(lump.events for lump in full)}, with silence between: held back, or published so"
        )
        yield Finding("warn", "buffering", text, _remedy("buffering", proxy))
    elif any(lump.events or lump.comments for lump in later):
        yield Finding("ok", "buffering", f"{_count(seen.events, 'event')} and {_count(seen.comments, 'comment')}, as they came")
    else:
        text = f"can't be told: {_count(seen.events, 'event')} at the opening, and nothing more within {seen.watched:.0f} s"
        yield Finding("ok", "buffering", text)


def _end(seen: Observation, proxy: str) -> Finding:
    silent = silences(seen)
    if seen.ending == "open":
        longest = max(silent, default=seen.watched)
        text = f"not cut within {seen.watched:.0f} s; the longest silence was {longest:.1f} s"
        if longest < SHORTEST_LIMIT:
            return Finding("ok", "idle", text)
        limits = "; ".join(f"{limit:g} s: {who}" for limit, who in IDLE_LIMITS)
        return Finding("warn", "idle", f"{text}, which others cut ({limits})", "SSE_KEEPALIVE_INTERVAL = 15, the default")
    last = silent[-1] if silent else seen.watched
    how = {"cut": "cut", "whole": "ended, as if whole,", "unframed": "ended, or was cut,"}[seen.ending]
    if last < SILENT_SECONDS:
        if seen.ending == "cut":
            text = f"cut after {seen.watched:.1f} s, while it was sending"
            advice = "a worker that was killed, or a proxy's limit on a whole response; see their logs at this time"
            return Finding("fail", "end", text, advice)
        if not (seen.events or seen.comments):
            return Finding(
                "warn", "end", f"it ended after {seen.watched:.1f} s, without an event; a browser comes back, again and again"
            )
        return Finding("ok", "end", f"it ended after {seen.watched:.1f} s; a browser comes back")
    limit, known = min(IDLE_LIMITS, key=lambda known: abs(last - known[0]))
    known = known if abs(last - limit) <= LIMIT_TOLERANCE else ""
    text = f"{how} after {seen.watched:.1f} s, {last:.1f} s of them silent{f', as by {known}' if known else ''}"
    # Caddy ends a response of which it had to wait too long as if it were whole; and so does an app that has no more to say.
    return Finding("fail" if seen.ending == "cut" else "warn", "idle", text, _remedy("idle", proxy))


def _reconnect(seen: Observation) -> Iterator[Finding]:
    if not seen.last_event_id:
        if seen.events:
            text = "its events have no id: what is missed between two connections is lost"
            yield Finding("warn", "reconnect", text, "publish to channels, or give events an id and read Last-Event-ID")
        return
    if seen.again is None:
        yield Finding("fail", "reconnect", f"with Last-Event-ID: {seen.again_problem}")
    elif seen.again.is_stream:
        yield Finding("ok", "reconnect", f"Last-Event-ID is accepted, after {seen.again.after:.2f} s")
    elif seen.again.status == 204:
        yield Finding("ok", "reconnect", "204 to the last id: there is no more to come")
    else:
        status = f"{seen.again.status} {seen.again.reason}".strip()
        yield Finding("fail", "reconnect", f"{status} to Last-Event-ID: a browser's EventSource gives up for good")
