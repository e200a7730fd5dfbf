"""The Python client: its rules without IO, both event sources against a scripted server, and what of it may be seen."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from sseflask import InvalidSetting, ServerSentEvent, SSEError
from sseflask.client import (
    AsyncEventSource,
    EventSource,
    EventSourceError,
    NotAnEventStream,
    NotRepeatable,
    RetriesExhausted,
    SourceState,
    StreamInterrupted,
    StreamRefused,
)
from sseflask.client.protocol import Connect, Policy, Protocol, Read, Stop, delay_before, seconds_of, without_secrets
from tests.live.process import wait_until
from tests.scripted import TABLE, ScriptedServer, faults_of, filled

ROOT = Path(__file__).resolve().parents[1]
# A `ServerSentEvent` holds the text as it came; reading it as JSON is its user's business.
CASES = [case for case in TABLE["cases"] if "parse" not in case["options"]]

each_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"].replace(" ", "-"))


def options_of(case: Mapping[str, Any]) -> dict[str, Any]:
    """A case's options as an event source takes them."""
    given = {"base_ms": 20, "max_ms": 100, **case["options"]}
    options: dict[str, Any] = {"backoff": given.pop("base_ms") / 1000, "max_backoff": given.pop("max_ms") / 1000}
    if "stall_timeout_ms" in given:
        options["stall_timeout"] = given.pop("stall_timeout_ms") / 1000
    if "body" in given:
        options["content"] = given.pop("body")
    if "tokens" in given:
        options["token"] = iter(given.pop("tokens")).__next__
    return options | given


def triple(event: ServerSentEvent) -> list[str]:
    """An event as the table writes it."""
    assert event.data is not None
    return [event.event or "message", event.data, event.id or ""]


class Outcome:
    """What an event source has brought.

    Attributes:
        events: Its events, as the table writes them.
        errors: What it has said of errors, likewise.
    """

    def __init__(self) -> None:
        self.events: list[list[str]] = []
        self.errors: list[dict[str, Any]] = []

    def retrying(self, error: StreamInterrupted) -> None:
        """For `on_retry`."""
        self.errors.append({"status": error.status, "retrying": True})

    def raised(self, error: EventSourceError) -> None:
        """What has ended the iteration."""
        self.errors.append({"status": error.status, "retrying": False})

    def check(self, case: Mapping[str, Any]) -> None:
        """Compare with what the table says."""
        assert self.events == case["then"]["events"]
        assert self.errors == case["then"]["errors"]


def checked(outcomes: Mapping[str, Outcome | BaseException], case: Mapping[str, Any]) -> None:
    """Compare what has come of a case with what the table says."""
    outcome = outcomes[case["name"]]
    if isinstance(outcome, BaseException):
        raise outcome
    outcome.check(case)


def is_enough(case: Mapping[str, Any], outcome: Outcome) -> bool:
    """Whether the driver is to close what would stay open."""
    return case["then"]["state"] == "open" and len(outcome.events) == len(case["then"]["events"])


