"""The benchmarks' load generator must see each fault that would make a figure worthless."""

from __future__ import annotations

import dataclasses
import json
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks import command, environment, generator, machine, report
from benchmarks.generator import LoadGenerator, faults
from benchmarks.result import Results
from benchmarks.scenario import FAN_OUT, STEADY, Outcome, calmest

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="the load generator is a C program")

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
END = b"0\r\n\r\n"

Check = Callable[..., generator.Report]


def event(seq: int, *, size: int = 40, lines: str = "") -> bytes:
    """An event as a peer sends it."""
    return f"{lines}data: {f'{seq} {time.monotonic_ns()} '.ljust(size, 'x')}\n\n".encode()


def chunk(data: bytes) -> bytes:
    """One HTTP/1.1 chunk."""
    return b"%x\r\n%b\r\n" % (len(data), data)


@pytest.fixture(scope="module")
def environments(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the load generator is compiled, once: the work tree is left as it is."""
    return tmp_path_factory.mktemp("environments")


@pytest.fixture
def check(environments: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Check]:
    """Sends bytes, in pieces, to one stream of a real load generator, and returns its report."""
    monkeypatch.setattr(environment, "ENVIRONMENTS", environments)
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(10)
    with LoadGenerator(*listener.getsockname()) as load:

        def run(
            *pieces: bytes, each: int = 3, size: int = 40, closes: bool = False, timeout: float = 10, **settings: object
        ) -> generator.Report:
            def serve() -> None:
                with listener.accept()[0] as client:
                    client.settimeout(10)
                    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    requests.append(client.recv(65536))
                    for piece in pieces:
                        client.sendall(piece)
                        if len(pieces) > 1:
                            time.sleep(0.001)
                    if not closes:
                        done.wait(10)

            requests: list[bytes] = []
            done = threading.Event()
            thread = threading.Thread(target=serve)
            thread.start()
            try:
                found = load.phase(streams=1, each=each, size=size, settle=20, timeout=timeout, **settings)
            finally:
                done.set()
                thread.join()
                load.drop()
            return {**found, "request": requests[0]}

        yield run
    listener.close()


def test_all_is_well(check: Check) -> None:
    """Three events in order, an open event and comments give three events and no fault."""
    found = check(
        HEAD + chunk(b": hello\n\nevent: stream-open\nid: a-0\ndata: {}\n\n") + b"".join(chunk(event(n)) for n in (1, 2, 3))
    )
    assert faults(found) == []
    assert (found["events"], found["others"], found["open"]) == (3, 1, 1)
    assert 0 < found["latency_us"]["p50"] < 1e6
    assert b"Accept: text/event-stream\r\n" in found["request"]


def test_any_slicing(check: Check) -> None:
    """Bytes that come one by one, chunks that tear lines, CR LF and quotes change nothing."""
    quoted = b'data: "' + event(3, size=40)[len("data: ") : -2] + b'"\r\n\r\n'
    body = event(1) + event(2) + quoted
    data = HEAD + chunk(body[:7]) + chunk(body[7:90]) + chunk(body[90:])
    found = check(*(data[index : index + 1] for index in range(len(data))))
    assert faults(found) == []
    assert found["events"] == 3


@pytest.mark.parametrize(
    ("numbers", "fault"),
    [
        ((1, 3, 4), "1 events lost in gaps"),
        ((2, 3, 4), "1 events lost in gaps"),
        ((1, 2), "1 events missing"),
        ((1, 2, 2, 3), "1 events doubled"),
        ((1, 3, 2), "1 events out of order"),
        ((1, 2, 3, 4), "1 events too many"),
    ],
)
def test_wrong_numbers(check: Check, numbers: tuple[int, ...], fault: str) -> None:
    """A lost, doubled, reordered or additional event is told by name."""
    found = check(HEAD + b"".join(chunk(event(n)) for n in numbers), timeout=10 if len(numbers) >= 3 else 1)
    assert fault in faults(found)


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        (chunk(event(1)) + b"zz\r\n", "1 streams with wrong chunk framing"),
        (chunk(event(1))[:-2] + b"xx", "1 streams with wrong chunk framing"),
        (chunk(event(1)) + event(2), "1 streams with wrong chunk framing"),
        (chunk(event(1, size=39)), "1 events of the wrong size"),
        (chunk(event(1) + b"date: 1\n\n"), "1 malformed lines"),
        (chunk(b"event: stream-reset\ndata: {}\n\n"), "1 resets"),
    ],
    ids=["size", "end", "no chunk", "short", "line", "reset"],
)
def test_wrong_bytes(check: Check, data: bytes, fault: str) -> None:
    """Bad framing, a torn event, an unknown field and a reset are faults."""
    assert fault in faults(check(HEAD + data, each=1, timeout=1))


@pytest.mark.parametrize(
    ("head", "fault"),
    [
        (HEAD.replace(b"200", b"503"), "1 responses with another status"),
        (HEAD.replace(b"text/event-stream", b"text/plain"), "1 responses with wrong headers"),
        (HEAD.replace(b"\r\n\r\n", b"\r\nContent-Length: 5\r\n\r\n"), "1 responses with wrong headers"),
    ],
)
def test_wrong_headers(check: Check, head: bytes, fault: str) -> None:
    """A response that is no event stream is a fault."""
    assert fault in faults(check(head + chunk(event(1)), each=1))


def test_ends(check: Check) -> None:
    """A stream that ends with its last chunk is clean where ends are expected; one that is cut never is."""
    body = b"".join(chunk(event(n)) for n in (1, 2, 3))
    clean = check(HEAD + body + END, ends=1, closes=True)
    assert faults(clean, may_end=True) == []
    assert faults(clean) == ["1 streams ended"]
    assert "1 streams cut" in faults(check(HEAD + body, ends=1, closes=True), may_end=True)


def test_resume(check: Check) -> None:
    """A stream that is opened again sends the last id and goes on counting from the last event."""
    check(HEAD + b"".join(chunk(event(n, lines=f"id: e-{n}\n")) for n in (1, 2, 3)))
    found = check(HEAD + chunk(event(4)) + chunk(event(5)), each=2, resume=1)
    assert faults(found) == []
    assert b"Last-Event-ID: e-3\r\n" in found["request"]
    assert "2 events lost in gaps" in faults(check(HEAD + chunk(event(8)), each=1, resume=1))


def test_a_run_with_a_fault_has_no_figure() -> None:
    """One faulty run of three takes the figure away, and the table says why."""
    results = Results.begin(FAN_OUT, "flask-plain", quick=False, date="2000-01-01")
    for run in (1, 2, 3):
        results.add("flask-plain", run, Outcome("1,000", {"events_per_s": 10.0 * run}, stolen=0.1 * run))
        lost = ["7 events missing"] if run == 2 else []
        results.add("sseflask", run, Outcome("1,000", {"events_per_s": 100.0 * run}, lost, stolen=0.2))
    summary = results.summary("flask-plain", "1,000", "events_per_s")
    assert summary is not None
    assert (summary.median, summary.minimum, summary.maximum) == (20, 10, 30)
    assert results.summary("sseflask", "1,000", "events_per_s") is None
    assert results.ratio("sseflask", "1,000", "events_per_s") is None
    lines = report.table(results)
    assert any("no figure: 7 events missing" in line for line in lines)
    assert any("| 20 (10–30) |" in line for line in lines)
    assert "other virtual machines had 10%, 20%, 30% (least, median, most)" in lines[-1]


def test_disturbed_runs() -> None:
    """A short measurement that other virtual machines disturbed is made again, and the calmest counts; a fault always does."""

    def found(*runs: Outcome, tries: int = 5) -> Outcome:
        left = iter(runs)
        (outcome,) = calmest(lambda: [next(left)], tries)
        assert next(left, None) is None
        return outcome

    def run(stolen: float, *, seconds: float = 0.2, faults: tuple[str, ...] = ()) -> Outcome:
        return Outcome("1,000", {"events_per_s": 1.0}, list(faults), stolen=stolen, seconds=seconds)

    calm, worse, worst = run(0.02), run(0.03), run(0.5)
    assert found(calm) == calm
    assert found(worst, worse, calm) == dataclasses.replace(calm, tries=3)
    assert found(worst, worse, worst, tries=3) == dataclasses.replace(worse, tries=3)
    assert found(run(0.5, seconds=6)).tries == 1
    # One that a disturbance has made long isn't taken for calm.
    assert found(worst, run(0.6, seconds=6), worse, tries=3) == dataclasses.replace(worse, tries=3)
    lost = run(0.5, faults=("7 events missing",))
    assert found(worse, lost) == dataclasses.replace(lost, tries=2)


def test_runs_that_are_added() -> None:
    """Figures are of all runs, an earlier call's too; the table says how many there are, and has the peers in their order."""
    earlier = Results.begin(FAN_OUT, "flask-plain", quick=False, date="2000-01-01")
    for run in (1, 2, 3):
        earlier.add("nchan", run, Outcome("1,000", {"events_per_s": 10.0 * run}, stolen=0.1))
    kept = json.dumps(earlier.data)
    results = Results.resume(FAN_OUT, "nchan", earlier.data, date="2000-01-02")
    assert results.last_run == 3
    for run in (4, 5):
        results.add("nchan", run, Outcome("1,000", {"events_per_s": 10.0 * run}, stolen=0.1))
        results.add("sseflask", run, Outcome("1,000", {"events_per_s": 100.0 * run}, stolen=0.1))
    assert json.dumps(earlier.data) == kept
    assert results.peers() == ["sseflask", "nchan"]
    assert results.ratio("sseflask", "1,000", "events_per_s") == 15
    assert report.table(results)[-1].startswith("2 to 5 runs of each, interleaved, 2000-01-02;")


def measured(*described: dict[str, str]) -> dict[str, Any]:
    """What is stored of a scenario or two, each measured on a machine of its own."""
    stored: dict[str, Any] = {}
    for scenario, its in zip((FAN_OUT, STEADY), described, strict=False):
        results = Results.begin(scenario, "flask-plain", quick=False, date="2000-01-01")
        results.add("sseflask", 1, Outcome("1,000", {scenario.metrics[0].key: 1.0}))
        stored[scenario.name] = {**results.data, "machine": its}
    return {"scenarios": stored}


def test_machines() -> None:
    """The page says what it was measured on; where that are several machines, each table says on which."""
    one = report.markdown(measured({"processor": "fast"}, {"processor": "fast"}))
    assert "| processor | fast |" in one and "on machine" not in one
    several = report.markdown(measured({"processor": "fast"}, {"processor": "slow", "node": "20"}))
    assert "| processor | fast | slow |\n| node | – | 20 |" in several
    assert several.index("on machine A") < several.index("## Steady") < several.index("on machine B")


def test_runs_of_another_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Runs aren't added to those of another machine."""
    monkeypatch.setattr(command.signal, "signal", lambda number, handler: None)
    monkeypatch.setattr(command, "measure", lambda *args, **kwargs: pytest.fail("it measures"))
    stored = json.dumps(measured(machine.describe(), {"processor": "slow"}))
    (tmp_path / "benchmarks.json").write_text(stored)
    assert command.main(["fan-out", "steady", "--add", "--save", "--output", str(tmp_path)]) == 2
    assert "steady was measured on another machine" in capsys.readouterr().err
    assert (tmp_path / "benchmarks.json").read_text() == stored


def test_without_sleep(check: Check) -> None:
    """A phase that spins while it waits sees the same, and its processor time is that of its work."""
    found = check(HEAD + chunk(event(1)), chunk(event(2)), chunk(event(3)), spin=1)
    assert faults(found) == []
    assert found["events"] == 3
    idle = check(HEAD + chunk(event(1)), each=2, spin=1, timeout=1)
    assert "1 events missing" in faults(idle)
    assert idle["cpu"] < idle["seconds"] / 2
