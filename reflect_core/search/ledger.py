"""What a run has spent so far, by actor, and how much of the wall time was the search itself.

Comparisons between policies are at equal cost, so costs are counted as they happen and never
estimated. The official scripts count nothing; their papers compare at equal numbers of pictures
and leave the initial pool and the judge calls out (spec 4.2, 4.5).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import reduce

from ..types import Cost

ACTORS = ("generator", "verifier", "reflector", "refiner")


@dataclass
class Ledger:
    """The sum of costs by actor. `seconds` of an actor is wall time measured around its calls."""

    by_actor: dict[str, Cost] = field(default_factory=lambda: {a: Cost() for a in ACTORS})
    items: dict[str, int] = field(default_factory=lambda: dict.fromkeys(ACTORS, 0))
    """Pictures drawn, pictures judged, reflections written, prompts rewritten."""
    dearest: dict[str, float] = field(default_factory=lambda: dict.fromkeys(ACTORS, 0.0))
    """Judge calls for one item, the most so far: what a budget has to reckon with."""
    overhead_seconds: float = 0.0
    """Wall time outside all actors: choosing, writing the record, decoding pictures."""

    def add(self, actor: str, cost: Cost, items: int) -> None:
        self.by_actor[actor] = self.by_actor[actor] + cost
        self.items[actor] += items
        if items:
            self.dearest[actor] = max(self.dearest[actor], cost.judge_calls / items)

    @property
    def total(self) -> Cost:
        """All actors together; its seconds are without the overhead."""
        return reduce(Cost.__add__, self.by_actor.values())

    @property
    def seconds(self) -> float:
        """Wall time of the run: actors and overhead, over all sittings of a resumed run."""
        return self.total.seconds + self.overhead_seconds

    @property
    def overhead_share(self) -> float:
        """Share of the wall time outside the actors, in [0, 1]."""
        return self.overhead_seconds / self.seconds if self.seconds > 0 else 0.0

    def copy(self) -> Ledger:
        return Ledger(dict(self.by_actor), dict(self.items), dict(self.dearest), self.overhead_seconds)
