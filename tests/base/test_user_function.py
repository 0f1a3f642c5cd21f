from pathlib import Path

import pytest

from constitutional.base.user_function import load_function, resolved


def file_with_helper(folder: Path, said: str) -> str:
    folder.mkdir()
    (folder / "tools.py").write_text(f"SAID = {said!r}\n")
    (folder / "fn.py").write_text("import tools\n\n\ndef say() -> str:\n    return tools.SAID\n")
    return resolved(f"{folder / 'fn.py'}:say")


def test_helpers_of_one_name_belong_to_the_file_beside_them(tmp_path: Path) -> None:
    targets = [file_with_helper(tmp_path / name, name) for name in ("a", "b")]
    loaded = [load_function(target) for target in (*targets, targets[0])]
    assert [each.function() for each in loaded] == ["a", "b", "a"]
    assert [each.sources[1] for each in loaded] == [tmp_path / name / "tools.py" for name in ("a", "b", "a")]


@pytest.mark.parametrize("target", [".mod:f", "mod.:f", "a b:f", ":f", "mod:", "mod:a b"])
def test_what_names_no_module_or_no_function_is_told(target: str) -> None:
    with pytest.raises(ValueError, match="but should be"):
        resolved(target)
