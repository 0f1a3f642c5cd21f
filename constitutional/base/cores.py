"""Sharing the processor's cores with other processes.

OpenMP's threads wait for each other by spinning. Where another process takes a core, the thread that spins keeps the
one that it waits for from running, and everything is 5 to 10 times slower. So they spin for a short time only
(`spin_briefly`), and an engine that has two threads computes with one while others use the cores (`shared_cores`).
"""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

SPIN_COUNT: Final = "10000"
"""How often a thread looks for more work before it sleeps; GNU's OpenMP looks 30 billion times where it is not told.
Measured in the README; the environment's own GOMP_SPINCOUNT or OMP_WAIT_POLICY wins."""
SHARED: Final = 2
"""The number of threads that gives one up."""
MEASURED_S: Final = 0.25
"""Over how long it is measured what other processes use, at least."""


def spin_briefly() -> None:
    """Set how long OpenMP's threads spin, for this process and those that it starts; before torch is imported."""
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)


class _Measured:
    """What was measured last."""

    at_s = 0.0
    busy_s = 0.0
    own_s = 0.0
    free = 1_000_000
    """Cores that other processes did not use."""


@contextmanager
def shared_cores() -> Iterator[None]:
    """Within the block torch, where it has two threads, has one while other processes use a core.

    On two cores a busy process hurts most. One thread and two give the same bits in every shape of batch that was
    tried; three or more do not, so there the threads stay. On systems that do not say what the cores do, they stay too.
    """
    import torch

    threads = torch.get_num_threads()
    fewer = 1 if threads == SHARED and _free_cores() < SHARED else threads
    if fewer < threads:
        torch.set_num_threads(fewer)
    try:
        yield
    finally:
        if fewer < threads:
            torch.set_num_threads(threads)


def _free_cores() -> int:
    """Cores that other processes have not used since the last time that this was measured."""
    now_s, last = time.monotonic(), _Measured
    if now_s - last.at_s >= MEASURED_S:
        with suppress(OSError, ValueError, AttributeError):
            busy_s, own_s = _busy_s(), sum(os.times()[:2])
            others = (busy_s - last.busy_s - (own_s - last.own_s)) / (now_s - last.at_s)
            if last.at_s:
                last.free = round(len(os.sched_getaffinity(0)) - others + 0.1)
            last.at_s, last.busy_s, last.own_s = now_s, busy_s, own_s
    return last.free


def _busy_s() -> float:
    """Seconds that the cores which this process may use have worked since the system began."""
    own = {f"cpu{number}" for number in os.sched_getaffinity(0)}
    ticks = 0
    for line in Path("/proc/stat").read_text(encoding="ascii").splitlines():
        name, *fields = line.split()
        if name in own:
            user, nice, system, _idle, _wait, interrupts, soft, *_ = map(int, fields)
            ticks += user + nice + system + interrupts + soft
    return ticks / os.sysconf("SC_CLK_TCK")
