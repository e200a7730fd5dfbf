"""One `SSE` and several apps: each has the rule, the client key and the listeners that are meant for it."""

from __future__ import annotations

from typing import Any, Final

import pytest
from flask import Flask

from sseflask import SSE
from sseflask.decorated import are_alike
from sseflask.response import find_client

ORDERS: Final = pytest.mark.parametrize("decorates_first", [True, False], ids=["decorated first", "installed first"])


def install(sse: SSE, name: str = "app") -> Flask:
    """An app with the extension and its routes."""
    app = Flask(name)
    app.config.update(SECRET_KEY="x", SSE_BROKER_URL="memory://")
    app.register_blueprint(sse, url_prefix="/events")
    return app


def may_publish(app: Flask) -> bool:
    """Whether anyone may publish."""
    return app.test_client().post("/events/news", json={"data": 1}).status_code != 403


def make(sse: SSE, *, opens: bool, decorates_first: bool) -> Flask:
    """An app factory with a rule of its own for each app."""

    def decorate() -> None:
        @sse.authorize
        def may(action: str, channel: str) -> bool:
            return opens

    if decorates_first:
        decorate()
    app = install(sse)
    if not decorates_first:
        decorate()
    return app


class TestRules:
    """`sse.authorize`."""

    @ORDERS
    def test_factory(self, decorates_first: bool) -> None:
        """Each app of a factory keeps its own rule, whatever the later ones have."""
        sse = SSE()
        opens = [False, True, False, True]
        apps = [make(sse, opens=each, decorates_first=decorates_first) for each in opens]
        assert [may_publish(app) for app in apps] == opens

    def test_two_factories(self) -> None:
        """Neither does the rule of another factory, of apps with the same object, loosen the first one's."""
        sse = SSE()
        sse.authorize(lambda action, channel: False)
        public = install(sse, "public")
        sse.authorize(lambda action, channel: True)
        assert not may_publish(public)
        internal = install(sse, "internal")
        assert (may_publish(public), may_publish(internal)) == (False, True)

    @pytest.mark.parametrize("count", [1, 3])
    @ORDERS
    def test_module(self, count: int, decorates_first: bool) -> None:
        """A module's rule guards all apps, those that were installed before it too."""
        sse = SSE()
        if decorates_first:
            sse.authorize(lambda action, channel: True)
        apps = [install(sse) for _ in range(count)]
        if not decorates_first:
            assert not any(may_publish(app) for app in apps)
            sse.authorize(lambda action, channel: True)
        assert all(may_publish(app) for app in apps)

    def test_second(self) -> None:
        """Before an app is installed a second rule takes the first one's place."""
        sse = SSE()
        sse.authorize(lambda action, channel: False)
        sse.authorize(lambda action, channel: True)
        assert may_publish(install(sse))

    def test_too_late(self, caplog: pytest.LogCaptureFixture) -> None:
        """A second rule that comes after the app guards nothing, and the log says so, once."""
        sse = SSE()
        sse.authorize(lambda action, channel: False)
        app = install(sse)

        def too_late(action: str, channel: str) -> bool:
            return True

        sse.authorize(too_late)
        assert not may_publish(app)
        assert not may_publish(app)
        assert caplog.text.count("too_late guards no app") == 1

    def test_which(self) -> None:
        """Where an app has another's rule, and it can't be told whether a second one is for it, that is an error."""
        sse = SSE()
        sse.authorize(lambda action, channel: True)
        apps = [install(sse), install(sse)]
        with pytest.raises(RuntimeError, match="give each app an SSE of its own"):
            sse.authorize(lambda action, channel: False)
        assert all(may_publish(app) for app in apps)


def test_client_keys() -> None:
    """Each app of a factory keeps its own `client_key`."""
    sse = SSE()

    def create_app(key: str) -> Flask:
        @sse.client_key
        def find() -> str:
            return key

        return install(sse)

    apps = {key: create_app(key) for key in ("a", "b", "c")}
    for key, app in apps.items():
        with app.test_request_context():
            assert find_client() == key


class TestListeners:
    """`sse.on`."""

    def test_factory(self) -> None:
        """A listener that a factory makes for each app hears that app only; one of the module's hears all."""
        sse = SSE()
        heard: list[tuple[str, str | None]] = []
        sse.on("news")(lambda event: heard.append(("module", event.data)))

        def create_app(name: str) -> Flask:
            for number in range(2):

                @sse.on("news")
                def hear(event: Any, number: int = number) -> None:
                    heard.append((f"{name}{number}", event.data))

            app = install(sse, name)
            with app.app_context():
                sse.publish(f"to {name}", channel="news")
            return app

        apps = [create_app(name) for name in ("a", "b")]
        heard.clear()
        for app in apps:
            with app.app_context():
                sse.publish(app.name, channel="news")
        assert heard == [("module", "a"), ("a0", "a"), ("a1", "a"), ("module", "b"), ("b0", "b"), ("b1", "b")]

    def test_later(self) -> None:
        """What is decorated after the app hears it, though the same function has made one before."""
        sse = SSE()
        heard: list[int] = []

        def listen(number: int) -> None:
            sse.on("news")(lambda event: heard.append(number))

        listen(0)
        app = install(sse)
        listen(1)
        with app.app_context():
            sse.publish("x", channel="news")
            listen(2)
            sse.publish("x", channel="news")
        assert heard == [0, 1, 0, 1, 2]


def test_alike() -> None:
    """What two calls of a factory make is alike; functions of a module, methods and other callables never are."""

    def make() -> Any:
        return lambda: None

    assert are_alike(make(), make())
    assert not are_alike(make(), lambda: None)
    assert not are_alike(install, install)
    assert not are_alike([].append, [].append)
