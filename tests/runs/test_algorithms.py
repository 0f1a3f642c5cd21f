"""Runs whose policy is made otherwise than by DPO: the stages that there are, and what evaluation makes of rollouts."""

import re
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

from constitutional.base.errors import ConfigurationError, InputError
from constitutional.base.progress import Progress
from constitutional.base.records import GoldPoint, Prompt, Rollout
from constitutional.cli import show
from constitutional.runs import runner
from constitutional.runs.compose import compose
from constitutional.runs.context import CONSTITUTION, READER
from constitutional.runs.folder import RunStore
from constitutional.runs.pipeline import Stage, stages_of
from constitutional.runs.runner import compare, run
from constitutional.runs.settings import RunConfig
from constitutional.stages.context import StageContext
from constitutional.stages.summaries import OnlineSummary
from constitutional.training.reward_model import NORMALISATION
from tests.scripted_run import STAGES, World, configured, constitution, trained
from tests.told import in_place_of_wandb

NONSENSE = "This is no sentence of the sandbox."


def learnt_online(_settings: object, context: StageContext) -> None:
    """In the place of a training: two phases of replies, the later ones no sentences any more."""
    folder = context.output("policy")
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text("policy online")
    prompts = [prompt for prompt in context.read("prompts", Prompt) if prompt.split == "train"]
    context.write(
        "rollouts",
        (
            Rollout(
                phase=phase,
                prompt=prompt.id,
                reply="Here is a plain answer." if phase == 1 else NONSENSE,
                reward=float(phase),
                kl=1.0,
                phase_kl=4.0 * phase,
                length=7,
                truncated=False,
            )
            for phase in (1, 2)
            for prompt in prompts
        ),
    )
    context.output("training_log.jsonl").write_text(
        '{"step": 1, "reward": 0.5, "objective/kl": 4.0, "val/explained_variance": null}\n'
    )
    context.summarise(OnlineSummary(prompts=8, replies=16, steps=2, dropped={}))


def online(config: RunConfig) -> list[Stage]:
    fakes: dict[str, Any] = {
        "sft": trained("sft_model", "revisions", learns=True),
        "reward": trained("reward_model", "preferences", learns=True),
        config.algorithm.kind: learnt_online,
    }
    return [replace(stage, run=fakes.get(stage.name, stage.run)) for stage in stages_of(config)]


def go(config: RunConfig) -> RunStore:
    return run(config, stages=online(config), opener=World().open, progress=Progress(StringIO()))


def tagged(folder: Path) -> None:
    """The constitution of these tests, with tags on one principle."""
    path = constitution(folder)
    path.write_text(path.read_text().replace("text: Be brief.", "text: Be brief.\n    tags: [verbosity, avoid]"))


def test_a_run_is_shown_in_trackers_by_its_name_and_shows_nothing_that_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = in_place_of_wandb(monkeypatch)
    constitution(tmp_path)
    monkeypatch.setattr(runner, "check_installed", lambda _: None)

    def shown_online(inputs: Any, context: Any) -> None:  # noqa: ANN401
        with context.tracking(inputs.algorithm) as tracking:
            tracking.begin(0)
            tracking.log(1, {"step": 1, "reward": 0.5})
        learnt_online(inputs, context)

    def shown(*overrides: str) -> str:
        config = configured(tmp_path, "algorithm=ppo", *overrides)
        stages = [replace(stage, run=shown_online) if stage.name == "ppo" else stage for stage in online(config)]
        lines = StringIO()
        run(config, stages=stages, opener=World().open, progress=Progress(lines))
        return lines.getvalue()

    shown("report_to=wandb")
    name = configured(tmp_path).name
    assert told == [("begin", name, "ppo", None, 0), (1, {"reward": 0.5}), ("end", False)]
    again = shown("report_to=[]")
    assert "running" not in again
    assert "was made with another" not in again
    assert len(told) == 3


