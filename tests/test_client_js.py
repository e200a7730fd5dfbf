"""The browser client as it is served and built: the route, the size, and that the file is what its sources say."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
from flask import Flask

from sseflask import SSE

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ROOT / "clients" / "js"
SERVED = ROOT / "sseflask" / "static" / "client.js"


def npm(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs npm in the client's directory."""
    return subprocess.run(["npm", *arguments], cwd=SOURCES, capture_output=True, text=True, check=False)


#: Before each script: `connect` and `StreamManager`, a `fetch` that gives the answers in turn, and notes that are the result.
PREPARE = """
const { writeSync } = await import("node:fs");
const { connect, StreamManager } = await import("./client.mjs");
const seen = [], asked = [], answers = [];
const note = (...what) => seen.push(what);
const stream = (text, isHeld = false) => new Response(
  new ReadableStream({ start(to) { to.enqueue(new TextEncoder().encode(text)); if (!isHeld) to.close(); } }),
  { headers: { "Content-Type": "text/event-stream" } },
);
globalThis.fetch = async (url, init) => {
  asked.push([init.headers.get("Last-Event-ID"), init.body ?? null]);
  const answer = answers.shift() ?? 204;
  return typeof answer === "number" ? new Response(null, { status: answer }) : answer;
};
const turns = async (n = 20) => { while (n--) await new Promise((resolve) => setImmediate(resolve)); };
"""


