"""The gunicorn worker."""

from __future__ import annotations

import gc
import logging
import random
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, Final

import gevent
import gevent.event
from gunicorn.workers.ggevent import GeventWorker

from sseflask import config, identity, ledger, process
from sseflask.errors import InvalidSetting
from sseflask.stream import call_all

from . import directory
from .broadcaster import Broadcaster
from .collector import Collector
from .handover import StreamApplication
from .poller import Poller
from .server import ACCEPTS_PER_TURN, Server

log = logging.getLogger("sseflask.worker")

#: Seconds between two looks at how many streams there are: while they become more or fewer, while they end, and else.
WATCH_SECONDS: Final = 0.05
CALM_SECONDS: Final = 0.25
#: The part of `SSE_DRAIN_SECONDS` over which the ends of streams are spread; the rest is for the last ones to finish.
SPREAD = 0.9
#: Seconds after `SSE_DRAIN_SECONDS` for clients to close their side of what has ended; a slow one could lose its last bytes else.
LINGER_SECONDS = 0.5
#: The part of gunicorn's `graceful_timeout` for which tasks and resumable runs go on, and that at whose end those that are still
#: in their `finally` are said to have failed: gunicorn kills the worker at the end of it all.
WORK_ON: Final = 0.8
TELL: Final = 0.9

#: Seconds between two times that a worker writes its numbers down for the others.
NUMBERS_SECONDS: Final = 1.0


