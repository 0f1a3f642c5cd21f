"""A constitution: principles in words, which are selected, weighted and drawn. `file.py` reads it from a file.

Bai et al. 2022 (sections 3.1 and 4.1) draw one principle at random at every revision and for every comparison. Here the
draw is by weight, and every principle has its own lot: adding, dropping or reweighting a principle changes only the
draws that it wins or loses, so a run over an edited constitution asks again only for what depends on the edit.
"""

import difflib
import hashlib
import json
import math
import random
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from functools import cached_property
from typing import Annotated, Any, Final, Literal, Self, get_args

from pydantic import AfterValidator, Field, StringConstraints, model_validator

from constitutional.base.errors import ConfigurationError
from constitutional.base.frozen import Frozen
from constitutional.constitution.measures import Rule, rule_of
from constitutional.constitution.priorities import circle_in, overriding, within

Use = Literal["critique", "revision", "comparison"]
Purpose = Literal["revision", "comparison"]
"""What a principle is for: drafts are criticised and revised by it, or responses compared (Bai et al. 2022 have 16 and
16)."""
PURPOSES: Final[tuple[Purpose, ...]] = get_args(Purpose)
USES: Final = get_args(Use)
MOST_PRINCIPLES = 100_000
MOST_CHARACTERS = 20_000
"""Of a text: far more than any labeler weighs, and little enough for every message and template that holds it."""
ID = r"^[A-Za-z][A-Za-z0-9_-]*$"
MOST_ID_CHARACTERS = 64


def _without_control_characters(text: str) -> str:
    if control := re.search(r"[\x00-\x08\x0b-\x1f\x7f]", text):
        raise ValueError(f"holds the control character U+{ord(control[0]):04X}")
    return text


Text = Annotated[
    str,
    StringConstraints(strip_whitespace=True, min_length=1, max_length=MOST_CHARACTERS),
    AfterValidator(_without_control_characters),
]
Id = Annotated[str, StringConstraints(pattern=ID, max_length=MOST_ID_CHARACTERS)]


def _a_rule(measure: str | None) -> str | None:
    if measure is not None:
        rule_of(measure)
    return measure


class Example(Frozen):
    """What a principle means, shown: a prompt and two responses, of which the principle prefers the first."""

    prompt: Text
    """What the user says."""
    better: Text
    """The response that the principle prefers."""
    worse: Text
    """The response that it does not."""
    why: Text | None = Field(default=None, exclude_if=lambda why: why is None)
    """Why the one is better. For people; no model sees it."""


class Source(Frozen):
    """Where a principle stands in the text that it was taken from."""

    section: str = ""
    """The headings above it, the outermost first, joined by ` > `."""
    line: Annotated[int, Field(ge=1)]
    """Of the text as it was imported, from 1."""
    quote: Text | None = Field(default=None, exclude_if=lambda quote: quote is None)
    """The words of the text that it was made from, where its own words are others."""


