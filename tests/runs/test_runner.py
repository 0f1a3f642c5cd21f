import gc
import json
import os
import re
import shutil
import signal
from dataclasses import replace
from io import StringIO
from itertools import count
from pathlib import Path
from typing import NamedTuple

import pytest

from constitutional.base.errors import ConfigurationError, InputError, ModelError, RunError, UsageError
from constitutional.base.progress import Progress
from constitutional.base.records import Comparison, Judgement, Preference, Prompt, Revision
from constitutional.base.shipped import shipped
from constitutional.base.templates import load_prompts
from constitutional.cli import main as cli
from constitutional.cli import show
from constitutional.cli.find import find
from constitutional.constitution.file import load_constitution
from constitutional.judging.understanding import PrincipleMeaning
from constitutional.runs.compose import compose, freeze
from constitutional.runs.context import WITHOUT_ENCODER, FinishedRun, RunContext, as_models_read, selected
from constitutional.runs.folder import RunStore
from constitutional.runs.manifest import ENTRY, StageEntry, read_checked, write_checked
from constitutional.runs.pipeline import Stage, stages_of, up_to
from constitutional.runs.process import peak_bytes
from constitutional.runs.runner import _check_model, _out_of_its_world, compare, load_run, ready, run
from constitutional.runs.settings import RunConfig
from constitutional.runs.status import outdated
from constitutional.sandbox import MODEL_FOLDER
from constitutional.sandbox.reader import MISSING
from constitutional.stages.context import StageContext
from constitutional.stages.summaries import (
    SUMMARIES,
    CritiqueReviseSummary,
    LabelerCheckSummary,
    LabelSummary,
    MixSummary,
    OnlineSummary,
    RewardSummary,
)
from tests.scripted_run import (
    PRINCIPLES,
    STAGES,
    SUMMARIES_OF,
    World,
    configured,
    constitution,
    go,
    rows,
    stages,
    trained,
)
from tests.understood import FakeUnderstanding


def test_a_run_goes_through_the_stages_in_order_and_the_same_command_again_does_nothing(tmp_path: Path) -> None:
    constitution(tmp_path)
    first = World()
    store, said = go(configured(tmp_path), first)
    folders = sorted(path.name for path in store.folder.iterdir() if path.is_dir())
    assert folders == [f"{number:02d}_{stage.name}" for number, stage in enumerate(STAGES)]
    assert [line.split(":")[0] for line in said if line.endswith(": running")] == folders_as_said(folders)
    asked = sum(entry.calls.asked for entry in store.stages.values())
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
    two, said = go(configured(tmp_path, "name=two"), again)
    elsewhere = World()
    three, _ = go(configured(tmp_path, "name=three", f"folder={tmp_path}/elsewhere"), elsewhere)
    assert again.asked == []
    assert [line.split(":")[0] for line in said if ": running" in line] == ["10 report"]  # which has the run's name
    assert elsewhere.asked
    assert rows(one.folder) == rows(two.folder) == rows(three.folder)


def test_a_run_with_other_settings_makes_outputs_beside_the_old_ones_and_going_back_costs_nothing(
    tmp_path: Path,
) -> None:
    path = constitution(tmp_path)
    first, _ = go(configured(tmp_path), World())
    before, places = rows(first.folder), {path.resolve() for path in first.folder.glob("[0-9]*")}
    text = path.read_text()
    path.write_text(text.replace("Be kind.", "Be warm."))
    second, _ = go(configured(tmp_path, "seed=1", "label.principles=all"), World())
    assert rows(second.folder) != before
    assert all(place.exists() for place in places)
    path.write_text(text)
    world = World()
    third, said = go(configured(tmp_path), world)
    assert world.asked == []
    assert not any(": running" in line for line in said)
    assert rows(third.folder) == before
    used = load_constitution(third.folder / "constitution.yaml")
    assert used == selected(configured(tmp_path))


@pytest.mark.parametrize(
    "override",
    [
        *("model.batch_size=3", "model.device=cpu", "labeler.batch_size=2", "sft.log_every=1", "dpo_checkpoint"),
        *("sft.gradient_checkpointing=true", "sft_halves", "journal.path=HERE/other.sqlite", "evaluate.judged=2"),
    ],
)
def test_settings_that_change_no_result_make_nothing_anew_but_the_report(tmp_path: Path, override: str) -> None:
    constitution(tmp_path)
    go(configured(tmp_path), World())
    words = {
        "dpo_checkpoint": ["algorithm.log_every=2", "algorithm.checkpoint_every=4"],
        "sft_halves": ["sft.batch_size=8", "sft.gradient_accumulation=2"],  # as many rows in a step
    }.get(override, [override.replace("HERE", str(tmp_path))])
    world = World()
    _, said = go(configured(tmp_path, *words), world)
    assert world.asked == []
    assert [line.split(":")[0] for line in said if ": running" in line] in ([], ["10 report"])


