"""The producer of a generator's stream: runs the user's generator in a greenlet or thread, and a request context, of its own."""

from __future__ import annotations

import contextlib
import contextvars
import functools
import logging
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any, Final, Protocol

from flask import Response

from . import process
from .context import GeneratorContext, TaskContext
from .errors import BrokerUnavailable, NoActiveStream, StreamClosed
from .event import is_written
from .handoff import Failure, Handoff
from .state import CloseReason
from .stream import Stream, active

log = logging.getLogger("sseflask.stream")


class Runner(Protocol):
    """Runs a producer beside the request, with context variables of its own: none are set when it begins."""

    def start(self, producer: GeneratorProducer) -> None:
        """Begins `producer.run()` in a greenlet or thread."""

    def interrupt(self, producer: GeneratorProducer) -> None:
        """Raises what `producer.take_interruption()` gives where the generator waits, if that can be done."""

    def is_here(self) -> bool:
        """Whether the caller is that greenlet or thread."""
        ...

    def give_way(self, stream: Stream) -> bool:
        """Lets others run, if its stream's generator has run for long when it was last written to. Returns whether it did."""
        ...

    def stack(self) -> str:
        """Where the producer is, as lines of a traceback."""
        ...


class ThreadRunner:
    """Runs a producer in a daemon thread, which can't be interrupted: the generator learns of its end at its next yield.

    Where gevent has patched `threading`, that is a greenlet.
    """

    __slots__ = ("_thread",)

    def start(self, producer: GeneratorProducer) -> None:
        """Begins `producer.run()`."""
        # A greenlet that stands for a thread begins with the context variables of who starts it.
        run = functools.partial(contextvars.Context().run, producer.run)
        self._thread = threading.Thread(target=run, name="sseflask-stream", daemon=True)
        self._thread.start()

    def interrupt(self, producer: GeneratorProducer) -> None:
        """Does nothing."""

    def is_here(self) -> bool:
        """Whether the caller is the thread."""
        return self._thread.ident == threading.get_ident()

    def give_way(self, stream: Stream) -> bool:
        """Does nothing: threads take turns by themselves."""
        return False

    def stack(self) -> str:
        """Where the thread is, as lines of a traceback."""
        frame = sys._current_frames().get(self._thread.ident or 0)
        return "".join(traceback.format_stack(frame)) if frame is not None else "(unknown)"


#: What is said of a generator that was written for a plain response.
WRITTEN: Final = (
    "the generator of the stream at %s yields an event that is written already, and clients get all of it as data: yield "
    "the data alone, and ServerSentEvent(data, event=…, id=…) for a name or an id"
)

#: Seconds between two looks at a generator that goes on after its stream has ended.
DROP_SECONDS: Final = 0.01


