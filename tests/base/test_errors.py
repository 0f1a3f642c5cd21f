import pickle
from pathlib import Path

from constitutional.base.errors import (
    ConfigurationError,
    ConstitutionalError,
    InputError,
    ModelError,
    RunError,
    UsageError,
)


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
    assert codes == {"UsageError": 2, "ConfigurationError": 2, "InputError": 2, "RunError": 1, "ModelError": 1}
    assert {UsageError, ConfigurationError, InputError, RunError, ModelError} == set(
        ConstitutionalError.__subclasses__()
    )
