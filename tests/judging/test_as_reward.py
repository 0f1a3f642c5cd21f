import math
import threading
from pathlib import Path

import pytest

from constitutional.base.errors import ModelError
from constitutional.base.records import Message
from constitutional.base.templates import load_prompts
from constitutional.constitution.constitution import Constitution, Principle
from constitutional.engines.base import Completion, Request, Ticket
from constitutional.engines.journal import Journal, JournalEngine
from constitutional.engines.scripted import ScriptedEngine, ScriptedSession
from constitutional.engines.stories import side_by_side
from constitutional.judging.as_reward import by_principle, scaled
from constitutional.judging.labeler import Labeler, LabelerSettings
from constitutional.training.rewards import PrinciplesSettings, Reward


def scores(reward: Reward, *texts: str) -> list[float | None]:
    prompts = [[{"role": "user", "content": "May I?"}]] * len(texts)
    replies = [[{"role": "assistant", "content": text}] for text in texts]
    return list(reward.function(prompts=prompts, completions=replies))


def of(*principles: Principle) -> Constitution:
    return Constitution(name="ours", principles=principles)


def graded(request: Request) -> Completion | str:
    """Scores 10 for sure where the reply is calm; by the other principle 1 or 2, even; a loud reply is unreadable."""
    text = " ".join(message.content for message in request.messages)
    if not request.choices:
        return "I do not know." if "LOUD" in text else "It asks for something. Score: 5"
    share = [0.0] * 9 + [1.0] if "Be calm." in text else [0.5, 0.5] + [0.0] * 8
    return Completion("", "choices", tuple(math.log(each) if each else -math.inf for each in share))


def test_each_principle_is_a_reward_of_its_own_by_its_share_of_the_weights() -> None:
    labeler = Labeler(ScriptedEngine(graded), load_prompts(), LabelerSettings(), 0)
    ours = of(Principle(id="calm", text="Be calm."), Principle(id="brief", text="Be brief.", weight=3))
    calm, brief = by_principle(labeler, ours, PrinciplesSettings(weight=2), several=True)
    assert (calm.name, calm.weight) == ("constitution/calm", 0.5)  # 2 · 1 / 4
    assert (brief.name, brief.weight) == ("constitution/brief", 1.5)
    assert scores(calm, "Yes.", "LOUD") == [1.0, None]
    assert scores(brief, "Yes.") == [pytest.approx((1.5 - 5.5) / 4.5)]  # 0.5 · 1 + 0.5 · 2, of 1 to 10


def test_replies_to_one_prompt_are_rewarded_by_the_principle_that_overrides_where_two_disagree() -> None:
    marks = {"calm": {"A": 9, "B": 3}, "brief": {"A": 2, "B": 8}}

    def grade(request: Request) -> Completion | str:
        text = " ".join(message.content for message in request.messages)
        if not request.choices:
            return "Score: 5"
        mark = marks["calm" if "Be calm." in text else "brief"]["A" if "Reply A" in text else "B"]
        return Completion("", "choices", tuple(0.0 if score == mark else -math.inf for score in range(1, 11)))

    ours = of(Principle(id="calm", text="Be calm.", overrides=("brief",)), Principle(id="brief", text="Be brief."))
    labeler = Labeler(ScriptedEngine(grade), load_prompts(), LabelerSettings(), 0)
    calm, brief = by_principle(labeler, ours, PrinciplesSettings(), several=True)
    assert scores(calm, "Reply A", "Reply B") == [scaled(9), scaled(3)]
    assert scores(brief, "Reply A", "Reply B") == [scaled(5), scaled(5)]  # the mean of 2 and 8
    # Where no two replies are drawn to be held against each other, each principle rewards for itself.
    _, alone = by_principle(labeler, ours, PrinciplesSettings(), several=False)
    assert scores(alone, "Reply A", "Reply B") == [scaled(2), scaled(8)]
    # Replies to different prompts are not held against each other.
    prompts = [[{"role": "user", "content": text}] for text in ("May I?", "Must I?")]
    replies = [[{"role": "assistant", "content": text}] for text in ("Reply A", "Reply B")]
    assert list(brief.function(prompts=prompts, completions=replies)) == [scaled(2), scaled(8)]


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
    rewards = by_principle(labeler, of(*principles), PrinciplesSettings(), several=True)
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


def asked_through(engine: ScriptedEngine) -> list[Reward]:
    ours = of(*(Principle(id=name, text=f"Be {name}.") for name in ("calm", "brief")))
    return by_principle(Labeler(engine, load_prompts(), LabelerSettings(), 0), ours, PrinciplesSettings(), several=True)


def prepare(reward: Reward, *texts: str) -> None:
    for text in texts:
        prompts, replies = [[{"role": "user", "content": "May I?"}]], [[{"role": "assistant", "content": text}]]
        reward.function.prepare(prompts, replies)  # type: ignore[attr-defined]


def test_a_labeler_elsewhere_is_asked_about_replies_while_others_are_drawn() -> None:
    both = threading.Event()

    class Server(ScriptedEngine):
        elsewhere = True

    def answer(request: Request) -> Completion | str:
        if any(f"{word}." in message.content for message in request.messages for word in ("No", "Well")):
            both.set()
        return graded(request)

    engine, plain = Server(answer), ScriptedEngine(graded)
    rewards, without = asked_through(engine), asked_through(plain)
    for texts in (("Yes.", "LOUD", "No.", "Yes."), ("No.", "Well.")):  # two phases
        both.clear()
        for reward in rewards:
            prepare(reward, *texts[:3])
        assert both.wait(30)  # nobody has called for a number yet
        assert [scores(reward, *texts) for reward in rewards] == [scores(reward, *texts) for reward in without]
    assert engine.count == plain.count


def test_a_labeler_in_this_process_is_asked_when_its_numbers_are_called_for() -> None:
    engine = ScriptedEngine(graded)
    rewards = asked_through(engine)
    prepare(rewards[0], "Yes.")
    assert not engine.count
    assert scores(rewards[0], "Yes.") == [1.0]


def test_an_engine_that_cannot_go_on_is_told_where_the_numbers_are_called_for() -> None:
    class Broken(ScriptedEngine):
        elsewhere = True

    def refuse(_request: Request) -> str:
        raise ModelError("the server is down")

    (calm, _) = asked_through(Broken(refuse))
    prepare(calm, "Yes.")
    with pytest.raises(ModelError, match="the server is down"):
        scores(calm, "Yes.")


def test_a_training_that_ends_early_stops_the_labelers_thread_and_keeps_its_answers(tmp_path: Path) -> None:
    class Server(ScriptedEngine):
        elsewhere = True

    asked, goes_on = threading.Event(), threading.Event()

    def slow(request: Request) -> Completion | str:
        asked.set()
        goes_on.wait(5)
        return graded(request)

    with Journal(tmp_path / "journal.sqlite") as journal:
        engine = JournalEngine(Server(slow), journal)
        labeler = Labeler(engine, load_prompts(), LabelerSettings(), 0)
        (calm,) = by_principle(labeler, of(Principle(id="calm", text="Be calm.")), PrinciplesSettings(), several=True)
        prepare(calm, *[f"Yes {number}." for number in range(20)])
        assert asked.wait(30)
        goes_on.set()
        calm.function.stop()  # type: ignore[attr-defined]
        counted = engine.asked
        kept = journal._connection.execute("SELECT count(*) FROM completions").fetchone()[0]
    assert 0 < counted == kept
