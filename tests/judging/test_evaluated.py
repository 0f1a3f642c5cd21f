"""What people's answers about the evaluated replies make of win rates and violation rates."""

import csv
import io
from pathlib import Path

import pytest

from constitutional.base.corrected import rogan_gladen
from constitutional.base.errors import InputError
from constitutional.base.records import Prompt, Sample, Verdict
from constitutional.base.stats import wilson
from constitutional.constitution.constitution import Constitution, Principle
from constitutional.judging.evaluated import (
    Contest,
    ViolationAnswer,
    ViolationItem,
    contests_of,
    read_answers,
    sheet,
    violation_estimates,
    violation_items,
    win_estimates,
    work_of_answers,
)
from constitutional.judging.scores import Measurement

CONSTITUTION = Constitution(
    name="Ours", principles=(Principle(id="calm", text="Stay calm."), Principle(id="brief", text="=Be brief."))
)


def samples(count: int) -> list[Sample]:
    return [
        Sample(prompt=Prompt.of(f"Q{n}"), replies={name: f"{name} {n}" for name in ("base", "sft_model", "policy")})
        for n in range(count)
    ]


def contests(labels: list[float]) -> list[Contest]:
    """The last model's replies against the base model's, with the labeler's probabilities."""
    made = samples(len(labels))
    by_prompt = {sample.prompt.id: p for sample, p in zip(made, labels, strict=True)}
    return contests_of(made, [Measurement(model="policy", measure="win_rate/base", by_prompt=by_prompt)])


def vote(contest: Contest, choice: str, rater: str = "ann", **more: object) -> Verdict:
    return Verdict.model_validate({"comparison": contest.comparison.id, "rater": rater, "choice": choice, **more})


def test_contests_are_the_last_models_replies_that_the_labeler_compared() -> None:
    one, two = samples(2)
    rates = [
        Measurement(model="policy", measure="win_rate/base", by_prompt={one.prompt.id: 0.9}),
        Measurement(model="policy", measure="win_rate/sft_model", by_prompt={one.prompt.id: 0.2, two.prompt.id: 0.5}),
        Measurement(model="sft_model", measure="win_rate/base", by_prompt={one.prompt.id: 0.9}),
    ]
    made = contests_of([one, two], rates)
    assert [(row.comparison.a, row.comparison.b, row.labeler) for row in made] == [
        ("policy 0", "base 0", 0.9),
        ("policy 0", "sft_model 0", 0.2),
        ("policy 1", "sft_model 1", 0.5),
    ]


def test_a_win_rate_by_prediction_powered_inference_is_that_of_its_authors() -> None:
    # Of the 60 that people voted on, the labeler gives 40 to the model: people say win, even, loss of 30, 6 and 4 of
    # these, and of 5, 4 and 11 of the others. Of 240 others it gives 150 to the model, and sees 10 as even.
    rows = contests([0.9] * 40 + [0.1] * 20 + [0.9] * 150 + [0.5] * 10 + [0.2] * 80)
    choices = ["a"] * 30 + ["tie"] * 5 + ["both_bad"] + ["b"] * 4 + ["a"] * 5 + ["tie"] * 4 + ["b"] * 11
    votes = [vote(row, choice) for row, choice in zip(rows, choices, strict=False)]
    made = win_estimates(rows, votes)["base"]
    assert made.powered is not None
    # ppi-python 0.2.3, ppi_mean_pointestimate: 0.658666. Its ppi_mean_ci is 0.563888 to 0.753445, of the variance
    # 0.00220428 from people and 0.00013413 from the labeler; for 60 and 240 prompts it is 60/59 and 240/239 of that,
    # and 2.000995 of Student's t with 59 degrees of freedom takes the place of 1.96: ± 0.097544.
    assert (made.powered.value, *made.powered.interval) == pytest.approx((0.658666, 0.561122, 0.756210), abs=1e-5)
    assert (made.powered.n, made.powered.n_ai, made.powered.warnings) == (60, 240, ())
    assert made.powered.to_halve is not None
    assert made.ai.value == pytest.approx(195 / 300)
    assert made.people.value == pytest.approx((35 + 5) / 60)
    # Where neither side is even: 30 of 35 wins and 11 of 15 losses are found. Of all, 190 of 290 are given to it.
    rate = made.rogan_gladen
    assert (rate.sensitivity, rate.specificity) == pytest.approx((30 / 35, 11 / 15))
    assert rate.value == pytest.approx((190 / 290 + 11 / 15 - 1) / (30 / 35 + 11 / 15 - 1))
    assert rate.n == 290  # without the labeler's ties
    plain = rogan_gladen(190, 290, true_positives=30, positives=35, true_negatives=11, negatives=15)
    assert rate == plain  # a comparison for each prompt


