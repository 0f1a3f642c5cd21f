"""A model that is asked which of two responses follows a principle better, and how its replies are read.

Every question is put in both orders and the probabilities are averaged (Lee et al. 2023, section 2.1.1). The methods:
the normalised probabilities of the choices, at once (`logprobs`) or after reasoning, which may be clamped (`rationale`;
Bai et al. 2022, section 4.1, clamp to 0.4–0.6); the expected value of a score from 1 to 10 for each response by itself
(`score`; Lee et al., direct RLAIF); the share of sampled replies (`votes`; self-consistency, for engines without
log-probabilities). A reply that cannot be read gives a judgement without a probability, never a tie.
"""

import math
import re
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple, get_args

from pydantic import Field, field_validator

from constitutional.base.errors import ModelError
from constitutional.base.frozen import Frozen
from constitutional.base.records import Comparison, Judgement, Message, Order, Reading
from constitutional.base.seeds import seed_of
from constitutional.base.stats import sigmoid
from constitutional.base.templates import Prompts
from constitutional.constitution.constitution import Principle
from constitutional.engines.base import Completion, Engine, Request, Sampling, complete_fitting

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


_Asked = Sequence[tuple[JudgementTask, Order]]
_Questions = Sequence[tuple[Message, ...]]


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

    def judge(self, tasks: Sequence[JudgementTask]) -> list[Judgement]:
        """A judgement for each, in order. Equal responses are not asked about: there is nothing to prefer."""
        alike = {index for index, task in enumerate(tasks) if task.comparison.a.strip() == task.comparison.b.strip()}
        asked = [task for index, task in enumerate(tasks) if index not in alike]
        readings = iter(self._scored(asked) if self.settings.method == "score" else self._compared(asked))
        same = tuple(Reading(order=order, rationale="", problem="both responses are the same") for order in ORDERS)
        return [self._judgement(task, same if index in alike else next(readings)) for index, task in enumerate(tasks)]

    def _judgement(self, task: JudgementTask, readings: tuple[Reading, ...]) -> Judgement:
        sides = [reading.p_a for reading in readings if reading.p_a is not None]
        readable = len(sides) == len(readings)
        return Judgement(
            comparison=task.comparison.id,
            principle=task.principle.id,
            principle_text=task.principle.words("comparison"),
            labeler=f"{self.engine.identity} {self.settings.method}",
            readings=readings,
            p_a=sum(sides) / len(sides) if readable else None,
            conflict=readable and min(sides) < 0.5 < max(sides),
            weight=task.weight,
        )

    def score(
        self, conversations: Sequence[Sequence[Message]], principles: Sequence[Principle]
    ) -> list[list[float | None]]:
        """What each conversation's last message is worth by each principle, from 1 to 10; None where it cannot be read.

        Lee et al. (2023), direct RLAIF. The method of the settings does not matter.
        """
        pairs = [(tuple(conversation), principle) for conversation in conversations for principle in principles]
        answers = self._rated(pairs, [self._score_seed(reply, principle) for reply, principle in pairs])
        scores = [None if share is None else expected_score(share) for _, share in answers]
        return [scores[at : at + len(principles)] for at in range(0, len(scores), len(principles))]

    def ratings(self, replies: Sequence[tuple[Sequence[Message], Principle]]) -> list[int | None]:
        """For each conversation, the score from 1 to 10 that the labeler writes of its last message by the principle.

        One reply each, without log-probabilities. None where it does not end with a score.
        """
        sampling = Sampling(self.settings.temperature, max_tokens=self.settings.max_tokens)
        requests = [
            Request(self._score_question(conversation, principle), sampling, self._score_seed(conversation, principle))
            for conversation, principle in replies
        ]
        return [written_score(reply) for reply in complete_fitting(self.engine, requests)]

    # Both responses side by side, in both orders.

    def _compared(self, tasks: Sequence[JudgementTask]) -> list[tuple[Reading, ...]]:
        asked = [(task, order) for task in tasks for order in ORDERS]
        ways = {"logprobs": self._at_once, "rationale": self._after_reasoning, "votes": self._by_votes}
        answers = ways[self.settings.method](asked, [self._question(task, order) for task, order in asked])
        readings = [self._reading(order, answer) for (_, order), answer in zip(asked, answers, strict=True)]
        return [tuple(readings[at : at + len(ORDERS)]) for at in range(0, len(readings), len(ORDERS))]

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

    def _at_once(self, _: _Asked, questions: _Questions) -> list[_Answer]:
        shares = self._choose([(*question, Message("assistant", "Better:")) for question in questions], CHOICES)
        return [_Answer("", None, share) if isinstance(share, str) else _Answer("", share[0]) for share in shares]

    def _after_reasoning(self, asked: _Asked, questions: _Questions) -> list[_Answer]:
        seeds = [self._seed(task, order) for task, order in asked]
        reasoned = self._reason(questions, seeds, BETTER, '"Better: A" or "Better: B"')
        return [
            answer if share is None else _Answer(answer.rationale, share[0])
            for answer, share in self._continued(questions, reasoned, "Better:", CHOICES)
        ]

    def _by_votes(self, asked: _Asked, questions: _Questions) -> list[_Answer]:
        count = self.settings.votes
        sampling = Sampling(self.settings.vote_temperature, max_tokens=self.settings.max_tokens)
        requests = [
            Request(question, sampling, self._digest(task, order, vote))
            for (task, order), question in zip(asked, questions, strict=True)
            for vote in range(count)
        ]
        replies = complete_fitting(self.engine, requests)
        return [_counted(replies[at : at + count]) for at in range(0, len(replies), count)]

    # Each response by itself.

    def _scored(self, tasks: Sequence[JudgementTask]) -> list[tuple[Reading, ...]]:
        """One reading each: a score knows of no order. Its rationale holds both scores and the reasons for them."""
        sides = [(task, name, getattr(task.comparison, name)) for task in tasks for name in ("a", "b")]
        replies = [
            ((*task.comparison.prompt.messages, Message("assistant", text)), task.principle) for task, _, text in sides
        ]
        answers = self._rated(replies, [self._seed(task, name) for task, name, _ in sides])
        return [(self._difference(*answers[at], *answers[at + 1]),) for at in range(0, len(answers), 2)]

    def _rated(
        self, replies: Sequence[tuple[tuple[Message, ...], Principle]], seeds: Sequence[int]
    ) -> list[tuple[_Answer, Sequence[float] | None]]:
        """For each conversation that ends with a reply: the reasoning, and the scores' probabilities from 1 to 10."""
        questions = [self._score_question(conversation, principle) for conversation, principle in replies]
        reasoned = self._reason(questions, seeds, SCORE, '"Score: " and a number from 1 to 10')
        return list(self._continued(questions, reasoned, "Score:", SCORES))

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

    def _reason(
        self, questions: _Questions, seeds: Sequence[int], ending: re.Pattern[str], expected: str
    ) -> list[_Answer]:
        """The reasoning before a verdict, without it; or a problem."""
        sampling = Sampling(self.settings.temperature, max_tokens=self.settings.max_tokens)
        requests = [Request(question, sampling, seed) for question, seed in zip(questions, seeds, strict=True)]
        answers = []
        for reply in complete_fitting(self.engine, requests):
            if reply is None:
                answers.append(_Answer("", None, TOO_LONG))
                continue
            verdict = verdict_of(reply.text, ending)
            if reply.finish == "length":
                problem = f"the reply was cut off at {self.settings.max_tokens} tokens"
                answers.append(_Answer(reply.text, None, problem))
            elif verdict is None:
                answers.append(_Answer(reply.text, None, f"the reply does not end with {expected}"))
            else:
                answers.append(_Answer(reply.text[: verdict.start("verdict")], None))
        return answers

    def _continued(
        self,
        questions: _Questions,
        reasoned: Sequence[_Answer],
        word: str,
        choices: tuple[str, ...],
    ) -> Iterator[tuple[_Answer, Sequence[float] | None]]:
        """Each reasoning with the probabilities of what follows it and the word; None where it cannot be read."""
        asked = [
            (*messages, Message("assistant", answer.rationale + word))
            for messages, answer in zip(questions, reasoned, strict=True)
            if answer.problem is None
        ]
        shares = iter(self._choose(asked, choices))
        for answer in reasoned:
            share = answer.problem or next(shares)
            yield (answer._replace(problem=share), None) if isinstance(share, str) else (answer, share)

    def _choose(self, asked: Sequence[tuple[Message, ...]], choices: tuple[str, ...]) -> list[list[float] | str]:
        """The choices' probabilities, renormalised over them; or why there are none."""
        shares: list[list[float] | str] = []
        for completion in complete_fitting(self.engine, [Request(messages, choices=choices) for messages in asked]):
            if completion is None:
                shares.append(TOO_LONG)
                continue
            logprobs = completion.choice_logprobs
            if len(logprobs) != len(choices):
                raise ModelError(
                    f"{self.engine.identity}: {len(logprobs)} log-probabilities came back for {len(choices)} choices; "
                    "with an engine that cannot give them, set label.method=votes"
                )
            top = max(logprobs)
            if any(map(math.isnan, logprobs)) or math.isinf(top):
                shares.append("the choices have no probabilities")
                continue
            weights = [math.exp(logprob - top) for logprob in logprobs]
            shares.append([weight / math.fsum(weights) for weight in weights])
        return shares

    def _seed(self, task: JudgementTask, which: str) -> int:
        # A greedy reply needs no seed, and without one it is found again by runs with other seeds.
        return self._digest(task, which, 0) if self.settings.temperature > 0 else 0

    def _digest(self, task: JudgementTask, which: str, number: int) -> int:
        """A seed of the question's own, so that others may come and go."""
        return seed_of(self.seed, "label", task.comparison.id, task.principle.id, which, number)


