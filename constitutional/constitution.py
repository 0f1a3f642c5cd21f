"""A constitution: principles in words, read from a YAML or a Markdown file, selected and weighted, drawn from.

Bai et al. 2022 (sections 3.1 and 4.1) draw one principle at random at every revision and for every comparison. Here the
draw is by weight, and each principle's lot is its own: adding, dropping or reweighting one changes only the draws that
it wins or loses, so a run over an edited constitution asks again only for what depends on the edit.
"""

import difflib
import hashlib
import json
import math
import random
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    model_validator,
)
from pydantic_core import ErrorDetails

from constitutional.errors import ConfigurationError, InputError
from constitutional.markdown import Passage, read_markdown
from constitutional.plain_yaml import Node, Problem, read_yaml, shown
from constitutional.principle_file import MARKDOWN_ENDINGS, YAML_ENDINGS, Named, ids_of, read_text, slug
from constitutional.shipped import shipped

Use = Literal["critique", "revision", "comparison"]
MOST_PRINCIPLES = 100_000
MOST_CHARACTERS = 20_000
"""Of a text: far more than any labeler weighs, and little enough for every message and template that holds it."""
ID = r"^[A-Za-z][A-Za-z0-9_-]*$"
MOST_ID_CHARACTERS = 64


def _without_control_characters(text: str) -> str:
    if found := re.search(r"[\x00-\x08\x0b-\x1f\x7f]", text):
        raise ValueError(f"holds the control character U+{ord(found.group()):04X}")
    return text


Text = Annotated[
    str,
    StringConstraints(strip_whitespace=True, min_length=1, max_length=MOST_CHARACTERS),
    AfterValidator(_without_control_characters),
]
Id = Annotated[str, StringConstraints(pattern=ID, max_length=MOST_ID_CHARACTERS)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Example(_Part):
    """What a principle means, shown: a prompt and two responses, of which the principle prefers one."""

    prompt: Text
    """What the user says."""
    better: Text
    """The response that the principle prefers."""
    worse: Text
    """The response that it does not."""


class Principle(_Part):
    """One thing that a model is asked to do or to leave."""

    id: Id
    """Its name on the command line and in records: letters, digits, `_` and `-`, at most 64."""
    text: Text
    """What it asks, in a sentence or two."""
    critique: Text | None = None
    """Its words where a response is criticised; None means the text."""
    revision: Text | None = None
    """Its words where a response is revised without a critique; None means the text."""
    comparison: Text | None = None
    """Its words where two responses are compared; None means the text."""
    weight: Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False)] = 1.0
    """How often it is drawn, and how much it counts, against the others; above 0."""
    tags: tuple[Text, ...] = ()
    """For people to sort principles by. Training does not look at them; in the sandbox's world a trait and `avoid` or
    `seek` tell the evaluation what the principle is after."""
    examples: tuple[Example, ...] = ()
    """What the labeler is measured on."""

    def words(self, use: Use) -> str:
        """The words for this use: its own, or the text."""
        own: str | None = getattr(self, use)
        return self.text if own is None else own


