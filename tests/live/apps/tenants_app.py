"""Apps of one factory, each made when it is first asked for, as in Flask's documentation of application dispatching."""

from __future__ import annotations

import os
from typing import Any

from flask import Flask, Response

from sseflask import SSE

from .environment import from_environment


def create_app(tenant: str) -> Flask:
    """A tenant's app: the import name is the same for all, and with `OWN_PREFIX` the prefix isn't."""
    app = Flask("tenants")
    app.config.update(SSE_PUBLIC_CHANNELS=["*"], **from_environment())
    if "OWN_PREFIX" in os.environ:
        app.config["SSE_BROKER_PREFIX"] = tenant
    sse = SSE()

    @app.after_request
    def name_worker(response: Response) -> Response:
        response.headers["X-Worker"] = str(os.getpid())
        return response

    @app.post("/publish")
    def publish() -> dict[str, Any]:
        return {"pid": os.getpid(), "id": sse.publish(tenant, channel="news")}

    app.register_blueprint(sse, url_prefix="/events")
    return app


class Tenants:
    """A WSGI application: the first part of the path names the tenant."""

    def __init__(self) -> None:
        self.apps: dict[str, Flask] = {}

    def __call__(self, environ: Any, start_response: Any) -> Any:
        """Hands a request on to the tenant's app, made if this is the first for it."""
        tenant, _, path = environ["PATH_INFO"].lstrip("/").partition("/")
        app = self.apps.get(tenant)
        if app is None:
            app = self.apps[tenant] = create_app(tenant)
        return app(environ | {"SCRIPT_NAME": f"/{tenant}", "PATH_INFO": f"/{path}"}, start_response)


application = Tenants()


def create_twice() -> Tenants:
    """Two tenants that are there from the start."""
    tenants = Tenants()
    tenants.apps = {tenant: create_app(tenant) for tenant in ("ann", "bob")}
    return tenants
