"""What an answer to a yes-or-no question is worth, as a number, and whether it is one at all."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from .chat import Answer

LEAST_MASS, SLIGHT_MASS = 0.5, 0.1
"""Of 'yes' and 'no' together: below the first the model hardly answers, and is believed only where the word that it
says agrees with its numbers; below the second those mean nothing."""
_LEAST = 1e-12
_WORD = re.compile(r"^\W*(?:answer\W+)?(yes|no)\b", re.IGNORECASE)


@dataclass(frozen=True)
class Reading:
    """How sure the model is of 'yes'."""

    p: float
    """p(yes) / (p(yes) + p(no)), in [0, 1]; 1 or 0 where only the word is known."""
    how: str
    """'tokens' or 'word'."""
    mass: float | None = None
    """p(yes) + p(no) of the first token; None where the model does not say."""

    @property
    def logit(self) -> float | None:
        """log p(yes) - log p(no), for ranking where p is nearly 1; None where only the word is known."""
        return round(math.log(max(self.p, _LEAST)) - math.log(max(1 - self.p, _LEAST)), 4) \
            if self.how == "tokens" else None


def read(answer: Answer) -> Reading | str:
    """The reading, or why there is none, in words."""
    if answer.error:
        return answer.error
    word = _WORD.match(answer.text)
    mass = None if answer.yes is None or answer.no is None else answer.yes + answer.no
    said_yes = None if word is None else word[1].lower() == "yes"
    if mass is None and word:
        return Reading(1.0 if said_yes else 0.0, "word")
    if mass is not None and (mass >= LEAST_MASS or mass >= SLIGHT_MASS and said_yes is (answer.yes > answer.no)):
        return Reading(answer.yes / mass, "tokens", round(min(mass, 1.0), 4))
    said = f"it said {answer.text[:80]!r}" if answer.text else "it said nothing"
    odds = "" if mass is None else f", with 'yes' and 'no' at {mass:.2f} together"
    return f"the model does not answer yes or no ({said}{odds})"
