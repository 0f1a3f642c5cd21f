import random

import pytest

from constitutional.base.stats import Interval, wilson
from constitutional.base.templates import load_prompts
from constitutional.engines.base import Completion, Request
from constitutional.engines.scripted import ScriptedEngine
from constitutional.sandbox import teacher
from constitutional.sandbox.detect import detect
from constitutional.sandbox.world import Traits, WorldPrompt, draw_prompt
from scripts.sandbox_training import evaluate
from scripts.sandbox_training.corpus import Family
from scripts.sandbox_training.evaluate import Evaluation, Measure, Wording, as_wording, share, table

FLATTERY = Wording(("flattery", "avoid"), "Do not flatter the user.")
LENGTH = Wording(("verbosity", "seek"), "Write a lot.")


class Player(ScriptedEngine):
    """Knows the prompts that were drawn and the principles that are asked, so it can answer truly or in a fixed way."""

    def __init__(self, drawn: list[WorldPrompt], *, always: str = "") -> None:
        super().__init__(self._answer, "player")
        self.drawn = drawn
        self.always = always
        self.families = {each.text: each.family for each in (FLATTERY, LENGTH)}

    def _answer(self, request: Request) -> Completion:
        chat = request.messages
        asked = next(message.content for message in reversed(chat) if message.role == "user")
        family = self.families[asked.rsplit("Principle: ", 1)[1]]
        if request.choices:
            best = self.always or self._better(asked, family)
            return Completion(
                "", "choices", tuple(0.0 if choice.strip() == best else -9.0 for choice in request.choices)
            )
        if "Here is a conversation" in asked:
            return Completion(f"{teacher.restate(*family)} ", "stop")
        if "Say in one sentence" in asked:
            return Completion(teacher.restate(*family), "stop")
        prompt = next(prompt for prompt in self.drawn if prompt.messages == chat[: len(prompt.messages)])
        traits = detect(prompt, chat[-2].content).traits
        violated = teacher.is_violated(prompt, traits, *family)
        return Completion(self.always or (teacher.VIOLATES if violated else teacher.FOLLOWS), "stop")

    def _better(self, asked: str, family: Family) -> str:
        a, b = asked.split("\n(A) ")[1].split("\n\nCompare the responses", maxsplit=1)[0].split("\n\n(B) ")

        def has(text: str) -> Traits:
            return detect(self.drawn[0], text).traits

        return teacher.better(self.drawn[0], has(a), has(b), *family)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[WorldPrompt]:
    kept: list[WorldPrompt] = []

    def draw_and_keep(rng: random.Random, *, held_out: bool = False) -> WorldPrompt:
        kept.append(draw_prompt(rng, held_out=held_out))
        return kept[-1]

    monkeypatch.setattr(evaluate, "draw_prompt", draw_and_keep)
    return kept


def evaluation(player: Player) -> Evaluation:
    return Evaluation(player, load_prompts(), scale=0.1)


def test_a_perfect_critic_is_always_right_and_a_constant_one_half_of_the_time(drawn: list[WorldPrompt]) -> None:
    wordings = [FLATTERY, LENGTH] * 60
    perfect = evaluation(Player(drawn)).verdicts("test", wordings, 0.98, grouped=False)
    assert perfect.value == 1.0
    assert perfect.n == 120
    constant = evaluation(Player(drawn, always=teacher.FOLLOWS)).verdicts("test", wordings, 0.98, grouped=False)
    assert 0.35 < constant.value < 0.65
    assert not constant.reached


def test_an_unreadable_verdict_is_wrong(drawn: list[WorldPrompt]) -> None:
    unreadable = evaluation(Player(drawn, always="Hm.")).verdicts("test", [FLATTERY] * 20, None, grouped=False)
    assert unreadable.value == 0.0


def test_a_labeler_that_favours_a_position_scores_half_and_shows_its_bias(drawn: list[WorldPrompt]) -> None:
    drawn.append(draw_prompt(random.Random(0), "howto", turns=1))
    wordings = [FLATTERY, LENGTH] * 10
    accuracy, *_, position = evaluation(Player(drawn, always="A")).labels(
        "test", wordings, 0.95, by_trait=True, grouped=False
    )
    assert (accuracy.value, accuracy.n) == (0.5, 40)  # every pair is asked in both orders
    assert position.value == 1.0
    assert not position.reached
    perfect = evaluation(Player(drawn)).labels("test", wordings, 0.95, by_trait=True, grouped=False)
    assert perfect[0].value == 1.0
    assert perfect[-1].value == 0.5
    assert perfect[-1].reached


