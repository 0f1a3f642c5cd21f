"""A turn of a conversation. It stands apart from the rows, as models are asked and trained without pydantic."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Self

Role = Literal["system", "user", "assistant", "tool", "developer"]


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: Role
    content: str
    # What stands in the metadata pydantic takes for its own: rows are written without an empty `extra`.
    extra: str = field(default="", metadata={"exclude_if": lambda extra: not extra})
    """What else a chat template is given of the turn, such as `tool_calls`: a JSON object, or empty."""

    def turn(self) -> dict[str, Any]:
        """The message as chat templates and servers take it."""
        return {"role": self.role, "content": self.content, **(json.loads(self.extra) if self.extra else {})}

    @classmethod
    def of(cls, turn: Mapping[str, Any]) -> Self:
        """The message of a turn as `turn` gives it. A key without a value is none: tables give all turns all keys."""
        others = {key: value for key, value in turn.items() if key not in ("role", "content") and value is not None}
        extra = json.dumps(others, ensure_ascii=False, sort_keys=True) if others else ""
        return cls(turn["role"], turn["content"], extra)
