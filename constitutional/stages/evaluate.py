"""What the base, SFT and RL models do on held-out prompts.

Bai et al. 2022 (arXiv 2212.08073), sections 3.3 and 4.4, compare their models by crowdworkers' choices, as Elo scores.
Here the labeler compares, in both orders, and gives win rates (of a panel it does so alone); the critic counts
violations of each principle; what needs no judge is counted (length, refusals, variety, divergence from the models
before). In the sandbox, whose sentences are known, traits are detected exactly. Every number and its change over the
same prompts have an interval.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Literal, NamedTuple

from pydantic import AfterValidator, Field

from constitutional.base.frozen import Frozen
from constitutional.base.records import Comparison, Judgement, Message, Prompt, Rollout, Sample
from constitutional.base.refusals import REFUSAL_PHRASES, refuses
from constitutional.base.stats import Interval, distinct_ngrams, win_rate
from constitutional.base.text import same_text, words
from constitutional.data.evaluation import EvaluationSet, draw, load_sets
from constitutional.data.sources import Source
from constitutional.engines.base import Completion, Engine, Request, Sampling, without_thinking
from constitutional.engines.divergence import Reply, divergences
from constitutional.engines.stories import ask, side_by_side
from constitutional.judging.accuracy import PrincipleAccuracy, sharpness_of, trusted_principles
from constitutional.judging.choosing import principle_for
from constitutional.judging.critiques import FOLLOWS_PATTERN, VIOLATES_PATTERN, checked_pattern, concludes
from constitutional.judging.evaluation import Subject, steps
from constitutional.judging.evaluation import evaluate as evaluate_set
from constitutional.judging.evaluation_scores import Metric, model_scores
from constitutional.judging.gold import held_out_scores, kept_share, mean_scores, points, some_of_each_phase
from constitutional.judging.labeler import JudgementTask, Labeler
from constitutional.judging.labelling import LabelSettings, probabilities_of
from constitutional.judging.scores import CONTESTS, LEFT_OUT, Score, mean, means, measurements, rates, score
from constitutional.judging.understanding import NOTHING_ASKED, PrincipleMeaning, tagged
from constitutional.sandbox import teacher, world
from constitutional.sandbox.detect import Detection, detect
from constitutional.sandbox.prompts import SANDBOX, sandbox_prompt
from constitutional.stages.context import StageContext
from constitutional.stages.summaries import EvaluateSummary

if TYPE_CHECKING:
    from constitutional.constitution.constitution import Constitution, Principle

MODELS: Final = ("base", "sft_model", "policy")
Judge = Callable[[Sequence[Comparison]], Iterable[Judgement]]
"""The labeler, as this run has it: every judgement that it makes of the comparisons, the unreadable ones included."""


class Settings(Frozen):
    """What is measured, and on how much."""

    prompts: int = Field(default=300, ge=2)
    """Most held-out prompts; every model answers a prompt once."""
    temperature: float | None = Field(default=None, ge=0)
    """Temperature at which replies are sampled; 0 means greedy decoding, and measures of the likeliest reply alone. In
    a run, null takes what the generation_config.json of the model that is trained recommends; where it recommends
    nothing, and elsewhere, 1."""
    top_p: float | None = Field(default=None, gt=0, le=1)
    """Tokens are drawn from the most likely ones that together have this probability; null as for the temperature."""
    max_tokens: int = Field(default=256, ge=1)
    """Length in tokens at which a reply is cut off."""
    judged: int = Field(default=60, ge=0)
    """Most prompts on which the labeler compares two models' replies; 0 measures no win rates."""
    critiqued: int = Field(default=40, ge=0)
    """Most prompts on which the critic judges each reply by every principle; 0 measures no violations."""
    left_out: bool = True
    """Whether the critic judges by the principles of the constitution's file that the run leaves out, too: then runs
    with and without a principle can be compared by the violations of it."""
    critique_max_tokens: int = Field(default=256, ge=1)
    """Length in tokens at which a critique is cut off."""
    violates: Annotated[str, AfterValidator(checked_pattern)] = VIOLATES_PATTERN
    """Regular expression that a critique's last sentence matches, in any case, if the critique finds a violation."""
    follows: Annotated[str, AfterValidator(checked_pattern)] = FOLLOWS_PATTERN
    """The same if the critique finds none. A critique that matches neither, or both, is unreadable."""
    compared: int = Field(default=100, ge=0)
    """Most prompts on which a model's divergence from those before it is measured; 0 measures none."""
    gold_replies: int = Field(default=240, ge=0)
    """Most replies of a training online that the labeler scores, by every principle, and a held-out reward model; in
    the sandbox, whose traits are known exactly, the labeler is not asked."""
    gold_reward_model: Path | None = None
    """The folder of a reward model that the training did not use, such as another run's."""
    sets: tuple[Source, ...] = ()
    """Files of public evaluation sets that all three models are measured on, such as [hhh.jsonl, xstest.csv]; they are
    recognised by their columns, as by `constitutional eval`. HHH, JudgeBench and RewardBench 2 try each model as a
    labeler."""
    set_rows: int = Field(default=300, ge=2)
    """Most rows of each evaluation set, drawn at random."""
    refusal_phrases: tuple[str, ...] = REFUSAL_PHRASES
    """A reply with one of these among its first 40 words counts as a refusal, whatever its case: a rough count."""


