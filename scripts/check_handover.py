"""Puts the commands that a hand-over writes to the parsers of verl and OpenRLHF themselves, which train nothing.

    make check-handover                                                    # in an environment of its own
    .venv-handover/bin/python scripts/check_handover.py FOLDER …           # of folders that were exported, too
    .venv-handover/bin/python scripts/check_handover.py --nemo-rl FILE …   # and NeMo-RL's, by its own examples

The shell runs each script with a stand-in for `python3`, so what is parsed is what the shell makes of the script. verl
composes its own configuration with the options, which refuses unknown ones, makes its dataclasses of it, and validates
it. OpenRLHF's `train_ppo_ray.py` is run up to where it would train, without the libraries that it trains by. Of a
folder that was exported, the packages read the prompts, too. Of NeMo-RL there is no package; its scripts are held
against `ppo_math_1B.yaml`, `grpo_math_1B.yaml` and `grpo_rm_1B.yaml` of its `examples/configs`, in which every option
must be, as `++` would add one that nobody reads. Exits with 1 where anything is refused.
"""

import argparse
import json
import os
import runpy
import shutil
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from io import StringIO
from itertools import product
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from constitutional.base.shipped import MODEL_FOLDER
from constitutional.data.export.commands import ALGORITHMS, Algorithm, Framework, Material, Recipe, script, words

PPO = Recipe(
    step=128,
    replies=1,
    passes=2,
    temperature=1.0,
    learning_rate=1e-6,
    kl=0.05,
    critic_rate=1e-5,
    lam=0.95,
    clip=0.2,
)
GRPO = Recipe(step=8, replies=8, passes=1, temperature=0.7, learning_rate=1e-6, kl=0.04)
RECIPES: dict[Algorithm, Recipe] = {"ppo": PPO, "grpo": GRPO}
CHECKED: tuple[Framework, ...] = ("verl", "openrlhf")
REWARD_MODEL = "grpo_rm_1B.yaml"
"""NeMo-RL's example with a reward model's environment, which makes the worker of a policy of it."""
OF_THE_DATA_SET = {"data.train.data_path", "data.train.split_validation_size"}
"""Arguments of NeMo-RL's `ResponseDataset`, which not every example has."""