class TestProtocol:
    """The rules, without IO."""

    @pytest.mark.parametrize("row", TABLE["delays"], ids=str)
    def test_delays(self, row: dict[str, Any]) -> None:
        """It waits as long as the table says."""
        delay = delay_before(
            row["failures"],
            backoff=row["base_ms"] / 1000,
            max_backoff=row["max_ms"] / 1000,
            retry=None if row["retry_ms"] is None else row["retry_ms"] / 1000,
            retry_after=row["retry_after_s"] or 0.0,
            random=row["random"],
        )
        assert delay == pytest.approx(row["delay_ms"] / 1000)

    @each_case
    def test_cases(self, case: dict[str, Any]) -> None:
        """Each step's answer leads to the next step's request, with a clock and a random source that are given."""
        player = Player(case)
        player.play()
        assert player.faults == []
        player.outcome.check(case)
        assert player.protocol.state is (SourceState.OPEN if case["then"]["state"] == "open" else SourceState.CLOSED)

    def test_a_steady_stream_without_events_starts_the_count_of_failures_anew(self) -> None:
        """One that stayed open for five seconds was good, one that was shorter wasn't."""
        protocol = Protocol("http://x/", random=lambda: 0.5, policy=Policy(retries=3))
        now = 0.0
        for seconds, failures in [(4.9, 1), (4.9, 2), (5.0, 1), (0.0, 2)]:
            protocol.requested()
            assert protocol.answered(200, now=now, wall=0, content_type="text/event-stream") == Read()
            now += seconds
            action = protocol.failed("cut", now=now)
            assert isinstance(action, Connect) and protocol.failures == failures

    def test_what_surely_was_not_sent_is_sent_again(self) -> None:
        """A POST that didn't get a connection can't have done anything."""
        protocol = Protocol("http://x/", random=lambda: 0.5, method="POST")
        protocol.requested()
        assert isinstance(protocol.failed("refused", now=0, was_sent=False), Connect)
        protocol.requested()
        action = protocol.failed("reset", now=0)
        assert isinstance(action, Stop) and isinstance(action.error, NotRepeatable) and action.error.method == "POST"

    @pytest.mark.parametrize(
        ("value", "seconds"),
        [
            ("0", 0), ("7", 7), (" 7 ", 7), ("86401", 86400), ("9" * 5000, 86400), ("-1", 0), ("1.5", 0), ("soon", 0), ("", 0),
            ("٣", 0), ("Thu, 01 Jan 1970 00:16:50 GMT", 10), ("Thu, 01 Jan 1970 00:16:30 GMT", 0),
            ("Fri, 31 Dec 9999 23:59:59 GMT", 86400),
            ("Fri, 99 Dec 1999 23:59:59 GMT", 0),
        ],
    )  # fmt: skip
    def test_retry_after(self, value: str, seconds: float) -> None:
        """Seconds or a date, a day at the most; anything else is none."""
        assert seconds_of(value, 1000.0) == seconds

    def test_what_is_secret_in_a_url(self) -> None:
        """User, password, query and fragment aren't shown."""
        assert without_secrets("https://me:pw@host:8/path?token=x#y") == "https://host:8/path"
        assert "[" not in without_secrets("http://[bad")

    @pytest.mark.parametrize(
        "wrong",
        [
            {"retries": -1},
            {"retries": True},
            {"backoff": -1},
            {"backoff": "2"},
            {"max_backoff": float("nan")},
            {"max_event_bytes": 0},
        ],
    )
    def test_wrong_options(self, wrong: dict[str, Any]) -> None:
        """A value that can't be used is refused by name."""
        with pytest.raises(InvalidSetting, match=next(iter(wrong))):
            EventSource("http://x/", **wrong)


