"""Every answer is kept on disk before it is handed on, and never asked for twice.

The journal is one SQLite file, keyed by the digest of everything that a completion depends on: the model's identity,
the messages, the sampling, the seed and the choices. What an engine has finished is committed in one transaction the
moment that it is there: a run that is killed, or whose engine fails, loses nothing that was answered. What the answers
cost is added up in the same transaction, for each run and role, so that budgets hold however often a run is started.

Every row carries a checksum, which is verified when the row is read, so that a large journal opens at once.
"""

import hashlib
import json
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from constitutional.base.errors import ModelError, RunError
from constitutional.engines.base import Completion, Engine, ForwardingEngine, Request, Session, Ticket
from constitutional.engines.spending import Account, Calls, Ledger

FORMAT: Final = 3
"""Kept in the file as SQLite's `user_version`. It is to be raised when columns or the key change. Where it changes
how an engine puts a conversation to a model or reads a reply, a number in that engine's identity is."""

TABLES: Final = {
    "completions": "key TEXT PRIMARY KEY, completion TEXT NOT NULL, checksum TEXT NOT NULL",
    "spent": "run TEXT, role TEXT, asked INTEGER, prompt_tokens INTEGER, cached_tokens INTEGER,"
    " completion_tokens INTEGER, cost REAL, PRIMARY KEY (run, role)",
    "abilities": "engine TEXT, ability TEXT, able INTEGER NOT NULL, PRIMARY KEY (engine, ability)",
}
"""Journals of this format may lack all but the first, which are added when they are opened."""
SPENT: Final = ("asked", "prompt_tokens", "cached_tokens", "completion_tokens", "cost")
"""The columns of `spent` that are added up, as `Calls` names them."""

CACHE_KIB: Final = 32 * 1024
"""Of pages in memory. Keys come in no order, and each may be on any page of the index, of which SQLite by itself keeps
2 MB."""
CHECKPOINT_PAGES: Final = 8 * 1024
"""From one move of pages out of the write-ahead log, which then has 32 MB, to the next. A page that was written several
times until then is moved once."""
BUSY_TIMEOUT_S: Final = 60.0
"""How long to wait while another process writes; a transaction takes milliseconds."""
WAIT_S: Final = 0.02
"""How long a session waits for other sessions of the run, while a budget allows it no request of its own."""


