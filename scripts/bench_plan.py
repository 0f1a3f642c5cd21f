"""What `constitutional plan` says of a stage's memory against what the stage took, on a GPU or else on the CPU.

    python scripts/bench_plan.py --json plan.json           all architectures and stages, with some 50 million weights
    python scripts/bench_plan.py llama qwen3 --only sft ppo --scale 2

Each stage runs in a process of its own, on a model with random weights and rows as long as the settings allow. On a CPU
what is measured is the most memory that the process had, less what it had once all libraries were imported and no model
was loaded; on a GPU it is `torch.cuda.max_memory_allocated`. Nothing is downloaded.

What is planned is the memory in use. On Linux the C library keeps what was freed in blocks of less than 32 MiB, so it
is told to give back blocks from 256 KiB on (MALLOC_MMAP_THRESHOLD_), which takes a fifth more time; with --as-it-is it
is left as it is.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from scripts.bench_ppo_trainer import Sizes, make_tokenizer

VOCABULARY: Final = 16_000
ARCHITECTURES: Final = ("llama", "qwen3", "gemma3")
LENGTH, REPLY = 256, 64
"""Tokens of a row, and those of them that are the reply."""
ADAPTERS: Final = {"rank": 16}


class Case(NamedTuple):
    """A stage with some of its settings."""

    stage: str
    settings: dict[str, Any]
    """Of the training; of a model that answers, how many requests at once."""


ONLINE: Final = {"max_prompt_tokens": LENGTH - REPLY, "max_tokens": REPLY, "sampling_batch_size": 16, "episodes": 32}
CASES: Final = {
    "answering": Case("answering", {"batch_size": 32}),
    "weighing": Case("weighing", {"batch_size": 32}),
    "sft": Case("sft", {"batch_size": 4}),
    "sft_checkpointing": Case("sft", {"batch_size": 4, "gradient_checkpointing": True, "gradient_accumulation": 2}),
    "sft_adapters": Case("sft", {"batch_size": 4, "lora": ADAPTERS}),
    "reward": Case("reward", {"batch_size": 4}),
    "dpo": Case("dpo", {"batch_size": 2}),
    "dpo_adapters": Case("dpo", {"batch_size": 4, "lora": ADAPTERS, "gradient_checkpointing": True}),
    "ppo": Case("ppo", {**ONLINE, "batch_size": 4, "gradient_accumulation": 2}),
    "ppo_adapters": Case("ppo", {**ONLINE, "batch_size": 4, "gradient_accumulation": 2, "lora": ADAPTERS}),
}


def make_folder(architecture: str, scale: float, folder: Path) -> Path:
    """A model with random weights, in 16 bits as models are published, and its tokenizer."""
    import torch
    import transformers

    own: dict[str, Any] = {
        "llama": {"model_type": "llama", "num_key_value_heads": 4},
        "qwen3": {"model_type": "qwen3", "num_key_value_heads": 2, "head_dim": 64, "tie_word_embeddings": True},
        "gemma3": {"model_type": "gemma3_text", "num_key_value_heads": 2, "head_dim": 64, "sliding_window": 128},
    }[architecture]
    kind = own.pop("model_type")
    config = transformers.AutoConfig.for_model(
        kind,
        vocab_size=VOCABULARY,
        hidden_size=round(8 * scale) * 64,
        intermediate_size=round(24 * scale) * 64,
        num_hidden_layers=12,
        num_attention_heads=8,
        max_position_embeddings=4096,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        **own,
    )
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)  # type: ignore[no-untyped-call]
    model.save_pretrained(folder)
    make_tokenizer(Sizes(vocabulary=VOCABULARY)).save_pretrained(folder)
    return folder


# --- Planned ---


def planned(folder: Path, case: Case, *, gpu: bool) -> dict[str, Any]:
    """The moment that needs most, in bytes."""
    from constitutional.runs import moments
    from constitutional.training.footprint import Footprint

    model = Footprint(folder / "config.json")
    if case.stage in ("answering", "weighing"):
        dtype, batch = "bfloat16" if gpu else "float32", case.settings["batch_size"]
        found = [getattr(moments, case.stage)(model, dtype, batch, LENGTH - REPLY, REPLY)]
    elif case.stage == "ppo":
        found = moments.by_ppo(model, settings_of(case), gpu=gpu, members=1, beside=0.0)
    else:
        training = moments.Training(model, settings_of(case), gpu, scores=case.stage == "reward")
        found = moments.by_trl(training, settings_of(case), rows_each=1 if case.stage == "sft" else 2)
    if not gpu:
        found.append(moments.loading(model))
    worst = max(found, key=lambda moment: moment.total)
    return {
        "planned": worst.total,
        "moment": worst.what,
        "parts": {name: size for name, size in worst.parts.items() if size},
        "weights": model.weights,
    }


def settings_of(case: Case) -> Any:  # noqa: ANN401 - one of the stages'
    """The stage's settings, with rows of one length."""
    from constitutional.stages import dpo, ppo, reward, sft

    kind: Any = {"sft": sft, "reward": reward, "dpo": dpo, "ppo": ppo}[case.stage].Settings
    trl = {} if case.stage == "ppo" else {"max_length": LENGTH, "epochs": 1.0, "log_every": 1}
    return kind(**trl, **case.settings)


