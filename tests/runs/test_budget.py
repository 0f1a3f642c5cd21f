"""What a run costs: counted, and bounded."""

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from constitutional.base.errors import BudgetError, ConfigurationError
from constitutional.cli import main as cli
from constitutional.engines.base import Completion, Request
from constitutional.engines.journal import Journal
from constitutional.engines.scripted import ScriptedEngine
from constitutional.engines.settings import EngineSettings, HttpSettings, ModelSettings
from constitutional.engines.spending import Calls
from constitutional.runs.folder import RunStore
from constitutional.runs.manifest import ENTRY, StageEntry, read_checked, write_checked
from constitutional.runs.runner import load_run, run
from constitutional.runs.settings import RunConfig
from constitutional.runs.status import describe
from tests.scripted_run import World, configured, constitution, go, rows

HTTP = ("schema_http", "url=http://nowhere.invalid/v1", "model=judge", "prices.input=1", "prices.output=10")


def by_http(role: str, *more: str) -> list[str]:
    """Overrides that give a role a server, which no test contacts."""
    kind, *settings = HTTP
    return [f"{role}={kind}", *(f"{role}.{setting}" for setting in (*settings, *more))]


@dataclass
class Priced(World):
    """Scripted models whose completions tell tokens: ten read and two written, of which four were read before."""

    counts: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__init__()

    def open(self, settings: EngineSettings) -> ScriptedEngine:
        if isinstance(settings, ModelSettings):
            return super().open(settings)
        name = settings.model if isinstance(settings, HttpSettings) else settings.kind
        return ScriptedEngine(lambda request: self.answer(request, name), name)

    def answer(self, request: Request, model: str) -> Completion:
        self.counts[model] = self.counts.get(model, 0) + 1
        return super().answer(request, model)._replace(prompt_tokens=10, completion_tokens=2, cached_tokens=4)


def test_a_run_counts_calls_tokens_and_cost_by_role(tmp_path: Path) -> None:
    constitution(tmp_path)
    config, world = configured(tmp_path, *by_http("labeler")), Priced()
    store, said = go(config, world)
    everything = Calls.sum(entry.calls for entry in store.stages.values())
    asked = len(world.asked)
    assert (everything.asked, everything.prompt_tokens, everything.completion_tokens) == (asked, 10 * asked, 2 * asked)
    judged = world.counts["judge"]
    assert everything.cost == pytest.approx(judged * (10 * 1 + 2 * 10) / 1e6)  # the other models have no prices
    roles = store.stages["evaluate"].calls.by_role
    assert roles.keys() == {"base", "sft_model", "policy", "labeler", "critic"}
    assert [roles[role].asked for role in ("base", "sft_model", "policy")] == [4, 4, 4]  # a reply to each prompt
    assert roles["critic"].cost == 0 < roles["labeler"].cost
    labelled = next(line for line in said if line.startswith("05 label: done"))
    tokens = store.stages["label"].calls.tokens
    assert f"{10 * tokens // 12:,} tokens read (40% cached), {2 * tokens // 12:,} written, cost " in labelled
    assert f"{10 * asked:,} tokens read" in said[-1]
    assert "cost" in said[-1]
    with Journal(config.journal_file) as journal:
        spent = journal.spent("first")
    assert sum(role.asked for role in spent.values()) == asked
    page = store.artifact("report").read_text()
    assert f"<td>{everything.prompt_tokens:,}</td>" in page.partition("<h3>Cost</h3>")[2]


def test_an_entry_of_before_tokens_were_counted_is_read(tmp_path: Path) -> None:
    constitution(tmp_path)
    store, _ = go(configured(tmp_path, "until=labeler_check"), World())
    path = store.stage_folder("labeler_check") / ENTRY
    entry = read_checked(path, StageEntry, "")

    class OldEntry(StageEntry):
        calls: dict[str, int]  # type: ignore[assignment]

    write_checked(path, OldEntry.model_validate({**entry.model_dump(), "calls": {"asked": 3, "reused": 1}}))
    assert load_run(store.folder).stages["labeler_check"].calls == Calls(asked=3, reused=1)


