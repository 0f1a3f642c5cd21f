import math
import random
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from constitutional.base.frozen import decisive
from constitutional.base.records import Comparison, GoldPoint, Judgement, Message, Prompt, Rollout, Sample, Split
from constitutional.base.seeds import seed_of
from constitutional.base.stats import wilson
from constitutional.base.templates import load_prompts
from constitutional.constitution.constitution import Constitution, Principle
from constitutional.data.evaluation import load_evaluation
from constitutional.engines.base import Completion, Request
from constitutional.engines.scripted import ScriptedEngine
from constitutional.engines.stories import side_by_side
from constitutional.judging.accuracy import PrincipleAccuracy
from constitutional.judging.labelling import LabelSettings
from constitutional.judging.scores import Score
from constitutional.judging.understanding import PrincipleMeaning, Reader
from constitutional.sandbox.prompts import SANDBOX, sandbox_prompt, sandbox_prompt_set
from constitutional.sandbox.teacher import applies, restate
from constitutional.sandbox.world import TRAITS, compose, text_of, uniform_traits
from constitutional.stages.evaluate import (
    MODELS,
    Inputs,
    Settings,
    held_out,
    judgement_tasks,
    reply,
    rule_scores,
    run,
    samples_of,
    text_scores,
    trait_scores,
    violation_scores,
    wanted_directions,
    win_scores,
)
from constitutional.stages.summaries import EvaluateSummary
from constitutional.training.reward_model import load_reward_model
from tests.judging.scripted_labeler import chances
from tests.tiny import OneStage, tiny_model


def asked(text: str, split: Split = "held_out") -> Prompt:
    return Prompt(messages=(Message("user", text),), split=split)


def sample(text: str, base: str, sft_model: str, policy: str, cut_off: tuple[str, ...] = ()) -> Sample:
    return Sample(prompt=asked(text), replies={"base": base, "sft_model": sft_model, "policy": policy}, cut_off=cut_off)


def by_name(scores: Iterable[Score]) -> dict[tuple[str, str], Score]:
    return {(score.model, score.measure): score for score in scores}


def test_only_held_out_prompts_are_taken_and_more_hold_all_of_fewer() -> None:
    prompts = [asked(str(n)) for n in range(50)] + [asked(str(n), split="train") for n in range(50, 100)]
    few, many = held_out(prompts, 10, 0), held_out(prompts, 40, 0)
    assert len(few) == 10
    assert many[:10] == few
    assert all(each.split == "held_out" for each in many)
    assert held_out(prompts[::-1], 10, 0) == few  # the order of the file does not matter
    assert held_out(prompts, 10, 1) != few


def violations(samples: list[Sample], critic: ScriptedEngine) -> tuple[list[Score], dict[str, int]]:
    context = OneStage(Path(), constitution=CONSTITUTION, prompts=load_prompts(), engines={"critic": critic})
    return violation_scores(samples, Settings(), context)


def test_a_reply_depends_on_its_prompt_alone() -> None:
    engine = ScriptedEngine(lambda request: f"{request.messages[0].content} {request.seed}")
    prompts = [asked("1"), asked("2"), asked("3")]

    def replies(prompts: list[Prompt], settings: Settings, seed: int) -> list[Completion]:
        return list(side_by_side(reply(prompt, engine, settings, seed) for prompt in prompts))

    of_all = replies(prompts, Settings(), 0)
    assert replies(prompts[1:], Settings(), 0) == of_all[1:]
    assert replies(prompts, Settings(), 1) != of_all
    assert len({completion.text.split()[1] for completion in of_all}) == 3
    assert replies(prompts[:1], Settings(temperature=0), 7)[0].text == "1 0"


def test_samples_hold_the_replies_side_by_side_and_which_were_cut_off() -> None:
    prompts = [asked("1"), asked("2")]
    found = samples_of(
        prompts,
        {
            "base": [Completion("a", "stop"), Completion("b", "length")],
            "policy": [Completion("c", "length"), Completion("d", "length")],
        },
    )
    assert [each.replies for each in found] == [{"base": "a", "policy": "c"}, {"base": "b", "policy": "d"}]
    assert [each.cut_off for each in found] == [("policy",), ("base", "policy")]
    failed = Completion("", "error", reason="the chat template refuses it")
    answered = {"base": [Completion("a", "stop"), failed], "policy": [Completion("c", "stop")] * 2}
    assert [own.prompt for own in samples_of(prompts, answered)] == prompts[:1]  # what all of them answered


def test_trait_rates_are_exact_and_over_prompts_that_a_trait_applies_to() -> None:
    rng = random.Random(0)
    prompts = [each for each in sandbox_prompt_set(1, 120, 0) if each.split == "held_out"]
    samples, truth = [], []
    for prompt in prompts:
        world = sandbox_prompt(prompt)
        traits = uniform_traits(rng, world)
        samples.append(Sample(prompt=prompt, replies={"base": text_of(compose(rng, world, traits))}))
        truth.append((world, traits))
    scores = by_name(trait_scores(samples))
    for trait in TRAITS:
        shown = [traits[trait] for world, traits in truth if applies(world, trait)]
        score = scores["base", f"trait_rate/{trait}"]
        assert (score.value, score.n) == (sum(shown) / len(shown), len(shown))
        assert (score.low, score.high) == wilson(sum(shown), len(shown))
    assert 0 < scores["base", "trait_rate/privacy_leak"].n < 60  # only prompts that ask for private data
    assert scores["base", "trait_rate/flattery"].n == 120
    assert scores["base", "well_formed"].value == scores["base", "on_topic"].value == 1


