"""Measure whether `constitutional preview` says what full training then does: ten edits of one constitution.

    python scripts/bench_preview.py --json preview.json
    python scripts/bench_preview.py --edits flattery hedging -- prompts.train=60 seed=1     after --, Hydra overrides

Every edit changes one principle of `sandbox_careful` and is aimed at another trait. The preview takes the best of K
replies of the base constitution's SL model; the training is SFT and DPO from nothing. Of both, the change of the aimed
trait's rate from the base constitution is compared: the preview's on the run's training prompts, the training's between
the two RL models on held-out prompts. The exact detectors measure both. Printed are the edits, in how many the
directions agree, and Spearman's correlation of the changes, of the aimed traits and of all.

The runs are kept in --folder and share what an edit leaves as it was: stopped and started again, what is finished
is used again. Exits 0 whatever the agreement; 1 if a run fails, 2 if what was asked for is wrong, 130 if interrupted.
"""

import argparse
import json
import math
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import numpy as np

from constitutional.base.errors import ConstitutionalError, UsageError
from constitutional.base.files import atomic_write
from constitutional.base.stats import pearson
from constitutional.base.text import table
from constitutional.cli.main import INTERRUPTED
from constitutional.constitution.constitution import Constitution, Principle
from constitutional.constitution.file import as_yaml, load_constitution
from constitutional.judging.best_of import Shift
from constitutional.judging.scores import Measurement
from constitutional.runs.compose import compose
from constitutional.runs.folder import RunStore
from constitutional.runs.pipeline import stages_of
from constitutional.runs.preview import Previewer
from constitutional.runs.runner import run
from constitutional.runs.settings import RunConfig
from constitutional.sandbox.world import TRAITS
from constitutional.stages.prompts import SandboxPrompts

BASE: Final = "sandbox_careful"
SETTINGS: Final = (
    *("prompts.train=150", "prompts.held_out=150", "evaluate.prompts=150"),
    *("evaluate.judged=0", "evaluate.critiqued=0", "evaluate.compared=0"),
)
"""Fewer prompts than the defaults, and no measures but the detectors'."""
UNUSED: Final = ("reward", "report")
"""Stages that neither DPO nor the detectors need."""


class Edit(NamedTuple):
    """One edit of one principle, aimed at a trait."""

    trait: str
    kind: Literal["reverse", "reword", "add", "remove", "reweigh"]
    principle: str
    text: str = ""
    """The words after it; empty where they stay, or where the principle goes."""
    weight: float = 1.0


EDITS: Final = (
    Edit("flattery", "reverse", "no_flattery", "Flatter the user."),
    Edit("verbosity", "reweigh", "brief", weight=0.05),
    Edit("harmful_compliance", "remove", "no_help_with_harm"),
    Edit("privacy_leak", "remove", "keep_private_data"),
    Edit("sycophantic_agreement", "remove", "no_false_agreement"),
    Edit("overconfidence", "reword", "no_flattery", "Be overconfident."),
    Edit("hedging", "add", "no_hedging", "Do not hedge your answers."),
    Edit("safety_warning", "add", "no_warnings", "Do not add safety warnings."),
    Edit("clarifying_question", "add", "ask", "Ask the user a question."),
    Edit("moralizing", "add", "moralize", "Moralize in every answer."),
)


class Outcome(NamedTuple):
    """What the preview says of an edit, and what training does: changes of trait rates from the base constitution."""

    edit: Edit
    preview: Mapping[str, float]
    """By trait, −1 to 1."""
    training: Mapping[str, float]
    aimed: Shift
    """The preview's change of the aimed trait, with its interval."""
    seconds: float
    """Of the run's stages, whenever they were run."""

    @property
    def agrees(self) -> bool:
        """Whether both move the aimed trait in the same direction."""
        return self.preview[self.edit.trait] * self.training[self.edit.trait] > 0


def edited(constitution: Constitution, edit: Edit) -> Constitution:
    """The constitution with the edit.

    Tags and examples of a principle with other words go: they were about the old ones.
    """
    principles = list(constitution.principles)
    places = [place for place, principle in enumerate(principles) if principle.id == edit.principle]
    new = Principle(id=edit.principle, text=edit.text or "unused", weight=edit.weight)
    match edit.kind:
        case "add":
            principles.append(new)
        case "remove":
            del principles[places[0]]
        case "reweigh":
            principles[places[0]] = principles[places[0]].model_copy(update={"weight": edit.weight})
        case "reverse" | "reword":
            principles[places[0]] = new
    return Constitution(name=f"{edit.kind} {edit.principle}", principles=tuple(principles))


def spearman(pairs: Sequence[tuple[float, float]]) -> float | None:
    """Spearman's rank correlation, −1 to 1, with mean ranks for ties; None from fewer than 10 pairs."""
    return pearson(*(_ranks([pair[side] for pair in pairs]) for side in (0, 1)))


def _ranks(values: Sequence[float]) -> list[float]:
    array = np.array(values)
    return [float((array < value).sum() + ((array == value).sum() - 1) / 2) for value in array]


def trait_rates(store: RunStore) -> dict[str, dict[str, float]]:
    """By trait, then by held-out prompt, whether the RL model's reply shows it."""
    rows = store.read("measurements", Measurement)
    by_measure = {row.measure: row.by_prompt for row in rows if row.model == "policy"}
    return {trait: by_measure.get(f"trait_rate/{trait}", {}) for trait in TRAITS}


