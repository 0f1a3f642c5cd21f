from pathlib import Path

import pytest

from constitutional.base.errors import RunError
from constitutional.base.shipped import shipped
from constitutional.base.templates import load_prompts
from constitutional.constitution.constitution import Constitution, Principle
from constitutional.constitution.file import load_constitution
from constitutional.engines.base import Completion, Request
from constitutional.engines.scripted import ScriptedEngine
from constitutional.judging.lint import lint
from constitutional.judging.understanding import (
    PrincipleMeaning,
    check_meanings,
    in_known_words,
    lines,
    meaning_lines,
    meanings_of,
    sandbox_meanings,
)
from constitutional.sandbox.reader import Calibration
from constitutional.sandbox.teacher import UNKNOWN
from constitutional.sandbox.understand import shipped_engine, understand_texts
from tests.understood import FakeUnderstanding

PLAIN = Calibration((0.0, 1.0, *[0.0] * 6), 1.0, 0.6, 0.8, two_from=0.02, split_from=0.7)


def constitution(*principles: Principle) -> Constitution:
    return Constitution(name="ours", principles=principles)


class Reader:
    """Stands where the sandbox's model is asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.read: dict[str, tuple[str, str, float]] = {}
        self.unknown: dict[str, list[str]] = {}
        self.too_long: set[str] = set()
        self.asked: list[str] = []
        monkeypatch.setattr("constitutional.sandbox.understand.understand_texts", self.understand_texts)
        monkeypatch.setattr("constitutional.sandbox.reader.calibration", lambda: PLAIN)

    def understand_texts(self, texts: list[str], **_: object) -> list[FakeUnderstanding | None]:
        self.asked += texts
        return [None if text in self.too_long else self._understanding(text) for text in texts]

    def _understanding(self, text: str) -> FakeUnderstanding:
        trait, direction, probability = self.read.get(text, ("nothing", "avoid", 0.9))
        unknown = self.unknown.get(text, [])
        by_the_encoder = False if (trait, direction) in UNKNOWN else None  # which alone knows these
        return FakeUnderstanding(
            text,
            trait=trait,
            direction=direction,
            probability=probability,
            unknown_words=unknown,
            asks_two=by_the_encoder,
        )


@pytest.fixture
def reader(monkeypatch: pytest.MonkeyPatch) -> Reader:
    return Reader(monkeypatch)


def test_every_principle_has_a_meaning_with_its_probability(reader: Reader) -> None:
    reader.read = {"No flattery.": ("flattery", "avoid", 0.9423), "Be frank.": ("sycophantic_agreement", "avoid", 0.8)}
    ours = constitution(Principle(id="plain", text="No flattery."), Principle(id="frank", text="Be frank."))
    meanings = sandbox_meanings(ours)
    assert meanings[0] == PrincipleMeaning(
        principle="plain",
        words="No flattery.",
        meaning="avoid flattery",
        probability=0.9423,
        runner_up="avoid flattery",
    )
    assert lines(meanings) == [
        "plain: understood as: avoid flattery (94%)",
        "frank: understood as: avoid sycophantic agreement (80%)",
    ]


@pytest.mark.parametrize(
    ("text", "read", "tags", "warning"),
    [
        ("Be laconic.", ("verbosity", "avoid", 0.799), (), "unsure"),
        ("Be laconic.", ("nothing", "avoid", 0.99), (), "no effect"),
        ("Keep it short and get to the point.", ("verbosity", "seek", 0.94), (), "'get to the point'"),
        ("Never flatter.", ("flattery", "seek", 0.99), (), "'never'"),
        ("Mind it.", ("verbosity", "seek", 0.99), ("verbosity", "avoid"), "tags say 'avoid verbosity'"),
        (
            "Mind it.",
            ("sycophantic_agreement", "seek", 0.99),
            ("sycophantic agreement", "Avoid"),
            "tags say 'avoid sycophantic agreement'",
        ),
        ("Be laconic.", ("verbosity", "avoid", 0.9), ("flattry", "avoid"), "mean 'flattery'"),
        ("Be laconic.", ("verbosity", "avoid", 0.9), ("hedgeing",), "mean 'hedging'"),
        ("Be laconic.", ("verbosity", "avoid", 0.9), ("tone", "avoid"), "traits are"),
        ("Mind it.", ("rudeness", "avoid", 0.9), ("Rudeness", "seek"), "seek 'Rudeness', but"),
        ("Mind it.", ("rudeness", "avoid", 0.9), ("rudeness", "seek"), "; it is read as 'avoid rudeness'"),
        ("Mind it.", ("flattery", "seek", 0.9), ("flattery", "avod"), "'avod' is no direction; did you mean 'avoid'?"),
        ("Mind it.", ("flattery", "seek", 0.9), ("flattery", "week"), None),
        ("Mind it.", ("flattery", "seek", 0.9), ("flattery", "hedging", "seek", "avoid"), None),
        ("Mind it.", ("flattery", "seek", 0.9), ("flattery", "Seek", "avoid"), "both to avoid and to seek 'flattery'"),
        ("Be rude.", ("rudeness", "seek", 0.99), ("rudeness", "seek"), "can only be told to avoid"),
        ("Be laconic.", ("verbosity", "avoid", 0.9), ("tone", "verbosity"), None),
        ("Be laconic.", ("verbosity", "avoid", 0.9), ("tone", "safety"), None),
        ("BE LACONIC.", ("verbosity", "avoid", 0.99), (), "capitals"),
        ("Be laconic.", ("verbosity", "avoid", 0.8), ("verbosity", "avoid"), None),
    ],
)
def test_a_doubtful_meaning_is_warned_of(
    reader: Reader, text: str, read: tuple[str, str, float], tags: tuple[str, ...], warning: str | None
) -> None:
    reader.read[text] = read
    (meaning,) = sandbox_meanings(constitution(Principle(id="a", text=text, tags=tags)))
    assert warning is None or warning in meaning.warnings[0]
    assert len(meaning.warnings) == (warning is not None)
    assert len(lines([meaning])) == 1 + len(meaning.warnings)


def test_what_has_no_effect_is_no_opposite_of_another_principle(reader: Reader) -> None:
    reader.read = {"Be polite.": ("rudeness", "avoid", 0.99), "Be rude.": ("rudeness", "seek", 0.99)}
    rude, polite = (Principle(id=text[3:7], text=text) for text in ("Be rude.", "Be polite."))
    first, second = sandbox_meanings(constitution(rude, polite))
    assert [len(first.warnings), len(second.warnings)] == [1, 0]


def test_unknown_words_are_warned_of(reader: Reader) -> None:
    reader.read["Be laconic."] = ("verbosity", "avoid", 0.99)
    reader.unknown["Be laconic."] = ["laconic"]
    (meaning,) = sandbox_meanings(constitution(Principle(id="a", text="Be laconic.")))
    assert meaning.unknown_words == ("laconic",)
    assert lines([meaning])[1].startswith("warning: principle 'a' (\"Be laconic.\"): ")
    assert lines([meaning])[1].endswith("laconic")


def test_critic_and_labeler_with_different_words_have_two_records_and_one_line(reader: Reader) -> None:
    reader.read = {
        "Be calm.": ("rudeness", "avoid", 0.9),
        "Is it calm?": ("hedging", "seek", 0.6),
        "Choose the calmer.": ("rudeness", "avoid", 0.7),
    }
    both = sandbox_meanings(constitution(Principle(id="calm", text="Be calm.", critique="Is it calm?")))
    # The text is the labeler's here, so it comes first.
    assert [(meaning.reader, meaning.words) for meaning in both] == [("labeler", "Be calm."), ("critic", "Is it calm?")]
    assert any("its other words" in warning for warning in both[1].warnings)
    (line,) = meaning_lines(both)
    assert line == (
        'calm: the labeler, which sees "Be calm.", reads it as: avoid rudeness (90%); '
        'the critic, which sees "Is it calm?", reads it as: seek hedging (60%)'
    )
    same = sandbox_meanings(constitution(Principle(id="calm", text="Be calm.", comparison="Choose the calmer.")))
    assert meaning_lines(same) == ["calm: understood as: avoid rudeness (90%)"]


def test_the_same_warning_is_said_once_for_a_principle(reader: Reader) -> None:
    reader.read = {"Be laconic.": ("nothing", "avoid", 0.99), "Be laconic.\nPlease.": ("nothing", "avoid", 0.99)}
    reader.unknown = {text: ["laconic"] for text in reader.read}
    meanings = sandbox_meanings(constitution(Principle(id="a", text="Be laconic.", critique="Be laconic.\nPlease.")))
    assert [len(meaning.warnings) for meaning in meanings] == [2, 0]


def test_principles_that_are_read_as_opposites_are_warned_of(reader: Reader) -> None:
    reader.read = {
        "A.": ("hedging", "seek", 0.9),
        "B.": ("hedging", "seek", 0.9),
        "C.": ("hedging", "avoid", 0.9),
        "D.": ("nothing", "avoid", 0.9),
    }
    meanings = sandbox_meanings(constitution(*[Principle(id=name.lower(), text=f"{name}.") for name in "ABCD"]))
    opposites = {meaning.principle: [text for text in meaning.warnings if "opposite" in text] for meaning in meanings}
    assert {name: len(warnings) for name, warnings in opposites.items()} == {"a": 0, "b": 0, "c": 1, "d": 0}
    assert "'a'" in opposites["c"][0]


def test_words_that_several_principles_have_are_asked_about_once(reader: Reader) -> None:
    reader.read["Be calm."] = ("rudeness", "avoid", 0.9)
    meanings = sandbox_meanings(constitution(*[Principle(id=f"p{number}", text="Be calm.") for number in range(3)]))
    assert reader.asked == ["Be calm."]
    assert [meaning.principle for meaning in meanings] == ["p0", "p1", "p2"]


def test_a_principle_that_is_too_long_has_a_warning_and_no_meaning(reader: Reader) -> None:
    reader.read["Be calm."] = ("rudeness", "avoid", 0.9)
    reader.too_long.add("Long.")
    long, calm = sandbox_meanings(
        constitution(Principle(id="long", text="Long."), Principle(id="calm", text="Be calm."))
    )
    assert (long.meaning, long.probability) == ("", None)
    assert "too long" in long.warnings[0]
    assert calm.meaning == "avoid rudeness"


class Critic(ScriptedEngine):
    """Restates principles that are not too long, and keeps what it was asked."""

    def __init__(self) -> None:
        super().__init__(self.restate, "critic")
        self.asked: list[Request] = []

    def restate(self, request: Request) -> Completion:
        if "Long." in request.messages[0].content:
            return Completion("", "too_long", reason="too long")
        if "Refused." in request.messages[0].content:
            return Completion("", "refusal", reason="filtered")
        self.asked.append(request)
        return self._reply(request.messages[0].content)

    def _reply(self, question: str) -> Completion:
        if "Silence." in question:
            return Completion(" \n", "stop")
        if "Red." in question:
            return Completion("It asks for \x1b[31mred.", "stop")
        if "Cut." in question:
            return Completion("It asks to", "length")
        return Completion(" It asks\nfor calm.\n", "stop")


def test_any_critic_restates_a_principle_greedily_and_one_that_is_too_long_is_warned_of() -> None:
    critic = Critic()
    texts = ("Be calm.", "Long.", "Silence.", "Cut.", "Refused.")
    ours = constitution(*[Principle(id=f"p{number}", text=text) for number, text in enumerate(texts)])
    meanings = meanings_of(ours, critic, load_prompts())
    assert [meaning.meaning for meaning in meanings] == ["It asks for calm.", "", "", "It asks to…", ""]
    assert [meaning.probability for meaning in meanings] == [None] * 5
    assert [len(meaning.warnings) for meaning in meanings] == [0, 1, 1, 0, 1]
    assert "filtered" in meanings[4].warnings[0]
    assert "too long" in meanings[1].warnings[0]
    assert lines(meanings)[:2] == ["p0: understood as: It asks for calm.", "p1: understood as: not read"]
    assert {request.sampling.temperature for request in critic.asked} == {0.0}
    assert critic.asked[0].messages[0].content == load_prompts().render("restate", principle="Be calm.")


def test_what_a_critic_writes_cannot_steer_a_terminal() -> None:
    meanings = meanings_of(constitution(Principle(id="red", text="Red.")), Critic(), load_prompts())
    assert lines(meanings) == ["red: understood as: It asks for [31mred."]


def test_a_principle_that_the_model_misreads_is_read_by_the_encoder_and_given_in_known_words() -> None:
    ours = constitution(Principle(id="short", text="Keep it short and get to the point."))
    given = in_known_words(ours, ["critique", "comparison"])
    (meaning,) = sandbox_meanings(given)
    assert (meaning.meaning, meaning.model_reads) == ("avoid verbosity", "seek verbosity")
    assert (meaning.words, meaning.given) == ("Keep it short and get to the point.", "Avoid verbosity.")
    assert meaning.warnings == ()
    assert lines([meaning])[0].endswith("%), and given to the model as: Avoid verbosity.")
    assert given.principles[0].words("critique") == given.principles[0].words("comparison") == "Avoid verbosity."
    assert given.principles[0].words("revision") == ours.principles[0].text  # nobody asked about this use
    edited = Principle(id="short", text="Be polite.", given={"critique": "Avoid verbosity."})  # a used file, edited
    assert in_known_words(constitution(edited), ["critique"]).principles[0].words("critique") == "Be polite."
    plain = constitution(Principle(id="plain", text="Be polite."))
    assert in_known_words(plain, ["critique"]) is plain


SHORT = "Keep it short and get to the point."
"""What the sandbox's model reads as a wish for length."""


