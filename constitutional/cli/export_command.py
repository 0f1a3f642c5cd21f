"""The command `export`: a run's preferences in the formats of other tools, and its models with their cards."""

import argparse
import json
import shlex
import shutil
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from constitutional.base.errors import InputError, RunError, UsageError
from constitutional.base.files import CARD, atomic_write, files_in, writing
from constitutional.base.jsonl import BadTextError, parse
from constitutional.base.progress import counted
from constitutional.base.shards import read_artifact
from constitutional.base.text import printable

if TYPE_CHECKING:
    from constitutional.base.records import Preference, Verdict
    from constitutional.constitution.constitution import Constitution
    from constitutional.data.export.commands import Framework
    from constitutional.data.export.formats import Chosen
    from constitutional.data.export.rows import Row
    from constitutional.runs.folder import RunStore

NAMES: Final = (
    *("trl", "parquet", "openrlhf", "verl", "nemo-rl", "llamafactory", "axolotl", "openai"),
    *("annotated_pairs", "label_studio", "argilla", "model"),
)
ROW_ENDINGS: Final = (".json", ".jsonl", ".parquet", ".csv", ".gz", ".zst")
"""Of files of rows; what ends otherwise is a folder, where a format writes either."""
SPLITS: Final = ("train", "held_out", "all")
_FOLDERS: Final = ("parquet", "model")
"""Formats that are folders."""

_ABOUT = """Write a run's preferences for other tools, or a model of the run with its card.

  constitutional export RUN --to trl                  # RUN-trl.jsonl, for TRL's trainers
  constitutional export RUN --to parquet -o FOLDER    # with a card, as the Hugging Face hub wants it
  constitutional export RUN --to model -o FOLDER      # the policy with its card
  constitutional export RUN --to verl -o FOLDER       # a training by PPO or GRPO; so --to openrlhf and nemo-rl

formats
  trl            explicit prompt, conversational; JSON lines or .parquet
  parquet        a folder of Parquet files, one for each split, with a dataset card
  openrlhf verl nemo-rl llamafactory axolotl     for these trainers; to the first three, with -o FOLDER, the
                 training is handed over: prompts, models, ready commands (constitutional adopt brings the policy back)
  openai         preference fine-tuning
  annotated_pairs     principles, the labeler and people as annotators, for Feedback Forensics
  label_studio argilla     the labels as predictions and suggestions (blind tasks: constitutional votes export)
  model          a model's folder

What a format has no place for is said with counts. A run that is still going can be exported."""


class NothingToWriteError(RunError):
    """No preference of the split that is asked for can be written in the format."""


class Target(NamedTuple):
    """What is to be written where."""

    run: "RunStore"
    constitution: "Constitution"
    name: str
    """Of the format."""
    path: Path
    split: str
    licence: str | None


def add_parser(commands: Any) -> None:  # noqa: ANN401 - argparse keeps the type of its sub-parsers to itself
    """Add the command to those of `constitutional`."""
    parser = commands.add_parser(
        "export",
        help="a run's preferences for TRL, OpenRLHF, verl, NeMo-RL, LlamaFactory, axolotl, OpenAI, …; a model's card",
        description=_ABOUT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path, metavar="RUN", help="such as runs/first")
    parser.add_argument("--to", required=True, choices=NAMES, metavar="FORMAT", help="one of those above")
    parser.add_argument(
        "-o", "--out", type=Path, metavar="PATH", help="a file, or a folder (default: RUN-FORMAT.jsonl and the like)"
    )
    parser.add_argument(
        "--split", choices=SPLITS, help="which preferences (default: train; all for a folder and for annotated_pairs)"
    )
    parser.add_argument("--model", choices=("policy", "sft_model", "reward_model"), help="(default: policy)")
    parser.add_argument("--license", metavar="ID", help="for the card, as the hub spells it, such as cc-by-4.0")
    parser.add_argument("--force", action="store_true", help="replace a file that is there")
    parser.set_defaults(run=_export)


