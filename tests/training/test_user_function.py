import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from constitutional.base.errors import InputError
from constitutional.base.user_function import resolved
from constitutional.training.awaiting import begin, is_async
from constitutional.training.user_reward import load_reward


@pytest.fixture
def written(tmp_path: Path) -> Callable[[str], Path]:
    def write(source: str) -> Path:
        path = tmp_path / "mine.py"
        path.write_text(source)
        return path

    return write


WORDS = "def words(completions, **_):\n    return [len(reply[0]['content'].split()) for reply in completions]\n"
REPLIES = [[{"role": "assistant", "content": "One two."}], [{"role": "assistant", "content": ""}]]


def test_a_function_in_a_file_is_called_as_trl_calls_it(written: Callable[[str], Path]) -> None:
    function = load_reward(f"{written(WORDS)}:words")
    assert function.name == "words"
    assert function(prompts=[[], []], completions=REPLIES, prompt_id=["a", "b"]) == [2.0, 0.0]


@pytest.mark.parametrize("taken", ["prompt, reply", "prompts, completions", "completions, *, needed, **others"])
def test_a_function_that_cannot_be_called_so_is_refused_before_it_is(
    written: Callable[[str], Path], taken: str
) -> None:
    path = written(f"\n\ndef words({taken}):\n    return [0.0]\n")
    with pytest.raises(InputError, match=r"mine\.py:3: .*'words'.*prompts=.*def words\(prompts"):
        load_reward(f"{path}:words")


def test_a_function_in_a_module_is_found_with_the_modules_of_its_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "mine_of_a_test"
    package.mkdir()
    (package / "rewards.py").write_text("from mine_of_a_test import helper\n" + WORDS)
    (package / "helper.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    try:
        function = load_reward("mine_of_a_test.rewards:words")
        assert function(completions=REPLIES) == [2.0, 0.0]
        assert function.sources == (package / "rewards.py", package / "helper.py")
    finally:
        for name in [name for name in sys.modules if name.startswith("mine_of_a_test")]:
            sys.modules.pop(name)


def test_a_file_imports_helpers_beside_it_as_they_are_on_disk(tmp_path: Path, written: Callable[[str], Path]) -> None:
    helper, path = tmp_path / "helper_of_a_test.py", written("import helper_of_a_test as h\ndef f(**_): return [h.X]\n")
    helper.write_text("X = 1\n")
    function = load_reward(f"{path}:f")
    assert function(completions=[[]]) == [1.0]
    assert function.sources == (path, helper)  # so that both are part of the fingerprint
    helper.write_text("X = 22\n")  # of another length, as Python's cache knows a file by its time and length
    assert load_reward(f"{path}:f")(completions=[[]]) == [22.0]
    other = tmp_path / "other.py"
    other.write_text(path.read_text())
    assert load_reward(f"{other}:f").sources == (other, helper)


def test_a_file_is_found_from_every_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert resolved("mine.py:words") == f"{tmp_path / 'mine.py'}:words"
    assert resolved(resolved("mine.py:words")) == resolved("mine.py:words")
    assert resolved("package.rewards:words") == "package.rewards:words"


@pytest.mark.parametrize("target", ["mine.py", "words", "mine.py:", ":words", "mine.py:two words"])
def test_what_names_no_function_says_how_to(target: str) -> None:
    with pytest.raises(ValueError, match=r'"file.py:function" or "package.module:function"'):
        resolved(target)


def test_a_file_or_a_module_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"mine\.py: there is no such file"):
        load_reward(f"{tmp_path / 'mine.py'}:words")
    with pytest.raises(InputError, match=r"no module 'no_such_package'"):
        load_reward("no_such_package.rewards:words")


def test_a_function_that_is_not_there_says_which_are(written: Callable[[str], Path]) -> None:
    path = written("from math import sqrt\n" + WORDS + "def _own():\n    pass\n")
    with pytest.raises(InputError, match=r"mine\.py: has no function 'word'; it has words$"):
        load_reward(f"{path}:word")


@pytest.mark.parametrize(
    ("source", "error"),
    [("x = 1\ny = nothing", NameError), ("def words(:", SyntaxError), ("import no_such_module", ModuleNotFoundError)],
)
def test_what_the_users_own_code_raises_travels_with_its_traceback(
    written: Callable[[str], Path], source: str, error: type[Exception]
) -> None:
    with pytest.raises(error):
        load_reward(f"{written(source)}:words")
    function = load_reward(f"{written('def f(completions, **_): return 1 / 0')}:f")
    with pytest.raises(ZeroDivisionError):
        function(completions=REPLIES)


@pytest.mark.parametrize(
    ("returned", "problem"),
    [
        ("[1.0]", "1 rewards for 2 completions"),
        ("1.0", "returned 1.0"),
        ("'ab'", "returned 'ab'"),
        ("[1.0, 'good']", "returned 'good' as a reward"),
        ("[float('inf'), 1]", "returned inf as a reward"),
    ],
)
def test_what_a_function_may_not_return(written: Callable[[str], Path], returned: str, problem: str) -> None:
    function = load_reward(f"{written(f'import math{chr(10)}def f(completions, **_): return {returned}')}:f")
    with pytest.raises(InputError) as caught:
        function(completions=REPLIES)
    assert problem in str(caught.value)
    assert "mine.py:2: the reward function 'f'" in str(caught.value)


def test_no_reward_and_whole_numbers_are_allowed(written: Callable[[str], Path]) -> None:
    function = load_reward(f"{written('def f(completions, **_): return [None, True]')}:f")
    assert function(completions=REPLIES) == [None, 1.0]


def test_an_async_function_is_awaited_and_checked_as_any_other(written: Callable[[str], Path]) -> None:
    def called(returned: str) -> object:
        path = written(
            f"import asyncio\nasync def mine(completions, **_):\n    await asyncio.sleep(0)\n    return {returned}\n"
        )
        reward = load_reward(f"{path}:mine")
        assert is_async(reward)
        return begin([reward], {"completions": ["x", "y"]})()

    assert called("[1, None]") == [[1.0, None]]
    with pytest.raises(InputError, match=r":2: .*3 rewards for 2"):
        called("[1, 2, 3]")
