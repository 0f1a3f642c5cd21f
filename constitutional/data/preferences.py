"""Preferences of every public set, recognised by their columns.

A file's first row decides what the file is: a `PairForm` says how each column is read, and turns rows into candidates.
A candidate is two replies to one conversation and what somebody says of them; it is in exactly one class. Columns that
a form does not name are ignored. Nothing is guessed from texts: a file that no form fits is refused.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby, islice
from typing import Any, Final

from constitutional.data.candidates import Candidate, Row
from constitutional.data.pairs import shaped, voted
from constitutional.data.pairs.chosen import best_first, chosen_and_rejected, several_replies
from constitutional.data.pairs.ranked import one_a_row, ranked, side_by_side
from constitutional.data.pairs.reader import PairForm, PairReader
from constitutional.data.pairs.sides import lists_as_texts, two_sides
from constitutional.data.turns import BadRowError

_FORMS: Final[Sequence[Callable[[PairReader, Row], PairForm | None]]] = (
    *(voted.annotated_pairs, voted.label_studio, voted.argilla, shaped.tinker, chosen_and_rejected),
    *(shaped.tree, shaped.messages_of_trees, shaped.chats, shaped.utterances, shaped.summaries, shaped.arena_turns),
    *(lists_as_texts, two_sides, ranked, side_by_side, one_a_row, best_first),
)
"""They are asked in this order: what a more particular form recognises comes first."""

_NAMED: Final = (
    ({"chosen", "rejected"}, (chosen_and_rejected,), "'chosen' and 'rejected', and texts or messages in both"),
    ({"response_a", "response_b"}, (two_sides,), "two replies, and a prompt or a winner beside them"),
    (
        {"winner", "strength"},
        (lists_as_texts, two_sides, chosen_and_rejected),
        "two replies beside it; name them with columns: {response_a: COLUMN, response_b: COLUMN}",
    ),
    (
        {"reply", "label"},
        (one_a_row,),
        "a prompt, a reply, and a label, a score or a rank, as columns: {prompt: COLUMN, reply: COLUMN, score: COLUMN}",
    ),
    (
        {"replies", "score", "rank"},
        (ranked, side_by_side, one_a_row, best_first),
        "{replies: answers.answer, rank: answers.rank} of a list of replies, or {reply: COLUMN, score: COLUMN}",
    ),
)
"""The forms that are asked where settings name some of these columns, and what they need."""

_LABELLED: Final = (
    ({"prompt_id", "score_chosen", "score_rejected"}, "is labelled by GPT-4 (UltraFeedback)"),
    ({"chosen_avg_rating", "rejected_avg_rating"}, "is labelled by GPT-4 (UltraFeedback)"),
    ({"chosen-rating", "rejected-rating"}, "is labelled by GPT-4 (UltraFeedback)"),
    ({"instruction", "models", "completions"}, "is labelled by GPT-4 (UltraFeedback)"),
    ({"answers", "good_natured"}, "is labelled by GPT-4 (Nectar)"),
    ({"new_generations", "rating_chosen"}, "is labelled by GPT-4 (Capybara)"),
    ({"labelling_model", "original_chosen"}, "is labelled by GPT-4 (Orca)"),
    ({"system", "question", "chosen", "rejected"}, "is compared by nobody: GPT-4's reply is the chosen one (Orca)"),
    ({"init_prompt", "critic_prompt"}, "is compared by nobody: a model's revision is the chosen one"),
)
"""Columns of public sets that people did not label, and who did."""
_MODELS: Final = re.compile(r"gpt|claude|gemini|llama|mistral|mixtral|qwen|alpaca_eval", re.IGNORECASE)
"""Raters that are models."""

_OF_ROWS: Final = (BadRowError, AttributeError, TypeError, LookupError, ValueError)
"""What is raised where a row is not of the form of the first."""

MOST_TOGETHER: Final = 1000
"""Rows of one conversation: K replies are K(K−1)/2 pairs, and stand in memory."""


def _labelled(form: PairForm, row: Row) -> str:
    """Who labelled a file that begins with this row, where it was a model."""
    rater = str(row.get(form.columns.get("rater", ""), ""))
    if _MODELS.search(rater):
        return f"is labelled by {' '.join(rater.split())[:80]}"
    return next((said for columns, said in _LABELLED if columns <= row.keys()), "")


class PreferenceReader(PairReader):
    """Recognises a file of preferences, and reads its rows."""

    def form_of(self, row: Row) -> PairForm | None:
        """The form of the file that begins with this row; None where it holds no preferences.

        Raises:
            BadRowError: it is a known set that holds no pairs.
        """
        if {"argument", "rating_initial", "rating_final"} <= row.keys():
            raise BadRowError(
                "is Anthropic/persuasion, which has one argument a row with ratings before and after: it is not "
                "pairwise, and nobody compares two replies; take a set of pairs"
            )
        if problem := self.file.check_columns(row):
            raise BadRowError(problem)
        given = self.file.columns
        forms, needed = next(((forms, needed) for roles, forms, needed in _NAMED if roles & given.keys()), (_FORMS, ""))
        form = next((form for recognise in forms if (form := recognise(self, row))), None)
        if form and (problem := self.file.check_read(form.columns, form.name, form.keys)):
            raise BadRowError(problem)
        if form is None and (problem := several_replies(row)):
            raise BadRowError(problem)
        if form is None and needed:
            raise BadRowError(f"is not read as 'columns' says ({', '.join(given)}); expected {needed}")
        if form:
            form.labelled = _labelled(form, row)
            self.columns = form.columns
        return form

    def candidates(self, form: PairForm, rows: Iterable[tuple[int, Any]]) -> Iterator[tuple[int, Sequence[Candidate]]]:
        """The candidates of each row, with the row's number; rows that belong together give theirs at the last.

        Raises:
            BadRowError: a row is not of the form; its second argument is the row's number.
        """
        if form.together is not None:
            yield from self._grouped(form, form.together, rows)
            return
        for number, row in rows:
            try:
                yield number, form.read(number, row)
            except _OF_ROWS as error:
                raise BadRowError(self._problem(form, row, error), number) from error

    def _grouped(
        self, form: PairForm, together: Callable[[Row], object], rows: Iterable[tuple[int, Any]]
    ) -> Iterator[tuple[int, Sequence[Candidate]]]:
        def key(numbered: tuple[int, Any]) -> object:
            number, row = numbered
            try:
                return together(row)
            except _OF_ROWS as error:
                raise BadRowError(self._problem(form, row, error), number) from error

        for _, members in groupby(rows, key):
            group = list(islice(members, MOST_TOGETHER + 1))
            first, row = group[0]
            if len(group) > MOST_TOGETHER:
                raise BadRowError(f"begins more than {MOST_TOGETHER:,} rows of one conversation; expected fewer", first)
            try:
                made = form.read(first, {"rows": group})
            except _OF_ROWS as error:
                number = error.args[1] if isinstance(error, BadRowError) and len(error.args) > 1 else first
                raise BadRowError(self._problem(form, row, error), number) from error
            for number, _ in group[:-1]:
                yield number, []
            yield group[-1][0], made

    def _problem(self, form: PairForm, row: object, error: Exception) -> str:
        """What is wrong with a row."""
        columns = ", ".join(f"'{column}'" for column in form.columns.values())
        if not isinstance(row, dict):
            return f"is {type(row).__name__}; expected an object with {columns}, as in the rows before ({form.name})"
        if isinstance(error, BadRowError):
            return str(error.args[0])
        problem = f"it has no {error}" if isinstance(error, KeyError) else error
        return f"is no row of {form.name}: {problem}; expected {columns}, of the types of the first row"
