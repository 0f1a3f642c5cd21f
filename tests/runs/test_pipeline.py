import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel
from pydantic_core import PydanticUndefined, to_jsonable_python

from constitutional.base.errors import RunError
from constitutional.base.frozen import TECHNICAL
from constitutional.engines.base import Completion, Request
from constitutional.runs.compose import compose
from constitutional.runs.context import CONSTITUTION, READER
from constitutional.runs.folder import RunStore
from constitutional.runs.pipeline import stages_of
from constitutional.runs.runner import load_run
from constitutional.runs.settings import models_in
from constitutional.stages import online, prompts
from constitutional.stages.prompts import FilePrompts
from constitutional.stages.summaries import EvaluateSummary, LabelerCheckSummary, PromptsSummary
from tests.scripted_run import STAGES, World, configured, constitution, go
from tests.tiny import OneStage


def test_what_reads_principles_is_among_the_needs_of_what_rests_on_it_alone() -> None:
    assert [stage.name for stage in STAGES if READER in stage.needs] == ["labeler_check", "evaluate"]
    stages = stages_of(compose(["evaluate.left_out=false"]))
    assert [stage.name for stage in stages if READER in stage.needs] == ["labeler_check"]


def test_stages_need_only_what_is_given_or_was_made_before_them() -> None:
    made = {"base", "generator", "critic", "labeler", READER, *CONSTITUTION}
    for stage in STAGES:
        assert {need for need in stage.needs if not need.endswith(".j2")} <= made
        made |= set(stage.makes)


def test_prompts_that_stand_twice_are_used_once_with_a_warning_that_names_the_first(
    tmp_path: Path,
) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("a\nb\n\nb\na\n")
    context = OneStage(tmp_path)
    prompts.run(FilePrompts(path=path, held_out=0), context)
    assert [prompt.messages[0].content for prompt in context.rows["prompts"]] == ["a", "b"]
    assert context.said == PromptsSummary(train=2, held_out=0, repeated=2)
    (warning,) = context.warnings
    assert warning.startswith(f"{path}:4: ")
    assert "1 more" in warning


def test_the_labeler_is_measured_before_anything_is_trained(tmp_path: Path) -> None:
    names = [stage.name for stage in STAGES]
    assert names.index("labeler_check") < min(names.index(stage.name) for stage in STAGES if stage.trains)

    path = constitution(tmp_path)
    path.write_text(f"{path.read_text()}    examples:\n      - {{prompt: Why?, better: So., worse: No idea.}}\n")
    world = World()
    with pytest.raises(RunError, match="fails at 2 of 2 comparisons whose answer is plain"):
        go(configured(tmp_path, "label.method=rationale"), world)  # of which these models know nothing
    first_words = {request.messages[0].content.partition(" ")[0] for request in world.asked}
    assert first_words == {"Say", "Here"}  # what this principle asks; a conversation and two responses to compare
    assert list(load_run(tmp_path / "runs" / "first").stages) == ["prompts"]


TWO = """\
name: Ours
principles:
  - id: longer
    text: Prefer the longer.
    tags: [verbosity, avoid]
    examples:
      - {prompt: Why?, better: Because it is so., worse: No.}
  - id: shorter
    text: Prefer the shorter.
    tags: [refusal, avoid]
    examples:
      - {prompt: Why?, better: No., worse: Because it is so.}
"""


class LikesLonger(World):
    """Scripted models, of which the labeler prefers the longer response, or the later in the order of letters."""

    def answer(self, request: Request, model: str) -> Completion:
        answered = super().answer(request, model)
        if len(request.choices) != 2:
            return answered
        a, _, b = request.messages[0].content.partition("(A) ")[2].partition("\n\nCompare")[0].partition("\n\n(B) ")
        return Completion("", "choices", (-0.1, -3.0) if (len(a), a) > (len(b), b) else (-3.0, -0.1))


