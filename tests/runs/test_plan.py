"""The memory of a run by stages: sums by hand, what is held together, and what is to be lowered."""

import json
from pathlib import Path

import pytest

from constitutional.base.errors import ConfigurationError, UsageError
from constitutional.cli.main import main
from constitutional.runs import moments
from constitutional.runs.compose import compose
from constitutional.runs.machine import GIB, GPUS, Machine, named_gpu, this_machine
from constitutional.runs.plan import StagePlan, footprint, plan, refusals
from constitutional.stages import ppo
from constitutional.training.footprint import Footprint
from constitutional.training.trl import LoraSettings
from tests.tiny import tiny_model

LARGE = Machine("large", 1000 * GIB, gpu=True)
SANDBOX = "experiment=sandbox"
"""Which trains all weights, where a model of one's own would have adapters."""
TINY = ("sft.max_length=32", "reward.max_length=32", "algorithm.max_length=32")


def gpu_with(room: float) -> Machine:
    """A GPU that has so many bytes for models."""
    return Machine("small", (room + LARGE.framework) / 0.95, gpu=True)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a configuration alone, of a model whose activations outweigh what its head takes."""
    folder = tmp_path_factory.mktemp("deep")
    sizes = {"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 16, "num_attention_heads": 8}
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": 1000, **sizes}))
    return folder


def planned(words: list[str], machine: Machine = LARGE) -> dict[str, StagePlan]:
    return {row.stage: row for row in plan(compose([SANDBOX, *words]), machine)}


def moment(row: StagePlan, what: str) -> moments.Moment:
    return next(found for found in row.moments if found.what == what)


def test_a_training_of_all_weights_is_planned_as_one_adds_up(model: Path) -> None:
    count = Footprint(model / "config.json").weights
    row = planned([f"model.path={model}", *TINY, "sft.gradient_accumulation=2"])["sft"]
    parts = moment(row, "the backward pass").parts
    assert (parts["weights"], parts["gradients"], parts["optimizer"]) == (4 * count, 4 * count, 8 * count)
    alone = planned([f"model.path={model}", *TINY, "sft.gradient_accumulation=1"])["sft"]
    assert moment(alone, "the backward pass").parts["gradients"] == 0  # those of the step before are gone
    assert moment(alone, "the last gradients").parts["gradients"] == 4 * count


def test_adapters_alone_have_gradients_and_the_rest_is_in_16_bits_on_a_gpu(model: Path) -> None:
    found = Footprint(model / "config.json")
    adapters = found.adapter_weights(4)
    words = [f"model.path={model}", *TINY, "sft.lora={rank: 4}", "reward.lora={rank: 4}"]
    parts = moment(planned(words)["sft"], "the last gradients").parts
    assert parts["weights"] == 2 * found.weights + 4 * adapters
    assert (parts["gradients"], parts["optimizer"]) == (4 * adapters, 8 * adapters)
    of_reward = moment(planned(words)["reward"], "the last gradients").parts
    assert of_reward["weights"] == 4 * found.scorer_weights + 4 * adapters  # which is loaded in 32 bits
    on_cpu = planned(words, Machine("cpu", 1000 * GIB, gpu=False))["sft"]
    assert moment(on_cpu, "the last gradients").parts["weights"] == 4 * found.weights + 4 * adapters
    assert moment(on_cpu, "saving").parts["other models"] == 4 * found.weights  # read again, to compare


def test_ppo_holds_four_networks_or_one_backbone(model: Path) -> None:
    found = Footprint(model / "config.json")
    settings = ppo.Settings(batch_size=2, max_prompt_tokens=16, max_tokens=8, sampling_batch_size=4)
    rows = moments.by_ppo(found, settings, gpu=True, members=2, beside=7.0)
    last = next(row for row in rows if row.what == "the last gradients of the critic")
    assert last.parts["weights"] == 4 * found.weights
    assert last.parts["other models"] == 4 * found.weights + 4 * found.scorer_weights * (1 + 2) + 7
    assert last.parts["optimizer"] == 8 * (found.weights + found.scorer_weights)
    adapted = settings.model_copy(update={"lora": LoraSettings(rank=4)})
    rows = moments.by_ppo(found, adapted, gpu=True, members=1, beside=0.0)
    saving = next(row for row in rows if row.what == "saving")
    adapters = found.adapter_weights(4)
    backbone = 2 * found.weights + 4 * adapters
    assert saving.parts["weights"] == backbone
    assert saving.parts["optimizer"] == 8 * 2 * adapters
    # The critic's adapter, the reward model, and the copy that adapters are merged into.
    assert saving.parts["other models"] == 4 * adapters + 4 * found.scorer_weights + backbone


STEP = ("sft.batch_size=2", "sft.gradient_accumulation=4")
"""Eight rows, of which each of four processes has two, in a pass."""


def of_four(model: Path, kind: str, *words: str, machine: Machine = LARGE) -> dict[str, StagePlan]:
    launched = (f"launch=accelerate{kind}", "launch.processes=4")
    return planned([f"model.path={model}", *TINY[:2], *STEP, *launched, *(words or ("until=sft",))], machine)


def test_each_of_four_processes_holds_all_weights_and_buckets_for_all_gradients(model: Path) -> None:
    found = Footprint(model / "config.json")
    row = of_four(model, "")["sft"]
    assert row.note == "2 rows of 32 tokens, on each of 4 GPUs"
    parts = moment(row, "the backward pass").parts
    assert (parts["weights"], parts["optimizer"]) == (4 * found.weights, 8 * found.weights)
    assert parts["gradients"] == 4 * found.weights  # the buckets; with one pass in a step, no pass finds gradients
    own = 4 * found.embeddings if found.tied else 0
    assert moment(row, "the last gradients").parts["gradients"] == 2 * 4 * found.weights + own


def test_each_of_four_processes_holds_a_quarter_and_puts_together_a_layer_after_the_other(deep: Path) -> None:
    count, layer, end = 55_566_848, (55_566_848 - 2 * 512_000) / 16, 512_000
    row = of_four(deep, "_fsdp2")["sft"]
    assert moment(row, "before it is sharded").parts == {"weights": 4 * count}
    loss, backward = moment(row, "the loss").parts, moment(row, "the backward pass").parts
    assert loss["weights"] == count + 2 * 2 * end  # embeddings and head in 16 bits
    assert backward["weights"] == count + 2 * (2 * end + 2 * layer)
    assert backward["gradients"] == 6 * layer
    last = moment(row, "the last gradients").parts
    assert (last["gradients"], last["optimizer"]) == (count + 6 * 2 * end, 2 * count)
    # What is put together is in 16 bits as it is, of which autocast would make copies.
    alone = planned([f"model.path={deep}", *TINY, "sft.batch_size=2", "sft.gradient_accumulation=1"])["sft"]
    assert backward["activations"] < moment(alone, "the backward pass").parts["activations"] - count
    deepspeed = moment(of_four(deep, "_zero3")["sft"], "the backward pass").parts
    assert deepspeed["weights"] == (4 + 2) * count / 4 + 2 * count  # all of so few are whole at a time
    assert deepspeed["gradients"] == 4 * count


def test_ppo_is_sharded_but_for_the_policy_that_draws_and_for_adapters(deep: Path) -> None:
    count, scorer = 55_566_848, 55_566_848 - 512_000 + 512
    ppos = ("algorithm=ppo", "reward.members=2", "algorithm.max_prompt_tokens=16", "algorithm.max_tokens=8")
    row = of_four(deep, "_zero3", *ppos)["ppo"]
    drawing = moment(row, "drawing replies").parts
    assert drawing["weights"] == count + 2 * count
    assert drawing["other models"] == count + 3 * scorer
    assert drawing["optimizer"] == 2 * (count + scorer)
    # Every process reads policy, reference, critic and reward models.
    assert row.host == 4 * 4 * (2 * count + 3 * scorer)
    adapters = Footprint(deep / "config.json").adapter_weights(4)
    adapted = of_four(deep, "_fsdp2", *ppos, "algorithm.lora={rank: 4}")["ppo"]
    assert moment(adapted, "saving").parts["weights"] == 2 * count + 4 * adapters


def test_rows_that_processes_cannot_share_are_refused_as_by_a_run(model: Path) -> None:
    with pytest.raises(
        ConfigurationError, match=r"are 6 rows in a step, which 4 .*; type sft\.batch_size=4, or launch\."
    ):
        of_four(model, "", "until=sft", "sft.batch_size=3", "sft.gradient_accumulation=2")


def test_processes_on_a_cpu_share_its_memory(model: Path) -> None:
    cpu = Machine("cpu", 1000 * GIB, gpu=False)
    one = planned([f"model.path={model}", *TINY, "sft.batch_size=2", "sft.gradient_accumulation=1"], cpu)["sft"]
    four = of_four(model, "", machine=cpu)["sft"]
    assert four.note == "2 rows of 32 tokens, in each of 4 processes"
    assert moment(four, "the backward pass").parts["weights"] == 4 * moment(one, "the backward pass").parts["weights"]
    assert moment(four, "the loss").parts["activations"] == 4 * moment(one, "the loss").parts["activations"]


def test_what_fits_with_adapters_alone_says_on_how_many_gpus_all_weights_fit(deep: Path) -> None:
    count = 55_566_848
    words = [f"model.path={deep}", *TINY, *STEP, "until=sft"]
    small = gpu_with(13.0 * count)  # 16 bytes for each weight are needed
    row = planned(words, small)["sft"]
    assert not row.fits(small)
    assert "lora" in " ".join(row.lower)
    assert row.shards[:2] == ("launch=accelerate_fsdp2", "launch.processes=2")
    assert planned([*words, *row.shards], small)["sft"].fits(small)
    assert (
        planned([*words, "algorithm=grpo", "algorithm.max_tokens=8"], small)["sft"].shards == ()
    )  # which trains in one process
    (line,) = refusals([row], small)
    assert line.endswith(f"; or on several GPUs {' '.join(row.shards)}")


def test_replies_need_keys_and_values_for_what_is_written_and_for_what_waits(model: Path) -> None:
    found = Footprint(model / "config.json")
    row = moments.answering(found, "bfloat16", 8, 100, 50)
    token = 2 * 2 * 2 * 8 * 2  # keys and values, layers, heads, their width, bytes
    assert row.parts["cache"] == 8 * token * (100 + 100 + 50 + 256)
    assert row.parts["weights"] == 2 * found.weights
    sorted_too = moments.answering(found, "bfloat16", 8, 1, 50, top_p=0.9)
    assert sorted_too.parts["logits"] == 8 * found.vocabulary * (2 + 12 + 28)


def test_a_labeler_that_weighs_whole_responses_holds_logits_for_each_of_their_tokens(model: Path) -> None:
    found = Footprint(model / "config.json")
    words = [f"model.path={model}", *TINY, "label.method=contrast", "label.few_shot=0", "sample_pairs.max_tokens=50"]
    rows = planned([*words, "labeler.batch_size=4", "until=label"])
    for stage in ("labeler_check", "label"):
        (row,) = rows[stage].moments
        assert row.what == "weighing whole responses"
        assert row.parts["logits"] == 4 * 50 * found.vocabulary * (2 + 4 + 4)
    assert rows["critique_revise"].peak.what == "answering"
    # What is weighed in the evaluation are its own replies.
    own = ["model.batch_size=1", "labeler.batch_size=4", "evaluate.max_tokens=30", "evaluate.compared=0"]
    (row,) = planned([*words, *own, "algorithm.epochs=1"])["evaluate"].moments
    assert row.parts["logits"] == 4 * 30 * found.vocabulary * (2 + 4 + 4)
    # A pass has at most 2^28 numbers: 8,192 tokens of a vocabulary of 2^15, and not the 32,768 of 64 responses.
    found.vocabulary = 2**15
    assert moments.weighing(found, "float32", 64, 1, 512).parts["logits"] == 2**28 * (4 + 4)
    assert moments.weighing(found, "float32", 2, 1, 512).parts["logits"] == 2 * 512 * 2**15 * (4 + 4)


def test_ppo_has_room_for_all_keys_and_values_from_the_start(model: Path) -> None:
    found = Footprint(model / "config.json")
    settings = ppo.Settings(batch_size=2, max_prompt_tokens=16, max_tokens=8, sampling_batch_size=4)
    rows = {row.what: row for row in moments.by_ppo(found, settings, gpu=True, members=0, beside=0.0)}
    assert rows["reading prompts"].parts["cache"] == 4 * (16 + 8) * found.cache(2)
    assert rows["drawing replies"].parts["cache"] == 4 * (16 + 8) * found.cache(2)


def test_autocast_keeps_copies_of_the_weights_that_are_trained_while_ppo_draws_and_scores(
    model: Path, tmp_path: Path
) -> None:
    found = Footprint(model / "config.json")
    settings = ppo.Settings(batch_size=2, max_prompt_tokens=16, max_tokens=8, sampling_batch_size=4)

    def weights(settings: ppo.Settings, *, gpu: bool, found: Footprint = found) -> dict[str, float]:
        rows = moments.by_ppo(found, settings, gpu=gpu, members=1, beside=0.0)
        return {row.what: row.parts["weights"] for row in rows}

    held = weights(settings, gpu=True)
    copies = 2 * (found.weights - found.embeddings)  # embeddings are looked up, and not multiplied
    assert held["drawing replies"] == 4 * found.weights + copies
    of_critic = 2 * (found.scorer_weights - found.embeddings)
    assert held["scoring replies"] == 4 * found.weights + copies + of_critic
    assert held["saving"] == weights(settings, gpu=False)["drawing replies"] == 4 * found.weights
    adapted = weights(settings.model_copy(update={"lora": LoraSettings(rank=4)}), gpu=True)
    assert adapted["drawing replies"] == adapted["saving"]  # what is not trained is in 16 bits as it is
    config = json.loads((model / "config.json").read_text()) | {"tie_word_embeddings": True}
    (tmp_path / "config.json").write_text(json.dumps(config))
    tied = Footprint(tmp_path / "config.json")
    held = weights(settings, gpu=True, found=tied)
    assert held["drawing replies"] == (4 + 2) * tied.weights  # but as the head they are
    assert held["scoring replies"] == (4 + 2) * tied.weights + 2 * (tied.scorer_weights - tied.embeddings)


def test_a_model_stays_beside_the_next_one_until_a_training_begins(model: Path, tmp_path: Path) -> None:
    other = tiny_model(tmp_path, "llama")
    rows = planned([f"model.path={model}", *TINY, f"labeler.path={other}"])
    first, second = (footprint(str(path)) for path in (model, other))
    assert rows["labeler_check"].peak.parts["other models"] == 0
    assert rows["critique_revise"].peak.parts["other models"] == 2 * second.weights  # the labeler, which was tried
    assert rows["sample_pairs"].peak.parts["other models"] == 0  # after the training
    assert rows["label"].peak.parts["weights"] == 2 * second.weights
    assert rows["label"].peak.parts["other models"] == 0  # it gives the SFT model's memory back
    panel = planned([f"model.path={model}", *TINY, f"panel.second.path={other}"])["label"]
    assert panel.peak.parts["other models"] in (2 * first.weights, 2 * second.weights)
    words = [f"panel.second.path={other}", f"panel.third.path={tiny_model(tmp_path, 'gemma')}"]
    third = footprint(str(tmp_path / "gemma"))
    parts = planned([f"model.path={model}", *TINY, *words])["label"].peak.parts
    assert parts["weights"] + parts["other models"] == 2 * (first.weights + second.weights + third.weights)


def test_a_labeler_that_rewards_takes_keys_and_values_as_it_scores(model: Path, tmp_path: Path) -> None:
    other = tiny_model(tmp_path, "llama")
    words = [f"model.path={model}", "sft.max_length=32", "algorithm=grpo_direct", "until=grpo"]
    words += ["algorithm.max_length=32", "algorithm.max_tokens=8", "label.max_tokens=200"]
    words += [f"labeler.path={other}", "labeler.batch_size=4", "label.few_shot=0"]
    trained, labeler = (footprint(str(path)) for path in (model, other))
    row = moment(planned(words)["grpo"], "the labeler scores replies")
    parts = row.parts
    token = 2 * 2 * 2 * 8 * 2  # keys and values, layers, heads, their width, bytes
    assert parts["cache"] == 4 * token * (2 * (2048 - 200) + 200 + 256)
    assert parts["weights"] == 4 * trained.weights
    assert parts["other models"] == 4 * trained.weights + 2 * labeler.weights  # the reference is another
    # Where there is less room it answers fewer at once.
    less = planned(words, gpu_with(row.total - 1))["grpo"]
    assert moment(less, "the labeler scores replies").parts["cache"] == 0.5 * parts["cache"]
    served = planned([*words[:-3], "labeler=http", "labeler.url=http://127.0.0.1:1/v1", "labeler.model=any"])["grpo"]
    assert "the labeler scores replies" not in [found.what for found in served.moments]


def test_what_scores_the_replies_of_an_online_training_is_planned(model: Path, tmp_path: Path) -> None:
    other = tiny_model(tmp_path, "llama")
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "Why?"}\n')
    words = [f"model.path={model}", "sft.max_length=32", "reward.max_length=32", "algorithm=ppo"]
    words += [f"prompts.path={tmp_path}/prompts.jsonl", f"labeler.path={other}", "evaluate.judged=0"]
    words += [
        "evaluate.critiqued=0",
        "evaluate.compared=0",
        "evaluate.max_tokens=8",
        "labeler.batch_size=4096",
        "label.method=rationale",
    ]

    def rows(*more: str) -> StagePlan:
        return {row.stage: row for row in plan(compose([*words, *more]), LARGE)}["evaluate"]

    assert rows().role == "labeler"  # it scores the replies that the training kept
    for more in ("evaluate.gold_replies=0", "algorithm.rewards=[{kind: constitution}]"):
        assert rows(more).role == ""
    # One that the training did not use scores as the run's own does.
    scorer = rows(f"evaluate.gold_reward_model={model}", "algorithm.max_prompt_tokens=100000")
    assert scorer.model == str(model)
    assert scorer.peak == moments.scoring(footprint(str(model)), 100_000 + 160)


def test_a_server_and_a_function_need_no_memory_here(model: Path) -> None:
    http = ["labeler=http", "labeler.url=http://127.0.0.1:1/v1", "labeler.model=any"]
    rows = planned([f"model.path={model}", *TINY, *http])
    assert "label" not in rows
    assert "labeler_check" not in rows
    assert rows["evaluate"].role == ""


def test_vllm_takes_its_share_whatever_it_needs_and_gives_it_back_to_another(model: Path, tmp_path: Path) -> None:
    other = tiny_model(tmp_path, "qwen3")
    words = [f"model.path={model}", *TINY, "engine=vllm", f"labeler.path={other}", "until=label"]
    gpu = named_gpu("h100")
    rows = planned(words, gpu)
    for stage in ("labeler_check", "critique_revise", "sample_pairs", "label"):
        assert rows[stage].peak.total == pytest.approx(0.9 * gpu.memory)
        assert rows[stage].peak.parts["other models"] == 0


def test_what_is_too_large_for_vllms_share_is_divided_over_more_gpus() -> None:
    words = ["model=qwen3_4b", "labeler=vllm", "labeler.path=Qwen/Qwen3-32B", "until=labeler_check"]
    small = named_gpu("l40s")
    (row,) = plan(compose(words), small)
    assert not row.fits(small)
    assert row.lower == ("labeler.tensor_parallel=2",)
    (divided,) = plan(compose([*words, *row.lower]), small)
    assert divided.fits(small)
    assert divided.peak.parts["weights"] == 32_762_123_264  # half of two bytes for each


def test_a_model_is_divided_over_as_many_gpus_as_it_needs_and_no_more_than_a_machine_has() -> None:
    words = ["model=qwen3_4b", "labeler=vllm", "labeler.path=Qwen/Qwen3-32B", "until=labeler_check"]
    small = named_gpu("l4")
    (row,) = plan(compose(words), small)
    # 61.0 GiB of weights: half of them do not fit into 0.9 · 22 GiB, and a quarter does.
    assert row.lower == ("labeler.tensor_parallel=4",)
    (divided,) = plan(compose([*words, *row.lower]), small)
    assert divided.fits(small)
    tiny = named_gpu("8")
    (row,) = plan(compose(words), tiny)
    assert row.lower == ()
    assert row.least == pytest.approx((2 * 32_762_123_264 + 2048 * 64 * 2 * 8 * 128 * 2) / 8)
    assert "no setting is small enough: 7.7 GiB are the least" in refusals([row], tiny)[0]


def test_only_stages_up_to_the_last_are_planned(model: Path) -> None:
    assert list(planned([f"model.path={model}", "until=sft"])) == ["labeler_check", "critique_revise", "sft"]


@pytest.mark.parametrize(
    ("words", "stage", "part", "expected"),
    [
        (["sft.batch_size=8"], "sft", 0.7, {"sft.batch_size=4", "sft.gradient_accumulation=2"}),
        (["sft.batch_size=1", "sft.max_length=2048"], "sft", 0.9, {"sft.gradient_checkpointing=true"}),
        (["algorithm.batch_size=6"], "dpo", 0.5, {"algorithm.batch_size=2", "algorithm.gradient_accumulation=3"}),
        (["algorithm=ppo", "algorithm.sampling_batch_size=1024"], "ppo", 0.6, {"algorithm.sampling_batch_size=512"}),
    ],
)
def test_what_does_not_fit_is_lowered_and_then_it_fits(
    deep: Path, words: list[str], stage: str, part: float, expected: set[str]
) -> None:
    whole = [f"model.path={deep}", "algorithm.epochs=1", f"until={stage}", *words]
    needed = planned(whole)[stage].peak.total
    small = gpu_with(part * needed)
    row = planned(whole, small)[stage]
    assert not row.fits(small)
    assert set(row.lower) == expected
    again = planned([*whole, *row.lower], small)[stage]
    assert again.fits(small)
    (line,) = (text for text in refusals([row], small) if text.startswith(stage))
    assert all(word in line for word in row.lower)


def test_what_no_setting_makes_fit_says_what_would(model: Path) -> None:
    small = gpu_with(1000.0)
    rows = plan(compose([f"model.path={model}", *TINY, "until=sft"]), small)
    said = refusals(rows, small)
    assert len(said) == 3
    assert "labeler.path=…" in said[0]
    assert "labeler=http" in said[0]
    assert "model.path=…" in said[2]
    assert "--gpu l4)" in said[2] or "--gpu a10)" in said[2]


def test_a_batch_that_does_not_fit_is_halved_as_the_engine_does(model: Path) -> None:
    words = [f"model.path={model}", "model.batch_size=64", "until=labeler_check"]
    whole = planned(words)["labeler_check"]
    assert "64 at once" in whole.note
    halved = planned(words, gpu_with(0.6 * whole.peak.total))["labeler_check"]
    assert "32 at once, halved from 64" in halved.note


def test_a_gpu_is_known_by_its_name_or_by_its_memory() -> None:
    assert named_gpu("H100").memory == GPUS["h100"] * GIB
    assert named_gpu("NVIDIA RTX 4090").name == "rtx4090"
    assert named_gpu("24").memory == named_gpu("24GB").memory == 0.915 * 24 * GIB
    sold = {"b200": 192, "h200": 141, "h100": 80, "a100": 80, "a100_40gb": 40, "rtx6000ada": 48, "l40s": 48}
    sold |= {"a6000": 48, "a40": 48, "rtx5090": 32, "rtx4090": 24, "rtx3090": 24, "a10": 24, "l4": 24}
    for name, memory in GPUS.items():  # by its memory a card is never said to have more than by its name
        assert named_gpu(str(sold[name])).memory <= memory * GIB
    with pytest.raises(UsageError, match="type --gpu h100"):
        named_gpu("h1000")
    for wrong in ("-3", "nan", "inf", ""):
        with pytest.raises(UsageError, match="or its memory in GB"):
            named_gpu(wrong)
    assert this_machine().usable > 0


def test_the_computers_own_memory_beside_a_gpu_is_that_of_a_model_twice_as_it_is_saved(
    deep: Path, tmp_path: Path
) -> None:
    words = [f"model.path={deep}", *TINY, "until=dpo"]
    rows = planned(words)
    # Embeddings and head of 1,000 · 512; in 16 layers 4 · 512², 3 · 512 · 1,536 and two norms; the last norm.
    weights = 2 * 512_000 + 16 * (1_048_576 + 2_359_296 + 1_024) + 512
    assert (weights, rows["critique_revise"].host) == (55_566_848, 2 * 55_566_848)  # a file in 16 bits, as it is
    assert rows["sft"].host == rows["dpo"].host == 2 * 4 * 55_566_848
    assert rows["reward"].host == 2 * 4 * (55_566_848 - 512_000 + 512)
    assert planned([*words, "sft.lora={rank: 4}"])["sft"].host == 2 * 2 * 55_566_848
    in_32_bits = planned([*words, "model.dtype=float32"])["critique_revise"]
    assert in_32_bits.host == (4 + 2) * 55_566_848  # the file is there as well
    assert {row.host for row in planned(words, Machine("cpu", 1000 * GIB, gpu=False)).values()} == {0.0}
    tied = json.loads((deep / "config.json").read_text()) | {"tie_word_embeddings": True}
    (tmp_path / "config.json").write_text(json.dumps(tied))
    # Of weights that are in the model once, and in the dictionary of its weights twice.
    assert planned([f"model.path={tmp_path}", *TINY, "until=sft"])["sft"].host == 4 * (2 * 55_054_848 + 512_000)


def test_a_comparison_of_two_models_is_to_be_left_out_only_where_it_does_not_fit(model: Path) -> None:
    words = [f"model.path={model}", *TINY, "algorithm.epochs=1", "evaluate.judged=0", "evaluate.critiqued=0"]
    words += ["model.batch_size=1", "evaluate.max_tokens=1024"]
    row = planned(words)["evaluate"]
    assert (row.peak.what, row.lower) == ("comparing two models", ())
    less = planned(words, gpu_with(row.peak.total - 1))["evaluate"]
    assert less.lower == ("evaluate.compared=0",)


# The command


@pytest.mark.parametrize(
    ("gpu", "words"),
    [
        ("h100", ["experiment=bai2022", "mix=schema", "model=llama3_8b"]),
        ("l40s", ["experiment=bai2022", "mix=schema", "model=qwen3_4b"]),
        ("l40s", ["experiment=bai2022", "mix=schema", "model=gemma3_4b"]),
        ("h100", ["experiment=lee2023"]),
        ("h100", ["model=llama3_8b"]),
        ("h100", ["model=qwen3_4b"]),
        ("h100", ["model=gemma3_4b"]),
    ],
)
def test_a_preset_of_a_real_model_fits_on_the_gpu_that_it_is_meant_for(gpu: str, words: list[str]) -> None:
    assert main(["plan", *words, "prompts.path=mine.txt", "--gpu", gpu]) == 0


def test_the_command_prints_a_table_and_ends_well(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", SANDBOX, f"model.path={model}", *TINY, "until=sft", "--gpu", "h100"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("h100: 74.0 GiB for models (79.0 GiB")
    assert [line.split()[0] for line in printed.splitlines()[3:6]] == ["labeler_check", "critique_revise", "sft"]
    assert "16 rows of 32 tokens" in printed
    assert "Beside the GPU, models take up to 0.0 GiB of the computer's own memory (sft)" in printed


def test_a_run_that_cannot_fit_is_refused_with_what_to_type(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["plan", SANDBOX, "model=llama3_8b", "until=sft", "--gpu", "l40s", "--json"]
    assert main(words) == 2
    printed = capsys.readouterr()
    found = json.loads(printed.out)
    assert not found["fits"]
    sft = found["stages"][-1]
    assert (sft["stage"], sft["fits"], sft["model"]) == ("sft", False, "meta-llama/Llama-3.1-8B-Instruct")
    # 16 bytes for each of 8.03 billion weights cannot fit into 44 GiB, so adapters are needed.
    assert sft["total"] > 16 * 8.03e9
    assert "'sft.lora={rank: 64, alpha: 128}'" in sft["lower"]
    assert "sft.lora" in printed.err
    weights = {row["stage"]: row["moments"][0]["weights"] for row in found["stages"]}
    assert weights["critique_revise"] == 2 * 8_030_261_248
    assert sft["host"] == 8 * 8_030_261_248


def test_wrong_words_are_told_as_those_of_a_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "sft.batchsize=3"]) == 2
    assert "sft.batchsize" in capsys.readouterr().err
    assert main(["plan", "--gpu", "abacus"]) == 2
    assert "--gpu abacus" in capsys.readouterr().err
