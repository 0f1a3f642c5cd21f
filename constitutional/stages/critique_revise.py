"""Drafts, criticised by a principle and revised, in rounds (Bai et al. 2022, section 3.1).

As in the paper, a principle is drawn anew for every round. What differs: within an item no principle comes twice while
there are unused ones; principles have weights; and a response in which the critique finds nothing wrong stays as it is
(`when_nothing_found: revise` is the paper's way). Section 3.5's revision without a critique is `critique: false`.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Annotated, Final, Literal, get_args

from pydantic import AfterValidator, Field

from constitutional.base.errors import InputError, RunError, expect_all
from constitutional.base.frozen import Frozen
from constitutional.base.jsonl import read_jsonl
from constitutional.base.progress import counted
from constitutional.base.records import Message, Prompt, Revision, RevisionStep
from constitutional.base.seeds import rng_of, seed_of
from constitutional.base.shards import column_of
from constitutional.base.templates import Prompts, load_prompts
from constitutional.base.text import shortened
from constitutional.constitution.constitution import Constitution, Principle
from constitutional.data.prompts import message_of
from constitutional.engines.base import Completion, Engine, Request, Sampling, without_thinking
from constitutional.engines.stories import ask, side_by_side
from constitutional.judging import revising
from constitutional.judging.critiques import FOLLOWS_PATTERN, checked_pattern, concludes
from constitutional.stages.context import StageContext
from constitutional.stages.summaries import CritiqueReviseSummary

Part = Literal["draft", "critique", "revision"]
PARTS: Final[tuple[Part, ...]] = get_args(Part)


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
    """How many of the principle's own examples go before the conversation, criticised and revised. A revision that says
    an example's reply word for word is left out, but for short ones and refusals."""
    few_shot_file: Path | None = None
    """JSON lines, each `{"messages": [{"role": …, "content": …}, …]}`, that go before every conversation."""
    temperature: float | None = Field(default=None, ge=0)
    """Temperature at which drafts, critiques and revisions are sampled; 0 means greedy decoding. In a run, null takes
    what the drafting model's generation_config.json recommends; where it recommends nothing, and elsewhere, 1."""
    top_p: float | None = Field(default=None, gt=0, le=1)
    """Tokens are drawn from the most likely ones that together have this probability; null as for the temperature."""
    draft_max_tokens: int = Field(default=256, ge=1)
    """Length in tokens at which a draft is cut off."""
    critique_max_tokens: int = Field(default=256, ge=1)
    """The same for a critique."""
    revision_max_tokens: int = Field(default=256, ge=1)
    """The same for a revision."""
    cut_off: Literal["leave_out", "shorten"] = "leave_out"
    """What becomes of a reply that was cut off: its item is left out, or the reply ends with its last whole sentence,
    which suits models that go on without end."""

    def limit(self, what: "Part") -> int:
        """The length at which such a reply is cut off."""
        limits: dict[Part, int] = {
            "draft": self.draft_max_tokens,
            "critique": self.critique_max_tokens,
            "revision": self.revision_max_tokens,
        }
        return limits[what]

    def sampling(self, max_tokens: int) -> Sampling:
        """How a reply of at most so many tokens is drawn."""
        return Sampling.of(self.temperature, self.top_p, max_tokens)


def critique_revise(
    prompts: Iterable[Prompt],
    constitution: Constitution,
    engine: Engine,
    templates: Prompts | None = None,
    settings: Settings | None = None,
    seed: int = 0,
) -> Iterator[Revision]:
    """Answer each prompt, then criticise and revise the answer, all by one model.

    Without `templates` it is asked in the project's own words, without `settings` as `constitutional run` does. The
    model is given the principles' words as the constitution has them (`Principle.words`). A run gives the sandbox's
    model other words where it would misread them; `judging.understanding.in_known_words` makes such a constitution.
    """
    reviser = Reviser(
        constitution.used_for("revision"), engine, engine, templates or load_prompts(), settings or Settings(), seed
    )
    return side_by_side(map(reviser.item, expect_all(prompts, Prompt, "critique_revise")))


