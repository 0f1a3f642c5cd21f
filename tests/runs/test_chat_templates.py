"""What a run says of models' chat templates before anything is asked of them."""

from io import StringIO
from pathlib import Path

import pytest

from constitutional.base.errors import InputError, ModelError
from constitutional.base.progress import Progress
from constitutional.base.templates import load_prompts
from constitutional.runs.compose import compose, freeze
from constitutional.runs.context import RunContext, selected
from constitutional.runs.runner import run, thinking
from tests.tiny import tiny_model, without_padding


def said(*words: str) -> list[str]:
    config = freeze(compose(["experiment=real", *words]))
    with RunContext(config, selected(config), load_prompts(), Progress(StringIO())) as run_context:
        return list(thinking(run_context))


def test_a_run_says_which_models_will_think_and_how_to_turn_that_off(tmp_path: Path) -> None:
    thinks, plain = tiny_model(tmp_path, "qwen3"), tiny_model(tmp_path, "llama")
    (line,) = said(f"model.path={thinks}")
    assert f"{thinks} (base, generator, critic, labeler) thinks before it replies" in line
    assert "count for the lengths at which that is cut off" in line
    assert line.endswith('type "model.template={enable_thinking: false}"')
    assert said(f"model.path={thinks}", "model.template={enable_thinking: false}") == []
    (line,) = said(f"model.path={plain}", f"labeler.path={thinks}")
    assert f"{thinks} (labeler) thinks" in line
    assert line.endswith('type "labeler.template={enable_thinking: false}"')
    assert said() == []


def test_a_judge_without_a_token_for_padding_is_refused_before_the_run_and_given_one_by_its_own_setting(
    tmp_path: Path,
) -> None:
    words = [f"model.path={tiny_model(tmp_path, 'llama')}", f"labeler.path={without_padding(tmp_path)}"]
    with pytest.raises(ModelError, match=r"has no pad token.*labeler\.pad_token=TOKEN"):
        said(*words)
    assert said(*words, "labeler.pad_token=<|pad|>") == []


@pytest.mark.parametrize("system", ["Be brief.", None])
def test_a_system_prompt_that_the_template_refuses_is_told_before_anything_runs(
    tmp_path: Path, system: str | None
) -> None:
    folder, file = tiny_model(tmp_path, "gemma"), tmp_path / "prompts.jsonl"
    own = '{"role": "system", "content": "Be kind."}, ' if system is None else ""
    rows = [f'{{"messages": [{own}{{"role": "user", "content": "What is {number}?"}}]}}\n' for number in range(20)]
    file.write_text("".join(rows), encoding="utf-8")
    words = [f"model.path={folder}", f"prompts.path={file}", "prompts=file", "prompts.held_out=4", f"folder={tmp_path}"]
    words += [f"prompts.system={system}"] if system else []
    with pytest.raises(InputError, match=r"refuses system messages \(System role not supported\).*prompts\.sys"):
        run(compose(["experiment=real", "name=r", *words, *LENGTHS]), progress=Progress(StringIO()))
    assert not (tmp_path / "r").exists()


LENGTHS = ("critique_revise.draft_max_tokens=32", "sample_pairs.max_tokens=32", "evaluate.max_tokens=12")
