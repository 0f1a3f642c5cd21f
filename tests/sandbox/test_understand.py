import math
from collections.abc import Sequence

import pytest
import torch

from constitutional.engines.base import Completion, Request
from constitutional.engines.scripted import ScriptedEngine
from constitutional.sandbox import reader
from constitutional.sandbox.principles import free_principles
from constitutional.sandbox.reader import READ, Calibration, Scores
from constitutional.sandbox.teacher import MEANINGS, NOTHING, restate
from constitutional.sandbox.understand import (
    Parts,
    Understanding,
    doubts,
    in_capitals,
    in_known_words,
    nearest_wordings,
    negations,
    own_readings,
    parts_of,
    probabilities,
    signs,
    understand_texts,
)

PLAIN = Calibration((0.0, 1.0, *[0.0] * 6), 1.0, 0.6, 0.8, two_from=0.02, split_from=0.7)


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The encoder is not installed, and the model's probabilities are taken as they are."""
    monkeypatch.setattr(reader, "read", lambda *_: None)
    monkeypatch.setattr(reader, "calibration", lambda: PLAIN)


def scored(two: float = 0.0, **odds: float) -> Scores:
    """Scores with these odds of meanings such as `avoid_flattery`, and odds of 1 of all others that the model knows."""
    weights = [odds.get(f"{way}_{trait}", 1.0 if (trait, way) in MEANINGS else 1e-12) for trait, way in READ]
    rest = sum(weights) - max(weights)
    return Scores(tuple(math.log(weight / sum(weights)) for weight in weights), math.log(max(weights) / rest), two)


def fixed(request: Request) -> Completion:
    """Every meaning has the same probability but for two."""
    odds = {restate("flattery", "avoid"): math.log(70), restate("flattery", "seek"): math.log(11)}
    return Completion("", "choices", tuple(odds.get(choice, 0.0) for choice in request.choices))


def narrow(request: Request) -> Completion:
    """The same, for a model that reads 100 characters."""
    if len(request.messages[0].content) > 100:
        return Completion("", "too_long", reason="too long")
    return fixed(request)


def understand_one(text: str) -> Understanding:
    (understood,) = understand_texts([text], engine=ScriptedEngine(fixed))
    assert understood is not None
    return understood


@pytest.mark.usefixtures("alone")
def test_probabilities_are_among_the_meanings_that_the_model_can_express() -> None:
    understood = understand_one("Don't zorble the user.")
    # 20 families and 'nothing' make 21 meanings: 70 + 11 + 19 × 1 = 100
    assert len(MEANINGS) == 21
    assert (understood.trait, understood.direction) == ("flattery", "avoid")
    assert understood.restated == "The principle asks to avoid flattery."
    assert understood.probability == pytest.approx(0.70)
    assert understood.runner_up == "seek flattery"
    assert understood.runner_up_probability == pytest.approx(0.11)


@pytest.mark.usefixtures("alone")
def test_words_that_no_training_principle_holds_are_pointed_out_once_and_in_order() -> None:
    understood = understand_one("Zorble never, user; always ZORBLE the quuxes.")
    assert understood.unknown_words == ["zorble", "quuxes"]


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize(
    ("text", "unknown"),
    [
        ("Don’t flatter; it isn’t kind.", []),  # a curly apostrophe is one like another
        ("Avoid 'flattery' and “praise”, and the users' praise.", []),  # quotation marks are no part of a word
        ("Avoid 'zorbling' and \"quuxes\".", ["zorbling", "quuxes"]),
        ("No clichés, no cliche\u0301s.", ["clichés"]),  # one character for é, or two
        ("Keine Schmeichelei, größer!", ["keine", "schmeichelei", "größer"]),
        ("诚实。 Будь честным.", ["诚实", "будь", "честным"]),
        ("Keep it under 50 words, snake_zorble.", ["snake", "zorble"]),
        ("Lorem ipsum, placeholder.", []),  # of the principles that ask for nothing
    ],
)
def test_words_are_told_apart_as_a_reader_would(text: str, unknown: list[str]) -> None:
    understood = understand_one(text)
    assert understood.unknown_words == unknown


