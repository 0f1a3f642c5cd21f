"""How many requests a server is sent at the same time, and how long to wait before a request is sent again.

The limit climbs a hill, in the manner of TCP Vegas and Netflix's concurrency-limits. It starts low and doubles as long
as more open requests give more answers a second. While requests wait, as many are open as the limit allows, and then by
Little's law the throughput is the limit divided by the latency. Where doubling gains nothing, the limit goes back; from
then on it tries small steps up, each of which it keeps only if the throughput grew. A latency far above the best makes
it try a step down, which it keeps if the throughput does not fall. Where more than a quarter of the requests are
refused (429, 503), the limit is cut, as in TCP's additive increase, multiplicative decrease; rarer refusals cost less
than a limit that is too low.
"""

import random
from typing import Final

START: Final = 8
WINDOW: Final = 24
"""The least number of answers that a latency is taken from: those of a language model vary a lot."""
STEP: Final = 1.5
GAIN: Final = 1.2
"""The least by which the throughput must grow with a step up, or fall with a step down, to be more than noise."""
REST: Final = 4
"""Windows that a level is kept for, after a step gained nothing or the limit was cut."""
SLOWED: Final = 2.0
"""A latency of so many times the best makes the limit try a step down."""
OFTEN_REFUSED: Final = 0.25
"""The share of refusals, among the last answers, that cuts the limit."""
CUT: Final = 0.7


class Limiter:
    """Finds how many requests should be open at the same time.

    It looks at windows of answers. After the limit has changed, as many answers as there were open are of requests that
    were begun before, and are passed over. An answer that comes while no request waits tells nothing, and begins a new
    window.

    Args:
        most: the limit is never higher.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.limit = min(START, most)
        self._doubling = True
        self._before: tuple[int, float] | None = None
        """The limit before the last step, and its throughput; None where there was no step."""
        self._rest = 0
        self._best_s = float("inf")
        self._slow = False
        self._cut_s = 0.0
        self._pass_over = 0
        self._latencies_s: list[float] = []
        self._answers = self._refusals = 0

    def answered(self, latency_s: float, *, waiting: bool) -> None:
        """A request was answered.

        Args:
            latency_s: how long the request was open.
            waiting: whether more requests wait to be sent.
        """
        self._answers += 1
        if self._answers > 4 * max(self.limit, START):
            self._answers, self._refusals = self._answers // 2, self._refusals // 2
        if not waiting:
            self._latencies_s = []
        elif self._pass_over:
            self._pass_over -= 1
        else:
            self._latencies_s.append(latency_s)
            if len(self._latencies_s) >= max(self.limit, WINDOW):
                # Of the middle half: a moment in which this program could not run says nothing of the server.
                middle = sorted(self._latencies_s)[len(self._latencies_s) // 4 : -(len(self._latencies_s) // 4)]
                self._latencies_s = []
                self._judge(sum(middle) / len(middle))

    def refused(self, now_s: float, latency_s: float) -> None:
        """The server has too much to do; requests that were sent before the last cut are no reason for another one."""
        if now_s - latency_s < self._cut_s:
            return
        self._refusals += 1
        outcomes = self._refusals + self._answers
        if outcomes >= 2 * max(self.limit, START) and self._refusals > OFTEN_REFUSED * outcomes:
            self._cut_s = now_s
            self._settle(int(self.limit * CUT))

    def _judge(self, latency_s: float) -> None:
        throughput = self.limit / max(latency_s, 1e-9)
        self._best_s = min(self._best_s, latency_s)
        before, self._before = self._before, None
        slow = latency_s > SLOWED * self._best_s
        was_slow, self._slow = self._slow, slow
        if before and before[0] < self.limit and throughput < before[1] * GAIN:
            self._settle(before[0])
        elif before and before[0] > self.limit and throughput < before[1] / GAIN:
            # The throughput fell with the limit: requests are longer than they were, and the server is no slower.
            self._best_s = latency_s
            self._settle(before[0])
        elif self._doubling and self.limit < self.most:
            self._step(self.limit * 2, throughput)
        elif slow:
            if was_slow:  # in the first such window, not all were slow yet
                self._step(int(self.limit / STEP), throughput)
        elif self._rest:
            self._rest -= 1
        else:
            self._step(max(int(self.limit * STEP), self.limit + 1), throughput)

    def _settle(self, limit: int) -> None:
        self._doubling, self._before, self._rest = False, None, REST
        self._set(limit)

    def _step(self, limit: int, throughput: float) -> None:
        before = (self.limit, throughput)
        self._set(limit)
        self._before = before if self.limit != before[0] else None

    def _set(self, limit: int) -> None:
        limit = max(1, min(limit, self.most))
        if limit != self.limit:
            self._pass_over = max(limit, self.limit)
            self.limit, self._latencies_s = limit, []
            self._answers = self._refusals = 0


FIRST_WAIT_S: Final = 0.5
LONGEST_WAIT_S: Final = 20.0


def back_off_s(tries: int) -> float:
    """Seconds before a request is sent again after so many tries, at least 1: exponential, with full jitter."""
    return random.uniform(0, min(LONGEST_WAIT_S, FIRST_WAIT_S * 2 ** min(tries - 1, 10)))
