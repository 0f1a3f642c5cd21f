"""The pages for leads: progress, agreement, what is to be settled, and examples for the constitution."""

import re
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple, get_args

from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from constitutional.base.agreement import in_words
from constitutional.base.errors import ConstitutionalError
from constitutional.base.frozen import first_problem
from constitutional.base.progress import counted
from constitutional.base.records import LABELER
from constitutional.constitution.add_example import ExampleEdit, edit_of, write_edit
from constitutional.constitution.constitution import Example, Principle
from constitutional.constitution.file import read_constitution
from constitutional.judging.people import SETTLED, by_kind
from constitutional.review.ballot import LONGEST_NOTE
from constitutional.review.lead import (
    LeadItem,
    LeadSources,
    Mistake,
    Overview,
    RaterShare,
    changes,
    out_of_raters,
    overview,
    seen_by,
    works_of,
)
from constitutional.review.store import CountedVote, Decision, ReviewStore, StoredPlan
from constitutional.review.visit import Visit

MOST_LISTED: Final = 50
"""Items of a queue that one page lists."""
MOST_EXAMPLES: Final = 10
"""Mistakes of the labeler by one principle that the page lists."""
SLOW_S: Final = 1.0
RESTS: Final = 10
"""Where the numbers take longer than `SLOW_S`, they rest for that many times as long, however many votes come."""
NOTICES: Final = {
    "saved": "The decision is saved.",
    "repeated": "This decision was saved before.",
    "written": "The example is written to the constitution file.",
}
NOT_NEEDED: Final = "Another decision on this item came meanwhile. Read it, and decide anew if you must."
CHOICES: Final = {"a": "Reply A", "b": "Reply B", "tie": "Tie", "both_bad": "Both bad"}


SHIPPED: Final = (
    "The run uses a constitution of the package. To make examples of settled items, copy it to a file of your own, and "
    "run with constitution.file=FILE."
)


class ExampleError(ValueError):
    """Why an item cannot become an example, for the lead."""


class Rate(NamedTuple):
    """A line of a table of agreement."""

    name: str
    words: str