def _export(arguments: argparse.Namespace) -> None:
    from constitutional.constitution.file import load_constitution
    from constitutional.data.export.commands import FRAMEWORKS
    from constitutional.runs.folder import USED, RunStore
    from constitutional.runs.status import outdated

    form: str = arguments.to
    if arguments.model and form != "model":
        raise UsageError("--model goes with --to model alone")
    if arguments.license and form not in _FOLDERS:
        raise UsageError("--license is for a card; it goes with --to parquet or --to model")
    if arguments.split and form == "model":
        raise UsageError("--split is of preferences; --to model takes none")
    if arguments.split not in (None, "all") and form == "annotated_pairs":
        raise UsageError(
            f"--split {arguments.split}: --to annotated_pairs writes every comparison, with those of held-out prompts, "
            "as it is for looking at judges and not for training; leave it out"
        )
    store = RunStore.load(arguments.folder)
    constitution = load_constitution(store.folder / USED)
    path = arguments.out or Path(f"{store.folder.resolve().name}-{form}{_endings(form)[0]}")
    if form in FRAMEWORKS and path.suffix not in ROW_ENDINGS:
        _hand_over(store, constitution, form, path, arguments)
        return
    split = arguments.split or ("all" if form == "parquet" else "train")
    target = Target(store, constitution, form, path, split, arguments.license)
    _check(target, force=arguments.force)
    if old := outdated(store):
        print(f"warning: {old}", file=sys.stderr)
    if form == "model":
        _write_model(target, arguments.model or "policy")
    elif form == "annotated_pairs":
        _write_annotated_pairs(target)
    elif form == "parquet":
        _write_folder(target)
    else:
        _write_rows(target, force=arguments.force)


def _hand_over(
    store: "RunStore", constitution: "Constitution", form: "Framework", folder: Path, arguments: argparse.Namespace
) -> None:
    """A folder with all that a training elsewhere needs."""
    from constitutional.runs.handover import UNFINISHED, hand_over
    from constitutional.runs.status import outdated

    if arguments.split:
        raise UsageError(
            f"--split {arguments.split}: a folder holds what is trained on; leave it out, or type -o FILE"
            f"{_endings(form)[0]} for a file of preferences"
        )
    if folder.is_file():
        raise UsageError(f"{folder}: is a file, and a training is handed over as a folder; type another -o")
    begun = (folder / UNFINISHED).exists()  # by an export that was stopped
    if folder.is_dir() and any(folder.iterdir()) and not (arguments.force or begun):
        raise UsageError(f"{folder}: is there already; type --force to replace what is in it, or another -o")
    if old := outdated(store):
        print(f"warning: {old}", file=sys.stderr)
    for line in hand_over(store, constitution, form, folder):
        print(line, flush=True)
    print(f"Next: {shlex.quote(printable(str(folder / CARD)))} says what to type, and how the policy comes back")


def _endings(form: str) -> tuple[str, ...]:
    from constitutional.data.export.formats import FORMATS

    return FORMATS[form].endings if form in FORMATS else (("",) if form in _FOLDERS else (".json",))


def _check(target: Target, *, force: bool) -> None:
    """Refuse a path of another kind, or one that is there, before anything is read."""
    path, endings = target.path, _endings(target.name)
    if target.name in _FOLDERS:
        if path.is_file():
            raise UsageError(f"{path}: is a file; --to {target.name} writes a folder, so type another -o")
        taken = path.is_dir() and any(path.iterdir())
    else:
        if path.is_dir() or path.suffix not in endings:
            shown = "is a folder" if path.is_dir() else f"ends in '{path.suffix}'"
            name = path / f"{target.name}{endings[0]}" if path.is_dir() else path.with_suffix(endings[0])
            raise UsageError(f"{path}: {shown}; --to {target.name} writes {' or '.join(endings)}: type -o {name}")
        taken = path.exists()
    if taken and not force:
        raise UsageError(f"{path}: is there already; type --force to replace it, or another -o")


