"""The command `votes`, on a run that was made up."""

import csv
import io
import json
import shlex
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from constitutional.base.files import write_rows
from constitutional.base.records import Comparison, Judgement, Prompt, Record, SpotCheck, Verdict
from constitutional.cli.main import main
from constitutional.data.verdicts import read_verdicts
from constitutional.judging.people import people_of, work_of
from constitutional.runs.compose import compose, dump, load
from constitutional.runs.folder import USED, RunStore
from tests.scripted_run import STAGES, finish

COMPARISONS = [
    Comparison(prompt=Prompt.of(f"Question {number}?"), a=f"One {number}.", b=f"Two {number}.", model="secret-model")
    for number in range(12)
]
COMPARISONS.append(Comparison(prompt=Prompt.of("Same?"), a="Same.", b="Same. "))
JUDGEMENTS = [
    Judgement(
        comparison=row.id,
        principle="calm",
        principle_text="Stay secretly calm.",
        labeler="secret-labeler",
        readings=(),
        p_a=0.123 + number / 20,
        weight=0.987,
    )
    for number, row in enumerate(COMPARISONS[:12])
]
PLAN = [
    SpotCheck(comparison=row.id, reason="audit", probability=0.4321, votes=1 + (row is COMPARISONS[3]))
    for row in COMPARISONS[2:6]
]
CONSTITUTION = """
principles:
- {id: calm, text: Stay secretly calm., uses: [comparison]}
- {id: Dear, text: "It costs $5, & it is <dear>.", uses: [comparison]}
- {id: kind, text: Be kind., uses: [revision]}
"""
FORMATS = ("label_studio", "argilla", "annotated_pairs", "csv")


@cache
def configuration(*overrides: str) -> str:
    return dump(compose(list(overrides)), {})


def run_folder(folder: Path, *overrides: str, plan: list[SpotCheck] | None = None) -> Path:
    names = [stage.name for stage in STAGES]
    path = folder / "first"
    with RunStore.open(path, configuration(*overrides)) as store:
        (path / USED).write_text(CONSTITUTION)
        finish(store, names.index("sample_pairs"), "sample_pairs", {"comparisons": COMPARISONS})
        finish(store, names.index("label"), "label", {"judgements": JUDGEMENTS})
        if plan is not None:
            rows: dict[str, list[Record]] = {"spotchecks": list(plan), "verdicts": []}
            finish(store, names.index("label") + 1, "spotcheck", rows)
    return path


def exported(run: Path, form: str, *more: str) -> Path:
    out = run.parent / f"tasks.{'csv' if form == 'csv' else 'json'}"
    assert main(["votes", "export", str(run), "--format", form, "--out", str(out), *more]) == 0
    return out


def ids_of(path: Path, form: str) -> list[str]:
    if form == "csv":
        rows = list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8-sig"))))
        return [row["comparison"].removeprefix("c_") for row in rows]
    content = json.loads(path.read_text())
    if form == "annotated_pairs":
        return [row["id"] for row in content["comparisons"]]
    return [row["metadata" if form == "argilla" else "data"]["comparison"].removeprefix("c_") for row in content]


def test_a_sheet_that_people_may_have_filled_in_stays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = run_folder(tmp_path, plan=PLAN)
    sheet = exported(run, "csv")
    sheet.write_text("filled in")
    assert main(["votes", "export", str(run), "--format", "csv", "--out", str(sheet)]) == 2
    assert str(sheet) in capsys.readouterr().err
    assert sheet.read_text() == "filled in"


@pytest.mark.parametrize("form", FORMATS)
def test_the_planned_spot_checks_go_out_blind(tmp_path: Path, form: str, capsys: pytest.CaptureFixture[str]) -> None:
    out = exported(run_folder(tmp_path, plan=PLAN), form)
    assert ids_of(out, form) == [check.comparison for check in PLAN]
    assert "4 planned spot-checks, for 5 votes" in capsys.readouterr().out
    written = [path for path in tmp_path.iterdir() if path.is_file()]
    assert len(written) == (2 if form in ("label_studio", "argilla") else 1)
    for path in written:
        text = path.read_text()
        assert not [word for word in ("secret", "0.4321", "audit", "0.987", "calm", "p_a") if word in text]


