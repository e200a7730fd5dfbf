"""Blocks that are read by what reads their language: data, configurations of proxies, and text, which is neither."""

from __future__ import annotations

import configparser
import json
import re
import subprocess
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest
import yaml

from tests.docs.page import Block
from tests.live.proxies import FILES, PROGRAMS, Kind

#: What a reader would copy has a language: none of this stands in a `text` block.
COPIED: Final = re.compile(
    r"^\s*(\$ |pip install|gunicorn |flask |curl |python3? -m |make [a-z]|import |from \w+ import|def |@app\.|const |<script)",
    re.MULTILINE,
)


def check_json(block: Block, _: Path) -> None:
    """It is one JSON value."""
    json.loads(block.text)


def check_yaml(block: Block, _: Path) -> None:
    """It is YAML, of plain types."""
    yaml.safe_load(block.text)


def check_toml(block: Block, _: Path) -> None:
    """It is TOML."""
    tomllib.loads(block.text)


def check_ini(block: Block, _: Path) -> None:
    """It has sections and options, as systemd's units have, where an option may come twice."""
    parser = configparser.ConfigParser(strict=False, interpolation=None, delimiters=("=",), comment_prefixes=("#", ";"))
    parser.read_string(block.text)


def check_text(block: Block, _: Path) -> None:
    """Nothing in it is to be copied."""
    if found := COPIED.search(block.text):
        raise block.fails(f"{found[0].strip()!r} is code, and stands in a text block: give it its language")


def check_nginx(block: Block, folder: Path) -> None:
    """It is a whole file of nginx's, or part of one, where it belongs in one."""
    text = block.text
    first = re.sub(r"^\s*#.*$", "", text, flags=re.MULTILINE).split(maxsplit=1)[0]
    if first not in ("http", "events", "worker_processes", "user", "worker_rlimit_nofile", "pid"):
        if first not in ("server", "upstream", "map", "limit_conn_zone", "log_format"):
            if first != "location":
                text = f"location / {{\n{text}\n}}"
            text = f"server {{ listen 127.0.0.1:8080;\n{text}\n}}"
        text = f"events {{}} http {{\n{text}\n}}"
    elif "events" not in text:
        text = f"events {{}}\n{text}"
    _ask("nginx", ["-p", str(folder), "-e", "stderr", "-g", "pid nginx.pid;", "-t", "-c"], text, folder)


def check_haproxy(block: Block, folder: Path) -> None:
    """HAProxy takes it."""
    _ask("haproxy", ["-c", "-f"], block.text, folder)


def check_caddy(block: Block, folder: Path) -> None:
    """Caddy takes it."""
    _ask("caddy", ["adapt", "--adapter", "caddyfile", "--config"], block.text, folder)


def _ask(kind: Kind, arguments: list[str], text: str, folder: Path) -> None:
    """Lets a program look at its configuration."""
    program = PROGRAMS[kind]
    if program is None:
        pytest.skip(f"needs the program {kind}")
    path = folder / FILES[kind]
    path.write_text(text)
    said = subprocess.run([program, *arguments, str(path)], capture_output=True, text=True, cwd=folder, timeout=30, check=False)
    # HAProxy calls a part that listens nowhere right, and yet an end.
    if said.returncode != 0 and "Configuration file has no error" not in said.stdout + said.stderr:
        raise AssertionError(said.stdout + said.stderr)


CHECKS: Final[dict[str, Callable[[Block, Path], None]]] = {
    "json": check_json,
    "yaml": check_yaml,
    "toml": check_toml,
    "ini": check_ini,
    "text": check_text,
    "nginx": check_nginx,
    "haproxy": check_haproxy,
    "caddy": check_caddy,
}


def check(block: Block, folder: Path) -> None:
    """Reads a block.

    Raises:
        AssertionError: What reads its language doesn't take it; the text says where it stands, and why.
    """
    try:
        if block.language == "python":
            compile(block.text, block.where, "exec")
        elif block.language in CHECKS:
            CHECKS[block.language](block, folder)
    except Exception as error:
        raise block.fails(f"not {block.language}: {error}") from error
