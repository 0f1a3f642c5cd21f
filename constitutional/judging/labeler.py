"""A model that is asked which of two responses follows a principle better, and how its replies are read.

Every question is put in both orders and the probabilities are averaged (Lee et al. 2023, section 2.1.1). The methods:
the normalised probabilities of the choices, at once (`logprobs`) or after reasoning, which may be clamped (`rationale`;
Bai et al. 2022, section 4.1, clamp to 0.4–0.6); the expected value of a score from 1 to 10 for each response by itself
(`score`; Lee et al., direct RLAIF); the share of sampled replies (`votes`; self-consistency, for engines without
log-probabilities). A reply that cannot be read gives a judgement without a probability, never a tie.
"""

import math
import re
from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

from pydantic import Field, field_validator

from constitutional.base.errors import ModelError
from constitutional.base.frozen import Frozen
from constitutional.base.records import Comparison, Judgement, Message, Order, Reading
from constitutional.base.seeds import seed_of
from constitutional.base.stats import sigmoid
from constitutional.base.templates import Prompts
from constitutional.constitution.constitution import Principle
from constitutional.engines.base import Completion, Engine, Request, Sampling
from constitutional.engines.stories import ask, ask_all, together

ORDERS: tuple[Order, ...] = get_args(Order)
CHOICES = (" A", " B")
SCORES = tuple(f" {score}" for score in range(1, 11))
"""What may follow `Better:` and `Score:`. An engine's probability for one must not hold that of a longer one, " 10"."""

_SO = r"(?i:so|therefore|thus|hence|overall|finally)"
_ANSWER = r"(?i:(?:(?:the|my) )?(?:final )?(?:answer|verdict|choice)(?: is)?)"
_BEGINS = (  # where a line begins, perhaps with a quotation mark, or where a sentence ends
    r"(?:(?:\A|(?<=[\n\r]))[ \t*_#>-]*+(?P<quote>[\"“])?|(?<=[.!?;])|(?<=[.!?;][\"”)*_])|(?<=[.!?;]\*\*))[ \t*_#>-]*+"
    rf"(?:{_SO}\b[ \t,:]*+)?(?:{_ANSWER}\b[ \t:*]*+)?[ \t*_]*+"
)
_ENDS = r"[\s.*_]*+(?(quote)[\"”][\s.*_]*+))\Z"
BETTER = re.compile(_BEGINS + r"(?P<verdict>Better:[\s*_]*+(?:\(?(?P<choice>[AB])\)?)?" + _ENDS)
SCORE = re.compile(_BEGINS + r"(?P<verdict>Score:[\s*_]*+(?P<score>10|[1-9])?(?:\s*+/\s*+10)?" + _ENDS)
"""How a readable reply ends: a sentence of its own. Verdicts anywhere else are not the labeler's, as it may quote a
response that holds one."""
_ANNOUNCES = re.compile(rf"(?:\A[\W_]*+|[.!?;] )(?:{_SO}\b[ ,]*+)?(?:(?i:here is |here's )?{_ANSWER})?[:,]?\Z")
"""The words before a colon that announce a verdict of the labeler's own, and cannot deny it."""

TOO_LONG = "the question is longer than the labeler can read"
"""The problem of a reading that could not be asked for."""


class LabelerSettings(Frozen):
    """How a labeler is asked."""

    method: Literal["logprobs", "rationale", "score", "votes"] = "rationale"
    """Probabilities of the choices at once or after reasoning, a score for each response, or sampled verdicts."""
    max_tokens: int = Field(default=256, ge=1)
    """Length in tokens at which reasoning is cut off, and unreadable."""
    temperature: float = Field(default=0.0, ge=0)
    """Of the reasoning before a choice or a score; 0 is greedy."""
    votes: int = Field(default=5, ge=1, le=64)
    """Replies sampled for each order by the method `votes`; at least half must be readable."""
    vote_temperature: float = Field(default=1.0, gt=0)
    """Of the replies that are votes."""
    score_temperature: float = Field(default=1.0, gt=0)
    """By how many points, of 1 to 10, a response must be ahead for a probability of 0.73."""
    clamp: tuple[float, float] | None = None
    """The probability of each reading is moved into this range, such as [0.4, 0.6]; null leaves it."""

    @field_validator("clamp")
    @classmethod
    def _around_a_half(cls, clamp: tuple[float, float] | None) -> tuple[float, float] | None:
        if clamp is not None and not 0 <= clamp[0] <= 0.5 <= clamp[1] <= 1:
            raise ValueError(f"is {list(clamp)}; it must be a range around 0.5 within 0 and 1, such as [0.4, 0.6]")
        return clamp


