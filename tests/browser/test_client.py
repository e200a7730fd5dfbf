"""The browser client in Chromium: the reconnect table, then each of its features; a real server where it matters."""

from __future__ import annotations

import time
from typing import Any

from playwright.sync_api import Browser, Page

from tests.browser.conftest import Console
from tests.browser.script import Played, playing, table

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
    context = chromium.new_context()
    with playing(CASES, ADDRESSES) as server:
        pages = [context.new_page() for _ in server.origins]
        for page, origin in zip(pages, server.origins, strict=True):
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
    context.close()
