"""A training that is handed over, and the policy that comes back: on a run whose models are real and whose answers are
scripted."""

import asyncio
import importlib.util
import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from io import StringIO
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, cast

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from constitutional.base.errors import RunError
from constitutional.base.files import CARD, digest_of
from constitutional.base.progress import Progress
from constitutional.base.records import Message, Preference, Prompt
from constitutional.cli.main import main
from constitutional.constitution.file import load_constitution
from constitutional.engines.settings import Budget
from constitutional.runs import handover, runner
from constitutional.runs.compose import load
from constitutional.runs.folder import USED, RunStore
from constitutional.runs.handover import _goes_on
from constitutional.runs.launch_settings import AccelerateSettings, HereSettings
from constitutional.runs.pipeline import Stage, stages_of
from constitutional.runs.settings import RunConfig
from constitutional.runs.status import outdated
from constitutional.sandbox import MODEL_FOLDER
from constitutional.stages import adopted
from constitutional.stages.context import StageContext
from constitutional.stages.summaries import AdoptedSummary, RewardSummary
from constitutional.training.reward_model import NORMALISATION, score
from tests.scripted_run import SUMMARIES_OF, World, configured, constitution, go
from tests.tiny import tiny_model, tiny_tokenizer

MOMENTS = ((-0.5, 0.25), (1.5, 0.5))
"""Mean and deviation of the members' scores, so that the shifts are −2 and 3."""
run = runner.run


def sft(_settings: object, context: StageContext) -> None:
    shutil.copytree(MODEL_FOLDER, context.output("sft_model"), dirs_exist_ok=True)
    context.write("sft_examples", ())
    context.summarise(SUMMARIES_OF["sft_model"])


def reward(settings: Any, context: StageContext) -> None:  # noqa: ANN401
    folder = context.output("reward_model")
    tokenizer = AutoTokenizer.from_pretrained(MODEL_FOLDER)
    for number in range(settings.members):
        torch.manual_seed(number)
        model = AutoModelForSequenceClassification.from_pretrained(MODEL_FOLDER, num_labels=1, dtype="float32")
        model.config.pad_token_id = tokenizer.pad_token_id
        model.save_pretrained(folder / str(number))
        tokenizer.save_pretrained(folder / str(number))
    kept = [{"mean": mean, "deviation": deviation} for mean, deviation in MOMENTS[: settings.members]]
    (folder / NORMALISATION).write_text(json.dumps({"members": kept}))
    context.summarise(RewardSummary(pairs=8, dropped={}, quality=None))


def without_trainings(config: RunConfig) -> list[Stage]:
    fakes: dict[str, Callable[[Any, Any], None]] = {"sft": sft, "reward": reward}
    return [replace(stage, run=fakes.get(stage.name, stage.run)) for stage in stages_of(config)]


def until_reward(folder: Path, *overrides: str) -> RunStore:
    constitution(folder)
    config = configured(folder, "name=first", "until=reward", *overrides)
    return run(config, stages=without_trainings(config), opener=World().open, progress=Progress(StringIO()))


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> RunStore:
    return until_reward(tmp_path_factory.mktemp("alone"))


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> RunStore:
    return until_reward(tmp_path_factory.mktemp("ensemble"), "reward.members=2")


def exported(store: RunStore, form: str, folder: Path, *more: str) -> Path:
    assert main(["export", str(store.folder), "--to", form, "-o", str(folder), *more]) == 0
    return folder


def options(script: Path) -> dict[str, str]:
    """What a script gives to its program, by name, as the shell makes it; an option without a value has none."""
    recorder = script.parent / "bin"
    recorder.mkdir(exist_ok=True)
    for name in ("python3", "uv"):
        (recorder / name).write_text('#!/bin/sh\nprintf "%s\\0" "$@"\n')
        (recorder / name).chmod(0o755)
    environment = {"PATH": f"{recorder}:/usr/bin:/bin", "GPUS": "4"}
    said = subprocess.run([script], env=environment, check=True, capture_output=True, text=True).stdout
    words, found = said.split("\0")[:-1], dict[str, str]()
    for word, after in zip(words, [*words[1:], ""], strict=True):
        name, equals, value = word.lstrip("+").partition("=")
        if equals:
            found[name] = value
        elif word.startswith("--"):
            found[word] = "" if after.startswith("--") else after
    return found


