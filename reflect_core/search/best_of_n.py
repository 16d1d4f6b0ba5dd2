"""Best of n: noise scaling. Draw n pictures of one prompt from n noises and keep the best.

ReflectionFlow's step A (spec 4.2) and the curve that both papers compare with. The official script
draws its 32 pictures and leaves judging and choosing to another one; here each is judged as it
comes, so that the search can end at the first good one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .entries import Planned
from .policy import Action, Draw, Policy, Stop, accepted_stop, check_choice, check_count, noise_request
from .run import Run


@dataclass(frozen=True)
class BestOfN(Policy):
    """Draw up to `n` pictures in one round. UserError if a setting is out of range."""

    name: ClassVar[str] = "best_of_n"

    n: int = 16
    early_stop: bool = True
    """Stop after the chunk that holds the first accepted picture, which is then the answer."""

    def __post_init__(self) -> None:
        check_count(self.name, "n", self.n, 1)
        check_choice(self.name, "early_stop", self.early_stop, (True, False))

    @classmethod
    def for_budget(cls, n: int, early_stop: bool = True) -> BestOfN:
        return cls(n, early_stop=early_stop)

    @property
    def most_pictures(self) -> int:
        return self.n

    def next(self, run: Run) -> Action:
        if self.early_stop and (stop := accepted_stop(run)):
            return stop
        done = len(run.candidates)
        if done >= self.n:
            return Stop("done", "the picture is drawn" if self.n == 1 else f"all {self.n} pictures are drawn")
        planned = tuple(Planned(noise_request(run, i), branch=i) for i in range(done, self.n))
        return Draw(run.rounds, planned, until_accepted=self.early_stop)
