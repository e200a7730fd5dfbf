"""What the decorators of one `SSE` were given, and which of its apps has what of it.

A factory decorates once for each app that it makes, before it installs the extension or after it; a module decorates once for all.
No app may get another one's rule in place of its own.
"""

from __future__ import annotations

import dataclasses
import types
import weakref
from collections.abc import Callable
from typing import Any

from .callback import name_of
from .emitter import EventEmitter, Listener

Function = Callable[..., Any]


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Heard:
    """A listener.

    Attributes:
        channel: Its channel's name.
        listener: The function.
        age: How many apps there had been when it was decorated.
    """

    channel: str
    listener: Listener
    age: int

    def replaces(self, other: Heard) -> bool:
        """Whether it is what the other one was, made by a later call of the same factory."""
        return self.age > other.age and self.channel == other.channel and are_alike(self.listener, other.listener)


class OfApp:
    """What one app has.

    Attributes:
        rules: Its functions, by the decorator's name.
        own: Those decorators whose function no other app had before it.
        listeners: What hears its channels.
        own_listeners: Those that no other app had before it.
        find_emitter: Gives who listens to the app's channels in this process, once there is somebody.
    """

    def __init__(self, find_emitter: Callable[[], EventEmitter | None]) -> None:
        """Begins with nothing."""
        self.rules: dict[str, Function] = {}
        self.own: set[str] = set()
        self.listeners: list[Heard] = []
        self.own_listeners: set[Heard] = set()
        self.find_emitter = find_emitter

    def add(self, heard: Heard) -> None:
        """Has a listener hear the app's channel too; its own, unless it has an older one that a factory has made anew."""
        if not self.has_own_before(heard):
            self.own_listeners.add(heard)
        self.listeners.append(heard)
        # A broker that is made later finds the listener then.
        if (emitter := self.find_emitter()) is not None:
            emitter.on(heard.channel, heard.listener)

    def hand_on(self, heard: Heard) -> None:
        """Gives a listener up that was meant for the next app."""
        self.listeners.remove(heard)
        if (emitter := self.find_emitter()) is not None:
            emitter.off(heard.channel, heard.listener)

    def has_own_before(self, heard: Heard) -> bool:
        """Whether it has one of its own that this is a later form of."""
        return any(heard.replaces(other) for other in self.own_listeners)


class Decorated:
    """What the decorators of one `SSE` were given."""

    def __init__(self) -> None:
        """Begins with nothing."""
        self._rules: dict[str, Function] = {}
        #: What was decorated since the last app was installed, and guards none yet.
        self._waiting: set[str] = set()
        self._listeners: list[Heard] = []
        self._count = 0
        self._apps: list[weakref.ref[OfApp]] = []

    def decorate(self, name: str, function: Function) -> None:
        """Takes a function in, for apps that have none of their own and for those to come.

        Args:
            name: The decorator's.
            function: What it was given.

        Raises:
            RuntimeError: The last app was installed with another function, and it can't be told which of the two it is to have.
        """
        takers = [app for app in self._alive() if name not in app.own]
        for app in takers:
            known = app.rules.get(name)
            if known is not None and known is not function and not are_alike(known, function):
                raise RuntimeError(
                    f"@sse.{name} of {name_of(function)}: an app was installed with {name_of(known)}, which other apps have too. "
                    "Decorate before the extension is installed, or give each app an SSE of its own"
                )
        for app in takers:
            app.rules[name] = function
            app.own.add(name)
        self._rules[name] = function
        (self._waiting.discard if takers else self._waiting.add)(name)

    def find_waiting(self, name: str) -> Function | None:
        """What was decorated last, if no app has it; else None."""
        return self._rules[name] if name in self._waiting else None

    def listen(self, channel: str, listener: Listener) -> None:
        """Takes a listener in, for all apps.

        Args:
            channel: Its channel's name.
            listener: The function.
        """
        heard = Heard(channel, listener, self._count)
        self._listeners.append(heard)
        for app in self._alive():
            app.add(heard)

    def give(self, find_emitter: Callable[[], EventEmitter | None]) -> OfApp:
        """What an app has that is installed now.

        Args:
            find_emitter: Gives who listens to its channels in this process, once there is somebody.
        """
        earlier, app = self._alive(), OfApp(find_emitter)
        for heard in [heard for heard in self._listeners if heard.age == self._count]:
            for other in earlier:
                if heard in other.listeners and other.has_own_before(heard):
                    other.hand_on(heard)
        self._listeners = [heard for heard in self._listeners if not any(other.replaces(heard) for other in self._listeners)]
        app.listeners = list(self._listeners)
        app.own_listeners = {heard for heard in app.listeners if not any(heard in other.listeners for other in earlier)}
        app.rules, app.own = dict(self._rules), set(self._waiting)
        self._waiting.clear()
        self._count += 1
        self._apps = [*(known for known in self._apps if known() is not None), weakref.ref(app)]
        return app

    def _alive(self) -> list[OfApp]:
        return [app for known in self._apps if (app := known()) is not None]


def are_alike(one: Function, other: Function) -> bool:
    """Whether two functions were made by two calls of the same function, as those within an app factory are."""
    return (
        isinstance(one, types.FunctionType)
        and isinstance(other, types.FunctionType)
        and one.__code__ is other.__code__
        and "<locals>" in one.__qualname__
    )