def _preferences(target: Target) -> "Iterator[Preference]":
    """The run's preferences, one by one.

    Raises:
        RunError: there is none yet, with the stage that makes them.
    """
    from constitutional.base.records import Preference

    store = target.run
    if "mix" not in store.stages:
        done = f"the last stage that is done is '{list(store.stages)[-1]}'" if store.stages else "no stage is done"
        raise RunError(
            f"{store.folder}: has no preferences yet: the stage 'mix' makes them, and {done}; type the run's command "
            "with until=mix, and export again"
        )
    if not store.artifacts()["preferences"].rows:
        raise RunError(f"{store.folder}: its stage 'mix' made no preference; constitutional report says why")
    return read_artifact(store.artifact("preferences"), Preference)


def _write_rows(target: Target, *, force: bool) -> None:
    """One file of preferences, and what its reader wants beside it."""
    from constitutional.data.export import files
    from constitutional.data.export.formats import FORMATS, Chosen, in_table

    form, path = FORMATS[target.name], target.path
    form = in_table(form) if path.suffix == ".parquet" else form
    chosen = Chosen(_preferences(target), form, None if target.split == "all" else target.split)
    beside = _beside(target)
    taken = [file for file in beside if file.exists() and file.name != "dataset_info.json"]
    if taken and not force:
        raise UsageError(f"{taken[0]}: is there already; type --force to replace it, or another -o")
    rows = _rows(target, chosen)
    if path.suffix == ".parquet":
        files.write_parquet(path, rows, {"constitution": target.constitution.digest})
    elif path.suffix == ".json":
        files.write_list(path, rows)
    else:
        files.write_lines(path, rows)
    for file, content in beside.items():
        atomic_write(file, content)
    _say(target, [path, *beside], chosen)
    print(f"Next: {_advice(target)}")


def _rows(target: Target, chosen: "Chosen") -> "Iterator[Row]":
    """The rows of preferences, one by one.

    Raises:
        NothingToWriteError: there was none, so that no file is written.
    """
    from constitutional.data.export.formats import FORMATS

    for preference in chosen:
        yield FORMATS[target.name].row(preference, target.constitution.digest)
    if not chosen.written:
        notes = "".join(f"; {note}" for note in chosen.notes())
        raise NothingToWriteError(
            f"{target.run.folder}: no preference of the split {target.split} can be written{notes}"
        )


def _write_folder(target: Target) -> None:
    """A folder with a Parquet file for each split, and the card that describes them."""
    from constitutional.data.export import files
    from constitutional.data.export.formats import FORMATS, Chosen, in_table
    from constitutional.runs.cards import dataset_card
    from constitutional.runs.compose import load

    form, folder, counts = in_table(FORMATS[target.name]), target.path, dict[str, Mapping[str, int]]()
    with writing(folder / "data"):
        (folder / "data").mkdir(parents=True, exist_ok=True)
    for split in ("train", "held_out") if target.split == "all" else (target.split,):
        chosen = Chosen(_preferences(target), form, split)
        file = folder / "data" / f"{split}.parquet"
        file.unlink(missing_ok=True)  # of an earlier export, which may have had a split that this one has not
        with suppress(NothingToWriteError) if target.split == "all" else nullcontext():
            files.write_parquet(file, _rows(target, chosen), {"constitution": target.constitution.digest})
            counts[split] = chosen.written
            _say(target, [file], chosen)
    card = dataset_card(target.run, load(target.run.folder), target.constitution, counts, target.licence)
    atomic_write(folder / CARD, card.encode())
    licence = "" if target.licence else ", which says that the licence is unknown (--license ID says more)"
    print(f"{printable(str(folder / CARD))}: the card{licence}")
    print(f"Next: {_advice(target)}")


