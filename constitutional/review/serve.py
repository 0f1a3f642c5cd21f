"""Serves the pages of a run's review until it is interrupted."""

import getpass
import shlex
import socket
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Final, NamedTuple

import uvicorn

from constitutional.base.errors import ConfigurationError, UsageError
from constitutional.base.files import atomic_write
from constitutional.base.records import Comparison, Judgement, Sample
from constitutional.base.shipped import shipped
from constitutional.base.text import same_text
from constitutional.constitution.constitution import Constitution
from constitutional.constitution.file import find_constitution, load_constitution
from constitutional.judging.evaluated import MODEL, contests_of
from constitutional.judging.scores import CONTESTS, Measurement
from constitutional.review.accounts import Accounts, Role
from constitutional.review.database import Database
from constitutional.review.lead import Labels, LeadSources
from constitutional.review.plan import Plan, PlannedItem, ReviewPrinciple, gold_items, items_of, spot_checked
from constitutional.review.settings import EVERY_ADDRESS, LOOPBACK, About, ReviewSettings
from constitutional.review.site import Site
from constitutional.review.store import ReviewStore, StoredPlan
from constitutional.runs.compose import load
from constitutional.runs.folder import USED, RunStore
from constitutional.runs.settings import RunConfig
from constitutional.runs.spotchecks import plan_of

SERVED: Final = "review.address"
"""Where a run's page is served, or was last: an invitation needs the address, and may be typed without the port."""
MOST_CONNECTIONS: Final = 500
KEPT_S: Final = 75
"""How long a connection is kept while a rater reads; a vote that is sent as it closes would be lost on the way."""
LOCAL_S: Final = 3600.0
"""How long the link is worth something that is printed for whoever starts the command."""


class Review(NamedTuple):
    """A run's review: its database, and what is asked."""

    database: Database
    accounts: Accounts
    store: ReviewStore
    plan: StoredPlan
    lead: LeadSources


def open_review(run: RunStore, settings: ReviewSettings, *, plans: bool = True) -> Review:
    """The run's review, with the plan of the task.

    Where there is none, the comparisons that the run's settings choose for spot-checks become one; where they choose
    none, all comparisons of the run. A plan of pairs follows the run: about what it compares no more nobody is asked.

    Args:
        run: the run.
        settings: the task, the database, and what a new plan is made of.
        plans: make a plan where there is none, or bring it up to date.

    Raises:
        UsageError: there is no plan, and none is to be made.
        ConfigurationError: the database cannot be used, or it is another run's.
        RunError: the run has made no comparisons yet.
    """
    constitution = load_constitution(str(run.folder / USED))
    database = Database.open(run.folder, settings.database)
    config = load(run.folder)
    gold_share = config.spotcheck.gold_share
    store = ReviewStore(database, minutes=settings.minutes, constitution=constitution.digest, gold_share=gold_share)
    try:
        if others := store.runs() - {config.name}:
            place = database.engine.url.render_as_string(hide_password=True)
            raise ConfigurationError(
                f"{place} holds the review of the run '{min(others)}', not of '{config.name}'; type "
                "review.database=… with a database of its own, or leave it out: then it is review.sqlite in the run's "
                "folder"
            )
        stored = store.plan(settings.task, settings.about)
        if stored is None and not plans:
            asked = f"review.task={settings.task} review.about={settings.about}"
            raise UsageError(f"{run.folder}: nobody was asked to do {asked}; nothing to export")
        if stored is None:
            principles = constitution.used_for("comparison").principles if settings.by_principle else ()
            plan = Plan(
                run=config.name,
                task=settings.task,
                about=settings.about,
                constitution=constitution.digest,
                seed=config.seed,
                principles=tuple(ReviewPrinciple(id=part.id, text=part.text) for part in principles),
                sensitive=settings.sensitive,
            )
            stored = store.add_plan(plan, _items(run, config, settings, constitution))
        elif plans and settings.task == "pair":
            comparisons = run_comparisons(run, settings.about)
            checks = plan_of(run, config, comparisons, settings.budget) if settings.about == "comparisons" else None
            # Without the budget that they were chosen for, nobody knows which others would be asked about.
            if checks is not None or not stored.spot_checked:
                # Patterns that were typed when the review began hide texts that come later, too.
                sensitive = {**stored.plan.sensitive, **settings.sensitive}
                overlap = max(stored.overlap, 1)
                items = items_of(comparisons, "pair", seed=config.seed, wanted=overlap, sensitive=sensitive)
                items = items if checks is None else spot_checked(items, checks)
                stored = store.extend_plan(stored, items, sensitive)
    except BaseException:
        database.close()
        raise
    constitution_file = _constitution_file(config.constitution.file)
    pay, currency = settings.pay_per_hour or config.report.pay_per_hour, settings.currency or config.report.currency
    lead = LeadSources(database, cache(lambda: _labels(run, settings.about)), constitution_file, pay, currency)
    return Review(database, Accounts(database), store, stored, lead)


