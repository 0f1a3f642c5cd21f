"""The formats of files of votes by name, and which of them a file has."""

from collections.abc import Callable, Collection, Mapping
from typing import Final, NamedTuple

from constitutional.base.errors import InputError
from constitutional.base.records import Comparison
from constitutional.data.votes import annotated_pairs, argilla, label_studio, table
from constitutional.data.votes.reading import ImportedVotes, VoteFile


class VoteFormat(NamedTuple):
    """How a format is known and read."""

    recognises: Callable[[VoteFile], bool]
    verdicts: Callable[[VoteFile, Mapping[str, Comparison], Collection[str]], ImportedVotes]
    """Takes the run's comparisons by id, and the ids of the principles that verdicts may be by."""


FORMATS: Final[Mapping[str, VoteFormat]] = {
    "label_studio": VoteFormat(label_studio.recognises, label_studio.verdicts),
    "argilla": VoteFormat(argilla.recognises, argilla.verdicts),
    "annotated_pairs": VoteFormat(annotated_pairs.recognises, annotated_pairs.verdicts),
    "csv": VoteFormat(table.recognises, table.verdicts),
}


def format_of(file: VoteFile) -> str:
    """The name of a file's format, from its content.

    Raises:
        InputError: it has none of them.
    """
    name = next((name for name, form in FORMATS.items() if form.recognises(file)), None)
    if name is None and any(
        isinstance(row, dict) and {"comparison", "rater", "choice"} <= row.keys() for _, row in file.rows()
    ):
        way = f"type spotcheck.verdicts={file.path} or mix.verdicts={file.path}"
        raise InputError(file.path, f"holds verdicts, which need no import; {way}")
    if name is None and any(
        isinstance(row, dict) and isinstance(row.get("data"), dict) and "annotations" not in row
        for _, row in file.rows()
    ):
        way = "annotate them in Label Studio, export the project as JSON, and import that file"
        raise InputError(file.path, f"holds tasks for Label Studio, and no annotations; {way}")
    if name is None:
        known = f"an export of votes on tasks of this run: {', '.join(FORMATS)}"
        raise InputError(file.path, f"is in no format that is known; expected {known}; or name it with --format")
    return name