def test_what_is_said_to_be_given_is_what_the_constitution_gives() -> None:
    (meaning,) = sandbox_meanings(constitution(Principle(id="short", text=SHORT)))
    assert meaning.given == ""
    assert any("itself reads them as 'seek verbosity'" in warning for warning in meaning.warnings)
    other = Principle(id="short", text=SHORT, given={"comparison": "Be terse."})  # the critic is another model
    ours = constitution(other)
    critic, labeler = sandbox_meanings(ours)
    assert [(row.reader, row.given) for row in (critic, labeler)] == [("critic", ""), ("labeler", "Be terse.")]
    assert meaning_lines([critic, labeler])[0].endswith("%), and given to the labeler as: Be terse.")
    restated = meanings_of(ours, Critic(), load_prompts())
    assert [(row.reader, row.given) for row in restated] == [("critic", ""), ("labeler", "Be terse.")]


def test_a_principle_that_is_to_be_read_as_it_is_written_is_read_by_the_model_alone_and_refused_by_nobody() -> None:
    shuffled = "point. the to get and short it Keep"
    ours = constitution(Principle(id="short", text=shuffled, as_written=True), Principle(id="plain", text=shuffled))
    given = in_known_words(ours)
    assert [row.words("critique") for row in given.principles] == [shuffled, "Avoid verbosity."]
    as_written, plain = sandbox_meanings(given)
    assert (as_written.given, plain.given) == ("", "Avoid verbosity.")
    assert as_written.meaning == as_written.model_reads
    doubtful = as_written.model_copy(update={"warnings": ("unsure",)})
    check_meanings([doubtful], ["short"])
    with pytest.raises(RunError):
        check_meanings([doubtful])