class Player:
    """Plays a case's server against a protocol, with no IO and no time that passes by itself."""

    def __init__(self, case: Mapping[str, Any]) -> None:
        options = options_of(case)
        self.case = case
        self.outcome = Outcome()
        self.faults: list[str] = []
        self.now = 1_000_000.0
        self._tokens = [options["token"]] if isinstance(options.get("token"), str) else case["options"].get("tokens", [])[:]
        self._token = self._tokens.pop(0) if self._tokens else None
        self._body = case["options"].get("body", "").encode()
        self._own = {name.lower(): value for name, value in case["options"].get("headers", {}).items()}
        self._stall = options.get("stall_timeout", 45.0)
        self.protocol = Protocol(
            "http://server/events",
            random=lambda: 0.5,
            method=options.get("method", "GET"),
            has_key="idempotency-key" in self._own,
            can_renew="tokens" in case["options"],
            policy=Policy(
                **{name: options[name] for name in ("backoff", "max_backoff", "retries", "end_event") if name in options}
            ),
        )

    def play(self) -> None:
        """Runs the steps to the end."""
        action: Any = self.protocol.begin()
        for number, step in enumerate(self.case["steps"], 1):
            assert isinstance(action, Connect), f"it stops before request {number}: {action}"
            self._check(number, action, step["request"])
            if step["answer"].get("status") == 307:
                continue
            self.protocol.requested()
            action = self._answer(step["answer"])
            if isinstance(action, Connect) and action.error is not None:
                self.outcome.retrying(action.error)
        if isinstance(action, Stop) and action.error is not None:
            self.outcome.raised(action.error)
        assert isinstance(action, Read) == (self.case["then"]["state"] == "open"), action

    def _check(self, number: int, action: Connect, expected: Mapping[str, Any]) -> None:
        if action.renew_token:
            self._token = self._tokens.pop(0)
        headers = {"accept": "text/event-stream", **self._own}
        headers |= {name.lower(): value.decode() for name, value in action.headers.items()}
        if self._token is not None:
            headers["authorization"] = f"Bearer {self._token}"
        method = self.case["options"].get("method", "GET")
        self.faults += [f"{number}: {text}" for text in faults_of(expected, method, headers, self._body, action.delay * 1000)]
        self.now += action.delay

    def _answer(self, answer: Mapping[str, Any]) -> Any:
        if answer.get("drop") or answer.get("status", 200) is None:
            return self.protocol.failed("dropped", now=self.now)
        headers = {"Content-Type": "text/event-stream", **answer.get("headers", {})}
        action: Any = self.protocol.answered(
            answer.get("status", 200),
            now=self.now,
            wall=self.now,
            content_type=headers["Content-Type"],
            retry_after=filled(headers.get("Retry-After", ""), "", self.now),
        )
        for piece in answer.get("stream", ()):
            if isinstance(action, Read):
                if isinstance(piece, str):
                    events, action = self.protocol.receive(piece.encode())
                    self.outcome.events += map(triple, events)
                else:
                    self.now += piece / 1000
        end = answer.get("end", "clean")
        if not isinstance(action, Read) or is_enough(self.case, self.outcome):
            return action
        return self.protocol.failed(end, now=self.now, is_clean=end == "clean")


Outcomes = Mapping[str, Outcome | BaseException]


def run(case: dict[str, Any]) -> Outcome | BaseException:
    """Runs a case with a blocking event source on sockets."""
    outcome = Outcome()
    stays_open = case["then"]["state"] == "open"
    try:
        with ScriptedServer(case["steps"]) as server:
            with EventSource(server.url, on_retry=outcome.retrying, **options_of(case)) as source:
                try:
                    for event in source:
                        outcome.events.append(triple(event))
                        if is_enough(case, outcome):
                            break
                except EventSourceError as error:
                    outcome.raised(error)
                else:
                    assert (source.state is SourceState.OPEN) == stays_open
            assert source.state is SourceState.CLOSED
            assert server.count == len(case["steps"])
            assert server.faults == []
    except BaseException as error:
        return error
    return outcome


@pytest.fixture(scope="module")
def outcomes() -> Outcomes:
    """What comes of all cases, several at a time: most of them wait."""
    with ThreadPoolExecutor(8) as pool:
        return dict(zip((case["name"] for case in CASES), pool.map(run, CASES), strict=True))


class TestEventSource:
    """The blocking one, on sockets."""

    @each_case
    def test_cases(self, outcomes: Outcomes, case: dict[str, Any]) -> None:
        """It does to a real server what the table says."""
        checked(outcomes, case)


@pytest.fixture(scope="module")
def async_outcomes() -> Outcomes:
    """What comes of all cases, run at the same time."""

    async def run(case: dict[str, Any]) -> Outcome:
        outcome = Outcome()
        with ScriptedServer(case["steps"]) as server:
            async with AsyncEventSource(server.url, on_retry=outcome.retrying, **options_of(case)) as source:
                try:
                    async for event in source:
                        outcome.events.append(triple(event))
                        if is_enough(case, outcome):
                            break
                except EventSourceError as error:
                    outcome.raised(error)
            assert server.count == len(case["steps"])
            assert server.faults == []
        return outcome

    async def run_all() -> list[Outcome | BaseException]:
        return await asyncio.gather(*map(run, CASES), return_exceptions=True)

    return dict(zip((case["name"] for case in CASES), asyncio.run(run_all()), strict=True))