# --- Measured ---


def rows_of(count: int, columns: Sequence[str]) -> list[dict[str, Any]]:
    """Conversations as long as the settings allow; every second one is a token shorter, so that rows are padded."""
    # The template adds one token before the prompt, and one after the reply.
    prompt = " ".join(f"w{10 + word}" for word in range(LENGTH - REPLY - 1))
    rows = []
    for number in range(count):
        row: dict[str, Any] = {"prompt": [{"role": "user", "content": prompt}], "probability": 0.9, "weight": 1.0}
        for place, column in enumerate(columns):
            words = [f"w{300 + 7 * number + word + place}" for word in range(REPLY - 1 - number % 2)]
            row[column] = [{"role": "assistant", "content": " ".join(words)}]
        rows.append(row)
    return rows


def run_answers(folder: Path, case: Case, _: Path) -> None:
    """Three batches of replies, or of probabilities of two responses to each prompt."""
    from constitutional.base.records import Message
    from constitutional.engines.base import Request, Sampling
    from constitutional.engines.local import LocalEngine, load_model

    engine = LocalEngine(*load_model(folder), batch_size=case.settings["batch_size"])
    count = 3 * engine.batch_size
    choices: tuple[str, ...] = ()
    if case.stage == "weighing":
        choices = tuple(" ".join(f"w{start + word}" for word in range(REPLY)) for start in (20, 200))
    # Prompts that share nothing, as what is shared is read once.
    texts = [
        " ".join(f"w{10 + (number * 37 + word) % 9000}" for word in range(LENGTH - REPLY - 1))
        for number in range(count)
    ]
    requests = [
        Request((Message("user", text),), Sampling(1.0, 1.0, REPLY), seed, choices=choices)
        for seed, text in enumerate(texts)
    ]
    engine.answer(requests, [engine.rows(request) for request in requests])


def run_sft(folder: Path, case: Case, output: Path) -> None:
    """Three steps of SFT, and the model saved."""
    from constitutional.stages import sft
    from constitutional.training.rows import on_disk
    from constitutional.training.trl import load_policy

    settings = settings_of(case)
    model, tokenizer = load_policy(folder, settings)
    rows = on_disk(rows_of(3 * settings.rows_per_step, ["completion"]), output / "rows")
    _fit(sft.sft_trainer(model, tokenizer, rows, settings, output, 0), output)


def run_reward(folder: Path, case: Case, output: Path) -> None:
    """Three steps of a reward model, which is saved, and scores replies."""
    from constitutional.base.records import Message
    from constitutional.engines.local import free_memory
    from constitutional.stages import reward
    from constitutional.training.reward_model import SCORED_TOGETHER, load_reward_model, raw_scores
    from constitutional.training.rows import on_disk

    settings = settings_of(case)
    rows = on_disk(rows_of(3 * settings.rows_per_step, ["chosen", "rejected"]), output / "rows")
    model, tokenizer = load_reward_model(folder, new_head=True)
    _fit(reward.soft_reward_trainer(model, tokenizer, rows, settings, output, 0), output)
    del model
    free_memory()
    turns = [(*row["prompt"], *row["chosen"]) for row in rows_of(SCORED_TOGETHER, ["chosen"])]
    raw_scores(*load_reward_model(output / "model"), [[Message(**turn) for turn in row] for row in turns])


def run_dpo(folder: Path, case: Case, output: Path) -> None:
    """Three steps of DPO, and the model saved."""
    from constitutional.stages import dpo
    from constitutional.training.rows import on_disk
    from constitutional.training.trl import load_policy

    settings = settings_of(case)
    model, tokenizer = load_policy(folder, settings)
    rows = on_disk(rows_of(3 * settings.rows_per_step, ["chosen", "rejected"]), output / "rows")
    _fit(dpo.soft_dpo_trainer(model, tokenizer, rows, settings, output, 0), output)


def _fit(trainer: Any, output: Path) -> None:  # noqa: ANN401
    from constitutional.training.saving import save_model
    from constitutional.training.trl import fit

    fit(trainer, log=output / "log.jsonl", label="bench")
    save_model(trainer, output / "model")


