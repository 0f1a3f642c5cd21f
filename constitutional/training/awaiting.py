"""Reward functions that wait for others, such as a judge behind a server: they wait beside each other, in a thread.

As in TRL, such a function is an `async def`. Meanwhile the thread that calls them computes.
"""

import asyncio
import inspect
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, Final

from constitutional.base.threads import in_thread

STATE: Final = "trainer_state"
"""What TRL hands reward functions beside the columns: where the training is."""


def is_async(function: object) -> bool:
    """Whether what a function gives has to be awaited; an object may be a function by its `__call__`."""
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(getattr(function, "__call__", None))  # noqa: B004 - it is looked at, not called


def begin(functions: Sequence[Callable[..., Any]], columns: Mapping[str, Any]) -> Callable[[], list[Any]]:
    """Begin to wait for those functions that are async; what is returned calls the others, and gives all results.

    Args:
        functions: each is called once with the columns, in whatever order.
        columns: by name.
    """
    waiting = [index for index, function in enumerate(functions) if is_async(function)]
    taken = [_taken(function, columns) for function in functions]
    awaited = _in_background([functions[index](**taken[index]) for index in waiting])

    def results() -> list[Any]:
        computed = {index: function(**taken[index]) for index, function in enumerate(functions) if index not in waiting}
        everything = computed | dict(zip(waiting, awaited(), strict=True))
        return [everything[index] for index in range(len(functions))]

    return results


def _taken(function: Callable[..., Any], columns: Mapping[str, Any]) -> dict[str, Any]:
    """The columns, without the trainer's state for a function that has no place for it."""
    try:
        parameters = inspect.signature(function).parameters
    except ValueError:  # some functions that are written in C have no signature
        return dict(columns)
    if STATE in parameters or any(of.kind is of.VAR_KEYWORD for of in parameters.values()):
        return dict(columns)
    return {name: column for name, column in columns.items() if name != STATE}


def _in_background(coroutines: Sequence[Coroutine[Any, Any, Any]]) -> Callable[[], list[Any]]:
    if not coroutines:
        return list

    async def all_of_them() -> list[Any]:
        return await asyncio.gather(*coroutines)

    return in_thread(lambda: asyncio.run(all_of_them()), "rewards").result
