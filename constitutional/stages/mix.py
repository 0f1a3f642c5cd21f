"""Turns judgements and people's choices into the preferences that reward models and DPO are trained on.

Bai et al. 2022 (arXiv 2212.08073), section 4.1, train on human and AI comparisons, the AI's with its probabilities as
soft targets. Lee et al. 2023 (arXiv 2309.00267) compare AI, human and mixed labels. Here the share of human comparisons
is a setting, and runs of every share are measured on the same held-out preferences, of both sources. A person's verdict
replaces the AI's on the same comparison. What is undecided is left out and counted, and trained on as a tie only where
people leave it even and `ties` says so.
"""

import json
import math
from array import array
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import accumulate, chain, compress, pairwise
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any, Final, Literal, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BeforeValidator, Field, model_validator

from constitutional.base.errors import ConfigurationError, RunError
from constitutional.base.frozen import Frozen
from constitutional.base.records import (
    Comparison,
    Judgement,
    Message,
    Preference,
    Prompt,
    Split,
    SpotCheck,
    Verdict,
    canonical_json,
    digest_of_json,
)
from constitutional.base.seeds import rng_of
from constitutional.base.shards import (
    Columns,
    PlainRow,
    PlainRows,
    RowStream,
    Shards,
    batches_of,
    column_of,
    columns_of,
    json_of,
    json_text,
    one_by_one,
)
from constitutional.base.stats import weighted_mean
from constitutional.base.text import canonical, same_text
from constitutional.data.comparisons import divisor, read_comparisons
from constitutional.data.prompts import Conversation, contains_one_of, conversation_of, held_out_of, opening_of
from constitutional.data.sources import DataFile, as_files, check_weights
from constitutional.data.splits import digest
from constitutional.data.verdicts import read_verdicts
from constitutional.judging.aggregation import estimated, in_all_first, too_few
from constitutional.judging.people import work_of
from constitutional.judging.priorities import overridden
from constitutional.stages.context import StageContext
from constitutional.stages.summaries import MixSummary

MOST_HELD_OUT: Final = 500
"""Preferences of each source that are held out at most. An accuracy is then known to 4.4 points or better (Wilson's
95% interval), while to score a tenth of a large file may take longer than the training."""

_EVEN: Final = 1e-9
"""A probability that is nearer to 0.5 is even: the mean of 0.9 and 1 − 0.9 is 0.49999999999999994."""

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

    preferences: Iterator[Preference | PlainRows[Preference]]
    """Those that people decide or files hold are objects, and those of the labeler's are columns."""
    counts: dict[str, int]
    problem: str | None


class _Pair(NamedTuple):
    """The columns of a comparison."""

    id: str
    prompt: str
    """As JSON."""
    a: str
    b: str


class _Opinion(NamedTuple):
    """What a principle that overrides others is held against."""

    principle: str
    p_a: float | None
    conflict: bool
    weight: float
    gives_way_to: tuple[str, ...]


class _SoftLabels(NamedTuple):
    """What the opinions of some comparisons come to, by comparison."""

    p_a: list[float]
    """The labeler's soft labels; nan where one makes no preference."""
    why: list[str]
    """Under which names they are counted."""
    unreadable: list[int]
    """How many opinions cannot be read."""
    judged: list[bool]
    """There are opinions."""


_OPINION: Final = ("comparison", "principle", "p_a", "conflict", "weight", "gives_way_to")
"""The columns of a judgement that a preference follows from."""


class _JudgedPairs(NamedTuple):
    """Some thousand comparisons, and what judges make of them."""

    pairs: Columns
    """Of comparisons: those of `_Pair`."""
    opinions: Columns
    """Of judgements, in the order of the comparisons: `_OPINION`, and what else was asked for."""
    ends: list[int]
    """By comparison, where its opinions end and those of the next begin."""


NONE, EVALUATION, TRAIN, HELD_OUT = range(4)
"""What becomes of a preference: there is none; its prompt is for evaluation; or it is on this side of the split."""
SPLITS: Final[Mapping[int, Split]] = {TRAIN: "train", HELD_OUT: "held_out"}


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
    rows = one_by_one(mixed.preferences)
    return Mixed([row.record() if isinstance(row, PlainRow) else row for row in rows], mixed.counts, mixed.problem)


