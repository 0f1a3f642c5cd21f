"""What a run would cost, from a handful of items, held against what it then costs."""

import json
import re
from io import StringIO
from pathlib import Path

import pytest

from constitutional.base.errors import BudgetError, ModelError, RunError
from constitutional.base.progress import Progress
from constitutional.base.records import Message
from constitutional.cli import main as cli
from constitutional.engines.base import Completion, Request
from constitutional.engines.http import HttpEngine
from constitutional.engines.settings import HttpSettings
from constitutional.engines.spending import Calls
from constitutional.runs.compose import compose
from constitutional.runs.forecast import Forecast, Measured, as_table, forecast, online_replies, scaled
from constitutional.runs.scratch import UNASKED, StandIn, UnaskedEngine
from constitutional.runs.settings import RunConfig
from constitutional.stages.context import StageForecast
from tests.runs.test_budget import Priced, by_http
from tests.scripted_run import configured, constitution, go

SIZES = ["prompts.train=30", "prompts.held_out=12", "critique_revise.when_nothing_found=revise"]
ASKING = ("labeler_check", "critique_revise", "sample_pairs", "label", "evaluate")


def setting_up(folder: Path, *words: str) -> RunConfig:
    constitution(folder)
    return configured(folder, *by_http("labeler"), *SIZES, *words)


def expected(config: RunConfig, world: Priced, items: int = 4) -> Forecast:
    return forecast(config, items=items, opener=world.open, progress=Progress(StringIO()))


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["label.method=rationale"],  # whose replies cannot be read, so that one call is all
        ["label.method=votes", "label.votes=3"],
        ["evaluate.temperature=0", "label.principles=all"],
        ["panel.second.batch_size=3", "label.method=votes"],
        ["critique_revise.critique=false", "sample_pairs.samples=3", "evaluate.judged=7", "evaluate.critiqued=9"],
    ],
)
def test_the_forecast_is_what_the_run_then_asks(tmp_path: Path, words: list[str]) -> None:
    config, before, after = setting_up(tmp_path, *words), Priced(), Priced()
    told = expected(config, before).stages
    store, _ = go(config, after)
    for name in ASKING:
        calls = store.stages[name].calls
        assert told[name].calls == calls.answers, name
        held = told[name].held
        if held is not None:
            assert held == calls.reused, name
            assert told[name].prompt_tokens == pytest.approx(calls.prompt_tokens), name
            assert told[name].completion_tokens == pytest.approx(calls.completion_tokens), name
            assert told[name].cost == pytest.approx(calls.cost), name
    assert told["label"].cost > 0
    # Nothing is asked twice: of the stages before any training, the run asks what the handful has left.
    for name in ("labeler_check", "critique_revise"):
        entry = store.stages[name].calls
        assert entry.asked == entry.answers - (told[name].held or 0)


def test_evaluation_sets_are_in_the_forecast_and_their_answers_are_not_asked_again(tmp_path: Path) -> None:
    sets = [tmp_path / "hhh.jsonl", tmp_path / "xstest.csv"]
    pairs = ({"choices": [f"Yes {n}.", f"Never, {n}."], "labels": [1, 0]} for n in range(9))
    sets[0].write_text("".join(json.dumps({"input": f"Q{n}?", "targets": row}) + "\n" for n, row in enumerate(pairs)))
    asked = (f"{n},May I kill {n} processes?,homonyms,safe,processes,\n" for n in range(6))
    sets[1].write_text("id,prompt,type,label,focus,note\n" + "".join(asked))
    config = setting_up(tmp_path, f"evaluate.sets=[{sets[0]},{sets[1]}]", "evaluate.set_rows=7")
    (tmp_path / "without").mkdir()
    without = expected(setting_up(tmp_path / "without"), Priced()).stages["evaluate"]
    told = expected(config, Priced()).stages["evaluate"]
    # Three models as labelers on 7 pairs, in 2 orders; replies of three to 6 prompts, which the labeler judges.
    assert told.calls - without.calls == 3 * 7 * 2 + 3 * 6 * 2
    go(setting_up(tmp_path, f"evaluate.sets=[{sets[0]},{sets[1]}]", "evaluate.set_rows=7", "until=dpo"), Priced())
    known = expected(config, Priced()).stages["evaluate"]
    assert known.held is not None
    store, _ = go(config, Priced())
    calls = store.stages["evaluate"].calls
    assert (known.calls, known.held) == (calls.answers, calls.reused)


def test_a_dry_run_trains_nothing_and_leaves_nothing_but_the_forecast(tmp_path: Path) -> None:
    config, world = setting_up(tmp_path), Priced()
    expected(config, world)
    left = sorted(path.relative_to(tmp_path / "runs").as_posix() for path in (tmp_path / "runs").rglob("*"))
    assert [name for name in left if not name.startswith("journal")] == ["first", "first/forecast.json"]
    # 4 restatements, 4 items of a draft and two rounds, 4 × 2 samples, 4 pairs in 2 orders, 3 × 4 replies, and what the
    # labeler and the critic say of 2 of them each; the rest of 346 calls is the run's to ask.
    assert len(world.asked) < 100
    again = Priced()
    expected(config, again)
    assert again.asked == []


