"""What a run asks of models and what that costs, by role, and the budgets at which it stops."""

import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Final, NamedTuple

from pydantic import Field

from constitutional.base.errors import BudgetError, ModelError
from constitutional.base.frozen import Frozen
from constitutional.engines.base import Completion
from constitutional.engines.settings import Budget, Prices

FIRST: Final = 8
"""Requests that are submitted under a budget of tokens or cost before an answer tells how large answers are."""


class Calls(Frozen):
    """Requests and what they cost. Tokens and cost are of the requests that a model answered."""

    asked: int = 0
    """Requests that a model answered."""
    reused: int = 0
    """Requests that the journal answered, or an equal request that was asked at the same time."""
    prompt_tokens: int = 0
    """Tokens that the models read."""
    cached_tokens: int = 0
    """Of these, tokens that they had read before."""
    completion_tokens: int = 0
    """Tokens that the models wrote."""
    cost: float = 0.0
    """In the currency of the prices; 0 where the models have none."""
    by_role: dict[str, "Calls"] = Field(default_factory=dict)
    """The same for each role; empty where the roles are not told apart."""

    @classmethod
    def of(cls, completions: Iterable[Completion], prices: Prices, asked: int = 0, reused: int = 0) -> "Calls":
        """The tokens of these answers and their cost."""
        answers = list(completions)
        prompt = sum(answer.prompt_tokens for answer in answers)
        cached = sum(answer.cached_tokens for answer in answers)
        written = sum(answer.completion_tokens for answer in answers)
        return cls(
            asked=asked,
            reused=reused,
            prompt_tokens=prompt,
            cached_tokens=cached,
            completion_tokens=written,
            cost=prices.cost(prompt, cached, written),
        )

    @classmethod
    def of_roles(cls, by_role: Mapping[str, "Calls"]) -> "Calls":
        """The sum over roles, which are kept beside it."""
        return cls.sum(by_role.values()).model_copy(update={"by_role": dict(by_role)})

    @classmethod
    def sum(cls, several: Iterable["Calls"]) -> "Calls":
        """The sum, without the roles."""
        rows, names = list(several), [name for name in cls.model_fields if name != "by_role"]
        return cls(**{name: sum(getattr(row, name) for row in rows) for name in names})

    @property
    def answers(self) -> int:
        """Requests that were answered, by a model or from the journal."""
        return self.asked + self.reused

    @property
    def tokens(self) -> int:
        """Tokens read and written."""
        return self.prompt_tokens + self.completion_tokens

    def tokens_in_words(self) -> str:
        """`, 4,321 tokens read (12% cached), 210 written, cost 0.12`; nothing for what is not known."""
        text = ""
        if self.tokens:
            cached = f" ({self.cached_tokens / self.prompt_tokens:.0%} cached)" if self.cached_tokens else ""
            text += f", {self.prompt_tokens:,} tokens read{cached}, {self.completion_tokens:,} written"
        return text + (f", cost {money(self.cost)}" if self.cost else "")


def money(amount: float) -> str:
    """An amount with as many decimals as it needs: `0.0042`, `0.42`, `1,234.50`."""
    return f"{amount:,.2f}" if amount >= 0.1 or not amount else f"{amount:.2g}"


class _Limit(NamedTuple):
    """A number that a budget sets, and what counts against it."""

    key: str
    """The setting, such as `labeler.budget.max_calls`."""
    most: float
    spent: float
    in_flight: int
    """Requests whose share of the budget is not known yet."""
    per_answer: float | None
    """What an answer of the role that asks takes of the budget; None before its first answer."""

    @property
    def reached(self) -> bool:
        return self.spent >= self.most

    def room(self) -> int | None:
        """How many more requests the role may submit; None for any number, where its answers take nothing."""
        if self.reached:
            return 0
        if self.per_answer == 0:
            return None
        # A single request at least: the budget is not reached yet.
        most = FIRST if self.per_answer is None else max(1, int((self.most - self.spent) / self.per_answer + 1e-9))
        return max(0, most - self.in_flight)


def _amounts(calls: Calls) -> dict[str, float]:
    """What budgets bound, by their names."""
    return {"max_calls": calls.asked, "max_tokens": calls.tokens, "max_cost": calls.cost}