class Reviser:
    """Takes a prompt through all that happens to it: a draft, and then rounds of critique and revision.

    Args:
        constitution: the principles that are drawn.
        drafter: the model that answers.
        critic: the model that criticises and revises.
        templates: the words in which the critic is asked.
        settings: how.
        seed: of the draws; every prompt has draws of its own, so that others may come and go.
    """

    def __init__(
        self,
        constitution: Constitution,
        drafter: Engine,
        critic: Engine,
        templates: Prompts,
        settings: Settings,
        seed: int,
    ) -> None:
        self.constitution = constitution
        self.drafter = drafter
        self.critic = critic
        self.templates = templates
        self.settings = settings
        self.seed = seed
        self.shots = read_shots(settings.few_shot_file) if settings.few_shot_file else ()
        self.asked: Counter[Part] = Counter()
        """Drafts, critiques and revisions that were asked for."""
        self.cut_off: Counter[Part] = Counter()
        """Those that reached their length."""
        self.unspoken: Counter[Part] = Counter()
        """Of these, those that were cut off in the thoughts before them."""
        self.shortened: Counter[Part] = Counter()
        """Of those that were cut off, those that end with a whole sentence."""

    async def item(self, prompt: Prompt) -> Revision:
        """All that happens to a prompt; where a reply cannot be used, what there is until then."""
        item = await self.draft(prompt)
        ends = item.problem is not None
        for number in range(1, self.settings.rounds + 1):
            if not ends:
                rng = rng_of(self.seed, "critique_revise", prompt.id, number)
                principle = self.constitution.draw(rng, [step.principle for step in item.steps])
                item, ends = await self.round(item, number, principle)
        return item

    async def draft(self, prompt: Prompt) -> Revision:
        """A first answer, as a revision of no steps."""
        limit = self.settings.draft_max_tokens
        own_seed = _seed(self.settings, self.seed, prompt, "draft")
        reply = self._usable(
            "draft", await ask(self.drafter, Request(prompt.messages, self.settings.sampling(limit), own_seed))
        )
        return Revision(prompt=prompt, draft=reply.text, steps=(), problem=_problem("the draft", reply, limit))

    async def round(self, item: Revision, number: int, principle: Principle) -> tuple[Revision, bool]:
        """The item after a round of critique and revision, and whether it is the last one."""
        messages = self._conversation(item, principle)
        critique, found_nothing = None, False
        if self.settings.critique:
            messages += (Message("user", self._render_critique(principle)),)
            critique, problem = await self._ask(item, principle, number, "critique", messages)
            if problem or critique is None:
                step = None if critique is None else _step(principle, critique, item.final, asked=False)
                return item.model_copy(update={"problem": problem, "unusable": step}), True
            found_nothing = concludes(critique, self.settings.finds_nothing)
        if found_nothing and self.settings.when_nothing_found != "revise":
            item = _after(item, _step(principle, critique, item.final, found_nothing=True, asked=False))
            return item, self.settings.when_nothing_found == "stop"
        if critique is None:
            messages += (Message("user", self._render_directly(principle)),)
        else:
            messages += (Message("assistant", critique), Message("user", self._render_revise(principle)))
        revision, problem = await self._ask(item, principle, number, "revision", messages)
        if revision is not None and revising.repeats_example(revision, self._shown(item, principle)):
            problem = problem or f"round {number}, principle '{principle.id}': the revision {revising.REPEATS}"
        step = None if revision is None else _step(principle, critique, revision, found_nothing=found_nothing)
        if problem or step is None:
            return item.model_copy(update={"problem": problem, "unusable": step}), True
        return _after(item, step), False

    async def _ask(
        self,
        item: Revision,
        principle: Principle,
        number: int,
        what: Part,
        messages: tuple[Message, ...],
    ) -> tuple[str | None, str | None]:
        """The reply, None where there is none; and why it cannot be used, None if it can."""
        limit = self.settings.limit(what)
        own_seed = _seed(self.settings, self.seed, item.prompt, number, what)
        reply = self._usable(what, await ask(self.critic, Request(messages, self.settings.sampling(limit), own_seed)))
        problem = _problem(f"round {number}, principle '{principle.id}': the {what}", reply, limit)
        return None if reply.failed else reply.text, problem

    def _usable(self, what: Part, reply: Completion) -> Completion:
        """The reply, without the sentence in which it was cut off where replies are shortened."""
        self.asked[what] += 1
        self.cut_off[what] += reply.finish == "length"
        self.unspoken[what] += reply.unspoken
        if reply.finish == "length" and self.settings.cut_off == "shorten" and (whole := shortened(reply.text)):
            self.shortened[what] += 1
            return reply._replace(text=whole, finish="stop")
        return reply

    def _conversation(self, item: Revision, principle: Principle) -> tuple[Message, ...]:
        """The examples, the conversation and the response as it stands; a system message stays in front."""
        conversation = item.prompt.messages
        system = conversation[:1] if conversation[0].role == "system" else ()
        return (*system, *self._shown(item, principle), *conversation[len(system) :], Message("assistant", item.final))

    def _shown(self, item: Revision, principle: Principle) -> tuple[Message, ...]:
        """The conversations that serve as examples."""
        return (*self.shots, *self._examples(principle, item.prompt.messages[-1].content))

    def _examples(self, principle: Principle, prompt: str) -> Iterator[Message]:
        """The principle's own examples but of this prompt, in the roles that they are examples for."""
        others = [example for example in principle.examples if example.prompt.strip() != prompt.strip()]
        for example in others[: self.settings.few_shot]:
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
        return self.templates.render("revise", principle=principle.words("revision") if principle.revision else "")

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
        revision_text=principle.words("revision") if asked and critique is not None and principle.revision else None,
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


