import hashlib
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from constitutional.base.errors import ConfigurationError, ConstitutionalError, InputError, RunError, UsageError
from constitutional.cli import main as cli
from constitutional.cli.preview import lines, summary
from constitutional.constitution.file import as_yaml, load_constitution
from constitutional.engines.base import Completion, Request
from constitutional.runs import preview
from constitutional.runs.folder import USED, RunStore
from constitutional.runs.preview import Previewer, PreviewResult
from tests.scripted_run import PRINCIPLES, World, configured, constitution, go


class Raters(World):
    """Scripted models of which the labeler rates a reply by a principle: the same two always get the same points."""

    def answer(self, request: Request, model: str) -> Completion:
        last = request.messages[-1].content
        if not request.choices and "Rate your last response" in last:
            self.asked.append(request)
            return Completion(f"It is so. Score: {points(request.messages[-2].content, last)}", "stop")
        return super().answer(request, model)

    @property
    def ratings(self) -> list[str]:
        return [
            request.messages[-1].content for request in self.asked if "Rate your last" in request.messages[-1].content
        ]


def points(reply: str, question: str) -> int:
    return int(hashlib.sha256(f"{reply}|{question}".encode()).hexdigest(), 16) % 10 + 1


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    constitution(folder)
    overrides = ["label.principles=telling", "prompts.train=12", "until=label"]
    go(configured(folder, *overrides), Raters())
    return folder


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run, with its journal, in the test's own folder."""
    shutil.copytree(finished, tmp_path, symlinks=True, dirs_exist_ok=True)
    config = tmp_path / "runs" / "first" / "config.json"
    config.write_text(config.read_text().replace(str(finished), str(tmp_path)))
    return config.parent


def opened(run: Path, world: Raters) -> Previewer:
    return Previewer(RunStore.load(run), opener=world.open)


def asked(run: Path, *overrides: str) -> tuple[PreviewResult, Raters]:
    world = Raters()
    with opened(run, world) as previewer:
        return previewer.preview(previewer.edited(overrides)), world


def test_without_an_edit_nothing_changes(run: Path) -> None:
    result, world = asked(run)
    assert result.edits == ()
    assert (result.prompts, result.swapped, result.samples, result.unrated) == (12, 0, 4, 0)
    assert {(row.value, row.effect.low <= 0 <= row.effect.high) for row in result.shifts} == {(0.0, True)}
    assert {"calm", "brief", "kind", "honest", "length"} <= {row.measure for row in result.shifts}
    # The run itself drew two replies a prompt, and the preview two more.
    assert result.asked["replies"] == 24
    assert world.ratings


def test_an_edited_principle_alone_is_asked_for_and_once(run: Path, tmp_path: Path) -> None:
    asked(run)
    constitution(tmp_path, calm="Keep calm, always.")
    result, world = asked(run)
    assert result.asked.keys() == {"calm", "the meaning of principles"}
    assert {"Keep calm, always." in text for text in world.ratings} == {True}
    assert len(world.ratings) == result.asked["calm"] <= 48
    assert any("Keep calm, always." in edit for edit in result.edits)
    again, world = asked(run)
    assert not world.asked
    assert again.asked == {}
    assert again._replace(asked={}, reused=0) == result._replace(asked={}, reused=0)


def test_an_edited_copy_of_the_used_file_is_judged_by_its_new_words(run: Path, tmp_path: Path) -> None:
    used = load_constitution(run / USED).giving({"calm": {"comparison": "Avoid rudeness."}})
    (run / USED).write_text(as_yaml(used))
    edited = tmp_path / "edited.yaml"
    edited.write_text(as_yaml(used).replace("text: Stay calm.", "text: Keep calm, always."))
    _, world = asked(run, f"constitution.file={edited}")
    assert any("Keep calm, always." in text for text in world.ratings)
    # What was not edited is given as the run gave it.
    edited.write_text(as_yaml(used.giving({})))
    result, world = asked(run, f"constitution.file={edited}")
    assert result.edits == ()
    assert {"Stay calm." in text for text in world.ratings} <= {False}