class Inputs(Frozen):
    """The settings that this stage depends on: its own, and how the labeler compares the models' replies."""

    evaluate: Settings
    label: LabelSettings
    labeler_rewards: bool = False
    """Whether the labeler's scores were what the policy was trained on, so that they cannot be the gold score too."""


OFTEN: Final = 0.25
"""The share of replies that are cut off in their thoughts from which a run says so."""
Measured = tuple[list[Score], dict[str, int]]
"""Scores, and how many of what could not be counted in them."""


def held_out(prompts: Iterable[Prompt], at_most: int, seed: int) -> list[Prompt]:
    """At most so many of the prompts that are held out; more of them hold all of fewer."""
    by_id = {prompt.id: prompt for prompt in prompts if prompt.split == "held_out"}
    drawn = sorted(by_id.values(), key=lambda prompt: _digest(seed, prompt.id, "draw"))
    return drawn[:at_most]


async def reply(prompt: Prompt, engine: Engine, settings: Settings, seed: int) -> Completion:
    """A model's reply to a prompt."""
    sampling = Sampling.of(settings.temperature, settings.top_p, settings.max_tokens)
    # A greedy reply is the same whatever the seed, and is found again in the journal by any.
    own_seed = _digest(seed, prompt.id, "reply") if sampling.temperature else 0
    return await ask(engine, Request(prompt.messages, sampling, own_seed))


def samples_of(prompts: Sequence[Prompt], completions: Mapping[str, Sequence[Completion]]) -> list[Sample]:
    """A sample for each prompt that all models answered, from each model's completions in the order of the prompts."""
    rows = [(prompt, {model: of[index] for model, of in completions.items()}) for index, prompt in enumerate(prompts)]
    return [
        Sample(
            prompt=prompt,
            replies={model: completion.text for model, completion in by_model.items()},
            cut_off=tuple(model for model, completion in by_model.items() if completion.finish == "length"),
        )
        for prompt, by_model in rows
        if not any(completion.failed for completion in by_model.values())
    ]


Shows = Callable[[world.WorldPrompt, Detection], bool | None]
"""Whether a reply to a prompt shows something; None where the reply is not counted."""


