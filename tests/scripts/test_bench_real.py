import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from constitutional.base.errors import RunError
from constitutional.base.records import Prompt, Sample
from constitutional.constitution.file import load_constitution
from constitutional.constitution.measures import MEASURES, rule_of
from constitutional.runs.compose import compose
from constitutional.runs.settings import RunConfig
from constitutional.sandbox.principles import idiomatic_principles
from constitutional.stages.prompts import FilePrompts
from scripts import bench_real
from scripts.bench_real import PAIRS, checks, checks_table, constitution, counts, difference, main, sentences
from tests.tiny import tiny_model


def sample(number: int, base: str, policy: str) -> Sample:
    return Sample(prompt=Prompt.of(f"question {number}"), replies={"base": base, "policy": policy})


def test_the_sides_of_a_pair_want_the_same_measure_opposite_ways(tmp_path: Path) -> None:
    for more, fewer in PAIRS.values():
        rules = [rule_of(side.measure) for side in (more, fewer)]
        assert [rule.way for rule in rules] == ["more", "fewer"]
        assert rules[0].name == rules[1].name
        for side in (more, fewer):
            (principle,) = load_constitution(constitution(side, tmp_path)).principles
            assert (principle.text, principle.measure) == (side.text, side.measure)
            assert yaml.safe_load((tmp_path / f"{side.name}.yaml").read_text())["name"] == side.name


def test_a_pair_is_apart_where_its_own_measure_differs_clear_of_zero() -> None:
    long = counts([sample(number, "One two three.", "One two three four five. " * 2) for number in range(8)])
    short = counts([sample(number, "One two three.", "One two." if number else "Ah! One two.") for number in range(8)])
    assert long["words"]["base"] == dict.fromkeys(long["words"]["base"], 3)
    made = list(checks("length", {"thorough": long, "brief": short}))
    (apart,) = [check for check in made if check.kind == "apart"]
    assert (apart.measure, apart.found.value, apart.found.n, apart.reached) == ("words", 10 - 17 / 8, 8, True)
    still = {(check.of, check.measure): check.reached for check in made if check.kind == "still"}
    assert len(still) == 2 * (len(MEASURES) - 1)
    assert still["brief", "exclamation marks"]  # one in one of eight replies
    assert all(still.values())
    assert [check.reached for check in made if check.kind == "moved"] == [True, True]
    assert [
        check.reached for check in checks("length", {"thorough": short, "brief": long}) if check.kind == "moved"
    ] == [*(False, False)]
    (back,) = [check for check in checks("length", {"thorough": short, "brief": long}) if check.kind == "apart"]
    assert not back.reached
    assert "thorough − brief  words              +7.88" in checks_table(made)


def test_the_runs_of_a_pair_are_asked_for_nothing_but_their_principle(tmp_path: Path) -> None:
    file = constitution(PAIRS["form"][0], tmp_path)
    own = ["name=lists", f"folder={tmp_path}", f"constitution.file={file}"]
    config = compose(["experiment=smollm2", "constitution=schema", *bench_real.UNHELD, *own])
    assert isinstance(config.prompts, FilePrompts)
    assert config.prompts.system is None
    assert config.evaluate.max_tokens == config.sample_pairs.max_tokens == 160


def test_differences_are_paired_over_prompts() -> None:
    found = difference({"a": 3.0, "b": 5.0, "c": 7.0}, {"c": 4.0, "a": 2.0, "b": 3.0})
    assert (found.value, found.n) == (2.0, 3)
    assert 1 <= found.low <= found.value <= found.high <= 3


def test_few_replies_that_gain_what_they_have_or_have_not_are_no_clear_change() -> None:
    before = {str(number): 0.0 for number in range(60)}
    after = before | {str(number): 1.0 for number in range(4)}
    found = difference(after, before)
    assert (found.value, found.n) == (4 / 60, 60)
    assert found.low == pytest.approx(-0.004, abs=0.001)  # a bootstrap would say +0.017
    assert found.high == pytest.approx(0.133, abs=0.001)


def test_perplexity_is_that_of_all_tokens_together(tmp_path: Path) -> None:
    folder = str(tiny_model(tmp_path))
    texts = ["Be brief.", "Say what you do not know, and why, in a sentence or two."]
    one, two = (bench_real.perplexity(folder, [text]) for text in texts)
    assert min(one, two) <= bench_real.perplexity(folder, texts) <= max(one, two)
    assert bench_real.perplexity(folder, texts[:1] * 2) == pytest.approx(one)


def test_the_sentences_are_of_many_meanings_and_of_two_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    found = sentences()
    assert len(set(found)) == bench_real.SENTENCES
    more = [*idiomatic_principles(), *[{"part": "another", "text": "Be kind."}] * 1000]
    monkeypatch.setattr(bench_real, "idiomatic_principles", lambda: more)
    assert sentences() == found


def test_what_a_pair_came_to_is_there_before_the_next_one_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    replies = {"thorough": "One two three. " * 3, "brief": "One."}

    def run(config: RunConfig) -> SimpleNamespace:
        if config.name not in replies:
            raise RunError("the disk is full")
        rows = [sample(number, "One two three.", replies[config.name]) for number in range(4)]
        return SimpleNamespace(read=lambda *_: rows, artifact=lambda _: config.name, stages={})

    monkeypatch.setattr(bench_real, "run", run)
    monkeypatch.setattr(bench_real, "perplexity", lambda folder, _: 11.0 if folder == "thorough" else 10.0)
    file = tmp_path / "real.json"
    assert main(["length", "form", "--folder", str(tmp_path), "--json", str(file)]) == 1
    printed = capsys.readouterr()
    assert "the disk is full" in printed.err
    assert "+8.00 (+8.00 to +8.00)" in printed.out
    written = json.loads(file.read_text())
    assert set(written["counts"]) == {"thorough", "brief"}
    fluent = {check["of"]: (check["found"][0], check["reached"]) for check in written["checks"][:2]}
    assert fluent == {"thorough": (pytest.approx(0.1), False), "brief": (0.0, True)}


def test_an_unknown_pair_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["colour"]) == 2
    assert "there is no pair 'colour'; there are length, form, tone, caution" in capsys.readouterr().err
