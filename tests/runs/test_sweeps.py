import json
from pathlib import Path

import pytest

from constitutional.base.errors import ConfigurationError, ConstitutionalError, UsageError
from constitutional.base.records import Prompt
from constitutional.cli import main as cli
from constitutional.engines.spending import Calls
from constitutional.judging.scores import LEFT_OUT, Score
from constitutional.runs.compose import Job, compose, dump
from constitutional.runs.folder import RunStore
from constitutional.runs.settings import SweepSettings
from constitutional.runs.sweeps import (
    best,
    best_of_seeds,
    calls_of,
    check_kept,
    job_lines,
    jobs_of,
    names,
    quoted,
    read,
    sweep_file,
    write,
)
from constitutional.stages.summaries import EvaluateSummary
from tests.scripted_run import World, configured, constitution, finish, go, of_another_version

JOBS: dict[str, list[str]] = {"a": [], "b": [], "c": ["constitution.without=[calm]"]}


def overrides(path: Path, *words: str) -> list[tuple[str, ...]]:
    """What each job's overrides add to what was typed."""
    jobs = jobs_of([f"constitution.file={path}", *words], multirun=True)
    return [job.overrides[1 + sum(not word.startswith("sweep.") for word in words) :] for job in jobs]


def test_principles_are_left_out_in_turn_beside_the_whole_constitution(tmp_path: Path) -> None:
    path = constitution(tmp_path)
    whole, *others = overrides(path, "sweep=principles")
    assert whole == ()
    assert others == [(f"constitution.without=[{name}]",) for name in ("calm", "brief", "kind", "honest")]
    # What is left out already stays out, and is not left out in turn.
    assert overrides(path, "sweep=principles", "constitution.without=[calm]", "sweep.whole=false") == [
        (f"constitution.without=[calm,{name}]",) for name in ("brief", "kind", "honest")
    ]


def test_a_sweep_with_more_jobs_goes_on_and_another_one_of_the_same_name_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "leave.sweep.json"
    folders = [tmp_path / f"leave-seed={seed}" for seed in range(3)]
    write(file, SweepSettings(), [Job((f"seed={seed}",), (f"seed={seed}",)) for seed in range(2)], folders[:2])
    check_kept(file, folders)
    with pytest.raises(UsageError, match=r"leave-seed=0 .*name=OTHER"):
        check_kept(file, folders[1:])
    file.write_text("{")  # nothing is left of it that could be lost
    check_kept(file, folders[1:])


def test_principles_stand_alone_or_in_all_sets_of_a_size(tmp_path: Path) -> None:
    path = constitution(tmp_path)
    alone = overrides(path, "sweep=principles", "sweep.keep=alone", "sweep.whole=false")
    assert alone == [(f"constitution.only=[{name}]",) for name in ("calm", "brief", "kind", "honest")]
    triples = overrides(path, "sweep=principles", "sweep.keep=subsets", "sweep.size=3", "sweep.whole=false")
    assert triples == [
        (f"constitution.only=[{names}]",)
        for names in ("calm,brief,kind", "calm,brief,honest", "calm,kind,honest", "brief,kind,honest")
    ]
    with pytest.raises(ConfigurationError, match=r"sweep\.size=5.*0 sets"):
        overrides(path, "sweep=principles", "sweep.keep=subsets", "sweep.size=5")


def test_a_control_has_the_words_of_one_principle_in_another_order(tmp_path: Path) -> None:
    controls = overrides(constitution(tmp_path), "sweep=principles", "sweep.control=true")[5:]
    texts = [compose([*control]).constitution.wordings for control in controls]
    assert texts == [{"calm": "calm. Stay"}, {"brief": "brief. Be"}, {"kind": "kind. Be"}, {"honest": "honest. Be"}]
    # Whatever reads them, models are given the words in that order.
    assert [compose([*control]).constitution.as_written for control in controls] == [
        *(("calm",), ("brief",), ("kind",), ("honest",)),
    ]
    own = overrides(tmp_path / "ours.yaml", "sweep=principles", "sweep.control=true", "constitution.as_written=[kind]")
    assert compose([*own[5]]).constitution.as_written == ("kind", "calm")


