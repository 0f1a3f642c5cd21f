import shutil
from pathlib import Path

import pytest

from constitutional.base.errors import RunError
from constitutional.base.records import Prompt
from constitutional.cli import main as cli
from constitutional.judging.scores import Score
from constitutional.runs.collection import overview, remove, run_folders, size_in_words, unused
from constitutional.runs.compose import compose, dump
from constitutional.runs.folder import RunStore
from constitutional.runs.outputs import Outputs
from tests.scripted_run import World, configured, constitution, finish, go


def score(model: str, measure: str, value: float) -> Score:
    return Score(model=model, measure=measure, value=value, low=0.0, high=1.0, n=20, unit="share")


def test_runs_are_listed_with_how_far_they_have_come_and_what_they_changed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = tmp_path / "runs"
    values = {"base": (0.5, 0.3), "policy": (0.1, 0.1)}
    scores = [
        score(model, f"violation_rate/{name}", value)
        for model, rates in values.items()
        for name, value in zip(("kind", "brief"), rates, strict=True)
    ]
    with RunStore.open(runs / "first", dump(compose(["constitution.file=my/own.yaml", "algorithm=ppo"]), {})) as store:
        finish(store, 0, "prompts", {"prompts": [Prompt.of("Hi")]})
        finish(store, 9, "evaluate", {"scores": [*scores, score("policy", "win_rate/base", 0.75)]})
    with RunStore.open(runs / "sweep" / "second", dump(compose([]), {})) as store:
        store.begin(0, "prompts", runs / ".stages" / "prompts-0")
    (runs / "third").mkdir()
    (runs / "third" / "manifest.json").write_text("{")
    first, second, third = overview(runs)
    assert (first.name, first.state, first.constitution, first.algorithm) == ("first", "until evaluate", "own", "ppo")
    assert list(first.violations or ()) == pytest.approx([0.4, 0.1])  # means over the two principles
    assert first.preferred == 0.75
    stages = list((runs / ".stages").glob("*-*"))
    assert [stage.name.partition("-")[0] for stage in sorted(stages)] == ["evaluate", "prompts", "prompts"]
    stages = [stage for stage in stages if stage.name != "prompts-0"]
    assert first.bytes == sum(path.stat().st_size for stage in stages for path in stage.iterdir())
    assert (second.name, second.state, second.algorithm) == ("sweep/second", "stopped in prompts", "dpo")
    assert (third.name, third.state) == ("third", "unreadable")
    assert cli.main(["list", str(runs)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert {"first", "sweep/second", "third", "own", "ppo", "75%"} <= set(" ".join(lines).split())
    assert "40→10%" in lines[1]
    assert max(map(len, lines)) <= 80
    assert cli.main(["list", str(tmp_path / "nowhere")]) == 2


def test_a_run_that_goes_on_and_one_whose_later_stages_are_of_before_are_told_apart_from_a_done_one(
    tmp_path: Path,
) -> None:
    path = constitution(tmp_path)
    store, _ = go(configured(tmp_path), World())
    assert [line.state for line in overview(tmp_path / "runs")] == ["done"]
    with RunStore.open(store.folder, (store.folder / "config.json").read_text()) as again:
        assert [line.state for line in overview(tmp_path / "runs")] == ["running"]
        again.begin(3, "sft", tmp_path / "runs" / ".stages" / "sft-0")
        assert [line.state for line in overview(tmp_path / "runs")] == ["running in sft"]
    assert [line.state for line in overview(tmp_path / "runs")] == ["stopped in sft"]
    go(configured(tmp_path), World())
    path.write_text(path.read_text().replace("Be kind.", "Be warm."))
    go(configured(tmp_path, "until=labeler_check"), World())
    assert [line.state for line in overview(tmp_path / "runs")] == ["out of date"]


def test_what_no_run_uses_is_told_with_its_size_and_removed_when_that_is_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = constitution(tmp_path)
    store, _ = go(configured(tmp_path, "until=critique_revise"), World())
    runs = tmp_path / "runs"
    assert unused(runs) == []
    assert cli.main(["clean", str(runs)]) == 0
    assert "every output of a stage is used" in capsys.readouterr().out
    old = (store.folder / "02_critique_revise").resolve()
    path.write_text(path.read_text().replace("Be kind.", "Be warm."))
    go(configured(tmp_path, "until=critique_revise"), World())
    found = unused(runs)
    assert {output.path.name.split("-")[0] for output in found} == {"labeler_check", "critique_revise"}
    assert [output.bytes for output in found] == sorted((output.bytes for output in found), reverse=True)
    assert next(output for output in found if output.path == old).bytes == sum(
        file.stat().st_size for file in old.iterdir()
    )
    capsys.readouterr()
    assert cli.main(["clean", str(runs)]) == 0
    assert "nothing was removed" in capsys.readouterr().out
    assert old.exists()
    assert cli.main(["clean", str(runs), "--remove"]) == 0
    assert not old.exists()
    assert unused(runs) == []
    world = World()
    go(configured(tmp_path, "until=critique_revise"), world)  # what is used is still there
    assert world.asked == []


def test_what_a_process_is_making_is_not_removed(tmp_path: Path) -> None:
    place = tmp_path / ".stages" / f"sft-{'0' * 16}"
    place.mkdir(parents=True)
    shutil.copytree(place, place.with_name(f"{place.name}.damaged-1"))
    (tmp_path / ".stages" / "mine").mkdir()  # no stage's
    lock = Outputs(tmp_path / ".stages").lock(place)
    assert lock is not None
    with lock:
        found = unused(tmp_path)
        assert {output.path.name[20:]: output.state for output in found} == {"": "in use", ".damaged-1": "damaged"}
        remove(tmp_path, found)
        assert place.exists()
    assert [output.state for output in unused(tmp_path)] == ["not finished"]
    remove(tmp_path, unused(tmp_path))
    assert sorted(path.name for path in (tmp_path / ".stages").glob("[!.]*")) == ["mine"]


def test_what_another_runs_configuration_names_is_used(tmp_path: Path) -> None:
    constitution(tmp_path)
    store, _ = go(configured(tmp_path, "until=sft"), World())
    model = (store.folder / "03_sft" / "sft_model").resolve()
    go(configured(tmp_path, "until=sft", "seed=1"), World())  # links the run to others
    assert model.parent in {output.path for output in unused(tmp_path / "runs")}
    words = configured(tmp_path, "experiment=sandbox", "name=second", "until=prompts", f"model.path={model}")
    go(words, World())
    found = unused(tmp_path / "runs")
    assert model.parent not in {output.path for output in found}
    remove(tmp_path / "runs", found)
    assert model.is_dir()


def test_nothing_is_called_unused_while_a_run_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / ".stages" / f"sft-{'0' * 16}").mkdir(parents=True)
    (tmp_path / "first").mkdir()
    (tmp_path / "first" / "manifest.json").write_text("{")
    assert run_folders(tmp_path) == [tmp_path / "first"]
    with pytest.raises(RunError, match=r"manifest\.json: is damaged"):
        unused(tmp_path)


def test_sizes_are_said_in_the_unit_that_they_fill() -> None:
    sizes = (0, 999, 1000, 45_400, 9_999_999, 1_600_000_000)
    assert [size_in_words(size) for size in sizes] == ["0 B", "999 B", "1.0 kB", "45 kB", "10.0 MB", "1.6 GB"]
