"""The formats, what each of them holds of a preference, and what it has no place for."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Final, Literal, NamedTuple

from constitutional.base.records import Preference
from constitutional.data.export import rows
from constitutional.data.export.rows import Row

Trait = Literal[
    "tie", "tool", "extra", "irregular", "soft", "weighted", "principled", "votes", "system", "dialogue", "info"
]
"""What a preference may have that a format has no place for."""
Fate = Literal["left out", "column", "gone", "text"]
"""What becomes of it: the preference is not written; it stands in a column that the trainer passes over; it is not in
the file; it is written as plain text."""

_NAMES: Final[Mapping[Trait, tuple[str, str]]] = {
    "tie": ("tie", "ties"),
    "tool": ("conversation with turns of tools", "conversations with turns of tools"),
    "extra": (
        "conversation with more than texts, such as tool_calls",
        "conversations with more than texts, such as tool_calls",
    ),
    "irregular": ("conversation whose turns do not alternate", "conversations whose turns do not alternate"),
    "soft": ("label is less than certain", "labels are less than certain"),
    "weighted": ("pair counts less than one comparison", "pairs count less than one comparison"),
    "principled": ("label names principles", "labels name principles"),
    "votes": ("label brings several votes together", "labels bring several votes together"),
    "system": ("system prompt", "system prompts"),
    "dialogue": ("conversation of several turns", "conversations of several turns"),
    "info": ("prompt has notes for the evaluation", "prompts have notes for the evaluation"),
}
"""One of them, and several."""
CERTAIN: Final = 0.995
"""The probability from which a label counts as certain; in whole percents it is 100."""
_COLUMNS: Final[Mapping[Trait, str]] = {"soft": "probability", "weighted": "weight", "principled": "principles"}


class ExportFormat(NamedTuple):
    """A format of one preference a row."""

    trainer: str
    """Who reads it."""
    row: Callable[[Preference, str], Row]
    """Makes the row of a preference, given the constitution's digest."""
    fates: Mapping[Trait, Fate]
    """What becomes of what the format has no place for; whatever is not named is carried."""
    endings: tuple[str, ...] = (".jsonl",)
    """Of the file, the usual one first."""


_IN_COLUMNS: Final[Mapping[Trait, Fate]] = {
    "tie": "left out",
    "soft": "column",
    "weighted": "column",
    "principled": "column",
    "votes": "column",
    "info": "gone",
}
_GONE: Final[Mapping[Trait, Fate]] = {"soft": "gone", "weighted": "gone", "principled": "gone", "votes": "gone"}
_AS_TEXT: Final[Mapping[Trait, Fate]] = {"system": "text", "dialogue": "text"}
_NO_TOOLS: Final[Mapping[Trait, Fate]] = {"tool": "left out", "extra": "left out"}
_TO_LOOK_AT: Final[Mapping[Trait, Fate]] = {"votes": "column", **_NO_TOOLS, "info": "gone", **_AS_TEXT}

FORMATS: Final[Mapping[str, ExportFormat]] = {
    "trl": ExportFormat("TRL", rows.trl, _IN_COLUMNS, (".jsonl", ".parquet")),
    "parquet": ExportFormat("datasets", rows.trl, {"votes": "column", "info": "gone"}, ("",)),
    "openrlhf": ExportFormat("OpenRLHF", rows.trl, _IN_COLUMNS),
    "verl": ExportFormat("verl", rows.verl, {**_IN_COLUMNS, **_NO_TOOLS, **_AS_TEXT}, (".parquet",)),
    "nemo-rl": ExportFormat("NeMo-RL", rows.nemo_rl, _IN_COLUMNS),
    "llamafactory": ExportFormat(
        "LlamaFactory", rows.llamafactory, {**_IN_COLUMNS, **_NO_TOOLS, "irregular": "left out"}
    ),
    "axolotl": ExportFormat("axolotl", rows.axolotl, {**_IN_COLUMNS, **_NO_TOOLS}),
    "openai": ExportFormat("OpenAI", rows.openai, {**_IN_COLUMNS, **_GONE}),
    "label_studio": ExportFormat("Label Studio", rows.label_studio_task, _TO_LOOK_AT, (".json",)),
    "argilla": ExportFormat("Argilla", rows.argilla_record, _TO_LOOK_AT, (".json",)),
}
"""By the name that is typed."""


def in_table(wanted: ExportFormat) -> ExportFormat:
    """The format in Parquet, whose messages have a role and a text and no further keys."""
    return wanted._replace(fates={**wanted.fates, "extra": "left out"})


def traits(preference: Preference) -> Iterator[Trait]:
    """What a preference has that some format has no place for."""
    roles = [message.role for message in preference.prompt.messages]
    turns = [role for role in roles if role != "system"]
    if preference.probability < CERTAIN:
        yield "tie" if preference.probability == 0.5 else "soft"
    if not set(roles) <= {"system", "user", "assistant"}:
        yield "tool"
    elif turns != ["user", *["assistant", "user"] * (len(turns) // 2)] or "system" in roles[1:]:
        yield "irregular"
    others: dict[Trait, bool] = {
        "extra": any(message.extra for message in preference.prompt.messages),
        "weighted": preference.weight < 1,
        "principled": bool(preference.principles),
        "votes": preference.source == "human" and len(preference.rests_on) > 1,
        "system": "system" in roles,
        "dialogue": len(turns) > 1,
        "info": bool(preference.prompt.info),
    }
    yield from (trait for trait, has in others.items() if has)


class Chosen:
    """The preferences that go into a file, and counts of them."""

    def __init__(self, preferences: Iterable[Preference], wanted: ExportFormat, split: str | None) -> None:
        self._preferences = preferences
        self._format = wanted
        self._split = split
        self.written: Counter[str] = Counter()
        """By source."""
        self.traits: Counter[Trait] = Counter()
        """Of those that are written, and of those that are left out for a trait."""
        self.of_other_split = 0

    def __iter__(self) -> Iterator[Preference]:
        """Those of the split that the format can hold, one by one."""
        for preference in self._preferences:
            if self._split not in (None, preference.split):
                self.of_other_split += 1
                continue
            own = list(traits(preference))
            refused = next((trait for trait in own if self._format.fates.get(trait) == "left out"), None)
            if refused is not None:
                self.traits[refused] += 1
                continue
            self.traits.update(own)
            self.written[preference.source] += 1
            yield preference

    def notes(self) -> Iterator[str]:
        """A line for everything that the format does not carry, once all preferences are written."""
        trainer = self._format.trainer
        for trait, names in _NAMES.items():
            count, fate = self.traits[trait], self._format.fates.get(trait)
            if count and fate is not None:
                if trait == "votes":
                    yield f"{count:,} {names[count != 1]}: --to annotated_pairs has the votes themselves"
                    continue
                place = "the file" if trait == "extra" else trainer
                sentence = {
                    "left out": f"left out, as {place} has no place for such",
                    "column": f"{trainer} passes over the column {_COLUMNS.get(trait, '')}",
                    "gone": "the file has no place for that",
                    "text": "written as one text, with the speakers' names before their turns",
                }[fate]
                certain = ", so every label counts as certain" if trait == "soft" else ""
                yield f"{count:,} {names[count != 1]}: {sentence}{certain}"