def test_words_for_revision_alone_are_read_too(reader: Reader) -> None:
    reader.read = {"Be calm.": ("rudeness", "avoid", 0.9), "Make it longer.": ("verbosity", "seek", 0.9)}
    own = Principle(id="calm", text="Be calm.", revision="Make it longer.", given={"revision": "Aim for verbosity."})
    both, reviser = sandbox_meanings(constitution(own))
    assert (both.reader, both.words, both.given) == ("", "Be calm.", "")
    assert (reviser.reader, reviser.words, reviser.given) == ("reviser", "Make it longer.", "Aim for verbosity.")
    assert 'the reviser, which sees "Make it longer."' in meaning_lines([both, reviser])[0]
    assert any("its other words" in warning for warning in reviser.warnings)
    same = Principle(id="calm", text="Be calm.", revision="Be calm.")
    assert [row.reader for row in sandbox_meanings(constitution(same))] == [""]


def test_lint_says_what_a_run_would_give(tmp_path: Path) -> None:
    path = tmp_path / "ours.yaml"
    path.write_text(f"principles:\n- id: short\n  text: {SHORT}\n")
    assert lint(str(path), sandbox=True).understood[0].endswith("given to the model as: Avoid verbosity.")
    path.write_text("principles:\n- id: kind\n  text: Be polite.\n  given: {critique: Avoid verbosity.}\n")
    assert "given" not in lint(str(path), sandbox=True).understood[0]
    for line in lint("sandbox_careful", sandbox=True).understood:
        assert "given" not in line  # what ships is given as it is