def test_what_the_journal_holds_is_exact_after_a_run_that_was_stopped(tmp_path: Path) -> None:
    config = setting_up(tmp_path)
    stopped = Priced()
    with pytest.raises(BudgetError):
        go(setting_up(tmp_path, "budget.max_calls=60"), stopped)
    row = expected(config, Priced()).stages["critique_revise"]
    rest = Priced()
    store, _ = go(configured(tmp_path, *by_http("labeler"), *SIZES, "until=critique_revise"), rest)
    calls = store.stages["critique_revise"].calls
    assert (row.calls, row.held) == (calls.answers, calls.reused)
    assert calls.reused > 50


def test_stages_that_are_done_cost_nothing_and_later_ones_know_the_models(tmp_path: Path) -> None:
    config = setting_up(tmp_path)
    first = expected(config, Priced()).stages
    go(setting_up(tmp_path, "until=sample_pairs"), Priced())
    second = expected(config, Priced()).stages
    assert all(second[name].done for name in ("labeler_check", "critique_revise", "sft", "sample_pairs"))
    assert not second["label"].done
    assert second["label"].held == 8  # the handful's 4 comparisons, in both orders
    assert second["evaluate"].held is None
    store, _ = go(config, Priced())
    assert store.stages["label"].calls.answers == second["label"].calls
    page = store.artifact("report").read_text().partition("<h3>Cost</h3>")[2].partition("</section>")[0]
    cells = [re.findall(r"<t[hd][^>]*>([^<]*)</t[hd]>", row) for row in page.split("<tr>")[1:]]
    table = {row[0].lower(): dict(zip(cells[0], row, strict=True)) for row in cells[1:]}
    # What was forecast at first stays for the stages that were done at the second time.
    assert int(table["critique revise"]["Calls, forecast"]) == first["critique_revise"].calls
    assert table["critique revise"]["Calls"] == table["critique revise"]["Calls, forecast"]
    assert table["label"]["Cost"] != ""


def test_a_second_forecast_whose_handful_the_journal_answers_keeps_the_time_of_a_call(tmp_path: Path) -> None:
    config = setting_up(tmp_path)
    first = expected(config, Priced()).stages["critique_revise"]
    again = Priced()
    second = expected(config, again).stages["critique_revise"]
    assert again.asked == []
    assert first.seconds is not None
    assert first.held is not None
    assert second.held is not None
    pace = first.seconds / (first.calls - first.held)
    assert second.seconds == pytest.approx(pace * (second.calls - second.held))


def test_a_forecast_beyond_the_budget_says_so(tmp_path: Path) -> None:
    words = ["labeler.budget.max_calls=50", "budget.max_calls=100000", "budget.max_cost=0.002"]
    told = expected(setting_up(tmp_path, *words), Priced())
    assert len(told.exceeded) == 2
    assert any("labeler.budget.max_calls=50" in line for line in told.exceeded)
    assert any("budget.max_cost=0.002" in line for line in told.exceeded)
    assert "warning: " in as_table(told)


@pytest.mark.parametrize("words", [[], ["panel.second=local", "panel.second.revision=two"]])
def test_a_labeler_that_the_run_stops_at_is_a_warning_and_the_whole_is_forecast(
    tmp_path: Path, words: list[str]
) -> None:
    class Wrong(Priced):
        """Prefers the worse response in both orders."""

        def answer(self, request: Request, model: str) -> Completion:
            answer = super().answer(request, model)
            shown = " ".join(message.content for message in request.messages)
            if not request.choices or "Soup." not in shown:
                return answer
            return answer._replace(choice_logprobs=(-2.5, -0.1) if "(A) Soup." in shown else (-0.1, -2.5))

    config = setting_up(tmp_path, *words)
    constitution(
        tmp_path,
        calm="Stay calm.\n    examples:\n      - {prompt: What is there?, better: Soup., worse: Shut up!}",
    )
    world = Wrong()
    told = expected(config, world)
    (stop,) = told.stops
    assert "the run will stop" in stop
    assert "label.max_canary_failures=" in stop
    assert "warning: the run will stop" in as_table(told)
    assert told.stages["label"].calls > told.stages["labeler_check"].calls > 0
    assert len(world.asked) < told.stages["evaluate"].calls + 100
    with pytest.raises(RunError, match="comparisons whose answer is plain") as stopped:
        go(config, Wrong())
    assert str(stopped.value) in stop
    allowed = configured(tmp_path, *by_http("labeler"), *SIZES, *words, stop.split()[-1])
    assert expected(allowed, world).stops == ()


