"""The scenarios: what is asked of each peer, and which figures come of it."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Iterator

from . import redis
from .environment import Unavailable
from .generator import LoadGenerator, Report, faults
from .machine import Watch
from .peer import BY_NAME, Peer
from .server import HOST, Server, running

EVENT_BYTES = 100
#: Streams that wait for their headers at the same time; below the backlogs, so that no lost SYN is measured.
IN_FLIGHT = 1000
#: The same where memory is measured.
IDLE_IN_FLIGHT = 50
#: Keepalives are due each 15 s: shorter holds see none.
IDLE_SECONDS = 30.0
#: The part of the processors' time that other virtual machines may have in a short measurement, before it is made again; and up to
#: how many seconds one is short, in which a single stall shows.
CALM_SHARE = 0.02
SHORT_SECONDS = 5.0


@dataclasses.dataclass(frozen=True)
class Metric:
    """One figure of a scenario.

    Attributes:
        key: Its name in the results.
        title: Its column.
        digits: After the point.
        higher: Whether more is better; None where it only explains.
    """

    key: str
    title: str
    digits: int = 0
    higher: bool | None = False


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What one run of one variant gave.

    Attributes:
        variant: Which, as its row says.
        figures: By metric; empty if anything was lost.
        faults: What was wrong, in words.
        stolen: The part of the processors' time that other virtual machines had meanwhile.
        seconds: How long it was measured.
        tries: How often, until they took little; this is the calmest.
    """

    variant: str
    figures: dict[str, float]
    faults: list[str] = dataclasses.field(default_factory=list)
    stolen: float = 0.0
    seconds: float = 0.0
    tries: int = 1


class Bench:
    """A running peer and the load on it."""

    def __init__(self, server: Server, load: LoadGenerator) -> None:
        self.server = server
        self.peer = server.peer
        self._load = load

    def open(
        self, streams: int, *, channels: int = 1, path: str = "/subscribe?channel={channel}", in_flight: int = IN_FLIGHT
    ) -> Report:
        """Opens streams until so many are open, and waits until they surely listen."""
        settings: dict[str, object] = {
            "streams": streams,
            "channels": channels,
            "path": path,
            "timeout": 120,
        }
        if self.peer.is_silent and path.startswith("/subscribe"):
            # Its headers come with the first event: numbers of 0 are not counted.
            settings["warm"] = self.peer.publish_path(count=1, first=0)
        return self._load.phase(**settings, in_flight=in_flight, heard=self.peer.opens_late, settle=300)

    def warm_up(self) -> None:
        """Sends one event that isn't counted to all."""
        if self.peer.is_posted_to:
            settings: dict[str, object] = {"post": "/publish?channel={channel}", "posts": 1, "first": 0}
        else:
            settings = {"get": self.peer.publish_path(count=1, first=0)}
        self._load.phase(**settings, settle=500)

    def publish(
        self, count: int, *, streams: int, rate: float = 0, first: int = 1, channels: int = 1, timeout: float = 60
    ) -> Report:
        """Publishes, and waits until each stream has all of it."""
        settings: dict[str, object] = {"streams": streams, "size": EVENT_BYTES, "timeout": timeout, "channels": channels}
        settings |= {"total": count} if channels > 1 else {"each": count if streams else 0}
        if streams:
            # To wake a sleeping core takes a virtual machine longer than a send, and would be measured as the server's.
            settings["spin"] = 1
        if self.peer.is_posted_to:
            settings |= {"post": "/publish?channel={channel}", "posts": count, "rate": rate, "first": first}
        else:
            settings |= {"get": self.peer.publish_path(count=count, size=EVENT_BYTES, rate=rate, first=first, channels=channels)}
        return self._load.phase(**settings)

    def phase(self, **settings: object) -> Report:
        """Any other phase."""
        return self._load.phase(**settings)

    def drop(self) -> None:
        """Closes all streams."""
        self._load.drop()


@dataclasses.dataclass(frozen=True)
class Step:
    """A part of a scenario that gets a fresh server.

    Attributes:
        measure: Gives its outcomes.
        suits: Whether a peer can do it.
    """

    measure: Callable[[Bench], Iterator[Outcome]]
    suits: Callable[[Peer], bool] = lambda peer: True


