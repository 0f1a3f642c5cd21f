"""What other weights, or another mix, would make of a run's labels: answered from its judgements, without a model.

The comparisons stay those of the run. A run that is made with other weights also revises its drafts by them, and so
compares other responses; what this module says is how the labels of the same comparisons would change.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Final, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from constitutional.base.errors import ConfigurationError, RunError, UsageError
from constitutional.base.records import LABELER, Comparison, Judgement, Prompt, Revision, SpotCheck, Verdict
from constitutional.base.seeds import rng_of
from constitutional.base.text import same_text
from constitutional.constitution.constitution import Constitution, nearest
from constitutional.constitution.file import load_constitution
from constitutional.data.comparisons import read_comparisons
from constitutional.data.verdicts import read_verdicts
from constitutional.judging.accuracy import PrincipleAccuracy, untrusted
from constitutional.judging.choosing import violated_in_drafts
from constitutional.judging.reweighing import Booleans, Floats, JudgementTable, Lots, reweighed
from constitutional.runs.compose import changed, load, validated, zero_weights
from constitutional.runs.context import COMPARISON
from constitutional.runs.folder import USED, RunStore
from constitutional.runs.settings import ConstitutionSettings, RunConfig
from constitutional.stages import mix

EXAMPLES: Final = 10
SETTINGS: Final = ("constitution.weights.ID", "constitution.only", "constitution.without", "mix.…", "label.clamp")
"""What may be changed without asking a model."""
TIPPING: Final = 0.1
"""The least share of all that moved a label by which a principle is named as having tipped it."""

Kind = Literal["flipped", "decided now", "undecided now", "drawn now", "not drawn now", "not known"]


class MixChange(NamedTuple):
    """How a number of preferences changes: before + gained − lost − unknown = after."""

    before: int
    after: int
    gained: int
    lost: int
    unknown: int
    """Preferences whose comparison would be judged anew, by another principle or with another clamp."""
    flipped: int
    """Preferences that stay, with the other response as chosen."""


class ChangedLabel(NamedTuple):
    """A comparison whose label, or place in the mix, changes."""

    comparison: Comparison
    kind: Kind
    before: float | None
    """Probability that response a is better; None where there is no judgement."""
    after: float | None
    tipped: tuple[tuple[str, float], ...]
    """Principles with what they added to the probability, the strongest first; at most three."""
    by: str | None
    """The principle that would judge instead; None where it is the same."""


class WhatIf(NamedTuple):
    """What changes."""

    labels: dict[str, int]
    """Comparisons by what becomes of their label: flipped (the other response is now the likelier, in the mix or
    not), decided now, undecided now (by `mix.margin`), not known, unchanged."""
    changes: dict[str, MixChange]
    """Of the preferences to train on, of those held out, and of people's to train on."""
    principles: dict[str, MixChange]
    """Of the AI's preferences in the mix that rest on each principle."""
    tips: dict[str, int]
    """By principle, how many of the changed labels it moved most."""
    examples: tuple[ChangedLabel, ...]
    notes: tuple[str, ...]
    """What cannot be known, and what else a reader must know, as sentences."""


class _Labels(NamedTuple):
    """The labels of N comparisons under one choice of weights."""

    p_a: Floats
    """(N,) NaN where there is none."""
    shares: Floats
    """(N, P) Each judgement's part in the mean."""
    drawn: list[str]
    """(N) The principle that judges; empty where all principles do."""


class _Mix(NamedTuple):
    """What a mix makes of labels."""

    leaning: NDArray[np.int8]
    """(N,) 1 where a is the likelier, −1 where b is, 0 where neither is or nothing is known."""
    sides: NDArray[np.int8]
    """(N,) 1 where a is preferred, −1 where b is, 0 where nothing is decided."""
    train: Booleans
    held_out: Booleans
    people: int
    """People's preferences to train on."""


class _Plan(NamedTuple):
    """What of a mix does not depend on labels."""

    settings: mix.Settings
    usable: Booleans
    """(N,) May become one of the AI's preferences: different texts, no person's verdict, no evaluation prompt."""
    held_out: Booleans
    order: NDArray[np.intp]
    """(N,) Indices in the order in which preferences are taken."""
    people: int
    """People's preferences that there are to train on."""