def test_every_constitution_of_a_sweep_has_jobs_of_its_own_and_seeds_repeat_them(tmp_path: Path) -> None:
    (tmp_path / "two.yaml").write_text("name: Two\nprinciples: [{id: a, text: Be a.}, {id: b, text: Be b.}]\n")
    files = f"constitution.file={constitution(tmp_path)},{tmp_path}/two.yaml"
    jobs = jobs_of(["sweep=principles", files, "seed=range(0,2)"], multirun=True)
    assert len(jobs) == (5 + 3) * 2
    assert jobs[-1].overrides[-2:] == ("seed=1", "constitution.without=[b]")


def test_a_weight_and_a_wording_take_values_in_turn(tmp_path: Path) -> None:
    path = constitution(tmp_path)
    assert overrides(path, "sweep=weights", "sweep.principle=brief", "sweep.values=[0.5,3]") == [
        ("constitution.weights.brief=0.5",),
        ("constitution.weights.brief=3",),
    ]
    (tmp_path / "texts.txt").write_text("Keep it short.\n\nDon't ramble: say $'x' {only}.\n")
    whole, *jobs = overrides(path, "sweep=wordings", "sweep.principle=brief", f"sweep.file={tmp_path}/texts.txt")
    texts = [compose(job).constitution.wordings["brief"] for job in jobs]
    assert (whole, texts) == ((), ["Keep it short.", "Don't ramble: say $'x' {only}."])


@pytest.mark.parametrize("text", ["it's \\' odd\\", "a ${x} b", 'q"q,[a]{b}=c', "é — ok;#x", "\\\\", "a = b, c"])
def test_a_quoted_text_means_itself(text: str) -> None:
    assert compose([f"constitution.wordings.brief={quoted(text)}"]).constitution.wordings == {"brief": text}


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["sweep=weights"], "type sweep.principle=ID, one of calm, brief, kind, honest"),
        (["sweep=weights", "sweep.principle=brif"], "did you mean 'brief'"),
        (["sweep=wordings", "sweep.principle=brief"], "type sweep.file=FILE"),
        (["sweep=wordings", "sweep.principle=brief", "sweep.file=nope.txt"], "nope.txt"),
        (["sweep=principle"], "there is no preset 'principle'.*did you mean principles"),
        (["sweep=principles", "sweep.kep=alone"], "did you mean sweep.keep"),
        (["sweep=principles", "sweep.keep=each"], 'sweep.keep is "each"'),
        (["sweep=principles", "constitution.only=[calm]"], "needs two principles"),
        (["sweep=principles", "sweep.keep=subsets,alone"], "sweep.keep"),
        (["sweep.size=2"], "type sweep=principles"),
        (["seed=interval(0,1)"], "sweep=optuna"),
    ],
)
def test_what_a_sweep_lacks_is_said(tmp_path: Path, words: list[str], problem: str) -> None:
    with pytest.raises(ConstitutionalError, match=problem):
        overrides(constitution(tmp_path), *words)


