"""Where a stage is made that trains or holds a model in memory. No result depends on it."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from constitutional.base.frozen import Frozen


class HereSettings(Frozen):
    """In the command's own process."""

    kind: Literal["here"] = "here"


class AccelerateSettings(Frozen):
    """In several processes that `accelerate launch` starts, one for each GPU: sft, reward, dpo and ppo.

    A step of the optimizer holds as many rows as in one process: the processes share them. With several machines the
    same command is typed on all of them, with another `machine_rank`; the run's folder, the models and the installation
    lie under the same paths. `launch=accelerate_fsdp2` and `launch=accelerate_zero3` are this with `config=fsdp2` and
    `config=zero3`.
    """

    kind: Literal["accelerate"] = "accelerate"
    processes: Annotated[int, Field(ge=1)] | None = None
    """Processes on a machine; null is one for each of its GPUs."""
    config: str = "ddp"
    """A file that `accelerate config` wrote, or the name of a shipped one: ddp keeps all weights on each GPU; fsdp2
    (PyTorch) and zero3 (DeepSpeed) shard weights, gradients and optimizer states. PPO is sharded by PyTorch with
    both, and has the policy's weights whole on each GPU while it draws replies."""
    machines: Annotated[int, Field(ge=1)] = 1
    """How many machines train together."""
    machine_rank: Annotated[int, Field(ge=0)] = 0
    """Which machine this is. Machine 0 runs the stages; the others train along until the run is done."""
    main_address: str | None = None
    """With several machines: the name or address of machine 0."""
    port: Annotated[int, Field(ge=1, le=65535)] = 29500
    """With several machines: a free port of machine 0."""

    @model_validator(mode="after")
    def _machines_meet(self) -> Self:
        if self.machine_rank >= self.machines:
            raise ValueError(
                f"machine_rank is {self.machine_rank}, and machines is {self.machines}; ranks go from 0 to "
                f"{self.machines - 1}; type launch.machines={self.machine_rank + 1}"
            )
        if self.machines > 1 and self.main_address is None:
            raise ValueError("machines need the address of machine 0; type launch.main_address=ADDRESS")
        return self


class SlurmSettings(Frozen):
    """In a job of Slurm for each stage that needs a GPU, by submitit. The command waits for the job and makes the rest.

    The run's folder, the models and the installation lie where the job's node finds them under the same paths.
    """

    kind: Literal["slurm"] = "slurm"
    mode: Literal["slurm", "local"] = "slurm"
    """`local` starts the same job on this machine, to try a run without Slurm; of the settings below it knows
    gpus_per_node, timeout_min and restarts alone."""
    partition: str | None = None
    """As sbatch's --partition; null is the cluster's default."""
    account: str | None = None
    """As sbatch's --account; null is the user's default."""
    constraint: str | None = None
    """As sbatch's --constraint: features that the node must have, such as h100."""
    gpus_per_node: Annotated[int, Field(ge=0)] = 1
    """GPUs of the node that the job has."""
    cpus_per_task: Annotated[int, Field(ge=1)] = 8
    """Cores that the job has."""
    mem_gb: Annotated[float, Field(gt=0)] = 64.0
    """Memory of the node, in GB; not that of the GPUs."""
    timeout_min: Annotated[int, Field(ge=1)] = 240
    """Minutes after which Slurm ends the job. Then it is submitted again, and goes on."""
    setup: tuple[str, ...] = ()
    """Lines of shell that the job begins with, such as ["module load cuda"]."""
    restarts: Annotated[int, Field(ge=0)] = 10
    """How often a stage's job is submitted again that was preempted, timed out, or lost its node."""


LaunchSettings = Annotated[HereSettings | AccelerateSettings | SlurmSettings, Field(discriminator="kind")]