def test_refusals_are_counted_apart_by_whether_they_are_due() -> None:
    prompts = [each for each in sandbox_prompt_set(1, 120, 0) if each.split == "held_out"]
    due = {prompt.id for prompt in prompts if sandbox_prompt(prompt).topic.kind in ("harmful", "private")}
    assert 0 < len(due) < 60
    # The base never refuses; the policy refuses where it should, and ten of the other requests.
    refused = due | {each.id for each in [prompt for prompt in prompts if prompt.id not in due][:10]}
    refusal, other = "I must decline to answer this request.", "Here is a plain answer."
    samples = [
        Sample(prompt=prompt, replies={"base": other, "policy": refusal if prompt.id in refused else other})
        for prompt in prompts
    ]
    found = by_name(trait_scores(samples))
    assert (found["policy", "due_refusal"].value, found["policy", "due_refusal"].n) == (1, len(due))
    others = 120 - len(due)
    assert (found["policy", "over_refusal"].value, found["policy", "over_refusal"].n) == (10 / others, others)
    assert found["policy", "over_refusal"].changes["base"].value == pytest.approx(10 / others)
    assert found["base", "due_refusal"].value == found["base", "over_refusal"].value == 0
    assert found["policy", "trait_rate/refusal"].value == (len(due) + 10) / 120


def test_a_text_that_is_not_of_the_sandbox_is_not_well_formed_there() -> None:
    prompts = sandbox_prompt_set(1, 4, 0)[1:]
    samples = [Sample(prompt=prompt, replies={"base": "Colourless green ideas."}) for prompt in prompts]
    assert by_name(trait_scores(samples))["base", "well_formed"].value == 0


def test_other_prompts_have_no_trait_rates() -> None:
    assert list(trait_scores([sample("1", "a", "b", "c")])) == []


def test_a_rates_change_is_measured_over_the_same_prompts() -> None:
    # Of 100 replies, the base's first 20 are cut off, the policy's first 5 and ten others.
    def cut(number: int) -> tuple[str, ...]:
        names = {"base": number < 20, "policy": number < 5 or number >= 90}
        return tuple(name for name, its in names.items() if its)

    samples = [sample(str(n), "a", "b", "c", cut(n)) for n in range(100)]
    found = by_name(text_scores(samples, Settings(), 0))
    assert found["base", "cut_off"].changes == {}
    assert list(found["sft_model", "cut_off"].changes) == ["base"]
    changes = found["policy", "cut_off"].changes
    assert list(changes) == ["base", "sft_model"]
    # 10 gained it and 15 lost it: -5 in 100. The interval's middle is -5 / 102 = -0.04902, and its half
    # 1.95996 * sqrt(26 - 25 / 102) / 102 = 0.09752.
    assert (changes["base"].value, changes["base"].n) == (-0.05, 100)
    assert changes["base"].low == pytest.approx(-0.14654, abs=1e-5)
    assert changes["base"].high == pytest.approx(0.04850, abs=1e-5)
    # 15 gained it and none lost it.
    assert changes["sft_model"].value == 0.15
    assert changes["sft_model"].low > 0


def test_a_change_in_length_is_the_mean_over_prompts() -> None:
    samples = [sample("1", "a b c", "a b c", "a"), sample("2", "a b c d", "a b c d", "a b c")]
    found = by_name(text_scores(samples, Settings(), 0))
    change = found["policy", "length"].changes["base"]
    assert (change.value, change.low, change.high, change.n) == (-1.5, -2, -1, 2)  # 1 - 3 and 3 - 4
    still = found["sft_model", "length"].changes["base"]
    assert (still.value, still.low, still.high) == (0, 0, 0)


def test_a_traits_change_is_over_the_prompts_that_it_applies_to() -> None:
    rng = random.Random(0)
    prompts = [each for each in sandbox_prompt_set(1, 120, 0) if each.split == "held_out"]
    worlds = [sandbox_prompt(prompt) for prompt in prompts]
    texts = [[text_of(compose(rng, world, uniform_traits(rng, world))) for _ in range(2)] for world in worlds]
    samples = [
        Sample(prompt=prompt, replies={"base": base, "policy": policy})
        for prompt, (base, policy) in zip(prompts, texts, strict=True)
    ]
    found = by_name(trait_scores(samples))
    for measure in ("trait_rate/privacy_leak", "trait_rate/flattery", "on_topic"):
        base, policy = found["base", measure], found["policy", measure]
        change = policy.changes["base"]
        assert change.value == pytest.approx(policy.value - base.value)  # over the same prompts, these are equal
        assert change.n == policy.n
        assert change.low <= change.value <= change.high


def test_length_refusals_cut_off_replies_and_variety_are_counted() -> None:
    samples = [
        sample("1", "one two three", "I can’t help with that.", "yes yes", cut_off=("base",)),
        sample("2", "four five six seven eight", "Sure, I cannot say.", "yes no"),
    ]
    scores = by_name(text_scores(samples, Settings(), 0))
    assert scores["base", "length"].value == 4  # (3 + 5) / 2
    assert (scores["base", "length"].low, scores["base", "length"].high) == (3, 5)  # all the means that two can have
    assert scores["base", "length"].unit == "words"
    assert scores["base", "cut_off"].value == 0.5
    assert scores["sft_model", "refusal_phrases"].value == 1
    assert scores["base", "refusal_phrases"].value == 0
    # The policy has four words, so each model is measured on its first four: one..four; i can't help with; yes, no.
    assert scores["base", "distinct/1-grams"].value == 1
    assert scores["policy", "distinct/1-grams"].value == 0.5
    assert {scores[model, "distinct/1-grams"].n for model in ("base", "sft_model", "policy")} == {4}
    assert {scores[model, "distinct/2-grams"].n for model in ("base", "sft_model", "policy")} == {2}


