"""What a model takes each principle of a constitution to mean, which comes before anything is trained on it.

The sandbox's model gives one of its meanings with a probability; any other critic restates the principle in a
sentence. Both give the same record, so a run, its report and `lint` say it in the same words.
"""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from difflib import get_close_matches
from itertools import groupby
from typing import Literal, NamedTuple, get_args

from constitutional.base.errors import RunError
from constitutional.base.progress import counted, percent
from constitutional.base.records import Message, Record
from constitutional.base.templates import Prompts
from constitutional.constitution.constitution import USES, Constitution, Principle, Use
from constitutional.constitution.yaml import shown
from constitutional.engines.base import Completion, Engine, Request, Sampling
from constitutional.engines.stories import ask, side_by_side
from constitutional.sandbox import understand
from constitutional.sandbox.reader import calibration
from constitutional.sandbox.teacher import FAMILIES, ONLY_AVOIDED, UNKNOWN, Direction
from constitutional.sandbox.understand import TOO_LONG, Understanding, doubts
from constitutional.sandbox.world import TRAITS

MOST_TOKENS = 64
"""Tokens of a sentence in which a critic restates a principle."""

NOTHING_ASKED = "nothing in particular"
"""The meaning of a principle in which the sandbox's model finds no request."""

Reader = Literal["", "critic", "labeler", "reviser"]


class PrincipleMeaning(Record):
    """What a model takes a principle's words to mean."""

    principle: str
    """Its id."""
    words: str
    """The words that the model read."""
    reader: Reader = ""
    """Whose words they are; empty if critic and labeler are given the same."""
    meaning: str
    """Such as `avoid flattery`, or the critic's own sentence; empty if the words are too long to read."""
    probability: float | None = None
    """Probability that this is what the words mean, in [0, 1]; None if the reader gives none."""
    runner_up: str = ""
    """The next likely meaning; empty if the reader gives none."""
    unknown_words: tuple[str, ...] = ()
    """Words that the model has never seen in a principle."""
    warnings: tuple[str, ...] = ()
    """What is doubtful in it, each a sentence."""
    model_reads: str = ""
    """What the sandbox's model itself makes of the words; empty for other readers."""
    given: str = ""
    """What the reader, which is the sandbox's model, is given in place of the words."""

    @property
    def doubtful(self) -> bool:
        """Whether the principle may be misunderstood."""
        return bool(self.warnings)

    @property
    def messages(self) -> list[str]:
        """The warnings with the principle that they are about."""
        return [f"principle '{self.principle}' (\"{shown(self.words)}\"): {warning}" for warning in self.warnings]


def lines(meanings: Sequence[PrincipleMeaning]) -> list[str]:
    """What is printed: a line for every principle, then a line for every warning."""
    warnings = [f"warning: {message}" for meaning in meanings for message in meaning.messages]
    return meaning_lines(meanings) + warnings


def meaning_lines(meanings: Sequence[PrincipleMeaning]) -> list[str]:
    """A line for every principle, such as `no_flattery: understood as: avoid flattery (94%)`.

    Where critic and labeler read different meanings, the line says who sees what.
    """
    return [
        f"{principle}: {_line(list(several))}"
        for principle, several in groupby(meanings, key=lambda meaning: meaning.principle)
    ]


def _line(meanings: Sequence[PrincipleMeaning]) -> str:
    read, given = [], []
    for meaning in meanings:
        sure = "" if meaning.probability is None else f" ({percent(meaning.probability)})"
        read.append(f"{meaning.meaning or 'not read'}{sure}")
        given.append(f", and given to the {meaning.reader or 'model'} as: {meaning.given}" if meaning.given else "")
    if len({meaning.meaning for meaning in meanings}) == 1:
        return f"understood as: {read[0]}{''.join(given)}"
    return "; ".join(
        f'the {meaning.reader or "model"}, which sees "{shown(meaning.words)}", reads it as: {part}{instead}'
        for part, instead, meaning in zip(read, given, meanings, strict=True)
    )


class _PrincipleWords(NamedTuple):
    """Words of a principle that a model reads."""

    principle: Principle
    reader: Reader
    words: str
    given: str
    """What the reader is given in their place; empty where it is given the words."""