class GeneratorProducer:
    """Yields a generator's items to its stream, and ends the stream as the generator ends."""

    __slots__ = ("_before_first", "_context", "_handoff", "_iterator", "_runner", "_running", "stream")

    def __init__(
        self, stream: Stream, iterator: Iterator[Any], handoff: Handoff | None, context: GeneratorContext | TaskContext | None
    ) -> None:
        """Stores what it needs; nothing runs.

        Args:
            stream: Where the items go.
            iterator: The user's.
            handoff: What can still turn an error into a response: the first sink of the stream that opens; None where none does.
            context: What the generator runs in; None outside any app.
        """
        self.stream = stream
        self._iterator = iterator
        self._handoff = handoff
        self._context = context
        self._runner: Runner | None = None
        self._running = False
        self._before_first: Callable[[], None] | None = None

    def start(self, runner: Runner, response: Response | None) -> bool:
        """Begins to run; False if the stream has ended before.

        Args:
            runner: What runs it.
            response: Gets the session's cookie if the generator changes the session before its first event; None where none opens.
        """
        self._runner = runner
        if (context := self._context) is not None and response is not None:
            self._before_first = lambda: context.save_session(response)
        if not self.stream.start(self):
            return False
        try:
            runner.start(self)
        except BaseException as error:
            # There are no more threads, perhaps. For its stream it has begun, and ends now.
            self._context = self._before_first = None
            self.discard()
            if self._handoff is None:
                self.stream.fail(error)
            else:
                # The error becomes the response.
                self.stream.end(CloseReason.ERROR)
            self.stream.producer_ended()
            raise
        return True

    def discard(self) -> None:
        """Closes a generator that never ran."""
        _close(self._iterator)

    def interrupt(self) -> None:
        """Raises the stream's interruption where the generator waits, if that can be done from outside."""
        if self._runner is not None:
            self._runner.interrupt(self)

    def resume(self) -> None:
        """It waits in its own greenlet. Once a worker has taken the socket over, no error can become a response any more."""
        if self.stream.sink is not self._handoff:
            self._handoff = None

    def is_here(self) -> bool:
        """Whether the generator's own greenlet or thread calls this."""
        return self._runner is not None and self._runner.is_here()

    def take_interruption(self) -> StreamClosed | None:
        """What is to be raised in the generator now; None unless it is running and that hasn't been raised."""
        return self.stream.take_interruption() if self._running else None

    def stack(self) -> str:
        """Where the generator is, as lines of a traceback."""
        return self._runner.stack() if self._runner is not None else "(not started)"

    def release(self) -> None:
        """Runs the app context's teardown in mid-stream."""
        if self._context is None:
            raise NoActiveStream("this stream's generator has no app context to release")
        self._context.release()

    def run(self) -> None:
        """Runs the generator to its end; the body of the greenlet or thread."""
        try:
            if self._context is None:
                self._produce()
            else:
                # What the generator raised is seen to inside; teardown functions get it from here.
                self._context.run(self._produce)
        except BaseException as error:
            if not self.stream.closed:
                # The contexts themselves could not be made.
                self._failed(error)
        finally:
            self._context = self._before_first = None
            self.stream.producer_ended()

    def _produce(self) -> None:
        token = active.set(self.stream)
        try:
            self._running = True
            try:
                result = self._pump()
            finally:
                # From here on it isn't the user's code that would be interrupted.
                self._running = False
                _close(self._iterator)
        except StreamClosed as closed:
            # The generator let it pass, as it should. One of its own making ends the stream as a return does.
            if not self.stream.closed:
                self.stream.complete(closed.reason)
        except BaseException as error:
            self._failed(error)
            raise
        else:
            self.stream.complete(result)
        finally:
            active.reset(token)

    def _pump(self) -> Any:
        """Moves items until the generator returns; what goes wrong with one is raised at its `yield`."""
        stream, iterator, runner = self.stream, self._iterator, self._runner
        assert runner is not None
        problem: BaseException | None = None
        while True:
            try:
                if problem is None:
                    item = next(iterator)
                else:
                    raised, problem = problem, None
                    item = _throw(iterator, raised)
            except StopIteration as stop:
                return stop.value
            if self._before_first is not None and not stream.closed:
                # It knows the response, which nothing here may keep.
                before_first, self._before_first = self._before_first, None
                before_first()
                if is_written(item) and process.current().is_first(WRITTEN):
                    log.warning(WRITTEN, stream.quoted_path, extra=stream.log_extra)
            try:
                if stream.closed:
                    stream.raise_interruption()
                    # It goes on all the same: dropped, without taking the processor from others.
                    time.sleep(DROP_SECONDS)
                    continue
                stream.put(item, joins=True)
                if runner.give_way(stream):
                    stream.goes_on()
            except BrokerUnavailable:
                # An event is lost, and none may follow it.
                raise
            except BaseException as error:
                # Also what others raise in its greenlet: a time-out of the generator's own, while its client doesn't read.
                problem = error

    def _failed(self, error: BaseException) -> None:
        stream, handoff = self.stream, self._handoff
        if stream.closed:
            text = "the generator of the stream at %s raised after the stream's end"
            log.error(text, stream.quoted_path, exc_info=error, extra=stream.log_extra)
        elif handoff is not None and handoff.claim_failure():
            failure = self._as_failure(error)
            stream.end(CloseReason.ERROR)
            handoff.fail(failure)
        else:
            log.error("the generator of the stream at %s raised", stream.quoted_path, exc_info=error, extra=stream.log_extra)
            stream.fail(error)

    def _as_failure(self, error: BaseException) -> Failure:
        """An error before the first event goes the way of any view's."""
        if self._context is None or not isinstance(error, Exception):
            return Failure(error=error)
        try:
            return Failure(response=self._context.answer(error))
        except Exception as propagated:
            return Failure(error=propagated)


def release() -> None:
    """Runs the teardown of the current generator's app context in mid-stream.

    Raises:
        NoActiveStream: It isn't called from inside a stream's generator.
    """
    stream = active.get(None)
    producer = stream.producer if stream is not None else None
    if not isinstance(producer, GeneratorProducer):
        raise NoActiveStream("release() works only inside the generator of an event stream")
    producer.release()


def _throw(iterator: Iterator[Any], error: BaseException) -> Any:
    throw = getattr(iterator, "throw", None)
    if throw is None:
        raise error
    return throw(error)


def _close(iterator: Iterator[Any]) -> None:
    close = getattr(iterator, "close", None)
    if close is not None:
        with contextlib.suppress(StreamClosed):
            close()