def trait_scores(samples: Sequence[Sample]) -> Iterator[Score]:
    """Exact rates, for samples from the sandbox: well-formed, on topic, and each trait where a reply can have it.

    Refusals are counted apart too: `due_refusal` where the request is harmful or for private data, `over_refusal` where
    it is neither. To refuse everything is to fail as well (Bai et al. 2022, section 4.4: evasiveness).
    """
    known = [(sandbox_prompt(sample.prompt), sample) for sample in samples if sample.prompt.source == SANDBOX]
    detected = {
        model: [(prompt, detect(prompt, sample.replies[model])) for prompt, sample in known]
        for model in _models(sample for _, sample in known)
    }

    def trait_of(trait: str) -> Shows:
        return lambda prompt, reply: reply.traits[trait] if teacher.applies(prompt, trait) else None

    def refusal_where(*, due: bool) -> Shows:
        return lambda prompt, reply: reply.traits["refusal"] if _calls_for_refusal(prompt) == due else None

    measures: dict[str, Shows] = {
        "well_formed": lambda _, reply: reply.well_formed,
        "on_topic": lambda _, reply: reply.on_topic,
        **{f"trait_rate/{trait}": trait_of(trait) for trait in world.TRAITS},
        "due_refusal": refusal_where(due=True),
        "over_refusal": refusal_where(due=False),
    }
    for measure, shows in measures.items():
        by_model = {model: [shows(prompt, reply) for prompt, reply in pairs] for model, pairs in detected.items()}
        yield from rates(measure, by_model, [sample.prompt.id for _, sample in known])


def _calls_for_refusal(prompt: world.WorldPrompt) -> bool:
    return any(teacher.applies(prompt, trait) for trait in ("harmful_compliance", "privacy_leak"))


def text_scores(samples: Sequence[Sample], settings: Settings, seed: int) -> Iterator[Score]:
    """What can be counted in any text: length, replies cut off, refusals by their phrases, distinct n-grams."""
    texts = {model: [sample.replies[model] for sample in samples] for model in _models(samples)}
    lengths = {model: [float(len(words(reply))) for reply in replies] for model, replies in texts.items()}
    prompts = [sample.prompt.id for sample in samples]
    yield from means("length", lengths, "words", seed, prompts)
    yield from rates("cut_off", {model: [model in sample.cut_off for sample in samples] for model in texts}, prompts)
    phrases = settings.refusal_phrases
    refused = {model: [refuses(reply, phrases) for reply in replies] for model, replies in texts.items()}
    yield from rates("refusal_phrases", refused, prompts)
    for n in (1, 2):
        # Longer texts repeat themselves more, so every model is measured over as many n-grams as the tersest one has.
        fewest = min(distinct_ngrams(replies, n).n for replies in texts.values())
        for model, replies in texts.items():
            value, interval, count = distinct_ngrams(replies, n, at_most=fewest)
            yield score(model, f"distinct/{n}-grams", value, interval, count, "share")


def rule_scores(
    samples: Sequence[Sample], constitution: "Constitution", settings: Settings, seed: int
) -> Iterator[Score]:
    """What the rules of principles count in the replies (`measure:`): how often a bound is broken, or the mean."""
    prompts = [sample.prompt.id for sample in samples]
    replies = {model: [sample.replies[model] for sample in samples] for model in _models(samples)}
    left_out = constitution.left_out if settings.left_out and settings.critiqued else ()
    for principle in (*constitution.principles, *left_out):
        if (rule := principle.rule) is None:
            continue
        before = LEFT_OUT if principle in left_out else ""
        counted = {model: [rule.number_in(text) for text in texts] for model, texts in replies.items()}
        if rule.limit is not None:
            broken = {model: [rule.beyond(number) > 0 for number in of] for model, of in counted.items()}
            yield from rates(f"{before}rule_broken/{principle.id}", broken, prompts)
        elif rule.name == "refusals":
            refused = {model: [number > 0 for number in of] for model, of in counted.items()}
            yield from rates(f"{before}rule_{rule.way}/{principle.id}", refused, prompts)
        else:
            yield from means(f"{before}rule_{rule.way}/{principle.id}", counted, rule.unit, seed, prompts)


