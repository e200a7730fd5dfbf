"""A process that publishes numbers with a `Publisher`, and says after each one how many the broker has."""

from __future__ import annotations

import itertools
import sys
import time

from sseflask import BrokerUnavailable, Publisher


def main(url: str, channel: str, series: str) -> None:
    """Publishes numbers of a series to a channel, until the process is ended."""
    with Publisher(url) as publisher:
        for n in itertools.count():
            while True:
                try:
                    publisher.publish({"series": series, "n": n}, channel=channel, token=f"{series}-{n}")
                    break
                except BrokerUnavailable:
                    time.sleep(0.2)
            sys.stdout.write(f"{n + 1}\n")
            sys.stdout.flush()
            time.sleep(0.1)


if __name__ == "__main__":
    main(*sys.argv[1:])
