"""What an edit of the constitution would make of a run's behaviour, in seconds: the best of K replies by each wording.

The labeler rates replies that the run's SL model gave, by each principle. The replies that the old and the edited
constitution rate highest are then measured side by side. The ratings are kept in the run's journal, so an edit asks for
those of the edited principles alone. The sandbox's exact detectors measure what was taken; the ratings know nothing of
them.
"""

import heapq
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Final, NamedTuple, Self

from constitutional.base.errors import RunError, UsageError
from constitutional.base.progress import Progress
from constitutional.base.records import LABELER, Message, Prompt, Sample
from constitutional.base.refusals import refuses
from constitutional.base.seeds import seed_of
from constitutional.base.templates import load_prompts
from constitutional.base.text import count_questions, words
from constitutional.constitution.constitution import Constitution, Principle
from constitutional.constitution.difference import PrincipleChange, difference
from constitutional.constitution.file import find_constitution, load_constitution, read_constitution
from constitutional.engines.journal import JournalEngine
from constitutional.engines.settings import SANDBOX
from constitutional.engines.stories import side_by_side
from constitutional.judging.accuracy import PrincipleAccuracy, untrusted
from constitutional.judging.best_of import Measured, Shift, Swap, best, divergence, shifts, swap, totals
from constitutional.judging.labeler import Answering, Labeler, method_for
from constitutional.judging.lint import Finding
from constitutional.judging.priorities import yielding
from constitutional.judging.understanding import meaning_lines, sandbox_meanings
from constitutional.runs.compose import changed, freeze, load, validated, zero_weights
from constitutional.runs.context import Opener, RunContext, as_models_read, as_models_read_before, selected, trained
from constitutional.runs.folder import USED, RunStore
from constitutional.runs.settings import RunConfig
from constitutional.stages import sample_pairs
from constitutional.stages.evaluate import trait_scores

PROMPTS: Final = 100
"""Prompts whose replies are rated."""
EXAMPLES: Final = 5

Rated = Sequence[float | None]
"""A number for each of the replies to one prompt; None where there is none."""


class SwapExample(NamedTuple):
    """A prompt for which the edit takes another reply."""

    prompt: Prompt
    before: str
    """The best reply by the old constitution."""
    after: str
    """The best reply by the edited one."""
    margin: float
    """By how much the constitutions disagree, in points of 10."""
    tipped: tuple[tuple[str, float], ...]
    """The principles that tipped it, with their points; at most two."""


class PreviewResult(NamedTuple):
    """What an edit would change."""

    edits: tuple[str, ...]
    """What differs from the run's constitution, as `constitutional diff` says it; empty where nothing does."""
    understood: tuple[str, ...]
    """What the sandbox's model takes each edited principle to mean; empty with another critic."""
    warnings: tuple[str, ...]
    """What is doubtful in an edited principle, with `file:line`."""
    prompts: int
    """Prompts on which something can be taken."""
    samples: int
    """K: replies that were drawn for a prompt. Replies that say the same are one."""
    swapped: int
    """Prompts for which the set of best replies is another by the edit."""
    shifts: tuple[Shift, ...]
    """The measures, the clearest change first."""
    examples: tuple[SwapExample, ...]
    asked: Mapping[str, int]
    """Calls that were made, by principle, or by what else they were for."""
    reused: int
    """Calls that the journal, or the memory of this command, answered."""
    unrated: int
    """Ratings that the labeler did not give."""
    method: Answering
    """How replies were rated."""
    notes: tuple[str, ...]
    """What the preview cannot know, as sentences."""

    @property
    def clear(self) -> tuple[Shift, ...]:
        """The measures that clearly change."""
        return tuple(row for row in self.shifts if row.clear)


