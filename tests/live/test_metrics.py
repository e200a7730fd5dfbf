"""The metrics of a server whose workers come and go: each worker tells of all, and no sum ever shrinks."""

from __future__ import annotations

import http.client
import json
import os
import signal
from pathlib import Path
from typing import Any, Final

from prometheus_client.parser import text_string_to_metric_families

from tests.conftest import Serve
from tests.live.client import StreamClient, get, open_stream
from tests.live.process import wait_until
from tests.live.server import Server

APP: Final = "tests.live.apps.metrics_app:app"

Sample = tuple[str, frozenset[tuple[str, str]]]


class Scraper:
    """Asks for the metrics again and again, and sees to it that no sum shrinks.

    Attributes:
        asked: The workers that have answered.
    """

    def __init__(self, server: Server) -> None:
        self.asked: set[int] = set()
        self._server = server
        self._last: dict[Sample, float] = {}

    def scrape(self) -> dict[Sample, float]:
        """The metrics, by name and labels."""
        reply = get(self._server, "/events/-/metrics")
        assert reply.status == 200, reply.text
        self.asked.add(int(reply.headers["x-worker"]))
        found: dict[Sample, float] = {}
        for family in text_string_to_metric_families(reply.text):
            for sample in family.samples:
                key = sample.name, frozenset(sample.labels.items())
                assert key not in found, key
                found[key] = sample.value
                if (
                    family.type in ("counter", "histogram")
                    and not sample.name.endswith("_created")
                    and "worker" not in sample.labels
                ):
                    assert sample.value >= self._last.get(key, 0), key
                    self._last[key] = sample.value
        assert set(self._last) <= set(found)
        return found

    def value(self, name: str, **labels: str) -> float:
        """One of them; 0 if there is none."""
        return self.scrape().get((f"sseflask_{name}", frozenset(labels.items())), 0.0)

    def wait_for(self, name: str, value: float, **labels: str) -> None:
        """Waits until each worker that lives says so."""
        right: set[int] = set()

        def is_so() -> bool:
            self.asked.clear()
            if self.value(name, **labels) == value:
                right.update(self.asked)
            else:
                right.clear()
            return right >= set(self._server.ready_workers())

        wait_until(is_so, 20, f"{name} to be {value:g} in all workers")


def in_each_worker(server: Server, path: str) -> dict[int, list[StreamClient]]:
    """Opens streams until each worker has one."""
    found: dict[int, list[StreamClient]] = {}

    def open_one() -> bool:
        client = open_stream(server, path)
        client.next_event()
        found.setdefault(int(client.headers["x-worker"]), []).append(client)
        return set(found) == set(server.ready_workers())

    wait_until(open_one, 20, "a stream in each worker")
    return found


def test_sums_outlive_workers(serve: Serve, tmp_path: Path) -> None:
    """Whichever worker is asked tells of all; what those had counted that are killed or replaced stays in the sums."""
    (tmp_path / "tmp").mkdir()
    server = serve(APP, workers=2, env={"TMPDIR": str(tmp_path / "tmp"), "SSE_DRAIN_SECONDS": "0.5"})
    scraper = Scraper(server)
    scraper.wait_for("workers", 2)

    clients = in_each_worker(server, "/events/job:7")
    count = sum(len(found) for found in clients.values())
    assert get(server, "/publish?channel=job:7&count=50", method="POST").status == 200
    for found in clients.values():
        for client in found:
            client.events(50)
    scraper.wait_for("streams", count)
    scraper.wait_for("events_delivered_total", 50 * count)
    scraper.wait_for("channel_events_delivered_total", 50 * count, pattern="job:*")
    scraper.wait_for("channel_subscriptions", count, pattern="job:*")
    published = scraper.value("channel_events_published_total", pattern="job:*")
    assert published == 50 and scraper.value("events_published_total") >= 50
    samples = scraper.scrape()
    for pid, found in clients.items():
        assert samples["sseflask_worker_streams", frozenset({("worker", str(pid))})] == len(found)
    assert samples["sseflask_delivery_latency_seconds_count", frozenset()] >= 1
    assert samples["sseflask_lag_seconds_count", frozenset()] >= 1

    # Asked by one connection, one worker has to learn from the other's file, which that one writes by itself.
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    assert get(server, "/publish?channel=job:7&count=10", method="POST").status == 200
    for found in clients.values():
        for client in found:
            client.events(10)

    def delivered() -> int:
        connection.request("GET", "/events/-/stats")
        stats: dict[str, Any] = json.loads(connection.getresponse().read())
        asked.add(stats["worker"])
        return int(stats["all"]["events_sent"])

    asked: set[int] = set()
    wait_until(lambda: delivered() == 60 * count, 20, "the other worker's numbers")
    assert len(asked) == 1
    connection.close()

    killed = min(clients)
    os.kill(killed, signal.SIGKILL)
    wait_until(lambda: killed not in server.ready_workers() and len(server.ready_workers()) == 2, 20, "another worker")
    scraper.wait_for("workers", 2)
    scraper.wait_for("streams", count - len(clients[killed]))
    samples = scraper.scrape()
    assert samples["sseflask_events_delivered_total", frozenset()] == 60 * count
    assert ("sseflask_worker_streams", frozenset({("worker", str(killed))})) not in samples

    old = server.ready_workers()
    server.signal(signal.SIGHUP)
    server.wait_for_new_workers(old)
    scraper.wait_for("workers", 2)
    scraper.wait_for("streams", 0)
    scraper.wait_for("streams_closed_total", count - len(clients[killed]), reason="shutdown")
    assert scraper.value("streams_opened_total") == count

    stats: dict[str, Any] = get(server, "/events/-/stats").json()
    assert set(stats["workers"]) == {str(pid) for pid in server.ready_workers()} and str(stats["worker"]) in stats["workers"]
    assert stats["all"]["events_sent"] == 60 * count and stats["all"]["broker_up"] == 1
    assert stats["all"]["streams_closed"] == {"shutdown": count - len(clients[killed])}


def test_request_ids(serve: Serve) -> None:
    """The id of a request is in its generator and in the lines on its stream, which say no more than that it ended."""
    server = serve(APP)
    with open_stream(server, "/fails", headers={"X-Request-ID": "req-0a1b"}) as client:
        assert client.next_event().data == "req-0a1b"
        client.read_until_closed()
    server.wait_for_log(r"\[INFO\] stream closed path=/fails reason=error .* request_id=req-0a1b$")
    with open_stream(server, "/events/news", headers={"X-Request-ID": "not one"}) as client:
        client.next_event()
    found = server.wait_for_log(r"\[(\w+)\] stream closed path=/events/news reason=disconnected .* id=\w{12}$")
    assert found[1] == "INFO"
    assert server.log().count("[ERROR]") == 1
