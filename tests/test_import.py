"""Importing sseflask and making an `SSE` makes nothing that a fork, or gevent's patching, would break (STREAMS 15)."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]

#: Begins each script: from here on, what is made is noted with where it comes from.
INSTRUMENTED = '''
import _thread, importlib.util, json, os, select, socket, sys, threading, traceback

PACKAGE = importlib.util.find_spec("sseflask").submodule_search_locations[0] + os.sep
made = []


def note(what):
    """Takes down what is made by code of the package, or by what that calls; not by the modules that it imports."""
    for frame in reversed(traceback.extract_stack()[:-2]):
        if "importlib._bootstrap" in frame.filename:
            return
        if frame.filename.startswith(PACKAGE):
            made.append(f"{what} by {os.path.relpath(frame.filename, PACKAGE)}: {frame.line}")
            return


class Noting:
    """Calls a function and notes it; as an attribute of a class it isn't bound, like the builtin that it stands for."""

    def __init__(self, what, function):
        self.what, self.function = what, function

    def __call__(self, *args, **kwargs):
        note(self.what)
        return self.function(*args, **kwargs)


def noting_init(what, function):
    def init(self, *args, **kwargs):
        note(what)
        return function(self, *args, **kwargs)

    return init


for module, name in [(_thread, "allocate_lock"), (_thread, "start_new_thread"), (threading, "Lock"), (threading, "RLock")]:
    setattr(module, name, Noting(name, getattr(module, name)))
threading._start_new_thread = _thread.start_new_thread
select.epoll = Noting("epoll", select.epoll)
for kind in (threading.Condition, threading.Event, threading.Semaphore, threading.Thread, socket.socket):
    kind.__init__ = noting_init(kind.__name__, kind.__init__)
'''

USE = """
from flask import Flask
from sseflask import SSE, EventSourceResponse, current_stream, heartbeat

app = Flask("app")
sse = SSE()


@app.get("/")
@sse.stream(timeout=3, lifecycle=True, g=("user",))
def view():
    yield "x"


app.register_blueprint(sse, url_prefix="/events")
SSE().init_app(Flask("another"))
"""


def run(script: str) -> Any:
    """Runs a script in a fresh interpreter and returns what it prints, as JSON."""
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{script}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


class TestNothingIsMade:
    """At import, and by making and registering an `SSE`."""

    def test_package(self) -> None:
        """No lock, condition, event, thread, epoll set or socket is made, and no process state."""
        told = run(
            INSTRUMENTED
            + USE
            + """
from sseflask import process
print(json.dumps({"made": made, "processes": len(process._processes), "threads": threading.active_count(),
                  "imported": [name for name in ("gevent", "gunicorn") if name in sys.modules]}))
"""
        )
        assert told == {"made": [], "processes": 0, "threads": 1, "imported": []}

    def test_worker(self) -> None:
        """The worker's modules make nothing either, nor a hub: the arbiter imports them before it forks and patches."""
        told = run(
            INSTRUMENTED
            + """
import sseflask.worker
from gevent._hub_local import get_hub_if_exists
from gevent import monkey
print(json.dumps({"made": made, "hub": repr(get_hub_if_exists()), "patched": monkey.is_module_patched("threading")}))
"""
        )
        assert told == {"made": [], "hub": "None", "patched": False}

    def test_each_module(self) -> None:
        """It doesn't depend on which of the modules is imported first."""
        modules = sorted(
            ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
            for path in (ROOT / "sseflask").rglob("*.py")
        )
        imports = "".join(f"import {module}\n" for module in reversed(modules))
        assert run(f"{INSTRUMENTED}{imports}print(json.dumps(made))") == []

    def test_the_instruments(self) -> None:
        """The same script does see what a first stream makes."""
        made = run(f'{INSTRUMENTED}{USE}app.test_client().get("/").data\nprint(json.dumps(made))')
        kinds = {line.split(" by ")[0] for line in made}
        assert {"Lock", "Condition", "Thread", "Event"} <= kinds
        assert any("by native.py" in line for line in made)
        assert any("by timer.py" in line for line in made)


@pytest.mark.parametrize("name", ["threading", "time", "queue", "select", "socket"])
def test_no_names_of_patched_modules(name: str) -> None:
    """No module takes single names from one that gevent patches: they would stay unpatched in the workers."""
    from ast import ImportFrom, parse, walk

    offenders = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in (ROOT / "sseflask").rglob("*.py")
        for node in walk(parse(path.read_text()))
        if isinstance(node, ImportFrom) and node.module == name and node.level == 0
    ]
    assert offenders == []


class TestFork:
    """A forked child's own state."""

    def test_child(self) -> None:
        """A child has a process state of its own, empty, with a timer of its own; the parent keeps its own."""
        told = run(
            USE
            + """
import json, os
from sseflask import process

assert app.test_client().get("/").data
mine = process.current()
read, write = os.pipe()
if os.fork() == 0:
    own = process.current()
    before = own.stats()
    data = app.test_client().get("/").data
    told = {"same": own is mine, "kept": own is process.current(), "opened_before": before["streams_opened"],
            "opened": own.opened, "timer": own.timer._thread.is_alive(), "events": data.count(b"data: x"),
            "known": len(process._processes)}
    os.write(write, json.dumps(told).encode())
    os._exit(0)
os.wait()
told = json.loads(os.read(read, 65536))
told["parent_kept"] = process.current() is mine and mine.opened == 1
print(json.dumps(told))
"""
        )
        assert told == {
            "same": False,
            "kept": True,
            "opened_before": 0,
            "opened": 1,
            "timer": True,
            "events": 1,
            "known": 1,
            "parent_kept": True,
        }

    def test_child_of_an_open_stream(self) -> None:
        """A fork while a stream is open and its lock is held by another thread leaves the child able to stream."""
        told = run(
            USE
            + """
import json, os, threading
from sseflask import process

mine = process.current()
mine._lock.acquire()
mine.timer._lock.acquire()
read, write = os.pipe()
if os.fork() == 0:
    data = app.test_client().get("/").data
    os.write(write, str(data.count(b"data: x")).encode())
    os._exit(0)
os.wait()
print(os.read(read, 100).decode())
"""
        )
        assert told == 1
