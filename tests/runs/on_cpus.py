"""One of the processes that train a stage, in shards on CPUs.

Accelerate shards on GPUs and their like alone: on CPUs `AcceleratorState.__init__` passes over what it was asked for.
Here it does for CPUs what it does for GPUs; nothing else is changed.
"""

import os
import signal
from typing import Any

import torch
from accelerate.state import AcceleratorState, PartialState  # type: ignore[import-untyped]
from accelerate.utils import DistributedType  # type: ignore[import-untyped]
from torch.distributed.fsdp import FSDPModule

from constitutional.runs import distributed_child
from constitutional.training import processes, trl

BFLOAT16 = "TESTS_BFLOAT16"
"""A variable of the environment: compute in bfloat16, as stages do on GPUs."""
KILLED = "TESTS_KILLED"
"""A variable of the environment: the processes are killed once all steps are made, before the model is saved."""

begin, arguments_of, fit = AcceleratorState.__init__, trl.trl_arguments, trl.fit


def begin_in_shards(
    self: Any,  # noqa: ANN401
    *args: object,
    fsdp_plugin: Any = None,  # noqa: ANN401
    deepspeed_plugin: Any = None,  # noqa: ANN401
    **named: object,
) -> None:
    begin(self, *args, fsdp_plugin=fsdp_plugin, deepspeed_plugin=deepspeed_plugin, **named)
    if self.distributed_type == DistributedType.MULTI_CPU and fsdp_plugin:
        self.distributed_type = DistributedType.FSDP
        if self._mixed_precision != "no":
            fsdp_plugin.set_mixed_precision(self._mixed_precision)
        self.fsdp_plugin = fsdp_plugin
    elif self.distributed_type == DistributedType.MULTI_CPU and deepspeed_plugin:
        self.distributed_type = DistributedType.DEEPSPEED
        deepspeed_plugin.set_mixed_precision(self._mixed_precision)
        deepspeed_plugin.select(_from_accelerator_state=True)
        self.deepspeed_plugins, self._mixed_precision = deepspeed_plugin, "no"
    PartialState._shared_state["distributed_type"] = self.distributed_type


def arguments_in_bfloat16(kind: Any, *args: Any, **named: Any) -> Any:  # noqa: ANN401
    return arguments_of(lambda **own: kind(**own | {"bf16": True}), *args, **named)


def fit_in_parts(trainer: Any, *args: Any, **named: Any) -> trl.Fitted:  # noqa: ANN401
    """Train, and see after each pass that of gradients this process holds its part, and that they are in 32 bits."""
    made = trainer.training_step

    def step(model: Any, *given: Any, **more: Any) -> Any:  # noqa: ANN401
        loss = made(model, *given, **more)
        groups = [
            module._get_fsdp_state()._fsdp_param_group for module in model.modules() if isinstance(module, FSDPModule)
        ]
        assert groups, "nothing is in shards"
        for group in filter(None, groups):
            assert group._reduce_dtype in (None, torch.float32)
            for weight in group.fsdp_params:
                assert weight.unsharded_accumulated_grad is None
                assert weight._unsharded_param.grad is None
        return loss

    if trainer.accelerator.distributed_type == DistributedType.FSDP:
        trainer.training_step = step
    return fit(trainer, *args, **named)


def fit_and_be_killed(*args: Any, **named: Any) -> trl.Fitted:  # noqa: ANN401
    fit_in_parts(*args, **named)
    processes.wait()
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


if __name__ == "__main__":
    AcceleratorState.__init__ = begin_in_shards
    if BFLOAT16 in os.environ:
        trl.trl_arguments = arguments_in_bfloat16
    trl.fit = fit_and_be_killed if KILLED in os.environ else fit_in_parts
    distributed_child.main()
