"""A tracker that remembers what it was told, in the place of one that is installed."""

from collections.abc import Mapping
from typing import Any

import pytest

from constitutional.training import tracking
from constitutional.training.tracking import TrackedStage


def in_place_of_wandb(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What it is told from here on: ("begin", run, stage, key, step), (step, metrics) and ("end", failed)."""
    told: list[Any] = []

    class Told:
        def __init__(self, stage: TrackedStage, key: str | None, step: int) -> None:
            told.append(("begin", stage.run, stage.stage, key, step))
            self.key = f"key of {stage.stage}"

        def log(self, step: int, metrics: Mapping[str, float]) -> None:
            told.append((step, dict(metrics)))

        def finish(self, failed: bool) -> None:
            told.append(("end", failed))

    monkeypatch.setitem(tracking._OPENED_BY, "wandb", Told)
    return told