class Previewer:
    """A run whose replies are rated by one constitution after another; models stay in memory until it is closed."""

    def __init__(
        self,
        store: RunStore,
        prompts: int = PROMPTS,
        samples: int | None = None,
        *,
        progress: Progress | None = None,
        opener: Opener | None = None,
    ) -> None:
        """Read the run.

        Args:
            store: the run, which has an SL model.
            prompts: the most prompts whose replies are rated.
            samples: replies to each prompt; None means as many as the run drew to compare, or 4 if it drew fewer.
            progress: says how far this is; None means on standard error.
            opener: makes an engine of a model's settings; None means the model itself.

        Raises:
            RunError: the run has no SL model, or is damaged.
        """
        if not {"sft_model", "prompts"} <= store.artifacts().keys():
            raise RunError(
                f"{store.folder}: has no SL model yet, so there are no replies to take the best of; run it to its "
                "stage sft first: the command that began it, with until=sft"
            )
        self.folder = store.folder
        self.config = load(store.folder)
        self.before = load_constitution(store.folder / USED)
        """The run's own constitution, untrusted principles included."""
        made = store.artifacts().keys()
        accuracies = store.read("labeler_accuracy", PrincipleAccuracy) if "labeler_accuracy" in made else []
        self._untrusted = untrusted(accuracies, LABELER)
        sampling = self.config.sample_pairs
        self._sampling = sampling.model_copy(update={"samples": samples or max(sampling.samples, 4)})
        self._prompts = _drawn(store.stream("prompts", Prompt), prompts, self.config.seed)
        self._sft_model = trained(self.config, store.artifact("sft_model"))
        self._progress = progress or Progress()
        templates = load_prompts(self.config.templates)
        self._run = RunContext(self.config, self.before, templates, self._progress, opener)
        self._scripted = opener is not None
        self._rated: dict[tuple[str, str, str | None], list[Rated]] = {}
        """By principle's id and words, its ratings of the replies to each prompt."""
        self._replies: list[tuple[str, ...]] = []
        self._values: list[Measured] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._run.__exit__()

    def edited(self, overrides: Sequence[str]) -> RunConfig:
        """The run's configuration with an edited constitution.

        Raises:
            UsageError: an override is not about the constitution, or cannot be read.
            ConfigurationError: a value is not allowed.
        """
        for word in overrides:
            key = word.partition("=")[0].lstrip("+")
            if not key.startswith("constitution.") and "=" in word:
                raise UsageError(
                    f"{word}: a preview edits the constitution alone, with constitution.file=FILE, "
                    "constitution.weights.ID=2, constitution.without=[ID] and the like; `constitutional run` takes the "
                    "rest"
                )
        values = changed(self.config, overrides)
        zero, chosen = zero_weights(values), values["constitution"]
        if isinstance(chosen.get("without"), list | tuple):
            chosen["without"] = [*chosen["without"], *zero]
        return freeze(validated(values))

    def preview(self, config: RunConfig) -> PreviewResult:
        """What the constitution of a configuration would change.

        Raises:
            InputError: the constitution's file is wrong; says `file:line`.
            ConfigurationError: it has no such principle, or none to compare responses by.
            RunError: the labeler gives no rating that can be read, or is trusted with no principle.
            ModelError: a model cannot be loaded or asked.
        """
        written = selected(config)
        read = written if self._scripted else as_models_read(config, written, self._progress.say)
        after = as_models_read_before(read, self.before)
        old = self._trusted(self.before)
        new = self._trusted(after)
        asked, reused = Counter[str](), 0
        understood, warnings = self._meanings(config, after, asked)
        self._draw(asked)
        rated = {_key(principle): principle for principle in (*old, *new)}
        for principle in rated.values():
            reused += self._rate(principle, asked)
        weights = [{principle.id: principle.weight for principle in side} for side in (old, new)]
        sides = ((old, self.before.overridden_by), (new, after.overridden_by))
        ratings = [
            [yielding({row.id: self._rated[_key(row)][index] for row in side}, above) for side, above in sides]
            for index in range(len(self._prompts))
        ]
        taken = [(best(totals(before, weights[0])), best(totals(edited, weights[1]))) for before, edited in ratings]
        if not any(before and edited for before, edited in taken):
            silent = [key[0] for key in rated if not any(map(_any_rating, self._rated[key]))]
            by = f"by {', '.join(silent)}" if silent else "to all principles of any prompt's replies"
            raise RunError(
                f"{self.folder}: the labeler gave no rating that can be read {by}, so no reply is the best; "
                f"`constitutional check {find_constitution(config.constitution.file)} label.method=score` shows how it "
                "answers"
            )
        swaps = [
            swapped
            for index, (before, edited) in enumerate(ratings)
            if (swapped := swap(index, before, weights[0], edited, weights[1]))
        ]
        given = [rating for key in rated for replies in self._rated[key] for rating in replies]
        return PreviewResult(
            edits=tuple(str(change) for change in _edits(self.before, after)),
            understood=understood,
            warnings=warnings,
            prompts=sum(bool(before and edited) for before, edited in taken),
            samples=self._sampling.samples,
            swapped=sum(before != edited for before, edited in taken if before and edited),
            shifts=tuple(shifts([*self._values, *self._points(old, new)], taken)),
            examples=tuple(self._example(swapped) for swapped in sorted(swaps, key=lambda row: -row.margin)[:EXAMPLES]),
            asked=dict(asked),
            reused=reused,
            unrated=given.count(None),
            method=self._method,
            notes=tuple(self._notes(after)),
        )

    @property
    def _method(self) -> Answering:
        """How replies are rated: as the run's own labelling rates them, if it does, or by the expected score."""
        if self.config.label.principles == "telling":
            return "rating"
        return method_for("score", self._run.opened(self._run.given(LABELER)).abilities)

    def _trusted(self, constitution: Constitution) -> list[Principle]:
        """The principles for comparison, but for those with whose words the run does not trust its labeler."""
        distrusted = {_key(row) for row in self.before.principles if row.id in self._untrusted}
        principles = [row for row in constitution.used_for("comparison").principles if _key(row) not in distrusted]
        if not principles:
            raise RunError(f"{self.folder}: the labeler is trusted with no principle of '{constitution.name}'")
        return principles

    def _meanings(
        self, config: RunConfig, after: Constitution, asked: Counter[str]
    ) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """What the sandbox's critic takes the edited principles to mean, and what is doubtful in it."""
        settings = self._run.given("critic")
        words_before = {(row.id, row.words("critique"), _key(row)) for row in self.before.principles}
        edited = {row.id for row in after.principles if (row.id, row.words("critique"), _key(row)) not in words_before}
        if not edited or getattr(settings, "path", None) != SANDBOX:
            return (), ()
        critic = self._run.journalled(settings)
        meanings = [row for row in sandbox_meanings(after, critic) if row.principle in edited]
        _count(asked, "the meaning of principles", critic)
        path = find_constitution(config.constitution.file)
        lines = read_constitution(path).lines
        warnings = [
            str(Finding(path, lines.get(row.principle), "warning", "meaning", message))
            for row in meanings
            for message in row.messages
        ]
        return tuple(meaning_lines(meanings)), tuple(warnings)

    def _draw(self, asked: Counter[str]) -> None:
        """Draw the replies, of which the journal holds those that the run drew itself; and measure them."""
        if self._replies:
            return
        engine = self._run.journalled(self._sft_model)
        seed = self.config.seed
        stories = (sample_pairs.sample(prompt, engine, self._sampling, seed) for prompt in self._prompts)
        with self._progress.task("replies of the SL model", len(self._prompts), "prompts") as task:
            replies = [samples.texts for samples in side_by_side(stories, ended=task.update)]
        _count(asked, "replies", engine)
        self._values = list(_measures(self._prompts, replies, self.config.evaluate.refusal_phrases))
        self._replies = replies

    def _rate(self, principle: Principle, asked: Counter[str]) -> int:
        """Rate all replies by a principle, unless they are; returns how many ratings or calls were there already."""
        if _key(principle) in self._rated:
            return sum(map(len, self._replies))
        engine = self._run.journalled(self._run.given(LABELER))
        labeler = Labeler(engine, self._run.templates, self.config.label, self.config.seed)

        async def rate(conversation: Sequence[Message]) -> float | None:
            if self._method == "rating":
                return (await labeler.rating(conversation, principle)).score
            return await labeler.score(conversation, principle)

        stories = (
            rate((*prompt.messages, Message("assistant", reply)))
            for prompt, replies in zip(self._prompts, self._replies, strict=True)
            for reply in replies
        )
        with self._progress.task(f"ratings by {principle.id}", sum(map(len, self._replies)), "ratings") as task:
            ratings = iter(list(side_by_side(stories, ended=task.update)))
        self._rated[_key(principle)] = [tuple(islice(ratings, len(replies))) for replies in self._replies]
        _count(asked, principle.id, engine)
        return engine.reused

    def _points(self, old: Sequence[Principle], new: Sequence[Principle]) -> Iterator[Measured]:
        """What the labeler gives the replies by each principle, in points."""
        words_after = {_key(row) for row in new}
        for key in dict.fromkeys(map(_key, (*new, *old))):
            then = "" if key in words_after else " (as it was)"
            yield f"{key[0]}{then}", "of 10", self._rated[key]

    def _example(self, swapped: Swap) -> SwapExample:
        replies = self._replies[swapped.prompt]
        return SwapExample(
            prompt=self._prompts[swapped.prompt],
            before=replies[swapped.before],
            after=replies[swapped.after],
            margin=swapped.margin,
            tipped=tuple((name, push) for name, push in swapped.pushes[:2] if push > swapped.margin / 4),
        )

    def _notes(self, after: Constitution) -> Iterator[str]:
        k = self._sampling.samples
        yield (
            "Of the changes that are called clear, at most 5% are expected to be luck; the intervals (in parentheses) "
            "are widened to match."
        )
        yield (
            f"The best of {k} replies stands in for optimisation. It moves the SL model by at most {divergence(k):.2f} "
            "nats; training moves it further, first by revisions, which follow the edit too. Read the directions, not "
            "the sizes."
        )
        revision = [change.id for change in _edits(self.before, after) if _only_for_revision(change.id, after)]
        if revision:
            yield f"{', '.join(revision)}: for revision alone, so this preview cannot show what the edit does."
        if any(change.kind == "reweighted" for change in _edits(self.before, after)):
            yield (
                "A weight decides only between replies on which principles disagree; training, for which principles "
                "may be drawn by weight, shows more of a new weight than a preview does."
            )
        if self._untrusted:
            yield f"The run's labeler is not trusted with {', '.join(sorted(self._untrusted))}: left out as in the run."
        if self.config.panel:
            yield f"The labeler rates alone, without {', '.join(self.config.panel)}."
        if self.config.label.principles != "all":
            yield (
                f"With label.principles={self.config.label.principles} the run draws a principle by weight; here the "
                "mean of the ratings by weight stands in for that."
            )


