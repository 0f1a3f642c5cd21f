"""Drafts, criticised by a principle and revised, in rounds (Bai et al. 2022, section 3.1).

As in the paper, a principle is drawn anew for every round. What differs: within an item no principle comes twice while
there are unused ones; principles have weights; and a response in which the critique finds nothing wrong stays as it is
(`when_nothing_found: revise` is the paper's way). Section 3.5's revision without a critique is `critique: false`.
"""

from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Annotated, Literal, NamedTuple, TypeVar

from pydantic import AfterValidator, Field

from constitutional.base.errors import InputError, RunError, expect_all
from constitutional.base.frozen import Frozen
from constitutional.base.jsonl import read_jsonl
from constitutional.base.records import Message, Prompt, Revision, RevisionStep
from constitutional.base.seeds import rng_of, seed_of
from constitutional.base.templates import Prompts, load_prompts
from constitutional.constitution.constitution import Constitution, Principle
from constitutional.data.prompts import message_of
from constitutional.engines.base import Completion, Engine, Request, Sampling, complete_fitting
from constitutional.judging.critiques import FOLLOWS_PATTERN, checked_pattern, concludes
from constitutional.stages.context import StageContext
from constitutional.stages.summaries import CritiqueReviseSummary

T = TypeVar("T")

TOGETHER = 256
"""Items that go through the rounds side by side, so that the engine can batch them."""


class Settings(Frozen):
    """How drafts are made and revised."""

    rounds: int = Field(default=2, ge=0, le=8)
    """Critiques and revisions of one draft; 0 keeps the draft."""
    critique: bool = True
    """Criticise before revising; without, the response is rewritten by the principle at once."""
    when_nothing_found: Literal["revise", "keep", "stop"] = "keep"
    """Where the critique finds nothing: revise all the same, keep the response for this round, or end the item."""
    finds_nothing: Annotated[str, AfterValidator(checked_pattern)] = FOLLOWS_PATTERN
    """Regular expression that the critique's last sentence matches, in any case, if the critique objects to nothing."""
    few_shot: int = Field(default=0, ge=0, le=16)
    """How many of the principle's own examples go before the conversation, criticised and revised."""
    few_shot_file: Path | None = None
    """JSON lines, each `{"messages": [{"role": …, "content": …}, …]}`, that go before every conversation."""
    temperature: float = Field(default=1.0, ge=0)
    """Of drafts, critiques and revisions; 0 is greedy."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Tokens are drawn from the most likely ones that together have this probability."""
    draft_max_tokens: int = Field(default=256, ge=1)
    """Length in tokens at which a draft is cut off, and its item left out."""
    critique_max_tokens: int = Field(default=256, ge=1)
    """The same for a critique."""
    revision_max_tokens: int = Field(default=256, ge=1)
    """The same for a revision."""

    def sampling(self, max_tokens: int) -> Sampling:
        """How a reply of at most so many tokens is drawn."""
        return Sampling(self.temperature, self.top_p, max_tokens)


def critique_revise(
    prompts: Iterable[Prompt],
    constitution: Constitution,
    engine: Engine,
    templates: Prompts | None = None,
    settings: Settings | None = None,
    seed: int = 0,
) -> Iterator[Revision]:
    """Answer each prompt, then criticise and revise the answer, all by one model.

    Without `templates` it is asked in the project's own words, without `settings` as `constitutional run` does.
    """
    settings = settings or Settings()
    drafts = draft(expect_all(prompts, Prompt, "critique_revise"), engine, settings, seed)
    return revise(drafts, constitution, engine, templates or load_prompts(), settings, seed)


def draft(prompts: Iterable[Prompt], engine: Engine, settings: Settings, seed: int) -> Iterator[Revision]:
    """A first answer to each prompt, as a revision of no steps."""
    for chunk in _chunks(prompts):
        sampling = settings.sampling(settings.draft_max_tokens)
        requests = [Request(prompt.messages, sampling, _seed(settings, seed, prompt, "draft")) for prompt in chunk]
        for prompt, reply in zip(chunk, complete_fitting(engine, requests), strict=True):
            problem = _problem("the draft", reply, sampling.max_tokens)
            yield Revision(prompt=prompt, draft=reply.text if reply else "", steps=(), problem=problem)


def revise(
    drafts: Iterable[Revision],
    constitution: Constitution,
    engine: Engine,
    templates: Prompts,
    settings: Settings,
    seed: int,
) -> Iterator[Revision]:
    """Take each draft through the rounds; an item whose reply cannot be used keeps what it has until then."""
    shots = read_shots(settings.few_shot_file) if settings.few_shot_file else ()
    reviser = _Reviser(constitution, templates, settings, seed, shots)
    for chunk in _chunks(drafts):
        yield from _side_by_side([reviser.rounds(draft) for draft in chunk], engine)


