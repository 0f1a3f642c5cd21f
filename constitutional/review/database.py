"""The database of a review, SQLite or PostgreSQL: connections, short transactions, migrations."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Final, TypeVar

import alembic.command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url, text
from sqlalchemy.exc import ArgumentError, DBAPIError, IntegrityError, OperationalError

from constitutional.base.errors import ConfigurationError, RunError

T = TypeVar("T")

FILE: Final = "review.sqlite"
"""The database in a run's folder."""
MIGRATIONS: Final = Path(__file__).parent / "migrations"
TRIES: Final = 5
"""Times that a transaction is tried which another one got in the way of."""
_LOCK: Final = 7_235_911
"""PostgreSQL's advisory lock under which one process at a time migrates."""


class Database:
    """Connections to the database; `write` is the only way to change it."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        # SQLite has one writer at a time. In one process they queue here, which is faster and fairer than its retries.
        self._writer = threading.Lock() if engine.dialect.name == "sqlite" else nullcontext()

    @classmethod
    def open(cls, folder: Path, address: str | None) -> "Database":
        """Connect, and bring the tables up to date.

        Args:
            folder: the run's folder.
            address: postgresql://…; None is the SQLite file in the folder.

        Raises:
            ConfigurationError: the address is wrong, nothing answers there, or a newer version made the tables.
            RunError: the file cannot be opened or is no database.
        """
        url = _url(folder, address)
        if url.drivername == "sqlite":
            engine = create_engine(url, pool_size=10, max_overflow=30)
            event.listen(engine, "connect", _prepare_sqlite)
            event.listen(engine, "begin", _begin_sqlite)
        else:
            engine = create_engine(url, pool_size=10, max_overflow=30, pool_pre_ping=True)
        database = cls(engine)
        shown = url.render_as_string(hide_password=True)
        try:
            database._migrate()
        except CommandError as error:
            database.close()
            raise ConfigurationError(f"{shown}: {error}; a newer version made this database: install it") from error
        except DBAPIError as error:
            database.close()
            reason = " ".join(str(error.orig).split())
            if address is None:
                raise RunError(f"{url.database}: cannot be opened: {reason}; move it away or give access") from error
            raise ConfigurationError(f"review.database={shown}: {reason}; start the server, or type another") from error
        return database

    def _migrate(self) -> None:
        config = Config()
        config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
        with self.engine.connect().execution_options(writes=True) as connection, connection.begin():
            if self.engine.dialect.name == "postgresql":
                connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
            config.attributes["connection"] = connection
            alembic.command.upgrade(config, "head")

    def write(self, work: Callable[[Connection], T]) -> T:
        """What `work` returns, after all that it did is committed.

        `work` is called again where another transaction got in its way, so it must do nothing but read and write here.
        """
        for attempt in range(TRIES):
            try:
                with (
                    self._writer,
                    self.engine.connect().execution_options(writes=True) as connection,
                    connection.begin(),
                ):
                    return work(connection)
            except (IntegrityError, OperationalError):
                if attempt == TRIES - 1 or self.engine.dialect.name == "sqlite":
                    raise
        raise AssertionError("the last try returns or raises")

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A connection that sees the database as it is now, statement by statement."""
        with self.engine.connect() as connection:
            if self.engine.dialect.name == "postgresql":  # which need not be asked to begin and to end
                connection.execution_options(isolation_level="AUTOCOMMIT")
            yield connection

    def close(self) -> None:
        """Close all connections."""
        self.engine.dispose()


def _url(folder: Path, address: str | None) -> URL:
    if address is None:
        return URL.create("sqlite", database=str(folder / FILE))
    try:
        url = make_url(address)
    except ArgumentError as error:
        raise ConfigurationError("review.database is no address; type postgresql://USER:PASSWORD@HOST/NAME") from error
    if url.get_backend_name() != "postgresql":
        backend = url.get_backend_name()
        raise ConfigurationError(
            f"review.database is an address of {backend}; type postgresql://USER:PASSWORD@HOST/NAME"
        )
    return url.set(drivername="postgresql+psycopg")


def _prepare_sqlite(connection: Any, _: object) -> None:  # noqa: ANN401 - the driver's own
    connection.isolation_level = None  # the driver begins no transaction by itself
    cursor = connection.cursor()
    for setting in ("busy_timeout=15000", "journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        cursor.execute(f"PRAGMA {setting}")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    # A transaction that reads first and writes later could not become a writer once another has written.
    writes = connection.get_execution_options().get("writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
