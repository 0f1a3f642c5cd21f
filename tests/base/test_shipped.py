import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from constitutional.base.errors import ConfigurationError
from constitutional.base.shipped import shipped

REPOSITORY = Path(__file__).resolve().parents[2]


def test_in_a_checkout_a_folder_is_beside_the_package() -> None:
    assert shipped("prompts") == REPOSITORY / "prompts"


def test_in_a_wheel_the_folder_in_the_package_comes_first(tmp_path: Path) -> None:
    package = tmp_path / "constitutional"
    (package / "_data" / "prompts").mkdir(parents=True)
    (tmp_path / "prompts").mkdir()  # someone else's, in site-packages
    assert shipped("prompts", package) == package / "_data" / "prompts"


def test_a_missing_folder_is_named_with_both_places(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError) as caught:
        shipped("conf", tmp_path / "constitutional")
    assert str(tmp_path / "constitutional" / "_data" / "conf") in str(caught.value)
    assert str(tmp_path / "conf") in str(caught.value)


def test_the_wheel_holds_every_file_that_users_edit(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(tmp_path)]
    subprocess.run(build, cwd=REPOSITORY, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("constitutional-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        packed = {name: archive.read(name) for name in archive.namelist() if "/_data/" in name}
        model = [name for name in archive.namelist() if "/sandbox/model/" in name]
    ours = {
        f"constitutional/_data/{folder}/{path.relative_to(shipped(folder)).as_posix()}": path.read_bytes()
        for folder in ("conf", "constitutions", "prompts")
        for path in shipped(folder).rglob("*")
        if path.is_file()
    }
    assert packed == ours
    assert "constitutional/sandbox/model/model.safetensors" in model
