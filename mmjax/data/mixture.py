"""Which source a row comes from: weights turned into a fixed periodic order, so that the ratio holds in any window of rows."""

import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from mmjax.errors import InputError

MAX_PERIOD = 10_000


class Mixture:
    """Maps a global index to (source, index within that source) in constant time.

    The order repeats after `period` rows and holds each source's exact share in them. Within, it follows Tijdeman's rule ("The chairman
    assignment problem", 1980): after any number n of rows, each of K sources has had n times its share, give or take at most
    1 - 1 / (2K - 2). In any window the count of each source is therefore within 1 of its share for two sources, and within 2 for more;
    a window as long as a multiple of the period is exact.

    Attributes:
        counts: rows of each source in one period.
        period: the smallest that holds the shares exactly, but at most MAX_PERIOD: odd shares are rounded to multiples of 1 / MAX_PERIOD.
    """

    def __init__(self, weights: Sequence[float], names: Sequence[str] | None = None):
        """weights: positive, of any sum. names: of the sources, for messages. Raises InputError for a weight that cannot be kept."""
        names = names or [str(number) for number in range(len(weights))]
        for name, weight in zip(names, weights, strict=True):
            if not (weight > 0 and math.isfinite(weight)):
                raise InputError(f"The weight of source {name!r} is {weight}; it must be positive. To skip a source, leave it out.")
        self.counts = _count(weights)
        self.period = sum(self.counts)
        for name, count in zip(names, self.counts, strict=True):
            if not count:
                raise InputError(f"The weight of source {name!r} is under 1 / {2 * MAX_PERIOD} of all weights; it would never be read.")
        self._source = _order(self.counts)
        self._rank = _rank(self._source)

    @property
    def shares(self) -> tuple[float, ...]:
        """The share of each source, as it is kept."""
        return tuple(count / self.period for count in self.counts)

    def locate(self, index: int) -> tuple[int, int]:
        """(number of the source, index of the row within the source) of row `index` >= 0."""
        cycle, place = divmod(index, self.period)
        source = int(self._source[place])
        return source, cycle * self.counts[source] + int(self._rank[place])


def _count(weights: Sequence[float]) -> tuple[int, ...]:
    """Whole numbers in the ratio of the weights, exact if a period of at most MAX_PERIOD allows, else by largest remainders."""
    exact = [Fraction(weight) for weight in weights]
    shares = [weight / sum(exact) for weight in exact]
    simple = [share.limit_denominator(MAX_PERIOD) for share in shares]
    period = math.lcm(*(share.denominator for share in simple))
    # A decimal weight such as 0.1 is no exact binary fraction; what agrees to 1e-12 is what the user wrote.
    same = all(abs(share - near) < 1e-12 for share, near in zip(shares, simple, strict=True))
    if same and sum(simple) == 1 and period <= MAX_PERIOD:
        return tuple(int(share * period) for share in simple)
    counts = [math.floor(share * MAX_PERIOD) for share in shares]
    remainders = sorted(range(len(shares)), key=lambda source: counts[source] - shares[source] * MAX_PERIOD)
    for source in remainders[: MAX_PERIOD - sum(counts)]:
        counts[source] += 1
    return tuple(counts)


def _order(counts: Sequence[int]) -> np.ndarray:
    """[period] the source of each row: among those whose count is due, the one that would first fall behind.

    In whole numbers: `due` is (n * share - rows so far) * period, and the bound 1 - 1 / (2K - 2) is scaled alike by 2K - 2.
    """
    share = np.array(counts, np.int64)
    if len(share) == 1:
        return np.zeros(counts[0], np.int32)
    period, scale = int(share.sum()), 2 * len(share) - 2
    due = np.zeros_like(share)
    order = np.empty(period, np.int32)
    for place in range(period):
        due += share
        deadline = np.where(due * scale >= period, ((scale - 1) * period - due * scale) / share, np.inf)
        order[place] = chosen = int(np.argmin(deadline))
        due[chosen] -= period
    assert not due.any()
    return order


def _rank(order: np.ndarray) -> np.ndarray:
    """[period] how many rows of the same source stand before each."""
    rank = np.empty(len(order), np.int32)
    for source in np.unique(order):
        mine = order == source
        rank[mine] = np.arange(mine.sum())
    return rank
