"""All pairs of a prompt in one batch element (Ouyang et al. 2022, InstructGPT, section 3.5).

Of K ranked replies each stands in K − 1 pairs. Where the pairs are shuffled among those of other prompts, a reply is
seen K − 1 times in an epoch, and the model overfits. Here each reply of a prompt is passed once, and the loss of a
prompt is the mean over its pairs, by their weights, of the cross-entropy with their soft targets.
"""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from constitutional.training.rows import Row, on_disk

if TYPE_CHECKING:
    import torch
    from datasets import Dataset  # type: ignore[import-untyped]

COLUMNS: Final = ("chosen_ids", "rejected_ids", "probability", "weight")


def together(pairs: "Dataset", folder: Path) -> "Dataset":
    """The pairs of each prompt as one row, in the order of their first: every column of `COLUMNS` holds a list.

    Args:
        pairs: tokenized pairs, of which those with the same `group` are of one prompt.
        folder: where the rows are to lie.
    """
    places: defaultdict[int, list[int]] = defaultdict(list)
    for place, group in enumerate(pairs["group"]):
        places[group].append(place)
    columns = pairs.select_columns([*COLUMNS])
    return on_disk((columns[of_one] for of_one in places.values()), folder)


class PairsTogether:
    """A collator of rows that `together` made."""

    def __init__(self, pad_token_id: int) -> None:
        self.pad_token_id = pad_token_id

    def __call__(self, groups: Sequence[Row]) -> "dict[str, torch.Tensor]":
        """A batch of R replies and P pairs.

        `input_ids` and `attention_mask`, (R, T), hold each reply of a prompt once; `chosen` and `rejected`, (P,), are
        places in them; `share`, (P,), is what a pair counts: 1 together, as much for one prompt as for another.
        """
        import torch
        from torch.nn.utils.rnn import pad_sequence

        replies: list[torch.Tensor] = []
        columns: dict[str, list[float]] = {name: [] for name in ("chosen", "rejected", "probability", "share")}
        for group in groups:
            places: dict[tuple[int, ...], int] = {}
            total = sum(group["weight"]) * len(groups)
            for chosen, rejected, probability, weight in zip(*(group[name] for name in COLUMNS), strict=True):
                for name, ids in (("chosen", chosen), ("rejected", rejected)):
                    place = places.setdefault(tuple(ids), len(replies))
                    if place == len(replies):
                        replies.append(torch.tensor(ids))
                    columns[name].append(place)
                columns["probability"].append(probability)
                columns["share"].append(weight / total)
        ones = [torch.ones_like(ids) for ids in replies]
        return {
            "input_ids": pad_sequence(replies, batch_first=True, padding_value=self.pad_token_id),
            "attention_mask": pad_sequence(ones, batch_first=True),
            **{name: torch.tensor(columns[name], dtype=torch.long) for name in ("chosen", "rejected")},
            **{name: torch.tensor(columns[name], dtype=torch.float32) for name in ("probability", "share")},
        }


def loss_of(scores: "torch.Tensor", batch: "dict[str, torch.Tensor]") -> "tuple[torch.Tensor, torch.Tensor]":
    """The loss of a batch that `PairsTogether` made, a scalar, and the pairs' differences of scores, (P,).

    Args:
        scores: of the replies, (R,).
        batch: the pairs.
    """
    from torch.nn.functional import softplus

    difference = scores[batch["chosen"]] - scores[batch["rejected"]]
    losses = softplus(-difference) + (1 - batch["probability"]) * difference
    return (batch["share"] * losses).sum(), difference