def test_a_refusal_is_looked_for_at_the_beginning_only() -> None:
    late = "word " * 40 + "I cannot help"
    scores = by_name(text_scores([sample("1", late, "I CANNOT HELP", "a"), sample("2", "b", "c", "d")], Settings(), 0))
    assert scores["base", "refusal_phrases"].value == 0
    assert scores["sft_model", "refusal_phrases"].value == 0.5


CONTESTS = ("sft_model against base", "policy against base", "policy against sft_model")


def test_what_the_rules_of_principles_count_is_measured_and_broken_bounds_are_shares() -> None:
    constitution = Constitution(
        name="rules",
        principles=(
            Principle(id="short", text="Be short.", measure="at most 3 words"),
            Principle(id="calm", text="Be calm.", measure="fewer exclamation marks"),
            Principle(id="declines", text="Decline.", measure="more refusals"),
            Principle(id="kind", text="Be kind."),
            Principle(id="plain", text="Be plain.", measure="fewer casual words"),
        ),
    ).select(None, ["plain"], {})
    samples = [
        sample("1", "One two three four!", "One two three.", "I cannot help with that."),
        sample("2", "Wow! So much of it!", "One!", "Yeah."),
    ]
    found = by_name(rule_scores(samples, constitution, Settings(), 0))
    assert {measure for _, measure in found} == {
        *("rule_broken/short", "rule_fewer/calm", "rule_more/declines", "left_out_rule_fewer/plain")
    }
    models = ("base", "sft_model", "policy")
    assert [found[model, "rule_broken/short"].value for model in models] == [1.0, 0.0, 0.5]
    assert found["policy", "rule_broken/short"].changes["base"].value == -0.5
    assert [found[model, "rule_fewer/calm"].value for model in models] == [1.5, 0.5, 0.0]
    assert found["policy", "rule_fewer/calm"].unit == "exclamation marks"
    assert [found[model, "rule_more/declines"].value for model in models] == [0.0, 0.0, 0.5]
    # Of the policy's one word in the second reply one is casual, and none of the five in the first.
    assert found["policy", "left_out_rule_fewer/plain"].value == 50.0
    assert found["policy", "left_out_rule_fewer/plain"].unit == "casual words in a hundred words"
    without = by_name(rule_scores(samples, constitution, Settings(critiqued=0), 0))
    assert "left_out_rule_fewer/plain" not in {measure for _, measure in without}


def judging(p_a: Callable[[Comparison], Sequence[float | None]]) -> Callable[[Sequence[Comparison]], list[Judgement]]:
    """A labeler by a rule that gives the probability by each principle."""

    def judge(comparisons: Sequence[Comparison]) -> list[Judgement]:
        return [
            Judgement(
                comparison=comparison.id,
                principle=str(number),
                principle_text="",
                labeler="",
                readings=(),
                p_a=p,
                weight=number + 1,
            )
            for comparison in comparisons
            for number, p in enumerate(p_a(comparison))
        ]

    return judge


def test_a_labeler_that_prefers_the_longer_reply_makes_the_longer_model_win() -> None:
    samples = [sample(str(n), "short", "rather longer", "the longest of the three") for n in range(10)]
    scores, problems = win_scores(samples, judging(lambda each: [float(len(each.a) > len(each.b))]))
    found = by_name(scores)
    assert found["policy", "win_rate/base"].value == 1
    assert found["sft_model", "win_rate/base"].value == 1
    assert found["policy", "win_rate/sft_model"].value == 1
    assert found["policy", "win_rate/base"].n == 10
    assert found["policy", "win_rate/base"].low == pytest.approx(10 / 13.8415, abs=1e-5)  # n / (n + z²)
    assert len(problems) == 6
    assert set(problems.values()) == {0}


def test_equal_replies_are_no_comparison_and_unreadable_ones_neither_won_nor_lost() -> None:
    samples = [sample("1", "x  x", "x x ", "good"), sample("2", "x", "y", "?"), sample("3", "x", "y", "good")]
    rule = judging(lambda each: [None if "?" in each.a else 0.9])
    scores, problems = win_scores(samples, rule)
    found = by_name(scores)
    assert {name: count for name, count in problems.items() if count} == {
        "equal replies, sft_model against base": 1,
        "unreadable comparisons, policy against base": 1,
        "unreadable comparisons, policy against sft_model": 1,
    }
    assert (found["policy", "win_rate/base"].value, found["policy", "win_rate/base"].n) == (1, 2)
    assert found["sft_model", "win_rate/base"].n == 2


def test_principles_are_weighed_and_the_unreadable_left_out_before_the_winner_is_seen() -> None:
    # Weights 1, 2 and 3: (0.9 + 2 · 0.2) / 3 = 0.43 is a loss, though an unweighted mean would be 0.55.
    scores, _ = win_scores([sample("1", "x", "y", "z")], judging(lambda _: [0.9, 0.2, None]))
    assert by_name(scores)["policy", "win_rate/base"].value == 0


def test_a_labeler_that_is_always_even_gives_half_a_win_each() -> None:
    scores, _ = win_scores([sample(str(n), "x", "y", "z") for n in range(4)], judging(lambda _: [0.5]))
    assert {score.value for score in scores} == {0.5}


def test_a_labeler_that_answers_nothing_leaves_no_observation() -> None:
    scores, problems = win_scores([sample("1", "x", "y", "z")], judging(lambda _: []))
    assert {(score.n, score.low, score.high) for score in scores} == {(0, 0.0, 1.0)}
    assert [count for name, count in problems.items() if name.startswith("unreadable")] == [1, 1, 1]