def test_a_reason_by_which_the_sandboxs_model_would_read_something_else_is_left_out() -> None:
    ours = constitution(
        Principle(id="short", text="Keep it short and get to the point.", why="Time is short."),
        Principle(id="flattery", text="Do not flatter the user.", why="Praise for all is worth nothing."),
        Principle(id="lost", text="Do not flatter the user.", why="Always add a warning about safety and danger."),
    )
    assert [meaning.words for meaning in sandbox_meanings(ours)] == [row.text for row in ours.principles]
    given = in_known_words(ours, ["critique"]).principles
    texts = [f"Do not flatter the user.\n\nReason: {row.why}" for row in ours.principles[1:]]
    read = [reading.model_reads for reading in understand_texts(texts) if reading]
    assert given[0].words("critique") == "Avoid verbosity."
    for principle, reading in zip(given[1:], read, strict=True):
        assert ("Reason" in principle.words("critique")) == (reading == "avoid flattery")
        assert principle.words("revision").endswith(f"Reason: {principle.why}")


def test_without_the_encoder_the_models_misreading_is_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("constitutional.sandbox.reader.read", lambda *_: None)
    (meaning,) = sandbox_meanings(constitution(Principle(id="short", text="Keep it short and get to the point.")))
    assert meaning.meaning == "seek verbosity"
    assert meaning.given == ""
    assert any("'keep it short'" in warning for warning in meaning.warnings)