def _items(run: RunStore, config: RunConfig, settings: ReviewSettings, constitution: Constitution) -> list[PlannedItem]:
    """What a new plan asks about."""
    comparisons = run_comparisons(run, settings.about)
    items = items_of(
        comparisons, settings.task, seed=config.seed, wanted=settings.overlap, sensitive=settings.sensitive
    )
    if settings.task != "pair" or settings.about != "comparisons":
        return items
    if (checks := plan_of(run, config, comparisons, settings.budget)) is not None:
        items = spot_checked(items, checks)
    if config.spotcheck.gold_share:
        gold = gold_items(constitution, settings.sensitive, config.seed)
        if not gold:
            raise ConfigurationError(
                f"spotcheck.gold_share={config.spotcheck.gold_share:g} needs examples below the principles of "
                f"the constitution '{constitution.name}', and there are none; add some, or leave it out"
            )
        items += gold
    return items


def _constitution_file(name: str) -> Path | None:
    """The file to which leads add examples; None for one of the package, which is not theirs."""
    try:
        path = find_constitution(name)
    except ConfigurationError:  # it was moved away since the run began
        return Path(name)
    return None if path.is_relative_to(shipped("constitutions")) else path


def run_comparisons(run: RunStore, about: About) -> list[Comparison]:
    """What people can be asked about, as the run has it now."""
    if about == "comparisons":
        return run.read("comparisons", Comparison)
    contests = contests_of(run.read("samples", Sample), run.read("measurements", Measurement))
    return [contest.comparison for contest in contests]


def _labels(run: RunStore, about: About) -> Labels:
    """What people are asked about, with the labeler's judgements where they are kept one by one."""
    judged = about == "comparisons" and "judgements" in run.artifacts()
    return Labels(run_comparisons(run, about), run.read("judgements", Judgement) if judged else [])


def equal_replies(run: RunStore) -> int:
    """Comparisons of the evaluation about which nobody is asked, as the replies read the same."""
    opponents = [opponent for model, opponent in CONTESTS if model == MODEL]
    samples = run.read("samples", Sample)[: load(run.folder).evaluate.judged]
    return sum(same_text(row.replies[MODEL], row.replies[name]) for row in samples for name in opponents)


def old_settings(review: Review, settings: ReviewSettings) -> list[str]:
    """What a user should know where a plan was made with other settings than are typed, or by another constitution."""
    kept, typed = "; that was decided when the review began", settings.model_fields_set
    notes = []
    if "by_principle" in typed and settings.by_principle != bool(review.plan.plan.principles):
        notes.append(f"raters are {'not ' * settings.by_principle}asked by principle{kept}")
    if "overlap" in typed and settings.overlap != review.plan.overlap:
        notes.append(f"an item gets up to {review.plan.overlap} votes, not {settings.overlap}{kept}")
    can_have_gold = review.plan.plan.task == "pair" and review.plan.plan.about == "comparisons"
    if review.store.gold_share and can_have_gold and not review.plan.gold:
        notes.append(f"there are no gold items, though spotcheck.gold_share asks for them{kept}")
    shown = " and ".join(
        name for name, there in (("principles", review.plan.plan.principles), ("gold items", review.plan.gold)) if there
    )
    if shown and review.store.constitution != review.plan.plan.constitution:
        notes.append(
            f"the constitution has changed since the review began, and raters see the {shown} of then; to begin anew, "
            "move review.sqlite away, or type review.database=… with an empty database"
        )
    unused = [name for name in settings.sensitive if name not in review.plan.categories]
    notes += [
        f"no text is hidden because of '{name}': it occurs in none, or the review began without it" for name in unused
    ]
    return notes


