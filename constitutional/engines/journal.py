"""Every answer is kept on disk before it is handed on, and never asked for twice.

The journal is one SQLite file, keyed by the digest of everything that a completion depends on: the model's identity,
the messages, the sampling, the seed and the choices. A list of requests is answered in consecutive batches, each
committed in one transaction. So a run that is killed and started again loses the batch that was in flight and nothing
else; and since where a batch begins depends on the list alone, that batch is asked again with the same neighbours and
gives the same bytes, even where a model's rounding errors depend on what it computes at the same time.
"""

import hashlib
import json
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from constitutional.base.errors import ModelError, RunError
from constitutional.engines.base import Completion, Engine, Request

FORMAT: Final = 2
"""Kept in the file as SQLite's `user_version`. It is to be raised when the table or the key changes, or how the engines
put a conversation to a model, which no key holds."""

BUSY_TIMEOUT_S: Final = 60.0
"""How long to wait while another process writes; a batch's transaction takes milliseconds."""


class JournalEngine:
    """Answers from the journal what it holds, and asks the engine for the rest.

    Args:
        engine: the model that answers what is not in the journal.
        path: the journal's file, made if it is not there. Any number of engines and processes may share one.
        batch_size: how many requests are asked and committed together, which is the most that a kill can lose.

    Raises:
        RunError: the file is damaged, is no journal, or cannot be written.
    """

    def __init__(self, engine: Engine, path: Path, *, batch_size: int = 256) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; it must be at least 1")
        self.engine = engine
        self.path = path
        self.batch_size = batch_size
        self.asked = 0
        """How many requests the engine was asked."""
        self.reused = 0
        """How many were answered from the journal, or by an equal request of the same list."""
        self._connection = _open(path)

    @property
    def identity(self) -> str:
        """The engine's own: whether an answer was kept makes no difference to it."""
        return self.engine.identity

    def complete(self, requests: Sequence[Request]) -> list[Completion]:
        """One completion for each request, in order, each of them on disk.

        Raises:
            RunError: the journal is damaged or cannot be written.
            ModelError: the engine does not answer what it was asked.
        """
        completions: list[Completion] = []
        for start in range(0, len(requests), self.batch_size):
            completions += self._complete_batch(requests[start : start + self.batch_size])
        return completions

    def _complete_batch(self, batch: Sequence[Request]) -> list[Completion]:
        identity = self.identity
        keys = [key_of(identity, request) for request in batch]
        known = self._look_up(keys)
        # A dictionary, so that equal requests are asked once and the order is that of the list.
        missing = {key: request for key, request in zip(keys, batch, strict=True) if key not in known}
        if missing:
            answers = self.engine.complete(list(missing.values()))
            _check(answers, list(missing.values()))
            self._commit(dict(zip(missing, answers, strict=True)))
            # Read back, because another process may have been first, and only one answer must ever be used.
            known |= self._look_up(list(missing))
        self.asked += len(missing)
        self.reused += len(batch) - len(missing)
        return [known[key] for key in keys]

    def _look_up(self, keys: Sequence[str]) -> dict[str, Completion]:
        query = "SELECT key, completion, checksum FROM completions WHERE key IN (SELECT value FROM json_each(?))"
        with _readable_errors(self.path):
            rows = self._connection.execute(query, (json.dumps(keys),)).fetchall()
        return {key: _completion(self.path, key, text, checksum) for key, text, checksum in rows}

    def _commit(self, answers: Mapping[str, Completion]) -> None:
        rows = []
        for key, answer in answers.items():
            text = json.dumps(answer)  # ASCII, so that any text a model writes can be stored
            rows.append((key, text, _checksum(key, text)))
        with _readable_errors(self.path), _transaction(self._connection):
            self._connection.executemany("INSERT OR IGNORE INTO completions VALUES (?, ?, ?)", rows)

    def close(self) -> None:
        """Close the file; the engine is left as it is."""
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def key_of(identity: str, request: Request) -> str:
    """SHA-256 of the canonical JSON of the model's identity and the whole request, 64 hexadecimal digits."""
    sampling = request.sampling
    depends_on = {
        "model": identity,
        "messages": [[message.role, message.content] for message in request.messages],
        # float(), because 1 and 1.0 sample alike but are written differently.
        "temperature": float(sampling.temperature),
        "top_p": float(sampling.top_p),
        "max_tokens": sampling.max_tokens,
        "stop": sampling.stop,
        "seed": request.seed,
        "choices": request.choices,
    }
    return hashlib.sha256(json.dumps(depends_on, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _open(path: Path) -> sqlite3.Connection:
    """A connection to a sound journal, which is made if the file is not there."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"{path}: its folder cannot be made: {error.strerror}; choose another journal.path") from error
    with _readable_errors(path):
        connection = sqlite3.connect(path, timeout=BUSY_TIMEOUT_S, isolation_level=None)
    # All that is stored is ASCII; whatever damage has put there must come as far as the checksum.
    connection.text_factory = lambda raw: raw.decode("ascii", "backslashreplace")
    try:
        with _readable_errors(path):
            _set_up(connection, path)
            _verify(connection, path)
    except BaseException:
        connection.close()
        raise
    return connection


def _set_up(connection: sqlite3.Connection, path: Path) -> None:
    connection.execute("PRAGMA synchronous = FULL")
    # One process at a time gets past this line, so two that make a new journal at once do not trip over each other.
    with _transaction(connection):
        found = connection.execute("PRAGMA user_version").fetchone()[0]
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if not tables:
            connection.execute(
                "CREATE TABLE completions (key TEXT PRIMARY KEY, completion TEXT NOT NULL, checksum TEXT NOT NULL)"
                " WITHOUT ROWID"
            )
            connection.execute(f"PRAGMA user_version = {FORMAT}")
        elif tables != {"completions"} or found != FORMAT:
            raise RunError(
                f"{path}: is no journal of this version (it holds {', '.join(sorted(tables))}, format {found}; "
                f"expected completions, format {FORMAT}); choose another journal.path"
            )
    connection.execute("PRAGMA journal_mode = WAL")


def _verify(connection: sqlite3.Connection, path: Path) -> None:
    """Check the file's structure and every row once: a damaged key would otherwise only look like a new request."""
    report = [line for (line,) in connection.execute("PRAGMA quick_check")]
    if report != ["ok"]:
        raise _damaged(path, report[0])
    for key, text, checksum in connection.execute("SELECT key, completion, checksum FROM completions"):
        if _checksum(key, text) != checksum:
            raise _damaged(path, f"the answer kept under {key} does not match its checksum")


def _completion(path: Path, key: str, text: str, checksum: str) -> Completion:
    if _checksum(key, text) != checksum:
        raise _damaged(path, f"the answer kept under {key} does not match its checksum")
    reply, finish, choice_logprobs = json.loads(text)
    return Completion(reply, finish, tuple(choice_logprobs))


def _checksum(key: str, text: str) -> str:
    # Damage may also change a value's type; repr takes any.
    return hashlib.sha256(repr((key, text)).encode()).hexdigest()


def _check(answers: Sequence[Completion], requests: Sequence[Request]) -> None:
    """What is written down must answer what was asked."""
    if len(answers) != len(requests):
        raise ModelError(f"the engine gave {len(answers)} completions for {len(requests)} requests; nothing was kept")
    for answer, request in zip(answers, requests, strict=True):
        if len(answer.choice_logprobs) != len(request.choices):
            raise ModelError(
                f"the engine gave {len(answer.choice_logprobs)} log-probabilities for the choices {request.choices}; "
                "nothing was kept"
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
            "start again: every finished batch is kept"
        ) from error
    except sqlite3.DatabaseError as error:
        raise _damaged(path, str(error)) from error


def _damaged(path: Path, problem: str) -> RunError:
    return RunError(
        f"{path}: the journal is damaged: {problem}. Restore it from a copy, or move it away "
        f"(mv {path} {path}.damaged) and start again: its answers are then asked for anew"
    )