class Principle(Frozen):
    """One thing that a model is asked to do or to leave."""

    id: Id
    """The name on the command line and in records: letters, digits, `_` and `-`, at most 64."""
    text: Text
    """What it asks, in a sentence or two."""
    critique: Text | None = None
    """The words where a response is criticised; None means the text."""
    revision: Text | None = None
    """The words where a response is revised without a critique; None means the text."""
    comparison: Text | None = None
    """The words where two responses are compared; None means the text."""
    weight: Annotated[float, Field(strict=True, gt=0)] = 1.0
    """How often it is drawn, and how much it counts, against the others; above 0."""
    uses: Annotated[tuple[Purpose, ...], Field(min_length=1)] = PURPOSES
    """What it is for. Editing one that is for comparison alone revises no draft anew."""
    tags: tuple[Text, ...] = ()
    """For people to sort principles by. Training does not look at them; in the sandbox's world a trait and `avoid` or
    `seek` tell the evaluation what the principle is after."""
    examples: tuple[Example, ...] = ()
    """What the labeler is measured on."""
    as_written: bool = Field(default=False, exclude_if=lambda as_written: not as_written)
    """Whether models are given these very words, whatever they read in them."""
    why: Text | None = Field(default=None, exclude_if=lambda why: why is None)
    """The reason for it, which models read beside it."""
    opposite: Text | None = Field(default=None, exclude_if=lambda opposite: opposite is None)
    """What goes against it, as a wish: with `label.method=contrast` responses are told apart by which of the two they
    are likelier under. None means no wish at all."""
    measure: Annotated[str | None, AfterValidator(_a_rule)] = Field(
        default=None, exclude_if=lambda measure: measure is None
    )
    """A rule by which responses are compared and rewarded in the place of the labeler, such as `fewer words`, `more
    list items` or `at most 40 words`; `constitution/measures.py` has all that can be counted."""
    overrides: tuple[Id, ...] = Field(default=(), exclude_if=lambda ids: not ids)
    """Ids of the principles that give way to it, and so do those that give way to them: where the labeler prefers one
    response by it and the other by one of those, its judgement counts alone."""
    source: Source | None = Field(default=None, exclude_if=lambda source: source is None)
    """For people to find it in the text that it was taken from."""
    given: dict[Use, Text] = Field(default_factory=dict, exclude_if=lambda given: not given)
    """What models are given in place of the words for a use, because they would not surely read the words rightly."""

    def words(self, use: Use) -> str:
        """What a model reads for this use."""
        return self.given.get(use) or self.with_reason(self.written(use))

    @property
    def rule(self) -> Rule | None:
        """The rule that `measure` names; None where a model judges."""
        return rule_of(self.measure) if self.measure else None

    def with_reason(self, words: str) -> str:
        """The words with the reason beside them, if there is one."""
        return f"{words}\n\nReason: {self.why}" if self.why else words

    def written(self, use: Use) -> str:
        """The author's words for this use, or the text if there are none."""
        own: str | None = getattr(self, use)
        return self.text if own is None else own


