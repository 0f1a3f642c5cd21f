import contextlib
import json
import math
import re
import subprocess
import sys
from importlib.metadata import distribution, packages_distributions
from pathlib import Path
from typing import Any

import pytest

from scripts import bench_gpu
from scripts.bench_gpu import SIZES
from scripts.bench_gpu_parts import Speed, forward_flops, ppo_arguments
from scripts.bench_ppo_trainer import Sizes

SCRIPT = Path(bench_gpu.__file__)
LOOK_ALIKE = Sizes(hidden=16, layers=2, heads=2, key_value_heads=1, intermediate=32, vocabulary=64)

# Everything is hidden but the modules that are named, as if it were not installed.
PROGRAM = """
import runpy, sys

class Hiding:
    def __init__(self, finder, hidden):
        self.finder, self.hidden = finder, hidden

    def find_spec(self, name, *rest):
        return None if name.partition(".")[0] in self.hidden else self.finder.find_spec(name, *rest)

    def __getattr__(self, name):
        return getattr(self.finder, name)

script, hidden, sys.argv = sys.argv[1], set(sys.argv[2].split(",")), sys.argv[1:2] + sys.argv[3:]
sys.meta_path[:] = [Hiding(finder, hidden) for finder in sys.meta_path]
import torch
torch.set_num_threads(1)
runpy.run_path(script, run_name="__main__")
"""


def with_what_they_need(packages: set[str]) -> set[str]:
    """The packages with those that they need, without extras."""
    found: set[str] = set()
    waiting = list(packages)
    while waiting:
        name = waiting.pop().lower().replace("_", "-")
        if name in found:
            continue
        found.add(name)
        needed = distribution(name).requires or []
        # Those of other systems may not be installed here.
        names = [re.split(r"[^\w.-]", line)[0] for line in needed if ";" not in line]
        waiting += names
    return found


def test_all_runs_where_only_four_packages_are_installed(tmp_path: Path) -> None:
    # Of what they need, pydantic is new, and older versions do without.
    there = with_what_they_need({"torch", "transformers", "accelerate", "numpy"}) - {"pydantic", "pydantic-core"}
    modules = packages_distributions()
    hidden = {
        module
        for module, owners in modules.items()
        if not there & {owner.lower().replace("_", "-") for owner in owners} and module not in sys.stdlib_module_names
    }
    assert {"trl", "peft", "datasets", "hydra", "pydantic"} <= hidden
    assert not {"torch", "transformers", "accelerate", "numpy", "jinja2", "tokenizers"} & hidden
    output = tmp_path / "found.json"
    arguments = ["--size", "tiny", "--json", str(output)]
    command = [sys.executable, "-W", "ignore", "-c", PROGRAM, str(SCRIPT), ",".join(sorted(hidden)), *arguments]
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(output.read_text())
    check(found)
    assert found["dpo"]["by"] == "the loss of DPO over PPO's forward pass, as trl is not installed"
    # At the first step policy and reference are one.
    assert found["dpo"]["losses"][0] == pytest.approx(math.log(2), abs=1e-6)
    assert found["dpo"]["losses"][1] != pytest.approx(math.log(2), abs=1e-9)
    assert found["vllm"]["left_out"] == "vllm is not installed"
    assert "by: the loss of DPO" in done.stdout


def check(found: dict[str, Any]) -> None:
    """Whatever was measured is there, and fits together."""
    sizes = SIZES["tiny"]
    pieces = {"ppo": ("rollout", "scoring", "update"), "dpo": ("update",)}
    for part, names in {**pieces, "generation": ("decoder", "sampler", "transformers")}.items():
        assert found[part]["peak_gib"] > 0
        assert "error" not in found[part]
        for name in names:
            piece = found[part][name]
            assert all(second > 0 for second in piece["seconds"])
            assert 0 < piece["share_of_peak"] < 1
    drawn = sizes.batch * sizes.response_length
    assert found["ppo"]["rollout"]["tokens"] == [drawn]
    (whole,) = found["ppo"]["scoring"]["tokens"]
    assert drawn + sizes.batch * sizes.prompts[0] <= whole <= drawn + sizes.batch * sizes.prompts[1]
    assert sum(found["ppo"][name]["seconds"][0] for name in pieces["ppo"]) < found["ppo"]["phase_s"][0]
    for way in ("decoder", "sampler", "transformers"):
        assert found["generation"][way]["tokens"] == [drawn] * 2
    assert len(found["dpo"]["update"]["seconds"]) == 2


def test_where_trl_is_installed_its_trainer_is_what_is_measured() -> None:
    written: list[dict[str, Any]] = []
    found = bench_gpu.measure("tiny", ["dpo"], lambda each: written.append(json.loads(json.dumps(each))))
    assert "error" not in found["dpo"]
    assert found["dpo"]["by"] == "TRL's DPOTrainer with this project's soft labels"
    assert len(found["dpo"]["update"]["seconds"]) == 2
    assert [each["dpo"] for each in written] == [found["dpo"]]


