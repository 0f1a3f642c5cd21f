import json
import math
import resource
import subprocess
import sys
from pathlib import Path

import pytest

import constitutional
from constitutional import __version__
from constitutional.base.errors import ModelError
from constitutional.cli import main as cli
from constitutional.engines.base import Completion, Request
from constitutional.engines.scripted import ScriptedEngine
from constitutional.sandbox.reader import Calibration
from tests.understood import FakeUnderstanding


class FakeModel:
    """Stands where the sandbox's model is asked, and says what it is told to."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.replies: dict[str, FakeUnderstanding] = {}
        self.error: BaseException | None = None

    def understand_texts(self, texts: list[str], **_: object) -> list[FakeUnderstanding]:
        if self.error is not None:
            raise self.error
        self.asked += texts
        return [self.replies.get(text, FakeUnderstanding(text)) for text in texts]


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> FakeModel:
    fake = FakeModel()
    monkeypatch.setattr("constitutional.sandbox.understand.understand_texts", fake.understand_texts)
    plain = Calibration((0.0, 1.0, *[0.0] * 6), 1.0, 0.6, 0.8, two_from=0.02, split_from=0.7)
    monkeypatch.setattr("constitutional.sandbox.reader.calibration", lambda: plain)
    return fake


def test_a_principle_is_printed_with_its_meaning(model: FakeModel, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["sandbox", "understand", "Don't nod along."]) == 0
    assert capsys.readouterr().out == "Don't nod along.\n  means: avoid sycophantic agreement (98%)\n"
    assert model.asked == ["Don't nod along."]


def test_where_the_model_reads_alone_it_is_said(
    model: FakeModel, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert model.asked == []
    assert cli.main(["sandbox", "understand", "Be kind."]) == 0
    assert "not installed" not in capsys.readouterr().err
    monkeypatch.setattr("constitutional.sandbox.reader.encoder_file", lambda: None)
    assert cli.main(["sandbox", "understand", "Be kind."]) == 0
    warning = "warning: the encoder that reads principles in anybody's words is not installed"
    assert capsys.readouterr().err.startswith(warning)


def test_unknown_words_and_doubt_are_pointed_out(model: FakeModel, capsys: pytest.CaptureFixture[str]) -> None:
    model.replies["Eschew toadies."] = FakeUnderstanding(
        "Eschew toadies.",
        probability=0.57,
        runner_up="seek safety_warning",
        runner_up_probability=0.29,
        unknown_words=["eschew", "toadies"],
    )
    model.replies["Be blunt."] = FakeUnderstanding("Be blunt.", given="Avoid agreement with false claims.")
    assert cli.main(["sandbox", "understand", "Eschew toadies.", "Be blunt."]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "Eschew toadies.",
        "  means: avoid sycophantic agreement (57%)",
        "  warning: the model does not know: eschew, toadies",
        "  warning: the model is unsure; it may also mean: seek safety warning (29%)",
        "",
        "Be blunt.",
        "  means: avoid sycophantic agreement (98%)",
        "  given as: Avoid agreement with false claims.",
    ]


def test_a_principle_that_asks_for_nothing_is_not_said_to_avoid_it(
    model: FakeModel, capsys: pytest.CaptureFixture[str]
) -> None:
    model.replies["Be good."] = FakeUnderstanding("Be good.", trait="nothing")
    assert cli.main(["sandbox", "understand", "Be good."]) == 0
    out = capsys.readouterr().out
    assert out.startswith("Be good.\n  asks for nothing in particular (98%)\n  warning: ")
    assert "no effect" in out


@pytest.mark.usefixtures("model")
def test_capitals_are_warned_of(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["sandbox", "understand", "DO NOT NOD ALONG."]) == 0
    assert capsys.readouterr().out.splitlines()[2:] == [
        "  warning: it is in capitals; the model reads ordinary case better"
    ]


def test_a_file_that_is_given_as_a_principle_is_refused_with_the_flag_for_files(
    model: FakeModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "our principles.txt"
    path.write_text("Be kind.\n")
    assert cli.main(["sandbox", "understand", str(path)]) == 2
    assert f"type --file '{path}'" in capsys.readouterr().err
    assert model.asked == []
    assert cli.main(["sandbox", "understand", "Be kind. " * 1000]) == 0  # longer than any path may be


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
            "model_reads": "",
            "given": "",
            "asks_two": None,
            "halves": None,
            "warnings": ["the model does not know: kürze"],
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
        (["Be \udcff"], "'Be \\udcff' is not UTF-8; write it to a file in UTF-8, and type --file FILE"),
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


def test_a_file_that_may_not_be_read_is_one_line_with_its_name(
    model: FakeModel, capsys: pytest.CaptureFixture[str]
) -> None:
    model.error = PermissionError(13, "Permission denied", "/root/private/x.jsonl")
    assert cli.main(["sandbox", "understand", "Be kind."]) == 1
    assert capsys.readouterr().err.startswith("constitutional: /root/private/x.jsonl: Permission denied; ")


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


# Constitutions


def write_constitution(path: Path, text: str = "Be kind.", examples: str = "") -> Path:
    path.write_text(f'name: Ours\nprinciples:\n  - id: kind\n    text: "{text}"\n{examples}')
    return path


def test_lint_prints_findings_with_their_place_and_exits_with_2_on_errors(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "ours.yaml"
    path.write_text("name: Ours\nprinciples:\n  - id: kind\n    txt: Be kind.\n")
    assert cli.main(["lint", str(path)]) == 2
    streams = capsys.readouterr()
    assert f"{path}:4: error: " in streams.out
    assert "'txt'" in streams.out
    assert streams.err.startswith(f"{path}: ")
    assert streams.err == f"{path}: 2 errors, 0 warnings\n"  # the unknown key, and that there is no text
    assert cli.main(["lint", "sandbox_careful"]) == 0
    write_constitution(path)
    assert cli.main(["lint", str(path)]) == 0
    assert capsys.readouterr().err.endswith(f"{path}: 0 errors, 1 warning\n")


def test_lint_says_what_the_sandboxs_model_takes_every_principle_to_mean(
    model: FakeModel, capsys: pytest.CaptureFixture[str]
) -> None:
    model.replies["Keep your answers short."] = FakeUnderstanding("", trait="verbosity", direction="seek")
    assert cli.main(["lint", "sandbox_concise", "--sandbox"]) == 0
    meanings = capsys.readouterr().out.splitlines()[:3]
    assert len(model.asked) == 3
    assert meanings[0] == "short: understood as: seek verbosity (98%)"
    assert all(": understood as: " in line for line in meanings)


def test_diff_says_what_became_of_each_principle(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = write_constitution(tmp_path / "before.yaml")
    after = write_constitution(tmp_path / "after.yaml", "Be warm.")
    assert cli.main(["diff", str(before), str(after)]) == 0
    assert capsys.readouterr().out == "~ kind: text reworded\n    - Be kind.\n    + Be warm.\n"
    assert cli.main(["diff", str(before), str(before)]) == 0
    assert capsys.readouterr().out == "no difference\n"


class Judge(ScriptedEngine):
    """A labeler that always prefers the longer response, and gives the choices 3 to 1."""

    requests = 0
    """That all of them answered."""

    def __init__(self, *_: object) -> None:
        super().__init__(self.respond, type(self).__name__)

    def respond(self, request: Request) -> Completion:
        Judge.requests += 1
        return self.judge(request.messages[0].content)

    def judge(self, asked: str) -> Completion:
        a, _, b = asked.partition("(A) ")[2].partition("\n\nCompare")[0].partition("\n\n(B) ")
        better, worse = math.log(0.75), math.log(0.25)
        return Completion("", "choices", (better, worse) if len(a) > len(b) else (worse, better))


class Mute(Judge):
    """A labeler that gives neither choice a probability."""

    def judge(self, asked: str) -> Completion:
        return super().judge(asked)._replace(choice_logprobs=(-math.inf, -math.inf))


@pytest.fixture
def judge(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> type[Judge]:
    monkeypatch.setattr("constitutional.engines.models.LazyEngine", Judge)
    monkeypatch.setattr(Judge, "requests", 0)
    monkeypatch.chdir(tmp_path)
    return Judge


@pytest.mark.usefixtures("judge")
def test_check_is_a_test_of_each_principle_by_its_own_examples(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def check(better: str) -> tuple[int, str]:
        examples = f'    examples:\n      - {{prompt: "Why?", better: "{better}", worse: "Well, no."}}\n'
        path = write_constitution(tmp_path / "ours.yaml", examples=examples)
        code = cli.main(["check", str(path), "label.method=logprobs"])
        asked, heading, line = capsys.readouterr().out.splitlines()
        assert asked.startswith("labeler: logprobs ")
        assert heading.split()[:3] == ["principle", "right", "accuracy"]
        return code, " ".join(line.split())

    # Wilson's interval for 1 of 1 is 1 / (1 + 1.96²) = 20.7% to 100%, for 0 of 1 the mirror image.
    assert check("A longer answer.") == (0, "kind 1 of 1 100% 21%–100% too few examples to tell")
    assert check("No.") == (1, "kind 0 of 1 0% 0%–79% too few examples to tell")


@pytest.mark.parametrize("given", ["", "    given: {comparison: Be late.}\n"])  # what a used file gave before an edit
def test_check_asks_the_sandboxs_labeler_as_a_run_does(
    tmp_path: Path, judge: type[Judge], monkeypatch: pytest.MonkeyPatch, given: str
) -> None:
    asked: list[str] = []

    def respond(engine: Judge, request: Request) -> Completion:
        asked.append(request.messages[0].content)
        return engine.judge(asked[-1])

    monkeypatch.setattr(judge, "respond", respond)
    text = "Keep it short and get to the point."
    path = write_constitution(tmp_path / "ours.yaml", text, f"{given}{EXAMPLE}")
    cli.main(["check", str(path), "label.method=logprobs"])
    assert asked
    assert {("Avoid verbosity." in question, text in question, "Be late." in question) for question in asked} == {
        (True, False, False)
    }


@pytest.mark.usefixtures("judge")
def test_from_four_examples_on_a_labeler_may_be_near_chance(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = "".join(f"      - {{prompt: Why {n}?, better: No., worse: A longer answer.}}\n" for n in range(4))
    path = write_constitution(tmp_path / "ours.yaml", examples=f"    examples:\n{wrong}")
    assert cli.main(["check", str(path), "label.method=logprobs"]) == 1
    assert capsys.readouterr().out.splitlines()[2].split()[-2:] == ["near", "chance"]


EXAMPLE = """    examples:
      - {prompt: Why?, better: A longer answer., worse: No.}
