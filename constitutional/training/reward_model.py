"""Reward models in use: loading, and scoring conversations that end with a reply."""

import inspect
import json
import math
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, get_args

from constitutional.base.errors import ModelError
from constitutional.base.files import atomic_write
from constitutional.base.message import Message
from constitutional.engines.architecture import read_config, unloadable
from constitutional.engines.chat import Tokenizer, load_tokenizer
from constitutional.training.quiet import quiet_libraries
from constitutional.training.rows import chat, token_ids

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel

NORMALISATION = "normalisation.json"
SCORED_TOGETHER = 32
"""Conversations that are scored in one pass."""


class Moments(NamedTuple):
    """Mean and deviation of a reward model's scores on reference samples."""

    mean: float
    deviation: float
    """More than 0."""


class RewardScore(NamedTuple):
    """A conversation's score by one or several reward models, in deviations from the mean of reference samples."""

    mean: float
    deviation: float
    """Deviation of the members' scores about their mean (Christiano et al. 2017, section 2.2.4); 0 if there is one."""


def moments(folder: Path) -> list[Moments]:
    """The moments by which the scores of each reward model in a run's folder are normalised.

    Raises:
        ModelError: one gave every reference sample the same score, so nothing can be learned from it.
    """
    members = json.loads((folder / NORMALISATION).read_text())["members"]
    scales = [Moments(member["mean"], member["deviation"]) for member in members]
    if flat := [number for number, scale in enumerate(scales) if not scale.deviation > 0]:
        raise ModelError(
            f"{folder / str(flat[0])}: gave every reference sample the same score, so nothing can be learned from it; "
            "look at the preferences that it was trained on, and train it again"
        )
    return scales


def members(folder: Path) -> list[Path]:
    """The folders of the reward models in a run's folder, or the folder itself where it is one reward model.

    Raises:
        ModelError: there is none.
    """
    if not has_members(folder):
        raise ModelError(f"{folder}: holds no reward model, as its run had no preference to learn from; name another")
    if not (folder / NORMALISATION).exists():
        return [folder]
    return [folder / str(number) for number in range(len(json.loads((folder / NORMALISATION).read_text())["members"]))]


def has_members(folder: Path) -> bool:
    """Whether a run trained a reward model into this folder: without preferences it has no member."""
    file = folder / NORMALISATION
    return not file.exists() or bool(json.loads(file.read_text())["members"])


def score(folder: Path, conversations: Sequence[Sequence[Message]]) -> list[RewardScore]:
    """Score conversations by the reward models in a folder: the mean of the members' normalised scores."""
    columns = []
    for number, reference in enumerate(moments(folder)):
        model, tokenizer = load_reward_model(folder / str(number))
        raw = raw_scores(model, tokenizer, conversations)
        columns.append([(number - reference.mean) / reference.deviation for number in raw])
    scores = []
    for values in zip(*columns, strict=True):
        mean = sum(values) / len(values)
        scores.append(RewardScore(mean, math.sqrt(sum((value - mean) ** 2 for value in values) / len(values))))
    return scores


def fold(folder: Path, reference: Moments, into: Path) -> float:
    """Copy one reward model, with its deviation folded into its head; returns the shift that is left.

    The copy gives (score − mean) / deviation + shift, with the shift mean / deviation. No head of a language model in
    transformers has a bias that could take the shift, so it stands in the copy's config.json, as `mean` beside a `std`
    of 1, where OpenRLHF looks for it.

    Raises:
        ModelError: the model's head is none that transformers gives to language models.
    """
    from safetensors.torch import load_file, save_file

    # Not above: who only trains with this reward model needs no settings of engines.
    from constitutional.engines.model_files import INDEX, WEIGHTS
    from constitutional.training.saving import copy_model

    copy_model(folder, into)
    file, head = into / WEIGHTS, "score.weight"
    if (into / INDEX).exists():
        parts = json.loads((into / INDEX).read_bytes())["weight_map"]
        file = into / parts.get(head, next(iter(parts.values())))
    weights = load_file(file)
    if head not in weights or len(weights[head]) != 1:
        raise ModelError(f"{folder}: has no head {head} with one row, so its scores cannot be normalised elsewhere")
    weights[head] = (weights[head].double() / reference.deviation).to(weights[head].dtype)
    changed = file.with_suffix(".new")  # as the weights that were read lie in the file itself
    save_file(weights, changed, metadata={"format": "pt"})
    changed.replace(file)
    shift = reference.mean / reference.deviation
    config = json.loads((into / "config.json").read_bytes()) | {"mean": shift, "std": 1.0}
    atomic_write(into / "config.json", (json.dumps(config, indent=2) + "\n").encode())
    return shift


