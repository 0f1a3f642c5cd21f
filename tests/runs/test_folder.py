import errno
import json
import os
import platform
import resource
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from constitutional.base.errors import RunError, UsageError
from constitutional.base.files import atomic_write, digest_of, read_rows, write_rows
from constitutional.base.records import Message, Prompt, Revision, RevisionStep
from constitutional.runs.folder import RunStore
from constitutional.runs.manifest import Calls
from constitutional.stages.summaries import LabelSummary, MixSummary

PROMPT = Prompt(messages=(Message("user", "Hi: {{ x }} \u2028 é"),), info={"kind": "howto"})
STEP = RevisionStep(principle="calm", principle_text="Be calm.", critique=None, found_nothing=False, revision="c")
REVISION = Revision(
    prompt=PROMPT,
    draft="a\nb",
    steps=(STEP,),
)
SUMMARY = LabelSummary(
    comparisons=4, judgements=4, unreadable=1, too_long=0, conflicts=2, ties=0, position_bias=float("nan")
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "runs" / "first"


def make(folder: Path, fingerprint: str = "f1", texts: tuple[str, ...] = ("a", "b")) -> None:
    """Run a stage `draft` that writes prompts."""
    with RunStore.open(folder, "{}") as store:
        begun = store.begin(1, "draft", fingerprint)
        path = begun.folder / "prompts.jsonl"
        write_rows(path, [Prompt(messages=(Message("user", text),)) for text in texts])
        store.finish(begun, {"prompts": path}, Calls(asked=2, reused=1), SUMMARY)


def test_rows_come_back_as_they_were_written_one_a_line(tmp_path: Path) -> None:
    path = tmp_path / "revisions.jsonl"
    assert write_rows(path, [REVISION, REVISION]) == 2
    assert list(read_rows(path, Revision)) == [REVISION, REVISION]
    assert [row.id for row in read_rows(path, Revision)] == [REVISION.id] * 2
    assert path.read_bytes().count(b"\n") == 2
    assert "é" in path.read_text()


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        (b"{]\n", ":2: expected a Prompt: Invalid JSON"),
        (b'{"messages": 3}\n', ":2: expected a Prompt: messages: Input should be a valid array"),
        (b'{"messages": [], "colour": "red"}\n', ":2: expected a Prompt: colour: Extra inputs are not permitted"),
        (b"\xff\n", ":2: expected a Prompt: Invalid JSON"),
        (b'{"messages": []}', ":2: the file ends in the middle of a row"),
    ],
)
def test_a_line_that_is_no_row_is_named_by_its_number(tmp_path: Path, line: bytes, complaint: str) -> None:
    path = tmp_path / "prompts.jsonl"
    write_rows(path, [PROMPT])
    path.write_bytes(path.read_bytes() + line)
    rows = read_rows(path, Prompt)
    assert next(rows) == PROMPT
    with pytest.raises(RunError, match=f"prompts.jsonl{complaint}.*delete it and start the run again"):
        next(rows)


def test_a_row_begins_with_its_id_which_reading_leaves_aside(tmp_path: Path) -> None:
    path = tmp_path / "revisions.jsonl"
    write_rows(path, [REVISION])
    assert path.read_text().startswith(f'{{"id": "{REVISION.id}", "prompt": {{"messages": ')
    path.write_text(path.read_text().replace(REVISION.id, "edited by someone"))
    (row,) = read_rows(path, Revision)
    assert row.id == REVISION.id  # a digest of what the row says, whatever is written there


def test_rows_that_break_off_leave_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    write_rows(path, [PROMPT])

    def broken() -> object:
        yield PROMPT
        yield PROMPT
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_rows(path, broken())  # type: ignore[arg-type] # an iterator, whatever its name says
    assert len(list(read_rows(path, Prompt))) == 1
    assert os.listdir(tmp_path) == ["prompts.jsonl"]  # noqa: PTH208 # hidden files too