def test_a_seed_makes_anew_what_is_drawn_by_it_alone(tmp_path: Path) -> None:
    constitution(tmp_path)
    (tmp_path / "prompts.txt").write_text("".join(f"Question {number}?\n" for number in range(12)))
    words = [f"folder={tmp_path}/runs", f"constitution.file={tmp_path}/ours.yaml", "label.method=logprobs"]
    words += [f"prompts.path={tmp_path}/prompts.txt", "prompts.held_out=4", "until=labeler_check"]
    go(compose(words), World())
    _, said = go(compose([*words, "seed=1"]), World())
    assert [line.split(":")[0] for line in said if ": running" in line] == ["00 prompts"]


def test_a_doubtful_principle_ends_a_strict_run_before_anything_is_trained(tmp_path: Path) -> None:
    (tmp_path / "odd.yaml").write_text("name: Odd\nprinciples:\n- id: odd\n  text: Colourless green ideas sleep.\n")
    words = ["experiment=sandbox", f"folder={tmp_path}/runs", f"constitution.file={tmp_path}/odd.yaml"]
    words += ["prompts.train=4", "prompts.held_out=4"]
    for _ in range(2):  # as the stage runs, and when it is done before
        with pytest.raises(RunError, match="the meaning of 1 principle is doubtful") as refused:
            run(compose([*words, "understanding=strict"]))
        assert "principle 'odd'" in refused.value.__notes__[0]
    store, said = ran([*words, "until=labeler_check"])  # warned of, and done before
    assert said[-3] == "warning: the meaning of principle odd is doubtful, as was said at labeler_check"
    assert "labeler_check" in store.stages
    assert "critique_revise" not in store.stages


def test_models_are_given_a_principle_that_they_would_misread_in_known_words(tmp_path: Path) -> None:
    text = "Keep it short and get to the point."  # which the sandbox's model reads as a wish for length
    (tmp_path / "short.yaml").write_text(f"name: Short\nprinciples:\n- id: short\n  text: {text}\n")
    words = ["experiment=sandbox", f"folder={tmp_path}/runs", f"constitution.file={tmp_path}/short.yaml"]
    words += ["prompts.train=4", "prompts.held_out=4", "understanding=strict", "until=critique_revise"]
    store = run(compose(words))
    (meaning,) = store.read("meanings", PrincipleMeaning)
    assert (meaning.words, meaning.meaning, meaning.given) == (text, "avoid verbosity", "Avoid verbosity.")
    steps = [step for revision in store.read("revisions", Revision) for step in revision.steps]
    assert {step.principle_text for step in steps} == {"Avoid verbosity."}
    assert outdated(store) == ""  # which is told without asking the encoder again


SHORT = "Keep it short and get to the point."
"""What the sandbox's model reads as a wish for length."""


def own_constitution(folder: Path, text: str = SHORT) -> list[str]:
    (folder / "short.yaml").write_text(f"name: Short\nprinciples:\n- id: short\n  text: {text}\n")
    words = ["experiment=sandbox", f"folder={folder}/runs", f"constitution.file={folder}/short.yaml"]
    return [*words, "prompts.train=4", "prompts.held_out=4"]


def ran(words: list[str]) -> tuple[RunStore, list[str]]:
    stream = StringIO()
    return run(compose(words), progress=Progress(stream)), stream.getvalue().splitlines()


def test_a_control_is_given_its_shuffled_words_and_no_strict_run_ends_by_them(tmp_path: Path) -> None:
    words = [*own_constitution(tmp_path), "understanding=strict", "until=critique_revise"]
    other = ["constitution.wordings.short='point. the to get and short it Keep'", "constitution.as_written=[short]"]
    store, _ = ran([*words, *other])
    steps = [step for revision in store.read("revisions", Revision) for step in revision.steps]
    assert {step.principle_text for step in steps} == {"point. the to get and short it Keep"}
    assert {row.given for row in store.read("meanings", PrincipleMeaning)} == {""}
    assert outdated(store) == ""


def test_of_a_shipped_constitution_only_reworded_principles_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[list[str]] = []

    def understand_texts(texts: list[str]) -> list[FakeUnderstanding]:
        read.append(texts)
        return [FakeUnderstanding(text, given="Be A.") for text in texts]

    monkeypatch.setattr("constitutional.sandbox.understand.understand_texts", understand_texts)
    config = compose(["constitution.file=sandbox_concise", f"constitution.wordings.short={SHORT}"])
    said: list[str] = []
    constitution = as_models_read(config, selected(config), said.append)
    assert read == [[SHORT]]
    assert {row.id: row.words("critique") for row in constitution.principles if row.given} == {"short": "Be A."}
    assert len(said) == 1
    assert "reading 1 principle" in said[0]
    shipped_alone = compose(["constitution.file=sandbox_concise"])
    assert as_models_read(shipped_alone, selected(shipped_alone), said.append) == selected(shipped_alone)
    assert len(read) == 1