def test_several_votes_on_a_reply_are_their_mean_and_decisions_and_skips_do_not_count() -> None:
    rows = contests([0.9, 0.9, 0.1, 0.1])
    votes = [
        *(vote(rows[0], "a"), vote(rows[0], "tie", "bob")),
        vote(rows[1], "skip"),
        vote(rows[2], "b", principle="calm"),
        vote(rows[3], "a", "lea (settled)", in_place_of=[vote(rows[3], "b")]),
    ]
    made = win_estimates(rows, votes)["base"]
    assert (made.people.value, made.people.n) == pytest.approx(((0.75 + 0) / 2, 2))
    everybody = win_estimates(rows, [vote(row, "a") for row in rows])["base"]
    assert everybody.powered is None  # nothing is left to predict
    assert everybody.people.interval == wilson(4, 4)
    assert win_estimates(rows, []) == {}


def test_replies_that_read_the_same_are_in_no_win_rate() -> None:
    # An evaluation of an older version compared them. People see a tie where the labeler guessed.
    same = Sample(prompt=Prompt.of("Q"), replies={"base": "Bake  bread.", "policy": "Bake bread."})
    by_prompt = {sample.prompt.id: 0.9 for sample in (same, *samples(4))}
    rows = contests_of([same, *samples(4)], [Measurement(model="policy", measure="win_rate/base", by_prompt=by_prompt)])
    votes = [vote(row, "tie" if row.comparison.prompt == same.prompt else "a") for row in rows]
    made = win_estimates(rows, votes)["base"]
    assert (made.ai.n, made.people.value, made.people.n) == (4, 1, 4)


def violations(found: list[float], principle: str = "calm") -> list[ViolationItem]:
    return [ViolationItem(f"{principle}{n}", (), "", principle, "", f"p{n}", critic) for n, critic in enumerate(found)]


def test_violation_rates_are_corrected_in_all_and_by_principle() -> None:
    # Of 100 replies the critic flags 30. People answer about 40: of 12 flagged ones 9 are violations, of 28 others 2.
    found = [1.0] * 12 + [0.0] * 28 + [1.0] * 18 + [0.0] * 42
    items = violations(found)
    truth = [True] * 9 + [False] * 3 + [True] * 2 + [False] * 26
    answers = [ViolationAnswer(item.name, "ann", said) for item, said in zip(items, truth, strict=False)]
    made, by_principle = violation_estimates(items, answers)
    assert made is not None
    assert made.powered is not None
    # The critic flags 0.3 of both groups, so θ = 11/40 + λ(0.3 − 0.3): no correction. Cov = 9/40 − 11/40 · 0.3 and
    # Var(f) = 100/99 · 0.21; λ = Cov / ((1 + 40/60) · Var(f)).
    assert made.powered.value == pytest.approx(11 / 40)
    assert made.powered.tuning == pytest.approx((9 / 40 - 11 / 40 * 0.3) / ((1 + 40 / 60) * 0.21 * 100 / 99))
    assert made.powered.interval[1] - made.powered.interval[0] < made.people.interval[1] - made.people.interval[0]
    assert made.powered.warnings == ("few labels",)
    assert made.rogan_gladen.value == pytest.approx((0.3 + 26 / 29 - 1) / (9 / 11 + 26 / 29 - 1))
    assert by_principle == {"calm": made}
    assert violation_estimates(items, []) == (None, {})