Asking = Generator[Request | None, Completion | None, T]
"""What gives requests, is sent the replies, and returns a result; a turn without a request gives and is sent None."""


def _side_by_side(items: Sequence[Asking[Revision]], engine: Engine) -> list[Revision]:
    """Run all items to their ends, turn by turn, so that the engine can batch the requests of a turn."""
    done: dict[int, Revision] = {}
    replies: dict[int, Completion | None] = dict.fromkeys(range(len(items)))
    while replies:
        requests: dict[int, Request | None] = {}
        for index, reply in replies.items():
            try:
                requests[index] = items[index].send(reply)
            except StopIteration as end:
                done[index] = end.value
        asked = {index: request for index, request in requests.items() if request}
        answers = complete_fitting(engine, list(asked.values()))
        replies = {**dict.fromkeys(requests), **dict(zip(asked, answers, strict=True))}
    return [done[index] for index in range(len(items))]


class _Reviser(NamedTuple):
    """Takes an item through the rounds."""

    constitution: Constitution
    templates: Prompts
    settings: Settings
    seed: int
    shots: tuple[Message, ...]

    def rounds(self, item: Revision) -> Asking[Revision]:
        """All rounds of a draft that can be used; a round takes two turns, for the critique and for the revision."""
        for number in range(1, self.settings.rounds + 1) if item.problem is None else ():
            rng = rng_of(self.seed, "critique_revise", item.prompt.id, number)
            principle = self.constitution.draw(rng, [step.principle for step in item.steps])
            messages = self._conversation(item, principle)
            critique, found_nothing = None, False
            if self.settings.critique:
                messages += (Message("user", self._render_critique(principle)),)
                critique, problem = yield from self._ask(item, principle, number, "critique", messages)
                if problem:
                    step = None if critique is None else _step(principle, critique, item.final, asked=False)
                    return item.model_copy(update={"problem": problem, "unusable": step})
                found_nothing = concludes(critique or "", self.settings.finds_nothing)
            if found_nothing and self.settings.when_nothing_found != "revise":
                item = _after(item, _step(principle, critique, item.final, found_nothing=True, asked=False))
                if self.settings.when_nothing_found == "stop":
                    return item
                yield None  # while other items are revised
                continue
            if critique is None:
                messages += (Message("user", self._render_directly(principle)),)
            else:
                messages += (Message("assistant", critique), Message("user", self._render_revise(principle)))
            revision, problem = yield from self._ask(item, principle, number, "revision", messages)
            step = None if revision is None else _step(principle, critique, revision, found_nothing=found_nothing)
            if problem or step is None:
                return item.model_copy(update={"problem": problem, "unusable": step})
            item = _after(item, step)
        return item

    def _ask(
        self,
        item: Revision,
        principle: Principle,
        number: int,
        what: Literal["critique", "revision"],
        messages: tuple[Message, ...],
    ) -> Asking[tuple[str | None, str | None]]:
        """The reply, None if it cannot be asked for; and why it cannot be used, None if it can."""
        limit = self.settings.critique_max_tokens if what == "critique" else self.settings.revision_max_tokens
        own_seed = _seed(self.settings, self.seed, item.prompt, number, what)
        reply = yield Request(messages, self.settings.sampling(limit), own_seed)
        problem = _problem(f"round {number}, principle '{principle.id}': the {what}", reply, limit)
        return (None if reply is None else reply.text), problem

    def _conversation(self, item: Revision, principle: Principle) -> tuple[Message, ...]:
        """The examples, the conversation and the response as it stands; a system message stays in front."""
        conversation = item.prompt.messages
        system = conversation[:1] if conversation[0].role == "system" else ()
        shots = (*self.shots, *self._examples(principle))
        return (*system, *shots, *conversation[len(system) :], Message("assistant", item.final))

    def _examples(self, principle: Principle) -> Iterator[Message]:
        """The principle's own examples, in the roles that they are examples for."""
        for example in principle.examples[: self.settings.few_shot]:
            asked, worse = Message("user", example.prompt), Message("assistant", example.worse)
            better = Message("assistant", example.better)
            if not self.settings.critique:
                yield from (asked, worse, Message("user", self._render_directly(principle)), better)
                continue
            # An example says which response is the worse one and no more; the sentences are the shipped template's.
            criticise = Message("user", self._render_critique(principle))
            yield from (asked, better, criticise, Message("assistant", "So it follows the principle."))
            yield from (asked, worse, criticise, Message("assistant", "So it violates the principle."))
            yield from (Message("user", self._render_revise(principle)), better)

    def _render_critique(self, principle: Principle) -> str:
        return self.templates.render("critique", principle=principle.words("critique"))

    def _render_revise(self, principle: Principle) -> str:
        # The critique has said the principle; only words of its own for revision add to that.
        return self.templates.render("revise", principle=principle.revision or "")

    def _render_directly(self, principle: Principle) -> str:
        return self.templates.render("revise_directly", principle=principle.words("revision"))


