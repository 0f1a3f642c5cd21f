"""Preferences of every public set, recognised by their columns.

A file's first row decides what the file is: a `PairForm` says how each column is read, and turns rows into candidates.
A candidate is two replies to one conversation and what somebody says of them; it is in exactly one class. Columns that
a form does not name are ignored. Nothing is guessed from texts: a file that no form fits is refused.
"""

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations, groupby
from typing import Any, Final

from constitutional.base.jsonl import BadTextError, parse, shortened
from constitutional.base.text import same_text
from constitutional.data.candidates import (
    SIDES,
    Candidate,
    Choice,
    Class,
    Opinion,
    Row,
    Vote,
    alike,
    choice_of,
    has_silent_turn,
    plainly_different,
    preferred,
    ranked_choice,
    response_of,
    selected,
    signed_opinion,
    two_columns,
    votes_flat,
    votes_nested,
)
from constitutional.data.sources import DataFile
from constitutional.data.turns import (
    BadRowError,
    Conversation,
    Side,
    Turns,
    as_json_safe,
    common_start,
    is_blank,
    is_transcript,
    spoken,
)

CHOSEN: Final = (
    ("chosen", "rejected"),
    ("chosen_response", "rejected_response"),
    ("preferred_output", "non_preferred_output"),
    ("preferred", "dispreferred"),
    ("response_chosen", "response_rejected"),
    ("chosen_answer", "rejected_answer"),
    ("better", "worse"),
)
"""Columns of the better and the worse reply."""
SCORES: Final = tuple(
    (form.format(better), form.format(worse))
    for better, worse in (("chosen", "rejected"),)
    for form in ("score_{}", "{}_score", "{}-rating", "{}_rating", "{}_avg_rating")
)
PROMPTS: Final = (
    *("prompt", "prompt_conversation", "instruction", "question", "query", "messages", "conversations"),
    *("conversation", "context", "input", "history", "post"),
)
"""Columns of the conversation before the replies, in the order in which they are looked for."""
INPUTS: Final = ("input", "context")
"""Columns that go on from an instruction or a question."""
SYSTEMS: Final = ("system", "system_prompt", "system_message")
VERDICTS: Final = (
    *("winner", "preferred_text", "preference", "preferred", "choice", "label", "better", "vote", "verdict"),
    "preferred_response",
)
"""Columns that name the better side."""
SIGNED: Final = ("preference_strength", "overall_preference")
"""Columns with a strength that is negative where the first reply is better."""
LISTS: Final = ("answers", "completions", "responses", "candidates", "outputs", "replies", "generations")
LISTED: Final = ("answer", "completion", "response", "output", "text", "reply", "generation", "content")
RATED: Final = ("overall_score", "score", "rating", "reward")
SAFETY: Final = {"better_response_id": "helpfulness", "safer_response_id": "safety"}
"""PKU-SafeRLHF's two verdicts, and the principles that they are by."""


@dataclass
class PairForm:
    """How the rows of a file are read."""

    name: str
    """The set or the format."""
    columns: dict[str, str]
    """The file's column by what it is read as."""
    read: Callable[[int, Row], Sequence[Candidate]]
    """The candidates of a row, or of rows that belong together."""
    together: str = ""
    """The column by which rows that stand one after the other belong together; their list is then read as one."""
    warnings: list[str] = field(default_factory=list)