def _write_annotated_pairs(target: Target) -> None:
    """All comparisons that were judged or voted on, and the pairs from elsewhere."""
    from constitutional.base.records import Comparison, Judgement
    from constitutional.data.export.pairs import annotated_pairs
    from constitutional.judging.labelling import probabilities_of

    preferences = list(_preferences(target))
    comparisons = target.run.read("comparisons", Comparison)
    judgements = target.run.read("judgements", Judgement)
    verdicts = _verdicts(target.run, {row.id for row in comparisons})
    labels, words = probabilities_of(judgements), target.constitution.written("comparison")
    content = annotated_pairs(comparisons, judgements, labels, verdicts, preferences, words)
    content["metadata"] |= {"constitution": target.constitution.name, "constitution_digest": target.constitution.digest}
    atomic_write(target.path, (json.dumps(content, ensure_ascii=False, indent=1) + "\n").encode())
    written = {row["id"] for row in content["comparisons"]}
    splits = {row.id: row.prompt.split for row in comparisons} | {row.comparison: row.split for row in preferences}
    held_out = sum(splits.get(name) == "held_out" for name in written)
    kinds = Counter(annotator["type"] for annotator in content["annotators"].values())
    models = kinds["unknown"] - 1  # the labeler's own is of that type, too
    judges = f"the labeler, {counted(models, 'model')} of files" if models else "the labeler"
    people = counted(kinds["human"], "human annotator")
    annotators = f"{counted(kinds['principle'], 'principle')}, {judges} and {people}"
    print(f"{printable(str(target.path))}: {counted(len(content['comparisons']), 'comparison')} by {annotators}")
    if held_out:
        print(f"  {counted(held_out, 'comparison')} of held-out prompts: written, too, so train on none of this file")
    print("  roles of a conversation: written as one text, with the speakers' names before their turns")
    print(f"Next: {_advice(target)}")


def _verdicts(store: "RunStore", comparisons: set[str]) -> "list[Verdict]":
    """People's votes on the run's comparisons; answers to test items are none."""
    from constitutional.base.records import Verdict
    from constitutional.data.verdicts import read_verdicts
    from constitutional.runs.compose import load

    verdicts = store.read("verdicts", Verdict) if "verdicts" in store.artifacts() else []
    file = load(store.folder).mix.verdicts
    verdicts += read_verdicts(file, comparisons) if file is not None else []
    return [verdict for verdict in verdicts if verdict.gold is None]


def _write_model(target: Target, model: str) -> None:
    """A model's files and its card."""
    from constitutional.runs.cards import is_evaluated, model_card
    from constitutional.runs.compose import load

    store = target.run
    if model not in store.artifacts():
        raise RunError(
            f"{store.folder}: has no {model} yet; the stages that are done are {', '.join(store.stages) or 'none'}; "
            "type the run's command again, and export again"
        )
    source = store.artifact(model)
    others = (file for file in files_in(target.path) if not (source / file.relative_to(target.path)).is_file())
    if other := next(others, None):
        raise UsageError(f"{other}: is no file of this model, and may be taken for one; type another -o")
    card = model_card(store, load(store.folder), target.constitution, model, target.licence)
    with writing(target.path):
        shutil.copytree(source, target.path, dirs_exist_ok=True)
    atomic_write(target.path / CARD, card.encode())
    print(f"{printable(str(target.path))}: the {model} of {printable(str(store.folder))}, with its card")
    if not is_evaluated(store):
        print("The evaluation is not done, so the card has no figures yet; export again once it is.")


def _beside(target: Target) -> dict[Path, bytes]:
    """What a format's reader wants beside the file: settings, or a configuration."""
    from constitutional.data.votes import argilla, label_studio

    path = target.path
    if target.name == "llamafactory":
        return {path.with_name("dataset_info.json"): _dataset_info(path)}
    if target.name == "axolotl":
        return {path.with_suffix(".config.yaml"): _axolotl_config(target).encode()}
    if target.name == "label_studio":
        return {path.with_suffix(".config.xml"): label_studio.config().encode()}
    if target.name == "argilla":
        return {path.with_suffix(".settings.json"): (json.dumps(argilla.settings(), indent=1) + "\n").encode()}
    return {}


