"""A model that is asked which of two responses follows a principle better, and how its replies are read.

Every question is put in both orders and the probabilities are averaged (Lee et al. 2023, section 2.1.1). The methods:
the normalised probabilities of the choices, at once (`logprobs`) or after reasoning, which may be clamped (`rationale`;
Bai et al. 2022, section 4.1, clamp to 0.4–0.6); the expected value of a score from 1 to 10 for each response by itself
(`score`; Lee et al., direct RLAIF); the share of sampled replies (`votes`; self-consistency); or how much likelier a
response is under the principle than without it, which suits models that are too small to judge (`contrast`,
`contrast.py`). A principle with a rule of its own (`measure:`) is judged by that, and no model is asked. An engine that
gives no log-probabilities behind a reply's first words is asked for votes, or for a score in words (`rating`), instead:
`method_for`. A reply that cannot be read gives a judgement without a probability, never a tie.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Final, Literal, NamedTuple, Self, get_args

from pydantic import Field, field_validator, model_validator

from constitutional.base.errors import ModelError
from constitutional.base.frozen import Frozen
from constitutional.base.records import LABELER, Comparison, Judgement, Message, Order, Reading
from constitutional.base.seeds import seed_of
from constitutional.base.stats import sigmoid
from constitutional.base.templates import Prompts
from constitutional.base.text import without_thoughts
from constitutional.constitution.constitution import Principle
from constitutional.constitution.measures import Rule
from constitutional.engines.base import Abilities, Completion, Engine, Request, Sampling
from constitutional.engines.settings import SANDBOX
from constitutional.engines.stories import ask, ask_all, together
from constitutional.judging import contrast

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
BETTER = re.compile(_BEGINS + r"(?P<verdict>Better:[\s*_]*+(?:\(?(?P<answer>[AB])\)?)?" + _ENDS)
SCORE = re.compile(_BEGINS + r"(?P<verdict>Score:[\s*_]*+(?P<answer>10|[1-9])?(?:\s*+/\s*+10)?" + _ENDS)
"""How a readable reply ends: a sentence of its own. Verdicts anywhere else are not the labeler's, as it may quote a
response that holds one."""
_ANNOUNCES = re.compile(rf"(?:\A[\W_]*+|[.!?;] )(?:{_SO}\b[ ,]*+)?(?:(?i:here is |here's )?{_ANSWER})?[:,]?\Z")
"""The words before a colon that announce a verdict of the labeler's own, and cannot deny it."""

TOO_LONG = "the question is longer than the labeler can read"
"""The problem of a reading that could not be asked for."""
CUT_OFF = "the reply was cut off at"
"""How the problem of a reply begins that was cut off before its answer."""
THINKING = ", while the model thought"
"""How that problem ends where the reply had not begun."""

_STRING = r'"(?:[^"\\]|\\.)*+"'
_MEMBER = re.compile(rf"\s*+(?P<key>{_STRING})\s*+:\s*+(?P<value>{_STRING}|\d++(?=[\s,}}]))\s*+,?", re.DOTALL)
"""A whole member of a JSON object. Where the text ends behind a number, the number may have had more digits."""


def _schema(answer: str, values: dict[str, object]) -> str:
    # The reasoning comes first, as the answer is to rest on it.
    properties = {"reasoning": {"type": "string"}, answer: values}
    return json.dumps(
        {"type": "object", "properties": properties, "required": [*properties], "additionalProperties": False}
    )


def _whole_members(text: str) -> dict[str, object]:
    """The members of a flat JSON object that stand whole in a text, which may be cut off."""
    members: dict[str, object] = {}
    text = text.lstrip()
    place = 1 if text.startswith("{") else len(text)
    while member := _MEMBER.match(text, place):
        members[json.loads(member["key"])] = json.loads(member["value"])
        place = member.end()
    return members