def test_a_full_disk_leaves_the_old_file_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    atomic_write(path, b"old")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunError, match="file: cannot be written: No space left on device; make room"):
        atomic_write(path, b"new")
    monkeypatch.undo()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_killed_writer_left_behind_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / ".file.tmp").write_bytes(b"half of something longer")
    atomic_write(tmp_path / "file", b"whole")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("file", b"whole")]


def test_a_folders_digest_covers_names_bytes_and_places(tmp_path: Path) -> None:
    def model(name: str, files: dict[str, bytes]) -> str:
        for file, content in files.items():
            path = tmp_path / name / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        return digest_of(tmp_path / name)

    first = model("a", {"x": b"1", "y/z": b"2"})
    assert model("b", {"y/z": b"2", "x": b"1"}) == first
    assert model("c", {"x": b"1", "y/z": b"3"}) != first
    assert model("d", {"x": b"1", "z": b"2"}) != first
    assert model("e", {"x": b"1"}) != first


def test_a_run_folder_can_be_read(folder: Path) -> None:
    with RunStore.open(folder, '{"seed": 1}') as store:
        begun = store.begin(2, "label", "f1")
        path = begun.folder / "prompts.jsonl"
        write_rows(path, [PROMPT, PROMPT])
        model = begun.folder / "model"
        model.mkdir()
        (model / "weights").write_bytes(b"w")
        store.finish(begun, {"prompts": path, "model": model}, Calls(asked=3, reused=4), SUMMARY)
    assert (folder / "config.json").read_text() == '{"seed": 1}'
    assert sorted(path.name for path in (folder / "02_label").glob("[!.]*")) == [
        "model",
        "prompts.jsonl",
        "summary.json",
    ]
    written = json.loads((folder / "02_label" / "summary.json").read_text())
    assert written == SUMMARY.model_dump() | {"position_bias": None}  # JSON has no NaN
    entry = json.loads((folder / "manifest.json").read_text())["stages"]["label"]
    assert entry["fingerprint"] == "f1"
    assert entry["calls"] == {"asked": 3, "reused": 4}
    assert entry["artifacts"]["prompts"]["file"] == "02_label/prompts.jsonl"
    assert [each["rows"] for each in entry["artifacts"].values()] == [2, None, None]
    assert 0 <= entry["seconds"] < 10
    assert entry["versions"]["python"] == platform.python_version()
    assert entry["versions"]["numpy"] == metadata.version("numpy")

    store = RunStore.load(folder)
    assert store.read("prompts", Prompt) == [PROMPT, PROMPT]
    assert store.artifact("model") == folder / "02_label" / "model"
    assert store.digest("model") == digest_of(folder / "02_label" / "model")
    assert store.summary("label", LabelSummary) == SUMMARY.model_copy(update={"position_bias": None})
    with pytest.raises(RunError, match="has no 'scores' yet"):
        store.artifact("scores")


def test_a_summary_that_is_not_there_or_is_of_another_version_is_an_error_that_names_it(folder: Path) -> None:
    make(folder)
    store = RunStore.load(folder)
    with pytest.raises(RunError, match="'mix' is not finished"):
        store.summary("mix", MixSummary)
    with pytest.raises(RunError, match=r"01_draft/summary\.json: .*expected a MixSummary"):
        store.summary("draft", MixSummary)


def test_a_finished_stage_is_done_until_its_fingerprint_changes(folder: Path) -> None:
    make(folder)
    with RunStore.open(folder, "{}") as store:
        assert store.reason_to_run("draft", "f1") is None
        assert store.reason_to_run("draft", "f2") == "its settings or inputs have changed"
        assert store.reason_to_run("label", "f1") == "it has not been finished before"