class Constitution(_Part):
    """Principles, in the order of their file."""

    name: Text
    version: str = ""
    """As written: `1.10` is not 1.1."""
    description: str = ""
    authors: tuple[Text, ...] = ()
    principles: Annotated[tuple[Principle, ...], Field(min_length=1, max_length=MOST_PRINCIPLES)]

    @model_validator(mode="after")
    def _ids_differ(self) -> Self:
        if twice := [name for name, count in Counter(each.id for each in self.principles).items() if count > 1]:
            raise ValueError(f"two principles have the id '{twice[0]}'; rename one")
        return self

    @cached_property
    def digest(self) -> str:
        """SHA-256 of all that behaviour depends on: ids, words, weights and examples, in their order.

        Name, version, description, authors and tags are not part of it, so correcting them asks nothing again.
        """
        content = [principle.model_dump(mode="json", exclude={"tags"}) for principle in self.principles]
        canonical = json.dumps(content, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
        return hashlib.sha256(canonical.encode("utf-8", "surrogatepass")).hexdigest()

    def principle(self, principle_id: str) -> Principle:
        """The principle of that id."""
        self._check_known([principle_id])
        return self._by_id[principle_id]

    def select(
        self, only: Sequence[str] | None = None, without: Sequence[str] = (), weights: Mapping[str, float] | None = None
    ) -> "Constitution":
        """The constitution with only these principles (None means all), without those, and with these weights."""
        weights = weights or {}
        self._check_known([*(only or []), *without, *weights])
        for principle_id, weight in weights.items():
            if not (math.isfinite(weight) and weight > 0):
                raise ConfigurationError(
                    f"constitution.weights.{principle_id} is {weight}; a weight is a positive number, and "
                    f"constitution.without=[{principle_id}] leaves a principle out"
                )
        kept = tuple(
            each.model_copy(update={"weight": float(weights[each.id])}) if each.id in weights else each
            for each in self.principles
            if (only is None or each.id in set(only)) and each.id not in set(without)
        )
        if not kept:
            raise ConfigurationError(f"constitution '{self.name}': constitution.only and without leave no principle")
        # Made anew and not by model_copy, which would take the digest along.
        fields = {field: getattr(self, field) for field in Constitution.model_fields}
        return Constitution(**{**fields, "principles": kept})

    def draw(self, rng: random.Random, used: Collection[str] = ()) -> Principle:
        """A principle at random by weight, among those that occur least often in `used`: ids that were drawn before.

        P(p) = w_p / Σ w. Each principle waits for -ln(u) / w_p, where u comes from the generator's next number and the
        principle's id; the shortest wait wins.
        """
        uses = Counter(used)
        fewest = min(uses[each.id] for each in self.principles)
        candidates = [each for each in self.principles if uses[each.id] == fewest]
        lot = rng.getrandbits(64)

        def wait(principle: Principle) -> float:
            drawn = hashlib.blake2b(f"{lot} {principle.id}".encode(), digest_size=8).digest()
            return -math.log((int.from_bytes(drawn) + 1) / 2**64) / principle.weight

        return min(candidates, key=wait)

    @cached_property
    def _by_id(self) -> dict[str, Principle]:
        return {principle.id: principle for principle in self.principles}

    def _check_known(self, ids: Iterable[str]) -> None:
        for principle_id in ids:
            if principle_id not in self._by_id:
                advice = _nearest(principle_id, self._by_id)
                raise ConfigurationError(f"constitution '{self.name}' has no principle '{principle_id}'; {advice}")


def load_constitution(name_or_path: str | Path) -> Constitution:
    """The constitution in a file, or the shipped one of that name."""
    path = find_constitution(name_or_path)
    read = read_constitution(path)
    if read.constitution is None:
        first, *others = read.problems
        more = f" (and {len(others)} more: constitutional lint {path})" if others else ""
        raise InputError(path, first.text + more, first.line)
    return read.constitution


def find_constitution(name_or_path: str | Path) -> Path:
    """Where the file is: the path if there is one, else the shipped constitution of that name."""
    path = Path(name_or_path)
    if path.is_file():
        return path
    folder = shipped("constitutions")
    names = sorted(found.stem for found in folder.glob("*.yaml"))
    if str(name_or_path) in names:
        return folder / f"{name_or_path}.yaml"
    if path.is_dir():
        raise ConfigurationError(f"{path} is a folder; name a constitution file in it")
    advice = _nearest(path.name, names)
    raise ConfigurationError(f"there is no file {path} and no shipped constitution of that name; {advice}")


class ReadConstitution(NamedTuple):
    """What reading a file gave."""

    constitution: Constitution | None
    """None if there are problems."""
    problems: list[Problem]
    lines: dict[str, int]
    """Where each principle stands, by its id."""


def read_constitution(path: Path) -> ReadConstitution:
    """The constitution in a file with its lines, or all that is wrong with it; only an unreadable file is raised."""
    content = read_text(path)
    ending = path.suffix.lower()
    if ending in YAML_ENDINGS:
        return _from_yaml(content, path)
    if ending in MARKDOWN_ENDINGS:
        return _from_markdown(content, path)
    raise InputError(path, "a constitution is YAML or Markdown; name the file .yaml or .md", 1)


def _from_markdown(content: str, path: Path) -> ReadConstitution:
    prose = read_markdown(content)
    passages = prose.passages
    if not passages:
        problem = "holds no principle; write them as a list ('- Be brief.') or as headings ('## Be brief')"
        return ReadConstitution(None, [Problem(1, problem)], {})
    given = [None if each.given is None else _as_id(each.given) for each in passages]
    ids = ids_of([Named(own, each.name, each.text) for own, each in zip(given, passages, strict=True)])
    problems = _repeated([(own, each.line) for own, each in zip(given, passages, strict=True) if own is not None])
    entries = [_passage_entry(name, passage) for name, passage in zip(ids, passages, strict=True)]
    made = {"name": prose.title or path.stem, "description": prose.description, "principles": entries}
    constitution = None
    try:
        constitution = Constitution.model_validate(made)
    except ValidationError as error:
        # What concerns no place is the repeated ids again; principles that are all bad count as too few as well.
        found = [details for details in error.errors() if details["loc"] and details["type"] != "too_short"]
        problems += [_passage_problem(details, ids, passages) for details in found]
    if problems:
        problems.sort(key=lambda problem: problem.line or 0)
        return ReadConstitution(None, problems, {})
    return ReadConstitution(constitution, [], dict(zip(ids, (each.line for each in passages), strict=True)))


def _as_id(given: str) -> str:
    """An id as prose gives it: as it is where it can be one, else in the letters of one (`2.1` becomes `p_2_1`)."""
    return given if len(given) <= MOST_ID_CHARACTERS and re.match(ID, given) else slug(given)


def _passage_entry(name: str, passage: Passage) -> dict[str, Any]:
    entry: dict[str, Any] = {"id": name, "text": passage.text}
    if passage.context:
        entry["critique"] = f"{passage.text}\n{passage.context}"
    if passage.section:
        entry["tags"] = [passage.section]
    return entry


def _passage_problem(details: ErrorDetails, ids: Sequence[str], passages: Sequence[Passage]) -> Problem:
    match details["loc"]:
        case ("principles", int(number), *field):
            line, where = passages[number].line, f"principle '{ids[number]}':{f' {field[0]!r}' if field else ''}"
        case place:
            line, where = 1, f"'{place[0]}'"
    problem = details["ctx"]["error"] if details["type"] == "value_error" else details["msg"]
    return Problem(line, f"{where} {_too_large(details) or problem}")


def _from_yaml(content: str, path: Path) -> ReadConstitution:
    root, problems = read_yaml(content, path)
    if not isinstance(root.value, dict):
        problem = "must be a mapping with 'name:' and 'principles:'" if content.strip() else "is empty"
        return ReadConstitution(None, [*problems, Problem(root.line, problem)], {})
    principles = root.value.get("principles")
    nodes = principles.value if principles and isinstance(principles.value, list) else []
    ids, duplicates = _ids(nodes)
    problems += duplicates
    made = _as_dict(root.value)
    made.setdefault("name", path.stem)
    if isinstance(made.get("version"), float | bool):
        made["version"] = root.value["version"].written
    if nodes:
        made["principles"] = [_entry(node, name) for node, name in zip(nodes, ids, strict=True)]
    constitution = None
    try:
        constitution = Constitution.model_validate(made)
    except ValidationError as error:
        # What concerns no place is the duplicates again; a list whose items are all bad counts as too short as well.
        found = [details for details in error.errors() if details["loc"]]
        problems += [_problem(details, root) for details in found if not (nodes and details["type"] == "too_short")]
    if problems:
        problems.sort(key=lambda problem: problem.line or 0)
        return ReadConstitution(None, problems, {})
    return ReadConstitution(constitution, [], dict(zip(ids, (node.line for node in nodes), strict=True)))


def _ids(nodes: Sequence[Node]) -> tuple[list[str], list[Problem]]:
    """Each principle's id, made from its text where it has none, and the ids that stand twice."""
    named = []
    given: list[tuple[str, int]] = []
    for node in nodes:
        parts = node.value if isinstance(node.value, dict) else {}
        own = parts.get("id")
        text = str(parts.get("text", node).value)
        named.append(Named(None if own is None or own.value is None else str(own.value), text, text))
        if own is not None and isinstance(own.value, str):
            given.append((own.value, own.line))
    return ids_of(named), _repeated(given)


def _repeated(given: Iterable[tuple[str, int]]) -> list[Problem]:
    """Ids, each with its line, that stand there before."""
    first: dict[str, int] = {}
    problems = []
    for name, line in given:
        if name in first:
            twice = f"principle '{shown(name)}' appears twice (lines {first[name]} and {line}); rename one"
            problems.append(Problem(line, twice))
        first.setdefault(name, line)
    return problems


def _entry(node: Node, name: str) -> object:
    """A principle as pydantic takes it; a text alone is one."""
    if isinstance(node.value, str):
        return {"id": name, "text": node.value}
    return {"id": name, **_as_dict(node.value)} if isinstance(node.value, dict) else node.value


def _as_dict(mapping: dict[str, Node]) -> dict[str, Any]:
    """The values without their lines. Keys with nothing after them are left out, as if they were not there."""
    return {key: _as_python(node) for key, node in mapping.items() if node.value is not None}


def _as_python(node: Node) -> object:
    if isinstance(node.value, dict):
        return _as_dict(node.value)
    return [_as_python(child) for child in node.value] if isinstance(node.value, list) else node.value


_EXPECTED = {
    "weight": "a positive number, such as 2 or 0.5",
    "id": "letters, digits, '_' and '-' (at most 64, a letter first)",
    "authors": "a list of texts",
    "tags": "a list of texts",
    "examples": "a list, each with 'prompt', 'better' and 'worse'",
    "principles": f"a list of 1 to {MOST_PRINCIPLES:,} principles",
}
_EXPECTED_ITEM = {
    "principles": "a text, or a mapping with a 'text'",
    "examples": "a mapping with 'prompt', 'better' and 'worse'",
}
_PARTS: Mapping[str, type[_Part]] = {"": Constitution, "principles": Principle, "examples": Example}


def _problem(details: ErrorDetails, root: Node) -> Problem:
    """What pydantic found, in the words of whoever wrote the file, with the line where it stands."""
    *place, last = details["loc"]
    node = _deepest(details["loc"], root)
    owner = next((key for key in reversed(place) if isinstance(key, str)), "")
    where = _where(place, root)
    if details["type"] == "missing":
        return Problem(node.line, f"{where}'{last}' is missing")
    if details["type"] == "extra_forbidden":
        advice = _nearest(str(last), _PARTS[owner].model_fields)
        return Problem(node.line, f"{where}unknown key '{shown(str(last))}'; {advice}")
    if isinstance(last, int):
        label, expected = f"{owner.removesuffix('s')} {last + 1}", _EXPECTED_ITEM.get(owner, "a text")
    else:
        label, expected = f"'{last}'", _EXPECTED.get(last, "a text")
    if details["type"] == "value_error":
        return Problem(node.line, f"{where}{label} {details['ctx']['error']}")
    if too_large := _too_large(details):
        return Problem(node.line, f"{where}{label} {too_large}")
    unquoted = isinstance(node.value, float | bool) and expected == "a text"
    advice = f'; write "{shown(node.written)}", in quotes' if unquoted else ""
    return Problem(node.line, f"{where}{label} must be {expected}, not {_found(node)}{advice}")


def _too_large(details: ErrorDetails) -> str | None:
    """What to say of a list or a text that is beyond its limit, which is a matter of its size and not of what it is."""
    if details["type"] == "too_long":
        return f"must be {_EXPECTED['principles']}, not of {len(details['input']):,}"
    if details["type"] == "string_too_long" and details["ctx"]["max_length"] == MOST_CHARACTERS:
        return f"must be a text of at most {MOST_CHARACTERS:,} characters, not of {len(details['input'].strip()):,}"
    return None


def _deepest(place: Iterable[str | int], root: Node) -> Node:
    """The node at a place, or the one around it if there is none."""
    node = root
    for key in place:
        if isinstance(node.value, dict) and str(key) in node.value:
            node = node.value[str(key)]
        elif isinstance(node.value, list) and isinstance(key, int) and key < len(node.value):
            node = node.value[key]
    return node


def _where(place: Sequence[str | int], root: Node) -> str:
    """Which principle, and which of its examples, a problem is in."""
    made = ""
    for depth in range(1, len(place), 2):
        node = _deepest(place[: depth + 1], root)
        own = node.value.get("id") if isinstance(node.value, dict) else None
        name = f"'{shown(own.value)}'" if own and isinstance(own.value, str) else int(place[depth]) + 1
        made += f"{str(place[depth - 1]).removesuffix('s')} {name}: "
    return made


def _found(node: Node) -> str:
    if isinstance(node.value, dict):
        return "a mapping"
    if isinstance(node.value, list):
        return "a list" if node.value else "an empty list"
    if isinstance(node.value, float | bool):
        return f"the {'yes/no value' if isinstance(node.value, bool) else 'number'} {shown(node.written)}"
    text = (node.value or "").strip()
    return f"'{shown(text)}'" if text else "empty"


def _nearest(name: str, known: Iterable[str]) -> str:
    """Advice: the known name that is most like it, or all of them."""
    known = list(known)
    if near := difflib.get_close_matches(name, known, n=1):
        return f"did you mean '{near[0]}'?"
    return "known: " + ", ".join(known[:20]) + (", …" if len(known) > 20 else "")
