"""The plain limit in Python: an epoll loop that writes each event to each socket with one `send`."""

from __future__ import annotations

import os
import select
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

sys.path.insert(0, str(Path(__file__).parent.parent / "shared"))

from publishing import Feed

HEADERS = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-cache\r\nTransfer-Encoding: chunked\r\n\r\n"
KEEPALIVE = b"c\r\n:keepalive\n\n\r\n"
KEEPALIVE_SECONDS = 15.0


class Server:
    """All of it: sockets, who listens to what, and what doesn't fit a socket's buffer."""

    def __init__(self, port: int) -> None:
        self.epoll = select.epoll()
        self.listener = socket.create_server(("127.0.0.1", port), backlog=4096)
        self.listener.setblocking(False)
        self.epoll.register(self.listener.fileno(), select.EPOLLIN)
        self.sockets: dict[int, socket.socket] = {}
        self.waiting: dict[int, bytes] = {}
        self.channels: dict[str, dict[int, socket.socket]] = {}
        self.publishing: list[tuple[Feed, Iterator[tuple[str, str]], socket.socket]] = []
        self.keepalive_at = time.monotonic() + KEEPALIVE_SECONDS

    def run(self) -> None:
        """Serves until it is killed."""
        due = 0.0
        while True:
            now = time.monotonic()
            wait = max(0.0, (due if self.publishing else self.keepalive_at) - now)
            for fd, events in self.epoll.poll(wait, 1024):
                self.ready(fd, events)
            now = time.monotonic()
            if now >= self.keepalive_at:
                self.keepalive_at = now + KEEPALIVE_SECONDS
                for sockets in self.channels.values():
                    self.send(sockets, KEEPALIVE)
            if self.publishing and now >= due:
                due = now + self.publish()

    def ready(self, fd: int, events: int) -> None:
        """Accepts, answers, or goes on with what didn't fit."""
        if fd == self.listener.fileno():
            self.accept()
        elif events & select.EPOLLOUT and fd in self.waiting:
            data = self.waiting.pop(fd)
            self.epoll.modify(fd, select.EPOLLIN)
            self.send({fd: self.sockets[fd]}, data)
        elif events & ~select.EPOLLOUT:
            self.read(fd)

    def accept(self) -> None:
        """Takes all who wait."""
        for _ in range(100):
            try:
                sock, _ = self.listener.accept()
            except BlockingIOError:
                return
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.sockets[sock.fileno()] = sock
            self.epoll.register(sock.fileno(), select.EPOLLIN)

    def read(self, fd: int) -> None:
        """Answers a request, or sees a client go."""
        sock = self.sockets[fd]
        try:
            request = sock.recv(65536)
        except OSError:
            request = b""
        if not request:
            for sockets in self.channels.values():
                sockets.pop(fd, None)
            self.waiting.pop(fd, None)
            del self.sockets[fd]
            sock.close()
            return
        url = urlsplit(request.split(b" ", 2)[1].decode())
        query = dict(parse_qsl(url.query))
        if url.path == "/subscribe":
            sock.send(HEADERS)
            self.channels.setdefault(query["channel"], {})[fd] = sock
        else:
            feed = Feed(query)
            self.publishing.append((feed, iter(feed), sock))

    def publish(self) -> float:
        """Publishes one event of the first feed; says when the next is due."""
        feed, events, asker = self.publishing[0]
        for channel, data in events:
            frame = f"data: {data}\n\n".encode()
            self.send(self.channels.get(channel, {}), b"%x\r\n%b\r\n" % (len(frame), frame))
            if feed.gives_way:
                return feed.pause()
        del self.publishing[0]
        body = feed.summary().encode()
        asker.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
        return 0.0

    def send(self, sockets: dict[int, socket.socket], data: bytes) -> None:
        """One `send` for each; what a socket doesn't take waits for room."""
        waiting = self.waiting
        for fd, sock in sockets.items():
            if waiting and fd in waiting:
                waiting[fd] += data
                continue
            try:
                sent = sock.send(data)
            except BlockingIOError:
                sent = 0
            except OSError:
                continue
            if sent < len(data):
                waiting[fd] = data[sent:]
                self.epoll.modify(fd, select.EPOLLIN | select.EPOLLOUT)


if __name__ == "__main__":
    Server(int(os.environ["BENCH_PORT"])).run()
