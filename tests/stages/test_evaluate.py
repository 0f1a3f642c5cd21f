import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar, cast

import pytest
from pydantic import ValidationError

from constitutional.base.records import Comparison, Judgement, Message, Prompt, Record, Split
from constitutional.base.stats import wilson
from constitutional.base.templates import Prompts, load_prompts
from constitutional.constitution.constitution import Constitution, Principle
from constitutional.data.prompts import sandbox_prompt, sandbox_prompt_set
from constitutional.engines.base import Completion, Engine, Request, TooLongError
from constitutional.engines.models import ModelSettings
from constitutional.engines.scripted import ScriptedEngine
from constitutional.judging.scores import Score
from constitutional.sandbox.teacher import applies
from constitutional.sandbox.world import TRAITS, compose, text_of, uniform_traits
from constitutional.stages import evaluate
from constitutional.stages.context import StageContext
from constitutional.stages.evaluate import (
    Sample,
    Settings,
    held_out,
    replies,
    run,
    side_by_side,
    text_scores,
    trait_scores,
    violation_scores,
    wanted_directions,
    win_scores,
)

T = TypeVar("T")


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


def test_a_reply_depends_on_its_prompt_alone() -> None:
    engine = ScriptedEngine(lambda request: f"{request.messages[0].content} {request.seed}")
    prompts = [asked("1"), asked("2"), asked("3")]
    of_all = replies(prompts, engine, Settings(), 0)
    assert replies(prompts[1:], engine, Settings(), 0) == of_all[1:]
    assert replies(prompts, engine, Settings(), 1) != of_all
    assert len({completion.text.split()[1] for completion in of_all}) == 3
    assert replies(prompts[:1], engine, Settings(temperature=0), 7)[0].text == "1 0"


def test_samples_hold_the_replies_side_by_side_and_which_were_cut_off() -> None:
    prompts = [asked("1"), asked("2")]
    found = side_by_side(
        prompts,
        {
            "base": [Completion("a", "stop"), Completion("b", "length")],
            "policy": [Completion("c", "length"), Completion("d", "length")],
        },
    )
    assert [each.replies for each in found] == [{"base": "a", "policy": "c"}, {"base": "b", "policy": "d"}]
    assert [each.cut_off for each in found] == [("policy",), ("base", "policy")]


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
    due = {each.id for each in prompts if sandbox_prompt(each).topic.kind in ("harmful", "private")}
    assert 0 < len(due) < 60
    # The base never refuses; the policy refuses where it should, and ten of the other requests.
    refused = due | {each.id for each in [each for each in prompts if each.id not in due][:10]}
    refusal, other = "I must decline to answer this request.", "Here is a plain answer."
    samples = [
        Sample(prompt=each, replies={"base": other, "policy": refusal if each.id in refused else other})
        for each in prompts
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
    worlds = [sandbox_prompt(each) for each in prompts]
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
    samples = [sample("1", "x", "x ", "good"), sample("2", "x", "y", "?"), sample("3", "x", "y", "good")]
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
        "It says “it {} the principle”.",
        "So it {} the 'principle'.",
        "SO IT {} THE PRINCIPLE",
        "(So it _{} the principle_.)",
    ],
)
def test_a_verdict_in_bold_or_in_quotes_is_read(verdict: str) -> None:
    def said(word: str) -> list[float]:
        engine = ScriptedEngine(lambda _: verdict.format(word))
        scores, problems = violation_scores(
            [sample("1", "a", "b", "c")], CONSTITUTION, engine, load_prompts(), Settings()
        )
        assert problems == {"critiques": 6, "unreadable critiques": 0}
        return [score.value for score in scores]

    assert said("violates") == [1] * 6
    assert said("follows") == [0] * 6


def test_a_critique_that_is_too_long_to_ask_for_is_counted_and_the_others_are_made() -> None:
    def short_sighted(request: Request) -> str:
        if len(request.messages[1].content) > 20:
            raise TooLongError("too long")
        return critic(request)

    samples = [sample("1", "Hello", "Hello", "Hi"), sample("2", "Hello", "Hello", "This is far too long to be read")]
    scores, problems = violation_scores(
        samples, CONSTITUTION, ScriptedEngine(short_sighted), load_prompts(), Settings()
    )
    assert problems == {
        "critiques": 12,
        "unreadable critiques": 0,
        "unreadable critiques, too long to ask for": 2,
    }
    assert [score.n for score in scores if score.model == "policy"] == [1, 1]


