"""What a run may spend. The stepper asks before it acts, so a budget is kept and not just noticed.

The official search has none but its number of rounds: a solved prompt still runs all of them (8.2).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from ..types import Cost, UserError
from . import codec


@dataclass(frozen=True)
class Budget:
    """Limits on a whole run, over all its sittings; None is no limit. UserError unless above zero."""

    pictures: int | None = None
    denoiser_evaluations: int | None = None
    """Never exceeded: the generator says beforehand what a picture takes (`Generator.evaluations`)."""
    judge_calls: int | None = None
    """By all actors: one for each picture judged, or what an actor reports (`spent`). A picture is only
    drawn when enough calls are left to judge it with, at one call a picture or the most that it has
    taken so far. So an actor that reports more than one call an item is taken at face value the first
    time, and a call that is dearer than all before it may overrun the budget."""
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

    def exhausted(self, spent: Cost) -> str | None:
        """The reason to stop if some limit is reached, else None. The seconds of `spent` are wall time."""
        for field in fields(self):
            limit = getattr(self, field.name)
            if limit is not None and getattr(spent, field.name) >= limit:
                return f"the budget of {limit:.15g} {_words(field.name)} is spent"
        return None

    def fits(self, spent: Cost, evaluations: Sequence[int], calls: float = 1.0) -> tuple[int, str]:
        """How many pictures, from the first on, may be drawn and judged, and why not one more ('' if all may).

        `evaluations`: denoiser evaluations that each of them takes; `calls`: judge calls for one.
        """
        count, reason = len(evaluations), ""
        needs = {"pictures": lambda n: n, "judge_calls": lambda n: math.ceil(n * calls),
                 "denoiser_evaluations": lambda n: sum(evaluations[:n])}
        for name, need in needs.items():
            limit = getattr(self, name)
            while limit is not None and count > 0 and need(count) > limit - getattr(spent, name):
                reason = self._too_little(name, f"{count} more picture{'' if count == 1 else 's'}")
                count -= 1
        return count, reason

    def forbids_calls(self, spent: Cost, calls: float, actor: str) -> str | None:
        """The reason to stop if so many judge calls are not left for `actor`, else None."""
        if self.judge_calls is None or spent.judge_calls + math.ceil(calls) <= self.judge_calls:
            return None
        return self._too_little("judge_calls", f"the {actor}")

    def _too_little(self, name: str, what: str) -> str:
        return f"what is left of {getattr(self, name)} {_words(name)} is not enough for {what}"

    def to_json(self) -> dict[str, Any]:
        return codec.flat_to_json(self)

    @classmethod
    def from_json(cls, data: Any) -> Budget:
        return codec.flat_from_json(cls, data)


def _words(name: str) -> str:
    return name.replace("_", " ")
