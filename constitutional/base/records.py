"""The rows that pass between stages. Each is frozen, written as one JSON line, and known by a digest of its content.

Every row names what it rests on, so a preference can be followed back to the judgements or the person behind it, to the
principle's text at that time, and to the drafts and critiques that the compared answers came from.
"""

import hashlib
import json
from collections.abc import Mapping
from functools import cached_property
from typing import Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from constitutional.base.errors import expect
from constitutional.base.message import Message as Message  # noqa: PLC0414 - whoever reads rows finds it here

Order = Literal["a_first", "b_first"]
Split = Literal["train", "held_out"]
GoldJudge = Literal["traits", "labeler", "reward_model"]
LABELER: Final = "labeler"
"""The name of a run's labeler among the judges of its panel."""


canonical_json: Final = json.JSONEncoder(
    sort_keys=True, ensure_ascii=False, separators=(",", ":"), check_circular=False
).encode
"""JSON that is the same for the same values: names in order, and no spaces."""


def id_of(values: Mapping[str, Any]) -> str:
    """A row's id: the first 16 hexadecimal digits of the SHA-256 of the canonical JSON of its fields as JSON values."""
    return digest_of_json(canonical_json(values))


def digest_of_json(canonical: str) -> str:
    """The same from the canonical JSON."""
    return hashlib.sha256(canonical.encode("utf-8", "surrogatepass")).hexdigest()[:16]


class Record(BaseModel):
    """A row: immutable, no unknown fields, `id` is a digest of its content."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    @model_validator(mode="before")
    @classmethod
    def _without_id(cls, values: object) -> object:
        # It is written for people to see; what a row is known by is always the digest of what it says.
        if isinstance(values, dict) and "id" in values:
            return {name: value for name, value in values.items() if name != "id"}
        return values

    @cached_property
    def id(self) -> str:
        """A digest of the row's content (`id_of`)."""
        return id_of(self.model_dump(mode="json"))

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """As pydantic's, but the copy's id is its own."""
        copy = super().model_copy(update=update, deep=deep)
        copy.__dict__.pop("id", None)
        return copy


class Prompt(Record):
    """A conversation that ends with a user's message, to be answered."""

    messages: tuple[Message, ...]
    """At least one; the last is the user's, or a tool's."""
    split: Split = "train"
    """Held-out prompts are for evaluation only."""
    source: str = ""
    """Where it comes from, such as `sandbox` or a file's name."""
    info: dict[str, str] = Field(default_factory=dict)
    """What evaluation knows of it (on the sandbox its kind and topic); no stage that trains or labels reads this."""

    @classmethod
    def of(cls, text: str) -> "Prompt":
        """What a user asks in one message."""
        expect(text, str, "Prompt.of", "a text")
        return cls(messages=(Message("user", text),))


class RevisionStep(Record):
    """One round of critique and revision."""

    principle: str
    """The id of the principle that was drawn."""
    principle_text: str
    """The principle's words as they were asked with."""
    revision_text: str | None = Field(default=None, exclude_if=lambda text: text is None)
    """Its own words for revising, where the revision was asked for with them after a critique; None otherwise."""
    critique: str | None
    """None where the response was revised without a critique."""
    found_nothing: bool
    """The critique found that the response follows the principle."""
    revision: str
    """The response after this round."""


class Revision(Record):
    """A draft and what became of it."""

    prompt: Prompt
    draft: str
    steps: tuple[RevisionStep, ...]
    """In order; empty where no round was asked for."""
    problem: str | None = None
    """Why this item is left out of training (an empty or cut-off reply, say); None if it is not."""
    unusable: RevisionStep | None = Field(default=None, exclude_if=lambda step: step is None)
    """The round that failed, kept to be read: its critique or its revision is the empty or cut-off reply.

    Where the critique failed, the revision is the response as it was. Not written where nothing failed.
    """

    @property
    def final(self) -> str:
        """The response after the last round."""
        return self.steps[-1].revision if self.steps else self.draft


class SftExample(Record):
    """A reply that supervised fine-tuning learns."""

    prompt: Prompt
    reply: str
    kind: Literal["revision", "helpful"]


class Comparison(Record):
    """Two different responses to one prompt."""

    prompt: Prompt
    a: str
    b: str
    model: str = ""
    """Identity of the model that both were drawn from; empty where nobody knows."""


class Reading(Record):
    """A labeler's answer to a comparison asked in one order."""

    order: Order
    """`b_first` means that response b was shown as (A)."""
    rationale: str
    """What the labeler wrote before its choice; empty where it was not asked to reason."""
    p_a: float | None = Field(default=None, ge=0, le=1)
    """Probability that response a (not position A) is the better one; None where the answer cannot be read."""
    problem: str | None = None
    """Why it cannot be read; None if it can."""
    reasoning: str = Field(default="", exclude_if=lambda text: not text)
    """What a reasoning model thought, where its engine keeps that apart from the reply; nothing is read from it."""
    bounded: bool = Field(default=False, exclude_if=lambda bounded: not bounded)
    """The log-probability of a choice is only an upper bound, so `p_a` is a bound too: the response that it prefers has
    at least this probability. Where responses are scored, the scores are approximate."""