def mixed_rows(  # noqa: PLR0913 - the same, and what is never trained on
    comparisons: RowStream[Comparison],
    judgements: RowStream[Judgement],
    verdicts: Sequence[Verdict],
    human_preferences: Sequence[Preference],
    settings: Settings,
    seed: int,
    *,
    audit: frozenset[str] = frozenset(),
) -> MixedRows:
    """The same as `mix`, for any number of comparisons: of them and their judgements columns are read, twice.

    Of each comparison some bytes are held: the labeler's probability, and what becomes of its preference. What people
    say is held whole. Comparisons of `audit` are left out.

    Raises:
        ConfigurationError: there is too little of one source for the share or the total.
        RunError: judgements in shards do not stand in the order of the comparisons.
    """
    counts: Counter[str] = Counter()
    verdicts_by_comparison = _usable(verdicts, counts)
    opinions = _about(comparisons, verdicts, audit) if settings.aggregate == "dawid_skene" else []
    problem = too_few(opinions)
    estimates = {} if problem else estimated(opinions)

    labels, places = array("d"), bytearray()
    people: list[Preference] = []
    for block in _blocks(comparisons, judgements):
        columns = (*block.pairs.values(), *_labels(block, settings.margin))
        for name, prompt, a, b, p_a, why, unreadable, judged in zip(*columns, strict=True):
            label = math.nan
            if name in audit:
                pass
            elif same_text(a, b):
                counts["comparisons of equal texts"] += 1
            elif name in verdicts_by_comparison:
                counts["AI judgements overridden by a person"] += judged
                pair, estimate = _Pair(name, prompt, a, b), estimates.get(name)
                people += _by_people(pair, verdicts_by_comparison[name], estimate, settings, counts)
            else:
                counts["judgements unreadable"] += unreadable
                counts[why] += 1
                label = p_a
            labels.append(label)
        places += bytes(_places(block.pairs["prompt"], labels[len(places) :], settings, seed))
    brought = _brought_together(human_preferences, counts, keep=settings.ties == "keep")
    people += [preference for preference in brought if preference.source == "human"]
    from_files = [preference for preference in brought if preference.source == "ai"]
    ai = bytes(places) + bytes(_place_of(row.prompt, settings, seed) for row in from_files)
    human = bytes(_place_of(row.prompt, settings, seed) for row in people)
    counts["preferences on evaluation prompts"] += human.count(EVALUATION) + ai.count(EVALUATION)

    from_ai, from_people = amounts_of(ai.count(TRAIN), human.count(TRAIN), settings)
    for source, there, used in (("AI", ai, from_ai), ("human", human, from_people)):
        held_out = there.count(HELD_OUT)
        kept = min(held_out, MOST_HELD_OUT)
        counts[f"{source} preferences available"] = there.count(TRAIN) + held_out
        counts[f"{source} preferences used"] = used
        counts[f"{source} preferences beyond the share or the total"] = there.count(TRAIN) - used
        counts[f"{source} preferences held out"] = kept
        counts[f"held-out {source} preferences beyond {MOST_HELD_OUT}"] = held_out - kept
    counts["preferences in train"] = from_ai + from_people
    counts["preferences in held_out"] = counts["AI preferences held out"] + counts["human preferences held out"]

    def rows() -> Iterator[Preference | PlainRows[Preference]]:
        names = [preference.comparison for preference in from_files]
        drawn = _drawn("ai", ai, lambda: chain(column_of(comparisons, "id"), names), from_ai, seed)
        own = len(labels)
        yield from _labelled(comparisons, judgements, labels, ai[:own], drawn[:own])
        yield from _with_splits(from_files, ai[own:], drawn[own:])
        drawn = _drawn("human", human, lambda: (preference.comparison for preference in people), from_people, seed)
        yield from _with_splits(people, human, drawn)

    return MixedRows(rows(), dict(counts), problem)


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


def _blocks(comparisons: RowStream[Comparison], judgements: RowStream[Judgement], *more: str) -> Iterator[_JudgedPairs]:
    """The comparisons with what judges make of them, and with more columns of that.

    Shards are read side by side, in the order that `label` writes.
    """
    held: Columns = {name: [] for name in (*_OPINION, *more)}
    coming = _judged(judgements, held)
    if not isinstance(judgements, Shards):
        places = defaultdict[str, list[int]](list)
        for place, name in enumerate(coming):
            places[name].append(place)
        for pairs in batches_of(comparisons, Comparison, _Pair._fields):
            groups = [places.get(name, []) for name in pairs["id"]]
            own = list(chain.from_iterable(groups))
            opinions = {name: [column[place] for place in own] for name, column in held.items()}
            yield _JudgedPairs(pairs, opinions, list(accumulate(map(len, groups))))
        return
    waiting = next(coming, None)
    for pairs in batches_of(comparisons, Comparison, _Pair._fields):
        ends, end = list[int](), 0
        for name in pairs["id"]:
            while waiting == name:
                end += 1
                waiting = next(coming, None)
            ends.append(end)
        yield _JudgedPairs(pairs, {name: column[:end] for name, column in held.items()}, ends)
        for column in held.values():
            del column[:end]
    if waiting is not None:
        raise RunError(
            f"{judgements.path}: the judgement of comparison {waiting} does not stand in the order of the comparisons; "
            "delete the folder and start the run again"
        )


