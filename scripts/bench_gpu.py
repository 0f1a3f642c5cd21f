"""PPO, DPO and generation on a GPU: speed, share of the peak and memory, on a Llama with random weights.

    python scripts/bench_gpu.py --json gpu.json     a model of 1.5 billion weights, prompts of about 512 tokens, replies
                                                    of 512; meant for a GPU of 80 GB; ends within six minutes
    python scripts/bench_gpu.py --size tiny         the same on a small model, on a CPU too: that the command works

It needs torch, transformers, accelerate and numpy, no hub, and no installation of this project. The file of --json is
written anew after every part, so that nothing is lost if the time or the memory ends; a part that failed says why.

    rollout     replies drawn by PPO's sampler; a token is one of a reply
    scoring     policy, reference and critic at the replies, and the reward model; tokens of prompts and replies
    update      forward and backward passes of policy and critic, and both optimizers; tokens as above
    DPO         by TRL's trainer where TRL is installed; otherwise its loss over PPO's forward pass, and the reference's
                pass apart. The output says which
    generation  the same prompts by the engine's decoder, PPO's sampler and transformers' `generate`, all in bfloat16 on
                a GPU
    vllm        and by vLLM, where it is installed

The share of the peak is the model's operations in a second, over those that the card can do. Operations are 2·N for a
token that is read and 6·N for one that is trained on, N the weights that the token meets: those of the layers, and of
the head at replies alone; and attention's, 4·layers·hidden·context forwards, and three times that in training. Nothing
that is computed on top, such as padding, counts. The peak is the one of the card's name for dense bfloat16; of other
cards, and of a CPU in float32, what a large product of matrices reaches.
"""

import argparse
import gc
import importlib.metadata
import json
import math
import resource
import signal
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # also where the project is not installed

from constitutional.base.files import atomic_write
from scripts.bench_gpu_parts import dpo, generation, now, ppo, vllm
from scripts.bench_ppo_trainer import Sizes

SIZES: Final = {
    # The shape of Llama 3.2 1B, with a head of its own.
    "1b": Sizes(
        hidden=2048,
        layers=16,
        heads=32,
        key_value_heads=8,
        intermediate=8192,
        vocabulary=128_256,
        prompts=(384, 640),
        response_length=512,
        micro_batch=4,
        micro_batches=32,
        rollout_batch=128,
        epochs=1,
        phases=3,
    ),
    "tiny": Sizes(
        hidden=64,
        layers=2,
        heads=4,
        key_value_heads=2,
        intermediate=96,
        vocabulary=512,
        prompts=(12, 20),
        response_length=16,
        micro_batch=2,
        micro_batches=4,
        rollout_batch=8,
        epochs=1,
        phases=2,
    ),
}
PEAKS: Final = {
    "GB200": 2500.0,
    "B200": 2250.0,
    "H200 NVL": 835.0,
    "GH200": 989.0,
    "H200": 989.0,
    "H100 NVL": 835.0,
    "H100 PCIe": 756.0,
    "H100": 989.0,
    "A100": 312.0,
    "L40S": 362.0,
    "L4": 121.0,
    "MI300X": 1307.0,
}
"""TFLOP/s in dense bfloat16 by the makers' data sheets; the first name that is found in the card's counts."""
MATRIX: Final = {"cuda": 8192, "cpu": 512}
"""Rows and columns of the matrices whose product measures a peak."""


AGAIN_S: Final = 5.0
"""From one alarm to the next once the time is up: what is raised where nothing can be, as in a destructor, is lost."""


class OutOfTime(BaseException):
    """The command has had its time. It is no `Exception`, as libraries catch those and go on."""


def peak_tflops(name: str) -> tuple[float, str]:
    """What a card of this name can do, and where that is from; `cpu` is this machine's."""
    import torch

    if known := next((card for card in PEAKS if set(card.split()) <= set(name.replace("-", " ").split())), None):
        return PEAKS[known], f"the data sheet of {known}"
    kind = "cpu" if name == "cpu" else "cuda"
    size, dtype = MATRIX[kind], torch.float32 if kind == "cpu" else torch.bfloat16
    left, right = torch.randn(2, size, size, device=kind, dtype=dtype)
    seconds = []
    for _ in range(10):
        start = now()
        left @ right
        seconds.append(now() - start)
    return 2 * size**3 / min(seconds) / 1e12, f"a product of {size}×{size} matrices in {dtype}"


