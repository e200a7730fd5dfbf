"""What all workers of a server count, as metrics for Prometheus.

Each metric is there twice: for all workers together, and, with `worker_` in its name, for each, by its process's id. The former
includes what workers had counted that have gone, so it never shrinks.
"""

from __future__ import annotations

import importlib.util
import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from . import ledger
from .ledger import Numbers, Reading
from .tally import BOUNDS

if TYPE_CHECKING:
    from prometheus_client import Metric as Family

#: How to get what this needs.
INSTALL: Final = "pip install 'sseflask[metrics]'"


class Metric(NamedTuple):
    """One metric.

    Attributes:
        name: Its name, without what all begin with; a counter's without `_total`.
        kind: `"gauge"`, `"counter"` or `"histogram"`.
        key: What its number is called among all numbers.
        text: What it says.
        label: The label by whose values there are several numbers; "" for one number.
        has_workers: Whether there is one for each worker too.
    """

    name: str
    kind: str
    key: str
    text: str
    label: str = ""
    has_workers: bool = True


METRICS: Final = (
    Metric("streams", "gauge", "streams", "Streams that are open"),
    Metric("streams_opened", "counter", "streams_opened", "Streams that were opened"),
    Metric("streams_closed", "counter", "streams_closed", "Streams that were closed, by reason", "reason"),
    Metric("streams_refused", "counter", "streams_refused", "Streams that were refused, by the limit or why else", "limit"),
    Metric("streams_stuck", "counter", "streams_stuck", "Generators that still ran 10 s after the end of their streams"),
    Metric("subscriptions", "gauge", "subscriptions", "Channels that open streams read, one by one"),
    Metric("channels", "gauge", "channels", "Channels that have subscribers, listeners or a history, counted in each worker"),
    Metric("detached_producers", "gauge", "detached", "Tasks and resumable runs at work"),
    Metric("detached_ended", "counter", "detached_ended", "Tasks and resumable runs that ended, by reason", "reason"),
    Metric("events_published", "counter", "events_published", "Events that were published"),
    Metric("events_delivered", "counter", "events_sent", "Events that were given to clients, the replayed ones too"),
    Metric("events_replayed", "counter", "events_replayed", "Events that were given to clients that came back for them"),
    Metric("events_refused", "counter", "events_refused", "Events of tasks that had ended, which were not published"),
    Metric("resets", "counter", "resets", "Clients that were told that something is gone"),
    Metric("slow_clients", "counter", "slow_clients", "Clients that were cut because they didn't read"),
    Metric("keepalives", "counter", "keepalives", "Keepalive comments that were sent"),
    Metric("sent_bytes", "counter", "bytes_sent", "Bytes of streams' bodies that were sent, without keepalives and framing"),
    Metric("history_bytes", "gauge", "history_bytes", "Bytes of events that are kept in memory for clients that come back"),
    Metric("broker_up", "gauge", "broker_up", "Whether the broker can be followed: 1, or 0 if any worker can't"),
    Metric("broker_outages", "counter", "broker_outages", "How often the broker could not be followed any more"),
    Metric("broker_reconnects", "counter", "broker_reconnects", "How often the broker could be followed again"),
    Metric(
        "delivery_latency_seconds", "histogram", "latency", "From the publishing of an event to the last of its streams that waited"
    ),
    Metric("lag_seconds", "histogram", "lags", "How late the timer woke: how long nothing else in a worker could run"),
    Metric("lag_max_seconds", "gauge", "max_lag_seconds", "The longest lag since a worker began"),
    Metric("draining", "gauge", "draining", "Workers that are stopping"),
    Metric("channel_subscriptions", "gauge", "channel_subscriptions", "Subscriptions, by pattern of the channel", "pattern", False),
    Metric(
        "channel_events_published",
        "counter",
        "channel_events_published",
        "Events that were published, by pattern",
        "pattern",
        False,
    ),
    Metric("channel_events_delivered", "counter", "channel_events_sent", "Events given to clients, by pattern", "pattern", False),
)


class Collector:
    """What a registry of `prometheus_client` asks, for apps that have metrics of their own: `REGISTRY.register(Collector())`."""

    def collect(self) -> Iterator[Family]:
        """The metrics as they are now."""
        yield from families(ledger.current().read())


def is_installed() -> bool:
    """Whether there is what this needs."""
    return importlib.util.find_spec("prometheus_client") is not None


def exposition(reading: Reading, accept: str) -> tuple[bytes, str]:
    """The metrics in the format that a client accepts, and its content type.

    Args:
        reading: The numbers.
        accept: The request's header Accept.
    """
    from prometheus_client import CollectorRegistry
    from prometheus_client.exposition import choose_encoder

    registry: Any = CollectorRegistry(auto_describe=False)
    registry.register(_Taken(reading))
    encode, content_type = choose_encoder(accept)
    return encode(registry), content_type


def families(reading: Reading) -> Iterator[Family]:
    """The metrics of a reading."""
    from prometheus_client.core import GaugeMetricFamily

    yield GaugeMetricFamily("sseflask_workers", "Workers of this server", value=len(reading.now))
    together = {**reading.present, **reading.total}
    workers = {str(pid): {**now, **reading.ever[pid]} for pid, now in sorted(reading.now.items())}
    for metric in METRICS:
        yield _family(metric, f"sseflask_{metric.name}", {"": together})
    for metric in METRICS:
        if metric.has_workers:
            yield _family(metric, f"sseflask_worker_{metric.name}", workers)


class _Taken:
    """Gives a registry the metrics of one reading."""

    def __init__(self, reading: Reading) -> None:
        self._reading = reading

    def collect(self) -> Iterator[Family]:
        """The metrics."""
        yield from families(self._reading)


def _family(metric: Metric, name: str, found: dict[str, Numbers]) -> Family:
    """One metric with its samples: of each worker, or, under the name "", of all together."""
    from prometheus_client import core

    of_workers = "" not in found
    labels = [*(["worker"] if of_workers else []), *([metric.label] if metric.label else [])]
    if metric.kind == "histogram":
        histogram = core.HistogramMetricFamily(name, metric.text, labels=labels)
        for worker, numbers in found.items():
            counted = numbers[metric.key]
            sums = itertools.accumulate(counted["counts"])
            buckets = list(zip([*(str(bound) for bound in BOUNDS), "+Inf"], sums, strict=True))
            histogram.add_metric([worker] if of_workers else [], buckets, counted["seconds"])
        return histogram
    family: Any = {"gauge": core.GaugeMetricFamily, "counter": core.CounterMetricFamily}[metric.kind](
        name, metric.text, labels=labels
    )
    for worker, numbers in found.items():
        values = numbers.get(metric.key, 0)
        for value, number in values.items() if metric.label else [("", values)]:
            family.add_metric([*([worker] if of_workers else []), *([value] if metric.label else [])], number)
    own: Family = family
    return own
