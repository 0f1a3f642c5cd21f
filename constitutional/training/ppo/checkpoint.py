"""Checkpoints of PPO, taken between phases: everything that later phases depend on.

A checkpoint is written under another name and gets its own once all of it is on the disk, so that whatever is called
`checkpoint-<phase>` is whole. A training that goes on from one is, on a CPU, bit for bit the one that never stopped.
"""

import json
import random
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from constitutional.base.errors import ConfigurationError, RunError
from constitutional.base.files import atomic_write
from constitutional.training import processes
from constitutional.training.ppo.shards import part_of, put_together
from constitutional.training.saving import sync

if TYPE_CHECKING:
    import torch

    from constitutional.training.ppo.networks import Networks

STATE = "state.json"


def write_checkpoint(
    folder: Path, networks: "Networks", optimizers: "Sequence[torch.optim.Optimizer]", state: Mapping[str, Any]
) -> None:
    """Write weights, optimizers, random states, and `state`, which has the `phase` and what `training` it is of.

    All processes call it, and give their parts of what is in shards; the main one writes, tensors whole.
    """
    import numpy as np
    import torch

    weights = {"policy": networks.policy_weights, "critic": networks.critic_weights}
    content: dict[str, Any] = {
        **{name: {key: weight.detach() for key, weight in own.items()} for name, own in weights.items()},
        "optimizers": [optimizer.state_dict() for optimizer in optimizers],
    }
    partial, writes = folder.with_name(f".{folder.name}.partial"), processes.is_main()
    if writes:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        (partial / STATE).write_text(json.dumps(dict(state), indent=2))
    for name, parts in content.items():  # one file's tensors at a time are whole in the machine's memory
        whole = put_together(parts, keep=writes)
        if writes:
            torch.save(whole, partial / f"{name}.pt")
        del whole
    if not writes:
        return
    _, keys, *rest = np.random.get_state()  # noqa: NPY002 - reward functions of others may draw from it
    version, numbers, gauss = random.getstate()
    states = {
        "python": [version, list(numbers), gauss],
        "numpy": ["MT19937", np.asarray(keys).tolist(), *rest],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }
    torch.save(states, partial / "random.pt")
    sync(partial)
    remove_checkpoint(folder)
    partial.rename(folder)
    sync(folder.parent)


def read_checkpoint(
    folder: Path,
    networks: "Networks",
    optimizers: "Sequence[torch.optim.Optimizer]",
    training: Mapping[str, Any],
) -> dict[str, Any]:
    """Put everything back as it was, and return `state`.

    Raises:
        RunError: there is no checkpoint, or it cannot be read.
        ConfigurationError: it is of another training; the message names what differs.
    """
    import numpy as np
    import torch

    in_shards = bool(networks.without_weights)  # of whole tensors each process takes its part, and holds no more
    try:
        state: dict[str, Any] = json.loads((folder / STATE).read_text())
        policy, critic, optimizer_states, states = (
            torch.load(folder / f"{name}.pt", map_location="cpu", weights_only=True, mmap=in_shards)
            for name in ("policy", "critic", "optimizers", "random")
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise RunError(
            f"{folder}: cannot be read as a checkpoint: {error}; give an earlier one, or start anew"
        ) from error
    now = json.loads(json.dumps(dict(training)))  # as it looks once it has been written
    if other := [name for name in now if now[name] != state["training"].get(name)]:
        changes = "; ".join(f"{name} was {state['training'].get(name)!r}, now {now[name]!r}" for name in other)
        raise ConfigurationError(f"{folder}: is a checkpoint of another training: {changes}; give another output_dir")
    with torch.no_grad():
        for weights, saved in ((networks.policy_weights, policy), (networks.critic_weights, critic)):
            for name, weight in weights.items():
                weight.copy_(part_of(saved[name], weight))
    for optimizer, saved in zip(optimizers, optimizer_states, strict=True):
        moved = [weight for group in optimizer.param_groups for weight in group["params"]]
        for number, numbers in saved["state"].items():
            saved["state"][number] = {name: part_of(value, moved[number]) for name, value in numbers.items()}
        optimizer.load_state_dict(saved)
    version, numbers, gauss = states["python"]
    random.setstate((version, tuple(numbers), gauss))
    np.random.set_state(tuple(states["numpy"]))  # noqa: NPY002
    torch.set_rng_state(states["torch"])
    if len(states["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(states["cuda"])
    return state


def checkpoints(output: Path) -> list[Path]:
    """The folder's checkpoints, the latest last."""
    return sorted(output.glob("checkpoint-*"), key=lambda path: int(path.name.removeprefix("checkpoint-")))


def latest_checkpoint(output: Path) -> Path | None:
    """The last checkpoint, if there is one; what a kill left of another is not called so."""
    return next(reversed(checkpoints(output)), None)


def remove_checkpoint(folder: Path) -> None:
    """Remove a checkpoint, its name first: what a kill leaves of it must not look like one."""
    removed = folder.with_name(f".{folder.name}.removed")
    shutil.rmtree(removed, ignore_errors=True)
    if folder.exists():
        folder.rename(removed)
        shutil.rmtree(removed)


def keep_lines(path: Path, step: int) -> None:
    """Take back the lines of later steps than a checkpoint's, which will be made again."""
    # Texts hold other ends of lines. What follows the last is a line that a kill cut off, perhaps within a character,
    # and is of a later step than any checkpoint's.
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    atomic_write(path, b"".join(line + b"\n" for line in lines if json.loads(line)["step"] <= step))
