import json
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest
from pydantic import ValidationError

from constitutional.base.errors import ConfigurationError, ModelError, RunError
from constitutional.base.files import digest_of
from constitutional.base.records import Message, Prompt, Rollout, SftExample
from constitutional.base.templates import load_prompts
from constitutional.constitution.constitution import Constitution, Principle
from constitutional.engines.base import Completion, Request
from constitutional.engines.chat import load_tokenizer
from constitutional.engines.scripted import ScriptedEngine
from constitutional.engines.settings import VllmSettings
from constitutional.judging.accuracy import PrincipleAccuracy
from constitutional.judging.labelling import LabelSettings
from constitutional.runs.compose import compose
from constitutional.runs.pipeline import stages_of
from constitutional.runs.runner import fingerprint_of
from constitutional.stages import online, ppo
from constitutional.stages.online import Inputs
from constitutional.stages.ppo import Settings, kept_rollouts, make_trainer
from constitutional.stages.reward import write_normalisation
from constitutional.stages.summaries import OnlineSummary
from constitutional.training.metrics import CUT_OFF, KL, LENGTH
from constitutional.training.ppo.rollout import TransformersSampler
from constitutional.training.reward_model import NORMALISATION, load_reward_model
from constitutional.training.rewards import LengthSettings, PrinciplesSettings, RewardModelSettings
from constitutional.training.rows import chat, token_ids
from constitutional.training.trl import LoraSettings
from tests.tiny import OneStage, tiny_model

T = TypeVar("T")