class StreamWorker(GeventWorker):
    """gunicorn's gevent worker, and a home for streams: it takes their sockets over and lets the requests' greenlets go.

    gunicorn makes it, given `-k sseflask.worker.StreamWorker` or `worker_class = "sseflask.worker.StreamWorker"`.

    Streams don't count against `worker_connections`. When the worker is told to stop (TERM, HUP, `max_requests`, a reload) it ends
    its streams cleanly, spread over `SSE_DRAIN_SECONDS`, and leaves as soon as it is empty. It looks gunicorn's settings
    up once, after the hook `post_worker_init`: what changes them later has no effect.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Makes a worker, in the arbiter, and the directory that all workers of the arbiter share.

        Args:
            args: What gunicorn makes a worker of.
            kwargs: What it makes one of by name.
        """
        self._bell: Any = None
        super().__init__(*args, **kwargs)
        self._servers: list[Server] = []
        self.server_class: Any = self._make_server  # type: ignore[misc]
        self._is_quitting = False
        # Greenlets that call the callbacks of streams that have ended.
        self._calling = 0
        self._directory: Path | None = None
        self._no_directory = ""
        try:
            self._directory = directory.of_this_arbiter(self.cfg.uid, self.cfg.gid)
        except OSError as error:
            self._no_directory = str(error)

    @property
    def alive(self) -> bool:
        """Whether the worker goes on. gunicorn sets it: a signal's handler, or a request that was the last of `max_requests`."""
        return self._alive

    @alive.setter
    def alive(self, alive: bool) -> None:  # pyright: ignore[reportIncompatibleVariableOverride]
        self._alive = alive
        if self._bell is not None:
            self._bell.send()

    def load_wsgi(self) -> None:
        """Loads the app, checks its settings against gunicorn's, and goes between the two.

        Raises:
            InvalidSetting: `SSE_DRAIN_SECONDS` isn't below `graceful_timeout`; or `SSE_BROKER_URL` is `"auto"`, there are several
                workers, and no place for what they share, or nothing that tells their apps apart.
        """
        # Before the app is imported: it may publish while it is.
        here = process.current()
        self._poller = Poller()
        here.waker = Broadcaster()
        here.workers = self.cfg.workers
        here.directory = self._directory
        # A hang-up is noticed in the hub itself, where nothing may wait.
        here.run = self._call_soon
        super().load_wsgi()
        here.has_loaded = True
        self._drain_seconds = max((settings.drain_seconds for settings in config.in_use), default=config.Settings().drain_seconds)
        if self._drain_seconds >= self.cfg.graceful_timeout:
            expected = f"below gunicorn's graceful_timeout, which is {self.cfg.graceful_timeout} s and kills what is left"
            raise InvalidSetting("SSE_DRAIN_SECONDS", self._drain_seconds, expected)
        logger = logging.getLogger("sseflask")
        if not logger.hasHandlers():
            # An app that has set up no logging: our lines go where gunicorn's go.
            logger.handlers = list(self.log.error_log.handlers)
            logger.setLevel(self.log.error_log.level or logging.INFO)
        if self._directory is None and any(settings.broker_url == "auto" for settings in config.in_use):
            if self.cfg.workers > 1:
                expected = (
                    f"a URL, such as sqlite:////var/lib/app/events.db: no file can be made for all workers: {self._no_directory}"
                )
                raise InvalidSetting("SSE_BROKER_URL", "auto", expected)
            text = "events stay in this worker, and a reload loses them: no file can be made for them: %s"
            log.warning(text, self._no_directory, extra={"sse_problem": self._no_directory})
        elif self.cfg.workers > 1 and self._directory is not None:
            identity.check()
        self._drain_began: float | None = None
        application: Any = self.wsgi
        streams = StreamApplication(application, self._poller)
        self.wsgi: Any = streams
        here.make_runner = streams.runner
        # What is loaded stays: with it out of the way a full collection among thousands of streams takes a fraction of the time.
        gc.collect()
        gc.freeze()

    def run(self) -> None:
        """Serves until the worker is told to stop, and until its streams have ended.

        Raises:
            SystemExit: It was told to stop at once (INT, QUIT); streams are cut.
        """
        self._told = gevent.event.Event()
        # What a signal's handler may touch.
        self._bell = gevent.get_hub().loop.async_()
        self._bell.start(self._told.set)
        look_up_once(self.cfg)
        gevent.spawn(self._drain_when_told)
        gevent.spawn(self._keep_numbers)
        try:
            super().run()
            self._wait_for_streams()
            call_all(process.current().on_exit)
        finally:
            # From here on nothing is left that could be told to stop.
            self._is_quitting = True
            ledger.current().leave()
            # What is frozen outlives the modules that it needs at its own end, and Python would complain of that in the log.
            gc.unfreeze()

    def handle_quit(self, sig: int, frame: FrameType | None) -> None:
        """Stops at once, the first time.

        After Ctrl+C a worker is told twice, by the terminal and by the arbiter: the second word would find Python at its own end,
        which shows as an error in the log.

        Args:
            sig: INT or QUIT.
            frame: Where it came.
        """
        if not self._is_quitting:
            self._is_quitting = True
            super().handle_quit(sig, frame)

    def _make_server(self, sock: Any, *, spawn: Any, **options: Any) -> Server:
        """What accepts connections at one of gunicorn's sockets; `spawn` is the pool in which requests run."""
        # Of several workers each takes one at a time, as with gunicorn's own, so that each has its share.
        accepts = 1 if self.cfg.workers > 1 else ACCEPTS_PER_TURN
        # What else gunicorn passes is for servers of another kind.
        tls = {name: value for name, value in options.items() if name == "ssl_context"}
        server = Server(sock, self.handle, spawn=spawn, accepts=accepts, **tls)
        self._servers.append(server)
        return server

    def _drain_when_told(self) -> None:
        collector, waiting = Collector(), 0
        while self.alive:
            before, waiting = waiting, len(self._poller)
            collector.tend(waiting)
            self._told.wait(WATCH_SECONDS if waiting != before else CALM_SECONDS)
        self._drain_began = began = time.monotonic()
        here = process.current()
        here.draining = True
        # gunicorn would see to it up to a second later. Who comes back at once finds another worker, or is refused.
        for server in self._servers:
            server.leave()
        # By itself: gunicorn's own waiting for requests may take all the time that there is.
        gevent.spawn(self._end_work, began)
        streams = list(here.streams)
        random.shuffle(streams)
        for index, stream in enumerate(streams):
            due = began + index * self._drain_seconds * SPREAD / len(streams)
            if (early := due - time.monotonic()) > 0:
                gevent.sleep(early)
            stream.drain()

    def _keep_numbers(self) -> None:
        while True:
            try:
                ledger.current().write()
            except Exception:
                logging.getLogger("sseflask.metrics").exception(
                    "this worker's numbers can't be taken", extra={"sse_worker": self.pid}
                )
            gevent.sleep(NUMBERS_SECONDS)

    def _call_soon(self, callbacks: list[Callable[[], object]]) -> None:
        """Calls the callbacks of a stream that has ended in a greenlet of their own; the worker waits for it when it leaves."""
        self._calling += 1
        gevent.spawn_raw(self._call, callbacks)

    def _call(self, callbacks: list[Callable[[], object]]) -> None:
        try:
            call_all(callbacks)
        finally:
            self._calling -= 1

    def _end_work(self, began: float) -> None:
        """Lets tasks and resumable runs go on for a while, ends what is left, and tells the end of what doesn't end then."""
        detached = process.current().detached
        for part in (WORK_ON, TELL):
            gevent.sleep(max(began + self.cfg.graceful_timeout * part - time.monotonic(), 0))
            for stream in list(detached):
                call_all([stream.stop if part == WORK_ON else stream.tell_end])

    def _wait_for_streams(self) -> None:
        began = self._drain_began if self._drain_began is not None else time.monotonic()
        here = process.current()
        streams, detached = here.streams, here.detached
        lingers_until = began + self._drain_seconds + LINGER_SECONDS
        while streams or detached or self._calling or (len(self._poller) and time.monotonic() < lingers_until):
            if time.monotonic() >= began + self.cfg.graceful_timeout:
                break
            self.notify()
            gevent.sleep(WATCH_SECONDS)
        if streams:
            text = "the worker leaves with %d streams whose generators didn't end in time (pid:%s)"
            log.warning(text, len(streams), self.pid, extra={"sse_streams": len(streams)})
        if self._calling:
            text = "the worker leaves while what was to be called at the end of %d streams still runs (pid:%s)"
            log.warning(text, self._calling, self.pid, extra={"sse_streams": self._calling})


def look_up_once(cfg: Any) -> None:
    """Gives gunicorn's configuration its settings as attributes.

    gunicorn looks some 25 up for each request, and each time Python finds no such attribute first: a tenth of the work of opening a
    stream. What changes them later has no effect.

    Args:
        cfg: gunicorn's; of a class that has some settings as properties, which stay what they are.
    """
    vars(cfg).update({name: setting.get() for name, setting in cfg.settings.items() if not hasattr(type(cfg), name)})
