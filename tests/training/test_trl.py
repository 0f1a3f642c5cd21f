import json
from io import StringIO
from math import log
from pathlib import Path
from typing import Any

import pytest

from constitutional.base.errors import ConfigurationError, ModelError, RunError
from constitutional.base.progress import Progress
from constitutional.runs.compose import compose
from constitutional.runs.runner import _check_training
from constitutional.stages import dpo, grpo, reward, sft
from constitutional.training import rewards
from constitutional.training.reward_model import load_reward_model
from constitutional.training.rows import on_disk
from constitutional.training.tracking import NOT_TRACKED
from constitutional.training.trl import (
    COMPLETE,
    LoraSettings,
    RewardedAlike,
    TrainingSettings,
    _check_kind,
    _complete,
    _latest_checkpoint,
    _log_callback,
    fit,
    load_policy,
    soft_correction,
    trl_arguments,
)
from tests.tiny import tiny_model


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("models"))


@pytest.mark.parametrize(
    ("x", "p", "loss"),
    [
        (0.0, 0.7, log(2)),  # σ(0) = 1/2 for either reply, whatever the target
        (log(3), 1.0, log(4 / 3)),  # σ = 3/4, and a target of 1 is the plain loss
        (log(3), 0.75, 0.75 * log(4 / 3) + 0.25 * log(4)),  # the entropy of (3/4, 1/4): the least there can be
        (-log(3), 0.5, 0.5 * log(4) + 0.5 * log(4 / 3)),
    ],
)
def test_the_correction_makes_the_plain_loss_a_soft_one(x: float, p: float, loss: float) -> None:
    import torch

    logits = torch.tensor([x], dtype=torch.float64)
    plain = -torch.nn.functional.logsigmoid(logits).mean()
    corrected = plain + soft_correction(logits, torch.tensor([p]))
    assert corrected.item() == pytest.approx(loss, abs=1e-7)


def test_an_undecided_pair_pulls_nowhere_while_the_model_is_undecided() -> None:
    import torch

    logits = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    loss = -torch.nn.functional.logsigmoid(logits).mean()
    loss = loss + soft_correction(logits, torch.tensor([0.5, 0.9]))
    loss.backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    assert logits.grad.tolist() == pytest.approx([0.0, -0.2])  # (σ(0) − p) / 2 = 0 and (0.5 − 0.9) / 2


def test_a_log_that_a_resumed_training_could_not_repeat_is_refused() -> None:
    with pytest.raises(ValueError, match="no multiple of log_every, which is 20; try checkpoint_every=40"):
        TrainingSettings(learning_rate=1e-3, epochs=1, log_every=20, checkpoint_every=50)


def test_a_checkpoint_that_was_cut_off_is_passed_over(tmp_path: Path) -> None:
    for step in (5, 10, 15):
        (tmp_path / f"checkpoint-{step}").mkdir()
    for step in (5, 10):
        (tmp_path / f"checkpoint-{step}" / COMPLETE).touch()
    assert _latest_checkpoint(tmp_path) == tmp_path / "checkpoint-10"
    assert not (tmp_path / "checkpoint-15").exists()
    assert _latest_checkpoint(tmp_path / "nothing") is None


