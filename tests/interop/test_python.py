"""Python's other clients, and curl."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable, Iterator

import httpx
import pytest
import requests
from httpx_sse import connect_sse
from sseclient import SSEClient

from sseflask import EventDecoder
from sseflask.client import EventSource
from tests.interop.events import EVENTS, RETRY, Report, assert_whole, reported, with_empty_events, without_sticky_ids
from tests.live.server import Server

pytestmark = pytest.mark.live

#: Reads one stream, from a position, to its end.
Read = Callable[[str, str], Iterator[list[str]]]


def of_httpx_sse(url: str, last_id: str) -> Iterator[list[str]]:
    """httpx-sse: each response by itself."""
    headers = {"Last-Event-ID": last_id} if last_id else {}
    with httpx.Client() as client, connect_sse(client, "GET", url, headers=headers) as source:
        if source.response.status_code == 204:
            return
        for event in source.iter_sse():
            yield [event.event, event.data, event.id]


def of_sseclient(url: str, last_id: str) -> Iterator[list[str]]:
    """sseclient-py on requests: each response by itself."""
    headers = {"Accept": "text/event-stream"} | ({"Last-Event-ID": last_id} if last_id else {})
    with requests.get(url, headers=headers, stream=True, timeout=20) as response:
        for event in SSEClient(response).events():
            yield [event.event, event.data, event.id or ""]


def of_requests(url: str, last_id: str) -> Iterator[list[str]]:
    """requests, reading lines: as its users do it by hand."""
    headers = {"Accept": "text/event-stream"} | ({"Last-Event-ID": last_id} if last_id else {})
    block: dict[str, list[str]] = {}
    with requests.get(url, headers=headers, stream=True, timeout=20) as response:
        for line in response.iter_lines():
            if line and not line.startswith(b":"):
                name, _, value = line.decode().partition(": ")
                block.setdefault(name, []).append(value)
            elif not line:
                if "data" in block:
                    yield [block.get("event", ["message"])[-1], "\n".join(block["data"]), block.get("id", [""])[-1]]
                block = {}


def read_on(read: Read, url: str) -> Report:
    """Comes back with the last id, as a user of a client without reconnects does, until the server says that it is over."""
    report: Report = []
    last_id = ""
    for _ in range(50):
        for event in read(url, last_id):
            report.append(event)
            last_id = event[2] or last_id
            if event[0] == "stream-end":
                return report
    raise AssertionError(f"no end: {report}")


def test_httpx_sse(server: Server) -> None:
    """It reports what was sent, with sticky ids; a block without data is an empty event for it."""
    assert list(of_httpx_sse(server.url("/all"), "")) == with_empty_events(reported(), "a6")


def test_httpx_sse_hears_retry(server: Server) -> None:
    """The time that the stream asks for is there for its user."""
    with httpx.Client() as client, connect_sse(client, "GET", server.url("/all")) as source:
        assert RETRY in [event.retry for event in source.iter_sse()]


@pytest.mark.parametrize("read", [of_sseclient, of_requests])
def test_without_sticky_ids(server: Server, read: Read) -> None:
    """They report what was sent; an event without an id of its own has none for them."""
    assert list(read(server.url("/all"), "")) == without_sticky_ids(reported())


@pytest.mark.parametrize("read", [of_httpx_sse, of_sseclient, of_requests])
def test_nothing_is_lost_when_the_user_comes_back(server: Server, read: Read) -> None:
    """Each connection is cut after a moment; with the last id in the next request's header each event comes once."""
    report = read_on(read, server.url(f"/live/{read.__name__}"))
    assert_whole([event for event in report if event[:2] != ["message", ""]])


def test_our_own(server: Server) -> None:
    """The client of sseflask reports all of it, and comes back by itself."""
    with EventSource(server.url("/all"), end_event="done") as source:
        assert [[event.event or "message", event.data, event.id or ""] for event in source] == reported()
        assert source.retry == RETRY
    with EventSource(server.url("/live/our-own"), max_backoff=0.1) as source:
        assert_whole([[event.event or "message", event.data or "", event.id or ""] for event in source])


def curl(*arguments: str) -> bytes:
    """Runs curl and returns its output."""
    program = shutil.which("curl")
    if program is None:
        pytest.skip("there is no curl on this system")
    return subprocess.run([program, "--no-buffer", "--silent", "--show-error", *arguments], capture_output=True, check=True).stdout


def test_curl(server: Server) -> None:
    """It shows the very bytes, keepalives among them, and sees a response that is whole."""
    body = curl("--include", server.url("/all"))
    head, _, stream = body.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert re.search(rb"(?mi)^content-type: text/event-stream; charset=utf-8\r?$", head)
    lines = stream.split(b"\n")
    assert lines.count(b":keepalive") >= 2
    events = b"\n".join(line for line in lines if line != b":keepalive")
    beginning = b"retry: 100\n\n"
    assert events == beginning + b"".join(event.encode() for event in EVENTS)
    assert EventDecoder().feed(stream)[-1].id == EVENTS[-1].id
    again = curl("--include", "--header", f"Last-Event-ID: {EVENTS[-1].id}", server.url("/all"))
    assert again.startswith(b"HTTP/1.1 204 ")