def _readings(constitution: Constitution) -> list[_PrincipleWords]:
    """The words of every principle that are read: once where critic and labeler are given the same, its text first.

    The words for revision alone count where a principle has some; they are said beside those for critique.
    """
    readings: list[_PrincipleWords] = []
    for principle in constitution.principles:
        critic, labeler = _words_for(principle, "critic", "critique"), _words_for(principle, "labeler", "comparison")
        one = critic[2:] == labeler[2:]
        rows = [critic._replace(reader="")] if one else [critic, labeler]
        reviser = _words_for(principle, "reviser", "revision")
        if principle.revision is not None and reviser[2:] not in [row[2:] for row in rows]:
            rows.append(reviser)
        readings += sorted(rows, key=lambda row: row.words != row.principle.text)
    return readings


def _words_for(principle: Principle, reader: Reader, use: Use) -> _PrincipleWords:
    return _PrincipleWords(principle, reader, principle.written(use), principle.given.get(use, ""))


def check_meanings(meanings: Sequence[PrincipleMeaning], as_written: Collection[str] = ()) -> None:
    """Refuse principles that are doubtful, but for those whose very words are meant to be read.

    Args:
        meanings: what is read in all principles.
        as_written: ids of principles whose words models are given whatever they read in them.

    Raises:
        RunError: some are; it says what they are read as, and how others word what they may mean.
    """
    doubtful = [meaning for meaning in meanings if meaning.doubtful and meaning.principle not in as_written]
    if not doubtful:
        return
    number = counted(len({meaning.principle for meaning in doubtful}), "principle")
    error = RunError(
        f"the meaning of {number} is doubtful, and a wrong one, or none, would be trained; reword what is misread in "
        "the constitution file, or type understanding=warn to train on it as it is read"
    )
    for meaning in doubtful:
        for line in (*meaning.messages, *_others_word_it(meaning)):
            error.add_note(line)
    raise error


def _others_word_it(meaning: PrincipleMeaning) -> Iterator[str]:
    """How others word what a principle was read as, and what it may mean instead: plainly, then as it is worded."""
    sure = (meaning.probability or 0.0) >= calibration().sure_from
    opposite = meaning.runner_up.partition(" ")[2] == meaning.meaning.partition(" ")[2]
    for family in (meaning.meaning, meaning.runner_up):
        direction, _, trait = family.partition(" ")
        known = (trait.replace(" ", "_"), direction)
        if known not in FAMILIES and family == meaning.meaning and sure and (family == NOTHING_ASKED or opposite):
            return  # what it is next likely to mean is the opposite of what is wanted, or nothing like it
        if known in FAMILIES:
            # Without the encoder most wordings are read with doubt, and none is near.
            plain = understand.read_without_doubt([understand.in_known_words(*known)], *known)
            if wordings := [*plain, *understand.nearest_wordings(meaning.words, *known)]:
                yield f"to {family}, others write: " + "; ".join(f'"{shown(wording)}"' for wording in wordings[:3])


# Any model


def meanings_of(constitution: Constitution, engine: Engine, templates: Prompts) -> list[PrincipleMeaning]:
    """What a critic takes every principle to mean, in a sentence of its own, greedily (template `restate`).

    In the order of the principles; several for a principle whose critic, labeler and reviser are given different words.
    A principle that is too long for the critic has an empty meaning and a warning.
    """
    readings = _readings(constitution)
    texts = list(dict.fromkeys(reading.words for reading in readings))
    sampling = Sampling(temperature=0.0, max_tokens=MOST_TOKENS)
    chats = [(Message("user", templates.render("restate", principle=text)),) for text in texts]
    completions = side_by_side(ask(engine, Request(chat, sampling)) for chat in chats)
    answered = dict(zip(texts, completions, strict=True))
    meanings = []
    for principle, reader, words, given in readings:
        completion = answered[words]
        sentence = "".join(character for character in " ".join(completion.text.split()) if character.isprintable())
        cut = "…" if completion.finish == "length" else ""
        warnings = () if sentence else (_why_nothing(completion),)
        meanings.append(
            PrincipleMeaning(
                principle=principle.id,
                words=words,
                reader=reader,
                meaning=sentence + cut,
                warnings=warnings,
                given=given,
            )
        )
    return meanings


