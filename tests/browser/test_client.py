"""The browser client in Chromium: the reconnect table, then each of its features; a real server where it matters."""

from __future__ import annotations

import base64
import time
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, Error, Page

from tests.browser.conftest import Console
from tests.browser.script import Played, playing, table
from tests.conformance.vectors import decode_vectors
from tests.conftest import Serve
from tests.live.client import get
from tests.live.process import wait_until

NETWORK = r"net::ERR_|Failed to load resource"
TABLE = table()
CASES: list[dict[str, Any]] = TABLE["cases"]
ADDRESSES = 4

# Runs cases, six at a time, and returns what each client saw.
PLAY = """async (cases) => {
  const { connect } = await import("/client.js");
  const play = async ([index, { options, then, steps }]) => {
    const seen = { events: [], errors: [], states: [] };
    const names = ["message", "note", "stream-end", "stream-reset", "report-done"];
    const enough = new Promise((resolve) => {
      const tokens = [...(options.tokens ?? [])];
      const connection = connect(`/case/${index}`, {
        method: options.method, headers: options.headers, body: options.body, parse: options.parse, retries: options.retries,
        token: options.tokens ? () => tokens.shift() : options.token,
        endEvent: options.end_event, stallTimeout: options.stall_timeout_ms,
        backoff: { base: options.base_ms ?? 20, max: options.max_ms ?? 100 },
        on: Object.fromEntries(names.map((name) => [name, ({ type, data, lastEventId }) => {
          seen.events.push([type, data, lastEventId]);
          if (then.state === "open" && seen.events.length === then.events.length) setTimeout(() => {
            seen.state = connection.readyState;
            connection.close();
          });
        }])),
        onError: ({ status, retrying, message }) => seen.errors.push({ status: status ?? null, retrying, message }),
        onState: (state) => {
          seen.states.push(state);
          if (state === "closed") seen.state ??= connection.readyState;
        },
      });
      connection.closed.then(resolve);
      setTimeout(resolve, 20_000);
    });
    await enough;
    return [index, seen];
  };
  const left = [...cases];
  const results = [];
  await Promise.all(Array.from({ length: 6 }, async () => {
    while (left.length > 0) results.push(await play(left.shift()));
  }));
  return results;
}"""


@pytest.fixture
def client(page: Page) -> Iterator[Page]:
    """A page that can import the client."""
    with playing([]) as server:
        page.goto(server.origins[0])
        yield page


def check_requests(played: Played) -> None:
    """The client made the requests of the case, and no other."""
    steps = played.case["steps"]
    assert len(played.requests) == len(steps)
    for number, (request, step) in enumerate(zip(played.requests, steps, strict=True)):
        wanted = step["request"]
        assert request.method == wanted.get("method", "GET")
        assert request.body == wanted.get("body", "")
        for name, value in wanted.get("headers", {}).items():
            assert request.headers.get(name.lower()) == value, (number, name)
        if "after_ms" in wanted:
            # Timers count in whole milliseconds.
            assert (request.at - played.requests[number - 1].ended_at) * 1000 >= wanted["after_ms"] - 2


def test_the_reconnect_table(chromium: Browser, console: Console) -> None:
    """In each case of the table the client asks, waits, goes on and stops as the table says."""
    console.allow(NETWORK)
    context = chromium.new_context()
    with playing(CASES, ADDRESSES) as server:
        pages = [context.new_page() for _ in server.origins]
        for page, origin in zip(pages, server.origins, strict=True):
            console.watch(page)
            page.goto(origin)
        numbered = list(enumerate(CASES))
        # Started in all pages, then waited for.
        for number, page in enumerate(pages):
            page.evaluate(f"(cases) => {{ window.results = ({PLAY})(cases); }}", numbered[number::ADDRESSES])
        results = dict(result for page in pages for result in page.evaluate("window.results"))
        # Room for a request that should not come.
        time.sleep(0.5)
        failed = []
        for number, played in enumerate(server.played):
            then, seen = played.case["then"], results[number]
            try:
                check_requests(played)
                assert seen["events"] == then["events"]
                assert [{key: error[key] for key in ("status", "retrying")} for error in seen["errors"]] == then["errors"]
                assert seen["state"] == (2 if then["state"] == "closed" else 1)
                assert seen["states"][-1] == "closed"
            except AssertionError as error:
                failed.append(f"{played.case['name']}: {error}\n{seen}\n{played.requests}")
        assert not failed, "\n\n".join(failed)
        assert console.complaints() == []
        context.close()