def test_a_plan_that_the_configuration_asks_for_is_made(tmp_path: Path) -> None:
    run = run_folder(tmp_path, "spotcheck.budget=6", "spotcheck.overlap=0")
    ids = ids_of(exported(run, "csv"), "csv")
    assert len(set(ids)) == 6
    assert set(ids) < {row.id for row in COMPARISONS[:12]}


def test_without_a_plan_all_comparisons_go_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ids_of(exported(run_folder(tmp_path), "csv"), "csv") == [row.id for row in COMPARISONS[:12]]
    assert "all 12 comparisons of the run, without 1 whose" in capsys.readouterr().out


def answered(path: Path, form: str) -> int:
    """Click on the left response of every task."""
    if form == "csv":
        rows = list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8-sig"))))
        stream = io.StringIO(newline="")
        writer = csv.DictWriter(stream, rows[0].keys())
        writer.writeheader()
        writer.writerows([{**row, "rater": "ada", "choice": "left"} for row in rows])
        path.write_text(stream.getvalue(), encoding="utf-8")
        return len(rows)
    content: Any = json.loads(path.read_text())
    if form == "annotated_pairs":
        content["annotators"]["x"] = {"name": "ada", "type": "human"}
        for row in content["comparisons"]:
            row["annotations"]["x"] = {"pref": "a"}
    for row in content if form == "label_studio" else ():
        result = [{"from_name": "better", "value": {"selected": "left"}}]
        row["annotations"] = [{"completed_by": {"email": "ada"}, "result": result}]
    for row in content if form == "argilla" else ():
        row["responses"] = {"better": [{"value": "left", "user_id": "ada", "status": "submitted"}]}
    path.write_text(json.dumps(content))
    return len(content["comparisons"] if form == "annotated_pairs" else content)


@pytest.mark.parametrize("form", FORMATS)
def test_votes_come_back_as_a_file_that_a_run_takes(
    tmp_path: Path, form: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_folder(tmp_path)
    path = exported(run, form)
    count = answered(path, form)
    out = tmp_path / "it's, all of them.jsonl"
    assert main(["votes", "import", str(run), str(path), "--out", str(out)]) == 0
    verdicts = read_verdicts(out, {row.id for row in COMPARISONS})
    assert len(verdicts) == count == 12
    assert {row.rater for row in verdicts} == {"ada"}
    sides = [row.choice for row in verdicts]
    assert {"a", "b"} == set(sides)  # the left response is now the one, now the other
    told = capsys.readouterr().out
    assert f"12 verdicts of 1 rater ({form}); 0 rows refused" in told
    assert "do not count these votes" in told
    command = told.strip().rpartition("\nNext: ")[2]
    words = shlex.split(command)
    assert words[:2] == ["constitutional", "run"]
    config = compose(words[2:])
    assert (config.mix.verdicts, config.name) == (out, f"{load(run).name}-people")


def test_the_command_that_goes_on_has_the_run_s_own_settings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_folder(tmp_path, "spotcheck.budget=5", "seed=7", "spotcheck.simulate={error: 0.1}", plan=PLAN)
    path = exported(run, "csv")
    answered(path, "csv")
    out = tmp_path / "verdicts.jsonl"
    capsys.readouterr()
    assert main(["votes", "import", str(run), str(path), "--out", str(out)]) == 0
    words = shlex.split(capsys.readouterr().out.strip().rpartition("\nNext: ")[2])
    assert words[:3] == ["constitutional", "run", f"from={run}"]
    config, before = compose(words[2:]), load(run)
    assert (config.name, config.seed) == (before.name, 7)
    assert config.spotcheck == before.spotcheck.model_copy(update={"verdicts": out, "simulate": None})


def test_bad_rows_are_listed_and_nothing_is_written_unless_they_may_be_skipped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_folder(tmp_path)
    path = exported(run, "csv")
    answered(path, "csv")
    lines = path.read_text().split("\n")
    lines[1], lines[4] = lines[1].replace("Question", "Riddle"), lines[4].replace("left", "centre")
    path.write_text("\n".join(lines))
    out = tmp_path / "verdicts.jsonl"
    command = ["votes", "import", str(run), str(path), "--out", str(out)]
    assert main(command) == 2
    told = capsys.readouterr().err
    assert [line.split(": ")[0] for line in told.splitlines()[:2]] == [f"{path}:2", f"{path}:5"]
    assert "2 rows refused, as listed above, so nothing is written; mend them, or" in told
    assert not out.exists()
    assert main([*command, "--skip-refused"]) == 0
    assert "2 rows refused" in capsys.readouterr().out
    assert len(out.read_text().splitlines()) == 10


def test_a_file_without_a_vote_is_refused_and_nothing_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_folder(tmp_path)
    out = tmp_path / "verdicts.jsonl"
    for form in FORMATS:
        tasks = exported(run, form)
        assert main(["votes", "import", str(run), str(tasks), "--format", form, "--out", str(out)]) == 2
        assert "12" in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize("content", ['[{"x": 1}]', "a,b\n1,2\n", '{"prompt": "x", "chosen": "y"}\n{}'])
def test_a_file_of_another_kind_is_refused(tmp_path: Path, content: str, capsys: pytest.CaptureFixture[str]) -> None:
    run = run_folder(tmp_path)
    path = tmp_path / "x"
    path.write_text(content)
    command = ["votes", "import", str(run), str(path), "--out", str(tmp_path / "out")]
    assert main(command) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"constitutional: {path}: ")
    assert all(form in told for form in FORMATS)
    for form in FORMATS:
        assert main([*command, "--format", form]) == 2
        assert "expected" in capsys.readouterr().err


