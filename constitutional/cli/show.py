"""A run for people: its stages in a table, one item followed back to where it came from, the models side by side."""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, TypeVar

from constitutional.base.errors import InputError
from constitutional.base.progress import clock
from constitutional.base.records import Comparison, GoldPoint, Judgement, Preference, Prompt, Record, Revision, Sample
from constitutional.base.shards import json_text
from constitutional.base.text import printable, table
from constitutional.judging.labelling import combine, readable
from constitutional.judging.priorities import overridden
from constitutional.judging.scores import Score
from constitutional.runs import search
from constitutional.runs.collection import RunLine, Unused, size_in_words
from constitutional.runs.compose import load
from constitutional.runs.folder import RunStore
from constitutional.runs.pipeline import outline
from constitutional.runs.search import FoundRow, tipping
from constitutional.runs.status import describe
from constitutional.stages.mix import is_decided
from constitutional.stages.report import charts
from constitutional.stages.report.data import FEW, MODELS, TOO_FEW
from constitutional.stages.report.verdicts import final_model, over_optimised

R = TypeVar("R", bound=Record)

SHOWN: Final = frozenset("trait_rate over_refusal violation_rate win_rate well_formed refusal_phrases length".split())
"""The kinds of measure that the table of behaviour has."""


def stages(store: RunStore) -> str:
    """A table of all stages of a run, finished or not: state, time, rows, model calls."""
    rows: list[tuple[str, ...]] = [("stage", "state", "time", "asked", "reused", "made")]
    names: list[str] = []
    with suppress(InputError):  # a configuration that this version cannot read
        names = [stage.name for stage in outline(load(store.folder))]
    for line in describe(store, names):
        made = ", ".join(name if count is None else f"{count} {name}" for name, count in line.rows.items())
        spent = (clock(line.seconds), str(line.calls.asked), str(line.calls.reused))
        # The time and the calls of a stage are known once it is done.
        rows.append((line.folder, line.state, *(spent if line.state == "done" else ("", "", "")), line.message or made))
    return table(rows)


def runs(lines: Sequence[RunLine]) -> str:
    """A table of runs."""
    if not lines:
        return "no runs"
    rows: list[tuple[str, ...]] = [
        ("run", "state", "constitution", "algo", "violates", "wins", "size"),
        *(
            (
                line.name,
                line.state,
                line.constitution,
                line.algorithm,
                "" if line.violations is None else f"{100 * line.violations[0]:.0f}→{line.violations[1]:.0%}",
                "" if line.preferred is None else f"{line.preferred:.0%}",
                size_in_words(line.bytes),
            )
            for line in lines
        ),
    ]
    notes = (
        "violates: mean share of replies that violate a principle, base → policy",
        "wins: how often the labeler prefers the policy to the base model",
    )
    measured = any(line.violations or line.preferred is not None for line in lines)
    return "\n".join([table(rows), *(notes if measured else ())])


def outputs(unused: Sequence[Unused]) -> str:
    """A table of stages' outputs that no run uses, and their size in all."""
    if not unused:
        return "every output of a stage is used by a run"
    rows = [(str(output.path), output.state, size_in_words(output.bytes)) for output in unused]
    total = size_in_words(sum(output.bytes for output in unused))
    return f"{table([('output', 'state', 'size'), *rows])}\nin all {total}"


def item(store: RunStore, wanted: FoundRow) -> str:
    """One item with everything behind it: preference, comparison, judgements in both orders, drafts and critiques.

    For a prompt that is held out: the reply of every model. Last the files in which all this stands.

    Args:
        store: the run.
        wanted: the row of a preference, comparison, judgement, revision, sample or prompt.
    """
    record = wanted.record(search.KINDS[wanted.artifact])
    name = record.id if isinstance(record, Comparison) else getattr(record, "comparison", None)
    prompt: Prompt | None = record if isinstance(record, Prompt) else getattr(record, "prompt", None)
    if name:
        behind = search.about(store, "comparisons", Comparison, "id", [name])
        prompt = prompt or next((pair.prompt for _, pair in behind), None)
    else:
        behind = search.about(store, "comparisons", Comparison, "prompt", _as_json(prompt))
    ids = [name for name in dict.fromkeys([name, *(pair.id for _, pair in behind)]) if name]
    preferences = search.about(store, "preferences", Preference, "comparison", ids)
    judgements = search.about(store, "judgements", Judgement, "comparison", ids)
    revisions = search.about(store, "revisions", Revision, "prompt", _as_json(prompt))
    samples = search.about(store, "samples", Sample, "prompt", _as_json(prompt))
    margin = 0.0
    with suppress(InputError):  # a configuration that this version cannot read
        margin = load(store.folder).mix.margin
    lines = list(_prompt_lines(prompt)) if prompt else []
    lines += [line for _, row in preferences for line in _preference_lines(row)]
    for _, comparison in behind:
        lines += _comparison_lines(comparison)
        of_pair = [row for _, row in judgements if row.comparison == comparison.id]
        lines += [line for row in of_pair for line in _judgement_lines(row)]
        lines += _tipping_lines(of_pair, margin)
    lines += [line for _, row in revisions for line in _revision_lines(row)]
    lines += [line for _, row in samples for line in _sample_lines(row)]
    places = [wanted, *(row for row, _ in (*preferences, *behind, *judgements, *revisions, *samples))]
    lines += ["\nfiles", *dict.fromkeys(f"  {row.file}:{row.line}" for row in places)]
    return printable("\n".join(lines))


