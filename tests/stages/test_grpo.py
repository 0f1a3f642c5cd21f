import json
import math
import re
import shutil
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
from pydantic import ValidationError

from constitutional.base.errors import ConfigurationError, InputError, RunError
from constitutional.base.files import digest_of
from constitutional.base.records import Message, Prompt, Rollout
from constitutional.base.templates import load_prompts
from constitutional.constitution.constitution import Constitution, Principle
from constitutional.engines.base import Completion, Request
from constitutional.engines.scripted import ScriptedEngine
from constitutional.judging.accuracy import PrincipleAccuracy
from constitutional.judging.labelling import LabelSettings
from constitutional.runs.compose import compose, freeze
from constitutional.runs.pipeline import stages_of
from constitutional.runs.runner import fingerprint_of, ready
from constitutional.stages import grpo, online
from constitutional.stages.grpo import GrpoSettings, RlooSettings, run
from constitutional.stages.online import Inputs
from constitutional.stages.reward import write_normalisation
from constitutional.stages.summaries import OnlineSummary
from constitutional.training.metrics import CUT_OFF, KL, LENGTH
from constitutional.training.reward_model import NORMALISATION, load_reward_model, score
from constitutional.training.rewards import (
    LengthSettings,
    PrinciplesSettings,
    PythonSettings,
    QuestionsSettings,
    Reward,
    RewardModelSettings,
)
from constitutional.training.trl import LoraSettings, load_policy
from tests.tiny import OneStage, tiny_model, tiny_tokenizer

Settings = GrpoSettings | RlooSettings