def test_what_a_used_file_says_was_given_is_not_believed(tmp_path: Path) -> None:
    words = own_constitution(tmp_path)
    path = tmp_path / "short.yaml"
    path.write_text(f"{path.read_text()}  given: {{critique: Be late.}}\n")
    assert selected(compose(words)).principles[0].words("critique") == SHORT


@pytest.mark.parametrize("mistake", ["budget.max_cost=1", "algorithm.max_tokens=100000", "prompts=file"])
def test_what_is_set_wrongly_is_told_before_principles_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mistake: str
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("read")

    monkeypatch.setattr("constitutional.sandbox.understand.understand_texts", refuse)
    (tmp_path / "long.txt").write_text("long " * 5000 + "\n")
    changed = {
        "prompts=file": ["prompts=file", f"prompts.path={tmp_path}/long.txt", "prompts.held_out=0"],
        "algorithm.max_tokens=100000": ["evaluate.max_tokens=100000"],
    }.get(mistake, [mistake])
    words = [word for word in own_constitution(tmp_path) if not word.startswith("prompts.")]
    with pytest.raises((ConfigurationError, InputError)):
        run(compose([*words, *changed]))


def test_without_the_encoder_a_run_that_had_it_says_so_and_reads_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [*own_constitution(tmp_path), "until=labeler_check"]
    store, said = ran(words)
    assert any("reading 1 principle" in line for line in said)
    assert store.read("meanings", PrincipleMeaning)[0].meaning == "avoid verbosity"
    monkeypatch.setattr("constitutional.sandbox.reader.encoder_file", lambda: None)
    monkeypatch.setattr("constitutional.runs.context.encoder_file", lambda: None)
    store, said = ran(words)
    assert {f"warning: {MISSING}", WITHOUT_ENCODER} <= set(said)
    assert store.read("meanings", PrincipleMeaning)[0].meaning == "seek verbosity"
    own_constitution(tmp_path, "Never flatter people.")
    _, said = ran(words)
    assert f"warning: {MISSING}" in said
    assert WITHOUT_ENCODER not in said


def test_installing_the_encoder_reads_a_shipped_constitution_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["experiment=sandbox", f"folder={tmp_path}/runs", "until=labeler_check"]
    with monkeypatch.context() as without:
        without.setattr("constitutional.sandbox.reader.encoder_file", lambda: None)
        ran(words)
    _, said = ran(words)
    assert any(line.startswith("01 labeler_check: running") for line in said)
    _, said = ran(words)
    assert any(line.startswith("01 labeler_check: done before") for line in said)


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
    label = after.stages["label"].calls
    assert label.asked == 2 * len(comparisons)  # one principle of four, in both orders
    assert label.reused == 3 * label.asked
    assert any(line.startswith("02 critique_revise: running; its settings or inputs have changed") for line in said)
    assert any(line.startswith("04 sample_pairs: done before") for line in said)
    assert said[-1].startswith(f"run first is done: {len(world.asked)} model calls asked, ")
    revisions = after.read("revisions", Revision)
    assert {step.principle_text for revision in revisions for step in revision.steps if step.principle == "kind"} <= {
        "Be warm."
    }


def page(store: RunStore) -> str:
    """A run's report, without the place where it lies and what it took."""
    path = show.report_path(store)
    assert path is not None
    text = re.sub(r'<section id="[^"]*cost">.*?</section>', "", path.read_text(), flags=re.DOTALL)
    return text.replace(str(store.folder.parent.parent), "HERE")


class Unbroken(NamedTuple):
    rows: dict[str, bytes]
    page: str
    asked: int


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Unbroken:
    folder = tmp_path_factory.mktemp("unbroken")
    constitution(folder)
    world = World()
    store, _ = go(configured(folder), world)
    return Unbroken(rows(store.folder), page(store), len(world.asked))


def test_a_run_goes_on_with_an_edited_copy_of_its_constitution(tmp_path: Path) -> None:
    text = constitution(tmp_path).read_text()
    copy = tmp_path / "copy.yaml"
    overrides = ["critique_revise.rounds=1", "until=critique_revise"]
    go(configured(tmp_path, *overrides), World())

    copy.write_text(text)
    _, said = go(configured(tmp_path, *overrides, f"constitution.file={copy}"), World())
    assert not any(": running" in line for line in said)  # the same principles, wherever they stand

    copy.write_text(text.replace("Be kind.", "Be warm."))
    world = World()
    _, said = go(configured(tmp_path, *overrides, f"constitution.file={copy}"), world)
    assert any(line.startswith("02 critique_revise: running; its settings or inputs have changed") for line in said)
    assert world.asked
    assert all(any("Be warm." in message.content for message in request.messages) for request in world.asked)