@dataclasses.dataclass(frozen=True)
class Scenario:
    """One of the issue's table.

    Attributes:
        name: On the command line.
        title: Over its table.
        text: What happens in it.
        metrics: Its figures; ratios are those of the first.
        steps: Makes its steps, fewer and smaller ones for a quick run.
        chart: How it is drawn: `"bars"`, or `"lines"` over the number of streams.
        is_for_several: Whether it is about peers with several workers, and no others.
    """

    name: str
    title: str
    text: str
    metrics: tuple[Metric, ...]
    steps: Callable[[bool], list[Step]]
    chart: str = "bars"
    is_for_several: bool = False

    def run(self, peer: Peer, *, quick: bool, tries: int = 1) -> Iterator[Outcome]:
        """Runs it once, and again what other virtual machines have disturbed, so often at the most.

        Raises:
            Unavailable: The peer can't run here.
        """
        for step in self.steps(quick):
            if step.suits(peer):
                yield from calmest(functools.partial(_measured, step, peer), tries)


def calmest(measure: Callable[[], list[Outcome]], tries: int) -> list[Outcome]:
    """Measures until nobody has disturbed it, so often at the most; of all, the calmest, and at once one that lost something.

    What takes long isn't made again: it has the average of what others do.
    """
    kept: list[Outcome] = []
    tried, is_short = 0, False
    while tried < tries:
        tried += 1
        found = measure()
        if any(outcome.faults for outcome in found):
            # Never measured away.
            kept = found
            break
        # Also where a disturbance has made another try long.
        is_short = is_short or any(outcome.seconds < SHORT_SECONDS for outcome in found)
        if not kept or _stolen(found) < _stolen(kept):
            kept = found
        if not is_short or _stolen(kept) <= CALM_SHARE:
            break
    return [dataclasses.replace(outcome, tries=tried) for outcome in kept]


def _stolen(outcomes: list[Outcome]) -> float:
    return max((outcome.stolen for outcome in outcomes), default=0.0)


def _measured(step: Step, peer: Peer) -> list[Outcome]:
    with running(peer) as server, LoadGenerator(HOST, server.port) as load:
        return list(step.measure(Bench(server, load)))


def _outcome(variant: str, figures: dict[str, float], watch: Watch, *reports: Report, may_end: bool = False) -> Outcome:
    found = [fault for report in reports for fault in faults(report, may_end=may_end)]
    return Outcome(variant, {} if found else figures, found, stolen=watch.share, seconds=watch.seconds)


def _latencies(report: Report) -> dict[str, float]:
    latency = report["latency_us"]
    return {"p50_ms": latency["p50"] / 1000, "p99_ms": latency["p99"] / 1000, "max_ms": latency["max"] / 1000}


LATENCIES = (Metric("p50_ms", "p50, ms", 2), Metric("p99_ms", "p99, ms", 1), Metric("max_ms", "max, ms", 1))


# ---- Fan-out, and what it costs when there are more ----


def _fan_out(streams: int, events: int) -> Step:
    def measure(bench: Bench) -> Iterator[Outcome]:
        opened = bench.open(streams)
        bench.warm_up()
        before = bench.server.process.cpu()
        with Watch() as watch:
            report = bench.publish(events, streams=streams, timeout=300)
        cpu = bench.server.process.cpu() - before
        figures: dict[str, float] = {}
        if report["span"] and report["events"]:
            figures = {
                "events_per_s": report["events"] / report["span"],
                "us_per_event": report["span"] / report["events"] * 1e6,
                "cpu_us_per_event": cpu / report["events"] * 1e6,
                **_latencies(report),
            }
        yield _outcome(f"{streams:,}", figures, watch, opened, report)

    return Step(measure)


FAN_OUT = Scenario(
    "fan-out",
    "Fan-out",
    "Subscribers of one channel; 200 events of 100 bytes as fast as the server takes them, the publisher letting the loop run "
    "after each. Events delivered a second, from the first one's publishing to the last one's arrival.",
    (Metric("events_per_s", "events/s", 0, True), *LATENCIES, Metric("cpu_us_per_event", "server µs/event", 2)),
    lambda quick: [_fan_out(100, 50)] if quick else [_fan_out(1000, 200), _fan_out(5000, 200)],
)

GROWTH = Scenario(
    "growth",
    "Cost of growth",
    "Fan-out of 100 events to more and more subscribers: microseconds for each delivered event.",
    (Metric("us_per_event", "µs/event", 2), Metric("cpu_us_per_event", "server µs/event", 2), Metric("p99_ms", "p99, ms", 1)),
    lambda quick: [_fan_out(300, 20)] if quick else [_fan_out(n, 100) for n in (1000, 2500, 5000, 10_000, 15_000)],
    chart="lines",
)


