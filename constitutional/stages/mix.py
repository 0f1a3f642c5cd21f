"""Turns judgements and people's choices into the preferences that reward models and DPO are trained on.

Bai et al. 2022 (arXiv 2212.08073), section 4.1, train on human and AI comparisons, the AI's with its probabilities as
soft targets. Lee et al. 2023 (arXiv 2309.00267) compare AI, human and mixed labels. Here the share of human comparisons
is a setting, and runs of every share are measured on the same held-out preferences, of both sources. A person's verdict
replaces the AI's on the same comparison. What is undecided is left out and counted, and trained on as a tie only where
people leave it even and `ties` says so.
"""

import math
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, groupby
from pathlib import Path
from statistics import fmean
from typing import Annotated, Final, Literal, NamedTuple, Self

from pydantic import BeforeValidator, Field, model_validator

from constitutional.base.errors import ConfigurationError, RunError
from constitutional.base.frozen import Frozen
from constitutional.base.records import Comparison, Judgement, Preference, Prompt, Split, SpotCheck, Verdict
from constitutional.base.seeds import rng_of
from constitutional.base.shards import RowStream, Shards, column_of
from constitutional.base.text import same_text
from constitutional.data.comparisons import divisor, read_comparisons
from constitutional.data.prompts import contains_one_of, conversation_of, prompts_within
from constitutional.data.sources import DataFile, as_files, check_weights
from constitutional.data.verdicts import read_verdicts
from constitutional.judging.aggregation import estimated, too_few
from constitutional.judging.labelling import combine, decisive
from constitutional.judging.people import work_of
from constitutional.stages.context import StageContext
from constitutional.stages.summaries import MixSummary

MOST_HELD_OUT: Final = 500
"""Preferences of each source that are held out at most. An accuracy is then known to 4.4 points or better (Wilson's
95% interval), while to score a tenth of a large file may take longer than the training."""

FEW: Final = 30
"""Fewer preferences than these teach a model next to nothing."""