def test_a_checkpoint_in_other_shards_is_refused_and_stays(tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint-10"
    checkpoint.mkdir()
    _complete(checkpoint, "FSDP")
    _check_kind(checkpoint, "FSDP", "FSDP")
    with pytest.raises(RunError, match=r"in shards of FSDP, and this one keeps them whole; go on with the launch"):
        _check_kind(checkpoint, "", "")
    assert checkpoint.exists()
    _complete(checkpoint, "")
    _check_kind(checkpoint, "", "")
    with pytest.raises(RunError, match=r"whole, and this one keeps them in shards of ZeRO-3 over 2 processes;"):
        _check_kind(checkpoint, "ZeRO-3 over 2 processes", "ZeRO-3")
    _complete(checkpoint, "ZeRO-3")  # as it was marked before
    _check_kind(checkpoint, "ZeRO-3 over 2 processes", "ZeRO-3")


def test_a_loss_that_is_no_number_ends_the_training(tmp_path: Path) -> None:
    from transformers import TrainerControl, TrainerState, TrainingArguments

    task = Progress(StringIO()).task("dpo", 9, "steps")
    callback = _log_callback(tmp_path / "log.jsonl", "dpo", task, NOT_TRACKED, RewardedAlike(pytest.fail))
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none")
    with pytest.raises(ModelError, match=r"dpo: the loss is nan at step 7; lower learning_rate"):
        callback.on_log(arguments, TrainerState(global_step=7), TrainerControl(), logs={"loss": float("nan")})


def test_a_process_alone_trains_on_one_of_the_gpus_that_it_sees(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    from transformers import TrainingArguments

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)

    def on_a_gpu(**own: Any) -> TrainingArguments:  # noqa: ANN401
        """As on a machine that has one: transformers counts GPUs unless it is told to use the CPU."""
        return TrainingArguments(**{key: own[key] for key in own.keys() - {"use_cpu", "bf16", "max_length"}})

    assert on_a_gpu(output_dir=str(tmp_path)).n_gpu == 2
    arguments = trl_arguments(on_a_gpu, TrainingSettings(learning_rate=1e-3, epochs=1), tmp_path, 0)
    assert (arguments.n_gpu, arguments.train_batch_size) == (1, 16)


def turn(role: str, content: str) -> list[dict[str, str]]:
    return [{"role": role, "content": content}]


def trainer(kind: str, model: Path, folder: Path, count: int, **settings: Any) -> Any:  # noqa: ANN401
    """A training of `count` rows, four of them in a step."""
    common: dict[str, Any] = {"batch_size": 4, "epochs": 1, "learning_rate": 0.01} | settings
    prompts: list[dict[str, Any]] = [{"prompt": turn("user", f"Question {number}?")} for number in range(count)]
    if kind in {"grpo", "rloo"}:
        common |= {"max_tokens": 4, "num_generations": 4, "beta": 0.0, "rewards": (rewards.LengthSettings(limit=0),)}
        policy, tokenizer = load_policy(model, (chosen := getattr(grpo, f"{kind.title()}Settings")(**common)))

        def chance(completions: list[Any], **_: Any) -> list[float]:  # noqa: ANN401
            return [number % 3 + len(completion) for number, completion in enumerate(completions)]

        recorder = grpo.Recorder([rewards.Reward("chance", 1.0, chance)], [], folder, 1)
        rows = [row | {"prompt_id": "p"} for row in prompts]
        return grpo.online_trainer(policy, tokenizer, rows, chosen, recorder, 0)
    if kind == "sft":
        policy, tokenizer = load_policy(model, sft.Settings(**common))
        rows = [row | {"completion": turn("assistant", "word " * 5)} for row in prompts]
        return sft.sft_trainer(policy, tokenizer, on_disk(rows, folder / "rows"), sft.Settings(**common), folder, 0)
    pair = {"chosen": turn("assistant", "good good"), "rejected": turn("assistant", "bad")}
    pairs = on_disk([row | pair | {"probability": 0.9, "weight": 1.0} for row in prompts], folder / "rows")
    if kind == "dpo":
        policy, tokenizer = load_policy(model, dpo.Settings(**common))
        return dpo.soft_dpo_trainer(policy, tokenizer, pairs, dpo.Settings(**common), folder, 0)
    policy, tokenizer = load_reward_model(model, new_head=True)
    return reward.soft_reward_trainer(policy, tokenizer, pairs, reward.Settings(**common), folder, 0)


KINDS = ("sft", "reward", "dpo", "grpo", "rloo")


def test_dropout_is_refused_where_a_training_has_none() -> None:
    with pytest.raises(ConfigurationError, match=r"^algorithm\.lora\.dropout=0\.1: .*type algorithm\.lora\.dropout=0$"):
        _check_training(compose(["experiment=sandbox", "algorithm.lora={rank: 4, dropout: 0.1}"]))
    _check_training(compose(["experiment=sandbox", "algorithm.lora={rank: 4}", "sft.lora={rank: 4, dropout: 0.1}"]))


@pytest.mark.parametrize("kind", KINDS)
def test_supervised_training_alone_drops_inputs_of_adapters(models: Path, tmp_path: Path, kind: str) -> None:
    import torch

    made = trainer(kind, models, tmp_path / "c", 4, lora=LoraSettings(rank=2, dropout=0.5))
    drops = {module.p for module in made.model.modules() if isinstance(module, torch.nn.Dropout)}
    assert (0.5 in drops) == (kind == "sft")
    assert kind == "sft" or drops <= {0}


@pytest.mark.parametrize("lora", [None, LoraSettings(rank=2)])
@pytest.mark.parametrize("kind", KINDS)
def test_a_training_of_one_step_moves_the_weights(
    models: Path, tmp_path: Path, kind: str, lora: LoraSettings | None
) -> None:
    import torch

    made = trainer(kind, models, tmp_path / "c", 4, lora=lora)
    before = [weight.detach().clone() for weight in made.model.parameters() if weight.requires_grad]
    assert fit(made, log=tmp_path / "log", label=kind).steps == 1
    after = [weight for weight in made.model.parameters() if weight.requires_grad]
    assert not all(map(torch.equal, before, after))


@pytest.mark.parametrize(("warmup", "count", "rates"), [(0.99, 8, [0.0, 0.01]), (0.99, 4, [0.01]), (0.5, 8, [0, 0.01])])
def test_a_step_comes_after_the_warm_up(
    models: Path, tmp_path: Path, warmup: float, count: int, rates: list[float]
) -> None:
    made = trainer("sft", models, tmp_path / "c", count, warmup=warmup, log_every=1, checkpoint_every=1)
    fit(made, log=tmp_path / "log", label="sft")
    assert [line["learning_rate"] for line in made.state.log_history if "loss" in line] == rates


@pytest.mark.parametrize("kind", KINDS)
def test_the_last_step_has_a_line_of_its_own_in_the_log(models: Path, tmp_path: Path, kind: str) -> None:
    made = trainer(kind, models, tmp_path / "c", 12, log_every=2, checkpoint_every=2)  # three steps
    fit(made, log=tmp_path / "log", label=kind)
    assert [json.loads(line)["step"] for line in (tmp_path / "log").read_text().splitlines()] == [2, 3]


@pytest.mark.parametrize("kind", KINDS)
def test_a_training_that_moved_nothing_is_an_error(models: Path, tmp_path: Path, kind: str) -> None:
    made = trainer(kind, models, tmp_path / "c", 4, learning_rate=1e-30)
    with pytest.raises(ModelError, match=f"{kind}: no weight moved .* raise learning_rate"):
        fit(made, log=tmp_path / "log", label=kind)


@pytest.mark.parametrize("rate", [1e30, 1e4])
@pytest.mark.parametrize("lora", [None, LoraSettings(rank=2)])
@pytest.mark.parametrize("kind", ["sft", "reward", "dpo"])
def test_weights_that_are_no_numbers_end_the_training_also_between_two_lines_of_the_log(
    models: Path, tmp_path: Path, kind: str, lora: LoraSettings | None, rate: float
) -> None:
    import torch

    made = trainer(kind, models, tmp_path / "c", 8, epochs=2, learning_rate=rate, warmup=0, lora=lora)
    try:
        fit(made, log=tmp_path / "log", label=kind)  # 4 steps, and the log has a line every 5
    except ModelError as error:
        assert "loss is nan" in str(error)  # noqa: PT017 - either is right, as weights may stay numbers
        assert "lower learning_rate" in str(error)  # noqa: PT017
    else:
        assert all(bool(weight.isfinite().all()) for weight in made.model.parameters())
        assert rate < 1e30
    assert not list((tmp_path / "c").glob("*/complete")) or torch.isfinite(next(made.model.parameters())).all()


def test_a_part_of_an_epoch_that_is_done_is_not_trained_on_further(models: Path, tmp_path: Path) -> None:
    def go() -> tuple[int, dict[str, Any], str]:
        begun = trainer("sft", models, tmp_path, 8, epochs=1.5, batch_size=2, checkpoint_every=1, log_every=1)
        fitted = fit(begun, log=tmp_path / "log.jsonl", label="sft")
        weights = {name: weight.detach().clone() for name, weight in begun.model.named_parameters()}
        return fitted.steps, weights, (tmp_path / "log.jsonl").read_text()

    steps, weights, log = go()
    assert steps == 6
    again, same, log_of_again = go()  # as after a kill before the stage was noted down as done
    assert (again, log_of_again) == (steps, log)
    assert all(weight.equal(same[name]) for name, weight in weights.items())
