"""The settings of `constitutional review`, typed as review.KEY=VALUE."""

import re
from collections.abc import Sequence
from typing import Annotated, Final, Literal, Self
from urllib.parse import urlsplit

import yaml
from pydantic import AfterValidator, BeforeValidator, Field, ValidationError, model_validator

from constitutional.base.errors import ConfigurationError, UsageError
from constitutional.base.frozen import Frozen, first_problem

PREFIX: Final = "review."
LOOPBACK: Final = ("127.0.0.1", "::1", "localhost")
EVERY_ADDRESS: Final = ("0.0.0.0", "::")  # noqa: S104 - named in order to ask for an address
Task = Literal["pair", "rewrite", "rank"]
About = Literal["comparisons", "evaluation"]


def _named(value: object) -> object:
    """A list's patterns are their own names."""
    if not isinstance(value, list | tuple):
        return value
    if not all(isinstance(pattern, str) for pattern in value):
        raise ValueError("expected words, such as [kill, stab], or patterns by category, {violence: 'kill|stab'}")
    return {pattern: pattern for pattern in value}


def _a_name(name: str) -> str:
    if not name.strip() or ";" in name:
        raise ValueError(f"'{name}' is no name of a category: it is empty or has a semicolon; type {{NAME: '{name}'}}")
    return name


def _a_pattern(pattern: str) -> str:
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ValueError(f"'{pattern}' is no regular expression: {error}") from error
    if compiled.search(""):
        raise ValueError(f"'{pattern}' matches every text")
    return pattern


def _an_address(url: str) -> str:
    try:
        host = urlsplit(url).hostname if urlsplit(url).port != 0 else None
    except ValueError:  # the port is no number up to 65535, or a bracket is open
        host = None
    if not host:
        raise ValueError(f"'{url}' is no address of a page; expected one such as https://review.example.org:8443")
    return url


class ReviewSettings(Frozen):
    """How people are asked."""

    task: Task = "pair"
    """`pair` compares two replies, `rewrite` asks for a better reply, `rank` orders all replies to a prompt."""
    about: About = "comparisons"
    """`comparisons` are those that the run trains on; `evaluation` are the last model's replies against the earlier
    models', which the labeler compared at the run's end: votes on them correct its win rates, and train nothing."""
    host: str = "127.0.0.1"
    """Address to listen on. An address that other machines reach needs invited raters."""
    port: Annotated[int, Field(ge=0, le=65535)] = 8410
    """Port to listen on; 0 takes a free one, on which browsers have to sign in anew."""
    url: Annotated[str, Field(pattern=r"^https?://[^/\s@?#]+$"), AfterValidator(_an_address)] | None = None
    """What raters type to reach the page, such as https://review.example.org where a proxy stands before it; null is
    http://HOST:PORT."""
    database: str | None = None
    """A PostgreSQL address, postgresql://USER:PASSWORD@HOST/NAME; null is review.sqlite in the run's folder."""
    overlap: Annotated[int, Field(ge=1, le=100)] = 1
    """Raters who vote on each item, where no plan says otherwise."""
    budget: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """What people's votes may come to, in spotcheck.unit, on a run that was made without spotcheck.budget: the
    comparisons are chosen as spotcheck.targets says, also by the run's own reward model. 0 asks about all."""
    by_principle: bool = False
    """Raters also answer by each principle of the constitution."""
    sensitive: Annotated[
        dict[Annotated[str, AfterValidator(_a_name)], Annotated[str, AfterValidator(_a_pattern)]],
        BeforeValidator(_named),
    ] = Field(default={})
    """Words or regular expressions, in a list or by the categories of harm that raters read and can opt out of, such as
    {violence: 'kill|stab'}. A text in which one occurs is hidden until a rater asks to see it. Texts about prompts of a
    kind that is known to be harmful are hidden without this."""
    minutes: Annotated[float, Field(gt=0)] = 30
    """Time after which an item that a rater has not answered goes to another."""
    pay_per_hour: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """What raters are paid for an hour; null is the run's report.pay_per_hour."""
    currency: Annotated[str, Field(max_length=20)] = ""
    """The currency of that pay, such as EUR; empty is the run's report.currency."""

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        if self.about == "evaluation" and self.task != "pair":
            raise ValueError(f"about=evaluation asks for votes on pairs; leave task={self.task} out")
        return self


def read_settings(words: Sequence[str]) -> ReviewSettings:
    """The settings that the words `review.KEY=VALUE` name; values are YAML.

    Raises:
        UsageError: a word has another form, or its key stands twice.
        ConfigurationError: there is no such setting, or its value is wrong.
    """
    values: dict[str, object] = {}
    for word in words:
        key, equals, value = word.partition("=")
        name = key.removeprefix(PREFIX)
        if not equals or name == key:
            raise UsageError(f"'{word}' is not understood; expected review.KEY=VALUE, such as review.port=8000")
        if name in values:
            raise UsageError(f"{key} stands twice; keep one of the two")
        try:
            values[name] = yaml.safe_load(value)
        except (yaml.YAMLError, ValueError) as error:  # a ValueError of what looks like a date, and is none
            raise ConfigurationError(f"{key}: '{value}' is no YAML value; put it in quotes") from error
    if unknown := [name for name in values if name not in ReviewSettings.model_fields]:
        known = ", ".join(f"{PREFIX}{name}" for name in ReviewSettings.model_fields)
        raise ConfigurationError(f"there is no setting {PREFIX}{unknown[0]}; the settings are {known}")
    try:
        return ReviewSettings.model_validate(values)
    except ValidationError as error:
        raise ConfigurationError(f"{PREFIX}{first_problem(error)}") from error