CONVERSATION = (Message("user", "How do I bake bread?"), Message("assistant", "Mix flour and water into dough."))
OTHER = (Message("user", "How do I bake bread?"), Message("assistant", "You are a genius and a true star!"))


def logits(folder: Path) -> list[float]:
    """What a framework reads of a reward model's folder, for both conversations."""
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype="float32").eval()
    with torch.inference_mode():
        return [float(model(input_ids=torch.tensor([ids])).logits[0, 0]) for ids in map(tokens, (CONVERSATION, OTHER))]


def tokens(conversation: tuple[Message, ...], *, ask: bool = False) -> list[int]:
    tokenizer = AutoTokenizer.from_pretrained(MODEL_FOLDER)
    turns = [row.turn() for row in conversation]
    text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=ask)
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def ours(store: RunStore) -> list[float]:
    return [row.mean for row in score(store.artifact("reward_model"), [CONVERSATION, OTHER])]


def module_of(file: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("reward", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# What is handed over


@pytest.mark.parametrize("form", ["verl", "openrlhf", "nemo-rl"])
def test_a_folder_holds_prompts_preferences_models_and_commands(
    first: RunStore, form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = exported(first, form, tmp_path / "out of")
    ending = "parquet" if form == "verl" else "jsonl"
    names = {"README.md", "constitution.yaml", "data", "grpo.sh", "ppo.sh", "reward_model", "sft_model"}
    assert {path.name for path in folder.iterdir()} == names | ({"reward.py"} if form == "verl" else set())
    assert {path.name for path in (folder / "data").iterdir()} == {f"preferences.{ending}", f"prompts.{ending}"}
    assert digest_of(folder / "sft_model") == digest_of(first.artifact("sft_model"))
    digest = load_constitution(first.folder / USED).digest
    rows = read(folder / "data" / f"prompts.{ending}")
    every = first.read("prompts", Prompt)
    train = [row for row in every if row.split == "train"]
    assert (len(every), len(train)) == (12, 8)  # those that are held out stay for the evaluation
    readers: dict[str, Callable[[dict[str, Any]], Any]] = {
        "verl": lambda row: json.loads(row["extra_info"]["messages"]),
        "openrlhf": lambda row: row["prompt"],
        "nemo-rl": lambda row: [{"role": "user", "content": row["input"]}],
    }
    text = readers[form]
    single = [row for row in train if len(row.messages) == 1]
    assert len(single) == 7
    told = single if form == "nemo-rl" else train  # which reads a prompt's first message alone
    assert [text(row) for row in rows] == [[message.turn() for message in row.messages] for row in told]
    assert {row["extra_info"]["constitution"] if form == "verl" else row["constitution"] for row in rows} == {digest}
    trained_on = [row for row in first.read("preferences", Preference) if row.split == "train"]
    assert len(read(folder / "data" / f"preferences.{ending}")) == len(trained_on) > 0
    said = capsys.readouterr().out
    assert f"{len(told)} prompts, {len(trained_on)} preferences, the SFT model, 1 reward model" in said
    assert ("1 prompt of several messages: left out, as NeMo-RL" in said) == (form == "nemo-rl")
    readme = (folder / CARD).read_text()
    assert digest in readme
    assert f"constitutional adopt {first.folder} THAT_FOLDER name=first-ppo" in readme
    assert "shifted by -2:" in readme
    assert ("could be checked" in readme) == (form == "nemo-rl")


def read(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".parquet":
        import pyarrow.parquet as pq  # type: ignore[import-untyped]

        rows: list[dict[str, Any]] = pq.read_table(path).to_pylist()
        return rows
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_command_has_the_values_of_the_run_and_paths_in_the_folder(first: RunStore, tmp_path: Path) -> None:
    folder = exported(first, "verl", tmp_path / "made here")
    train = [row for row in first.read("prompts", Prompt) if row.split == "train"]
    longest = max(len(tokens(row.messages, ask=True)) for row in train)
    ppo, grpo = options(folder / "ppo.sh"), options(folder / "grpo.sh")
    for told in (ppo, grpo):
        assert told["data.max_prompt_length"] == f"{longest}"
        assert told["data.train_batch_size"] == "8"  # all prompts: fewer than a phase of PPO has
        assert told["trainer.n_gpus_per_node"] == "4"
        assert told["data.train_files"] == f"'{folder}/data/prompts.parquet'"
    assert (ppo["algorithm.kl_ctrl.kl_coef"], ppo["actor_rollout_ref.rollout.n"]) == ("0.05", "1")
    assert ppo["trainer.total_epochs"] == "96"  # 768 replies to 8 prompts
    assert (grpo["actor_rollout_ref.actor.kl_loss_coef"], grpo["actor_rollout_ref.rollout.n"]) == ("0.04", "8")
    assert "critic.model.path" not in grpo
    # The run has DPO, so what it says of learning rates is not meant for these.
    assert ppo["actor_rollout_ref.actor.optim.lr"] == grpo["actor_rollout_ref.actor.optim.lr"] == "1e-06"


def test_settings_of_the_algorithm_that_the_run_has_are_handed_over(tmp_path: Path) -> None:
    words = ("algorithm=ppo", "algorithm.learning_rate=0.002", "algorithm.kl_coef=0.3", "algorithm.episodes=16")
    runs = tmp_path / "my runs"
    runs.mkdir()
    store = until_reward(runs, *words, "algorithm.max_tokens=40", "sample_pairs.max_tokens=30")
    folder = exported(store, "openrlhf", tmp_path / "out")
    ppo, grpo = options(folder / "ppo.sh"), options(folder / "grpo.sh")
    assert ppo["--actor.adam.lr"] == "0.002"
    assert ppo["--critic.adam.lr"] == "0.02"  # ten times as high
    assert (ppo["--algo.kl.init_coef"], ppo["--train.num_episodes"]) == ("0.3", "2")
    assert (grpo["--actor.adam.lr"], grpo["--algo.kl.init_coef"]) == ("1e-06", "0.04")
    assert (ppo["--rollout.max_new_tokens"], grpo["--rollout.max_new_tokens"]) == ("40", "30")
    assert int(ppo["--data.max_len"]) - int(grpo["--data.max_len"]) == 10
    assert ppo["--vllm.num_engines"] == "4"
    said = (folder / CARD).read_text()
    (adopt,) = [line for line in said.splitlines() if line.startswith("    constitutional adopt ")]
    assert shlex.split(adopt)[2:] == [str(store.folder), "THAT_FOLDER", "name=first-ppo"]
    assert "the penalty of 1 for a reply that is cut off" in said


def test_what_is_taken_off_for_disagreement_is_said_to_stay_behind(tmp_path: Path) -> None:
    reward = "algorithm.rewards=[{kind: reward_model, ensemble_k: 1.5}]"
    folder = exported(until_reward(tmp_path, "reward.members=2", "algorithm=ppo", reward), "openrlhf", tmp_path / "out")
    said = (folder / CARD).read_text()
    assert "1.5 deviations among the reward models that are taken off their mean (ensemble_k): not handed over" in said


def test_settings_that_the_commands_do_not_take_are_said_to_stay_behind(tmp_path: Path) -> None:
    more = ("algorithm=ppo", "algorithm.epochs=4", "algorithm.mini_batches=1", "algorithm.reward_clip=3")
    folder = exported(until_reward(tmp_path, *more), "verl", tmp_path / "out")
    _, said = (folder / CARD).read_text().split("What was not carried over:")
    assert "algorithm.epochs (4): not handed over" in said
    assert "algorithm.reward_clip (3.0): not handed over" in said
    assert "mini_batches" not in said
    assert "vf_coef" not in said  # as it is by default
    assert "the weight of the reward model" not in said


def test_a_weight_of_the_reward_model_and_how_the_rate_falls_are_said_to_stay_behind(tmp_path: Path) -> None:
    more = ("algorithm=grpo", "algorithm.epochs=2", "algorithm.rewards=[{kind: reward_model, weight: -0.5}]")
    folder = exported(
        until_reward(tmp_path, *more, "algorithm.schedule=cosine", "algorithm.weight_decay=0.1"),
        "verl",
        tmp_path / "out",
    )
    _, said = (folder / CARD).read_text().split("What was not carried over:")
    assert "the weight of the reward model's score (-0.5): not handed over" in said
    assert "algorithm.weight_decay (0.1): not handed over" in said
    assert "algorithm.schedule (cosine): not handed over" in said
    assert "algorithm.warmup" not in said  # as it is by default


def test_a_file_of_preferences_is_still_a_file(first: RunStore, tmp_path: Path) -> None:
    file = exported(first, "verl", tmp_path / "pairs.parquet")
    assert file.is_file()


# The rewards


def test_the_deviation_is_in_the_head_and_the_shift_beside_it(first: RunStore, tmp_path: Path) -> None:
    folder = exported(first, "openrlhf", tmp_path / "out") / "reward_model"
    was = load_file(first.artifact("reward_model") / "0" / "model.safetensors")
    now = load_file(folder / "model.safetensors")
    assert now.keys() == was.keys()
    assert torch.equal(now["score.weight"], was["score.weight"] * 4)  # a deviation of 0.25
    assert all(torch.equal(now[name], was[name]) for name in was if name != "score.weight")
    config = json.loads((folder / "config.json").read_text())
    assert (config["mean"], config["std"]) == (-2.0, 1.0)  # −0.5 / 0.25
    # As OpenRLHF normalises: (score − mean) / std
    assert [(logit - config["mean"]) / config["std"] for logit in logits(folder)] == pytest.approx(
        ours(first), abs=1e-4
    )
    assert ours(first)[0] != pytest.approx(ours(first)[1], abs=1e-2)


def test_a_template_that_writes_behind_the_end_of_a_reply_is_known() -> None:
    # Qwen's and Gemma's templates end a turn with a line's end.
    ends = {family: _goes_on(tiny_tokenizer(family)) for family in ("llama", "qwen3", "gemma")}
    assert ends == {"llama": False, "qwen3": True, "gemma": True}


def test_nemo_rl_scales_rewards_to_the_runs_own(first: RunStore, tmp_path: Path) -> None:
    folder = exported(first, "nemo-rl", tmp_path / "out")
    for algorithm in ("ppo", "grpo"):
        told = options(folder / f"{algorithm}.sh")
        low, high, least, most = (
            float(told[f"{algorithm}.reward_scaling.{name}"])
            for name in ("source_min", "source_max", "target_min", "target_max")
        )
        assert (low, high, least, most) == (-12, 8, -10, 10)
        scaled = [least + (logit - low) / (high - low) * (most - least) for logit in logits(folder / "reward_model")]
        assert scaled == pytest.approx(ours(first), abs=1e-4)


def asked_by_verl(module: ModuleType, **more: str) -> list[float]:
    info = {"messages": json.dumps([CONVERSATION[0].turn()])}

    async def both() -> list[float]:
        replies = (CONVERSATION[1].content, OTHER[1].content)
        return [await module.compute_score("constitutional", reply, "", info, **more) for reply in replies]

    return asyncio.run(both())


def test_the_function_asks_the_model_that_verl_serves_and_normalises_its_score(first: RunStore, tmp_path: Path) -> None:
    from aiohttp import web

    folder = exported(first, "verl", tmp_path / "out")
    answers, asked = logits(folder / "reward_model"), list[dict[str, Any]]()

    async def classify(request: web.Request) -> web.Response:
        asked.append(await request.json())
        return web.json_response({"data": [{"probs": [answers[len(asked) - 1]]}]})

    async def through_a_router() -> list[float]:
        app = web.Application()
        app.router.add_post("/classify", classify)
        served = web.AppRunner(app)
        await served.setup()
        site = web.TCPSite(served, "127.0.0.1", 0)
        await site.start()
        (address,) = served.addresses
        module = module_of(folder / "reward.py")
        info = {"messages": json.dumps([CONVERSATION[0].turn()])}
        try:
            return [
                await module.compute_score(
                    "constitutional",
                    row[1].content,
                    "",
                    info,
                    f"{address[0]}:{address[1]}",
                    reward_model_tokenizer=None,
                )
                for row in (CONVERSATION, OTHER)
            ]
        finally:
            await served.cleanup()

    assert asyncio.run(through_a_router()) == pytest.approx(ours(first), abs=1e-4)
    tokenizer = AutoTokenizer.from_pretrained(MODEL_FOLDER)
    read_there = [tokenizer(row["input"], add_special_tokens=row["add_special_tokens"])["input_ids"] for row in asked]
    assert read_there == [tokens(CONVERSATION), tokens(OTHER)]
    assert {row["model"] for row in asked} == {options(folder / "ppo.sh")["reward.reward_model.model_path"].strip("'")}
    assert {row["use_activation"] for row in asked} == {False}  # which would be a sigmoid


def test_several_reward_models_are_asked_by_a_function(two: RunStore, tmp_path: Path) -> None:
    verl, openrlhf = (exported(two, form, tmp_path / form) for form in ("verl", "openrlhf"))
    members = [json.loads((verl / f"reward_model/{number}/config.json").read_text())["mean"] for number in (0, 1)]
    assert members == [-2.0, 3.0]
    assert asked_by_verl(module_of(verl / "reward.py")) == pytest.approx(ours(two), abs=1e-4)
    told = options(verl / "ppo.sh")
    assert "reward.reward_model.enable" not in told
    assert told["critic.model.path"] == f"'{verl}/reward_model/0'"
    tokenizer = AutoTokenizer.from_pretrained(MODEL_FOLDER)
    queries = [tokenizer.decode(tokens(row)) for row in (CONVERSATION, OTHER)]
    rewards = module_of(openrlhf / "reward.py").reward_func(queries, ["", ""], ["", ""])["rewards"]
    assert rewards.tolist() == pytest.approx(ours(two), abs=1e-4)
    told = options(openrlhf / "ppo.sh")
    assert told["--reward.remote_url"] == f"{openrlhf}/reward.py"
    assert "--reward.normalize_enable" not in told


# What cannot be handed over


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    capsys.readouterr()
    assert main(list(words)) in (1, 2)
    *_, line = capsys.readouterr().err.splitlines()
    return line


def test_what_cannot_be_handed_over_is_told(
    first: RunStore, two: RunStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "out")
    line = refused(capsys, "export", str(two.folder), "--to", "nemo-rl", "-o", out)
    assert "has 2 reward models, and NeMo-RL asks one; type --to verl" in line
    line = refused(capsys, "export", str(first.folder), "--to", "verl", "-o", out, "--split", "held_out")
    assert "a folder holds what is trained on" in line
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    line = refused(capsys, "export", str(first.folder), "--to", "verl", "-o", out)
    assert "is there already; type --force" in line
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["notes.txt"]
    exported(first, "verl", tmp_path / "out", "--force")
    assert (tmp_path / "out" / "notes.txt").read_text() == "mine"


def test_a_folder_whose_export_was_stopped_is_finished_by_the_same_command(
    first: RunStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    words, out = ["export", str(first.folder), "--to", "verl", "-o", str(tmp_path / "out")], tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(handover, "copy_model", stop)
        assert main(words) == 130
    assert capsys.readouterr().out == f"{out}: writing models, prompts and preferences\n"
    assert not (out / "README.md").exists()
    assert main(words) == 0
    assert (out / "README.md").exists()
    assert not (out / handover.UNFINISHED).exists()
    assert "is there already" in refused(capsys, *words)


def test_a_run_without_a_reward_model_says_what_to_type(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    constitution(tmp_path)
    config = configured(tmp_path, "name=first", "until=mix")
    store = run(config, stages=without_trainings(config), opener=World().open, progress=Progress(StringIO()))
    line = refused(capsys, "export", str(store.folder), "--to", "verl", "-o", str(tmp_path / "out"))
    assert "has no reward_model yet" in line
    assert "until=reward" in line
    assert not (tmp_path / "out").exists()


# The policy that comes back


def moved(store: RunStore, folder: Path) -> Path:
    """The SFT model after a training elsewhere, which moved one of its weights."""
    shutil.copytree(store.artifact("sft_model"), folder)
    weights = load_file(folder / "model.safetensors")
    name = next(iter(weights))
    save_file({**weights, name: weights[name] + 0.125}, folder / "new", metadata={"format": "pt"})
    (folder / "new").replace(folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "trained_by": "verl"}))  # by which the world knows it
    return folder


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    """Scripted models in the place of those that the command would load."""
    asked, said = World(), StringIO()

    def scripted(config: RunConfig) -> RunStore:
        return run(config, stages=without_trainings(config), opener=asked.open, progress=Progress(said))

    monkeypatch.setattr(runner, "run", scripted)
    return asked


def test_an_adopted_policy_is_evaluated_and_reported_as_trained_elsewhere(
    tmp_path: Path, world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    store = until_reward(tmp_path)
    before = {path: path.read_bytes() for path in sorted(store.folder.glob("*.json"))}
    folder = moved(store, tmp_path / "huggingface")
    assert main(["adopt", str(store.folder), str(folder), "name=first-ppo"]) == 0
    made = RunStore.load(store.folder.with_name("first-ppo"))
    assert "Report: " in capsys.readouterr().out

    entry = made.stages["adopted"]
    assert entry.files == {str(folder): digest_of(folder)}
    assert digest_of(made.artifact("policy")) == digest_of(folder)
    assert not made.artifact("policy").is_symlink()
    assert made.summary("adopted", AdoptedSummary) == AdoptedSummary(
        folder="huggingface", digest=digest_of(folder), same_as_sft=False
    )
    # All that the other run had made is used again, and that run is as it was.
    shared = {name: made.manifest.stages[name].output for name in store.stages}
    assert shared == {name: link.output for name, link in store.manifest.stages.items()}
    assert {path: path.read_bytes() for path in before} == before

    page = made.artifact("report").with_suffix(".html").read_text()
    assert "The RL model was not trained by this run." in page
    assert digest_of(folder) in page
    card = (made.artifact("policy") / CARD).read_text()
    assert "was **not trained by `constitutional`**" in card
    assert f"from a folder `huggingface`, whose files have the SHA-256 `{digest_of(folder)}`" in card
    assert "| Length | " in card
    assert "Not known here." in card
    assert str(tmp_path) not in card

    # The same command again makes nothing; a folder that has changed is adopted anew, beside what there was.
    count = len(world.asked)
    assert main(["adopt", str(store.folder), str(folder), "name=first-ppo"]) == 0
    assert len(world.asked) == count
    (folder / "generation_config.json").write_text('{"do_sample": true}')
    assert main(["adopt", str(store.folder), str(folder), "name=first-ppo"]) == 0
    again = RunStore.load(made.folder)
    assert again.manifest.stages["adopted"].output != made.manifest.stages["adopted"].output
    shutil.rmtree(folder)  # the run has a copy
    assert len(files_of(again.artifact("policy"))) == len(files_of(made.stage_folder("adopted") / "policy"))
    assert outdated(again) == ""
    count = len(world.asked)
    assert main(["run", f"from={made.folder}", f"name={made.folder.name}"]) == 0
    assert (RunStore.load(made.folder).stages, len(world.asked)) == (again.stages, count)


def test_a_policy_that_changes_before_it_is_copied_is_refused(tmp_path: Path, first: RunStore) -> None:
    folder = moved(first, tmp_path / "ppo")
    context = SimpleNamespace(model=first.artifact)
    with pytest.raises(RunError, match="ppo: has changed since it was adopted"):
        adopted.run(adopted.Settings(folder=folder, digest="0" * 64), cast("StageContext", context))


def test_a_policy_is_adopted_where_and_within_what_is_typed(
    tmp_path: Path, world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    """As by the run, but for training in processes, of which there is none left; and by what is typed."""
    store = until_reward(tmp_path)
    file = store.folder / "config.json"
    kept = json.loads(file.read_text())
    launch = AccelerateSettings(processes=64).model_dump(mode="json")
    kept["config"] |= {"launch": launch, "budget": Budget(max_calls=1).model_dump(mode="json")}
    file.write_text(json.dumps(kept))
    folder = moved(store, tmp_path / "ppo")
    line = refused(capsys, "adopt", str(store.folder), str(folder), "sft.epochs=9")
    assert "sft.epochs=9" in line
    assert world.asked == []
    assert main(["adopt", str(store.folder), str(folder), "budget.max_calls=100000", "evaluate.judged=1"]) == 0
    config = load(store.folder.with_name("first-adopted"))
    assert config.launch == HereSettings()
    assert (config.budget.max_calls, config.evaluate.judged) == (100000, 1)
    made = RunStore.load(config.run_folder)
    assert made.stages["sft"] == store.stages["sft"]


def files_of(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.is_file()]


def test_a_policy_that_is_the_sft_model_is_told(tmp_path: Path, first: RunStore, world: World) -> None:
    folder = tmp_path / "same"
    shutil.copytree(first.artifact("sft_model"), folder)
    assert main(["adopt", str(first.folder), str(folder), "name=same"]) == 0
    made = RunStore.load(first.folder.with_name("same"))
    assert made.stages["adopted"].warnings == ("the policy that was adopted is the SFT model, file by file",)
    assert "so nothing was trained elsewhere" in made.artifact("report").read_text()
    assert world.asked


def test_a_folder_that_cannot_be_the_policy_is_refused_before_anything_is_made(
    tmp_path: Path, first: RunStore, world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    def line_of(folder: Path) -> str:
        return refused(capsys, "adopt", str(first.folder), str(folder))

    assert "is not there; expected a policy that was trained from" in line_of(tmp_path / "nowhere")
    step = tmp_path / "global_step_9"
    moved(first, step / "actor" / "huggingface")
    assert f"holds no model itself; did you mean {step / 'actor' / 'huggingface'}?" in line_of(step)
    of_rewards = first.artifact("reward_model") / "0"
    assert "is a LlamaForSequenceClassification, and the SFT model of the run a LlamaForCausalLM" in line_of(of_rewards)
    assert "is a Qwen3ForCausalLM" in line_of(tiny_model(tmp_path, "qwen3"))
    other = moved(first, tmp_path / "other")
    template = other / "chat_template.jinja"
    template.write_text("{% for m in messages %}{{ m.role }}: {{ m.content }}{% endfor %}")
    assert "its chat template is not the one" in line_of(other)
    cut = moved(first, tmp_path / "cut")
    (cut / "config.json").write_text('{"architectures": ["Llama')
    assert f"{cut / 'config.json'}: is no JSON: Unterminated string" in line_of(cut)
    bare = moved(first, tmp_path / "bare")
    for file in [*bare.glob("tokenizer*"), *bare.glob("chat_template*")]:
        file.unlink()
    assert "its tokenizer cannot be loaded; copy the tokenizer's files" in line_of(bare)
    assert "name=first is the run itself" in refused(capsys, "adopt", str(first.folder), str(step), "name=first")
    assert not first.folder.with_name("first-adopted").exists()
    assert world.asked == []


def test_a_policy_that_lacks_weights_is_refused_and_none_are_drawn_at_random(
    tmp_path: Path, world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    store = until_reward(tmp_path)
    folder = moved(store, tmp_path / "part")
    weights = load_file(folder / "model.safetensors")
    lacking = next(name for name in weights if re.search(r"layers\.0\..*proj", name))
    save_file({name: row for name, row in weights.items() if name != lacking}, folder / "model.safetensors")
    assert f"lacks 1 of the model's weights, such as {lacking}" in refused(
        capsys, "adopt", str(store.folder), str(folder)
    )
    assert "policy" not in RunStore.load(store.folder.with_name("first-adopted")).artifacts()
    assert len(world.asked) == 0


def test_a_policy_is_not_adopted_beside_a_run_that_would_be_made_anew(
    tmp_path: Path, world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    store = until_reward(tmp_path)
    folder = moved(store, tmp_path / "ppo")
    constitution(tmp_path, brief="Be very brief.")
    line = refused(capsys, "adopt", str(store.folder), str(folder))
    assert "made from what has changed since" in line
    assert "or put back what was there" in line
    assert world.asked == []
    constitution(tmp_path)
    assert main(["adopt", str(store.folder), str(folder)]) == 0


def test_a_run_with_a_policy_of_its_own_is_not_made_another(
    tmp_path: Path, world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    constitution(tmp_path)
    go(configured(tmp_path, "name=own", "seed=1"), World())
    store = until_reward(tmp_path)
    line = refused(capsys, "adopt", str(store.folder), str(moved(store, tmp_path / "ppo")), "name=own")
    assert "is a run with a policy of its own; type another name=NAME" in line
    assert shlex.quote(str(store.folder.with_name("own"))) in line
    assert world.asked == []
