import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from constitutional.base.errors import BudgetError, ModelError, RunError
from constitutional.base.records import Message
from constitutional.engines.base import Completion, Request, Ticket
from constitutional.engines.journal import Journal, JournalEngine
from constitutional.engines.scripted import ScriptedEngine
from constitutional.engines.settings import Budget, Prices
from constitutional.engines.spending import FIRST, Account, Calls, Ledger
from constitutional.engines.stories import Story, ask, side_by_side

PRICES = Prices(input=2.0, cached=0.5, output=10.0)
ANSWER = Completion("yes", "stop", prompt_tokens=100, completion_tokens=10, cached_tokens=40)
COST = (60 * 2.0 + 40 * 0.5 + 10 * 10.0) / 1e6
"""Of one such answer: 60 tokens read, 40 from the cache, 10 written."""


def request(number: int) -> Request:
    return Request((Message("user", f"Question {number}"),))


def requests(count: int) -> list[Request]:
    return [request(number) for number in range(count)]


class InFlight:
    """A server: it answers a few at a time, and knows how many were submitted to it."""

    def __init__(self, engine: "SlowEngine") -> None:
        self.engine = engine
        self.waiting: list[Ticket] = []

    def submit(self, ticket: Ticket, _request: Request) -> None:
        self.waiting.append(ticket)
        self.engine.submitted += 1

    def collect(self, timeout_s: float | None = None) -> list[tuple[Ticket, Completion]]:
        if timeout_s == 0:
            return []
        some, self.waiting = self.waiting[:2], self.waiting[2:]
        return [(ticket, self.engine.answer(Request(()))) for ticket in some]

    def close(self) -> None:
        self.engine.lost += len(self.waiting)


class SlowEngine(ScriptedEngine):
    def __init__(self, name: str = "slow", rule: Callable[[Request], Completion] = lambda _: ANSWER) -> None:
        super().__init__(rule, name)
        self.submitted = self.lost = 0

    def session(self) -> InFlight:  # type: ignore[override]
        return InFlight(self)


def test_calls_tokens_and_cost_are_counted_by_hand(tmp_path: Path) -> None:
    with Journal(tmp_path / "journal.sqlite") as journal:
        account = Account(Ledger("first"), "labeler", PRICES)
        engine = JournalEngine(ScriptedEngine(lambda _: ANSWER), journal, account=account)
        engine.complete([*requests(3), request(0)])
        assert engine.calls.model_dump(exclude={"cost", "by_role"}) == {
            "asked": 3,
            "reused": 1,
            "prompt_tokens": 300,
            "cached_tokens": 120,
            "completion_tokens": 30,
        }
        assert engine.calls.cost == pytest.approx(3 * COST)
        assert engine.saved.cost == pytest.approx(COST)
        again = JournalEngine(ScriptedEngine(lambda _: ANSWER), journal, account=account)
        again.complete(requests(3))
        assert again.calls == Calls(reused=3)  # what the journal holds costs nothing
        assert journal.spent("first")["labeler"].cost == pytest.approx(3 * COST)
        assert journal.spent("another run") == {}


def test_what_a_run_has_spent_is_found_again_and_added_to(tmp_path: Path) -> None:
    path, name = tmp_path / "journal.sqlite", "höher ☃"
    for start in range(3):
        with Journal(path) as journal:
            ledger = Ledger(name, journal.spent(name))
            engine = JournalEngine(ScriptedEngine(lambda _: ANSWER), journal, account=Account(ledger, "critic"))
            engine.complete(requests(2 * (start + 1)))
            assert journal.spent(name)["critic"].asked == 2 * (start + 1) == ledger.spent["critic"].asked