def test_prompts_are_the_clusters_of_violations() -> None:
    # The same answers by two principles about the same replies say no more than by one.
    found, truth = ([1.0] * 10 + [0.0] * 10) * 2, [True] * 8 + [False] * 2 + [True] + [False] * 9
    items = violations(found)
    twice = [*items, *violations(found, "brief")]
    once = violation_estimates(items, [ViolationAnswer(f"calm{n}", "ann", said) for n, said in enumerate(truth)])[0]
    both = violation_estimates(
        twice,
        [ViolationAnswer(f"{name}{n}", "ann", said) for name in ("calm", "brief") for n, said in enumerate(truth)],
    )[0]
    assert once is not None
    assert both is not None
    assert once.powered is not None
    assert both.powered is not None
    assert both.powered.n == 40
    assert both.powered.value == pytest.approx(once.powered.value)
    assert both.powered.variance == pytest.approx(once.powered.variance, rel=0.03)  # taken for independent, half of it
    narrow, wide = once.rogan_gladen, both.rogan_gladen
    assert wide.n == 80
    assert wide.value == pytest.approx(narrow.value)
    assert narrow.interval is not None
    assert wide.interval is not None
    # k clusters of two are worth at most (k − 1)·(z/t)² items, and k single items are worth k.
    assert wide.interval.high - wide.interval.low > narrow.interval.high - narrow.interval.low


def test_answers_about_one_reply_are_none_about_another(tmp_path: Path) -> None:
    def names(reply: str = "Hello.", text: str = "Stay calm.") -> list[str]:
        sample = Sample(prompt=Prompt.of("Hi"), replies={"policy": reply})
        ours = Constitution(name="Ours", principles=(Principle(id="calm", text=text),))
        found = Measurement(model="policy", measure="violation_rate/calm", by_prompt={sample.prompt.id: 1.0})
        return [item.name for item in violation_items([sample], [found], ours, 0)]

    path = tmp_path / "sheet.csv"
    path.write_text(f"item,rater,violates\n{names()[0]},ann,yes\n")
    assert len(read_answers(path, names())) == 1
    for other in (names(reply="Goodbye."), names(text="Stay very calm.")):
        with pytest.raises(InputError, match=r"sheet\.csv:2.*report\.violations=null"):
            read_answers(path, other)


def test_a_sheet_is_blind_and_comes_back_as_answers(tmp_path: Path) -> None:
    made = samples(3)
    by_prompt = {sample.prompt.id: float(n == 0) for n, sample in enumerate(made)}
    measured = [
        Measurement(model=model, measure=f"violation_rate/{name}", by_prompt=by_prompt)
        for model in ("base", "policy")
        for name in ("calm", "brief", "unknown")
    ]
    items = violation_items(made, measured, CONSTITUTION, 0)
    assert len(items) == 6
    assert {item.reply for item in items} == {f"policy {n}" for n in range(3)}
    assert [item.name for item in items] == [item.name for item in violation_items(made, measured, CONSTITUTION, 0)]
    assert [item.name for item in items] != [item.name for item in violation_items(made, measured, CONSTITUTION, 1)]
    rows = list(csv.DictReader(io.StringIO(sheet(items).decode("utf-8-sig"))))
    assert {row["principle"] for row in rows} == {"Stay calm.", "'=Be brief."}  # no formula
    assert not any("violation_rate" in "".join(row.values()) for row in rows)
    rows[0] |= {"rater": "ann", "violates": "Yes"}
    rows[1] |= {"rater": "ann", "violates": "no"}
    rows.append({**rows[0], "rater": "bob", "violates": "0"})
    path = tmp_path / "sheet.csv"

    def write() -> Path:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
        return path

    answers = read_answers(write(), {item.name for item in items})
    assert answers == [
        ViolationAnswer(items[0].name, "ann", True),
        ViolationAnswer(items[1].name, "ann", False),
        ViolationAnswer(items[0].name, "bob", False),
    ]
    work = work_of_answers(answers)
    assert (work.raters, work.votes, work.timed) == (2, 3, 0)
    for changed, complaint in (
        ({"violates": "perhaps"}, r"sheet\.csv:2.*perhaps"),
        ({"rater": " "}, r"sheet\.csv:2.*rater"),
        ({"item": "v_none"}, r"sheet\.csv:2.*v_none"),
    ):
        kept = dict(rows[0])
        rows[0] |= changed
        with pytest.raises(InputError, match=complaint):
            read_answers(write(), {item.name for item in items})
        rows[0] = kept
    rows[-1] |= {"rater": "ann"}
    with pytest.raises(InputError, match="yes and no"):
        read_answers(write(), None)
    for row in rows:
        row["violates"] = ""
    with pytest.raises(InputError, match="no answer"):
        read_answers(write(), None)
    path.write_text("comparison,choice\nc,a\n")
    with pytest.raises(InputError, match="violates"):
        read_answers(path, None)