def test_what_the_labeler_misjudges_it_neither_labels_nor_evaluates_by(tmp_path: Path) -> None:
    (tmp_path / "ours.yaml").write_text(TWO)
    world = LikesLonger()
    store, _ = go(configured(tmp_path, "label.min_accuracy=0.7", "label.principles=all"), world)
    asked = [each.messages[0].content for each in world.asked if len(each.choices) == 2]
    # Its one example in both orders; a judgement by it of any comparison, or of two models' replies, would be more.
    assert sum("Prefer the shorter." in each for each in asked) == 2
    assert sum("Prefer the longer." in each for each in asked) > 2
    assert store.summary("labeler_check", LabelerCheckSummary).left_out_principles == ("shorter",)
    assert any(each.startswith("win_rate/") for each in [row["measure"] for row in scores_of(store)])


def scores_of(store: RunStore) -> list[dict[str, Any]]:
    return [json.loads(line) for line in store.artifact("scores").read_text().splitlines()]


def test_edited_tags_are_evaluated_and_reported_anew_and_train_nothing(tmp_path: Path) -> None:
    (tmp_path / "ours.yaml").write_text(TWO)
    go(configured(tmp_path), LikesLonger())
    (tmp_path / "ours.yaml").write_text(TWO.replace("[verbosity, avoid]", "[verbosity, seek]"))
    world = LikesLonger()
    store, said = go(configured(tmp_path), world)
    assert [line.split(":")[0] for line in said if ": running;" in line] == [
        "01 labeler_check",
        "09 evaluate",
        "10 report",
    ]
    assert world.asked == []
    wanted = store.summary("evaluate", EvaluateSummary).wanted
    assert wanted is not None
    assert wanted["trait_rate/verbosity"] == "higher"


def defaults_of(model: type[BaseModel]) -> dict[str, Any]:
    """The defaults of settings that decide results, those of nested ones included."""
    found: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        if TECHNICAL in field.metadata:
            continue
        nested = models_in(field.annotation)
        default = field.get_default(call_default_factory=True, validated_data={})
        found[name] = None if default is PydanticUndefined else to_jsonable_python(default, fallback=str)
        if nested:
            found[f"{name} nested"] = [defaults_of(part) for part in nested]
    return found


def digests_of_defaults() -> dict[str, str]:
    """By stage, version and kind of settings, the beginning of a digest of all defaults."""
    digests = {}
    for words in ([], ["algorithm=ppo"], ["algorithm=grpo"], ["algorithm=rloo"], ["prompts.path=some.txt"]):
        for stage in stages_of(compose(words)):
            kinds = [type(stage.settings)]
            if isinstance(stage.settings, online.Inputs):  # which is generic, so that its fields do not name the kind
                kinds.append(type(stage.settings.algorithm))
            text = "".join(json.dumps(defaults_of(kind), sort_keys=True) for kind in kinds)
            name = f"{stage.name} {stage.version} {type(stage.settings).__name__}"
            digests[name] = hashlib.sha256(text.encode()).hexdigest()[:8]
    return digests


def test_where_a_default_changes_the_stages_version_is_raised() -> None:
    """Settings at their defaults are in no fingerprint, so a new default would find what the old one made.

    Who changes a default raises the version of the stage that reads it in `pipeline.py`, and writes the digest here; a
    new setting at its default makes nothing else, and so raises nothing.
    """
    assert digests_of_defaults() == DEFAULTS


DEFAULTS = {
    "prompts 3 SandboxPrompts": "7a86a5b1",
    "labeler_check 7 LabelSettings": "3cdbc347",
    "critique_revise 4 Settings": "6c98830f",
    "sft 3 Settings": "9bf86d77",
    "sample_pairs 3 Settings": "7ee45247",
    "label 6 LabelSettings": "3cdbc347",
    "mix 5 Settings": "c880b73a",
    "reward 3 Settings": "8954b12d",
    "dpo 2 Settings": "b3e363fb",
    "evaluate 12 Inputs": "c883885f",
    "report 12 Settings": "3705a356",
    "ppo 3 Inputs": "3373c950",
    "grpo 4 Inputs": "29fcd7a4",
    "rloo 4 Inputs": "6e484ba8",
    "prompts 3 FilePrompts": "38a4d3b8",
}
