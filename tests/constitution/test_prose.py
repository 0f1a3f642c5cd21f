"""Long prose: headers of pages, hard wraps, headings, and which sentences bind."""

import pytest

from constitutional.constitution.plain_text import is_prose
from constitutional.constitution.prose import Section, binds, read_prose, sections


def texts(content: str) -> list[tuple[int, str]]:
    return [(entry.line, entry.values["text"]) for entry in read_prose(content).entries]


@pytest.mark.parametrize(
    "sentence",
    [
        "Claude should be honest.",
        "It must not help with that.",
        "The assistant shall say so.",
        "Claude never lies to its users.",
        "We want Claude to be curious.",
        "We don't want Claude to flatter anybody.",
        "Above all, we would like it to be kind.",
        "We also expect the model to ask.",
        "Anthropic wants Claude to weigh this.",
        "Never reveal a secret key.",
        "Under no circumstances reveal a key.",
        "When users ask for this, Claude shouldn't refuse.",
        "Operators should agree to this, and Claude should ask them.",
        "Claude is required to say what it is.",
    ],
)
def test_sentences_that_say_what_the_model_is_to_do_bind(sentence: str) -> None:
    assert binds(sentence)


@pytest.mark.parametrize(
    "sentence",
    [
        "Claude is a large language model.",
        "Should Claude ever lie to a user?",
        "We should explain what we mean.",
        "Operators must agree to our policies.",
        "We wrote this to say how Claude should behave.",
        "People never agree on this.",
        "We want people to trust it.",
        "This may not be easy to read.",
        "Must be.",
        "It should be noted that words are short.",
    ],
)
def test_sentences_that_describe_ask_or_bind_others_do_not(sentence: str) -> None:
    assert not binds(sentence)


HEADED = "\n".join(
    f"""The model should keep the rule {page}, which is so
long that it goes on behind

The Charter                     {page}

the end of the page {page}. This describes.
"""
    for page in range(1, 5)
)


def test_headers_without_page_breaks_are_told_by_the_sentences_that_they_cut() -> None:
    assert texts(HEADED)[0] == (
        1,
        "The model should keep the rule 1, which is so long that it goes on behind the end of the page 1.",
    )
    assert len(texts(HEADED)) == 4


def test_numbered_headings_that_cut_no_sentence_stay() -> None:
    content = "\n".join(f"Article {n}\n\nThe model should keep article {n} in mind.\n" for n in range(1, 6))
    found = read_prose(content)
    assert [entry.values["source"]["section"] for entry in found.entries][1:] == [f"Article {n}" for n in range(2, 6)]


def test_headings_make_a_path_in_markdown_and_by_their_numbers() -> None:
    markdown = (
        "# Title\n\n## One\n\nA model should a.\n\n### Two\n\nA model should b.\n\n## Three\n\nA model should c.\n"
    )
    title, parts = sections(markdown)
    assert title == "Title"
    assert [(part.path, part.line) for part in parts] == [("One", 3), ("One > Two", 7), ("Three", 11)]
    numbered = "1 Being\n\nA model should a.\n\n1.1 Being kind\n\nA model should b.\n\n2. Doing\n\nA model should c.\n"
    assert [part.path for part in sections(numbered)[1]] == ["1 Being", "1 Being > 1.1 Being kind", "2. Doing"]


def test_a_heading_without_a_blank_line_below_it_is_told_by_its_length() -> None:
    wide = "The model should be as kind to those who are rude to it as to those\nwho are not, and it should say so."
    title, (part,) = sections(f"Title\n\nBeing kind\n{wide}\n")
    assert (title, part.path, len(part.paragraphs)) == ("Title", "Being kind", 1)


def test_words_divided_at_the_end_of_a_line_are_whole_again_and_hyphens_of_their_own_stay() -> None:
    content = (
        "A well-being matters. The model should ex-\nplain what well-\nbeing is, e.g. to Dr. Who, at 3 p.m. It rests."
    )
    assert texts(content)[0] == (1, "The model should explain what well-being is, e.g. to Dr. Who, at 3 p.m.")


def test_each_sentence_has_the_line_in_which_it_begins() -> None:
    content = "# T\n\nOne remark. The model\nshould go. The model must\nstay. The model should\nnot."
    assert texts(content) == [(3, "The model should go."), (4, "The model must stay."), (5, "The model should not.")]


