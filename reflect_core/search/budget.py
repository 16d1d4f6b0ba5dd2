"""What a run may spend. The stepper asks before it acts, so a budget is kept and not just noticed.

The official search has none but its number of rounds: a solved prompt still runs all of them (8.2).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from ..types import UserError
from . import codec
from .ledger import Ledger


@dataclass(frozen=True)
class Budget:
    """Limits on a whole run, over all its sittings; None is no limit. UserError unless above zero."""

    pictures: int | None = None
    denoiser_evaluations: int | None = None
    judge_calls: int | None = None
    """By all actors: one for each picture judged, and what language-model reflectors and refiners
    report. A picture is only drawn when a call is left to judge it with."""
    seconds: float | None = None
    """Wall time. Looked at between actions and between chunks; what has begun is finished."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            whole = field.name != "seconds"
            if value is None:
                continue
            kinds = int if whole else (int, float)
            if isinstance(value, bool) or not isinstance(value, kinds) or not value > 0 or math.isinf(value):
                what = "a whole number" if whole else "a number"
                raise UserError(f"the budget's {field.name} must be {what} above 0; got {value!r}; "
                                "try to leave it out for no limit")

    def spent(self, ledger: Ledger, seconds: float | None = None) -> str | None:
        """The reason to stop if some limit is reached, else None. `seconds`: wall time so far, if
        the caller knows better than the ledger."""
        total = ledger.total
        used = {"pictures": total.pictures, "denoiser_evaluations": total.denoiser_evaluations,
                "judge_calls": total.judge_calls}
        for name, value in used.items():
            limit = getattr(self, name)
            if limit is not None and value >= limit:
                return f"the budget of {limit} {name.replace('_', ' ')} is spent"
        return self.out_of_time(ledger.seconds if seconds is None else seconds)

    def out_of_time(self, seconds: float) -> str | None:
        """The reason to stop if `seconds` of wall time are more than there were, else None."""
        if self.seconds is None or seconds < self.seconds:
            return None
        return f"the budget of {self.seconds:g} seconds is spent"

    def fits(self, ledger: Ledger, evaluations: Sequence[int]) -> int:
        """How many of the requests, from the first on, may be drawn and judged; `evaluations` is the
        denoiser evaluations that each of them costs."""
        total, count = ledger.total, len(evaluations)
        if self.pictures is not None:
            count = min(count, self.pictures - total.pictures)
        if self.judge_calls is not None:
            count = min(count, self.judge_calls - total.judge_calls)
        if self.denoiser_evaluations is not None:
            left = self.denoiser_evaluations - total.denoiser_evaluations
            while count > 0 and sum(evaluations[:count]) > left:
                count -= 1
        return max(count, 0)

    def to_json(self) -> dict[str, Any]:
        return codec.flat_to_json(self)

    @classmethod
    def from_json(cls, data: Any) -> Budget:
        return codec.flat_from_json(cls, data)