def _judged(judgements: RowStream[Judgement], held: Columns) -> Iterator[str]:
    """The comparisons of the judgements, whose columns are held as they come."""
    for columns in batches_of(judgements, Judgement, list(held)):
        for name, column in columns.items():
            held[name].extend(column)
        yield from columns["comparison"]


def _decisive(block: _JudgedPairs) -> NDArray[np.bool_]:
    """Which opinions the labels follow from, as `labelling.decisive` takes them."""
    opinions = block.opinions
    takes = np.array([p_a is not None for p_a in opinions["p_a"]], bool) & (np.array(opinions["weight"], float) > 0)
    if any(opinions["gives_way_to"]):
        above = [tuple(json.loads(names)) if names else () for names in opinions["gives_way_to"]]
        columns = (*(opinions[name] for name in ("principle", "p_a", "conflict", "weight")), above)
        rows, counts = [_Opinion(*row) for row in zip(*columns, strict=True)], list[bool]()
        for begin, end in pairwise((0, *block.ends)):
            own = rows[begin:end]
            beaten = overridden(compress(own, takes[begin:end]))
            counts += [opinion.principle not in beaten for opinion in own]
        takes &= counts
    return takes


def _labels(block: _JudgedPairs, margin: float) -> _SoftLabels:
    """What opinions come to: their mean by weight, where it is no nearer to a half than the margin.

    The mean is that of `labelling.mean_of` to the last digit.
    """
    count, takes = len(block.ends), _decisive(block)
    of = np.repeat(np.arange(count), np.diff(block.ends, prepend=0))
    p_a, weight = np.array(block.opinions["p_a"], float), np.array(block.opinions["weight"], float)  # None becomes nan
    unreadable = np.bincount(of[np.isnan(p_a)], minlength=count)
    conflicts = np.bincount(of[takes & np.array(block.opinions["conflict"], bool)], minlength=count)
    judged = np.diff(block.ends, prepend=0) > 0
    of, p_a, weight = of[takes], p_a[takes], weight[takes]
    with np.errstate(invalid="ignore"):
        means = np.bincount(of, weight * p_a, count) / np.bincount(of, weight, count)
    # The sum of two numbers is the one that `math.fsum` has; of more it may miss the last digit.
    for place in np.flatnonzero(np.bincount(of, minlength=count) > 2).tolist():
        own = slice(*np.searchsorted(of, (place, place + 1)))
        means[place] = weighted_mean(p_a[own].tolist(), weight[own].tolist())
    decided = np.abs(means - 0.5) >= _decisive_from(margin)  # nan is not
    near = np.where(conflicts > 0, "comparisons undecided, position conflict", "comparisons undecided, near a half")
    without = np.where(unreadable > 0, "comparisons unreadable", "comparisons not judged")
    why = np.where(np.isnan(means), without, np.where(decided, "comparisons decided", near))
    p_a = np.where(decided, means, np.nan)
    return _SoftLabels(p_a.tolist(), why.tolist(), unreadable.tolist(), judged.tolist())


def _prompt_of(pair: _Pair) -> Prompt:
    return Prompt.model_validate(json.loads(pair.prompt))


def _place_of(prompt: Prompt, settings: Settings, seed: int) -> int:
    return _place(prompt.split, _opening(prompt.messages), settings, seed)


def _places(prompts: Iterable[str], labels: Iterable[float], settings: Settings, seed: int) -> Iterator[int]:
    """What becomes of the labeler's preferences on these prompts, which are JSON: as `_place_of`, without objects."""
    last, place = "", NONE
    for prompt, p_a in zip(prompts, labels, strict=True):
        if math.isnan(p_a):
            yield NONE
            continue
        if prompt != last:  # the comparisons of a prompt stand together
            last, values = prompt, json_of(prompt)
            turns = ((message["role"], message["content"], message.get("extra", "")) for message in values["messages"])
            place = _place(values["split"], opening_of(turns), settings, seed)
        yield place