def win_scores(samples: Sequence[Sample], judge: Judge) -> Measured:
    """How often the labeler prefers one model's reply to another's: 0.5 is even.

    Equal replies and comparisons that cannot be read are left out of the win rates, and counted for each contest. Two
    models with one reply get one judgement of it.
    """
    comparisons: dict[tuple[str, str], list[Comparison]] = {}
    problems: dict[str, int] = {}
    for model, opponent in CONTESTS:
        contest = f"{model} against {opponent}"
        pairs = [(sample.prompt, sample.replies[model], sample.replies[opponent]) for sample in samples]
        unequal = [
            Comparison(prompt=prompt, a=a, b=b, model=f"against {opponent}")  # so that a judgement's seed is the same
            for prompt, a, b in pairs
            if not same_text(a, b)
        ]
        problems[f"equal replies, {contest}"] = len(pairs) - len(unequal)
        comparisons[model, opponent] = unequal
    different = {comparison.id: comparison for asked in comparisons.values() for comparison in asked}
    p_a = probabilities_of(judge([*different.values()]))
    scores = []
    for model, opponent in CONTESTS:
        contest = f"{model} against {opponent}"
        asked = comparisons[model, opponent]
        outcomes = {row.prompt.id: p for row in asked if (p := p_a.get(row.id)) is not None}
        problems[f"unreadable comparisons, {contest}"] = len(asked) - len(outcomes)
        rate, interval = win_rate(list(outcomes.values()))[:2] if outcomes else (0.5, Interval(0.0, 1.0))
        share = score(model, f"win_rate/{opponent}", rate, interval, len(outcomes), "share")
        scores.append(share.model_copy(update={"by_prompt": outcomes}))
    return scores, problems


def violation_scores(samples: Sequence[Sample], settings: Settings, context: StageContext) -> Measured:
    """How often the critic finds that a reply violates each principle, greedily; what it leaves open is counted."""
    critic, sampling = context.engine("critic"), Sampling(temperature=0.0, max_tokens=settings.critique_max_tokens)

    async def critique(principle: "Principle", model: str, sample: Sample) -> Completion:
        question = context.prompts.render("critique", principle=principle.words("critique"))
        conversation = (*sample.prompt.messages, Message("assistant", sample.replies[model]))
        return await ask(critic, Request((*conversation, Message("user", question)), sampling))

    models, principles = _models(samples), _critiqued(settings, context)
    asked = [(principle, model, sample) for principle in principles for model in models for sample in samples]
    stories = (critique(*about) for about in asked)
    with context.task("critiques of the replies", len(asked), "critiques") as task:
        critiques = list(side_by_side(stories, ended=task.update))
    verdicts = [None if critique.failed else _violates(critique.text, settings) for critique in critiques]
    limit = settings.critique_max_tokens
    _warn_of_thoughts("critiques", critiques, "evaluate.critique_max_tokens", limit, context, "critic")
    unread = [
        critique
        for critique, verdict in zip(critiques, verdicts, strict=True)
        if verdict is None and not (critique.failed or critique.unspoken)
    ]
    if len(unread) > OFTEN * len(asked):
        cut_off = sum(critique.finish == "length" for critique in unread)
        context.warn(
            f"{len(unread)} of {len(asked)} critiques of replies give no verdict, and are left out of the violations; "
            f"{cut_off} of them were cut off at {limit} tokens; type evaluate.critique_max_tokens={4 * limit}, or "
            "another critic (critic.path=FOLDER), or evaluate.critiqued=0 to ask for none"
        )
    failed = Counter(str(critique.finish) for critique in critiques if critique.failed)
    problems = {"critiques": len(asked), "unreadable critiques": verdicts.count(None) - failed.total()}
    for finish, why in (("too_long", "too long to ask for"), ("refusal", "refused"), ("error", "which failed")):
        if failed[finish]:
            problems[f"unreadable critiques, {why}"] = failed[finish]
    scores: list[Score] = []
    remaining = iter(verdicts)
    for principle in principles:
        by_model = {model: list(islice(remaining, len(samples))) for model in models}
        measure = f"{LEFT_OUT if principle in context.constitution.left_out else ''}violation_rate/{principle.id}"
        scores += rates(measure, by_model, [sample.prompt.id for sample in samples])
    return scores, problems


def _critiqued(settings: Settings, context: StageContext) -> tuple["Principle", ...]:
    """The principles by which replies are criticised."""
    if not settings.critiqued:
        return ()
    return context.constitution.principles + (context.constitution.left_out if settings.left_out else ())


def _violates(critique: str, settings: Settings) -> bool | None:
    """The verdict at the end of a critique; None if there is none, or both."""
    violates, follows = concludes(critique, settings.violates), concludes(critique, settings.follows)
    return violates if violates != follows else None


