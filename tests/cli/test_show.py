from pathlib import Path
from typing import Any

import pytest

from constitutional.base.errors import UsageError
from constitutional.base.records import (
    Comparison,
    GoldPoint,
    Judgement,
    Prompt,
    Reading,
    Revision,
    RevisionStep,
    Sample,
)
from constitutional.cli import show
from constitutional.cli.find import find
from constitutional.engines.spending import Calls
from constitutional.judging.scores import Change, Score
from constitutional.runs.compose import compose, dump
from constitutional.runs.folder import RunStore
from constitutional.runs.search import FoundRow, by_id
from tests.scripted_run import STAGES, finish

PROMPT = Prompt.of("Why is the sky blue?").model_copy(update={"split": "held_out"})
SAMPLE = Sample(
    prompt=PROMPT, replies={"base": "It is.", "sft_model": "Light\nscatters.", "policy": "Bl"}, cut_off=("policy",)
)


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    """A run that has made its prompts, failed at the second stage, and was killed within the third."""
    with RunStore.open(tmp_path / "first", dump(compose([]), {})) as store:
        finish(store, 0, "prompts", {"prompts": [PROMPT]}, Calls(asked=7, reused=5))
        store.begin(1, "labeler_check", tmp_path / "check")
        store.fail("labeler_check", "out of memory")
        store.begin(2, "critique_revise", tmp_path / "revise")
    return RunStore.load(tmp_path / "first")


def test_every_stage_of_a_run_is_shown_with_how_far_it_has_come(store: RunStore) -> None:
    _, *lines = show.stages(store).splitlines()
    assert [line.split()[0] for line in lines] == [f"{number:02d}_{stage.name}" for number, stage in enumerate(STAGES)]
    prompts, check, revise, *others = (" ".join(line.split()[1:]) for line in lines)
    assert prompts == "done 0:00 7 5 1 prompts"
    assert check == "failed out of memory"
    assert revise == "not finished"
    assert set(others) == {"not begun"}


def test_a_run_is_shown_without_loading_the_users_reward_function(tmp_path: Path) -> None:
    rewards = tmp_path / "mine.py"
    rewards.write_text("def short(prompts, completions):\n    return [0.0] * len(completions)\n")
    words = ["algorithm=grpo", f"algorithm.rewards=[{{kind: python, function: {rewards}:short}}]"]
    with RunStore.open(tmp_path / "mine", dump(compose(words), {})):
        rewards.write_text("raise SystemError('edited since')\n")
        _, *lines = show.stages(RunStore.load(tmp_path / "mine")).splitlines()
    assert any("_grpo" in line for line in lines)


def test_a_stage_that_is_done_again_is_not_finished_until_it_is(store: RunStore) -> None:
    with RunStore.open(store.folder, dump(compose([]), {})) as again:
        again.begin(0, "prompts", store.folder.parent / "other")
    _, line, *_ = show.stages(RunStore.load(store.folder)).splitlines()
    assert line.split() == ["00_prompts", "not", "finished"]


def test_a_held_out_prompt_is_shown_with_what_each_model_replied(store: RunStore) -> None:
    with RunStore.open(store.folder, dump(compose([]), {})) as writing:
        finish(writing, 9, "evaluate", {"samples": [SAMPLE]})
    store = RunStore.load(store.folder)
    told = find(store, PROMPT.id)
    assert told.splitlines() == [
        f"prompt {PROMPT.id} (held_out)",
        "  user: Why is the sky blue?",
        "",
        f"sample {SAMPLE.id}: what the models replied",
        "  Base: It is.",
        "  SL: Light",
        "      scatters.",
        "  RL (cut off): Bl",
        "",
        "files",
        f"  {store.folder}/00_prompts/prompts.jsonl:1",
        f"  {store.folder}/09_evaluate/samples.jsonl:1",
    ]
    assert find(store, SAMPLE.id).partition("\nfiles")[0] == told.partition("\nfiles")[0]


def test_a_revision_is_shown_with_the_words_that_it_was_asked_by(store: RunStore) -> None:
    step = RevisionStep(
        principle="calm",
        principle_text="Be calm.",
        revision_text="Take out every exclamation mark.",
        critique="It shouts.",
        found_nothing=False,
        revision="Yes.",
    )
    plain = step.model_copy(update={"principle": "kind", "revision_text": None})
    revision = Revision(prompt=PROMPT, draft="Yes!", steps=(step, plain))
    with RunStore.open(store.folder, dump(compose([]), {})) as writing:
        finish(writing, 2, "critique_revise", {"revisions": [revision]})
    told = find(RunStore.load(store.folder), revision.id).partition("\n\nfiles")[0].splitlines()
    assert told[-9:] == [
        "  round 1 by 'calm'",
        "    principle: Be calm.",
        "    critique: It shouts.",
        "    asked to revise by: Take out every exclamation mark.",
        "    revision: Yes.",
        "  round 2 by 'kind'",
        "    principle: Be calm.",
        "    critique: It shouts.",
        "    revision (unchanged): Yes.",
    ]