class LeadPages:
    """What leads see, and do."""

    def __init__(
        self, sources: LeadSources, store: ReviewStore, plan: StoredPlan, page: Callable[..., Response]
    ) -> None:
        self._sources = sources
        self._store = store
        self._plan = plan
        self._page = page
        self._making = threading.Lock()
        self._made: tuple[Overview, tuple[int, ...], float] | None = None
        self._writing = threading.Lock()

    def routes(self, endpoint: Callable[[Callable[[Visit], Response]], Any]) -> list[Route]:
        """The addresses; `endpoint` makes what Starlette calls of a method that answers a rater's visit."""
        pages = [
            ("/lead", self._overview, "GET"),
            ("/lead/item", self._item, "GET"),
            ("/lead/show", self._show, "POST"),
            ("/lead/settle", self._settle, "POST"),
            ("/lead/example", self._example, "GET"),
            ("/lead/example", self._write, "POST"),
        ]
        return [Route(path, endpoint(_for_lead(answer)), methods=[method]) for path, answer, method in pages]

    # Pages

    def _overview(self, visit: Visit) -> Response:
        works = works_of(self._sources.database, self._plan)
        votes = self._votes() if self._plan.plan.task == "pair" else None
        seen = seen_by(self._sources.database, self._plan, visit.rater)
        wrong = votes.labeler_wrong if votes else []
        hidden = {row.item.id for row in wrong if row.item.comparison not in seen}
        return self._page(
            visit,
            "lead",
            works=works,
            stuck=out_of_raters(self._sources.database, self._plan),
            uneven=sum(_differ(group) for group in votes.votes.values()) if votes else 0,
            counted=counted,
            answered=self._store.answered(self._plan),
            given=sum(work.votes for work in works),
            hours=sum(work.hours for work in works),
            pay=self._sources.pay_per_hour,
            currency=self._sources.currency,
            votes=votes,
            among=[*_among(votes)] if votes else [],
            labeler=[*_labeler(votes)] if votes else [],
            raters=[(row.name, _share(row.others), _share(row.gold)) for row in votes.raters] if votes else [],
            wrong=_by_principle([row for row in wrong if row.item.id not in hidden], votes) if votes else {},
            contradicted=len({row.item.id for row in wrong}),
            unseen=len(hidden),
            most=MOST_LISTED,
            most_examples=MOST_EXAMPLES,
            settled_mark=SETTLED,
            no_file="" if self._sources.constitution else SHIPPED,
            choices=CHOICES,
            notice=NOTICES.get(visit.request.query_params.get("notice", ""), ""),
        )

    def _item(self, visit: Visit) -> Response:
        return self._item_page(visit, *self._asked(visit.request.query_params.get("item", "")))

    def _item_page(
        self, visit: Visit, item: LeadItem, votes: Overview, status: int = 200, problem: str = ""
    ) -> Response:
        seen = item.comparison in seen_by(self._sources.database, self._plan, visit.rater)
        if seen:  # a lead who has voted: a vote that is changed from now on is not blind
            self._store.see(self._plan, visit.rater, [item.id])
        judgements = [row for row in self._sources.labels().judgements if row.comparison == item.comparison]
        return self._page(
            visit,
            "lead_item",
            status,
            item=item,
            seen=seen,
            own=votes.votes[item.comparison] if seen else [],
            judgements=judgements if seen else [],
            labeler=LABELER,
            settled=votes.settled.get(item.comparison),
            settled_mark=SETTLED,
            principles=self._principles(),
            no_file="" if self._sources.constitution else SHIPPED,
            judged_by=next((row.principle for row in judgements), ""),
            choices=CHOICES,
            longest_note=LONGEST_NOTE,
            problem=problem,
            shown=visit.form.get("shown") or f"{self._store.now():.3f}",
            notice=NOTICES.get(visit.request.query_params.get("notice", ""), ""),
        )

    def _show(self, visit: Visit) -> Response:
        if visit.form.get("item") == "all":
            self._store.see(self._plan, visit.rater, {row.item.id for row in self._votes().labeler_wrong})
            return RedirectResponse("/lead#labeler", 303)
        item, _ = self._asked(visit.form.get("item", ""))
        self._store.see(self._plan, visit.rater, [item.id])
        return RedirectResponse(f"/lead/item?item={item.id}", 303)

    def _settle(self, visit: Visit) -> Response:
        item, votes = self._asked(visit.form.get("item", ""))
        choice = next(
            (name for name in get_args(Decision.__annotations__["choice"]) if name == visit.form.get("choice")), None
        )
        strength, version = visit.form.get("strength", "1"), visit.form.get("version", "")
        note = visit.form.get("note", "").replace("\r\n", "\n").replace("\0", "").strip()
        if choice is None or strength not in ("1", "2", "3", "4"):
            return self._item_page(visit, item, votes, 422, "Choose one of the decisions.")
        if len(note) > LONGEST_NOTE:
            return self._item_page(visit, item, votes, 422, f"The note is too long; keep {LONGEST_NOTE:,} characters.")
        if not _is_number(version):
            raise HTTPException(400)
        decision = Decision(choice, int(strength) if choice in ("a", "b") else 1, note)
        try:
            shown = _seconds(visit.form.get("shown", ""))
            outcome = self._store.decide(self._plan, visit.rater, item.id, int(version), decision, shown)
        except KeyError as error:  # the label was never shown to this lead
            raise HTTPException(404) from error
        if outcome == "not_needed":
            return self._item_page(visit, *self._asked(str(item.id)), 409, NOT_NEEDED)
        return RedirectResponse(f"/lead/item?item={item.id}&notice={outcome}", 303)

    def _example(self, visit: Visit) -> Response:
        query = visit.request.query_params
        item, votes = self._asked(query.get("item", ""))
        return self._example_page(visit, item, votes, query.get("principle", ""))

    def _write(self, visit: Visit) -> Response:
        item, votes = self._asked(visit.form.get("item", ""))
        principle = visit.form.get("principle", "")
        with self._writing:
            try:
                edit = self._edit(item, votes, principle)
                if edit.digest != visit.form.get("digest"):
                    return self._example_page(
                        visit,
                        item,
                        votes,
                        principle,
                        "The file or the decision has changed since this was shown. Nothing is written. This is what "
                        "would change now.",
                    )
                write_edit(edit)
            except (ConstitutionalError, ExampleError, OSError) as error:
                return self._example_page(visit, item, votes, principle, str(error))
        return RedirectResponse(f"/lead/item?item={item.id}&notice=written", 303)

    def _example_page(
        self, visit: Visit, item: LeadItem, votes: Overview, principle: str, problem: str = ""
    ) -> Response:
        edit = None
        try:
            edit = self._edit(item, votes, principle)
        except (ConstitutionalError, ExampleError) as error:
            problem = problem or str(error)
        status = 409 if problem else 200
        return self._page(
            visit, "lead_example", status, item=item, principle=principle, edit=edit, problem=problem, notice=""
        )

    # What they show

    def _votes(self) -> Overview:
        """The votes as they are now, or where there are very many, as they were a little earlier."""
        with self._making:
            rows, began = changes(self._sources.database, self._plan), time.monotonic()
            if self._made is not None:
                votes, known, until = self._made
                if rows == known or (rows[1:] == known[1:] and began < until):  # nothing but votes came
                    return votes
            votes = overview(self._sources.database, self._store, self._plan, self._sources.labels())
            took = time.monotonic() - began
            self._made = (votes, rows, began + RESTS * took if took > SLOW_S else began)
            return votes

    def _asked(self, number: str) -> tuple[LeadItem, Overview]:
        """The item of this number, if there are votes on it."""
        if self._plan.plan.task != "pair":
            raise HTTPException(404)
        votes = self._votes()
        item = next((item for item in votes.items.values() if _is_number(number) and item.id == int(number)), None)
        if item is None:
            raise HTTPException(404)
        return item, votes

    def _principles(self) -> tuple[Principle, ...]:
        """Those of the constitution file as it is now; none where it cannot be read."""
        try:
            path = self._sources.constitution
            constitution = read_constitution(path).constitution if path else None
        except ConstitutionalError:
            return ()
        return constitution.principles if constitution else ()

    def _edit(self, item: LeadItem, votes: Overview, principle: str) -> ExampleEdit:
        settled = votes.settled.get(item.comparison)
        if settled is None or settled.choice not in ("a", "b"):
            raise ExampleError("Only an item that is settled for one of the replies can become an example.")
        if self._sources.constitution is None:
            raise ExampleError(SHIPPED)
        if len(item.payload.messages) != 1:
            raise ExampleError("An example holds one prompt; this conversation has several messages.")
        a, b = item.payload.replies
        better, worse = (a, b) if settled.choice == "a" else (b, a)
        try:
            example = Example(prompt=item.payload.messages[0].content, better=better, worse=worse)
        except ValidationError as error:
            raise ExampleError(f"These texts cannot be an example: {first_problem(error)}.") from error
        return edit_of(self._sources.constitution, principle, example)