class JudgementTask(NamedTuple):
    """A comparison to be judged by a principle."""

    comparison: Comparison
    principle: Principle
    weight: float = 1.0
    """The principle's among those that the comparison is judged by."""


class _Answer(NamedTuple):
    """What came back: a probability that the response shown first is the better one, or a problem."""

    rationale: str
    p_first: float | None
    problem: str | None = None


class Labeler:
    """Asks, and reads the replies."""

    def __init__(self, engine: Engine, templates: Prompts, settings: LabelerSettings, seed: int) -> None:
        self.engine = engine
        self.templates = templates
        self.settings = settings
        self.seed = seed

    async def judge(self, task: JudgementTask) -> Judgement:
        """The judgement. Equal responses are not asked about: there is nothing to prefer."""
        if task.comparison.a.strip() == task.comparison.b.strip():
            same = [Reading(order=order, rationale="", problem="both responses are the same") for order in ORDERS]
            return self._judgement(task, same)
        if self.settings.method == "score":
            return self._judgement(task, [await self._scored(task)])
        return self._judgement(task, await together(self._compared(task, order) for order in ORDERS))

    def _judgement(self, task: JudgementTask, readings: Sequence[Reading]) -> Judgement:
        sides = [reading.p_a for reading in readings if reading.p_a is not None]
        readable = len(sides) == len(readings)
        return Judgement(
            comparison=task.comparison.id,
            principle=task.principle.id,
            principle_text=task.principle.words("comparison"),
            labeler=f"{self.engine.weights} {self.settings.method}",
            readings=tuple(readings),
            p_a=sum(sides) / len(sides) if readable else None,
            conflict=readable and min(sides) < 0.5 < max(sides),
            weight=task.weight,
        )

    async def score(self, conversation: Sequence[Message], principle: Principle) -> float | None:
        """What a conversation's last message is worth by a principle, from 1 to 10; None where it cannot be read.

        Lee et al. (2023), direct RLAIF. The method of the settings does not matter.
        """
        _, shares = await self._rated(conversation, principle, self._score_seed(conversation, principle))
        return None if shares is None else expected_score(shares)

    async def rating(self, conversation: Sequence[Message], principle: Principle) -> int | None:
        """The score from 1 to 10 that the labeler writes of a conversation's last message by a principle.

        It takes one reply, without log-probabilities. None where the reply does not end with a score.
        """
        sampling = Sampling(self.settings.temperature, max_tokens=self.settings.max_tokens)
        question, seed = self._score_question(conversation, principle), self._score_seed(conversation, principle)
        return written_score(await ask(self.engine, Request(question, sampling, seed)))

    # Both responses side by side, in one of the orders.

    async def _compared(self, task: JudgementTask, order: Order) -> Reading:
        question = self._question(task, order)
        if self.settings.method == "votes":
            answer = await self._by_votes(task, order, question)
        else:
            reasoned = _Answer("", None)
            if self.settings.method == "rationale":
                expected = '"Better: A" or "Better: B"'
                reasoned = await self._reason(question, self._seed(task, order), BETTER, expected)
            answer, shares = await self._continued(question, reasoned, "Better:", CHOICES)
            if shares is not None:
                answer = answer._replace(p_first=shares[0])
        return self._reading(order, answer)

    def _question(self, task: JudgementTask, order: Order) -> tuple[Message, ...]:
        a, b = (self.templates.quoted("label", text) for text in (task.comparison.a, task.comparison.b))
        shown_first, shown_second = (a, b) if order == "a_first" else (b, a)
        turns = [(turn.role, self.templates.quoted("label", turn.content)) for turn in task.comparison.prompt.messages]
        text = self.templates.render(
            "label",
            conversation=[{"role": role, "content": content} for role, content in turns],
            a=shown_first,
            b=shown_second,
            principle=task.principle.words("comparison"),
        )
        return (Message("user", text),)

    def _reading(self, order: Order, answer: _Answer) -> Reading:
        if answer.p_first is None:
            return Reading(order=order, rationale=answer.rationale, problem=answer.problem)
        p_a = answer.p_first if order == "a_first" else 1 - answer.p_first
        return Reading(order=order, rationale=answer.rationale, p_a=self._clamped(p_a))

    def _clamped(self, p_a: float) -> float:
        low, high = self.settings.clamp or (0.0, 1.0)
        return min(max(p_a, low), high)

    async def _by_votes(self, task: JudgementTask, order: Order, question: tuple[Message, ...]) -> _Answer:
        sampling = Sampling(self.settings.vote_temperature, max_tokens=self.settings.max_tokens)
        seeds = [self._digest(task, order, vote) for vote in range(self.settings.votes)]
        return _counted(await ask_all(self.engine, [Request(question, sampling, seed) for seed in seeds]))

    # Each response by itself.

    async def _scored(self, task: JudgementTask) -> Reading:
        """One reading: a score knows of no order. Its rationale holds both scores and the reasons for them."""
        answers = await together(
            self._rated((*task.comparison.prompt.messages, Message("assistant", text)), task.principle, seed)
            for text, seed in (
                (task.comparison.a, self._seed(task, "a")),
                (task.comparison.b, self._seed(task, "b")),
            )
        )
        return self._difference(*answers[0], *answers[1])

    async def _rated(
        self, conversation: Sequence[Message], principle: Principle, seed: int
    ) -> tuple[_Answer, Sequence[float] | None]:
        """Of a conversation that ends with a reply: the reasoning, and the scores' probabilities from 1 to 10."""
        question = self._score_question(conversation, principle)
        reasoned = await self._reason(question, seed, SCORE, '"Score: " and a number from 1 to 10')
        return await self._continued(question, reasoned, "Score:", SCORES)

    def _score_question(self, conversation: Sequence[Message], principle: Principle) -> tuple[Message, ...]:
        text = self.templates.render("score", principle=principle.words("comparison"))
        return (*conversation, Message("user", text))

    def _score_seed(self, conversation: Sequence[Message], principle: Principle) -> int:
        return seed_of(self.seed, "score", principle.id, tuple(conversation)) if self.settings.temperature > 0 else 0

    def _difference(
        self, a: _Answer, share_a: Sequence[float] | None, b: _Answer, share_b: Sequence[float] | None
    ) -> Reading:
        problem = next(
            (f"response {name}: {answer.problem}" for name, answer in (("a", a), ("b", b)) if answer.problem), None
        )
        if problem or share_a is None or share_b is None:
            return Reading(order="a_first", rationale=f"a: {a.rationale}\n\nb: {b.rationale}", problem=problem)
        score_a, score_b = expected_score(share_a), expected_score(share_b)
        return Reading(
            order="a_first",
            rationale=f"a ({score_a:.2f} of 10): {a.rationale}\n\nb ({score_b:.2f} of 10): {b.rationale}",
            p_a=self._clamped(sigmoid((score_a - score_b) / self.settings.score_temperature)),
        )

    # What the methods share.

    async def _reason(
        self, question: tuple[Message, ...], seed: int, ending: re.Pattern[str], expected: str
    ) -> _Answer:
        """The reasoning before a verdict, without it; or a problem."""
        sampling = Sampling(self.settings.temperature, max_tokens=self.settings.max_tokens)
        reply = await ask(self.engine, Request(question, sampling, seed))
        if reply.failed:
            return _Answer("", None, _unanswered(reply))
        if reply.finish == "length":
            return _Answer(reply.text, None, f"the reply was cut off at {self.settings.max_tokens} tokens")
        verdict = verdict_of(reply.text, ending)
        if verdict is None:
            return _Answer(reply.text, None, f"the reply does not end with {expected}")
        return _Answer(reply.text[: verdict.start("verdict")], None)

    async def _continued(
        self, question: tuple[Message, ...], reasoned: _Answer, word: str, choices: tuple[str, ...]
    ) -> tuple[_Answer, Sequence[float] | None]:
        """The reasoning with the choices' probabilities behind it and the word; None where they cannot be read."""
        if reasoned.problem is not None:
            return reasoned, None
        begun = (*question, Message("assistant", reasoned.rationale + word))
        completion = await ask(self.engine, Request(begun, choices=choices))
        if completion.failed:
            return reasoned._replace(problem=_unanswered(completion)), None
        shares = self._shares(completion.choice_logprobs, len(choices))
        return (reasoned, shares) if shares else (reasoned._replace(problem="the choices have no probabilities"), None)

    def _shares(self, logprobs: Sequence[float], choices: int) -> list[float]:
        """The choices' probabilities, renormalised over them; none where they are no numbers."""
        if len(logprobs) != choices:
            raise ModelError(
                f"{self.engine.weights}: {len(logprobs)} log-probabilities came back for {choices} choices; "
                "with an engine that cannot give them, set label.method=votes"
            )
        top = max(logprobs)
        if any(map(math.isnan, logprobs)) or math.isinf(top):
            return []
        weights = [math.exp(logprob - top) for logprob in logprobs]
        return [weight / math.fsum(weights) for weight in weights]

    def _seed(self, task: JudgementTask, which: str) -> int:
        # A greedy reply needs no seed, and without one it is found again by runs with other seeds.
        return self._digest(task, which, 0) if self.settings.temperature > 0 else 0

    def _digest(self, task: JudgementTask, which: str, number: int) -> int:
        """A seed of the question's own, so that others may come and go."""
        return seed_of(self.seed, "label", task.comparison.id, task.principle.id, which, number)