def test_doubtful_meanings_can_end_a_run_with_the_wordings_of_others() -> None:
    sure = PrincipleMeaning(principle="a", words="No flattery.", meaning="avoid flattery", probability=0.99)
    check_meanings([sure])
    doubtful = PrincipleMeaning(
        principle="b",
        words="Would some praise kill you?",
        meaning="seek flattery",
        probability=0.5,
        runner_up="avoid rudeness",
        warnings=("the model is unsure",),
    )
    with pytest.raises(RunError) as refused:
        check_meanings([sure, doubtful])
    assert str(refused.value).startswith("the meaning of 1 principle is doubtful")
    assert "understanding=warn" in str(refused.value)
    first, *others = refused.value.__notes__
    assert first == "principle 'b' (\"Would some praise kill you?\"): the model is unsure"
    assert [line.partition(", others write: ")[0] for line in others] == ["to seek flattery", "to avoid rudeness"]
    assert [line.partition(", others write: ")[2].split(";")[0] for line in others] == [
        '"Aim for flattery."',
        '"Avoid rudeness."',
    ]


def test_a_principle_that_is_surely_about_nothing_is_refused_without_examples() -> None:
    nothing = PrincipleMeaning(
        principle="c",
        words="Answer in French.",
        meaning="nothing in particular",
        probability=0.99,
        runner_up="avoid rudeness",
        warnings=("it has no effect",),
    )
    with pytest.raises(RunError) as refused:
        check_meanings([nothing])
    assert refused.value.__notes__ == ["principle 'c' (\"Answer in French.\"): it has no effect"]
    rude = {"meaning": "seek rudeness"}  # which the model does not know
    with pytest.raises(RunError) as refused:
        check_meanings([nothing.model_copy(update=rude)])
    assert len(refused.value.__notes__) == 1
    refusals = {"meaning": "seek refusal", "runner_up": "avoid harmful compliance"}  # which lie close together
    with pytest.raises(RunError) as refused:
        check_meanings([nothing.model_copy(update=refusals)])
    assert "to avoid harmful compliance, others write: " in refused.value.__notes__[1]
    with pytest.raises(RunError) as refused:
        check_meanings([nothing.model_copy(update={"probability": 0.5})])
    assert "to avoid rudeness" in refused.value.__notes__[1]


def test_where_nobody_words_it_surely_the_sandbox_s_own_words_stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("constitutional.sandbox.understand.nearest_wordings", lambda *_: [])
    meaning = PrincipleMeaning(
        principle="b", words="Praise?", meaning="seek flattery", warnings=("the model is unsure",)
    )
    with pytest.raises(RunError) as refused:
        check_meanings([meaning])
    assert refused.value.__notes__[1:] == ['to seek flattery, others write: "Aim for flattery."']
    # which are no example where they are read with doubt themselves
    monkeypatch.setattr("constitutional.sandbox.understand.read_without_doubt", lambda *_: [])
    with pytest.raises(RunError) as refused:
        check_meanings([meaning])
    assert len(refused.value.__notes__) == 1


def test_a_principle_is_refused_only_for_what_is_said() -> None:
    improbable = PrincipleMeaning(principle="a", words="Keep it snappy.", meaning="avoid verbosity", probability=0.3)
    assert not improbable.doubtful  # the model alone is never surer; below its own bound there is a warning
    check_meanings([improbable])


def test_two_wishes_in_one_principle_are_warned_of() -> None:
    texts = (
        "Never be rude, and keep it short.",
        "Ask what is meant when it is unclear, but keep it short.",
        "Please be concise, but warn people about dangers.",
        # One wish each:
        "Be kind and polite.",
        "Do not flatter or praise the user.",
        "Keep it short and get to the point.",
        "Just answer, and don't come back at me with questions.",
    )
    meanings = sandbox_meanings(constitution(*[Principle(id=f"p{n}", text=text) for n, text in enumerate(texts)]))
    warned = [any("two things" in warning for warning in meaning.warnings) for meaning in meanings]
    assert warned == [True] * 3 + [False] * 4
    (warning,) = [warning for warning in meanings[2].warnings if "two things" in warning]
    assert '"Please be concise"' in warning
    assert '"Warn people about dangers."' in warning


def test_no_principle_for_the_sandbox_is_said_to_hold_two_wishes() -> None:
    names = sorted(path.stem for path in shipped("constitutions").glob("sandbox_*.yaml"))
    assert names
    engine = shipped_engine()
    for name in names:
        for meaning in sandbox_meanings(load_constitution(name), engine):
            assert not any("two things" in warning for warning in meaning.warnings)
