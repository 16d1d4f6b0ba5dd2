"""Who takes part in the comparison: policies under the names of the table's rows."""

from __future__ import annotations

from dataclasses import dataclass

from ..search import BestOfN, NoisePromptScaling, Policy, ReflectionFlow
from ..types import UserError


@dataclass(frozen=True)
class Entrant:
    name: str
    family: str
    """A line of the plot."""
    policy: Policy


ONE, BEST_OF, NOISE_PROMPT, REFLECTION = "one picture", "best of n", "noise + prompt", "ReflectionFlow"

ENTRANTS = (
    Entrant(ONE, BEST_OF, BestOfN(1)),
    *(Entrant(f"best of {n}", BEST_OF, BestOfN.for_budget(n)) for n in (4, 8, 20, 64)),
    Entrant("noise + prompt 20", NOISE_PROMPT, NoisePromptScaling.for_budget(20)),
    *(Entrant(f"ReflectionFlow {n}", REFLECTION, ReflectionFlow.for_budget(n)) for n in (4, 8, 20)),
)
"""Each `for_budget(n)` draws at most n pictures and stops at the first accepted one."""


def choose_entrants(names: list[str] | None) -> tuple[Entrant, ...]:
    """Those of these names, in the order of the table; None: all. UserError for an unknown name."""
    if names is None:
        return ENTRANTS
    known = {e.name for e in ENTRANTS}
    for name in names:
        if name not in known:
            raise UserError(f"there is no policy {name!r} in the benchmark; expected some of "
                            f"{', '.join(map(repr, known))}")
    return tuple(e for e in ENTRANTS if e.name in names)
