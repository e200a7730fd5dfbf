"""The reference configuration for gunicorn. The examples run on it; copy it and change what differs on your site.

    gunicorn -c gunicorn.conf.py 'yourapp:create_app()'

Options on gunicorn's command line win over this file.
"""

import os
import resource

# The worker that takes a stream's socket over, so that an idle stream holds no request slot.
worker_class = "sseflask.worker.StreamWorker"

# Behind a proxy on the same host, a unix socket works as well: "unix:/run/yourapp/gunicorn.sock".
bind = os.environ.get("BIND", "127.0.0.1:8000")

# One worker uses one core, and streams wait without using any: start with one, add workers when the core is busy.
workers = int(os.environ.get("WEB_CONCURRENCY", "1"))

# Requests at the same time, for each worker. Under StreamWorker open streams don't count here; SSE_MAX_STREAMS bounds them.
worker_connections = 1000

# A worker whose hub hasn't run for so many seconds (a computation that never yields, a blocking C call) is killed and
# replaced. It doesn't cut streams, however long they last.
timeout = 30

# At TERM, HUP and max_requests a worker stops accepting and ends its streams within SSE_DRAIN_SECONDS; this is the bound for
# plain requests that are still running. SSE_DRAIN_SECONDS must be smaller.
graceful_timeout = 30

# Seconds that a connection waits for its next request, and in which its first one must have arrived: more, where clients come
# without a proxy in between and over lines that lose packets. A worker that leaves waits for it as well, and then for up to a
# second, beside its streams: keep the sum below SSE_DRAIN_SECONDS, or deploys take longer.
keepalive = 2

# Replacing a worker now and then hides leaks in an app. A stream counts as one request, and a leaving worker drains as at
# TERM; the jitter keeps all workers from leaving at once.
# max_requests = 100_000
# max_requests_jitter = 10_000

# Who may say, by X-Forwarded-For and X-Forwarded-Proto, whose request it is: the proxy's addresses, never "*" on a port that
# others reach. Limits per client need the true address (see also werkzeug's ProxyFix).
# forwarded_allow_ips = "127.0.0.1,::1"

# One line when a stream opens, as for each request; our logger adds one when it closes.
accesslog = "-"
errorlog = "-"

# gunicornc's socket lies at one path per user: two servers of one user would take it from each other.
control_socket_disable = True


def on_starting(server):
    """Raises the limit on open files as far as the system lets us: each stream is one, and 1,024 are soon used up.

    gunicorn and its workers inherit the limit; the hard limit is the system's to raise (LimitNOFILE= in a systemd unit,
    --ulimit nofile= for a container).
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        server.log.info("Open files: limit raised from %s to %s", soft, hard)
