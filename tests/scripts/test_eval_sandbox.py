import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from constitutional.engines.base import Completion, Request
from constitutional.engines.scripted import ScriptedEngine
from constitutional.sandbox.world import TRAITS

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "eval_sandbox.py"


def mute(request: Request) -> Completion:
    """Says nothing, and gives all choices the same probability."""
    return Completion("", "stop", tuple(0.0 for _ in request.choices))


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script with a model that answers nothing."""
    spec = importlib.util.spec_from_file_location("eval_sandbox", SCRIPT)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "shipped_engine", lambda _folder: ScriptedEngine(mute))
    return module


def run(script: ModuleType, monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    monkeypatch.setattr(sys, "argv", ["eval_sandbox.py", *map(str, words)])
    code: int = script.main()
    return code


GOOD = {"trait": "flattery", "direction": "avoid", "text": "Don't butter people up."}


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        (7, "is 7; expected"),
        ("Be kind.", 'is "Be kind."; expected'),
        ({"trait": "flattery"}, "has no direction and no text; expected"),
        ({**GOOD, "weight": 2}, "has weight, which means nothing here; expected"),
        ({**GOOD, "text": 7}, "text must be a text that is not empty; expected"),
        ({**GOOD, "text": " "}, "text must be a text that is not empty; expected"),
        ({**GOOD, "trait": ["flattery"]}, "trait must be a text that is not empty; expected"),
        ({**GOOD, "trait": "brevity"}, "trait is 'brevity'; it must be one of"),
        ({**GOOD, "direction": "less"}, "direction is 'less'; it must be 'avoid' or 'seek'"),
        ({**GOOD, "trait": "refusal", "direction": "seek"}, "'refusal' can only be avoided; those"),
    ],
)
def test_a_bad_principle_is_named_with_its_file_and_entry_and_what_is_expected(
    script: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    entry: Any,  # noqa: ANN401 - whatever a file may hold
    problem: str,
) -> None:
    path = tmp_path / "mine.json"
    path.write_text(json.dumps([GOOD, entry]))
    assert run(script, monkeypatch, "--principles", path) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"eval_sandbox: {path}: entry 2: {problem}")
    if "expected" in problem:
        assert all(word in said for word in ("trait", "direction", "text", *TRAITS))


@pytest.mark.parametrize("text", ["[]", "{}", "7"])
def test_a_file_that_lists_no_principles_is_refused(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    path = tmp_path / "mine.json"
    path.write_text(text)
    assert run(script, monkeypatch, "--principles", path) == 2
    assert f"{path}: must be a JSON list of principles; of each expected" in capsys.readouterr().err


def test_the_measures_go_into_a_folder_that_was_not_there(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine, scores = tmp_path / "mine.json", tmp_path / "new" / "folder" / "scores.json"
    mine.write_text(json.dumps([GOOD]))
    assert run(script, monkeypatch, "--principles", mine, "--json", scores) == 1  # nothing that was wanted is reached
    measured = {measure["name"]: (measure["value"], measure["n"]) for measure in json.loads(scores.read_text())}
    assert measured["read as it is meant, mine.json"] == (1.0, 1)  # by the encoder
    assert measured["right readings flagged, mine.json"] == (0.0, 1)
    assert measured["misreadings flagged, mine.json"] == (None, 0)
    assert measured["calibration error of the probability, mine.json"] == (None, 0)  # one text measures none
    assert measured["concept and direction understood, mine.json, as given"] == (0.0, 1)  # by a model that says nothing
    assert "| concept and direction understood, mine.json, as given | 0.0% |" in capsys.readouterr().out


def test_measures_that_cannot_be_written_are_refused_before_anything_is_measured(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path, tmp_path / "file" / "scores.json"):
        assert run(script, monkeypatch, "--json", path) == 2
        streams = capsys.readouterr()
        assert streams.err.startswith(f"eval_sandbox: --json {path}: cannot be written: ")
        assert "speech" not in streams.err  # the first thing to be measured


def test_trying_the_file_leaves_none_behind_and_loses_none(script: ModuleType, tmp_path: Path) -> None:
    new, old = tmp_path / "new.json", tmp_path / "old.json"
    old.write_text("[]")
    script._check_writable(new)
    script._check_writable(old)
    assert not new.exists()
    assert old.read_text() == "[]"


def test_a_model_that_is_no_folder_is_not_looked_for_on_the_hub(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("nope", "some/nope"):
        assert run(script, monkeypatch, "--model", name) == 2
        assert f"--model {name}: there is no such folder" in capsys.readouterr().err
    assert run(script, monkeypatch, "--model", tmp_path) == 2
    assert "has no config.json" in capsys.readouterr().err


@pytest.mark.parametrize("scale", ["0", "-1", "nan", "inf", "much"])
def test_a_scale_is_a_number_above_nought(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], scale: str
) -> None:
    with pytest.raises(SystemExit, match="2"):
        run(script, monkeypatch, f"--scale={scale}")
    assert f"'{scale}' is no number above 0" in capsys.readouterr().err


def test_help_shows_a_file_that_can_be_read_and_every_trait(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="0"):
        run(script, monkeypatch, "--help")
    shown = capsys.readouterr().out
    example = tmp_path / "mine.json"
    example.write_text(shown[shown.index("    [\n") : shown.index("    ]\n") + 6])
    assert [each.family for each in script.read_wordings(example)] == [("flattery", "avoid"), ("verbosity", "seek")]
    listed = {line.split()[0]: line.split()[1:] for line in shown[shown.index("The traits") :].splitlines()[2:]}
    assert list(listed) == list(TRAITS)
    assert listed["refusal"] == ["avoid"]
    assert listed["flattery"] == ["avoid", "or", "seek"]
