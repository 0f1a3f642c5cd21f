import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest

from constitutional.base.files import digest_of
from constitutional.base.shipped import shipped
from constitutional.cli import main as cli
from constitutional.constitution.constitution import Constitution, Principle
from constitutional.engines.spending import Calls
from constitutional.runs.context import OTHERS, constitution_digests
from constitutional.runs.folder import RunStore
from constitutional.runs.outputs import Begun, Outputs
from constitutional.runs.settings import RunConfig
from constitutional.runs.status import describe, outdated
from constitutional.stages.summaries import PromptsSummary, Summary
from tests.scripted_run import World, configured, constitution, go

ADVICE = "the run's command without until= brings up to date what depends on it"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "runs" / "first"


def summary(train: int = 1) -> Summary:
    """The summary of a stage, which differs where the number does."""
    return PromptsSummary(train=train, held_out=0, repeated=0)


def finish(  # noqa: PLR0913 - what a stage is
    store: RunStore,
    number: int,
    stage: str,
    text: str,
    needs: Mapping[str, str] | None = None,
    *,
    files: Mapping[str, str] | None = None,
    calls: Calls = Calls(),  # noqa: B008 - it is frozen
) -> None:
    """Run a stage that makes a file with this text; by the name of the stage, `draft` makes `draft_text`."""
    folder = begin(store, number, stage, text)
    (folder / "text.jsonl").write_text(f"{text}\n")
    begun = Begun.now(stage, text, needs or {}, files or {}, folder)
    made = {f"{stage}_text": folder / "text.jsonl"}
    place = folder.resolve()
    store.finish(number, stage, place, Outputs(place.parent).finish(begun, made, calls, summary(len(text))))


def begin(store: RunStore, number: int, stage: str, text: str) -> Path:
    place = store.folder.parent / ".stages" / f"{stage}-{text}"
    place.mkdir(parents=True, exist_ok=True)
    return store.begin(number, stage, place)


def three(store: RunStore) -> None:
    """`draft`, from which `sft` is made, from which `mix` is made."""
    finish(store, 0, "draft", "a")
    finish(store, 1, "sft", "b", {"draft_text": store.digest("draft_text"), "label.j2": "l"})
    finish(store, 2, "mix", "c", {"sft_text": store.digest("sft_text")})


def test_stages_are_described_in_running_order_with_their_failures(folder: Path) -> None:
    with RunStore.open(folder, "{}") as store:
        finish(store, 1, "draft", "a", calls=Calls(asked=2, reused=1))
        begin(store, 2, "sft", "b")
        store.fail("sft", "out of memory")
        finish(store, 3, "mix", "c")
        first, second, third = describe(store)
    assert (first.stage, first.state, first.rows, first.calls) == (
        "draft",
        "done",
        {"draft_text": 1},
        Calls(asked=2, reused=1),
    )
    assert (second.stage, second.folder, second.state, second.message) == ("sft", "02_sft", "failed", "out of memory")
    assert (third.stage, third.folder, third.rows) == ("mix", "03_mix", {"mix_text": 1})
    with RunStore.open(folder, "{}") as store:
        finish(store, 2, "sft", "b")
        assert [line.state for line in describe(store)] == ["done"] * 3


def test_stages_that_were_stopped_or_never_begun_are_described_too(folder: Path) -> None:
    with RunStore.open(folder, "{}") as store:
        finish(store, 1, "draft", "a")
        begin(store, 2, "sft", "f1")  # as a kill would leave it
    lines = describe(RunStore.load(folder), ["prompts", "draft", "sft", "mix"])
    assert [(line.folder, line.state) for line in lines] == [
        ("00_prompts", "not begun"),
        ("01_draft", "done"),
        ("02_sft", "not finished"),
        ("03_mix", "not begun"),
    ]


def test_a_stage_that_was_made_anew_with_the_same_bytes_leaves_those_after_it_as_they_are(folder: Path) -> None:
    with RunStore.open(folder, "{}") as store:
        three(store)
        finish(store, 0, "draft", "a")
        assert outdated(store) == ""


def test_what_no_longer_matches_what_it_was_made_from_is_named_and_so_is_what_rests_on_it(folder: Path) -> None:
    with RunStore.open(folder, "{}") as store:
        three(store)
        finish(store, 0, "draft", "other")
        assert outdated(store) == (
            f"01_sft (draft_text): made from what has changed since; 02_mix: made from what those made; {ADVICE}"
        )
        finish(store, 1, "sft", "other", {"draft_text": store.digest("draft_text")})
        assert outdated(store) == f"02_mix (sft_text): made from what has changed since; {ADVICE}"
        finish(store, 2, "mix", "c", {"sft_text": store.digest("sft_text")})
        assert outdated(store) == ""


