"""How two runs differ: in what they were told, and in what their models then did on the same prompts.

Each run's own intervals say how it would do on other prompts. Whether one run did more of something than the other is
seen far more sharply on the prompts that both answered, pair by pair.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple, TypeVar

from constitutional.base.stats import bootstrap_mean, clustered_change, win_rate
from constitutional.constitution.constitution import Constitution
from constitutional.constitution.difference import PrincipleChange, difference
from constitutional.constitution.measures import Rule
from constitutional.judging.labeler import LabelerSettings
from constitutional.judging.scores import Change, Score, plain
from constitutional.stages.report.data import FEW, MODELS, TOO_FEW, RunReport
from constitutional.stages.report.verdicts import Outcome, kind, outcome, table_of
from constitutional.stages.summaries import Direction, EvaluateSummary

TOLD: Final = ("name", "folder", "until", "journal.path", "report_to", "launch", "cluster")
"""Settings that say where a run is, is made or is shown, and not what it is."""
JUDGED: Final = ("violation_rate", "win_rate")
"""Kinds of measures that a model's judgement makes."""
COUNTED: Final = ("rule_broken", "rule_more", "rule_fewer")
"""Kinds of measures that a principle's rule makes."""

K = TypeVar("K")


class SettingChange(NamedTuple):
    """A setting that two runs have differently, as JSON text; empty where a run has no such setting."""

    key: str
    before: str
    after: str


class PairedRow(NamedTuple):
    """One measure of one model in both runs."""

    measure: str
    model: str
    wanted: Direction | None
    """As both runs want it; None where they differ."""
    before: Score
    after: Score
    change: Change | None
    """The second run less the first, over the prompts that both were measured on; None where it is not compared."""
    outcome: Outcome
    remark: str = ""
    """Why it is not compared."""


class RunDifference(NamedTuple):
    """The second run against the first."""

    before: str
    """The first run's name."""
    after: str
    constitution: list[PrincipleChange]
    settings: list[SettingChange]
    changed: list[PairedRow]
    """Clear changes of the last model, the largest against its interval first."""
    unclear: list[PairedRow]
    """No clear change, or too few to tell."""
    apart: list[PairedRow]
    """Measures that are not compared, and why."""
    supervised: list[PairedRow]
    """The same measures of the SL model, all that are compared."""


def run_difference(a: RunReport, b: RunReport) -> RunDifference:
    """What differs between two runs, both of which have their constitution and measurements."""
    rows = list(_rows(a, b, "policy"))
    compared = [row for row in rows if row.change]
    clear = [row for row in compared if row.outcome not in ("no clear change", TOO_FEW)]
    return RunDifference(
        before=a.name,
        after=b.name,
        constitution=difference(_constitution(a), _constitution(b)),
        settings=list(setting_changes(_settings(a), _settings(b))),
        changed=sorted(clear, key=lambda row: -_strength(row)),
        unclear=[row for row in compared if row not in clear],
        apart=[row for row in rows if not row.change],
        supervised=[row for row in _rows(a, b, "sft_model") if row.change],
    )


def setting_changes(a: Mapping[str, Any], b: Mapping[str, Any], prefix: str = "") -> Iterator[SettingChange]:
    """The settings that differ, by their dotted names, in the order of the configuration."""
    for name in dict.fromkeys([*a, *b]):
        key, before, after = f"{prefix}{name}", a.get(name), b.get(name)
        if before == after or key in TOLD:
            continue
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            yield from setting_changes(before, after, f"{key}.")
        else:
            texts = (json.dumps(of[name], ensure_ascii=False) if name in of else "" for of in (a, b))
            yield SettingChange(key, *texts)


def _constitution(run: RunReport) -> Constitution:
    assert run.constitution is not None, "a run to compare has its constitution"
    return run.constitution


def _evaluated(run: RunReport) -> EvaluateSummary | None:
    return run.summary(EvaluateSummary)


def _settings(run: RunReport) -> dict[str, Any]:
    return dict(json.loads(run.provenance.config or "{}"))


