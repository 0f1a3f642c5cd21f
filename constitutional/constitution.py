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
from constitutional.principle_file import (
    MARKDOWN_ENDINGS,
    YAML_ENDINGS,
    Node,
    Problem,
    read_markdown,
    read_text,
    read_yaml,
    slug,
    unused,
)
from constitutional.shipped import shipped

Use = Literal["critique", "revision", "comparison"]
MOST_PRINCIPLES = 100_000


def _without_control_characters(text: str) -> str:
    if found := re.search(r"[\x00-\x08\x0b-\x1f\x7f]", text):
        raise ValueError(f"holds the control character U+{ord(found.group()):04X}")
    return text


Text = Annotated[
    str, StringConstraints(strip_whitespace=True, min_length=1), AfterValidator(_without_control_characters)
]
Id = Annotated[str, StringConstraints(pattern=r"^[A-Za-z][A-Za-z0-9_-]*$", max_length=64)]


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
    raise InputError(path, "a constitution is YAML or Markdown; name the file .yaml or .md")


def _from_markdown(content: str, path: Path) -> ReadConstitution:
    prose = read_markdown(content)
    lines: dict[str, int] = {}
    taken: dict[str, int] = {}
    entries = []
    for passage in prose.passages:
        name = unused(slug(passage.name), taken)
        lines[name] = passage.line
        entry: dict[str, Any] = {"id": name, "text": passage.text}
        if passage.context:
            entry["critique"] = f"{passage.text}\n{passage.context}"
        if passage.section:
            entry["tags"] = [passage.section]
        entries.append(entry)
    if not entries:
        problem = "holds no principle; write them as a list ('- Be brief.') or as headings ('## Be brief')"
        return ReadConstitution(None, [Problem(None, problem)], lines)
    made = {"name": prose.title or path.stem, "description": prose.description, "principles": entries}
    try:
        return ReadConstitution(Constitution.model_validate(made), [], lines)
    except ValidationError as error:
        places = [found["loc"] for found in error.errors()]
        at = [place[1] if len(place) > 1 and isinstance(place[1], int) else None for place in places]
        problems = [
            Problem(None if number is None else prose.passages[number].line, found["msg"])
            for number, found in zip(at, error.errors(), strict=True)
        ]
        return ReadConstitution(None, problems, lines)


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
    lines: dict[str, int] = {}
    problems = []
    given = [node.value.get("id") if isinstance(node.value, dict) else None for node in nodes]
    for own in given:
        if own is None or not isinstance(own.value, str):
            continue
        if own.value in lines:
            twice = f"principle '{own.value}' appears twice (lines {lines[own.value]} and {own.line}); rename one"
            problems.append(Problem(own.line, twice))
        lines.setdefault(own.value, own.line)
    ids = []
    taken = dict.fromkeys(lines, 1)
    for node, own in zip(nodes, given, strict=True):
        if own is not None and own.value is not None:
            ids.append(str(own.value))
            continue
        text = node.value.get("text", node) if isinstance(node.value, dict) else node
        ids.append(unused(slug(str(text.value)), taken))
    return ids, problems


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
        return Problem(node.line, f"{where}unknown key '{last}'; {advice}")
    if isinstance(last, int):
        label, expected = f"{owner.removesuffix('s')} {last + 1}", _EXPECTED_ITEM.get(owner, "a text")
    else:
        label, expected = f"'{last}'", _EXPECTED.get(last, "a text")
    if details["type"] == "value_error":
        return Problem(node.line, f"{where}{label} {details['ctx']['error']}")
    advice = (
        f'; write "{node.written}", in quotes' if isinstance(node.value, float | bool) and expected == "a text" else ""
    )
    return Problem(node.line, f"{where}{label} must be {expected}, not {_found(node)}{advice}")


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
        name = f"'{own.value}'" if own and isinstance(own.value, str) else int(place[depth]) + 1
        made += f"{str(place[depth - 1]).removesuffix('s')} {name}: "
    return made


def _found(node: Node) -> str:
    if isinstance(node.value, dict):
        return "a mapping"
    if isinstance(node.value, list):
        return "a list" if node.value else "an empty list"
    if isinstance(node.value, float | bool):
        return f"the {'yes/no value' if isinstance(node.value, bool) else 'number'} {node.written}"
    shown = (node.value or "").strip()
    return f"'{shown[:40]}{'…' if len(shown) > 40 else ''}'" if shown else "empty"


def _nearest(name: str, known: Iterable[str]) -> str:
    """Advice: the known name that is most like it, or all of them."""
    known = list(known)
    if near := difflib.get_close_matches(name, known, n=1):
        return f"did you mean '{near[0]}'?"
    return "known: " + ", ".join(known[:20]) + (", …" if len(known) > 20 else "")
