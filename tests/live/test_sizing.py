"""The constants of docs/understand/sizing.py are of a real worker's order of magnitude."""

from __future__ import annotations

import threading
import urllib.request
from typing import NamedTuple

from tests.conftest import Serve
from tests.live.crowd import Crowd, Member
from tests.live.process import cpu_seconds, resident_bytes
from tests.live.server import Server
from tests.test_sizing import sizing

#: A measurement may be so many times as much as the constant, or that part of it: other machines, and others at work on them.
FACTOR = 5
STREAMS = 500
EVENTS = 60
DATA_BYTES = 100

APP = f"""
import time
from flask import Flask
from sseflask import SSE, ServerSentEvent

app = Flask(__name__)
app.config.update(SSE_BROKER_URL="memory://", SSE_PUBLIC_CHANNELS=["*"])
sse = SSE()

@app.get("/wait")
@sse.stream
def wait():
    yield ServerSentEvent({{}}, event="stream-open")
    time.sleep(3600)

@app.get("/publish")
def publish():
    for n in range({EVENTS}):
        data = {{"series": "news", "n": n, "text": ""}}
        data["text"] = "x" * ({DATA_BYTES} - len(ServerSentEvent(data).data))
        sse.publish(data, channel="news")
        time.sleep(0.02)
    return {{}}

app.register_blueprint(sse, url_prefix="/on")
"""


class Used(NamedTuple):
    """What a worker has used so far: processor seconds, and bytes of memory."""

    cpu: float
    memory: int


def used(server: Server) -> Used:
    """What the only worker has used."""
    return Used(cpu_seconds(server.worker_pid()), resident_bytes(server.worker_pid()))


def publish(server: Server, crowd: Crowd, members: list[Member]) -> None:
    """Has the worker publish, and reads until all have all of it."""
    request = threading.Thread(target=lambda: urllib.request.urlopen(server.url("/publish"), timeout=60).close())
    request.start()
    crowd.read_until(lambda member: member.count("news") >= EVENTS, members, timeout=60)
    request.join()


def test_a_real_worker_uses_about_what_the_model_says(serve: Serve) -> None:
    """What a stream, its opening, a delivery and an event use is what the model says, within a factor."""
    server = serve(APP)
    crowd = Crowd()
    # What is loaded and grown once isn't a stream's.
    crowd.join(server, ["/on/warm"] * 100)
    empty = used(server)
    members = crowd.join(server, ["/on/news"] * STREAMS)
    opened = used(server)
    bytes_before = sum(member.body_bytes for member in members)
    publish(server, crowd, members)
    told = used(server)
    body_bytes = sum(member.body_bytes for member in members) - bytes_before
    crowd.join(server, ["/wait"] * STREAMS)
    waiting = used(server)
    deliveries = STREAMS * EVENTS
    for name, measured, model in (
        ("open", (opened.cpu - empty.cpu) / STREAMS, sizing.OPEN),
        ("stream", (opened.memory - empty.memory) / STREAMS, sizing.STREAM_BYTES),
        ("deliver", (told.cpu - opened.cpu) / deliveries, sizing.DELIVER),
        ("event", body_bytes / deliveries - DATA_BYTES, sizing.EVENT_OVERHEAD_BYTES),
        ("generator", (waiting.memory - told.memory) / STREAMS, sizing.GENERATOR_BYTES),
    ):
        assert model / FACTOR < measured < model * FACTOR, f"{name}: measured {measured:g}, the model says {model:g}"
    for member in members:
        member.assert_complete("news", EVENTS)