class LabelledRun:
    """A labelled run, read once for any number of questions."""

    def __init__(self, store: RunStore) -> None:
        """Read the run.

        Raises:
            RunError: the run has no judgements yet, or is damaged.
        """
        self.folder = store.folder
        if not {"judgements", "comparisons"} <= store.artifacts().keys():
            raise RunError(
                f"{store.folder}: has no judgements yet, so nothing can be said of other weights; run it to its stage "
                "label first: the command that began it, with until=label"
            )
        self.config = load(store.folder)
        self.judgements = store.read("judgements", Judgement)
        self.comparisons, self.verdicts = store.read("comparisons", Comparison), list[Verdict]()
        self._every = {comparison.id for comparison in self.comparisons}
        if "spotchecks" in store.artifacts():
            audit = mix.audited_in(store.read("spotchecks", SpotCheck))
            self.comparisons = [comparison for comparison in self.comparisons if comparison.id not in audit]
            self.verdicts = store.read("verdicts", Verdict)
        self.ids = [comparison.id for comparison in self.comparisons]
        accuracies = store.read("labeler_accuracy", PrincipleAccuracy)
        judges = [LABELER, *self.config.panel] if self.config.label.principles != "telling" else [LABELER]
        left_out = set.intersection(*(untrusted(accuracies, judge) for judge in judges))
        self.untrusted = tuple(dict.fromkeys(row.principle for row in accuracies if row.principle in left_out))
        self.constitution = load_constitution(store.folder / USED)
        """The principles of the run with their weights, untrusted ones included."""
        self.outdated = store.stages["label"].needs.get(COMPARISON) != self.constitution.digest_for("comparison")
        """Whether the judgements were made with another constitution than the run has now."""
        self._prompts = store.read("prompts", Prompt)
        telling = self.config.label.principles == "telling"
        self._violated = violated_in_drafts(store.read("revisions", Revision)) if telling else {}
        self._plans: dict[mix.Settings, _Plan] = {}

    @cached_property
    def weights(self) -> dict[str, float]:
        """The weights of the principles that the labeler is trusted with."""
        return weights_of(self.constitution, self.untrusted)

    @cached_property
    def table(self) -> JudgementTable:
        """The judgements, comparison by comparison in the run's order."""
        return self._table(self.judgements)

    def _table(self, judgements: Iterable[Judgement]) -> JudgementTable:
        """A row for every comparison, and a column for every principle that could judge."""
        made = JudgementTable.of(judgements, self.config.label.weights)
        rows = {name: row for row, name in enumerate(made.comparisons)}
        principles = tuple(dict.fromkeys([*self.weights, *made.principles]))
        p_a, judged_by, leanings = (np.zeros((len(self.ids), len(principles))) for _ in range(3))
        judged = [(index, rows[name]) for index, name in enumerate(self.ids) if name in rows]
        if judged:
            target, source = np.array(judged).T
            columns = [principles.index(name) for name in made.principles]
            p_a[np.ix_(target, columns)] = made.p_a[source]
            judged_by[np.ix_(target, columns)] = made.judged[source]
            leanings[np.ix_(target, columns)] = made.leanings[source]
        return JudgementTable(tuple(self.ids), principles, p_a, judged_by, leanings, made.gives_way_to)

    @cached_property
    def _lots(self) -> Lots | None:
        """The draws of this run, one for each comparison; None where all principles judge."""
        seed, mode = self.config.seed, self.config.label.principles
        if mode == "all":
            return None
        if mode == "one":
            return Lots.of([rng_of(seed, "label", name).getrandbits(64) for name in self.ids], tuple(self.weights))
        prompts = [comparison.prompt.id for comparison in self.comparisons]
        lots = {name: rng_of(seed, "label", "prompt", name).getrandbits(64) for name in prompts}
        violated = [self._violated.get(name, frozenset()) for name in prompts]
        above = self.constitution.overridden_by
        return Lots.of([lots[name] for name in prompts], tuple(self.weights), violated, above)

    @cached_property
    def _now(self) -> _Labels:
        return self._labels(self.weights, self.table)

    def _labels(self, weights: Mapping[str, float], table: JudgementTable) -> _Labels:
        # Where one principle is drawn for a comparison, its judgement counts alone and whatever the weight.
        counted = weights if self._lots is None else dict.fromkeys(weights, 1.0)
        drawn = self._lots.drawn(weights) if self._lots else []
        return _Labels(reweighed(table, counted), table.shares(counted), drawn)

    def _plan(self, settings: mix.Settings) -> _Plan:
        if settings not in self._plans:
            people, verdicts = [], list(self.verdicts)
            if settings.human is not None:
                read = read_comparisons(settings.human, seed=self.config.seed)
                people = mix.without_evaluation_prompts(read.preferences, self._prompts)
            if settings.verdicts is not None:
                verdicts += read_verdicts(settings.verdicts, self._every)
            overridden = {verdict.comparison for verdict in verdicts if verdict.choice != "skip"}
            everything = settings.model_copy(update={"human_ratio": None, "total": None})
            mixed = mix.mix(self.comparisons, (), verdicts, people, everything, self.config.seed)
            usable = [
                row.prompt.split == "train" and name not in overridden and not same_text(row.a, row.b)
                for row, name in zip(self.comparisons, self.ids, strict=True)
            ]
            sides: dict[str, bool] = {}
            for row in self.comparisons:
                if row.prompt.id not in sides:
                    sides[row.prompt.id] = mix.is_held_out(row.prompt.messages, settings, self.config.seed)
            self._plans[settings] = _Plan(
                settings=settings,
                usable=np.array(usable, dtype=bool),
                held_out=np.array([sides[row.prompt.id] for row in self.comparisons], dtype=bool),
                order=np.argsort([mix.rank("ai", name, self.config.seed) for name in self.ids], kind="stable"),
                people=mixed.counts["human preferences used"],
            )
        return self._plans[settings]

    def what_if(self, overrides: Sequence[str]) -> WhatIf:
        """What changes with these overrides, such as `constitution.weights.brief=0`, where 0 leaves a principle out.

        Raises:
            UsageError: an override cannot be read, or cannot be answered without asking a model.
            ConfigurationError: there is no such principle or setting, or a value is not allowed.
        """
        keys = [word.partition("=")[0].lstrip("+") for word in overrides if "=" in word]
        for key in keys:
            group, _, name = key.partition(".")
            if group == "mix" and not name:
                raise UsageError("mix: what-if takes settings and no presets; type mix.human_ratio=0.5, for example")
            chosen = group == "constitution" and name.partition(".")[0] in ("weights", "only", "without")
            if not (chosen or group == "mix" or key == "label.clamp"):
                raise UsageError(
                    f"what {key} would change cannot be known without asking a model; what-if answers for "
                    f"{', '.join(SETTINGS)}: type constitution.weights.ID=NUMBER; `constitutional preview` answers for "
                    "other edits of the constitution, and `constitutional run` for the rest"
                )
        values = changed(self.config, overrides)
        zero = zero_weights(values)
        config = validated(values)
        typed = {key.partition(".")[2].partition(".")[0] for key in keys if key.startswith("constitution.")}
        answer = self._with(config, self._select(config, typed, zero), keys)
        if not zero:
            return answer
        note = f"A run takes no weight of 0: to run this, type constitution.without=[{','.join(zero)}]."
        return answer._replace(notes=(*answer.notes, note))

    def _select(self, config: RunConfig, typed: set[str], zero: Sequence[str]) -> dict[str, float]:
        """The weights after what was typed, of the principles that the run has and the labeler is trusted with."""
        selection, known = config.constitution, {principle.id for principle in self.constitution.principles}
        self._refuse_unjudged(selection, zero, known)
        only = selection.only if "only" in typed else None
        without = selection.without if "without" in typed else ()
        before = self.config.constitution
        weights = {name: weight for name, weight in selection.weights.items() if before.weights.get(name) != weight}
        for name in (*(only or ()), *weights, *({*without, *zero} - {*before.without})):
            if name not in known:
                left_out = " (constitution.without left it out)" if name in before.without else ""
                problem = f"this run has no principle '{name}'{left_out}; {nearest(name, sorted(known))}"
                raise ConfigurationError(f"{self.folder / USED}: {problem}")
        left = known - {*without, *zero, *self.untrusted}
        if not left or (only is not None and not left & set(only)):
            untrusted = f" (the labeler is not trusted with {', '.join(self.untrusted)})" if self.untrusted else ""
            raise ConfigurationError(f"these settings leave no principle to label by{untrusted}; keep one or more")
        chosen = self.constitution.select(only, [name for name in (*without, *zero) if name in known], weights)
        return weights_of(chosen, self.untrusted)

    def _refuse_unjudged(self, selection: ConstitutionSettings, zero: Sequence[str], known: set[str]) -> None:
        """Refuse what takes back a choice of the run's: its file alone knows what a run would then have."""
        before, out = self.config.constitution, {*selection.without, *zero}
        if before.only is not None and selection.only is None:
            raise UsageError(
                f"{self.folder}: a run with these settings would bring back the principles that "
                f"constitution.only=[{','.join(before.only)}] left out, and there is no judgement by them; type "
                "constitution.only with some of these, or leave it as it is"
            )
        back = [name for name in before.without if name not in out and name in (selection.only or (name,))]
        if back:
            kept = ",".join(dict.fromkeys([*before.without, *selection.without]))
            raise UsageError(
                f"{self.folder}: a run with these settings would bring back {', '.join(back)}, which "
                f"constitution.without left out, and there is no judgement by it; type constitution.without=[{kept}]"
            )
        stay = known - out if selection.only is None else (known - out) & set(selection.only)
        if lost := [name for name in before.weights if name in stay and name not in selection.weights]:
            weights = ", ".join(f"{name}: {weight:g}" for name, weight in (before.weights | selection.weights).items())
            raise UsageError(
                f"{self.folder}: constitution.weights leaves out {', '.join(lost)}, whose weight the run has in place "
                f'of its file\'s, and what-if does not read that; type "constitution.weights={{{weights}}}"'
            )

    def with_weights(self, weights: Mapping[str, float]) -> WhatIf:
        """What changes where these weights alone count; a principle that is not named is left out.

        Raises:
            UsageError: a principle is not of this run, is not trusted, or has no judgement.
        """
        for name in weights:
            if name not in self.weights:
                raise UsageError(f"{self.folder}: judges by no principle '{name}'; {nearest(name, self.weights)}")
        if not any(weights.values()):
            raise UsageError("these weights leave no principle to label by; give one of them a weight above 0")
        return self._with(self.config, {name: weight for name, weight in weights.items() if weight}, ())

    def _with(self, config: RunConfig, weights: Mapping[str, float], keys: Sequence[str]) -> WhatIf:
        table, unsure = self.table, np.zeros(len(self.ids), dtype=bool)
        if config.label.clamp != self.config.label.clamp:
            table, unsure = self._clamped(config)
        now, then = self._now, self._labels(weights, table)
        redrawn = np.array([was != becomes for was, becomes in zip(now.drawn, then.drawn, strict=True)], dtype=bool)
        unknown = unsure | (redrawn if redrawn.size else False)
        then.p_a[unknown] = np.nan
        before = _mixed(now.p_a, self._plan(self.config.mix))
        after = _mixed(then.p_a, self._plan(config.mix))
        judged = ~np.isnan(now.p_a)
        kinds = _kinds(before, after, unknown & judged)
        pushes = then.shares * (table.p_a - 0.5) - now.shares * (self.table.p_a - 0.5)
        moved = np.array([kind in ("flipped", "decided now", "undecided now") for kind in kinds], dtype=bool)
        tips = Counter[str]()
        for index in np.flatnonzero(moved):
            tips.update(name for name, _ in _tipped(pushes[index], then.p_a[index] - now.p_a[index], table)[:1])
        labels = Counter[str](
            kind for kind in kinds if kind in ("flipped", "decided now", "undecided now", "not known")
        )
        labels["unchanged"] = int((judged & ~moved & ~unknown).sum())
        touching = before.train | before.held_out | after.train | after.held_out
        clearest = _clearest(kinds, touching, now.p_a, then.p_a)
        examples = tuple(
            ChangedLabel(
                comparison=self.comparisons[index],
                kind=kinds[index] or "not known",
                before=_number(now.p_a[index]),
                after=_number(then.p_a[index]),
                tipped=() if unknown[index] else _tipped(pushes[index], then.p_a[index] - now.p_a[index], table),
                by=then.drawn[index] if redrawn.size and redrawn[index] else None,
            )
            for index in clearest
        )
        return WhatIf(
            labels=dict(labels),
            changes=_changes(before, after, unknown),
            principles=_by_principle(self.table.principles, (before, now.shares), (after, then.shares), unknown),
            tips=dict(tips),
            examples=examples,
            notes=tuple(self._notes(now, then, before, unsure, keys)),
        )

    def _clamped(self, config: RunConfig) -> tuple[JudgementTable, Booleans]:
        """The judgements with another clamp, and for each comparison whether an old clamp hides what it would be."""
        low, high = config.label.clamp or (0.0, 1.0)
        old_low, old_high = self.config.label.clamp or (0.0, 1.0)
        judgements, hidden = [], set()
        for judgement in self.judgements:
            sides = [reading.p_a for reading in judgement.readings if reading.p_a is not None]
            if any((side == old_low and low < old_low) or (side == old_high and high > old_high) for side in sides):
                hidden.add(judgement.comparison)
            if judgement.p_a is not None:
                p_a = sum(min(max(side, low), high) for side in sides) / len(sides)
                judgement = judgement.model_copy(update={"p_a": p_a})  # noqa: PLW2901 - the same judgement, clamped
            judgements.append(judgement)
        return self._table(judgements), np.array([name in hidden for name in self.ids], dtype=bool)

    def _notes(self, now: _Labels, then: _Labels, before: _Mix, unsure: Booleans, keys: Sequence[str]) -> Iterator[str]:
        mode = self.config.label.principles
        if redrawn := [index for index, (was, new) in enumerate(zip(now.drawn, then.drawn, strict=True)) if was != new]:
            pairs = Counter((now.drawn[index], then.drawn[index]) for index in redrawn)
            most = ", ".join(f"{was} → {new}: {count}" for (was, new), count in pairs.most_common(4))
            judged = int((~np.isnan(now.p_a[redrawn])).sum())
            prompts = len({self.comparisons[index].prompt.id for index in redrawn})
            where = f" of {prompts} prompts" if mode == "telling" else ""
            yield (
                f"Not known without asking: with label.principles={mode} weights decide which principle judges, not "
                f"what it says. {len(redrawn)} of {len(self.ids)} comparisons{where} would be judged by another "
                f"principle ({most}{', …' if len(pairs) > 4 else ''}); {judged} of them have a judgement now, which "
                "falls away."
            )
            yield self._expected(now, then, before, redrawn)
        if unsure.any():
            yield (
                f"Not known without asking: {int(unsure.sum())} comparisons have a reading at the end of the run's "
                f"label.clamp={list(self.config.label.clamp or ())}, which hides what lies beyond it."
            )
        if any(key.startswith("constitution.") for key in keys):
            yield (
                "This is about the comparisons that the run has. A run with these settings also revises by them, and "
                "so trains and compares other responses."
            )
        if self.untrusted:
            yield f"The labeler is not trusted with {', '.join(self.untrusted)}: left out before and after."
        if self.outdated:
            yield "The judgements were made with another constitution than the run has now: run it again first."

    def _expected(self, now: _Labels, then: _Labels, before: _Mix, redrawn: Sequence[int]) -> str:
        """A sentence with how many preferences the unknown comparisons may give, by how often a principle gave one."""
        drawn, made = Counter(now.drawn), Counter(np.array(now.drawn)[before.train | before.held_out].tolist())
        rates = {name: made[name] / count for name, count in drawn.items()}
        known = [rates[then.drawn[index]] for index in redrawn if then.drawn[index] in rates]
        if not known:
            return "Nothing is known of how often the principles that would judge them give a preference."
        return (
            f"If these principles give preferences as often as they do now, about {round(sum(known))} come of "
            f"{len(known)} of these comparisons."
        )