def _as_json(prompt: Prompt | None) -> list[str]:
    """How a prompt is written within the rows that hold it."""
    return [] if prompt is None else [json_text(prompt.model_dump(mode="json"))]


def _rows(store: RunStore, artifact: str, kind: type[R]) -> list[R]:
    """The rows; none where the stage that makes them is not done."""
    return store.read(artifact, kind) if artifact in store.artifacts() else []


def _prompt_lines(prompt: Prompt) -> Iterator[str]:
    yield f"prompt {prompt.id} ({prompt.split}{f', {prompt.source}' if prompt.source else ''})"
    for message in prompt.messages:
        yield from _text_lines(message.role, message.content)


def _preference_lines(preference: Preference) -> Iterator[str]:
    by = f" by {', '.join(preference.principles)}" if preference.principles else ""
    what = f"P(chosen is better) = {preference.probability:.3f}, {preference.split}"
    yield f"\npreference {preference.id}: {preference.source}{by}; {what}"
    yield from _text_lines("chosen", preference.chosen)
    yield from _text_lines("rejected", preference.rejected)
    yield f"  rests on {', '.join(preference.rests_on) or 'nothing that is recorded'}"


def _comparison_lines(comparison: Comparison) -> Iterator[str]:
    yield f"\ncomparison {comparison.id}: two responses of the model {comparison.model[:16]}"
    yield from _text_lines("a", comparison.a)
    yield from _text_lines("b", comparison.b)


def _judgement_lines(judgement: Judgement) -> Iterator[str]:
    probability = "unreadable" if judgement.p_a is None else f"P(a is better) = {judgement.p_a:.3f}"
    conflict = "; the orders conflict" if judgement.conflict else ""
    yield f"\njudgement {judgement.id} by '{judgement.principle}': {probability}{conflict}"
    model, _, method = judgement.labeler.rpartition(" ")
    yield f"  judge: {judgement.judge}, {model.partition(' ')[0][:24]}, by {method}"
    yield from _text_lines("principle", judgement.principle_text)
    for reading in judgement.readings:
        bounded = " (a bound)" if reading.bounded else ""
        outcome = reading.problem or (f"{reading.p_a:.3f}{bounded}" if reading.p_a is not None else "")
        yield f"  {reading.order[0]} shown first: {outcome}"
        if reading.rationale:
            yield from _text_lines("  labeler", reading.rationale)
        if reading.reasoning:
            yield from _text_lines("  reasoning", reading.reasoning)


def _tipping_lines(judgements: Sequence[Judgement], margin: float) -> Iterator[str]:
    """What the label would be without each principle; nothing where the comparison has no label."""
    label = combine(judgements)
    if label is None:
        return
    yield f"\nlabel: P(a is better) = {label:.3f}, {_side(label, margin)}"
    for name, above in overridden(readable(judgements)).items():
        yield f"  '{name}' does not count: '{above}' overrides it, and prefers the other response"
    for change in tipping(judgements, margin):
        became = "no label" if change.p_a is None else f"{change.p_a:.3f}, {_side(change.p_a, margin)}"
        yield f"  without '{change.principle}': {became}{'; it tipped the label' if change.tipped else ''}"


def _side(p_a: float, margin: float) -> str:
    if not is_decided(p_a, margin):
        return "undecided"
    return "a is preferred" if p_a > 0.5 else "b is preferred"


