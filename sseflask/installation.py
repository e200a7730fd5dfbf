"""What an app has of sseflask: its settings, and in each process its broker, its tasks and what its processes tell one another."""

from __future__ import annotations

import functools
import logging
import os
import urllib.parse
import weakref
from typing import TYPE_CHECKING, Final

from flask import Flask, has_request_context, request

from . import process, runs
from .brokers import Broker, make_broker
from .channel import sure_length
from .config import Settings, redacted
from .control import Control
from .decorated import OfApp
from .emitter import EventEmitter
from .errors import BrokerUnavailable
from .identity import Identity
from .tasks import Tasks

if TYPE_CHECKING:
    from .extension import SSE

log = logging.getLogger("sseflask.broker")

#: The key of `app.extensions` under which an app's installation is found.
KEY: Final = "sse"


class Installation:
    """What an app has of sseflask: `app.extensions["sse"]`.

    Attributes:
        sse: The extension that was installed.
        settings: The app's settings, as they were when it was.
        decorated: What the extension's decorators have given it.
        sure_length: The characters that data may have which needn't be looked at before they are published.
        ready: The app's broker, once it has been made in this process and may be used by whoever asks; else None.
    """

    def __init__(self, sse: SSE, settings: Settings, app: Flask, decorated: OfApp | None = None) -> None:
        self.sse = sse
        self.settings = settings
        self.sure_length = sure_length(settings.max_event_bytes)
        self.ready: Broker | None = None
        self._identity = Identity(app, settings)
        self._is_auto = settings.broker_url == "auto"
        self._brokers: dict[int, Broker] = {}
        self._controls: dict[int, Control] = {}
        self._tasks: dict[int, Tasks] = {}
        self.decorated = sse.decorated.give(self._find_emitter) if decorated is None else decorated
        self.decorated.find_emitter = self._find_emitter

    @property
    def broker(self) -> Broker:
        """The app's broker in this process, made at first use.

        Raises:
            BrokerUnavailable: Other processes serve the app too, and nothing joins them, or nothing says which app it is there.
        """
        if (
            self._is_auto
            and (here := process.current()).directory is None
            and (here.workers > 1 or (has_request_context() and request.environ.get("wsgi.multiprocess")))
        ):
            problem = (
                "several processes serve this app, and an event published in one would not reach the streams of the others: set "
                "SSE_BROKER_URL to sqlite:///PATH or redis://…, run them under sseflask.worker.StreamWorker, or set it to "
                "memory:// if each is to have channels of its own"
            )
            # Found at the first request that anybody makes, and to be put right before there is a second.
            raise BrokerUnavailable(problem, told=problem)
        broker = self._brokers.get(os.getpid())
        if broker is None:
            # Two threads may come here together: the listeners are in the broker before anyone else sees it.
            made = self._make_broker()
            broker = self._brokers.setdefault(os.getpid(), made)
            if broker is made:
                process.current().on_exit.append(broker.close)
                process.current().brokers.append(broker)
                broker.open()
        if self.ready is None and (not self._is_auto or process.current().directory is not None):
            # A forked child has none yet: until then nobody needs to ask for the process's id.
            _forget_in_children()
            _ready.add(self)
            self.ready = broker
        return broker

    @property
    def control(self) -> Control:
        """What this process tells the app's others, and hears from them."""
        control = self._controls.get(os.getpid())
        if control is None:
            control = self._controls.setdefault(os.getpid(), Control(lambda: self.broker, self.tasks))
        return control

    @property
    def tasks(self) -> Tasks:
        """The app's tasks, as this process sees them."""
        tasks = self._tasks.get(os.getpid())
        if tasks is None:
            made = Tasks(self)
            tasks = self._tasks.setdefault(os.getpid(), made)
            if tasks is made:
                made.lose["run"] = lambda record: runs.lose(made, record)
                process.current().on_exit.insert(0, made.close)
        return tasks

    @property
    def broker_in_use(self) -> Broker | None:
        """The app's broker in this process, if it has been used."""
        return self._brokers.get(os.getpid())

    def _make_broker(self) -> Broker:
        here, url = process.current(), self.settings.broker_url
        if url == "auto" and here.directory is not None:
            problem, name = self._identity.find_confusion(), self._identity.name
            if problem is None:
                # What dies with the server needs no word from the disk.
                path = urllib.parse.quote(str(here.directory / self._identity.file_name))
                url = f"sqlite:///{path}.sqlite?synchronous=off"
            elif here.workers > 1:
                if here.is_first(f"{name}: {problem}"):
                    log.error("the channels of the app %r are refused: %s", name, problem, extra={"sse_problem": problem})
                raise BrokerUnavailable(problem, told=problem)
            else:
                text = "events of the app %r stay in this worker, and a reload loses them: %s"
                log.warning(text, name, problem, extra={"sse_problem": problem})
        broker = make_broker(self.settings, url, here.waker, here.timer.call_every_second)
        shown = redacted(url)
        log.info(
            "events travel by %s (SSE_BROKER_URL is %r)", shown, redacted(self.settings.broker_url), extra={"sse_broker": shown}
        )
        for heard in self.decorated.listeners:
            broker.emitter.on(heard.channel, heard.listener)
        return broker

    def _find_emitter(self) -> EventEmitter | None:
        broker = self.broker_in_use
        return broker.emitter if broker is not None else None


#: The installations whose broker is ready in this process.
_ready: Final[weakref.WeakSet[Installation]] = weakref.WeakSet()


@functools.cache
def _forget_in_children() -> None:
    os.register_at_fork(after_in_child=_forget)


def _forget() -> None:
    for installation in list(_ready):
        installation.ready = None
    _ready.clear()
