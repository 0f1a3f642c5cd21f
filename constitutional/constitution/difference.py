"""What changed between two constitutions, principle by principle."""

import bisect
from collections.abc import Iterator, Mapping
from typing import Literal, NamedTuple

from constitutional.constitution.constitution import Constitution, Principle

Kind = Literal[
    "added",
    "removed",
    "renamed",
    "reworded",
    "reweighted",
    "uses",
    "as_written",
    "overrides",
    "tags",
    "examples",
    "moved",
]


class PrincipleChange(NamedTuple):
    """How a principle of one constitution differs in another."""

    kind: Kind
    id: str
    """In the first constitution, or in the second if it was added."""
    before: str
    """Empty if it was added."""
    after: str
    """Empty if it was removed."""
    field: str = "text"
    """The words of a reworded principle that changed: text, critique, revision, comparison or why."""

    def __str__(self) -> str:
        """One line, or three where words changed."""
        if self.kind in ("added", "removed"):
            return f"{'+' if self.kind == 'added' else '-'} {self.id}: {self.before or self.after}"
        if self.kind == "reworded":
            return f"~ {self.id}: {self.field} reworded\n    - {self.before}\n    + {self.after}"
        return f"~ {self.id}: {self.kind}, {self.before} → {self.after}"


def difference(a: Constitution, b: Constitution) -> list[PrincipleChange]:
    """What became of the principles of `a` in `b`, in the order of `a`; then what `b` adds."""
    new = {principle.id: principle for principle in b.principles}
    known = {principle.id for principle in a.principles}
    added = {principle.text: principle.id for principle in b.principles if principle.id not in known}
    became: dict[str, str] = {}
    for before in a.principles:
        if same := before.id if before.id in new else added.pop(before.text, None):
            became[before.id] = same
    places = {principle.id: number for number, principle in enumerate(b.principles)}
    moved = _moved({old: places[name] for old, name in became.items()})
    changes: list[PrincipleChange] = []
    for number, before in enumerate(a.principles):
        after = new.pop(became.get(before.id, ""), None)
        if after is None:
            changes.append(PrincipleChange("removed", before.id, before.text, ""))
            continue
        if after.id != before.id:
            changes.append(PrincipleChange("renamed", before.id, before.id, after.id))
        changes += _changes(before, after)
        if before.id in moved:
            changes.append(PrincipleChange("moved", before.id, _place(a, number), _place(b, places[after.id])))
    return changes + [PrincipleChange("added", principle.id, "", principle.text) for principle in new.values()]


def _moved(places: Mapping[str, int]) -> set[str]:
    """The smallest set of ids without which the places of the others rise.

    The others are a longest rising sequence, which patience sorting finds: a place goes on the first pile whose top is
    not lower, and remembers the top of the pile before.
    """
    tops: list[int] = []
    ids: list[str] = []
    under: dict[str, str | None] = {}
    for name, place in places.items():
        pile = bisect.bisect_left(tops, place)
        tops[pile : pile + 1] = [place]
        ids[pile : pile + 1] = [name]
        under[name] = ids[pile - 1] if pile else None
    stays: set[str] = set()
    last = ids[-1] if ids else None
    while last is not None:
        stays.add(last)
        last = under[last]
    return places.keys() - stays


def _place(constitution: Constitution, number: int) -> str:
    return f"behind {constitution.principles[number - 1].id}" if number else "first"


def _changes(before: Principle, after: Principle) -> Iterator[PrincipleChange]:
    for field in ("text", "critique", "revision", "comparison", "why", "opposite", "measure"):
        old, new = getattr(before, field), getattr(after, field)
        nothing = "(none)" if field in ("why", "opposite", "measure") else "(as the text)"
        if old != new:
            yield PrincipleChange("reworded", before.id, old or nothing, new or nothing, field)
    if set(before.overrides) != set(after.overrides):
        old, new = (", ".join(row.overrides) or "nothing" for row in (before, after))
        yield PrincipleChange("overrides", before.id, old, new)
    if before.weight != after.weight:
        yield PrincipleChange("reweighted", before.id, f"{before.weight:g}", f"{after.weight:g}")
    if set(before.uses) != set(after.uses):
        yield PrincipleChange("uses", before.id, " and ".join(before.uses), " and ".join(after.uses))
    if before.as_written != after.as_written:
        yield PrincipleChange("as_written", before.id, str(before.as_written).lower(), str(after.as_written).lower())
    if before.tags != after.tags:
        yield PrincipleChange("tags", before.id, ", ".join(before.tags) or "none", ", ".join(after.tags) or "none")
    if before.examples != after.examples:
        yield PrincipleChange("examples", before.id, f"{len(before.examples)} before", f"{len(after.examples)} now")