def _why_nothing(completion: Completion) -> str:
    if completion.finish == "too_long":
        return TOO_LONG
    if completion.failed:
        return f"the critic gives no answer about it: {completion.reason}"
    return f"the critic says nothing about it{' but thoughts' if completion.reasoning else ''}"


# The sandbox's model


def sandbox_meanings(constitution: Constitution, engine: Engine | None = None) -> list[PrincipleMeaning]:
    """What the sandbox's model takes every principle to mean, and what is doubtful in it.

    In the order of `meanings_of`. The words are the author's; the constitution says what is given in their place
    (`in_known_words`). What is to be read as it is written, the model reads without the encoder. `engine` is the
    sandbox's model, such as a run's with its journal; None means the shipped one.
    """
    readings = _readings(constitution)
    understood: dict[tuple[bool, str], Understanding | None] = {}
    for alone in (False, True):
        texts = list(dict.fromkeys(row.words for row in readings if row.principle.as_written == alone))
        if texts:
            read = understand.understand_texts(texts, engine=engine, alone=alone)
            understood |= {(alone, text): understanding for text, understanding in zip(texts, read, strict=True)}
    first_read: dict[str, Understanding] = {}
    first_principle: dict[str, str] = {}
    warned: set[tuple[str, str]] = set()
    meanings = []
    for principle, reader, words, given in readings:
        understanding = understood[principle.as_written, words]
        if understanding is None:
            warnings = [TOO_LONG]
        else:
            warnings = doubts(understanding)
            if not given and reader != "labeler":  # which may be another model
                warnings += _itself_against(understanding)
            warnings += _tags_against(principle, understanding)
            warnings += _other_words_against(understanding, first_read.setdefault(principle.id, understanding))
            warnings += _principles_against(principle, understanding, first_principle)
        new = [warning for warning in warnings if (principle.id, warning) not in warned]
        warned.update((principle.id, warning) for warning in new)
        meanings.append(
            PrincipleMeaning(
                principle=principle.id,
                words=words,
                reader=reader,
                meaning=_meaning(understanding) if understanding else "",
                probability=understanding.probability if understanding else None,
                runner_up=understanding.runner_up.replace("_", " ") if understanding else "",
                unknown_words=tuple(understanding.unknown_words) if understanding else (),
                warnings=tuple(new),
                model_reads=_itself(understanding) if understanding else "",
                given=given,
            )
        )
    return meanings


def in_known_words(
    constitution: Constitution, uses: Collection[Use] = USES, ids: Collection[str] | None = None
) -> Constitution:
    """The constitution as the sandbox's model is given it: it reads what it would misread in words that it knows.

    Args:
        constitution: as its author wrote it.
        uses: what the sandbox's model reads principles for.
        ids: the principles that are looked at, but for those that are to be read as they are written; None means all.
    """
    principles = [
        principle
        for principle in (*constitution.principles, *constitution.left_out)
        if not principle.as_written and (ids is None or principle.id in ids)
    ]
    texts = list(dict.fromkeys(principle.written(use) for principle in principles for use in uses))
    understood = dict(zip(texts, understand.understand_texts(texts), strict=True))
    reasoned = [principle.with_reason(principle.written(use)) for principle in principles for use in uses]
    if more := [text for text in dict.fromkeys(reasoned) if text not in understood]:
        # What the model itself reads is looked at, for which it needs no encoder.
        understood |= zip(more, understand.understand_texts(more, alone=True), strict=True)
    given: dict[str, dict[Use, str]] = {}
    for principle in principles:
        for use in uses:
            written = principle.written(use)
            alone, with_reason = understood[written], understood[principle.with_reason(written)]
            if alone and alone.given:
                given.setdefault(principle.id, {})[use] = alone.given
            elif alone and (with_reason is None or with_reason.model_reads != alone.model_reads):
                given.setdefault(principle.id, {})[use] = written  # the reason would make it read something else
    return constitution.giving(given)


def _meaning(understanding: Understanding) -> str:
    if understanding.trait == "nothing":
        return NOTHING_ASKED
    return understand.in_short(understanding.trait, understanding.direction).replace("_", " ")


def _itself(understanding: Understanding) -> str:
    """What the model itself makes of the words, as `_meaning` says what is read in them."""
    reading = understanding.model_reads.replace("_", " ")
    return NOTHING_ASKED if reading == "nothing" else reading