class TestAsyncEventSource:
    """The asynchronous one, on sockets."""

    @each_case
    def test_cases(self, async_outcomes: Outcomes, case: dict[str, Any]) -> None:
        """It does to a real server what the table says."""
        checked(async_outcomes, case)


class Held:
    """A server with one stream that sends what it is told, and then waits."""

    def __init__(self, *streams: list[str | int], **then: Any) -> None:
        steps = [{"request": {}, "answer": {"stream": stream}} for stream in streams]
        steps[-1]["answer"] |= {"end": "hold"} | then
        self.server = ScriptedServer(steps)

    def __enter__(self) -> ScriptedServer:
        return self.server.__enter__()

    def __exit__(self, *_: object) -> None:
        self.server.__exit__()


def in_thread(work: Callable[[], Any]) -> tuple[threading.Thread, list[Any]]:
    """Begins work in a thread; the list gets what it returns or raises."""
    told: list[Any] = []

    def run() -> None:
        try:
            told.append(work())
        except BaseException as error:
            told.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread, told


class TestClosing:
    """`close`, from elsewhere."""

    def test_while_it_reads(self) -> None:
        """An iteration that waits for the next event ends, though the server says nothing and doesn't hang up."""
        with Held(["data: a\n\n"]) as server:
            source = EventSource(server.url, stall_timeout=0)
            assert next(source).data == "a"
            thread, told = in_thread(lambda: list(source))
            source.close()
            source.close()
            thread.join(10)
            assert told == [[]]
            assert source.state is SourceState.CLOSED
            assert list(source) == []

    def test_while_it_waits_for_an_answer(self) -> None:
        """A request whose answer doesn't come is given up."""
        with ScriptedServer([{"request": {}, "answer": {"status": None, "end": "hold"}}]) as server:
            source = EventSource(server.url, stall_timeout=0)
            thread, told = in_thread(lambda: list(source))
            wait_until(lambda: server.count == 1)
            source.close()
            thread.join(10)
            assert told == [[]]

    def test_while_it_waits_to_come_back(self) -> None:
        """The time between two attempts is cut short."""
        waiting = threading.Event()
        with ScriptedServer([{"request": {}, "answer": {"status": 503, "headers": {"Retry-After": "3600"}}}]) as server:
            source = EventSource(server.url, on_retry=lambda _: waiting.set())
            thread, told = in_thread(lambda: list(source))
            assert waiting.wait(10)
            assert source.state is SourceState.WAITING
            source.close()
            thread.join(10)
            assert told == [[]]

    def test_before_it_began(self) -> None:
        """Nothing is asked for."""
        with ScriptedServer([]) as server:
            with EventSource(server.url) as source:
                pass
            assert list(source) == []
            assert server.count == 0

    def test_it_lets_go_of_the_connection(self) -> None:
        """The server sees the end, also when the iteration was left in its midst."""
        with Held(["data: a\n\n"]) as server:
            with EventSource(server.url) as source:
                for _ in source:
                    break
            # Who serves waits for the client to hang up.
            wait_until(lambda: server.is_idle, 10)

    def test_a_task_that_waits(self) -> None:
        """Another task's `aclose` ends an asynchronous iteration: while it reads, and while it waits to come back."""

        async def run(server: ScriptedServer) -> list[list[ServerSentEvent]]:
            waiting = asyncio.Event()
            source = AsyncEventSource(server.url, stall_timeout=0)
            other = AsyncEventSource("http://127.0.0.1:1/", backoff=3600, max_backoff=3600, on_retry=lambda _: waiting.set())

            async def collect(source: AsyncEventSource) -> list[ServerSentEvent]:
                return [event async for event in source]

            assert (await anext(source)).data == "a"
            tasks = [asyncio.create_task(collect(source)), asyncio.create_task(collect(other))]
            await asyncio.wait_for(waiting.wait(), 10)
            await source.aclose()
            await other.aclose()
            return await asyncio.wait_for(asyncio.gather(*tasks), 10)

        with Held(["data: a\n\n"]) as server:
            assert asyncio.run(run(server)) == [[], []]


