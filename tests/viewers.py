"""Apps that stand for workers, and clients that watch their streams while a test goes on."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient

from sseflask import SSE, EventDecoder, ServerSentEvent, process
from sseflask.brokers import Broker
from tests.live.process import wait_until

#: Seconds within which what must happen does, on a machine that is busy with other things.
PATIENCE = 15.0


class Viewer:
    """A client that reads one response, in a thread of its own, until it hangs up.

    Attributes:
        events: What has come so far.
        status: Of the response.
        headers: Of the response.
        body: All bytes so far.
        is_over: Whether the response has ended.
    """

    def __init__(self, client: FlaskClient, path: str, **options: Any) -> None:
        self.events: list[ServerSentEvent] = []
        self.status = 0
        self.headers: dict[str, str] = {}
        self.body = b""
        self.is_over = False
        self.error: BaseException | None = None
        self._decoder = EventDecoder()
        self._reply: Any = None
        self._opened = threading.Event()
        self._thread = threading.Thread(target=self._read, args=(client, path, options), daemon=True)
        self._thread.start()
        assert self._opened.wait(PATIENCE), f"{path} doesn't open"
        if self.error is not None:
            raise self.error

    def _read(self, client: FlaskClient, path: str, options: dict[str, Any]) -> None:
        try:
            self._reply = client.open(path, **options)
            self.status = self._reply.status_code
            self.headers = dict(self._reply.headers)
        except BaseException as error:
            self.error = error
            return
        finally:
            self._opened.set()
        with contextlib.suppress(BrokenPipeError):
            for data in self._reply.response:
                self.body += data
                self.events += self._decoder.feed(data)
        self._reply.close()
        self.is_over = True

    @property
    def last_event_id(self) -> str:
        """What it says when it comes back."""
        return self._decoder.last_event_id

    @property
    def names(self) -> list[str | None]:
        """The names of its events."""
        return [event.event for event in list(self.events)]

    @property
    def data(self) -> list[str | None]:
        """The data of the events that have no name, or are named `token`."""
        return [event.data for event in list(self.events) if event.event in (None, "token")]

    @property
    def text(self) -> str:
        """The same, as one text."""
        return "".join(data or "" for data in self.data)

    def named(self, name: str) -> list[Any]:
        """The JSON data of the events of this name."""
        import json

        return [json.loads(event.data or "null") for event in list(self.events) if event.event == name]

    def wait_for(self, name: str | None, count: int = 1) -> None:
        """Waits for so many events of a name."""
        wait_until(lambda: self.names.count(name) >= count, PATIENCE, f"{count} {name!r} in {self.body!r}")

    def wait_for_end(self) -> Viewer:
        """Waits for the end of the response."""
        wait_until(lambda: self.is_over, PATIENCE, f"the end after {self.body!r}")
        return self

    def hang_up(self) -> None:
        """Closes the connection."""
        if self._reply is not None and not self.is_over:
            self._reply.close()
        self._thread.join(PATIENCE)


class Worker:
    """An app with an `SSE`: one process's, or that of one of several that share a broker.

    Attributes:
        app: The app.
        sse: What is installed on it.
    """

    def __init__(self, **settings: Any) -> None:
        self.app = Flask("app")
        self.app.secret_key = "secret"
        self.app.config.update({"SSE_PRODUCER_LEASE": 1.0, **settings})
        self.sse = SSE(self.app)
        self.viewers: list[Viewer] = []
        self.app.add_url_rule("/tasks/<task_id>", "task", self.sse.task_response)

    @property
    def broker(self) -> Broker:
        """Its broker."""
        broker: Broker = self.app.extensions["sse"].broker
        return broker

    def watch(self, path: str = "/", *, last_event_id: str | None = None, **options: Any) -> Viewer:
        """Opens a stream."""
        headers = dict(options.pop("headers", {}))
        if last_event_id is not None:
            headers["Last-Event-ID"] = last_event_id
        viewer = Viewer(options.pop("client", None) or self.app.test_client(), path, headers=headers, **options)
        self.viewers.append(viewer)
        return viewer

    def close(self) -> None:
        """Ends all that it has open, as a worker does that leaves."""
        installed = self.app.extensions["sse"]
        installed.tasks.close()
        for viewer in self.viewers:
            viewer.hang_up()
        if installed.broker_in_use is not None:
            wait_until(lambda: not own_streams(self.app), PATIENCE, "its work has ended")
            installed.broker_in_use.close()


def own_streams(app: Flask) -> list[Any]:
    """The detached streams of an app."""
    return [stream for stream in list(process.current().detached) if stream.app is app]


def renew_before_listening(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets the log begin another life when the next stream has its position, and is about to listen."""
    subscribe = broker.subscribe

    def renew(channels: tuple[str, ...], subscriber: Any) -> None:
        monkeypatch.undo()
        with broker.emitter.lock:
            broker.log.renew("ba9876543210", 0)
        subscribe(channels, subscriber)

    monkeypatch.setattr(broker, "subscribe", renew)


MakeWorker = Callable[..., Worker]


@pytest.fixture
def make_worker(tmp_path: Path) -> Iterator[MakeWorker]:
    """Makes apps; with `shared=True` they share an SQLite file, as the workers of one server do."""
    made: list[Worker] = []

    def make(*, shared: bool = False, **settings: Any) -> Worker:
        url = f"sqlite:///{tmp_path}/events.sqlite?synchronous=off" if shared else "memory://"
        made.append(Worker(**{"SSE_BROKER_URL": url, **settings}))
        return made[-1]

    yield make
    for worker in made:
        worker.close()


@pytest.fixture
def worker(make_worker: MakeWorker) -> Worker:
    """One that is alone."""
    return make_worker()