def folder_of(config: RunConfig) -> RunStore:
    return RunStore.load(config.run_folder)


@pytest.mark.parametrize("key", ["labeler.budget", "budget"])
def test_a_run_stops_at_its_budget_and_goes_on_with_a_higher_one(tmp_path: Path, key: str) -> None:
    (tmp_path / "whole").mkdir()
    constitution(tmp_path)
    constitution(tmp_path / "whole")
    whole = Priced()
    unbroken, _ = go(configured(tmp_path / "whole", *by_http("labeler")), whole)
    asked, judged = 0, 0
    for most in (7, 7, 20):
        world = Priced()
        config = configured(tmp_path, *by_http("labeler"), f"{key}.max_calls={most}")
        with pytest.raises(BudgetError, match=rf"{key}\.max_calls={most} is reached.*{key}\.max_calls={2 * most}"):
            go(config, world)
        asked, judged = asked + len(world.asked), judged + world.counts.get("judge", 0)
        assert (asked if key == "budget" else judged) == most  # a restart does not begin to count anew
        assert "failed" not in {line.state for line in describe(folder_of(config))}
    last = Priced()
    store, _ = go(configured(tmp_path, *by_http("labeler"), f"{key}.max_calls=100000"), last)
    assert asked + len(last.asked) == len(whole.asked)  # nothing is paid twice
    assert rows(store.folder) == rows(unbroken.folder)


def test_a_budget_changes_no_stage(tmp_path: Path) -> None:
    constitution(tmp_path)
    go(configured(tmp_path, *by_http("labeler")), Priced())
    more = ["labeler.budget.max_calls=9", "budget.max_cost=3", "labeler.prices.cached=0.1"]
    world = Priced()
    _, said = go(configured(tmp_path, *by_http("labeler"), *more), world)
    assert world.asked == []  # and what is there already costs nothing
    assert [line.split(":")[0] for line in said if ": running" in line] in ([], ["10 report"])


@pytest.mark.parametrize(
    ("words", "advice"),
    [
        (["budget.max_cost=1"], r"labeler\.prices\.input="),
        ([*by_http("labeler"), "critic=schema_vllm", "critic.budget.max_cost=1"], r"critic\.prices\.input="),
    ],
)
def test_a_budget_of_cost_without_prices_is_refused(tmp_path: Path, words: list[str], advice: str) -> None:
    constitution(tmp_path)

    with pytest.raises(ConfigurationError, match=advice):
        go(configured(tmp_path, *words), Priced())


def test_a_budget_of_tokens_is_refused_where_nobody_counts_them(tmp_path: Path) -> None:
    constitution(tmp_path)
    (tmp_path / "mine.py").write_text("def answer(request):\n    return 'Better: A'\n")
    words = ["labeler=scripted", f"labeler.function={tmp_path}/mine.py:answer", "label.method=votes"]
    config = configured(tmp_path, *words, "labeler.budget.max_tokens=10")
    with pytest.raises(ConfigurationError, match=r"labeler\.budget\.max_calls="):
        run(config)


def test_the_command_stops_with_3_and_a_line_that_says_what_to_type(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "ours.yaml").write_text(
        "name: Ours\nprinciples:\n  - id: calm\n    text: Stay calm.\n    examples:\n"
        "      - {prompt: Hi, better: Hello., worse: GO AWAY!}\n"
    )
    (tmp_path / "mine.py").write_text("def answer(request):\n    return 'I looked at both. Better: A'\n")
    words = ["run", f"folder={tmp_path}/runs", f"constitution.file={tmp_path}/ours.yaml", "until=labeler_check"]
    words += ["labeler=scripted", f"labeler.function={tmp_path}/mine.py:answer", "label.method=votes", "label.votes=2"]
    words += ["label.max_canary_failures=1"]
    assert cli.main([*words, "labeler.budget.max_calls=3"]) == 3
    error = capsys.readouterr().err
    assert "labeler.budget.max_calls=6" in error
    assert "Traceback" not in error
    assert cli.main([*words, "labeler.budget.max_calls=100"]) == 0
