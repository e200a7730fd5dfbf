"""How many workers and hosts a crowd of clients needs: the page's arithmetic, and a simulation that checks it.

    python sizing.py                                        # the page's table
    python sizing.py --clients 20000 --hosts 2 --workers 4 --shared 2 --own 60

`estimate` has the closed formulas. `simulate` plays some seconds of the same plan: clients arrive, stay, leave and get their
events; then one host restarts, and its clients come back to the others. The same seed plays the same game. What an app's own code
does, and the network, aren't in it.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import heapq
import itertools
import math
import random
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Final

# What things cost: measured on one core of an Intel Xeon at 2.80 GHz, shared with others, with events of 100 bytes.

#: Seconds of processor time that one delivery takes: `python -m benchmarks steady`, 9.4 µs to 12 µs.
DELIVER: Final = 10e-6
#: The same for each further event that is joined to a delivery: `python -m benchmarks brokers`, whose events come joined.
JOIN: Final = 1e-6
#: Opening a subscription, Flask and gunicorn included: `python -m benchmarks connect`, 1,034 to 1,135 a second.
OPEN: Final = 0.95e-3
#: One keepalive: `python -m benchmarks idle`, 4 % of a core for 15,000 streams.
KEEPALIVE: Final = 30e-6
#: Bytes of a worker's memory for a parked stream, 1.4 to 3.1 KiB in small and large crowds, and for that of a waiting generator.
STREAM_BYTES: Final = 2 * 1024
GENERATOR_BYTES: Final = 18 * 1024
#: Bytes of a worker without streams, with a small app: the soak's, about 50 MiB.
WORKER_BYTES: Final = 50 * 1024**2
#: Bytes of the kernel for an idle connection; with unread events in its buffer it is more.
SOCKET_BYTES: Final = 4 * 1024
#: Bytes of an event around its data: id and field names, blank line, chunk; and TCP, IP and Ethernet around that.
EVENT_OVERHEAD_BYTES: Final = 45
PACKET_BYTES: Final = 66


@dataclasses.dataclass(frozen=True)
class Broker:
    """What an event costs on its way.

    Attributes:
        publish: Seconds of a publishing worker, from `python -m benchmarks publish brokers`.
        store: Seconds for which the broker itself has no time for another event: SQLite's lock, Redis's processor time.
        push: Seconds of the broker more for each worker that it tells.
        hear: Seconds of a worker that gets an event which comes alone; those that come together cost less.
        poll: Seconds between a worker's looks for news; 0 where it is told.
    """

    publish: float
    store: float
    push: float
    hear: float
    poll: float


BROKERS: Final = {
    "memory": Broker(publish=10e-6, store=0, push=0, hear=150e-6, poll=0),
    "sqlite": Broker(publish=125e-6, store=125e-6, push=0, hear=300e-6, poll=8e-3),
    "redis": Broker(publish=220e-6, store=60e-6, push=2e-6, hear=500e-6, poll=0),
}

# What sseflask does by itself; tests/test_sizing.py compares these with the code.

#: Seconds over which a host's streams end when it stops: `SSE_DRAIN_SECONDS`, of which the last tenth is for the slow.
DRAIN: Final = 5.0 * 0.9
#: Seconds that a drained client waits before it comes back, at the least and the most.
COME_BACK: Final = (1.0, 3.0)
#: Seconds of silence before a keepalive, at the least and the most.
SILENCE: Final = (12.0, 15.0)
#: Seconds of requests, and then of deliveries, in one turn of a worker's loop that has both to do.
REQUESTS_TURN: Final = 5e-3
DELIVERIES_TURN: Final = 0.5e-3
REQUESTS_SHARE: Final = REQUESTS_TURN / (REQUESTS_TURN + DELIVERIES_TURN)
#: Open files that a worker keeps for other things than streams.
RESERVED_FILES: Final = 64

# What we size for.

#: The part of a worker's core, and of the broker's, that may be used with one host away.
TARGET: Final = 0.7
#: The simulation's seconds before the restart; after it, at the most; and once all clients are back.
BEFORE: Final = 6.0
AFTER: Final = 20.0
SETTLED: Final = 0.5
#: Seconds after which a client comes back that found no room.
REFUSED_RETRY: Final = 5.0


@dataclasses.dataclass(frozen=True)
class Plan:
    """A crowd, and what is to serve it.

    Attributes:
        name: What the table calls it.
        clients: How many are there at a time.
        hosts: How many; with one, a reload of its workers is played in place of a host's restart.
        workers: On each host, each with a core of its own.
        broker: `"memory"`, `"sqlite"` or `"redis"`.
        shared: Events a second that every client gets.
        own: Seconds between two events of a client's own.
        stay: Seconds that a client stays, on average.
        files: Open files that a worker may have: `ulimit -n`.
        data_bytes: Those of one event's data.
    """

    name: str
    clients: int
    hosts: int = 1
    workers: int = 1
    broker: str = "sqlite"
    shared: float = 1.0
    own: float = 60.0
    stay: float = 600.0
    files: int = 65_536
    data_bytes: int = 100

    @property
    def all_workers(self) -> int:
        """Those of all hosts."""
        return self.hosts * self.workers

    @property
    def left_workers(self) -> int:
        """Those that serve while one host is away; on one host all, since a reload starts the new ones first."""
        return max(self.hosts - 1, 1) * self.workers

    @property
    def room(self) -> int:
        """Streams that a worker takes: `SSE_MAX_STREAMS` by default."""
        return self.files - RESERVED_FILES


#: The page's table.
PLANS: Final = (
    Plan("one process", 2_000),
    Plan("one host", 10_000, workers=4),
    Plan("two hosts", 20_000, hosts=2, workers=4, broker="redis", shared=2),
    Plan("a hundred thousand", 100_000, hosts=4, workers=8, broker="redis", shared=5),
    Plan("too few workers", 50_000, hosts=2, workers=2, broker="redis", shared=5),
    Plan("too many publishes", 10_000, workers=4, own=1.1),
    Plan("too few files", 2_000, files=1_024),
)


@dataclasses.dataclass(frozen=True)
class Estimate:
    """What the formulas say.

    Attributes:
        streams: For each worker.
        host_bytes: Memory of a host: its workers and the kernel's sockets, with its part of another host's clients.
        published: Events a second.
        delivered: Events a second, to clients.
        bits: A second, of each host.
        cpu: The part of its core that each worker uses.
        cpu_left: The same with one host away.
        broker: The part of its time that the broker is busy.
        back: Seconds until all clients of a host that restarts are back.
        faults: What the plan is too small for, in words.
    """

    streams: float
    host_bytes: float
    published: float
    delivered: float
    bits: float
    cpu: float
    cpu_left: float
    broker: float
    back: float
    faults: tuple[str, ...]


def estimate(plan: Plan) -> Estimate:
    """The closed formulas of the page."""
    published = plan.shared + plan.clients / plan.own
    each = plan.shared + 1 / plan.own
    cpu, cpu_left = _cpu(plan, plan.all_workers), _cpu(plan, plan.left_workers)
    costs = BROKERS[plan.broker]
    told = plan.shared * plan.all_workers + plan.clients / plan.own
    broker = published * costs.store + told * costs.push
    left = plan.clients / plan.left_workers
    faults = [f"{what} at {share:.0%}" for what, share in (("workers", cpu_left), ("the broker", broker)) if share > TARGET]
    if left > plan.room:
        faults.append(f"files for {plan.room:,} streams")
    return Estimate(
        streams=plan.clients / plan.all_workers,
        host_bytes=plan.workers * (WORKER_BYTES + left * (STREAM_BYTES + SOCKET_BYTES)),
        published=published,
        delivered=plan.clients * each,
        bits=8 * (plan.clients / plan.hosts) * each * (plan.data_bytes + EVENT_OVERHEAD_BYTES + PACKET_BYTES),
        cpu=cpu,
        cpu_left=cpu_left,
        broker=broker,
        back=_back(plan, 1 - cpu_left),
        faults=tuple(faults),
    )


def _cpu(plan: Plan, workers: int) -> float:
    """The part of its core that each of so many workers uses."""
    costs, streams = BROKERS[plan.broker], plan.clients / workers
    each = plan.shared + 1 / plan.own
    published = plan.shared + plan.clients / plan.own
    return (
        streams * each * DELIVER
        + (plan.shared + streams / plan.own) * costs.hear
        + published / workers * costs.publish
        + streams / plan.stay * OPEN
        + streams * _keepalives(each) * KEEPALIVE
    )


def _keepalives(each: float) -> float:
    """Keepalives a second of a stream that gets so many events a second, at random."""
    silence = sum(SILENCE) / 2
    return each / math.expm1(each * silence)


def _back(plan: Plan, free: float) -> float:
    """Seconds until a restarted host's clients are back: as they are sent away, or as fast as the others can let them in."""
    last = DRAIN + COME_BACK[1]
    if free <= 0:
        return math.inf
    return max(last, COME_BACK[0] + plan.clients / plan.hosts / plan.left_workers * OPEN / free)


