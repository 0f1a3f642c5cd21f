import json
from pathlib import Path

import pytest

from constitutional.base.records import Message, Prompt, Rollout
from constitutional.base.templates import load_prompts
from constitutional.constitution.constitution import Constitution, Principle
from constitutional.engines.base import Completion, Request
from constitutional.engines.scripted import ScriptedEngine
from constitutional.judging.gold import held_out_scores, kept_share, mean_scores, points, some_of_each_phase
from constitutional.judging.labeler import Labeler, LabelerSettings
from constitutional.sandbox.prompts import SANDBOX
from constitutional.training.reward_model import NORMALISATION, load_reward_model, raw_scores
from tests.tiny import tiny_model

BRIEF = Principle(id="brief", text="Be brief.", tags=("verbosity", "avoid"), weight=3.0)
MODEST = Principle(id="modest", text="Do not flatter.", tags=("flattery", "avoid"))
PLAIN = Principle(id="plain", text="Be plain.")
CAREFUL = Constitution(name="Careful", principles=(BRIEF, MODEST, PLAIN))
WITHOUT_TAGS = Constitution(name="Plain", principles=(PLAIN,))

BREAD = Prompt(
    messages=(Message("user", "How do I bake bread?"),),
    source=SANDBOX,
    info={"kind": "howto", "x": "bake bread", "held_out_topic": "no"},
)
ANSWER = "Mix flour, water, salt and yeast into dough. Let the loaf rise in a warm place."
FLATTERS = "You are a genius and a true star!"


def rollout(
    phase: int, reply: str = ANSWER, *, reward: float = 0.0, kl: float | None = 0.0, prompt: str = ""
) -> Rollout:
    return Rollout(
        phase=phase,
        prompt=prompt or BREAD.id,
        reply=reply,
        reward=reward,
        kl=kl,
        phase_kl=kl,
        length=9,
        truncated=False,
    )


@pytest.mark.parametrize(
    ("reply", "share"),
    [
        (ANSWER, 1.0),
        (f"{FLATTERS} {ANSWER}", 0.75),  # modest, which weighs 1 of 4, is violated; the untagged counts for nothing
        (f"{ANSWER} And then some nonsense.", 0.0),
        ("", 0.0),
    ],
)
def test_the_exact_score_is_the_share_of_the_tagged_principles_that_a_reply_keeps(reply: str, share: float) -> None:
    assert kept_share(CAREFUL, BREAD, reply) == share


def test_without_tags_there_is_no_exact_score() -> None:
    assert kept_share(WITHOUT_TAGS, BREAD, ANSWER) is None


class Rates(ScriptedEngine):
    """A labeler that gives ten points for a short reply, and of another can be read by one principle only."""

    def __init__(self) -> None:
        super().__init__(self._one, "rates")

    def _one(self, request: Request) -> Completion:
        reply = next(message.content for message in request.messages if message.role == "assistant")
        brief = "Be brief." in "".join(message.content for message in request.messages)
        if not request.choices:
            unreadable = reply == "unreadable" and not brief
            return Completion("No idea." if unreadable else "It is so. Score: 1", "stop")
        best = 10 if reply == "short" else 4 if brief else 1
        return Completion("", "choices", tuple(0.0 if score == best else -1e9 for score in range(1, 11)))


def said(text: str) -> tuple[Message, ...]:
    return (Message("user", "Why?"), Message("assistant", text))


def test_the_labelers_score_is_a_mean_over_principles_by_weight_or_missing() -> None:
    labeler = Labeler(Rates(), load_prompts(), LabelerSettings(), seed=0)
    pair = Constitution(name="Two", principles=(BRIEF, MODEST))
    # Of the unreadable one, the score by the principle that can be read is no score.
    found = list(mean_scores(pair, [said("short"), said("longer"), said("unreadable")], labeler))
    assert found == [10.0, pytest.approx(3.25), None]  # (3·4 + 1·1) / 4


def test_a_training_is_told_in_stretches_of_about_as_many_phases() -> None:
    rollouts = [
        rollout(phase, reward=phase, kl=float(phase), prompt=f"{phase} {n}") for phase in (1, 2, 3) for n in (0, 1)
    ]
    scores = [0.0, 1.0, 1.0, 1.0, None, 0.0]
    first, second = points("traits", rollouts, scores, seed=0, at_most=2)
    assert (first.first_phase, first.last_phase, first.n, first.gold) == (1, 1, 2, 0.5)
    assert (first.low, first.high) == (0.0, 1.0)
    assert (second.first_phase, second.last_phase, second.n) == (2, 3, 3)
    assert second.gold == pytest.approx(2 / 3)
    assert second.kl == pytest.approx(7 / 3)  # of the replies that were scored: 2, 2, 3
    assert second.sqrt_kl == pytest.approx((7 / 3) ** 0.5)
    assert second.proxy == pytest.approx(7 / 3)
    assert second.low < second.gold < second.high


def test_replies_to_one_prompt_say_nothing_of_others() -> None:
    rollouts = [rollout(1, prompt="a") for _ in range(10)]
    (point,) = points("traits", rollouts, [0.0, 1.0] * 5, seed=0)
    assert (point.gold, point.low, point.high) == (0.5, 0.0, 1.0)  # drawn one by one it would be about 0.2 to 0.8


def test_a_kl_that_chance_made_negative_has_a_root_of_0_and_an_unknown_one_none() -> None:
    negative, unknown = (
        next(points("traits", [rollout(1, kl=kl), rollout(1, kl=kl, prompt="b")], [0.0, 1.0], 0)) for kl in (-0.1, None)
    )
    assert (negative.kl, negative.sqrt_kl) == (-0.1, 0.0)
    assert (unknown.kl, unknown.sqrt_kl) == (None, None)


def test_where_only_some_replies_are_scored_every_phase_has_as_many() -> None:
    rollouts = [rollout(phase, f"Reply {n}.") for phase in range(1, 6) for n in range(4)]
    some = some_of_each_phase(rollouts, 12, seed=0)
    assert [each.phase for each in some] == [1, 1, 2, 2, 3, 3, 4, 4, 5, 5]  # 12 // 5
    few = some_of_each_phase(rollouts, 3, seed=0)
    assert [each.phase for each in few] == [1, 2, 4]  # phases 0 · 5/3, 1 · 5/3 and 2 · 5/3 of the five
    assert some_of_each_phase(rollouts, 0, seed=0) == []


def test_a_held_out_reward_model_of_a_run_is_normalised_and_any_other_taken_as_it_is(tmp_path: Path) -> None:
    model, tokenizer = load_reward_model(tiny_model(tmp_path), new_head=True, seed=3)
    for folder in (tmp_path / "other", tmp_path / "run" / "0"):
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    (tmp_path / "run" / NORMALISATION).write_text(json.dumps({"members": [{"mean": 2.0, "deviation": 0.5}]}))
    raw = raw_scores(model, tokenizer, [said("short"), said("longer")])
    assert held_out_scores(tmp_path / "other", [said("short"), said("longer")]) == pytest.approx(raw, abs=1e-6)
    assert held_out_scores(tmp_path / "run", [said("short")]) == [pytest.approx((raw[0] - 2) / 0.5, abs=1e-5)]
