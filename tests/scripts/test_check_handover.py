"""What NeMo-RL's scripts are held against; `make check-handover` asks the packages of the other two."""

from pathlib import Path
from typing import Any

import pytest

from constitutional.data.export.commands import ALGORITHMS, Algorithm, Material, script, words
from scripts.check_handover import RECIPES, REWARD_MODEL, check

MATERIAL = Material(prompt=100, reply=256, shift=0.5)


def examples(algorithm: Algorithm, *left_out: str) -> dict[str, Any]:
    """Configurations with all that the script sets, but for these; the reward model's in a file of its own."""
    files: dict[str, Any] = {REWARD_MODEL: {}, f"{algorithm}_math_1B.yaml": {}}
    for word in words("nemo-rl", algorithm, RECIPES[algorithm], MATERIAL)[2:]:
        name = word.removeprefix("++").partition("=")[0]
        if name not in left_out:
            place = files[REWARD_MODEL if name.startswith("env.") else f"{algorithm}_math_1B.yaml"]
            *sections, key = name.split(".")
            for section in sections:
                place = place.setdefault(section, {})
            place[key] = None
    return files


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_an_option_that_nemo_rls_example_does_not_have_is_named(algorithm: Algorithm, tmp_path: Path) -> None:
    file = tmp_path / f"{algorithm}.sh"
    file.write_text(script("A test.", words("nemo-rl", algorithm, RECIPES[algorithm], MATERIAL)))
    assert check(file, examples(algorithm)) == ""
    assert check(file, examples(algorithm, "data.train.data_path")) == ""  # an argument of the data set
    assert check(file, examples(algorithm, "env.reward_model.precision")).endswith("has no env.reward_model.precision")
    policy = {"policy": {"precision": None, **examples(algorithm)[f"{algorithm}_math_1B.yaml"]["policy"]}}
    files = examples(algorithm, "env.reward_model.precision")
    files[f"{algorithm}_math_1B.yaml"] |= policy  # which the reward model's worker reads as a policy's does
    assert check(file, files) == ""
    assert check(file, examples(algorithm, "policy.optimizer.kwargs.lr", "cluster.num_nodes")) == (
        f"LookupError: examples/configs/{algorithm}_math_1B.yaml has no policy.optimizer.kwargs.lr, cluster.num_nodes"
    )
    assert "grpo_rm_1B.yaml, of NeMo-RL's examples/configs, behind --nemo-rl" in check(file, {})