def test_a_judgement_is_shown_with_its_judge_and_how_it_was_asked(store: RunStore) -> None:
    pair = Comparison(prompt=PROMPT, a="Light scatters.", b="It is.")
    reading = Reading(order="a_first", rationale="It says why.", p_a=0.8, bounded=True, reasoning="Hm, light.")
    about: dict[str, Any] = {"comparison": pair.id, "principle": "calm", "principle_text": "Be calm.", "p_a": 0.8}
    judgements = [
        Judgement(labeler="abc rationale", readings=(reading,), **about),
        Judgement(labeler="scripted:mine 123 votes", readings=(reading,), judge="second", **about),
    ]
    with RunStore.open(store.folder, dump(compose([]), {})) as writing:
        finish(writing, 4, "sample_pairs", {"comparisons": [pair]})
        finish(writing, 5, "label", {"judgements": judgements})
    told = find(RunStore.load(store.folder), pair.id)
    assert "judge: labeler, abc, by rationale" in told
    assert "judge: second, scripted:mine, by votes" in told
    assert "0.800 (a bound)" in told
    assert "reasoning: Hm, light." in told


def test_an_id_is_found_where_the_advice_says(store: RunStore) -> None:
    with pytest.raises(UsageError) as caught:
        find(store, "zz")
    said = f"every row of the run's *.jsonl files begins with its id, such as {PROMPT.id}"
    assert str(caught.value).endswith(said)
    written = (store.folder / "00_prompts" / "prompts.jsonl").read_text()
    assert written.startswith(f'{{"id": "{PROMPT.id}", ')
    assert f"prompt {PROMPT.id}" in find(store, PROMPT.id)


@pytest.mark.parametrize(("low", "said"), [(0.01, True), (-0.01, False)])
def test_over_refusal_that_rose_clearly_is_said_below_the_table(store: RunStore, low: float, said: bool) -> None:
    def score(model: str, value: float, changes: dict[str, Change]) -> Score:
        ends = {"low": value, "high": value, "n": 69, "unit": "share"}
        return Score.model_validate(
            {"model": model, "measure": "over_refusal", "value": value, "changes": changes, **ends}
        )

    rose = Change(value=0.1, low=low, high=0.18, n=69)
    scores = [score("base", 0.01, {}), score("sft_model", 0.3, {"base": rose}), score("policy", 0.11, {"base": rose})]
    with RunStore.open(store.folder, dump(compose([]), {})) as writing:
        finish(writing, 9, "evaluate", {"scores": scores})
    _, row, *below = show.behaviour(RunStore.load(store.folder)).splitlines()
    assert row.split() == ["over-refusal", "1%", "(1–1)", "30%", "(30–30)", "11%", "(11–11)"]
    told = "got worse: over-refusal. RL refuses what harms nobody 10 points (1–18) more often than Base."
    assert below == ([told] if said else [])


def test_a_model_that_talks_nonsense_and_a_reward_that_was_over_optimised_are_said(store: RunStore) -> None:
    ends: dict[str, Any] = {"low": 0.0, "high": 1.0, "n": 100, "unit": "share", "measure": "well_formed"}
    fell = {"base": Change(value=-0.97, low=-0.997, high=-0.905, n=100)}
    scores = [
        Score.model_validate({"model": "base", "value": 0.97, **ends}),
        Score.model_validate({"model": "policy", "value": 0.0, "changes": fell, **ends}),
    ]
    stretch: dict[str, Any] = {"by": "traits", "sqrt_kl": None, "proxy": 0.0, "n": 100}
    gold = [
        GoldPoint(first_phase=1, last_phase=6, kl=2.2, gold=0.9, low=0.86, high=0.94, **stretch),
        GoldPoint(first_phase=7, last_phase=12, kl=15.4, gold=0.1, low=0.07, high=0.13, **stretch),
    ]
    with RunStore.open(store.folder, dump(compose([]), {})) as writing:
        finish(writing, 9, "evaluate", {"scores": scores, "gold": gold})
    nonsense, over_optimised = show.behaviour(RunStore.load(store.folder)).splitlines()[-2:]
    assert nonsense == "got worse: well formed. RL says what is well formed 97 points (90–100) less often than Base."
    # The difference of 0.9 and 0.1, whose half intervals are 0.04 and 0.03: 0.8 ± 0.05.
    assert over_optimised == (
        "got worse: the gold score (what the constitution’s tags ask for, found exactly) peaked at phases 1 to 6, "
        "KL 2.2 nats, and fell by 80.0 points since (75.0 to 85.0): the reward was over-optimised."
    )


def test_the_principle_whose_removal_flips_a_label_is_named(tmp_path: Path) -> None:
    pair = Comparison(prompt=PROMPT, a="It scatters.", b="Light.")
    rows = [
        Judgement(
            comparison=pair.id,
            principle=name,
            principle_text="…",
            labeler="x 1 by votes",
            readings=(),
            p_a=p,
            weight=weight,
        )
        for name, p, weight in (("calm", 0.9, 2.0), ("brief", 0.3, 1.0), ("kind", 0.46, 1.0))
    ]
    with RunStore.open(tmp_path / "first", dump(compose(["mix.margin=0.1"]), {})) as store:
        finish(store, 0, "prompts", {"comparisons": [pair], "judgements": rows})
    lines = show.item(RunStore.load(tmp_path / "first"), search_row(tmp_path / "first", pair.id)).splitlines()
    # (2·0.9 + 0.3 + 0.46)/4; without calm (0.3 + 0.46)/2, without brief (1.8 + 0.46)/3, without kind (1.8 + 0.3)/3
    assert "label: P(a is better) = 0.640, a is preferred" in lines
    assert "  without 'calm': 0.380, b is preferred; it tipped the label" in lines
    assert "  without 'brief': 0.753, a is preferred" in lines
    assert "  without 'kind': 0.700, a is preferred" in lines


def search_row(folder: Path, item: str) -> FoundRow:
    return by_id(RunStore.load(folder), item)[0]
