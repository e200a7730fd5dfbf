"""gunicorn for the peers that run on it: one worker or several, and room for all streams."""

import os

bind = os.environ["BENCH_BIND"]
workers = int(os.environ.get("BENCH_WORKERS", "1"))
worker_connections = 40_000
backlog = 4096
timeout = 120
graceful_timeout = 6
keepalive = 5
control_socket_disable = True
# As uvicorn's: sseflask would write a line for each stream that ends.
loglevel = "warning"
