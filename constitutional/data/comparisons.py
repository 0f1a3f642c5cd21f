"""Comparisons made by people elsewhere, as the preferences that a run trains on.

`preferences.py` recognises the files. Rows about the same two replies, as people read them, have the same
`comparison`, whichever reply was chosen, so that the opinions of several people can be brought together.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from math import fsum
from pathlib import Path
from statistics import fmean
from typing import Final, NamedTuple

from constitutional.base.errors import InputError, ModelError
from constitutional.base.records import Comparison, Message, Preference, Prompt
from constitutional.base.seeds import seed_of
from constitutional.base.text import canonical
from constitutional.data.candidates import Candidate, Class
from constitutional.data.pairs.chosen import COLUMNS
from constitutional.data.preferences import PreferenceReader
from constitutional.data.sources import DataFile, RowPlace, Rows, mixture
from constitutional.data.turns import BadRowError

PAIRS: Final = (
    'a file of pairs, such as JSON lines {"prompt": "…", "chosen": "…", "rejected": "…"}, or as in hh-rlhf '
    '{"chosen": …, "rejected": …} with whole transcripts; `constitutional data FILE` says how a file is read'
)
"""What a user is told to give."""
ROWS: Final = (
    'preferences, prompts or an evaluation set, such as JSON lines {"prompt": "…", "chosen": "…", "rejected": "…"} or '
    '{"prompt": "…"}'
)
"""What a user is told to give where rows of every kind are read."""
CALLED: Final[Mapping[str, str]] = {
    "both_bad": "both replies bad",
    "equal": "equal replies",
    "empty": "empty replies or turns",
    "different_contexts": "replies to different conversations",
    "unlabelled": "without a verdict",
    "calls": "replies empty or equal but for calls of tools",
}
"""What is said of candidates that are no preferences."""


class HumanComparisons(NamedTuple):
    """What the files hold, of which a mixture may leave out a part."""

    preferences: list[Preference]
    """Also ties, with the probability 0.5."""
    counts: Counter[Class]
    """Candidates of each class; only `preference` and `tie` are among the preferences, those in the mixture."""
    without_prompt: int
    """Preferences and ties left out because the file does not say what is answered."""
    places: list[RowPlace]
    """The place of each preference."""
    beyond: int = 0
    """Preferences and ties that the weights of a mixture leave out."""
    labelled: Mapping[str, str] = {}
    """Files that a model labelled, with what is known of it: `is labelled by …`."""
    warnings: tuple[str, ...] = ()
    """What `constitutional data` warns of in the rows, with the file's name."""


def read_comparisons(files: Path | Sequence[DataFile], *, seed: int = 0) -> HumanComparisons:
    """The preferences in files; `rests_on` names the file and row, and the raters where they are known.

    Args:
        files: a file, or several with their settings; those with weights give as much as the scarcest of them
            allows, by what the preferences weigh, drawn by a digest of the comparison.
        seed: decides which.

    Raises:
        InputError: a row is not as the first one of its file, with its place; or a file holds no pair that can be used.
    """
    chosen = [DataFile(path=files)] if isinstance(files, Path) else files
    parts = [_read(file) for file in chosen]
    amounts = mixture(
        [fsum(row.weight for row in part.preferences) for part in parts], [file.weight for file in chosen]
    )
    whole = HumanComparisons([], Counter(), 0, [])
    for file, part, amount in zip(chosen, parts, amounts, strict=True):
        kept: Sequence[int] = range(len(part.preferences))
        left: Counter[Class] = Counter()
        if file.weight is not None:
            kept = _drawn(part, seed, amount)
            left = Counter(map(_label, part.preferences)) - Counter(_label(part.preferences[row]) for row in kept)
        whole = HumanComparisons(
            whole.preferences + [part.preferences[index] for index in kept],
            whole.counts + (part.counts - left),
            whole.without_prompt + part.without_prompt,
            whole.places + [part.places[index] for index in kept],
            whole.beyond + left.total(),
            {**whole.labelled, **part.labelled},
            whole.warnings + part.warnings,
        )
    return whole


def _label(preference: Preference) -> Class:
    return "tie" if preference.probability == 0.5 else "preference"


def _drawn(part: HumanComparisons, seed: int, amount: float) -> list[int]:
    """As many as weigh so much, in their order; one that would weigh more is passed over for a lighter one."""
    drawn, weight = [], 0.0
    lots = [_lot(row, place, seed) for row, place in zip(part.preferences, part.places, strict=True)]
    for index in sorted(range(len(lots)), key=lots.__getitem__):
        if weight + part.preferences[index].weight <= amount + 1e-9:
            drawn.append(index)
            weight += part.preferences[index].weight
    return sorted(drawn)


