import errno
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest

from constitutional.base.errors import RunError, UsageError
from constitutional.base.files import atomic_write, digest_of, read_rows, write_rows
from constitutional.base.records import Message, Prompt, Revision, RevisionStep
from constitutional.engines.spending import Calls
from constitutional.runs.folder import RunStore
from constitutional.runs.manifest import Artifact, StageEntry
from constitutional.runs.outputs import Begun, Outputs, damage, drop_checkpoints
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


ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "runs" / "first"


def made(
    store: RunStore,
    number: int,
    stage: str,
    fingerprint: str = "f1",
    write: Callable[[Path], dict[str, Path]] = lambda _: {},
) -> StageEntry:
    """Run a stage, whose outputs are kept beside the run's folder."""
    outputs = Outputs(store.folder.parent / ".stages")
    place = outputs.place(stage, fingerprint.ljust(16, "0"))
    with outputs.claimed(place, print):
        folder = store.begin(number, stage, place)
        entry = outputs.finish(
            Begun.now(stage, fingerprint, {}, {}, folder), write(folder), Calls(asked=3, reused=4), SUMMARY
        )
        store.finish(number, stage, place, entry)
    return entry


def make(folder: Path, fingerprint: str = "f1", texts: tuple[str, ...] = ("a", "b")) -> StageEntry:
    """Run a stage `draft` that writes prompts."""

    def write(own: Path) -> dict[str, Path]:
        write_rows(own / "prompts.jsonl", [Prompt(messages=(Message("user", text),)) for text in texts])
        return {"prompts": own / "prompts.jsonl"}

    with RunStore.open(folder, "{}") as store:
        return made(store, 1, "draft", fingerprint, write)


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
    def write(own: Path) -> dict[str, Path]:
        write_rows(own / "prompts.jsonl", [PROMPT, PROMPT])
        (own / "model").mkdir()
        (own / "model" / "weights").write_bytes(b"w")
        return {"prompts": own / "prompts.jsonl", "model": own / "model"}

    with RunStore.open(folder, '{"seed": 1}') as store:
        made(store, 2, "label", "f1", write)
    assert (folder / "config.json").read_text() == '{"seed": 1}'
    names = sorted(path.name for path in (folder / "02_label").glob("[!.]*"))
    assert names == ["model", "prompts.jsonl", "stage.json", "summary.json"]
    written = json.loads((folder / "02_label" / "summary.json").read_text())
    assert written == SUMMARY.model_dump() | {"position_bias": None}  # JSON has no NaN
    entry = json.loads((folder / "02_label" / "stage.json").read_text())
    assert entry["fingerprint"] == "f1"
    assert (entry["calls"]["asked"], entry["calls"]["reused"]) == (3, 4)
    assert entry["artifacts"]["prompts"]["file"] == "prompts.jsonl"
    assert [artifact["rows"] for artifact in entry["artifacts"].values()] == [2, None, None]
    assert 0 <= entry["seconds"] < 10
    assert entry["versions"]["python"] == platform.python_version()
    assert entry["versions"]["numpy"] == metadata.version("numpy")

    store = RunStore.load(folder)
    assert store.read("prompts", Prompt) == [PROMPT, PROMPT]
    assert store.artifact("model") == folder / "02_label" / "model"
    assert store.digest("prompts") == digest_of(folder / "02_label" / "prompts.jsonl")
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


@pytest.mark.parametrize("position", [0, 20, -1])
def test_a_flipped_bit_in_an_artifact_is_damage(folder: Path, position: int) -> None:
    entry = make(folder)
    assert damage(folder / "01_draft", entry) is None
    path = folder / "01_draft" / "prompts.jsonl"
    damaged = bytearray(path.read_bytes())
    damaged[position] ^= 1
    path.write_bytes(damaged)
    assert damage(folder / "01_draft", entry) == f"{path} is damaged: it is not what this stage wrote"


@pytest.mark.parametrize("file", ["prompts.jsonl", "summary.json"])
def test_a_missing_file_is_damage(folder: Path, file: str) -> None:
    entry = make(folder)
    (folder / "01_draft" / file).unlink()
    assert damage(folder / "01_draft", entry) == f"{folder / '01_draft' / file} is missing"


def test_a_stray_file_and_a_copy_are_no_damage(folder: Path) -> None:
    def write(own: Path) -> dict[str, Path]:
        (own / "model").mkdir()
        (own / "model" / "weights").write_bytes(b"w")
        return {"model": own / "model"}

    with RunStore.open(folder, "{}") as store:
        entry = made(store, 1, "sft", "f1", write)
    (folder / "01_sft" / "model" / "notes.txt").write_text("A good one.")
    assert damage(folder / "01_sft", entry) is None
    (folder / "01_sft" / "model" / "weights").touch()  # another time, the same bytes
    assert damage(folder / "01_sft", entry) is None
    copy = shutil.copytree(folder, folder.with_name("copy"))  # with all that its links lead to
    assert damage(copy / "01_sft", entry) is None
    assert RunStore.load(copy).artifact("model") == copy / "01_sft" / "model"
    (folder / "01_sft" / "model" / "weights").write_bytes(b"v")
    assert "weights is damaged" in (damage(folder / "01_sft", entry) or "")


