"""The stage that waits for people."""

import random
from pathlib import Path

import pytest

from constitutional.base.errors import ConfigurationError, InputError, WaitingError
from constitutional.base.records import Comparison, Judgement, Prompt, Sample, Verdict
from constitutional.constitution.constitution import Constitution, Principle
from constitutional.judging.evaluated import contests_of, violation_items, work_of_answers
from constitutional.judging.scores import Measurement
from constitutional.judging.simulated_people import simulated, simulated_answers
from constitutional.sandbox.prompts import sandbox_prompt, sandbox_prompt_set
from constitutional.sandbox.world import TRAITS, compose, settle, text_of
from constitutional.stages.spotcheck import Settings, Simulation, run
from constitutional.stages.summaries import SpotCheckSummary
from tests.judging.test_spotchecks import judged
from tests.tiny import OneStage

POLITE = Constitution(
    name="one", principles=(Principle(id="calm", text="Do not flatter.", tags=("flattery", "avoid")),)
)


def work(comparisons: list[Comparison], folder: Path = Path("runs/x")) -> OneStage:
    judgements: list[Judgement] = [judged(row, 0.9) for row in comparisons]
    return OneStage(folder, rows={"comparisons": comparisons, "judgements": judgements}, constitution=POLITE)


def pairs(count: int = 20) -> list[Comparison]:
    return [Comparison(prompt=Prompt.of(f"Question {number}?"), a="One.", b="Two.") for number in range(count)]


def test_it_waits_for_people_and_says_what_to_type() -> None:
    context = work(pairs())
    with pytest.raises(WaitingError, match=r"10 comparisons wait for 11 votes.*constitutional review runs/x") as error:
        run(Settings(budget=11, overlap=0.1), context)
    assert error.value.exit_code == 3
    assert "spotchecks" not in context.rows


def test_it_says_where_a_budget_is_more_than_can_be_asked_about() -> None:
    with pytest.raises(WaitingError, match=r"20 comparisons wait for 22 votes of people \(the budget is for 60 votes"):
        run(Settings(budget=60, overlap=0.1), work(pairs()))
    context = work(pairs())
    run(Settings(budget=60, overlap=0.1, wait=False), context)
    (warning,) = context.warnings
    assert "the 20 comparisons that can be asked about take 22" in warning


def test_it_says_which_votes_a_larger_budget_still_wants(tmp_path: Path) -> None:
    context = work(pairs())
    run(Settings(budget=5, overlap=0, wait=False), context)
    assert context.warnings == []
    file = tmp_path / "votes.jsonl"
    votes = [Verdict(comparison=row.comparison, rater="x", choice="a") for row in context.rows["spotchecks"]]
    file.write_text("".join(f"{row.model_dump_json()}\n" for row in votes))
    context = work(pairs())
    run(Settings(budget=5, overlap=0, verdicts=file), context)
    assert context.warnings == []
    context = work(pairs())
    run(Settings(budget=12, overlap=0, verdicts=file), context)
    (warning,) = context.warnings
    assert "holds 5 of 12 votes" in warning
    # Votes on comparisons that were not asked about, and a third vote on one, are none of those that are wanted.
    planned = {row.comparison for row in context.rows["spotchecks"]}
    others = [row.id for row in pairs() if row.id not in planned]
    more = [Verdict(comparison=name, rater="x", choice="b") for name in others]
    more += [Verdict(comparison=votes[0].comparison, rater=rater, choice="b") for rater in "yz"]
    file.write_text("".join(f"{row.model_dump_json()}\n" for row in (*votes, *more)))
    context = work(pairs())
    run(Settings(budget=12, overlap=0, verdicts=file), context)
    (warning,) = context.warnings
    assert "holds 5 of 12 votes" in warning
    assert "spotcheck.verdicts=null" in warning


def test_votes_without_the_budget_that_planned_them_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"spotcheck\.budget"):
        Settings(verdicts=tmp_path / "votes.jsonl")
    assert Settings(verdicts=tmp_path / "votes.jsonl", budget=11).votes == 11
    with pytest.raises(ValueError, match=r"spotcheck\.simulate=null"):
        Settings(verdicts=tmp_path / "votes.jsonl", budget=11, simulate=Simulation())


def test_it_goes_on_without_them_if_told_so() -> None:
    context = work(pairs())
    run(Settings(budget=11, wait=False), context)
    assert context.rows["verdicts"] == []
    assert len(context.rows["spotchecks"]) == 9
    said = context.said
    assert isinstance(said, SpotCheckSummary)
    assert (said.votes, said.raters, said.answered, said.simulated) == (0, 0, 0, False)