class Settings(Frozen):
    """How preferences are put together."""

    margin: float = Field(default=0.0, ge=0, lt=0.5)
    """An AI judgement less than this far from 0.5 is undecided and left out; exactly 0.5 always is."""
    strengths: tuple[float, float, float, float] = (0.65, 0.8, 0.9, 0.97)
    """Probability that a person's choice is the better one, by the verdict's strength, 1 to 4; above 0.5, rising."""
    aggregate: Literal["majority", "dawid_skene"] = "majority"
    """How the votes of several people on one comparison become one soft label: `majority` is the mean of their votes'
    probabilities by `strengths`; `dawid_skene` estimates the errors of each rater, and takes the posterior probability
    where two or more voted. It needs three raters with 100 votes each on comparisons that others voted on too, and
    otherwise warns and takes the majority. It does not look at the strength of a vote."""
    human: Annotated[tuple[DataFile, ...] | None, BeforeValidator(as_files)] = None
    """Files of comparisons made by people elsewhere: a name, or a list of names or of {path: …, weight: …,
    columns: {…}, strengths: {…}}; also hf://… on the hub. `constitutional data FILE` says how a file is read."""
    ties: Literal["leave_out", "keep"] = "leave_out"
    """What becomes of comparisons that people leave even, in files of `human` and in verdicts on the run's own: ties,
    and votes whose mean is 0.5. `leave_out` counts them and trains on none; `keep` trains on them as people's with the
    probability 0.5. Where all people say that both responses are bad, and where the labeler's own judgements come out
    even, the comparison is left out either way."""
    verdicts: Path | None = None
    """A file of people's verdicts on this run's comparisons, JSON lines, plain or .gz."""
    human_ratio: float | None = Field(default=None, ge=0, le=1)
    """Share of the preferences to train on that are people's, 0 to 1; None takes all there are of both. Those held out
    are the same whatever the share."""
    mode: Literal["fixed_total", "fixed_cost", "additive"] = "fixed_total"
    """With a share: `fixed_total` trains on the same number of preferences whatever the share; `fixed_cost` on as many
    as the cost allows; `additive` takes all of the AI's and adds as many of people's as give the share, or all of them
    if there are fewer."""
    cost: float | None = Field(default=None, gt=0)
    """At a fixed cost: what the labels of the preferences to train on may come to."""
    price_of_vote: float = Field(default=0.5, gt=0)
    """What a person's label costs, in the unit of the cost."""
    price_of_label: float = Field(default=0.001, ge=0)
    """What a label of the AI's costs."""
    total: int | None = Field(default=None, ge=1)
    """Number of preferences to train on at a fixed total, those held out not counted. None is the number of the scarcer
    source's, which every share from 0 to 1 allows; where that is too few for both, as many as the share
    allows."""
    held_out_share: float = Field(default=0.1, ge=0, lt=1)
    """Share of prompts whose preferences are kept from training, to measure the reward model on, 0 to 1; of each source
    at most 500 of these preferences, whatever the share."""

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        check_weights(self.human or ())
        if not all(low < high for low, high in zip((0.5, *self.strengths), (*self.strengths, 1.0 + 1e-9), strict=True)):
            raise ValueError(f"strengths are {self.strengths}; they must rise, from above 0.5 to at most 1")
        if self.total is not None and (self.human_ratio is None or self.mode != "fixed_total"):
            raise ValueError("total needs a human_ratio and mode=fixed_total; leave total out, or give both")
        if (self.cost is not None) != (self.mode == "fixed_cost") or (self.cost and self.human_ratio is None):
            raise ValueError("mode=fixed_cost needs a cost and a human_ratio, and a cost needs mode=fixed_cost")
        if self.mode == "fixed_cost" and self.human_ratio == 0 and not self.price_of_label:
            raise ValueError("mode=fixed_cost with a human_ratio of 0 needs a price_of_label above 0")
        if self.mode == "additive" and self.human_ratio == 1:
            raise ValueError("mode=additive keeps all of the AI's; a human_ratio of 1 needs mode=fixed_total")
        return self


class Mixed(NamedTuple):
    """Preferences to train on and to measure on, and what became of everything else."""

    preferences: list[Preference]
    counts: dict[str, int]
    problem: str | None = None
    """What the votes lack for Dawid and Skene's estimate, where it is asked for."""


class MixedRows(NamedTuple):
    """The same, with preferences that are made when they are asked for, once."""

    preferences: Iterator[Preference]
    counts: dict[str, int]
    problem: str | None


def mix(
    comparisons: RowStream[Comparison],
    judgements: RowStream[Judgement],
    verdicts: Sequence[Verdict],
    human_preferences: Sequence[Preference],
    settings: Settings,
    seed: int,
) -> Mixed:
    """The preferences of a run, the AI's first, each with its split; the counts say what was left out, and why.

    The share and the total apply to the train side alone. The order in which preferences are taken, and a prompt's side
    of the split, depend on each alone and on the seed: of one source, more preferences hold all of fewer, and in a
    sweep over shares the split and the held-out preferences stay the same. Of each source, those available are those
    used (to train on), beyond the share or the total, held out, and held-out ones beyond `MOST_HELD_OUT`.

    Raises:
        ConfigurationError: there is too little of one source for the share or the total.
    """
    mixed = mixed_rows(comparisons, judgements, verdicts, human_preferences, settings, seed)
    return Mixed(list(mixed.preferences), mixed.counts, mixed.problem)