def test_what_is_about_a_sweep_is_refused_in_a_single_run() -> None:
    for word in ("sweep.size=2", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2"):
        with pytest.raises(UsageError, match="sweep"):
            compose([word])
    with pytest.raises(UsageError, match="type sweep=optuna"):
        compose(["hydra/sweeper=optuna"])


def test_names_of_runs_are_short_and_differ() -> None:
    swept = [
        ("whole",),
        ("constitution.without=[brief]",),
        ("constitution.only=[calm,brief]", "seed=1"),
        ("constitution.weights.brief=0.5",),
        ("a=x y",),
        ("a=x_y",),
    ]
    made = names(["x"] * len(swept), swept)
    assert made[:4] == ["x-whole", "x-without_brief", "x-only_calm,brief-seed=1", "x-weights.brief=0.5"]
    assert made[4].startswith("x-a=x_y-")
    assert made[5].startswith("x-a=x_y")
    assert len(set(made)) == len(made)


def measured(
    runs: Path,
    name: str,
    violations: dict[str, float],
    over_refusal: float,
    wins: float = 0.5,
    words: dict[str, str] | None = None,
) -> Path:
    """A run that was evaluated, with a stage of its own for its scores; it leaves out a principle with a `-`."""
    rates = {
        f"{LEFT_OUT if name.startswith('-') else ''}violation_rate/{name.removeprefix('-')}": rate
        for name, rate in violations.items()
    }
    measures = {**rates, "over_refusal": over_refusal, "win_rate/base": wins}
    rows = [
        Score(model=model, measure=measure, value=value, low=0.0, high=1.0, n=20, unit="share")
        for model in ("base", "policy")
        for measure, value in measures.items()
    ]
    folder = runs / name
    with RunStore.open(folder, dump(compose([]), {})) as store:
        finish(store, 0, "prompts", {"prompts": [Prompt.of(name)]})
        critiqued = {row.removeprefix("-"): f"Be {row.removeprefix('-')}." for row in violations} | (words or {})
        summary = EvaluateSummary(prompts=20, counts={}, critiqued=critiqued, wanted=None)
        finish(store, 9, "evaluate", {"scores": rows}, Calls(asked=10, reused=5), summary)
    return folder


@pytest.mark.parametrize(
    ("bound", "goal", "winner"),
    [(None, "violations", "x-a"), (0.2, "violations", "x-b"), (0.2, "preferred", "x-c"), (0.01, "violations", None)],
)
def test_a_sweep_tells_the_best_of_its_jobs_within_a_bound(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], bound: float | None, goal: str, winner: str | None
) -> None:
    runs = tmp_path / "runs"
    # Where principles differ, violations are compared over those that all jobs have: here `kind` alone.
    folders = [
        measured(runs, "x-a", {"kind": 0.1, "brief": 0.9}, 0.5),
        measured(runs, "x-b", {"kind": 0.2}, 0.1, wins=0.6),
        measured(runs, "x-c", {"kind": 0.3, "calm": 0.0}, 0.1, wins=0.7),
        runs / "x-d",
    ]
    settings = SweepSettings.model_validate({"over_refusal": bound, "objective": goal})
    write(runs / "x.sweep.json", settings, [Job((f"seed={n}",), (f"seed={n}",)) for n in range(4)], folders)
    lines = job_lines(runs / "x.sweep.json")
    assert [line.violations for line in lines] == pytest.approx([0.1, 0.2, 0.3, None])
    assert lines[3].run.state == "not begun"
    found = best(lines, read(runs / "x.sweep.json"))
    assert (found and found.run.name) == winner
    for name in ("x", "x.sweep.json"):
        assert cli.main(["show", str(runs / name)]) == 0
        printed = capsys.readouterr().out
        assert ("best, by" in printed) == (winner is not None)
        assert f": {winner}\n" in printed or winner is None
    assert sweep_file(runs / "x-a") is None  # a run is shown as a run


def test_leaving_a_principle_out_does_not_hide_what_it_costs_and_other_words_are_another_principle(
    tmp_path: Path,
) -> None:
    runs = tmp_path / "runs"
    folders = [
        measured(runs, "x-whole", {"kind": 0.2, "brief": 0.2}, 0.1, words={"brief": "Be terse."}),
        measured(runs, "x-without", {"-kind": 0.6, "brief": 0.0}, 0.1),
    ]
    write(runs / "x.sweep.json", SweepSettings(), [Job((name,), (name,)) for name in ("a=1", "a=2")], folders)
    # Of brief the two jobs have other words.
    assert [line.violations for line in job_lines(runs / "x.sweep.json")] == [0.2, 0.6]


