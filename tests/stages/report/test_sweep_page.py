"""Many runs together, by made-up measurements whose effects are known."""

import re
from collections import Counter
from collections.abc import Sequence

import pytest

from constitutional.base.effects import Effect, Estimate
from constitutional.base.records import Comparison, Judgement, Prompt
from constitutional.base.stats import Interval, wilson
from constitutional.constitution.constitution import Constitution, Principle
from constitutional.engines.spending import Calls
from constitutional.judging.scores import Score
from constitutional.stages.report.sweep_data import (
    ComparedRun,
    axes,
    best_of,
    columns,
    conflicts,
    differing,
    flat,
    front,
    opposite,
    pooled,
    ratios,
    sources,
    variants,
)
from constitutional.stages.report.sweep_page import Unfinished, ratio_figures, render, shown_effect
from constitutional.stages.summaries import Direction

TEXTS = {"calm": "Stay calm today.", "brief": "Be brief at once.", "kind": "Be kind to all."}
PROMPTS = 40


def first_of(count: int, seed: int = 0) -> dict[str, float]:
    """1 on the first so many prompts, and 0 on the others."""
    return {f"s{seed} p{number:02}": float(number < count) for number in range(PROMPTS)}


def made(
    name: str,
    principles: Sequence[str],
    policy: dict[str, int],
    *,
    seed: int = 0,
    texts: dict[str, str] | None = None,
    settings: dict[str, object] | None = None,
) -> ComparedRun:
    """A run whose policy shows each measure on so many of 40 prompts, where the base model shows it on 20."""
    chosen = {**TEXTS, **(texts or {})}
    constitution = Constitution(
        name="ours", principles=tuple(Principle(id=id_, text=chosen[id_]) for id_ in principles)
    )
    values = {("policy", measure): first_of(count, seed) for measure, count in policy.items()}
    values |= {("base", measure): first_of(20, seed) for measure in policy}
    scores = tuple(
        Score(model=model, measure=measure, value=sum(by.values()) / PROMPTS, low=0, high=1, n=PROMPTS, unit="share")
        for (model, measure), by in values.items()
    )
    wanted: dict[str, Direction] = {"over_refusal": "lower", "trait_rate/flattery": "lower"}
    own = {"name": name, "seed": seed, "constitution.wordings": texts or {}, **(settings or {})}
    return ComparedRun(
        name, seed, own, constitution, chosen, scores, values, {}, wanted, Counter(calm=3, brief=1), Calls(asked=10)
    )


ALL = ("calm", "brief", "kind")


def leave_one_out(seeds: Sequence[int] = (0,)) -> list[ComparedRun]:
    """Calm lowers flattery, brief raises verbosity, kind does nothing."""
    counts = {"whole": (2, 30), "calm": (22, 30), "brief": (2, 10), "kind": (3, 29)}
    return [
        made(
            f"x-seed={seed}-{name if name == 'whole' else f'without_{name}'}",
            [principle for principle in ALL if principle != name],
            {"trait_rate/flattery": flattery, "trait_rate/verbosity": verbosity},
            seed=seed,
        )
        for seed in seeds
        for name, (flattery, verbosity) in counts.items()
    ]


def test_an_effect_is_the_whole_less_the_run_without_the_principle() -> None:
    found = sources(variants(leave_one_out((0, 1))))
    assert found is not None
    assert found.whole.name == "x-whole"
    cells = {(row.label, measure): cell for row in found.rows for measure, cell in row.cells.items()}
    flattery = cells["calm", "trait_rate/flattery"]
    assert (flattery.estimate.value, flattery.estimate.prompts, flattery.estimate.seeds) == (-0.5, 80, 2)
    assert {place for place, cell in cells.items() if cell.clear} == {
        ("calm", "trait_rate/flattery"),
        ("brief", "trait_rate/verbosity"),
    }
    # Seeds 0 and 1 have their own prompts, and every pair of a seed is within it.
    assert cells["kind", "trait_rate/verbosity"].estimate.value == pytest.approx(1 / 40)
    assert columns(found.rows, {})[:2] == ["trait_rate/flattery", "trait_rate/verbosity"]


