"""A run whose artifacts are shards, as those of more than 100,000 rows are, against one of JSON lines."""

from pathlib import Path

import pytest

from constitutional.base import shards
from constitutional.base.records import Comparison, Judgement, Preference, Prompt, Revision
from constitutional.runs.folder import RunStore
from constitutional.runs.manifest import StageEntry
from tests.scripted_run import World, configured, constitution, go

KINDS = {"revisions": Revision, "comparisons": Comparison, "judgements": Judgement, "preferences": Preference}


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
    for stage in ("sample_pairs", "label", "mix"):
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


@pytest.mark.parametrize("at", [30, 90])  # of 22 requests for a critique and a revision, and then for samples
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
