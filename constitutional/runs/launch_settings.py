"""Where a stage is made that trains or holds a model in memory. No result depends on it."""

from typing import Annotated, Final, Literal, Self

from pydantic import Field, model_validator

from constitutional.base.frozen import Frozen

PORT: Final = 29500
"""Where torch's processes meet unless told otherwise."""


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
    port: Annotated[int, Field(ge=1, le=65535)] = PORT
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


class JobAccelerateSettings(AccelerateSettings):
    """What a node of a Slurm job has of a training: made of `SlurmSettings`, and typed by nobody."""


class SlurmSettings(Frozen):
    """In a job of Slurm for each stage that needs a GPU, by submitit. The command waits for the job and makes the rest.

    The run's folder, the models and the installation lie where the job's nodes find them under the same paths. With
    `config` a stage that trains is trained by a process on each GPU of its job's nodes, as with `launch=accelerate`.
    """

    kind: Literal["slurm"] = "slurm"
    mode: Literal["slurm", "local"] = "slurm"
    """`local` starts the same job on this machine, to try a run without Slurm; of the settings below it knows
    gpus_per_node, config, nodes, timeout_min and restarts alone."""
    partition: str | None = None
    """As sbatch's --partition; null is the cluster's default."""
    account: str | None = None
    """As sbatch's --account; null is the user's default."""
    constraint: str | None = None
    """As sbatch's --constraint: features that the node must have, such as h100."""
    gpus_per_node: Annotated[int, Field(ge=0)] = 1
    """GPUs that the job has, on each of its nodes."""
    config: str | None = None
    """How a stage trains: null is by one process. ddp, fsdp2, zero3, or a file that `accelerate config` wrote: by as
    many processes on each node as gpus_per_node says."""
    nodes: Annotated[int, Field(ge=1)] = 1
    """Nodes that train together; a job of a stage that asks models has one."""
    cpus_per_task: Annotated[int, Field(ge=1)] = 8
    """Cores that the job has, on each of its nodes."""
    mem_gb: Annotated[float, Field(gt=0)] = 64.0
    """Memory of a node, in GB; not that of the GPUs."""
    timeout_min: Annotated[int, Field(ge=1)] = 240
    """Minutes after which Slurm ends the job. Then it is submitted again, and goes on."""
    setup: tuple[str, ...] = ()
    """Lines of shell that the job begins with, such as ["module load cuda"]."""
    restarts: Annotated[int, Field(ge=0)] = 10
    """How often a stage's job is submitted again that was preempted, timed out, or lost its node."""

    @model_validator(mode="after")
    def _several_processes(self) -> Self:
        if self.config is None and self.nodes > 1:
            raise ValueError(
                f"nodes is {self.nodes}, and config is null, with which one process trains; type launch.config=fsdp2"
            )
        if self.config is not None and self.gpus_per_node * self.nodes < 2:
            raise ValueError(
                f"config is {self.config}, for one process on each GPU, and gpus_per_node is {self.gpus_per_node}; "
                "type launch.gpus_per_node=2 or more, or launch.config=null"
            )
        return self

    def together(self, machine_rank: int = 0, main_address: str = "", port: int = PORT) -> JobAccelerateSettings | None:
        """How a node of a job trains a stage with the others; None where one process does.

        Args:
            machine_rank: which of the job's nodes it is.
            main_address: of the first node.
            port: a free one of the first node.
        """
        if self.config is None:
            return None
        return JobAccelerateSettings(
            processes=self.gpus_per_node,
            config=self.config,
            machines=self.nodes,
            machine_rank=machine_rank,
            main_address=main_address,
            port=port,
        )


LaunchSettings = Annotated[HereSettings | AccelerateSettings | SlurmSettings, Field(discriminator="kind")]


def together(launch: LaunchSettings) -> AccelerateSettings | None:
    """How several processes train what trains; None where one does."""
    if isinstance(launch, SlurmSettings):
        return launch.together()
    return launch if isinstance(launch, AccelerateSettings) else None


def alone(launch: LaunchSettings) -> LaunchSettings:
    """The same place, where one process trains."""
    if isinstance(launch, SlurmSettings):
        return launch.model_copy(update={"config": None, "nodes": 1})
    return HereSettings() if isinstance(launch, AccelerateSettings) else launch