def test_a_control_is_a_row_of_its_own_over_all_seeds() -> None:
    runs = leave_one_out((0, 1))
    for seed, text in ((0, "today. Stay calm"), (1, "calm today. Stay")):
        counts = {"trait_rate/flattery": 22, "trait_rate/verbosity": 30}
        runs.append(made(f"x-seed={seed}-control_calm", ALL, counts, seed=seed, texts={"calm": text}))
    found = sources(variants(runs))
    assert found is not None
    control = next(row for row in found.rows if row.hint == "control")
    cell = control.cells["trait_rate/flattery"]
    assert (control.principle, cell.estimate.value, cell.estimate.seeds, cell.clear) == ("calm", 0.0, 2, False)
    part = next(row for row in found.changed if row.measure == "trait_rate/flattery").parts[0]
    assert part.left_out is not None
    assert part.left_out.clear
    assert part.control == cell


def test_violations_are_compared_only_where_both_runs_were_judged_by_the_same_words() -> None:
    measures = {"violation_rate/calm": 2, "violation_rate/kind": 5, "violation_rate/brief": 0}
    whole, without = (
        made("whole", ALL, measures),
        made("without", ("brief", "kind"), {**measures, "violation_rate/calm": 30}),
    )
    without = without._replace(critiqued={**TEXTS, "kind": "Be nice."})
    found = sources(variants([whole, without]))
    assert found is not None
    (row,) = found.rows
    assert row.cells.keys() == {"violation_rate/calm", "violation_rate/brief"}
    assert row.cells["violation_rate/calm"].estimate.value == -28 / 40  # of the principle that is left out


def test_what_only_one_run_measured_on_few_prompts_is_not_clear() -> None:
    whole, without = made("whole", ALL, {"trait_rate/x": 40}), made("without", ("calm", "kind"), {"trait_rate/x": 0})
    for run in (whole, without):
        by = run.values["policy", "trait_rate/x"]
        run.values["policy", "trait_rate/x"] = dict(list(by.items())[:9])
    found = sources(variants([whole, without]))
    assert found is not None
    cell = found.rows[0].cells["trait_rate/x"]
    assert (cell.estimate.value, cell.clear) == (1.0, False)
    shown = shown_effect(cell, "share", None)
    assert shown is not None
    assert (shown.sign, shown.css) == ("?", "muted")


def test_shapley_values_come_with_all_subsets_and_say_what_is_missing() -> None:
    runs = leave_one_out()
    found = sources(variants(runs))
    assert found is not None
    assert (found.exact, found.missing) == (None, {1: 3})
    alone = {"calm": (2, 12), "brief": (20, 30), "kind": (20, 20)}
    runs += [
        made(f"only_{name}", (name,), {"trait_rate/flattery": flattery, "trait_rate/verbosity": verbosity})
        for name, (flattery, verbosity) in alone.items()
    ]
    found = sources(variants(runs))
    assert found is not None
    assert found.exact is True
    assert {row.label for row in found.alone} == set(ALL)
    flattery = next(row for row in found.changed if row.measure == "trait_rate/flattery")
    values = {part.principle: part.shapley.estimate.value for part in flattery.parts if part.shapley}
    # v of the sets, in 40ths: none 20, c 2, b 20, k 20, cb 3, ck 2, bk 22, cbk 2.
    # calm: (−18)/3 + (−17 − 18)/6 + (−20)/3; brief: 0 + (1 + 2)/6 + 0; kind: 0 + (0 + 2)/6 − 1/3.
    assert values == pytest.approx({"calm": -18.5 / 40, "brief": 0.5 / 40, "kind": 0.0})
    assert sum(values.values()) == pytest.approx(flattery.change.estimate.value)


def test_variants_are_told_apart_by_all_but_their_seed() -> None:
    counts = {"over_refusal": 2}
    runs = [
        made("a-seed=0", ALL, counts),
        made("a-seed=1", ALL, counts, seed=1),
        made("b", ALL, counts, settings={"lr": 0.1}),
    ]
    assert [(variant.name, len(variant.runs)) for variant in variants(runs)] == [("a", 2), ("b", 1)]
    assert sources(variants(runs)) is None
    keys, rows = differing(runs)
    assert keys == ["seed", "lr"]
    assert rows == [["0", "–"], ["1", "–"], ["0", "0.1"]]


