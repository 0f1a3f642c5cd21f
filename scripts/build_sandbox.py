"""Rebuild the sandbox model from nothing: tokenizer, corpus, training, evaluation, model card.

    python scripts/build_sandbox.py                     two single-threaded ranks on a CPU, or one GPU; about two hours
    python scripts/build_sandbox.py --out /tmp/model    somewhere other than the package
    python scripts/build_sandbox.py --begin-with constitutional/sandbox/model --recipe '{"steps": 2000, "decay": 0.9}'
                                                        go on from a finished model, with another corpus or recipe

Stopped and started again, it goes on from the last checkpoint in --work. The corpus is never written down: each chunk
of it is made from its seed while the one before is trained on.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from constitutional.base.templates import load_prompts
from constitutional.sandbox import MODEL_FOLDER
from constitutional.sandbox.understand import shipped_engine
from scripts.sandbox_training.corpus import template_texts
from scripts.sandbox_training.evaluate import Evaluation, table
from scripts.sandbox_training.tokenizer import build_tokenizer

FROM_NOTHING = "Made by one run of the recipe from nothing."
CARD = Path(__file__).with_name("sandbox_card.md")


STRETCH = 2000
"""Steps that the ranks train before they are started afresh: the memory of a long-lived one grows without end."""


def train_in_processes(recipe: dict[str, Any], tokenizer: Path, work: Path, start: Path | None) -> None:
    """Run the training ranks to their end; Ctrl-C stops them, and the next call goes on from their checkpoint."""
    import torch

    ranks = 1 if torch.cuda.is_available() else 2
    # Large blocks are kept instead of being given back to the system after every step, which costs a fifth of the time.
    memory = {"MALLOC_MMAP_THRESHOLD_": str(2**32), "MALLOC_TRIM_THRESHOLD_": str(2**34)}
    threads = {} if ranks == 1 else {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(ranks)]
    command += ["-m", "scripts.sandbox_training.train", "--tokenizer", str(tokenizer), "--work", str(work)]
    command += ["--recipe", json.dumps(recipe), *(["--begin-with", str(start)] if start else [])]
    checkpoint = work / "checkpoint.pt"
    done = torch.load(checkpoint, map_location="cpu", weights_only=True)["step"] if checkpoint.exists() else 0
    for stop in (*range(done + STRETCH, recipe["steps"], STRETCH), recipe["steps"]):
        subprocess.run([*command, "--stop-at", str(stop)], check=True, env={**os.environ, **memory, **threads})


def card(training: dict[str, Any], history: Path, scores: str) -> str:
    """The model card: the written part, with what was measured filled in."""
    facts = {
        "recipe": json.dumps(training["recipe"], indent=1),
        "steps": f"{training['step']:,}",
        "tokens": f"{training['tokens'] / 1e6:.1f} million",
        "minutes": f"{training['seconds'] / 60:.0f}",
        "history": history.read_text(encoding="utf-8").strip() if history.exists() else FROM_NOTHING,
        "scores": scores,
    }
    text = CARD.read_text(encoding="utf-8")
    for name, value in facts.items():
        text = text.replace(f"[[{name}]]", value)
    return text


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=MODEL_FOLDER)
    # Whoever changes the corpus in mid-training says so in history.md in that folder; the card repeats it.
    parser.add_argument("--work", type=Path, default=Path("build/sandbox"), help="checkpoints and the training log")
    parser.add_argument(
        "--begin-with", type=Path, help="a model that this wrote: its weights and its tokenizer are begun with"
    )
    parser.add_argument("--recipe", default="{}", help='JSON, such as {"steps": 2000}: what differs from the default')
    parser.add_argument("--scale", type=float, default=1.0, help="of the evaluation; 0.1 asks a tenth as much")
    arguments = parser.parse_args()

    from scripts.sandbox_training.network import Recipe, export
    from scripts.sandbox_training.train import load_checkpoint

    recipe = replace(Recipe(), **json.loads(arguments.recipe))
    work: Path = arguments.work
    tokenizer = work / "tokenizer"
    if not (tokenizer / "tokenizer.json").exists():
        print("1. tokenizer", flush=True)
        if arguments.begin_with:
            tokenizer.mkdir(parents=True, exist_ok=True)
            for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
                shutil.copy(arguments.begin_with / name, tokenizer / name)
        else:
            build_tokenizer(template_texts(), seed=recipe.seed).save_pretrained(tokenizer)
    print("2. training", flush=True)
    train_in_processes(asdict(recipe), tokenizer, work, arguments.begin_with)
    print("3. export", flush=True)
    model, training = load_checkpoint(work / "checkpoint.pt")
    export(model, arguments.out, tokenizer)
    print("4. evaluation", flush=True)
    evaluation = Evaluation(shipped_engine(arguments.out), load_prompts(), scale=arguments.scale, progress=print)
    measures = evaluation.everything()
    (arguments.out / "scores.json").write_text(
        json.dumps([measure.as_dict() for measure in measures], indent=1) + "\n", encoding="utf-8"
    )
    shutil.copy(work / "log.jsonl", arguments.out / "training_log.jsonl")
    print("5. card", flush=True)
    (arguments.out / "README.md").write_text(card(training, work / "history.md", table(measures)), encoding="utf-8")
    print(table(measures))


if __name__ == "__main__":
    main()