def _rows(a: RunReport, b: RunReport, model: str) -> Iterator[PairedRow]:
    first, second = ({plain(name): scores for name, scores in table_of(run.scores).items()} for run in (a, b))
    values = [
        {plain(row.measure): won(plain(row.measure), row.by_prompt) for row in run.measurements if row.model == model}
        for run in (a, b)
    ]
    clusters = {prompt: of for run in (a, b) for row in run.measurements for prompt, of in row.clusters.items()}
    for measure, by_model in first.items():
        before, after = by_model.get(model), second.get(measure, {}).get(model)
        if before is None or after is None:
            continue
        wanted = a.wanted.get(measure)
        wanted = wanted if wanted == b.wanted.get(measure) else None
        row = PairedRow(measure, model, wanted, before, after, None, "no clear change")
        if remark := _means_another_thing(measure, a, b):
            yield row._replace(remark=remark)
        elif change := _change(
            values[0].get(measure, {}), values[1].get(measure, {}), clusters, shares=before.unit == "share"
        ):
            result: Outcome = outcome(change.low, change.high, (0.0, 0.0), wanted) if change.n >= FEW else TOO_FEW
            yield row._replace(change=change, outcome=result)
        else:
            yield row._replace(remark="it is not made prompt by prompt, or the runs have no prompt in common")


def won(measure: str, by_key: Mapping[K, float]) -> Mapping[K, float]:
    """The values of a measure, of a win rate whether the model wins: its score is the share of the prompts won."""
    if kind(measure) != "win_rate":
        return by_key
    return {key: win_rate([p]).value for key, p in by_key.items()}


def _change(
    before: Mapping[str, float], after: Mapping[str, float], clusters: Mapping[str, str], *, shares: bool
) -> Change | None:
    """The mean difference over the prompts that both have; of what is 0 or 1 by the interval of paired shares.

    Prompts that depend on each other count as a cluster; of one cluster alone nothing is known.
    """
    both = [prompt for prompt in before if prompt in after]
    together = [clusters.get(prompt, prompt) for prompt in both]
    if len(set(together)) < 2:
        return None
    differences = [after[prompt] - before[prompt] for prompt in both]
    if shares and {*before.values(), *after.values()} <= {0.0, 1.0}:
        interval = clustered_change(differences, together)
    else:
        interval = bootstrap_mean(differences, together, seed=0)
    value = sum(differences) / len(differences)
    return Change(value=value, low=interval.low, high=interval.high, n=len(differences))


def _means_another_thing(measure: str, a: RunReport, b: RunReport) -> str:
    """Why a measure means another thing in the other run; empty where it does not."""
    mine, theirs = _constitution(a), _constitution(b)
    if kind(measure) in COUNTED:
        rules = {rule_behind(measure, of) for of in (mine, theirs)}
        return "" if len(rules) == 1 else "the principle's rule counts another thing in the other run"
    if kind(measure) not in JUDGED:
        return ""
    judge = "critic" if kind(measure) == "violation_rate" else "labeler"
    if a.provenance.identities.get(judge) != b.provenance.identities.get(judge):
        return f"the runs' {judge}s differ"
    if judge == "labeler" and len({_asked(run) for run in (a, b)}) > 1:
        return "the labeler was asked in another way"
    if judge == "critic":
        name = measure.partition("/")[2]
        words = {evaluated.critiqued.get(name) if evaluated else None for evaluated in map(_evaluated, (a, b))}
        return "" if len(words) == 1 else f"the principle '{name}' has other words in the other run"
    texts = [
        {(row.words("comparison"), row.weight) for row in of.principles if "comparison" in row.uses}
        for of in (mine, theirs)
    ]
    return "" if texts[0] == texts[1] else "the labeler judged by other principles"


def rule_behind(measure: str, constitution: Constitution) -> Rule | None:
    """The rule of the principle that a measure of `COUNTED` is named by, be it left out; None where it has none."""
    name = measure.partition("/")[2]
    principles = (*constitution.principles, *constitution.left_out)
    return next((principle.rule for principle in principles if principle.id == name), None)


def _asked(run: RunReport) -> str:
    """How a run's labeler is asked, as JSON."""
    label = _settings(run).get("label", {})
    return json.dumps({name: label.get(name) for name in LabelerSettings.model_fields}, sort_keys=True)


def _strength(row: PairedRow) -> float:
    """How many half-intervals a change is from 0."""
    assert row.change is not None
    return abs(row.change.value) / max((row.change.high - row.change.low) / 2, 1e-9)


def summary_line(rows: RunDifference) -> str:
    """How many measures changed, such as: Of 31 measures of the RL model, 4 clearly changed."""
    n = len(rows.changed) + len(rows.unclear)
    apart = f"; {len(rows.apart)} are not compared" if rows.apart else ""
    of = f"Of {n} measures of the {MODELS['policy']} model on the same prompts"
    return f"{of}, {len(rows.changed)} clearly changed{apart}."
