"""More than two runs, or a sweep, on one page with the numbers beside it."""

import csv
import shlex
import shutil
from pathlib import Path

import pyarrow.parquet as pq  # type: ignore[import-untyped]
import pytest

from constitutional.base.records import Judgement, Preference, Prompt
from constitutional.cli import main as cli
from constitutional.engines.spending import Calls
from constitutional.runs.comparing import command, decided, needed
from constitutional.runs.compose import Job, compose, freeze
from constitutional.runs.settings import SweepSettings
from constitutional.runs.sweeps import SweepJob, write
from tests.scripted_run import World, configured, constitution, go, of_another_version

JOBS = {"whole": "", "without_calm": "constitution.without=[calm]", "without_kind": "constitution.without=[kind]"}


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep of three jobs that are done, and one that was not begun."""
    folder = tmp_path_factory.mktemp("swept")
    constitution(folder)
    jobs = []
    for name, word in JOBS.items():
        go(configured(folder, f"name=x-{name}", *filter(None, [word])), World())
        jobs.append(Job(("sweep=principles", "name=x", *filter(None, [word])), (name,)))
    jobs.append(Job(("name=x", "constitution.without=[brief]"), ("without_brief",)))
    places = [folder / f"runs/x-{name}" for name in (*JOBS, "without_brief")]
    write(folder / "runs/x.sweep.json", SweepSettings(), jobs, places)
    return folder / "runs/x"


def test_a_sweep_is_one_page_with_its_numbers_beside_it(
    swept: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["report", str(swept), "--out", str(tmp_path / "page.html")]) == 0
    files = [Path(line) for line in capsys.readouterr().out.splitlines()]
    assert [file.name for file in files] == ["page.html", "page.csv", "page.parquet"]
    html = files[0].read_text()
    assert "3 runs compared" in html
    assert "x-without_brief" in html  # it is not compared, and the page says so
    assert "constitutional run name=x-" in html
    assert "less the run without the principle" in html
    with files[1].open() as file:
        rows = list(csv.DictReader(file))
    assert {row["run"] for row in rows} == {f"x-{name}" for name in JOBS}
    assert len({(row["run"], row["measure"]) for row in rows}) == len(rows)
    length = next(row for row in rows if row["measure"] == "length")
    assert (length["value"], length["n"], length["unit"]) == ("2.0", "4", "words")
    table = pq.read_table(files[2]).to_pylist()
    assert [(row["run"], row["measure"], row["n"]) for row in table] == [
        (row["run"], row["measure"], int(row["n"])) for row in rows
    ]


def test_more_than_two_runs_are_compared_by_their_numbers_and_two_with_all_their_parts(
    swept: Path, tmp_path: Path
) -> None:
    runs = [str(swept.parent / f"x-{name}") for name in JOBS]
    for count, has_parts in ((3, False), (2, True)):
        assert cli.main(["report", *runs[:count], "--out", str(tmp_path / "page.html")]) == 0
        html = (tmp_path / "page.html").read_text()
        assert ("From draft to revision" in html) == has_parts
        assert (tmp_path / "page.parquet").is_file()


def test_a_sweep_without_two_finished_jobs_is_refused(
    swept: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = swept.parent / "x-whole"
    write(tmp_path / "y.sweep.json", SweepSettings(), [Job((), ()), Job((), ("b",))], [place, tmp_path / "y-b"])
    assert cli.main(["report", str(tmp_path / "y"), "--out", str(tmp_path / "page.html")]) != 0
    said = capsys.readouterr().err
    assert "y-b: not begun" in said
    assert "without until=" not in said
    assert not (tmp_path / "page.html").exists()


def test_runs_that_end_early_are_told_to_go_on_without_until(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    constitution(tmp_path)
    for name in ("a", "b"):
        go(configured(tmp_path, f"name={name}", "until=sample_pairs"), World())
    runs = [str(tmp_path / "runs" / name) for name in ("a", "b")]
    assert cli.main(["report", *runs, runs[0], "--out", str(tmp_path / "page.html"), *()]) != 0
    assert "type the commands that began them again, without until=" in capsys.readouterr().err


def test_a_run_of_another_version_is_listed_and_the_others_are_compared(swept: Path, tmp_path: Path) -> None:
    shutil.copytree(swept.parent, tmp_path / "runs", symlinks=True)
    of_another_version(tmp_path / "runs" / "x-whole", "evaluate", "critiqued")
    page = tmp_path / "page.html"
    assert cli.main(["report", *(str(tmp_path / "runs" / f"x-{name}") for name in JOBS), "--out", str(page)]) == 0
    assert "of another version" in page.read_text()
    assert "2 runs compared" in page.read_text()


def test_many_runs_that_are_out_of_date_are_named(
    swept: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = swept.parent.parent / "ours.yaml"
    written = file.read_text()
    try:
        file.write_text(written.replace("Be kind.", "Be nice."))
        assert cli.main(["report", str(swept), "--out", str(tmp_path / "page.html")]) == 0
    finally:
        file.write_text(written)
    assert capsys.readouterr().err.count("made from what has changed since") == len(JOBS)


def test_a_page_is_no_folder(swept: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder in (".", str(swept.parent)):
        assert cli.main(["report", str(swept), "--out", folder]) == 2
        assert "is a folder" in capsys.readouterr().err


def test_a_page_is_no_file_of_numbers(swept: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["report", str(swept), "--out", str(tmp_path / "page.csv")]) == 2
    assert "--out page.html" in capsys.readouterr().err
    assert cli.main(["report", str(swept), "--out", str(tmp_path / "none" / "page.html")]) == 2
    assert "there is no folder" in capsys.readouterr().err


def judgement(comparison: str, principle: str, p_a: float, weight: float = 1.0) -> Judgement:
    return Judgement(
        comparison=comparison, principle=principle, principle_text="…", labeler="x", readings=(), p_a=p_a, weight=weight
    )


def preference(comparison: str, **changed: object) -> Preference:
    row = Preference(
        prompt=Prompt.of("Why?"), chosen="x", rejected="y", probability=0.9, source="ai", comparison=comparison
    )
    return row.model_copy(update=changed)


def test_a_pair_is_decided_by_the_principle_that_pushed_hardest_towards_the_chosen_response() -> None:
    judgements = [
        # To a: 0.4 and 0.1; to b: 0.3 against 0.2 towards a; a principle of weight 3 pushes three times as hard.
        *(judgement("1", "calm", 0.9), judgement("1", "brief", 0.6)),
        *(judgement("2", "calm", 0.7), judgement("2", "brief", 0.2)),
    ]
    preferences = [
        preference("1"),
        preference("2"),
        preference("1", split="held_out"),
        preference("3", source="human"),
    ]
    assert decided(preferences, judgements) == {"calm": 1, "brief": 1, "": 1}
    heavy = [judgement("1", "calm", 0.7), judgement("1", "brief", 0.6, weight=3)]
    assert decided([preference("1")], heavy) == {"brief": 1}


def test_reused_answers_cost_what_asked_ones_do() -> None:
    calls = Calls(asked=2, reused=6, prompt_tokens=10, completion_tokens=4, cost=0.5)
    assert needed([calls, Calls()]) == Calls(asked=8, prompt_tokens=40, completion_tokens=16, cost=2.0)
    assert needed([calls, calls]) == Calls(asked=16, prompt_tokens=80, completion_tokens=32, cost=4.0)
    # What a stage cost that reused all is not known, and so neither is the sum.
    assert needed([calls, Calls(reused=5)]) == Calls(asked=13)


@pytest.mark.parametrize(
    ("words", "job"),
    [
        (
            ["sft.epochs=1", "constitution.without=[calm]"],
            ["sweep=principles", "name=y", "constitution.without=[calm]"],
        ),
        (["label.method=votes", "seed=3"], None),
        (["name='x,y=1'"], None),
        (["algorithm=grpo", "algorithm.beta=0.3", "labeler=http", "labeler.url=http://x/v1", "labeler.model=m"], None),
    ],
)
def test_the_command_of_a_run_has_its_settings(tmp_path: Path, words: list[str], job: list[str] | None) -> None:
    constitution(tmp_path)
    config = freeze(compose([f"constitution.file={tmp_path}/ours.yaml", f"folder={tmp_path}/runs", "name=x", *words]))
    swept = SweepJob(folder="x", swept=(), overrides=tuple(job)) if job else None
    program, run, *typed = shlex.split(command(swept, config))
    assert (program, run) == ("constitutional", "run")
    assert not any(word.startswith("sweep") for word in typed)
    assert freeze(compose(typed)) == config
