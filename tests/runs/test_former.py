import shlex
from pathlib import Path

import pytest

from constitutional.base.errors import UsageError
from constitutional.cli import main as cli
from constitutional.runs.compose import compose, freeze
from constitutional.runs.former import changes, check_typed
from tests.scripted_run import World, configured, constitution, go

OURS = [
    *("prompts.train=8", "prompts.held_out=4", "critique_revise=schema", "sft=schema", "sample_pairs=schema"),
    *("mix=schema", "critique_revise.rounds=2", "label=schema", "label.method=logprobs", "mix.held_out_share=0.2"),
    *("evaluate.judged=2", "evaluate.critiqued=2", "evaluate.compared=0"),
]


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The words that made runs/first, in the folder where commands are typed now."""
    monkeypatch.chdir(tmp_path)
    constitution(tmp_path)
    go(configured(tmp_path), World())
    return ["name=first", "constitution.file=ours.yaml", *OURS]


def typed(*words: str) -> None:
    check_typed(freeze(compose(words)), words)


def test_a_runs_name_without_its_settings_is_refused_and_told_how_to_go_on(
    made: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    typed(*made)
    before = (tmp_path / "runs/first/config.json").read_bytes()
    for words in (["name=first"], ["name=first", "--dry-run"]):
        assert cli.main(["run", *words]) == 2
        said = capsys.readouterr().err
        assert said.startswith(f'constitutional: runs/first was made with constitution.file="{tmp_path}/ours.yaml", ')
        assert 'made anew with constitution.file="sandbox_careful"' in said
        assert "type `constitutional run from=runs/first name=first`;" in said
    assert (tmp_path / "runs/first/config.json").read_bytes() == before
    assert not (tmp_path / "runs/first/forecast.json").exists()
    typed("from=runs/first", "name=first")  # as it says


def test_one_setting_that_is_left_out_is_named_alone(made: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        typed(*(word for word in made if word != "prompts.train=8"), "seed=1")
    assert "was made with prompts.train=8, which" in str(caught.value)
    assert "seed" not in str(caught.value).partition("to go on")[0]  # which is typed
    assert "from=runs/first name=first constitution.file=ours.yaml prompts.held_out=4" in str(caught.value)


def test_the_command_that_goes_on_is_quoted_for_the_shell(made: list[str]) -> None:
    assert made
    with pytest.raises(UsageError) as caught:
        typed("name=first", "constitution.file=ours.yaml", "constitution.weights={brief: 2}")
    said = (
        "`constitutional run from=runs/first name=first constitution.file=ours.yaml 'constitution.weights={brief: 2}'`"
    )
    assert said in str(caught.value)
    Path("runs/first").rename("runs/a,b=1")
    with pytest.raises(UsageError) as caught:
        typed("name='a,b=1'", "constitution.file=ours.yaml")
    _, _, *words = shlex.split(str(caught.value).split("`")[1])
    assert compose(words).name == "a,b=1"
    typed(*words)


def test_a_command_that_is_refused_leaves_what_the_named_run_has_made(made: list[str], tmp_path: Path) -> None:
    assert made
    go(configured(tmp_path, "folder=others", "name=kinder", "seed=4"), World())

    def held() -> list[tuple[Path, int]]:
        return sorted((path, path.lstat().st_mtime_ns) for path in (tmp_path / "others").rglob("*"))

    before = held()
    assert cli.main(["run", "from=runs/first", "folder=others", "name=kinder"]) == 2
    assert held() == before


@pytest.mark.parametrize(
    "words",
    [
        ["label.method=votes"],  # another value
        ["label=votes"],  # a preset of the group
        ["algorithm=ppo"],  # a setting that was not typed before
        ["reward.batch_size=2", "budget.max_calls=9", "report_to=wandb", "until=mix"],  # what changes no result
    ],
)
def test_what_is_typed_is_meant(made: list[str], words: list[str]) -> None:
    keys = {word.partition("=")[0] for word in words}
    others = [word for word in made if word.partition("=")[0] not in keys]
    typed(*others, *words)
    typed("experiment=sandbox", "name=first")  # a preset of all settings


def test_a_setting_of_no_result_that_is_left_out_is_no_other_run(made: list[str], tmp_path: Path) -> None:
    go(configured(tmp_path, "reward.batch_size=2", "budget.max_calls=100000"), World())
    typed(*made)
    assert changes(freeze(compose(made))) == []


def test_a_run_from_another_that_leaves_out_its_own_edit_is_refused(made: list[str], tmp_path: Path) -> None:
    assert made
    go(configured(tmp_path, "name=kinder", "seed=4"), World())
    with pytest.raises(
        UsageError, match=r"runs/kinder was made with seed=4, which .* anew with seed=0; .*from=runs/ki"
    ):
        typed("from=runs/first", "name=kinder")
    typed("from=runs/first", "name=kinder", "seed=4")


def test_a_name_that_has_no_results_takes_any_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    typed("name=first")


def test_a_run_says_first_what_differs_from_what_its_name_stood_for(made: list[str], tmp_path: Path) -> None:
    assert made
    _, said = go(configured(tmp_path, "seed=4"), World())
    assert said[0].startswith("the run first was made with another seed; what differs is made anew")
    _, said = go(configured(tmp_path, "seed=4"), World())
    assert not any("was made with another" in line for line in said)
