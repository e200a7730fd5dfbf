"""`python -m sseflask listen URL` shows the events of any server's stream as a browser gets them; `doctor URL` examines it."""

from __future__ import annotations

import http.client
import random
import ssl
import sys
import time
import urllib.parse
from collections.abc import Iterator
from typing import Final

import click

from .address import Headers, UnusableAddress, header_of, headers_of, origin_of, parts_of, target_of
from .cli import Printer, as_json_option, count_option, decoder_at, doctor, ending_cleanly, last_event_id_option, say
from .config import redacted
from .decoder import EventDecoder

#: Seconds to wait for a connection, and then for the answer's head.
CONNECT_SECONDS: Final = 30.0
#: Milliseconds until the first attempt to reconnect, unless the server says otherwise; what most browsers take.
RETRY_MS: Final = 3000
#: Seconds between two attempts: at the least, and at the most unless the server asks for more.
SHORTEST_PAUSE: Final = 0.1
LONGEST_PAUSE: Final = 60.0
REDIRECTS: Final = (301, 302, 303, 307, 308)
MAX_REDIRECTS: Final = 20
PIECE_BYTES: Final = 64 * 1024


class Lost(Exception):
    """There is no connection, or it was lost: another attempt may do."""


class Refused(Exception):
    """The answer is no event stream: the standard forbids another attempt (WHATWG HTML 9.2.2)."""


class Ended(Exception):
    """The server says that there is no more to come: 204."""


class Connection:
    """One attempt at a stream, redirections included.

    Attributes:
        url: Where it is in the end, without a password.
    """

    def __init__(self, url: str, headers: Headers, last_event_id: str) -> None:
        """Connects, and reads the answer's head.

        Args:
            url: `http://…` or `https://…`.
            headers: Headers of the request besides those of an event stream; another origin doesn't get them.
            last_event_id: What the stream is to go on after; empty for nothing.

        Raises:
            Lost: Nobody answers.
            Refused: The answer is no event stream, or the URL can't be used.
            Ended: There is nothing to come.
        """
        self.url = redacted(url)
        self._connection: http.client.HTTPConnection | None = None
        self._answer: http.client.HTTPResponse | None = None
        try:
            self._open(url, headers, last_event_id)
        except UnusableAddress as error:
            self.close()
            raise Refused(str(error)) from error
        except BaseException:
            self.close()
            raise

    def pieces(self) -> Iterator[bytes]:
        """The stream's bytes as they come.

        Raises:
            Lost: The connection has broken off.
        """
        try:
            while self._answer is not None and (piece := self._answer.read1(PIECE_BYTES)):
                yield piece
        except (OSError, http.client.HTTPException) as error:
            raise Lost(f"the connection was lost: {_told(error)}") from error

    def close(self) -> None:
        """Hangs up."""
        for each in (self._answer, self._connection):
            if each is not None:
                each.close()

    def _open(self, url: str, headers: Headers, last_event_id: str) -> None:
        own = origin_of(url)
        for _ in range(MAX_REDIRECTS):
            self.url = redacted(url)
            self._answer = answer = self._ask(url, headers if origin_of(url) == own else (), last_event_id)
            if answer.status not in REDIRECTS or not answer.headers["Location"]:
                break
            url = urllib.parse.urljoin(url, answer.headers["Location"])
            self.close()
        else:
            raise Refused(f"it redirects more than {MAX_REDIRECTS} times")
        if answer.status == 204:
            raise Ended
        if answer.status != 200:
            raise Refused(f"it answers {answer.status} {answer.reason}")
        if answer.headers.get_content_type() != "text/event-stream":
            raise Refused(f"it answers with {answer.headers['Content-Type'] or 'no type'}, not with text/event-stream")

    def _ask(self, url: str, headers: Headers, last_event_id: str) -> http.client.HTTPResponse:
        parts = parts_of(url)
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        try:
            self._connection = connection = kind(parts.hostname or "", parts.port, timeout=CONNECT_SECONDS)
            connection.connect()
            sock = connection.sock
            connection.putrequest("GET", target_of(parts))
            for name, value in headers_of(parts, headers, last_event_id):
                connection.putheader(name, value.encode())
            connection.endheaders()
            answer = connection.getresponse()
            # From here on silence is no fault.
            sock.settimeout(None)
        except (ssl.SSLCertVerificationError, http.client.InvalidURL, ValueError) as error:
            raise Refused(_told(error)) from error
        except (OSError, http.client.HTTPException) as error:
            raise Lost(f"can't connect: {_told(error)}") from error
        return answer


