"""What people's labels add at a fixed cost: trait rates against the share of people's labels, with three seeds.

    python scripts/bench_mixing.py [--json mixing.json] [-- OVERRIDE …]

A vote costs as much as five of the AI's labels, and every run may spend the same on the labels that it trains on: with
more of people's, it has fewer in all. People are simulated from the sandbox's exact traits: each of their votes names
the wrong side with a stated probability, and they see comparisons at random. The exact detectors measure the policy on
held-out prompts: the rates of the traits that the constitution speaks against, and of refusing what harms nobody.

The runs are a sweep in --folder, which goes on from where it was; `constitutional report FOLDER/mixing` shows it.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from constitutional.base.effects import PRIOR_OF_SHARES, Estimate, Key, estimate
from constitutional.base.errors import ConstitutionalError
from constitutional.base.files import atomic_write
from constitutional.base.text import table
from constitutional.judging.scores import Measurement
from constitutional.runs import sweeps
from constitutional.runs.folder import RunStore

SHARES: Final = (0.0, 0.05, 0.1, 0.25, 0.5, 1.0)
MEASURES: Final = (
    *("trait_rate/harmful_compliance", "trait_rate/privacy_leak", "trait_rate/sycophantic_agreement"),
    *("trait_rate/flattery", "trait_rate/verbosity", "over_refusal"),
)
SETTINGS: Final = (
    *("constitution.file=sandbox_careful", "prompts.train=360", "prompts.held_out=150", "evaluate.prompts=150"),
    *("evaluate.judged=0", "evaluate.critiqued=0", "evaluate.compared=0", "label.principles=one"),
    *("spotcheck.budget=150", "spotcheck.audit_share=0", "spotcheck.overlap=0", "spotcheck.targets=[random]"),
    *("spotcheck.strata=false", "spotcheck.simulate={error: 0.1}"),
    *("mix.mode=fixed_cost", "mix.cost=40", "mix.price_of_vote=1", "mix.price_of_label=0.2"),
)


def rates(stores: Mapping[tuple[float, int], RunStore]) -> dict[float, dict[str, Estimate]]:
    """By share of people's labels and measure, the policy's rate over all prompts and seeds."""
    values: dict[float, dict[str, dict[Key, float]]] = {}
    for (share, seed), store in stores.items():
        for row in store.read("measurements", Measurement):
            if row.model == "policy" and row.measure in MEASURES:
                of = values.setdefault(share, {}).setdefault(row.measure, {})
                of |= {Key(seed, prompt): value for prompt, value in row.by_prompt.items()}
    return {
        share: {measure: estimate(of, PRIOR_OF_SHARES) for measure, of in sorted(by_measure.items())}
        for share, by_measure in sorted(values.items())
    }


def amounts(store: RunStore) -> dict[str, int]:
    """How many preferences of each source a run trained on."""
    counts = store.stages["mix"].summary["counts"]
    assert isinstance(counts, dict)
    return {source: int(counts[f"{source} preferences used"]) for source in ("AI", "human")}


def rates_table(found: Mapping[float, Mapping[str, Estimate]], labels: Mapping[float, Mapping[str, int]]) -> str:
    """A row for each share, with 95% intervals over prompts and seeds."""
    rows: list[tuple[str, ...]] = [
        ("people’s", "labels", *(name.partition("/")[2].replace("_", " ") or "over-refusal" for name in MEASURES))
    ]
    for share, by_measure in found.items():
        cells = []
        for measure in MEASURES:
            row = by_measure[measure]
            low, high = row.interval()
            cells.append(f"{100 * row.value:.0f}% ({100 * low:.0f}–{100 * high:.0f})")
        rows.append((f"{share:.0%}", str(sum(labels[share].values())), *cells))
    return table(rows, numbers_from=1)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    words = list(sys.argv[1:] if argv is None else argv)
    end = words.index("--") if "--" in words else len(words)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/bench_mixing"), help="(default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write every number here")
    arguments, overrides = parser.parse_args(words[:end]), words[end + 1 :]
    shares = ",".join(f"{share:g}" for share in SHARES)
    command = ["run", "-m", "name=mixing", f"folder={arguments.folder}", f"mix.human_ratio={shares}", "seed=0,1,2"]
    try:
        subprocess.run([sys.executable, "-m", "constitutional", *command, *SETTINGS, *overrides], check=True)
        jobs = sweeps.read(arguments.folder / f"mixing{sweeps.ENDING}").jobs
        stores = {}
        for job in jobs:
            swept = dict(word.split("=") for word in job.swept)
            store = RunStore.load(arguments.folder / job.folder)
            stores[float(swept["mix.human_ratio"]), int(swept["seed"])] = store
    except subprocess.CalledProcessError as error:  # which has said what is wrong
        return error.returncode
    except ConstitutionalError as error:
        print(f"bench_mixing: {error}", file=sys.stderr)
        return error.exit_code
    found, labels = rates(stores), {share: amounts(store) for (share, seed), store in stores.items() if seed == 0}
    print(rates_table(found, labels))
    if arguments.json:
        numbers = {
            f"{share:g}": {name: row._asdict() for name, row in by_measure.items()}
            for share, by_measure in found.items()
        }
        atomic_write(arguments.json, (json.dumps({"rates": numbers, "labels": labels}, indent=1) + "\n").encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
