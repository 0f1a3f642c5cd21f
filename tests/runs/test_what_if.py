import json
import random
from pathlib import Path

import numpy as np
import pytest

from constitutional.base.errors import ConfigurationError, ConstitutionalError, RunError, UsageError
from constitutional.base.files import write_rows
from constitutional.base.records import Comparison, Judgement, Preference, Verdict
from constitutional.cli import main as cli
from constitutional.data.comparisons import read_comparisons
from constitutional.judging.reweighing import selections
from constitutional.runs.folder import RunStore
from constitutional.runs.what_if import LabelledRun, MixChange
from constitutional.stages import mix
from tests.scripted_run import World, configured, constitution, go


def labelled(folder: Path, *overrides: str) -> LabelledRun:
    constitution(folder)
    store, _ = go(configured(folder, "prompts.train=20", "until=mix", *overrides), World())
    return LabelledRun(RunStore.load(store.folder))


@pytest.fixture(scope="module")
def run_by_all(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return labelled(tmp_path_factory.mktemp("all"), "label.principles=all").folder


@pytest.fixture
def judged_by_all(run_by_all: Path) -> LabelledRun:
    return LabelledRun(RunStore.load(run_by_all))


@pytest.fixture(scope="module")
def judged_by_one(tmp_path_factory: pytest.TempPathFactory) -> LabelledRun:
    return labelled(tmp_path_factory.mktemp("one"), "label.principles=one")


def test_without_a_change_the_mix_is_what_the_run_made(judged_by_all: LabelledRun) -> None:
    answer = judged_by_all.what_if(["mix.margin=0"])
    assert not any("another constitution" in note for note in answer.notes)
    preferences = RunStore.load(judged_by_all.folder).read("preferences", Preference)
    for name, split in (("to train on", "train"), ("held out", "held_out")):
        count = sum(row.split == split for row in preferences)
        assert answer.changes[name] == MixChange(count, count, 0, 0, 0, 0)
    assert not answer.examples


@pytest.mark.parametrize(
    ("words", "weights", "settings"),
    [
        (["constitution.weights.calm=5"], {"calm": 5.0}, {}),
        (["constitution.weights.calm=0"], {"calm": 0.0}, {}),
        (["constitution.only=[kind,brief]", "mix.margin=0.05"], {"calm": 0.0, "honest": 0.0}, {"margin": 0.05}),
        (["constitution.without=[honest]", "mix.held_out_share=0.5"], {"honest": 0.0}, {"held_out_share": 0.5}),
        (["mix.human_ratio=0", "mix.total=6"], {}, {"human_ratio": 0.0, "total": 6}),
    ],
)
def test_the_change_is_that_between_the_mix_before_and_the_mix_after(
    judged_by_all: LabelledRun, words: list[str], weights: dict[str, float], settings: dict[str, float]
) -> None:
    run = judged_by_all
    answer = run.what_if(words)
    rows = [row.model_copy(update={"weight": weights.get(row.principle, row.weight)}) for row in run.judgements]
    changed = mix.Settings.model_validate({**run.config.mix.model_dump(), **settings})
    before, after = (
        {row.comparison: row for row in mix.mix(run.comparisons, judgements, (), (), of, run.config.seed).preferences}
        for judgements, of in ((run.judgements, run.config.mix), (rows, changed))
    )
    assert before.keys() != after.keys() or any(before[name].chosen != after[name].chosen for name in before)
    for name, split in (("to train on", "train"), ("held out", "held_out")):
        was = {comparison for comparison, row in before.items() if row.split == split}
        becomes = {comparison for comparison, row in after.items() if row.split == split}
        flipped = sum(before[comparison].chosen != after[comparison].chosen for comparison in was & becomes)
        expected = MixChange(len(was), len(becomes), len(becomes - was), len(was - becomes), 0, flipped)
        assert answer.changes[name] == expected
    for principle, change in answer.principles.items():
        assert change.after == sum(principle in row.principles for row in after.values())
        assert change.before + change.gained - change.lost == change.after


def test_what_tipped_a_label_adds_up_to_how_far_it_moved(judged_by_all: LabelledRun) -> None:
    # By calm alone: what calm says counts in full and the other three not at all.
    answer = judged_by_all.what_if(["constitution.only=[calm]"])
    assert 0 < len(answer.examples) <= 10
    by_calm = {row.comparison: row.p_a for row in judged_by_all.judgements if row.principle == "calm"}
    flips = [example for example in answer.examples if example.kind == "flipped"]
    assert flips
    for example in answer.examples:
        assert example.after == pytest.approx(by_calm[example.comparison.id])
        assert example.before is not None
        assert example.after is not None
        moved = example.after - example.before
        assert all(push * moved > 0 for _, push in example.tipped)
    assert sum(answer.tips.values()) <= answer.labels["flipped"] + answer.labels.get(
        "decided now", 0
    ) + answer.labels.get("undecided now", 0)


def test_a_flip_by_hand(tmp_path: Path) -> None:
    run = labelled(tmp_path, "label.principles=all", "constitution.only=[calm,kind]")
    target = run.comparisons[0].id
    said = {"calm": 0.9, "kind": 0.3}
    run.judgements = [
        row.model_copy(update={"p_a": said[row.principle] if row.comparison == target else 0.9})
        for row in run.judgements
    ]
    # Before (0.9 + 0.3) / 2 = 0.6; after (1·0.9 + 5·0.3) / 6 = 0.4. Pushes: calm 0.4·(1/6 − 1/2) = −0.1333,
    # kind −0.2·(5/6 − 1/2) = −0.0667; together −0.2.
    answer = run.what_if(["constitution.weights.kind=5"])
    assert answer.labels == {"flipped": 1, "unchanged": len(run.comparisons) - 1}
    (example,) = answer.examples
    assert (example.comparison.id, example.kind) == (target, "flipped")
    assert (example.before, example.after) == pytest.approx((0.6, 0.4))
    assert [name for name, _ in example.tipped] == ["calm", "kind"]
    assert [push for _, push in example.tipped] == pytest.approx([-0.4 / 3, -0.2 / 3])
    assert answer.tips == {"calm": 1}
    with pytest.raises(UsageError, match=r"constitution\.only=\[calm,kind\]"):  # what a run would have is not known
        run.what_if(["constitution.only=null"])


def test_every_selection_is_compared_with_the_run(judged_by_all: LabelledRun) -> None:
    answers = {tuple(chosen): judged_by_all.with_weights(chosen) for chosen in selections(judged_by_all.weights)}
    assert len(answers) == 15
    assert answers["calm", "brief", "kind", "honest"].labels.get("flipped", 0) == 0
    assert answers["calm",] == judged_by_all.what_if(["constitution.only=[calm]"])._replace(
        notes=answers["calm",].notes
    )


@pytest.mark.parametrize("mode", ["one", "telling"])
def test_what_another_principle_would_judge_is_counted_as_not_known(
    tmp_path: Path, judged_by_one: LabelledRun, mode: str
) -> None:
    run = judged_by_one if mode == "one" else labelled(tmp_path, "label.principles=telling")
    if mode == "telling":  # the scripted labeler writes no scores, so the judgements are made here
        run.judgements = [
            Judgement(comparison=name, principle=principle, principle_text="", labeler="", readings=(), p_a=0.9)
            for name, principle in zip(run.ids, run._now.drawn, strict=True)
        ]
        del run.__dict__["table"], run.__dict__["_now"]
    answer = run.what_if(["constitution.without=[calm]"])
    by_calm = [name for name, principle in zip(run.ids, run._now.drawn, strict=True) if principle == "calm"]
    assert by_calm
    if mode == "telling":
        assert answer.labels["not known"] == len(by_calm)
        assert answer.principles["calm"].unknown == answer.principles["calm"].before
    assert "flipped" not in answer.labels
    note = next(note for note in answer.notes if "another principle" in note)
    assert f"{len(by_calm)} of {len(run.ids)} comparisons" in note
    same = run.what_if(["constitution.weights.calm=1"])
    assert not any("another principle" in note for note in same.notes)


def test_a_weight_under_one_principle_changes_no_judgement_that_stays(judged_by_one: LabelledRun) -> None:
    run = judged_by_one
    drawn = {row.comparison: row.principle for row in run.judgements}
    answer = run.what_if(["constitution.weights.calm=3"])
    redrawn = run._lots.drawn({**run.weights, "calm": 3.0}) if run._lots else []
    other = sum(drawn[name] != new for name, new in zip(run.ids, redrawn, strict=True))
    assert 0 < other == answer.labels["not known"]
    assert set(answer.labels) == {"not known", "unchanged"}


def test_a_clamp_is_known_as_far_as_the_runs_own_hides_nothing(tmp_path: Path) -> None:
    run = labelled(tmp_path, "label.principles=all", "label.clamp=[0.3,0.7]")
    hidden = {row.comparison for row in run.judgements if {reading.p_a for reading in row.readings} & {0.3, 0.7}}
    assert hidden
    wider = run.what_if(["label.clamp=null"])
    assert wider.labels["not known"] == len(hidden)
    narrower = run.what_if(["label.clamp=[0.45,0.55]", "mix.margin=0.04"])
    assert "not known" not in narrower.labels
    assert all(0.45 <= example.after <= 0.55 for example in narrower.examples if example.after is not None)


def test_a_persons_verdict_stands_whatever_the_weights(tmp_path: Path, judged_by_all: LabelledRun) -> None:
    run = judged_by_all
    write_rows(tmp_path / "verdicts.jsonl", [Verdict(comparison=run.ids[0], rater="Ann", choice="a")])
    now = run.what_if(["mix.margin=0"])
    answer = run.what_if([f"mix.verdicts={tmp_path}/verdicts.jsonl"])
    of_ai = sum(answer.changes[name].lost for name in ("to train on", "held out"))
    assert of_ai == 1
    assert sum(change.after for change in answer.changes.values()) <= sum(
        change.after for change in now.changes.values()
    )


@pytest.mark.parametrize("words", [["mix.human_ratio=0.5"], ["mix.human_ratio=0.25", "mix.total=8"], []])
def test_peoples_preferences_are_mixed_in_as_the_stage_does(
    judged_by_all: LabelledRun, tmp_path: Path, words: list[str]
) -> None:
    run, file = judged_by_all, tmp_path / "people.jsonl"
    pairs = [{"prompt": f"Question {number}?", "chosen": "Yes.", "rejected": "No."} for number in range(12)]
    file.write_text("".join(f"{json.dumps(pair)}\n" for pair in pairs))
    answer = run.what_if([f"mix.human={file}", *words])
    settings = mix.Settings.model_validate(
        {**run.config.mix.model_dump(), "human": file, **dict(word.removeprefix("mix.").split("=") for word in words)}
    )
    people = read_comparisons(file).preferences
    counts = mix.mix(run.comparisons, run.judgements, (), people, settings, run.config.seed).counts
    assert answer.changes["people's, to train on"].after == counts["human preferences used"] > 0
    assert answer.changes["to train on"].after == counts["AI preferences used"]


@pytest.mark.parametrize(
    ("word", "kind", "told"),
    [
        ("constitution.weights.clam=2", ConfigurationError, "constitution.yaml: .*'calm'"),
        ("constitution.only=[clam]", ConfigurationError, "'calm'"),
        ("constitution.without=[calm,brief,kind,honest]", ConfigurationError, "no principle"),
        ("constitution.weights=3", ConfigurationError, "constitution.weights"),
        ("constitution.weights.calm=-1", ConfigurationError, "constitution.weights.calm"),
        ("constitution.file=other.yaml", UsageError, "without asking a model"),
        ("label.method=votes", UsageError, "without asking a model"),
        ("mix.margni=0.1", ConfigurationError, "mix.margin"),
        ("mix.human.x=1", UsageError, "human"),
        ("calm", UsageError, "KEY=VALUE"),
        ("mix=half_human", UsageError, "preset"),
        ("mix.human_ratio=0.5", ConfigurationError, "mix.human"),
    ],
)
def test_what_cannot_be_answered_is_refused(
    judged_by_all: LabelledRun, word: str, kind: type[ConstitutionalError], told: str
) -> None:
    with pytest.raises(kind, match=told):
        judged_by_all.what_if([word])


def test_a_choice_of_the_runs_own_is_not_taken_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = ["label.principles=all", "constitution.without=[calm]", "constitution.weights.kind=3"]
    run = labelled(tmp_path, *own)
    for word, told in (
        ("constitution.without=[honest]", r"without=\[calm,honest\]"),
        ("constitution.without=[]", r"without=\[calm\]"),
        ("constitution.weights={brief: 2}", r"\{kind: 3, brief: 2\}"),
    ):
        with pytest.raises(UsageError, match=told):
            run.what_if([word])
    # As it says: a run that leaves out both, and one in which both weights stand.
    assert "honest" not in run.what_if(["constitution.without=[calm,honest]"])._replace(notes=()).tips
    both = run.what_if(["constitution.weights={brief: 2, kind: 3}"])
    assert both == run.what_if(["constitution.weights.brief=2"])
    assert run.what_if(["constitution.weights={brief: 2}", "constitution.without=[calm,kind]"]).principles
    # Judgements of comparisons that the run has no more.
    assert cli.main(["what-if", str(run.folder), "mix.margin=0"]) == 0
    assert "warning" not in capsys.readouterr().err
    go(configured(tmp_path, "prompts.train=20", *own, "sample_pairs.temperature=0.5", "until=sample_pairs"), World())
    assert cli.main(["what-if", str(run.folder), "mix.margin=0"]) == 0
    assert "05_label" in capsys.readouterr().err


def test_a_principle_that_the_labeler_is_not_trusted_with_stays_out(judged_by_all: LabelledRun) -> None:
    run = judged_by_all
    run.untrusted = ("calm",)
    run.judgements = [row for row in run.judgements if row.principle != "calm"]
    answer = run.what_if(["constitution.weights.calm=5"])
    assert set(answer.labels) == {"unchanged"}
    assert "calm" not in answer.principles
    assert any("not trusted with calm" in note for note in answer.notes)
    with pytest.raises(ConfigurationError, match="not trusted"):
        run.what_if(["constitution.only=[calm]"])


def test_a_weight_of_0_leaves_a_principle_out_and_says_how_to_run_that(judged_by_all: LabelledRun) -> None:
    zero = judged_by_all.what_if(["constitution.weights.calm=0"])
    without = judged_by_all.what_if(["constitution.without=[calm]"])
    assert zero._replace(notes=()) == without._replace(notes=())
    assert "constitution.without=[calm]" in zero.notes[-1]


def test_a_run_without_judgements_says_what_to_run(tmp_path: Path) -> None:
    constitution(tmp_path)
    store, _ = go(configured(tmp_path, "until=sample_pairs"), World())
    with pytest.raises(RunError, match="until=label"):
        LabelledRun(RunStore.load(store.folder))


def test_the_command_prints_the_answer_and_writes_a_page(
    judged_by_all: LabelledRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.html"
    words = ["what-if", str(judged_by_all.folder), "constitution.only=[calm]", "--html", str(page), "mix.margin=0.01"]
    assert cli.main(words) == 0
    out = capsys.readouterr().out
    answer = judged_by_all.what_if(["constitution.only=[calm]", "mix.margin=0.01"])
    assert f"{answer.labels['flipped']} flip" in out
    shown = answer.examples[0].comparison
    assert shown.id in out
    html = page.read_text()
    assert shown.a in html
    assert shown.id in html
    assert "http" not in html.replace("http-equiv", "")
    assert cli.main(["what-if", str(judged_by_all.folder)]) == 2
    assert cli.main(["what-if", str(tmp_path), "mix.margin=0"]) == 2


def test_what_a_model_wrote_is_escaped_on_the_page(judged_by_all: LabelledRun, tmp_path: Path) -> None:
    from constitutional.cli.what_if import page

    answer = judged_by_all.what_if(["constitution.only=[calm]"])
    bad: Comparison = answer.examples[0].comparison.model_copy(update={"a": "<script>alert(1)</script>\x1b"})
    answer = answer._replace(examples=(answer.examples[0]._replace(comparison=bad),))
    html = page(tmp_path, ["x=1"], answer)
    assert "<script>" not in html
    assert "\x1b" not in html


def test_numbers_stay_within_the_probabilities(judged_by_all: LabelledRun) -> None:
    rng = random.Random(0)
    for _ in range(20):
        answer = judged_by_all.with_weights({name: rng.random() * 10 for name in judged_by_all.weights})
        assert all(example.after is not None and 0 <= example.after <= 1 for example in answer.examples)
        assert np.isfinite([change.after for change in answer.changes.values()]).all()
