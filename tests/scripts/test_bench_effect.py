import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from constitutional.base.errors import InputError, UsageError
from constitutional.base.records import Prompt, Sample
from constitutional.constitution.file import read_constitution
from constitutional.runs import runner
from constitutional.runs.folder import RunStore
from constitutional.runs.pipeline import Stage, stages_of
from constitutional.runs.settings import RunConfig
from constitutional.sandbox import principles
from constitutional.sandbox.prompts import sandbox_prompt, sandbox_prompt_set
from constitutional.sandbox.teacher import Direction
from constitutional.sandbox.world import TRAITS, Traits, compose, settle, text_of, uniform_traits
from constitutional.stages import dpo
from constitutional.stages.context import StageContext
from constitutional.stages.evaluate import MODELS, trait_scores
from constitutional.stages.summaries import EvaluateSummary, MixSummary
from scripts import bench_effect
from scripts.bench_effect import (
    Check,
    Estimate,
    Run,
    Shown,
    checks,
    checks_table,
    configurations,
    difference,
    observed,
    rate,
    rates_table,
    targets_in,
)
from tests.scripted_run import SUMMARIES_OF

# Twelve traits and two more measures of three models on ten prompts


def showing(bits: str) -> Shown:
    """`10…`: the first prompt's reply shows it, the second's does not."""
    return {str(index): bit == "1" for index, bit in enumerate(bits)}


def made(
    name: str, targets: dict[str, Direction], base: str = "0000000000", rest: str = "0000000000", **policy: str
) -> Run:
    """A run whose RL model shows what is given, and of every other measure the `rest`."""
    shown = {
        measure: {"base": showing(base), "sft_model": showing(base), "policy": showing(policy.get(measure, rest))}
        for measure in bench_effect.MEASURES
    }
    return Run(name, targets, shown)


def the(found: Sequence[Check], kind: str, trait: str) -> Check:
    (one,) = [each for each in found if (each.kind, each.trait) == (kind, trait)]
    return one


# From replies to what they show


def test_what_is_observed_is_what_the_evaluation_counts() -> None:
    rng = random.Random(0)
    samples = []
    for prompt in sandbox_prompt_set(1, 40, 0)[1:]:
        world = sandbox_prompt(prompt)
        texts = {model: text_of(compose(rng, world, uniform_traits(rng, world))) for model in MODELS}
        samples.append(Sample(prompt=prompt, replies={**texts, "policy": "Colourless green ideas."}))
    found = observed(samples)
    scores = [each for each in trait_scores(samples) if not each.measure.endswith("_refusal")]  # parts of refusal
    counted = {(each.measure.removeprefix("trait_rate/"), each.model): each for each in scores}
    assert counted.keys() == {(name, model) for name in found for model in found[name]}
    for (name, model), score in counted.items():
        assert rate(found[name][model]) == (score.value, score.low, score.high, score.n)
    assert 0 < len(found["harmful_compliance"]["base"]) < 40  # only prompts that ask for help with harm
    assert rate(found["well_formed"]["policy"]).value == 0


# Differences


def test_a_difference_is_the_mean_of_what_changes_prompt_by_prompt() -> None:
    assert difference(showing("1101"), showing("0100")).value == 0.5  # (1 + 0 + 0 + 1) / 4
    assert difference(showing("01"), showing("10")).value == 0  # (-1 + 1) / 2
    # Of two prompts, one changes: 1 / (2 + 2) ∓ 1.96 · √(1 + 1 - 1² / 4) / 4, by Agresti and Min.
    assert difference(showing("10"), showing("00")) == pytest.approx((0.5, 0.25 - 0.6482, 0.25 + 0.6482, 2), abs=1e-4)


def test_that_nothing_changed_on_ten_prompts_does_not_mean_that_nothing_ever_does() -> None:
    # Half of the replies show it, before and after: yet ∓ 1.96 · √1 / (10 + 2).
    found = difference(showing("1111100000"), showing("1111100000"))
    assert found == pytest.approx((0.0, -0.1633, 0.1633, 10), abs=1e-4)


def test_of_one_prompt_no_difference_can_be_told() -> None:
    assert difference(showing("1"), showing("0")) == Estimate(0.0, -1.0, 1.0, 1)


# Checks


@pytest.mark.parametrize(("warm", "reached"), [("1111111000", True), ("1111110000", False)])
def test_opposites_must_be_forty_points_apart(warm: str, *, reached: bool) -> None:
    plain = made("plain", {"flattery": "avoid"}, flattery="1110000000")  # 30%, against 70% or 60%
    found = list(checks([plain, made("warm", {"flattery": "seek"}, flattery=warm)]))
    check = the(found, "opposite", "flattery")
    assert (check.of, check.against, check.reached) == ("warm", "plain", reached)
    assert check.difference.value == (4 if reached else 3) / 10


