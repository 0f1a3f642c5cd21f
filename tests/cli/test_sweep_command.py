import os
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest

from constitutional.base.errors import ConstitutionalError, UsageError
from constitutional.base.records import Prompt
from constitutional.cli import main as cli
from constitutional.cli.sweep_command import run_sweep
from constitutional.runs import launch as launching
from constitutional.runs.compose import compose, dump, freeze, load
from constitutional.runs.folder import RunStore
from constitutional.runs.launch import check_launcher
from constitutional.runs.manifest import ENTRY
from constitutional.runs.settings import RunConfig
from constitutional.runs.sweeps import read
from constitutional.runs.weight_search import Search
from tests.runs.test_sweeps import measured
from tests.scripted_run import constitution, finish

ANSWERS = """
import os, time
def answer(request):
    with open({asked!r}, "a") as file:
        file.write(f"{{os.getpid()}}\\n")
    time.sleep({seconds})
    return "Reply."
"""
LAUNCHERS = {
    "joblib": ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"],
    "submitit": ["hydra/launcher=submitit_local"],
}


def installed(name: str) -> bool:
    """Whether one of Hydra's launchers is; the plugins share a package that is not there without any."""
    return find_spec("hydra_plugins") is not None and find_spec(f"hydra_plugins.hydra_{name}_launcher") is not None


launchers = pytest.mark.parametrize(
    "launcher",
    [
        pytest.param(words, marks=pytest.mark.skipif(not installed(name), reason="not installed"), id=name)
        for name, words in LAUNCHERS.items()
    ],
)


def scripted(folder: Path, seconds: float = 0.0) -> list[str]:
    """Words of a run in which a function plays every part, and writes down each answer."""
    constitution(folder)
    (folder / "mine.py").write_text(ANSWERS.format(asked=str(folder / "asked.txt"), seconds=seconds))
    roles = [
        word
        for role in ("generator", "critic", "labeler")
        for word in (f"{role}=scripted", f"{role}.function={folder}/mine.py:answer")
    ]
    small = ["prompts.train=4", "prompts.held_out=4", "until=critique_revise", "label.method=votes"]
    return [f"constitution.file={folder}/ours.yaml", "name=x", *roles, *small]