class TestPosition:
    """`last_event_id`."""

    def test_it_is_that_of_the_last_event_given_out(self) -> None:
        """Though the next events have come already; a block without data moves it when nothing is left to give."""
        with Held(["id: 1\ndata: a\n\nid: 2\ndata: b\n\nid: 3\n\n"]) as server, EventSource(server.url) as source:
            seen = [(next(source).data, source.last_event_id) for _ in range(2)]
            assert seen == [("a", "1"), ("b", "3")]

    def test_where_to_begin(self) -> None:
        """It can be given, and is what the first request asks for; spaces at its ends don't make a request invalid."""
        step = {"request": {"headers": {"Last-Event-ID": "x y"}}, "answer": {"status": 204}}
        with ScriptedServer([step]) as server:
            source = EventSource(server.url, last_event_id=" x y ")
            assert source.last_event_id == " x y "
            assert list(source) == []
            assert server.faults == []

    @pytest.mark.parametrize("wrong", ["a\nb", "a\0", 7])
    def test_what_cannot_be_one(self, wrong: Any) -> None:
        """It is refused by name."""
        with pytest.raises(InvalidSetting, match="last_event_id"):
            EventSource("http://x/", last_event_id=wrong)

    def test_one_that_http_cannot_carry(self) -> None:
        """An id with a form feed has no place in a header: it ends with an error, instead of asking without it."""
        with Held(["id: a\fb\ndata: x\n\n"], end="clean") as server, EventSource(server.url, backoff=0) as source:
            assert next(source).data == "x"
            with pytest.raises(EventSourceError, match="HTTP doesn't allow"):
                next(source)
            assert server.count == 1

    def test_patience_that_is_over(self) -> None:
        """A wait that is cancelled loses nothing: the next one goes on from the last event that came."""

        async def run(server: ScriptedServer) -> list[str]:
            async with AsyncEventSource(server.url, stall_timeout=0) as source:
                seen = [triple(await anext(source))[1]]
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(anext(source), 0.05)
                assert source.state is SourceState.WAITING
                return [*seen, triple(await anext(source))[1]]

        steps = [
            {"request": {}, "answer": {"stream": ["id: 1\ndata: a\n\n"], "end": "hold"}},
            {"request": {"headers": {"Last-Event-ID": "1"}}, "answer": {"stream": ["data: b\n\n"], "end": "hold"}},
        ]
        with ScriptedServer(steps) as server:
            assert asyncio.run(run(server)) == ["a", "b"]
            assert server.faults == []


