"""The stage `adopted`, in the place of a training: the policy was trained elsewhere, from this run's SFT model.

`constitutional export RUN --to verl -o FOLDER` (or openrlhf, nemo-rl) hands a training over, and `constitutional adopt
RUN FOLDER` brings the policy back. It is checked and copied, so that nothing that becomes of the folder later changes
the run. The stage's fingerprint rests on the digest of the folder as it was adopted.
"""

import json
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from constitutional.base.errors import ConfigurationError, InputError, ModelError, RunError
from constitutional.base.files import digest_of
from constitutional.base.frozen import TECHNICAL, Frozen
from constitutional.engines.architecture import unloadable
from constitutional.engines.chat import load_tokenizer
from constitutional.engines.model_files import INDEX, WEIGHTS, model_folder
from constitutional.stages.context import StageContext
from constitutional.stages.summaries import AdoptedSummary
from constitutional.training.quiet import quiet_libraries
from constitutional.training.rows import render
from constitutional.training.saving import copy_model

_SAMPLE: Final = [
    {"role": "user", "content": "What is the capital of France?"},
    {"role": "assistant", "content": "Paris."},
    {"role": "user", "content": "Name a colour."},
]


class Settings(Frozen):
    """A policy that was trained elsewhere."""

    kind: Literal["adopted"] = "adopted"
    folder: Path
    """The folder of the policy: a causal language model as transformers saves it, with the SFT model's tokenizer."""
    digest: Annotated[str, TECHNICAL] = ""
    """SHA-256 of the folder when it was adopted, which `adopt` writes down. It stands for the folder in the stage's
    fingerprint, so once the policy is copied nobody reads the folder again."""


def check(folder: Path, sft_model: Path) -> None:
    """Refuse a folder that cannot be the policy of a run with this SFT model. No weights are loaded.

    Raises:
        InputError: says what the folder holds, what is expected, and what to type.
    """
    if not folder.is_dir():
        raise InputError(folder, f"is {'no folder' if folder.exists() else 'not there'}; {_EXPECTED}")
    try:
        model_folder(str(folder))
    except (ConfigurationError, ModelError) as error:
        within = [path.parent for path in sorted(folder.rglob("config.json")) if _has_weights(path.parent)]
        if len(within) == 1 and within[0] != folder:
            raise InputError(folder, f"holds no model itself; did you mean {within[0]}?") from error
        raise InputError(folder, f"{str(error).removeprefix(f'{folder}: ')}. {_EXPECTED}") from error
    try:
        theirs, ours = (_said(path) for path in (folder, sft_model))
    except ValueError as error:
        raise InputError(folder / "config.json", f"is no JSON: {error}; {_EXPECTED}") from error
    for what, name in (("a", "architectures"), ("a vocabulary of", "vocab_size")):
        if theirs[name] != ours[name]:
            raise InputError(
                folder, f"is {what} {theirs[name]}, and the SFT model of the run {what} {ours[name]}; {_EXPECTED}"
            )
    copies = f"copy the tokenizer's files from {sft_model}, if it was trained with that: all but weights and config"
    try:
        tokenizer = load_tokenizer(folder)
    except ModelError as error:
        raise InputError(folder, f"its tokenizer cannot be loaded; {copies}") from error
    own = load_tokenizer(sft_model)
    if tokenizer.get_vocab() != own.get_vocab():
        raise InputError(folder, f"has another tokenizer than the SFT model of the run; {copies}")
    if not tokenizer.chat_template or render(tokenizer, _SAMPLE, ask=True) != render(own, _SAMPLE, ask=True):
        raise InputError(folder, f"its chat template is not the one that the SFT model of the run has; {copies}")


_EXPECTED: Final = (
    "expected a policy that was trained from the run's SFT model, in a folder that transformers loads; README.md of "
    "the exported folder says where it comes out"
)


def _has_weights(folder: Path) -> bool:
    return (folder / WEIGHTS).is_file() or (folder / INDEX).is_file()


def _said(folder: Path) -> dict[str, Any]:
    """What a model's configuration says of its class and its vocabulary."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    text = {**config, **config.get("text_config", {})}
    return {"architectures": ", ".join(config.get("architectures") or ["?"]), "vocab_size": text.get("vocab_size")}


def run(settings: Settings, context: StageContext) -> None:
    """Check the folder, copy it as `policy`, and say where the policy comes from."""
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    sft_model = context.model("sft_model")
    check(settings.folder, sft_model)
    digest = digest_of(settings.folder)
    if settings.digest not in ("", digest):
        raise RunError(f"{settings.folder}: has changed since it was adopted; type `constitutional adopt …` again")
    quiet_libraries()
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            settings.folder, dtype="auto", use_safetensors=True, trust_remote_code=False, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, ImportError, SafetensorError) as error:
        raise unloadable(settings.folder, error) from error
    if missing := sorted(loaded[1]["missing_keys"]):  # which transformers would draw at random
        names = ", ".join(missing[:3])
        raise ModelError(
            f"{settings.folder}: lacks {len(missing)} of the model's weights, such as {names}; save the "
            "whole model where it was trained, and adopt that"
        )
    same = digest_of(sft_model) == digest
    if same:
        context.warn("the policy that was adopted is the SFT model, file by file")
    copy_model(settings.folder, context.output("policy"))
    context.summarise(AdoptedSummary(folder=settings.folder.name, digest=digest, same_as_sft=same))