# The delay before each of the attempts after these answers; nothing waits.
DELAY = """async ({ failures, retry_ms, retry_after_s, base_ms, max_ms, random }) => {
  const { connect } = await import("/client.js");
  const real = { fetch: window.fetch, setTimeout: window.setTimeout, random: Math.random };
  const answers = Array.from({ length: failures + 1 }, () => [null, { status: 503 }]);
  if (retry_ms !== null) answers[0] = [`retry: ${retry_ms}\\ndata: a\\n\\n`, { headers: { "Content-Type": "text/event-stream" } }];
  if (retry_after_s !== null) answers[failures] = [null, { status: 503, headers: { "Retry-After": String(retry_after_s) } }];
  window.fetch = async () => new Response(...(answers.shift() ?? [null, { status: 204 }]));
  window.setTimeout = (callback) => queueMicrotask(callback);
  Math.random = () => random;
  const delays = [];
  const connection = connect("/", {
    backoff: { base: base_ms, max: max_ms }, stallTimeout: 0, onError() {},
    onState: (state, { delay }) => { if (state === "connecting") delays.push(delay); },
  });
  await connection.closed;
  Object.assign(window, { fetch: real.fetch, setTimeout: real.setTimeout });
  Math.random = real.random;
  return delays[failures];
}"""


def test_the_delays(client: Page) -> None:
    """Each row of the table's delays: backoff with jitter, on top of what `retry:` and Retry-After say."""
    for row in TABLE["delays"]:
        assert client.evaluate(DELAY, row) == row["delay_ms"], row


PARSE = """async ([stream, sizes, names]) => {
  const { connect } = await import("/client.js");
  const bytes = Uint8Array.from(atob(stream), (character) => character.charCodeAt(0));
  const real = window.fetch;
  const results = [];
  for (const size of sizes) {
    const events = [];
    let asked = 0;
    window.fetch = async (url, init) => {
      if (asked++) return new Response(null, { status: 204 });
      let start = 0;
      const body = new ReadableStream({
        pull(controller) {
          if (start < bytes.length) controller.enqueue(bytes.slice(start, (start += size)));
          else controller.close();
        },
      });
      return new Response(body, { headers: { "Content-Type": "text/event-stream" } });
    };
    const on = Object.fromEntries(names.map((name) => [name, (event) => events.push([event.type, event.data, event.lastEventId])]));
    const connection = connect("/", { on, endEvent: "", backoff: { base: 1, max: 1 } });
    // What `retry:` says isn't waited for.
    const waiting = setInterval(() => window.dispatchEvent(new Event("online")), 5);
    await connection.closed;
    clearInterval(waiting);
    results.push([events, connection.lastEventId]);
  }
  window.fetch = real;
  return results;
}"""
SMALL_BYTES = 2_000


def test_the_client_follows_the_standard(client: Page) -> None:
    """Each conformance vector, whole and byte by byte, gives the events that the standard says."""
    for vector in decode_vectors():
        sizes = [1, SMALL_BYTES] if len(vector.stream) < SMALL_BYTES else [len(vector.stream)]
        events = [[event.browser_type, event.data, event.browser_last_event_id] for event in vector.events]
        names = sorted({event.browser_type for event in vector.events})
        for result in client.evaluate(PARSE, [base64.b64encode(vector.stream).decode(), sizes, names]):
            assert result == [events, vector.last_event_id], vector.name


# Calls `run` with a connect() whose requests are answered in turn, by a stream's text or a status; returns what was asked and said.
FAKED = """async (run, answers, url = "/stream") => {
  const client = await import("/client.js");
  const real = window.fetch;
  const asked = [], seen = [];
  window.fetch = async (url, init) => {
    asked.push({
      url, method: init.method, body: init.body ?? null, credentials: init.credentials, cache: init.cache,
      headers: Object.fromEntries(init.headers),
    });
    const answer = answers.shift() ?? 204;
    if (typeof answer !== "string") return new Response(null, { status: answer });
    return new Response(answer, { headers: { "Content-Type": "text/event-stream" } });
  };
  const note = (...what) => seen.push(what);
  await run((options) => client.connect(url, { backoff: { base: 1, max: 1 }, ...options }).closed, note);
  window.fetch = real;
  return { asked, seen };
}"""


def faked(page: Page, run: str, *answers: str | int) -> tuple[list[dict[str, Any]], list[list[Any]]]:
    """What a page has asked for, and what `run` has noted."""
    result = page.evaluate(f"(answers) => ({FAKED})({run}, answers)", list(answers))
    return result["asked"], result["seen"]


