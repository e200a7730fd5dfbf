"""Two network namespaces and the link between them, which can delay packets, lose some, or drop all.

Nothing of it is seen from outside and nothing has to be cleaned up: the namespaces have no names, so they and the TUN devices in
them are gone when the descriptors that hold them are closed, or the process that made them has ended, however it ended. Packets
are passed on here and not by the kernel, since not every kernel has `netem`.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import heapq
import os
import random
import selectors
import shutil
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, Self, TypeVar

import pytest

#: From <sched.h>; Python's own `os.unshare` and `os.setns` came with 3.12.
CLONE_NEWNET: Final = 0x40000000
#: From <linux/if_tun.h>.
TUNSETIFF: Final = 0x400454CA
IFF_TUN: Final = 0x0001
IFF_NO_PI: Final = 0x1000

#: Debian keeps it where only root's PATH may lead.
IP: Final = shutil.which("ip", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin")

DEVICE: Final = "tun0"
SERVER_ADDRESS: Final = "10.66.0.1"
CLIENT_ADDRESS: Final = "10.66.0.2"
#: Packets on their way; a router would drop what comes beyond it, too.
MAX_ON_THE_WAY: Final = 20_000

Value = TypeVar("Value")

_libc = ctypes.CDLL(None, use_errno=True)
_OWN: Final = Path("/proc/thread-self/ns/net")


class Refused(Exception):
    """The kernel lets this process make no network of its own."""


class Namespace:
    """A network namespace with one device, beside its loopback.

    While a `with` statement runs, the sockets and the processes that this thread makes belong to it.

    Attributes:
        tun: The other end of its device: a read is a packet that it sends.
    """

    def __init__(self, address: str, peer: str) -> None:
        """Makes it.

        Raises:
            Refused: The kernel doesn't let us.
        """
        # A thread of its own: this one's namespace stays what it is.
        with ThreadPoolExecutor(1) as elsewhere:
            self._fd, self.tun = elsewhere.submit(_make, address, peer).result()
        self._local = threading.local()

    def __enter__(self) -> Self:
        self._local.before = os.open(_OWN, os.O_RDONLY | os.O_CLOEXEC)
        _call("setns", self._fd, CLONE_NEWNET)
        return self

    def __exit__(self, *_: object) -> None:
        before = self._local.before
        _call("setns", before, CLONE_NEWNET)
        os.close(before)

    def close(self) -> None:
        """Lets go of it: it is gone when its last process is."""
        os.close(self.tun)
        os.close(self._fd)


class Link:
    """Passes packets between two namespaces.

    Attributes:
        server_side: The namespace whose address is `SERVER_ADDRESS`.
        client_side: That of `CLIENT_ADDRESS`.
        delay: Seconds that each packet takes, either way.
        loss: The part of the packets that is lost, either way, from 0 to 1.
        is_down: Whether all packets are lost.
        passed: How many packets came through, and `lost` how many didn't.
    """

    def __init__(self, *, seed: int = 1) -> None:
        """Makes both namespaces.

        Raises:
            Refused: The kernel doesn't let us.
        """
        self.server_side = Namespace(SERVER_ADDRESS, CLIENT_ADDRESS)
        try:
            self.client_side = Namespace(CLIENT_ADDRESS, SERVER_ADDRESS)
        except BaseException:
            self.server_side.close()
            raise
        self.delay = 0.0
        self.loss = 0.0
        self.is_down = False
        self.passed = self.lost = 0
        self._random = random.Random(seed)
        self._wake, self._orders = os.pipe()
        self._thread = threading.Thread(target=self._run, name="link")
        self._thread.start()

    def close(self) -> None:
        """Ends it."""
        os.close(self._orders)
        self._thread.join()
        os.close(self._wake)
        self.client_side.close()
        self.server_side.close()

    def _run(self) -> None:
        other = {self.server_side.tun: self.client_side.tun, self.client_side.tun: self.server_side.tun}
        on_the_way: list[tuple[float, int, int, bytes]] = []
        number = 0
        with selectors.DefaultSelector() as selector:
            for fd in (*other, self._wake):
                selector.register(fd, selectors.EVENT_READ)
            while True:
                timeout = max(0.0, on_the_way[0][0] - time.monotonic()) if on_the_way else None
                for key, _ in selector.select(timeout):
                    if key.fd == self._wake:
                        return
                    for packet in _packets(key.fd):
                        if self.is_down or len(on_the_way) >= MAX_ON_THE_WAY or self._random.random() < self.loss:
                            self.lost += 1
                            continue
                        number += 1
                        heapq.heappush(on_the_way, (time.monotonic() + self.delay, number, other[key.fd], packet))
                while on_the_way and on_the_way[0][0] <= time.monotonic():
                    _, _, target, packet = heapq.heappop(on_the_way)
                    if self.is_down:
                        self.lost += 1
                        continue
                    self.passed += 1
                    # A device that takes no more loses it, as a wire would.
                    with contextlib.suppress(OSError):
                        os.write(target, packet)


@contextlib.contextmanager
def link() -> Iterator[Link]:
    """A link for one test; skips the test where the kernel refuses, or where the program `ip` is missing, which CI surely has."""
    if IP is None:
        assert os.environ.get("CI") != "true", "the program ip is missing: tests/system.sh network installs it"
        pytest.skip("needs the program ip, of iproute2")
    try:
        made = Link()
    except Refused as error:
        pytest.skip(f"the kernel lets us make no network namespace: {error}")
    try:
        yield made
    finally:
        made.close()


def in_namespace(namespace: Namespace, work: Callable[[], Value]) -> Callable[[], Value]:
    """The same work, done in the namespace by whichever thread does it."""

    def run() -> Value:
        with namespace:
            return work()

    return run


def _packets(tun: int) -> Iterator[bytes]:
    """What a device has sent and nobody has read."""
    with contextlib.suppress(BlockingIOError):
        for _ in range(64):
            yield os.read(tun, 65536)


def _make(address: str, peer: str) -> tuple[int, int]:
    """Puts this thread into a new namespace with a device; the descriptors of both."""
    try:
        _call("unshare", CLONE_NEWNET)
        tun = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise Refused(str(error)) from error
    namespace = os.open(_OWN, os.O_RDONLY | os.O_CLOEXEC)
    try:
        try:
            fcntl.ioctl(tun, TUNSETIFF, struct.pack("16sH22x", DEVICE.encode(), IFF_TUN | IFF_NO_PI))
        except OSError as error:
            raise Refused(str(error)) from error
        _ip("link", "set", "lo", "up")
        _ip("addr", "add", address, "peer", peer, "dev", DEVICE)
        # Long enough that the link itself loses nothing when it is late.
        _ip("link", "set", DEVICE, "mtu", "1500", "txqueuelen", "5000", "up")
    except BaseException:
        os.close(tun)
        os.close(namespace)
        raise
    return namespace, tun


def _ip(*arguments: str) -> None:
    assert IP is not None
    subprocess.run([IP, *arguments], check=True, capture_output=True, timeout=10)


def _call(name: str, *arguments: int) -> None:
    if getattr(_libc, name)(*arguments):
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
