"""What 10⁴ to 10⁸ labels need: GPUs, hours, bytes and money, and what is the bottleneck at each scale.

    python scripts/scale_plan.py                                # the tables of docs/scale.md
    python scripts/scale_plan.py --measure                      # with the journal as it is on this machine
    python scripts/scale_plan.py --gpu-hour 2.5 --read-per-s 20000 --write-per-s 9000      # with your prices and rates
    python scripts/scale_plan.py --price-input 0.1 --price-output 0.3                      # labels by a hosted model

A label compares two replies, which the trained model draws, in both orders; then a reward model and DPO pass over the
pair once. Rates that were measured stand in MEASURED with their source. What a GPU does in a second was not measured:
it is a share of the card's peak that ASSUMED states, until you give the tokens a second of `scripts/bench_gpu.py`.
"""

import argparse
import hashlib
import math
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from constitutional.engines.base import Completion
from constitutional.engines.journal import Journal

SCALES: Final = (10**4, 10**5, 10**6, 10**7, 10**8)
"""Labels."""


class Rate(NamedTuple):
    """A rate, and where it is from."""

    value: float
    unit: str
    source: str


AT_ONCE: Final = 64
"""Answers that come together and are kept in one transaction."""
MEASURED: Final[Mapping[str, Rate]] = {
    "journal": Rate(
        287,
        "bytes of the journal an answer, beside its text",
        "`bench_journal.py`: 494 MB for a million of 207 letters",
    ),
    "keep": Rate(
        26e-6,
        "s to keep an answer",
        f"`--measure`, {AT_ONCE} at once, beside another process: the slowest of three, 20 to 26",
    ),
    "stages": Rate(
        490e-6,
        "s of CPU time a label in the stages themselves",
        "`bench_scale.py`, a million prompts: check 12, prompts 36, sample_pairs 131, label 285, mix 26",
    ),
    "again": Rate(
        297e-6,
        "s of CPU time a label to go through the stage label again",
        "`bench_scale.py`, as above: check 12, label 285, with answers that were kept and not reused",
    ),
    "ask": Rate(1 / 1084, "s to ask a server", "README, engines: 1,084 calls/s by one process"),
    "row": Rate(820, "bytes of rows a label, beside its texts", "a run with SmolLM2-135M, 139 labels"),
    "pair": Rate(
        104,
        "bytes of a training process's memory a pair",
        "a million: 40 for the order of the rows, 64 for the reference's in DPO; 4,000 more of 100,000 or fewer",
    ),
}
BYTES_A_TOKEN: Final = 4
"""Of English text, about."""
ASSUMED: Final[Mapping[str, Rate]] = {
    "peak": Rate(989e12, "operations a second", "an H100's data sheet, dense bfloat16"),
    "read": Rate(0.4, "of the peak while a prompt is read", "assumed"),
    "write": Rate(0.1, "of the peak while replies are written, many at once", "assumed"),
    "train": Rate(0.35, "of the peak in training", "assumed"),
}


class Chosen(NamedTuple):
    """What is asked for; lengths in tokens, rates in tokens a second of one GPU."""

    weights: float
    """Of the model that is trained and of the labeler."""
    prompt: int
    reply: int
    instruction: int
    """What a request to the labeler says beside the prompt and the two replies."""
    reasoning: int
    """What the labeler writes before it decides; 0 where its probabilities are read at once."""
    read_per_s: float
    write_per_s: float
    train_per_s: float
    hours: float
    """In which it is to be done."""
    memory_gb: float
    """That a machine has."""
    processes: int
    """Of a training, on one machine; every one holds the order of all pairs."""
    gpu_hour: float
    price_input: float
    price_output: float
    """For a million tokens; a labeler with a price is hosted, and takes no GPU."""

    @property
    def hosted(self) -> bool:
        """Whether the labeler is paid by tokens."""
        return bool(self.price_input or self.price_output)


class Need(NamedTuple):
    """What so many labels need."""

    labels: int
    answers: float
    """Of models, the replies that are compared included."""
    gpu_hours: dict[str, float]
    """By kind of work."""
    tokens: tuple[float, float]
    """That the labeler reads and writes."""
    journal_gb: float
    rows_gb: float
    command_hours: dict[str, float]
    """What the one process that asks needs, by kind of work."""
    again_hours: float
    """Until a command that was killed at the end of the stage label has come so far again."""
    memory_gb: float
    """For the pairs, on a machine that trains."""
    gpus: int
    """With which the GPUs' work is done in time."""
    money: float
    bottleneck: str