def test_an_edited_file_is_a_difference_although_the_settings_are_the_same() -> None:
    runs = [made("a", ALL, {}), made("b", ALL, {})]
    edited = runs[1].constitution.model_copy(update={"principles": runs[1].constitution.principles[:2]})
    keys, rows = differing([runs[0], runs[1]._replace(constitution=edited)])
    assert keys == ["principles, against a"]
    assert rows[0] == ["the same"]
    assert "kind" in rows[1][0]


def test_settings_by_their_dotted_names() -> None:
    nested = {"seed": 1, "mix": {"margin": 0.1, "deep": {"x": None}}, "constitution": {"weights": {"calm": 2}}}
    assert flat(nested) == {"seed": 1, "mix.margin": 0.1, "mix.deep.x": None, "constitution.weights": {"calm": 2}}


def test_the_front_is_of_what_all_runs_measured() -> None:
    runs = [
        made("good", ALL, {"over_refusal": 4, "trait_rate/harmful_compliance": 4}),
        made("worse", ALL, {"over_refusal": 8, "trait_rate/harmful_compliance": 6}, settings={"lr": 1}),
        made("harmless", ALL, {"over_refusal": 30, "trait_rate/harmful_compliance": 0}, settings={"lr": 2}),
    ]
    many = variants(runs)
    measured = axes(many)
    assert measured is not None
    assert [names for _, names in measured] == [["over_refusal"], ["trait_rate/harmful_compliance"]]
    places = {place.name: place for place in front(many, measured)}
    assert {name: place.number for name, place in places.items()} == {"Base": 0, "good": 2, "worse": 0, "harmless": 1}
    assert (places["good"].x[0], places["good"].y[0]) == (0.9, 0.9)
    without = variants([made("good", ALL, {"trait_rate/flattery": 1})])
    assert axes(without) is None


def test_the_best_run_is_named_with_whether_it_is_luck() -> None:
    runs = [
        made("a", ALL, {"violation_rate/calm": 10, "over_refusal": 0}),
        made("b", ALL, {"violation_rate/calm": 8, "over_refusal": 0}, settings={"lr": 1}),
        made("c", ALL, {"violation_rate/calm": 0, "over_refusal": 30}, settings={"lr": 2}),
    ]
    many = variants(runs)
    unbound, bound = best_of(many, "violations", None), best_of(many, "violations", 0.1)
    assert unbound is not None
    assert bound is not None
    assert (unbound.variant.name, bound.variant.name) == ("c", "b")
    assert "not clearly" not in unbound.remark
    assert "not clearly better than the next, a" in bound.remark
    assert best_of(variants([made("a", ALL, {"trait_rate/x": 1})]), "violations", None) is None


def test_the_best_is_found_although_no_prompt_has_every_measure() -> None:
    run, other = (
        made(name, ALL, {"violation_rate/calm": count, "violation_rate/kind": count}, settings={"lr": count})
        for name, count in (("a", 10), ("b", 8))
    )
    for each in (run, other):
        calm, kind = each.values["policy", "violation_rate/calm"], each.values["policy", "violation_rate/kind"]
        names = sorted(calm)
        each.values["policy", "violation_rate/calm"] = {name: calm[name] for name in names[::2]}
        each.values["policy", "violation_rate/kind"] = {name: kind[name] for name in names[1::2]}
    best = best_of(variants([run, other]), "violations", None)
    assert best is not None
    assert best.variant.name == "b"


def test_the_best_is_not_called_clearly_better_where_it_is_worse_on_the_same_prompts() -> None:
    # The best has a seed of its own without violations; on the seed that both have it is the worse one.
    best = [
        made("a-seed=0", ALL, {"violation_rate/calm": 0}),
        made("a-seed=1", ALL, {"violation_rate/calm": 20}, seed=1),
    ]
    following = [
        made("b-seed=1", ALL, {"violation_rate/calm": 0}, seed=1, settings={"lr": 1}),
        made("b-seed=2", ALL, {"violation_rate/calm": 40}, seed=2, settings={"lr": 1}),
    ]
    found = best_of(variants([*best, *following]), "violations", None)
    assert found is not None
    assert found.variant.name == "a"
    assert "not clearly better" in found.remark


