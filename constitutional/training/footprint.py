"""How much memory a model takes: its weights, a pass that reads, a pass that trains.

The weights are counted on a model without content. What a pass takes is found by running the model's own code, forwards
and backwards, on tensors that have shapes and no content (`FakeTensorMode`), and adding up what is alive at any time.
So gradient checkpointing, adapters, the copies that bfloat16 makes, and whatever an architecture does besides, are in
it as they are. Two models with few layers are run, since the rest of the layers take as much each.
"""

import copy
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoModelForCausalLM
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface
from transformers.modeling_utils import AttentionInterface
from trl.kernels import ChunkedLogProbFunction
from trl.kernels.chunked_logprob import TOKEN_CHUNK_SIZE

from constitutional.engines.architecture import cache_bytes, read_config

if TYPE_CHECKING:
    from transformers import PretrainedConfig

UNMASKED: Final = "constitutional_unmasked"
"""The name under which transformers knows attention without a mask, as where no row is padded on the left."""
AttentionInterface.register(UNMASKED, sdpa_attention_forward)
AttentionMaskInterface.register(UNMASKED, lambda *_, **__: None)
SIZES: Final = {"float32": 4, "bfloat16": 2, "float16": 2}
"""Bytes of a number."""
VOCABULARY_CHUNK: Final = 32_768
"""Columns of the tile of logits that TRL's head holds."""
FEW: Final = 2
"""Layers of the smaller model that is run; the other has twice as many."""


class Pass(NamedTuple):
    """A pass through the model without its head, in one number format and with one kind of rows."""

    rows: int
    length: int
    """Tokens of a row."""
    dtype: str = "float32"
    """Of the weights."""
    autocast: bool = False
    """Whether it computes in bfloat16, whatever the weights are."""
    masked: bool = True
    """Whether rows are padded to the longest, and attention masked."""


class TrainingPass(NamedTuple):
    """What a training pass takes beside weights, gradients and optimizer, in bytes."""

    kept: float
    """At the end of the forward pass, where the head follows."""
    most: float
    """At the worst moment, gradients left out."""


class Footprint:
    """The memory of one architecture.

    Attributes:
        layers: of the text model, whatever else there is.
        hidden: the width.
        vocabulary: rows of the embeddings.
        heads: of the attention, over which a model can be divided; 1 without attention.
    """

    def __init__(self, file: Path) -> None:
        self.config = read_config(file)
        text = self.config.get_text_config()
        self.layers: int = text.num_hidden_layers
        self.hidden: int = text.hidden_size
        self.vocabulary: int = text.vocab_size
        self.heads: int = getattr(text, "num_attention_heads", 1)

    @cached_property
    def _empty(self) -> Any:  # noqa: ANN401 - a model of transformers
        return _empty_model(self.config, "float32")

    @cached_property
    def weights(self) -> int:
        """Parameters of the language model; tied embeddings count once."""
        return sum(weight.numel() for weight in self._empty.parameters())

    @cached_property
    def tied(self) -> bool:
        """Whether the embeddings are the head."""
        return self._empty.get_output_embeddings().weight is self._empty.get_input_embeddings().weight

    @property
    def embeddings(self) -> int:
        """Parameters of the embeddings, and of the head: as many."""
        return self.vocabulary * self.hidden

    @property
    def scorer_weights(self) -> int:
        """Parameters of a reward model or critic: one output in the place of the head."""
        return self.weights - (0 if self.tied else self.embeddings) + self.hidden

    @lru_cache  # noqa: B019 - a handful of architectures in a process
    def adapter_weights(self, rank: int) -> int:
        """Parameters of LoRA adapters on all linear layers but the head, as PEFT's `all-linear` has them."""
        head = self._empty.get_output_embeddings()
        linear = (module for module in self._empty.modules() if isinstance(module, torch.nn.Linear))
        return rank * sum(module.in_features + module.out_features for module in linear if module is not head)

    def cache(self, itemsize: int) -> int:
        """Bytes of the keys and values of one token."""
        return cache_bytes(self.config, itemsize)

    @lru_cache  # noqa: B019
    def training(self, work: Pass, *, rank: int | None, checkpointing: bool) -> TrainingPass:
        """What a forward and backward pass takes.

        Args:
            work: the pass.
            rank: of LoRA adapters, which are then all that is trained.
            checkpointing: whether activations are computed again in the backward pass.
        """
        few, more = (self._trained(layers, work, rank, checkpointing=checkpointing) for layers in (FEW, 2 * FEW))
        return TrainingPass(self._extended(few.kept, more.kept), self._extended(few.most, more.most))

    @lru_cache  # noqa: B019
    def reading(self, work: Pass, *, cached: bool = False) -> float:
        """The most that a pass without gradients takes, with the keys and values that it keeps if it is to go on."""
        few, more = (self._read(layers, work, cached=cached) for layers in (FEW, 2 * FEW))
        return self._extended(few, more)

    @lru_cache  # noqa: B019
    def head(self, tokens: int, *, trained: bool, autocast: bool, gpu: bool) -> float:
        """What TRL's head takes, which computes log-probabilities without ever holding all logits.

        Args:
            tokens: that the loss is on.
            trained: whether the head is.
            autocast: whether it computes in bfloat16.
            gpu: whether a kernel computes on the logits' tile in its place; a CPU makes copies of it.
        """
        if gpu:
            tile = min(tokens, TOKEN_CHUNK_SIZE) * VOCABULARY_CHUNK * (2 if autocast else 4)
            return float(tile + 8 * tokens * self.hidden + (4 * self.embeddings if trained else 0))
        with FakeTensorMode():
            hidden = torch.empty(tokens, self.hidden, requires_grad=True)
            weight = torch.empty(self.vocabulary, self.hidden, requires_grad=trained)
            targets = torch.zeros(tokens, dtype=torch.long)
            with _Alive((hidden, weight, targets)) as alive:
                arguments = (hidden, weight, None, targets, 1.0, VOCABULARY_CHUNK, None, 1.0, ("log_probs", "entropy"))
                with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                    logprobs: Any = ChunkedLogProbFunction.apply(*arguments)[0]  # type: ignore[no-untyped-call]
                logprobs.sum().backward()
            return float(alive.most + hidden.nbytes)  # a copy, as the last token of a row has no successor

    # --- The model with few layers ---

    def _extended(self, few: float, more: float) -> float:
        """What all layers take, from what `FEW` and twice as many take."""
        return few + (more - few) * (self.layers - FEW) / FEW

    def _short(self, layers: int, work: Pass) -> Any:  # noqa: ANN401
        config = copy.deepcopy(self.config)
        text = config.get_text_config()
        text.num_hidden_layers = layers
        kinds = list(getattr(text, "layer_types", None) or ())
        # Those with a sliding window, whose mask is never left out, come first.
        if kinds and "layer_types" in vars(text):
            text.layer_types = (sorted(kinds, key=lambda kind: kind != "sliding_attention") * layers)[:layers]
        window = getattr(text, "sliding_window", None) if "sliding_attention" in kinds else None
        masked = work.masked or (window is not None and window < work.length)
        for part in {id(config): config, id(text): text}.values():
            part._attn_implementation = "sdpa" if masked else UNMASKED  # noqa: SLF001 - there is no public name
        return _empty_model(config, work.dtype)

    def _trained(self, layers: int, work: Pass, rank: int | None, *, checkpointing: bool) -> TrainingPass:
        model = self._short(layers, work)
        if rank is not None:
            from peft import LoraConfig, get_peft_model

            with torch.device("meta"):
                lora = LoraConfig(task_type="CAUSAL_LM", r=rank, target_modules="all-linear")
                model = get_peft_model(model, lora).get_base_model()
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        # The embeddings' gradient comes last, when activations are gone, and is added up apart.
        model.get_input_embeddings().requires_grad_(False)
        if rank is None or checkpointing:
            model.enable_input_require_grads()
        model.train()
        with _alive(model) as alive:
            for weight in model.parameters():
                if weight.requires_grad:
                    weight.register_post_accumulate_grad_hook(_forget)
            hidden = _hidden(model, work, cached=False).last_hidden_state
            kept = alive.now
            hidden.backward(torch.ones_like(hidden))
        return TrainingPass(kept, alive.most)

    def _read(self, layers: int, work: Pass, *, cached: bool) -> float:
        model = self._short(layers, work).eval().requires_grad_(False)
        with _alive(model) as alive, torch.no_grad():
            _hidden(model, work, cached=cached)
        return alive.most