class Journal:
    """The file. Any number of engines, threads and processes may share it.

    Args:
        path: the file, made if it is not there.

    Raises:
        RunError: the file is no journal, or cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._connection = _open(path)
        self._lock = threading.Lock()

    def look_up(self, keys: Sequence[str]) -> dict[str, Completion]:
        """The answers that are kept, by key.

        Raises:
            RunError: one of them is damaged.
        """
        query = "SELECT key, completion, checksum FROM completions WHERE key IN (SELECT value FROM json_each(?))"
        with self._lock, _readable_errors(self.path):
            rows = self._connection.execute(query, (json.dumps(keys),)).fetchall()
        if others := {key for key, _, _ in rows} - set(keys):  # a damaged index may lead to another row
            raise _damaged(self.path, f"it gives the answer kept under {others.pop()} for another request")
        return {key: _completion(self.path, key, text, checksum) for key, text, checksum in rows}

    def keep(
        self, answers: Mapping[str, Completion], account: Account | None = None, calls: Calls | None = None
    ) -> dict[str, Completion]:
        """Write answers down, by key, and return those that count: another process's, where it was first.

        Args:
            answers: by key.
            account: the run and the role that have asked; None counts them against no run.
            calls: what they have spent by these answers.

        Raises:
            RunError: the file cannot be written.
        """
        rows = []
        for key, answer in answers.items():
            text = json.dumps(answer)  # ASCII, so that any text a model writes can be stored
            rows.append((key, text, _checksum(key, text)))
        with self._lock, _readable_errors(self.path), _transaction(self._connection):
            before = self._connection.total_changes
            self._connection.executemany("INSERT OR IGNORE INTO completions VALUES (?, ?, ?)", rows)
            first = self._connection.total_changes - before == len(rows)
            if account and calls and account.ledger.run:
                added = ", ".join(f"{name} = {name} + excluded.{name}" for name in SPENT)
                self._connection.execute(
                    f"INSERT INTO spent VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET {added}",  # noqa: S608
                    (_ascii(account.ledger.run), account.role, *(getattr(calls, name) for name in SPENT)),
                )
        return dict(answers) if first else self.look_up(list(answers))

    def spent(self, run: str) -> dict[str, Calls]:
        """What a run has spent so far, by role."""
        query = f"SELECT role, {', '.join(SPENT)} FROM spent WHERE run = ?"  # noqa: S608
        with self._lock, _readable_errors(self.path):
            rows = self._connection.execute(query, (_ascii(run),)).fetchall()
        return {role: Calls(**dict(zip(SPENT, numbers, strict=True))) for role, *numbers in rows}

    def abilities(self, engine: str) -> dict[str, bool]:
        """What is known of an engine's abilities, by their names, from `remember`."""
        with self._lock, _readable_errors(self.path):
            query = "SELECT ability, able FROM abilities WHERE engine = ?"
            return {name: bool(able) for name, able in self._connection.execute(query, (_ascii(engine),))}

    def remember(self, engine: str, abilities: Mapping[str, bool]) -> None:
        """Keep what an engine can do, so that a run that is done does not ask its server again."""
        rows = [(_ascii(engine), name, able) for name, able in abilities.items()]
        with self._lock, _readable_errors(self.path), _transaction(self._connection):
            self._connection.executemany("INSERT OR REPLACE INTO abilities VALUES (?, ?, ?)", rows)

    def close(self) -> None:
        """Close the file, once no thread writes."""
        with self._lock:
            self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class JournalEngine(ForwardingEngine):
    """Answers from a journal what it holds, asks the engine for the rest, and keeps every answer as it comes.

    Args:
        engine: the model that answers what is not in the journal.
        journal: the journal.
        watch: called whenever answers have come, to say how far things are.
        account: the run and the role that ask, with their budgets and prices; None has no budget, and counts for no
            run.
    """

    def __init__(
        self,
        engine: Engine,
        journal: Journal,
        watch: Callable[[], None] | None = None,
        account: Account | None = None,
    ) -> None:
        super().__init__(engine)
        self.journal = journal
        self.watch = watch or (lambda: None)
        self.account = account or Account(Ledger())
        self.calls = Calls()
        """What has been asked so far."""
        self.saved = Calls()
        """What the answers that were reused would have cost."""

    @property
    def asked(self) -> int:
        """How many requests the engine has answered."""
        return self.calls.asked

    @property
    def reused(self) -> int:
        """How many were answered from the journal, or by an equal request that was asked at the same time."""
        return self.calls.reused

    def session(self) -> "JournalSession":
        """A new session."""
        return JournalSession(self)


