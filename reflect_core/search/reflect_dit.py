"""Reflect-DiT's search: one picture after another, each drawn with earlier ones and the feedback on them in view.

arXiv 2503.12271, spec section 5. The first picture is plain. Every later one has a context of up to `context`
pairs: all that there are, oldest first, and once there are more, so many of those that say something different,
drawn at random. Our own defaults differ from the official script in that

- the answer is the best picture, where none is accepted (official: the last one, `answer='last'`);
- a picture on which there was nothing to say is no context (official: it is, with an empty text, `keep_silent=True`);
- every choice comes from the run's seed (official: unseeded).
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import ClassVar

from ..types import Pair
from .entries import Planned
from .policy import (
    Action,
    Draw,
    Policy,
    Reflect,
    Stop,
    accepted_stop,
    check_choice,
    check_count,
    derive_seed,
    noise_request,
)
from .run import Candidate, Run


@dataclass(frozen=True)
class ReflectDiTSearch(Policy):
    """See the module. UserError if a setting is out of range."""

    name: ClassVar[str] = "reflect_dit"

    tries: int = 20
    """N, pictures at most."""
    context: int = 3
    """K, pairs that a picture is drawn with at most."""
    answer: str = "best"
    """Which picture is the answer if none is accepted: 'best' or 'last'."""
    keep_silent: bool = False
    """Whether a picture on which there was nothing to say is context too, with an empty feedback."""
    early_stop: bool = True
    """Stop at the first accepted picture."""

    def __post_init__(self) -> None:
        check_count(self.name, "tries", self.tries, 1)
        check_count(self.name, "context", self.context, 1)
        check_choice(self.name, "answer", self.answer, ("best", "last"))
        for name in ("keep_silent", "early_stop"):
            check_choice(self.name, name, getattr(self, name), (True, False))

    @classmethod
    def official(cls) -> ReflectDiTSearch:
        return cls(answer="last", keep_silent=True)

    @classmethod
    def for_budget(cls, n: int, **settings) -> ReflectDiTSearch:
        return cls(n, **settings)

    @property
    def max_context(self) -> int:
        return min(self.context, self.tries - 1)

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"reflector"}) if self.tries > 1 else frozenset()

    @property
    def most_pictures(self) -> int:
        return self.tries

    def choose(self, run: Run) -> Candidate | None:
        best = run.best()
        if self.answer == "best" or best is None or best.accepted:
            return best
        return next(c for c in reversed(run.candidates) if c.verdict is not None)

    def next(self, run: Run) -> Action:
        if self.early_stop and (stop := accepted_stop(run)):
            return stop
        round = run.rounds
        if round >= self.tries:
            return Stop("done", "the picture is drawn" if self.tries == 1 else f"all {self.tries} pictures are drawn")
        if run.candidates and run.reflection(run.candidates[-1].id) is None:
            return Reflect(round, (run.candidates[-1].id,))
        pairs = self.pairs(run, round)
        parent = max((pair.candidate for pair in pairs), default=None)
        request = replace(noise_request(run, round), context=pairs)
        return Draw(round, (Planned(request, 0, parent),), until_accepted=self.early_stop)

    def pairs(self, run: Run, round: int) -> tuple[Pair, ...]:
        """The context of a round's picture."""
        said = [Pair((run.reflection(c.id) or "").strip(), c.id) for c in run.candidates if not c.accepted]
        history = [pair for pair in said if pair.feedback or self.keep_silent]
        if len(history) <= self.context:
            return tuple(history)
        different = list({pair.feedback: pair for pair in reversed(history)}.values())[::-1]
        chance = random.Random(derive_seed(run.seed, "context", round))
        return tuple(chance.sample(different, min(self.context, len(different))))
