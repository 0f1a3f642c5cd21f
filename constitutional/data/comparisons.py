"""Comparisons made by people elsewhere, as the preferences that a run trains on.

`preferences.py` recognises the files. Rows about the same two replies, as people read them, have the same
`comparison`, whichever reply was chosen, so that the opinions of several people can be brought together.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
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


class HumanComparisons(NamedTuple):
    """What files of comparisons hold."""

    preferences: list[Preference]
    """Also ties, with the probability 0.5."""
    counts: Counter[Class]
    """Candidates of each class; only `preference` and `tie` are among the preferences."""
    without_prompt: int
    """Preferences and ties left out because the file does not say what is answered."""
    places: list[RowPlace]
    """The place of each preference."""


def read_comparisons(files: Path | Sequence[DataFile], *, seed: int = 0) -> HumanComparisons:
    """The preferences in files; `rests_on` names the file and row, and the raters where they are known.

    Args:
        files: a file, or several with their settings; those with weights give as many preferences as the scarcest of
            them allows, drawn by a digest of the comparison.
        seed: decides which.

    Raises:
        InputError: a row is not as the first one of its file, with its place; or a file holds no pair.
    """
    chosen = [DataFile(path=files)] if isinstance(files, Path) else files
    parts = [_read(file) for file in chosen]
    amounts = mixture([len(part.preferences) for part in parts], [file.weight for file in chosen])
    whole = HumanComparisons([], Counter(), 0, [])
    for part, amount in zip(parts, amounts, strict=True):
        drawn = sorted(
            range(len(part.preferences)), key=lambda index: _lot(part.preferences[index], part.places[index], seed)
        )
        kept = range(len(part.preferences)) if amount == len(drawn) else sorted(drawn[:amount])
        whole = HumanComparisons(
            whole.preferences + [part.preferences[index] for index in kept],
            whole.counts + part.counts,
            whole.without_prompt + part.without_prompt,
            whole.places + [part.places[index] for index in kept],
        )
    return whole


def _lot(preference: Preference, place: RowPlace, seed: int) -> tuple[int, int]:
    return seed_of(seed, "mixture", preference.comparison), place.number


def _read(file: DataFile) -> HumanComparisons:
    preferences: list[Preference] = []
    places: list[RowPlace] = []
    counts: Counter[Class] = Counter()
    without_prompt = 0
    for place, candidate in read_candidates(file):
        counts[candidate.label] += 1
        if candidate.label not in ("preference", "tie"):
            continue
        if candidate.messages:
            preferences.append(_preference(candidate, file.name, place))
            places.append(place)
        else:
            without_prompt += 1
    if not counts:
        raise InputError(file.path, f"holds no pair; expected {PAIRS}")
    return HumanComparisons(preferences, counts, without_prompt, places)


def read_candidates(file: DataFile) -> Iterator[tuple[RowPlace, Candidate]]:
    """The candidates of a file with their places, one by one.

    Raises:
        InputError: the file holds no preferences, or a row is not as the first one.
    """
    rows = Rows(file.path, PAIRS)
    first = rows.peek()
    if first is None:
        raise InputError(file.path, f"holds no pair; expected {PAIRS}")
    number, row = first
    reader = PreferenceReader(file, texts=rows.texts)
    try:
        form = reader.form_of(row) if isinstance(row, dict) else None
        if form is None:
            raise BadRowError(unknown(row))
        for number, candidates in reader.candidates(form, rows):
            for candidate in candidates:
                yield rows.place(number), candidate
    except BadRowError as error:
        line = error.args[1] if len(error.args) > 1 else number
        raise rows.place(line).error(str(error.args[0])) from error


def unknown(row: object) -> str:
    """That a row is of no known form."""
    if not isinstance(row, dict):
        return f"is {type(row).__name__}; expected an object, in {PAIRS}"
    for pair in COLUMNS:
        missing = [name for name in pair if name not in row]
        if len(missing) == 1:
            return f"'{missing[0]}' is missing; expected {PAIRS}"
    if not row:
        return f"has no columns; expected {PAIRS}"
    names = ", ".join(map(repr, list(row)[:12]))
    advice = (
        "name them with columns: {prompt: COLUMN, chosen: COLUMN, rejected: COLUMN}, or response_a, response_b, winner"
    )
    return f"has {names}, which are the columns of no preferences; {advice}; expected {PAIRS}"


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
