from collections.abc import Sequence

from constitutional.base.records import Message
from constitutional.engines.base import Completion, Engine, Request, TooLongError, complete_fitting
from constitutional.engines.scripted import ScriptedEngine


class ShortSighted(ScriptedEngine):
    """Reads conversations of at most five characters, and refuses a whole list for one that is longer."""

    def __init__(self) -> None:
        super().__init__(lambda request: request.messages[0].content.upper())

    def complete(self, requests: Sequence[Request]) -> list[Completion]:
        if any(len(request.messages[0].content) > 5 for request in requests):
            raise TooLongError("too long")
        return super().complete(requests)


def answered(engine: Engine, *texts: str) -> list[str | None]:
    found = complete_fitting(engine, [Request((Message("user", text),)) for text in texts])
    return [each and each.text for each in found]


def test_of_a_list_only_what_is_too_long_has_no_answer() -> None:
    engine = ShortSighted()
    assert answered(engine, "a", "much too long", "b", "c", "also too long") == ["A", None, "B", "C", None]
    assert engine.count == 3  # each that can be read is asked once
    assert answered(engine, "much too long") == [None]
    assert answered(engine) == []
