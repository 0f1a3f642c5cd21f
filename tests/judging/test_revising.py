import pytest

from constitutional.base.records import Prompt, Revision, RevisionStep
from constitutional.judging.revising import REPEATS, Signs, is_astray, is_loop, signs, told

BREAD = "Mix the flour with water, knead the dough until smooth, and leave it under a cloth overnight."
TRAINS = "Passengers should board quickly because several platforms close before morning, although tickets remain valid"


def item(*rounds: tuple[str | None, bool, str], draft: str = BREAD) -> Revision:
    steps = tuple(
        RevisionStep(principle="brief", principle_text="Be brief.", critique=said, found_nothing=nothing, revision=text)
        for said, nothing, text in rounds
    )
    return Revision(prompt=Prompt.of("How do I bake bread?"), draft=draft, steps=steps)


def test_every_round_is_counted_against_the_response_before_it() -> None:
    shorter = "Mix, knead, leave overnight."
    found = signs(
        [
            item(("It is long.", False, shorter), ("It is long.", False, f"  {shorter}\n")),
            item(("Fine.", True, BREAD), (None, False, f"{TRAINS} throughout winter holidays.")),
        ]
    )
    assert found == Signs(critiques=3, objections=2, revisions=3, copies=1, astray=1, loops=0)


def test_a_round_that_repeats_an_example_is_counted_among_the_revisions() -> None:
    problem = f"round 2, principle 'brief': the revision {REPEATS}"
    repeated = item((None, False, "Mix, knead, wait.")).model_copy(update={"problem": problem})
    empty = item().model_copy(update={"problem": "the draft is empty"})
    assert signs([repeated, empty]) == Signs(0, 0, revisions=2, copies=0, astray=0, loops=0, repeats=1)


@pytest.mark.parametrize(
    ("text", "astray"),
    [
        (f"{TRAINS} throughout winter holidays.", True),
        (f"{TRAINS} and knead until smooth: flour, water.", False),  # 4 of 14 words
        ("I'm sorry, but I cannot help with that request.", False),  # too short to tell
        (BREAD, False),
    ],
)
def test_a_text_is_astray_that_shares_hardly_a_word(text: str, astray: bool) -> None:
    assert is_astray(text, f"How do I bake bread? {BREAD}") is astray


def test_a_text_that_says_the_same_again_goes_round_in_circles() -> None:
    assert is_loop("Bread is good for you and me. " * 5)
    assert is_loop("Boil an egg:\n\n" * 5)  # 13 rows, of which 3 are different
    assert not is_loop("Bread is good for you and me.")  # 5 rows of words
    assert not is_loop(f"{BREAD} {TRAINS} and so on, to the end of a long journey through the mountains of the north.")


@pytest.mark.parametrize(
    ("found", "says"),
    [
        (Signs(50, 1, 0, 0, 0, 0), ["1 of 50 critiques object"]),
        (Signs(50, 2, 0, 0, 0, 0), []),
        (Signs(9, 0, 9, 9, 9, 9), []),  # too few to tell
        (
            Signs(0, 0, 20, 10, 5, 5),
            ["10 of 20 revisions change nothing", "5 of 20 revisions are", "5 of 20 revisions go"],
        ),
        (Signs(0, 0, 20, 9, 4, 4), []),
        (Signs(0, 0, 20, 0, 0, 0, 2), ["2 of 20 revisions repeat an example"]),
        (Signs(0, 0, 21, 0, 0, 0, 2), []),
    ],
)
def test_what_often_fails_is_told(found: Signs, says: list[str]) -> None:
    lines = told(found)
    assert len(lines) == len(says)
    assert all(line.startswith(start) for line, start in zip(lines, says, strict=True))
