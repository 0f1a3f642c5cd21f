"""The command: serving, invitations, and votes that go back into a run."""

import csv
import io
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import httpx
import pytest
from sqlalchemy import select, update

from constitutional.base.errors import ConfigurationError, WaitingError
from constitutional.base.records import Comparison, Message, Preference, Prompt, Sample, SpotCheck, Verdict
from constitutional.cli.main import main
from constitutional.data.verdicts import read_verdicts
from constitutional.engines.base import Completion, Request
from constitutional.judging.evaluated import contests_of
from constitutional.judging.scores import Measurement
from constitutional.review.accounts import Accounts
from constitutional.review.ballot import Ballot, PrincipleChoice
from constitutional.review.database import FILE, Database
from constitutional.review.export import verdicts_of_ranks, write_demonstrations, write_table
from constitutional.review.plan import ItemPayload, items_of
from constitutional.review.schema import ITEM, PLAN
from constitutional.review.serve import LOCAL_S, bind, equal_replies, old_settings, open_review
from constitutional.review.settings import ReviewSettings, Task, read_settings
from constitutional.review.site import Site
from constitutional.review.store import CountedVote, ReviewStore, StoredPlan
from constitutional.runs import spotchecks
from constitutional.runs.compose import compose, freeze, load
from constitutional.runs.folder import RunStore
from tests.review.reviewing import URL, Browser, hidden_fields
from tests.review.test_kills import free_port
from tests.scripted_run import World, configured, constitution, go


def vote_on_all(folder: Path, ballot: Ballot, task: Task = "pair", **settings: object) -> None:
    review = open_review(RunStore.load(folder), ReviewSettings.model_validate({"task": task, **settings}))
    rater = review.accounts.rater_of(review.accounts.enter(review.accounts.invite("ada")) or "")
    assert rater is not None
    review.store.settle(review.plan, rater, ())
    while shown := review.store.next(review.plan, rater):
        review.store.vote(review.plan, rater, shown.id, f"{task} {shown.id}", ballot._replace(opened=True))
    review.database.close()