def _told(error: Exception) -> str:
    if isinstance(error, http.client.IncompleteRead):
        return "it ended before its end was told"
    return (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__


def pause(retry_ms: int | None, failures: int) -> float:
    """Seconds until the next attempt: longer with each that failed, and not the same for all who lost a server together.

    Args:
        retry_ms: What the server asked for last.
        failures: Attempts in a row that brought no event.
    """
    base = max((RETRY_MS if retry_ms is None else retry_ms) / 1000, SHORTEST_PAUSE)
    longest = max(base, LONGEST_PAUSE)
    return min(base * 2.0 ** min(failures, 20), longest) * random.uniform(1.0, 1.25)


@click.group()
def main() -> None:
    """Event streams from the command line. An app's own channels are reached by `flask sse`."""


main.add_command(doctor)


@main.command()
@click.argument("url")
@as_json_option
@last_event_id_option
@click.option("--header", "headers", multiple=True, metavar="'NAME: VALUE'", help="A header of the request; may be repeated.")
@count_option
@click.option("--once", is_flag=True, help="End with the stream; don't reconnect.")
@ending_cleanly
def listen(url: str, as_json: bool, last_event_id: str | None, headers: tuple[str, ...], count: int | None, once: bool) -> None:
    """Shows the events of the stream at URL, of any server.

    Each event is a line: the time, the event's name, its id and its data, control characters as escapes. With --json it is an
    object: time, event, id, data and, if the event has one, retry. What else there is to tell goes to the standard error.

    It reconnects as a browser does: with the last event's id, after the time that the server asks for, less and less often when
    nothing comes. A server ends that by answering 204 (exit code 0), or anything else that is no event stream (exit code 1).
    Proxies named in the environment aren't used.
    """
    try:
        fields = [header_of(text) for text in headers]
        parts_of(url)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    printer = Printer(as_json=as_json, count=count)
    decoder = decoder_at(last_event_id)
    failures = 0
    while True:
        shown = printer.shown
        try:
            _show(url, fields, decoder, printer)
            reason = "the stream has ended"
        except Ended:
            say("the server says that there is no more to come (204)")
            return
        except Refused as error:
            raise click.ClickException(f"{redacted(url)}: {error}") from error
        except Lost as error:
            if once:
                raise click.ClickException(f"{redacted(url)}: {error}") from error
            reason = str(error)
        if printer.is_done or once:
            return
        seconds = pause(decoder.retry, failures)
        failures = 0 if printer.shown > shown else failures + 1
        say(f"{reason}; connecting again in {seconds:.1f} s")
        time.sleep(seconds)


def _show(url: str, headers: Headers, decoder: EventDecoder, printer: Printer) -> None:
    """Shows a stream up to its end, or as many events as were asked for."""
    connection = Connection(url, headers, decoder.last_event_id)
    try:
        after = f" after {decoder.last_event_id}" if decoder.last_event_id else ""
        say(f"listening to {connection.url}{after}")
        decoder.reset()
        dropped = decoder.dropped
        for piece in connection.pieces():
            for event in decoder.feed(piece):
                printer.show(event)
                if printer.is_done:
                    return
            if decoder.dropped > dropped:
                say(f"{decoder.dropped - dropped} events were too large, and are not shown")
                dropped = decoder.dropped
    finally:
        connection.close()


if __name__ == "__main__":
    sys.exit(main(prog_name="python -m sseflask"))
