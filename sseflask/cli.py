"""The commands `flask sse publish|listen|channels|stats|doctor`, and how a command shows events and ends."""

from __future__ import annotations

import contextlib
import datetime
import errno
import functools
import json
import os
import select
import signal
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Final, NoReturn, ParamSpec

import click
from flask import Flask, current_app, request
from flask.cli import AppGroup

from .brokers import SharedBroker
from .config import redacted
from .decoder import EventDecoder
from .emitter import RESERVED
from .errors import BrokerUnavailable, InvalidChannel, InvalidEvent, InvalidSetting, InvalidSubscription
from .event import ServerSentEvent
from .stream import is_final_id

if TYPE_CHECKING:
    from .installation import Installation

P = ParamSpec("P")

#: The exit code after Ctrl+C, as shells have it: 128 and the signal's number.
INTERRUPTED: Final = 130
#: Seconds until a stream that ended by itself is opened again.
REOPEN_SECONDS: Final = 1.0


class Printer:
    """Shows events on the standard output, one line or one JSON object each, at once.

    Attributes:
        shown: Events shown so far; those that only tell of the stream itself don't count.
    """

    def __init__(self, *, as_json: bool, count: int | None) -> None:
        """Stores what it needs.

        Args:
            as_json: Whether each event is one JSON object: `time`, `event`, `id`, `data` and, if the event has one, `retry`.
            count: Events after which it is enough; None for no end.
        """
        self.shown = 0
        self._as_json = as_json
        self._count = count

    @property
    def is_done(self) -> bool:
        """Whether as many events were shown as were asked for."""
        return self._count is not None and self.shown >= self._count

    def show(self, event: ServerSentEvent) -> None:
        """Shows an event, and counts it."""
        self.shown += 1
        click.echo(self._line(event))

    def remark(self, event: ServerSentEvent) -> None:
        """Shows an event that tells of the stream itself: among the others as JSON, else beside them, on the standard error."""
        click.echo(self._line(event), err=not self._as_json)

    def _line(self, event: ServerSentEvent) -> str:
        now = datetime.datetime.now().astimezone()
        name, data = event.event or "message", event.data or ""
        if not self._as_json:
            shown = visible(data).replace("\n", "\n    ")
            return f"{now:%H:%M:%S}.{now.microsecond // 1000:03} {visible(name)} {visible(event.id or '-')} {shown}"
        fields: dict[str, Any] = {"time": now.isoformat(timespec="milliseconds"), "event": name, "id": event.id, "data": data}
        if event.retry is not None:
            fields["retry"] = event.retry
        return json.dumps(fields, ensure_ascii=False)


def visible(text: str) -> str:
    """A text that moves no terminal's cursor: control characters but line ends and tabs are written as escapes."""
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() or each in "\n\t" else ascii(each)[1:-1] for each in text)


def say(text: str) -> None:
    """Tells what goes on, on the standard error."""
    click.echo(visible(text), err=True)


def decoder_at(last_event_id: str | None) -> EventDecoder:
    """A decoder that goes on after an event.

    Raises:
        InvalidEvent: No event can have this id.
    """
    decoder = EventDecoder()
    if last_event_id:
        decoder.last_event_id = ServerSentEvent(id=last_event_id).id or ""
    return decoder


def ending_cleanly(command: Callable[P, None]) -> Callable[P, None]:
    """Decorates a command: how it ends, other than with its work done, is a message and an exit code, never a traceback.

    Ctrl+C ends it with 130. It also ends, with 0, when nobody reads its output any more (`| head -1`), and at once, not with the
    next line that it writes. What is wrong with its arguments ends it with 2, a broker that is unavailable with 1.
    """

    @functools.wraps(command)
    def ending(*args: P.args, **kwargs: P.kwargs) -> None:
        reader = _Reader()
        try:
            reader.watch()
            command(*args, **kwargs)
        except KeyboardInterrupt:
            sys.exit(INTERRUPTED)
        except BrokenPipeError:
            _leave()
        except (InvalidChannel, InvalidEvent, InvalidSetting, InvalidSubscription) as error:
            raise click.UsageError(str(error)) from error
        except BrokerUnavailable as error:
            hint = (
                "; it may have the event all the same: publish it again with the same --token" if error.outcome == "unknown" else ""
            )
            raise click.ClickException(f"{error}{hint}") from error
        finally:
            reader.unwatch()

    return ending