@pytest.mark.parametrize("kind", ["ppo", "grpo", "rloo"])
def test_every_algorithm_stands_where_dpo_stands_and_gets_what_it_needs(kind: str) -> None:
    stages = stages_of(compose([f"algorithm={kind}"]))
    assert [each.name for each in stages] == [kind if each.name == "dpo" else each.name for each in STAGES]
    made = {"base", "generator", "critic", "labeler", READER, *CONSTITUTION}
    for stage in stages:
        assert {need for need in stage.needs if not need.endswith(".j2")} <= made
        made |= set(stage.makes)
    assert {"policy", "rollouts", "gold"} <= made


def test_dpo_makes_nothing_to_give_a_gold_score_to() -> None:
    assert "gold" not in {artifact for stage in STAGES for artifact in (*stage.needs, *stage.makes)}


def test_what_is_learnt_online_is_scored_and_reported(tmp_path: Path) -> None:
    tagged(tmp_path)
    config = configured(tmp_path, "algorithm=ppo")
    store = go(config)
    folders = sorted(path.name for path in store.folder.iterdir() if path.is_dir())
    assert folders[8:] == ["08_ppo", "09_evaluate", "10_report"]
    found = store.read("gold", GoldPoint)
    # "Be brief." alone has tags. Who says something, and not at length, keeps it; what is no sentence keeps nothing.
    assert [(each.by, each.first_phase, each.gold, each.proxy, each.sqrt_kl, each.n) for each in found] == [
        ("traits", 1, 1.0, 1.0, 2.0, 8),
        ("traits", 2, 0.0, 2.0, pytest.approx(8**0.5), 8),
    ]
    report = show.report_path(store)
    assert report is not None
    page = report.read_text()
    assert "it fell by 1 since" in page
    assert "n = 8, too few to tell" in page  # so the verdict does not call it over-optimised
    assert "peaked at" not in page
    assert page.count(f'<td class="prose">{NONSENSE}</td>') == 1  # one reply of each phase
    assert "PPO, reward" in page
    assert "PPO, explained variance" not in page  # it was not measured

    lines = show.stages(store).splitlines()[1:]
    started = [line.split()[:2] for line in lines if line.strip()[:2].isdigit()]
    assert started[8:] == [[name, "done"] for name in folders[8:]]
    other = go(configured(tmp_path, "algorithm=ppo", "name=other"))
    both = compare([store, other], tmp_path / "both.html").read_text()
    assert both.count("it fell by 1 since") == 2


def test_a_run_stops_after_its_own_algorithm_and_lists_what_is_to_come(tmp_path: Path) -> None:
    tagged(tmp_path)
    with pytest.raises(ConfigurationError, match=r'^until is "dpo", but should be one of .* ppo, evaluate, report'):
        go(configured(tmp_path, "algorithm=ppo", "until=dpo"))
    store = go(configured(tmp_path, "algorithm=ppo", "until=ppo"))
    assert list(store.stages)[-1] == "ppo"
    lines = show.stages(store).splitlines()
    assert [re.split(r"  +", line)[:2] for line in lines[-2:]] == [
        ["09_evaluate", "not begun"],
        ["10_report", "not begun"],
    ]


@pytest.mark.parametrize("content", [None, '{"members": [], "samples": 0}'])
def test_a_held_out_reward_model_that_is_not_there_is_refused_before_there_is_a_folder(
    tmp_path: Path, content: str | None
) -> None:
    tagged(tmp_path)
    if content is not None:  # as a run leaves it in which nothing was decided
        (tmp_path / "none").mkdir()
        (tmp_path / "none" / NORMALISATION).write_text(content)
    config = configured(tmp_path, "algorithm=ppo", f"evaluate.gold_reward_model={tmp_path}/none")
    with pytest.raises(InputError, match=r"none: holds no reward model; name a folder such as runs/NAME/07_reward"):
        go(config)
    assert not config.run_folder.exists()
