"""Measures a labeler by comparisons to which people gave the answer.

The published set are the 438 binary comparisons of Bai et al. 2022 (arXiv 2212.08073, Figure 4): conversations with two
answers, of which people chose one as the more helpful, honest and harmless. Two published baselines tell how much of an
accuracy is worth nothing: always (A), and always the longer answer. There are fewer conversations than comparisons, so
conversations are the clusters of the intervals. Any other file of comparisons made by people (`comparisons.py`) will do
as well.
"""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from constitutional.base.errors import InputError
from constitutional.base.records import Comparison, Message, Prompt
from constitutional.base.stats import Interval, clustered_share
from constitutional.base.text import canonical
from constitutional.data.comparisons import PAIRS, read_comparisons
from constitutional.data.sources import Rows

Side = Literal["a", "b"]

_OPTIONS = re.compile(r"Options:\n \(A\) \[\[\[(.*)\]\]\]\n \(B\) \[\[\[(.*)\]\]\]\n\nThe answer is:\s*\Z", re.DOTALL)
_TURN = re.compile(r"\n\n(Human|Assistant): ?")
_EXPECTED = (
    'a comparison with "prompt", which has options (A) and (B) in [[[ ]]], "corrects" [" (A)"] or [" (B)"], and '
    '"text_correct", the conversation with the right answer'
)


class Answered(NamedTuple):
    """A comparison and what people chose."""

    comparison: Comparison
    """a is the option (A)."""
    answer: Side


class AnsweredComparisons(NamedTuple):
    """The comparisons of a file, each once."""

    rows: list[Answered]
    undecided: int
    """Comparisons left out because people see no difference, or do not agree which is the better one."""


def load_answers(path: Path) -> AnsweredComparisons:
    """The comparisons of a file in the published set's form or in one of those that `read_comparisons` reads.

    The latter name no first response; there a and b stand in the order of their letters. Labels that the rows say are
    a model's are left out.

    Raises:
        InputError: a row is not of such a form, with its line; or there is none.
    """
    first = Rows(path, PAIRS).peek()
    if first and isinstance(first[1], dict) and "text_correct" in first[1]:
        return AnsweredComparisons(load_hhh(path), 0)
    rows: dict[str, Answered] = {}
    sides: defaultdict[str, set[Side | None]] = defaultdict(set)
    preferences = read_comparisons(path).preferences
    by_people = [preference for preference in preferences if preference.source == "human"]
    if not by_people:
        raise InputError(
            path, "holds a model's labels alone, which are no answers of people; expected people's choices"
        )
    for preference in by_people:
        a, b = sorted((preference.chosen, preference.rejected), key=canonical)
        answer: Side = "a" if a == preference.chosen else "b"
        rows.setdefault(preference.comparison, Answered(Comparison(prompt=preference.prompt, a=a, b=b), answer))
        sides[preference.comparison].add(answer if preference.probability > 0.5 else None)
    decided = [row for name, row in rows.items() if sides[name] == {row.answer}]
    if not decided:
        raise InputError(path, "holds no comparison of which people say which response is the better one")
    return AnsweredComparisons(decided, len(rows) - len(decided))


def load_hhh(path: Path) -> list[Answered]:
    """The comparisons of a file in the published set's form, in its order.

    Raises:
        InputError: a row is not of this form; with its line.
    """
    rows, answered = Rows(path, _EXPECTED), []
    for number, row in rows:
        try:
            answered.append(hhh_row(row if isinstance(row, dict) else {}, path.name))
        except ValueError as error:
            raise rows.place(number).error(f"is no comparison: {error}; expected {_EXPECTED}") from error
    if not answered:
        raise InputError(path, f"holds no comparison; expected {_EXPECTED}")
    return answered


def hhh_row(row: Mapping[str, object], source: str) -> Answered:
    """A row in the published set's form, from a file of that name.

    Raises:
        ValueError: it is not of this form.
    """
    prompt, correct, text = row.get("prompt"), row.get("corrects"), row.get("text_correct")
    options = _OPTIONS.search(prompt) if isinstance(prompt, str) else None
    if options is None or not isinstance(text, str):
        raise ValueError("there are no options (A) and (B)")
    answers: dict[str, Side] = {"(A)": "a", "(B)": "b"}
    answer = answers.get(str(correct[0]).strip()) if isinstance(correct, list) and correct else None
    if answer is None:
        raise ValueError("it is not said which option is correct")
    a, b = options[1], options[2]
    right = a if answer == "a" else b
    if not text.endswith(right):
        raise ValueError("text_correct does not end with the correct option")
    return Answered(Comparison(prompt=_prompt(text.removesuffix(right), source), a=a, b=b, model="hhh"), answer)


def _prompt(transcript: str, source: str) -> Prompt:
    r"""The conversation before an answer: `\n\nHuman: … \n\nAssistant: … \n\nHuman: … \n\nAssistant: `."""
    before, *parts = _TURN.split(transcript)
    speakers, texts = parts[::2], parts[1::2]
    turns = len(speakers)
    if before.strip() or not turns or speakers != ["Human", "Assistant"] * (turns // 2) or texts[-1].strip():
        raise ValueError("the conversation does not go from Human to Assistant by turns")
    messages = [
        Message("user" if speaker == "Human" else "assistant", text)
        for speaker, text in zip(speakers[:-1], texts[:-1], strict=True)
    ]
    return Prompt(messages=tuple(messages), split="held_out", source=source)


class Accuracy(NamedTuple):
    """The share of comparisons in which the answer was chosen."""

    right: int
    n: int
    share: float
    interval: Interval
    """95%, with conversations as clusters."""


def accuracy_of(rows: Sequence[Answered], p_a: Mapping[str, float | None]) -> Accuracy:
    """The share with P(correct) > P(incorrect), from the probability by comparison id that a is better.

    No probability, and a half, are not right.
    """
    probabilities = [p_a.get(row.comparison.id) for row in rows]
    return _accuracy(rows, [None if p is None or p == 0.5 else "a" if p > 0.5 else "b" for p in probabilities])


def always_first(rows: Sequence[Answered]) -> Accuracy:
    """The baseline that chooses (A): 228 of the 438, which is 52.05%."""
    return _accuracy(rows, ["a"] * len(rows))


def always_longer(rows: Sequence[Answered]) -> Accuracy:
    """The baseline that chooses the answer of more characters: 246 of the 438, which is 56.2%.

    Where both are equally long it chooses neither, and is not right.
    """
    longer = [len(row.comparison.a) - len(row.comparison.b) for row in rows]
    return _accuracy(rows, ["a" if more > 0 else "b" if more < 0 else None for more in longer])


def _accuracy(rows: Sequence[Answered], choices: Sequence[Side | None]) -> Accuracy:
    if not rows:
        raise ValueError("There is no comparison to be right about")
    right = [choice == row.answer for row, choice in zip(rows, choices, strict=True)]
    interval = clustered_share(list(map(float, right)), [row.comparison.prompt.id for row in rows])
    return Accuracy(sum(right), len(rows), sum(right) / len(rows), interval)
