"""Which app is which: what the workers of one server tell apps apart by, where they share a file for each."""

from __future__ import annotations

import gc
import hashlib
import re
import weakref
from typing import Final

from flask import Flask

from . import process
from .config import Settings
from .errors import InvalidSetting

#: What each app that others can't be told from needs one of.
REMEDIES: Final = "an SSE_BROKER_PREFIX of its own, the same in all workers, or an SSE_BROKER_URL of its own"


class Identity:
    """What an app is known by: its import name and its `SSE_BROKER_PREFIX`.

    Nothing else of it is the same in all workers, least of all when it was made: apps that are made when they are first asked for
    are made in another order in each worker.

    Attributes:
        app: The app, for as long as it lives.
        name: Its import name.
        prefix: Its `SSE_BROKER_PREFIX`.
        is_late: Whether it was made when its server had loaded what it serves.
    """

    def __init__(self, app: Flask, settings: Settings) -> None:
        """Makes it known to the others.

        Args:
            app: The app.
            settings: Its settings.
        """
        self.app = weakref.ref(app)
        self.name = app.import_name
        self.prefix = settings.broker_prefix
        self.is_late = process.has_loaded()
        self._has_swept = False
        if settings.broker_url == "auto":
            _on_auto[id(self)] = self

    @property
    def file_name(self) -> str:
        """A name for the app's file, the same in all processes of a server, and another one for each identity."""
        plain = re.sub(r"\W+", "-", self.name)[:40].strip("-") or "app"
        # What people read of it may be the same for two; no prefix has a NUL.
        digest = hashlib.sha256(f"{self.prefix}\0{self.name}".encode(errors="surrogatepass")).hexdigest()
        return f"{plain}-{digest[:16]}"

    def find_confusion(self) -> str | None:
        """Why another worker could take another app for this one; None if none can."""
        if self.is_late and self.prefix == Settings().broker_prefix:
            return f"it was made while the server ran, and other workers can't tell it from others that are: give it {REMEDIES}"
        if self._rivals() and not self._has_swept:
            # One that nobody has any more may be there still.
            self._has_swept = True
            gc.collect()
        if self._rivals():
            return f"another app here has its import name and its SSE_BROKER_PREFIX: give each {REMEDIES}"
        return None

    def _rivals(self) -> list[Identity]:
        """What could be taken for it. An app that was there from the start isn't confused by those that come later."""
        own = self.app()
        if own is None:
            return []
        return [
            other
            for other in _all_on_auto()
            if (other.name, other.prefix) == (self.name, self.prefix)
            and other.app() not in (own, None)
            and (self.is_late or not other.is_late)
        ]


def check() -> None:
    """Checks that several workers can tell the apps that they have loaded from one another.

    Raises:
        InvalidSetting: Two have the same import name and the same `SSE_BROKER_PREFIX`, and `"auto"` is the broker of both.
    """
    for identity in _all_on_auto():
        problem = identity.find_confusion()
        if problem is not None:
            raise InvalidSetting("SSE_BROKER_URL", "auto", f"a URL for the app {identity.name!r}: {problem}")


#: The apps of this process whose broker is `"auto"`, by the number of the object.
_on_auto: Final[weakref.WeakValueDictionary[int, Identity]] = weakref.WeakValueDictionary()


def _all_on_auto() -> list[Identity]:
    # The list of references is made in one step, whatever other threads install meanwhile.
    return [identity for known in _on_auto.valuerefs() if (identity := known()) is not None]