class TestErrors:
    """What is told of an end, and what isn't."""

    def test_what_a_refusal_says(self) -> None:
        """It carries the status and the reason that a JSON body gives, and ends the source."""
        body = json.dumps({"error": "not yours", "padding": "x" * 3000})
        headers = {"Content-Type": "application/json", "Transfer-Encoding": "chunked"}
        with ScriptedServer([{"request": {}, "answer": {"status": 404, "headers": headers, "stream": [body]}}]) as server:
            source = EventSource(server.url + "?token=hidden")
            with pytest.raises(StreamRefused, match=r"the server answered 404: .*not yours") as raised:
                next(source)
            assert raised.value.status == 404
            assert raised.value.details == {"error": "not yours", "padding": "x" * 3000}
            assert raised.value.url == server.url
            assert len(str(raised.value)) < 500
            assert isinstance(raised.value, SSEError)
            assert list(source) == []

    def test_a_body_that_does_not_come(self) -> None:
        """A refusal is told within the 5 s that there are for its reason, though the stream's patience is longer."""
        headers = {"Content-Type": "text/plain", "Content-Length": "100"}
        answer = {"status": 404, "headers": headers, "stream": ["nope"], "end": "hold"}

        def run(server: ScriptedServer) -> object:
            return next(EventSource(server.url, stall_timeout=60))

        async def run_async(server: ScriptedServer) -> object:
            return await anext(AsyncEventSource(server.url, stall_timeout=60))

        for read in (run, lambda server: asyncio.run(run_async(server))):
            with ScriptedServer([{"request": {}, "answer": answer}]) as server:
                started = time.monotonic()
                with pytest.raises(StreamRefused, match="404"):
                    read(server)
                assert time.monotonic() - started < 8

    def test_a_cancellation_does_not_lose_an_error(self) -> None:
        """Cancelled while the connection of a refusal is being closed, the source tells the refusal when it is asked again."""

        class Transport(httpx.AsyncBaseTransport):
            async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
                return httpx.Response(404, text="no")

            async def aclose(self) -> None:
                await asyncio.sleep(60)

        async def run() -> None:
            source = AsyncEventSource("http://x/")
            source._client = httpx.AsyncClient(transport=Transport())
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(anext(source), 0.1)
            with pytest.raises(StreamRefused, match="404"):
                await anext(source)
            with pytest.raises(StopAsyncIteration):
                await anext(source)

        asyncio.run(run())

    def test_a_page_that_is_no_stream(self) -> None:
        """Its type is told, its content isn't read: it may have no end."""
        answer = {"headers": {"Content-Type": "text/html"}, "stream": ["<p>log in"], "end": "hold"}
        with ScriptedServer([{"request": {}, "answer": answer}]) as server, pytest.raises(NotAnEventStream) as raised:
            next(EventSource(server.url))
        assert raised.value.content_type == "text/html" and raised.value.body == ""

    def test_the_error_of_the_last_attempt(self) -> None:
        """It is the cause of the one that says that there were enough."""
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
        with pytest.raises(RetriesExhausted, match="ConnectError") as raised:
            next(EventSource(f"http://127.0.0.1:{port}/", retries=2, backoff=0))
        assert isinstance(raised.value.__cause__, httpx.ConnectError)
        assert raised.value.retries == 2 and raised.value.status is None

    def test_a_post_without_a_connection_is_tried_again(self) -> None:
        """Where nothing can have been sent, the method doesn't matter."""
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
        with pytest.raises(RetriesExhausted):
            next(EventSource(f"http://127.0.0.1:{port}/", method="POST", json={}, retries=1, backoff=0))

    def test_secrets_are_not_shown(self, caplog: pytest.LogCaptureFixture) -> None:
        """Neither token nor password is in a repr, an error, its causes or a log, whatever fails; both are sent."""
        caplog.set_level(logging.DEBUG)
        shown: list[str] = []

        def show(error: StreamInterrupted) -> None:
            shown.append(repr(error))

        for options in (
            {"token": "s3cret"},
            {"token": "s3cret\n"},
            {"token": lambda: "s3cret\r"},
            {"headers": {"X": "s3cret\n"}},
            {},
        ):
            with ScriptedServer([{"request": {}, "answer": {"status": 503}}, {"request": {}, "answer": {"status": 403}}]) as server:
                address = server.url.replace("//", "//me:s3cret@")
                with pytest.raises(SSEError) as raised:
                    list(EventSource(address, backoff=0, on_retry=show, **options))
                shown.append(repr(EventSource(address)))
                error: BaseException | None = raised.value
                while error is not None:
                    shown += [str(error), repr(error), repr(vars(error))]
                    error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
                sent = [line for head in server.raw for line in head.split(b"\r\n") if line.startswith(b"Authorization")]
                if not sent:
                    assert set(options) & {"token", "headers"}
                elif "token" in options:
                    assert set(sent) == {b"Authorization: Bearer s3cret"}
                else:
                    assert set(sent) == {b"Authorization: Basic bWU6czNjcmV0"}
        assert len(shown) > 15
        assert not [text for text in [*shown, *(record.getMessage() for record in caplog.records)] if "s3cret" in text]

    def test_a_failing_token_function(self) -> None:
        """What it raises comes through, and the source can be asked again."""
        tokens = iter([OSError("no token today"), "t2"])

        def token() -> str:
            given = next(tokens)
            if isinstance(given, Exception):
                raise given
            return str(given)

        step = {"request": {"headers": {"Authorization": "Bearer t2"}}, "answer": {"status": 204}}
        with ScriptedServer([step]) as server:
            source = EventSource(server.url, token=token)
            with pytest.raises(OSError, match="no token today"):
                next(source)
            assert list(source) == []
            assert server.faults == [] and server.count == 1

    def test_an_event_that_is_too_large(self) -> None:
        """It is dropped and counted, and the stream goes on."""
        with Held([f"data: {'x' * 5000}\n\ndata: a\n\n"]) as server, EventSource(server.url, max_event_bytes=1000) as source:
            assert next(source).data == "a"
            assert source.dropped == 1


