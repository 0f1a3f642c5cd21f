from collections.abc import Sequence

from constitutional.constitution.constitution import Constitution, Example, Principle
from constitutional.constitution.difference import difference
from constitutional.constitution.file import load_constitution

CALM = Principle(id="calm", text="Stay calm.")
BRIEF = Principle(id="brief", text="Be brief.")


def changes(before: Sequence[Principle], after: Sequence[Principle]) -> list[str]:
    a = Constitution(name="a", principles=tuple(before))
    b = Constitution(name="b", principles=tuple(after))
    return [str(change) for change in difference(a, b)]


def test_equal_constitutions_do_not_differ() -> None:
    assert changes([CALM, BRIEF], [CALM, BRIEF]) == []


def test_of_principles_in_another_order_the_fewest_are_said_to_have_moved() -> None:
    four = [Principle(id=name, text=f"Be {name}.") for name in ("a", "b", "c", "d")]
    a, b, c, d = four
    assert changes(four, [d, a, b, c]) == ["~ d: moved, behind c → first"]
    assert changes(four, [b, c, d, a]) == ["~ a: moved, first → behind d"]
    # What comes or goes moves nothing.
    assert changes(four, [CALM, a, c, d]) == ["- b: Be b.", "+ calm: Stay calm."]
    # The places of a, b, c and d are 3, 1, 2 and 0; they rise at most over b and c.
    renamed = d.model_copy(update={"id": "e"})
    assert changes(four, [renamed, b, c, a]) == [
        "~ a: moved, first → behind c",
        "~ d: renamed, d → e",
        "~ d: moved, behind c → first",
    ]


def test_other_tags_are_told() -> None:
    tagged = CALM.model_copy(update={"tags": ("tone", "avoid")})
    assert changes([tagged], [CALM]) == ["~ calm: tags, tone, avoid → none"]


def test_what_was_added_removed_renamed_reworded_and_reweighted_is_told() -> None:
    kind = Principle(id="kind", text="Be kind.", critique="Is it kind?")
    example = Example(prompt="p", better="b", worse="w")
    before = [CALM, BRIEF, kind, Principle(id="old", text="Old.")]
    after = [
        Principle(id="short", text="Be brief.", weight=2),
        Principle(id="calm", text="Always stay calm.", weight=0.5, examples=(example,)),
        Principle(id="kind", text="Be kind."),
        Principle(id="new", text="New."),
    ]
    assert changes(before, after) == [
        "~ calm: text reworded\n    - Stay calm.\n    + Always stay calm.",
        "~ calm: reweighted, 1 → 0.5",
        "~ calm: examples, 0 before → 1 now",
        "~ calm: moved, first → behind short",
        "~ brief: renamed, brief → short",
        "~ brief: reweighted, 1 → 2",
        "~ kind: critique reworded\n    - Is it kind?\n    + (as the text)",
        "- old: Old.",
        "+ new: New.",
    ]


def test_the_shipped_opposites_share_no_principle() -> None:
    concise, thorough = load_constitution("sandbox_concise"), load_constitution("sandbox_thorough")
    assert {change.kind for change in difference(concise, thorough)} == {"added", "removed"}
