"""Where a model's files are, and their digest, by which its weights are known without loading it."""

import hashlib
import json
import math
import re
from pathlib import Path
from typing import Final, NamedTuple

from constitutional.base.errors import ConfigurationError, ModelError
from constitutional.base.files import at_home
from constitutional.base.shipped import MODEL_FOLDER
from constitutional.engines.settings import SANDBOX, ModelSettings, VllmSettings

READ: Final = re.compile(
    r"(generation_)?config\.json|(special_tokens_map|added_tokens|tekken)\.json|(tokenizer|vocab|merges|chat_template).*"
    r"|.*\.(model|tiktoken)|additional_chat_templates/.*\.jinja"
)
"""Files that transformers reads beside the weights: settings, vocabulary, chat template."""
WEIGHTS: Final = "model.safetensors"
INDEX: Final = "model.safetensors.index.json"
"""The weights, or the list of the files that they are divided into."""
DOWNLOADED: Final = ("*.safetensors", "*.json", "*.jinja", "*.model", "*.txt", "*.tiktoken")
NOT_DOWNLOADED: Final = ("consolidated*", "original/*", "onnx/*")
"""The same weights once more in other forms, which transformers does not read: Mistral's, gpt-oss's, and ONNX."""


def model_folder(path: str, revision: str | None = None) -> Path:
    """Where the model's files are; a name on the hub is downloaded, or found in the hub's cache.

    Args:
        path: `sandbox`, a folder, or a name on the hub.
        revision: a branch, a tag or a commit on the hub; nothing else has any.

    Raises:
        ConfigurationError: there is no such folder and no such name.
        ModelError: the model cannot be downloaded, or is not whole there.
    """
    if path == SANDBOX:
        if not (MODEL_FOLDER / "config.json").is_file():
            raise ModelError(f"{MODEL_FOLDER}: the sandbox's model is not there; make it with scripts/build_sandbox.py")
        return MODEL_FOLDER
    if not path.strip():
        raise ConfigurationError("model path is empty; name 'sandbox', a folder, or a model on the Hugging Face hub")
    folder = at_home(path)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ConfigurationError(f"{folder}: has no config.json; name a folder that transformers can load")
        return _whole(folder.resolve())
    if folder.is_absolute() or path.count("/") != 1:
        raise ConfigurationError(
            f"model path '{path}' is neither 'sandbox', nor a folder, nor a name on the Hugging Face hub such as "
            "Qwen/Qwen3-4B-Instruct-2507"
        )
    return _whole(_downloaded(path, revision))


def _whole(folder: Path) -> Path:
    """The folder, if all that decides what its model answers is in files that its identity covers."""
    if (folder / "adapter_config.json").is_file():
        raise ModelError(
            f"{folder}: holds an adapter, whose base model is elsewhere; merge it (PEFT's merge_and_unload), save the "
            "model with its tokenizer, and name that folder"
        )
    if not (folder / WEIGHTS).is_file() and not (folder / INDEX).is_file():
        raise ModelError(
            f"{folder}: has no weights in {WEIGHTS} or {INDEX}; load the model with transformers and write it with "
            "save_pretrained"
        )
    return folder


def _downloaded(name: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        taken, left = list(DOWNLOADED), list(NOT_DOWNLOADED)
        return Path(snapshot_download(name, revision=revision, allow_patterns=taken, ignore_patterns=left))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        problem = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(f"'{name}' is no folder here and cannot be downloaded from the hub: {problem}") from error


class Recommended(NamedTuple):
    """How a model's makers sample its replies."""

    temperature: float = 1.0
    top_p: float = 1.0


NOT_TAKEN: Final = {
    "top_k": 0.0,
    "min_p": 0.0,
    "typical_p": 1.0,
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0.0,
}
"""What `generation_config.json` may say of sampling beside `Recommended`, with the values that change nothing."""


def recommended(path: str, revision: str | None = None) -> Recommended | None:
    """What a model's `generation_config.json` says of sampling; the values that change nothing where it is silent.

    Nothing is downloaded: None for a name on the hub whose files are not here yet.
    """
    said = _generation_config(path, revision)
    if said is None:
        return None
    known = {
        name: said[name]
        for name in Recommended._fields
        if 0 < said.get(name, 0) <= (1 if name == "top_p" else math.inf)
    }
    return Recommended(**known)


def not_taken(path: str, revision: str | None = None) -> dict[str, float]:
    """What else a model's `generation_config.json` says of sampling, which no engine here is asked for."""
    said = _generation_config(path, revision) or {}
    return {name: said[name] for name, usual in NOT_TAKEN.items() if said.get(name, usual) != usual}


def _generation_config(path: str, revision: str | None) -> dict[str, float] | None:
    """The numbers of a model's `generation_config.json`, if it samples; None where its files are not here yet."""
    folder = MODEL_FOLDER if path == SANDBOX else at_home(path)
    if not folder.is_dir():
        folder = _cached(path, revision) or folder
    if not (folder / "config.json").is_file():
        return None
    try:
        said = json.loads((folder / "generation_config.json").read_text(encoding="utf-8"))
        values = said.items() if said.get("do_sample") else ()
    except (OSError, ValueError, AttributeError):
        return {}
    return {name: float(value) for name, value in values if isinstance(value, int | float)}


def _cached(name: str, revision: str | None) -> Path | None:
    """The folder of a model on the hub in the hub's cache, if it is there: a `config.json` alone says nothing of it."""
    from huggingface_hub import try_to_load_from_cache

    if name.count("/") != 1 or not all(name.split("/")):
        return None
    try:
        files = ("generation_config.json", WEIGHTS, INDEX)
        found = [try_to_load_from_cache(name, file, revision=revision) for file in files]
    except ValueError:  # no name that the hub could have
        return None
    return next((Path(file).parent for file in found if isinstance(file, str)), None)


def model_files(folder: Path) -> list[Path]:
    """The files that decide what a model answers, in order: those that transformers reads, whatever lies beside them.

    Raises:
        ModelError: the list of the weights' files cannot be read.
    """
    names = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    files = [folder / name for name in names if READ.fullmatch(name)]
    weights = [WEIGHTS]
    if not (folder / WEIGHTS).is_file():
        try:
            parts = set(json.loads((folder / INDEX).read_bytes())["weight_map"].values())
        except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
            raise ModelError(
                f"{folder / INDEX}: is no list of a model's weights: {error}; download it again"
            ) from error
        weights = [INDEX, *parts]
    return sorted([*files, *(folder / name for name in weights)])


def folder_digest(folder: Path) -> str:
    """SHA-256 over the names and contents of the files that decide what the model answers."""
    digest = hashlib.sha256()
    for path in model_files(folder):
        digest.update(f"{path.relative_to(folder).as_posix()}\0".encode())
        try:
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        except OSError as error:
            raise ModelError(f"{path}: cannot be read: {error.strerror}; download the model again") from error
    return digest.hexdigest()


def weights_digest(folder: Path, settings: ModelSettings | VllmSettings) -> str:
    """SHA-256 of the model's files, and of what the settings add to the tokenizer."""
    text = folder_digest(folder)
    added = settings.model_dump(include={"pad_token", "template"})
    if any(added.values()):
        text += f" {json.dumps(added, sort_keys=True)}"
    return hashlib.sha256(text.encode()).hexdigest()
