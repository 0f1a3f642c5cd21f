"""Speed and memory of PPO here, against the PPO trainer of TRL 1.12.0.

    python scripts/bench_ppo.py --trl trl112/bin/python --json ppo.json     both, on a CPU, in turns
    python scripts/bench_ppo.py                                             this project's alone

TRL's environment is made as scripts/golden_trl.py says. Both trainers get the same models (Llamas with random weights:
policy, reference, reward model, critic), prompts, batch, lengths, epochs and mini-batches. Each repetition is a fresh
process, theirs and ours in turns; the first phase is not counted. Tokens are those of the replies up to their ends, a
second is one of a whole phase: drawing, scoring and updating. Where other programs run as well, look at the seconds of
CPU, those of all cores added up. Memory is the most that the process ever had, libraries
and all; what it had with the libraries alone stands beside it.

Replies have response_length tokens, or with reply_tokens=N end after N on average; TRL computes on past the end.

Measured with one thread each (OMP_NUM_THREADS=1) on two CPU cores that had other work, November 2026:

                                       tokens/CPU s: ours, TRL, ratio     peak MiB: ours, TRL, ratio
    the default sizes (two processes each)      90.0   44.2  2.04           1,337   2,742  0.49
    response_length=128 reply_tokens=64        102.7   58.6  1.75           1,456   3,692  0.39
"""

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from scripts.bench_ppo_trainer import Sizes

TRAINERS: Final = ("trl", "ours")


def measure(trainer: str, python: str, sizes: Sizes) -> dict[str, Any]:
    """What one trainer does, in a fresh process."""
    program = Path(__file__).with_name("bench_ppo_trainer.py")
    command = [python, str(program), trainer, json.dumps(asdict(sizes))]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"bench_ppo.py: {trainer} ended with {done.returncode}:\n{done.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def summary(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, dict[str, float]]:
    """For each trainer the medians over repetitions, a repetition's speed being the median of its counted phases."""
    return {
        trainer: {
            **{
                speed: statistics.median(statistics.median(each[speed]) for each in of_trainer)
                for speed in ("tokens_per_s", "tokens_per_cpu_s")
            },
            "peak_mib": statistics.median(each["peak_mib"] for each in of_trainer),
            "before_mib": statistics.median(each["before_mib"] for each in of_trainer),
        }
        for trainer, of_trainer in runs.items()
        if of_trainer
    }


def table(found: Mapping[str, Mapping[str, float]]) -> str:
    """Speed and memory of each trainer; of both, their ratios."""
    lines = [f"{'':12}{'tokens/s':>10}{'tokens/CPU s':>14}{'peak MiB':>10}{'libraries MiB':>15}"]
    lines += [
        f"{trainer:12}{each['tokens_per_s']:10.1f}{each['tokens_per_cpu_s']:14.1f}"
        f"{each['peak_mib']:10.0f}{each['before_mib']:15.0f}"
        for trainer, each in found.items()
    ]
    if len(found) == 2:
        ours, trl = found["ours"], found["trl"]
        speed, cpu, memory = (ours[name] / trl[name] for name in ("tokens_per_s", "tokens_per_cpu_s", "peak_mib"))
        own = (ours["peak_mib"] - ours["before_mib"]) / (trl["peak_mib"] - trl["before_mib"])
        lines.append(f"{'ours / trl':12}{speed:10.2f}{cpu:14.2f}{memory:10.2f}   without: {own:.2f}")
    return "\n".join(lines)


def parts_table(runs: Sequence[Mapping[str, Any]]) -> str:
    """Where the time of this project's phases goes."""
    lines = [f"{'':12}{'s a phase':>10}{'share':>8}{'tokens/s':>10}{'TFLOP/s':>10}"]
    seconds = {
        part: statistics.median(statistics.median(run["parts"][part]) for run in runs) for part in runs[0]["parts"]
    }
    tokens = statistics.median(statistics.fmean(run["tokens"][1:]) for run in runs)
    for part, taken in seconds.items():
        speed = runs[0]["flops"][part] / taken / 1e12
        share = taken / sum(seconds.values())
        lines.append(f"{part:12}{taken:10.2f}{share:8.0%}{tokens / taken:10.0f}{speed:10.3f}")
    return "\n".join(lines)


def changed(sizes: Sizes, overrides: Sequence[str]) -> Sizes:
    """Sizes with `name=value` put in their places."""
    known = asdict(sizes)
    for override in overrides:
        name, _, value = override.partition("=")
        if name not in known or not value:
            sys.exit(f"bench_ppo.py: {override!r}: expected name=value with a name of {', '.join(known)}")
        known[name] = tuple(json.loads(value)) if name == "prompts" else json.loads(value)
    sizes = Sizes(**known)
    if sizes.batch % sizes.rollout_batch or sizes.phases < 2:
        sys.exit("bench_ppo.py: micro_batch · micro_batches must be a multiple of rollout_batch, and phases at least 2")
    return sizes


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, write."""
    about, _, explained = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(
        description=about, epilog=explained, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("overrides", nargs="*", metavar="NAME=VALUE", help="sizes, such as hidden=512 prompts=[8,32]")
    parser.add_argument("--trl", metavar="PYTHON", help="of the environment with TRL 1.12.0; without it, ours alone")
    parser.add_argument("--repeat", type=int, default=3, help="processes of each trainer; 3 by default")
    parser.add_argument("--json", type=Path, help="a file to write everything to")
    options = parser.parse_args(arguments)
    sizes = changed(Sizes(), options.overrides)
    runs: dict[str, list[dict[str, Any]]] = {"trl": [], "ours": []}
    for repetition in range(options.repeat):
        turn = TRAINERS if repetition % 2 == 0 else TRAINERS[::-1]  # whatever else the machine does meets both
        for trainer in turn:
            if trainer == "ours" or options.trl:
                python = sys.executable if trainer == "ours" else options.trl
                runs[trainer].append(measure(trainer, python, sizes))
                print(f"{repetition + 1} of {options.repeat}: {trainer}", file=sys.stderr, flush=True)
    found = summary(runs)
    print(f"{runs['ours'][0]['device']}, {sizes}\n\n{table(found)}\n\n{parts_table(runs['ours'])}")
    if options.json:
        options.json.write_text(json.dumps({"sizes": asdict(sizes), "summary": found, "runs": runs}, indent=2) + "\n")


if __name__ == "__main__":
    main()