def _revision_lines(revision: Revision) -> Iterator[str]:
    state = f": left out, {revision.problem}" if revision.problem else ""
    state = state or (": the draft is unchanged" if revision.final == revision.draft else "")
    yield f"\nrevision {revision.id}{state}"
    yield from _text_lines("draft", revision.draft)
    before = revision.draft
    unusable = (revision.unusable,) if revision.unusable else ()
    for number, step in enumerate((*revision.steps, *unusable), start=1):
        yield f"  round {number} by '{step.principle}'{', which found nothing' if step.found_nothing else ''}"
        yield from _text_lines("  principle", step.principle_text)
        if step.critique is not None:
            yield from _text_lines("  critique", step.critique)
        if step.revision_text is not None:
            yield from _text_lines("  asked to revise by", step.revision_text)
        yield from _text_lines(f"  revision{' (unchanged)' if step.revision == before else ''}", step.revision)
        before = step.revision


def _sample_lines(sample: Sample) -> Iterator[str]:
    yield f"\nsample {sample.id}: what the models replied"
    for model, reply in sample.replies.items():
        yield from _text_lines(f"{MODELS.get(model, model)}{' (cut off)' if model in sample.cut_off else ''}", reply)


def _text_lines(name: str, text: str) -> Iterator[str]:
    """The whole text behind its name, with all lines indented."""
    first, *rest = printable(text).split("\n")
    yield f"  {name}: {first}"
    yield from (f"  {' ' * len(name)}  {line}" for line in rest)


def report_path(store: RunStore) -> Path | None:
    """Where the run's report is; None if it has none yet."""
    return store.artifact("report") if "report" in store.artifacts() else None


def behaviour(store: RunStore) -> str:
    """What the three models do, side by side with 95% intervals; empty where nothing was measured."""
    scores = [score for score in _rows(store, "scores", Score) if score.n]
    by_measure: dict[str, dict[str, Score]] = {}
    for score in scores:
        if score.measure.partition("/")[0] in SHOWN:
            by_measure.setdefault(score.measure, {})[score.model] = score
    if not by_measure:
        return ""
    rows: list[tuple[str, ...]] = [("", *MODELS.values(), "")]
    few = 0
    for measure, by_model in by_measure.items():
        n = min(score.n for score in by_model.values())
        few += n < FEW
        label = _in_words(measure, next(iter(by_model.values())).unit) + (f" (n={n}*)" if n < FEW else "")
        rows.append((label, *(_interval(by_model.get(model)) for model in MODELS), ""))
    note = [f"* fewer than {FEW} observations: {TOO_FEW}"] if few else []
    return "\n".join([table(rows, numbers_from=1), *note, *_failures(store, scores)])


def _failures(store: RunStore, scores: Sequence[Score]) -> Iterator[str]:
    """Failures whatever the constitution asks for, in words where they are clear.

    A model that refuses everything harms nobody, nor does a model that talks nonsense; and the labeler may prefer both.
    """
    last = final_model(tuple(scores))
    changes = {score.measure: score.changes.get("base") for score in scores if score.model == last}
    refusing, formed = changes.get("over_refusal"), changes.get("well_formed")
    if refusing and refusing.n >= FEW and refusing.low > 0:
        points = f"{100 * refusing.value:.0f} points ({100 * refusing.low:.0f}–{100 * refusing.high:.0f})"
        yield f"got worse: over-refusal. {MODELS[last]} refuses what harms nobody {points} more often than Base."
    if formed and formed.n >= FEW and formed.high < 0:
        points = f"{-100 * formed.value:.0f} points ({-100 * formed.high:.0f}–{-100 * formed.low:.0f})"
        yield f"got worse: well formed. {MODELS[last]} says what is well formed {points} less often than Base."
    for sentence in over_optimised(_rows(store, "gold", GoldPoint)):
        yield f"got worse: {sentence[0].lower()}{sentence[1:]}"


def _in_words(measure: str, unit: str) -> str:
    kind, _, about = measure.partition("/")
    match kind:
        case "trait_rate":
            return about.replace("_", " ")
        case "win_rate":
            return f"preferred to {MODELS.get(about, about)}"
        case "over_refusal":
            return "over-refusal"
        case "violation_rate":
            return f"violates {about}"
    return kind.replace("_", " ") + ("" if unit == "share" else f", {unit}")


def _interval(score: Score | None) -> str:
    """`45% (39–51)`, or in other units `12.3 (11.9–12.7)`."""
    if score is None:
        return "–"
    if score.unit == "share":
        return f"{100 * score.value:.0f}% ({100 * score.low:.0f}–{100 * score.high:.0f})"
    return f"{charts.number(score.value)} ({charts.number(score.low)}–{charts.number(score.high)})"
