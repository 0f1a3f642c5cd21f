import pickle
from pathlib import Path

import pytest

from constitutional import Comparison, Prompt, critique_revise, label, load_constitution, run
from constitutional.base.errors import (
    ConstitutionalError,
    InputError,
    UsageError,
    complain,
    expect_all,
)
from constitutional.engines.scripted import ScriptedEngine


def test_an_input_error_reads_file_line_problem() -> None:
    assert str(InputError(Path("x.yaml"), "no text", 5)) == "x.yaml:5: no text"


def test_an_input_error_about_a_whole_file_leaves_the_line_out() -> None:
    assert str(InputError("x.yaml", "holds no principle")) == "x.yaml: holds no principle"


def test_an_input_error_survives_the_way_to_another_process() -> None:
    error = pickle.loads(pickle.dumps(InputError(Path("x.yaml"), "no text", 5)))  # noqa: S301 # our own bytes
    assert (error.path, error.problem, error.line) == (Path("x.yaml"), "no text", 5)
    assert str(error) == "x.yaml:5: no text"


def test_what_the_user_wrote_wrong_exits_with_2_and_what_failed_with_1() -> None:
    codes = {kind.__name__: kind.exit_code for kind in ConstitutionalError.__subclasses__()}
    assert codes == {
        "UsageError": 2,
        "ConfigurationError": 2,
        "InputError": 2,
        "RunError": 1,
        "ModelError": 1,
        "BudgetError": 3,
        "WaitingError": 3,
    }


@pytest.mark.parametrize("values", ["a text", {"prompt": "x"}, ["x"], 3])
def test_a_text_or_a_mapping_in_the_place_of_records_says_what_is_taken(values: object) -> None:
    with pytest.raises(UsageError, match=r"label\(\) takes a list of Comparison"):
        list(expect_all(values, Comparison, "label"))  # type: ignore[arg-type]


def test_public_functions_refuse_what_is_no_record_of_theirs() -> None:
    with pytest.raises(UsageError, match=r"Prompt\.of\(\) takes a text.*int: 3"):
        Prompt.of(3)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"load_constitution\(\) takes.*dict"):
        load_constitution({"name": "x"})  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"run\(\) takes a configuration.*dict"):
        run({"name": "x"})  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"label\(\) takes.*str"):
        list(label("text", load_constitution("sandbox_careful"), ScriptedEngine(lambda _: "")))  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"critique_revise\(\) takes.*str"):
        list(critique_revise(["text"], load_constitution("sandbox_careful"), ScriptedEngine(lambda _: "")))  # type: ignore[list-item]


def test_an_error_is_one_line_without_control_characters(capsys: pytest.CaptureFixture[str]) -> None:
    error = InputError("x\x1b[2J.yaml", "no\ntext", 5)
    error.add_note("more")
    complain(error)
    assert capsys.readouterr().err == "constitutional: x\\x1b[2J.yaml:5: no text\nconstitutional: more\n"
