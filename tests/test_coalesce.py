"""Text that comes faster than it is to be sent: joined, in order, whole, and never late."""

from __future__ import annotations

import threading
import time
from collections.abc import Collection, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sseflask import EventDecoder, InvalidSetting, ServerSentEvent, StreamError, current_stream, process
from sseflask.coalesce import BYTES_PER_CHARACTER, MOST_CHARACTERS, Coalescer
from sseflask.config import Settings, StreamOptions
from sseflask.event import encode_item
from sseflask.stream import Stream
from tests.live.process import wait_until
from tests.viewers import PATIENCE, Worker, make_worker, worker

__all__ = ["make_worker", "worker"]

SECONDS = 0.1
LARGE = 1024 * 1024

#: Neither line ends, which an event doesn't keep apart, nor what UTF-8 has no form for.
TEXTS = st.text(st.characters(exclude_characters="\r\n", exclude_categories=("Cs",)), max_size=8)
ITEMS = st.one_of(
    TEXTS,
    st.builds(lambda text, name: ServerSentEvent(text, event=name), TEXTS, st.sampled_from([None, "token", "thought"])),
    st.builds(lambda value: ServerSentEvent(value, event="token"), st.sampled_from([{}, [1], 5, True, 0.5, '"a"'])),
    st.builds(lambda value: {"n": value}, st.integers()),
    st.builds(lambda text: ServerSentEvent(text, id="own"), TEXTS),
    st.builds(lambda text: ServerSentEvent(text, comment="a comment"), TEXTS),
    st.just(ServerSentEvent(comment="only a comment")),
    st.just(b"bytes"),
)


def is_text(item: Any) -> bool:
    """Whether an item is a string, or an event that is nothing but text."""
    if isinstance(item, str):
        return True
    return (
        isinstance(item, ServerSentEvent)
        and item.data is not None
        and (item.id, item.retry, item.comment) == (None, None, None)
        and not (item.data[:1] and item.data[0] in '{["-0123456789')
        and item.data not in ("true", "false", "null")
    )


def name_of(item: Any) -> str | None:
    """The name of an item that is text."""
    return item.event if isinstance(item, ServerSentEvent) else None


def text_of(item: Any) -> str:
    """Its text."""
    return str(item.data) if isinstance(item, ServerSentEvent) else str(item)


def shape(items: list[Any], others: Collection[Any] = ()) -> list[Any]:
    """What a client can tell: each run of texts of one name as one text, the `others` as they are."""
    found: list[Any] = []
    for item in items:
        if any(item is other for other in others):
            found.append(encode_item(item))
        elif found and isinstance(found[-1], tuple) and found[-1][0] == name_of(item):
            found[-1] = (found[-1][0], found[-1][1] + text_of(item))
        else:
            found.append((name_of(item), text_of(item)))
    return found