def node(directory: Path, script: str) -> tuple[list[Any], list[Any]]:
    """What a script in Node has noted with `note`, and what it has asked for: the position and the body of each request."""
    if shutil.which("node") is None:
        assert not os.environ.get("CI"), "node is missing: sh tests/system.sh node"
        pytest.skip("node is missing: sh tests/system.sh node")
    shutil.copy(SERVED, directory / "client.mjs")
    end = "\nwriteSync(1, JSON.stringify([seen, asked]));\nprocess.exit(0);\n"
    (directory / "script.mjs").write_text(PREPARE + script + end)
    ran = subprocess.run(["node", "script.mjs"], cwd=directory, capture_output=True, text=True, timeout=30, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    seen, asked = json.loads(ran.stdout)
    return seen, asked


@pytest.fixture(scope="module")
def built() -> Path:
    """The client and its types, built from the sources with the pinned tools."""
    if shutil.which("npm") is None:
        # There it must not go unseen that nobody has checked.
        assert not os.environ.get("CI"), "npm is missing: sh tests/system.sh node"
        pytest.skip("npm is missing: sh tests/system.sh node")
    # `make client` and `make test` have installed them; npm looks whether they are as the lock file says.
    if npm("ls", "--all").returncode != 0:
        installed = npm("ci", "--ignore-scripts", "--no-audit", "--no-fund", "--no-update-notifier")
        assert installed.returncode == 0, installed.stderr
    made = npm("run", "--silent", "build")
    assert made.returncode == 0, made.stdout + made.stderr
    return SOURCES / "dist"


def test_the_client_is_served_to_anyone() -> None:
    """`/-/client.js` is an ES module that a browser asks for anew each time, and gets only if it has changed."""
    app = Flask("app")
    sse = SSE()
    app.register_blueprint(sse, url_prefix="/events")
    client = app.test_client()
    response = client.get("/events/-/client.js")
    assert response.status_code == 200
    assert response.data == SERVED.read_bytes()
    assert response.headers["Content-Type"] == "text/javascript; charset=utf-8"
    assert response.headers["Cache-Control"] == "no-cache"
    again = client.get("/events/-/client.js", headers={"If-None-Match": response.headers["ETag"]})
    assert (again.status_code, again.data) == (304, b"")
    other = client.get("/events/-/client.js", headers={"If-None-Match": '"another"'})
    assert other.status_code == 200


def test_the_client_is_small() -> None:
    """The served file has less than 6 KB, gzipped."""
    assert len(gzip.compress(SERVED.read_bytes(), 9)) < 6_000


def test_the_served_file_is_what_the_sources_say(built: Path) -> None:
    """Building the sources gives the file that is committed, byte for byte."""
    assert (built / "client.js").read_bytes() == SERVED.read_bytes(), "clients/js has changed: run make client"


def test_the_types_hold(built: Path) -> None:
    """The usage file compiles against the package's types, and what it marks as wrong doesn't."""
    checked = npm("run", "--silent", "check")
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_the_built_file_is_in_the_wheel(tmp_path: Path) -> None:
    """A wheel of the package holds the client."""
    copy = tmp_path / "copy"
    shutil.copytree(ROOT / "sseflask", copy / "sseflask", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy / name)
    code = "from setuptools.build_meta import build_wheel; print(build_wheel('..'))"
    made = subprocess.run([sys.executable, "-c", code], cwd=copy, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        assert archive.read("sseflask/static/client.js") == SERVED.read_bytes()


def test_a_dead_connection_is_noticed_where_timers_are_late(tmp_path: Path) -> None:
    """In a hidden tab, whose timers come once a minute, a stream that is silent is dropped at the second check."""
    script = """
    let time = 0, timers = [];
    performance.now = () => time;
    globalThis.setTimeout = (run, ms = 0) => { const timer = { run, at: time + ms }; timers.push(timer); return timer; };
    globalThis.clearTimeout = (timer) => { timers = timers.filter((each) => each !== timer); };
    answers.push(stream("data: a\\n\\n", true), stream("data: b\\n\\n", true));
    const on = { message: ({ data }) => note(time / 60_000, data) };
    connect("http://x/", { on, onError: ({ message }) => note(time / 60_000, message) });
    for (let minute = 0; minute < 4; minute++) {
      await turns();
      time += 60_000;
      const due = timers.filter(({ at }) => at <= time);
      timers = timers.filter(({ at }) => at > time);
      for (const { run } of due) run();
    }
    """
    seen, asked = node(tmp_path, script)
    assert seen == [[0, "a"], [2, "Nothing was heard for 45000 ms"], [3, "b"]]
    assert len(asked) == 2


SESSION = """
const kept = new Map();
globalThis.sessionStorage = {
  getItem: (key) => kept.get(key) ?? null, setItem: (key, value) => kept.set(key, value), removeItem: (key) => kept.delete(key),
};
const onError = ({ message, retrying }) => note(message, retrying);
const ask = (options, ...more) => {
  answers.push(...more);
  return connect("http://x/answers", { position: "session", onError, ...options }).closed;
};
"""


def test_the_position_kept_for_one_question_is_not_sent_with_another(tmp_path: Path) -> None:
    """With `position: "session"` a POST of another body begins anew, and one of the same goes on; a GET's key is the URL alone."""
    script = """
    const one = () => stream("id: 7-end\\nevent: stream-end\\ndata:\\n\\n");
    for (const body of [{ question: "one" }, { question: "two" }, "text", new URLSearchParams("a=b"), null]) {
      for (const method of ["POST", "PUT"]) await ask({ method, body }, one());
    }
    await ask({ method: "POST", body: { question: "one" } });
    await ask({ method: "POST", body: "x".repeat(1e6) }, one());
    await ask({}, one());
    await ask({});
    note(kept.size, kept.has("sseflask http://x/answers"), [...kept.keys()].every((key) => key.length < 99));
    """
    seen, asked = node(tmp_path, SESSION + script)
    assert [position for position, _ in asked] == [*[None] * 10, "7-end", None, None, "7-end"]
    assert seen == [[12, True, True]]


def test_a_position_that_cannot_be_kept_is_told_once(tmp_path: Path) -> None:
    """A form has no text that its position could be kept under: onError says so once, and events come."""
    script = """
    const on = { message: ({ data }) => note(data) };
    await ask({ method: "POST", body: new FormData(), on }, stream("id: 1\\ndata: a\\n\\nid: 2\\ndata: b\\n\\n"));
    note(kept.size);
    """
    seen, _ = node(tmp_path, SESSION + script)
    assert seen == [["The position can't be kept: [object FormData]", True], ["a"], ["b"], [0]]


INVALID = [
    'token: "s3\\ncret"',
    'token: () => "s3\\ncret"',
    'headers: { "X": "s3\\ncret" }',
    'headers: () => ({ "s3 cret": "" })',
    'method: "POST", body: cyclic',
    'method: "POST", body: { s3cret: 1n }',
]


@pytest.mark.parametrize("option", INVALID)
def test_a_request_that_cannot_be_sent_is_one_error(tmp_path: Path, option: str) -> None:
    """It ends at once with one error that doesn't show what is wrong with it, after connect has returned."""
    script = """
    const cyclic = { s3cret: 1 };
    cyclic.itself = cyclic;
    let connection;
    const onError = ({ message, retrying }) => note(message, retrying, connection.readyState);
    connection = connect("http://x/", { backoff: { base: 1, max: 1 }, onError, onState: (state) => note(state), OPTION });
    note("returned");
    await connection.closed;
    """
    seen, asked = node(tmp_path, script.replace("OPTION", option))
    message = "The request is invalid"
    assert seen == [["returned"], [message, False, 2], ["closed"]]
    assert asked == []


def test_no_handler_is_called_before_connect_has_returned(tmp_path: Path) -> None:
    """Neither for a token function that fails at once, nor for a storage that may not be used; closed before, nothing is done."""
    script = """
    Object.defineProperty(globalThis, "sessionStorage", { get() { throw new Error("denied"); } });
    const fail = () => { note("token"); throw new Error("no token"); };
    let connection;
    const options = { retries: 0, position: "session", onError: ({ message }) => note(message, connection.readyState) };
    connection = connect("http://x/", { ...options, token: fail });
    note("returned");
    await connection.closed;
    const early = connect("http://x/", { token: fail, onError: () => note("error") });
    early.close();
    await turns();
    """
    seen, asked = node(tmp_path, script)
    assert seen == [
        ["returned"],
        ["The position can't be kept: Error: denied", 0],
        ["token"],
        ["The connection failed: no token; it has been tried often enough", 2],
    ]
    assert asked == []


def test_after_close_in_a_handler_no_other_is_called(tmp_path: Path) -> None:
    """Closed in onError, onOpen or onReset, it says that it is closed, and nothing after that."""
    script = """
    const reset = () => stream('event: stream-reset\\ndata: {"reason": "epoch", "position": null}\\n\\n');
    for (const [closes, answer] of [["onError", 503], ["onOpen", reset()], ["onReset", reset()]]) {
      answers.push(answer);
      const handlers = Object.fromEntries(["onError", "onOpen", "onReset"].map((name) => [name, () => {
        note(name);
        if (name === closes) connection.close();
      }]));
      const on = { "stream-reset": () => note("on") };
      const connection = connect("http://x/", { ...handlers, on, onState: (state) => note(state, connection.readyState) });
      await connection.closed;
      await turns();
      note(connection.readyState);
    }
    """
    seen, asked = node(tmp_path, script)
    closed = [["closed", 2], [2]]
    assert seen == [["onError"], *closed, ["onOpen"], *closed, ["onOpen"], ["open", 1], ["onReset"], *closed]
    assert len(asked) == 3


def test_a_handler_may_connect_the_key_that_is_disconnected(tmp_path: Path) -> None:
    """A manager keeps the connection that a handler makes under the key whose connection is being closed."""
    script = """
    const streams = new StreamManager();
    let again;
    answers.push(stream(":", true), stream(":", true));
    const onState = (state) => { if (state === "closed") again = streams.connect("k", "http://x/"); };
    streams.connect("k", "http://x/", { onState });
    await turns();
    streams.disconnect("k");
    await turns();
    note(streams.get("k") === again, again.readyState);
    streams.disconnectAll();
    note(again.readyState);
    """
    seen, asked = node(tmp_path, script)
    assert seen == [[True, 1], [2]]
    assert len(asked) == 2


def test_an_error_whose_body_does_not_come_is_told(tmp_path: Path) -> None:
    """The status says what to do: after 5 s without the rest of its body a 404 is the end, though stallTimeout is over before."""
    script = """
    answers.push(new Response(new ReadableStream({ start(to) { to.enqueue(new Uint8Array([123])); } }), { status: 404 }));
    const started = performance.now();
    const onError = ({ message, status, retrying }) => note(message, status, retrying);
    await connect("http://x/", { stallTimeout: 1_000, onError }).closed;
    note(performance.now() - started < 8_000);
    """
    seen, asked = node(tmp_path, script)
    assert seen == [["The server answered 404", 404, False], [True]]
    assert len(asked) == 1
