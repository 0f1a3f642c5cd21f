"""What is known of the process itself: how much memory it has held, and what it runs on."""

import gc
import platform
import resource
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from importlib import metadata
from typing import Final

PACKAGES: Final = "constitutional torch transformers trl accelerate datasets peft tokenizers numpy".split()
"""Those on whose versions a run's numbers may depend."""


def peak_bytes() -> int:
    """The most memory that this process has held so far."""
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return held if sys.platform == "darwin" else held * 1024  # Linux counts in KiB


@contextmanager
def rare_collections() -> Iterator[None]:
    """Meanwhile Python seldom looks for objects that hold each other and nothing else.

    What labels and samples makes many objects and few of these, and is gone through again each time: of the stage
    `label` that was a third of the time.
    """
    before = gc.get_threshold()
    gc.set_threshold(20_000, 20, 20)  # Python 3.11 has 700, 10, 10
    try:
        yield
    finally:
        gc.set_threshold(*before)


@cache
def versions() -> Mapping[str, str]:
    """What this process runs on, by package."""
    packages = {"python": platform.python_version()} | dict.fromkeys(PACKAGES, "not installed")
    for package in PACKAGES:
        with suppress(metadata.PackageNotFoundError):  # an installation without the training extras, say
            packages[package] = metadata.version(package)
    return packages
