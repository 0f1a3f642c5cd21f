import contextlib
import io
import re
import shlex
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from constitutional.cli.explain import explained
from constitutional.engines.base import Completion, Request
from constitutional.runs.compose import compose, search_space, sweep
from constitutional.sandbox import MODEL_FOLDER
from tests.runs.test_budget import Priced
from tests.scripted_run import go

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PPO, LIBRARY = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_the_library_example_runs_as_it_stands() -> None:
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        exec(compile(LIBRARY, "README.md", "exec"), {})  # noqa: S102 - the text under test
    revised, judged = said.getvalue().strip().splitlines()
    assert "The principle asks" in revised  # a critique
    principle, p_a, conflict = judged.split()
    assert principle == "no_flattery"
    assert float(p_a) < 0.5  # b does not flatter
    assert conflict == "False"


def test_the_example_of_ppo_runs_as_it_stands_with_fewer_episodes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder,) = re.findall(r'reward_model="(.*?)"', PPO)
    (tmp_path / folder).parent.mkdir(parents=True)
    torch.manual_seed(0)
    AutoModelForSequenceClassification.from_pretrained(MODEL_FOLDER, num_labels=1).save_pretrained(tmp_path / folder)
    AutoTokenizer.from_pretrained(MODEL_FOLDER).save_pretrained(tmp_path / folder)
    (start,) = re.findall(r'"(runs/\S+)",  # any', PPO)
    shutil.copytree(MODEL_FOLDER, tmp_path / start)
    monkeypatch.chdir(tmp_path)
    few, changed = re.subn(r"total_episodes=\d+", "total_episodes=8", PPO)
    assert changed == 1
    exec(compile(few, "README.md", "exec"), {})  # noqa: S102 - the text under test
    was, now = (load_file(path / "model.safetensors") for path in (MODEL_FOLDER, tmp_path / "ppo/policy"))
    assert any(not torch.equal(was[name].float(), now[name].float()) for name in now)


def test_the_file_tree_shows_every_room_and_nothing_that_is_not_there() -> None:
    tree = README.split("## The files, in running order")[1]
    inside = False
    named = []
    for line in tree.splitlines():
        if line.startswith("    "):
            inside = inside and line.startswith("      ")
            names = re.split(r"\s{2,}", line.strip())[0].split()
            folder = ROOT / "constitutional" if inside else ROOT
            named += [folder / name for name in names]
            if names == ["constitutional/"]:
                inside = True
    assert [path for path in named if not path.exists()] == []
    rooms = {path.parent for path in (ROOT / "constitutional").glob("*/__init__.py")}
    assert len(rooms) == 11
    assert rooms <= set(named)


def test_the_calls_of_the_labelers_trial_are_those_that_it_makes(tmp_path: Path) -> None:
    class Reasoning(Priced):
        def answer(self, request: Request, model: str) -> Completion:
            answer = super().answer(request, model)
            if request.choices:
                return answer
            return answer._replace(text=f"{answer.text} Better: A")

    def calls(method: str) -> int:
        words = [f"folder={tmp_path}/{method}", "until=labeler_check", f"label.method={method}"]
        store, _ = go(compose([*words, "label.max_canary_failures=1"]), Reasoning())
        return store.stages["labeler_check"].calls.asked

    trial = " ".join(README.partition("`labeler_check` first")[2].partition("lower that.")[0].split())
    assert f"{calls('rationale')} calls" in trial
    assert f"{calls('votes')} with votes" in trial
    assert f"`label.method=logprobs` ({calls('logprobs')})" in trial


def overrides() -> list[list[str]]:
    """The words of every `constitutional run` and `config` in the README."""
    joined = README.replace("\\\n", " ")
    lines = re.findall(r"^    constitutional (?:run|config)([^#\n]*)", joined, re.MULTILINE)
    return [shlex.split(line) for line in lines]


def test_runs_of_a_real_model_have_no_sizes_of_the_sandbox() -> None:
    real = [words for words in overrides() if any(word.startswith(("experiment=", "model=")) for word in words)]
    real.remove(["experiment=smollm2"])  # which is small, and runs on a CPU
    assert len(real) >= 2
    small = compose()
    for words in real:
        config = compose(words)
        assert config.model.path != small.model.path
        chosen, least = config.critique_revise, 512
        assert min(chosen.draft_max_tokens, chosen.critique_max_tokens, chosen.revision_max_tokens) >= least
        assert min(config.sample_pairs.max_tokens, config.evaluate.max_tokens) >= least
        assert chosen.few_shot > 0  # a base model must be shown what a critique is
        assert (config.mix.margin, config.sample_pairs.samples) == (0, 2)
        assert (config.sft.epochs, config.reward.epochs) == (1, 1)


def test_what_the_table_says_of_bai2022_is_what_it_is() -> None:
    (row,) = re.findall(r"^[|] `bai2022` [|].*$", README, re.MULTILINE)
    people = ["prompts.path=prompts.jsonl", "mix.human=people.jsonl"]
    plain = compose(["experiment=bai2022", *people]).label
    clamped = compose(["experiment=bai2022", "label=bai2022_cot", *people]).label
    assert (plain.method, plain.clamp, clamped.method, clamped.clamp) == ("logprobs", None, "rationale", (0.4, 0.6))
    assert "soft labels (`label=bai2022_cot`: clamped reasoning)" in row
    assert row.count("reasoning") == 1


@pytest.mark.parametrize("words", overrides(), ids=" ".join)
def test_every_run_in_the_readme_can_be_composed(words: list[str]) -> None:
    assert len(overrides()) >= 6
    if words[:1] == ["--explain"]:
        assert explained(words[1])
        return
    plain = [word for word in words if word not in ("-m", "--dry-run")]
    if "sweep=optuna" in plain:
        fixed, spaces = search_space(plain)
        assert spaces
        compose(fixed)
        return
    for job in sweep(plain, multirun="-m" in words):
        compose(job.overrides)