# ---- The simulation ----


class Job:
    """Work that waits in a worker.

    Attributes:
        left: Seconds of it that are left.
        began: When it was begun; None while it waits.
        streams: To how many it delivers.
        published: When its events were published.
        done: Called when it is done.
    """

    __slots__ = ("began", "done", "left", "published", "streams")

    def __init__(
        self, seconds: float, *, streams: int = 0, published: float | None = None, done: Callable[[float], None] | None = None
    ) -> None:
        self.left = seconds
        self.began: float | None = None
        self.streams = streams
        self.published = [] if published is None else [published]
        self.done = done


class Worker:
    """One core: requests and deliveries, each in their order; where both wait, they share it as the loop's turns do.

    Attributes:
        streams: How many are open.
        busy: Seconds that it has worked.
    """

    def __init__(self, delivered: Callable[[Job, float], None]) -> None:
        self.streams = 0
        self.busy = 0.0
        self._now = 0.0
        self._delivered = delivered
        self._requests: collections.deque[Job] = collections.deque()
        self._deliveries: collections.deque[Job] = collections.deque()
        # The round of the shared channel that waits.
        self._round: Job | None = None

    def request(self, now: float, seconds: float, done: Callable[[float], None] | None = None) -> None:
        """Something that a request does."""
        self.advance(now)
        self._requests.append(Job(seconds, done=done))

    def hear(self, now: float, published: float, seconds: float, *, is_shared: bool) -> None:
        """An event has come for all streams here, or for one; one for all joins the round that waits, if there is one."""
        self.advance(now)
        waiting = self._round
        if is_shared and waiting is not None and waiting.began is None:
            waiting.left += seconds + waiting.streams * JOIN
            waiting.published.append(published)
            return
        streams = self.streams if is_shared else 1
        job = Job(seconds + streams * DELIVER, streams=streams, published=published)
        self._deliveries.append(job)
        if is_shared:
            self._round = job

    def advance(self, now: float) -> None:
        """Works until then."""
        requests, deliveries = self._requests, self._deliveries
        while self._now < now and (requests or deliveries):
            if requests and deliveries:
                request, delivery = requests[0], deliveries[0]
                step = min(now - self._now, request.left / REQUESTS_SHARE, delivery.left / (1 - REQUESTS_SHARE))
                self._work(requests, step, step * REQUESTS_SHARE)
                self._work(deliveries, step, step * (1 - REQUESTS_SHARE))
            else:
                queue = requests or deliveries
                step = min(now - self._now, queue[0].left)
                self._work(queue, step, step)
            self._now += step
            self.busy += step
        self._now = max(self._now, now)

    def _work(self, queue: collections.deque[Job], step: float, seconds: float) -> None:
        """Works for so many seconds on what is first in line, while `step` passes."""
        job = queue[0]
        if job.began is None:
            job.began = self._now
        job.left -= seconds
        if job.left < 1e-12:
            queue.popleft()
            self._finish(job, self._now + step)

    def _finish(self, job: Job, now: float) -> None:
        if job.streams:
            self._delivered(job, now)
        if job.done is not None:
            job.done(now)