def _problem(what: str, reply: Completion, limit: int) -> str | None:
    if reply.finish == "too_long":
        return f"{what} cannot be asked for: the conversation is longer than the model can read"
    if reply.failed:
        return f"{what} cannot be had: {reply.reason}"
    if reply.finish == "length":
        return f"{what} was cut off at {limit} tokens{', while the model thought' if reply.unspoken else ''}"
    return None if reply.text.strip() else f"{what} is empty"


def _seed(settings: Settings, seed: int, prompt: Prompt, *parts: object) -> int:
    """A seed of the item's own, so that others may come and go; a greedy reply needs none, and is found by any seed."""
    if settings.temperature == 0:
        return 0
    return seed_of(seed, "critique_revise", prompt.id, *parts)


class RevisionTally:
    """What is counted of a run's revisions while they are written."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        """By what `CritiqueReviseSummary` calls it."""
        self.problems: Counter[str] = Counter()
        """Why items are left out, and how often."""
        self.signs = revising.signs(())

    def through(self, revisions: Iterable[Revision]) -> Iterator[Revision]:
        """The revisions, counted."""
        for revision in revisions:
            problem = revision.problem or ""
            self.problems.update([problem] if problem else [])
            self.counts.update(
                cut_off_drafts=problem.startswith("the draft was cut off"),
                steps=len(revision.steps),
                found_nothing=sum(step.found_nothing for step in revision.steps),
                changed=revision.final != revision.draft,
            )
            self.signs = self.signs.plus(revising.signs([revision]))
            yield revision


def run(settings: Settings, context: StageContext) -> None:
    """Prompts for training become revisions, which are written as they come."""
    prompts, tally = context.stream("prompts", Prompt), RevisionTally()
    engines = (context.engine("generator"), context.engine("critic"))
    constitution = context.constitution.used_for("revision") if settings.rounds else context.constitution
    reviser = Reviser(constitution, *engines, context.prompts, settings, context.seed)
    total = sum(split == "train" for split in column_of(prompts, "split"))
    stories = (reviser.item(prompt) for prompt in prompts if prompt.split == "train")
    with context.task("critique and revise", total) as task, closing(side_by_side(stories, ended=task.update)) as made:
        count = context.write("revisions", tally.through(made))
    left_out = tally.problems.total()
    context.summarise(
        CritiqueReviseSummary(
            prompts=total,
            left_out=left_out,
            cut_off_drafts=tally.counts["cut_off_drafts"],
            shortened=sum(reviser.shortened.values()),
            steps=tally.counts["steps"],
            found_nothing=tally.counts["found_nothing"],
            changed=tally.counts["changed"],
        )
    )
    for line in (*_cut_off_lines(reviser), *revising.told(tally.signs)):
        context.warn(line)
    if count and left_out == count:
        ((worst, often),) = tally.problems.most_common(1)
        if lines := _cut_off_lines(reviser, least=0.0):
            raise RunError(f"None of {count} drafts can be used: {'; '.join(lines)}")
        where = context.output("revisions.jsonl")
        raise RunError(f"None of {count} drafts can be used; for {often} of them {worst}. Look at {where}")


OFTEN: Final = 0.25
"""The share of replies that are cut off from which a run says so."""


def _cut_off_lines(reviser: Reviser, least: float = OFTEN) -> list[str]:
    """Which replies were often cut off, and what to type."""
    lines = []
    for part in PARTS:
        cut_off, asked, limit = reviser.cut_off[part], reviser.asked[part], reviser.settings.limit(part)
        if cut_off <= least * asked:
            continue
        remedy = f"critique_revise.{part}_max_tokens={2 * limit}"
        if reviser.settings.cut_off == "shorten":
            became = (
                f"{reviser.shortened[part]} of these end with their last whole sentence; for longer ones type {remedy}"
            )
        else:
            became = (
                f"they are left out; type {remedy}, or critique_revise.cut_off=shorten to keep their whole sentences"
            )
        if unspoken := reviser.unspoken[part]:
            other = without_thinking("generator" if part == "draft" else "critic")
            became += f". The model still thought in {unspoken} of these: type more, or {other}"
        lines.append(f"{cut_off} of {counted(asked, part)} were cut off at {limit} tokens: {became}")
    return lines