def test_it_serves_until_it_is_interrupted_and_keeps_the_votes(
    run_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [sys.executable, "-m", "constitutional", "review", str(run_folder), f"review.port={free_port()}"]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    address = process.stdout.readline().split()[-1]
    url = address.partition("/enter")[0]
    with httpx.Client(base_url=url, follow_redirects=True) as client:
        end = time.monotonic() + 20
        while True:
            try:
                page = client.get(address).text
                break
            except httpx.TransportError:
                assert time.monotonic() < end
                time.sleep(0.05)
        for path in ("/enter", "/start"):
            page = client.post(path, data=hidden_fields(page)).text
        assert (
            client.post("/vote", data=hidden_fields(page) | {"choice": "tie", "opened": "yes"}).url.params["notice"]
            == "saved"
        )
    assert main(["review", str(run_folder), "invite", "Bob"]) == 0
    assert capsys.readouterr().out.startswith(f"{url}/enter?token=")  # the port need not be typed again
    process.send_signal(signal.SIGINT)
    said, complained = process.communicate(timeout=20)
    assert process.returncode == 0
    assert f"1 vote; constitutional review {run_folder} freeze\n" in said
    assert "Traceback" not in complained
    database = Database.open(run_folder, None)
    store = ReviewStore(database)
    plan = store.plan("pair")
    assert plan is not None
    assert store.answered(plan) == 1
    assert plan.wanted == 40
    database.close()


def test_an_invitation_lets_somebody_in(run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["review", str(run_folder), "invite", "Bob", "--role", "lead", "review.port=9000"]) == 0
    link = capsys.readouterr().out.strip()
    assert link.startswith("http://127.0.0.1:9000/enter?token=")
    assert main(["review", str(run_folder), "invite", "Eve", "review.url=https://review.example.org"]) == 0
    assert capsys.readouterr().out.startswith("https://review.example.org/enter?token=")
    database = Database.open(run_folder, None)
    accounts = Accounts(database)
    rater = accounts.rater_of(accounts.enter(link.partition("token=")[2]) or "")
    database.close()
    assert rater is not None
    assert (rater.name, rater.role) == ("Bob", "lead")


def test_exported_votes_are_verdicts_that_the_run_mixes(run_folder: Path, tmp_path: Path) -> None:
    principles: dict[str, PrincipleChoice] = {
        "calm": "first",
        "brief": "tie",
        "kind": "not_applicable",
        "honest": "second",
    }
    vote_on_all(run_folder, Ballot("first", 3, principles, rationale="=1+1"), by_principle=True)
    out = tmp_path / "verdicts.jsonl"
    assert main(["review", str(run_folder), "export", "--out", str(out)]) == 0
    run = RunStore.load(run_folder)
    comparisons = {comparison.id for comparison in run.read("comparisons", Comparison)}
    verdicts = read_verdicts(out, comparisons)
    assert len(verdicts) == 40 * 4  # in all, and by three principles that apply
    whole = [verdict for verdict in verdicts if verdict.principle is None]
    assert {(verdict.rater, verdict.strength, verdict.rationale) for verdict in whole} == {("ada", 3, "=1+1")}
    assert {verdict.choice for verdict in whole} == {"a", "b"}  # the first reply is not always reply a
    calm = {verdict.comparison: verdict.choice for verdict in verdicts if verdict.principle == "calm"}
    honest = {verdict.comparison: verdict.choice for verdict in verdicts if verdict.principle == "honest"}
    assert all(calm[verdict.comparison] == verdict.choice != honest[verdict.comparison] for verdict in whole)
    rows = list(csv.DictReader(io.StringIO(out.with_suffix(".csv").read_text(encoding="utf-8-sig"))))
    assert len(rows) == 40
    assert {row["rationale"] for row in rows} == {"'=1+1"}

    folder = run_folder.parent.parent
    mixed, _ = go(
        configured(
            folder, "prompts.train=40", f"constitution.file={run_folder}/constitution.yaml", f"mix.verdicts={out}"
        ),
        World(),
    )
    kept = [json.loads(line) for line in mixed.artifact("preferences").read_text().splitlines()]
    assert sum(row["source"] == "human" for row in kept) == 40


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["frob"], "not understood"),
        (["invite"], "not understood"),
        (["invite", "A", "B"], "not understood"),
        (["invite", " "], "name of a rater"),
        (["invite", "A\x1b[31m"], "name of a rater"),
        (["invite", "x" * 101], "name of a rater"),
        (["invite", "A", "review.port=0"], "review.port=PORT"),
        (["export"], "--out"),
        (["export", "--out", "votes.txt"], ".jsonl"),
        (["export", "--out", "votes.jsonl", "review.task=rank"], "review.task=rank"),
        (["--out", "votes.jsonl"], "export"),
        (["--role", "lead"], "invitation"),
        (["review.prt=1"], "review.port"),
        (["port=1"], "review.KEY=VALUE"),
        (["review.port=1", "review.port=2"], "twice"),
        (["review.port=[1"], "YAML"),
        (["review.port=70000"], "review.port"),
        (["review.sensitive=['(']"], "regular expression"),
        (["review.sensitive=['x*']"], "every text"),
        (["review.sensitive={violence: 'x*'}"], "every text"),
        (["review.sensitive={violence: [stab]}"], "review.sensitive.violence"),
        (["review.sensitive={'  ': stab}"], "name of a category"),
        (["review.sensitive=['a;b']"], "{NAME: 'a;b'}"),
        (["review.sensitive=[[stab]]"], "expected words"),
        (["review.sensitive=[1984]"], "expected words"),
        (["review.sensitive=stab"], "review.sensitive"),
        (["review.url=https://user:pw@host"], "review.url"),
        (["review.url=http://host:99999"], "review.url"),
        (["review.url=http://host:abc"], "review.url"),
        (["review.url=http://[::1"], "review.url"),
        (["review.url=http://:80"], "review.url"),
        (["review.url=http://host?page"], "review.url"),
        (["review.currency=2024-13-45"], "review.currency"),
        (["review.host=0.0.0.0"], "review.url=https://"),
        (["invite", "A", "review.host=0.0.0.0"], "review.url=https://"),
        (["review.host=192.0.2.1"], "nobody is invited"),
        (["review.database=mysql://host/name"], "postgresql://"),
    ],
)
def test_what_is_typed_wrongly_is_told_in_a_line(
    run_folder: Path, capsys: pytest.CaptureFixture[str], words: list[str], complaint: str
) -> None:
    assert main(["review", str(run_folder), *words]) == 2
    said = capsys.readouterr().err.splitlines()
    assert complaint in said[-1]
    assert "\x1b" not in said[-1]