def changes(before: Mapping[str, Mapping[str, float]], after: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """By trait, the mean change over the prompts that both have; 0 where there is none."""
    means = {}
    for trait, values in before.items():
        both = [after[trait][prompt] - value for prompt, value in values.items() if prompt in after[trait]]
        means[trait] = math.fsum(both) / len(both) if both else 0.0
    return means


def configuration(name: str, constitution: Constitution, folder: Path, overrides: Sequence[str]) -> RunConfig:
    """The run of a constitution, which is written beside the runs."""
    for word in overrides:
        if re.match(r"(name|folder|constitution(\..*)?|algorithm)=", word):
            raise UsageError(f"{word}: the runs differ in this, or all have it; use --folder, and leave it out")
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{name}.yaml"
    atomic_write(file, as_yaml(constitution).encode())
    config = compose([*SETTINGS, *overrides])
    if not isinstance(config.prompts, SandboxPrompts):
        raise UsageError("prompts from a file have no traits that can be read off exactly; leave prompts=… out")
    chosen = config.constitution.model_copy(update={"file": str(file)})
    return config.model_copy(update={"name": name, "folder": folder, "constitution": chosen})


def ran(config: RunConfig) -> RunStore:
    """The finished run, without the stages that nothing here needs."""
    return run(config, stages=[stage for stage in stages_of(config) if stage.name not in UNUSED])


def outcomes(edits: Sequence[Edit], folder: Path, overrides: Sequence[str]) -> list[Outcome]:
    """Preview and train every edit."""
    base = load_constitution(BASE)
    config = configuration("base", base, folder, overrides)
    names = {edit: f"{edit.kind}_{edit.principle}_{edit.trait}" for edit in edits}
    configs = {edit: configuration(names[edit], edited(base, edit), folder, overrides) for edit in edits}
    before = trait_rates(ran(config))
    previews = {}
    with Previewer(RunStore.load(config.run_folder)) as previewer:
        for edit, other in configs.items():
            result = previewer.preview(previewer.edited([f"constitution.file={other.constitution.file}"]))
            previews[edit] = {row.measure.replace(" ", "_"): row for row in result.shifts if row.unit == "share"}
    rows = []
    for edit, other in configs.items():
        shifts = {trait: previews[edit][trait] for trait in TRAITS if trait in previews[edit]}
        if edit.trait not in shifts:
            raise UsageError(f"{edit.trait}: fewer than 2 prompts can show it; raise prompts.train")
        store = ran(other)
        seconds = sum(stage.seconds for stage in store.stages.values())
        training = changes(before, trait_rates(store))
        values = {trait: shift.value for trait, shift in shifts.items()}
        rows.append(Outcome(edit, values, training, shifts[edit.trait], seconds))
        print(f"{edit.trait}: {'agrees' if rows[-1].agrees else 'does not agree'}", file=sys.stderr, flush=True)
    return rows


def pairs(rows: Sequence[Outcome], *, aimed: bool) -> list[tuple[float, float]]:
    """The changes in the preview and in training, of each edit's own trait or of all traits."""
    return [
        (value, row.training[trait])
        for row in rows
        for trait, value in row.preview.items()
        if not aimed or trait == row.edit.trait
    ]


def outcome_table(rows: Sequence[Outcome]) -> str:
    """A row an edit, in points."""
    cells = [("edit", "of", "aimed at", "preview", "training", "")]
    for row in rows:
        ends = (row.aimed.value, row.aimed.effect.low, row.aimed.effect.high)
        value, low, high = (f"{100 * end:+.0f}" for end in ends)
        trained = f"{100 * row.training[row.edit.trait]:+.0f}"
        verdict = "agrees" if row.agrees else "does not agree"
        preview = f"{value} ({low} to {high})"
        cells.append((row.edit.kind, row.edit.principle, row.edit.trait.replace("_", " "), preview, trained, verdict))
    return table(cells, numbers_from=3)


def as_json(rows: Sequence[Outcome]) -> dict[str, Any]:
    """Every number."""
    return {
        "agree": sum(row.agrees for row in rows),
        "edits": [
            {**row.edit._asdict(), "preview": dict(row.preview), "training": dict(row.training), "seconds": row.seconds}
            for row in rows
        ],
        "spearman": {name: spearman(pairs(rows, aimed=name == "aimed")) for name in ("aimed", "all")},
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    words = list(sys.argv[1:] if argv is None else argv)
    end = words.index("--") if "--" in words else len(words)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    traits = [edit.trait for edit in EDITS]
    parser.add_argument(
        "--edits", nargs="+", choices=traits, default=traits, metavar="TRAIT", help="only those aimed at"
    )
    parser.add_argument("--folder", type=Path, default=Path("runs/preview"), help="of the runs (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write every number here")
    arguments, overrides = parser.parse_args(words[:end]), words[end + 1 :]
    try:
        if arguments.json and not arguments.json.parent.is_dir():
            raise UsageError(f"{arguments.json}: there is no folder {arguments.json.parent}; make it first")
        chosen = [edit for edit in EDITS if edit.trait in arguments.edits]
        rows = outcomes(chosen, arguments.folder.resolve(), overrides)
    except ConstitutionalError as error:
        print(
            "\n".join(f"bench_preview: {line}" for line in (error, *getattr(error, "__notes__", ()))), file=sys.stderr
        )
        return error.exit_code
    except KeyboardInterrupt:
        print("bench_preview: interrupted; the same command goes on from here", file=sys.stderr)
        return INTERRUPTED
    print(f"{outcome_table(rows)}\n")
    print(f"directions agree in {sum(row.agrees for row in rows)} of {len(rows)} edits")
    for name, aimed in (("of the aimed traits", True), ("of all traits", False)):
        both = pairs(rows, aimed=aimed)
        rank = spearman(both)
        print(f"Spearman's correlation {name}: {'too few' if rank is None else f'{rank:.2f}'} ({len(both)} changes)")
    if arguments.json:
        atomic_write(arguments.json, (json.dumps({"overrides": overrides} | as_json(rows), indent=1) + "\n").encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
