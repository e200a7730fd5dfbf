"""django-eventstream on uvicorn, its listeners in this process."""

from __future__ import annotations

import asyncio

import django
from django.conf import settings
from publishing import Feed

settings.configure(
    SECRET_KEY="only for the benchmark",
    ALLOWED_HOSTS=["*"],
    ROOT_URLCONF=__name__,
    INSTALLED_APPS=["django.contrib.auth", "django.contrib.contenttypes", "django_eventstream"],
    MIDDLEWARE=[],
    USE_TZ=True,
)
django.setup()

from django.core.asgi import get_asgi_application  # noqa: E402
from django.http import HttpRequest, HttpResponse  # noqa: E402
from django.urls import include, path  # noqa: E402
from django_eventstream import send_event  # noqa: E402


async def publish(request: HttpRequest) -> HttpResponse:
    """Publishes what the query asks for."""
    feed = Feed(request.GET)
    for channel, data in feed:
        send_event(channel, "message", data, json_encode=False)
        if feed.gives_way:
            await asyncio.sleep(feed.pause())
    return HttpResponse(feed.summary())


urlpatterns = [path("subscribe", include("django_eventstream.urls")), path("publish", publish)]
app = get_asgi_application()