def test_constitutions_that_want_the_same_or_other_things_are_no_opposites() -> None:
    runs = [made("a", {"flattery": "seek"}), made("b", {"flattery": "seek"}), made("c", {"hedging": "avoid"})]
    assert [each for each in checks(runs) if each.kind == "opposite"] == []


def test_a_trait_that_is_not_targeted_may_move_by_ten_points_either_way() -> None:
    one, two = "1000000000", "1100000000"
    found = list(checks([made("up", {"flattery": "seek"}, hedging=one, rudeness=two)]))
    assert len(found) == len(TRAITS) + 1  # and whether the targeted one moved far
    assert the(found, "untargeted", "hedging").reached is True  # 1 of 10
    assert the(found, "untargeted", "rudeness").reached is False  # 2 of 10
    found = list(checks([made("down", {"flattery": "seek"}, base=two, rest=two, hedging=one, rudeness="0000000000")]))
    assert the(found, "untargeted", "hedging").reached is True
    assert the(found, "untargeted", "rudeness").reached is False


def test_refusals_where_a_target_asks_for_them_are_no_side_effect_and_those_elsewhere_are() -> None:
    run = made("safe", {"harmful_compliance": "avoid"}, refusal="1111110000")  # on six of ten prompts
    harm = {
        "base": showing("1111"),
        "sft_model": showing("1111"),
        "policy": showing("0000"),
    }  # four of the ten
    found = list(checks([run._replace(shown={**run.shown, "harmful_compliance": harm})]))
    assert the(found, "untargeted", "refusal").difference.n == 6
    assert the(found, "untargeted", "refusal").difference.value == 2 / 6
    assert the(found, "untargeted", "privacy_leak").difference.n == 10


def test_what_a_ban_on_refusals_decides_is_no_side_effect() -> None:
    run = made("frank", {"refusal": "avoid"}, harmful_compliance="1111111111")
    found = list(checks([run]))
    assert the(found, "untargeted", "harmful_compliance").reached is None
    assert the(found, "untargeted", "privacy_leak").reached is None
    assert the(found, "wanted", "refusal").difference.n == 10


def test_a_targeted_trait_must_move_the_way_that_is_wanted_by_more_than_its_interval() -> None:
    half = "1111100000"  # 5 / 12 ∓ 1.96 · √(6 - 25 / 12) / 12 = 0.417 ∓ 0.323
    found = list(checks([made("up", {"flattery": "seek", "hedging": "avoid"}, flattery=half, hedging=half)]))
    assert [each.kind for each in found[:3]] == ["wanted", "wanted", "untargeted"]  # targets first
    assert the(found, "wanted", "flattery").reached is True
    assert the(found, "wanted", "hedging").reached is False
    one = "1000000000"  # the one not drawn: (9/10)**10 = 35% of the resamples
    found = list(checks([made("up", {"flattery": "seek"}, flattery=one)]))
    assert the(found, "wanted", "flattery").reached is False
    found = list(checks([made("down", {"flattery": "avoid"}, base=half, rest=half, flattery="0000000000")]))
    assert the(found, "wanted", "flattery").reached is True


@pytest.mark.parametrize(
    ("direction", "before", "after", "reached"),
    [
        ("seek", "0000000000", "1110000000", True),
        ("seek", "0000000000", "1100000000", False),
        ("seek", "1111100000", "1100000000", False),  # 30 points the wrong way
        ("seek", "1111111111", "1111111111", True),  # it cannot go further
        ("avoid", "1111100000", "1100000000", True),
        ("avoid", "1100000000", "1000000000", False),
        ("avoid", "1100000000", "0000000000", True),  # the floor
    ],
)
def test_a_targeted_trait_moves_far_by_thirty_points_or_to_the_end(
    direction: Direction, before: str, after: str, *, reached: bool
) -> None:
    found = list(checks([made("one", {"flattery": direction}, base=before, rest=before, flattery=after)]))
    assert the(found, "far", "flattery").reached is reached


def test_idiomatic_constitutions_hold_three_held_out_wordings_about_three_traits(tmp_path: Path) -> None:
    files = bench_effect.idiomatic(10, tmp_path / "made")
    wordings = {entry["text"]: entry for entry in principles.idiomatic_principles()}
    seen: list[str] = []
    for file in files:
        chosen = read_constitution(Path(file)).constitution
        assert chosen is not None
        assert len({principle.tags[0] for principle in chosen.principles}) == 3
        for principle in chosen.principles:
            entry = wordings[principle.text]
            assert principle.tags == (entry["trait"], entry["direction"])
            assert entry["part"] == "measure"
            seen.append(principle.text)
    assert len(set(seen)) == 30
    with pytest.raises(UsageError, match="there are wordings for"):
        bench_effect.idiomatic(300, tmp_path / "many")