def test_what_was_made_from_something_that_is_being_made_anew_is_named(folder: Path) -> None:
    with RunStore.open(folder, "{}") as store:
        three(store)
        begin(store, 1, "sft", "f2")  # as a kill would leave it
        assert outdated(store) == f"02_mix (sft_text): made from what has changed since; {ADVICE}"


def test_a_summary_that_a_stage_read_counts_as_what_it_was_made_from(folder: Path) -> None:
    with RunStore.open(folder, "{}") as store:
        finish(store, 0, "draft", "a")
        finish(store, 1, "report", "r", store.summaries(but="report"))
        assert outdated(store) == ""
        finish(store, 0, "draft", "more")
        assert outdated(store).startswith("01_report (draft summary): ")


def test_a_stage_is_named_whose_files_were_edited_or_are_gone(folder: Path, tmp_path: Path) -> None:
    pairs, rewards = tmp_path / "pairs.jsonl", tmp_path / "rewards"
    rewards.mkdir()

    def write(first: str, second: str) -> None:
        pairs.write_text(first)
        (rewards / "weights").write_text(second)

    write("a", "b")
    with RunStore.open(folder, "{}") as store:
        finish(store, 0, "draft", "a", files={str(path): digest_of(path) for path in (pairs, rewards)})
        finish(store, 1, "sft", "b", {"draft_text": store.digest("draft_text")})
    store = RunStore.load(folder)
    assert outdated(store) == ""
    rest = f"made from what has changed since; 01_sft: made from what those made; {ADVICE}"
    write("edited", "b")
    assert outdated(store) == f"00_draft ({pairs}): {rest}"
    write("a", "edited")
    assert outdated(store) == f"00_draft ({rewards}): {rest}"
    pairs.unlink()
    assert outdated(store) == f"00_draft ({pairs}, {rewards}): {rest}"
    write("a", "b")
    assert outdated(store) == ""


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ('{"digests": {"label.j2": "l"}}', False),
        ('{"digests": {"label.j2": "edited"}}', True),
        ('{"digests": {}}', False),  # nobody knows
        ("{}", False),
        ("[]", False),
        ("{", False),
    ],
)
def test_what_the_run_is_given_now_is_compared_with_what_a_stage_was_given(
    folder: Path, config: str, named: bool
) -> None:
    with RunStore.open(folder, config) as store:
        three(store)
        assert outdated(store).startswith("01_sft (label.j2): made from what has changed since; 02_mix: ") == named
        assert bool(outdated(store)) == named


def test_a_run_that_stops_after_an_edited_principle_was_labelled_by_says_which_stages_are_as_before(
    tmp_path: Path,
) -> None:
    constitution(tmp_path)

    def config(*overrides: str) -> RunConfig:
        return configured(tmp_path, "label.principles=all", "critique_revise.rounds=1", *overrides)

    store, _ = go(config(), World(), learns=False)
    assert outdated(store) == ""
    for need in ("comparisons", "labeler_accuracy"):
        assert store.stages["label"].needs[need] == store.digest(need)

    path = store.artifact("judgements")
    path.write_bytes(path.read_bytes()[:-40])
    store, said = go(config("until=label"), World(), learns=False)
    assert any(line.startswith("05 label: ") and "is damaged" in line for line in said)
    assert outdated(store) == ""  # the journal had it all, so the judgements are the same bytes

    constitution(tmp_path, kind="Be warm.")
    store, _ = go(config("until=label"), World(), learns=False)
    direct, resting, advice = outdated(store).split("; ")
    assert direct == (
        "06_mix (judgements), 09_evaluate (meanings, constitution), 10_report (meanings, revisions, judgements, "
        "constitution as written, "
        "critique_revise summary, label summary): made from what has changed since"
    )
    assert resting == "07_reward, 08_dpo: made from what those made"
    assert advice == ADVICE
    store, _ = go(config(), World(), learns=False)
    assert outdated(store) == ""


def test_what_left_out_principles_are_given_makes_nothing_out_of_date() -> None:
    # The run's file keeps none of it, so that nobody could tell later what it was.
    brief = Principle(id="brief", text="Cut it out.")
    whole = Constitution(name="Ours", principles=(Principle(id="calm", text="Stay calm."), brief))
    as_written = whole.select(without=["brief"])
    given = as_written.giving({"brief": {"critique": "Avoid verbosity."}})
    assert given.left_out[0].words("critique") == "Avoid verbosity."
    assert constitution_digests(given) == constitution_digests(as_written)
    reworded = whole.select(without=["brief"], wordings={"brief": "Be brief."})
    assert constitution_digests(reworded)[OTHERS] != constitution_digests(as_written)[OTHERS]