def test_what_is_taken_is_best_by_each_constitution(run: Path, tmp_path: Path) -> None:
    constitution(tmp_path, calm="Keep calm, always.")
    result, _ = asked(run)
    rows = {row.measure: row for row in result.shifts}
    assert rows["calm"].value > 0 > rows["calm (as it was)"].value
    assert result.swapped > 0
    for example in result.examples:
        assert example.margin > 0
        assert example.before != example.after
        assert example.tipped[0][0] == "calm"


def test_a_prompt_counts_as_differing_where_one_of_several_best_replies_is_the_best_no_more(run: Path) -> None:
    world = Raters()
    with opened(run, world) as previewer:
        previewer.preview(previewer.edited(()))
        for key in previewer._rated:
            # Both of the first two are the best by all principles; by `calm` alone the second is.
            row = {"calm": (8.0, 9.0, 5.0, 5.0), "brief": (9.0, 8.0, 5.0, 5.0)}.get(key[0], (9.0, 9.0, 5.0, 5.0))
            previewer._rated[key] = [row] * 12
        result = previewer.preview(previewer.edited(["constitution.without=[brief,kind,honest]"]))
    assert (result.swapped, result.prompts) == (12, 12)
    assert "12 of 12 prompts" in summary(result)


def test_another_rule_under_the_same_words_rates_anew(run: Path, tmp_path: Path) -> None:
    text = (tmp_path / "ours.yaml").read_text()
    edited = tmp_path / "edited.yaml"
    world = Raters()
    with opened(run, world) as previewer:
        previewer.preview(previewer.edited(()))
        taken = []
        for rule in ("more words", "fewer words"):
            edited.write_text(text.replace("id: calm", f"id: calm\n    measure: {rule}"))
            previewer.preview(previewer.edited([f"constitution.file={edited}"]))
            taken.append([row for key, row in previewer._rated.items() if key[0] == "calm" and key[2] == rule])
    (more,), (fewer,) = taken
    assert len(more) == len(fewer) == 12
    assert more != fewer  # the rule of the second edit rated them, and not that of the first


def test_a_priority_alone_changes_what_is_taken_and_asks_for_nothing(run: Path, tmp_path: Path) -> None:
    asked(run)
    text = (tmp_path / "ours.yaml").read_text()
    edited = tmp_path / "edited.yaml"
    edited.write_text(text.replace("id: calm", "id: calm\n    overrides: [brief]"))
    world = Raters()
    with opened(run, world) as previewer:
        previewer.preview(previewer.edited(()))
        for key in previewer._rated:
            # By the sum the second reply is the best, 3 + 9 against 8 + 2; where `calm` decides alone it is the first.
            row = {"calm": (8.0, 3.0, 1.0, 1.0), "brief": (2.0, 9.0, 1.0, 1.0)}.get(key[0], (5.0, 5.0, 5.0, 5.0))
            previewer._rated[key] = [row] * 12
        result = previewer.preview(previewer.edited([f"constitution.file={edited}"]))
    assert any("overrides" in edit for edit in result.edits)
    assert result.asked == {}
    assert result.swapped == 12


def test_a_principle_that_is_left_out_or_weighs_more_costs_nothing(run: Path) -> None:
    asked(run)
    for override in ("constitution.without=[calm]", "constitution.weights.calm=0", "constitution.weights.calm=20"):
        result, world = asked(run, override)
        assert not world.asked
        assert result.swapped > 0
        names = [row.measure for row in result.shifts]
        assert len(set(names)) == len(names)
        calm = next(row for row in result.shifts if row.measure.startswith("calm"))
        assert (calm.value > 0) == override.endswith("20")
    assert asked(run, "constitution.weights.calm=0")[0].shifts == asked(run, "constitution.without=[calm]")[0].shifts


def test_a_warm_preview_asks_the_journal_for_nothing_that_it_rated(run: Path, tmp_path: Path) -> None:
    world = Raters()
    with opened(run, world) as previewer:
        first = previewer.preview(previewer.edited(()))
        constitution(tmp_path, kind="Be very kind.")
        edited = previewer.preview(previewer.edited(()))
        assert edited.asked.keys() == {"kind", "the meaning of principles"}
        constitution(tmp_path)
        world.asked.clear()
        back = previewer.preview(previewer.edited(()))
        assert not world.asked
    assert back.shifts == first.shifts