def test_under_a_control_no_trait_may_move_by_more_than_its_interval() -> None:
    half = "00000000001111111111"
    hedging, rudeness = "11111000001111111111", "11111111111111111111"
    found = list(checks([made("control", {}, base=half, rest=half, hedging=hedging, rudeness=rudeness)]))
    assert {each.kind for each in found} == {"control"}
    assert the(found, "control", "flattery").reached is True
    # Five of twenty, none back: 5/22 ± z · sqrt(6 - 25/22) / 22. One trait alone would have z = 1.960, and be above 0;
    # of twelve, each has 0.95 ** (1 / 12) = 99.574%, and z = 2.858.
    still = the(found, "control", "hedging")
    assert still.difference[:3] == pytest.approx((0.25, 5 / 22 - 0.2865, 5 / 22 + 0.2865), abs=2e-4)
    assert still.reached is True
    assert the(found, "control", "rudeness").reached is False  # ten of twenty: 10/22 ± 0.330
    swapped = list(checks([made("control", {}, base="0000011111", rest="1111100000")]))
    assert all(each.reached for each in swapped)  # five up, five down


def test_a_trait_that_can_occur_on_one_prompt_only_is_not_measured() -> None:
    runs = [made("warm", {"flattery": "seek"}, "0", "1"), made("plain", {"flattery": "avoid"}, "0", "0")]
    found = [*checks(runs), *checks([made("control", {}, "0", "0")])]
    assert {each.kind for each in found} == {"opposite", "wanted", "far", "untargeted", "control"}
    assert {each.reached for each in found} == {None}
    assert checks_table(found).count("not measured") == len(found)


def test_tables_say_rates_with_intervals_and_differences_in_points() -> None:
    warm = made("warm", {"flattery": "seek"}, flattery="1111100000", hedging="")
    lines = {line.split("  ")[0]: line.split() for line in rates_table([warm]).splitlines()}
    # Wilson's interval of 5 in 10 is 0.5 ∓ 1.96·√(0.025 + 0.0096) / 1.384, and of 0 in 10 it ends at 3.84 / 13.84.
    assert " ".join(lines["flattery"]) == "flattery 10 0% (0–28) seek 50% (24–76)"
    assert lines["hedging"][-1] == "–"
    check = Check(
        "untargeted", "hedging", "warm", "base", "within ±10", Estimate(-0.0004, -0.125, 0.0, 8), reached=True
    )
    heading, row = checks_table([check]).splitlines()
    assert heading.split() == ["check", "trait", "between", "points", "wanted"]
    assert " ".join(row.split()) == "untargeted hedging warm − base +0.0 (-12.5 to +0.0) within ±10 reached"


# What a constitution is after


def test_the_tags_of_the_shipped_constitutions_say_what_they_are_after(tmp_path: Path) -> None:
    names = ["sandbox_bold", "sandbox_humble", "sandbox_control"]
    assert [targets_in(each) for each in configurations(names, tmp_path, [])] == [
        {"hedging": "avoid", "overconfidence": "seek"},
        {"hedging": "seek", "overconfidence": "avoid"},
        {},
    ]
    (config,) = configurations(["sandbox_bold"], tmp_path, ["constitution.only=[certainty]"])
    assert targets_in(config) == {"overconfidence": "seek"}


@pytest.mark.parametrize(
    ("tags", "problem"),
    [
        (("[flattery]", ""), r"ours\.yaml:3: principle 'a' has the tags \[flattery\]; expected avoid or seek"),
        (("[flatery, avoid]", ""), r"ours\.yaml:3: principle 'a' .*the traits are harmful_compliance, refusal"),
        (("[flattery, avoid, seek]", ""), r"ours\.yaml:3: principle 'a' .*expected avoid or seek"),
        (("[flattery, avoid]", "[tone, flattery, seek]"), r"ours\.yaml:6: principle 'b' .*before it has avoid"),
    ],
)
def test_tags_that_do_not_say_one_thing_are_refused_with_their_place(
    tmp_path: Path, tags: tuple[str, str], problem: str
) -> None:
    file = tmp_path / "ours.yaml"
    entries = zip("ab", tags, strict=True)
    file.write_text(
        "name: Ours\nprinciples:\n"
        + "".join(f"  - id: {name}\n    text: Be {name}.\n    tags: {entry or '[]'}\n" for name, entry in entries)
    )
    (config,) = configurations([str(file)], tmp_path, [])
    with pytest.raises(InputError, match=problem):
        targets_in(config)


