"""What all settings and summaries are: immutable, without unknown fields, each field explained where it stands."""

from pydantic import BaseModel, ConfigDict


class Frozen(BaseModel):
    """An immutable model without unknown fields and without infinite numbers."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)
