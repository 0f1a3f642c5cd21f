import hashlib
import json
import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from constitutional import show
from constitutional.config import RunConfig, compose
from constitutional.engines.base import Completion, Request
from constitutional.engines.opening import ModelSettings
from constitutional.errors import RunError, UsageError
from constitutional.pipeline import STAGES, Stage, compare, load_run, run
from constitutional.progress import Progress
from constitutional.records import Comparison, Judgement, Preference, Prompt, Revision
from constitutional.store import RunStore
from constitutional.work import Work

BATCH = 4
PRINCIPLES = {"calm": "Stay calm.", "brief": "Be brief.", "kind": "Be kind.", "honest": "Be honest."}


def constitution(folder: Path, **changed: str) -> Path:
    path = folder / "ours.yaml"
    lines = [f"  - id: {name}\n    text: {text}\n" for name, text in {**PRINCIPLES, **changed}.items()]
    path.write_text("name: Ours\nprinciples:\n" + "".join(lines))
    return path


def configured(folder: Path, *overrides: str) -> RunConfig:
    return compose(
        [
            f"folder={folder}/runs",
            f"constitution.file={folder}/ours.yaml",
            *("prompts.train=8", "prompts.held_out=4", f"journal.batch_size={BATCH}"),
            *("critique_revise.rounds=2", "label.method=logprobs", "mix.held_out_share=0.2"),
            *("evaluate.judged=2", "evaluate.critiqued=2", "evaluate.compared=0"),
            *overrides,
        ]
    )


class World:
    """Scripted models, and what they were asked; they can be told what to do at their n-th request."""

    def __init__(self, at: int = 0, then: Callable[[], None] | None = None) -> None:
        self.asked: list[Request] = []
        self.opened: list[str] = []
        self.at = at
        self.then = then

    def open(self, settings: ModelSettings) -> "Scripted":
        folder = Path(settings.path)
        name = (folder / "config.json").read_text() if folder.is_absolute() else settings.path
        self.opened.append(name)
        return Scripted(self, name)

    def answer(self, request: Request, model: str) -> Completion:
        self.asked.append(request)
        if self.then and len(self.asked) == self.at:
            self.then()
        digest = hashlib.sha256(f"{model} {request}".encode()).hexdigest()[:8]
        if request.choices:
            return Completion("", "choices", (-1.0 - int(digest[0], 16) / 8, -2.0))
        last = request.messages[-1].content
        verdict = "follows" if digest < "4" else "violates"
        said = f"It asks {digest}. So it {verdict} the principle." if "Judge your last" in last else f"Reply {digest}."
        return Completion(said, "stop")


class Scripted:
    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.identity = f"scripted {name}"

    def complete(self, requests: Sequence[Request]) -> list[Completion]:
        return [self.world.answer(request, self.identity) for request in requests]


def trained(artifact: str, kind: str, *, learns: bool) -> Callable[[Any, Work], None]:
    """In the place of a training: a model whose name is what it has learnt."""

    def train(_settings: object, work: Work) -> None:
        rows = work.read(kind, Revision if kind == "revisions" else Preference)
        learnt = hashlib.sha256(repr(rows).encode()).hexdigest()[:8] if learns else "nothing"
        folder = work.output(artifact)
        folder.mkdir(exist_ok=True)
        (folder / "config.json").write_text(f"{artifact} {learnt}")

    return train


def stages(*, learns: bool = True) -> list[Stage]:
    fakes = {
        "sft": trained("sft_model", "revisions", learns=learns),
        "reward": trained("reward_model", "preferences", learns=learns),
        "dpo": trained("policy", "preferences", learns=learns),
    }
    return [replace(stage, run=fakes.get(stage.name, stage.run)) for stage in STAGES]


def go(config: RunConfig, world: World, *, learns: bool = True) -> tuple[RunStore, list[str]]:
    stream = StringIO()
    store = run(config, stages=stages(learns=learns), opener=world.open, progress=Progress(stream))
    return store, stream.getvalue().splitlines()


