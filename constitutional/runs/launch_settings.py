"""Where a stage is made that trains or holds a model in memory. No result depends on it."""

from typing import Annotated, Literal

from pydantic import Field

from constitutional.base.frozen import Frozen


class HereSettings(Frozen):
    """In the command's own process."""

    kind: Literal["here"] = "here"


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
    """Cores."""
    mem_gb: Annotated[float, Field(gt=0)] = 64.0
    """Memory of the node, in GB; not that of the GPUs."""
    timeout_min: Annotated[int, Field(ge=1)] = 240
    """Minutes after which Slurm ends the job. Then it is submitted again, and goes on."""
    setup: tuple[str, ...] = ()
    """Lines of shell that the job begins with, such as ["module load cuda"]."""
    restarts: Annotated[int, Field(ge=0)] = 10
    """How often a stage's job is submitted again that was preempted, timed out, or lost its node."""


LaunchSettings = Annotated[HereSettings | SlurmSettings, Field(discriminator="kind")]