"""


@pytest.mark.usefixtures("judge")
def test_check_fails_where_no_reply_can_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("constitutional.engines.models.LazyEngine", Mute)
    path = write_constitution(tmp_path / "ours.yaml", examples=EXAMPLE)
    assert cli.main(["check", str(path), "label.method=logprobs"]) == 1
    assert capsys.readouterr().out.splitlines()[2].split() == ["kind", "0", "of", "0", "–", "–", "1", "unreadable"]


def test_check_takes_the_principles_that_are_chosen_and_asks_nothing_twice(
    tmp_path: Path, judge: type[Judge], capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_constitution(tmp_path / "ours.yaml", examples=f"{EXAMPLE}  - id: calm\n    text: Be calm.\n{EXAMPLE}")
    for chosen in ("constitution.only=[calm]", "constitution.without=[kind]"):
        assert cli.main(["check", str(path), "label.method=logprobs", chosen]) == 0
        line = capsys.readouterr().out.splitlines()[-1]
        assert line.startswith("calm ")
    assert judge.requests == 2  # both orders of the one example, the first time
    assert cli.main(["check", str(path), "label.method=logprobs"]) == 0
    reads, hint, error = capsys.readouterr().err.splitlines()
    assert reads == "reading 2 principles …"
    assert "type label.method=rationale" in hint  # the judge is said to be the sandbox's model
    assert error.startswith("2 model calls asked, 2 reused; ")
    assert "runs/journal.sqlite" in error
    assert cli.main(["check", str(path), "constitution.only=[clam]"]) == 2


def answers(path: Path, *choices: tuple[str, str]) -> Path:
    rows = [
        {"prompt": f"Question {number}", "chosen": chosen, "rejected": rejected}
        for number, (chosen, rejected) in enumerate(choices)
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


@pytest.mark.usefixtures("judge")
def test_check_tries_the_labeler_against_peoples_answers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    constitution = write_constitution(tmp_path / "ours.yaml")

    def check(*choices: tuple[str, str]) -> tuple[int, list[str]]:
        path = answers(tmp_path / "people.jsonl", *choices)
        code = cli.main(["check", str(constitution), "--answers", str(path), "label.method=logprobs"])
        return code, [" ".join(line.split()) for line in capsys.readouterr().out.splitlines() if line]

    # In the order of their letters "a" stands first, so always the first is right about the last two.
    code, lines = check(("long answer", "a"), ("longer answer", "b"), ("brief", "long answer"), ("c", "d"))
    assert code == 1
    assert lines[:3] == [
        "right accuracy 95% interval",
        "always the first 2 of 4 50.00% 15.0%–85.0%",
        "always the longer 2 of 4 50.00% 15.0%–85.0%",  # of the last two, one is the shorter and one as long
    ]
    # It prefers the longer, and of two that are as long the one shown second: in both orders that is a tie.
    assert lines[5:] == [
        "the labeler 2 of 4 50.00% 15.0%–85.0% near chance",
        "unreadable 0 of 4, which count as not right",
        "left out 0, of which people do not agree which is better",
        "calibration error –",  # four are too few
        "position bias 38% for the first; 50% is none",  # of eight readings 3 of 6, and none of 2
    ]
    code, lines = check(("long answer", "a"), ("longer answer", "b"))
    assert code == 0
    assert lines[5] == "the labeler 2 of 2 100.00% 34.2%–100.0% too few examples to tell"


class ShortSighted(Judge):
    """A labeler that reads questions of at most 600 characters."""

    def judge(self, asked: str) -> Completion:
        return Completion("", "too_long", reason="too long") if len(asked) > LONGEST else super().judge(asked)


LONGEST = 600


@pytest.mark.usefixtures("judge")
def test_rows_that_are_too_long_for_the_labeler_are_counted_and_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("constitutional.engines.models.LazyEngine", ShortSighted)
    constitution = write_constitution(tmp_path / "ours.yaml")

    def check(*choices: tuple[str, str]) -> tuple[int, list[str], str]:
        path = answers(tmp_path / "people.jsonl", *choices)
        code = cli.main(["check", str(constitution), "--answers", str(path), "label.method=logprobs"])
        streams = capsys.readouterr()
        return code, [" ".join(line.split()) for line in streams.out.splitlines() if line], streams.err

    long = "z" * LONGEST
    right = [(f"{'long ' * n}answer", "b") for n in range(5)]
    code, lines, _ = check((long, "a"), *right, ("b", long))
    assert code == 0
    # Always the first is right where the answer that people chose comes first in the order of the letters.
    assert lines[1].startswith("always the first 2 of 7 28.57%")
    assert lines[2].startswith("always the longer 6 of 7 85.71%")
    assert lines[5] == "the labeler 5 of 5 100.00% 56.6%–100.0%"
    said = "2 rows are longer than the labeler can read, and not among the 5 that it was asked about"
    assert lines[-1] == said
    code, lines, problem = check((long, "a"))
    assert code == 1
    assert lines[1].startswith("always the first 0 of 1")
    assert problem.splitlines()[2:] == [
        "constitutional: every row (1) is longer than the labeler can read; take another labeler"
    ]


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["diff", "a", "b", "c"], "unrecognized arguments: c"),
        (["check", "a", "--answers", "b", "label.votes=1", "--fast"], "unrecognized arguments: label.votes=1 --fast"),
    ],
)
def test_a_word_too_many_is_wrong_use(words: list[str], problem: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main(words)
    assert problem in capsys.readouterr().err


# Runs


@pytest.mark.parametrize("words", [["show"], ["show", "x"], ["report"]])
def test_a_folder_without_a_run_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
    folder = tmp_path / "nothing"
    assert cli.main([words[0], str(folder), *words[1:]]) == 2
    assert capsys.readouterr().err.startswith(f"constitutional: {folder}: holds no run")


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        cli.main(["--help"])
    said = capsys.readouterr().out
    assert all(f"\n    {command}" in said for command in "run demo config lint diff check show report sandbox".split())


def test_help_takes_less_than_half_a_second() -> None:
    def used_s() -> float:  # of processors by children, which is the same on a busy machine
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used.ru_utime + used.ru_stime

    before_s = used_s()
    subprocess.run([sys.executable, "-m", "constitutional", "--help"], check=True, capture_output=True)
    assert used_s() - before_s < 0.5


def test_a_reader_that_goes_away_is_no_error() -> None:
    command = f"{sys.executable} -m constitutional diff sandbox_warm harmlessness | true; echo ${{PIPESTATUS[0]}}"
    finished = subprocess.run(["/bin/bash", "-c", command], check=True, capture_output=True, text=True)
    assert finished.stdout.strip() in {"141", "0"}  # 0 if all was written before the reader went
    assert finished.stderr == ""


def test_public_names_are_loaded_when_they_are_asked_for() -> None:
    program = (
        "import sys, constitutional as c; before = 'pydantic' in sys.modules; "
        "names = [getattr(c, name) for name in c.__all__]; print(before, len(names), 'torch' in sys.modules)"
    )
    finished = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert finished.stdout == f"False {len(constitutional.__all__)} False\n"
    with pytest.raises(AttributeError, match="has no attribute 'labell'"):
        _ = constitutional.labell  # type: ignore[attr-defined]