def _key(principle: Principle) -> tuple[str, str, str | None]:
    """What a principle's ratings depend on."""
    return principle.id, principle.words("comparison"), principle.measure


def _any_rating(ratings: Rated) -> bool:
    return any(rating is not None for rating in ratings)


def _edits(before: Constitution, after: Constitution) -> list[PrincipleChange]:
    """What differs, but for what no judgement depends on."""
    return [change for change in difference(before, after) if change.kind not in ("tags", "examples", "moved")]


def _only_for_revision(name: str, constitution: Constitution) -> bool:
    return any(row.id == name and "comparison" not in row.uses for row in constitution.principles)


def _count(asked: Counter[str], name: str, engine: JournalEngine) -> None:
    if engine.asked:
        asked[name] += engine.asked


def _drawn(prompts: Iterable[Prompt], at_most: int, seed: int) -> list[Prompt]:
    """So many of the prompts for training, whose replies the run has; more of them hold all of fewer."""
    trained_on = (prompt for prompt in prompts if prompt.split == "train")
    return heapq.nsmallest(at_most, trained_on, key=lambda prompt: seed_of(seed, "preview", prompt.id))


def _measures(
    prompts: Sequence[Prompt], replies: Sequence[Sequence[str]], phrases: Sequence[str]
) -> Iterator[Measured]:
    """What needs no judge: exact traits in the sandbox, and what can be counted in any text."""
    most = max(map(len, replies), default=0)
    traits: dict[str, list[list[float | None]]] = {}
    for place in range(most):
        samples = [
            Sample(prompt=prompt, replies={"sft_model": texts[place]})
            for prompt, texts in zip(prompts, replies, strict=True)
            if place < len(texts)
        ]
        for score in trait_scores(samples):
            name = (score.measure.partition("/")[2] or score.measure).replace("_", " ")
            rows = traits.setdefault(name, [[None] * len(texts) for texts in replies])
            for prompt, row in zip(prompts, rows, strict=True):
                if place < len(row):
                    row[place] = score.by_prompt.get(prompt.id)
    for name, rows in traits.items():
        yield name, "share", rows
    yield "length", "words", [[float(len(words(text))) for text in texts] for texts in replies]
    if not traits:
        yield "refusal", "share", [[float(refuses(text, phrases)) for text in texts] for texts in replies]
        yield "questions", "questions", [[float(count_questions(text)) for text in texts] for texts in replies]