# ---- Steady, and on channels of their own ----


def _steady(streams: int, seconds: float) -> Step:
    def measure(bench: Bench) -> Iterator[Outcome]:
        opened = bench.open(streams)
        bench.warm_up()
        before = bench.server.process.cpu()
        with Watch() as watch:
            report = bench.publish(int(10 * seconds), streams=streams, rate=10, timeout=120)
        cpu = bench.server.process.cpu() - before
        figures = {**_latencies(report), "cpu_percent": 100 * cpu / report["seconds"]}
        yield _outcome(f"{streams:,}", figures, watch, opened, report)

    return Step(measure)


STEADY = Scenario(
    "steady",
    "Steady",
    "10 events of 100 bytes a second for 10 s to all subscribers of one channel: how long after its publishing each event arrived, "
    "over all events and subscribers.",
    (
        Metric("p99_ms", "p99, ms", 1),
        Metric("p50_ms", "p50, ms", 1),
        Metric("max_ms", "max, ms", 1),
        Metric("cpu_percent", "server CPU, %", 0),
    ),
    lambda quick: [_steady(100, 1)] if quick else [_steady(n, 10) for n in (1000, 5000, 10_000)],
)


def _own_channels(streams: int, rate: float, seconds: float) -> Step:
    def measure(bench: Bench) -> Iterator[Outcome]:
        opened = bench.open(streams, channels=streams)
        before = bench.server.process.cpu()
        with Watch() as watch:
            report = bench.publish(int(rate * seconds), streams=streams, rate=rate, channels=streams, timeout=90)
        cpu = bench.server.process.cpu() - before
        figures = {**_latencies(report), "cpu_percent": 100 * cpu / report["seconds"]}
        yield _outcome(f"{streams:,}", figures, watch, opened, report)

    # Its headers come with its channel's first event: opening it would take thousands of warm-up events.
    return Step(measure, lambda peer: not peer.is_silent)


OWN_CHANNELS = Scenario(
    "own-channels",
    "Channels of their own",
    "Each subscriber on a channel of its own; 2,000 events of 100 bytes a second for 5 s, each to one of them at random.",
    STEADY.metrics,
    lambda quick: [_own_channels(100, 200, 1)] if quick else [_own_channels(5000, 2000, 5)],
)


# ---- Idle ----


def _idle(sizes: tuple[int, ...], hold: float, *, path: str = "/subscribe?channel={channel}", label: str = "") -> Step:
    def measure(bench: Bench) -> Iterator[Outcome]:
        # What is loaded and grown once isn't a stream's, nor is what a storm of requests leaves on the heap.
        reports = [bench.open(IDLE_IN_FLIGHT, path=path, in_flight=IDLE_IN_FLIGHT)]
        time.sleep(1)
        process = bench.server.process
        empty = process.memory()
        for streams in sizes:
            reports.append(bench.open(IDLE_IN_FLIGHT + streams, path=path, in_flight=IDLE_IN_FLIGHT))
            time.sleep(min(hold, 1))
            held, before = process.memory(), process.cpu()
            with Watch() as watch:
                time.sleep(hold)
            cpu = 100 * (process.cpu() - before) / watch.seconds
            figures = {
                "pss_kib": (held["Pss"] - empty["Pss"]) / streams / 1024,
                "rss_kib": (held["Rss"] - empty["Rss"]) / streams / 1024,
                "cpu_percent": cpu,
            }
            yield _outcome(f"{label}{streams:,}", figures, watch, *reports)

    return Step(measure, (lambda peer: peer.idles) if label else (lambda peer: True))


IDLE = Scenario(
    "idle",
    "Idle",
    "Open streams on which nothing happens but keepalives each 15 s: memory for each over the same server with 50 of them, and "
    "processor time over 30 s. The kernel's share of a socket isn't in it. Last, streams of a waiting generator.",
    (Metric("pss_kib", "PSS, KiB/stream", 2), Metric("rss_kib", "RSS, KiB/stream", 2), Metric("cpu_percent", "server CPU, %", 2)),
    lambda quick: (
        [_idle((200,), 1), _idle((200,), 1, path="/idle", label="generators, ")]
        if quick
        else [_idle((1000, 5000, 15_000), IDLE_SECONDS), _idle((5000,), IDLE_SECONDS, path="/idle", label="generators, ")]
    ),
)


# ---- Connect ----


def _hub_ms(bench: Bench) -> float | None:
    return bench.server.ask("/hub")["longest"] * 1000 if bench.peer.has_hub else None