def test_an_edited_constitution_makes_what_reads_it_out_of_date_before_anything_is_run(tmp_path: Path) -> None:
    path = constitution(tmp_path)
    text = path.read_text()
    store, _ = go(configured(tmp_path), World(), learns=False)
    assert show_stale(store) == {}

    path.write_text(text.replace("text: Be brief.", "text: Be brief.\n    tags: [verbosity, avoid]"))
    assert show_stale(store) == {
        "01_labeler_check": "constitution tags",
        "09_evaluate": "constitution tags",
        "10_report": "constitution as written",
    }
    path.write_text(text.replace("name: Ours", "name: Everybody's"))
    assert show_stale(store) == {"10_report": "constitution as written"}

    path.write_text(text.replace("Be kind.", "Be warm."))
    assert show_stale(store) == {
        "01_labeler_check": "constitution",
        "02_critique_revise": "constitution for revision",
        "05_label": "constitution for comparison",
        "09_evaluate": "constitution",
        "10_report": "constitution as written",
    }
    assert "03_sft, 04_sample_pairs, 06_mix, 07_reward, 08_dpo: made from what those made" in outdated(store)

    path.write_text(text)
    assert show_stale(store) == {}


def test_an_edited_template_makes_what_is_asked_by_it_out_of_date_before_anything_is_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    constitution(tmp_path)
    shutil.copytree(shipped("prompts"), tmp_path / "words")
    monkeypatch.chdir(tmp_path)
    paths = ("constitution.file=ours.yaml", "templates=words", "folder=runs")  # from where the run is begun
    store, _ = go(configured(tmp_path, *paths), World(), learns=False)
    store = RunStore.load(store.folder.resolve())
    monkeypatch.chdir("/")
    assert show_stale(store) == {}
    template = tmp_path / "words" / "restate.j2"
    template.write_text(f"{template.read_text()} Be exact.")
    assert show_stale(store) == {"01_labeler_check": "restate.j2"}
    constitution(tmp_path, kind="Be warm.")
    assert show_stale(store)["01_labeler_check"] == "constitution, restate.j2"
    template.write_text("{{ principle")
    assert show_stale(store) == {}


def show_stale(store: RunStore) -> dict[str, str]:
    """By folder, what has changed since the stage was finished, as `show` prints it."""
    direct = outdated(store).partition(": made from what has changed since")[0]
    return dict(re.findall(r"(\w+) \(([^)]*)\)", direct))


@pytest.mark.parametrize("content", [None, "principles: [", "", "name: Ours\nprinciples: []\n"])
def test_a_constitution_that_is_gone_or_is_none_any_more_is_no_reason_to_fail(
    tmp_path: Path, content: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    path = constitution(tmp_path)
    store, _ = go(configured(tmp_path), World(), learns=False)
    capsys.readouterr()
    if content is None:
        path.unlink()
    else:
        path.write_text(content)
    assert outdated(store) == ""  # as it was when the run was last begun
    assert cli.main(["show", str(store.folder)]) == 0
    printed = capsys.readouterr()
    assert "10_report" in printed.out
    assert "Traceback" not in printed.err


def test_show_prints_what_is_out_of_date(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = constitution(tmp_path)
    store, _ = go(configured(tmp_path), World(), learns=False)
    capsys.readouterr()
    assert cli.main(["show", str(store.folder)]) == 0
    assert ADVICE not in capsys.readouterr().out
    path.write_text(path.read_text().replace("text: Be brief.", "text: Be brief.\n    tags: [verbosity, avoid]"))
    assert cli.main(["show", str(store.folder)]) == 0
    printed = capsys.readouterr()
    assert "09_evaluate (constitution tags)" in printed.out + printed.err
    assert ADVICE in printed.out + printed.err


def test_a_run_says_which_stages_were_made_from_peoples_comparisons_as_they_were(tmp_path: Path) -> None:
    constitution(tmp_path)
    people = tmp_path / "people.jsonl"
    rows = [{"prompt": f"Why {number}?", "chosen": "So.", "rejected": "No."} for number in range(4)]
    people.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    config = configured(tmp_path, "critique_revise.rounds=1", f"mix.human={people}")
    store, _ = go(config, World(), learns=False)
    assert store.stages["mix"].files == {str(people): digest_of(people)}
    assert outdated(store) == ""
    with people.open("a") as file:
        file.write(json.dumps({"prompt": "Why?", "chosen": "So.", "rejected": "No."}) + "\n")
    assert outdated(store).startswith(f"06_mix ({people}): made from what has changed since; 07_reward, 08_dpo, ")
    store, said = go(config, World(), learns=False)
    assert any(line.startswith("06 mix: running; its settings or inputs have changed") for line in said)
    assert outdated(store) == ""