def test_settings_that_come_too_late_are_told(run_folder: Path) -> None:
    run = RunStore.load(run_folder)
    first = read_settings(["review.overlap=2", "review.sensitive=[reply]"])
    review = open_review(run, first)
    assert "reply" in review.plan.categories
    assert old_settings(review, first) == []
    review.database.close()
    later = ReviewSettings(overlap=4, by_principle=True, sensitive={"food": "bread"})
    review = open_review(run, later)
    notes = old_settings(review, later)
    review.database.close()
    assert ["by principle" in notes[0], "up to 2 votes" in notes[1], "'food'" in notes[2]] == [True] * 3


def test_a_run_without_comparisons_says_so(
    tmp_path: Path, run_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (run_folder / "04_sample_pairs").unlink()
    assert main(["review", str(run_folder)]) == 1
    assert "comparisons" in capsys.readouterr().err
    assert main(["review", str(tmp_path / "nowhere")]) == 2


def test_without_the_packages_it_says_what_to_install(
    run_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.startswith("constitutional.review")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert main(["review", str(run_folder)]) == 2
    assert "pip install '.[review]'" in capsys.readouterr().err


def test_other_machines_are_served_only_where_somebody_is_invited() -> None:
    every, url = "0.0.0.0", "https://review.example.org"  # noqa: S104 - which is refused
    for invited in (False, True):  # an invitation would need the URL too
        with pytest.raises(ConfigurationError, match=r"review\.url"):
            bind(ReviewSettings(host=every, port=0), invited=invited)
    for settings, advice in (
        (ReviewSettings(host="192.0.2.1"), r"invite NAME review\.host=192\.0\.2\.1 review\.port=8410$"),
        (ReviewSettings(host="192.0.2.1", url=url), rf"invite NAME review\.url={url}$"),
        (ReviewSettings(host=every, url=url, database="postgresql://x@y/z"), rf"={url} review\.database=…$"),
    ):
        with pytest.raises(ConfigurationError, match=advice):
            bind(settings, invited=False)
    bound = bind(ReviewSettings(port=0), invited=False)
    assert bound.proto == socket.IPPROTO_TCP  # without which asyncio holds small packets back
    with pytest.raises(ConfigurationError, match=r"review\.port=0"):
        bind(ReviewSettings(port=bound.getsockname()[1]), invited=False)
    bound.close()


def test_who_starts_the_command_is_invited_by_a_typed_invitation_alone(tmp_path: Path) -> None:
    database = Database.open(tmp_path, None)
    for clock in (time.time, lambda: 1_800_000_000.3):
        accounts = Accounts(database, clock)
        accounts.enter(accounts.invite("me", "lead", LOCAL_S))
        assert not accounts.anybody_invited(LOCAL_S)
    accounts.invite("me")
    accounts.invite("me", "lead", LOCAL_S)
    assert accounts.anybody_invited(LOCAL_S)
    database.close()


def test_a_database_of_another_run_is_refused(run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    open_review(RunStore.load(run_folder), ReviewSettings()).database.close()
    config = json.loads((run_folder / "config.json").read_text())
    config["config"]["name"] = "second"
    (run_folder / "config.json").write_text(json.dumps(config))
    assert main(["review", str(run_folder), "export", "--out", str(run_folder / "v.jsonl")]) == 2
    assert "'first'" in capsys.readouterr().err
    assert (run_folder / FILE).exists()


def test_rewritten_replies_are_samples_that_sft_reads(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from constitutional.stages.sft import read_helpful

    vote_on_all(run_folder, Ballot("rewritten", rewritten="Better."), "rewrite")
    out = tmp_path / "written.jsonl"
    assert main(["review", str(run_folder), "export", "--out", str(out), "review.task=rewrite"]) == 0
    samples, work, unsigned = read_helpful(out)
    prompts = {row.prompt.messages for row in RunStore.load(run_folder).read("comparisons", Comparison)}
    assert {sample.prompt.messages for sample in samples} == {messages for messages in prompts if len(messages) == 1}
    with out.with_suffix(".csv").open(encoding="utf-8-sig", newline="") as file:
        assert [row["rewritten"] for row in csv.DictReader(file)] == ["Better."] * len(prompts)  # all of them
    assert {sample.reply for sample in samples} == {"Better."}
    assert work is not None
    assert (work.raters, unsigned) == (1, 0)
    assert work.votes == work.timed == work.noted == len(samples)
    assert work.seconds > 0
    longer = len(prompts) - len(samples)
    assert f"{longer} replies to conversations of several messages, 0 skips, and 0.00 hours" in capsys.readouterr().err


# Plans


@pytest.mark.parametrize("task", ["pair", "rank", "rewrite"])
def test_no_plan_is_added_to_the_database_of_another_run(run_folder: Path, task: Task) -> None:
    run = RunStore.load(run_folder)
    review = open_review(run, ReviewSettings())
    review.database.write(lambda connection: connection.execute(update(PLAN).values(run="other")).close())
    review.database.close()
    complaint = f"holds the review of the run 'other', not of '{load(run_folder).name}'; type review.database="
    for plans in (True, False):
        with pytest.raises(ConfigurationError, match=complaint):
            open_review(run, ReviewSettings(task=task), plans=plans)
    database = Database.open(run_folder, None)
    with database.reading() as connection:
        assert [*connection.scalars(select(PLAN.c.task))] == ["pair"]
    database.close()


def comparison(question: str, a: str, b: str, **info: str) -> Comparison:
    return Comparison(prompt=Prompt(messages=(Message("user", question),), info=info), a=a, b=b, model="secret")


def test_items_are_the_comparisons_in_an_order_of_the_seed() -> None:
    comparisons = [comparison(f"Question {number}", "a", "b") for number in range(20)]
    orders = [
        [item.comparison for item in items_of(given, "pair", seed=seed, wanted=2, sensitive={})]
        for given, seed in ((comparisons, 1), (comparisons[::-1], 1), (comparisons, 2))
    ]
    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[0]) == sorted(row.id for row in comparisons)
    assert orders[0] != [row.id for row in comparisons]


def test_replies_to_a_prompt_are_ranked_together_and_one_is_rewritten() -> None:
    rows = [comparison("Q", "x", "y"), comparison("Q", "x", "z"), comparison("R", "v", "w")]
    ranked = {item.comparison: item.payload.replies for item in items_of(rows, "rank", seed=0, wanted=1, sensitive={})}
    assert ranked == {rows[0].prompt.id: ("x", "y", "z"), rows[2].prompt.id: ("v", "w")}
    (one, two) = items_of(rows, "rewrite", seed=0, wanted=1, sensitive={})
    assert {len(one.payload.replies), len(two.payload.replies)} == {1}


@pytest.mark.parametrize(
    ("row", "category"),
    [
        (comparison("Q", "a", "b", kind="harmful"), "requests for harmful acts"),
        (comparison("Q", "a", "b", kind="private"), "private data of people"),
        (comparison("Q", "a", "b", kind="howto"), ""),
        (comparison("About KNIVES", "a", "b", kind="howto"), "weapons"),
        (comparison("Q", "a", "a poison", kind="howto"), "poison"),
        (comparison("Knives", "a poison", "b", kind="harmful"), "requests for harmful acts; weapons; poison"),
    ],
)
def test_harmful_items_are_known_by_their_kind_or_by_words(row: Comparison, category: str) -> None:
    sensitive = {"weapons": "kni(fe|ves)", "poison": "poison"}
    (item,) = items_of([row], "pair", seed=0, wanted=1, sensitive=sensitive)
    assert item.category == category
    assert "secret" not in item.model_dump_json()


# Files


def counted(**changed: object) -> CountedVote:
    vote = CountedVote(
        comparison="c",
        payload=ItemPayload(messages=(Message("user", "Q"),), replies=("x", "y", "z")),
        rater="ada",
        choice="ranked",
        strength=1,
        principles={},
        ranks=(),
        rewritten="",
        rationale="",
        seconds=1,
        created=0,
        constitution="d",
        audit=False,
    )
    return vote._replace(**changed)  # type: ignore[arg-type]


def test_rewritten_replies_say_who_wrote_them_and_in_what_time(tmp_path: Path) -> None:
    longer = ItemPayload(
        messages=(Message("user", "Q"), Message("assistant", "A"), Message("user", "R")), replies=("x",)
    )
    votes = [
        counted(choice="rewritten", rewritten="One.", spent=18.5, exposed=True),
        counted(choice="rewritten", rewritten="Two.", rater="bob"),
        counted(choice="rewritten", rewritten="Three.", payload=longer, spent=7.0),
        counted(choice="skip", spent=3.0),
    ]
    written, left = write_demonstrations(tmp_path / "x.jsonl", votes)
    assert (written, left) == (2, votes[2:])
    assert [json.loads(line) for line in (tmp_path / "x.jsonl").read_text().splitlines()] == [
        {"prompt": "Q", "response": "One.", "rater": "ada", "seconds": 18.5, "exposed": True},
        {"prompt": "Q", "response": "Two.", "rater": "bob", "exposed": False},
    ]


def test_a_ranking_says_of_each_comparison_which_reply_is_ahead_and_how_far() -> None:
    rows = [comparison("Q", a, b) for a, b in (("x", "y"), ("y", "z"), ("z", "x"), ("x", "new"))]
    verdicts = list(verdicts_of_ranks([counted(comparison=rows[0].prompt.id, ranks=(1, 3, 1))], rows))
    expected = [("a", 2), ("b", 2), ("tie", 1)]
    assert [(verdict.choice, verdict.strength) for verdict in verdicts] == expected
    assert [verdict.comparison for verdict in verdicts] == [row.id for row in rows[:3]]
    assert list(verdicts_of_ranks([counted(choice="skip", comparison=rows[0].prompt.id)], rows)) == []
    assert all(isinstance(verdict, Verdict) for verdict in verdicts)
    timed = list(verdicts_of_ranks([counted(comparison=rows[0].prompt.id, ranks=(1, 3, 1), spent=9.0)], rows))
    assert [verdict.seconds for verdict in timed] == [9.0, 0.0, 0.0]


@pytest.mark.parametrize(
    "text", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "  =1", '=HYPERLINK("http://x")']
)
def test_no_cell_of_the_table_is_a_formula(tmp_path: Path, text: str) -> None:
    path = tmp_path / "votes.csv"
    write_table(path, [counted(rater=text, rationale=text, rewritten=text, comparison=text)])
    with path.open(encoding="utf-8-sig", newline="") as file:
        (row,) = csv.DictReader(file)
    assert {row[name] for name in ("rater", "rationale", "rewritten", "comparison")} == {f"'{text}"}
    assert row["when"] == "1970-01-01T00:00:00+00:00"


def test_the_planned_spot_checks_are_asked_and_frozen_and_the_run_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    constitution(tmp_path)
    asked = ["prompts.train=20", "label.principles=all", "until=mix", "spotcheck.budget=9", "spotcheck.overlap=0"]
    with pytest.raises(WaitingError, match="9 comparisons wait for 9 votes"):
        go(configured(tmp_path, *asked), World())
    folder = tmp_path / "runs" / "first"
    assert main(["review", str(folder), "freeze"]) == 2
    assert "nobody was asked" in capsys.readouterr().err
    vote_on_all(folder, Ballot("first", 2))
    assert main(["review", str(folder), "freeze"]) == 0
    said = capsys.readouterr().out
    assert "9 of 9 votes" in said
    assert "Votes that `constitutional votes import` read are not in it" in said
    words = shlex.split(said.strip().rpartition("\nNext: ")[2])
    assert words[:2] == ["constitutional", "run"]
    snapshot = words[-1].removeprefix("spotcheck.verdicts=")
    config = freeze(compose([*words[2:], "until=mix"]))
    assert config == freeze(configured(tmp_path, *asked, f"spotcheck.verdicts={snapshot}"))
    run, lines = go(config, World())
    assert len([line for line in lines if "done before" in line]) == 6  # whatever came before the votes
    plan, verdicts = run.read("spotchecks", SpotCheck), run.read("verdicts", Verdict)
    assert [verdict.comparison for verdict in verdicts] == [check.comparison for check in plan]
    review = open_review(run, ReviewSettings())
    votes = review.store.counted_votes(review.plan, audit=True)
    review.database.close()
    audit = {check.comparison for check in plan if check.reason == "audit"}
    assert len(audit) == 4
    assert {vote.comparison for vote in votes if vote.audit} == audit
    human = {row.comparison for row in run.read("preferences", Preference) if row.source == "human"}
    assert human
    assert not human & audit


def test_people_judge_the_evaluated_replies_and_the_report_alone_is_made_anew(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    constitution(tmp_path)
    words = ["evaluate.judged=4", "evaluate.critiqued=4"]
    store, _ = go(configured(tmp_path, *words), World())
    folder, sheet = store.folder, tmp_path / "sheet.csv"
    contests = contests_of(store.read("samples", Sample), store.read("measurements", Measurement))
    assert {contest.opponent for contest in contests} == {"base", "sft_model"}
    vote_on_all(folder, Ballot("first", 2))  # about the run's comparisons: another plan in the same database
    review = open_review(store, ReviewSettings(about="evaluation"))
    assert review.plan.wanted == len(contests)
    assert {item.id for item in review.lead.labels().comparisons} == {row.comparison.id for row in contests}
    rater = review.accounts.rater_of(review.accounts.enter(review.accounts.invite("ada")) or "")
    assert rater is not None
    shown = review.store.next(review.plan, rater)
    assert shown is not None
    review.store.vote(review.plan, rater, shown.id, "key", Ballot("tie", opened=True))
    told: list[int] = []
    site = Site(review.accounts, review.store, review.plan, URL, told.append, lead=review.lead)
    page = Browser(site).enter(review.accounts, "lea", role="lead").get("/lead").text
    assert "stands in the run’s report" in page
    assert "not known yet" not in page
    review.database.close()
    capsys.readouterr()
    assert main(["review", str(folder), "freeze", "review.about=evaluation"]) == 0
    said = capsys.readouterr().out
    assert "1 of " in said
    frozen = said.strip().rpartition("report.verdicts=")[2]
    assert said.strip().splitlines()[-1].startswith(f"Next: constitutional run from={folder} name=")
    assert main(["review", str(folder), "violations", "--out", str(sheet)]) == 0
    assert f"report.violations={sheet}" in capsys.readouterr().out
    with sheet.open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len({row["item"] for row in rows}) == len(rows) > 4
    for row in rows[:4]:
        row |= {"rater": "bob", "violates": "yes"}
    with sheet.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    assert main(["review", str(folder), "violations", "--out", str(sheet)]) == 2  # their answers stay, as is read below
    world = World()
    again, lines = go(configured(tmp_path, *words, f"report.verdicts={frozen}", f"report.violations={sheet}"), world)
    assert world.asked == []
    assert [line for line in lines if "running" in line] == ["10 report: running; its settings or inputs have changed"]
    people = json.loads(again.artifact("people").read_bytes())
    (won,) = people["estimates"]["win_rates"]
    assert {rate["name"]: rate["value"] for rate in won["rates"]}["by people alone"] == 0.5
    assert people["estimates"]["violations"][0]["rates"][-1]["value"] == 1.0
    assert [row["source"] for row in people["work"]["rows"]] == [
        "votes on the evaluated replies",
        "answers on violations",
    ]
    assert main(["review", str(folder), "violations"]) == 2
    assert "--out FILE.csv" in capsys.readouterr().err
    assert main(["review", str(folder), "freeze", "review.about=evaluation", "review.task=rank"]) == 2


def test_after_a_change_upstream_new_pairs_are_asked_about_and_votes_on_old_ones_are_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    constitution(tmp_path)
    words = ["prompts.train=12", "until=sample_pairs"]
    run, _ = go(configured(tmp_path, *words), World())
    before = {row.id for row in run.read("comparisons", Comparison)}
    vote_on_all(run.folder, Ballot("first"), overlap=2)
    run, _ = go(configured(tmp_path, *words, "prompts.train=15", "seed=5"), World())
    now = {row.id for row in run.read("comparisons", Comparison)}
    gone, new = before - now, now - before
    assert gone
    assert new
    review = open_review(run, ReviewSettings())
    review.database.close()
    # One vote is in on each pair of before, which wants a second one only where the run still compares it.
    assert review.plan.wanted == len(gone) + 2 * len(now)
    assert open_review(run, ReviewSettings(overlap=3)).plan.wanted == review.plan.wanted
    vote_on_all(run.folder, Ballot("second"))
    votes = tmp_path / "votes.jsonl"
    assert main(["review", str(run.folder), "freeze"]) == 0
    assert f"{len(gone)} votes in the database" in capsys.readouterr().err
    assert main(["review", str(run.folder), "export", "--out", str(votes)]) == 0
    (frozen,) = (run.folder / "verdicts").glob("*.jsonl")
    for file in (frozen, votes):
        assert {verdict.comparison for verdict in read_verdicts(file, now)} == now


def test_a_constitution_that_has_changed_is_told_where_raters_see_it(run_folder: Path) -> None:
    for task, by_principle in (("pair", True), ("rank", False)):
        settings = ReviewSettings.model_validate({"task": task, "by_principle": by_principle})
        review = open_review(RunStore.load(run_folder), settings)
        assert old_settings(review, settings) == []
        review.database.close()
        changed = ReviewStore(review.database, constitution="another")
        notes = old_settings(review._replace(store=changed), settings)
        assert ["constitution" in note for note in notes] == [True] * by_principle


class Alike(World):
    """Models that often give the reply of the others, with other spaces."""

    def answer(self, request: Request, model: str) -> Completion:
        said = super().answer(request, model)
        last = request.messages[-1].content
        alike = not request.choices and "principle" not in last and sum(last.encode()) % 2
        return Completion(f"The same{' ' * (1 + len(model) % 3)}reply.", "stop") if alike else said


def test_nobody_is_asked_about_equal_replies(tmp_path: Path) -> None:
    constitution(tmp_path)
    store, _ = go(configured(tmp_path, "evaluate.judged=12", "evaluate.critiqued=0"), Alike())
    samples = store.read("samples", Sample)[:12]
    same = [row for row in samples if "same" in row.replies["policy"]]
    assert 0 < len(same) < 12
    assert any(row.replies["policy"] != row.replies["base"] for row in same)
    assert equal_replies(store) == 2 * len(same)
    contests = contests_of(samples, store.read("measurements", Measurement))
    assert contests
    assert not [row for row in contests if "same" in row.comparison.a]
    rows = [comparison("Q", "The same reply.", "The same  reply."), comparison("Q", "One.", "Another.")]
    assert [item.comparison for item in items_of(rows, "pair", seed=0, wanted=1, sensitive={})] == [rows[1].id]


def test_a_larger_budget_asks_for_the_rest_and_a_finished_run_is_asked_about_by_its_own_reward_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    constitution(tmp_path)
    asked = ["prompts.train=20", "label.principles=all", "until=mix", "spotcheck.overlap=0"]
    with pytest.raises(WaitingError, match="5 comparisons wait"):
        go(configured(tmp_path, *asked, "spotcheck.budget=5"), World())
    folder = tmp_path / "runs" / "first"
    open_review(RunStore.load(folder), ReviewSettings(sensitive={"everything": "."})).database.close()
    vote_on_all(folder, Ballot("first"))
    with pytest.raises(WaitingError, match="12 comparisons wait"):
        go(configured(tmp_path, *asked, "spotcheck.budget=12"), World())
    review = open_review(RunStore.load(folder), ReviewSettings(sensitive={"asked": "[?]"}))
    review.database.close()
    review = open_review(RunStore.load(folder), ReviewSettings())
    assert review.plan.plan.sensitive == {"everything": ".", "asked": "[?]"}
    with review.database.reading() as connection:
        categories = connection.scalars(select(ITEM.c.category)).all()
    assert len(categories) == 12
    assert all("everything" in category for category in categories)
    assert (review.plan.wanted, review.store.answered(review.plan)) == (12, 5)
    review.database.close()

    run, _ = go(configured(tmp_path, "name=second", "prompts.train=20", "spotcheck.targets=[reward]"), World())
    comparisons, models = run.read("comparisons", Comparison), list[Path]()

    def rewards(rows: Sequence[Comparison], model: Path) -> dict[str, float]:
        models.append(model)
        return dict.fromkeys((row.id for row in rows), 0.01)

    monkeypatch.setattr(spotchecks, "reward_probabilities", rewards)
    review = open_review(run, ReviewSettings(budget=6))
    review.database.close()
    assert models == [run.artifact("reward_model")]
    words = shlex.split(spotchecks.command_with_votes(run, tmp_path / "votes.jsonl", budget=6))
    config = compose(words[2:])
    assert (config.name, config.spotcheck.votes, config.spotcheck.targets) == ("second-people", 6, ("reward",))
    assert config.spotcheck.reward_model == run.artifact("reward_model").resolve()
    assert config.spotcheck.verdicts == tmp_path / "votes.jsonl"
    unknown = spotchecks.command_with_votes(run, tmp_path / "votes.jsonl")
    assert " spotcheck.budget=BUDGET " in unknown  # whoever asked people knows it
    plan = spotchecks.plan_of(run, load(run.folder), comparisons, 6)
    assert plan is not None
    assert review.plan.wanted == sum(check.votes for check in plan) <= 6
    assert {check.reason for check in plan} == {"audit", "reward"}
    assert all(0 < check.probability <= 1 for check in plan)

    for file in run.folder.glob(f"{FILE}*"):
        file.unlink()
    shutil.copy(folder / FILE, run.folder / FILE)
    before = open_plan(run.folder)
    with pytest.raises(ConfigurationError, match="the run 'first', not of 'second'"):
        open_review(run, ReviewSettings(budget=6))
    assert open_plan(run.folder) == before


def open_plan(folder: Path) -> StoredPlan | None:
    """The plan in a folder's database, whoever's it is."""
    database = Database.open(folder, None)
    try:
        return ReviewStore(database).plan("pair")
    finally:
        database.close()