@dataclasses.dataclass(frozen=True)
class Result:
    """What the simulation saw.

    Attributes:
        streams: For each worker, when the host is about to restart.
        published: Events a second, before that, and `delivered` likewise, to clients.
        delivered: See `published`.
        cpu: The part of its core that a worker used before that, on average.
        p99: Seconds from an event's publishing to its delivery, before that: the 99th percentile over all deliveries.
        p99_after: The same afterwards.
        back: Seconds until all clients of the host are back; infinite if some weren't at the end.
        refused: How often a client found no room.
    """

    streams: float
    published: float
    delivered: float
    cpu: float
    p99: float
    p99_after: float
    back: float
    refused: int


class Simulation:
    """One plan, played once."""

    def __init__(self, plan: Plan, seed: int = 1) -> None:
        self._plan = plan
        self._costs = BROKERS[plan.broker]
        self._random = random.Random(seed)
        self._workers = [Worker(self._delivered) for _ in range(plan.all_workers)]
        # Those that new streams are given to.
        self._serving = list(range(plan.all_workers))
        self._events: list[tuple[float, int, Callable[[float], None]]] = []
        self._numbers = itertools.count()
        # By client: its worker; -1 while it has none.
        self._where: list[int] = []
        self._broker_free = 0.0
        self._published = self._refused = 0
        self._away: set[int] = set()
        self._back_at = math.inf
        # How long deliveries took, and how many took so long: before the restart, and after it.
        self._delays: tuple[list[tuple[float, float]], list[tuple[float, float]]] = ([], [])

    def run(self) -> Result:
        """Plays it."""
        plan = self._plan
        for index in range(plan.clients):
            # At the beginning all are there that find room, without the work of letting them in.
            client, number = self._add(), index % plan.all_workers
            if self._workers[number].streams < plan.room:
                self._take(client, number, 0.0)
            else:
                self._at(self._random.uniform(0, REFUSED_RETRY), lambda now, client=client: self._arrive(client, now))
        self._repeat(plan.clients / plan.stay, lambda now: self._arrive(self._add(), now))
        self._repeat(plan.clients / plan.own, self._publish_own)
        for index in range(int(plan.shared * (BEFORE + AFTER))):
            self._at((index + self._random.random()) / plan.shared, self._publish_shared)
        self._play(BEFORE)
        streams = sum(worker.streams for worker in self._workers) / plan.all_workers
        busy = sum(worker.busy for worker in self._workers)
        published = self._published
        self._restart(BEFORE)
        self._play(BEFORE + AFTER)
        return Result(
            streams=streams,
            published=published / BEFORE,
            delivered=sum(weight for _, weight in self._delays[0]) / BEFORE,
            cpu=busy / BEFORE / plan.all_workers,
            p99=_percentile(self._delays[0], 0.99),
            p99_after=_percentile(self._delays[1], 0.99),
            back=self._back_at - BEFORE,
            refused=self._refused,
        )

    def _play(self, until: float) -> None:
        events = self._events
        while events and events[0][0] < min(until, self._back_at + SETTLED):
            now, _, call = heapq.heappop(events)
            call(now)
        for worker in self._workers:
            worker.advance(min(until, self._back_at + SETTLED))

    def _at(self, when: float, call: Callable[[float], None]) -> None:
        if when <= BEFORE + AFTER:
            heapq.heappush(self._events, (when, next(self._numbers), call))

    def _repeat(self, rate: float, call: Callable[[float], None]) -> None:
        """Calls it so many times a second, at random."""

        def again(now: float) -> None:
            self._at(now + self._random.expovariate(rate), again)
            call(now)

        self._at(self._random.expovariate(rate), again)

    # Clients

    def _add(self) -> int:
        self._where.append(-1)
        return len(self._where) - 1

    def _arrive(self, client: int, now: float) -> None:
        """A client asks a worker for a stream; the load balancer takes any of those that serve."""
        number = self._random.choice(self._serving)
        self._workers[number].request(now, OPEN, lambda then: self._opened(client, number, then))

    def _opened(self, client: int, number: int, now: float) -> None:
        if self._workers[number].streams >= self._plan.room:
            self._refused += 1
            self._at(now + REFUSED_RETRY, lambda then: self._arrive(client, then))
            return
        self._take(client, number, now)

    def _take(self, client: int, number: int, now: float) -> None:
        self._workers[number].streams += 1
        self._where[client] = number
        self._at(now + self._random.expovariate(1 / self._plan.stay), lambda then: self._leave(client, number))
        if client in self._away:
            self._away.discard(client)
            if not self._away:
                self._back_at = now

    def _leave(self, client: int, number: int) -> None:
        # One that was sent away meanwhile has left that worker already.
        if self._where[client] == number:
            self._workers[number].streams -= 1
            self._where[client] = -1

    def _restart(self, now: float) -> None:
        """The first host's streams end, spread out, and their clients come back to the others."""
        leaving = range(self._plan.workers)
        if self._plan.hosts > 1:
            self._serving = self._serving[self._plan.workers :]
        clients = [client for client, number in enumerate(self._where) if number in leaving]
        self._random.shuffle(clients)
        self._away = set(clients)
        for index, client in enumerate(clients):
            self._at(now + DRAIN * index / len(clients), lambda then, client=client: self._send_away(client, then))

    def _send_away(self, client: int, now: float) -> None:
        number = self._where[client]
        if number < 0:
            # It has left by itself.
            self._away.discard(client)
            return
        self._leave(client, number)
        self._at(now + self._random.uniform(*COME_BACK), lambda then: self._arrive(client, then))

    # Events

    def _publish_shared(self, now: float) -> None:
        self._publish(now, [number for number, worker in enumerate(self._workers) if worker.streams], is_shared=True)

    def _publish_own(self, now: float) -> None:
        number = self._where[self._random.randrange(len(self._where))]
        self._publish(now, [number] if number >= 0 else [], is_shared=False)

    def _publish(self, now: float, numbers: Sequence[int], *, is_shared: bool) -> None:
        costs = self._costs
        self._published += 1
        self._workers[self._random.choice(self._serving)].request(now, costs.publish)
        self._broker_free = stored = max(now, self._broker_free) + costs.store + len(numbers) * costs.push
        for number in numbers:
            heard = stored + self._random.uniform(0, costs.poll)
            worker = self._workers[number]
            self._at(heard, lambda then, worker=worker: worker.hear(then, now, costs.hear, is_shared=is_shared))

    def _delivered(self, job: Job, now: float) -> None:
        began = job.began if job.began is not None else now
        for published in job.published:
            delays = self._delays[published >= BEFORE]
            # One after the other, from the first stream of the round to the last.
            for part in (0.1, 0.3, 0.5, 0.7, 0.9) if job.streams > 1 else (1.0,):
                delays.append((began + (now - began) * part - published, job.streams / (5 if job.streams > 1 else 1)))


