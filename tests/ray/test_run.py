"""A run whose models are in actors, on a cluster of one node."""

import os
import shutil
from importlib.util import find_spec
from io import StringIO
from pathlib import Path

import pytest

from constitutional.base.progress import Progress
from constitutional.engines.local import LocalEngine
from constitutional.engines.model_files import model_folder
from constitutional.engines.settings import SANDBOX
from constitutional.runs.pipeline import Stage, stages_of
from constitutional.runs.runner import run
from constitutional.runs.settings import RunConfig
from constitutional.stages.context import StageContext
from tests.ray.functions import asked
from tests.scripted_run import SUMMARIES_OF, configured, constitution, rows

if find_spec("ray") is None:
    pytest.skip("Ray is not installed; make test-ray installs it", allow_module_level=True)

FUNCTION = f"{Path(__file__).parent / 'functions.py'}:answer"
STAGES = ("prompts", "critique_revise", "sft", "sample_pairs", "label")


def settings(folder: Path, *overrides: str) -> RunConfig:
    """The function criticises, revises and labels; the sandbox's model draws what is compared."""
    roles = [
        word
        for role in ("generator", "critic", "labeler")
        for word in (f"{role}=scripted", f"{role}.function={FUNCTION}", f"{role}.choices=true")
    ]
    return configured(folder, "until=label", *roles, *overrides)


def stages(config: RunConfig) -> list[Stage]:
    """Those whose models answer, and a training that learns nothing."""

    def train(_: object, context: StageContext) -> None:
        shutil.copytree(model_folder(SANDBOX), context.output("sft_model"))
        context.write("labeler_accuracy", ())
        context.summarise(SUMMARIES_OF["sft_model"])

    every = {stage.name: stage for stage in stages_of(config)}
    made = ("sft_model", "labeler_accuracy")
    every["sft"] = Stage("sft", config.sft, needs=("revisions",), makes=made, run=train)
    return [every[name] for name in STAGES]


def test_revisions_samples_and_labels_of_actors_are_those_of_one_machine(
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
    assert go("spread", "cluster=ray", "cluster.max_actors=2", "cluster.chunk=4") == alone
    made = {Path(name).name for name, content in alone.items() if content}
    assert made == {"prompts.jsonl", "revisions.jsonl", "comparisons.jsonl", "judgements.jsonl"}
    assert os.getpid() not in {row.pid for row in asked(fresh)}
    assert len({row.pid for row in asked(fresh)}) > 1