def _differ(votes: Sequence[CountedVote]) -> bool:
    """Whether raters differ on an item, and not by preferring different replies."""
    said = {vote.choice for vote in votes if vote.choice != "skip"}
    return len(said) > 1 and not {"a", "b"} <= said


def _by_principle(wrong: Sequence[Mistake], votes: Overview) -> dict[str, list[tuple[LeadItem, str]]]:
    """By principle, those with the most mistakes first, the items and what labeler and people say of them."""
    groups = defaultdict[str, list[tuple[LeadItem, str]]](list)
    for row in wrong:
        said = Counter(vote.choice for vote in votes.votes[row.item.comparison] if vote.choice in CHOICES)
        people = ", ".join(f"{words} ({said[choice]})" for choice, words in CHOICES.items() if said[choice])
        labeler = f"{CHOICES['a' if row.p_a > 0.5 else 'b']}, {_percent(max(row.p_a, 1 - row.p_a))} sure"
        kind = f" Prompts: {row.kind}." if row.kind else ""
        groups[row.principle].append((row.item, f"Labeler: {labeler}. People: {people}.{kind}"))
    return dict(sorted(groups.items(), key=lambda group: (-len(group[1]), group[0])))


def _for_lead(answer: Callable[[Visit], Response]) -> Callable[[Visit], Response]:
    """The same answer for leads; others do not learn that there is such a page."""

    def answered(visit: Visit) -> Response:
        if visit.rater.role != "lead":
            raise HTTPException(404)
        return answer(visit)

    return answered


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) < 10


def _seconds(text: str) -> float | None:
    """A time in seconds; None where the text is none."""
    return float(text) if re.fullmatch(r"[0-9]{1,12}(\.[0-9]{1,6})?", text) else None


def _percent(value: float) -> str:
    return f"{100 * value:.0f}%"


def _share(share: RaterShare | None) -> str:
    if share is None:
        return "–"
    low, high = map(_percent, share.interval)
    return f"{_percent(share.value)} ({low} to {high}), n = {share.n}"


def _among(votes: Overview) -> list[Rate]:
    raw = votes.people.among
    share = RaterShare(raw.value, raw.interval, raw.n) if raw.value is not None and raw.interval is not None else None
    chance = {"Krippendorff’s α": votes.people.alpha, "Gwet’s AC1": votes.people.ac1}
    chance[votes.people.kappa_name] = votes.people.kappa
    ceiling = votes.people.ceiling
    weighted = RaterShare(ceiling.value, ceiling.interval, ceiling.n) if ceiling else None
    return [
        Rate("Votes that are the same", _share(share) if share else in_words(raw)),
        Rate("Agreement, weighted as the labeler’s", _share(weighted)),
        *(Rate(name, in_words(agreement)) for name, agreement in chance.items()),
    ]


def _labeler(votes: Overview) -> list[Rate]:
    people = votes.people
    groups = [
        ("All, weighted by how likely an item was to be chosen", people.labeler),
        ("Audit set", people.audit),
        *((f"Principle {name}", rate) for name, rate in people.by_principle.items()),
        *((f"Prompts: {name}", rate) for name, rate in by_kind(people).items()),
    ]
    rates = [Rate(name, _share(RaterShare(rate.value, rate.interval, rate.n))) for name, rate in groups if rate]
    where = "the audit set" if people.audit else "all"
    return rates + [Rate(f"{name}, {where}", in_words(of)) for name, of in people.beyond_chance.items() if rates]
