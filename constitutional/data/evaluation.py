"""Public evaluation sets, read from the user's file and recognised by their columns.

A set's rows are typed by what is asked: which of several replies is the better one, which option is the answer, or what
a model replies. Nothing here asks a model or scores one.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

from constitutional.base.errors import InputError, UsageError
from constitutional.base.jsonl import BadTextError, as_json, parse, shortened
from constitutional.base.records import Comparison, Message, Prompt
from constitutional.data.answers import hhh_row
from constitutional.data.sources import Rows

TIES: Final = "Ties"
"""RewardBench 2's subset of prompts with several right replies, which has a score of its own."""
Opinion = Literal["no opinion", "suggests the right answer", "suggests a wrong answer", "doubts the right answer"]
"""What the user of a prompt of SycophancyEval says of the answer."""

_OPINIONS: Final[Mapping[tuple[str, bool], Opinion]] = {
    ("correct", False): "suggests the right answer",
    ("incorrect", False): "suggests a wrong answer",
    ("correct", True): "doubts the right answer",
}
"""By the answer that a template names, and whether it denies it."""
_NAMED: Final = re.compile(r"(?P<denied>(?:n't|\bnot\b|\bdoubt)[^.!?{}]*)?\{(?P<answer>correct|incorrect)_answer\}")
_TURN: Final = re.compile(r"(?:\A|\n\n)(Human|Assistant): ?")
_STRUCTURED: Final = frozenset(
    "targets target_scores chosen rejected choices base metadata answer_info additional_metadata".split()
)
"""Columns that hold lists and objects."""
_HHH_SUBSETS: Final = ("harmless", "helpful", "honest", "other")
_JUDGE_BENCH_SUBSETS: Final = {
    "mmlu-pro": "knowledge",
    "livebench-reasoning": "reasoning",
    "livebench-math": "math",
    "livecodebench": "coding",
}


@dataclass(frozen=True)
class EvaluationRow:
    """One item of an evaluation set."""

    id: str
    """A digest of the row: the same wherever the file lies, and whatever it is called."""
    prompt: Prompt
    """What is asked; of a question with options without them."""
    subset: str
    """The set's own division, such as `helpful`; empty where it has none."""
    cluster: str
    """Items of one cluster share a prompt or a template, and are not independent."""

    @property
    def drawn_with(self) -> str:
        """What `draw` draws together: a row, or rows that are scored against each other."""
        return self.id


@dataclass(frozen=True)
class Candidates(EvaluationRow):
    """Replies to one prompt, of which some are good: HHH, JudgeBench, RewardBench 2."""

    replies: tuple[str, ...]
    good: tuple[int, ...]
    """Indices of the good replies, at least one and not all."""

    @property
    def comparison(self) -> Comparison:
        """The first two replies, of a set that has two."""
        return Comparison(prompt=self.prompt, a=self.replies[0], b=self.replies[1], model="evaluation set")


@dataclass(frozen=True)
class TiedCandidates(Candidates):
    """A prompt of RewardBench 2's Ties: one with several right replies, or its reference, which has one."""

    reference: bool

    @property
    def drawn_with(self) -> str:
        """The prompt and its reference, which have the same number."""
        return self.cluster


@dataclass(frozen=True)
class MultipleChoice(EvaluationRow):
    """A question with options: TruthfulQA, model-written evaluations, BBQ."""

    options: tuple[str, ...]
    """Two or more."""
    answer: int
    """Index of the right option, or of the one that matches the behaviour."""
    listed: bool = True
    """Whether the options have to be shown; a model-written question holds them already."""


@dataclass(frozen=True)
class BiasQuestion(MultipleChoice):
    """A question of BBQ."""

    ambiguous: bool = True
    """The context does not tell, so that "unknown" is right."""
    unknown: int = 0
    """Index of the option that says that nobody can know."""
    biased: int | None = None
    """Index of the option that the stereotype would choose; None where the row does not tell who is stereotyped."""


@dataclass(frozen=True)
class OpinionQuestion(EvaluationRow):
    """A question of SycophancyEval, with an opinion of the user's or without."""

    question: str
    correct: str
    incorrect: str
    opinion: Opinion

    @property
    def drawn_with(self) -> str:
        """All prompts about one question."""
        return self.cluster


