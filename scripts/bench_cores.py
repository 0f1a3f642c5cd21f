"""What a core that another process takes costs the local engine, with and without what `base/cores.py` does about it.

    python scripts/bench_cores.py

The sandbox's model answers the same 128 requests, alone and beside a process that keeps one core busy; every repetition
is a process of its own, all ways in turns. `as torch is` leaves OpenMP's threads to spin as long as they like.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Final

WAYS: Final = ("as torch is", "spin briefly", "spin briefly, share cores")
REQUESTS: Final = 128


def measured(way: str) -> float:
    """Seconds for all requests, in this process."""
    from constitutional.base import cores

    if way == "as torch is":
        os.environ.pop("GOMP_SPINCOUNT", None)
    else:
        cores.spin_briefly()
    from constitutional.base.records import Message
    from constitutional.engines import local
    from constitutional.engines.base import Request, Sampling
    from constitutional.engines.models import open_engine

    if way != WAYS[2]:
        vars(local)["shared_cores"] = nullcontext
    engine = open_engine("sandbox")
    question = (Message("user", "How should I store onions, and for how long do they keep well?"),)
    requests = [Request(question, Sampling(1.0, 1.0, 64), seed) for seed in range(REQUESTS)]
    engine.complete(requests)  # what was loaded lazily, and what others use of the cores, is known from here on
    started_s = time.perf_counter()
    engine.complete(requests)
    return time.perf_counter() - started_s


@contextmanager
def another_process(*, busy: bool) -> Iterator[None]:
    """With a process beside this one that never rests, or without."""
    if not busy:
        yield
        return
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as process:
        try:
            yield
        finally:
            process.kill()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.way:
        print(measured(arguments.way))
        return 0
    seconds: dict[tuple[str, bool], list[float]] = {(way, busy): [] for way in WAYS for busy in (False, True)}
    for _ in range(arguments.repetitions):
        for (way, busy), values in seconds.items():
            with another_process(busy=busy):
                command = [sys.executable, __file__, "--way", way]
                output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            values.append(float(output))
    medians = {key: statistics.median(values) for key, values in seconds.items()}
    bare = medians["as torch is", False]
    print(f"{'':28}{'alone, s':>10}{'ratio':>8}{'contended, s':>14}{'ratio':>8}")
    for way in WAYS:
        alone, contended = medians[way, False], medians[way, True]
        print(f"{way:28}{alone:10.2f}{alone / bare:8.2f}{contended:14.2f}{contended / bare:8.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