def test_who_stops_a_run_is_told_that_the_same_command_goes_on(tmp_path: Path) -> None:
    constitution(tmp_path)

    def stop() -> None:
        raise KeyboardInterrupt

    stream = StringIO()
    config = configured(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        run(config, stages=stages(config), opener=World(len(PRINCIPLES) + 1, stop).open, progress=Progress(stream))
    told = "02 critique_revise: stopped; the same command goes on from here"
    assert stream.getvalue().splitlines()[-1] == told


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 0.7, 0.99])
def test_a_run_killed_anywhere_and_started_again_ends_as_an_unbroken_one(
    tmp_path: Path, unbroken: Unbroken, share: float
) -> None:
    constitution(tmp_path)

    def stop() -> None:
        raise KeyboardInterrupt

    broken, resumed = World(1 + int(share * unbroken.asked), stop), World()
    with pytest.raises(KeyboardInterrupt):
        go(configured(tmp_path), broken)
    found, _ = go(configured(tmp_path), resumed)
    assert rows(found.folder) == unbroken.rows
    assert page(found) == unbroken.page
    assert unbroken.asked <= len(broken.asked) + len(resumed.asked) <= unbroken.asked + 1


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
        go(configured(tmp_path), World(len(PRINCIPLES) + 3, fail))
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


def test_a_damaged_artifact_is_made_again(tmp_path: Path) -> None:
    constitution(tmp_path)
    store, _ = go(configured(tmp_path), World())
    expected = rows(store.folder)
    path = store.artifact("judgements")
    path.write_bytes(path.read_bytes()[:-40])
    world = World()
    store, said = go(configured(tmp_path), world)
    assert any(line.startswith("05 label: ") and "is damaged" in line and ".damaged-1" in line for line in said)
    assert world.asked == []  # the journal has it all
    assert rows(store.folder) == expected


def test_an_item_is_followed_back_to_its_drafts(tmp_path: Path) -> None:
    constitution(tmp_path)
    store, _ = go(configured(tmp_path), World())
    preference = store.read("preferences", Preference)[0]
    told = find(store, preference.id[:12])
    judgement = next(each for each in store.read("judgements", Judgement) if each.id == preference.rests_on[0])
    revision = next(each for each in store.read("revisions", Revision) if each.prompt == preference.prompt)
    for part in (preference.chosen, preference.rejected, judgement.principle_text, revision.draft):
        assert part in told
    assert f"preference {preference.id}" in told
    assert "a shown first: " in told
    assert "b shown first: " in told
    assert revision.steps[0].principle_text in told
    with pytest.raises(UsageError, match="or the words 'zz'"):
        find(store, "zz")


def test_the_end_of_a_run_shows_the_three_models_and_the_report(tmp_path: Path) -> None:
    constitution(tmp_path)
    store, _ = go(configured(tmp_path), World())
    heading, *lines = show.behaviour(store).splitlines()
    assert heading.split() == ["Base", "SL", "RL"]
    length = next(line for line in lines if line.startswith("length"))
    assert length.count("2 (2–2)") == 3  # "Reply 1234abcd." are two words, whoever says it
    page = show.report_path(store)
    assert page is not None
    assert "<!DOCTYPE html>" in page.read_text()
    # Whoever reads the page finds there by which id an example can be followed back.
    prompts, revisions = store.read("prompts", Prompt), store.read("revisions", Revision)
    ids = re.findall(rf"constitutional show {re.escape(str(store.folder))} (\w{{16}})", page.read_text())
    assert ids
    assert set(ids) <= {each.id for each in (*prompts, *revisions)}
    assert all(find(store, id_).startswith("prompt ") for id_ in ids)


def test_a_run_without_a_report_is_compared_with_no_other_and_told_how_to_go_on(tmp_path: Path) -> None:
    constitution(tmp_path)
    store, _ = go(configured(tmp_path, "until=label"), World())
    with pytest.raises(RunError) as caught:
        compare([store], tmp_path / "page.html")
    told = f"{store.folder}: has no report yet, and its last finished stage is 'label'; `constitutional run from="
    assert str(caught.value) == f"{told}{store.folder} name=first` finishes it"


def test_several_runs_share_a_page(tmp_path: Path) -> None:
    constitution(tmp_path)
    stores = [go(configured(tmp_path, f"name=seed{seed}", f"seed={seed}"), World())[0] for seed in (1, 2)]
    page = compare(stores, tmp_path / "both.html").read_text()
    assert "seed1" in page
    assert "seed2" in page
    assert cli.main(["report", str(stores[0].folder), "--out", str(tmp_path / "one.html")]) == 0
    one = (tmp_path / "one.html").read_text()
    assert "seed1" in one
    assert "seed2" not in one


