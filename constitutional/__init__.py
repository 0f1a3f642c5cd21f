"""Train a language model to behave as a written constitution says.

Importing this package loads neither torch nor anything else that is slow: heavy libraries are imported where used, and
the names below when they are first asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from constitutional.base.records import (
        Comparison,
        Judgement,
        Message,
        Preference,
        Prompt,
        Reading,
        Revision,
        RevisionStep,
        Verdict,
    )
    from constitutional.base.templates import load_prompts
    from constitutional.constitution.constitution import Constitution, Principle
    from constitutional.constitution.file import load_constitution
    from constitutional.engines.models import open_engine
    from constitutional.judging.labelling import label
    from constitutional.runs.compose import compose
    from constitutional.runs.runner import load_run, run
    from constitutional.runs.settings import RunConfig
    from constitutional.stages.critique_revise import critique_revise
    from constitutional.stages.mix import mix

__all__ = [
    "Comparison",
    "Constitution",
    "Judgement",
    "Message",
    "Preference",
    "Principle",
    "Prompt",
    "Reading",
    "Revision",
    "RevisionStep",
    "RunConfig",
    "Verdict",
    "__version__",
    "compose",
    "critique_revise",
    "label",
    "load_constitution",
    "load_prompts",
    "load_run",
    "mix",
    "open_engine",
    "run",
]

_RECORDS = "Comparison Judgement Message Preference Prompt Reading Revision RevisionStep Verdict".split()
_HOMES = {
    **dict.fromkeys(_RECORDS, "base.records"),
    **dict.fromkeys(("Constitution", "Principle"), "constitution.constitution"),
    **dict.fromkeys(("load_run", "run"), "runs.runner"),
    "critique_revise": "stages.critique_revise",
    "label": "judging.labelling",
    "load_constitution": "constitution.file",
    "load_prompts": "base.templates",
    "mix": "stages.mix",
    "open_engine": "engines.models",
    "compose": "runs.compose",
    "RunConfig": "runs.settings",
}
"""The module that each public name is loaded from (PEP 562)."""


if not TYPE_CHECKING:  # a type checker would take any name for one of ours

    def __getattr__(name: str) -> object:
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