def test_an_error_before_any_training_is_told(tmp_path: Path) -> None:
    class Failing(Priced):
        def answer(self, request: Request, model: str) -> Completion:
            if len(request.messages) == 1 and not request.choices:
                return Completion("", "error", reason="no")
            return super().answer(request, model)

    with pytest.raises(RunError, match="drafts"):
        expected(setting_up(tmp_path), Failing())


def test_numbers_are_scaled_by_hand() -> None:
    asked = Calls(asked=3, prompt_tokens=30, completion_tokens=6, cost=0.3)
    saved = Calls(reused=1, prompt_tokens=10, completion_tokens=2, cost=0.1)
    whole = scaled(Measured(asked, saved, 2.5))
    assert (whole.asked, whole.prompt_tokens, whole.completion_tokens) == (10, 100, 20)
    assert whole.cost == pytest.approx(1.0)
    told = as_table(Forecast({"label": StageForecast(stage="label", calls=1200, prompt_tokens=5, seconds=61.0)}, ()))
    assert re.search(r"label +1,200 +\? +5 +– +– +1:01", told)


def test_replies_of_an_online_training_are_counted_as_it_draws_them() -> None:
    grpo = compose(["algorithm=grpo_direct", "algorithm.epochs=1", "algorithm.num_generations=4"]).algorithm
    step = getattr(grpo, "prompts_per_step", 0)
    assert online_replies(grpo, 3 * step + 1) == 3 * step * 4
    ppo = compose(["algorithm=ppo"]).algorithm
    assert online_replies(ppo, 10) >= getattr(ppo, "episodes", 0) > 0


def test_the_command_prints_the_table_and_makes_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    constitution(tmp_path)
    words = ["run", f"folder={tmp_path}/runs", f"constitution.file={tmp_path}/ours.yaml", "until=critique_revise"]
    words += ["prompts.train=4", "prompts.held_out=2"]
    assert cli.main([*words, "--dry-run", "--items", "2"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"critique_revise +\d+ +\d+ +[\d,]+ +[\d,]+", out)
    assert not (tmp_path / "runs" / "first" / "manifest.json").exists()
    assert cli.main([*words[:-3], *words[-2:], "until=forecast", "--items", "1"]) == 2
    assert "2 or more" in capsys.readouterr().err


def test_the_forecast_of_a_sweeps_job_lies_in_the_jobs_own_folder(tmp_path: Path) -> None:
    constitution(tmp_path)
    words = ["run", "-m", f"folder={tmp_path}/runs", f"constitution.file={tmp_path}/ours.yaml", "until=prompts"]
    assert cli.main([*words, "prompts.train=4", "prompts.held_out=2", "seed=1,2", "--dry-run"]) == 0
    places = sorted(path.parent.name for path in tmp_path.rglob("forecast.json"))
    assert places == ["first-seed=1", "first-seed=2"]


def test_what_the_labeler_does_for_an_online_training_is_forecast(tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("".join(f"Question {number}?\n" for number in range(42)))
    file = ["prompts=file", f"prompts.path={tmp_path}/prompts.txt", "prompts.held_out=12"]
    words = [*file, "algorithm.epochs=1", "algorithm.num_generations=4", "evaluate.gold_replies=30"]
    base = ["critique_revise=schema", "sft=schema", "sample_pairs=schema", "mix=schema", "label=schema"]
    base += ["label.method=logprobs", "critique_revise.rounds=0", f"folder={tmp_path}/runs"]
    constitution(tmp_path)
    base += [f"constitution.file={tmp_path}/ours.yaml", *by_http("labeler")]

    class Scoring(Priced):
        def answer(self, request: Request, model: str) -> Completion:
            scored = not request.choices and "Score" in request.messages[-1].content
            return Completion("Fine. Score: 7", "stop", prompt_tokens=10) if scored else super().answer(request, model)

    direct = compose([*base, "algorithm=grpo_direct", *words])
    told = expected(direct, Scoring()).stages
    # Every reply is reasoned about and scored by all four principles.
    replies = online_replies(direct.algorithm, 30)
    assert replies > 0
    assert told["grpo"].calls == replies * 4 * 2
    assert told["grpo"].trains
    assert told["grpo"].cost > 0
    without = told["evaluate"].calls
    other = compose([*base, "algorithm=grpo", *words, "name=other"])
    told = expected(other, Scoring()).stages
    assert told["grpo"].calls == 0
    assert told["evaluate"].calls == without + 30 * 4 * 2  # the gold score of 30 replies


def test_what_stands_for_a_server_contacts_none_before_it_is_asked() -> None:
    server = HttpEngine(HttpSettings(url="http://nowhere.invalid/v1", model="m"))
    request = Request((Message("user", "Hello?"),))
    unasked, stand_in = UnaskedEngine(server), StandIn(server, 1)
    assert unasked.complete([request]) == [UNASKED]
    assert list(unasked.requests.values()) == [request]
    assert unasked.identity == server.identity != stand_in.identity
    with pytest.raises(ModelError, match="cannot be reached"):
        _ = stand_in.abilities