class JournalSession:
    """What one caller has asked through the journal.

    The engine gets no more requests than the budgets allow. Where they allow none, what is in flight is awaited and
    kept, and then the session ends.
    """

    def __init__(self, through: JournalEngine) -> None:
        self._through = through
        self._account = through.account
        self._keys = Keys(through.identity)
        self._session: Session | None = None
        self._new: list[tuple[Ticket, Request]] = []
        self._held: deque[tuple[Ticket, str, Request]] = deque()
        """What the journal lacks and the engine has not been asked yet."""
        self._asked: dict[Ticket, tuple[str, Request]] = {}
        """What the engine is answering, by the ticket that it has."""
        self._tickets: dict[str, list[Ticket]] = {}
        """By key, all that wait for its answer."""
        self._uncounted: ModelError | None = None
        """Why nothing more may be asked: a budget needs numbers of tokens, and an answer had none."""

    def submit(self, ticket: Ticket, request: Request) -> None:
        """Take a request."""
        self._new.append((ticket, request))

    def collect(self, timeout_s: float | None = None) -> list[tuple[Ticket, Completion]]:
        """What the journal has; where it has nothing, what the engine has finished, all of it on disk.

        Raises:
            RunError: the journal is damaged or cannot be written.
            ModelError: the engine does not answer what it was asked, or it reports no tokens and a budget needs them;
                nothing is in flight then.
            BudgetError: a budget is reached; nothing is in flight.
        """
        answers = self._from_journal()
        self._ask()
        if not answers and self._asked and self._session:
            finished = self._session.collect(timeout_s)
            answers = self._from_engine(finished)
        elif not answers and self._held:
            self._account.ledger.stop_where_reached(self._account.role)
            time.sleep(WAIT_S if timeout_s is None else min(timeout_s, WAIT_S))
        if answers:
            self._through.watch()
        return answers

    def _from_journal(self) -> list[tuple[Ticket, Completion]]:
        new, self._new = self._new, []
        keys = [self._keys.of(request) for _, request in new]
        known = self._through.journal.look_up(list(dict.fromkeys(keys))) if keys else {}
        answers = []
        for (ticket, request), key in zip(new, keys, strict=True):
            if key in known:
                answers.append((ticket, known[key]))
            elif key in self._tickets:
                self._tickets[key].append(ticket)
            else:
                self._tickets[key] = [ticket]
                self._held.append((ticket, key, request))
        self._reuse([completion for _, completion in answers])
        return answers

    def _ask(self) -> None:
        if self._uncounted:
            return
        allowed = self._account.ledger.take(self._account.role, len(self._held))
        taken = [self._held.popleft() for _ in range(allowed)]
        # All of them before any is submitted, which may fail: closing lands what is here.
        self._asked |= {ticket: (key, request) for ticket, key, request in taken}
        for ticket, _, request in taken:
            self._session = self._session or self._through.engine.session()
            self._session.submit(ticket, request)

    def _from_engine(self, finished: Sequence[tuple[Ticket, Completion]]) -> list[tuple[Ticket, Completion]]:
        by_key: dict[str, Completion] = {}
        wrong: list[ModelError] = []
        for ticket, completion in finished:
            key, request = self._asked.pop(ticket)
            if problem := _problem(completion, request):
                wrong.append(ModelError(problem))
            else:
                by_key[key] = completion
        # What cannot be asked for may be possible later, with another limit or server, so it is not kept.
        kept = {key: answer for key, answer in by_key.items() if answer.finish not in ("too_long", "error")}
        calls = Calls.of((completion for _, completion in finished), self._account.prices, asked=len(kept))
        self._through.calls = Calls.sum([self._through.calls, calls])
        try:
            if calls != Calls():
                by_key |= self._through.journal.keep(kept, self._account, calls)
        finally:
            self._account.ledger.landed(self._account.role, len(finished), calls)
        if wrong:  # what does answer its request is on disk by now
            raise wrong[0]
        self._uncounted = self._uncounted or self._account.uncounted(kept.values())
        if self._uncounted and not self._asked:
            raise self._uncounted
        answers = []
        for key, completion in by_key.items():
            tickets = self._tickets.pop(key)
            answers += [(ticket, completion) for ticket in tickets]
            if key in kept:
                self._reuse([completion] * (len(tickets) - 1))
        return answers

    def _reuse(self, completions: Sequence[Completion]) -> None:
        if completions:
            through, count = self._through, len(completions)
            through.calls = Calls.sum([through.calls, Calls(reused=count)])
            through.saved = Calls.sum([through.saved, Calls.of(completions, self._account.prices)])

    def close(self) -> None:
        """Give up what is outstanding; what has been answered already is kept."""
        if self._session:
            with suppress(Exception):  # what fails here ends with the session, or has been raised before
                self._from_engine(self._session.collect(0.0))
        self._account.ledger.landed(self._account.role, len(self._asked), Calls())
        self._asked = {}
        if self._session:
            self._session.close()


