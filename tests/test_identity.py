"""What the workers of one server tell apps apart by."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flask import Flask

from sseflask import SSE, BrokerUnavailable, InvalidSetting, identity, process
from sseflask.brokers import MemoryBroker, SharedBroker
from sseflask.config import Settings
from sseflask.identity import REMEDIES, Identity


@pytest.fixture
def worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[process.Process]:
    """This process, as one of two workers of a server that is loading what it serves."""
    here = process.current()
    # Those of other tests aren't this worker's.
    monkeypatch.setattr(identity, "_on_auto", weakref.WeakValueDictionary())
    for name, value in {"directory": tmp_path, "workers": 2, "has_loaded": False, "brokers": [], "on_exit": []}.items():
        monkeypatch.setattr(here, name, value)
    yield here
    for close in here.on_exit:
        close()


def make(name: str, **config: Any) -> tuple[Flask, SSE]:
    """An app with an `SSE` of its own."""
    app, sse = Flask(name), SSE()
    app.config.update(config)
    sse.init_app(app)
    return app, sse


@pytest.mark.usefixtures("worker")
def test_names() -> None:
    """Each import name and prefix has a file name of its own, the same whenever it is asked for, whatever they look like."""
    names = ["app", "app-2", "app.2", "app 2", "app/2", "..", "/", "ü", "\udc80", "a" * 200, "a" * 201]
    told = [(name, prefix) for name in names for prefix in ("sseflask", "sseflask-2", "app")]
    found = [Identity(Flask(name), Settings(broker_prefix=prefix)).file_name for name, prefix in told]
    assert len(set(found)) == len(found)
    assert found == [Identity(Flask(name), Settings(broker_prefix=prefix)).file_name for name, prefix in told]
    assert all("/" not in name and len(name) < 60 for name in found)


def test_loaded_alike(worker: process.Process) -> None:
    """Of apps that were loaded none has the name and prefix of another; one that is gone, or has its own broker, doesn't count."""
    one = make("tenants")
    make("others")
    make("tenants", SSE_BROKER_PREFIX="bob")
    make("tenants", SSE_BROKER_URL="memory://")
    make("tenants")
    identity.check()
    assert isinstance(one[1].installation.broker, SharedBroker)
    two = make("tenants")
    with pytest.raises(InvalidSetting, match=f"'tenants': another app here .*{REMEDIES}"):
        identity.check()
    with pytest.raises(BrokerUnavailable, match=REMEDIES):
        two[1].publish("x")


def test_made_later(worker: process.Process, caplog: pytest.LogCaptureFixture) -> None:
    """An app that is made later needs a prefix of its own to have channels, and takes none from one that was loaded."""
    loaded = make("tenants")
    worker.has_loaded = True
    later = make("tenants")
    for _ in range(2):
        with pytest.raises(BrokerUnavailable, match=REMEDIES):
            later[1].publish("x")
    assert [record.levelname for record in caplog.records if REMEDIES in record.getMessage()] == ["ERROR"]
    loaded[1].publish("x")
    own = make("tenants", SSE_BROKER_PREFIX="bob")
    own[1].publish("x")
    again = make("tenants", SSE_BROKER_PREFIX="bob")
    with pytest.raises(BrokerUnavailable, match=REMEDIES):
        again[1].publish("x")
    own[1].publish("x")


def test_one_worker(worker: process.Process, caplog: pytest.LogCaptureFixture) -> None:
    """One worker serves such apps from its memory, and says so."""
    worker.workers, worker.has_loaded = 1, True
    for app, sse in (make("tenants"), make("tenants")):
        sse.publish("x")
        assert isinstance(app.extensions["sse"].broker, MemoryBroker)
    assert caplog.text.count("events of the app 'tenants' stay in this worker, and a reload loses them: ") == 2


def test_without_a_directory() -> None:
    """Where nothing is shared, a factory may be called as often as one likes."""
    for app, sse in [make("tenants") for _ in range(3)]:
        sse.publish("x")
        assert isinstance(app.extensions["sse"].broker, MemoryBroker)
