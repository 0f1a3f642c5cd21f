"""What a sweep asks, what it takes over from its other jobs, and whether its answer is right.

    python scripts/bench_sweep.py subsets [-- OVERRIDE …]     all 255 subsets of 8 principles, by what-if
    python scripts/bench_sweep.py leave [-- OVERRIDE …]       each of 6 principles left out, with two seeds

`subsets` labels once with all 8 principles, compares all subsets by what-if, and then labels some of the subsets for
real, and once with a principle in other words: how many calls these need beyond the journal. No draft is revised, so
that the compared responses are the same.

`leave` runs the sweep, prints the calls made and reused, and the wall time. With --alone N it then runs N of the jobs
again, each in a folder of its own, and compares. Last, for each principle: how much more often its trait is shown
where the principle was left out, by the sandbox's exact detectors, beside the trait that changes most.

Both are kept in --folder and go on from there; wall times count only what was made in this start.
"""

import argparse
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from statistics import mean
from typing import Final

import yaml

from constitutional.base.errors import ConstitutionalError
from constitutional.base.progress import clock
from constitutional.base.text import table
from constitutional.runs import sweeps
from constitutional.runs.compose import compose
from constitutional.runs.folder import RunStore
from constitutional.runs.runner import run
from constitutional.runs.what_if import LabelledRun
from constitutional.sandbox.world import TRAITS
from scripts.bench_effect import Estimate, difference
from scripts.bench_preview import trait_rates

PRINCIPLES: Final = {
    "no_help_with_harm": ("Never help anyone commit a crime.", "harmful_compliance"),
    "keep_private_data": ("Do not leak private information.", "privacy_leak"),
    "no_false_agreement": ("Do not agree with false claims.", "sycophantic_agreement"),
    "no_flattery": ("Do not flatter the user.", "flattery"),
    "brief": ("Keep your answers brief.", "verbosity"),
    "no_hedging": ("Do not hedge.", "hedging"),
    "no_overconfidence": ("Do not sound overconfident.", "overconfidence"),
    "no_questions": ("Do not ask clarifying questions.", "clarifying_question"),
}
"""By id, the text and the trait that it speaks against."""


def written(file: Path, count: int) -> Path:
    """A constitution of the first principles, as a file."""
    chosen = list(PRINCIPLES.items())[:count]
    principles = [{"id": name, "text": text, "tags": [trait, "avoid"]} for name, (text, trait) in chosen]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(yaml.safe_dump({"name": f"{count} principles", "principles": principles}, sort_keys=False))
    return file


# --- All subsets ---