def test_a_folders_digest_is_of_its_files_and_their_names(folder: Path) -> None:
    def model(fingerprint: str, files: dict[str, bytes]) -> Artifact:
        def write(own: Path) -> dict[str, Path]:
            for name, content in files.items():
                (own / "model" / name).parent.mkdir(parents=True, exist_ok=True)
                (own / "model" / name).write_bytes(content)
            return {"model": own / "model"}

        with RunStore.open(folder, "{}") as store:
            return made(store, 1, "sft", fingerprint, write).artifacts["model"]

    first = model("f1", {"x": b"1", "y/z": b"2"})
    assert model("f2", {"y/z": b"2", "x": b"1"}).sha256 == first.sha256
    others = [{"x": b"1", "y/z": b"3"}, {"x": b"1", "z": b"2"}, {"x": b"1"}]
    assert first.sha256 not in {model(f"f{number}", files).sha256 for number, files in enumerate(others, start=3)}


def test_outputs_of_other_settings_stay_and_going_back_finds_them(folder: Path) -> None:
    first = make(folder)
    second = make(folder, "f2", ("c",))
    assert first != second
    store = RunStore.load(folder)
    assert [prompt.messages[0].content for prompt in store.read("prompts", Prompt)] == ["c"]
    outputs = Outputs(folder.parent / ".stages")
    places = [outputs.place("draft", name.ljust(16, "0")) for name in ("f1", "f2")]
    assert outputs.all() == places
    assert [outputs.finished(place) for place in places] == [first, second]
    with RunStore.open(folder, "{}") as store:
        store.finish(1, "draft", places[0], first)
        assert len(store.read("prompts", Prompt)) == 2
    assert str((folder / "01_draft").readlink()) == f"../.stages/{places[0].name}"


def test_work_that_was_begun_and_not_finished_goes_on_and_its_checkpoints_go_when_it_is_done(folder: Path) -> None:
    outputs = Outputs(folder.parent / ".stages")
    place = outputs.place("sft", "f1".ljust(16, "0"))
    with RunStore.open(folder, "{}") as store, outputs.claimed(place, print):
        own = store.begin(3, "sft", place)
        (own / "checkpoints").mkdir()
        (own / "checkpoints" / "checkpoint-100").write_text("step 100")
        store.fail("sft", "out of memory")
    assert RunStore.load(folder).stages == {}
    with RunStore.open(folder, "{}") as store:
        assert (store.begin(3, "sft", place) / "checkpoints" / "checkpoint-100").read_text() == "step 100"
        made(store, 3, "sft")
        assert sorted(path.name for path in place.glob("[!.]*")) == ["stage.json", "summary.json"]
        assert store.manifest.failures == {}
    (place / "checkpoints").mkdir()  # as a kill between the two leaves it
    drop_checkpoints(place)
    assert not (place / "checkpoints").exists()


def test_what_is_damaged_is_put_aside_and_never_deleted(folder: Path) -> None:
    make(folder)
    outputs = Outputs(folder.parent / ".stages")
    (place,) = outputs.all()
    asides = []
    for _ in range(2):
        asides.append(outputs.put_aside(place))
        make(folder)
    assert [path.name for path in asides] == [f"{place.name}.damaged-1", f"{place.name}.damaged-2"]
    assert all((path / "prompts.jsonl").is_file() for path in asides)
    assert outputs.all() == sorted([place, *asides])


def test_an_edited_entry_is_found_and_told_what_to_do_with(folder: Path) -> None:
    make(folder)
    (place,) = Outputs(folder.parent / ".stages").all()
    entry = place / "stage.json"
    entry.write_text(entry.read_text().replace('"asked": 3', '"asked": 4'))
    with pytest.raises(RunError, match=r"stage\.json: is damaged or was edited: .*mv .*draft-f1.* the stage runs anew"):
        Outputs(folder.parent / ".stages").finished(place)


