"""Learning-rate schedules: the factor of the peak learning rate in the course of a run."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Schedule:
    """Linear warm-up, then a cosine, or a line, or drops by ten.

    Attributes:
        warm_up: share of the steps.
        floor: where the cosine or the line ends.
        drop_every: share of the steps after which the factor falls to a tenth, repeatedly; None: a cosine.
        linear: a line instead of the cosine.
    """

    warm_up: float = 0.1
    floor: float = 0.0
    drop_every: float | None = None
    linear: bool = False

    def __call__(self, step: int, steps: int, constant: bool = False) -> float:
        """Return the factor at `step` = 0, 1, …; `constant`: of an optimizer that needs no decay of lr."""
        warm_up = max(1, round(self.warm_up * steps))
        if self.warm_up and step < warm_up:
            return (step + 1) / warm_up
        if constant:
            return 1.0
        if self.drop_every is not None:
            return float(0.1 ** math.floor(step / (self.drop_every * steps)))
        done = (step - warm_up) / max(1, steps - warm_up)
        fall = 1 - done if self.linear else 0.5 * (1 + math.cos(math.pi * done))
        return self.floor + (1 - self.floor) * fall

    def __str__(self) -> str:
        """Return the description for the report."""
        up = f"warm-up in {self.warm_up:.3g} of the steps" if self.warm_up else "no warm-up"
        if self.drop_every is not None:
            return f"{up}, lr × 0.1 after every {self.drop_every:.3g} of them"
        return f"{up}, then a {'line' if self.linear else 'cosine'} down to {self.floor:g}"