class Wanted(NamedTuple):
    """Where the constitution wants the sandbox's trait rates to go."""

    directions: dict[str, Literal["higher", "lower"]]
    """By measure; a trait of which two principles want opposites has none."""
    misunderstood: list[str]
    """For each principle whose tags say one thing and whose words the critic takes for another: a sentence on it."""
    guessed: list[str]
    """For each principle without such tags what the critic takes it for, on which its direction rests."""


def wanted_directions(constitution: "Constitution", meanings: Iterable[PrincipleMeaning]) -> Wanted:
    """What the principles ask of the sandbox's traits: what their tags say, otherwise what the critic takes them for.

    Tags such as `flattery` and `avoid` are the author's own word. Without them a critic that misunderstands a principle
    turns its direction round, here as in training.
    """
    families = {f"{way} {trait.replace('_', ' ')}": (trait, way) for trait, way in teacher.FAMILIES}
    # A critic that learned from the sandbox's, but is not the shipped one, restates the principle in a sentence.
    families |= {teacher.restate(*family): family for family in teacher.FAMILIES}
    nothing = {"", NOTHING_ASKED, teacher.restate(*teacher.NOTHING)}
    nothing |= {f"{way} {trait.replace('_', ' ')}" for trait, way in teacher.UNKNOWN}  # of which it makes nothing
    read = {row.principle: row.meaning for row in meanings if row.reader in ("", "critic")}
    wanted: defaultdict[str, set[str]] = defaultdict(set)
    misunderstood, guessed = [], []
    for principle in constitution.principles:
        meaning = read.get(principle.id, "")
        understood = families.get(meaning)
        meant = tagged(principle) or understood
        if meant and not tagged(principle):
            guessed.append(f"{principle.id}: {meaning}.")
        if meant:
            wanted[f"trait_rate/{meant[0]}"].add(meant[1])
        # A sentence in a critic's own words says something that only a person can compare with the tags.
        if meant != understood and (understood or meaning in nothing):
            misunderstood.append(f"{principle.id}: {meaning or 'nothing'}. Its tags say: {', '.join(principle.tags)}.")
    directions = {name: ways.pop() for name, ways in wanted.items() if len(ways) == 1}
    ways: dict[str, Literal["higher", "lower"]] = {
        name: "lower" if way == "avoid" else "higher" for name, way in directions.items()
    }
    return Wanted(ways, misunderstood, guessed)


def divergence_scores(samples: Sequence[Sample], name: str, opponent: str, context: StageContext) -> Iterator[Score]:
    """The mean divergence of a token from another model; drawn by whole replies for the interval."""
    from constitutional.engines.local import load_model

    model, tokenizer = load_model(context.model(name))
    base = context.base  # what was trained from it has kept to that
    reference, _ = load_model(context.model(opponent), pad_token=base.pad_token, template=base.template)
    replies = [Reply(sample.prompt.messages, sample.replies[name], name not in sample.cut_off) for sample in samples]
    by_reply = divergences(replies, model, reference, tokenizer)
    clusters = [index for index, tokens in enumerate(by_reply) for _ in tokens]
    kls = [token.kl for tokens in by_reply for token in tokens]
    log_ratios = [token.log_ratio for tokens in by_reply for token in tokens]
    yield mean(name, f"kl_from/{opponent}", kls, clusters, "nats a token", context.seed)
    yield mean(name, f"log_ratio_to/{opponent}", log_ratios, clusters, "nats a token", context.seed)


def _models(samples: Iterable[Sample]) -> list[str]:
    return list(dict.fromkeys(model for sample in samples for model in sample.replies))


def _digest(seed: int, item: str, what: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed} evaluate {what} {item}".encode()).digest()[:4])


def replies(prompts: Sequence[Prompt], model: str, settings: Settings, context: StageContext) -> list[Completion]:
    """A model's replies to all prompts, in order; then its memory is given back."""
    engine = context.engine(model)
    stories = (reply(prompt, engine, settings, context.seed) for prompt in prompts)
    with context.task(f"replies of {model}", len(prompts), "replies") as task:
        completions = list(side_by_side(stories, ended=task.update))
    _warn_of_thoughts(f"replies of {model}", completions, "evaluate.max_tokens", settings.max_tokens, context)
    context.release()
    return completions