@dataclass(frozen=True)
class SafetyPrompt(EvaluationRow):
    """A prompt of XSTest, which looks unsafe and is safe, or is unsafe."""

    safe: bool


@dataclass(frozen=True)
class ForbiddenPrompt(EvaluationRow):
    """A prompt of StrongREJECT, which a model should refuse."""


class EvaluationSet(NamedTuple):
    """The rows of one set."""

    name: str
    """One of `SETS`."""
    rows: tuple[EvaluationRow, ...]
    total: int
    """Rows of the files, of which `rows` may be some."""
    columns: tuple[str, ...] = ()
    """The columns that were read."""


class _Source(NamedTuple):
    """Where a row comes from."""

    id: str
    name: str
    """The file's name."""
    subset: str
    """What the file's name says of the subset; empty where it says nothing."""


class _Cells(dict[str, Any]):
    """The cells of a row, which note in `read` the columns that are asked for."""

    def __init__(self, cells: Mapping[str, Any], read: dict[str, None]) -> None:
        super().__init__(cells)
        self._read = read

    def __getitem__(self, column: str) -> Any:  # noqa: ANN401 - a cell may be anything
        self._read[column] = None
        return super().__getitem__(column)

    def get(self, column: str, default: Any = None) -> Any:  # noqa: ANN401 - a cell may be anything
        if column in self:
            self._read[column] = None
        return super().get(column, default)


class _Form(NamedTuple):
    """How a set's rows look, and how they are read."""

    expected: str
    recognises: Callable[[Mapping[str, Any]], bool]
    read: Callable[[Mapping[str, Any], _Source], EvaluationRow]


def recognise(row: object) -> str | None:
    """The name of the evaluation set that a row, as read from a file, belongs to; None where it belongs to none.

    The columns tell, and the types of their values where other data sets have columns of the same names.
    """
    if not isinstance(row, Mapping):
        return None
    cells = _parsed(row)
    return next((name for name, form in SETS.items() if form.recognises(cells)), None)


def load_evaluation(paths: Sequence[Path | str], name: str | None = None) -> EvaluationSet:
    """All rows of an evaluation set's files.

    Args:
        paths: files, folders that `datasets` saved, or names on the hub (`hf://…`).
        name: one of `SETS`; None recognises it by the first row's columns.

    Raises:
        InputError: a file is of no known set or of another one, or a row is not as it should be; says where.
        UsageError: there is no set of that name.
    """
    if name is not None and name not in SETS:
        raise UsageError(f"there is no evaluation set '{name}'; there are {', '.join(SETS)}")
    rows: list[EvaluationRow] = []
    read: dict[str, None] = {}
    for path in paths:
        of_file = Rows(path, SETS[name].expected if name else _ANY)
        numbered = iter(of_file)
        start = next(numbered, None)
        if start is None:
            raise InputError(path, f"holds no row; expected {SETS[name].expected if name else _ANY}")
        first = start[1]
        known = recognise(first)
        if name is None and known is None:
            columns = ", ".join(map(str, first)) if isinstance(first, Mapping) else shortened(first)
            raise InputError(path, f"is no evaluation set that is known, by its columns ({columns}); expected {_ANY}")
        name = name or known
        assert name is not None
        if known not in (None, name):
            raise InputError(path, f"holds rows of {known}; expected {name}: {SETS[name].expected}")
        source = _Source("", str(path) if isinstance(path, str) else path.name, _subset_in(path, len(paths)))
        rows += _rows_of(of_file, chain([start], numbered), name, source, read)
    assert name is not None, "there is a file"
    return EvaluationSet(name, tuple(rows), len(rows), tuple(read))


def load_sets(paths: Iterable[Path | str]) -> list[EvaluationSet]:
    """The sets of all these files, each once, whatever the number of its files.

    Raises:
        InputError: as `load_evaluation`.
    """
    sets: dict[str, EvaluationSet] = {}
    for path in paths:
        evaluation = load_evaluation([path])
        before = sets.get(evaluation.name, EvaluationSet(evaluation.name, (), 0))
        sets[evaluation.name] = before._replace(
            rows=(*before.rows, *evaluation.rows), total=before.total + evaluation.total
        )
    return list(sets.values())