def started(folder: Path, *words: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "constitutional", "run", "-m", *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
@launchers
def test_jobs_in_several_processes_make_no_stage_twice(tmp_path: Path, launcher: list[str]) -> None:
    words = scripted(tmp_path, 0.01)
    # Both need the same drafts and critiques: what they differ in comes after.
    sweep = started(tmp_path, *launcher, *words, "reward.epochs=1,2", "seed=0")
    out, err = sweep.communicate(timeout=300)
    assert sweep.returncode == 0, err
    made = [entry.parent.name.partition("-")[0] for entry in (tmp_path / "runs" / ".stages").glob(f"*/{ENTRY}")]
    assert sorted(made) == ["critique_revise", "labeler_check", "prompts"]
    stores = [RunStore.load(tmp_path / "runs" / f"x-reward.epochs={epochs}") for epochs in (1, 2)]
    asked = sum(entry.calls.asked for entry in stores[0].stages.values())
    assert len((tmp_path / "asked.txt").read_text().splitlines()) == asked > 0
    assert f"{asked:,} model calls asked" in err
    assert "2 of 2 jobs are done" in err
    assert "x-reward.epochs=1" in out
    assert not {"multirun", "outputs", ".hydra"} & {path.name for path in tmp_path.rglob("*")}


@pytest.mark.slow
@launchers
def test_a_job_that_is_killed_takes_no_other_with_it_and_the_same_command_makes_up_for_it(
    tmp_path: Path, launcher: list[str]
) -> None:
    words = [*scripted(tmp_path, 0.05), "seed=0,1"]
    sweep = started(tmp_path, *launcher, *words)
    while not (asked := tmp_path / "asked.txt").exists() and sweep.poll() is None:
        time.sleep(0.1)
    os.kill(int(asked.read_text().split()[0]), signal.SIGKILL)
    _, err = sweep.communicate(timeout=300)
    assert sweep.returncode != 0
    assert "killed by signal 9" in err
    assert "1 of 2 jobs are done" in err
    again = started(tmp_path, *launcher, *words)
    _, err = again.communicate(timeout=300)
    assert (again.returncode, "2 of 2 jobs are done" in err) == (0, True), err


@pytest.mark.slow
@launchers
def test_a_sweep_that_is_interrupted_stops_its_jobs(tmp_path: Path, launcher: list[str]) -> None:
    sweep = started(tmp_path, *launcher, *scripted(tmp_path, 0.5), "seed=0,1")
    while not (asked := tmp_path / "asked.txt").exists() and sweep.poll() is None:
        time.sleep(0.1)
    sweep.send_signal(signal.SIGINT)
    _, err = sweep.communicate(timeout=120)
    assert sweep.returncode == 130
    assert "the same command goes on" in err
    for pid in {int(line) for line in asked.read_text().splitlines()}:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


@pytest.mark.skipif(not (installed("joblib") and installed("submitit")), reason="not installed")
@pytest.mark.parametrize(
    ("launcher", "typed", "names"),
    [
        ("submitit_slurm", (), ["journal-x-seed=0.sqlite", "journal-x-seed=1.sqlite"]),
        ("submitit_slurm", ("journal.path=answers.db",), ["answers-x-seed=0.db", "answers-x-seed=1.db"]),
        ("submitit_local", (), ["journal.sqlite"] * 2),
        ("joblib", ("journal.path=answers.db",), ["answers.db"] * 2),
    ],
)
def test_jobs_on_many_machines_have_a_journal_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, launcher: str, typed: tuple[str, ...], names: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    asked: list[int] = []

    class Launcher:
        def launch(self, overrides: list[list[str]], initial_job_idx: int) -> None:
            asked.append(len(overrides) + initial_job_idx)

    monkeypatch.setattr(launching, "_launcher", lambda *_: Launcher())
    run_sweep([f"hydra/launcher={launcher}", "name=x", "seed=0,1", *typed], lambda _: None)
    assert asked == [2]
    files = sorted((tmp_path / "runs/.sweeps/x").glob("x-seed=*.json"))
    assert [load(file).journal_file.name for file in files] == names


@launchers
def test_a_launchers_setting_that_there_is_not_is_refused(launcher: list[str]) -> None:
    check_launcher(launcher)
    with pytest.raises(UsageError, match="n_jbs"):
        check_launcher([launcher[0], "hydra.launcher.n_jbs=2"])


def test_a_launcher_that_is_not_there_is_refused_before_anything_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=r"no launcher 'nope'.*basic"):
        run_sweep(["hydra/launcher=nope", "seed=0,1"], lambda _: None)
    if find_spec("hydra_plugins") is None:
        with pytest.raises(UsageError, match="pip install hydra-joblib-launcher"):
            run_sweep(["hydra/launcher=joblib", "seed=0,1"], lambda _: None)
    assert list(tmp_path.iterdir()) == []


def test_a_sweep_says_how_far_it_is_and_goes_on_after_an_interrupt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    begun = []

    def run_one(config: RunConfig) -> None:
        begun.append(config.name)
        if len(begun) == 2:
            raise KeyboardInterrupt
        measured(tmp_path / "runs", config.name, {"kind": 0.1}, 0.0)

    with pytest.raises(KeyboardInterrupt):
        run_sweep(["seed=0,1,2"], run_one)
    assert begun == ["first-seed=0", "first-seed=1"]
    err = capsys.readouterr().err
    assert "job 1 of 3, first-seed=0: done; 10 model calls asked, 5 reused; 2 to go, about 0:" in err
    assert "1 of 3 jobs done; the same command goes on" in err
    assert [job.folder for job in read(tmp_path / "runs" / "first.sweep.json").jobs] == [
        f"first-seed={n}" for n in range(3)
    ]
    assert run_sweep(["seed=0,1,2"], run_one) == 0
    assert begun[2:] == ["first-seed=0", "first-seed=1", "first-seed=2"]
    # The first job was done before, so what it asked is saved now.
    assert "; this time 20 model calls asked, 25 reused" in capsys.readouterr().err


def test_what_a_sweep_of_the_same_name_would_make_otherwise_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    runs = tmp_path / "runs"

    def run_one(_: RunConfig) -> None:
        raise AssertionError("no job begins")

    measured(runs, "first", {"kind": 0.1}, 0.0)
    with pytest.raises(UsageError, match="first: is a run"):
        run_sweep(["seed=0,1"], run_one)
    # The job was made with another constitution, which is left out now.
    constitution(tmp_path)
    with RunStore.open(runs / "s-seed=0", dump(freeze(compose(["constitution.file=ours.yaml"])), {})) as store:
        finish(store, 0, "prompts", {"prompts": [Prompt.of("Hi")]})
    with pytest.raises(UsageError, match=r"from=runs/s-seed=0 .*ours\.yaml|ours\.yaml.* from=runs/s-seed=0 "):
        run_sweep(["seed=0,1", "name=s"], run_one)
    assert not list(runs.glob("*.sweep.json"))