def simulate(plan: Plan, seed: int = 1) -> Result:
    """Plays a plan once."""
    return Simulation(plan, seed).run()


def _percentile(delays: Iterable[tuple[float, float]], part: float) -> float:
    """The delay that this part of all deliveries don't exceed."""
    ordered = sorted(delays)
    left = part * sum(weight for _, weight in ordered)
    for delay, weight in ordered:
        left -= weight
        if left <= 0:
            return delay
    return math.nan


# ---- The table ----


def column(plan: Plan, seed: int = 1) -> dict[str, str]:
    """What the table says of one plan: formula and simulation beside one another where both say something."""
    said, seen = estimate(plan), simulate(plan, seed)
    verdict = "; ".join(said.faults) or "holds"
    if seen.refused:
        verdict += f"; {seen.refused:,} refused"
    return {
        "": plan.name,
        "clients": f"{plan.clients:,}",
        "hosts × workers": f"{plan.hosts} × {plan.workers}",
        "broker": plan.broker,
        "streams a worker": f"{said.streams:,.0f}",
        "memory of a host": f"{said.host_bytes / 1024**2:,.0f} MiB",
        "published a second": f"{said.published:,.0f}",
        "delivered a second": f"{said.delivered:,.0f} / {seen.delivered:,.0f}",
        "a worker's CPU": f"{said.cpu:.0%} / {seen.cpu:.0%}",
        "the same, one host away": f"{said.cpu_left:.0%}",
        "the broker's time": f"{said.broker:.0%}",
        "p99": _milliseconds(seen.p99),
        "p99 in a restart": _milliseconds(seen.p99_after),
        "all are back after": f"{_seconds(said.back)} / {_seconds(seen.back)}",
        "verdict": verdict,
    }


