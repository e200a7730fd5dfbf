"""Flask-SQLAlchemy with a pool of two connections and no more: the example that hurts everyone."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import text

from sseflask import SSE
from tests.live.apps import journal
from tests.live.apps.environment import from_environment

app = Flask(__name__)
app.config.update(from_environment())
app.config["SQLALCHEMY_DATABASE_URI"] = f"sqlite:///{Path.cwd() / 'numbers.sqlite'}"
app.config["SQLALCHEMY_ENGINE_OPTIONS"] = {"pool_size": 2, "max_overflow": 0, "pool_timeout": 2}
app.register_blueprint(journal.blueprint)
db = SQLAlchemy(app)
sse = SSE()


def query() -> int:
    """Asks the database, over a connection that the app context holds from here on."""
    answer = int(db.session.execute(text("SELECT 42")).scalar_one())
    # A database that isn't in this process lets others run while it answers.
    time.sleep(0.005)
    return answer


@app.get("/query")
def plain() -> dict[str, Any]:
    """A plain view."""
    pool: Any = db.engine.pool
    return {"answer": query(), "checked_out": pool.checkedout() - 1, "pool": type(pool).__name__}


@app.get("/view")
@sse.stream
def in_the_view() -> Iterator[Any]:
    """The view asks, the generator is silent."""
    answer = query()

    def generate() -> Iterator[Any]:
        time.sleep(3600)
        yield answer

    return generate()


@app.get("/released")
@sse.stream
def in_the_generator_released() -> Iterator[Any]:
    """The generator asks and gives its connection back."""
    answer = query()
    sse.release()
    yield answer
    time.sleep(3600)


@app.get("/held")
@sse.stream
def in_the_generator_held() -> Iterator[Any]:
    """The generator asks and keeps its connection until it ends."""
    yield query()
    time.sleep(3600)


app.register_blueprint(sse, url_prefix="/events")