def _connect(streams: int) -> Step:
    def measure(bench: Bench) -> Iterator[Outcome]:
        bench.open(20)
        bench.drop()
        time.sleep(0.3)
        _hub_ms(bench)
        with Watch() as watch:
            report = bench.open(streams)
        yield _outcome(f"{streams:,} new", _connect_figures(streams, report["open_seconds"], _hub_ms(bench)), watch, report)
        if not bench.peer.replays:
            return
        first = bench.publish(10, streams=streams)
        bench.drop()
        time.sleep(1.5)
        missed = bench.publish(50, streams=0, first=11)
        _hub_ms(bench)
        with Watch() as watch:
            again = bench.phase(streams=streams, resume=1, each=50, size=EVENT_BYTES, in_flight=IN_FLIGHT, timeout=120)
        figures = _connect_figures(streams, again["until_last"], _hub_ms(bench))
        yield _outcome(f"{streams:,} back, 50 behind", figures, watch, first, missed, again)

    return Step(measure, lambda peer: not peer.is_silent)


def _connect_figures(streams: int, took: float, hub_ms: float | None) -> dict[str, float]:
    figures = {"streams_per_s": streams / took if took else 0, "took_s": took}
    if hub_ms is not None:
        figures["hub_ms"] = hub_ms
    return figures


CONNECT = Scenario(
    "connect",
    "Connect",
    f"Streams opened from nothing, {IN_FLIGHT:,} at a time waiting for their headers; and the same number coming back with a "
    "`Last-Event-ID` 50 events behind, until each has those. The hub's longest turn is how long a gevent server polled no socket.",
    (Metric("streams_per_s", "streams/s", 0, True), Metric("took_s", "seconds", 2), Metric("hub_ms", "longest turn, ms", 1)),
    lambda quick: [_connect(200)] if quick else [_connect(5000)],
)


# ---- Generators ----


def _generators(streams: int, events: int, pause: float, variant: str) -> Step:
    def measure(bench: Bench) -> Iterator[Outcome]:
        def phase(count: int) -> Report:
            path = f"/generate?count={events}&size=40&pause={pause:g}"
            return bench.phase(streams=count, path=path, each=events, ends=1, size=40, in_flight=count, timeout=120, spin=1)

        phase(20)
        bench.drop()
        time.sleep(0.2)
        before = bench.server.process.cpu()
        with Watch() as watch:
            report = phase(streams)
        cpu = bench.server.process.cpu() - before
        figures: dict[str, float] = {}
        if report["until_last"] and report["events"]:
            figures = {
                "events_per_s": report["events"] / report["until_last"],
                "cpu_us_per_event": cpu / report["events"] * 1e6,
                **_latencies(report),
            }
        yield _outcome(variant, figures, watch, report, may_end=True)

    return Step(measure, lambda peer: peer.generates)


GENERATORS = Scenario(
    "generators",
    "Generators",
    "200 streams opened at once, each a generator of its own that yields 100 events of 40 bytes, at once or with 5 ms between; "
    "and 600 that yield 400 with 5 ms between, which is more than a core can do. Events a second from the first connection to the "
    "last event, and how long each took from its `yield`.",
    FAN_OUT.metrics,
    lambda quick: (
        [_generators(20, 20, 0, "at once"), _generators(20, 20, 0.005, "5 ms apart")]
        if quick
        else [
            _generators(200, 100, 0, "at once"),
            _generators(200, 100, 0.005, "5 ms apart"),
            _generators(600, 400, 0.005, "600, 5 ms apart"),
        ]
    ),
)


# ---- Publish ----


