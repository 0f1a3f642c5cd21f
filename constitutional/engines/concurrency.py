"""How many requests a server is sent at the same time, and how long to wait before a request is sent again.

The limit climbs a hill, in the manner of TCP Vegas and Netflix's concurrency-limits. It starts low and doubles as long
as more open requests give more answers a second; by Little's law this is the same as to say that the latency does not
rise as fast as the limit. Where doubling gains nothing, it goes back and from then on tries small steps up, each of
which it keeps only if the throughput grew. A latency far above the best makes it try a step down, which it keeps if the
throughput does not fall. Where more than a quarter of the requests are refused (429, 503), the limit is cut, as in
TCP's additive increase, multiplicative decrease; rarer refusals cost less than a limit that is too low.
"""

import random
from typing import Final

START: Final = 8
STEP: Final = 1.5
GAIN: Final = 1.2
"""The least by which the throughput must grow with a step up, or fall with a step down, to be more than noise."""
REST_WINDOWS: Final = 10
"""Windows that a level is kept for, after a step up gained nothing."""
SLOWED: Final = 2.0
"""A latency of so many times the best makes the limit try a step down."""
CUT: Final = 0.7
OFTEN_REFUSED: Final = 0.25
"""The share of refusals, among the last answers, that cuts the limit."""
REST_AFTER_CUT: Final = 2


class Limiter:
    """Finds how many requests should be open at the same time.

    It looks at windows: after the limit has changed, the first answers as many as the limit are of requests that were
    begun before and are passed over; the next as many (at least 8) make a window. Answers that come while no request
    waits tell nothing of the limit, and begin a new window.

    Args:
        most: the limit is never higher.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.limit = min(START, most)
        self._doubling = True
        self._before: tuple[int, float] | None = None
        """The limit before the last step, and the answers a second at that time; None after no step."""
        self._rest = 0
        self._best_s = float("inf")
        self._cut_s = 0.0
        self._begin(pass_over=0)
        self._answers = self._refusals = 0

    def answered(self, now_s: float, latency_s: float, *, waiting: bool) -> None:
        """A request was answered.

        Args:
            now_s: the time.
            latency_s: how long the request was open.
            waiting: whether more requests wait to be sent.
        """
        self._answers += 1
        if self._answers > 4 * max(self.limit, START):
            self._answers, self._refusals = self._answers // 2, self._refusals // 2
        if not waiting:
            self._begin(pass_over=0)
            return
        if self._passed < self._pass_over:
            self._passed += 1
            return
        if not self._count:
            self._since_s = now_s
        self._count += 1
        self._latency_s += latency_s
        if self._count > max(self.limit, START) and now_s > self._since_s:
            self._judge((self._count - 1) / (now_s - self._since_s), self._latency_s / self._count)

    def refused(self, now_s: float, latency_s: float) -> None:
        """The server has too much to do; requests that were sent before the last cut are no reason for another one."""
        if now_s - latency_s < self._cut_s:
            return
        self._refusals += 1
        outcomes = self._refusals + self._answers
        if outcomes >= 2 * max(self.limit, START) and self._refusals > OFTEN_REFUSED * outcomes:
            self._doubling, self._before, self._rest = False, None, REST_AFTER_CUT
            self._cut_s = now_s
            self._set(int(self.limit * CUT))

    def _judge(self, rate: float, latency_s: float) -> None:
        self._best_s = min(self._best_s, latency_s)
        before, self._before = self._before, None
        if before and before[0] < self.limit and rate < before[1] * GAIN:
            self._doubling, self._rest = False, REST_WINDOWS
            self._set(before[0])
        elif before and before[0] > self.limit and rate < before[1] / GAIN:
            # The throughput fell with the limit: requests are longer than they were, and the server is no slower.
            self._best_s, self._rest = latency_s, REST_WINDOWS
            self._set(before[0])
        elif self._doubling and self.limit < self.most:
            self._step(self.limit * 2, rate)
        elif latency_s > SLOWED * self._best_s:
            self._step(int(self.limit / STEP), rate)
        elif self._rest:
            self._rest -= 1
            self._begin(pass_over=0)
        else:
            self._step(max(int(self.limit * STEP), self.limit + 1), rate)

    def _step(self, limit: int, rate: float) -> None:
        before = (self.limit, rate)
        self._set(limit)
        if self.limit != before[0]:
            self._before = before

    def _set(self, limit: int) -> None:
        self.limit = max(1, min(limit, self.most))
        self._answers = self._refusals = 0
        self._begin(pass_over=self.limit)

    def _begin(self, pass_over: int) -> None:
        self._pass_over, self._passed, self._count = pass_over, 0, 0
        self._since_s = self._latency_s = 0.0


FIRST_WAIT_S: Final = 0.5
LONGEST_WAIT_S: Final = 20.0


def back_off_s(tries: int) -> float:
    """Seconds before a request is sent again after so many tries, at least 1: exponential, with full jitter."""
    return random.uniform(0, min(LONGEST_WAIT_S, FIRST_WAIT_S * 2 ** min(tries - 1, 10)))
