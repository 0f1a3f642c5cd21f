"""Seeds and random generators that belong to what they are named after, so that other items may come and go."""

import hashlib
import random


def seed_of(*parts: object) -> int:
    """A seed from 0 to 2³¹ − 1, which numpy, torch and TRL take, for what `parts` name: the run's seed, a stage, ids.

    `parts` are told apart by their `repr`: give numbers, texts and tuples of them.
    """
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:4]) >> 1


def rng_of(*parts: object) -> random.Random:
    """A random generator for what `parts` name, as for `seed_of`."""
    return random.Random(repr(parts))
