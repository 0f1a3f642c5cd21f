import json
import time
from pathlib import Path

import pytest

from constitutional.base.errors import UsageError
from constitutional.base.files import write_rows
from constitutional.base.records import Comparison, Judgement, Preference, Prompt, Record, Revision, RevisionStep
from constitutional.cli import main as cli
from constitutional.cli.find import find
from constitutional.constitution.constitution import Constitution, Principle
from constitutional.constitution.file import as_yaml
from constitutional.runs.compose import compose, dump
from constitutional.runs.folder import RunStore
from tests.scripted_run import finish

PRINCIPLES = (Principle(id="brief", text="Be brief."), Principle(id="calm", text="Stay calm."))


def step(principle: str, revision: str) -> RevisionStep:
    return RevisionStep(
        principle=principle, principle_text="…", critique="It shouts.", found_nothing=False, revision=revision
    )


BREAD = Prompt.of("How do I bake bread?")
SKY = Prompt.of("Why is the sky blue?")
CHANGED = Revision(prompt=BREAD, draft="Mix!", steps=(step("calm", "Mix."), step("brief", "Mix.")))
SAME = Revision(
    prompt=SKY, draft="Light\nscatters, “Größe” ﬁne.", steps=(step("calm", "Light\nscatters, “Größe” ﬁne."),)
)
PAIR = Comparison(prompt=BREAD, a="Mix flour.", b='Say "knead" it briefly.')
JUDGED = Judgement(comparison=PAIR.id, principle="brief", principle_text="Be brief.", labeler="", readings=(), p_a=0.9)
CHOSEN = Preference(
    prompt=BREAD,
    chosen=PAIR.a,
    rejected=PAIR.b,
    probability=0.9,
    source="ai",
    principles=("brief",),
    rests_on=(JUDGED.id,),
    comparison=PAIR.id,
)


def run_of(folder: Path, rows: dict[str, list[Record]]) -> RunStore:
    with RunStore.open(folder / "first", dump(compose([]), {})) as store:
        for number, (artifact, of_kind) in enumerate(rows.items()):
            finish(store, number, artifact, {artifact: of_kind})
    constitution = Constitution(name="Ours", principles=PRINCIPLES)
    (folder / "first" / "constitution.yaml").write_text(as_yaml(constitution))
    return RunStore.load(folder / "first")


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    rows: dict[str, list[Record]] = {
        "prompts": [BREAD, SKY],
        "revisions": [CHANGED, SAME],
        "comparisons": [PAIR],
        "judgements": [JUDGED],
        "preferences": [CHOSEN],
    }
    return run_of(tmp_path, rows)


def test_a_principle_lists_what_it_had_a_part_in(store: RunStore) -> None:
    lines = find(store, "calm").splitlines()
    assert lines[0] == "principle calm: Stay calm."
    assert "2 revisions: 1 changed, 1 unchanged" in lines
    assert any(CHANGED.id in line and "changed: How do I bake bread?" in line for line in lines)
    assert any(SAME.id in line and "unchanged: Why" in line for line in lines)
    assert lines[-1].endswith(f"constitutional show {store.folder} {CHANGED.id}")
    by_brief = find(store, "brief")
    assert all(row.id in by_brief for row in (CHOSEN, JUDGED, CHANGED))
    # The round by brief found the response as the round by calm had left it.
    assert "1 revision: 1 unchanged" in by_brief


def test_words_are_found_in_any_case_across_line_ends_and_quotes(store: RunStore) -> None:
    assert SAME.id in find(store, "LIGHT scatters")
    assert SAME.id in find(store, "größe")
    assert SAME.id in find(store, "fine")  # ﬁ is one character there
    assert PAIR.id in find(store, 'say "knead"')
    told = find(store, "bake bread")
    assert told.startswith("4 items")
    assert all(row.id in told for row in (BREAD, CHANGED, PAIR, CHOSEN))
    assert SKY.id not in told