def test_what_detectors_find_decides_nothing(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    constitution(tmp_path, calm="Keep calm, always.")
    result, _ = asked(run)
    monkeypatch.setattr(preview, "trait_scores", lambda _samples: iter(()))
    blind, _ = asked(run)
    assert blind.examples == result.examples
    assert {row.measure for row in blind.shifts} >= {"refusal", "questions", "length"}
    assert "flattery" in {row.measure for row in result.shifts} - {row.measure for row in blind.shifts}


@pytest.mark.parametrize(
    ("override", "kind", "words"),
    [
        ("seed=2", UsageError, "constitution.file=FILE"),
        ("constitution.weights.clam=2", ConfigurationError, "calm"),
        ("constitution.without=[clam]", ConfigurationError, "calm"),
        ("constitution.file=nowhere.yaml", ConstitutionalError, "nowhere.yaml"),
        ("constitution.weights.calm=-1", ConfigurationError, "weights"),
        ("constitution.without=[calm,brief,kind,honest]", ConfigurationError, "no principle"),
        ("constitution.fle=x.yaml", ConfigurationError, "fle"),
        ("calm", UsageError, "calm"),
    ],
)
def test_what_cannot_be_previewed_is_told(
    run: Path, override: str, kind: type[ConstitutionalError], words: str
) -> None:
    with pytest.raises(kind, match=re.escape(words)):
        asked(run, override)


def test_a_broken_file_is_told_with_its_line(run: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.yaml").write_text("name: Ours\nprinciples:\n  - id: calm\n   text: [\n")
    with pytest.raises(InputError, match=r"broken\.yaml:\d"):
        asked(run, f"constitution.file={tmp_path}/broken.yaml")


def test_a_run_without_an_sl_model_says_what_to_do(tmp_path: Path) -> None:
    constitution(tmp_path)
    store, _ = go(configured(tmp_path, "until=critique_revise"), Raters())
    with pytest.raises(RunError, match="until=sft"):
        Previewer(RunStore.load(store.folder))


def test_a_run_of_another_version_is_told_from_its_configuration(run: Path) -> None:
    config = run / "config.json"
    config.write_text(config.read_text().replace('"label": {', '"label": {"gone": 1,', 1))
    with pytest.raises(InputError, match="this version"):
        Previewer(RunStore.load(run))


def test_a_labeler_that_gives_no_rating_is_no_preview(run: Path, tmp_path: Path) -> None:
    constitution(tmp_path, **{name: f"{text} Truly." for name, text in PRINCIPLES.items()})
    world = World()  # whose replies hold no score
    config = run / "config.json"
    config.write_text(config.read_text().replace('"seed": 0', '"seed": 1', 1))
    (run / USED).write_text((tmp_path / "ours.yaml").read_text())
    with Previewer(RunStore.load(run), opener=world.open) as previewer, pytest.raises(RunError, match="no rating"):
        previewer.preview(previewer.edited(()))


class Silent(Raters):
    """Raters who cannot say how nice a reply is."""

    def answer(self, request: Request, model: str) -> Completion:
        if "Be nice." in request.messages[-1].content and not request.choices:
            return Completion("Who knows.", "stop")
        return super().answer(request, model)


def test_where_one_principle_alone_gets_no_ratings_it_is_named(run: Path, tmp_path: Path) -> None:
    constitution(tmp_path, kind="Be nice.")
    edited = f"constitution.file={tmp_path / 'ours.yaml'}"
    with opened(run, Silent()) as previewer, pytest.raises(RunError, match=r"by kind, so.*ours\.yaml"):
        previewer.preview(previewer.edited([edited]))


def test_of_few_prompts_it_says_so(run: Path, tmp_path: Path) -> None:
    constitution(tmp_path, kind="Be nice.")
    with Previewer(RunStore.load(run), 5, opener=Raters().open) as previewer:
        result = previewer.preview(previewer.edited([f"constitution.file={tmp_path / 'ours.yaml'}"]))
    text = "\n".join(lines("x", result, "1 s"))
    assert "too few prompts to tell: " in text
    assert "no clear change: " not in text


def test_a_principle_for_revision_alone_is_noted_and_costs_nothing(run: Path, tmp_path: Path) -> None:
    asked(run)
    text = (tmp_path / "ours.yaml").read_text()
    (tmp_path / "ours.yaml").write_text(f"{text}  - id: plain\n    text: Be plain.\n    uses: [revision]\n")
    result, world = asked(run)
    assert not world.ratings
    assert any("plain" in note and "revision" in note for note in result.notes)
    assert result.swapped == 0


def test_a_run_that_does_not_rate_is_previewed_by_expected_scores(tmp_path: Path) -> None:
    constitution(tmp_path)
    run = go(configured(tmp_path, "label.principles=one", "prompts.train=6", "until=sft"), Raters())[0].folder
    constitution(tmp_path, calm="Keep calm, always.")
    result, world = asked(run)
    assert result.method == "score"
    assert any(len(request.choices) == 10 for request in world.asked)
    rows = {row.measure: row for row in result.shifts}
    assert rows["calm"].value >= 0


# The command


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Raters:
    world = Raters()
    monkeypatch.setattr("constitutional.runs.context.engine_of", lambda settings, *_: world.open(settings))
    return world


@pytest.mark.usefixtures("world")
def test_the_command_prints_the_change_and_writes_a_page(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    html = tmp_path / "page.html"
    constitution(tmp_path, calm="Keep <b>calm</b>, always.")
    assert cli.main(["preview", str(run), "--html", str(html)]) == 0
    out = capsys.readouterr().out
    assert "Keep <b>calm</b>, always." in out
    assert "0.64" in out
    assert re.search(r"calls asked .*for\s+calm", out, re.DOTALL)
    text = html.read_text()
    assert "Keep &lt;b&gt;calm&lt;/b&gt;, always." in text
    assert "reload" not in text


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["nowhere"], 2),
        (["RUN", "seed=1"], 2),
        (["RUN", "--prompts", "1"], 2),
        (["RUN", "--samples", "1"], 2),
        (["RUN", "--watch", "constitution.file=nowhere.yaml"], 2),
    ],
)
@pytest.mark.usefixtures("world")
def test_mistakes_end_the_command_with_its_code(run: Path, words: list[str], code: int) -> None:
    assert cli.main(["preview", *(str(run) if word == "RUN" else word for word in words)]) == code


def watched(monkeypatch: pytest.MonkeyPatch, *steps: Callable[[], object]) -> None:
    """At every look at the file comes the next step; then Ctrl-C."""
    remaining = iter(steps)

    def sleep(_seconds: float) -> None:
        step = next(remaining, None)
        if step is None:
            raise KeyboardInterrupt
        step()

    monkeypatch.setattr("time.sleep", sleep)


@pytest.mark.usefixtures("world")
def test_watching_previews_at_every_save_and_goes_on_behind_a_mistake(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    html, file = tmp_path / "page.html", tmp_path / "ours.yaml"
    pages = []
    watched(
        monkeypatch,
        lambda: file.write_text("name: Ours\nprinciples:\n  - id: calm\n   text: [\n"),
        lambda: pages.append(html.read_text()),
        file.unlink,  # as some editors do while they save
        lambda: constitution(tmp_path, calm="Keep calm, always."),
        lambda: pages.append(html.read_text()),
    )
    assert cli.main(["preview", str(run), "--watch", "--html", str(html)]) == 0
    out, err = capsys.readouterr()
    assert re.search(r"ours\.yaml:\d", err)
    assert "Traceback" not in err
    assert out.count("preview of") == 2
    assert "Keep calm, always." in out
    assert re.search(r"ours\.yaml:\d", pages[0])
    assert all("location.reload" in text for text in pages)
    assert "Keep calm, always." in html.read_text()
    assert "location.reload" not in html.read_text()