def mixed_rows(
    comparisons: RowStream[Comparison],
    judgements: RowStream[Judgement],
    verdicts: Sequence[Verdict],
    human_preferences: Sequence[Preference],
    settings: Settings,
    seed: int,
) -> MixedRows:
    """The same as `mix`, for any number of comparisons: they and their judgements are read twice, row by row.

    Of each preference some tens of bytes are held: its rank, and its side of the split. What people say is held whole.

    Raises:
        ConfigurationError: there is too little of one source for the share or the total.
        RunError: judgements in shards do not stand in the order of the comparisons.
    """
    counts: Counter[str] = Counter()
    verdicts_by_comparison = _usable(verdicts, counts)
    opinions = _about(comparisons, verdicts) if settings.aggregate == "dawid_skene" else []
    problem = too_few(opinions)
    estimates = {} if problem else estimated(opinions)

    def decided(counts: Counter[str]) -> Iterator[Preference]:
        """By the labeler or by people, in the order of the comparisons."""
        for comparison, own in _with_judgements(comparisons, judgements):
            if same_text(comparison.a, comparison.b):
                counts["comparisons of equal texts"] += 1
            elif comparison.id in verdicts_by_comparison:
                counts["AI judgements overridden by a person"] += bool(own)
                p_a = estimates.get(comparison.id)
                yield from _by_people(comparison, verdicts_by_comparison[comparison.id], p_a, settings, counts)
            else:
                yield from _by_ai(comparison, own, settings, counts)

    ai, human = _Available(settings, seed), _Available(settings, seed)
    people: list[Preference] = []
    for preference in decided(counts):
        if preference.source == "ai":
            ai.add(preference)
        else:
            people.append(preference)
    brought = _brought_together(human_preferences, counts, keep=settings.ties == "keep")
    people += [preference for preference in brought if preference.source == "human"]
    from_files = [preference for preference in brought if preference.source == "ai"]
    human.extend(people)
    ai.extend(from_files)
    counts["preferences on evaluation prompts"] += human.left_out + ai.left_out

    from_ai, from_people = amounts_of(ai.count("train"), human.count("train"), settings)
    for source, there, used in (("AI", ai, from_ai), ("human", human, from_people)):
        held_out = there.count("held_out")
        kept = min(held_out, MOST_HELD_OUT)
        there.draw({"train": used, "held_out": kept})
        counts[f"{source} preferences available"] = there.count("train") + held_out
        counts[f"{source} preferences used"] = used
        counts[f"{source} preferences beyond the share or the total"] = there.count("train") - used
        counts[f"{source} preferences held out"] = kept
        counts[f"held-out {source} preferences beyond {MOST_HELD_OUT}"] = held_out - kept
    counts["preferences in train"] = from_ai + from_people
    counts["preferences in held_out"] = counts["AI preferences held out"] + counts["human preferences held out"]
    by_ai = (preference for preference in decided(Counter()) if preference.source == "ai")
    drawn = chain(ai.drawn_of(chain(by_ai, from_files)), human.drawn_of(people))
    return MixedRows(drawn, dict(counts), problem)


def _usable(verdicts: Iterable[Verdict], counts: Counter[str]) -> dict[str, list[Verdict]]:
    """The verdicts that say something of a comparison, by its id."""
    by_comparison: defaultdict[str, list[Verdict]] = defaultdict(list)
    for verdict in verdicts:
        if verdict.gold is not None:  # tests the rater
            counts["votes on gold items"] += 1
        elif verdict.withdrawn:  # tells who worked
            continue
        elif verdict.choice == "skip":  # says nothing, so the AI's judgement stands
            counts["verdicts that skip"] += 1
        else:
            by_comparison[verdict.comparison].append(verdict)
    return dict(by_comparison)


