"""What votes say of a labeler, by hand."""

import pytest

from constitutional.base.corrected import rogan_gladen
from constitutional.base.records import Comparison, Judgement, Prompt, Reading, SpotCheck, Verdict
from constitutional.base.stats import wilson
from constitutional.judging.people import (
    by_kind,
    corrected_win_rate,
    on_gold,
    people_of,
    powered_agreement,
    work_of,
    wrong_first,
)

PAIRS = [
    Comparison(
        prompt=Prompt.of(f"Q{number}").model_copy(update={"info": {"kind": "odd" if number % 2 else "even"}}),
        a="A",
        b="B",
    )
    for number in range(12)
]


def judged(comparison: Comparison, p_a: float, principle: str = "calm") -> Judgement:
    return Judgement(
        comparison=comparison.id,
        principle=principle,
        principle_text="…",
        labeler="x",
        readings=(Reading(order="a_first", rationale="", p_a=p_a),),
        p_a=p_a,
    )


def check(comparison: Comparison, *, audit: bool = False, probability: float = 0.5) -> SpotCheck:
    return SpotCheck(comparison=comparison.id, reason="audit" if audit else "margin", probability=probability)


def vote(comparison: Comparison, choice: str, rater: str = "x", **more: object) -> Verdict:
    return Verdict.model_validate({"comparison": comparison.id, "rater": rater, "choice": choice, **more})


def test_work_is_counted_by_people_with_what_was_recorded() -> None:
    first, second, third = PAIRS[:3]
    replaced = (vote(third, "a", "ann", seconds=100, exposed=True), vote(third, "b", "bob", seconds=20, exposed=False))
    work = work_of(
        [
            vote(first, "a", "ann", seconds=30, exposed=True),
            vote(first, "b", "ann", principle="calm"),  # of the same vote
            vote(second, "skip", "ann", seconds=7.5, exposed=False),
            vote(second, "tie", "cem"),  # imported: nothing is recorded
            vote(third, "b", "bob (settled)", in_place_of=replaced),
            vote(first, "a", "simulated 1"),
            vote(second, "a", "simulated 2"),
        ]
    )
    assert (work.raters, work.votes, work.skips, work.simulated) == (3, 5, 1, 2)
    assert (work.timed, work.seconds) == (4, 157.5)
    assert (work.noted, work.exposures) == (4, 2)


def test_who_gives_known_answers_is_counted_and_nothing_else_is() -> None:
    rows = [
        vote(PAIRS[0], "a", "ann", gold="a"),
        vote(PAIRS[1], "b", "ann", gold="a"),
        vote(PAIRS[2], "skip", "ann", gold="a"),
        vote(PAIRS[1], "tie", "bob", gold="b"),
        vote(PAIRS[1], "b", "bob", principle="calm", gold="b"),
        vote(PAIRS[3], "a", "cem"),
    ]
    assert on_gold(rows) == {"ann": (1, 2), "bob": (0, 1)}


def test_what_is_not_recorded_does_not_stand_in_a_verdict_and_does_not_change_its_id() -> None:
    plain = vote(PAIRS[0], "a")
    assert {"seconds", "exposed", "in_place_of"}.isdisjoint(plain.model_dump())
    timed = vote(PAIRS[0], "a", seconds=3.5, exposed=False, in_place_of=[plain])
    assert Verdict.model_validate_json(timed.model_dump_json()) == timed
    assert timed.id != plain.id


def test_agreement_is_weighted_by_how_likely_a_comparison_was_to_be_chosen() -> None:
    # Ten that were certain, on which both agree; two with a probability of a tenth, on which they contradict.
    plan = [check(row, probability=1.0 if number < 10 else 0.1) for number, row in enumerate(PAIRS)]
    votes = [vote(row, "a") for row in PAIRS]
    judgements = [judged(row, 0.9 if number < 10 else 0.2) for number, row in enumerate(PAIRS)]
    people = people_of(plan, votes, PAIRS, judgements, seed=0)
    assert people.labeler is not None
    assert people.labeler.value == pytest.approx(10 / (10 + 20))
    assert people.audit is None
    assert people.by_principle["calm"].value == people.labeler.value
    assert {kind: rate.n for kind, rate in by_kind(people).items()} == {"even": 6, "odd": 6}


def test_the_audit_set_alone_is_a_plain_share() -> None:
    plan = [check(row, audit=number < 8, probability=0.01 * (number + 1)) for number, row in enumerate(PAIRS)]
    votes = [vote(row, "b" if number == 0 else "a") for number, row in enumerate(PAIRS)]
    people = people_of(plan, votes, PAIRS, [judged(row, 0.9) for row in PAIRS], seed=0)
    assert people.audit is not None
    assert (people.audit.value, people.audit.n) == (7 / 8, 8)
    assert people.audit.interval == pytest.approx(wilson(7, 8))
    # Of the eight the labeler says a; people a of seven.
    assert people.beyond_chance["Cohen’s κ"].value == pytest.approx(0)
    assert people.beyond_chance["Gwet’s AC1"].n == 8


