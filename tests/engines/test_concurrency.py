import heapq
import random
from collections.abc import Callable

import pytest

from constitutional.engines.concurrency import FIRST_WAIT_S, LONGEST_WAIT_S, Limiter, back_off_s


def simulated(
    limiter: Limiter, latency_s: Callable[[int], float | None], answers: int, start_s: float = 0.0
) -> tuple[float, list[int]]:
    """Answers a second of a server that is always kept busy, and the limit at each answer.

    Args:
        limiter: says how many requests are open.
        latency_s: how long a request takes that is sent while so many are open; None refuses it.
        answers: how many there are in all.
        start_s: the time at which it begins.
    """
    dice = random.Random(1)
    now_s, open_requests, limits = start_s, list[tuple[float, float, bool]](), list[int]()
    while len(limits) < answers:
        while len(open_requests) < limiter.limit:
            seconds = latency_s(len(open_requests))
            took_s = 0.01 if seconds is None else seconds * dice.uniform(0.8, 1.2)
            heapq.heappush(open_requests, (now_s + took_s, now_s, seconds is not None))
        now_s, sent_s, sound = heapq.heappop(open_requests)
        if sound:
            limiter.answered(now_s, now_s - sent_s, waiting=True)
            limits.append(limiter.limit)
        else:
            limiter.refused(now_s, now_s - sent_s)
    return answers / (now_s - start_s), limits


def test_a_server_that_takes_any_number_gets_the_most_soon() -> None:
    _, limits = simulated(Limiter(64), lambda _: 0.05, 400)
    assert limits[0] == 8
    assert set(limits[150:]) == {64}


def test_a_server_that_does_no_more_than_so_many_at_once_gets_little_more() -> None:
    # 16 at a time, each for 0.1 s: 160 a second at the most; more wait in its queue, and are answered later.
    rate, limits = simulated(Limiter(256), lambda busy: 0.1 * max(1.0, (busy + 1) / 16), 4000)
    assert rate > 0.9 * 160
    assert 12 <= sorted(limits[1000:])[len(limits[1000:]) // 2] <= 26


def test_a_server_that_refuses_what_it_cannot_do_gets_what_it_can() -> None:
    rate, limits = simulated(Limiter(256), lambda busy: 0.1 if busy < 10 else None, 3000)
    assert rate > 0.75 * 100
    assert max(limits[500:]) <= 20


def test_refusals_that_have_nothing_to_do_with_the_number_do_not_bring_it_down() -> None:
    dice = random.Random(3)
    _, limits = simulated(Limiter(32), lambda _: None if dice.random() < 0.1 else 0.05, 2000)
    assert min(limits[500:]) >= 16


def test_a_server_that_becomes_slow_gets_less_if_less_is_enough() -> None:
    slow = {"now": False}

    def latency_s(busy: int) -> float:
        return 0.1 * max(1.0, (busy + 1) / (8 if slow["now"] else 64))

    limiter = Limiter(64)
    simulated(limiter, latency_s, 1000)
    assert limiter.limit == 64
    slow["now"] = True
    _, limits = simulated(limiter, latency_s, 6000, start_s=1000.0)
    assert min(limits) <= 20


def test_longer_requests_are_no_reason_to_ask_less() -> None:
    limiter = Limiter(64)
    simulated(limiter, lambda _: 0.1, 1000)
    _, limits = simulated(limiter, lambda _: 1.0, 3000, start_s=1000.0)
    assert sorted(limits[1000:])[1000] >= 51


def test_answers_while_nothing_waits_raise_no_limit() -> None:
    limiter = Limiter(64)
    for number in range(1000):
        limiter.answered(number / 100, 0.01, waiting=False)
    assert limiter.limit == 8
    assert Limiter(3).limit == 3


@pytest.mark.parametrize("tries", [1, 3, 50])
def test_the_wait_doubles_with_full_jitter_up_to_the_longest(tries: int) -> None:
    waits = [back_off_s(tries) for _ in range(400)]
    most = min(FIRST_WAIT_S * 2 ** (tries - 1), LONGEST_WAIT_S)
    assert 0 <= min(waits) < 0.05 * most
    assert 0.95 * most < max(waits) <= most
