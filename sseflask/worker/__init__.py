"""`StreamWorker`, the gunicorn worker that takes streams over: `gunicorn -k sseflask.worker.StreamWorker`.

Only this package imports gevent and gunicorn. The arbiter imports it before anything is patched: nothing is made at import.
"""

from .worker import StreamWorker

__all__ = ["StreamWorker"]
