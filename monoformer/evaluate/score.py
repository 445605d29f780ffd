"""Figures with their spread: a float that also knows its 95% interval and what it was taken over.

Knows nothing of models. Invariant: a figure is a plain number to whoever asks for no more.
"""

import math
import statistics
from collections.abc import Sequence

Z = 1.959963984540054
"""Deviations of a normal distribution within which 95% of it lies."""


class Score(float):
    """A number, its 95% interval where one is known, and how many items it was taken over."""

    low: float | None
    high: float | None
    count: int

    def __new__(cls, value: float, *, low: float | None = None, high: float | None = None, count: int = 0) -> "Score":
        """`low` and `high` bound the interval."""
        score = super().__new__(cls, value)
        score.low, score.high, score.count = low, high, count
        return score

    def scaled(self, factor: float) -> "Score":
        """The same figure in another unit; the factor is above 0."""
        low, high = (None if bound is None else bound * factor for bound in (self.low, self.high))
        return Score(self * factor, low=low, high=high, count=self.count)

    def within(self, least: float, most: float) -> "Score":
        """The same figure, its interval cut to what is possible."""
        low, high = (None if bound is None else min(max(bound, least), most) for bound in (self.low, self.high))
        return Score(self, low=low, high=high, count=self.count)

    def exp(self) -> "Score":
        """e to the power of the figure and of its bounds."""
        low, high = (None if bound is None else math.exp(bound) for bound in (self.low, self.high))
        return Score(math.exp(self), low=low, high=high, count=self.count)


def share(right: int, count: int) -> Score:
    """`right` of `count` independent items, with Wilson's interval (1927), which is sound near 0 and 1 too."""
    if count < 1:
        return Score(math.nan)
    part, spread = right / count, Z**2 / count
    centre = (part + spread / 2) / (1 + spread)
    half = Z / (1 + spread) * math.sqrt(part * (1 - part) / count + spread / (4 * count))
    low, high = centre - half if right else 0.0, centre + half if right < count else 1.0  # exact where nothing differed
    return Score(part, low=low, high=high, count=count)


def ratio(parts: Sequence[float], wholes: Sequence[float]) -> Score:
    """sum(parts) / sum(wholes) over items that belong together inside, such as the objects of a picture.

    The interval is that of a ratio of means: the residuals part - value * whole are independent from item to item.
    Where all parts are 0 or all are whole it is Wilson's over the items, for that nothing differed proves little.
    """
    total, count = sum(wholes), len(wholes)
    if not total:
        return Score(math.nan)
    value = math.fsum(parts) / total
    if count < 2:
        return Score(value, count=count)
    residuals = [part - value * whole for part, whole in zip(parts, wholes, strict=True)]
    if not any(residuals) and value in (0, 1):
        bounds = share(count if value else 0, count)
        return Score(value, low=bounds.low, high=bounds.high, count=count)
    half = Z * statistics.stdev(residuals) * math.sqrt(count) / total
    return Score(value, low=value - half, high=value + half, count=count)


def difference(after: Score, before: Score) -> Score:
    """after - before of two independent figures."""
    halves = [_half(score) for score in (after, before)]
    if None in halves:
        return Score(float(after) - float(before), count=after.count)
    half = math.hypot(*(half for half in halves if half is not None))
    value = float(after) - float(before)
    return Score(value, low=value - half, high=value + half, count=after.count)


def _half(score: Score) -> float | None:
    return None if score.low is None or score.high is None else (score.high - score.low) / 2
