"""Verdicts of judges that give a number."""

from __future__ import annotations

import math
from typing import Any

from ...generators.checking import is_number
from ...types import UserError, Verdict


def verdict(name: str, raw: float, score: float, threshold: float | None, note: str = "") -> Verdict:
    """A number of the model `name` as a verdict; `note` is on how it read the prompt. UserError for what is none."""
    if not math.isfinite(raw):
        raise UserError(f"{name} gave {raw} for a picture; expected a number; try dtype float32: half may be "
                        "too little for this model")
    details: dict[str, Any] = {"reward": name, "raw": raw}
    if note:
        details["note"] = note
    return Verdict(score, threshold is not None and score >= threshold, reason=f"{name} {raw:.3g}", details=details)


def checked_threshold(threshold: float | None) -> float | None:
    """UserError unless it is None or a number from 0 to 1."""
    if threshold is not None and not (is_number(threshold) and 0 <= threshold <= 1):
        raise UserError(f"threshold is {threshold!r}; expected a score from 0 to 1, or none to accept nothing")
    return threshold


def sigmoid(value: float) -> float:
    """1 / (1 + exp(-value)), for any value."""
    if value >= 0:
        return 1 / (1 + math.exp(-value))
    small = math.exp(max(value, -700.0))
    return small / (1 + small)