def _publish(events: int) -> Step:
    def measure(bench: Bench) -> Iterator[Outcome]:
        # The peers whose publisher is another process get fewer, each being a round trip.
        count = events // 20 if bench.peer.is_posted_to or bench.peer.needs_redis else events
        if bench.peer.is_posted_to:
            bench.publish(100, streams=0)
            with Watch() as watch:
                report = bench.publish(count, streams=0, timeout=60)
            yield _outcome("no subscriber", {"events_per_s": count / (report["seconds"] or 1)}, watch, report)
            return
        path = bench.peer.publish_path
        bench.server.ask(path(count=max(1, count // 20), more="&yield=0"))
        with Watch() as watch:
            answer = bench.server.ask(path(count=count, more="&yield=0"))
        yield _outcome("no subscriber", {"events_per_s": answer["published"] / answer["seconds"]}, watch)

    # Without a client there is nothing that these would do.
    idle = {"flask-plain", "sse-starlette", "fastapi", "python-send", "c-send"}
    return Step(measure, lambda peer: peer.name not in idle)


PUBLISH = Scenario(
    "publish",
    "Publish",
    "Events of 100 bytes, made before, published to a channel that nobody listens to, one after the other.",
    (Metric("events_per_s", "events/s", 0, True),),
    lambda quick: [_publish(2000)] if quick else [_publish(200_000)],
)


# ---- Brokers ----


def _brokers(streams: int, events: int, single: int) -> Step:
    def measure(bench: Bench) -> Iterator[Outcome]:
        opened = bench.open(streams)
        bench.warm_up()
        with Watch() as watch:
            alone = bench.publish(single, streams=streams, rate=10, timeout=120)
            many = bench.publish(events, streams=streams, first=single + 1, timeout=300)
        figures: dict[str, float] = _latencies(alone)
        if many["span"] and many["events"]:
            figures["events_per_s"] = many["events"] / many["span"]
        yield _outcome(f"{streams:,} over 2 workers", figures, watch, opened, alone, many)

    return Step(measure)


def _broker_publishes(count: int) -> Step:
    def measure(bench: Bench) -> Iterator[Outcome]:
        path = bench.peer.publish_path
        bench.server.ask(path(count=max(1, count // 20), more="&yield=0"))
        with Watch() as watch:
            answer = bench.server.ask(path(count=count, more="&yield=0"))
            figures = {"publishes_per_s": answer["published"] / answer["seconds"]}
            if bench.server.redis_port is not None and bench.peer.name.startswith("sseflask"):
                figures["redis_per_s"] = redis.calls_per_second(bench.server.redis_port, count)
        yield _outcome("no subscriber", figures, watch)

    return Step(measure)


BROKERS = Scenario(
    "brokers",
    "Brokers",
    "Two workers, 1,000 subscribers of one channel spread over them by the kernel. Ten events a second, one by one: how long after "
    "its publishing each arrived, the last of all included (max). Then 200 as fast as the server takes them: deliveries a second. "
    "Last, publishes one after the other without subscribers, beside what `redis-benchmark` reaches with the same script from one "
    "connection.",
    (
        Metric("events_per_s", "deliveries/s", 0, True),
        *LATENCIES,
        Metric("publishes_per_s", "publishes/s", 0, True),
        Metric("redis_per_s", "redis-benchmark, calls/s", 0, None),
    ),
    lambda quick: [_brokers(100, 20, 5), _broker_publishes(200)] if quick else [_brokers(1000, 200, 50), _broker_publishes(10_000)],
    is_for_several=True,
)


# ---- The load generator itself ----


def _load(streams: int, events: int, join: int) -> Step:
    def measure(bench: Bench) -> Iterator[Outcome]:
        opened = bench.open(streams)
        path = bench.peer.publish_path(count=events, more=f"&join={join}")
        with Watch() as watch:
            report = bench.phase(streams=streams, each=events, size=EVENT_BYTES, get=path, timeout=60)
        figures: dict[str, float] = {}
        if report["span"]:
            figures = {
                "events_per_s": report["events"] / report["span"],
                "capacity": report["events"] / max(report["cpu"], 1e-3),
                "load_percent": 100 * report["cpu"] / report["seconds"],
            }
        yield _outcome(f"{join} in one `send`", figures, watch, opened, report)

    return Step(measure, lambda peer: peer.name == "c-send")


LOAD = Scenario(
    "load",
    "The load generator itself",
    "1,000 streams from the C limit, used as a raw sender that joins events into one `send`: what the load generator takes and "
    "checks, and what it would take if its core did nothing else.",
    (
        Metric("events_per_s", "events/s", 0, True),
        Metric("capacity", "events per CPU second of the load", 0, True),
        Metric("load_percent", "load CPU, %", 0, None),
    ),
    lambda quick: [_load(100, 200, 20)] if quick else [_load(1000, 200, 1), _load(1000, 2000, 10), _load(1000, 4000, 100)],
)

ALL = (FAN_OUT, GROWTH, STEADY, OWN_CHANNELS, IDLE, CONNECT, GENERATORS, PUBLISH, BROKERS, LOAD)
ALL_BY_NAME = {scenario.name: scenario for scenario in ALL}

__all__ = ["ALL", "ALL_BY_NAME", "BY_NAME", "Metric", "Outcome", "Scenario", "Unavailable"]