def test_a_list_behind_a_colon_binds_item_by_item_and_a_lead_alone_stays() -> None:
    content = "The model should never:\n\n- lie to users\n- shout at them\n\nThe model should do this:\n\nRest.\n"
    assert [text for _, text in texts(content)] == [
        "The model should never: lie to users",
        "The model should never: shout at them",
        "The model should do this:",
    ]


def test_reasons_behind_a_rule_are_its_why() -> None:
    (entry,) = read_prose("The model should rest. This is because haste makes waste. Otherwise nothing.").entries
    assert entry.values["why"] == "This is because haste makes waste."


def test_code_quotes_of_contents_and_marks_of_markdown_are_no_text() -> None:
    content = (
        "# T\n\nBeing kind .......... 12\n\n```\nThe model should not be read.\n```\n\n"
        "The **model** should [read](http://x) `this`[^1] and snake_case.\n"
    )
    assert texts(content) == [(9, "The model should read this and snake_case.")]


def test_what_binds_nothing_is_counted_by_section_with_its_line() -> None:
    found = read_prose("# T\n\n## A\n\nThe model must go. It is late. We know.\n\n## B\n\nA story. Its end.\n")
    assert [(note.line, note.text.partition(",")[0]) for note in found.left_out] == [
        (5, "'A': 2 sentences that bind nothing"),
        (9, "'B': 2 sentences that bind nothing"),
    ]


def test_prose_and_lists_are_told_apart() -> None:
    assert not is_prose("Be brief.\nBe kind.\n" * 100)
    assert is_prose("We want it to be so because we think that it is\nright, and that is all.\n\n" * 20)
    assert is_prose(f"Title\n\n{'The model should be kind to all who ask it for help today. ' * 30}\n")
    assert is_prose("One page.\fAnother page.")


def test_a_paragraph_knows_the_lines_of_its_characters() -> None:
    _, (part,) = sections("First line\nof three that\nmake one paragraph.")
    assert isinstance(part, Section)
    (paragraph,) = part.paragraphs
    places = [paragraph.line_at(paragraph.text.index(word)) for word in ("First", "of", "that", "make", "paragraph")]
    assert places == [1, 2, 2, 3, 3]


PDF = """\
                     The Charter

                     January 2026

Our wishes                                                                                2

Our wishes

The helper was made by a workshop, and the workshop wants it to be of use to those who ask it
for help. We want the helper to be safe, to have good values, and to act well in

                                              1
The Charter

its role. It should also be honest: it should never lie to anyone that it talks to, be it a
child or an emperor.

● Wishes. The helper should interpret what the user asks neither too literally nor too
   liberally.

● Freedom – The helper should respect everybody’s right to decide things for them-

                                              2
The Charter

   selves.

1. What is forbidden

There are things that the helper should never do:

• build weapons;
• break what keeps us alive.

                                              3
The Charter

The end

We hope the helper finds itself in these words.
"""


def test_the_text_of_a_pdf_without_page_breaks_is_read_across_its_pages() -> None:
    assert is_prose(PDF)
    found = read_prose(PDF)
    assert found.about == {"name": "The Charter"}
    assert [(entry.line, entry.values["source"]["section"], entry.values["text"]) for entry in found.entries] == [
        (10, "Our wishes", "We want the helper to be safe, to have good values, and to act well in its role."),
        (
            15,
            "Our wishes",
            "It should also be honest: it should never lie to anyone that it talks to, be it a child or an emperor.",
        ),
        (18, "Our wishes", "The helper should interpret what the user asks neither too literally nor too liberally."),
        (21, "Our wishes", "Freedom – The helper should respect everybody’s right to decide things for themselves."),
        (32, "1. What is forbidden", "There are things that the helper should never do: build weapons;"),
        (33, "1. What is forbidden", "There are things that the helper should never do: break what keeps us alive."),
    ]


def test_a_list_of_wishes_without_marks_at_the_ends_of_lines_is_no_prose() -> None:
    wishes = ["be brief", "be kind to everybody who asks you for something", "never lie", "do not shout at people"] * 20
    assert not is_prose("\n".join(wishes))
    assert not is_prose("\n".join(wish.capitalize() for wish in wishes))