def make_scorer_known(config: "PretrainedConfig") -> None:
    """Have AutoModelForSequenceClassification know an architecture that transformers has no such class for.

    The class is made as transformers makes its own, such as Llama's: of the mixin, and of what all models of the
    architecture derive from. From then on the whole process knows it.

    Raises:
        ModelError: the architecture allows no such class.
    """
    import torch
    from transformers import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING as KNOWN
    from transformers import AutoModelForCausalLM, PreTrainedModel
    from transformers.modeling_layers import GenericForSequenceClassification

    if type(config) in KNOWN:
        return
    name = type(config).__name__.removesuffix("Config") + "ForSequenceClassification"
    try:
        with torch.device("meta"):
            policy: Any = AutoModelForCausalLM.from_config(config, trust_remote_code=False)  # type: ignore[no-untyped-call]
        if type(policy.config) is not type(config):  # the part of a larger model that reads and writes text
            make_scorer_known(policy.config)
            return
        kinds = type(policy).__mro__
        made: Any = type(
            name,
            (GenericForSequenceClassification, kinds[kinds.index(PreTrainedModel) - 1]),
            {
                "config_class": type(config),
                "base_model_prefix": policy.base_model_prefix,
                # Transformers looks into the module's source for what the architecture can do.
                "__module__": type(policy).__module__,
            },
        )
        with torch.device("meta"):
            scorer = made._from_config(config)  # noqa: SLF001 - AutoModel calls it too
    except (AttributeError, ImportError, RuntimeError, TypeError, ValueError) as error:
        raise _no_scorer(config, name, str(error)) from error
    ours, theirs = ({key: w.shape for key, w in model.base_model.state_dict().items()} for model in (scorer, policy))
    if ours != theirs:
        raise _no_scorer(config, name, f"its weights would have other names than those of {type(policy).__name__}")
    returned = inspect.signature(scorer.base_model.forward).return_annotation  # one class, or a union with tuple
    kinds = get_args(returned) or (returned,)
    if not any("past_key_values" in getattr(kind, "__dataclass_fields__", ()) for kind in kinds):
        raise _no_scorer(config, name, "it keeps no keys and values, with which transformers' reward heads go")
    KNOWN._extra_content[type(config)] = made  # noqa: SLF001 - `register` passes over transformers' own architectures


def _no_scorer(config: "PretrainedConfig", name: str, problem: str) -> ModelError:
    return ModelError(
        f"{config.name_or_path}: no reward model or critic can be made of it: transformers has no {name}, and none can "
        f"be made: {problem}. Take a model of another architecture, or end the run before a reward model is trained, "
        "with until=mix"
    )


def check_reward_model(folder: Path) -> None:
    """Refuse a folder whose reward models could not be loaded, or would score by a random head. No weights are loaded.

    Raises:
        ModelError: one cannot be used, and why.
    """
    import torch
    from safetensors import SafetensorError, safe_open
    from transformers import AutoConfig, AutoModelForSequenceClassification

    from constitutional.engines.model_files import INDEX, WEIGHTS

    for member in members(folder):
        try:
            _reader(member)
            config = AutoConfig.from_pretrained(member, num_labels=1, trust_remote_code=False)
            make_scorer_known(config)
            with torch.device("meta"):
                model: Any = AutoModelForSequenceClassification.from_config(  # type: ignore[no-untyped-call]
                    config, trust_remote_code=False
                )
            parts = {}
            if not (member / WEIGHTS).exists():
                parts = json.loads((member / INDEX).read_bytes())["weight_map"]
            for name, weight in model.state_dict().items():
                if not _is_head(name, model):
                    continue
                with safe_open(member / parts.get(name, next(iter(parts.values()), WEIGHTS)), framework="pt") as file:
                    if name not in file.keys():  # noqa: SIM118 - it is no dict
                        raise _headless(member, [name])
                    if (shape := file.get_slice(name).get_shape()) != list(weight.shape):
                        raise ModelError(
                            f"{member}: its head {name} has the shape {shape}, and that of a reward model "
                            f"{list(weight.shape)}, with one number as its output; name another model"
                        )
        except (OSError, ValueError, RuntimeError, ImportError, KeyError, SafetensorError) as error:
            raise unloadable(member, error, "a reward model") from error


def _is_head(weight: str, model: Any) -> bool:  # noqa: ANN401
    return not weight.startswith(f"{model.base_model_prefix}.")


def _headless(folder: Path, missing: Iterable[str]) -> ModelError:
    names = sorted(missing)
    some = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    return ModelError(
        f"{folder}: holds no reward model: its weights lack {some}, which would be drawn at random; name a folder such "
        "as runs/NAME/07_reward/reward_model, or a model that was saved for sequence classification"
    )