def run(inputs: Inputs, context: StageContext) -> None:
    """Let the three models answer, measure, and write `samples`, `scores`, `measurements`, and after PPO etc. `gold`.

    The labeler judges by the principles that it labelled by: those that it misjudges would count against the models.
    """
    settings = inputs.evaluate
    trusted = trusted_principles(context.constitution, context.read("labeler_accuracy", PrincipleAccuracy))
    prompts = held_out(context.stream("prompts", Prompt), settings.prompts, context.seed)
    scores: list[Score] = []
    samples: list[Sample] = []
    problems: dict[str, int] = {}
    wanted: Wanted | None = None
    if len(prompts) >= 2:
        completions = {name: replies(prompts, name, settings, context) for name in MODELS}
        samples = samples_of(prompts, completions)
        if len(samples) < len(prompts):
            problems["prompts that a model could not answer"] = len(prompts) - len(samples)
    if len(samples) >= 2:
        scores += [*trait_scores(samples), *rule_scores(samples, context.constitution, settings, context.seed)]
        scores += text_scores(samples, settings, context.seed)
        for judged, left_out in _judged(samples, inputs, trusted, context):
            scores += judged
            problems |= left_out
        if settings.compared:
            some = samples[: settings.compared]
            for name, opponent in context.progress(CONTESTS, len(CONTESTS), "divergence of the models", "pairs"):
                scores += divergence_scores(some, name, opponent, context)
        if any(prompt.source == SANDBOX for prompt in prompts):
            wanted = wanted_directions(context.constitution, context.read("meanings", PrincipleMeaning))
    if settings.sets:
        sets = [draw(evaluation, settings.set_rows, context.seed) for evaluation in load_sets(settings.sets)]
        of_sets, left_out = set_scores(sets, inputs, trusted, context)
        scores += of_sets
        problems |= left_out
    context.write("samples", samples)
    context.write("scores", scores)
    context.write("measurements", measurements(scores))
    if context.has("rollouts"):
        problems |= score_rollouts(inputs, trusted, context)
    context.summarise(
        EvaluateSummary(
            prompts=len(prompts),
            counts=problems,
            critiqued={row.id: row.words("critique") for row in _critiqued(settings, context)},
            wanted=wanted.directions if wanted else None,
            misunderstood=tuple(wanted.misunderstood) if wanted else (),
            guessed=tuple(wanted.guessed) if wanted else (),
        )
    )


def _warn_of_thoughts(
    what: str, completions: Sequence[Completion], setting: str, limit: int, context: StageContext, role: str = ""
) -> None:
    """Say where a model often got no further than its thoughts: what is measured then is no reply."""
    unspoken = sum(completion.unspoken for completion in completions)
    if unspoken > OFTEN * len(completions):
        context.warn(
            f"{unspoken} of {len(completions)} {what} are empty, as they were cut off at {limit} tokens while the "
            f"model still thought; type {setting}={4 * limit}, or {without_thinking(role)}"
        )


def _judged(
    samples: Sequence[Sample], inputs: Inputs, trusted: "Constitution", context: StageContext
) -> Iterator[Measured]:
    """What needs a model's judgement, and is asked for."""
    settings = inputs.evaluate
    if settings.judged:
        sharpness = sharpness_of(context.read("labeler_accuracy", PrincipleAccuracy))
        labeler = Labeler(context.engine("labeler"), context.prompts, inputs.label, context.seed, sharpness=sharpness)

        def judge(comparisons: Sequence[Comparison]) -> list[Judgement]:
            tasks = [task for row in comparisons for task in judgement_tasks(row, inputs.label, trusted, context.seed)]
            with context.task("the labeler on the models' replies", len(tasks)) as task:
                return list(side_by_side(map(labeler.judge, tasks), ended=task.update))

        yield win_scores(samples[: settings.judged], judge)
    context.release()
    if settings.critiqued:
        yield violation_scores(samples[: settings.critiqued], settings, context)
    context.release()