def test_what_is_sent(client: Page) -> None:
    """Headers from a function, the token, a JSON body with its type, cookies where they are asked for, and never from the cache."""
    run = """async (open) => {
      let n = 0;
      await open({
        method: "POST", body: { question: "why" }, withCredentials: true, lastEventId: "41",
        headers: async () => ({ "X-Attempt": String(++n) }), token: async () => `t${n}`,
      });
      await open({ method: "PUT", body: new URLSearchParams({ a: "b" }), headers: { "Content-Type": "text/x" } });
    }"""
    (first, second, third), _ = faked(client, run, "id: 42\ndata: a\n\n", 204)
    assert first["headers"] == {
        "accept": "text/event-stream",
        "authorization": "Bearer t0",
        "content-type": "application/json",
        "last-event-id": "41",
        "x-attempt": "1",
    }
    assert (first["method"], first["body"], first["credentials"]) == ("POST", '{"question":"why"}', "include")
    assert first["cache"] == third["cache"] == "no-store"
    assert second["headers"]["x-attempt"] == "2"
    assert second["headers"]["last-event-id"] == "42"
    assert (third["method"], third["credentials"]) == ("PUT", "same-origin")
    assert third["headers"] == {"accept": "text/event-stream", "content-type": "text/x"}


def test_a_token_that_cannot_be_had_is_asked_for_again(client: Page) -> None:
    """A token function that fails is an error like a lost connection: nothing has been sent, so a POST goes on too."""
    run = """async (open, note) => {
      let n = 0;
      await open({
        method: "POST", onError: (error) => note(error.message, error.retrying),
        token: () => { if (++n < 3) throw new Error(`no token ${n}`); return "t"; },
      });
    }"""
    asked, seen = faked(client, run)
    assert seen == [["The connection failed: no token 1", True], ["The connection failed: no token 2", True]]
    assert [each["headers"]["authorization"] for each in asked] == ["Bearer t"]


def test_data_are_read_and_checked_by_name(client: Page) -> None:
    """JSON, then each event's schema; what either refuses goes to onError with the event's name; `*` gets what has no handler."""
    stream = (
        'event: progress\ndata: {"percent": "12"}\n\n'
        'event: progress\ndata: {"percent": "x"}\n\n'
        "event: progress\ndata: {\n\n"
        "event: unheard\ndata: {\n\n"
        'event: other\ndata: {"percent": "x"}\n\n'
        'event: stream-reset\ndata: {"reason": "epoch", "position": "1"}\n\n'
        "event: stream-end\ndata:\n\n"
    )
    run = """async (open, note) => {
      const on = (event) => note(event.type, event.data ?? null);
      await open({
        parse: "json", on: { progress: on, other: on, "stream-end": on },
        schema: { progress: ({ percent }) => {
          if (isNaN(percent)) throw new TypeError("not a number");
          return Number(percent);
        } },
        onReset: ({ data }) => note("reset", data.reason, data.position),
        onError: (error) => note("error", error.event, error.retrying, /not a number/.test(error.message)),
      });
      await open({ parse: (data, type) => [type, data.length], on: { message: on } });
      await open({ on: { message: on, "*": ({ type }) => note("any", type) } });
    }"""
    asked, seen = faked(client, run, stream, *["data: abc\n\nevent: stream-end\ndata:\n\n"] * 2)
    assert seen == [
        ["progress", 12],
        ["error", "progress", True, True],
        ["error", "progress", True, False],
        ["other", {"percent": "x"}],
        ["reset", "epoch", "1"],
        ["stream-end", None],
        ["message", ["message", 3]],
        ["message", "abc"],
        ["any", "stream-end"],
    ]
    assert len(asked) == 3


def test_a_handler_that_fails_is_reported_and_the_stream_goes_on(client: Page, console: Console) -> None:
    """Its error is the page's, as with an EventSource; an error that nobody handles is on the console."""
    console.allow("uncaught: my mistake|The server answered 404")
    run = """async (open, note) => {
      const uncaught = [];
      window.addEventListener("error", (event) => uncaught.push(event.error.message));
      await open({ on: { message: ({ data }) => { note(data); if (data === "a") throw new Error("my mistake"); } } });
      await new Promise((resolve) => setTimeout(resolve, 20));
      note(uncaught);
    }"""
    _, seen = faked(client, run, "data: a\n\ndata: b\n\n", 404)
    assert seen == [["a"], ["b"], [["my mistake"]]]
    assert len([text for text in console.all() if "The server answered 404" in text]) == 1