@pytest.mark.parametrize("position", [0, 20, -1])
def test_a_flipped_bit_in_an_artifact_makes_the_stage_run_again(folder: Path, position: int) -> None:
    make(folder)
    path = folder / "01_draft" / "prompts.jsonl"
    damaged = bytearray(path.read_bytes())
    damaged[position] ^= 1
    path.write_bytes(damaged)
    with RunStore.open(folder, "{}") as store:
        assert store.reason_to_run("draft", "f1") == f"{path} is damaged: it is not what this stage wrote"
    make(folder)
    with RunStore.open(folder, "{}") as store:
        assert store.reason_to_run("draft", "f1") is None


@pytest.mark.parametrize("file", ["prompts.jsonl", "summary.json"])
def test_a_missing_file_makes_the_stage_run_again(folder: Path, file: str) -> None:
    make(folder)
    (folder / "01_draft" / file).unlink()
    assert RunStore.load(folder).reason_to_run("draft", "f1") == f"{folder / '01_draft' / file} is missing"


def test_work_that_was_begun_and_not_finished_keeps_its_checkpoints(folder: Path) -> None:
    with RunStore.open(folder, "{}") as store:
        (store.begin(3, "sft", "f1").folder / "checkpoint").write_text("step 100")
        store.fail("sft", "out of memory")
    with RunStore.open(folder, "{}") as store:
        assert store.reason_to_run("sft", "f1") is not None
        assert (store.begin(3, "sft", "f1").folder / "checkpoint").read_text() == "step 100"
    with RunStore.open(folder, "{}") as store:  # other settings: never mixed
        assert not (store.begin(3, "sft", "f2").folder / "checkpoint").exists()


@pytest.mark.parametrize("fingerprint", ["f1", "f2"])
def test_a_finished_stage_that_must_run_again_starts_from_nothing(folder: Path, fingerprint: str) -> None:
    make(folder)
    with RunStore.open(folder, "{}") as store:
        begun = store.begin(1, "draft", fingerprint)
        assert [path.name for path in begun.folder.iterdir()] == [".fingerprint"]
        assert "draft" not in RunStore.load(folder).manifest.stages