@pytest.mark.parametrize("form", ["label_studio", "argilla", "csv"])
def test_people_are_asked_by_principle(tmp_path: Path, form: str) -> None:
    out = exported(run_folder(tmp_path), form, "--by-principle")
    beside = {"label_studio": ".config.xml", "argilla": ".settings.json", "csv": ".csv"}[form]
    text = out.with_suffix(beside).read_text().replace("\u2060", "")
    assert "Stay secretly calm." in text
    assert "It costs $5" in text
    assert "Be kind" not in text  # by which no responses are compared


def test_a_file_of_verdicts_has_somebody_to_compare_others_with(tmp_path: Path) -> None:
    verdicts = [Verdict(comparison=COMPARISONS[number].id, rater="x", choice="b") for number in range(2)]
    write_rows(tmp_path / "mine.jsonl", verdicts)
    content = json.loads(
        exported(run_folder(tmp_path), "annotated_pairs", "--verdicts", str(tmp_path / "mine.jsonl")).read_text()
    )
    default = content["metadata"]["default_annotator"]
    assert [row["annotations"][default]["pref"] for row in content["comparisons"]] == ["b", "b"]


def test_verdicts_need_no_import(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "verdicts.jsonl"
    write_rows(path, [Verdict(comparison=COMPARISONS[0].id, rater="x", choice="a")])
    assert main(["votes", "import", str(run_folder(tmp_path)), str(path), "--out", str(tmp_path / "out")]) == 2
    assert f"spotcheck.verdicts={path}" in capsys.readouterr().err


def test_the_later_vote_counts_and_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = run_folder(tmp_path)
    path = exported(run, "label_studio")
    answered(path, "label_studio")
    rows = json.loads(path.read_text())
    rows[0]["annotations"] += [
        {"completed_by": {"email": "ada"}, "result": [{"from_name": "verdict", "value": {"choices": ["tie"]}}]}
    ]
    path.write_text(json.dumps(rows))
    out = tmp_path / "verdicts.jsonl"
    assert main(["votes", "import", str(run), str(path), "--out", str(out)]) == 0
    assert "1 replaced by later ones" in capsys.readouterr().out
    assert [row.choice for row in read_verdicts(out, None)].count("tie") == 1


@pytest.mark.parametrize("form", ["annotated_pairs", "csv"])
def test_verdicts_go_out_and_come_back(tmp_path: Path, form: str) -> None:
    run = run_folder(tmp_path)
    first, second = COMPARISONS[:2]
    verdicts = [
        Verdict(comparison=first.id, rater="x", choice="b", strength=3, rationale="=1+1"),
        Verdict(comparison=first.id, rater="y", choice="both_bad", principle="calm"),
        Verdict(comparison=second.id, rater="x", choice="tie"),
    ]
    write_rows(tmp_path / "mine.jsonl", verdicts)
    path = exported(run, form, "--verdicts", str(tmp_path / "mine.jsonl"))
    out = tmp_path / "verdicts.jsonl"
    assert main(["votes", "import", str(run), str(path), "--out", str(out)]) == 0
    assert read_verdicts(out, None) == verdicts


@pytest.mark.parametrize("form", ["annotated_pairs", "csv"])
def test_people_s_work_is_the_same_after_a_round_trip(
    tmp_path: Path, form: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_folder(tmp_path)
    names = [row.id for row in COMPARISONS[:4]]
    ada = Verdict(comparison=names[0], rater="ada", choice="a", seconds=600.0, exposed=True)
    bob = Verdict(comparison=names[0], rater="bob", choice="b", seconds=600.0, exposed=False)
    verdicts = [
        Verdict(
            comparison=names[0], rater="lea (settled)", choice="b", seconds=1200.0, exposed=True, in_place_of=(ada, bob)
        ),
        Verdict(comparison=names[1], rater="ada", choice="a", strength=4, seconds=0.1 + 0.2, exposed=False),
        Verdict(comparison=names[1], rater="ada", choice="b", principle="calm"),
        Verdict(comparison=names[1], rater="bob", choice="a", seconds=1199.7),
        Verdict(comparison=names[2], rater="cem", choice="skip", seconds=3600.0, exposed=True, withdrawn=True),
        Verdict(comparison=names[3], rater="cem", choice="tie"),
    ]
    on_gold = Verdict(comparison="an example", rater="ada", choice="a", gold="a", seconds=900.0)
    file, out = tmp_path / "mine.jsonl", tmp_path / "verdicts.jsonl"
    write_rows(file, [*verdicts, on_gold])
    path = exported(run, form, "--verdicts", str(file))
    told = capsys.readouterr().out
    assert "6 verdicts on 4 comparisons" in told
    assert "1 verdict on gold items of 1 rater and 0.25 hours are not in it" in told
    assert "withdrawn: 1 of them" in told
    assert main(["votes", "import", str(run), str(path), "--out", str(out)]) == 0
    assert read_verdicts(out, None) == verdicts
    # 600 + 600 + 1200 + 0.3 + 1199.7 + 3600 seconds; of 7 answers, cem's tie alone has no time.
    work = work_of(read_verdicts(out, None))
    assert (work.raters, work.votes, work.withdrawn) == (4, 6, 1)
    assert (work.timed, work.noted, work.exposures) == (6, 5, 3)
    assert work.seconds == pytest.approx(7200)
    assert "Work: 2.00 hours, recorded for 6 of 7 answers; 3 exposures to harmful texts" in capsys.readouterr().out
    plan = [SpotCheck(comparison=name, reason="audit", probability=1.0) for name in names]
    before, after = (people_of(plan, rows, COMPARISONS, JUDGEMENTS, 0) for rows in (verdicts, read_verdicts(out, None)))
    assert after == before
    assert after.among.n == 2  # ada and bob, on the first as on the second


@pytest.mark.parametrize("form", ["annotated_pairs", "csv"])
def test_verdicts_of_which_none_counts_are_refused(
    tmp_path: Path, form: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_folder(tmp_path)
    file, path = tmp_path / "mine.jsonl", tmp_path / "x"
    withdrawn = Verdict(comparison=COMPARISONS[0].id, rater="y", choice="skip", seconds=8.0, withdrawn=True)
    write_rows(file, [withdrawn, Verdict(comparison="an example", rater="x", choice="a", gold="a")])
    assert main(["votes", "export", str(run), "--format", form, "--out", str(path), "--verdicts", str(file)]) == 2
    assert "no verdict that counts" in capsys.readouterr().err
    assert not path.exists()


@pytest.mark.parametrize(
    ("form", "lost"),
    [("label_studio", "and not whether the rater saw a harmful text"), ("argilla", "neither the time of a vote nor")],
)
def test_what_a_tool_cannot_tell_of_people_s_work_is_said(
    tmp_path: Path, form: str, lost: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_folder(tmp_path)
    path = exported(run, form)
    assert lost in capsys.readouterr().out
    answered(path, form)
    if form == "label_studio":
        content = json.loads(path.read_text())
        for row in content:
            row["annotations"][0]["lead_time"] = 300
        path.write_text(json.dumps(content))
    assert main(["votes", "import", str(run), str(path), "--out", str(tmp_path / "out.jsonl")]) == 0
    told = capsys.readouterr().out
    hours = "1.00 hours, recorded for 12" if form == "label_studio" else "0.00 hours, recorded for 0"
    assert f"Work: {hours} of 12 answers; 0 exposures to harmful texts, recorded for 0 (" in told
    assert lost in told


def test_judgements_go_out_as_annotated_pairs(tmp_path: Path) -> None:
    content = json.loads(exported(run_folder(tmp_path), "annotated_pairs", "--judgements").read_text())
    assert [row["response_a"]["text"] for row in content["comparisons"]] == [row.a for row in COMPARISONS[:12]]
    assert sorted(who["type"] for who in content["annotators"].values()) == ["principle", "unknown"]
    assert content["metadata"]["default_annotator"] in content["annotators"]
    prefs = [{one["pref"] for one in row["annotations"].values()} for row in content["comparisons"]]
    assert prefs == [{"b"} if judgement.p_a and judgement.p_a < 0.5 else {"a"} for judgement in JUDGEMENTS]


def test_people_stand_beside_the_judgements(tmp_path: Path) -> None:
    run = run_folder(tmp_path)
    write_rows(tmp_path / "mine.jsonl", [Verdict(comparison=COMPARISONS[4].id, rater="x", choice="tie")])
    path = exported(run, "annotated_pairs", "--judgements", "--verdicts", str(tmp_path / "mine.jsonl"))
    content = json.loads(path.read_text())
    assert sorted(who["type"] for who in content["annotators"].values()) == ["human", "principle", "unknown"]
    assert [len(row["annotations"]) for row in content["comparisons"]] == [2] * 4 + [3] + [2] * 7
    out = tmp_path / "verdicts.jsonl"
    assert main(["votes", "import", str(run), str(path), "--out", str(out)]) == 0
    assert [row.choice for row in read_verdicts(out, None)] == ["tie"]


@pytest.mark.parametrize(
    "words",
    [
        ["--format", "csv", "--judgements"],
        ["--format", "argilla", "--verdicts", "x"],
        ["--format", "toml"],
        ["--format", "annotated_pairs", "--by-principle"],
        ["--format", "csv", "--by-principle", "--verdicts", "x"],
    ],
)
def test_what_does_not_go_together_is_refused(tmp_path: Path, words: list[str]) -> None:
    run = run_folder(tmp_path)
    command = ["votes", "export", str(run), "--out", str(tmp_path / "x"), *words]
    if "toml" in words:
        with pytest.raises(SystemExit):
            main(command)
    else:
        assert main(command) == 2
    assert not (tmp_path / "x").exists()


def test_a_folder_without_a_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["votes", "export", str(tmp_path), "--format", "csv", "--out", str(tmp_path / "x")]
    assert main(command) == 2
    assert "holds no run" in capsys.readouterr().err