def subsets(folder: Path, overrides: Sequence[str]) -> None:
    """Label by all principles, and compare all subsets."""
    constitution = written(folder / "eight.yaml", len(PRINCIPLES))
    common = [f"folder={folder}", f"constitution.file={constitution}", "until=label", *overrides]
    # Without revisions the samples are the same whatever the principles are.
    common += ["critique_revise=none", "label.principles=all"]
    whole = run(compose(["name=eight", *common]))
    calls = whole.stages["label"].calls
    print(f"all {len(PRINCIPLES)} principles: {calls.asked:,} calls of the labeler, {calls.reused:,} reused")

    started_s = time.perf_counter()
    labelled = LabelledRun(whole)
    chosen = [names for size in range(1, len(PRINCIPLES) + 1) for names in combinations(labelled.weights, size)]
    answers = {names: labelled.with_weights({name: labelled.weights[name] for name in names}) for names in chosen}
    print(f"{len(answers)} subsets compared by what-if in {time.perf_counter() - started_s:.1f} s, without a call")
    flips = {names: answer.labels.get("flipped", 0) for names, answer in answers.items()}
    most = max(flips, key=lambda names: flips[names])
    print(f"labels that flip: {mean(flips.values()):.0f} on average, at most {flips[most]} (only {', '.join(most)})")

    for names in (chosen[0], chosen[len(chosen) // 2], chosen[-2]):
        store = run(compose([f"name=only_{len(names)}", *common, f"constitution.only=[{','.join(names)}]"]))
        spent = store.stages["label"].calls
        print(f"only {', '.join(names)}: {spent.asked:,} calls made, {spent.reused:,} reused")
    reworded = run(compose(["name=reworded", *common, "constitution.wordings.brief='Keep it brief.'"]))
    spent = reworded.stages["label"].calls
    print(f"one principle in other words: {spent.asked:,} calls made, {spent.reused:,} reused")


# --- Each left out ---


def leave(folder: Path, overrides: Sequence[str], alone: int) -> None:
    """Run the sweep, some of its jobs alone, and tell which principle did what."""
    constitution = written(folder / "six.yaml", 6)
    common = [f"constitution.file={constitution}", "prompts.train=100", "prompts.held_out=150", *overrides]
    sweep = ["-m", "sweep=principles", "seed=0,1", f"folder={folder}", "name=leave"]
    sweep_s = _timed(["run", *sweep, *common])
    file = folder / f"leave{sweeps.ENDING}"
    lines = sweeps.job_lines(file)
    asked, reused = (sum(getattr(line.calls, name) for line in lines) for name in ("asked", "reused"))
    print(f"{len(lines)} jobs in {clock(sweep_s)}: {asked:,} calls made, {reused:,} reused")

    every = len(lines) // alone if alone else 0
    for line in lines[1 : 1 + every * alone : every] if alone else ():
        elsewhere = folder / "alone"
        shutil.rmtree(elsewhere, ignore_errors=True)
        sweeps_own = ("folder=", "name=", "sweep=", "sweep.", "hydra")
        words = [word for word in (*line.job.overrides, *common) if not word.startswith(sweeps_own)]
        alone_s = _timed(["run", f"folder={elsewhere}", "name=alone", *dict.fromkeys(words)])
        calls = sweeps.calls_of(RunStore.load(elsewhere / "alone"), set())
        print(f"alone, {' '.join(line.job.swept)}: {clock(alone_s)}, {calls.asked:,} calls made; ", end="")
        print(f"{len(lines)} such jobs: {clock(alone_s * len(lines))}, {alone_s * len(lines) / sweep_s:.1f} times")
    print_effects({job.swept: RunStore.load(folder / job.folder) for job in sweeps.read(file).jobs})


def _timed(arguments: Sequence[str]) -> float:
    """Seconds that a command of the project takes."""
    started_s = time.perf_counter()
    subprocess.run([sys.executable, "-m", "constitutional", *arguments], check=True)
    return time.perf_counter() - started_s


def effects_of(pairs: Sequence[tuple[Mapping[str, float], Mapping[str, float]]]) -> Estimate:
    """The mean difference, without a principle minus with it, over the prompts of all seeds."""
    after = {f"{seed} {name}": bool(has) for seed, (without, _) in enumerate(pairs) for name, has in without.items()}
    before = {f"{seed} {name}": bool(has) for seed, (_, whole) in enumerate(pairs) for name, has in whole.items()}
    return difference(after, before)


def print_effects(stores: Mapping[tuple[str, ...], RunStore]) -> None:
    """A row a principle: the effect on its own trait, and on the trait that changes most in that direction."""
    measured = {swept: trait_rates(store) for swept, store in stores.items()}
    rows = [("left out", "its trait", "points", "changed most", "points", "")]
    right = 0
    for name, (_, own) in list(PRINCIPLES.items())[:6]:
        by_trait = {}
        for trait in TRAITS:
            pairs = list(_pairs(measured, name, trait))
            if sum(len(without) for without, _ in pairs) >= 2:
                by_trait[trait] = effects_of(pairs)
        most = max(by_trait, key=lambda trait: by_trait[trait].value)
        right += most == own
        rows.append((name, own, _points(by_trait[own]), most, _points(by_trait[most]), "" if most == own else "other"))
    print(f"\n{table(rows, numbers_from=1)}\n\nthe diagonal is largest for {right} of 6 principles")


def _pairs(
    measured: Mapping[tuple[str, ...], Mapping[str, Mapping[str, float]]], name: str, trait: str
) -> Iterator[tuple[Mapping[str, float], Mapping[str, float]]]:
    for swept, traits in measured.items():
        if swept[-1] == f"constitution.without=[{name}]":
            yield traits[trait], measured[(*swept[:-1], "whole")][trait]


def _points(effect: Estimate) -> str:
    return f"{100 * effect.value:+.0f} ({100 * effect.low:+.0f} to {100 * effect.high:+.0f})"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    words = list(sys.argv[1:] if argv is None else argv)
    end = words.index("--") if "--" in words else len(words)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("subsets", "leave"))
    parser.add_argument("--folder", type=Path, default=Path("runs/bench_sweep"), help="(default: %(default)s)")
    parser.add_argument("--alone", type=int, default=0, metavar="N", help="jobs to run by themselves as well")
    arguments, overrides = parser.parse_args(words[:end]), words[end + 1 :]
    try:
        if arguments.what == "subsets":
            subsets(arguments.folder, overrides)
        else:
            leave(arguments.folder, overrides, arguments.alone)
    except ConstitutionalError as error:
        print(f"bench_sweep: {error}", file=sys.stderr)
        return error.exit_code
    except subprocess.CalledProcessError as error:  # which has said what is wrong
        return error.returncode
    return 0


if __name__ == "__main__":
    sys.exit(main())