def invite(run: RunStore, settings: ReviewSettings, name: str, role: Role | None) -> str:
    """A link that lets a rater in once.

    Raises:
        UsageError: the name cannot be one, or nobody knows where the page will be.
    """
    served = run.folder / SERVED
    unnamed = settings.url is None and not settings.model_fields_set & {"port", "host"}
    if unnamed and served.is_file():
        settings = settings.model_copy(update={"url": served.read_text(encoding="utf-8").strip()})
    if settings.url is None and settings.port == 0:
        raise UsageError(
            "a link needs the page's address; type review.port=PORT or review.url=https://…, as the page is served"
        )
    if settings.url is None and settings.host in EVERY_ADDRESS:
        raise UsageError(_no_address(settings))
    database = Database.open(run.folder, settings.database)
    try:
        return link(page_url(settings, settings.port), Accounts(database).invite(name, role))
    finally:
        database.close()


def _no_address(settings: ReviewSettings) -> str:
    return (
        f"review.host={settings.host} is no address that raters can type; type also review.url=https://…, or "
        f"review.url=http://ADDRESS:{settings.port or 'PORT'} with an address of this machine"
    )


def link(url: str, token: str) -> str:
    """The address that lets a rater in."""
    return f"{url}/enter?token={token}"


def page_url(settings: ReviewSettings, port: int) -> str:
    """The address of the page, without a slash at its end."""
    if settings.url is not None:
        return settings.url
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    return f"http://{host}:{port}"


def bind(settings: ReviewSettings, *, invited: bool) -> socket.socket:
    """A socket that listens at the address that is asked for.

    Args:
        settings: the address and the port.
        invited: whether anybody has an invitation that was typed.

    Raises:
        ConfigurationError: other machines would reach the address, and nobody is invited or no URL is named; or the
            address cannot be had.
    """
    host, port = settings.host, settings.port
    if host in EVERY_ADDRESS and settings.url is None:
        raise ConfigurationError(_no_address(settings))
    if host not in LOOPBACK and not invited:
        where = f"review.host={host} review.port={port or 'PORT'}"
        where = where if settings.url is None else shlex.quote(f"review.url={settings.url}")
        where += " review.database=…" if settings.database else ""  # which may hold a password
        raise ConfigurationError(
            f"review.host={host} can be reached from other machines, and nobody is invited yet; type first "
            f"constitutional review RUN invite NAME {where}"
        )
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        # Without the protocol asyncio would not know that this is TCP, and every page would wait 40 ms for the browser.
        bound = socket.socket(family, kind, protocol)
        try:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind(address)
            bound.listen()  # so that whoever opens the address at once is served a little later, and not refused
        except OSError:
            bound.close()
            raise
    except OSError as error:
        raise ConfigurationError(
            f"review.host={host} review.port={port}: {error.strerror}; type another, or review.port=0 for a free port"
        ) from error
    return bound


def serve(
    review: Review, settings: ReviewSettings, say: Callable[[str], None], voted: Callable[[int], None], folder: Path
) -> None:
    """Serve the pages until Ctrl-C; the address is told first.

    On loopback the address has a token that lets in whoever started the command.

    Args:
        review: the run's review.
        settings: where to serve.
        say: is told what the user must know.
        voted: is told the number of votes after each.
        folder: the run's, where the address is kept for later invitations.
    """
    bound = bind(settings, invited=review.accounts.anybody_invited(LOCAL_S))
    try:
        url = page_url(settings, bound.getsockname()[1])
        atomic_write(folder / SERVED, f"{url}\n".encode())
        if settings.host in LOOPBACK:
            say(f"open {link(url, review.accounts.invite(_user(), 'lead', LOCAL_S))}")
            say("the link works once; after it, your browser stays signed in")
        else:
            say(f"serving {url} for invited raters")
            if not url.startswith("https://"):
                say("warning: without https others on the network can read along; put a proxy with TLS before the page")
        site = Site(review.accounts, review.store, review.plan, url, voted, lead=review.lead)
        config = uvicorn.Config(
            site.app,
            log_level="error",  # at `warning` whoever sends nonsense fills the terminal
            access_log=False,
            server_header=False,
            proxy_headers=False,
            lifespan="off",
            ws="none",
            limit_concurrency=MOST_CONNECTIONS,
            timeout_keep_alive=KEPT_S,
            timeout_graceful_shutdown=5,
        )
        uvicorn.Server(config).run(sockets=[bound])
    finally:
        bound.close()


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # the system does not know who this is, as in some containers
        return "lead"