def test_the_settings_of_ppo_are_its_own_defaults_but_for_what_is_measured() -> None:
    from constitutional.training.ppo.settings import PPOConfig

    sizes, changed = SIZES["1b"], vars(ppo_arguments(SIZES["1b"], "folder", gpu=True))
    assert changed == PPOConfig(**changed).model_dump()
    defaults = PPOConfig(output_dir="folder").model_dump()
    assert {name for name, value in changed.items() if value != defaults[name]} == {
        *("bf16", "total_episodes", "per_device_train_batch_size", "gradient_accumulation_steps", "num_ppo_epochs"),
        *("local_rollout_forward_batch_size", "max_prompt_length", "response_length", "learning_rate", "logging_steps"),
    }
    assert changed["total_episodes"] == 128 * (sizes.phases + 1)


def test_operations_are_counted_by_weights_tokens_and_context() -> None:
    # 2304 weights a layer, as in bench_ppo's test; a prompt of 3 and a reply of 2 see 1 + 2 + 3 + 4 + 5 tokens.
    layers, attention, head = 2 * 2 * 2304 * 5, 4 * 2 * 16 * 15, 2 * 16 * 64 * 2
    assert forward_flops(LOOK_ALIKE, 3, 2, head=False) == layers + attention
    assert forward_flops(LOOK_ALIKE, 3, 2, head=True) == layers + attention + head


def test_a_share_of_the_peak_is_of_operations_in_a_second() -> None:
    found: dict[str, Any] = {}
    speed = Speed(found, 2.0, "tokens")
    for seconds in (2.0, 4.0, 1.0):
        speed.add(seconds, 100, 1e12)
    # At 2 TFLOP/s a TFLOP takes half a second; the median took 2.
    assert (found["tokens_per_s"], found["share_of_peak"]) == (50.0, 0.25)


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989.0),
        ("NVIDIA H100 PCIe", 756.0),
        ("NVIDIA H100 NVL", 835.0),
        ("NVIDIA GH200 480GB", 989.0),
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("NVIDIA L40S", 362.0),
    ],
)
def test_a_card_is_known_by_its_name(name: str, peak: float) -> None:
    found, source = bench_gpu.peak_tflops(name)
    assert found == peak
    assert source.startswith("the data sheet of ")


def test_a_machine_without_a_known_card_is_measured() -> None:
    found, source = bench_gpu.peak_tflops("cpu")
    assert 1e-3 < found < 100
    assert source == "a product of 512×512 matrices in torch.float32"


def test_a_part_that_fails_says_why_and_the_others_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    def fails(*_: object) -> None:
        raise torch.OutOfMemoryError("no memory\nand more")

    def works(_: object, peak: float, found: dict[str, Any]) -> None:
        Speed(found.setdefault("piece", {}), peak, "tokens").add(1.0, 5, 1.0)

    monkeypatch.setattr(bench_gpu, "PARTS", {"ppo": fails, "dpo": works})
    found = bench_gpu.measure("tiny", ["ppo", "dpo"], lambda _: None)
    assert found["ppo"]["error"] == "OutOfMemoryError: no memory"
    assert found["dpo"]["piece"]["tokens_per_s"] == 5
    assert "error: OutOfMemoryError: no memory" in bench_gpu.table(found)


def test_the_time_ends_the_command_and_what_was_found_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import time

    def slow(_: object, peak: float, found: dict[str, Any]) -> None:
        Speed(found.setdefault("piece", {}), peak, "tokens").add(1.0, 5, 1.0)
        time.sleep(60)

    monkeypatch.setattr(bench_gpu, "PARTS", {"ppo": slow})
    output = tmp_path / "found.json"
    started = time.monotonic()
    assert bench_gpu.main(["--size", "tiny", "--minutes", "0.03", "--parts", "ppo", "--json", str(output)]) == 1
    assert time.monotonic() - started < 30
    found = json.loads(output.read_text())
    assert found["out_of_time"] is True
    assert found["ppo"]["piece"]["tokens_per_s"] == 5
    assert "the time ended before all was measured" in capsys.readouterr().out


@pytest.mark.parametrize("kind", [Exception, BaseException])
def test_a_library_that_catches_what_is_raised_does_not_keep_the_command_going(
    kind: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    import time

    def catches(*_: object) -> None:
        with contextlib.suppress(kind):
            time.sleep(60)
        time.sleep(60)

    monkeypatch.setattr(bench_gpu, "PARTS", {"ppo": catches})
    monkeypatch.setattr(bench_gpu, "AGAIN_S", 0.5)
    started = time.monotonic()
    assert bench_gpu.main(["--size", "tiny", "--minutes", "0.03", "--parts", "ppo"]) == 1
    assert time.monotonic() - started < 30


def test_without_a_gpu_the_large_size_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(SystemExit):
        bench_gpu.main([])
    assert "torch sees no GPU here" in capsys.readouterr().err
