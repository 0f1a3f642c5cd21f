"""What small models do in place of criticising and revising, told before anything is trained on it.

A model of 8 billion weights that learned from its own revisions and labels collapsed into repetition (Zhang 2025,
"Constitution or Collapse?", arXiv 2504.04918). Smaller ones fail before: critiques object to nothing, and revisions
copy what they should change, speak of something else, or go round in circles, which training then amplifies.
"""

from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from constitutional.base.progress import counted
from constitutional.base.records import Message, Revision
from constitutional.base.refusals import REFUSAL_PHRASES, refuses
from constitutional.base.text import canonical, words

FEWEST: Final = 10
"""Critiques or revisions below which nothing is said of a share."""
FEW_OBJECTIONS: Final = 0.02
MANY_COPIES: Final = 0.5
MANY_ASTRAY: Final = 0.25
MANY_LOOPS: Final = 0.25
MANY_REPEATS: Final = 0.1
REPEATS: Final = "repeats an example that was shown"
"""How the problem of an item ends whose revision does."""
_OWN_WORDS: Final = 8
"""Words from which an example's reply is one that fits no other prompt; “Yes, it is.” may be said again."""
_CONTENT: Final = 5
"""Letters from which a word is taken for one of content."""
_FEWEST_WORDS: Final = 12
"""Different words of content below which nobody can tell what a text is about, such as a refusal's."""
_SHARED: Final = 0.1
"""The share of these words that draft or prompt hold, below which a revision is about something else."""
_DISTINCT: Final = 0.6
"""The share of different rows of three words, below which a text goes round in circles."""
_FEWEST_ROWS: Final = 12


class Signs(NamedTuple):
    """How critiques and revisions turned out."""

    critiques: int
    objections: int
    """Critiques that find something to object to."""
    revisions: int
    """Those that were asked for because of an objection, or without a critique."""
    copies: int
    """Revisions that read as the response did before."""
    astray: int
    """Revisions of at least twelve words of content of which less than a tenth stand in the prompt or the response."""
    loops: int
    """Revisions in which four in ten rows of three words were there before."""
    repeats: int = 0
    """Revisions that say word for word what an example said; their items are left out."""

    def plus(self, other: "Signs") -> "Signs":
        """Those of both."""
        return Signs(*map(sum, zip(self, other, strict=True)))


def signs(revisions: Iterable[Revision]) -> Signs:
    """Count over all rounds that ended with a response that can be used, or repeat an example."""
    critiques = objections = asked = copies = far = loops = repeats = 0
    for item in revisions:
        before, prompt = item.draft, " ".join(message.content for message in item.prompt.messages)
        for step in item.steps:
            critiques += step.critique is not None
            if not step.found_nothing:
                objections += step.critique is not None
                asked += 1
                copies += canonical(step.revision) == canonical(before)
                far += is_astray(step.revision, f"{prompt} {before}")
                loops += is_loop(step.revision)
            before = step.revision
        if item.problem is not None and item.problem.endswith(REPEATS):
            asked += 1
            repeats += 1
    return Signs(critiques, objections, asked, copies, far, loops, repeats)


def repeats_example(revision: str, shown: Iterable[Message]) -> bool:
    """Whether a revision holds, word for word, a reply of at least eight words from the examples before it.

    What fits the example's prompt fits no other. But a refusal may be said again: refusals are all much alike.
    """
    said = canonical(revision)
    replies = (message.content for message in shown if message.role == "assistant")
    return any(
        canonical(reply) in said
        for reply in replies
        if len(words(reply)) >= _OWN_WORDS and not refuses(reply, REFUSAL_PHRASES)
    )


def is_astray(text: str, about: str) -> bool:
    """Whether hardly a word of content of a text stands in another, which it should be about."""
    content = _content(text)
    return len(content) >= _FEWEST_WORDS and len(content & _content(about)) < _SHARED * len(content)


def _content(text: str) -> set[str]:
    bare = (word.strip("\"'.,:;!?()[]*_").lower() for word in words(text))
    return {word for word in bare if len(word) >= _CONTENT}


def is_loop(text: str) -> bool:
    """Whether a text says the same again and again."""
    said = [word.lower() for word in words(text)]
    rows = list(zip(said, said[1:], said[2:], strict=False))
    return len(rows) >= _FEWEST_ROWS and len(set(rows)) < _DISTINCT * len(rows)


def told(found: Signs) -> list[str]:
    """What fails so often that the user should know before training, and what to type."""
    lines = []
    examples, another = "critique_revise.few_shot=2 (a principle's own examples)", "another critic (critic.path=FOLDER)"
    if found.critiques >= FEWEST and found.objections <= FEW_OBJECTIONS * found.critiques:
        lines.append(
            f"{found.objections} of {counted(found.critiques, 'critique')} object to a response, so hardly anything is "
            f"revised: either the drafts follow the principles, or the critic cannot judge; type {examples}, "
            f"critique_revise.critique=false to rewrite without critiques, or take {another}"
        )
    failures: Sequence[tuple[int, float, str]] = (
        (found.copies, MANY_COPIES, "change nothing"),
        (found.astray, MANY_ASTRAY, "are about something else than the prompt and the response"),
        (found.loops, MANY_LOOPS, "go round in circles"),
    )
    for count, many, what in failures:
        if found.revisions >= FEWEST and count >= many * found.revisions:
            lines.append(
                f"{count} of {counted(found.revisions, 'revision')} {what}, as happens with small models; "
                f"type {examples}, or take {another}"
            )
    if found.revisions >= FEWEST and found.repeats >= MANY_REPEATS * found.revisions:
        lines.append(
            f"{found.repeats} of {counted(found.revisions, 'revision')} repeat an example that was shown, as small "
            "models do, and are left out; more examples of the principle are repeated less "
            f"(critique_revise.few_shot=3), none never (critique_revise.few_shot=0); or take {another}"
        )
    return lines