class Form(NamedTuple):
    """How a reply states its answer: at the end of a text, or in JSON where the engine holds it to a schema."""

    ending: re.Pattern[str]
    """Its group `answer` is the answer."""
    expected: str
    """The ending, in words."""
    key: str
    """Of the answer in JSON."""
    answers: tuple[str, ...]
    schema: str

    def request(self, question: tuple[Message, ...], sampling: Sampling, seed: int, *, structured: bool) -> Request:
        """The question, to be answered in this form."""
        if not structured:
            return Request(question, sampling, seed)
        *before, last = question
        # The template asks for an ending in words, and servers do not show the schema to the model.
        asked = f'{last.content}\n\nReply in JSON instead: {{"reasoning": "…", "{self.key}": …}}'
        return Request((*before, Message("user", asked)), sampling, seed, schema=self.schema)

    def read(self, reply: Completion, *, structured: bool) -> str | None:
        """The answer, one of `answers`; None where there is none.

        A text that was cut off has none. JSON that was cut off has one if it stands there whole, as some models write
        spaces behind it without end.
        """
        cut_off = reply.finish == "length"
        if reply.failed or (cut_off and not structured):
            return None
        text = without_thoughts(reply.text)
        if not structured:
            verdict = verdict_of(text, self.ending)
            return verdict["answer"] if verdict else None
        try:
            value = (_whole_members(text) if cut_off else json.loads(text))[self.key]
        except (ValueError, KeyError, TypeError, RecursionError):
            return None
        written = str(value) if isinstance(value, str | int) and not isinstance(value, bool) else ""
        return written if written in self.answers else None


VERDICT = Form(
    BETTER,
    '"Better: A" or "Better: B"',
    "better",
    ("A", "B"),
    _schema("better", {"type": "string", "enum": ["A", "B"]}),
)
MARK = Form(
    SCORE,
    '"Score: " and a number from 1 to 10',
    "score",
    tuple(map(str, range(1, 11))),
    _schema("score", {"type": "integer", "minimum": 1, "maximum": 10}),
)

Method = Literal["logprobs", "rationale", "contrast", "score", "votes"]
Answering = Literal[Method, "rating"]
"""How a labeler is asked in fact; `rating` is a score that it writes."""

IN_WORDS: Final[dict[Answering, str]] = {
    "logprobs": "probabilities of A and B",
    "rationale": "reasoning, then probabilities of A and B",
    "contrast": "how much likelier a response is under the principle",
    "score": "probabilities of scores from 1 to 10",
    "votes": "sampled verdicts",
    "rating": "written scores from 1 to 10",
}


def method_for(method: Method, abilities: Abilities) -> Answering:
    """How an engine is asked where the settings say `method`: by the same, or by what needs no log-probabilities."""
    if method == "votes" or (abilities.choices and (abilities.prefill or method == "contrast")):
        return method
    return "rating" if method == "score" else "votes"


def answering(method: Method, abilities: Abilities) -> str:
    """For people: how an engine is asked where the settings say `method`, and why where that is another way."""
    asked = method_for(method, abilities)
    text = f"{asked} ({IN_WORDS[asked]}{', in JSON' if abilities.structured and asked in WRITTEN else ''})"
    if asked == method:
        return text
    lacks = "does not go on from an assistant's first words" if abilities.choices else "gives no log-probabilities"
    return f"{text} in place of {method}, as the engine {lacks}"


def unfit(method: Method, model: object) -> str:
    """Why a model is known to label badly by a method, and what to type; empty where nothing is known against it.

    Args:
        method: of the settings.
        model: the settings of the labeler's engine.
    """
    if method != "logprobs" or getattr(model, "path", None) != SANDBOX:
        return ""
    return (
        "the sandbox's model labels well only after it has reasoned, and label.method=logprobs asks for its choice at "
        "once; type label.method=rationale"
    )


WRITTEN: Final = ("votes", "rating")
"""The ways that read an answer from a text."""


def decisive_abilities(abilities: Abilities) -> str:
    """What a labeler's answers depend on beside its model; empty for log-probabilities and plain texts."""
    probabilities = "" if abilities.choices and abilities.prefill else " no log-probabilities"
    return probabilities + (" structured" if abilities.structured else "")