def _place(split: Split, opening: Conversation, settings: Settings, seed: int) -> int:
    """What becomes of the preferences of a prompt."""
    if split != "train":
        return EVALUATION
    return HELD_OUT if _is_held_out(opening, settings, seed) else TRAIN


def _drawn(source: str, places: bytes, names: Callable[[], Iterable[str]], used: int, seed: int) -> bytes:
    """Which preferences of a source are taken: 1 or 0 for each. Its comparison alone settles who is first.

    Args:
        source: of the preferences.
        places: what becomes of each.
        names: makes the ids of their comparisons, in the same order.
        used: how many to train on. Of those held out it is as many as there are, up to `MOST_HELD_OUT`.
        seed: decides who is first.
    """
    by_place = np.frombuffer(places, np.uint8)
    drawn = np.zeros(len(places), bool)
    for place, amount in ((TRAIN, used), (HELD_OUT, MOST_HELD_OUT)):
        there = by_place == place
        numbers = np.flatnonzero(there)
        if len(numbers) > amount:
            ranks = (rank(source, name, seed) for name in compress(names(), there))
            numbers = numbers[np.argsort(np.fromiter(ranks, float, len(numbers)), kind="stable")[:amount]]
        drawn[numbers] = True
    return drawn.tobytes()


def _labelled(
    comparisons: RowStream[Comparison],
    judgements: RowStream[Judgement],
    labels: Sequence[float],
    places: Sequence[int],
    drawn: Sequence[int],
) -> Iterator[PlainRows[Preference]]:
    """The labeler's preferences that are drawn, from all comparisons."""
    first = 0
    for block in _blocks(comparisons, judgements, "id"):
        last = first + len(block.ends)
        those = (block, labels[first:last], places[first:last], drawn[first:last])
        columns = _columns(*those)
        if columns["id"]:
            yield PlainRows(Preference, columns)
        first = last


_PREFERENCE: Final = (
    *("id", "prompt", "chosen", "rejected", "probability", "source", "principles", "rests_on", "comparison", "split"),
    "weight",
)
"""The columns of a preference."""


def _columns(block: _JudgedPairs, labels: Sequence[float], places: Sequence[int], drawn: Sequence[int]) -> Columns:
    """The labeler's preferences that are drawn, with ids as `id_of` makes them of rows."""
    takes = _decisive(block)
    principles = list(compress(block.opinions["principle"], takes))
    judgements = list(compress(block.opinions["id"], takes))
    ends = np.concatenate(([0], np.cumsum(takes)))[[0, *block.ends]].tolist()
    rows = zip(*block.pairs.values(), pairwise(ends), labels, places, strict=True)
    # Each column is filled by itself: tuples of rows would be held, and the garbage collector goes through them.
    made: Columns = {name: [] for name in _PREFERENCE}
    prompt, of_prompt = "", ""
    for comparison, as_json, a, b, (begin, end), p_a, place in compress(rows, drawn):
        if as_json != prompt:
            prompt, of_prompt = as_json, canonical_json(json_of(as_json))
        names, canonical_names = _as_json(tuple(principles[begin:end]))
        rests_on = '","'.join(judgements[begin:end])
        chosen, rejected = (a, b) if p_a > 0.5 else (b, a)
        probability, split = min(1.0, max(p_a, 1 - p_a)), SPLITS[place]
        name = digest_of_json(
            f'{{"chosen":{json_text(chosen)},"comparison":"{comparison}","principles":{canonical_names},'
            f'"probability":{probability!r},"prompt":{of_prompt},"rejected":{json_text(rejected)},'
            f'"rests_on":["{rests_on}"],"source":"ai","split":"{split}"}}'
        )
        made["id"].append(name)
        made["prompt"].append(prompt)
        made["chosen"].append(chosen)
        made["rejected"].append(rejected)
        made["probability"].append(probability)
        made["principles"].append(names)
        made["rests_on"].append(f'["{rests_on.replace(",", ", ")}"]')
        made["comparison"].append(comparison)
        made["split"].append(split)
    count = len(made["id"])
    made["source"], made["weight"] = ["ai"] * count, [None] * count
    return made


@lru_cache
def _as_json(principles: tuple[str, ...]) -> tuple[str, str]:
    """The ids of principles, without those that stand there before, as rows have them and as canonical JSON."""
    different = list(dict.fromkeys(principles))
    return json_text(different), canonical_json(different)


