"""The files of deploy/ agree with each other, with gunicorn.conf.py and with the settings' defaults."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from sseflask.config import Settings

ROOT = Path(__file__).resolve().parents[1]
DEPLOY = ROOT / "deploy"


def number(path: Path, pattern: str) -> float:
    """The one number that a pattern finds in a file."""
    found = set(re.findall(pattern, path.read_text(), re.MULTILINE))
    assert len(found) == 1, (path, found)
    return float(found.pop())


def test_each_waits_longer_than_what_it_waits_for() -> None:
    """Streams drain within gunicorn's time, and that within systemd's and a container's."""
    graceful = number(ROOT / "gunicorn.conf.py", r"^graceful_timeout = (\d+)")
    systemd = number(DEPLOY / "sseflask@.service", r"^TimeoutStopSec=(\d+)")
    container = number(DEPLOY / "compose.yaml", r"^  stop_grace_period: (\d+)s")
    assert Settings().drain_seconds < graceful < min(systemd, container)
    caddy = number(DEPLOY / "Caddyfile", r"^\tgrace_period (\d+)s")
    assert caddy < number(DEPLOY / "compose.yaml", r"^    stop_grace_period: (\d+)s")


@pytest.mark.parametrize(
    ("name", "pattern"),
    [
        ("nginx.conf", r"proxy_read_timeout (\d+)s;"),
        ("haproxy.cfg", r"timeout (?:client|server) (\d+)s"),
        ("Caddyfile", r"read_timeout (\d+)s"),
    ],
)
def test_idle_streams_are_kept(name: str, pattern: str) -> None:
    """Three keepalives fit into each proxy's limit, as the files say."""
    assert number(DEPLOY / name, pattern) >= 3 * Settings().keepalive_interval


@pytest.mark.parametrize(
    ("name", "pattern"), [("nginx.conf", r"^        keepalive_timeout (\d+)s;"), ("Caddyfile", r"^\t\tkeepalive (\d+)s")]
)
def test_the_proxy_lets_go_of_a_connection_first(name: str, pattern: str) -> None:
    """A connection that is kept to the app is given up before gunicorn gives it up."""
    assert number(DEPLOY / name, pattern) < number(ROOT / "gunicorn.conf.py", r"^keepalive = (\d+)")


def test_all_take_the_same_retry() -> None:
    """An EventSource is told to come back after as many milliseconds by each proxy."""
    told = [re.findall(r"retry: (\d+)", (DEPLOY / name).read_text()) for name in ("nginx.conf", "haproxy.cfg", "Caddyfile")]
    assert all(told) and {each for found in told for each in found} == {"3000"}


def test_health_is_asked_for_by_name() -> None:
    """Each file that asks for a server's health says for which host: with TRUSTED_HOSTS the server answers to no other."""
    asking = [path for path in DEPLOY.iterdir() if re.search(r"^[^#]*/-/health", path.read_text(), re.MULTILINE)]
    assert {path.name for path in asking} == {"haproxy.cfg", "compose.yaml"}
    for path in asking:
        assert re.search(r"/-/health.*Host'?:? '?(example\.org|\${SITE:-localhost})", path.read_text()), path


def test_events_on_disk_are_the_apps() -> None:
    """Nobody but the service's user can look into the directory with the events, nor read a file that the service makes."""
    unit = (DEPLOY / "sseflask@.service").read_text().splitlines()
    assert {"StateDirectory=yourapp", "StateDirectoryMode=0700", "UMask=0077"} <= set(unit)


def test_the_readme_has_each_file() -> None:
    """deploy/README.md names and links all there is, and nothing else."""
    linked = set(re.findall(r"\]\(([^)/]+)\)", (DEPLOY / "README.md").read_text()))
    assert linked == {path.name for path in DEPLOY.iterdir()} - {"README.md"}


def test_the_image_is_made_of_what_is_there() -> None:
    """What the Dockerfile copies exists, and it starts as the examples are started."""
    text = (DEPLOY / "Dockerfile").read_text()
    copied = [name for line in re.findall(r"^COPY (.*) \S+$", text, re.MULTILINE) for name in line.split()]
    assert {"setup.cfg", "sseflask", "examples", "gunicorn.conf.py"} <= set(copied)
    assert all((ROOT / name).exists() for name in copied)
    assert 'CMD ["gunicorn", "-c", "gunicorn.conf.py", "examples:create_app()"]' in text