def test_a_job_of_another_version_has_a_line_without_its_violations(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    folders = [measured(runs, f"x-{name}", {"kind": 0.2}, 0.1) for name in ("a", "b")]
    of_another_version(folders[0], "evaluate", "critiqued")
    write(runs / "x.sweep.json", SweepSettings(), [Job((name,), (name,)) for name in ("a=1", "a=2")], folders)
    lines = job_lines(runs / "x.sweep.json")
    assert [(line.run.name, line.violations) for line in lines] == [("x-a", None), ("x-b", 0.2)]


def test_a_principle_of_one_word_has_no_control(tmp_path: Path) -> None:
    path = constitution(tmp_path, brief="Concise.")
    labels = [control[-1] for control in overrides(path, "sweep=principles", "sweep.control=true")[5:]]
    assert len(labels) == 3
    assert not any("brief" in label for label in labels)


def test_a_control_is_never_the_best(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    folders = [
        measured(runs, "x-whole", {"kind": 0.2}, 0.1),
        measured(runs, "x-control_kind", {"kind": 0.1}, 0.1, words={"kind": "kind. Be"}),
    ]
    write(runs / "x.sweep.json", SweepSettings(), [Job((), ("whole",)), Job((), ("control_kind",))], folders)
    winner = best(job_lines(runs / "x.sweep.json"), read(runs / "x.sweep.json"))
    assert winner is not None
    assert winner.run.name == "x-whole"


def test_jobs_that_differ_by_their_seed_have_a_mean_and_a_range(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = tmp_path / "runs"
    rates = {"whole": (0.1, 0.3), "brief": (0.5, None)}
    jobs, folders = list[Job](), list[Path]()
    for label, by_seed in rates.items():
        for seed, rate in enumerate(by_seed):
            folders.append(runs / f"x-seed={seed}-{label}")
            jobs.append(Job((f"seed={seed}",), (f"seed={seed}", label)))
            if rate is not None:
                measured(runs, folders[-1].name, {"kind": rate}, 0.2)
    write(runs / "x.sweep.json", SweepSettings(), jobs, folders)
    assert cli.main(["show", str(runs / "x")]) == 0
    rows = [line.split("  ") for line in capsys.readouterr().out.splitlines() if " of 2 " in line]
    # One seed of `brief` is there alone, and has no mean.
    assert [[cell.strip() for cell in row if cell.strip()][:3] for row in rows] == [
        ["whole", "2 of 2", "20% (10%–30%)"]
    ]


def test_calls_that_another_job_paid_count_as_reused(tmp_path: Path) -> None:
    constitution(tmp_path)
    stores = [go(configured(tmp_path, f"name=x-{name}", *words), World())[0] for name, words in JOBS.items()]
    counted: set[Path] = set()
    first, second, third = (calls_of(store, counted) for store in stores)
    entries = [entry for store in stores for entry in store.stages.values()]
    assert first.asked > 0
    assert second == Calls(asked=0, reused=first.asked + first.reused)  # the same stages under another name
    assert 0 < third.asked < first.asked
    assert third.asked + third.reused == sum(
        entry.calls.asked + entry.calls.reused for entry in entries[-len(stores[2].stages) :]
    )


def test_the_jobs_are_written_with_their_overrides(tmp_path: Path) -> None:
    write(tmp_path / "x.sweep.json", SweepSettings(), [Job(("seed=1", "name=x"), ("seed=1",))], [tmp_path / "x-seed=1"])
    (job,) = json.loads((tmp_path / "x.sweep.json").read_text())["jobs"]
    assert job == {"folder": "x-seed=1", "swept": ["seed=1"], "overrides": ["seed=1", "name=x"]}


def test_of_several_seeds_the_best_is_a_mean(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = tmp_path / "runs"
    rates = {("0", "a"): 0.1, ("1", "a"): 0.5, ("0", "b"): 0.2, ("1", "b"): 0.2}
    folders = [measured(runs, f"x-{seed}-{lr}", {"kind": rate}, 0.0) for (seed, lr), rate in rates.items()]
    jobs = [Job((f"seed={seed}", f"lr={lr}"), (f"seed={seed}", f"lr={lr}")) for seed, lr in rates]
    write(runs / "x.sweep.json", SweepSettings(), jobs, folders)
    assert best_of_seeds(job_lines(runs / "x.sweep.json"), read(runs / "x.sweep.json")) == "lr=b"
    assert cli.main(["show", str(runs / "x")]) == 0
    assert "as a mean over seeds: lr=b" in capsys.readouterr().out


def test_a_sweep_cannot_have_a_run_s_name(tmp_path: Path) -> None:
    folder = measured(tmp_path, "x", {"kind": 0.1}, 0.0)
    with pytest.raises(UsageError, match="name=OTHER"):
        check_kept(tmp_path / "x.sweep.json", [folder.with_name("x-whole")])
    check_kept(tmp_path / "x.sweep.json", [folder])  # a sweep of one job, which goes on


def test_a_search_takes_the_place_of_one_over_the_same_settings_alone(tmp_path: Path) -> None:
    file, jobs = tmp_path / "x.sweep.json", [Job((word,), (word,)) for word in ("a.b=1", "a.b=2")]
    write(file, SweepSettings(), jobs, [tmp_path / "x-a.b=1", tmp_path / "x-a.b=2"])
    check_kept(file, [tmp_path / "x-a.b=3"], {"a.b"})  # its jobs are chosen one after the other
    with pytest.raises(UsageError, match="name=OTHER"):
        check_kept(file, [tmp_path / "x-a.c=3"], {"a.c"})


def test_who_names_a_sweep_or_mistypes_a_run_is_told(tmp_path: Path) -> None:
    measured(tmp_path, "x-whole", {"kind": 0.1}, 0.0)
    (tmp_path / "x.sweep.json").write_text("{}")
    with pytest.raises(UsageError, match=r"it is a sweep.*x-whole"):
        RunStore.load(tmp_path / "x")
    with pytest.raises(UsageError, match=r"did you mean .*x-whole"):
        RunStore.load(tmp_path / "x-whoel")