def _itself_against(understanding: Understanding) -> list[str]:
    """Whether the model, which is given the words, itself reads something else in them."""
    if _itself(understanding) in ("", _meaning(understanding)):
        return []
    return [f"the model is given its words as they are, and itself reads them as '{_itself(understanding)}'"]


def tagged(principle: Principle) -> tuple[str, Literal["seek", "avoid"]] | None:
    """The trait that the principle's tags name and whether they say to seek or to avoid it; None if they do not."""
    tags = _plain_tags(principle)
    families = [family for family in FAMILIES if set(family) <= tags.keys()]
    return families[0] if len(families) == 1 else None


def _plain_tags(principle: Principle) -> dict[str, str]:
    """The tags by the form that the sandbox's traits have: `Sycophantic agreement` is `sycophantic_agreement`."""
    return {re.sub(r"[\s_-]+", "_", tag.strip().lower()): tag for tag in principle.tags}


def _tags_against(principle: Principle, understanding: Understanding) -> list[str]:
    """Tags such as `flattery` and `avoid` are the author's own word; without them only the author can tell."""
    family, tags = tagged(principle), _plain_tags(principle)
    if (understanding.trait, understanding.direction) in UNKNOWN and {understanding.trait, "seek"} <= tags.keys():
        return []  # of which the reading says that it has no effect
    if family is None:
        return _unknown_traits(tags, _meaning(understanding))
    if family == (understanding.trait, understanding.direction):
        return []
    trait, direction = family
    return [f"it is read as '{_meaning(understanding)}', but its tags say '{direction} {trait.replace('_', ' ')}'"]


def _unknown_traits(tags: Mapping[str, str], meaning: str) -> list[str]:
    """Tags that were meant as a trait, or as its direction, but name none: near one, or beside the other alone."""
    read = f"; it is read as '{meaning}'"
    if only := [tag for tag in tags if tag in ONLY_AVOIDED and tags.keys() & set(get_args(Direction)) == {"seek"}]:
        knows = "but the sandbox's model knows no principle that asks for it"
        return [f"its tags say to seek '{tags[only[0]]}', {knows}{read}"]
    if known := tags.keys() & set(TRAITS):
        if len(known) == 1 and set(get_args(Direction)) <= tags.keys():
            return [f"its tags say both to avoid and to seek '{tags[min(known)]}'{read}"]
        others = [tag for tag in tags if tag not in (*known, *get_args(Direction))]
        slips = [
            (tag, like[0]) for tag in others if (like := get_close_matches(tag, get_args(Direction), n=1, cutoff=0.8))
        ]
        return [f"its tag '{tags[tag]}' is no direction; did you mean '{like}'?{read[1:]}" for tag, like in slips[:1]]
    others = [tag for tag in tags if tag not in get_args(Direction)]
    for tag in others:
        if near := get_close_matches(tag, TRAITS, n=1, cutoff=0.8):
            return [f"its tag '{tags[tag]}' names no trait of the sandbox; did you mean '{near[0]}'?"]
    if len(others) == len(tags):
        return []
    return [f"its tags ({', '.join(tags.values())}) name no trait of the sandbox; its traits are {', '.join(TRAITS)}"]


def _other_words_against(understanding: Understanding, other: Understanding) -> list[str]:
    """Whether the same principle's words before these are read otherwise."""
    if _meaning(other) == _meaning(understanding):
        return []
    before = f"its other words (\"{shown(other.text)}\") as '{_meaning(other)}'"
    return [f"it is read as '{_meaning(understanding)}', and {before}"]


def _principles_against(principle: Principle, understanding: Understanding, first: dict[str, str]) -> list[str]:
    """Whether a principle before this one is read as the opposite; `first` has the first principle of a meaning."""
    if (understanding.trait, understanding.direction) not in FAMILIES:
        return []
    meaning = _meaning(understanding)
    first.setdefault(meaning, principle.id)
    turned = understanding._replace(direction="seek" if understanding.direction == "avoid" else "avoid")
    other = first.get(_meaning(turned), principle.id)
    return [] if other == principle.id else [f"it is read as '{meaning}', and principle '{other}' as the opposite"]