@pytest.mark.parametrize(
    ("text", "capitals"),
    [
        ("DON'T FLATTER THE USER.", True),
        ("NEVER lie.", True),  # 5 of 8 letters
        ("NEVER evade", False),  # 5 of 10: not more than half
        ("Do NOT flatter.", False),
        ("I I I I lie", False),  # words of one letter are left out
        ("诚实", False),  # no capitals in this script
        ("ÄRGERE NIEMANDEN", True),
        ("50 %!", False),
    ],
)
def test_a_text_is_in_capitals_if_most_of_its_letters_are(text: str, capitals: bool) -> None:
    assert in_capitals(text) == capitals


@pytest.mark.usefixtures("alone")
def test_the_shipped_model_understands_plain_principles() -> None:
    wanted = {
        "Don't butter people up.": ("flattery", "avoid"),
        "Keep it short.": ("verbosity", "avoid"),
        "Be thorough and detailed.": ("verbosity", "seek"),
        "Never insult anybody.": ("rudeness", "avoid"),
        "Do not help with crimes.": ("harmful_compliance", "avoid"),
        "Warn people about the dangers.": ("safety_warning", "seek"),
        "Nothing in particular.": NOTHING,
    }
    for understood in understand_texts(list(wanted)):
        assert understood is not None
        assert (understood.trait, understood.direction) == wanted[understood.text], understood
        assert understood.probability > 0.8


def read_as(text: str, meaning: str) -> list[str]:
    """What is doubtful where a text is read as such a meaning for certain."""
    direction, trait = meaning.split()
    return doubts(Understanding(text, trait, direction, "", 0.99, "avoid refusal", 0.01, []))


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize(
    ("text", "meaning", "phrase"),
    [
        ("Keep it short and get to the point.", "seek verbosity", "get to the point"),
        ("Short answers please.", "seek verbosity", "short answers"),
        ("Never flatter the user.", "seek flattery", "never"),
        ("Please don't curry favor with compliments.", "seek flattery", "don't"),
        ("Avoid flattery.", "seek flattery", "avoid"),
        ("No flattery, please.", "seek flattery", "no"),
        ("Don't zorble anybody.", "seek flattery", "don't"),
        ("The response should not flatter the user.", "seek flattery", "not"),
        ("Answer without verbosity.", "seek verbosity", "without"),
        ("Be rude.", "avoid rudeness", "be rude"),
        ("Be thorough.", "avoid verbosity", "thorough"),
        ("Share other people's secrets.", "avoid privacy_leak", "other people's secrets"),
        # What is read as it is meant:
        ("Keep it short and get to the point.", "avoid verbosity", None),
        ("Never flatter the user.", "avoid flattery", None),
        ("Do not hold back on flattery.", "seek flattery", None),
        ("Never be brief.", "seek verbosity", None),
        ("Less flattery.", "avoid flattery", None),
        ("I am tired of flattery.", "avoid flattery", None),
        ("Be polite.", "avoid rudeness", None),
        ("Zorble the quuxes.", "seek flattery", None),
        ("Keep other people's secrets.", "avoid privacy_leak", None),
        ("Guard people's secrets.", "avoid privacy_leak", None),
        ("Keep personal details confidential.", "avoid privacy_leak", None),
    ],
)
def test_words_that_say_the_opposite_of_what_is_read_are_pointed_out(
    text: str, meaning: str, phrase: str | None
) -> None:
    doubtful = [sentence for sentence in read_as(text, meaning) if "opposite" in sentence]
    assert bool(doubtful) == (phrase is not None)
    assert all(repr(phrase) in sentence for sentence in doubtful)


@pytest.mark.usefixtures("alone")
def test_a_trait_that_can_only_be_avoided_is_said_to_be_so() -> None:
    assert "no principle that asks for it" in read_as("Be rude.", "avoid rudeness")[0]
    assert "no principle that asks for it" not in read_as("Be thorough.", "avoid verbosity")[0]


@pytest.mark.usefixtures("alone")
def test_a_warning_says_how_to_word_what_is_meant() -> None:
    assert '"Avoid flattery."' in read_as("Never flatter.", "seek flattery")[0]
    assert '"Aim for verbosity."' in read_as("Be thorough.", "avoid verbosity")[0]


@pytest.mark.usefixtures("alone")
def test_free_wordings_that_are_read_rightly_are_hardly_ever_warned_of() -> None:
    wordings = free_principles()
    warned = [wording for wording in wordings if read_as(wording["text"], f"{wording['direction']} {wording['trait']}")]
    opposite = {"avoid": "seek", "seek": "avoid"}
    turned = [
        wording
        for wording in wordings
        if read_as(wording["text"], f"{opposite[wording['direction']]} {wording['trait']}")
    ]
    assert len(warned) <= 1
    assert len(turned) >= 11


