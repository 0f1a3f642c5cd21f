from pathlib import Path

from constitutional.stages.prompts import FilePrompts, SandboxPrompts, run
from constitutional.stages.summaries import PromptsSummary
from tests.tiny import OneStage


def test_prompts_of_a_file_are_written_in_its_order_and_those_that_repeat_are_told(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("one\ntwo\none\nthree\n two\n")
    context = OneStage(tmp_path)
    run(FilePrompts(path=path, held_out=2), context)
    assert [prompt.messages[0].content for prompt in context.rows["prompts"]] == ["one", "two", "three"]
    assert sorted(prompt.split for prompt in context.rows["prompts"]) == ["held_out", "held_out", "train"]
    assert context.said == PromptsSummary(train=1, held_out=2, repeated=2)
    (warning,) = context.warnings
    assert warning == f"{path}:3: this prompt, and 1 more, stands there before; each prompt is used once"


def test_prompts_of_the_sandbox_are_as_many_as_are_asked_for(tmp_path: Path) -> None:
    context = OneStage(tmp_path)
    run(SandboxPrompts(train=3, held_out=2), context)
    assert [prompt.split for prompt in context.rows["prompts"]] == ["train"] * 3 + ["held_out"] * 2
    assert context.said == PromptsSummary(train=3, held_out=2, repeated=0)
    assert context.warnings == []
