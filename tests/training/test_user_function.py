import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from constitutional.base.errors import ConfigurationError, InputError
from constitutional.training.user_function import load_function, resolved, source_of


@pytest.fixture
def written(tmp_path: Path) -> Callable[[str], Path]:
    def write(source: str) -> Path:
        path = tmp_path / "mine.py"
        path.write_text(source)
        return path

    return write


WORDS = "def words(completions, **_):\n    return [len(each[0]['content'].split()) for each in completions]\n"
SAID = [[{"role": "assistant", "content": "One two."}], [{"role": "assistant", "content": ""}]]


def test_a_function_in_a_file_is_called_as_trl_calls_it(written: Callable[[str], Path]) -> None:
    found = load_function(f"{written(WORDS)}:words")
    assert found.name == "words"
    assert found(prompts=[[], []], completions=SAID, prompt_id=["a", "b"]) == [2.0, 0.0]


@pytest.mark.parametrize("taken", ["prompt, reply", "prompts, completions", "completions, *, needed, **others"])
def test_a_function_that_cannot_be_called_so_is_refused_before_it_is(
    written: Callable[[str], Path], taken: str
) -> None:
    path = written(f"\n\ndef words({taken}):\n    return [0.0]\n")
    with pytest.raises(InputError, match=r"mine\.py:3: .*'words' is called with prompts=….*write def words\(prompts"):
        load_function(f"{path}:words")


def test_a_function_in_a_module_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine_of_a_test").mkdir()
    (tmp_path / "mine_of_a_test" / "rewards.py").write_text(WORDS)
    monkeypatch.syspath_prepend(str(tmp_path))
    try:
        assert load_function("mine_of_a_test.rewards:words")(completions=SAID) == [2.0, 0.0]
        assert source_of("mine_of_a_test.rewards:words") == tmp_path / "mine_of_a_test" / "rewards.py"
    finally:
        for name in ("mine_of_a_test", "mine_of_a_test.rewards"):
            sys.modules.pop(name, None)


def test_a_file_is_found_from_every_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert resolved("mine.py:words") == f"{tmp_path / 'mine.py'}:words"
    assert resolved(resolved("mine.py:words")) == resolved("mine.py:words")
    assert source_of(resolved("mine.py:words")) == tmp_path / "mine.py"
    assert resolved("package.rewards:words") == "package.rewards:words"


@pytest.mark.parametrize("target", ["mine.py", "words", "mine.py:", ":words", "mine.py:two words"])
def test_what_names_no_function_says_how_to(target: str) -> None:
    with pytest.raises(ValueError, match=r'should be "file.py:function" or "package.module:function"'):
        resolved(target)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"mine\.py: there is no such file"):
        load_function(f"{tmp_path / 'mine.py'}:words")


def test_a_function_that_is_not_there_says_which_are(written: Callable[[str], Path]) -> None:
    path = written("from math import sqrt\n" + WORDS + "def _own():\n    pass\n")
    with pytest.raises(InputError, match=r"mine\.py: has no function 'word'; it has words$"):
        load_function(f"{path}:word")


def test_a_file_that_cannot_be_imported_says_the_line(written: Callable[[str], Path]) -> None:
    with pytest.raises(InputError, match=r"mine\.py:2: cannot be imported: NameError: name 'nothing'"):
        load_function(f"{written('x = 1' + chr(10) + 'y = nothing')}:words")
    with pytest.raises(InputError, match=r"mine\.py:1: cannot be imported: SyntaxError"):
        load_function(f"{written('def words(:')}:words")


def test_a_module_that_is_not_there() -> None:
    with pytest.raises(
        ConfigurationError, match=r"there is no module 'no_such_package' to take a reward function from"
    ):
        load_function("no_such_package.rewards:words")


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        ("[1.0]", "returned 1 rewards for 2 completions; return one for each"),
        ("1.0", "returned 1.0, and should return a list"),
        ("'ab'", "returned 'ab', and should return a list"),
        ("[1.0, 'good']", "returned 'good' as a reward; return a finite number"),
        ("[float('inf'), 1]", "returned inf as a reward"),
        ("[1, 1 / 0]", "failed: ZeroDivisionError: division by zero"),
    ],
)
def test_what_a_function_may_not_return(written: Callable[[str], Path], returned: str, said: str) -> None:
    found = load_function(f"{written(f'import math{chr(10)}def f(completions, **_): return {returned}')}:f")
    with pytest.raises(InputError) as caught:
        found(completions=SAID)
    assert said in str(caught.value)
    assert "mine.py:2: the reward function 'f'" in str(caught.value)


def test_no_reward_and_whole_numbers_are_allowed(written: Callable[[str], Path]) -> None:
    found = load_function(f"{written('def f(completions, **_): return [None, True]')}:f")
    assert found(completions=SAID) == [None, 1.0]
