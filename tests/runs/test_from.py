"""A run that begins with another: `from=RUN`."""

import shutil
from pathlib import Path

import pytest

from constitutional.base.errors import UsageError
from constitutional.cli import main as cli
from constitutional.runs.compose import compose, source_of
from constitutional.runs.folder import RunStore
from constitutional.runs.outputs import Outputs
from constitutional.runs.sweeps import jobs_of
from constitutional.stages import dpo, ppo
from tests.scripted_run import World, configured, constitution, go


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> RunStore:
    """A run with settings of its own, until its labels."""
    folder = tmp_path_factory.mktemp("first")
    constitution(folder)
    config = configured(folder, "name=first", "seed=7", "sft.epochs=4", "until=label")
    return go(config, World())[0]


def test_the_new_run_has_the_settings_of_the_other_and_what_is_typed_over_them(first: RunStore) -> None:
    start = f"from={first.folder}"
    new = compose([start, "name=new", "sft.epochs=2", "constitution.weights.calm=3"])
    assert (new.name, new.folder, new.until) == ("new", first.folder.parent, None)
    assert (new.seed, new.sft.epochs, new.constitution.weights) == (7, 2.0, {"calm": 3.0})
    assert new.label == compose([f"{start}", "name=x"]).label
    assert new.critique_revise.rounds == 2  # which the presets of the sandbox have otherwise


def test_presets_replace_a_group_and_settings_come_over_them_in_any_order(first: RunStore) -> None:
    new = compose(
        [
            f"from={first.folder}",
            *("algorithm.episodes=64", "algorithm=ppo", "name=new", "labeler.model=M"),
            *("labeler=http", "labeler.url=http://127.0.0.1:1/v1", "panel.second=scripted"),
            "panel.second.function=mine.py:answer",
        ]
    )
    assert isinstance(new.algorithm, ppo.Settings)
    assert new.algorithm.episodes == 64
    assert (new.labeler.kind, new.critic.kind, new.panel["second"].kind) == ("http", "local", "scripted")
    assert (new.seed, new.sft.epochs) == (7, 4.0)
    assert isinstance(compose([f"from={first.folder}", "name=new"]).algorithm, dpo.Settings)


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["from=FIRST"], "name=NAME"),
        (["from=FIRST", "name=new", "experiment=lee2023"], "experiment"),
        (["from=FIRST", "from=FIRST", "name=new"], "leave one"),
        (["from=nowhere", "name=new"], "no run"),
        (["from=", "name=new"], "no run"),
    ],
)
def test_what_cannot_be_begun_with_is_refused(first: RunStore, words: list[str], problem: str) -> None:
    with pytest.raises(UsageError, match=problem):
        compose([word.replace("FIRST", str(first.folder)) for word in words])


def test_a_sweep_may_begin_with_a_run(first: RunStore) -> None:
    jobs = jobs_of([f"from={first.folder}", "name=leave", "sweep=principles"], multirun=True)
    configs = [compose(job.overrides) for job in jobs]
    assert [config.constitution.without for config in configs] == [(), ("calm",), ("brief",), ("kind",), ("honest",)]
    assert {config.seed for config in configs} == {7}


def test_in_another_folder_every_stage_that_is_not_touched_is_taken_over(first: RunStore, tmp_path: Path) -> None:
    config = compose([f"from={first.folder}", "name=new", f"folder={tmp_path}/elsewhere", "label.clamp=[0.4,0.6]"])
    assert config.journal_file == first.folder.parent / "journal.sqlite"
    outputs = Outputs(config.outputs_folder)
    places = {first.stage_folder(stage).resolve().name: first.stage_folder(stage).resolve() for stage in first.stages}
    outputs.take_over(places)
    outputs.take_over(places)  # again, where they are already
    world = World()
    store, lines = go(config.model_copy(update={"until": "label"}), world)
    assert not world.asked
    again = [line.split()[1].rstrip(":") for line in lines if "used again" in line]
    assert again == [
        "prompts",
        "critique_revise",
        "sft",
        "sample_pairs",
    ]  # the check depends on how labels are asked for
    assert store.folder == tmp_path / "elsewhere" / "new"
    assert (first.folder / "05_label" / "judgements.jsonl").read_bytes() != (
        store.folder / "05_label" / "judgements.jsonl"
    ).read_bytes()


def test_the_command_says_what_is_used_again(
    first: RunStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [f"from={first.folder}", f"folder={tmp_path}/elsewhere", "name=new", "until=prompts"]
    assert cli.main(["run", *words]) == 0
    assert "prompts: done before" in capsys.readouterr().err
    # A copy, as `cp -rL` makes it: its stages are folders, by other names than among outputs.
    copy = tmp_path / "copied" / "first"
    shutil.copytree(first.folder, copy)
    assert cli.main(["run", f"from={copy}", "name=new", "until=prompts"]) == 0
    assert "prompts: done before" in capsys.readouterr().err
    assert cli.main(["run", f"from={tmp_path}", "name=new"]) == 2
    assert "from=runs/first" in capsys.readouterr().err


def test_without_a_run_to_begin_with_there_is_none() -> None:
    assert source_of(["name=first", "model.path=from=x"]) is None