class Ledger:
    """What a run has spent so far, and what it may still spend.

    `max_calls` is exact. Tokens and cost are known once an answer is there: what is submitted is as much as the budget
    is likely to allow, by the mean of the answers so far, so the budget may be exceeded by what is then in flight.

    Args:
        run: names the run in the journal; empty if nothing is counted against a run.
        spent: what earlier starts of the run have spent, by role.
        budgets: by role.
        whole: of all roles together.
    """

    def __init__(
        self,
        run: str = "",
        spent: Mapping[str, Calls] | None = None,
        budgets: Mapping[str, Budget] | None = None,
        whole: Budget = Budget(),  # noqa: B008 - it is frozen
    ) -> None:
        self.run = run
        self.spent = dict(spent or {})
        self.budgets = dict(budgets or {})
        self.whole = whole
        self.in_flight: Counter[str] = Counter()
        self._stopping = False
        self._lock = threading.Lock()

    def take(self, role: str, wanted: int) -> int:
        """How many of so many requests may be submitted now; they count as in flight from here on."""
        with self._lock:
            if self._stopping:
                return 0
            for limit in self._limits(role):
                room = limit.room()
                wanted = wanted if room is None else min(wanted, room)
            self.in_flight[role] += wanted
            return wanted

    def landed(self, role: str, count: int, calls: Calls) -> None:
        """So many requests are no longer in flight, and this is what they cost."""
        with self._lock:
            self.in_flight[role] -= count
            self.spent[role] = Calls.sum([self.spent.get(role, Calls()), calls])

    def counts_tokens(self, role: str, *, priced: bool) -> str | None:
        """The budget of a role's tokens or of their cost, such as `labeler.budget.max_cost`; None if there is none."""
        names = ("max_tokens", "max_cost") if priced else ("max_tokens",)
        return next((limit.key for limit in self._limits(role) if limit.key.endswith(names)), None)

    def stop_where_reached(self, role: str) -> None:
        """For a role with requests that may not be submitted: let what is in flight land, of any role, and then stop.

        Raises:
            BudgetError: nothing is in flight.
        """
        reached = [limit for limit in self._limits(role) if limit.reached]
        self._stopping = self._stopping or bool(reached)
        if self.in_flight.total() or not self._stopping:
            return
        if not reached:  # another role's budget stops this one
            reached = [limit for other in self.budgets for limit in self._limits(other) if limit.reached]
        limit, owner = reached[0], reached[0].key.rpartition(".")[0].removesuffix(".budget")
        spent = Calls.sum(self.spent.values()) if owner == "budget" else self.spent[owner]
        who = f"the run, whose next request is the {role}'s," if owner == "budget" else f"the {owner}"
        raise BudgetError(
            f"the budget {limit.key}={limit.most:g} is reached: {who} has spent {spent.asked:,} calls"
            f"{spent.tokens_in_words()}. All answers are kept. To go on, type the same command with a higher budget, "
            f"such as {limit.key}={2 * limit.most:g}"
        )

    def _limits(self, role: str) -> Iterator[_Limit]:
        """What bounds a role: its own budget, and the run's."""
        own = self.spent.get(role, Calls())
        scopes = {
            f"{role}.budget": (self.budgets.get(role, Budget()), own, self.in_flight[role]),
            "budget": (self.whole, Calls.sum(self.spent.values()), self.in_flight.total()),
        }
        for key, (budget, spent, in_flight) in scopes.items():
            for name, amount in _amounts(spent).items():
                if (most := getattr(budget, name)) is not None:
                    mean = _amounts(own)[name] / own.asked if own.asked else None
                    yield _Limit(f"{key}.{name}", most, amount, in_flight, 1 if name == "max_calls" else mean)


class Account(NamedTuple):
    """One role's place in a run's ledger."""

    ledger: Ledger
    role: str = ""
    prices: Prices = Prices()

    def uncounted(self, answers: Iterable[Completion]) -> ModelError | None:
        """The error of a budget that needs numbers of tokens where an answer has none; a refusal needs none."""
        if all(answer.prompt_tokens or answer.finish == "refusal" for answer in answers):
            return None
        limit = self.ledger.counts_tokens(self.role, priced=self.prices != Prices())
        if limit is None:
            return None
        return ModelError(
            f"{limit} counts tokens, and the {self.role}'s server reports no usage with its replies; type "
            f"{limit.rpartition('.')[0]}.max_calls=… in its place. What was answered is kept"
        )
