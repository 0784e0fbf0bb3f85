"""The grid of a sweep: its learning rates and weight decays, and how it grows."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

Point = tuple[float, float]  # lr, weight decay


@dataclass(frozen=True)
class Axes:
    """The grid's learning rates and weight decays, rising."""

    rates: list[float]
    decays: list[float]

    @property
    def points(self) -> list[Point]:
        """All points of the grid."""
        return list(product(self.rates, self.decays))

    def grown(self, best: Point) -> Axes | None:
        """Return the grid with one value more beyond each edge that `best` is on; None if it is on none.

        An axis of one value has no edge, and no decay is less than 0.
        """
        rates, decays = _grown(self.rates, best[0]), _grown(self.decays, best[1])
        return None if (rates, decays) == (self.rates, self.decays) else Axes(rates, decays)


def _grown(values: list[float], best: float) -> list[float]:
    if len(values) < 2 or best not in (values[0], values[-1]) or best == 0:
        return values
    inner = values[1] if best == values[0] else values[-2]
    beyond = best * best / inner if inner else 10 * best
    short = float(f"{beyond:.3g}")  # unless three digits bring it back onto the grid
    return sorted([*values, short if (short - best) * (best - inner) > 0 else beyond])