def _reader(folder: Path) -> Tokenizer:
    """The tokenizer of a reward model, which has to know how conversations are put to it."""
    tokenizer = load_tokenizer(folder)
    if not tokenizer.chat_template:
        raise ModelError(
            f"{folder}: its tokenizer has no chat template, so conversations cannot be put to this reward model; put "
            "the template that it was trained with there as chat_template.jinja"
        )
    return tokenizer


def load_reward_model(
    folder: Path, *, new_head: bool = False, seed: int = 0, dtype: str = "float32"
) -> "tuple[PreTrainedModel, Tokenizer]":
    """A model with one number as its output, and its tokenizer.

    Args:
        folder: where it is.
        new_head: whether it may be a language model, which gets a head, drawn by the seed.
        seed: set for all random generators of the process, whether a head is drawn or not.
        dtype: torch's name of the numbers' format.

    Raises:
        ModelError: it cannot be loaded, lacks weights, or has no chat template.
    """
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForSequenceClassification, set_seed
    from trl.trainer.reward_trainer import suppress_seqcls_warning

    quiet_libraries()
    try:
        tokenizer = _reader(folder)
        make_scorer_known(read_config(folder))
        set_seed(seed)
        with suppress_seqcls_warning() if new_head else nullcontext():
            model, found = AutoModelForSequenceClassification.from_pretrained(
                folder,
                num_labels=1,
                dtype=getattr(torch, dtype),
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
            )
    except (OSError, ValueError, RuntimeError, ImportError, SafetensorError) as error:
        raise unloadable(folder, error, "a reward model") from error
    if missing := [name for name in found["missing_keys"] if not (new_head and _is_head(name, model))]:
        raise _headless(folder, missing)
    model.config.get_text_config().pad_token_id = tokenizer.pad_token_id  # by it the head finds the last token
    if torch.cuda.is_available():
        return model.to("cuda").eval(), tokenizer
    # Weights that are read lie where the file's header ends, and a CPU rounds differently at another alignment. Without
    # the copy a score may differ in the last digit from that of the same weights in another file.
    for weights in model.parameters():
        weights.data = weights.data.clone()
    return model.eval(), tokenizer


def _scored(model: Any, ids: "torch.Tensor", mask: "torch.Tensor") -> "torch.Tensor":  # noqa: ANN401
    """The scores (B,) of rows that are padded behind, in 32 bits.

    Under autocast the head is left out of it: in bfloat16 a score of 20 is known to an eighth.
    """
    import torch

    head: Any = getattr(model, "score", None)
    if not torch.is_autocast_enabled(ids.device.type) or not isinstance(head, torch.nn.Linear):
        scores: torch.Tensor = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, 0]
        return scores.float()
    states = model.base_model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
    at = mask.sum(1) - 1
    if (pad := model.config.get_text_config().pad_token_id) is not None:
        # As without autocast, where a text that ends with the pad token is read before it.
        at = (torch.arange(ids.shape[1], device=ids.device) * (ids != pad)).argmax(-1)
    last = states[torch.arange(len(ids), device=ids.device), at]
    numbers: Any = {name: weight.float() for name, weight in head.named_parameters()}
    with torch.autocast(ids.device.type, enabled=False):
        return torch.nn.functional.linear(last.float(), **numbers)[:, 0]


def raw_scores(
    model: "PreTrainedModel",
    tokenizer: Tokenizer,
    conversations: Sequence[Sequence[Message]],
    batch_size: int = SCORED_TOGETHER,
) -> list[float]:
    """A reward model's own numbers, one for each conversation; only their differences mean anything.

    Without a pad token conversations are read one by one. Another token in its place would not do: the head reads the
    last token that is no padding, and this may be any token of the vocabulary.
    """
    import torch

    if tokenizer.pad_token_id is None:
        batch_size = 1
    rows = [token_ids(tokenizer, chat(conversation)) for conversation in conversations]
    order = sorted(range(len(rows)), key=lambda index: len(rows[index]))
    read: list[torch.Tensor] = []
    for first in range(0, len(order), batch_size):
        batch = order[first : first + batch_size]
        width = len(rows[batch[-1]])
        padding = [width - len(rows[index]) for index in batch]
        ids = torch.tensor([rows[i] + [tokenizer.pad_token_id] * n for i, n in zip(batch, padding, strict=True)])
        mask = torch.tensor([[1] * (width - n) + [0] * n for n in padding])
        with torch.inference_mode():
            read.append(_scored(model, ids.to(model.device), mask.to(model.device)))
    # Once all is on its way, as this waits for the device.
    scores = dict(zip(order, torch.cat(read).tolist() if read else [], strict=True))
    return [scores[index] for index in range(len(rows))]
