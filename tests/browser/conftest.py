"""The fixtures are those of tests/chromium.py, which the tests of the docs share."""

from tests.chromium import ARGUMENTS, Console, executable

__all__ = ["ARGUMENTS", "Console", "executable"]
