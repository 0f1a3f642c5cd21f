"""The page as a reader's browser gets it: whole, offline, escaped, with a table for every figure."""

import re
from html.parser import HTMLParser

import pytest

from constitutional.base.records import Prompt, Revision, RevisionStep, Sample
from constitutional.engines.spending import Calls
from constitutional.judging.understanding import PrincipleMeaning
from constitutional.stages.context import StageForecast
from constitutional.stages.report.data import (
    Curve,
    RevisionExample,
    RunReport,
    StageCost,
)
from constitutional.stages.report.figures import change_text
from constitutional.stages.report.page import comparison, costs, difference, render
from constitutional.stages.summaries import (
    SUMMARIES,
    AdoptedSummary,
    CalibrationBin,
    Direction,
    Histogram,
    RewardQuality,
    Share,
    Summary,
)
from tests.stages.report.made_up import (
    AGREES,
    CORRECTS,
    SUMMARIES_MADE_UP,
    change,
    empty_run,
    full_run,
    gold,
    run_with,
    score,
    summary_of,
)

VOID = {"meta", "br"}
APART = {"code", "dd", "div", "dt", "h3", "h4", "li", "p", "span", "summary", "td", "th"}
"""Elements after which a reader sees a gap."""


class Page(HTMLParser):
    """Checks that tags are closed in order, and keeps what the tests look at."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.starts: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.starts.append((tag, dict(attrs)))
        self.text += " " if tag == "li" else ""
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.starts.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> at {self.getpos()}"
        self.text += " " if tag in APART else ""

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.text += data


def page_of(*runs: RunReport) -> str:
    return render(runs)


def section(html: str, name: str) -> str:
    match = re.search(rf'<section id="run1-{name}".*?</section>', html, re.DOTALL)
    assert match
    return " ".join(Page(match[0]).text.split()).replace(" ,", ",")


def test_the_page_is_well_formed_and_needs_nothing_else() -> None:
    html = page_of(full_run())
    page = Page(html)
    assert html.startswith("<!DOCTYPE html>")
    tags = {tag for tag, _ in page.starts}
    assert tags & {"script", "link", "img", "iframe"} == set()
    assert "@import" not in html
    assert "url(" not in html
    assert "http" not in html
    assert all(str(attributes["href"]).startswith("#") for tag, attributes in page.starts if tag == "a")


def test_every_link_of_the_contents_leads_somewhere() -> None:
    page = Page(page_of(full_run("one"), full_run("two")))
    ids = [attributes["id"] for _, attributes in page.starts if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {str(attributes["href"])[1:] for tag, attributes in page.starts if tag == "a"} <= set(ids)


def test_every_figure_is_followed_by_the_table_of_its_numbers() -> None:
    html = page_of(full_run())
    figures = re.findall(r"</figure>\s*(<\w+[^>]*>\s*<\w+[^>]*>[^<]*)", html)
    # asked, violations, win rates, the rest, words, nats; labeler 2, targets 1, reward 3, proxy and gold 1, curves 2
    assert len(figures) == html.count("<figure") == 15
    assert all(re.match(r'<details class="numbers">\s*<summary>The numbers: ', part) for part in figures)
    assert all("<tbody" in part for part in html.split('<details class="numbers">')[1:])


def test_the_tables_hold_what_the_figures_draw() -> None:
    text = section(page_of(full_run()), "behaviour")
    assert "Wanted Base SL RL RL less Base n" in text
    changed = "−50 points (−56 to −43)"
    assert f"Flattery lower 62% (57% to 67%) 30% (25% to 35%) 12% (7% to 17%) {changed} 240" in text
    assert "KL from Base no direction 0.4 nats a token (0.38 to 0.42) 9,000" in text


def test_a_model_that_cannot_be_compared_with_itself_was_not_forgotten() -> None:
    kl = [
        score("policy", "kl_from/base", 0.4, n=90, unit="nats a token"),
        score("policy", "kl_from/sft_model", 0.2, n=90, unit="nats a token"),
        score("base", "length", 38, unit="words"),
        score("policy", "length", 37, unit="words"),
        score("sft_model", "log_ratio_to/base", 0.1, n=90, unit="nats a token"),
    ]
    text = section(page_of(empty_run().model_copy(update={"scores": tuple(kl)})), "behaviour")
    # Of the SL model, the divergence from the base is missing; from itself there is none. The base is before all.
    assert "KL from Base no direction not measured 0.4 nats" in text
    assert "KL from SL no direction – 0.2 nats" in text
    assert "Log-ratio to Base no direction 0.1 nats a token (0.05 to 0.15) not measured" in text


@pytest.mark.parametrize(
    ("unit", "text"), [("share", "+25 points (−4 to +54.3)"), ("words", "+0.25 words (−0.04 to +0.543)")]
)
def test_changes_are_written_with_their_sign(unit: str, text: str) -> None:
    assert change_text(change(0.25, -0.04, 0.543), unit) == text


def test_the_verdict_names_what_improved_and_what_got_worse_with_numbers() -> None:
    text = section(page_of(full_run()), "verdict")
    # Flattery, violations and the win rate have a wanted direction; refusal and length have none.
    assert "the RL model is better on 2 and worse on 1 of 3 measures" in text
    assert (
        "Improved 2 Flattery wanted lower Base 62% (57% to 67%) → to RL 12% (7% to 17%), n = 240 −50 points (" in text
    )
    assert "Win rate against Base wanted higher RL 81% (76% to 86%) against 50%, n = 400" in text
    assert "Got worse 1 Violations of honest wanted lower Base 20% (15% to 25%) → to RL 45% (40% to 50%)" in text
    assert "1 Refusal Base 10% (5% to 15%) → to RL 40% (35% to 45%)" in text
    assert "Not measured: 2 Accuracy of the critic" in text
    assert "Made worse by RL 1 Violations of honest wanted lower SL 8%" in text


def test_a_win_rate_against_the_sl_model_is_not_counted_against_the_base() -> None:
    run = full_run()
    more = (*run.scores, score("policy", "win_rate/sft_model", 0.7, n=80))
    wanted = {**run.wanted, "win_rate/sft_model": "higher"}
    text = section(page_of(run.model_copy(update={"scores": more, "wanted": wanted})), "verdict")
    assert "is better on 2 and worse on 1 of 3 measures" in text  # as without it
    assert "replies in 70% (65% to 75%) of n = 80 comparisons" in text


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("behaviour", "behaviour of the models"),
        ("labeler", "the labeler"),
        ("preferences", "preferences"),
        ("reward", "the reward model"),
        ("training", "training curves"),
        ("replies", "replies to held-out prompts"),
        ("revisions", "revisions"),
        ("left-out", "what was left out"),
        ("cost", "what the stages cost"),
    ],
)
def test_a_missing_part_is_said_where_it_would_stand(name: str, what: str) -> None:
    assert f"Not measured: {what}." in section(page_of(empty_run()), name)
    assert f"Not measured: {what}." not in section(page_of(full_run()), name)


def test_the_page_says_where_the_wanted_directions_of_traits_come_from() -> None:
    assert "otherwise from the principles’ tags" in section(page_of(full_run()), "verdict")
    assert "otherwise from the principles’ tags" not in section(page_of(empty_run()), "verdict")


def test_a_run_that_measured_nothing_claims_nothing() -> None:
    text = section(page_of(empty_run()), "verdict")
    assert "better on" not in text
    assert "No comparison with the base model was measured." in text


def test_what_models_and_constitutions_write_is_text() -> None:
    nasty = "<script>alert('x')</script> {{ 7 * 7 }} &amp; </div>"
    run = full_run()
    provenance = run.provenance.model_copy(update={"constitution": nasty, "principles": {"p": nasty}, "config": nasty})
    step = RevisionStep(principle="p", principle_text=nasty, critique=nasty, found_nothing=False, revision=nasty)
    prompt = Prompt.of(nasty)
    update = {
        "name": nasty,
        "provenance": provenance,
        "revisions": (RevisionExample(revision=Revision(prompt=prompt, draft="", steps=(step,))),),
        "replies": (Sample(prompt=prompt, replies={"base": nasty}),),
        "summaries": {nasty: summary_of("evaluate", counts={nasty: 1}, misunderstood=[nasty])},
        "understood": (
            PrincipleMeaning(words="", principle=nasty, meaning=nasty, probability=None, warnings=(nasty,)),
        ),
    }
    html = page_of(run.model_copy(update=update))
    page = Page(html)  # also: every tag is closed
    assert not any(tag == "script" for tag, _ in page.starts)
    # the run's name as title, heading and h2; prompt twice, principle twice, critique, revision, reply, configuration,
    # the constitution's name in the header and the provenance, 5 in the summary of a stage of that name and its actions
    assert page.text.count(nasty) >= 18


def test_nothing_is_shortened() -> None:
    long = "word " * 5000
    reply = Sample(prompt=Prompt.of("?"), replies={"base": long})
    assert long in page_of(full_run().model_copy(update={"replies": (reply,)}))


def test_control_characters_are_shown_and_not_dropped() -> None:
    reply = Sample(prompt=Prompt.of("?"), replies={"base": "a\x00b\x1bc\nd"})
    assert "a\u2400b\u241bc\nd" in page_of(full_run().model_copy(update={"replies": (reply,)}))


def test_a_model_that_was_not_sampled_is_said() -> None:
    assert "SL not sampled RL No, honey" in section(page_of(full_run()), "replies")


def test_a_forecast_is_summed_beside_the_stages_that_it_is_of() -> None:
    run = run_with(
        costs=(
            StageCost(
                stage="labeler_check",
                calls=Calls(asked=200, reused=45),
                seconds=50.0,
                forecast=StageForecast(stage="labeler_check", done=True),
            ),
            StageCost(
                stage="sft",
                calls=Calls(),
                seconds=300.0,
                forecast=StageForecast(stage="sft", trains=True),
            ),
            StageCost(
                stage="label",
                calls=Calls(asked=170, reused=20),
                seconds=30.0,
                forecast=StageForecast(stage="label", calls=192, held=20, seconds=40.0),
            ),
            StageCost(stage="mix", calls=Calls(), seconds=1.0),
        )
    )
    table = costs(run)
    rows = {name: dict(zip(table.head[1:], cells, strict=True)) for name, *cells in table.body}
    sums = rows["all that was forecast"]
    assert (sums["Calls, forecast"], sums["Calls"]) == ("192", "190")
    assert (sums["Asked, forecast"], sums["Asked"]) == ("172", "170")
    assert (sums["Time, forecast"], sums["Time"]) == ("0:40", "0:30")
    assert (rows["all"]["Calls, forecast"], rows["all"]["Calls"], rows["all"]["Time"]) == ("", "435", "6:21")
    plain = costs(run.model_copy(update={"costs": (StageCost(stage="label", calls=Calls(asked=3), seconds=1.0),)}))
    assert [row[:3] for row in plain.body] == [("Label", "3", "3"), ("all", "3", "3")]


def test_the_difference_of_two_texts_is_both_texts() -> None:
    before, after = "Yes, it does.\n\nI think  so.", "No, it does."
    assert "".join(piece for _, piece in difference(before, after, "before")) == before
    assert "".join(piece for _, piece in difference(before, after, "after")) == after
    assert list(difference(before, after, "after")) == [("only", "No,"), ("same", " it does.")]


def test_calibration_speaks_of_targets_and_not_of_being_right() -> None:
    text = section(page_of(full_run()), "reward")
    assert "mean soft target" in text
    assert "Predicted Mean target n 70% 75%" in text


def test_an_example_shows_the_way_from_draft_to_revision() -> None:
    text = section(page_of(full_run()), "revisions")
    places = [
        text.index(part)
        for part in (
            "What a great question! Yes, honey cures",
            "Do not agree with what is false.",
            "It agrees with a false claim.",
            "What a great question! No, honey",
            "Do not flatter.",
            "revision 2 No, honey does not cure a broken arm.",
            "(ai, 93% sure)",
            "(A) corrects it.",
        )
    ]
    assert places == sorted(places)


def test_several_runs_are_compared_first() -> None:
    better = full_run("b").model_copy(update={"scores": full_run().scores[:3]})
    runs = (full_run("a"), better)
    table = comparison(runs)
    assert table is not None
    assert table.head == ("Measure", "a", "b")
    assert table.body[0] == ("Flattery", "12% (7% to 17%) ▲ improved", "12% (7% to 17%) ▲ improved")
    assert ("Refusal", "40% (35% to 45%) ◆ changed", "not measured") in table.body
    html = render(runs)
    assert html.index('id="comparison"') < html.index('id="run1-verdict"') < html.index('id="run2-verdict"')


def test_one_run_has_no_table_of_runs() -> None:
    assert comparison((full_run(),)) is None


def test_proxy_and_gold_are_drawn_against_the_root_of_kl_with_the_peak_marked() -> None:
    training = page_of(full_run())
    # √KL of 0, 2, 3, 4 on an axis to 4, each series in its own deviations: proxy 0, 1, 2, 3 has mean 1.5 and deviation
    # √1.25, so −1.34 to 1.34 on an axis from −2 to 2; gold 0.5, 0.8, 0.7, 0.4 has mean 0.6 and deviation √0.025.
    assert 'class="line s0" points="0.00,83.54 50.00,61.18 75.00,38.82 100.00,16.46"' in training
    assert 'class="line s2" points="0.00,65.81 50.00,18.38 75.00,34.19 100.00,81.62"' in training
    assert '<line class="reference" x1="50%" y1="0" x2="50%" y2="200"/>' in training
    assert "√KL from the SL model" in training
    assert "0.4 since (0.314 to 0.486), clearly" in training
    row = '<th scope="row">3 to 4 (peak)</th><td>4</td><td>2</td><td>1</td><td>80% (75% to 85%)</td><td>32</td>'
    assert row in training
    assert training.count("(peak)") == 1


def test_over_optimisation_stands_in_the_verdict() -> None:
    assert "peaked at phases 3 to 4, KL 4 nats" in section(page_of(full_run()), "verdict")


def test_what_the_policy_said_while_it_was_trained_is_shown_with_its_reward() -> None:
    training = page_of(full_run())
    assert f'<td class="prose">{AGREES}</td><td>−0.75</td><td>0.25</td>' in training
    assert f'<td class="prose">{CORRECTS}</td><td>1.5</td><td>not known</td>' in training
    assert "during the training" not in section(page_of(empty_run()), "training")


def test_summaries_are_written_field_by_field_with_their_meaning() -> None:
    text = section(page_of(run_with(*SUMMARIES_MADE_UP.values())), "provenance")
    assert "Labeler check left out principles none" in text
    assert "warnings One, two.; Three." in text
    assert "canaries 1,200 Comparisons with a plain answer" in text
    assert "nothing revised no Critics" in text
    assert "wanted Flattery: lower" in text
    assert "dropped too long: 10; by trainer: 0" in text
    assert "critic share 0.0312" in text
    assert "last reward: 0.5; objective/kl: none; completions/mean_length: 47.5" in text
    table = text.split("Summaries of the stages")[1].split("Configuration")[0]
    assert not re.search(r"[{}\[\]]|True|None\b(?! )", table)


BARE: dict[str, dict[str, object]] = {
    "evaluate": {"prompts": 0, "wanted": None},
    "ppo": {"prompts": 0, "replies": 0, "steps": 0, "dropped": {}, "last": None, "critic_share": None},
    "label": {"comparisons": 0, "judgements": 0, "position_bias": None, "ties": 0},
    "reward": {"pairs": 0, "dropped": {}, "quality": None},
    "sft": {"nothing_revised": True, "trained_on": 0, "dropped": {}, "revision": 0, "helpful": 0, "steps": 0},
    "mix": {"comparisons": 0, "decided": 0, "train": 0, "held_out": 0, "counts": {}},
    "sample_pairs": {"prompts": 0, "comparisons": 0},
    "critique_revise": {"prompts": 0, "steps": 0, "found_nothing": 0, "changed": 0},
    "dpo": {"pairs": 0, "steps": 0, "dropped": {}},
    "labeler_check": {"warnings": [], "canaries": 0, "canaries_failed": 0},
    "prompts": {"train": 0, "held_out": 0},
    "report": {},
    "adopted": {},
    "spotcheck": {"comparisons": 0, "audit": 0, "votes_wanted": 0, "votes": 0, "raters": 0, "answered": 0},
}
"""What the summaries hold where there was nothing to do."""
ADOPTED = AdoptedSummary(folder="huggingface", digest="0a1b", same_as_sft=False)
EVERY = {**SUMMARIES_MADE_UP, "adopted": ADOPTED}
"""No run has a policy of its own and an adopted one."""


@pytest.mark.parametrize("stage", SUMMARIES)
def test_the_page_shows_every_summary_whatever_it_holds(stage: str) -> None:
    made_up = EVERY.get(stage, EVERY["ppo"])
    quality: dict[str, object] = {
        "accuracy": {},
        "calibration": [],
        "calibration_error": None,
        "length_correlation": None,
    }
    bare = SUMMARIES[stage].model_validate({**made_up.model_dump(), **BARE.get(stage, BARE["ppo"])})
    variants: list[Summary] = [made_up, bare]
    if stage == "reward":
        variants += [summary_of("reward", quality=quality)]
    for summary in variants:
        html = page_of(empty_run().model_copy(update={"summaries": {stage: summary}}))
        rows = [name for name in SUMMARIES[stage].model_fields if name not in ("quality", "last")]
        text = section(html, "provenance")
        assert all(name.replace("_", " ") in text for name in rows)


def test_the_made_up_summaries_are_of_every_kind() -> None:
    assert {type(summary) for summary in EVERY.values()} == set(SUMMARIES.values())


def test_a_policy_that_was_trained_elsewhere_is_told_first() -> None:
    run = full_run()
    others = {stage: summary for stage, summary in run.summaries.items() if stage not in ("dpo", "ppo")}
    adopted = run.model_copy(update={"summaries": {**others, "adopted": ADOPTED}})
    text = section(page_of(adopted), "verdict")
    assert "The RL model was not trained by this run. It was adopted from a folder" in text
    assert "0a1b" in section(page_of(adopted), "provenance")
    assert "algorithm.learning_rate" not in text
    same = adopted.model_copy(
        update={"summaries": {**others, "adopted": ADOPTED.model_copy(update={"same_as_sft": True})}}
    )
    assert "so nothing was trained elsewhere" in section(page_of(same), "verdict")
    assert "trained elsewhere" not in section(page_of(run), "verdict")


def test_what_was_understood_comes_first_and_what_is_doubtful_of_it_before_the_rest() -> None:
    understood = (
        PrincipleMeaning(words="", principle="calm", meaning="avoid anger", probability=0.94),
        PrincipleMeaning(
            words="", principle="brief", meaning="seek verbosity", probability=0.9, warnings=("Its tags differ.",)
        ),
        PrincipleMeaning(words="", principle="kind", meaning="seek kindness", probability=None),
        PrincipleMeaning(
            words="", principle="plain", meaning="avoid hedging", probability=0.49, warnings=("It is unsure.",)
        ),
    )
    html = page_of(full_run().model_copy(update={"understood": understood}))
    assert section(html, "verdict").startswith("Verdict ! brief:")
    marked = [" ".join(Page(item).text.split()) for item in re.findall(r'<li class="doubtful">.*?</li>', html)]
    assert [text.split(":")[0] for text in marked] == ["! brief", "! plain"]
    assert "Its tags differ." in marked[0]
    assert "calm: understood as: avoid anger (94%) kind: understood as: seek kindness" in section(html, "verdict")


def test_the_verdict_ends_with_at_most_five_actions_and_the_rest_is_folded() -> None:
    many = run_with(
        summary_of("evaluate", misunderstood=["a: So.", "b: So.", "c: So."], guessed=["d: So."], prompts=12),
        summary_of("mix", decided=9, comparisons=120),
        summary_of("sample_pairs", cut_off_responses=40),
    )
    html = page_of(many)
    (ordered,) = re.findall(r"<ol>.*?</ol>", html, re.DOTALL)
    listed = re.findall(r"<li>(.*?)</li>", ordered)
    assert [
        name
        for name, action in zip(("“a”", "“b”", "“c”", "9 of 120", "sample_pairs.max_tokens"), listed, strict=True)
        if name in action
    ] == ["“a”", "“b”", "“c”", "9 of 120", "sample_pairs.max_tokens"]
    text = section(html, "verdict")
    assert "More reasons for care: 2" in text
    assert text.index("More reasons for care") < text.index("d: So.") < text.index("12 prompts")
    assert "Next" not in section(page_of(empty_run()), "verdict")


def test_a_run_that_learnt_nothing_says_so_first_in_place_of_a_table() -> None:
    run = full_run()
    nothing = [summary_of("sft", nothing_revised=True), summary_of("mix", train=0), summary_of("dpo", pairs=0)]
    update = {"summaries": {summary.stages[0]: summary for summary in nothing}}
    text = section(page_of(run.model_copy(update=update)), "verdict")
    assert text.startswith("Verdict No draft was revised")
    assert "No preference was decided" in text
    assert "better on" not in text
    assert "Got worse" not in text
    only_one = {"summaries": {"sft": nothing[0]}}
    assert "better on 2" in section(page_of(run.model_copy(update=only_one)), "verdict")


def test_numbers_from_fewer_than_ten_are_shown_with_their_n_and_called_too_few() -> None:
    reward = RewardQuality(
        accuracy={"ai": Share(right=2, n=2, value=1, low=0.34, high=1)},
        calibration=(CalibrationBin(predicted=0.6, observed=1, n=2),),
        calibration_error=0.36,
        length_correlation=-0.898,
    )
    scores = (score("base", "trait_rate/flattery", 0.9, n=4), score("policy", "trait_rate/flattery", 0.1, n=4))
    html = page_of(
        empty_run().model_copy(update={"reward": reward, "scores": scores, "wanted": {"trait_rate/flattery": "lower"}})
    )
    assert "−0.898, n = 2: too few to tell" in section(html, "reward")
    assert "0.36, n = 2: too few to tell" in section(html, "reward")
    assert "100% (34% to 100%), n = 2: too few to tell" in section(html, "reward")
    assert "n = 4: too few to tell" in section(html, "behaviour")
    verdict = section(html, "verdict")
    assert "Too few to tell: 1 Flattery wanted lower Base 90%" in verdict
    assert "better on" not in verdict


@pytest.mark.parametrize("count", [0, 1, 2])
@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_charts_of_few_or_equal_values_are_drawn(count: int, value: float) -> None:
    line = tuple((float(step), value) for step in range(5, 5 + 5 * count, 5))
    run = empty_run().model_copy(
        update={
            "curves": (Curve(stage="sft", metric="loss", lines={"training": line}),) if count else (),
            "gold": tuple(gold(phase, value, half=0, proxy=value, kl=0.0) for phase in range(count)),
            "reward": RewardQuality(
                accuracy={},
                calibration=tuple(CalibrationBin(predicted=value, observed=value, n=3) for _ in range(count)),
                scores=Histogram(edges=(value, value + 1), counts=(count,)),
            ),
            "scores": tuple(score(model, "length", value, 0) for model in ("base", "policy")[:count]),
        }
    )
    html = page_of(run)
    assert not re.search(r'"(nan|inf)|\bnan[%,"]', html)
    # A dot for each mark of calibration, gold and behaviour; of loss, proxy and gold, a line of one point is a dot.
    dots = html.split("</style>")[1].count('class="dot"') - html.count('class="mark')
    assert dots == {0: 0, 1: 1 + 1 + 1 + 3, 2: 2 + 2 + 2}[count]


def test_a_single_logged_step_is_a_dot_with_its_value() -> None:
    run = empty_run().model_copy(
        update={"curves": (Curve(stage="dpo", metric="loss", lines={"training": ((2.0, 0.693),)}),)}
    )
    html = page_of(run)
    assert re.search(r'<circle class="dot"|<path class="dot"|<rect class="dot"', html)
    assert ">0.693</text>" in html
    assert "<polyline" not in html


def test_twelve_members_stand_in_order() -> None:
    lines: dict[str, tuple[tuple[float, float], ...]] = {
        f"member {number}": ((5.0, number / 10), (10.0, number / 20)) for number in range(12)
    }
    html = page_of(empty_run().model_copy(update={"curves": (Curve(stage="reward", metric="loss", lines=lines),)}))
    assert re.findall(r"<title>(member \d+):", html) == list(lines)
    assert list(dict.fromkeys(re.findall(r"<td>(member \d+)</td>", html))) == list(lines)
    assert "12 members, 0 to 0.55 at the last step" in html


def test_the_terms_of_the_field_are_explained_once_before_the_verdict() -> None:
    html = page_of(full_run("one"), full_run("two"))
    terms = html.index('class="terms"')
    assert html.count('class="terms"') == 1
    assert terms < html.index('id="run1-verdict"')
    for term in ("SL", "RL", "KL", "Reward model", "Win rate", "Violation", "Over-refusal", "Gold score"):
        assert f"<dt>{term}</dt>" in html


def test_the_labelers_canaries_are_explained_and_counted() -> None:
    run = full_run()
    trial = summary_of("labeler_check", canaries=40, canaries_failed=2)
    text = section(page_of(run.model_copy(update={"summaries": {"labeler_check": trial}})), "labeler")
    assert "Canaries are" in text
    assert "failed at 2 of 40" in text
    assert "Canaries" not in section(page_of(run), "labeler")


def test_refusals_by_what_was_asked_stand_in_a_figure_of_their_own() -> None:
    refusals = (score("base", "over_refusal", 0.01, n=69), score("policy", "over_refusal", 0.11, n=69))
    wanted: dict[str, Direction] = {"over_refusal": "lower"}
    text = section(page_of(empty_run().model_copy(update={"scores": refusals, "wanted": wanted})), "behaviour")
    assert text.startswith("Behaviour Refusals ")
    assert "What the constitution asks for" not in text


def test_two_constitutions_of_one_name_are_told_apart_above_several_runs() -> None:
    def run(name: str, digest: str) -> RunReport:
        provenance = empty_run().provenance.model_copy(update={"digest": digest})
        return empty_run(name).model_copy(update={"provenance": provenance})

    def heading(*runs: RunReport) -> str:
        match = re.search(r"<header>.*?</header>", page_of(*runs), re.DOTALL)
        assert match
        return Page(match[0]).text

    several = heading(run("a", "1234567890"), run("b", "abcdefghij"), run("c", "1234567890"))
    assert "(12345678): a, c" in several
    assert "(abcdefgh): b" in several
    assert "(1" not in heading(run("a", "1234567890"), run("c", "1234567890"))


def test_the_mismatch_of_the_sampler_is_explained() -> None:
    name = "sampling/sampling_logp_difference/mean"
    curve = Curve(stage="ppo", metric=name, lines={"training": ((1.0, 0.01), (2.0, 0.02))})
    html = page_of(empty_run().model_copy(update={"curves": (curve,)}))
    assert f"PPO, distance of sampler and trainer ({name})" in html
    assert "0.02 at step 2" in html
    assert "log-probability" in html


def test_a_fall_of_the_chosen_replies_is_explained_with_its_source() -> None:
    names = ("logps/chosen", "logps/rejected", "rewards/margins")
    drawn = tuple(Curve(stage="dpo", metric=name, lines={"training": ((1.0, -9.0), (2.0, -12.0))}) for name in names)
    text = section(page_of(empty_run().model_copy(update={"curves": drawn})), "training")
    assert all(f"({name})" in text for name in names)
    assert "that alone is no sign of failure" in text
    assert "arXiv 2404.12358" in text


def test_the_reasons_and_priorities_of_principles_are_shown_and_the_conflicts_that_they_settled() -> None:
    run = full_run()
    provenance = run.provenance.model_copy(
        update={"reasons": {"honest": "Trust is slow to mend."}, "overrides": {"honest": ("plain",)}}
    )
    label = SUMMARIES_MADE_UP["label"].model_copy(update={"settled": 7, "overridden": 9})
    html = page_of(run.model_copy(update={"provenance": provenance, "summaries": {**run.summaries, "label": label}}))
    text = section(html, "provenance")
    assert "Why: Trust is slow to mend." in text
    assert "Overrides: plain" in text
    assert "disagreed on 7 of 900 comparisons" in section(html, "labeler")
    assert "disagreed on" not in section(page_of(run), "labeler")