class PreferenceReader:
    """Recognises a file of preferences, and reads its rows.

    `notes` counts what deserves a warning.
    """

    def __init__(self, file: DataFile, *, texts: bool = False) -> None:
        """Read rows by the settings of a file.

        Args:
            file: names columns and the probabilities of strengths.
            texts: numbers stand as texts, as in CSV.
        """
        self.file = file
        self.texts = texts
        self.turns = Turns()
        self.notes = self.turns.notes

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
        if self.file.columns.keys() & {"chosen", "rejected"}:
            return self._chosen(row)
        if self.file.columns.keys() & {"response_a", "response_b", "winner"}:
            return self._two_sides(row)
        forms = (
            *(self._annotated_pairs, self._label_studio, self._argilla, self._tinker, self._chosen, self._arena_texts),
            *(self._two_sides, self._ranked, self._vertical),
        )
        return next((form for recognise in forms if (form := recognise(row))), None)

    def candidates(self, form: PairForm, rows: Iterable[tuple[int, Any]]) -> Iterator[tuple[int, Sequence[Candidate]]]:
        """The candidates of each row, with the row's number; rows that belong together give theirs at the last.

        Raises:
            BadRowError: a row is not of the form; its second argument is the row's number.
        """
        if form.together:
            yield from self._grouped(form, rows)
            return
        for number, row in rows:
            try:
                yield number, form.read(number, row)
            except (BadRowError, AttributeError, TypeError) as error:
                raise BadRowError(self._problem(form, row, error), number) from error

    def _grouped(self, form: PairForm, rows: Iterable[tuple[int, Any]]) -> Iterator[tuple[int, Sequence[Candidate]]]:
        last = 0

        def key(numbered: tuple[int, Any]) -> str:
            nonlocal last
            last, row = numbered
            if not isinstance(row, dict) or form.together not in row:
                raise BadRowError(self._problem(form, row, BadRowError(f"has no '{form.together}'")), last)
            value = row[form.together]
            return value if isinstance(value, str) else json.dumps(value, default=str)

        for _, members in groupby(rows, key):
            group = list(members)
            try:
                made = form.read(group[0][0], {"rows": group})
            except (BadRowError, AttributeError, TypeError) as error:
                raise BadRowError(self._problem(form, group[0][1], error), group[0][0]) from error
            for number, _ in group[:-1]:
                yield number, []
            yield group[-1][0], made

    def _problem(self, form: PairForm, row: object, error: Exception) -> str:
        """What is wrong with a row."""
        columns = ", ".join(f"'{column}'" for column in form.columns.values())
        if not isinstance(row, dict):
            return f"is {type(row).__name__}; expected an object with {columns}, as in the rows before ({form.name})"
        if isinstance(error, BadRowError):
            return str(error)
        return f"is no row of {form.name}: {error}; expected {columns}, of the types of the first row"

    # --- What all forms share ---

    def candidate(self, number: int, a: Side, b: Side, opinion: Opinion) -> Candidate:
        """Two replies and an opinion on them, in its class."""
        choice, strength = opinion.choice, opinion.strength
        label: Class
        if a.context is not b.context and not alike(a.context, b.context):
            label = "different_contexts"
        elif is_blank(a.reply) or is_blank(b.reply) or has_silent_turn(a.context):
            label = "empty"
        elif a.reply == b.reply or (not plainly_different(a.reply, b.reply) and same_text(a.reply, b.reply)):
            label = "equal"
        elif choice is None:
            label = "unlabelled"
        else:
            label = "preference" if choice in ("a", "b") else choice  # type: ignore[assignment]
        if opinion is _CHOSEN:
            return Candidate(number, a.context, a.reply, b.reply, label)
        first, second = (b.reply, a.reply) if choice == "b" else (a.reply, b.reply)
        probability = opinion.probability
        if choice not in ("a", "b"):
            probability = 0.5
        elif probability is None:
            probability = self.file.strengths.get(strength, 1.0) if strength else 1.0
            if probability == 0.5 and label == "preference":
                label = "tie"
        signs = tuple(-strength for strength in opinion.raters) if choice != "b" else opinion.raters
        about = (opinion.weight, opinion.rater, signs, opinion.principle, opinion.source)
        return Candidate(number, a.context, first, second, label, probability, *about)

    def prompt_columns(self, row: Row) -> dict[str, str]:
        """The columns of the conversation that the replies answer, by what they are read as."""
        given = self.file.columns
        names = (given["prompt"],) if "prompt" in given else PROMPTS
        if not isinstance(row.get(names[0]), str | list | dict | None):
            raise BadRowError(f"'{names[0]}' is {as_json_safe(row[names[0]])}; expected a text or messages")
        column = next((name for name in names if isinstance(row.get(name), str | list | dict)), None)
        if column is None:
            return {}
        columns = {"prompt": column}
        # An "input" that goes on from an instruction, unless it is the conversation itself.
        inputs = (given["input"],) if "input" in given else INPUTS if column in ("instruction", "question") else ()
        systems = (given["system"],) if "system" in given else SYSTEMS
        for role, candidates in (("input", inputs), ("system", systems)):
            if more := next(
                (name for name in candidates if isinstance(row.get(name), str | None) and name in row), None
            ):
                columns[role] = more
        return columns

    def context(self, row: Row, columns: Mapping[str, str]) -> Conversation:
        """The conversation that the replies answer.

        Raises:
            BadRowError: it is none.
        """
        column = columns.get("prompt")
        if column is None:
            return ()
        if column not in row and _OTHER.get(column) in row:
            column = _OTHER[column]  # our own rows have either
        if column not in row:
            raise BadRowError(f"has no '{column}', which the first row has; expected it in every row")
        turns = self.turns.prompt(row[column], column)
        if "input" in columns and (more := row.get(columns["input"])):
            last = turns[-1]
            turns = (*turns[:-1], type(last)(last.role, f"{last.content}\n{self.text(more, columns['input'])}"))
        if "system" in columns and (system := row.get(columns["system"])) and turns[:1] and turns[0].role != "system":
            turns = (type(turns[0])("system", self.text(system, columns["system"])), *turns)
        return turns

    def text(self, value: object, name: str) -> str:
        """A text; nothing where there is none."""
        if not isinstance(value, str | None):
            raise BadRowError(f"'{name}' is {type(value).__name__}; expected text")
        return value or ""

    def number(self, value: object, name: str) -> float | None:
        """A number; None where there is none."""
        if value is None or (self.texts and value == ""):
            return None
        if self.texts and isinstance(value, str):
            try:
                return float(value)
            except ValueError:
                pass
        if isinstance(value, bool):
            return float(value)
        if not isinstance(value, int | float) or math.isnan(value):
            raise BadRowError(f"'{name}' is {as_json_safe(value)}; expected a number")
        return float(value)

    # --- chosen and rejected ---

    def _chosen(self, row: Row) -> PairForm | None:
        """One column of better and one of worse replies: TRL, hh-rlhf, UltraFeedback, OpenAI, LlamaFactory, axolotl."""
        given = self.file.columns
        pairs = (
            [(given.get("chosen", "chosen"), given.get("rejected", "rejected"))]
            if given.keys()
            & {
                "chosen",
                "rejected",
            }
            else CHOSEN
        )
        pair = next((pair for pair in pairs if pair[0] in row and pair[1] in row), None)
        if pair is None or any(_is_list_of_texts(row[column]) for column in pair):
            return None
        prompt = self.prompt_columns(row)
        scores = next((names for names in SCORES if names[0] in row and names[1] in row), None)
        columns = {**prompt, "chosen": pair[0], "rejected": pair[1]}
        if scores:
            columns |= {"score of chosen": scores[0], "score of rejected": scores[1]}
        own = self._own_columns(row)
        columns |= {role: column for role, column in own.items() if column in row and not scores}
        kinds = _Kinds(pair)
        nameless = not prompt and "prompt" in row  # our own rows of pairs whose prompt nobody knows

        plain = len(prompt) + len(pair)

        def read(number: int, row: Row) -> Sequence[Candidate]:
            first, second = kinds.of(row)
            if not prompt and (row.get("prompt") is not None or "messages" in row):
                raise BadRowError("has a prompt beside the replies, and the first row has none; expected one form")
            if not prompt and not nameless and isinstance(first, str) and isinstance(second, str):
                a, b = self._without_prompt(first, second, pair)
            else:
                context = () if begins_itself(first) and "system" not in prompt else self.context(row, prompt)
                a, b = self.turns.sides((first, second), pair, context)
                if prompt and not a.context:
                    raise BadRowError(f"'{prompt['prompt']}' holds no message; it does not end with a user's message")
            if scores is not None:
                return (self.candidate(number, a, b, self._scored(row, scores)),)
            return (self.candidate(number, a, b, self._own(row, own) if len(row) > plain else _CHOSEN),)

        return PairForm(_name_of_chosen(row, pair, prompt, scores), columns, read)

    def _without_prompt(self, first: str, second: str, names: tuple[str, str]) -> tuple[Side, Side]:
        if is_transcript(first) or is_transcript(second):
            return self.turns.transcripts(first, second, names)
        end = common_start(first, second)
        if is_blank(first[:end]):
            # Nothing is shared, so nothing tells what is answered.
            self.notes["rows without a prompt whose replies share no beginning"] += 1
            return Side(self.turns.prompt(first, names[0]), first), Side(self.turns.prompt(second, names[1]), second)
        context = self.turns.prompt(first[:end], names[0])
        return Side(context, first[end:]), Side(context, second[end:])

    def _own_columns(self, row: Row) -> dict[str, str]:
        """The columns of our own rows, and of those that `export` writes, by what they are read as."""
        given = self.file.columns
        own = {role: given.get(role, role) for role in _OWN}
        if row.get("source") in ("ai", "human") and own["probability"] in row:
            own["source"] = "source"
        return own

    def _own(self, row: Row, own: Mapping[str, str]) -> Opinion:
        """What our own rows say beside the replies."""
        probability = row.get(own["probability"])
        rater, principle, weight = (row.get(own[role]) for role in ("rater", "principle", "weight"))
        source: Any = row.get(own["source"]) if "source" in own else "human"
        if probability is None and rater is None and principle is None and weight is None:
            return _CHOSEN
        if source not in ("ai", "human"):
            raise BadRowError(f'\'source\' is {as_json_safe(source)}; expected "ai" or "human", as in the first row')
        value = 1.0 if probability is None else self._between(probability, own["probability"], 0.5)
        share = 1.0 if weight is None else self._between(weight, own["weight"], 0.0)
        if not isinstance(rater, str | None):
            raise BadRowError(f"'{own['rater']}' is {rater!r}; expected a name, as text")
        choice: Choice = "tie" if value == 0.5 else "a"
        by = self.text(principle, own["principle"])
        return Opinion(choice, rater=rater or "", principle=by, probability=value, weight=share, source=source)

    def _between(self, value: object, name: str, least: float) -> float:
        number = None if isinstance(value, bool) else self.number(value, name)
        if number is None or not least <= number <= 1 or not number:
            expected = "expected that chosen is better, 0.5 to 1; below 0.5, swap chosen and rejected"
            raise BadRowError(f"'{name}' is {value!r}; {expected if least else 'expected a share above 0, at most 1'}")
        return number

    def _scored(self, row: Row, names: tuple[str, str]) -> Opinion:
        better, worse = self.number(row.get(names[0]), names[0]), self.number(row.get(names[1]), names[1])
        if "score_chosen" in names and 10 in (better, worse):
            self.notes[
                "rows with the score 10, which UltraFeedback wrote for many replies whose score was 1; look at them"
            ] += 1
        if better is None or worse is None:
            return _CHOSEN
        if better < worse:
            self.notes[
                f"rows with a lower '{names[0]}' than '{names[1]}', which are read as the columns of replies say"
            ] += 1
        return Opinion("tie") if better == worse else _CHOSEN

    # --- Two sides and a verdict ---

    def _two_sides(self, row: Row) -> PairForm | None:
        """Two columns of replies, and columns that say which is better."""
        given = self.file.columns
        sides = two_columns(row, given)
        if sides is None:
            return None
        prompt = self.prompt_columns({name: value for name, value in row.items() if name not in sides})
        verdicts, columns = self._verdicts(row, sides)
        if not verdicts and not prompt:
            return None
        kinds = _Kinds(sides)

        def read(number: int, row: Row) -> Sequence[Candidate]:
            first, second = kinds.of(row)
            context = self.context(row, prompt)
            a, b = self.turns.side(first, sides[0], context), self.turns.side(second, sides[1], context)
            opinions = verdicts(row) if verdicts else (Opinion(None),)
            return [self.candidate(number, a, b, opinion) for opinion in opinions]

        columns = {**prompt, "response_a": sides[0], "response_b": sides[1], **columns}
        return PairForm(_name_of_sides(row, sides), columns, read)

    def _verdicts(
        self, row: Row, sides: tuple[str, str]
    ) -> tuple[Callable[[Row], Iterable[Opinion]] | None, dict[str, str]]:
        """What reads the opinions of a row, and the columns that it reads."""
        given = self.file.columns
        rater = {"rater": given.get("rater", "rater")} if given.get("rater", "rater") in row else {}
        if "winner" not in given and "winner_model_a" in row and "winner_model_b" in row:
            flags = [name for name in ("winner_model_a", "winner_model_b", "winner_tie") if name in row]
            return lambda row: [self._flagged(row, flags)], {f"winner {flag[7:]}": flag for flag in flags}
        if "winner" not in given and SAFETY.keys() & row.keys():
            columns = {f"winner by {principle}": name for name, principle in SAFETY.items() if name in row}
            return lambda row: self._safe(row, sides), columns
        names = (given["winner"],) if "winner" in given else (*SIGNED, *VERDICTS)
        column = next((name for name in names if name in row and not isinstance(row[name], list | dict)), None)
        if column is None:
            return self._by_scores(row, sides)
        single = next((name for name in ("individual_preference", "all_preferences_unprocessed") if name in row), "")
        columns = {"winner": column, **({"raters": single} if single else {}), **rater}
        # A number names a side where the sides have numbers from 0; elsewhere it is a strength.
        is_number = isinstance(row[column], int | float) and not isinstance(row[column], bool)
        signed = column in SIGNED or (is_number and not sides[0].endswith("0"))

        def read(row: Row) -> Iterable[Opinion]:
            who = row.get(rater["rater"]) if rater else ""
            if column not in row:
                raise BadRowError(f"has no '{column}', which the first row has; expected it in every row")
            if signed:
                strength = self.number(row[column], column)
                opinion = signed_opinion(strength, column)._replace(raters=self._raters(row.get(single)))
            else:
                opinion = Opinion(choice_of(row[column], sides, column))
            return (opinion._replace(rater=str(who)) if who else opinion,)

        return read, columns

    def _by_scores(
        self, row: Row, sides: tuple[str, str]
    ) -> tuple[Callable[[Row], Iterable[Opinion]] | None, dict[str, str]]:
        """Scores of both sides, such as `score_0` and `score_1`."""
        ends = [match["side"] for name in sides if (match := SIDES.fullmatch(name))]
        for stem in ("score", "rating", "reward"):
            names = [f"{stem}_{end}" for end in ends]
            if len(names) == 2 and all(name in row for name in names):

                def read(row: Row, names: Sequence[str] = tuple(names)) -> Iterable[Opinion]:
                    a, b = (self.number(row.get(name), name) for name in names)
                    if a is None or b is None:
                        return (Opinion(None),)
                    return (Opinion("a" if a > b else "b" if b > a else "tie"),)

                return read, {"score of response_a": names[0], "score of response_b": names[1]}
        return None, {}

    def _flagged(self, row: Row, flags: Sequence[str]) -> Opinion:
        """One of three columns is 1."""
        values = [self.number(row.get(flag), flag) for flag in flags]
        choices: tuple[Choice, ...] = ("a", "b", "tie")
        marked = [choice for choice, value in zip(choices, values, strict=False) if value]
        if len(marked) > 1 or any(value not in (None, 0, 1) for value in values):
            raise BadRowError(f"'{flags[0]}' and the columns beside it are {values}; expected a 1 in one of them")
        return Opinion(marked[0] if marked else None)

    def _safe(self, row: Row, sides: tuple[str, str]) -> Iterator[Opinion]:
        """PKU-SafeRLHF's verdicts by two principles, which may disagree."""
        if all(row.get(f"is_response_{side}_safe") is False for side in (0, 1)):
            self.notes["rows with two unsafe replies, whose verdict on safety says which is the less harmful"] += 1
        for column, principle in SAFETY.items():
            if column in row:
                yield Opinion(choice_of(row[column], sides, column), principle=principle)

    def _raters(self, value: object) -> tuple[float, ...]:
        """Strengths of single raters, in HelpSteer's lists of objects."""
        if not isinstance(value, list):
            return ()
        found = [
            next((item[key] for key in ("score", "strength", "preference") if key in item), None)
            for item in value
            if isinstance(item, dict)
        ]
        return tuple(float(score) for score in found if isinstance(score, int | float))

    def _arena_texts(self, row: Row) -> PairForm | None:
        """The arena's 55k rows, whose columns hold lists of turns as JSON texts."""
        sides = ("response_a", "response_b")
        if not all(isinstance(row.get(name), str) and row[name].lstrip()[:1] == "[" for name in ("prompt", *sides)):
            return None
        verdicts, columns = self._verdicts(row, sides)

        def read(number: int, row: Row) -> Sequence[Candidate]:
            asked, first, second = (_texts_within(row, name) for name in ("prompt", *sides))
            a, b = (self._turn_by_turn(asked, replies) for replies in (first, second))
            opinions = verdicts(row) if verdicts else (Opinion(None),)
            return [self.candidate(number, a, b, opinion) for opinion in opinions]

        columns = {"prompt": "prompt", "response_a": sides[0], "response_b": sides[1], **columns}
        return PairForm("lmarena 55k", columns, read)

    def _turn_by_turn(self, asked: Sequence[str], replies: Sequence[str]) -> Side:
        if len(asked) != len(replies):
            raise BadRowError(f"'prompt' has {len(asked)} turns and a response {len(replies)}; expected as many")
        turns = [
            {"role": role, "content": text}
            for pair in zip(asked, replies, strict=True)
            for role, text in zip(("user", "assistant"), pair, strict=True)
        ]
        return self.turns.side(turns, "prompt", ())

    def _tinker(self, row: Row) -> PairForm | None:
        """A comparison within an object, and a label beside it."""
        inner = row.get("comparison")
        if not isinstance(inner, dict):
            return None
        form = self._two_sides({**inner, **{key: value for key, value in row.items() if key != "comparison"}})
        if form is None:
            return None
        read, columns = form.read, {role: _within(name, inner) for role, name in form.columns.items()}

        def nested(number: int, row: Row) -> Sequence[Candidate]:
            inner = row.get("comparison")
            if not isinstance(inner, dict):
                raise BadRowError(f"'comparison' is {as_json_safe(inner)}; expected an object with two completions")
            return read(number, {**inner, **{key: value for key, value in row.items() if key != "comparison"}})

        return PairForm("tinker", columns, nested)

    # --- Ranks and scores ---

    def _ranked(self, row: Row) -> PairForm | None:
        """A list of replies with ranks (Nectar, NeMo-RL) or with scores (UltraFeedback)."""
        column = next((name for name in LISTS if _is_list_of_objects(row.get(name))), None)
        if column is None:
            return None
        item = row[column][0]
        text = next((key for key in LISTED if isinstance(item.get(key), str | list | dict)), None)
        order = next((key for key in ("rank", *RATED) if key in item), None)
        if text is None or order is None:
            return None
        prompt = self.prompt_columns({name: value for name, value in row.items() if name != column})
        sign = 1 if order == "rank" else -1  # the first rank and the highest score are best
        own = self._own_columns(row)
        own = own if "source" in own else {}

        def read(number: int, row: Row) -> Sequence[Candidate]:
            items = row.get(column)
            if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
                raise BadRowError(f"'{column}' is {as_json_safe(items)}; expected a list of objects with '{text}'")
            context = self.context(row, prompt)
            replies = []
            for item in items:
                value = self.number(item.get(order), f"{column}.{order}")
                replies.append((self._listed(item, text, column, context), value))
            pairs = list(self._all_pairs(number, replies, sign))
            if own and len(pairs) == 1 and pairs[0].label == "preference":
                return [self._as_exported(pairs[0], self._own(row, own))]
            return pairs

        name = "Nectar" if column == "answers" else "NeMo-RL" if "context" in row else f"ranks by '{order}'"
        columns = {**prompt, "replies": f"{column}.{text}", "order": f"{column}.{order}"}
        columns |= {role: own[role] for role in ("probability", "source") if own}
        return PairForm(name, columns, read)

    def _as_exported(self, pair: Candidate, opinion: Opinion) -> Candidate:
        """A preference with the probability and the source that an exported row says."""
        probability = 1.0 if opinion.probability is None else opinion.probability
        label: Class = "tie" if probability == 0.5 else "preference"
        return pair._replace(label=label, probability=probability, source=opinion.source)

    def _listed(self, item: Row, text: str, column: str, context: Conversation) -> Side:
        if text not in item:
            raise BadRowError(f"'{column}' has an entry without '{text}', which the first row has")
        return self.turns.side(item[text], f"{column}.{text}", context)

    def _all_pairs(
        self, number: int, replies: Sequence[tuple[Side, float | None]], sign: int, *, strengths: bool = False
    ) -> Iterator[Candidate]:
        """Every pair of K replies, with the weight of one comparison shared among the K(K−1)/2 pairs."""
        weight = 2 / (len(replies) * (len(replies) - 1)) if len(replies) > 1 else 1.0
        for (a, first), (b, second) in combinations(replies, 2):
            if first is None or second is None:
                opinion = Opinion(None, weight=weight)
            else:
                difference = sign * (second - first)
                choice: Choice = "a" if difference > 0 else "b" if difference < 0 else "tie"
                opinion = Opinion(choice, round(abs(difference)) if strengths else 0, weight=weight)
            yield self.candidate(number, a, b, opinion)

    # --- One reply a row ---

    def _vertical(self, row: Row) -> PairForm | None:
        """One reply a row with a score (HelpSteer2) or with a label (TRL's unpaired rows, LlamaFactory's KTO)."""
        reply = next(
            (name for name in ("completion", "response", "output") if isinstance(row.get(name), str | list)), None
        )
        judged = next((name for name in ("helpfulness", "label", "kto_tag") if name in row), None)
        if reply is None or judged is None or (judged != "helpfulness" and not self._is_truth(row[judged])):
            return None
        prompt = self.prompt_columns({name: value for name, value in row.items() if name != reply})
        if not prompt:
            return None

        def read(number: int, group: Row) -> Sequence[Candidate]:
            replies = []
            for _, member in group["rows"]:
                if reply not in member:
                    raise BadRowError(f"has no '{reply}', which the first row has; expected it in every row")
                side = self.turns.side(member[reply], reply, self.context(member, prompt))
                replies.append((side, self._judged(member.get(judged), judged)))
            if len(replies) == 1:
                self.notes[f"rows that stand alone, as no row beside them has the same '{prompt['prompt']}'"] += 1
            if judged == "helpfulness":
                return list(self._all_pairs(number, replies, -1, strengths=True))
            # Two good replies are no pair, nor are two bad ones.
            pairs = [pair for pair in combinations(replies, 2) if pair[0][1] != pair[1][1]]
            return [
                self.candidate(number, a, b, Opinion("a" if good else "b", weight=1 / len(pairs)))
                for (a, good), (b, _) in pairs
            ]

        columns = {**prompt, "reply": reply, "score" if judged == "helpfulness" else "label": judged}
        return PairForm("HelpSteer2" if judged == "helpfulness" else "TRL unpaired", columns, read, prompt["prompt"])

    def _is_truth(self, value: object) -> bool:
        return value in (True, False) or (self.texts and str(value).lower() in ("true", "false"))

    def _judged(self, value: object, name: str) -> float | None:
        if self.texts and str(value).lower() in ("true", "false"):
            return float(str(value).lower() == "true")
        return self.number(value, name)

    # --- Tools in which people vote ---

    def _annotated_pairs(self, row: Row) -> PairForm | None:
        """AnnotatedPairs 1.0 and 2.0, of ICAI and Feedback Forensics."""
        if not isinstance(row.get("annotations"), dict) or not isinstance(row.get("annotators"), dict):
            return None

        def read(number: int, row: Row) -> Sequence[Candidate]:
            context = self._asked(row) or (self.context(row, {"prompt": "prompt"}) if row.get("prompt") else ())
            a, b = (self.turns.side(response_of(row, side), f"response_{side}", context) for side in "ab")
            return [self.candidate(number, a, b, opinion) for opinion in self._annotations(row) or [Opinion(None)]]

        names = ("text_a", "text_b") if "text_a" in row else ("response_a.text", "response_b.text")
        columns = {"prompt": "prompt", "response_a": names[0], "response_b": names[1], "winner": "annotations.*.pref"}
        return PairForm("AnnotatedPairs", columns, read)

    def _asked(self, row: Row) -> Conversation:
        """The conversation of a row that this project wrote; empty for rows of others."""
        about = row.get("metadata")
        if not isinstance(about, dict) or "left_is" not in about:
            return ()
        if about.get("messages") is not None:
            return self.turns.messages(about["messages"], "metadata.messages")
        return spoken(self.text(row.get("prompt"), "prompt"))

    def _annotations(self, row: Row) -> list[Opinion]:
        """What people, and the data set's own annotator, say; principles are no raters."""
        metadata, annotators = row.get("metadata"), row["annotators"]
        default = metadata.get("default_annotator") if isinstance(metadata, dict) else None
        opinions = []
        for name, annotation in row["annotations"].items():
            about = annotators.get(name)
            kind = about.get("type") if isinstance(about, dict) else None
            if name != default and kind != "human":
                self.notes["annotations that are neither by people nor by the default annotator, and are left out"] += 1
            elif not isinstance(annotation, dict):
                raise BadRowError(f"an annotation is {shortened(annotation)}; expected an object with 'pref'")
            else:
                rater = "" if name == default else str(about.get("name") or name) if isinstance(about, dict) else name
                probability = annotation.get("probability")
                own = isinstance(metadata, dict) and "left_is" in metadata
                opinions.append(
                    Opinion(
                        preferred(annotation),
                        rater=rater,
                        probability=None if probability is None else self._between(probability, "probability", 0.5),
                        source="ai" if own and name == default and kind == "unknown" else "human",
                    )
                )
        return opinions

    def _label_studio(self, row: Row) -> PairForm | None:
        """Label Studio's export as JSON: tasks with the annotations of several people."""
        annotations = row.get("annotations", row.get("completions", row.get("predictions")))
        if not isinstance(row.get("data"), dict) or not isinstance(annotations, list):
            return None
        sides = two_columns(row["data"], self.file.columns)
        if sides is None:
            return None
        others = {name: value for name, value in row["data"].items() if name not in sides}
        prompt = self.prompt_columns(others)

        def read(number: int, row: Row) -> Sequence[Candidate]:
            data = row.get("data")
            if not isinstance(data, dict) or any(name not in data for name in sides):
                raise BadRowError(f"'data' has no '{sides[0]}' and '{sides[1]}', which the first row has")
            about = row.get("meta")
            context = self._exported_prompt(about) or self.context(data, prompt)
            a, b = (self.turns.side(data[name], name, context) for name in sides)
            annotations = row.get("annotations", row.get("completions"))
            opinions = [selected(annotation) for annotation in annotations or []]
            opinions = opinions or [
                self._exported(about, selected(prediction)) for prediction in row.get("predictions") or []
            ]
            opinions = opinions or [Opinion(None)]
            return [self.candidate(number, a, b, opinion) for opinion in opinions]

        columns = {**prompt, "response_a": sides[0], "response_b": sides[1]}
        columns = {role: f"data.{name}" for role, name in columns.items()}
        return PairForm("Label Studio", columns | {"winner": "annotations.result.value.selected"}, read)

    def _argilla(self, row: Row) -> PairForm | None:
        """Argilla's records, flat or nested."""
        flat = [name.removesuffix(".responses") for name in row if name.endswith(".responses")]
        nested = isinstance(row.get("fields"), dict) and "responses" in row
        if not flat and not nested:
            return None
        sides = two_columns(row["fields"] if nested else row, self.file.columns)
        if sides is None:
            return None
        fields = row["fields"] if nested else row
        prompt = self.prompt_columns({name: value for name, value in fields.items() if name not in sides})

        def read(number: int, row: Row) -> Sequence[Candidate]:
            fields = row["fields"] if nested else row
            kinds = _Kinds(sides)
            first, second = kinds.of(fields)
            about = row.get("metadata") if nested else None
            context = self._exported_prompt(about) or self.context(fields, prompt)
            a, b = self.turns.side(first, sides[0], context), self.turns.side(second, sides[1], context)
            votes = list(votes_nested(row) if nested else votes_flat(row, flat))
            opinions = self._votes(votes, sides) or [self._suggested(row, about, sides)]
            return [self.candidate(number, a, b, opinion) for opinion in opinions]

        columns = {**prompt, "response_a": sides[0], "response_b": sides[1]}
        columns = {role: f"fields.{name}" for role, name in columns.items()} if nested else columns
        columns["winner"] = "responses" if nested else f"{flat[0]}.responses"
        return PairForm("Argilla", columns, read)

    def _exported_prompt(self, about: object) -> Conversation:
        """The conversation beside a task that `export` wrote, where its text does not tell the turns."""
        messages = about.get("messages") if isinstance(about, dict) else None
        if messages is None:
            return ()
        return self.turns.prompt(messages, "messages")

    def _exported(self, about: object, opinion: Opinion) -> Opinion:
        """The label that `export` wrote as a prediction or a suggestion; other tools' predictions are no labels."""
        if not isinstance(about, dict) or about.get("source") not in ("ai", "human"):
            return Opinion(None)
        probability = self._between(about.get("probability"), "probability", 0.5)
        return opinion._replace(rater="", probability=probability, source=about["source"])

    def _suggested(self, row: Row, about: object, sides: tuple[str, str]) -> Opinion:
        suggestions = row.get("suggestions")
        better = suggestions.get("better") if isinstance(suggestions, dict) else None
        if not isinstance(better, dict):
            return Opinion(None)
        return self._exported(about, Opinion(choice_of(better.get("value"), sides, "suggestions.better")))

    def _votes(self, votes: Sequence["Vote"], sides: tuple[str, str]) -> list[Opinion]:
        """The submitted votes on the first question that compares the sides."""
        opinions: dict[str, list[Opinion]] = {}
        for vote in votes:
            if vote.status not in (None, "submitted"):
                self.notes["drafts and discarded responses, which are no votes"] += 1
                continue
            try:
                choice = ranked_choice(vote.value, sides)
            except BadRowError:
                continue  # another question, such as a rating
            opinions.setdefault(vote.question, []).append(Opinion(choice, rater=str(vote.user or "")))
        return next(iter(opinions.values()), [])


