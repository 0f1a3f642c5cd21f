"""Every way to make the policy, with real trainings of a tiny model, from its prompts to its report."""

import json
from collections import Counter
from collections.abc import Sequence
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from constitutional.base.files import digest_of
from constitutional.base.progress import Progress
from constitutional.base.records import (
    Comparison,
    GoldPoint,
    Judgement,
    Preference,
    Prompt,
    Revision,
    Rollout,
    Sample,
    SftExample,
)
from constitutional.cli import main as cli
from constitutional.cli import show
from constitutional.engines.base import Completion, Request
from constitutional.engines.scripted import ScriptedEngine
from constitutional.engines.settings import EngineSettings, ModelSettings
from constitutional.runs import runner
from constitutional.runs.compose import compose, load
from constitutional.runs.context import FinishedRun, selected
from constitutional.runs.folder import RunStore
from constitutional.stages.report import gather
from constitutional.stages.report.data import LeftOut, RunReport
from constitutional.stages.summaries import (
    SUMMARIES,
    CritiqueReviseSummary,
    DpoSummary,
    EvaluateSummary,
    LabelSummary,
    MixSummary,
    OnlineSummary,
    PromptsSummary,
    RewardSummary,
    SamplePairsSummary,
    SftSummary,
)
from constitutional.training.reward_model import NORMALISATION, has_members
from tests.scripted_run import World, constitution
from tests.tiny import tiny_model

TRAIN, HELD_OUT = 8, 4
ONLINE = ("algorithm.max_tokens=6", "algorithm.batch_size=4", "algorithm.rollouts=3")
PPO = ("algorithm=ppo", "algorithm.episodes=16", "algorithm.gradient_accumulation=1", *ONLINE)
GROUPS = ("algorithm.gradient_accumulation=2", "algorithm.num_generations=2", "algorithm.log_every=1", *ONLINE)
"""Of GRPO and RLOO: 8 replies a step, two to each of 4 prompts, so 2 steps of a pass over 8 prompts."""
VARIANTS = {
    "dpo": ("algorithm.epochs=1", "algorithm.batch_size=4", "algorithm.log_every=1"),
    "ppo": (*PPO, "algorithm.lora=null"),
    "ppo_ptx": (*PPO, "algorithm.ptx_coef=0.5"),
    "ppo_ptx_short": (*PPO, "algorithm.ptx_coef=0.5", "algorithm.max_prompt_tokens=17"),
    "ppo_lora": (*PPO, "algorithm.lora={rank: 2}"),
    "ensemble": (*PPO, "reward.members=2", "algorithm.rewards=[{kind: reward_model, ensemble_k: 0.5}]"),
    "ppo_direct": (*PPO, "algorithm.rewards=[{kind: constitution}, {kind: length, limit: 2}]"),
    "grpo": ("algorithm=grpo", "algorithm.epochs=1", *GROUPS),
    "rloo": ("algorithm=rloo", "algorithm.epochs=1", *GROUPS),
    "grpo_direct": ("algorithm=grpo_direct", "algorithm.epochs=1", *GROUPS),
}