def test_a_page_of_several_runs_shows_the_constitutions_that_they_had(tmp_path: Path) -> None:
    constitution(tmp_path)
    shutil.copytree(shipped("prompts"), tmp_path / "words")
    overrides = [f"templates={tmp_path}/words", "constitution.weights.calm=7"]
    stores = [go(configured(tmp_path, f"name=run{number}", *overrides), World())[0] for number in (1, 2)]
    before = compare(stores, tmp_path / "both.html").read_text()
    assert before.count("Stay calm.") >= 2
    constitution(tmp_path, calm="Shout.")
    assert compare(stores, tmp_path / "both.html").read_text() == before
    (tmp_path / "ours.yaml").unlink()
    shutil.rmtree(tmp_path / "words")
    assert compare(stores, tmp_path / "both.html").read_text() == before
    stores[1].artifact("constitution_used").write_text('{"name": "Ours"}')
    with pytest.raises(RunError, match=r"run2/10_report/constitution_used\.json: is damaged; the command that made"):
        compare(stores, tmp_path / "both.html")


def test_a_report_is_made_anew_where_only_a_summary_or_the_constitutions_name_is_another(
    tmp_path: Path,
) -> None:
    path = constitution(tmp_path)
    config, world = configured(tmp_path), World()

    def noting(missing: int) -> list[Stage]:
        """The stages, where SFT makes the same model whatever it notes."""
        train = trained("sft_model", "revisions", learns=False)

        def noted(settings: object, context: StageContext) -> None:
            train(settings, context)
            context.summarise(SUMMARIES_OF["sft_model"].model_copy(update={"helpful": 1, "helpful_missing": missing}))

        return [replace(each, run=noted, version=missing) if each.name == "sft" else each for each in stages(config)]

    def said(missing: int) -> list[str]:
        stream = StringIO()
        run(config, stages=noting(missing), opener=world.open, progress=Progress(stream))
        return [line for line in stream.getvalue().splitlines() if ": running" in line]

    said(3)
    assert [line.split(":")[0] for line in said(4)] == ["03 sft", "10 report"]
    store = load_run(config.run_folder)
    assert "1 of the 5 helpful samples" in page(store)
    path.write_text(path.read_text().replace("name: Ours", "name: Everybody’s"))
    assert [line.split(":")[0] for line in said(4)] == ["10 report"]
    assert "Everybody’s" in page(store)


def test_a_stage_that_says_nothing_of_its_work_is_not_done(tmp_path: Path) -> None:
    constitution(tmp_path)
    config = configured(tmp_path)

    def silent(_settings: object, context: StageContext) -> None:
        context.write("prompts", ())

    first = replace(stages(config)[0], run=silent)
    with pytest.raises(AssertionError, match="'prompts' ended without a summary"):
        run(config, stages=[first], opener=World().open, progress=Progress(StringIO()))
    assert load_run(config.run_folder).stages == {}


def test_a_stage_reads_what_the_stages_before_it_say_and_nothing_of_an_earlier_run_of_those_after_it(
    tmp_path: Path,
) -> None:
    constitution(tmp_path)
    store, _ = go(configured(tmp_path), World())

    def seen_by(stage: str) -> FinishedRun:
        config = configured(tmp_path)
        return FinishedRun(store, selected(config), config, stage, store.stages[stage].needs)

    names = [stage.name for stage in STAGES]
    assert list(seen_by("mix").records()) == names[: names.index("mix")]
    assert seen_by("mix").summary(LabelSummary) == store.summary("label", LabelSummary)
    assert seen_by("mix").summary(MixSummary) is None
    assert seen_by("mix").summary(RewardSummary) is None
    assert list(seen_by("report").records()) == names[:-1]
    assert seen_by("report").summary(OnlineSummary) is None  # this run has no such stage
    for name, record in seen_by("report").records().items():
        assert type(record.summary) is SUMMARIES[name]
        assert record.calls == store.stages[name].calls
    assert seen_by("report").records()["label"].calls.asked > 0
    assert seen_by("report").has("scores")
    assert not seen_by("report").has("rollouts")


def test_what_every_stage_says_of_its_work_stands_in_the_report(tmp_path: Path) -> None:
    constitution(tmp_path)
    store, _ = go(configured(tmp_path), World())
    cells = r'<th scope="row">([^<]*)</th><td>([^<]*)</td><td class="prose">([^<]*)</td>'
    rows = re.findall(cells, page(store).partition("Summaries of the stages")[2].partition("</details>")[0])
    values, stage = dict[tuple[str, str], str](), ""
    for name, field, value in rows:
        stage = name or stage
        values[stage, field] = value
    assert len({name for name, _ in values}) == len(STAGES) - 1  # all but the report, which has nothing to say
    mixed, labelled = store.summary("mix", MixSummary), store.summary("label", LabelSummary)
    assert values["Mix", "comparisons"] == str(mixed.comparisons)
    assert values["Mix", "decided"] == str(mixed.decided)
    assert values["Label", "conflicts"] == str(labelled.conflicts)


