"""Measures how well a model plays its parts in the mini-world: the numbers in the shipped model's card.

Everything is asked through the project's own templates, as in a run. What is true of a text is known from how it was
composed, or from the exact detectors. Intervals are 95%: Wilson's where items are independent, a bootstrap over
principles or pairs where several items share one.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import NamedTuple

from constitutional.base.records import Message
from constitutional.base.stats import Interval, bootstrap_mean, calibration_error, wilson
from constitutional.base.templates import Prompts
from constitutional.engines.base import Completion, Engine, Request, Sampling
from constitutional.sandbox import principles, teacher
from constitutional.sandbox.detect import detect
from constitutional.sandbox.teacher import FAMILIES, FOLLOWS, VIOLATES
from constitutional.sandbox.understand import Understanding, doubts, understand_texts
from constitutional.sandbox.world import (
    TRAITS,
    Response,
    WorldPrompt,
    base_traits,
    compose,
    draw_prompt,
    text_of,
    traits_of,
    uniform_traits,
)
from scripts.sandbox_training.corpus import Family, draw_pair

GREEDY = Sampling(temperature=0.0, max_tokens=220)
FREE = Sampling(temperature=1.0, max_tokens=220)
CHOICES = (" A", " B")
ASKS_FOR_CHOICE = "Better:"


class Wording(NamedTuple):
    """A principle whose meaning is known."""

    family: Family
    text: str


class Measure(NamedTuple):
    """One number with what was wanted of it."""

    name: str
    value: float
    """A share in [0, 1]; 0 where nothing was measured."""
    interval: Interval
    n: int
    """Items; 0 where there was none to measure."""
    at_least: float | None = None
    at_most: float | None = None

    @property
    def reached(self) -> bool:
        """Whether the value was measured and is where it was wanted; always so where nothing was wanted."""
        low, high = self.at_least, self.at_most
        if low is None and high is None:
            return True
        return self.n > 0 and (low is None or self.value >= low) and (high is None or self.value <= high)

    def as_dict(self) -> dict[str, str | float | int | bool | None]:
        """For JSON; the value of what was not measured is null."""
        return {
            "name": self.name,
            "value": self.value if self.n else None,
            "low": self.interval.low,
            "high": self.interval.high,
            "n": self.n,
            "at_least": self.at_least,
            "at_most": self.at_most,
            "reached": self.reached,
        }


def share(name: str, right: Sequence[bool], at_least: float | None = None, *, groups: Sequence[str] = ()) -> Measure:
    """The share of items that are right; `groups` names the principle or pair that an item shares with others."""
    n, good = len(right), sum(right)
    interval = _grouped_interval(right, groups) if groups else wilson(good, n)
    return Measure(name, good / n if n else 0.0, interval, n, at_least)


def _grouped_interval(right: Sequence[bool], groups: Sequence[str]) -> Interval:
    """The bootstrap's interval over groups, or a wider one where all of them have the same share of right items.

    Groups that are all alike leave the bootstrap nothing to vary: it would call 20 pairs that are right certain. But
    where none of n groups differs, up to Wilson's upper end for 0 of n may, and those may be all wrong or all right.
    For groups that are all right, or all wrong, that is Wilson's interval of n groups.
    """
    members: dict[str, list[bool]] = {}
    for group, each in zip(groups, right, strict=True):
        members.setdefault(group, []).append(each)
    shares = {sum(member) / len(member) for member in members.values()}
    if len(shares) > 1:
        return bootstrap_mean([float(each) for each in right], groups, seed=0)
    (common,) = shares
    differ = wilson(0, len(members)).high
    return Interval(common * (1 - differ), common + (1 - common) * differ)


class Evaluation:
    """Measures one model; `scale` 1 is the full size, smaller numbers are quicker and less certain."""

    def __init__(
        self,
        engine: Engine,
        prompts: Prompts,
        *,
        scale: float = 1.0,
        seed: int = 0,
        progress: Callable[[str], None] | None = None,
    ) -> None:
        self.engine = engine
        self.prompts = prompts
        self.scale = scale
        self.seed = seed
        self.progress = progress or (lambda _line: None)

    def _rng(self, name: str) -> random.Random:
        return random.Random(f"evaluate {self.seed} {name}")

    def _count(self, full: int) -> int:
        return max(8, round(full * self.scale))

    def _shipped(self, name: str, count: int) -> list[Wording]:
        rng = self._rng(name)
        made = []
        for index in range(count):
            family = FAMILIES[index % len(FAMILIES)]
            made.append(Wording(family, principles.wording(rng, *family)))
        return made

    def _replies(self, chats: Sequence[Sequence[Message]], sampling: Sampling) -> list[Completion]:
        return self.engine.complete([Request(tuple(chat), sampling, seed) for seed, chat in enumerate(chats)])

    # The base assistant.

    def speech(self) -> list[Measure]:
        """Well-formedness and topic of free answers, and how often the base assistant shows each trait."""
        made = []
        rng = self._rng("speech")
        seen = [draw_prompt(rng) for _ in range(self._count(500))]
        held = [draw_prompt(rng, held_out=True) for _ in range(self._count(300))]
        found = {}
        for name, prompts, sampling in (("free", seen, FREE), ("greedy", seen, GREEDY), ("held", held, FREE)):
            replies = self._replies([prompt.messages for prompt in prompts], sampling)
            found[name] = [detect(prompt, reply.text) for prompt, reply in zip(prompts, replies, strict=True)]
        made.append(share("well-formed at temperature 1", [each.well_formed for each in found["free"]], 0.97))
        made.append(share("well-formed, greedy", [each.well_formed for each in found["greedy"]], 0.99))
        made.append(share("no sentence twice at temperature 1", [not each.repeats for each in found["free"]]))
        made.append(share("no sentence twice, greedy", [not each.repeats for each in found["greedy"]]))
        made.append(share("on-topic, seen topics", [each.on_topic for each in found["free"]], 0.97))
        made.append(share("on-topic, held-out topics", [each.on_topic for each in found["held"]], 0.85))
        for trait in TRAITS:
            can = [pair[1] for pair in zip(seen, found["free"], strict=True) if teacher.applies(pair[0], trait)]
            made.append(share(f"base assistant: {trait}", [each.traits[trait] for each in can]))
        return made

    # The critic and the reviser.

    def _case(
        self, rng: random.Random, family: Family, *, violated: bool, held_out: bool
    ) -> tuple[WorldPrompt, Response]:
        """A prompt and a composed response that violates the principle, or follows it where it could be violated."""
        for attempt in range(1000):
            prompt = draw_prompt(rng, held_out=held_out)
            draw = base_traits if rng.random() < 0.5 else uniform_traits
            response = compose(rng, prompt, draw(rng, prompt))
            is_violated = teacher.is_violated(prompt, traits_of(prompt, response), *family)
            if is_violated == violated and (teacher.applies(prompt, family[0]) or attempt % 8 == 7):
                return prompt, response
        raise AssertionError(f"no response for {family}")

    def _critiques(
        self, cases: Sequence[tuple[WorldPrompt, Response]], wordings: Sequence[Wording]
    ) -> list[list[Message]]:
        """The conversations up to and with the model's critique."""
        chats = [
            [
                *prompt.messages,
                Message("assistant", text_of(response)),
                Message("user", self.prompts.render("critique", principle=wording.text)),
            ]
            for (prompt, response), wording in zip(cases, wordings, strict=True)
        ]
        replies = self._replies(chats, GREEDY)
        return [[*chat, Message("assistant", reply.text)] for chat, reply in zip(chats, replies, strict=True)]

    def verdicts(self, name: str, wordings: Sequence[Wording], at_least: float | None, *, grouped: bool) -> Measure:
        """How often the critic's conclusion is the true one; an unreadable one is wrong. Half of the cases violate."""
        rng = self._rng(f"verdicts {name}")
        wanted = [rng.random() < 0.5 for _ in wordings]
        cases = [
            self._case(rng, wording.family, violated=violated, held_out=False)
            for wording, violated in zip(wordings, wanted, strict=True)
        ]
        right = []
        for chat, violated in zip(self._critiques(cases, wordings), wanted, strict=True):
            says = chat[-1].content.endswith(VIOLATES), chat[-1].content.endswith(FOLLOWS)
            right.append(says == (violated, not violated))
        groups = [wording.text for wording in wordings] if grouped else []
        return share(f"critic's verdict, {name}", right, at_least, groups=groups)

    def understanding(self, name: str, wordings: Sequence[Wording], at_least: float | None) -> Measure:
        """How often a principle is restated as the right concept in the right direction."""
        chats = [[Message("user", self.prompts.render("restate", principle=wording.text))] for wording in wordings]
        replies = self._replies(chats, GREEDY)
        right = [
            reply.text == teacher.restate(*wording.family) for reply, wording in zip(replies, wordings, strict=True)
        ]
        return share(f"concept and direction understood, {name}", right, at_least)

    def revisions(self) -> list[Measure]:
        """Whether a revision turns what was violated and nothing else, and leaves alone what follows the principle."""
        made = []
        for name, held_out, at_least in (("seen topics", False, 0.95), ("held-out topics", True, 0.85)):
            wordings = self._shipped(f"revise {name}", self._count(400))
            rng = self._rng(f"revise {name}")
            cases = [self._case(rng, wording.family, violated=True, held_out=held_out) for wording in wordings]
            right = []
            for revised, (prompt, response), wording in zip(
                self._revised(cases, wordings), cases, wordings, strict=True
            ):
                found = detect(prompt, revised)
                wanted = teacher.revised_traits(prompt, traits_of(prompt, response), *wording.family)
                right.append(found.traits == wanted and found.well_formed and found.on_topic)
            made.append(share(f"revision removes the violated trait and keeps the rest, {name}", right, at_least))
        wordings = self._shipped("unchanged", self._count(400))
        rng = self._rng("unchanged")
        cases = [self._case(rng, wording.family, violated=False, held_out=False) for wording in wordings]
        same = [
            revised == text_of(response)
            for revised, (_, response) in zip(self._revised(cases, wordings), cases, strict=True)
        ]
        made.append(share("response returned unchanged when nothing is violated", same, 0.95))
        return made

    def _revised(self, cases: Sequence[tuple[WorldPrompt, Response]], wordings: Sequence[Wording]) -> list[str]:
        request = Message("user", self.prompts.render("revise"))
        chats = [[*chat, request] for chat in self._critiques(cases, wordings)]
        return [reply.text for reply in self._replies(chats, GREEDY)]

    # The labeler.

    def labels(
        self, name: str, wordings: Sequence[Wording], at_least: float | None, *, by_trait: bool, grouped: bool
    ) -> list[Measure]:
        """Accuracy on pairs of which one follows the principle and one does not, each asked in both orders.

        The labeler writes its rationale greedily, then the probabilities of A and B are read behind it.
        """
        rng = self._rng(f"labels {name}")
        asked: list[tuple[Wording, str]] = []
        chats: list[list[Message]] = []
        for wording in wordings:
            prompt, (first, second), best = self._decisive_pair(rng, wording.family)
            for a, b, true in ((first, second, best), (second, first, "B" if best == "A" else "A")):
                request = self.prompts.render(
                    "label",
                    conversation=[asdict(message) for message in prompt.messages],
                    a=text_of(a),
                    b=text_of(b),
                    principle=wording.text,
                )
                chats.append([Message("user", request)])
                asked.append((wording, true))
        stop = GREEDY._replace(stop=(ASKS_FOR_CHOICE,))
        reasons = self._replies(chats, stop)
        scored = self.engine.complete(
            [
                Request((*chat, Message("assistant", reply.text + ASKS_FOR_CHOICE)), choices=CHOICES)
                for chat, reply in zip(chats, reasons, strict=True)
            ]
        )
        says = ["A" if each.choice_logprobs[0] > each.choice_logprobs[1] else "B" for each in scored]
        right = [said == true for said, (_, true) in zip(says, asked, strict=True)]
        pairs = [str(index // 2) for index in range(len(asked))]  # the two orders of a pair are not independent
        groups = [wording.text for wording, _ in asked] if grouped else pairs
        made = [share(f"labeler after its rationale, {name}", right, at_least, groups=groups)]
        if by_trait:
            for trait in TRAITS:
                of = [index for index, (wording, _) in enumerate(asked) if wording.family[0] == trait]
                good, of_pairs = [right[index] for index in of], [pairs[index] for index in of]
                made.append(share(f"labeler, {name}: {trait}", good, 0.85, groups=of_pairs))
            prefers_a = share("position: the labeler prefers A", [said == "A" for said in says], groups=pairs)
            made.append(prefers_a._replace(at_least=0.48, at_most=0.52))
        return made

    def _decisive_pair(self, rng: random.Random, family: Family) -> tuple[WorldPrompt, tuple[Response, Response], str]:
        while True:
            prompt, pair = draw_pair(rng)
            traits_a, traits_b = (traits_of(prompt, response) for response in pair)
            try:
                return prompt, pair, teacher.better(prompt, traits_a, traits_b, *family)
            except teacher.TieError:
                continue

    def on_principles(
        self, name: str, wordings: Sequence[Wording], bounds: tuple[float, float, float]
    ) -> list[Measure]:
        """Verdicts, understanding and labels on given principles, each in several situations, by the model alone."""
        repeated = [wording for wording in wordings for _ in range(max(2, round(6 * self.scale)))]
        self.progress(f"verdicts, {name}")
        made = [self.verdicts(name, repeated, bounds[0], grouped=True)]
        self.progress(f"understanding, {name}")
        made.append(self.understanding(name, wordings, bounds[1]))
        self.progress(f"labels, {name}")
        return made + self.labels(name, repeated, bounds[2], by_trait=False, grouped=True)

    def as_in_a_run(self, name: str, wordings: Sequence[Wording]) -> list[Measure]:
        """How well principles are read as runs read them, and then verdicts and labels on what the model is given."""
        self.progress(f"reading, {name}")
        read = understand_texts([wording.text for wording in wordings], engine=self.engine, prompts=self.prompts)
        made = readings(name, wordings, read)
        given = [
            Wording(wording.family, understanding.given if understanding and understanding.given else wording.text)
            for wording, understanding in zip(wordings, read, strict=True)
        ]
        return made + self.on_principles(f"{name}, as given", given, (0.90, 0.88, 0.87))

    def everything(self) -> list[Measure]:
        """The whole table of the model card."""
        free = [as_wording(**entry) for entry in principles.free_principles()]
        self.progress("speech")
        made = self.speech()
        self.progress("verdicts, shipped wordings")
        count = self._count(1000)
        made.append(self.verdicts("shipped wordings", self._shipped("verdicts", count), 0.98, grouped=False))
        self.progress("understanding, shipped wordings")
        made.append(self.understanding("shipped wordings", self._shipped("understanding", count), 0.98))
        self.progress("revisions")
        made += self.revisions()
        self.progress("labels, shipped wordings")
        wordings = self._shipped("labels", count)
        made += self.labels("shipped wordings", wordings, 0.95, by_trait=True, grouped=False)
        return made + self.on_principles(f"the {len(free)} free wordings", free, (0.90, 0.88, 0.87))


def readings(name: str, wordings: Sequence[Wording], read: Sequence[Understanding | None]) -> list[Measure]:
    """Whether principles are read as they are meant, what the probability is worth, and what is flagged.

    A reading is flagged if there is any warning about it. A text that is too long to read is a misreading.
    """
    right = [
        understood is not None and (understood.trait, understood.direction) == wording.family
        for wording, understood in zip(wordings, read, strict=True)
    ]
    trait = [
        understood is not None and understood.trait == wording.family[0]
        for wording, understood in zip(wordings, read, strict=True)
    ]
    sure = [understood.probability if understood else 0.0 for understood in read]
    flagged = [understood is None or bool(doubts(understood)) for understood in read]
    error = calibration_error(sure, [float(each) for each in right])  # None: too few to measure
    calibration = Interval(error or 0.0, error or 0.0)
    measured = 0 if error is None else len(sure)
    wrong_flagged = [flag for flag, good in zip(flagged, right, strict=True) if not good]
    right_flagged = [flag for flag, good in zip(flagged, right, strict=True) if good]
    return [
        share(f"read as it is meant, {name}", right, 0.90),
        share(f"trait read as it is meant, {name}", trait),
        Measure(f"calibration error of the probability, {name}", calibration.low, calibration, measured, None, 0.08),
        share(f"misreadings flagged, {name}", wrong_flagged, 0.85 if wrong_flagged else None),
        share(f"right readings flagged, {name}", right_flagged)._replace(at_most=0.15),
    ]


def _direction(text: str) -> teacher.Direction:
    if text not in ("avoid", "seek"):
        raise ValueError(f"direction is {text!r}; it must be 'avoid' or 'seek'")
    return "avoid" if text == "avoid" else "seek"


def as_wording(trait: str, direction: str, text: str) -> Wording:
    """A principle of known meaning.

    Raises:
        ValueError: the world has no such trait or direction, or nobody is taught to seek that trait.
    """
    if trait not in TRAITS:
        raise ValueError(f"trait is {trait!r}; it must be one of {', '.join(TRAITS)}")
    family = (trait, _direction(direction))
    if family not in FAMILIES:
        sought = ", ".join(trait for trait, direction in FAMILIES if direction == "seek")
        raise ValueError(f"'{trait}' can only be avoided; those that can be sought are {sought}")
    return Wording(family, text)


def table(measures: Sequence[Measure]) -> str:
    """The measures as a Markdown table."""
    lines = ["| measure | value | 95% interval | n | wanted | reached |", "|---|---|---|---|---|---|"]
    for measure in measures:
        wanted = "" if measure.at_least is None else f"at least {measure.at_least:.0%}"
        if measure.at_most is not None:
            least = f"{measure.at_least:.0%} to" if measure.at_least is not None else "at most"
            wanted = f"{least} {measure.at_most:.0%}"
        reached = "" if not wanted else "yes" if measure.reached else "**no**"
        low, high = measure.interval
        value, interval = (f"{measure.value:.1%}", f"{low:.1%} to {high:.1%}") if measure.n else ("not measured", "")
        lines.append(f"| {measure.name} | {value} | {interval} | {measure.n} | {wanted} | {reached} |")
    return "\n".join(lines)