def table(plans: Iterable[Plan], seed: int = 1) -> str:
    """A column for each plan, in Markdown."""
    columns = [column(plan, seed) for plan in plans]
    rows = [[fact, *(cells[fact] for cells in columns)] for fact in columns[0]]
    rows.insert(1, ["---", *["--:"] * len(columns)])
    return "\n".join("| " + " | ".join(cells) + " |" for cells in rows) + "\n"


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:,.0f} ms" if seconds < 10 else f"{seconds:,.0f} s"


def _seconds(seconds: float) -> str:
    return "never" if math.isinf(seconds) else f"{seconds:.1f} s"


def main(arguments: Sequence[str]) -> None:
    """Prints the page's table, or that of one plan."""
    parser = argparse.ArgumentParser(prog="sizing.py", description="How many workers and hosts a crowd of clients needs.")
    defaults = {field.name: field.default for field in dataclasses.fields(Plan)}
    parser.add_argument("--clients", type=int, help="how many are there at a time; without it, the page's table")
    parser.add_argument("--hosts", type=int, default=defaults["hosts"])
    parser.add_argument("--workers", type=int, default=defaults["workers"], help="on each host")
    parser.add_argument("--broker", choices=list(BROKERS), help="default: sqlite on one host, redis on several")
    parser.add_argument("--shared", type=float, default=defaults["shared"], help="events a second that every client gets")
    parser.add_argument("--own", type=float, default=defaults["own"], help="seconds between two events of a client's own")
    parser.add_argument("--stay", type=float, default=defaults["stay"], help="seconds that a client stays, on average")
    parser.add_argument("--files", type=int, default=defaults["files"], help="open files that a worker may have")
    parser.add_argument("--seed", type=int, default=1)
    options = vars(parser.parse_args(arguments))
    seed = options.pop("seed")
    if options["clients"] is None:
        plans: Sequence[Plan] = PLANS
    else:
        options["broker"] = options["broker"] or ("sqlite" if options["hosts"] == 1 else "redis")
        plans = [Plan("yours", **options)]
    sys.stdout.write(table(plans, seed))


if __name__ == "__main__":
    main(sys.argv[1:])