def test_controls_hide_neither_the_best_nor_the_front() -> None:
    runs = [
        made("x-whole", ALL, {"violation_rate/calm": 2, "over_refusal": 3}),
        made("x-without_calm", ("brief", "kind"), {"violation_rate/calm": 30, "over_refusal": 2}),
        made("x-control_calm", ALL, {"violation_rate/calm": 0, "over_refusal": 0}, texts={"calm": "today. Stay calm"}),
    ]
    runs[1] = runs[1]._replace(critiqued=TEXTS)
    html = page(runs)
    assert "Best: x-whole" in html
    assert "Helpfulness against harmlessness" in html


def test_a_page_says_where_seeds_are_not_in_its_intervals() -> None:
    runs = leave_one_out((0, 1))
    assert "for other prompts and for other seeds" in page(runs)
    assert "of one seed" in page([run for run in runs if "seed=0" in run.name or "whole" in run.name])


def test_shares_of_people_s_labels_are_in_order_with_their_totals() -> None:
    runs = [
        made(
            f"r-seed={seed}-{share}",
            ALL,
            {"over_refusal": 4 + round(8 * share)},
            seed=seed,
            settings={"mix.human_ratio": share},
        )
        for share in (0.5, 0.0)
        for seed in (0, 1)
    ]
    rows = ratios(variants(runs))
    assert [(row.share, row.pairs, row.calls.answers) for row in rows] == [(0.0, 4, 10), (0.5, 4, 10)]
    assert rows[1].measures["over_refusal"][0] == pytest.approx(0.2)
    assert ratios(variants(runs[:2])) == []


def test_the_win_rate_of_a_share_is_the_one_of_the_runs_scores() -> None:
    # 12 of 19 prompts are won, most of them hardly: the mean probability is far from 12/19.
    outcomes = {f"p{at}": 0.51 if at < 12 else 0.0 for at in range(19)} | {"even": 0.5}
    runs = [
        made(f"r-{share}", ALL, {"over_refusal": 4}, settings={"mix.human_ratio": share})._replace(
            scores=(
                Score(model="policy", measure="win_rate/base", value=0.625, low=0.4, high=0.8, n=20, unit="share"),
            ),
            values={("policy", "win_rate/base"): outcomes},
        )
        for share in (0.0, 0.5)
    ]
    assert [row.measures["win_rate/base"][0] for row in ratios(variants(runs))] == pytest.approx([12.5 / 20] * 2)


def test_a_mean_of_what_is_no_share_is_not_drawn_as_one() -> None:
    lists = "list items"
    runs = [
        made(f"r-{share}", ALL, {}, settings={"mix.human_ratio": share})._replace(
            scores=(Score(model="policy", measure="rule_more/brief", value=0.4, low=0, high=9, n=PROMPTS, unit=lists),),
            values={("policy", "rule_more/brief"): {f"p{at}": share * (at % 2) for at in range(PROMPTS)}},
        )
        for share in (0.2, 0.4)
    ]
    ((_, counts), *_) = ratio_figures(ratios(variants(runs)), {}, {"rule_more/brief": lists})
    ((_, shares), *_) = ratio_figures(ratios(variants(runs)), {}, {"rule_more/brief": "share"})
    assert (counts.count("%</text>"), shares.count("%</text>")) == (5, 10)  # the lower axis has shares in both


PAIR = [Comparison(prompt=Prompt.of("Why?"), a=f"A {number}", b=f"B {number}") for number in range(3)]


def judged(pair: Comparison, principle: str, p_a: float, *, conflict: bool = False) -> Judgement:
    return Judgement(
        comparison=pair.id,
        principle=principle,
        principle_text="…",
        labeler="x",
        readings=(),
        p_a=p_a,
        conflict=conflict,
    )


