"""Positions in a log, as clients hold them: the ids of events."""

from __future__ import annotations

import dataclasses
import re
from typing import Final

_ID: Final = re.compile(r"([0-9a-f]{12})-(0|[1-9][0-9]{0,18})(-end)?")
_RUN_ID: Final = re.compile(r"([0-9a-f]{32})-(0|[1-9][0-9]{0,18})(-end)?")


@dataclasses.dataclass(frozen=True, slots=True)
class EventId:
    """A position: what `Last-Event-ID` says.

    Attributes:
        epoch: Twelve hexadecimal digits that name one unbroken life of a broker's log.
        seq: The number of an entry, counted over all channels of that life; 0 is before the first.
        final: Whether the stream that sent it had ended with it, for good.
    """

    epoch: str
    seq: int
    final: bool = False

    def __str__(self) -> str:
        return f"{self.epoch}-{self.seq}-end" if self.final else f"{self.epoch}-{self.seq}"

    @classmethod
    def parse(cls, text: str) -> EventId | None:
        """Reads an id of our own form; None for any other text."""
        match = _ID.fullmatch(text)
        return cls(match[1], int(match[2]), match[3] is not None) if match else None


@dataclasses.dataclass(frozen=True, slots=True)
class RunId:
    """A position in a resumable run: the ids of its events, which only those know who have seen one.

    Attributes:
        run: 32 random hexadecimal digits that name the run.
        number: That of an event of the run; 0 is before the first.
        final: Whether the run had ended with it.
    """

    run: str
    number: int
    final: bool = False

    def __str__(self) -> str:
        return f"{self.run}-{self.number}-end" if self.final else f"{self.run}-{self.number}"

    @classmethod
    def parse(cls, text: str) -> RunId | None:
        """Reads an id of this form; None for any other text."""
        match = _RUN_ID.fullmatch(text)
        return cls(match[1], int(match[2]), match[3] is not None) if match else None