QUICK: dict[str, Any] = {
    "rewards": (LengthSettings(limit=0, weight=-1),),
    "num_generations": 4,
    "batch_size": 16,
    "gradient_accumulation": 1,
    "epochs": 2,
    "max_tokens": 12,
    "missing_eos_penalty": 0.0,
    "learning_rate": 0.01,
    "log_every": 1,
    "checkpoint_every": 2,
    "rollouts": 4,
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


def prompts(count: int) -> list[Prompt]:
    return [Prompt(messages=(Message("user", f"Question {number}?"),)) for number in range(count)]


def stage(folder: Path, models: Path, count: int = 8) -> OneStage:
    held_out = Prompt(messages=(Message("user", "Held out?"),), split="held_out")
    return OneStage(folder, {"sft_model": tiny_model(models)}, {"prompts": [*prompts(count), held_out]})


def inputs(settings: Settings) -> Inputs[Any]:
    return Inputs.of(settings, LabelSettings())


def log_of(context: OneStage) -> list[dict[str, Any]]:
    return [json.loads(line) for line in context.output("training_log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("kind", [GrpoSettings, RlooSettings])
def test_replies_become_what_is_rewarded(models: Path, tmp_path: Path, kind: type[Settings]) -> None:
    context = stage(tmp_path, models)
    # Of four tokens: a random model hardly ever ends a reply, so words are few or many by the tokens it draws.
    short = {"batch_size": 64, "max_tokens": 4, "learning_rate": 0.2, "schedule": "constant_with_warmup"}
    run(inputs(kind(**{**QUICK, **short, "epochs": 24.0, "checkpoint_every": 100})), context)
    log = log_of(context)
    assert [line["step"] for line in log] == list(range(1, 13))  # 8 prompts · 24 epochs / 16 prompts a step
    words = [line["rewards/length/mean"] for line in log]
    assert sum(words[-3:]) < 0.75 * sum(words[:3])
    assert log[0]["reward"] == pytest.approx(-log[0]["rewards/length/mean"])
    assert log[0]["objective/kl"] == pytest.approx(0, abs=1e-4)  # the policy is the reference still
    assert log[-1]["objective/kl"] > 1
    assert all(0 <= line[CUT_OFF] <= 1 and line["entropy"] > 0 and 1 <= line[LENGTH] <= 4 for line in log)
    assert "step_time" not in log[0]
    summary = context.summarised(OnlineSummary)
    assert (summary.prompts, summary.replies, summary.steps) == (8, 12 * 64, 12)
    assert summary.dropped == {"too_long": 0}
    assert summary.last == {name: log[-1][name] for name in ("reward", KL, LENGTH, CUT_OFF)}
    policy = json.loads((context.output("policy") / "config.json").read_text())
    assert policy["architectures"] == ["LlamaForCausalLM"]


def test_every_source_and_principle_is_logged_apart_and_replies_are_kept(models: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "def given(prompts, completions, completion_ids, prompt_id, **_):\n"
        "    assert len(prompts) == len(completions) == len(completion_ids) == len(prompt_id)\n"
        "    return [None if number % 2 else 4.0 for number in range(len(prompts))]\n"
    )

    def labeler(request: Request) -> Completion | str:
        if not request.choices:
            return "It asks for something. Score: 1"
        calm = any("Be calm." in message.content for message in request.messages)
        return Completion("", "choices", tuple(0.0 if n == (9 if calm else 0) else -99.0 for n in range(10)))

    context = stage(tmp_path, models)
    context.engines["labeler"] = ScriptedEngine(labeler)
    context.prompts = load_prompts()
    settings = GrpoSettings(
        **{
            **QUICK,
            "rewards": (
                PrinciplesSettings(weight=2),
                QuestionsSettings(weight=-1),
                PythonSettings(function=f"{tmp_path / 'mine.py'}:given", weight=0.5),
            ),
            "epochs": 1.0,
            "missing_eos_penalty": 3.0,
            "multi_objective_aggregation": "sum_then_normalize",  # each of them gives all replies the same
        }
    )
    calm, brief = Principle(id="calm", text="Be calm.", weight=3), Principle(id="brief", text="Be brief.")
    misjudged = Principle(id="odd", text="Be odd.", weight=9)
    context.constitution = Constitution(name="three", principles=(calm, brief, misjudged))
    context.rows["labeler_accuracy"] = [
        PrincipleAccuracy(
            principle=name, n=4, right=3, unreadable=0, conflicts=0, mean_p_correct=0.7, trusted=name != "odd"
        )
        for name in ("calm", "brief", "odd")
    ]
    run(inputs(settings), context)
    first = log_of(context)[0]
    assert first["rewards/constitution/calm/mean"] == 1.0
    assert first["rewards/constitution/brief/mean"] == -1.0
    assert "rewards/constitution/odd/mean" not in first  # the labeler is not trusted with it
    assert first["rewards/function/given/mean"] == 4.0  # of those that have a number
    # 2 · (3 · 1 − 1 · 1) / 4 of the constitution; half of the replies have 0.5 · 4 of the function.
    # TRL's reward holds the penalty for replies that were cut off, which is a reward function too.
    assert first["rewards/cut_off/mean"] == first[CUT_OFF]
    rewarded = 1.0 + 1.0 - first["rewards/questions/mean"] - 3 * first[CUT_OFF]
    assert first["reward"] == pytest.approx(rewarded, abs=1e-5)

    rollouts: list[Rollout] = context.rows["rollouts"]
    assert [rollout.phase for rollout in rollouts] == [1] * 4 + [2] * 4
    ids = {each.id for each in prompts(8)}
    assert {rollout.prompt for rollout in rollouts} == ids  # one reply to each of a step's four prompts, two steps
    for rollout in rollouts:
        # The first reply to each prompt; of even number, so the function has its 4 for it.
        assert rollout.reward == pytest.approx(1.0 + 2.0 - len(re.findall(r"\?+", rollout.reply)))
        assert rollout.kl is None
        assert rollout.phase_kl == log_of(context)[rollout.phase - 1]["objective/kl"]
        assert 1 <= rollout.length <= 12
        assert rollout.length == 12 or not rollout.truncated


def test_the_runs_reward_models_score_as_they_do_elsewhere(models: Path, tmp_path: Path) -> None:
    folder, members = tmp_path / "reward", [{"mean": 0.5, "deviation": 0.1}, {"mean": -1.0, "deviation": 2.0}]
    for number in range(len(members)):
        model, tokenizer = load_reward_model(tiny_model(models), new_head=True, seed=number)
        model.save_pretrained(folder / str(number))
        tokenizer.save_pretrained(folder / str(number))
    (folder / NORMALISATION).write_text(json.dumps({"members": members}))
    context = stage(tmp_path / "run", models)
    context.models["reward_model"] = folder
    chosen = (RewardModelSettings(weight=2.0, ensemble_k=0.5),)
    run(inputs(RlooSettings(**{**QUICK, "rewards": chosen, "epochs": 0.5})), context)
    asked = {each.id: each for each in prompts(8)}
    rollouts: list[Rollout] = context.rows["rollouts"]
    replies = [(*asked[rollout.prompt].messages, Message("assistant", rollout.reply)) for rollout in rollouts]
    known = [2 * (each.mean - 0.5 * each.deviation) for each in score(folder, replies)]
    assert [rollout.reward for rollout in rollouts] == pytest.approx(known, abs=1e-4)
    assert len(rollouts) == 4


@pytest.mark.parametrize("kind", [GrpoSettings, RlooSettings])
def test_without_a_reward_model_the_policy_is_the_sft_model(models: Path, tmp_path: Path, kind: type[Settings]) -> None:
    write_normalisation(tmp_path / "reward", [], 0)
    context = stage(tmp_path / "run", models)
    context.models["reward_model"] = tmp_path / "reward"
    run(inputs(kind(**{**QUICK, "rewards": (LengthSettings(), RewardModelSettings())})), context)
    assert digest_of(context.output("policy")) == digest_of(tiny_model(models))
    assert [path.name for path in context.folder.iterdir()] == ["policy"]
    assert context.rows["rollouts"] == []
    assert context.said == OnlineSummary(prompts=0, replies=0, steps=0, dropped={})
    (warning,) = context.warnings
    assert "the policy is the SFT model" in warning


def scored(models: Path, folder: Path, settings: Settings, numbers: list[list[float]]) -> tuple[list[float], Any]:
    """The advantages of one step of two prompts by two rewards of weights 1 and 2, and what the trainer logs of it."""
    rewards = [Reward(f"r{index}", index + 1.0, lambda row=row, **_: row) for index, row in enumerate(numbers)]
    model, tokenizer = load_policy(tiny_model(models), settings)
    recorder = grpo.Recorder(rewards, [], folder, 1, settings.aggregation)
    rows = [{"prompt": [{"role": "user", "content": text}], "prompt_id": text} for text in ("Why?", "How?")]
    trainer: Any = grpo.online_trainer(model, tokenizer, rows * 8, settings, recorder, 0)
    trainer.model.train()
    output = trainer._generate_and_score_completions([row for row in rows for _ in range(4)])
    return output["advantages"].tolist(), {name: logged[-1] for name, logged in trainer._metrics["train"].items()}


@pytest.mark.parametrize("kind", [GrpoSettings, RlooSettings])
def test_several_rewards_are_normalised_each_before_they_are_added(
    models: Path, tmp_path: Path, kind: type[Settings]
) -> None:
    several = {"rewards": (LengthSettings(), QuestionsSettings()), "beta": 0.0, "batch_size": 8}
    own = {"normalize_advantages": False} if kind is RlooSettings else {}
    numbers = [[0.0, 0, 0, 4, 7, 7, 7, 7], [1.0, 0, 1, 0, 5, 5, 5, 5]]
    advantages, logged = scored(models, tmp_path, kind(**{**QUICK, **several, **own}), numbers)
    # The first prompt's replies: 0, 0, 0, 4 has mean 1 and deviation 2; 1, 0, 1, 0 has 0.5 and √(1/3), and weight 2.
    y, z = 1 / 2.0001, 0.5 / (3**-0.5 + 1e-4)
    sums = [-y + 2 * z, -y - 2 * z, -y + 2 * z, 3 * y - 2 * z, 0, 0, 0, 0]
    if kind is GrpoSettings:  # the batch has mean 0; its deviation has Bessel's correction
        deviation = (sum(number**2 for number in sums) / 7) ** 0.5
        assert advantages == pytest.approx([number / (deviation + 1e-4) for number in sums], abs=1e-5)
    else:  # over the mean of the other three, whose sum is the number's own with another sign
        assert advantages == pytest.approx([number * 4 / 3 for number in sums], abs=1e-5)
    # What the functions gave is what is logged; the second prompt's replies are rewarded alike.
    assert logged["rewards/r0/mean"] == pytest.approx(32 / 8)
    assert logged["rewards/r1/mean"] == pytest.approx(22 / 8)
    assert logged["rewards/r1/std"] == pytest.approx((sum((n - 2.75) ** 2 for n in numbers[1]) / 7) ** 0.5)
    assert logged["reward"] == pytest.approx(4 + 2 * 2.75)
    assert logged["frac_reward_zero_std"] == 0.5


@pytest.mark.parametrize("kind", [GrpoSettings, RlooSettings])
def test_rewards_may_be_added_as_they_are(models: Path, tmp_path: Path, kind: type[Settings]) -> None:
    several = {"rewards": (LengthSettings(), QuestionsSettings()), "beta": 0.0, "batch_size": 8}
    several["multi_objective_aggregation"] = "sum_then_normalize"
    own = {"normalize_advantages": False} if kind is RlooSettings else {"scale_rewards": "none"}
    advantages, logged = scored(
        models, tmp_path, kind(**{**QUICK, **several, **own}), [[0.0, 0, 0, 4, 7, 7, 7, 7], [1.0, 0, 1, 0, 5, 5, 5, 5]]
    )
    leads = [2 - 2, 0 - 2, 2 - 2, 4 - 2, 0, 0, 0, 0]  # the sums 2, 0, 2, 4 have mean 2
    factor = 1 if kind is GrpoSettings else 4 / 3
    assert advantages == pytest.approx([lead * factor for lead in leads], abs=1e-5)
    assert logged["frac_reward_zero_std"] == 0.5


def test_how_rewards_are_divided_is_said_once() -> None:
    several = (LengthSettings(), QuestionsSettings())
    with pytest.raises(ValidationError, match="multi_objective_aggregation=sum_then_normalize"):
        GrpoSettings(rewards=several, scale_rewards="none")
    GrpoSettings(rewards=several, scale_rewards="none", multi_objective_aggregation="sum_then_normalize")
    GrpoSettings(scale_rewards="none")


@pytest.mark.parametrize("kind", ["grpo", "rloo", "ppo"])
def test_how_rewards_are_added_decides_what_is_made_where_there_are_several(kind: str) -> None:
    def fingerprint(*overrides: str) -> str:
        (stage,) = (stage for stage in stages_of(compose([f"algorithm={kind}", *overrides])) if stage.name == kind)
        return fingerprint_of(stage, 0, {})

    as_they_are = "algorithm.multi_objective_aggregation=sum_then_normalize"
    for rewards in ("[{kind: length},{kind: questions}]", "[{kind: constitution}]"):
        several = f"algorithm.rewards={rewards}"
        assert fingerprint(several) != fingerprint(several, as_they_are)
    # With one reward nothing is made anew: without the setting the fingerprints are the same.
    assert fingerprint() == fingerprint(as_they_are)
    before = {"grpo": "44f9ccbc17ada691", "rloo": "4cbf4b09e976e4e6", "ppo": "a5166ec6699bfb63"}
    assert fingerprint().startswith(before[kind])


def test_a_training_in_which_most_prompts_teach_nothing_warns_once(models: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "def first_only(completions, **_):\n"
        "    return [float(number) if number < 4 else 0.0 for number in range(len(completions))]\n"
    )
    context = stage(tmp_path, models)
    mine = (PythonSettings(function=f"{tmp_path / 'mine.py'}:first_only"),)
    run(inputs(GrpoSettings(**{**QUICK, "rewards": mine, "epochs": 1.0})), context)
    assert [line["frac_reward_zero_std"] for line in log_of(context)] == [0.75, 0.75]
    (warning,) = context.warnings
    assert "frac_reward_zero_std stays high, at 75%" in warning
    assert "num_generations" in warning


def test_a_reward_that_hardly_counts_beside_others_is_warned_of(models: Path, tmp_path: Path) -> None:
    mixed = {"rewards": (LengthSettings(limit=0), QuestionsSettings(weight=-1.0)), "epochs": 0.5}
    for name, changes in (("small", {}), ("summed", {"multi_objective_aggregation": "sum_then_normalize"})):
        context = stage(tmp_path / name, models)
        run(inputs(GrpoSettings(**{**QUICK, **mixed, **changes})), context)
        warnings = [warning for warning in context.warnings if "length" in warning and "-0.01" in warning]
        assert len(warnings) == (name == "small")


@pytest.mark.parametrize(("kind", "lora"), [(GrpoSettings, LoraSettings(rank=4)), (RlooSettings, None)])
def test_a_training_that_was_killed_goes_on_to_the_same_files(
    models: Path, tmp_path: Path, kind: type[Settings], lora: LoraSettings | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = inputs(kind(**{**QUICK, "epochs": 3.0, "lora": lora}))
    made = grpo.online_trainer

    def killed_at(step: int) -> Callable[..., Any]:
        from transformers import TrainerCallback

        class Kill(TrainerCallback):
            def on_step_end(self, args: Any, state: Any, control: Any, **_: object) -> None:  # noqa: ANN401, ARG002
                if state.global_step == step:
                    raise KeyboardInterrupt

        def trainer(*given: Any) -> Any:  # noqa: ANN401
            found = made(*given)
            found.add_callback(Kill())
            return found

        return trainer

    unbroken, killed = stage(tmp_path / "unbroken", models), stage(tmp_path / "killed", models)
    run(settings, unbroken)
    monkeypatch.setattr(grpo, "online_trainer", killed_at(5))  # of 6, in the last pass; the checkpoint is of step 4
    with pytest.raises(KeyboardInterrupt):
        run(settings, killed)
    monkeypatch.setattr(grpo, "online_trainer", made)
    run(settings, killed)
    assert digest_of(killed.output("policy")) == digest_of(unbroken.output("policy"))
    assert log_of(killed) == log_of(unbroken)
    assert killed.rows == unbroken.rows


def test_an_async_function_of_the_users_trains_the_same_as_one_that_is_not(models: Path, tmp_path: Path) -> None:
    made = {}
    for kind in ("def", "async def"):
        folder = tmp_path / kind.partition(" ")[0]
        folder.mkdir()
        body = "(prompts, completions, **_):\n    return [float(len(reply[-1]['content'])) for reply in completions]\n"
        (folder / "mine.py").write_text(f"{kind} letters{body}")
        context = stage(folder, models)
        mine = PythonSettings(function=f"{folder}/mine.py:letters", weight=-1)
        run(inputs(GrpoSettings(**{**QUICK, "epochs": 1.0, "rewards": (LengthSettings(limit=0), mine)})), context)
        made[kind] = (digest_of(context.output("policy")), log_of(context), context.rows["rollouts"])
    assert made["def"] == made["async def"]


def test_a_user_function_that_fails_is_the_users_error(models: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def f(completions, **_):\n    return [1.0]\n")
    chosen = (PythonSettings(function=f"{tmp_path / 'mine.py'}:f"),)
    with pytest.raises(InputError, match=r"mine\.py:1: the reward function 'f' returned 1 rewards for 16 completions"):
        run(inputs(GrpoSettings(**{**QUICK, "rewards": chosen})), stage(tmp_path, models))


def test_prompts_come_in_an_order_of_their_own_each_pass_and_long_ones_are_left_out() -> None:
    settings = GrpoSettings(**{**QUICK, "epochs": 2.5, "max_length": 50})
    long = Prompt(messages=(Message("user", "word " * 60),))
    rows, too_long = grpo.prompt_rows([*prompts(6), long], tiny_tokenizer(), settings, 0)
    order = [row["prompt_id"] for row in rows]
    ids = {each.id for each in prompts(6)}
    assert too_long == 1
    assert len(order) == 12  # 2.5 · 6 = 15, of which 4 make a step
    assert set(order[:6]) == set(order[6:]) == ids
    assert order[:6] != order[6:]
    assert rows == grpo.prompt_rows([*prompts(6), long], tiny_tokenizer(), settings, 0)[0]


def test_prompts_are_put_to_the_model_without_control_tokens() -> None:
    tokenizer = tiny_tokenizer()
    spoilt = Prompt(messages=(Message("user", f"How{tokenizer.eos_token}?"),))
    rows, _ = grpo.prompt_rows([spoilt, *prompts(3)], tokenizer, GrpoSettings(**QUICK), 0)
    (content,) = {row["prompt"][0]["content"] for row in rows if row["prompt_id"] == spoilt.id}
    assert content == "How[removed]?"  # a mark stays, so that a text cannot be made to begin a line of another's


def test_too_few_prompts_for_a_step_are_refused() -> None:
    with pytest.raises(RunError, match=r"3 prompts, 3 of at most 1012 tokens, make no step of 4 in 1 epochs"):
        grpo.prompt_rows(prompts(3), tiny_tokenizer(), GrpoSettings(**{**QUICK, "epochs": 1.0}), 0)


def test_settings_that_cannot_be_are_refused() -> None:
    with pytest.raises(
        ValidationError, match=r"64 replies, no multiple of num_generations, which is 6; try batch_size=48"
    ):
        GrpoSettings(num_generations=6)
    with pytest.raises(ValidationError, match="two of the kind 'length'"):
        RlooSettings(rewards=(LengthSettings(), LengthSettings(limit=3)))
    with pytest.raises(ValidationError, match="is empty"):
        RlooSettings(rewards=())


def test_what_a_run_needs_is_what_its_rewards_ask(tmp_path: Path) -> None:
    assert online.needs(GrpoSettings()) == ("reward_model",)
    direct = RlooSettings(rewards=(PrinciplesSettings(), LengthSettings()))
    assert online.needs(direct) == ("labeler", "labeler_accuracy", "constitution", "score.j2")
    assert online.asks_labeler(direct)
    assert not online.asks_labeler(GrpoSettings())
    path = tmp_path / "mine.py"
    path.write_text("import helper_of_mine\ndef f(**_): ...\n")
    (tmp_path / "helper_of_mine.py").write_text("")
    both = GrpoSettings(rewards=(RewardModelSettings(), PythonSettings(function=f"{path}:f")))
    assert online.needs(both) == ("reward_model",)
    assert online.sources(both) == (path, tmp_path / "helper_of_mine.py")


def test_a_run_straight_from_the_constitution_needs_no_reward_model() -> None:
    stages = {each.name: each for each in stages_of(compose(["algorithm=grpo_direct"]))}
    assert "dpo" not in stages
    assert stages["grpo"].needs == ("prompts", "sft_model", "labeler", "labeler_accuracy", "constitution", "score.j2")
    assert stages["grpo"].makes == ("policy", "rollouts")
    by_model = {each.name: each for each in stages_of(compose(["algorithm=rloo", "algorithm.beta=0.2"]))}
    assert by_model["rloo"].needs == ("prompts", "sft_model", "reward_model")


def test_the_labelers_settings_and_the_users_function_decide_what_is_trained(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text("def f(completions, **_): return [0.0] * len(completions)\n")

    def fingerprint(*overrides: str) -> str:
        config = freeze(compose(overrides))
        (found,) = (each for each in stages_of(config) if each.name == "grpo")
        return fingerprint_of(found, 0, {})

    direct, by_function = "algorithm=grpo_direct", f"algorithm.rewards=[{{kind: python, function: '{path}:f'}}]"
    assert fingerprint(direct) != fingerprint(direct, "label.max_tokens=99")
    assert fingerprint("algorithm=grpo") == fingerprint("algorithm=grpo", "label.max_tokens=99")
    before = fingerprint("algorithm=grpo", by_function)
    path.write_text("def f(completions, **_): return [1.0] * len(completions)\n")
    assert fingerprint("algorithm=grpo", by_function) != before


def test_a_function_that_is_not_there_is_said_before_anything_is_asked(tmp_path: Path) -> None:
    rewards = f"algorithm.rewards=[{{kind: python, function: '{tmp_path}/mine.py:f'}}]"
    with pytest.raises(InputError, match=r"mine\.py: there is no such file"):
        ready(compose(["algorithm=grpo", rewards]))
    with pytest.raises(ConfigurationError, match=r'^algorithm\.rewards\.0\.function is "f", but should be "file\.py:f'):
        compose(["algorithm=grpo", "algorithm.rewards=[{kind: python, function: f}]"])
    with pytest.raises(
        ConfigurationError, match=r"^algorithm\.rewards\.0 is .*\"x\".*kind should be one of 'reward_model'"
    ):
        compose(["algorithm=grpo", "algorithm.rewards=[{kind: x}]"])


@pytest.mark.parametrize("kind", ["grpo", "rloo"])
def test_replies_are_sampled_by_the_runs_settings_alone_and_end_where_the_template_says(
    models: Path, tmp_path: Path, kind: str
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_model(models, "llama"), folder)
    leftovers = {"num_beams": 2, "stop_strings": ["e"], "min_new_tokens": 9, "suppress_tokens": [5], "eos_token_id": 7}
    (folder / "generation_config.json").write_text(json.dumps(leftovers))
    settings = getattr(grpo, f"{kind.title()}Settings")(**QUICK)
    model, tokenizer = load_policy(folder, settings)
    recorder = grpo.Recorder([Reward("none", 1.0, lambda **_: [0.0])], [], tmp_path / "c", 1)
    row = {"prompt": [{"role": "user", "content": "Why?"}], "prompt_id": "p"}
    trainer = grpo.online_trainer(model, tokenizer, [row] * 4, settings, recorder, 0)
    # What generate() is not told, it takes from the model.
    trained: Any = trainer.model
    used, _ = trained._prepare_generation_config(trainer.generation_config)
    assert set(used.eos_token_id) == {7, tokenizer.eos_token_id}
    assert (used.num_beams, used.do_sample, used.temperature) == (1, True, 1.0)
    assert not any((used.stop_strings, used.min_new_tokens, used.suppress_tokens))


def test_a_reply_that_no_reward_has_a_number_for_teaches_nothing_whatever_its_penalty() -> None:
    import torch

    class OfTrl:
        """Gives four replies' rewards, by one reward and a penalty for replies that were cut off."""

        args = SimpleNamespace(num_generations=4)
        reward_weights = torch.tensor([1.0, -1.0])
        reward_func_names = ("own", "cut_off")
        _metrics: ClassVar[dict[str, Any]] = {"train": defaultdict(lambda: [0.0])}

        def _calculate_rewards(self) -> torch.Tensor:
            return torch.tensor([[0.8, 0.0], [0.7, 1.0], [math.nan, 0.0], [math.nan, 1.0]])

        def _generate_and_score_completions(self) -> torch.Tensor:
            return self._calculate_rewards()

    trainer = grpo._aggregated(OfTrl(), "sum_then_normalize", 1)  # type: ignore[type-var]
    rewards = trainer._generate_and_score_completions()
    assert rewards[:2].equal(torch.tensor([[0.8, 0.0], [0.7, 1.0]]))
    assert bool(rewards[2:].isnan().all())  # by which TRL gives both an advantage of 0
