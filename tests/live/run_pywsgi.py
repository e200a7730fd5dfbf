"""Serves an app with `gevent.pywsgi`: `python -m tests.live.run_pywsgi MODULE:APP PORT PORT_FILE`."""

from gevent import monkey

monkey.patch_all()

import importlib
import signal
import sys
from pathlib import Path

import gevent
from gevent.pywsgi import WSGIServer


def main(target: str, port: str, port_file: str) -> None:
    """Serves until SIGTERM; writes the port down once it listens."""
    module, _, name = target.partition(":")
    app = getattr(importlib.import_module(module), name.removesuffix("()"))
    server = WSGIServer(("127.0.0.1", int(port)), app() if name.endswith("()") else app)
    gevent.signal_handler(signal.SIGTERM, server.stop)
    server.start()
    unfinished = Path(f"{port_file}.new")
    unfinished.write_text(str(server.server_port))
    unfinished.rename(port_file)
    server.serve_forever()


if __name__ == "__main__":
    main(*sys.argv[1:])
