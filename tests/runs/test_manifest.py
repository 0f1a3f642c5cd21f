import hashlib
import json
from pathlib import Path

import pytest

from constitutional.base.errors import RunError
from constitutional.runs.folder import RunStore
from constitutional.runs.manifest import Calls
from constitutional.stages.summaries import ReportSummary


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "runs" / "first"


def make(folder: Path) -> None:
    """Run a stage `draft` that makes nothing but its summary."""
    with RunStore.open(folder, "{}") as store:
        store.finish(store.begin(1, "draft", "f1"), {}, Calls(asked=2), ReportSummary())


def test_another_configuration_is_refused_key_by_key(folder: Path) -> None:
    identity = {"seed": 1, "label": {"method": "logprobs", "weights": {}}, "model": "sandbox", "share": (0.5, 1)}
    RunStore.open(folder, "{}", identity).close()
    RunStore.open(folder, "{}", identity).close()
    changed = {
        "seed": 1,
        "label": {"method": "votes", "weights": {}},
        "model": "sandbox",
        "rounds": 2,
        "share": (0.5, 1),
    }
    with pytest.raises(RunError) as caught:
        RunStore.open(folder, "{}", changed)
    assert str(caught.value) == (
        f'{folder}: holds a run with another configuration: label.method is "logprobs" there, "votes" here; '
        "rounds is not set there, 2 here. Choose another name=…, which asks for nothing again that the journal has an "
        f"answer to, or say fresh=true to replace what is in the folder, or delete it (rm -r {folder})"
    )
    RunStore.open(folder, "{}", identity).close()  # the refusal has changed nothing and given the lock back


def test_a_changed_manifest_is_found(folder: Path) -> None:
    make(folder)
    path = folder / "manifest.json"
    path.write_text(path.read_text().replace('"asked": 2', '"asked": 3'))
    with pytest.raises(RunError, match=r"manifest\.json: is damaged or was edited.*rm .*manifest\.json"):
        RunStore.load(folder)
    with pytest.raises(RunError, match="does not match its checksum"):
        RunStore.open(folder, "{}")


@pytest.mark.parametrize("content", ["", "[]", "{", '{"checksum": 1', "null", "{}", '{"format": 7}', "\udcff"])
def test_a_torn_manifest_is_found(folder: Path, content: str) -> None:
    make(folder)
    (folder / "manifest.json").write_text(content, encoding="utf-8", errors="surrogateescape")
    with pytest.raises(RunError, match=r"manifest\.json: is damaged"):
        RunStore.load(folder)
    with RunStore.open(folder, "{}", fresh=True) as store:
        assert store.manifest.stages == {}


def test_a_manifest_of_before_files_were_noted_is_read(folder: Path) -> None:
    make(folder)
    path = folder / "manifest.json"
    body = json.loads(path.read_bytes())
    del body["checksum"], body["stages"]["draft"]["files"]
    checksum = hashlib.sha256(json.dumps(body, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
    path.write_text(json.dumps({"checksum": checksum, **body}))
    assert RunStore.load(folder).manifest.stages["draft"].files == {}
    with RunStore.open(folder, "{}") as store:
        assert store.reason_to_run("draft", "f1") is None