def _with_judgements(
    comparisons: Iterable[Comparison], judgements: Iterable[Judgement]
) -> Iterator[tuple[Comparison, list[Judgement]]]:
    """Each comparison with what judges make of it; shards are read side by side, in the order that `label` writes."""
    if not isinstance(judgements, Shards):
        by_comparison: defaultdict[str, list[Judgement]] = defaultdict(list)
        for judgement in judgements:
            by_comparison[judgement.comparison].append(judgement)
        for comparison in comparisons:
            yield comparison, by_comparison.get(comparison.id, [])
        return
    groups = groupby(judgements, lambda judgement: judgement.comparison)
    name, group = next(groups)
    for comparison in comparisons:
        own: list[Judgement] = []
        if comparison.id == name:
            own = list(group)
            name, group = next(groups, ("", iter(())))
        yield comparison, own
    if name:
        raise RunError(
            f"{judgements.path}: the judgement of comparison {name} does not stand in the order of the comparisons; "
            "delete the folder and start the run again"
        )


class _Available:
    """The preferences of one source that are not on evaluation prompts: their sides of the split, and who is first."""

    def __init__(self, settings: Settings, seed: int) -> None:
        self.left_out = 0
        """Preferences on evaluation prompts."""
        self._settings = settings
        self._seed = seed
        self._ranks = array("d")
        self._held_out = array("b")
        self._prompt: tuple[Prompt, bool] | None = None
        """The last prompt, and whether it is held out: the comparisons of a prompt stand together."""
        self._drawn = b""

    def add(self, preference: Preference) -> None:
        """Note a preference, in the order of all."""
        if preference.prompt.split != "train":
            self.left_out += 1
            return
        if self._prompt is None or self._prompt[0] != preference.prompt:
            self._prompt = (preference.prompt, is_held_out(preference.prompt, self._settings, self._seed))
        self._ranks.append(rank(preference.source, preference.comparison, self._seed))
        self._held_out.append(self._prompt[1])

    def extend(self, preferences: Iterable[Preference]) -> None:
        """Note several."""
        for preference in preferences:
            self.add(preference)

    def count(self, split: Split) -> int:
        """How many are on this side of the split."""
        held_out = sum(self._held_out)
        return held_out if split == "held_out" else len(self._held_out) - held_out

    def draw(self, amounts: Mapping[Split, int]) -> None:
        """Choose so many of each side; who is taken first is settled by each one's comparison alone."""
        import numpy as np

        order = np.argsort(np.array(self._ranks), kind="stable")
        held_out, drawn = np.array(self._held_out, bool)[order], np.zeros(len(order), bool)
        for split, amount in amounts.items():
            drawn[order[held_out == (split == "held_out")][:amount]] = True
        self._drawn = drawn.tobytes()

    def drawn_of(self, preferences: Iterable[Preference]) -> Iterator[Preference]:
        """Those that were chosen, with their splits; of the same preferences in the same order."""
        trained_on = (preference for preference in preferences if preference.prompt.split == "train")
        for preference, held_out, drawn in zip(trained_on, self._held_out, self._drawn, strict=True):
            if drawn:
                yield _with(preference, split="held_out" if held_out else "train")


def _about(comparisons: Iterable[Comparison], verdicts: Iterable[Verdict]) -> list[Verdict]:
    """The verdicts on those of the comparisons whose responses differ."""
    voted_on = {verdict.comparison for verdict in verdicts}
    differing = {row.id for row in comparisons if row.id in voted_on and not same_text(row.a, row.b)}
    return [verdict for verdict in verdicts if verdict.comparison in differing and verdict.gold is None]


def _by_ai(
    comparison: Comparison, judgements: Sequence[Judgement], settings: Settings, counts: Counter[str]
) -> list[Preference]:
    """The soft preference of the labeler: the mean over what can be read, by weight."""
    usable, p_a = decisive(judgements), combine(judgements)
    unreadable = sum(judgement.p_a is None for judgement in judgements)
    counts["judgements unreadable"] += unreadable
    if p_a is None:
        counts[f"comparisons {'unreadable' if unreadable else 'not judged'}"] += 1
        return []
    if not is_decided(p_a, settings.margin):
        conflict = any(judgement.conflict for judgement in usable)
        counts[f"comparisons undecided, {'position conflict' if conflict else 'near a half'}"] += 1
        return []
    counts["comparisons decided"] += 1
    principles = [judgement.principle for judgement in usable]
    return [_directed(comparison, p_a, "ai", principles, [judgement.id for judgement in usable])]