def test_principles_that_prefer_different_responses_are_counted_with_examples() -> None:
    judgements = [
        *(judged(PAIR[0], "calm", 0.9), judged(PAIR[0], "brief", 0.2)),
        *(judged(PAIR[1], "calm", 0.9), judged(PAIR[1], "brief", 0.8)),
        *(judged(PAIR[2], "calm", 0.9), judged(PAIR[2], "brief", 0.45)),  # within the margin
        judged(PAIR[1], "kind", 0.1, conflict=True),
    ]
    (row,) = conflicts(pooled(judgements, PAIR), 0.1)
    assert (row.pair, row.apart, row.both) == (("brief", "calm"), 1, 2)
    assert [(pair.a, first, second) for pair, first, second in row.examples] == [("A 0", 0.2, 0.9)]


def test_comparisons_of_one_prompt_are_no_independent_ones_where_principles_conflict() -> None:
    def interval(prompts: int) -> Interval:
        pairs = [Comparison(prompt=Prompt.of(f"Why {at % prompts}?"), a=f"A {at}", b=f"B {at}") for at in range(12)]
        apart = [0.1 if at % prompts < prompts / 2 else 0.9 for at in range(12)]  # the same for all of a prompt
        judgements = [judged(pair, "calm", 0.9) for pair in pairs]
        judgements += [judged(pair, "brief", p_a) for pair, p_a in zip(pairs, apart, strict=True)]
        (row,) = conflicts(pooled(judgements, pairs), 0.1)
        assert (row.apart, row.both) == (6, 12)
        return row.interval

    assert interval(12) == wilson(6, 12)
    low, high = interval(4)  # as of 4 observations, and by Student's t with 3 degrees of freedom
    assert low < wilson(2, 4).low
    assert high > wilson(2, 4).high


def test_principles_that_move_a_behaviour_opposite_ways_conflict() -> None:
    whole = made("whole", ALL, {"trait_rate/x": 20})
    raised, lowered = (
        made("1", ("brief", "kind"), {"trait_rate/x": 0}),
        made("2", ("calm", "kind"), {"trait_rate/x": 40}),
    )
    found = sources(variants([whole, raised, lowered]))
    assert found is not None
    assert opposite(found.rows) == [("trait_rate/x", "calm", "brief")]


def page(runs: Sequence[ComparedRun]) -> str:
    return render(
        runs,
        [Unfinished("late", "failed in sft", "out of <memory>")],
        None,
        (pooled([]), 0.1),
        ["n.csv"],
        "run {}".format,
    )


def test_the_page_says_first_which_principle_did_what_and_what_is_missing() -> None:
    html = page(leave_one_out((0, 1)))
    lead, *rest = re.findall(r'<p class="lead">(.*?)</p>', html)
    assert "3 principles, 2 clearly" in lead
    assert "calm did most: it lowered flattery by 50 points" in lead
    assert not rest
    assert "calm lowered flattery by 50 points" in html
    # 3 and 29 of 40 with it, 2 and 30 without it: one prompt of each seed.
    assert re.search(
        r"kind did nothing that is clear, on 80 prompts; nearest to it: \w+ .2 points \(−\d+ to \+\d+\)", html
    )
    assert "out of &lt;memory&gt;" in html
    assert "label.principles=all" in html  # no comparison was judged by two principles
    assert 'href="n.csv"' in html


def test_a_page_of_many_runs_scrolls_in_its_boxes_alone() -> None:
    runs = [
        made(
            f"r{number}",
            ALL,
            {"over_refusal": number % 40, "trait_rate/harmful_compliance": 5},
            settings={"lr": number},
        )
        for number in range(60)
    ]
    html = page(runs)
    tables = re.findall(r"(.{20})<table", html, re.DOTALL)
    assert tables
    assert all('class="scroll">' in before for before in tables)
    assert html.count('<th scope="row">r59</th>') >= 1


def test_runs_of_which_nothing_was_measured_make_a_page_that_says_so() -> None:
    runs = [made("a", ALL, {}), made("b", ("calm", "kind"), {}), made("c", ALL, {}, settings={"mix.human_ratio": 0.5})]
    html = page([runs[0]._replace(settings={**runs[0].settings, "mix.human_ratio": 0.0}), *runs[1:]])
    assert "on 0 prompts: too few to tell" in html or "Nothing can be said" in html
    assert "Helpfulness against harmlessness" not in html


