import os
import sys
from pathlib import Path

import pytest
import yaml

from constitutional.base.errors import ModelError
from constitutional.cli import main as cli
from constitutional.runs.compose import RunConfig, compose
from constitutional.runs.manifest import Manifest
from tests.understood import FakeUnderstanding


class FakeStore:
    """A run that measured nothing."""

    folder = Path("runs/first")
    manifest = Manifest()


class Runs:
    """Stands where runs are started, and keeps what was asked for."""

    def __init__(self) -> None:
        self.configs: list[RunConfig] = []
        self.errors: list[BaseException] = []
        self.read: list[str] = []
        self.understood = "flattery"

    def understand(self, texts: list[str], **_: object) -> list[FakeUnderstanding]:
        self.read += texts
        return [FakeUnderstanding(text, trait=self.understood) for text in texts]

    def run(self, config: RunConfig) -> FakeStore:
        self.configs.append(config)
        if self.errors:
            raise self.errors.pop(0)
        return FakeStore()


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Runs:
    fake = Runs()
    monkeypatch.setattr("constitutional.runs.runner.run", fake.run)
    monkeypatch.setattr("constitutional.sandbox.understand.understand_texts", fake.understand)
    monkeypatch.chdir(tmp_path)
    return fake


def test_run_takes_overrides_and_leaves_no_trace_of_hydra(runs: Runs, tmp_path: Path) -> None:
    before = list(sys.argv)
    assert cli.main(["run", "name=second", "constitution.weights.no_flattery=2", "label=votes"]) == 0
    (config,) = runs.configs
    assert config.name == "second"
    assert config.constitution.weights == {"no_flattery": 2.0}
    assert config.label.method == "votes"
    assert list(tmp_path.iterdir()) == []
    assert sys.argv == before
    assert "HYDRA_FULL_ERROR" not in os.environ


def test_a_run_on_the_sandbox_first_says_what_its_model_will_misunderstand(
    runs: Runs, capsys: pytest.CaptureFixture[str]
) -> None:
    runs.understood = "nothing"
    assert cli.main(["run", "constitution.file=sandbox_concise"]) == 0
    assert "Do not ramble." in runs.read
    assert "the model sees no wish in it, so it changes nothing [meaning]" in capsys.readouterr().err
    runs.read.clear()
    assert cli.main(["run", "constitution.file=sandbox_concise", "model.path=elsewhere"]) == 0
    assert runs.read == []  # another model reads it, of which the sandbox's can say nothing
    assert cli.main(["run", "constitution.file=sandbox_concise", "constitution.only=[short]"]) == 0
    assert runs.read == ["Keep your answers short."]


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["prompts=file", "prompts.path=mistyped.jsonl"], "mistyped.jsonl: cannot be read: No such file or directory"),
        (["constitution.only=[clam]"], "'Sandbox: concise' has no principle 'clam'"),
    ],
)
def test_a_mistake_is_said_before_a_model_is_asked_about_every_principle(
    runs: Runs, capsys: pytest.CaptureFixture[str], words: list[str], problem: str
) -> None:
    assert cli.main(["run", "constitution.file=sandbox_concise", *words]) == 2
    assert problem in capsys.readouterr().err
    assert (runs.read, runs.configs) == ([], [])


def test_demo_is_the_sandbox_experiment_by_its_own_name(runs: Runs) -> None:
    assert cli.main(["demo", "seed=3"]) == 0
    (config,) = runs.configs
    assert (config.name, config.model.path, config.prompts.kind, config.seed) == ("demo", "sandbox", "sandbox", 3)


@pytest.mark.parametrize("words", [["-m", "seed=1,2", "name=x"], ["name=x", "seed=1,2", "--multirun"]])
def test_a_sweep_gives_every_run_a_folder_of_its_own(runs: Runs, words: list[str]) -> None:
    assert cli.main(["run", *words]) == 0
    assert [(config.name, config.seed) for config in runs.configs] == [("x-seed=1", 1), ("x-seed=2", 2)]


def test_a_folder_of_a_sweep_is_named_by_what_is_swept_alone(runs: Runs) -> None:
    assert cli.main(["run", "-m", "name=x", "until=mix", "prompts.train=24", "seed=1,2"]) == 0
    assert cli.main(["run", "name=x", "seed=1,2", "prompts.train=24", "-m"]) == 0  # and so it goes on without until=
    assert [config.name for config in runs.configs] == ["x-seed=1", "x-seed=2", "x-seed=1", "x-seed=2"]


def test_runs_that_differ_past_the_longest_name_have_folders_of_their_own(runs: Runs) -> None:
    keys = ["sft.learning_rate", "reward.learning_rate", "algorithm.learning_rate", "critique_revise.draft_max_tokens"]
    swept = [f"{key}=1,2" if key == keys[-1] else f"{key}=1e-5,1e-4" for key in keys]
    assert cli.main(["run", "-m", f"name={'x' * 30}", *swept]) == 0
    names = [config.name for config in runs.configs]
    assert len(names) == len(set(names)) == 16
    assert {len(name) for name in names} == {100}


def test_a_run_of_a_sweep_that_fails_does_not_end_the_others(runs: Runs, capsys: pytest.CaptureFixture[str]) -> None:
    runs.errors.append(ModelError("out of memory"))
    assert cli.main(["run", "-m", "seed=1,2", "model.path=elsewhere"]) == 1
    assert len(runs.configs) == 2
    assert capsys.readouterr().err == "constitutional: out of memory\n"