def _unanswered(completion: Completion) -> str:
    """Why a question has no answer, for a reading."""
    return TOO_LONG if completion.finish == "too_long" else f"the question has no answer: {completion.reason}"


def verdict_of(reply: str, ending: re.Pattern[str]) -> re.Match[str] | None:
    """The verdict that a reply ends with, by `BETTER` or `SCORE`; None where there is none of its own.

    A verdict that a sentence goes on to is none, as the sentence may deny it: "I would not say: Better: A".
    """
    verdict = ending.search(reply)
    if verdict is None:
        return None
    *_, line = ["", *reply[: verdict.start()].rstrip(" \t\n\r*_#>-").splitlines()]
    return verdict if not line.endswith((":", ",")) or _ANNOUNCES.search(line) else None


def written_score(reply: Completion) -> int | None:
    """The score that a reply ends with, from 1 to 10; None if there is none, or no whole reply."""
    verdict = verdict_of(reply.text, SCORE) if not reply.failed and reply.finish != "length" else None
    return int(verdict["score"]) if verdict and verdict["score"] else None


def _counted(completions: Sequence[Completion]) -> _Answer:
    """The share of verdicts for A among those that can be read, if at least half can."""
    replies = [reply for reply in completions if not reply.failed]
    if not replies:  # all of them answer one question
        return _Answer("", None, _unanswered(completions[0]))
    rationale = "\n\n".join(f"{number}: {reply.text}" for number, reply in enumerate(replies, start=1))
    endings = [verdict_of(reply.text, BETTER) if reply.finish != "length" else None for reply in replies]
    verdicts = [ending["choice"] for ending in endings if ending and ending["choice"]]
    if not verdicts or 2 * len(verdicts) < len(replies):
        return _Answer(rationale, None, f"{len(replies) - len(verdicts)} of {len(replies)} votes cannot be read")
    return _Answer(rationale, verdicts.count("A") / len(verdicts))


def expected_score(shares: Sequence[float]) -> float:
    """Σ i·P(i) over the scores from 1 (Lee et al. 2023, direct RLAIF)."""
    return math.fsum(score * share for score, share in enumerate(shares, start=1))
