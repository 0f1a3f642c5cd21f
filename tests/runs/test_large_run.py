"""A run whose artifacts are shards, as those of more than 100,000 rows are, against one of JSON lines."""

from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from constitutional.base import shards
from constitutional.base.errors import UsageError
from constitutional.base.records import Comparison, Judgement, Preference, Prompt, Record, Revision
from constitutional.base.shards import Shards
from constitutional.cli.find import find
from constitutional.runs import search
from constitutional.runs.folder import RunStore
from constitutional.runs.manifest import StageEntry
from tests.scripted_run import World, configured, constitution, go

KINDS: dict[str, type[Record]] = {
    "revisions": Revision,
    "comparisons": Comparison,
    "judgements": Judgement,
    "preferences": Preference,
}


def until_mix(folder: Path, *words: str, world: World | None = None) -> RunStore:
    folder.mkdir(exist_ok=True)
    constitution(folder)
    common = ("prompts.train=12", "sample_pairs.samples=3", "mix.margin=0", "label.principles=all", "until=mix")
    store, _ = go(configured(folder, *common, *words), world or World())
    return store


def of_few_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on artifacts of more than five rows are shards of five rows."""
    monkeypatch.setattr(shards, "LARGE", 5)
    monkeypatch.setattr(shards, "AT_ONCE", 2)


def assert_same(store: RunStore, other: RunStore) -> None:
    assert store.read("prompts", Prompt) == other.read("prompts", Prompt)
    for name, kind in KINDS.items():
        assert store.read(name, kind) == other.read(name, kind), name
    for stage in ("critique_revise", "sample_pairs", "label", "mix"):
        found, expected = (run.stages[stage] for run in (store, other))
        assert found.summary == expected.summary
        assert list(found.summary.get("counts", ())) == list(expected.summary.get("counts", ()))
        assert found.warnings == expected.warnings
        assert rows(found) == rows(expected)


def rows(entry: StageEntry) -> dict[str, int | None]:
    return {name: artifact.rows for name, artifact in entry.artifacts.items()}


@pytest.mark.parametrize("more", [(), ("label.principles=telling",), ("mix.total=20", "mix.human_ratio=0")])
def test_a_run_of_shards_gives_the_rows_of_a_run_of_json_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: tuple[str, ...]
) -> None:
    expected = until_mix(tmp_path / "small", *more)
    of_few_rows(monkeypatch)
    found = until_mix(tmp_path / "large", *more)
    assert_same(found, expected)
    assert expected.artifact("comparisons").name == "comparisons.jsonl"
    assert [path.name for path in sorted(found.artifact("comparisons").iterdir())][:2] == [
        "00000.parquet",
        "00001.parquet",
    ]
    assert found.artifact("prompts").is_dir()


@pytest.mark.parametrize("at", [30, 75, 200])  # the 57th request is the last before sampling, the 93rd before labelling
def test_a_run_of_shards_that_is_killed_goes_on_from_the_journal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    whole = World()
    expected = until_mix(tmp_path / "small", world=whole)
    of_few_rows(monkeypatch)

    def kill() -> None:
        raise KeyboardInterrupt

    first, second = World(at, kill), World()
    with pytest.raises(KeyboardInterrupt):
        until_mix(tmp_path / "large", world=first)
    found = until_mix(tmp_path / "large", world=second)
    assert_same(found, expected)
    assert len(first.asked) == at
    # At most what was in flight at the kill is asked twice.
    assert len(whole.asked) - at < len(second.asked) <= len(whole.asked) - at + 8
    assert not list(tmp_path.rglob(".*.tmp"))


def test_a_shard_that_is_damaged_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    of_few_rows(monkeypatch)
    store = until_mix(tmp_path / "large")
    before = store.read("judgements", Judgement)
    shard = store.artifact("judgements") / "00001.parquet"
    shard.write_bytes(shard.read_bytes()[:-9])
    again = World()
    store = until_mix(tmp_path / "large", world=again)
    assert store.read("judgements", Judgement) == before
    assert again.asked == []
    assert len(list((tmp_path / "large" / "runs" / ".stages").glob("label-*.damaged-1"))) == 1


def test_items_of_shards_are_found_as_those_of_json_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = until_mix(tmp_path / "small")
    of_few_rows(monkeypatch)
    found = until_mix(tmp_path / "large")

    def told(store: RunStore, wanted: str, *, as_text: bool = False) -> list[str]:
        said = find(store, wanted, as_text=as_text, everything=True).replace(str(store.folder), "RUN")
        return said.partition("\nfiles\n")[0].splitlines()

    pair, judgement = found.read("comparisons", Comparison)[7], found.read("judgements", Judgement)[-1]
    preference, revision = found.read("preferences", Preference)[-1], found.read("revisions", Revision)[6]
    prompt = found.read("prompts", Prompt)[-1]
    for item in (pair, judgement, preference, revision, prompt):
        assert told(found, item.id) == told(expected, item.id)
    assert f"comparison {pair.id}: two responses of the model {pair.model[:16]}" in told(found, pair.id)
    assert told(found, pair.id[:9])[:1] == told(found, pair.id)[:1]
    assert told(found, "calm") == told(expected, "calm")
    assert told(found, "calm")[2].startswith(f"{found.artifacts()['preferences'].rows} preferences: ")
    words = pair.a.split()[1].upper()  # `Reply 1234ABCD.`
    assert told(found, words, as_text=True) == told(expected, words, as_text=True)
    assert "comparison" in "".join(told(found, words, as_text=True)[1:])
    place = find(found, pair.id).partition("\nfiles\n")[2].split()
    assert f"{found.artifact('comparisons')}/00001.parquet:3" in place  # the eighth row
    with pytest.raises(UsageError, match="nothing has the id"):
        find(found, "ffffffffffffffff")


@pytest.mark.parametrize(
    "text", ["Ein Größenvergleich", "一二三 and more", "\u00bd\n“Quoted” TEXT", 'a "b" \\ c\tend', "plain ascii words"]
)
def test_words_in_any_writing_are_found_in_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    of_few_rows(monkeypatch)
    path, _ = shards.write_artifact(tmp_path, "prompts", [Prompt.of(f"{number} Nothing.") for number in range(9)])
    shards.write_artifact(tmp_path, "prompts", [*Shards(path, Prompt), Prompt.of(f"It is {text}!")])
    store = cast("RunStore", SimpleNamespace(artifacts=lambda: ["prompts"], artifact=lambda _: path))
    for words in (text, text.upper(), text.rsplit(maxsplit=1)[-1]):
        ((row, shown),) = search.by_words(store, words)
        assert (row.file.name, row.line, shown) == ("00001.parquet", 5, f"It is {text}!")
    assert list(search.by_words(store, "other")) == []