def verdict_of(reply: str, ending: re.Pattern[str]) -> re.Match[str] | None:
    """The verdict that a reply ends with, by `BETTER` or `SCORE`; None where there is none of its own.

    A verdict that a sentence goes on to is none, as the sentence may deny it: "I would not say: Better: A".
    """
    verdict = ending.search(reply)
    if verdict is None:
        return None
    *_, line = ["", *reply[: verdict.start()].rstrip(" \t\n\r*_#>-").splitlines()]
    return verdict if not line.endswith((":", ",")) or _ANNOUNCES.search(line) else None


def written_score(reply: Completion | None) -> int | None:
    """The score that a reply ends with, from 1 to 10; None if there is none, or no whole reply."""
    verdict = verdict_of(reply.text, SCORE) if reply is not None and reply.finish != "length" else None
    return int(verdict["score"]) if verdict and verdict["score"] else None


def _counted(asked: Sequence[Completion | None]) -> _Answer:
    """The share of verdicts for A among those that can be read, if at least half can."""
    replies = [reply for reply in asked if reply is not None]
    if not replies:  # all of them answer one question
        return _Answer("", None, TOO_LONG)
    rationale = "\n\n".join(f"{number}: {reply.text}" for number, reply in enumerate(replies, start=1))
    endings = [verdict_of(reply.text, BETTER) if reply.finish != "length" else None for reply in replies]
    verdicts = [ending["choice"] for ending in endings if ending and ending["choice"]]
    if not verdicts or 2 * len(verdicts) < len(replies):
        return _Answer(rationale, None, f"{len(replies) - len(verdicts)} of {len(replies)} votes cannot be read")
    return _Answer(rationale, verdicts.count("A") / len(verdicts))


def expected_score(shares: Sequence[float]) -> float:
    """Σ i·P(i) over the scores from 1 (Lee et al. 2023, direct RLAIF)."""
    return math.fsum(score * share for score, share in enumerate(shares, start=1))
