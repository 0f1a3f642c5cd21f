"""What people say of the replies of the evaluation: the models' win rates and violation rates, corrected by that.

People vote on the last model's replies against the earlier models', as the labeler did, and answer for a reply whether
it violates a principle, as the critic did. The replies are asked about in a seeded order, so those that were answered
stand for all of them, and prediction-powered inference corrects the rate by the labeler or the critic. How often these
are right tells the same by Rogan and Gladen's correction, under the assumption that they err as often on all replies.
"""

import csv
import hashlib
import io
import json
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Final, NamedTuple

from constitutional.base.corrected import (
    CorrectedRate,
    PredictionPoweredRate,
    WeightedRate,
    clustered_rogan_gladen,
    hajek_mean,
    prediction_powered_mean,
)
from constitutional.base.errors import InputError
from constitutional.base.records import Comparison, Message, Sample, Verdict
from constitutional.base.seeds import rng_of
from constitutional.base.text import neutralised, restored, same_text
from constitutional.constitution.constitution import Constitution
from constitutional.data.votes.items import whole_characters
from constitutional.data.votes.reading import read_file
from constitutional.judging.people import CHOICES, PeoplesWork, is_simulated, opinions_of, raters_own
from constitutional.judging.scores import CONTESTS, Measurement

MODEL: Final = "policy"
"""The model whose replies people judge."""
ASKED: Final = "item principle conversation reply rater violates".split()
"""The columns of the sheet on violations."""
_ANSWERS: Final = {"yes": True, "true": True, "1": True, "no": False, "false": False, "0": False}


class Estimates(NamedTuple):
    """A rate as the labeler or the critic has it, with what people's answers make of it."""

    ai: WeightedRate
    rogan_gladen: CorrectedRate
    powered: PredictionPoweredRate | None
    """None where people answered about every item."""
    people: WeightedRate
    """From people's answers alone."""


class Contest(NamedTuple):
    """A reply of the last model (a) against an earlier model's (b), which the labeler compared."""

    comparison: Comparison
    opponent: str
    labeler: float
    """Probability that a is better."""


def contests_of(samples: Iterable[Sample], measurements: Iterable[Measurement]) -> list[Contest]:
    """The comparisons of the last model's replies that the labeler could read, as the evaluation made them."""
    rates = {row.measure: row.by_prompt for row in measurements if row.model == MODEL}
    contests = []
    for sample in samples:
        for opponent in (opponent for model, opponent in CONTESTS if model == MODEL):
            p_a = rates.get(f"win_rate/{opponent}", {}).get(sample.prompt.id)
            if p_a is not None:
                a, b = sample.replies[MODEL], sample.replies[opponent]
                comparison = Comparison(prompt=sample.prompt, a=a, b=b, model=f"against {opponent}")
                contests.append(Contest(comparison, opponent, p_a))
    return contests


def win_estimates(contests: Iterable[Contest], verdicts: Iterable[Verdict]) -> dict[str, Estimates]:
    """The last model's win rate by opponent, where people voted. A tie, and two bad replies, are half a win.

    Replies that read the same are left out, as they are of the labeler's win rates: an evaluation of an older version
    compared some of them.
    For Rogan and Gladen's correction, which takes counts, ties of either side are left out.
    """
    votes = defaultdict[str, list[Verdict]](list)
    for verdict in raters_own(verdicts):
        if verdict.principle is None and verdict.choice in CHOICES:
            votes[verdict.comparison].append(verdict)
    by_opponent = defaultdict[str, list[Contest]](list)
    for contest in contests:
        if not same_text(contest.comparison.a, contest.comparison.b):
            by_opponent[contest.opponent].append(contest)
    return {
        opponent: made
        for opponent, rows in by_opponent.items()
        if (
            made := _estimates(
                {row.comparison.id: (row.labeler > 0.5) + (row.labeler == 0.5) / 2 for row in rows},
                {name: fmean(opinions_of(votes[name], both_bad=0.5)) for name in votes},
                {row.comparison.id: row.comparison.prompt.id for row in rows},
            )
        )
    }


class ViolationItem(NamedTuple):
    """A reply of the last model and a principle by which the critic judged it."""

    name: str
    """Tells neither the model nor the critic's answer."""
    messages: tuple[Message, ...]
    reply: str
    principle: str
    """The principle's id."""
    text: str
    prompt: str
    """The prompt's id."""
    critic: float
    """1 where the critic found a violation, otherwise 0."""


class ViolationAnswer(NamedTuple):
    """What a person says of an item."""

    item: str
    rater: str
    violates: bool


def work_of_answers(answers: Sequence[ViolationAnswer]) -> PeoplesWork:
    """The work behind a sheet, of which neither the time nor who saw harmful texts is recorded."""
    made_up = [row for row in answers if is_simulated(row.rater)]
    answers = [row for row in answers if not is_simulated(row.rater)]
    raters, votes = len({answer.rater for answer in answers}), len({(row.item, row.rater) for row in answers})
    return PeoplesWork(
        raters=raters, votes=votes, skips=0, timed=0, seconds=0.0, noted=0, exposures=0, simulated=len(made_up)
    )