def typed(file: Path) -> list[str]:
    """The words that a script gives to `python3` or `uv`."""
    with tempfile.TemporaryDirectory() as folder:
        for name in ("python3", "uv"):
            recorder = Path(folder) / name
            recorder.write_text('#!/bin/sh\nprintf "%s\\0" "$@"\n')
            recorder.chmod(0o755)
        environment = {**os.environ, "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}
        told = subprocess.run(["/bin/sh", str(file)], env=environment, check=True, capture_output=True, text=True)
    return told.stdout.split("\0")[:-1]


def place_of(package: str) -> Path:
    """The folder of an installed package."""
    spec = find_spec(package)
    assert spec is not None, f"{package} is installed"
    assert spec.submodule_search_locations, f"{package} is a package"
    return Path(spec.submodule_search_locations[0])


def check_verl(options: Sequence[str]) -> Any:  # noqa: ANN401 - OmegaConf's DictConfig
    """Compose verl's configuration with the options, and validate it as its trainer does; returns it."""
    from hydra import compose, initialize_config_dir  # noqa: TID251 - verl's configuration, and none of ours
    from verl.experimental.reward_loop.reward_loop import migrate_legacy_reward_impl
    from verl.trainer.ppo.utils import need_critic, need_reference_policy
    from verl.utils.config import omega_conf_to_dataclass, validate_config

    with initialize_config_dir(config_dir=str(place_of("verl.trainer") / "config"), version_base=None):
        config = migrate_legacy_reward_impl(compose("ppo_trainer", overrides=list(options)))
    validate_config(config, need_reference_policy(config), need_critic(config))
    asked = config.reward.reward_model
    for part in (config.actor_rollout_ref.rollout, config.algorithm, *([asked.rollout] if asked.enable else [])):
        omega_conf_to_dataclass(part)
    return config


def read_by_verl(config: Any) -> int:  # noqa: ANN401
    """Read the prompts as verl's trainer does; returns how many are short enough for its options."""
    from transformers import AutoTokenizer
    from verl.utils.dataset.rl_dataset import RLHFDataset

    tokenizer = AutoTokenizer.from_pretrained(config.actor_rollout_ref.model.path)
    prompts = RLHFDataset(config.data.train_files, tokenizer, config.data)
    assert all(
        json.loads(row["extra_info"]["messages"]) == row["raw_prompt"] for row in map(prompts.__getitem__, [0, -1])
    )
    return len(prompts)


class ReadyError(Exception):
    """Ends OpenRLHF's program where it would begin to train."""


def check_openrlhf(options: Sequence[str]) -> Any:  # noqa: ANN401 - argparse's namespaces in each other
    """Parse the options as OpenRLHF's program does, with all that it asserts of them; returns what it made of them."""
    place, made = place_of("openrlhf"), list[Any]()

    def begun() -> bool:
        raise ReadyError

    with _without_trainers(place):
        sys.modules["ray"].__dict__["is_initialized"] = begun  # what its training asks first
        settings = import_module("openrlhf.utils.config")
        nested, before = settings.hierarchize, sys.argv

        def kept(args: object) -> Any:  # noqa: ANN401
            made.append(nested(args))
            return made[-1]

        settings.__dict__["hierarchize"], sys.argv = kept, ["train_ppo_ray.py", *options]
        try:
            runpy.run_path(f"{place}/cli/train_ppo_ray.py", run_name="__main__")
        except ReadyError:
            return made[0]
        finally:
            settings.__dict__["hierarchize"], sys.argv = nested, before
    raise AssertionError("OpenRLHF's program does not ask Ray first, as it did")


def read_by_openrlhf(args: Any) -> int:  # noqa: ANN401
    """Render the prompts as OpenRLHF does; returns how many there are."""
    from transformers import AutoTokenizer

    made = runpy.run_path(f"{place_of('openrlhf')}/datasets/prompts_dataset.py")["preprocess_data"]
    render = AutoTokenizer.from_pretrained(args.actor.model_name_or_path).apply_chat_template
    rows = [json.loads(line) for line in Path(args.data.prompt_dataset).read_text(encoding="utf-8").splitlines()]
    texts = [made(row, args.data.input_template, args.data.input_key, None, render)[0] for row in rows]
    assert all(row["prompt"][-1]["content"] in text for row, text in zip(rows, texts, strict=True))
    return len(texts)


def check_nemo_rl(words: Sequence[str], examples: Mapping[str, Any]) -> None:
    """Find every option in the example configuration that the script names.

    Args:
        words: behind the program: `--config`, the configuration's place, and the options.
        examples: the configurations by their files' names.

    Raises:
        LookupError: an example is not there, or options are in none.
    """
    _, place, *options = words
    wanted = (Path(place).name, REWARD_MODEL)
    if missing := [name for name in wanted if name not in examples]:
        raise LookupError(f"name {' and '.join(missing)}, of NeMo-RL's examples/configs, behind --nemo-rl")
    own, asked = (examples[name] for name in wanted)
    names = [option.removeprefix("++").partition("=")[0] for option in options]
    environment = "env.reward_model."
    unknown = [
        name
        for name in names
        if name not in OF_THE_DATA_SET
        and not _has(own, name)
        and not (name.startswith(environment) and _has(asked, name))
        and not (name.startswith(environment) and _has(own, "policy." + name.removeprefix(environment)))
    ]
    if unknown:
        raise LookupError(f"{place} has no {', '.join(unknown)}")


def _has(content: Any, name: str) -> bool:  # noqa: ANN401 - YAML's
    """Whether there is such a key, `a.b.c`, whatever its value."""
    for part in name.split("."):
        if not isinstance(content, dict) or part not in content:
            return False
        content = content[part]
    return True


@contextmanager
def _without_trainers(place: Path) -> Iterator[None]:
    """Empty modules for what OpenRLHF's program trains by; its parser and `openrlhf.utils.config` stay its own."""
    empty = {
        "ray": (),
        "ray.util": (),
        "ray.util.placement_group": ("placement_group",),
        "openrlhf.trainer": (),
        "openrlhf.trainer.ray": ("create_vllm_engines",),
        "openrlhf.trainer.ray.launcher": ("RayActorGroup", "ReferenceModelActor", "RewardModelActor"),
        "openrlhf.trainer.ray.ppo_actor": ("PolicyModelActor",),
        "openrlhf.trainer.ray.ppo_critic": ("CriticModelActor",),
        "openrlhf.utils": ("get_strategy",),
    }
    before = {name: sys.modules.get(name) for name in empty}
    for name, attributes in empty.items():
        module = ModuleType(name)
        module.__path__ = [str(place / "utils")] if name == "openrlhf.utils" else []
        for attribute in attributes:
            setattr(module, attribute, None)
        sys.modules[name] = module
    try:
        yield
    finally:
        for name, kept in before.items():
            if kept is None:
                del sys.modules[name]
            else:
                sys.modules[name] = kept


def check(file: Path, examples: Mapping[str, Any]) -> str:
    """What its framework finds wrong with a script, or with the prompts beside it; empty where nothing is."""
    _, module, *options = typed(file)
    said = StringIO()
    try:
        if module.startswith("examples/"):
            check_nemo_rl(options, examples)
            return ""
        with redirect_stdout(said), redirect_stderr(said):
            by_verl = module.startswith("verl.")
            parsed = check_verl(options) if by_verl else check_openrlhf(options)
            if (file.parent / "data").exists():
                assert (read_by_verl(parsed) if by_verl else read_by_openrlhf(parsed)) > 0, "no prompt is read"
    except SystemExit:  # of argparse, which has printed why
        return said.getvalue().strip().splitlines()[-1]
    except Exception as error:  # noqa: BLE001 - whatever the package refuses with
        return " ".join("".join(traceback.format_exception_only(error)).split())
    return ""


def made_up(folder: Path, frameworks: Sequence[Framework]) -> Iterator[Path]:
    """Scripts of every kind: for these frameworks, both algorithms, with one reward model and with an ensemble."""
    for framework, algorithm, members in product(frameworks, ALGORITHMS, (1, 3)):
        if framework == "nemo-rl" and members > 1:
            continue  # which it does not ask
        file = folder / f"{framework} of {members}" / f"{algorithm}.sh"  # a space, as folders may have
        critic = file.parent / "reward_model" / ("" if members == 1 else "0")  # which verl looks into
        shutil.copytree(MODEL_FOLDER, critic, dirs_exist_ok=True)
        material = Material(prompt=200, reply=256, shift=-1.25, members=members)
        file.write_text(script("A check.", words(framework, algorithm, RECIPES[algorithm], material)))
        yield file


def main(arguments: Sequence[str] | None = None) -> int:
    """Check, print a line for each script, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", type=Path, metavar="FOLDER", help="of constitutional export --to verl …")
    parser.add_argument("--nemo-rl", nargs="+", default=[], type=Path, metavar="FILE", help="of its examples/configs")
    chosen = parser.parse_args(arguments)
    examples = {file.name: yaml.safe_load(file.read_text(encoding="utf-8")) for file in chosen.nemo_rl}
    frameworks: tuple[Framework, ...] = (*CHECKED, "nemo-rl") if examples else CHECKED
    print(*(f"{name} {version(name)}" for name in CHECKED), *examples, sep=", ")
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        exported = [place / f"{name}.sh" for place in chosen.folders for name in ALGORITHMS]
        for file in [*made_up(Path(folder), frameworks), *exported]:
            problem = check(file, examples)
            failed += bool(problem)
            print(f"{file.parent.name}/{file.name}: {problem or 'accepted'}")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
