"""One page for several runs: a reader can tell them apart."""

import re
import shutil
from pathlib import Path

import pytest

from constitutional.cli import main as cli
from constitutional.runs.folder import RunStore
from constitutional.runs.runner import compare
from tests.scripted_run import World, configured, constitution, go


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    constitution(folder)
    store, _ = go(configured(folder, "name=demo"), World())
    return store.folder


def names(*folders: Path) -> list[str]:
    page = compare([RunStore.load(folder) for folder in folders], folders[0].parent / "page.html").read_text()
    if 'id="comparison"' not in page:
        return re.findall(r"<h1>(.*?)</h1>", page)
    head = page.split('class="runs"')[1].split("</thead>")[0]
    _, *columns = re.findall(r'<th scope="col">(.*?)</th>', head)
    assert re.findall(r'<h2 id="run\d+-name">(.*?)</h2>', page) == columns
    return columns


def copied(demo: Path, *places: Path) -> tuple[Path, ...]:
    for place in places:
        shutil.copytree(demo, place)
    return places


def test_runs_of_one_name_are_told_apart_by_the_shortest_end_of_their_paths(demo: Path, tmp_path: Path) -> None:
    a, b, other = copied(demo, tmp_path / "a/demo", tmp_path / "b/demo", tmp_path / "b/other")
    assert names(a) == ["demo"]
    assert names(a, b) == ["a/demo", "b/demo"]
    assert names(a, b, other) == ["a/demo", "b/demo", "other"]
    (deep,) = copied(demo, tmp_path / "x/a/demo")
    assert names(a, deep) == [f"{tmp_path.name}/a/demo", "x/a/demo"]


def test_a_folder_that_is_named_twice_is_shown_once(demo: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(demo)
    assert names(demo, tmp_path / "link", demo) == ["demo"]


def test_the_title_of_many_runs_is_their_number(demo: Path, tmp_path: Path) -> None:
    places = copied(demo, *(tmp_path / f"a_rather_long_name_of_a_run_number_{number}" for number in range(12)))
    assert names(*places) == [place.name for place in places]
    assert "<h1>12 runs</h1>" in (tmp_path / "page.html").read_text()


def test_two_runs_differ_in_their_constitutions_and_settings(
    demo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    constitution(tmp_path)
    words = ("name=other", "constitution.without=[kind]", "seed=3")
    store, _ = go(configured(tmp_path, *words), World())
    assert cli.main(["diff", str(demo), str(store.folder)]) == 0
    told = capsys.readouterr().out.splitlines()
    assert "- kind: Be kind." in told
    assert "~ seed: 0 → 3" in told
    assert not any(line.startswith("~ name") for line in told)
    page = compare([RunStore.load(demo), store], tmp_path / "page.html").read_text()
    assert "<del>Be kind.</del>" in page
    assert 'class="paired"' in page
