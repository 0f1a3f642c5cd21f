"""Requests and answers by files."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from constitutional.base.errors import BudgetError, ConfigurationError, InputError, UsageError
from constitutional.base.records import Message, Revision
from constitutional.cli import main as cli
from constitutional.engines.base import Completion, Engine, Request, Sampling
from constitutional.engines.journal import Journal, JournalEngine
from constitutional.engines.models import LazyEngine, Models, engine_of
from constitutional.engines.settings import Budget, EngineSettings, HttpSettings
from constitutional.engines.spending import Account, Ledger
from constitutional.runs.batch import (
    Exported,
    OfflineServer,
    body_of,
    completion_of,
    configuration,
    divided,
    export,
    import_answers,
    offline,
    request_lines,
)
from constitutional.runs.settings import RunConfig
from tests.engines.faulty_server import chat, serving, tops
from tests.runs.test_budget import Priced, by_http
from tests.scripted_run import configured, constitution, go

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
HTTP = HttpSettings(url="http://nowhere.invalid/v1", model="judge")
USAGE = {"prompt_tokens": 10, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 4}}


def request(text: str = "Hello?", **changes: object) -> Request:
    return Request((Message("user", text),))._replace(**changes)  # type: ignore[arg-type] # fields by name


def replied(body: dict[str, Any], text: str = "") -> dict[str, Any]:
    """What a model's server makes of a request's body: it says that all drafts violate, and prefers A."""
    last = body["messages"][-1]["content"]
    said = text or ("I looked at it. So it violates the principle." if "Judge your last" in last else "Better: A")
    choice: dict[str, Any] = {"message": {"role": "assistant", "content": said}, "finish_reason": "stop"}
    if body.get("logprobs"):
        top = [{"token": " A", "logprob": -0.5}, {"token": " B", "logprob": -1.5}]
        choice["logprobs"] = {"content": [{"token": " A", "logprob": -0.5, "top_logprobs": top}]}
    return {"model": body["model"], "choices": [choice], "usage": USAGE}


def answers_of(exported: Exported, reply: Callable[[dict[str, Any]], dict[str, Any]] = replied) -> Path:
    """All answers to exported requests, in another order, as the service gives them."""
    asked = [json.loads(line) for file in exported.files for line in file.read_text().splitlines()]
    rows = [
        {"id": f"r{number}", "custom_id": line["custom_id"], "error": None}
        | {"response": {"status_code": 200, "request_id": "x", "body": reply(line["body"])}}
        for number, line in enumerate(asked)
    ]
    random.Random(0).shuffle(rows)
    file = next(iter(exported.files)).parent / "answers.jsonl"
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return file


class Offline(Priced):
    def open(self, settings: EngineSettings) -> Engine:  # type: ignore[override]
        return OfflineServer(settings) if isinstance(settings, HttpSettings) else super().open(settings)


def batch_run(folder: Path, *words: str) -> RunConfig:
    constitution(folder)
    roles = [*by_http("generator"), *by_http("critic"), *by_http("labeler")]
    return configured(folder, *roles, "labeler.structured=no", "label.method=votes", "label.votes=2", *words)


def test_rounds_of_export_and_import_lead_to_what_the_run_then_finds(tmp_path: Path) -> None:
    config, counts, remaining = batch_run(tmp_path, "until=critique_revise"), list[dict[str, int]](), list[int]()
    while (exported := export(config)).files:
        counts.append({role: len(requests) for role, requests in exported.pending.requests.items() if requests})
        remaining.append(exported.pending.rounds)
        result = import_answers(config, [answers_of(exported)])
        assert (result.repeated, result.failed, result.unknown, result.unreadable) == (0, [], [], [])
        assert result.kept == sum(exported.files.values())
    # 4 restatements and 8 drafts; then a critique and a revision of each draft, twice.
    assert counts == [{"critic": 4, "generator": 8}, *[{"critic": 8}] * 4]
    assert remaining == [4, 3, 2, 1, 0]
    assert exported.pending.reached == ""
    store, _ = go(config, Offline())
    assert all(entry.calls.asked == 0 for entry in store.stages.values())
    assert len(store.read("revisions", Revision)) == 8
    assert all(len(row.steps) == 2 for row in store.read("revisions", Revision))
    with Journal(config.journal_file) as journal:
        spent = journal.spent("first")
    assert (spent["generator"].asked, spent["critic"].asked) == (8, 36)  # it was paid, by the run
    assert spent["generator"].cost == pytest.approx(8 * (10 * 1 + 2 * 10) / 1e6)


def test_bad_lines_are_told_and_the_others_are_kept_and_it_can_be_repeated(tmp_path: Path) -> None:
    config = batch_run(tmp_path, "until=critique_revise")
    exported = export(config)
    file = answers_of(exported)
    lines = file.read_text().splitlines()
    assert len(lines) == 12
    refused, expired = json.loads(lines[1]), json.loads(lines[2])
    refused["response"] = {"status_code": 500, "body": {"error": {"message": "it broke"}}}
    expired |= {"response": None, "error": {"code": "batch_expired", "message": "too late"}}
    stranger = json.loads(lines[3]) | {"custom_id": "f" * 64}
    bad = [
        lines[0][:-20],
        json.dumps(refused),
        json.dumps(expired),
        json.dumps(stranger),
        "",
        "[1]",
        '{"custom_id": "x"}',
    ]
    file.write_text("\n".join([*bad, *lines[4:], lines[4]]))
    result = import_answers(config, [file])
    assert (result.kept, result.repeated) == (8, 1)
    assert [line.partition(": ")[0] for line in result.unreadable] == [f"{file}:1", f"{file}:6", f"{file}:7"]
    assert [line.partition(": ")[0] for line in result.failed] == [f"{file}:2", f"{file}:3"]
    assert "it broke" in result.failed[0]
    assert "too late" in result.failed[1]
    assert [line.partition(": ")[0] for line in result.unknown] == [f"{file}:4"]
    again = import_answers(config, [file])
    assert (again.kept, again.repeated, len(again.failed)) == (0, 9, 2)
    # What failed is exported again, beside what comes next.
    missing = {json.loads(line)["custom_id"] for path in export(config).files for line in path.read_text().splitlines()}
    assert {refused["custom_id"], expired["custom_id"]} <= missing
    file.write_text("\n".join(lines))
    assert import_answers(config, [file]).kept == 4


def test_a_later_stage_is_exported_once_those_before_it_are_done(tmp_path: Path) -> None:
    constitution(tmp_path)
    words = [*by_http("labeler", "structured=no"), "label.method=votes", "label.votes=2"]
    go(configured(tmp_path, *words, "until=sample_pairs"), Offline())
    config = configured(tmp_path, *words, "until=label")
    exported = export(config, Offline().open)
    assert sum(exported.files.values()) == 8 * 2 * 2  # pairs, orders, votes
    assert exported.pending.rounds == 0
    import_answers(config, [answers_of(exported)], Offline().open)
    done, _ = go(config, Offline())
    assert done.stages["label"].calls.asked == 0
    assert done.stages["label"].calls.reused == 32


def test_models_that_no_server_has_are_asked_at_once(tmp_path: Path) -> None:
    constitution(tmp_path)
    config = configured(tmp_path, *by_http("critic"), "until=critique_revise")
    world = Offline()
    exported = export(config, world.open)
    assert world.counts == {"sandbox": 8}  # the drafts
    assert exported.pending.requests.keys() == {"critic"}
    assert sum(exported.files.values()) == 4 + 8  # restatements, and the first critiques
    assert exported.pending.rounds == 3
    again = Offline()
    assert import_answers(config, [answers_of(exported)], again.open).kept == 12
    assert again.counts == {}


def test_a_budget_that_is_reached_stops_no_export(tmp_path: Path) -> None:
    exported = export(batch_run(tmp_path, "until=critique_revise"))
    import_answers(batch_run(tmp_path, "until=critique_revise"), [answers_of(exported)])
    reached = batch_run(tmp_path, "until=critique_revise", "budget.max_calls=12")
    assert sum(export(reached).files.values()) == 8


def test_choices_are_asked_by_the_likeliest_tokens(tmp_path: Path) -> None:
    constitution(tmp_path)
    able = ("logprobs=yes", "prefill=yes")
    words = [*by_http("labeler", *able), "label.method=logprobs"]
    go(configured(tmp_path, *words, "until=sample_pairs"), Offline())
    config = configured(tmp_path, *words, "until=label")
    exported = export(config, Offline().open)
    assert sum(exported.files.values()) == 8 * 2
    body = json.loads(next(iter(exported.files)).read_text().splitlines()[0])["body"]
    assert (body["logprobs"], body["temperature"], body["model"]) == (True, 0.0, "judge")
    import_answers(config, [answers_of(exported)], Offline().open)
    done, _ = go(config, Offline())
    assert done.stages["label"].calls.asked == 0


def test_a_method_that_needs_what_no_server_was_asked_for_is_refused(tmp_path: Path) -> None:
    constitution(tmp_path)
    judged = [*by_http("labeler"), "label.method=logprobs"]
    with pytest.raises(ConfigurationError, match=r"type labeler.logprobs=yes labeler.prefill=yes, or no"):
        export(configured(tmp_path, *judged))
    for lacking in ("labeler.prefill=no", "labeler.logprobs=no"):  # then the other does not matter, but JSON does
        with pytest.raises(ConfigurationError, match=r"type labeler.structured=yes, or no"):
            export(configured(tmp_path, *judged, lacking))
    example = next(line for line in README.splitlines() if line.startswith("    constitutional batch export"))
    words = [word for word in example.partition("#")[0].split() if word.startswith("labeler.")]
    with offline(configured(tmp_path, *judged, *words)):
        pass  # what the README types is enough


def test_an_export_that_no_server_can_answer_is_refused_before_anything_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["batch", "export", "name=bat", "until=label"]) == 2
    assert "runs/first name=bat" in capsys.readouterr().err
    assert cli.main(["batch", "export", "runs/bat", "until=label"]) == 2
    told = capsys.readouterr().err
    assert "runs/bat holds no run" in told
    assert "labeler=http" in told
    assert list(tmp_path.iterdir()) == []
    constitution(tmp_path)
    config = configured(tmp_path)
    go(config.model_copy(update={"until": "prompts"}), Offline())
    assert cli.main(["batch", "export", str(config.run_folder)]) == 2
    assert "no role is played by a server" in capsys.readouterr().err


def test_a_folder_whose_name_is_like_a_setting_is_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert configuration("runs/seeds/seed=0", []).run_folder == tmp_path / "runs/seeds/seed=0"
    with pytest.raises(UsageError, match="folder before it"):
        configuration("prompts.path=data/mine.txt", [])


def test_a_body_and_its_reply_by_hand() -> None:
    asked = request(sampling=Sampling(0.5, 0.9, 64, ("END",)), seed=7)
    body = body_of(HTTP, asked)
    assert body["messages"] == [{"role": "user", "content": "Hello?"}]
    assert (body["temperature"], body["top_p"], body["max_tokens"], body["stop"]) == (0.5, 0.9, 64, ["END"])
    reply = completion_of(HTTP, asked, 200, replied(body, "Yes. END of it"))
    assert reply == Completion("Yes. ", "stop", prompt_tokens=10, completion_tokens=2, cached_tokens=4)
    choices = request(choices=(" A", " B"))
    scored = completion_of(HTTP, choices, 200, replied(body_of(HTTP, choices)))
    assert scored.finish == "choices"
    assert scored.choice_logprobs == pytest.approx((-0.5, -1.5), abs=1e-6)
    assert scored.prompt_tokens == 10
    for status, wrong in ((200, {}), (200, "text"), (400, {"error": {"message": "no"}}), (200, {"choices": [{}]})):
        assert completion_of(HTTP, asked, status, wrong).finish == "error"
    other = replied(body) | {"model": "somebody-else"}
    assert completion_of(HTTP, asked, 200, other).finish == "error"


def test_files_are_divided_by_lines_and_bytes() -> None:
    lines = [b"x" * 9 + b"\n"] * 7
    assert [len(part) for part in divided(lines, most_lines=3)] == [3, 3, 1]
    assert [len(part) for part in divided(lines, most_bytes=25)] == [2, 2, 2, 1]
    assert list(divided([])) == []
    line = json.loads(next(iter(request_lines(HTTP, {"k" * 64: request()}))))
    assert (line["custom_id"], line["method"], line["url"]) == ("k" * 64, "POST", "/v1/chat/completions")


def test_a_runs_own_configuration_is_taken_with_single_settings_changed(tmp_path: Path) -> None:
    config = batch_run(tmp_path)
    export(config)
    folder = str(config.run_folder)
    again = configuration(folder, ["until=label", "labeler.revision=two"])
    assert (again.until, getattr(again.labeler, "revision", "")) == ("label", "two")
    with pytest.raises(UsageError, match="label=votes"):
        configuration(folder, ["label=votes"])
    with pytest.raises(UsageError, match="no run and no batch"):
        configuration(str(tmp_path / "runs" / "nobody"), [], exported=True)
    with pytest.raises(InputError, match=r"nothing\.jsonl"):
        import_answers(config, [tmp_path / "nothing.jsonl"])


def test_the_commands_say_what_to_do_next(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = batch_run(tmp_path, "until=critique_revise")
    exported = export(config)
    folder = str(config.run_folder)
    capsys.readouterr()
    assert cli.main(["batch", "export", folder, "until=critique_revise"]) == 0
    out = capsys.readouterr().out
    assert all(str(file) in out for file in exported.files)
    assert "4 more rounds" in out
    answers = answers_of(exported)
    assert cli.main(["batch", "import", folder, str(answers)]) == 0
    assert "12 imported" in capsys.readouterr().out
    again = export(configuration(folder, ["until=critique_revise"]))
    requests = [file for file in answers.parent.glob("*.jsonl") if file != answers]
    assert sorted(requests) == sorted(again.files)  # so that nobody uploads what is answered
    assert {file.name for file in exported.files} <= {file.name for file in (answers.parent / "before").iterdir()}
    assert configuration(folder, (), exported=True).until == "critique_revise"
    assert configuration(folder, ()).until is None
    capsys.readouterr()
    answers.write_text("{}")
    assert cli.main(["batch", "import", folder, str(answers)]) == 1
    assert f"{answers}:1: " in capsys.readouterr().err


@pytest.mark.parametrize(
    "asked",
    [
        request(sampling=Sampling(0.5, 0.9, 64, ("END",)), seed=7),
        request(sampling=Sampling(0.0)),
        Request((Message("system", "Be kind."), Message("user", "Hi"), Message("assistant", "I")), seed=3),
        request(choices=(" A", " B")),
        Request((Message("user", "Which?"), Message("assistant", "Better:")), choices=(" A", " B")),
        Request((Message("user", "Which?"), Message("assistant", "")), choices=("A", "B")),
    ],
)
def test_a_file_asks_what_the_engine_asks_and_its_reply_means_the_same(asked: Request) -> None:
    logprobs = tops({" A": -0.5, " B": -1.5})
    with serving(lambda body, _: chat("So I do.", logprobs=logprobs if body.get("logprobs") else None)) as server:
        able: dict[str, Any] = dict.fromkeys(("logprobs", "prefill", "structured"), "yes")
        settings = HttpSettings(url=server.url, model="mock", extra={"reasoning_effort": "low"}, **able)
        (completion,) = engine_of(settings, Models()).complete([asked])
        (sent,) = server.asked
    assert body_of(settings, asked) == sent
    body: dict[str, Any] = {"model": "mock", "choices": [{"message": {"content": "So I do."}, "finish_reason": "stop"}]}
    if asked.choices:
        body["choices"][0]["logprobs"] = logprobs
    told = completion._replace(prompt_tokens=0, completion_tokens=0, cached_tokens=0)
    assert completion_of(settings, asked, 200, body) == told


def test_a_budget_holds_for_a_server(tmp_path: Path) -> None:
    with serving(lambda _, number: chat(f"Reply {number}", after_s=0.01)) as server:
        settings = HttpSettings(url=server.url, model="mock", logprobs="no", prefill="no", structured="no")
        with Journal(tmp_path / "journal.sqlite") as journal:
            ledger = Ledger("first", {}, {"labeler": Budget(max_calls=10)})
            engine = JournalEngine(engine_of(settings, Models()), journal, account=Account(ledger, "labeler"))
            with pytest.raises(BudgetError):
                engine.complete([request(str(number)) for number in range(40)])
            assert server.good == 10 == journal.spent("first")["labeler"].asked


def test_models_that_an_export_loads_are_released_at_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    released: list[Models] = []

    def release(models: Models) -> None:
        released.append(models)

    monkeypatch.setattr(Models, "release", release)
    constitution(tmp_path)
    with offline(configured(tmp_path, *by_http("labeler", "logprobs=yes", "prefill=yes"))) as run_context:
        model = run_context.opened(run_context.given("base"))
        assert isinstance(model, LazyEngine)
        assert released == []
    assert model._models in released