def weights_of(constitution: Constitution, without: Iterable[str] = ()) -> dict[str, float]:
    """The weights of a constitution's principles, but for those that are left out."""
    left_out = set(without)
    return {principle.id: principle.weight for principle in constitution.principles if principle.id not in left_out}


def _mixed(p_a: Floats, plan: _Plan) -> _Mix:
    """What `mix.mix` takes of the AI's labels."""
    margin = plan.settings.margin
    known = np.where(np.isnan(p_a), 0.5, p_a)
    leaning = np.array([np.sign(p - 0.5) if mix.is_decided(p, 0.0) else 0 for p in known], np.int8)
    sides = np.array(
        [side if mix.is_decided(p, margin) else 0 for p, side in zip(known, leaning, strict=True)], np.int8
    )
    there = plan.usable & (sides != 0)
    train, held_out = there & ~plan.held_out, there & plan.held_out
    taken, people = mix.amounts_of(int(train.sum()), plan.people, plan.settings)
    return _Mix(
        leaning, sides, _first(train, taken, plan.order), _first(held_out, mix.MOST_HELD_OUT, plan.order), people
    )


def _first(there: Booleans, count: int, order: NDArray[np.intp]) -> Booleans:
    """At most so many of those that are there, the first ones in the order."""
    taken = np.zeros_like(there)
    taken[order[there[order]][:count]] = True
    return taken


