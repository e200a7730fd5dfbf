"""What apps give us to call, and that what would never run is refused."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from sseflask.callback import check_callback

ROLE = "a rule is a function"


async def waits(*arguments: Any) -> bool:
    """A coroutine function, as `async def` makes them."""
    return True


async def waits_and_yields(*arguments: Any) -> AsyncIterator[bool]:
    """An asynchronous generator function."""
    yield True


def yields(*arguments: Any) -> Iterator[bool]:
    """A generator function."""
    yield True


def plain(*arguments: Any) -> bool:
    """A function."""
    return True


class Called:
    """What can be called like a function."""

    def __call__(self) -> bool:
        """Runs at once."""
        return True


class Awaited:
    """What gives a coroutine where it is called."""

    async def __call__(self) -> bool:
        """Runs where it is awaited."""
        return True

    async def method(self) -> bool:
        """The same."""
        return True


@pytest.mark.parametrize("function", [plain, Called(), Called, functools.partial(plain, 1), [].append, print, lambda: True])
def test_plain(function: Callable[..., object]) -> None:
    """What runs when it is called will do."""
    check_callback(function, ROLE)


@pytest.mark.parametrize("may_yield", [False, True])
@pytest.mark.parametrize("function", [waits, waits_and_yields, functools.partial(waits, 1), Awaited(), Awaited().method])
def test_asynchronous(function: Callable[..., object], may_yield: bool) -> None:
    """What would have to be awaited is refused, by its name."""
    with pytest.raises(TypeError, match=r"^a rule is a function, not an asynchronous one, as .*\w+.* is \(def, not async def\)$"):
        check_callback(function, ROLE, may_yield=may_yield)


def test_generator_functions() -> None:
    """A generator function is refused, unless one will do."""
    check_callback(yields, ROLE, may_yield=True)
    with pytest.raises(TypeError, match=r"^a rule is a function, not a generator function, as yields is \(return, not yield\)$"):
        check_callback(yields, ROLE)


@pytest.mark.parametrize("found", ["rule", None, True, 7])
def test_not_callable(found: object) -> None:
    """What can't be called is refused."""
    with pytest.raises(TypeError, match=f"^a rule is a function, not {found!r}$"):
        check_callback(found, ROLE)
