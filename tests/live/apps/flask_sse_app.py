"""An app as people write them for Flask-SSE; one import differs. It must stay one that runs on Flask-SSE itself."""

import os

from flask import Flask, Response, abort, request, session, stream_with_context, url_for

from sseflask.compat.flask_sse import sse

PAGE = """<!DOCTYPE html>
<title>Greetings</title>
<ul id="greetings"></ul>
<script>
  new EventSource("{url}").addEventListener("greeting", (event) => {{
    document.querySelector("ul").append(JSON.parse(event.data).message);
  }});
</script>
"""


def create_app(**settings: object) -> Flask:
    """An app of its own, as a factory."""
    app = Flask(__name__)
    app.config.update({"SECRET_KEY": "a secret", "REDIS_URL": os.environ.get("APP_REDIS_URL"), **settings})
    app.register_blueprint(sse, url_prefix="/stream")

    @app.get("/")
    def index() -> str:
        return PAGE.format(url=url_for("sse.stream", channel="users.social"))

    @app.get("/login")
    def login() -> str:
        session["is_admin"] = True
        return "welcome"

    @app.get("/hello")
    def hello() -> str:
        sse.publish({"message": "Hello!"}, type="greeting")
        return "Message sent!"

    @app.post("/publish")
    def publish() -> str:
        sse.publish(**request.get_json())
        return "Message sent!"

    @app.get("/odd")
    def odd() -> Response:
        def generate():
            for message in sse.messages(channel="numbers"):
                if message.data["n"] % 2:
                    yield str(message)

        return Response(stream_with_context(generate()), mimetype="text/event-stream")

    @app.get("/redis")
    def ping() -> str:
        return str(sse.redis.ping())

    return app


@sse.before_request
def check_access() -> None:
    """Lets only administrators follow some channels."""
    if request.args.get("channel") == "analytics" and not session.get("is_admin"):
        abort(403)


if "APP_REDIS_URL" in os.environ:
    app = create_app()