def test_ties_count_half_and_bad_pairs_skips_and_votes_by_a_principle_say_nothing() -> None:
    plan = [check(row) for row in PAIRS[:7]]
    votes = [
        *(vote(PAIRS[0], "a"), vote(PAIRS[0], "b", "y")),  # even: half
        vote(PAIRS[1], "tie"),  # half
        vote(PAIRS[2], "both_bad"),
        vote(PAIRS[3], "skip"),
        vote(PAIRS[4], "a", principle="calm"),
        *(vote(PAIRS[5], "a"), vote(PAIRS[5], "tie", "y")),  # three quarters: a
        vote(PAIRS[11], "b"),  # nobody planned it
    ]
    people = people_of(plan, votes, PAIRS, [judged(row, 0.9) for row in PAIRS], seed=0)
    assert [row.agreement for row in people.seen] == [0.5, 0.5, 1.0]
    assert people.labeler is not None
    assert people.labeler.value == pytest.approx(2 / 3)


def test_people_s_agreement_with_each_other_is_over_double_votes_and_bad_is_a_vote() -> None:
    plan = [check(row) for row in PAIRS]
    votes = [vote(row, "a", rater) for row in PAIRS for rater in "xy"]
    votes[1] = vote(PAIRS[0], "both_bad", "y")
    people = people_of(plan, votes, PAIRS, [judged(row, 0.9) for row in PAIRS], seed=0)
    assert people.among.value == pytest.approx(11 / 12)
    assert people.among.n == 12
    unanimous = people_of(plan, [vote(row, "a", rater) for row in PAIRS for rater in "xy"], PAIRS, [], seed=0)
    assert unanimous.alpha.value is None
    assert unanimous.alpha.reason == "unanimous"
    assert unanimous.labeler is None  # there is no judgement


def test_a_win_rate_is_corrected_by_how_often_the_labeler_is_right() -> None:
    pairs = [Comparison(prompt=Prompt.of(f"Q{number}"), a="A", b="B") for number in range(100)]
    plan = [check(row, audit=True) for row in pairs]
    votes = [vote(row, "a" if number < 80 else "b") for number, row in enumerate(pairs)]
    people = people_of(plan, votes, pairs, [judged(row, 0.9) for row in pairs], seed=0)
    corrected = corrected_win_rate(62, 38, people)
    # Right in 80%: (0.62 + 0.8 − 1)/(2·0.8 − 1).
    assert corrected is not None
    assert corrected.value == pytest.approx(0.7)
    assert corrected.interval is not None
    assert corrected.interval.low < 0.6
    assert corrected.interval.high > 0.8
    # With a prompt for each comparison it is `rogan_gladen` of the counts, which is held against R's package asht.
    from_counts = rogan_gladen(62, 100, true_positives=80, positives=100, true_negatives=80, negatives=100)
    assert corrected._replace(to_halve=None) == from_counts._replace(to_halve=None)
    assert from_counts.interval == pytest.approx(corrected.interval)
    much = corrected_win_rate(6200, 3800, people)
    assert much is not None
    assert much.interval is not None
    assert much.to_halve is not None
    votes_then = 100 + much.to_halve
    right = round(0.8 * votes_then)
    counts = {"true_positives": right, "positives": votes_then, "true_negatives": right, "negatives": votes_then}
    then = rogan_gladen(6200, 10_000, **counts).interval
    assert then is not None
    assert then.high - then.low == pytest.approx((much.interval.high - much.interval.low) / 2, rel=0.02)
    coin = people_of(
        plan, [vote(row, "ab"[at % 2]) for at, row in enumerate(pairs)], pairs, [judged(row, 0.9) for row in pairs], 0
    )
    guessed = corrected_win_rate(62, 38, coin)
    assert guessed is not None
    assert guessed.reason == "uninformative"
    # Five comparisons of a prompt say no more than one: 20 prompts are worth 19 · (1.959964/2.093024)² of them.
    five = [Comparison(prompt=Prompt.of(f"Q{number // 5}"), a="A", b=f"B{number}") for number in range(100)]
    votes_on_five = [vote(row, "a" if number < 80 else "b") for number, row in enumerate(five)]
    plan_of_five, judgements = [check(row, audit=True) for row in five], [judged(row, 0.9) for row in five]
    clustered = corrected_win_rate(62, 38, people_of(plan_of_five, votes_on_five, five, judgements, seed=0))
    assert clustered is not None
    assert clustered.value == pytest.approx(0.7)
    assert clustered.interval is not None
    assert clustered.interval.high - clustered.interval.low > 1.2 * (corrected.interval.high - corrected.interval.low)
    nothing = people_of([check(row) for row in pairs], votes, pairs, [judged(row, 0.9) for row in pairs], seed=0)
    assert corrected_win_rate(62, 38, nothing) is None  # without an audit set


