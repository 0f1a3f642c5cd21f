"""The order of rooms: a folder of the package imports from those below it, and from nothing above."""

import ast
import json
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "constitutional"
HEAVY = {
    "accelerate",
    "aiohttp",
    "alembic",
    "datasets",
    "hydra",
    "numpy",
    "omegaconf",
    "peft",
    "ray",
    "sqlalchemy",
    "starlette",
    "submitit",
    "torch",
    "transformers",
    "trl",
    "uvicorn",
    "vllm",
}

FLOORS = (
    {"base"},
    {"constitution", "data", "engines"},
    {"sandbox", "training"},
    {"judging"},
    {"stages"},
    {"runs"},
    {"review"},
    {"cli"},
    # What a process starts, and the package's own public names.
    {"__init__", "__main__"},
)
"""From the bottom to the top: a room imports from the floors below its own, and from no other room on its own."""

SHARED_BY_STAGES = {"context", "summaries", "online"}
"""The parts of the room `stages` that are no stage."""

KNOW_HYDRA = {"runs/compose.py", "runs/launch.py"}


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


def room(path: Path) -> str:
    """The folder, or the file, directly in the package: `stages/label.py` is in `stages`."""
    return path.parts[0].removesuffix(".py")


def imported_room(imported: str) -> str | None:
    """The same of an imported name; None if it is not ours. What no folder holds is a name of the package itself."""
    package, _, rest = imported.partition(".")
    if package != "constitutional":
        return None
    name = rest.partition(".")[0]
    return name if any(name in floor for floor in FLOORS) else "__init__"


def floor_of(name: str) -> int:
    found = [number for number, floor in enumerate(FLOORS) if name in floor]
    assert found, f"constitutional/{name} is new: say in FLOORS where it belongs"
    return found[0]


def violations(package: Path) -> list[str]:
    found = []
    for importer, imported in imports(package):
        user, used = room(importer), imported_room(imported)
        if imported.partition(".")[0] in {"hydra", "omegaconf"} and importer.as_posix() not in KNOW_HYDRA:
            found.append(f"{importer} imports {imported}")
        if used is None or (used == "__init__" and imported == "constitutional.__version__"):
            continue
        if used != user and floor_of(used) >= floor_of(user):
            found.append(f"{importer} imports {imported}, which is not below it")
        # Stages are joined by their artifacts and summaries only.
        stage = importer.parts[1].removesuffix(".py") if user == "stages" else ""
        if used == user == "stages" and imported.split(".")[2] not in {stage, *SHARED_BY_STAGES}:
            found.append(f"{importer} imports {imported}, another stage")
    return found


def test_a_room_imports_only_from_the_floors_below_it() -> None:
    assert violations(PACKAGE) == []


def test_no_modules_import_each_other_in_a_circle() -> None:
    """Neither at the top of a module nor within a function."""
    paths = (path.relative_to(PACKAGE).with_suffix("") for path in PACKAGE.rglob("*.py"))
    modules = {".".join(("constitutional", *path.parts)) for path in paths}
    imported: defaultdict[str, set[str]] = defaultdict(set)
    for importer, name in imports():
        module = ".".join(("constitutional", *importer.with_suffix("").parts))
        imported[module] |= {name, name.rpartition(".")[0]} & modules
    TopologicalSorter(imported).prepare()  # raises CycleError


def test_there_are_at_most_thirteen_rooms_on_nine_floors_and_each_has_a_place() -> None:
    rooms = {room(path.relative_to(PACKAGE)) for path in PACKAGE.rglob("*.py")}
    assert rooms == set().union(*FLOORS)
    assert len(rooms) <= 13
    assert len(FLOORS) <= 9


def test_no_class_name_stands_twice_with_two_meanings() -> None:
    names: defaultdict[str, set[str]] = defaultdict(set)
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                names[node.name].add(path.relative_to(PACKAGE).as_posix())
    doubled = {name: files for name, files in names.items() if len(files) > 1}
    # What a stage is set to, and what it is told of the stages before, has the same name in each stage.
    assert doubled.keys() <= {"Settings", "Inputs"}
    assert all(file.startswith("stages/") for files in doubled.values() for file in files)


@pytest.mark.parametrize(
    ("file", "line", "complaint"),
    [
        ("base/stats.py", "import constitutional.data.prompts", "constitutional.data.prompts, which is not below it"),
        (
            "engines/chat.py",
            "from constitutional.runs import folder",
            "constitutional.runs.folder, which is not below it",
        ),
        (
            "data/answers.py",
            "from constitutional.engines.base import Engine",
            "constitutional.engines.base.Engine, which is not below it",
        ),
        ("engines/local.py", "from ..stages import label", "constitutional.stages.label, which is not below it"),
        (
            "stages/label.py",
            "from constitutional.stages.mix import mix",
            "constitutional.stages.mix.mix, another stage",
        ),
        ("stages/label.py", "from .mix import mix", "constitutional.stages.mix.mix, another stage"),
        ("stages/ppo.py", "from constitutional.stages import grpo", "constitutional.stages.grpo, another stage"),
        ("stages/label.py", "def run():\n    import hydra.utils", "hydra.utils"),
        ("runs/folder.py", "from omegaconf import OmegaConf", "omegaconf.OmegaConf"),
        ("base/files.py", "from constitutional import Prompts", "constitutional.Prompts, which is not below it"),
    ],
)
def test_each_rule_finds_its_violation(tmp_path: Path, file: str, line: str, complaint: str) -> None:
    path = tmp_path / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(line)
    assert violations(tmp_path) == [f"{file} imports {complaint}"]


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("base/records.py", "from constitutional.base.errors import InputError"),
        ("stages/label.py", "from constitutional.base.templates import load_prompts"),
        ("stages/report/page.py", "from constitutional.stages.report.data import ReportData"),
        ("stages/label.py", "from constitutional.stages.context import StageContext"),
        ("stages/label.py", "from constitutional.stages.summaries import LabelSummary"),
        ("stages/ppo.py", "from constitutional.stages.online import nothing_learned"),
        ("runs/compose.py", "import hydra"),
        ("sandbox/world.py", "from constitutional import __version__"),
    ],
)
def test_what_the_rules_allow_is_no_violation(tmp_path: Path, file: str, line: str) -> None:
    path = tmp_path / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(line)
    assert violations(tmp_path) == []


def test_importing_the_package_and_the_command_loads_nothing_heavy() -> None:
    program = "import json, sys, constitutional, constitutional.cli.main; print(json.dumps(list(sys.modules)))"
    finished = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    loaded = set(json.loads(finished.stdout))
    assert "constitutional.cli.main" in loaded
    assert loaded & HEAVY == set()
