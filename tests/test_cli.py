import json
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

import pytest

from constitutional import __version__, cli
from constitutional.errors import ModelError


@dataclass
class FakeUnderstanding:
    text: str
    trait: str = "sycophantic_agreement"
    direction: str = "avoid"
    restated: str = "Avoid agreeing with what is wrong."
    probability: float = 0.987
    runner_up: str = "avoid flattery"
    runner_up_probability: float = 0.009
    unknown_words: list[str] = field(default_factory=list)


class FakeModel(ModuleType):
    """Stands where the test-bed's model is, and says what it is told to."""

    def __init__(self) -> None:
        super().__init__("constitutional.sandbox.understand")
        self.asked: list[str] = []
        self.replies: dict[str, FakeUnderstanding] = {}
        self.error: BaseException | None = None

    def understand_texts(self, texts: list[str]) -> list[FakeUnderstanding]:
        if self.error is not None:
            raise self.error
        self.asked += texts
        return [self.replies.get(text, FakeUnderstanding(text)) for text in texts]


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> FakeModel:
    fake = FakeModel()
    monkeypatch.setitem(sys.modules, fake.__name__, fake)
    return fake


def test_a_principle_is_printed_with_its_meaning(model: FakeModel, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["sandbox", "understand", "Don't nod along."]) == 0
    assert capsys.readouterr().out == "Don't nod along.\n  means: avoid sycophantic agreement (98%)\n"
    assert model.asked == ["Don't nod along."]


def test_unknown_words_and_doubt_are_pointed_out(model: FakeModel, capsys: pytest.CaptureFixture[str]) -> None:
    model.replies["Eschew toadies."] = FakeUnderstanding(
        "Eschew toadies.",
        probability=0.57,
        runner_up="seek safety_warning",
        runner_up_probability=0.29,
        unknown_words=["eschew", "toadies"],
    )
    assert cli.main(["sandbox", "understand", "Eschew toadies.", "Be blunt."]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "Eschew toadies.",
        "  means: avoid sycophantic agreement (57%)",
        "  warning: the model does not know: eschew, toadies",
        "  warning: the model is unsure; it may also mean: seek safety warning (29%)",
        "",
        "Be blunt.",
        "  means: avoid sycophantic agreement (98%)",
    ]


@pytest.mark.parametrize(("probability", "doubts"), [(0.8, 0), (0.7999, 1)])
def test_doubt_begins_below_four_fifths(
    model: FakeModel, capsys: pytest.CaptureFixture[str], probability: float, doubts: int
) -> None:
    model.replies["Be brief."] = FakeUnderstanding("Be brief.", probability=probability)
    cli.main(["sandbox", "understand", "Be brief."])
    assert capsys.readouterr().out.count("unsure") == doubts


def test_arguments_and_a_file_are_asked_together(model: FakeModel, tmp_path: Path) -> None:
    path = tmp_path / "ours.txt"
    path.write_text("# ours\nBe kind.\n\nBe honest.\n")
    assert cli.main(["sandbox", "understand", "Be brief.", "--file", str(path)]) == 0
    assert model.asked == ["Be brief.", "Be kind.", "Be honest."]


def test_json_holds_everything_that_the_model_said(model: FakeModel, capsys: pytest.CaptureFixture[str]) -> None:
    model.replies["Kürze!"] = FakeUnderstanding("Kürze!", unknown_words=["kürze"])
    assert cli.main(["sandbox", "understand", "--json", "Kürze!"]) == 0
    assert json.loads(capsys.readouterr().out) == [
        {
            "text": "Kürze!",
            "trait": "sycophantic_agreement",
            "direction": "avoid",
            "restated": "Avoid agreeing with what is wrong.",
            "probability": 0.987,
            "runner_up": "avoid flattery",
            "runner_up_probability": 0.009,
            "unknown_words": ["kürze"],
        }
    ]


@pytest.mark.usefixtures("model")
def test_a_bad_file_is_one_line_with_its_place_and_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "ours.json"
    path.write_text('[\n"Be kind.",\n7]')
    assert cli.main(["sandbox", "understand", "--file", str(path)]) == 2
    streams = capsys.readouterr()
    assert streams.out == ""
    assert streams.err.splitlines() == [
        f"constitutional: {path}:3: a principle must be a non-empty text, or have a 'text' that is one"
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no principle to understand; give a TEXT, or a file of them with --file FILE"),
        (["Be kind.", " "], 'a TEXT is empty; write a principle, such as "Don\'t butter people up."'),
    ],
)
def test_nothing_to_understand_is_wrong_usage(
    model: FakeModel, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert cli.main(["sandbox", "understand", *arguments]) == 2
    assert capsys.readouterr().err == f"constitutional: {message}\n"
    assert model.asked == []


def test_a_failure_of_the_model_is_one_line_and_exit_code_1(
    model: FakeModel, capsys: pytest.CaptureFixture[str]
) -> None:
    model.error = ModelError("model.safetensors is damaged:\n  read 3 bytes")
    assert cli.main(["sandbox", "understand", "Be kind."]) == 1
    assert capsys.readouterr().err == "constitutional: model.safetensors is damaged: read 3 bytes\n"


def test_an_interrupt_is_a_message_and_exit_code_130(model: FakeModel, capsys: pytest.CaptureFixture[str]) -> None:
    model.error = KeyboardInterrupt()
    assert cli.main(["sandbox", "understand", "Be kind."]) == 130
    assert capsys.readouterr().err == "constitutional: interrupted\n"


def test_a_defect_of_ours_keeps_its_traceback(model: FakeModel) -> None:
    model.error = KeyError("oops")
    with pytest.raises(KeyError, match="oops"):
        cli.main(["sandbox", "understand", "Be kind."])


def test_no_command_and_an_unknown_one_exit_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main([])
    assert "the following arguments are required: COMMAND" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        cli.main(["sandbox", "undrstand"])
    assert "undrstand" in capsys.readouterr().err


def test_python_m_runs_the_command() -> None:
    command = [sys.executable, "-m", "constitutional"]
    version = subprocess.run([*command, "--version"], check=True, capture_output=True, text=True)
    assert version.stdout == f"constitutional {__version__}\n"
    wrong = subprocess.run([*command, "sandbox", "understand"], check=False, capture_output=True, text=True)
    assert wrong.returncode == 2
    assert wrong.stderr.startswith("constitutional: no principle to understand")
