"""What the sandbox's model would say that it takes a principle for, without the model."""

from typing import Any, Self

from constitutional.sandbox.understand import Understanding


class FakeUnderstanding(Understanding):
    """An understanding of which only some fields are named."""

    def __new__(cls, text: str, **fields: Any) -> Self:  # noqa: ANN401 - of any field
        usual = {
            "trait": "sycophantic_agreement",
            "direction": "avoid",
            "restated": "Avoid agreeing with what is wrong.",
            "probability": 0.987,
            "runner_up": "avoid flattery",
            "runner_up_probability": 0.009,
            "unknown_words": [],
        }
        return super().__new__(cls, text=text, **{**usual, **fields})