def _lot(preference: Preference, place: RowPlace, seed: int) -> tuple[int, int]:
    return seed_of(seed, "mixture", preference.comparison), place.number


def _read(file: DataFile) -> HumanComparisons:
    rows = Rows(file.path, PAIRS)
    first = rows.peek()
    if first is None:
        raise InputError(file.path, f"holds no pair; expected {PAIRS}")
    number, row = first
    reader = PreferenceReader(file, texts=rows.texts)
    preferences: list[Preference] = []
    places: list[RowPlace] = []
    counts: Counter[Class] = Counter()
    without_prompt = 0
    try:
        form = reader.form_of(row) if isinstance(row, dict) else None
        if form is None:
            raise BadRowError(unknown(row))
        for number, candidates in reader.candidates(form, rows):
            for candidate in candidates:
                counts[candidate.label] += 1
                if candidate.label in ("preference", "tie") and candidate.messages:
                    places.append(rows.place(number))
                    preferences.append(_preference(candidate, file.name, places[-1]))
                elif candidate.label in ("preference", "tie"):
                    without_prompt += 1
    except BadRowError as error:
        line = error.args[1] if len(error.args) > 1 else number
        raise rows.place(line).error(str(error.args[0])) from error
    if not counts:
        raise InputError(file.path, f"holds no pair; expected {PAIRS}")
    if not preferences:
        raise InputError(file.path, _unusable(counts, without_prompt))
    said = form.labelled or ("is labelled by a model, as its settings say" if file.source == "ai" else "")
    labelled = {file.name: said} if said else {}
    warnings = tuple(f"{file.name}: {warning}" for warning in reader.warnings())
    return HumanComparisons(preferences, counts, without_prompt, places, labelled=labelled, warnings=warnings)


def _unusable(counts: Counter[Class], without_prompt: int) -> str:
    """Why none of a file's pairs can be used."""
    why = [f"{count:,} {CALLED[label]}" for label, count in counts.items() if label in CALLED]
    why += [f"{without_prompt:,} without a prompt"] if without_prompt else []
    return (
        f"holds no pair that can be trained on ({', '.join(why)}); `constitutional data FILE` shows how it is "
        "read, and columns: {…} has it read otherwise"
    )


def unknown(row: object, expected: str = PAIRS) -> str:
    """That a row is of no known form."""
    if not isinstance(row, dict):
        return f"is {type(row).__name__}; expected an object, in {expected}"
    for pair in COLUMNS:
        missing = [name for name in pair if name not in row]
        if len(missing) == 1:
            return f"'{missing[0]}' is missing; expected {expected}"
    if not row:
        return f"has no columns; expected {expected}"
    names = ", ".join(map(repr, list(row)[:12]))
    advice = (
        "name them with columns: {prompt: COLUMN, chosen: COLUMN, rejected: COLUMN}, or response_a, response_b, winner"
    )
    return f"has {names}, which are the columns of no preferences; {advice}; expected {expected}"


def divisor(by_principle: Iterable[Iterable[float]]) -> float:
    """What weights are divided by where several principles judge the same two replies: they count as one at most.

    Args:
        by_principle: for each principle the weights of the verdicts by it.
    """
    return max(1.0, sum(map(fmean, by_principle)))


def check_pairs(pairs: HumanComparisons, check: Callable[[Sequence[Message]], object]) -> None:
    """Refuse pairs that the model that will be trained on them cannot read.

    Args:
        pairs: what `read_comparisons` read.
        check: raises ModelError for a conversation that the model cannot read.

    Raises:
        InputError: names the place of the first such pair.
    """
    for place, preference in zip(pairs.places, pairs.preferences, strict=True):
        for reply in (preference.chosen, preference.rejected):
            try:
                check((*preference.prompt.messages, Message("assistant", reply)))
            except ModelError as error:
                raise place.error(str(error)) from error


def _preference(candidate: Candidate, source: str, place: RowPlace) -> Preference:
    a, b = sorted(map(canonical, (candidate.chosen, candidate.rejected)))
    turns = tuple(Message(turn.role, canonical(turn.content), turn.extra) for turn in candidate.messages)
    raters = [f"{place} ({candidate.rater})" if candidate.rater else str(place)]
    if candidate.raters:
        raters = [f"{place} (rater {number}: {score:+g})" for number, score in enumerate(candidate.raters, start=1)]
    return Preference(
        prompt=Prompt(messages=candidate.messages, source=source),
        chosen=candidate.chosen,
        rejected=candidate.rejected,
        probability=candidate.probability,
        source=candidate.source,
        principles=candidate.principles,
        rests_on=tuple(raters),
        comparison=Comparison(prompt=Prompt(messages=turns, source=source), a=a, b=b).id,
        weight=candidate.weight,
    )
