"""Which principles override which: a partial order of ids, in which what is overridden twice over is overridden."""

from collections.abc import Collection, Mapping, Sequence
from graphlib import CycleError, TopologicalSorter

Overrides = Mapping[str, Sequence[str]]
"""By principle's id, the ids of the principles that give way to it."""


def circle_in(overrides: Overrides) -> list[str]:
    """A circle of principles that override each other, from the first in the mapping's order; empty if there is none.

    Its first id stands at its end again; a principle that overrides itself stands there twice.
    """
    try:
        TopologicalSorter(overrides).prepare()
    except CycleError as error:
        backwards: list[str] = error.args[1]
        circle = backwards[:0:-1]
        order = {name: place for place, name in enumerate(overrides)}
        start = min(range(len(circle)), key=lambda place: order[circle[place]])
        turned = circle[start:] + circle[:start]
        return [*turned, turned[0]]
    return []


def overriding(overrides: Overrides) -> dict[str, frozenset[str]]:
    """By principle, all those that override it, directly or through others; without those that nothing overrides."""
    above: dict[str, set[str]] = {}
    # The sorter yields what gives way first, so reversed, every principle comes behind those that override it.
    for name in reversed(list(TopologicalSorter(overrides).static_order())):
        for lower in overrides.get(name, ()):
            above.setdefault(lower, set()).update({name}, above.get(name, ()))
    return {name: frozenset(names) for name, names in above.items()}


def within(overrides: Overrides, kept: Collection[str]) -> dict[str, tuple[str, ...]]:
    """What the kept principles override of each other, directly or through principles that are left out."""
    if len(kept) == len(overrides) or not any(overrides.values()):
        return {name: tuple(overrides.get(name, ())) for name in kept}
    return {name: _reached(name, overrides, kept) for name in kept}


def _reached(name: str, overrides: Overrides, kept: Collection[str]) -> tuple[str, ...]:
    reached: dict[str, None] = {}
    waiting = list(reversed(overrides.get(name, ())))
    seen: set[str] = set()
    while waiting:
        lower = waiting.pop()
        if lower in kept:
            reached[lower] = None
        elif lower not in seen:
            seen.add(lower)
            waiting += reversed(overrides.get(lower, ()))
    return tuple(reached)