def test_an_interrupted_run_exits_with_130_and_a_defect_keeps_its_traceback(
    runs: Runs, capsys: pytest.CaptureFixture[str]
) -> None:
    runs.errors += [KeyboardInterrupt(), KeyError("oops")]
    assert cli.main(["run", "model.path=elsewhere"]) == 130
    assert capsys.readouterr().err == "constitutional: interrupted\n"
    with pytest.raises(KeyError, match="oops"):
        cli.main(["run"])


def test_mistakes_in_a_configuration_are_a_line_each_and_exit_code_2(
    runs: Runs, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["run", "seed=x", "label.votes=0"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(",")[0] for line in lines] == ['constitutional: seed is "x"', "constitutional: label.votes is 0"]
    assert cli.main(["run", "labell.votes=3"]) == 2
    assert capsys.readouterr().err == "constitutional: there is no setting 'labell.votes'; did you mean label.votes?\n"
    assert cli.main(["config", "experiment=bai2022"]) == 2
    assert capsys.readouterr().err.startswith("constitutional: prompts.path has no value yet; type prompts.path=FILE. ")
    assert runs.configs == []


@pytest.mark.parametrize(
    ("word", "problem"),
    [
        ("model=3", "model=3: 3 is no option of 'model'; the options are gemma3_4b, llama3_8b, qwen3_4b, sandbox"),
        ("label=", "label= names no option; the options are bai2022, bai2022_cot, direct_rlaif, lee2023, votes"),
        ("=3", "=3: names no setting; type KEY=VALUE, such as seed=1"),
        ("journal=3", "journal=3: 'journal' has no options; type one of its settings, as in journal.path=VALUE"),
        ("hydra=null", "hydra=null: an option must be a name, such as label=votes"),
        ("model={", "model={: cannot be read; type KEY=VALUE, and quote what is no plain word: \"KEY='a {b'\""),
        ("label.=3", "label.=3: cannot be read; type KEY=VALUE, and quote what is no plain word: \"KEY='a {b'\""),
        ("+x=1", "x: there is no such setting; take it out, or see `constitutional config` for what there is"),
        (
            "name=${x}",
            "name is \"${x}\", which stands for nothing (Interpolation key 'x' not found); type name=first",
        ),
        ("model.path=", "model path is empty; name 'sandbox', a folder, or a model on the Hugging Face hub"),
    ],
)
def test_an_odd_override_is_one_line_and_no_traceback(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, word: str, problem: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["run", word]) == 2
    assert [line for line in capsys.readouterr().err.splitlines() if "warning" not in line] == [
        f"constitutional: {problem}"
    ]


def test_config_prints_what_would_be_run(runs: Runs, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["config", "seed=5", "constitution.file=sandbox_warm"]) == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert RunConfig.model_validate(printed) == compose(["seed=5", "constitution.file=sandbox_warm"])
    assert runs.configs == []


def test_config_shows_what_is_still_to_be_given(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["config", "experiment=bai2022", "seed=5"]) == 2
    streams = capsys.readouterr()
    assert streams.err.startswith("constitutional: prompts.path has no value yet; type prompts.path=FILE. ")
    printed = yaml.safe_load(streams.out)
    assert printed["prompts"] == {"kind": "file", "path": "???", "held_out": 200}
    assert printed["seed"] == 5
    assert list(printed) == list(RunConfig.model_fields)


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (
            ["constitution.only=[brif]"],
            "constitution 'Sandbox: careful' has no principle 'brif'; did you mean 'brief'?",
        ),
        (
            ["constitution.weights.breif=2"],
            "constitution 'Sandbox: careful' has no principle 'breif'; did you mean 'brief'?",
        ),
        (
            ["constitution.file=sandbox_bald"],
            "there is no file sandbox_bald and no shipped constitution of that name; did you mean 'sandbox_bold'?",
        ),
    ],
)
def test_config_refuses_the_principles_that_a_run_would_refuse(
    capsys: pytest.CaptureFixture[str], words: list[str], problem: str
) -> None:
    assert cli.main(["config", *words]) == 2
    streams = capsys.readouterr()
    assert streams.err == f"constitutional: {problem}\n"
    assert list(yaml.safe_load(streams.out)) == list(RunConfig.model_fields)  # shown all the same


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["run", "--multirn", "seed=1,2"], "there is no option '--multirn'; did you mean --multirun?"),
        (["demo", "seed=1", "--until", "label"], "there is no option '--until', but a setting: type until=label"),
        (
            ["config", "--until", "seed=1"],
            "there is no option '--until', but a setting: type until=VALUE",  # what stands behind is no value of it
        ),
        (["run", "--cfg"], "argument --cfg/-c: expected one argument; see `constitutional run --help`"),
    ],
)
def test_an_unknown_option_is_one_line_and_not_hydras_usage(
    runs: Runs, capsys: pytest.CaptureFixture[str], words: list[str], problem: str
) -> None:
    assert cli.main(words) == 2
    assert capsys.readouterr().err == f"constitutional: {problem}\n"
    assert runs.configs == []


def test_hydras_options_may_stand_anywhere(runs: Runs, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", "seed=5", "--cfg", "job", "name=x"]) == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert (printed["seed"], printed["name"]) == (5, "x")
    assert runs.configs == []


@pytest.mark.parametrize("words", [["config", "sweep=seeds"], ["run", "-m", "seed=1,2"]])
def test_a_sweep_leaves_no_trace_of_hydra_either(runs: Runs, tmp_path: Path, words: list[str]) -> None:
    assert cli.main(words) == 0
    assert len(runs.configs) == (2 if words[0] == "run" else 0)
    assert list(tmp_path.iterdir()) == []