def _by_people(
    comparison: Comparison,
    verdicts: Sequence[Verdict],
    estimate: float | None,
    settings: Settings,
    counts: Counter[str],
) -> list[Preference]:
    """People's preference: the estimate, or else the mean over raters who preferred a side or saw a tie.

    There is none where all raters saw two bad responses, nor, unless ties are kept, where it is even.
    """
    opinions = [row for row in verdicts if estimate is not None or row.choice != "both_bad"]
    p_a = estimate if estimate is not None else fmean([_p_a(row, settings) for row in opinions] or [0.5])
    if _even(p_a):
        choices = {verdict.choice for verdict in verdicts}
        why = next(iter(choices)) if len(choices) == 1 else "conflict"
        if settings.ties == "leave_out" or choices == {"both_bad"}:
            counts[f"verdicts without a preference: {why}"] += 1
            return []
        counts[f"verdicts that come out even, kept: {why}"] += 1
        p_a = 0.5  # exactly: what measures the reward model knows ties by it
    counts["comparisons decided"] += 1
    counts["comparisons decided by Dawid and Skene's estimate"] += estimate is not None
    principles = [opinion.principle for opinion in opinions if opinion.principle]
    return [_directed(comparison, p_a, "human", principles, [opinion.id for opinion in opinions])]


def _p_a(verdict: Verdict, settings: Settings) -> float:
    strength = settings.strengths[verdict.strength - 1]
    return {"a": strength, "b": 1 - strength}.get(verdict.choice, 0.5)


def _brought_together(preferences: Sequence[Preference], counts: Counter[str], *, keep: bool) -> list[Preference]:
    """One preference for each comparison: what several people said of it is averaged.

    Verdicts by different principles stay several, as on PKU-SafeRLHF's pairs, where the more helpful reply may be the
    less safe; together they weigh as one at most. What comes out even is dropped unless ties are kept. What a file says
    that a model prefers counts where no person judged the comparison.
    """
    by_people = {preference.comparison for preference in preferences if preference.source == "human"}
    groups: defaultdict[str, dict[tuple[str, ...], list[Preference]]] = defaultdict(dict)
    for preference in preferences:
        if preference.source == "human" or preference.comparison not in by_people:
            groups[preference.comparison].setdefault(preference.principles, []).append(preference)
    made = []
    for comparison_id, by_principle in groups.items():
        counts["human comparisons judged by several principles"] += len(by_principle) > 1
        shared = divisor([preference.weight for preference in group] for group in by_principle.values())
        for group in by_principle.values():
            averaged = _averaged(group, counts, keep=keep)
            if averaged is not None:
                made.append(_with(averaged, comparison=comparison_id, weight=averaged.weight / shared))
    return made


def _averaged(group: Sequence[Preference], counts: Counter[str], *, keep: bool) -> Preference | None:
    """What several people said of one comparison; None where it comes out even, unless ties are kept."""
    first = group[0]
    p_first = fmean(
        preference.probability if same_text(preference.chosen, first.chosen) else 1 - preference.probability
        for preference in group
    )
    counts["human comparisons rated more than once"] += len(group) > 1
    equal = same_text(first.chosen, first.rejected)
    if _even(p_first) or equal:
        counts["human comparisons undecided"] += 1
        if equal or not keep:
            return None
    if len(group) == 1:
        return first  # as most are: a copy of a million would take minutes and gigabytes
    comparison = Comparison(prompt=first.prompt, a=first.chosen, b=first.rejected)
    principles = [name for preference in group for name in preference.principles]
    rests_on = [place for preference in group for place in preference.rests_on]
    directed = _directed(comparison, p_first, first.source, principles, rests_on)
    return directed.model_copy(update={"weight": fmean(preference.weight for preference in group)})


