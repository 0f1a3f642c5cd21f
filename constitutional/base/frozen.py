"""What all settings and summaries are: immutable, without unknown fields, each field explained where it stands."""

from pydantic import BaseModel, ConfigDict, ValidationError


class Frozen(BaseModel):
    """An immutable model without unknown fields and without infinite numbers."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


def first_problem(error: ValidationError) -> str:
    """The first mistake that pydantic found, behind the field that it is in."""
    problem = error.errors(include_url=False)[0]
    return ": ".join(filter(None, (".".join(map(str, problem["loc"])), problem["msg"])))