def test_a_numbered_place_stands_on_the_front_with_its_numbers_in_a_table() -> None:
    runs = [
        made("good", ALL, {"over_refusal": 4, "trait_rate/harmful_compliance": 4}),
        made("worse", ALL, {"over_refusal": 8, "trait_rate/harmful_compliance": 6}, settings={"lr": 1}),
        made("third", ALL, {"over_refusal": 9, "trait_rate/harmful_compliance": 7}, settings={"lr": 2}),
    ]
    html = page(runs)
    assert '<th scope="row">1. good</th><td>90% (' in html
    assert "<title>worse: 80%, 85%</title>" in html
    assert "harmless requests that are not refused" in html


def test_numbers_of_places_that_lie_on_each_other_stand_side_by_side() -> None:
    counts = {"over_refusal": 4, "trait_rate/harmful_compliance": 4}
    html = page([made(name, ALL, counts, settings={"lr": number}) for number, name in enumerate("abc")])
    assert 'text-anchor="end">1, 2, 3</text>' in html or 'text-anchor="start">1, 2, 3</text>' in html


def test_a_run_with_one_more_principle_does_not_hide_what_leaving_out_tells() -> None:
    counts = {"trait_rate/flattery": 2, "trait_rate/verbosity": 30}
    other = made("plain", (*ALL, "honest"), counts, texts={"honest": "Be honest."})
    other = other._replace(settings=leave_one_out()[0].settings | {"name": "plain"})
    found = sources(variants([other, *leave_one_out()]))
    assert found is not None
    assert found.whole.name == "x-seed=0-whole"
    assert {row.label for row in found.rows} == set(ALL)


def test_shapley_values_from_fewer_seeds_are_said_to_be() -> None:
    runs = leave_one_out((0, 1))
    runs += [made(f"only_{name}", (name,), {"trait_rate/flattery": 12, "trait_rate/verbosity": 12}) for name in ALL]
    assert "Shapley values are over 1 of 2 seeds" in page(runs)
    assert "Shapley values are over" not in page([run for run in runs if run.seed == 0])


def test_principles_alone_leave_nothing_out_and_the_page_says_so() -> None:
    runs = [made("whole", ALL, {"trait_rate/flattery": 2})]
    runs += [made(f"only_{name}", (name,), {"trait_rate/flattery": 2}) for name in ALL]
    html = page(runs)
    assert "not known: no run leaves a principle out" in html
    assert "from no single principle" not in html
    assert "against what is wanted" in html  # the legend


def test_what_a_principle_clearly_changed_is_listed_though_the_whole_is_like_the_base() -> None:
    # The whole shows it on 20 of 40, as the base does, and without calm it is on none.
    whole, without = made("whole", ALL, {"trait_rate/x": 20}), made("without", ("brief", "kind"), {"trait_rate/x": 0})
    found = sources(variants([whole, without]))
    assert found is not None
    assert [(row.measure, row.change.clear) for row in found.changed] == [("trait_rate/x", False)]


def test_what_is_no_share_is_told_in_its_unit() -> None:
    runs = []
    for name, kept, mean in (("whole", ALL, 32.0), ("without", ("brief", "kind"), 20.0)):
        values = {f"p{number:02}": mean + (number % 2 - 0.5) for number in range(PROMPTS)}
        score = Score(model="policy", measure="rule_more/kind", value=mean, low=0, high=99, n=PROMPTS, unit="words")
        at = {("policy", "rule_more/kind"): values, ("base", "rule_more/kind"): values}
        runs.append(made(name, kept, {})._replace(scores=(score,), values=at))
    assert "calm raised count by the rule of kind by 12.0 words (" in " ".join(page(runs).split())
    near = values | {"p00": values["p00"] + 4}  # one prompt of 40 tells nothing that is clear
    runs[0] = runs[0]._replace(values={("policy", "rule_more/kind"): near, ("base", "rule_more/kind"): values})
    assert "nearest to it: count by the rule of kind +0.1 words (" in " ".join(page(runs).split())


def test_a_clear_effect_never_seems_to_end_at_nothing() -> None:
    cell = shown_effect(Effect(Estimate(0.3, 0.3, 0.01, 40, 1), 0.002, 0.6, clear=True), "share", None)
    assert cell is not None
    assert cell.interval == "+0.20 to +60.00"
