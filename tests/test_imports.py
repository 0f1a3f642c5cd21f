"""The import rules: what is below does not know what is above."""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "constitutional"
HEAVY = {"accelerate", "datasets", "hydra", "numpy", "omegaconf", "peft", "torch", "transformers", "trl", "vllm"}

LAYERS = (
    # Imports nothing of ours but each other.
    {"errors", "files", "ppo_math", "progress", "records", "scores", "shipped", "stats"},
    # What a stage is made of.
    {
        "constitution",
        "constitution_file",
        "engines",
        "gold",
        "hhh",
        "human",
        "labeler",
        "markdown",
        "plain_yaml",
        "ppo",
        "ppo_checkpoint",
        "ppo_config",
        "ppo_critic",
        "ppo_log",
        "ppo_models",
        "ppo_rollout",
        "ppo_update",
        "preflight",
        "principle_file",
        "prompt_set",
        "prompts",
        "report",
        "reward_model",
        "rewards",
        "sandbox",
        "saving",
        "training",
        "training_rows",
        "user_function",
        "work",
    },
    # What does one thing with those. Stages are joined by their records only, and never import each other.
    {"lint", "lint_rules", "review", "stages"},
    # What joins the stages to a run.
    {
        "bench",
        "check",
        "config",
        "config_errors",
        "manifest",
        "pipeline",
        "run_config",
        "runner",
        "show",
        "state",
        "store",
    },
    # What people and processes start, and the package's own public names.
    {"__init__", "__main__", "cli", "cli_run", "launch"},
)
"""From the bottom to the top: a module imports from its own layer and from those below."""

KNOW_HYDRA = {"cli_run", "config"}


class Import(NamedTuple):
    """That `importer` (a path in the package) imports the dotted name `imported`."""

    importer: Path
    imported: str


def imports(package: Path = PACKAGE) -> Iterator[Import]:
    for path in sorted(package.rglob("*.py")):
        importer = path.relative_to(package)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                yield from (Import(importer, alias.name) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                # `from ..x import y` in a/b.py starts at the package that holds a/.
                above = ("constitutional", *importer.parts[: len(importer.parts) - node.level]) if node.level else ()
                module = ".".join([*above, *([node.module] if node.module else [])])
                # `from constitutional import x` may be a module or a name; either way it is called x.
                yield from (Import(importer, f"{module}.{alias.name}") for alias in node.names)


def unit(path: Path) -> str:
    """The file or folder directly in the package that holds it: `stages/label.py` is `stages`."""
    return path.parts[0].removesuffix(".py")


def imported_unit(imported: str) -> str | None:
    """The same of an imported name; None if it is not ours. What no file holds is a name of the package itself."""
    package, _, rest = imported.partition(".")
    if package != "constitutional":
        return None
    name = rest.partition(".")[0]
    return name if any(name in layer for layer in LAYERS) else "__init__"


def layer_of(name: str) -> int:
    found = [number for number, layer in enumerate(LAYERS) if name in layer]
    assert found, f"constitutional/{name} is new: say in LAYERS where it belongs"
    return found[0]


def violations(package: Path) -> list[str]:
    found = []
    for importer, imported in imports(package):
        user, used = unit(importer), imported_unit(imported)
        if imported.partition(".")[0] in {"hydra", "omegaconf"} and user not in KNOW_HYDRA:
            found.append(f"{importer} imports {imported}")
        if used is None or (used == "__init__" and imported == "constitutional.__version__"):
            continue
        if layer_of(used) > layer_of(user):
            found.append(f"{importer} imports {imported}, which is above it")
        other_stage = used == user == "stages" and imported.split(".")[2:3] != [importer.stem]
        if other_stage and importer.stem != "__init__":
            found.append(f"{importer} imports {imported}, another stage")
    return found


def test_the_package_keeps_the_import_rules() -> None:
    assert violations(PACKAGE) == []


@pytest.mark.parametrize(
    ("file", "line", "complaint"),
    [
        ("stats.py", "import constitutional.prompts", "constitutional.prompts, which is above it"),
        ("stats.py", "from constitutional.prompts import Prompts", "constitutional.prompts.Prompts, which is above it"),
        ("prompts.py", "from constitutional import store", "constitutional.store, which is above it"),
        ("engines/local.py", "from ..stages import label", "constitutional.stages.label, which is above it"),
        (
            "stages/label.py",
            "from constitutional.stages.mix import mix",
            "constitutional.stages.mix.mix, another stage",
        ),
        ("stages/label.py", "from .mix import mix", "constitutional.stages.mix.mix, another stage"),
        ("stages/label.py", "def run():\n    import hydra.utils", "hydra.utils"),
        ("store.py", "from omegaconf import OmegaConf", "omegaconf.OmegaConf"),
        ("prompts.py", "from constitutional import Prompts", "constitutional.Prompts, which is above it"),
    ],
)
def test_each_rule_finds_its_violation(tmp_path: Path, file: str, line: str, complaint: str) -> None:
    path = tmp_path / file
    path.parent.mkdir(exist_ok=True)
    path.write_text(line)
    assert violations(tmp_path) == [f"{file} imports {complaint}"]


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("records.py", "from constitutional.errors import InputError"),
        ("stages/label.py", "from constitutional.prompts import load_prompts"),
        ("cli_run.py", "import hydra"),
        ("sandbox/corpus.py", "from constitutional import __version__"),
    ],
)
def test_what_the_rules_allow_is_no_violation(tmp_path: Path, file: str, line: str) -> None:
    path = tmp_path / file
    path.parent.mkdir(exist_ok=True)
    path.write_text(line)
    assert violations(tmp_path) == []


def test_importing_the_package_and_the_command_loads_nothing_heavy() -> None:
    program = "import json, sys, constitutional, constitutional.cli; print(json.dumps(list(sys.modules)))"
    finished = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    loaded = set(json.loads(finished.stdout))
    assert "constitutional.cli" in loaded
    assert loaded & HEAVY == set()
