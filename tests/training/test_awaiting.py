"""Reward functions that wait for others do so beside each other and beside what computes here."""

import asyncio
import threading

import pytest

from constitutional.training.awaiting import begin, is_async


async def waits(event: asyncio.Event, own: asyncio.Event) -> None:
    own.set()
    await asyncio.wait_for(event.wait(), timeout=30)


def test_async_functions_wait_beside_each_other_and_beside_the_caller() -> None:
    computed = threading.Event()
    first_is_there, second_is_there = asyncio.Event(), asyncio.Event()

    # Each ends only after the other has begun, and after the caller has computed something.
    async def first(number: int) -> list[int]:
        await waits(second_is_there, first_is_there)
        assert await asyncio.to_thread(computed.wait, 30)
        return [number, 1]

    async def second(number: int) -> list[int]:
        await waits(first_is_there, second_is_there)
        return [number, 2]

    def here(number: int) -> list[int]:
        return [number, 3]

    results = begin([first, here, second], {"number": 7})
    computed.set()
    assert results() == [[7, 1], [7, 3], [7, 2]]


def test_what_an_async_function_raises_is_raised_to_the_caller() -> None:
    async def fails() -> list[int]:
        raise ZeroDivisionError("in the function")

    with pytest.raises(ZeroDivisionError, match="in the function"):
        begin([fails], {})()


def test_an_object_is_async_by_its_call() -> None:
    class Async:
        async def __call__(self) -> None: ...

    class Plain:
        def __call__(self) -> None: ...

    assert is_async(Async())
    assert not is_async(Plain())
    assert not is_async(len)
    assert begin([], {})() == []
