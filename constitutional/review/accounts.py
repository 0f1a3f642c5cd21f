"""Raters, the links that let them in, and their sessions. Of tokens the database holds only digests."""

import hashlib
import secrets
import time
import unicodedata
from collections.abc import Callable
from typing import Any, Final, Literal, NamedTuple

from sqlalchemy import Connection, Row, insert, select, update

from constitutional.base.errors import UsageError
from constitutional.judging.people import SETTLED, is_simulated
from constitutional.review.database import Database
from constitutional.review.schema import INVITATION, RATER, SESSION

DAY_S: Final = 86_400.0
INVITED_S: Final = 14 * DAY_S
"""How long an invitation lets a rater in."""
SESSION_S: Final = 30 * DAY_S
"""How long a browser stays signed in."""
LONGEST_NAME: Final = 100
Role = Literal["rater", "lead"]


class Rater(NamedTuple):
    """A person who votes."""

    id: int
    name: str
    role: Role
    opted_out: tuple[str, ...]
    """Categories of harmful texts that the rater does not want to see."""


def digest(token: str) -> str:
    """What is stored of a token. Tokens have 256 random bits, so no salt is needed."""
    return hashlib.sha256(token.encode()).hexdigest()


class Accounts:
    """Who may vote."""

    def __init__(self, database: Database, clock: Callable[[], float] = time.time) -> None:
        self._database = database
        self._clock = clock

    def invite(self, name: str, role: Role | None = None, valid_s: float = INVITED_S) -> str:
        """A token that lets a rater in once; earlier ones that were not used lose their worth.

        Args:
            name: the rater's name; a rater of this name who is there already keeps all votes.
            role: what the rater may do; None leaves the role of a rater who is there as it is.
            valid_s: seconds for which the token is worth something.

        Raises:
            UsageError: the name is empty, too long or cannot be shown.
        """
        name = " ".join(name.split())
        if not name or len(name) > LONGEST_NAME or any(unicodedata.category(letter)[0] == "C" for letter in name):
            raise UsageError(f"the name of a rater has 1 to {LONGEST_NAME} visible characters; type another")
        if is_simulated(name) or name.endswith(SETTLED):
            raise UsageError(f"'{name}' is what simulated raters, or leads' decisions, are called; type another name")
        token = secrets.token_urlsafe(32)

        def work(connection: Connection) -> None:
            now = self._clock()
            rater = connection.scalar(select(RATER.c.id).where(RATER.c.name == name).with_for_update())
            if rater is None:
                values = {"name": name, "role": role or "rater", "opted_out": [], "created": now}
                rater = connection.execute(insert(RATER).values(values).returning(RATER.c.id)).scalar_one()
            elif role is not None:
                connection.execute(update(RATER).where(RATER.c.id == rater).values(role=role))
            unused = (INVITATION.c.rater_id == rater) & INVITATION.c.used.is_(None)
            connection.execute(update(INVITATION).where(unused).values(used=now))
            connection.execute(
                insert(INVITATION).values(rater_id=rater, token_hash=digest(token), created=now, expires=now + valid_s)
            )

        self._database.write(work)
        return token

    def enter(self, token: str) -> str | None:
        """A new session's token in exchange for an invitation's, which is spent; None where it lets nobody in."""
        session = secrets.token_urlsafe(32)

        def work(connection: Connection) -> str | None:
            now = self._clock()
            valid = (
                (INVITATION.c.token_hash == digest(token)) & INVITATION.c.used.is_(None) & (INVITATION.c.expires > now)
            )
            spent = connection.execute(
                update(INVITATION).where(valid).values(used=now).returning(INVITATION.c.rater_id)
            )
            rater = spent.scalar_one_or_none()
            if rater is None:
                return None
            connection.execute(
                insert(SESSION).values(rater_id=rater, token_hash=digest(session), created=now, expires=now + SESSION_S)
            )
            return session

        return self._database.write(work)

    def rater_of(self, session: str) -> Rater | None:
        """Whose session this is; None where it is nobody's, or over."""
        valid = (SESSION.c.token_hash == digest(session)) & (SESSION.c.expires > self._clock())
        with self._database.reading() as connection:
            row = connection.execute(select(RATER).join(SESSION).where(valid)).one_or_none()
        return None if row is None else _rater(row)

    def leave(self, session: str) -> None:
        """End a session."""
        ended = update(SESSION).where(SESSION.c.token_hash == digest(session)).values(expires=self._clock())
        self._database.write(lambda connection: connection.execute(ended).close())

    def anybody_invited(self, valid_s: float) -> bool:
        """Whether there ever was an invitation that was worth something for longer than so many seconds."""
        longer = INVITATION.c.expires > INVITATION.c.created + valid_s + 1  # a second, as sums of floats are inexact
        with self._database.reading() as connection:
            return connection.scalar(select(INVITATION.c.id).where(longer).limit(1)) is not None


def _rater(row: Row[Any]) -> Rater:
    return Rater(row.id, row.name, row.role, tuple(row.opted_out))