CONSTITUTION = Constitution(
    name="two",
    principles=(
        Principle(id="polite", text="Be polite.", critique="Is it polite?"),
        Principle(id="brief", text="Be brief."),
    ),
)


def critic(request: Request) -> str:
    """Finds rudeness by a word, and cannot make up its mind about brevity."""
    *_, reply, question = request.messages
    assert request.sampling.temperature == 0
    if "Is it polite?" in question.content:
        return f"So it {'violates' if 'idiot' in reply.content else 'follows'} the principle.\n"
    if len(reply.content) > 20:
        return "It violates the principle. Or rather, I would say that it is hard to tell."
    return "So it follows the principle."


@pytest.mark.parametrize(
    "verdict",
    [
        "So it {} the principle.",
        "**So it {} the principle.**",
        "So it **{}** the principle.",
        "In short, “it {} the principle”.",
        "So it {} the 'principle'.",
        "SO IT {} THE PRINCIPLE",
        "(So it _{} the principle_.)",
    ],
)
def test_a_verdict_in_bold_or_in_quotes_is_read(verdict: str) -> None:
    def said(word: str) -> list[float]:
        engine = ScriptedEngine(lambda _: verdict.format(word))
        scores, problems = violations([sample("1", "a", "b", "c")], engine)
        assert problems == {"critiques": 6, "unreadable critiques": 0}
        return [score.value for score in scores]

    assert said("violates") == [1] * 6
    assert said("follows") == [0] * 6


def test_a_run_says_where_critiques_of_replies_often_give_no_verdict() -> None:
    def rambling(request: Request) -> Completion | str:
        polite = "Is it polite?" in request.messages[2].content
        return Completion("Let me see. The reply", "length") if polite else "So it follows the principle."

    critics = {"critic": ScriptedEngine(rambling)}
    context = OneStage(Path(), constitution=CONSTITUTION, prompts=load_prompts(), engines=critics)
    violation_scores([sample("1", "Hello", "Hello", "Hi")], Settings(critique_max_tokens=5), context)
    (warning,) = context.warnings
    assert warning.startswith("3 of 6 critiques of replies give no verdict")
    assert "3 of them were cut off at 5 tokens; type evaluate.critique_max_tokens=20" in warning


def test_a_critique_without_an_answer_is_counted_by_its_reason_and_the_others_are_made() -> None:
    def short_sighted(request: Request) -> Completion | str:
        reply = request.messages[1].content
        if len(reply) > 20:
            return Completion("", "too_long", reason="too long")
        if reply == "Ow":
            return Completion("", "error" if "polite" in request.messages[2].content else "refusal", reason="no")
        return critic(request)

    samples = [sample("1", "Hello", "Hello", "Hi"), sample("2", "Ow", "Hello", "This is far too long to be read")]
    scores, problems = violations(samples, ScriptedEngine(short_sighted))
    assert problems == {
        "critiques": 12,
        "unreadable critiques": 0,
        "unreadable critiques, too long to ask for": 2,
        "unreadable critiques, refused": 1,
        "unreadable critiques, which failed": 1,
    }
    assert [score.n for score in scores if score.model == "policy"] == [1, 1]


def test_violations_are_counted_by_principle_with_its_own_words_and_the_unreadable_left_out() -> None:
    samples = [
        sample("1", "You idiot", "Hello", "So it violates the principle."),
        sample("2", "You idiot, this is far too long", "Hello", "Hi"),
        sample("3", "Hello", "Hello", "Hi"),
    ]
    scores, problems = violations(samples, ScriptedEngine(critic))
    found = by_name(scores)
    assert found["base", "violation_rate/polite"].value == pytest.approx(2 / 3)
    assert found["policy", "violation_rate/polite"].value == 0  # a reply that says "violates" is no verdict
    assert (found["base", "violation_rate/brief"].value, found["base", "violation_rate/brief"].n) == (0, 2)
    assert problems == {"critiques": 18, "unreadable critiques": 2}
    # By brevity, the base's second reply and the policy's first cannot be read: both could be on the third prompt only.
    change = found["policy", "violation_rate/brief"].changes["base"]
    assert (change.value, change.n) == (0, 1)
    change = found["policy", "violation_rate/polite"].changes["base"]
    assert change.value == pytest.approx(-2 / 3)
    assert change.n == 3


@pytest.mark.parametrize("pattern", ["(", "[a-"])
def test_a_pattern_that_is_no_regular_expression_is_refused(pattern: str) -> None:
    with pytest.raises(ValidationError, match="no regular expression"):
        Settings(violates=pattern)


def meaning(principle: str, meaning: str, reader: Reader = "") -> PrincipleMeaning:
    return PrincipleMeaning(principle=principle, words="…", meaning=meaning, reader=reader)


def test_the_wanted_directions_are_what_the_critic_takes_the_principles_to_ask() -> None:
    meanings = [
        meaning("p0", "avoid flattery"),
        meaning("p1", "seek hedging", "critic"),
        meaning("p1", "avoid hedging", "labeler"),
        meaning("p2", "avoid verbosity"),
        meaning("p3", "seek verbosity"),  # the two want opposites
        meaning("p4", "nothing"),
        meaning("p5", "It asks to be odd."),  # another critic's sentence
        meaning("p6", ""),  # too long to be read
        meaning("p7", "avoid privacy leak"),
    ]
    principles = tuple(Principle(id=f"p{number}", text="Be so.") for number in range(8))
    wanted = wanted_directions(Constitution(name="eight", principles=principles), meanings)
    assert wanted.directions == {
        "trait_rate/flattery": "lower",
        "trait_rate/hedging": "higher",
        "trait_rate/privacy_leak": "lower",
    }
    assert wanted.misunderstood == []


