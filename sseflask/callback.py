"""What apps give us to call: functions that run when they are called, which asynchronous ones don't."""

from __future__ import annotations

import inspect
import types
from typing import Any, Final

#: What a function's code says of itself where a call runs nothing of it.
_LATER: Final = inspect.CO_COROUTINE | inspect.CO_GENERATOR | inspect.CO_ASYNC_GENERATOR


def check_callback(function: object, role: str, *, may_yield: bool = False) -> None:
    """Looks at whether something runs when it is called. A coroutine or a generator, which a call would give instead, is true.

    Args:
        function: What an app has given.
        role: What it is to be, such as "a listener is a function of one event".
        may_yield: Whether a generator function will do.

    Raises:
        TypeError: It can't be called, is asynchronous, or is a generator function where none will do.
    """
    if type(function) is types.FunctionType and not function.__code__.co_flags & _LATER:
        # As nearly all are, and each request that subscribes may bring two.
        return
    if not callable(function):
        raise TypeError(f"{role}, not {function!r}")
    # An object that can be called has a `__call__` of its own.
    for called in (function, type(function).__call__):
        if is_asynchronous(called):
            raise TypeError(f"{role}, not an asynchronous one, as {name_of(function)} is (def, not async def)")
        if not may_yield and inspect.isgeneratorfunction(called):
            raise TypeError(f"{role}, not a generator function, as {name_of(function)} is (return, not yield)")


def is_asynchronous(function: Any) -> bool:
    """Whether a call gives what must be awaited, or iterated asynchronously."""
    return inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function)


def name_of(function: object) -> str:
    """What an app calls a function of its own, for errors."""
    return getattr(function, "__qualname__", None) or repr(function)