class _Kinds:
    """The two columns of replies, which are of one type in all rows: texts, or messages."""

    def __init__(self, names: tuple[str, str]) -> None:
        self.names = names
        self.kind: type | None = None

    def of(self, row: Row) -> tuple[Any, Any]:
        """The two replies of a row.

        Raises:
            BadRowError: one is missing, or is of another type than those before.
        """
        first, second = self.names
        try:
            values = row[first], row[second]
        except KeyError as error:
            raise BadRowError(f"{error} is missing; expected text or messages, as in the first row") from error
        if type(values[0]) is self.kind is type(values[1]):
            return values
        for name, value in zip(self.names, values, strict=True):
            kind = list if isinstance(value, dict) else type(value)
            if value is None:
                continue
            if kind not in (str, list):
                raise BadRowError(f"'{name}' is {type(value).__name__}; expected text or messages")
            self.kind = self.kind or kind
            if kind is not self.kind:
                raise BadRowError(f"'{name}' is {kind.__name__}; expected {self.kind.__name__}, as in the rows before")
        return values


def begins_itself(reply: object) -> bool:
    """Whether a reply is a list of messages that begins with the conversation."""
    if not isinstance(reply, list) or len(reply) < 2 or not isinstance(reply[0], dict):
        return False
    return reply[0].get("role", reply[0].get("from")) in ("user", "human")


