import math
import threading
from typing import Any

import pytest

from constitutional.base.errors import RunError
from constitutional.base.records import Message
from constitutional.base.templates import load_prompts
from constitutional.constitution.constitution import Principle
from constitutional.engines.base import Completion, Request, Ticket
from constitutional.engines.scripted import ScriptedEngine, ScriptedSession
from constitutional.engines.stories import side_by_side
from constitutional.judging.as_reward import by_principle, scaled
from constitutional.judging.labeler import Labeler, LabelerSettings
from constitutional.training.awaiting import begin
from constitutional.training.rewards import PrinciplesSettings, Reward


def scores(reward: Reward, *texts: str) -> list[float | None]:
    prompts = [[{"role": "user", "content": "May I?"}]] * len(texts)
    replies = [[{"role": "assistant", "content": text}] for text in texts]
    function: Any = reward.function  # none of these is async
    return list(function(prompts=prompts, completions=replies))


def graded(request: Request) -> Completion | str:
    """Scores 10 for sure where the reply is calm; by the other principle 1 or 2, even; a loud reply is unreadable."""
    text = " ".join(message.content for message in request.messages)
    if not request.choices:
        return "I do not know." if "LOUD" in text else "It asks for something. Score: 5"
    share = [0.0] * 9 + [1.0] if "Be calm." in text else [0.5, 0.5] + [0.0] * 8
    return Completion("", "choices", tuple(math.log(each) if each else -math.inf for each in share))


def test_each_principle_is_a_reward_of_its_own_by_its_share_of_the_weights() -> None:
    labeler = Labeler(ScriptedEngine(graded), load_prompts(), LabelerSettings(), 0)
    principles = [Principle(id="calm", text="Be calm."), Principle(id="brief", text="Be brief.", weight=3)]
    calm, brief = by_principle(labeler, principles, PrinciplesSettings(weight=2), waits=False)
    assert (calm.name, calm.weight) == ("constitution/calm", 0.5)  # 2 · 1 / 4
    assert (brief.name, brief.weight) == ("constitution/brief", 1.5)
    assert scores(calm, "Yes.", "LOUD") == [1.0, None]
    assert scores(brief, "Yes.") == [pytest.approx((1.5 - 5.5) / 4.5)]  # 0.5 · 1 + 0.5 · 2, of 1 to 10


def test_scores_are_scaled_from_minus_one_to_one() -> None:
    assert [scaled(each) for each in (1, 5.5, 10)] == [-1, 0, 1]


def test_all_replies_are_scored_by_all_principles_at_once_and_as_alone() -> None:
    class Watched(ScriptedEngine):
        waiting = 0

        def session(self) -> ScriptedSession:
            engine = self

            class Session(ScriptedSession):
                def collect(self, timeout_s: float | None = None) -> list[tuple[Ticket, Completion]]:
                    engine.waiting = max(engine.waiting, len(self._waiting))
                    return super().collect(timeout_s)

            return Session(self)

    engine = Watched(graded)
    labeler = Labeler(engine, load_prompts(), LabelerSettings(), 0)
    principles = [Principle(id=name, text=f"Be {name}.", weight=2) for name in ("calm", "brief", "kind")]
    rewards = by_principle(labeler, principles, PrinciplesSettings(), waits=False)
    texts = ["Yes.", "LOUD", "No.", "Well."]
    together = [scores(reward, *texts) for reward in rewards]
    assert engine.waiting == len(principles) * len(texts)
    asked = engine.count
    # Once more, one by one, which asks as much again: the same numbers.
    for principle, numbers in zip(principles, together, strict=True):
        talks = [(Message("user", "May I?"), Message("assistant", text)) for text in texts]
        alone = [next(side_by_side([labeler.score(talk, principle)])) for talk in talks]
        assert numbers == [None if score is None else scaled(score) for score in alone]
    assert engine.count == 2 * asked
    # Other replies are not taken for those of before.
    assert scores(rewards[0], "Yes.", "LOUD") == together[0][:2]
    assert scores(rewards[2], "LOUD", "Yes.") == together[2][1::-1]


def test_a_labeler_elsewhere_is_asked_beside_the_caller_and_beside_other_functions() -> None:
    other_ran, computed = threading.Event(), threading.Event()
    most_open = 0

    class Slow(ScriptedEngine):
        """Answers only after the caller has computed and another async function has run."""

        def session(self) -> ScriptedSession:
            class Session(ScriptedSession):
                def collect(self, timeout_s: float | None = None) -> list[tuple[Ticket, Completion]]:
                    nonlocal most_open
                    most_open = max(most_open, len(self._waiting))
                    assert other_ran.wait(30)
                    assert computed.wait(30)
                    return super().collect(timeout_s)

            return Session(self)

    async def other(**_: object) -> list[float]:
        other_ran.set()
        return [1.0]

    principles = [Principle(id=name, text=f"Be {name}.", weight=2) for name in ("calm", "brief")]
    judges = [
        Labeler(engine, load_prompts(), LabelerSettings(), 0) for engine in (Slow(graded), ScriptedEngine(graded))
    ]
    waiting, plain = (
        [reward.function for reward in by_principle(judge, principles, PrinciplesSettings(), waits=waits)]
        for judge, waits in zip(judges, (True, False), strict=True)
    )
    replies = [[{"role": "assistant", "content": text}] for text in ("Yes.", "LOUD", "No.")]
    columns = {"prompts": [[{"role": "user", "content": "May I?"}]] * 3, "completions": replies}
    first, second = (
        begin([*waiting, other], columns),
        begin(waiting, {name: rows[:2] for name, rows in columns.items()}),
    )
    computed.set()
    *together, _ = first()
    assert together == [function(**columns) for function in plain]
    assert second() == [numbers[:2] for numbers in together]
    assert most_open == 2 * 3


def test_what_a_labeler_elsewhere_raises_is_raised_to_the_caller() -> None:
    def fails(_: Request) -> str:
        raise RunError("the server is gone")

    judge = Labeler(ScriptedEngine(fails), load_prompts(), LabelerSettings(), 0)
    (reward,) = by_principle(judge, [Principle(id="calm", text="Be calm.")], PrinciplesSettings(), waits=True)
    results = begin([reward.function], {"prompts": ["May I?"], "completions": ["Yes."]})
    with pytest.raises(RunError, match="the server is gone"):
        results()