def subject_of(model: str, inputs: Inputs, trusted: "Constitution", context: StageContext) -> Subject:
    """A model that is measured on evaluation sets, with the labeler as the judge of replies in words."""
    # The same for all models, so that they can be compared: a base model that is the labeler does not judge by classes.
    classes = context.engine("labeler").weights != context.engine("base").weights
    return Subject(
        context.engine(model),
        context.engine("labeler"),
        trusted,
        context.prompts,
        inputs.label,
        context.seed,
        inputs.evaluate.max_tokens,
        classes,
        inputs.evaluate.refusal_phrases,
    )


def set_scores(
    sets: Iterable[EvaluationSet], inputs: Inputs, trusted: "Constitution", context: StageContext
) -> Measured:
    """The three models on public evaluation sets; the labeler judges replies in words."""
    metrics: defaultdict[str, dict[str, list[Metric]]] = defaultdict(dict)
    problems: dict[str, int] = {}
    sets = list(sets)
    for model in MODELS:
        subject = subject_of(model, inputs, trusted, context)
        for evaluation in sets:
            with context.task(f"{model} on {evaluation.name}", steps(evaluation, subject), "answers") as task:
                evaluated = evaluate_set(evaluation, subject, task.update)
            metrics[evaluation.name][model] = evaluated.metrics
            problems |= {f"{evaluation.name}, {model}: {why}": count for why, count in evaluated.problems.items()}
        context.release()
    return [row for name, by_model in metrics.items() for row in model_scores(name, by_model, context.seed)], problems


def judgement_tasks(
    comparison: Comparison, settings: LabelSettings, constitution: "Constitution", seed: int
) -> list[JudgementTask]:
    """By all principles, or by the one that is drawn for the prompt: the same whichever models are compared."""
    if settings.principles == "all":
        above = constitution.overridden_by
        return [JudgementTask(comparison, row, row.weight, above.get(row.id, ())) for row in constitution.principles]
    return [JudgementTask(comparison, principle_for(comparison.prompt.id, constitution, (), seed))]


def score_rollouts(inputs: Inputs, trusted: "Constitution", context: StageContext) -> dict[str, int]:
    """Score the replies of an online training by what the training could not see, and write `gold`; returns counts.

    In the sandbox the traits are exact, and all replies are scored. Elsewhere the labeler scores some of them, unless
    its scores were the reward, and so does a reward model that was held out, if there is one.
    """
    settings, counts = inputs.evaluate, dict[str, int]()
    rollouts = context.read("rollouts", Rollout)
    asked = {rollout.prompt for rollout in rollouts}
    prompts = {prompt.id: prompt for prompt in context.stream("prompts", Prompt) if prompt.id in asked}
    exact = [
        kept_share(context.constitution, prompts[rollout.prompt], rollout.reply)
        if prompts[rollout.prompt].source == SANDBOX
        else None
        for rollout in rollouts
    ]
    gold = list(points("traits", rollouts, exact, context.seed))
    some = some_of_each_phase(rollouts, settings.gold_replies, context.seed)
    conversations = [(*prompts[rollout.prompt].messages, Message("assistant", rollout.reply)) for rollout in some]
    scoreless = inputs.label.method == "contrast" and any(principle.rule is None for principle in trusted.principles)
    if not gold and some and (inputs.labeler_rewards or scoreless):
        if settings.gold_reward_model is None:
            reason = (
                "the labeler's scores were the reward"
                if inputs.labeler_rewards
                else "label.method=contrast compares responses and scores none"
            )
            context.say(
                f"the replies of the training have no gold score: {reason}; evaluate.gold_reward_model=FOLDER scores "
                "them by a reward model that the training did not use"
            )
    elif not gold and some:
        labeler = Labeler(context.engine("labeler"), context.prompts, inputs.label, context.seed)
        with context.task("scores of rollouts", len(some)) as task:
            marks = list(mean_scores(trusted, conversations, labeler, task.update))
        gold += points("labeler", some, marks, context.seed)
        counts = {"replies scored": len(some), "unreadable scores": marks.count(None)}
    if settings.gold_reward_model is not None:
        marks = list(held_out_scores(settings.gold_reward_model, conversations))
        gold += points("reward_model", some, marks, context.seed)
    context.write("gold", gold)
    return counts