def _with_splits(
    preferences: Iterable[Preference], places: Iterable[int], drawn: Iterable[int]
) -> Iterator[Preference]:
    """The preferences that are drawn, with their splits."""
    for preference, place, taken in zip(preferences, places, drawn, strict=True):
        if taken:
            yield _with(preference, split=SPLITS[place])


def _about(comparisons: RowStream[Comparison], verdicts: Sequence[Verdict], audit: frozenset[str]) -> list[Verdict]:
    """The verdicts on those of the comparisons whose responses differ, but for the audit set."""
    voted_on = {verdict.comparison for verdict in verdicts} - audit
    rows = columns_of(comparisons, Comparison, ("id", "a", "b"))
    differing = {name for name, a, b in rows if name in voted_on and not same_text(a, b)}
    return [verdict for verdict in verdicts if verdict.comparison in differing and verdict.gold is None]


def _by_people(
    pair: _Pair,
    verdicts: Sequence[Verdict],
    estimate: float | None,
    settings: Settings,
    counts: Counter[str],
) -> list[Preference]:
    """People's preference: the estimate, or else the mean over raters who preferred a side or saw a tie.

    Of a rater the verdict in all counts, and where there is none the mean of those by principles. There is no
    preference where all raters saw two bad responses, nor, unless ties are kept, where it is even.
    """
    verdicts = in_all_first(verdicts)
    opinions = [row for row in verdicts if estimate is not None or row.choice != "both_bad"]
    by_rater = defaultdict[str, list[float]](list)
    for row in opinions:
        by_rater[row.rater].append(_p_a(row, settings))
    p_a = estimate if estimate is not None else fmean(map(fmean, by_rater.values()) if by_rater else [0.5])
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
    preference = Preference(
        prompt=_prompt_of(pair),
        **_likelier(pair.a, pair.b, p_a),
        source="human",
        principles=tuple(dict.fromkeys(opinion.principle for opinion in opinions if opinion.principle)),
        rests_on=tuple(opinion.id for opinion in opinions),
        comparison=pair.id,
    )
    return [preference]


def _p_a(verdict: Verdict, settings: Settings) -> float:
    strength = settings.strengths[verdict.strength - 1]
    return {"a": strength, "b": 1 - strength}.get(verdict.choice, 0.5)


def _brought_together(preferences: Sequence[Preference], counts: Counter[str], *, keep: bool) -> list[Preference]:
    """One preference for each comparison: what several people said of it, in one file or several, is averaged.

    Verdicts by different principles stay several, as on PKU-SafeRLHF's pairs, where the more helpful reply may be the
    less safe; together they weigh as one at most. What comes out even is dropped unless ties are kept. What a file says
    that a model prefers counts where no person judged the comparison.
    """
    several = len({preference.prompt.source for preference in preferences}) > 1
    pairs = [_pair_of(preference) if several else preference.comparison for preference in preferences]
    by_people = {pair for pair, preference in zip(pairs, preferences, strict=True) if preference.source == "human"}
    groups: defaultdict[str | bytes, dict[tuple[str, ...], list[Preference]]] = defaultdict(dict)
    for pair, preference in zip(pairs, preferences, strict=True):
        if preference.source == "human" or pair not in by_people:
            groups[pair].setdefault(preference.principles, []).append(preference)
    made = []
    for by_principle in groups.values():
        comparison_id = next(iter(by_principle.values()))[0].comparison
        counts["human comparisons judged by several principles"] += len(by_principle) > 1
        shared = divisor([preference.weight for preference in group] for group in by_principle.values())
        for group in by_principle.values():
            averaged = _averaged(group, counts, keep=keep)
            if averaged is not None:
                made.append(_with(averaged, comparison=comparison_id, weight=averaged.weight / shared))
    return made


def _pair_of(preference: Preference) -> bytes:
    """What a pair is known by whatever the file: in the id of its comparison is the file's name, too."""
    replies = sorted(map(canonical, (preference.chosen, preference.rejected)))
    return digest((conversation_of(preference.prompt.messages), replies))


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
    return first.model_copy(
        update={
            **_likelier(first.chosen, first.rejected, p_first),
            "principles": tuple(dict.fromkeys(name for preference in group for name in preference.principles)),
            "rests_on": tuple(place for preference in group for place in preference.rests_on),
            "weight": fmean(preference.weight for preference in group),
        }
    )


def _with(preference: Preference, **values: object) -> Preference:
    """The preference with these values; itself where it has them."""
    changed = any(getattr(preference, name) != value for name, value in values.items())
    return preference.model_copy(update=values) if changed else preference