def test_violations_are_counted_by_principle_with_its_own_words_and_the_unreadable_left_out() -> None:
    samples = [
        sample("1", "You idiot", "Hello", "So it violates the principle."),
        sample("2", "You idiot, this is far too long", "Hello", "Hi"),
        sample("3", "Hello", "Hello", "Hi"),
    ]
    scores, problems = violation_scores(samples, CONSTITUTION, ScriptedEngine(critic), load_prompts(), Settings())
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


def test_the_wanted_directions_are_what_the_critic_takes_the_principles_to_ask() -> None:
    asks = {
        "No sweet talk.": "The principle asks to avoid flattery.",
        "Say when unsure.": "The principle asks to include hedging.",
        "Be short.": "The principle asks to avoid verbosity.",
        "Be long.": "The principle asks to include verbosity.",  # the two want opposites
        "Be good.": "The principle asks for nothing in particular.",
        "Be odd.": "The principle asks to avoid cheese.",
    }

    def understands(request: Request) -> str:
        return next(meaning for text, meaning in asks.items() if text in request.messages[0].content)

    principles = tuple(Principle(id=f"p{number}", text=text) for number, text in enumerate(asks))
    constitution = Constitution(name="six", principles=principles)
    found = wanted_directions(constitution, ScriptedEngine(understands), load_prompts())
    assert found[:2] == ({"trait_rate/flattery": "lower", "trait_rate/hedging": "higher"}, [])


def test_what_the_tags_say_counts_more_than_what_the_critic_takes_a_principle_for() -> None:
    principle = Principle(id="calm", text="No sweet talk.", tags=("flattery", "avoid", "tone"))
    loose = Principle(id="loose", text="Be short.", tags=("seek", "tone"))  # names no trait
    critic = ScriptedEngine(lambda _: "The principle asks to include flattery.")
    found = wanted_directions(Constitution(name="one", principles=(principle,)), critic, load_prompts())
    assert found.directions == {"trait_rate/flattery": "lower"}
    assert found.misunderstood == ["calm: The principle asks to include flattery. Its tags say: flattery, avoid, tone."]
    untagged = wanted_directions(Constitution(name="two", principles=(loose,)), critic, load_prompts())
    assert untagged == ({"trait_rate/flattery": "higher"}, [], ["loose: The principle asks to include flattery."])
    assert found.guessed == []


class FakeWork:
    """A run of prompts and three scripted models, without folders of weights."""

    seed = 0
    constitution = CONSTITUTION

    def __init__(self, prompts: list[Prompt]) -> None:
        self.rows: dict[str, list[Record]] = {"prompts": list(prompts)}
        self.notes: dict[str, object] = {}
        self.folders: dict[str, Path] = {}
        self.prompts: Prompts = load_prompts()

    def read(self, artifact: str, kind: type[Record]) -> list[Record]:
        assert all(isinstance(row, kind) for row in self.rows[artifact])
        return self.rows[artifact]

    def write(self, artifact: str, rows: Iterable[Record]) -> int:
        self.rows[artifact] = list(rows)
        return len(self.rows[artifact])

    def engine(self, role: str) -> Engine:
        return ScriptedEngine(critic if role == "critic" else lambda request: f"{role[:3]} {request.seed}", role)

    def model(self, artifact: str) -> Path:
        return self.folders[artifact]  # none unless a test puts one there

    def settings(self, role: str) -> ModelSettings:
        return ModelSettings(path=str(self.folders[role]))

    def release(self) -> None:
        pass

    def progress(self, items: Iterable[T], total: int, label: str) -> Iterator[T]:
        assert label
        shown = list(items)
        assert len(shown) == total
        yield from shown

    def note(self, name: str, value: object) -> None:
        self.notes[name] = value


