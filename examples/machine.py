"""This machine's processor, load, memory and network, as the Linux kernel tells them in /proc."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")


@dataclass(frozen=True)
class Cpu:
    """Time that all processors have spent since the machine was started, in clock ticks."""

    user: int
    system: int
    waiting: int
    idle: int

    @classmethod
    def parse(cls, stat: str) -> Cpu:
        """From the text of `/proc/stat`."""
        # "cpu  user nice system idle iowait irq softirq steal …"; older kernels leave out the end.
        fields = [int(field) for field in stat.split("\n", 1)[0].split()[1:9]]
        user, nice, system, idle, iowait, irq, softirq, steal = (fields + [0] * 8)[:8]
        return cls(user=user + nice, system=system + irq + softirq, waiting=iowait + steal, idle=idle)

    def percent_since(self, before: Cpu) -> dict[str, float]:
        """How the time since an earlier reading was spent, in percent."""
        # iowait may go back a little, says the kernel's own documentation: never below 0 here.
        spent = {name: max(0, getattr(self, name) - getattr(before, name)) for name in ("user", "system", "waiting", "idle")}
        total = sum(spent.values()) or 1
        return {name: round(100 * spent[name] / total, 1) for name in ("user", "system", "waiting")}


@dataclass(frozen=True)
class Network:
    """Bytes that went through all network interfaces since they came up, without those that never left the machine."""

    received: int
    sent: int

    @classmethod
    def parse(cls, net_dev: str) -> Network:
        """From the text of `/proc/net/dev`."""
        received = sent = 0
        for line in net_dev.splitlines():
            name, colon, numbers = line.partition(":")
            if colon and name.strip() != "lo":
                fields = numbers.split()
                received += int(fields[0])
                sent += int(fields[8])
        return cls(received, sent)

    def rate_since(self, before: Network, seconds: float) -> dict[str, int]:
        """Bytes per second since an earlier reading; 0 when an interface went away in between."""
        return {
            "received": round(max(0, self.received - before.received) / seconds),
            "sent": round(max(0, self.sent - before.sent) / seconds),
        }


def parse_load(loadavg: str) -> dict[str, float]:
    """The processes that ran or waited, on average over the last 1, 5 and 15 minutes, from the text of `/proc/loadavg`."""
    one, five, fifteen = (float(field) for field in loadavg.split()[:3])
    return {"one": one, "five": five, "fifteen": fifteen}


def parse_memory(meminfo: str) -> dict[str, int]:
    """Bytes of memory, from the text of `/proc/meminfo`: `total`, `used`, and `cache`, which is given back when it's needed."""
    kib = {name: int(value.split()[0]) for name, _, value in (line.partition(":") for line in meminfo.splitlines()) if value}
    total, available = kib["MemTotal"], kib["MemAvailable"]
    return {"total": total * 1024, "used": (total - available) * 1024, "cache": max(0, available - kib["MemFree"]) * 1024}


@dataclass(frozen=True)
class Reading:
    """What /proc said at one moment."""

    moment: float
    cpu: Cpu
    network: Network
    load: dict[str, float]
    memory: dict[str, int]

    @classmethod
    def take(cls) -> Reading:
        """Reads /proc now.

        Raises:
            FileNotFoundError: This is no Linux.
        """
        return cls(
            moment=time.monotonic(),
            cpu=Cpu.parse((PROC / "stat").read_text()),
            network=Network.parse((PROC / "net/dev").read_text()),
            load=parse_load((PROC / "loadavg").read_text()),
            memory=parse_memory((PROC / "meminfo").read_text()),
        )

    def since(self, before: Reading) -> dict[str, object]:
        """The sample that this reading and an earlier one make together, ready for JSON."""
        return {
            "time": round(time.time(), 3),
            "cpu": self.cpu.percent_since(before.cpu),
            "load": self.load,
            "memory": self.memory,
            "network": self.network.rate_since(before.network, max(self.moment - before.moment, 0.001)),
        }


def describe() -> dict[str, object]:
    """What doesn't change while we watch."""
    return {"name": os.uname().nodename, "processors": os.cpu_count() or 1, "kernel": os.uname().release}