def test_a_page_of_a_run_whose_summaries_another_version_wrote_is_refused_in_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    constitution(tmp_path)
    store, _ = go(configured(tmp_path), World())
    path = store.stage_folder("sft") / ENTRY
    entry = read_checked(path, StageEntry, "")
    write_checked(path, entry.model_copy(update={"summary": {"examples": {"helpful": 1}, "trained_on": 8}}))
    capsys.readouterr()
    assert cli.main(["report", str(store.folder), "--out", str(tmp_path / "one.html")]) == RunError.exit_code
    error = capsys.readouterr().err
    assert "03_sft/summary.json" in error
    assert "Traceback" not in error
    assert not (tmp_path / "one.html").exists()


# Before a run begins, and before it trains.


@pytest.mark.parametrize(
    ("setting", "content", "problem"),
    [
        ("prompts.path", None, "there is no such file"),
        ("prompts.path", '"a"\n{"prmopt": "b"}', ":2: has the unknown key"),
        ("mix.human", None, "there is no such file"),
        ("mix.human", '{"chosen": "a"}', ":1: 'rejected' is missing"),
        ("mix.verdicts", '{"comparison": "x", "rater": "me", "choice": "c"}', ":1: no verdict: choice"),
        ("critique_revise.few_shot_file", '{"messages": []}', ":1: does not go from user to assistant"),
        ("sft.helpful", '{"prompt": "a"}', ":1: "),
    ],
)
def test_a_file_that_is_wrong_is_named_before_there_is_a_folder_or_a_model(
    tmp_path: Path, setting: str, content: str | None, problem: str
) -> None:
    constitution(tmp_path)
    path = tmp_path / "mistyped.jsonl"
    if content is not None:
        path.write_text(content)
    prompts = ["prompts=file"] if setting == "prompts.path" else []
    settings = [f"folder={tmp_path}/runs", f"constitution.file={tmp_path}/ours.yaml", f"{setting}={path}"]
    world = World()
    with pytest.raises(InputError) as caught:
        go(compose([*prompts, *settings]), world)
    assert str(caught.value).startswith(str(path))
    assert problem in str(caught.value)
    assert world.opened == []
    assert not (tmp_path / "runs").exists()  # so that the name is free for the corrected command


def test_people_who_cannot_be_simulated_are_told_before_there_is_a_folder_or_a_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    constitution(tmp_path)  # whose principles have no tags
    asked = ["spotcheck.budget=5", "spotcheck.simulate={error: 0.1}"]
    world = World()
    with pytest.raises(ConfigurationError, match=r"tags: \[flattery, avoid\], and none of 'Ours' has any"):
        go(configured(tmp_path, *asked), world)
    assert world.opened == []
    command = ["run", f"folder={tmp_path}/runs", f"constitution.file={tmp_path}/ours.yaml", *asked]
    assert cli.main([*command, "--dry-run"]) == 2
    assert "none of 'Ours' has any that name a trait" in capsys.readouterr().err
    (tmp_path / "prompts.txt").write_text("How do I plant a tree?\nWhat is rain?")
    own = ["prompts=file", f"prompts.path={tmp_path}/prompts.txt", "prompts.held_out=0"]
    with pytest.raises(ConfigurationError, match="in the sandbox alone"):
        go(compose([f"folder={tmp_path}/runs", "constitution.file=sandbox_careful", *own, *asked]), world)
    assert not (tmp_path / "runs").exists()


def test_a_prompt_that_leaves_no_room_for_a_reply_is_refused_before_there_is_a_folder(tmp_path: Path) -> None:
    constitution(tmp_path)
    (tmp_path / "prompts.txt").write_text("How do I plant a tree?\nTell me all about trees" + " tree" * 3000)
    words = ["prompts=file", f"prompts.path={tmp_path}/prompts.txt", "prompts.held_out=0"]
    said = r'prompts\.txt:2: the request that begins "Tell me all about trees .* tokens .* takes 2,048 in all'
    with pytest.raises(InputError, match=said):
        run(compose([f"folder={tmp_path}/runs", f"constitution.file={tmp_path}/ours.yaml", *words]))
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("setting", ["evaluate.max_tokens", "sample_pairs.max_tokens"])
def test_a_reply_too_long_for_the_model_is_refused_by_its_setting_where_the_prompts_are_made_up(
    tmp_path: Path, setting: str
) -> None:
    constitution(tmp_path)
    with pytest.raises(ConfigurationError, match=rf"{setting}=2048: the request .* takes 2,048 in all"):
        run(configured(tmp_path, f"{setting}=2048"))
    assert not (tmp_path / "runs").exists()