def test_closing_in_a_handler_is_at_once(client: Page) -> None:
    """No event is given to anyone after close(), though it has come already, and nothing is asked for again."""
    run = """async (open, note) => {
      const { connect } = await import("/client.js");
      const connection = connect("/stream", {
        on: { message: ({ data }) => { note(data, connection.readyState); connection.close(); note(connection.readyState); } },
        onState: (state) => note(state),
      });
      await connection.closed;
      connection.close();
      await new Promise((resolve) => setTimeout(resolve, 100));
    }"""
    asked, seen = faked(client, run, "data: a\n\ndata: b\n\n")
    assert seen == [["open"], ["a", 1], ["closed"], [2]]
    assert len(asked) == 1


def test_share_is_for_get(client: Page) -> None:
    """A POST can't be shared: connect says so at once."""
    with pytest.raises(Error, match="share needs GET, not POST"):
        client.evaluate("async () => (await import('/client.js')).connect('/', { method: 'POST', share: true })")


# Makes `window.seen` and connections to the cases that are told.
OPEN = """async ([number, options]) => {
  const { connect } = await import("/client.js");
  const seen = (window.seen = { numbers: [], errors: [], states: [] });
  window.connection = connect(`/case/${number}`, {
    backoff: { base: 20, max: 100 }, ...options,
    on: { message: ({ data }) => seen.numbers.push(data) },
    onError: ({ message }) => seen.errors.push(message),
    onState: (state) => seen.states.push(state),
  });
}"""


def wait_for(page: Page, condition: str) -> None:
    """Waits for something in the page."""
    page.wait_for_function(f"() => {condition}", timeout=20_000, polling=20)


def holding(*streams: list[Any]) -> dict[str, Any]:
    """A case of streams that stay open."""
    return {"steps": [{"answer": {"stream": stream, "end": "hold"}} for stream in streams]}


def test_the_position_is_kept_over_a_load_of_the_page(page: Page) -> None:
    """Where that is asked for, the page that is loaded again goes on where it was; another stream, or one without, begins anew."""
    cases = [holding(["id: 7\ndata: a\n\n"], ["id: 8\ndata: b\n\n"]), holding(["id: 7\ndata: a\n\n"], ["data: b\n\n"])]
    with playing(cases) as server:
        for number, options in ((0, {"position": "session"}), (1, {})):
            for load in ("a", "b"):
                page.goto(server.origins[0])
                page.evaluate(OPEN, [number, options])
                wait_for(page, f"window.seen.numbers.join() === '{load}'")
        page.goto("about:blank")
        sent = [[request.headers.get("last-event-id") for request in played.requests] for played in server.played]
        assert sent == [[None, "7"], [None, None]]


def test_a_page_that_goes_away_holds_nothing_and_comes_back(page: Page) -> None:
    """At pagehide the connection ends; at pageshow, and when the network is back, it is made at once; never two."""
    page.goto("about:blank")
    with playing([holding(["id: 1\ndata: a\n\n"], ["id: 2\nretry: 60000\ndata: b\n\n"])]) as server:
        played = server.played[0]
        # After the second stream the wait would be long.
        played.case["steps"][1]["answer"]["end"] = "clean"
        played.case["steps"].append({"answer": {"stream": ["data: c\n\n"], "end": "hold"}})
        page.goto(server.origins[0])
        page.evaluate(OPEN, [0, {}])
        wait_for(page, "window.seen.numbers.join() === 'a'")
        page.evaluate("['pageshow', 'online'].forEach((name) => dispatchEvent(new Event(name)))")
        page.evaluate("dispatchEvent(new PageTransitionEvent('pagehide', { persisted: true }))")
        wait_until(lambda: played.requests[0].ended_at > 0, 10, "the connection to end")
        assert len(played.requests) == 1
        page.evaluate("dispatchEvent(new PageTransitionEvent('pageshow', { persisted: true }))")
        wait_for(page, "window.seen.numbers.join() === 'a,b' && window.seen.states.at(-1) === 'connecting'")
        page.evaluate("dispatchEvent(new Event('online'))")
        wait_for(page, "window.seen.numbers.join() === 'a,b,c'")
        page.evaluate("connection.close()")
        assert [request.headers.get("last-event-id") for request in played.requests] == [None, "1", "2"]
        assert page.evaluate("window.seen.errors") == []