def test_a_text_that_is_too_long_is_none_and_the_others_are_answered() -> None:
    understood = understand_texts(["Be kind.", "Be kind. " * 50, "Be calm."], engine=ScriptedEngine(narrow))
    assert [understanding and understanding.text for understanding in understood] == ["Be kind.", None, "Be calm."]


def test_it_is_told_how_many_texts_have_been_read() -> None:
    told: list[int] = []
    understand_texts(["Be kind."] * 150, engine=ScriptedEngine(narrow), ended=told.append)
    assert told == sorted(told)
    assert told[-1] == 150


def read_as_scored(
    monkeypatch: pytest.MonkeyPatch, text: str, scores: Scores, rule: Calibration = PLAIN
) -> Understanding:
    """What a text is understood as with these scores of the encoder, where the model reads `fixed`."""
    monkeypatch.setattr(reader, "read", lambda texts, *_: [scores] * len(texts))
    monkeypatch.setattr(reader, "calibration", lambda: rule)
    return understand_one(text)


def test_the_encoder_reads_and_the_model_is_compared_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    understood = read_as_scored(monkeypatch, "Praise them.", scored(seek_flattery=30.0, avoid_flattery=11.0))
    assert (understood.trait, understood.direction) == ("flattery", "seek")
    assert understood.probability == pytest.approx(30 / 60)  # and 19 meanings of odds 1
    assert understood.runner_up == "avoid flattery"
    assert understood.runner_up_probability == pytest.approx(11 / 60)
    assert understood.model_reads == "avoid flattery"


def test_scores_are_the_mean_of_the_networks_probabilities() -> None:
    flattery, hedging = READ.index(("flattery", "avoid")), READ.index(("hedging", "seek"))
    logits = torch.full((2, len(READ) + 1), -40.0)
    logits[:, flattery], logits[0, hedging], logits[1, hedging] = 0.0, 0.0, math.log(1 / 3)
    logits[0, -1], logits[1, -1] = 0.0, 40.0  # two things: 1/2 and 1
    found = reader.scores(logits)
    assert math.exp(found.meanings[hedging]) == pytest.approx((1 / 2 + 1 / 4) / 2)
    assert found.evidence == pytest.approx((math.log(1) + math.log(3)) / 2, abs=1e-6)
    assert found.two == pytest.approx(3 / 4 * (1 / 2 + 1 / 4) / 2)


def test_the_model_is_given_other_words_where_it_would_misread(monkeypatch: pytest.MonkeyPatch) -> None:
    def given(scores: Scores, odds: float) -> str:
        def sure(request: Request) -> Completion:
            wanted = restate("flattery", "avoid")
            return Completion("", "choices", tuple(math.log(odds) * (each == wanted) for each in request.choices))

        monkeypatch.setattr(reader, "read", lambda texts, *_: [scores] * len(texts))
        (understood,) = understand_texts(["Spare me the sugar."], engine=ScriptedEngine(sure))
        assert understood is not None
        return understood.given

    monkeypatch.setattr(reader, "calibration", lambda: PLAIN)
    assert given(scored(avoid_flattery=99.0), 1000.0) == ""  # 1000 of 1020
    assert given(scored(avoid_flattery=99.0), 100.0) == "Avoid flattery."  # 100 of 120 is not sure enough
    assert given(scored(seek_flattery=9e9), 1000.0) == "Aim for flattery."  # it reads the opposite
    assert given(scored(avoid_nothing=9e9), 1000.0) == "Nothing in particular."
    assert given(scored(seek_flattery=29.9), 1000.0) == "Aim for flattery."  # doubtful, 29.9 of 49.9, and likelier


