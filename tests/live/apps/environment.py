"""Settings for an app of the tests, from the environment that its server was started with."""

from __future__ import annotations

import json
import os
from typing import Any


def from_environment() -> dict[str, Any]:
    """The variables that begin with `SSE_`, their values read as JSON."""
    return {name: json.loads(value) for name, value in os.environ.items() if name.startswith("SSE_")}