class Labelled(World):
    """Scripted models, whose replies differ as the models' weights do; the critic may find nothing wrong."""

    def __init__(self, *, content: bool = False) -> None:
        super().__init__()
        self.content = content

    def open(self, settings: EngineSettings) -> ScriptedEngine:
        assert isinstance(settings, ModelSettings)
        name = f"{digest_of(Path(settings.path))[:8]} {self.content}"
        return ScriptedEngine(lambda request: self.answer(request, name), name)

    def answer(self, request: Request, model: str) -> Completion:
        answered = super().answer(request, model)
        if request.choices:
            return answered
        question = request.messages[-1].content
        if question.startswith("Rate your last response"):
            return Completion("It does. Score: 7", "stop")
        if self.content and "Judge your last" in question:
            return Completion("It follows the principle.", "stop")
        return answered


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for all runs, which share a journal."""
    folder = tmp_path_factory.mktemp("variants")
    constitution(folder)
    lines = [{"prompt": f"Why {'?' * (number + 1)}", "split": "train"} for number in range(TRAIN)]
    lines += [{"prompt": f"How {'?' * (number + 1)}", "split": "held_out"} for number in range(HELD_OUT)]
    (folder / "prompts.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder


def words(folder: Path, name: str, *overrides: str) -> list[str]:
    return [
        *(f"name={name}", f"folder={folder}/runs", f"constitution.file={folder}/ours.yaml"),
        *(f"model.path={tiny_model(folder)}", "prompts=file", f"prompts.path={folder}/prompts.jsonl"),
        *(f"prompts.held_out={HELD_OUT}", "critique_revise.rounds=1", "label=schema", "label.method=logprobs"),
        *("mix.margin=0", "mix.held_out_share=0.3"),
        # Two steps at least: the first has a learning rate of 0.
        *(
            f"{stage}.{setting}"
            for stage in ("sft", "reward")
            for setting in ("epochs=1", "batch_size=4", "log_every=1")
        ),
        *("evaluate.judged=2", "evaluate.critiqued=2", "evaluate.compared=2"),
        *overrides,
    ]


class Finished(NamedTuple):
    store: RunStore
    report: RunReport
    page: str
    said: str


def go(folder: Path, name: str, *overrides: str) -> Finished:
    config, stream = compose(words(folder, name, *overrides)), StringIO()
    store = runner.run(config, opener=Labelled().open, progress=Progress(stream))
    return finished(store, stream.getvalue())


def finished(store: RunStore, said: str) -> Finished:
    config = load(store.folder)
    needs = store.stages["report"].needs
    report = gather.gather(config.report, FinishedRun(store, selected(config), config, "report", needs))
    page = show.report_path(store)
    assert page is not None
    return Finished(store, report, page.read_text(), said)


def agrees(store: RunStore) -> None:
    """Hold what the stages before the policy say of their work against what they wrote."""
    for stage, entry in store.stages.items():
        assert SUMMARIES[stage].model_validate(entry.summary) == store.summary(stage, SUMMARIES[stage])
    assert store.summary("prompts", PromptsSummary) == PromptsSummary(train=TRAIN, held_out=HELD_OUT, repeated=0)

    revisions = store.read("revisions", Revision)
    revised = store.summary("critique_revise", CritiqueReviseSummary)
    assert revised.prompts == len(revisions) == TRAIN
    assert revised.changed == sum(revision.final != revision.draft for revision in revisions)

    examples, learnt = (
        Counter(row.kind for row in store.read("sft_examples", SftExample)),
        store.summary("sft", SftSummary),
    )
    assert (learnt.revision, learnt.helpful) == (examples["revision"], examples["helpful"])
    if not learnt.nothing_revised:
        assert learnt.trained_on + learnt.dropped["too_long"] + learnt.dropped["by_trainer"] == examples.total() > 0

    comparisons, judgements = store.read("comparisons", Comparison), store.read("judgements", Judgement)
    assert store.summary("sample_pairs", SamplePairsSummary).comparisons == len(comparisons) > 0
    labelled = store.summary("label", LabelSummary)
    assert (labelled.comparisons, labelled.judgements) == (len(comparisons), len(judgements))
    assert labelled.conflicts == sum(judgement.conflict for judgement in judgements)

    preferences = store.read("preferences", Preference)
    splits, mixed = Counter(row.split for row in preferences), store.summary("mix", MixSummary)
    assert (mixed.train, mixed.held_out) == (splits["train"], splits["held_out"])
    assert mixed.decided + mixed.conflicts + mixed.near_a_half == mixed.comparisons == len(comparisons)

    rewarded = store.summary("reward", RewardSummary)
    assert rewarded.pairs + sum(rewarded.dropped.values()) == len(preferences)
    evaluated = store.summary("evaluate", EvaluateSummary)
    assert evaluated.prompts == len(store.read("samples", Sample)) == HELD_OUT


def weights(folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def same_weights(one: Path, other: Path) -> bool:
    first, second = weights(one), weights(other)
    return first.keys() == second.keys() and all(bool((first[name] == second[name]).all()) for name in first)


def left_out(report: RunReport, stage: str) -> list[LeftOut]:
    return [row for row in report.left_out if row.stage == stage]


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_variant_is_trained_and_reported_with_the_numbers_of_its_artifacts(here: Path, variant: str) -> None:
    store, report, page, _ = go(here, variant, *VARIANTS[variant])
    agrees(store)
    (stage,) = set(store.stages) & {"dpo", "ppo", "grpo", "rloo"}
    assert not same_weights(store.artifact("sft_model"), store.artifact("policy"))
    if stage == "dpo":
        tuned = store.summary("dpo", DpoSummary)
        assert tuned.pairs + sum(tuned.dropped.values()) == len(store.read("preferences", Preference))
        assert tuned.pairs > 0
        assert (report.gold, report.rollouts) == ((), ())
    else:
        online = store.summary(stage, OnlineSummary)
        rollouts = store.read("rollouts", Rollout)
        assert {row.phase for row in rollouts} == {1, 2}
        assert (online.steps, online.replies) == (2, 16)
        assert len(rollouts) == 2 * 3  # so many are kept of each
        assert online.prompts + online.dropped["too_long"] == TRAIN
        assert {row.prompt for row in rollouts} <= {
            row.id for row in store.read("prompts", Prompt) if row.split == "train"
        }
        assert online.last is not None
        log = store.training_logs(stage)["training"]
        assert online.last == {name: log[-1][name] for name in online.last}
        assert {"reward", "objective/kl"} <= online.last.keys()
        # Where the labeler's scores are the reward, they are no gold score.
        judges = set() if variant.endswith("_direct") else {"labeler"}
        assert {point.by for point in store.read("gold", GoldPoint)} == judges
        assert {row.what: row.total for row in left_out(report, stage)}["prompts"] == TRAIN
    curve = {"dpo": "DPO, loss"}.get(stage, f"{stage.upper()}, reward")
    assert curve in page
    assert {line.stage for line in report.curves} >= {"sft", "reward", stage}


def test_ppo_ptx_says_how_many_examples_it_goes_on_learning(here: Path) -> None:
    whole, short = (go(here, name, *VARIANTS[name]) for name in ("ppo_ptx", "ppo_ptx_short"))
    examples = whole.store.read("sft_examples", SftExample)
    assert whole.store.summary("ppo", OnlineSummary).examples == len(examples)
    learnt = short.store.summary("ppo", OnlineSummary)
    assert 0 < learnt.examples < len(examples)
    (rows, _) = left_out(short.report, "ppo")
    assert (rows.what, rows.total) == ("supervised examples", len(examples))
    assert rows.reasons == {"too long": len(examples) - learnt.examples}


def test_the_critic_of_adapters_says_what_share_of_the_reward_model_it_holds(here: Path) -> None:
    share = go(here, "ppo_lora", *VARIANTS["ppo_lora"]).store.summary("ppo", OnlineSummary).critic_share
    assert share is not None
    assert 0 < share < 1
    assert go(here, "ppo", *VARIANTS["ppo"]).store.summary("ppo", OnlineSummary).critic_share is None


def test_every_member_of_an_ensemble_is_drawn(here: Path) -> None:
    store, report, page, _ = go(here, "ensemble", *VARIANTS["ensemble"])
    (loss,) = (curve for curve in report.curves if (curve.stage, curve.metric) == ("reward", "loss"))
    assert list(loss.lines) == ["member 0", "member 1"]
    assert loss.lines["member 0"] != loss.lines["member 1"]
    assert all(f"<td>{name}</td>" in page for name in loss.lines)
    assert len(json.loads((store.artifact("reward_model") / NORMALISATION).read_text())["members"]) == 2
    alone = go(here, "dpo", *VARIANTS["dpo"]).report
    assert {name for curve in alone.curves for name in curve.lines} == {"training"}


# Where there is nothing to learn


def from_the_command_line(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    overrides: Sequence[str],
    *,
    content: bool,
) -> Finished:
    monkeypatch.setattr(runner, "run", partial(runner.run, opener=Labelled(content=content).open))
    assert cli.main(["run", *words(folder, *overrides)]) == 0
    name = overrides[0]
    return finished(RunStore.load(folder / "runs" / name), capsys.readouterr().err)


@pytest.mark.parametrize("variant", ["dpo", "ppo", "ppo_ptx", "grpo", "rloo"])
def test_a_run_in_which_nothing_is_decided_ends_with_its_sft_model_and_a_report(
    here: Path, variant: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = (f"undecided_{variant}", *VARIANTS[variant], "mix.margin=0.49")
    store, report, page, said = from_the_command_line(here, monkeypatch, capsys, overrides, content=False)
    agrees(store)
    (stage,) = set(store.stages) & {"dpo", "ppo", "grpo", "rloo"}
    for name in ("reward", stage):
        assert any(line.startswith(f"warning: {name}: ") for line in said.splitlines())
    mixed = store.summary("mix", MixSummary)
    assert (mixed.decided, mixed.train, mixed.held_out) == (0, 0, 0)
    assert "No preference was decided: the RL model is the SL model." in page
    assert f"0 of {mixed.comparisons} comparisons gave a preference" in page
    assert not has_members(store.artifact("reward_model"))
    assert store.summary("reward", RewardSummary) == RewardSummary(
        pairs=0, dropped={"held_out": 0, "equal_texts": 0}, quality=None
    )
    assert digest_of(store.artifact("policy")) == digest_of(store.artifact("sft_model"))
    summary = store.summary(stage, SUMMARIES[stage])
    assert isinstance(summary, DpoSummary | OnlineSummary)
    assert (summary.pairs if isinstance(summary, DpoSummary) else summary.prompts, summary.steps) == (0, 0)
    if isinstance(summary, OnlineSummary):
        assert (store.read("rollouts", Rollout), store.read("gold", GoldPoint)) == ([], [])
    assert {curve.stage for curve in report.curves} == {"sft"}


def test_what_is_rewarded_by_the_constitution_itself_needs_no_decided_comparison(here: Path) -> None:
    store, *_ = go(here, "undecided_direct", *VARIANTS["grpo_direct"], "mix.margin=0.49")
    assert store.summary("mix", MixSummary).train == 0
    assert store.summary("grpo", OnlineSummary).steps == 2
    assert not same_weights(store.artifact("sft_model"), store.artifact("policy"))


@pytest.mark.parametrize("variant", ["dpo", "ppo_ptx"])
def test_a_run_in_which_nothing_is_revised_ends_with_the_base_as_its_sft_model_and_a_report(
    here: Path, variant: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = (f"unrevised_{variant}", f"journal.path={here}/content.sqlite", *VARIANTS[variant])
    store, report, page, said = from_the_command_line(here, monkeypatch, capsys, overrides, content=True)
    agrees(store)
    assert any(line.startswith("warning: sft: ") for line in said.splitlines())
    learnt = store.summary("sft", SftSummary)
    assert learnt.nothing_revised
    assert (learnt.trained_on, learnt.steps, learnt.dropped["nothing_revised"]) == (0, 0, TRAIN)
    assert same_weights(tiny_model(here), store.artifact("sft_model"))
    assert "the SL model is the base model" in page
    (row,) = left_out(report, "sft")
    assert (row.total, row.reasons) == (TRAIN, {"nothing revised": TRAIN})
    assert "sft" not in {curve.stage for curve in report.curves}
    if variant == "ppo_ptx":
        assert any(line.startswith("warning: ppo: ") for line in said.splitlines())
        assert store.summary("ppo", OnlineSummary).examples == 0
    stage = "dpo" if variant == "dpo" else "ppo"
    assert not same_weights(store.artifact("sft_model"), store.artifact("policy")), stage