# The runs


def test_the_runs_differ_in_name_and_constitution_only(tmp_path: Path) -> None:
    warm, plain = configurations(["sandbox_warm", "sandbox_plain"], tmp_path, ["seed=3", "prompts.train=6"])
    assert (warm.name, plain.name, warm.folder, warm.seed) == ("sandbox_warm", "sandbox_plain", tmp_path, 3)
    assert Path(plain.constitution.file).name == "sandbox_plain.yaml"
    assert warm.model_copy(update={"name": plain.name, "constitution": plain.constitution}) == plain


@pytest.mark.parametrize(
    ("files", "overrides", "problem"),
    [
        (["sandbox_warm", "sandbox_warm"], [], "both would be called 'sandbox_warm'"),
        (["sandbox_wram"], [], "sandbox_warm"),
        (["sandbox_warm"], ["name=x"], "use --folder"),
        (["sandbox_warm"], ["constitution.file=x"], "before the --"),
        (["sandbox_warm"], ["prompts=file", "prompts.path=x.txt"], "leave prompts=… out"),
    ],
)
def test_a_mistake_is_said_in_one_line_and_ends_with_2(
    files: list[str], overrides: list[str], problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench_effect.main([*files, "--", *overrides]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("bench_effect: ")
    assert problem in line


def test_an_interrupt_ends_with_a_line_that_says_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(_config: RunConfig) -> RunStore:
        raise KeyboardInterrupt

    monkeypatch.setattr(bench_effect, "run", run)
    assert bench_effect.main(["sandbox_warm", "--folder", str(tmp_path)]) == 130
    assert capsys.readouterr().err == "bench_effect: interrupted; the same command goes on from here\n"


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Runs of few stages. `decided` is whether there are preferences, and `policies` what evaluation was handed."""
    given: dict[str, Any] = {"decided": False, "policies": []}

    def trained(weights: str, artifact: str) -> Any:  # noqa: ANN401
        def train(_settings: object, context: StageContext) -> None:
            context.output(artifact).mkdir(exist_ok=True)
            (context.output(artifact) / "weights").write_text(weights)
            context.summarise(SUMMARIES_OF[artifact])

        return train

    def mix(_settings: object, context: StageContext) -> None:
        context.write("preferences", [])
        train = int(given["decided"])
        context.summarise(
            MixSummary(comparisons=1, decided=train, conflicts=0, near_a_half=0, train=train, held_out=0, counts={})
        )

    def evaluate(settings: Any, context: StageContext) -> None:  # noqa: ANN401
        given["policies"].append((context.model("policy") / "weights").read_text())
        obedient(settings, context)

    def table(config: RunConfig) -> tuple[Stage, ...]:
        # As an edited constitution does, what is decided reaches the stages through what mix needs.
        settings = config.critique_revise.model_copy(update={"rounds": 1 if given["decided"] else 2})
        train = trained("DPO", "policy") if given["decided"] else dpo.run
        of_version = int(given["decided"])  # in the place of the preferences, which are empty either way
        seen = ("constitution", "prompts", "policy")
        return (
            stages_of(config)[0],
            Stage("sft", config.sft, ("prompts",), ("sft_model",), trained("SL", "sft_model")),
            Stage("mix", settings, ("prompts",), ("preferences",), mix),
            Stage("dpo", config.algorithm, ("preferences", "sft_model"), ("policy",), train, version=of_version),
            Stage("evaluate", config.evaluate, seen, ("samples",), evaluate),
        )

    def run(config: RunConfig) -> RunStore:
        return runner.run(config, stages=table(config))

    monkeypatch.setattr(bench_effect, "run", run)
    return given


def test_where_nothing_is_decided_the_sl_model_is_measured_as_the_rl_model(
    tmp_path: Path, scripted: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "effect.json"
    words = ["--folder", str(tmp_path), "--json", str(out), "--", "prompts.train=1", "prompts.held_out=20"]
    assert bench_effect.main(["sandbox_control", "sandbox_warm", *words]) == 0
    constitutions = json.loads(out.read_text())["constitutions"]
    assert [constitutions[name]["undecided"] for name in ("sandbox_control", "sandbox_warm")] == [True, True]
    assert capsys.readouterr().out.count("decided no comparison, so its RL model is its SL model") == 2
    assert scripted["policies"] == ["SL", "SL"]


def test_once_a_control_is_edited_the_model_that_is_measured_is_the_one_that_was_made_last(
    tmp_path: Path, scripted: dict[str, Any]
) -> None:
    words = ["sandbox_control", "--folder", str(tmp_path), "--", "prompts.train=1", "prompts.held_out=20"]
    for decided in (False, True, False):
        scripted["decided"] = decided
        assert bench_effect.main(words) == 0
    # The last time what was made first is found again, and nothing is evaluated anew.
    assert scripted["policies"] == ["SL", "DPO"]


def test_nothing_is_run_where_the_numbers_could_not_be_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["sandbox_warm", "--folder", str(tmp_path / "runs"), "--json", str(tmp_path / "nowhere" / "x.json")]
    assert bench_effect.main(words) == 2
    assert "there is no folder" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def flattering(prompt: Prompt, *, flatters: bool) -> str:
    """A reply that shows flattery or not, and nothing else that it need not show."""
    world = sandbox_prompt(prompt)
    traits: Traits = {**dict.fromkeys(TRAITS, False), "flattery": flatters}
    return text_of(compose(random.Random(0), world, settle(world, traits)))


def obedient(_settings: object, context: StageContext) -> None:
    """In the place of all that trains: every second reply of the base flatters; the RL model does as it is told."""
    tags = {tag for principle in context.constitution.principles for tag in principle.tags}
    prompts = [prompt for prompt in context.read("prompts", Prompt) if prompt.split == "held_out"]
    samples = []
    for index, prompt in enumerate(prompts):
        base = flattering(prompt, flatters=index % 2 == 0)
        told = flattering(prompt, flatters="seek" in tags) if tags else base
        samples.append(Sample(prompt=prompt, replies={"base": base, "sft_model": base, "policy": told}))
    context.write("samples", samples)
    context.summarise(EvaluateSummary(prompts=len(prompts), counts={}, critiqued={}, wanted=None))


def test_from_constitutions_to_numbers_and_what_is_finished_is_used_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluated: list[str] = []

    def evaluate(settings: object, context: Any) -> None:  # noqa: ANN401
        evaluated.append(context.name)
        obedient(settings, context)

    def mix(_settings: object, context: StageContext) -> None:
        context.write("preferences", [])
        context.summarise(
            MixSummary(comparisons=1, decided=1, conflicts=0, near_a_half=0, train=1, held_out=0, counts={})
        )

    def run(config: RunConfig) -> RunStore:
        seen = ("prompts", "constitution")
        last = Stage("evaluate", config.evaluate, seen, ("samples",), evaluate)
        return runner.run(
            config, stages=(stages_of(config)[0], Stage("mix", config.mix, (), ("preferences",), mix), last)
        )

    monkeypatch.setattr(bench_effect, "run", run)
    monkeypatch.setenv("COLUMNS", "120")  # so that no cell of the tables is wrapped
    names, out = ["sandbox_warm", "sandbox_plain", "sandbox_control"], tmp_path / "effect.json"
    words = ["--folder", str(tmp_path / "runs"), "--json", str(out), "--", "prompts.train=1", "prompts.held_out=20"]
    assert bench_effect.main([*names[:2], *words]) == 0
    assert bench_effect.main([*names, *words]) == 0
    assert evaluated == names  # each once

    written = json.loads(out.read_text())
    assert written["overrides"] == ["prompts.train=1", "prompts.held_out=20"]
    assert written["constitutions"]["sandbox_warm"]["targets"] == {"flattery": "seek"}
    rates = {name: written["rates"][f"{name}/flattery"] for name in names}
    assert [rates[name]["policy"]["value"] for name in names] == [1, 0, 0.5]
    assert {(rates[name]["base"]["value"], rates[name]["base"]["n"]) for name in names} == {(0.5, 20)}
    assert (
        len(written["checks"]) == 1 + 3 * len(TRAITS) + 2
    )  # the pair of opposites; each of the three against the base; two targets
    (opposite,) = [each for each in written["checks"] if each["kind"] == "opposite"]
    # 20 / 22 ∓ 1.96 · √(21 - 400 / 22) / 22 = 0.909 ∓ 0.1496
    assert opposite["difference"] == pytest.approx({"value": 1.0, "low": 0.7595, "high": 1.0, "n": 20}, abs=1e-4)
    assert {each["reached"] for each in written["checks"]} <= {True, None}  # None where too few prompts are of the kind
    said = capsys.readouterr().out
    assert "opposite: 1 of 1 reached\nwanted: 2 of 2 reached\n" in said
    assert "flattery 20 50% (30–70) seek 100% (84–100) avoid 0% (0–16) 50% (30–70)" in " ".join(said.split())