def _dataset_info(path: Path) -> bytes:
    """LlamaFactory's list of data sets with an entry for the file; other entries of a list that is there stay.

    Raises:
        InputError: the list that is there is none.
    """
    info = path.with_name("dataset_info.json")
    entries: Any = {}
    if info.exists():
        expected = "expected LlamaFactory's list of data sets; repair it, or type another -o"
        try:
            entries = parse(info.read_text(encoding="utf-8"))
        except (BadTextError, UnicodeDecodeError) as error:
            raise InputError(info, f"{error}; {expected}") from error
        if not isinstance(entries, dict):
            raise InputError(info, f"is {type(entries).__name__}; {expected}")
    columns = {"messages": "conversations", "chosen": "chosen", "rejected": "rejected"}
    entry = {"file_name": path.name, "ranking": True, "formatting": "sharegpt", "columns": columns}
    return (json.dumps({**entries, path.stem: entry}, ensure_ascii=False, indent=2) + "\n").encode()


def _axolotl_config(target: Target) -> str:
    """The part of axolotl's configuration that reads the file."""
    import yaml

    columns = {"field_messages": "messages", "field_chosen": "chosen", "field_rejected": "rejected"}
    data = {"path": str(target.path), "ds_type": "json", "split": "train", "type": "chat_template.default", **columns}
    config = {"rl": "dpo", "chat_template": "tokenizer_default", "datasets": [data]}
    name = " ".join(target.constitution.name.split())
    head = f"# Preferences by the constitution {name}, SHA-256 {target.constitution.digest}.\n"
    return head + yaml.safe_dump(config, sort_keys=False, allow_unicode=True)


def _say(target: Target, paths: list[Path], chosen: "Chosen") -> None:
    """What was written, and what was not."""
    people = chosen.written["human"]
    share = f", {people:,} of them by people" if people else ""
    files = ", ".join(printable(str(path)) for path in paths)
    print(f"{files}: {counted(chosen.written.total(), 'preference')}{share}")
    for note in chosen.notes():
        print(f"  {note}")
    if (others := chosen.of_other_split) and target.name != "parquet":
        other = "held_out" if target.split == "train" else "train"
        print(f"  {counted(others, 'preference')} of the split {other}: left out; --split {other} writes them")
    if target.name == "openai":
        print("  the file has no place for the constitution's digest, the source of a label or its comparison")


def _advice(target: Target) -> str:
    """What to type next."""
    shown = shlex.quote(printable(str(target.path)))
    folder = shlex.quote(printable(str(target.path.parent)))
    name = printable(str(target.path))
    kind = "parquet" if target.path.suffix == ".parquet" else "json"
    advice = {
        "trl": f"load_dataset({kind!r}, data_files={name!r})",
        "parquet": f"load_dataset({name!r}); hf upload NAME {shown} --repo-type dataset puts it on the hub",
        "openrlhf": f"openrlhf.cli.train_dpo or train_rm with --data.dataset {shown} --data.prompt_key prompt "
        "--data.chosen_key chosen --data.rejected_key rejected --data.apply_chat_template",
        "verl": f"data.train_files={shown} for online training; RMDataset reads prompt_text, chosen and rejected",
        "nemo-rl": f"run_dpo or run_rm with data.train.dataset_name=PreferenceDataset data.train.data_path={shown}",
        "llamafactory": f"dataset: {printable(target.path.stem)}, dataset_dir: {folder}, stage: dpo or rm",
        "axolotl": "put the .config.yaml into your configuration",
        "openai": "upload it with the purpose fine-tune, and begin a job with the method dpo",
        "annotated_pairs": f"feedback-forensics -d {shown}",
        "label_studio": "import the tasks, and paste the configuration into the labeling interface (Code)",
        "argilla": "make a dataset with rg.Settings.from_json(…), and log the records with records.from_json(…)",
    }
    return advice[target.name]