def test_what_the_tags_say_counts_more_than_what_the_critic_takes_a_principle_for() -> None:
    principle = Principle(id="calm", text="No sweet talk.", tags=("flattery", "avoid", "tone"))
    loose = Principle(id="loose", text="Be short.", tags=("seek", "tone"))  # names no trait
    tagged = wanted_directions(
        Constitution(name="one", principles=(principle,)), [meaning("calm", "seek flattery", "critic")]
    )
    assert tagged.directions == {"trait_rate/flattery": "lower"}
    assert tagged.misunderstood == ["calm: seek flattery. Its tags say: flattery, avoid, tone."]
    assert tagged.guessed == []
    untagged = wanted_directions(Constitution(name="two", principles=(loose,)), [meaning("loose", "seek flattery")])
    assert untagged == ({"trait_rate/flattery": "higher"}, [], ["loose: seek flattery."])


def test_a_critic_that_restates_a_principle_in_a_sentence_has_not_misunderstood_it() -> None:
    principles = (
        Principle(id="calm", text="No sweet talk.", tags=("flattery", "avoid")),
        Principle(id="free", text="No sweet talk!"),
        Principle(id="own", text="No gush.", tags=("flattery", "avoid")),
        Principle(id="lost", text="No praise.", tags=("flattery", "avoid")),
        Principle(id="turned", text="No sweetness.", tags=("flattery", "avoid")),
    )
    sentence = restate("flattery", "avoid")
    meanings = [
        meaning("calm", sentence),
        meaning("free", sentence),
        meaning("own", "Do not praise people without cause."),
        meaning("lost", "nothing in particular"),
        meaning("turned", "seek rudeness"),  # which the model cannot be told
    ]
    wanted = wanted_directions(Constitution(name="five", principles=principles), meanings)
    assert wanted.directions == {"trait_rate/flattery": "lower"}
    assert [line.partition(":")[0] for line in wanted.misunderstood] == ["lost", "turned"]
    assert [line.partition(":")[0] for line in wanted.guessed] == ["free"]


def likes_the_policy(request: Request) -> Completion | str:
    """A labeler that prefers the policy's reply, and takes others for even."""
    if not request.choices:
        return "It is so. Better: A"
    a, b = re.findall(r"\n\([AB]\) (\w+)", request.messages[0].content)[:2]
    first = 0.5 if "pol" not in (a, b) else 0.9 if a == "pol" else 0.1
    return Completion("", "choices", (math.log(first), math.log(1 - first)))


def accuracy(principle: str, *, trusted: bool = True) -> PrincipleAccuracy:
    return PrincipleAccuracy(
        principle=principle, n=4, right=3, unreadable=0, conflicts=0, mean_p_correct=0.7, trusted=trusted
    )


def work(prompts: list[Prompt], labeler: Any = None, folder: Path = Path()) -> OneStage:  # noqa: ANN401
    """A run of prompts and three scripted models, without folders of weights."""
    engines = {
        name: ScriptedEngine(lambda request, name=name: f"{name[:3]} {request.seed}", name)  # type: ignore[misc]
        for name in MODELS
    }
    engines |= {"critic": ScriptedEngine(critic), "labeler": labeler or ScriptedEngine(likes_the_policy)}
    rows: dict[str, list[Any]] = {"prompts": prompts, "labeler_accuracy": [accuracy("polite"), accuracy("brief")]}
    rows["meanings"] = []
    return OneStage(folder, rows=rows, constitution=CONSTITUTION, prompts=load_prompts(), engines=engines)


def inputs(settings: Settings) -> Inputs:
    return Inputs(evaluate=settings, label=LabelSettings(principles="all"))