_CHOSEN: Final = Opinion("a")
_OWN: Final = ("probability", "rater", "principle", "weight")
"""Columns of our own rows beside the replies."""
_OTHER: Final = {"prompt": "messages", "messages": "prompt"}


def _within(name: str, inner: Row) -> str:
    return f"comparison.{name}" if name in inner else name


def _texts_within(row: Row, name: str) -> list[str]:
    """The texts of a JSON list that stands in a text."""
    value = row.get(name)
    try:
        texts = parse(value) if isinstance(value, str) else value
    except BadTextError as error:
        raise BadRowError(f"'{name}' {error}; expected a JSON list of texts") from error
    if not isinstance(texts, list) or not all(isinstance(text, str | None) for text in texts):
        raise BadRowError(f"'{name}' is {as_json_safe(value)}; expected a JSON list of texts")
    return [text or "" for text in texts]


def _is_list_of_texts(value: object) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], str)


def _is_list_of_objects(value: object) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict)


def _name_of_chosen(row: Row, pair: tuple[str, str], prompt: Mapping[str, str], scores: tuple[str, str] | None) -> str:
    texts, column = isinstance(row[pair[0]], str), prompt.get("prompt")
    names = {
        "OpenAI preference fine-tuning": pair[0] == "preferred_output",
        "argilla/ultrafeedback-binarized-preferences": pair[0] == "chosen_response" or "chosen-rating" in row,
        "HuggingFaceH4/ultrafeedback_binarized": scores is not None and "prompt_id" in row,
        "HuggingFaceH4/cai-conversation-harmless": "init_prompt" in row,
        "Anthropic/hh-rlhf": column is None and texts and is_transcript(row[pair[0]]),
        "TRL implicit": column is None,
        "LlamaFactory alpaca": column == "instruction",
        "messages with chosen and rejected replies": column in ("conversations", "messages"),
        "TRL explicit": True,
    }
    return next(name for name, fits in names.items() if fits)


def _name_of_sides(row: Row, sides: tuple[str, str]) -> str:
    known = {
        "PKU-SafeRLHF": "safer_response_id",
        "HelpSteer2 preference": "preference_strength",
        "HelpSteer3 preference": "overall_preference",
        "ICAI": "preferred_text",
        "tinker": "completion_A",
        "lmarena": "winner",
    }
    return next((name for name, column in known.items() if column in row), f"'{sides[0]}' and '{sides[1]}'")