def need(labels: int, chosen: Chosen, rates: Mapping[str, Rate] = MEASURED) -> Need:
    """What so many labels need, by arithmetic alone."""
    calls = 4 if chosen.reasoning else 2  # both orders; first the reasoning, then the choice
    question = chosen.prompt + 2 * chosen.reply + chosen.instruction
    read = labels * (calls * question + 2 * chosen.reasoning)
    written = labels * 2 * chosen.reasoning
    pair = 2 * (chosen.prompt + chosen.reply)
    gpu_s = {
        "replies": labels * 2 * (chosen.prompt / chosen.read_per_s + chosen.reply / chosen.write_per_s),
        "labels": 0.0 if chosen.hosted else read / chosen.read_per_s + written / chosen.write_per_s,
        # A pass of the reward model, and one of DPO, which reads the reference's probabilities as well.
        "training": labels * pair * (2 / chosen.train_per_s + 1 / chosen.read_per_s),
    }
    gpu_hours = {name: seconds / 3600 for name, seconds in gpu_s.items()}
    answers = labels * (2 + calls)
    texts = BYTES_A_TOKEN * 2 * (chosen.reply + chosen.reasoning)
    command_hours = {
        "asking": answers * rates["ask"].value / 3600,
        "the journal": answers * rates["keep"].value / 3600,
        "stages": labels * rates["stages"].value / 3600,
    }
    memory_gb = labels * rates["pair"].value * chosen.processes / 1e9
    gpus = max(1, math.ceil(sum(gpu_hours.values()) / chosen.hours))
    times = {
        f"the GPUs, most for {max(gpu_hours, key=gpu_hours.__getitem__)}": sum(gpu_hours.values()) / gpus,
        f"the command, most for {max(command_hours, key=command_hours.__getitem__)}": sum(command_hours.values()),
    }
    money = sum(gpu_hours.values()) * chosen.gpu_hour
    money += (read * chosen.price_input + written * chosen.price_output) / 1e6
    bottleneck = max(times, key=times.__getitem__)
    if memory_gb > chosen.memory_gb:
        bottleneck = f"memory for pairs, then {bottleneck}"
    return Need(
        labels=labels,
        answers=answers,
        gpu_hours=gpu_hours,
        tokens=(read, written),
        journal_gb=(answers * rates["journal"].value + labels * texts) / 1e9,
        rows_gb=labels * (rates["row"].value + texts) / 1e9,
        command_hours=command_hours,
        again_hours=labels * rates["again"].value / 3600,
        memory_gb=memory_gb,
        gpus=gpus,
        money=money,
        bottleneck=bottleneck,
    )


def measured_here(answers: int = 20_000) -> dict[str, Rate]:
    """The journal's rates on this machine."""
    text = "It depends on what you have in mind. " * 6
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "journal.sqlite"
        with Journal(path) as journal:
            started_s = time.perf_counter()
            for first in range(0, answers, AT_ONCE):
                numbers = range(first, min(first + AT_ONCE, answers))
                keys = (hashlib.sha256(str(number).encode()).hexdigest() for number in numbers)  # in no order, as ours
                journal.keep({key: Completion(text, "stop", (), "", 200, 50) for key in keys})
            seconds = time.perf_counter() - started_s
        size = path.stat().st_size
    here = f"measured just now, {answers:,} answers"
    return {
        "journal": MEASURED["journal"]._replace(value=size / answers - len(text), source=here),
        "keep": MEASURED["keep"]._replace(value=seconds / answers, source=here),
    }