def test_a_journal_of_before_budgets_is_still_used(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    with Journal(path) as journal:
        JournalEngine(ScriptedEngine(lambda _: ANSWER), journal).complete(requests(2))
    plain = sqlite3.connect(path)
    plain.execute("DROP TABLE spent")
    plain.commit()
    plain.close()
    with Journal(path) as journal:
        engine = JournalEngine(ScriptedEngine(lambda _: ANSWER), journal, account=Account(Ledger("first"), "critic"))
        engine.complete(requests(3))
        assert (engine.asked, engine.reused) == (1, 2)
        assert journal.spent("first")["critic"].asked == 1


@pytest.mark.parametrize(("role", "most"), [*(("labeler", most) for most in (1, 5, 8, 9, 20)), ("panel.second", 5)])
def test_no_more_calls_are_asked_than_the_budget_allows_and_all_are_kept(tmp_path: Path, role: str, most: int) -> None:
    path = tmp_path / "journal.sqlite"
    model = SlowEngine()
    with Journal(path) as journal:
        ledger = Ledger("first", {}, {role: Budget(max_calls=most)})
        engine = JournalEngine(model, journal, account=Account(ledger, role))
        with pytest.raises(BudgetError, match=rf"{role}\.budget\.max_calls={most} .*max_calls={2 * most}"):
            engine.complete(requests(30))
    assert (model.submitted, model.count, model.lost) == (most, most, 0)
    with Journal(path) as journal:
        assert journal.spent("first")[role].asked == most
        ledger = Ledger("first", journal.spent("first"), {role: Budget(max_calls=30)})
        engine = JournalEngine(model, journal, account=Account(ledger, role))
        assert engine.complete(requests(30)) == [ANSWER] * 30
        assert (engine.asked, engine.reused, model.count) == (30 - most, most, 30)


@pytest.mark.parametrize(
    ("budget", "answers"),
    [
        (Budget(max_tokens=1100), 10),
        (Budget(max_tokens=1101), 11),
        (Budget(max_cost=10 * COST), 10),
        (Budget(max_tokens=1), FIRST),  # before an answer nobody knows how many tokens one takes
    ],
)
def test_tokens_and_cost_are_exceeded_by_what_is_in_flight_at_most(
    tmp_path: Path, budget: Budget, answers: int
) -> None:
    model = SlowEngine()
    with Journal(tmp_path / "journal.sqlite") as journal:
        engine = JournalEngine(model, journal, account=Account(Ledger("first", {}, {}, budget), "critic", PRICES))
        with pytest.raises(BudgetError, match=r"the budget budget\.max_"):
            engine.complete(requests(40))
    assert (model.submitted, model.count, model.lost) == (answers, answers, 0)


def test_where_one_role_may_ask_no_more_the_others_answers_in_flight_are_kept(tmp_path: Path) -> None:
    critic, labeler = SlowEngine("critic"), SlowEngine("labeler")
    with Journal(tmp_path / "journal.sqlite") as journal:
        ledger = Ledger("first", {}, {"labeler": Budget(max_calls=3)})
        critics = JournalEngine(critic, journal, account=Account(ledger, "critic"))
        labelers = JournalEngine(labeler, journal, account=Account(ledger, "labeler"))

        async def item(number: int) -> str:
            first = await ask(critics if number % 2 else labelers, request(number))
            second = await ask(labelers, request(1000 + number))
            return first.text + second.text

        stories: list[Story[str]] = [item(number) for number in range(24)]
        with pytest.raises(BudgetError, match=r"labeler\.budget\.max_calls=3"):
            list(side_by_side(stories))
        spent = journal.spent("first")
    assert (labeler.count, spent["labeler"].asked) == (3, 3)
    assert critic.submitted == critic.count == spent["critic"].asked
    assert critic.lost == labeler.lost == 0


def test_what_fails_costs_its_tokens_and_no_call(tmp_path: Path) -> None:
    failed = Completion("", "error", reason="it broke", prompt_tokens=7)
    with Journal(tmp_path / "journal.sqlite") as journal:
        ledger = Ledger("first", {}, {"critic": Budget(max_calls=2)})
        engine = JournalEngine(SlowEngine(rule=lambda _: failed), journal, account=Account(ledger, "critic", PRICES))
        assert engine.complete(requests(5)) == [failed] * 5
        assert (engine.calls.asked, engine.calls.prompt_tokens) == (0, 35)
        assert journal.spent("first")["critic"].tokens == 35


@pytest.mark.parametrize(
    ("budget", "prices", "limit"),
    [
        (Budget(max_tokens=5), Prices(), r"critic\.budget\.max_tokens"),
        (Budget(max_cost=5.0), PRICES, r"critic\.budget\.max_cost"),
    ],
)
def test_a_budget_of_tokens_stops_a_server_that_reports_none_and_keeps_what_was_paid(
    tmp_path: Path, budget: Budget, prices: Prices, limit: str
) -> None:
    model = SlowEngine(rule=lambda _: Completion("yes", "stop"))
    with Journal(tmp_path / "journal.sqlite") as journal:
        account = Account(Ledger("first", {}, {"critic": budget}), "critic", prices)
        engine = JournalEngine(model, journal, account=account)
        with pytest.raises(ModelError, match=rf"{limit} .*critic\.budget\.max_calls"):
            engine.complete(requests(50))
        # What was in flight at the first answer is awaited and kept, and nothing more is asked.
        assert (model.submitted, model.count, model.lost, engine.asked) == (FIRST, FIRST, 0, FIRST)
        assert JournalEngine(model, journal).complete(requests(FIRST)) == [Completion("yes", "stop")] * FIRST
        assert model.count == FIRST


@pytest.mark.parametrize(
    ("budget", "answer"),
    [
        (Budget(max_calls=60), Completion("yes", "stop")),
        (Budget(max_cost=1.0), Completion("yes", "stop")),  # a role without prices costs nothing
        (Budget(max_tokens=5), Completion("", "refusal", reason="filtered")),
    ],
)
def test_answers_without_usage_stop_nothing_that_needs_none(tmp_path: Path, budget: Budget, answer: Completion) -> None:
    with Journal(tmp_path / "journal.sqlite") as journal:
        account = Account(Ledger("first", {}, {}, budget), "critic")
        engine = JournalEngine(SlowEngine(rule=lambda _: answer), journal, account=account)
        assert engine.complete(requests(50)) == [answer] * 50


class Refusing(SlowEngine):
    """It cannot begin a session, or takes two requests and no third."""

    def __init__(self, *, begins: bool) -> None:
        super().__init__()
        self.begins = begins

    def session(self) -> InFlight:  # type: ignore[override]
        if not self.begins:
            raise ModelError("the model cannot be loaded")
        return TakesTwo(self)


class TakesTwo(InFlight):
    def submit(self, ticket: Ticket, request: Request) -> None:
        if self.engine.submitted == 2:
            raise ModelError("the process has ended")
        super().submit(ticket, request)


@pytest.mark.parametrize("begins", [True, False])
def test_nothing_stays_in_flight_where_an_engine_takes_no_request(tmp_path: Path, begins: bool) -> None:
    ledger = Ledger("first", {}, {"critic": Budget(max_calls=9)})
    with Journal(tmp_path / "journal.sqlite") as journal:
        engine = JournalEngine(Refusing(begins=begins), journal, account=Account(ledger, "critic"))
        with pytest.raises(ModelError):
            engine.complete(requests(5))
        assert ledger.in_flight["critic"] == 0
        whole = JournalEngine(SlowEngine(), journal, account=Account(ledger, "critic"))
        assert whole.complete(requests(5)) == [ANSWER] * 5


def test_nothing_stays_in_flight_where_an_answer_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise RunError("the disk is full")

    ledger = Ledger("first", {}, {"critic": Budget(max_calls=9)})
    with Journal(tmp_path / "journal.sqlite") as journal:
        monkeypatch.setattr(journal, "keep", full)
        with pytest.raises(RunError, match="full"):
            JournalEngine(SlowEngine(), journal, account=Account(ledger, "critic")).complete(requests(5))
    assert ledger.in_flight["critic"] == 0