def test_a_model_that_cannot_be_trained_is_refused_before_anything_is_asked_of_it(tmp_path: Path) -> None:
    constitution(tmp_path)
    model = tmp_path / "model"
    shutil.copytree(MODEL_FOLDER, model, ignore=shutil.ignore_patterns("*.safetensors", "*.jsonl"))
    (model / "model.safetensors").touch()
    template = model / "chat_template.jinja"
    template.write_text(template.read_text().replace("{{ bos_token }}", "{{ bos_token }}{{ bos_token }}"))
    with pytest.raises(ModelError, match=r"model: cannot be trained as it is: .*begins with two '<\|begin\|>'"):
        run(configured(tmp_path, "experiment=sandbox", f"model.path={model}"))
    assert not (tmp_path / "runs").exists()


def test_a_model_of_which_no_reward_model_can_be_made_is_refused_only_where_one_is_wanted(tmp_path: Path) -> None:
    constitution(tmp_path)
    model = tmp_path / "model"
    shutil.copytree(MODEL_FOLDER, model, ignore=shutil.ignore_patterns("*.safetensors", "*.jsonl"))
    (model / "model.safetensors").touch()
    sizes = {"vocab_size": 4096, "hidden_size": 16, "state_size": 4, "num_hidden_layers": 1}
    (model / "config.json").write_text(json.dumps({"model_type": "mamba", **sizes}))
    words = ("experiment=sandbox", f"model.path={model}")
    with pytest.raises(ModelError, match=r"model: no reward model or critic can be made of it: .* with until=mix"):
        run(configured(tmp_path, *words))
    assert not (tmp_path / "runs").exists()
    config = configured(tmp_path, *words, "until=mix")
    files = ready(config)
    with RunContext(config, files.constitution, load_prompts(None), Progress(StringIO()), None) as run_context:
        _check_model(run_context, files, up_to("mix", stages_of(config)))


def test_while_a_stage_asks_its_items_are_said_and_how_many_answers_there_are(tmp_path: Path) -> None:
    constitution(tmp_path)
    stream, time_s = StringIO(), count(0, 20)  # so that every line is due
    progress = Progress(stream, lambda: float(next(time_s)))
    config = configured(tmp_path, "until=critique_revise")
    run(config, stages=stages(config), opener=World().open, progress=progress)
    said = stream.getvalue().splitlines()
    # A model by a rule answers all that is waiting: the 8 drafts, then the 8 critiques of the first round.
    assert next(line for line in said if " · generator: " in line) == "  critique and revise: 0% · generator: 8 answers"
    assert any(line.startswith("  critique and revise: 0% · critic: 8 answers") for line in said)


def test_garbage_is_looked_for_rarely_but_while_a_stage_trains(tmp_path: Path) -> None:
    constitution(tmp_path)
    config, before = configured(tmp_path), gc.get_threshold()
    seen: dict[str, int] = {}

    def watched(stage: Stage) -> Stage:
        def noted(settings: object, context: StageContext) -> None:
            seen[stage.name] = gc.get_threshold()[0]
            stage.run(settings, context)

        return replace(stage, run=noted)

    run(config, stages=[watched(stage) for stage in stages(config)], opener=World().open, progress=Progress(StringIO()))
    assert gc.get_threshold() == before
    assert {name for name, threshold in seen.items() if threshold == before[0]} == {
        stage.name for stage in stages(config) if stage.trains and stage.name in seen
    }
    assert seen["label"] > before[0]


def test_a_run_says_how_long_it_took_and_how_much_memory_and_its_manifest_keeps_it(tmp_path: Path) -> None:
    constitution(tmp_path)
    before = peak_bytes()
    assert before > 10 * 1024**2  # no Python with this package in it holds less
    store, said = go(configured(tmp_path), World())
    most = [entry.peak_bytes or 0 for entry in store.stages.values()]
    assert most == sorted(most)
    assert before <= most[0] <= most[-1] <= peak_bytes()
    took = re.fullmatch(r"it took \d+:\d\d, with (\d+\.\d) GiB of memory at most", said[-2])
    assert took is not None
    assert float(took[1]) == pytest.approx(most[-1] / 1024**3, abs=0.06)


# What engines can do, and what does not matter.


def scripted_labeler(tmp_path: Path, *words: str) -> RunConfig:
    (tmp_path / "mine.py").write_text("def answer(request):\n    return 'I looked at both. Better: A'\n")
    labeler = ["labeler=scripted", f"labeler.function={tmp_path}/mine.py:answer"]
    return configured(tmp_path, *labeler, *words)