class Constitution(Frozen):
    """Principles, in the order of their file."""

    name: Text
    version: str = ""
    """As written: `1.10` is not 1.1."""
    description: str = ""
    authors: tuple[Text, ...] = ()
    principles: Annotated[tuple[Principle, ...], Field(min_length=1, max_length=MOST_PRINCIPLES)]

    @cached_property
    def left_out(self) -> tuple[Principle, ...]:
        """The principles of the file that `select` left out: none but measurements may depend on them.

        They are no part of what a constitution says: of its digest, of its file, or of what makes it equal to another.
        """
        return ()

    @model_validator(mode="after")
    def _ids_differ(self) -> Self:
        name, count = Counter(principle.id for principle in self.principles).most_common(1)[0]
        if count > 1:
            raise ValueError(f"two principles have the id '{name}'; rename one")
        return self

    @model_validator(mode="after")
    def _priorities_are_an_order(self) -> Self:
        overrides = {principle.id: principle.overrides for principle in self.principles if principle.overrides}
        known = dict.fromkeys(principle.id for principle in self.principles) if overrides else {}
        for name, others in overrides.items():
            if unknown := next((other for other in others if other not in known), None):
                raise ValueError(f"'{name}' overrides '{unknown}', which is no principle; {nearest(unknown, known)}")
        if circle := circle_in(overrides):
            raise ValueError(circle_message(circle))
        return self

    @cached_property
    def digest(self) -> str:
        """SHA-256 of all that behaviour depends on: ids, words, weights and examples, in their order.

        Name, version, description, authors, tags, sources and the reasons of examples are not part of it, so correcting
        them asks nothing again. Neither is what a principle is for where it is for everything, as it is where nobody
        says, or what models are given where it is the words.
        """
        content = []
        for principle in self.principles:
            for_all = set(principle.uses) == set(PURPOSES)
            exclude = {**_FOR_PEOPLE, "uses": True} if for_all else _FOR_PEOPLE
            content.append(principle.model_dump(mode="json", exclude=exclude))
        return _digest(content)

    @cached_property
    def overridden_by(self) -> dict[str, tuple[str, ...]]:
        """By principle, the ids of those that override it, directly or through others, in the order of the file.

        Principles that nothing overrides are not in it.
        """
        above = overriding({principle.id: principle.overrides for principle in self.principles if principle.overrides})
        order = {principle.id: place for place, principle in enumerate(self.principles)}
        return {name: tuple(sorted(names, key=order.__getitem__)) for name, names in above.items()}

    def used_for(self, purpose: Purpose) -> "Constitution":
        """The principles that drafts are revised by, or responses compared.

        Raises:
            ConfigurationError: there is none.
        """
        kept = tuple(principle for principle in self.principles if purpose in principle.uses)
        if len(kept) == len(self.principles):
            return self
        if not kept:
            raise ConfigurationError(
                f"constitution '{self.name}' has no principle for {purpose}; write uses: [{purpose}] below one"
            )
        return self._of(kept)

    def _of(self, principles: tuple[Principle, ...], left_out: tuple[Principle, ...] = ()) -> "Constitution":
        """The same with these principles; made anew and not by model_copy, which would take the digest along."""
        fields = {field: getattr(self, field) for field in Constitution.model_fields}
        overrides = within({row.id: row.overrides for row in self.principles}, {row.id for row in principles})
        principles = tuple(
            row if row.overrides == overrides[row.id] else row.model_copy(update={"overrides": overrides[row.id]})
            for row in principles
        )
        made = Constitution(**{**fields, "principles": principles})
        made.__dict__["left_out"] = left_out  # as it is cached
        return made

    def digest_for(self, purpose: Purpose) -> str:
        """SHA-256 of all that revising drafts, or comparing responses, depends on: no other edit makes it anew."""
        content: list[object] = []
        used = {principle.id for principle in self.principles if purpose in principle.uses}
        reached = within({principle.id: principle.overrides for principle in self.principles}, used)
        for principle in self.principles:
            if purpose in principle.uses and purpose == "comparison":
                # Priorities through principles that compare nothing are told by where they lead.
                direct = set(principle.overrides) & used == set(reached[principle.id])
                below = list(principle.overrides) if direct else sorted(reached[principle.id])
                overrides = [below] if below else []
                measure = [f"measure: {principle.measure}"] if principle.measure else []
                content.append([principle.id, principle.words("comparison"), principle.weight, *overrides, *measure])
            elif purpose in principle.uses:
                words = (principle.words("critique"), principle.words("revision"), principle.revision)
                examples = [example.model_dump(mode="json", exclude={"why"}) for example in principle.examples]
                content.append([principle.id, words, principle.weight, examples])
        return _digest(content)

    def written(self, use: Use) -> dict[str, str]:
        """By principle, the author's words for a use, whatever models are given in their place."""
        return {principle.id: principle.written(use) for principle in (*self.principles, *self.left_out)}

    def principle(self, principle_id: str) -> Principle:
        """The principle of that id."""
        self._check_known([principle_id])
        return self._by_id[principle_id]

    def select(
        self,
        only: Collection[str] | None = None,
        without: Collection[str] = (),
        weights: Mapping[str, float] | None = None,
        wordings: Mapping[str, str] | None = None,
        as_written: Collection[str] = (),
    ) -> "Constitution":
        """The constitution with only these principles (None means all), without those, with these weights and texts.

        A new text replaces the words that a principle has for a single use, and its reason, too. Models are given the
        words of `as_written` as they are.
        """
        weights, wordings = weights or {}, wordings or {}
        self._check_known([*(only or []), *without, *weights, *wordings, *as_written])
        chosen = set(self._by_id if only is None else only) - set(without)
        for principle_id, weight in weights.items():
            if not 0 < weight < math.inf:
                advice = f"a weight is a positive number, and constitution.without=[{principle_id}] leaves one out"
                raise ConfigurationError(f"constitution.weights.{principle_id} is {weight}; {advice}")
        cleared: dict[str, object] = {
            "given": {},
            "as_written": False,
            "why": None,
            "opposite": None,
            "measure": None,
            **dict.fromkeys(USES),
        }
        worded = tuple(
            principle.model_copy(
                update={"weight": float(weights.get(principle.id, principle.weight))}
                | ({"text": wordings[principle.id], **cleared} if principle.id in wordings else {})
                | ({"as_written": True} if principle.id in as_written else {})
            )
            for principle in self.principles
        )
        kept = tuple(principle for principle in worded if principle.id in chosen)
        if not kept:
            raise ConfigurationError(f"constitution '{self.name}': constitution.only and without leave no principle")
        left_out = tuple(principle for principle in worded if principle.id not in chosen)
        return self._of(kept, self.left_out + left_out)

    def giving(self, given: Mapping[str, Mapping[Use, str]]) -> "Constitution":
        """The constitution of which models are given these other words, by principle's id and use, and no others."""
        if not given and not any(principle.given for principle in (*self.principles, *self.left_out)):
            return self

        def with_given(principle: Principle) -> Principle:
            return principle.model_copy(update={"given": dict(given.get(principle.id, {}))})

        return self._of(tuple(map(with_given, self.principles)), tuple(map(with_given, self.left_out)))

    def draw(self, rng: random.Random, used: Collection[str] = ()) -> Principle:
        """A principle at random by weight, among those that occur least often in `used`, the ids drawn before.

        P(p) = w_p / Σ w. Every principle waits for -ln(u) / w_p, where u comes from the generator's next number and the
        principle's id; the shortest wait wins.
        """
        uses = Counter(used)
        fewest = min(uses[principle.id] for principle in self.principles)
        candidates = [principle for principle in self.principles if uses[principle.id] == fewest]
        lot = rng.getrandbits(64)
        return min(candidates, key=lambda principle: wait(lot, principle.id) / principle.weight)

    @cached_property
    def _by_id(self) -> dict[str, Principle]:
        return {principle.id: principle for principle in self.principles}

    def _check_known(self, ids: Iterable[str]) -> None:
        for principle_id in ids:
            if principle_id not in self._by_id:
                advice = nearest(principle_id, self._by_id)
                raise ConfigurationError(f"constitution '{self.name}' has no principle '{principle_id}'; {advice}")