class Keys:
    """The keys of one engine's requests."""

    def __init__(self, identity: str) -> None:
        self._identity = hashlib.sha256(identity.encode())

    def of(self, request: Request) -> str:
        """SHA-256 of the model's identity and the canonical JSON of the whole request, 64 hexadecimal digits."""
        sampling = request.sampling
        depends_on = (
            [(message.role, message.content, *filter(None, [message.extra])) for message in request.messages],
            # float(), because 1 and 1.0 sample alike but are written differently.
            (float(sampling.temperature), float(sampling.top_p), sampling.max_tokens, sampling.stop),
            request.seed,
            request.choices,
        )
        digest = self._identity.copy()
        digest.update(_encode(depends_on).encode())
        if request.schema:
            digest.update(request.schema.encode())
        return digest.hexdigest()


_encode: Final = json.JSONEncoder(separators=(",", ":")).encode


def _open(path: Path) -> sqlite3.Connection:
    """A connection to a sound journal, which is made if the file is not there."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"{path}: its folder cannot be made: {error.strerror}; choose another journal.path") from error
    with _readable_errors(path):
        connection = sqlite3.connect(path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)
    # All that is stored is ASCII; whatever damage has put there must come as far as the checksum.
    connection.text_factory = lambda raw: raw.decode("ascii", "backslashreplace")
    try:
        with _readable_errors(path):
            _set_up(connection, path)
    except BaseException:
        connection.close()
        raise
    return connection


def _set_up(connection: sqlite3.Connection, path: Path) -> None:
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
    connection.execute(f"PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES}")
    # One process at a time gets past this line, so two that make a new journal at once do not trip over each other.
    with _transaction(connection):
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if tables and (version != FORMAT or "completions" not in tables or tables - TABLES.keys()):
            raise RunError(
                f"{path}: is no journal of this version (it holds {', '.join(sorted(tables))}, format {version}; "
                f"expected completions, format {FORMAT}); choose another journal.path"
            )
        for name in TABLES.keys() - tables:
            # In the order in which they came: in that of their keys every answer would write to a page of its own.
            connection.execute(f"CREATE TABLE {name} ({TABLES[name]})")
        if not tables:
            connection.execute(f"PRAGMA user_version = {FORMAT}")
    connection.execute("PRAGMA journal_mode = WAL")


def _completion(path: Path, key: str, text: str, checksum: str) -> Completion:
    if _checksum(key, text) != checksum:
        raise _damaged(path, f"the answer kept under {key} does not match its checksum")
    reply, finish, choice_logprobs, *rest = json.loads(text)
    completion = Completion(reply, finish, tuple(choice_logprobs), *rest)
    return completion._replace(bounded=tuple(completion.bounded))


def _ascii(text: str) -> str:
    return text.encode("ascii", "backslashreplace").decode()


def _checksum(key: str, text: str) -> str:
    # Damage may also change a value's type; repr takes any.
    return hashlib.sha256(repr((key, text)).encode()).hexdigest()


def _problem(answer: Completion, request: Request) -> str | None:
    """Why an answer does not answer its request; None if it does."""
    if answer.failed or len(answer.choice_logprobs) == len(request.choices):
        return None
    return (
        f"the engine gave {len(answer.choice_logprobs)} log-probabilities for the choices {request.choices}; "
        "this answer was not kept"
    )


@contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """All or nothing; IMMEDIATE, so that waiting for another writer happens here and not at the first write."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:  # a full disk has already rolled it back
            connection.execute("ROLLBACK")
        raise


@contextmanager
def _readable_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.OperationalError as error:
        raise RunError(
            f"{path}: the journal cannot be used: {error}. Check the disk's space and the file's permissions, and "
            "start again: what was answered is kept"
        ) from error
    except (sqlite3.DatabaseError, UnicodeDecodeError) as error:  # what SQLite says may quote damaged names
        raise _damaged(path, str(error)) from error


def _damaged(path: Path, problem: str) -> RunError:
    return RunError(
        f"{path}: the journal is damaged: {problem}. Restore it from a copy, or move it away "
        f"(mv {path} {path}.damaged) and start again: its answers are then asked for anew"
    )