class TestSurroundings:
    """What it needs, and what it doesn't."""

    def test_a_client_of_the_users_own(self) -> None:
        """It is asked with, its headers count but for the token's, and it isn't closed."""
        step = {
            "request": {"headers": {"X-Mine": "1", "Authorization": "Bearer t"}},
            "answer": {"stream": ["data: a\n\n"], "end": "hold"},
        }
        with ScriptedServer([step]) as server, httpx.Client(headers={"X-Mine": "1", "Authorization": "old"}) as client:
            with EventSource(server.url, client=client, token="t", headers={"authorization": "older"}) as source:
                assert next(source).data == "a"
                thread, told = in_thread(lambda: list(source))
                source.close()
                thread.join(10)
                assert told == [[]]
            assert not client.is_closed
            assert server.faults == []

    def test_without_httpx(self) -> None:
        """The module can be imported, and an event source says which extra it needs."""
        run_script(
            """
            import sys
            sys.modules["httpx"] = None
            from sseflask.client import AsyncEventSource, EventSource, MissingExtra
            for kind in (EventSource, AsyncEventSource):
                try:
                    kind("http://x/")
                except MissingExtra as error:
                    assert "sseflask[client]" in str(error) and isinstance(error, ImportError)
                else:
                    raise AssertionError
            """
        )

    def test_neither_gevent_nor_httpx_is_imported(self) -> None:
        """Importing the client imports neither, and making a source doesn't import gevent."""
        run_script(
            """
            import sys
            import sseflask.client
            assert not {"gevent", "httpx"} & set(sys.modules)
            sseflask.client.EventSource("http://x/")
            assert "gevent" not in sys.modules
            """
        )

    def test_green_under_gevent(self) -> None:
        """Where gevent has patched, other greenlets run while it waits to connect, for an answer, for bytes and to come back."""
        steps = [
            {"request": {}, "answer": {"status": 503}},
            {"request": {}, "answer": {"stream": [300, "id: 1\ndata: a\n\n", 300]}},
            {"request": {}, "answer": {"stream": ["data: b\n\n"], "end": "hold"}},
            {"request": {"headers": {"Last-Event-ID": "1"}}, "answer": {"stream": ["data: c\n\n"], "end": "hold"}},
        ]
        with ScriptedServer(steps) as server:
            told = run_script(
                f"""
                from gevent import monkey
                monkey.patch_all()
                import gevent, json
                from sseflask.client import EventSource

                ticks = 0

                def tick():
                    global ticks
                    while True:
                        gevent.sleep(0.01)
                        ticks += 1

                ticker = gevent.spawn(tick)
                source = EventSource({server.url!r}, backoff=0.3, max_backoff=0.3, stall_timeout=0)
                data = [next(source).data, next(source).data]
                seen = ticks
                with gevent.Timeout(0.2, False):
                    next(source)
                data += [source.state, next(source).data]
                reader = gevent.spawn(list, source)
                gevent.sleep(0.1)
                source.close()
                reader.join(10)
                print(json.dumps({{"data": data, "ticks": seen, "rest": reader.value}}))
                """
            )
            assert server.faults == []
        told = json.loads(told)
        # A time-out of gevent's ends one wait, not the source.
        assert told["data"] == ["a", "b", "waiting", "c"] and told["rest"] == []
        # 0.6 s of waiting at the least.
        assert told["ticks"] >= 10


def run_script(script: str) -> str:
    """Runs a script in a fresh interpreter and returns what it prints."""
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{textwrap.dedent(script)}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=40, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout
