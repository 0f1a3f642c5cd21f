"""What the sandbox takes a principle to mean, and what is doubtful in the reading.

A pipeline optimises what its critic understood, not what was meant: "Keep answers short", once read as a wish for
length, made every answer longer. So look first. Two readers look: the sandbox's own model, which reads as the critic
does, and layers of a language model (`reader`), which knows English. Where the model is unsure of the encoder's
meaning or reads something else, it is given that meaning in words that it knows.
"""

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Final, NamedTuple

from constitutional.base.progress import percent
from constitutional.base.records import Message
from constitutional.base.stats import sigmoid
from constitutional.base.templates import Prompts, load_prompts
from constitutional.engines.base import Completion, Engine, Request
from constitutional.engines.stories import ask, side_by_side
from constitutional.sandbox import MODEL_FOLDER, reader
from constitutional.sandbox.principles import (
    OPPOSITE,
    gerund,
    known_words,
    phrases,
    plain_wordings,
    third_person,
    word_uses,
)
from constitutional.sandbox.teacher import FAMILIES, MEANINGS, NOTHING, UNKNOWN, Direction, restate
from constitutional.sandbox.topics import load_text
from constitutional.sandbox.world import CONCEPTS

Meaning = tuple[str, Direction]
"""A trait, and whether it is to be avoided or sought."""

READS_ITSELF = 0.9
"""Probability from which the model reads the principle's own words, if it reads in them what the encoder reads."""

TOO_LONG = "it is too long for the model to read; shorten it"


class Understanding(NamedTuple):
    """What the model takes a principle to mean."""

    text: str
    trait: str
    """One of the sandbox's traits, or `nothing`."""
    direction: str
    """`avoid` or `seek`; what the model can only be told to avoid may be sought, too (`UNKNOWN`)."""
    restated: str
    """The meaning in the words in which the critic says meanings."""
    probability: float
    """Probability that this is what the text means, in [0, 1]: among the 21 meanings that the model can express, and by
    the encoder the four that it cannot.
    Calibrated on wordings that neither reader has learned from."""
    runner_up: str
    """The next likely meaning, such as `avoid hedging`; of another trait where the text asks for two things."""
    runner_up_probability: float
    unknown_words: list[str]
    """Words that no principle in the model's training holds, in the order of the text."""
    model_reads: str = ""
    """What the model itself makes of the text, such as `seek hedging`."""
    given: str = ""
    """The words that the model is to be given in place of the text; empty where it is to read the text itself."""
    asks_two: bool | None = None
    """Whether it asks for two things; None without the encoder."""
    halves: tuple[str, str] | None = None
    """A text that asks for two things, in two; None where the encoder finds no place to split it."""


class Split(NamedTuple):
    """A text in two parts, in each of which the encoder reads another trait."""

    first: str
    second: str
    meanings: tuple[Meaning, Meaning]
    """What the parts mean."""
    probability: float
    """That of the one trait in the first part times that of the other in the second, in [0, 1]."""

    def says_both(self, likely: Mapping[Meaning, float]) -> bool:
        """Whether the parts say what the whole says: a word that turns the second part round may be in the first.

        So it is in `Never flatter people and lecture them.`

        Args:
            likely: by meaning, its log-probability in the whole text.
        """
        turned = [(trait, OPPOSITE[direction]) for trait, direction in self.meanings]
        same = all(likely[one] >= likely[other] for one, other in zip(self.meanings, turned, strict=True))
        return same and self.probability >= 0.5


class Parts(NamedTuple):
    """What the encoder makes of the parts of a text, wherever it may be cut."""

    scores: tuple[reader.Scores, ...] = ()
    """Of the two parts of every cut; where there are several cuts, parts overlap."""
    split: Split | None = None
    """The cut in whose parts the encoder is surest of two traits; None where it finds the same."""


def shipped_engine(folder: Path = MODEL_FOLDER) -> Engine:
    """The sandbox's own model, in this process, in 32 bits on the CPU."""
    from constitutional.engines.local import LocalEngine, load_model

    return LocalEngine(*load_model(folder, dtype="float32", device="cpu"))


def understand_texts(
    texts: Sequence[str],
    *,
    engine: Engine | None = None,
    prompts: Prompts | None = None,
    ended: Callable[[int], None] | None = None,
    alone: bool = False,
) -> list[Understanding | None]:
    """What the model takes each principle to mean; None for a text that is longer than it can read.

    Args:
        texts: the principles' words.
        engine: the model; None means the shipped one.
        prompts: the templates, of which `restate` is used; None means the shipped ones.
        ended: told how many texts the model has read that it had not read before.
        alone: let the model read without the encoder.
    """
    own = dict(zip(texts, own_readings(texts, engine, prompts, ended), strict=True))
    readable = [] if alone else [text for text, logprobs in own.items() if logprobs]
    scores = dict(zip(readable, reader.read(readable) or [], strict=False))  # none without the encoder
    parts = dict(zip(readable, parts_of(readable), strict=True))
    rule = reader.calibration()
    understood = [
        understanding(text, own[text], scores.get(text), rule, parts.get(text, Parts())) if own[text] else None
        for text in texts
    ]
    splits = [split for found in understood if found and found.halves and (split := parts[found.text].split)]
    advised = sure_splits(splits, rule)
    return [
        found._replace(halves=None) if found and found.halves and parts[found.text].split not in advised else found
        for found in understood
    ]


def sure_splits(splits: Sequence[Split], rule: reader.Calibration) -> list[Split]:
    """Those whose halves, each typed by itself, would be read without doubt, and would have an effect."""
    halves = list(dict.fromkeys(half for split in splits for half in (split.first, split.second)))
    read = zip(halves, reader.read(halves) or [], parts_of(halves), strict=True)
    sure = {
        half: scores.likeliest
        for half, scores, parts in read
        if scores.likeliest in FAMILIES and confidence(half, scores, parts, rule) >= rule.sure_from
    }
    return [split for split in splits if (sure.get(split.first), sure.get(split.second)) == split.meanings]


def own_readings(
    texts: Sequence[str],
    engine: Engine | None = None,
    prompts: Prompts | None = None,
    ended: Callable[[int], None] | None = None,
) -> list[tuple[float, ...]]:
    """The model's own log-probabilities of `MEANINGS` for each text; none for a text that it cannot read.

    The shipped model reads each text once in a process.
    """
    if engine is None and prompts is None:
        if unread := [text for text in dict.fromkeys(texts) if text not in _READ]:
            _READ.update(zip(unread, own_readings(unread, shipped_engine(), ended=ended), strict=True))
        return [_READ[text] for text in texts]
    prompts = prompts or load_prompts()
    choices = tuple(restate(*meaning) for meaning in MEANINGS)
    chats = [(Message("user", prompts.render("restate", principle=text)), Message("assistant", "")) for text in texts]
    completions = answers(engine or shipped_engine(), [Request(chat, choices=choices) for chat in chats], ended)
    return [tuple(_log_softmax(completion.choice_logprobs)) if completion else () for completion in completions]


_READ: Final[dict[str, tuple[float, ...]]] = {}
"""What the shipped model made of the texts that this process has read."""


def answers(
    engine: Engine, requests: Sequence[Request], ended: Callable[[int], None] | None = None
) -> list[Completion | None]:
    """The engine's answers to questions about principles; None where there is none."""
    asked = side_by_side((ask(engine, request) for request in requests), ended=ended)
    return [None if completion.failed else completion for completion in asked]


def understanding(
    text: str,
    own: Sequence[float],
    scores: reader.Scores | None,
    rule: reader.Calibration,
    parts: Parts,
) -> Understanding:
    """What a text is taken to mean, by the model's own log-probabilities of `MEANINGS` and the encoder's scores."""
    asks_two, split = None, parts.split
    if scores:
        asks_two = scores.two >= rule.two_from or (split is not None and split.probability >= rule.split_from)
    meanings = reader.READ if scores else MEANINGS
    probable = dict(zip(meanings, probabilities(text, own, scores, rule, parts), strict=True))
    likely = dict(zip(meanings, scores.meanings if scores else own, strict=True))
    meaning, *others = sorted(meanings, key=likely.__getitem__, reverse=True)
    if asks_two:
        others = [other for other in others if other[0] not in (meaning[0], NOTHING[0])]
    own_logprob, own_meaning = max(zip(own, MEANINGS, strict=True))
    reads_itself = own_meaning == meaning and math.exp(own_logprob) >= READS_ITSELF
    known = _known()
    return Understanding(
        text=text,
        trait=meaning[0],
        direction=meaning[1],
        restated=restate(*meaning),
        probability=probable[meaning],
        runner_up=in_short(*others[0]),
        runner_up_probability=probable[others[0]],
        unknown_words=[word for word in _words(text) if word not in known],
        model_reads=in_short(*own_meaning),
        # A doubtful reading by the encoder is still right more often than the model's, and the doubt is said.
        given=in_known_words(*meaning) if scores is not None and not reads_itself else "",
        asks_two=asks_two,
        halves=(split.first, split.second) if asks_two and split and split.says_both(likely) else None,
    )


def probabilities(
    text: str, own: Sequence[float], scores: reader.Scores | None, rule: reader.Calibration, parts: Parts
) -> list[float]:
    """What a text means: by the encoder, for each of `reader.READ`, or for each of `MEANINGS` by the model alone.

    The encoder's own probabilities are not how often it is right: most are too low, and those of short wishes to seek
    too high. The probability of what it takes for likeliest is that of a logistic regression on held-out wordings
    (Platt 1999); the others share the rest as the encoder has it, none more than the likeliest.
    """
    if scores is None:
        return list(map(math.exp, _log_softmax([rule.sharpness_alone * logprob for logprob in own])))
    likely = list(map(math.exp, scores.meanings))
    first = reader.READ.index(scores.likeliest)
    right = confidence(text, scores, parts, rule)
    rest = (1 - right) / (sum(likely[:first]) + sum(likely[first + 1 :]))
    return [right if place == first else min(right, rest * share) for place, share in enumerate(likely)]


def confidence(text: str, scores: reader.Scores, parts: Parts, rule: reader.Calibration) -> float:
    """The probability that the text means what the encoder takes for likeliest, in [0, 1]."""
    return sigmoid(sum(weight * sign for weight, sign in zip(rule.right, signs(text, scores, parts), strict=True)))


def signs(text: str, scores: reader.Scores, parts: Parts) -> tuple[float, ...]:
    """What tells whether the encoder reads a text rightly, of which `Calibration.right` has the weights.

    These are 1, the evidence, the logarithm of the number of words, whether a trait is to be sought, whether nothing is
    asked for that the model knows, and of the text's parts: whether there are any, how probable the meaning is in the
    part that is surest of it, and how probable the opposite in the part that is surest of that. What the model itself
    reads tells no more.
    """
    meaning = trait, direction = scores.likeliest
    place, opposite = reader.READ.index(meaning), (trait, OPPOSITE[direction])
    against = [part.meanings[reader.READ.index(opposite)] for part in parts.scores] if opposite in reader.READ else []
    return (
        1.0,
        scores.evidence,
        math.log(max(1, len(text[: reader.MOST_CHARACTERS].split()))),
        float(direction == "seek"),
        float(meaning not in FAMILIES),
        float(bool(parts.scores)),
        math.exp(max(part.meanings[place] for part in parts.scores or (scores,))),
        math.exp(max(against, default=-math.inf)),
    )


def _log_softmax(logits: Sequence[float]) -> list[float]:
    top = max(logits)
    total = top + math.log(sum(math.exp(logit - top) for logit in logits))
    return [logit - total for logit in logits]


def in_short(trait: str, direction: str) -> str:
    """A meaning in two words: `avoid flattery`, or `nothing`."""
    return trait if trait == NOTHING[0] else f"{direction} {trait}"


def in_known_words(trait: str, direction: str) -> str:
    """A principle of this meaning that the model reads rightly; what it does not know is none of its principles."""
    if (trait, direction) not in FAMILIES:
        return "Nothing in particular."
    return f"{'Avoid' if direction == 'avoid' else 'Aim for'} {CONCEPTS[trait]}."


def nearest_wordings(text: str, trait: str, direction: Direction, count: int = 3) -> list[str]:
    """The shipped wordings of a meaning that share most words with a text, rare ones before common ones.

    They are plain sentences that can be typed as they are shown. None of them is read with doubt.
    """
    plain = [wording for wording in plain_wordings(trait, direction) if _PLAIN.fullmatch(wording)]
    plain = [wording for wording in plain if all(word_uses()[word] >= USUAL for word in _words(wording))]
    wordings = [set(_words(wording)) for wording in plain]
    frequency = Counter(chain.from_iterable(wordings))
    wanted = set(_words(text))

    def likeness(words: set[str]) -> float:
        weight = {word: math.log(len(wordings) / frequency[word]) for word in words}
        shared = sum(weight[word] for word in words & wanted)
        return shared / math.sqrt(1 + sum(weight.values()))

    ranked = sorted(zip(wordings, plain, strict=True), key=lambda pair: -likeness(pair[0]))
    nearest = [wording for _, wording in ranked[: 5 * count]]
    return read_without_doubt(nearest, trait, direction)[:count]


def read_without_doubt(texts: Sequence[str], trait: str, direction: Direction) -> list[str]:
    """Those of the texts that are taken for certain to mean this."""
    read = zip(texts, understand_texts(texts), strict=True)
    return [
        text
        for text, found in read
        if found and (found.trait, found.direction) == (trait, direction) and not doubts(found)
    ]


USUAL: Final = 5
"""How often the wordings use a word of an example, at least: rarer ones are names and slips of the hand."""
_PLAIN = re.compile("[A-Z][A-Za-z ,'’;-]{,55}[.!?]")
"""An example of how others word a principle: a sentence of no more characters than a message shows."""


def doubts(understanding: Understanding) -> list[str]:
    """What in the reading of a text is doubtful, each as a sentence; what a text alone tells."""
    if understanding.asks_two is None:
        return _doubts_of_the_model_alone(understanding)
    sentences = []
    if len(understanding.text) > reader.MOST_CHARACTERS:
        sentences.append(f"only its first {reader.MOST_CHARACTERS} characters are read; shorten it")
    if understanding.trait == NOTHING[0]:
        sentences.append(_no_request(understanding))
    elif (understanding.trait, understanding.direction) in UNKNOWN:
        sentences.append(_never_sought(understanding))
    elif understanding.asks_two and _JOINT.search(understanding.text):
        sentences.append(_two_wishes(understanding))
    elif understanding.asks_two or not _is_sure(understanding):  # one word may mean two things
        sentences.append(_unsure(understanding))
    return sentences


def negations(text: str) -> int:
    """How many negations a text holds, such as `never`, `don't` and `without`; `neither … nor` is one."""
    return sum((word in _NEGATIONS and word != "nor") or word.endswith("n't") for word in _tokens(text))


def _is_sure(understanding: Understanding) -> bool:
    rule = reader.calibration()
    return understanding.probability >= (rule.sure_from_alone if understanding.asks_two is None else rule.sure_from)


def _no_request(understanding: Understanding) -> str:
    """That it has no effect; where that is not sure, what it may mean."""
    known = ", ".join(CONCEPTS.values())
    maybe = "" if _is_sure(understanding) else _maybe(understanding)
    return (
        f"the model finds nothing in it about the traits that it knows, so it has no effect{maybe}; reword it as a "
        f"short command about one of them ({known})"
    )


def _never_sought(understanding: Understanding) -> str:
    """That the model can only be told to avoid it; what else it asks for, or may mean where that is not sure."""
    if understanding.asks_two and _JOINT.search(understanding.text):
        advice = "which has none, either" if _also_never_sought(understanding) else "write a principle for that"
        other = f"; it also asks for another thing: {_other(understanding)}; {advice}"
    else:
        maybe = "" if _is_sure(understanding) else _maybe(understanding)
        other = f"{maybe}; leave it out, or reword it if it means something else"
    what = CONCEPTS[understanding.trait]
    return f"it asks for {what}, which the model can only be told to avoid, so it has no effect{other}"


def _unsure(understanding: Understanding) -> str:
    twice = any(negations(part) > 1 for part in _PARTS.split(understanding.text[: reader.MOST_CHARACTERS]))
    advice = "; say it without a double negation" if twice else ""
    return f"the model is unsure{_maybe(understanding)}{advice}"


def _maybe(understanding: Understanding) -> str:
    """What a text may also mean; empty where that is no more probable than a rounded 0%."""
    return f"; it may also mean: {_next(understanding)}" if understanding.runner_up_probability >= 0.005 else ""


def _next(understanding: Understanding) -> str:
    return f"{_other(understanding)} ({percent(understanding.runner_up_probability)})"


def _other(understanding: Understanding) -> str:
    other = understanding.runner_up.replace("_", " ")
    return "nothing in particular" if other == NOTHING[0] else other


def _two_wishes(understanding: Understanding) -> str:
    """That a principle asks for two things, and where it may be split."""
    meaning = in_short(understanding.trait, understanding.direction).replace("_", " ")
    what = f"it asks for two things or more, and the model reads it as one: {meaning}"
    if understanding.halves:
        first, second = (" ".join(half.split()) for half in understanding.halves)
        return f'{what}; split it: "{first}" and "{second}"'
    if _also_never_sought(understanding):
        return f"{what}; the other, {_other(understanding)}, it can only be told to avoid"
    return f"{what}; write a principle for each"


def _also_never_sought(understanding: Understanding) -> bool:
    return understanding.runner_up in [in_short(*meaning) for meaning in UNKNOWN]


def parts_of(texts: Sequence[str]) -> list[Parts]:
    """What the encoder makes of the parts of each text; nothing without the encoder."""
    cuts = {text: _cuts(reader.as_read(text)) for text in texts}  # a part alone may have too few slips to be mended
    every = list(dict.fromkeys(part for cut in chain.from_iterable(cuts.values()) for part in cut))
    scores = dict(zip(every, reader.read(every) or [], strict=False))  # none without the encoder
    return [_parts(cuts[text], scores) if scores else Parts() for text in texts]


def _cuts(text: str) -> list[tuple[str, str]]:
    """The text in two parts of several words each, in all places where it may be cut."""
    text = _FIRST_MARK.sub("", text[: reader.MOST_CHARACTERS])
    cuts = [(text[: joint.start()].strip(), text[joint.end() :].strip()) for joint in _PARTS.finditer(text)]
    return [cut for cut in cuts if all(len(part.split()) > 1 for part in cut)]


def _parts(cuts: Sequence[tuple[str, str]], scores: Mapping[str, reader.Scores]) -> Parts:
    best: Split | None = None
    for first, second in cuts:
        (meaning, probability), (other, also) = (_likeliest_trait(scores[part]) for part in (first, second))
        split = Split(first, second[:1].upper() + second[1:], (meaning, other), probability * also)
        if meaning[0] != other[0] and NOTHING[0] not in (meaning[0], other[0]):
            best = max(best or split, split, key=lambda split: split.probability)
    return Parts(tuple(scores[part] for cut in cuts for part in cut), best)


def _likeliest_trait(scores: reader.Scores) -> tuple[Meaning, float]:
    """The likeliest meaning of the trait that a text is about, and the trait's probability, to avoid it or to seek."""
    by_trait: dict[str, float] = {}
    for logprob, (trait, _) in zip(scores.meanings, reader.READ, strict=True):
        by_trait[trait] = by_trait.get(trait, 0.0) + math.exp(logprob)
    about = max(by_trait, key=lambda trait: by_trait[trait])
    of_trait = [pair for pair in zip(scores.meanings, reader.READ, strict=True) if pair[1][0] == about]
    return max(of_trait)[1], by_trait[about]


_MARK = r"(?:(?:[-*+•●▪◦–]|\d{1,2}[.)])\s+)"
"""What an item of a list begins with."""
_FIRST_MARK = re.compile(rf"^\s*{_MARK}")
_PARTS = re.compile(
    rf"(?<=[.!?;])\s+{_MARK}?|\s*\n\s*{_MARK}?|,?\s+(?:and|but|while|also)\s+|\s+[-–—]\s+|[,;:]\s+",
    re.IGNORECASE,
)
"""Where a text may be cut: between sentences, lines and clauses."""
_JOINT = re.compile(rf"{_PARTS.pattern}|\s+(?:n?or|plus|as well as)\s+|[&/+]", re.IGNORECASE)
"""What a text has that asks for two things, though `neither … nor` cannot be cut."""


def _doubts_of_the_model_alone(understanding: Understanding) -> list[str]:
    sentences = []
    if in_capitals(understanding.text):
        sentences.append("it is in capitals; the model reads ordinary case better")
    if understanding.unknown_words:
        sentences.append(f"the model does not know: {', '.join(understanding.unknown_words)}")
    if understanding.trait == NOTHING[0]:
        return [*sentences, _no_request(understanding)]
    if not _is_sure(understanding):
        sentences.append(_unsure(understanding))
    if words := _against(understanding):
        meaning = in_short(understanding.trait, understanding.direction).replace("_", " ")
        family = (understanding.trait, OPPOSITE["avoid" if understanding.direction == "avoid" else "seek"])
        advice = (
            f'reword it, for example "{in_known_words(*family)}"'
            if family in FAMILIES
            else "the model knows no principle that asks for it"
        )
        quoted = ", ".join(map(repr, words))
        sentences.append(f'it will be trained as "{meaning}", but its words ({quoted}) ask the opposite; {advice}')
    return sentences


def _against(understanding: Understanding) -> list[str]:
    """Words of the text that say the opposite of what the model read; empty if none do, or if it cannot be told.

    The phrases count that the sandbox's wordings use for the trait alone or for its opposite alone. A text without a
    word that turns the wish round asks for what they name. A text with one negation, at its beginning or before the
    phrase, and nothing else that turns the wish, asks to avoid it, so `seek` is wrong. Of the 60 free wordings this
    finds 1 where they are read as they are meant, and 11 where they are read as the opposite.
    """
    phrases_found, others = _phrases_in(understanding.text, understanding.trait)
    sides = set(phrases_found.values())
    turning, twice = _turning_words()
    if understanding.trait == "privacy_leak" and not _PROTECTING.isdisjoint(others):
        return []  # to keep a secret is not to leak it
    if len(sides) == 1 and turning.isdisjoint(others):
        asked = "seek" if True in sides else "avoid"
        return [] if asked == understanding.direction else list(phrases_found)
    negations = [word for word in others if word in _NEGATIONS]
    begins = _NEGATED.match(_composed(understanding.text).lower())
    if understanding.direction == "avoid" or False in sides or len(negations) != 1 or not twice.isdisjoint(others):
        return []
    return [*negations, *phrases_found] if begins or sides else []


_NOT = "don't doesn't didn't isn't aren't wasn't won't wouldn't can't couldn't shouldn't mustn't haven't hasn't".split()
_NEGATIONS = frozenset(
    "not no never none nobody nothing neither nor without avoid avoids avoiding refrain refrains refraining cannot "
    "stop quit".split()
) | {*_NOT, *(word.replace("'", "") for word in _NOT)}
_PROTECTING = frozenset(
    "keep keeps keeping guard guards guarding protect protects protecting respect safeguard".split()
)
_NEGATED = re.compile(r"(?:please |and )?(?:never|don'?t|do not|avoid|no|refrain|stop|without)\b")


def _phrases_in(text: str, trait: str) -> tuple[dict[str, bool], list[str]]:
    """The trait's phrases in a text, the longest first from the left, and the words outside of them."""
    sides = _phrases(trait)
    longest = max(len(phrase.split()) for phrase in sides)
    words = _tokens(text)
    inside: dict[str, bool] = {}
    others = []
    while words:
        ends = (end for end in range(min(longest, len(words)), 0, -1) if " ".join(words[:end]) in sides)
        if end := next(ends, 0):
            phrase = " ".join(words[:end])
            inside[phrase] = sides[phrase]
        else:
            others.append(words[0])
        words = words[end or 1 :]
    return inside, others


@cache
def _phrases(trait: str) -> dict[str, bool]:
    """What the wordings call the trait (True) or its opposite (False), in every form, but for what they call both."""
    sides: dict[str, set[bool]] = {}
    for owner, key, text in phrases():
        if owner == trait and key not in ("avoid", "seek"):
            forms = [text, gerund(text), third_person(text)] if key.endswith("verb_phrases") else [text]
            for form in forms:
                phrase = " ".join(_tokens(form))
                sides.setdefault(phrase, set()).add(not key.startswith("opposite_"))
    return {phrase: side.pop() for phrase, side in sides.items() if len(side) == 1}


@cache
def _turning_words() -> tuple[frozenset[str], frozenset[str]]:
    """Words that turn a wish round, and those that turn it round once more behind a negation (`Never skip …`).

    A word turns if its share of the frames of `avoid` is more than twice its share of the frames of `seek` that hold no
    negation.
    """
    avoid, seek = (
        [
            set(_words(frame.replace("{x}", " ")))
            for group in load_text("principles/frames")[way].values()
            for frame in group
        ]
        for way in ("avoid", "seek")
    )
    plain = [words for words in seek if words.isdisjoint(_NEGATIONS)]
    in_avoid, in_plain = (Counter(chain.from_iterable(frames)) for frames in (avoid, plain))
    turning = {word for word, count in in_avoid.items() if count / len(avoid) > 2 * in_plain[word] / len(plain)}
    negated, turned_twice = (
        set(chain.from_iterable(words for words in frames if not words.isdisjoint(_NEGATIONS)))
        for frames in (avoid, seek)
    )
    return frozenset(turning | _NEGATIONS), frozenset(turned_twice - negated - _NEGATIONS)


def in_capitals(text: str) -> bool:
    """Whether more than half of a text's letters are capitals, words of one letter (`I`) left out.

    Training shows no such text: of the 60 free wordings the shipped model understands 58 as they are, 4 in capitals.
    """
    words: list[str] = _WORD.findall(_composed(text))
    letters = [letter for word in words if len(word) > 1 for letter in word if letter != "'"]
    return 2 * sum(letter.isupper() for letter in letters) > len(letters)


_WORD = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)*")
"""Letters of any script, with apostrophes within: quotation marks are no part of a word."""


def _composed(text: str) -> str:
    """The text with one character for each accented letter and the straight apostrophe for a curly one."""
    return unicodedata.normalize("NFC", text).replace("’", "'")


def _words(text: str) -> list[str]:
    """The words in their order, lower-case, each once."""
    return list(dict.fromkeys(_tokens(text)))


def _tokens(text: str) -> list[str]:
    """The words in their order, lower-case."""
    return _WORD.findall(_composed(text).lower())


@cache
def _known() -> frozenset[str]:
    """What training shows, cut into words as `_words` does it: the wordings quote some of theirs."""
    return frozenset(_words(" ".join(known_words())))