def _rows_of(
    file: Rows, numbered: Iterable[tuple[int, object]], name: str, source: _Source, columns: dict[str, None]
) -> Iterator[EvaluationRow]:
    form = SETS[name]
    for number, value in numbered:
        try:
            if not isinstance(value, Mapping):
                raise ValueError(f"it is {shortened(value)}")
            cells = _parsed(value) if file.texts else value
            yield form.read(_Cells(cells, columns), source._replace(id=_digest(cells)))
        except ValueError as error:
            problem = f"is no row of {name}: {error}; expected {form.expected}"
            raise file.place(number).error(problem) from error


def _digest(row: Mapping[str, Any]) -> str:
    text = json.dumps(row, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _subset_in(path: Path | str, files: int) -> str:
    """HHH's subset, which its rows do not say, by the name of the file; of several files the name itself."""
    parts = re.split(r"[^a-z]+", str(path).lower())
    known = next((part for part in reversed(parts) if part in _HHH_SUBSETS), "")
    return known or (Path(path).name.partition(".")[0] if files > 1 else "")


def draw(evaluation: EvaluationSet, at_most: int | None, seed: int) -> EvaluationSet:
    """At most so many rows, drawn at random; more of them hold all of fewer.

    Rows that are scored against each other, such as one question with and without the user's opinion, are drawn
    together as far as they fit.
    """
    if at_most is None or at_most >= len(evaluation.rows):
        return evaluation

    def place(row: EvaluationRow) -> tuple[str, str]:
        return hashlib.sha256(f"{seed} evaluation set {row.drawn_with}".encode()).hexdigest(), row.drawn_with

    chosen = {row.id for row in sorted(evaluation.rows, key=place)[:at_most]}
    return evaluation._replace(rows=tuple(row for row in evaluation.rows if row.id in chosen))


# --- Values ---


def _parsed(row: Mapping[Any, Any]) -> dict[str, Any]:
    """The cells by column; what holds a list or an object is read as JSON where a table has it as text."""
    cells = {str(key): value for key, value in row.items()}
    for key in _STRUCTURED & cells.keys():
        try:
            cells[key] = parse(cells[key]) if isinstance(cells[key], str) else cells[key]
        except BadTextError:
            continue  # whoever needs a list says that there is none
    return cells


def _text(row: Mapping[str, Any], key: str) -> str:
    value = row.get(key)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f'"{key}" is {_shown(row, key)}, and no text')
    return value


def _texts(row: Mapping[str, Any], key: str) -> tuple[str, ...]:
    value = row.get(key)
    texts = tuple(value) if isinstance(value, list | tuple) else ()
    if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
        raise ValueError(f'"{key}" is {_shown(row, key)}, and no list of texts')
    return texts


def _index(row: Mapping[str, Any], key: str, below: int) -> int:
    value = row.get(key)
    number = int(value) if isinstance(value, str) and value.strip().isdecimal() else value
    if isinstance(number, float) and number.is_integer():
        number = int(number)
    if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < below:
        raise ValueError(f'"{key}" is {_shown(row, key)}, and no number from 0 to {below - 1}')
    return number


def _one_of(row: Mapping[str, Any], key: str, names: Sequence[str]) -> str:
    value = row.get(key)
    if not isinstance(value, str) or value.strip().lower() not in names:
        raise ValueError(f'"{key}" is {_shown(row, key)}, and not {" or ".join(names)}')
    return value.strip().lower()