def test_a_word_that_is_a_principle_is_looked_for_as_text_on_demand(store: RunStore) -> None:
    told = find(store, "brief", as_text=True)
    assert told.startswith("2 items")  # "briefly" of the pair, in the comparison and in the preference
    assert PAIR.id in told or CHOSEN.id in told


def test_an_item_is_shown_with_the_lines_where_it_stands(store: RunStore) -> None:
    told = find(store, CHOSEN.id)
    assert told == find(store, CHOSEN.id[:7]).replace("\r", "")
    *_, files = told.partition("\nfiles\n")
    places = [line.strip() for line in files.splitlines()]
    assert len(places) == 4
    for place in places:
        path, _, number = place.rpartition(":")
        row = json.loads(Path(path).read_text().splitlines()[int(number) - 1])
        assert row["id"] in {CHOSEN.id, JUDGED.id, PAIR.id, CHANGED.id}


def test_an_unchanged_revision_is_said_to_be_unchanged(store: RunStore) -> None:
    assert f"revision {SAME.id}: the draft is unchanged" in find(store, SAME.id)
    assert f"revision {CHANGED.id}\n" in find(store, CHANGED.id)


def test_a_word_that_also_begins_an_id_is_found_as_a_word(tmp_path: Path) -> None:
    pairs = [Prompt.of(f"Please number {number}.") for number in range(3000)]
    begun = next(row for row in pairs if row.id.startswith("bed"))
    store = run_of(tmp_path, {"prompts": [*pairs, Prompt.of("I went to bed.")]})
    told = find(store, "bed")
    assert "1 item with 'bed'" in told
    assert begun.id in told  # as an id that it begins
    assert find(store, begun.id[:9]).startswith(f"prompt {begun.id}")
    with pytest.raises(UsageError, match="ids"):
        find(store, begun.id[0])


def test_long_lists_are_cut_and_say_how_to_see_all(tmp_path: Path) -> None:
    store = run_of(tmp_path, {"prompts": [Prompt.of(f"Please number {number}.") for number in range(25)]})
    assert "15 more; --all" in find(store, "please")
    assert len(find(store, "please", everything=True).splitlines()) > 25


@pytest.mark.parametrize(("word", "told"), [("breif", "'brief'"), ("ffffffff", "id"), (" ", "empty")])
def test_what_is_not_there_is_told(store: RunStore, word: str, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        find(store, word)


def test_the_command_shows_items_by_principle(store: RunStore, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["show", str(store.folder), "brief"]) == 0
    assert capsys.readouterr().out.startswith("principle brief")
    assert cli.main(["show", str(store.folder), "brief", "--text"]) == 0
    assert capsys.readouterr().out.startswith("2 items")
    for words in (["--text", "brief"], ["--all", "brief", "--text"]):  # the item may stand behind a flag
        assert cli.main(["show", str(store.folder), *words]) == 0
        assert capsys.readouterr().out.startswith("2 items")


def test_a_damaged_line_is_named(store: RunStore, capsys: pytest.CaptureFixture[str]) -> None:
    path = store.artifact("judgements")
    path.write_text(path.read_text().replace('"readings": []', '"readings": ['))
    assert cli.main(["show", str(store.folder), "brief"]) == 1
    assert f"{path}:1: " in capsys.readouterr().err
    pairs = store.artifact("comparisons")
    pairs.write_text(pairs.read_text().replace('"a": ', '"c": '))
    assert cli.main(["show", str(store.folder), PAIR.id]) == 1
    assert f"{pairs}:1: expected a Comparison" in capsys.readouterr().err


def test_only_lines_that_may_match_are_parsed(store: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    path = store.artifact("judgements")
    others = [JUDGED.model_copy(update={"comparison": f"{number:016x}", "principle": "calm"}) for number in range(500)]
    write_rows(path, [*others, JUDGED])
    parsed: list[str] = []
    loads = json.loads

    def counting(text: str) -> object:
        parsed.append(text)
        return loads(text)

    monkeypatch.setattr(json, "loads", counting)
    started_s = time.monotonic()
    assert JUDGED.id in find(store, JUDGED.id)
    assert len(parsed) < 20
    assert time.monotonic() - started_s < 10