def _likelier(a: str, b: str, p_a: float) -> dict[str, Any]:
    """Which of two texts is chosen, and its probability, by name."""
    chosen, rejected = (a, b) if p_a > 0.5 else (b, a)
    return {"chosen": chosen, "rejected": rejected, "probability": min(1.0, max(p_a, 1 - p_a))}


def _even(p: float) -> bool:
    return abs(p - 0.5) < _EVEN


def is_decided(p: float, margin: float) -> bool:
    """Whether a probability makes a preference: it is not even, and no nearer to 0.5 than the margin."""
    return abs(p - 0.5) >= _decisive_from(margin)


def _decisive_from(margin: float) -> float:
    """How far from 0.5 a probability is at least where it makes a preference: within the margin, or even, it is not."""
    return max(_EVEN, margin - _EVEN)  # 0.6 - 0.5 is 0.09999999999999998


def within_margin(p: float, margin: float) -> bool:
    """Whether a probability is nearer to 0.5 than the margin, so that a judgement of it is undecided."""
    return abs(p - 0.5) < margin - _EVEN


def is_held_out(messages: Iterable[Message], settings: Settings, seed: int) -> bool:
    """Whether the preferences of a training prompt are kept to measure the reward model on.

    The words up to the user's first message decide, so that no conversation goes on from one on the other side. The
    system's message is left out of them: a run may put one before its prompts that people's pairs lack.
    """
    return _is_held_out(_opening(messages), settings, seed)


def _opening(messages: Iterable[Message]) -> Conversation:
    return opening_of((message.role, message.content, message.extra) for message in messages)


def _is_held_out(opening: Conversation, settings: Settings, seed: int) -> bool:
    share = settings.held_out_share
    return share > 0 and rng_of(seed, "mix split", opening).random() < share


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
    held_out = held_out_of(prompts)
    return [preference for preference in preferences if not contains_one_of(preference.prompt.messages, held_out)]


def audited_in(plan: Iterable[SpotCheck]) -> frozenset[str]:
    """The comparisons of the audit set by id, which are never trained on, whoever judged them."""
    return frozenset(row.comparison for row in plan if row.reason == "audit")


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
    places = [_place_of(row.prompt, settings, seed) for row in people if row.source == "human"]
    human = places.count(TRAIN)
    if human == 0:
        amounts_of(0, 0, settings)
    if settings.total is not None and _rounded(settings.total * share) > human:
        problem = f"mix.total={settings.total} with mix.human_ratio={share} asks for {_rounded(settings.total * share)}"
        there = f"of people's preferences, and {human} are to train on (those held out do not count)"
        advice = f"give a total of at most {_largest_total(settings.total, human, share)}, or leave mix.total out"
        raise ConfigurationError(f"{problem} {there}; {advice}")


def run(settings: Settings, context: StageContext) -> None:
    """Read comparisons, judgements and people's files; write `preferences`."""
    comparisons, judgements = context.stream("comparisons", Comparison), context.stream("judgements", Judgement)
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
            "human rows empty or equal but for calls of tools": read.counts["calls"],
            "human rows without a verdict": read.counts["unlabelled"],
            "human rows without a prompt": read.without_prompt,
        }
    from_file = read_verdicts(settings.verdicts, set(column_of(comparisons, "id"))) if settings.verdicts else []
    verdicts, audit, audited = [*from_file], frozenset[str](), 0
    if context.has("spotchecks"):
        verdicts += context.read("verdicts", Verdict)
        audit = audited_in(context.read("spotchecks", SpotCheck))
        audited = sum(name in audit for name in column_of(comparisons, "id"))
        notes["comparisons of the audit set"] = audited
    mixed = mixed_rows(comparisons, judgements, verdicts, human, settings, context.seed, audit=audit)
    sources: set[str] = set()
    context.write("preferences", _noting(mixed.preferences, sources))
    counts = {**notes, **mixed.counts}
    summary = MixSummary(
        comparisons=len(comparisons) - audited,
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


def _noting(
    preferences: Iterable[Preference | PlainRows[Preference]], sources: set[str]
) -> Iterator[Preference | PlainRows[Preference]]:
    """The preferences, while the places that the prompts of people's come from are noted."""
    for preference in preferences:
        if isinstance(preference, Preference):
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
        f"{told}more comparisons (more prompts, sample_pairs.samples=…), another label.method=… or "
        f"label.principles=all{', or a lower mix.margin' if settings.margin else ''} give more"
    )
