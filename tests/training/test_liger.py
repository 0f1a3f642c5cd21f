"""Trainings by Liger's kernels, which Triton interprets on a CPU, against the same without: make test-liger."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.tiny import FAMILIES, tiny_model
from tests.training.liger_interpreted import STAGES

pytestmark = pytest.mark.skipif(not find_spec("liger_kernel"), reason="make test-liger has Liger's kernels")

MLPS = {"llama": "LlamaMLP", "qwen3": "Qwen3MLP", "gemma": "GemmaMLP"}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_kernels_train_to_the_same_and_are_gone_afterwards(tmp_path: Path, family: str) -> None:
    model = tiny_model(tmp_path, family)
    told = os.environ | {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONWARNINGS": "error"}
    program = [sys.executable, "-m", "tests.training.liger_interpreted", str(model), str(tmp_path / "out")]
    done = subprocess.run(program, env=told, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "liger" not in done.stderr.lower()  # of neither library a word to whoever trains
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert [stage["stage"] for stage in found] == list(STAGES)
    for stage in found:
        by_liger, plain = stage["losses"]
        assert len(plain) == 2
        assert by_liger == pytest.approx(plain, rel=1e-6)
        assert stage["layers"] == [sorted([MLPS[family], MLPS[family].replace("MLP", "RMSNorm")]), []]
        assert stage["weights"][0] == stage["weights"][1]
        assert stage["apart"] < 0.01 * stage["moved"]