def test_a_share_has_wilsons_interval_and_a_grouped_one_is_wider() -> None:
    alone = share("x", [True] * 8 + [False] * 2)
    assert alone.value == 0.8
    assert alone.interval == pytest.approx((0.4902, 0.9433), abs=1e-4)  # Wilson's interval of 8 in 10
    values = [True, False] * 20
    grouped = share("x", sorted(values), groups=[str(index // 5) for index in range(40)])
    single = share("x", sorted(values))
    assert grouped.interval.high - grouped.interval.low > single.interval.high - single.interval.low


def test_groups_that_are_all_alike_leave_as_much_doubt_as_wilsons_interval_of_them() -> None:
    # 10 pairs: Wilson's interval of 10 in 10 begins at 10 / (10 + 1.96²) = 0.7225, whatever the size of each.
    pairs = [str(index // 2) for index in range(20)]
    assert share("x", [True] * 20, groups=pairs).interval == pytest.approx((0.7225, 1.0), abs=1e-4)
    assert share("x", [True] * 20, groups=pairs).interval == pytest.approx(wilson(10, 10))
    assert share("x", [False] * 20, groups=pairs).interval == pytest.approx((0.0, 0.2775), abs=1e-4)
    # A labeler that prefers A in one order of each pair: up to 0.2775 of pairs may be all A, or all B.
    assert share("x", [True, False] * 10, groups=pairs).interval == pytest.approx((0.3612, 0.6388), abs=1e-4)
    # One group says next to nothing, but no infinity, which JSON cannot hold.
    assert share("x", [True, True], groups=["a", "a"]).interval == pytest.approx(wilson(1, 1))


def test_the_two_orders_of_a_pair_are_one_item_of_an_interval(drawn: list[WorldPrompt]) -> None:
    drawn.append(draw_prompt(random.Random(0), "howto", turns=1))
    measures = evaluation(Player(drawn)).labels("test", [FLATTERY] * 10, 0.95, by_trait=True, grouped=False)
    found = {measure.name: measure for measure in measures}
    flattery = found["labeler, test: flattery"]
    assert (flattery.value, flattery.n) == (1.0, 20)
    assert flattery.interval == pytest.approx(wilson(10, 10))
    assert found["labeler after its rationale, test"].interval == pytest.approx(wilson(10, 10))
    assert found["position: the labeler prefers A"].interval == pytest.approx((0.3612, 0.6388), abs=1e-4)
    assert found["labeler, test: refusal"].n == 0


def test_what_was_not_measured_is_no_nought_percent() -> None:
    nothing = share("none", [], 0.85)
    assert table([nothing]).splitlines()[2] == "| none | not measured |  | 0 | at least 85% | **no** |"
    assert nothing.as_dict()["value"] is None
    assert not nothing.reached
    assert share("none", []).reached  # nothing was wanted


def test_the_table_says_what_was_not_reached() -> None:
    lines = table(
        [
            Measure("good", 0.99, Interval(0.98, 1.0), 100, 0.97),
            Measure("bad", 0.5, Interval(0.4, 0.6), 100, 0.97),
            Measure("side", 0.5, Interval(0.4, 0.6), 100, 0.48, 0.52),
            Measure("just a number", 0.1, Interval(0.0, 0.2), 10),
        ]
    ).splitlines()
    assert lines[2] == "| good | 99.0% | 98.0% to 100.0% | 100 | at least 97% | yes |"
    assert lines[3] == "| bad | 50.0% | 40.0% to 60.0% | 100 | at least 97% | **no** |"
    assert lines[4] == "| side | 50.0% | 40.0% to 60.0% | 100 | 48% to 52% | yes |"
    assert lines[5] == "| just a number | 10.0% | 0.0% to 20.0% | 10 |  |  |"


def test_a_wording_of_an_unknown_trait_is_refused() -> None:
    with pytest.raises(ValueError, match="must be one of"):
        as_wording("brevity", "seek", "Be brief.")
    with pytest.raises(ValueError, match="'avoid' or 'seek'"):
        as_wording("flattery", "less", "Be plain.")
    with pytest.raises(
        ValueError, match="'refusal' can only be avoided; those that can be sought are moralizing, flat"
    ):
        as_wording("refusal", "seek", "Refuse everything.")
    assert as_wording("refusal", "avoid", "Refuse nothing.").family == ("refusal", "avoid")