def violation_items(
    samples: Iterable[Sample], measurements: Iterable[Measurement], constitution: Constitution, seed: int
) -> list[ViolationItem]:
    """What the critic judged of the last model's replies, in a seeded order."""
    by_prompt = {sample.prompt.id: sample for sample in samples}
    texts = {principle.id: principle.text for principle in constitution.principles}
    items = []
    for row in measurements:
        measure, _, principle = row.measure.partition("/")
        if row.model != MODEL or measure != "violation_rate" or principle not in texts:
            continue
        for prompt, critic in row.by_prompt.items():
            sample = by_prompt[prompt]
            messages, reply, text = sample.prompt.messages, sample.replies[MODEL], texts[principle]
            # With all that people read in it, so that no answer counts for another reply or another principle.
            asked = json.dumps([MODEL, principle, text, prompt, reply])
            name = f"v_{hashlib.sha256(asked.encode()).hexdigest()[:16]}"
            items.append(ViolationItem(name, messages, reply, principle, text, prompt, critic))
    return sorted(items, key=lambda item: rng_of(seed, "violations", item.name).random())


def violation_estimates(
    items: Sequence[ViolationItem], answers: Iterable[ViolationAnswer]
) -> tuple[Estimates | None, dict[str, Estimates]]:
    """The last model's violation rate over all principles, and by principle, where people answered.

    An item is a reply and a principle; prompts are the clusters. Of several answers to an item the mean counts.
    """
    given = defaultdict[str, list[float]](list)
    for answer in answers:
        given[answer.item].append(float(answer.violates))
    people = {name: fmean(values) for name, values in given.items()}

    def estimates(rows: Sequence[ViolationItem]) -> Estimates | None:
        return _estimates({row.name: row.critic for row in rows}, people, {row.name: row.prompt for row in rows})

    by_principle = defaultdict[str, list[ViolationItem]](list)
    for item in items:
        by_principle[item.principle].append(item)
    made = {principle: estimates(rows) for principle, rows in by_principle.items()}
    return estimates(items), {principle: of for principle, of in made.items() if of is not None}


def _estimates(ai: Mapping[str, float], people: Mapping[str, float], clusters: Mapping[str, str]) -> Estimates | None:
    """All estimates of one rate, from labels by item in [0, 1]; None where people answered about no item."""
    answered = [name for name in ai if name in people]
    rest = [name for name in ai if name not in people]
    if not answered:
        return None
    clear = [name for name in answered if ai[name] != 0.5 and people[name] != 0.5]
    y, own = [people[name] for name in answered], [clusters[name] for name in answered]
    powered = None
    if rest:
        powered = prediction_powered_mean(
            y,
            [ai[name] for name in answered],
            [ai[name] for name in rest],
            clusters=own,
            ai_only_clusters=[clusters[name] for name in rest],
        )
    return Estimates(
        ai=hajek_mean([*ai.values()], [1.0] * len(ai), [clusters[name] for name in ai]),
        rogan_gladen=clustered_rogan_gladen(
            [(label > 0.5, clusters[name]) for name, label in ai.items() if label != 0.5],
            [(ai[name] > 0.5, clusters[name]) for name in clear if people[name] > 0.5],
            [(ai[name] < 0.5, clusters[name]) for name in clear if people[name] < 0.5],
        ),
        powered=powered,
        people=hajek_mean(y, [1.0] * len(y), own),
    )


def sheet(items: Iterable[ViolationItem]) -> bytes:
    """The items as CSV, in which people fill in `rater` and `violates`; no cell is a formula."""
    stream = io.StringIO(newline="")
    writer = csv.writer(stream)
    writer.writerow(ASKED)
    for item in items:
        turns = "\n\n".join(f"{message.role.capitalize()}: {message.content}" for message in item.messages)
        writer.writerow(
            [neutralised(whole_characters(text)) for text in (item.name, item.text, turns, item.reply, "", "")]
        )
    return stream.getvalue().encode("utf-8-sig")


def read_answers(path: Path, items: Collection[str] | None) -> list[ViolationAnswer]:
    """The answers in a sheet that people filled in; rows without an answer are left out.

    Args:
        path: the file.
        items: the names of the items that there are; None where they are not made yet.

    Raises:
        InputError: it is no such sheet, a row is wrong or contradicts an earlier one of the same rater, or nobody
            answered.
    """
    return [*_answers(path, items)] or _nobody(path)


def _nobody(path: Path) -> list[ViolationAnswer]:
    raise InputError(path, "holds no answer; expected yes or no in the column violates")


def _answers(path: Path, items: Collection[str] | None) -> Iterator[ViolationAnswer]:
    file = read_file(path)
    if not {"item", "rater", "violates"} <= {*(file.columns or ())}:
        raise InputError(path, f"is no sheet on violations; expected CSV with the columns {', '.join(ASKED)}")
    if file.broken:
        raise InputError(path, f"{len(file.broken)} lines cannot be read; the first is {file.broken[0]}")
    first: dict[tuple[str, str], bool] = {}
    for number, (_, row) in enumerate(file.rows()):
        line = file.lines[number] if file.lines else None
        cells = {name: restored(str(row.get(name) or "")).strip() for name in ("item", "rater", "violates")}
        if not cells["violates"]:
            continue
        violates = _ANSWERS.get(cells["violates"].lower())
        if violates is None:
            raise InputError(path, f"violates is '{cells['violates']}'; expected yes, no, or nothing", line)
        if not cells["rater"]:
            raise InputError(path, "an answer without a rater; expected a name in the column rater", line)
        if items is not None and cells["item"] not in items:
            problem = (
                f"there is no item '{cells['item']}' in this run: the sheet is about other replies or other words of a "
                "principle, or was written by an older version; expected the items of a sheet that is written by "
                "constitutional review RUN violations --out FILE.csv; without one, type report.violations=null"
            )
            raise InputError(path, problem, line)
        key = (cells["item"], cells["rater"])
        if first.setdefault(key, violates) != violates:
            raise InputError(path, f"'{key[1]}' says yes and no of '{key[0]}'; keep one of the two", line)
        yield ViolationAnswer(*key, violates)