@pytest.mark.skipif(find_spec("optuna") is None, reason="not installed")
def test_a_search_of_another_sweeps_name_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    def run_one(config: RunConfig) -> None:
        measured(tmp_path / "runs", config.name, {"kind": 0.1}, 0.0)

    assert run_sweep(["seed=0,1"], run_one) == 0
    kept = (tmp_path / "runs" / "first.sweep.json").read_bytes()
    with pytest.raises(UsageError, match="name=OTHER"):
        run_sweep(["sweep=optuna", "sweep.trials=2", f"{WEIGHT}=interval(1,2)"], run_one)
    assert (tmp_path / "runs" / "first.sweep.json").read_bytes() == kept


def test_a_defect_in_a_job_does_not_end_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    errors = [KeyError("oops")]

    def run_one(_config: RunConfig) -> None:
        if errors:
            raise errors.pop()

    assert run_sweep(["seed=0,1"], run_one) == 1
    err = capsys.readouterr().err
    assert "KeyError: 'oops'" in err
    assert "1 of 2 jobs are done" in err


def test_a_job_is_run_from_its_configuration_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["job", "nowhere.json"]) == 2


WEIGHT = "constitution.weights.brief"


@pytest.mark.skipif(find_spec("optuna") is None, reason="not installed")
def test_a_search_looks_where_the_objective_is_best_and_the_bound_is_kept() -> None:
    words = ["sweep=optuna", "sweep.trials=30", f"{WEIGHT}=interval(0.5,4.5)", "label.votes=choice(3,5)"]

    def searched() -> list[tuple[float, bool]]:
        search, tried = Search(words), []
        while jobs := search.ask():
            (job,) = jobs
            weight = float(next(word.split("=")[1] for word in job.overrides if word.startswith(WEIGHT)))
            votes = "label.votes=5" in job.overrides
            tried.append((weight, votes))
            # Five votes would be better at any weight, and are over the bound; the best weight is 3.
            search.tell([((weight - 3) ** 2 - 10 * votes, 1.0 if votes else -1.0)])
        return tried

    tried = searched()
    assert len(tried) == 30
    assert all(0.5 <= weight <= 4.5 for weight, _ in tried)
    later = tried[15:]
    assert sum(abs(weight - 3) < 0.75 and not votes for weight, votes in later) > len(later) / 2
    assert searched() == tried  # so a search that was stopped comes by the same jobs


@pytest.mark.skipif(find_spec("optuna") is None, reason="not installed")
def test_a_search_runs_its_jobs_and_tells_the_best(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    weights = []

    def run_one(config: RunConfig) -> None:
        weight = config.constitution.weights["brief"]
        weights.append(weight)
        measured(tmp_path / "runs", config.name, {"kind": abs(weight - 3) / 10}, 0.5 if weight > 3 else 0.0)

    words = ["sweep=optuna", "sweep.trials=6", "sweep.batch=2", "sweep.over_refusal=0.1", f"{WEIGHT}=interval(0.5,4.5)"]
    assert run_sweep(words, run_one) == 0
    best = max(weight for weight in weights if weight <= 3)
    assert f"at most: first-weights.brief={best:g}\n" in capsys.readouterr().out
    assert len(read(tmp_path / "runs" / "first.sweep.json").jobs) == len(weights) == 6


@pytest.mark.skipif(find_spec("optuna") is None, reason="not installed")
@pytest.mark.parametrize(
    ("word", "problem"),
    [
        (f"{WEIGHT}=interval(4,1)", "LOW less than HIGH"),
        (f"{WEIGHT}=interval(0,1)", "weights.brief"),
        ("seed=1", "nothing to search"),
        ("constitution.weights.brif=interval(1,2)", "did you mean 'brief'"),
    ],
)
def test_a_search_that_cannot_be_is_refused_before_the_first_job(word: str, problem: str) -> None:
    with pytest.raises(ConstitutionalError, match=problem):
        Search(["sweep=optuna", word])