def test_a_second_holder_is_refused_and_told_who_the_first_is(folder: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from constitutional.runs.folder import RunStore\n"
        "with RunStore.open(Path(sys.argv[1]), '{}'):\n    print('open', flush=True); sys.stdin.read()"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    with subprocess.Popen(
        [sys.executable, "-c", program, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
    ) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        with pytest.raises(RunError, match=rf"first: is in use by process {holder.pid} on .*choose another name"):
            RunStore.open(folder, "{}")
        assert RunStore.load(folder).manifest.stages == {}  # reading is always possible
        holder.kill()
    RunStore.open(folder, "{}").close()  # a killed holder holds nothing


def test_the_same_process_cannot_open_a_folder_twice_but_again_after_closing(folder: Path) -> None:
    with RunStore.open(folder, "{}"), pytest.raises(RunError, match=f"in use by process {os.getpid()} "):
        RunStore.open(folder, "{}")
    RunStore.open(folder, "{}").close()


def test_fresh_removes_what_the_run_made_and_nothing_else(folder: Path) -> None:
    make(folder)
    (folder / "journal.sqlite").write_text("answers")
    (folder / "02_mine").mkdir()
    with RunStore.open(folder, "{}", {"seed": 2}, fresh=True) as store:
        assert store.manifest.stages == {}
        assert sorted(path.name for path in folder.glob("[!.]*")) == [
            "02_mine",
            "config.json",
            "journal.sqlite",
            "manifest.json",
        ]


def test_fresh_removes_what_an_interrupted_fresh_left(folder: Path) -> None:
    make(folder)
    (folder / "manifest.json").unlink()  # it goes first
    stages = [path for path in folder.iterdir() if path.is_dir()]
    assert stages
    with RunStore.open(folder, "{}", {"seed": 2}, fresh=True):
        assert not any(path.exists() for path in stages)


def test_a_folder_without_a_run_cannot_be_loaded(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"holds no run \(there is no manifest.json"):
        RunStore.load(tmp_path)


def test_a_folder_that_cannot_be_made_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="file/first: cannot be made or written: Not a directory"):
        RunStore.open(tmp_path / "file" / "first", "{}")


def test_what_was_finished_by_other_versions_still_says_so_after_an_upgrade(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("constitutional.runs.folder.versions", lambda: {"torch": "1.0"})
    make(folder)
    monkeypatch.setattr("constitutional.runs.folder.versions", lambda: {"torch": "2.0"})
    with RunStore.open(folder, "{}") as store:
        store.finish(store.begin(2, "sft", "f1"), {}, Calls(), SUMMARY)
    stages = RunStore.load(folder).manifest.stages
    assert {name: entry.versions for name, entry in stages.items()} == {
        "draft": {"torch": "1.0"},
        "sft": {"torch": "2.0"},
    }


def test_whenever_it_is_killed_the_manifest_speaks_of_sound_files_only(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = Path.replace
    seen = []

    def look(self: Path, target: Path) -> Path:  # just before a file takes its place, a kill would leave this:
        if (folder / "manifest.json").exists():
            store = RunStore.load(folder)
            seen.append(
                [
                    store.reason_to_run(stage, entry.fingerprint) is None
                    for stage, entry in store.manifest.stages.items()
                ]
            )
        return rename(self, target)

    monkeypatch.setattr(Path, "replace", look)
    make(folder)
    make(folder, "f2", ("c",))
    assert [] in seen
    assert [True] in seen
    assert [False] not in seen


def test_a_failure_that_cannot_be_kept_hides_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with RunStore.open(tmp_path / "run", "{}") as store:

        def refuse(*_: object) -> None:
            raise RunError("manifest.json: cannot be written: No space left on device")

        monkeypatch.setattr("constitutional.runs.folder.write_manifest", refuse)
        store.fail("label", "the labeler's own error")  # which travels on from here


def test_the_training_logs_of_an_ensemble_come_in_the_order_of_its_members(folder: Path) -> None:
    with RunStore.open(folder, "{}") as store:
        begun = store.begin(7, "reward", "f1")
        for number in range(12):
            name = "training_log.jsonl" if number == 0 else f"training_log_{number}.jsonl"
            (begun.folder / name).write_text(f'{{"step": 1, "loss": {number}}}\n{{"step": 2, "loss": {number}}}\n')
        store.finish(begun, {}, Calls(), SUMMARY)
        begun = store.begin(8, "dpo", "f1")
        (begun.folder / "training_log.jsonl").write_text('{"step": 1, "loss": 0.5}\n')
        store.finish(begun, {}, Calls(), SUMMARY)
        store.finish(store.begin(9, "evaluate", "f1"), {}, Calls(), SUMMARY)
    logs = RunStore.load(folder).training_logs("reward")
    assert [(name, [line["loss"] for line in lines]) for name, lines in logs.items()] == [
        (f"member {number}", [number, number]) for number in range(12)
    ]
    assert RunStore.load(folder).training_logs("dpo") == {"training": [{"step": 1, "loss": 0.5}]}
    assert RunStore.load(folder).training_logs("evaluate") == {}


def test_a_disk_that_is_full_when_the_lock_is_taken_is_an_error_that_says_so(folder: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))  # no file may grow any more
    try:
        with pytest.raises(RunError, match=r"\.lock cannot be written"):
            RunStore.open(folder, "{}")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    with RunStore.open(folder, "{}"):
        assert (folder / ".lock").read_text().startswith("process")


def test_a_stage_whose_folder_cannot_be_made_is_an_error_that_says_so(folder: Path) -> None:
    with RunStore.open(folder, "{}") as store:
        (folder / "01_draft").write_text("a file where the folder goes")
        with pytest.raises(RunError, match="01_draft: cannot be written"):
            store.begin(1, "draft", "f1")