class TestCoalescer:
    """The rules, with a clock of the test's own."""

    @given(st.lists(st.tuples(ITEMS, st.sampled_from([0.0, 0.01, 0.04, 0.1, 0.5]))))
    def test_whole_and_in_order(self, timed: list[tuple[Any, float]]) -> None:
        """Whatever comes whenever: nothing is lost, nothing moves, and no text waits longer than the interval."""
        coalescer = Coalescer(SECONDS, max_event_bytes=LARGE)
        now, since = 1000.0, None
        written: list[Any] = []
        for item, pause in timed:
            now += pause
            if coalescer.due is not None and coalescer.due <= now:
                # As its timer does.
                written += coalescer.take(coalescer.due)
                since = None
            ready = coalescer.add(item, now)
            written += ready
            if coalescer.due is None:
                since = None
            elif ready or since is None:
                since = now
            if coalescer.due is not None:
                assert since is not None and since <= coalescer.due <= since + SECONDS + 1e-9
            if not is_text(item):
                assert ready[-1] is item and coalescer.due is None
        written += coalescer.take(now)
        assert coalescer.due is None and coalescer.take(now) == []
        items = [item for item, _ in timed]
        others = [item for item in items if not is_text(item)]
        assert shape(written, others) == shape(items, others)

    @given(st.lists(TEXTS, min_size=1), st.integers(0, 3))
    def test_first_and_after_a_pause(self, texts: list[str], pauses: int) -> None:
        """The first text, and the first after a pause, is written as it is, at once."""
        coalescer = Coalescer(SECONDS, max_event_bytes=LARGE)
        now = 0.0
        for _ in range(pauses + 1):
            assert coalescer.add("first", now) == ["first"]
            for text in texts:
                assert coalescer.add(text, now + 0.01) == []
            assert coalescer.due == pytest.approx(now + SECONDS)
            assert shape(coalescer.take(coalescer.due)) == [(None, "".join(texts))]
            now += 3 * SECONDS

    def test_pace(self) -> None:
        """Texts that never stop are written once an interval."""
        coalescer = Coalescer(SECONDS, max_event_bytes=LARGE)
        written = 0
        for step in range(1000):
            now = step / 1000
            if coalescer.due is not None and coalescer.due <= now:
                written += len(coalescer.take(now))
            written += len(coalescer.add("x", now))
        assert 9 <= written <= 12

    def test_late(self) -> None:
        """Text that is overdue when the next comes, since nobody took it in time, doesn't wait any longer."""
        coalescer = Coalescer(SECONDS, max_event_bytes=LARGE)
        coalescer.add("a", 0)
        coalescer.add("b", 0.01)
        assert shape(coalescer.add("c", 5.0)) in ([(None, "bc")], [(None, "b")])
        assert coalescer.due is None or coalescer.due <= 5.0 + SECONDS

    def test_much(self) -> None:
        """What waits is bounded: by characters, and by what one event may have."""
        for most, limit in ((LARGE, MOST_CHARACTERS), (1024, 1024 // BYTES_PER_CHARACTER)):
            coalescer = Coalescer(60, max_event_bytes=most)
            coalescer.add("first", 0)
            written: list[Any] = []
            for _ in range(limit * 3 // 10):
                written += coalescer.add("\n" * 10, 0)
            assert len(written) >= 2
            assert all(len(encode_item(event)) <= most and len(event.data) <= limit for event in written)

    @pytest.mark.parametrize("length", [200, 2000])
    def test_long(self, length: int) -> None:
        """A text that can't be joined with others for its length is written in its place, at once, for its writer to answer for."""
        coalescer = Coalescer(60, max_event_bytes=1024)
        coalescer.add("first", 0)
        coalescer.add("waits", 0)
        ready = coalescer.add("x" * length, 0)
        assert shape(ready) == [(None, "waits" + "x" * length)] and len(ready) == 2
        assert coalescer.due is None

    @pytest.mark.parametrize("make", [str, lambda text: ServerSentEvent(text, event="token")])
    def test_unwritable(self, make: Any) -> None:
        """A text that has no UTF-8 form is refused by itself; what waits beside it stays as it is."""
        coalescer = Coalescer(60, max_event_bytes=LARGE)
        coalescer.add("first", 0)
        coalescer.add("before", 0)
        with pytest.raises(ValueError, match="surrogate"):
            [encode_item(ready) for ready in coalescer.add(make("\ud800"), 0)]
        coalescer.add("after", 0)
        assert "after" in "".join(text_of(event) for event in coalescer.take(0))

    @pytest.mark.parametrize("seconds", [0, -1, "soon", float("nan")])
    def test_option(self, seconds: Any) -> None:
        """The interval is a number above 0."""
        with pytest.raises(InvalidSetting, match="coalesce"):
            StreamOptions(coalesce=seconds)


class Sink:
    """A client's connection that takes all, until it is blocked."""

    def __init__(self) -> None:
        self.blocked_since: float | None = None
        self.written: list[bytes] = []
        self.is_over = False

    def write(self, data: bytes) -> bool:
        """Takes a frame."""
        self.written.append(data)
        return self.blocked_since is None

    def write_shared(self, frames: Any) -> bool:
        """Takes frames that many clients get."""
        return self.write(frames.data)

    def wait(self) -> None:
        """Waits until it isn't blocked."""
        wait_until(lambda: self.blocked_since is None or self.is_over, PATIENCE)

    def finish(self, last: bytes) -> None:
        """Ends."""
        self.written += [last] if last else []
        self.is_over = True

    def abort(self) -> None:
        """Ends now."""
        self.is_over = True

    @property
    def data(self) -> list[str | None]:
        """What its client has read."""
        return [event.data for event in EventDecoder().feed(b"".join(self.written))]

    @property
    def text(self) -> str:
        """The same, as one text."""
        return "".join(data or "" for data in self.data)


@pytest.fixture
def sink() -> Sink:
    """A connection."""
    return Sink()


@pytest.fixture
def stream(sink: Sink) -> Iterator[Stream]:
    """A stream that joins what comes within a twentieth of a second."""
    settings = Settings()
    made = Stream(sink, StreamOptions(coalesce=0.05).resolved(settings), settings, app=None, path="/", last_event_id=None)
    assert process.current().admit(made, settings) is None
    made.open()
    yield made
    made.sink_ended()


class TestStream:
    """A stream that joins text."""

    def test_due(self, stream: Stream, sink: Sink) -> None:
        """Text that waits is written when its time has come, though nothing follows."""
        for text in ("a", "b", "c"):
            stream.put(text)
        assert sink.data[0] == "a"
        wait_until(lambda: sink.text == "abc", PATIENCE)
        assert stream.events_sent == len(sink.data) and stream.bytes_sent == len(b"".join(sink.written))

    def test_blocked(self, stream: Stream, sink: Sink) -> None:
        """Text that is due while the client takes nothing is written when it does again, though nothing follows."""
        stream.put("a")
        stream.put("b")
        sink.blocked_since = time.monotonic()
        turns = process.current().flusher
        time.sleep(0.15)
        assert sink.data == ["a"], turns
        sink.blocked_since = None
        wait_until(lambda: sink.text == "ab", PATIENCE)

    def test_blocked_and_more(self, stream: Stream, sink: Sink) -> None:
        """A client that was slow for a moment gets text at the usual pace afterwards."""
        stream.put("a")
        stream.put("b")
        sink.blocked_since = time.monotonic()
        time.sleep(0.15)
        sink.blocked_since = None
        before = len(sink.data)
        for _ in range(100):
            stream.put("x")
            time.sleep(0.005)
        assert len(sink.data) >= before + 3, sink.data
        wait_until(lambda: sink.text == "ab" + "x" * 100, PATIENCE)

    @pytest.mark.parametrize("text", ["x" * (LARGE + 1), "\ud800"], ids=["too large", "no UTF-8"])
    def test_invalid(self, stream: Stream, sink: Sink, text: str) -> None:
        """A text that can't be sent is refused where it is put, and the others come through."""
        stream.put("a")
        stream.put("b")
        with pytest.raises(ValueError, match="invalid data"):
            stream.put(text)
        stream.put("c")
        stream.complete(None)
        assert sink.text == "abc" and sink.is_over

    @pytest.mark.parametrize("fails", [True, False])
    def test_end(self, stream: Stream, sink: Sink, fails: bool) -> None:
        """What waits at the end, or at an error, comes before its last event."""
        stream.put("a")
        stream.put("b")
        if fails:
            stream.fail(StreamError("no more"))
        else:
            stream.complete(None)
        assert sink.data[:2] == ["a", "b"] and len(sink.data) == (3 if fails else 2)
        assert sink.is_over

    @pytest.mark.parametrize("fails", [True, False])
    def test_end_while_it_is_due(self, stream: Stream, sink: Sink, monkeypatch: pytest.MonkeyPatch, fails: bool) -> None:
        """Text that another thread is about to write comes before an end that is decided meanwhile."""
        taken, go_on = threading.Event(), threading.Event()
        write = stream._write_item

        def write_late(item: Any, **options: Any) -> None:
            taken.set()
            assert go_on.wait(PATIENCE)
            write(item, **options)

        stream.put("a")
        stream.put("b")
        monkeypatch.setattr(Stream, "_write_item", lambda _, item, **options: write_late(item, **options))
        assert taken.wait(PATIENCE)
        monkeypatch.undo()
        ending = threading.Thread(target=lambda: stream.fail(StreamError("no more")) if fails else stream.complete(None))
        ending.start()
        ending.join(0.1)
        go_on.set()
        ending.join(PATIENCE)
        assert sink.data[:2] == ["a", "b"] and len(sink.data) == (3 if fails else 2)

    def test_hang_up(self, stream: Stream, sink: Sink) -> None:
        """What waits when the client hangs up is dropped, and the flusher doesn't mind."""
        stream.put("a")
        stream.put("b")
        stream.sink_ended()
        ticks: list[int] = []
        other = Stream(
            Sink(), StreamOptions(coalesce=0.05).resolved(Settings()), Settings(), app=None, path="/", last_event_id=None
        )
        other.on_close(lambda: ticks.append(1))
        process.current().admit(other, Settings())
        other.put("a")
        other.put("b")
        assert isinstance(other.sink, Sink)
        shown = other.sink
        wait_until(lambda: shown.text == "ab", PATIENCE)
        assert sink.data == ["a"]
        other.complete(None)
        other.sink_ended()

    def test_flusher_goes_on(
        self, stream: Stream, sink: Sink, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        """An error while one stream's text is written is logged, and the others' text is written all the same."""
        broken = Sink()
        monkeypatch.setattr(broken, "write", lambda data: 1 / 0)
        settings = Settings()
        other = Stream(broken, StreamOptions(coalesce=0.05).resolved(settings), settings, app=None, path="/", last_event_id=None)
        process.current().admit(other, settings)

        def is_held() -> bool:
            # Written at once, if the one before it was long ago.
            try:
                other.put("a")
            except ZeroDivisionError:
                return False
            return True

        wait_until(is_held, PATIENCE)
        wait_until(lambda: "could not be written" in caplog.text, PATIENCE)
        stream.put("a")
        stream.put("b")
        wait_until(lambda: sink.text == "ab", PATIENCE)
        other.sink_ended()


class TestView:
    """A view whose text is joined."""

    def test_tokens(self, worker: Worker) -> None:
        """Tokens that come fast: the first at once, the rest joined, all of them; others keep their place."""

        @worker.app.get("/")
        @worker.sse.stream(coalesce=0.1)
        def view() -> Iterator[Any]:
            yield "first "
            first.wait(PATIENCE)
            for number in range(60):
                yield f"{number} "
                if number == 30:
                    current_stream.send({"half": True}, event="note")
                    current_stream.send("sent ")
                time.sleep(0.005)
            yield "last"

        first = threading.Event()
        viewer = worker.watch()
        viewer.wait_for(None)
        assert viewer.data == ["first "]
        first.set()
        viewer.wait_for_end()
        expected = (
            "first " + "".join(f"{number} " for number in range(31)) + "sent " + "".join(f"{n} " for n in range(31, 60)) + "last"
        )
        assert viewer.text == expected
        assert 3 <= len(viewer.data) <= 40
        at = viewer.names.index("note")
        assert "".join(event.data or "" for event in viewer.events[:at]).endswith("30 ")
        assert (viewer.events[at + 1].data or "").startswith("sent ")

    def test_off(self, worker: Worker) -> None:
        """Without it each text is an event."""

        @worker.app.get("/")
        @worker.sse.stream
        def view() -> Iterator[Any]:
            yield from "abc"

        assert worker.watch().wait_for_end().data == ["a", "b", "c"]
