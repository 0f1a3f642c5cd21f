import os
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest
import yaml

from constitutional.base.errors import ModelError
from constitutional.base.shipped import shipped
from constitutional.cli import main as cli
from constitutional.runs.compose import compose
from constitutional.runs.folder import RunStore
from constitutional.runs.manifest import Manifest
from constitutional.runs.settings import RunConfig
from tests.understood import FakeUnderstanding


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

    def run(self, config: RunConfig) -> RunStore:
        self.configs.append(config)
        if self.errors:
            raise self.errors.pop(0)
        return RunStore(Path("runs/first"), Manifest(), None)  # it measured nothing


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Runs:
    fake = Runs()
    monkeypatch.setattr("constitutional.runs.runner.run", fake.run)
    monkeypatch.setattr("constitutional.sandbox.understand.understand_texts", fake.understand)
    monkeypatch.chdir(tmp_path)
    return fake


HELP = "`constitutional run --help`"


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


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["prompts=file", "prompts.path=mistyped.jsonl"], "mistyped.jsonl: there is no such file"),
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


def test_demo_is_strict_about_a_constitution_of_the_users_own(runs: Runs, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("name: Mine\nprinciples:\n- text: Do not flatter.\n")
    copied = shipped("constitutions") / "sandbox_warm.yaml"
    for words in (
        ["constitution.file=mine.yaml"],
        ["constitution.file=mine.yaml", "understanding=warn"],
        ["constitution.file=sandbox_warm"],
        [f"constitution.file={copied}"],
    ):
        assert cli.main(["demo", *words]) == 0
    assert cli.main(["run", "constitution.file=mine.yaml"]) == 0
    assert [config.understanding for config in runs.configs] == ["strict", "warn", "warn", "warn", "warn"]


@pytest.mark.parametrize(
    ("words", "understandings"),
    [
        (["constitution.file='mine.yaml'"], ["strict"]),
        (["constitution.file='of me/mine.yaml'"], ["strict"]),
        (["++constitution.file=mine.yaml"], ["strict"]),
        (["constitution.file=sandbox_warm", "constitution.wordings.praise=Be sweet."], ["strict"]),
        (["constitution.file=sandbox_warm", "constitution.weights.praise=2"], ["warn"]),
        (["-m", "constitution.file=sandbox_warm,mine.yaml"], ["strict", "strict"]),
        (["-m", "constitution.file=sandbox_warm,sandbox_plain"], ["warn", "warn"]),
        (["-m", "constitution.file=sandbox_warm,mine.yaml", "understanding=warn"], ["warn", "warn"]),
        (["-m", "understanding=warn,strict", "constitution.file=mine.yaml"], ["warn", "strict"]),
    ],
)
def test_demo_takes_the_constitution_from_all_that_is_typed(
    runs: Runs, tmp_path: Path, words: list[str], understandings: list[str]
) -> None:
    (tmp_path / "of me").mkdir()
    for folder in (tmp_path, tmp_path / "of me"):
        (folder / "mine.yaml").write_text("name: Mine\nprinciples:\n- text: Do not flatter.\n")
    assert cli.main(["demo", *words]) == 0
    assert [config.understanding for config in runs.configs] == understandings


def test_demo_shows_how_strict_it_is(runs: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.yaml").write_text("name: Mine\nprinciples:\n- text: Do not flatter.\n")
    assert cli.main(["demo", "constitution.file=mine.yaml", "--cfg", "job"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["understanding"] == "strict"
    assert runs.configs == []


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
    assert "constitutional: out of memory" in capsys.readouterr().err.splitlines()


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
    assert [line.split(";")[0] for line in lines] == ['constitutional: seed is "x"', "constitutional: label.votes is 0"]
    assert cli.main(["run", "labell.votes=3"]) == 2
    assert "type label.votes=3" in capsys.readouterr().err.lower()
    assert cli.main(["config", "experiment=bai2022"]) == 2
    assert capsys.readouterr().err.startswith("constitutional: prompts.path has no value yet; type prompts.path=FILE. ")
    assert runs.configs == []


@pytest.mark.parametrize(
    "word",
    ["model=3", "label=", "=3", "journal=3", "hydra=null", "model={", "label.=3", "+x=1", "name=${x}", "model.path="],
)
def test_an_odd_override_is_one_line_and_no_traceback(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, word: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["run", word]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "warning" not in line]
    assert line.startswith("constitutional: ")


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
    assert printed["prompts"]["path"] == "???"
    assert printed["prompts"]["held_out"] is None
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
        (["run", "--cfg"], "argument -c/--cfg: expected one argument; see `constitutional run --help`"),
        *(
            (
                ["run", option, "x"],
                f"'{option}' belongs to Hydra's own command and does not apply; see {HELP}",
            )
            for option in ("--info", "--package", "--hydra-help", "-p", "--config-name")
        ),
    ],
)
def test_an_unknown_option_is_one_line_and_not_hydras_usage(
    runs: Runs, capsys: pytest.CaptureFixture[str], words: list[str], problem: str
) -> None:
    assert cli.main(words) == 2
    assert capsys.readouterr().err == f"constitutional: {problem}\n"
    assert runs.configs == []


def test_hydras_options_may_stand_anywhere(runs: Runs, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["run", "seed=5", "--cfg", "job", "name=x"], ["config", "--resolve", "seed=5", "name=x"]):
        assert cli.main(words) == 0
        printed = yaml.safe_load(capsys.readouterr().out)
        assert (printed["seed"], printed["name"]) == (5, "x")
    assert cli.main(["run", "seed=5,6", "name=x", "--cfg", "job", "-m"]) == 0
    assert [printed["seed"] for printed in yaml.safe_load_all(capsys.readouterr().out)] == [5, 6]
    assert runs.configs == []


def test_help_lists_the_presets(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        cli.main(["run", "--help"])
    assert "bai2022_cot" in capsys.readouterr().out


def test_a_mistake_in_a_later_run_of_a_sweep_is_said_before_the_first_begins(
    runs: Runs, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["run", "-m", "label.method=votes,vote", "seed=1,2"]) == 2
    (line,) = capsys.readouterr().err.splitlines()  # once, though two runs have it
    assert "label.method=votes" in line
    assert runs.configs == []


def constitution_in(path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text("name: Ours\nprinciples:\n  - id: brief\n    text: Keep your answers brief.\n")


@pytest.mark.parametrize(
    "files",
    [
        ["a/plain.yaml", "a_plain.yaml"],
        ["礼貌.yaml", "简短.yaml"],
        ["a b.yaml", "a_b.yaml", "a-b.yaml"],
        ["Plain.yaml", "plain.yaml"],
        ["na\u00efve.yaml", "nai\u0308ve.yaml"],
        [f"{'很' * 60}一.yaml", f"{'很' * 60}二.yaml"],
    ],
)
def test_two_runs_of_a_sweep_never_share_a_folder(runs: Runs, tmp_path: Path, files: list[str]) -> None:
    for file in files:
        constitution_in(tmp_path / file)
    choices = ",".join(f"'{file}'" for file in files)
    assert cli.main(["run", "-m", f"constitution.file={choices}", "model.path=elsewhere"]) == 0
    names = [config.name for config in runs.configs]
    assert len({unicodedata.normalize("NFC", name).casefold() for name in names}) == len(files)
    assert all("/" not in name and len(name.encode()) <= 100 for name in names)
    # A run has the same folder when it is typed again in a smaller sweep, unless only the letters' case told it apart.
    assert [Path(config.constitution.file).name for config in runs.configs] == [Path(file).name for file in files]


@pytest.mark.parametrize("command", [["run", "--dry-run"], ["config", "-m"]])
def test_a_search_has_no_jobs_to_show_or_to_try(
    runs: Runs, capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    assert cli.main([*command, "sweep=optuna", "constitution.weights.no_flattery=interval(1,2)"]) == 2
    told = capsys.readouterr().err
    assert "leave out sweep=optuna" in told
    assert runs.configs == []


def test_letters_of_any_script_stay_in_a_name(runs: Runs, tmp_path: Path) -> None:
    for file in ("礼貌.yaml", "简短.yaml"):
        constitution_in(tmp_path / file)
    assert cli.main(["run", "-m", "name=x", "constitution.file='礼貌.yaml','简短.yaml'", "model.path=elsewhere"]) == 0
    assert [config.name for config in runs.configs] == [
        "x-constitution.file=礼貌.yaml",
        "x-constitution.file=简短.yaml",
    ]


@pytest.mark.parametrize(
    ("key", "shown"),
    [
        (
            "label.method",
            ["label.method=rationale", "logprobs, rationale, contrast, score or votes", "Probabilities of"],
        ),
        ("seed", ["seed=0", "at least 0 and at most 4294967295"]),
        (
            "algorithm",
            ["kind dpo", "kind ppo", "kind grpo", "kind rloo", "algorithm.kl_coef=0.05", "algorithm.beta=0.04"],
        ),
        ("prompts.path", ["prompts.path\n", "a path"]),
        ("engine", ["labeler.path=null"]),
        ("sft.lora", ["sft.lora.rank=16"]),
        ("", ["seed=0", "label.method=rationale", "report.wanted={}"]),
    ],
)
def test_settings_are_explained(capsys: pytest.CaptureFixture[str], key: str, shown: list[str]) -> None:
    assert cli.main(["config", "--explain", *([key] if key else [])]) == 0
    printed = capsys.readouterr().out
    assert [text for text in shown if text not in printed] == []
    assert ("label.method" in printed) == (key in ("", "label.method"))
    assert max(map(len, printed.splitlines())) <= 120


def test_a_mistyped_setting_is_explained_by_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["config", "--explain", "label.metod"]) == 2
    assert "did you mean label.method?" in capsys.readouterr().err


def test_explaining_loads_nothing_heavy() -> None:
    program = (
        "import sys; from constitutional.cli.main import main; main(['config', '--explain', 'label']);"
        "print(sorted({'torch', 'transformers', 'trl', 'datasets', 'hydra'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[]"


def command(*words: str, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "constitutional", *words],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **variables},
        check=False,
        capture_output=True,
        text=True,
    )


def test_what_the_terminal_has_no_letters_for_is_no_traceback(tmp_path: Path) -> None:
    done = command("config", "name=礼", "folder=nope", cwd=tmp_path, PYTHONIOENCODING="ascii")
    assert done.returncode == 0
    assert r"\u793c" in done.stdout
    done = command("config", "label.method=é", cwd=tmp_path, PYTHONIOENCODING="ascii")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_variables_that_a_launcher_left_behind_are_ignored_with_a_warning(tmp_path: Path) -> None:
    stale = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500"}
    done = command("config", cwd=tmp_path, **stale)
    assert done.returncode == 0
    (line,) = done.stderr.splitlines()
    assert "warning" in line
    assert all(name in line for name in stale)
    assert command("config", cwd=tmp_path, TORCHELASTIC_RUN_ID="none", **stale).stderr == ""


@pytest.mark.parametrize("words", [["config", "sweep=seeds"], ["run", "-m", "seed=1,2"]])
def test_a_sweep_leaves_no_trace_of_hydra_either(runs: Runs, tmp_path: Path, words: list[str]) -> None:
    assert cli.main(words) == 0
    assert len(runs.configs) == (2 if words[0] == "run" else 0)
    kept = ["runs", "runs/first.sweep.json"] if words[0] == "run" else []
    assert sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")) == kept


def test_no_library_sees_what_a_launcher_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert cli.main(["config", "--explain", "seed"]) == 0
    assert not {"WORLD_SIZE", "RANK"} & os.environ.keys()
