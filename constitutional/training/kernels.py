"""Liger's kernels in place of a model's own norms, rotary positions and MLPs, for as long as it is trained."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from constitutional.base.errors import ConfigurationError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LAYERS = {"cross_entropy": False, "fused_linear_cross_entropy": False}
"""What of Liger is left out. Its fused loss would take the place of the forward pass that TRL's trainers need. Its
other loss, which Granite gets unless Liger is told not to, would be torch's for the whole process."""


_PROBLEM: Final = "use_liger_kernel=true: Liger has no kernels for models of type {}"
_ADVICE: Final = "type sft., reward. or algorithm.use_liger_kernel=false, whichever stage this is"


def check_architecture(model_type: str) -> None:
    """Refuse an architecture that Liger, which is installed, does not know.

    Raises:
        ConfigurationError: it has no kernels for it.
    """
    from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN

    if model_type not in MODEL_TYPE_TO_APPLY_LIGER_FN:
        raise ConfigurationError(f"{_PROBLEM.format(model_type)}; {_ADVICE}")


@contextmanager
def liger_kernels(model: "PreTrainedModel", *, on: bool = True) -> Iterator[None]:
    """Have a model compute by Liger's kernels, and none that is loaded when this is over.

    Liger gives this model its layers, and puts their classes and the function for rotary positions into the module of
    transformers as well, of which every later model of the architecture would be made: one that answers, or one that is
    trained without them. What this model was given, it keeps. Meanwhile, whatever else is of its architecture computes
    by some of the kernels too: DPO's reference, which is meant to, and a labeler that rewards.

    Raises:
        ConfigurationError: Liger has no kernels for it.
    """
    if not on:
        yield
        return
    logging.getLogger("liger_kernel").setLevel(logging.ERROR)  # it warns of kernels for other makers' chips
    names = {type(part).__module__ for part in model.modules()}
    places = [vars(sys.modules[name]) for name in names if name.startswith("transformers.")]
    before = [(place, place.copy()) for place in places]
    try:
        _apply(model)
        yield
    finally:
        for now, then in before:
            now.update(then)


def _apply(model: "PreTrainedModel") -> None:
    """Liger's kernels for a model: in a reward model below the head, which it does not know of some architectures."""
    from liger_kernel.transformers.monkey_patch import _apply_liger_kernel_to_instance

    kind = model.config.model_type
    check_architecture(kind)
    known = model.base_model if hasattr(model, "score") else model
    try:
        _apply_liger_kernel_to_instance(model=known, **LAYERS)
    except (NotImplementedError, TypeError, ValueError) as error:
        problem = f"{_PROBLEM.format(kind)}, as a {type(model).__name__}: {error}"
        raise ConfigurationError(f"{problem}; {_ADVICE}") from error