def rows(folder: Path) -> dict[str, bytes]:
    """Every row file of a run."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*.jsonl"))}


def test_stages_need_only_what_is_given_or_was_made_before_them() -> None:
    made = {"base", "critic", "labeler", "constitution"}
    for stage in STAGES:
        assert {need for need in stage.needs if not need.endswith(".j2")} <= made
        made |= set(stage.makes)


def test_a_run_goes_through_the_stages_in_order_and_the_same_command_again_does_nothing(tmp_path: Path) -> None:
    constitution(tmp_path)
    first = World()
    store, said = go(configured(tmp_path), first)
    folders = sorted(path.name for path in store.folder.iterdir() if path.is_dir())
    assert folders == [f"{number:02d}_{stage.name}" for number, stage in enumerate(STAGES)]
    assert [line.split(":")[0] for line in said if line.endswith(": runs")] == folders_as_said(folders)
    asked = sum(entry.calls.asked for entry in store.manifest.stages.values())
    assert asked == len(first.asked) > 0
    assert len(store.read("prompts", Prompt)) == 12  # 8 to train on, 4 held out

    second = World()
    _, said = go(configured(tmp_path), second)
    assert second.asked == []
    assert sum("done before" in line for line in said) == len(STAGES)
    assert said[-1] == "run first is done: 0 model calls asked, 0 reused from the journal"


def folders_as_said(folders: list[str]) -> list[str]:
    return [folder.replace("_", " ", 1) for folder in folders]


def test_another_run_with_the_same_settings_is_the_same_byte_for_byte_and_pays_nothing(tmp_path: Path) -> None:
    constitution(tmp_path)
    one, _ = go(configured(tmp_path, "name=one"), World())
    again = World()
    two, _ = go(configured(tmp_path, "name=two"), again)
    elsewhere = World()
    three, _ = go(configured(tmp_path, "name=three", f"journal.path={tmp_path}/other.sqlite"), elsewhere)
    assert again.asked == []
    assert elsewhere.asked
    assert rows(one.folder) == rows(two.folder) == rows(three.folder)


def test_an_edited_principle_asks_only_for_what_depends_on_it(tmp_path: Path) -> None:
    constitution(tmp_path)
    config = configured(tmp_path, "label.principles=all", "critique_revise.rounds=1")
    # The models are the same whatever the revisions are, so that only the principle's own requests can differ.
    before, _ = go(config, World(), learns=False)
    comparisons = before.read("comparisons", Comparison)

    constitution(tmp_path, kind="Be warm.")
    world = World()
    after, said = go(config, world, learns=False)
    assert world.asked
    assert all(any("Be warm." in message.content for message in request.messages) for request in world.asked)
    label = after.manifest.stages["label"].calls
    assert label.asked == 2 * len(comparisons)  # one principle of four, in both orders
    assert label.reused == 3 * label.asked
    assert any(line.startswith("01 critique_revise: runs; its settings or inputs have changed") for line in said)
    assert any(line.startswith("03 sample_pairs: done before") for line in said)
    assert said[-1].startswith(f"run first is done: {len(world.asked)} model calls asked, ")
    revisions = after.read("revisions", Revision)
    assert {step.principle_text for each in revisions for step in each.steps if step.principle == "kind"} <= {
        "Be warm."
    }


class Unbroken(NamedTuple):
    rows: dict[str, bytes]
    asked: int


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Unbroken:
    folder = tmp_path_factory.mktemp("unbroken")
    constitution(folder)
    world = World()
    store, _ = go(configured(folder), world)
    return Unbroken(rows(store.folder), len(world.asked))


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 0.7, 0.99])
def test_a_run_killed_anywhere_and_started_again_ends_as_an_unbroken_one(
    tmp_path: Path, unbroken: Unbroken, share: float
) -> None:
    constitution(tmp_path)

    def stop() -> None:
        raise KeyboardInterrupt

    broken, resumed = World(1 + int(share * unbroken.asked), stop), World()
    with pytest.raises(KeyboardInterrupt):
        go(configured(tmp_path, "name=broken"), broken)
    found, _ = go(configured(tmp_path, "name=broken"), resumed)
    assert rows(found.folder) == unbroken.rows
    assert unbroken.asked <= len(broken.asked) + len(resumed.asked) <= unbroken.asked + BATCH


def test_sigterm_stops_a_run_as_ctrl_c_does_and_is_what_it_was_afterwards(tmp_path: Path) -> None:
    constitution(tmp_path)
    before = signal.getsignal(signal.SIGTERM)
    world = World(5, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(KeyboardInterrupt):
        go(configured(tmp_path), world)
    assert signal.getsignal(signal.SIGTERM) is before
    go(configured(tmp_path), World())


def test_a_failure_is_kept_in_the_manifest_and_the_next_start_forgets_it(tmp_path: Path) -> None:
    constitution(tmp_path)

    def fail() -> None:
        raise RunError("the model fell over")

    with pytest.raises(RunError, match="fell over"):
        go(configured(tmp_path), World(3, fail))
    store = load_run(tmp_path / "runs" / "first")
    assert store.manifest.failures["critique_revise"].message == "the model fell over"
    assert "the model fell over" in show.stages(store)
    store, _ = go(configured(tmp_path), World())
    assert store.manifest.failures == {}


def test_a_folder_in_use_is_refused(tmp_path: Path) -> None:
    constitution(tmp_path)
    with (
        RunStore.open(tmp_path / "runs" / "first", "{}"),
        pytest.raises(RunError, match=f"in use by process {os.getpid()}"),
    ):
        go(configured(tmp_path), World())


def test_a_folder_of_another_configuration_is_refused_unless_it_may_be_replaced(tmp_path: Path) -> None:
    constitution(tmp_path)
    go(configured(tmp_path), World())
    with pytest.raises(RunError, match=r"seed is 0 there, 1 here.*fresh=true"):
        go(configured(tmp_path, "seed=1"), World())
    store, _ = go(configured(tmp_path, "seed=1", "fresh=true"), World())
    assert json.loads((store.folder / "config.json").read_text())["config"]["seed"] == 1


def test_a_damaged_artifact_is_made_again(tmp_path: Path) -> None:
    constitution(tmp_path)
    store, _ = go(configured(tmp_path), World())
    expected = rows(store.folder)
    path = store.artifact("judgements")
    path.write_bytes(path.read_bytes()[:-40])
    world = World()
    store, said = go(configured(tmp_path), world)
    assert any(line.startswith("04 label: runs;") and "is damaged" in line for line in said)
    assert world.asked == []  # the journal has it all
    assert rows(store.folder) == expected


def test_an_item_is_followed_back_to_its_drafts(tmp_path: Path) -> None:
    constitution(tmp_path)
    store, _ = go(configured(tmp_path), World())
    preference = store.read("preferences", Preference)[0]
    told = show.item(store, preference.id[:12])
    judgement = next(each for each in store.read("judgements", Judgement) if each.id == preference.rests_on[0])
    revision = next(each for each in store.read("revisions", Revision) if each.prompt == preference.prompt)
    for part in (preference.chosen, preference.rejected, judgement.principle_text, revision.draft):
        assert part in told
    assert f"preference {preference.id}" in told
    assert "a shown first: " in told
    assert "b shown first: " in told
    assert revision.steps[0].principle_text in told
    with pytest.raises(UsageError, match="nothing has an id that begins with 'zz'"):
        show.item(store, "zz")


def test_the_end_of_a_run_shows_the_three_models_and_the_report(tmp_path: Path) -> None:
    constitution(tmp_path)
    store, _ = go(configured(tmp_path), World())
    heading, *lines = show.behaviour(store).splitlines()
    assert heading.split() == ["Base", "SL", "RL"]
    length = next(line for line in lines if line.startswith("length"))
    assert length.count("2.0 (2.0–2.0) words") == 3  # "Reply 1234abcd." are two words, whoever says it
    page = show.report_path(store)
    assert page is not None
    assert "<!DOCTYPE html>" in page.read_text()


def test_several_runs_share_a_page(tmp_path: Path) -> None:
    constitution(tmp_path)
    stores = [go(configured(tmp_path, f"name=seed{seed}", f"seed={seed}"), World())[0] for seed in (1, 2)]
    page = compare(stores, tmp_path / "both.html").read_text()
    assert "seed1" in page
    assert "seed2" in page