def memory_gib() -> float:
    """The most that the part had on the GPU; on a CPU the most that the process ever had."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # Linux counts KiB


PARTS: Final = {"ppo": ppo, "dpo": dpo, "generation": generation, "vllm": vllm}


def measure(size: str, parts: Sequence[str], write: Callable[[Mapping[str, Any]], None]) -> dict[str, Any]:
    """All parts, one after the other; `write` is given what there is after each."""
    sizes, started = SIZES[size], time.monotonic()
    versions = {package: importlib.metadata.version(package) for package in ("torch", "transformers")}
    found: dict[str, Any] = {"device": "unknown", **versions, "size": size, "sizes": asdict(sizes)}
    try:
        import torch
        import transformers

        transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
        name = found["device"] = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
        peak, source = peak_tflops(name)
        found |= {"peak_tflops": peak, "peak_from": source}
        for part in parts:
            print(f"{time.monotonic() - started:5.0f} s: {part}", file=sys.stderr, flush=True)
            _one(PARTS[part], sizes, peak, found.setdefault(part, {}))
            found["seconds"] = time.monotonic() - started
            write(found)
    except OutOfTime:
        signal.setitimer(signal.ITIMER_REAL, 0)
        found |= {"seconds": time.monotonic() - started, "out_of_time": True}
        write(found)
    return found


def _one(
    part: Callable[[Sizes, float, dict[str, Any]], None], sizes: Sizes, peak: float, found: dict[str, Any]
) -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    try:
        part(sizes, peak, found)
    except Exception as error:  # noqa: BLE001 - such as memory that ends; the other parts are still to be measured
        found["error"] = f"{type(error).__name__}: {(str(error).strip() or 'without a word').splitlines()[0]}"
    finally:
        found["peak_gib"] = memory_gib()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def table(found: Mapping[str, Any]) -> str:
    """What was found, for people."""
    lines = [
        f"{found['device']}, torch {found['torch']}, transformers {found['transformers']}, model {found['size']}",
        f"peak: {found['peak_tflops']:.4g} TFLOP/s, by {found['peak_from']}" if "peak_tflops" in found else "",
        "",
        f"{'':24}{'tokens/s':>12}{'of peak':>9}{'s':>9}{'GiB':>8}",
    ]
    for part in filter(found.__contains__, PARTS):
        lines.append(f"{part:48}" + f"{found[part].get('peak_gib', math.nan):14.2f}")
        for name, piece in found[part].items():
            if isinstance(piece, dict) and "tokens_per_s" in piece:
                taken = statistics.median(piece["seconds"])
                speed = f"{piece['tokens_per_s']:12,.0f}{piece['share_of_peak']:9.1%}{taken:9.2f}"
                lines.append(f"  {name:22}{speed}   {piece['counted']}")
        lines += [f"  {key}: {found[part][key]}" for key in ("by", "left_out", "error") if key in found[part]]
    if "out_of_time" in found:
        lines.append("the time ended before all was measured")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write; 1 if a part failed or the time ended."""
    about, _, explained = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(
        description=about, epilog=explained, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=SIZES, default="1b")
    parser.add_argument("--json", type=Path, help="a file to write everything to")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="all by default")
    parser.add_argument("--minutes", type=float, default=5.75, help="when to stop, whatever is left; 5.75 by default")
    options = parser.parse_args(arguments)

    def write(found: Mapping[str, Any]) -> None:
        if options.json:
            atomic_write(options.json, (json.dumps(found, indent=2) + "\n").encode())

    def stop(*_: object) -> None:
        raise OutOfTime

    signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, 60 * options.minutes, AGAIN_S)
    try:
        import torch  # which may take a minute from a slow disk, and is in the time

        if options.size == "1b" and not torch.cuda.is_available():
            parser.error(
                "torch sees no GPU here, and a CPU would take hours; type --size tiny to try the command on it"
            )
        found = measure(options.size, options.parts, write)
    except OutOfTime:
        print("the time ended before torch was there", file=sys.stderr)
        return 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    print(table(found))
    return int("out_of_time" in found or any("error" in found[part] for part in options.parts))


if __name__ == "__main__":
    sys.exit(main())
