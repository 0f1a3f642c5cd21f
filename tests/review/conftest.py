"""Databases to review in: SQLite, and a PostgreSQL server of the tests' own where one can be started."""

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path

import pytest

from constitutional.review.database import Database
from tests.scripted_run import World, configured, constitution, go

NUMBERS = count()


def binary(name: str) -> str | None:
    """A program of PostgreSQL, which Debian keeps off the path."""
    places = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    return shutil.which(name) or (str(places[-1]) if places else None)


@pytest.fixture(scope="session")
def postgresql() -> Iterator[str]:
    """The address of a server, with `{}` in the place of a database's name."""
    initdb, control = binary("initdb"), binary("pg_ctl")
    if initdb is None or control is None:
        pytest.skip("there is no PostgreSQL server here; install postgresql")
    prefix: list[str] = []
    with tempfile.TemporaryDirectory(prefix="review-pg-") as name:
        if os.geteuid() == 0:  # which PostgreSQL refuses to be
            try:
                user = pwd.getpwnam("postgres")
            except KeyError:
                pytest.skip("PostgreSQL does not run as root, and there is no user postgres")
            os.chown(name, user.pw_uid, user.pw_gid)
            prefix = ["runuser", "-u", "postgres", "--"]
        data = f"{name}/data"

        def run(words: Sequence[str]) -> None:
            subprocess.run([*prefix, *words], check=True, stdout=subprocess.DEVNULL, timeout=60, cwd=name)

        run([initdb, "-D", data, "-U", "review", "-A", "trust", "-E", "UTF8", "--no-locale", "--no-sync"])
        options = f"-k {name} -c listen_addresses='' -c max_connections=100 -c shared_buffers=16MB"
        run([control, "-D", data, "-w", "-l", f"{name}/log", "-o", options, "start"])
        try:
            yield f"postgresql://review@/{{}}?host={name}"
        finally:
            run([control, "-D", data, "-m", "immediate", "stop"])


@pytest.fixture
def new_postgresql(postgresql: str) -> str:
    """The address of an empty database."""
    import psycopg

    name = f"review{next(NUMBERS)}"
    with psycopg.connect(postgresql.format("postgres"), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    return postgresql.format(name)


@pytest.fixture(params=["sqlite", "postgresql"])
def address(request: pytest.FixtureRequest) -> str | None:
    """What `review.database` is: nothing, or a new database's address."""
    if request.param == "sqlite":
        return None
    made: str = request.getfixturevalue("new_postgresql")
    return made


@pytest.fixture
def database(address: str | None, tmp_path: Path) -> Iterator[Database]:
    opened = Database.open(tmp_path, address)
    yield opened
    opened.close()


@pytest.fixture
def sqlite(tmp_path: Path) -> Iterator[Database]:
    opened = Database.open(tmp_path, None)
    yield opened
    opened.close()


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of scripted models up to its comparisons."""
    folder = tmp_path_factory.mktemp("reviewed")
    constitution(folder)
    store, _ = go(configured(folder, "prompts.train=40", "until=sample_pairs"), World())
    return store.folder


@pytest.fixture
def run_folder(finished_run: Path, tmp_path: Path) -> Path:
    """A copy of that run, for one test."""
    shutil.copytree(finished_run.parent, tmp_path / "runs", symlinks=True)
    return tmp_path / "runs" / finished_run.name