class LabelerSettings(Frozen):
    """How a labeler is asked."""

    method: Method = "rationale"
    """Probabilities of the choices at once or after reasoning; how much likelier a response is under the principle
    (contrast, for models that are too small to judge); a score for each response; or sampled verdicts. A labeler whose
    engine gives no log-probabilities, or does not go on from an assistant's first words, is asked for verdicts or a
    written score instead."""
    few_shot: int = Field(default=0, ge=0, le=16)
    """How many of the principle's own examples go before a comparison, with their answers (Bai et al. 2022, section
    4.1); the better response stands first and second by turns. An example about the same prompt is left out."""
    max_tokens: int = Field(default=256, ge=1)
    """Length in tokens at which reasoning is cut off, and unreadable."""
    temperature: float = Field(default=0.0, ge=0)
    """Temperature of the reasoning before a choice or a score; 0 means greedy decoding."""
    votes: int = Field(default=5, ge=1, le=64)
    """Replies sampled for each order by the method `votes`; at least half must be readable."""
    vote_temperature: float = Field(default=1.0, gt=0)
    """Temperature of the replies that are votes."""
    score_temperature: float = Field(default=1.0, gt=0)
    """By how many points, of 1 to 10, a response must be ahead for a probability of 0.73."""
    clamp: tuple[float, float] | None = None
    """The probability of each reading is moved into this range, such as [0.4, 0.6]; null leaves it."""

    @model_validator(mode="after")
    def _shows_examples(self) -> Self:
        if self.few_shot and self.method in ("contrast", "score"):
            raise ValueError(
                f"few_shot shows comparisons with their answers, and method={self.method} asks for none; "
                "type label.few_shot=0, or another label.method"
            )
        return self

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
    """Of the judgement among those of the comparison: the principle's, times the labeler's in a panel."""
    gives_way_to: tuple[str, ...] = ()
    """Ids of the principles that override this one, among those that the comparison is judged by."""


class _Answer(NamedTuple):
    """What came back: a probability that the response shown first is the better one, or a problem."""

    rationale: str
    p_first: float | None = None
    problem: str | None = None
    reasoning: str = ""
    """What the model thought apart from its reply."""
    bounded: bool = False
    """The probability rests on an upper bound."""


class _Scored(NamedTuple):
    """A response's score, or a problem."""

    answer: _Answer
    score: float | None


class Rating(NamedTuple):
    """The score that a labeler writes of a response, from 1 to 10, or the reason why there is none."""

    score: int | None
    problem: str | None = None