def test_a_page_that_slept_reads_before_it_gives_up(page: Page) -> None:
    """After a sleep a stream in which something comes is kept, and one in which nothing does is dropped."""
    lively = ["data: a\n\n", *[200, ":keepalive\n"] * 40]
    with playing([holding(lively), holding(["data: a\n\n"], ["data: b\n\n"])]) as server:
        page.clock.install()
        page.goto(server.origins[0])
        page.evaluate(OPEN, [0, {}])
        page.evaluate("() => { window.first = [window.seen, window.connection]; }")
        page.evaluate(OPEN, [1, {}])
        wait_for(page, "window.first[0].numbers.length === 1 && window.seen.numbers.length === 1")
        page.clock.fast_forward("10:00")
        wait_for(page, "window.seen.numbers.join() === 'a,b'")
        assert page.evaluate("window.seen.errors") == ["Nothing was heard for 45000 ms"]
        assert page.evaluate("window.first[0].errors") == []
        assert [len(played.requests) for played in server.played] == [1, 2]
        page.evaluate("() => { window.first[1].close(); window.connection.close(); }")


def test_a_manager_has_one_connection_per_key(page: Page) -> None:
    """A second connect replaces the first, disconnect ends it, one that ends by itself is forgotten, leaving the page ends all."""
    cases = [holding(["data: a\n\n"]), holding(["data: b\n\n"]), {"steps": [{"answer": {"status": 204}}]}, holding(["data: d\n\n"])]
    with playing(cases) as server:
        page.goto(server.origins[0])
        page.evaluate(
            """async () => {
              const { StreamManager } = await import("/client.js");
              window.seen = [];
              window.streams = new StreamManager({ on: { message: ({ data }) => seen.push(data) } });
              window.first = streams.connect("one", "/case/0");
              streams.connect("three", "/case/2");
            }"""
        )
        wait_for(page, "window.seen.length === 1 && !window.streams.get('three')")
        page.evaluate("() => { streams.connect('one', '/case/1'); streams.connect('four', '/case/3'); }")
        assert page.evaluate("window.first.readyState") == 2
        wait_for(page, "window.seen.toSorted().join() === 'a,b,d'")
        ended = [played.requests[0] for played in server.played]
        wait_until(lambda: ended[0].ended_at > 0, 10, "the first connection to end")
        assert page.evaluate("streams.get('one').readyState") == 1
        page.evaluate("streams.disconnect('one')")
        wait_until(lambda: ended[1].ended_at > 0, 10, "the second connection to end")
        assert ended[3].ended_at == 0
        page.goto("about:blank")
        wait_until(lambda: ended[3].ended_at > 0, 10, "the last connection to end")
        assert [len(played.requests) for played in server.played] == [1, 1, 1, 1]


def test_a_server_that_is_restarted_is_found_again(page: Page, serve: Serve, console: Console) -> None:
    """Refused while it is down, the client comes back when it is up, and gets the reset and what follows."""
    console.allow(NETWORK)
    server = serve("tests.browser.apps.client_app:app", env={"SSE_DRAIN_SECONDS": "1"})
    page.goto(server.url("/"))
    page.evaluate(
        """async () => {
          const { connect } = await import("/events/-/client.js");
          window.seen = { numbers: [], errors: [], resets: [] };
          window.connection = connect("/events/news", {
            parse: "json", backoff: { base: 100, max: 300 },
            on: { n: ({ data }) => seen.numbers.push(data) },
            onReset: ({ data }) => seen.resets.push(data.reason),
            onError: ({ message, status, retrying }) => seen.errors.push([message, status ?? null, retrying]),
          });
        }"""
    )
    wait_for(page, "window.connection.readyState === 1")
    assert get(server, "/publish/news?end=3", method="POST", body=b"").status == 200
    wait_for(page, "window.seen.numbers.length === 3")
    server.stop()
    wait_for(page, "window.seen.errors.length > 1")
    assert page.evaluate("window.connection.readyState") == 0
    server.start()
    wait_for(page, "window.seen.resets.join() === 'epoch'")
    assert get(server, "/publish/news?first=3&end=5", method="POST", body=b"").status == 200
    wait_for(page, "window.seen.numbers.length === 5")
    assert page.evaluate("window.seen.numbers") == [0, 1, 2, 3, 4]
    assert all(status is None and retrying for _, status, retrying in page.evaluate("window.seen.errors"))
    assert get(server, "/close/news", method="POST", body=b"").status == 200
    wait_for(page, "window.connection.readyState === 2")