@pytest.mark.parametrize(("method", "asked"), [("rationale", "votes"), ("score", "rating"), ("votes", "votes")])
def test_an_engine_without_log_probabilities_is_asked_by_what_it_gives_and_the_run_says_so(
    tmp_path: Path, method: str, asked: str
) -> None:
    constitution(tmp_path)
    config = scripted_labeler(tmp_path, f"label.method={method}", "label.votes=1", "until=prompts")
    screen = StringIO()
    store = run(config, stages=stages(config)[:1], progress=Progress(screen))
    (line,) = (line for line in screen.getvalue().splitlines() if line.startswith("labeler: "))
    assert line.startswith(f"labeler: {asked} ")
    assert (f"in place of {method}" in line) == (method != asked)
    # What engines give decides the results, so it is in the fingerprint of what they answer.
    assert store.given_digests()["labeler"].endswith(" no log-probabilities")


def test_labels_that_may_be_votes_depend_on_the_seed(tmp_path: Path) -> None:
    constitution(tmp_path)

    def seeded(config: RunConfig) -> bool:
        return next(stage.seeded for stage in stages_of(config) if stage.name == "label")

    words = ("label.principles=all", "label.method=logprobs")
    assert seeded(scripted_labeler(tmp_path, *words))
    assert not seeded(configured(tmp_path, *words))


def test_every_judge_of_a_panel_is_a_need_of_its_own_with_an_engine_of_its_own(tmp_path: Path) -> None:
    constitution(tmp_path)
    second = ["panel.second=scripted", f"panel.second.function={tmp_path}/mine.py:other", "until=prompts"]
    config = scripted_labeler(tmp_path, "label.votes=1", *second)
    (tmp_path / "mine.py").write_text(
        "def answer(request):\n    return 'I looked. Better: A'\ndef other(request):\n    return 'Hm. Better: B'\n"
    )
    screen = StringIO()
    store = run(config, stages=stages(config)[:1], progress=Progress(screen))
    assert any(line.startswith("panel.second: votes ") for line in screen.getvalue().splitlines())
    assert store.given_digests()["panel.second"].startswith("scripted:other ")
    needs = {stage.name: stage.needs for stage in stages_of(config)}
    assert all({"labeler", "panel.second"} <= set(needs[name]) for name in ("labeler_check", "label"))
    assert not any("panel.second" in needs[name] for name in ("evaluate", "mix", "dpo"))


def test_a_function_of_the_users_may_be_the_labeler(tmp_path: Path) -> None:
    constitution(tmp_path)
    config = scripted_labeler(tmp_path, "label.method=votes", "label.votes=2", "until=labeler_check")
    store = run(config, stages=stages(config)[:2], progress=Progress(StringIO()))
    assert list(store.stages) == ["prompts", "labeler_check"]
    assert store.given_digests()["labeler"].startswith("scripted:answer ")


def test_without_the_device_it_was_made_on_and_with_stray_files_nothing_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    constitution(tmp_path)
    model = tmp_path / "model"
    shutil.copytree(MODEL_FOLDER, model)
    config = configured(tmp_path, "experiment=sandbox", f"model.path={model}", "critique_revise.rounds=0", "until=sft")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    shortened = stages(config)
    shortened[1] = replace(shortened[1], run=lambda _, context: checked(context))
    shortened[2] = replace(shortened[2], run=lambda _, context: drafted(context))

    def checked(context: StageContext) -> None:
        context.write("meanings", ())
        context.write("labeler_accuracy", ())
        context.summarise(LabelerCheckSummary(left_out_principles=(), warnings=(), canaries=0, canaries_failed=0))

    def drafted(context: StageContext) -> None:
        context.write("revisions", ())
        context.summarise(
            CritiqueReviseSummary(prompts=0, left_out=0, cut_off_drafts=0, steps=0, found_nothing=0, changed=0)
        )

    def started() -> list[str]:
        stream = StringIO()
        run(config, stages=shortened, progress=Progress(stream))
        return [line for line in stream.getvalue().splitlines() if ": running" in line]

    assert len(started()) == 4
    (model / "notes.txt").write_text("My favourite model.")
    (model / "extra.safetensors").write_bytes(b"")
    (config.run_folder / "03_sft" / "sft_model" / "README.md").write_text("A note.")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert started() == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], ""),
        (["prompts.path={prompts}"], "the prompts are put to the sandbox's model"),
        (["generator=http", "generator.url=http://127.0.0.1:1/v1", "generator.model=big"], "warning: big drafts"),
        (["labeler=http", "labeler.url=http://127.0.0.1:1/v1", "labeler.model=big"], ""),
    ],
)
def test_a_run_says_where_the_sandboxs_model_reads_what_it_cannot(tmp_path: Path, words: list[str], said: str) -> None:
    prompts = tmp_path / "mine.txt"
    prompts.write_text("How do tides work?\n" * 3)
    config = freeze(compose([f"folder={tmp_path}", *(word.format(prompts=prompts) for word in words)]))
    with RunContext(config, selected(config), load_prompts(None), Progress(StringIO())) as run_context:
        line = _out_of_its_world(run_context)
    assert said in line
    assert bool(said) == bool(line)
