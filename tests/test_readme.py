import contextlib
import io
import re
import shlex
from pathlib import Path

import pytest

from constitutional.config import compose

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_library_example_runs_as_it_stands() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        exec(compile(code, "README.md", "exec"), {})  # noqa: S102 - the text under test
    revised, judged = said.getvalue().strip().splitlines()
    assert "The principle asks" in revised  # a critique
    principle, p_a, conflict = judged.split()
    assert principle == "no_flattery"
    assert float(p_a) < 0.5  # b does not flatter
    assert conflict == "False"


def test_every_file_of_the_tree_exists() -> None:
    tree = README.split("## The files, in running order")[1]
    inside = False
    named = []
    for line in tree.splitlines():
        if line.startswith("    "):
            inside = inside and line.startswith("      ")
            names = re.split(r"\s{2,}", line.strip())[0].split()
            folder = ROOT / "constitutional" if inside else ROOT
            named += [folder / name for name in names]
            if names == ["constitutional/"]:
                inside = True
    assert len(named) > 20
    missing = [path for path in named if not path.exists() and not (path.parent / "stages" / path.name).exists()]
    assert missing == []


def overrides() -> list[list[str]]:
    """The words of every `constitutional run` and `config` in the README."""
    joined = README.replace("\\\n", " ")
    lines = re.findall(r"^    constitutional (?:run|config)([^#\n]*)", joined, re.MULTILINE)
    return [[word for word in shlex.split(line) if word != "-m"] for line in lines]


@pytest.mark.parametrize("words", overrides(), ids=" ".join)
def test_every_run_in_the_readme_can_be_composed(words: list[str]) -> None:
    assert len(overrides()) >= 6
    compose([word.replace("seed=0,1,2", "seed=0") for word in words])
