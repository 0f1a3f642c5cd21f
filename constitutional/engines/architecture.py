"""What a model is made of, from its `config.json` alone: its weights need not be there."""

from pathlib import Path
from typing import TYPE_CHECKING, Final

from constitutional.base.errors import ConfigurationError, ModelError
from constitutional.base.files import at_home
from constitutional.base.shipped import MODEL_FOLDER

if TYPE_CHECKING:
    from transformers import PretrainedConfig

KNOWN: Final = Path(__file__).parent / "architectures"
"""What the published `config.json` of the presets' models say of their architectures; `/` is `--` in a file's name."""


def config_file(path: str, revision: str | None = None) -> Path:
    """The `config.json` of a model: in its folder, in the hub's cache, among the presets' own, or from the hub.

    Args:
        path: `sandbox`, a folder, or a name on the hub.
        revision: a branch, a tag or a commit on the hub.

    Raises:
        ConfigurationError: there is no such folder and no such name, or the folder has no `config.json`.
        ModelError: the hub cannot be asked.
    """
    from constitutional.engines.settings import SANDBOX  # which needs pydantic, and decoding does without

    if path == SANDBOX:
        return MODEL_FOLDER / "config.json"
    folder = at_home(path)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ConfigurationError(f"{folder}: has no config.json; name a folder that transformers can load")
        return folder / "config.json"
    on_hub = not folder.is_absolute() and path.count("/") == 1
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    if on_hub and isinstance(cached := try_to_load_from_cache(path, "config.json", revision=revision), str):
        return Path(cached)
    if (known := KNOWN / f"{path.replace('/', '--')}.json").is_file():
        return known
    if not on_hub:
        raise ConfigurationError(
            f"model path '{path}' is neither 'sandbox', nor a folder, nor a name on the Hugging Face hub such as "
            "Qwen/Qwen3-4B-Instruct-2507"
        )
    try:
        return Path(hf_hub_download(path, "config.json", revision=revision))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        problem = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(
            f"'{path}' is no folder here, and its config.json cannot be had from the hub: {problem}; put the file into "
            "a folder and name the folder"
        ) from error


def read_config(file: Path) -> "PretrainedConfig":
    """A model's configuration, of its `config.json` or of the folder that has one.

    Raises:
        ModelError: the file is none, or of a model that transformers does not know.
    """
    from transformers import AutoConfig

    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(file, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError) as error:
        problem = f"is no configuration of a model that transformers knows: {_reason(error)}"
        raise ModelError(f"{file}: {problem}") from error
    return config


def unloadable(folder: Path | str, error: Exception, kind: str = "a causal language model") -> ModelError:
    """What to say where transformers cannot load a model: its own reason, in one line."""
    return ModelError(f"{folder}: cannot be loaded as {kind}: {_reason(error)}")


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    if "trust_remote_code" in text:  # transformers advises what no setting offers
        return "it needs code of its own, which is never run here; take a model that transformers itself knows"
    return text or type(error).__name__


def cache_bytes(config: "PretrainedConfig", itemsize: int) -> int:
    """Bytes of the keys and values of one token, in all layers, of numbers of `itemsize` bytes; 0 without attention."""
    text = config.get_text_config()
    heads = getattr(text, "num_key_value_heads", None) or getattr(text, "num_attention_heads", 0)
    if not heads:  # Mamba's states do not grow with what is read
        return 0
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return 2 * int(text.num_hidden_layers) * int(heads) * int(width) * itemsize