class Labeler:
    """Asks, and reads the replies.

    Args:
        engine: the model; its abilities decide how it is asked.
        templates: the words of the questions.
        settings: how it is asked.
        seed: what all seeds of requests come from.
        judge: its name in the run, which its judgements bear.
        sharpness: by principle, what the log-odds of `contrast` are multiplied by, if not by 1; `contrast.calibrated`
            finds it.
    """

    def __init__(
        self,
        engine: Engine,
        templates: Prompts,
        settings: LabelerSettings,
        seed: int,
        judge: str = LABELER,
        sharpness: Mapping[str, float] | None = None,
    ) -> None:
        self.engine = engine
        self.templates = templates
        self.settings = settings
        self.seed = seed
        self.judge_name = judge
        self.sharpness = sharpness or {}
        self.method = method_for(settings.method, engine.abilities)
        self._structured = engine.abilities.structured

    async def judge(self, task: JudgementTask) -> Judgement:
        """The judgement. Equal responses are not asked about: there is nothing to prefer."""
        if task.comparison.a.strip() == task.comparison.b.strip():
            same = [Reading(order=order, rationale="", problem="both responses are the same") for order in ORDERS]
            return self._judgement(task, same)
        if (rule := task.principle.rule) is not None:
            return self._judgement(task, [self._by_rule(task.comparison, rule)], rule)
        if self.settings.method == "score":
            return self._judgement(task, [await self._by_scores(task)])
        if self.method == "contrast":
            return self._judgement(task, [await self._by_contrast(task)], words=contrast.wish_of(task.principle))
        return self._judgement(task, await together(self._compared(task, order) for order in ORDERS))

    def _judgement(
        self, task: JudgementTask, readings: Sequence[Reading], rule: Rule | None = None, words: str | None = None
    ) -> Judgement:
        sides = [reading.p_a for reading in readings if reading.p_a is not None]
        readable = len(sides) == len(readings)
        return Judgement(
            comparison=task.comparison.id,
            principle=task.principle.id,
            principle_text=words or task.principle.words("comparison"),
            labeler=f"rule {task.principle.measure}" if rule else f"{self.engine.weights} {self.method}",
            judge=self.judge_name,
            readings=tuple(readings),
            p_a=sum(sides) / len(sides) if readable else None,
            conflict=readable and min(sides) < 0.5 < max(sides),
            weight=task.weight,
            gives_way_to=task.gives_way_to,
        )

    async def score(self, conversation: Sequence[Message], principle: Principle) -> float | None:
        """What a conversation's last message is worth by a principle, from 1 to 10; None where it cannot be read.

        Lee et al. (2023), direct RLAIF. The method of the settings does not matter. A principle's own rule scores it.
        """
        if principle.rule is not None:
            return principle.rule.score(conversation[-1].content)
        return (await self._scored(conversation, principle, self._score_seed(conversation, principle))).score

    async def rating(self, conversation: Sequence[Message], principle: Principle) -> Rating:
        """The score that the labeler writes of a conversation's last message by a principle.

        It takes one reply, without log-probabilities. By a principle's own rule the score is rounded.
        """
        if principle.rule is not None:
            return Rating(round(principle.rule.score(conversation[-1].content)))
        reply = await self._written(conversation, principle, self._score_seed(conversation, principle))
        mark = self._mark(reply)
        return Rating(mark, None if mark else self._unread(reply, MARK))

    # Both responses side by side, in one of the orders.

    async def _compared(self, task: JudgementTask, order: Order) -> Reading:
        question = self._question(task, order)
        if self.method == "votes":
            return self._reading(order, await self._by_votes(task, order, question))
        reasoned = _Answer("")
        if self.method == "rationale":
            reasoned = await self._reason(question, self._seed(task, order), VERDICT)
        answer, shares = await self._continued(question, reasoned, "Better:", CHOICES)
        return self._reading(order, answer._replace(p_first=shares[0]) if shares else answer)

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
        return (*self._shots(task, order), Message("user", text))

    def _shots(self, task: JudgementTask, order: Order) -> Iterator[Message]:
        """The principle's own examples, as comparisons that have been answered."""
        asked = task.comparison.prompt.messages[-1].content.strip()
        examples = [example for example in task.principle.examples if example.prompt.strip() != asked]
        for number, example in enumerate(examples[: self.settings.few_shot]):
            better_first = (number % 2 == 0) == (order == "a_first")
            shown = (example.better, example.worse) if better_first else (example.worse, example.better)
            turn, first, second = (self.templates.quoted("label", text) for text in (example.prompt, *shown))
            text = self.templates.render(
                "label",
                conversation=[{"role": "user", "content": turn}],
                a=first,
                b=second,
                principle=task.principle.words("comparison"),
            )
            yield Message("user", text)
            yield Message("assistant", f"Better: {'A' if better_first else 'B'}")

    def _reading(self, order: Order, answer: _Answer) -> Reading:
        p_a = answer.p_first if answer.p_first is None or order == "a_first" else 1 - answer.p_first
        return Reading(
            order=order,
            rationale=answer.rationale,
            reasoning=answer.reasoning,
            p_a=None if p_a is None else self._clamped(p_a),
            bounded=answer.bounded,
            problem=answer.problem if p_a is None else None,
        )

    def _clamped(self, p_a: float) -> float:
        low, high = self.settings.clamp or (0.0, 1.0)
        return min(max(p_a, low), high)

    async def _by_votes(self, task: JudgementTask, order: Order, question: tuple[Message, ...]) -> _Answer:
        sampling = Sampling(self.settings.vote_temperature, max_tokens=self.settings.max_tokens)
        seeds = [self._digest(task, order, vote) for vote in range(self.settings.votes)]
        requests = [VERDICT.request(question, sampling, seed, structured=self._structured) for seed in seeds]
        replies = await ask_all(self.engine, requests)
        verdicts = [VERDICT.read(reply, structured=self._structured) for reply in replies]
        answer = _counted(replies, verdicts)
        if answer.p_first is None and not all(reply.failed for reply in replies):
            unread = next(reply for reply, verdict in zip(replies, verdicts, strict=True) if not verdict)
            return answer._replace(problem=f"{answer.problem}: {self._unread(unread, VERDICT)}")
        return answer

    async def _by_contrast(self, task: JudgementTask) -> Reading:
        """One reading: a likelihood knows of no order."""
        answers = await ask_all(self.engine, contrast.requests(task.comparison, task.principle, self.templates))
        if failed := next((answer for answer in answers if answer.failed), None):
            return Reading(order="a_first", rationale="", problem=_unanswered(failed))
        found = contrast.contrast(task.comparison, answers, self.engine.weights)
        if found is None:
            return Reading(order="a_first", rationale="", problem="the responses have no exact probabilities")
        p_a = self._clamped(contrast.probability(found, self.sharpness.get(task.principle.id, 1.0)))
        against = "what goes against it" if task.principle.opposite else "without it"
        likelier = f"likelier under the principle than {against}: a by {found.a:+.3f} nats a word, b by {found.b:+.3f}"
        return Reading(order="a_first", rationale=likelier, p_a=p_a)

    # Each response by itself.

    def _by_rule(self, comparison: Comparison, rule: Rule) -> Reading:
        """One reading, without any model: both scores, as by the method `score`."""
        a, b = (
            _Scored(_Answer(f"{rule.number_in(text):g}"), rule.score(text)) for text in (comparison.a, comparison.b)
        )
        return self._difference(a, b)

    async def _by_scores(self, task: JudgementTask) -> Reading:
        """One reading: a score knows of no order. Its rationale holds both scores and the reasons for them."""
        a, b = await together(
            self._scored((*task.comparison.prompt.messages, Message("assistant", text)), task.principle, seed)
            for text, seed in (
                (task.comparison.a, self._seed(task, "a")),
                (task.comparison.b, self._seed(task, "b")),
            )
        )
        return self._difference(a, b)

    async def _scored(self, conversation: Sequence[Message], principle: Principle, seed: int) -> _Scored:
        """Of a conversation that ends with a reply: the expected score, or the one that is written."""
        if method_for("score", self.engine.abilities) == "rating":
            reply = await self._written(conversation, principle, seed)
            mark, answer = self._mark(reply), _Answer(reply.text, reasoning=reply.reasoning)
            return _Scored(answer if mark else answer._replace(problem=self._unread(reply, MARK)), mark)
        question = self._score_question(conversation, principle)
        reasoned = await self._reason(question, seed, MARK)
        answer, shares = await self._continued(question, reasoned, "Score:", SCORES)
        return _Scored(answer, expected_score(shares) if shares else None)

    async def _written(self, conversation: Sequence[Message], principle: Principle, seed: int) -> Completion:
        sampling = Sampling(self.settings.temperature, max_tokens=self.settings.max_tokens)
        question = self._score_question(conversation, principle)
        return await ask(self.engine, MARK.request(question, sampling, seed, structured=self._structured))

    def _mark(self, reply: Completion) -> int | None:
        mark = MARK.read(reply, structured=self._structured)
        return int(mark) if mark else None

    def _score_question(self, conversation: Sequence[Message], principle: Principle) -> tuple[Message, ...]:
        text = self.templates.render("score", principle=principle.words("comparison"))
        return (*conversation, Message("user", text))

    def _score_seed(self, conversation: Sequence[Message], principle: Principle) -> int:
        return seed_of(self.seed, "score", principle.id, tuple(conversation)) if self.settings.temperature > 0 else 0

    def _difference(self, a: _Scored, b: _Scored) -> Reading:
        named = (("a", a), ("b", b))
        problems = [f"response {name}: {scored.answer.problem}" for name, scored in named if scored.answer.problem]
        marks = {name: "" if scored.score is None else f" ({scored.score:.2f} of 10)" for name, scored in named}
        known = a.score is not None and b.score is not None
        return Reading(
            order="a_first",
            rationale="\n\n".join(
                f"{name}{marks[name] if known else ''}: {scored.answer.rationale}" for name, scored in named
            ),
            reasoning="\n\n".join(scored.answer.reasoning for _, scored in named if scored.answer.reasoning),
            p_a=(
                self._clamped(sigmoid((a.score - b.score) / self.settings.score_temperature))
                if a.score is not None and b.score is not None
                else None
            ),
            bounded=known and (a.answer.bounded or b.answer.bounded),
            problem=None if known else problems[0],
        )

    # What the methods share.

    async def _reason(self, question: tuple[Message, ...], seed: int, form: Form) -> _Answer:
        """The reasoning before a verdict, without it; or a problem."""
        sampling = Sampling(self.settings.temperature, max_tokens=self.settings.max_tokens)
        reply = await ask(self.engine, Request(question, sampling, seed))
        answer = _Answer(reply.text, reasoning=reply.reasoning)
        spoken = without_thoughts(reply.text)
        verdict = None if reply.failed or reply.finish == "length" else verdict_of(spoken, form.ending)
        if verdict is None:
            return answer._replace(problem=self._unread(reply, form, in_json=False))
        thoughts = len(reply.text) - len(spoken)
        return answer._replace(rationale=reply.text[: thoughts + verdict.start("verdict")])

    def _unread(self, reply: Completion, form: Form, *, in_json: bool = True) -> str:
        """Why a reply cannot be read, for a reading."""
        if reply.failed:
            return _unanswered(reply)
        if reply.finish == "length":
            return f"{CUT_OFF} {self.settings.max_tokens} tokens{THINKING if reply.unspoken else ''}"
        if in_json and self._structured:
            return f'the reply is no JSON with one of {", ".join(form.answers)} as "{form.key}"'
        return f"the reply does not end with {form.expected}"

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
        if not shares:
            return reasoned._replace(problem="the choices have no probabilities"), None
        if completion.bounded and completion.bounded[shares.index(max(shares))]:
            # What is likeliest by its upper bound may be the least likely.
            problem = "the choices are not among the likeliest tokens that the engine tells"
            return reasoned._replace(problem=problem), None
        return reasoned._replace(bounded=any(completion.bounded)), shares

    def _shares(self, logprobs: Sequence[float], choices: int) -> list[float]:
        """The choices' probabilities, renormalised over them; none where they are no numbers.

        Where a choice's is an upper bound, the others' come out as lower bounds.
        """
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


def _counted(completions: Sequence[Completion], verdicts: Sequence[str | None]) -> _Answer:
    """The share of verdicts for A among those that can be read, if at least half can."""
    replies = [reply for reply in completions if not reply.failed]
    if not replies:  # all of them answer one question
        return _Answer("", None, _unanswered(completions[0]))
    answer = _Answer(
        rationale="\n\n".join(f"{number}: {reply.text}" for number, reply in enumerate(replies, start=1)),
        reasoning="\n\n".join(reply.reasoning for reply in replies if reply.reasoning),
    )
    readable = [verdict for verdict in verdicts if verdict]
    if not readable or 2 * len(readable) < len(replies):
        return answer._replace(problem=f"{len(replies) - len(readable)} of {len(replies)} votes cannot be read")
    return answer._replace(p_first=readable.count("A") / len(readable))


def expected_score(shares: Sequence[float]) -> float:
    """Σ i·P(i) over the scores from 1 (Lee et al. 2023, direct RLAIF)."""
    return math.fsum(score * share for score, share in enumerate(shares, start=1))
