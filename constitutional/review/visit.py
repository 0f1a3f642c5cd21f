"""A request of a rater, as the pages get it."""

from collections.abc import Mapping
from typing import NamedTuple

from starlette.requests import Request

from constitutional.review.accounts import Rater


class Visit(NamedTuple):
    """A request of a rater who is signed in."""

    request: Request
    rater: Rater
    session: str
    form: Mapping[str, str]
    """What was sent; empty where the page is only read."""
