"""A scripted model splits prose into tenets; what it makes up is refused."""

import json
from collections.abc import Callable

import pytest

from constitutional.base.errors import ModelError
from constitutional.base.templates import load_prompts
from constitutional.constitution.foreign import Foreign
from constitutional.engines.base import Abilities, Completion, Request
from constitutional.engines.scripted import ScriptedEngine
from constitutional.judging.tenets import SCHEMA, tenets_of

TEXT = """\
# The charter

## Honesty

Ada says what she
believes, because a lie is expensive. She admits gaps.

## Kindness

Ada is never cold. She listens to the end.
"""
SAYS = {"text": "Say what you believe.", "quote": "Ada says what she believes", "why": "A lie is expensive."}
WARM = {"text": "Be warm.", "quote": "Ada is never cold."}


def replying(*tenets: object, wrap: str = "{}") -> Callable[[Request], str]:
    return lambda _: wrap.replace("{}", json.dumps({"tenets": tenets}))


def split(rule: Callable[[Request], Completion | str], text: str = TEXT, abilities: Abilities | None = None) -> Foreign:
    return tenets_of(text, ScriptedEngine(rule, abilities=abilities), load_prompts())


def by_section(request: Request) -> str:
    tenets = [SAYS] if "Honesty" in request.messages[0].content else [WARM]
    return json.dumps({"tenets": tenets})


def test_each_section_is_shown_and_its_tenets_come_with_their_words_and_places() -> None:
    asked: list[str] = []

    def rule(request: Request) -> str:
        asked.append(request.messages[0].content)
        return by_section(request)

    found = split(rule)
    assert len(asked) == 2
    assert "Ada says what she believes, because a lie is expensive." in asked[0]
    assert "never cold" not in asked[0]
    assert found.about == {"name": "The charter"}
    assert [(entry.line, entry.values) for entry in found.entries] == [
        (
            5,
            {
                "text": "Say what you believe.",
                "why": "A lie is expensive.",
                "tags": ["Honesty"],
                "source": {"section": "Honesty", "line": 5, "quote": "Ada says what she believes"},
            },
        ),
        (
            10,
            {
                "text": "Be warm.",
                "tags": ["Kindness"],
                "source": {"section": "Kindness", "line": 10, "quote": "Ada is never cold."},
            },
        ),
    ]
    assert found.left_out == []


@pytest.mark.parametrize(
    ("tenet", "word"),
    [
        ({"text": "Be loud.", "quote": "Ada should be loud."}, "not in the text"),
        ({"text": "Be kind.", "quote": "ada says what she believes"}, "not in the text"),  # another case
        ({"text": "Be kind.", "quote": "She admits ... gaps."}, "not in the text"),
        ({"text": "Be kind.", "quote": "the"}, "fewer than"),
        ({"text": "Be kind."}, "fewer than"),
        ({"text": "", "quote": "Ada says what she believes"}, "no text"),
        ({"text": 3, "quote": "Ada says what she believes"}, "no text"),
        ("Be kind.", "no text"),
    ],
)
def test_a_tenet_whose_words_are_not_in_the_text_is_refused_and_listed(tenet: object, word: str) -> None:
    found = split(lambda request: json.dumps({"tenets": [tenet, *json.loads(by_section(request))["tenets"]]}))
    assert len(found.entries) == 2
    assert len(found.left_out) == 2
    assert all(word in note.text for note in found.left_out)
    assert [note.line for note in found.left_out] == [5, 10]


def test_a_quotation_from_another_section_leads_to_its_place() -> None:
    found = split(replying(WARM))
    assert [entry.line for entry in found.entries] == [10]
    assert ["the same as in line 10" in note.text for note in found.left_out] == [True]


@pytest.mark.parametrize("wrap", ["```json\n{}\n```", "Here they are: {} Done.", "<think>{no</think>{}"])
def test_replies_with_words_around_the_json_are_read(wrap: str) -> None:
    assert len(split(replying(SAYS, wrap=wrap)).entries) == 1


def test_a_reply_that_is_cut_off_gives_the_tenets_that_stand_there_whole() -> None:
    whole = json.dumps({"tenets": [SAYS, {"text": "Admit gaps.", "quote": "She admits gaps."}]})
    found = split(lambda _: Completion(whole[:-30], "length"), TEXT.partition("## Kindness")[0])
    assert [entry.values["text"] for entry in found.entries] == ["Say what you believe."]
    assert ["was cut off" in note.text for note in found.left_out] == [True]


def test_a_part_without_a_readable_reply_is_listed_and_none_at_all_is_an_error() -> None:
    found = split(
        lambda request: by_section(request) if "Honesty" in request.messages[0].content else "I would rather not."
    )
    assert len(found.entries) == 1
    assert [(note.line, "no JSON" in note.text) for note in found.left_out] == [(10, True)]
    with pytest.raises(ModelError, match="none of the 2 answers by the model can be read"):
        split(lambda _: "I would rather not.")
    with pytest.raises(ModelError, match="overloaded"):
        split(lambda _: Completion("", "error", reason="overloaded"))


def test_a_text_without_tenets_is_said_to_hold_none() -> None:
    found = split(replying())
    assert found.entries == []
    assert "no tenet" in found.problems[0].text


def test_an_engine_that_holds_to_a_schema_is_given_one() -> None:
    schemas: list[str] = []

    def rule(request: Request) -> str:
        schemas.append(request.schema)
        return by_section(request)

    split(rule, abilities=Abilities(structured=True))
    split(rule)
    assert schemas == [SCHEMA, SCHEMA, "", ""]


def test_long_sections_are_shown_in_parts_cut_between_paragraphs() -> None:
    asked: list[str] = []

    def rule(request: Request) -> str:
        asked.append(request.messages[0].content)
        return json.dumps({"tenets": [{"text": "Go.", "quote": f"goes {len(asked)} times"}]})

    paragraphs = [f"Ada goes {n} times. {'She rests a lot. ' * 120}" for n in (1, 2, 3)]
    found = split(rule, "# T\n\n" + "\n\n".join(paragraphs))
    assert len(asked) == 3
    assert [entry.line for entry in found.entries] == [3]
    assert len(found.left_out) == 2  # the same text twice more