def _with(preference: Preference, **values: object) -> Preference:
    """The preference with these values; itself where it has them."""
    changed = any(getattr(preference, name) != value for name, value in values.items())
    return preference.model_copy(update=values) if changed else preference


def _directed(
    comparison: Comparison, p_a: float, source: Literal["ai", "human"], principles: list[str], rests_on: list[str]
) -> Preference:
    """The comparison with the likelier of its texts as chosen."""
    chosen, rejected = (comparison.a, comparison.b) if p_a > 0.5 else (comparison.b, comparison.a)
    return Preference(
        prompt=comparison.prompt,
        chosen=chosen,
        rejected=rejected,
        probability=min(1.0, max(p_a, 1 - p_a)),
        source=source,
        principles=tuple(dict.fromkeys(principles)),
        rests_on=tuple(rests_on),
        comparison=comparison.id,
    )


def _even(p: float) -> bool:
    # The mean of 0.9 and 1 − 0.9 is 0.49999999999999994.
    return abs(p - 0.5) < 1e-9


def is_decided(p: float, margin: float) -> bool:
    """Whether a probability makes a preference: it is not even, and no nearer to 0.5 than the margin."""
    return not (_even(p) or within_margin(p, margin))


def within_margin(p: float, margin: float) -> bool:
    """Whether a probability is nearer to 0.5 than the margin, so that a judgement of it is undecided."""
    return abs(p - 0.5) < margin - 1e-9  # 0.6 - 0.5 is 0.09999999999999998


def is_held_out(prompt: Prompt, settings: Settings, seed: int) -> bool:
    """Whether the preferences of a training prompt are kept to measure the reward model on.

    The words up to the user's first message decide, so that no conversation goes on from one on the other side.
    """
    opening = next(prompts_within(conversation_of(prompt.messages)))
    return rng_of(seed, "mix split", opening).random() < settings.held_out_share


def rank(source: str, comparison: str, seed: int) -> float:
    """The place of a comparison's preference in the order in which preferences are taken, 0 to 1."""
    return rng_of(seed, "mix", source, comparison).random()


def amounts_of(ai: int, human: int, settings: Settings) -> tuple[int, int]:
    """How many of the AI's and of people's to take, of those that there are on the train side.

    Raises:
        ConfigurationError: the share or the total asks for more than there is.
    """
    share = settings.human_ratio
    if share is None:
        return ai, human
    if share > 0 and human == 0:
        advice = "name a file of them with mix.human=FILE, or leave mix.human_ratio out"
        none = "there are none to train on (those held out do not count)"
        raise ConfigurationError(f"mix.human_ratio={share} asks for people's preferences, and {none}; {advice}")
    if settings.mode == "additive":
        return ai, min(human, _rounded(ai * share / (1 - share)))
    largest = _largest_total(ai, human, share)
    if settings.cost is not None:
        price = share * settings.price_of_vote + (1 - share) * settings.price_of_label
        total = math.floor(settings.cost / price + 1e-9)
        if total > largest:
            raise ConfigurationError(
                f"mix.cost={settings.cost:g} pays {total:,} preferences with mix.human_ratio={share}, and there are "
                f"{largest:,} to train on in these shares; give a cost of at most {largest * price:g}"
            )
        return total - _rounded(total * share), _rounded(total * share)
    # The scarcer source's number is the most that every share allows: from run to run only the share changes.
    total = settings.total or min(ai, human) or largest
    if settings.total is None and 0 < share < 1 and _rounded(total * share) in (0, total):
        total = largest  # half of one preference is none: as many as the share allows
    if total > largest:
        there = f"{ai} preferences of the AI's and {human} of people's that are not held out allow {largest}"
        advice = "give at most that, or leave mix.total out"
        raise ConfigurationError(f"mix.total={total}, but with mix.human_ratio={share}, {there}; {advice}")
    return total - _rounded(total * share), _rounded(total * share)