def test_the_surest_contradictions_come_first() -> None:
    plan = [check(row) for row in PAIRS[:4]]
    votes = [vote(row, "b") for row in PAIRS[:4]]
    judgements = [judged(row, p) for row, p in zip(PAIRS, (0.6, 0.99, 0.1, 0.8), strict=False)]
    people = people_of(plan, votes, PAIRS, judgements, seed=0)
    assert [row.comparison.id for row in wrong_first(people, 2)] == [PAIRS[1].id, PAIRS[3].id]


def test_the_labelers_agreement_by_prediction_powered_inference() -> None:
    # Of 1,000 pairs the labeler is 90% sure of 700 and 60% of 300. People voted on 40 of those and 20 of these.
    pairs = [Comparison(prompt=Prompt.of(f"Q{number}"), a="A", b="B") for number in range(1000)]
    judgements = [judged(row, 0.9 if number < 700 else 0.4) for number, row in enumerate(pairs)]
    sure, unsure = pairs[:40], pairs[700:720]
    votes = [
        *(vote(row, "a" if n < 30 else "b" if n < 36 else "tie") for n, row in enumerate(sure)),
        *(vote(row, "b" if n < 8 else "a" if n < 16 else "tie") for n, row in enumerate(unsure)),
    ]

    def powered(chances: tuple[float, float]) -> tuple[float, float, float]:
        plan = [
            check(row, probability=chance) for rows, chance in zip((sure, unsure), chances, strict=True) for row in rows
        ]
        people = people_of(plan, votes, pairs, judgements, seed=0)
        made = powered_agreement(people, pairs, judgements)
        assert made is not None
        assert (made.n, made.n_ai) == (60, 1000)
        return (made.value, *made.interval)

    # People agree in 0.8 of the sure and 0.5 of the unsure, so λ is 0.3/0.3 and the value that by strata, 0.56 + 0.15.
    # Its variance is 60/59 · 9.4/60² from the rest, and 1000/999 · 0.0189/1000 from how many of such pairs are sure:
    # 0.0026743, of which the root is 0.0517135, times 2.000995 of Student's t with 59 degrees of freedom.
    # ppi-python 0.2.3, with 1.96 and without these factors, takes the 60 as no part of the 1,000: 0.709938 (0.609428 to
    # 0.810448).
    assert powered((0.06, 0.06)) == pytest.approx((0.71, 0.606522, 0.813478), abs=1e-6)
    # The means are 850/1100 and 960/1100, and λ is (46.10 − 7.44) / (46.10 + 18.90 − 2 · 7.44).
    assert powered((0.04, 0.2))[0] == pytest.approx(850 / 1100 - 38.66 / 50.12 * (960 / 1100 - 0.81), abs=1e-5)


def test_the_ceiling_is_counted_and_weighted_as_the_labelers_agreement() -> None:
    # Two certain pairs on which raters agree, one with a probability of a quarter on which they contradict each other,
    # and one of a half on which one of them sees a tie: (1 + 1 + 4 · 0 + 2 · ½) / (1 + 1 + 4 + 2).
    chances, seconds = (1.0, 1.0, 0.25, 0.5, 1.0, 1.0), ("a", "a", "b", "tie", "both_bad", "")
    plan = [check(row, probability=chance) for row, chance in zip(PAIRS, chances, strict=False)]
    votes = [vote(row, "a", "ann") for row in PAIRS[:6]]
    votes += [vote(row, choice, "bob") for row, choice in zip(PAIRS, seconds, strict=False) if choice]
    people = people_of(plan, votes, PAIRS, [judged(row, 0.9) for row in PAIRS], seed=0)
    assert people.ceiling is not None
    assert (people.ceiling.value, people.ceiling.n) == pytest.approx((3 / 8, 4))
    assert people.among.value == pytest.approx(2 / 5)  # not weighted, and `both_bad` is a vote


def test_what_a_lead_settled_does_not_change_the_agreement() -> None:
    # The labeler says a of all ten; people b of four. The lead, who has seen the label, takes back three of these.
    plan = [check(row, audit=True) for row in PAIRS[:10]]
    votes = [vote(row, "b" if number < 4 else "a", "ann") for number, row in enumerate(PAIRS[:10])]
    settled = [
        vote(row.model_copy(), "a", "lea (settled)", in_place_of=[own]) if number < 3 else own
        for number, (row, own) in enumerate(zip(PAIRS, votes, strict=False))
    ]
    # Settled though nobody had voted: no blind vote.
    settled.append(vote(PAIRS[10], "a", "lea (settled)"))
    plan.append(check(PAIRS[10], audit=True))
    judgements = [judged(row, 0.9) for row in PAIRS]
    people = people_of(plan, settled, PAIRS, judgements, seed=0)
    assert people.audit is not None
    assert (people.audit.value, people.audit.n) == (0.6, 10)
    assert people == people_of(plan, votes, PAIRS, judgements, seed=0)
