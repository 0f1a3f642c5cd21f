"""A run whose models are in actors, on a cluster of one node."""

import os
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from importlib.util import find_spec
from io import StringIO
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import pytest

from constitutional.base.progress import Progress
from constitutional.engines.cluster import CHUNKS
from constitutional.engines.local import LocalEngine
from constitutional.engines.model_files import model_folder
from constitutional.engines.settings import SANDBOX
from constitutional.runs.compose import compose
from constitutional.runs.pipeline import Stage, stages_of
from constitutional.runs.runner import run
from constitutional.runs.settings import RunConfig
from constitutional.stages.context import StageContext
from tests.ray.functions import asked
from tests.scripted_run import PRINCIPLES, SUMMARIES_OF, configured, constitution, rows

if find_spec("ray") is None:
    pytest.skip("Ray is not installed; make test-ray installs it", allow_module_level=True)

FUNCTION = f"{Path(__file__).parent / 'functions.py'}:answer"
STAGES = ("prompts", "critique_revise", "sft", "sample_pairs", "label", "dpo", "evaluate")
CHUNK = 4


ROLES = [
    word
    for role in ("generator", "critic", "labeler")
    for word in (f"{role}=scripted", f"{role}.function={FUNCTION}", f"{role}.choices=true")
]


def settings(folder: Path, *overrides: str) -> RunConfig:
    """The function criticises, revises and labels; the sandbox's model draws what is compared and evaluated."""
    few = ("prompts.train=4", "evaluate.max_tokens=32")
    return configured(folder, "until=evaluate", *few, *ROLES, *overrides)


def stages(config: RunConfig) -> list[Stage]:
    """Those whose models answer, and trainings that learn nothing."""

    def train(_: object, context: StageContext) -> None:
        shutil.copytree(model_folder(SANDBOX), context.output("sft_model"))
        context.write("labeler_accuracy", ())
        context.write("meanings", ())
        context.summarise(SUMMARIES_OF["sft_model"])

    def train_policy(_: object, context: StageContext) -> None:
        shutil.copytree(model_folder(SANDBOX), context.output("policy"))
        context.summarise(SUMMARIES_OF["policy"])

    every = {stage.name: stage for stage in stages_of(config)}
    made = ("sft_model", "labeler_accuracy", "meanings")
    every["sft"] = Stage("sft", config.sft, needs=("revisions",), makes=made, run=train)
    every["dpo"] = Stage("dpo", config.algorithm, needs=("sft_model",), makes=("policy",), run=train_policy)
    return [every[name] for name in STAGES]


def test_revisions_samples_labels_and_measures_of_actors_are_those_of_one_machine(
    fresh: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def go(name: str, *overrides: str) -> dict[str, bytes]:
        folder = tmp_path / name
        folder.mkdir()
        constitution(folder)
        config = settings(folder, f"name={name}", *overrides)
        run(config, stages=stages(config), progress=Progress(StringIO()))
        return rows(config.run_folder)

    alone = go("alone")
    assert not asked(fresh)
    monkeypatch.delattr(LocalEngine, "answer")  # in this process, and so in no actor
    assert go("spread", "cluster=ray", "cluster.max_actors=2", f"cluster.chunk={CHUNK}") == alone
    made = {Path(name).stem for name, content in alone.items() if content}
    labelled = {"prompts", "revisions", "comparisons", "judgements"}
    assert made == labelled | {"samples", "scores", "measurements"}
    # By the labeler and by the critic, beside what is counted in the replies.
    (scores,) = [content.decode() for name, content in alone.items() if name.endswith("/scores.jsonl")]
    assert {"win_rate", "violation_rate"} <= set(re.findall(r'"measure": ?"(\w+)/', scores))
    assert os.getpid() not in {row.pid for row in asked(fresh)}
    assert len({row.pid for row in asked(fresh)}) > 1


def test_a_killed_command_goes_on_from_the_journal_and_pays_at_most_what_was_in_flight_twice(
    fresh: Path, tmp_path: Path
) -> None:
    import ray

    constitution(tmp_path, **{name: f"{text} <wait 0.1>" for name, text in PRINCIPLES.items()})
    words = [
        *(f"constitution.file={tmp_path}/ours.yaml", "until=critique_revise", "critique_revise=schema"),
        *("critique_revise.rounds=2", "prompts.train=24", "prompts.held_out=4", *ROLES),
    ]
    address = ray.get_runtime_context().gcs_address
    spread = ["cluster=ray", f"cluster.address={address}", "cluster.max_actors=2", f"cluster.chunk={CHUNK}"]
    program = [sys.executable, "-m", "constitutional", "run", "name=killed", f"folder={tmp_path}/killed"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    with (tmp_path / "said.txt").open("wb") as said:
        with subprocess.Popen([*program, *words, *spread], env=environment, stdout=said, stderr=said) as command:
            end_s = time.monotonic() + 120
            # What ends with a principle is a critique; what is asked before them does not wait.
            while sum("<wait" in row.text for row in asked(fresh)) < 20:
                assert command.poll() is None, (tmp_path / "said.txt").read_text()
                assert time.monotonic() < end_s
                time.sleep(0.05)
            command.kill()
        pids = {row.pid for row in asked(fresh)}
        while any(psutil.pid_exists(pid) for pid in pids):  # its actors end with it
            assert time.monotonic() < end_s
            time.sleep(0.1)
        before = len(asked(fresh))
        subprocess.run([*program, *words, *spread], env=environment, check=True, stdout=said, stderr=said, timeout=120)
    counts = Counter(row.digest for row in asked(fresh))
    assert before < len(counts)  # it was in the middle
    assert set(counts.values()) <= {1, 2}
    assert sum(counts.values()) - len(counts) <= 2 * CHUNKS * CHUNK
    alone = run(compose([*words, "name=alone", f"folder={tmp_path}/alone"]), progress=Progress(StringIO()))
    (revised,) = (tmp_path / "killed" / "killed").glob("*_critique_revise/revisions.jsonl")
    assert revised.read_bytes() == alone.artifact("revisions").read_bytes()