def test_models_that_answered_are_released_before_others_are_loaded_to_be_compared(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    context, steps = work([asked(str(n)) for n in range(3)]), list[str]()
    monkeypatch.setattr(context, "release", lambda: steps.append("released"))

    def compare(*_: object) -> list[Score]:
        steps.append("compared")
        return []

    monkeypatch.setattr("constitutional.stages.evaluate.divergence_scores", compare)
    run(inputs(Settings(prompts=3, judged=0, critiqued=0, compared=2)), context)
    assert steps[0] == steps[steps.index("compared") - 1] == "released"
    assert set(steps[steps.index("compared") :]) == {"compared"}


@pytest.mark.parametrize("method", ["logprobs", "votes"])
def test_models_whose_replies_are_the_same_win_as_often_against_another(method: str) -> None:
    def by_chance(request: Request) -> Completion | str:
        """Depends on the question and the seed alone, as a model does."""
        first = seed_of(request.seed, request.messages) % 2 == 0
        return chances(*((0.9, 0.1) if first else (0.1, 0.9))) if request.choices else f"Better: {'AB'[first]}"

    principles = tuple(Principle(id=f"p{number}", text=f"Be like number {number}.") for number in range(8))
    prompts = [asked(str(number)) for number in range(12)]
    context = work(prompts, ScriptedEngine(by_chance))
    context.constitution = Constitution(name="eight", principles=principles)
    context.engines["policy"] = context.engines["sft_model"]
    settings = Settings(prompts=12, judged=12, critiqued=0, compared=0)
    for labels in ({"principles": "one"}, {"principles": "all"}):
        context.said = None
        run(Inputs(evaluate=settings, label=LabelSettings.model_validate({"method": method, **labels})), context)
        rates = {row.model: row.by_prompt for row in context.rows["scores"] if row.measure == "win_rate/base"}
        assert rates["policy"] == rates["sft_model"]
        assert len(set(rates["policy"].values())) > 1


def test_a_principle_is_drawn_for_a_prompt_whatever_the_replies() -> None:
    principles = tuple(Principle(id=f"p{number}", text=f"Be like number {number}.") for number in range(8))
    constitution = Constitution(name="eight", principles=principles)
    drawn = []
    for number in range(12):
        rows = [Comparison(prompt=asked(str(number)), a=a, b="x", model="m") for a in ("u", "v", "w")]
        tasks = [task for row in rows for task in judgement_tasks(row, LabelSettings(), constitution, 1)]
        assert len({task.principle.id for task in tasks}) == 1
        drawn.append(tasks[0].principle.id)
    assert len(set(drawn)) > 3


def test_win_rates_by_all_principles_know_which_of_them_override() -> None:
    safe = Principle(id="safe", text="Be safe.", overrides=("brief",))
    constitution = Constitution(name="two", principles=(safe, Principle(id="brief", text="Be brief.")))
    row = Comparison(prompt=asked("x"), a="u", b="v", model="m")
    tasks = judgement_tasks(row, LabelSettings(principles="all"), constitution, 1)
    assert [(task.principle.id, task.gives_way_to) for task in tasks] == [("safe", ()), ("brief", ("safe",))]


def test_the_stage_writes_samples_and_scores_of_all_three_models() -> None:
    context = work([asked(str(n)) for n in range(6)] + [asked("no", split="train")])
    run(inputs(Settings(prompts=5, judged=4, critiqued=3, compared=0)), context)
    samples, scores = context.rows["samples"], by_name(context.rows["scores"])
    assert len(samples) == 5
    assert all([*each.replies] == ["base", "sft_model", "policy"] for each in samples)
    assert (scores["policy", "win_rate/base"].value, scores["policy", "win_rate/base"].n) == (1, 4)
    assert scores["sft_model", "win_rate/base"].value == 0.5
    assert scores["base", "violation_rate/polite"].n == 3
    assert scores["base", "length"].n == 5
    assert context.said == EvaluateSummary(
        prompts=5,
        counts={
            **{f"{what}, {contest}": 0 for what in ("equal replies", "unreadable comparisons") for contest in CONTESTS},
            "critiques": 18,
            "unreadable critiques": 0,
        },
        critiqued={"polite": "Is it polite?", "brief": "Be brief."},
        wanted=None,  # no prompt is the sandbox's
    )
    assert "gold" not in context.rows


def test_the_labeler_compares_by_the_principles_that_it_is_trusted_with_and_the_critic_by_all() -> None:
    asked_by: list[str] = []

    def labeler(request: Request) -> Completion | str:
        asked_by.append(request.messages[0].content)
        return likes_the_policy(request)

    context = work([asked("1"), asked("2")], ScriptedEngine(labeler))
    context.rows["labeler_accuracy"] = [accuracy("polite"), accuracy("brief", trusted=False)]
    run(inputs(Settings(compared=0)), context)
    assert asked_by
    assert all("Be polite." in text and "Be brief." not in text for text in asked_by)
    measures = {score.measure for score in context.rows["scores"]}
    assert {"violation_rate/polite", "violation_rate/brief"} <= measures


@pytest.mark.parametrize("left_out", [True, False])
def test_violations_of_a_principle_that_the_run_leaves_out_are_measured_apart(*, left_out: bool) -> None:
    context = work([asked("1"), asked("2")])
    context.constitution = CONSTITUTION.select(without=["polite"])
    run(inputs(Settings(judged=0, compared=0, left_out=left_out)), context)
    scores, measures = by_name(context.rows["scores"]), {row.measure for row in context.rows["measurements"]}
    assert scores["policy", "violation_rate/brief"].n == 2
    assert ("left_out_violation_rate/polite" in measures) == left_out
    assert "violation_rate/polite" not in measures
    assert context.summarised(EvaluateSummary).critiqued == {
        "brief": "Be brief.",
        **({"polite": "Is it polite?"} if left_out else {}),
    }


def test_in_the_sandbox_the_summary_says_where_the_traits_are_to_go() -> None:
    prompts = [prompt for prompt in sandbox_prompt_set(1, 4, 0) if prompt.split == "held_out"]
    context = work(prompts)
    context.rows["meanings"] = [meaning("calm", "seek flattery"), meaning("loose", "seek flattery")]
    context.constitution = Constitution(
        name="two",
        principles=(
            Principle(id="calm", text="Do not flatter.", tags=("flattery", "avoid")),
            Principle(id="loose", text="Be nice."),
        ),
    )
    run(inputs(Settings(judged=0, critiqued=0, compared=0)), context)
    summary = context.summarised(EvaluateSummary)
    assert summary.wanted == {}  # the tags of one and the critic's reading of the other want opposites
    assert [sentence.split(":")[0] for sentence in summary.misunderstood] == ["calm"]
    assert [sentence.split(":")[0] for sentence in summary.guessed] == ["loose"]


def test_where_no_comparison_is_wanted_there_are_no_win_rates_and_the_labeler_is_not_asked() -> None:
    context = work([asked(str(n)) for n in range(3)])
    run(inputs(Settings(judged=0, critiqued=0, compared=0)), context)
    assert not any(score.measure.startswith("win_rate") for score in context.rows["scores"])
    assert context.engines["labeler"].count == 0


def test_a_model_that_gets_no_further_than_its_thoughts_is_named_with_what_to_type() -> None:
    context = work([asked("1"), asked("2")])
    thinking = Completion("", "length", reasoning="I cannot say yet.")
    context.engines["base"] = ScriptedEngine(lambda _: thinking, "base")
    run(inputs(Settings(judged=0, critiqued=0, compared=0, max_tokens=9)), context)
    scores = by_name(context.rows["scores"])
    assert (scores["base", "length"].value, scores["base", "refusal_phrases"].value) == (0, 0)
    (warning,) = context.warnings
    assert "2 of 2 replies of base are empty" in warning
    assert 'type evaluate.max_tokens=36, or "model.template={enable_thinking: false}"' in warning


def test_without_two_held_out_prompts_nothing_is_measured() -> None:
    context = work([asked("1"), asked("2", split="train")])
    run(inputs(Settings()), context)
    assert context.rows["scores"] == context.rows["samples"] == []
    assert context.said == EvaluateSummary(
        prompts=1, counts={}, critiqued={"polite": "Is it polite?", "brief": "Be brief."}, wanted=None
    )


# The replies of an online training, scored by what the training could not see.

BREAD = Prompt(
    messages=(Message("user", "How do I bake bread?"),),
    source=SANDBOX,
    info={"kind": "howto", "x": "bake bread", "held_out_topic": "no"},
)
ANSWER = "Mix flour, water, salt and yeast into dough. Let the loaf rise in a warm place."
FLATTERS = "You are a genius and a true star!"
SHORTEST = Principle(id="brief", text="Be brief.", tags=("verbosity", "avoid"), weight=3.0)
MODEST = Principle(id="modest", text="Do not flatter.", tags=("flattery", "avoid"))


def rollout(phase: int, reply: str, prompt: Prompt = BREAD) -> Rollout:
    return Rollout(
        phase=phase, prompt=prompt.id, reply=reply, reward=0.0, kl=0.0, phase_kl=0.0, length=9, truncated=False
    )


def rates(request: Request) -> Completion | str:
    """A labeler that gives ten points for a short reply; one reply can be read by one principle only."""
    reply = next(message.content for message in request.messages if message.role == "assistant")
    brief = "Be brief." in "".join(message.content for message in request.messages)
    if not request.choices:
        return "No idea." if reply == "unreadable" and not brief else "It is so. Score: 1"
    best = 10 if reply == "short" else 4 if brief else 1
    return Completion("", "choices", tuple(0.0 if score == best else -1e9 for score in range(1, 11)))


def gold_of(prompts: list[Prompt], rollouts: list[Rollout], **settings: Any) -> OneStage:  # noqa: ANN401
    context = work(prompts, ScriptedEngine(rates))
    context.constitution = Constitution(name="two", principles=(SHORTEST, MODEST))
    context.rows["rollouts"] = [*rollouts]
    run(inputs(Settings(judged=0, critiqued=0, compared=0, **settings)), context)
    return context


def test_in_the_sandbox_every_reply_is_scored_exactly_and_nobody_is_asked() -> None:
    replies = ((1, ANSWER), (1, f"{FLATTERS} {ANSWER}"), (2, "Nonsense."))
    context = gold_of([BREAD], [rollout(*reply) for reply in replies], gold_replies=4)
    gold: list[GoldPoint] = context.rows["gold"]
    assert [(point.by, point.first_phase, point.gold, point.n) for point in gold] == [
        ("traits", 1, 0.875, 2),  # (1 + 0.75) / 2: modest weighs 1 of 4
        ("traits", 2, 0.0, 1),
    ]
    assert context.engines["labeler"].count == 0


def test_elsewhere_the_labeler_is_asked_about_some_and_what_cannot_be_read_is_counted() -> None:
    prompts = [Prompt.of("Why?"), Prompt.of("How?")]
    rollouts = [
        rollout(phase, reply, prompt)
        for phase, reply in ((1, "short"), (2, "longer"), (3, "unreadable"))
        for prompt in prompts
    ]
    context = gold_of(prompts, rollouts, gold_replies=6)
    gold: list[GoldPoint] = context.rows["gold"]
    assert [(point.by, point.first_phase, point.n) for point in gold] == [("labeler", 1, 2), ("labeler", 2, 2)]
    assert [point.gold for point in gold] == pytest.approx([10.0, 3.25])  # (3 · 4 + 1 · 1) / 4
    counts = context.summarised(EvaluateSummary).counts
    assert counts == {"replies scored": 6, "unreadable scores": 2}
    # A labeler whose scores were the reward is no judge of what the reward could not see.
    context = work(prompts, ScriptedEngine(rates))
    context.constitution = Constitution(name="two", principles=(SHORTEST, MODEST))
    context.rows["rollouts"] = rollouts
    own = inputs(Settings(judged=0, critiqued=0, compared=0, gold_replies=6))
    run(own.model_copy(update={"labeler_rewards": True}), context)
    assert context.rows["gold"] == []
    assert context.engines["labeler"].count == 0


@pytest.mark.parametrize(
    ("method", "labeler_rewards", "reason"),
    [
        ("contrast", True, "the labeler's scores were the reward;"),  # so it can score, and that is not why
        ("logprobs", True, "the labeler's scores were the reward;"),
        ("contrast", False, "label.method=contrast compares responses and scores none;"),
    ],
)
def test_why_the_replies_of_a_training_have_no_gold_score_is_said_unless_a_reward_model_gives_one(
    tmp_path: Path, method: str, *, labeler_rewards: bool, reason: str
) -> None:
    model, tokenizer = load_reward_model(tiny_model(tmp_path), new_head=True, seed=3)
    model.save_pretrained(tmp_path / "other")
    tokenizer.save_pretrained(tmp_path / "other")
    for other in (None, tmp_path / "other"):
        prompt = Prompt.of("Why?")
        context = work([prompt], ScriptedEngine(rates))
        context.constitution = Constitution(name="two", principles=(SHORTEST, MODEST))
        context.rows["rollouts"] = [rollout(1, "short", prompt)]
        own = inputs(Settings(judged=0, critiqued=0, compared=0, gold_replies=4, gold_reward_model=other))
        label = own.label.model_copy(update={"method": method})
        run(own.model_copy(update={"label": label, "labeler_rewards": labeler_rewards}), context)
        assert context.engines["labeler"].count == 0
        said = [line for line in context.lines if "gold score" in line]
        if other:
            assert said == []
            assert [point.by for point in context.rows["gold"]] == ["reward_model"]
        else:
            (line,) = said
            assert line.startswith(f"the replies of the training have no gold score: {reason} evaluate.gold_rew")
            assert context.rows["gold"] == []


def test_a_held_out_reward_model_scores_the_replies_as_well_and_of_none_there_is_nothing_to_score(
    tmp_path: Path,
) -> None:
    model, tokenizer = load_reward_model(tiny_model(tmp_path), new_head=True, seed=3)
    model.save_pretrained(tmp_path / "other")
    tokenizer.save_pretrained(tmp_path / "other")
    found = gold_of([BREAD], [rollout(1, ANSWER), rollout(1, "Other.")], gold_reward_model=tmp_path / "other")
    assert [point.by for point in found.rows["gold"]] == ["traits", "reward_model"]
    for prompt in (BREAD, Prompt.of("Why?")):  # as where no comparison was decided, so that nothing was trained
        context = gold_of([prompt], [], gold_reward_model=tmp_path / "other")
        assert context.rows["gold"] == []
        assert context.engines["labeler"].count == 0


def test_scores_survive_being_written_and_read() -> None:
    for score in text_scores([sample("1", "a", "b", "c"), sample("2", "a", "b", "")], Settings(), 0):
        assert Score.model_validate_json(score.model_dump_json()) == score.model_copy(update={"by_prompt": {}})


def test_the_stage_measures_how_far_each_model_is_from_those_before_it(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from constitutional.engines.divergence import Reply, divergences
    from constitutional.engines.local import load_model
    from scripts.sandbox_training.tokenizer import build_tokenizer
    from tests.engines.test_divergence import tiny

    context = work([asked(str(n)) for n in range(3)])
    tokenizer = build_tokenizer([], count=20)
    for name, seed in (("base", 0), ("sft_model", 0), ("policy", 1)):  # supervised learning has changed nothing
        context.models[name] = tmp_path / name
        tiny(len(tokenizer), tokenizer, seed).save_pretrained(context.models[name])
        tokenizer.save_pretrained(context.models[name])
    run(inputs(Settings(judged=0, critiqued=0, compared=2)), context)

    scores = by_name(context.rows["scores"])
    assert scores["sft_model", "kl_from/base"].value == scores["sft_model", "log_ratio_to/base"].value == 0
    models = [load_model(context.models[name])[0] for name in ("policy", "base")]
    samples: list[Sample] = context.rows["samples"][:2]
    its = [Reply(each.prompt.messages, each.replies["policy"], ended=True) for each in samples]
    tokens = [token for tokens in divergences(its, models[0], models[1], tokenizer) for token in tokens]
    for reference in ("base", "sft_model"):
        kl, ratio = scores["policy", f"kl_from/{reference}"], scores["policy", f"log_ratio_to/{reference}"]
        assert (kl.n, kl.unit) == (len(tokens), "nats a token")
        assert kl.value == pytest.approx(sum(token.kl for token in tokens) / len(tokens))
        assert ratio.value == pytest.approx(sum(token.log_ratio for token in tokens) / len(tokens))
        assert kl.low <= kl.value <= kl.high


# Public evaluation sets.

SETS = Path(__file__).parents[1] / "data" / "evaluation"


def test_evaluation_sets_measure_all_three_models_with_their_changes() -> None:
    def answers(name: str) -> Callable[[Request], Completion | str]:
        """The base refuses everything; the SL model nothing; the policy what is about killing a neighbour."""

        def rule(request: Request) -> Completion | str:
            if request.choices:  # the second option, but for the base
                return chances(*((0.9, 0.1) if name == "base" else (0.1, 0.9)))
            refuses = name == "base" or (name == "policy" and "neighbour" in request.messages[-1].content)
            return "I'm sorry, but I can't help with that." if refuses else "Gladly."

        return rule

    context = work([asked("1"), asked("2")])
    context.engines |= {name: ScriptedEngine(answers(name), name) for name in MODELS}
    context.engines["labeler"] = context.engines["base"]  # which is not to judge itself: phrases tell refusals
    settings = Settings(
        judged=0, critiqued=0, compared=0, sets=(SETS / "xstest.csv", SETS / "model_written.jsonl"), set_rows=10
    )
    run(inputs(settings), context)
    scores = by_name(context.rows["scores"])
    refused = {model: scores[model, "set_over_refusal/xstest"] for model in MODELS}
    assert {model: (row.value, row.n) for model, row in refused.items()} == {
        "base": (1.0, 3),
        "sft_model": (0.0, 3),
        "policy": (0.0, 3),
    }
    assert scores["policy", "set_refusal/xstest"].n == 1
    assert refused["policy"].changes["base"].value == -1.0
    assert refused["policy"].changes["base"].high < 0
    assert list(refused["sft_model"].changes) == ["base"]
    # Yes, and (B): both match the behaviour, and stand second.
    assert [scores[model, "set_matching/model_written"].value for model in MODELS] == [0.0, 1.0, 1.0]
    assert scores["policy", "set_matching/model_written"].by_prompt == {
        row.id: 1.0 for row in load_evaluation([SETS / "model_written.jsonl"]).rows
    }


def test_without_evaluation_sets_the_settings_decide_what_they_did_before() -> None:
    assert decisive(Settings(), lambda _: "") == {}
    assert decisive(Settings(sets=(Path("hhh.jsonl"),)), lambda path: path.name) == {"sets": ["hhh.jsonl .jsonl"]}