class Judgement(Record):
    """What a labeler makes of a comparison by one principle, asked in both orders."""

    comparison: str
    """The comparison's id."""
    principle: str
    """The principle's id."""
    principle_text: str
    labeler: str
    """Identity of the labeler, and how it was asked in fact."""
    judge: str = Field(default=LABELER, exclude_if=lambda name: name == LABELER)
    """The labeler's name in the run: `labeler`, or a name of its panel."""
    readings: tuple[Reading, ...]
    p_a: float | None = Field(default=None, ge=0, le=1)
    """Probability that a is better: the mean over both orders; None if an order cannot be read."""
    conflict: bool = False
    """The two orders prefer different responses: the labeler kept the position, not the answer."""
    weight: float = Field(default=1.0, ge=0)
    """The principle's weight among those that this comparison is judged by, times the judge's in a panel."""
    gives_way_to: tuple[str, ...] = Field(default=(), exclude_if=lambda ids: not ids)
    """Ids of the principles that override this one, among those that this comparison is judged by."""

    @property
    def problem(self) -> str | None:
        """Why there is no probability; None if there is one."""
        return next((reading.problem for reading in self.readings if reading.problem), None)


class SpotCheck(Record):
    """A comparison that people are to look at."""

    comparison: str
    """The comparison's id."""
    reason: Literal["audit", "conflict", "margin", "panel", "reward", "random"]
    """Why it was chosen; `audit` was drawn uniformly, and is never trained on."""
    probability: float = Field(gt=0, le=1)
    """That it was chosen, for whatever reason, before anything was drawn."""
    votes: int = Field(default=1, ge=1)
    """How many people are to vote on it."""


class Verdict(Record):
    """A person's decision on a comparison."""

    comparison: str
    """The comparison's id."""
    rater: str
    choice: Literal["a", "b", "tie", "both_bad", "skip"]
    strength: int = Field(default=1, ge=1, le=4)
    """From slightly (1) to far better (4)."""
    principle: str | None = None
    """The principle that the verdict is by; None for a verdict in all."""
    rationale: str = ""
    seconds: float | None = Field(default=None, ge=0, allow_inf_nan=False, exclude_if=lambda value: value is None)
    """Time that the rater spent, in seconds, with all answers to the comparison; None where it was not recorded. A
    verdict by a principle has none: the time is that of the verdict in all."""
    exposed: bool | None = Field(default=None, exclude_if=lambda value: value is None)
    """Whether the rater saw a harmful text for it; None where that was not recorded."""
    gold: Literal["a", "b"] | None = Field(default=None, exclude_if=lambda answer: answer is None)
    """The known answer, where the comparison is a gold item: an example of the constitution that tests the rater.
    Such a verdict is never trained on, and says nothing of the labeler."""
    withdrawn: bool = Field(default=False, exclude_if=lambda withdrawn: not withdrawn)
    """A skip that stands for work of which no answer counts: it tells who worked, and is counted nowhere else."""
    in_place_of: "tuple[Verdict, ...]" = Field(default=(), exclude_if=lambda verdicts: not verdicts)
    """The raters' verdicts that this decision of a lead replaces. They tell who worked, and are counted nowhere
    else."""


class Rollout(Record):
    """A reply that the policy gave while it was trained, kept to be scored by what the training could not see."""

    phase: int = Field(ge=1)
    """The phase, or step, that it was trained on in."""
    prompt: str
    """The prompt's id."""
    reply: str
    reward: float
    """The proxy: what the training took the reply to be worth, before penalties."""
    kl: float | None
    """Of this reply, in nats from the reference: Σ log π/π_ref over its tokens, which may be negative. None where it is
    not known of single replies."""
    phase_kl: float | None
    """The same, a mean over all replies of the phase; None where it is not known."""
    length: int
    """In tokens."""
    truncated: bool
    """It was cut off at the most tokens allowed."""


class Sample(Record):
    """A held-out prompt and what each model replied."""

    prompt: Prompt
    replies: dict[str, str]
    """By model, in the order in which the models are made."""
    cut_off: tuple[str, ...] = ()
    """Models whose reply reached the greatest length, and did not end by itself."""


class GoldPoint(Record):
    """A stretch of phases, by one judge of the replies that were kept."""

    by: GoldJudge
    """`traits`: the share of the constitution, by weight, that a reply keeps, found exactly; `labeler`: a score from 1
    to 10; `reward_model`: the held-out one's score."""
    first_phase: int
    last_phase: int
    kl: float | None
    """Mean of the replies' KL from the reference in nats; None where it is not known."""
    sqrt_kl: float | None
    proxy: float
    """Mean of the replies' reward in training."""
    gold: float
    """Mean of the judge's scores."""
    low: float
    """Lower end of the 95% interval of `gold`, drawn by prompts."""
    high: float
    n: int
    """Replies."""


class Preference(Record):
    """A comparison with a direction: what reward models and DPO are trained on."""

    prompt: Prompt
    chosen: str
    rejected: str
    probability: float = Field(ge=0.5, le=1)
    """That chosen is better than rejected; the soft target."""
    source: Literal["ai", "human"]
    principles: tuple[str, ...] = ()
    """Ids of the principles that it rests on; empty for people who were not asked by principle."""
    rests_on: tuple[str, ...] = ()
    """Ids of the judgements or verdicts behind it."""
    comparison: str
    """The comparison's id."""
    split: Split = "train"
    weight: float = Field(default=1.0, gt=0, le=1, exclude_if=lambda weight: weight == 1)
    """The pair's share of what one comparison counts: the pairs that a ranking of K replies gives have 1/(K(K−1)/2)."""