class _Reader:
    """Who reads the standard output, if that is a pipe."""

    def __init__(self) -> None:
        self._before: Any = None

    def watch(self) -> None:
        """From here on, when the reader leaves, the main thread gets a `BrokenPipeError` wherever it waits."""
        try:
            output = sys.stdout.fileno()
        except (OSError, ValueError, AttributeError):
            # Something of a test's, or closed.
            return
        if stat.S_ISFIFO(os.fstat(output).st_mode) and threading.current_thread() is threading.main_thread():
            # A signal that means nothing by itself: no handler, no effect.
            self._before = signal.signal(signal.SIGURG, _tell_of_leaving)
            threading.Thread(target=_wait_for_leaving, args=(output,), name="sseflask-reader", daemon=True).start()

    def unwatch(self) -> None:
        """From here on it doesn't matter."""
        if self._before is not None:
            signal.signal(signal.SIGURG, self._before)
            self._before = None


def _wait_for_leaving(output: int) -> None:
    poll = select.poll()
    # Nothing is asked for: what is told all the same is the end.
    poll.register(output, 0)
    poll.poll()
    os.kill(os.getpid(), signal.SIGURG)


def _tell_of_leaving(*_: object) -> NoReturn:
    raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))


def _leave() -> NoReturn:
    """Ends without a word: what is still in the output's buffer is for nobody."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(0)


def install(app: Flask) -> None:
    """Gives an app the commands `flask sse …`; not if it has commands of this name."""
    if commands.name not in app.cli.commands:
        app.cli.add_command(commands)


commands = AppGroup("sse", help="Publish to this app's channels, and look into them.")

as_json_option = click.option("--json", "as_json", is_flag=True, help="Write JSON, for programs.")
count_option = click.option("--count", type=click.IntRange(min=1), metavar="N", help="End after so many events.")
last_event_id_option = click.option("--last-event-id", metavar="ID", help="Go on after the event that has this id.")


@commands.command()
@click.argument("channel")
@click.argument("data", required=False)
@click.option("--event", metavar="NAME", help="The event's name. Without it --end takes SSE_END_EVENT.")
@click.option("--id", "event_id", metavar="ID", help="An id of your own, 1 to 256 bytes. Without it the broker gives one.")
@click.option("--retry", type=click.IntRange(min=0), metavar="MS", help="Milliseconds that clients wait before they reconnect.")
@click.option("--end", is_flag=True, help="Close the channel. DATA, which may be left out, is what its last event carries.")
@click.option("--token", metavar="TOKEN", help="Name this publish: a second one with the same token within 60 s stores nothing.")
@ending_cleanly
def publish(
    channel: str, data: str | None, event: str | None, event_id: str | None, retry: int | None, end: bool, token: str | None
) -> None:
    """Publishes DATA to CHANNEL, and prints the event's id.

    With - as DATA, it is what the standard input has, to its end, without the last line end.
    """
    installation, _ = _shared()
    if data is None and not end:
        raise click.UsageError("Missing argument 'DATA'; - reads the standard input, and --end needs none.")
    if end and (event_id is not None or retry is not None):
        raise click.UsageError("--end can't be used with --id or --retry: the end event's id says that it is one.")
    text: str | bytes = data or ""
    if data == "-":
        text = sys.stdin.buffer.read().removesuffix(b"\n").removesuffix(b"\r")
    sse = installation.sse
    if end:
        click.echo(sse.channel(channel, end_event=event).close(text, token=token))
    else:
        click.echo(sse.publish(text, channel=channel, event=event, id=event_id, retry=retry, token=token))


@commands.command()
@click.argument("channels", nargs=-1, required=True)
@as_json_option
@last_event_id_option
@count_option
@click.option("--verbose", is_flag=True, help="Show the events that open a stream, too, as resets are shown.")
@ending_cleanly
def listen(channels: tuple[str, ...], as_json: bool, last_event_id: str | None, count: int | None, verbose: bool) -> None:
    """Shows what is published to CHANNELS, until they are closed.

    Each event is a line: the time, the event's name, its id and its data, control characters as escapes. With --json it is an
    object: time, event, id, data and, if the event has one, retry.

    Resets, and what else there is to tell, go to the standard error; with --json resets stand among the events.
    """
    installation, broker = _shared()
    printer = Printer(as_json=as_json, count=count)
    decoder = decoder_at(last_event_id)
    while True:
        for event in _events(installation, broker, channels, decoder):
            if event.event == installation.settings.open_event:
                if verbose:
                    printer.remark(event)
            elif event.event == installation.settings.reset_event:
                printer.remark(event)
            else:
                printer.show(event)
                if printer.is_done:
                    return
        if is_final_id(decoder.last_event_id):
            say("closed")
            return
        say("the stream has ended, and is opened again where it was")
        time.sleep(REOPEN_SECONDS)


@commands.command()
@as_json_option
@ending_cleanly
def channels(as_json: bool) -> None:
    """Lists the channels that have streams, in all processes.

    Each is a line: how many streams it has, and its name. With --json all are one object, of counts by name.
    """
    _, broker = _shared()
    counts = {name: count for name, count in sorted(broker.store.counts().items()) if not name.startswith(RESERVED)}
    if as_json:
        click.echo(json.dumps(counts, ensure_ascii=False))
        return
    width = max([len(str(count)) for count in counts.values()], default=0)
    for name, count in counts.items():
        click.echo(f"{count:>{width}} {name}")


@commands.command()
@click.pass_context
@as_json_option
@ending_cleanly
def stats(context: click.Context, as_json: bool) -> None:
    """Tells how the broker is, and counts streams and channels.

    Its URL without a password, the id of its last event, what is wrong with it, and how many streams, and channels that have some,
    there are in all processes together. The exit code is 1 if it can't be reached.
    """
    _, broker = _shared()
    facts: dict[str, Any] = {"url": broker.store.url, "position": None, "trouble": None, "streams": None, "channels": None}
    try:
        counts = broker.store.counts()
        facts |= {"position": str(broker.position), "streams": sum(counts.values()), "channels": len(counts)}
    except BrokerUnavailable as error:
        facts["trouble"] = str(error)
    if as_json:
        click.echo(json.dumps(facts, ensure_ascii=False))
    else:
        for name, value in facts.items():
            click.echo(f"{name:<8} {'-' if value is None else value}")
    if facts["trouble"] is not None:
        context.exit(1)


@commands.command(with_appcontext=False)
@click.pass_context
@click.argument("url")
@click.option(
    "--seconds",
    type=click.FloatRange(min=0, min_open=True),
    default=20.0,
    show_default=True,
    metavar="SECONDS",
    help="How long to watch.",
)
@click.option("--header", "headers", multiple=True, metavar="'NAME: VALUE'", help="A header of the request; may be repeated.")
@click.option("--origin", metavar="ORIGIN", help="Ask as a page of this origin would, and tell whether CORS lets it read.")
@as_json_option
@ending_cleanly
def doctor(context: click.Context, url: str, seconds: float, headers: tuple[str, ...], origin: str | None, as_json: bool) -> None:
    """Examines the stream at URL, of any server.

    It says what it finds through whatever stands in front: buffering, compression, idle limits, headers, HTTP version, redirects,
    CORS, reconnecting. It watches for longer than the keepalives' interval, 15 s; to meet idle limits, give it --seconds 120.

    The exit code is 1 if something doesn't work, else 0.
    """
    # Only here: an app's server imports this module, before gevent has patched what they are made of.
    from .address import header_of
    from .doctor import has_failed, judge, lines
    from .probe import observe

    say(f"watching {redacted(url)} for {seconds:g} s")
    try:
        seen = observe(url, seconds=seconds, headers=[header_of(text) for text in headers], origin=origin)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    findings = judge(seen)
    if as_json:
        click.echo(json.dumps({"url": seen.url, "findings": [finding.to_dict() for finding in findings]}, ensure_ascii=False))
    else:
        for line in lines(findings):
            click.echo(visible(line))
    if has_failed(findings):
        context.exit(1)


def _shared() -> tuple[Installation, SharedBroker]:
    """The app's installation, and its broker in this process.

    Raises:
        UsageError: The app's events don't leave its own processes.
    """
    installation: Installation = current_app.extensions["sse"]
    url = installation.settings.broker_url
    broker = installation.broker if url not in ("auto", "memory://") else None
    if not isinstance(broker, SharedBroker):
        raise click.UsageError(
            f"SSE_BROKER_URL is {redacted(url)!r}: the channels live in the server's own processes, whose memory can't be reached "
            "from here. Set it to sqlite:///PATH (one host) or redis://HOST:PORT/DB, for the server and for this command."
        )
    return installation, broker


def _events(
    installation: Installation, broker: SharedBroker, channels: tuple[str, ...], decoder: EventDecoder
) -> Iterator[ServerSentEvent]:
    """What a client of these channels gets that comes back with the decoder's last event id.

    Raises:
        BrokerUnavailable: They can't be read now.
    """
    position = broker.position
    status = ""

    def start_response(given: str, *_: object) -> Callable[[bytes], object]:
        nonlocal status
        status = given
        return lambda _: None

    # As WSGI has it: the UTF-8 bytes, shown as Latin-1.
    header = decoder.last_event_id.encode().decode("latin-1")
    decoder.reset()
    with current_app.test_request_context(headers={"Last-Event-ID": header} if header else {}):
        # The app's limits on a stream's life are for browsers, which come back.
        response = installation.sse.subscribe(*channels, timeout=None, max_age=None)
        environ = request.environ
    body = iter(response(environ, start_response))
    is_open = False
    try:
        for piece in body:
            if not status.startswith("200"):
                raise BrokerUnavailable(f"no stream can be had: {status} {piece.decode(errors='replace')}")
            if not is_open:
                is_open = True
                say(f"listening to {', '.join(channels)} on {broker.store.url} from {decoder.last_event_id or position}")
            yield from decoder.feed(piece)
    finally:
        response.close()