PROMPTS = [Prompt.of("Why" + "?" * number) for number in range(8)]
HELD_OUT = Prompt(messages=(Message("user", "And now?"),), split="held_out")
QUICK = Settings(
    episodes=32,
    batch_size=4,
    gradient_accumulation=1,
    mini_batches=2,
    epochs=2,
    max_tokens=6,
    learning_rate=1e-3,
    checkpoint_every=2,
    rollouts=3,
)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A random policy and a random reward model, with the moments that a run would have written beside it."""
    folder = tmp_path_factory.mktemp("models")
    policy = tiny_model(folder)
    member, tokenizer = load_reward_model(policy, new_head=True, seed=1)
    member.save_pretrained(folder / "reward" / "0")
    tokenizer.save_pretrained(folder / "reward" / "0")
    moments(folder / "reward", 0.1)
    return {"sft_model": policy, "reward_model": folder / "reward"}


def moments(folder: Path, deviation: float) -> None:
    (folder / NORMALISATION).write_text(json.dumps({"members": [{"mean": 0.0, "deviation": deviation}]}))


def inputs(settings: Settings) -> Inputs[Settings]:
    return Inputs.of(settings, LabelSettings())


def run(settings: Settings, context: OneStage) -> None:
    ppo.run(inputs(settings), context)


def work(folder: Path, models: dict[str, Path], kind: type[OneStage] = OneStage) -> OneStage:
    return kind(folder, models, {"prompts": [*PROMPTS, HELD_OUT]})


def test_a_run_leaves_a_policy_its_log_and_replies_of_every_phase(models: dict[str, Path], tmp_path: Path) -> None:
    from constitutional.engines.local import load_model

    stage = work(tmp_path, models)
    run(QUICK, stage)
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoints", "policy", "training_log.jsonl"}
    before, after = (load_model(each)[0].state_dict() for each in (models["sft_model"], tmp_path / "policy"))
    assert not before["model.layers.0.mlp.up_proj.weight"].equal(after["model.layers.0.mlp.up_proj.weight"])
    log = [json.loads(line) for line in (tmp_path / "training_log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log] == [1, 2, 3, 4]  # 32 episodes in phases of 4 · 1 · 2
    assert stage.said == OnlineSummary(
        prompts=8,
        replies=32,
        steps=4,
        dropped={"too_long": 0},
        last={name: log[-1][name] for name in ("reward", KL, LENGTH, CUT_OFF)},
    )

    rollouts: list[Rollout] = stage.rows["rollouts"]
    assert [rollout.phase for rollout in rollouts] == [1] * 3 + [2] * 3 + [3] * 3 + [4] * 3
    assert {rollout.prompt for rollout in rollouts} <= {each.id for each in PROMPTS}  # none of them held out
    assert [rollout.phase_kl for rollout in rollouts[::3]] == [line["objective/kl"] for line in log]
    first = rollouts[:3]
    assert [each.kl for each in first] == pytest.approx([0, 0, 0], abs=1e-5)  # the policy is still the SL model
    assert all(each.truncated == (each.length == 6) for each in first)


def test_the_reward_is_the_normalised_score_of_the_reply(models: dict[str, Path], tmp_path: Path) -> None:
    from constitutional.training.reward_model import raw_scores

    stage = work(tmp_path, models)
    run(QUICK.model_copy(update={"episodes": 8}), stage)
    by_id = {each.id: each.messages for each in PROMPTS}
    rollouts: list[Rollout] = stage.rows["rollouts"]
    conversations = [(*by_id[rollout.prompt], Message("assistant", rollout.reply)) for rollout in rollouts]
    raw = raw_scores(*load_reward_model(models["reward_model"] / "0"), conversations)
    assert [rollout.reward for rollout in rollouts] == pytest.approx([score / 0.1 for score in raw], abs=1e-4)


class Stopped(OneStage):
    """Ctrl-C in the fourth phase."""

    def progress(self, items: Iterable[T], total: int, label: str, unit: str = "rows") -> Iterator[T]:  # noqa: ARG002
        for number, item in enumerate(items):
            if number == 3:
                raise KeyboardInterrupt
            yield item


@pytest.mark.parametrize("lora", [None, LoraSettings(rank=4)])
def test_a_run_that_was_stopped_goes_on_to_the_same_files(
    models: dict[str, Path], tmp_path: Path, lora: LoraSettings | None
) -> None:
    settings = QUICK.model_copy(update={"lora": lora})
    unbroken, again = work(tmp_path / "unbroken", models), work(tmp_path / "stopped", models)
    run(settings, unbroken)
    with pytest.raises(KeyboardInterrupt):
        run(settings, work(tmp_path / "stopped", models, Stopped))
    assert (tmp_path / "stopped" / "checkpoints" / "checkpoint-2").exists()
    run(settings, again)
    assert digest_of(tmp_path / "stopped") == digest_of(tmp_path / "unbroken")
    assert again.rows["rollouts"] == unbroken.rows["rollouts"]
    assert again.said == unbroken.said


@pytest.mark.parametrize("failing", [None, 1])
def test_vllm_is_closed_whatever_the_training_ends_in(
    models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int | None
) -> None:
    closed: list[int] = []

    class InPlaceOfVllm(TransformersSampler):
        def __init__(self, folder: Path, _settings: object) -> None:
            tokenizer = load_tokenizer(folder)
            super().__init__(frozenset([tokenizer.eos_token_id]), tokenizer.pad_token_id, batch_size=8)

        def sync(self, policy: Any, phase: int) -> None:  # noqa: ANN401 - as the sampler
            super().sync(policy, phase)
            if phase == failing:
                raise ModelError("out of memory")

        def close(self) -> None:
            closed.append(self.version)

    monkeypatch.setattr("constitutional.training.ppo.vllm_sampler.VllmSampler", InPlaceOfVllm)
    settings = QUICK.model_copy(update={"sampler": "vllm"})
    if failing is None:
        run(settings, work(tmp_path, models))
    else:
        with pytest.raises(ModelError, match="out of memory"):
            run(settings, work(tmp_path, models))
    assert closed == [3 if failing is None else failing]


def test_with_adapters_it_is_noted_how_much_of_the_reward_model_the_critic_starts_with(
    models: dict[str, Path], tmp_path: Path
) -> None:
    stage = work(tmp_path, models)
    run(QUICK.model_copy(update={"episodes": 8, "lora": LoraSettings(rank=4)}), stage)
    # The reward model is the policy with a head: there is nothing that the adapter could lack.
    assert stage.summarised(OnlineSummary).critic_share == 1


def test_with_ptx_coef_the_examples_of_sft_are_learned_as_well(models: dict[str, Path], tmp_path: Path) -> None:
    import torch

    from constitutional.engines.local import load_model

    learned = [
        SftExample(prompt=PROMPTS[0], reply="Quite so.", kind="revision"),
        SftExample(prompt=PROMPTS[1], reply="So" + " it is" * 40, kind="helpful"),  # too long
    ]
    # Weights hardly move, so that the loss that is logged is that of the model as it was.
    still = {"episodes": 8, "learning_rate": 1e-9, "max_prompt_tokens": 40, "ptx_coef": 0.5}
    stage = OneStage(tmp_path, models, {"prompts": [*PROMPTS, HELD_OUT], "sft_examples": learned})
    run(QUICK.model_copy(update=still), stage)
    summary = stage.summarised(OnlineSummary)
    assert summary.examples == 1
    assert (summary.dropped, summary.examples_left_out) == ({"too_long": 0}, 1)
    (line,) = (json.loads(each) for each in (tmp_path / "training_log.jsonl").read_text().splitlines())
    model, tokenizer = load_model(models["sft_model"], dtype="float32")
    asked = token_ids(tokenizer, chat(PROMPTS[0].messages), ask=True)
    whole = token_ids(tokenizer, [*chat(PROMPTS[0].messages), {"role": "assistant", "content": "Quite so."}])
    whole = whole[: len(whole) - whole[::-1].index(tokenizer.eos_token_id)]  # up to and with the end token
    with torch.no_grad():
        logits = model(torch.tensor([whole])).logits[0, len(asked) - 1 : -1]
    by_hand = torch.nn.functional.cross_entropy(logits, torch.tensor(whole[len(asked) :]))
    assert line["loss/ptx_avg"] == pytest.approx(float(by_hand), abs=1e-4)


def test_with_ptx_coef_and_no_example_the_policy_is_trained_on_its_replies_alone(
    models: dict[str, Path], tmp_path: Path
) -> None:
    settings = QUICK.model_copy(update={"episodes": 8})
    plain, ptx = work(tmp_path / "plain", models), work(tmp_path / "ptx", models)
    ptx.rows["sft_examples"] = []
    run(settings, plain)
    run(settings.model_copy(update={"ptx_coef": 0.5}), ptx)
    assert digest_of(ptx.output("policy")) == digest_of(plain.output("policy"))
    assert ptx.said == plain.said
    assert ptx.summarised(OnlineSummary).examples == 0
    (warning,) = ptx.warnings
    assert "no supervised example" in warning
    assert plain.warnings == []


def test_the_sft_examples_are_needed_only_where_they_are_learned() -> None:
    def stage(*overrides: str) -> tuple[tuple[str, ...], str]:
        (found,) = (each for each in stages_of(compose(["algorithm=ppo", *overrides])) if each.name == "ppo")
        return found.needs, fingerprint_of(found, 0, {})

    alone, mixed = stage(), stage("algorithm.ptx_coef=0.5")
    assert alone[0] == ("prompts", "sft_model", "reward_model")
    assert mixed[0] == (*alone[0], "sft_examples")
    assert stage("sft.rounds=all") == alone
    assert stage("algorithm.ptx_coef=0.5", "sft.rounds=all") == mixed  # other examples have another digest


def test_without_a_reward_model_the_policy_is_the_sft_model(models: dict[str, Path], tmp_path: Path) -> None:
    write_normalisation(tmp_path / "reward", [], 0)
    stage = work(tmp_path / "ppo", {**models, "reward_model": tmp_path / "reward"})
    run(QUICK, stage)
    assert digest_of(stage.output("policy")) == digest_of(models["sft_model"])
    assert [path.name for path in stage.folder.iterdir()] == ["policy"]
    assert stage.rows["rollouts"] == []
    assert stage.said == OnlineSummary(prompts=0, replies=0, steps=0, dropped={})
    (warning,) = stage.warnings
    assert "the policy is the SFT model" in warning


def test_settings_reach_the_trainer_by_what_they_are_called_there(models: dict[str, Path], tmp_path: Path) -> None:
    settings = Settings(
        episodes=100,
        batch_size=3,
        gradient_accumulation=2,
        mini_batches=4,
        epochs=5,
        critic_warmup=4,
        max_tokens=9,
        max_prompt_tokens=77,
        temperature=0.5,
        lam=0.8,
        kl_coef=0.25,
        kl_target=6.0,
        rewards=(RewardModelSettings(ensemble_k=1.5, weight=2.0),),
        missing_eos_penalty=0.5,
        checkpoint_every=3,
    )
    trainer = make_trainer(inputs(settings), PROMPTS, work(tmp_path, models), tmp_path / "checkpoints")
    args = trainer.args
    assert (trainer.batch_size, trainer.phases) == (24, 5)  # 100 episodes in phases of 3·2·4
    assert (args.per_device_train_batch_size, args.gradient_accumulation_steps, args.num_mini_batches) == (3, 2, 4)
    assert (args.num_ppo_epochs, args.critic_warmup_steps, args.response_length) == (5, 4, 9)
    assert (args.max_prompt_length, args.temperature, args.lam, args.kl_coef, args.kl_target) == (77, 0.5, 0.8, 0.25, 6)
    assert (args.ensemble_k, args.missing_eos_penalty, args.save_steps) == (1.5, 0.5, 3)
    assert args.reward_weights == [2.0]
    assert args.reward_clip is None
    assert (args.sample_size, args.learning_rate) == (128, 3e-4)


def test_a_critic_that_warms_up_to_the_end_is_refused(models: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"4 of 4 phases train the critic alone.*critic_warmup"):
        run(QUICK.model_copy(update={"critic_warmup": 4}), work(tmp_path, models))
    with pytest.raises(ValidationError, match=r"critic_warmup is 6, .* 6 phases"):  # 768 replies, 128 in a phase
        Settings(critic_warmup=6)
    assert Settings(critic_warmup=5).critic_warmup == 5


def test_replies_with_any_character_are_read_back(tmp_path: Path) -> None:
    reply = "One\u2028two\x85three\nfour."
    lines: dict[str, list[dict[str, Any]]] = {
        "training_log.jsonl": [{"step": 1, "objective/kl": 2.5}],
        "samples.jsonl": [
            {
                "step": 1,
                "prompt": chat(PROMPTS[1].messages),
                "reply": reply,
                "reward": 1.0,
                "score": 0.0,
                "kl": -0.5,
                "length": 5,
                "truncated": True,
            }
        ],
    }
    for name, its in lines.items():
        (tmp_path / name).write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in its))
    assert kept_rollouts(tmp_path, PROMPTS) == [
        Rollout(
            phase=1,
            prompt=PROMPTS[1].id,
            reply=reply,
            reward=1.0,
            kl=-0.5,
            phase_kl=2.5,
            length=5,
            truncated=True,
        )
    ]


def test_without_prompts_to_train_on_or_a_reward_that_varies_it_says_so(
    models: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(RunError, match="No prompt is left to train on"):
        run(QUICK, OneStage(tmp_path, models, {"prompts": [HELD_OUT]}))
    flat = tmp_path / "reward"
    flat.mkdir()
    moments(flat, 0.0)
    with pytest.raises(ModelError, match=r"reward/0: gave every reference sample the same score"):
        run(QUICK, work(tmp_path, {**models, "reward_model": flat}))


class Judge(ScriptedEngine):
    """Scores a reply by the number of its words, and notes the texts that it was asked about."""

    def __init__(self, *, elsewhere: bool) -> None:
        self.elsewhere = elsewhere
        super().__init__(self._score)

    def _score(self, request: Request) -> Completion | str:
        if not request.choices:
            return "It asks for something. Score: 1"
        talk = " ".join(message.content for message in request.messages)
        likely = (len(talk) + 4 * ("Be calm." in talk)) % 10
        return Completion("", "choices", tuple(-0.1 if number == likely else -3.0 for number in range(10)))


DIRECT = {
    "rewards": (PrinciplesSettings(weight=2), LengthSettings(limit=1, weight=-0.5)),
    "sampling_batch_size": 2,
}


def judged(folder: Path, models: dict[str, Path], judge: Judge, **changes: Any) -> OneStage:  # noqa: ANN401
    context = work(folder, {"sft_model": models["sft_model"]})
    context.engines["labeler"] = judge
    context.prompts = load_prompts()
    principles = (Principle(id="calm", text="Be calm.", weight=3), Principle(id="brief", text="Be brief."))
    context.constitution = Constitution(name="two", principles=principles)
    context.rows["labeler_accuracy"] = [
        PrincipleAccuracy(principle=row.id, n=4, right=4, unreadable=0, conflicts=0, mean_p_correct=0.9, trusted=True)
        for row in principles
    ]
    run(QUICK.model_copy(update=DIRECT | changes), context)
    return context


def test_the_constitution_rewards_without_a_reward_model_and_is_logged_by_principle(
    models: dict[str, Path], tmp_path: Path
) -> None:
    context = judged(tmp_path, models, Judge(elsewhere=False))
    first = json.loads(context.output("training_log.jsonl").read_text().splitlines()[0])
    calm, brief, words = (
        first[f"rewards/{name}/mean"] for name in ("constitution/calm", "constitution/brief", "length")
    )
    assert first["reward"] == pytest.approx(2 * (3 * calm + brief) / 4 - 0.5 * words, abs=1e-5)
    assert calm != brief
    assert "rewards/reward_model/mean" not in first
    assert [rollout.phase for rollout in context.rows["rollouts"]] == [phase for phase in range(1, 5) for _ in range(3)]


def test_a_judge_that_is_asked_while_replies_are_drawn_changes_no_result(
    models: dict[str, Path], tmp_path: Path
) -> None:
    beside = judged(tmp_path / "beside", models, Judge(elsewhere=True))
    after = judged(tmp_path / "after", models, Judge(elsewhere=False))
    for name in ("policy", "training_log.jsonl"):
        assert digest_of(beside.output(name)) == digest_of(after.output(name))
    assert beside.rows["rollouts"] == after.rows["rollouts"]


def test_the_first_replies_are_judged_before_the_last_are_drawn(
    models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge, drawn = Judge(elsewhere=True), list[int]()
    asked = threading.Event()
    score, draw = judge.rule, TransformersSampler._draw

    def noted(request: Request) -> Completion | str:
        asked.set()
        return score(request)

    def waits(sampler: TransformersSampler, prompts: Any, *others: Any) -> Any:  # noqa: ANN401
        if len(drawn) % 4:  # not the first of a phase's four batches
            assert asked.wait(30)
        drawn.append(len(prompts))
        return draw(sampler, prompts, *others)

    judge.rule = noted
    monkeypatch.setattr(TransformersSampler, "_draw", waits)
    judged(tmp_path, models, judge, episodes=8)
    assert drawn == [2] * 4


def test_vllm_as_labeler_has_to_leave_room_for_the_training_on_its_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    direct = Settings(rewards=(PrinciplesSettings(),))
    with pytest.raises(ConfigurationError, match=r"labeler\.memory=0\.9 .* type labeler\.memory=0\.4"):
        online.check(direct, VllmSettings(memory=0.9))
    with pytest.raises(ConfigurationError, match=r"sampler_memory=0\.5"):
        online.check(direct.model_copy(update={"sampler": "vllm", "sampler_memory": 0.5}), VllmSettings(memory=0.4))
    online.check(direct, VllmSettings(memory=0.4))
    online.check(QUICK, VllmSettings(memory=0.9))  # nothing asks the labeler while the policy is trained