def _kinds(before: _Mix, after: _Mix, unknown: Booleans) -> list[Kind | None]:
    """What becomes of each comparison; None where nothing changes."""
    was, becomes = before.train | before.held_out, after.train | after.held_out
    kinds: list[Kind | None] = []
    for index, (side, new_side) in enumerate(zip(before.sides.tolist(), after.sides.tolist(), strict=True)):
        if unknown[index]:
            kinds.append("not known")
        elif before.leaning[index] * after.leaning[index] < 0:
            kinds.append("flipped")
        elif side != new_side:
            kinds.append("decided now" if new_side else "undecided now")
        elif was[index] != becomes[index]:
            kinds.append("drawn now" if becomes[index] else "not drawn now")
        else:
            kinds.append(None)
    return kinds


def _changes(before: _Mix, after: _Mix, unknown: Booleans) -> dict[str, MixChange]:
    flips = before.sides * after.sides < 0
    changes = {
        "to train on": _change(before.train, after.train, unknown, flips),
        "held out": _change(before.held_out, after.held_out, unknown, flips),
    }
    if before.people or after.people:
        grown = after.people - before.people
        changes["people's, to train on"] = MixChange(
            before.people, after.people, max(grown, 0), max(-grown, 0), unknown=0, flipped=0
        )
    return changes


