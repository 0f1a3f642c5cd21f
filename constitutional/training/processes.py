"""A training in several processes: the rows that one of them takes, and what the main process alone does.

All processes run the same stage code over the same inputs. A step of the optimizer holds the same rows as in one
process, in the same order of rows, and its loss is the mean over them: how they are shared out changes a result by no
more than rounding does.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import repeat
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast

from constitutional.base.errors import ConfigurationError

if TYPE_CHECKING:
    import torch
    from accelerate.data_loader import SeedableRandomSampler  # type: ignore[import-untyped]
    from torch.utils.data import DataLoader

C = TypeVar("C", bound=type)


def count() -> int:
    """How many processes train together; 1 where nobody started several."""
    import torch

    return torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1


def is_main() -> bool:
    """Whether this process is the one that writes."""
    import torch

    return not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0


def wait() -> None:
    """Wait until all processes are here."""
    if count() > 1:
        from accelerate import PartialState  # type: ignore[import-untyped]

        PartialState().wait_for_everyone()


def shared(batch_size: int, accumulation: int, processes: int) -> tuple[int, int] | None:
    """Rows in a pass of one process, and its passes in a step, where the processes have a step's rows in equal parts.

    None where these are no multiple of the processes. A pass has as many rows as it can, and no more than it has now.
    """
    rows, rest = divmod(batch_size * accumulation, processes)
    if rest:
        return None
    size = max(size for size in range(1, min(batch_size, rows) + 1) if rows % size == 0)
    return size, rows // size


def share_of(settings: "StepSettings") -> tuple[int, int]:
    """Rows in a pass of this process, and its passes in a step of the optimizer.

    Raises:
        ConfigurationError: a step's rows are no multiple of the processes.
    """
    size, passes, processes = settings.batch_size, settings.gradient_accumulation, count()
    if (own := shared(size, passes, processes)) is None:
        raise ConfigurationError(
            f"batch_size={size} by gradient_accumulation={passes} are {size * passes} rows in a step, which "
            f"{processes} processes cannot have in equal parts; choose a multiple of {processes}"
        )
    return own


class StepSettings(Protocol):
    """Settings that say how many rows a step of the optimizer has."""

    @property
    def batch_size(self) -> int:
        """Rows in a pass."""

    @property
    def gradient_accumulation(self) -> int:
        """Passes in a step."""


class Shares:
    """The batches of row numbers that one process takes.

    Of the rows in the order in which one process alone would take them, the processes take `batch_size` each by turns.
    The last ones of an epoch are shared out as evenly as they can be; a process that gets none of them repeats a row,
    which is not to count.
    """

    def __init__(self, rows: "SeedableRandomSampler", batch_size: int, rank: int, processes: int) -> None:
        self.rows = rows
        self.batch_size = batch_size
        self.rank = rank
        self.processes = processes

    def __len__(self) -> int:
        """Batches in an epoch, as many in every process."""
        return math.ceil(len(self.rows) / (self.batch_size * self.processes))

    def __iter__(self) -> Iterator[list[int]]:
        """The batches of the next epoch."""
        order = list(self.rows)
        together = self.batch_size * self.processes
        for first in range(0, len(order), together):
            rows = order[first : first + together]
            size, more = divmod(len(rows), self.processes)
            start = self.rank * size + min(self.rank, more)
            yield rows[start : start + size + (self.rank < more)] or rows[:1]

    def set_epoch(self, epoch: int) -> None:
        """Take the rows in the order of that epoch."""
        self.rows.set_epoch(epoch)


def counts(rows: int, batch_size: int, rank: int = 0, processes: int = 1) -> list[int]:
    """How many of a step's rows count in each batch of a process, which `Shares` gives it."""
    together = batch_size * processes
    sizes = [min(together, rows - first) for first in range(0, rows, together)]
    return [(size + processes - 1 - rank) // processes for size in sizes]


def gathered(gather: "Callable[[torch.Tensor], torch.Tensor]", rows: "torch.Tensor") -> "torch.Tensor":
    """The rows of all processes, (N, …), of which each may have another number; scalars as accelerate has them.

    Args:
        gather: accelerate's, for which all need as many rows.
        rows: those of this process, (n, …).
    """
    import torch

    if not rows.ndim:
        return gather(rows)
    counts = gather(torch.tensor([len(rows)], device=rows.device)).tolist()
    missing = max(counts) - len(rows)
    filled = gather(torch.cat([rows, rows.new_zeros(missing, *rows.shape[1:])]))
    return torch.cat([part[:count] for part, count in zip(torch.split(filled, max(counts)), counts, strict=True)])


def compute_as_one(accelerator: Any) -> None:  # noqa: ANN401 - accelerate has no types
    """Have FSDP2 round no more than one process does, and keep of a gradient this process's part alone.

    Accelerate would round what a network gives to bfloat16, by which log-probabilities of replies lose a step, and add
    gradients up in it; and until a step's last pass every process would hold all gradients whole.
    """
    import torch

    plugin = getattr(accelerator.state, "fsdp_plugin", None)
    if plugin is None:
        return
    if policy := plugin.mixed_precision_policy:
        plugin.mixed_precision_policy = replace(policy, reduce_dtype=torch.float32, output_dtype=None)
    state = accelerator.gradient_state
    state.plugin_kwargs = {**state.plugin_kwargs, "sync_each_batch": True}


def in_shares(trainer: C) -> C:
    """The trainer class, one of TRL's, whose steps all processes share, and in which each row counts alike.

    TRL takes the mean over a step's passes, the last of which may have fewer rows at an epoch's end. Accelerate by
    itself would fill up that step with rows that were there before.
    """
    import torch

    weighed: Any = _weighed(trainer)
    if count() == 1:
        return cast("C", weighed)

    class InShares(weighed):  # type: ignore[misc]
        """The trainer for one of the processes.

        On a GPU networks compute in bfloat16, and what they give is taken in 32 bits, as in one process.
        """

        def create_accelerator_and_postprocess(self) -> None:
            """Before anything is sharded: TRL shards DPO's reference as it is made."""
            super().create_accelerator_and_postprocess()
            compute_as_one(self.accelerator)

        def _prepare_input(self, data: Any) -> Any:  # noqa: ANN401
            """The inputs on this device, where DeepSpeed's would be rounded: soft labels, the reference's numbers."""
            return data.to(self.args.device) if isinstance(data, torch.Tensor) else super()._prepare_input(data)

        def get_train_dataloader(self) -> "DataLoader[Any]":
            """This process's rows."""
            from accelerate.data_loader import SeedableRandomSampler
            from torch.utils.data import DataLoader

            whole = super().get_train_dataloader()
            # The order that accelerate gives the rows in one process.
            rows = SeedableRandomSampler(whole.dataset, data_seed=self.args.data_seed)
            self.shares = Shares(rows, self._train_batch_size, self.args.process_index, self.args.world_size)
            loader: DataLoader[Any] = DataLoader(
                whole.dataset,
                batch_sampler=self.shares,
                collate_fn=whole.collate_fn,
                pin_memory=self.args.dataloader_pin_memory,
            )
            vars(loader)["set_epoch"] = self.shares.set_epoch  # which the trainer calls
            # TRL gathers a number for each row of a pass, and the last one of an epoch has not as many rows everywhere.
            self.accelerator.gather = partial(gathered, type(self.accelerator).gather.__get__(self.accelerator))
            return loader

    InShares.__name__ = trainer.__name__
    return cast("C", InShares)


def _weighed(trainer: type) -> type:
    """The trainer class, whose passes are weighed by their rows."""
    base: Any = trainer

    class Weighed(base):  # type: ignore[misc]
        """The trainer for this process, alone or one of several."""

        _factors: Iterator[float] = repeat(1.0)
        """By what the losses of a step's next passes are weighed; outside a step all are alike."""

        def _get_num_items_in_batch(self, batch_samples: list[Any], device: Any) -> Any:  # noqa: ANN401
            """Note what each pass of the step counts; what TRL divides the loss of a language model by are tokens."""
            steps = math.ceil(len(self.train_dataset) / self._rows_per_step)
            last = self.state.global_step % steps == steps - 1
            rows = len(self.train_dataset) - (steps - 1) * self._rows_per_step if last else self._rows_per_step
            own = counts(rows, self._train_batch_size, self.args.process_index, self.args.world_size)
            for batch, counted in zip(batch_samples, own, strict=True):
                if not counted and "labels" in batch:
                    batch["labels"].fill_(-100)
            # A trainer takes the mean over a pass's rows, then over passes and processes; times this, of all rows.
            self._factors = iter([counted * len(own) * self.args.world_size / rows for counted in own])
            return super()._get_num_items_in_batch(batch_samples, device)

        @property
        def _rows_per_step(self) -> int:
            size: int = self._train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
            return size

        def compute_loss(
            self,
            model: Any,  # noqa: ANN401
            inputs: dict[str, Any],
            return_outputs: bool = False,
            num_items_in_batch: "torch.Tensor | int | None" = None,
        ) -> Any:  # noqa: ANN401
            """The loss of a pass, weighed by its rows; one that is a sum over tokens, divided by the step's, is not."""
            loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
            factor = next(self._factors)
            return loss * factor if num_items_in_batch is None else loss

    Weighed.__name__ = trainer.__name__
    return Weighed
