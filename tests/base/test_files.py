import errno
from pathlib import Path

import pytest

from constitutional.base.errors import RunError
from constitutional.base.files import atomic_write


def test_a_file_that_cannot_be_written_is_said_and_not_hidden_by_the_clean_up(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    # Neither the new file nor its removal is possible here: both raise NotADirectoryError.
    with pytest.raises(RunError, match=r"file/x\.html: cannot be written: Not a directory"):
        atomic_write(tmp_path / "file" / "x.html", b"page")


def test_on_a_read_only_disk_the_error_names_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "open", refuse)
    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(RunError, match="cannot be written: Read-only file system"):
        atomic_write(tmp_path / "x.html", b"page")


def test_what_fails_midway_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "kept"
    atomic_write(path, b"old")

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", refuse)
    with pytest.raises(RunError, match="No space left on device"):
        atomic_write(path, b"new")
    assert (path.read_bytes(), [file.name for file in tmp_path.iterdir()]) == (b"old", ["kept"])