def test_it_takes_a_file_of_votes(tmp_path: Path) -> None:
    context = work(pairs())
    run(Settings(budget=11, wait=False), context)
    plan = context.rows["spotchecks"]
    file = tmp_path / "votes.jsonl"
    votes = [Verdict(comparison=row.comparison, rater=rater, choice="a") for row in plan[:4] for rater in ("x", "y")]
    file.write_text("".join(f"{row.model_dump_json()}\n" for row in votes))
    context = work(pairs())
    run(Settings(budget=11, verdicts=file), context)
    assert context.rows["spotchecks"] == plan
    assert context.rows["verdicts"] == votes
    said = context.said
    assert isinstance(said, SpotCheckSummary)
    assert (said.votes, said.raters, said.answered) == (8, 2, 4)
    # Skips are no votes, and a verdict by a principle is part of one.
    file.write_text("".join(f"{row.model_copy(update={'choice': 'skip'}).model_dump_json()}\n" for row in votes[2:]))
    with file.open("a") as lines:
        for principle in (None, "calm"):
            lines.write(f"{votes[0].model_copy(update={'principle': principle}).model_dump_json()}\n")
    context = work(pairs())
    run(Settings(budget=11, verdicts=file), context)
    assert isinstance(context.said, SpotCheckSummary)
    assert (context.said.votes, context.said.answered) == (1, 1)
    file.write_text('{"comparison": "none", "rater": "x", "choice": "a"}\n')
    with pytest.raises(InputError, match=r"votes\.jsonl:1"):
        run(Settings(budget=11, verdicts=file), work(pairs()))


def in_the_sandbox(count: int = 30) -> list[Comparison]:
    """Pairs of which the second reply flatters and the first does not; they differ in nothing else."""
    rows = []
    for prompt in sandbox_prompt_set(count, 0, 0):
        world = sandbox_prompt(prompt)
        traits = [dict.fromkeys(TRAITS, False) | {"flattery": shown} for shown in (False, True)]
        plain, flattering = (text_of(compose(random.Random(0), world, settle(world, row))) for row in traits)
        rows.append(Comparison(prompt=prompt, a=plain, b=flattering))
    return rows


def test_simulated_people_prefer_what_keeps_more_of_the_constitution_and_err_as_often_as_said() -> None:
    context = work(in_the_sandbox())
    run(Settings(budget=60, overlap=1.0, simulate=Simulation(error=0.0)), context)
    votes = context.rows["verdicts"]
    assert len(votes) == sum(row.votes for row in context.rows["spotchecks"]) == 60
    assert {vote.choice for vote in votes} == {"a"}
    assert {vote.strength for vote in votes} == {4}  # all of the constitution against nothing of it
    assert {vote.rater for vote in votes} <= {"simulated 1", "simulated 2", "simulated 3"}
    assert len({(vote.comparison, vote.rater) for vote in votes}) == 60  # two raters of each
    assert isinstance(context.said, SpotCheckSummary)
    assert context.said.simulated
    wrong = 0
    for seed in range(20):
        made = simulated(context.rows["spotchecks"], context.rows["comparisons"], POLITE, 0.2, 3, seed)
        wrong += sum(vote.choice == "b" for vote in made)
    assert wrong / 1200 == pytest.approx(0.2, abs=0.04)


def test_a_pair_that_keeps_as_much_is_a_tie_and_other_people_s_prompts_are_refused() -> None:
    rows = in_the_sandbox(3)
    context = work([row.model_copy(update={"b": f"{row.a} "}) for row in rows])
    run(Settings(budget=3, simulate=Simulation()), context)
    assert context.rows["verdicts"] == []  # of equal texts there is nothing to judge
    with pytest.raises(ConfigurationError, match="in the sandbox alone"):
        run(Settings(budget=3, simulate=Simulation()), work(pairs()))
    untagged = work(rows)
    untagged.constitution = Constitution(name="one", principles=(Principle(id="calm", text="Do not flatter."),))
    with pytest.raises(ConfigurationError, match="tags"):
        run(Settings(budget=3, simulate=Simulation()), untagged)


def test_simulated_people_answer_about_half_of_the_evaluated_replies() -> None:
    rows = in_the_sandbox(40)
    # The last model flatters in every second reply, and the base model in the others.
    replies = [(row.a, row.b) if number % 2 else (row.b, row.a) for number, row in enumerate(rows)]
    samples = [
        Sample(prompt=row.prompt, replies={"base": base, "policy": policy})
        for row, (base, policy) in zip(rows, replies, strict=True)
    ]
    names = [row.prompt.id for row in rows]
    measured = [
        Measurement(model="policy", measure="win_rate/base", by_prompt=dict.fromkeys(names, 0.9)),
        Measurement(model="policy", measure="violation_rate/calm", by_prompt=dict.fromkeys(names, 0.0)),
    ]
    votes, answers = simulated_answers(samples, measured, POLITE, 0.0, 3, 0)
    assert (len(votes), len(answers)) == (20, 20)
    flatters = {sample.prompt.id: bool(number % 2) for number, sample in enumerate(samples)}
    contests = {row.comparison.id: row.comparison.prompt.id for row in contests_of(samples, measured)}
    assert all((vote.choice == "b") == flatters[contests[vote.comparison]] for vote in votes)
    items = {item.name: item.prompt for item in violation_items(samples, measured, POLITE, 0)}
    assert all(answer.violates == flatters[items[answer.item]] for answer in answers)
    assert {answer.rater for answer in answers} <= {"simulated 1", "simulated 2", "simulated 3"}
    work = work_of_answers(answers)
    assert (work.raters, work.votes, work.simulated) == (0, 0, 20)
    wrong = simulated_answers(samples, measured, POLITE, 0.5, 3, 0)[1]
    assert 4 < sum(answer.violates != flatters[items[answer.item]] for answer in wrong) < 16