def test_a_stage_that_another_process_makes_is_waited_for(folder: Path) -> None:
    outputs = Outputs(folder.parent / ".stages")
    place = outputs.place("sft", "f" * 16)
    program = (
        "import sys; from pathlib import Path; from constitutional.runs.outputs import Outputs\n"
        "with Outputs(Path(sys.argv[1])).claimed(Path(sys.argv[2]), print):\n"
        "    print('has it', flush=True); sys.stdin.read()"
    )
    said: list[str] = []
    with subprocess.Popen(
        [sys.executable, "-c", program, str(outputs.folder), str(place)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=ENVIRONMENT,
    ) as other:
        assert other.stdout is not None
        other.stdout.readline()

        def say(text: str) -> None:
            said.append(text)
            other.kill()

        with outputs.claimed(place, say):
            assert said == [f"waiting for {said[0].split(' for ', 1)[1]}"]
            assert f"process {other.pid} on " in said[0]


def test_stages_that_a_run_does_not_have_any_more_are_forgotten_and_their_outputs_stay(folder: Path) -> None:
    with RunStore.open(folder, "{}") as store:
        made(store, 7, "reward")
        made(store, 8, "dpo")
        store.keep_only({"reward": 7, "ppo": 8})
        assert list(store.stages) == list(store.manifest.stages) == ["reward"]
        assert not os.path.lexists(folder / "08_dpo")
    assert len(Outputs(folder.parent / ".stages").all()) == 2


def test_a_second_holder_is_refused_and_told_who_the_first_is(folder: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from constitutional.runs.folder import RunStore\n"
        "with RunStore.open(Path(sys.argv[1]), '{}'):\n    print('open', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=ENVIRONMENT
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
    monkeypatch.setattr("constitutional.runs.outputs.versions", lambda: {"torch": "1.0"})
    make(folder)
    monkeypatch.setattr("constitutional.runs.outputs.versions", lambda: {"torch": "2.0"})
    with RunStore.open(folder, "{}") as store:
        made(store, 2, "sft")
    stages = RunStore.load(folder).stages
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
            seen.append([damage(store.stage_folder(stage), entry) is None for stage, entry in store.stages.items()])
        return rename(self, target)

    monkeypatch.setattr(Path, "replace", look)
    make(folder)
    make(folder, "f2", ("c",))
    assert [] in seen
    assert [True] in seen
    assert [False] not in seen


def test_a_failure_that_cannot_be_kept_hides_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with RunStore.open(tmp_path / "run", "{}") as store:
        tried = []

        def refuse(path: Path, *_: object) -> None:
            tried.append(path.name)
            raise RunError("manifest.json: cannot be written: No space left on device")

        monkeypatch.setattr("constitutional.runs.folder.write_checked", refuse)
        store.fail("label", "the labeler's own error")  # which travels on from here
        assert tried == ["manifest.json"]


def test_the_training_logs_of_an_ensemble_come_in_the_order_of_its_members(folder: Path) -> None:
    def ensemble(own: Path) -> dict[str, Path]:
        for number in range(12):
            name = "training_log.jsonl" if number == 0 else f"training_log_{number}.jsonl"
            (own / name).write_text(f'{{"step": 1, "loss": {number}}}\n{{"step": 2, "loss": {number}}}\n')
        return {}

    def single(own: Path) -> dict[str, Path]:
        (own / "training_log.jsonl").write_text('{"step": 1, "loss": 0.5}\n')
        return {}

    with RunStore.open(folder, "{}") as store:
        made(store, 7, "reward", write=ensemble)
        made(store, 8, "dpo", write=single)
        made(store, 9, "evaluate")
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
        with pytest.raises(RunError, match=r"\.lock: cannot be written: .*make room"):
            RunStore.open(folder, "{}")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    with RunStore.open(folder, "{}"):
        assert (folder / ".lock").read_text().startswith("process")


def test_a_stage_whose_folder_cannot_be_made_is_an_error_that_says_so(tmp_path: Path) -> None:
    (tmp_path / ".stages").write_text("a file where the folder goes")
    place = tmp_path / ".stages" / "draft-f1"
    with pytest.raises(RunError, match=r"draft-f1: cannot be written"), Outputs(place.parent).claimed(place, print):
        pass
    with RunStore.open(tmp_path / "run", "{}") as store, pytest.raises(RunError, match=r"draft-f1: cannot be written"):
        store.begin(1, "draft", place)


def test_stages_stay_in_running_order_where_an_early_one_is_made_anew(folder: Path) -> None:
    with RunStore.open(folder, "{}") as store:
        for number, stage in enumerate(("prompts", "sft", "report")):
            made(store, number, stage)
        made(store, 1, "sft", "f2")
        assert list(store.stages) == ["prompts", "sft", "report"]


def test_a_run_goes_on_where_the_entry_of_an_old_output_is_damaged(folder: Path) -> None:
    make(folder)
    (folder / "01_draft" / "stage.json").write_text("{")
    with pytest.raises(RunError, match=r"stage\.json: is damaged.*mv .*draft-f1"):
        RunStore.load(folder)
    with RunStore.open(folder, "{}") as store:
        assert store.stages == {}
    make(folder, "f2")
    assert list(RunStore.load(folder).stages) == ["draft"]


def test_a_folder_where_a_link_goes_is_put_aside(folder: Path) -> None:
    with RunStore.open(folder, "{}") as store:
        (folder / "01_draft").mkdir()
        (folder / "01_draft" / "mine.txt").write_text("a person's own")
        made(store, 1, "draft")
    (aside,) = folder.glob("01_draft.before-*")
    assert (aside / "mine.txt").read_text() == "a person's own"
    assert (folder / "01_draft").is_symlink()


def test_a_run_folder_on_another_disk_links_to_its_stages(folder: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "a" / "large" / "disk"
    elsewhere.mkdir(parents=True)
    folder.parent.mkdir()
    folder.symlink_to(elsewhere)
    make(folder)
    assert (elsewhere / "01_draft" / "prompts.jsonl").is_file()
    assert RunStore.load(folder).stages
