"""Drafts, criticised by a principle and revised, in rounds (Bai et al. 2022, section 3.1).

As in the paper, a principle is drawn anew for every round. What differs: within an item no principle comes twice while
there are unused ones; principles have weights; and a response in which the critique finds nothing wrong stays as it is
(`when_nothing_found: revise` is the paper's way). Section 3.5's revision without a critique is `critique: false`.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
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
    asker = _Asker(constitution, engine, templates, settings, seed, shots)
    for chunk in _chunks(drafts):
        items = [_Item(draft, running=draft.problem is None) for draft in chunk]
        for number in range(1, settings.rounds + 1):
            items = asker.round(items, number)
        yield from (item.revision for item in items)


class _Item(NamedTuple):
    """An item on its way through the rounds."""

    revision: Revision
    running: bool

    def failed(self, problem: str, step: RevisionStep | None) -> "_Item":
        return _Item(self.revision.model_copy(update={"problem": problem, "unusable": step}), running=False)

    def after(self, step: RevisionStep, *, running: bool = True) -> "_Item":
        return _Item(self.revision.model_copy(update={"steps": (*self.revision.steps, step)}), running)


class _Turn(NamedTuple):
    """One item's part in a round."""

    at: int
    """The item's place."""
    principle: Principle
    messages: tuple[Message, ...]
    """What the revision is asked with."""
    critique: str | None = None
    found_nothing: bool = False


class _Asker:
    """Puts the requests of a round together."""

    def __init__(
        self,
        constitution: Constitution,
        engine: Engine,
        templates: Prompts,
        settings: Settings,
        seed: int,
        shots: tuple[Message, ...],
    ) -> None:
        self.constitution = constitution
        self.engine = engine
        self.templates = templates
        self.settings = settings
        self.seed = seed
        self.shots = shots

    def round(self, items: Sequence[_Item], number: int) -> list[_Item]:
        """All items after one more critique and revision."""
        done = list(items)
        drawn = [(index, self._draw(item.revision, number)) for index, item in enumerate(items) if item.running]
        turns = self._criticise(done, drawn, number) if self.settings.critique else self._directly(done, drawn)

        asked = []
        for turn in turns:
            if turn.found_nothing and self.settings.when_nothing_found != "revise":
                step = _step(turn, done[turn.at].revision.final, asked=False)
                done[turn.at] = done[turn.at].after(step, running=self.settings.when_nothing_found == "keep")
            else:
                asked.append(turn)
        limit = self.settings.revision_max_tokens
        for turn, reply in self._ask(done, [(turn, turn.messages) for turn in asked], number, "revision", limit):
            done[turn.at] = done[turn.at].after(_step(turn, reply.text))
        return done

    def _draw(self, item: Revision, number: int) -> Principle:
        rng = rng_of(self.seed, "critique_revise", item.prompt.id, number)
        return self.constitution.draw(rng, [step.principle for step in item.steps])

    def _directly(self, items: Sequence[_Item], drawn: Sequence[tuple[int, Principle]]) -> list[_Turn]:
        turns = []
        for index, principle in drawn:
            request = Message("user", self._render_directly(principle))
            turns.append(_Turn(index, principle, (*self._conversation(items[index].revision, principle), request)))
        return turns

    def _criticise(self, items: list[_Item], drawn: Sequence[tuple[int, Principle]], number: int) -> list[_Turn]:
        """The turns with their critiques; an item whose critique cannot be used is marked in `items`."""
        asks = []
        for index, principle in drawn:
            request = Message("user", self._render_critique(principle))
            messages = (*self._conversation(items[index].revision, principle), request)
            asks.append((_Turn(index, principle, messages), messages))
        turns = []
        for turn, reply in self._ask(items, asks, number, "critique", self.settings.critique_max_tokens):
            revise_it = Message("user", self._render_revise(turn.principle))
            turns.append(
                turn._replace(
                    messages=(*turn.messages, Message("assistant", reply.text), revise_it),
                    critique=reply.text,
                    found_nothing=concludes(reply.text, self.settings.finds_nothing),
                )
            )
        return turns

    def _ask(
        self,
        items: list[_Item],
        asks: Sequence[tuple[_Turn, tuple[Message, ...]]],
        number: int,
        what: Literal["critique", "revision"],
        limit: int,
    ) -> list[tuple[_Turn, Completion]]:
        """The usable replies; an item whose reply is none is marked in `items`."""
        sampling = self.settings.sampling(limit)
        requests = [
            Request(messages, sampling, _seed(self.settings, self.seed, items[turn.at].revision.prompt, number, what))
            for turn, messages in asks
        ]
        usable = []
        for (turn, _), reply in zip(asks, complete_fitting(self.engine, requests), strict=True):
            problem = _problem(f"round {number}, principle '{turn.principle.id}': the {what}", reply, limit)
            if reply is None:
                items[turn.at] = items[turn.at].failed(problem or "", None)
            elif problem and what == "critique":
                step = _step(turn._replace(critique=reply.text), items[turn.at].revision.final, asked=False)
                items[turn.at] = items[turn.at].failed(problem, step)
            elif problem:
                items[turn.at] = items[turn.at].failed(problem, _step(turn, reply.text))
            else:
                usable.append((turn, reply))
        return usable

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


def _step(turn: _Turn, revision: str, *, asked: bool = True) -> RevisionStep:
    """The round as it is kept; `asked` says whether a revision was asked for."""
    return RevisionStep(
        principle=turn.principle.id,
        principle_text=turn.principle.words("revision" if turn.critique is None else "critique"),
        # Without a critique they are the text that stands above.
        revision_text=turn.principle.revision if asked and turn.critique is not None else None,
        critique=turn.critique,
        found_nothing=turn.found_nothing,
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
        cut_off_drafts=sum(_draft_was_cut_off(revision) for revision in revisions),
        steps=len(steps),
        found_nothing=sum(step.found_nothing for step in steps),
        changed=sum(revision.final != revision.draft for revision in revisions),
    )
    context.summarise(summary)
    limit = settings.draft_max_tokens
    remedy = f"raise critique_revise.draft_max_tokens, which is {limit}"
    if revisions and summary.cut_off_drafts == len(revisions):
        raise RunError(f"All {len(revisions)} drafts were cut off at {limit} tokens, so none can be revised; {remedy}")
    if summary.left_out == len(revisions) and revisions:
        problems = Counter(revision.problem for revision in revisions)
        worst, count = problems.most_common(1)[0]
        where = context.output("revisions.jsonl")
        raise RunError(f"None of {len(revisions)} drafts can be used; for {count} of them {worst}. Look at {where}")
    if 2 * summary.cut_off_drafts > len(revisions):
        context.warn(f"{summary.cut_off_drafts} of {len(revisions)} drafts were cut off at {limit} tokens; {remedy}")


def _draft_was_cut_off(revision: Revision) -> bool:
    return bool(revision.problem) and str(revision.problem).startswith("the draft was cut off")
