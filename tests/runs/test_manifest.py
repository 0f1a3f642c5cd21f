from pathlib import Path

import pytest

from constitutional.base.errors import RunError
from constitutional.engines.spending import Calls
from constitutional.runs.folder import RunStore
from constitutional.runs.outputs import Begun, Outputs
from constitutional.stages.summaries import ReportSummary


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "runs" / "first"


def make(folder: Path) -> None:
    """Run a stage `draft` that makes nothing but its summary."""
    with RunStore.open(folder, "{}") as store:
        place = folder.parent / ".stages" / "draft-f1"
        place.mkdir(parents=True)
        begun = Begun.now("draft", "f1", {}, {}, store.begin(1, "draft", place))
        store.finish(1, "draft", place, Outputs(place.parent).finish(begun, {}, Calls(asked=2), ReportSummary()))


def test_a_changed_manifest_is_found(folder: Path) -> None:
    make(folder)
    path = folder / "manifest.json"
    path.write_text(path.read_text().replace('"number": 1', '"number": 2'))
    with pytest.raises(RunError, match=r"manifest\.json: is damaged or was edited.*mv .*manifest\.json"):
        RunStore.load(folder)
    with pytest.raises(RunError, match="does not match its checksum"):
        RunStore.open(folder, "{}")


@pytest.mark.parametrize("content", ["", "[]", "{", '{"checksum": 1', "null", "{}", '{"format": 7}', "\udcff"])
def test_a_torn_manifest_is_found(folder: Path, content: str) -> None:
    make(folder)
    (folder / "manifest.json").write_text(content, encoding="utf-8", errors="surrogateescape")
    with pytest.raises(RunError, match=r"manifest\.json: is damaged"):
        RunStore.load(folder)
    (folder / "manifest.json").rename(folder / "manifest.json.old")
    with RunStore.open(folder, "{}") as store:
        assert store.manifest.stages == {}