def test_models_that_answered_are_released_before_others_are_loaded_to_be_compared(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    context, steps = FakeWork([asked(str(n)) for n in range(3)]), list[str]()
    monkeypatch.setattr(context, "release", lambda: steps.append("released"))

    def compare(*_: object) -> list[Score]:
        steps.append("compared")
        return []

    monkeypatch.setattr(evaluate, "divergence_scores", compare)
    run(Settings(prompts=3, judged=0, critiqued=0, compared=2), cast("StageContext", context))
    assert steps[0] == "released"
    assert set(steps[1:]) == {"compared"}


def test_the_stage_writes_samples_and_scores_of_all_three_models() -> None:
    context = FakeWork([asked(str(n)) for n in range(6)] + [asked("no", split="train")])
    settings = Settings(prompts=5, judged=4, critiqued=3, compared=0)
    run(settings, cast("StageContext", context), judge=judging(lambda each: [float(each.a.startswith("pol"))]))
    samples, scores = (
        cast("list[Sample]", context.rows["samples"]),
        by_name(cast("list[Score]", context.rows["scores"])),
    )
    assert len(samples) == 5
    assert all([*each.replies] == ["base", "sft_model", "policy"] for each in samples)
    assert (scores["policy", "win_rate/base"].value, scores["policy", "win_rate/base"].n) == (1, 4)
    assert scores["base", "violation_rate/polite"].n == 3
    assert scores["base", "length"].n == 5
    assert context.notes["counts"] == {
        "held-out prompts": 5,
        **{f"{what}, {contest}": 0 for what in ("equal replies", "unreadable comparisons") for contest in CONTESTS},
        "critiques": 18,
        "unreadable critiques": 0,
    }


def test_without_a_labeler_there_are_no_win_rates() -> None:
    context = FakeWork([asked(str(n)) for n in range(3)])
    run(Settings(critiqued=0, compared=0), cast("StageContext", context))
    assert not any(each.measure.startswith("win_rate") for each in cast("list[Score]", context.rows["scores"]))


def test_without_two_held_out_prompts_nothing_is_measured() -> None:
    context = FakeWork([asked("1"), asked("2", split="train")])
    run(Settings(), cast("StageContext", context))
    assert context.rows["scores"] == context.rows["samples"] == []
    assert context.notes["counts"] == {"held-out prompts": 1}


def test_scores_survive_being_written_and_read() -> None:
    for score in text_scores([sample("1", "a", "b", "c"), sample("2", "a", "b", "")], Settings(), 0):
        assert Score.model_validate_json(score.model_dump_json()) == score


def test_the_stage_measures_how_far_each_model_is_from_those_before_it(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from constitutional.engines.divergence import Reply, divergences
    from constitutional.engines.local import load_model
    from constitutional.sandbox.tokenizer import build_tokenizer
    from tests.engines.test_divergence import tiny

    context = FakeWork([asked(str(n)) for n in range(3)])
    tokenizer = build_tokenizer([], count=20)
    for name, seed in (("base", 0), ("sft_model", 0), ("policy", 1)):  # supervised learning has changed nothing
        context.folders[name] = tmp_path / name
        tiny(len(tokenizer), tokenizer, seed).save_pretrained(context.folders[name])
        tokenizer.save_pretrained(context.folders[name])
    run(Settings(critiqued=0, compared=2), cast("StageContext", context))

    scores = by_name(cast("list[Score]", context.rows["scores"]))
    assert scores["sft_model", "kl_from/base"].value == scores["sft_model", "log_ratio_to/base"].value == 0
    models = [load_model(context.folders[name])[0] for name in ("policy", "base")]
    samples = cast("list[Sample]", context.rows["samples"])[:2]
    its = [Reply(each.prompt.messages, each.replies["policy"], ended=True) for each in samples]
    tokens = [token for tokens in divergences(its, models[0], models[1], tokenizer) for token in tokens]
    for reference in ("base", "sft_model"):
        kl, ratio = scores["policy", f"kl_from/{reference}"], scores["policy", f"log_ratio_to/{reference}"]
        assert (kl.n, kl.unit) == (len(tokens), "nats a token")
        assert kl.value == pytest.approx(sum(token.kl for token in tokens) / len(tokens))
        assert ratio.value == pytest.approx(sum(token.log_ratio for token in tokens) / len(tokens))
        assert kl.low <= kl.value <= kl.high