def _largest_total(ai: int, human: int, share: float) -> int:
    limits = ([human / share] if share > 0 else []) + ([ai / (1 - share)] if share < 1 else [])
    total = math.floor(min(limits) + 1e-9)  # 3 / (1 - 0.9) may come out a little below 30
    while total and (_rounded(total * share) > human or total - _rounded(total * share) > ai):
        total -= 1
    return total


def _rounded(number: float) -> int:
    return math.floor(number + 0.5)


def without_evaluation_prompts(preferences: Sequence[Preference], prompts: Iterable[Prompt]) -> list[Preference]:
    """Those whose conversation neither is a prompt that is held out for evaluation nor goes on from one."""
    held_out = {conversation_of(prompt.messages) for prompt in prompts if prompt.split == "held_out"}
    return [preference for preference in preferences if not contains_one_of(preference.prompt.messages, held_out)]


def not_audited(comparisons: Iterable[Comparison], plan: Iterable[SpotCheck]) -> list[Comparison]:
    """The comparisons but for the audit set, which is never trained on, whoever judged it."""
    audit = {row.comparison for row in plan if row.reason == "audit"}
    return [comparison for comparison in comparisons if comparison.id not in audit]


def check_amounts(pairs: Sequence[Preference], prompts: Iterable[Prompt], settings: Settings, seed: int) -> None:
    """Refuse a share or a total that people's pairs cannot meet, whatever the AI's preferences come to be.

    Where the settings name a file of verdicts, how many preferences people make is known only later.

    Raises:
        ConfigurationError: says how many there are and how many are asked for.
    """
    share = settings.human_ratio
    if settings.verdicts is not None or not share:
        return
    counts: Counter[str] = Counter()
    people = _brought_together(without_evaluation_prompts(pairs, prompts), counts, keep=settings.ties == "keep")
    available = _Available(settings, seed)
    available.extend(preference for preference in people if preference.source == "human")
    human = available.count("train")
    if human == 0:
        amounts_of(0, 0, settings)
    if settings.total is not None and _rounded(settings.total * share) > human:
        problem = f"mix.total={settings.total} with mix.human_ratio={share} asks for {_rounded(settings.total * share)}"
        there = f"of people's preferences, and {human} are to train on (those held out do not count)"
        advice = f"give a total of at most {_largest_total(settings.total, human, share)}, or leave mix.total out"
        raise ConfigurationError(f"{problem} {there}; {advice}")