def _empty_model(config: "PretrainedConfig", dtype: str) -> Any:  # noqa: ANN401
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
            config, dtype=getattr(torch, dtype), trust_remote_code=False
        )


def _forget(weight: torch.Tensor) -> None:
    weight.grad = None


def _hidden(model: Any, work: Pass, *, cached: bool) -> Any:  # noqa: ANN401
    ids = torch.zeros(work.rows, work.length, dtype=torch.long)
    mask = torch.ones_like(ids) if work.masked else None
    with torch.autocast("cpu", torch.bfloat16, enabled=work.autocast):
        return model.base_model(input_ids=ids, attention_mask=mask, use_cache=cached)


# --- What is alive ---


@contextmanager
def _alive(model: Any) -> "Iterator[_Alive]":  # noqa: ANN401
    """Meanwhile tensors have no content; what is made of them is added up, but for the model itself."""
    with FakeTensorMode():
        made: dict[int, torch.Tensor] = {}
        for module in model.modules():
            for tensors in (module._parameters, module._buffers):  # noqa: SLF001 - of torch, which has no other way
                for name, tensor in tensors.items():
                    if tensor is not None:
                        tensors[name] = made.setdefault(id(tensor), _like(tensor))
        with _Alive(made.values()) as alive:
            yield alive


def _like(tensor: torch.Tensor) -> torch.Tensor:
    empty = torch.empty(tensor.shape, dtype=tensor.dtype)
    return torch.nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, torch.nn.Parameter) else empty


class _Alive(TorchDispatchMode):  # type: ignore[no-untyped-call]  # of torch
    """Adds up the bytes of all storages that operations make, until nothing holds them any more.

    Args:
        given: tensors that are not to be counted.

    Attributes:
        now: bytes that are alive.
        most: the most that ever were.
    """

    def __init__(self, given: Iterable[torch.Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = 0
        self.most = 0
        self._known = {tensor.untyped_storage()._cdata for tensor in given}  # noqa: SLF001 - it has no other identity

    def __torch_dispatch__(self, operation: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401
        result = operation(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self._count(tensor.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()  # noqa: SLF001
        if key not in self._known:
            self._known.add(key)
            self.now += size
            self.most = max(self.most, self.now)
            weakref.finalize(storage, self._ended, key, size)

    def _ended(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size