def _after(item: Revision, step: RevisionStep) -> Revision:
    return item.model_copy(update={"steps": (*item.steps, step)})


def _step(
    principle: Principle, critique: str | None, revision: str, *, found_nothing: bool = False, asked: bool = True
) -> RevisionStep:
    """The round as it is kept; `asked` says whether a revision was asked for."""
    return RevisionStep(
        principle=principle.id,
        principle_text=principle.words("revision" if critique is None else "critique"),
        # Without a critique they are the text that stands above.
        revision_text=principle.revision if asked and critique is not None else None,
        critique=critique,
        found_nothing=found_nothing,
        revision=revision,
    )


def read_shots(path: Path) -> tuple[Message, ...]:
    """The conversations of a file, one after the other.

    Raises:
        InputError: a line is none, or the file holds none; says the line and what was expected.
    """
    expected = '{"messages": [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}, …]}'
    shots: list[Message] = []
    for number, row in read_jsonl(path, expected):
        if not isinstance(row, dict) or row.keys() != {"messages"} or not isinstance(row["messages"], list):
            raise InputError(path, f"is no conversation; expected {expected}", number)
        messages = [message_of(path, number, item) for item in row["messages"]]
        roles = [message.role for message in messages]
        if not roles or roles != ["user", "assistant"] * (len(roles) // 2):
            problem = "does not go from user to assistant by turns and end there"
            raise InputError(path, f"{problem}; expected {expected}", number)
        shots += messages
    if not shots:
        raise InputError(path, f"holds no conversation; expected {expected}")
    return tuple(shots)


def _problem(what: str, reply: Completion | None, limit: int) -> str | None:
    if reply is None:
        return f"{what} cannot be asked for: the conversation is longer than the model can read"
    if reply.finish == "length":
        return f"{what} was cut off at {limit} tokens"
    return None if reply.text.strip() else f"{what} is empty"


def _seed(settings: Settings, seed: int, prompt: Prompt, *parts: object) -> int:
    """A seed of the item's own, so that others may come and go; a greedy reply needs none, and is found by any seed."""
    if settings.temperature == 0:
        return 0
    return seed_of(seed, "critique_revise", prompt.id, *parts)


def _chunks(items: Iterable[T]) -> Iterator[list[T]]:
    iterator = iter(items)
    while chunk := list(islice(iterator, TOGETHER)):
        yield chunk


def run(settings: Settings, context: StageContext) -> None:
    """Prompts for training become revisions."""
    prompts = [prompt for prompt in context.read("prompts", Prompt) if prompt.split == "train"]
    drafts = draft(prompts, context.engine("base"), settings, context.seed)
    revised = revise(drafts, context.constitution, context.engine("critic"), context.prompts, settings, context.seed)
    revisions = list(context.progress(revised, len(prompts), "critique and revise"))
    context.write("revisions", revisions)
    steps = [step for revision in revisions for step in revision.steps]
    summary = CritiqueReviseSummary(
        prompts=len(prompts),
        left_out=sum(revision.problem is not None for revision in revisions),
        cut_off_drafts=sum((revision.problem or "").startswith("the draft was cut off") for revision in revisions),
        steps=len(steps),
        found_nothing=sum(step.found_nothing for step in steps),
        changed=sum(revision.final != revision.draft for revision in revisions),
    )
    context.summarise(summary)
    limit = settings.draft_max_tokens
    remedy = f"raise critique_revise.draft_max_tokens, which is {limit}"
    if revisions and summary.cut_off_drafts == len(revisions):
        raise RunError(f"All {len(revisions)} drafts were cut off at {limit} tokens, so none can be revised; {remedy}")
    if revisions and summary.left_out == len(revisions):
        ((worst, count),) = Counter(revision.problem for revision in revisions).most_common(1)
        where = context.output("revisions.jsonl")
        raise RunError(f"None of {len(revisions)} drafts can be used; for {count} of them {worst}. Look at {where}")
    if 2 * summary.cut_off_drafts > len(revisions):
        context.warn(f"{summary.cut_off_drafts} of {len(revisions)} drafts were cut off at {limit} tokens; {remedy}")