def run(settings: Settings, context: StageContext) -> None:
    """Read comparisons, judgements and people's files; write `preferences`."""
    checked = context.has("spotchecks")  # then comparisons are left out, and all are held
    every = context.read("comparisons", Comparison) if checked else context.stream("comparisons", Comparison)
    judgements = context.read("judgements", Judgement) if checked else context.stream("judgements", Judgement)
    notes: dict[str, int] = {}
    human: list[Preference] = []
    labelled: dict[str, str] = {}
    if settings.human is not None:
        read = read_comparisons(settings.human, seed=context.seed)
        human = without_evaluation_prompts(read.preferences, context.stream("prompts", Prompt))
        labelled = dict(read.labelled)
        for said in read.warnings:
            context.warn(said)
        notes = {
            "human rows beyond the weights of a mixture": read.beyond,
            "human rows with an empty message": read.counts["empty"],
            "human rows with equal texts": read.counts["equal"],
            "human rows whose transcripts differ before the last reply": read.counts["different_contexts"],
            "human rows on evaluation prompts": len(read.preferences) - len(human),
            "human ties": read.counts["tie"],
            "human rows whose replies are both bad": read.counts["both_bad"],
            "human rows without a verdict": read.counts["unlabelled"],
            "human rows without a prompt": read.without_prompt,
        }
    from_file = read_verdicts(settings.verdicts, set(column_of(every, "id"))) if settings.verdicts else []
    verdicts, comparisons = [*from_file], every
    if checked:
        verdicts += context.read("verdicts", Verdict)
        comparisons = not_audited(every, context.read("spotchecks", SpotCheck))
        notes["comparisons of the audit set"] = len(every) - len(comparisons)
    mixed = mixed_rows(comparisons, judgements, verdicts, human, settings, context.seed)
    sources: set[str] = set()
    context.write("preferences", _noting(mixed.preferences, sources))
    counts = {**notes, **mixed.counts}
    summary = MixSummary(
        comparisons=len(comparisons),
        decided=counts.get("comparisons decided", 0),
        conflicts=counts.get("comparisons undecided, position conflict", 0),
        near_a_half=counts.get("comparisons undecided, near a half", 0),
        train=counts["preferences in train"],
        held_out=counts["preferences in held_out"],
        counts=counts,
        work=work_of(from_file) if from_file else None,
        labelled=labelled,
    )
    context.summarise(summary)
    for file in settings.human or ():
        if file.name in labelled and file.source is None:
            said = f"{file.name} {labelled[file.name]}, and counts as people's preferences"
            context.warn(f"{said}; to count it as the AI's: mix.human=[{{path: {file.path}, source: ai}}]")
    names = [file.name for file in settings.human or ()]
    if names and settings.human_ratio != 0 and not sources & set(names):
        why = ", ".join(f"{name}: {count:,}" for name, count in counts.items() if name.startswith("human ") and count)
        context.warn(f"mix.human: no pair of {', '.join(names)} is used ({why})")
    if mixed.problem:
        context.warn(f"mix.aggregate=dawid_skene: {mixed.problem}; the votes are aggregated by majority")
    if warning := too_little(summary, settings):
        context.warn(warning)


def _noting(preferences: Iterable[Preference], sources: set[str]) -> Iterator[Preference]:
    """The preferences, while the places that their prompts come from are noted."""
    for preference in preferences:
        sources.add(preference.prompt.source)
        yield preference


def too_little(summary: MixSummary, settings: Settings) -> str | None:
    """A sentence where training has next to nothing to learn from, with what would mend it; None where it has."""
    if summary.train >= FEW and 4 * summary.decided >= summary.judged:
        return None
    rest = {
        "position conflicts": summary.conflicts,
        "near a half": summary.near_a_half,
        "unreadable": summary.counts.get("comparisons unreadable", 0),
        "of equal texts": summary.counts.get("comparisons of equal texts", 0),
    }
    rest["not judged"] = summary.counts.get("comparisons not judged", 0)
    rest["even by people's verdicts"] = summary.comparisons - summary.decided - sum(rest.values())
    why = ", ".join(f"{count} {reason}" for reason, count in rest.items() if count) or "none was left undecided"
    told = (
        f"{summary.decided} of {summary.comparisons} comparisons give a preference ({why}), and {summary.train} "
        "preferences are trained on; "
    )
    if settings.human_ratio is not None and settings.mode == "fixed_total" and settings.total is None:
        counts = summary.counts
        ai, human = (
            counts.get(f"{source} preferences used", 0)
            + counts.get(f"{source} preferences beyond the share or the total", 0)
            for source in ("AI", "human")
        )
        if summary.train <= min(ai, human) < max(ai, human):
            votes = "smaller" if ai < human else "larger"
            return (
                f"{told}mix.mode=fixed_total takes no more than there are of the scarcer source, and of the AI's there "
                f"are {ai}, of people's {human}; a {votes} spotcheck.budget (a vote takes an AI label's place), "
                "mix.total=… where the share allows more, or mix.mode=additive gives more"
            )
    return (
        f"{told}more comparisons (prompts.train=…, sample_pairs.samples=…), another "
        "label.method=… or label.principles=all, or a lower mix.margin give more"
    )