def _object(row: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = row.get(key)
    if not isinstance(value, Mapping):
        raise ValueError(f'"{key}" is {_shown(row, key)}, and no object')
    return value


def _shown(row: Mapping[str, Any], key: str) -> str:
    if key not in row:
        return "missing"
    try:
        return as_json(row[key])
    except (TypeError, ValueError):
        return shortened(row[key])


def _prompt(text: str, source: _Source) -> Prompt:
    r"""What a user asks: a text, or a transcript (`\n\nHuman: … \n\nAssistant: … \n\nHuman: …`)."""
    before, *parts = _TURN.split(text)
    speakers, turns = parts[::2], parts[1::2]
    if speakers and speakers[-1] == "Assistant" and not turns[-1].strip():
        speakers, turns = speakers[:-1], turns[:-1]
    alternates = all(speaker == ("Human", "Assistant")[index % 2] for index, speaker in enumerate(speakers))
    if before.strip() or not speakers or not alternates or speakers[-1] != "Human":
        return _asked(text, source)
    messages = tuple(
        Message("user" if speaker == "Human" else "assistant", turn)
        for speaker, turn in zip(speakers, turns, strict=True)
    )
    return Prompt(messages=messages, split="held_out", source=source.name)


def _asked(text: str, source: _Source) -> Prompt:
    return Prompt(messages=(Message("user", text),), split="held_out", source=source.name)


# --- The sets ---


def _hhh(row: Mapping[str, Any], source: _Source) -> EvaluationRow:
    prompt = _prompt(_text(row, "input"), source)
    if "targets" in row:
        targets = _object(row, "targets")
        replies, labels = _texts(targets, "choices"), targets.get("labels")
    else:  # as BIG-bench, which the set was written for, has it
        scores = _object(row, "target_scores")
        replies, labels = tuple(map(str, scores)), list(scores.values())
    labels = labels if isinstance(labels, list | tuple) else []
    good = tuple(index for index, label in enumerate(labels) if label == 1)
    if len(replies) != 2 or len(labels) != 2 or len(good) != 1 or set(labels) != {0, 1}:
        raise ValueError(
            f"there are {len(replies)} choices with the labels {shortened(labels)}, and not two, of 1 and 0"
        )
    subset = str(row.get("subset") or row.get("category") or source.subset)
    return Candidates(source.id, prompt, subset, prompt.id, replies, good)


def _hhh_438(row: Mapping[str, Any], source: _Source) -> EvaluationRow:
    answered = hhh_row(row, source.name)
    comparison = answered.comparison
    replies, good = (comparison.a, comparison.b), (0,) if answered.answer == "a" else (1,)
    return Candidates(source.id, comparison.prompt, source.subset, comparison.prompt.id, replies, good)


def _reward_bench_2(row: Mapping[str, Any], source: _Source) -> EvaluationRow:
    prompt, subset = _prompt(_text(row, "prompt"), source), _text(row, "subset")
    chosen, rejected = _texts(row, "chosen"), _texts(row, "rejected")
    replies = (*chosen, *rejected)
    if subset.strip().lower() == TIES.lower():
        name = str(row.get("id", prompt.id))
        named = re.fullmatch(r"(ref|tied):(\w+)", name)
        kind, number = named.groups() if named else ("ref" if len(chosen) == 1 else "tied", name)
        if kind == "ref" and len(chosen) != 1:
            raise ValueError(f'"chosen" has {len(chosen)} replies; a prompt whose id begins with "ref:" has 1')
        good = tuple(range(len(chosen)))
        return TiedCandidates(source.id, prompt, TIES, number, replies, good, reference=kind == "ref")
    if len(chosen) != 1:
        raise ValueError(f'"chosen" has {len(chosen)} replies; outside of the subset {TIES} there is 1')
    return Candidates(source.id, prompt, subset, prompt.id, replies, (0,))


def _judge_bench(row: Mapping[str, Any], source: _Source) -> EvaluationRow:
    prompt = _asked(_text(row, "question"), source)
    label = str(row.get("label")).replace(" ", "")
    if label not in ("A>B", "B>A"):
        raise ValueError(f'"label" is {_shown(row, "label")}, and not "A>B" or "B>A"')
    replies = (_text(row, "response_A"), _text(row, "response_B"))
    origin = str(row.get("source") or "")
    subset = next((name for start, name in _JUDGE_BENCH_SUBSETS.items() if origin.startswith(start)), origin)
    return Candidates(source.id, prompt, subset or source.subset, prompt.id, replies, (0 if label == "A>B" else 1,))


def _truthful_qa(row: Mapping[str, Any], source: _Source) -> EvaluationRow:
    options: tuple[str, ...]
    if "Best Answer" in row:  # the authors' own table, of 2025
        question, options = _text(row, "Question"), (_text(row, "Best Answer"), _text(row, "Best Incorrect Answer"))
        answer, subset = 0, str(row.get("Category") or "")
    else:
        question, options = _text(row, "question"), _texts(row, "choices")
        if len(options) != 2:
            raise ValueError(f'"choices" has {len(options)} texts, and not 2')
        answer, subset = _index(row, "label", 2), ""
    prompt = _asked(question, source)
    return MultipleChoice(source.id, prompt, subset, prompt.id, options, answer)


def _sycophancy_eval(row: Mapping[str, Any], source: _Source) -> EvaluationRow:
    base, template = _object(row, "base"), _text(_object(row, "metadata"), "prompt_template")
    turns = row.get("prompt")
    turn = turns[0] if isinstance(turns, list) and len(turns) == 1 and isinstance(turns[0], Mapping) else {}
    if turn.get("type") != "human":
        raise ValueError(f'"prompt" is {_shown(row, "prompt")}, and no list of one turn of the type "human"')
    said = template.lower().replace("’", "'")
    named = [(match["answer"], match["denied"] is not None) for match in _NAMED.finditer(said)]
    if set(named) - _OPINIONS.keys() or len(named) > 1 or (not named and said.replace("{question}", "").strip()):
        raise ValueError(
            f'"prompt_template" is {_shown(_object(row, "metadata"), "prompt_template")}, which is unknown'
        )
    question = _text(base, "question")
    subset = str(base.get("dataset") or "")
    return OpinionQuestion(
        source.id,
        _asked(_text(turn, "content"), source),
        subset,
        hashlib.sha256(f"{subset}\n{question}".encode()).hexdigest()[:16],
        question,
        _text(base, "correct_answer"),
        _text(base, "incorrect_answer"),
        _OPINIONS[named[0]] if named else "no opinion",
    )


def _xstest(row: Mapping[str, Any], source: _Source) -> EvaluationRow:
    prompt, kind = _asked(_text(row, "prompt"), source), _text(row, "type")
    # The first version has no label; the types of its unsafe prompts begin so.
    safe = _one_of(row, "label", ("safe", "unsafe")) == "safe" if "label" in row else not kind.startswith("contrast_")
    return SafetyPrompt(source.id, prompt, kind, prompt.id, safe)


def _strong_reject(row: Mapping[str, Any], source: _Source) -> EvaluationRow:
    prompt = _asked(_text(row, "forbidden_prompt"), source)
    return ForbiddenPrompt(source.id, prompt, str(row.get("category") or ""), prompt.id)


def _model_written(row: Mapping[str, Any], source: _Source) -> EvaluationRow:
    question, matching = _text(row, "question"), _text(row, "answer_matching_behavior").strip()
    other = row.get("answer_not_matching_behavior")
    others = _texts(row, "answer_not_matching_behavior") if isinstance(other, list) else None
    others = others or (_text(row, "answer_not_matching_behavior"),)
    options = tuple(sorted({matching, *(text.strip() for text in others)}))
    if len(options) != len(others) + 1:
        raise ValueError(f"the answers are {shortened(options)}, of which two are the same")
    prompt = _prompt(question, source)
    return MultipleChoice(source.id, prompt, source.subset, prompt.id, options, options.index(matching), listed=False)


def _bbq(row: Mapping[str, Any], source: _Source) -> EvaluationRow:
    negative = _one_of(row, "question_polarity", ("neg", "nonneg")) == "neg"
    condition = _one_of(row, "context_condition", ("ambig", "disambig"))
    options = tuple(_text(row, f"ans{index}") for index in range(3))
    answer = _index(row, "label" if "label" in row else "answer_label", 3)
    info = _object(row, "answer_info")
    tags = []
    for index in range(3):
        words = info.get(f"ans{index}")
        if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
            raise ValueError(f'"ans{index}" of answer_info is {_shown(info, f"ans{index}")}, and no list of texts')
        tags.append({_group(word) for word in words if word.strip()})
    unknown = [index for index, names in enumerate(tags) if "unknown" in names]
    if len(unknown) != 1:
        raise ValueError(f"{len(unknown)} of the three options are unknown by answer_info, and not 1")
    if condition == "ambig" and answer != unknown[0]:
        raise ValueError("the context is ambiguous, and the label is not the option that is unknown")
    target = _stereotyped(row, tags)
    others = [index for index in range(3) if index not in (unknown[0], target)]
    biased = None if target is None or len(others) != 1 else target if negative else others[0]
    category = str(row.get("category") or "")
    template = f"{category} {row['question_index']}" if "question_index" in row else f"{_text(row, 'question')}"
    prompt = _asked(f"{_text(row, 'context')}\n\n{_text(row, 'question')}", source)
    return BiasQuestion(
        source.id, prompt, category, template, options, answer, True, condition == "ambig", unknown[0], biased
    )


def _stereotyped(row: Mapping[str, Any], tags: Sequence[set[str]]) -> int | None:
    """The option that names the stereotyped group; None where the row does not tell which one does."""
    for key in ("target_loc", "target_label"):
        if row.get(key) is not None:
            return _index(row, key, 3)
    about = row.get("additional_metadata")
    names = about.get("stereotyped_groups") if isinstance(about, Mapping) else None
    groups = {_group(str(name)) for name in names} if isinstance(names, list | tuple) else set[str]()
    if "disability" in str(row.get("category")).lower():
        groups.add("disabled")  # the groups are named more narrowly than the options
    groups.discard("unknown")
    named = [index for index, own in enumerate(tags) if own & groups]
    if len(named) != 1:  # a tag may join two groups, such as F-Black
        parts = [{part for tag in own for part in tag.split("-")} for own in tags]
        named = [index for index, own in enumerate(parts) if own & groups]
    return named[0] if len(named) == 1 else None


_GENDERS: Final = {
    **dict.fromkeys(("m", "man", "men", "boy", "boys", "male"), "m"),
    **dict.fromkeys(("f", "woman", "women", "girl", "girls", "female"), "f"),
}


def _group(name: str) -> str:
    """A social group's name, as BBQ's files write it in several ways."""
    plain = name.strip(" {}").lower()
    if plain.startswith("trans"):
        return "trans"
    return _GENDERS.get(plain, plain.replace(" ", ""))


def _is_sycophancy_eval(row: Mapping[str, Any]) -> bool:
    base, about = row.get("base"), row.get("metadata")
    return "prompt" in row and isinstance(base, Mapping) and "question" in base and isinstance(about, Mapping)


SETS: Final[Mapping[str, _Form]] = {
    "hhh": _Form(
        '"input" and "targets" with two "choices" and their "labels" (HuggingFaceH4/hhh_alignment)',
        lambda row: "input" in row and isinstance(row.get("targets", row.get("target_scores")), Mapping),
        _hhh,
    ),
    "hhh_438": _Form(
        '"prompt" with options (A) and (B), "corrects" and "text_correct" (the 438 comparisons of Bai et al. 2022)',
        lambda row: {"prompt", "corrects", "text_correct"} <= row.keys(),
        _hhh_438,
    ),
    "reward_bench_2": _Form(
        '"prompt", "subset", and lists of texts "chosen" and "rejected"',
        lambda row: (
            {"prompt", "subset"} <= row.keys() and all(map(_lists_texts, (row.get("chosen"), row.get("rejected"))))
        ),
        _reward_bench_2,
    ),
    "judge_bench": _Form(
        '"question", "response_A", "response_B" and "label", which is "A>B" or "B>A"',
        lambda row: {"question", "response_A", "response_B", "label"} <= row.keys(),
        _judge_bench,
    ),
    "truthful_qa": _Form(
        '"question", two "choices" and "label", or "Question", "Best Answer" and "Best Incorrect Answer"',
        lambda row: (
            {"question", "choices", "label"} <= row.keys()
            or {"Question", "Best Answer", "Best Incorrect Answer"} <= row.keys()
        ),
        _truthful_qa,
    ),
    "sycophancy_eval": _Form(
        '"prompt", "base" with "question", "correct_answer" and "incorrect_answer", and "metadata" with '
        '"prompt_template" (answer.jsonl; the other files of the set are not read)',
        _is_sycophancy_eval,
        _sycophancy_eval,
    ),
    "xstest": _Form(
        '"prompt", "type", "focus" and "label", which is "safe" or "unsafe"',
        lambda row: {"prompt", "type", "focus"} <= row.keys(),
        _xstest,
    ),
    "strong_reject": _Form('"forbidden_prompt"', lambda row: "forbidden_prompt" in row, _strong_reject),
    "bbq": _Form(
        '"context", "question", "question_polarity", "context_condition", "ans0" to "ans2", "answer_info" and "label"',
        lambda row: {"question_polarity", "context_condition", "ans0", "ans1", "ans2"} <= row.keys(),
        _bbq,
    ),
    "model_written": _Form(
        '"question", "answer_matching_behavior" and "answer_not_matching_behavior"',
        lambda row: {"question", "answer_matching_behavior"} <= row.keys(),
        _model_written,
    ),
}
"""The evaluation sets that are read, by name."""

_ANY: Final = f"rows of one of {', '.join(SETS)}"


def _lists_texts(value: object) -> bool:
    return isinstance(value, list | tuple) and bool(value) and all(isinstance(text, str) for text in value)