def shown(chosen: Chosen, rates: Mapping[str, Rate], measured_gpu: bool) -> str:
    """The tables, in Markdown."""
    needs = [need(labels, chosen, rates) for labels in SCALES]
    kinds = "replies", "labels", "training"
    rows: list[tuple[str, ...]] = [("", *(f"{labels:,} labels" for labels in SCALES))]
    rows.append(("answers of models", *(_large(row.answers) for row in needs)))
    rows += [(f"GPU hours: {kind}", *(_large(row.gpu_hours[kind]) for row in needs)) for kind in kinds]
    rows.append((f"GPUs, to be done in {chosen.hours:g} h", *(f"{row.gpus:,}" for row in needs)))
    for kind in ("asking", "the journal", "stages"):
        rows.append((f"the command's hours: {kind}", *(_large(row.command_hours[kind]) for row in needs)))
    rows.append(("hours to go on after a kill at the end of label", *(_large(row.again_hours) for row in needs)))
    memory = f"a machine's memory for pairs, GB (training processes: {chosen.processes})"
    rows.append((memory, *(_large(row.memory_gb) for row in needs)))
    rows.append(("journal, GB", *(_large(row.journal_gb) for row in needs)))
    rows.append(("rows, GB", *(_large(row.rows_gb) for row in needs)))
    if chosen.hosted:
        rows.append(("tokens that the labeler reads", *(_large(row.tokens[0]) for row in needs)))
        rows.append(("tokens that the labeler writes", *(_large(row.tokens[1]) for row in needs)))
    if chosen.hosted or chosen.gpu_hour:
        rows.append(("money", *(_large(row.money) for row in needs)))
    rows.append(("bottleneck", *(row.bottleneck for row in needs)))
    gpu = "as given" if measured_gpu else "assumed, not measured"
    speeds = {"read": chosen.read_per_s, "write": chosen.write_per_s, "train": chosen.train_per_s}
    known: list[tuple[str, ...]] = [("rate", "value", "source")]
    known += [(rate.unit, _rate(rate.value), rate.source) for rate in rates.values()]
    known += [(f"tokens a second of a GPU, {name}", _large(speed), gpu) for name, speed in speeds.items()]
    return f"{_markdown(rows)}\n\n{_markdown(known)}"


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], f"|{'---|' * len(rows[0])}", *lines[1:]])


def _large(number: float) -> str:
    """Two digits that count: 0.0123, 4.6, 1,800, 3,100,000."""
    if not number:
        return "0"
    digits = 1 - math.floor(math.log10(abs(number)))
    return f"{round(number, digits):,.{max(0, digits)}f}"


def _rate(value: float) -> str:
    return f"{value * 1e6:,.0f} millionths" if value < 0.1 else f"{value:,.0f}"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=float, default=8e9, help="of the trained model and of the labeler (8e9)")
    parser.add_argument("--prompt", type=int, default=128, help="tokens of a prompt (128)")
    parser.add_argument("--reply", type=int, default=256, help="tokens of a reply (256)")
    parser.add_argument("--instruction", type=int, default=128, help="tokens of the labeler's instruction (128)")
    parser.add_argument(
        "--reasoning", type=int, default=0, help="tokens that the labeler writes first, such as 128 (0)"
    )
    for name, what in (("read", "read"), ("write", "written"), ("train", "trained on")):
        parser.add_argument(
            f"--{name}-per-s", type=float, help=f"tokens {what} in a second by one GPU, as you measured"
        )
    parser.add_argument("--hours", type=float, default=24, help="in which it is to be done (24)")
    parser.add_argument("--memory-gb", type=float, default=64, help="that a machine has (64)")
    parser.add_argument(
        "--processes",
        type=int,
        default=1,
        help="that train on a machine, each with the order of all pairs: launch=accelerate (1)",
    )
    parser.add_argument("--gpu-hour", type=float, default=0, help="the price of a GPU for an hour")
    parser.add_argument(
        "--price-input", type=float, default=0, help="a hosted labeler's price of a million tokens read"
    )
    parser.add_argument("--price-output", type=float, default=0, help="and of a million tokens written")
    parser.add_argument("--measure", action="store_true", help="measure the journal on this machine")
    arguments = vars(parser.parse_args(argv))
    rates = {**MEASURED, **(measured_here() if arguments.pop("measure") else {})}
    given = all(arguments[f"{name}_per_s"] for name in ("read", "write", "train"))
    for name, operations in (("read", 2), ("write", 2), ("train", 6)):
        by_peak = ASSUMED[name].value * ASSUMED["peak"].value / (operations * arguments["weights"])
        arguments[f"{name}_per_s"] = arguments[f"{name}_per_s"] or by_peak
    print(shown(Chosen(**arguments), rates, given))
    return 0


if __name__ == "__main__":
    sys.exit(main())
