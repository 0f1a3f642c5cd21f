import pytest

from constitutional.constitution.file import load_constitution
from constitutional.judging.best_of import shifts
from constitutional.sandbox.world import TRAITS
from scripts.bench_preview import BASE, EDITS, Edit, Outcome, changes, edited, main, pairs, spearman


def test_every_edit_changes_one_principle_and_is_aimed_at_a_trait_of_its_own() -> None:
    base = load_constitution(BASE)
    before = {principle.id: (principle.text, principle.weight) for principle in base.principles}
    for edit in EDITS:
        after = {principle.id: (principle.text, principle.weight) for principle in edited(base, edit).principles}
        changed = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
        assert changed == {edit.principle}
    assert len({edit.trait for edit in EDITS}) == len(EDITS) == 10
    assert {edit.trait for edit in EDITS} <= set(TRAITS)
    assert {edit.kind for edit in EDITS} == {"reverse", "reword", "add", "remove", "reweigh"}


def test_changes_are_over_the_prompts_that_both_runs_have() -> None:
    before = {"flattery": {"a": 1.0, "b": 0.0, "c": 1.0}, "refusal": {}}
    after = {"flattery": {"a": 0.0, "b": 0.0, "d": 1.0}, "refusal": {"a": 1.0}}
    assert changes(before, after) == {"flattery": -0.5, "refusal": 0.0}


def test_spearman_goes_by_ranks_with_mean_ranks_for_ties() -> None:
    rising = [(float(x), float(x**3)) for x in range(10)]
    assert spearman(rising) == pytest.approx(1)
    assert spearman([(x, -y) for x, y in rising]) == pytest.approx(-1)
    assert spearman(rising[:9]) is None
    # Of 1, 1, 2 the ranks are 0.5, 0.5, 2: ties that are equal on both sides leave it at 1.
    assert spearman([(float(x // 2), float(x // 2)) for x in range(10)]) == pytest.approx(1)


@pytest.mark.parametrize(("preview", "training", "agrees"), [(0.2, 0.4, True), (-0.2, 0.4, False), (0.0, 0.4, False)])
def test_directions_agree_where_both_move_the_same_way(preview: float, training: float, *, agrees: bool) -> None:
    edit = Edit("flattery", "remove", "no_flattery")
    (aimed,) = shifts([("flattery", "share", [[0.1, 0.1 + preview]] * 20)], [((0,), (1,))] * 20)
    row = Outcome(edit, {"flattery": preview, "hedging": 0.1}, {"flattery": training, "hedging": 0.2}, aimed, 1.0)
    assert row.agrees == agrees
    assert pairs([row], aimed=True) == [(preview, training)]
    assert len(pairs([row], aimed=False)) == 2


def test_what_the_runs_differ_in_cannot_be_set(capsys: pytest.CaptureFixture[str], tmp_path: object) -> None:
    assert main(["--folder", str(tmp_path), "--", "name=mine"]) == 2
    assert "name=mine" in capsys.readouterr().err