def run_ppo(folder: Path, case: Case, output: Path) -> None:
    """Two phases of PPO, with a reward model, and the policy saved."""
    import torch

    from constitutional.stages import ppo
    from constitutional.training.ppo.settings import PPOConfig
    from constitutional.training.ppo.trainer import PPOTrainer
    from constitutional.training.trl import lora_config

    settings, gpu = settings_of(case), torch.cuda.is_available()
    options = settings.model_dump(by_alias=True, exclude=ppo.NOT_THE_TRAINERS)
    args = PPOConfig(
        output_dir=str(output / "ppo"),
        use_cpu=not gpu,
        bf16=gpu,
        logging_steps=0,
        response_length=settings.max_tokens,
        **options,
    )
    trainer = PPOTrainer(
        folder,
        reward_model=folder.with_name(f"{folder.name}_reward"),
        args=args,
        train_dataset=[{"prompt": row["prompt"]} for row in rows_of(trainer_batch(settings), [])],
        peft_config=lora_config(settings, "CAUSAL_LM"),
    )
    trainer.train()
    trainer.save_model(output / "policy")


def trainer_batch(settings: Any) -> int:  # noqa: ANN401
    """Replies of a phase."""
    return int(settings.rows_per_step * settings.mini_batches)


RUNS: Final[dict[str, Callable[[Path, Case, Path], None]]] = {
    "answering": run_answers,
    "weighing": run_answers,
    "sft": run_sft,
    "reward": run_reward,
    "dpo": run_dpo,
    "ppo": run_ppo,
}


def measure_here(folder: Path, case: Case) -> dict[str, Any]:
    """Run the stage in this process, which has done nothing yet; returns what was measured, in bytes."""
    import peft  # noqa: F401 - what is imported belongs to what stands in memory before
    import torch
    import trl.trainer.dpo_trainer
    import trl.trainer.reward_trainer
    import trl.trainer.sft_trainer  # noqa: F401

    import constitutional.stages.dpo
    import constitutional.training.ppo.trainer
    import constitutional.training.ppo.update  # noqa: F401

    before = resident()
    with tempfile.TemporaryDirectory() as output:
        RUNS[case.stage](folder, case, Path(output))
    if torch.cuda.is_available():
        return {"measured": torch.cuda.max_memory_allocated(), "device": torch.cuda.get_device_name()}
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts KiB
    return {"measured": most - before, "before": before, "device": "CPU"}


def resident() -> int:
    """Bytes that this process has in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def measured(folder: Path, name: str, *, as_it_is: bool = False) -> dict[str, Any]:
    """The same in a new process."""
    environment = os.environ if as_it_is else {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(2**18)}
    command = [sys.executable, "-m", "scripts.bench_plan", "--one", name, "--folder", str(folder)]
    root = Path(__file__).parents[1]
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=root, env=environment)
    if done.returncode:
        sys.exit(f"bench_plan.py: {name} ended with {done.returncode}:\n{done.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def compare(
    architectures: Sequence[str], names: Sequence[str], scale: float, folder: Path, *, as_it_is: bool = False
) -> list[dict[str, Any]]:
    """A row for each architecture and stage, told as soon as it is there."""
    import torch

    rows = []
    for architecture in architectures:
        made = make_folder(architecture, scale, folder / architecture)
        _reward_of(made)
        for name in names:
            row = {
                "architecture": architecture,
                "case": name,
                **planned(made, CASES[name], gpu=torch.cuda.is_available()),
                **measured(made, name, as_it_is=as_it_is),
            }
            row["ratio"] = row["planned"] / row["measured"]
            rows.append(row)
            sizes = f"{row['planned'] / 2**20:8,.0f}{row['measured'] / 2**20:9,.0f}{row['ratio']:7.2f}"
            print(f"{architecture:8}{name:19}{row['weights'] / 1e6:5.0f}M{sizes}  {row['moment']}", flush=True)
    return rows


def _reward_of(folder: Path) -> None:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    reward = folder.with_name(f"{folder.name}_reward")
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1, dtype=torch.float32)
    model.save_pretrained(reward)
    AutoTokenizer.from_pretrained(folder).save_pretrained(reward)


def main(arguments: Sequence[str] | None = None) -> None:
    """Plan, measure, print, write."""
    about, _, explained = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(
        description=about, epilog=explained, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "architectures", nargs="*", metavar="ARCHITECTURE", help=f"of {', '.join(ARCHITECTURES)}; all by default"
    )
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES), metavar="CASE", help=", ".join(CASES))
    parser.add_argument("--scale", type=float, default=1.0, help="of the models' widths; 1 by default")
    parser.add_argument("--as-it-is", action="store_true", help="leave the C library's thresholds alone")
    parser.add_argument("--json", type=Path, help="a file to write everything to")
    parser.add_argument("--one", choices=CASES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.one:
        print(json.dumps(measure_here(options.folder, CASES[options.one])))
        return
    print(f"{'':27}weights  planned measured  ratio  (MiB)")
    with tempfile.TemporaryDirectory() as folder:
        rows = compare(
            options.architectures or ARCHITECTURES, options.only, options.scale, Path(folder), as_it_is=options.as_it_is
        )
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
