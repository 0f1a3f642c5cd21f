import hashlib
import random

from constitutional.base.seeds import rng_of, seed_of


def test_what_the_parts_name_decides_the_seed_and_nothing_else() -> None:
    seeds = [seed_of(0, "reward", 0), seed_of(0, "reward", 1), seed_of(1, "reward", 0), seed_of(0, "rewar", "d0")]
    assert len(set(seeds)) == 4
    assert seeds[0] == seed_of(0, "reward", 0)


def test_parts_do_not_run_into_each_other() -> None:
    assert seed_of("a b", "c") != seed_of("a", "b c")
    assert seed_of(1, "2") != seed_of("1", 2)
    assert rng_of("a b", "c").random() != rng_of("a", "b c").random()


def test_every_library_takes_the_seed() -> None:
    import numpy as np
    import torch

    seeds = [seed_of(number) for number in range(2000)]
    assert 0 <= min(seeds) < 2**31 / 500
    assert 2**31 * 0.998 < max(seeds) < 2**31
    np.random.RandomState(max(seeds))
    torch.Generator().manual_seed(max(seeds))


def test_a_seed_is_the_same_on_every_machine() -> None:
    digest = hashlib.sha256(b"(0, 'reward', 0)").hexdigest()
    assert seed_of(0, "reward", 0) == int(digest[:8], 16) // 2 == 1770920966
    assert rng_of(0, "reward", 0).random() == random.Random("(0, 'reward', 0)").random()