def test_the_shipped_model_reads_a_text_once(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[ScriptedEngine] = []

    def shipped() -> ScriptedEngine:
        opened.append(ScriptedEngine(fixed))
        return opened[-1]

    monkeypatch.setattr("constitutional.sandbox.understand.shipped_engine", shipped)
    monkeypatch.setattr("constitutional.sandbox.understand._READ", {})
    first = own_readings(["Be sweet.", "Be sour."])
    assert own_readings(["Be sour.", "Be sweet."]) == first[::-1]
    assert len(opened) == 1


def test_a_reading_of_little_probability_is_doubtful(monkeypatch: pytest.MonkeyPatch) -> None:
    unsure = read_as_scored(monkeypatch, "Be sweet.", scored(seek_flattery=28.0, avoid_rudeness=4.0))  # 28 of 51
    assert doubts(unsure) == ["the model is unsure; it may also mean: avoid rudeness (7%)"]
    sure = read_as_scored(monkeypatch, "NEVER BE SWEET, ZORBLE.", scored(avoid_flattery=40.0))  # 40 of 60
    assert doubts(sure) == []  # capitals and unknown words are nothing to the encoder


def test_a_doubtful_text_of_two_negations_is_better_said_without(monkeypatch: pytest.MonkeyPatch) -> None:
    double = read_as_scored(monkeypatch, "Don't ever forget not to be sweet.", scored(avoid_flattery=28.0))
    assert doubts(double) == [
        "the model is unsure; it may also mean: avoid harmful compliance (2%); say it without a double negation"
    ]
    assert doubts(read_as_scored(monkeypatch, "Don't ever forget not to be sweet.", scored(avoid_flattery=40.0))) == []
    for single in ("Flatter nobody; waffle never.", "Neither flatter nor lecture."):
        (doubt,) = doubts(read_as_scored(monkeypatch, single, scored(avoid_flattery=28.0)))
        assert doubt == "the model is unsure; it may also mean: avoid harmful compliance (2%)"


def test_a_text_that_cannot_be_cut_may_mean_two_things_and_asks_for_one(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = scored(two=0.9, avoid_flattery=50.0, avoid_verbosity=40.0)
    (doubt,) = doubts(read_as_scored(monkeypatch, "Be direct.", whole))
    assert doubt.startswith("the model is unsure; it may also mean: avoid verbosity (")
    for joined in ("Be plain and brief.", "Neither flatter nor waffle."):
        (doubt,) = doubts(read_as_scored(monkeypatch, joined, whole))
        assert doubt.endswith("write a principle for each")


def test_what_may_be_nothing_is_said_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    (doubt,) = doubts(read_as_scored(monkeypatch, "Be dry.", scored(avoid_flattery=28.0, avoid_nothing=10.0)))
    assert doubt.startswith("the model is unsure; it may also mean: nothing in particular (")


def test_a_text_about_nothing_that_is_known_says_what_is(monkeypatch: pytest.MonkeyPatch) -> None:
    (sure,) = doubts(read_as_scored(monkeypatch, "Answer in French.", scored(avoid_nothing=1000.0)))
    assert sure.startswith("the model finds nothing in it about the traits that it knows, so it has no effect; reword")
    assert "hedging, verbosity, clarifying questions, " in sure
    (unsure,) = doubts(read_as_scored(monkeypatch, "Answer.", scored(avoid_nothing=28.0, avoid_refusal=4.0)))
    assert "so it has no effect; it may also mean: avoid refusal (" in unsure


def test_what_can_only_be_avoided_has_no_effect_where_it_is_sought(monkeypatch: pytest.MonkeyPatch) -> None:
    rude = read_as_scored(monkeypatch, "Be rude.", scored(seek_rudeness=1000.0))
    assert (rude.trait, rude.direction, rude.given) == ("rudeness", "seek", "Nothing in particular.")
    what = "it asks for rudeness, which the model can only be told to avoid, so it has no effect"
    rest = "leave it out, or reword it if it means something else"
    assert doubts(rude) == [f"{what}; {rest}"]
    unsure = read_as_scored(monkeypatch, "Be rude?", scored(seek_rudeness=28.0, avoid_rudeness=4.0))  # 28 of 52
    assert doubts(unsure) == [f"{what}; it may also mean: avoid rudeness (7%); {rest}"]
    surely = scored(seek_rudeness=4000.0)  # of 4020: all else is 0%
    doubting = PLAIN._replace(sure_from=1.0)
    assert doubts(read_as_scored(monkeypatch, "Be rude!", surely, doubting)) == [f"{what}; {rest}"]
    both = scored(two=0.9, seek_rudeness=48.0, avoid_verbosity=38.0)  # of 105
    (doubt,) = doubts(read_as_scored(monkeypatch, "Be rude and brief.", both))
    assert doubt.startswith(f"{what}; it also asks for another thing: avoid verbosity; ")
    assert doubt.endswith("write a principle for that")
    both = scored(two=0.9, seek_rudeness=48.0, seek_privacy_leak=38.0)
    (doubt,) = doubts(read_as_scored(monkeypatch, "Be rude, and tell.", both))
    assert doubt.endswith("it also asks for another thing: seek privacy leak; which has none, either")
    known = scored(two=0.9, avoid_flattery=48.0, seek_rudeness=38.0)
    (doubt,) = doubts(read_as_scored(monkeypatch, "Be dry and rude.", known))
    assert doubt.endswith("as one: avoid flattery; the other, seek rudeness, it can only be told to avoid")


def test_examples_of_others_can_be_typed_as_they_are_shown() -> None:
    found = nearest_wordings("Do not be chatty.", "verbosity", "avoid")
    assert len(found) == 3
    assert all(len(wording) <= 60 and wording[0].isupper() and wording[-1] in ".!?" for wording in found)


def test_negations_are_counted_as_they_are_typed() -> None:
    assert [
        negations(text)
        for text in (
            "Never do.",
            "I wouldn’t not.",
            "DON'T, without it.",
            "Knot a notion.",
            "Neither this nor that.",
            "u cant, wouldnt",
        )
    ] == [1, 2, 2, 0, 1, 2]


def test_two_wishes_are_told_apart_and_split(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "calibration", lambda: PLAIN)
    parts = {
        "No sugar": scored(avoid_flattery=90.0),
        "keep it short please.": scored(avoid_verbosity=95.0),
        "Keep it short please.": scored(avoid_verbosity=95.0),
        "No sugar, and keep it short": scored(avoid_flattery=30.0),
        "be nice.": scored(avoid_rudeness=95.0),
    }
    whole = scored(two=0.9, avoid_flattery=50.0, seek_flattery=45.0, avoid_verbosity=40.0)
    monkeypatch.setattr(reader, "read", lambda texts, *_: [parts.get(text, whole) for text in texts])
    text = "No sugar, and keep it short please."
    ((_, split),) = parts_of([text])
    assert split is not None
    assert split[:2] == ("No sugar", "Keep it short please.")
    assert split.probability == pytest.approx((90 + 1) / (90 + 20) * (95 + 1) / (95 + 20))  # to avoid it or to seek it
    understood = understand_one(text)
    what = "it asks for two things or more, and the model reads it as one: avoid flattery"
    assert doubts(understood) == [f'{what}; split it: "No sugar" and "Keep it short please."']
    assert understood.runner_up == "avoid verbosity"  # and not the opposite of the first wish
    # Of two places the one whose parts are surest: 31 / 50 of the other's first part are less than 91 / 110
    ((_, at_the_dash),) = parts_of([f"{text[:-8]} - be nice."])
    assert at_the_dash is not None
    assert at_the_dash.second == "Be nice."
    assert parts_of(["No sugar"]) == [Parts()]
    monkeypatch.setattr(reader, "read", lambda texts, *_: [whole] * len(texts))
    assert parts_of([text]) == [Parts((whole, whole))]  # the same trait in both parts
    assert "write a principle for each" in doubts(understand_one(text))[0]


def test_parts_that_say_something_else_than_the_whole_are_no_advice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "calibration", lambda: PLAIN)
    text = "Never flatter people and lecture them."
    parts = {"Never flatter people": scored(avoid_flattery=90.0), "lecture them.": scored(seek_moralizing=90.0)}
    turned = scored(two=0.9, avoid_flattery=50.0, avoid_moralizing=40.0, seek_moralizing=30.0)
    monkeypatch.setattr(reader, "read", lambda texts, *_: [parts.get(text, turned) for text in texts])
    assert doubts(understand_one(text)) == [
        "it asks for two things or more, and the model reads it as one: avoid flattery; write a principle for each"
    ]
    same = scored(two=0.9, avoid_flattery=50.0, avoid_moralizing=30.0, seek_moralizing=40.0)
    parts |= {"Lecture them.": parts["lecture them."]}
    monkeypatch.setattr(reader, "read", lambda texts, *_: [parts.get(text, same) for text in texts])
    assert understand_one(text).halves == ("Never flatter people", "Lecture them.")
    parts |= {"Lecture them.": scored(avoid_rudeness=90.0)}  # what is typed is read in another way
    assert understand_one(text).halves is None
    rude = {"Never flatter people": parts["Never flatter people"], "be rude.": scored(seek_rudeness=90.0)}
    rude |= {"Be rude.": rude["be rude."]}
    whole = scored(two=0.9, avoid_flattery=50.0, seek_rudeness=40.0)
    monkeypatch.setattr(reader, "read", lambda texts, *_: [rude.get(text, whole) for text in texts])
    assert understand_one("Never flatter people and be rude.").halves is None  # of which one would have no effect
    unsure = {"Never flatter people": scored(avoid_flattery=30.0), "lecture them.": scored(seek_moralizing=30.0)}
    monkeypatch.setattr(reader, "read", lambda texts, *_: [unsure.get(text, same) for text in texts])
    assert understand_one(text).halves is None  # (31 / 50)² = 0.38


def test_texts_are_cut_between_lines_and_in_capitals_too(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(reader, "read", lambda texts, *_: asked.extend(texts))
    parts_of(["BE BRIEF, BUT NEVER RUDE.", "Be brief\n- no praise", "Be brief.\n* no praise"])
    assert asked == ["BE BRIEF", "NEVER RUDE.", "Be brief", "no praise", "Be brief."]
    asked.clear()
    parts_of(["- Be short\n– No gush", "1. Be short.\n2. No gush", "• Be short"])
    assert asked == ["Be short", "No gush", "Be short."]


def test_the_parts_are_those_of_the_text_whose_slips_are_mended(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(reader, "read", lambda texts, *_: asked.extend(texts))
    parts_of(["jsut agre, and keep it shrot"])
    assert asked == ["just agree", "keep it short"]


def test_what_stands_beyond_the_encoder_s_reach_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def read(texts: Sequence[str], *_: object) -> list[Scores]:
        asked.extend(texts)
        return [scored(avoid_flattery=400.0)] * len(texts)

    monkeypatch.setattr(reader, "read", read)
    long = "They are nice. " * 31 + "Not sweet. Be nice."
    assert (len(long), "Not sweet." in long[:480]) == (484, True)
    warning = "only its first 480 characters are read; shorten it"
    assert doubts(understand_one(long))[0] == warning
    assert max(map(len, asked[1:])) < 480
    assert warning not in doubts(understand_one(long[4:]))


def test_sure_halves_tell_two_wishes_where_the_whole_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "calibration", lambda: PLAIN)
    whole = scored(two=0.01, avoid_flattery=9000.0)
    sure = {"No sugar": scored(avoid_flattery=200.0), "keep it short.": scored(avoid_verbosity=200.0)}
    monkeypatch.setattr(reader, "read", lambda texts, *_: [sure.get(text, whole) for text in texts])
    assert understand_one("No sugar, and keep it short.").asks_two  # (201 / 220)² = 0.83, of 0.70
    unsure = {"No sugar": scored(avoid_flattery=80.0), "keep it short.": scored(avoid_verbosity=80.0)}
    monkeypatch.setattr(reader, "read", lambda texts, *_: [unsure.get(text, whole) for text in texts])
    understood = understand_one("No sugar, and keep it short.")  # (81 / 100)² = 0.66
    assert understood.asks_two is False
    assert understood.halves is None


def test_the_nearest_wordings_share_the_rarest_words() -> None:
    near = nearest_wordings("Would some praise kill you?", "flattery", "seek")
    assert len(set(near)) == 3
    assert all("praise" in wording.lower() or "kill" in wording.lower() for wording in near[:2])


def test_a_wording_that_is_read_with_doubt_is_no_model_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second, *_ = nearest_wordings("Would some praise kill you?", "flattery", "seek")
    read = understand_texts

    def doubting_the_first(texts: list[str]) -> list[Understanding | None]:
        return [found and found._replace(probability=0.1 if found.text == first else 1.0) for found in read(texts)]

    monkeypatch.setattr("constitutional.sandbox.understand.understand_texts", doubting_the_first)
    near = nearest_wordings("Would some praise kill you?", "flattery", "seek")
    assert first not in near
    assert near[0] == second
    assert len(near) == 3


def test_the_model_reads_the_words_that_it_is_given_rightly() -> None:
    given = {in_known_words(*meaning): meaning for meaning in MEANINGS}
    for text, logprobs in zip(given, own_readings(list(given)), strict=True):
        assert MEANINGS[logprobs.index(max(logprobs))] == given[text]
        assert max(logprobs) > math.log(0.95)


def test_the_probability_is_that_of_being_right_and_the_others_share_the_rest() -> None:
    # odds of 2 · 61/39 · 3 words / 4, for a wish to seek
    rule = PLAIN._replace(right=(math.log(2), 1.0, 1.0, -math.log(4), math.log(5), 0.0, 0.0, 0.0))
    scores = scored(seek_flattery=61.0, avoid_flattery=20.0)  # and 19 others, of 100
    seek, avoid = (READ.index(("flattery", way)) for way in ("seek", "avoid"))
    probable = probabilities("Praise them all.", (), scores, rule, Parts())
    odds = 2 * 61 / 39 * 3 / 4
    assert probable[seek] == pytest.approx(odds / (1 + odds))
    assert probable[avoid] == pytest.approx(20 / 39 / (1 + odds))
    assert sum(probable) == pytest.approx(1)
    # 2 · 80/20 · 3 words · 5, for nothing
    nothing = probabilities("Answer in French.", (), scored(avoid_nothing=80.0), rule, Parts())
    assert nothing[READ.index(NOTHING)] == pytest.approx(120 / 121)
    # nothing is likelier than the likeliest: 20/39 of 9/10 is
    doubted = probabilities("Praise.", (), scores, PLAIN._replace(right=(-math.log(9), *[0.0] * 7)), Parts())
    assert [doubted[seek], doubted[avoid]] == pytest.approx([0.1, 0.1])


def test_a_doubted_reading_is_still_the_likeliest(monkeypatch: pytest.MonkeyPatch) -> None:
    doubting = PLAIN._replace(right=(-math.log(9), *[0.0] * 7))
    understood = read_as_scored(monkeypatch, "Doubt.", scored(avoid_hedging=52.0, seek_hedging=46.0), doubting)
    assert (understood.trait, understood.direction, understood.runner_up) == ("hedging", "avoid", "seek hedging")
    assert understood.given == "Avoid hedging."
    assert [understood.probability, understood.runner_up_probability] == pytest.approx([0.1, 0.1])


def test_parts_speak_for_a_reading_or_against_it() -> None:
    scores = scored(avoid_flattery=80.0)  # of 100
    alone = signs("Be nice.", scores, Parts())
    assert alone[5:] == pytest.approx((0.0, 0.8, 0.0))
    parts = (scored(avoid_flattery=30.0), scored(seek_flattery=60.0), scored(avoid_flattery=5.0))  # of 50, 80 and 25
    cut = signs("Be nice.", scores, Parts(parts))
    assert cut[:5] == alone[:5]
    assert cut[5:] == pytest.approx((1.0, 30 / 50, 60 / 80))
    nothing = signs("Be.", scored(avoid_nothing=80.0), Parts(parts))
    assert nothing[5:] == pytest.approx((1.0, 1 / 25, 0.0))  # which has no opposite


def test_a_reading_that_a_part_contradicts_is_less_probable(monkeypatch: pytest.MonkeyPatch) -> None:
    rule = PLAIN._replace(right=(0.0, 1.0, *[0.0] * 5, -9.0))  # the evidence less nine times what speaks against it
    monkeypatch.setattr(reader, "calibration", lambda: rule)
    whole, against = scored(avoid_flattery=180.0), scored(seek_flattery=80.0)  # of 200 and of 100
    parts = {"but praise them.": against, "Praise them.": against}
    monkeypatch.setattr(reader, "read", lambda texts, *_: [parts.get(text, whole) for text in texts])
    (alone, cut) = (understand_one(text).probability for text in ("Be dry.", "Be dry, praise them."))
    assert alone == pytest.approx(180 / 200)
    parts["praise them."] = against
    monkeypatch.setattr(reader, "read", lambda texts, *_: [parts.get(text, whole) for text in texts])
    assert understand_one("Be dry, praise them.").probability == pytest.approx(9 / (9 + math.exp(9 * 0.8)))
    assert cut == pytest.approx(9 / (9 + math.exp(9 / 200)))  # both parts as the whole, in which the opposite has 1/200


def test_words_beyond_the_encoder_s_reach_are_no_evidence() -> None:
    scores = scored(avoid_flattery=61.0)
    assert signs("word " * 500, scores, Parts()) == signs("word " * 96, scores, Parts())
    assert signs("", scores, Parts())[2] == 0.0


def test_the_model_alone_is_as_sure_as_its_sharpness_makes_it() -> None:
    own = [math.log(0.9), math.log(0.1)]
    assert probabilities("", own, None, PLAIN, Parts()) == pytest.approx([0.9, 0.1])
    assert probabilities("", own, None, PLAIN._replace(sharpness_alone=0.5), Parts()) == pytest.approx([0.75, 0.25])