_FOR_PEOPLE: Final[dict[str, Any]] = {"tags": True, "source": True, "examples": {"__all__": {"why": True}}}
"""Fields of a principle that no model sees."""


def _digest(content: object) -> str:
    canonical = json.dumps(content, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(canonical.encode("utf-8", "surrogatepass")).hexdigest()


def wait(lot: int, principle_id: str) -> float:
    """How long a principle of weight 1 waits in a draw: -ln(u), with u from the draw's lot and the principle's id."""
    drawn = hashlib.blake2b(f"{lot} {principle_id}".encode(), digest_size=8).digest()
    return -math.log((int.from_bytes(drawn) + 1) / 2**64)


def circle_message(circle: Iterable[str]) -> str:
    """What is wrong where principles override each other in a circle; its first id stands at its end again."""
    first, *others = circle
    chain = ", which overrides ".join(f"'{name}'" for name in others)
    return f"'{first}' overrides {chain}: priorities must not go in a circle; take one of them out"


def nearest(name: str, known: Iterable[str]) -> str:
    """Advice: the known name that is most like it, or all of them."""
    known = list(known)
    if near := difflib.get_close_matches(name, known, n=1):
        return f"did you mean '{near[0]}'?"
    return "known: " + ", ".join(known[:20]) + (", …" if len(known) > 20 else "")