def _by_principle(
    principles: Sequence[str], before: tuple[_Mix, Floats], after: tuple[_Mix, Floats], unknown: Booleans
) -> dict[str, MixChange]:
    (mix_before, shares_before), (mix_after, shares_after) = before, after
    flips = mix_before.sides * mix_after.sides < 0
    was, becomes = (of.train | of.held_out for of in (mix_before, mix_after))
    return {
        name: _change(was & (shares_before[:, at] > 0), becomes & (shares_after[:, at] > 0), unknown, flips)
        for at, name in enumerate(principles)
    }


def _change(was: Booleans, becomes: Booleans, unknown: Booleans, flips: Booleans) -> MixChange:
    counts = (was, becomes, becomes & ~was, was & ~becomes & ~unknown, was & ~becomes & unknown, was & becomes & flips)
    return MixChange(*(int(count.sum()) for count in counts))


def _tipped(pushes: Floats, moved: float, table: JudgementTable) -> tuple[tuple[str, float], ...]:
    """The principles that moved a probability in the direction that it went, the strongest first; at most three."""
    direction = 0.0 if np.isnan(moved) else np.sign(moved)
    least = TIPPING * np.abs(pushes).sum()
    order = np.argsort(-direction * pushes, kind="stable")[:3]
    return tuple(
        (table.principles[at], float(pushes[at])) for at in order if direction * pushes[at] > max(least, 1e-12)
    )


def _clearest(kinds: Sequence[Kind | None], touching: Booleans, before: Floats, after: Floats) -> list[int]:
    """The comparisons to show: flips in the mix first, the clearest on both sides; flips elsewhere last."""
    kind_order = ("flipped", "undecided now", "decided now", "not known", "not drawn now", "drawn now")

    def clearness(index: int) -> tuple[bool, int, float, int]:
        kind = kinds[index]
        assert kind is not None
        ends = [abs(p - 0.5) for p in (before[index], after[index]) if not np.isnan(p)]
        clear = min(ends, default=0.0) if kind == "flipped" else max(ends, default=0.0)
        return not touching[index], kind_order.index(kind), -clear, index

    return sorted((index for index, kind in enumerate(kinds) if kind), key=clearness)[:EXAMPLES]


def _number(p: float) -> float | None:
    return None if np.isnan(p) else float(p)
