"""What the test-bed's model would say that it takes a principle for, without the model."""

from dataclasses import dataclass, field


@dataclass
class FakeUnderstanding:
    text: str
    trait: str = "sycophantic_agreement"
    direction: str = "avoid"
    restated: str = "Avoid agreeing with what is wrong."
    probability: float = 0.987
    runner_up: str = "avoid flattery"
    runner_up_probability: float = 0.009
    unknown_words: list[str] = field(default_factory=list)
