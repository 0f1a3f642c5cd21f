"""How a transformers model attends while it writes replies: without copying keys and values, or waiting for the device.

Transformers' own attention copies the keys and values of heads that share them once for each of these heads, its cache
copies all of them, and both at every token; and it asks the device whether a mask could be left out.
"""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import torch
from transformers import Cache, DynamicCache
from transformers.cache_utils import CacheLayerMixin, DynamicLayer, DynamicSlidingWindowLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
from transformers.modeling_utils import AttentionInterface

if TYPE_CHECKING:
    from transformers import PreTrainedModel

GROUPED: Final = "constitutional_grouped"
"""The name under which transformers knows `_grouped_attention` and `_grouped_mask`."""


def plain_layers(model: "PreTrainedModel") -> int:
    """How many layers keep keys and values as attention does, in full or in a window; 0 if any layer does otherwise."""
    config = model.config.get_text_config()
    cache = DynamicCache(config=model.config)
    rope = str(getattr(config, "rope_parameters", ""))
    plain = (
        {"position_ids", "past_key_values", "logits_to_keep"} <= inspect.signature(model.forward).parameters.keys()
        and set(getattr(config, "layer_types", None) or ()) <= {"full_attention", "sliding_attention"}
        and all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in cache.layers)
        and not getattr(config, "num_kv_shared_layers", 0)
        and config._attn_implementation in ("sdpa", "eager")  # noqa: SLF001 - there is no public name
        # Under these, what was read before would have to be read anew when a row grows long.
        and "longrope" not in rope
        and "dynamic" not in rope
    )
    return len(cache.layers) if plain else 0


@contextmanager
def grouped_attention(model: "PreTrainedModel", layers: int) -> Iterator[None]:
    """Meanwhile the model attends by `_grouped_attention` where it would by transformers' SDPA.

    Whoever calls the model passes a mask only if it masks something.

    Args:
        model: a causal model.
        layers: how many `plain_layers` it has; without any it is left as it is.
    """
    config: Any = model.config.get_text_config()
    before = config._attn_implementation  # noqa: SLF001 - the public setter rebuilds more than the name
    try:
        if before == "sdpa" and layers:
            config._attn_implementation_internal = GROUPED  # noqa: SLF001
        yield
    finally:
        config._attn_implementation_internal = before  # noqa: SLF001


def _grouped_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **options: Any,  # noqa: ANN401 - of transformers
) -> tuple[torch.Tensor, None]:
    """Transformers' attention, except that heads which share keys and values do not copy them for a single token.

    The heads of a group stand where several queries would.
    """
    rows, heads, queries, _ = query.shape
    shared = key.shape[1]
    if queries > 1 or heads == shared or options.get("position_bias") is not None:
        output: tuple[torch.Tensor, None] = sdpa_attention_forward(module, query, key, value, attention_mask, **options)
        return output
    mask = None if attention_mask is None else attention_mask[:, :1].expand(-1, shared, heads // shared, -1)
    attended = torch.nn.functional.scaled_dot_product_attention(
        query.reshape(rows, shared, heads // shared, -1), key, value, attn_mask=mask, scale=options.get("scaling")
    )
    return attended.reshape(rows, 1, heads, -1), None


def _grouped_mask(
    *,
    attention_mask: torch.Tensor | None = None,
    allow_is_causal_skip: bool = True,
    **options: Any,  # noqa: ANN401 - of transformers
) -> torch.Tensor | None:
    """Transformers' mask, always made where there is padding: looking for some would wait for the device."""
    skip = allow_is_causal_skip and attention_mask is None
    mask: torch.Tensor | None = sdpa_mask(attention_mask=attention_mask, allow_is_causal_skip=skip, **options)
    return mask


AttentionInterface.register(GROUPED, _grouped_attention)
AttentionMaskInterface.register(GROUPED, _grouped_mask)


class _LayerInPlace(CacheLayerMixin):  # type: ignore[no-untyped-call] # of transformers
    """One layer's keys and values of a batch all of whose rows end at the same column, written in place."""

    is_sliding = False

    def __init__(self, most: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call] # of transformers
        self.most = most
        self.end = 0
        self.is_initialized = True
        self.keys: Any = None
        self.values: Any = None

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """`update` does it."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: object, **__: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if self.keys is None:
            self.keys, self.values = self._buffer(key_states), self._buffer(value_states)
        start, self.end = self.end, self.end + key_states.shape[2]
        self.keys[:, :, start : self.end] = key_states
        self.values[:, :, start : self.end] = value_states
        return self.keys[:, :, : self.end], self.values[:, :, : self.end]

    def _buffer(self, like: torch.Tensor) -> torch.Tensor:
        """In the numbers that attention computes in: under autocast it would convert all of them at every token."""
        rows, heads, _, width = like.shape
        kind = like.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else like.dtype
        return like.new_zeros(rows, heads, self.most, width, dtype=dtype)

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep these rows, in this order."""
        for buffer in (self.keys, self.values):
            buffer[: len(indices), :, : self.end] = buffer[indices, :, : self.end]
        self.keys, self.values = self.keys[: len(indices)], self.values[: len(indices)]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.end + query_length, 0

    def get_seq_length(self) -> int:
        return self.end

    def get_max_length(self) -> int:
        return -1


def cache_in_place(layers: int, most: int) -> Cache | None:
    """A cache for a batch all of whose rows end at the same column.

    Args:
        layers: how many `plain_layers` the model has; without any the model has to make a cache of its own, None.
        most: columns of the longest row that the batch comes to.
    """
    return Cache(layers=[_LayerInPlace(most) for _ in range(layers)]) if layers else None
