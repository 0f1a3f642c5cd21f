"""What all settings and summaries are: immutable, without unknown fields, each field explained where it stands."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, ValidationError


class Frozen(BaseModel):
    """An immutable model without unknown fields and without infinite numbers."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


class _Technical:
    """The type of `TECHNICAL`."""


TECHNICAL: Final = _Technical()
"""Stands in the annotation of a setting that changes speed, memory or what is logged, and no result."""


def decisive(settings: BaseModel, digest: Callable[[Path], str]) -> dict[str, Any]:
    """What results depend on: the settings that are neither technical nor at their defaults, as JSON values.

    A setting that is new, and at its default, therefore changes nothing. A file stands for its content. Results may
    depend on what technical settings come to together: a model's `DERIVED` names such properties.

    Args:
        settings: any settings; others may be nested in them.
        digest: the digest of a file's or folder's content.
    """
    values: dict[str, Any] = {}
    for name, field in type(settings).model_fields.items():
        if TECHNICAL in field.metadata:
            continue
        default, value = field.get_default(call_default_factory=True, validated_data={}), getattr(settings, name)
        plain = _plain(value, digest)
        # The kind says which settings these are.
        if name == "kind" or (value != default and plain != _plain(default, digest)):
            values[name] = plain
    derived: tuple[str, ...] = getattr(type(settings), "DERIVED", ())
    return values | {name: getattr(settings, name) for name in derived}


def _plain(value: Any, digest: Callable[[Path], str]) -> Any:  # noqa: ANN401 - a setting of any type
    if isinstance(value, BaseModel):
        return decisive(value, digest)
    if isinstance(value, Path):  # the ending of a name says how a file is read
        return f"{digest(value)} {value.suffix}"
    if isinstance(value, Mapping):
        return {str(key): _plain(part, digest) for key, part in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(part, digest) for part in value]
    return value


def first_problem(error: ValidationError) -> str:
    """The first mistake that pydantic found, behind the field that it is in."""
    problem = error.errors(include_url=False)[0]
    return ": ".join(filter(None, (".".join(map(str, problem["loc"])), problem["msg"])))
